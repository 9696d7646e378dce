//! Which shards of a stripe to ask from whom, so that some ranges of its data come together. Decides; sends nothing.
//!
//! First each wanted data shard is asked from its likely holder. Where that one is away or slow, the *column* is asked:
//! the same range of so many siblings that k of them rebuild what is missing. Where likely holders answer that they do
//! not have it, the stripe's other holders are searched for, in widening circles.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use potluck_proto::id::NodeId;
use potluck_proto::stripe::Scheme;

/// How a fetch failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The node was not reached, not in time, or is busy: it may have the shard.
    Away,
    /// The node answered that it does not have the shard, or sent something else.
    NotThere,
}

/// How far a search goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Circle {
    /// The first nodes of the walk.
    Walk,
    /// All that are up.
    Up,
    /// All members, also those that seem to be away.
    All,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Ask `node` for bytes `range` of shard `index`.
    Fetch {
        /// The shard.
        index: usize,
        /// Whom to ask.
        node: NodeId,
        /// Which bytes of it.
        range: Range<u64>,
    },
    /// Ask who holds what, as far as this circle.
    Search(Circle),
}

/// What came together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Every wanted range is there.
    Direct,
    /// Range `column` of the shards `from` rebuilds that of the shards `missing`, which covers what is wanted of them.
    Rebuild {
        /// Which bytes of the shards.
        column: Range<u64>,
        /// k shards that were fetched.
        from: Vec<usize>,
        /// The wanted ones that were not.
        missing: Vec<usize>,
    },
    /// Nobody else is left to ask.
    Failed {
        /// Different shards that could be had.
        reachable: usize,
    },
}

#[derive(Debug)]
struct Asked {
    index: usize,
    node: NodeId,
    range: Range<u64>,
    slow: bool,
}

/// A read under way.
#[derive(Debug)]
pub(super) struct Gather {
    scheme: Scheme,
    wanted: BTreeMap<usize, Range<u64>>,
    got: Vec<(usize, Range<u64>)>,
    /// The range that siblings are asked for, once one is needed.
    column: Option<Range<u64>>,
    /// By index: who may hold it, likeliest first, and how it failed.
    holders: Vec<Vec<(NodeId, Option<Failure>)>>,
    asked: Vec<Asked>,
    searched: Option<Circle>,
    /// The widest circle that may be searched: reaching for those away costs time, so it is the last thing to do.
    widest: Circle,
    searching: bool,
    search_slow: bool,
}

