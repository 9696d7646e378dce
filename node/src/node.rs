//! A running node: its parts put together, its loops started, its end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use potluck_proto::id::{NodeId, StripeId};
use potluck_proto::key::SecretKey;
use potluck_proto::member::{MemberRecord, MemberTable, Standing};
use potluck_proto::transport::{BindError, Endpoint, Executor, Gate, Limits};
use potluck_proto::wire;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng, TryRng};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::capacity::Announced;
use crate::config::Config;
use crate::gate::MemberGate;
use crate::heads::Heads;
use crate::http;
use crate::identity::{FolderLock, Identity, IdentityError};
use crate::invites::Invites;
use crate::join::TABLE;
use crate::membership::swim::{self, Swim, SwimHandle};
use crate::membership::{Membership, View, exchange, rival};
use crate::metrics::Metrics;
use crate::metrics::label::FoundBy;
use crate::page::NodePage;
use crate::repair::rebuild::Budget;
use crate::repair::survey::{self, Tally};
use crate::service::NodeService;
use crate::store::StoreError;
use crate::store::segments::disk::{Disk, FolderDisk, INDEX_FOLDER, STORE_FOLDER};
use crate::store::segments::format::StoreId;
use crate::store::segments::recovery::Progress;
use crate::store::segments::{Options, SegmentStore, segment_bytes};
use crate::{WallClock, durable, import, upkeep};

/// What this program calls itself to others.
pub const SOFTWARE: &str = concat!("potluck ", env!("CARGO_PKG_VERSION"));

/// How long a graceful stop lets running calls end.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Most stripes that wait to be looked at out of turn; the survey comes to all others anyway.
const ALERTS: usize = 65_536;

/// Disk and CPU work at once.
const WORKERS: usize = 8;

/// How many others must know that this node has left before it says so: should one of them go too, its word is kept.
const WITNESSES: usize = 3;

/// Time between two attempts to tell others that this node has left.
const TELL_INTERVAL: Duration = Duration::from_secs(2);

/// Time between two writes of the running time to disk.
const RUNNING_INTERVAL: Duration = Duration::from_secs(60);

/// Makes the node's endpoint: a UDP socket, or a simulated one.
pub type Bind = Arc<dyn Fn(&SecretKey, Arc<dyn Gate>, Limits) -> Result<Endpoint, BindError> + Send + Sync>;

/// A UDP socket at this address.
#[must_use]
pub fn bind_udp(address: SocketAddr) -> Bind {
    Arc::new(move |key, gate, limits| Endpoint::bind(address, key, gate, limits))
}

/// Opens the shard store of a data folder, and says meanwhile how far it has come.
pub type OpenStore = Arc<dyn Fn(&Path, &Config, Arc<Progress>) -> Result<Arc<SegmentStore>, StoreError> + Send + Sync>;

/// The log in the data folder, written by a thread, and sled's index over it.
#[must_use]
pub fn log_store() -> OpenStore {
    Arc::new(|folder, config, progress| {
        let path = folder.join(STORE_FOLDER);
        let disk = FolderDisk::open(&path)?;
        let space = disk.space()?;
        // What the node itself uses already is not free, but is part of what it offers.
        let capacity = config.capacity_on(space.free, used_bytes(&path)?);
        let mut fresh = [0; 16];
        rand::rngs::SysRng.try_fill_bytes(&mut fresh).map_err(std::io::Error::other)?;
        let options = Options {
            capacity,
            segment_bytes: segment_bytes(capacity.min(space.total)),
            fresh: StoreId(fresh),
            clock: system_clock(),
            threaded: true,
            index: Some(path.join(INDEX_FOLDER)),
            progress,
        };
        Ok(Arc::new(SegmentStore::open(Arc::new(disk), options)?))
    })
}

fn used_bytes(folder: &Path) -> std::io::Result<u64> {
    let files = std::fs::read_dir(folder)?.map(|entry| {
        let entry = entry?.metadata()?;
        Ok(if entry.is_file() { entry.len() } else { 0 })
    });
    files.sum()
}

