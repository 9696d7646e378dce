//! What the log says, in memory: which record counts of each shard, and what each segment holds of use.
//!
//! The writer applies each record once it is synced; a start applies all that it finds, in the same order, by the same
//! code: so the table that was kept and the one that is made anew are equal.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use potluck_proto::blocks::{VALUE_LEN, block_count};
use potluck_proto::id::StripeId;
use potluck_proto::stripe::Scheme;

use super::format::{BLOCK, Kind, RECORD_LEN, RecordHeader};
use super::pages::{Pages, Row};
use crate::store::{Held, ShardKey, ShardState, Usage};

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The segment's number.
    pub segment: u64,
    /// Bytes from its beginning.
    pub offset: u64,
}

/// A shard that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where its newest record is.
    pub place: Place,
    /// The record of its state that came after that one.
    pub said: Option<Place>,
    /// Bytes of stripe header.
    pub header_len: u32,
    /// Bytes of chaining values.
    pub tree_len: u32,
    /// Sequence of the put that brought it.
    pub generation: u64,
    /// What others are told of it.
    pub held: Held,
    /// The disk did not give it when it was last asked. It counts as missing.
    pub unreadable: bool,
}

impl Entry {
    fn of(header: &RecordHeader) -> Option<Self> {
        let mut entry = Self {
            place: Place { segment: header.segment, offset: header.offset },
            said: None,
            header_len: header.header_len,
            tree_len: header.tree_len,
            generation: header.generation,
            held: Held {
                index: header.index.into(),
                state: ShardState::Live,
                complete: false,
                touched: 0,
                len: header.payload_len,
                scheme: Scheme::new(header.scheme.0.into(), header.scheme.1.into()).ok()?,
            },
            unreadable: false,
        };
        entry.tell(header);
        Some(entry)
    }

    /// Takes over the state that a record says.
    fn tell(&mut self, header: &RecordHeader) {
        self.held.state = header.until_ms.map_or(ShardState::Live, |until_ms| ShardState::Trash { until_ms });
        self.held.complete = header.complete;
        self.held.touched = header.touched;
    }

    /// Bytes of its record.
    #[must_use]
    pub fn extent(&self) -> u64 {
        let bare = RecordHeader::bare(Kind::Shard, [0; 32], 0);
        RecordHeader { header_len: self.header_len, tree_len: self.tree_len, payload_len: self.held.len, ..bare }
            .extent()
    }
}

/// An [`Entry`] and its key as they are kept: there may be millions of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shard {
    stripe: StripeId,
    generation: u64,
    /// Sweeps are numbered from 1: nobody gets past the greatest.
    touched: u32,
    segment: u32,
    offset: u32,
    /// Segment and offset of what was said of it since; segment 0 if nothing was.
    said: (u32, u32),
    len: u32,
    header_len: u32,
    index: u8,
    scheme: (u8, u8),
    flags: u8,
}

const COMPLETE: u8 = 1;
const TRASHED: u8 = 2;
const UNREADABLE: u8 = 4;

impl Row for Shard {
    type Key = ShardKey;

    fn key(&self) -> ShardKey {
        ShardKey { stripe: self.stripe, index: self.index.into() }
    }
}

impl Shard {
    fn pack(key: ShardKey, entry: &Entry) -> Self {
        let mut flags = 0;
        for (set, flag) in [
            (entry.held.complete, COMPLETE),
            (matches!(entry.held.state, ShardState::Trash { .. }), TRASHED),
            (entry.unreadable, UNREADABLE),
        ] {
            flags |= if set { flag } else { 0 };
        }
        // Numbers of segments and offsets in one are below 2^32, as are counts of records: see the format.
        Self {
            stripe: key.stripe,
            generation: entry.generation,
            touched: u32::try_from(entry.held.touched).unwrap_or(u32::MAX),
            segment: entry.place.segment as u32,
            offset: entry.place.offset as u32,
            said: entry.said.map_or((0, 0), |said| (said.segment as u32, said.offset as u32)),
            len: entry.held.len,
            header_len: entry.header_len,
            index: key.index as u8,
            scheme: (entry.held.scheme.k() as u8, entry.held.scheme.m() as u8),
            flags,
        }
    }

    fn is_readable(&self) -> bool {
        self.flags & UNREADABLE == 0
    }

