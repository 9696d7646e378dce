//! What a store must hold, by what its writers were told: what was acknowledged last, or what was asked for since.
//!
//! It knows nothing of how a store works: it reads the writers' lines, and asks the store as a node does.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use potluck_node::store::segments::SegmentStore;
use potluck_node::store::segments::format::Kind;
use potluck_node::store::{Check, ShardKey, ShardState, StoreError};
use potluck_proto::id::StripeId;

use super::content::{Content, Stripe};
use super::lines::{HeadName, Line, Operation, ShardName};

/// What is said of a shard that is held: its state, and whether it is complete.
type Word = (ShardState, bool);

/// What is sure of something, and what may be instead.
#[derive(Debug, Clone)]
struct Known<T> {
    now: Option<T>,
    perhaps: Vec<Option<T>>,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self { now: None, perhaps: Vec::new() }
    }
}

impl<T: PartialEq + Copy> Known<T> {
    fn sure(&mut self, now: Option<T>) {
        *self = Self { now, perhaps: Vec::new() };
    }

    fn note(&mut self, then: Option<T>, done: bool) {
        if done {
            self.sure(then);
        } else {
            self.perhaps.push(then);
        }
    }

    fn all(&self) -> impl Iterator<Item = Option<T>> {
        std::iter::once(self.now).chain(self.perhaps.iter().copied())
    }
}

/// What is said of a shard once this was done.
fn after(operation: Operation, before: Option<Word>) -> Option<Word> {
    let complete = before.is_some_and(|(_, complete)| complete);
    match operation {
        Operation::Put(_) => Some((ShardState::Live, complete)),
        Operation::Revive(_) => before.map(|_| (ShardState::Live, complete)),
        Operation::Trash(_, until_ms) => before.map(|_| (ShardState::Trash { until_ms }, complete)),
        Operation::Complete(_) => before.map(|(state, _)| (state, true)),
        Operation::Delete(_) => None,
        Operation::Keep(..) => before,
    }
}

/// What a store did that it never may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Breach {
    /// What was acknowledged is not so.
    Lost(String),
    /// Something was given that nobody stored there.
    Wrong(String),
}

/// How much happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Operations that were acknowledged.
    pub done: u64,
    /// Of them, deletions.
    pub deleted: u64,
    /// Operations that were begun and neither acknowledged nor refused.
    pub open: u64,
    /// Operations that were refused on a full disk.
    pub full: u64,
    /// Segments that were emptied.
    pub emptied: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.done += more.done;
        self.deleted += more.deleted;
        self.open += more.open;
        self.full += more.full;
        self.emptied += more.emptied;
    }
}

/// The account of one store.
pub struct Ledger {
    content: Content,
    stripes: Vec<Vec<Stripe>>,
    shards: BTreeMap<ShardName, Known<Word>>,
    heads: BTreeMap<HeadName, Known<u32>>,
}

impl Ledger {
    /// Of a store that holds nothing yet.
    ///
    /// # Errors
    /// The content cannot be made.
    pub fn new(content: Content) -> Result<Self> {
        let stripes = (0..content.writers).map(|writer| content.stripes_of(writer)).collect::<Result<_>>()?;
        let shards = content.shards().map(|name| (name, Known::default())).collect();
        let heads = content.heads().map(|name| (name, Known::default())).collect();
        Ok(Self { content, stripes, shards, heads })
    }

