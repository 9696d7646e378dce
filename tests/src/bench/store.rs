//! One node's store beside its floors: raw writing and reading of the same disk, and a file for each shard.
//!
//! A value and its floor are measured in turns, and of each the median counts: what else the machine does hits both. Each
//! round has a folder of its own. The small files of a floor stay to the end: ext4 is slow to make files for minutes where
//! many were deleted.

pub mod child;
mod compaction;
mod floor;
mod lanes;
mod restart;
mod stripes;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use potluck_node::store::segments::disk::{FolderDisk, INDEX_FOLDER};
use potluck_node::store::segments::format::StoreId;
use potluck_node::store::segments::{Options, SEGMENT_BYTES, SegmentStore};
use potluck_node::store::{Check, ShardKey};
use potluck_proto::stripe::{Scheme, SignedHeader};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use self::lanes::in_lanes;
pub(super) use self::lanes::median;
use self::stripes::Stripes;
use super::load::{plain, scheme};
use super::{Effort, Figure, Goal};

/// What the floor puts before a payload: as much as the store does, in bytes.
const FRONT: usize = 800;

/// Writers, or readers, at once, if nothing else is said.
const LANES: usize = 8;

/// Bytes of a read.
const READ: usize = 64 << 10;

/// Bytes that reads are spread over, of shards and of the floor's file.
const SPREAD: usize = 512 << 20;

pub(super) fn run(effort: Effort) -> Result<Vec<Figure>> {
    let quick = effort == Effort::Quick;
    let folder = tempfile::Builder::new().prefix("potluck-store-").tempdir()?;
    let mut figures = puts(folder.path(), quick)?;
    figures.extend(reads(folder.path(), quick)?);
    figures.extend(restart::run(folder.path(), quick)?);
    figures.extend(compaction::run(folder.path(), quick)?);
    Ok(figures)
}

/// The store's folder.
const SEGMENTS: &str = "segments";

/// Opens the store in a folder, or makes one.
fn open(folder: &Path) -> Result<SegmentStore> {
    let folder = folder.join(SEGMENTS);
    let disk = Arc::new(FolderDisk::open(&folder)?);
    let options = Options {
        capacity: u64::MAX / 2,
        segment_bytes: SEGMENT_BYTES,
        fresh: StoreId([7; 16]),
        clock: Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)),
        threaded: true,
        index: Some(folder.join(INDEX_FOLDER)),
        progress: Arc::default(),
    };
    Ok(SegmentStore::open(disk, options)?)
}

/// A folder of one round. Few and large files are in it: it is removed at once, and the disk is left alone until it has
/// taken notice.
fn in_folder<T>(below: &Path, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let folder = TempDir::new_in(below)?;
    rustix::fs::syncfs(File::open(below)?)?;
    let done = work(folder.path())?;
    folder.close()?;
    rustix::fs::syncfs(File::open(below)?)?;
    Ok(done)
}

/// Bytes that the files below a folder take on the disk.
fn device_bytes(folder: &Path) -> Result<u64> {
    /// What `st_blocks` counts, whatever the file system's own blocks are.
    const SECTOR: u64 = 512;
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        sum += entry?.metadata()?.blocks() * SECTOR;
    }
    Ok(sum)
}

fn per_second(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

/// What one case of puts is.
struct Case {
    name: &'static str,
    len: usize,
    writers: usize,
    /// Puts of a round.
    count: usize,
    goal: Goal,
    /// Most bytes of the disk per byte of payload, where there is a bound.
    overhead: Option<f64>,
}

fn puts(below: &Path, quick: bool) -> Result<Vec<Figure>> {
    let cases = [
        Case {
            name: "put 400 KiB, 8 writers",
            len: 400 << 10,
            writers: LANES,
            count: if quick { 1_280 } else { 2_560 },
            goal: Goal::AtLeast(0.8),
            overhead: Some(1.03),
        },
        Case {
            name: "put 64 KiB, 8 writers",
            len: 64 << 10,
            writers: LANES,
            count: if quick { 4_000 } else { 12_000 },
            goal: Goal::AtLeast(2.0),
            overhead: Some(1.06),
        },
        Case {
            name: "put 4 KiB, 8 writers",
            len: 4 << 10,
            writers: LANES,
            count: if quick { 8_000 } else { 32_000 },
            goal: Goal::AtLeast(2.0),
            overhead: None,
        },
        Case {
            name: "put 4 KiB, 64 writers",
            len: 4 << 10,
            writers: 64,
            count: if quick { 32_000 } else { 96_000 },
            goal: Goal::AtLeast(10.0),
            overhead: None,
        },
    ];
    let mut figures = Vec::new();
    for case in &cases {
        put_case(below, case, if quick { 3 } else { 5 }, &mut figures)?;
    }
    Ok(figures)
}

fn put_case(below: &Path, case: &Case, rounds: usize, figures: &mut Vec<Figure>) -> Result<()> {
    /// Files of a round, which take longer than puts.
    const FILES_SHARE: usize = 4;
    let source = Stripes::new(scheme()?, case.len);
    let stripes = source.stripes(0..case.count / source.n());
    let payload_bytes = stripes.len() * source.n() * case.len;
    // A file per shard is what shards shorter than a batch are compared with.
    let files = case.len < 256 << 10;
    let (mut values, mut floors, mut taken) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        values.push(in_folder(below, |folder| {
            let store = open(folder)?;
            let time = source.put_all(&store, &stripes, case.writers)?;
            drop(store);
            taken.push(device_bytes(&folder.join("segments"))? as f64);
            Ok(per_second(stripes.len() * source.n(), time))
        })?);
        floors.push(if files {
            let count = case.count / FILES_SHARE;
            let files = floor::Files::new(below.join(format!("{} {round}", case.name)))?;
            per_second(count, files.put(&[7; FRONT], source.payload(0), count, case.writers)?)
        } else {
            let time = in_folder(below, |folder| floor::sequential(&folder.join("raw"), payload_bytes))?;
            payload_bytes as f64 / case.len as f64 / time.as_secs_f64()
        });
    }
    let (mut value, mut floor) = (median(values), median(floors));
    if !files {
        // Said in bytes, as raw writing is.
        (value, floor) = (value * case.len as f64 / 1e6, floor * case.len as f64 / 1e6);
    }
    let unit = if files { "/s" } else { "MB/s" };
    figures.push(Figure { case: case.name.into(), value, unit, floor: Some(floor), goal: Some(case.goal) });
    if let Some(most) = case.overhead {
        figures.push(Figure {
            case: format!("{}: bytes on disk / payload", case.name),
            value: median(taken) / 1e6,
            unit: "MB",
            floor: Some(payload_bytes as f64 / 1e6),
            goal: Some(Goal::AtMost(most)),
        });
    }
    Ok(())
}

