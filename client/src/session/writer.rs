//! Changing a vault: files are uploaded as they come, and become visible all at once when the writer commits.
//!
//! Until then nobody sees anything: a writer that is dropped leaves stripes that nothing points to, and the vault as it
//! was.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use potluck_proto::head::VersionVector;
use potluck_proto::scheme;
use potluck_proto::stripe::Scheme;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::home::{Counter, WriterLock};
use super::merging::{self, Joined};
use super::state::Heads;
use super::upload::{Prepared, Preparer, Upload};
use super::{HomeError, Progress, Session, SessionError, State};
use crate::cluster::Stale;
use crate::vault::entry::Entry;
use crate::vault::merge::Conflict;
use crate::vault::path;
use crate::vault::tree::{self, Change};

/// Changes that are held back until they are folded into the tree.
const HELD_BACK: usize = 10_000;

/// How long a writer waits for another one on this machine to end.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// How long a writer waits for a quorum to tell the newest state.
const QUORUM_WAIT: Duration = Duration::from_secs(30);

/// How long a long upload goes on before it commits what it has.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(600);

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// What a file has beside its bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meta {
    /// Unix permission bits; 0 where unknown.
    pub mode: u32,
    /// Last modification, nanoseconds since 1970; 0 where unknown.
    pub mtime_ns: i64,
}

/// A file that is being read: see [`Writer::prepare`].
pub struct Preparing<R>(JoinHandle<Result<Prepared<R>, SessionError>>);

impl Preparer {
    pub(super) fn begin<R: Read + Send + 'static>(&self, source: R) -> Preparing<R> {
        Preparing(tokio::spawn(self.clone().prepare(source)))
    }
}

/// A file that was uploaded, to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Bytes in the file.
    pub size: u64,
    /// Chunks that it was cut into; 0 for one that lives in its entry.
    pub chunks: u64,
    /// Bytes of them that this upload had not seen before.
    pub new_bytes: u64,
}

/// A commit that was acknowledged; of a writer's last one, all of its commits together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Stripes written, tree nodes included.
    pub stripes: u64,
    /// Bytes of shards that they have on all nodes together.
    pub bytes_stored: u64,
    /// How many nodes may be lost without losing any of what was written: the least over all stripes.
    pub losses_survived: usize,
    /// Why that is less than the scheme promises, until repair has made it whole.
    pub degraded: Option<String>,
    /// Files, directories and links in the vault now.
    pub files: u64,
    /// Bytes of all files in the vault now.
    pub bytes: u64,
    /// Other devices have written at the same time: the next read or commit merges.
    pub concurrent: usize,
    /// Paths that another device had changed too, and where its version was saved.
    pub conflicts: Vec<Conflict>,
    /// Nothing had changed, so nothing was written.
    pub unchanged: bool,
}

impl Committed {
    /// What this commit and those before it of the same writer come to together.
    pub(super) fn after(mut self, before: Option<Committed>) -> Committed {
        let Some(before) = before else { return self };
        self.stripes += before.stripes;
        self.bytes_stored += before.bytes_stored;
        if before.losses_survived < self.losses_survived {
            (self.losses_survived, self.degraded) = (before.losses_survived, before.degraded);
        }
        self.concurrent = self.concurrent.max(before.concurrent);
        self.conflicts.splice(..0, before.conflicts);
        self.unchanged &= before.unchanged;
        self
    }
}

/// The one writer of a vault on this machine.
pub struct Writer {
    pub(super) session: Session,
    pub(super) _lock: WriterLock,
    /// The state that changes are made to.
    pub(super) base: State,
    /// That state with the changes that were folded in, and where it comes from.
    pub(super) joined: Joined,
    /// Something was folded in that is not committed.
    pub(super) dirty: bool,
    /// Changes not in the tree yet.
    pub(super) changes: BTreeMap<Bytes, Option<Entry>>,
    /// A directory that something was put into last: neither it nor one above it is a file.
    pub(super) open_dir: Bytes,
    /// What the checkpoints so far came to.
    pub(super) before: Option<Committed>,
    /// The counter of the last commit, if that was acknowledged and this is not written down yet.
    pub(super) acknowledged: Option<Counter>,
    /// What was seen since that was written down last, and when that was.
    pub(super) seen: Option<(VersionVector, u64)>,
    pub(super) remembered: Option<Instant>,
    /// When a quorum was heard last, if nobody else was writing then.
    pub(super) heard: Option<Instant>,
    /// When this writer began, or when a checkpoint was tried last.
    checked: Instant,
    pub(super) upload: Upload,
}

