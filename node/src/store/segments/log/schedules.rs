//! The queue under many orders in which its threads may run: the same source, with locks that choose who goes on.
//!
//! A thread that would wait forever is noticed at once, and the order that led there is printed.

#[path = "queue.rs"]
#[expect(clippy::duplicate_mod, reason = "it is tried with other locks than those of the log")]
mod queue;

/// What the queue locks with, here.
mod sync {
    pub(super) use shuttle::sync::atomic::{AtomicBool, Ordering};
    pub(super) use shuttle::sync::{Condvar, Mutex, MutexGuard, PoisonError};

    /// Another thread may go on before it is set, after it was, and after it was looked at.
    pub(super) struct OnceLock<T> {
        value: std::sync::OnceLock<T>,
        changes: AtomicBool,
    }

    impl<T> Default for OnceLock<T> {
        fn default() -> Self {
            Self { value: std::sync::OnceLock::new(), changes: AtomicBool::new(false) }
        }
    }

    impl<T> OnceLock<T> {
        pub(super) fn get(&self) -> Option<&T> {
            let value = self.value.get();
            self.changes.load(Ordering::SeqCst);
            value
        }

        pub(super) fn set(&self, value: T) -> Result<(), T> {
            self.changes.store(true, Ordering::SeqCst);
            let done = self.value.set(value);
            self.changes.store(true, Ordering::SeqCst);
            done
        }
    }

    pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use shuttle::thread;

use self::queue::{Limits, Queue, Ticket};
use super::batch::{self, Batch, BatchLimits, Job, Written};
use super::{AppendError, Outcome};
use crate::store::segments::disk::Disk;
use crate::store::segments::disk::faults::{Faults, FaultyDisk};
use crate::store::segments::format::{ALIGNED_FROM, BLOCK, Kind, RECORD_LEN, RecordHeader};

/// Orders that are tried of each test: random ones, and as many with few and well chosen changes of thread.
const ORDERS: usize = 2_000;

/// Changes of thread in the latter: most faults need no more.
const CHANGES: usize = 3;

/// Bytes of payload of a short record: two fill what is gathered.
const SHORT: usize = 3 * RECORD_LEN;

/// Bytes of a record of which one fills a batch, save for a few short ones.
const LONG: usize = ALIGNED_FROM + BLOCK;

/// Two or three records fill the queue, and a batch.
const LIMITS: Limits = Limits {
    waiting: LONG + 8 * RECORD_LEN,
    batch: BatchLimits { bytes: LONG + 6 * RECORD_LEN, gathered: 8 * RECORD_LEN, records: 8 },
};

const THREADS: u8 = 3;
const RECORDS: u8 = 2;

/// The record whose batch cannot be written, if one cannot.
const FAILS: u8 = 1;

/// Bytes of payload, by a record's number: one of them is longer than all that may wait.
fn payload_len(record: u8) -> usize {
    [SHORT, 0, LONG, SHORT, ALIGNED_FROM, SHORT][usize::from(record) % 6]
}

static DISK: LazyLock<FaultyDisk> = LazyLock::new(|| FaultyDisk::new(1, 1 << 20, Faults::default()));
static ZEROS: [u8; LONG] = [0; LONG];

/// What was written, in the order in which it was.
#[derive(Default)]
struct Store {
    records: Vec<u8>,
    /// Those whose batch failed.
    failed: Vec<u8>,
    /// Nothing more is to come.
    sealed: bool,
}

type Records = Queue<Store>;

/// What was told of each record.
type Outcomes = Vec<(u8, Outcome)>;

/// A record whose key says its number.
fn job(record: u8, payload_len: usize) -> Job<'static> {
    let header = RecordHeader { payload_len: payload_len as u32, ..RecordHeader::bare(Kind::Head, [record; 32], 0) };
    Job::new(&*DISK, header, &[], &[], &ZEROS[..payload_len])
}

fn everywhere(test: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(test.clone(), ORDERS);
    shuttle::check_pct(test, ORDERS, CHANGES);
}

