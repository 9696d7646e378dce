//! A file per shard, synced: the first shard store.
//!
//! A shard is in `shards/` or `trash/` under a name that says all that may change about it, so that every change is one
//! rename: `XX/STRIPE-INDEX.new` or `.complete`, in the trash with the deadline behind. Layout of a file: FORMAT.md. The
//! index is made anew from the names at every start where it differs.
//!
//! A shard that is proved damaged is set aside in `damaged/`. One that the disk does not give, or that a newer version
//! wrote, is out of the index but stays where it is, and is tried again. Both count as missing, so that they are rebuilt.

mod layout;

use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::{Bound, Range};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use potluck_proto::blocks::{self, BlockTree};
use potluck_proto::id::StripeId;
use potluck_proto::stripe::{Scheme, SignedHeader};

use self::layout::{Name, Place, Prefix};
use super::index::Index;
use super::unbuffered::Disk;
use super::{Check, Held, ShardKey, ShardRead, ShardState, ShardStore, StoreError, Usage};
use crate::durable::sync_folder;

/// Puts of different stripes go on side by side; those of one stripe, in turn.
const LOCKS: usize = 64;

/// Disk space that the node leaves free: the smaller of this many bytes and a twentieth of the file system.
const RESERVE_BYTES: u64 = 256 << 20;

/// Bytes of damaged shards that are kept for their owner to look at; the oldest go first.
const DAMAGED_LIMIT: u64 = 256 << 20;

/// Unreadable shards that are tried again at once.
const RETRIES: usize = 16;

/// Shards as files below one folder.
pub struct FileStore {
    folder: PathBuf,
    disk: Disk,
    index: Box<dyn Index>,
    capacity: u64,
    usage: Mutex<Usage>,
    locks: Vec<Mutex<()>>,
    next_temporary: AtomicU64,
    /// Shards found damaged or unreadable since the start.
    lost: AtomicU64,
    /// When each trashed shard may go, in milliseconds of running time.
    trash: Mutex<BTreeMap<ShardKey, u64>>,
    /// Shards whose files could not be read, under the names that these have.
    unreadable: Mutex<BTreeMap<ShardKey, (Name, u64)>>,
}

/// Why a shard leaves the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// Its bytes are proved wrong.
    Damaged,
    /// The disk does not give it.
    Unreadable,
}

impl FileStore {
    /// Opens the store below `folder`, which offers `capacity` bytes, and brings the index into line with the files.
    pub fn open(folder: &Path, capacity: u64, index: Box<dyn Index>) -> Result<Self, StoreError> {
        for place in ["shards", "trash", "damaged", "tmp"] {
            fs::create_dir_all(folder.join(place))?;
        }
        for leftover in fs::read_dir(folder.join("tmp"))? {
            fs::remove_file(leftover?.path())?;
        }
        sync_folder(folder)?;
        let store = Self {
            folder: folder.into(),
            disk: Disk::new(&folder.join("tmp"))?,
            index,
            capacity,
            usage: Mutex::default(),
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
            next_temporary: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            trash: Mutex::default(),
            unreadable: Mutex::default(),
        };
        store.reconcile()?;
        Ok(store)
    }

    /// Shards found damaged or unreadable since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Makes the index say what the files' names say, and adds up what they use.
    fn reconcile(&self) -> Result<(), StoreError> {
        let mut indexed = self.index.all().map_err(index_failed)?;
        let mut usage = Usage::default();
        let mut added = 0u64;
        for place in [Place::Shards, Place::Trash] {
            for folder in list(&self.folder.join(place.folder()))? {
                for path in list(&folder)? {
                    let Some(name) = path.file_name().and_then(|name| Name::parse(place, name.to_str()?)) else {
                        tracing::warn!(path = %path.display(), "not a shard's name: left alone");
                        continue;
                    };
                    let size = fs::metadata(&path)?.len();
                    match indexed.remove(&name.key) {
                        Some(held) if held.state == name.state && held.complete == name.complete => {}
                        _ => {
                            let Some(held) = self.describe(&path, &name, size)? else { continue };
                            self.index.insert(&name.key.stripe, &held).map_err(index_failed)?;
                            added += 1;
                        }
                    }
                    add_usage(&mut usage, name.state, size);
                    self.note_trash(name.key, name.state);
                }
            }
        }
        for key in indexed.keys() {
            self.index.remove(key).map_err(index_failed)?;
        }
        if added > 0 || !indexed.is_empty() {
            tracing::info!(added, removed = indexed.len(), "the index was brought into line with the shard files");
        }
        usage.damaged = self.used().damaged;
        *self.used() = usage;
        self.trim_damaged()?;
        Ok(())
    }

