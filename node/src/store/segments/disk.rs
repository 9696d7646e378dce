//! What the store needs of a disk: files of one folder, written in whole blocks and synced.
//!
//! The real one is a folder of the file system. The other ([`faults`]) is memory that keeps apart what was written and
//! what was synced, and fails as disks do; the store is tested on it.

pub mod faults;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use potluck_proto::buffers::Pool;

use crate::durable;
use crate::store::unbuffered;

/// The folder of the store in a node's data folder.
pub const STORE_FOLDER: &str = "store";

/// The folder of the index in the store's folder.
pub const INDEX_FOLDER: &str = "index";

/// The file in the store's folder that keeps a second process out.
const LOCK: &str = "lock";

/// Space on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that can still be written.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Files of one folder. All calls block.
pub trait Disk: Send + Sync + 'static {
    /// Makes a new file, whose length is `room` bytes, zeros, with space set aside for them where the disk can. The name
    /// lasts once the folder is synced.
    fn create(&self, name: &str, room: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file to read and sync it. It can be read as long as it is open, also when its name is gone.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Names of the files, in order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Gives a file another name, over one that may be there.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Cuts a file that is not being written to `len` bytes; lasts once it was synced.
    fn cut(&self, name: &str, len: u64) -> io::Result<()>;
    /// Takes a file's name away.
    fn unlink(&self, name: &str) -> io::Result<()>;
    /// Makes names last: those created, renamed, unlinked.
    fn sync_folder(&self) -> io::Result<()>;
    /// Space on the disk.
    fn space(&self) -> io::Result<Space>;
    /// Buffers that the disk writes as they lie.
    fn pool(&self) -> &Pool;
    /// How files are written, for the operator.
    fn describe(&self) -> &'static str;
}

/// A file of a [`Disk`].
pub trait DiskFile: Send + Sync {
    /// Writes `parts` one after the other from `offset` on, a multiple of a block, and so is their length in all. By one
    /// writer at a time. After an error any part of them may have been written.
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()>;
    /// Reads a range, less where the file ends.
    fn read_at(&self, range: Range<u64>) -> io::Result<Bytes>;
    /// Makes last what was written. After an error it is not known what does, also when a later call succeeds.
    fn sync_data(&self) -> io::Result<()>;
    /// The file's length, in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts the file, or adds zeros. Lasts once synced.
    fn set_len(&self, len: u64) -> io::Result<()>;
}

/// How often the lock is tried again, and the time between two tries: half a second in all.
const LOCK_TRIES: u32 = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A folder of the file system, past the page cache where it can. A second process is kept out of it while this lives.
pub struct FolderDisk {
    folder: PathBuf,
    disk: Arc<unbuffered::Disk>,
    /// Held, never read: closing the file ends the lock.
    _lock: Option<File>,
}

struct FolderFile {
    file: File,
    disk: Arc<unbuffered::Disk>,
}

impl FolderDisk {
    /// Makes the folder if it is not there, locks it, and tries what its file system can do. An error of the kind
    /// [`io::ErrorKind::WouldBlock`] says that another process has it.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        if let Some(parent) = folder.parent() {
            durable::sync_folder(parent)?;
        }
        let lock = File::options().create(true).truncate(false).write(true).open(folder.join(LOCK))?;
        locked(folder, || lock.try_lock())?;
        Ok(Self { folder: folder.into(), disk: Arc::new(unbuffered::Disk::new(folder)?), _lock: Some(lock) })
    }

    /// To look at a folder in which nothing is to change: it is not made, and nothing is tried out by writing. Others may
    /// look at the same time; a process that writes is kept out, or keeps this one out, as with [`FolderDisk::open`].
    pub fn open_to_read(folder: &Path) -> io::Result<Self> {
        let lock = match File::open(folder.join(LOCK)) {
            // Nobody has ever locked it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            file => Some(file?),
        };
        if let Some(lock) = &lock {
            locked(folder, || lock.try_lock_shared())?;
        }
        let mut files = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
        let sample = files.find(|path| path.is_file() && path.file_name().is_some_and(|name| name != LOCK));
        let disk = unbuffered::Disk::to_read(sample.as_deref());
        Ok(Self { folder: folder.into(), disk: Arc::new(disk), _lock: lock })
    }
}

