//! Reading: a shard's front, which says what it is and how to check the rest, and ranges of its payload.
//!
//! A shard that proves damaged is ended by a record that says so. One that the disk does not give stays, counts as missing,
//! and is tried again.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use potluck_proto::blocks::{self, BlockTree};
use potluck_proto::stripe::SignedHeader;

use super::SegmentStore;
use super::disk::{Disk, DiskFile};
use super::format::{FormatError, Kind, RecordHeader, decode_front};
use super::log::{lock, segment_name};
use super::table::{Entry, Place};
use crate::store::{Check, ShardKey, ShardRead, StoreError};

/// Files of segments that are kept open.
const OPEN_FILES: usize = 256;

/// Fronts of shards that are kept, each a few hundred bytes to a few thousand.
const FRONTS: usize = 512;

/// How often a shard is looked for that moves while it is read.
pub(super) const LOOKUPS: usize = 8;

/// Open files of segments, the newest used last.
#[derive(Default)]
pub(super) struct Files(Mutex<Vec<(u64, Arc<dyn DiskFile>)>>);

impl Files {
    pub(super) fn get(&self, disk: &dyn Disk, segment: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = lock(&self.0);
        if let Some(place) = files.iter().position(|(number, _)| *number == segment) {
            let found = files.remove(place);
            let file = found.1.clone();
            files.push(found);
            return Ok(file);
        }
        let file = disk.open(&segment_name(segment))?;
        if files.len() >= OPEN_FILES {
            files.remove(0);
        }
        files.push((segment, file.clone()));
        Ok(file)
    }

    pub(super) fn forget(&self, segment: u64) {
        lock(&self.0).retain(|(number, _)| *number != segment);
    }
}

/// Why a record could not be read.
pub(super) enum ReadError {
    Damaged(FormatError),
    Disk(io::Error),
}

/// Fronts of shards that were read last: who reads one range of a shard soon reads the next.
#[derive(Default)]
pub(super) struct Fronts(Mutex<BTreeMap<Place, Arc<Front>>>);

impl Fronts {
    pub(super) fn get(&self, place: Place) -> Option<Arc<Front>> {
        lock(&self.0).get(&place).cloned()
    }

    pub(super) fn keep(&self, place: Place, front: &Arc<Front>) {
        let mut fronts = lock(&self.0);
        if fronts.len() >= FRONTS {
            // Seldom, and what is needed soon comes back soon.
            fronts.clear();
        }
        fronts.insert(place, front.clone());
    }
}

/// A record's bytes, checked as far as its payload.
pub(super) struct Front {
    pub(super) header: RecordHeader,
    pub(super) stripe: SignedHeader,
    pub(super) tree: BlockTree,
}

impl SegmentStore {
    pub(super) fn read_file(&self, segment: u64, range: Range<u64>) -> Result<Bytes, ReadError> {
        // A name that is gone proves nothing of the shard: perhaps the disk is.
        let file = self.files.get(&*self.disk, segment).map_err(ReadError::Disk)?;
        let len = range.end - range.start;
        let bytes = file.read_at(range).map_err(|error| {
            self.files.forget(segment);
            ReadError::Disk(error)
        })?;
        if bytes.len() as u64 == len { Ok(bytes) } else { Err(ReadError::Damaged(FormatError::Truncated)) }
    }

    /// Reads what stands before a shard's payload and, of the payload, what `range` says. Only the front is checked.
    pub(super) fn read_entry(
        &self,
        key: &ShardKey,
        entry: &Entry,
        range: Range<u64>,
    ) -> Result<(Front, Bytes), ReadError> {
        let expected = RecordHeader {
            header_len: entry.header_len,
            tree_len: entry.tree_len,
            payload_len: entry.held.len,
            ..RecordHeader::bare(Kind::Shard, key.stripe.0, key.index as u8)
        };
        let (from, payload_at) = (entry.place.offset, expected.payload_at());
        let payload = from + payload_at + range.start..from + payload_at + range.end;
        // One call where they lie side by side.
        let (front, data) = if range.start == 0 {
            let bytes = self.read_file(entry.place.segment, from..payload.end)?;
            (bytes.slice(..payload_at as usize), bytes.slice(payload_at as usize..))
        } else {
            let front = self.read_file(entry.place.segment, from..from + payload_at)?;
            (front, self.read_file(entry.place.segment, payload)?)
        };
        let header = RecordHeader::decode(&front).map_err(ReadError::Damaged)?;
        header.expect_at(self.store, entry.place.segment, from).map_err(ReadError::Damaged)?;
        let same = (header.kind, header.key, usize::from(header.index)) == (Kind::Shard, key.stripe.0, key.index);
        let lengths = (header.header_len, header.tree_len, header.payload_len)
            == (entry.header_len, entry.tree_len, entry.held.len);
        if !same || !lengths {
            return Err(ReadError::Damaged(FormatError::Elsewhere));
        }
        match decode_front(&header, &front).map_err(ReadError::Damaged)? {
            Some((stripe, tree)) => Ok((Front { header, stripe, tree }, data)),
            None => Err(ReadError::Damaged(FormatError::Elsewhere)),
        }
    }

