//! What differs between two trees, in the size of the difference: subtrees with equal ids are never opened.

use std::cmp::Ordering;

use bytes::Bytes;

use super::Root;
use super::scan::{Part, Walker};
use crate::vault::entry::Entry;
use crate::vault::keys::VaultKeys;
use crate::vault::{NodeStore, VaultError};

/// A key whose entries differ. Where chunks lie is no difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: Bytes,
    /// What the left tree has there.
    pub left: Option<Entry>,
    /// What the right tree has there.
    pub right: Option<Entry>,
}

/// The differences between two trees, in order of keys.
#[derive(Debug, Clone)]
pub struct Diff<'k> {
    left: Walker<'k>,
    right: Walker<'k>,
}

impl<'k> Diff<'k> {
    /// Compares two trees of one vault.
    #[must_use]
    pub fn new(keys: &'k VaultKeys, left: &Root, right: &Root) -> Self {
        Self { left: Walker::new(keys, left, Bytes::new()), right: Walker::new(keys, right, Bytes::new()) }
    }

    /// The next difference; `None` after the last. After an error it can be asked for again.
    pub async fn next<S: NodeStore>(&mut self, store: &S) -> Result<Option<Difference>, VaultError> {
        loop {
            match (self.left.peek(), self.right.peek()) {
                (None, None) => return Ok(None),
                (Some(Part::Subtree(_, left)), Some(Part::Subtree(_, right))) => {
                    if left.id == right.id {
                        self.left.pop();
                        self.right.pop();
                        continue;
                    }
                    // The higher one first, so that equal subtrees meet at the same height.
                    let order = left.height.cmp(&right.height);
                    if order != Ordering::Less {
                        self.left.open(store).await?;
                    }
                    if order != Ordering::Greater {
                        self.right.open(store).await?;
                    }
                }
                (Some(Part::Subtree(..)), _) => self.left.open(store).await?,
                (_, Some(Part::Subtree(..))) => self.right.open(store).await?,
                (Some(Part::Entry(left, _)), Some(Part::Entry(right, _))) => {
                    let order = left.cmp(right);
                    let difference = self.step(order != Ordering::Greater, order != Ordering::Less);
                    if difference.is_some() {
                        return Ok(difference);
                    }
                }
                (Some(Part::Entry(..)), None) => return Ok(self.step(true, false)),
                (None, Some(Part::Entry(..))) => return Ok(self.step(false, true)),
            }
        }
    }

    /// Takes the entry on top of one side or of both; `None` if they are equal.
    fn step(&mut self, take_left: bool, take_right: bool) -> Option<Difference> {
        let left = take_left.then(|| self.left.pop()).flatten().and_then(entry);
        let right = take_right.then(|| self.right.pop()).flatten().and_then(entry);
        match (left, right) {
            (Some((key, left)), Some((_, right))) => (left.identity() != right.identity()).then_some(Difference {
                key,
                left: Some(left),
                right: Some(right),
            }),
            (Some((key, left)), None) => Some(Difference { key, left: Some(left), right: None }),
            (None, Some((key, right))) => Some(Difference { key, left: None, right: Some(right) }),
            (None, None) => None,
        }
    }
}

fn entry(part: Part) -> Option<(Bytes, Entry)> {
    match part {
        Part::Entry(key, entry) => Some((key, entry)),
        Part::Subtree(..) => None,
    }
}
