//! The network itself: who is there, what is under way, and what becomes of each packet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use potluck_proto::id::Digest;
use quinn::AsyncUdpSocket;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::socket::{SimRuntime, SimSocket};
use super::{NetConfig, PORT, seed_of};

/// Bytes that wait at a host to be read; more is dropped, as by a kernel.
const INBOX_LIMIT: usize = 4 << 20;

/// Bytes of IP's and UDP's headers on a packet.
const HEADERS: usize = 28;

/// How much later than due a late packet is, in latencies.
const LATE_BY: u32 = 4;

/// A simulated network. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Network {
    state: Arc<Mutex<State>>,
    /// Something was sent that is due before all else.
    sooner: Arc<Notify>,
}

/// What became of the packets so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetStats {
    /// Given to the network.
    pub sent: u64,
    /// Handed to a host.
    pub delivered: u64,
    /// Lost by lot.
    pub lost: u64,
    /// Lost at a partition.
    pub cut: u64,
    /// Sent to or by nobody (any more), or dropped by a full host.
    pub dropped: u64,
    /// Came twice.
    pub duplicated: u64,
}

/// A packet on its way or at its host.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) from: SocketAddr,
    pub(super) data: Bytes,
}

#[derive(Debug, Default)]
struct Host {
    /// Which socket of this address is the living one.
    generation: u64,
    alive: bool,
    inbox: VecDeque<Packet>,
    inbox_bytes: usize,
    reader: Option<Waker>,
}

/// A host's way into the network.
#[derive(Debug)]
struct Uplink {
    rate: u64,
    queue: u64,
    /// When all that waits is sent.
    free: Instant,
}

impl Uplink {
    /// The time until a packet has passed; `None` if the queue is full.
    fn take(&mut self, len: usize) -> Option<Duration> {
        let (now, wire) = (Instant::now(), (len + HEADERS) as f64 / self.rate as f64);
        let waits = self.free.saturating_duration_since(now);
        if waits.as_secs_f64() * self.rate as f64 > self.queue as f64 {
            return None;
        }
        self.free = now + waits + Duration::from_secs_f64(wire);
        Some(self.free - now)
    }
}

#[derive(Debug)]
struct State {
    begun: Instant,
    rng: StdRng,
    config: NetConfig,
    ways: BTreeMap<(IpAddr, IpAddr), NetConfig>,
    cut: BTreeSet<(IpAddr, IpAddr)>,
    hosts: BTreeMap<SocketAddr, Host>,
    uplinks: BTreeMap<IpAddr, Uplink>,
    /// Longest packet that passes, in bytes.
    mtu: usize,
    /// By the time they are due, then by the order in which they were sent.
    under_way: BTreeMap<(Instant, u64), (SocketAddr, Packet)>,
    number: u64,
    stats: NetStats,
    trace: blake3::Hasher,
}

/// What happened to a packet, as it goes into the trace.
#[derive(Clone, Copy)]
enum Fate {
    Sent,
    Lost,
    Cut,
    Dropped,
    Duplicated,
    Delivered,
}

impl Network {
    /// A network without hosts, in a runtime with paused time (see [`super::run`]).
    #[must_use]
    pub fn new(seed: u64, config: NetConfig) -> Self {
        let state = State {
            begun: Instant::now(),
            rng: StdRng::from_seed(seed_of(seed, u64::MAX)),
            config,
            ways: BTreeMap::new(),
            cut: BTreeSet::new(),
            hosts: BTreeMap::new(),
            uplinks: BTreeMap::new(),
            mtu: usize::MAX,
            under_way: BTreeMap::new(),
            number: 0,
            stats: NetStats::default(),
            trace: blake3::Hasher::new(),
        };
        let network = Self { state: Arc::new(Mutex::new(state)), sooner: Arc::default() };
        tokio::spawn(network.clone().deliver());
        network
    }

