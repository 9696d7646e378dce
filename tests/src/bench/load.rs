//! What the benchmarks of whole clusters share: incompressible files, a vault to put them in, and figures of what was used.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use potluck_proto::stripe::Scheme;

use super::Figure;
use crate::process::{Client, Done, Processes, Used};

/// Longest run of one command.
pub(super) const PATIENCE: Duration = Duration::from_secs(1800);

/// The scheme of the figures to reach.
pub(super) fn scheme() -> Result<Scheme> {
    Ok(Scheme::new(5, 3)?)
}

/// Writes `bytes` that nothing can compress, others under each name, and returns their hash.
pub(super) fn make(path: &Path, bytes: u64) -> Result<blake3::Hash> {
    let name = path.file_name().context("a file without a name")?;
    let mut source = blake3::Hasher::new().update(name.as_encoded_bytes()).finalize_xof();
    let mut file = File::create(path)?;
    let (mut buffer, mut left, mut hasher) = (vec![0; 1 << 20], bytes, blake3::Hasher::new());
    while left > 0 {
        let length = left.min(buffer.len() as u64) as usize;
        source.fill(&mut buffer[..length]);
        hasher.update(&buffer[..length]);
        file.write_all(&buffer[..length])?;
        left -= length as u64;
    }
    // What is left in the page cache would be written while something is measured.
    file.sync_all()?;
    Ok(hasher.finalize())
}

/// The hash of a file.
pub(super) fn hash(path: &Path) -> Result<blake3::Hash> {
    let (mut file, mut hasher) = (File::open(path)?, blake3::Hasher::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            length => hasher.update(&buffer[..length]),
        };
    }
}

/// A cluster of `nodes`, each its own zone, and a client with a vault. Its key file is bare: what is measured has no
/// passphrase to stretch.
pub(super) fn cluster(nodes: usize) -> Result<(Processes, Client)> {
    let mut cluster = Processes::found(crate::process::quick())?;
    cluster.grow(nodes, nodes)?;
    let client = cluster.client("client");
    let token = cluster.invite(&["--vault"])?;
    let scheme = scheme()?.to_string();
    client.run(["vault", "create", "--token", &token, "--scheme", &scheme, "--no-passphrase"])?.ok()?;
    Ok((cluster, client))
}

/// Runs `potluck put FILE PATH` to its end.
pub(super) fn put(client: &Client, file: &Path, path: &str) -> Result<Done> {
    let file = file.to_str().context("a temporary folder with an odd name")?;
    client.start(["put", file, path])?.wait(PATIENCE)?.ok()
}

/// Gets `path` into a file at `to`, and makes sure that it is what was put.
pub(super) fn get(client: &Client, path: &str, to: &Path, expected: blake3::Hash) -> Result<Done> {
    let target = to.to_str().context("a temporary folder with an odd name")?;
    let done = client.start(["get", path, target])?.wait(PATIENCE)?.ok()?;
    ensure!(hash(to)? == expected, "what was read is not what was put");
    std::fs::remove_file(to)?;
    Ok(done)
}

/// What all running nodes have used: their CPU time together, and the peak of the fullest.
pub(super) fn nodes_used(cluster: &mut Processes) -> Result<Used> {
    let mut sum = Used::default();
    for number in cluster.up() {
        let used = cluster.used(number)?;
        sum = Used { cpu: sum.cpu + used.cpu, peak: sum.peak.max(used.peak) };
    }
    Ok(sum)
}

/// A figure with no floor.
pub(super) fn plain(case: &str, value: f64, unit: &'static str) -> Figure {
    Figure { case: case.into(), value, unit, floor: None, goal: None }
}

/// Bytes a second, in MB (10^6).
pub(super) fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}
