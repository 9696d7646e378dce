//! Heads through real endpoints: quorums, writing back, and what is said when too few answer.

use std::time::Duration;

use potluck_proto::head::{Head, SignedHead, VersionVector};
use potluck_proto::id::{Digest, VaultId};

use tokio::time::Instant;

use super::fake::{Fault, World};
use crate::cluster::{Stale, WriteHeadError};

fn head(world: &World, counter: u64) -> SignedHead {
    let mut vector = VersionVector::default();
    vector.set(1, counter);
    Head {
        cluster: world.cluster(),
        device: world.device_cert(),
        vector,
        sweep: 0,
        sweep_hash: Digest([0; 32]),
        created_ms: 0,
        root: Vec::new(),
    }
    .sign(&world.device)
}

fn vault(world: &World) -> VaultId {
    world.vault.public().into()
}

#[tokio::test]
async fn a_written_head_is_read_and_an_older_one_is_refused() {
    let world = World::new(5);
    let client = world.client().await;
    let empty = client.read_heads(vault(&world)).await;
    assert_eq!((empty.heads.len(), empty.stale), (0, None));
    let written = client.write_head(&head(&world, 2)).await.unwrap();
    assert!(written.replicas >= 3 && written.settled && written.concurrent.is_empty());
    let read = world.client().await.read_heads(vault(&world)).await;
    assert_eq!((read.heads, read.stale), (vec![head(&world, 2)], None));
    let error = client.write_head(&head(&world, 1)).await.unwrap_err();
    assert!(matches!(error, WriteHeadError::Dominated(newer) if newer == [head(&world, 2)]));
}

#[tokio::test]
async fn a_head_that_few_hold_is_written_back_before_it_is_read() {
    let world = World::new(5);
    let client = world.client().await;
    client.read_heads(vault(&world)).await;
    let holder = world.nodes.values().next().unwrap();
    holder.1.state().replicas.get_mut(&vault(&world)).unwrap().write(head(&world, 1)).unwrap();
    let mut read = client.read_heads(vault(&world)).await;
    while read.heads.is_empty() {
        // Its holder was not among the quorum that answered first.
        read = client.read_heads(vault(&world)).await;
    }
    assert_eq!((read.heads, read.stale), (vec![head(&world, 1)], None));
    let holds = |fake: &super::fake::Fake| {
        let state = fake.state();
        state.replicas.get(&vault(&world)).is_some_and(|replica| replica.heads().contains(&head(&world, 1).id()))
    };
    assert!(world.nodes.values().filter(|(_, fake)| holds(fake)).count() >= 3);
}

#[tokio::test]
async fn without_a_quorum_a_read_says_that_it_may_be_stale() {
    let world = World::new(3);
    let client = world.client().await;
    client.write_head(&head(&world, 1)).await.unwrap();
    let nodes: Vec<_> = world.nodes.keys().copied().collect();
    world.set(nodes[0], Fault::Silent);
    assert_eq!(client.read_heads(vault(&world)).await.stale, None, "two of three are a quorum");
    world.kill(nodes[1]);
    let read = client.read_heads(vault(&world)).await;
    assert_eq!(read.stale, Some(Stale::TooFew { answered: 1, needed: 2, replicas: 3, down: 1 }));
    assert_eq!(read.heads, [head(&world, 1)]);
}

#[tokio::test]
async fn a_head_that_only_a_former_replica_keeps_is_found_when_all_are_asked() {
    let world = World::new(17);
    let client = world.client().await;
    client.write_head(&head(&world, 1)).await.unwrap();
    let replicas = client.members().view().head_list(&vault(&world));
    let former = world.nodes.iter().find(|(node, _)| !replicas.contains(node)).unwrap().1;
    former.1.state().replicas.entry(vault(&world)).or_default().write(head(&world, 2)).unwrap();
    assert_eq!(client.read_heads(vault(&world)).await.heads, [head(&world, 1)]);
    let read = client.read_heads_of_all(vault(&world)).await;
    assert_eq!((read.heads, read.stale, read.behind), (vec![head(&world, 2)], None, true));
    let read = world.client().await.read_heads(vault(&world)).await;
    assert_eq!((read.heads, read.stale), (vec![head(&world, 2)], None), "it is the replicas' again");
}

#[tokio::test]
async fn nobody_waits_for_a_quorum_that_is_known_to_be_down() {
    let world = World::new(5);
    let before = world.client().await;
    before.write_head(&head(&world, 1)).await.unwrap();
    let nodes: Vec<_> = world.nodes.keys().copied().collect();
    nodes[..3].iter().for_each(|node| world.kill(*node));
    let client = world.client().await;
    let begun = Instant::now();
    let read = client.read_heads(vault(&world)).await;
    assert_eq!(read.stale, Some(Stale::TooFew { answered: 2, needed: 3, replicas: 5, down: 3 }));
    assert_eq!(read.heads, [head(&world, 1)]);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // All are, and this client has not heard yet: its connections have to fall silent first.
    nodes[3..].iter().for_each(|node| world.kill(*node));
    let begun = Instant::now();
    let read = before.read_heads(vault(&world)).await;
    assert!(matches!(read.stale, Some(Stale::TooFew { answered: 0, .. })), "{:?}", read.stale);
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let error = client.connect().await.unwrap_err();
    assert_eq!((error.known, error.tried), (5, 5));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
