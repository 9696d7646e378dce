//! What the kernel's questions come down to: finding, listing and reading in one state of the vault.
//!
//! Knows the kernel's words for errors and nothing else of it; deadlines are the caller's.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fuser::{Errno, FileAttr, FileHandle, FileType, INodeNo};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::inodes::{Attributes, Inode, Inodes, Owner};
use crate::session::{FileReader, Reader, SessionError};
use crate::vault::entry::{Entry, TARGET_LIMIT};
use crate::vault::path::{self, PathError};

/// What is read at once where a program reads on and on, in bytes.
const AHEAD: usize = 1 << 20;

/// Most open files that keep what was read ahead: memory stays bounded with any number of open files.
const WINDOWS: usize = 32;

/// Most entries of a directory that are gathered for one answer.
const PAGE: usize = 128;

/// Longest name that the kernel takes, in bytes; one that is longer would spoil its whole directory.
const NAME_LIMIT: usize = 1024;

/// What stands for a number that the kernel was not told yet; it asks for the name if it wants to know.
const UNKNOWN: INodeNo = INodeNo(0xffff_ffff);

/// Things that the kernel has open.
struct Handles<T> {
    open: HashMap<u64, Arc<T>>,
    next: u64,
}

impl<T> Handles<T> {
    fn new() -> Self {
        Self { open: HashMap::new(), next: 1 }
    }

    fn add(&mut self, item: T) -> FileHandle {
        let number = self.next;
        self.next += 1;
        self.open.insert(number, Arc::new(item));
        FileHandle(number)
    }
}

/// An open file.
pub(super) struct OpenFile {
    file: FileReader,
    window: tokio::sync::Mutex<Window>,
}

/// What was read ahead of a file, and where its reader is expected next.
#[derive(Default)]
struct Window {
    start: u64,
    bytes: Bytes,
    expected: u64,
    permit: Option<OwnedSemaphorePermit>,
}

impl Window {
    /// The asked bytes, if all of them are here.
    fn cut(&self, offset: u64, end: u64) -> Option<Bytes> {
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        let to = usize::try_from(end.checked_sub(self.start)?).ok()?;
        (from <= to && to <= self.bytes.len()).then(|| self.bytes.slice(from..to))
    }
}

/// An open directory, and where its reader has come to.
pub(super) struct OpenDir {
    key: Bytes,
    position: Mutex<(u64, Bytes)>,
}

/// A line of a directory.
pub(super) struct Line {
    /// The position after it.
    pub(super) offset: u64,
    pub(super) name: Bytes,
    pub(super) kind: FileType,
    /// Its key, where to go on after it, and what `stat` tells; none for `.` and `..`.
    listed: Option<(Bytes, Bytes, Attributes)>,
    ino: INodeNo,
}

/// One state of a vault with what the kernel knows of it.
pub(super) struct Tree {
    reader: Reader,
    owner: Owner,
    inodes: Mutex<Inodes>,
    files: Mutex<Handles<OpenFile>>,
    dirs: Mutex<Handles<OpenDir>>,
    windows: Arc<Semaphore>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn errno(error: SessionError) -> Errno {
    match error {
        SessionError::Path(PathError::TooLong(_)) => Errno::ENAMETOOLONG,
        // The tree has no such key.
        SessionError::Path(_) => Errno::ENOENT,
        error => {
            tracing::warn!(%error, "a request of the mount failed");
            Errno::EIO
        }
    }
}

/// Whether a file system can have the name.
fn showable(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && name.len() <= NAME_LIMIT && !name.contains(&0)
}

/// The first key after one that a listing gave, and after all that is in it.
fn after(key: &[u8]) -> Bytes {
    if key.ends_with(b"/") { path::after_prefix(key).unwrap_or_default() } else { [key, b"\0"].concat().into() }
}

impl Tree {
    pub(super) fn new(reader: Reader, owner: Owner) -> Self {
        Self {
            reader,
            owner,
            inodes: Mutex::new(Inodes::new()),
            files: Mutex::new(Handles::new()),
            dirs: Mutex::new(Handles::new()),
            windows: Arc::new(Semaphore::new(WINDOWS)),
        }
    }

