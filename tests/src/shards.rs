//! A vault without its upper half: coded stripes of random bytes, and a device that puts and reads them.
//!
//! For tests of the cluster below the vault's tree: what was put is compared byte by byte, and a checker of its own
//! counts which indices are really there.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use bytes::Bytes;
use potluck::cluster::gate::ClientGate;
use potluck::cluster::{Cluster, Limits, Parts, join};
use potluck_node::store::{ShardKey, ShardState};
use potluck_proto::cert::{DeviceCert, Rights};
use potluck_proto::codec::Codec;
use potluck_proto::id::{Digest, NodeId, StripeId};
use potluck_proto::key::SecretKey;
use potluck_proto::stripe::{Scheme, SignedHeader, StripeHeader, shard_len};
use potluck_proto::transport::{Executor, Limits as EndpointLimits};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::cluster::SimCluster;

/// A vault's key, a device of it, and its way to the cluster.
pub struct Writer {
    /// The way to the cluster.
    pub cluster: Cluster,
    /// The device's key.
    pub device_key: SecretKey,
    /// The device's certificate.
    pub device: DeviceCert,
    rng: StdRng,
    /// What was put, and must be read back.
    pub put: BTreeMap<StripeId, Vec<u8>>,
}

impl Writer {
    /// Redeems an invite for a new vault on the simulated cluster, and connects as its device.
    pub async fn admitted(sim: &mut SimCluster, seed: u64) -> anyhow::Result<Self> {
        let token = sim.invite(true).await?;
        let mut rng = StdRng::seed_from_u64(seed);
        let vault_key = SecretKey::generate(&mut rng);
        let ip = sim.new_ip();
        let gate = std::sync::Arc::new(ClientGate::stranger(token.cluster));
        let endpoint = (sim.bind(ip))(&vault_key, gate, EndpointLimits::client())?;
        let (cert, table) = join::redeem_vault(&endpoint, &token, (sim.clock())()).await?;
        endpoint.close(std::time::Duration::from_secs(1)).await;
        let device_key = SecretKey::generate(&mut rng);
        let device = DeviceCert::issue(&vault_key, device_key.public().into(), Rights::ALL, 0, 0);
        let ip = sim.new_ip();
        let gate = std::sync::Arc::new(ClientGate::device(token.cluster, device.clone(), cert));
        let endpoint = (sim.bind(ip))(&device_key, gate, EndpointLimits::client())?;
        let cluster = Cluster::new(Parts {
            endpoint,
            executor: Executor::inline(),
            cluster: token.cluster,
            table,
            rng: StdRng::seed_from_u64(seed + 1),
            limits: Limits::default(),
        });
        cluster.connect().await?;
        Ok(Self { cluster, device_key, device, rng, put: BTreeMap::new() })
    }

    /// Random bytes, coded and signed.
    pub fn stripe(&mut self, scheme: Scheme, len: usize) -> anyhow::Result<(SignedHeader, Vec<Bytes>, Vec<u8>)> {
        let mut content = vec![0; len];
        self.rng.fill_bytes(&mut content);
        let shard = shard_len(len, scheme.k());
        let mut data = content.clone();
        data.resize(shard * scheme.k(), 0);
        let mut parity = vec![0; shard * scheme.m()];
        Codec::new(scheme).encode(&data, &mut parity)?;
        let shards: Vec<Bytes> = data.chunks(shard).chain(parity.chunks(shard)).map(Bytes::copy_from_slice).collect();
        let header = StripeHeader {
            vault: self.device.vault(),
            device: self.device.clone(),
            born: 0,
            created_ms: 0,
            scheme,
            shard_len: shard as u32,
            data_len: len as u32,
            shards: shards.iter().map(|shard| Digest::of(shard)).collect(),
        };
        Ok((header.sign(&self.device_key), shards, content))
    }

    /// Puts a stripe of random bytes, and remembers it.
    pub async fn put(&mut self, scheme: Scheme, len: usize) -> anyhow::Result<(StripeId, potluck::cluster::Placed)> {
        let (header, shards, content) = self.stripe(scheme, len)?;
        let placed = self.cluster.put_stripe(&header, shards, 0).await?;
        self.put.insert(header.id(), content);
        Ok((header.id(), placed))
    }

    /// Reads all that was put, and compares it.
    pub async fn read_all(&self) -> anyhow::Result<()> {
        for (stripe, content) in &self.put {
            let read = self.cluster.read(*stripe, 0..content.len() as u64).await;
            let read = read.with_context(|| format!("stripe {} cannot be read", stripe.short()))?;
            ensure!(read[..] == content[..], "stripe {} gives other bytes", stripe.short());
        }
        Ok(())
    }
}

/// Which indices of a stripe are sound, each on a node that runs: read and hashed, not asked for.
pub fn sound_indices(sim: &SimCluster, stripe: &StripeId) -> anyhow::Result<BTreeMap<usize, BTreeSet<NodeId>>> {
    let mut found: BTreeMap<usize, BTreeSet<NodeId>> = BTreeMap::new();
    for number in (0..sim.len()).filter(|number| sim.node(*number).is_some()) {
        let store = sim.store(number);
        for held in store.held(stripe) {
            let key = ShardKey { stripe: *stripe, index: held.index };
            if held.state == ShardState::Live && store.verify(key).is_ok() {
                found.entry(held.index).or_default().insert(sim.id(number));
            }
        }
    }
    Ok(found)
}

/// Whether `n` different indices are on `n` different running nodes.
pub fn whole(sim: &SimCluster, stripe: &StripeId, scheme: Scheme) -> bool {
    let Ok(found) = sound_indices(sim, stripe) else { return false };
    // One index a node is what repair strives for; then counting both is a matching.
    let nodes: BTreeSet<NodeId> = found.values().flatten().copied().collect();
    found.len() == scheme.n() && nodes.len() >= scheme.n()
}