    /// As [`SegmentStore::read_entry`], but what stands before the payload may have been read and checked before.
    pub(super) fn read_known(
        &self,
        key: &ShardKey,
        entry: &Entry,
        range: Range<u64>,
    ) -> Result<(Arc<Front>, Bytes), ReadError> {
        if let Some(front) = self.fronts.get(entry.place) {
            if range.is_empty() {
                return Ok((front, Bytes::new()));
            }
            let payload = entry.place.offset + front.header.payload_at();
            let data = self.read_file(entry.place.segment, payload + range.start..payload + range.end)?;
            return Ok((front, data));
        }
        let (front, data) = self.read_entry(key, entry, range)?;
        let front = Arc::new(front);
        self.fronts.keep(entry.place, &front);
        Ok((front, data))
    }

    /// Finds a shard and runs `work` on it. One that proves damaged, or that the disk does not give, counts as missing
    /// from then on.
    pub(super) fn on_shard<T>(
        &self,
        key: ShardKey,
        work: impl Fn(&Entry) -> Result<T, ReadError>,
    ) -> Result<T, StoreError> {
        for _ in 0..LOOKUPS {
            let entry = self.entry(&key).ok_or(StoreError::NotFound)?;
            let error = match work(&entry) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            // It may have been moved, and its segment be gone or its file be another's by now.
            let same = self.entry(&key).is_some_and(|now| now.place == entry.place);
            if !same {
                continue;
            }
            return Err(match error {
                ReadError::Damaged(why) => {
                    tracing::warn!(stripe = %key.stripe, index = key.index, %why, "a damaged shard is given up");
                    self.give_up(key, &entry);
                    StoreError::Corrupt(describe(&why))
                }
                ReadError::Disk(error) if is_shortage(&error) => StoreError::Io(error),
                ReadError::Disk(error) => {
                    tracing::error!(stripe = %key.stripe, index = key.index, %error, "a shard cannot be read: it counts as missing until it can");
                    if lock(&self.table).set_unreadable(key, entry.place, true) {
                        self.count_lost(key);
                    }
                    StoreError::Unreadable(error.to_string())
                }
            });
        }
        Err(StoreError::Unreadable("it moved each time it was looked for".into()))
    }

    /// Reads a claimed shard whole and checks it.
    pub(super) fn on_shard_claimed(&self, key: ShardKey) -> Result<(Front, Bytes), StoreError> {
        let entry = self.entry(&key).ok_or(StoreError::NotFound)?;
        match self.read_whole(&key, &entry) {
            Ok(read) => Ok(read),
            Err(ReadError::Disk(error)) => Err(StoreError::Unreadable(error.to_string())),
            Err(ReadError::Damaged(why)) => {
                self.give_up_claimed(key, &entry);
                Err(StoreError::Corrupt(describe(&why)))
            }
        }
    }

    pub(super) fn read_whole(&self, key: &ShardKey, entry: &Entry) -> Result<(Front, Bytes), ReadError> {
        let (front, data) = self.read_entry(key, entry, 0..entry.held.len.into())?;
        match front.tree.check_range(0, &data) {
            Ok(()) => Ok((front, data)),
            Err(_) => Err(ReadError::Damaged(FormatError::Checksum("payload"))),
        }
    }

    /// Reads a range; `known`: the front need not be read again.
    pub(super) fn read_range(
        &self,
        key: ShardKey,
        range: Range<u64>,
        check: Check,
        known: bool,
    ) -> Result<ShardRead, StoreError> {
        let len = u64::from(self.entry(&key).ok_or(StoreError::NotFound)?.held.len);
        if range.end > len || range.start > range.end {
            return Err(StoreError::Range);
        }
        let range = if range.is_empty() { 0..len } else { range };
        let wide = blocks::widen(range.start, range.end - range.start, len);
        self.on_shard(key, |entry| {
            let (front, data) = if known {
                self.read_known(&key, entry, wide.clone())?
            } else {
                let (front, data) = self.read_entry(&key, entry, wide.clone())?;
                (Arc::new(front), data)
            };
            if check == Check::Here && front.tree.check_range(wide.start, &data).is_err() {
                return Err(ReadError::Damaged(FormatError::Checksum("payload")));
            }
            let header = front.stripe.bytes().clone();
            Ok(ShardRead { header, tree: front.tree.clone(), offset: wide.start, data })
        })
    }
}

pub(super) fn describe(why: &FormatError) -> &'static str {
    match why {
        FormatError::Checksum(what) | FormatError::Field(what) | FormatError::Magic(what) => what,
        FormatError::Version(_) => "version",
        FormatError::Truncated => "cut off",
        FormatError::Elsewhere => "another record is in its place",
    }
}

/// Whether the process is short of something, which says nothing of the shard.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    let files = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
    matches!(error.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
        || files.contains(&error.raw_os_error())
}
