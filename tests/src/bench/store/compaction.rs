//! How long puts take while segments are emptied, beside how long they take when they are not.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use potluck_node::config::Settings;
use potluck_node::store::ShardKey;
use potluck_node::store::segments::SegmentStore;
use potluck_node::store::segments::compaction::Step;
use potluck_proto::stripe::SignedHeader;

use super::lanes::{in_lanes, median};
use super::stripes::Stripes;
use super::{Figure, Goal, LANES, in_folder, open, plain, scheme};

/// Bytes of a payload.
const SHARD: usize = 64 << 10;

/// Writers whose puts are timed.
const WRITERS: usize = 4;

/// Of what is put beforehand, one shard of so many stays.
const KEPT: usize = 4;

/// Time for which puts are timed, in either way.
const TIMED: Duration = Duration::from_secs(4);

pub(super) fn run(below: &Path, quick: bool) -> Result<Vec<Figure>> {
    let rounds = if quick { 2 } else { 3 };
    let prepared: usize = if quick { 8_000 } else { 16_000 };
    in_folder(below, |folder| {
        let source = Stripes::new(scheme()?, SHARD);
        let store = open(folder)?;
        let mut fresh = Fresh { source: &source, next: 0 };
        let free = fresh.take(prepared / 4);
        let pace = paced(source.put_all(&store, &free, WRITERS)?, free.len() * source.n());
        let (mut idle, mut busy, mut copied) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let stripes = fresh.take(prepared);
            source.put_all(&store, &stripes, LANES)?;
            // Its last segment is no longer the one that is written.
            delete_most(&store, &source, &stripes)?;
            let enough = TIMED.as_nanos().div_ceil(pace.as_nanos()) as usize * WRITERS;
            idle.push(timed(&store, &source, &fresh.take(enough), pace, || ())?);
            let mut bytes = Ok(0);
            busy.push(timed(&store, &source, &fresh.take(enough), pace, || bytes = compact(&store))?);
            copied.push(bytes? as f64 / 1e6 / TIMED.as_secs_f64());
        }
        let (idle, busy) = (median(idle), median(busy));
        Ok(vec![
            plain("put 64 KiB, 4 writers at half speed: puts", 1.0 / pace.as_secs_f64() * WRITERS as f64, "/s"),
            plain("put 64 KiB, 4 writers at half speed: copied meanwhile", median(copied), "MB/s"),
            Figure {
                case: "put 64 KiB, 4 writers at half speed, compacting: p99".into(),
                value: busy * 1e3,
                unit: "ms",
                floor: Some(idle * 1e3),
                goal: Some(Goal::AtMost(2.0)),
            },
        ])
    })
}

/// Stripes that were not put yet.
struct Fresh<'a> {
    source: &'a Stripes,
    next: usize,
}

impl Fresh<'_> {
    /// As many as have so many shards.
    fn take(&mut self, shards: usize) -> Vec<SignedHeader> {
        let from = self.next;
        self.next += shards / self.source.n();
        self.source.stripes(from..self.next)
    }
}

/// Time from one put of a writer to its next, at half the speed that was measured.
fn paced(time: Duration, puts: usize) -> Duration {
    time.mul_f64(2.0 * WRITERS as f64 / puts as f64)
}

fn delete_most(store: &SegmentStore, source: &Stripes, stripes: &[SignedHeader]) -> Result<()> {
    in_lanes(64, stripes.len() * source.n(), |number, ()| {
        if number % KEPT != 0 {
            let key = ShardKey { stripe: stripes[number / source.n()].id(), index: number % source.n() };
            store.trash(key, 0)?;
            store.delete(key, 0)?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Empties what is worth it as a node does, within its background budget, and says how many bytes it copied.
fn compact(store: &SegmentStore) -> Result<u64> {
    let budget = Settings::defaults().background_budget.context("no default")?.0;
    let (began, mut copied) = (Instant::now(), 0);
    while began.elapsed() < TIMED {
        match store.compact_step()? {
            Step::Idle => bail!("there was too little to compact"),
            Step::Copied(bytes) => {
                copied += bytes;
                // Read, written, and read back.
                std::thread::sleep(Duration::from_secs_f64(3.0 * bytes as f64 / budget as f64));
            }
            Step::Emptied(_) => {}
        }
    }
    Ok(copied)
}

/// The time in seconds that one put of a hundred exceeds, of all that begin in [`TIMED`] while `meanwhile` runs.
fn timed(
    store: &SegmentStore,
    source: &Stripes,
    stripes: &[SignedHeader],
    pace: Duration,
    meanwhile: impl FnOnce(),
) -> Result<f64> {
    let (next, times) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let end = Instant::now() + TIMED;
    let write = || -> Result<()> {
        let (mut due, mut own) = (Instant::now(), Vec::new());
        while Instant::now() < end {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(stripe) = stripes.get(number / source.n()) else { break };
            due += pace;
            let now = Instant::now();
            // One that comes late because another took long has waited too.
            let began = if now < due {
                std::thread::sleep(due - now);
                Instant::now()
            } else {
                due
            };
            source.put(store, stripe, number % source.n())?;
            own.push(began.elapsed().as_secs_f64());
        }
        times.lock().map_err(|_| anyhow::anyhow!("a writer panicked"))?.extend(own);
        Ok(())
    };
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(write)).collect();
        meanwhile();
        writers.into_iter().try_for_each(|writer| writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?)
    })?;
    let mut times = times.into_inner().map_err(|_| anyhow::anyhow!("a writer panicked"))?;
    times.sort_by(f64::total_cmp);
    times.get(times.len() * 99 / 100).copied().context("no put in all the time")
}
