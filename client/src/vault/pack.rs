//! Packing: sealed chunks go into stripes, full stripes are coded and signed.
//!
//! The packer owns the one open stripe and never waits: where a stripe has to be closed, or its id to be known, it says
//! so, and the caller does it. Coding and hashing is a plain function on an owned value, for whichever thread has time.
//! Chunks are encrypted into the buffer that the shards are slices of, then; until it they keep their own memory.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use potluck_proto::blocks::{BLOCK_LEN, TreeBuilder};
use potluck_proto::buffers::Pool;
use potluck_proto::cert::DeviceCert;
use potluck_proto::codec::{Codec, CodecError};
use potluck_proto::id::{ChunkId, StripeId};
use potluck_proto::key::SecretKey;
use potluck_proto::stripe::{DATA_LIMIT, Scheme, SignedHeader, StripeHeader, padded_len, shard_len};

use super::StoredObject;
use super::pointer::{Location, PendingPointer, Place, StripeRef, Unsealed};
use super::seal::{ReadyChunk, SealError, Sealer};

/// Bytes of buffers of stripes that are on the ring, kept for the next ones: fresh memory of this size costs as much as
/// coding.
const BUFFERS: usize = 56 << 20;

/// Collects chunks into stripes of one scheme.
pub struct Packer {
    scheme: Scheme,
    sequence: u64,
    chunks: Chunks,
    buffers: Pool,
    finished: BTreeMap<u64, StripeId>,
}

/// What became of an object that was to be packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// It is in the open stripe.
    At(PendingPointer),
    /// The open stripe has no room for it: [`Packer::close`] it, then try again.
    Full,
    /// It points into a stripe that was closed but has no id yet: wait until that is [`Packer::finished`], then try
    /// again.
    Waits(Unsealed),
}

impl Packer {
    /// An empty packer.
    #[must_use]
    pub fn new(scheme: Scheme) -> Self {
        Self { scheme, sequence: 0, chunks: Chunks::default(), buffers: Pool::new(BUFFERS), finished: BTreeMap::new() }
    }

    /// The number of the open stripe. The first is 0, each [`Packer::close`] that has something to close adds 1.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Bytes in the open stripe.
    #[must_use]
    pub fn open_len(&self) -> usize {
        self.chunks.len
    }

    /// Puts a chunk into the open stripe; `None`, and nothing done, if there is no room: close it and try again.
    pub fn append(&mut self, chunk: &ReadyChunk) -> Option<PendingPointer> {
        if self.chunks.len + chunk.stored_len() > DATA_LIMIT {
            return None;
        }
        // Both fit: the limit of a stripe is 16 MiB.
        let (offset, len) = (self.chunks.len as u32, chunk.stored_len() as u32);
        self.chunks.push(chunk.clone());
        Some(PendingPointer { stripe: StripeRef::Open(self.sequence), offset, len, hash: chunk.hash })
    }

    /// Encodes an object, whose id is `id`, for the open stripe, seals it, and puts it there.
    pub fn place(&mut self, sealer: &mut Sealer, id: ChunkId, object: &dyn StoredObject) -> Result<Placed, SealError> {
        let plain = match object.encode(self) {
            Ok(plain) => plain,
            Err(unsealed) => return Ok(Placed::Waits(unsealed)),
        };
        let chunk = sealer.seal_object(id, &plain)?;
        Ok(self.append(&chunk).map_or(Placed::Full, Placed::At))
    }

    /// Closes the open stripe and begins the next; `None` if it is empty. The caller seals it, then reports its id by
    /// [`Packer::finished`].
    pub fn close(&mut self) -> Option<OpenStripe> {
        if self.chunks.len == 0 {
            return None;
        }
        let (chunks, buffers) = (std::mem::take(&mut self.chunks), self.buffers.clone());
        let closed = OpenStripe { sequence: self.sequence, scheme: self.scheme, chunks, buffers };
        self.sequence += 1;
        Some(closed)
    }

    /// The chunk at a place in the open stripe; `None` if the pointer is not to one there.
    #[must_use]
    pub fn read_open(&self, pointer: &PendingPointer) -> Option<&ReadyChunk> {
        let chunk = self.chunks.at(pointer.offset as usize)?;
        (pointer.stripe == StripeRef::Open(self.sequence) && chunk.stored_len() == pointer.len as usize)
            .then_some(chunk)
    }

    /// Learns the id of a stripe that was closed and sealed.
    pub fn finished(&mut self, sequence: u64, id: StripeId) {
        self.finished.insert(sequence, id);
    }

    /// The id of the stripe of this number, if it is known.
    #[must_use]
    pub fn resolve(&self, sequence: u64) -> Option<StripeId> {
        self.finished.get(&sequence).copied()
    }
}

/// The open stripe as the place of an object.
impl Place for Packer {
    fn name(&self, stripe: StripeRef) -> Result<Location, Unsealed> {
        match stripe {
            StripeRef::Sealed(id) => Ok(Location::Stripe(id)),
            StripeRef::Open(sequence) if sequence == self.sequence => Ok(Location::Own),
            StripeRef::Open(sequence) => self.resolve(sequence).map(Location::Stripe).ok_or(Unsealed(sequence)),
        }
    }
}

