//! Simulated network, cluster harness and benchmarks.

pub mod bench;
pub mod sim;
