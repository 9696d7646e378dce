//! Peak memory of the client and of a node while a large file is put, and got again, beside the bound that holds for any
//! size of file.

use anyhow::Result;

use super::load::{PATIENCE, cluster, make, nodes_used, put};
use super::{Effort, Figure, Goal};

const NODES: usize = 8;

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
    Ok(figures)
}