impl Session {
    /// Takes the writer's lock and begins at the newest state, which a quorum has to tell. Waits some seconds for both, but
    /// not for nodes that are known to be down: where too few are left, the error comes at once.
    pub async fn writer(&self) -> Result<Writer, SessionError> {
        self.writer_within(QUORUM_WAIT).await
    }

    /// As [`Session::writer`], with another patience for a quorum that tells the newest state.
    pub(super) async fn writer_within(&self, patience: Duration) -> Result<Writer, SessionError> {
        let lock = self.lock().await?;
        let heads = self.quorum(patience).await?;
        if let Some(rollback) = &heads.rollback {
            return Err(SessionError::RolledBack { seen_ms: rollback.seen_ms });
        }
        let base = self.state_of(&heads).await?;
        self.remember(&heads)?;
        let scheme = self.scheme();
        self.can_store(scheme).await?;
        let sweep = heads.heads.iter().map(|head| head.sweep).max().unwrap_or(0);
        let mut upload = Upload::new(self.inner.clone(), scheme, sweep)?;
        let tips = merging::load(&upload, &self.inner.keys, &heads.heads).await?;
        let dirty = tips.len() != 1;
        let joined = Joined::of(&mut upload, &self.inner.keys, tips).await?;
        Ok(Writer {
            session: self.clone(),
            _lock: lock,
            base,
            joined,
            dirty,
            changes: BTreeMap::new(),
            open_dir: Bytes::new(),
            before: None,
            acknowledged: None,
            seen: None,
            remembered: None,
            heard: heads.stale.is_none().then(Instant::now),
            checked: Instant::now(),
            upload,
        })
    }

    /// Whether enough nodes are there, and not known to be down, to store anything.
    async fn can_store(&self, scheme: Scheme) -> Result<(), SessionError> {
        let (cluster, needed) = (&self.inner.cluster, scheme.degraded_minimum());
        let ring = cluster.members().ring();
        scheme::fits(scheme, ring.len())?;
        let up = || ring.nodes().iter().filter(|node| !cluster.members().is_down(node)).count();
        if up() < needed {
            cluster.refresh().await?;
        }
        match up() {
            up if up < needed => Err(SessionError::TooFewUp { up, admitted: ring.len(), needed, scheme }),
            _ => Ok(()),
        }
    }

    async fn lock(&self) -> Result<WriterLock, SessionError> {
        let over = Instant::now() + LOCK_WAIT;
        loop {
            match self.inner.folder.lock() {
                Err(HomeError::Busy(_)) if Instant::now() < over => tokio::time::sleep(PAUSE).await,
                result => return Ok(result?),
            }
        }
    }

