//! One segment, looked at: its records go to the table as at a start, and its damaged parts are named as far as they can be.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::{Depth, Part, SegmentReport, Standing, State, What};
use crate::store::ShardKey;
use crate::store::segments::disk::{Disk, DiskFile};
use crate::store::segments::format::{BLOCK, Kind, RECORD_LEN, Record, RecordHeader, Seal, SegmentHeader, StoreId};
use crate::store::segments::log::segment_name;
use crate::store::segments::recovery::{Contents, Gap, Unusable, Window, read_segment};
use crate::store::segments::table::{Place, Table};
use potluck_proto::id::StripeId;

/// What a record is about: its kind, a shard's for all that is said of one, its key and its index.
type Name = (Kind, [u8; 32], u8);

/// What is known while segments are read, in order.
pub(super) struct Reading {
    store: StoreId,
    depth: Depth,
    pub(super) segments: Vec<SegmentReport>,
    pub(super) table: Table,
    pub(super) kinds: BTreeMap<Kind, u64>,
    /// Damaged records by what they are about: where, and what a newer one must say to make them dead.
    damaged: BTreeMap<Name, Vec<Damaged>>,
    pub(super) superseded: BTreeSet<Place>,
    /// The newest segment in which records may have been lost.
    pub(super) doubted: Option<u64>,
}

struct Damaged {
    place: Place,
    kind: Kind,
    generation: u64,
    sequence: u64,
}

impl Damaged {
    /// Whether a record of the same name makes this one dead.
    fn is_ended_by(&self, header: &RecordHeader) -> bool {
        header.sequence > self.sequence
            && match header.kind {
                Kind::Delete => header.generation >= self.generation,
                kind if kind.is_state() => self.kind.is_state(),
                _ => true,
            }
    }
}

fn name_of(kind: Kind, key: [u8; 32], index: u8) -> Name {
    (if kind == Kind::Delete || kind.is_state() { Kind::Shard } else { kind }, key, index)
}

impl Reading {
    pub(super) fn new(store: StoreId, depth: Depth) -> Self {
        Self {
            store,
            depth,
            segments: Vec::new(),
            table: Table::default(),
            kinds: BTreeMap::new(),
            damaged: BTreeMap::new(),
            superseded: BTreeSet::new(),
            doubted: None,
        }
    }

    fn apply(&mut self, header: &RecordHeader) {
        *self.kinds.entry(header.kind).or_default() += 1;
        self.table.apply(header);
        let Some(damaged) = self.damaged.get(&name_of(header.kind, header.key, header.index)) else { return };
        self.superseded.extend(damaged.iter().filter(|older| older.is_ended_by(header)).map(|older| older.place));
    }

    /// Takes note of a damaged part, before what stands behind it is applied.
    fn note(&mut self, segment: u64, part: &mut Part) {
        let What::Record { kind, key, index, generation, sequence } = part.what else { return };
        part.older = match kind {
            Kind::Shard => {
                let shard = ShardKey { stripe: StripeId(key), index: index.into() };
                self.table.entry(&shard).map(|entry| entry.place)
            }
            _ => self.table.fact(kind, key).map(|fact| fact.place),
        };
        let place = Place { segment, offset: part.offset };
        let damaged = Damaged { place, kind, generation, sequence };
        self.damaged.entry(name_of(kind, key, index)).or_default().push(damaged);
    }
}

/// Reads a segment and adds what was found.
pub(super) fn read_one(reading: &mut Reading, disk: &dyn Disk, segment: u64) {
    let mut report =
        SegmentReport { segment, bytes: 0, records: 0, missing: 0, state: State::Empty, parts: Vec::new() };
    let read = disk.open(&segment_name(segment)).map_err(Unusable::from).and_then(|file| {
        report.bytes = file.len()?;
        Ok((read_segment(&*file, reading.store, segment)?, file))
    });
    match read {
        Ok((contents, file)) => {
            report.state = if contents.sealed { State::Sealed } else { State::Open };
            look(reading, &*file, &contents, &mut report);
            take_in(reading, &contents, &mut report);
        }
        Err(Unusable::Empty) => {}
        Err(why) => {
            report.state = match why {
                Unusable::Newer(error) => State::Newer(error.to_string()),
                Unusable::Disk(error) => State::Unreadable(error.to_string()),
                Unusable::Foreign | Unusable::Empty => State::Foreign,
            };
            reading.table.set_blind(segment);
            reading.doubted = Some(segment);
        }
    }
    reading.segments.push(report);
}

/// Finds the damaged parts.
fn look(reading: &Reading, file: &dyn DiskFile, contents: &Contents, report: &mut SegmentReport) {
    let mut window = Window::new(file);
    let first = window.get(0, BLOCK as u64).map(SegmentHeader::decode);
    let wrong = match first {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some((error.to_string(), false)),
        Err(error) => Some((not_given(&error), true)),
    };
    if let Some((why, unreadable)) = wrong {
        let part = Part { unreadable, ..part(0, BLOCK as u64, What::First, why) };
        report.parts.push(Part { standing: Standing::Repeated, ..part });
    }
    if !contents.sealed {
        let mut parts = Gaps { store: reading.store, window }.parts(contents, report);
        report.parts.append(&mut parts);
    } else if reading.depth == Depth::Whole {
        let damaged = contents.records.iter().filter_map(|header| check_listed(&mut window, reading.store, header));
        report.parts.extend(damaged);
    }
}

