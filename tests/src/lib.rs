//! What Potluck's whole-system tests share.

pub mod dashboard;
pub mod prometheus;
