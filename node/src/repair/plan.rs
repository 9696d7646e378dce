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
    /// Which indices each node that was asked holds; nodes off the ring (leaving, evicted) may be among them.
    pub live: &'a BTreeMap<NodeId, BTreeSet<usize>>,
    /// Which indices lie in whose trash.
    pub trash: &'a BTreeMap<NodeId, BTreeSet<usize>>,
    /// k siblings were once proved to exist: it was a whole stripe once.
    pub complete: bool,
}

/// How a stripe stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// As many different indices as there should be are on live nodes.
    Whole,
    /// Some are missing; it survives more than ceil(m/3) further losses.
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
    /// The nodes that may act, in turn: the live holders along the walk, then those off the ring.
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
    let none = BTreeSet::new();
    let up_live = |node: &NodeId| if facts.up.contains(node) { facts.live.get(node).unwrap_or(&none) } else { &none };
    let reachable: BTreeSet<usize> =
        facts.live.keys().flat_map(|node| up_live(node).iter().copied()).filter(|index| *index < n).collect();
    let missing: Vec<usize> = (0..n).filter(|index| !reachable.contains(index)).collect();
    let up_on_ring: Vec<NodeId> = facts.walk.iter().copied().filter(|node| facts.up.contains(node)).collect();

    let mut leaders: Vec<NodeId> = up_on_ring.iter().copied().filter(|node| !up_live(node).is_empty()).collect();
    let off_ring = facts.live.keys().copied().filter(|node| !facts.walk.contains(node) && !up_live(node).is_empty());
    leaders.extend(off_ring);

    // Indices in the trash of live nodes come back first: they cost nothing.
    let in_trash = |index: usize| {
        let holders = facts.trash.iter().filter(|(node, held)| facts.up.contains(node) && held.contains(&index));
        holders.map(|(node, _)| *node).min_by_key(|node| walk_position(facts.walk, node))
    };
    let want = n.min(up_on_ring.len());
    let mut lacking = want.saturating_sub(reachable.len());
    let mut steps = Vec::new();
    let mut to_rebuild = Vec::new();
    for &index in &missing {
        if lacking == 0 {
            break;
        }
        lacking -= 1;
        match in_trash(index) {
            Some(node) => steps.push(Step::Revive { node, index }),
            None => to_rebuild.push(index),
        }
    }
    let revived = steps.len();
    if reachable.len() + revived >= k {
        place(facts, &to_rebuild, &up_on_ring, &up_live, &mut steps);
    }

    let condition = if reachable.len() < k {
        if facts.complete { Condition::Unreadable } else { Condition::Unconfirmed }
    } else if reachable.len() >= n || missing.is_empty() {
        Condition::Whole
    } else if reachable.len() - k <= urgent_margin(facts.scheme) {
        Condition::AtRisk
    } else {
        Condition::Degraded
    };
    Plan { condition, reachable: reachable.len(), steps, leaders }
}

/// Gives each index to be rebuilt its candidates: the home that the assignment names, then the others of the walk that
/// are up and hold nothing of the stripe.
fn place<'a>(
    facts: &StripeFacts<'_>,
    to_rebuild: &[usize],
    up_on_ring: &[NodeId],
    up_live: &impl Fn(&NodeId) -> &'a BTreeSet<usize>,
    steps: &mut Vec<Step>,
) {
    let assignment = assignment(facts);
    let reviving: BTreeSet<NodeId> =
        steps.iter().filter_map(|step| if let Step::Revive { node, .. } = step { Some(*node) } else { None }).collect();
    let is_free = |node: &NodeId| up_live(node).is_empty() && !reviving.contains(node);
    let free: Vec<NodeId> = up_on_ring.iter().copied().filter(is_free).collect();
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
