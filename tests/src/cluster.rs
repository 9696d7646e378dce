//! A whole cluster in one process on the simulated network: real node code, virtual time, shards in memory.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use potluck::session::{Environment, Home, VaultFolder};
use potluck_node::config::human::{ByteSize, Span};
use potluck_node::config::{Config, HttpAddress, Settings};
use potluck_node::gate::OperatorGate;
use potluck_node::identity;
use potluck_node::join::{Wish, join};
use potluck_node::node::{Bind, Node, OpenStore, Parts};
use potluck_node::store::ShardKey;
use potluck_node::store::segments::SegmentStore;
use potluck_node::store::segments::disk::faults::{Faults, FaultyDisk};
use potluck_node::store::segments::log::segment_name;
use potluck_proto::id::NodeId;
use potluck_proto::invite::InviteToken;
use potluck_proto::transport::{Executor, Limits, Peer};
use potluck_proto::wire::{self, admin, reply, request};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};

use crate::sim::{NetConfig, Network, seed_of};

/// The port of every simulated node.
const PORT: u16 = 4701;

/// The time of day at which simulations begin: any will do, since no decision hangs on it.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// Time between two looks at a condition that is waited for, in virtual time.
const POLL: Duration = Duration::from_millis(250);

/// Capacity of every simulated node, in bytes.
const CAPACITY: u64 = 64 << 30;

/// One node's place in the cluster, also while it does not run.
struct Slot {
    folder: PathBuf,
    ip: IpAddr,
    disk: FaultyDisk,
    /// Open also while the node does not run.
    store: Option<Arc<SegmentStore>>,
    node: Option<Node>,
    id: NodeId,
}

/// A copy of all that a node keeps.
pub struct Copied {
    folder: PathBuf,
    disk: FaultyDisk,
}

impl Slot {
    fn new(folder: PathBuf, ip: IpAddr, disk: FaultyDisk, id: NodeId) -> anyhow::Result<Self> {
        let store = Some(open(&disk)?);
        Ok(Self { folder, ip, disk, store, node: None, id })
    }

    /// The power fails: what was not synced is lost, or not.
    fn crash(&mut self) -> anyhow::Result<()> {
        self.store = None;
        self.disk.crash();
        self.store = Some(open(&self.disk)?);
        Ok(())
    }
}

fn open(disk: &FaultyDisk) -> anyhow::Result<Arc<SegmentStore>> {
    Ok(Arc::new(SegmentStore::simulated(disk.clone(), CAPACITY)?))
}

/// A client's machine on the network of a cluster.
pub struct Device {
    /// What its sessions use.
    pub environment: Environment,
    /// Its vault's folder.
    pub folder: VaultFolder,
    /// Where its sessions are, each at one of them.
    pub ips: Vec<IpAddr>,
}

/// Nodes on a simulated network.
pub struct SimCluster {
    /// The network, for partitions and loss.
    pub network: Network,
    seed: u64,
    folder: tempfile::TempDir,
    slots: Vec<Slot>,
    settings: Settings,
    hosts: u8,
    disks: u64,
    began: Instant,
}

/// Settings under which virtual minutes are enough: quick surveys, little patience.
#[must_use]
pub fn quick() -> Settings {
    Settings {
        http: Some(HttpAddress::Off),
        capacity: Some(ByteSize(CAPACITY)),
        background_budget: Some(ByteSize(1 << 30)),
        repair_lazy_after: Some(Span(Duration::from_secs(2))),
        lost_after: Some(Span(Duration::from_secs(60))),
        survey_interval: Some(Span(Duration::from_secs(5))),
        ..Settings::default()
    }
}

