//! Which connection to use for a peer, and when to make one. Synchronous: it moves no bytes and waits for nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::limits::{LINKS_PER_PEER, SIMULTANEOUS, SPARE_TIME};
use super::link::Link;
use super::{CallError, Limits, Peer, close_code};
use crate::key::PublicKey;

/// How a dial ended, for all who wait for it.
pub(super) type DialResult = Option<Result<Arc<Link>, CallError>>;

/// What a caller should do.
pub(super) enum Next {
    /// There is a connection.
    Use(Arc<Link>),
    /// There is none, and should be none now.
    Fail(CallError),
    /// Someone is dialling already.
    Wait(watch::Receiver<DialResult>),
    /// Dial, tell [`Pool::dialled`], and wait.
    Dial(watch::Receiver<DialResult>),
}

#[derive(Default)]
struct Entry {
    links: Vec<Arc<Link>>,
    dial: Option<watch::Sender<DialResult>>,
    backoff: Option<Backoff>,
}

/// All peers that this process has something to do with.
pub(super) struct Pool {
    own: PublicKey,
    peers: BTreeMap<PublicKey, Entry>,
}

impl Pool {
    pub(super) fn new(own: PublicKey) -> Self {
        Self { own, peers: BTreeMap::new() }
    }

    /// What to do for a call to `peer`.
    pub(super) fn next(&mut self, peer: &Peer, now: Instant) -> Next {
        let unreachable = |reason: &str| CallError::Unreachable { peer: peer.key, reason: reason.into() };
        let own = self.own;
        if let Some(entry) = self.peers.get(&peer.key) {
            if let Some(link) = best(own, &entry.links) {
                return Next::Use(link.clone());
            }
            if let Some(dial) = &entry.dial {
                return Next::Wait(dial.subscribe());
            }
            if let Some(backoff) = &entry.backoff
                && now < backoff.until
                && backoff.addresses == peer.addresses
            {
                return Next::Fail(backoff.error.clone());
            }
        }
        if peer.addresses.is_empty() {
            return Next::Fail(unreachable("it has no known address and has made no connection"));
        }
        let (sender, receiver) = watch::channel(None);
        self.peers.entry(peer.key).or_default().dial = Some(sender);
        Next::Dial(receiver)
    }

    /// The connection in use for `key`.
    pub(super) fn used(&self, key: PublicKey) -> Option<Arc<Link>> {
        best(self.own, &self.peers.get(&key)?.links).cloned()
    }

    /// A dial has ended. `wait` gives the back-off after so many failures in a row.
    pub(super) fn dialled(
        &mut self,
        key: PublicKey,
        addresses: Vec<SocketAddr>,
        result: Result<Arc<Link>, CallError>,
        now: Instant,
        wait: impl FnOnce(u32) -> std::time::Duration,
    ) {
        let entry = self.peers.entry(key).or_default();
        match &result {
            Ok(_) => entry.backoff = None,
            // The peer itself has connected meanwhile: nothing to stay away from.
            Err(_) if best(self.own, &entry.links).is_some() => {}
            Err(error) => {
                let failures = entry.backoff.as_ref().map_or(0, |backoff| backoff.failures).saturating_add(1);
                let until = now + wait(failures);
                entry.backoff = Some(Backoff { failures, until, addresses, error: error.clone() });
            }
        }
        if let Some(dial) = entry.dial.take() {
            // Whoever was served by an incoming connection has its result already.
            dial.send_if_modified(|slot| slot.is_none() && slot.replace(result).is_none());
        }
    }

    /// Takes in a connection that passed its Hello, and gives it to those who wait for one.
    pub(super) fn add(&mut self, link: &Arc<Link>) {
        let own = self.own;
        let entry = self.peers.entry(link.caller.key).or_default();
        entry.backoff = None;
        entry.links.retain(|link| link.is_open());
        entry.links.push(link.clone());
        if let Some(dial) = &entry.dial {
            dial.send_if_modified(|slot| slot.is_none() && slot.replace(Ok(link.clone())).is_none());
        }
        if entry.links.len() > LINKS_PER_PEER {
            let keep = best(own, &entry.links).cloned();
            let worst = entry.links.iter().position(|link| keep.as_ref().is_none_or(|keep| !Arc::ptr_eq(keep, link)));
            if let Some(worst) = worst {
                entry.links.remove(worst).connection.close(close_code::UNUSED, b"spare");
            }
        }
    }

    /// Forgets a connection that has ended.
    pub(super) fn remove(&mut self, link: &Arc<Link>) {
        if let Some(entry) = self.peers.get_mut(&link.caller.key) {
            entry.links.retain(|other| !Arc::ptr_eq(other, link));
        }
    }

    /// Takes all connections to `key` out, and its back-off with them.
    pub(super) fn forget(&mut self, key: PublicKey) -> Vec<Arc<Link>> {
        let Some(entry) = self.peers.get_mut(&key) else { return Vec::new() };
        entry.backoff = None;
        std::mem::take(&mut entry.links)
    }

    /// All keys known.
    pub(super) fn keys(&self) -> Vec<PublicKey> {
        self.peers.keys().copied().collect()
    }

    /// Connections that are open.
    pub(super) fn open(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.peers.values().flat_map(|entry| &entry.links).filter(|link| link.is_open())
    }

    /// Closes what this side dialled and has not used for long, and what is not the used connection of its peer; forgets
    /// peers of which nothing is left.
    pub(super) fn sweep(&mut self, limits: &Limits, now: Instant) {
        let own = self.own;
        self.peers.retain(|_, entry| {
            entry.links.retain(|link| link.is_open());
            let used = best(own, &entry.links).cloned();
            for link in entry.links.iter().filter(|link| link.dialled) {
                let spare = used.as_ref().is_some_and(|used| !Arc::ptr_eq(used, link));
                let keep = if spare { SPARE_TIME } else { limits.unused_timeout };
                if link.unused(now) >= keep {
                    link.connection.close(close_code::UNUSED, b"unused");
                }
            }
            let away = entry.backoff.as_ref().is_some_and(|backoff| now < backoff.until + limits.backoff.1 * 4);
            !entry.links.is_empty() || entry.dial.is_some() || away
        });
    }

    /// Closes the dialled connection that has been unused for longest, to make place for another.
    pub(super) fn close_unused(&mut self, now: Instant) {
        let links = self.peers.values().flat_map(|entry| &entry.links);
        let unused = links.filter(|link| link.dialled && link.is_open()).max_by_key(|link| link.unused(now));
        if let Some(link) = unused.filter(|link| !link.unused(now).is_zero()) {
            link.connection.close(close_code::UNUSED, b"making place");
        }
    }
}

/// The connection to use, of those that are open: the newest; but of two made at about the same time by the two sides,
/// the one that the lower key dialled. Both sides so choose the same one after a simultaneous dial.
fn best(own: PublicKey, links: &[Arc<Link>]) -> Option<&Arc<Link>> {
    links.iter().filter(|link| link.is_open()).reduce(|old, new| {
        let simultaneous = new.made.saturating_duration_since(old.made) < SIMULTANEOUS;
        if simultaneous && old.dialler(own) < new.dialler(own) { old } else { new }
    })
}
