//! The Potluck client as a library: the vault, what reaches its cluster, and the session that joins the two.

pub mod cli;
pub mod cluster;
#[cfg(feature = "embedded")]
pub mod demo;
pub mod session;
pub mod vault;
