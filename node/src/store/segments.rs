//! One append-only log of self-describing, checksummed records in segments: the store that is to follow the files.
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
pub mod pages;
pub mod recovery;
pub mod scrub;
pub mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use potluck_proto::blocks::{self, BlockTree};
use potluck_proto::id::{Digest, StripeId};
use potluck_proto::stripe::{DATA_LIMIT, SignedHeader};

use self::busy::{Busy, Name};
use self::disk::faults::FaultyDisk;
use self::disk::{Disk, DiskFile};
use self::format::{BLOCK, FormatError, Kind, PAYLOAD_LIMIT, Record, RecordHeader, StoreId, decode_front};
use self::index::Index;
use self::log::{AppendError, Clock, Job, Log, lock, segment_name};
use self::recovery::Found;
use self::table::{Entry, Place, Table};
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

/// Disk space that the node leaves free: the smaller of this many bytes and a twentieth of the disk, but three segments
/// at the least. Deletions and compaction may use it.
const RESERVE_BYTES: u64 = 512 << 20;

/// Puts between two questions to the disk how much is free.
const ASK_DISK_EVERY: u32 = 64;

/// Room that words and heads, which come many at once, must find in a segment.
const WORDS_BYTES: u64 = 64 << 10;

/// Below so many free bytes, the reserve apart, the disk is asked at each put.
const ASK_DISK_BELOW: u64 = 1 << 30;

/// Files of segments that are kept open.
const OPEN_FILES: usize = 256;

/// Fronts of shards that are kept, each a few hundred bytes to a few thousand.
const FRONTS: usize = 512;

/// Stripes that wait to be taken for repair; the survey comes to all others anyway.
const LOST_STRIPES: usize = 4096;

/// Unreadable shards that are tried again at once.
const RETRIES: usize = 16;

/// Segments that are taken into the index at the end, beside the one that was written.
const INDEXED_AT_END: usize = 8;

/// How often a shard is looked for that moves while it is read.
const LOOKUPS: usize = 8;

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

/// Open files of segments, the newest used last.
#[derive(Default)]
struct Files(Mutex<Vec<(u64, Arc<dyn DiskFile>)>>);

impl Files {
    fn get(&self, disk: &dyn Disk, segment: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = lock(&self.0);
        if let Some(place) = files.iter().position(|(number, _)| *number == segment) {
            let found = files.remove(place);
            let file = found.1.clone();
            files.push(found);
            return Ok(file);
        }
        let file = disk.open(&segment_name(segment))?;
        if files.len() >= OPEN_FILES {
            files.remove(0);
        }
        files.push((segment, file.clone()));
        Ok(file)
    }

    fn forget(&self, segment: u64) {
        lock(&self.0).retain(|(number, _)| *number != segment);
    }
}

/// What the disk had free when it was asked.
struct Room {
    /// Bytes, the reserve apart.
    free: u64,
    /// Bytes of segments then.
    used: u64,
    /// Puts since.
    asked: u32,
}

/// Why a record could not be read.
enum ReadError {
    Damaged(FormatError),
    Disk(io::Error),
}

/// Fronts of shards that were read last: who reads one range of a shard soon reads the next.
#[derive(Default)]
struct Fronts(Mutex<BTreeMap<Place, Arc<Front>>>);

impl Fronts {
    fn get(&self, place: Place) -> Option<Arc<Front>> {
        lock(&self.0).get(&place).cloned()
    }

    fn keep(&self, place: Place, front: &Arc<Front>) {
        let mut fronts = lock(&self.0);
        if fronts.len() >= FRONTS {
            // Seldom, and what is needed soon comes back soon.
            fronts.clear();
        }
        fronts.insert(place, front.clone());
    }
}

