//! Which scheme a vault should use: the default for a cluster's size, and how often a stripe can be read with it.
//!
//! Advice and a check, nothing more: a stripe's header says how it really is coded, and the type is
//! [`stripe::Scheme`](crate::stripe::Scheme).

use std::cmp::Ordering;

use crate::stripe::{DATA_LIMIT, Scheme};

/// Uptime of a node that is assumed while nobody has measured it.
pub const ASSUMED_UPTIME: f64 = 0.8;

/// Readability of a stripe that the computed default asks for.
pub const READABILITY_GOAL: f64 = 0.999;

/// Most shards of the computed default. From 40 to 80 shards the overhead falls by less than a fifth, while requests per
/// stripe and the work of coding double.
pub const DEFAULT_SHARDS_LIMIT: usize = 40;

/// Fewest losses that the computed default survives: as many as that of the next smaller clusters, 4+4, so that growth
/// never makes a default weaker.
const DEFAULT_LOSSES_MIN: usize = 4;

/// A lower uptime is planned for as if it were this one: no scheme makes up for less at a bearable cost, and what is then
/// printed as readability says so.
const PLANNED_UPTIME_MIN: f64 = 0.5;

/// From this many nodes on the default is computed.
const COMPUTED_FROM: usize = 16;

/// The scheme asks for more nodes than the cluster has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("scheme {scheme} needs {} nodes and the cluster has {admitted}: {fitting} would fit", scheme.n())]
pub struct TooSmall {
    /// The scheme asked for.
    pub scheme: Scheme,
    /// Nodes admitted.
    pub admitted: usize,
    /// The default for this many nodes.
    pub fitting: Scheme,
}

/// A scheme that the rules here have made; their numbers are always in range.
#[expect(clippy::expect_used, reason = "callers give 1 <= k and k + m <= 40, well inside what a Scheme allows")]
fn scheme(k: usize, m: usize) -> Scheme {
    Scheme::new(k, m).expect("k and m in range")
}

/// The default scheme in a cluster of `nodes` admitted nodes, each up for the part `uptime` (0 to 1) of the time.
///
/// Fewer than 5 nodes: 1+(N-1). 5 to 9: 2+2. 10 to 15: 4+4. From 16 on, of the schemes with n <= 0.7 N (and at most
/// [`DEFAULT_SHARDS_LIMIT`]) that survive 4 losses and have a stripe readable with [`READABILITY_GOAL`], the one that
/// stores least, of equals the one with fewest shards. An uptime below 0.5 is planned for as 0.5.
#[must_use]
pub fn default_scheme(nodes: usize, uptime: f64) -> Scheme {
    match nodes {
        0..5 => scheme(1, nodes.saturating_sub(1)),
        5..10 => scheme(2, 2),
        10..COMPUTED_FROM => scheme(4, 4),
        _ => computed_scheme(nodes, uptime),
    }
}

fn computed_scheme(nodes: usize, uptime: f64) -> Scheme {
    let uptime = uptime.max(PLANNED_UPTIME_MIN);
    let most = (nodes.saturating_mul(7) / 10).min(DEFAULT_SHARDS_LIMIT);
    let candidates = (DEFAULT_LOSSES_MIN + 1..=most)
        .flat_map(|n| (1..=n - DEFAULT_LOSSES_MIN).map(move |k| scheme(k, n - k)))
        .filter(|&candidate| readability(candidate, uptime) >= READABILITY_GOAL);
    candidates.min_by(by_overhead).unwrap_or_else(|| scheme(1, most - 1))
}

/// Less stored for the same data first, of equals fewer shards first.
fn by_overhead(left: &Scheme, right: &Scheme) -> Ordering {
    // n1/k1 against n2/k2, without rounding.
    (left.n() * right.k()).cmp(&(right.n() * left.k())).then(left.n().cmp(&right.n()))
}

/// The probability that at least k of a stripe's n holders are up, each being up with probability `uptime` (0 to 1) and
/// independently of the others.
#[must_use]
pub fn readability(scheme: Scheme, uptime: f64) -> f64 {
    1.0 - unreadability(scheme, uptime)
}

/// The probability that all `stripes` stripes of a file can be read, as if each had holders of its own. Where stripes
/// share holders they fail together, so the true value is no lower.
#[must_use]
pub fn file_readability(scheme: Scheme, uptime: f64, stripes: u64) -> f64 {
    // (1 - u)^stripes, exact also where u is far smaller than the distance of 1 to its neighbour.
    (stripes as f64 * (-unreadability(scheme, uptime)).ln_1p()).exp()
}

/// Stripes that a file of `bytes` bytes fills, if nothing of it is shared or compressed; at least one.
#[must_use]
pub fn stripes_of_file(bytes: u64) -> u64 {
    bytes.div_ceil(DATA_LIMIT as u64).max(1)
}

/// Whether a cluster of `admitted` nodes is large enough for `scheme`; else the scheme that would fit.
///
/// With no node at all none fits, and 1+0 is named.
pub fn fits(scheme: Scheme, admitted: usize) -> Result<(), TooSmall> {
    if admitted >= scheme.n() {
        return Ok(());
    }
    Err(TooSmall { scheme, admitted, fitting: default_scheme(admitted, ASSUMED_UPTIME) })
}

