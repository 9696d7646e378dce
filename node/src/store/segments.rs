//! One append-only log of self-describing, checksummed records in segments: what a node keeps.
//!
//! A put is on disk when it returns: those that come together share one sync ([`log`]). What is held is known from a
//! table in memory that a start makes anew from the log ([`recovery`]). Nothing is written over: what a shard becomes is
//! one more record, and the space of what is dead comes back when its segment is emptied ([`SegmentStore::compact`]).
//!
//! A shard that proves damaged is ended by a record that says so, and counts as missing. One that the disk does not give
//! stays, counts as missing too, and is tried again.

mod busy;
pub mod check;
pub mod compaction;
pub mod disk;
pub mod format;
pub mod index;
pub mod log;
mod memory;
pub mod pages;
mod reading;
pub mod recovery;
pub mod scrub;
mod space;
pub mod table;

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use potluck_proto::blocks::BlockTree;
use potluck_proto::id::{Digest, StripeId};
use potluck_proto::stripe::{DATA_LIMIT, SignedHeader};

use self::busy::{Busy, Name};
use self::disk::Disk;
use self::disk::faults::FaultyDisk;
use self::format::{BLOCK, FormatError, Kind, PAYLOAD_LIMIT, Record, RecordHeader, StoreId};
use self::index::Index;
use self::log::{AppendError, Clock, Job, Log, lock};
use self::reading::{Files, Fronts, LOOKUPS, ReadError, describe};
use self::recovery::{Found, Progress};
use self::space::Room;
use self::table::{Entry, Table};
use super::{Check, Held, ShardKey, ShardRead, ShardState, StoreError, Usage};

/// Length at which a segment is sealed, in bytes: emptied in a second, and few enough files.
pub const SEGMENT_BYTES: u64 = 256 << 20;

/// The least of it, in bytes: see [`segment_bytes`].
const SEGMENT_BYTES_LEAST: u64 = 1 << 20;

/// Length at which a segment is sealed in a store of so many bytes: so that the one that is written, and those that are
/// mostly dead, take a small part of it.
#[must_use]
pub fn segment_bytes(capacity: u64) -> u64 {
    (capacity / 64 / BLOCK as u64 * BLOCK as u64).clamp(SEGMENT_BYTES_LEAST, SEGMENT_BYTES)
}

/// Stripes that wait to be taken for repair; the survey comes to all others anyway.
const LOST_STRIPES: usize = 4096;

/// Unreadable shards that are tried again at once.
const RETRIES: usize = 16;

/// Segments that are taken into the index at the end, beside the one that was written.
const INDEXED_AT_END: usize = 8;

/// How a store is opened.
#[derive(Clone)]
pub struct Options {
    /// Bytes that the store may use; puts end before, within one segment.
    pub capacity: u64,
    /// Length at which a segment is sealed, in bytes.
    pub segment_bytes: u64,
    /// Sixteen random bytes, for a store that is not there yet.
    pub fresh: StoreId,
    /// The time, which people read in records.
    pub clock: Clock,
    /// Whether a thread does the writing; else those who wait for it.
    pub threaded: bool,
    /// The folder of the index, if there is to be one.
    pub index: Option<PathBuf>,
    /// How far the start has come.
    pub progress: Arc<Progress>,
}

/// Figures of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Segments.
    pub segments: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// Of them, bytes of records that count.
    pub live: u64,
    /// Segments that the index knows.
    pub indexed: u64,
    /// Parts of segments that the start could not read.
    pub gaps: u64,
    /// Files of segments of which the start could use nothing.
    pub unusable: u64,
    /// Segments that a failed write or sync has ended since the start.
    pub failures: u64,
}

/// Shards in a log.
pub struct SegmentStore {
    disk: Arc<dyn Disk>,
    store: StoreId,
    table: Arc<Mutex<Table>>,
    log: Arc<Log>,
    files: Files,
    fronts: Fronts,
    busy: Busy,
    compacting: Mutex<Option<compaction::Emptying>>,
    scrubbing: Mutex<Option<scrub::Listing>>,
    room: Mutex<Option<Room>>,
    capacity: u64,
    segment_bytes: u64,
    found: Found,
    index: Option<Index>,
    /// Segments that the index cannot have: parts of them are lost, or may not last.
    unindexed: Mutex<BTreeSet<u64>>,
    /// The first segment since the start.
    first: u64,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    turn: AtomicU64,
    /// Shards found damaged or unreadable since the start.
    lost: AtomicU64,
    /// Their stripes, until somebody asks.
    lost_of: Mutex<BTreeSet<StripeId>>,
}

