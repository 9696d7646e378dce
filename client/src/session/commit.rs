//! Committing: what was uploaded becomes the vault's newest state, for everyone at once.
//!
//! The data is on disks first, then the tree and the commit, then this device's counter is synced, then the head is
//! written to a quorum. Whatever others have committed meanwhile is merged in; nothing that was acknowledged is lost.

use std::time::Duration;

use potluck_proto::head::{Head, SignedHead, VersionVector};
use potluck_proto::id::VaultId;
use rand::{Rng, RngExt};
use tokio::time::Instant;

use super::home::Counter;
use super::merging;
use super::state::{Freshness, Heads};
use super::writer::{Committed, Writer};
use super::{Progress, SessionError};
use crate::cluster::WriteHeadError;
use crate::vault::NodeStore;
use crate::vault::commit::{Commit, PARENTS_LIMIT, RootPointer};
use crate::vault::pointer::PendingPointer;
use crate::vault::tree::{Root, Subtree};

/// How often a commit is tried while others are faster.
const ATTEMPTS: u32 = 8;

/// Longest wait before the second try; it grows with each.
const PAUSE: Duration = Duration::from_millis(250);

/// Time between two writes of what this device has seen, while it commits again and again.
const REMEMBER_INTERVAL: Duration = Duration::from_secs(1);

/// How long it is taken for granted that nobody else has written: what others write in this time is merged by whoever reads
/// or commits next, as what they write during a commit is.
const FRESH: Duration = Duration::from_secs(1);

impl Writer {
    /// Commits: all changes are visible to everyone when this returns. Says what this writer's commits came to, its
    /// checkpoints included.
    ///
    /// After an error nothing is visible, save for [`SessionError::Head`]: then the new state may yet come up, whole.
    pub async fn commit(mut self) -> Result<Committed, SessionError> {
        let last = self.commit_so_far(&Progress::default()).await?;
        self.write_down()?;
        Ok(last.after(self.before.take()))
    }

    /// Commits what was changed so far and goes on: for long uploads, every ten minutes. After an error it may be tried
    /// again, unless storing data failed.
    pub async fn checkpoint(&mut self, progress: &Progress) -> Result<Committed, SessionError> {
        let committed = self.commit_so_far(progress).await?;
        self.before = Some(committed.clone().after(self.before.take()));
        Ok(committed)
    }

    async fn commit_so_far(&mut self, progress: &Progress) -> Result<Committed, SessionError> {
        self.fold().await?;
        if !self.upload.is_little() {
            // Data first, without holding the others up.
            self.upload.flush(progress).await?;
        }
        let heard = self.heard.take().is_some_and(|heard| heard.elapsed() < FRESH);
        let mut newest = if heard { None } else { Some(self.session.read_heads().await?) };
        for attempt in 1..=ATTEMPTS {
            if let Some(newest) = &newest {
                self.take_in(newest).await?;
            }
            if !self.dirty {
                return Ok(self.result(0, true));
            }
            match self.attempt(progress).await? {
                Ok(concurrent) => {
                    self.heard = (concurrent == 0).then(Instant::now);
                    return Ok(self.result(concurrent, false));
                }
                Err(theirs) => {
                    let most = PAUSE * attempt;
                    let pause = self.session.inner.with_rng(|rng| rng.random_range(Duration::ZERO..most));
                    tokio::time::sleep(pause).await;
                    let mut heads = self.session.read_heads().await?;
                    for head in theirs {
                        if !heads.heads.iter().any(|have| have.id() == head.id()) && self.ours(&head) {
                            heads.heads.push(head);
                        }
                    }
                    newest = Some(heads);
                }
            }
        }
        Err(SessionError::Contended { attempts: ATTEMPTS })
    }

    fn ours(&self, head: &SignedHead) -> bool {
        let vault: VaultId = self.session.vault_id();
        head.vault() == vault && head.cluster == self.session.cluster_id()
    }

    /// Merges what others have committed meanwhile.
    async fn take_in(&mut self, newest: &Heads) -> Result<(), SessionError> {
        let news: Vec<SignedHead> = newest.heads.iter().filter(|head| !self.joined.includes(head)).cloned().collect();
        if news.is_empty() {
            return Ok(());
        }
        let keys = self.session.inner.keys.clone();
        for tip in merging::load(&self.upload, &keys, &news).await? {
            let theirs = tip.commit.files.as_ref().map(|root| root.id);
            self.joined.include(&mut self.upload, &keys, tip).await?;
            self.open_dir = bytes::Bytes::new();
            // Where nothing of ours is left beside what they wrote, there is nothing to commit.
            self.dirty = self.joined.parents.len() > 1 || self.joined.files.as_ref().map(|root| root.id) != theirs;
        }
        Ok(())
    }

