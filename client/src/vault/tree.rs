//! The tree: an immutable, encrypted, ordered map from path to entry.
//!
//! Its nodes are cut where a keyed hash of a key says so, hence equal contents give equal trees whatever their history,
//! a change writes one path of nodes, and two trees are compared in the size of their difference. A node's id says what
//! is in it, never where that lies. Nothing here waits but for its [`NodeStore`]. Layout: FORMAT.md, "Tree node".

mod apply;
mod diff;
mod edit;
mod node;
mod scan;

pub use self::apply::{Change, apply};
pub use self::diff::{Diff, Difference};
pub use self::edit::{copy, remove, rename};
pub use self::node::{HEIGHT_LIMIT, NODE_VERSION, Subtree};
pub use self::scan::{Listed, Listing, Scan};

use bytes::Bytes;

use self::node::{Items, Node};
use super::entry::Entry;
use super::keys::VaultKeys;
use super::{NodeStore, VaultError, path};

/// A whole tree; `None` is the empty one.
pub type Root = Option<Subtree>;

/// The entry at exactly this key.
pub async fn get<S: NodeStore>(
    store: &S,
    keys: &VaultKeys,
    root: &Root,
    key: &[u8],
) -> Result<Option<Entry>, VaultError> {
    let mut next = root.clone();
    while let Some(subtree) = next.take() {
        match Node::load(store, keys, &subtree).await?.items {
            Items::Entries(mut entries) => {
                let found = entries.binary_search_by(|(have, _)| have[..].cmp(key));
                return Ok(found.ok().map(|index| entries.swap_remove(index).1));
            }
            Items::Children(mut children) => {
                let index = children.partition_point(|(last, _)| last[..] < *key);
                next = (index < children.len()).then(|| children.swap_remove(index).1);
            }
        }
    }
    Ok(None)
}

/// What people mean by a path: the file there, else the directory, else the directory that only its contents imply
/// (`None` in its place). The key comes with it.
pub async fn lookup<S: NodeStore>(
    store: &S,
    keys: &VaultKeys,
    root: &Root,
    path: impl AsRef<[u8]>,
) -> Result<Option<(Bytes, Option<Entry>)>, VaultError> {
    let dir = path::dir(&path)?;
    if dir.is_empty() {
        return Ok(Some((dir, None)));
    }
    if !path.as_ref().ends_with(b"/") {
        let file = path::file(&path)?;
        if let Some(entry) = get(store, keys, root, &file).await? {
            return Ok(Some((file, Some(entry))));
        }
    }
    let first = Scan::new(keys, root, dir.clone()).next(store).await?;
    Ok(first.map(|(key, entry)| (dir.clone(), (key == dir).then_some(entry))))
}

#[cfg(test)]
mod tests;
