//! Shards on the simulated network: put, lose nodes, repair, read; damage, partitions, return, leaving.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use potluck_node::store::{ShardKey, ShardState};
use potluck_proto::id::StripeId;
use potluck_proto::stripe::Scheme;
use potluck_tests::cluster::{SimCluster, quick};
use potluck_tests::shards::{Writer, sound_indices, whole};
use potluck_tests::sim::{self, NetConfig};

fn seed() -> u64 {
    sim::seed(23)
}

/// Virtual time after which a scenario has failed.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn scheme() -> Scheme {
    Scheme::new(5, 3).unwrap()
}

/// A cluster of `count` nodes in 4 zones with a few stripes of different lengths.
async fn stored(network: sim::Network, count: usize) -> (SimCluster, Writer) {
    let mut cluster = SimCluster::found(network, seed(), quick()).await.unwrap();
    cluster.grow(count, 4).await.unwrap();
    cluster.settled(seconds(60)).await.unwrap();
    let mut writer = Writer::admitted(&mut cluster, seed()).await.unwrap();
    for len in [1, 511, 70_000, 400_000, 1_500_000, 65_536 * 5] {
        let (_, placed) = writer.put(scheme(), len).await.unwrap();
        assert_eq!((placed.losses_survived, placed.degraded), (3, false));
    }
    assert_eq!(rebuilt(&cluster), [], "seed {}: nothing was lost yet", seed());
    (cluster, writer)
}

async fn all_whole(cluster: &SimCluster, writer: &Writer, limit: Duration) {
    let stripes: Vec<StripeId> = writer.put.keys().copied().collect();
    let whole = |cluster: &SimCluster| stripes.iter().all(|stripe| whole(cluster, stripe, scheme()));
    cluster.until("every stripe is whole", limit, whole).await.unwrap();
}

#[test]
fn m_nodes_die_with_their_disks_twice_and_nothing_is_lost() {
    let config = NetConfig { loss: 0.01, ..NetConfig::homes() };
    sim::run(seed(), config, LIMIT, |network| async move {
        let (mut cluster, writer) = stored(network, 14).await;
        for deaths in [[2, 5, 9], [3, 6, 10]] {
            for number in deaths {
                cluster.destroy(number).await;
            }
            writer.read_all().await.unwrap();
            all_whole(&cluster, &writer, seconds(600)).await;
        }
        writer.read_all().await.unwrap();
    });
}

/// More holders of a stripe are evicted at once than it survives: what they hold is still read for its repair.
#[test]
fn what_evicted_nodes_hold_is_rebuilt_from() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let (mut cluster, writer) = stored(network, 12).await;
        let stripe = *writer.put.keys().next().unwrap();
        let holds = |cluster: &SimCluster, number: usize| !cluster.store(number).held(&stripe).is_empty();
        let evicted: Vec<usize> = (1..12).filter(|number| holds(&cluster, *number)).take(4).collect();
        assert_eq!(evicted.len(), 4);
        for number in &evicted {
            cluster.evict(*number).await.unwrap();
        }
        let kept: Vec<usize> = (0..12).filter(|number| !evicted.contains(number)).collect();
        let stripes: Vec<StripeId> = writer.put.keys().copied().collect();
        let indices = |cluster: &SimCluster, stripe: &StripeId| {
            let held = kept.iter().flat_map(|number| cluster.store(*number).held(stripe));
            held.filter(|held| held.state == ShardState::Live).map(|held| held.index).collect::<BTreeSet<_>>().len()
        };
        let whole = |cluster: &SimCluster| stripes.iter().all(|stripe| indices(cluster, stripe) == scheme().n());
        cluster.until("every stripe is whole without them", seconds(600), whole).await.unwrap();
        for number in evicted {
            cluster.destroy(number).await;
        }
        writer.cluster.refresh().await.unwrap();
        writer.read_all().await.unwrap();
    });
}

#[test]
fn damaged_shards_are_never_data_and_are_repaired() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let (cluster, writer) = stored(network, 12).await;
        let mut damaged = 0;
        for stripe in writer.put.keys() {
            for number in (0..cluster.len()).filter(|number| number % 5 == 0) {
                for held in cluster.store(number).held(stripe) {
                    assert!(cluster.damage(number, ShardKey { stripe: *stripe, index: held.index }));
                    damaged += 1;
                }
            }
        }
        assert!(damaged > 0);
        writer.read_all().await.unwrap();
        all_whole(&cluster, &writer, seconds(3600)).await;
    });
}