    /// The socket of the host `ip`, on [`PORT`]. Asked for again, the old socket is dead and this one is the host's: a
    /// process was restarted.
    #[must_use]
    pub fn host(&self, ip: IpAddr) -> (Arc<dyn AsyncUdpSocket>, Arc<dyn quinn::Runtime>) {
        self.host_at(SocketAddr::new(ip, PORT))
    }

    /// [`Network::host`] on any port: several processes on one machine.
    #[must_use]
    pub fn host_at(&self, address: SocketAddr) -> (Arc<dyn AsyncUdpSocket>, Arc<dyn quinn::Runtime>) {
        let mut state = self.state();
        let host = state.hosts.entry(address).or_default();
        *host = Host { generation: host.generation + 1, alive: true, ..Host::default() };
        let socket = SimSocket::new(self.clone(), address, host.generation);
        (Arc::new(socket), Arc::new(SimRuntime))
    }

    /// The process at `address` is gone, like a machine switched off: nothing comes from it or gets to it any more.
    pub fn kill(&self, address: SocketAddr) {
        if let Some(host) = self.state().hosts.get_mut(&address) {
            *host = Host { generation: host.generation, ..Host::default() };
        }
    }

    /// No packet passes between the two sides, in either direction. What is under way still arrives.
    pub fn partition(&self, one: &[IpAddr], other: &[IpAddr]) {
        self.partition_one_way(one, other);
        self.partition_one_way(other, one);
    }

    /// No packet passes from `from` to `to`; the other direction is as it was.
    pub fn partition_one_way(&self, from: &[IpAddr], to: &[IpAddr]) {
        self.state().cut.extend(from.iter().flat_map(|from| to.iter().map(|to| (*from, *to))));
    }

    /// All partitions end.
    pub fn heal(&self) {
        self.state().cut.clear();
    }

    /// The share of packets that get lost from now on, 0 to 1, on every way that has no configuration of its own.
    pub fn set_loss(&self, loss: f64) {
        self.state().config.loss = loss;
    }

    /// The ways between `one` and `other`, in both directions, get a configuration of their own.
    pub fn set_way(&self, one: IpAddr, other: IpAddr, config: NetConfig) {
        self.state().ways.extend([((one, other), config), ((other, one), config)]);
    }

    /// What `host` sends goes through a link of `rate` bytes per second, before which up to `queue` bytes wait; more is
    /// dropped.
    pub fn limit_uplink(&self, host: IpAddr, rate: u64, queue: u64) {
        self.state().uplinks.insert(host, Uplink { rate, queue, free: Instant::now() });
    }

    /// Longer packets (UDP's payload, in bytes) get lost from now on.
    pub fn limit_packets(&self, mtu: usize) {
        self.state().mtu = mtu;
    }

    /// What became of the packets so far.
    #[must_use]
    pub fn stats(&self) -> NetStats {
        self.state().stats
    }

    /// Puts something of the scenario's own into the trace.
    pub fn record(&self, what: &str) {
        let mut state = self.state();
        let now = state.since_begin();
        state.trace.update(&now.to_le_bytes()).update(what.as_bytes());
    }

