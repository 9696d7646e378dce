//! What writers store: it follows from a seed, so that a checker knows each byte without having seen it written.

use anyhow::{Context, Result};
use potluck_proto::blocks::{BlockTree, hash_shard};
use potluck_proto::cert::{DeviceCert, Rights};
use potluck_proto::key::SecretKey;
use potluck_proto::stripe::{Scheme, SignedHeader, StripeHeader, shard_len};

use super::lines::{HeadName, ShardName};

/// Shards of a stripe.
pub const SHARDS: u32 = 3;

/// Longest payload of a head, in bytes.
const HEAD_LIMIT: u64 = 9_000;

/// Lengths of stripes, in bytes: most are short, so that records are many, and one in five takes a batch for itself.
const LENGTHS: [u64; 5] = [200, 3_000, 12_000, 40_000, 260_000];

/// How much is written, and which bytes.
#[derive(Debug, Clone, Copy)]
pub struct Content {
    /// What all bytes follow from.
    pub seed: u64,
    /// Threads that write, each its own shards and heads.
    pub writers: u32,
    /// Stripes of each thread.
    pub stripes: u32,
    /// Heads of each thread.
    pub heads: u32,
}

/// A stripe of 2+1, whose shards need no code: a store does not look across shards.
pub struct Stripe {
    /// Its header.
    pub header: SignedHeader,
    /// Its shards, each with its chaining values.
    pub shards: Vec<(Vec<u8>, BlockTree)>,
}

impl Content {
    fn noise(&self, what: &str, numbers: &[u32], len: u64) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(what.as_bytes()).update(&self.seed.to_le_bytes());
        for number in numbers {
            hasher.update(&number.to_le_bytes());
        }
        let mut bytes = vec![0; len as usize];
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    }

    /// The stripes of a thread: one signature each.
    ///
    /// # Errors
    /// The scheme is none.
    pub fn stripes_of(&self, writer: u32) -> Result<Vec<Stripe>> {
        let device_key = SecretKey::from_seed(&[2; 32]);
        let vault = SecretKey::from_seed(&[1; 32]);
        let device = DeviceCert::issue(&vault, device_key.public().into(), Rights::ALL, 0, 0);
        (0..self.stripes).map(|number| self.stripe(writer, number, &device, &device_key)).collect()
    }

    fn stripe(&self, writer: u32, number: u32, device: &DeviceCert, key: &SecretKey) -> Result<Stripe> {
        let scheme = Scheme::new(2, 1)?;
        let dice = self.noise("length", &[writer, number], 2);
        let longest = LENGTHS[number as usize % LENGTHS.len()];
        let data_len = longest / 2 + longest * u64::from(dice[0]) / 512 + 1;
        let len = shard_len(data_len as usize, scheme.k());
        let shards = (0..SHARDS).map(|index| {
            let bytes = self.noise("shard", &[writer, number, index], len as u64);
            let (hash, tree) = hash_shard(&bytes);
            (hash, (bytes, tree))
        });
        let (hashes, shards): (Vec<_>, Vec<_>) = shards.unzip();
        let header = StripeHeader {
            vault: device.vault(),
            device: device.clone(),
            born: 0,
            created_ms: 0,
            scheme,
            shard_len: len as u32,
            data_len: data_len as u32,
            shards: hashes,
        };
        Ok(Stripe { header: header.sign(key), shards })
    }

    /// Under what a head is kept.
    #[must_use]
    pub fn head_key(&self, head: HeadName) -> [u8; 32] {
        let bytes = self.noise("head key", &[head.writer, head.head], 32);
        let mut key = [0; 32];
        key.copy_from_slice(&bytes);
        key
    }

    /// What a head holds at one of its values.
    #[must_use]
    pub fn head(&self, head: HeadName, value: u32) -> Vec<u8> {
        let len = u64::from(value.wrapping_mul(0x9e37_79b9)) % HEAD_LIMIT;
        let mut bytes = value.to_le_bytes().to_vec();
        bytes.extend(self.noise("head", &[head.writer, head.head, value], len));
        bytes
    }

    /// The value of which a head says that it holds it: its first bytes. Whether the others fit is to be compared.
    ///
    /// # Errors
    /// It is too short to say one.
    pub fn value_of(payload: &[u8]) -> Result<u32> {
        let first = payload.first_chunk().context("a head of less than four bytes")?;
        Ok(u32::from_le_bytes(*first))
    }

    /// All shards, in order.
    pub fn shards(self) -> impl Iterator<Item = ShardName> {
        let stripes = (0..self.writers).flat_map(move |writer| (0..self.stripes).map(move |stripe| (writer, stripe)));
        stripes.flat_map(|(writer, stripe)| (0..SHARDS).map(move |index| ShardName { writer, stripe, index }))
    }

    /// All heads, in order.
    pub fn heads(self) -> impl Iterator<Item = HeadName> {
        (0..self.writers).flat_map(move |writer| (0..self.heads).map(move |head| HeadName { writer, head }))
    }
}
