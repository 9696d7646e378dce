//! Scrub: the log is read again, bit by bit, so that what has rotted is found while others still have it.
//!
//! A pass goes through the segments in order, each record that counts is read past the page cache and checked whole. A
//! damaged shard is given up, as by any read, and told to whoever repairs it; a damaged word about a shard, which the
//! table knows, is written anew; of heads, member records and sweeps the caller is told, who has them in memory.

use std::collections::BTreeSet;
use std::ops::Bound;

use potluck_proto::id::StripeId;

use super::format::{Kind, Record, RecordHeader};
use super::log::lock;
use super::reading::ReadError;
use super::{SegmentStore, recovery};
use crate::store::{ShardKey, StoreError};

/// Where a pass has come to: the next record to be read stands there or behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// The segment's number.
    pub segment: u64,
    /// Bytes from its beginning.
    pub offset: u64,
}

/// What a step found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Where the next step begins; none: the pass is over.
    pub next: Option<Cursor>,
    /// Bytes of records that were read and checked.
    pub bytes: u64,
    /// Stripes of which a shard was found damaged or unreadable.
    pub lost: BTreeSet<StripeId>,
    /// Heads, member records and sweeps that are damaged or unreadable.
    pub facts: BTreeSet<(Kind, [u8; 32])>,
    /// Other records that were damaged, and were written anew.
    pub mended: u64,
}

/// The records of the segment that is read.
pub(super) struct Listing {
    segment: u64,
    records: Vec<RecordHeader>,
}

impl SegmentStore {
    /// Reads about `most` bytes of records that count, from `from` on; of the segment that is written, shards alone. An error says that nothing could be recorded; the step can be tried again.
    pub fn scrub(&self, from: Cursor, most: u64) -> Result<Scrubbed, StoreError> {
        let mut found = Scrubbed::default();
        let segment = {
            let table = lock(&self.table);
            let mut segments = table.segments().range((Bound::Included(from.segment), Bound::Unbounded));
            segments.next().map(|(segment, _)| *segment)
        };
        let Some(segment) = segment else {
            *lock(&self.scrubbing) = None;
            return Ok(found);
        };
        let offset = if segment == from.segment { from.offset } else { 0 };
        let records = self.listing(segment, offset);
        let mut next = Cursor { segment: segment + 1, offset: 0 };
        for header in &records {
            if found.bytes >= most {
                next = Cursor { segment, offset: header.offset };
                break;
            }
            self.scrub_record(header, &mut found)?;
        }
        found.next = Some(next);
        Ok(found)
    }

    /// The records of a segment from an offset on. What the segment does not list any more, and the table still counts on,
    /// is among them as far as shards go.
    fn listing(&self, segment: u64, offset: u64) -> Vec<RecordHeader> {
        let mut listing = lock(&self.scrubbing);
        if listing.as_ref().is_none_or(|listing| listing.segment != segment) {
            // The list of one that is written grows: the table knows its shards.
            let finished = self.log.active() != Some(segment);
            let file = self.files.get(&*self.disk, segment).ok().filter(|_| finished);
            let contents = file.and_then(|file| recovery::read_segment(&*file, self.store, segment).ok());
            let sealed = contents.as_ref().is_some_and(|contents| contents.sealed);
            let mut records = contents.map(|contents| contents.records).unwrap_or_default();
            if !sealed {
                let table = lock(&self.table);
                let names = table.names_in(segment).into_iter().filter(|(kind, ..)| *kind == Kind::Shard);
                let keys = names.map(|(_, key, index)| ShardKey { stripe: StripeId(key), index });
                let here = keys.filter_map(|key| {
                    let entry = table.entry(&key).filter(|entry| entry.place.segment == segment)?;
                    let mut header = RecordHeader::bare(Kind::Shard, key.stripe.0, key.index as u8);
                    (header.segment, header.offset) = (segment, entry.place.offset);
                    Some(header)
                });
                let mut counted: Vec<RecordHeader> = here.collect();
                counted.retain(|counted| !records.iter().any(|header| header.offset == counted.offset));
                records.extend(counted);
                records.sort_by_key(|header| header.offset);
            }
            *listing = Some(Listing { segment, records });
        }
        let records = listing.as_ref().map(|listing| listing.records.as_slice()).unwrap_or_default();
        records[records.partition_point(|header| header.offset < offset)..].to_vec()
    }

    fn scrub_record(&self, header: &RecordHeader, found: &mut Scrubbed) -> Result<(), StoreError> {
        let key = ShardKey { stripe: StripeId(header.key), index: header.index.into() };
        if header.kind == Kind::Shard {
            let entry = lock(&self.table).entry(&key);
            let place = entry.filter(|entry| !entry.unreadable).map(|entry| (entry.place.segment, entry.place.offset));
            if place != Some((header.segment, header.offset)) {
                return Ok(());
            }
            match self.verify(key) {
                Ok(bytes) => found.bytes += bytes,
                Err(error) if error.lost() => _ = found.lost.insert(key.stripe),
                Err(StoreError::NotFound) => {}
                Err(error) => return Err(error),
            }
            return Ok(());
        }
        if !lock(&self.table).counts(header) {
            return Ok(());
        }
        found.bytes += header.extent();
        let sound = self.read_file(header.segment, header.offset..header.offset + header.extent()).and_then(|bytes| {
            let record = Record::decode(&bytes, self.store, header.segment, header.offset);
            record.map(|_| ()).map_err(ReadError::Damaged)
        });
        match sound {
            Ok(()) => {}
            Err(_) if header.kind.is_fact() => _ = found.facts.insert((header.kind, header.key)),
            Err(_) => {
                tracing::warn!(segment = header.segment, offset = header.offset, "a damaged word is written anew");
                let name = (Kind::Shard, header.key, usize::from(header.index));
                let written = self.write_anew(header.segment, name);
                written.map_err(|error| StoreError::Io(std::io::Error::other(error)))?;
                found.mended += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