    /// Writes tree, commit and head once. `Err` with the heads that are newer than ours.
    async fn attempt(&mut self, progress: &Progress) -> Result<Result<usize, Vec<SignedHead>>, SessionError> {
        let inner = self.session.inner.clone();
        let counter = self.next_counter()?;
        let mut vector = self.joined.vector.clone();
        vector.set(counter.number, counter.counter);
        let now = (inner.clock)();
        let parents = self.joined.parents.iter().take(PARENTS_LIMIT).map(|(parent, _)| parent.clone()).collect();
        let commit = Commit {
            files: self.joined.files.clone(),
            snapshots: self.joined.snapshots.clone(),
            parents,
            vector: vector.clone(),
            time_ms: now,
            host: inner.host.clone(),
        };
        let (id, pending) = self.upload.store(&commit).await?;
        self.upload.flush(progress).await?;
        let root = RootPointer { id, pointer: self.upload.resolve(&pending).map_err(crate::vault::VaultError::from)? };
        self.settle_roots()?;
        let sealed = root.seal(&inner.keys).map_err(crate::vault::VaultError::from)?;
        let (sweep, sweep_hash) = self.joined.sweep;
        let head = Head {
            cluster: self.session.cluster_id(),
            device: inner.cert.clone(),
            vector: vector.clone(),
            sweep,
            sweep_hash,
            created_ms: now,
            root: sealed,
        };
        let head = head.sign(&inner.secrets.device);
        // From here on the counter is used, whatever happens. After a checkpoint of this writer that is written down already.
        if self.acknowledged.take().is_none() {
            inner.folder.set_counter(&Counter { clean: false, ..counter })?;
        }
        let concurrent = match inner.cluster.write_head(&head).await {
            Ok(written) => written.concurrent.iter().filter(|other| other.id() != head.id()).count(),
            // Someone has merged what we wrote before we heard that it was written.
            Err(WriteHeadError::Dominated(theirs)) if includes(&theirs, counter) => 0,
            Err(WriteHeadError::Dominated(theirs)) => return Ok(Err(theirs)),
            Err(error) => return Err(SessionError::Head(error)),
        };
        // Only now: what too few replicas took may yet come up, and others may build upon it.
        self.acknowledged = Some(Counter { clean: true, ..counter });
        self.committed(&head, root, vector, commit)?;
        Ok(Ok(concurrent))
    }

    /// The counter of the next head.
    fn next_counter(&self) -> Result<Counter, SessionError> {
        let inner = &self.session.inner;
        let kept = match self.acknowledged {
            Some(counter) => Some(counter),
            None => inner.folder.counter()?,
        };
        Ok(counter_after(kept, &self.joined.vector, || inner.with_rng(Rng::next_u64)))
    }

    /// Writes down what this device has seen.
    fn remember(&mut self) -> Result<(), SessionError> {
        let Some((vector, time_ms)) = self.seen.take() else { return Ok(()) };
        self.remembered = Some(Instant::now());
        self.session.remember_vector(&vector, time_ms)
    }

    /// Writes down what checkpoints leave to the end: what was seen, and that all that was sent under the counter was
    /// acknowledged. A device that lacks the second takes a new number.
    fn write_down(&mut self) -> Result<(), SessionError> {
        self.remember()?;
        if let Some(counter) = self.acknowledged.take() {
            self.session.inner.folder.set_counter(&counter)?;
        }
        Ok(())
    }

    /// Our trees lie in stripes that are on disks now: their roots name them from here on.
    fn settle_roots(&mut self) -> Result<(), SessionError> {
        let settled = |root: &Root| -> Result<Root, crate::vault::pointer::Unsealed> {
            let Some(root) = root else { return Ok(None) };
            let pointer = PendingPointer::from(self.upload.resolve(&root.pointer)?);
            Ok(Some(Subtree { pointer, ..root.clone() }))
        };
        let unsealed = crate::vault::VaultError::from;
        let (files, snapshots) =
            (settled(&self.joined.files).map_err(unsealed)?, settled(&self.joined.snapshots).map_err(unsealed)?);
        (self.joined.files, self.joined.snapshots) = (files, snapshots);
        Ok(())
    }

