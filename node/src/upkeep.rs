//! The quiet loops: scrub re-reads the log, audit challenges peers, trash is emptied, space comes back. Each has a pace.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use potluck_proto::encoding::{Decoder, Encoder};
use potluck_proto::id::{StripeId, VaultId};
use potluck_proto::wire;
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::durable;
use crate::metrics::label::{AuditResult, Direction, FoundBy, HeadState, Loop, StoreBytes, StripeState};
use crate::node::Core;
use crate::repair::{rebuild, survey};
use crate::store::segments::compaction::Step;
use crate::store::segments::format::Kind;
use crate::store::segments::scrub::{Cursor, Scrubbed};
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

/// The longest that scrub rests between two steps, so that a nearly empty node still notices new shards.
const SCRUB_REST: Duration = Duration::from_secs(60);

/// The least that scrub rests between two steps: it never takes the disk for itself.
const SCRUB_PAUSE: Duration = Duration::from_millis(20);

/// Bytes that a step of scrub reads: what is read meanwhile waits for a millisecond or so.
const SCRUB_STEP: u64 = 1 << 20;

/// Time between two notes of how far scrub has come.
const SCRUB_NOTE: Duration = Duration::from_secs(300);

/// The file in the data folder with that note.
const SCRUB_FILE: &str = "scrub";

/// Time between two looks for a segment that is worth emptying.
const COMPACT_INTERVAL: Duration = Duration::from_secs(5);

/// Finished segments that are taken into the index at once.
const INDEXED_AT_ONCE: usize = 4;

async fn rest(stop: &mut watch::Receiver<bool>, time: Duration) -> bool {
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => false,
        () = tokio::time::sleep(time) => true,
    }
}

/// Reads the whole log once in the configured time, until `stop` is set.
pub async fn scrub(core: Arc<Core>, mut stop: watch::Receiver<bool>) {
    core.metrics.loop_started(Loop::Scrub, core.uptime());
    let mut at = read_cursor(&core.identity.folder);
    let mut noted = Instant::now();
    let mut pause = SCRUB_PAUSE;
    while rest(&mut stop, pause).await {
        let began = Instant::now();
        let shared = core.clone();
        let step = core.executor.run(move || shared.store.scrub(at, SCRUB_STEP)).await;
        let (next, bytes) = match step {
            Ok(Ok(found)) => {
                let done = (found.next, found.bytes);
                take_in_scrubbed(&core, found).await;
                done
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "scrub cannot record what it found");
                (Some(at), 0)
            }
            Err(error) => {
                tracing::error!(%error, "scrub failed");
                (Some(at), 0)
            }
        };
        // What was read is its part of a whole pass; where nothing was, the pass is over or the disk fails.
        let part = bytes as f64 / core.store.with_table(|table| table.bytes()).max(1) as f64;
        pause = if bytes == 0 && next.is_none_or(|next| next == at) { SCRUB_REST } else { SCRUB_PAUSE };
        pause = pause.max(core.config.scrub_time.mul_f64(part.min(1.0)).min(SCRUB_REST));
        at = next.unwrap_or_default();
        if noted.elapsed() >= SCRUB_NOTE || next.is_none() {
            note_cursor(&core, at).await;
            noted = Instant::now();
        }
        rebuild::pace(&core, bytes as usize).await;
        core.metrics.loop_ran(Loop::Scrub, began.elapsed(), core.uptime());
    }
    note_cursor(&core, at).await;
}

async fn take_in_scrubbed(core: &Arc<Core>, found: Scrubbed) {
    core.metrics.scrubbed_bytes.inc_by(found.bytes);
    core.metrics.store_mended.inc_by(found.mended);
    for stripe in found.lost {
        core.found_corrupt(stripe, FoundBy::Scrub);
    }
    for (kind, key) in found.facts {
        tracing::warn!(?kind, "a record that scrub found damaged is written anew");
        core.metrics.store_mended.inc();
        let written = match kind {
            Kind::Head => core.heads.rewrite(VaultId(key)).await.map_err(|error| error.message),
            _ => {
                let shared = core.clone();
                let written = core.executor.run(move || shared.membership.rewrite()).await;
                written.map_err(|error| error.to_string()).and_then(|done| done.map_err(|error| error.to_string()))
            }
        };
        if let Err(error) = written {
            tracing::error!(?kind, error, "a damaged record could not be written anew");
        }
    }
}

