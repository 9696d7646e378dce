//! The endpoint: what a process holds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::pool::Next;
use super::quic::{self, Quic};
use super::shared::{Shared, State};
use super::{BindError, CallError, Gate, Limits, Peer, Service, Stats, accept, call, close_code};
use crate::key::{PublicKey, SecretKey};
use crate::wire;

/// One QUIC endpoint on one UDP socket. Clones are handles to the same endpoint; when the last one is dropped, it closes
/// without waiting for anything.
#[derive(Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
    address: SocketAddr,
    server: quinn::ServerConfig,
    _last: Arc<Last>,
}

impl Endpoint {
    /// An endpoint on a real UDP socket, in the current tokio runtime. Port 0 takes any free port. An IPv6 wildcard
    /// address takes IPv4 too.
    pub fn bind(
        address: SocketAddr,
        identity: &SecretKey,
        gate: Arc<dyn Gate>,
        limits: Limits,
    ) -> Result<Endpoint, BindError> {
        let failed = |source| BindError::Socket { address, source };
        in_runtime()?;
        let runtime: Arc<dyn quinn::Runtime> = Arc::new(quinn::TokioRuntime);
        let socket = runtime.wrap_udp_socket(quic::socket(address).map_err(failed)?).map_err(failed)?;
        Self::with_socket(socket, runtime, None, identity, gate, limits)
    }

    /// An endpoint on any socket and runtime, for simulations. Its tasks are tokio's, also then. With a seed, all that
    /// it draws by lot repeats.
    pub fn with_socket(
        socket: Arc<dyn quinn::AsyncUdpSocket>,
        runtime: Arc<dyn quinn::Runtime>,
        rng_seed: Option<[u8; 32]>,
        identity: &SecretKey,
        gate: Arc<dyn Gate>,
        limits: Limits,
    ) -> Result<Endpoint, BindError> {
        in_runtime()?;
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        let failed = |source| BindError::Socket { address: unspecified, source };
        let address = socket.local_addr().map_err(failed)?;
        let Quic { endpoint, client, server } = Quic::new(identity, &limits, rng_seed)?;
        let mut quinn = quinn::Endpoint::new_with_abstract_socket(endpoint, None, socket, runtime)
            .map_err(|source| BindError::Socket { address, source })?;
        quinn.set_default_client_config(client);

        let seed = rng_seed.unwrap_or_else(rand::random);
        let shared = Arc::new(Shared::new(quinn, identity.public(), gate, limits, seed));
        tokio::spawn(accept::run(shared.clone()));
        tokio::spawn(shared.clone().sweep());
        Ok(Self { _last: Arc::new(Last(shared.clone())), shared, address, server })
    }

