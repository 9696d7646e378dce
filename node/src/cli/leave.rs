//! `potluck node leave`: puts the node on its way out and watches it until it may be switched off.

use std::time::Duration;

use anyhow::Context;
use potluck_proto::wire::{self, admin};
use tokio::time::Instant;

use super::{DONE, LeaveArgs, Operator};
use crate::config::human::rough;

/// Time between two looks at a leaving node.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// After how long without progress the operator is told so, again and again.
const STALL: Duration = Duration::from_secs(60);

pub(super) async fn leave(args: LeaveArgs) -> anyhow::Result<u8> {
    let operator = Operator::connect(&args.own.data)?;
    let reply = operator.admin(admin::Kind::Leave(admin::Leave {})).await?;
    if !reply.text.is_empty() {
        eprintln!("{}.", reply.text);
    }
    if args.no_wait {
        println!(
            "The node is leaving. Watch it with 'potluck node status', and keep it running until that says that it has left."
        );
        return Ok(DONE);
    }
    eprintln!(
        "The node is leaving. Ctrl-C ends this watching, not the leaving; keep the node running until it has left."
    );
    let mut shown = None;
    let mut moved = Instant::now();
    loop {
        let status =
            operator.status().await.context("the watching has ended, the leaving goes on while the node runs")?;
        if status.left {
            println!("The node is empty and has left, and others know: it may be switched off.");
            return Ok(DONE);
        }
        if shown != Some(status.shards) {
            (shown, moved) = (Some(status.shards), Instant::now());
            eprintln!("{}", progress(&status));
        } else if moved.elapsed() >= STALL {
            moved = Instant::now();
            eprintln!("{}", stalled(&status));
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

fn progress(status: &wire::StatusReply) -> String {
    match status.shards {
        0 => "No shard is here any more; telling the others".into(),
        1 => format!("1 shard, {} still here", rough(status.used)),
        shards => format!("{shards} shards, {} still here", rough(status.used)),
    }
}

/// What may be the matter when nothing has changed for [`STALL`].
fn stalled(status: &wire::StatusReply) -> String {
    let reached = status.up.len().saturating_sub(1);
    let minutes = STALL.as_secs() / 60;
    match (status.shards, reached) {
        (_, 0) => "This node reaches no other node: is its network up? It goes on when it does.".into(),
        (0, _) => "Too few others have answered yet that they know. Keep the node running.".into(),
        (shards, _) => format!(
            "Nothing has moved for {minutes} min: {shards} shards still need a place. {reached} other nodes are reached; \
             they may be full, away, or too few to hold each shard of a stripe on a node of its own"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_is_explained() {
        let of = |shards: u64, up: usize| wire::StatusReply {
            shards,
            up: vec![Default::default(); up],
            ..Default::default()
        };
        assert!(stalled(&of(5, 1)).contains("no other node"));
        assert!(stalled(&of(5, 3)).contains("5 shards") && stalled(&of(5, 3)).contains("2 other nodes"));
        assert!(stalled(&of(0, 3)).contains("Keep the node running"));
        let two = wire::StatusReply { shards: 2, used: 3 << 19, ..Default::default() };
        assert_eq!(progress(&two), "2 shards, 1.5 MiB still here");
    }
}
