//! Changing a vault: files are uploaded as they come, and become visible all at once when the writer commits.
//!
//! Until then nobody sees anything: a writer that is dropped leaves stripes that nothing points to, and the vault as it
//! was.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::io::AsyncRead;

use super::home::WriterLock;
use super::upload::Upload;
use super::{Progress, Session, SessionError, State};
use crate::vault::entry::Entry;
use crate::vault::merge::Conflict;
use crate::vault::tree::Root;

/// What a file has beside its bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meta {
    /// Unix permission bits; 0 where unknown.
    pub mode: u32,
    /// Last modification, nanoseconds since 1970; 0 where unknown.
    pub mtime_ns: i64,
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

/// A commit that was acknowledged.
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

/// The one writer of a vault on this machine.
pub struct Writer {
    pub(super) session: Session,
    pub(super) _lock: WriterLock,
    /// The state that changes are made to.
    pub(super) base: State,
    /// The tree with the changes that were folded in.
    pub(super) root: Root,
    /// Changes not in the tree yet.
    pub(super) changes: BTreeMap<Bytes, Option<Entry>>,
    pub(super) upload: Upload,
    pub(super) conflicts: Vec<Conflict>,
}

impl Writer {
    /// The state that this writer began with, or that it committed last.
    #[must_use]
    pub fn base(&self) -> &State {
        &self.base
    }

    /// The entry at exactly this key, with the changes made so far: to see whether a file is as it was.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Entry>, SessionError> {
        let _ = key;
        Err(SessionError::Internal(String::new()))
    }

    /// Uploads a file and puts it at `key` ([`crate::vault::path::file`]).
    pub async fn put_file(
        &mut self,
        key: Bytes,
        meta: Meta,
        source: impl AsyncRead + Unpin + Send,
        progress: &Progress,
    ) -> Result<Stored, SessionError> {
        let _ = (key, meta, source, progress);
        Err(SessionError::Internal(String::new()))
    }

    /// Puts an entry at `key`: a directory's ends in `/`.
    pub async fn put_entry(&mut self, key: Bytes, entry: Entry) -> Result<(), SessionError> {
        let _ = (key, entry);
        Err(SessionError::Internal(String::new()))
    }

    /// Removes a file, or a directory: one that is not empty only with `recursive`. Says how many entries that were.
    pub async fn remove(&mut self, path: impl AsRef<[u8]>, recursive: bool) -> Result<u64, SessionError> {
        let _ = (path.as_ref(), recursive);
        Err(SessionError::Internal(String::new()))
    }

    /// Renames a file or a directory with all that is in it; a file at `to` is replaced. Says how many entries moved.
    pub async fn rename(&mut self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<u64, SessionError> {
        let _ = (from.as_ref(), to.as_ref());
        Err(SessionError::Internal(String::new()))
    }

    /// Copies a file or a directory with all that is in it, without moving a byte. Says how many entries were copied.
    pub async fn copy(&mut self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<u64, SessionError> {
        let _ = (from.as_ref(), to.as_ref());
        Err(SessionError::Internal(String::new()))
    }

    /// Commits what was changed so far and goes on: for long uploads, every ten minutes.
    pub async fn checkpoint(&mut self, progress: &Progress) -> Result<Committed, SessionError> {
        let _ = progress;
        Err(SessionError::Internal(String::new()))
    }

    /// Commits: all changes are visible to everyone when this returns.
    pub async fn commit(mut self) -> Result<Committed, SessionError> {
        self.checkpoint(&Progress::default()).await
    }
}