/// Who writes stripes, and what each of them carries.
#[derive(Clone)]
pub struct Writer {
    /// The device's certificate.
    pub cert: DeviceCert,
    /// The device's key, the one that the certificate names.
    pub key: SecretKey,
    /// The newest sweep that the writer knows.
    pub born: u64,
}

/// Chunks one after the other.
#[derive(Default)]
struct Chunks {
    /// Each with the place where it begins, in order.
    placed: Vec<(usize, ReadyChunk)>,
    /// Bytes of all.
    len: usize,
}

impl Chunks {
    fn push(&mut self, chunk: ReadyChunk) {
        let begin = self.len;
        self.len += chunk.stored_len();
        self.placed.push((begin, chunk));
    }

    fn at(&self, begin: usize) -> Option<&ReadyChunk> {
        let place = self.placed.binary_search_by_key(&begin, |(begin, _)| *begin).ok()?;
        Some(&self.placed[place].1)
    }

    /// Encrypts all of them into `data`, which must have their length, and lets go of each.
    fn write(self, data: &mut [u8]) -> Result<(), SealError> {
        self.placed.into_iter().try_for_each(|(begin, chunk)| chunk.write(&mut data[begin..begin + chunk.stored_len()]))
    }
}

/// A stripe that takes no more chunks and is not coded yet.
pub struct OpenStripe {
    sequence: u64,
    scheme: Scheme,
    chunks: Chunks,
    buffers: Pool,
}

/// Why a closed stripe could not be coded. Neither depends on the bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseError {
    /// A chunk could not be encrypted.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The code failed.
    #[error(transparent)]
    Code(#[from] CodecError),
}

/// A stripe as it goes to its homes.
#[derive(Debug, Clone)]
pub struct SealedStripe {
    /// The number that its packer gave it.
    pub sequence: u64,
    /// The signed header.
    pub header: SignedHeader,
    /// All n shards, data first: slices of one buffer.
    pub shards: Vec<Bytes>,
}

impl OpenStripe {
    /// The number that its packer gave it.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The chunks as they were packed, without padding.
    pub fn into_data(self) -> Result<Vec<u8>, SealError> {
        let mut data = vec![0; self.chunks.len];
        self.chunks.write(&mut data)?;
        Ok(data)
    }

    /// Encrypts, pads, codes, hashes and signs; `created_ms` is the writer's clock, for people. Takes milliseconds of one
    /// core.
    pub fn seal(self, writer: &Writer, created_ms: u64) -> Result<SealedStripe, CloseError> {
        let Self { sequence, scheme, chunks, buffers } = self;
        let len = chunks.len;
        let data_len = padded_len(len);
        let shard = shard_len(data_len, scheme.k());
        let mut buffer = buffers.take(shard * scheme.n());
        let (data, parity) = buffer.split_at_mut(shard * scheme.k());
        let (packed, padding) = data.split_at_mut(len);
        chunks.write(packed)?;
        padding.fill(0);
        let mut trees = vec![TreeBuilder::new(shard as u64); scheme.n()];
        // Hashed while they are in the processor's cache.
        Codec::new(scheme).encode_stepwise(data, parity, BLOCK_LEN, |index, block| trees[index].push(block))?;
        let buffer = buffer.freeze();
        let shards: Vec<Bytes> =
            (0..scheme.n()).map(|index| buffer.slice(index * shard..(index + 1) * shard)).collect();
        let header = StripeHeader {
            vault: writer.cert.vault(),
            device: writer.cert.clone(),
            born: writer.born,
            created_ms,
            scheme,
            // Both fit: a stripe's data is at most 16 MiB.
            shard_len: shard as u32,
            data_len: data_len as u32,
            shards: trees.into_iter().map(|tree| tree.finish().root()).collect(),
        };
        Ok(SealedStripe { sequence, header: header.sign(&writer.key), shards })
    }
}

impl fmt::Debug for OpenStripe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenStripe({}, {} bytes)", self.sequence, self.chunks.len)
    }
}

#[cfg(test)]
mod tests {
    use potluck_proto::cert::{DeviceCert, Rights};
    use potluck_proto::codec::Codec;
    use potluck_proto::id::{ChunkId, DeviceId, StripeId};
    use potluck_proto::key::SecretKey;
    use potluck_proto::stripe::{DATA_LIMIT, Scheme, SignedHeader};

    use super::{Packer, Placed, Writer};
    use crate::vault::keys::VaultSecret;
    use crate::vault::pointer::{PendingPointer, Place, StripeRef, Unsealed};
    use crate::vault::seal::{Opener, Sealer};
    use crate::vault::{StoredObject, VaultKeys};

    const PARENT: ChunkId = ChunkId([1; 32]);

    struct Parent(PendingPointer);

