//! Carrying plans out: fetch k shards, rebuild, verify every hash, place; and moving surplus shards.
//!
//! It trusts nobody: each fetched shard is checked against the header, each rebuilt one too, and a copy is given up only
//! after its home has proved a random block of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use potluck_proto::blocks::{self, BlockTree};
use potluck_proto::codec::{Codec, CodecError};
use potluck_proto::id::{NodeId, StripeId};
use potluck_proto::stripe::{DATA_LIMIT, SignedHeader};
use potluck_proto::transport::CallError;
use potluck_proto::wire::{self, Code, reply, request};
use rand::RngExt;
use tokio::time::Instant;

use super::plan::{Plan, Step};
use super::survey::Holdings;
use crate::membership::View;
use crate::metrics::label::AuditResult;
use crate::node::Core;
use crate::store::{Check, ShardKey, ShardState, StoreError};

/// Stripes rebuilt at once: each holds at most 16 MiB of fetched shards and what is rebuilt from them.
const STRIPES_AT_ONCE: usize = 2;

/// How long a call about one shard may take, the transfer of its bytes apart.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// The slowest link that is reckoned with, in bytes a second.
const SLOW_RATE: u64 = 128 << 10;

/// What became of a stripe's plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every step was done.
    Whole,
    /// Some steps failed; the next survey tries again.
    Partly,
    /// What was rebuilt does not match the header.
    Malformed,
}

/// How long a shard of so many bytes may take to arrive or to be placed.
fn deadline(bytes: usize) -> Duration {
    CALL_DEADLINE + Duration::from_secs(bytes as u64 / SLOW_RATE)
}

/// Nodes that did not answer in this round: they are asked last, so that one of them does not hold up every stripe.
#[derive(Default)]
struct Slow(Mutex<BTreeSet<NodeId>>);

impl Slow {
    fn note(&self, node: NodeId, error: &CallError) {
        if matches!(error, CallError::Deadline | CallError::Unreachable { .. }) {
            self.nodes().insert(node);
        }
    }

    fn is(&self, node: &NodeId) -> bool {
        self.nodes().contains(node)
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Carries plans out, a few stripes at once, within the background budget.
pub(crate) async fn carry_out(
    core: &Arc<Core>,
    view: &View,
    holdings: &BTreeMap<StripeId, Holdings>,
    due: Vec<(usize, StripeId, Plan)>,
) -> Vec<(StripeId, Outcome)> {
    let slow = &Slow::default();
    let repairs = due.into_iter().filter_map(|(_, stripe, plan)| {
        let holding = holdings.get(&stripe)?;
        Some(async move { (stripe, one_stripe(core, view, slow, stripe, holding, plan).await) })
    });
    stream::iter(repairs).buffer_unordered(STRIPES_AT_ONCE).collect().await
}

async fn one_stripe(
    core: &Arc<Core>,
    view: &View,
    slow: &Slow,
    stripe: StripeId,
    holding: &Holdings,
    plan: Plan,
) -> Outcome {
    let mut outcome = Outcome::Whole;
    let mut to_rebuild = Vec::new();
    for step in plan.steps {
        match step {
            Step::Revive { node, index } => {
                if !revive(core, view, stripe, node, index).await {
                    outcome = Outcome::Partly;
                }
            }
            Step::Rebuild { index, targets } => to_rebuild.push((index, targets)),
        }
    }
    if to_rebuild.is_empty() {
        return outcome;
    }
    let shared = core.clone();
    let header = match core.executor.run(move || shared.store.header(&stripe)).await {
        Ok(Ok(header)) => Arc::new(header),
        _ => return Outcome::Partly,
    };
    let Some(fetched) = fetch(core, view, slow, &header, holding).await else { return Outcome::Partly };
    // k of its shards have just proved their hashes.
    mark_complete(core, stripe).await;
    let wanted: Vec<usize> = to_rebuild.iter().map(|(index, _)| *index).collect();
    let (scheme, for_check) = (header.scheme, header.clone());
    let rebuilt = core.executor.run(move || {
        let present: Vec<(usize, &[u8])> = fetched.iter().map(|(index, bytes)| (*index, &bytes[..])).collect();
        let shards = Codec::new(scheme).rebuild(&present, &wanted)?;
        let checked = wanted.iter().zip(shards).map(|(&index, shard)| {
            let (root, tree) = blocks::hash_shard(&shard);
            (root == for_check.shards[index]).then_some((index, Bytes::from(shard), tree))
        });
        Ok::<_, CodecError>(checked.collect::<Option<Vec<_>>>())
    });
    let shards = match rebuilt.await {
        Ok(Ok(Some(shards))) => shards,
        Ok(Ok(None)) => {
            tracing::error!(%stripe, "malformed: its shards match their hashes, but do not give what its header says");
            return Outcome::Malformed;
        }
        Ok(Err(error)) => {
            tracing::error!(%stripe, %error, "a stripe cannot be rebuilt");
            return Outcome::Partly;
        }
        Err(error) => {
            tracing::error!(%stripe, %error, "a stripe cannot be rebuilt");
            return Outcome::Partly;
        }
    };
    let mut taken = BTreeSet::new();
    for ((index, shard, tree), (_, targets)) in shards.into_iter().zip(to_rebuild) {
        pace(core, shard.len()).await;
        let mut placed = false;
        let (last, first): (Vec<NodeId>, Vec<NodeId>) = targets.into_iter().partition(|target| slow.is(target));
        for target in first.into_iter().chain(last) {
            if taken.contains(&target) {
                continue;
            }
            let piece = Piece { header: &header, index, shard: &shard, tree: &tree };
            if place(core, view, slow, piece, target).await {
                taken.insert(target);
                core.metrics.repaired_shards.inc();
                core.metrics.repaired_bytes.inc_by(shard.len() as u64);
                tracing::info!(stripe = %stripe.short(), index, on = %target.short(), "a shard was rebuilt");
                placed = true;
                break;
            }
        }
        if !placed {
            outcome = Outcome::Partly;
        }
    }
    outcome
}

/// Waits for the turn of so many bytes in the background budget, which all loops share.
pub(crate) async fn pace(core: &Core, bytes: usize) {
    tokio::time::sleep_until(core.budget.turn(bytes, Instant::now())).await;
}

/// The background budget: everything that a loop reads, sends or writes takes its turn here.
#[derive(Debug)]
pub struct Budget {
    /// Bytes a second.
    rate: u64,
    /// When all that was let through so far has had its time.
    free: Mutex<Option<Instant>>,
}

impl Budget {
    /// A budget of `rate` bytes a second.
    #[must_use]
    pub fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), free: Mutex::default() }
    }

    /// When `bytes` may pass, asked at `now`. They take their time before those that ask later.
    pub fn turn(&self, bytes: usize, now: Instant) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = free.map_or(now, |free| free.max(now));
        let passed = turn + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        *free = Some(passed);
        passed
    }
}

