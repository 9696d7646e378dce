//! Which node gets which shard of a stripe, as nodes take, refuse, are slow or fail. Decides; sends nothing.
//!
//! Shard i goes to the i-th node of the walk. A home that is known to be down, fails, refuses or is slow is replaced by
//! the next node of the walk behind the n-th. Each node gets one shard, so n shards taken are n different nodes.

use potluck_proto::id::NodeId;
use potluck_proto::stripe::Scheme;
use tokio::time::Instant;

/// How often one node is tried.
const TRIES: u32 = 3;

/// How a node failed to take its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// It is there, and may take the shard later.
    Busy,
    /// It was not reached, or not in time: tried again only if the put cannot do without it.
    Away,
    /// It will not take it: full, over quota, or of another mind.
    Refused,
}

/// Where a put stands when nothing is left to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Every shard is on a node of its own.
    Whole,
    /// Enough are, and no further node is there to take one.
    Degraded,
    /// Too few are.
    TooFew,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Fresh,
    Sending { index: usize, slow: bool },
    Took { index: usize },
    Waiting { index: usize, until: Instant, failure: Failure },
    Out,
}

#[derive(Debug)]
struct Candidate {
    node: NodeId,
    ready: bool,
    state: State,
    tries: u32,
}

/// A put under way.
#[derive(Debug)]
pub(super) struct Placing {
    scheme: Scheme,
    candidates: Vec<Candidate>,
}

impl Placing {
    /// A put along `walk`; each node with whether it is known to be up and to take shards.
    pub(super) fn new(scheme: Scheme, walk: impl IntoIterator<Item = (NodeId, bool)>) -> Self {
        let candidate = |(node, ready)| Candidate { node, ready, state: State::Fresh, tries: 0 };
        Self { scheme, candidates: walk.into_iter().map(candidate).collect() }
    }

    /// The next shard to send, and to whom; it counts as being sent from now on.
    pub(super) fn next(&mut self, now: Instant) -> Option<(usize, NodeId)> {
        let n = self.scheme.n();
        let found = (0..n).find_map(|index| Some((index, self.candidate_for(index, now)?)));
        // Only when all others are on their way is it known whether these will do.
        let found = found.or_else(|| {
            let short = self.short();
            (0..n).filter(|_| short).find_map(|index| Some((index, self.last_resort(index, now)?)))
        });
        let (index, position) = found?;
        let candidate = &mut self.candidates[position];
        candidate.tries += 1;
        candidate.state = State::Sending { index, slow: false };
        Some((index, candidate.node))
    }

    /// Whether shard `index` is taken or being sent; `None` if neither, `Some(true)` if it is being sent slowly.
    fn sender(&self, index: usize) -> Option<bool> {
        let mut sender = None;
        for candidate in &self.candidates {
            match candidate.state {
                State::Took { index: taken } if taken == index => return Some(false),
                State::Sending { index: sent, slow: false } if sent == index => return Some(false),
                State::Sending { index: sent, slow: true } if sent == index => sender = Some(true),
                _ => {}
            }
        }
        sender
    }

    fn candidate_for(&self, index: usize, now: Instant) -> Option<usize> {
        let n = self.scheme.n();
        let sender = self.sender(index);
        // While most are slow it is this client's uplink that is, and sending more would make it worse.
        if sender == Some(false) || (sender == Some(true) && 2 * self.taken().len() < n) {
            return None;
        }
        let usable = |candidate: &Candidate| candidate.ready && candidate.state == State::Fresh;
        if self.candidates.get(index).is_some_and(usable) {
            return Some(index);
        }
        if let Some(spare) = self.candidates.iter().skip(n).position(usable) {
            return Some(n + spare);
        }
        // A slow one may still take it; nodes that failed before are not better.
        if sender.is_some() { None } else { self.retry(index, now, |failure| failure == Failure::Busy) }
    }

    /// Who else may take shard `index` where too few will: those that failed, and those that seem to be away. Reaching
    /// for them costs time.
    fn last_resort(&self, index: usize, now: Instant) -> Option<usize> {
        if self.sender(index).is_some() {
            return None;
        }
        let fresh = |candidate: &Candidate| candidate.state == State::Fresh;
        self.retry(index, now, |_| true).or_else(|| self.candidates.iter().position(fresh))
    }

    /// A node to try again with shard `index`; best the one that was tried with it, which may have it already.
    fn retry(&self, index: usize, now: Instant, which: impl Fn(Failure) -> bool) -> Option<usize> {
        let waiting = |candidate: &Candidate| match candidate.state {
            State::Waiting { index, until, failure } if until <= now && which(failure) => Some(index),
            _ => None,
        };
        let same = self.candidates.iter().position(|candidate| waiting(candidate) == Some(index));
        same.or_else(|| self.candidates.iter().position(|candidate| waiting(candidate).is_some()))
    }

