//! The demo's own look at the shards, over the network: who holds what, and whether it is what it should be.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use potluck_node::node::Node;
use potluck_proto::id::{Digest, NodeId, StripeId};
use potluck_proto::stripe::{Scheme, SignedHeader};
use potluck_proto::transport::Peer;
use potluck_proto::wire::{self, reply, request};

use super::choice::View;
use super::nodes::Nodes;

/// How long a node may take for an answer.
const DEADLINE: Duration = Duration::from_secs(20);

/// Stripes asked about in one call.
const BATCH: usize = 256;

/// Shards read at once.
const AT_ONCE: usize = 8;

/// Most stripes of one node that are counted.
const STRIPES_LIMIT: usize = 1 << 20;

/// Who holds which shard of every stripe, as the nodes answer.
#[derive(Debug, Clone)]
pub(super) struct Census {
    schemes: BTreeMap<StripeId, (Scheme, u64)>,
    holders: BTreeMap<StripeId, BTreeMap<usize, BTreeSet<NodeId>>>,
}

/// Calls a node from another one, as nodes do.
async fn call(nodes: &Nodes, node: &Node, request: request::Kind) -> anyhow::Result<(reply::Kind, Bytes)> {
    let caller = nodes.running().find(|other| other.id() != node.id()).context("no second node is up")?;
    let address = node.core().endpoint.local_address();
    let peer = Peer { key: node.id().into(), addresses: vec![address] };
    Ok(caller.core().endpoint.call(&peer, request, Vec::new(), DEADLINE).await?)
}

fn raw(stripe: &StripeId) -> Bytes {
    Bytes::copy_from_slice(stripe.as_bytes())
}

impl Census {
    /// Finds all stripes there are, and who holds them.
    pub(super) async fn take(nodes: &Nodes) -> anyhow::Result<Self> {
        let mut schemes = BTreeMap::new();
        for node in nodes.running() {
            for stripe in node.core().store.stripes(None, STRIPES_LIMIT) {
                if let Entry::Vacant(place) = schemes.entry(stripe) {
                    let header = node.core().store.header(&stripe)?;
                    place.insert((header.scheme, u64::from(header.shard_len)));
                }
            }
        }
        let mut census = Self { schemes, holders: BTreeMap::new() };
        census.renew(nodes).await?;
        Ok(census)
    }

    /// Asks every live node anew.
    pub(super) async fn renew(&mut self, nodes: &Nodes) -> anyhow::Result<()> {
        let stripes: Vec<StripeId> = self.schemes.keys().copied().collect();
        self.holders = stripes.iter().map(|stripe| (*stripe, BTreeMap::new())).collect();
        for node in nodes.running() {
            for batch in stripes.chunks(BATCH) {
                let request = wire::HaveShards { stripes: batch.iter().map(raw).collect() };
                let (reply, _) = call(nodes, node, request::Kind::HaveShards(request)).await?;
                let reply::Kind::HaveShards(reply) = reply else { bail!("a node gave another kind of answer") };
                for (stripe, holding) in batch.iter().zip(reply.holdings) {
                    let held = self.holders.entry(*stripe).or_default();
                    for index in holding.live {
                        held.entry(index as usize).or_default().insert(node.id());
                    }
                }
            }
        }
        Ok(())
    }

    /// How many stripes there are.
    pub(super) fn stripes(&self) -> usize {
        self.schemes.len()
    }

    /// How many shards are held.
    pub(super) fn shards(&self) -> usize {
        self.holders.values().flat_map(BTreeMap::values).map(BTreeSet::len).sum()
    }

    /// Bytes of shards that are held.
    pub(super) fn bytes(&self) -> u64 {
        let of = |(stripe, held): (&StripeId, &BTreeMap<usize, BTreeSet<NodeId>>)| {
            let copies: usize = held.values().map(BTreeSet::len).sum();
            copies as u64 * self.schemes.get(stripe).map_or(0, |(_, len)| *len)
        };
        self.holders.iter().map(of).sum()
    }

    /// Shards and bytes of them on a node.
    pub(super) fn of(&self, node: NodeId) -> (u64, u64) {
        let mut sum = (0, 0);
        for (stripe, held) in &self.holders {
            let count = held.values().filter(|holders| holders.contains(&node)).count() as u64;
            sum = (sum.0 + count, sum.1 + count * self.schemes.get(stripe).map_or(0, |(_, len)| *len));
        }
        sum
    }

    /// How many stripes have all their shards, each on a live node of its own.
    pub(super) fn whole(&self, nodes: &Nodes) -> usize {
        let alive: BTreeSet<NodeId> = nodes.alive().into_iter().collect();
        self.schemes.iter().filter(|(stripe, (scheme, _))| self.assignment(stripe, *scheme, &alive).is_some()).count()
    }