impl SegmentStore {
    /// A store on a disk in memory: small segments, without a thread and without an index.
    pub fn simulated(disk: FaultyDisk, capacity: u64) -> Result<Self, StoreError> {
        let fresh = StoreId(disk.random());
        let options = Options {
            capacity,
            segment_bytes: SEGMENT_BYTES_LEAST,
            fresh,
            clock: Arc::new(|| 0),
            threaded: false,
            index: None,
            progress: Arc::default(),
        };
        Self::open(Arc::new(disk), options)
    }

    /// Opens the store on a disk, or begins one. What is damaged is no error: see [`SegmentStore::found`].
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Self, StoreError> {
        let opened = recovery::open(&disk, options.fresh, options.index.as_deref(), &options.progress)?;
        tracing::info!(
            segments = opened.found.segments,
            indexed = opened.found.indexed,
            records = opened.found.records,
            gaps = opened.found.gaps.len(),
            written = disk.describe(),
            "the log was read"
        );
        let table = Arc::new(Mutex::new(opened.table));
        let log = Arc::new(Log::new(
            disk.clone(),
            opened.store,
            table.clone(),
            opened.next_segment,
            options.segment_bytes,
            options.clock,
        ));
        let mut store = Self {
            disk,
            store: opened.store,
            table,
            log,
            files: Files::default(),
            fronts: Fronts::default(),
            busy: Busy::default(),
            compacting: Mutex::default(),
            scrubbing: Mutex::default(),
            room: Mutex::default(),
            capacity: options.capacity,
            segment_bytes: options.segment_bytes,
            found: opened.found,
            index: opened.index,
            unindexed: Mutex::default(),
            first: opened.next_segment,
            writer: Mutex::default(),
            turn: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            lost_of: Mutex::default(),
        };
        // Footers are longer than what is read from now on.
        store.disk.pool().clear();
        if options.threaded {
            let log = store.log.clone();
            let writer = std::thread::Builder::new().name("store writer".into()).spawn(move || log.run())?;
            store.writer = Mutex::new(Some(writer));
        }
        Ok(store)
    }