    /// The socket's address.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// The key that this endpoint proves.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.shared.key
    }

    /// Begins to accept connections and to answer requests, also those that come over connections that this side made.
    /// Only the first call has an effect. An endpoint that does not serve answers requests with NOT_ADMITTED.
    pub fn serve(&self, service: Arc<dyn Service>) {
        if self.shared.service.set(service).is_ok() {
            self.shared.quinn.set_server_config(Some(self.server.clone()));
        }
    }

    /// Sends `request` to `peer` and waits for the reply, for `deadline` at most, connecting included. The payload is
    /// sent piece after piece without being copied. Dropping the future gives the call up; it may be served all the same.
    ///
    /// If a connection that was there turns out to be dead, the request is sent once more over a new one: whatever is
    /// asked must mean the same when it is served twice.
    pub async fn call(
        &self,
        peer: &Peer,
        request: wire::request::Kind,
        payload: Vec<Bytes>,
        deadline: Duration,
    ) -> Result<(wire::reply::Kind, Bytes), CallError> {
        self.shared.counters.calls.one();
        let result = call::call(&self.shared, peer, request, payload, deadline).await;
        result.inspect_err(|_| self.shared.counters.call_errors.one())
    }

    /// Sends a datagram of at most [`super::DATAGRAM_LIMIT`] bytes, as well as can be done: at once over a connection
    /// that is there, else after connecting. One that cannot be sent is dropped and counted.
    pub fn send_datagram(&self, peer: &Peer, data: Bytes) {
        let shared = &self.shared;
        let dropped = || shared.counters.datagrams_dropped.one();
        if shared.stopped().is_some() {
            return dropped();
        }
        let next = shared.pool().next(peer, Instant::now());
        match next {
            Next::Use(link) => return send(shared, &link, data),
            Next::Fail(_) => return dropped(),
            Next::Wait(_) => {}
            Next::Dial(_) => shared.start_dial(peer.clone()),
        }
        let Ok(place) = shared.waiting.clone().try_acquire_owned() else { return dropped() };
        let (endpoint, peer) = (self.shared.clone(), peer.clone());
        tokio::spawn(async move {
            send_when_connected(&endpoint, &peer, data).await;
            drop(place);
        });
    }

    /// [`Endpoint::send_datagram`] that returns when the datagram has gone or was dropped: for the last ones before the
    /// endpoint is closed. It may take as long as a dial.
    pub async fn send_last_datagram(&self, peer: &Peer, data: Bytes) {
        if self.shared.stopped().is_some() {
            return self.shared.counters.datagrams_dropped.one();
        }
        send_when_connected(&self.shared, peer, data).await;
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.counters.stats(self.shared.pool().open().count())
    }

    /// The packet size that the connection to `key` has come to, in bytes; `None` without a connection.
    #[must_use]
    pub fn mtu(&self, key: PublicKey) -> Option<u16> {
        let link = self.shared.pool().used(key)?;
        Some(link.connection.stats().path.current_mtu)
    }

    /// Closes the connections to `key` and forgets its back-off: the next call dials anew, with a new Hello. Calls under
    /// way over them are lost.
    pub fn forget(&self, key: PublicKey) {
        let links = self.shared.pool().forget(key);
        for link in links {
            link.connection.close(close_code::UNUSED, b"new Hello");
        }
    }

    /// [`Endpoint::forget`] for every peer: for when what the gate says of this process has changed.
    pub fn forget_all(&self) {
        let keys = self.shared.pool().keys();
        for key in keys {
            self.forget(key);
        }
    }

    /// Resolves when the endpoint has failed: its socket broke, and nothing will be sent or received any more. Never
    /// resolves on an endpoint that was closed.
    pub async fn failed(&self) {
        let mut state = self.shared.state.subscribe();
        if state.wait_for(|state| *state == State::Failed).await.is_err() {
            std::future::pending().await
        }
    }

    /// Whether it is closing or closed, or has failed: it takes no calls any more.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.shared.stopped().is_some()
    }

    /// Stops gracefully: refuses new calls in both directions, requests with STOPPING, lets running ones end for
    /// `deadline` at most, then says goodbye on all connections and gives the socket back.
    pub async fn close(&self, deadline: Duration) {
        self.shared.state.send_if_modified(|state| {
            let open = *state == State::Open;
            if open {
                *state = State::Stopping;
            }
            open
        });
        self.shared.settled(deadline).await;
        self.end();
        self.shared.shut(close_code::STOPPING, b"stopping").await;
    }

    /// Gone without a goodbye: the socket is given back at once and nothing more is sent, as if the machine had been
    /// switched off. The others notice by the silence.
    pub fn abort(&self) {
        self.end();
        self.shared.release_socket();
        self.shared.quinn.close(close_code::STOPPING, b"");
    }

    fn end(&self) {
        self.shared.state.send_if_modified(|state| {
            let running = !matches!(state, State::Closed | State::Failed);
            if running {
                *state = State::Closed;
            }
            running
        });
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint of {:?} on {}", self.shared.key, self.address)
    }
}

async fn send_when_connected(shared: &Arc<Shared>, peer: &Peer, data: Bytes) {
    let end = Instant::now() + shared.limits.dial_timeout;
    match call::connect(shared, peer, end).await {
        Ok((link, _)) => send(shared, &link, data),
        Err(_) => shared.counters.datagrams_dropped.one(),
    }
}

fn send(shared: &Shared, link: &super::link::Link, data: Bytes) {
    link.touch();
    match link.connection.send_datagram(data) {
        Ok(()) => shared.counters.datagrams_out.one(),
        Err(_) => shared.counters.datagrams_dropped.one(),
    }
}

fn in_runtime() -> Result<(), BindError> {
    tokio::runtime::Handle::try_current().map(drop).map_err(|_| BindError::NoRuntime)
}

/// Closes the endpoint when the last handle goes: its own tasks keep the rest of it alive.
struct Last(Arc<Shared>);

impl Drop for Last {
    fn drop(&mut self) {
        self.0.state.send_replace(State::Closed);
        self.0.quinn.close(close_code::STOPPING, b"dropped");
    }
}