    /// The entry; `until_ms` says what is said of the time in the trash.
    fn unpack(&self, until_ms: impl FnOnce(&ShardKey) -> u64) -> Option<Entry> {
        let state = if self.flags & TRASHED == 0 {
            ShardState::Live
        } else {
            ShardState::Trash { until_ms: until_ms(&self.key()) }
        };
        Some(Entry {
            place: Place { segment: self.segment.into(), offset: self.offset.into() },
            said: Some(Place { segment: self.said.0.into(), offset: self.said.1.into() })
                .filter(|said| said.segment != 0),
            header_len: self.header_len,
            tree_len: (block_count(self.len.into()) * VALUE_LEN as u64) as u32,
            generation: self.generation,
            held: Held {
                index: self.index.into(),
                state,
                complete: self.flags & COMPLETE != 0,
                touched: self.touched.into(),
                len: self.len,
                scheme: Scheme::new(self.scheme.0.into(), self.scheme.1.into()).ok()?,
            },
            unreadable: !self.is_readable(),
        })
    }
}

/// A shard record that counts no more, or that was perhaps written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dead {
    stripe: StripeId,
    generation: u64,
    segment: u32,
    index: u8,
}

impl Row for Dead {
    type Key = (ShardKey, u64, u32);

    fn key(&self) -> Self::Key {
        (ShardKey { stripe: self.stripe, index: self.index.into() }, self.generation, self.segment)
    }
}

/// The newest word that a shard is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tomb {
    /// Where it stands.
    pub place: Place,
    /// The newest generation that it ends.
    pub generation: u64,
    /// The shard proved damaged.
    pub damaged: bool,
}

/// A head, member record or sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fact {
    /// Where its newest record is.
    pub place: Place,
    /// Bytes of payload.
    pub len: u32,
    /// Sequence of that record.
    pub sequence: u64,
}

impl Fact {
    fn extent(&self) -> u64 {
        RecordHeader { payload_len: self.len, ..RecordHeader::bare(Kind::Head, [0; 32], 0) }.extent()
    }
}

/// What is known of a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SegmentFacts {
    /// Bytes written, without its footer.
    pub bytes: u64,
    /// Bytes of records that count.
    pub live: u64,
    /// Records, padding included.
    pub records: u64,
    /// Parts of it cannot be read: it stays, whatever else is known.
    pub keep: bool,
}

impl SegmentFacts {
    /// Bytes that compaction would free.
    #[must_use]
    pub fn dead(&self) -> u64 {
        self.bytes.saturating_sub(self.live)
    }
}

/// All that the log says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Table {
    shards: Pages<Shard>,
    /// Until when those that are in the trash stay there, in milliseconds of running time.
    trash: BTreeMap<ShardKey, u64>,
    tombs: BTreeMap<ShardKey, Tomb>,
    dead: Pages<Dead>,
    facts: BTreeMap<(Kind, [u8; 32]), Fact>,
    segments: BTreeMap<u64, SegmentFacts>,
    /// Shards of which a record failed to be written and is there perhaps. The next thing said of one is said by a copy
    /// of a new generation, which counts in any case.
    uncertain: BTreeSet<ShardKey>,
    /// Shards that are taken for wanted since the word that they are may be lost. What is said of one next is written,
    /// although it seems to be said.
    doubted: BTreeSet<ShardKey>,
    /// Segments in which there may be records that nobody could read.
    blind: BTreeSet<u64>,
    usage: Usage,
    /// Bytes of all segments.
    bytes: u64,
    /// Records of all segments, padding included.
    records: u64,
}

fn key_of(header: &RecordHeader) -> ShardKey {
    ShardKey { stripe: StripeId(header.key), index: header.index.into() }
}

impl Table {
    /// A segment was begun or found.
    pub fn begin_segment(&mut self, segment: u64) {
        self.segments.entry(segment).or_default().bytes += BLOCK as u64;
        self.bytes += BLOCK as u64;
    }

    /// A record stands in a segment.
    fn add_record(&mut self, header: &RecordHeader) {
        let facts = self.segments.entry(header.segment).or_default();
        facts.bytes += header.extent();
        facts.records += 1;
        self.bytes += header.extent();
        self.records += 1;
    }

    /// A segment has parts that cannot be read, or that did not match: there may be records that nobody knows of. With
    /// `keep` it is not compacted either.
    pub fn distrust(&mut self, segment: u64, keep: bool) {
        self.segments.entry(segment).or_default().keep |= keep;
        self.blind.insert(segment);
    }

