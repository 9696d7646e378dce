//! Potluck's storage node as a library: keeps shards for vaults whose contents it cannot read.
//!
//! [`node::Node`] puts the parts together; the binary and the client's `potluck node` are thin layers over it.

pub mod capacity;
pub mod cli;
pub mod config;
pub mod durable;
pub mod gate;
pub mod heads;
pub mod http;
pub mod identity;
pub mod import;
pub mod invites;
pub mod join;
pub mod log;
pub mod membership;
pub mod metrics;
pub mod node;
pub mod page;
pub mod repair;
pub mod service;
pub mod store;
pub mod upkeep;

/// Milliseconds since 1970: for people, expiries and certificates, never for decisions about data.
pub type WallClock = std::sync::Arc<dyn Fn() -> u64 + Send + Sync>;
