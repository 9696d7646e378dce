//! The limits of an endpoint: how much, how many, how long.

use std::time::Duration;

use crate::wire;

const MIB: usize = 1 << 20;

/// What bounds an endpoint. Start from [`Limits::node`] or [`Limits::client`].
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most bytes of requests that are being received or served at once. Further ones wait, and their senders with them.
    pub request_budget: usize,
    /// Most bytes of replies that are being received at once; a reply counts until it is handed to its caller.
    pub incoming_budget: usize,
    /// Most bytes of answers that are being made or sent at once, by [`super::Service::answer_bytes`].
    pub reply_budget: usize,
    /// Most requests served at once, over all connections.
    pub requests: usize,
    /// Most requests served at once for one connection.
    pub requests_per_connection: u32,
    /// Most connections, in both directions.
    pub connections: usize,
    /// Most incoming connections from one IP address. Loopback is not counted: there, one machine is many nodes.
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
            incoming_budget: 64 * MIB,
            reply_budget: 64 * MIB,
            requests: 1024,
            requests_per_connection: 128,
            connections: 4096,
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

    /// For a client: it serves nobody and reads a few stripes at a time.
    #[must_use]
    pub fn client() -> Self {
        Self {
            request_budget: MIB,
            reply_budget: MIB,
            requests: 16,
            requests_per_connection: 4,
            connections: 1024,
            connections_per_ip: 8,
            ..Self::node()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::node()
    }
}

/// Longest message of someone who has not shown a certificate, and of any Hello, in bytes.
pub(super) const STRANGER_MESSAGE_LIMIT: usize = 64 << 10;

/// A message up to this length is read without asking the budget, in bytes: `requests` of them are little.
pub(super) const SMALL_MESSAGE: usize = 64 << 10;

/// How much memory a decoded message may take, as a multiple of its length: two bytes on the wire make an empty
/// `Bytes`, which is 32 bytes.
pub(super) const DECODED_FACTOR: usize = 16;

/// The slowest sender that is waited for, in bytes per second: the time a frame may take grows by its length over this.
pub(super) const SLOWEST_SENDER: u64 = 64 << 10;

/// How long the sender of any frame may take, before its length is counted.
pub(super) const FRAME_TIME: Duration = Duration::from_secs(30);

/// The time that a frame of `length` bytes may take.
pub(super) fn frame_time(length: usize) -> Duration {
    FRAME_TIME + Duration::from_secs(length as u64 / SLOWEST_SENDER)
}

// A budget that is smaller than one frame is clamped where it is acquired; the payload of one must fit in 32 bits.
const _: () = assert!(wire::PAYLOAD_LIMIT < u32::MAX as usize && wire::MESSAGE_LIMIT < u32::MAX as usize);
