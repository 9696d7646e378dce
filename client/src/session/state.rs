//! The newest state of a vault, as far as it can be told, and how certain that is.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use potluck_proto::head::{Causality, SignedHead, VersionVector};
use potluck_proto::id::{ChunkId, Digest};

use super::home::Seen;
use super::merging::{self, Joined};
use super::{Inner, Session, SessionError};
use crate::cluster::{HeadsRead, Stale};
use crate::vault::merge::Conflict;
use crate::vault::pointer::{Anywhere, PendingPointer, StripeRef};
use crate::vault::tree::Root;
use crate::vault::{NodeStore, StoredObject, VaultError};

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
    /// All that it includes.
    pub(super) vector: VersionVector,
    /// Nodes of a tree merged in memory, which are nowhere else.
    pub(super) overlay: Arc<HashMap<Digest, Bytes>>,
}

/// What the replicas said, checked against what this device has seen.
pub(super) struct Heads {
    pub(super) heads: Vec<SignedHead>,
    pub(super) stale: Option<Stale>,
    pub(super) behind: bool,
    pub(super) rollback: Option<Rollback>,
}

/// A store for merging in memory: what is committed is read from the cluster, what is new stays here.
struct Scratch {
    inner: Arc<Inner>,
    overlay: HashMap<Digest, Bytes>,
}

/// The number of a stripe that is none: objects in memory are found by their hash alone.
const NOWHERE: u64 = u64::MAX;

impl NodeStore for Scratch {
    async fn load(&self, pointer: &PendingPointer) -> Result<Bytes, VaultError> {
        match self.overlay.get(&pointer.hash) {
            Some(plain) => Ok(plain.clone()),
            None => self.inner.fetcher.object(&pointer.sealed()?).await,
        }
    }

    async fn store(&mut self, object: &dyn StoredObject) -> Result<(ChunkId, PendingPointer), VaultError> {
        let plain = Bytes::from(object.encode(&Anywhere)?);
        // Hashes of stored bytes are keyed, so this one, which is not, is never one of them.
        let hash = Digest::of(&plain);
        let len = plain.len() as u32;
        self.overlay.insert(hash, plain);
        Ok((object.id(&self.inner.keys), PendingPointer { stripe: StripeRef::Open(NOWHERE), offset: 0, len, hash }))
    }
}

impl Session {
    /// The newest state. Heads of concurrent writers are merged in memory. Without a quorum it is marked possibly stale;
    /// an error only if nothing can be read at all.
    pub async fn state(&self) -> Result<State, SessionError> {
        let heads = self.read_heads().await?;
        self.readable(&heads).await
    }

    /// The state that these heads name, which is remembered. An error if nobody told any.
    pub(super) async fn readable(&self, heads: &Heads) -> Result<State, SessionError> {
        if heads.heads.is_empty()
            && let Some(stale) = &heads.stale
        {
            return Err(SessionError::NoQuorum(stale.clone()));
        }
        let state = self.state_of(heads).await?;
        if let Err(error) = self.remember(heads) {
            // Reading goes on, as from a full disk; a rollback would be noticed later than it might.
            tracing::warn!(%error, "the newest state seen could not be remembered");
        }
        Ok(state)
    }

    pub(super) async fn read_heads(&self) -> Result<Heads, SessionError> {
        let read = self.inner.cluster.read_heads(self.vault_id()).await;
        self.checked(read)
    }

    /// As [`Session::read_heads`], from every member: for a device that remembers nothing.
    pub(super) async fn read_heads_of_all(&self) -> Result<Heads, SessionError> {
        let read = self.inner.cluster.read_heads_of_all(self.vault_id()).await;
        self.checked(read)
    }

    fn checked(&self, read: HeadsRead) -> Result<Heads, SessionError> {
        let HeadsRead { mut heads, stale, behind } = read;
        let cluster = self.cluster_id();
        heads.retain(|head| head.vault() == self.vault_id() && head.cluster == cluster);
        let seen = self.inner.folder.seen()?;
        let older = matches!(joined(&heads).compare(&seen.vector), Causality::Before | Causality::Concurrent);
        let rollback = older.then_some(Rollback { seen_ms: seen.committed_ms });
        Ok(Heads { heads, stale, behind, rollback })
    }

    /// The state that these heads name.
    pub(super) async fn state_of(&self, heads: &Heads) -> Result<State, SessionError> {
        let mut scratch = Scratch { inner: self.inner.clone(), overlay: HashMap::new() };
        let tips = merging::load(&scratch, &self.inner.keys, &heads.heads).await?;
        let joined = Joined::of(&mut scratch, &self.inner.keys, tips).await?;
        let freshness = match (&heads.stale, &heads.rollback) {
            (None, _) => Freshness::Current,
            (Some(stale), None) => Freshness::PossiblyStale(stale.to_string()),
            (Some(stale), Some(_)) => Freshness::PossiblyStale(format!("{stale}; this device has seen a newer state")),
        };
        // Without a quorum an older answer is to be expected, and no rollback.
        let rollback = heads.rollback.clone().filter(|_| heads.stale.is_none());
        Ok(State {
            files: joined.files.as_ref().map_or(0, |root| root.count),
            bytes: joined.files.as_ref().map_or(0, |root| root.size),
            root: joined.files,
            snapshots: joined.snapshots,
            freshness,
            committed_ms: joined.time_ms,
            host: joined.host,
            rollback,
            behind: heads.behind,
            heads: heads.heads.len(),
            conflicts: joined.conflicts,
            vector: joined.vector,
            overlay: Arc::new(scratch.overlay),
        })
    }

    /// Remembers that these heads were seen, if they are news.
    pub(super) fn remember(&self, heads: &Heads) -> Result<(), SessionError> {
        let committed_ms = heads.heads.iter().map(|head| head.created_ms).max().unwrap_or(0);
        self.remember_vector(&joined(&heads.heads), committed_ms)
    }

    pub(super) fn remember_vector(&self, vector: &VersionVector, committed_ms: u64) -> Result<(), SessionError> {
        let mut seen = self.inner.folder.seen()?;
        if matches!(vector.compare(&seen.vector), Causality::After | Causality::Concurrent) {
            seen.vector.join(vector);
            seen.committed_ms = seen.committed_ms.max(committed_ms);
            self.inner.folder.set_seen(&seen)?;
        }
        Ok(())
    }

    /// Takes `shown` for the true state from now on, although this device has seen a newer one: after the user has been
    /// told. Nothing is done if it is no rollback ([`State::rollback`]). Should the newer state come up again, both are
    /// merged.
    pub fn accept_rollback(&self, shown: &State) -> Result<(), SessionError> {
        if shown.rollback.is_none() {
            return Ok(());
        }
        let seen = Seen { vector: shown.vector.clone(), committed_ms: shown.committed_ms };
        Ok(self.inner.folder.set_seen(&seen)?)
    }
}

fn joined(heads: &[SignedHead]) -> VersionVector {
    let mut vector = VersionVector::default();
    heads.iter().for_each(|head| vector.join(&head.vector));
    vector
}
