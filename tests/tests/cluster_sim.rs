//! Whole clusters on the simulated network: joining, noticing, partitions, restarts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use potluck_node::node::{Core, Node};
use potluck_proto::id::Digest;
use potluck_proto::member::Standing;
use potluck_tests::cluster::{SimCluster, quick};
use potluck_tests::sim::{self, NetConfig};

fn seed() -> u64 {
    sim::seed(11)
}

/// Virtual time after which a scenario has failed.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn twelve_nodes_join_over_a_lossy_network_and_all_see_all() {
    let config = NetConfig { loss: 0.01, ..NetConfig::homes() };
    sim::run(seed(), config, LIMIT, |network| async move {
        let mut cluster = SimCluster::found(network, seed(), quick()).await.unwrap();
        cluster.grow(12, 4).await.unwrap();
        cluster.settled(seconds(60)).await.unwrap();
        let equal = |cluster: &SimCluster| {
            let digests: BTreeSet<Digest> =
                cluster.running().map(|node| node.core().membership.view().digest).collect();
            digests.len() == 1
        };
        cluster.until("all tables are equal", seconds(300), equal).await.unwrap();
        assert_eq!(cluster.node(3).unwrap().core().membership.view().ring.len(), 12);
    });
}

#[test]
fn the_dead_are_noticed_and_the_returned_too() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let mut cluster = SimCluster::found(network, seed(), quick()).await.unwrap();
        cluster.grow(8, 8).await.unwrap();
        cluster.settled(seconds(60)).await.unwrap();
        cluster.kill(5).await;
        cluster.kill(6).await;
        cluster.stop(7).await;
        cluster.settled(seconds(60)).await.unwrap();
        // Down is not lost: the ring waits for them.
        assert_eq!(cluster.node(0).unwrap().core().membership.view().ring.len(), 8);
        for number in 5..8 {
            cluster.start(number).await.unwrap();
        }
        cluster.settled(seconds(180)).await.unwrap();
    });
}

#[test]
fn two_halves_of_a_partition_find_each_other_again() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let mut cluster = SimCluster::found(network, seed(), quick()).await.unwrap();
        cluster.grow(9, 9).await.unwrap();
        cluster.settled(seconds(60)).await.unwrap();
        let ips: Vec<_> = (0..9).map(|number| cluster.ip(number)).collect();
        cluster.network.partition(&ips[..3], &ips[3..]);
        let sees = |node: &Node| node.core().membership.view().up.len();
        let split = |cluster: &SimCluster| {
            (0..9).all(|number| sees(cluster.node(number).unwrap()) == if number < 3 { 3 } else { 6 })
        };
        cluster.until("each half sees itself alone", seconds(120), split).await.unwrap();
        assert!(!cluster.node(0).unwrap().core().membership.view().majority());
        assert!(cluster.node(8).unwrap().core().membership.view().majority());
        cluster.network.heal();
        cluster.settled(seconds(600)).await.unwrap();
    });
}

#[test]
fn an_evicted_node_is_refused_by_all() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let mut cluster = SimCluster::found(network, seed(), quick()).await.unwrap();
        cluster.grow(5, 5).await.unwrap();
        cluster.settled(seconds(60)).await.unwrap();
        let evicted = cluster.id(4);
        // Gossip may be ahead of the record that makes it a member.
        let known = |cluster: &SimCluster| {
            cluster.node(0).unwrap().core().membership.view().table.standing(&evicted) == Some(Standing::Member)
        };
        cluster.until("the founder has its record", seconds(60), known).await.unwrap();
        cluster.evict(4).await.unwrap();
        let told = |cluster: &SimCluster| {
            (0..4).all(|number| {
                let view = cluster.node(number).unwrap().core().membership.view();
                view.table.standing(&evicted) == Some(Standing::Evicted)
                    && !view.is_up(&evicted)
                    && view.ring.len() == 4
            })
        };
        cluster.until("all know of the eviction", seconds(120), told).await.unwrap();
    });
}

/// How many exchanges of the member table a node has answered.
fn exchanges(cluster: &SimCluster, number: usize) -> u64 {
    let core = cluster.node(number).unwrap().core();
    let text = core.metrics.text(core.uptime(), Duration::ZERO);
    let counts =
        text.lines().filter_map(|line| line.strip_prefix("potluck_requests_total{call=\"members\",code=\"ok\"} "));
    counts.map(|count| count.parse::<u64>().unwrap()).sum()
}