    /// What the index holds of a file. A damaged one is set aside, one that cannot be read is left out.
    fn describe(&self, path: &Path, name: &Name, size: u64) -> Result<Option<Held>, StoreError> {
        let prefix = self.disk.open(path).map_err(refused).and_then(|file| Prefix::read(&self.disk, &file));
        let described = prefix.and_then(|prefix| prefix.check(&name.key).map(|scheme| (prefix, scheme)));
        match described {
            Ok((prefix, scheme)) => Ok(Some(Held {
                scheme,
                index: name.key.index,
                state: name.state,
                complete: name.complete,
                touched: prefix.touched,
                len: prefix.tree.shard_len() as u32,
            })),
            Err(error @ StoreError::Corrupt(_)) => {
                tracing::warn!(path = %path.display(), %error, "a damaged shard is set aside");
                self.set_aside(path, size);
                Ok(None)
            }
            Err(error @ StoreError::Unreadable(_)) => {
                tracing::error!(path = %path.display(), %error, "a shard cannot be read: it counts as missing until it can");
                self.lost.fetch_add(1, Ordering::Relaxed);
                self.unreadable().insert(name.key, (name.clone(), size));
                self.used().damaged += size;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Moves a damaged file out of the way, under a name of its own.
    fn set_aside(&self, path: &Path, size: u64) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        let Some(name) = path.file_name() else { return };
        let folder = self.folder.join("damaged");
        let mut target = folder.join(name);
        while target.exists() {
            let mut other = name.to_owned();
            other.push(format!(".{}", self.next_temporary.fetch_add(1, Ordering::Relaxed)));
            target = folder.join(other);
        }
        match fs::rename(path, target) {
            Ok(()) => self.used().damaged += size,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a damaged shard could not be set aside");
            }
        }
    }

    /// Deletes the oldest of the damaged files where they are too many, and counts the others.
    fn trim_damaged(&self) -> Result<(), StoreError> {
        let mut files = Vec::new();
        for path in list(&self.folder.join("damaged"))? {
            let about = fs::metadata(&path)?;
            files.push((about.ctime(), about.len(), path));
        }
        files.sort();
        let mut bytes: u64 = files.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in files {
            if bytes <= DAMAGED_LIMIT {
                break;
            }
            fs::remove_file(&path)?;
            bytes -= size;
        }
        let unreadable: u64 = self.unreadable().values().map(|(_, size)| size).sum();
        self.used().damaged = bytes + unreadable;
        Ok(())
    }

    fn note_trash(&self, key: ShardKey, state: ShardState) {
        let mut trash = self.trash_list();
        match state {
            ShardState::Live => trash.remove(&key),
            ShardState::Trash { until_ms } => trash.insert(key, until_ms),
        };
    }

    fn trash_list(&self) -> MutexGuard<'_, BTreeMap<ShardKey, u64>> {
        self.trash.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreadable(&self) -> MutexGuard<'_, BTreeMap<ShardKey, (Name, u64)>> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn used(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self, stripe: &StripeId) -> MutexGuard<'_, ()> {
        self.locks[usize::from(stripe.as_bytes()[0]) % LOCKS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_one(&self, key: ShardKey) -> Result<Held, StoreError> {
        let held = self.index.held(&key.stripe).map_err(index_failed)?;
        held.into_iter().find(|held| held.index == key.index).ok_or(StoreError::NotFound)
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.folder.join(name.path())
    }

    /// Renames a shard's file to say something new of it, durably, then tells the index. The stripe's lock is held.
    fn rename(&self, key: ShardKey, old: Held, new: Held) -> Result<(), StoreError> {
        let (from, to) = (Name::of(key, &old), Name::of(key, &new));
        let (from_path, to_path) = (self.path(&from), self.path(&to));
        let (from_folder, to_folder) = (folder_of(&from_path), folder_of(&to_path));
        make_folder(to_folder)?;
        let size = match fs::metadata(&from_path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.forget(key, &old)),
            about => about?.len(),
        };
        fs::rename(&from_path, &to_path)?;
        sync_folder(to_folder)?;
        if from_folder != to_folder {
            sync_folder(from_folder)?;
        }
        self.index.insert(&key.stripe, &new).map_err(index_failed)?;
        self.note_trash(key, new.state);
        let mut usage = self.used();
        subtract_usage(&mut usage, old.state, size);
        add_usage(&mut usage, new.state, size);
        Ok(())
    }

    /// A shard's file is gone: so is the shard. The stripe's lock is held.
    fn forget(&self, key: ShardKey, held: &Held) -> StoreError {
        tracing::error!(stripe = %key.stripe, index = key.index, "a shard's file is gone");
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.unlist(key);
        // What stood before its bytes cannot be asked any more; the next start counts anew.
        subtract_usage(&mut self.used(), held.state, held.len.into());
        StoreError::Corrupt("its file is gone")
    }

    fn unlist(&self, key: ShardKey) {
        if let Err(error) = self.index.remove(&key) {
            tracing::error!(%error, "a lost shard could not be taken out of the index");
        }
        self.note_trash(key, ShardState::Live);
    }

    /// A read failed on `file`: the shard leaves the store, so that it counts as missing. Not if someone else was faster,
    /// and perhaps a sound one is in its place.
    fn lose(&self, key: ShardKey, held: &Held, file: Option<&File>, why: Loss) {
        let _lock = self.lock(&key.stripe);
        let path = self.path(&Name::of(key, held));
        let Ok(there) = fs::metadata(&path) else { return };
        let other = file.is_some_and(|file| file.metadata().is_ok_and(|read| read.ino() != there.ino()));
        if other || self.held_one(key).ok() != Some(*held) {
            return;
        }
        match why {
            Loss::Damaged => self.set_aside(&path, there.len()),
            Loss::Unreadable => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                self.unreadable().insert(key, (Name::of(key, held), there.len()));
                self.used().damaged += there.len();
            }
        }
        self.unlist(key);
        subtract_usage(&mut self.used(), held.state, there.len());
    }

    /// Runs `work` on a shard's file and what stands at its beginning, which is checked. A shard that proves damaged, is
    /// gone or cannot be read leaves the store. One that was renamed since the index was asked is looked up once more.
    fn on_file<T>(
        &self,
        key: ShardKey,
        work: impl Fn(&File, &Prefix) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let mut held = self.held_one(key)?;
        let mut file = self.disk.open(&self.path(&Name::of(key, &held)));
        if file.as_ref().is_err_and(missing) {
            // Nothing is renamed while this is held.
            let _lock = self.lock(&key.stripe);
            held = self.held_one(key)?;
            file = self.disk.open(&self.path(&Name::of(key, &held)));
            if file.as_ref().is_err_and(missing) {
                return Err(self.forget(key, &held));
            }
        }
        let (file, done) = match file {
            Err(error) => (None, Err(refused(error))),
            Ok(file) => {
                let prefix = Prefix::read(&self.disk, &file).and_then(|prefix| prefix.check(&key).map(|_| prefix));
                let done = prefix.and_then(|prefix| work(&file, &prefix));
                (Some(file), done)
            }
        };
        match &done {
            Err(StoreError::Corrupt(why)) => {
                tracing::warn!(stripe = %key.stripe, index = key.index, why, "a damaged shard is set aside");
                self.lose(key, &held, file.as_ref(), Loss::Damaged);
            }
            Err(StoreError::Unreadable(why)) => {
                tracing::error!(stripe = %key.stripe, index = key.index, why, "a shard cannot be read: it counts as missing until it can");
                self.lose(key, &held, file.as_ref(), Loss::Unreadable);
            }
            _ => {}
        }
        done
    }

    fn read_range(&self, key: ShardKey, range: Range<u64>, check: Check) -> Result<ShardRead, StoreError> {
        self.on_file(key, |file, prefix| {
            let shard_len = prefix.tree.shard_len();
            if range.end > shard_len || range.start > range.end {
                return Err(StoreError::Range);
            }
            let range = if range.is_empty() { 0..shard_len } else { range.clone() };
            let wide = blocks::widen(range.start, range.end - range.start, shard_len);
            let data = exactly(&self.disk, file, prefix.payload_at + wide.start, (wide.end - wide.start) as usize)?;
            if check == Check::Here {
                prefix.tree.check_range(wide.start, &data).map_err(|_| StoreError::Corrupt("payload"))?;
            }
            let (header, tree) = (prefix.header.clone(), prefix.tree.clone());
            Ok(ShardRead { header, tree, offset: wide.start, data })
        })
    }

    /// A shard that is put once more is kept, and leaves the trash. The stripe's lock is held.
    fn keep_again(&self, key: ShardKey, held: Held) -> Result<(), StoreError> {
        match held.state {
            ShardState::Trash { .. } => self.rename(key, held, Held { state: ShardState::Live, ..held }),
            ShardState::Live => match fs::metadata(self.path(&Name::of(key, &held))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.forget(key, &held)),
                about => Ok(about.map(|_| ())?),
            },
        }
    }

