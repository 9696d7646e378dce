//! What waits to be written, and those who wait for it.
//!
//! It is bounded in bytes: who brings more waits before. Whoever brought something is told one outcome, also where the
//! queue is closed or a writer panics; what is refused is never written. With a thread that serves the queue, that one
//! writes; else the first who waits writes for all.
//!
//! Locks come from `super::sync`, so that the orders in which threads may run can be tried (`schedules`).

use std::collections::VecDeque;

use super::sync::{Arc, AtomicBool, Condvar, Mutex, MutexGuard, Ordering, PoisonError};

/// How much waits, and how much of it is written at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes that may wait; one job alone may be longer.
    pub(super) waiting: usize,
    /// Bytes of a batch; one job alone may be longer.
    pub(super) batch_bytes: usize,
    /// Jobs of a batch.
    pub(super) batch_jobs: usize,
}

/// The queue was closed, or the writer has panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closed;

/// One who waits for an outcome.
pub(super) struct Waiter<O> {
    outcome: Mutex<Option<Result<O, Closed>>>,
    told: Condvar,
}

impl<O> Waiter<O> {
    fn new() -> Self {
        Self { outcome: Mutex::new(None), told: Condvar::new() }
    }

    fn wait(&self) -> Result<O, Closed> {
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
pub(super) struct Promise<O>(Arc<Waiter<O>>);

impl<O> Promise<O> {
    pub(super) fn tell(&self, outcome: O) {
        *lock(&self.0.outcome) = Some(Ok(outcome));
        self.0.told.notify_all();
    }
}

impl<O> Drop for Promise<O> {
    fn drop(&mut self) {
        // He has taken it, or it is there to be taken, if nothing went wrong: then this is seen by nobody.
        lock(&self.0.outcome).get_or_insert(Err(Closed));
        self.0.told.notify_all();
    }
}

/// What is written at once.
pub(super) type Batch<J, O> = Vec<(J, Promise<O>)>;

struct Waiting<J, O> {
    jobs: VecDeque<(J, Promise<O>)>,
    bytes: usize,
    closed: bool,
}

/// The queue, and what its jobs are written with.
pub(super) struct Queue<J, O, W> {
    waiting: Mutex<Waiting<J, O>>,
    /// Something waits, or the queue was closed.
    filled: Condvar,
    /// There is room again, or the queue was closed.
    emptied: Condvar,
    writer: Mutex<W>,
    served: AtomicBool,
    limits: Limits,
    len: fn(&J) -> usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<J, O, W> Queue<J, O, W> {
    /// An empty queue of jobs, each `len` bytes long.
    pub(super) fn new(limits: Limits, len: fn(&J) -> usize, writer: W) -> Self {
        Self {
            waiting: Mutex::new(Waiting { jobs: VecDeque::new(), bytes: 0, closed: false }),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            writer: Mutex::new(writer),
            served: AtomicBool::new(false),
            limits,
            len,
        }
    }

    /// Writes until the queue is closed and nothing waits. To be called by one thread; from then on those who wait leave
    /// the writing to it.
    pub(super) fn serve(&self, write: impl Fn(&mut W, Batch<J, O>)) {
        /// Nobody is to wait for a writer that has panicked.
        struct Closing<'a, J, O, W>(&'a Queue<J, O, W>);
        impl<J, O, W> Drop for Closing<'_, J, O, W> {
            fn drop(&mut self) {
                self.0.close();
                lock(&self.0.waiting).jobs.clear();
            }
        }
        let _closing = Closing(self);
        self.served.store(true, Ordering::Release);
        loop {
            let mut waiting = lock(&self.waiting);
            while waiting.jobs.is_empty() && !waiting.closed {
                waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            if waiting.jobs.is_empty() {
                return;
            }
            drop(waiting);
            self.write_batch(&mut lock(&self.writer), &write);
        }
    }

    /// Takes nothing more; what waits is written.
    pub(super) fn close(&self) {
        lock(&self.waiting).closed = true;
        self.filled.notify_all();
        self.emptied.notify_all();
    }

    /// What jobs are written with, while nothing is.
    pub(super) fn writer(&self) -> MutexGuard<'_, W> {
        lock(&self.writer)
    }

    /// Bytes that wait.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        lock(&self.waiting).bytes
    }

    fn is_served(&self) -> bool {
        self.served.load(Ordering::Acquire)
    }

    /// Brings a job, once there is room for it.
    pub(super) fn enqueue(&self, job: J, write: &impl Fn(&mut W, Batch<J, O>)) -> Result<Arc<Waiter<O>>, Closed> {
        let waiter = Arc::new(Waiter::new());
        let len = (self.len)(&job);
        let mut waiting = lock(&self.waiting);
        loop {
            if waiting.closed {
                return Err(Closed);
            }
            if waiting.bytes == 0 || waiting.bytes + len <= self.limits.waiting {
                break;
            }
            if self.is_served() {
                waiting = self.emptied.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            } else {
                drop(waiting);
                self.write_batch(&mut lock(&self.writer), write);
                waiting = lock(&self.waiting);
            }
        }
        waiting.bytes += len;
        waiting.jobs.push_back((job, Promise(waiter.clone())));
        drop(waiting);
        self.filled.notify_one();
        Ok(waiter)
    }

    /// Waits for what was brought.
    pub(super) fn wait(&self, waiter: &Waiter<O>, write: &impl Fn(&mut W, Batch<J, O>)) -> Result<O, Closed> {
        while !self.is_served() {
            let mut writer = lock(&self.writer);
            // Whoever had the writer before may have written this too.
            if let Some(outcome) = lock(&waiter.outcome).take() {
                return outcome;
            }
            self.write_batch(&mut writer, write);
        }
        waiter.wait()
    }

    fn take_batch(&self) -> Batch<J, O> {
        let mut waiting = lock(&self.waiting);
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some((job, _)) = waiting.jobs.front() {
            let len = (self.len)(job);
            if !batch.is_empty() && (bytes + len > self.limits.batch_bytes || batch.len() >= self.limits.batch_jobs) {
                break;
            }
            bytes += len;
            batch.extend(waiting.jobs.pop_front());
        }
        waiting.bytes -= bytes;
        drop(waiting);
        self.emptied.notify_all();
        batch
    }

    fn write_batch(&self, writer: &mut W, write: &impl Fn(&mut W, Batch<J, O>)) {
        let batch = self.take_batch();
        if !batch.is_empty() {
            write(writer, batch);
        }
    }
}