/// What a node is made of besides its configuration; the simulation puts its own in place.
#[derive(Clone)]
pub struct Parts {
    /// Makes the endpoint.
    pub bind: Bind,
    /// Opens the shard store.
    pub store: OpenStore,
    /// Where disk and CPU work runs.
    pub executor: Executor,
    /// The time of day.
    pub clock: WallClock,
    /// Where all randomness comes from; none: the system's.
    pub seed: Option<u64>,
    /// What bounds the endpoint.
    pub limits: Limits,
}

impl Parts {
    /// The real ones.
    #[must_use]
    pub fn real(config: &Config) -> Self {
        Self {
            bind: bind_udp(config.listen),
            store: log_store(),
            executor: Executor::threads(WORKERS),
            clock: system_clock(),
            seed: None,
            limits: Limits::node(),
        }
    }
}

/// The system's time of day.
#[must_use]
pub fn system_clock() -> WallClock {
    Arc::new(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| since.as_millis() as u64)
    })
}

/// Why a node does not start. Nothing in its folder was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The endpoint.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The shard store.
    #[error("the shard store cannot be opened: {0}")]
    Store(#[from] StoreError),
    /// The HTTP page.
    #[error("cannot listen on http address {address}: {source}")]
    Http {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The operating system.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The configuration does not fit the certificate.
    #[error("{0}")]
    Config(String),
}

/// Why a node makes a new record of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// It has started: a new life.
    Start,
    /// Something in the record has changed.
    Change,
    /// Others know a record or a life of this node that is not from this process.
    Outdo,
    /// It holds nothing any more and is gone for good.
    Left,
}

/// Stripes to be looked at out of turn.
#[derive(Debug, Default)]
pub struct Alerts {
    stripes: Mutex<BTreeSet<StripeId>>,
    wake: Notify,
}

impl Alerts {
    /// A shard of this stripe is known to be gone.
    pub fn add(&self, stripe: StripeId) {
        let mut stripes = self.stripes.lock().unwrap_or_else(PoisonError::into_inner);
        if stripes.len() < ALERTS {
            stripes.insert(stripe);
        }
        self.wake.notify_one();
    }

