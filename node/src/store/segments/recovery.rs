//! What a start finds: every segment is read, whole records are kept, gaps are told, and the table is made anew.
//!
//! Of a finished segment the index is enough, where it proves to be right, and of a sealed one the footer. One that was
//! not sealed is read record by record, each checked from end to end: a crash may have left any part of what was written
//! last. No segment that was found is ever written to again.
//!
//! Where records are lost, one of them may have taken a shard out of the trash: what is in the trash is then taken for
//! wanted. And as one may be what a word of deletion ends, such words stay.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use bytes::Bytes;

use super::disk::{self, Disk, DiskFile};
use super::format::{
    BLOCK, FormatError, Kind, RECORD_LEN, Record, RecordHeader, Seal, SegmentHeader, StoreId, decode_footer,
};
use super::index::{Index, Mark, Rows};
use super::log::{segment_name, segment_number};
use super::table::Table;

/// The file that names the store: a segment's header with the number 0.
pub const STORE_NAME: &str = "store";

/// Segments between two words on how far the start has come.
const PROGRESS_SEGMENTS: usize = 64;

/// Bytes read at once of a segment without a footer.
const PIECE: u64 = 1 << 20;

/// A part of a segment in which there should be records, and none can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The segment.
    pub segment: u64,
    /// Where the gap begins, in bytes.
    pub offset: u64,
    /// Its length, in bytes.
    pub len: u64,
    /// What is wrong there.
    pub why: String,
}

/// What a segment holds.
#[derive(Default)]
pub struct Contents {
    /// Headers of its records, in order; padding too.
    pub records: Vec<RecordHeader>,
    /// Whether its footer says so; else the records were read themselves.
    pub sealed: bool,
    /// Parts that should hold records.
    pub gaps: Vec<Gap>,
    /// Whether the disk failed to give a part.
    pub unreadable: bool,
    /// Where the zeros begin that reach to the end of a segment without a footer, in bytes.
    pub end: u64,
    /// What the index says of it, in place of the records.
    indexed: Option<Rows>,
}

impl Contents {
    /// Whether they are all that the segment ever held, so that the index may have them.
    #[must_use]
    pub fn are_whole(&self) -> bool {
        self.gaps.is_empty() && !self.unreadable
    }

    /// Whether records may be missing that somebody was told of. A gap at the end is what a crash leaves of a batch that
    /// nobody was told of.
    #[must_use]
    pub fn may_lack_records(&self) -> bool {
        let last = self.records.last().map_or(0, |header| header.offset);
        self.unreadable || self.gaps.iter().any(|gap| gap.offset <= last)
    }
}

/// Why nothing of a segment can be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// No record was ever written to it.
    #[error("it holds nothing")]
    Empty,
    /// Another store wrote it.
    #[error("it belongs to another store")]
    Foreign,
    /// A newer program wrote it.
    #[error("{0}")]
    Newer(FormatError),
    /// The disk does not give it.
    #[error("the disk does not give it: {0}")]
    Disk(#[from] io::Error),
}

/// How far a start has come, for others to see.
#[derive(Debug, Default)]
pub struct Progress {
    segments: AtomicU64,
    read: AtomicU64,
}

impl Progress {
    /// So many segments are to be read.
    pub fn begin(&self, segments: u64) {
        self.segments.store(segments, Ordering::Relaxed);
    }

    /// One more was read.
    pub fn step(&self) {
        self.read.fetch_add(1, Ordering::Relaxed);
    }

    /// Segments that were read, and all that are to be; 0 before that is known.
    #[must_use]
    pub fn now(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.segments.load(Ordering::Relaxed))
    }
}

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Found {
    /// Segments that could be read.
    pub segments: u64,
    /// Of them, those that are sealed.
    pub sealed: u64,
    /// Of them, those that the index knew.
    pub indexed: u64,
    /// Records.
    pub records: u64,
    /// Where records are missing. Some of them were perhaps never acknowledged.
    pub gaps: Vec<Gap>,
    /// Files of which nothing could be used, and why. They stay where they are.
    pub unusable: Vec<(String, String)>,
}

impl Found {
    /// Whether everything that was ever written could be read, as far as one can tell.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.gaps.is_empty() && self.unusable.is_empty()
    }
}

/// Reads a file in pieces.
pub(super) struct Window<'a> {
    file: &'a dyn DiskFile,
    start: u64,
    bytes: Bytes,
}

impl<'a> Window<'a> {
    pub(super) fn new(file: &'a dyn DiskFile) -> Self {
        Self { file, start: 0, bytes: Bytes::new() }
    }

