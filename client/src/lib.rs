//! The Potluck client: how it reaches its cluster, what a vault is made of, and the ways to use one.

pub mod cli;
pub mod cluster;
#[cfg(feature = "embedded")]
pub mod demo;
pub mod mount;
pub mod session;
pub mod vault;