fn covers(outer: &Range<u64>, inner: &Range<u64>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

impl Gather {
    /// A read of these ranges of data shards; `likely` has a holder or several for each index.
    pub(super) fn new(scheme: Scheme, wanted: BTreeMap<usize, Range<u64>>, likely: Vec<Vec<NodeId>>) -> Self {
        let mut holders: Vec<Vec<_>> =
            likely.into_iter().map(|nodes| nodes.into_iter().map(|node| (node, None)).collect()).collect();
        holders.resize_with(scheme.n(), Vec::new);
        Self {
            scheme,
            wanted,
            got: Vec::new(),
            column: None,
            holders,
            asked: Vec::new(),
            searched: None,
            widest: Circle::Up,
            searching: false,
            search_slow: false,
        }
    }

    fn missing(&self) -> impl Iterator<Item = (usize, &Range<u64>)> {
        self.wanted.iter().map(|(index, range)| (*index, range)).filter(|(index, range)| !self.has(*index, range))
    }

    fn has(&self, index: usize, range: &Range<u64>) -> bool {
        self.got.iter().any(|(got, bytes)| *got == index && covers(bytes, range))
    }

    /// Who may still give shard `index`, and is not being asked for it.
    fn untried(&self, index: usize) -> Option<NodeId> {
        let idle = |node: &NodeId| !self.asked.iter().any(|asked| asked.index == index && asked.node == *node);
        self.holders[index].iter().find(|(node, failure)| failure.is_none() && idle(node)).map(|(node, _)| *node)
    }

    /// Whether shard `index` is being asked for, in this range, from someone who is not slow.
    fn pending(&self, index: usize, range: &Range<u64>) -> bool {
        self.asked.iter().any(|asked| asked.index == index && !asked.slow && covers(&asked.range, range))
    }

    /// The next thing to do; it counts as begun.
    pub(super) fn next(&mut self) -> Option<Action> {
        if self.outcome().is_some() {
            return None;
        }
        let mut column_needed = self.column.is_some();
        let mut search_needed = false;
        let mut direct = None;
        for (index, range) in self.missing() {
            if self.pending(index, range) {
                continue;
            }
            let slow = self.asked.iter().any(|asked| asked.index == index);
            match self.untried(index) {
                Some(node) if !slow => {
                    direct = Some(Action::Fetch { index, node, range: range.clone() });
                    break;
                }
                _ => {}
            }
            let not_there = !slow
                && !self.holders[index].is_empty()
                && self.holders[index].iter().all(|(_, failure)| *failure == Some(Failure::NotThere));
            if not_there && self.searched.is_none() {
                search_needed = true;
            } else if not_there && self.searching && !self.search_slow {
                // The answer is on its way.
            } else {
                column_needed = true;
            }
        }
        if let Some(action) = direct {
            return Some(self.begin(action));
        }
        if search_needed {
            return Some(self.search());
        }
        if column_needed { self.next_of_column() } else { None }
    }

    fn next_of_column(&mut self) -> Option<Action> {
        let column = match &self.column {
            Some(column) => column.clone(),
            None => {
                let ranges: Vec<&Range<u64>> = self.missing().map(|(_, range)| range).collect();
                let start = ranges.iter().map(|range| range.start).min()?;
                let end = ranges.iter().map(|range| range.end).max()?;
                self.column.insert(start..end).clone()
            }
        };
        let covered = |index: usize| self.has(index, &column) || self.pending(index, &column);
        let n = self.scheme.n();
        if (0..n).filter(|&index| covered(index)).count() >= self.scheme.k() {
            return None;
        }
        let found = (0..n).filter(|&index| !covered(index)).find_map(|index| Some((index, self.untried(index)?)));
        match found {
            Some((index, node)) => Some(self.begin(Action::Fetch { index, node, range: column })),
            None if !self.searching && self.searched < Some(self.widest) => {
                // Those away are asked only when nothing else is under way that could still help.
                (self.searched < Some(Circle::Up) || self.asked.is_empty()).then(|| self.search())
            }
            None => None,
        }
    }

    fn begin(&mut self, action: Action) -> Action {
        if let Action::Fetch { index, node, range } = &action {
            self.asked.push(Asked { index: *index, node: *node, range: range.clone(), slow: false });
        }
        action
    }

    fn search(&mut self) -> Action {
        let circle = match self.searched {
            None => Circle::Walk,
            Some(Circle::Walk) => Circle::Up,
            Some(_) => Circle::All,
        };
        (self.searched, self.searching, self.search_slow) = (Some(circle), true, false);
        Action::Search(circle)
    }

    /// A fetch brought the bytes that were asked, checked.
    pub(super) fn arrived(&mut self, index: usize, node: NodeId, range: Range<u64>) {
        self.asked.retain(|asked| !(asked.index == index && asked.node == node));
        self.got.push((index, range));
    }

    /// A fetch brought nothing.
    pub(super) fn failed(&mut self, index: usize, node: NodeId, failure: Failure) {
        self.asked.retain(|asked| !(asked.index == index && asked.node == node));
        if let Some(holder) = self.holders[index].iter_mut().find(|(holder, _)| *holder == node) {
            holder.1 = Some(failure);
        }
    }

    /// A fetch takes longer than usual.
    pub(super) fn slow(&mut self, index: usize, node: NodeId) {
        let asked = self.asked.iter_mut().filter(|asked| asked.index == index && asked.node == node);
        asked.for_each(|asked| asked.slow = true);
    }

    /// A search found that `node` holds these shards.
    pub(super) fn found(&mut self, node: NodeId, indices: impl IntoIterator<Item = usize>) {
        for index in indices {
            if let Some(holders) = self.holders.get_mut(index)
                && !holders.iter().any(|(holder, _)| *holder == node)
            {
                holders.push((node, None));
            }
        }
    }

    /// The search takes long: nothing waits for it any more.
    pub(super) fn search_slow(&mut self) {
        self.search_slow = true;
    }

    /// The search has ended.
    pub(super) fn search_ended(&mut self) {
        self.searching = false;
    }

    /// Begins anew with those that failed by being away, and with the search, which now goes as far as to nodes that seem
    /// to be away.
    pub(super) fn again(&mut self) {
        (self.searched, self.widest) = (None, Circle::All);
        for holder in self.holders.iter_mut().flatten() {
            if holder.1 == Some(Failure::Away) {
                holder.1 = None;
            }
        }
    }

    /// What has come together; [`Outcome::Failed`] is the truth only after [`Gather::next`] had nothing more.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        let missing: BTreeSet<usize> = self.missing().map(|(index, _)| index).collect();
        if missing.is_empty() {
            return Some(Outcome::Direct);
        }
        let column = self.column.as_ref()?;
        let from: Vec<usize> =
            (0..self.scheme.n()).filter(|&index| self.has(index, column)).take(self.scheme.k()).collect();
        if from.len() == self.scheme.k() {
            return Some(Outcome::Rebuild { column: column.clone(), from, missing: missing.into_iter().collect() });
        }
        None
    }

    /// The end of a read for which [`Gather::next`] has nothing more; `None` while something is under way.
    pub(super) fn verdict(&self) -> Option<Outcome> {
        self.outcome().or_else(|| {
            let idle = self.asked.is_empty() && !self.searching;
            let different: BTreeSet<usize> = self.got.iter().map(|(index, _)| *index).collect();
            idle.then_some(Outcome::Failed { reachable: different.len() })
        })
    }
}

#[cfg(test)]
mod tests;