    /// So many bytes from a place, less where the file ends.
    pub(super) fn get(&mut self, at: u64, len: u64) -> io::Result<&[u8]> {
        let have = self.start..self.start + self.bytes.len() as u64;
        if at < have.start || at + len > have.end {
            // Where a large piece cannot be read, perhaps this part of it can.
            let read = self.file.read_at(at..at + len.max(PIECE)).or_else(|_| self.file.read_at(at..at + len));
            (self.start, self.bytes) = (at, read?);
        }
        let from = (at - self.start) as usize;
        let end = (from + len as usize).min(self.bytes.len());
        Ok(&self.bytes[from..end])
    }
}

/// Reads a segment, by its footer if it has one.
pub fn read_segment(file: &dyn DiskFile, store: StoreId, segment: u64) -> Result<Contents, Unusable> {
    read_with(file, store, segment, None)
}

/// What the index must say of a finished segment to be believed.
pub fn mark(file: &dyn DiskFile, store: StoreId, segment: u64) -> io::Result<Mark> {
    let len = file.len()?;
    Ok(seal(file, store, segment, len).map_or(Mark::unsealed(len), |seal| Mark::sealed(&seal)))
}

fn read_with(file: &dyn DiskFile, store: StoreId, segment: u64, index: Option<&Index>) -> Result<Contents, Unusable> {
    let len = file.len()?;
    let first = file.read_at(0..BLOCK as u64)?;
    match SegmentHeader::decode(&first) {
        Ok(header) if header.store != store => return Err(Unusable::Foreign),
        // The name is wrong, or the file. Its records know where they belong.
        Ok(header) if header.segment != segment => return Err(Unusable::Foreign),
        Err(error @ FormatError::Version(_)) => return Err(Unusable::Newer(error)),
        // The header says nothing that the name does not say too: the records are read all the same.
        _ => {}
    }
    let seal = seal(file, store, segment, len);
    let mark = seal.as_ref().map_or(Mark::unsealed(len), Mark::sealed);
    if let Some(rows) = index.and_then(|index| index.get(segment, mark)) {
        return Ok(Contents { sealed: seal.is_some(), end: len, indexed: Some(rows), ..Contents::default() });
    }
    if let Some(records) = seal.and_then(|seal| sealed(file, &seal, len)) {
        return Ok(Contents { records, sealed: true, ..Contents::default() });
    }
    let contents = scan(file, store, segment, len);
    if contents.records.is_empty() && contents.gaps.is_empty() {
        return Err(Unusable::Empty);
    }
    Ok(contents)
}

/// The block that seals the segment, if there is a sound one.
fn seal(file: &dyn DiskFile, store: StoreId, segment: u64, len: u64) -> Option<Seal> {
    let last = file.read_at(len.checked_sub(BLOCK as u64)?..len).ok()?;
    Seal::decode(&last).ok().filter(|seal| (seal.store, seal.segment, seal.len) == (store, segment, len))
}

/// The records that the footer lists, if all about it is sound.
fn sealed(file: &dyn DiskFile, seal: &Seal, len: u64) -> Option<Vec<RecordHeader>> {
    let bytes = file.read_at(seal.footer..len).ok()?;
    let footer = Record::decode(&bytes, seal.store, seal.segment, seal.footer).ok()?;
    if footer.header.kind != Kind::Footer {
        return None;
    }
    decode_footer(footer.payload, seal).ok()
}

/// Reads a segment record by record.
fn scan(file: &dyn DiskFile, store: StoreId, segment: u64, len: u64) -> Contents {
    let mut contents = Contents::default();
    let mut window = Window::new(file);
    let block = BLOCK as u64;
    let mut at = block;
    // What was skipped since the last whole record, and what was wrong with it first.
    let mut skipped: Option<(u64, String)> = None;
    // Zeros are a gap only if something follows them.
    let mut zeros_from: Option<u64> = None;
    let mut next = segment << 32;
    while at < len {
        let read = read_record(&mut window, store, segment, at, len);
        let (extent, why) = match read {
            Ok(Item::Record(header)) if header.sequence >= next => {
                let lost = header.sequence > next;
                if let Some(from) = zeros_from.take().filter(|_| lost) {
                    skipped.get_or_insert_with(|| (from, "a write that did not reach the disk".into()));
                }
                if let Some((offset, why)) = skipped.take() {
                    contents.gaps.push(Gap { segment, offset, len: at - offset, why });
                } else if lost {
                    contents.gaps.push(Gap { segment, offset: at, len: 0, why: "records are missing".into() });
                }
                next = header.sequence + 1;
                at += header.extent();
                if header.kind == Kind::Footer {
                    at = at.next_multiple_of(block);
                } else {
                    contents.records.push(header);
                }
                continue;
            }
            Ok(Item::Record(header)) => (header.extent(), "a record from another time".to_string()),
            Ok(Item::Seal) => {
                at += block;
                continue;
            }
            Ok(Item::Zeros) => {
                zeros_from.get_or_insert(at);
                at += block;
                continue;
            }
            Ok(Item::Damaged(extent, error)) => (extent, error.to_string()),
            Err(error) => {
                contents.unreadable = true;
                (0, format!("the disk does not give it: {error}"))
            }
        };
        let from = zeros_from.take().unwrap_or(at);
        skipped.get_or_insert((from, why));
        // The next record that can be found begins at a block, unless this one's length is known.
        at = if extent > 0 { at + extent } else { (at + 1).next_multiple_of(block) };
    }
    contents.end = zeros_from.unwrap_or(len);
    if let Some((offset, why)) = skipped {
        contents.gaps.push(Gap { segment, offset, len: zeros_from.unwrap_or(at).max(offset) - offset, why });
    }
    contents
}

