//! Sealing: plaintext chunk to stored bytes, and back.
//!
//! A chunk is compressed where that pays, hashed with a key, and encrypted under a key and nonce that derive from that
//! hash: the same bytes always give the same stored bytes, different ones never share a key. Opening gives exactly what
//! was sealed or an error, never other bytes. Layout: FORMAT.md, "Chunk".

use bytes::Bytes;
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

const FORM_RAW: u8 = 0;
const FORM_ZSTD: u8 = 1;

/// The form byte and the plaintext's length before zstd's bytes.
const ZSTD_PREFIX: usize = 5;

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

/// A chunk ready to be packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedChunk {
    /// What its plaintext is known by.
    pub id: ChunkId,
    /// Bytes of plaintext.
    pub plain_len: u32,
    /// Keyed BLAKE3 of the bytes that were encrypted; goes into the pointer.
    pub hash: Digest,
    /// Ciphertext and tag.
    pub bytes: Bytes,
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
    pub fn seal(&mut self, plain: &[u8]) -> Result<SealedChunk, SealError> {
        let id = chunk_id(&self.keys, plain);
        self.seal_as(id, plain)
    }

    /// Seals a chunk whose id is known: a data chunk's, or that of an object, which does not hash its plaintext.
    pub fn seal_as(&mut self, id: ChunkId, plain: &[u8]) -> Result<SealedChunk, SealError> {
        let plain_len = u32::try_from(plain.len()).ok().filter(|_| plain.len() <= PLAIN_LIMIT);
        let plain_len = plain_len.ok_or(SealError::TooLong(plain.len()))?;
        let mut buffer = self.form(plain, plain_len);
        let hash = Digest(keyed(&self.keys.stored_hash, &buffer));
        let (key, nonce) = key_and_nonce(&self.keys, &hash);
        let tag = cipher::encrypt(&key, nonce, &[], &mut buffer).map_err(|_| SealError::Library("cipher"))?;
        buffer.extend_from_slice(&tag);
        Ok(SealedChunk { id, plain_len, hash, bytes: buffer.into() })
    }

    /// The bytes to encrypt, with room for the tag.
    fn form(&mut self, plain: &[u8], plain_len: u32) -> Vec<u8> {
        // A buffer that compression must fit into for it to pay: so zstd stops early where it does not.
        let most = plain.len() - plain.len() / LEAST_SAVING;
        if most > ZSTD_PREFIX && most < plain.len() {
            let room = most - ZSTD_PREFIX;
            if self.scratch.len() < room {
                self.scratch.resize(room, 0);
            }
            if let Ok(len) = self.zstd.compress_to_buffer(plain, &mut self.scratch[..room]) {
                let mut buffer = Vec::with_capacity(ZSTD_PREFIX + len + TAG_LEN);
                buffer.push(FORM_ZSTD);
                buffer.extend_from_slice(&plain_len.to_le_bytes());
                buffer.extend_from_slice(&self.scratch[..len]);
                return buffer;
            }
        }
        let mut buffer = Vec::with_capacity(plain.len() + OVERHEAD);
        buffer.push(FORM_RAW);
        buffer.extend_from_slice(plain);
        buffer
    }
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
        if stored.len() > PLAIN_LIMIT + OVERHEAD {
            return Err(OpenError::Tag);
        }
        let (key, nonce) = key_and_nonce(&self.keys, hash);
        let form = cipher::decrypt(&key, nonce, &[], stored).map_err(|_| OpenError::Tag)?;
        if keyed(&self.keys.stored_hash, &form) != hash.0 {
            return Err(OpenError::Hash);
        }
        match form.first() {
            Some(&FORM_RAW) => Ok(Bytes::from(form).slice(1..)),
            Some(&FORM_ZSTD) => self.decompress(&form),
            Some(&other) => Err(OpenError::Form(other)),
            None => Err(OpenError::Hash),
        }
    }

    /// The plaintext of a data chunk, checked against its id too.
    pub fn open_chunk(&mut self, id: &ChunkId, hash: &Digest, stored: &[u8]) -> Result<Bytes, OpenError> {
        let plain = self.open(hash, stored)?;
        if chunk_id(&self.keys, &plain) != *id {
            return Err(OpenError::Id);
        }
        Ok(plain)
    }

    fn decompress(&mut self, form: &[u8]) -> Result<Bytes, OpenError> {
        let (prefix, compressed) = form.split_at_checked(ZSTD_PREFIX).ok_or(OpenError::Compression)?;
        let len = u32::from_le_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
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
