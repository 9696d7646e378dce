//! The walk round the ring: a total order of all nodes for each key, made as far as it is asked for.

use std::collections::VecDeque;

use super::{NODE_BITS, Ring};
use crate::id::NodeId;

/// All nodes in the order of one key. Cheap to make; each use walks anew.
#[derive(Debug, Clone, Copy)]
pub struct Walk<'a> {
    ring: &'a Ring,
    /// The first point at or after the key's position.
    start: usize,
    zone_cap: usize,
    zone_limit: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(ring: &'a Ring, start: usize, zone_cap: usize, zone_limit: usize) -> Self {
        Self { ring, start, zone_cap, zone_limit }
    }

    /// The nodes one after the other, up to the last of the ring.
    #[must_use]
    pub fn iter(&self) -> Steps<'a> {
        Steps::new(*self)
    }

    /// The first `count` nodes; fewer if the ring has fewer.
    #[must_use]
    pub fn take(&self, count: usize) -> Vec<NodeId> {
        self.iter().take(count).collect()
    }

    /// Whether the first `count` nodes (or all, if the ring has fewer) have more than the zone cap in some zone: a
    /// warning for the operator, since there are too few zones to spread over.
    #[must_use]
    pub fn zones_crowded(&self, count: usize) -> bool {
        let mut steps = self.iter();
        // Not past the last node: looking for one more would loosen the rule.
        steps.by_ref().take(count.min(self.ring.len())).for_each(drop);
        steps.pass != Pass::Spread
    }
}

impl<'a> IntoIterator for Walk<'a> {
    type Item = NodeId;
    type IntoIter = Steps<'a>;

    fn into_iter(self) -> Steps<'a> {
        self.iter()
    }
}

/// How far the walk has loosened its rule on zones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Up to the cap per zone.
    Spread,
    /// Up to the limit per zone.
    Crowded,
    /// Whoever is left.
    Rest,
}

/// The nodes of a walk, one after the other.
///
/// A pass ends as soon as nobody is left whom it could take; the nodes behind the point reached are then met by the next
/// pass. So the first nodes are found without going round the whole ring even where one zone has all of them.
#[derive(Debug, Clone)]
pub struct Steps<'a> {
    walk: Walk<'a>,
    next_point: usize,
    points_left: usize,
    /// A bit for each node: whether the scan of the points has met it.
    met: Vec<u64>,
    /// Of each zone, how many of its nodes were taken.
    taken: Vec<u32>,
    pass: Pass,
    /// Nodes that this pass will still take, were no other of their zone taken before.
    eligible: usize,
    /// Met in a former pass, not yet looked at in this one; in ring order.
    waiting: VecDeque<u32>,
    /// Passed over in this pass; in ring order.
    passed: Vec<u32>,
}

impl<'a> Steps<'a> {
    fn new(walk: Walk<'a>) -> Self {
        let ring = walk.ring;
        let mut steps = Steps {
            walk,
            next_point: walk.start,
            points_left: ring.points.len(),
            met: vec![0; ring.nodes.len().div_ceil(64)],
            taken: vec![0; ring.zone_sizes.len()],
            pass: Pass::Spread,
            eligible: 0,
            waiting: VecDeque::new(),
            passed: Vec::new(),
        };
        steps.eligible = steps.count_eligible();
        steps
    }

    /// Most nodes of a zone in this pass.
    fn limit(&self) -> usize {
        match self.pass {
            Pass::Spread => self.walk.zone_cap,
            Pass::Crowded => self.walk.zone_limit,
            Pass::Rest => usize::MAX,
        }
    }

    fn count_eligible(&self) -> usize {
        let limit = self.limit();
        let zones = self.walk.ring.zone_sizes.iter().zip(&self.taken);
        zones.filter(|&(_, &taken)| (taken as usize) < limit).map(|(size, taken)| (size - taken) as usize).sum()
    }

    /// The next node that the scan of the points meets for the first time.
    fn meet(&mut self) -> Option<u32> {
        let points = &self.walk.ring.points;
        while self.points_left > 0 {
            if self.next_point >= points.len() {
                self.next_point = 0;
            }
            let number = points[self.next_point] & ((1 << NODE_BITS) - 1);
            self.next_point += 1;
            self.points_left -= 1;
            let (word, bit) = ((number / 64) as usize, 1u64 << (number % 64));
            if self.met[word] & bit == 0 {
                self.met[word] |= bit;
                return Some(number as u32);
            }
        }
        None
    }

    fn loosen(&mut self, pass: Pass) {
        self.pass = pass;
        self.eligible = self.count_eligible();
        for number in self.passed.drain(..).rev() {
            self.waiting.push_front(number);
        }
    }
}

impl Iterator for Steps<'_> {
    type Item = NodeId;

    fn next(&mut self) -> Option<NodeId> {
        loop {
            if self.eligible == 0 {
                match self.pass {
                    Pass::Spread => self.loosen(Pass::Crowded),
                    Pass::Crowded => self.loosen(Pass::Rest),
                    Pass::Rest => return None,
                }
                continue;
            }
            let number = match self.waiting.pop_front() {
                Some(number) => number,
                None => self.meet()?,
            };
            let ring = self.walk.ring;
            let zone = ring.zones[number as usize] as usize;
            let limit = self.limit();
            if self.taken[zone] as usize >= limit {
                self.passed.push(number);
                continue;
            }
            self.taken[zone] += 1;
            self.eligible -= 1;
            if self.taken[zone] as usize == limit {
                // The others of this zone are not for this pass.
                self.eligible -= (ring.zone_sizes[zone] - self.taken[zone]) as usize;
            }
            return Some(ring.nodes[number as usize]);
        }
    }
}
