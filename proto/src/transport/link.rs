//! One connection that passed its Hello.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::limits::{CONNECTION_WINDOW, LIFE_ROUND_TRIPS, PING_AFTER};
use super::{Caller, Role};
use crate::key::PublicKey;

/// One connection that passed its Hello. Either side may call over it.
pub(super) struct Link {
    pub(super) connection: quinn::Connection,
    /// Who is at the other end.
    pub(super) caller: Caller,
    /// Whether this side made it.
    pub(super) dialled: bool,
    /// When it was made.
    pub(super) made: Instant,
    /// Bytes of requests that may be unanswered: as many as the other side takes without reading.
    pub(super) unanswered: Arc<Semaphore>,
    /// What the other side may have of the request budget.
    pub(super) share: Arc<Semaphore>,
    life: Mutex<Life>,
    used: Mutex<Instant>,
    busy: AtomicUsize,
    /// Its place among all connections; given back when the last user is done with it.
    _place: Place,
}

/// Whatever is held for a connection as long as it lives.
pub(super) type Place = Box<dyn Send + Sync>;

impl Link {
    pub(super) fn new(
        connection: quinn::Connection,
        caller: Caller,
        dialled: bool,
        now: Instant,
        share: usize,
        place: Place,
    ) -> Self {
        Self {
            connection,
            caller,
            dialled,
            made: now,
            unanswered: Arc::new(Semaphore::new(CONNECTION_WINDOW as usize)),
            share: Arc::new(Semaphore::new(share)),
            life: Mutex::new(Life { received: 0, heard: now, pinged: None }),
            used: Mutex::new(now),
            busy: AtomicUsize::new(0),
            _place: place,
        }
    }

    /// Whether the other side has shown no certificate.
    pub(super) fn is_stranger(&self) -> bool {
        self.caller.role == Role::Stranger
    }

    /// Whether it can still be used.
    pub(super) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Whether this side closed it, not the other and not the silence.
    pub(super) fn closed_here(&self) -> bool {
        self.connection.close_reason() == Some(quinn::ConnectionError::LocallyClosed)
    }

    /// Datagrams that were sent over it.
    pub(super) fn datagrams_sent(&self) -> u64 {
        self.connection.stats().udp_tx.datagrams
    }

    /// The caller, with the address that it has now.
    pub(super) fn caller(&self) -> Caller {
        Caller { address: address_of(&self.connection), ..self.caller.clone() }
    }

    /// The key of the side that dialled.
    pub(super) fn dialler(&self, own: PublicKey) -> PublicKey {
        if self.dialled { own } else { self.caller.key }
    }

    /// Looks whether the other side lives, and asks it if nothing was heard for a while. Gives for how long it has not
    /// answered, beyond what round trips take; zero if nothing is known against it.
    pub(super) fn silence(&self) -> Duration {
        let (received, now) = (self.connection.stats().udp_rx.datagrams, Instant::now());
        let mut life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        if life.received != received {
            *life = Life { received, heard: now, pinged: None };
        }
        if let Some(pinged) = life.pinged {
            let patience = self.connection.rtt() * LIFE_ROUND_TRIPS;
            return now.saturating_duration_since(pinged).saturating_sub(patience);
        }
        // An empty datagram: QUIC has to acknowledge it, and nothing else comes of it.
        if now.saturating_duration_since(life.heard) >= PING_AFTER
            && self.connection.send_datagram(bytes::Bytes::new()).is_ok()
        {
            life.pinged = Some(now);
        }
        Duration::ZERO
    }

    /// A call begins: silence until now says nothing, unless a question is already open.
    pub(super) fn listen(&self) {
        let mut life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        if life.pinged.is_none() {
            life.heard = Instant::now();
        }
    }

    /// Marks it as used now.
    pub(super) fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Marks it as in use until the guard is dropped.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.touch();
        Busy(self.clone())
    }

    /// For how long nothing has used it; zero while something does.
    pub(super) fn unused(&self, now: Instant) -> Duration {
        if self.busy.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        now.saturating_duration_since(*self.used.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes `bytes` of what may be unanswered; a larger request takes all of it.
    pub(super) async fn unanswered(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        take(&self.unanswered, bytes, CONNECTION_WINDOW as usize).await
    }
}

/// What was last heard from the other side.
struct Life {
    /// UDP datagrams of whatever kind, when last looked at.
    received: u64,
    /// When that number was last seen to grow.
    heard: Instant,
    /// When a sign of life was asked for, if none has come since.
    pinged: Option<Instant>,
}

/// A link is in use while this lives.
pub(super) struct Busy(Arc<Link>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch();
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes `bytes`, but never more than `all`, out of `budget`. `None` only if the budget is closed, which none is.
pub(super) async fn take(budget: &Arc<Semaphore>, bytes: usize, all: usize) -> Option<OwnedSemaphorePermit> {
    let permits = u32::try_from(bytes.min(all)).unwrap_or(u32::MAX);
    budget.clone().acquire_many_owned(permits).await.ok()
}

/// Where the other side's packets come from; an IPv4 address as such, also on a socket for both versions.
pub(super) fn address_of(connection: &quinn::Connection) -> std::net::SocketAddr {
    let address = connection.remote_address();
    std::net::SocketAddr::new(address.ip().to_canonical(), address.port())
}
