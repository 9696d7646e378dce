//! Potluck's storage node as a library: keeps shards for vaults whose contents it cannot read.
//!
//! [`node::Node`] puts the parts together; the binary and the client's `potluck node` are thin layers over it.

pub mod config;
pub mod durable;
pub mod heads;
pub mod http;
pub mod identity;
pub mod log;
pub mod membership;
pub mod metrics;
pub mod repair;
pub mod store;