#[test]
fn below_k_is_an_error_that_names_numbers_and_ends_when_holders_return() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let (mut cluster, writer) = stored(network, 8).await;
        for number in 4..8 {
            cluster.kill(number).await;
        }
        cluster.settled(seconds(60)).await.unwrap();
        // All five data shards are needed for the whole of it, and four nodes are up.
        let (stripe, content) = writer.put.iter().max_by_key(|(_, content)| content.len()).unwrap();
        let error = writer.cluster.read(*stripe, 0..content.len() as u64).await.unwrap_err().to_string();
        assert!(error.contains('5') && error.contains('4'), "{error}");
        cluster.start(7).await.unwrap();
        cluster.settled(seconds(180)).await.unwrap();
        writer.cluster.refresh().await.unwrap();
        writer.read_all().await.unwrap();
    });
}

#[test]
fn a_node_that_returns_gets_its_shards_back_and_copies_are_given_up_after_proof() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let (mut cluster, writer) = stored(network, 12).await;
        cluster.destroy(4).await;
        all_whole(&cluster, &writer, seconds(600)).await;
        let homes_of_4 = |cluster: &SimCluster| {
            let view = cluster.node(0).unwrap().core().membership.view();
            let homes = |stripe: &StripeId| view.ring.walk_stripe(stripe, scheme()).take(8).contains(&cluster.id(4));
            writer.put.keys().copied().filter(homes).collect::<Vec<_>>()
        };
        let expected = homes_of_4(&cluster);
        assert!(!expected.is_empty());
        cluster.start(4).await.unwrap();
        let home = |cluster: &SimCluster| {
            expected.iter().all(|stripe| {
                let found = sound_indices(cluster, stripe).unwrap();
                // One index each, on its home, and no second copy anywhere.
                found.len() == 8
                    && found.values().all(|nodes| nodes.len() == 1)
                    && found.values().any(|nodes| nodes.contains(&cluster.id(4)))
            })
        };
        cluster.until("the shards are home, once", seconds(1800), home).await.unwrap();
        writer.read_all().await.unwrap();
    });
}

#[test]
fn a_leaving_node_is_emptied_and_says_when_it_has_left() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let (mut cluster, writer) = stored(network, 12).await;
        let before = cluster.store(7).usage().shards;
        assert!(before > 0);
        cluster.node(7).unwrap().core().leave().await.unwrap();
        let left = |cluster: &SimCluster| {
            let view = cluster.node(0).unwrap().core().membership.view();
            cluster.store(7).usage().shards == 0 && view.table.record(&cluster.id(7)).is_some_and(|record| record.left)
        };
        cluster.until("node 7 has left", seconds(1800), left).await.unwrap();
        cluster.destroy(7).await;
        all_whole(&cluster, &writer, seconds(60)).await;
        writer.read_all().await.unwrap();
    });
}

#[test]
fn a_minority_cut_off_trashes_nothing_and_the_rest_goes_on() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let (cluster, writer) = stored(network, 12).await;
        let ips: Vec<_> = (0..12).map(|number| cluster.ip(number)).collect();
        let shards_before: Vec<u64> = (0..3).map(|number| cluster.store(number).usage().shards).collect();
        cluster.network.partition(&ips[..3], &ips[3..]);
        tokio::time::sleep(seconds(900)).await;
        for (number, before) in shards_before.iter().enumerate() {
            assert!(cluster.store(number).usage().shards >= *before, "node {number}");
        }
        cluster.network.heal();
        cluster.settled(seconds(900)).await.unwrap();
        all_whole(&cluster, &writer, seconds(600)).await;
        writer.read_all().await.unwrap();
    });
}

#[test]
fn a_put_with_nodes_away_says_how_many_losses_it_bears_until_repair_makes_it_whole() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let (mut cluster, mut writer) = stored(network, 8).await;
        cluster.kill(6).await;
        cluster.settled(seconds(60)).await.unwrap();
        writer.cluster.refresh().await.unwrap();
        let (stripe, placed) = writer.put(scheme(), 100_000).await.unwrap();
        assert_eq!((placed.losses_survived, placed.degraded), (2, true));
        cluster.start(6).await.unwrap();
        let is_whole = |cluster: &SimCluster| whole(cluster, &stripe, scheme());
        cluster.until("the stripe is whole", seconds(600), is_whole).await.unwrap();
    });
}