    /// What the start found, gaps and unusable files among it.
    #[must_use]
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Shards found damaged or unreadable since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn count_lost(&self, key: ShardKey) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        let mut stripes = lock(&self.lost_of);
        if stripes.len() < LOST_STRIPES {
            stripes.insert(key.stripe);
        }
    }

    /// Stripes of which a shard was found damaged or unreadable since this was last asked, whoever found it: compaction
    /// does too.
    #[must_use]
    pub fn take_lost(&self) -> BTreeSet<StripeId> {
        std::mem::take(&mut lock(&self.lost_of))
    }

    /// Segments that a failed write or sync has ended since the start.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.log.failures()
    }

    /// Figures for operators.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let table = lock(&self.table);
        let segments = table.segments();
        let indexed = |segment: &&u64| self.index.as_ref().is_some_and(|index| index.covers(**segment));
        Stats {
            segments: segments.len() as u64,
            bytes: table.bytes(),
            live: segments.values().map(|facts| facts.live).sum(),
            indexed: segments.keys().filter(indexed).count() as u64,
            gaps: self.found.gaps.len() as u64,
            unusable: self.found.unusable.len() as u64,
            failures: self.failures(),
        }
    }

    /// Takes up to `most` finished segments into the index. Returns how many are still to come.
    pub fn index_segments(&self, most: usize) -> usize {
        let Some(index) = &self.index else { return 0 };
        let active = self.log.active();
        let segments: Vec<u64> = lock(&self.table).segments().keys().copied().collect();
        let left: Vec<u64> = {
            let unindexed = lock(&self.unindexed);
            let left = segments.into_iter().filter(|segment| active != Some(*segment) && !index.covers(*segment));
            left.filter(|segment| !unindexed.contains(segment)).collect()
        };
        for segment in left.iter().take(most) {
            let file = self.files.get(&*self.disk, *segment);
            let read = file.map_err(recovery::Unusable::from).and_then(|file| {
                let contents = recovery::read_segment(&*file, self.store, *segment)?;
                Ok((recovery::mark(&*file, self.store, *segment)?, contents))
            });
            match read {
                // One that a failure has ended is read at the next start, and synced before it is believed.
                Ok((mark, contents)) if contents.are_whole() && (contents.sealed || *segment < self.first) => {
                    index.put(*segment, mark, &contents.records);
                }
                _ => _ = lock(&self.unindexed).insert(*segment),
            }
        }
        index.rest();
        left.len().saturating_sub(most)
    }

    /// What the log says, for a look at it.
    pub fn with_table<T>(&self, look: impl FnOnce(&Table) -> T) -> T {
        look(&lock(&self.table))
    }

    fn entry(&self, key: &ShardKey) -> Option<Entry> {
        lock(&self.table).entry(key).filter(|entry| !entry.unreadable)
    }

    /// Ends a shard that proved damaged, durably if the disk takes the word of it.
    fn give_up(&self, key: ShardKey, seen: &Entry) {
        let _claim = self.busy.claim(name_of(key));
        self.give_up_claimed(key, seen);
    }

    fn give_up_claimed(&self, key: ShardKey, seen: &Entry) {
        if self.entry(&key).is_none_or(|now| now.place != seen.place) {
            return;
        }
        self.count_lost(key);
        let header = RecordHeader { damaged: true, ..RecordHeader::bare(Kind::Delete, key.stripe.0, key.index as u8) };
        if let Err(error) = self.log.append(Job::new(&*self.disk, header, &[], &[], &[])) {
            tracing::error!(%error, "a damaged shard could not be recorded: the next start finds it again");
            lock(&self.table).forget(key, seen.place);
        }
    }

    /// Says what a shard has become. The key is claimed.
    fn say(&self, key: ShardKey, entry: &Entry, kind: Kind, held: Held) -> Result<(), StoreError> {
        if lock(&self.table).is_uncertain(&key) {
            return self.say_by_copy(key, held);
        }
        self.check_space_for_words()?;
        let header = RecordHeader {
            generation: entry.generation,
            ..state_header(RecordHeader::bare(kind, key.stripe.0, key.index as u8), &held)
        };
        self.log.append(Job::new(&*self.disk, header, &[], &[], &[])).map_err(append_failed)?;
        Ok(())
    }

    /// Says it by a whole new record: another is there perhaps that ended this generation, or says otherwise of it.
    fn say_by_copy(&self, key: ShardKey, held: Held) -> Result<(), StoreError> {
        let (front, data) = self.on_shard_claimed(key)?;
        let header = RecordHeader { generation: 0, ..state_header(front.header, &held) };
        let job = Job::new(&*self.disk, header, front.stripe.bytes(), front.tree.as_bytes(), &data);
        self.log.append(job).map_err(append_failed)?;
        Ok(())
    }

    /// Changes what is said of a shard, unless it is said already for sure.
    fn change(&self, key: ShardKey, kind: Kind, change: impl Fn(&mut Held)) -> Result<(), StoreError> {
        let _claim = self.busy.claim(name_of(key));
        let entry = self.entry(&key).ok_or(StoreError::NotFound)?;
        let mut held = entry.held;
        change(&mut held);
        if held == entry.held && !lock(&self.table).is_doubted(&key) {
            return Ok(());
        }
        self.say(key, &entry, kind, held)
    }

    /// Keeps a head, member record or sweep: the newest of its kind and key counts. Durable on return.
    pub fn keep(&self, kind: Kind, key: [u8; 32], payload: &[u8]) -> Result<(), StoreError> {
        if !kind.is_fact() || payload.len() > PAYLOAD_LIMIT {
            return Err(StoreError::Io(io::Error::other("no record of this kind or length is kept")));
        }
        self.check_space_for_words()?;
        let _claim = self.busy.claim((kind, key, 0));
        let header = fact_header(kind, key, payload);
        self.log.append(Job::new(&*self.disk, header, &[], &[], payload)).map_err(append_failed)?;
        Ok(())
    }

    /// The newest head, member record or sweep of a key.
    pub fn kept(&self, kind: Kind, key: [u8; 32]) -> Result<Bytes, StoreError> {
        for _ in 0..LOOKUPS {
            let fact = lock(&self.table).fact(kind, key).ok_or(StoreError::NotFound)?;
            let header = RecordHeader { payload_len: fact.len, ..RecordHeader::bare(kind, key, 0) };
            let range = fact.place.offset..fact.place.offset + header.extent();
            let read = self.read_file(fact.place.segment, range).and_then(|bytes| {
                let record = Record::decode(&bytes, self.store, fact.place.segment, fact.place.offset)
                    .map_err(ReadError::Damaged)?;
                if (record.header.kind, record.header.key) != (kind, key) {
                    return Err(ReadError::Damaged(FormatError::Elsewhere));
                }
                Ok(bytes.slice_ref(record.payload))
            });
            match read {
                Ok(payload) => return Ok(payload),
                Err(_) if lock(&self.table).fact(kind, key) != Some(fact) => {}
                Err(ReadError::Damaged(why)) => return Err(StoreError::Corrupt(describe(&why))),
                Err(ReadError::Disk(error)) => return Err(StoreError::Unreadable(error.to_string())),
            }
        }
        Err(StoreError::Unreadable("it moved each time it was looked for".into()))
    }

    /// Keys of all heads, member records or sweeps, in order.
    #[must_use]
    pub fn kept_keys(&self, kind: Kind) -> Vec<[u8; 32]> {
        lock(&self.table).fact_keys(kind)
    }
}