    /// All that wait.
    pub fn take(&self) -> BTreeSet<StripeId> {
        std::mem::take(&mut self.stripes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns when there is something to take.
    pub async fn wait(&self) {
        self.wake.notified().await;
    }
}

/// What the parts of a node share.
pub struct Core {
    /// Keys and certificate.
    pub identity: Identity,
    /// The operator's choices.
    pub config: Config,
    /// The table and the view.
    pub membership: Arc<Membership>,
    /// Failure detection.
    pub swim: SwimHandle,
    /// The network.
    pub endpoint: Endpoint,
    /// Disk and CPU work.
    pub executor: Executor,
    /// The shards.
    pub store: Arc<SegmentStore>,
    /// The vaults' heads.
    pub heads: Arc<Heads>,
    /// Invites made here.
    pub invites: Invites,
    /// All metrics.
    pub metrics: Metrics,
    /// Stripes to be looked at out of turn.
    pub alerts: Alerts,
    /// What the background loops may read, send and write.
    pub budget: Budget,
    /// The time of day.
    pub clock: WallClock,
    /// Where the HTTP page is.
    pub http: Option<SocketAddr>,
    tally: Mutex<(Tally, Option<Instant>)>,
    announced: Mutex<Option<Announced>>,
    leaving: AtomicBool,
    /// It has left, and others know.
    left: AtomicBool,
    started: Instant,
    /// Milliseconds that the node had run before this start.
    ran_before_ms: u64,
    seeds: Mutex<StdRng>,
}

impl Core {
    /// A source of randomness of its own.
    pub fn rng(&self) -> StdRng {
        StdRng::seed_from_u64(self.seeds.lock().unwrap_or_else(PoisonError::into_inner).next_u64())
    }

    /// Time since this start.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Milliseconds that the node has run in all: the clock by which the trash is emptied.
    #[must_use]
    pub fn running_ms(&self) -> u64 {
        self.ran_before_ms + self.uptime().as_millis() as u64
    }

    /// Whether the node is on its way out.
    #[must_use]
    pub fn leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// A shard here did not match its hash: it was set aside, and its siblings' holders are told.
    pub fn found_corrupt(self: &Core, stripe: StripeId, found_by: FoundBy) {
        self.metrics.corrupt_shards.with(found_by).inc();
        self.alerts.add(stripe);
    }

    /// The last survey's result.
    pub fn set_tally(&self, tally: Tally) {
        *self.tally() = (tally, Some(Instant::now()));
    }

    fn tally(&self) -> MutexGuard<'_, (Tally, Option<Instant>)> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the node has left for good and others know, so that it may be switched off.
    #[must_use]
    pub fn left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// Puts the node on its way out: off the ring, so that all its shards become surplus and move on.
    pub async fn leave(self: &Arc<Self>) -> std::io::Result<()> {
        self.leaving.store(true, Ordering::Relaxed);
        let core = self.clone();
        let renewed = self.executor.run(move || core.renew_record(Renewal::Change));
        renewed.await.map_err(std::io::Error::other)?
    }

    /// Makes a new record of this node. After an error the old one holds. Blocks on the disk.
    pub fn renew_record(&self, why: Renewal) -> std::io::Result<()> {
        let addresses = self.addresses();
        let capacity = self.capacity()?;
        // A record that another process made names a life of its own.
        let new_life = matches!(why, Renewal::Start | Renewal::Outdo) || self.membership.rival().is_some();
        self.membership.renew(|old| MemberRecord {
            cert: self.identity.cert.clone(),
            generation: 0,
            life: old.map_or(0, |old| old.life) + u64::from(new_life),
            addresses,
            capacity,
            left: why == Renewal::Left || old.is_some_and(|old| old.left),
            leaving: self.leaving(),
            full: self.store.full(),
            software: SOFTWARE.into(),
        })
    }

    /// Bytes that this node offers to the ring: what its operator says, else what it found and announced before.
    fn capacity(&self) -> std::io::Result<u64> {
        if let Some(capacity) = self.config.capacity {
            return Ok(capacity);
        }
        let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        let disk = rustix::fs::statvfs(&self.identity.folder)?;
        let usage = self.store.usage();
        let measured = self.config.capacity_on(disk.f_bavail * disk.f_frsize, usage.live + usage.trash);
        let next = Announced::next(*announced, measured, self.running_ms());
        if *announced != Some(next) {
            next.write(&self.identity.folder)?;
            *announced = Some(next);
        }
        Ok(next.bytes)
    }

    /// Whether the record says something that has become wrong.
    fn record_is_stale(&self) -> std::io::Result<bool> {
        let view = self.membership.view();
        let Some(record) = view.table.record(&view.me) else { return Ok(true) };
        Ok(record.full != self.store.full()
            || record.addresses != self.addresses()
            || record.capacity != self.capacity()?
            || is_lost(&view))
    }

    /// Where others reach this node: what the operator says, else the listening address, else loopback.
    fn addresses(&self) -> Vec<SocketAddr> {
        if !self.config.advertise.is_empty() {
            return self.config.advertise.clone();
        }
        let listening = self.endpoint.local_address();
        if !listening.ip().is_unspecified() {
            return vec![listening];
        }
        let mut addresses: Vec<SocketAddr> =
            own_address().map(|ip| SocketAddr::new(ip, listening.port())).into_iter().collect();
        if addresses.is_empty() {
            addresses.push(SocketAddr::from(([127, 0, 0, 1], listening.port())));
        }
        addresses
    }

    /// The node's state, as peers, operators and the HTTP page see it.
    #[must_use]
    pub fn status(&self) -> wire::StatusReply {
        let view = self.membership.view();
        let (usage, stats) = (self.store.usage(), self.store.stats());
        let (tally, surveyed) = *self.tally();
        let record = view.table.record(&view.me);
        wire::StatusReply {
            node: Bytes::copy_from_slice(view.me.as_bytes()),
            software: SOFTWARE.into(),
            zone: self.identity.cert.zone().into(),
            uptime_ms: self.uptime().as_millis() as u64,
            capacity: record.map_or(0, |record| record.weight()),
            used: usage.live,
            trash: usage.trash,
            shards: usage.shards,
            stripes_whole: tally.whole,
            stripes_degraded: tally.degraded,
            stripes_at_risk: tally.at_risk,
            stripes_unreadable: tally.unreadable,
            stripes_unconfirmed: tally.unconfirmed,
            stripes_malformed: tally.malformed,
            stripes_unknown: if surveyed.is_none() { usage.shards } else { 0 },
            repair_queue: self.metrics.repair_queue.get().max(0) as u64,
            repaired_shards: self.metrics.repaired_shards.get(),
            repaired_bytes: self.metrics.repaired_bytes.get(),
            members: view.table.members().count() as u64,
            members_up: view.table.members().filter(|record| view.is_up(&record.node())).count() as u64,
            rebalanced_shards: self.metrics.rebalanced_shards.get(),
            corrupt_shards: self.store.lost(),
            full: self.store.full(),
            leaving: self.leaving(),
            left: self.left(),
            survey_age_ms: surveyed.map_or(u64::MAX, |at| at.elapsed().as_millis() as u64),
            http: self.http.map(|address| address.to_string()).unwrap_or_default(),
            up: view.up.keys().map(|node| Bytes::copy_from_slice(node.as_bytes())).collect(),
            key_also_at: self.membership.key_also_at().iter().map(ToString::to_string).collect(),
            store: Some(wire::StoreStatus {
                segments: stats.segments,
                bytes: stats.bytes,
                live: stats.live,
                indexed: stats.indexed,
                gaps: stats.gaps,
                unusable: stats.unusable,
                failures: stats.failures,
            }),
        }
    }
}

/// Whether this node is declared lost in its own table: a record of a higher generation revokes that.
fn is_lost(view: &View) -> bool {
    view.table.standing(&view.me) == Some(Standing::Lost)
}

/// The address that the system would use towards the outside; nothing is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    // A documentation address (RFC 5737): connecting a UDP socket only picks the route.
    socket.connect(("192.0.2.1", 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}

/// A running node.
pub struct Node {
    core: Arc<Core>,
    stop: watch::Sender<bool>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
    /// Released when the node has ended, whoever still holds a part of it.
    _lock: FolderLock,
}

const RUNNING: &str = "running";

/// The file in the data folder that says where the running node listens, for its operator.
pub const LISTENING: &str = "listening";

impl Node {
    /// Starts the node of a data folder; it serves when this returns.
    pub async fn start(config: Config, parts: Parts) -> Result<Self, StartError> {
        let (identity, lock) = Identity::open(&config.data)?;
        if let Some(zone) = &config.zone
            && zone != identity.cert.zone()
        {
            return Err(StartError::Config(format!(
                "the certificate of this node says zone {:?}, the configuration {zone:?}: a zone is chosen when a node joins",
                identity.cert.zone()
            )));
        }
        let (folder, cluster) = (config.data.clone(), identity.cert.cluster());
        let mut seeds = match parts.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => StdRng::try_from_rng(&mut rand::rngs::SysRng)
                .map_err(|error| std::io::Error::other(format!("no randomness: {error}")))?,
        };
        let empty = MemberTable::new(cluster);
        import::refuse(&folder)?;
        let (stop, stopping) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let page = Arc::new(NodePage::default());
        let http = serve_page(&config, page.clone(), &mut tasks, stopping.clone()).await?;
        let (open, place, settings, progress) =
            (parts.store.clone(), folder.clone(), config.clone(), page.opening.clone());
        let store = parts.executor.run(move || open(&place, &settings, progress)).await;
        let store = store.map_err(std::io::Error::other)??;
        import::take_in(&folder, cluster, &store)?;
        let membership = Arc::new(Membership::open(store.clone(), identity.key.clone(), empty)?);
        let heads = Arc::new(Heads::open(store.clone(), parts.executor.clone(), membership.clone())?);
        let gate =
            MemberGate { cert: identity.cert.clone(), membership: membership.clone(), clock: parts.clock.clone() };
        let endpoint = (parts.bind)(&identity.key, Arc::new(gate), parts.limits.clone())?;
        let ran_before_ms = match durable::read(&folder.join(RUNNING))? {
            Some(bytes) => <[u8; 8]>::try_from(&bytes[..]).map_or(0, u64::from_le_bytes),
            None => 0,
        };
        let announced = Announced::read(&folder)?;
        let was_leaving = membership.view().table.record(&identity.node()).is_some_and(|record| record.leaving);
        let (handle, queue) = swim::queue();
        let gossip_seed = seeds.next_u64();
        let core = Arc::new(Core {
            invites: Invites::open(&folder)?,
            identity,
            budget: Budget::new(config.background_budget),
            config,
            membership,
            swim: handle,
            endpoint,
            executor: parts.executor,
            store,
            heads,
            metrics: Metrics::new().map_err(std::io::Error::other)?,
            alerts: Alerts::default(),
            clock: parts.clock,
            http,
            tally: Mutex::default(),
            announced: Mutex::new(announced),
            leaving: AtomicBool::new(was_leaving),
            left: AtomicBool::new(false),
            started: Instant::now(),
            ran_before_ms,
            seeds: Mutex::new(seeds),
        });
        durable::replace(&folder.join(LISTENING), core.endpoint.local_address().to_string().as_bytes())?;
        core.renew_record(Renewal::Start)?;
        let refutations = core.metrics.refutations.clone();
        let swim = Swim::new(queue, core.membership.clone(), core.endpoint.clone(), refutations, gossip_seed);
        core.endpoint.serve(Arc::new(NodeService(core.clone())));
        tasks.spawn(swim.run(stopping.clone()));
        tasks.spawn(exchange::run(
            core.membership.clone(),
            core.swim.clone(),
            core.endpoint.clone(),
            core.rng(),
            stopping.clone(),
        ));
        tasks.spawn(rival::run(core.clone(), stopping.clone()));
        tasks.spawn(core.heads.clone().run(core.endpoint.clone(), stopping.clone()));
        tasks.spawn(survey::run(core.clone(), stopping.clone()));
        tasks.spawn(upkeep::audit(core.clone(), stopping.clone()));
        tasks.spawn(upkeep::scrub(core.clone(), stopping.clone()));
        tasks.spawn(upkeep::trash(core.clone(), stopping.clone()));
        tasks.spawn(upkeep::compact(core.clone(), stopping.clone()));
        tasks.spawn(keep_time(core.clone(), stopping.clone()));
        tasks.spawn(tell_of_leaving(core.clone(), stopping));
        page.runs(core.clone());
        tracing::info!(
            node = %core.identity.node(),
            cluster = %cluster.short(),
            listen = %core.endpoint.local_address(),
            http = core.http.map(|address| address.to_string()).unwrap_or_else(|| "off".into()),
            "the node is running"
        );
        Ok(Self { core, stop, tasks: tokio::sync::Mutex::new(tasks), _lock: lock })
    }

    /// What the node's parts share.
    #[must_use]
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.core.identity.node()
    }

    /// Returns when the network endpoint has failed: the node is of no use any more.
    pub async fn failed(&self) {
        self.core.endpoint.failed().await;
    }

    /// Says goodbye, lets running calls end, writes what is to be kept, and ends.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        let mut tasks = self.tasks.lock().await;
        let ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_DEADLINE, ended).await.is_err() {
            tracing::warn!("some loops did not end in time");
        }
        tasks.abort_all();
        // Last, so that the goodbye still goes out.
        self.core.endpoint.close(STOP_DEADLINE).await;
        let written = self.core.write_running_time().and_then(|()| self.core.membership.persist());
        if let Err(error) = written.and_then(|()| self.core.write_contacts()) {
            tracing::error!(%error, "the node's state cannot be written to disk");
        }
        let core = self.core.clone();
        if let Err(error) = self.core.executor.run(move || core.store.close()).await {
            tracing::error!(%error, "the store was not closed in order");
        }
        tracing::info!("the node has stopped");
    }

    /// Gone without a goodbye, as by a power cut: nothing more is sent or written.
    pub async fn kill(self) {
        self.core.endpoint.abort();
        let _ = self.stop.send(true);
        let mut tasks = self.tasks.lock().await;
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
    }
}