/// Records that k shards of a stripe have proved their hashes, on every shard of it here.
pub(crate) async fn mark_complete(core: &Arc<Core>, stripe: StripeId) {
    let shared = core.clone();
    let marked = core.executor.run(move || {
        for index in live_indices(&shared.store.held(&stripe)) {
            shared.store.set_complete(ShardKey { stripe, index })?;
        }
        Ok::<_, StoreError>(())
    });
    match marked.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "a stripe cannot be marked complete"),
        Err(error) => tracing::error!(%error, "a stripe cannot be marked complete"),
    }
}

/// Fetches any k different shards, each checked against the header; tries further holders where some fail.
async fn fetch(
    core: &Arc<Core>,
    view: &View,
    slow: &Slow,
    header: &Arc<SignedHeader>,
    holding: &Holdings,
) -> Option<Vec<(usize, Bytes)>> {
    let k = header.scheme.k();
    // Own shards first: they cost no network.
    let mut sources: Vec<(NodeId, usize)> = Vec::new();
    let mine = holding.live.get(&view.me).into_iter().flatten().map(|index| (view.me, *index));
    sources.extend(mine);
    let others = holding.live.iter().filter(|(node, _)| **node != view.me && view.is_up(node));
    sources.extend(others.flat_map(|(node, held)| held.iter().map(|index| (*node, *index))));
    sources.sort_by_key(|(node, _)| slow.is(node));
    sources.extend(holding.evicted.iter().flat_map(|(node, held)| held.iter().map(|index| (*node, *index))));
    let mut sources = sources.into_iter();
    let mut waiting = Vec::new();
    let mut asked: BTreeSet<usize> = BTreeSet::new();
    let mut got: BTreeMap<usize, Bytes> = BTreeMap::new();
    let mut calls = FuturesUnordered::new();
    loop {
        while got.len() + calls.len() < k {
            let next = sources.next().or_else(|| waiting.pop());
            let Some((node, index)) = next else { break };
            if got.contains_key(&index) {
                continue;
            }
            // Another holder of an index that is already on its way is kept for later.
            if !asked.insert(index) && sources.len() > 0 {
                waiting.push((node, index));
                continue;
            }
            pace(core, header.shard_len as usize).await;
            calls.push(async move { (node, index, fetch_one(core, view, slow, header, node, index).await) });
        }
        let Some((node, index, shard)) = calls.next().await else { break };
        match shard {
            Some(shard) => {
                got.insert(index, shard);
            }
            None => tracing::debug!(from = %node.short(), index, "a sibling could not be had"),
        }
        if got.len() >= k {
            return Some(got.into_iter().take(k).collect());
        }
    }
    None
}

