//! Who is in the cluster, and who is up: the signed table, what nodes say of each other, and this client's own luck.
//!
//! The table merges by its own rules, so nobody has to be believed. Who is up is hearsay: a node that fails this client is
//! away for some seconds, whatever others say of it, and one that answers is up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use potluck_proto::id::{ClusterId, Digest, NodeId, VaultId};
use potluck_proto::member::{MemberTable, Standing};
use potluck_proto::replica::ReplicaList;
use potluck_proto::ring::Ring;
use potluck_proto::transport::{CallError, Peer};
use potluck_proto::wire::{self, reply, request};
use prost::Message;
use rand::seq::SliceRandom;
use tokio::time::Instant;

use super::Cluster;

/// How long a node that failed is not asked when others will do.
const AWAY: Duration = Duration::from_secs(5);

/// How many nodes are asked for their members at the start.
const ASKED: usize = 3;

/// How many nodes are being asked at once while none has answered.
const AT_ONCE: usize = 64;

/// After this time without any answer as many again are asked as are being asked.
const HEDGE: Duration = Duration::from_millis(500);

/// After this time without any answer no further node is asked: those that are have their own time.
const TRYING: Duration = Duration::from_secs(4);

/// How long an exchange may take.
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(10);

/// Once one node has answered, how long others are waited for.
const OTHERS_WAIT: Duration = Duration::from_secs(1);

/// What was heard is not asked for again sooner than this.
const FRESH: Duration = Duration::from_secs(3);

/// No member could be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("none of {} can be reached: check the network (last: {last})", whom(*known, *tried))]
pub struct Disconnected {
    /// Nodes known.
    pub known: usize,
    /// Nodes tried.
    pub tried: usize,
    /// What became of the last one.
    pub last: String,
}

fn whom(known: usize, tried: usize) -> String {
    let all = format!("the cluster's {known} known nodes");
    if tried < known { format!("{tried} of {all}") } else { all }
}

/// What a client knows of its cluster at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// All signed records.
    pub table: Arc<MemberTable>,
    /// The table's digest.
    pub digest: Digest,
    /// The ring of the members.
    pub ring: Arc<Ring>,
    /// Members that some node, or this client, reaches; all of them while nobody was heard.
    pub up: BTreeSet<NodeId>,
}

impl View {
    /// Where a node is reached; `None` if it is not known.
    #[must_use]
    pub fn peer(&self, node: &NodeId) -> Option<Peer> {
        let record = self.table.record(node)?;
        Some(Peer { key: (*node).into(), addresses: record.addresses.clone() })
    }

    /// The nodes that replicate a vault's heads.
    #[must_use]
    pub fn head_list(&self, vault: &VaultId) -> ReplicaList {
        ReplicaList::new(self.ring.head_replicas(vault))
    }

    /// Whether a node may get new shards: a member that is neither full nor on its way out.
    #[must_use]
    pub fn takes_shards(&self, node: &NodeId) -> bool {
        self.table.standing(node) == Some(Standing::Member)
            && self.table.record(node).is_some_and(|record| !record.full && !record.leaving)
    }

    /// Nodes that may hold shards: members, also those on their way out.
    #[must_use]
    pub fn holders(&self) -> Vec<NodeId> {
        self.table.members().map(|record| record.node()).collect()
    }
}

#[derive(Debug)]
struct State {
    table: Arc<MemberTable>,
    digest: Digest,
    ring: Arc<Ring>,
    /// Who is up by what nodes said; empty while nobody was heard.
    said_up: BTreeSet<NodeId>,
    /// Until when a node that failed counts as away.
    away: BTreeMap<NodeId, Instant>,
    /// When members were last heard of.
    heard: Option<Instant>,
    /// When members were last asked for, nobody answered.
    alone: bool,
}

/// Keeps what is known of the members.
#[derive(Debug)]
pub struct Members {
    state: Mutex<State>,
}

