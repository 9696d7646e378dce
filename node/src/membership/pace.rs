//! When something may be done again that must not be done in a hurry for ever: at once after a quiet time, then at growing
//! intervals. It reads no clock and draws no lots.

use std::time::Duration;

use tokio::time::Instant;

/// The wait before the second time in a row; it doubles from each to the next.
const FIRST: Duration = Duration::from_secs(1);

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);

/// How often something was done of late.
#[derive(Debug)]
pub(super) struct Pace {
    /// After this time without need it is quiet, and after twice the last wait.
    quiet: Duration,
    /// How often in a row.
    row: u32,
    /// When it was done last, or will be, and how long that had to wait.
    last: Option<(Instant, Duration)>,
}

impl Pace {
    pub(super) fn new(quiet: Duration) -> Self {
        Self { quiet, row: 0, last: None }
    }

    /// It has become necessary: how long to wait before it is done. `jitter`, from 0 to 1, places the wait in its upper
    /// half, so that two who provoke each other fall out of step.
    pub(super) fn wait(&mut self, now: Instant, jitter: f64) -> Duration {
        let is_quiet = |(last, wait)| now.saturating_duration_since(last) >= self.quiet.max(2 * wait);
        if self.last.is_none_or(is_quiet) {
            self.row = 0;
        }
        let whole = match self.row {
            0 => Duration::ZERO,
            row => FIRST.saturating_mul(1 << (row - 1).min(16)).min(LONGEST),
        };
        let wait = whole.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0));
        self.row = self.row.saturating_add(1);
        self.last = Some((now + wait, wait));
        wait
    }

    /// How often it was done in a row, with no quiet time between.
    pub(super) fn row(&self) -> u32 {
        self.row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_once_then_at_growing_intervals_until_it_was_quiet() {
        let (mut pace, mut now) = (Pace::new(Duration::from_secs(10)), Instant::now());
        for expected in [0, 1, 2, 4, 8, 16, 32, 60, 60] {
            let wait = pace.wait(now, 1.0);
            assert_eq!(wait, Duration::from_secs(expected));
            now += wait;
        }
        assert_eq!(pace.wait(now, 0.0), LONGEST / 2);
        now += LONGEST / 2 + LONGEST;
        assert_eq!(pace.wait(now, 1.0), Duration::ZERO);
        assert_eq!(pace.row(), 1);
        now += Duration::from_secs(9);
        assert_eq!(pace.wait(now, 1.0), FIRST);
        now += Duration::from_secs(11);
        assert_eq!(pace.wait(now, 1.0), Duration::ZERO);
    }
}