async fn fetch_one(
    core: &Arc<Core>,
    view: &View,
    slow: &Slow,
    header: &Arc<SignedHeader>,
    node: NodeId,
    index: usize,
) -> Option<Bytes> {
    let stripe = header.id();
    if node == view.me {
        let shared = core.clone();
        let read = core.executor.run(move || shared.store.read(ShardKey { stripe, index }, 0..0, Check::Here)).await;
        return read.ok()?.ok().map(|read| read.data);
    }
    let call = request::Kind::GetShard(wire::GetShard {
        stripe: Bytes::copy_from_slice(stripe.as_bytes()),
        index: Some(index as u32),
        offset: 0,
        length: 0,
    });
    let peer = view.peer(&node)?;
    let answer = core.endpoint.call(&peer, call, Vec::new(), deadline(header.shard_len as usize)).await;
    let (_, shard) = answer.inspect_err(|error| slow.note(node, error)).ok()?;
    let (header, checked) = (header.clone(), shard.clone());
    let sound = core.executor.run(move || {
        checked.len() == header.shard_len as usize && *blake3::hash(&checked).as_bytes() == header.shards[index].0
    });
    if sound.await.ok()? {
        return Some(shard);
    }
    tracing::warn!(from = %node.short(), %stripe, index, "a node gave wrong bytes");
    ask_to_check(core, view, stripe, node, index).await;
    None
}

/// Asks a holder to re-read a shard that did not pass.
pub(crate) async fn ask_to_check(core: &Core, view: &View, stripe: StripeId, node: NodeId, index: usize) {
    let Some(peer) = view.peer(&node) else { return };
    let stripe = Bytes::copy_from_slice(stripe.as_bytes());
    let call = request::Kind::CheckShard(wire::CheckShard { stripe, index: index as u32 });
    if let Err(error) = core.endpoint.call(&peer, call, Vec::new(), deadline(DATA_LIMIT)).await {
        tracing::debug!(%error, "a node did not re-read a doubtful shard");
    }
}

/// A shard that is to be placed.
struct Piece<'a> {
    header: &'a Arc<SignedHeader>,
    index: usize,
    shard: &'a Bytes,
    tree: &'a BlockTree,
}

/// Puts a shard on a node, or here. The node has verified it and has it on disk when this is true.
async fn place(core: &Arc<Core>, view: &View, slow: &Slow, piece: Piece<'_>, target: NodeId) -> bool {
    let Piece { header, index, shard, tree } = piece;
    if target == view.me {
        let (shared, header, shard, tree) = (core.clone(), header.clone(), shard.clone(), tree.clone());
        let put = core.executor.run(move || shared.store.put(&header, index, &shard, &tree, 0)).await;
        return match put {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a rebuilt shard cannot be kept here");
                false
            }
            Err(_) => false,
        };
    }
    let Some(peer) = view.peer(&target) else { return false };
    let call =
        request::Kind::PutShard(wire::PutShard { header: header.bytes().clone(), index: index as u32, sweep: 0 });
    match core.endpoint.call(&peer, call, vec![shard.clone()], deadline(shard.len())).await {
        Ok((reply::Kind::PutShard(_), _)) => true,
        Ok(_) => false,
        Err(error) => {
            slow.note(target, &error);
            tracing::debug!(on = %target.short(), %error, "a shard could not be placed");
            false
        }
    }
}

async fn revive(core: &Arc<Core>, view: &View, stripe: StripeId, node: NodeId, index: usize) -> bool {
    if node == view.me {
        let shared = core.clone();
        return matches!(core.executor.run(move || shared.store.revive(ShardKey { stripe, index })).await, Ok(Ok(())));
    }
    // Reading a block revives the shard.
    let Some(peer) = view.peer(&node) else { return false };
    let call = request::Kind::GetShard(wire::GetShard {
        stripe: Bytes::copy_from_slice(stripe.as_bytes()),
        index: Some(index as u32),
        offset: 0,
        length: 1,
    });
    core.endpoint.call(&peer, call, Vec::new(), CALL_DEADLINE).await.is_ok()
}

