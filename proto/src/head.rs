//! Heads: device-signed pointers to a vault's state, and the rule by which they win over each other.
//!
//! A head dominates another when its version vector does. Heads that do not dominate each other are concurrent, the
//! maximal ones are all kept, and a client merges what they point to. Layout: FORMAT.md, "Head".

use std::collections::BTreeMap;
use std::fmt;

use crate::cert::{DeviceCert, Rights};
use crate::encoding::{DecodeError, Decoder, Encoder};
use crate::id::{ClusterId, Digest, HeadId, VaultId};
use crate::key::{Context, SIGNATURE_LEN, SecretKey};

/// Newest format version of a head.
pub const HEAD_VERSION: u16 = 1;

/// Most entries of a version vector: one per device number that ever wrote.
pub const VECTOR_LIMIT: usize = 4096;

/// Longest root, in bytes: what the client stores to find the commit; opaque to nodes.
pub const ROOT_LIMIT: usize = 512;

/// Longest head, in bytes.
pub const HEAD_LIMIT: usize = 128 << 10;

/// Most concurrent heads that a replica takes from writers; more means that nobody merges.
pub const CONCURRENT_LIMIT: usize = 64;

/// Most bytes of concurrent heads that a replica takes from writers.
pub const CONCURRENT_BYTES: usize = 3 << 19;

/// How much a set of heads may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetLimit {
    /// Most heads.
    pub heads: usize,
    /// Most bytes of all heads together.
    pub bytes: usize,
}

impl SetLimit {
    /// For what writers bring.
    pub const WRITTEN: SetLimit = SetLimit { heads: CONCURRENT_LIMIT, bytes: CONCURRENT_BYTES };

    /// For what other replicas bring: each may have taken other heads from writers. What is held then still fits into one
    /// message, with room for the lists beside it.
    pub const LEARNED: SetLimit = SetLimit { heads: 2 * CONCURRENT_LIMIT, bytes: 2 * CONCURRENT_BYTES };

    /// None, for a set in memory that nobody else fills.
    const NONE: SetLimit = SetLimit { heads: usize::MAX, bytes: usize::MAX };
}

const _: () = assert!(SetLimit::LEARNED.bytes + (1 << 20) <= crate::wire::MESSAGE_LIMIT);
const _: () = assert!(HEAD_LIMIT <= CONCURRENT_BYTES);

/// How many commits of each device number a state includes.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionVector(BTreeMap<u64, u64>);

/// How two version vectors stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Causality {
    /// The same.
    Equal,
    /// The left one includes all of the right one, and more.
    After,
    /// The right one includes all of the left one, and more.
    Before,
    /// Each has something that the other lacks.
    Concurrent,
}

impl VersionVector {
    /// The counter of a device number; 0 if it never wrote.
    #[must_use]
    pub fn get(&self, device_number: u64) -> u64 {
        self.0.get(&device_number).copied().unwrap_or(0)
    }

    /// Sets the counter of a device number.
    pub fn set(&mut self, device_number: u64, counter: u64) {
        self.0.insert(device_number, counter);
    }

    /// The entries in order of device number.
    pub fn entries(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(&number, &counter)| (number, counter))
    }

    /// Includes all that `other` includes.
    pub fn join(&mut self, other: &VersionVector) {
        for (number, counter) in other.entries() {
            let own = self.0.entry(number).or_default();
            *own = counter.max(*own);
        }
    }

    /// How the two stand to each other.
    #[must_use]
    pub fn compare(&self, other: &VersionVector) -> Causality {
        let more = self.entries().any(|(number, counter)| counter > other.get(number));
        let less = other.entries().any(|(number, counter)| counter > self.get(number));
        match (more, less) {
            (false, false) => Causality::Equal,
            (true, false) => Causality::After,
            (false, true) => Causality::Before,
            (true, true) => Causality::Concurrent,
        }
    }

    /// Writes the vector.
    pub fn encode(&self, encoder: &mut Encoder) {
        encoder.varint(self.0.len() as u64);
        for (number, counter) in self.entries() {
            encoder.u64(number).varint(counter);
        }
    }

    /// Reads what [`VersionVector::encode`] wrote; entries out of order, double or zero are refused.
    pub fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let mut vector = BTreeMap::new();
        for _ in 0..decoder.count("version vector", VECTOR_LIMIT)? {
            let number = decoder.u64("device number")?;
            let counter = decoder.varint("counter")?;
            if counter == 0 || vector.last_key_value().is_some_and(|(&last, _)| last >= number) {
                return Err(DecodeError::Invalid { field: "version vector", why: "not in its one order" });
            }
            vector.insert(number, counter);
        }
        Ok(Self(vector))
    }
}

/// What a device signs to move its vault on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The cluster that it is for: a head is void elsewhere.
    pub cluster: ClusterId,
    /// The writer.
    pub device: DeviceCert,
    /// What this state includes.
    pub vector: VersionVector,
    /// The newest sweep that the writer follows.
    pub sweep: u64,
    /// That sweep's hash; zero at sweep 0.
    pub sweep_hash: Digest,
    /// Milliseconds since 1970 by the writer's clock: for people.
    pub created_ms: u64,
    /// Where the commit is, as the client wrote it; nodes cannot read it.
    pub root: Vec<u8>,
}

