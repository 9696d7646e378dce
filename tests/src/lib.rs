//! What Potluck's whole-system tests share, and the benchmarks.

pub mod bench;
pub mod cluster;
pub mod dashboard;
pub mod local;
pub mod mount;
pub mod process;
pub mod prometheus;
pub mod raw_key;
pub mod shards;
pub mod sim;
pub mod store_writer;
