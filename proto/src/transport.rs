//! One QUIC endpoint per process: calls and datagrams between peers that are known by their Ed25519 keys.
//!
//! The layers, from the outside in: [`Endpoint`] is what a process holds; its pool (`pool`) keeps at most one used
//! connection per peer and dials (`dial`) when there is none; a connection that passed the Hello (`hello`) is a link
//! (`link`), over which either side calls the other, one stream per request (`frame`).
//!
//! It moves messages and judges nobody: who may speak is decided by the [`Gate`], what is answered by the [`Service`].
//! It never holds what outside input can make unbounded: every queue, buffer and wait has a limit, in [`Limits`] or as a
//! constant in `limits`.
//!
//! A request whose connection broke is sent once more over another, so every request means the same when it is served
//! twice. What was answered, even with an error, is never sent again here.

mod accept;
mod backoff;
mod call;
mod close_code;
mod counters;
mod dial;
mod endpoint;
mod error;
mod executor;
mod frame;
mod hello;
mod limits;
mod link;
mod pool;
mod quic;
mod serve;
mod shared;
mod silent;
mod tls;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::cert::{DeviceCert, MemberCert};
use crate::key::PublicKey;
use crate::wire;

pub use counters::Stats;
pub use endpoint::Endpoint;
pub use error::{BindError, CallError};
pub use executor::{Executor, ExecutorError};
pub use limits::Limits;

/// Largest datagram that always fits into one packet, in bytes.
pub const DATAGRAM_LIMIT: usize = 1162;

/// Whom to call, and where it may be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The key that the other side has to prove.
    pub key: PublicKey,
    /// Where to try; all are tried, each a little after the one before. May be empty: then only a connection that the
    /// peer itself has made is used.
    pub addresses: Vec<SocketAddr>,
}

/// What the gate found the other side to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// A member of the cluster.
    Node(MemberCert),
    /// A device of an admitted vault.
    Device(DeviceCert),
    /// Someone who has shown nothing. Its requests have no payload and short messages.
    Stranger,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The key that it proved in the handshake.
    pub key: PublicKey,
    /// What the gate made of its Hello.
    pub role: Role,
    /// Where its packets come from.
    pub address: SocketAddr,
}

/// Who may speak: what this process says of itself, and its judgement of the other side, on both ends of each connection.
///
/// The methods are called on the tasks that move packets: they must be quick and must not block.
pub trait Gate: Send + Sync + 'static {
    /// What this process says of itself. Versions and software are filled in by the transport.
    fn hello(&self) -> wire::Hello;

    /// Judges the other side, which proved `key` in the handshake. An error is told to it, and the connection closed.
    fn admit(&self, key: PublicKey, hello: &wire::Hello) -> Result<Role, wire::Error>;

    /// Asked before every request and datagram is served: still good? (revocation, eviction)
    fn still_admitted(&self, caller: &Caller) -> Result<(), wire::Error> {
        let _ = caller;
        Ok(())
    }
}

/// What a service answers.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The reply.
    pub reply: wire::reply::Kind,
    /// The payload, in pieces that are sent one after the other without being copied together.
    pub payload: Vec<Bytes>,
}

impl Answer {
    /// A reply without payload.
    #[must_use]
    pub fn of(reply: wire::reply::Kind) -> Self {
        Self { reply, payload: Vec::new() }
    }
}

/// What this process does for others.
pub trait Service: Send + Sync + 'static {
    /// Serves one request. The future is run to its end even if the caller has gone, and dropped only after
    /// [`Limits::service_timeout`]. A panic is answered with INTERNAL.
    fn call(
        self: Arc<Self>,
        caller: Caller,
        request: wire::request::Kind,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Answer, wire::Error>>;

    /// Takes one datagram. Must be quick and must not block.
    fn datagram(&self, caller: &Caller, data: Bytes);

    /// About how many bytes of payload the answer to `request` will have. So much of [`Limits::answer_budget`] is set
    /// aside from before the call until the answer is sent; more than the budget means all of it.
    fn answer_bytes(&self, request: &wire::request::Kind) -> usize {
        let _ = request;
        0
    }
}