    /// Heads that a quorum told. One that has not settled will do, if it tells no less than this device has seen: what it
    /// may not know of others is merged later.
    async fn quorum(&self, patience: Duration) -> Result<Heads, SessionError> {
        let over = Instant::now() + patience;
        loop {
            let heads = self.read_heads().await?;
            match &heads.stale {
                None => return Ok(heads),
                Some(stale @ Stale::TooFew { .. }) if stale.is_hopeless() || Instant::now() >= over => {
                    return Err(SessionError::NoQuorum(stale.clone()));
                }
                Some(Stale::Unsettled { .. } | Stale::NotWrittenBack) if heads.rollback.is_none() => return Ok(heads),
                // Not yet a rollback: those that have not settled may still hear of the newer state.
                Some(stale @ (Stale::Unsettled { .. } | Stale::NotWrittenBack)) if Instant::now() >= over => {
                    return Err(SessionError::NoQuorum(stale.clone()));
                }
                Some(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// What a path names.
struct Named {
    key: Bytes,
    entries: BTreeMap<Bytes, Entry>,
}

impl Writer {
    /// The state that this writer began with, or that it committed last.
    #[must_use]
    pub fn base(&self) -> &State {
        &self.base
    }

    /// The entry at exactly this key, with the changes made so far: to see whether a file is as it was.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Entry>, SessionError> {
        match self.changes.get(key) {
            Some(change) => Ok(change.clone()),
            None => Ok(tree::get(&self.upload, &self.session.inner.keys, &self.joined.files, key).await?),
        }
    }

    /// Uploads a file and puts it at `key` ([`crate::vault::path::file`]). It is read on the executor. Chunks that this upload or the file's older
    /// version has are not sent again. [`SessionError::WrongKind`], before anything is read, where a directory is there or
    /// a file is in the place of a directory above it.
    pub async fn put_file(
        &mut self,
        key: Bytes,
        meta: Meta,
        source: impl Read + Send + 'static,
        progress: &Progress,
    ) -> Result<Stored, SessionError> {
        let old = self.place_for_file(&key).await?;
        let source = self.upload.preparer().prepare(source).await?;
        self.put_at(key, meta, old, source, progress).await
    }

    /// Begins to read a file on the executor, for [`Writer::put_prepared`]: of many small ones some dozen may be begun at
    /// once, each of which holds up to 256 KiB.
    pub fn prepare<R: Read + Send + 'static>(&self, source: R) -> Preparing<R> {
        self.preparer().begin(source)
    }

    pub(super) fn preparer(&self) -> Preparer {
        self.upload.preparer()
    }

    /// As [`Writer::put_file`], of a file that was begun before.
    pub async fn put_prepared<R: Read + Send + 'static>(
        &mut self,
        key: Bytes,
        meta: Meta,
        source: Preparing<R>,
        progress: &Progress,
    ) -> Result<Stored, SessionError> {
        let old = self.place_for_file(&key).await?;
        let source = source.0.await.map_err(|error| SessionError::Internal(error.to_string()))??;
        self.put_at(key, meta, old, source, progress).await
    }

    async fn put_at<R: Read + Send + 'static>(
        &mut self,
        key: Bytes,
        meta: Meta,
        old: Option<Entry>,
        source: Prepared<R>,
        progress: &Progress,
    ) -> Result<Stored, SessionError> {
        let (mut entry, stored) = self.upload.file(source, old.as_ref(), progress).await?;
        (entry.mode, entry.mtime_ns) = (meta.mode, meta.mtime_ns);
        self.change(key, Some(entry)).await?;
        Progress::add(&progress.files, 1);
        Ok(stored)
    }

    /// Puts an entry at `key`: a directory's ends in `/`. [`SessionError::WrongKind`] as with [`Writer::put_file`].
    pub async fn put_entry(&mut self, key: Bytes, entry: Entry) -> Result<(), SessionError> {
        path::check_key(&key)?;
        self.place_for(&key).await?;
        self.change(key, Some(entry)).await
    }

    /// As [`Writer::place_for`], of a file's key.
    async fn place_for_file(&self, key: &Bytes) -> Result<Option<Entry>, SessionError> {
        path::check_key(key)?;
        if key.ends_with(b"/") {
            return Err(SessionError::WrongKind { path: lossy(key), is: "a directory's name, not a file's" });
        }
        self.place_for(key).await
    }

    /// What is at `key`, if there may be something: a name is a file's or a directory's, never both.
    async fn place_for(&self, key: &Bytes) -> Result<Option<Entry>, SessionError> {
        let old = self.get(key).await?;
        if old.is_some() {
            return Ok(old);
        }
        if !key.ends_with(b"/") && self.has_below(&path::dir_of(key)).await? {
            return Err(SessionError::WrongKind { path: lossy(key), is: "a directory: a file cannot take its place" });
        }
        let known = if key.starts_with(&self.open_dir) { self.open_dir.len() } else { 0 };
        let slashes = key.iter().enumerate().skip(known).filter(|(_, byte)| **byte == b'/').map(|(slash, _)| slash);
        for above in slashes.map(|slash| &key[..slash]) {
            if self.get(above).await?.is_some() {
                return Err(SessionError::WrongKind { path: lossy(above), is: "a file: nothing can be put into it" });
            }
        }
        Ok(None)
    }

    /// Whether anything is in the directory with this key, itself included.
    async fn has_below(&self, dir: &Bytes) -> Result<bool, SessionError> {
        let mut changed = self.changes.range(dir.clone()..).take_while(|(key, _)| key.starts_with(dir));
        if changed.any(|(_, change)| change.is_some()) {
            return Ok(true);
        }
        let mut scan = tree::Scan::new(&self.session.inner.keys, &self.joined.files, dir.clone());
        while let Some((key, _)) = scan.next(&self.upload).await? {
            // What is left of the changes here removes.
            if !self.changes.contains_key(&key) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Commits what was changed so far, if `interval` has passed since this writer began or the last time that this was
    /// tried: to be called after each file of a long upload with [`CHECKPOINT_INTERVAL`]. `None` if it is too early. After
    /// an error as after one of [`Writer::checkpoint`].
    pub async fn checkpoint_if_due(
        &mut self,
        interval: Duration,
        progress: &Progress,
    ) -> Result<Option<Committed>, SessionError> {
        if self.checked.elapsed() < interval {
            return Ok(None);
        }
        let committed = self.checkpoint(progress).await;
        self.checked = Instant::now();
        committed.map(Some)
    }

    async fn change(&mut self, key: Bytes, entry: Option<Entry>) -> Result<(), SessionError> {
        self.open_dir = if entry.is_some() { key.slice(..path::parent(&key).len()) } else { Bytes::new() };
        self.changes.insert(key, entry);
        if self.changes.len() >= HELD_BACK { self.fold().await } else { Ok(()) }
    }

    /// Applies the changes held back to the tree, which nobody else sees yet.
    pub(super) async fn fold(&mut self) -> Result<(), SessionError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let changes = self.changes.iter().map(|(key, entry)| (key.clone(), entry.clone()));
        let changes: Vec<Change> = changes.collect();
        let keys = self.session.inner.keys.clone();
        let root = tree::apply(&mut self.upload, &keys, &self.joined.files, changes).await?;
        let same = root.as_ref().map(|root| root.id) == self.joined.files.as_ref().map(|root| root.id);
        self.dirty |= !same;
        if !same {
            self.joined.files = root;
        }
        self.changes.clear();
        Ok(())
    }

    /// What is at a path, with the changes made so far: the file, else the directory and all in it.
    async fn named(&self, path: &[u8]) -> Result<Named, SessionError> {
        let dir = path::dir(path)?;
        if !path.ends_with(b"/") && !dir.is_empty() {
            let key = path::file(path)?;
            if let Some(entry) = self.get(&key).await? {
                return Ok(Named { entries: BTreeMap::from([(key.clone(), entry)]), key });
            }
        }
        let entries = self.below(&dir).await?;
        if entries.is_empty() && !dir.is_empty() {
            return Err(SessionError::NotFound(lossy(path)));
        }
        Ok(Named { key: dir, entries })
    }

    async fn below(&self, dir: &Bytes) -> Result<BTreeMap<Bytes, Entry>, SessionError> {
        let mut scan = tree::Scan::new(&self.session.inner.keys, &self.joined.files, dir.clone());
        let mut entries = BTreeMap::new();
        while let Some((key, entry)) = scan.next(&self.upload).await? {
            entries.insert(key, entry);
        }
        for (key, change) in self.changes.range(dir.clone()..).take_while(|(key, _)| key.starts_with(dir)) {
            match change {
                Some(entry) => entries.insert(key.clone(), entry.clone()),
                None => entries.remove(key),
            };
        }
        Ok(entries)
    }

    /// Removes a file, or a directory: one that is not empty only with `recursive`. Says how many entries that were.
    pub async fn remove(&mut self, path: impl AsRef<[u8]>, recursive: bool) -> Result<u64, SessionError> {
        let named = self.named(path.as_ref()).await?;
        if !recursive && named.entries.keys().any(|key| *key != named.key) {
            let is = "a directory that is not empty";
            return Err(SessionError::WrongKind { path: lossy(path.as_ref()), is });
        }
        let count = named.entries.len() as u64;
        for key in named.entries.into_keys() {
            self.change(key, None).await?;
        }
        Ok(count)
    }

    /// Renames a file or a directory with all that is in it; a file at `to` is replaced. Says how many entries moved.
    pub async fn rename(&mut self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<u64, SessionError> {
        self.transfer(from.as_ref(), to.as_ref(), true).await
    }

    /// Copies a file or a directory with all that is in it, without moving a byte. Says how many entries were copied.
    pub async fn copy(&mut self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<u64, SessionError> {
        self.transfer(from.as_ref(), to.as_ref(), false).await
    }

    async fn transfer(&mut self, from: &[u8], to: &[u8], away: bool) -> Result<u64, SessionError> {
        let wrong = |path: &[u8], is| Err(SessionError::WrongKind { path: lossy(path), is });
        let named = self.named(from).await?;
        let is_dir = named.key.is_empty() || named.key.ends_with(b"/");
        let target = if is_dir { path::dir(to)? } else { path::file(to)? };
        if target == named.key {
            return Ok(0);
        }
        if is_dir && target.starts_with(&named.key) {
            return wrong(to, "inside the directory itself");
        }
        if !self.below(&path::dir(to)?).await?.is_empty() {
            return wrong(to, "a directory that is there already");
        }
        self.place_for(&target).await?;
        let count = named.entries.len() as u64;
        for (key, entry) in named.entries {
            let moved = Bytes::from([&target, &key[named.key.len()..]].concat());
            path::check_key(&moved)?;
            self.change(moved, Some(entry)).await?;
            if away {
                self.change(key, None).await?;
            }
        }
        Ok(count)
    }
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
