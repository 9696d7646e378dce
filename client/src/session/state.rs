//! The newest state of a vault, as far as it can be told, and how certain that is.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use potluck_proto::head::VersionVector;
use potluck_proto::id::Digest;

use crate::vault::commit::Parent;
use crate::vault::merge::Conflict;
use crate::vault::tree::Root;

/// Whether a state is certain to hold every acknowledged commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// It is: a settled quorum answered.
    Current,
    /// It may be older, for this reason.
    PossiblyStale(String),
}

/// The cluster answered with less than this device has already seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollback {
    /// When the newer state was committed, milliseconds since 1970, by its writer's clock.
    pub seen_ms: u64,
}

/// What a vault holds at one moment.
#[derive(Debug, Clone)]
pub struct State {
    /// The current files.
    pub root: Root,
    /// Snapshots.
    pub snapshots: Root,
    /// How certain it is.
    pub freshness: Freshness,
    /// When it was committed, milliseconds since 1970, by its writer's clock; 0 for a vault without any commit.
    pub committed_ms: u64,
    /// The host that committed it.
    pub host: String,
    /// Files, directories and links.
    pub files: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// If set, the cluster hides or has lost a newer state: tell the user.
    pub rollback: Option<Rollback>,
    /// A quorum of an earlier replica list is gone: acknowledged commits may be lost for good.
    pub behind: bool,
    /// Heads that were merged for this; more than 1: devices wrote at the same time, and the next commit joins them.
    pub heads: usize,
    /// Paths that two devices changed, and where the other version was saved.
    pub conflicts: Vec<Conflict>,
    pub(super) parents: Vec<Parent>,
    pub(super) vector: VersionVector,
    /// Nodes of a tree merged in memory, which are nowhere else.
    pub(super) overlay: Arc<HashMap<Digest, Bytes>>,
}
