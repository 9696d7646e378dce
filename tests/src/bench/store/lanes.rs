//! Work that is shared out to threads, and how long it took.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Runs `work` for 0..count on `lanes` threads, each with something of its own, from when all of them are there.
pub(super) fn in_lanes<T: Default>(
    lanes: usize,
    count: usize,
    work: impl Fn(usize, &mut T) -> Result<()> + Sync,
) -> Result<Duration> {
    let (next, ready) = (AtomicUsize::new(0), Barrier::new(lanes + 1));
    let lane = || -> Result<()> {
        let mut own = T::default();
        ready.wait();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            work(number, &mut own)?;
        }
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        ready.wait();
        let began = Instant::now();
        running.into_iter().try_for_each(|lane| lane.join().map_err(|_| anyhow::anyhow!("a lane panicked"))?)?;
        Ok(began.elapsed())
    })
}

/// The median; of an even number, the greater of the two.
pub(in crate::bench) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