enum Item {
    Record(RecordHeader),
    Seal,
    Zeros,
    /// Its length, if that is known, and what is wrong with it.
    Damaged(u64, FormatError),
}

fn read_record(window: &mut Window<'_>, store: StoreId, segment: u64, at: u64, len: u64) -> io::Result<Item> {
    let block = BLOCK as u64;
    let to_block = (at + 1).next_multiple_of(block) - at;
    let front = window.get(at, to_block.max(RECORD_LEN as u64).min(len - at))?;
    let header = match RecordHeader::decode(front) {
        Ok(header) => header,
        Err(error) => {
            let whole_block = at.is_multiple_of(block) && front.len() == BLOCK;
            return Ok(match Seal::decode(front) {
                Ok(seal) if (seal.store, seal.segment) == (store, segment) => Item::Seal,
                _ if whole_block && front.iter().all(|byte| *byte == 0) => Item::Zeros,
                _ => Item::Damaged(0, error),
            });
        }
    };
    if let Err(error) = header.expect_at(store, segment, at) {
        return Ok(Item::Damaged(0, error));
    }
    let extent = header.extent();
    if at + extent > len {
        return Ok(Item::Damaged(0, FormatError::Truncated));
    }
    Ok(match Record::decode(window.get(at, extent)?, store, segment, at) {
        Ok(record) => Item::Record(record.header),
        Err(error) => Item::Damaged(extent, error),
    })
}

/// What the file that names the store says.
pub(super) fn name_file(disk: &dyn Disk) -> io::Result<Result<StoreId, FormatError>> {
    let block = disk.open(STORE_NAME)?.read_at(0..BLOCK as u64)?;
    Ok(SegmentHeader::decode(&block).map(|header| header.store))
}

/// The store's id as the first segment has it that says one, in its first block or in a record near its beginning.
pub(super) fn named_by_segments(disk: &dyn Disk, numbers: &[u64]) -> Option<StoreId> {
    numbers.iter().find_map(|segment| {
        let front = disk.open(&segment_name(*segment)).and_then(|file| file.read_at(0..PIECE)).ok()?;
        let records = || front.chunks(BLOCK).find_map(|block| RecordHeader::decode(block).ok());
        SegmentHeader::decode(&front).map(|header| header.store).ok().or_else(|| records().map(|record| record.store))
    })
}

