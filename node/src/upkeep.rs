//! The quiet loops: scrub re-reads own shards, audit challenges peers, trash is emptied. Each has a pace.

use std::sync::Arc;
use std::time::Duration;

use potluck_proto::id::StripeId;
use potluck_proto::wire;
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::label::{AuditResult, Direction, FoundBy, HeadState, Loop, StripeState};
use crate::node::Core;
use crate::repair::{rebuild, survey};
use crate::store::{ShardKey, StoreError};

/// Time between two rounds of audits.
const AUDIT_INTERVAL: Duration = Duration::from_secs(30);

/// Stripes challenged in one round.
const AUDITS: usize = 16;

/// Stripes looked at for each that is challenged.
const LOOKED_AT: usize = 16;

/// Time between two looks at the trash.
const TRASH_INTERVAL: Duration = Duration::from_secs(60);

/// Shards that one look at the trash deletes at most.
const TRASH_AT_ONCE: usize = 1024;

/// The longest that scrub rests between two shards, so that a nearly empty node still notices a stop and new shards.
const SCRUB_REST: Duration = Duration::from_secs(60);

/// The least that scrub rests between two shards: it never takes the disk for itself.
const SCRUB_PAUSE: Duration = Duration::from_millis(20);

async fn rest(stop: &mut watch::Receiver<bool>, time: Duration) -> bool {
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => false,
        () = tokio::time::sleep(time) => true,
    }
}

/// Re-reads own shards, each once in the configured time, until `stop` is set.
pub async fn scrub(core: Arc<Core>, mut stop: watch::Receiver<bool>) {
    core.metrics.loop_started(Loop::Scrub, core.uptime());
    let mut after: Option<StripeId> = None;
    loop {
        let shards = core.store.usage().shards.max(1);
        let pause = core.config.scrub_time / u32::try_from(shards).unwrap_or(u32::MAX);
        if !rest(&mut stop, pause.clamp(SCRUB_PAUSE, SCRUB_REST)).await {
            return;
        }
        let began = Instant::now();
        let shared = core.clone();
        let stripe = match core.executor.run(move || shared.store.stripes(after, 1)).await {
            Ok(Ok(stripes)) => stripes.first().copied(),
            _ => continue,
        };
        after = stripe;
        let Some(stripe) = stripe else { continue };
        let shared = core.clone();
        let scrubbed = core.executor.run(move || scrub_stripe(&shared, stripe)).await;
        match scrubbed {
            Ok(Ok(bytes)) => rebuild::pace(&core, bytes).await,
            Ok(Err(error)) => tracing::error!(%error, "scrub cannot read the shard store"),
            Err(error) => tracing::error!(%error, "scrub failed"),
        }
        core.metrics.loop_ran(Loop::Scrub, began.elapsed(), core.uptime());
    }
}

