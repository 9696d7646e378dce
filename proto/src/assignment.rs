//! Homes are a set: which home of a stripe keeps which shard, given who holds what already.
//!
//! In walk order each home claims the lowest unclaimed index that it holds; then the empty homes get the remaining
//! indices in order; everything else is surplus. So a join moves one shard per affected stripe, and two planners with
//! the same knowledge reach the same plan. Nothing here moves a shard or knows who is up.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::NodeId;

/// Which index each home of a stripe is to hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assignment {
    by_home: Vec<(NodeId, usize)>,
}

/// The assignment for a stripe of `n` shards, whose walk begins with `homes`, when `holdings` says who holds what.
///
/// Only the first `n` homes count. With fewer than `n` homes each still gets exactly one index, and the indices left
/// over have no home. Holdings of others than the homes, and indices of `n` or more, change nothing.
#[must_use]
pub fn assign(homes: &[NodeId], n: usize, holdings: &BTreeMap<NodeId, BTreeSet<usize>>) -> Assignment {
    let homes = &homes[..homes.len().min(n)];
    let mut claimed = BTreeSet::new();
    let mut indices: Vec<Option<usize>> = Vec::with_capacity(homes.len());
    for home in homes {
        let held = holdings.get(home).into_iter().flatten().copied();
        indices.push(held.filter(|&index| index < n).find(|&index| claimed.insert(index)));
    }
    let mut remaining = (0..n).filter(|index| !claimed.contains(index));
    // There are at least as many indices as homes, so none stays empty.
    let by_home =
        homes.iter().zip(indices).filter_map(|(home, index)| Some((*home, index.or_else(|| remaining.next())?)));
    Assignment { by_home: by_home.collect() }
}

impl Assignment {
    /// Homes and their indices, in walk order.
    #[must_use]
    pub fn by_home(&self) -> &[(NodeId, usize)] {
        &self.by_home
    }

    /// The home of shard `index`; `None` where there are fewer homes than shards and this one has none.
    #[must_use]
    pub fn home_of(&self, index: usize) -> Option<NodeId> {
        self.by_home.iter().find(|(_, assigned)| *assigned == index).map(|(home, _)| *home)
    }

    /// The index that `node` is to hold; `None` if it is no home.
    #[must_use]
    pub fn index_for(&self, node: &NodeId) -> Option<usize> {
        self.by_home.iter().find(|(home, _)| home == node).map(|(_, index)| *index)
    }

    /// Whether shard `index` on `node` is not where it belongs.
    #[must_use]
    pub fn is_surplus(&self, node: &NodeId, index: usize) -> bool {
        self.index_for(node) != Some(index)
    }

    /// The homes that do not hold their index yet, with that index, in walk order: what is to be sent or rebuilt.
    pub fn wanting<'a>(
        &'a self,
        holdings: &'a BTreeMap<NodeId, BTreeSet<usize>>,
    ) -> impl Iterator<Item = (NodeId, usize)> + 'a {
        self.by_home
            .iter()
            .copied()
            .filter(|(home, index)| !holdings.get(home).is_some_and(|indices| indices.contains(index)))
    }
}

#[cfg(test)]
mod tests {}
