//! Plain counters of an upload, for whoever draws a progress bar.

use std::sync::atomic::{AtomicU64, Ordering};

/// How far an upload has come. Counters only grow; read them at any time, from any thread.
#[derive(Debug, Default)]
pub struct Progress {
    /// Files done.
    pub files: AtomicU64,
    /// Bytes of plaintext read.
    pub bytes_read: AtomicU64,
    /// Bytes of plaintext that the vault did not have yet, as far as this upload knows.
    pub bytes_new: AtomicU64,
    /// Bytes of those after compression and encryption.
    pub bytes_stored: AtomicU64,
    /// Bytes of shards that nodes have on disk.
    pub bytes_sent: AtomicU64,
    /// Bytes that there are to read, if the caller knows; 0 if not.
    pub total: AtomicU64,
}

impl Progress {
    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}
