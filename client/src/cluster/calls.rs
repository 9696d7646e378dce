//! One call to one node: in its turn, within its deadline, and remembered as luck or failure.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use potluck_proto::id::NodeId;
use potluck_proto::transport::{CallError, Endpoint};
use potluck_proto::wire::{reply, request};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::latency::Latency;
use super::{Limits, Members};

/// Most calls to one node at once; a node serves 128 of one connection.
const CALLS_PER_NODE: usize = 32;

/// Most reports of bad shards under way at once; a report more is not made.
const REPORTS: usize = 8;

/// How long a node that is known to be down may take for a small answer: should it be back, it will do in that time.
pub(super) const DOWN_WAIT: Duration = Duration::from_millis(1500);

/// Budgets are counted in units of this many bytes.
const UNIT: usize = 1 << 10;

/// One node's turn and record.
struct Lane {
    turn: Semaphore,
    latency: Mutex<Latency>,
}

/// A share of a budget of bytes, given back when it is dropped.
pub(super) struct Share(#[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

/// Bytes that may be in memory at once.
pub(super) struct Budget {
    units: usize,
    left: Arc<Semaphore>,
}

impl Budget {
    fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT).clamp(1, u32::MAX as usize);
        Self { units, left: Arc::new(Semaphore::new(units)) }
    }

    /// Waits for `bytes`; more than there are in all means all of them.
    pub(super) async fn take(&self, bytes: usize) -> Share {
        let units = bytes.div_ceil(UNIT).min(self.units) as u32;
        Share(self.left.clone().acquire_many_owned(units).await.ok())
    }
}

/// Makes calls to nodes.
pub(super) struct Calls {
    endpoint: Endpoint,
    members: Members,
    rng: Mutex<StdRng>,
    lanes: Mutex<BTreeMap<NodeId, Arc<Lane>>>,
    /// Bytes of puts under way.
    pub(super) puts: Budget,
    /// Bytes of reads under way.
    pub(super) reads: Budget,
    reports: Arc<Semaphore>,
}

impl Calls {
    pub(super) fn new(endpoint: Endpoint, members: Members, rng: StdRng, limits: Limits) -> Self {
        Self {
            endpoint,
            members,
            rng: Mutex::new(rng),
            lanes: Mutex::default(),
            puts: Budget::new(limits.put_bytes),
            reads: Budget::new(limits.read_bytes),
            reports: Arc::new(Semaphore::new(REPORTS)),
        }
    }

    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    pub(super) fn with_rng<T>(&self, work: impl FnOnce(&mut StdRng) -> T) -> T {
        work(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A duration between half of `about` and one and a half of it.
    pub(super) fn jitter(&self, about: Duration) -> Duration {
        about.mul_f64(self.with_rng(|rng| rng.random_range(0.5..1.5)))
    }

    /// Lanes are made for known nodes only, so there are no more than members ever known.
    fn lane(&self, node: NodeId) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = || Arc::new(Lane { turn: Semaphore::new(CALLS_PER_NODE), latency: Mutex::default() });
        lanes.entry(node).or_insert_with(lane).clone()
    }

    /// After what time another node is worth asking as well, if this one is to send `bytes` bytes.
    pub(super) fn hedge_after(&self, node: NodeId, bytes: usize) -> Duration {
        self.lane(node).latency.lock().unwrap_or_else(PoisonError::into_inner).hedge_after(bytes)
    }

    /// A deadline for a small answer: a node that is known to be down gets no more than [`DOWN_WAIT`].
    pub(super) fn patience(&self, node: &NodeId, deadline: Duration) -> Duration {
        if self.members.is_down(node) { deadline.min(DOWN_WAIT) } else { deadline }
    }

    /// Calls a node; waiting for its turn counts.
    pub(super) async fn call(
        &self,
        node: NodeId,
        request: request::Kind,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<(reply::Kind, Bytes), CallError> {
        let Some(peer) = self.members.peer(&node) else {
            return Err(CallError::Unreachable { peer: node.into(), reason: "its address is not known".into() });
        };
        let lane = self.lane(node);
        let until = Instant::now() + deadline;
        let Ok(Ok(_turn)) = tokio::time::timeout_at(until, lane.turn.acquire()).await else {
            return Err(CallError::Deadline);
        };
        let begun = Instant::now();
        let payload = if payload.is_empty() { Vec::new() } else { vec![payload] };
        let answer = self.endpoint.call(&peer, request, payload, until - begun).await;
        match &answer {
            Ok((_, bytes)) => {
                let mut latency = lane.latency.lock().unwrap_or_else(PoisonError::into_inner);
                latency.count(begun.elapsed(), bytes.len());
                self.members.answered(node);
            }
            Err(CallError::Refused(_)) => self.members.answered(node),
            // This side's own trouble says nothing of the node.
            Err(CallError::Stopped(_) | CallError::BadRequest(_) | CallError::BadReply(_)) => {}
            Err(
                CallError::Unreachable { .. }
                | CallError::Deadline
                | CallError::Unaccepted(_)
                | CallError::WrongPeer { .. }
                | CallError::Closed(_),
            ) => self.members.failed(node),
        }
        answer
    }

    /// Tells a node something without waiting for its answer; nothing happens when too much is being told already.
    pub(super) fn report(self: &Arc<Self>, node: NodeId, request: request::Kind, deadline: Duration) {
        let Ok(turn) = self.reports.clone().try_acquire_owned() else { return };
        let calls = self.clone();
        tokio::spawn(async move {
            let _turn = turn;
            if let Err(error) = calls.call(node, request, Bytes::new(), deadline).await {
                tracing::debug!(node = %node.short(), %error, "a report was not heard");
            }
        });
    }
}