    /// Whether shards taken and being sent are too few even for a degraded put.
    fn short(&self) -> bool {
        let mut indices = [false; potluck_proto::stripe::SHARDS_LIMIT];
        for candidate in &self.candidates {
            if let State::Took { index } | State::Sending { index, .. } = candidate.state {
                indices[index] = true;
            }
        }
        indices.iter().filter(|&&busy| busy).count() < self.scheme.degraded_minimum()
    }

    fn find(&mut self, node: NodeId) -> Option<&mut Candidate> {
        self.candidates.iter_mut().find(|candidate| candidate.node == node)
    }

    /// A node has its shard on disk.
    pub(super) fn took(&mut self, node: NodeId) {
        if let Some(candidate) = self.find(node)
            && let State::Sending { index, .. } = candidate.state
        {
            candidate.state = State::Took { index };
        }
    }

    /// A node takes long: a replacement may be started beside it.
    pub(super) fn slow(&mut self, node: NodeId) {
        if let Some(Candidate { state: State::Sending { slow, .. }, .. }) = self.find(node) {
            *slow = true;
        }
    }

    /// A node did not take its shard; it may be asked again from `retry` on.
    pub(super) fn failed(&mut self, node: NodeId, failure: Failure, retry: Instant) {
        let Some(candidate) = self.find(node) else { return };
        let State::Sending { index, .. } = candidate.state else { return };
        candidate.state = if failure == Failure::Refused || candidate.tries >= TRIES {
            State::Out
        } else {
            State::Waiting { index, until: retry, failure }
        };
    }

    /// How often a node was tried.
    pub(super) fn tries(&self, node: NodeId) -> u32 {
        self.candidates.iter().find(|candidate| candidate.node == node).map_or(0, |candidate| candidate.tries)
    }

    /// When [`Placing::next`] may have something again by time alone.
    pub(super) fn wake(&self) -> Option<Instant> {
        let short = self.short();
        let waiting = self.candidates.iter().filter_map(|candidate| match candidate.state {
            State::Waiting { until, failure, .. } if short || failure == Failure::Busy => Some(until),
            _ => None,
        });
        waiting.min()
    }

    /// Who has taken which shard, by index. Two nodes may have taken the same one; the first of the walk is named.
    pub(super) fn taken(&self) -> Vec<(usize, NodeId)> {
        let mut taken = std::collections::BTreeMap::new();
        for candidate in &self.candidates {
            if let State::Took { index } = candidate.state {
                taken.entry(index).or_insert(candidate.node);
            }
        }
        taken.into_iter().collect()
    }