    impl StoredObject for Parent {
        fn id(&self, _: &VaultKeys) -> ChunkId {
            PARENT
        }

        fn encode(&self, place: &dyn Place) -> Result<Vec<u8>, Unsealed> {
            let mut encoder = potluck_proto::encoding::Encoder::new();
            self.0.encode(&mut encoder, place)?;
            Ok(encoder.into_bytes())
        }
    }

    fn writer(vault: &SecretKey) -> Writer {
        let key = SecretKey::from_seed(&[8; 32]);
        let device = DeviceId::from(key.public());
        Writer { cert: DeviceCert::issue(vault, device, Rights::ALL, 1, 0), key, born: 0 }
    }

    fn noise(seed: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn stripes_hold_what_was_packed_and_rebuild() {
        let keys = VaultSecret::from_bytes([3; 32]).keys();
        let (mut sealer, mut opener) = (Sealer::new(&keys).unwrap(), Opener::new(&keys).unwrap());
        let scheme = Scheme::new(3, 2).unwrap();
        let mut packer = Packer::new(scheme);
        let chunks: Vec<_> = (0..20).map(|seed| sealer.seal(&noise(seed, 1 << 20)).unwrap()).collect();
        let (mut pointers, mut stripes) = (Vec::new(), Vec::new());
        for chunk in &chunks {
            let pointer = packer.append(chunk).unwrap_or_else(|| {
                stripes.push(packer.close().unwrap().seal(&writer(keys.signing()), 5).unwrap());
                packer.append(chunk).unwrap()
            });
            assert_eq!(packer.read_open(&pointer).unwrap().hash, chunk.hash);
            assert!(packer.read_open(&PendingPointer { offset: pointer.offset + 1, ..pointer }).is_none());
            pointers.push(pointer);
        }
        stripes.push(packer.close().unwrap().seal(&writer(keys.signing()), 5).unwrap());
        assert!(packer.close().is_none());
        assert_eq!(stripes.len(), 2);
        for stripe in &stripes {
            assert_eq!(SignedHeader::decode(stripe.header.bytes().clone()).unwrap(), stripe.header);
            packer.finished(stripe.sequence, stripe.header.id());
            let rest = [(1, &stripe.shards[1][..]), (3, &stripe.shards[3]), (4, &stripe.shards[4])];
            assert_eq!(Codec::new(scheme).rebuild(&rest, &[0]).unwrap()[0], stripe.shards[0]);
        }
        for (pointer, chunk) in pointers.iter().zip(&chunks) {
            let sealed = pointer.resolve(|sequence| packer.resolve(sequence)).unwrap();
            let stripe = stripes.iter().find(|stripe| stripe.header.id() == sealed.stripe).unwrap();
            let data = stripe.shards[..3].concat();
            let stored = &data[sealed.offset as usize..][..sealed.len as usize];
            opener.open_chunk(&chunk.id, &sealed.hash, stored).unwrap();
        }
    }

    #[test]
    fn a_tiny_stripe_is_tiny() {
        let keys = VaultSecret::from_bytes([3; 32]).keys();
        let mut packer = Packer::new(Scheme::new(5, 3).unwrap());
        packer.append(&Sealer::new(&keys).unwrap().seal(b"tiny").unwrap()).unwrap();
        let stripe = packer.close().unwrap().seal(&writer(keys.signing()), 5).unwrap();
        assert_eq!((stripe.header.data_len, stripe.header.shard_len, stripe.shards.len()), (512, 128, 8));
    }

    #[test]
    fn an_object_is_placed_once_the_stripes_it_names_have_ids() {
        let keys = VaultSecret::from_bytes([3; 32]).keys();
        let mut sealer = Sealer::new(&keys).unwrap();
        let mut packer = Packer::new(Scheme::new(1, 1).unwrap());
        let child = packer.append(&sealer.seal(b"child").unwrap()).unwrap();
        let Placed::At(near) = packer.place(&mut sealer, PARENT, &Parent(child)).unwrap() else {
            panic!("there is room")
        };
        assert_eq!(near.stripe, StripeRef::Open(0));
        while packer.open_len() + (1 << 20) < DATA_LIMIT {
            packer.append(&sealer.seal(&noise(1, 1 << 20)).unwrap()).unwrap();
        }
        let rest = DATA_LIMIT - packer.open_len() - crate::vault::seal::OVERHEAD;
        packer.append(&sealer.seal(&noise(2, rest)).unwrap()).unwrap();
        assert_eq!(packer.place(&mut sealer, PARENT, &Parent(child)).unwrap(), Placed::Full);
        packer.close().unwrap();
        assert_eq!(packer.place(&mut sealer, PARENT, &Parent(child)).unwrap(), Placed::Waits(Unsealed(0)));
        packer.finished(0, StripeId([4; 32]));
        let Placed::At(far) = packer.place(&mut sealer, PARENT, &Parent(child)).unwrap() else {
            panic!("the id is known")
        };
        assert_eq!((far.stripe, far.offset), (StripeRef::Open(1), 0));
    }
}
