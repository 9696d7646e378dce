//! Space comes back: what counts of a mostly dead segment is written anew, read back, and the segment is removed.
//!
//! At whatever point this ends, each record that counts is there at least once: a copy counts for the table once it was
//! read back, for a start because it is newer, and the segment goes last. A word that a shard is no more is copied as
//! well, as long as another segment has, or may have, what it ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

use bytes::Bytes;
use potluck_proto::id::StripeId;

use super::busy::Name;
use super::format::{Kind, Record, RecordHeader};
use super::log::{AppendError, Job, lock, segment_name};
use super::reading::{ReadError, is_shortage};
use super::table::SegmentFacts;
use super::{SegmentStore, fact_header, recovery, state_header};
use crate::store::{ShardKey, ShardState};

/// What must be dead of a segment, in percent of its bytes, while there is space.
const DEAD_PERCENT: u64 = 50;

/// The same where space is short: the last tenth of a disk is worth more copying.
const DEAD_PERCENT_SHORT: u64 = 10;

/// Bytes of records that compaction copies at once: what waits behind them waits a millisecond.
const COPY_BYTES: u64 = 1 << 20;

/// Shards of a segment that is gone which are looked at while nobody else may.
const FORGET_AT_ONCE: usize = 512;

/// How often compaction writes a copy that does not read back as it was written.
const COPY_TRIES: usize = 3;

/// Why a segment was not emptied. Whatever was copied counts, and nothing is lost.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// Records of it cannot be read, or a copy of one cannot: the segment stays.
    #[error("segment {0} stays: {1}")]
    Unreadable(u64, String),
    /// The copies could not be written.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The disk failed otherwise.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What an emptied segment gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// The segment, which is gone.
    pub segment: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Of them, those that were copied.
    pub copied: u64,
}

/// The segment whose emptying pays most, if one pays: never the one that is written, nor one that must stay.
#[must_use]
pub fn choose(segments: &BTreeMap<u64, SegmentFacts>, active: Option<u64>, short_of_space: bool) -> Option<u64> {
    let percent = if short_of_space { DEAD_PERCENT_SHORT } else { DEAD_PERCENT };
    segments
        .iter()
        .filter(|(segment, facts)| active != Some(**segment) && !facts.keep)
        .filter(|(_, facts)| facts.dead() * 100 >= facts.bytes * percent)
        // The share, in thousandths: a nearly dead one costs least per byte that comes back.
        .max_by_key(|(_, facts)| facts.dead() * 1000 / facts.bytes.max(1))
        .map(|(segment, _)| *segment)
}

/// A segment that is being emptied.
pub(super) struct Emptying {
    segment: u64,
    /// What is still to be looked at.
    names: VecDeque<Name>,
    /// All shards of which it may hold something.
    known: Vec<ShardKey>,
    copied: u64,
    /// What the segment cannot be asked for any more was asked of the table.
    asked: bool,
}

/// What one step of compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// No segment is worth emptying.
    Idle,
    /// It copied so many bytes, and there is more to do.
    Copied(u64),
    /// A segment is gone.
    Emptied(Compacted),
}

impl SegmentStore {
    /// Empties the segment with most to gain, if one is worth it: copies what counts, reads the copies back, and removes
    /// it. One at a time. At whatever point it ends, each record that counts is there at least once.
    pub fn compact(&self) -> Result<Option<Compacted>, CompactError> {
        loop {
            match self.compact_step()? {
                Step::Idle => return Ok(None),
                Step::Copied(_) => {}
                Step::Emptied(done) => return Ok(Some(done)),
            }
        }
    }

    /// A part of that: copies a megabyte or so, or removes what was copied. After an error another segment is chosen.
    pub fn compact_step(&self) -> Result<Step, CompactError> {
        let mut compacting = lock(&self.compacting);
        let mut emptying = match compacting.take() {
            Some(emptying) => emptying,
            None => {
                let short = self.short_of_space();
                let chosen = choose(lock(&self.table).segments(), self.log.active(), short);
                let Some(segment) = chosen else { return Ok(Step::Idle) };
                self.begin_emptying(segment)
            }
        };
        let segment = emptying.segment;
        if emptying.names.is_empty() && !emptying.asked {
            emptying.asked = true;
            if lock(&self.table).live(segment) > 0 {
                emptying.names = lock(&self.table).names_in(segment).into();
            }
        }
        if emptying.names.is_empty() {
            return self.finish_emptying(emptying).map(Step::Emptied);
        }
        let copied = self.move_out(segment, &mut emptying.names)?;
        emptying.copied += copied;
        *compacting = Some(emptying);
        Ok(Step::Copied(copied))
    }