    /// A sound copy was written: the unreadable one has no use any more. The stripe's lock is held.
    fn drop_unreadable(&self, key: ShardKey, written: &Held) {
        let Some((old, size)) = self.unreadable().remove(&key) else { return };
        let mut usage = self.used();
        usage.damaged = usage.damaged.saturating_sub(size);
        drop(usage);
        let path = self.path(&old);
        // Under the same name it was replaced.
        if path != self.path(&Name::of(key, written))
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "an unreadable shard's file could not be removed");
        }
    }

    /// Takes an unreadable shard back if its file can be read and is sound.
    fn readable_again(&self, key: ShardKey) -> bool {
        let _lock = self.lock(&key.stripe);
        let Some((old, size)) = self.unreadable().get(&key).cloned() else { return false };
        let path = self.path(&old);
        let read = self.disk.open(&path).map_err(refused).and_then(|file| {
            let prefix = Prefix::read(&self.disk, &file)?;
            let scheme = prefix.check(&key)?;
            let data = exactly(&self.disk, &file, prefix.payload_at, prefix.tree.shard_len() as usize)?;
            prefix.tree.check_range(0, &data).map_err(|_| StoreError::Corrupt("payload"))?;
            Ok(Held {
                scheme,
                index: key.index,
                state: old.state,
                complete: old.complete,
                touched: prefix.touched,
                len: data.len() as u32,
            })
        });
        match read {
            Ok(held) if self.index.insert(&key.stripe, &held).is_ok() => {
                self.unreadable().remove(&key);
                self.note_trash(key, held.state);
                let mut usage = self.used();
                usage.damaged = usage.damaged.saturating_sub(size);
                add_usage(&mut usage, held.state, size);
                tracing::info!(path = %path.display(), "a shard can be read again");
                true
            }
            Err(StoreError::Corrupt(_)) => {
                self.unreadable().remove(&key);
                let mut usage = self.used();
                usage.damaged = usage.damaged.saturating_sub(size);
                drop(usage);
                self.set_aside(&path, size);
                false
            }
            _ => false,
        }
    }

    fn check_space(&self, incoming: u64) -> Result<(), StoreError> {
        let usage = *self.used();
        if usage.live + usage.trash + usage.damaged + incoming > self.capacity {
            return Err(StoreError::Full);
        }
        let disk = rustix::fs::statvfs(&self.folder).map_err(io::Error::from)?;
        let reserve = RESERVE_BYTES.min(disk.f_blocks * disk.f_frsize / 20);
        if disk.f_bavail * disk.f_frsize < incoming + reserve {
            return Err(StoreError::Full);
        }
        Ok(())
    }

    fn write_new(&self, name: &Name, prefix: &[u8], shard: &[u8]) -> Result<(), StoreError> {
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.folder.join("tmp").join(number.to_string());
        let written = (|| {
            self.disk.create(&temporary, &[prefix, shard])?;
            let path = self.path(name);
            let folder = folder_of(&path);
            make_folder(folder)?;
            fs::rename(&temporary, &path)?;
            sync_folder(folder)
        })();
        written.map_err(|error: io::Error| {
            let _ = fs::remove_file(&temporary);
            match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full,
                _ => StoreError::Io(error),
            }
        })
    }
}

