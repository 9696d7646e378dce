//! What is wrong with a store, found without writing to it.
//!
//! [`read`] goes through the log as a start does, but cuts nothing, removes nothing and names nothing. If it is to check
//! the whole, it also reads every record that a start knows from a footer alone, from end to end, and says of each that
//! is damaged whether anything hangs on it. In memory are what a start has there, one record, and a line for each
//! damaged part. [`mend`] then does what a node can do on its own.

mod mend;
mod segment;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use potluck_proto::id::StripeId;

use self::segment::{Reading, read_one};
use super::disk::{Disk, Space};
use super::format::{FormatError, Kind, StoreId};
use super::log::segment_number;
use super::table::{Place, Table};
use super::{recovery, segment_bytes, space};
use crate::store::ShardKey;

pub use self::mend::{MendError, Mended, mend};

/// How far a look goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// As far as a start: of sealed segments the footer is enough.
    Listed,
    /// Every record is read.
    Whole,
}

/// What a damaged part of a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The segment's first block, which says what the segment's name and its records say too.
    First,
    /// A record of which this is known.
    Record {
        /// Its kind.
        kind: Kind,
        /// What it is about.
        key: [u8; 32],
        /// Which of the stripe's shards.
        index: u8,
        /// The put that it belongs to.
        generation: u64,
        /// Its number.
        sequence: u64,
    },
    /// The last block, which says where the footer is.
    Seal,
    /// Nobody can say which records were there.
    Unknown,
}

/// What hangs on a damaged part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It is the record that counts: what it says is lost here.
    Counts,
    /// Nobody can say.
    Unknown,
    /// Nothing: all that it says stands elsewhere too.
    Repeated,
    /// Nothing: a newer record says otherwise. Its space comes back by compaction.
    Dead,
    /// The end of a segment that was never sealed: a crash leaves this of a write that nobody was told of.
    Torn,
}

/// A part of a segment that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length, in bytes.
    pub len: u64,
    /// What it is.
    pub what: What,
    /// What is wrong with it.
    pub why: String,
    /// The disk did not give it, and may another time.
    pub unreadable: bool,
    /// What hangs on it.
    pub standing: Standing,
    /// An older, sound record of the same thing.
    pub older: Option<Place>,
}

impl Part {
    /// The shard whose record it is, if it is one's.
    #[must_use]
    pub fn shard(&self) -> Option<ShardKey> {
        match self.what {
            What::Record { kind: Kind::Shard, key, index, .. } => {
                Some(ShardKey { stripe: StripeId(key), index: index.into() })
            }
            _ => None,
        }
    }
}

/// What a segment's file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Sealed, and its footer is sound.
    Sealed,
    /// Not sealed, or its footer is damaged: its records were read one by one.
    Open,
    /// No record was ever written to it.
    Empty,
    /// Another store's, or another segment's by its first block.
    Foreign,
    /// A newer program wrote it.
    Newer(String),
    /// The disk does not give it.
    Unreadable(String),
}

/// What was found of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentReport {
    /// Its number.
    pub segment: u64,
    /// Length of its file, in bytes.
    pub bytes: u64,
    /// Records that are there or that its footer lists, padding included.
    pub records: u64,
    /// Records that its last block counts and that are not there.
    pub missing: u64,
    /// What it is.
    pub state: State,
    /// What is damaged of it, in order.
    pub parts: Vec<Part>,
}

/// The file that names the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreFile {
    /// As it was written.
    Sound,
    /// Not there.
    Missing,
    /// Damaged.
    Damaged(String),
    /// The disk does not give it.
    Unreadable(String),
}

/// Why nothing could be said of a store.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There is neither a segment nor the file that names the store.
    #[error("there is no store here")]
    Empty,
    /// The file that names the store is lost, and no segment says which it is.
    #[error("neither a segment nor the file \"store\" says which store this is")]
    Nameless,
    /// A newer program wrote it.
    #[error("{0}")]
    Newer(FormatError),
    /// The disk does not even list the files.
    #[error("the files cannot be listed: {0}")]
    Disk(#[from] io::Error),
}

