//! placeholder
pub mod durable;
pub mod store;
