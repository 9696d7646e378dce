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
mod tests {}
