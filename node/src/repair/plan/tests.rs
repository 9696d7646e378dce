//! Plans for stripes in every state, and a property: carrying plans out always ends in a whole stripe.

use super::*;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

fn node(number: u8) -> NodeId {
    NodeId([number; 32])
}

fn nodes(numbers: impl IntoIterator<Item = u8>) -> Vec<NodeId> {
    numbers.into_iter().map(node).collect()
}

/// Nodes 1.. hold index 0..; the walk is 1..=walk.
struct World {
    scheme: Scheme,
    walk: Vec<NodeId>,
    up: BTreeSet<NodeId>,
    live: BTreeMap<NodeId, BTreeSet<usize>>,
    trash: BTreeMap<NodeId, BTreeSet<usize>>,
    evicted: BTreeMap<NodeId, BTreeSet<usize>>,
    complete: bool,
}

impl World {
    fn new(walk: u8, k: usize, m: usize) -> Self {
        let scheme = Scheme::new(k, m).unwrap();
        let walk = nodes(1..=walk);
        let live = walk.iter().take(scheme.n()).enumerate().map(|(index, node)| (*node, BTreeSet::from([index])));
        World {
            scheme,
            up: walk.iter().copied().collect(),
            live: live.collect(),
            walk,
            trash: BTreeMap::new(),
            evicted: BTreeMap::new(),
            complete: true,
        }
    }

    fn facts(&self) -> StripeFacts<'_> {
        StripeFacts {
            scheme: self.scheme,
            walk: &self.walk,
            up: &self.up,
            live: &self.live,
            trash: &self.trash,
            evicted: &self.evicted,
            complete: self.complete,
        }
    }

    fn down(mut self, numbers: &[u8]) -> Self {
        for number in numbers {
            self.up.remove(&node(*number));
        }
        self
    }

    fn plan(&self) -> Plan {
        plan(&self.facts())
    }
}

#[test]
fn a_whole_stripe_needs_nothing() {
    let plan = World::new(12, 5, 3).plan();
    assert_eq!((plan.condition, plan.reachable, plan.steps.len()), (Condition::Whole, 8, 0));
    assert_eq!(plan.leaders, nodes(1..=8));
}

#[test]
fn one_loss_is_degraded_two_are_urgent_and_the_next_of_the_walk_take_them() {
    let one = World::new(12, 5, 3).down(&[3]).plan();
    assert_eq!(one.condition, Condition::Degraded);
    assert_eq!(one.steps, [Step::Rebuild { index: 2, targets: nodes(9..=12) }]);
    let two = World::new(12, 5, 3).down(&[1, 3]).plan();
    assert_eq!(two.condition, Condition::AtRisk);
    assert_eq!(two.leaders[0], node(2));
    let targets = |step: &Step| match step {
        Step::Rebuild { index, targets } => (*index, targets[0]),
        Step::Revive { .. } => panic!("nothing is in the trash"),
    };
    assert_eq!(two.steps.iter().map(targets).collect::<Vec<_>>(), [(0, node(9)), (2, node(10))]);
}

#[test]
fn below_k_nothing_is_rebuilt_and_the_words_differ() {
    let mut world = World::new(12, 5, 3).down(&[1, 2, 3, 4]);
    assert_eq!((world.plan().condition, world.plan().steps.len()), (Condition::Unreadable, 0));
    world.complete = false;
    assert_eq!(world.plan().condition, Condition::Unconfirmed);
}

#[test]
fn what_evicted_nodes_give_is_rebuilt_from_and_counts_for_nothing() {
    let mut world = World::new(12, 5, 3).down(&[1, 2, 3, 4]);
    world.evicted.insert(node(20), BTreeSet::from([7]));
    assert_eq!(world.plan().steps, [], "index 7 is on a live node too");
    world.evicted.insert(node(21), BTreeSet::from([2]));
    let plan = world.plan();
    assert_eq!((plan.condition, plan.reachable), (Condition::Unreadable, 4));
    let rebuilt: Vec<usize> = plan
        .steps
        .iter()
        .map(|step| match step {
            Step::Rebuild { index, targets } => {
                assert!(!targets.contains(&node(20)) && !targets.contains(&node(21)));
                *index
            }
            Step::Revive { .. } => panic!("nothing is in the trash"),
        })
        .collect();
    assert_eq!(rebuilt, [0, 1, 2, 3]);
    assert!(!plan.leaders.contains(&node(21)));
}

#[test]
fn the_trash_is_revived_before_anything_is_rebuilt() {
    let mut world = World::new(12, 5, 3).down(&[3]);
    world.trash.insert(node(11), BTreeSet::from([2]));
    assert_eq!(world.plan().steps, [Step::Revive { node: node(11), index: 2 }]);
    // Also when only the trash brings it back to k.
    let mut world = World::new(12, 5, 3).down(&[1, 2, 3, 4]);
    world.trash.insert(node(11), BTreeSet::from([2]));
    assert_eq!(world.plan().steps[0], Step::Revive { node: node(11), index: 2 });
}

