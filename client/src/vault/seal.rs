//! Sealing: plaintext chunk to stored bytes, and back.
//!
//! A chunk is compressed where that pays, hashed with a key, and encrypted under a key and nonce that derive from that
//! hash: the same bytes always give the same stored bytes, different ones never share a key. Opening gives exactly what
//! was sealed or an error, never other bytes. Layout: FORMAT.md, "Chunk".
//!
//! A data chunk that does not compress is hashed once: its hash goes over its id, which is a keyed hash of every byte
//! already. And no chunk is copied: it is encrypted to where it goes once that is known.

use std::fmt;
use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use potluck_proto::buffers::Pool;
use potluck_proto::id::{ChunkId, Digest};
use zeroize::Zeroizing;

use super::cipher::{self, NONCE_LEN, TAG_LEN};
use super::keys::{KEY_LEN, VaultKeys};

/// Longest plaintext of a chunk, in bytes. Data chunks stay below 2 MiB; a tree node of very long paths may be larger.
pub const PLAIN_LIMIT: usize = 8 << 20;

/// Most bytes that sealing adds: the form byte and the tag.
pub const OVERHEAD: usize = 1 + TAG_LEN;

/// zstd's level: the fastest, as uplinks and disks are slower still and most backups hold compressed files.
const ZSTD_LEVEL: i32 = 1;

/// Compression pays if it saves at least this fraction: 1/16.
const LEAST_SAVING: usize = 16;

/// An object as it is.
const FORM_OBJECT: u8 = 0;
/// The plaintext's length and a zstd frame.
const FORM_ZSTD: u8 = 1;
/// A data chunk as it is.
const FORM_CHUNK: u8 = 2;

/// The plaintext's length before zstd's bytes.
const ZSTD_PREFIX: usize = 4;

/// Bytes of a sample, and distance from one to the next: 1 in 16.
const SAMPLE: usize = 4 << 10;
const SAMPLE_DISTANCE: usize = 64 << 10;

/// Chunks of this length or more, in bytes, are opened into buffers that are used again.
const POOLED_FROM: usize = 64 << 10;

/// Bytes of buffers for opened chunks that are kept while they are not in use.
const POOL_LIMIT: usize = 16 << 20;

static POOL: LazyLock<Pool> = LazyLock::new(|| Pool::new(POOL_LIMIT));

/// Why a chunk could not be sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Longer than [`PLAIN_LIMIT`].
    #[error("a chunk of {0} bytes is longer than the limit of {PLAIN_LIMIT}")]
    TooLong(usize),
    /// The compressor or the cipher failed; this does not depend on the bytes.
    #[error("the {0} failed")]
    Library(&'static str),
}

/// Why stored bytes are not the chunk they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The cipher's tag does not match: damaged, another chunk, or another vault's.
    #[error("a chunk is damaged, or not of this vault")]
    Tag,
    /// What was decrypted does not have the pointer's hash.
    #[error("a chunk is not the one that its pointer names")]
    Hash,
    /// The plaintext does not have the expected chunk id.
    #[error("a chunk's content is not the one that was stored under its id")]
    Id,
    /// Written by a newer version.
    #[error("a chunk has the form {0}, which this program does not know: a newer Potluck is needed")]
    Form(u8),
    /// The compressed bytes are no valid compression of what their length says.
    #[error("a chunk cannot be decompressed")]
    Compression,
    /// The decompressor could not be made.
    #[error("the decompressor failed")]
    Library,
}

/// A chunk ready to be packed: what is to be encrypted, and how.
#[derive(Clone)]
pub struct ReadyChunk {
    /// What its plaintext is known by.
    pub id: ChunkId,
    /// Bytes of plaintext.
    pub plain_len: u32,
    /// Keyed BLAKE3 of what was encrypted; goes into the pointer.
    pub hash: Digest,
    /// What is encrypted, but for the form's byte behind it.
    body: Bytes,
    form: u8,
    key: Zeroizing<[u8; KEY_LEN]>,
    nonce: [u8; NONCE_LEN],
}

impl ReadyChunk {
    /// Length of the stored bytes.
    #[must_use]
    pub fn stored_len(&self) -> usize {
        self.body.len() + OVERHEAD
    }

    /// Writes the stored bytes, ciphertext and tag, over `place`, which must have their length.
    pub fn write(&self, place: &mut [u8]) -> Result<(), SealError> {
        cipher::encrypt_into(&self.key, self.nonce, &self.body, self.form, place)
            .map_err(|_| SealError::Library("cipher"))
    }