/// What was found of a store.
#[derive(Debug)]
pub struct Report {
    store: StoreId,
    /// The file that names it.
    pub store_file: StoreFile,
    /// Its segments, by number.
    pub segments: Vec<SegmentReport>,
    /// How many records of each kind are there.
    pub kinds: BTreeMap<Kind, u64>,
    /// What a start would know.
    pub table: Table,
}

impl Report {
    /// All damaged parts, with their segments' numbers.
    pub fn parts(&self) -> impl Iterator<Item = (u64, &Part)> {
        self.segments.iter().flat_map(|segment| segment.parts.iter().map(|part| (segment.segment, part)))
    }

    /// Whether nothing is damaged but what nothing hangs on: dead records, and the end of a write that a crash cut short.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let readable = |segment: &SegmentReport| matches!(segment.state, State::Sealed | State::Open | State::Empty);
        self.store_file == StoreFile::Sound
            && self.segments.iter().all(readable)
            && self.parts().all(|(_, part)| matches!(part.standing, Standing::Dead | Standing::Torn))
    }

    /// Shards that are held, those in the trash included, also where their bytes proved damaged.
    #[must_use]
    pub fn shards(&self) -> u64 {
        self.table.usage().shards + self.trashed()
    }

    /// Shards in the trash.
    #[must_use]
    pub fn trashed(&self) -> u64 {
        self.table.trashed() as u64
    }
}

/// Looks at a store. `progress` is told how many segments of how many were read. Nothing is written.
pub fn read(disk: &dyn Disk, depth: Depth, progress: &mut dyn FnMut(u64, u64)) -> Result<Report, CheckError> {
    let names = disk.list()?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    let (store, store_file) = store_of(disk, &numbers)?;
    let mut reading = Reading::new(store, depth);
    for (done, segment) in (1..).zip(&numbers) {
        read_one(&mut reading, disk, *segment);
        progress(done, numbers.len() as u64);
    }
    let Reading { mut segments, mut table, kinds, superseded, doubted, .. } = reading;
    if let Some(segment) = doubted {
        table.doubt_trash(segment);
    }
    table.settle();
    judge(&mut segments, &table, &superseded);
    Ok(Report { store, store_file, segments, kinds, table })
}

/// Bytes of a disk that puts leave free, where the store may have all of it.
#[must_use]
pub fn reserve(space: Space) -> u64 {
    space::reserve(space.total, segment_bytes(space.total))
}

/// The store's id as a start finds it, and how the file fares that should say it.
fn store_of(disk: &dyn Disk, numbers: &[u64]) -> Result<(StoreId, StoreFile), CheckError> {
    let file = match recovery::name_file(disk) {
        Ok(Ok(store)) => return Ok((store, StoreFile::Sound)),
        Ok(Err(error @ FormatError::Version(_))) => return Err(CheckError::Newer(error)),
        Ok(Err(error)) => StoreFile::Damaged(error.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => StoreFile::Missing,
        Err(error) => StoreFile::Unreadable(error.to_string()),
    };
    if numbers.is_empty() && file == StoreFile::Missing {
        return Err(CheckError::Empty);
    }
    let named = recovery::named_by_segments(disk, numbers);
    named.map(|store| (store, file)).ok_or(CheckError::Nameless)
}

/// Says of each part what hangs on it. `superseded` are places of which a newer record says otherwise.
fn judge(segments: &mut [SegmentReport], table: &Table, superseded: &BTreeSet<Place>) {
    let damaged: BTreeSet<Place> = segments
        .iter()
        .flat_map(|segment| segment.parts.iter().map(|part| Place { segment: segment.segment, offset: part.offset }))
        .collect();
    for segment in segments {
        for part in &mut segment.parts {
            let place = Place { segment: segment.segment, offset: part.offset };
            part.older = part.older.filter(|older| !damaged.contains(older));
            let What::Record { kind, key, .. } = part.what else { continue };
            // What a footer lists the table knows; other damaged records it does not.
            let counts = match (segment.state == State::Sealed, part.shard()) {
                (true, Some(shard)) => table.entry(&shard).is_some_and(|entry| entry.place == place),
                (true, None) => table.fact(kind, key).is_some_and(|fact| fact.place == place),
                (false, _) => !superseded.contains(&place),
            };
            if part.standing == Standing::Unknown {
                part.standing = if counts { Standing::Counts } else { Standing::Dead };
            }
        }
    }
}

#[cfg(test)]
mod tests;
