//! Balance, movement, zones and order of the walk.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};

use super::{NODE_BITS, POINTS_MAX, POINTS_MIN, Ring, RingEntry, points_of, positions};
use crate::assignment::assign;
use crate::id::{NodeId, StripeId, VaultId};
use crate::stripe::{Scheme, SchemeError};

const GIB: u64 = 1 << 30;

fn node(number: u64) -> NodeId {
    NodeId(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

fn key(number: u64) -> [u8; 32] {
    *blake3::keyed_hash(&[1; 32], &number.to_le_bytes()).as_bytes()
}

fn entry(number: u64, zone: &str, capacity: u64) -> RingEntry {
    RingEntry { node: node(number), zone: zone.into(), capacity }
}

fn equal(count: u64) -> Vec<RingEntry> {
    (0..count).map(|number| entry(number, "", 100 * GIB)).collect()
}

/// The walk as FORMAT.md defines it, in the plainest way.
fn reference_walk(entries: &[RingEntry], key: &[u8; 32], zone_cap: usize, zone_limit: usize) -> Vec<NodeId> {
    let mut points: Vec<(u64, NodeId)> = entries
        .iter()
        .flat_map(|entry| positions(&entry.node, points_of(entry.capacity)).map(|position| (position, entry.node)))
        .collect();
    points.sort();
    let mut first = [0; 8];
    first.copy_from_slice(&key[..8]);
    let from = u64::from_le_bytes(first) >> NODE_BITS;
    let split = points.partition_point(|(position, _)| *position < from);
    points.rotate_left(split);
    let zone_of = |node: &NodeId| {
        let zone = entries.iter().find(|entry| entry.node == *node).map(|entry| entry.zone.clone());
        zone.filter(|zone| !zone.is_empty()).unwrap_or_else(|| node.to_string())
    };

    let mut left: Vec<NodeId> = Vec::new();
    for (_, node) in points {
        if !left.contains(&node) {
            left.push(node);
        }
    }
    let mut order = Vec::new();
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    for limit in [zone_cap, zone_limit, usize::MAX] {
        left.retain(|node| {
            let count = taken.entry(zone_of(node)).or_default();
            let skip = *count >= limit;
            if !skip {
                *count += 1;
                order.push(*node);
            }
            skip
        });
    }
    order
}

fn entries() -> impl Strategy<Value = Vec<RingEntry>> {
    vec((0usize..5, 0..200 * GIB), 1..30).prop_map(|nodes| {
        let zones = ["", "attic", "cellar", "garage", "shed"];
        (0..).zip(nodes).map(|(number, (zone, capacity))| entry(number, zones[zone], capacity)).collect()
    })
}

proptest! {
    #[test]
    fn the_walk_is_as_defined_and_meets_each_node_once(
        entries in entries(), key in any::<[u8; 32]>(), zone_cap in 1usize..4, more in 0usize..4,
    ) {
        let ring = Ring::new(entries.clone());
        let walk = ring.walk(&key, zone_cap, zone_cap + more);
        let order: Vec<NodeId> = walk.iter().collect();
        prop_assert_eq!(&order, &reference_walk(&entries, &key, zone_cap, zone_cap + more));
        let different: BTreeSet<NodeId> = order.iter().copied().collect();
        prop_assert_eq!(different.len(), entries.len());
        prop_assert_eq!(order.len(), entries.len());
        prop_assert_eq!(walk.take(3), &order[..order.len().min(3)]);
    }

    #[test]
    fn without_zones_a_removal_changes_no_other_order(
        count in 2u64..40, removed in any::<u64>(), key in any::<[u8; 32]>(),
    ) {
        let removed = removed % count;
        let mut entries = equal(count);
        let mut before = Ring::new(entries.clone()).walk(&key, 1, 2).take(100);
        entries.remove(removed as usize);
        before.retain(|other| *other != node(removed));
        prop_assert_eq!(Ring::new(entries).walk(&key, 1, 2).take(100), before);
    }

    #[test]
    fn a_join_changes_at_most_one_home_also_with_zones(entries in entries(), key in any::<[u8; 32]>(), n in 1usize..12) {
        let mut fewer = entries.clone();
        let Some(newcomer) = fewer.pop() else { return Ok(()) };
        let before: BTreeSet<NodeId> = Ring::new(fewer).walk(&key, 2, 3).take(n).into_iter().collect();
        let after: BTreeSet<NodeId> = Ring::new(entries).walk(&key, 2, 3).take(n).into_iter().collect();
        let came: Vec<NodeId> = after.difference(&before).copied().collect();
        prop_assert!(came.is_empty() || came == [newcomer.node], "{:?}", came);
    }

    #[test]
    fn crowding_is_told_exactly(entries in entries(), key in any::<[u8; 32]>(), n in 0usize..35) {
        let ring = Ring::new(entries.clone());
        let walk = ring.walk(&key, 2, 4);
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for home in walk.take(n) {
            let zone = entries.iter().find(|entry| entry.node == home).map_or("", |entry| &entry.zone);
            *counts.entry(zone).or_default() += 1;
        }
        counts.remove("");
        prop_assert_eq!(walk.zones_crowded(n), counts.values().any(|&count| count > 2));
    }
}

#[test]
fn few_zones_are_filled_to_the_cap_then_to_m_then_further() -> Result<(), SchemeError> {
    let scheme = Scheme::new(5, 3)?;
    let zone_of: BTreeMap<NodeId, u64> = (0..60).map(|number| (node(number), number % 3)).collect();
    let ring = Ring::new((0..60).map(|number| entry(number, ["a", "b", "c"][(number % 3) as usize], 50 * GIB)));
    for stripe in 0..200 {
        let walk = ring.walk_stripe(&StripeId(key(stripe)), scheme);
        let most = |count: usize| {
            let mut counts = [0usize; 3];
            walk.iter().take(count).for_each(|home| counts[zone_of[&home] as usize] += 1);
            counts.into_iter().max().unwrap_or(0)
        };
        assert_eq!((most(6), most(9), most(10), most(60)), (2, 3, 4, 20));
        assert!(!walk.zones_crowded(6));
        assert!(walk.zones_crowded(7));
    }
    Ok(())
}

#[test]
fn equal_nodes_are_equally_full_and_a_join_moves_little() -> Result<(), SchemeError> {
    const STRIPES: u64 = 20_000;
    let scheme = Scheme::new(10, 4)?;
    let (before, after) = (Ring::new(equal(100)), Ring::new(equal(101)));
    let newcomer = node(100);
    let mut load: BTreeMap<NodeId, u64> = BTreeMap::new();
    let (mut least, mut moved) = (0u64, 0u64);
    for stripe in (0..STRIPES).map(|number| StripeId(key(number))) {
        let homes = before.walk_stripe(&stripe, scheme).take(scheme.n());
        homes.iter().for_each(|home| *load.entry(*home).or_default() += 1);
        let held = assign(&homes, scheme.n(), &BTreeMap::new());
        let holdings = held.by_home().iter().map(|(home, index)| (*home, BTreeSet::from([*index]))).collect();
        let homes = after.walk_stripe(&stripe, scheme).take(scheme.n());
        least += u64::from(homes.contains(&newcomer));
        moved += assign(&homes, scheme.n(), &holdings).wanting(&holdings).count() as u64;
    }
    let mean = (STRIPES * scheme.n() as u64) as f64 / 100.0;
    let fullest = load.values().max().map_or(0.0, |&fullest| fullest as f64 / mean);
    assert!(fullest <= 1.15, "fullest / mean = {fullest}");
    assert_eq!(load.len(), 100);
    assert_eq!(moved, least, "nothing moves but what the newcomer gets");
    let fair = (STRIPES * scheme.n() as u64) as f64 / 101.0;
    assert!((moved as f64) <= 1.10 * fair, "moved {moved}, the newcomer's fair part is {fair}");
    Ok(())
}

#[test]
fn load_follows_weight() {
    const STRIPES: u64 = 40_000;
    // 20 nodes of 800 GiB among 60 of 100 GiB. One shard per stripe, so that a share is exactly a weight's part.
    let ring = Ring::new((0..80).map(|number| entry(number, "", if number < 20 { 800 } else { 100 } * GIB)));
    let heavy: BTreeSet<NodeId> = (0..20).map(node).collect();
    let on_heavy =
        (0..STRIPES).filter(|&number| ring.walk(&key(number), 1, 0).iter().take(1).all(|home| heavy.contains(&home)));
    let part = on_heavy.count() as f64 / STRIPES as f64;
    let expected: f64 = heavy.iter().map(|node| ring.share(node)).sum();
    assert!((expected - 160.0 / 220.0).abs() < 1e-12);
    assert!((part / expected - 1.0).abs() < 0.03, "{part}, expected {expected}");
}

#[test]
fn points_are_absolute_and_bounded() {
    assert_eq!(points_of(0), POINTS_MIN);
    assert_eq!(points_of(16 * GIB), 64);
    assert_eq!(points_of(100 * GIB), 400);
    assert_eq!(points_of(u64::MAX), POINTS_MAX);
    let ring = Ring::new(equal(3));
    assert!(ring.points.is_sorted());
    assert_eq!(ring.points.len(), 1200);
}

#[test]
fn empty_and_repeated_entries() {
    let empty = Ring::new([]);
    assert!(empty.is_empty());
    assert_eq!(empty.walk(&key(1), 1, 1).take(5), []);
    assert!(!empty.walk(&key(1), 1, 1).zones_crowded(5));
    assert_eq!(empty.head_replicas(&VaultId([1; 32])), []);
    assert_eq!(empty.share(&node(1)), 0.0);

    let ring = Ring::new([entry(1, "a", 0), entry(2, "a", 0), entry(1, "b", GIB)]);
    assert_eq!((ring.len(), ring.contains(&node(2)), ring.contains(&node(3))), (2, true, false));
    assert!(!ring.walk(&key(1), 1, 1).zones_crowded(2), "the later entry of node 1 puts it elsewhere");
}

#[test]
fn head_replicas_leave_a_quorum_when_a_zone_goes() {
    let ring = Ring::new((0..40).map(|number| entry(number, &format!("zone {}", number % 8), 100 * GIB)));
    for vault in (0..50).map(|number| VaultId(key(number))) {
        let replicas = ring.head_replicas(&vault);
        assert_eq!(replicas.len(), 15);
        assert!(!ring.walk_heads(&vault, 15).zones_crowded(15));
    }
}
