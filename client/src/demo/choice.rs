//! Which nodes the demo kills: pure choices from who holds what.

use std::collections::{BTreeMap, BTreeSet};

use potluck_proto::id::NodeId;

/// A stripe before the second loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    /// Different shards that it takes to read it.
    pub(super) k: usize,
    /// Live nodes that hold each shard.
    pub(super) holders: BTreeMap<usize, BTreeSet<NodeId>>,
    /// Those of them that have had it since the put: the others were rebuilt.
    pub(super) original: BTreeMap<usize, BTreeSet<NodeId>>,
}

/// The second loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Second {
    /// Whom to kill.
    pub(super) nodes: Vec<NodeId>,
    /// Stripes that cannot be read from original shards alone any more.
    pub(super) forced: usize,
}

/// The founder and others, each of another zone, sparing `keep` where that is possible.
pub(super) fn first(zones: &BTreeMap<NodeId, String>, founder: NodeId, keep: &[NodeId], count: usize) -> Vec<NodeId> {
    let mut chosen = vec![founder];
    let mut others: Vec<&NodeId> = zones.keys().filter(|node| **node != founder).collect();
    while chosen.len() < count.min(zones.len()) {
        let used: BTreeSet<&String> = chosen.iter().filter_map(|node| zones.get(node)).collect();
        // What matters most: not to cut off the sheet's addresses, then to hit another zone.
        let next = others
            .iter()
            .enumerate()
            .min_by_key(|(_, node)| (keep.contains(node), zones.get(node).is_some_and(|zone| used.contains(zone))));
        let Some((index, _)) = next else { break };
        chosen.push(*others.remove(index));
    }
    chosen
}

/// Of all sets of `count` candidates that leave every stripe readable and one of `keep` alive (if one is), the one after
/// which most stripes need rebuilt shards. `None` if every set would lose a stripe.
pub(super) fn second(candidates: &[NodeId], stripes: &[View], count: usize, keep: &[NodeId]) -> Option<Second> {
    let mut best: Option<Second> = None;
    for nodes in subsets(candidates, count) {
        let left = |held: &BTreeMap<usize, BTreeSet<NodeId>>| {
            held.values().filter(|holders| holders.iter().any(|node| !nodes.contains(node))).count()
        };
        let cut_off = candidates.iter().any(|node| keep.contains(node))
            && !candidates.iter().any(|node| keep.contains(node) && !nodes.contains(node));
        if cut_off || stripes.iter().any(|stripe| left(&stripe.holders) < stripe.k) {
            continue;
        }
        let forced = stripes.iter().filter(|stripe| left(&stripe.original) < stripe.k).count();
        if best.as_ref().is_none_or(|best| forced > best.forced) {
            best = Some(Second { nodes, forced });
        }
    }
    best
}

/// All sets of `count` of these, in order. For a handful of nodes.
fn subsets(of: &[NodeId], count: usize) -> Vec<Vec<NodeId>> {
    match (count, of) {
        (0, _) => vec![Vec::new()],
        (_, []) => Vec::new(),
        (_, [head, rest @ ..]) => {
            let with = subsets(rest, count - 1).into_iter().map(|mut set| {
                set.insert(0, *head);
                set
            });
            with.chain(subsets(rest, count)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    fn held(pairs: &[(usize, u8)]) -> BTreeMap<usize, BTreeSet<NodeId>> {
        pairs.iter().map(|(index, number)| (*index, BTreeSet::from([node(*number)]))).collect()
    }

    #[test]
    fn the_first_loss_is_the_founder_and_other_zones() {
        let zones: BTreeMap<NodeId, String> =
            (0..12).map(|number| (node(number), format!("zone {}", number % 4))).collect();
        let chosen = first(&zones, node(5), &[node(0), node(2)], 3);
        assert_eq!(chosen, [node(5), node(3), node(4)]);
        assert_eq!(first(&zones, node(0), &[], 100).len(), 12);
    }

    #[test]
    fn the_second_loss_forces_rebuilt_shards_and_loses_nothing() {
        // 2+2 on nodes 1 to 4; shards 0 and 1 are original, 2 and 3 rebuilt.
        let stripe = View { k: 2, holders: held(&[(0, 1), (1, 2), (2, 3), (3, 4)]), original: held(&[(0, 1), (1, 2)]) };
        let nodes: Vec<NodeId> = (1..5).map(node).collect();
        let chosen = second(&nodes, std::slice::from_ref(&stripe), 2, &[]).unwrap();
        assert_eq!((chosen.forced, chosen.nodes), (1, vec![node(1), node(2)]));
        let spared = second(&nodes, std::slice::from_ref(&stripe), 2, &[node(1), node(2)]).unwrap();
        assert_eq!((spared.forced, spared.nodes), (1, vec![node(1), node(3)]));
        assert_eq!(second(&nodes, std::slice::from_ref(&stripe), 3, &[]), None);
        assert_eq!(subsets(&nodes, 2).len(), 6);
    }
}