impl ShardStore for FileStore {
    fn put(
        &self,
        header: &SignedHeader,
        index: usize,
        shard: &[u8],
        tree: &BlockTree,
        touched: u64,
    ) -> Result<bool, StoreError> {
        let key = ShardKey { stripe: header.id(), index };
        let _lock = self.lock(&key.stripe);
        match self.held_one(key) {
            Ok(held) => match self.keep_again(key, held) {
                // Gone after all: written anew.
                Err(StoreError::Corrupt(_)) => {}
                kept => return kept.map(|()| false),
            },
            Err(StoreError::NotFound) => {}
            Err(error) => return Err(error),
        }
        let prefix = layout::encode(header, index, touched, tree);
        let size = (prefix.len() + shard.len()) as u64;
        self.check_space(size)?;
        let held = Held {
            index,
            state: ShardState::Live,
            complete: false,
            touched,
            len: shard.len() as u32,
            scheme: header.scheme,
        };
        self.write_new(&Name::of(key, &held), &prefix, shard)?;
        self.index.insert(&key.stripe, &held).map_err(index_failed)?;
        add_usage(&mut self.used(), held.state, size);
        self.drop_unreadable(key, &held);
        Ok(true)
    }

    fn read(&self, key: ShardKey, range: Range<u64>, check: Check) -> Result<ShardRead, StoreError> {
        let held = self.held_one(key)?;
        let read = self.read_range(key, range, check)?;
        if held.state != ShardState::Live {
            self.revive(key)?;
        }
        Ok(read)
    }

