//! The endpoint: what a process holds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{BindError, CallError, Gate, Limits, Peer, Service, Stats};
use crate::key::{PublicKey, SecretKey};
use crate::wire;

/// One QUIC endpoint on one UDP socket. Clones are handles to the same endpoint.
#[derive(Clone)]
pub struct Endpoint {
    address: SocketAddr,
    key: PublicKey,
}

#[allow(unused_variables, clippy::unused_async)]
impl Endpoint {
    /// An endpoint on a real UDP socket, in the current tokio runtime.
    pub fn bind(
        address: SocketAddr,
        identity: &SecretKey,
        gate: Arc<dyn Gate>,
        limits: Limits,
    ) -> Result<Endpoint, BindError> {
        Ok(Self { address, key: identity.public() })
    }

    /// An endpoint on any socket and runtime: for simulations.
    pub fn with_socket(
        socket: Arc<dyn quinn::AsyncUdpSocket>,
        runtime: Arc<dyn quinn::Runtime>,
        rng_seed: Option<[u8; 32]>,
        identity: &SecretKey,
        gate: Arc<dyn Gate>,
        limits: Limits,
    ) -> Result<Endpoint, BindError> {
        Err(BindError::Tls("not yet".into()))
    }

    /// The socket's address.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// The key that this endpoint proves.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.key
    }

    /// Begins to accept connections and to answer requests. Only the first call has an effect.
    pub fn serve(&self, service: Arc<dyn Service>) {}

    /// Sends `request` to `peer` and waits for the reply, `deadline` from now at most.
    pub async fn call(
        &self,
        peer: &Peer,
        request: wire::request::Kind,
        payload: Vec<Bytes>,
        deadline: Duration,
    ) -> Result<(wire::reply::Kind, Bytes), CallError> {
        Err(CallError::Deadline)
    }

    /// Sends a datagram if it can be done now or soon.
    pub fn send_datagram(&self, peer: &Peer, data: Bytes) {}

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Closes the connections to `key`, and forgets its back-off: the next call dials anew, with a new Hello.
    pub fn forget(&self, key: PublicKey) {}

    /// Resolves when the endpoint has failed: its socket broke, and nothing will be sent or received any more.
    pub async fn failed(&self) {
        std::future::pending().await
    }

    /// Stops gracefully: refuses new calls with STOPPING, lets running ones end, then closes.
    pub async fn close(&self, deadline: Duration) {}

    /// Gone without a goodbye: the socket falls silent at once, as if the machine had been switched off.
    pub fn abort(&self) {}
}
