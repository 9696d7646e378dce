//! The one writer of a store.
//!
//! What is to be written waits in a queue that is bounded in bytes, gathered in batches: whoever brings a short record
//! copies it to its place behind the others. The writer takes the first batch, without waiting for more, fills in the
//! headers, writes it at once, syncs once, tells the table, and then those who wait. While it syncs the next batch gathers,
//! so the busier the disk the larger the batches.
//!
//! Another thread (`chores.rs`) seals what is full and has the next segment ready, so that puts wait for neither.
//!
//! A write or sync that fails ends the segment: what of that batch is on disk is not known, so nothing more is written
//! behind it, those who wait are told, and the next batch begins a new segment. Nothing is tried again as if nothing had
//! happened.
//!
//! Without a thread the first who waits writes for all; a simulation needs no more.

mod batch;
mod chores;
mod queue;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use potluck_proto::id::Digest;

pub use self::batch::Job;
use self::batch::{Batch, BatchLimits, Written};
use self::chores::Chores;
use self::queue::{Limits, Queue};
use super::disk::{Disk, DiskFile};
use super::format::{BLOCK, Kind, RECORD_LEN, RECORDS_LIMIT, RecordHeader, Seal, SegmentHeader, StoreId};
use super::table::Table;

/// What may wait, and what is written with one sync: a few milliseconds of a fast disk.
const LIMITS: Limits =
    Limits { waiting: 32 << 20, batch: BatchLimits { bytes: 8 << 20, gathered: 2 << 20, records: 4096 } };

/// What the queue locks with.
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering};
    pub(super) use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

    pub(super) use super::lock;
}

/// Milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A segment is made ahead where the disk has space for so many: the last of it is for what is written, and for
/// compaction.
const SPARE_SEGMENTS: u64 = 4;

/// Numbers of segments are below this: with a count behind them they make sequences.
const SEGMENT_LIMIT: u64 = u32::MAX as u64;

/// A segment's file name.
#[must_use]
pub fn segment_name(segment: u64) -> String {
    format!("{segment:016x}.segment")
}

/// The number in a segment's file name.
#[must_use]
pub fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".segment").filter(|digits| digits.len() == 16)?;
    // Names of ours are in lower case: two names must not be one number.
    u64::from_str_radix(digits, 16).ok().filter(|number| *number < SEGMENT_LIMIT && segment_name(*number) == name)
}

/// Why a record was not written. It may be there after the next start, and it may not; the store goes on without it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// The disk failed; its segment is written to no more.
    #[error("the disk did not take it: {1}")]
    Disk(io::ErrorKind, String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl AppendError {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            kind => Self::Disk(kind, error.to_string()),
        }
    }
}

type Outcome = Result<RecordHeader, AppendError>;

/// The segment that is written.
struct Active {
    file: Arc<dyn DiskFile>,
    segment: u64,
    /// Bytes of the file that were set aside.
    room: u64,
    position: u64,
    /// The headers of its records, one after the other, as its footer will repeat them.
    footer: Vec<u8>,
}

impl Active {
    /// Records in it.
    fn count(&self) -> usize {
        self.footer.len() / RECORD_LEN
    }
}

struct Writer {
    active: Option<Active>,
    next_segment: u64,
}

/// The writer and its queue.
pub struct Log {
    disk: Arc<dyn Disk>,
    store: StoreId,
    table: Arc<Mutex<Table>>,
    segment_bytes: u64,
    clock: Clock,
    queue: Queue<Writer>,
    chores: Chores,
    failures: AtomicU64,
    /// The segment that is written, or 0.
    active: AtomicU64,
    /// Bytes that are set aside in it and not written yet.
    left: AtomicU64,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// A log that goes on with segment `next_segment`, of up to `segment_bytes` bytes, as all after it.
    #[must_use]
    pub fn new(
        disk: Arc<dyn Disk>,
        store: StoreId,
        table: Arc<Mutex<Table>>,
        next_segment: u64,
        segment_bytes: u64,
        clock: Clock,
    ) -> Self {
        Self {
            disk,
            store,
            table,
            segment_bytes,
            clock,
            queue: Queue::new(Writer { active: None, next_segment }),
            chores: Chores::default(),
            failures: AtomicU64::new(0),
            active: AtomicU64::new(0),
            left: AtomicU64::new(0),
        }
    }

    /// The segment that is written, if there is one: it is not for compaction.
    #[must_use]
    pub fn active(&self) -> Option<u64> {
        Some(self.active.load(Ordering::Acquire)).filter(|segment| *segment != 0)
    }

