//! The ring: how even, how calm when a node joins, how true to weights, how fast.
//!
//! Weighted rendezvous hashing, which looks at every node for every stripe, is the ideal beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::time::Instant;

use potluck_proto::assignment::assign;
use potluck_proto::id::{NodeId, StripeId};
use potluck_proto::ring::{Ring, RingEntry};
use potluck_proto::stripe::Scheme;

use super::{Effort, Figure, Goal};

const NODES: u64 = 100;
const GIB: u64 = 1 << 30;
const CAPACITY: u64 = 100 * GIB;
const HEAVY: u64 = 8;

pub(super) fn run(effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let stripes = match effort {
        Effort::Full | Effort::Bytes(_) => 100_000,
        Effort::Quick => 20_000,
    };
    let scheme = Scheme::new(10, 4)?;
    let mut figures = balance(stripes, scheme);
    figures.extend(join(stripes, scheme));
    figures.push(weights(stripes, scheme));
    figures.extend(speed(scheme));
    Ok(figures)
}

fn node(number: u64) -> NodeId {
    NodeId(*blake3::keyed_hash(b"the nodes of the ring benchmark.", &number.to_le_bytes()).as_bytes())
}

fn stripe(number: u64) -> StripeId {
    StripeId(*blake3::keyed_hash(b"and the stripes of the benchmark", &number.to_le_bytes()).as_bytes())
}

fn ring(nodes: u64, capacity: impl Fn(u64) -> u64) -> Ring {
    let entry = |number| RingEntry { node: node(number), zone: String::new(), capacity: capacity(number) };
    Ring::new((0..nodes).map(entry))
}

fn ring_load(ring: &Ring, stripes: u64, scheme: Scheme) -> BTreeMap<NodeId, u64> {
    let mut load = BTreeMap::new();
    for stripe in (0..stripes).map(stripe) {
        for home in ring.walk_stripe(&stripe, scheme).iter().take(scheme.n()) {
            *load.entry(home).or_default() += 1;
        }
    }
    load
}