    /// There is a segment of which nothing could be read.
    pub fn set_blind(&mut self, segment: u64) {
        self.blind.insert(segment);
    }

    /// Takes in a record that is on disk. Records come in the order of their sequences.
    pub fn apply(&mut self, header: &RecordHeader) {
        let place = Place { segment: header.segment, offset: header.offset };
        self.add_record(header);
        let key = key_of(header);
        match header.kind {
            Kind::Shard => {
                let ended = self.tombs.get(&key).is_some_and(|tomb| tomb.generation >= header.generation);
                match Entry::of(header).filter(|_| !ended) {
                    Some(entry) => self.insert(key, entry),
                    None => self.bury(key, header.generation, header.segment),
                }
            }
            Kind::Trash | Kind::Restore | Kind::Complete => {
                let Some(mut entry) = self.entry(&key) else { return };
                if entry.generation != header.generation {
                    return;
                }
                self.uncount(&key, &entry);
                self.doubted.remove(&key);
                entry.tell(header);
                entry.said = Some(place);
                self.count(key, entry);
            }
            Kind::Delete => {
                if let Some(entry) = self.entry(&key).filter(|entry| entry.generation <= header.generation) {
                    self.uncount(&key, &entry);
                    self.shards.remove(&key);
                    self.bury(key, entry.generation, entry.place.segment);
                    self.uncertain.remove(&key);
                    self.doubted.remove(&key);
                }
                let tomb = Tomb { place, generation: header.generation, damaged: header.damaged };
                if let Some(older) = self.tombs.insert(key, tomb) {
                    self.less(older.place.segment, RECORD_LEN as u64);
                }
                self.more(header.segment, RECORD_LEN as u64);
            }
            Kind::Head | Kind::Member | Kind::Sweep => {
                let fact = Fact { place, len: header.payload_len, sequence: header.sequence };
                if let Some(older) = self.facts.insert((header.kind, header.key), fact) {
                    self.less(older.place.segment, older.extent());
                }
                self.more(header.segment, fact.extent());
            }
            Kind::Padding | Kind::Footer => {}
        }
    }

    /// Takes note of records whose write or sync failed: they are there perhaps, and never counted on.
    pub fn failed(&mut self, headers: &[RecordHeader]) {
        for header in headers {
            let key = key_of(header);
            match header.kind {
                Kind::Shard => {
                    self.bury(key, header.generation, header.segment);
                    // It would count before the one that is held.
                    if self.shards.get(&key).is_some_and(|entry| entry.generation != header.generation) {
                        self.uncertain.insert(key);
                    }
                }
                Kind::Delete | Kind::Trash | Kind::Restore | Kind::Complete => {
                    self.uncertain.insert(key);
                }
                _ => {}
            }
        }
    }

    /// A copy that was written and is not trusted: it counts as dead.
    pub fn refuse(&mut self, header: &RecordHeader) {
        self.add_record(header);
        self.failed(std::slice::from_ref(header));
    }

    fn insert(&mut self, key: ShardKey, entry: Entry) {
        if let Some(older) = self.entry(&key) {
            self.uncount(&key, &older);
            self.bury(key, older.generation, older.place.segment);
            if older.generation != entry.generation {
                self.uncertain.remove(&key);
            }
        }
        self.doubted.remove(&key);
        self.count(key, entry);
    }

    fn bury(&mut self, key: ShardKey, generation: u64, segment: u64) {
        self.dead.insert(Dead { stripe: key.stripe, generation, segment: segment as u32, index: key.index as u8 });
    }

    fn more(&mut self, segment: u64, bytes: u64) {
        self.segments.entry(segment).or_default().live += bytes;
    }

    fn less(&mut self, segment: u64, bytes: u64) {
        let facts = self.segments.entry(segment).or_default();
        facts.live = facts.live.saturating_sub(bytes);
    }

    fn count(&mut self, key: ShardKey, entry: Entry) {
        self.more(entry.place.segment, entry.extent());
        if let Some(said) = entry.said {
            self.more(said.segment, RECORD_LEN as u64);
        }
        match entry.held.state {
            _ if entry.unreadable => self.usage.damaged += entry.extent(),
            ShardState::Live => {
                self.usage.live += entry.extent();
                self.usage.shards += 1;
            }
            ShardState::Trash { .. } => self.usage.trash += entry.extent(),
        }
        if let ShardState::Trash { until_ms } = entry.held.state {
            self.trash.insert(key, until_ms);
        }
        self.shards.insert(Shard::pack(key, &entry));
    }

