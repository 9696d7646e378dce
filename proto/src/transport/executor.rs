//! Where CPU-heavy and disk work runs: on a bounded number of threads, or, in a simulation, at once and in place.
//!
//! It never runs async code.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::sync::Semaphore;

/// Runs blocking work outside the async threads.
#[derive(Clone, Debug)]
pub struct Executor(Option<Arc<Semaphore>>);

/// Why work gave no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecutorError {
    /// The work panicked, with this message.
    #[error("the work panicked: {0}")]
    Panicked(String),
    /// The runtime is being shut down: the work was not begun.
    #[error("the runtime is being shut down")]
    ShuttingDown,
}

impl Executor {
    /// Work runs on tokio's blocking threads, at most `limit` (at least one) at a time; more waits.
    #[must_use]
    pub fn threads(limit: usize) -> Self {
        Self(Some(Arc::new(Semaphore::new(limit.clamp(1, Semaphore::MAX_PERMITS)))))
    }

    /// Work runs at once, in the task that asks: no threads, so a simulation repeats exactly.
    #[must_use]
    pub fn inline() -> Self {
        Self(None)
    }

    /// Runs `work` and gives its result. Work that has begun runs to its end even if this future is dropped.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ExecutorError> {
        let Some(slots) = &self.0 else {
            return catch_unwind(AssertUnwindSafe(work)).map_err(|panic| ExecutorError::Panicked(message(&*panic)));
        };
        let slot = slots.clone().acquire_owned().await.map_err(|_| ExecutorError::ShuttingDown)?;
        let task = tokio::task::spawn_blocking(move || {
            // Held by the work, not by the waiter: work whose waiter has gone still counts.
            let _slot = slot;
            work()
        });
        task.await.map_err(|error| match error.try_into_panic() {
            Ok(panic) => ExecutorError::Panicked(message(&*panic)),
            Err(_) => ExecutorError::ShuttingDown,
        })
    }
}

/// The text of a panic.
pub(super) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_executor_goes_on() {
        for executor in [Executor::inline(), Executor::threads(1)] {
            let panicked = executor.run(|| if true { panic!("no {}", 7) } else { 1 }).await;
            assert_eq!(panicked, Err(ExecutorError::Panicked("no 7".into())));
            assert_eq!(executor.run(|| 2).await, Ok(2));
        }
    }

    #[tokio::test]
    async fn no_more_than_the_limit_runs_at_once() {
        let executor = Executor::threads(2);
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let work = (0..16).map(|_| {
            let (executor, running, most) = (executor.clone(), running.clone(), most.clone());
            async move {
                let work = move || {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                    running.fetch_sub(1, Ordering::SeqCst);
                };
                executor.run(work).await
            }
        });
        assert!(futures_util::future::join_all(work).await.into_iter().all(|result| result.is_ok()));
        assert!(most.load(Ordering::SeqCst) <= 2);
    }
}