    fn inode(&self, ino: INodeNo) -> Result<Inode, Errno> {
        lock(&self.inodes).get(ino).cloned().ok_or(Errno::ESTALE)
    }

    async fn entry(&self, ino: INodeNo) -> Result<Entry, Errno> {
        let inode = self.inode(ino)?;
        self.reader.get(&inode.key).await.map_err(errno)?.ok_or(Errno::ENOENT)
    }

    pub(super) fn stat(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        Ok(self.inode(ino)?.attributes.to_stat(ino, self.owner))
    }

    pub(super) fn forget(&self, ino: INodeNo, times: u64) {
        lock(&self.inodes).forget(ino, times);
    }

    /// The named thing in a directory; the kernel is told of it once more.
    pub(super) async fn find(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let inode = self.inode(parent)?;
        if inode.attributes.kind != FileType::Directory {
            return Err(Errno::ENOTDIR);
        }
        let path = [&inode.key, name.as_bytes()].concat();
        let (key, entry) = self.reader.lookup(path).await.map_err(errno)?.ok_or(Errno::ENOENT)?;
        let attributes = Attributes::of(&entry).ok_or(Errno::ENOENT)?;
        let ino = lock(&self.inodes).remember(&key, attributes);
        Ok(attributes.to_stat(ino, self.owner))
    }

    pub(super) async fn link_target(&self, ino: INodeNo) -> Result<Bytes, Errno> {
        let entry = self.entry(ino).await?;
        self.reader.open(entry).read_at(0, TARGET_LIMIT).await.map_err(errno)
    }

    pub(super) async fn open_file(&self, ino: INodeNo) -> Result<FileHandle, Errno> {
        let entry = self.entry(ino).await?;
        let file = OpenFile { file: self.reader.open(entry), window: tokio::sync::Mutex::default() };
        Ok(lock(&self.files).add(file))
    }

