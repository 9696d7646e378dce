//! A vault on the simulated network: join, put, loss, partition, kill m, repair, read; two writers; a new replica list.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::Cursor;
use std::time::Duration;

use potluck::session::{Environment, Freshness, Meta, Progress, Session, VaultFolder};
use potluck::vault::keyfile::Protection;
use potluck::vault::path;
use potluck_proto::stripe::Scheme;
use potluck_tests::cluster::{Device, SimCluster, quick};
use potluck_tests::sim::{self, NetConfig, Network};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn seed() -> u64 {
    sim::seed(31)
}

/// Virtual time after which a scenario has failed.
const LIMIT: Duration = Duration::from_secs(6 * 3600);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn lossy() -> NetConfig {
    NetConfig { loss: 0.01, ..NetConfig::homes() }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

async fn founded(network: Network, count: usize, zones: usize) -> (SimCluster, Session, VaultFolder, Environment) {
    let mut cluster = SimCluster::found(network, seed(), quick()).await.unwrap();
    cluster.grow(count, zones).await.unwrap();
    cluster.settled(seconds(60)).await.unwrap();
    let token = cluster.invite(true).await.unwrap();
    let Device { environment, folder, .. } = cluster.device(1_000).unwrap();
    let scheme = Scheme::new(5, 3).unwrap();
    let (session, _) =
        Session::create(&environment, folder.clone(), &token, Protection::Bare, Some(scheme)).await.unwrap();
    (cluster, session, folder, environment)
}

/// Stores these files in one commit.
async fn store(session: &Session, files: &BTreeMap<&str, Vec<u8>>) {
    let mut writer = session.writer().await.unwrap();
    let progress = Progress::default();
    for (name, bytes) in files {
        let key = path::file(name).unwrap();
        writer.put_file(key, Meta { mode: 0o644, mtime_ns: 7 }, Cursor::new(bytes.clone()), &progress).await.unwrap();
    }
    writer.commit().await.unwrap();
}

/// Reads these files in the newest state, and compares them.
async fn compare(session: &Session, files: &BTreeMap<&str, Vec<u8>>) {
    let state = session.state().await.unwrap();
    assert!(matches!(state.freshness, Freshness::Current), "{:?}", state.freshness);
    let reader = session.reader(&state);
    for (name, bytes) in files {
        let (_, entry) = reader.lookup(name).await.unwrap().unwrap_or_else(|| panic!("{name} is not there"));
        let file = reader.open(entry);
        assert_eq!(file.size(), bytes.len() as u64);
        assert!(file.read_at(0, bytes.len()).await.unwrap()[..] == bytes[..], "{name} differs");
    }
}

fn files() -> BTreeMap<&'static str, Vec<u8>> {
    BTreeMap::from([
        ("empty", Vec::new()),
        ("notes/tiny", b"a few bytes".to_vec()),
        ("photos/one", noise(1, 3_000_000)),
        ("photos/two", noise(2, 700_000)),
    ])
}

#[test]
fn join_put_lose_m_repair_lose_m_more_read() {
    sim::run(seed(), lossy(), LIMIT, |network| async move {
        let (mut cluster, session, _, _) = founded(network, 14, 4).await;
        let files = files();
        store(&session, &files).await;
        compare(&session, &files).await;
        for deaths in [[2, 6, 11], [3, 7, 12]] {
            for number in deaths {
                cluster.destroy(number).await;
            }
            cluster.settled(seconds(120)).await.unwrap();
            session.cluster().refresh().await.unwrap();
            compare(&session, &files).await;
            let whole = |cluster: &SimCluster| {
                cluster.running().all(|node| {
                    let status = node.core().status();
                    status.stripes_degraded + status.stripes_at_risk + status.stripes_unreadable == 0
                        && status.survey_age_ms < 10_000
                })
            };
            // The survey must have seen the deaths first.
            tokio::time::sleep(seconds(15)).await;
            cluster.until("all is whole", seconds(900), whole).await.unwrap();
            // Six of fourteen gone would be too many for a head quorum, were they only away.
            for number in deaths {
                cluster.declare_lost(number).await.unwrap();
            }
            let settled =
                |cluster: &SimCluster| cluster.running().all(|node| node.core().heads.counts().unsettled == 0);
            tokio::time::sleep(seconds(15)).await;
            cluster.until("all replicas have settled", seconds(300), settled).await.unwrap();
            session.cluster().refresh().await.unwrap();
        }
        compare(&session, &files).await;
    });
}

#[test]
fn a_partition_stops_the_minoritys_writes_and_loses_nothing() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let (mut cluster, session, _, _) = founded(network, 9, 9).await;
        let first = BTreeMap::from([("before", noise(3, 200_000))]);
        store(&session, &first).await;
        let nodes: Vec<_> = (0..9).map(|number| cluster.ip(number)).collect();
        // The client stays with the majority.
        cluster.network.partition(&nodes[..2], &nodes[2..]);
        tokio::time::sleep(seconds(60)).await;
        session.cluster().refresh().await.unwrap();
        let second = BTreeMap::from([("during", noise(4, 200_000))]);
        store(&session, &second).await;
        cluster.network.heal();
        cluster.settled(seconds(900)).await.unwrap();
        // A client that meets the two first sees the commit made without them.
        for number in 4..9 {
            cluster.stop(number).await;
        }
        for number in 4..9 {
            cluster.start(number).await.unwrap();
        }
        cluster.settled(seconds(300)).await.unwrap();
        session.cluster().refresh().await.unwrap();
        tokio::time::sleep(seconds(120)).await;
        compare(&session, &first).await;
        compare(&session, &second).await;
    });
}

#[test]
fn heads_outlive_a_change_of_most_replicas() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let (mut cluster, session, _, _) = founded(network, 10, 10).await;
        let files = BTreeMap::from([("kept", noise(5, 100_000))]);
        store(&session, &files).await;
        // Twelve more nodes join: most of the fifteen replicas are new, and have to learn the heads first.
        cluster.grow(22, 11).await.unwrap();
        cluster.settled(seconds(120)).await.unwrap();
        let settled = |cluster: &SimCluster| cluster.running().all(|node| node.core().heads.counts().unsettled == 0);
        cluster.until("all replicas have settled", seconds(900), settled).await.unwrap();
        session.cluster().refresh().await.unwrap();
        compare(&session, &files).await;
        let more = BTreeMap::from([("after", noise(6, 100_000))]);
        store(&session, &more).await;
        compare(&session, &files).await;
        compare(&session, &more).await;
    });
}

#[test]
fn two_devices_that_write_at_once_both_keep_their_files() {
    sim::run(seed(), NetConfig::homes(), LIMIT, |network| async move {
        let (mut cluster, session, _, _) = founded(network, 8, 8).await;
        let sheet = session.recovery_sheet();
        let Device { environment, folder, .. } = cluster.device(2_000).unwrap();
        let (other, _) = Session::recover(&environment, folder, &sheet, Protection::Bare).await.unwrap();
        let (ours, theirs) =
            (BTreeMap::from([("ours", noise(7, 90_000))]), BTreeMap::from([("theirs", noise(8, 90_000))]));
        tokio::join!(store(&session, &ours), store(&other, &theirs));
        for device in [&session, &other] {
            compare(device, &ours).await;
            compare(device, &theirs).await;
        }
    });
}
