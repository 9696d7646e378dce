//! How long repair waits before it acts: pure functions of what a round saw, without a clock of their own.
//!
//! What is missing often comes back by itself, and rebuilding it then moves much for nothing. Only a thin margin, and a
//! shard that is known to be gone, are reasons not to wait for that; nothing is a reason to act before it is known who
//! is there.

use std::collections::BTreeSet;
use std::time::Duration;

use potluck_proto::id::NodeId;

use super::plan::Condition;

/// A stripe's second leader acts when this many survey intervals have passed and the first has not; the third after
/// twice as many, and so on.
const TAKEOVER_ROUNDS: u32 = 3;

/// But never before this time: the first leader may have many stripes to rebuild.
const TAKEOVER_MIN: Duration = Duration::from_secs(15);

/// How long repair waits while it is not known of every node whether it is there: longer than it takes to notice a death,
/// and to find all others after a start.
pub const SILENCE_PATIENCE: Duration = Duration::from_secs(15);

/// How long repair waits for an upload that may be under way: the shards of a stripe arrive within seconds of each other, and
/// a survey in the middle of a put sees some of them.
pub const UPLOAD_PATIENCE: Duration = Duration::from_secs(10);

/// What a round saw of a stripe that lacks shards, and of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// How the stripe stands.
    pub condition: Condition,
    /// Which of the stripe's leaders this node is: 0 acts first.
    pub turn: usize,
    /// Some member is away: what is missing may be with it.
    pub away: bool,
    /// Of some member it is not known whether it is there: see [`silent`].
    pub silent: bool,
    /// It was never known to be whole here: it may be on its way.
    pub uploading: bool,
    /// A shard of the stripe is known to be gone for good.
    pub alerted: bool,
}

/// How long a stripe must have lacked shards before this node acts. `lazy_after` and `survey_interval` are as
/// configured.
#[must_use]
pub fn wait(seen: Seen, lazy_after: Duration, survey_interval: Duration) -> Duration {
    let lazy = seen.condition == Condition::Degraded && seen.away;
    let coming_back = if lazy { lazy_after } else { Duration::ZERO };
    let silence = if seen.silent { SILENCE_PATIENCE } else { Duration::ZERO };
    let upload = if seen.uploading { UPLOAD_PATIENCE } else { Duration::ZERO };
    let patience = if seen.alerted { Duration::ZERO } else { coming_back.max(silence).max(upload) };
    let turn = u32::try_from(seen.turn).unwrap_or(u32::MAX);
    patience.saturating_add(TAKEOVER_MIN.max(survey_interval.saturating_mul(TAKEOVER_ROUNDS)).saturating_mul(turn))
}

/// Whether it is not known of some member if it is there. One that is said to be up and does not answer is soon known
/// to be up or down. After a start, whoever is not up may only not have been heard of yet; that ends with
/// [`SILENCE_PATIENCE`].
pub fn silent(
    members: impl IntoIterator<Item = NodeId>,
    up: impl IntoIterator<Item = NodeId>,
    answered: &BTreeSet<NodeId>,
    uptime: Duration,
) -> bool {
    let unheard = |node: NodeId| !answered.contains(&node);
    up.into_iter().any(unheard) || (uptime < SILENCE_PATIENCE && members.into_iter().any(unheard))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAZY: Duration = Duration::from_secs(3600);
    const SURVEY: Duration = Duration::from_secs(60);
    const SETTLED: Seen =
        Seen { condition: Condition::Whole, turn: 0, away: false, silent: false, uploading: false, alerted: false };
    const AT_RISK: Seen = Seen { condition: Condition::AtRisk, ..SETTLED };
    const DEGRADED: Seen = Seen { condition: Condition::Degraded, ..AT_RISK };

    fn waits(seen: Seen) -> Duration {
        wait(seen, LAZY, SURVEY)
    }

    #[test]
    fn a_thin_margin_waits_for_nobody_but_the_silent() {
        assert_eq!(waits(AT_RISK), Duration::ZERO);
        assert_eq!(waits(Seen { away: true, ..AT_RISK }), Duration::ZERO);
        assert_eq!(waits(Seen { silent: true, ..AT_RISK }), SILENCE_PATIENCE);
    }

    #[test]
    fn a_wide_margin_waits_for_those_who_are_away() {
        assert_eq!(waits(DEGRADED), Duration::ZERO);
        assert_eq!(waits(Seen { away: true, ..DEGRADED }), LAZY);
        assert_eq!(waits(Seen { silent: true, ..DEGRADED }), SILENCE_PATIENCE);
        assert_eq!(waits(Seen { away: true, silent: true, ..DEGRADED }), LAZY);
    }

    #[test]
    fn an_upload_under_way_is_given_time() {
        assert_eq!(waits(Seen { uploading: true, ..AT_RISK }), UPLOAD_PATIENCE);
        assert_eq!(waits(Seen { uploading: true, ..DEGRADED }), UPLOAD_PATIENCE);
        assert_eq!(waits(Seen { uploading: true, silent: true, ..AT_RISK }), SILENCE_PATIENCE);
        assert_eq!(waits(Seen { uploading: true, turn: 1, ..AT_RISK }), 3 * SURVEY + UPLOAD_PATIENCE);
    }

    #[test]
    fn what_is_known_to_be_gone_is_not_waited_for() {
        for seen in [AT_RISK, DEGRADED] {
            let all_else = Seen { away: true, silent: true, uploading: true, ..seen };
            assert_eq!(waits(Seen { alerted: true, ..all_else }), Duration::ZERO);
        }
    }

    #[test]
    fn later_leaders_give_the_earlier_ones_time() {
        let turn = |turn| Seen { turn, ..AT_RISK };
        assert_eq!(waits(turn(1)), 3 * SURVEY);
        assert_eq!(waits(turn(2)), 6 * SURVEY);
        assert_eq!(wait(turn(1), LAZY, Duration::from_secs(1)), TAKEOVER_MIN);
        assert_eq!(waits(Seen { silent: true, ..turn(1) }), 3 * SURVEY + SILENCE_PATIENCE);
        assert_eq!(waits(Seen { alerted: true, ..turn(1) }), 3 * SURVEY);
        assert_eq!(wait(turn(usize::MAX), LAZY, Duration::MAX), Duration::MAX);
    }

    #[test]
    fn who_is_said_to_be_up_and_does_not_answer_is_silent() {
        let node = |number| NodeId([number; 32]);
        let ask = |members: &[u8], up: &[u8], answered: &[u8], uptime| {
            let nodes = |numbers: &[u8]| numbers.iter().copied().map(node).collect::<BTreeSet<_>>();
            silent(nodes(members), nodes(up), &nodes(answered), uptime)
        };
        assert!(!ask(&[1, 2, 3], &[1, 2, 3], &[1, 2, 3], LAZY));
        assert!(ask(&[1, 2, 3], &[1, 2, 3], &[1, 2], LAZY));
        // One that is down is known to be, but for the first moments after a start.
        assert!(!ask(&[1, 2, 3], &[1, 2], &[1, 2], SILENCE_PATIENCE));
        assert!(ask(&[1, 2, 3], &[1, 2], &[1, 2], SILENCE_PATIENCE - Duration::from_millis(1)));
        // Somebody on his way out is no member, and counts while he is up.
        assert!(ask(&[1], &[1, 9], &[1], LAZY));
        assert!(!ask(&[1], &[1, 9], &[1, 9], Duration::ZERO));
    }
}