/// The running nodes that have rebuilt shards since their start, and how many.
fn rebuilt(cluster: &SimCluster) -> Vec<(usize, u64)> {
    let running = (0..cluster.len()).filter_map(|number| Some((number, cluster.node(number)?)));
    running
        .map(|(number, node)| (number, node.core().status().repaired_shards))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// Nobody rebuilds anything for so many seconds from now.
async fn nothing_is_rebuilt(cluster: &SimCluster, for_s: u64) {
    for second in 0..for_s {
        let rebuilt = rebuilt(cluster);
        assert!(rebuilt.is_empty(), "seed {}: rebuilt after {second} s, by whom and how many: {rebuilt:?}", seed());
        tokio::time::sleep(seconds(1)).await;
    }
}

/// The numbers of the nodes that are the stripe's homes, along its walk.
fn homes(cluster: &SimCluster, stripe: &StripeId) -> Vec<usize> {
    let view = cluster.node(0).unwrap().core().membership.view();
    let number_of = |id| (0..cluster.len()).find(|number| cluster.id(*number) == id).unwrap();
    view.ring.walk_stripe(stripe, scheme()).iter().take(scheme().n()).map(number_of).collect()
}

#[test]
fn an_upload_under_way_is_not_repaired() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let (cluster, mut writer) = stored(network, 12).await;
        // All nodes survey every few seconds: some survey falls into some put.
        let began = tokio::time::Instant::now();
        while began.elapsed() < seconds(20) {
            writer.put(scheme(), 100_000).await.unwrap();
        }
        nothing_is_rebuilt(&cluster, 30).await;
        all_whole(&cluster, &writer, seconds(1)).await;
    });
}

#[test]
fn a_node_that_returns_rebuilds_nothing_before_it_has_found_the_others() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let (mut cluster, writer) = stored(network, 14).await;
        let homes = homes(&cluster, writer.put.keys().next().unwrap());
        // The stripe's first holder starts again and hears of all, but for a moment cannot reach two of the others: the
        // six that are left are a thin margin, and there is room for two more.
        let ip = |number: &usize| cluster.ip(*number);
        let (first, out_of_reach) = ([ip(&homes[0])], [ip(&homes[6]), ip(&homes[7])]);
        cluster.kill(homes[0]).await;
        cluster.network.partition(&first, &out_of_reach);
        cluster.start(homes[0]).await.unwrap();
        nothing_is_rebuilt(&cluster, 8).await;
        cluster.network.heal();
        nothing_is_rebuilt(&cluster, 100).await;
        cluster.settled(seconds(120)).await.unwrap();
        all_whole(&cluster, &writer, seconds(1)).await;
    });
}

#[test]
fn a_cluster_that_starts_again_rebuilds_nothing() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let (mut cluster, writer) = stored(network, 14).await;
        for number in 0..14 {
            cluster.kill(number).await;
        }
        // While they come one after another, each knows a few more of the others than the one before.
        for number in 0..14 {
            cluster.start(number).await.unwrap();
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        nothing_is_rebuilt(&cluster, 100).await;
        cluster.settled(seconds(120)).await.unwrap();
        all_whole(&cluster, &writer, seconds(1)).await;
    });
}

#[test]
fn a_dead_first_holder_is_not_waited_for_though_the_second_has_just_started() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let (mut cluster, writer) = stored(network, 12).await;
        let homes = homes(&cluster, writer.put.keys().next().unwrap());
        cluster.kill(homes[1]).await;
        cluster.destroy(homes[0]).await;
        cluster.start(homes[1]).await.unwrap();
        all_whole(&cluster, &writer, seconds(120)).await;
        assert!(!rebuilt(&cluster).is_empty());
        writer.read_all().await.unwrap();
    });
}

#[test]
fn what_is_only_in_trash_is_brought_back_and_not_deleted() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let (cluster, writer) = stored(network, 10).await;
        // As if all who took over had been lost at once, after the trash time.
        for stripe in writer.put.keys() {
            for number in 0..cluster.len() {
                for held in cluster.store(number).held(stripe) {
                    cluster.store(number).trash(ShardKey { stripe: *stripe, index: held.index }, 0).unwrap();
                }
            }
        }
        all_whole(&cluster, &writer, seconds(600)).await;
        writer.read_all().await.unwrap();
    });
}
