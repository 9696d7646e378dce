//! Heads become one state: commits are loaded, and those of concurrent writers merged, always in the same order.
//!
//! The same code merges in memory for a reader and into stripes for a writer; which of the two its store decides.

use std::collections::{BTreeMap, BTreeSet};

use potluck_proto::head::{Causality, SignedHead, VersionVector};
use potluck_proto::id::{ChunkId, Digest};

use super::SessionError;
use crate::vault::commit::{Commit, Parent, RootPointer};
use crate::vault::keys::VaultKeys;
use crate::vault::merge::{self, Conflict, Side};
use crate::vault::tree::{self, Root};
use crate::vault::{NodeStore, VaultError};

/// Most commits that are looked at in search of a common ancestor. Where it is farther away, or pruned, two states are
/// merged as if they had none: differing paths become conflict copies, and nothing is lost.
const ANCESTORS: usize = 256;

/// A head and the commit that it names.
#[derive(Debug, Clone)]
pub(super) struct Tip {
    pub(super) parent: Parent,
    pub(super) commit: Commit,
    pub(super) sweep: (u64, Digest),
}

/// Several heads' states as one; without any, an empty vault.
#[derive(Debug, Clone)]
pub(super) struct Joined {
    pub(super) files: Root,
    pub(super) snapshots: Root,
    pub(super) vector: VersionVector,
    /// What it came from, each with its own vector.
    pub(super) parents: Vec<(Parent, VersionVector)>,
    pub(super) time_ms: u64,
    pub(super) host: String,
    pub(super) sweep: (u64, Digest),
    pub(super) conflicts: Vec<Conflict>,
}

impl Default for Joined {
    fn default() -> Self {
        Self {
            files: None,
            snapshots: None,
            vector: VersionVector::default(),
            parents: Vec::new(),
            time_ms: 0,
            host: String::new(),
            sweep: (0, Digest([0; 32])),
            conflicts: Vec::new(),
        }
    }
}

/// Loads what the heads name, in order of the heads' ids.
pub(super) async fn load<S: NodeStore>(
    store: &S,
    keys: &VaultKeys,
    heads: &[SignedHead],
) -> Result<Vec<Tip>, SessionError> {
    let mut tips = Vec::with_capacity(heads.len());
    for head in heads {
        let root = RootPointer::open(keys, &head.root)?;
        let commit = Commit::load(store, keys, &root).await?;
        if commit.vector != head.vector {
            return Err(SessionError::Vault(VaultError::WrongId("a commit")));
        }
        let parent = Parent { head: head.id(), commit: root };
        tips.push(Tip { parent, commit, sweep: (head.sweep, head.sweep_hash) });
    }
    tips.sort_by_key(|tip| tip.parent.head);
    Ok(tips)
}

impl Joined {
    /// One state out of these.
    pub(super) async fn of<S: NodeStore + Send>(
        store: &mut S,
        keys: &VaultKeys,
        tips: Vec<Tip>,
    ) -> Result<Self, SessionError> {
        let mut joined = Self::default();
        for tip in tips {
            joined.include(store, keys, tip).await?;
        }
        Ok(joined)
    }

    /// Whether this state was made from the head, or from one that includes it.
    pub(super) fn includes(&self, head: &SignedHead) -> bool {
        if self.parents.iter().any(|(parent, _)| parent.head == head.id()) {
            return true;
        }
        // A head with the very vector of a parent is another one's with the same number: it is concurrent.
        let twin = self.parents.iter().any(|(_, vector)| *vector == head.vector);
        !twin
            && !self.parents.is_empty()
            && !matches!(head.vector.compare(&self.vector), Causality::After | Causality::Concurrent)
    }

    /// Takes another head's state in.
    pub(super) async fn include<S: NodeStore + Send>(
        &mut self,
        store: &mut S,
        keys: &VaultKeys,
        tip: Tip,
    ) -> Result<(), SessionError> {
        let Tip { parent, commit, sweep } = tip;
        if self.parents.is_empty() && self.files.is_none() {
            // Nothing of our own yet.
            (self.files, self.snapshots) = (commit.files, commit.snapshots);
        } else {
            let (files, snapshots) = ancestor(store, keys, &self.vector, &commit).await?;
            let conflicts = &mut self.conflicts;
            let ours = (&self.files, &*self.host, self.time_ms);
            self.files =
                three_way(store, keys, &files, ours, (&commit.files, &commit.host, commit.time_ms), conflicts).await?;
            let ours = (&self.snapshots, &*self.host, self.time_ms);
            let theirs = (&commit.snapshots, &*commit.host, commit.time_ms);
            // Snapshots have names of their own; two of one name are both kept, which is no conflict for people.
            self.snapshots = three_way(store, keys, &snapshots, ours, theirs, &mut Vec::new()).await?;
        }
        self.vector.join(&commit.vector);
        self.parents.retain(|(_, vector)| vector.compare(&commit.vector) != Causality::Before);
        self.parents.push((parent, commit.vector));
        self.sweep = self.sweep.max(sweep);
        if commit.time_ms >= self.time_ms {
            (self.time_ms, self.host) = (commit.time_ms, commit.host);
        }
        Ok(())
    }
}

type Version<'a> = (&'a Root, &'a str, u64);

async fn three_way<S: NodeStore + Send>(
    store: &mut S,
    keys: &VaultKeys,
    base: &Root,
    ours: Version<'_>,
    theirs: Version<'_>,
    conflicts: &mut Vec<Conflict>,
) -> Result<Root, SessionError> {
    let side = |(files, device, time_ms): Version<'_>| Side { files: files.clone(), device: device.into(), time_ms };
    let merged = merge::merge(&*store, keys, base, &side(ours), &side(theirs)).await?;
    conflicts.extend(merged.conflicts);
    Ok(tree::apply(store, keys, ours.0, merged.changes).await?)
}

/// The trees of the newest commit, going back from `theirs`, that our state includes; empty trees if there is none.
async fn ancestor<S: NodeStore>(
    store: &S,
    keys: &VaultKeys,
    ours: &VersionVector,
    theirs: &Commit,
) -> Result<(Root, Root), SessionError> {
    let included = |commit: &Commit| matches!(commit.vector.compare(ours), Causality::Before | Causality::Equal);
    if included(theirs) && theirs.vector != *ours {
        return Ok((theirs.files.clone(), theirs.snapshots.clone()));
    }
    // By how many commits each includes: parents include less than their children.
    let weight = |vector: &VersionVector| vector.entries().map(|(_, counter)| u128::from(counter)).sum::<u128>();
    let mut queue: BTreeMap<(u128, ChunkId), Commit> = BTreeMap::new();
    let mut met: BTreeSet<ChunkId> = BTreeSet::new();
    let mut next = Some(theirs.clone());
    while let Some(commit) = next {
        for parent in &commit.parents {
            if met.len() >= ANCESTORS || !met.insert(parent.commit.id) {
                continue;
            }
            let loaded = Commit::load(store, keys, &parent.commit).await?;
            queue.insert((weight(&loaded.vector), parent.commit.id), loaded);
        }
        next = queue.pop_last().map(|(_, commit)| commit);
        if let Some(commit) = &next
            && included(commit)
        {
            return Ok((commit.files.clone(), commit.snapshots.clone()));
        }
    }
    Ok((None, None))
}
