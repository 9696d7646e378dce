//! Changing a tree: a new one is written that shares all untouched nodes with the old.
//!
//! A builder holds, per height, the items of the one node that is being filled. A node ends after a key whose level says
//! so; the nodes at the right edge end where the map does. Untouched subtrees are taken over whole where the builder has
//! nothing pending below their height.

use std::iter::Peekable;

use bytes::Bytes;
use potluck_proto::id::ChunkId;

use super::Root;
use super::node::{Items, Node, Subtree, level};
use crate::vault::entry::Entry;
use crate::vault::keys::VaultKeys;
use crate::vault::path::check_key;
use crate::vault::{NodeStore, VaultError};

/// A key, and what it maps to from now on; `None` removes it.
pub type Change = (Bytes, Option<Entry>);

/// Applies changes, sorted by key, each key once, and gives the new root.
///
/// The old tree stays as it is. Removing what is not there changes nothing. Only touched nodes are loaded and written;
/// a node that turns out as it was, locations included, is not written again.
pub async fn apply<S, C>(store: &mut S, keys: &VaultKeys, root: &Root, changes: C) -> Result<Root, VaultError>
where
    S: NodeStore + Send,
    C: IntoIterator<Item = Change>,
    C::IntoIter: Send,
{
    let mut changes = Changes { source: changes.into_iter().peekable(), last: Bytes::new() };
    if changes.next_key().is_none() {
        return Ok(root.clone());
    }
    let mut builder = Builder::new(store, keys);
    // The old tree's parts still to come, the next on top: its last key (of the root's it is not known), and whether it
    // is at the right edge, where keys beyond its last belong to it too.
    let mut rest: Vec<(Bytes, Subtree, bool)> = Vec::new();
    rest.extend(root.clone().map(|subtree| (Bytes::new(), subtree, true)));
    while let Some((last, subtree, at_edge)) = rest.pop() {
        let touched = changes.next_key().is_some_and(|key| at_edge || *key <= last);
        if !touched && builder.aligned(subtree.height) {
            builder.take(last, subtree).await?;
            continue;
        }
        let node = Node::load(&*builder.store, keys, &subtree).await?;
        builder.remember(&node, &subtree);
        match node.items {
            Items::Children(children) => {
                let edge = children.len() - 1;
                let parts = children.into_iter().enumerate();
                rest.extend(parts.map(|(index, (last, child))| (last, child, at_edge && index == edge)).rev());
            }
            Items::Entries(entries) => {
                for (key, entry) in entries {
                    while let Some((new, change)) = changes.take_if(|next| *next < key)? {
                        builder.change(new, change).await?;
                    }
                    match changes.take_if(|next| *next == key)? {
                        Some((_, change)) => builder.change(key, change).await?,
                        None => builder.add(key, entry).await?,
                    }
                }
            }
        }
    }
    while let Some((new, change)) = changes.take_if(|_| true)? {
        builder.change(new, change).await?;
    }
    builder.finish().await
}

/// The changes to come, checked for order as they go.
struct Changes<C: Iterator<Item = Change>> {
    source: Peekable<C>,
    last: Bytes,
}

impl<C: Iterator<Item = Change>> Changes<C> {
    fn next_key(&mut self) -> Option<&Bytes> {
        self.source.peek().map(|(key, _)| key)
    }

    fn take_if(&mut self, wanted: impl Fn(&Bytes) -> bool) -> Result<Option<Change>, VaultError> {
        let Some((key, entry)) = self.source.next_if(|(key, _)| wanted(key)) else { return Ok(None) };
        check_key(&key)?;
        if key <= self.last {
            return Err(VaultError::Unsorted(lossy(&key)));
        }
        if let Some(entry) = &entry {
            entry.check().map_err(|source| VaultError::Entry { path: lossy(&key), source })?;
        }
        self.last = key.clone();
        Ok(Some((key, entry)))
    }
}

fn lossy(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

struct Builder<'a, S> {
    store: &'a mut S,
    keys: &'a VaultKeys,
    /// Items of the leaf that is being filled.
    entries: Vec<(Bytes, Entry)>,
    /// Index h: children of height h, items of the node of height h + 1 that is being filled.
    children: Vec<Vec<(Bytes, Subtree)>>,
    /// The node last loaded at each height: the only one that a node written there can be equal to.
    old: Vec<Option<(Node, Subtree)>>,
    /// The node last written at each height, and its child, if it has just one.
    written: Vec<Option<(ChunkId, Option<Subtree>)>>,
}

