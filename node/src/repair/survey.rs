//! The survey: who holds what of my stripes, and what follows from it: repair, and sending surplus shards home.
//!
//! A round asks every live node, in batches, about the stripes held here, plans each stripe ([`super::plan`]), and lets
//! `rebuild` carry out what is this node's turn. Everything is idempotent: a round cut short or run twice does
//! no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use potluck_proto::id::{NodeId, StripeId};
use potluck_proto::stripe::Scheme;
use potluck_proto::transport::Endpoint;
use potluck_proto::wire::{self, reply, request};
use tokio::sync::watch;
use tokio::time::Instant;

use super::patience::{self, Seen};
use super::plan::{Condition, Plan, StripeFacts, Surplus, plan, surplus};
use super::rebuild;
use crate::membership::View;
use crate::metrics::label::Loop;
use crate::node::{Core, Renewal};
use crate::store::ShardState;

/// Stripes asked for in one batch: bounds the memory of a round whatever the node holds.
const BATCH: usize = 1024;

/// Nodes asked at once.
const ASKED_AT_ONCE: usize = 16;

/// How long one node may take to answer a batch.
const ASK_DEADLINE: Duration = Duration::from_secs(10);

/// Stripes that are remembered as seen whole, and as on their way: further ones are only looked at later.
const REMEMBERED: usize = 65_536;

/// Changes of the ring or of who is up are gathered for so long before a survey.
const GATHER: Duration = Duration::from_millis(500);

/// How many stripes stand how, of those that this node is first responsible for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// All indices on live nodes.
    pub whole: u64,
    /// Some missing.
    pub degraded: u64,
    /// Few left to lose.
    pub at_risk: u64,
    /// Fewer than k reachable.
    pub unreadable: u64,
    /// An upload that died.
    pub unconfirmed: u64,
    /// Rebuilt bytes do not match the header.
    pub malformed: u64,
}

impl Tally {
    fn count(&mut self, condition: Condition) {
        *match condition {
            Condition::Whole => &mut self.whole,
            Condition::Degraded => &mut self.degraded,
            Condition::AtRisk => &mut self.at_risk,
            Condition::Unreadable => &mut self.unreadable,
            Condition::Unconfirmed => &mut self.unconfirmed,
        } += 1;
    }
}

/// What the nodes say of one stripe.
#[derive(Debug, Clone)]
pub(crate) struct Holdings {
    pub(crate) scheme: Scheme,
    pub(crate) complete: bool,
    pub(crate) live: BTreeMap<NodeId, BTreeSet<usize>>,
    pub(crate) trash: BTreeMap<NodeId, BTreeSet<usize>>,
    /// Indices that evicted nodes say they hold; they are asked only about what cannot be rebuilt without them.
    pub(crate) evicted: BTreeMap<NodeId, BTreeSet<usize>>,
    /// Nodes that say that they are homes of the stripe.
    pub(crate) homes: BTreeSet<NodeId>,
}

impl Holdings {
    /// Whether nodes that count hold k different indices, in use or in the trash.
    fn is_readable(&self) -> bool {
        let held: BTreeSet<usize> = self.live.values().chain(self.trash.values()).flatten().copied().collect();
        held.len() >= self.scheme.k()
    }

    /// Indices that a node names, but for those that the scheme does not have.
    fn indices(&self, named: &[u32]) -> BTreeSet<usize> {
        named.iter().map(|index| *index as usize).filter(|index| *index < self.scheme.n()).collect()
    }

    pub(crate) fn facts<'a>(&'a self, walk: &'a [NodeId], up: &'a BTreeSet<NodeId>) -> StripeFacts<'a> {
        let (scheme, complete) = (self.scheme, self.complete);
        StripeFacts { scheme, walk, up, live: &self.live, trash: &self.trash, evicted: &self.evicted, complete }
    }
}

/// What a round remembers for the next.
#[derive(Default)]
struct Memory {
    /// Since when a stripe lacks shards.
    lacking: BTreeMap<StripeId, Instant>,
    /// Stripes whose shards do not give what their header says: not tried again.
    malformed: BTreeSet<StripeId>,
    /// Stripes seen whole of which that is not yet written down as `complete`: no upload of them is under way.
    arrived: BTreeSet<StripeId>,
    /// Stripes that may be on their way, and when to look at them again.
    arriving: BTreeSet<StripeId>,
    look_again: Option<Instant>,
}