/// The same with weighted rendezvous hashing: of each stripe, the n nodes with the lowest `-ln(hash) / weight`.
fn rendezvous_load(weights: &[(NodeId, f64)], stripes: u64, scheme: Scheme) -> BTreeMap<NodeId, u64> {
    let mut load = BTreeMap::new();
    let seeds: Vec<u64> = weights.iter().map(|(node, _)| word(&node.0)).collect();
    let mut scores: Vec<(f64, usize)> = Vec::new();
    for stripe in (0..stripes).map(|number| word(&stripe(number).0)) {
        scores.clear();
        scores.extend(seeds.iter().zip(weights).enumerate().map(|(position, (seed, (_, weight)))| {
            // 53 bits and a half: between 0 and 1, never either.
            let uniform = ((mix(seed ^ mix(stripe)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            (-uniform.ln() / weight, position)
        }));
        scores.select_nth_unstable_by(scheme.n(), |left, right| left.0.total_cmp(&right.0));
        for (_, position) in &scores[..scheme.n()] {
            *load.entry(weights[*position].0).or_default() += 1;
        }
    }
    load
}

fn word(bytes: &[u8; 32]) -> u64 {
    bytes.iter().take(8).fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The fullest node's load as a multiple of what its weight stands for.
fn fullest(load: &BTreeMap<NodeId, u64>, weights: &[(NodeId, f64)]) -> f64 {
    let shards: u64 = load.values().sum();
    let whole: f64 = weights.iter().map(|(_, weight)| weight).sum();
    let fill =
        |(node, weight): &(NodeId, f64)| load.get(node).copied().unwrap_or(0) as f64 / (shards as f64 * weight / whole);
    weights.iter().map(fill).fold(0.0, f64::max)
}

fn balance(stripes: u64, scheme: Scheme) -> Vec<Figure> {
    let weights: Vec<(NodeId, f64)> = (0..NODES).map(|number| (node(number), 1.0)).collect();
    let ours = fullest(&ring_load(&ring(NODES, |_| CAPACITY), stripes, scheme), &weights);
    let ideal = fullest(&rendezvous_load(&weights, stripes, scheme), &weights);
    let figure = |case: &str, value, goal| Figure { case: case.into(), value, unit: "", floor: Some(1.0), goal };
    vec![
        figure("100 equal nodes: fullest / mean", ours, Some(Goal::AtMost(1.15))),
        figure("100 equal nodes: fullest / mean, rendezvous", ideal, None),
    ]
}

/// A 101st node joins: shards moved, beside those that the newcomer is to have, and beside its fair part.
fn join(stripes: u64, scheme: Scheme) -> Vec<Figure> {
    let (before, after) = (ring(NODES, |_| CAPACITY), ring(NODES + 1, |_| CAPACITY));
    let newcomer = node(NODES);
    let (mut moved, mut needed) = (0u64, 0u64);
    for stripe in (0..stripes).map(stripe) {
        let homes = before.walk_stripe(&stripe, scheme).take(scheme.n());
        let held = assign(&homes, scheme.n(), &BTreeMap::new());
        let holdings = held.by_home().iter().map(|&(home, index)| (home, BTreeSet::from([index]))).collect();
        let homes = after.walk_stripe(&stripe, scheme).take(scheme.n());
        moved += assign(&homes, scheme.n(), &holdings).wanting(&holdings).count() as u64;
        needed += u64::from(homes.contains(&newcomer));
    }
    let fair = (stripes * scheme.n() as u64) as f64 / (NODES + 1) as f64;
    let figure = |case: &str, floor| Figure {
        case: case.into(),
        value: moved as f64,
        unit: "",
        floor: Some(floor),
        goal: Some(Goal::AtMost(1.10)),
    };
    vec![
        figure("a join: shards moved / what the newcomer gets", needed as f64),
        figure("a join: shards moved / its fair part", fair),
    ]
}

fn weights(stripes: u64, scheme: Scheme) -> Figure {
    let weight = |number: u64| if number.is_multiple_of(2) { 1 } else { HEAVY };
    let weights: Vec<(NodeId, f64)> = (0..NODES).map(|number| (node(number), weight(number) as f64)).collect();
    let load = ring_load(&ring(NODES, |number| weight(number) * CAPACITY), stripes, scheme);
    Figure {
        case: "weights 1:8: fullest / its share, beside rendezvous".into(),
        value: fullest(&load, &weights),
        unit: "",
        floor: Some(fullest(&rendezvous_load(&weights, stripes, scheme), &weights)),
        goal: Some(Goal::AtMost(1.10)),
    }
}

fn speed(scheme: Scheme) -> Vec<Figure> {
    const LOOKUPS: u64 = 100_000;
    const LARGE: u64 = 1000;
    let figure = |case: String, value, unit| Figure { case, value, unit, floor: None, goal: None };
    let start = Instant::now();
    let large = ring(LARGE, |_| CAPACITY);
    let mut figures = vec![figure("1000 nodes: making the ring".into(), start.elapsed().as_secs_f64() * 1e3, "ms")];
    let one_zone =
        Ring::new((0..LARGE).map(|number| RingEntry { node: node(number), zone: "only".into(), capacity: CAPACITY }));
    for (case, ring) in [("each a zone", &large), ("all in one zone", &one_zone)] {
        let keys: Vec<StripeId> = (0..LOOKUPS).map(stripe).collect();
        let start = Instant::now();
        for key in &keys {
            black_box(ring.walk_stripe(key, scheme).take(scheme.n()));
        }
        let micros = start.elapsed().as_secs_f64() * 1e6 / LOOKUPS as f64;
        figures.push(figure(format!("1000 nodes, {case}: finding 14 homes"), micros, "us"));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rendezvous_gives_each_stripe_n_homes() -> anyhow::Result<()> {
        let weights: Vec<(NodeId, f64)> = (0..20).map(|number| (node(number), 1.0)).collect();
        let load = rendezvous_load(&weights, 100, Scheme::new(10, 4)?);
        assert_eq!(load.values().sum::<u64>(), 1400);
        assert!(fullest(&load, &weights) >= 1.0);
        Ok(())
    }
}