impl SimCluster {
    /// Founds a cluster with one node.
    pub async fn found(network: Network, seed: u64, settings: Settings) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut cluster =
            Self { network, seed, folder, slots: Vec::new(), settings, hosts: 0, disks: 0, began: Instant::now() };
        let data = cluster.new_folder()?;
        let mut rng = cluster.rng(1);
        let (_, cert) = identity::found(&data, Some("zone-0"), cluster.now_ms(), &mut rng)?;
        let ip = cluster.new_ip();
        let disk = cluster.new_disk();
        cluster.slots.push(Slot::new(data, ip, disk, cert.node())?);
        cluster.start(0).await?;
        Ok(cluster)
    }

    /// Adds nodes, in so many zones in turn, until there are `count`.
    pub async fn grow(&mut self, count: usize, zones: usize) -> anyhow::Result<()> {
        while self.slots.len() < count {
            let number = self.slots.len();
            let token = self.invite(false).await?;
            let data = self.new_folder()?;
            let ip = self.new_ip();
            let bind = self.bind(ip);
            let wish = Wish { zone: format!("zone-{}", number % zones), capacity: CAPACITY };
            let mut rng = self.rng(number as u64 + 1);
            let cert = join(&data, &token, wish, &bind, self.now_ms(), &mut rng).await?;
            let disk = self.new_disk();
            self.slots.push(Slot::new(data, ip, disk, cert.node())?);
            self.start(number).await?;
        }
        Ok(())
    }

    /// Starts a node, or starts it again with what it had.
    pub async fn start(&mut self, number: usize) -> anyhow::Result<()> {
        let slot = &self.slots[number];
        ensure!(slot.node.is_none(), "node {number} runs already");
        let (folder, ip, store) = (slot.folder.clone(), slot.ip, self.store(number).clone());
        let seed = self.seed ^ (number as u64) << 32;
        self.slots[number].node = Some(self.start_at(folder, ip, store, seed).await?);
        Ok(())
    }

    async fn start_at(&self, folder: PathBuf, ip: IpAddr, store: Arc<SegmentStore>, seed: u64) -> anyhow::Result<Node> {
        let address = SocketAddr::new(ip, PORT);
        let settings = Settings { listen: Some(address), advertise: Some(vec![address]), ..self.settings.clone() };
        let config: Config = settings.finish(folder)?;
        let open: OpenStore = Arc::new(move |_, _, _| Ok(store.clone()));
        let parts = Parts {
            bind: self.bind(ip),
            store: open,
            executor: Executor::inline(),
            clock: self.clock(),
            seed: Some(seed),
            limits: Limits::node(),
        };
        Ok(Node::start(config, parts).await?)
    }

    /// A copy of a node's data folder and log as they are now.
    pub fn copy_of(&self, number: usize) -> anyhow::Result<Copied> {
        let folder = self.new_folder()?;
        copy_files(&self.slots[number].folder, &folder)?;
        Ok(Copied { folder, disk: self.slots[number].disk.copy() })
    }

    /// Runs a second process with a copy, on a machine of its own.
    pub async fn start_copy(&mut self, copy: Copied) -> anyhow::Result<Node> {
        let ip = self.new_ip();
        self.start_at(copy.folder, ip, open(&copy.disk)?, self.seed ^ 0xc0 << 56).await
    }

    /// Puts a copy in the place of a node's own; the node does not run.
    pub fn restore(&mut self, number: usize, copy: Copied) -> anyhow::Result<()> {
        let slot = &mut self.slots[number];
        *slot = Slot::new(copy.folder, slot.ip, copy.disk, slot.id)?;
        Ok(())
    }

    /// Ends a node without a goodbye, as a power cut does.
    ///
    /// # Panics
    ///
    /// If its store does not open again.
    pub async fn kill(&mut self, number: usize) {
        if let Some(node) = self.slots[number].node.take() {
            self.network.kill(SocketAddr::new(self.slots[number].ip, PORT));
            node.kill().await;
            self.crash(number);
        }
    }

    #[expect(clippy::expect_used, reason = "a harness of tests")]
    fn crash(&mut self, number: usize) {
        self.slots[number].crash().expect("a store opens after a crash");
    }

    /// Ends a node without a goodbye and loses all that it kept.
    ///
    /// # Panics
    ///
    /// If an empty store does not open.
    pub async fn destroy(&mut self, number: usize) {
        self.kill(number).await;
        self.slots[number].disk = self.new_disk();
        self.crash(number);
    }

    /// Ends a node in good order. Then the power fails: a good end leaves nothing that it could take.
    ///
    /// # Panics
    ///
    /// If its store does not open again.
    pub async fn stop(&mut self, number: usize) {
        if let Some(node) = self.slots[number].node.take() {
            node.stop().await;
            self.crash(number);
        }
    }

    /// How many nodes there ever were.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Never: a cluster has its founder.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// A running node.
    #[must_use]
    pub fn node(&self, number: usize) -> Option<&Node> {
        self.slots[number].node.as_ref()
    }

    /// A node's id.
    #[must_use]
    pub fn id(&self, number: usize) -> NodeId {
        self.slots[number].id
    }

    /// A node's address on the network.
    #[must_use]
    pub fn ip(&self, number: usize) -> IpAddr {
        self.slots[number].ip
    }

    /// A node's shards, also while it does not run.
    #[must_use]
    ///
    /// # Panics
    ///
    /// Never: it is open between any two calls.
    #[expect(clippy::expect_used, reason = "a harness of tests")]
    pub fn store(&self, number: usize) -> &Arc<SegmentStore> {
        self.slots[number].store.as_ref().expect("an open store")
    }

    /// Changes a byte of a shard on a node's disk. False if it is not there.
    pub fn damage(&self, number: usize, key: ShardKey) -> bool {
        let entry = self.store(number).with_table(|table| table.entry(&key));
        entry.is_some_and(|entry| {
            self.slots[number].disk.damage(&segment_name(entry.place.segment), entry.place.offset + entry.extent() / 2)
        })
    }

    /// All nodes that run.
    pub fn running(&self) -> impl Iterator<Item = &Node> {
        self.slots.iter().filter_map(|slot| slot.node.as_ref())
    }

    /// Makes an invite as the founder's operator does.
    pub async fn invite(&mut self, vault: bool) -> anyhow::Result<InviteToken> {
        let invite = admin::Invite { vault, valid_for_s: 86_400, ..Default::default() };
        Ok(self.operate(admin::Kind::Invite(invite)).await?.token.parse()?)
    }

    /// Throws a node out as the founder's operator does.
    pub async fn evict(&mut self, number: usize) -> anyhow::Result<()> {
        let node = bytes::Bytes::copy_from_slice(self.id(number).as_bytes());
        self.operate(admin::Kind::Evict(admin::State { node })).await.map(|_| ())
    }

    /// Declares a node lost as the founder's operator does.
    pub async fn declare_lost(&mut self, number: usize) -> anyhow::Result<()> {
        let node = bytes::Bytes::copy_from_slice(self.id(number).as_bytes());
        self.operate(admin::Kind::Lost(admin::State { node })).await.map(|_| ())
    }

    /// One call of the founder's operator.
    async fn operate(&mut self, kind: admin::Kind) -> anyhow::Result<wire::AdminReply> {
        let founder = &self.slots[0];
        let (key, cert) = identity::operator(&founder.folder)?;
        let peer = Peer { key: cert.node().into(), addresses: vec![SocketAddr::new(founder.ip, PORT)] };
        let ip = self.new_ip();
        // An operator sits at the node's machine.
        self.network.set_way(ip, self.slots[0].ip, NetConfig::perfect());
        let endpoint = (self.bind(ip))(&key, Arc::new(OperatorGate { cert }), Limits::client())?;
        let call = request::Kind::Admin(wire::Admin { kind: Some(kind) });
        let answer = endpoint.call(&peer, call, Vec::new(), Duration::from_secs(30)).await;
        endpoint.close(Duration::from_secs(1)).await;
        match answer.context("the founder refuses its operator")?.0 {
            reply::Kind::Admin(reply) => Ok(reply),
            _ => bail!("another kind of answer"),
        }
    }

    /// Waits, in virtual time, until `condition` holds.
    pub async fn until(&self, what: &str, limit: Duration, condition: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        while !condition(self) {
            ensure!(Instant::now() < deadline, "seed {}: not within {limit:?}: {what}", self.seed);
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until every running node has all running nodes up and nobody else.
    pub async fn settled(&self, limit: Duration) -> anyhow::Result<()> {
        let waited = self.until("all see who runs", limit, |cluster| cluster.mistaken().is_empty()).await;
        waited.with_context(|| self.mistaken().join("; "))
    }

    /// In what the running nodes are wrong about who runs.
    #[must_use]
    pub fn mistaken(&self) -> Vec<String> {
        let mut mistaken = Vec::new();
        for (number, slot) in self.slots.iter().enumerate() {
            let Some(node) = &slot.node else { continue };
            let view = node.core().membership.view();
            for (other, other_slot) in self.slots.iter().enumerate() {
                match (other_slot.node.is_some(), view.is_up(&other_slot.id)) {
                    (true, false) => mistaken.push(format!("{number} has {other} for down")),
                    (false, true) => mistaken.push(format!("{number} has {other} for up")),
                    _ => {}
                }
            }
        }
        mistaken
    }

    /// Makes endpoints on a host of its own.
    #[must_use]
    pub fn bind(&self, ip: IpAddr) -> Bind {
        let (network, seed) = (self.network.clone(), self.seed);
        Arc::new(move |key, gate, limits| {
            let (socket, runtime) = network.host_at(SocketAddr::new(ip, PORT));
            let number = u64::from(u32::from_be_bytes(match ip {
                IpAddr::V4(ip) => ip.octets(),
                IpAddr::V6(_) => [0; 4],
            }));
            potluck_proto::transport::Endpoint::with_socket(
                socket,
                runtime,
                Some(seed_of(seed, number)),
                key,
                gate,
                limits,
            )
        })
    }

    /// A client's machine, of which the sessions' keys come from this number.
    pub fn device(&mut self, number: u64) -> anyhow::Result<Device> {
        /// A session binds anew for each key that it speaks with; on one address the second would find the first.
        const ADDRESSES: usize = 4;
        let ips: Vec<IpAddr> = (0..ADDRESSES).map(|_| self.new_ip()).collect();
        let binds: Vec<Bind> = ips.iter().map(|ip| self.bind(*ip)).collect();
        let next = Arc::new(AtomicUsize::new(0));
        let bind: potluck::session::Bind = Arc::new(move |key, gate, limits| {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            (binds[turn % ADDRESSES])(key, gate, limits)
        });
        let (clock, seed) = (self.clock(), Some(self.seed + number));
        let environment = Environment { bind, executor: Executor::inline(), clock, seed };
        let folder = Home::at(self.new_folder()?).vault("default")?;
        Ok(Device { environment, folder, ips })
    }

    /// An address that nobody has had.
    pub fn new_ip(&mut self) -> IpAddr {
        self.hosts += 1;
        Ipv4Addr::new(10, 0, 0, self.hosts).into()
    }

    /// The simulated time of day.
    #[must_use]
    pub fn clock(&self) -> potluck_node::WallClock {
        let began = self.began;
        Arc::new(move || EPOCH_MS + began.elapsed().as_millis() as u64)
    }

    /// A folder of its own below the cluster's, gone with it.
    pub fn new_folder(&self) -> anyhow::Result<PathBuf> {
        let folder = self.folder.path().join(format!("{}", std::fs::read_dir(self.folder.path())?.count()));
        std::fs::create_dir(&folder)?;
        Ok(folder)
    }

    fn new_disk(&mut self) -> FaultyDisk {
        self.disks += 1;
        FaultyDisk::new(self.seed ^ self.disks << 40, 2 * CAPACITY, Faults::default())
    }

    fn rng(&self, number: u64) -> StdRng {
        StdRng::from_seed(seed_of(self.seed, 1_000_000 + number))
    }

    fn now_ms(&self) -> u64 {
        (self.clock())()
    }
}

fn copy_files(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target)?;
            copy_files(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