    fn header(&self, stripe: &StripeId) -> Result<SignedHeader, StoreError> {
        let mut failed = StoreError::NotFound;
        for held in self.held(stripe)? {
            let key = ShardKey { stripe: *stripe, index: held.index };
            let decoded = self.on_file(key, |_, prefix| {
                SignedHeader::decode_known(prefix.header.clone(), stripe)
                    .map_err(|_| StoreError::Corrupt("stripe header"))
            });
            match decoded {
                Ok(header) => return Ok(header),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn held(&self, stripe: &StripeId) -> Result<Vec<Held>, StoreError> {
        self.index.held(stripe).map_err(index_failed)
    }

    fn stripes(&self, after: Option<StripeId>, limit: usize) -> Result<Vec<StripeId>, StoreError> {
        self.index.stripes(after, limit).map_err(index_failed)
    }

    fn trash(&self, key: ShardKey, until_ms: u64) -> Result<(), StoreError> {
        let _lock = self.lock(&key.stripe);
        let held = self.held_one(key)?;
        match held.state {
            ShardState::Live => self.rename(key, held, Held { state: ShardState::Trash { until_ms }, ..held }),
            ShardState::Trash { .. } => Ok(()),
        }
    }

    fn revive(&self, key: ShardKey) -> Result<(), StoreError> {
        let _lock = self.lock(&key.stripe);
        let held = self.held_one(key)?;
        match held.state {
            ShardState::Live => Ok(()),
            ShardState::Trash { .. } => self.rename(key, held, Held { state: ShardState::Live, ..held }),
        }
    }

    fn expired(&self, running_ms: u64, after: Option<ShardKey>, limit: usize) -> Result<Vec<ShardKey>, StoreError> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let trash = self.trash_list();
        let expired = trash.range((from, Bound::Unbounded)).filter(|(_, until)| **until <= running_ms);
        Ok(expired.map(|(key, _)| *key).take(limit).collect())
    }

    fn delete(&self, key: ShardKey, running_ms: u64) -> Result<bool, StoreError> {
        let _lock = self.lock(&key.stripe);
        // It may have been revived meanwhile.
        let held = match self.held_one(key) {
            Err(StoreError::NotFound) => return Ok(false),
            held => held?,
        };
        if !matches!(held.state, ShardState::Trash { until_ms } if until_ms <= running_ms) {
            return Ok(false);
        }
        let path = self.path(&Name::of(key, &held));
        let size = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.forget(key, &held);
                return Ok(false);
            }
            about => about?.len(),
        };
        fs::remove_file(&path)?;
        sync_folder(folder_of(&path))?;
        self.unlist(key);
        subtract_usage(&mut self.used(), held.state, size);
        Ok(true)
    }