/// Surveys until `stop` is set.
pub async fn run(core: Arc<Core>, mut stop: watch::Receiver<bool>) {
    let mut memory = Memory::default();
    let mut changes = core.membership.watch();
    core.metrics.loop_started(Loop::Survey, core.uptime());
    core.metrics.loop_started(Loop::Repair, core.uptime());
    core.metrics.loop_started(Loop::Rebalance, core.uptime());
    let mut next = Instant::now() + GATHER;
    loop {
        let look_again = memory.look_again.filter(|at| *at < next);
        let (alerted, again) = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep_until(look_again.unwrap_or(next)) => (false, look_again.is_some()),
            () = core.alerts.wait() => (true, false),
            _ = changes.changed() => {
                next = next.min(Instant::now() + GATHER);
                continue;
            }
        };
        let began = Instant::now();
        let round = async {
            match (alerted, again) {
                (true, _) => alerts(&core, &mut memory).await,
                (_, true) => arriving(&core, &mut memory).await,
                _ => everything(&core, &mut memory).await,
            }
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = round => {}
        }
        for which in [Loop::Survey, Loop::Repair, Loop::Rebalance] {
            core.metrics.loop_ran(which, began.elapsed(), core.uptime());
        }
        if !alerted && !again {
            core.metrics.surveyed(core.uptime());
            next = Instant::now() + core.config.survey_interval;
        }
    }
}

/// Looks at every stripe held here.
async fn everything(core: &Arc<Core>, memory: &mut Memory) {
    let mut tally = Tally::default();
    let mut seen_lacking = BTreeSet::new();
    let mut after = None;
    loop {
        let stripes = core.store.stripes(after, BATCH);
        let Some(last) = stripes.last() else { break };
        after = Some(*last);
        look(core, memory, &stripes, false, &mut tally, &mut seen_lacking).await;
    }
    memory.lacking.retain(|stripe, _| seen_lacking.contains(stripe));
    tally.malformed = memory.malformed.len() as u64;
    core.metrics.repair_queue.set(memory.lacking.len() as i64);
    core.set_tally(tally);
    finish_leaving(core).await;
}

/// Looks at the stripes of which a shard is known to be gone, and tells their other holders.
async fn alerts(core: &Arc<Core>, memory: &mut Memory) {
    let stripes: Vec<StripeId> = core.alerts.take().into_iter().collect();
    for batch in stripes.chunks(BATCH) {
        let mut mine = Vec::new();
        for stripe in batch {
            if core.store.held(stripe).is_empty() {
                tell_others(core, *stripe).await;
            } else {
                mine.push(*stripe);
            }
        }
        look(core, memory, &mine, true, &mut Tally::default(), &mut BTreeSet::new()).await;
    }
}

/// Looks again at the stripes that may have been on their way.
async fn arriving(core: &Arc<Core>, memory: &mut Memory) {
    memory.look_again = None;
    let stripes: Vec<StripeId> = std::mem::take(&mut memory.arriving).into_iter().collect();
    for batch in stripes.chunks(BATCH) {
        look(core, memory, batch, false, &mut Tally::default(), &mut BTreeSet::new()).await;
    }
}

/// This node lost its only shard of the stripe: those who hold others must look.
async fn tell_others(core: &Core, stripe: StripeId) {
    let view = core.membership.view();
    let calls = view.others_up().filter_map(|node| view.peer(&node)).map(|peer| {
        let alert = request::Kind::Alert(wire::Alert { stripe: Bytes::copy_from_slice(stripe.as_bytes()) });
        async move {
            if let Err(error) = core.endpoint.call(&peer, alert, Vec::new(), ASK_DEADLINE).await {
                tracing::debug!(%error, "an alert was not heard");
            }
        }
    });
    stream::iter(calls).buffer_unordered(ASKED_AT_ONCE).collect::<Vec<()>>().await;
}