/// A head with its exact bytes, its id and a checked signature.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedHead {
    head: Head,
    bytes: bytes::Bytes,
    id: HeadId,
}

impl Head {
    /// Signs the head with the device key that its certificate names.
    #[must_use]
    pub fn sign(self, device: &SecretKey) -> SignedHead {
        let mut encoder = Encoder::new();
        encoder.u16(HEAD_VERSION).raw(self.cluster.as_bytes()).bytes(self.device.as_bytes());
        self.vector.encode(&mut encoder);
        encoder.u64(self.sweep).raw(self.sweep_hash.as_bytes()).u64(self.created_ms).bytes(&self.root);
        let bytes = crate::cert::seal(encoder, Context::Head, device);
        let id = HeadId(*blake3::hash(&bytes).as_bytes());
        SignedHead { head: self, bytes: bytes.into(), id }
    }
}

impl SignedHead {
    /// Reads a head and checks its device's certificate, right to write and signature.
    pub fn decode(bytes: bytes::Bytes) -> Result<Self, DecodeError> {
        if bytes.len() > HEAD_LIMIT {
            return Err(DecodeError::Invalid { field: "head", why: "longer than its limit" });
        }
        let mut decoder = Decoder::new(&bytes);
        decoder.version("head", HEAD_VERSION)?;
        let cluster = decoder.id("cluster")?;
        let device = DeviceCert::decode(decoder.bytes("device certificate", crate::cert::CERT_LIMIT)?)?;
        let vector = VersionVector::decode(&mut decoder)?;
        let sweep = decoder.u64("sweep")?;
        let sweep_hash = decoder.id("sweep hash")?;
        let created_ms = decoder.u64("created")?;
        let root = decoder.bytes("root", ROOT_LIMIT)?.to_vec();
        decoder.raw("signature", SIGNATURE_LEN)?;
        decoder.finish()?;
        if !device.rights().contains(Rights::WRITE) {
            return Err(DecodeError::Invalid { field: "device certificate", why: "without the right to write" });
        }
        crate::cert::check(&bytes, Context::Head, device.device().into(), "head")?;
        let id = HeadId(*blake3::hash(&bytes).as_bytes());
        Ok(Self { head: Head { cluster, device, vector, sweep, sweep_hash, created_ms, root }, bytes, id })
    }

    /// The head's id: BLAKE3 of its bytes.
    #[must_use]
    pub fn id(&self) -> HeadId {
        self.id
    }

    /// The vault.
    #[must_use]
    pub fn vault(&self) -> VaultId {
        self.head.device.vault()
    }

    /// The signed bytes.
    #[must_use]
    pub fn bytes(&self) -> &bytes::Bytes {
        &self.bytes
    }
}

impl std::ops::Deref for SignedHead {
    type Target = Head;

    fn deref(&self) -> &Head {
        &self.head
    }
}

impl fmt::Debug for SignedHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedHead({} {:?})", self.id.short(), self.head.vector)
    }
}

/// What became of a head offered to a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It is maximal, and was not here before.
    New,
    /// It was here.
    Known,
    /// A head that is here dominates it.
    Dominated,
    /// It is maximal, but the set would grow beyond its limit: nothing was changed.
    NoRoom,
}

/// The maximal heads among all that were offered. Heads of equal vectors but different bytes are concurrent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeadSet(BTreeMap<HeadId, SignedHead>);

impl HeadSet {
    /// Takes a head in, and drops those that it dominates.
    pub fn offer(&mut self, head: SignedHead) -> Offered {
        self.offer_within(head, SetLimit::NONE)
    }

    /// As [`HeadSet::offer`], unless the set would grow beyond `limit`: then the newcomer is refused, and no head that is
    /// held is dropped for it. A head that makes the set no larger always finds room.
    pub fn offer_within(&mut self, head: SignedHead, limit: SetLimit) -> Offered {
        if self.0.contains_key(&head.id) {
            return Offered::Known;
        }
        if self.0.values().any(|held| head.vector.compare(&held.vector) == Causality::Before) {
            return Offered::Dominated;
        }
        let kept = self.0.values().filter(|held| head.vector.compare(&held.vector) != Causality::After);
        let (heads, bytes) =
            kept.fold((1, head.bytes.len()), |(heads, bytes), held| (heads + 1, bytes + held.bytes.len()));
        if (heads > limit.heads && heads > self.len()) || (bytes > limit.bytes && bytes > self.bytes()) {
            return Offered::NoRoom;
        }
        self.0.retain(|_, held| head.vector.compare(&held.vector) != Causality::After);
        self.0.insert(head.id, head);
        Offered::New
    }

    /// The maximal heads, by id.
    pub fn iter(&self) -> impl Iterator<Item = &SignedHead> {
        self.0.values()
    }

    /// Whether `head` is held as maximal.
    #[must_use]
    pub fn contains(&self, head: &HeadId) -> bool {
        self.0.contains_key(head)
    }