    /// A live node for each of the n shards, no node twice.
    fn assignment(&self, stripe: &StripeId, scheme: Scheme, alive: &BTreeSet<NodeId>) -> Option<Vec<NodeId>> {
        let held = self.holders.get(stripe)?;
        let choices: Vec<Vec<NodeId>> = (0..scheme.n())
            .map(|index| held.get(&index).into_iter().flatten().filter(|node| alive.contains(node)).copied().collect())
            .collect();
        matching(&choices)
    }

    /// The stripes as they are now, for the choice of the second loss.
    pub(super) fn views(&self, original: &Census, nodes: &Nodes) -> Vec<View> {
        let alive: BTreeSet<NodeId> = nodes.alive().into_iter().collect();
        let views = self.schemes.iter().map(|(stripe, (scheme, _))| {
            let live = |census: &Census| -> BTreeMap<usize, BTreeSet<NodeId>> {
                let held = census.holders.get(stripe).into_iter().flatten();
                held.map(|(index, holders)| (*index, holders.intersection(&alive).copied().collect())).collect()
            };
            View { k: scheme.k(), holders: live(self), original: live(original) }
        });
        views.collect()
    }
}

/// A different node for each shard from the nodes that hold it (augmenting paths, as for any bipartite matching).
fn matching(choices: &[Vec<NodeId>]) -> Option<Vec<NodeId>> {
    fn place(
        index: usize,
        choices: &[Vec<NodeId>],
        taken: &mut BTreeMap<NodeId, usize>,
        tried: &mut BTreeSet<NodeId>,
    ) -> bool {
        for node in &choices[index] {
            if tried.insert(*node) {
                let free = match taken.get(node).copied() {
                    None => true,
                    Some(other) => place(other, choices, taken, tried),
                };
                if free {
                    taken.insert(*node, index);
                    return true;
                }
            }
        }
        false
    }
    let mut taken = BTreeMap::new();
    for index in 0..choices.len() {
        if !place(index, choices, &mut taken, &mut BTreeSet::new()) {
            return None;
        }
    }
    let mut by_index: Vec<(usize, NodeId)> = taken.into_iter().map(|(node, index)| (index, node)).collect();
    by_index.sort_unstable();
    Some(by_index.into_iter().map(|(_, node)| node).collect())
}

/// Reads and hashes n different shards of every stripe, each from a live node of its own. Returns the bytes read.
pub(super) async fn read_all(nodes: &Nodes, census: &Census) -> anyhow::Result<u64> {
    let alive: BTreeSet<NodeId> = nodes.alive().into_iter().collect();
    let mut wanted = Vec::new();
    for (stripe, (scheme, _)) in &census.schemes {
        let holders =
            census.assignment(stripe, *scheme, &alive).with_context(|| format!("stripe {}", stripe.short()))?;
        wanted.extend(holders.into_iter().enumerate().map(|(index, node)| (*stripe, index, node)));
    }
    let reads = stream::iter(wanted).map(|(stripe, index, node)| read(nodes, stripe, index, node));
    reads.buffer_unordered(AT_ONCE).try_fold(0, async |sum, bytes| Ok(sum + bytes)).await
}

async fn read(nodes: &Nodes, stripe: StripeId, index: usize, node: NodeId) -> anyhow::Result<u64> {
    let node = nodes.running().find(|running| running.id() == node).context("the node has gone")?;
    let request = wire::GetShard { stripe: raw(&stripe), index: Some(index as u32), offset: 0, length: 0 };
    let (reply, shard) = call(nodes, node, request::Kind::GetShard(request)).await?;
    let reply::Kind::GetShard(reply) = reply else { bail!("a node gave another kind of answer") };
    let header = SignedHeader::decode_known(reply.header, &stripe)?;
    ensure!(reply.index as usize == index && shard.len() == header.shard_len as usize, "another shard than asked for");
    ensure!(header.shards.get(index) == Some(&Digest::of(&shard)), "shard {index} of {} is damaged", stripe.short());
    Ok(shard.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(numbers: &[u8]) -> Vec<NodeId> {
        numbers.iter().map(|number| NodeId([*number; 32])).collect()
    }

    #[test]
    fn every_shard_gets_a_node_of_its_own_or_the_stripe_is_not_whole() {
        assert_eq!(matching(&[nodes(&[1, 2]), nodes(&[1]), nodes(&[2, 3])]), Some(nodes(&[2, 1, 3])));
        assert_eq!(matching(&[nodes(&[1]), nodes(&[1])]), None);
        assert_eq!(matching(&[nodes(&[1]), nodes(&[])]), None);
        assert_eq!(matching(&[]), Some(Vec::new()));
    }
}