/// Random reads of verified pieces, from whole shards of that length and from within long ones.
fn reads(below: &Path, quick: bool) -> Result<Vec<Figure>> {
    let spread = if quick { SPREAD / 4 } else { SPREAD };
    let count = if quick { 3_000 } else { 12_000 };
    let rounds = if quick { 3 } else { 5 };
    let raw = below.join("raw");
    floor::sequential(&raw, spread)?;
    let mut figures = Vec::new();
    // 5+3 would make longer stripes of the long shards than there may be.
    for (name, scheme, len) in [("shards", scheme()?, READ), ("ranges of 4 MiB shards", Scheme::new(4, 2)?, 4 << 20)] {
        in_folder(below, |folder| {
            let source = Stripes::new(scheme, len);
            let stripes = source.stripes(0..spread / len / source.n());
            source.put_all(&open(folder)?, &stripes, LANES)?;
            let store = open(folder)?;
            for readers in [1, LANES] {
                let count = count / (LANES / readers).min(4);
                let [mut verified, mut hashed, mut plain, mut pread] = <[Vec<f64>; 4]>::default();
                let speed = |time: Duration| (count * READ) as f64 / 1e6 / time.as_secs_f64();
                for _ in 0..rounds {
                    verified.push(speed(random_reads(&store, &source, &stripes, count, readers, Check::Here)?));
                    hashed.push(speed(floor::random(&raw, READ, count, readers, Check::Here)?));
                    plain.push(speed(random_reads(&store, &source, &stripes, count, readers, Check::Reader)?));
                    pread.push(speed(floor::random(&raw, READ, count, readers, Check::Reader)?));
                }
                let [verified, hashed, plain, pread] = [verified, hashed, plain, pread].map(median);
                let mut figure = |beside: &str, value, floor, goal| {
                    let case = format!("read 64 KiB {name}, {readers} readers{beside}");
                    figures.push(Figure { case, value, unit: "MB/s", floor: Some(floor), goal });
                };
                // Bytes that somebody looks at cost more than bytes that nobody does, whoever reads them: what is
                // verified is held against reading and hashing, and what is passed on as it is against reading.
                figure(" / pread and hash", verified, hashed, Some(Goal::AtLeast(0.9)));
                figure(", not hashed / pread", plain, pread, Some(Goal::AtLeast(0.9)));
                figure(" / pread", verified, pread, None);
            }
            Ok(())
        })?;
    }
    fs::remove_file(raw)?;
    Ok(figures)
}

fn random_reads(
    store: &SegmentStore,
    source: &Stripes,
    stripes: &[SignedHeader],
    count: usize,
    readers: usize,
    check: Check,
) -> Result<Duration> {
    let pieces = source.shard_len() / READ;
    in_lanes(readers, count, |number, rng: &mut Option<StdRng>| {
        let rng = rng.get_or_insert_with(|| StdRng::seed_from_u64(number as u64));
        let stripe = &stripes[rng.random_range(0..stripes.len())];
        let index = rng.random_range(0..source.n());
        let from = rng.random_range(0..pieces) * READ;
        let key = ShardKey { stripe: stripe.id(), index };
        let read = store.read(key, from as u64..(from + READ) as u64, check)?;
        anyhow::ensure!(read.data.len() == READ, "too few bytes");
        Ok(())
    })
}
