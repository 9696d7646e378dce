//! Exchange of the full table: at the start, at once when something changes, at growing intervals after that, and every
//! minute with one member.
//!
//! Gossip spreads who is up; this spreads what is signed. Two nodes that exchange end with equal tables.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use potluck_proto::id::NodeId;
use potluck_proto::transport::{CallError, Endpoint};
use potluck_proto::wire::{self, Code, reply, request};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Membership;
use super::swim::SwimHandle;

/// Time between two exchanges with a random member.
const INTERVAL: Duration = Duration::from_secs(60);

/// Time between attempts while nobody is up: at the start, or cut off.
const LONELY_INTERVAL: Duration = Duration::from_secs(2);

/// Time to the next exchange after one that brought news, or the start; it doubles from one without to the next.
const NEWS_INTERVAL: Duration = Duration::from_secs(1);

/// How long changes are gathered before they are told.
const GATHER: Duration = Duration::from_millis(200);

/// How many members are told of a change at once; they tell others.
const FAN_OUT: usize = 3;

/// How many members are tried at once while nobody is up.
const LONELY_FAN_OUT: usize = 8;

/// How long one exchange may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Answers another node's call. A node that has said goodbye refuses it with STOPPING: whoever asks to learn whether it is
/// still there is told that it is not.
pub fn answer(
    membership: &Membership,
    swim: &SwimHandle,
    caller: Option<NodeId>,
    call: &wire::Members,
) -> Result<wire::MembersReply, wire::Error> {
    if swim.has_ended() {
        return Err(wire::Error::new(Code::Stopping, "this node is stopping"));
    }
    if let Some(table) = &call.table {
        membership.merge(table);
    }
    if let Some(caller) = caller {
        swim.hear_up(vec![caller]);
    }
    let view = membership.view();
    let digest = Bytes::copy_from_slice(view.digest.as_bytes());
    Ok(wire::MembersReply {
        table: (call.digest != digest).then(|| view.table.to_wire()),
        digest,
        up: view.up.keys().map(|node| Bytes::copy_from_slice(node.as_bytes())).collect(),
    })
}

/// Makes this node's table and another's equal, and hears whom the other reaches.
pub async fn with(
    membership: &Membership,
    swim: &SwimHandle,
    endpoint: &Endpoint,
    node: NodeId,
) -> Result<(), CallError> {
    let Some(peer) = membership.view().peer(&node) else { return Ok(()) };
    let mut table = None;
    // Twice at most: the first answer brings the other's table, the second call takes ours.
    for _ in 0..2 {
        let digest = Bytes::copy_from_slice(membership.view().digest.as_bytes());
        let call = request::Kind::Members(wire::Members { digest, table: table.take() });
        let (answer, _) = endpoint.call(&peer, call, Vec::new(), DEADLINE).await?;
        let reply::Kind::Members(answer) = answer else {
            return Err(CallError::BadReply("not an answer to an exchange of members".into()));
        };
        if let Some(theirs) = &answer.table {
            let merged = membership.merge(theirs);
            if merged.refused > 0 {
                tracing::warn!(from = %node.short(), refused = merged.refused, "records that are not genuine");
            }
        }
        let mut up: Vec<NodeId> = answer.up.iter().filter_map(|id| NodeId::from_slice(id)).collect();
        up.push(node);
        swim.hear_up(up);
        let view = membership.view();
        if answer.digest == view.digest.as_bytes()[..] {
            return Ok(());
        }
        table = Some(view.table.to_wire());
    }
    Ok(())
}

/// Exchanges until `stop` is set.
pub async fn run(
    membership: Arc<Membership>,
    swim: SwimHandle,
    endpoint: Endpoint,
    mut rng: StdRng,
    mut stop: watch::Receiver<bool>,
) {
    let mut changes = membership.watch();
    let mut told = membership.view().digest;
    let mut next = Instant::now();
    let mut pauses = Pauses::new();
    loop {
        let view = membership.view();
        let changed = view.digest != told;
        let wake = if changed { Instant::now() + GATHER } else { next };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep_until(wake) => {}
            _ = changes.changed(), if !changed => continue,
        }
        let view = membership.view();
        let up: Vec<NodeId> = view.others_up().collect();
        let lonely = up.is_empty();
        let partners: Vec<NodeId> = if lonely {
            let known: Vec<NodeId> =
                view.table.members().map(|record| record.node()).filter(|node| *node != view.me).collect();
            known.sample(&mut rng, LONELY_FAN_OUT).copied().collect()
        } else {
            let count = if changed { FAN_OUT } else { 1 };
            up.sample(&mut rng, count).copied().collect()
        };
        told = view.digest;
        let exchanges = partners.into_iter().map(|node| {
            let (membership, swim, endpoint) = (&membership, &swim, &endpoint);
            async move {
                if let Err(error) = with(membership, swim, endpoint, node).await {
                    tracing::debug!(with = %node.short(), %error, "no exchange of members");
                }
            }
        });
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            _ = futures_util::future::join_all(exchanges) => {}
        }
        let news = changed || view.digest != membership.view().digest;
        if news && let Err(error) = membership.persist() {
            tracing::error!(%error, "the member table cannot be written to disk");
        }
        next = Instant::now() + pauses.after(news, lonely);
    }
}

/// The times between exchanges. What is told to a few at a time misses some: after news, and after the start, which is
/// news to all others, one asks around at growing intervals.
struct Pauses {
    next: Duration,
}

impl Pauses {
    fn new() -> Self {
        Self { next: NEWS_INTERVAL }
    }

    /// The time to the exchange after this one, which brought `news` or not; `lonely`: nobody was up to exchange with.
    fn after(&mut self, news: bool, lonely: bool) -> Duration {
        if news {
            self.next = NEWS_INTERVAL;
        }
        if lonely {
            return LONELY_INTERVAL;
        }
        let pause = self.next;
        self.next = (2 * pause).min(INTERVAL);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(pauses: &mut Pauses, count: usize) -> Vec<u64> {
        (0..count).map(|_| pauses.after(false, false).as_secs()).collect()
    }

    #[test]
    fn exchanges_come_at_growing_intervals_after_the_start_and_after_news() {
        let mut pauses = Pauses::new();
        assert_eq!(seconds(&mut pauses, 8), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses.after(true, false), NEWS_INTERVAL);
        assert_eq!(seconds(&mut pauses, 3), [2, 4, 8]);
        assert_eq!(pauses.after(true, false), NEWS_INTERVAL);
        assert_eq!(seconds(&mut pauses, 1), [2]);
    }

    #[test]
    fn who_is_alone_tries_often_and_asks_around_once_he_is_not() {
        let mut pauses = Pauses::new();
        for _ in 0..100 {
            assert_eq!(pauses.after(false, true), LONELY_INTERVAL);
        }
        assert_eq!(seconds(&mut pauses, 3), [1, 2, 4]);
        assert_eq!(pauses.after(true, true), LONELY_INTERVAL);
        assert_eq!(seconds(&mut pauses, 2), [1, 2]);
    }
}
