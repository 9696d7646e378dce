//! The Potluck client as a library: the vault, what reaches its cluster, and the session that joins the two.

pub mod cluster;
pub mod session;
pub mod vault;
