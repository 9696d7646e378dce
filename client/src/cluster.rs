//! The cluster as a client sees it: who is in it, and how stripes and heads get there and back.
//!
//! Decisions (whom to ask next, when a put is done, which answers make a quorum) are pure functions in files of their
//! own; the async code beside them only carries calls. Nothing here knows vault keys or plaintext: it moves shards and
//! signed heads, and checks every byte that comes back.

mod cache;
mod calls;
mod fetch;
pub mod gate;
mod gather;
mod headers;
pub mod heads;
pub mod join;
mod latency;
pub mod members;
mod placing;
mod quorum;
mod sound;
pub mod status;
pub mod stripes;

use std::sync::Arc;

use potluck_proto::id::ClusterId;
use potluck_proto::transport::{Endpoint, Executor};
use potluck_proto::wire;
use rand::rngs::StdRng;

use cache::Cache;
use calls::Calls;
pub use fetch::{Proof, ReadError, StripeBytes};
pub use heads::{HeadsRead, Stale, WriteHeadError, Written};
pub use members::{Disconnected, Members, View};
pub use status::NodeStatus;
pub use stripes::{Placed, PutError};

/// Milliseconds since 1970.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What a client may use of this machine's memory for the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of shards of all puts under way; further puts wait.
    pub put_bytes: usize,
    /// Bytes of shards and results of all reads under way; further reads wait.
    pub read_bytes: usize,
    /// Bytes of blocks kept after they were read.
    pub cache_bytes: usize,
    /// Stripes whose header and holders are remembered.
    pub cache_stripes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { put_bytes: 80 << 20, read_bytes: 80 << 20, cache_bytes: 16 << 20, cache_stripes: 1024 }
    }
}

/// What a [`Cluster`] is made of.
pub struct Parts {
    /// Makes the calls; its gate is a [`gate::ClientGate`].
    pub endpoint: Endpoint,
    /// Runs hashing and decoding.
    pub executor: Executor,
    /// The cluster that is meant.
    pub cluster: ClusterId,
    /// What is known of its members: from the disk, or from joining. Its records are checked.
    pub table: wire::Table,
    /// For jitter and for whom to ask first.
    pub rng: StdRng,
    /// Bounds of memory.
    pub limits: Limits,
}

/// A client's way to its cluster. Clones are handles to the same.
#[derive(Clone)]
pub struct Cluster {
    calls: Arc<Calls>,
    executor: Executor,
    cache: Arc<Cache>,
    limits: Limits,
}

impl Cluster {
    /// Gets ready; nothing is sent yet. [`Cluster::connect`] comes next.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let members = Members::new(parts.cluster, &parts.table);
        let calls = Calls::new(parts.endpoint, members, parts.rng, parts.limits);
        let cache = Cache::new(parts.limits.cache_stripes, parts.limits.cache_bytes);
        Self { calls: Arc::new(calls), executor: parts.executor, cache: Arc::new(cache), limits: parts.limits }
    }

    /// Who is in the cluster, as far as is known.
    #[must_use]
    pub fn members(&self) -> &Members {
        self.calls.members()
    }

    /// The bounds that it was made with.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }
}

#[cfg(test)]
pub(crate) mod tests;
