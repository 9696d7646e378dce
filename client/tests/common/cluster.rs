//! A cluster in this process for tests: its nodes on loopback and in temporary folders, everything else as it is for users.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::Cursor;
use std::net::SocketAddr;
use std::time::Duration;

use potluck::session::{Environment, Home, Meta, Progress, Session, VaultFolder, Writer};
use potluck::vault::keyfile::Protection;
use potluck::vault::path;
use potluck::vault::sheet::RecoverySheet;
use potluck_node::config::human::ByteSize;
use potluck_node::config::{HttpAddress, Settings};
use potluck_node::identity;
use potluck_node::join::{Wish, join};
use potluck_node::membership::View;
use potluck_node::node::{Node, Parts, bind_udp, system_clock};
use potluck_proto::invite::{InviteKind, InviteToken};
use potluck_proto::stripe::Scheme;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

/// Whatever a test waits for comes within this time, or the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng(seed).fill_bytes(&mut bytes);
    bytes
}

/// A cluster on loopback.
pub(crate) struct Cluster {
    pub(crate) folder: TempDir,
    pub(crate) nodes: Vec<Option<Node>>,
}

impl Cluster {
    pub(crate) async fn of(count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = Self { folder, nodes: Vec::new() };
        for index in 0..count {
            let data = cluster.folder.path().join(format!("node-{index}"));
            let local = SocketAddr::from(([127, 0, 0, 1], 0));
            if index == 0 {
                identity::found(&data, None, system_clock()(), &mut rng(1)).unwrap();
            } else {
                let token = cluster.invite(InviteKind::Node, index as u64);
                let mut rng = rng(100 + index as u64);
                join(&data, &token, Wish::default(), &bind_udp(local), system_clock()(), &mut rng).await.unwrap();
            }
            let settings = Settings {
                listen: Some(local),
                http: Some(HttpAddress::Off),
                capacity: Some(ByteSize(8 << 30)),
                ..Settings::default()
            };
            let config = settings.finish(data).unwrap();
            let parts = Parts::real(&config);
            cluster.nodes.push(Some(Node::start(config, parts).await.unwrap()));
        }
        cluster.meet().await;
        cluster
    }

    /// Waits until every node knows and reaches all others.
    async fn meet(&self) {
        let all = self.nodes.len();
        self.all_see("the nodes do not find each other", |members, up| members == all && up == all).await;
    }

    /// Waits until those that live have noticed that only so many do.
    pub(crate) async fn know_the_dead(&self, up: u64) {
        self.all_see("the dead are not noticed", |_, seen| seen as u64 == up).await;
    }

    /// Waits until `right` says so of what every live node sees: how many members there are, and how many are up.
    async fn all_see(&self, failed: &str, right: impl Fn(usize, usize) -> bool) {
        let sees = |view: &View| {
            let up = view.table.members().filter(|record| view.is_up(&record.node())).count();
            right(view.table.members().count(), up)
        };
        let all = async {
            // One after the other, then once more for those that have changed their minds meanwhile.
            while !self.nodes.iter().flatten().all(|node| sees(&node.core().membership.view())) {
                for node in self.nodes.iter().flatten() {
                    node.core().membership.watch().wait_for(|view| sees(view)).await.unwrap();
                }
            }
        };
        assert!(tokio::time::timeout(PATIENCE, all).await.is_ok(), "{failed}");
    }

    pub(crate) fn invite(&self, kind: InviteKind, seed: u64) -> InviteToken {
        let core = self.nodes[0].as_ref().unwrap().core();
        let mut secret = [0; 16];
        rng(1000 + seed).fill_bytes(&mut secret);
        let now_s = system_clock()() / 1000;
        core.invites.add(&secret, kind, "", 0, now_s + 3600, now_s).unwrap();
        InviteToken {
            kind,
            cluster: core.identity.cert.cluster(),
            inviter: core.identity.node(),
            secret,
            expires_s: now_s + 3600,
            addresses: vec![core.endpoint.local_address()],
        }
    }

    /// Another vault's folder, as on another machine.
    pub(crate) fn machine(&self, name: &str) -> VaultFolder {
        Home::at(self.folder.path().join(name)).vault("test").unwrap()
    }

    pub(crate) async fn vault(&self, machine: &str, scheme: Option<&str>) -> (Session, RecoverySheet) {
        let scheme: Option<Scheme> = scheme.map(|scheme| scheme.parse().unwrap());
        let (env, token) = (Environment::real().unwrap(), self.invite(InviteKind::Vault, 77));
        let folder = self.machine(machine);
        Session::create(&env, folder, &token, Protection::Bare, scheme).await.unwrap()
    }

    pub(crate) async fn kill(&mut self, index: usize) {
        self.nodes[index].take().unwrap().kill().await;
    }

    pub(crate) async fn end(self) {
        for node in self.nodes.into_iter().flatten() {
            node.kill().await;
        }
    }
}

pub(crate) async fn put(writer: &mut Writer, path: &str, bytes: &[u8]) {
    let meta = Meta { mode: 0o644, mtime_ns: 7 };
    writer.put_file(path::file(path).unwrap(), meta, Cursor::new(bytes.to_vec()), &Progress::default()).await.unwrap();
}