impl Core {
    /// Where others are found, should the log be lost.
    fn write_contacts(&self) -> std::io::Result<()> {
        let table = self.membership.view().table.to_wire().encode_to_vec();
        durable::replace(&self.identity.folder.join(TABLE), &table)
    }

    fn write_running_time(&self) -> std::io::Result<()> {
        durable::replace(&self.identity.folder.join(RUNNING), &self.running_ms().to_le_bytes())
    }
}

/// Writes the running time down, and renews the record when it has become wrong: at once when this node is declared
/// lost, else within the interval.
async fn keep_time(core: Arc<Core>, mut stop: watch::Receiver<bool>) {
    let mut changes = core.membership.watch();
    let mut next = Instant::now() + RUNNING_INTERVAL;
    // Tried once between two ticks, so that a disk that fails is not written to without end.
    let mut revoked = false;
    loop {
        let lost = async { changes.wait_for(|view| is_lost(view)).await.is_ok() };
        let lost = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            lost = lost, if !revoked => lost,
            () = tokio::time::sleep_until(next) => false,
        };
        revoked = lost;
        if lost {
            tracing::warn!("this node was declared lost: it says that it is back");
        } else {
            next = Instant::now() + RUNNING_INTERVAL;
        }
        let shared = core.clone();
        let written = core.executor.run(move || {
            // A record that is not from here is outdone elsewhere, at a rate of its own.
            if shared.record_is_stale()? && shared.membership.rival().is_none() {
                shared.renew_record(Renewal::Change)?;
            }
            shared.write_running_time()
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the node's state cannot be written to disk"),
            Err(error) => tracing::error!(%error, "the node's state cannot be written to disk"),
        }
    }
}

