//! Which segment is to be emptied, so that the space of what is dead in it comes back. The store does it.

use std::collections::BTreeMap;

use super::table::SegmentFacts;

/// What must be dead of a segment, in percent of its bytes, while there is space.
const DEAD_PERCENT: u64 = 50;

/// The same where space is short: the last tenth of a disk is worth more copying.
const DEAD_PERCENT_SHORT: u64 = 10;

/// The segment whose emptying pays most, if one pays: never the one that is written, nor one that must stay.
#[must_use]
pub fn choose(segments: &BTreeMap<u64, SegmentFacts>, active: Option<u64>, short_of_space: bool) -> Option<u64> {
    let percent = if short_of_space { DEAD_PERCENT_SHORT } else { DEAD_PERCENT };
    segments
        .iter()
        .filter(|(segment, facts)| active != Some(**segment) && !facts.keep)
        .filter(|(_, facts)| facts.dead() * 100 >= facts.bytes * percent)
        // The share, in thousandths: a nearly dead one costs least per byte that comes back.
        .max_by_key(|(_, facts)| facts.dead() * 1000 / facts.bytes.max(1))
        .map(|(segment, _)| *segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_dead_goes_first_and_the_active_never() {
        let facts = |bytes, live| SegmentFacts { bytes, live, ..SegmentFacts::default() };
        let mut segments = BTreeMap::from([(1, facts(100, 60)), (2, facts(100, 30)), (3, facts(1000, 400))]);
        assert_eq!(choose(&segments, None, false), Some(2));
        assert_eq!(choose(&segments, Some(2), false), Some(3));
        segments.insert(3, SegmentFacts { keep: true, ..facts(1000, 0) });
        assert_eq!(choose(&segments, Some(2), false), None);
        assert_eq!(choose(&segments, Some(2), true), Some(1));
    }
}
