//! The ring: where the shards of a stripe and the replicas of a head belong.
//!
//! A pure function of its entries: whoever has the same member table finds the same homes, without asking anyone. It
//! knows nothing of who is up; the caller leaves out whom the design leaves out (lost, left, evicted). Exact
//! definition: FORMAT.md, "Ring".

mod walk;

use std::collections::BTreeMap;

use crate::id::{NodeId, StripeId, VaultId};
use crate::quorum::{head_quorum, head_replicas};
use crate::stripe::Scheme;
pub use walk::{Steps, Walk};

/// Capacity that each virtual point stands for, in bytes: 256 MiB.
pub const BYTES_PER_POINT: u64 = 256 << 20;

/// Fewest virtual points of a node: with fewer, the smallest nodes' shares would be a matter of luck.
pub const POINTS_MIN: u64 = 64;

/// Most virtual points of a node, reached at 16 TiB. It bounds what one node's claim costs the others: 512 KiB of memory,
/// at 8 bytes a point. A ring takes 32 bytes for each GiB that its nodes offer, 32 MiB for 1 PiB.
pub const POINTS_MAX: u64 = 65_536;

/// A point is its position in the upper bits and its node's number in the lower ones. Nodes are numbered in the order
/// of their ids, so that sorting points also breaks ties by node id.
const NODE_BITS: u32 = 24;

const POINTS_CONTEXT: &str = "potluck 1 ring points";
const HEADS_CONTEXT: &str = "potluck 1 ring heads";

/// What the ring needs to know of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingEntry {
    /// Who it is.
    pub node: NodeId,
    /// Its failure domain. An empty name says nothing: such a node counts as a zone of its own.
    pub zone: String,
    /// Bytes that it offers.
    pub capacity: u64,
}

/// The virtual points of all nodes, in order.
#[derive(Clone, Default)]
pub struct Ring {
    /// Rising.
    nodes: Vec<NodeId>,
    /// Of each node, the number of its zone.
    zones: Vec<u32>,
    /// Of each zone, how many nodes it has.
    zone_sizes: Vec<u32>,
    /// Of each node, how many points it has.
    weights: Vec<u32>,
    /// Rising: position << NODE_BITS | node number.
    points: Vec<u64>,
}

/// Virtual points of a node that offers `capacity` bytes.
///
/// The number is absolute, not relative to the other nodes: so a join or a change of one node never moves the points of
/// another, and only shards that the newcomer is to have move.
#[must_use]
pub fn points_of(capacity: u64) -> u64 {
    (capacity / BYTES_PER_POINT).clamp(POINTS_MIN, POINTS_MAX)
}

/// The positions of a node's first `count` points, in the order of their making; the lowest [`NODE_BITS`] bits are not
/// used.
pub(crate) fn positions(node: &NodeId, count: u64) -> impl Iterator<Item = u64> {
    let mut stream = blake3::Hasher::new_derive_key(POINTS_CONTEXT).update(node.as_bytes()).finalize_xof();
    (0..count).map(move |_| {
        let mut bytes = [0u8; 8];
        stream.fill(&mut bytes);
        position(bytes)
    })
}

fn position(bytes: [u8; 8]) -> u64 {
    u64::from_le_bytes(bytes) >> NODE_BITS
}

impl Ring {
    /// The ring of these nodes. Of several entries for one node the last holds; of more than 2^24 nodes, the lowest ids.
    #[must_use]
    pub fn new(entries: impl IntoIterator<Item = RingEntry>) -> Ring {
        let entries: BTreeMap<NodeId, RingEntry> = entries.into_iter().map(|entry| (entry.node, entry)).collect();
        let mut ring = Ring::default();
        let mut zone_numbers: BTreeMap<String, u32> = BTreeMap::new();
        for (number, (node, entry)) in (0..1u64 << NODE_BITS).zip(entries) {
            let fresh = ring.zone_sizes.len() as u32;
            let zone = if entry.zone.is_empty() { fresh } else { *zone_numbers.entry(entry.zone).or_insert(fresh) };
            if zone == fresh {
                ring.zone_sizes.push(0);
            }
            ring.zone_sizes[zone as usize] += 1;
            ring.zones.push(zone);
            ring.nodes.push(node);
            let count = points_of(entry.capacity);
            ring.weights.push(count as u32);
            ring.points.extend(positions(&node, count).map(|position| position << NODE_BITS | number));
        }
        ring.points.sort_unstable();
        ring
    }

    /// How many nodes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether it has no node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether `node` is on it.
    #[must_use]
    pub fn contains(&self, node: &NodeId) -> bool {
        self.nodes.binary_search(node).is_ok()
    }

    /// All nodes, in the order of their ids.
    #[must_use]
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// The part of the ring's whole weight that `node` has, between 0 (not on the ring) and 1.
    #[must_use]
    pub fn share(&self, node: &NodeId) -> f64 {
        match self.nodes.binary_search(node) {
            Ok(number) => f64::from(self.weights[number]) / self.points.len() as f64,
            Err(_) => 0.0,
        }
    }

    /// All nodes in walk order from `key`.
    ///
    /// The walk goes clockwise from the key's position and meets each node once. A first pass over the whole ring takes
    /// nodes whose zone has fewer than `zone_cap` taken; then come those passed over, in ring order, whose zone has
    /// fewer than `zone_limit` taken; then the rest, in ring order.
    #[must_use]
    pub fn walk(&self, key: &[u8; 32], zone_cap: usize, zone_limit: usize) -> Walk<'_> {
        let &[a, b, c, d, e, f, g, h, ..] = key;
        let from = position([a, b, c, d, e, f, g, h]) << NODE_BITS;
        Walk::new(self, self.points.partition_point(|&point| point < from), zone_cap, zone_limit)
    }

    /// The walk of a stripe: its first n nodes are the stripe's homes.
    #[must_use]
    pub fn walk_stripe(&self, stripe: &StripeId, scheme: Scheme) -> Walk<'_> {
        self.walk(stripe.as_bytes(), scheme.zone_cap(), scheme.m())
    }

    /// The walk of a vault's head: its first `replicas` nodes are the head's replicas. For the zones, what a quorum can
    /// do without stands for m.
    #[must_use]
    pub fn walk_heads(&self, vault: &VaultId, replicas: usize) -> Walk<'_> {
        let key = blake3::derive_key(HEADS_CONTEXT, vault.as_bytes());
        let spare = replicas.saturating_sub(head_quorum(replicas));
        self.walk(&key, spare.div_ceil(2).max(1), spare)
    }

    /// The replicas of a vault's head: as many as a ring of this size has, in walk order.
    #[must_use]
    pub fn head_replicas(&self, vault: &VaultId) -> Vec<NodeId> {
        let replicas = head_replicas(self.len());
        self.walk_heads(vault, replicas).take(replicas)
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring({} nodes, {} zones, {} points)", self.nodes.len(), self.zone_sizes.len(), self.points.len())
    }
}

#[cfg(test)]
mod tests;