/// Plans a batch of stripes and carries out what is this node's turn.
async fn look(
    core: &Arc<Core>,
    memory: &mut Memory,
    stripes: &[StripeId],
    alerted: bool,
    tally: &mut Tally,
    seen_lacking: &mut BTreeSet<StripeId>,
) {
    let view = core.membership.view();
    // Whoever does not answer is as good as away for a plan, but until it is known to be away, what it may hold is not
    // rebuilt.
    let (mut holdings, up) = ask(core, &view, stripes).await;
    ask_evicted(core, &view, &mut holdings).await;
    let members = || view.table.members().map(|record| record.node());
    let silent = patience::silent(members(), view.up.keys().copied(), &up, core.uptime());
    let away = members().any(|node| !view.is_up(&node));
    let now = Instant::now();
    let mut due: Vec<(usize, StripeId, Plan)> = Vec::new();
    for (stripe, holding) in &holdings {
        let walk: Vec<NodeId> = view.ring.walk_stripe(stripe, holding.scheme).iter().collect();
        let facts = holding.facts(&walk, &up);
        let plan = plan(&facts);
        let my_turn = plan.leaders.iter().position(|node| *node == view.me);
        if my_turn == Some(0) {
            tally.count(plan.condition);
        }
        if holding.complete {
            memory.arrived.remove(stripe);
        }
        if plan.condition == Condition::Whole {
            memory.lacking.remove(stripe);
            if !holding.complete && memory.arrived.len() < REMEMBERED {
                memory.arrived.insert(*stripe);
            }
            continue;
        }
        seen_lacking.insert(*stripe);
        let since = *memory.lacking.entry(*stripe).or_insert_with(|| {
            if plan.condition == Condition::Unreadable && my_turn == Some(0) {
                let (reachable, needed) = (plan.reachable, holding.scheme.k());
                tracing::warn!(stripe = %stripe, reachable, needed, "unreadable until more of its holders are back");
            }
            now
        });
        let Some(turn) = my_turn else { continue };
        if plan.steps.is_empty() || memory.malformed.contains(stripe) {
            continue;
        }
        let uploading = !holding.complete && !memory.arrived.contains(stripe);
        let seen = Seen { condition: plan.condition, turn, away, silent, uploading, alerted };
        let wait = patience::wait(seen, core.config.repair_lazy_after, core.config.survey_interval);
        if now.duration_since(since) >= wait {
            due.push((plan.reachable.saturating_sub(holding.scheme.k()), *stripe, plan));
        } else if uploading
            && now.duration_since(since) < patience::UPLOAD_PATIENCE
            && memory.arriving.len() < REMEMBERED
        {
            memory.arriving.insert(*stripe);
            memory.look_again.get_or_insert(now + patience::UPLOAD_PATIENCE);
        }
    }
    // Least margin first.
    due.sort_by_key(|(margin, stripe, _)| (*margin, *stripe));
    core.metrics.repair_queue.set(memory.lacking.len().max(due.len()) as i64);
    let repaired = rebuild::carry_out(core, &view, &holdings, due).await;
    for (stripe, outcome) in repaired {
        match outcome {
            rebuild::Outcome::Whole => {
                if let Some(since) = memory.lacking.remove(&stripe) {
                    core.metrics.repair_seconds.observe(since.elapsed().as_secs_f64());
                }
            }
            rebuild::Outcome::Partly => {}
            rebuild::Outcome::Malformed => {
                memory.malformed.insert(stripe);
            }
        }
    }
    if view.majority() {
        rebalance(core, &view, &up, &holdings).await;
    }
}

/// Sends surplus shards home, and trashes those that their home has proved to hold.
async fn rebalance(core: &Arc<Core>, view: &View, up: &BTreeSet<NodeId>, holdings: &BTreeMap<StripeId, Holdings>) {
    for (stripe, holding) in holdings {
        let walk: Vec<NodeId> = view.ring.walk_stripe(stripe, holding.scheme).iter().collect();
        for (index, what) in surplus(&holding.facts(&walk, up), view.me) {
            match what {
                Surplus::Send { home } => {
                    // It has only to take it out of its trash, which repair asks it to.
                    if holding.trash.get(&home).is_some_and(|trash| trash.contains(&index)) {
                        continue;
                    }
                    rebuild::send_home(core, view, *stripe, index, home).await;
                }
                Surplus::Hand { home } => {
                    let says_home = holding.homes.contains(&home);
                    let long_up = view.up.get(&home).is_some_and(|since| since.elapsed() >= core.config.lost_after);
                    if says_home && (long_up || core.store.full() || core.leaving()) {
                        rebuild::hand_over(core, view, *stripe, index, home).await;
                    }
                }
            }
        }
    }
}

