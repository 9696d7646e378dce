//! The bytes of a shard file before its payload, and the names of shard files. FORMAT.md documents both.

use std::fs::File;
use std::path::PathBuf;

use bytes::Bytes;
use potluck_proto::blocks::BlockTree;
use potluck_proto::encoding::{Decoder, Encoder};
use potluck_proto::id::StripeId;
use potluck_proto::stripe::{DATA_LIMIT, SignedHeader};

use super::super::{Held, ShardKey, ShardState, StoreError};
use crate::store::unbuffered::Disk;

/// The first bytes of every shard file.
const MAGIC: [u8; 8] = *b"potshard";

/// Newest format version of a shard file.
const VERSION: u16 = 1;

/// Bytes before the stripe header: magic, version, index, touched, and three lengths.
const FIXED_LEN: usize = 8 + 2 + 1 + 8 + 4 + 4 + 4;

/// What is read of a file first, in bytes: most often all that stands before the payload.
const USUAL_LEN: u64 = 4096;

/// Longest stripe header, in bytes.
const HEADER_LIMIT: u32 = 64 << 10;

/// Length of the checksum after the chaining values.
const CHECKSUM_LEN: usize = 32;

/// Shards of this length or more, in bytes, begin at a block of the disk, so that they can be written as they lie.
const ALIGNED_FROM: usize = 64 << 10;

/// A block of the disk, in bytes.
const BLOCK: usize = 4096;

/// Where the payload begins behind `len` bytes.
fn payload_at(len: usize, shard_len: usize) -> usize {
    if shard_len < ALIGNED_FROM { len } else { len.next_multiple_of(BLOCK) }
}

/// All that stands before the payload.
pub(super) struct Prefix {
    pub(super) index: usize,
    pub(super) touched: u64,
    pub(super) header: Bytes,
    pub(super) tree: BlockTree,
    /// Where the payload begins in the file.
    pub(super) payload_at: u64,
}

/// The bytes before the payload.
pub(super) fn encode(header: &SignedHeader, index: usize, touched: u64, tree: &BlockTree) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder
        .raw(&MAGIC)
        .u16(VERSION)
        .u8(index as u8)
        .u64(touched)
        .u32(tree.shard_len() as u32)
        .u32(header.bytes().len() as u32)
        .u32(tree.as_bytes().len() as u32)
        .raw(header.bytes())
        .raw(tree.as_bytes());
    let checksum = blake3::hash(encoder.as_slice());
    encoder.raw(checksum.as_bytes());
    let mut bytes = encoder.into_bytes();
    bytes.resize(payload_at(bytes.len(), tree.shard_len() as usize), 0);
    bytes
}

impl Prefix {
    /// Reads and checks the beginning of a shard file against its own checksum.
    pub(super) fn read(disk: &Disk, file: &File) -> Result<Self, StoreError> {
        let mut bytes = disk.read(file, 0..USUAL_LEN).map_err(super::refused)?;
        let (index, touched, shard_len, header_len, tree_len) = fixed(&bytes)?;
        if header_len > HEADER_LIMIT
            || u64::from(tree_len) > u64::from(shard_len) + 32
            || shard_len as usize > DATA_LIMIT
        {
            return Err(StoreError::Corrupt("lengths"));
        }
        let len = FIXED_LEN + header_len as usize + tree_len as usize + CHECKSUM_LEN;
        if bytes.len() < len {
            bytes = super::exactly(disk, file, 0, len)?;
        }
        bytes.truncate(len);
        let (checked, checksum) = bytes.split_at(bytes.len() - CHECKSUM_LEN);
        if blake3::hash(checked).as_bytes() != checksum {
            return Err(StoreError::Corrupt("checksum"));
        }
        let (header, tree) = checked[FIXED_LEN..].split_at(header_len as usize);
        let tree = BlockTree::from_bytes(tree, shard_len.into()).map_err(|_| StoreError::Corrupt("chaining values"))?;
        let header = Bytes::copy_from_slice(header);
        let payload_at = payload_at(bytes.len(), shard_len as usize) as u64;
        Ok(Self { index: index.into(), touched, header, tree, payload_at })
    }
}

fn fixed(bytes: &[u8]) -> Result<(u8, u64, u32, u32, u32), StoreError> {
    let damaged = |_| StoreError::Corrupt("beginning");
    let mut decoder = Decoder::new(bytes);
    if decoder.array::<8>("magic").map_err(damaged)? != MAGIC {
        return Err(StoreError::Corrupt("not a shard file"));
    }
    if let Err(error) = decoder.version("shard file", VERSION) {
        // Not damage, unless the rest is damaged too: a newer program reads it.
        return Err(StoreError::Unreadable(error.to_string()));
    }
    Ok((
        decoder.u8("index").map_err(damaged)?,
        decoder.u64("touched").map_err(damaged)?,
        decoder.u32("shard length").map_err(damaged)?,
        decoder.u32("header length").map_err(damaged)?,
        decoder.u32("tree length").map_err(damaged)?,
    ))
}

/// Which folder a shard file is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Shards,
    Trash,
}

impl Place {
    pub(super) fn folder(self) -> &'static str {
        match self {
            Place::Shards => "shards",
            Place::Trash => "trash",
        }
    }
}

/// What a shard file's name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) key: ShardKey,
    pub(super) state: ShardState,
    pub(super) complete: bool,
}

impl Name {
    pub(super) fn of(key: ShardKey, held: &Held) -> Self {
        Self { key, state: held.state, complete: held.complete }
    }

    /// The path below the store's folder.
    pub(super) fn path(&self) -> PathBuf {
        let stripe = self.key.stripe.to_string();
        let stage = if self.complete { "complete" } else { "new" };
        let name = format!("{stripe}-{:03}.{stage}", self.key.index);
        let (place, name) = match self.state {
            ShardState::Live => (Place::Shards, name),
            ShardState::Trash { until_ms } => (Place::Trash, format!("{name}.{until_ms}")),
        };
        [place.folder(), &stripe[..2], &name].iter().collect()
    }

    /// Reads a file's name.
    pub(super) fn parse(place: Place, name: &str) -> Option<Self> {
        let (shard, rest) = name.split_once('.')?;
        let (stripe, index) = shard.split_once('-')?;
        let (stage, state) = match place {
            Place::Shards => (rest, ShardState::Live),
            Place::Trash => {
                let (stage, until) = rest.split_once('.')?;
                (stage, ShardState::Trash { until_ms: until.parse().ok()? })
            }
        };
        let complete = match stage {
            "new" => false,
            "complete" => true,
            _ => return None,
        };
        let key = ShardKey { stripe: stripe.parse::<StripeId>().ok()?, index: index.parse::<u8>().ok()?.into() };
        Some(Self { key, state, complete })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for state in [ShardState::Live, ShardState::Trash { until_ms: 77 }] {
            for complete in [false, true] {
                let name = Name { key: ShardKey { stripe: StripeId([0xab; 32]), index: 12 }, state, complete };
                let place = if state == ShardState::Live { Place::Shards } else { Place::Trash };
                let path = name.path();
                assert_eq!(Name::parse(place, path.file_name().unwrap().to_str().unwrap()), Some(name));
            }
        }
        assert_eq!(Name::parse(Place::Shards, "lost+found"), None);
    }
}
