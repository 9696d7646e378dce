//! Another process with this node's key: noticed by a record of this node that this process did not make.
//!
//! Two that share a key undo each other's gossip and records without end. Which of them is right cannot be known from
//! here, so both say what is wrong, and each makes a newer record of itself at a bounded rate: when the other stops, the
//! one that is left is the one that all reach.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use potluck_proto::member::SignedRecord;
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::pace::Pace;
use crate::node::{Core, Renewal};

/// In the first moments after a start, the others may tell of a newer record that this folder knew nothing of, since it
/// was restored from an older copy. Once that record is outdone, only a process that runs can make another.
const RESTORED_TIME: Duration = Duration::from_secs(15);

/// After this time without a rival's record the next is outdone at once.
const QUIET: Duration = Duration::from_secs(120);

/// Time between two errors about the same rival.
const SAY_AGAIN: Duration = Duration::from_secs(600);

/// Outdoes records of this node that it did not make, and says so, until `stop` is set.
pub async fn run(core: Arc<Core>, mut stop: watch::Receiver<bool>) {
    let mut changes = core.membership.watch();
    let (mut pace, mut rng) = (Pace::new(QUIET), core.rng());
    let mut said: Option<(Vec<SocketAddr>, Instant)> = None;
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            _ = changes.changed() => {}
            () = core.membership.outlived() => {}
        }
        let (rival, outlived) = (core.membership.rival(), core.membership.take_outlived());
        if rival.is_none() && !outlived {
            continue;
        }
        let wait = pace.wait(Instant::now(), rng.random());
        if let Some(rival) = rival {
            report(&core, &rival, pace.row(), &mut said);
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(wait) => {}
        }
        let shared = core.clone();
        match core.executor.run(move || shared.renew_record(Renewal::Outdo)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "this node's record cannot be written to disk"),
            Err(error) => tracing::error!(%error, "this node's record cannot be written to disk"),
        }
    }
}

fn report(core: &Core, rival: &SignedRecord, row: u32, said: &mut Option<(Vec<SocketAddr>, Instant)>) {
    let here = core.membership.made().map(|made| made.addresses.clone()).unwrap_or_default();
    if row == 1 && core.uptime() < RESTORED_TIME {
        tracing::warn!(
            here = ?here, there = ?rival.addresses,
            "others know a newer record of this node than its folder: the folder is an older copy"
        );
        return;
    }
    core.metrics.identity_conflicts.inc();
    core.membership.set_key_also_at(rival.addresses.clone());
    let now = Instant::now();
    let known = said.as_ref().is_some_and(|(there, at)| *there == rival.addresses && now - *at < SAY_AGAIN);
    if !known {
        tracing::error!(
            here = ?here, there = ?rival.addresses,
            "this node's key is in use elsewhere: two machines must not run copies of one data folder; stop one of them"
        );
        *said = Some((rival.addresses.clone(), now));
    }
}
