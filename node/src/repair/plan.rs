//! What a stripe needs: a pure function from who holds what and who is up to a plan that can be printed and tested.
//!
//! Two planners that see the same come to the same plan. It reads no clock, no disk and no network.

use std::collections::{BTreeMap, BTreeSet};

use potluck_proto::assignment::{Assignment, assign};
use potluck_proto::id::NodeId;
use potluck_proto::stripe::Scheme;

/// What is known of one stripe.
#[derive(Debug, Clone)]
pub struct StripeFacts<'a> {
    /// How it is coded.
    pub scheme: Scheme,
    /// All nodes of the ring in the stripe's walk order.
    pub walk: &'a [NodeId],
    /// Who is up.
    pub up: &'a BTreeSet<NodeId>,
    /// Which indices each node that was asked holds; nodes off the ring (leaving, lost) may be among them.
    pub live: &'a BTreeMap<NodeId, BTreeSet<usize>>,
    /// Which indices lie in whose trash.
    pub trash: &'a BTreeMap<NodeId, BTreeSet<usize>>,
    /// Which indices evicted nodes give: nothing counts on them, but what they give can be rebuilt from.
    pub evicted: &'a BTreeMap<NodeId, BTreeSet<usize>>,
    /// k siblings were once proved to exist: it was a whole stripe once.
    pub complete: bool,
}

/// How a stripe stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// All n indices are on live nodes, each on one of its own.
    Whole,
    /// Some are not; it survives more than ceil(m/3) further losses.
    Degraded,
    /// So few are left that repair must not wait: the margin is at most ceil(m/3).
    AtRisk,
    /// Fewer than k are reachable, of a stripe that was whole once: unreadable until holders come back.
    Unreadable,
    /// Fewer than k are reachable, and nobody knows of more: an upload that died.
    Unconfirmed,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The node takes the shard out of its trash.
    Revive {
        /// Who has it.
        node: NodeId,
        /// Which one.
        index: usize,
    },
    /// The shard is rebuilt from k others and put on the first of these nodes that takes it.
    Rebuild {
        /// Which one.
        index: usize,
        /// Where, best first.
        targets: Vec<NodeId>,
    },
}

/// What a stripe needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How it stands.
    pub condition: Condition,
    /// Different indices on live nodes.
    pub reachable: usize,
    /// What to do, in order; empty if nothing can or need be done.
    pub steps: Vec<Step>,
    /// The nodes that may act, in turn: the live holders along the walk, then those off the ring; where there is none, those
    /// who have some of it in the trash.
    pub leaders: Vec<NodeId>,
}

/// The margin at which repair starts at once: ceil(m / 3).
#[must_use]
pub fn urgent_margin(scheme: Scheme) -> usize {
    scheme.m().div_ceil(3)
}

/// The homes' assignment, by what the nodes hold.
#[must_use]
pub fn assignment(facts: &StripeFacts<'_>) -> Assignment {
    let homes = &facts.walk[..facts.walk.len().min(facts.scheme.n())];
    assign(homes, facts.scheme.n(), facts.live)
}

/// Plans one stripe's repair.
#[must_use]
pub fn plan(facts: &StripeFacts<'_>) -> Plan {
    let (n, k) = (facts.scheme.n(), facts.scheme.k());
    let live_up: BTreeMap<NodeId, &BTreeSet<usize>> = facts
        .live
        .iter()
        .filter(|(node, held)| facts.up.contains(node) && !held.is_empty())
        .map(|(node, held)| (*node, held))
        .collect();
    let reachable: BTreeSet<usize> = live_up.values().flat_map(|held| held.iter().copied()).collect();
    let up_on_ring: Vec<NodeId> = facts.walk.iter().copied().filter(|node| facts.up.contains(node)).collect();
    let mut leaders: Vec<NodeId> = up_on_ring.iter().copied().filter(|node| live_up.contains_key(node)).collect();
    leaders.extend(live_up.keys().copied().filter(|node| !facts.walk.contains(node)));
    if leaders.is_empty() {
        // Nobody serves it any more: whoever has it in the trash brings it back.
        let in_trash = |node: &NodeId| facts.trash.get(node).is_some_and(|held| !held.is_empty());
        leaders.extend(up_on_ring.iter().copied().filter(in_trash));
        let elsewhere = |node: &NodeId| facts.up.contains(node) && in_trash(node) && !facts.walk.contains(node);
        leaders.extend(facts.trash.keys().copied().filter(elsewhere));
    }

    // Two indices on one node are lost together: only what can be counted on nodes of its own is safe.
    let spread = spread(n, &live_up);
    let condition = if reachable.len() < k {
        if facts.complete { Condition::Unreadable } else { Condition::Unconfirmed }
    } else if spread.len() >= n {
        Condition::Whole
    } else if spread.len().saturating_sub(k) <= urgent_margin(facts.scheme) {
        Condition::AtRisk
    } else {
        Condition::Degraded
    };

    // Missing indices first, then those that only share a node with another.
    let mut wanting: Vec<usize> = (0..n).filter(|index| !spread.contains_key(index)).collect();
    wanting.sort_by_key(|index| (reachable.contains(index), *index));
    wanting.truncate(n.min(up_on_ring.len()).saturating_sub(spread.len()));
    let mut steps = Vec::new();
    let mut to_rebuild = Vec::new();
    let mut used: BTreeSet<NodeId> = spread.values().copied().collect();
    for index in wanting {
        // What lies in a trash comes back for nothing.
        let in_trash = facts.trash.iter().filter(|(node, held)| facts.up.contains(node) && held.contains(&index));
        let nearest =
            in_trash.map(|(node, _)| *node).min_by_key(|node| (used.contains(node), walk_position(facts.walk, node)));
        match nearest.filter(|_| !reachable.contains(&index)) {
            Some(node) => {
                used.insert(node);
                steps.push(Step::Revive { node, index });
            }
            None => to_rebuild.push(index),
        }
    }
    let mut sources = reachable.clone();
    sources.extend(steps.iter().map(|step| match step {
        Step::Revive { index, .. } | Step::Rebuild { index, .. } => *index,
    }));
    sources.extend(facts.evicted.values().flatten());
    if sources.len() >= k {
        let holds = |node: &NodeId| live_up.contains_key(node);
        let mut free: Vec<NodeId> = up_on_ring.into_iter().filter(|node| !used.contains(node)).collect();
        free.sort_by_key(holds);
        place(facts, &to_rebuild, &free, &mut steps);
    }
    Plan { condition, reachable: reachable.len(), steps, leaders }
}

