//! The demo's cluster: real nodes in this process, each with its own identity, data folder and QUIC port.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use potluck_node::config::human::{ByteSize, Span};
use potluck_node::config::{Config, HttpAddress, Settings};
use potluck_node::identity;
use potluck_node::join::{Wish, join};
use potluck_node::node::{Node, Parts, bind_udp, system_clock};
use potluck_node::store::segments::disk::STORE_FOLDER;
use potluck_proto::id::NodeId;
use potluck_proto::invite::{InviteKind, InviteToken, SECRET_LEN};
use potluck_proto::transport::Executor;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{NODES, ZONES};
use crate::cli::meter::Meter;

/// Disk and CPU work of all nodes at once: they share one machine.
const WORKERS: usize = 8;

/// What each node offers, in bytes; equal weights make equal shares.
const CAPACITY: u64 = 1 << 40;

/// The nodes' background work may use the whole machine here.
const BUDGET: u64 = 1 << 30;

/// Repair begins soon: the demo is short.
const LAZY_AFTER: Duration = Duration::from_millis(500);

/// Time between two surveys.
const SURVEY: Duration = Duration::from_millis(500);

/// How long the nodes may take to find each other.
const MEET_DEADLINE: Duration = Duration::from_secs(30);

/// Time between two looks whether they have.
const MEET_LOOK: Duration = Duration::from_millis(20);

/// How long an invite is good for, in seconds.
const INVITE_S: u64 = 7 * 86_400;

/// One of them.
struct Member {
    id: NodeId,
    config: Config,
    /// None while it is dead.
    node: Option<Node>,
}

/// All of them. The order matters: nodes end before their folder goes.
pub(super) struct Nodes {
    members: Vec<Member>,
    executor: Executor,
    rng: StdRng,
    /// Whether each serves a page with metrics.
    pages: bool,
    folder: Folder,
}

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // A thread may be writing its last file.
        for _ in 0..10 {
            match std::fs::remove_dir_all(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                _ => return,
            }
        }
    }
}

