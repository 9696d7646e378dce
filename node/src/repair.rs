//! Repair and rebalance: [`plan`] decides what a stripe needs, [`survey`] finds out who holds what, `rebuild` acts.

pub mod plan;
pub(crate) mod rebuild;
pub mod survey;
