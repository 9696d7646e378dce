//! A file per shard, synced: the first shard store.
//!
//! A shard is in `shards/` or `trash/` under a name that says all that may change about it, so that every change is one
//! rename: `XX/STRIPE-INDEX.new` or `.complete`, in the trash with the deadline behind. A damaged one is set aside in
//! `damaged/`. Layout of a file: FORMAT.md. The index is made anew from the names at every start where it differs.

mod layout;
mod unbuffered;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use potluck_proto::blocks::{self, BlockTree};
use potluck_proto::id::StripeId;
use potluck_proto::stripe::SignedHeader;

use self::layout::{Name, Place, Prefix};
use super::index::Index;
use super::{Held, ShardKey, ShardRead, ShardState, ShardStore, StoreError, Usage};
use crate::durable::sync_folder;

/// Puts of different stripes go on side by side; those of one stripe, in turn.
const LOCKS: usize = 64;

/// Disk space that the node leaves free: the smaller of this many bytes and a twentieth of the file system.
const RESERVE_BYTES: u64 = 256 << 20;

/// Shards as files below one folder.
pub struct FileStore {
    folder: PathBuf,
    writer: unbuffered::Writer,
    index: Box<dyn Index>,
    capacity: u64,
    usage: Mutex<Usage>,
    locks: Vec<Mutex<()>>,
    next_temporary: AtomicU64,
    /// How long a damaged file is kept, in milliseconds of running time beyond the newest deadline.
    damaged: AtomicU64,
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
            writer: unbuffered::Writer::new(&folder.join("tmp"))?,
            index,
            capacity,
            usage: Mutex::default(),
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
            next_temporary: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
        };
        store.reconcile()?;
        Ok(store)
    }

    /// Shards found damaged since the start.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
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
                    add_usage(&mut usage, name.state, size);
                    match indexed.remove(&name.key) {
                        Some(held) if held.state == name.state && held.complete == name.complete => {}
                        _ => {
                            let Some(held) = self.describe(&path, &name) else { continue };
                            self.index.insert(&name.key.stripe, &held).map_err(index_failed)?;
                            added += 1;
                        }
                    }
                }
            }
        }
        for key in indexed.keys() {
            self.index.remove(key).map_err(index_failed)?;
        }
        if added > 0 || !indexed.is_empty() {
            tracing::info!(added, removed = indexed.len(), "the index was brought into line with the shard files");
        }
        *self.used() = usage;
        Ok(())
    }

    /// What the index holds of a file; a file whose beginning cannot be read is set aside.
    fn describe(&self, path: &Path, name: &Name) -> Option<Held> {
        let prefix = File::open(path).map_err(StoreError::from).and_then(|file| Prefix::read(&file));
        let described = prefix.and_then(|prefix| {
            let header = SignedHeader::decode_known(prefix.header.clone(), &name.key.stripe)
                .map_err(|_| StoreError::Corrupt("not this stripe's header"))?;
            Ok((prefix, header.scheme))
        });
        match described {
            Ok((prefix, scheme)) => Some(Held {
                scheme,
                index: name.key.index,
                state: name.state,
                complete: name.complete,
                touched: prefix.touched,
                len: prefix.tree.shard_len() as u32,
            }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a damaged shard is set aside");
                self.set_aside(path);
                None
            }
        }
    }

    fn set_aside(&self, path: &Path) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
        if let Some(name) = path.file_name()
            && let Err(error) = fs::rename(path, self.folder.join("damaged").join(name))
        {
            tracing::error!(path = %path.display(), %error, "a damaged shard could not be set aside");
        }
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

    /// Renames a shard's file to say something new of it, durably, then tells the index.
    fn rename(&self, key: ShardKey, old: Held, new: Held) -> Result<(), StoreError> {
        let (from, to) = (Name::of(key, &old), Name::of(key, &new));
        let (from_path, to_path) = (self.path(&from), self.path(&to));
        let (from_folder, to_folder) = (folder_of(&from_path), folder_of(&to_path));
        make_folder(to_folder)?;
        let size = fs::metadata(&from_path)?.len();
        fs::rename(&from_path, &to_path)?;
        sync_folder(to_folder)?;
        if from_folder != to_folder {
            sync_folder(from_folder)?;
        }
        self.index.insert(&key.stripe, &new).map_err(index_failed)?;
        let mut usage = self.used();
        subtract_usage(&mut usage, old.state, size);
        add_usage(&mut usage, new.state, size);
        Ok(())
    }

    /// A read found damage in the file `damaged`: the shard leaves the store, so that it counts as missing. Not if someone
    /// else was faster, and perhaps a sound one is in its place.
    fn lose(&self, key: ShardKey, held: &Held, damaged: &File) {
        let _lock = self.lock(&key.stripe);
        let path = self.path(&Name::of(key, held));
        let size = match (fs::metadata(&path), damaged.metadata()) {
            (Ok(there), Ok(read)) if there.ino() == read.ino() => there.len(),
            _ => return,
        };
        self.set_aside(&path);
        if let Err(error) = self.index.remove(&key) {
            tracing::error!(%error, "a damaged shard could not be taken out of the index");
        }
        subtract_usage(&mut self.used(), held.state, size);
    }

    /// Opens a shard's file and checks all but the payload; damage sets the shard aside.
    fn open_checked(&self, key: ShardKey, held: &Held) -> Result<(File, Prefix), StoreError> {
        let path = self.path(&Name::of(key, held));
        let file = File::open(&path)?;
        let checked = Prefix::read(&file).and_then(|prefix| prefix.check(&key).map(|()| prefix));
        if let Err(StoreError::Corrupt(why)) = &checked {
            tracing::warn!(stripe = %key.stripe, index = key.index, why, "a damaged shard is set aside");
            self.lose(key, held, &file);
        }
        checked.map(|prefix| (file, prefix))
    }

    /// Reads from a shard that the index knows. One that was renamed since the index was asked is looked up once more.
    fn read_indexed(&self, key: ShardKey, range: Range<u64>) -> Result<ShardRead, StoreError> {
        let missing =
            |error: &StoreError| matches!(error, StoreError::Io(error) if error.kind() == io::ErrorKind::NotFound);
        match self.read_range(key, &self.held_one(key)?, range.clone()) {
            Err(error) if missing(&error) => self.read_range(key, &self.held_one(key)?, range),
            done => done,
        }
    }

    fn read_range(&self, key: ShardKey, held: &Held, range: Range<u64>) -> Result<ShardRead, StoreError> {
        let (file, prefix) = self.open_checked(key, held)?;
        let shard_len = prefix.tree.shard_len();
        if range.end > shard_len || range.start > range.end {
            return Err(StoreError::Range);
        }
        let range = if range.is_empty() { 0..shard_len } else { range };
        let wide = blocks::widen(range.start, range.end - range.start, shard_len);
        let mut data = vec![0; (wide.end - wide.start) as usize];
        let read = file.read_exact_at(&mut data, prefix.payload_at + wide.start);
        let sound = match read {
            Ok(()) => prefix.tree.check_range(wide.start, &data).map_err(|_| StoreError::Corrupt("payload")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(StoreError::Corrupt("payload truncated")),
            // What the disk cannot read is lost to us like damage, and is repaired like it.
            Err(error) => {
                tracing::error!(stripe = %key.stripe, index = key.index, %error, "the disk cannot read a shard");
                Err(StoreError::Corrupt("the disk cannot read it"))
            }
        };
        if let Err(error) = sound {
            self.lose(key, held, &file);
            return Err(error);
        }
        Ok(ShardRead { header: prefix.header, tree: prefix.tree, offset: wide.start, data: data.into() })
    }

    fn check_space(&self, incoming: u64) -> Result<(), StoreError> {
        let usage = *self.used();
        if usage.live + usage.trash + incoming > self.capacity {
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
            self.writer.create(&temporary, &[prefix, shard])?;
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
            Ok(held) if held.state == ShardState::Live => return Ok(false),
            Ok(held) => {
                self.rename(key, held, Held { state: ShardState::Live, ..held })?;
                return Ok(false);
            }
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
        Ok(true)
    }

    fn read(&self, key: ShardKey, range: Range<u64>) -> Result<ShardRead, StoreError> {
        let held = self.held_one(key)?;
        let read = self.read_indexed(key, range)?;
        if held.state != ShardState::Live {
            self.revive(key)?;
        }
        Ok(read)
    }

    fn header(&self, stripe: &StripeId) -> Result<SignedHeader, StoreError> {
        for held in self.held(stripe)? {
            let key = ShardKey { stripe: *stripe, index: held.index };
            match self.open_checked(key, &held) {
                Ok((_, prefix)) => {
                    return SignedHeader::decode_known(prefix.header, stripe)
                        .map_err(|_| StoreError::Corrupt("stripe header"));
                }
                Err(StoreError::Corrupt(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::NotFound)
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

    fn empty_trash(&self, running_ms: u64) -> Result<usize, StoreError> {
        let all: BTreeMap<ShardKey, Held> = self.index.all().map_err(index_failed)?;
        let mut emptied = 0;
        for (key, _) in all {
            let _lock = self.lock(&key.stripe);
            // Looked at again under the lock: it may have been revived meanwhile.
            let Ok(held) = self.held_one(key) else { continue };
            if let ShardState::Trash { until_ms } = held.state
                && until_ms <= running_ms
            {
                let path = self.path(&Name::of(key, &held));
                let size = fs::metadata(&path)?.len();
                fs::remove_file(&path)?;
                sync_folder(folder_of(&path))?;
                self.index.remove(&key).map_err(index_failed)?;
                subtract_usage(&mut self.used(), held.state, size);
                emptied += 1;
            }
        }
        Ok(emptied)
    }

    fn set_complete(&self, key: ShardKey) -> Result<(), StoreError> {
        let _lock = self.lock(&key.stripe);
        let held = self.held_one(key)?;
        if held.complete { Ok(()) } else { self.rename(key, held, Held { complete: true, ..held }) }
    }

    fn verify(&self, key: ShardKey) -> Result<u64, StoreError> {
        self.read_indexed(key, 0..0).map(|read| read.data.len() as u64)
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

/// The header's bytes of a shard file's beginning, for tests that damage it.
impl Prefix {
    fn check(&self, key: &ShardKey) -> Result<(), StoreError> {
        let header = SignedHeader::decode_known(self.header.clone(), &key.stripe)
            .map_err(|_| StoreError::Corrupt("not this stripe's header"))?;
        let root = header.shards.get(key.index).ok_or(StoreError::Corrupt("an index outside the scheme"))?;
        if self.index != key.index || self.tree.verify(root).is_err() {
            return Err(StoreError::Corrupt("chaining values"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