impl Members {
    /// Takes in what is genuine of `table`.
    #[must_use]
    pub(super) fn new(cluster: ClusterId, table: &wire::Table) -> Self {
        let mut own = MemberTable::new(cluster);
        let merged = own.merge(table);
        if merged.refused > 0 {
            tracing::warn!(refused = merged.refused, "the known members have records that are not genuine");
        }
        Self {
            state: Mutex::new(State {
                digest: own.digest(),
                ring: Arc::new(own.ring()),
                table: Arc::new(own),
                said_up: BTreeSet::new(),
                away: BTreeMap::new(),
                heard: None,
                alone: false,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known now.
    #[must_use]
    pub fn view(&self) -> View {
        let now = Instant::now();
        let state = self.state();
        let up = state.table.members().map(|record| record.node()).filter(|node| state.up(node, now)).collect();
        View { table: state.table.clone(), digest: state.digest, ring: state.ring.clone(), up }
    }

    /// The ring of the members.
    #[must_use]
    pub fn ring(&self) -> Arc<Ring> {
        self.state().ring.clone()
    }

    /// Where a node is reached; `None` if it is not known.
    #[must_use]
    pub fn peer(&self, node: &NodeId) -> Option<Peer> {
        let state = self.state();
        let record = state.table.record(node)?;
        Some(Peer { key: (*node).into(), addresses: record.addresses.clone() })
    }

    /// Whether a node is up, as far as is known.
    #[must_use]
    pub fn is_up(&self, node: &NodeId) -> bool {
        self.state().up(node, Instant::now())
    }

    /// Whether a node is known to be down: no node that was asked reaches it, or none answers at all, and it has not
    /// answered this client since. One that merely failed this client is not.
    #[must_use]
    pub fn is_down(&self, node: &NodeId) -> bool {
        let state = self.state();
        state.alone || (!state.said_up.is_empty() && !state.said_up.contains(node))
    }

    /// The table as it is kept on disk: an encoded [`wire::Table`], for [`Members::decode_table`].
    #[must_use]
    pub fn table_bytes(&self) -> Vec<u8> {
        self.state().table.to_wire().encode_to_vec()
    }

    /// Reads what [`Members::table_bytes`] gave; `None` if the bytes are damaged. Its records are checked later.
    #[must_use]
    pub fn decode_table(bytes: &[u8]) -> Option<wire::Table> {
        wire::Table::decode(bytes).ok()
    }

    /// Takes in what is genuine of a table.
    pub fn merge(&self, table: &wire::Table) {
        let mut state = self.state();
        let mut own = (*state.table).clone();
        let merged = own.merge(table);
        if merged.refused > 0 {
            tracing::warn!(refused = merged.refused, "a node sent records that are not genuine");
        }
        if merged.news > 0 {
            state.digest = own.digest();
            state.ring = Arc::new(own.ring());
            state.table = Arc::new(own);
        }
    }

    /// Takes in whom a node says it reaches; with `anew`, what was said before is forgotten.
    fn hear(&self, up: &[Bytes], from: NodeId, anew: bool) {
        let mut state = self.state();
        if anew {
            state.said_up.clear();
        }
        let known: Vec<NodeId> =
            up.iter().filter_map(|id| NodeId::from_slice(id)).filter(|id| state.table.record(id).is_some()).collect();
        state.said_up.extend(known);
        state.said_up.insert(from);
        (state.heard, state.alone) = (Some(Instant::now()), false);
    }

    /// Notes that a node answered.
    pub(super) fn answered(&self, node: NodeId) {
        let mut state = self.state();
        state.away.remove(&node);
        state.alone = false;
        if !state.said_up.is_empty() && state.table.record(&node).is_some() {
            state.said_up.insert(node);
        }
    }

    /// Notes that a node could not be reached, or did not answer.
    pub(super) fn failed(&self, node: NodeId) {
        let mut state = self.state();
        if state.table.record(&node).is_some() {
            state.away.insert(node, Instant::now() + AWAY);
        }
    }

    /// Whether members were heard of moments ago.
    pub(super) fn fresh(&self) -> bool {
        self.state().heard.is_some_and(|heard| heard.elapsed() < FRESH)
    }
}

impl State {
    fn up(&self, node: &NodeId, now: Instant) -> bool {
        (self.said_up.is_empty() || self.said_up.contains(node))
            && self.away.get(node).is_none_or(|&until| until <= now)
    }
}

impl Cluster {
    /// Exchanges members with up to three nodes; the first time, and when what is known may be old.
    pub async fn connect(&self) -> Result<View, Disconnected> {
        let view = self.members().view();
        let mut nodes: Vec<NodeId> = view.table.members().map(|record| record.node()).collect();
        let known = nodes.len();
        self.calls.with_rng(|rng| nodes.shuffle(rng));
        // Those that seem up first, the others after them.
        nodes.sort_by_key(|node| !view.up.contains(node));
        let mut nodes = nodes.into_iter();
        let mut exchanges: FuturesUnordered<_> = nodes.by_ref().take(ASKED).map(|node| self.exchange(node)).collect();
        let (mut answers, mut last) = (Vec::new(), "no node is known".to_string());
        let mut tried = exchanges.len();
        let (mut patience, mut hedge) = (None, Instant::now() + HEDGE);
        let stop = Instant::now() + TRYING;
        loop {
            let until = patience.unwrap_or(hedge);
            let next = match tokio::time::timeout_at(until, exchanges.next()).await {
                Ok(next) => next,
                Err(_) if patience.is_some() => None,
                Err(_) => {
                    hedge = Instant::now() + HEDGE;
                    let room = AT_ONCE.saturating_sub(exchanges.len()).min(exchanges.len());
                    let more = if hedge < stop { room } else { 0 };
                    let before = exchanges.len();
                    exchanges.extend(nodes.by_ref().take(more).map(|node| self.exchange(node)));
                    tried += exchanges.len() - before;
                    continue;
                }
            };
            let before = exchanges.len();
            match next {
                None => break,
                Some(Ok(answer)) => {
                    answers.push(answer);
                    patience.get_or_insert_with(|| Instant::now() + OTHERS_WAIT);
                    if answers.len() >= ASKED {
                        break;
                    }
                }
                Some(Err(error)) => last = error.to_string(),
            }
            if answers.is_empty() && Instant::now() < stop {
                let room = AT_ONCE.saturating_sub(exchanges.len());
                exchanges.extend(nodes.by_ref().take(room).map(|node| self.exchange(node)));
            } else if !answers.is_empty() && answers.len() + exchanges.len() < ASKED {
                exchanges.extend(nodes.next().map(|node| self.exchange(node)));
            }
            tried += exchanges.len() - before;
        }
        if answers.is_empty() {
            self.members().state().alone = true;
            return Err(Disconnected { known, tried, last });
        }
        for (turn, (node, up)) in answers.iter().enumerate() {
            self.members().hear(up, *node, turn == 0);
        }
        Ok(self.members().view())
    }

    /// As [`Cluster::connect`], unless members were heard of moments ago.
    pub async fn refresh(&self) -> Result<View, Disconnected> {
        if self.members().fresh() { Ok(self.members().view()) } else { self.connect().await }
    }

    /// Makes this client's table and a node's equal, and hears whom the node reaches.
    pub(super) async fn exchange(&self, node: NodeId) -> Result<(NodeId, Vec<Bytes>), CallError> {
        let mut table = None;
        let mut up = Vec::new();
        // Twice at most: the first answer brings the node's table, the second call takes ours.
        for _ in 0..2 {
            let digest = Bytes::copy_from_slice(self.members().view().digest.as_bytes());
            let call = request::Kind::Members(wire::Members { digest, table: table.take() });
            let (reply, _) = self.calls.call(node, call, Bytes::new(), EXCHANGE_DEADLINE).await?;
            let reply::Kind::Members(reply) = reply else {
                return Err(CallError::BadReply("not an answer to an exchange of members".into()));
            };
            if let Some(theirs) = &reply.table {
                self.members().merge(theirs);
            }
            up = reply.up;
            let view = self.members().view();
            if reply.digest == view.digest.as_bytes()[..] {
                break;
            }
            table = Some(view.table.to_wire());
        }
        Ok((node, up))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_proto::cert::MemberCert;
    use potluck_proto::key::SecretKey;
    use potluck_proto::member::MemberRecord;

    fn members(count: u8) -> (Members, Vec<NodeId>) {
        let cluster = SecretKey::from_seed(&[1; 32]);
        let mut table = MemberTable::new(cluster.public().into());
        let mut nodes = Vec::new();
        for seed in 0..count {
            let key = SecretKey::from_seed(&[100 + seed; 32]);
            let cert = MemberCert::issue(&cluster, key.public().into(), "", 0, 0);
            nodes.push(cert.node());
            let record = MemberRecord {
                cert,
                generation: 1,
                life: 0,
                addresses: Vec::new(),
                capacity: 1 << 30,
                left: false,
                leaving: false,
                full: false,
                software: String::new(),
            };
            table.add_record(record.sign(&key));
        }
        (Members::new(cluster.public().into(), &table.to_wire()), nodes)
    }

    #[tokio::test]
    async fn hearsay_and_own_observations_make_who_is_up() {
        let (members, nodes) = members(3);
        let id = |node: NodeId| Bytes::copy_from_slice(node.as_bytes());
        assert_eq!(members.view().up.len(), 3, "nobody was heard: all may be up");
        members.hear(&[id(nodes[0]), id(NodeId([9; 32]))], nodes[1], true);
        assert_eq!(members.view().up, BTreeSet::from([nodes[0], nodes[1]]));
        members.failed(nodes[0]);
        assert!(!members.is_up(&nodes[0]));
        members.answered(nodes[2]);
        assert!(members.is_up(&nodes[2]));
        let later = Instant::now() + AWAY;
        assert!(members.state().up(&nodes[0], later), "said to be up, and the failure is long ago");
        assert!(nodes.iter().all(|node| !members.is_down(node)), "a failure alone is no word of others");
        members.hear(&[id(nodes[0])], nodes[1], true);
        assert!(members.is_down(&nodes[2]));
        members.answered(nodes[2]);
        assert!(!members.is_down(&nodes[2]));
    }

    #[tokio::test]
    async fn the_table_survives_the_disk_and_damage_is_noticed() {
        let (members, nodes) = members(2);
        let again = Members::new(
            members.view().table.cluster(),
            &Members::decode_table(&members.table_bytes()).unwrap_or_default(),
        );
        assert_eq!(again.view().digest, members.view().digest);
        assert_eq!(again.ring().len(), nodes.len());
        assert!(Members::decode_table(&[255, 255, 255]).is_none());
    }
}
