//! Potluck's storage node as a library.

pub mod config;
pub mod http;
pub mod log;
pub mod metrics;