    /// Bytes that have their space on the disk already, in the segment that is written.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// Tells others which segment is written, and how much of it is left.
    fn show(&self, active: Option<&Active>) {
        self.active.store(active.map_or(0, |active| active.segment), Ordering::Release);
        self.left.store(active.map_or(0, |active| active.room - active.position), Ordering::Release);
    }

    /// Segments that a failed write or sync has ended.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Writes until the log is closed and nothing waits. To be called by one thread; from then on those who wait leave
    /// the writing to it.
    pub fn run(&self) {
        /// The other thread is to end also where the writer has panicked.
        struct Closing<'a>(&'a Chores);
        impl Drop for Closing<'_> {
            fn drop(&mut self) {
                self.0.close();
            }
        }
        std::thread::scope(|scope| {
            let _closing = Closing(&self.chores);
            let other = std::thread::Builder::new().name("store segments".into());
            // Without it all is done here.
            if let Err(error) = other.spawn_scoped(scope, || self.do_chores()) {
                tracing::warn!(%error, "segments are sealed and begun while puts wait");
                self.chores.close();
            }
            self.queue.serve(|writer, batch| self.write(writer, batch));
        });
    }

    /// Takes nothing more; what waits is written.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Seals the active segment, once the log was closed and nobody writes.
    pub fn finish(&self) {
        let mut writer = self.queue.writer();
        if let Some(active) = writer.active.take() {
            self.show(None);
            self.seal(active);
        }
    }

    /// Writes a record; it is on disk, and in the table, when this returns its header.
    pub fn append(&self, job: Job<'_>) -> Outcome {
        let write = |writer: &mut Writer, batch: &mut Batch| self.write(writer, batch);
        let ticket = self.queue.enqueue(job, self.disk.pool(), &write)?;
        self.queue.wait(&ticket, &write)
    }

    /// Writes records, most often with one sync.
    pub fn append_all(&self, jobs: Vec<Job<'_>>) -> Vec<Outcome> {
        let write = |writer: &mut Writer, batch: &mut Batch| self.write(writer, batch);
        let tickets: Vec<_> = jobs.into_iter().map(|job| self.queue.enqueue(job, self.disk.pool(), &write)).collect();
        tickets.into_iter().map(|ticket| ticket.and_then(|ticket| self.queue.wait(&ticket, &write))).collect()
    }

    /// Writes and syncs a batch, then tells the table.
    fn write(&self, writer: &mut Writer, batch: &mut Batch) -> Result<Written, AppendError> {
        let padding = padding_for(batch.short_bytes());
        let bytes = batch.short_bytes() + padding + batch.long_bytes();
        let fits =
            |active: &Active| active.position + bytes <= active.room && active.count() + batch.count() < RECORDS_LIMIT;
        if let Some(full) = writer.active.take_if(|active| !fits(active)) {
            self.show(None);
            if let Some(full) = self.chores.seal(full) {
                self.seal(full);
            }
        }
        if writer.active.is_none() {
            writer.active = Some(self.begin(writer, bytes).map_err(|error| {
                tracing::error!(%error, "a new segment could not be begun");
                AppendError::of(&error)
            })?);
        }
        // Back in its place once all went well: what panics ends the segment as well.
        let Some(mut active) = writer.active.take() else { return Err(AppendError::Closed) };

        let (time_ms, mut at) = ((self.clock)(), active.position);
        let written = batch.place(padding, |header, bytes| {
            header.sequence = (active.segment << 32) | active.count() as u64;
            if header.generation == 0 {
                header.generation = header.sequence;
            }
            (header.store, header.segment, header.offset, header.time_ms) = (self.store, active.segment, at, time_ms);
            at += header.extent();
            let encoded = header.encode();
            bytes.copy_from_slice(&encoded);
            active.footer.extend_from_slice(&encoded);
        });
        let done = active.file.write_at(active.position, &batch.parts(padding)).and_then(|()| active.file.sync_data());

        let mut table = lock(&self.table);
        if let Err(error) = done {
            tracing::error!(%error, segment = active.segment, "a write failed: the segment is ended, what waited is refused");
            self.failures.fetch_add(1, Ordering::Relaxed);
            table.failed(&written.headers);
            drop(table);
            // A page cache may show what the disk never took, and a start would believe it: it is cut off. What is behind
            // the end of the batch before was set aside for nothing too.
            if let Err(error) = active.file.set_len(active.position) {
                tracing::warn!(%error, segment = active.segment, "the ended segment could not be cut");
            }
            self.show(None);
            return Err(AppendError::of(&error));
        }
        for header in batch.told_here(&written) {
            table.apply(header);
        }
        drop(table);
        active.position += bytes;
        self.show(Some(&active));
        if active.position * 2 > active.room {
            self.chores.want(&mut writer.next_segment, || self.has_room_for_spare());
        }
        writer.active = Some(active);
        Ok(written)
    }

    /// Begins a segment in which a batch of so many bytes has room. Its name and header last when it returns.
    fn begin(&self, writer: &mut Writer, bytes: u64) -> io::Result<Active> {
        let ready = self.chores.ready();
        let begun = match ready {
            Some(ready) => ready,
            None => {
                let segment = writer.next_segment;
                // Whatever comes of it, the number is used.
                writer.next_segment += 1;
                let least = BLOCK as u64 + bytes;
                let mut room = self.segment_bytes.max(least);
                loop {
                    match self.make(segment, room) {
                        // A shorter one may do, down to one for this batch alone: deletions must go on.
                        Err(error) if room > least && AppendError::of(&error) == AppendError::Full => {
                            room = (room / 2).next_multiple_of(BLOCK as u64).max(least);
                        }
                        made => break made?,
                    }
                }
            }
        };
        // Before the table knows of it: nobody is to take it for one that can be emptied.
        self.show(Some(&begun));
        lock(&self.table).begin_segment(begun.segment);
        Ok(begun)
    }

    fn has_room_for_spare(&self) -> bool {
        self.disk.space().is_ok_and(|space| space.free >= SPARE_SEGMENTS * self.segment_bytes)
    }

    /// Makes a segment of this number and length without records. Its name and header last when it returns.
    fn make(&self, segment: u64, room: u64) -> io::Result<Active> {
        if segment >= SEGMENT_LIMIT {
            return Err(io::Error::other("no numbers are left for new segments"));
        }
        let name = segment_name(segment);
        let file = self.disk.create(&name, room)?;
        let header = SegmentHeader { store: self.store, segment, created_ms: (self.clock)() };
        let begun = file
            .write_at(0, &[&header.encode()])
            .and_then(|()| file.sync_data())
            .and_then(|()| self.disk.sync_folder());
        if let Err(error) = begun {
            // It holds nothing; the next start removes it if this does not.
            let _ = self.disk.unlink(&name);
            return Err(error);
        }
        Ok(Active { file, segment, room, position: BLOCK as u64, footer: Vec::new() })
    }

    /// Writes the footer. All records are synced already: if this fails, the next start reads them one by one.
    fn seal(&self, active: Active) {
        let payload = &active.footer;
        let header = RecordHeader {
            sequence: (active.segment << 32) | active.count() as u64,
            store: self.store,
            segment: active.segment,
            offset: active.position,
            time_ms: (self.clock)(),
            payload_len: payload.len() as u32,
            payload: Digest::of(payload),
            ..RecordHeader::bare(Kind::Footer, [0; 32], 0)
        };
        let end = active.position + header.extent().next_multiple_of(BLOCK as u64);
        let seal = Seal {
            store: self.store,
            segment: active.segment,
            footer: active.position,
            count: active.count() as u32,
            headers: header.payload,
            len: end + BLOCK as u64,
        };
        let mut bytes = vec![0; (seal.len - active.position) as usize];
        let (payload_at, seal_at) = (header.payload_at() as usize, (end - active.position) as usize);
        bytes[..RECORD_LEN].copy_from_slice(&header.encode());
        bytes[payload_at..payload_at + payload.len()].copy_from_slice(payload);
        bytes[seal_at..].copy_from_slice(&seal.encode());
        let sealed = active
            .file
            .write_at(active.position, &[&bytes])
            .and_then(|()| active.file.set_len(seal.len))
            .and_then(|()| active.file.sync_data());
        if let Err(error) = sealed {
            tracing::warn!(%error, segment = active.segment, "a segment could not be sealed: the next start reads it whole");
        }
    }
}

/// Bytes of padding behind so many: a record's header at the least, so that it can say what it is.
fn padding_for(bytes: u64) -> u64 {
    let block = BLOCK as u64;
    let rest = bytes.next_multiple_of(block) - bytes;
    if rest == 0 || rest >= RECORD_LEN as u64 { rest } else { rest + block }
}

#[cfg(test)]
mod schedules;
#[cfg(test)]
mod tests;
