//! When a sweep condemns a stripe.
//!
//! Sweeps are not run by this version; every vault is at sweep 0, which condemns nothing. The rule stands here from the
//! first day because stripes, shards and heads already carry the numbers it needs.

/// Whether the sweep numbered `sweep` condemns a stripe.
///
/// `listed`: the sweep lists it as alive. `born`: the newest sweep its writer knew. `touched`: the newest sweep that a
/// put or a revival of the shard carried. A stripe that is younger than the sweep before this one is never condemned: its
/// writer may not have committed yet.
#[must_use]
pub fn condemns(sweep: u64, listed: bool, born: u64, touched: u64) -> bool {
    !listed && born.max(touched) < sweep.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::condemns;

    #[test]
    fn only_the_unlisted_and_old_are_condemned() {
        assert!(!condemns(0, false, 0, 0));
        assert!(!condemns(1, false, 0, 0));
        assert!(condemns(2, false, 0, 0));
        assert!(!condemns(2, true, 0, 0));
        assert!(!condemns(2, false, 1, 0));
        assert!(!condemns(2, false, 0, 1));
        assert!(condemns(9, false, 7, 7));
    }
}