#[test]
fn what_lies_only_in_trash_is_brought_back_by_those_who_have_it() {
    // Four homes took over from four others, and were lost all at once.
    let mut world = World::new(8, 2, 2).down(&[1, 2, 3, 4]);
    for (number, index) in [(7, 0), (6, 1), (8, 2), (9, 3)] {
        world.trash.insert(node(number), BTreeSet::from([index]));
    }
    world.up.insert(node(9));
    let plan = world.plan();
    assert_eq!(plan.leaders, nodes([6, 7, 8, 9]));
    let revived: BTreeSet<usize> = plan
        .steps
        .iter()
        .filter_map(|step| if let Step::Revive { index, .. } = step { Some(*index) } else { None })
        .collect();
    assert_eq!(revived, BTreeSet::from([0, 1, 2, 3]));
}

#[test]
fn with_fewer_nodes_than_shards_each_live_node_holds_one() {
    let world = World::new(8, 5, 3).down(&[7, 8]);
    assert_eq!(world.plan().steps, []);
    assert_eq!(world.plan().condition, Condition::AtRisk);
    let mut world = World::new(8, 5, 3).down(&[8]);
    world.live.remove(&node(7));
    assert_eq!(world.plan().steps, [Step::Rebuild { index: 6, targets: nodes([7]) }]);
}

#[test]
fn two_indices_on_one_node_are_spread_over_two() {
    let mut world = World::new(12, 5, 3);
    world.live.remove(&node(2));
    world.live.insert(node(1), BTreeSet::from([0, 1]));
    let plan = world.plan();
    assert_eq!((plan.condition, plan.reachable), (Condition::Degraded, 8));
    assert!(
        matches!(&plan.steps[..], [Step::Rebuild { index: 1, targets }] if targets[0] == node(2)),
        "{:?}",
        plan.steps
    );
    // A further copy does not hide it: eight indices on seven nodes.
    world.live.insert(node(3), BTreeSet::from([2, 0]));
    assert_eq!(world.plan().condition, Condition::Degraded);
    // On an eighth node it does: 0 counts there, 1 on node 1.
    world.live.insert(node(9), BTreeSet::from([0]));
    assert_eq!(world.plan().condition, Condition::Whole);
}

#[test]
fn surplus_goes_home_and_is_handed_over() {
    // Node 3 was away; 9 holds its shard meanwhile; 3 came back empty.
    let mut world = World::new(12, 5, 3);
    world.live.remove(&node(3));
    world.live.insert(node(9), BTreeSet::from([2]));
    assert_eq!(surplus(&world.facts(), node(9)), [(2, Surplus::Send { home: node(3) })]);
    world.live.insert(node(3), BTreeSet::from([2]));
    assert_eq!(surplus(&world.facts(), node(9)), [(2, Surplus::Hand { home: node(3) })]);
    assert_eq!(surplus(&world.facts(), node(3)), []);
    world.up.remove(&node(3));
    assert_eq!(surplus(&world.facts(), node(9)), []);
}

#[test]
fn a_node_off_the_ring_hands_all_over() {
    let mut world = World::new(12, 5, 3);
    world.walk.remove(0);
    let expected = [(0, Surplus::Send { home: node(9) })];
    assert_eq!(surplus(&world.facts(), node(1)), expected);
}

proptest! {
    /// Any indices on any nodes, any nodes up: following the plans makes the stripe whole in a few rounds, and then there is
    /// nothing more to do.
    #[test]
    fn carrying_out_a_plan_makes_the_stripe_whole(
        places in proptest::collection::vec((0u8..14, 0usize..8), 5..20),
        down in proptest::collection::btree_set(1u8..=14, 0..6),
        trash in any::<bool>(),
    ) {
        let mut world = World::new(14, 5, 3);
        world.live.clear();
        for (count, &(holder, index)) in places.iter().enumerate() {
            let map = if trash && count % 4 == 3 { &mut world.trash } else { &mut world.live };
            map.entry(node(holder + 1)).or_default().insert(index);
        }
        let world = world.down(&down.into_iter().collect::<Vec<_>>());
        let first = world.plan();
        let mut after = World { live: world.live.clone(), walk: world.walk.clone(), up: world.up.clone(), trash: world.trash.clone(), ..world };
        if first.reachable < 5 && !first.steps.iter().any(|step| matches!(step, Step::Revive { .. })) {
            prop_assert!(first.steps.is_empty());
            return Ok(());
        }
        // A revival may put two indices on one node, which the next round parts.
        for _ in 0..3 {
            for step in plan(&after.facts()).steps {
                match step {
                    Step::Revive { node, index } => {
                        prop_assert!(after.trash.get_mut(&node).unwrap().remove(&index));
                        after.live.entry(node).or_default().insert(index);
                    }
                    Step::Rebuild { index, targets } => {
                        prop_assert!(after.up.contains(&targets[0]));
                        prop_assert!(after.live.entry(targets[0]).or_default().insert(index), "it was there");
                    }
                }
            }
        }
        let second = plan(&after.facts());
        prop_assert!(second.reachable >= first.reachable);
        if first.reachable >= 5 {
            // At least eight of the fourteen nodes are up.
            prop_assert_eq!(second.condition, Condition::Whole);
            prop_assert_eq!(second.steps, []);
        }
    }
}
