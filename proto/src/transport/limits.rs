//! The limits of an endpoint: how much, how many, how long.

use std::time::Duration;

use crate::wire;

const MIB: usize = 1 << 20;

/// What bounds an endpoint. Start from [`Limits::node`] or [`Limits::client`].
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most bytes of requests that are being received or served at once. Further ones wait, and their senders with
    /// them. One connection gets at most a third.
    pub request_budget: usize,
    /// Most bytes of answers that are being made or sent at once, by [`super::Service::answer_bytes`].
    pub answer_budget: usize,
    /// Most requests served at once, over all connections.
    pub requests: usize,
    /// Most requests served at once for one connection.
    pub requests_per_connection: u32,
    /// Most connections made by others, and, apart from these, most made by this side.
    pub connections: usize,
    /// Most incoming connections from one IPv4 address or IPv6 /64 network. Loopback is not counted: there, one machine
    /// is many nodes.
    pub connections_per_ip: usize,
    /// Most dials at once.
    pub dials: usize,
    /// How long one attempt to connect may take, Hello included.
    pub dial_timeout: Duration,
    /// How long the other side may take from its first packet to its Hello.
    pub hello_timeout: Duration,
    /// How long a service may take for one request before it is dropped.
    pub service_timeout: Duration,
    /// Shortest and longest wait after a failed attempt to connect. Zero for both: no back-off.
    pub backoff: (Duration, Duration),
    /// How often a quiet connection is kept alive.
    pub keep_alive: Duration,
    /// After what silence a connection is dead.
    pub idle_timeout: Duration,
    /// After what time without calls or datagrams the side that dialled closes a connection.
    pub unused_timeout: Duration,
}

impl Limits {
    /// For a node.
    #[must_use]
    pub fn node() -> Self {
        Self {
            request_budget: 96 * MIB,
            answer_budget: 64 * MIB,
            requests: 1024,
            requests_per_connection: 128,
            connections: 2048,
            connections_per_ip: 64,
            dials: 64,
            dial_timeout: Duration::from_secs(5),
            hello_timeout: Duration::from_secs(5),
            service_timeout: Duration::from_secs(300),
            backoff: (Duration::from_millis(100), Duration::from_secs(15)),
            keep_alive: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(15),
            unused_timeout: Duration::from_secs(120),
        }
    }

    /// For a client, which serves nobody.
    #[must_use]
    pub fn client() -> Self {
        Self { request_budget: MIB, answer_budget: MIB, requests: 16, requests_per_connection: 4, ..Self::node() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::node()
    }
}

/// What a connection may send before its Hello is done, and a stranger ever, in bytes ahead of the reader.
pub(super) const EARLY_WINDOW: u32 = 256 << 10;

/// What a connection may send ahead of the reader, in bytes. It is part of the protocol: neither side has more than this
/// in requests that are not yet answered, save for a single larger one. So requests that wait for the budget never take
/// the window from those that have it.
pub(super) const CONNECTION_WINDOW: u32 = 16 << 20;

/// Longest message of someone who has not shown a certificate, and of any Hello, in bytes.
pub(super) const STRANGER_MESSAGE_LIMIT: usize = 16 << 10;

/// Most requests served at once for a stranger.
pub(super) const STRANGER_REQUESTS: u32 = 4;

/// A request up to this length is received without asking the budget, in bytes: `requests` of them are little.
pub(super) const SMALL_REQUEST: usize = 64 << 10;

/// How much memory a decoded message may take, as a multiple of its length: two bytes on the wire make an empty
/// `Bytes`, which is 32 bytes.
pub(super) const DECODED_FACTOR: usize = 16;

/// How long a request may wait for a slot and for the budget before the answer is OVERLOADED.
pub(super) const ADMISSION_TIME: Duration = Duration::from_secs(20);

/// The slowest sender or receiver that is waited for, in bytes per second: the time that a frame may take grows by its
/// length over this.
const SLOWEST: u64 = 64 << 10;

/// How long any frame may take, before its length is counted.
pub(super) const FRAME_TIME: Duration = Duration::from_secs(30);

/// The time that a frame of `length` bytes may take.
pub(super) fn frame_time(length: usize) -> Duration {
    FRAME_TIME + Duration::from_secs(length as u64 / SLOWEST)
}

/// How long a refusal may take to be delivered before the connection is closed, and goodbyes to be sent at the end.
pub(super) const GOODBYE_TIME: Duration = Duration::from_secs(2);

/// How often it is looked whether goodbyes were sent.
pub(super) const GOODBYE_POLL: Duration = Duration::from_millis(1);

/// Most handshakes of incoming connections at once; from half of it on they have to prove their address first.
pub(super) const HANDSHAKES: usize = 256;

/// Most datagrams that wait for a connection to be made.
pub(super) const WAITING_DATAGRAMS: usize = 256;

/// Most addresses of a peer that are tried.
pub(super) const ADDRESSES: usize = 8;

/// How long after one address the next is tried as well.
pub(super) const STAGGER: Duration = Duration::from_millis(200);

/// Two connections made within this time count as a simultaneous dial: that of the lower key is used.
pub(super) const SIMULTANEOUS: Duration = Duration::from_secs(5);

/// How long a connection beside the used one is kept: the other side may not have seen the used one yet.
pub(super) const SPARE_TIME: Duration = Duration::from_secs(10);

/// Most connections to one peer; one more closes the worst.
pub(super) const LINKS_PER_PEER: usize = 4;

/// How often unused connections and forgotten peers are looked for.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How often a waiting call looks whether anything was heard from the other side.
pub(super) const LISTEN_INTERVAL: Duration = Duration::from_millis(250);

/// After this silence a waiting call asks for a sign of life. A service that takes its time is silent too.
pub(super) const PING_AFTER: Duration = Duration::from_millis(500);

/// Without a sign of life for this long, a call at its deadline takes the other side for unreachable rather than slow.
pub(super) const UNREACHABLE_AFTER: Duration = Duration::from_secs(1);

/// Without a sign of life for this long the connection is dead for all: the idle timeout would take far longer. A process
/// that is merely starved on a busy machine should not be taken for dead.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(3);

/// A sign of life may take so many round trips.
pub(super) const LIFE_ROUND_TRIPS: u32 = 8;

/// The longest deadline of a call; a longer one is taken for this.
pub(super) const LONGEST_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

// A frame's lengths are 32 bits each.
const _: () = assert!(wire::PAYLOAD_LIMIT <= u32::MAX as usize);
const _: () = assert!(wire::MESSAGE_LIMIT <= u32::MAX as usize);
