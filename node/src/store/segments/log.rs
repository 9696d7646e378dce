//! The one writer of a store.
//!
//! What is to be written waits in a queue that is bounded in bytes. The writer takes what is there, up to a bound and
//! without waiting for more, writes it at once, syncs once, tells the table, and then those who wait. While it syncs the
//! next batch gathers, so the busier the disk the larger the batches.
//!
//! A write or sync that fails ends the segment: what of that batch is on disk is not known, so nothing more is written
//! behind it, those who wait are told, and the next batch begins a new segment. Nothing is tried again as if nothing had
//! happened.
//!
//! Without a thread the first who waits writes for all; a simulation needs no more.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use potluck_proto::buffers::Buffer;
use potluck_proto::id::Digest;

use super::disk::{Disk, DiskFile};
use super::format::{
    BLOCK, Kind, RECORD_LEN, RECORDS_LIMIT, RecordHeader, Seal, SegmentHeader, StoreId, encode_footer,
};
use super::table::Table;

/// Bytes of records that may wait; who brings more waits before.
const QUEUE_BYTES: usize = 32 << 20;

/// Bytes written with one sync: a few milliseconds of a fast disk. One record may be longer.
const BATCH_BYTES: usize = 8 << 20;

/// Records written with one sync.
const BATCH_RECORDS: usize = 512;

/// Milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

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

/// A record to be written. Sequence, place, time and, where it is 0, generation of its header are the writer's to fill in.
pub struct Job {
    header: RecordHeader,
    bytes: Buffer,
    /// Whether the table is told; else whoever waits tells it.
    tell: bool,
}

impl Job {
    /// A record of these parts. They are copied once, to memory that the disk can write as it lies.
    #[must_use]
    pub fn new(disk: &dyn Disk, header: RecordHeader, stripe: &[u8], tree: &[u8], payload: &[u8]) -> Self {
        let mut bytes = disk.pool().take(header.extent() as usize);
        let mut at = RECORD_LEN;
        for part in [stripe, tree] {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        let payload_at = header.payload_at() as usize;
        let end = payload_at + payload.len();
        bytes[at..payload_at].fill(0);
        bytes[payload_at..end].copy_from_slice(payload);
        bytes[end..].fill(0);
        Self { header, bytes, tell: true }
    }

    /// The table is told by whoever waits, once he has seen that the record is sound.
    #[must_use]
    pub fn untold(self) -> Self {
        Self { tell: false, ..self }
    }
}

type Outcome = Result<RecordHeader, AppendError>;

#[derive(Default)]
struct Waiter {
    outcome: Mutex<Option<Outcome>>,
    told: Condvar,
}

impl Waiter {
    fn tell(&self, outcome: Outcome) {
        *lock(&self.outcome) = Some(outcome);
        self.told.notify_all();
    }

    fn wait(&self) -> Outcome {
        let mut outcome = lock(&self.outcome);
        loop {
            match outcome.take() {
                Some(done) => return done,
                None => outcome = self.told.wait(outcome).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Someone waits for this to be kept; that it is dropped he is told too.
struct Promise(Arc<Waiter>);

impl Drop for Promise {
    fn drop(&mut self) {
        // He has taken it, or it is there to be taken, if nothing went wrong: then this is seen by nobody.
        lock(&self.0.outcome).get_or_insert(Err(AppendError::Closed));
        self.0.told.notify_all();
    }
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Job, Promise)>,
    bytes: usize,
    closed: bool,
}

/// The segment that is written.
struct Active {
    file: Arc<dyn DiskFile>,
    segment: u64,
    position: u64,
    headers: Vec<RecordHeader>,
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
    queue: Mutex<Queue>,
    /// Something waits, or the log was closed.
    filled: Condvar,
    /// There is room in the queue again.
    emptied: Condvar,
    writer: Mutex<Writer>,
    threaded: AtomicBool,
    failures: AtomicU64,
    /// The segment that is written, or 0.
    active: AtomicU64,
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
            queue: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            writer: Mutex::new(Writer { active: None, next_segment }),
            threaded: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            active: AtomicU64::new(0),
        }
    }

    /// The segment that is written, if there is one: it is not for compaction.
    #[must_use]
    pub fn active(&self) -> Option<u64> {
        Some(self.active.load(Ordering::Acquire)).filter(|segment| *segment != 0)
    }

    /// Segments that a failed write or sync has ended.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Writes until the log is closed and nothing waits. To be called by one thread; from then on those who wait leave
    /// the writing to it.
    pub fn run(&self) {
        /// Nobody is to wait for a writer that has panicked.
        struct Closing<'a>(&'a Log);
        impl Drop for Closing<'_> {
            fn drop(&mut self) {
                self.0.close();
                lock(&self.0.queue).jobs.clear();
            }
        }
        let _closing = Closing(self);
        self.threaded.store(true, Ordering::Release);
        loop {
            let mut queue = lock(&self.queue);
            while queue.jobs.is_empty() && !queue.closed {
                queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            if queue.jobs.is_empty() {
                return;
            }
            drop(queue);
            self.write_batch(&mut lock(&self.writer));
        }
    }

