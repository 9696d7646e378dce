//! Reads through real endpoints: wrong bytes, moved shards, dead holders, and too few of them.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use potluck_proto::stripe::SignedHeader;

use super::fake::{Fault, World};
use crate::cluster::{Cluster, Proof, ReadError};

/// Bytes of a stripe whose shards have four blocks, the last one short.
const LEN: usize = 2 * 200_000 - 77;

async fn stored(world: &World, scheme: &str) -> (SignedHeader, Vec<u8>) {
    let (header, shards, data) = world.stripe(scheme, LEN, 0);
    world.client().await.put_stripe(&header, shards, 0).await.unwrap();
    (header, data)
}

/// Ranges at the edges of blocks and shards, and the whole.
async fn reads_everything(client: &Cluster, header: &SignedHeader, data: &[u8]) {
    let shard = u64::from(header.shard_len);
    let len = data.len() as u64;
    let ranges =
        [0..1, 65_535..65_537, shard - 1..shard + 1, shard..shard + 10, len - 1..len, 1000..len - 1000, 0..len];
    let wanted = stream::iter(ranges.clone().map(|range| (header.id(), range)));
    let read: Vec<_> = client.read_many(wanted, 3).collect().await;
    for (range, bytes) in ranges.into_iter().zip(read) {
        let expected = &data[range.start as usize..range.end as usize];
        assert_eq!(bytes.as_deref(), Ok(expected), "{range:?}");
    }
}

#[tokio::test]
async fn ranges_and_wholes_are_read_without_knowing_the_header() {
    let world = World::new(6);
    let (header, data) = stored(&world, "2+2").await;
    let client = world.client().await;
    reads_everything(&client, &header, &data).await;
    let past = client.read(header.id(), 5..LEN as u64 + 1).await;
    assert!(matches!(past, Err(ReadError::Range { .. })), "{past:?}");
    assert_eq!(client.read(header.id(), 5..5).await, Ok(Bytes::new()));
}

#[tokio::test]
async fn wrong_bytes_are_never_returned_and_their_holder_is_told() {
    let world = World::new(6);
    let (header, data) = stored(&world, "2+2").await;
    let homes = world.homes(&header);
    for bad in [0, 1] {
        world.set(homes[bad], Fault::WrongBytes);
        reads_everything(&world.client().await, &header, &data).await;
    }
    let told = || (0..2).all(|bad| world.nodes[&homes[bad]].1.state().checks > 0);
    let waited = async {
        while !told() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), waited).await.unwrap();
}

#[tokio::test]
async fn a_proof_that_comes_later_is_the_callers_and_nothing_of_it_is_kept() {
    let world = World::new(6);
    let (header, data) = stored(&world, "2+2").await;
    let (homes, range) = (world.homes(&header), 0..data.len() as u64);
    let later =
        async |client: &Cluster| client.read_pieces(header.id(), range.clone(), Proof::Later).await.unwrap().join();
    let client = world.client().await;
    assert_eq!(later(&client).await, data);
    world.set(homes[0], Fault::WrongBytes);
    let wrong = later(&client).await;
    assert!(wrong.len() == data.len() && wrong != data, "as the node gave it");
    reads_everything(&client, &header, &data).await;
    assert_eq!(later(&client).await, data, "its damage is known by now");
    // What has to be rebuilt is proved in any case, also where the siblings came before that was known.
    world.kill(homes[1]);
    assert_eq!(later(&world.client().await).await, data);
    assert_eq!(later(&client).await, data);
}

#[tokio::test]
async fn a_sound_shard_that_is_not_the_one_asked_for_is_never_returned() {
    for fault in [Fault::AnotherIndex, Fault::AnotherStripe] {
        let world = World::new(6);
        let (header, data) = stored(&world, "2+2").await;
        let homes = world.homes(&header);
        let (other, shards, _) = world.stripe("2+2", LEN, 1);
        // Each home of a data shard has another shard of the stripe, and one of another stripe, to give instead.
        let sibling = world.nodes[&homes[2]].1.state().shards[&(header.id(), 2)].clone();
        for bad in [0, 1] {
            world.nodes[&homes[bad]].1.state().shards.extend([
                ((header.id(), 2), sibling.clone()),
                ((other.id(), bad), (other.clone(), shards[bad].clone())),
            ]);
            world.set(homes[bad], fault);
            reads_everything(&world.client().await, &header, &data).await;
        }
    }
}

#[tokio::test]
async fn silent_and_denying_holders_are_gone_round() {
    let world = World::new(6);
    let (header, data) = stored(&world, "2+2").await;
    let homes = world.homes(&header);
    world.set(homes[0], Fault::Silent);
    world.set(homes[2], Fault::NotFound);
    reads_everything(&world.client().await, &header, &data).await;
}

#[tokio::test]
async fn a_shard_that_moved_is_found() {
    let world = World::new(9);
    let (header, data) = stored(&world, "2+2").await;
    let homes = world.homes(&header);
    for index in 0..4 {
        let moved = std::mem::take(&mut world.nodes[&homes[index]].1.state().shards);
        world.nodes[&homes[8 - index]].1.state().shards = moved;
    }
    reads_everything(&world.client().await, &header, &data).await;
}

#[tokio::test]
async fn any_m_nodes_may_die_but_not_one_more() {
    let world = World::new(5);
    let (header, data) = stored(&world, "2+2").await;
    let homes = world.homes(&header);
    let before = world.client().await;
    world.kill(homes[0]);
    world.kill(homes[1]);
    reads_everything(&before, &header, &data).await;
    reads_everything(&world.client().await, &header, &data).await;
    world.kill(homes[3]);
    let error = world.client().await.read_whole(header.id()).await.unwrap_err();
    assert_eq!(error, ReadError::Unreadable { stripe: header.id(), needed: 2, reachable: 1 });
    world.kill(homes[2]);
    let error = world.client().await.read_whole(header.id()).await.unwrap_err();
    assert!(matches!(error, ReadError::NotFound { .. }), "{error}");
}
