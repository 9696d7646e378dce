//! One append-only log of self-describing, checksummed records in segments: the store that is to follow the files.

pub mod disk;
pub mod format;
pub mod log;
pub mod recovery;
pub mod table;