/// Takes a batch and looks at its bounds.
fn place(store: &Store, batch: &mut Batch) -> (Written, Vec<u8>) {
    let records = batch.count() - 1;
    assert!(!store.sealed, "written after the end");
    assert!(records < LIMITS.batch.records && batch.short_bytes() as usize <= LIMITS.batch.gathered);
    assert!(batch.len() <= LIMITS.batch.bytes || records == 1);
    let written = batch.place(0, |_, _| {});
    let numbers: Vec<u8> = written.headers.iter().map(|header| header.key[0]).collect();
    assert_eq!(numbers.len(), records);
    // As a disk that takes its time.
    thread::yield_now();
    (written, numbers)
}

fn write(store: &mut Store, batch: &mut Batch) -> Result<Written, AppendError> {
    let (written, numbers) = place(store, batch);
    store.records.extend(numbers);
    Ok(written)
}

/// As [`write`], but one record's batch fails.
fn write_some(store: &mut Store, batch: &mut Batch) -> Result<Written, AppendError> {
    let (written, numbers) = place(store, batch);
    if numbers.contains(&FAILS) {
        store.failed = numbers;
        return Err(AppendError::Full);
    }
    store.records.extend(numbers);
    Ok(written)
}

fn enqueue(queue: &Records, job: Job<'_>, write: Writing) -> Result<Ticket, AppendError> {
    let ticket = queue.enqueue(job, DISK.pool(), &write);
    let (bytes, records) = queue.waiting();
    assert!(bytes <= LIMITS.waiting || records == 1, "{bytes} bytes wait, of {records} records");
    ticket
}

type Writing = fn(&mut Store, &mut Batch) -> Result<Written, AppendError>;

/// Brings records, each alone or all at once, and returns them with their outcomes.
fn bring(queue: &Records, thread: u8, write: Writing) -> Outcomes {
    let records = (0..RECORDS).map(|record| thread * RECORDS + record);
    let begin = |record| (record, enqueue(queue, job(record, payload_len(record)), write));
    let end = |(record, ticket): (u8, Result<Ticket, AppendError>)| {
        (record, ticket.and_then(|ticket| queue.wait(&ticket, &write)))
    };
    if thread.is_multiple_of(2) {
        let begun: Vec<_> = records.map(begin).collect();
        begun.into_iter().map(end).collect()
    } else {
        records.map(|record| end(begin(record))).collect()
    }
}

fn start(queue: &Arc<Records>, write: Writing) -> Vec<thread::JoinHandle<Outcomes>> {
    let begin = |number| {
        let queue = queue.clone();
        thread::spawn(move || bring(&queue, number, write))
    };
    (0..THREADS).map(begin).collect()
}

fn serve(queue: &Arc<Records>, write: Writing) -> thread::JoinHandle<()> {
    let queue = queue.clone();
    thread::spawn(move || queue.serve(write))
}

fn join<T>(threads: Vec<thread::JoinHandle<Vec<T>>>) -> Vec<T> {
    threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
}

/// As a log whose writing has ended: its last segment is sealed.
fn seal(queue: &Records) {
    queue.writer().sealed = true;
}

/// What was told is what was written, once; what was refused was not. Nothing waits, and nothing is taken.
fn compare(queue: &Records, outcomes: &Outcomes) {
    assert_eq!(enqueue(queue, job(0, 0), write).err(), Some(AppendError::Closed));
    assert_eq!(queue.waiting(), (0, 0));
    let mut told: Vec<u8> = Vec::new();
    for (record, outcome) in outcomes {
        if let Ok(header) = outcome {
            assert_eq!(header.key, [*record; 32], "another's outcome");
            told.push(*record);
        }
    }
    let mut written = queue.writer().records.clone();
    written.sort_unstable();
    told.sort_unstable();
    assert_eq!(told, written);
}

