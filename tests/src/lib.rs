//! What Potluck's whole-system tests share, and the benchmarks.

pub mod bench;
pub mod cluster;
pub mod dashboard;
pub mod process;
pub mod prometheus;
pub mod sim;