    fn uncount(&mut self, key: &ShardKey, entry: &Entry) {
        self.less(entry.place.segment, entry.extent());
        if let Some(said) = entry.said {
            self.less(said.segment, RECORD_LEN as u64);
        }
        match entry.held.state {
            _ if entry.unreadable => self.usage.damaged -= entry.extent(),
            ShardState::Live => {
                self.usage.live -= entry.extent();
                self.usage.shards -= 1;
            }
            ShardState::Trash { .. } => self.usage.trash -= entry.extent(),
        }
        self.trash.remove(key);
    }

    /// A shard, also one that cannot be read.
    #[must_use]
    pub fn entry(&self, key: &ShardKey) -> Option<Entry> {
        self.unpack(self.shards.get(key)?)
    }

    fn unpack(&self, shard: &Shard) -> Option<Entry> {
        shard.unpack(|key| self.trash.get(key).copied().unwrap_or(0))
    }

    /// Whether a record of the shard is there perhaps that says otherwise.
    #[must_use]
    pub fn is_uncertain(&self, key: &ShardKey) -> bool {
        self.uncertain.contains(key)
    }

    /// Whether what is said of the shard must be written although it seems to be said.
    #[must_use]
    pub fn is_doubted(&self, key: &ShardKey) -> bool {
        self.is_uncertain(key) || self.doubted.contains(key)
    }

    /// Whether there are shards of which that must be written.
    #[must_use]
    pub fn doubts(&self) -> bool {
        !self.uncertain.is_empty() || !self.doubted.is_empty()
    }

    /// Records were lost in this segment, or in some of it nobody knows: one of them may have taken a shard out of the
    /// trash. Those that went there before are taken for wanted: too much is kept rather than too little.
    pub fn doubt_trash(&mut self, segment: u64) {
        let trashed: Vec<ShardKey> = self.trash.keys().copied().collect();
        for key in trashed {
            let Some(mut entry) = self.entry(&key) else { continue };
            if entry.said.unwrap_or(entry.place).segment <= segment {
                self.uncount(&key, &entry);
                entry.held.state = ShardState::Live;
                self.count(key, entry);
                self.doubted.insert(key);
            }
        }
    }

    /// The disk does not give the shard at `place`, or gives it again. False if it is elsewhere by now.
    pub fn set_unreadable(&mut self, key: ShardKey, place: Place, unreadable: bool) -> bool {
        let Some(mut entry) = self.entry(&key).filter(|entry| entry.place == place) else { return false };
        self.uncount(&key, &entry);
        entry.unreadable = unreadable;
        self.count(key, entry);
        true
    }

    /// A shard proved damaged, and the disk does not take the word of it: it is gone until the next start.
    pub fn forget(&mut self, key: ShardKey, place: Place) {
        if let Some(entry) = self.entry(&key).filter(|entry| entry.place == place) {
            self.uncount(&key, &entry);
            self.shards.remove(&key);
            self.bury(key, entry.generation, entry.place.segment);
        }
    }

    /// Shards that cannot be read, in order.
    #[must_use]
    pub fn unreadable(&self) -> Vec<ShardKey> {
        // Asked seldom, and there is nothing to go through where all is well.
        if self.usage.damaged == 0 {
            return Vec::new();
        }
        self.shards.iter().filter(|shard| !shard.is_readable()).map(Row::key).collect()
    }

    /// What is held of a stripe, in order of index.
    #[must_use]
    pub fn held(&self, stripe: &StripeId) -> Vec<Held> {
        let shards = self.shards.from(Bound::Included(ShardKey { stripe: *stripe, index: 0 }));
        let shards = shards.take_while(|shard| shard.stripe == *stripe).filter(|shard| shard.is_readable());
        shards.filter_map(|shard| Some(self.unpack(shard)?.held)).collect()
    }

