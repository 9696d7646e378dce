//! An ordered set of small rows, kept in sorted pages: a tenth of overhead, where a map of one row per slot has a third.
//!
//! Rows are found by a key that they carry. The pages are found by a tree of their least keys.

use std::collections::BTreeMap;
use std::ops::Bound;

/// Most rows of a page: moved at once by an insertion, a few kilobytes.
const PAGE_ROWS: usize = 128;

/// Rows that a page has room for beyond those that it holds.
const SPARE_ROWS: usize = 4;

/// What is kept in [`Pages`].
pub trait Row: Copy {
    /// What rows are known by and in order of; no two have the same.
    type Key: Ord + Copy;
    /// The row's key.
    fn key(&self) -> Self::Key;
}

/// Rows in order of their keys.
#[derive(Clone)]
pub struct Pages<R: Row> {
    /// Each page under a key that is no greater than its least, and greater than all of the page before. None is empty.
    pages: BTreeMap<R::Key, Vec<R>>,
    len: usize,
}

impl<R: Row> Default for Pages<R> {
    fn default() -> Self {
        Self { pages: BTreeMap::new(), len: 0 }
    }
}

impl<R: Row> Pages<R> {
    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The row of a key.
    #[must_use]
    pub fn get(&self, key: &R::Key) -> Option<&R> {
        let (_, page) = self.pages.range(..=*key).next_back()?;
        page.binary_search_by_key(key, Row::key).ok().map(|at| &page[at])
    }

    /// Puts a row in, and gives the one that was there under its key.
    pub fn insert(&mut self, row: R) -> Option<R> {
        let key = row.key();
        let Some((_, page)) = self.pages.range_mut(..=key).next_back() else {
            // Before all others: the first page takes it, under its key.
            let mut page = self.pages.pop_first().map(|(_, page)| page).unwrap_or_default();
            make_room(&mut page);
            page.insert(0, row);
            self.len += 1;
            self.settle(key, page);
            return None;
        };
        match page.binary_search_by_key(&key, Row::key) {
            Ok(at) => Some(std::mem::replace(&mut page[at], row)),
            Err(at) => {
                make_room(page);
                page.insert(at, row);
                self.len += 1;
                if page.len() > PAGE_ROWS {
                    let upper = halve(page);
                    self.pages.insert(upper[0].key(), upper);
                }
                None
            }
        }
    }

    fn settle(&mut self, key: R::Key, mut page: Vec<R>) {
        if page.len() > PAGE_ROWS {
            let upper = halve(&mut page);
            self.pages.insert(upper[0].key(), upper);
        }
        self.pages.insert(key, page);
    }

    /// Takes a row out.
    pub fn remove(&mut self, key: &R::Key) -> Option<R> {
        let (&first, page) = self.pages.range_mut(..=*key).next_back()?;
        let at = page.binary_search_by_key(key, Row::key).ok()?;
        let row = page.remove(at);
        self.len -= 1;
        let left = page.len();
        if left == 0 {
            self.pages.remove(&first);
        } else if left < PAGE_ROWS / 4 {
            self.join(first, left);
        }
        Some(row)
    }

    /// Joins a page that has become small with the one before it, where both fit into half a page.
    fn join(&mut self, first: R::Key, len: usize) {
        let Some((_, before)) = self.pages.range(..first).next_back() else { return };
        if before.len() + len > PAGE_ROWS / 2 {
            return;
        }
        let Some(page) = self.pages.remove(&first) else { return };
        if let Some((_, before)) = self.pages.range_mut(..first).next_back() {
            before.reserve_exact(len + SPARE_ROWS);
            before.extend(page);
        }
    }

    /// All rows from a key on, in order.
    pub fn from(&self, from: Bound<R::Key>) -> impl Iterator<Item = &R> {
        let first = match from {
            Bound::Unbounded => None,
            Bound::Included(key) | Bound::Excluded(key) => {
                self.pages.range(..=key).next_back().map(|(first, _)| *first)
            }
        };
        let pages = self.pages.range((first.map_or(Bound::Unbounded, Bound::Included), Bound::Unbounded));
        pages.flat_map(|(_, page)| page).skip_while(move |row| match from {
            Bound::Unbounded => false,
            Bound::Included(key) => row.key() < key,
            Bound::Excluded(key) => row.key() <= key,
        })
    }

    /// All rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = &R> {
        self.pages.values().flatten()
    }
}

/// Exactly as much as is soon needed: twice would be half of it wasted.
fn make_room<R>(page: &mut Vec<R>) {
    if page.len() == page.capacity() {
        page.reserve_exact(SPARE_ROWS);
    }
}

fn halve<R: Copy>(page: &mut Vec<R>) -> Vec<R> {
    let mut upper = Vec::with_capacity(page.len() / 2 + SPARE_ROWS);
    upper.extend_from_slice(&page[page.len() / 2..]);
    page.truncate(page.len() / 2);
    page.shrink_to(page.len() + SPARE_ROWS);
    upper
}

impl<R: Row + PartialEq> PartialEq for Pages<R> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<R: Row + Eq> Eq for Pages<R> {}

impl<R: Row + std::fmt::Debug> std::fmt::Debug for Pages<R> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Pair(u16, u32);

    impl Row for Pair {
        type Key = u16;
        fn key(&self) -> u16 {
            self.0
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn they_are_an_ordered_map(
            steps in proptest::collection::vec((0..4_u8, 0..2_000_u16, any::<u32>()), 1..4_000),
        ) {
            let (mut pages, mut map) = (Pages::default(), BTreeMap::new());
            // More is put in at first, more is taken out later.
            let turn = steps.len() / 2;
            for (step, (choice, key, value)) in steps.into_iter().enumerate() {
                if (choice == 0) == (step < turn) {
                    prop_assert_eq!(pages.remove(&key).map(|Pair(_, value)| value), map.remove(&key));
                } else {
                    prop_assert_eq!(pages.insert(Pair(key, value)).map(|Pair(_, value)| value), map.insert(key, value));
                }
                prop_assert_eq!(pages.get(&key).map(|pair| pair.1), map.get(&key).copied());
                prop_assert_eq!(pages.len(), map.len());
            }
            prop_assert!(pages.iter().map(|pair| (pair.0, pair.1)).eq(map.iter().map(|(key, value)| (*key, *value))));
            for bound in [Bound::Unbounded, Bound::Included(700), Bound::Excluded(700), Bound::Included(0)] {
                let rows = pages.from(bound).map(|pair| pair.0);
                prop_assert!(rows.eq(map.range((bound, Bound::Unbounded)).map(|(key, _)| *key)));
            }
            for page in pages.pages.values() {
                prop_assert!(!page.is_empty() && page.len() <= PAGE_ROWS && page.capacity() <= PAGE_ROWS + SPARE_ROWS + 1);
            }
        }
    }
}