    fn retry_unreadable(&self) -> Vec<ShardKey> {
        // Each time others first: the front of the queue may never be readable again.
        let turn = self.next_temporary.fetch_add(1, Ordering::Relaxed) as usize;
        let waiting: Vec<ShardKey> = {
            let unreadable = self.unreadable();
            let count = unreadable.len();
            unreadable.keys().cycle().skip((turn * RETRIES) % count.max(1)).take(count.min(RETRIES)).copied().collect()
        };
        waiting.into_iter().filter(|key| self.readable_again(*key)).collect()
    }

    fn set_complete(&self, key: ShardKey) -> Result<(), StoreError> {
        let _lock = self.lock(&key.stripe);
        let held = self.held_one(key)?;
        if held.complete { Ok(()) } else { self.rename(key, held, Held { complete: true, ..held }) }
    }

    fn verify(&self, key: ShardKey) -> Result<u64, StoreError> {
        self.read_range(key, 0..0, Check::Here).map(|read| read.data.len() as u64)
    }

    fn usage(&self) -> Usage {
        *self.used()
    }

    fn full(&self) -> bool {
        self.check_space(potluck_proto::stripe::DATA_LIMIT as u64 / 4).is_err()
    }
}

fn index_failed(error: super::index::IndexError) -> StoreError {
    StoreError::Io(io::Error::other(error))
}

fn add_usage(usage: &mut Usage, state: ShardState, size: u64) {
    match state {
        ShardState::Live => {
            usage.live += size;
            usage.shards += 1;
        }
        ShardState::Trash { .. } => usage.trash += size,
    }
}

fn subtract_usage(usage: &mut Usage, state: ShardState, size: u64) {
    match state {
        ShardState::Live => {
            usage.live = usage.live.saturating_sub(size);
            usage.shards = usage.shards.saturating_sub(1);
        }
        ShardState::Trash { .. } => usage.trash = usage.trash.saturating_sub(size),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// Makes one of the 256 folders, durably.
fn make_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Ok(()) => sync_folder(folder_of(folder)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// The entries of a folder in order of their names.
fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// What a failed call on one file says: of the shard, or, where the process is short of something, of nothing.
fn refused(error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => StoreError::Corrupt("truncated"),
        io::ErrorKind::OutOfMemory | io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => StoreError::Io(error),
        _ if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) => StoreError::Io(error),
        _ => StoreError::Unreadable(error.to_string()),
    }
}

const EMFILE: i32 = rustix::io::Errno::MFILE.raw_os_error();
const ENFILE: i32 = rustix::io::Errno::NFILE.raw_os_error();

/// So many bytes from a place in a file.
fn exactly(disk: &Disk, file: &File, at: u64, len: usize) -> Result<Bytes, StoreError> {
    let bytes = disk.read(file, at..at + len as u64).map_err(refused)?;
    if bytes.len() == len { Ok(bytes) } else { Err(StoreError::Corrupt("truncated")) }
}

impl Prefix {
    /// Checks that this is the beginning of that shard; returns how its stripe is coded.
    fn check(&self, key: &ShardKey) -> Result<Scheme, StoreError> {
        let header = SignedHeader::decode_known(self.header.clone(), &key.stripe)
            .map_err(|_| StoreError::Corrupt("not this stripe's header"))?;
        let root = header.shards.get(key.index).ok_or(StoreError::Corrupt("an index outside the scheme"))?;
        if self.index != key.index || self.tree.verify(root).is_err() {
            return Err(StoreError::Corrupt("chaining values"));
        }
        Ok(header.scheme)
    }
}

#[cfg(test)]
pub(super) mod tests;
