//! Put and get of one incompressible file on 8 nodes as processes, each beside its floor.
//!
//! The floor is the slower of raw QUIC and of raw files, moving the same shard bytes: for a put all n shards of each
//! stripe, for a get k of them; in bytes of the user's a second. Neither has to encrypt, to hash or to code. All figures
//! are times of whole commands, from the start of the process to its end.

use std::time::Duration;

use anyhow::Result;
use potluck_proto::stripe::{DATA_LIMIT, shard_len};

use super::load::{PATIENCE, cluster, get, make, nodes_used, plain, put, rate, scheme};
use super::quic::{self, Direction};
use super::{Effort, Figure, Goal, files};
use crate::process::Used;

const NODES: usize = 8;

/// The goal for now: a later step goes to the limit.
const GOAL: Goal = Goal::AtLeast(0.4);

/// How often each floor is measured; the median counts.
const ROUNDS: usize = 3;

/// The user's bytes a second that neither side can beat.
struct Floor {
    quic: f64,
    files: f64,
}

impl Floor {
    fn slower(&self) -> f64 {
        self.quic.min(self.files)
    }
}

pub(super) fn run(effort: Effort) -> Result<Vec<Figure>> {
    let size = effort.bytes(1 << 30, 128 << 20);
    let (mut cluster, client) = cluster(NODES)?;
    let file = cluster.path("file");
    let hash = make(&file, size)?;
    let mut before = nodes_used(&mut cluster)?;
    let mut used = |cluster: &mut _, case: &str, client: Used| -> Result<[Figure; 4]> {
        let now = nodes_used(cluster)?;
        let nodes = now.cpu.saturating_sub(before.cpu);
        before = now;
        Ok([
            plain(&format!("{case}: CPU of the client"), client.cpu.as_secs_f64(), "s"),
            plain(&format!("{case}: CPU of the nodes"), nodes.as_secs_f64(), "s"),
            plain(&format!("{case}: peak memory, client"), client.peak as f64 / MIB, "MiB"),
            plain(&format!("{case}: peak memory, fullest node"), now.peak as f64 / MIB, "MiB"),
        ])
    };

    let put = put(&client, &file, "file")?;
    let put_used = used(&mut cluster, "put", put.used)?;
    let piped = client.start_discarding(["cat", "file"])?.wait(PATIENCE)?.ok()?;
    let piped_used = used(&mut cluster, "get", piped.used)?;
    let synced = get(&client, "file", &cluster.path("restored"), hash)?;

    // The floors come last: for minutes ext4 is slow to make files where others, as theirs, have been deleted.
    let (put_floor, get_floor) = floors(size)?;
    let speed = |case: &str, time: Duration, floor: &Floor, goal| Figure {
        case: case.into(),
        value: rate(size, time),
        unit: "MB/s",
        floor: Some(floor.slower()),
        goal,
    };
    let mut figures = Vec::new();
    for (case, floor) in [("put", &put_floor), ("get", &get_floor)] {
        figures.push(plain(&format!("{case}: raw QUIC"), floor.quic, "MB/s"));
        figures.push(plain(&format!("{case}: raw files"), floor.files, "MB/s"));
    }
    figures.push(speed("put", put.time, &put_floor, Some(GOAL)));
    figures.extend(put_used);
    figures.push(speed("get", piped.time, &get_floor, Some(GOAL)));
    figures.extend(piped_used);
    figures.push(speed("get into a synced file", synced.time, &get_floor, None));
    Ok(figures)
}

const MIB: f64 = (1 << 20) as f64;

/// The floors of a put and of a get of `size` bytes.
fn floors(size: u64) -> Result<(Floor, Floor)> {
    let scheme = scheme()?;
    let stripes = size.div_ceil(DATA_LIMIT as u64) as usize;
    let length = shard_len(DATA_LIMIT, scheme.k());
    let shard_bytes = |shards: usize| (stripes * shards * length) as u64;
    let mut times: [Vec<Duration>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let folder = tempfile::Builder::new().prefix("potluck-floor-").tempdir()?;
        times[0].push(quic::measure(Direction::Put, shard_bytes(scheme.n()))?);
        times[1].push(files::write(folder.path(), stripes * scheme.n(), length)?);
        times[2].push(quic::measure(Direction::Get, shard_bytes(scheme.k()))?);
        times[3].push(files::read(folder.path(), stripes * scheme.k())?);
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        rate(size, times[times.len() / 2])
    };
    let [quic_put, files_put, quic_get, files_get] = &mut times;
    let put = Floor { quic: median(quic_put), files: median(files_put) };
    Ok((put, Floor { quic: median(quic_get), files: median(files_get) }))
}