    /// The stored bytes, ciphertext and tag.
    pub fn stored(&self) -> Result<Vec<u8>, SealError> {
        let mut stored = vec![0; self.stored_len()];
        self.write(&mut stored)?;
        Ok(stored)
    }
}

impl fmt::Debug for ReadyChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReadyChunk({}, {} bytes)", self.id, self.plain_len)
    }
}

fn keyed(key: &[u8; KEY_LEN], bytes: &[u8]) -> [u8; 32] {
    *blake3::keyed_hash(key, bytes).as_bytes()
}

/// The id of a data chunk with this plaintext.
#[must_use]
pub fn chunk_id(keys: &VaultKeys, plain: &[u8]) -> ChunkId {
    ChunkId(keyed(&keys.chunk_id, plain))
}

fn key_and_nonce(keys: &VaultKeys, hash: &Digest) -> (Zeroizing<[u8; KEY_LEN]>, [u8; NONCE_LEN]) {
    let mut stream = blake3::Hasher::new_keyed(&keys.content).update(hash.as_bytes()).finalize_xof();
    let (mut key, mut nonce) = (Zeroizing::new([0; KEY_LEN]), [0; NONCE_LEN]);
    stream.fill(&mut *key);
    stream.fill(&mut nonce);
    (key, nonce)
}

/// The hash of what is encrypted: `body`, then the form's byte.
fn hash_of(keys: &VaultKeys, body: &[u8], form: u8) -> Digest {
    Digest(*blake3::Hasher::new_keyed(&keys.stored_hash).update(body).update(&[form]).finalize().as_bytes())
}

/// Seals chunks; one per thread, as it keeps a compressor and a buffer of up to a chunk.
pub struct Sealer {
    keys: VaultKeys,
    zstd: zstd::bulk::Compressor<'static>,
    /// What zstd writes into, kept so that a sealed chunk takes no more memory than it needs.
    scratch: Vec<u8>,
}

impl Sealer {
    /// A sealer for the vault of these keys.
    pub fn new(keys: &VaultKeys) -> Result<Self, SealError> {
        let zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(|_| SealError::Library("compressor"))?;
        Ok(Self { keys: keys.clone(), zstd, scratch: Vec::new() })
    }

    /// The vault's keys.
    #[must_use]
    pub fn keys(&self) -> &VaultKeys {
        &self.keys
    }

    /// Seals a data chunk: its id is [`chunk_id`] of it.
    pub fn seal(&mut self, plain: &[u8]) -> Result<ReadyChunk, SealError> {
        self.seal_chunk(chunk_id(&self.keys, plain), Bytes::copy_from_slice(plain))
    }

    /// Seals a data chunk whose id, which must be [`chunk_id`] of it, is known.
    pub fn seal_chunk(&mut self, id: ChunkId, plain: Bytes) -> Result<ReadyChunk, SealError> {
        let plain_len = plain_len(&plain)?;
        match self.compress(&plain, plain_len) {
            Some(body) => Ok(self.ready(id, plain_len, hash_of(&self.keys, &body, FORM_ZSTD), body, FORM_ZSTD)),
            None => Ok(self.ready(id, plain_len, hash_of(&self.keys, id.as_bytes(), FORM_CHUNK), plain, FORM_CHUNK)),
        }
    }

    /// Seals an object, whose id, unlike a data chunk's, is no hash of its bytes.
    pub fn seal_object(&mut self, id: ChunkId, plain: &[u8]) -> Result<ReadyChunk, SealError> {
        let plain_len = plain_len(plain)?;
        let (body, form) = match self.compress(plain, plain_len) {
            Some(body) => (body, FORM_ZSTD),
            None => (Bytes::copy_from_slice(plain), FORM_OBJECT),
        };
        Ok(self.ready(id, plain_len, hash_of(&self.keys, &body, form), body, form))
    }

    fn ready(&self, id: ChunkId, plain_len: u32, hash: Digest, body: Bytes, form: u8) -> ReadyChunk {
        let (key, nonce) = key_and_nonce(&self.keys, &hash);
        ReadyChunk { id, plain_len, hash, body, form, key, nonce }
    }

    /// The length and a zstd frame, if that pays.
    fn compress(&mut self, plain: &[u8], plain_len: u32) -> Option<Bytes> {
        // Space that compression must fit into for it to pay: so zstd stops early where it does not.
        let room = (plain.len() - plain.len() / LEAST_SAVING).checked_sub(ZSTD_PREFIX)?;
        if room == 0 || room + ZSTD_PREFIX == plain.len() || !self.promises(plain) {
            return None;
        }
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        let len = self.zstd.compress_to_buffer(plain, &mut self.scratch[..room]).ok()?;
        let mut body = BytesMut::with_capacity(ZSTD_PREFIX + len);
        body.extend_from_slice(&plain_len.to_le_bytes());
        body.extend_from_slice(&self.scratch[..len]);
        Some(body.freeze())
    }

