//! The erasure code on one core: encoding, and rebuilding of as many data shards as may be lost, with every level of
//! instructions that the machine has, beside copying the same data.
//!
//! Hot: one stripe over and over. Cold: stripes in turn that are together far larger than the caches. All that is compared
//! is measured in turns, and of each the median counts. Values are GB/s of the k shards that go in.
//!
//! ISA-L is the mark: version 2.32 by what it reached beside copying when it was measured on a machine with GFNI and
//! AVX-512, and the one that this machine has, if any, in the same run.

mod isal;

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use potluck_proto::codec::{Codec, Level};
use potluck_proto::stripe::Scheme;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reed_solomon_erasure::galois_8::ReedSolomon;

use self::isal::Isal;
use super::{Effort, Figure, Goal};

/// Bytes of a shard: 64 KiB, and as much more as keeps shards from falling on the same lines of the cache.
const SHARD: usize = (64 << 10) + 192;

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Bytes of all cold stripes together.
const COLD: usize = 256 << 20;

/// The level that ISA-L 2.32 was measured at.
const MEASURED_LEVEL: &str = "GFNI + AVX-512";

/// What has to be reached of the AVX2 code of the ISA-L that this machine has.
const AVX2_SHARE: f64 = 0.9;

/// A scheme, and what ISA-L 2.32 made of memcpy's GB/s when it encoded in it.
struct Case {
    k: usize,
    m: usize,
    hot: f64,
    cold: f64,
}

const CASES: [Case; 5] = [
    Case { k: 10, m: 4, hot: 66.0 / 78.0, cold: 12.0 / 31.0 },
    Case { k: 10, m: 6, hot: 44.0 / 81.0, cold: 11.0 / 32.0 },
    Case { k: 8, m: 12, hot: 22.0 / 100.0, cold: 6.9 / 32.0 },
    Case { k: 16, m: 16, hot: 17.0 / 65.0, cold: 6.5 / 31.0 },
    Case { k: 29, m: 51, hot: 4.8 / 61.0, cold: 2.8 / 31.0 },
];

/// How often, and how long each time, something is measured.
#[derive(Clone, Copy)]
struct Pace {
    rounds: usize,
    time: Duration,
}

pub(super) fn run(effort: Effort) -> Result<Vec<Figure>> {
    let pace = match effort {
        Effort::Quick => Pace { rounds: 3, time: Duration::from_millis(4) },
        Effort::Full | Effort::Bytes(_) => Pace { rounds: 9, time: Duration::from_millis(15) },
    };
    let mut room = Vec::new();
    let isal = Isal::load();
    let mut figures = Vec::new();
    for case in CASES {
        let scheme = Scheme::new(case.k, case.m)?;
        for cold in [false, true] {
            let mut stripes = Stripes::new(&mut room, scheme, if cold { COLD } else { 1 })?;
            for task in [Task::Encode, Task::Rebuild] {
                figures.extend(measure(&case, task, cold, isal, &mut stripes, pace)?);
            }
        }
    }
    Ok(figures)
}

/// What is done with a stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    /// All parity from the data.
    Encode,
    /// As many data shards as may be lost, from the others.
    Rebuild,
}

/// One stripe: its shards one after the other, data first, and room for as many again.
struct Stripe<'a> {
    shards: &'a [u8],
    room: &'a mut [u8],
}

impl<'a> Stripe<'a> {
    /// k shards from this index on.
    fn inputs(&self, first: usize, k: usize) -> Vec<&'a [u8]> {
        self.shards.chunks_exact(SHARD).skip(first).take(k).collect()
    }

    /// Room for so many shards.
    fn outputs(&mut self, count: usize) -> Vec<&mut [u8]> {
        self.room.chunks_exact_mut(SHARD).take(count).collect()
    }
}

/// Encoded stripes, used in turn.
struct Stripes<'a> {
    scheme: Scheme,
    bytes: &'a mut [u8],
    next: usize,
}

impl<'a> Stripes<'a> {
    /// As many as take `bytes`, and at least one, in a buffer that is kept.
    fn new(buffer: &'a mut Vec<u8>, scheme: Scheme, bytes: usize) -> Result<Self> {
        let len = Self::stripe_len(scheme);
        let count = bytes.div_ceil(len);
        buffer.resize(buffer.len().max(count * len + LINE), 0);
        let aligned = buffer.as_ptr().align_offset(LINE);
        let bytes = &mut buffer[aligned..][..count * len];
        let codec = Codec::new(scheme);
        let mut random = StdRng::seed_from_u64(7);
        for stripe in bytes.chunks_exact_mut(len) {
            let (data, rest) = stripe.split_at_mut(scheme.k() * SHARD);
            random.fill_bytes(data);
            codec.encode(data, &mut rest[..scheme.m() * SHARD])?;
        }
        Ok(Self { scheme, bytes, next: 0 })
    }