fn append_failed(error: AppendError) -> StoreError {
    match error {
        AppendError::Full => StoreError::Full,
        other => StoreError::Io(io::Error::other(other)),
    }
}

/// A header that says what is held.
fn state_header(header: RecordHeader, held: &Held) -> RecordHeader {
    RecordHeader {
        complete: held.complete,
        touched: held.touched,
        until_ms: match held.state {
            ShardState::Live => None,
            ShardState::Trash { until_ms } => Some(until_ms),
        },
        ..header
    }
}

impl SegmentStore {
    /// Keeps a shard, verified by the caller; durable on return. False if it was there; a copy in the trash is revived.
    pub fn put(
        &self,
        header: &SignedHeader,
        index: usize,
        shard: &[u8],
        tree: &BlockTree,
        touched: u64,
    ) -> Result<bool, StoreError> {
        let key = ShardKey { stripe: header.id(), index };
        let Some(hash) = header.shards.get(index).filter(|_| shard.len() == header.shard_len as usize) else {
            return Err(StoreError::Io(io::Error::other("a shard that its stripe's header does not name")));
        };
        let _claim = self.busy.claim(name_of(key));
        if let Some(entry) = self.entry(&key) {
            let held = Held { state: ShardState::Live, ..entry.held };
            if held == entry.held && !lock(&self.table).is_doubted(&key) {
                return Ok(false);
            }
            match self.say(key, &entry, Kind::Restore, held) {
                // Gone after all: written anew.
                Err(StoreError::Corrupt(_) | StoreError::Unreadable(_)) => {}
                said => return said.map(|()| false),
            }
        }
        let record = RecordHeader {
            scheme: (header.scheme.k() as u8, header.scheme.m() as u8),
            touched,
            header_len: header.bytes().len() as u32,
            tree_len: tree.as_bytes().len() as u32,
            payload_len: shard.len() as u32,
            payload: *hash,
            ..RecordHeader::bare(Kind::Shard, key.stripe.0, index as u8)
        };
        self.check_space(record.extent())?;
        let job = Job::new(&*self.disk, record, header.bytes(), tree.as_bytes(), shard);
        self.log.append(job).map_err(append_failed)?;
        Ok(true)
    }

    /// Reads a range, widened to whole blocks; an empty range is the whole shard. A trashed one is revived.
    pub fn read(&self, key: ShardKey, range: Range<u64>, check: Check) -> Result<ShardRead, StoreError> {
        let read = self.read_range(key, range, check, true)?;
        let (trashed, doubted) = {
            let table = lock(&self.table);
            (table.entry(&key).is_some_and(|entry| entry.held.state != ShardState::Live), table.is_doubted(&key))
        };
        if trashed {
            self.revive(key)?;
        } else if doubted && let Err(error) = self.revive(key) {
            // It is served all the same, as any live one on a disk that takes nothing.
            tracing::warn!(stripe = %key.stripe, index = key.index, %error, "that a shard is wanted could not be recorded");
        }
        Ok(read)
    }

