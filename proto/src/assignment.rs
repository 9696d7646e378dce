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
mod tests {
    use super::*;
    use proptest::collection::{btree_map, btree_set};
    use proptest::prelude::{Strategy, prop_assert, prop_assert_eq, proptest};

    type Holdings = BTreeMap<NodeId, BTreeSet<usize>>;

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    /// Up to 20 nodes, some holding several indices, some holding none.
    fn holdings() -> impl Strategy<Value = Holdings> {
        btree_map((0u8..20).prop_map(node), btree_set(0usize..14, 0..4), 0..20)
    }

    fn homes() -> impl Strategy<Value = Vec<NodeId>> {
        proptest::sample::subsequence((0u8..20).collect::<Vec<_>>(), 0..=20)
            .prop_shuffle()
            .prop_map(|numbers| numbers.into_iter().map(node).collect())
    }

    fn carry_out(assignment: &Assignment, holdings: &Holdings) -> Holdings {
        let mut after = holdings.clone();
        for (home, index) in assignment.wanting(holdings) {
            after.entry(home).or_default().insert(index);
        }
        after
    }

    proptest! {
        #[test]
        fn every_home_has_one_index_and_every_index_at_most_one_home(
            homes in homes(), n in 1usize..14, holdings in holdings(),
        ) {
            let assignment = assign(&homes, n, &holdings);
            prop_assert_eq!(assignment.by_home().len(), homes.len().min(n));
            let indices: BTreeSet<usize> = assignment.by_home().iter().map(|(_, index)| *index).collect();
            prop_assert_eq!(indices.len(), homes.len().min(n));
            prop_assert!(indices.iter().all(|&index| index < n));
            for (home, index) in assignment.by_home() {
                prop_assert_eq!(assignment.home_of(*index), Some(*home));
                prop_assert_eq!(assignment.index_for(home), Some(*index));
                prop_assert!(!assignment.is_surplus(home, *index));
            }
        }

        #[test]
        fn carried_out_it_stays_as_it_is(homes in homes(), n in 1usize..14, holdings in holdings()) {
            let assignment = assign(&homes, n, &holdings);
            let after = carry_out(&assignment, &holdings);
            prop_assert_eq!(assignment.wanting(&after).count(), 0);
            prop_assert_eq!(&assign(&homes, n, &after), &assignment);
            // And still when the surplus is gone.
            let mut tidy = after;
            for (home, indices) in &mut tidy {
                indices.retain(|&index| !assignment.is_surplus(home, index));
            }
            prop_assert_eq!(&assign(&homes, n, &tidy), &assignment);
        }

        #[test]
        fn a_join_moves_one_shard(mut homes in homes(), n in 1usize..14, holdings in holdings(), at in 0usize..21) {
            let before = carry_out(&assign(&homes, n, &holdings), &holdings);
            let newcomer = node(99);
            let at = at.min(homes.len());
            homes.insert(at, newcomer);
            let assignment = assign(&homes, n, &before);
            let moves: Vec<NodeId> = assignment.wanting(&before).map(|(home, _)| home).collect();
            let expected: Vec<NodeId> = if at < n { vec![newcomer] } else { Vec::new() };
            prop_assert_eq!(moves, expected);
        }
    }

    #[test]
    fn homes_keep_what_they_hold_and_the_empty_ones_fill_the_gaps() {
        let holdings = Holdings::from([
            (node(1), BTreeSet::from([2, 7])),
            (node(3), BTreeSet::from([0, 2])),
            (node(9), BTreeSet::from([1])),
        ]);
        let assignment = assign(&[node(1), node(2), node(3), node(4)], 4, &holdings);
        assert_eq!(assignment.by_home(), [(node(1), 2), (node(2), 1), (node(3), 0), (node(4), 3)]);
        assert!(assignment.is_surplus(&node(3), 2));
        assert!(assignment.is_surplus(&node(9), 1));
        assert_eq!(assignment.index_for(&node(9)), None);
        assert_eq!(assignment.wanting(&holdings).collect::<Vec<_>>(), [(node(2), 1), (node(4), 3)]);
    }

    #[test]
    fn with_fewer_homes_than_shards_some_indices_have_no_home() {
        let holdings = Holdings::from([(node(2), BTreeSet::from([4]))]);
        let assignment = assign(&[node(1), node(2)], 5, &holdings);
        assert_eq!(assignment.by_home(), [(node(1), 0), (node(2), 4)]);
        assert_eq!(assignment.home_of(1), None);
        assert_eq!(assign(&[], 5, &holdings), Assignment::default());
    }
}