    /// Where the put stands, asked after [`Placing::next`] had nothing more; `None` while it goes on.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        if self.taken().len() == self.scheme.n() {
            return Some(Verdict::Whole);
        }
        let sending = self.candidates.iter().any(|candidate| matches!(candidate.state, State::Sending { .. }));
        if sending || self.wake().is_some() {
            return None;
        }
        Some(self.final_verdict())
    }

    /// Where the put stands if nothing more is tried.
    pub(super) fn final_verdict(&self) -> Verdict {
        match self.taken().len() {
            taken if taken == self.scheme.n() => Verdict::Whole,
            taken if taken >= self.scheme.degraded_minimum() => Verdict::Degraded,
            _ => Verdict::TooFew,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use std::collections::BTreeSet;
    use std::time::Duration;

    fn node(number: usize) -> NodeId {
        NodeId([number as u8; 32])
    }

    fn placing(scheme: &str, ready: &[bool]) -> Placing {
        let scheme = scheme.parse().unwrap();
        Placing::new(scheme, ready.iter().enumerate().map(|(number, &ready)| (node(number), ready)))
    }

    fn all(placing: &mut Placing, now: Instant) -> Vec<(usize, NodeId)> {
        std::iter::from_fn(|| placing.next(now)).collect()
    }

    #[tokio::test]
    async fn each_home_gets_its_index() {
        let now = Instant::now();
        let mut put = placing("2+2", &[true; 6]);
        assert_eq!(all(&mut put, now), (0..4).map(|index| (index, node(index))).collect::<Vec<_>>());
        (0..3).for_each(|number| put.took(node(number)));
        assert_eq!(put.verdict(), None);
        put.took(node(3));
        assert_eq!(put.verdict(), Some(Verdict::Whole));
    }

    #[tokio::test]
    async fn down_slow_full_and_failed_homes_are_replaced_in_walk_order() {
        let now = Instant::now();
        let mut put = placing("2+2", &[true, false, true, true, true, true, true, true]);
        assert_eq!(all(&mut put, now), [(0, node(0)), (1, node(4)), (2, node(2)), (3, node(3))]);
        put.failed(node(2), Failure::Refused, now);
        assert_eq!(all(&mut put, now), [(2, node(5))]);
        put.failed(node(3), Failure::Away, now);
        assert_eq!(all(&mut put, now), [(3, node(6))]);
        put.slow(node(0));
        assert_eq!(all(&mut put, now), [], "nobody was quicker yet");
        [4, 5].into_iter().for_each(|number| put.took(node(number)));
        assert_eq!(all(&mut put, now), [(0, node(7))]);
        [0, 6, 7].into_iter().for_each(|number| put.took(node(number)));
        assert_eq!(put.verdict(), Some(Verdict::Whole));
        assert_eq!(put.taken(), [(0, node(0)), (1, node(4)), (2, node(5)), (3, node(6))]);
    }

    #[tokio::test]
    async fn too_few_nodes_up_is_degraded_without_reaching_for_the_others() {
        let now = Instant::now();
        let mut put = placing("2+2", &[true, false, true, true, false]);
        assert_eq!(all(&mut put, now), [(0, node(0)), (2, node(2)), (3, node(3))]);
        [0, 2, 3].into_iter().for_each(|number| put.took(node(number)));
        assert_eq!(put.next(now), None);
        assert_eq!(put.verdict(), Some(Verdict::Degraded));
    }

    #[tokio::test]
    async fn those_away_are_the_last_resort_and_too_few_is_said() {
        let now = Instant::now();
        let mut put = placing("2+2", &[true, false, true, false]);
        assert_eq!(all(&mut put, now), [(0, node(0)), (2, node(2)), (1, node(1))]);
        [0, 2].into_iter().for_each(|number| put.took(node(number)));
        put.failed(node(1), Failure::Refused, now);
        assert_eq!(all(&mut put, now), [(1, node(3))]);
        put.failed(node(3), Failure::Away, now + Duration::from_secs(1));
        assert_eq!((put.next(now), put.verdict()), (None, None));
        let later = put.wake().unwrap();
        assert_eq!(put.next(later), Some((1, node(3))));
        put.failed(node(3), Failure::Refused, later);
        assert_eq!(put.verdict(), Some(Verdict::TooFew));
    }

    #[tokio::test]
    async fn a_busy_node_is_asked_again_and_a_lost_one_only_if_it_must_be() {
        let now = Instant::now();
        let mut put = placing("1+2", &[true; 3]);
        all(&mut put, now);
        put.took(node(0));
        put.failed(node(1), Failure::Busy, now + Duration::from_secs(1));
        put.failed(node(2), Failure::Away, now + Duration::from_secs(1));
        let later = put.wake().unwrap();
        assert_eq!(all(&mut put, later), [(1, node(1))]);
        put.took(node(1));
        assert_eq!((put.next(later), put.verdict()), (None, Some(Verdict::Degraded)));
    }

    proptest! {
        /// Whatever nodes do: it ends, nobody has two shards, and the verdict is what the taken shards say.
        #[test]
        fn every_put_ends_and_says_the_truth(
            k in 1usize..5, m in 0usize..4, ready in proptest::collection::vec(any::<bool>(), 1..12),
            fates in proptest::collection::vec(0u8..5, 256),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _guard = runtime.enter();
            let mut now = Instant::now();
            let scheme = Scheme::new(k, m).unwrap();
            let mut put = Placing::new(scheme, ready.iter().enumerate().map(|(number, &ready)| (node(number), ready)));
            let mut fates = fates.into_iter().cycle();
            let (mut sending, mut steps) = (Vec::new(), 0);
            let verdict = loop {
                steps += 1;
                prop_assert!(steps < 500);
                sending.extend(all(&mut put, now).into_iter().map(|(_, node)| node));
                if let Some(verdict) = put.verdict() {
                    break verdict;
                }
                match sending.pop() {
                    Some(sender) => match fates.next() {
                        Some(0 | 1) => put.took(sender),
                        Some(2) => put.failed(sender, Failure::Refused, now),
                        Some(3) => put.failed(sender, Failure::Busy, now + Duration::from_secs(1)),
                        _ => {
                            put.slow(sender);
                            sending.extend(all(&mut put, now).into_iter().map(|(_, node)| node));
                            put.failed(sender, Failure::Away, now + Duration::from_secs(1));
                        }
                    },
                    None => now = put.wake().unwrap(),
                }
            };
            let taken = put.taken();
            let nodes: BTreeSet<_> = taken.iter().map(|(_, node)| *node).collect();
            prop_assert_eq!(nodes.len(), taken.len());
            prop_assert_eq!(verdict, put.final_verdict());
            prop_assert!(taken.len() >= scheme.degraded_minimum() || put.final_verdict() == Verdict::TooFew);
        }
    }
}