#[test]
fn with_a_thread_that_serves_all_is_written_and_told_once() {
    everywhere(|| {
        let queue = Arc::new(Queue::new(Store::default()));
        let server = serve(&queue, write);
        let outcomes = join(start(&queue, write));
        queue.close();
        server.join().unwrap();
        assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
        compare(&queue, &outcomes);
    });
}

#[test]
fn without_one_the_first_who_waits_writes_for_all() {
    everywhere(|| {
        let queue = Arc::new(Queue::new(Store::default()));
        let outcomes = join(start(&queue, write));
        queue.close();
        assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
        compare(&queue, &outcomes);
    });
}

#[test]
fn closed_at_any_time_it_writes_what_it_took_and_nothing_else() {
    everywhere(|| {
        let queue = Arc::new(Queue::new(Store::default()));
        let server = serve(&queue, write);
        let threads = start(&queue, write);
        queue.close();
        server.join().unwrap();
        seal(&queue);
        let outcomes = join(threads);
        assert!(outcomes.iter().all(|(_, outcome)| matches!(outcome, Ok(_) | Err(AppendError::Closed))));
        compare(&queue, &outcomes);
    });
}

#[test]
fn a_batch_that_fails_is_refused_whole_and_no_other() {
    everywhere(|| {
        let queue = Arc::new(Queue::new(Store::default()));
        let server = serve(&queue, write_some);
        let outcomes = join(start(&queue, write_some));
        queue.close();
        server.join().unwrap();
        compare(&queue, &outcomes);
        let failed = queue.writer().failed.clone();
        assert!(failed.contains(&FAILS));
        for (record, outcome) in outcomes {
            let expected = if failed.contains(&record) { Some(AppendError::Full) } else { None };
            assert_eq!(outcome.err(), expected, "record {record}");
        }
    });
}

#[test]
fn nobody_waits_for_a_writer_that_has_panicked() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    fn panics(store: &mut Store, batch: &mut Batch) -> Result<Written, AppendError> {
        if !store.records.is_empty() {
            // Without the message that a panic prints.
            resume_unwind(Box::new("the disk is on fire"));
        }
        write(store, batch)
    }
    everywhere(|| {
        let queue = Arc::new(Queue::new(Store::default()));
        let server = thread::spawn({
            let queue = queue.clone();
            move || catch_unwind(AssertUnwindSafe(|| queue.serve(panics))).is_err()
        });
        let outcomes = join(start(&queue, write));
        // All may have been written before the thread served; then it has nothing to do.
        if outcomes.iter().all(|(_, outcome)| outcome.is_ok()) {
            queue.close();
        }
        let panicked = server.join().unwrap();
        PANICS.fetch_add(panicked.into(), Ordering::Relaxed);
        seal(&queue);
        assert!(panicked || outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
        compare(&queue, &outcomes);
    });
    assert!(PANICS.load(Ordering::Relaxed) > ORDERS / 2);
}

/// Each who is woken wakes two more, and who comes late needs no waking.
#[test]
fn the_chain_of_waking_reaches_everybody() {
    everywhere(|| {
        let queue = Arc::new(Queue::new(Store::default()));
        // They fill one batch.
        let tickets: Vec<_> = (0..7).map(|record| (record, enqueue(&queue, job(record, 0), write).unwrap())).collect();
        assert_eq!(queue.waiting(), (7 * RECORD_LEN, 7));
        let wait = |(record, ticket)| {
            let queue = queue.clone();
            thread::spawn(move || vec![(record, queue.wait(&ticket, &(write as Writing)))])
        };
        let server = serve(&queue, write);
        let threads = tickets.into_iter().map(wait).collect();
        // What was taken before is written.
        queue.close();
        let outcomes = join(threads);
        server.join().unwrap();
        assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
        compare(&queue, &outcomes);
    });
}

/// The tests before would see it.
#[test]
#[should_panic(expected = "deadlock")]
fn one_who_waits_forever_is_noticed() {
    everywhere(|| serve(&Arc::new(Queue::new(Store::default())), write).join().unwrap());
}