/// The store's id, from the file that names it or, where that is lost, from the segments; `fresh` if there are none.
fn store_id(disk: &dyn Disk, numbers: &[u64], fresh: StoreId) -> io::Result<StoreId> {
    let mut damaged = false;
    match name_file(disk) {
        Ok(Ok(store)) => return Ok(store),
        Ok(Err(error @ FormatError::Version(_))) => return Err(io::Error::other(error)),
        Ok(Err(_)) => damaged = true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let named = named_by_segments(disk, numbers);
    if damaged || !numbers.is_empty() {
        tracing::warn!("the file that names the store is lost or damaged: its segments name it");
    }
    if named.is_none() {
        // A segment that a crash cut short has no header; one with records that cannot be told from it must stay.
        for segment in numbers {
            let file = disk.open(&segment_name(*segment))?;
            if !file.read_at(0..2 * BLOCK as u64)?.iter().all(|byte| *byte == 0) {
                return Err(io::Error::other("segments are there, but none says which store they are of"));
            }
        }
    }
    let store = named.unwrap_or(fresh);
    disk::replace(disk, STORE_NAME, &SegmentHeader { store, segment: 0, created_ms: 0 }.encode())?;
    Ok(store)
}

/// Reads segments in order and gives each to `take`. With an index, whose folder this is, a thread of its own reads one
/// ahead: the table is not kept waiting, and the memory that sled has needed does not lie between the table's pages.
fn read_all(
    disk: &dyn Disk,
    store: StoreId,
    numbers: &[u64],
    index: Option<&Path>,
    mut take: impl FnMut(u64, Result<Contents, Unusable>),
) -> io::Result<Option<Index>> {
    let Some(folder) = index else {
        numbers.iter().for_each(|segment| take(*segment, read_one(disk, store, *segment, None)));
        return Ok(None);
    };
    std::thread::scope(|scope| {
        let (sender, read) = mpsc::sync_channel(1);
        let reader = move || {
            let index = Index::open(folder, store);
            index.retain(&numbers.iter().copied().collect());
            for segment in numbers {
                if sender.send((*segment, read_one(disk, store, *segment, Some(&index)))).is_err() {
                    break;
                }
            }
            index.rest();
            index
        };
        let reader = std::thread::Builder::new().name("store reader".into()).spawn_scoped(scope, reader)?;
        read.into_iter().for_each(|(segment, read)| take(segment, read));
        reader.join().map(Some).map_err(|_| io::Error::other("the thread that reads the log has panicked"))
    })
}

/// Reads a segment. One that is not sealed is cut where its records end, and on disk when this returns.
fn read_one(disk: &dyn Disk, store: StoreId, segment: u64, index: Option<&Index>) -> Result<Contents, Unusable> {
    let name = segment_name(segment);
    let file = disk.open(&name)?;
    let contents = read_with(&*file, store, segment, index)?;
    if !contents.sealed && contents.indexed.is_none() {
        if contents.end < file.len()? {
            // Space was set aside that it never needed.
            disk.cut(&name, contents.end)?;
        }
        // What is read may be in the page cache alone; nobody is told of it before it is on disk.
        file.sync_data()?;
    }
    Ok(contents)
}

/// What a store begins with.
pub struct Opened {
    /// Its id.
    pub store: StoreId,
    /// What its log says.
    pub table: Table,
    /// The number of its next segment.
    pub next_segment: u64,
    /// What was found.
    pub found: Found,
    /// The index, if there is to be one.
    pub index: Option<Index>,
}

/// Reads all segments of a disk. A store that is not there yet is named `fresh`. An error says that the disk does not
/// list its files, or cannot be written; a damaged segment is none. `index` is the folder of the index, if there is to be
/// one.
pub fn open(disk: &Arc<dyn Disk>, fresh: StoreId, index: Option<&Path>, progress: &Progress) -> io::Result<Opened> {
    // What is listed is to last: a name that was removed and not synced may else come back.
    disk.sync_folder()?;
    let mut numbers: Vec<u64> = disk.list()?.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    let store = store_id(&**disk, &numbers, fresh)?;
    let (mut table, mut found) = (Table::default(), Found::default());
    let next_segment = numbers.last().map_or(1, |last| last + 1);
    let count = numbers.len();
    progress.begin(count as u64);
    let mut empty = Vec::new();
    let mut doubted = None;
    let mut number = 0;
    let index = read_all(&**disk, store, &numbers, index, |segment, read| {
        if number > 0 && number % PROGRESS_SEGMENTS == 0 {
            tracing::info!(segments = number, of = count, indexed = found.indexed, "reading the log");
        }
        number += 1;
        progress.step();
        let name = segment_name(segment);
        let contents = match read {
            Ok(contents) => contents,
            Err(Unusable::Empty) => {
                empty.push(name);
                return;
            }
            Err(why) => {
                tracing::error!(name, %why, "a segment cannot be used: it stays as it is, its shards count as missing");
                table.set_blind(segment);
                doubted = Some(segment);
                found.unusable.push((name, why.to_string()));
                return;
            }
        };
        table.begin_segment(segment);
        let mut records = 0;
        let mut apply = |header: &RecordHeader| {
            table.apply(header);
            records += 1;
        };
        contents.records.iter().for_each(&mut apply);
        contents.indexed.iter().flat_map(Rows::headers).for_each(|header| apply(&header));
        found.records += records;
        if !contents.gaps.is_empty() {
            table.distrust(segment, contents.unreadable);
        }
        if contents.may_lack_records() {
            doubted = Some(segment);
        }
        for gap in &contents.gaps {
            tracing::warn!(segment, offset = gap.offset, bytes = gap.len, why = gap.why, "a gap in the log");
        }
        found.segments += 1;
        found.sealed += u64::from(contents.sealed);
        found.indexed += u64::from(contents.indexed.is_some());
        found.gaps.extend(contents.gaps);
    })?;
    for name in &empty {
        disk.unlink(name)?;
    }
    if !empty.is_empty() {
        disk.sync_folder()?;
    }
    if let Some(segment) = doubted {
        table.doubt_trash(segment);
    }
    table.settle();
    Ok(Opened { store, table, next_segment, found, index })
}

#[cfg(test)]
mod tests;
