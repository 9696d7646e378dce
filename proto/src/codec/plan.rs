//! Which multiples of which shards give a wanted one: the rows of the code's matrix and of its inverses.
//!
//! They come from the crate's public interface alone: it codes and reconstructs unit shards, whose bytes then are the
//! coefficients. So the crate stays the one definition of the code.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use reed_solomon_erasure::galois_8::ReedSolomon;

use super::kernel::{Level, Rows};
use crate::stripe::Scheme;

/// Plans kept per scheme, at most 16 KiB each. While a few nodes are away, all stripes share few patterns.
const PLANS_LIMIT: usize = 32;

/// The coefficients of every shard of a stripe, for one choice of k shards to make it from.
struct Plan {
    k: usize,
    rows: Vec<u8>,
}

impl Plan {
    /// The coefficients that make shard `index` from the chosen ones, in their order.
    fn row(&self, index: usize) -> &[u8] {
        &self.rows[index * self.k..][..self.k]
    }
}

/// Makes and keeps the plans of one scheme.
pub(super) struct Planner {
    scheme: Scheme,
    level: Level,
    /// The crate's code, which has no form for m = 0.
    code: Option<ReedSolomon>,
    parity: Rows,
    /// Keyed by the bits of the chosen indices.
    plans: Mutex<BTreeMap<u128, Arc<Plan>>>,
}

impl Planner {
    #[expect(
        clippy::expect_used,
        reason = "a Scheme has 1 <= k, k + m <= 128, which is all that the crate asks for m > 0"
    )]
    pub(super) fn new(scheme: Scheme, level: Level) -> Planner {
        let code = (scheme.m() > 0).then(|| ReedSolomon::new(scheme.k(), scheme.m()).expect("k and m are in range"));
        let data: Vec<usize> = (0..scheme.k()).collect();
        let from_data = make(scheme, code.as_ref(), &data);
        let parity = Rows::new(level, (scheme.k()..scheme.n()).map(|index| from_data.row(index)));
        Planner { scheme, level, code, parity, plans: Mutex::new(BTreeMap::new()) }
    }

    /// What makes each parity shard from the data shards.
    pub(super) fn parity_rows(&self) -> &Rows {
        &self.parity
    }

    /// What makes the shards `wanted` from those `chosen`: k different indices below n, rising.
    pub(super) fn rows(&self, chosen: &[usize], wanted: &[usize]) -> Rows {
        let plan = self.plan(chosen);
        Rows::new(self.level, wanted.iter().map(|&index| plan.row(index)))
    }

    fn plan(&self, chosen: &[usize]) -> Arc<Plan> {
        let bits = chosen.iter().fold(0u128, |bits, index| bits | 1 << index);
        let kept = self.plans.lock().unwrap_or_else(PoisonError::into_inner).get(&bits).cloned();
        if let Some(plan) = kept {
            return plan;
        }
        let plan = Arc::new(make(self.scheme, self.code.as_ref(), chosen));
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if plans.len() >= PLANS_LIMIT {
            plans.pop_first();
        }
        plans.insert(bits, plan.clone());
        plan
    }
}

/// Lets the crate reconstruct all shards from unit shards in the place of the chosen ones.
#[expect(clippy::expect_used, reason = "k shards of equal length, not empty, are all that the crate asks")]
fn make(scheme: Scheme, code: Option<&ReedSolomon>, chosen: &[usize]) -> Plan {
    let k = scheme.k();
    let mut shards: Vec<Option<Vec<u8>>> = vec![None; scheme.n()];
    for (position, &index) in chosen.iter().enumerate() {
        let mut unit = vec![0u8; k];
        unit[position] = 1;
        shards[index] = Some(unit);
    }
    if let Some(code) = code {
        code.reconstruct(&mut shards).expect("k shards are there");
    }
    let rows = shards.into_iter().flatten().flatten().collect();
    Plan { k, rows }
}