/// The most indices that can be counted with a node of its own each: a maximum matching of indices and holders, by
/// augmenting paths (Kuhn, 1955), in a fixed order so that all planners find the same.
fn spread(n: usize, live: &BTreeMap<NodeId, &BTreeSet<usize>>) -> BTreeMap<usize, NodeId> {
    fn augment(
        index: usize,
        live: &BTreeMap<NodeId, &BTreeSet<usize>>,
        of_node: &mut BTreeMap<NodeId, usize>,
        seen: &mut BTreeSet<NodeId>,
    ) -> bool {
        for (node, _) in live.iter().filter(|(_, held)| held.contains(&index)) {
            if seen.insert(*node) {
                let holder_of = of_node.get(node).copied();
                if holder_of.is_none_or(|other| augment(other, live, of_node, seen)) {
                    of_node.insert(*node, index);
                    return true;
                }
            }
        }
        false
    }
    let mut of_node = BTreeMap::new();
    for index in 0..n {
        augment(index, live, &mut of_node, &mut BTreeSet::new());
    }
    of_node.into_iter().map(|(node, index)| (index, node)).collect()
}

/// Gives each index to be rebuilt its candidates: the home that the assignment names, then the other free nodes along the
/// walk.
fn place(facts: &StripeFacts<'_>, to_rebuild: &[usize], free: &[NodeId], steps: &mut Vec<Step>) {
    let assignment = assignment(facts);
    let mut taken: BTreeSet<NodeId> = BTreeSet::new();
    for &index in to_rebuild {
        let home = assignment.home_of(index).filter(|home| free.contains(home) && !taken.contains(home));
        let first = home.or_else(|| {
            // A home that the assignment keeps for another missing index is left to that one.
            let reserved = |node: &NodeId| {
                to_rebuild.iter().any(|other| *other != index && assignment.home_of(*other) == Some(*node))
            };
            let candidates = || free.iter().copied().filter(|node| !taken.contains(node));
            candidates().find(|node| !reserved(node)).or_else(|| candidates().next())
        });
        let Some(first) = first else { continue };
        taken.insert(first);
        let mut targets = vec![first];
        targets.extend(free.iter().copied().filter(|node| *node != first));
        steps.push(Step::Rebuild { index, targets });
    }
}

fn walk_position(walk: &[NodeId], node: &NodeId) -> usize {
    walk.iter().position(|other| other == node).unwrap_or(usize::MAX)
}

/// What one node should do with a surplus shard of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surplus {
    /// Send it to its home, which lacks it.
    Send {
        /// The home.
        home: NodeId,
    },
    /// The home says that it holds it: if that home proves it, and has been up for long enough, mine goes to the trash.
    Hand {
        /// The home.
        home: NodeId,
    },
}

/// The shards that `me` holds and should not, with what to do; those whose home is not up wait.
#[must_use]
pub fn surplus(facts: &StripeFacts<'_>, me: NodeId) -> Vec<(usize, Surplus)> {
    let Some(mine) = facts.live.get(&me) else { return Vec::new() };
    let assignment = assignment(facts);
    let mut found = Vec::new();
    for &index in mine {
        if !assignment.is_surplus(&me, index) {
            continue;
        }
        let Some(home) = assignment.home_of(index).filter(|home| *home != me && facts.up.contains(home)) else {
            continue;
        };
        let held = facts.live.get(&home).is_some_and(|held| held.contains(&index));
        found.push((index, if held { Surplus::Hand { home } } else { Surplus::Send { home } }));
    }
    found
}

#[cfg(test)]
mod tests;
