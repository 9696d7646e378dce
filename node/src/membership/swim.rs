//! Failure detection: the SWIM protocol by foca, in QUIC datagrams.
//!
//! SWIM says who seems to have gone; this node says so only after a probe of its own has failed too. foca is not made for
//! liars, so a datagram counts only if its sender is the one that TLS proved.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use foca::{Codec, Foca, Identity, Member, NoCustomBroadcast, Notification, PostcardCodec, Runtime, State, Timer};
use potluck_proto::id::NodeId;
use potluck_proto::transport::{Endpoint, Peer};
use potluck_proto::wire;
use prometheus::IntCounter;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::Membership;
use super::pace::Pace;

/// Datagrams and exchanges waiting for the protocol; more are dropped, as datagrams may be.
const QUEUE: usize = 1024;

/// Largest datagram: what fits into a QUIC datagram at the smallest MTU.
const PACKET_LIMIT: usize = 1162;

/// How long a probe of a node that SWIM gave up may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);

/// Time between two probes of a node that SWIM gave up and that still answers.
const DOUBT_INTERVAL: Duration = Duration::from_secs(5);

/// Most nodes that are spoken to directly when others say that they are up: their answers tell of all others.
const ANNOUNCES: usize = 8;

/// Most nodes that are told directly when this one stops, those first to which there is a connection; they tell the others.
const GOODBYES: usize = 256;

/// How long goodbyes may take to those to whom a connection must be made first: one packet of the handshake may be lost.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(2);

/// How often each is told: two of a hundred datagrams are lost on a bad way.
const GOODBYE_ROUNDS: usize = 3;

/// Time between two goodbyes, and from the last one to the end: one that was not yet sent is lost with its connection.
const GOODBYE_PAUSE: Duration = Duration::from_millis(200);

/// A node that is taken for down this long after it said that it is up is taken for down anew, for another reason.
const TOLD_AGAIN: Duration = Duration::from_secs(10);

/// So often in a row a node says that it is up, before it takes a new life that is written down.
const FUTILE: u32 = 3;

/// Most confirming probes at once.
const PROBES: usize = 16;

/// A node in one of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Life {
    node: [u8; 32],
    incarnation: u64,
}

impl Life {
    /// A life as a node's record counts it; renewals within it count up from there.
    fn new(node: NodeId, life: u64) -> Self {
        Self { node: node.0, incarnation: life << 20 }
    }
}

impl Identity for Life {
    type Addr = [u8; 32];

    /// Never by itself: foca would answer each message that has this node for down with several that bring more of them.
    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> [u8; 32] {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.incarnation > adversary.incarnation
    }
}

enum Input {
    Datagram(NodeId, Bytes),
    Up(Vec<NodeId>),
}

/// Where datagrams and news for the protocol are handed in.
#[derive(Clone)]
pub struct SwimHandle(mpsc::Sender<Input>);

impl SwimHandle {
    /// A datagram from a node, as TLS proved it.
    pub fn datagram(&self, from: NodeId, data: Bytes) {
        let _ = self.0.try_send(Input::Datagram(from, data));
    }

    /// Another member says that it reaches these nodes.
    pub fn hear_up(&self, nodes: Vec<NodeId>) {
        let _ = self.0.try_send(Input::Up(nodes));
    }

    /// Whether the protocol has ended: this node has said goodbye, or is about to.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0.is_closed()
    }
}

/// What was handed in and waits for the protocol.
pub struct SwimQueue(mpsc::Receiver<Input>, SwimHandle);

/// Makes the queue between those who hear others and the protocol.
#[must_use]
pub fn queue() -> (SwimHandle, SwimQueue) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let handle = SwimHandle(sender);
    (handle.clone(), SwimQueue(receiver, handle))
}

/// The protocol's state.
pub struct Swim {
    foca: Foca<Life, PostcardCodec, StdRng, NoCustomBroadcast>,
    input: mpsc::Receiver<Input>,
    handle: SwimHandle,
    membership: Arc<Membership>,
    endpoint: Endpoint,
    probes: Arc<Semaphore>,
    /// Nodes that SWIM has given up and that still answered.
    doubted: Arc<Mutex<BTreeSet<NodeId>>>,
    effects: Effects,
    size: u32,
    /// When this node says that it is up, whatever others say; none: they know.
    refute_at: Option<Instant>,
    pace: Pace,
    refutations: IntCounter,
    rng: StdRng,
}

