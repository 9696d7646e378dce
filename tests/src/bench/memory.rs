//! Peak memory of the client and of a node while a large file is put, and got again, and of the client while many smaller
//! ones are put behind a larger one, beside the bound that holds for any size and number of files.

use anyhow::Result;

use super::load::{PATIENCE, cluster, make, nodes_used, put};
use super::{Effort, Figure, Goal};

const NODES: usize = 8;

/// Length of the smaller files, in bytes: little more than a chunk has at least.
const SMALLER: u64 = 400 << 10;

/// How many of them there are.
const HOW_MANY: usize = 600;

/// What a process may take, in MiB.
const BOUND: f64 = 256.0;

pub(super) fn run(effort: Effort) -> Result<Vec<Figure>> {
    let (mut cluster, client) = cluster(NODES)?;
    let file = cluster.path("file");
    make(&file, effort.bytes(4 << 30, 256 << 20))?;
    let figure = |case: &str, bytes: u64| Figure {
        case: case.into(),
        value: bytes as f64 / f64::from(1 << 20),
        unit: "MiB",
        floor: Some(BOUND),
        goal: Some(Goal::AtMost(1.0)),
    };
    let putting = put(&client, &file, "file")?.used;
    let mut figures =
        vec![figure("put: client", putting.peak), figure("put: fullest node", nodes_used(&mut cluster)?.peak)];
    let getting = client.start_discarding(["cat", "file"])?.wait(PATIENCE)?.ok()?.used;
    figures.push(figure("get: client", getting.peak));
    figures.push(figure("put and get: fullest node", nodes_used(&mut cluster)?.peak));

    let folder = cluster.path("folder");
    std::fs::create_dir(&folder)?;
    // First by name, and of many chunks.
    make(&folder.join("0"), effort.bytes(256 << 20, 64 << 20))?;
    for number in 0..HOW_MANY {
        make(&folder.join(format!("file-{number}")), SMALLER)?;
    }
    let done = client.start(["put", "--recursive", &folder.to_string_lossy(), "folder"])?.wait(PATIENCE)?.ok()?;
    figures.push(figure("put of many files: client", done.used.peak));
    Ok(figures)
}