    fn stripe_len(scheme: Scheme) -> usize {
        2 * scheme.n() * SHARD
    }

    fn next(&mut self) -> Stripe<'_> {
        let len = Self::stripe_len(self.scheme);
        let at = self.next;
        self.next = (at + len) % self.bytes.len();
        let (shards, room) = self.bytes[at..][..len].split_at_mut(len / 2);
        Stripe { shards, room }
    }
}

/// Codes a stripe, and returns how many shards it made.
type Work<'a> = Box<dyn FnMut(Stripe<'_>) -> Result<usize> + 'a>;

/// Everything that one figure may be about: a name, and what it does.
struct Contender<'a> {
    name: String,
    work: Work<'a>,
}

impl<'a> Contender<'a> {
    fn new(name: impl Into<String>, work: impl FnMut(Stripe<'_>) -> Result<usize> + 'a) -> Self {
        Self { name: name.into(), work: Box::new(work) }
    }
}

fn measure(
    case: &Case,
    task: Task,
    cold: bool,
    isal: Option<Isal>,
    stripes: &mut Stripes<'_>,
    pace: Pace,
) -> Result<Vec<Figure>> {
    let (k, m) = (case.k, case.m);
    let scheme = Scheme::new(k, m)?;
    let rows = coefficients(scheme, task)?;
    let lost = rows.len() / k;
    let mut contenders = vec![Contender::new("memcpy", move |stripe| copy(stripe, k)), reference(scheme, task)?];
    for level in Level::all() {
        contenders.push(Contender::new(level.name(), ours(scheme, task, lost, level)));
    }
    if let Some(isal) = isal {
        let skipped = if task == Task::Encode { 0 } else { lost };
        let sums = [("ISA-L here", Some(isal.best(k, &rows))), ("ISA-L here, AVX2", isal.avx2(k, &rows))];
        for (name, sums) in sums.into_iter().filter_map(|(name, sums)| Some((name, sums?))) {
            let work = move |mut stripe: Stripe<'_>| {
                sums.combine(&stripe.inputs(skipped, k), &mut stripe.outputs(lost));
                Ok(lost)
            };
            contenders.push(Contender::new(name, work));
        }
    }
    for contender in &mut contenders {
        check(contender, task, k, stripes.next())?;
    }

    let mut rates = vec![Vec::new(); contenders.len()];
    for _ in 0..pace.rounds {
        for (contender, rates) in contenders.iter_mut().zip(&mut rates) {
            rates.push(rate(contender, k, stripes, pace.time)?);
        }
    }
    let rates: Vec<(String, f64)> =
        contenders.into_iter().map(|one| one.name).zip(rates.into_iter().map(median)).collect();
    Ok(figures(case, task, cold, lost, &rates))
}

/// The coefficients of what is made, row by row: unit shards coded give them.
fn coefficients(scheme: Scheme, task: Task) -> Result<Vec<u8>> {
    let (k, codec) = (scheme.k(), Codec::new(scheme));
    let mut units = vec![0; k * k];
    (0..k).for_each(|position| units[position * k + position] = 1);
    match task {
        Task::Encode => {
            let mut parity = vec![0; scheme.m() * k];
            codec.encode(&units, &mut parity)?;
            Ok(parity)
        }
        Task::Rebuild => {
            let lost = scheme.m().min(k);
            let present: Vec<(usize, &[u8])> = (lost..).zip(units.chunks_exact(k)).collect();
            Ok(codec.rebuild(&present, &(0..lost).collect::<Vec<_>>())?.concat())
        }
    }
}

fn copy(stripe: Stripe<'_>, k: usize) -> Result<usize> {
    let len = k * SHARD;
    stripe.room[..len].copy_from_slice(&stripe.shards[..len]);
    Ok(0)
}