    /// Takes nothing more; what waits is written.
    pub fn close(&self) {
        lock(&self.queue).closed = true;
        self.filled.notify_all();
        self.emptied.notify_all();
    }

    /// Seals the active segment, once the log was closed and nobody writes.
    pub fn finish(&self) {
        let mut writer = lock(&self.writer);
        if let Some(active) = writer.active.take() {
            self.seal(active);
        }
    }

    /// Writes a record; it is on disk, and in the table, when this returns its header.
    pub fn append(&self, job: Job) -> Outcome {
        self.enqueue(job).and_then(|waiter| self.wait(&waiter))
    }

    /// Writes records, most often with one sync.
    pub fn append_all(&self, jobs: Vec<Job>) -> Vec<Outcome> {
        let waiters: Vec<_> = jobs.into_iter().map(|job| self.enqueue(job)).collect();
        waiters.into_iter().map(|waiter| waiter.and_then(|waiter| self.wait(&waiter))).collect()
    }

    fn is_threaded(&self) -> bool {
        self.threaded.load(Ordering::Acquire)
    }

    fn enqueue(&self, job: Job) -> Result<Arc<Waiter>, AppendError> {
        let waiter = Arc::new(Waiter::default());
        let mut queue = lock(&self.queue);
        loop {
            if queue.closed {
                return Err(AppendError::Closed);
            }
            if queue.bytes == 0 || queue.bytes + job.bytes.len() <= QUEUE_BYTES {
                break;
            }
            if self.is_threaded() {
                queue = self.emptied.wait(queue).unwrap_or_else(PoisonError::into_inner);
            } else {
                drop(queue);
                self.write_batch(&mut lock(&self.writer));
                queue = lock(&self.queue);
            }
        }
        queue.bytes += job.bytes.len();
        queue.jobs.push_back((job, Promise(waiter.clone())));
        drop(queue);
        self.filled.notify_one();
        Ok(waiter)
    }

    fn wait(&self, waiter: &Waiter) -> Outcome {
        while !self.is_threaded() {
            let mut writer = lock(&self.writer);
            // Whoever had the writer before may have written this too.
            if let Some(outcome) = lock(&waiter.outcome).take() {
                return outcome;
            }
            self.write_batch(&mut writer);
        }
        waiter.wait()
    }

    fn take_batch(&self) -> Vec<(Job, Promise)> {
        let mut queue = lock(&self.queue);
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some((job, _)) = queue.jobs.front() {
            if !batch.is_empty() && (bytes + job.bytes.len() > BATCH_BYTES || batch.len() >= BATCH_RECORDS) {
                break;
            }
            bytes += job.bytes.len();
            batch.extend(queue.jobs.pop_front());
        }
        queue.bytes -= bytes;
        drop(queue);
        self.emptied.notify_all();
        batch
    }

    fn write_batch(&self, writer: &mut Writer) {
        let mut batch = self.take_batch();
        if batch.is_empty() {
            return;
        }
        // Short records stand together, each longer one begins at a block. Records of one batch have no order among them.
        batch.sort_by_key(|(job, _)| job.header.is_aligned());
        let written = self.write(writer, &mut batch);
        for (job, promise) in batch {
            promise.0.tell(written.clone().map(|()| job.header));
        }
    }

