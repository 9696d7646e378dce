//! Repair: [`plan`] decides what a stripe needs, `survey` finds out who holds what and carries plans out.

pub mod plan;
