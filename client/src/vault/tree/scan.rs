//! Reading a tree in order of keys: from a key on, by prefix, or one directory's own contents.

use bytes::Bytes;

use super::Root;
use super::node::{Items, Node, Subtree};
use crate::vault::entry::Entry;
use crate::vault::keys::VaultKeys;
use crate::vault::path::after_prefix;
use crate::vault::{NodeStore, VaultError};

/// The next part of a tree: an entry, or a subtree not opened yet.
#[derive(Debug, Clone)]
pub(super) enum Part {
    Entry(Bytes, Entry),
    /// With its last key, unless it is the root.
    Subtree(Option<Bytes>, Subtree),
}

/// A position in a tree: all parts still to come, the next on top.
#[derive(Debug, Clone)]
pub(super) struct Walker<'k> {
    keys: &'k VaultKeys,
    parts: Vec<Part>,
    from: Bytes,
}

impl<'k> Walker<'k> {
    pub(super) fn new(keys: &'k VaultKeys, root: &Root, from: Bytes) -> Self {
        let parts = root.iter().map(|subtree| Part::Subtree(None, subtree.clone())).collect();
        Self { keys, parts, from }
    }

    pub(super) fn peek(&self) -> Option<&Part> {
        self.parts.last()
    }

    pub(super) fn pop(&mut self) -> Option<Part> {
        self.parts.pop()
    }

    /// Goes on at the first key not smaller than `key`; never backwards.
    fn seek(&mut self, key: Bytes) {
        while let Some(Part::Entry(last, _) | Part::Subtree(Some(last), _)) = self.parts.last()
            && *last < key
        {
            self.parts.pop();
        }
        self.from = self.from.clone().max(key);
    }

    /// Replaces the subtree on top by what is in it. On an error it is still there.
    pub(super) async fn open<S: NodeStore>(&mut self, store: &S) -> Result<(), VaultError> {
        let Some(Part::Subtree(_, subtree)) = self.parts.last() else { return Ok(()) };
        let node = Node::load(store, self.keys, subtree).await?;
        self.parts.pop();
        let from = &self.from;
        match node.items {
            Items::Entries(entries) => {
                let parts = entries.into_iter().rev().take_while(|(key, _)| key >= from);
                self.parts.extend(parts.map(|(key, entry)| Part::Entry(key, entry)));
            }
            Items::Children(children) => {
                let parts = children.into_iter().rev().take_while(|(last, _)| last >= from);
                self.parts.extend(parts.map(|(last, child)| Part::Subtree(Some(last), child)));
            }
        }
        Ok(())
    }

    async fn next<S: NodeStore>(&mut self, store: &S) -> Result<Option<(Bytes, Entry)>, VaultError> {
        while let Some(Part::Subtree(..)) = self.peek() {
            self.open(store).await?;
        }
        Ok(match self.pop() {
            Some(Part::Entry(key, entry)) => Some((key, entry)),
            _ => None,
        })
    }
}

/// All entries whose keys begin with a prefix, in order.
#[derive(Debug, Clone)]
pub struct Scan<'k> {
    walker: Walker<'k>,
    prefix: Bytes,
}

impl<'k> Scan<'k> {
    /// All entries under `prefix`; the empty prefix stands for all.
    #[must_use]
    pub fn new(keys: &'k VaultKeys, root: &Root, prefix: Bytes) -> Self {
        Self::starting_at(keys, root, prefix.clone(), prefix)
    }

    /// The entries under `prefix` from the key `from` on.
    #[must_use]
    pub fn starting_at(keys: &'k VaultKeys, root: &Root, prefix: Bytes, from: Bytes) -> Self {
        Self { walker: Walker::new(keys, root, from.max(prefix.clone())), prefix }
    }

    /// The next entry; `None` after the last. After an error the same entry can be asked for again.
    pub async fn next<S: NodeStore>(&mut self, store: &S) -> Result<Option<(Bytes, Entry)>, VaultError> {
        let next = self.walker.next(store).await?;
        Ok(next.filter(|(key, _)| key.starts_with(&self.prefix)))
    }

    /// Leaves out everything before `key`.
    pub fn seek(&mut self, key: Bytes) {
        self.walker.seek(key);
    }
}

/// Something in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its full key; a directory's ends in `/`.
    pub key: Bytes,
    /// Its entry; `None` for a directory that only its contents imply.
    pub entry: Option<Entry>,
}

/// What is in a directory itself, in order, without what is in its subdirectories: those are jumped over.
#[derive(Debug, Clone)]
pub struct Listing<'k>(Scan<'k>);

impl<'k> Listing<'k> {
    /// The contents of the directory with this key ([`crate::vault::path::dir`]); empty for the root.
    #[must_use]
    pub fn new(keys: &'k VaultKeys, root: &Root, dir: Bytes) -> Self {
        Self(Scan::new(keys, root, dir))
    }

    /// The contents from the key `from` on.
    #[must_use]
    pub fn starting_at(keys: &'k VaultKeys, root: &Root, dir: Bytes, from: Bytes) -> Self {
        Self(Scan::starting_at(keys, root, dir, from))
    }

    /// The next of its contents; `None` after the last.
    pub async fn next<S: NodeStore>(&mut self, store: &S) -> Result<Option<Listed>, VaultError> {
        let dir = self.0.prefix.len();
        loop {
            let Some((key, entry)) = self.0.next(store).await? else { return Ok(None) };
            match key[dir..].iter().position(|&byte| byte == b'/') {
                // The directory itself.
                None if key.len() == dir => {}
                None => return Ok(Some(Listed { key, entry: Some(entry) })),
                Some(slash) => {
                    let subdir = key.slice(..=dir + slash);
                    // There is always such a key, as the prefix ends in a slash.
                    self.0.seek(after_prefix(&subdir).unwrap_or_default());
                    let entry = (subdir == key).then_some(entry);
                    return Ok(Some(Listed { key: subdir, entry }));
                }
            }
        }
    }
}