#[test]
fn after_a_start_the_table_is_exchanged_at_growing_intervals() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let mut cluster = SimCluster::found(network, seed(), quick()).await.unwrap();
        cluster.grow(2, 2).await.unwrap();
        cluster.settled(seconds(60)).await.unwrap();
        // A lost packet may be news: then exchanges begin anew.
        cluster.network.set_loss(0.0);
        // All news is old, and each asks the other once a minute.
        tokio::time::sleep(seconds(300)).await;
        cluster.stop(1).await;
        cluster.start(1).await.unwrap();
        cluster.settled(seconds(60)).await.unwrap();
        let mut counts = Vec::new();
        for wait in [3, 30, 90, 600] {
            let before = exchanges(&cluster, 0) + exchanges(&cluster, 1);
            tokio::time::sleep(seconds(wait)).await;
            counts.push(exchanges(&cluster, 0) + exchanges(&cluster, 1) - before);
        }
        let [soon, then, later, at_last] = counts[..] else { panic!("{counts:?}") };
        // After 1, 2, 4, 8, 16, 32 seconds by both, then once a minute, give or take those that fall on the edge.
        assert!((2..=6).contains(&soon) && (4..=8).contains(&then), "{counts:?}");
        assert!((2..=6).contains(&later) && (18..=22).contains(&at_last), "{counts:?}");
    });
}

#[test]
fn two_that_lost_sight_of_each_other_do_not_doubt_for_ever() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let mut cluster = SimCluster::found(network, seed(), quick()).await.unwrap();
        cluster.grow(2, 2).await.unwrap();
        cluster.settled(seconds(60)).await.unwrap();
        let ips = [cluster.ip(0), cluster.ip(1)];
        cluster.network.partition(&ips[..1], &ips[1..]);
        let alone = |cluster: &SimCluster| cluster.mistaken().len() == 2;
        cluster.until("each has the other for down", seconds(120), alone).await.unwrap();
        cluster.network.heal();
        cluster.settled(seconds(60)).await.unwrap();
        let no_doubt_is_left = async |cluster: &SimCluster, what: &str| {
            // Two without a third to ask would doubt each other anew now and then where packets get lost.
            cluster.network.set_loss(0.0);
            tokio::time::sleep(seconds(100)).await;
            let before = exchanges(cluster, 0) + exchanges(cluster, 1);
            tokio::time::sleep(seconds(600)).await;
            let count = exchanges(cluster, 0) + exchanges(cluster, 1) - before;
            assert!(count <= 30, "{what}: {count} exchanges in ten minutes: someone is still being probed");
            cluster.settled(seconds(1)).await.unwrap();
            cluster.network.set_loss(NetConfig::homes().loss);
        };
        // Nobody is told that it was gone, and the one that returns knows the other by a life that is over.
        cluster.kill(1).await;
        cluster.start(1).await.unwrap();
        no_doubt_is_left(&cluster, "a quick restart").await;
        // Long enough for gossip to give the other up, some of them short enough for it to answer the probe.
        for cut in 5..11 {
            cluster.network.partition(&ips[..1], &ips[1..]);
            tokio::time::sleep(seconds(cut)).await;
            cluster.network.heal();
            no_doubt_is_left(&cluster, &format!("a cut of {cut} s")).await;
        }
    });
}

#[test]
fn who_says_goodbye_is_soon_down_for_all() {
    // Also where a question is answered only when who was asked is gone.
    let far = NetConfig { latency: Duration::from_millis(150), ..NetConfig::homes() };
    for config in [NetConfig::homes(), far] {
        goodbyes(config);
    }
}

fn goodbyes(config: NetConfig) {
    sim::run(seed(), config, LIMIT, |network| async move {
        let mut cluster = SimCluster::found(network, seed(), quick()).await.unwrap();
        cluster.grow(12, 4).await.unwrap();
        cluster.settled(seconds(60)).await.unwrap();
        for number in [11, 3, 7] {
            let stopped = cluster.stop(number);
            tokio::time::timeout(seconds(15), stopped).await.unwrap();
            // It has told each of these few thrice, also those to whom it had no connection, before it ended: what is left
            // is the last datagram's way. One that lost all three hears of it from the others within a second, and its own
            // probe ends after three more.
            tokio::time::sleep(seconds(1)).await;
            let mistaken = cluster.mistaken();
            assert!(mistaken.len() <= 1, "seed {}: {mistaken:?}", seed());
            cluster.settled(seconds(4)).await.unwrap();
        }
        // It is not taken back on hearsay, and comes back when it does.
        tokio::time::sleep(seconds(120)).await;
        cluster.settled(Duration::ZERO).await.unwrap();
        cluster.start(3).await.unwrap();
        cluster.settled(seconds(30)).await.unwrap();
    });
}

/// How many gossip datagrams the running nodes send in a minute from now.
async fn gossip(cluster: &SimCluster) -> u64 {
    let sent = || cluster.running().map(|node| node.core().endpoint.stats().datagrams_out).sum::<u64>();
    let before = sent();
    tokio::time::sleep(seconds(60)).await;
    sent() - before
}

