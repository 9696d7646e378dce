//! How long a node usually takes, and so after what time asking another one as well is worth it.
//!
//! The estimate is that of TCP's retransmission timer (RFC 6298): a smoothed mean and a smoothed deviation. Pure.

use std::time::Duration;

/// A hedge is never started sooner than this.
pub(super) const HEDGE_MIN: Duration = Duration::from_millis(50);

/// A hedge is never started later than this, before the length of the answer is counted.
pub(super) const HEDGE_MAX: Duration = Duration::from_secs(1);

/// The estimate of a node that has not answered yet.
const UNKNOWN: Duration = Duration::from_millis(300);

/// A slower transfer than this is called slow, in bytes per second.
const SLOW_RATE: u64 = 4 << 20;

/// Mean and deviation of a node's answers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Latency(Option<(f64, f64)>);

impl Latency {
    /// Counts an answer of `bytes` bytes that took `elapsed`.
    pub(super) fn count(&mut self, elapsed: Duration, bytes: usize) {
        let seconds = elapsed.saturating_sub(transfer(bytes)).as_secs_f64();
        self.0 = Some(match self.0 {
            None => (seconds, seconds / 2.0),
            Some((mean, deviation)) => {
                (mean * 7.0 / 8.0 + seconds / 8.0, deviation * 3.0 / 4.0 + (mean - seconds).abs() / 4.0)
            }
        });
    }

    /// How long to wait for an answer of `bytes` bytes before another node is asked as well.
    pub(super) fn hedge_after(&self, bytes: usize) -> Duration {
        let usual = match self.0 {
            None => UNKNOWN,
            Some((mean, deviation)) => Duration::from_secs_f64((mean + 4.0 * deviation).min(HEDGE_MAX.as_secs_f64())),
        };
        usual.clamp(HEDGE_MIN, HEDGE_MAX) + transfer(bytes)
    }
}

/// What so many bytes may take by themselves.
fn transfer(bytes: usize) -> Duration {
    Duration::from_micros(bytes as u64 * 1_000_000 / SLOW_RATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_follows_the_node_within_its_bounds() {
        let after = |millis: u64| {
            let mut latency = Latency::default();
            (0..50).for_each(|_| latency.count(Duration::from_millis(millis), 0));
            latency.hedge_after(0)
        };
        assert_eq!(after(1), HEDGE_MIN);
        assert!((Duration::from_millis(199)..Duration::from_millis(250)).contains(&after(200)), "{:?}", after(200));
        assert_eq!(after(60_000), HEDGE_MAX);
        assert_eq!(Latency::default().hedge_after(0), UNKNOWN);
    }

    #[test]
    fn an_unsteady_node_is_given_more_time_than_a_steady_one() {
        let mut unsteady = Latency::default();
        (0..50).for_each(|turn| unsteady.count(Duration::from_millis(if turn % 2 == 0 { 20 } else { 180 }), 0));
        assert!(unsteady.hedge_after(0) > Duration::from_millis(200));
    }

    #[test]
    fn long_answers_get_the_time_that_they_need() {
        assert_eq!(Latency::default().hedge_after(4 << 20), UNKNOWN + Duration::from_secs(1));
    }
}
