//! The store: what a node keeps, on a disk that the simulation can stand in for.
//!
//! All calls block; the node runs them on its executor. A put is durable when it returns. A read is verified against the
//! stripe's header or is an error: a store never returns other bytes than were put.

pub mod segments;
mod unbuffered;

use std::io;

use bytes::Bytes;
use potluck_proto::blocks::BlockTree;
use potluck_proto::id::StripeId;
use potluck_proto::stripe::Scheme;

/// One shard: a stripe and an index in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardKey {
    /// The stripe.
    pub stripe: StripeId,
    /// Which of its n shards.
    pub index: usize,
}

/// Whether a shard is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardState {
    /// It is served.
    Live,
    /// It is in the trash until the node has run for so long, in milliseconds; reading it revives it.
    Trash {
        /// Milliseconds of this node's running time.
        until_ms: u64,
    },
}

/// What the store knows of a shard without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Which of the stripe's shards.
    pub index: usize,
    /// Whether it is wanted.
    pub state: ShardState,
    /// k siblings were once proved to exist.
    pub complete: bool,
    /// The newest sweep that a put or a revival carried.
    pub touched: u64,
    /// Bytes of shard.
    pub len: u32,
    /// How the stripe is coded.
    pub scheme: Scheme,
}

/// A verified read.
#[derive(Debug, Clone)]
pub struct ShardRead {
    /// The stripe's header, as its writer signed it.
    pub header: Bytes,
    /// Chaining values of the whole shard.
    pub tree: BlockTree,
    /// Where `data` begins in the shard.
    pub offset: u64,
    /// The asked range, widened to whole blocks.
    pub data: Bytes,
}

/// Who compares a shard's bytes with their hashes. What stands before them in the store is compared in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// The store, before it gives them.
    Here,
    /// Whoever asked for them: he must do it in any case, and says so ([`segments::SegmentStore::verify`]) when they do not match.
    Reader,
}

/// Bytes in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of live shards, headers and overhead included.
    pub live: u64,
    /// Of shards in the trash.
    pub trash: u64,
    /// Of shards that were found damaged or unreadable and are still there.
    pub damaged: u64,
    /// How many shards are live.
    pub shards: u64,
}

/// Why the store did not do what was asked. In every case the shards that it held before are still there.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such shard.
    #[error("no such shard here")]
    NotFound,
    /// What is on disk does not match its hash, or is gone; the shard was set aside and counts as missing.
    #[error("the shard on disk is damaged and was set aside: {0}")]
    Corrupt(&'static str),
    /// The disk does not give the shard, or a newer version wrote it. It stays where it is, counts as missing, and is
    /// tried again from time to time.
    #[error("the shard on disk cannot be read: {0}")]
    Unreadable(String),
    /// The offered capacity or the disk is used up; reads and deletions go on.
    #[error("no space for new shards")]
    Full,
    /// The range lies outside the shard.
    #[error("the range lies outside the shard")]
    Range,
    /// The operating system failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl StoreError {
    /// Whether the shard was held and now counts as missing.
    #[must_use]
    pub fn lost(&self) -> bool {
        matches!(self, Self::Corrupt(_) | Self::Unreadable(_))
    }
}
