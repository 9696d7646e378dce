//! A network inside one process and one thread, under virtual time: the same seed gives the same run, packet for packet.
//!
//! Endpoints take its sockets in place of UDP ones. Packets take time, get lost, come twice, overtake one another, do not
//! pass partitions, and end at hosts that were killed. Nothing here sleeps in real time or opens a real socket, and
//! no socket of it ever returns an error: to QUIC, a network only loses.
//!
//! What has to hold for a run to repeat: everything runs on this runtime's one thread (work goes through an inline
//! executor), randomness comes from seeds, no behaviour depends on the order of a hash map, and `select!` is `biased`.

mod network;
mod socket;

use std::future::Future;
use std::time::Duration;

pub use network::{NetStats, Network};

/// The port of every simulated host.
pub const PORT: u16 = 7000;

/// How a way from one host to another behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NetConfig {
    /// How long a packet takes at least. Virtual time has steps of a millisecond.
    pub latency: Duration,
    /// How much longer it may take. More than the time between packets lets them overtake one another.
    pub jitter: Duration,
    /// The share of packets that get lost, 0 to 1.
    pub loss: f64,
    /// The share that come twice, 0 to 1.
    pub duplicate: f64,
    /// The share that are late by up to four times the latency, 0 to 1.
    pub late: f64,
}

impl NetConfig {
    /// Nothing goes wrong, and a packet takes 1 ms.
    #[must_use]
    pub fn perfect() -> Self {
        Self { latency: Duration::from_millis(1), jitter: Duration::ZERO, loss: 0.0, duplicate: 0.0, late: 0.0 }
    }

    /// Homes on one continent: 20 to 30 ms, 1 % lost, some twice, some late.
    #[must_use]
    pub fn homes() -> Self {
        Self {
            latency: Duration::from_millis(20),
            jitter: Duration::from_millis(10),
            loss: 0.01,
            duplicate: 0.002,
            late: 0.005,
        }
    }
}

/// Runs `scenario` on a network of its own, on a runtime of its own whose time is virtual, and gives what it gives.
///
/// # Panics
///
/// If the scenario panics, or takes more than `limit` of virtual time.
pub fn run<T, F>(seed: u64, config: NetConfig, limit: Duration, scenario: impl FnOnce(Network) -> F) -> T
where
    F: Future<Output = T>,
{
    #[expect(clippy::expect_used, reason = "a runtime without I/O only fails without memory; a scenario is a test")]
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O");
    runtime.block_on(async {
        let scenario = scenario(Network::new(seed, config));
        match tokio::time::timeout(limit, scenario).await {
            Ok(result) => result,
            Err(_) => panic!("seed {seed}: the scenario takes more than {limit:?} of virtual time"),
        }
    })
}

/// The seed of a run: `POTLUCK_SIM_SEED`, so that a failure is replayed or others are tried, else `usual`.
///
/// # Panics
///
/// If the variable is not a number.
#[must_use]
pub fn seed(usual: u64) -> u64 {
    match std::env::var("POTLUCK_SIM_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("POTLUCK_SIM_SEED is not a number: {text:?}")),
        Err(_) => usual,
    }
}

/// A seed for the `number`-th random generator of a run: different for each, the same in each run.
#[must_use]
pub fn seed_of(seed: u64, number: u64) -> [u8; 32] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    blake3::derive_key("potluck simulation seed", &bytes)
}