    /// The hash of all that has happened: time, way, length and fate of each packet, and what was recorded. Not the
    /// packets' bytes: TLS draws its keys from the system.
    #[must_use]
    pub fn trace(&self) -> Digest {
        Digest(*self.state().trace.finalize().as_bytes())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a packet from a socket.
    pub(super) fn send(&self, from: SocketAddr, generation: u64, to: SocketAddr, data: &[u8]) {
        let mut state = self.state();
        let first = state.under_way.keys().next().copied();
        state.send(from, generation, to, data);
        if state.under_way.keys().next().copied() != first {
            self.sooner.notify_one();
        }
    }

    /// The next packet at a socket.
    pub(super) fn receive(&self, at: SocketAddr, generation: u64, context: &mut Context<'_>) -> Poll<Packet> {
        let mut state = self.state();
        let Some(host) = state.hosts.get_mut(&at).filter(|host| host.generation == generation) else {
            // Of a process that was restarted, nothing is ever heard again.
            return Poll::Pending;
        };
        match host.inbox.pop_front() {
            Some(packet) => {
                host.inbox_bytes -= packet.data.len();
                Poll::Ready(packet)
            }
            None => {
                host.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Hands out packets when they are due, as long as the runtime lives.
    async fn deliver(self) {
        loop {
            let due = self.state().under_way.keys().next().map(|(due, _)| *due);
            let sooner = self.sooner.notified();
            match due {
                None => sooner.await,
                Some(due) if due <= Instant::now() => self.state().deliver_first(),
                Some(due) => tokio::select! {
                    biased;
                    () = sooner => {}
                    () = sleep_until(due) => {}
                },
            }
        }
    }
}

impl State {
    fn since_begin(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn note(&mut self, fate: Fate, from: SocketAddr, to: SocketAddr, length: usize) {
        let stats = &mut self.stats;
        let count = match fate {
            Fate::Sent => &mut stats.sent,
            Fate::Lost => &mut stats.lost,
            Fate::Cut => &mut stats.cut,
            Fate::Dropped => &mut stats.dropped,
            Fate::Duplicated => &mut stats.duplicated,
            Fate::Delivered => &mut stats.delivered,
        };
        *count += 1;
        let line = format!("{} {} {from} {to} {length}\n", self.since_begin(), fate as u8);
        self.trace.update(line.as_bytes());
    }

    fn send(&mut self, from: SocketAddr, generation: u64, to: SocketAddr, data: &[u8]) {
        self.note(Fate::Sent, from, to, data.len());
        if self.hosts.get(&from).is_none_or(|host| !host.alive || host.generation != generation) {
            return self.note(Fate::Dropped, from, to, data.len());
        }
        let way = (from.ip(), to.ip());
        let config = self.ways.get(&way).copied().unwrap_or(self.config);
        // Always the same number of lots, so that one change of a scenario does not change every lot after it.
        let [lost, twice, late, jitter, again] = [(); 5].map(|()| self.rng.random::<f64>());
        if self.cut.contains(&way) {
            return self.note(Fate::Cut, from, to, data.len());
        }
        let waits = match self.uplinks.get_mut(&from.ip()) {
            None => Some(Duration::ZERO),
            Some(link) => link.take(data.len()),
        };
        let Some(waits) = waits.filter(|_| data.len() <= self.mtu) else {
            return self.note(Fate::Dropped, from, to, data.len());
        };
        if lost < config.loss {
            return self.note(Fate::Lost, from, to, data.len());
        }
        let data = Bytes::copy_from_slice(data);
        let mut time = waits + config.latency + config.jitter.mul_f64(jitter);
        if late < config.late {
            time += (config.latency * LATE_BY).mul_f64(again);
        }
        if twice < config.duplicate {
            self.note(Fate::Duplicated, from, to, data.len());
            let later = time + config.latency.mul_f64(again);
            self.put_under_way(later, to, Packet { from, data: data.clone() });
        }
        self.put_under_way(time, to, Packet { from, data });
    }

    fn put_under_way(&mut self, time: Duration, to: SocketAddr, packet: Packet) {
        self.number += 1;
        self.under_way.insert((Instant::now() + time, self.number), (to, packet));
    }

    fn deliver_first(&mut self) {
        let Some((_, (to, packet))) = self.under_way.pop_first() else { return };
        let (from, length) = (packet.from, packet.data.len());
        let fate = match self.hosts.get_mut(&to) {
            Some(host) if host.alive && host.inbox_bytes + length <= INBOX_LIMIT => {
                host.inbox_bytes += length;
                host.inbox.push_back(packet);
                if let Some(reader) = host.reader.take() {
                    reader.wake();
                }
                Fate::Delivered
            }
            _ => Fate::Dropped,
        };
        self.note(fate, from, to, length);
    }
}
