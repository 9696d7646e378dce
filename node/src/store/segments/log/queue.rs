//! What waits to be written, and those who wait for it.
//!
//! It is bounded in bytes: who brings more waits before. Whoever brought a record is told one outcome, also where the queue
//! is closed or the writer panics; what is refused is never written. With a thread that serves the queue, that one writes;
//! else the first who waits writes for all.
//!
//! Locks come from `super::sync` and limits from `super`, so that the orders in which threads may run can be tried
//! (`schedules`).

use std::collections::VecDeque;
use std::sync::Arc;

use potluck_proto::buffers::Pool;

use super::batch::{Batch, BatchLimits, Job, Place, Written};
use super::sync::{AtomicBool, Condvar, Mutex, MutexGuard, OnceLock, Ordering, PoisonError, lock};
use super::{AppendError, LIMITS, Outcome};

/// How many of those who wait for a batch each wakes who was woken: to wake all would keep the writer from the disk for
/// longer than a small batch takes.
const WAKES: usize = 2;

/// How much waits, and how much of it is written at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of records that may wait; who brings more waits before. One record alone may be longer.
    pub(super) waiting: usize,
    pub(super) batch: BatchLimits,
}

/// What became of a batch.
type Told = Result<Written, AppendError>;

/// Those who wait for a batch, and what they are told once it is known.
#[derive(Default)]
struct Waiters {
    told: OnceLock<Told>,
    /// How many wait.
    waiting: Mutex<usize>,
    woken: Condvar,
}

impl Waiters {
    fn wait(&self) -> &Told {
        let mut waiting = lock(&self.waiting);
        loop {
            if let Some(told) = self.told.get() {
                let others = (*waiting).min(WAKES);
                drop(waiting);
                (0..others).for_each(|_| self.woken.notify_one());
                return told;
            }
            *waiting += 1;
            waiting = self.woken.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            *waiting -= 1;
        }
    }

    /// Only what is told first counts.
    fn tell(&self, told: Told) {
        let waiting = lock(&self.waiting);
        let _ = self.told.set(told);
        drop(waiting);
        self.woken.notify_one();
    }
}

/// Those who wait for a batch are told in any case, also that it is dropped.
#[derive(Default)]
struct Promise(Arc<Waiters>);

impl Drop for Promise {
    fn drop(&mut self) {
        if self.0.told.get().is_none() {
            self.0.tell(Err(AppendError::Closed));
        }
    }
}

/// One record of a batch, for whoever waits for it.
pub(super) struct Ticket {
    batch: Arc<Waiters>,
    place: Place,
}

impl Ticket {
    fn outcome(&self, told: &Told) -> Outcome {
        told.as_ref().map(|written| written.header(self.place)).map_err(Clone::clone)
    }
}

/// Batches that wait.
#[derive(Default)]
struct Waiting {
    batches: VecDeque<(Batch, Promise)>,
    /// Bytes of their records.
    bytes: usize,
    /// Nothing more is taken.
    closed: bool,
    /// The thread that writes waits for something to write.
    idle: bool,
    /// How many wait for room.
    crowded: usize,
}

impl Waiting {
    /// Adds a record to the last batch, or to a new one.
    fn add(&mut self, job: Job<'_>, pool: &Pool) -> Ticket {
        self.bytes += job.len();
        if self.batches.back().is_none_or(|(last, _)| !last.fits(&job, &LIMITS.batch)) {
            self.batches.push_back(Default::default());
        }
        // There is one now.
        let last = self.batches.len() - 1;
        let (batch, promise) = &mut self.batches[last];
        Ticket { batch: promise.0.clone(), place: batch.add(job, pool, &LIMITS.batch) }
    }
}

/// The queue, and what records are written with.
pub(super) struct Queue<W> {
    waiting: Mutex<Waiting>,
    /// Something waits, or the queue was closed.
    filled: Condvar,
    /// There is room again, or the queue was closed.
    emptied: Condvar,
    writer: Mutex<W>,
    served: AtomicBool,
}

impl<W> Queue<W> {
    /// An empty queue.
    pub(super) fn new(writer: W) -> Self {
        Self {
            waiting: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            writer: Mutex::new(writer),
            served: AtomicBool::new(false),
        }
    }

