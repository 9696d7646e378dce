//! The queue under many orders in which its threads may run: the same source, with locks that choose who goes on.
//!
//! A thread that would wait forever is noticed at once, and the order that led there is printed.

#[path = "queue.rs"]
#[expect(clippy::duplicate_mod, reason = "it is tried with other locks than those of the log")]
mod queue;

/// What the queue locks with, here.
mod sync {
    pub(super) use shuttle::sync::atomic::{AtomicBool, Ordering};
    pub(super) use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
}

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use self::queue::{Batch, Closed, Limits, Queue};
use self::sync::Arc;
use shuttle::thread;

/// Orders that are tried of each test: random ones, and as many with few and well chosen changes of thread.
const ORDERS: usize = 5_000;

/// Changes of thread in the latter: most faults need no more.
const CHANGES: usize = 3;

/// Two or three jobs fill the queue, and a batch.
const LIMITS: Limits = Limits { waiting: 5, batch_bytes: 4, batch_jobs: 2 };

const THREADS: usize = 3;
const JOBS: usize = 2;

/// A job is its number; its outcome too.
type Numbers = Queue<usize, usize, Vec<usize>>;

/// What was told of each job.
type Outcomes = Vec<(usize, Result<usize, Closed>)>;

/// Bytes of a job: one of them is longer than all that may wait.
fn len(job: &usize) -> usize {
    [2, 1, 6, 3, 0, 2][job % 6]
}

fn everywhere(test: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(test.clone(), ORDERS);
    shuttle::check_pct(test, ORDERS, CHANGES);
}

fn write(written: &mut Vec<usize>, batch: Batch<usize, usize>) {
    let bytes: usize = batch.iter().map(|(job, _)| len(job)).sum();
    assert!(batch.len() <= LIMITS.batch_jobs && (bytes <= LIMITS.batch_bytes || batch.len() == 1));
    written.extend(batch.iter().map(|(job, _)| *job));
    // As a disk that takes its time.
    thread::yield_now();
    for (job, promise) in batch {
        promise.tell(job);
    }
}

fn queue() -> Arc<Numbers> {
    Arc::new(Queue::new(LIMITS, len, Vec::new()))
}

/// Brings jobs, each alone or all at once, and returns them with their outcomes.
fn bring(queue: &Numbers, thread: usize, together: bool) -> Outcomes {
    let jobs = (0..JOBS).map(|job| thread * JOBS + job);
    let begin = |job| {
        let waiter = queue.enqueue(job, &write);
        let longest = LIMITS.waiting.max(6);
        assert!(queue.bytes() <= longest, "{} bytes wait", queue.bytes());
        (job, waiter)
    };
    let end = |(job, waiter): (usize, Result<_, Closed>)| {
        (job, waiter.and_then(|waiter: Arc<queue::Waiter<usize>>| queue.wait(&waiter, &write)))
    };
    if together {
        let begun: Vec<_> = jobs.map(begin).collect();
        begun.into_iter().map(end).collect()
    } else {
        jobs.map(|job| end(begin(job))).collect()
    }
}

fn start(queue: &Arc<Numbers>) -> Vec<thread::JoinHandle<Outcomes>> {
    (0..THREADS)
        .map(|number| {
            let queue = queue.clone();
            thread::spawn(move || bring(&queue, number, number % 2 == 0))
        })
        .collect()
}

/// What was told is what was written, once; what was refused was not.
fn compare(queue: &Numbers, outcomes: Outcomes) {
    let mut written = queue.writer().clone();
    let mut told: Vec<usize> = outcomes
        .into_iter()
        .filter_map(|(job, outcome)| outcome.ok().inspect(|told| assert_eq!(*told, job, "another's outcome")))
        .collect();
    written.sort_unstable();
    told.sort_unstable();
    assert_eq!(told, written);
    assert_eq!(queue.bytes(), 0);
}

fn join<T>(threads: Vec<thread::JoinHandle<Vec<T>>>) -> Vec<T> {
    threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn with_a_thread_that_serves_all_is_written_and_told_once() {
    everywhere(|| {
        let queue = queue();
        let server = thread::spawn({
            let queue = queue.clone();
            move || queue.serve(write)
        });
        let outcomes = join(start(&queue));
        queue.close();
        server.join().unwrap();
        assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
        compare(&queue, outcomes);
    });
}

#[test]
fn without_one_the_first_who_waits_writes_for_all() {
    everywhere(|| {
        let queue = queue();
        let outcomes = join(start(&queue));
        assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
        compare(&queue, outcomes);
    });
}

#[test]
fn closed_at_any_time_it_writes_what_it_took_and_nothing_else() {
    everywhere(|| {
        let queue = queue();
        let server = thread::spawn({
            let queue = queue.clone();
            move || queue.serve(write)
        });
        let threads = start(&queue);
        queue.close();
        let outcomes = join(threads);
        server.join().unwrap();
        assert_eq!(queue.enqueue(0, &write).err(), Some(Closed));
        compare(&queue, outcomes);
    });
}

#[test]
fn nobody_waits_for_a_writer_that_has_panicked() {
    everywhere(|| {
        let queue = queue();
        let server = thread::spawn({
            let queue = queue.clone();
            move || {
                let fails = |written: &mut Vec<usize>, batch: Batch<usize, usize>| {
                    if written.len() > 1 {
                        // Without the message that a panic prints.
                        resume_unwind(Box::new("the disk is on fire"));
                    }
                    write(written, batch);
                };
                assert!(catch_unwind(AssertUnwindSafe(|| queue.serve(fails))).is_err());
            }
        });
        let outcomes = join(start(&queue));
        server.join().unwrap();
        let told = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count();
        assert!((2..THREADS * JOBS).contains(&told), "{told}");
        let written = queue.writer().clone();
        assert!(outcomes.iter().all(|(job, outcome)| outcome.is_ok() == written.contains(job)));
        assert_eq!(queue.enqueue(0, &write).err(), Some(Closed));
    });
}

/// The tests before would see it.
#[test]
#[should_panic(expected = "deadlock")]
fn one_who_is_never_told_is_noticed() {
    everywhere(|| {
        let queue = queue();
        let server = thread::spawn({
            let queue = queue.clone();
            move || {
                queue.serve(|_, batch| {
                    // Not even that they are dropped.
                    batch.into_iter().for_each(|(_, promise)| std::mem::forget(promise));
                });
            }
        });
        join(start(&queue));
        queue.close();
        server.join().unwrap();
    });
}