    /// Takes note of all that a process's writers said. A last line that has no end was never said.
    ///
    /// # Errors
    /// A line says nothing, or that something went wrong.
    pub fn read(&mut self, text: &str) -> Result<Tally> {
        let mut tally = Tally::default();
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            match line.parse().with_context(|| format!("a line that is none: {line}"))? {
                Line::Ready => {}
                Line::Begun(operation) => {
                    tally.open += 1;
                    self.note(operation, false);
                }
                Line::Done(operation) => {
                    tally.open -= 1;
                    tally.done += 1;
                    tally.deleted += u64::from(matches!(operation, Operation::Delete(_)));
                    self.note(operation, true);
                }
                Line::Full(_) => {
                    tally.open -= 1;
                    tally.full += 1;
                }
                Line::Emptied(_) => tally.emptied += 1,
                Line::Wrong(what) => anyhow::bail!("a writer saw what never may be: {what}"),
            }
        }
        Ok(tally)
    }

    /// An operation was begun, or is done.
    pub fn note(&mut self, operation: Operation, done: bool) {
        match operation {
            Operation::Keep(head, value) => self.heads.entry(head).or_default().note(Some(value), done),
            Operation::Put(shard)
            | Operation::Trash(shard, _)
            | Operation::Revive(shard)
            | Operation::Complete(shard)
            | Operation::Delete(shard) => {
                let known = self.shards.entry(shard).or_default();
                known.note(after(operation, known.now), done);
            }
        }
    }

    /// Compares a store with the account. Afterwards what was found is what is known: the next crash cannot undo it.
    ///
    /// # Errors
    /// The store cannot be asked.
    pub fn check(&mut self, store: &SegmentStore) -> Result<Vec<Breach>> {
        let mut breaches = Vec::new();
        for name in self.content.shards() {
            breaches.extend(self.check_shard(store, name)?);
        }
        for name in self.content.heads() {
            breaches.extend(self.check_head(store, name));
        }
        let known: BTreeSet<StripeId> = self.stripes.iter().flatten().map(|stripe| stripe.header.id()).collect();
        for stripe in store.stripes(None, usize::MAX) {
            if !known.contains(&stripe) {
                breaches.push(Breach::Wrong(format!("stripe {stripe} is nobody's")));
            }
        }
        Ok(breaches)
    }

    fn check_shard(&mut self, store: &SegmentStore, name: ShardName) -> Result<Option<Breach>> {
        let stripe = &self.stripes[name.writer as usize][name.stripe as usize];
        let key = ShardKey { stripe: stripe.header.id(), index: name.index as usize };
        let bytes = &stripe.shards[key.index].0;
        let held = store.held(&key.stripe).into_iter().find(|held| held.index == key.index);
        let found = held.map(|held| (held.state, held.complete));
        // Where records that nobody was told of are torn, what is in the trash is taken for wanted: it is kept longer.
        let doubted = store.with_table(|table| table.is_doubted(&key));
        let wanted = |word: Option<Word>| word.map(|(_, complete)| (ShardState::Live, complete));
        let known = self.shards.entry(name).or_default();
        let before: Vec<Option<Word>> = known.all().collect();
        known.sure(found);
        if doubted {
            known.perhaps.extend(&before);
        }
        if !before.iter().any(|word| *word == found || doubted && wanted(*word) == found) {
            return Ok(Some(Breach::Lost(format!("{name:?} is {found:?}, and was {before:?} (doubted: {doubted})"))));
        }
        let read = match found {
            None => return Ok(None),
            // Reading would take it out.
            Some((ShardState::Trash { .. }, _)) => store.verify(key).map(|len| len == bytes.len() as u64),
            Some((ShardState::Live, _)) => {
                let read = store.read(key, 0..0, Check::Here);
                read.map(|read| read.data[..] == bytes[..] && read.header == *stripe.header.bytes())
            }
        };
        Ok(match read {
            Ok(true) => None,
            Ok(false) => Some(Breach::Wrong(format!("{name:?} has other bytes"))),
            Err(error) => Some(Breach::Lost(format!("{name:?} is {found:?} and is not read: {error}"))),
        })
    }

    fn check_head(&mut self, store: &SegmentStore, name: HeadName) -> Option<Breach> {
        let found = match store.kept(Kind::Head, self.content.head_key(name)) {
            Ok(payload) => match Content::value_of(&payload) {
                Ok(value) if payload[..] == self.content.head(name, value)[..] => Some(value),
                _ => return Some(Breach::Wrong(format!("{name:?} has other bytes"))),
            },
            Err(StoreError::NotFound) => None,
            Err(error) => return Some(Breach::Lost(format!("{name:?} is not read: {error}"))),
        };
        let known = self.heads.entry(name).or_default();
        let before: Vec<Option<u32>> = known.all().collect();
        known.sure(found);
        (!before.contains(&found)).then(|| Breach::Lost(format!("{name:?} is {found:?}, and was {before:?}")))
    }

    /// A shard's key.
    #[must_use]
    pub fn key(&self, name: ShardName) -> ShardKey {
        let stripe = &self.stripes[name.writer as usize][name.stripe as usize];
        ShardKey { stripe: stripe.header.id(), index: name.index as usize }
    }

    /// The stripe of a shard.
    #[must_use]
    pub fn stripe(&self, name: ShardName) -> &Stripe {
        &self.stripes[name.writer as usize][name.stripe as usize]
    }

    /// Says that nothing is wrong.
    ///
    /// # Errors
    /// Something is; with all of it.
    pub fn expect(&mut self, store: &SegmentStore) -> Result<()> {
        let breaches = self.check(store)?;
        ensure!(breaches.is_empty(), "{breaches:#?}\nfound at the start: {:#?}", store.found());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use potluck_node::store::segments::disk::faults::{Faults, FaultyDisk};

    use super::*;
    use crate::store_writer::open_store;

    const SHARD: ShardName = ShardName { writer: 0, stripe: 1, index: 2 };
    const HEAD: HeadName = HeadName { writer: 1, head: 0 };

    fn ledger() -> Ledger {
        Ledger::new(Content { seed: 1, writers: 2, stripes: 2, heads: 1 }).unwrap()
    }

    fn store() -> SegmentStore {
        open_store(Arc::new(FaultyDisk::new(1, 1 << 30, Faults::default())), 1 << 20, None).unwrap()
    }

    fn put(ledger: &Ledger, store: &SegmentStore) {
        let stripe = ledger.stripe(SHARD);
        let (bytes, tree) = &stripe.shards[SHARD.index as usize];
        assert!(store.put(&stripe.header, SHARD.index as usize, bytes, tree, 0).unwrap());
    }

    #[test]
    fn what_was_begun_may_be_there_and_what_is_done_must() {
        let store = store();
        let mut ledger = ledger();
        assert_eq!(ledger.read("ready\nbegun put 0 1 2\nbegun keep 1 0 7\nbegun pu").unwrap().open, 2);
        ledger.expect(&store).unwrap();
        put(&ledger, &store);
        // Not there before, and nobody has asked for it since.
        assert!(matches!(ledger.check(&store).unwrap()[..], [Breach::Lost(_)]));
        ledger.expect(&store).unwrap();
        let text = "begun trash 0 1 2 5\ndone trash 0 1 2 5\n";
        assert_eq!(ledger.read(text).unwrap(), Tally { done: 1, ..Tally::default() });
        assert!(matches!(ledger.check(&store).unwrap()[..], [Breach::Lost(_)]));
        ledger.read(text).unwrap();
        store.trash(ledger.key(SHARD), 5).unwrap();
        ledger.expect(&store).unwrap();
        ledger.read("begun delete 0 1 2\n").unwrap();
        ledger.expect(&store).unwrap();
        ledger.read("begun delete 0 1 2\ndone delete 0 1 2\n").unwrap();
        assert!(matches!(ledger.check(&store).unwrap()[..], [Breach::Lost(_)]));
    }

    #[test]
    fn heads_are_compared_byte_by_byte_and_what_is_nobodys_is_noticed() {
        let store = store();
        let mut ledger = ledger();
        let key = ledger.content.head_key(HEAD);
        let mut payload = ledger.content.head(HEAD, 7);
        store.keep(Kind::Head, key, &payload).unwrap();
        assert!(matches!(ledger.check(&store).unwrap()[..], [Breach::Lost(_)]));
        ledger.read("begun keep 1 0 7\ndone keep 1 0 7\n").unwrap();
        ledger.expect(&store).unwrap();
        payload.push(0);
        store.keep(Kind::Head, key, &payload).unwrap();
        assert!(matches!(ledger.check(&store).unwrap()[..], [Breach::Wrong(_)]));
        let elsewhere = Ledger::new(Content { seed: 2, ..ledger.content }).unwrap();
        put(&elsewhere, &store);
        assert!(
            ledger
                .check(&store)
                .unwrap()
                .iter()
                .any(|breach| matches!(breach, Breach::Wrong(what) if what.contains("nobody")))
        );
        assert!(ledger.read("wrong bytes\n").is_err());
    }
}