    /// Whether any sample of a long chunk gets shorter. Most of what people keep is compressed already, and trying a
    /// sample costs a sixteenth of trying the whole.
    fn promises(&mut self, plain: &[u8]) -> bool {
        if plain.len() < 2 * SAMPLE_DISTANCE {
            return true;
        }
        let room = SAMPLE - SAMPLE / LEAST_SAVING;
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        plain
            .chunks(SAMPLE_DISTANCE)
            .filter_map(|piece| piece.get(..SAMPLE))
            .any(|sample| self.zstd.compress_to_buffer(sample, &mut self.scratch[..room]).is_ok())
    }
}

fn plain_len(plain: &[u8]) -> Result<u32, SealError> {
    let len = u32::try_from(plain.len()).ok().filter(|_| plain.len() <= PLAIN_LIMIT);
    len.ok_or(SealError::TooLong(plain.len()))
}

/// Opens chunks; one per thread, as it keeps a decompressor.
pub struct Opener {
    keys: VaultKeys,
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Opener {
    /// An opener for the vault of these keys.
    pub fn new(keys: &VaultKeys) -> Result<Self, OpenError> {
        let zstd = zstd::bulk::Decompressor::new().map_err(|_| OpenError::Library)?;
        Ok(Self { keys: keys.clone(), zstd })
    }

    /// The plaintext of stored bytes whose pointer carries `hash`: for objects, which check their own ids.
    pub fn open(&mut self, hash: &Digest, stored: &[u8]) -> Result<Bytes, OpenError> {
        Ok(self.open_any(hash, stored)?.0)
    }

    /// The plaintext of a data chunk, checked against its id too.
    pub fn open_chunk(&mut self, id: &ChunkId, hash: &Digest, stored: &[u8]) -> Result<Bytes, OpenError> {
        let (plain, found) = self.open_any(hash, stored)?;
        if found.unwrap_or_else(|| chunk_id(&self.keys, &plain)) != *id {
            return Err(OpenError::Id);
        }
        Ok(plain)
    }

    /// The plaintext, and its id if that had to be found out.
    fn open_any(&mut self, hash: &Digest, stored: &[u8]) -> Result<(Bytes, Option<ChunkId>), OpenError> {
        if stored.len() > PLAIN_LIMIT + OVERHEAD {
            return Err(OpenError::Tag);
        }
        let (key, nonce) = key_and_nonce(&self.keys, hash);
        let message = if stored.len() < POOLED_FROM {
            cipher::decrypt(&key, nonce, &[], stored).map_err(|_| OpenError::Tag)?.into()
        } else {
            let mut message = POOL.take(stored.len() - TAG_LEN);
            cipher::decrypt_into(&key, nonce, &[], stored, &mut message).map_err(|_| OpenError::Tag)?;
            message.freeze()
        };
        let form = *message.last().ok_or(OpenError::Hash)?;
        let body = message.slice(..message.len() - 1);
        if form == FORM_CHUNK {
            let id = chunk_id(&self.keys, &body);
            return match hash_of(&self.keys, id.as_bytes(), form) == *hash {
                true => Ok((body, Some(id))),
                false => Err(OpenError::Hash),
            };
        }
        if hash_of(&self.keys, &body, form) != *hash {
            return Err(OpenError::Hash);
        }
        match form {
            FORM_OBJECT => Ok((body, None)),
            FORM_ZSTD => Ok((self.decompress(&body)?, None)),
            other => Err(OpenError::Form(other)),
        }
    }

    fn decompress(&mut self, body: &[u8]) -> Result<Bytes, OpenError> {
        let (len, compressed) = body.split_first_chunk::<ZSTD_PREFIX>().ok_or(OpenError::Compression)?;
        let len = u32::from_le_bytes(*len) as usize;
        if len > PLAIN_LIMIT {
            return Err(OpenError::Compression);
        }
        // A slice of exactly `len` bytes bounds the output; a vector's capacity might be more.
        let mut plain = vec![0; len];
        match self.zstd.decompress_to_buffer(compressed, &mut plain[..]) {
            Ok(written) if written == len => Ok(plain.into()),
            _ => Err(OpenError::Compression),
        }
    }
}

#[cfg(test)]
mod tests;
