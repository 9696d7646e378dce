//! Repair and rebalance: [`survey`] finds out who holds what, [`plan`] decides what a stripe needs,
//! [`patience`] how long it may wait, and `rebuild` acts.

pub mod patience;
pub mod plan;
pub(crate) mod rebuild;
pub mod survey;
