//! A cluster in this process on loopback: real sockets, real time, shards in files; for tests that need what a simulation
//! has not, such as the HTTP page.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use potluck_node::config::Settings;
use potluck_node::config::human::{ByteSize, Span};
use potluck_node::identity;
use potluck_node::join::{Wish, join};
use potluck_node::node::{Node, Parts, bind_udp, system_clock};
use potluck_proto::invite::{InviteKind, InviteToken, SECRET_LEN};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

/// Time between two looks at a condition that is waited for.
const POLL: Duration = Duration::from_millis(50);

/// How long a token may be redeemed, in seconds.
const VALID_S: u64 = 3600;

/// Nodes on loopback.
pub struct LocalCluster {
    folder: tempfile::TempDir,
    nodes: Vec<Option<Node>>,
    rng: StdRng,
}

/// Settings under which seconds are enough.
#[must_use]
pub fn quick() -> Settings {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Settings {
        listen: Some(any),
        http: Some(potluck_node::config::HttpAddress::On(any)),
        capacity: Some(ByteSize(8 << 30)),
        background_budget: Some(ByteSize(1 << 30)),
        repair_lazy_after: Some(Span(Duration::from_secs(1))),
        survey_interval: Some(Span(Duration::from_secs(1))),
        ..Settings::default()
    }
}

impl LocalCluster {
    /// Starts so many nodes, each in a zone of its own, and waits until all know all.
    pub async fn start(count: usize, settings: &Settings, patience: Duration) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let rng = StdRng::try_from_rng(&mut rand::rngs::SysRng).context("no randomness")?;
        let mut cluster = Self { folder, nodes: Vec::new(), rng };
        for number in 0..count {
            let data = cluster.path(&format!("node-{number}"));
            if number == 0 {
                identity::found(&data, None, system_clock()(), &mut cluster.rng)?;
            } else {
                let token = cluster.invite(InviteKind::Node)?;
                let bind = bind_udp(SocketAddr::from(([127, 0, 0, 1], 0)));
                join(&data, &token, Wish::default(), &bind, system_clock()(), &mut cluster.rng).await?;
            }
            let config = settings.clone().finish(data)?;
            let parts = Parts::real(&config);
            cluster.nodes.push(Some(Node::start(config, parts).await?));
        }
        let all = count as u64;
        cluster
            .until("all nodes know all", patience, |cluster| {
                cluster.running().all(|node| {
                    let status = node.core().status();
                    (status.members, status.members_up) == (all, all)
                })
            })
            .await?;
        Ok(cluster)
    }

    /// Makes an invite.
    pub fn invite(&mut self, kind: InviteKind) -> anyhow::Result<InviteToken> {
        let mut secret = [0; SECRET_LEN];
        self.rng.fill_bytes(&mut secret);
        let core = self.nodes[0].as_ref().context("the founder does not run")?.core();
        let now_s = system_clock()() / 1000;
        core.invites.add(&secret, kind, "", 0, now_s + VALID_S, now_s)?;
        Ok(InviteToken {
            kind,
            cluster: core.identity.cert.cluster(),
            inviter: core.identity.node(),
            secret,
            expires_s: now_s + VALID_S,
            addresses: vec![core.endpoint.local_address()],
        })
    }

    /// The nodes that run.
    pub fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    /// Ends a node without a goodbye.
    pub async fn kill(&mut self, number: usize) {
        if let Some(node) = self.nodes[number].take() {
            node.kill().await;
        }
    }

    /// A path in the cluster's temporary folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        Path::join(self.folder.path(), name)
    }

    /// Waits until `condition` holds.
    pub async fn until(&self, what: &str, patience: Duration, condition: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        while !condition(self) {
            ensure!(Instant::now() < deadline, "not within {patience:?}: {what}");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}
