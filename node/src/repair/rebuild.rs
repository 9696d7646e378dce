//! Carrying plans out: fetch k shards, rebuild, verify every hash, place; and moving surplus shards.
//!
//! It trusts nobody: each fetched shard is checked against the header, each rebuilt one too, and a copy is given up only
//! after its home has proved a random block of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use potluck_proto::blocks::{self, BlockTree};
use potluck_proto::codec::{Codec, CodecError};
use potluck_proto::id::{NodeId, StripeId};
use potluck_proto::stripe::SignedHeader;
use potluck_proto::wire::{self, Code, reply, request};
use rand::RngExt;
use tokio::time::Instant;

use super::plan::{Plan, Step};
use super::survey::Holdings;
use crate::membership::View;
use crate::metrics::label::AuditResult;
use crate::node::Core;
use crate::store::{ShardKey, ShardState};

/// Stripes rebuilt at once: each holds at most 16 MiB of fetched shards and what is rebuilt from them.
const STRIPES_AT_ONCE: usize = 2;

/// How long one shard may take to arrive or to be placed.
const SHARD_DEADLINE: Duration = Duration::from_secs(60);

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

/// Carries plans out, a few stripes at once, within the background budget.
pub(crate) async fn carry_out(
    core: &Arc<Core>,
    view: &View,
    holdings: &BTreeMap<StripeId, Holdings>,
    due: Vec<(usize, StripeId, Plan)>,
) -> Vec<(StripeId, Outcome)> {
    let repairs = due.into_iter().filter_map(|(_, stripe, plan)| {
        let holding = holdings.get(&stripe)?;
        Some(async move { (stripe, one_stripe(core, view, stripe, holding, plan).await) })
    });
    stream::iter(repairs).buffer_unordered(STRIPES_AT_ONCE).collect().await
}

async fn one_stripe(core: &Arc<Core>, view: &View, stripe: StripeId, holding: &Holdings, plan: Plan) -> Outcome {
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
    let Some(fetched) = fetch(core, view, &header, holding).await else { return Outcome::Partly };
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
        for target in targets {
            if taken.contains(&target) {
                continue;
            }
            if place(core, view, &header, index, &shard, &tree, target).await {
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

/// Waits as long as these bytes take at the background budget.
pub(crate) async fn pace(core: &Core, bytes: usize) {
    let seconds = bytes as f64 / core.config.background_budget.max(1) as f64;
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

/// Fetches any k different shards, each checked against the header; tries further holders where some fail.
async fn fetch(
    core: &Arc<Core>,
    view: &View,
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
            calls.push(async move { (node, index, fetch_one(core, view, header, node, index).await) });
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
    header: &Arc<SignedHeader>,
    node: NodeId,
    index: usize,
) -> Option<Bytes> {
    let stripe = header.id();
    if node == view.me {
        let shared = core.clone();
        let read = core.executor.run(move || shared.store.read(ShardKey { stripe, index }, 0..0)).await;
        return read.ok()?.ok().map(|read| read.data);
    }
    let call = request::Kind::GetShard(wire::GetShard {
        stripe: Bytes::copy_from_slice(stripe.as_bytes()),
        index: Some(index as u32),
        offset: 0,
        length: 0,
    });
    let peer = view.peer(&node)?;
    let (_, shard) = core.endpoint.call(&peer, call, Vec::new(), SHARD_DEADLINE).await.ok()?;
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
    if let Err(error) = core.endpoint.call(&peer, call, Vec::new(), SHARD_DEADLINE).await {
        tracing::debug!(%error, "a node did not re-read a doubtful shard");
    }
}

/// Puts a shard on a node, or here. The node has verified it and has it on disk when this is true.
async fn place(
    core: &Arc<Core>,
    view: &View,
    header: &Arc<SignedHeader>,
    index: usize,
    shard: &Bytes,
    tree: &BlockTree,
    target: NodeId,
) -> bool {
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
    match core.endpoint.call(&peer, call, vec![shard.clone()], SHARD_DEADLINE).await {
        Ok((reply::Kind::PutShard(_), _)) => true,
        Ok(_) => false,
        Err(error) => {
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
    core.endpoint.call(&peer, call, Vec::new(), SHARD_DEADLINE).await.is_ok()
}

/// Sends a surplus shard of mine to its home.
pub(crate) async fn send_home(core: &Arc<Core>, view: &View, stripe: StripeId, index: usize, home: NodeId) {
    let shared = core.clone();
    let read = core.executor.run(move || {
        let read = shared.store.read(ShardKey { stripe, index }, 0..0)?;
        let header = shared.store.header(&stripe)?;
        Ok::<_, crate::store::StoreError>((Arc::new(header), read))
    });
    let Ok(Ok((header, read))) = read.await else { return };
    pace(core, read.data.len()).await;
    if place(core, view, &header, index, &read.data, &read.tree, home).await {
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
    let result = match core.endpoint.call(&peer, call, Vec::new(), SHARD_DEADLINE).await {
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