    /// Up to `limit` stripes of which something is held, after `after`, in order.
    #[must_use]
    pub fn stripes(&self, after: Option<StripeId>, limit: usize) -> Vec<StripeId> {
        let from = after.map_or(Bound::Unbounded, |stripe| Bound::Excluded(ShardKey { stripe, index: usize::MAX }));
        let mut stripes: Vec<StripeId> = Vec::new();
        for shard in self.shards.from(from) {
            if shard.is_readable() && stripes.last() != Some(&shard.stripe) {
                if stripes.len() == limit {
                    break;
                }
                stripes.push(shard.stripe);
            }
        }
        stripes
    }

    /// Up to `limit` shards after `after` whose time in the trash is over.
    #[must_use]
    pub fn expired(&self, running_ms: u64, after: Option<ShardKey>, limit: usize) -> Vec<ShardKey> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let trash = self.trash.range((from, Bound::Unbounded)).filter(|(_, until)| **until <= running_ms);
        let readable = |key: &ShardKey| self.shards.get(key).is_some_and(Shard::is_readable);
        trash.map(|(key, _)| *key).filter(readable).take(limit).collect()
    }

    /// Whether a record, not of a shard itself, is the one that counts.
    #[must_use]
    pub fn counts(&self, header: &RecordHeader) -> bool {
        let place = Place { segment: header.segment, offset: header.offset };
        let key = key_of(header);
        match header.kind {
            Kind::Trash | Kind::Restore | Kind::Complete => {
                self.entry(&key).is_some_and(|entry| entry.said == Some(place))
            }
            Kind::Delete => self.tombs.get(&key).is_some_and(|tomb| tomb.place == place),
            Kind::Head | Kind::Member | Kind::Sweep => {
                self.fact(header.kind, header.key).is_some_and(|fact| fact.place == place)
            }
            Kind::Shard | Kind::Padding | Kind::Footer => false,
        }
    }

    /// A head, member record or sweep.
    #[must_use]
    pub fn fact(&self, kind: Kind, key: [u8; 32]) -> Option<Fact> {
        self.facts.get(&(kind, key)).copied()
    }

    /// Keys of all heads, member records or sweeps, in order.
    #[must_use]
    pub fn fact_keys(&self, kind: Kind) -> Vec<[u8; 32]> {
        self.facts.range((kind, [0; 32])..=(kind, [0xff; 32])).map(|((_, key), _)| *key).collect()
    }

    /// The word that ended a shard, if it stands in that segment and is still needed when that is gone.
    #[must_use]
    pub fn needed_tomb(&self, key: &ShardKey, segment: u64) -> Option<Tomb> {
        let tomb = self.tombs.get(key).filter(|tomb| tomb.place.segment == segment)?;
        self.is_needed(key, tomb, Some(segment)).then_some(*tomb)
    }

    /// Bytes of records in a segment that count.
    #[must_use]
    pub fn live(&self, segment: u64) -> u64 {
        self.segments.get(&segment).map_or(0, |facts| facts.live)
    }

    /// All that records of a segment which count are about: kind, key and index. Goes through everything.
    #[must_use]
    pub fn names_in(&self, segment: u64) -> Vec<(Kind, [u8; 32], usize)> {
        let here = |place: &Place| place.segment == segment;
        let here_too = |shard: &&Shard| u64::from(shard.segment) == segment || u64::from(shard.said.0) == segment;
        let shards = self.shards.iter().filter(here_too).map(Row::key);
        let tombs = self.tombs.keys().copied().filter(|key| self.needed_tomb(key, segment).is_some());
        let facts = self.facts.iter().filter(|(_, fact)| here(&fact.place));
        let shards = shards.chain(tombs).map(|key| (Kind::Shard, key.stripe.0, key.index));
        shards.chain(facts.map(|((kind, key), _)| (*kind, *key, 0))).collect()
    }

    fn is_needed(&self, key: &ShardKey, tomb: &Tomb, besides: Option<u64>) -> bool {
        let dead = self.dead.from(Bound::Included((*key, 0, 0)));
        let mut dead = dead.take_while(|dead| dead.stripe == key.stripe && usize::from(dead.index) == key.index);
        self.blind.iter().any(|segment| besides != Some(*segment))
            || dead.any(|dead| dead.generation <= tomb.generation && besides != Some(dead.segment.into()))
    }

    /// A segment is gone, and its name with it, for good: what it held of these shards is so too, and words of deletion
    /// that end nothing any more are forgotten. In steps, before [`Table::remove_segment`].
    pub fn forget_dead(&mut self, segment: u64, keys: &[ShardKey]) {
        for key in keys {
            let dead = self.dead.from(Bound::Included((*key, 0, 0)));
            let dead = dead.take_while(|dead| dead.stripe == key.stripe && usize::from(dead.index) == key.index);
            let gone: Vec<_> = dead.filter(|dead| u64::from(dead.segment) == segment).map(Row::key).collect();
            for dead in gone {
                self.dead.remove(&dead);
            }
            self.settle_tomb(key);
        }
    }

    fn settle_tomb(&mut self, key: &ShardKey) {
        if let Some(tomb) = self.tombs.get(key).copied().filter(|tomb| !self.is_needed(key, tomb, None)) {
            self.tombs.remove(key);
            self.less(tomb.place.segment, RECORD_LEN as u64);
        }
    }

    /// All that a segment may hold of, in the order of keys: for one whose records nobody can list.
    #[must_use]
    pub fn dead_in(&self, segment: u64) -> Vec<ShardKey> {
        let dead = self.dead.iter().filter(|dead| u64::from(dead.segment) == segment).map(|dead| dead.key().0);
        dead.chain(self.tombs.iter().filter(|(_, tomb)| tomb.place.segment == segment).map(|(key, _)| *key)).collect()
    }

    /// A segment is gone, and its name with it, for good. What it held that counted was copied before.
    pub fn remove_segment(&mut self, segment: u64) {
        if let Some(facts) = self.segments.remove(&segment) {
            self.bytes -= facts.bytes;
            self.records -= facts.records;
        }
        if self.blind.remove(&segment) && self.blind.is_empty() {
            self.settle();
        }
    }

    /// Forgets words of deletion that end nothing any more.
    pub fn settle(&mut self) {
        let keys: Vec<ShardKey> = self.tombs.keys().copied().collect();
        keys.iter().for_each(|key| self.settle_tomb(key));
    }

    /// The segments, by number.
    #[must_use]
    pub fn segments(&self) -> &BTreeMap<u64, SegmentFacts> {
        &self.segments
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that the files of all segments have, once they are sealed.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.bytes + self.records * RECORD_LEN as u64 + self.segments.len() as u64 * 2 * BLOCK as u64
    }

    /// Shards in the trash.
    #[must_use]
    pub fn trashed(&self) -> usize {
        self.trash.len()
    }

    /// Words of deletion that are kept.
    #[must_use]
    pub fn tombs(&self) -> usize {
        self.tombs.len()
    }

    /// Whether what is counted is what there is.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut counted: BTreeMap<u64, u64> = self.segments.keys().map(|segment| (*segment, 0)).collect();
        let mut add = |segment: u64, bytes: u64| *counted.entry(segment).or_default() += bytes;
        let entries: Vec<Entry> = self.shards.iter().map(|shard| self.unpack(shard).unwrap()).collect();
        for entry in &entries {
            add(entry.place.segment, entry.extent());
            if let Some(said) = entry.said {
                add(said.segment, RECORD_LEN as u64);
            }
        }
        self.tombs.values().for_each(|tomb| add(tomb.place.segment, RECORD_LEN as u64));
        self.facts.values().for_each(|fact| add(fact.place.segment, fact.extent()));
        let live: BTreeMap<u64, u64> = self.segments.iter().map(|(segment, facts)| (*segment, facts.live)).collect();
        assert_eq!(counted, live);
        let trash = |held: &Held| matches!(held.state, ShardState::Trash { .. });
        assert_eq!(self.trash.len(), entries.iter().filter(|entry| trash(&entry.held)).count());
        assert_eq!(self.bytes, self.segments.values().map(|facts| facts.bytes).sum::<u64>());
        assert_eq!(self.records, self.segments.values().map(|facts| facts.records).sum::<u64>());
        let readable = entries.iter().filter(|entry| !entry.unreadable);
        let (trashed, wanted): (Vec<&Entry>, Vec<&Entry>) = readable.partition(|entry| trash(&entry.held));
        let sum = |entries: &[&Entry]| entries.iter().map(|entry| entry.extent()).sum::<u64>();
        assert_eq!((self.usage.live, self.usage.trash), (sum(&wanted), sum(&trashed)));
        assert_eq!(self.usage.shards, wanted.len() as u64);
    }

    /// Bytes in use.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage
    }
}