    /// The stripe's header, from any shard held of it.
    pub fn header(&self, stripe: &StripeId) -> Result<SignedHeader, StoreError> {
        let mut failed = StoreError::NotFound;
        for held in self.held(stripe) {
            let key = ShardKey { stripe: *stripe, index: held.index };
            match self.on_shard(key, |entry| self.read_known(&key, entry, 0..0)) {
                Ok((front, _)) => return Ok(front.stripe.clone()),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// What is held of a stripe, in order of index.
    #[must_use]
    pub fn held(&self, stripe: &StripeId) -> Vec<Held> {
        lock(&self.table).held(stripe)
    }

    /// Up to `limit` stripes of which something is held, after `after`, in order of their ids.
    #[must_use]
    pub fn stripes(&self, after: Option<StripeId>, limit: usize) -> Vec<StripeId> {
        lock(&self.table).stripes(after, limit)
    }

    /// Moves a live shard to the trash.
    pub fn trash(&self, key: ShardKey, until_ms: u64) -> Result<(), StoreError> {
        self.change(key, Kind::Trash, |held| {
            if held.state == ShardState::Live {
                held.state = ShardState::Trash { until_ms };
            }
        })
    }

    /// Takes a shard out of the trash.
    pub fn revive(&self, key: ShardKey) -> Result<(), StoreError> {
        self.change(key, Kind::Restore, |held| held.state = ShardState::Live)
    }

    /// Up to `limit` shards, after `after` in order, that have been in the trash past their time.
    #[must_use]
    pub fn expired(&self, running_ms: u64, after: Option<ShardKey>, limit: usize) -> Vec<ShardKey> {
        lock(&self.table).expired(running_ms, after, limit)
    }

    /// Deletes a shard that is still in the trash past its time; false if it is not. Whether another copy exists is for
    /// the caller to know.
    pub fn delete(&self, key: ShardKey, running_ms: u64) -> Result<bool, StoreError> {
        let _claim = self.busy.claim(name_of(key));
        // It may have been revived meanwhile.
        let past = |entry: &Entry| matches!(entry.held.state, ShardState::Trash { until_ms } if until_ms <= running_ms);
        if self.entry(&key).filter(past).is_none() {
            return Ok(false);
        }
        self.check_space_for_words()?;
        // It ends all before it, also a copy that failed to be written and is there perhaps.
        let header = RecordHeader::bare(Kind::Delete, key.stripe.0, key.index as u8);
        self.log.append(Job::new(&*self.disk, header, &[], &[], &[])).map_err(append_failed)?;
        Ok(true)
    }

    /// Tries shards that could not be read once more, a few at a time; returns those that can be.
    #[must_use]
    pub fn retry_unreadable(&self) -> Vec<ShardKey> {
        // Each time others first: the front of the queue may never be readable again.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        let waiting = lock(&self.table).unreadable();
        let count = waiting.len();
        let some = waiting.into_iter().cycle().skip((turn * RETRIES) % count.max(1)).take(count.min(RETRIES));
        some.filter(|key| self.readable_again(*key)).collect()
    }

    /// Records that k siblings were proved to exist.
    pub fn set_complete(&self, key: ShardKey) -> Result<(), StoreError> {
        self.change(key, Kind::Complete, |held| held.complete = true)
    }

    /// Reads a shard whole and verifies it, without reviving it. Returns its length.
    pub fn verify(&self, key: ShardKey) -> Result<u64, StoreError> {
        self.read_range(key, 0..0, Check::Here, false).map(|read| read.data.len() as u64)
    }

    /// Bytes in use.
    #[must_use]
    pub fn usage(&self) -> Usage {
        lock(&self.table).usage()
    }

    /// Whether puts are refused for want of space.
    #[must_use]
    pub fn full(&self) -> bool {
        !self.room().is_ok_and(|room| room >= (DATA_LIMIT as u64 / 4).min(self.capacity / 20))
    }
}

impl SegmentStore {
    /// Takes an unreadable shard back if the disk gives it and it is sound.
    fn readable_again(&self, key: ShardKey) -> bool {
        let _claim = self.busy.claim(name_of(key));
        let Some(entry) = lock(&self.table).entry(&key).filter(|entry| entry.unreadable) else { return false };
        let read = self.read_whole(&key, &entry);
        if matches!(read, Err(ReadError::Disk(_))) {
            return false;
        }
        lock(&self.table).set_unreadable(key, entry.place, false);
        if read.is_err() {
            self.give_up_claimed(key, &entry);
        }
        read.is_ok()
    }
}

fn fact_header(kind: Kind, key: [u8; 32], payload: &[u8]) -> RecordHeader {
    RecordHeader { payload_len: payload.len() as u32, payload: Digest::of(payload), ..RecordHeader::bare(kind, key, 0) }
}

fn name_of(key: ShardKey) -> Name {
    (Kind::Shard, key.stripe.0, key.index)
}

impl SegmentStore {
    /// Writes what waits, seals the segment that is written and has the index take it in. Nothing is written after that.
    /// The next start is quicker for it; nothing hangs on it.
    pub fn close(&self) {
        self.log.close();
        let writer = lock(&self.writer).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the store's writer has panicked");
        }
        self.log.finish();
        self.index_segments(INDEXED_AT_END);
    }
}

impl Drop for SegmentStore {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