/// Asks all live nodes what they hold of these stripes; also gives who answered, this node included.
pub(crate) async fn ask(
    core: &Arc<Core>,
    view: &View,
    stripes: &[StripeId],
) -> (BTreeMap<StripeId, Holdings>, BTreeSet<NodeId>) {
    let mut holdings = BTreeMap::new();
    let mut answered = BTreeSet::from([view.me]);
    for stripe in stripes {
        let held = core.store.held(stripe);
        let Some(first) = held.first() else { continue };
        let of = |live: bool| -> BTreeSet<usize> {
            held.iter().filter(|held| (held.state == ShardState::Live) == live).map(|held| held.index).collect()
        };
        let mine = |set: BTreeSet<usize>| BTreeMap::from_iter((!set.is_empty()).then_some((view.me, set)));
        let complete = held.iter().any(|held| held.complete);
        let (live, trash) = (mine(of(true)), mine(of(false)));
        let (evicted, homes) = (BTreeMap::new(), BTreeSet::new());
        holdings.insert(*stripe, Holdings { scheme: first.scheme, complete, live, trash, evicted, homes });
    }
    let ids: Vec<StripeId> = holdings.keys().copied().collect();
    if ids.is_empty() {
        return (holdings, answered);
    }
    let mut answers = ask_each(core, view, view.others_up(), &ids);
    while let Some((node, answer)) = answers.next().await {
        let Some(answer) = answer else { continue };
        answered.insert(node);
        for (stripe, holding) in ids.iter().zip(answer) {
            let Some(entry) = holdings.get_mut(stripe) else { continue };
            let (live, trash) = (entry.indices(&holding.live), entry.indices(&holding.trash));
            if !live.is_empty() {
                entry.live.insert(node, live);
            }
            if !trash.is_empty() {
                entry.trash.insert(node, trash);
            }
            if holding.home {
                entry.homes.insert(node);
            }
            entry.complete |= holding.complete;
        }
    }
    (holdings, answered)
}

/// Asks evicted nodes about stripes of which the others hold too little to rebuild anything. Nobody has to answer: an evicted
/// node may be off for good, and what it gives proves itself by its hash.
async fn ask_evicted(core: &Arc<Core>, view: &View, holdings: &mut BTreeMap<StripeId, Holdings>) {
    let short: Vec<StripeId> =
        holdings.iter().filter(|(_, holding)| !holding.is_readable()).map(|(stripe, _)| *stripe).collect();
    if short.is_empty() {
        return;
    }
    let mut answers = ask_each(core, view, view.evicted(), &short);
    while let Some((node, answer)) = answers.next().await {
        for (stripe, holding) in short.iter().zip(answer.into_iter().flatten()) {
            let Some(entry) = holdings.get_mut(stripe) else { continue };
            // Reading what lies in its trash revives it.
            let indices = &entry.indices(&holding.live) | &entry.indices(&holding.trash);
            if !indices.is_empty() {
                entry.evicted.insert(node, indices);
            }
        }
    }
}

/// Asks each of these nodes, a few at a time, what it holds of each of these stripes; `None` where no answer came.
fn ask_each<'a>(
    core: &'a Core,
    view: &'a View,
    nodes: impl Iterator<Item = NodeId> + 'a,
    stripes: &'a [StripeId],
) -> impl Stream<Item = (NodeId, Option<Vec<wire::Holding>>)> + Unpin + 'a {
    let asked = nodes.filter_map(|node| Some((node, view.peer(&node)?)));
    let answers = asked.map(move |(node, peer)| async move { (node, ask_one(&core.endpoint, &peer, stripes).await) });
    Box::pin(stream::iter(answers).buffer_unordered(ASKED_AT_ONCE))
}

async fn ask_one(
    endpoint: &Endpoint,
    peer: &potluck_proto::transport::Peer,
    stripes: &[StripeId],
) -> Option<Vec<wire::Holding>> {
    let call = request::Kind::HaveShards(wire::HaveShards {
        stripes: stripes.iter().map(|stripe| Bytes::copy_from_slice(stripe.as_bytes())).collect(),
    });
    match endpoint.call(peer, call, Vec::new(), ASK_DEADLINE).await {
        Ok((reply::Kind::HaveShards(reply), _)) if reply.holdings.len() == stripes.len() => Some(reply.holdings),
        Ok(_) => None,
        Err(error) => {
            tracing::debug!(%error, "a node did not say what it holds");
            None
        }
    }
}

/// A leaving node that holds nothing any more has left.
async fn finish_leaving(core: &Arc<Core>) {
    if !core.leaving() || core.store.usage().shards > 0 {
        return;
    }
    let view = core.membership.view();
    if view.table.record(&view.me).is_some_and(|record| record.left) {
        return;
    }
    let shared = core.clone();
    match core.executor.run(move || shared.renew_record(Renewal::Left)).await {
        Ok(Ok(())) => {
            tracing::info!("this node holds nothing any more and has left the cluster: it may be switched off")
        }
        Ok(Err(error)) => tracing::error!(%error, "leaving cannot be written to disk"),
        Err(error) => tracing::error!(%error, "leaving cannot be written to disk"),
    }
}
