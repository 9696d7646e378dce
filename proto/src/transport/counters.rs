//! Plain counters of what an endpoint has done, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// What an endpoint has done so far. All but `connections` only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections open now.
    pub connections: u64,
    /// Connections made by this side.
    pub dialled: u64,
    /// Attempts to connect that failed.
    pub dial_failures: u64,
    /// Connections made by the other side.
    pub accepted: u64,
    /// Incoming connections turned away: over a limit, bad handshake or Hello, or refused by the gate.
    pub turned_away: u64,
    /// Calls made.
    pub calls: u64,
    /// Calls made that ended with an error.
    pub call_errors: u64,
    /// Requests served.
    pub requests: u64,
    /// Requests answered with an error.
    pub request_errors: u64,
    /// Bytes of requests and replies received.
    pub bytes_in: u64,
    /// Bytes of requests and replies sent.
    pub bytes_out: u64,
    /// Datagrams received.
    pub datagrams_in: u64,
    /// Datagrams sent.
    pub datagrams_out: u64,
    /// Datagrams that could not be sent, or came from someone no longer admitted.
    pub datagrams_dropped: u64,
}

/// One growing counter.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, amount: usize) {
        self.0.fetch_add(amount as u64, Ordering::Relaxed);
    }

    pub(super) fn one(&self) {
        self.add(1);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters behind [`Stats`], under the same names.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) dialled: Counter,
    pub(super) dial_failures: Counter,
    pub(super) accepted: Counter,
    pub(super) turned_away: Counter,
    pub(super) calls: Counter,
    pub(super) call_errors: Counter,
    pub(super) requests: Counter,
    pub(super) request_errors: Counter,
    pub(super) bytes_in: Counter,
    pub(super) bytes_out: Counter,
    pub(super) datagrams_in: Counter,
    pub(super) datagrams_out: Counter,
    pub(super) datagrams_dropped: Counter,
}

impl Counters {
    pub(super) fn stats(&self, connections: usize) -> Stats {
        Stats {
            connections: connections as u64,
            dialled: self.dialled.get(),
            dial_failures: self.dial_failures.get(),
            accepted: self.accepted.get(),
            turned_away: self.turned_away.get(),
            calls: self.calls.get(),
            call_errors: self.call_errors.get(),
            requests: self.requests.get(),
            request_errors: self.request_errors.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            datagrams_in: self.datagrams_in.get(),
            datagrams_out: self.datagrams_out.get(),
            datagrams_dropped: self.datagrams_dropped.get(),
        }
    }
}