impl Nodes {
    pub(super) fn in_temporary_folder(pages: bool) -> anyhow::Result<Self> {
        let mut rng = StdRng::try_from_rng(&mut rand::rngs::SysRng).context("the system gives no randomness")?;
        let folder = std::env::temp_dir().join(format!("potluck-demo-{:08x}", rng.next_u32()));
        std::fs::create_dir(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        Ok(Self { members: Vec::new(), executor: Executor::threads(WORKERS), rng, pages, folder: Folder(folder) })
    }

    /// The folder of everything.
    pub(super) fn folder(&self) -> &Path {
        &self.folder.0
    }

    fn settings(&self) -> Settings {
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        Settings {
            listen: Some(local),
            http: Some(if self.pages { HttpAddress::On(local) } else { HttpAddress::Off }),
            capacity: Some(ByteSize(CAPACITY)),
            background_budget: Some(ByteSize(BUDGET)),
            repair_lazy_after: Some(Span(LAZY_AFTER)),
            survey_interval: Some(Span(SURVEY)),
            ..Settings::default()
        }
    }

    async fn start(&self, config: &Config) -> anyhow::Result<Node> {
        let parts = Parts { executor: self.executor.clone(), ..Parts::real(config) };
        Ok(Node::start(config.clone(), parts).await?)
    }

    /// Founds the cluster with the first node; the others join with an invite each.
    pub(super) async fn found_and_join(&mut self, meter: &Meter) -> anyhow::Result<()> {
        for index in 0..NODES {
            let data = self.folder().join(format!("node-{:02}", index + 1));
            let zone = ZONES[index % ZONES.len()];
            let cert = if index == 0 {
                identity::found(&data, Some(zone), system_clock()(), &mut self.rng)?.1
            } else {
                let token = self.invite(InviteKind::Node)?;
                let wish = Wish { zone: zone.into(), capacity: 0 };
                let bind = bind_udp(SocketAddr::from(([127, 0, 0, 1], 0)));
                join(&data, &token, wish, &bind, system_clock()(), &mut self.rng).await?
            };
            let config = self.settings().finish(data)?;
            let node = self.start(&config).await?;
            self.members.push(Member { id: cert.node(), config, node: Some(node) });
            meter.add(1);
        }
        meter.say("finding each other");
        self.meet().await
    }

    async fn meet(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + MEET_DEADLINE;
        let all = self.members.len() as u64;
        let met = || {
            self.running().all(|node| {
                let status = node.core().status();
                status.members == all && status.members_up == all
            })
        };
        while !met() {
            if Instant::now() >= deadline {
                let seen = self.running().map(|node| {
                    let status = node.core().status();
                    format!("{} knows {} and reaches {}", node.id().short(), status.members, status.members_up)
                });
                let seen = seen.collect::<Vec<_>>().join(", ");
                bail!("the {all} nodes did not find each other within {} s: {seen}", MEET_DEADLINE.as_secs());
            }
            tokio::time::sleep(MEET_LOOK).await;
        }
        Ok(())
    }

    /// An invite by the founder.
    pub(super) fn invite(&mut self, kind: InviteKind) -> anyhow::Result<InviteToken> {
        let mut secret = [0; SECRET_LEN];
        self.rng.fill_bytes(&mut secret);
        let founder = self.members.first().and_then(|member| member.node.as_ref());
        let core = founder.context("the founder is down")?.core();
        let now_s = system_clock()() / 1000;
        core.invites.add(&secret, kind, "", 0, now_s + INVITE_S, now_s)?;
        Ok(InviteToken {
            kind,
            cluster: core.identity.cert.cluster(),
            inviter: core.identity.node(),
            secret,
            expires_s: now_s + INVITE_S,
            addresses: vec![core.endpoint.local_address()],
        })
    }

    /// The node that founded the cluster.
    pub(super) fn founder(&self) -> NodeId {
        self.members.first().map_or(NodeId([0; 32]), |member| member.id)
    }

    /// Every node's zone.
    pub(super) fn zones(&self) -> BTreeMap<NodeId, String> {
        self.members.iter().enumerate().map(|(index, member)| (member.id, ZONES[index % ZONES.len()].into())).collect()
    }

    /// The nodes that run.
    pub(super) fn running(&self) -> impl Iterator<Item = &Node> {
        self.members.iter().filter_map(|member| member.node.as_ref())
    }

    /// Their ids.
    pub(super) fn alive(&self) -> Vec<NodeId> {
        self.running().map(Node::id).collect()
    }

    /// Bytes of live shards on all that run.
    pub(super) fn used(&self) -> u64 {
        self.running().map(|node| node.core().store.usage().live).sum()
    }

    /// Bytes that those that run have rebuilt.
    pub(super) fn repaired_bytes(&self) -> u64 {
        self.running().map(|node| node.core().status().repaired_bytes).sum()
    }

    /// Ends nodes as by a power cut, and wipes their stores.
    pub(super) async fn kill(&mut self, which: &[NodeId]) -> anyhow::Result<()> {
        for member in self.members.iter_mut().filter(|member| which.contains(&member.id)) {
            if let Some(node) = member.node.take() {
                node.kill().await;
            }
            let path = member.config.data.join(STORE_FOLDER);
            match std::fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot wipe {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Starts the dead ones again, with empty disks.
    pub(super) async fn revive(&mut self) -> anyhow::Result<()> {
        for index in 0..self.members.len() {
            if self.members[index].node.is_none() {
                let config = self.members[index].config.clone();
                self.members[index].node = Some(self.start(&config).await?);
            }
        }
        self.meet().await
    }

    /// Ends all; the folder goes with this.
    pub(super) async fn end(mut self) {
        for member in &mut self.members {
            if let Some(node) = member.node.take() {
                node.kill().await;
            }
        }
    }
}
