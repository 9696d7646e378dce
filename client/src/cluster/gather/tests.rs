//! Whom a read asks next: every holder is tried before a read is given up, and none twice for the same.

use super::*;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

fn node(number: usize) -> NodeId {
    NodeId([number as u8; 32])
}

/// A read where node i is the likely holder of shard i.
fn gather(scheme: &str, wanted: &[(usize, Range<u64>)]) -> Gather {
    let scheme: Scheme = scheme.parse().unwrap();
    let likely = (0..scheme.n()).map(|index| vec![node(index)]).collect();
    Gather::new(scheme, wanted.iter().cloned().collect(), likely)
}

fn fetch(index: usize, from: usize, range: Range<u64>) -> Action {
    Action::Fetch { index, node: node(from), range }
}

fn all(gather: &mut Gather) -> Vec<Action> {
    std::iter::from_fn(|| gather.next()).collect()
}

#[test]
fn only_what_is_wanted_is_asked_while_all_goes_well() {
    let mut read = gather("3+2", &[(0, 5..10), (1, 0..10)]);
    assert_eq!(all(&mut read), [fetch(0, 0, 5..10), fetch(1, 1, 0..10)]);
    read.arrived(0, node(0), 5..10);
    assert_eq!((read.next(), read.verdict()), (None, None));
    read.arrived(1, node(1), 0..10);
    assert_eq!(read.verdict(), Some(Outcome::Direct));
}

#[test]
fn a_slow_holder_of_a_whole_stripe_costs_one_sibling() {
    let mut read = gather("3+2", &[(0, 0..10), (1, 0..10), (2, 0..10)]);
    assert_eq!(all(&mut read).len(), 3);
    read.slow(1, node(1));
    assert_eq!(all(&mut read), [fetch(3, 3, 0..10)]);
    [0, 2, 3].into_iter().for_each(|index| read.arrived(index, node(index), 0..10));
    assert_eq!(read.verdict(), Some(Outcome::Rebuild { column: 0..10, from: vec![0, 2, 3], missing: vec![1] }));
}

#[test]
fn the_slow_one_may_still_win() {
    let mut read = gather("3+2", &[(1, 4..8)]);
    all(&mut read);
    read.slow(1, node(1));
    assert_eq!(all(&mut read), [fetch(0, 0, 4..8), fetch(2, 2, 4..8), fetch(3, 3, 4..8)]);
    read.arrived(1, node(1), 4..8);
    assert_eq!(read.verdict(), Some(Outcome::Direct));
}

#[test]
fn a_lost_range_is_rebuilt_from_the_same_range_of_others() {
    let mut read = gather("2+2", &[(0, 64..128)]);
    all(&mut read);
    read.failed(0, node(0), Failure::Away);
    assert_eq!(all(&mut read), [fetch(1, 1, 64..128), fetch(2, 2, 64..128)]);
    read.failed(1, node(1), Failure::Away);
    assert_eq!(all(&mut read), [fetch(3, 3, 64..128)]);
    read.arrived(2, node(2), 64..128);
    read.arrived(3, node(3), 64..128);
    assert_eq!(read.verdict(), Some(Outcome::Rebuild { column: 64..128, from: vec![2, 3], missing: vec![0] }));
}

#[test]
fn who_does_not_have_it_starts_a_search_and_the_finder_is_asked() {
    let mut read = gather("2+1", &[(0, 0..4)]);
    all(&mut read);
    read.failed(0, node(0), Failure::NotThere);
    assert_eq!(all(&mut read), [Action::Search(Circle::Walk)]);
    read.found(node(9), [0]);
    assert_eq!(all(&mut read), [fetch(0, 9, 0..4)]);
    read.arrived(0, node(9), 0..4);
    assert_eq!(read.verdict(), Some(Outcome::Direct));
}

#[test]
fn a_slow_search_is_not_waited_for() {
    let mut read = gather("2+1", &[(0, 0..4)]);
    all(&mut read);
    read.failed(0, node(0), Failure::NotThere);
    all(&mut read);
    read.search_slow();
    assert_eq!(all(&mut read), [fetch(1, 1, 0..4), fetch(2, 2, 0..4)]);
}

