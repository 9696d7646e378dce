//! How long to leave a peer alone after it could not be reached: a pure rule.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::CallError;

/// A peer that could not be reached.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    /// Failures in a row.
    pub(super) failures: u32,
    /// Not before this time, ...
    pub(super) until: Instant,
    /// ... unless it is looked for elsewhere than here.
    pub(super) addresses: Vec<SocketAddr>,
    /// What callers are told meanwhile.
    pub(super) error: CallError,
}

/// The wait after so many failures in a row: it doubles from the shortest to the longest, and `jitter`, from 0 to 1,
/// places it in the upper half, so that those who lost the same peer do not all come back at once.
pub(super) fn wait(failures: u32, (shortest, longest): (Duration, Duration), jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    let whole = shortest.saturating_mul(1 << doublings).min(longest);
    whole.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let range = (Duration::from_millis(100), Duration::from_secs(15));
        let millis: Vec<_> = [1, 2, 3, 8, 9, 1000].map(|failures| wait(failures, range, 1.0).as_millis()).into();
        assert_eq!(millis, [100, 200, 400, 12_800, 15_000, 15_000]);
        assert_eq!(wait(1, range, 0.0), Duration::from_millis(50));
        assert_eq!(wait(9, (Duration::ZERO, Duration::ZERO), 0.7), Duration::ZERO);
    }
}
