//! Sessions over nodes in memory: what becomes of a commit that too few replicas took, or that replicas forget.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use potluck_proto::cert::{DeviceCert, Rights};
use potluck_proto::id::{DeviceId, NodeId};
use potluck_proto::key::SecretKey;
use potluck_proto::replica::Replica;
use potluck_proto::transport::{Endpoint, Executor};
use tempfile::TempDir;
use tokio::time::Instant;

use super::home::Profile;
use super::*;
use crate::cluster::tests::fake::{Fault, World};
use crate::cluster::{Stale, WriteHeadError};
use crate::vault::keys::VaultSecret;

/// Three nodes, of which two are a quorum, and a device.
struct Setup {
    world: World,
    nodes: Vec<NodeId>,
    device: Session,
    _home: TempDir,
}

impl Setup {
    async fn new() -> Self {
        let vault = VaultSecret::from_bytes([7; 32]);
        let world = World::with_vault(3, vault.keys().signing().clone());
        let home = tempfile::tempdir().unwrap();
        let folder = Home::at(home.path().into()).vault("test").unwrap();
        folder.make().unwrap();
        let env = Environment {
            bind: Arc::new(|key, gate, limits| Endpoint::bind("127.0.0.1:0".parse().unwrap(), key, gate, limits)),
            executor: Executor::inline(),
            clock: Arc::new(|| 1_000),
            seed: Some(1),
        };
        let secrets = DeviceSecrets { device: SecretKey::from_seed(&[8; 32]), vault };
        let keys = secrets.vault.keys();
        let device = DeviceId::from(secrets.device.public());
        let cert = DeviceCert::issue(keys.signing(), device, Rights::ALL, 0, 0);
        let profile = Profile { cluster: world.cluster(), vault: keys.vault(), scheme: None };
        let certs = (cert, world.vault_cert());
        let device = setup::assemble(&env, folder, secrets, certs, &world.members(), profile).unwrap();
        device.inner.cluster.connect().await.unwrap();
        let nodes = world.nodes.keys().copied().collect();
        Self { world, nodes, device, _home: home }
    }

    fn set(&self, faults: [Fault; 3]) {
        self.nodes.iter().zip(faults).for_each(|(node, fault)| self.world.set(*node, fault));
    }

    fn replica(&self, index: usize) -> Replica {
        self.world.nodes[&self.nodes[index]].1.state().replicas[&self.device.vault_id()].clone()
    }

    fn set_replica(&self, index: usize, replica: Replica) {
        let vault = self.device.vault_id();
        self.world.nodes[&self.nodes[index]].1.state().replicas.insert(vault, replica);
    }

    async fn try_put(&self, name: &'static str) -> Result<(), SessionError> {
        let mut writer = self.device.writer_within(Duration::ZERO).await?;
        writer.put_file(name.into(), Meta::default(), Cursor::new(name), &Progress::default()).await?;
        writer.commit().await.map(drop)
    }

    async fn put(&self, name: &'static str) {
        self.try_put(name).await.unwrap();
    }

    async fn names(&self) -> Vec<String> {
        let state = self.device.state().await.unwrap();
        let reader = self.device.reader(&state);
        let (mut scan, mut names) = (reader.scan(Bytes::new()), Vec::new());
        while let Some((key, _)) = scan.next().await.unwrap() {
            names.push(String::from_utf8(key.to_vec()).unwrap());
        }
        names
    }

    /// Reads until all of `wanted` are there: a replica may answer a moment after a quorum has.
    async fn comes_to_hold(&self, wanted: &[&str]) {
        let over = Instant::now() + Duration::from_secs(20);
        loop {
            let names = self.names().await;
            if names == wanted {
                return;
            }
            assert!(Instant::now() < over, "{names:?} instead of {wanted:?}");
        }
    }
}

const ALL: [Fault; 3] = [Fault::None; 3];

#[tokio::test]
async fn what_too_few_replicas_took_is_never_an_ancestor_of_a_state_without_it() {
    let setup = Setup::new().await;
    setup.put("a").await;
    setup.set([Fault::None, Fault::HeadsRefused, Fault::HeadsRefused]);
    let error = setup.try_put("b").await.unwrap_err();
    assert!(matches!(error, SessionError::Head(WriteHeadError::Refused(_))), "{error}");
    // The one that took it is away when the next is put, and comes back.
    setup.set([Fault::HeadsAway, Fault::None, Fault::None]);
    setup.put("c").await;
    assert_eq!(setup.names().await, ["a", "c"]);
    setup.set(ALL);
    setup.comes_to_hold(&["a", "b", "c"]).await;
    setup.put("d").await;
    setup.comes_to_hold(&["a", "b", "c", "d"]).await;
}

#[tokio::test]
async fn a_quorum_that_has_not_settled_and_tells_less_than_was_seen_is_not_built_upon() {
    let setup = Setup::new().await;
    setup.put("a").await;
    let old = setup.replica(1);
    setup.put("b").await;
    let list = setup.world.head_list(&setup.device.vault_id());
    let forgetful = || {
        let mut replica = Replica::default();
        replica.follow(&list, None);
        assert!(old.heads().iter().all(|head| replica.write(head.clone()).is_ok()));
        assert!(!replica.settled());
        replica
    };
    setup.set_replica(1, forgetful());
    setup.set_replica(2, forgetful());
    setup.set([Fault::HeadsAway, Fault::None, Fault::None]);
    let refused = setup.try_put("c").await.unwrap_err();
    assert!(matches!(refused, SessionError::NoQuorum(Stale::Unsettled { .. })), "{refused}");
    setup.set(ALL);
    setup.comes_to_hold(&["a", "b"]).await;
    setup.put("c").await;
    setup.comes_to_hold(&["a", "b", "c"]).await;
}

#[tokio::test]
async fn what_comes_back_after_a_rollback_was_accepted_is_merged() {
    let setup = Setup::new().await;
    setup.put("a").await;
    let old = [0, 1, 2].map(|index| setup.replica(index));
    setup.put("b").await;
    let newer = setup.replica(0);
    old.into_iter().enumerate().for_each(|(index, replica)| setup.set_replica(index, replica));
    let refused = setup.try_put("c").await.unwrap_err();
    assert!(matches!(refused, SessionError::RolledBack { .. }), "{refused}");
    assert!(refused.to_string().contains("potluck vault accept-rollback"), "{refused}");
    let shown = setup.device.state().await.unwrap();
    assert!(shown.rollback.is_some());
    setup.device.accept_rollback(&shown).unwrap();
    setup.put("c").await;
    assert_eq!(setup.names().await, ["a", "c"]);
    for head in newer.heads().iter() {
        // Refused where it is taken for an ancestor of what is there.
        let mut replica = setup.replica(0);
        replica.write(head.clone()).unwrap();
        setup.set_replica(0, replica);
    }
    setup.comes_to_hold(&["a", "b", "c"]).await;
}
