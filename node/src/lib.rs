//! placeholder
pub mod durable;
pub mod heads;
pub mod identity;
pub mod membership;
pub mod repair;
pub mod store;