    /// Writes until the queue is closed and nothing waits. To be called by one thread; from then on those who wait leave
    /// the writing to it.
    pub(super) fn serve(&self, write: impl Fn(&mut W, &mut Batch) -> Told) {
        /// Nobody is to wait for a writer that has panicked.
        struct Closing<'a, W>(&'a Queue<W>);
        impl<W> Drop for Closing<'_, W> {
            fn drop(&mut self) {
                self.0.close();
                let mut waiting = lock(&self.0.waiting);
                waiting.bytes = 0;
                let dropped = std::mem::take(&mut waiting.batches);
                drop(waiting);
                drop(dropped);
            }
        }
        let _closing = Closing(self);
        self.served.store(true, Ordering::Release);
        while let Some(batch) = self.next_batch() {
            write_batch(&mut *lock(&self.writer), batch, &write);
        }
    }

    /// Waits for a batch; `None` once the queue was closed and nothing waits.
    fn next_batch(&self) -> Option<(Batch, Promise)> {
        let mut waiting = lock(&self.waiting);
        loop {
            if let Some(batch) = self.take_batch(&mut waiting) {
                return Some(batch);
            }
            if waiting.closed {
                return None;
            }
            waiting.idle = true;
            waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.idle = false;
        }
    }

    fn take_batch(&self, waiting: &mut Waiting) -> Option<(Batch, Promise)> {
        let (batch, promise) = waiting.batches.pop_front()?;
        waiting.bytes -= batch.len();
        if waiting.crowded > 0 {
            self.emptied.notify_all();
        }
        Some((batch, promise))
    }

    /// Takes nothing more; what waits is written.
    pub(super) fn close(&self) {
        lock(&self.waiting).closed = true;
        self.filled.notify_all();
        self.emptied.notify_all();
    }

    /// What records are written with, while none is.
    pub(super) fn writer(&self) -> MutexGuard<'_, W> {
        lock(&self.writer)
    }

    /// Bytes that wait, and in how many records.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> (usize, usize) {
        let waiting = lock(&self.waiting);
        // Each counts a record of padding.
        (waiting.bytes, waiting.batches.iter().map(|(batch, _)| batch.count() - 1).sum())
    }

    fn is_served(&self) -> bool {
        self.served.load(Ordering::Acquire)
    }

    /// Brings a record, once there is room for it.
    pub(super) fn enqueue(
        &self,
        job: Job<'_>,
        pool: &Pool,
        write: &impl Fn(&mut W, &mut Batch) -> Told,
    ) -> Result<Ticket, AppendError> {
        let mut waiting = lock(&self.waiting);
        loop {
            if waiting.closed {
                return Err(AppendError::Closed);
            }
            if waiting.bytes == 0 || waiting.bytes + job.len() <= LIMITS.waiting {
                break;
            }
            if self.is_served() {
                waiting.crowded += 1;
                waiting = self.emptied.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                waiting.crowded -= 1;
            } else {
                drop(waiting);
                self.write_next(&mut lock(&self.writer), write);
                waiting = lock(&self.waiting);
            }
        }
        let ticket = waiting.add(job, pool);
        let idle = waiting.idle;
        drop(waiting);
        if idle {
            self.filled.notify_one();
        }
        Ok(ticket)
    }

    /// Waits for what became of a record.
    pub(super) fn wait(&self, ticket: &Ticket, write: &impl Fn(&mut W, &mut Batch) -> Told) -> Outcome {
        while !self.is_served() {
            let mut writer = lock(&self.writer);
            // Whoever had the writer before may have written this too.
            if let Some(told) = ticket.batch.told.get() {
                return ticket.outcome(told);
            }
            self.write_next(&mut writer, write);
        }
        ticket.outcome(ticket.batch.wait())
    }

    fn write_next(&self, writer: &mut W, write: &impl Fn(&mut W, &mut Batch) -> Told) {
        let batch = self.take_batch(&mut lock(&self.waiting));
        if let Some(batch) = batch {
            write_batch(writer, batch, write);
        }
    }
}

fn write_batch<W>(writer: &mut W, (mut batch, promise): (Batch, Promise), write: &impl Fn(&mut W, &mut Batch) -> Told) {
    promise.0.tell(write(writer, &mut batch));
}
