//! What a node shows on its HTTP page: while it starts, how far it has come; then its metrics, health and state.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use potluck_proto::id::NodeId;
use potluck_proto::wire;

use crate::http::Page;
use crate::node::Core;
use crate::store::segments::recovery::Progress;
use crate::upkeep;

/// A node's page.
#[derive(Default)]
pub(crate) struct NodePage {
    /// How far the store has come.
    pub(crate) opening: Arc<Progress>,
    /// The node, once it runs.
    running: OnceLock<Arc<Core>>,
}

impl NodePage {
    /// The node runs from now on.
    pub(crate) fn runs(&self, core: Arc<Core>) {
        let _ = self.running.set(core);
    }
}

impl Page for NodePage {
    fn metrics(&self) -> String {
        // A scrape without metrics is a valid one.
        let Some(core) = self.running.get() else { return "# the node is starting\n".into() };
        let status = core.status();
        let metrics = &core.metrics;
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        metrics.capacity_bytes.set(gauge(status.capacity));
        metrics.used_bytes.set(gauge(status.used));
        metrics.trash_bytes.set(gauge(status.trash));
        metrics.full.set(i64::from(status.full));
        metrics.shards.set(gauge(status.shards));
        metrics.members.set(gauge(status.members));
        metrics.members_up.set(gauge(status.members_up));
        upkeep::show(core, &status);
        metrics.text(core.uptime(), Duration::from_millis((core.clock)()))
    }

    fn health(&self) -> Result<(), String> {
        let Some(core) = self.running.get() else {
            let (read, segments) = self.opening.now();
            return Err(format!("the node is starting: {read} of the log's {segments} segments are read"));
        };
        let view = core.membership.view();
        if view.majority() {
            Ok(())
        } else {
            let up = view.ring.nodes().iter().filter(|node| view.is_up(node)).count();
            Err(format!("reaches only {up} of the {} nodes of the ring", view.ring.len()))
        }
    }

    fn status(&self) -> serde_json::Value {
        match self.running.get() {
            Some(core) => status_json(&core.status()),
            None => {
                let (read, segments) = self.opening.now();
                serde_json::json!({ "starting": { "segments_read": read, "segments": segments } })
            }
        }
    }
}

/// A node's state as JSON: the same words as in the wire schema.
#[must_use]
pub fn status_json(status: &wire::StatusReply) -> serde_json::Value {
    let id = |bytes: &Bytes| NodeId::from_slice(bytes).map(|node| node.to_string());
    serde_json::json!({
        "node": id(&status.node),
        "software": status.software,
        "zone": status.zone,
        "uptime_ms": status.uptime_ms,
        "capacity_bytes": status.capacity,
        "used_bytes": status.used,
        "trash_bytes": status.trash,
        "shards": status.shards,
        "stripes": {
            "whole": status.stripes_whole,
            "degraded": status.stripes_degraded,
            "at_risk": status.stripes_at_risk,
            "unreadable": status.stripes_unreadable,
            "unconfirmed": status.stripes_unconfirmed,
            "malformed": status.stripes_malformed,
            "unknown": status.stripes_unknown,
        },
        "repair_queue": status.repair_queue,
        "repaired_shards": status.repaired_shards,
        "repaired_bytes": status.repaired_bytes,
        "rebalanced_shards": status.rebalanced_shards,
        "corrupt_shards": status.corrupt_shards,
        "members": status.members,
        "members_up": status.members_up,
        "store": status.store.map(|store| serde_json::json!({
            "segments": store.segments,
            "bytes": store.bytes,
            "live_bytes": store.live,
            "indexed_segments": store.indexed,
            "gaps": store.gaps,
            "unusable_segments": store.unusable,
            "failures": store.failures,
        })),
        "full": status.full,
        "leaving": status.leaving,
        "left": status.left,
        "survey_age_ms": (status.survey_age_ms != u64::MAX).then_some(status.survey_age_ms),
        "http": status.http,
        "key_also_at": status.key_also_at,
        "up": status.up.iter().filter_map(id).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_starts_says_how_far_it_is() {
        let page = NodePage::default();
        page.opening.begin(64);
        (0..12).for_each(|_| page.opening.step());
        assert_eq!(page.health().unwrap_err(), "the node is starting: 12 of the log's 64 segments are read");
        assert_eq!(page.status(), serde_json::json!({ "starting": { "segments_read": 12, "segments": 64 } }));
        assert!(page.metrics().starts_with('#'));
    }
}