    /// Writes and syncs a batch, then tells the table.
    fn write(&self, writer: &mut Writer, batch: &mut [(Job, Promise)]) -> Result<(), AppendError> {
        let short: u64 =
            batch.iter().filter(|(job, _)| !job.header.is_aligned()).map(|(job, _)| job.header.extent()).sum();
        let padding = padding_for(short);
        let long: u64 =
            batch.iter().filter(|(job, _)| job.header.is_aligned()).map(|(job, _)| job.header.extent()).sum();
        let bytes = short + padding + long;
        let fits = |active: &Active| {
            active.position + bytes <= self.segment_bytes && active.headers.len() + batch.len() < RECORDS_LIMIT
        };
        if let Some(full) = writer.active.take_if(|active| !fits(active)) {
            self.active.store(0, Ordering::Release);
            self.seal(full);
        }
        if writer.active.is_none() {
            writer.active = Some(self.begin(writer, bytes).map_err(|error| {
                tracing::error!(%error, "a new segment could not be begun");
                AppendError::of(&error)
            })?);
        }
        // Back in its place once all went well: what panics ends the segment as well.
        let Some(mut active) = writer.active.take() else { return Err(AppendError::Closed) };

        let mut headers = Vec::with_capacity(batch.len() + 1);
        let mut gathered = self.disk.pool().take((short + padding) as usize);
        let mut at = 0;
        let mut place = |mut header: RecordHeader, headers: &mut Vec<RecordHeader>| {
            header.sequence = (active.segment << 32) | (active.headers.len() + headers.len()) as u64;
            if header.generation == 0 {
                header.generation = header.sequence;
            }
            (header.store, header.segment, header.offset) = (self.store, active.segment, active.position + at);
            header.time_ms = (self.clock)();
            at += header.extent();
            headers.push(header);
            header
        };
        let (shorts, longs) = batch.split_at_mut(batch.partition_point(|(job, _)| !job.header.is_aligned()));
        let mut filled = 0;
        for (job, _) in shorts {
            job.header = place(job.header, &mut headers);
            job.bytes[..RECORD_LEN].copy_from_slice(&job.header.encode());
            gathered[filled..filled + job.bytes.len()].copy_from_slice(&job.bytes);
            filled += job.bytes.len();
        }
        if padding > 0 {
            gathered[filled..].fill(0);
            let payload = &gathered[filled + RECORD_LEN..];
            let header = RecordHeader {
                payload_len: payload.len() as u32,
                payload: Digest::of(payload),
                ..RecordHeader::bare(Kind::Padding, [0; 32], 0)
            };
            let header = place(header, &mut headers);
            gathered[filled..filled + RECORD_LEN].copy_from_slice(&header.encode());
        }
        for (job, _) in &mut *longs {
            job.header = place(job.header, &mut headers);
            job.bytes[..RECORD_LEN].copy_from_slice(&job.header.encode());
        }
        let mut parts: Vec<&[u8]> = Vec::with_capacity(1 + longs.len());
        parts.push(&gathered);
        parts.extend(longs.iter().map(|(job, _)| &*job.bytes));
        let written = active.file.write_at(active.position, &parts).and_then(|()| active.file.sync_data());

        let mut table = lock(&self.table);
        if let Err(error) = written {
            tracing::error!(%error, segment = active.segment, "a write failed: the segment is ended, what waited is refused");
            self.failures.fetch_add(1, Ordering::Relaxed);
            table.failed(&headers);
            drop(table);
            // A page cache may show what the disk never took, and a start would believe it: it is cut off. What is behind
            // the end of the batch before was set aside for nothing too.
            if let Err(error) = active.file.set_len(active.position) {
                tracing::warn!(%error, segment = active.segment, "the ended segment could not be cut");
            }
            self.active.store(0, Ordering::Release);
            return Err(AppendError::of(&error));
        }
        active.position += bytes;
        // Padding is of nobody's, and told here.
        let untold: Vec<u64> = batch.iter().filter(|(job, _)| !job.tell).map(|(job, _)| job.header.sequence).collect();
        for header in headers.iter().filter(|header| !untold.contains(&header.sequence)) {
            table.apply(header);
        }
        active.headers.extend(headers);
        drop(table);
        writer.active = Some(active);
        Ok(())
    }

    /// Begins a segment in which a batch of so many bytes has room. Its name and header last when it returns.
    fn begin(&self, writer: &mut Writer, bytes: u64) -> io::Result<Active> {
        let segment = writer.next_segment;
        if segment >= SEGMENT_LIMIT {
            return Err(io::Error::other("no numbers are left for new segments"));
        }
        // Whatever comes of it, the number is used.
        writer.next_segment += 1;
        let name = segment_name(segment);
        let least = BLOCK as u64 + bytes;
        let room = self.segment_bytes.max(least);
        let file = match self.disk.create(&name, room) {
            // What is left may do for this batch, and deletions must go on.
            Err(error) if AppendError::of(&error) == AppendError::Full => self.disk.create(&name, least)?,
            file => file?,
        };
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
        // Before the table knows of it: nobody is to take it for one that can be emptied.
        self.active.store(segment, Ordering::Release);
        lock(&self.table).begin_segment(segment);
        Ok(Active { file, segment, position: BLOCK as u64, headers: Vec::new() })
    }

    /// Writes the footer. All records are synced already: if this fails, the next start reads them one by one.
    fn seal(&self, active: Active) {
        let payload = encode_footer(&active.headers);
        let header = RecordHeader {
            sequence: (active.segment << 32) | active.headers.len() as u64,
            store: self.store,
            segment: active.segment,
            offset: active.position,
            time_ms: (self.clock)(),
            payload_len: payload.len() as u32,
            payload: Digest::of(&payload),
            ..RecordHeader::bare(Kind::Footer, [0; 32], 0)
        };
        let end = active.position + header.extent().next_multiple_of(BLOCK as u64);
        let seal = Seal {
            store: self.store,
            segment: active.segment,
            footer: active.position,
            count: active.headers.len() as u32,
            headers: header.payload,
            len: end + BLOCK as u64,
        };
        let mut bytes = vec![0; (seal.len - active.position) as usize];
        let (payload_at, seal_at) = (header.payload_at() as usize, (end - active.position) as usize);
        bytes[..RECORD_LEN].copy_from_slice(&header.encode());
        bytes[payload_at..payload_at + payload.len()].copy_from_slice(&payload);
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
mod tests;