#[test]
fn two_with_one_key_are_noticed_and_all_is_quiet_once_one_stops() {
    for orderly in [true, false] {
        sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
            let mut cluster = SimCluster::found(network, seed(), quick()).await.unwrap();
            cluster.grow(6, 6).await.unwrap();
            cluster.settled(seconds(60)).await.unwrap();
            tokio::time::sleep(seconds(120)).await;
            let usual = gossip(&cluster).await;

            let copied = cluster.copy_of(3).unwrap();
            let copy = cluster.start_copy(copied).await.unwrap();
            let here = cluster.node(3).unwrap().core().clone();
            let noticed = |_: &SimCluster| {
                let at = |core: &Core| core.membership.made().unwrap().addresses.clone();
                sees(copy.core(), &at(&here)) && sees(&here, &at(copy.core()))
            };
            cluster.until("each says where the other is", seconds(60), noticed).await.unwrap();
            let together = gossip(&cluster).await;
            let refuted = here.metrics.refutations.get() + copy.core().metrics.refutations.get();
            assert!(refuted <= 40 && together <= 3 * usual, "{refuted} refutations; {together} of {usual} datagrams");
            if orderly {
                copy.stop().await;
            } else {
                copy.kill().await;
            }
            cluster.settled(seconds(120)).await.unwrap();
            tokio::time::sleep(seconds(180)).await;
            let refuted = here.metrics.refutations.get();
            let after = gossip(&cluster).await;
            assert!(after <= usual + usual / 4, "{after} datagrams a minute, {usual} before");
            assert_eq!(here.metrics.refutations.get(), refuted);
            cluster.settled(Duration::ZERO).await.unwrap();
        });
    }
}

/// Whether a node says that another process with its key is at one of these addresses.
fn sees(core: &Core, there: &[SocketAddr]) -> bool {
    core.status().key_also_at.iter().any(|shown| there.iter().any(|address| address.to_string() == *shown))
}

#[test]
fn a_node_whose_folder_was_restored_from_an_older_copy_is_up_again_and_blames_nobody() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let mut cluster = SimCluster::found(network, seed(), quick()).await.unwrap();
        cluster.grow(5, 5).await.unwrap();
        cluster.settled(seconds(60)).await.unwrap();
        let copied = cluster.copy_of(3).unwrap();
        for _ in 0..3 {
            cluster.stop(3).await;
            cluster.start(3).await.unwrap();
            cluster.settled(seconds(30)).await.unwrap();
        }
        cluster.stop(3).await;
        cluster.restore(3, copied).unwrap();
        cluster.start(3).await.unwrap();
        cluster.settled(seconds(30)).await.unwrap();
        tokio::time::sleep(seconds(300)).await;
        cluster.settled(Duration::ZERO).await.unwrap();
        let core = cluster.node(3).unwrap().core();
        assert_eq!(core.status().key_also_at, Vec::<String>::new());
        assert!(core.metrics.refutations.get() <= 3, "{}", core.metrics.refutations.get());
    });
}

#[test]
fn a_node_declared_lost_while_it_was_cut_off_counts_again_without_a_restart() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let mut cluster = SimCluster::found(network, seed(), quick()).await.unwrap();
        cluster.grow(5, 5).await.unwrap();
        cluster.settled(seconds(60)).await.unwrap();
        let ips: Vec<_> = (0..5).map(|number| cluster.ip(number)).collect();
        let lost = cluster.id(4);
        let standing = |cluster: &SimCluster, number: usize| {
            cluster.node(number).unwrap().core().membership.view().table.standing(&lost)
        };
        cluster.network.partition(&ips[..4], &ips[4..]);
        let down = |cluster: &SimCluster| !cluster.node(0).unwrap().core().membership.view().is_up(&lost);
        cluster.until("the founder has it for down", seconds(120), down).await.unwrap();
        cluster.declare_lost(4).await.unwrap();
        let told = |cluster: &SimCluster| (0..4).all(|number| standing(cluster, number) == Some(Standing::Lost));
        cluster.until("the others take it for lost", seconds(120), told).await.unwrap();
        cluster.network.heal();
        let back = |cluster: &SimCluster| (0..5).all(|number| standing(cluster, number) == Some(Standing::Member));
        cluster.until("it has revoked its loss", seconds(120), back).await.unwrap();
        assert_eq!(cluster.node(0).unwrap().core().membership.view().ring.len(), 5);
    });
}

#[test]
fn a_node_says_that_it_has_left_only_when_others_know() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let mut cluster = SimCluster::found(network, seed(), quick()).await.unwrap();
        cluster.grow(5, 5).await.unwrap();
        cluster.settled(seconds(60)).await.unwrap();
        let ips: Vec<_> = (0..5).map(|number| cluster.ip(number)).collect();
        let leaver = cluster.id(4);
        cluster.network.partition(&ips[..4], &ips[4..]);
        cluster.node(4).unwrap().core().leave().await.unwrap();
        let written = |cluster: &SimCluster| {
            cluster.node(4).unwrap().core().membership.view().table.standing(&leaver) == Some(Standing::Left)
        };
        cluster.until("it is empty, and its record says so", seconds(300), written).await.unwrap();
        assert!(!cluster.node(4).unwrap().core().status().left, "nobody knows of it yet");
        cluster.network.heal();
        let left = |cluster: &SimCluster| cluster.node(4).unwrap().core().status().left;
        cluster.until("it says that it has left", seconds(600), left).await.unwrap();
        cluster.kill(4).await;
        let known = (0..4).filter(|number| {
            let view = cluster.node(*number).unwrap().core().membership.view();
            view.table.standing(&leaver) == Some(Standing::Left)
        });
        assert!(known.count() >= 3);
    });
}