/// The probability that fewer than k of n holders are up: the lower tail of the binomial distribution, summed up
/// directly so that it is exact where it is tiny.
fn unreadability(scheme: Scheme, uptime: f64) -> f64 {
    let (k, n) = (scheme.k(), scheme.n());
    let up = if uptime.is_nan() { 0.0 } else { uptime.clamp(0.0, 1.0) };
    let mut ways = 1.0;
    let mut sum = 0.0;
    for alive in 0..k {
        sum += ways * up.powi(alive as i32) * (1.0 - up).powi((n - alive) as i32);
        ways *= (n - alive) as f64 / (alive + 1) as f64;
    }
    sum.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(left: f64, right: f64) -> bool {
        (left - right).abs() <= 1e-12 + 1e-9 * right.abs()
    }

    fn of(text: &str) -> Scheme {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn the_table_for_small_clusters() {
        for (nodes, expected) in
            [(0, "1+0"), (1, "1+0"), (2, "1+1"), (4, "1+3"), (5, "2+2"), (9, "2+2"), (10, "4+4"), (15, "4+4")]
        {
            assert_eq!(default_scheme(nodes, 0.5).to_string(), expected, "{nodes} nodes");
        }
    }

    #[test]
    fn the_computed_default_is_readable_small_and_the_best() {
        for nodes in (16..70).chain([100, 1000, usize::MAX]) {
            for uptime in [0.5, 0.7, 0.8, 0.9, 0.99, 1.0] {
                let chosen = default_scheme(nodes, uptime);
                let most = (nodes / 10 * 7).saturating_add(7).min(DEFAULT_SHARDS_LIMIT);
                assert!(chosen.n() <= most && chosen.m() >= DEFAULT_LOSSES_MIN, "{nodes} {uptime}: {chosen}");
                assert!(nodes >= 1000 || chosen.n() * 10 <= nodes * 7, "{nodes} {uptime}: {chosen}");
                assert!(readability(chosen, uptime) >= READABILITY_GOAL, "{nodes} {uptime}: {chosen}");
                // One more data shard in place of a parity shard would be too much.
                let bolder = scheme(chosen.k() + 1, chosen.m() - 1);
                assert!(bolder.m() < DEFAULT_LOSSES_MIN || readability(bolder, uptime) < READABILITY_GOAL);
            }
        }
        assert_eq!(default_scheme(29, 0.8), of("9+9"), "as 10+10, with fewer shards");
        assert_eq!(default_scheme(16, 0.8), of("4+6"));
        assert_eq!(default_scheme(20, 1.0), of("10+4"));
        assert_eq!(default_scheme(100, 0.0), default_scheme(100, 0.5));
        assert_eq!(default_scheme(100, f64::NAN), default_scheme(100, 0.5));
    }

    #[test]
    fn readability_has_its_closed_values() {
        // One of n: 1 - (1-p)^n. All of n: p^n. Two of four: 1 - q^4 - 4 p q^3.
        assert!(close(readability(of("1+3"), 0.8), 1.0 - 0.2f64.powi(4)));
        assert!(close(readability(of("5+0"), 0.8), 0.8f64.powi(5)));
        assert!(close(readability(of("2+2"), 0.8), 1.0 - 0.2f64.powi(4) - 4.0 * 0.8 * 0.2f64.powi(3)));
        // Symmetric at one half: at least 4 of 7.
        assert!(close(readability(of("4+3"), 0.5), 0.5));
        assert!(close(readability(of("64+63"), 0.5), 0.5));
        assert_eq!(readability(of("4+4"), 1.0), 1.0);
        assert_eq!(readability(of("4+4"), 0.0), 0.0);
        assert_eq!(readability(of("4+4"), f64::NAN), 0.0);
    }

    #[test]
    fn a_file_is_readable_if_all_its_stripes_are() {
        assert_eq!((stripes_of_file(0), stripes_of_file(1), stripes_of_file(1 << 30)), (1, 1, 64));
        assert_eq!(stripes_of_file((16 << 20) + 1), 2);
        let stripe = readability(of("4+4"), 0.8);
        assert!(close(file_readability(of("4+4"), 0.8, 64), stripe.powi(64)));
        // A stripe's 1e-20 is nothing next to 1, but not over very many stripes.
        let rare = file_readability(of("1+19"), 0.9, 1_000_000_000_000);
        assert!(rare < 1.0 && rare > 0.999_999, "{rare}");
    }

    #[test]
    fn too_small_a_cluster_is_told_what_fits() {
        assert_eq!(fits(of("5+3"), 8), Ok(()));
        let refused = fits(of("5+3"), 7).map_err(|error| (error.fitting, error.to_string()));
        assert_eq!(
            refused,
            Err((of("2+2"), "scheme 5+3 needs 8 nodes and the cluster has 7: 2+2 would fit".to_string()))
        );
        for admitted in 1..200 {
            assert!(default_scheme(admitted, ASSUMED_UPTIME).n() <= admitted);
        }
    }
}
