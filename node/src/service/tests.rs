//! What a device is told of stripes of another vault: nothing, by any call. And what is set aside for answers.

use super::*;
use std::path::Path;

use potluck_proto::blocks;
use potluck_proto::id::Digest;
use potluck_proto::key::SecretKey;
use potluck_proto::stripe::{Scheme, SignedHeader, StripeHeader, shard_len};
use potluck_proto::transport::Executor;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::config::human::ByteSize;
use crate::config::{HttpAddress, Settings};
use crate::identity;
use crate::node::{Node, Parts};
use crate::store::ShardKey;
use crate::store::segments::SegmentStore;
use crate::store::segments::disk::faults::{Faults, FaultyDisk};

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

/// The only node of its cluster, with its shards in memory.
async fn node(folder: &Path) -> Node {
    identity::found(folder, None, 0, &mut StdRng::seed_from_u64(1)).unwrap();
    let settings = Settings {
        listen: Some(([127, 0, 0, 1], 0).into()),
        http: Some(HttpAddress::Off),
        capacity: Some(ByteSize(1 << 30)),
        ..Settings::default()
    };
    let config = settings.finish(folder.into()).unwrap();
    let disk = FaultyDisk::new(1, 1 << 30, Faults::default());
    let store = Arc::new(SegmentStore::simulated(disk, 1 << 30).unwrap());
    let parts = Parts {
        store: Arc::new(move |_, _, _| Ok(store.clone())),
        executor: Executor::inline(),
        seed: Some(1),
        ..Parts::real(&config)
    };
    Node::start(config, parts).await.unwrap()
}

/// A stripe of 1+3 of the vault with this key; each of its shards is the data itself.
fn stripe(vault: &SecretKey, data: &[u8]) -> SignedHeader {
    let writer = key(9);
    let shard_len = shard_len(data.len(), 1);
    assert_eq!(shard_len, data.len());
    let device = DeviceCert::issue(vault, writer.public().into(), Rights::ALL, 0, 0);
    StripeHeader {
        vault: device.vault(),
        device,
        born: 0,
        created_ms: 0,
        scheme: Scheme::new(1, 3).unwrap(),
        shard_len: shard_len as u32,
        data_len: data.len() as u32,
        shards: vec![Digest(*blake3::hash(data).as_bytes()); 4],
    }
    .sign(&writer)
}

fn device_of_vault(vault: &SecretKey) -> Caller {
    let cert = DeviceCert::issue(vault, key(7).public().into(), Rights::ALL, 0, 0);
    Caller { key: key(7).public(), role: Role::Device(cert), address: ([127, 0, 0, 1], 1).into() }
}

#[tokio::test]
async fn a_device_is_told_nothing_of_another_vaults_stripes() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path()).await;
    let core = node.core();
    let data = vec![5; 128 << 10];
    let header = stripe(&key(3), &data);
    let (_, tree) = blocks::hash_shard(&data);
    assert!(core.store.put(&header, 2, &data, &tree, 0).unwrap());
    let id = Bytes::copy_from_slice(header.id().as_bytes());
    let get = wire::GetShard { stripe: id.clone(), index: Some(2), ..Default::default() };
    let check = wire::CheckShard { stripe: id.clone(), index: 2 };
    let have = wire::HaveShards { stripes: vec![id.clone()] };
    let alert = wire::Alert { stripe: id.clone() };

    let stranger = device_of_vault(&key(4));
    assert_eq!(shards::get(core, &stranger, get.clone()).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(shards::check(core, &stranger, check.clone()).await.unwrap_err().code(), Code::NotFound);
    let told = shards::have(core, &stranger, have.clone()).await.unwrap();
    assert_eq!(told.holdings, [wire::Holding::default()]);
    core.alerts.take();
    shards::alert(core, &stranger, alert.clone()).await.unwrap();
    assert!(core.alerts.take().is_empty());

    let cert = core.identity.cert.clone();
    let peer = Caller { key: key(2).public(), role: Role::Node(cert), address: ([127, 0, 0, 1], 1).into() };
    for caller in [device_of_vault(&key(3)), peer] {
        assert_eq!(shards::get(core, &caller, get.clone()).await.unwrap().payload.concat().len(), data.len());
        assert!(shards::check(core, &caller, check.clone()).await.unwrap().sound);
        let told = shards::have(core, &caller, have.clone()).await.unwrap();
        assert_eq!(told.holdings[0].live, [2]);
        shards::alert(core, &caller, alert.clone()).await.unwrap();
        assert!(core.alerts.take().contains(&header.id()));
    }
    node.stop().await;
}

#[tokio::test]
async fn a_whole_shard_is_reserved_for_at_its_full_length() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path()).await;
    let data = vec![5; 9 << 20];
    let header = stripe(&key(3), &data);
    let (_, tree) = blocks::hash_shard(&data);
    assert!(node.core().store.put(&header, 0, &data, &tree, 0).unwrap());
    let service = NodeService(node.core().clone());
    let reserved = |stripe: &[u8], index, length| {
        let call = wire::GetShard { stripe: Bytes::copy_from_slice(stripe), index, offset: 0, length };
        service.answer_bytes(&request::Kind::GetShard(call))
    };
    let held = header.id();
    assert!(reserved(held.as_bytes(), Some(0), 0) >= data.len());
    assert!(reserved(held.as_bytes(), None, 0) >= data.len());
    assert!(reserved(held.as_bytes(), Some(0), 1000) < 1 << 20);
    // Nothing comes back for what is not here.
    assert_eq!(reserved(held.as_bytes(), Some(1), 0), 0);
    assert_eq!(reserved(b"short", None, 0), 0);
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_cannot_become_empty_says_so_when_it_is_asked_to_leave() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path()).await;
    let core = node.core();
    let operator = Caller {
        key: core.identity.key.public(),
        role: Role::Node(core.identity.cert.clone()),
        address: ([127, 0, 0, 1], 1).into(),
    };
    let leave = wire::Admin { kind: Some(wire::admin::Kind::Leave(wire::admin::Leave {})) };
    let data = vec![5; 1024];
    let header = stripe(&key(3), &data);
    let (_, tree) = blocks::hash_shard(&data);
    assert!(core.store.put(&header, 0, &data, &tree, 0).unwrap());
    let said = operator::admin(core, &operator, leave.clone()).await.unwrap().text;
    assert!(said.contains("1 of the stripes") && said.contains("4 nodes"), "{said}");
    assert!(core.leaving() && !core.left());
    core.store.trash(ShardKey { stripe: header.id(), index: 0 }, 0).unwrap();
    assert!(core.store.delete(ShardKey { stripe: header.id(), index: 0 }, 1).unwrap());
    assert_eq!(operator::admin(core, &operator, leave).await.unwrap().text, "");
    node.stop().await;
}