    /// How many concurrent heads there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Bytes of all heads together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.iter().map(|head| head.bytes.len()).sum()
    }

    /// Whether no head is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The newest sweep that a held head names.
    #[must_use]
    pub fn sweep(&self) -> u64 {
        self.iter().map(|head| head.sweep).max().unwrap_or(0)
    }

    /// Whether a sweeping head may come in: it names a newer sweep than all held, so it must dominate each of them; and
    /// from then on no head that names an older sweep may come in.
    #[must_use]
    pub fn sweep_allows(&self, head: &Head) -> bool {
        match head.sweep.cmp(&self.sweep()) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => true,
            std::cmp::Ordering::Greater => {
                self.iter().all(|held| head.vector.compare(&held.vector) == Causality::After)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::DeviceId;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    fn head(entries: &[(u64, u64)], salt: u8) -> SignedHead {
        let vault = SecretKey::from_seed(&[1; 32]);
        let device = SecretKey::from_seed(&[2; 32]);
        let cert = DeviceCert::issue(&vault, DeviceId::from(device.public()), Rights::ALL, 0, 0);
        let vector = VersionVector(entries.iter().copied().filter(|entry| entry.1 > 0).collect());
        let (cluster, sweep_hash) = (ClusterId([3; 32]), Digest([0; 32]));
        Head { cluster, device: cert, vector, sweep: 0, sweep_hash, created_ms: 0, root: vec![salt] }.sign(&device)
    }

    fn set(heads: &[SignedHead]) -> HeadSet {
        let mut set = HeadSet::default();
        heads.iter().for_each(|head| {
            set.offer(head.clone());
        });
        set
    }

    #[test]
    fn round_trip_and_every_changed_bit_is_refused() {
        let head = head(&[(1, 2), (7, 300)], 9);
        assert_eq!(SignedHead::decode(head.bytes().clone()).unwrap(), head);
        for position in 0..head.bytes().len() {
            let mut bytes = head.bytes().to_vec();
            bytes[position] ^= 4;
            assert!(SignedHead::decode(bytes.into()).is_err(), "byte {position}");
        }
    }

    #[test]
    fn a_reader_cannot_write_heads() {
        let vault = SecretKey::from_seed(&[1; 32]);
        let device = SecretKey::from_seed(&[2; 32]);
        let cert = DeviceCert::issue(&vault, device.public().into(), Rights::READ, 0, 0);
        let forged = Head { device: cert, ..(*head(&[(1, 1)], 0)).clone() }.sign(&device);
        assert!(SignedHead::decode(forged.bytes().clone()).is_err());
    }

    #[test]
    fn equal_vectors_with_different_bytes_are_concurrent() {
        let mut set = set(&[head(&[(1, 1)], 1), head(&[(1, 1)], 2)]);
        assert_eq!(set.len(), 2);
        assert_eq!(set.offer(head(&[(1, 2)], 3)), Offered::New);
        assert_eq!(set.len(), 1);
        assert_eq!(set.offer(head(&[(1, 1)], 1)), Offered::Dominated);
        assert_eq!(set.offer(head(&[(1, 2)], 3)), Offered::Known);
    }

    #[test]
    fn a_sweeping_head_must_dominate_and_ends_older_sweeps() {
        let held = set(&[head(&[(1, 1)], 1), head(&[(2, 1)], 2)]);
        let sweeping = |entries: &[(u64, u64)], sweep| Head { sweep, ..(*head(entries, 0)).clone() };
        assert!(!held.sweep_allows(&sweeping(&[(1, 2)], 1)));
        assert!(held.sweep_allows(&sweeping(&[(1, 2), (2, 1)], 1)));
        let device = SecretKey::from_seed(&[2; 32]);
        let swept = set(&[sweeping(&[(1, 2), (2, 1)], 1).sign(&device)]);
        assert!(!swept.sweep_allows(&sweeping(&[(1, 9), (2, 9)], 0)));
    }

    proptest! {
        #[test]
        fn offering_is_commutative_associative_idempotent(
            raw in proptest::collection::vec(((0u64..4, 0u64..4, 0u64..4), 0u8..2), 0..8),
            split in 0usize..8,
        ) {
            let heads: Vec<_> =
                raw.iter().map(|&((a, b, c), salt)| head(&[(1, a), (2, b), (3, c)], salt)).collect();
            let forward = set(&heads);
            let mut reversed = heads.clone();
            reversed.reverse();
            prop_assert_eq!(&forward, &set(&reversed));
            let (left, right) = heads.split_at(split.min(heads.len()));
            let mut joined = set(left);
            set(right).iter().for_each(|head| { joined.offer(head.clone()); });
            prop_assert_eq!(&forward, &joined);
            let mut again = forward.clone();
            heads.iter().for_each(|head| { again.offer(head.clone()); });
            prop_assert_eq!(&forward, &again);
            // Nothing is lost: each head is included in some maximal one.
            for head in &heads {
                let included =
                    |max: &SignedHead| matches!(max.vector.compare(&head.vector), Causality::After | Causality::Equal);
                prop_assert!(forward.iter().any(included));
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in any::<Vec<u8>>()) {
            let _ = SignedHead::decode(bytes.into());
        }
    }
}
