//! What all tasks of one endpoint share: its configuration, its pool, its budgets, and whether it still runs.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

use super::counters::Counters;
use super::limits::{GOODBYE_POLL, GOODBYE_TIME, SWEEP_INTERVAL, WAITING_DATAGRAMS};
use super::link::{Link, Place};
use super::pool::Pool;
use super::{CallError, Caller, Gate, Limits, Peer, Service, backoff, dial, link, quic, serve};
use crate::key::PublicKey;

/// Whether an endpoint runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It does.
    Open,
    /// It refuses new calls and lets running ones end.
    Stopping,
    /// It was closed.
    Closed,
    /// Its socket broke.
    Failed,
}

/// What all tasks of one endpoint share.
pub(super) struct Shared {
    pub(super) quinn: quinn::Endpoint,
    pub(super) key: PublicKey,
    pub(super) gate: Arc<dyn Gate>,
    pub(super) limits: Limits,
    pub(super) service: OnceLock<Arc<dyn Service>>,
    pub(super) counters: Counters,
    pub(super) state: watch::Sender<State>,
    /// Calls and requests under way.
    running: watch::Sender<usize>,
    pool: Mutex<Pool>,
    rng: Mutex<StdRng>,
    /// Requests that may be served.
    pub(super) slots: Arc<Semaphore>,
    /// Bytes of requests that may be received.
    pub(super) request_budget: Arc<Semaphore>,
    /// Bytes of answers that may be made.
    pub(super) answer_budget: Arc<Semaphore>,
    /// Connections that may be made by this side.
    outgoing: Arc<Semaphore>,
    dials: Semaphore,
    /// Datagrams that may wait for a connection.
    pub(super) waiting: Arc<Semaphore>,
}

impl Shared {
    pub(super) fn new(
        quinn: quinn::Endpoint,
        key: PublicKey,
        gate: Arc<dyn Gate>,
        limits: Limits,
        seed: [u8; 32],
    ) -> Self {
        let semaphore = |permits: usize| Semaphore::new(permits.clamp(1, u32::MAX as usize));
        Self {
            quinn,
            key,
            gate,
            service: OnceLock::new(),
            counters: Counters::default(),
            state: watch::Sender::new(State::Open),
            running: watch::Sender::new(0),
            pool: Mutex::new(Pool::new(key)),
            rng: Mutex::new(StdRng::from_seed(seed)),
            slots: Arc::new(semaphore(limits.requests)),
            request_budget: Arc::new(semaphore(limits.request_budget)),
            answer_budget: Arc::new(semaphore(limits.answer_budget)),
            outgoing: Arc::new(semaphore(limits.connections)),
            dials: semaphore(limits.dials),
            waiting: Arc::new(semaphore(WAITING_DATAGRAMS)),
            limits,
        }
    }

    pub(super) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why no call can be made, if so.
    pub(super) fn stopped(&self) -> Option<CallError> {
        match *self.state.borrow() {
            State::Open => None,
            State::Stopping => Some(CallError::Stopped("it is closing")),
            State::Closed => Some(CallError::Stopped("it is closed")),
            State::Failed => Some(CallError::Stopped("its socket has failed")),
        }
    }

    /// Counts something under way until the guard is dropped.
    pub(super) fn running(self: &Arc<Self>) -> Running {
        self.running.send_modify(|count| *count += 1);
        Running(self.clone())
    }

    /// Waits until nothing is under way, `time` at most.
    pub(super) async fn settled(&self, time: Duration) {
        let mut running = self.running.subscribe();
        // Late or not, what follows is the same: closing.
        let _ = timeout(time, running.wait_for(|count| *count == 0)).await;
    }

    /// Takes in a connection that passed its Hello and begins to serve it.
    pub(super) fn admit(
        self: &Arc<Self>,
        connection: quinn::Connection,
        caller: Caller,
        dialled: bool,
        place: Place,
    ) -> Arc<Link> {
        let now = Instant::now();
        let share = (self.limits.request_budget / 3).clamp(1, u32::MAX as usize);
        let link = Arc::new(Link::new(connection, caller, dialled, now, share, place));
        if !link.is_stranger() {
            quic::widen(&link.connection, self.limits.requests_per_connection);
        } else {
            quic::widen_for_stranger(&link.connection);
        }
        self.pool().add(&link);
        serve::start(self, &link);
        link
    }

    /// Dials in the background and tells the pool.
    pub(super) fn start_dial(self: &Arc<Self>, peer: Peer) {
        let shared = self.clone();
        tokio::spawn(async move {
            // Were this task to panic, nobody would tell those who wait.
            let mut told = Told { shared: &shared, peer: &peer, result: None };
            let result = shared.dial(&peer).await;
            told.result = Some(result);
        });
    }

