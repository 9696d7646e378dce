//! Putting a stripe on the ring: each shard on a node of its own, on disk, before the put is acknowledged.
//!
//! Who gets which shard is decided in `placing`; this file carries the calls, each with a deadline that grows with the
//! shard, and starts a replacement for a home that is slow.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use potluck_proto::id::NodeId;
use potluck_proto::scheme::{self, TooSmall};
use potluck_proto::stripe::{Scheme, SignedHeader};
use potluck_proto::transport::CallError;
use potluck_proto::wire::{self, Code, reply, request};
use tokio::time::Instant;

use super::Cluster;
use super::members::View;
use super::placing::{Failure, Placing, Verdict};

/// After this time, and that of its bytes, a node that takes a shard is slow: another is asked beside it.
const HEDGE: Duration = Duration::from_secs(5);

/// How long a node may take for a shard, its bytes apart. Its disk may be waking up, and its queue be full.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long a put may take in all, its bytes apart.
const TOTAL: Duration = Duration::from_secs(120);

/// About how long a node that failed is left alone; grows with its tries.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// A node that takes its bytes more slowly than this is slow, if most others are not; in bytes per second.
const HEDGE_RATE: u64 = 1 << 20;

/// The slowest uplink that is reckoned with, in bytes per second.
const SLOW_RATE: u64 = 128 << 10;

/// Spare nodes beyond n that a put may turn to.
const SPARES: usize = 16;

/// A stripe is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Who has acknowledged which shard: as many different nodes as different indices.
    pub nodes: Vec<(usize, NodeId)>,
    /// How many of these nodes may be lost without losing the stripe, until repair has made it whole.
    pub losses_survived: usize,
    /// Fewer than n nodes were there to take shards.
    pub degraded: bool,
}

/// Why a stripe was not acknowledged. Some shards may be stored; the same stripe may be put again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PutError {
    /// The cluster has fewer nodes than the scheme has shards.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// Fewer nodes than even a degraded put needs took a shard.
    #[error("{}", too_few(*needed, *reachable, *scheme, refusal.as_ref()))]
    TooFew {
        /// Nodes that must have a shard on disk.
        needed: usize,
        /// Nodes that have one.
        reachable: usize,
        /// How the stripe is coded.
        scheme: Scheme,
        /// What the nodes that refused said most.
        refusal: Option<wire::Error>,
    },
    /// Not n shards of the header's length. Nothing was sent.
    #[error("the shards are not those of the header: {0}")]
    Malformed(String),
}

fn too_few(needed: usize, reachable: usize, scheme: Scheme, refusal: Option<&wire::Error>) -> String {
    let why = refusal.map_or_else(String::new, |error| format!("; others refuse: {}", error.message));
    format!("only {reachable} nodes took a shard, {scheme} needs at least {needed}{why}")
}

/// What happened during a put.
enum Event {
    Answer(NodeId, Result<(), CallError>),
    Slow(NodeId),
    Wake,
    Over,
}

impl Cluster {
    /// Puts a stripe's n shards on n different nodes. `sweep` is the newest sweep that the writer knows.
    pub async fn put_stripe(&self, header: &SignedHeader, shards: Vec<Bytes>, sweep: u64) -> Result<Placed, PutError> {
        let scheme = header.scheme;
        check(header, &shards)?;
        let bytes: usize = shards.iter().map(Bytes::len).sum();
        let _share = self.calls.puts.take(bytes).await;
        let mut view = self.members().view();
        if ready(&view).count() < scheme.n() {
            // It may have grown, or nodes may have come back, since members were last heard of.
            view = self.refresh().await.unwrap_or(view);
        }
        scheme::fits(scheme, view.ring.len())?;

        let mut placing = Placing::new(scheme, candidates(&view, header));
        let mut refusals = Refusals::default();
        let (mut sends, mut hedges) = (FuturesUnordered::new(), FuturesUnordered::new());
        let over = Instant::now() + TOTAL + transfer(bytes);
        let verdict = loop {
            while let Some((index, node)) = placing.next(Instant::now()) {
                let slow = Instant::now() + HEDGE + Duration::from_secs(shards[index].len() as u64 / HEDGE_RATE);
                sends.push(self.put_shard(node, header, index, &shards[index], sweep));
                hedges.push(async move {
                    tokio::time::sleep_until(slow).await;
                    node
                });
            }
            if let Some(verdict) = placing.verdict() {
                break verdict;
            }
            let wake = placing.wake().unwrap_or(over).min(over);
            let event = tokio::select! {
                Some((node, answer)) = sends.next() => Event::Answer(node, answer),
                Some(node) = hedges.next() => Event::Slow(node),
                () = tokio::time::sleep_until(wake) => if wake == over { Event::Over } else { Event::Wake },
            };
            match event {
                Event::Answer(node, Ok(())) => placing.took(node),
                Event::Answer(node, Err(error)) => {
                    tracing::debug!(stripe = %header.id().short(), node = %node.short(), %error, "a shard was not taken");
                    let pause = self.calls.jitter(RETRY_PAUSE * placing.tries(node).max(1));
                    placing.failed(node, failure_of(&error), Instant::now() + pause);
                    refusals.count(error);
                }
                Event::Slow(node) => placing.slow(node),
                Event::Wake => {}
                Event::Over => break placing.final_verdict(),
            }
        };
        let nodes = placing.taken();
        self.cache.note(&header.id(), |known| {
            known.header = Some(header.clone());
            for (index, node) in &nodes {
                known.holders.entry(*index).or_default().insert(*node);
            }
        });
        match verdict {
            Verdict::Whole | Verdict::Degraded => {
                let losses_survived = nodes.len() - scheme.k();
                Ok(Placed { nodes, losses_survived, degraded: verdict == Verdict::Degraded })
            }
            Verdict::TooFew => Err(PutError::TooFew {
                needed: scheme.degraded_minimum(),
                reachable: nodes.len(),
                scheme,
                refusal: refusals.most(),
            }),
        }
    }