/// When this node has left, tells enough others before it says so to its operator, who then switches it off.
async fn tell_of_leaving(core: Arc<Core>, mut stop: watch::Receiver<bool>) {
    let mut changes = core.membership.watch();
    let left = |view: &Arc<View>| view.table.record(&view.me).is_some_and(|record| record.left);
    let has_left = async { changes.wait_for(left).await.is_ok() };
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => return,
        has_left = has_left => if !has_left { return },
    }
    let mut told = BTreeSet::new();
    loop {
        let view = core.membership.view();
        let members = view.table.members().filter(|record| record.node() != view.me).count();
        let untold: Vec<NodeId> = view.others_up().filter(|node| !told.contains(node)).collect();
        for node in untold {
            if told.len() >= WITNESSES.min(members) {
                break;
            }
            match exchange::with(&core.membership, &core.swim, &core.endpoint, node).await {
                Ok(()) => _ = told.insert(node),
                Err(error) => tracing::debug!(with = %node.short(), %error, "not told that this node has left"),
            }
        }
        if told.len() >= WITNESSES.min(members) {
            core.left.store(true, Ordering::Relaxed);
            tracing::info!(told = told.len(), "others know that this node has left: it may be switched off");
            return;
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(TELL_INTERVAL) => {}
        }
    }
}

/// Shows the page, if there is to be one, until `stopping` is set. Returns where.
async fn serve_page(
    config: &Config,
    page: Arc<NodePage>,
    tasks: &mut JoinSet<()>,
    mut stopping: watch::Receiver<bool>,
) -> Result<Option<SocketAddr>, StartError> {
    let Some(address) = config.http else { return Ok(None) };
    let failed = |source| StartError::Http { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    tasks.spawn(async move {
        let stopped = async move {
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        if let Err(error) = http::serve(listener, page, stopped).await {
            tracing::error!(%error, "the HTTP page has ended");
        }
    });
    Ok(Some(bound))
}