/// Sends a surplus shard of mine to its home.
pub(crate) async fn send_home(core: &Arc<Core>, view: &View, stripe: StripeId, index: usize, home: NodeId) {
    let shared = core.clone();
    let read = core.executor.run(move || {
        let read = shared.store.read(ShardKey { stripe, index }, 0..0, Check::Here)?;
        let header = shared.store.header(&stripe)?;
        Ok::<_, StoreError>((Arc::new(header), read))
    });
    let Ok(Ok((header, read))) = read.await else { return };
    pace(core, read.data.len()).await;
    let piece = Piece { header: &header, index, shard: &read.data, tree: &read.tree };
    if place(core, view, &Slow::default(), piece, home).await {
        core.metrics.rebalanced_shards.inc();
        tracing::info!(stripe = %stripe.short(), index, home = %home.short(), "a shard went home");
    }
}

/// Trashes a surplus shard of mine once its home has proved that it holds it.
pub(crate) async fn hand_over(core: &Arc<Core>, view: &View, stripe: StripeId, index: usize, home: NodeId) {
    if challenge(core, view, stripe, home, index).await != AuditResult::Passed {
        return;
    }
    let until_ms = core.running_ms() + core.config.trash_time.as_millis() as u64;
    let shared = core.clone();
    let trashed = core.executor.run(move || shared.store.trash(ShardKey { stripe, index }, until_ms)).await;
    match trashed {
        Ok(Ok(())) => {
            tracing::info!(stripe = %stripe.short(), index, home = %home.short(), "a surplus copy is trashed")
        }
        Ok(Err(error)) => tracing::error!(%error, "a surplus copy cannot be trashed"),
        Err(error) => tracing::error!(%error, "a surplus copy cannot be trashed"),
    }
}

/// Challenges a peer to prove a shard: a block that it cannot foresee, with the chaining values up to the header's hash.
pub(crate) async fn challenge(
    core: &Arc<Core>,
    view: &View,
    stripe: StripeId,
    node: NodeId,
    index: usize,
) -> AuditResult {
    let shared = core.clone();
    let Ok(Ok(header)) = core.executor.run(move || shared.store.header(&stripe)).await else {
        return AuditResult::Unanswered;
    };
    let Some(peer) = view.peer(&node) else { return AuditResult::Unanswered };
    let offset = core.rng().random_range(0..u64::from(header.shard_len));
    let call = request::Kind::GetShard(wire::GetShard {
        stripe: Bytes::copy_from_slice(stripe.as_bytes()),
        index: Some(index as u32),
        offset,
        length: 1,
    });
    let began = Instant::now();
    let result = match core.endpoint.call(&peer, call, Vec::new(), CALL_DEADLINE).await {
        Ok((reply::Kind::GetShard(reply), block)) => {
            if proves(&header, index, &reply, &block, offset) {
                AuditResult::Passed
            } else {
                AuditResult::Failed
            }
        }
        Ok(_) => AuditResult::Failed,
        Err(error) if matches!(error.code(), Some(Code::NotFound | Code::Corrupt)) => AuditResult::Failed,
        Err(_) => AuditResult::Unanswered,
    };
    core.metrics.audits.with(result).inc();
    if result == AuditResult::Failed {
        tracing::warn!(%stripe, index, node = %node.short(), took = ?began.elapsed(), "an audit failed");
        ask_to_check(core, view, stripe, node, index).await;
    }
    result
}

/// Whether an answer proves the block that holds `offset`.
fn proves(header: &SignedHeader, index: usize, reply: &wire::GetShardReply, block: &[u8], offset: u64) -> bool {
    let len = u64::from(header.shard_len);
    let asked = blocks::widen(offset, 1, len);
    let Ok(tree) = BlockTree::from_bytes(&reply.chaining_values, len) else { return false };
    let root_sound = header.shards.get(index).is_some_and(|root| tree.verify(root).is_ok());
    root_sound
        && reply.index as usize == index
        && reply.offset == asked.start
        && block.len() as u64 == asked.end - asked.start
        && tree.check_range(asked.start, block).is_ok()
}

/// The index and place of each of my live shards of a stripe.
pub(crate) fn live_indices(held: &[crate::store::Held]) -> impl Iterator<Item = usize> + '_ {
    held.iter().filter(|held| held.state == ShardState::Live).map(|held| held.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_who_ask_share_one_budget() {
        let (budget, now) = (Budget::new(1000), Instant::now());
        let seconds = |instant: Instant| (instant - now).as_secs_f64();
        assert_eq!([500, 1000, 0].map(|bytes| seconds(budget.turn(bytes, now))), [0.5, 1.5, 1.5]);
        // What was not used does not add up.
        let later = now + Duration::from_secs(60);
        assert_eq!(seconds(budget.turn(1000, later)), 61.0);
    }
}