    async fn put_shard(
        &self,
        node: NodeId,
        header: &SignedHeader,
        index: usize,
        shard: &Bytes,
        sweep: u64,
    ) -> (NodeId, Result<(), CallError>) {
        let call = wire::PutShard { header: header.bytes().clone(), index: index as u32, sweep };
        let deadline = DEADLINE + transfer(shard.len());
        let answer = self.calls.call(node, request::Kind::PutShard(call), shard.clone(), deadline).await;
        let answer = match answer {
            Ok((reply::Kind::PutShard(_), _)) => Ok(()),
            Ok(_) => Err(CallError::BadReply("not an answer to a put".into())),
            Err(error) => Err(error),
        };
        (node, answer)
    }
}

fn check(header: &SignedHeader, shards: &[Bytes]) -> Result<(), PutError> {
    if shards.len() != header.scheme.n() {
        return Err(PutError::Malformed(format!("{} shards for scheme {}", shards.len(), header.scheme)));
    }
    match shards.iter().find(|shard| shard.len() != header.shard_len as usize) {
        Some(shard) => Err(PutError::Malformed(format!("{} bytes instead of {}", shard.len(), header.shard_len))),
        None => Ok(()),
    }
}

/// Nodes of the ring that are up and take shards.
fn ready(view: &View) -> impl Iterator<Item = &NodeId> {
    view.ring.nodes().iter().filter(|node| is_ready(view, node))
}

fn is_ready(view: &View, node: &NodeId) -> bool {
    view.up.contains(node) && view.takes_shards(node)
}

/// The nodes that a put may use, in walk order: as many as are ever needed, not the whole of a large ring.
fn candidates(view: &View, header: &SignedHeader) -> Vec<(NodeId, bool)> {
    let n = header.scheme.n();
    let walk = view.ring.walk_stripe(&header.id(), header.scheme);
    let mut found = Vec::new();
    let mut spare = 0;
    for (position, node) in walk.iter().enumerate() {
        let ready = is_ready(view, &node);
        found.push((node, ready));
        spare += usize::from(ready && position >= n);
        if spare >= n + SPARES {
            break;
        }
    }
    found
}

fn failure_of(error: &CallError) -> Failure {
    match error {
        CallError::Refused(refusal) => match refusal.code() {
            Code::Overloaded => Failure::Busy,
            Code::Stopping => Failure::Away,
            _ => Failure::Refused,
        },
        CallError::Unreachable { .. } | CallError::Deadline | CallError::WrongPeer { .. } | CallError::Closed(_) => {
            Failure::Away
        }
        CallError::Unaccepted(_) | CallError::BadReply(_) | CallError::BadRequest(_) | CallError::Stopped(_) => {
            Failure::Refused
        }
    }
}

/// What so many bytes may take by themselves.
fn transfer(bytes: usize) -> Duration {
    Duration::from_secs(bytes as u64 / SLOW_RATE)
}

/// What nodes said, by code.
#[derive(Default)]
struct Refusals(BTreeMap<i32, (usize, wire::Error)>);

impl Refusals {
    fn count(&mut self, error: CallError) {
        if let CallError::Refused(refusal) = error {
            self.0.entry(refusal.code).or_insert_with(|| (0, refusal)).0 += 1;
        }
    }

    /// What most said.
    fn most(self) -> Option<wire::Error> {
        self.0.into_values().max_by_key(|(count, _)| *count).map(|(_, error)| error)
    }
}