impl<'a, S: NodeStore> Builder<'a, S> {
    fn new(store: &'a mut S, keys: &'a VaultKeys) -> Self {
        Self { store, keys, entries: Vec::new(), children: Vec::new(), old: Vec::new(), written: Vec::new() }
    }

    /// Whether a subtree of this height can be taken over whole: nothing below or at its height is being filled.
    fn aligned(&self, height: u8) -> bool {
        self.entries.is_empty() && self.children.iter().take(height.into()).all(Vec::is_empty)
    }

    fn remember(&mut self, node: &Node, subtree: &Subtree) {
        set(&mut self.old, node.height, (node.clone(), subtree.clone()));
    }

    async fn change(&mut self, key: Bytes, change: Option<Entry>) -> Result<(), VaultError> {
        match change {
            Some(entry) => self.add(key, entry).await,
            None => Ok(()),
        }
    }

    async fn add(&mut self, key: Bytes, entry: Entry) -> Result<(), VaultError> {
        let ends = level(self.keys, &key);
        self.entries.push((key, entry));
        self.end(0, ends).await
    }

    async fn take(&mut self, last: Bytes, subtree: Subtree) -> Result<(), VaultError> {
        let (ends, height) = (level(self.keys, &last), subtree.height);
        self.push(last, subtree);
        self.end(height + 1, ends).await
    }

    fn push(&mut self, last: Bytes, subtree: Subtree) {
        let height = usize::from(subtree.height);
        if self.children.len() <= height {
            self.children.resize_with(height + 1, Vec::new);
        }
        self.children[height].push((last, subtree));
    }

    /// Ends the nodes of heights `from` up to, not including, `to`.
    async fn end(&mut self, from: u8, to: u8) -> Result<(), VaultError> {
        for height in from..to {
            self.write(height).await?;
        }
        Ok(())
    }

    /// Writes the node that is being filled at this height, if it has any items, and gives it to its parent.
    async fn write(&mut self, height: u8) -> Result<(), VaultError> {
        let (last, items) = if height == 0 {
            let entries = std::mem::take(&mut self.entries);
            (entries.last().map(|(key, _)| key.clone()), Items::Entries(entries))
        } else {
            let children = self.children.get_mut(usize::from(height) - 1).map(std::mem::take).unwrap_or_default();
            (children.last().map(|(key, _)| key.clone()), Items::Children(children))
        };
        let Some(last) = last else { return Ok(()) };
        let node = Node { height, items };
        let unchanged = self.old.get(usize::from(height)).and_then(Option::as_ref).filter(|(old, _)| *old == node);
        let subtree = match unchanged {
            Some((_, subtree)) => subtree.clone(),
            None => {
                let (id, pointer) = self.store.store(&node).await?;
                node.subtree(id, pointer)
            }
        };
        let single = match node.items {
            Items::Children(mut children) if children.len() == 1 => children.pop().map(|(_, child)| child),
            _ => None,
        };
        set(&mut self.written, height, (subtree.id, single));
        self.push(last, subtree);
        Ok(())
    }

    /// Ends the nodes at the right edge, up to the height that has one node only.
    async fn finish(mut self) -> Result<Root, VaultError> {
        self.write(0).await?;
        let mut height = 0;
        let root = loop {
            let Some(nodes) = self.children.get(usize::from(height)) else { return Ok(None) };
            let top = self.children.iter().skip(usize::from(height) + 1).all(Vec::is_empty);
            match &nodes[..] {
                [(_, only)] if top => break only.clone(),
                _ => self.write(height + 1).await?,
            }
            height += 1;
        };
        self.collapse(root).await.map(Some)
    }

    /// A root with a single child gives way to it, as the same contents without that history would have had it.
    async fn collapse(&self, mut root: Subtree) -> Result<Subtree, VaultError> {
        while root.height > 0 {
            let written = self.written.get(usize::from(root.height)).and_then(Option::as_ref);
            root = match written.filter(|(id, _)| *id == root.id) {
                Some((_, Some(child))) => child.clone(),
                Some((_, None)) => break,
                // Taken over from the old tree.
                None => match Node::load(&*self.store, self.keys, &root).await?.items {
                    Items::Children(mut children) if children.len() == 1 => children.remove(0).1,
                    _ => break,
                },
            };
        }
        Ok(root)
    }
}

fn set<T>(slots: &mut Vec<Option<T>>, height: u8, value: T) {
    let height = usize::from(height);
    if slots.len() <= height {
        slots.resize_with(height + 1, || None);
    }
    slots[height] = Some(value);
}
