//! The Potluck client as a library: the vault, and what reaches it over the cluster.

pub mod cluster;
pub mod vault;
