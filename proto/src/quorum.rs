//! How many replicas a vault's head has, how many of them may lie, and how many make a quorum.
//!
//! Only the arithmetic: which nodes the replicas are is the ring's business, what they do with a head is the head rules'.

/// Most replicas of a head.
pub const HEAD_REPLICAS_LIMIT: usize = 15;

/// Replicas of a head in a ring of `nodes` nodes: r = min(N, 15).
#[must_use]
pub fn head_replicas(nodes: usize) -> usize {
    nodes.min(HEAD_REPLICAS_LIMIT)
}

/// Of `replicas` replicas, how many may lie: f = floor(r/7).
#[must_use]
pub fn head_faults(replicas: usize) -> usize {
    replicas / 7
}

/// Of `replicas` replicas, how many must agree: q = ceil((r+f+1)/2). Without replicas it is 1, which none can reach.
#[must_use]
pub fn head_quorum(replicas: usize) -> usize {
    (replicas + head_faults(replicas) + 1).div_ceil(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_the_design() {
        for (replicas, quorum) in [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (7, 5), (15, 9)] {
            assert_eq!(head_quorum(replicas), quorum, "of {replicas}");
        }
        assert_eq!(head_replicas(3), 3);
        assert_eq!(head_replicas(1000), 15);
        assert_eq!(head_faults(15), 2);
    }

    #[test]
    fn two_quorums_share_more_than_the_liars() {
        for replicas in 1..=HEAD_REPLICAS_LIMIT {
            let shared = 2 * head_quorum(replicas) - replicas;
            assert!(shared > head_faults(replicas), "{replicas}");
            assert!(head_quorum(replicas) <= replicas);
        }
    }
}