    async fn dial(self: &Arc<Self>, peer: &Peer) -> Result<Arc<Link>, CallError> {
        let busy = |what: &str| CallError::Unreachable { peer: peer.key, reason: format!("too many {what}") };
        let time = self.limits.dial_timeout;
        let _dial = match timeout(time, self.dials.acquire()).await {
            Ok(Ok(permit)) => permit,
            _ => return Err(busy("dials at once")),
        };
        if self.outgoing.available_permits() == 0 {
            self.pool().close_unused(Instant::now());
        }
        let place = match timeout(time, self.outgoing.clone().acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            _ => return Err(busy("connections")),
        };
        let (connection, caller) = dial::dial(self, peer).await?;
        self.counters.dialled.one();
        Ok(self.admit(connection, caller, true, Box::new(place)))
    }

    fn backoff(&self, failures: u32) -> Duration {
        let jitter = self.rng.lock().unwrap_or_else(PoisonError::into_inner).random_range(0.0..1.0);
        backoff::wait(failures, self.limits.backoff, jitter)
    }

    /// Closes what nobody uses, now and then, until the endpoint ends.
    pub(super) async fn sweep(self: Arc<Self>) {
        let mut state = self.state.subscribe();
        let ended = |state: &State| matches!(state, State::Closed | State::Failed);
        while timeout(SWEEP_INTERVAL, state.wait_for(ended)).await.is_err() {
            self.pool().sweep(&self.limits, Instant::now());
        }
    }

    /// Says goodbye on all connections and gives the socket back. A goodbye that gets lost is not said again: the other
    /// side then learns it by the silence. To be idle, quinn would listen for late packets for three probe timeouts.
    pub(super) async fn shut(&self, code: quinn::VarInt, reason: &[u8]) {
        let open: Vec<Arc<Link>> = self.pool().open().cloned().collect();
        let saying = open.into_iter().map(|link| {
            // Read before: the goodbye may be gone by the time that this call returns.
            let sent = link.datagrams_sent();
            link.connection.close(code, reason);
            (link, sent)
        });
        let mut saying: Vec<(Arc<Link>, u64)> = saying.collect();
        self.quinn.close(code, reason);
        let said = async {
            loop {
                // The first packet that a closed connection sends is its goodbye; nothing tells of it.
                saying.retain(|(link, sent)| link.closed_here() && link.datagrams_sent() == *sent);
                if saying.is_empty() {
                    return;
                }
                sleep(GOODBYE_POLL).await;
            }
        };
        let _ = timeout(GOODBYE_TIME, said).await;
        self.release_socket();
    }

    /// Lets go of the socket: whatever is sent from now on goes nowhere.
    pub(super) fn release_socket(&self) {
        let Ok(address) = self.quinn.local_addr() else { return };
        // quinn keeps the socket before the current one until a packet arrives: the second change drops the real one.
        for _ in 0..2 {
            if let Err(error) = self.quinn.rebind_abstract(Arc::new(super::silent::Silent(address))) {
                tracing::debug!(%error, "the socket stays open until its connections have ended");
            }
        }
    }
}

/// Something is under way while this lives.
pub(super) struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.send_modify(|count| *count -= 1);
    }
}

/// Tells the pool how a dial ended, whatever happens.
struct Told<'a> {
    shared: &'a Shared,
    peer: &'a Peer,
    result: Option<Result<Arc<Link>, CallError>>,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        let Told { shared, peer, .. } = self;
        let result = self.result.take().unwrap_or(Err(CallError::Stopped("its dial was broken off")));
        if result.is_err() {
            shared.counters.dial_failures.one();
        }
        let wait = |failures| shared.backoff(failures);
        shared.pool().dialled(peer.key, peer.addresses.clone(), result, Instant::now(), wait);
    }
}

/// A budget's size in permits, as it was clamped when it was made.
pub(super) fn whole(budget: usize) -> usize {
    budget.clamp(1, u32::MAX as usize)
}

/// Takes `bytes` of a request for `link`: first of the link's share, then of the budget, always in this order.
pub(super) async fn take_request(
    shared: &Shared,
    link: &Link,
    bytes: usize,
) -> Option<(tokio::sync::OwnedSemaphorePermit, tokio::sync::OwnedSemaphorePermit)> {
    let share = link::take(&link.share, bytes, whole(shared.limits.request_budget / 3)).await?;
    let budget = link::take(&shared.request_budget, bytes, whole(shared.limits.request_budget)).await?;
    Some((share, budget))
}