/// Where the last pass had come to; at the beginning if that is not known.
fn read_cursor(folder: &Path) -> Cursor {
    let read = || {
        let bytes = durable::read(&folder.join(SCRUB_FILE)).ok()??;
        let mut decoder = Decoder::new(&bytes);
        let cursor = Cursor { segment: decoder.u64("segment").ok()?, offset: decoder.u64("offset").ok()? };
        decoder.finish().ok().map(|()| cursor)
    };
    read().unwrap_or_default()
}

async fn note_cursor(core: &Arc<Core>, at: Cursor) {
    let path = core.identity.folder.join(SCRUB_FILE);
    let mut encoder = Encoder::new();
    encoder.u64(at.segment).u64(at.offset);
    let noted = core.executor.run(move || durable::replace(&path, encoder.as_slice())).await;
    if let Ok(Err(error)) = noted {
        tracing::warn!(%error, "how far scrub has come cannot be noted: a start begins a new pass");
    }
}

/// Gives space back that dead records take, and keeps the index up to date, until `stop` is set.
pub async fn compact(core: Arc<Core>, mut stop: watch::Receiver<bool>) {
    core.metrics.loop_started(Loop::Compact, core.uptime());
    while rest(&mut stop, COMPACT_INTERVAL).await {
        let began = Instant::now();
        loop {
            let shared = core.clone();
            match core.executor.run(move || shared.store.compact_step()).await {
                Ok(Ok(Step::Idle)) => break,
                Ok(Ok(Step::Copied(bytes))) => {
                    core.metrics.compaction_copied_bytes.inc_by(bytes);
                    // Where puts are refused for want of space, that is worse than a busy disk.
                    if !core.store.short_of_space() {
                        // Read, written, and read back.
                        rebuild::pace(&core, 3 * bytes as usize).await;
                    }
                }
                Ok(Ok(Step::Emptied(done))) => {
                    core.metrics.compaction_freed_bytes.inc_by(done.bytes - done.copied.min(done.bytes));
                    tracing::debug!(segment = done.segment, bytes = done.bytes, copied = done.copied, "emptied");
                }
                Ok(Err(error)) => {
                    tracing::error!(%error, "a segment could not be emptied");
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "compaction failed");
                    break;
                }
            }
            if *stop.borrow() {
                return;
            }
        }
        core.store.take_lost().into_iter().for_each(|stripe| core.alerts.add(stripe));
        let shared = core.clone();
        if let Err(error) = core.executor.run(move || shared.store.index_segments(INDEXED_AT_ONCE)).await {
            tracing::error!(%error, "the index cannot be kept up to date");
        }
        core.metrics.loop_ran(Loop::Compact, began.elapsed(), core.uptime());
    }
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
        let stripes = to_audit(&core, from);
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
fn to_audit(core: &Core, from: StripeId) -> Vec<StripeId> {
    let mut stripes = Vec::new();
    for stripe in core.store.stripes(Some(from), AUDITS * LOOKED_AT) {
        stripes.push((core.store.held(&stripe).iter().any(|held| held.complete), stripe));
    }
    stripes.sort_by_key(|(complete, _)| *complete);
    stripes.truncate(AUDITS);
    stripes.into_iter().map(|(_, stripe)| stripe).collect()
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
    let expired = expired.map_err(std::io::Error::other)?;
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
    let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let stats = core.store.stats();
    core.metrics.store_segments.set(gauge(stats.segments));
    core.metrics.store_bytes.with(StoreBytes::Live).set(gauge(stats.live));
    core.metrics.store_bytes.with(StoreBytes::Dead).set(gauge(stats.bytes.saturating_sub(stats.live)));
    core.metrics.store_gaps.set(gauge(stats.gaps + stats.unusable));
    core.metrics.store_indexed.set(gauge(stats.indexed));
    let transport = core.endpoint.stats();
    core.metrics.transport_connections.set(transport.connections as i64);
    let counters = [
        (&core.metrics.store_failures, stats.failures),
        (core.metrics.transport_bytes.with(Direction::In), transport.bytes_in),
        (core.metrics.transport_bytes.with(Direction::Out), transport.bytes_out),
        (&core.metrics.transport_datagrams_dropped, transport.datagrams_dropped),
    ];
    for (counter, value) in counters {
        counter.inc_by(value.saturating_sub(counter.get()));
    }
}
