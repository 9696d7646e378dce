//! A put over links as homes have them, on the simulated network: 8 nodes, scheme 5+3, virtual time. Nothing here depends on
//! the machine.
//!
//! The floor is the link: the bytes of shards a second that the uplink can carry. Packets are what the Internet carries.

use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use potluck::session::{Meta, Progress, Session};
use potluck::vault::keyfile::Protection;
use tokio::time::Instant;

use super::load::scheme;
use super::{Effort, Figure, Goal};
use crate::cluster::{Device, SimCluster, quick};
use crate::sim::{self, NetConfig, Network};

const NODES: usize = 8;

/// Bytes a second of the client's uplink: 100 Mbit/s.
const UPLINK: u64 = 12_500_000;

/// What waits before the uplink at most: a tenth of a second.
const QUEUE: u64 = UPLINK / 10;

/// Longest UDP payload of an Ethernet packet.
const PACKET: usize = 1472;

/// Longest virtual time of one case.
const LIMIT: Duration = Duration::from_secs(3600);

const SEED: u64 = 7;

pub(super) fn run(effort: Effort) -> Result<Vec<Figure>> {
    let size = effort.bytes(64 << 20, 16 << 20) as usize;
    let cases = [(20, 0.0), (20, 0.001), (80, 0.001), (80, 0.01), (80, 0.02), (200, 0.01)];
    cases.into_iter().map(|(rtt_ms, loss)| case(size, rtt_ms, loss)).collect()
}

fn case(size: usize, rtt_ms: u64, loss: f64) -> Result<Figure> {
    let config = NetConfig { latency: Duration::from_millis(rtt_ms / 2), loss, ..NetConfig::perfect() };
    let rate = sim::run(SEED, config, LIMIT, |network| put(network, size))?;
    Ok(Figure {
        case: format!("put, 100 Mbit/s up, {rtt_ms} ms, {} % lost", loss * 100.0),
        value: rate * 8.0 / 1e6,
        unit: "Mb/s",
        floor: Some(UPLINK as f64 * 8.0 / 1e6),
        // The case of the figures to reach; the others show what becomes of it.
        goal: (rtt_ms == 80 && loss == 0.01).then_some(Goal::AtLeast(0.85)),
    })
}

/// Bytes of shards a second of a put.
async fn put(network: Network, size: usize) -> Result<f64> {
    network.limit_packets(PACKET);
    let mut cluster = SimCluster::found(network.clone(), SEED, quick()).await?;
    cluster.grow(NODES, NODES).await?;
    cluster.settled(Duration::from_secs(60)).await?;
    let token = cluster.invite(true).await?;
    let Device { environment, folder, ips } = cluster.device(1_000)?;
    ips.into_iter().for_each(|ip| network.limit_uplink(ip, UPLINK, QUEUE));
    let (session, _) = Session::create(&environment, folder, &token, Protection::Bare, Some(scheme()?)).await?;
    let mut bytes = vec![0; size];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    let began = Instant::now();
    let mut writer = session.writer().await?;
    let source = std::io::Cursor::new(bytes);
    writer.put_file(Bytes::from_static(b"file"), Meta::default(), source, &Progress::default()).await?;
    let committed = writer.commit().await?;
    let time = began.elapsed();
    ensure!(committed.degraded.is_none(), "not all shards were stored");
    Ok(committed.bytes_stored as f64 / time.as_secs_f64())
}
