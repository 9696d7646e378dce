//! Shards as a store gets them: of stripes that are really signed, each of them its own.
//!
//! All stripes have the same n payloads and differ in what is signed, so that nothing but the signing has to be paid for
//! beforehand. A stripe's number is all that is needed to make it again, in another process too.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, ensure};
use potluck_node::store::segments::SegmentStore;
use potluck_node::store::{Check, ShardKey};
use potluck_proto::blocks::{BlockTree, chaining_values};
use potluck_proto::cert::{DeviceCert, Rights};
use potluck_proto::key::SecretKey;
use potluck_proto::stripe::{Scheme, SignedHeader, StripeHeader};

use super::lanes::in_lanes;

/// Threads that sign.
const SIGNERS: usize = 2;

/// Makes stripes.
pub(super) struct Stripes {
    key: SecretKey,
    device: DeviceCert,
    scheme: Scheme,
    payloads: Vec<(Vec<u8>, BlockTree)>,
}

impl Stripes {
    /// Stripes whose shards are `len` bytes long, a multiple of 64.
    pub(super) fn new(scheme: Scheme, len: usize) -> Self {
        let vault = SecretKey::from_seed(&[1; 32]);
        let key = SecretKey::from_seed(&[2; 32]);
        let device = DeviceCert::issue(&vault, key.public().into(), Rights::ALL, 0, 0);
        let payload = |index: usize| {
            let mut bytes = vec![0; len];
            blake3::Hasher::new().update(&index.to_le_bytes()).finalize_xof().fill(&mut bytes);
            let tree = chaining_values(&bytes);
            (bytes, tree)
        };
        Self { key, device, scheme, payloads: (0..scheme.n()).map(payload).collect() }
    }

    /// Shards of a stripe.
    pub(super) fn n(&self) -> usize {
        self.scheme.n()
    }

    /// Bytes of each shard.
    pub(super) fn shard_len(&self) -> usize {
        self.payloads[0].0.len()
    }

    /// One of a stripe's payloads.
    pub(super) fn payload(&self, index: usize) -> &[u8] {
        &self.payloads[index].0
    }

    /// The stripe with this number.
    pub(super) fn stripe(&self, number: usize) -> SignedHeader {
        let len = self.shard_len();
        let header = StripeHeader {
            vault: self.device.vault(),
            device: self.device.clone(),
            born: 0,
            created_ms: number as u64,
            scheme: self.scheme,
            shard_len: len as u32,
            data_len: (len * self.scheme.k()) as u32,
            shards: self.payloads.iter().map(|(_, tree)| tree.root()).collect(),
        };
        header.sign(&self.key)
    }

    /// The stripes with these numbers.
    pub(super) fn stripes(&self, numbers: Range<usize>) -> Vec<SignedHeader> {
        let share = numbers.len().div_ceil(SIGNERS);
        std::thread::scope(|scope| {
            let parts: Vec<_> = (0..SIGNERS)
                .map(|signer| {
                    let from = (numbers.start + signer * share).min(numbers.end);
                    let part = from..(from + share).min(numbers.end);
                    scope.spawn(move || part.map(|number| self.stripe(number)).collect::<Vec<_>>())
                })
                .collect();
            // A thread that panicked leaves too few: whoever counts on them panics too.
            parts.into_iter().filter_map(|part| part.join().ok()).flatten().collect()
        })
    }

    /// Puts one shard.
    pub(super) fn put(&self, store: &SegmentStore, stripe: &SignedHeader, index: usize) -> Result<()> {
        let (payload, tree) = &self.payloads[index];
        ensure!(store.put(stripe, index, payload, tree, 0)?, "a shard that was there already");
        Ok(())
    }

    /// Puts all shards of these stripes, on `writers` threads. Returns the time that it took.
    pub(super) fn put_all(&self, store: &SegmentStore, stripes: &[SignedHeader], writers: usize) -> Result<Duration> {
        in_lanes(writers, stripes.len() * self.n(), |number, ()| {
            self.put(store, &stripes[number / self.n()], number % self.n())
        })
    }

    /// Reads one shard, verified, and compares it.
    pub(super) fn read(&self, store: &SegmentStore, stripe: &SignedHeader, index: usize) -> Result<()> {
        let key = ShardKey { stripe: stripe.id(), index };
        let read = store.read(key, 0..0, Check::Here)?;
        ensure!(read.data == self.payloads[index].0, "other bytes than were put");
        Ok(())
    }
}
