//! The Potluck client: how it reaches its cluster, what a vault is made of, and the ways to use one.

pub mod cluster;
pub mod session;
pub mod vault;