/// What foca asks for while it handles one input.
#[derive(Default)]
struct Effects {
    send: Vec<(Life, Bytes)>,
    timers: BinaryHeap<Reverse<Pending>>,
    sequence: u64,
    up: Vec<NodeId>,
    down: Vec<NodeId>,
    /// Others have this node for down.
    defunct: bool,
}

struct Pending {
    due: Instant,
    sequence: u64,
    timer: Timer<Life>,
}

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.sequence) == (other.due, other.sequence)
    }
}

impl Eq for Pending {}

impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, &self.timer, self.sequence).cmp(&(other.due, &other.timer, other.sequence))
    }
}

impl Runtime<Life> for &mut Effects {
    fn notify(&mut self, notification: Notification<'_, Life>) {
        match notification {
            Notification::MemberUp(life) => self.up.push(NodeId(life.node)),
            Notification::MemberDown(life) => self.down.push(NodeId(life.node)),
            Notification::Rename(..) | Notification::Active | Notification::Idle | Notification::Rejoin(_) => {}
            Notification::Defunct => self.defunct = true,
        }
    }

    fn send_to(&mut self, to: Life, data: &[u8]) {
        self.send.push((to, Bytes::copy_from_slice(data)));
    }

    fn submit_after(&mut self, timer: Timer<Life>, after: Duration) {
        self.sequence += 1;
        self.timers.push(Reverse(Pending { due: Instant::now() + after, sequence: self.sequence, timer }));
    }
}

fn config(size: u32) -> foca::Config {
    let size = NonZeroU32::new(size).unwrap_or(NonZeroU32::MIN);
    foca::Config {
        max_packet_size: std::num::NonZeroUsize::new(PACKET_LIMIT).unwrap_or(std::num::NonZeroUsize::MIN),
        ..foca::Config::new_lan(size)
    }
}

impl Swim {
    /// The protocol for this node in the life that its record names now, fed by `queue`.
    #[must_use]
    pub fn new(
        queue: SwimQueue,
        membership: Arc<Membership>,
        endpoint: Endpoint,
        refutations: IntCounter,
        seed: u64,
    ) -> Self {
        let view = membership.view();
        let life = view.table.record(&view.me).map_or(0, |record| record.life);
        let mut rng = StdRng::seed_from_u64(seed);
        let foca = Foca::new(Life::new(view.me, life), config(1), StdRng::from_rng(&mut rng), PostcardCodec);
        let probes = Arc::new(Semaphore::new(PROBES));
        let (doubted, effects) = (Arc::default(), Effects::default());
        let SwimQueue(input, handle) = queue;
        let (size, refute_at, pace) = (1, None, Pace::new(TOLD_AGAIN));
        Self {
            foca,
            input,
            handle,
            membership,
            endpoint,
            probes,
            doubted,
            effects,
            size,
            refute_at,
            pace,
            refutations,
            rng,
        }
    }