/// Reads one stripe's shards; returns how many bytes were asked of the disk.
fn scrub_stripe(core: &Core, stripe: StripeId) -> Result<usize, StoreError> {
    let mut asked = 0;
    for held in core.store.held(&stripe)? {
        asked += held.len as usize;
        match core.store.verify(ShardKey { stripe, index: held.index }) {
            Ok(bytes) => core.metrics.scrubbed_bytes.inc_by(bytes),
            Err(error) if error.lost() => core.found_corrupt(stripe, FoundBy::Scrub),
            Err(StoreError::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(asked)
}

/// Challenges the co-holders of a few stripes at a time, until `stop` is set. A stripe of which k siblings have proved a
/// block is marked complete.
pub async fn audit(core: Arc<Core>, mut stop: watch::Receiver<bool>) {
    core.metrics.loop_started(Loop::Audit, core.uptime());
    let mut rng = core.rng();
    while rest(&mut stop, AUDIT_INTERVAL).await {
        let began = Instant::now();
        // Any place in the order of ids is as likely as any other.
        let from = StripeId(rng.random());
        let shared = core.clone();
        let stripes = match core.executor.run(move || to_audit(&shared, from)).await {
            Ok(Ok(stripes)) => stripes,
            _ => continue,
        };
        let view = core.membership.view();
        let (holdings, _) = survey::ask(&core, &view, &stripes).await;
        for (stripe, holding) in holdings {
            let mut proved: std::collections::BTreeSet<usize> = holding.live.get(&view.me).cloned().unwrap_or_default();
            for (node, held) in holding.live.iter().filter(|(node, _)| **node != view.me) {
                for &index in held {
                    rebuild::pace(&core, potluck_proto::blocks::BLOCK_LEN).await;
                    if rebuild::challenge(&core, &view, stripe, *node, index).await == AuditResult::Passed {
                        proved.insert(index);
                    }
                }
            }
            if proved.len() >= holding.scheme.k() && !holding.complete {
                rebuild::mark_complete(&core, stripe).await;
            }
        }
        core.metrics.loop_ran(Loop::Audit, began.elapsed(), core.uptime());
    }
}

/// Stripes to audit, from a place in the order of ids on: first those that were never proved complete.
fn to_audit(core: &Core, from: StripeId) -> Result<Vec<StripeId>, StoreError> {
    let mut stripes = Vec::new();
    for stripe in core.store.stripes(Some(from), AUDITS * LOOKED_AT)? {
        stripes.push((core.store.held(&stripe)?.iter().any(|held| held.complete), stripe));
    }
    stripes.sort_by_key(|(complete, _)| *complete);
    stripes.truncate(AUDITS);
    Ok(stripes.into_iter().map(|(_, stripe)| stripe).collect())
}

/// Deletes what has been in the trash for its time and proves to be elsewhere, and tries unreadable shards again, until
/// `stop` is set.
pub async fn trash(core: Arc<Core>, mut stop: watch::Receiver<bool>) {
    core.metrics.loop_started(Loop::Trash, core.uptime());
    let mut after = None;
    while rest(&mut stop, TRASH_INTERVAL).await {
        let began = Instant::now();
        let shared = core.clone();
        if let Ok(back) = core.executor.run(move || shared.store.retry_unreadable()).await {
            back.iter().for_each(|key| core.alerts.add(key.stripe));
        }
        // A node that reaches no more than half of the ring deletes nothing.
        if core.membership.view().majority() {
            after = match empty_trash(&core, after).await {
                Ok(after) => after,
                Err(error) => {
                    tracing::error!(%error, "the trash cannot be emptied");
                    None
                }
            };
        }
        core.metrics.loop_ran(Loop::Trash, began.elapsed(), core.uptime());
    }
}

/// One round over the trash, from behind `after`; returns where the next one goes on. A shard is deleted if another node
/// has just proved that it holds the same one: what is the last copy of its index stays, whatever its time.
async fn empty_trash(core: &Arc<Core>, after: Option<ShardKey>) -> Result<Option<ShardKey>, StoreError> {
    let (shared, running_ms) = (core.clone(), core.running_ms());
    let expired = core.executor.run(move || shared.store.expired(running_ms, after, TRASH_AT_ONCE)).await;
    let expired = expired.map_err(std::io::Error::other)??;
    let stripes: std::collections::BTreeSet<StripeId> = expired.iter().map(|key| key.stripe).collect();
    let view = core.membership.view();
    let (holdings, _) = survey::ask(core, &view, &stripes.into_iter().collect::<Vec<_>>()).await;
    let mut deleted = 0;
    for key in &expired {
        let Some(holding) = holdings.get(&key.stripe) else { continue };
        let mut others = holding.live.iter().filter(|(node, held)| **node != view.me && held.contains(&key.index));
        let mut proved = false;
        while let (false, Some((node, _))) = (proved, others.next()) {
            rebuild::pace(core, potluck_proto::blocks::BLOCK_LEN).await;
            proved = rebuild::challenge(core, &view, key.stripe, *node, key.index).await == AuditResult::Passed;
        }
        if proved {
            let (shared, key) = (core.clone(), *key);
            let gone = core.executor.run(move || shared.store.delete(key, running_ms)).await;
            deleted += usize::from(gone.map_err(std::io::Error::other)??);
        }
    }
    if deleted > 0 {
        tracing::info!(shards = deleted, "deleted from the trash");
    }
    Ok(expired.last().copied().filter(|_| expired.len() == TRASH_AT_ONCE))
}

/// Puts the loops' results into the metrics.
pub(crate) fn show(core: &Core, status: &wire::StatusReply) {
    let stripes = [
        (StripeState::Whole, status.stripes_whole),
        (StripeState::Degraded, status.stripes_degraded),
        (StripeState::AtRisk, status.stripes_at_risk),
        (StripeState::Unreadable, status.stripes_unreadable),
        (StripeState::Unconfirmed, status.stripes_unconfirmed),
        (StripeState::Malformed, status.stripes_malformed),
        (StripeState::Unknown, status.stripes_unknown),
    ];
    for (state, count) in stripes {
        core.metrics.stripes.with(state).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    let heads = core.heads.counts();
    for (state, count) in [
        (HeadState::Settled, heads.settled),
        (HeadState::Unsettled, heads.unsettled),
        (HeadState::Behind, heads.behind),
    ] {
        core.metrics.heads.with(state).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    let stats = core.endpoint.stats();
    core.metrics.transport_connections.set(stats.connections as i64);
    let counters = [
        (core.metrics.transport_bytes.with(Direction::In), stats.bytes_in),
        (core.metrics.transport_bytes.with(Direction::Out), stats.bytes_out),
        (&core.metrics.transport_datagrams_dropped, stats.datagrams_dropped),
    ];
    for (counter, value) in counters {
        counter.inc_by(value.saturating_sub(counter.get()));
    }
}