/// Compares a record with what the footer says of it.
fn check_listed(window: &mut Window<'_>, store: StoreId, header: &RecordHeader) -> Option<Part> {
    let (why, unreadable) = match window.get(header.offset, header.extent()) {
        Ok(bytes) => match Record::decode(bytes, store, header.segment, header.offset) {
            Ok(record) if record.header == *header => return None,
            Ok(_) => ("another record than the footer lists".into(), false),
            Err(error) => (error.to_string(), false),
        },
        Err(error) => (not_given(&error), true),
    };
    Some(Part { unreadable, ..record_part(header, header.extent(), why, true) })
}

/// Tells the table, in the order of a start, and takes note of what is damaged on the way.
fn take_in(reading: &mut Reading, contents: &Contents, report: &mut SegmentReport) {
    let segment = report.segment;
    report.records = contents.records.len() as u64;
    reading.table.begin_segment(segment);
    let mut parts = report.parts.iter_mut().peekable();
    for header in &contents.records {
        while let Some(part) = parts.next_if(|part| part.offset <= header.offset) {
            reading.note(segment, part);
        }
        reading.apply(header);
    }
    parts.for_each(|part| reading.note(segment, part));
    if !contents.gaps.is_empty() {
        reading.table.distrust(segment, contents.unreadable);
    }
    if contents.may_lack_records() {
        reading.doubted = Some(segment);
    }
}

fn not_given(error: &io::Error) -> String {
    format!("the disk does not give it: {error}")
}

fn part(offset: u64, len: u64, what: What, why: String) -> Part {
    Part { offset, len, what, why, unreadable: false, standing: Standing::Unknown, older: None }
}

/// A damaged record of which the header is known, from the footer if the segment is sealed.
fn record_part(header: &RecordHeader, len: u64, why: String, sealed: bool) -> Part {
    let RecordHeader { kind, key, index, generation, sequence, .. } = *header;
    let what = What::Record { kind, key, index, generation, sequence };
    // Of what has no more than a header, the footer says all.
    let bare = kind == Kind::Delete || kind.is_state();
    let repeated = matches!(kind, Kind::Padding | Kind::Footer) || (sealed && bare);
    let standing = if repeated { Standing::Repeated } else { Standing::Unknown };
    Part { standing, ..part(header.offset, len, what, why) }
}

/// Goes through the gaps of a segment without a sound footer.
struct Gaps<'a> {
    store: StoreId,
    window: Window<'a>,
}

impl Gaps<'_> {
    fn parts(&mut self, contents: &Contents, report: &mut SegmentReport) -> Vec<Part> {
        let (segment, block) = (report.segment, BLOCK as u64);
        let last = contents.records.last();
        let behind = last.map_or(block, |header| header.offset + header.extent());
        let tails: Vec<&Gap> =
            contents.gaps.iter().filter(|gap| last.is_none_or(|header| gap.offset > header.offset)).collect();
        let footer = std::iter::once(behind)
            .chain(tails.iter().flat_map(|gap| [gap.offset, gap.offset + gap.len]))
            .find_map(|at| self.header(segment, at).filter(|header| header.kind == Kind::Footer));
        let seal = report.bytes.checked_sub(block).and_then(|at| Seal::decode(self.window.get(at, block).ok()?).ok());
        let seal = seal.filter(|seal| (seal.store, seal.segment) == (self.store, segment));
        report.missing = seal.map_or(0, |seal| u64::from(seal.count).saturating_sub(contents.records.len() as u64));
        let was_sealed = seal.is_some() || footer.is_some();
        let footer_end = footer.map(|header| (header.offset + header.extent()).next_multiple_of(block));
        let mut parts = Vec::new();
        for gap in &contents.gaps {
            let from = parts.len();
            if footer_end.is_some_and(|end| gap.offset >= end) {
                let len = gap.len.min(report.bytes - gap.offset);
                let seal = part(gap.offset, len, What::Seal, gap.why.clone());
                parts.push(Part { standing: Standing::Repeated, ..seal });
                continue;
            }
            self.split(gap, report.bytes, &mut parts);
            if !was_sealed && tails.contains(&gap) {
                parts[from..].iter_mut().for_each(|part| part.standing = Standing::Torn);
            }
        }
        parts
    }

    /// The header that stands at a place and belongs there.
    fn header(&mut self, segment: u64, at: u64) -> Option<RecordHeader> {
        let header = RecordHeader::decode(self.window.get(at, RECORD_LEN as u64).ok()?).ok()?;
        header.expect_at(self.store, segment, at).is_ok().then_some(header)
    }

    /// Names the records of a gap whose headers are there.
    fn split(&mut self, gap: &Gap, file_len: u64, parts: &mut Vec<Part>) {
        // A gap is told in whole blocks.
        let end = (gap.offset + gap.len).min(file_len);
        let from = parts.len();
        let mut at = gap.offset;
        while at < end {
            let Some(header) = self.header(gap.segment, at) else {
                let next = (at + 1).next_multiple_of(BLOCK as u64).min(end);
                let unreadable = self.window.get(at, next - at).is_err();
                match parts[from..].last_mut().filter(|last| last.what == What::Unknown) {
                    Some(last) => {
                        last.len += next - at;
                        last.unreadable |= unreadable;
                    }
                    None => {
                        parts.push(Part { unreadable, ..part(at, next - at, What::Unknown, gap.why.clone()) });
                    }
                }
                at = next;
                continue;
            };
            let (why, unreadable) = match self.window.get(at, header.extent()) {
                Ok(bytes) => match Record::decode(bytes, self.store, gap.segment, at) {
                    Ok(_) => (gap.why.clone(), false),
                    Err(error) => (error.to_string(), false),
                },
                Err(error) => (not_given(&error), true),
            };
            let len = header.extent().min(end - at);
            parts.push(Part { unreadable, ..record_part(&header, len, why, false) });
            at += header.extent();
        }
        if gap.len == 0 {
            parts.push(part(gap.offset, 0, What::Unknown, gap.why.clone()));
        }
    }
}