#[test]
fn everybody_is_asked_before_it_fails_and_those_away_once_more() {
    let mut read = gather("2+1", &[(0, 0..4)]);
    all(&mut read);
    read.failed(0, node(0), Failure::Away);
    assert_eq!(all(&mut read), [fetch(1, 1, 0..4), fetch(2, 2, 0..4)]);
    read.arrived(1, node(1), 0..4);
    read.failed(2, node(2), Failure::NotThere);
    let search = |read: &mut Gather, circle| {
        assert_eq!(all(read), [Action::Search(circle)]);
        assert_eq!(read.verdict(), None);
        read.search_ended();
    };
    [Circle::Walk, Circle::Up].into_iter().for_each(|circle| search(&mut read, circle));
    assert_eq!((read.next(), read.verdict()), (None, Some(Outcome::Failed { reachable: 1 })));
    read.again();
    // Shard 2 was answered for: only the one that was away is worth another try.
    assert_eq!(all(&mut read), [fetch(0, 0, 0..4)]);
    read.failed(0, node(0), Failure::Away);
    [Circle::Walk, Circle::Up, Circle::All].into_iter().for_each(|circle| search(&mut read, circle));
    assert_eq!((read.next(), read.verdict()), (None, Some(Outcome::Failed { reachable: 1 })));
}

proptest! {
    /// Whatever holders do: a read ends, with data if and only if k different shards (or all wanted) can be had.
    #[test]
    fn a_read_succeeds_if_enough_shards_can_be_had(
        k in 1usize..5, m in 0usize..4,
        first in any::<u8>(), last in any::<u8>(), fates in proptest::collection::vec(0u8..5, 9), seed in any::<u64>(),
    ) {
        let scheme = Scheme::new(k, m).unwrap();
        let (first, last) = (usize::from(first) % k, usize::from(last) % k);
        let (first, last) = (first.min(last), first.max(last));
        let wanted: BTreeMap<usize, Range<u64>> = (first..=last)
            .map(|index| (index, if index == first { 64 } else { 0 }..if index == last { 128 } else { 192 }))
            .collect();
        let likely = (0..k + m).map(|index| vec![node(index)]).collect();
        let mut read = Gather::new(scheme, wanted.clone(), likely);
        // 0, 1: gives it. 2: away. 3: does not have it, but node 100 + i does. 4: slow, then gives it.
        let good = |index: usize| fates[index] != 2;
        let (mut open, mut turn, mut steps) = (Vec::new(), seed, 0);
        let outcome = loop {
            steps += 1;
            prop_assert!(steps < 1000);
            open.extend(all(&mut read));
            if let Some(outcome) = read.verdict() {
                break outcome;
            }
            turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            match open.swap_remove((turn >> 33) as usize % open.len()) {
                Action::Search(circle) => {
                    if circle == Circle::Up {
                        (0..k + m).filter(|&index| fates[index] == 3).for_each(|index| read.found(node(100 + index), [index]));
                    }
                    read.search_ended();
                }
                Action::Fetch { index, node: asked, range } => match fates[index] {
                    2 => read.failed(index, asked, Failure::Away),
                    3 if asked == node(index) => read.failed(index, asked, Failure::NotThere),
                    4 => {
                        read.slow(index, asked);
                        open.extend(all(&mut read));
                        read.arrived(index, asked, range);
                    }
                    _ => read.arrived(index, asked, range),
                },
            }
        };
        let enough = (0..k + m).filter(|&index| good(index)).count() >= k || wanted.keys().all(|&index| good(index));
        match outcome {
            Outcome::Failed { .. } => prop_assert!(!enough),
            Outcome::Direct => prop_assert!(wanted.keys().all(|&index| good(index))),
            Outcome::Rebuild { column, from, missing } => {
                prop_assert!(enough);
                prop_assert_eq!(from.len(), k);
                prop_assert!(missing.iter().all(|index| covers(&column, &wanted[index]) && !from.contains(index)));
            }
        }
    }
}
