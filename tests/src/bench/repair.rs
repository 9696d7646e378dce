//! From the SIGKILL of a node until every stripe is whole again, on 10 nodes as processes.
//!
//! Whole is what the survivors' surveys say, all of them finished after the kill and counting every stripe. Whether they are
//! right is shown then: m more of the first nodes are killed, and everything is read. Nodes repair at once here, with a
//! budget that does not bind: what is measured is the work, not the patience that operators choose.

use anyhow::{Context, Result};

use super::load::{PATIENCE, cluster, get, make, nodes_used, plain, put, rate, scheme};
use super::{Effort, Figure};
use crate::process::Processes;

const NODES: usize = 10;

/// The node that is killed; the founder lives, but does nothing that the others do not.
const VICTIM: usize = NODES - 1;

pub(super) fn run(effort: Effort) -> Result<Vec<Figure>> {
    let (mut cluster, client) = cluster(NODES)?;
    let file = cluster.path("file");
    let hash = make(&file, effort.bytes(2 << 30, 128 << 20))?;
    put(&client, &file, "file")?;
    let (stripes, _) = cluster.until_whole(None, PATIENCE)?;
    let lost = cluster.status(VICTIM)?["used_bytes"].as_u64().context("no number of bytes")?;
    let (before, cpu) = (repaired(&cluster)?, nodes_used(&mut cluster)?.cpu);
    let own = cluster.used(VICTIM)?.cpu;

    cluster.kill(VICTIM)?;
    let (_, took) = cluster.until_whole(Some(stripes), PATIENCE)?;
    let used = nodes_used(&mut cluster)?;
    let rebuilt = repaired(&cluster)?.saturating_sub(before);

    for number in 1..=scheme()?.m() {
        cluster.kill(number)?;
    }
    get(&client, "file", &cluster.path("restored"), hash)?;
    Ok(vec![
        plain("from SIGKILL until all is whole", took.as_secs_f64(), "s"),
        plain("stripes", stripes as f64, ""),
        plain("lost with the node", lost as f64 / 1e6, "MB"),
        plain("rebuilt", rebuilt as f64 / 1e6, "MB"),
        plain("rebuilt a second", rate(rebuilt, took), "MB/s"),
        plain("CPU of the survivors", (used.cpu + own).saturating_sub(cpu).as_secs_f64(), "s"),
        plain("peak memory, fullest node", used.peak as f64 / f64::from(1 << 20), "MiB"),
    ])
}

fn repaired(cluster: &Processes) -> Result<u64> {
    Ok(cluster.statuses()?.iter().filter_map(|(_, status)| status["repaired_bytes"].as_u64()).sum())
}
