//! Reading one state of a vault: looking up, listing, opening files. Nothing here changes anything.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use potluck_proto::id::{ChunkId, Digest};

use super::file::FileReader;
use super::{Inner, Session, SessionError, State};
use crate::vault::entry::Entry;
use crate::vault::path;
use crate::vault::pointer::PendingPointer;
use crate::vault::tree::{self, Listed, Root};
use crate::vault::{NodeStore, StoredObject, VaultError};

/// A state opened for reading. Clones are handles to the same.
#[derive(Clone)]
pub struct Reader {
    pub(super) inner: Arc<Inner>,
    root: Root,
    overlay: Arc<HashMap<Digest, Bytes>>,
}

impl Session {
    /// Opens a state for reading. It stays as it is while others write.
    #[must_use]
    pub fn reader(&self, state: &State) -> Reader {
        Reader { inner: self.inner.clone(), root: state.root.clone(), overlay: state.overlay.clone() }
    }
}

impl NodeStore for Reader {
    async fn load(&self, pointer: &PendingPointer) -> Result<Bytes, VaultError> {
        match self.overlay.get(&pointer.hash) {
            Some(bytes) => Ok(bytes.clone()),
            None => self.inner.fetcher.object(&pointer.sealed()?).await,
        }
    }

    async fn store(&mut self, _: &dyn StoredObject) -> Result<(ChunkId, PendingPointer), VaultError> {
        Err(SessionError::Internal("a reader was asked to write".into()).into())
    }
}

impl Reader {
    /// What people mean by a path: the file there, else the directory. The key comes with it (a directory's ends in
    /// `/`, the root's is empty); a directory that only its contents imply gets a plain entry.
    pub async fn lookup(&self, path: impl AsRef<[u8]>) -> Result<Option<(Bytes, Entry)>, SessionError> {
        let found = tree::lookup(self, &self.inner.keys, &self.root, path).await?;
        Ok(found.map(|(key, entry)| (key, entry.unwrap_or_else(Entry::dir))))
    }

    /// The entry at exactly this key.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Entry>, SessionError> {
        Ok(tree::get(self, &self.inner.keys, &self.root, key).await?)
    }

    /// What is in a directory itself, in order; the path may be with or without slashes, the root's is empty.
    pub fn list(&self, dir: impl AsRef<[u8]>) -> Result<Listing<'_>, SessionError> {
        let dir = path::dir(dir)?;
        Ok(Listing { reader: self, listing: tree::Listing::new(&self.inner.keys, &self.root, dir) })
    }

    /// What is in a directory from the key `from` on: for listings in pages.
    pub fn list_from(&self, dir: impl AsRef<[u8]>, from: Bytes) -> Result<Listing<'_>, SessionError> {
        let dir = path::dir(dir)?;
        Ok(Listing { reader: self, listing: tree::Listing::starting_at(&self.inner.keys, &self.root, dir, from) })
    }

    /// All entries whose keys begin with `prefix`, in order; everything for the empty one.
    #[must_use]
    pub fn scan(&self, prefix: Bytes) -> Scan<'_> {
        Scan { reader: self, scan: tree::Scan::new(&self.inner.keys, &self.root, prefix) }
    }

    /// The differences from this state to another, in order of keys: left is this one.
    pub async fn differences(&self, other: &Reader, most: usize) -> Result<Vec<tree::Difference>, SessionError> {
        let mut diff = tree::Diff::new(&self.inner.keys, &self.root, &other.root);
        let both = Reader { overlay: joined(&self.overlay, &other.overlay), ..self.clone() };
        let mut found = Vec::new();
        while found.len() < most
            && let Some(difference) = diff.next(&both).await?
        {
            found.push(difference);
        }
        Ok(found)
    }

    /// Opens a file, or a link's target, for reading.
    #[must_use]
    pub fn open(&self, entry: Entry) -> FileReader {
        FileReader::new(self.clone(), entry)
    }
}

fn joined(left: &Arc<HashMap<Digest, Bytes>>, right: &Arc<HashMap<Digest, Bytes>>) -> Arc<HashMap<Digest, Bytes>> {
    if right.is_empty() {
        return left.clone();
    }
    let both = left.iter().chain(right.iter()).map(|(hash, bytes)| (*hash, bytes.clone()));
    Arc::new(both.collect())
}

/// The contents of a directory.
pub struct Listing<'r> {
    reader: &'r Reader,
    listing: tree::Listing<'r>,
}

impl Listing<'_> {
    /// The next of them; `None` after the last. After an error the same can be asked for again.
    pub async fn next(&mut self) -> Result<Option<Listed>, SessionError> {
        Ok(self.listing.next(self.reader).await?)
    }
}

/// Entries in order of keys.
pub struct Scan<'r> {
    reader: &'r Reader,
    scan: tree::Scan<'r>,
}

impl Scan<'_> {
    /// The next entry; `None` after the last. After an error the same can be asked for again.
    pub async fn next(&mut self) -> Result<Option<(Bytes, Entry)>, SessionError> {
        Ok(self.scan.next(self.reader).await?)
    }

    /// Leaves out everything before `key`.
    pub fn seek(&mut self, key: Bytes) {
        self.scan.seek(key);
    }
}
