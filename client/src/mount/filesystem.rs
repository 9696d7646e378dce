//! The kernel's questions, answered off its thread: each in a task with a deadline, a bounded number at once.
//!
//! Everything that would change something is refused as on a read-only file system.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use super::tree::Tree;

/// Most requests that are worked on at once.
const AT_ONCE: usize = 64;

/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long the kernel may rely on an answer: what is mounted does not change.
const VALID: Duration = Duration::from_secs(24 * 60 * 60);

/// Bytes in a block, as the whole's size is told.
const BLOCK: u32 = 4096;

/// Longest name that is told to programs, in bytes.
const NAME_MAX: u32 = 255;

/// How much there is in all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Totals {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// A state of a vault as the kernel sees it.
pub(super) struct Mounted {
    tree: Arc<Tree>,
    totals: Totals,
    runtime: Handle,
    permits: Arc<Semaphore>,
    /// Dropped at the end of the mount.
    ended: Option<oneshot::Sender<()>>,
}

impl Mounted {
    /// `ended` is dropped when the file system is no longer mounted.
    pub(super) fn new(tree: Tree, totals: Totals, runtime: Handle, ended: oneshot::Sender<()>) -> Self {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        Self { tree: Arc::new(tree), totals, runtime, permits, ended: Some(ended) }
    }

    /// Works on a request in a task of its own; while too many are under way, the kernel waits.
    fn answer<T, W>(&self, what: &'static str, work: W, reply: impl FnOnce(Result<T, Errno>) + Send + 'static)
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Errno>> + Send + 'static,
    {
        let Ok(permit) = self.runtime.block_on(self.permits.clone().acquire_owned()) else {
            return reply(Err(Errno::EIO));
        };
        self.runtime.spawn(async move {
            let done = tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| {
                tracing::warn!(what, "a request of the mount took too long");
                Err(Errno::EIO)
            });
            reply(done);
            drop(permit);
        });
    }
}

impl Filesystem for Mounted {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // A directory's entries come with all that `stat` tells: then nothing more is asked about them. Old kernels
        // cannot, and ask.
        let _ = config.add_capabilities(InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO);
        Ok(())
    }

    fn destroy(&mut self) {
        self.ended = None;
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (tree, name) = (self.tree.clone(), name.to_owned());
        let work = async move { tree.find(parent, &name).await };
        self.answer("lookup", work, |found| match found {
            Ok(stat) => reply.entry(&VALID, &stat, Generation(0)),
            Err(error) => reply.error(error),
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, times: u64) {
        self.tree.forget(ino, times);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree.stat(ino) {
            Ok(stat) => reply.attr(&VALID, &stat),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let tree = self.tree.clone();
        let work = async move { tree.link_target(ino).await };
        self.answer("readlink", work, |target| match target {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let tree = self.tree.clone();
        let work = async move { tree.open_file(ino).await };
        self.answer("open", work, |handle| match handle {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error),
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let tree = self.tree.clone();
        let work = async move { tree.read(&*tree.file(handle)?, offset, size as usize).await };
        self.answer("read", work, |bytes| match bytes {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.tree.close_file(handle);
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.tree.open_dir(ino) {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let dir = match self.tree.dir(handle) {
            Ok(dir) => dir,
            Err(error) => return reply.error(error),
        };
        let (tree, opened) = (self.tree.clone(), dir.clone());
        let work = async move { tree.lines(&opened, offset).await };
        let tree = self.tree.clone();
        self.answer("readdir", work, move |lines| {
            let lines = match lines {
                Ok(lines) => lines,
                Err(error) => return reply.error(error),
            };
            for line in lines {
                if reply.add(line.number(), line.offset, line.kind, OsStr::from_bytes(&line.name)) {
                    break;
                }
                tree.passed(&dir, &line);
            }
            reply.ok();
        });
    }

    fn readdirplus(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let dir = match self.tree.dir(handle) {
            Ok(dir) => dir,
            Err(error) => return reply.error(error),
        };
        let (tree, opened) = (self.tree.clone(), dir.clone());
        let work = async move { tree.lines(&opened, offset).await };
        let tree = self.tree.clone();
        self.answer("readdir", work, move |lines| {
            let lines = match lines {
                Ok(lines) => lines,
                Err(error) => return reply.error(error),
            };
            for line in lines {
                let stat = match tree.stat_line(&line) {
                    Ok(stat) => stat,
                    Err(error) => return reply.error(error),
                };
                let name = OsStr::from_bytes(&line.name);
                if reply.add(stat.ino, line.offset, name, &VALID, &stat, Generation(0)) {
                    // It did not fit: the kernel is not told of it.
                    if line.is_counted() {
                        tree.forget(stat.ino, 1);
                    }
                    break;
                }
                tree.passed(&dir, &line);
            }
            reply.ok();
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.tree.close_dir(handle);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = self.totals.bytes.div_ceil(BLOCK.into());
        reply.statfs(blocks, 0, 0, self.totals.files, 0, BLOCK, NAME_MAX, BLOCK);
    }

    // There are no extended attributes: after this answer the kernel asks no more.
    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    // What follows the kernel refuses itself, as it knows that the mount is read-only; unless somebody remounts it.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }
}