    /// What was committed is what further changes are made to.
    fn committed(
        &mut self,
        head: &SignedHead,
        root: RootPointer,
        vector: VersionVector,
        commit: Commit,
    ) -> Result<(), SessionError> {
        self.seen = Some((vector.clone(), commit.time_ms));
        if self.remembered.is_none_or(|at| at.elapsed() >= REMEMBER_INTERVAL) {
            self.remember()?;
        }
        let parent = crate::vault::commit::Parent { head: head.id(), commit: root };
        self.joined.parents = vec![(parent, vector.clone())];
        self.base.vector = vector.clone();
        self.joined.vector = vector;
        (self.joined.time_ms, self.joined.host) = (commit.time_ms, commit.host.clone());
        self.dirty = false;
        self.base.root = self.joined.files.clone();
        self.base.snapshots = self.joined.snapshots.clone();
        self.base.freshness = Freshness::Current;
        (self.base.committed_ms, self.base.host) = (commit.time_ms, commit.host);
        self.base.files = self.base.root.as_ref().map_or(0, |root| root.count);
        self.base.bytes = self.base.root.as_ref().map_or(0, |root| root.size);
        self.base.heads = 1;
        self.base.rollback = None;
        self.base.overlay = std::sync::Arc::default();
        Ok(())
    }

    fn result(&mut self, concurrent: usize, unchanged: bool) -> Committed {
        let totals = self.upload.take_totals();
        let scheme = self.upload.scheme();
        let losses_survived = totals.survived.unwrap_or(scheme.m());
        let degraded = totals.degraded.then(|| {
            let nodes = if losses_survived == 1 { "node" } else { "nodes" };
            format!(
                "too few nodes were up for all shards of {scheme}: until repair has made it whole, no more than \
                 {losses_survived} {nodes} may be lost, then {}",
                scheme.m()
            )
        });
        Committed {
            stripes: totals.stripes,
            bytes_stored: totals.bytes,
            losses_survived,
            degraded,
            files: self.joined.files.as_ref().map_or(0, |root| root.count),
            bytes: self.joined.files.as_ref().map_or(0, |root| root.size),
            concurrent,
            conflicts: std::mem::take(&mut self.joined.conflicts),
            unchanged,
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(error) = self.write_down() {
            tracing::warn!(%error, "what was committed last is not written down on this machine");
        }
    }
}

/// Whether one of these heads includes what was sent under this counter. A counter beyond it was sent by another machine
/// under our number, from an image of this one: its head need not include ours.
fn includes(heads: &[SignedHead], counter: Counter) -> bool {
    heads.iter().any(|head| head.vector.get(counter.number) == counter.counter)
}

/// The counter of a head that is made from the state `joined`: the next one of the number kept if `joined` includes all
/// that was ever sent under that number and nothing else, else the first one of a new number, which `draw` draws.
///
/// A counter says that a head includes all that its number has sent before. So a head made from a state that lacks an
/// earlier one of ours (too few replicas took that one, the user has accepted a rollback) must not have its number: if the
/// earlier one came up again, merging would take it for an ancestor and its files for removed. A counter in `joined`
/// beyond the one kept is that of a machine that this one is an older image of.
fn counter_after(kept: Option<Counter>, joined: &VersionVector, draw: impl FnMut() -> u64) -> Counter {
    let kept = kept.filter(|kept| kept.clean && joined.get(kept.number) == kept.counter && kept.counter < u64::MAX);
    match kept {
        Some(kept) => Counter { counter: kept.counter + 1, ..kept },
        None => {
            let unused = |number: &u64| joined.get(*number) == 0;
            // 64 random bits that anyone has drawn before: not in the life of the universe, but free to rule out.
            let number = std::iter::repeat_with(draw).find(unused).unwrap_or_default();
            Counter { number, counter: 1, clean: true }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_goes_on_only_from_a_state_with_all_that_it_has_sent() {
        let next = |number: u64, counter, clean, seen| {
            let mut joined = VersionVector::default();
            joined.set(5, 1);
            if seen > 0 {
                joined.set(number, seen);
            }
            let mut drawn = [5, 9].into_iter();
            let after = counter_after(Some(Counter { number, counter, clean }), &joined, || drawn.next().unwrap());
            (after.number, after.counter)
        };
        assert_eq!(next(7, 3, true, 3), (7, 4));
        assert_eq!(next(7, 3, true, 2), (9, 1), "the state lacks the last head of this device");
        assert_eq!(next(7, 3, true, 0), (9, 1));
        assert_eq!(next(7, 3, true, 4), (9, 1), "another machine uses the number");
        assert_eq!(next(7, 3, false, 3), (9, 1), "the last head was not acknowledged");
        assert_eq!(next(7, u64::MAX, true, u64::MAX), (9, 1));
        assert_eq!(
            counter_after(None, &VersionVector::default(), || 4),
            Counter { number: 4, counter: 1, clean: true }
        );
    }
}
