//! A client against nodes in memory, over real endpoints on loopback, with faults that are switched on one by one.

pub(crate) mod fake;
mod heads;
mod put;
mod read;
