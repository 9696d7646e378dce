//! What a node can do on its own about a damaged store: say durably which shards are lost, so that the others rebuild
//! them, and write anew the file that names the store. Nothing that can be read is removed.

use std::sync::Arc;

use super::{CheckError, Depth, Report, Standing, StoreFile};
use crate::store::segments::disk::Disk;
use crate::store::segments::log::Clock;
use crate::store::segments::table::Place;
use crate::store::segments::{Options, SegmentStore};
use crate::store::{ShardKey, StoreError};

/// Length of the segments that a repair writes, in bytes: enough for many words of deletion, and little to set aside on
/// a disk that may be full.
const SEGMENT_BYTES: u64 = 8 << 20;

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mended {
    /// Damaged shards that are given up, as the log now says: they count as missing, and the others rebuild them.
    pub given_up: u64,
    /// Shards that were to be given up, of which the log could not be told.
    pub failed: u64,
    /// Shards that the disk does not give. They stay: it may give them another time.
    pub unreadable: u64,
    /// Shards that read well after all.
    pub sound: u64,
    /// The file that names the store was written anew.
    pub named: bool,
}

/// Why a store could not be mended. What was done before stays done.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// It could not be opened, or written to.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// It could not be looked at afterwards.
    #[error("{0}")]
    Check(#[from] CheckError),
}

/// Carries out what can be done about what a look at the whole has found.
pub fn mend(disk: &Arc<dyn Disk>, report: &Report, clock: Clock) -> Result<Mended, MendError> {
    let damaged: Vec<(ShardKey, Place)> = report
        .parts()
        .filter(|(_, part)| part.standing == Standing::Counts)
        .filter_map(|(segment, part)| Some((part.shard()?, Place { segment, offset: part.offset })))
        .collect();
    let mut mended = Mended { named: report.store_file != StoreFile::Sound, ..Mended::default() };
    if damaged.is_empty() && !mended.named {
        return Ok(mended);
    }
    let options = Options {
        capacity: u64::MAX,
        segment_bytes: SEGMENT_BYTES,
        fresh: report.store,
        clock,
        threaded: false,
        index: None,
        progress: Arc::default(),
    };
    let store = SegmentStore::open(disk.clone(), options)?;
    let mut given_up = Vec::new();
    for (key, place) in damaged {
        match store.verify(key) {
            Ok(_) => mended.sound += 1,
            Err(StoreError::Unreadable(_)) => mended.unreadable += 1,
            Err(StoreError::Corrupt(_)) => given_up.push((key, place)),
            // It counts as missing already.
            Err(StoreError::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    drop(store);
    if !given_up.is_empty() {
        // What the next start will know.
        let after = super::read(&**disk, Depth::Listed, &mut |_, _| {})?;
        let held = |key, place| after.table.entry(key).is_some_and(|entry| entry.place == place);
        mended.failed = given_up.iter().filter(|(key, place)| held(key, *place)).count() as u64;
        mended.given_up = given_up.len() as u64 - mended.failed;
    }
    Ok(mended)
}