    fn begin_emptying(&self, segment: u64) -> Emptying {
        let file = self.files.get(&*self.disk, segment);
        let listed = file.ok().and_then(|file| recovery::read_segment(&*file, self.store, segment).ok());
        let mut names = BTreeSet::new();
        for header in listed.iter().flat_map(|contents| &contents.records) {
            match header.kind {
                Kind::Padding | Kind::Footer => {}
                kind if kind.is_fact() => _ = names.insert((kind, header.key, 0)),
                _ => _ = names.insert((Kind::Shard, header.key, usize::from(header.index))),
            }
        }
        let shards = names.iter().filter(|(kind, ..)| *kind == Kind::Shard);
        let mut known: Vec<ShardKey> =
            shards.map(|(_, key, index)| ShardKey { stripe: StripeId(*key), index: *index }).collect();
        if listed.is_none_or(|contents| !contents.sealed) {
            // Also what was perhaps written there.
            known.extend(lock(&self.table).dead_in(segment));
        }
        Emptying { segment, names: names.into_iter().collect(), known, copied: 0, asked: false }
    }

    /// Removes a segment of which nothing counts any more.
    fn finish_emptying(&self, emptying: Emptying) -> Result<Compacted, CompactError> {
        let segment = emptying.segment;
        let (live, bytes) = {
            let table = lock(&self.table);
            (table.live(segment), table.segments().get(&segment).map_or(0, |facts| facts.bytes))
        };
        if live > 0 && !lock(&self.table).names_in(segment).is_empty() {
            return Err(CompactError::Unreadable(segment, "records of it still count".into()));
        }
        match self.disk.unlink(&segment_name(segment)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.files.forget(segment);
        if let Some(index) = &self.index {
            index.remove(segment);
        }
        lock(&self.unindexed).remove(&segment);
        // Until this is done it may come back, and the words that end what it holds must stay.
        self.disk.sync_folder()?;
        for keys in emptying.known.chunks(FORGET_AT_ONCE) {
            lock(&self.table).forget_dead(segment, keys);
        }
        lock(&self.table).remove_segment(segment);
        Ok(Compacted { segment, bytes, copied: emptying.copied })
    }

    /// Writes anew what counts of the next names and stands in the segment. Returns the bytes written.
    fn move_out(&self, segment: u64, names: &mut VecDeque<Name>) -> Result<u64, CompactError> {
        // Claims are held together, and the first alone is waited for: so nobody waits in a circle.
        let (mut claims, mut moves, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(name) = names.front().copied().filter(|_| bytes < COPY_BYTES) {
            let claim = if claims.is_empty() { Some(self.busy.claim(name)) } else { self.busy.try_claim(name) };
            let Some(claim) = claim else { break };
            claims.push(claim);
            names.pop_front();
            for made in self.moves_of(segment, name)? {
                bytes += made.header.extent();
                moves.push(made);
            }
        }
        self.write_moves(moves)?;
        Ok(bytes)
    }

    /// Writes anew what counts of one name and stands in the segment.
    pub(super) fn write_anew(&self, segment: u64, name: Name) -> Result<(), CompactError> {
        let _claim = self.busy.claim(name);
        let moves = self.moves_of(segment, name)?;
        self.write_moves(moves)
    }

    /// What must be written anew of one name, which is claimed.
    fn moves_of(&self, segment: u64, (kind, key, index): Name) -> Result<Vec<Move>, CompactError> {
        let mut moves = Vec::new();
        if kind.is_fact() {
            let fact = lock(&self.table).fact(kind, key).filter(|fact| fact.place.segment == segment);
            if fact.is_some() {
                let payload = self.kept(kind, key).map_err(|error| self.stays(segment, &error))?;
                let header = fact_header(kind, key, &payload);
                moves.push(Move { header, stripe: Bytes::new(), tree: Bytes::new(), payload });
            }
            return Ok(moves);
        }
        let key = ShardKey { stripe: StripeId(key), index };
        let (entry, tomb, uncertain) = {
            let table = lock(&self.table);
            (table.entry(&key), table.needed_tomb(&key, segment), table.is_uncertain(&key))
        };
        if let Some(entry) = entry {
            let said_here = entry.said.is_some_and(|said| said.segment == segment);
            if entry.place.segment == segment || (said_here && uncertain) {
                if entry.unreadable {
                    return Err(self.stays(segment, &"a shard in it cannot be read"));
                }
                match self.read_whole(&key, &entry) {
                    Ok((front, payload)) => {
                        let generation = if uncertain { 0 } else { entry.generation };
                        let header = RecordHeader { generation, ..state_header(front.header, &entry.held) };
                        let tree = Bytes::copy_from_slice(front.tree.as_bytes());
                        moves.push(Move { header, stripe: front.stripe.bytes().clone(), tree, payload });
                    }
                    Err(ReadError::Disk(error)) => {
                        if !is_shortage(&error) && lock(&self.table).set_unreadable(key, entry.place, true) {
                            self.count_lost(key);
                        }
                        return Err(self.stays(segment, &error));
                    }
                    Err(ReadError::Damaged(_)) => self.give_up_claimed(key, &entry),
                }
            } else if said_here {
                let kind = match entry.held.state {
                    ShardState::Trash { .. } => Kind::Trash,
                    ShardState::Live if entry.held.complete => Kind::Complete,
                    ShardState::Live => Kind::Restore,
                };
                let header = RecordHeader {
                    generation: entry.generation,
                    ..state_header(RecordHeader::bare(kind, key.stripe.0, index as u8), &entry.held)
                };
                moves.push(Move::bare(header));
            }
        }
        // The one that ends what is given up just now stands elsewhere.
        if let Some(tomb) = tomb.filter(|_| lock(&self.table).needed_tomb(&key, segment).is_some()) {
            let header = RecordHeader {
                generation: tomb.generation,
                damaged: tomb.damaged,
                ..RecordHeader::bare(Kind::Delete, key.stripe.0, index as u8)
            };
            moves.push(Move::bare(header));
        }
        Ok(moves)
    }

    /// Writes records and reads them back; only then the table is told, and what they replace counts no more.
    fn write_moves(&self, mut moves: Vec<Move>) -> Result<(), CompactError> {
        for _ in 0..COPY_TRIES {
            let jobs = moves
                .iter()
                .map(|made| Job::new(&*self.disk, made.header, &made.stripe, &made.tree, &made.payload).untold());
            let outcomes = self.log.append_all(jobs.collect());
            let (mut again, mut failed) = (Vec::new(), None);
            for (made, outcome) in moves.into_iter().zip(outcomes) {
                match outcome {
                    Ok(header) if self.reads_back(&header) => lock(&self.table).apply(&header),
                    Ok(header) => {
                        tracing::error!(
                            segment = header.segment,
                            offset = header.offset,
                            "a copy is not what was written"
                        );
                        lock(&self.table).refuse(&header);
                        again.push(made);
                    }
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(error) = failed {
                return Err(error.into());
            }
            // A copy that is not sound is newer than the sound one: there must be a sound one that is newer still.
            moves = again;
            if moves.is_empty() {
                return Ok(());
            }
        }
        Err(CompactError::Append(AppendError::Disk(io::ErrorKind::Other, "copies are not what was written".into())))
    }

    fn reads_back(&self, header: &RecordHeader) -> bool {
        let range = header.offset..header.offset + header.extent();
        let read = self.read_file(header.segment, range);
        read.is_ok_and(|bytes| {
            Record::decode(&bytes, self.store, header.segment, header.offset)
                .is_ok_and(|record| record.header == *header)
        })
    }

    /// The segment cannot be emptied, and is not tried again until the next start.
    fn stays(&self, segment: u64, why: &dyn std::fmt::Display) -> CompactError {
        tracing::error!(segment, %why, "a segment cannot be emptied: it stays");
        lock(&self.table).distrust(segment, true);
        CompactError::Unreadable(segment, why.to_string())
    }
}

/// A record that compaction writes anew.
struct Move {
    header: RecordHeader,
    stripe: Bytes,
    tree: Bytes,
    payload: Bytes,
}

impl Move {
    fn bare(header: RecordHeader) -> Self {
        Self { header, stripe: Bytes::new(), tree: Bytes::new(), payload: Bytes::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_dead_goes_first_and_the_active_never() {
        let facts = |bytes, live| SegmentFacts { bytes, live, ..SegmentFacts::default() };
        let mut segments = BTreeMap::from([(1, facts(100, 60)), (2, facts(100, 30)), (3, facts(1000, 400))]);
        assert_eq!(choose(&segments, None, false), Some(2));
        assert_eq!(choose(&segments, Some(2), false), Some(3));
        segments.insert(3, SegmentFacts { keep: true, ..facts(1000, 0) });
        assert_eq!(choose(&segments, Some(2), false), None);
        assert_eq!(choose(&segments, Some(2), true), Some(1));
    }
}