    pub(super) fn file(&self, handle: FileHandle) -> Result<Arc<OpenFile>, Errno> {
        lock(&self.files).open.get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    pub(super) fn close_file(&self, handle: FileHandle) {
        lock(&self.files).open.remove(&handle.0);
    }

    pub(super) async fn read(&self, file: &OpenFile, offset: u64, len: usize) -> Result<Bytes, Errno> {
        let size = file.file.size();
        let end = offset.saturating_add(len as u64).min(size);
        if offset >= end {
            return Ok(Bytes::new());
        }
        let mut window = file.window.lock().await;
        if let Some(bytes) = window.cut(offset, end) {
            window.expected = window.expected.max(end);
            if end == size {
                *window = Window { expected: end, ..Window::default() };
            }
            return Ok(bytes);
        }
        // The kernel asks for neighbouring parts at the same time, and they come in any order.
        let reads_on = (window.expected..=window.expected.saturating_add(AHEAD as u64)).contains(&offset);
        window.expected = end;
        if reads_on && window.permit.is_none() {
            window.permit = self.windows.clone().try_acquire_owned().ok();
        }
        if !reads_on || window.permit.is_none() {
            *window = Window { expected: end, ..Window::default() };
            drop(window);
            return file.file.read_at(offset, len).await.map_err(errno);
        }
        // Who reads the next part waits here for this one, and finds it.
        let bytes = file.file.read_at(offset, len.max(AHEAD)).await.map_err(errno)?;
        window.start = offset;
        window.bytes = bytes;
        window.cut(offset, end).ok_or(Errno::EIO)
    }

    pub(super) fn open_dir(&self, ino: INodeNo) -> Result<FileHandle, Errno> {
        let inode = self.inode(ino)?;
        if inode.attributes.kind != FileType::Directory {
            return Err(Errno::ENOTDIR);
        }
        let position = Mutex::new((FIRST_LISTED, inode.key.clone()));
        Ok(lock(&self.dirs).add(OpenDir { key: inode.key, position }))
    }

    pub(super) fn dir(&self, handle: FileHandle) -> Result<Arc<OpenDir>, Errno> {
        lock(&self.dirs).open.get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    pub(super) fn close_dir(&self, handle: FileHandle) {
        lock(&self.dirs).open.remove(&handle.0);
    }

    /// The lines of a directory after the position `offset`, some of them; none after the last.
    pub(super) async fn lines(&self, dir: &OpenDir, offset: u64) -> Result<Vec<Line>, Errno> {
        let mut lines = Vec::new();
        if offset < FIRST_LISTED {
            lines.extend(self.dots(dir).into_iter().skip(offset as usize));
        }
        let wanted = offset.max(FIRST_LISTED);
        let (mut at, from) = {
            let position = lock(&dir.position);
            // Who went back reads again from the start.
            if position.0 == wanted { position.clone() } else { (FIRST_LISTED, dir.key.clone()) }
        };
        let mut listing = self.reader.list_from(&dir.key, from).map_err(errno)?;
        while lines.len() < PAGE
            && let Some(listed) = listing.next().await.map_err(errno)?
        {
            let entry = listed.entry.unwrap_or_else(Entry::dir);
            let name = path::name(&listed.key);
            let Some(attributes) = Attributes::of(&entry).filter(|_| showable(name)) else { continue };
            at += 1;
            if at > wanted {
                let (name, next) = (listed.key.slice_ref(name), after(&listed.key));
                let ino = lock(&self.inodes).number(&listed.key).unwrap_or(UNKNOWN);
                let listed = Some((listed.key, next, attributes));
                lines.push(Line { offset: at, name, kind: attributes.kind, listed, ino });
            }
        }
        Ok(lines)
    }

    fn dots(&self, dir: &OpenDir) -> [Line; 2] {
        let inodes = lock(&self.inodes);
        let line = |offset, name, key: &[u8]| Line {
            offset,
            name: Bytes::from_static(name),
            kind: FileType::Directory,
            listed: None,
            ino: inodes.number(key).unwrap_or(UNKNOWN),
        };
        [line(1, b".", &dir.key), line(FIRST_LISTED, b"..", path::parent(&dir.key))]
    }

    /// The line was given to the kernel: the next question is about what comes after it.
    pub(super) fn passed(&self, dir: &OpenDir, line: &Line) {
        if let Some((_, next, _)) = &line.listed {
            *lock(&dir.position) = (line.offset, next.clone());
        }
    }

    /// What `stat` tells of a line; the kernel is told of it once more, of `.` and `..` not.
    pub(super) fn stat_line(&self, line: &Line) -> Result<FileAttr, Errno> {
        match &line.listed {
            Some((key, _, attributes)) => {
                let ino = lock(&self.inodes).remember(key, *attributes);
                Ok(attributes.to_stat(ino, self.owner))
            }
            None => self.stat(INodeNo::ROOT).map(|root| FileAttr { ino: line.ino, ..root }),
        }
    }
}

impl Line {
    /// The line's number, as far as it is known.
    pub(super) fn number(&self) -> INodeNo {
        self.ino
    }

    /// Whether the kernel counts having been told of it.
    pub(super) fn is_counted(&self) -> bool {
        self.listed.is_some()
    }
}

/// The position after `.` and `..`.
const FIRST_LISTED: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_give_what_they_hold() {
        let window = Window { start: 10, bytes: Bytes::from_static(b"abcdef"), ..Window::default() };
        assert_eq!(window.cut(10, 16).as_deref(), Some(&b"abcdef"[..]));
        assert_eq!(window.cut(12, 14).as_deref(), Some(&b"cd"[..]));
        assert_eq!(window.cut(9, 12), None);
        assert_eq!(window.cut(12, 17), None);
    }

    #[test]
    fn names_and_keys() {
        assert!(showable(b"cat.jpg") && showable(&[0xff]));
        for bad in [&b""[..], b".", b"..", b"a\0", &[b'x'; NAME_LIMIT + 1]] {
            assert!(!showable(bad), "{bad:?}");
        }
        assert_eq!(after(b"a/b"), &b"a/b\0"[..]);
        assert_eq!(after(b"a/b/"), &b"a/b0"[..]);
    }
}