/// The crate alone.
fn reference(scheme: Scheme, task: Task) -> Result<Contender<'static>> {
    let code = ReedSolomon::new(scheme.k(), scheme.m()).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let k = scheme.k();
    let lost = scheme.m().min(k);
    let rows: Vec<Vec<u8>> = coefficients(scheme, task)?.chunks_exact(k).map(<[u8]>::to_vec).collect();
    let work = move |mut stripe: Stripe<'_>| match task {
        Task::Encode => {
            code.encode_sep(&stripe.inputs(0, k), &mut stripe.outputs(scheme.m()))
                .map_err(|error| anyhow::anyhow!("{error:?}"))?;
            Ok(scheme.m())
        }
        // Its own form wants to own the shards; these are the products that it makes.
        Task::Rebuild => {
            let inputs = stripe.inputs(lost, k);
            for (row, to) in rows.iter().zip(stripe.outputs(lost)) {
                to.fill(0);
                let products = row.iter().zip(&inputs);
                products.for_each(|(&factor, from)| reed_solomon_erasure::galois_8::mul_slice_xor(factor, from, to));
            }
            Ok(lost)
        }
    };
    Ok(Contender::new("the crate", work))
}

fn ours(scheme: Scheme, task: Task, lost: usize, level: Level) -> impl FnMut(Stripe<'_>) -> Result<usize> {
    let codec = Codec::at(scheme, level);
    let (k, m) = (scheme.k(), scheme.m());
    let wanted: Vec<usize> = (0..lost).collect();
    move |mut stripe| match task {
        Task::Encode => {
            codec.encode(&stripe.shards[..k * SHARD], &mut stripe.room[..m * SHARD])?;
            Ok(m)
        }
        Task::Rebuild => {
            let present: Vec<(usize, &[u8])> = (lost..).zip(stripe.inputs(lost, k)).collect();
            codec.rebuild_into(&present, &wanted, &mut stripe.outputs(lost))?;
            Ok(lost)
        }
    }
}

/// Everyone's bytes are the same.
fn check(contender: &mut Contender<'_>, task: Task, k: usize, stripe: Stripe<'_>) -> Result<()> {
    let Stripe { shards, room } = stripe;
    room.fill(0);
    let made = (contender.work)(Stripe { shards, room })?;
    let first = if task == Task::Encode { k } else { 0 };
    ensure!(shards[first * SHARD..][..made * SHARD] == room[..made * SHARD], "{} made other bytes", contender.name);
    Ok(())
}

/// GB/s of the k shards that go in.
fn rate(contender: &mut Contender<'_>, k: usize, stripes: &mut Stripes<'_>, time: Duration) -> Result<f64> {
    // Once before, for what comes from memory only the first time.
    black_box((contender.work)(stripes.next())?);
    let (started, mut count) = (Instant::now(), 0u32);
    while started.elapsed() < time {
        black_box((contender.work)(stripes.next())?);
        count += 1;
    }
    Ok(f64::from(count) * (k * SHARD) as f64 / started.elapsed().as_secs_f64() / 1e9)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn figures(case: &Case, task: Task, cold: bool, lost: usize, rates: &[(String, f64)]) -> Vec<Figure> {
    let task = if task == Task::Encode { "encode" } else { "rebuild" };
    let title = format!("{}+{} {task} {}", case.k, case.m, if cold { "cold" } else { "hot" });
    let rate = |name: &str| rates.iter().find(|(known, _)| known == name).map(|(_, rate)| *rate);
    let copied = rate("memcpy");
    let mut figures: Vec<Figure> = rates
        .iter()
        .map(|(name, rate)| Figure {
            case: format!("{title}: {name}"),
            value: *rate,
            unit: "GB/s",
            floor: copied.filter(|_| name != "memcpy"),
            goal: None,
        })
        .collect();
    // Its work is as much as there are shards to make, where they are fewer than the parity that it made then.
    let share = if cold { case.cold } else { case.hot } * case.m as f64 / lost as f64;
    let marks = [
        ("beside ISA-L 2.32", rate(MEASURED_LEVEL), copied.map(|copied| copied * share), 1.0),
        ("AVX2 beside ISA-L's", rate("AVX2"), rate("ISA-L here, AVX2"), AVX2_SHARE),
    ];
    for (name, value, floor, least) in marks {
        if let (Some(value), Some(floor)) = (value, floor) {
            let goal = Some(Goal::AtLeast(least));
            figures.push(Figure { case: format!("{title}: {name}"), value, unit: "GB/s", floor: Some(floor), goal });
        }
    }
    figures
}
