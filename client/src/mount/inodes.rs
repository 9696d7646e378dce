//! Numbers for what the kernel knows of: a key of the vault for each, kept as long as the kernel remembers the number.
//!
//! Keeps no contents and asks nobody; what a number stands for never changes, and no number is given twice.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fuser::{FileAttr, FileType, INodeNo};

use crate::vault::entry::{Entry, Kind};

/// What programs are told to read at once, in bytes: as much as the kernel asks for in one request.
const READ_SIZE: u32 = 128 << 10;

/// Bytes in a block, as `stat` counts them.
const BLOCK: u64 = 512;

/// Permissions that are shown: never set-user-id.
const MODE_MASK: u32 = 0o777;

/// Whose the files appear to be: the mountpoint's owner.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// What `stat` tells of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) kind: FileType,
    size: u64,
    mode: u16,
    mtime_ns: i64,
}

impl Attributes {
    /// The root's, which has no entry.
    const ROOT: Self = Self { kind: FileType::Directory, size: 0, mode: 0o755, mtime_ns: 0 };

    /// An entry's; `None` for a kind of a newer version, which cannot be shown.
    pub(super) fn of(entry: &Entry) -> Option<Self> {
        let (kind, mode) = match entry.kind {
            Kind::File => (FileType::RegularFile, 0o644),
            Kind::Dir => (FileType::Directory, 0o755),
            Kind::Symlink => (FileType::Symlink, 0o777),
            Kind::Other(_) => return None,
        };
        let known = (entry.mode & MODE_MASK) as u16;
        let mode = if entry.mode == 0 || kind == FileType::Symlink { mode } else { known };
        Some(Self { kind, size: entry.size, mode, mtime_ns: entry.mtime_ns })
    }

    /// As the kernel wants them.
    pub(super) fn to_stat(self, ino: INodeNo, owner: Owner) -> FileAttr {
        let since = Duration::from_nanos(self.mtime_ns.unsigned_abs());
        let time = if self.mtime_ns < 0 { UNIX_EPOCH.checked_sub(since) } else { UNIX_EPOCH.checked_add(since) };
        let time: SystemTime = time.unwrap_or(UNIX_EPOCH);
        FileAttr {
            ino,
            size: self.size,
            blocks: self.size.div_ceil(BLOCK),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: self.kind,
            perm: self.mode,
            nlink: if self.kind == FileType::Directory { 2 } else { 1 },
            uid: owner.uid,
            gid: owner.gid,
            rdev: 0,
            blksize: READ_SIZE,
            flags: 0,
        }
    }
}

/// What a number stands for.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) key: Bytes,
    pub(super) attributes: Attributes,
    lookups: u64,
}

/// All numbers that the kernel remembers, and the root's.
#[derive(Debug)]
pub(super) struct Inodes {
    by_number: HashMap<u64, Inode>,
    by_key: HashMap<Bytes, u64>,
    next: u64,
}

impl Inodes {
    /// The table with the root alone.
    pub(super) fn new() -> Self {
        let ino = INodeNo::ROOT.0;
        // The kernel never looks the root up, and it is never forgotten.
        let inode = Inode { key: Bytes::new(), attributes: Attributes::ROOT, lookups: 1 };
        Self { by_number: HashMap::from([(ino, inode)]), by_key: HashMap::from([(Bytes::new(), ino)]), next: ino + 1 }
    }

    /// What the number stands for, if the kernel may still use it.
    pub(super) fn get(&self, ino: INodeNo) -> Option<&Inode> {
        self.by_number.get(&ino.0)
    }

    /// The number of a key that has one.
    pub(super) fn number(&self, key: &[u8]) -> Option<INodeNo> {
        self.by_key.get(key).copied().map(INodeNo)
    }

    /// The key's number, old or new; the kernel is about to be told of it once more.
    pub(super) fn remember(&mut self, key: &Bytes, attributes: Attributes) -> INodeNo {
        let ino = match self.by_key.get(key) {
            Some(&ino) => ino,
            None => {
                let ino = self.next;
                self.next += 1;
                self.by_key.insert(key.clone(), ino);
                ino
            }
        };
        let inode = self.by_number.entry(ino).or_insert_with(|| Inode { key: key.clone(), attributes, lookups: 0 });
        inode.lookups = inode.lookups.saturating_add(1);
        INodeNo(ino)
    }

    /// The kernel forgets having been told of the number `times` times.
    pub(super) fn forget(&mut self, ino: INodeNo, times: u64) {
        if ino == INodeNo::ROOT {
            return;
        }
        let Some(inode) = self.by_number.get_mut(&ino.0) else { return };
        inode.lookups = inode.lookups.saturating_sub(times);
        if inode.lookups == 0
            && let Some(inode) = self.by_number.remove(&ino.0)
        {
            self.by_key.remove(&inode.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_live_as_long_as_the_kernel_knows_them() {
        let (mut inodes, file) = (Inodes::new(), Attributes::of(&Entry::symlink("x")).unwrap());
        let key = Bytes::from_static(b"a/b");
        let ino = inodes.remember(&key, file);
        assert_eq!(inodes.remember(&key, file), ino);
        assert_ne!(ino, INodeNo::ROOT);
        inodes.forget(ino, 1);
        assert_eq!(inodes.get(ino).map(|inode| &inode.key), Some(&key));
        inodes.forget(ino, 1);
        assert!(inodes.get(ino).is_none() && inodes.number(&key).is_none());
        assert_ne!(inodes.remember(&key, file), ino, "a number is never given twice");
    }

    #[test]
    fn the_root_stays() {
        let mut inodes = Inodes::new();
        inodes.forget(INodeNo::ROOT, u64::MAX);
        assert_eq!(inodes.number(b""), Some(INodeNo::ROOT));
        assert!(inodes.get(INodeNo::ROOT).is_some());
    }

    #[test]
    fn what_stat_tells() {
        let owner = Owner { uid: 7, gid: 8 };
        let entry = Entry { mode: 0o104_755, mtime_ns: -1_500_000_000, ..Entry::inline(Kind::File, "12345") };
        let stat = Attributes::of(&entry).unwrap().to_stat(INodeNo(9), owner);
        assert_eq!((stat.size, stat.blocks, stat.perm, stat.uid, stat.gid), (5, 1, 0o755, 7, 8));
        assert_eq!(UNIX_EPOCH.duration_since(stat.mtime).unwrap(), Duration::from_millis(1500));
        assert_eq!(Attributes::of(&Entry::dir()), Some(Attributes::ROOT));
        assert_eq!(Attributes::of(&Entry { kind: Kind::Other(9), ..Entry::dir() }), None);
    }
}