    /// Runs until `stop` is set, then says goodbye.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut changes = self.membership.watch();
        loop {
            let due = self.effects.timers.peek().map(|Reverse(pending)| pending.due);
            let due = due.into_iter().chain(self.refute_at).min();
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                input = self.input.recv() => match input {
                    Some(input) => self.take(input),
                    None => break,
                },
                () = timer => self.expire(),
                _ = changes.changed() => self.follow_life(),
            }
            self.refute();
            self.carry_out();
        }
        self.say_goodbye().await;
    }

    /// Tells the others that this node is going. From now on it also refuses their probes: see [`SwimHandle::has_ended`].
    async fn say_goodbye(&mut self) {
        self.input.close();
        let view = self.membership.view();
        let mut told: Vec<Peer> = view.others_up().filter_map(|node| view.peer(&node)).collect();
        told.sort_by_key(|peer| self.endpoint.mtu(peer.key).is_none());
        told.truncate(GOODBYES);
        let Some(goodbye) = write_goodbye(*self.foca.identity()) else { return };
        let end = Instant::now() + GOODBYE_DEADLINE;
        for _ in 0..GOODBYE_ROUNDS {
            let sent = told.iter().map(|peer| self.endpoint.send_last_datagram(peer, goodbye.clone()));
            // Who cannot be reached in this time hears of it from others. Where there is a connection it goes at once.
            let _ = tokio::time::timeout_at(end, futures_util::future::join_all(sent)).await;
            tokio::time::sleep(GOODBYE_PAUSE).await;
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Datagram(from, data) => {
                let sender = PostcardCodec.decode_header(&data[..]).map(|header: foca::Header<Life>| header.src.node);
                match sender {
                    Ok(sender) if sender == from.0 => {
                        if let Err(error) = self.foca.handle_data(&data, &mut self.effects) {
                            tracing::debug!(%error, from = %from.short(), "a gossip datagram was refused");
                        }
                        if let Some(life) = read_goodbye(&data) {
                            self.take_goodbye(life);
                        }
                    }
                    _ => tracing::debug!(from = %from.short(), "a gossip datagram in another's name, or damaged"),
                }
            }
            Input::Up(nodes) => {
                let view = self.membership.view();
                let lives: Vec<Life> = {
                    let doubted = self.doubted();
                    let is_news = |node: &NodeId| *node != view.me && (!view.is_up(node) || doubted.contains(node));
                    let life = |node| view.table.record(&node).map(|record| Life::new(node, record.life));
                    nodes.into_iter().filter(is_news).filter_map(life).collect()
                };
                let members: Vec<_> = lives.iter().copied().map(Member::alive).collect();
                if let Err(error) = self.foca.apply_many(members.into_iter(), false, &mut self.effects) {
                    tracing::debug!(%error, "an exchange was refused");
                }
                // A record does not say how often a node has renewed itself since, and what is sent to a life that is
                // over is ignored; but for an announcement, which is answered in the present one.
                for life in lives.into_iter().take(ANNOUNCES) {
                    if let Err(error) = self.foca.announce(life, &mut self.effects) {
                        tracing::debug!(%error, "no announcement");
                    }
                }
            }
        }
    }

    /// A node that says itself that it is going is believed without a probe, also where foca does not listen, since the
    /// other knew this node by a life that is over.
    fn take_goodbye(&mut self, life: Life) {
        let from = NodeId(life.node);
        if let Err(error) = self.foca.apply_many(std::iter::once(Member::down(life)), true, &mut self.effects) {
            tracing::debug!(%error, from = %from.short(), "a goodbye was refused");
        }
        // Not so if it is of a life that is over. It may also be known already, from others, and a probe be under way.
        if !self.foca.iter_membership_state().any(|member| *member.id() == life && member.state() == State::Down) {
            return;
        }
        self.effects.down.retain(|node| *node != from);
        self.doubted().remove(&from);
        if self.membership.set_up(from, false) {
            tracing::info!(node = %from.short(), "down: it has said goodbye");
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        while let Some(Reverse(pending)) = self.effects.timers.peek() {
            if pending.due > now {
                break;
            }
            let Some(Reverse(pending)) = self.effects.timers.pop() else { break };
            if let Err(error) = self.foca.handle_timer(pending.timer, &mut self.effects) {
                tracing::debug!(%error, "a gossip timer failed");
            }
        }
    }

    /// The life that this node's record names has changed: it was no longer the newest that others know.
    fn follow_life(&mut self) {
        let Some(made) = self.membership.made() else { return };
        let life = Life::new(made.node(), made.life);
        if life.win_addr_conflict(self.foca.identity()) {
            self.live(life);
        }
    }

    /// Answers others who have this node for down: with a new life, not too often, since they may have it from another
    /// process with the same key, which answers too.
    fn refute(&mut self) {
        let now = Instant::now();
        if std::mem::take(&mut self.effects.defunct) && self.refute_at.is_none() {
            self.refute_at = Some(now + self.pace.wait(now, self.rng.random()));
        }
        if self.refute_at.is_none_or(|at| at > now) {
            return;
        }
        let me = *self.foca.identity();
        // foca keeps what it hears of other lives of this node as if it were of others.
        let lives = self.foca.iter_membership_state().map(|member| *member.id()).filter(|life| life.node == me.node);
        let newest = lives.map(|life| life.incarnation).fold(me.incarnation, u64::max);
        self.live(Life { incarnation: newest.saturating_add(1), ..me });
        self.refutations.inc();
        tracing::info!("others took this node for down; it said that it is up");
        // It was of no use: they know a life far newer than was heard of here.
        if self.pace.row() > FUTILE {
            self.membership.set_outlived();
        }
    }

    /// Goes on in another life, and tells others.
    fn live(&mut self, life: Life) {
        self.refute_at = None;
        let changed = self.foca.change_identity(life, &mut self.effects);
        // foca begins to probe again once it is given anything.
        let woken = changed.and_then(|()| self.foca.apply_many(std::iter::empty(), false, &mut self.effects));
        if let Err(error) = woken {
            tracing::debug!(%error, "no new life");
        }
    }

    fn carry_out(&mut self) {
        let view = self.membership.view();
        for (to, data) in std::mem::take(&mut self.effects.send) {
            if to.node == view.me.0 {
                continue;
            }
            if let Some(peer) = view.peer(&NodeId(to.node)) {
                self.endpoint.send_datagram(&peer, data);
            }
        }
        for node in std::mem::take(&mut self.effects.up) {
            self.doubted().remove(&node);
            if self.membership.set_up(node, true) {
                tracing::info!(node = %node.short(), "up");
            }
        }
        for node in std::mem::take(&mut self.effects.down) {
            self.confirm(node);
        }
        let size = view.up.len() as u32;
        // The number of transmissions depends on the size; small changes do not matter.
        if size > self.size + self.size / 4 || size < self.size - self.size / 4 {
            self.size = size;
            if let Err(error) = self.foca.set_config(config(size)) {
                tracing::debug!(%error, "gossip keeps its settings");
            }
        }
    }

    /// SWIM gave a node up: it is down when a probe fails too. One that still answers stays in doubt, and is probed until
    /// it fails or SWIM has it back.
    fn confirm(&self, node: NodeId) {
        if !self.doubted().insert(node) {
            return;
        }
        let (membership, endpoint, probes) = (self.membership.clone(), self.endpoint.clone(), self.probes.clone());
        let (doubted, handle) = (self.doubted.clone(), self.handle.clone());
        tokio::spawn(async move {
            loop {
                let Ok(permit) = probes.acquire().await else { return };
                let answers = match membership.view().peer(&node) {
                    Some(peer) => reaches(&endpoint, &peer).await,
                    None => false,
                };
                drop(permit);
                if !in_doubt(&doubted, node, answers) {
                    return;
                }
                if !answers {
                    if membership.set_up(node, false) {
                        tracing::info!(node = %node.short(), "down");
                    }
                    return;
                }
                handle.hear_up(vec![node]);
                tokio::time::sleep(DOUBT_INTERVAL).await;
            }
        });
    }

    fn doubted(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The datagram by which a node says that its life is over. It is the same for all: foca's own goodbye speaks to the lives
/// that others are known by, which may be over, and says what it has to say only so many times.
fn write_goodbye(life: Life) -> Option<Bytes> {
    let header = foca::Header { src: life, src_incarnation: 0, dst: life, message: foca::Message::Gossip };
    let mut data = Vec::new();
    PostcardCodec.encode_header(&header, &mut data).ok()?;
    data.put_u16(1);
    PostcardCodec.encode_member(&Member::down(life), &mut data).ok()?;
    Some(data.into())
}

/// The life that the sender of a gossip datagram says is over, if that is its own.
fn read_goodbye(mut data: &[u8]) -> Option<Life> {
    let header: foca::Header<Life> = PostcardCodec.decode_header(&mut data).ok()?;
    let count = data.try_get_u16().ok()?;
    let mut members = (0..count).map_while(|_| -> Option<Member<Life>> { PostcardCodec.decode_member(&mut data).ok() });
    let own = |member: &Member<Life>| member.id().node == header.src.node && member.state() == State::Down;
    members.find(own).map(|member| *member.id())
}

/// Whether SWIM still has a probed node for gone; one that does not answer is no longer in doubt but down.
fn in_doubt(doubted: &Mutex<BTreeSet<NodeId>>, node: NodeId, answers: bool) -> bool {
    let mut doubted = doubted.lock().unwrap_or_else(PoisonError::into_inner);
    if answers { doubted.contains(&node) } else { doubted.remove(&node) }
}

/// Whether a node answers a small call.
pub(crate) async fn reaches(endpoint: &Endpoint, peer: &Peer) -> bool {
    let probe = wire::request::Kind::Members(wire::Members { digest: Bytes::new(), table: None });
    endpoint.call(peer, probe, Vec::new(), PROBE_DEADLINE).await.is_ok()
}
