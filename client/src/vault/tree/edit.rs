//! Removing, copying and renaming files and whole directories: changes for [`super::apply`] that move no data.
//!
//! The changes of a directory are as many as what is in it, and are held in memory.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Change, Root, Scan};
use crate::vault::entry::Entry;
use crate::vault::keys::VaultKeys;
use crate::vault::{NodeStore, VaultError};

/// Everything at a file's key, or, for a directory's key (it ends in `/`; the empty one is the root), in it.
async fn all_at<S: NodeStore>(
    store: &S,
    keys: &VaultKeys,
    root: &Root,
    key: &Bytes,
) -> Result<Vec<(Bytes, Entry)>, VaultError> {
    if !key.is_empty() && !key.ends_with(b"/") {
        let entry = super::get(store, keys, root, key).await?;
        return Ok(entry.map(|entry| (key.clone(), entry)).into_iter().collect());
    }
    let (mut scan, mut found) = (Scan::new(keys, root, key.clone()), Vec::new());
    while let Some(entry) = scan.next(store).await? {
        found.push(entry);
    }
    Ok(found)
}

/// The changes that remove the file or directory with this key; empty if there is nothing.
pub async fn remove<S: NodeStore>(
    store: &S,
    keys: &VaultKeys,
    root: &Root,
    key: &Bytes,
) -> Result<Vec<Change>, VaultError> {
    Ok(all_at(store, keys, root, key).await?.into_iter().map(|(key, _)| (key, None)).collect())
}

/// The changes that copy the file or directory with the key `from` to the key `to`; both end in `/` or neither does.
/// What is at `to` already stays where `from` has nothing of that name. Empty if there is nothing at `from`.
pub async fn copy<S: NodeStore>(
    store: &S,
    keys: &VaultKeys,
    root: &Root,
    from: &Bytes,
    to: &Bytes,
) -> Result<Vec<Change>, VaultError> {
    let found = all_at(store, keys, root, from).await?;
    let moved = |key: &Bytes| Bytes::from([to, &key[from.len()..]].concat());
    Ok(found.into_iter().map(|(key, entry)| (moved(&key), Some(entry))).collect())
}

/// The changes of [`copy`], and of [`remove`] for what was copied.
pub async fn rename<S: NodeStore>(
    store: &S,
    keys: &VaultKeys,
    root: &Root,
    from: &Bytes,
    to: &Bytes,
) -> Result<Vec<Change>, VaultError> {
    let mut changes: BTreeMap<Bytes, Option<Entry>> = remove(store, keys, root, from).await?.into_iter().collect();
    // Later, so that a target among the removed keys (a directory moved into itself) stays.
    changes.extend(copy(store, keys, root, from, to).await?);
    Ok(changes.into_iter().collect())
}