/// A record's bytes, checked as far as its payload.
struct Front {
    header: RecordHeader,
    stripe: SignedHeader,
    tree: BlockTree,
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
    writer: Option<std::thread::JoinHandle<()>>,
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
        };
        Self::open(Arc::new(disk), options)
    }

    /// Opens the store on a disk, or begins one. What is damaged is no error: see [`SegmentStore::found`].
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Self, StoreError> {
        let opened = recovery::open(&disk, options.fresh, options.index.as_deref())?;
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
            writer: None,
            turn: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            lost_of: Mutex::default(),
        };
        // Footers are longer than what is read from now on.
        store.disk.pool().clear();
        if options.threaded {
            let log = store.log.clone();
            let writer = std::thread::Builder::new().name("store writer".into()).spawn(move || log.run())?;
            store.writer = Some(writer);
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

    /// Whether puts of so many bytes are to be refused.
    fn check_space(&self, incoming: u64) -> Result<(), StoreError> {
        if incoming > self.room()? { Err(StoreError::Full) } else { Ok(()) }
    }

    /// Bytes that puts may still take: of the capacity and of the disk, less what is kept for deletions and compaction.
    fn room(&self) -> Result<u64, StoreError> {
        let used = lock(&self.table).file_bytes();
        // Two segments are set aside before they are written.
        let offered =
            self.capacity.saturating_sub((2 * self.segment_bytes).min(self.capacity / 10)).saturating_sub(used);
        let mut room = lock(&self.room);
        // Others may write to the disk too; asking it each time would cost small puts as much as all else.
        let free = room.as_ref().filter(|room| room.asked < ASK_DISK_EVERY).and_then(|room| {
            let left = room.free.checked_sub(used.saturating_sub(room.used))?;
            Some(left).filter(|left| *left > ASK_DISK_BELOW)
        });
        let free = match free {
            Some(free) => free,
            None => {
                let space = self.disk.space()?;
                let free = space.free.saturating_sub(self.reserve(space.total));
                *room = Some(Room { free, used, asked: 0 });
                free
            }
        };
        if let Some(room) = &mut *room {
            room.asked += 1;
        }
        Ok(offered.min(free))
    }

    /// Bytes of a disk that puts leave free. One segment of them is compaction's alone.
    fn reserve(&self, total: u64) -> u64 {
        RESERVE_BYTES.min(total / 20).max(3 * self.segment_bytes)
    }

    /// Whether the disk has no space for words of deletion and heads either: what is left is for compaction, which gives
    /// back what was deleted before.
    fn check_space_for_words(&self) -> Result<(), StoreError> {
        let written = self.log.active().and_then(|active| Some(lock(&self.table).segments().get(&active)?.bytes));
        // The segment that is written has its space already.
        if written.is_some_and(|bytes| bytes + WORDS_BYTES < self.segment_bytes) {
            return Ok(());
        }
        if self.disk.space()?.free < 2 * self.segment_bytes { Err(StoreError::Full) } else { Ok(()) }
    }

    /// Whether space runs out: compaction is then in a hurry, and content with less.
    #[must_use]
    pub fn short_of_space(&self) -> bool {
        !self.room().is_ok_and(|room| room >= 2 * self.segment_bytes)
    }

    fn read_file(&self, segment: u64, range: Range<u64>) -> Result<Bytes, ReadError> {
        // A name that is gone proves nothing of the shard: perhaps the disk is.
        let file = self.files.get(&*self.disk, segment).map_err(ReadError::Disk)?;
        let len = range.end - range.start;
        let bytes = file.read_at(range).map_err(|error| {
            self.files.forget(segment);
            ReadError::Disk(error)
        })?;
        if bytes.len() as u64 == len { Ok(bytes) } else { Err(ReadError::Damaged(FormatError::Truncated)) }
    }

    /// Reads what stands before a shard's payload and, of the payload, what `range` says. Only the front is checked.
    fn read_entry(&self, key: &ShardKey, entry: &Entry, range: Range<u64>) -> Result<(Front, Bytes), ReadError> {
        let expected = RecordHeader {
            header_len: entry.header_len,
            tree_len: entry.tree_len,
            payload_len: entry.held.len,
            ..RecordHeader::bare(Kind::Shard, key.stripe.0, key.index as u8)
        };
        let (from, payload_at) = (entry.place.offset, expected.payload_at());
        let payload = from + payload_at + range.start..from + payload_at + range.end;
        // One call where they lie side by side.
        let (front, data) = if range.start == 0 {
            let bytes = self.read_file(entry.place.segment, from..payload.end)?;
            (bytes.slice(..payload_at as usize), bytes.slice(payload_at as usize..))
        } else {
            let front = self.read_file(entry.place.segment, from..from + payload_at)?;
            (front, self.read_file(entry.place.segment, payload)?)
        };
        let header = RecordHeader::decode(&front).map_err(ReadError::Damaged)?;
        header.expect_at(self.store, entry.place.segment, from).map_err(ReadError::Damaged)?;
        let same = (header.kind, header.key, usize::from(header.index)) == (Kind::Shard, key.stripe.0, key.index);
        let lengths = (header.header_len, header.tree_len, header.payload_len)
            == (entry.header_len, entry.tree_len, entry.held.len);
        if !same || !lengths {
            return Err(ReadError::Damaged(FormatError::Elsewhere));
        }
        match decode_front(&header, &front).map_err(ReadError::Damaged)? {
            Some((stripe, tree)) => Ok((Front { header, stripe, tree }, data)),
            None => Err(ReadError::Damaged(FormatError::Elsewhere)),
        }
    }

    /// As [`SegmentStore::read_entry`], but what stands before the payload may have been read and checked before.
    fn read_known(&self, key: &ShardKey, entry: &Entry, range: Range<u64>) -> Result<(Arc<Front>, Bytes), ReadError> {
        if let Some(front) = self.fronts.get(entry.place) {
            if range.is_empty() {
                return Ok((front, Bytes::new()));
            }
            let payload = entry.place.offset + front.header.payload_at();
            let data = self.read_file(entry.place.segment, payload + range.start..payload + range.end)?;
            return Ok((front, data));
        }
        let (front, data) = self.read_entry(key, entry, range)?;
        let front = Arc::new(front);
        self.fronts.keep(entry.place, &front);
        Ok((front, data))
    }

    /// Finds a shard and runs `work` on it. One that proves damaged, or that the disk does not give, counts as missing
    /// from then on.
    fn on_shard<T>(&self, key: ShardKey, work: impl Fn(&Entry) -> Result<T, ReadError>) -> Result<T, StoreError> {
        for _ in 0..LOOKUPS {
            let entry = self.entry(&key).ok_or(StoreError::NotFound)?;
            let error = match work(&entry) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            // It may have been moved, and its segment be gone or its file be another's by now.
            let same = self.entry(&key).is_some_and(|now| now.place == entry.place);
            if !same {
                continue;
            }
            return Err(match error {
                ReadError::Damaged(why) => {
                    tracing::warn!(stripe = %key.stripe, index = key.index, %why, "a damaged shard is given up");
                    self.give_up(key, &entry);
                    StoreError::Corrupt(describe(&why))
                }
                ReadError::Disk(error) if is_shortage(&error) => StoreError::Io(error),
                ReadError::Disk(error) => {
                    tracing::error!(stripe = %key.stripe, index = key.index, %error, "a shard cannot be read: it counts as missing until it can");
                    if lock(&self.table).set_unreadable(key, entry.place, true) {
                        self.count_lost(key);
                    }
                    StoreError::Unreadable(error.to_string())
                }
            });
        }
        Err(StoreError::Unreadable("it moved each time it was looked for".into()))
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

    /// Reads a range; `known`: the front need not be read again.
    fn read_range(&self, key: ShardKey, range: Range<u64>, check: Check, known: bool) -> Result<ShardRead, StoreError> {
        let len = u64::from(self.entry(&key).ok_or(StoreError::NotFound)?.held.len);
        if range.end > len || range.start > range.end {
            return Err(StoreError::Range);
        }
        let range = if range.is_empty() { 0..len } else { range };
        let wide = blocks::widen(range.start, range.end - range.start, len);
        self.on_shard(key, |entry| {
            let (front, data) = if known {
                self.read_known(&key, entry, wide.clone())?
            } else {
                let (front, data) = self.read_entry(&key, entry, wide.clone())?;
                (Arc::new(front), data)
            };
            if check == Check::Here && front.tree.check_range(wide.start, &data).is_err() {
                return Err(ReadError::Damaged(FormatError::Checksum("payload")));
            }
            let header = front.stripe.bytes().clone();
            Ok(ShardRead { header, tree: front.tree.clone(), offset: wide.start, data })
        })
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

    /// Reads a claimed shard whole and checks it.
    fn on_shard_claimed(&self, key: ShardKey) -> Result<(Front, Bytes), StoreError> {
        let entry = self.entry(&key).ok_or(StoreError::NotFound)?;
        match self.read_whole(&key, &entry) {
            Ok(read) => Ok(read),
            Err(ReadError::Disk(error)) => Err(StoreError::Unreadable(error.to_string())),
            Err(ReadError::Damaged(why)) => {
                self.give_up_claimed(key, &entry);
                Err(StoreError::Corrupt(describe(&why)))
            }
        }
    }

    fn read_whole(&self, key: &ShardKey, entry: &Entry) -> Result<(Front, Bytes), ReadError> {
        let (front, data) = self.read_entry(key, entry, 0..entry.held.len.into())?;
        match front.tree.check_range(0, &data) {
            Ok(()) => Ok((front, data)),
            Err(_) => Err(ReadError::Damaged(FormatError::Checksum("payload"))),
        }
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

fn describe(why: &FormatError) -> &'static str {
    match why {
        FormatError::Checksum(what) | FormatError::Field(what) | FormatError::Magic(what) => what,
        FormatError::Version(_) => "version",
        FormatError::Truncated => "cut off",
        FormatError::Elsewhere => "another record is in its place",
    }
}

/// Whether the process is short of something, which says nothing of the shard.
fn is_shortage(error: &io::Error) -> bool {
    let files = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
    matches!(error.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
        || files.contains(&error.raw_os_error())
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
        for held in self.held(stripe)? {
            let key = ShardKey { stripe: *stripe, index: held.index };
            match self.on_shard(key, |entry| self.read_known(&key, entry, 0..0)) {
                Ok((front, _)) => return Ok(front.stripe.clone()),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// What is held of a stripe, in order of index.
    pub fn held(&self, stripe: &StripeId) -> Result<Vec<Held>, StoreError> {
        Ok(lock(&self.table).held(stripe))
    }

    /// Up to `limit` stripes of which something is held, after `after`, in order of their ids.
    pub fn stripes(&self, after: Option<StripeId>, limit: usize) -> Result<Vec<StripeId>, StoreError> {
        Ok(lock(&self.table).stripes(after, limit))
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
    pub fn expired(&self, running_ms: u64, after: Option<ShardKey>, limit: usize) -> Result<Vec<ShardKey>, StoreError> {
        Ok(lock(&self.table).expired(running_ms, after, limit))
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
        self.check_space((DATA_LIMIT as u64 / 4).min(self.capacity / 20)).is_err()
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

impl Drop for SegmentStore {
    fn drop(&mut self) {
        self.log.close();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer has panicked");
        }
        self.log.finish();
        self.index_segments(INDEXED_AT_END);
    }
}

#[cfg(test)]
mod tests;