/// Takes the lock, and waits a moment for a process that is just ending.
fn locked(folder: &Path, mut lock: impl FnMut() -> Result<(), TryLockError>) -> io::Result<()> {
    let mut tried = lock();
    for _ in 0..LOCK_TRIES {
        if !matches!(tried, Err(TryLockError::WouldBlock)) {
            break;
        }
        std::thread::sleep(LOCK_PAUSE);
        tried = lock();
    }
    match tried {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let text = format!("{} is in use by another process: stop that one first", folder.display());
            Err(io::Error::new(io::ErrorKind::WouldBlock, text))
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

impl Disk for FolderDisk {
    fn create(&self, name: &str, room: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.create(&self.folder.join(name), room)?;
        Ok(Arc::new(FolderFile { file, disk: self.disk.clone() }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(&self.folder.join(name))?;
        Ok(Arc::new(FolderFile { file, disk: self.disk.clone() }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            // Names of ours are plain; what is not is not ours.
            names.extend(entry?.file_name().into_string().ok().filter(|name| name != LOCK));
        }
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.folder.join(from), self.folder.join(to))
    }

    fn cut(&self, name: &str, len: u64) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.folder.join(name))?.set_len(len)
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.folder.join(name))
    }

    fn sync_folder(&self) -> io::Result<()> {
        durable::sync_folder(&self.folder)
    }

    fn space(&self) -> io::Result<Space> {
        let disk = rustix::fs::statvfs(&self.folder)?;
        Ok(Space { free: disk.f_bavail * disk.f_frsize, total: disk.f_blocks * disk.f_frsize })
    }

    fn pool(&self) -> &Pool {
        self.disk.pool()
    }

    fn describe(&self) -> &'static str {
        if self.disk.is_direct() { "past the page cache" } else { "through the page cache" }
    }
}

impl DiskFile for FolderFile {
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.disk.write_at(&self.file, offset, parts)
    }

    fn read_at(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.disk.read(&self.file, range)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

/// Replaces a small file whole; durable when it returns.
pub fn replace(disk: &dyn Disk, name: &str, contents: &[u8]) -> io::Result<()> {
    let beside = format!("{name}.new");
    match disk.unlink(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(&beside, contents.len() as u64)?;
    file.write_at(0, &[contents])?;
    file.sync_data()?;
    disk.rename(&beside, name)?;
    disk.sync_folder()
}

#[cfg(test)]
mod tests {
    use super::faults::{Faults, FaultyDisk};
    use super::*;
    use crate::store::segments::format::BLOCK;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
        bytes
    }

    /// The two disks do the same where nothing fails.
    #[test]
    fn files_are_written_read_cut_renamed_and_unlinked() {
        let folder = tempfile::tempdir().unwrap();
        let real = FolderDisk::open(&folder.path().join("segments")).unwrap();
        let double = FaultyDisk::new(1, 1 << 30, Faults::default());
        for disk in [&real as &dyn Disk, &double] {
            let file = disk.create("a", 16 * BLOCK as u64).unwrap();
            assert_eq!(file.len().unwrap(), 16 * BLOCK as u64);
            assert!(disk.create("a", 0).is_err());
            let bytes = noise(5 * BLOCK);
            // As it lies, and by way of a buffer.
            let mut aligned = disk.pool().take(2 * BLOCK);
            aligned.copy_from_slice(&bytes[..2 * BLOCK]);
            file.write_at(0, &[&aligned]).unwrap();
            file.write_at(2 * BLOCK as u64, &[&bytes[2 * BLOCK..2 * BLOCK + 7], &bytes[2 * BLOCK + 7..]]).unwrap();
            file.sync_data().unwrap();
            disk.rename("a", "b").unwrap();
            disk.sync_folder().unwrap();
            assert_eq!(disk.list().unwrap(), ["b"]);
            let read = disk.open("b").unwrap();
            assert_eq!(read.read_at(0..5 * BLOCK as u64).unwrap(), bytes);
            assert_eq!(read.read_at(5000..9001).unwrap(), bytes[5000..9001]);
            assert_eq!(read.read_at(5 * BLOCK as u64..6 * BLOCK as u64).unwrap(), vec![0; BLOCK]);
            file.set_len(4 * BLOCK as u64).unwrap();
            disk.cut("b", 3 * BLOCK as u64).unwrap();
            assert_eq!(read.read_at(0..1 << 20).unwrap().len(), 3 * BLOCK);
            disk.unlink("b").unwrap();
            assert_eq!(read.read_at(1..2).unwrap(), bytes[1..2]);
            assert_eq!(disk.open("b").err().unwrap().kind(), io::ErrorKind::NotFound);
            replace(disk, "small", &noise(BLOCK)).unwrap();
            replace(disk, "small", &bytes[..BLOCK]).unwrap();
            assert_eq!(disk.list().unwrap(), ["small"]);
            assert!(disk.space().unwrap().free > 0);
        }
    }

    #[test]
    fn a_folder_has_one_writer_or_many_readers() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("store");
        assert_eq!(FolderDisk::open_to_read(&folder).err().unwrap().kind(), io::ErrorKind::NotFound);
        let writer = FolderDisk::open(&folder).unwrap();
        for second in [FolderDisk::open(&folder), FolderDisk::open_to_read(&folder)] {
            let error = second.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert!(error.to_string().contains("in use by another process"), "{error}");
        }
        replace(&writer, "a", &noise(BLOCK)).unwrap();
        let direct = writer.describe();
        drop(writer);
        let readers = [FolderDisk::open_to_read(&folder).unwrap(), FolderDisk::open_to_read(&folder).unwrap()];
        assert_eq!(readers[0].describe(), direct);
        assert_eq!(readers[1].open("a").unwrap().read_at(0..BLOCK as u64).unwrap(), noise(BLOCK));
        assert_eq!(FolderDisk::open(&folder).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(readers);
        FolderDisk::open(&folder).unwrap();
    }
}
