//! Puts through real endpoints: homes that are away, full or dead, and puts that cannot succeed.

use super::fake::{Fault, World};
use crate::cluster::PutError;

#[tokio::test]
async fn each_home_gets_its_shard() {
    let world = World::new(6);
    let client = world.client().await;
    let (header, shards, _) = world.stripe("2+2", 100_000, 0);
    let placed = client.put_stripe(&header, shards, 0).await.unwrap();
    let homes = world.homes(&header);
    assert_eq!(placed.nodes, (0..4).map(|index| (index, homes[index])).collect::<Vec<_>>());
    assert_eq!((placed.losses_survived, placed.degraded), (2, false));
    assert_eq!(world.held(&header.id()).len(), 4);
    assert!(client.status().await.iter().all(|node| node.answer.as_ref().is_some_and(|answer| answer.is_ok())));
    assert_eq!(client.holdings(header.id()).await.len(), 4);
}

#[tokio::test]
async fn a_full_and_a_dead_home_are_replaced_by_the_next_of_the_walk() {
    let world = World::new(7);
    let client = world.client().await;
    let (header, shards, _) = world.stripe("2+2", 100_000, 0);
    let homes = world.homes(&header);
    world.set(homes[1], Fault::Full);
    world.kill(homes[2]);
    let placed = client.put_stripe(&header, shards, 0).await.unwrap();
    let held = world.held(&header.id());
    assert_eq!((held.len(), placed.degraded), (4, false));
    let replacements: Vec<_> = placed.nodes.iter().filter(|(index, node)| homes[*index] != *node).collect();
    assert_eq!(replacements.len(), 2);
    assert!(replacements.iter().all(|(_, node)| homes[4..6].contains(node)));
    assert!(placed.nodes.iter().all(|(index, node)| held[node].contains(index)));
}

#[tokio::test]
async fn a_home_that_never_answers_is_replaced_within_its_deadline() {
    let world = World::new(6);
    let client = world.client().await;
    let (header, shards, data) = world.stripe("2+2", 100_000, 0);
    let homes = world.homes(&header);
    world.set(homes[1], Fault::Silent);
    let put = client.put_stripe(&header, shards, 0);
    let placed = tokio::time::timeout(std::time::Duration::from_secs(30), put).await.unwrap().unwrap();
    assert_eq!((placed.nodes.len(), placed.losses_survived, placed.degraded), (4, 2, false));
    assert!(placed.nodes.iter().all(|(_, node)| *node != homes[1]));
    assert_eq!(world.client().await.read_whole(header.id()).await.unwrap(), data);
}

#[tokio::test]
async fn with_fewer_than_n_up_a_put_is_degraded_and_says_what_it_survives() {
    let world = World::new(4);
    let (header, shards, data) = world.stripe("2+2", 100_000, 0);
    world.kill(world.homes(&header)[0]);
    let client = world.client().await;
    let placed = client.put_stripe(&header, shards.clone(), 0).await.unwrap();
    assert_eq!((placed.nodes.len(), placed.losses_survived, placed.degraded), (3, 1, true));
    assert_eq!(world.client().await.read_whole(header.id()).await.unwrap(), data);
    // One more, and too few are left even for that.
    world.kill(world.homes(&header)[1]);
    let (header, shards, _) = world.stripe("2+2", 100_000, 1);
    let error = client.put_stripe(&header, shards, 0).await.unwrap_err();
    assert!(matches!(error, PutError::TooFew { needed: 3, reachable: 2, .. }), "{error}");
}

#[tokio::test]
async fn too_small_a_cluster_is_refused_with_the_scheme_that_fits() {
    let world = World::new(3);
    let client = world.client().await;
    let (header, shards, _) = world.stripe("2+2", 1000, 0);
    let error = client.put_stripe(&header, shards, 0).await.unwrap_err();
    assert!(error.to_string().contains("1+2 would fit"), "{error}");
    assert!(world.held(&header.id()).is_empty());
}
