//! Records that are written with one sync.

use potluck_proto::buffers::{Buffer, Pool};
use potluck_proto::id::Digest;

use crate::store::segments::disk::Disk;
use crate::store::segments::format::{BLOCK, Kind, RECORD_LEN, RecordHeader};

/// How much is written with one sync.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchLimits {
    /// Bytes of all records; one record may be longer.
    pub(super) bytes: usize,
    /// Of them, bytes of short records, which are gathered.
    pub(super) gathered: usize,
    /// Records.
    pub(super) records: usize,
}

/// A record to be written. Sequence, place, time and, where it is 0, generation of its header are the writer's to fill in.
pub struct Job<'a> {
    header: RecordHeader,
    body: Body<'a>,
    /// Whether the table is told; else whoever waits tells it.
    tell: bool,
}

/// What stands behind a record's header.
enum Body<'a> {
    /// It is copied to its place among others: so only once.
    Short { stripe: &'a [u8], tree: &'a [u8], payload: &'a [u8] },
    /// The whole record, in memory that the disk can write as it lies.
    Long(Buffer),
}

impl<'a> Job<'a> {
    /// A record of these parts.
    #[must_use]
    pub fn new(disk: &dyn Disk, header: RecordHeader, stripe: &'a [u8], tree: &'a [u8], payload: &'a [u8]) -> Self {
        if !header.is_aligned() {
            return Self { header, body: Body::Short { stripe, tree, payload }, tell: true };
        }
        let mut bytes = disk.pool().take(header.extent() as usize);
        let front = copy(&mut bytes[RECORD_LEN..], &[stripe, tree]) + RECORD_LEN;
        let payload_at = header.payload_at() as usize;
        let end = payload_at + payload.len();
        bytes[front..payload_at].fill(0);
        bytes[payload_at..end].copy_from_slice(payload);
        bytes[end..].fill(0);
        Self { header, body: Body::Long(bytes), tell: true }
    }

    /// The table is told by whoever waits, once he has seen that the record is sound.
    #[must_use]
    pub fn untold(self) -> Self {
        Self { tell: false, ..self }
    }

    /// Bytes of the record.
    pub(super) fn len(&self) -> usize {
        self.header.extent() as usize
    }
}

/// Copies parts one after the other to the beginning of `to`. Returns their length.
fn copy(to: &mut [u8], parts: &[&[u8]]) -> usize {
    let mut at = 0;
    for part in parts {
        to[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    at
}

/// Which record of a batch one is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    Short(usize),
    Long(usize),
}

/// The headers of a batch as they were written.
pub(super) struct Written {
    /// Of short records, of the padding if there is some, of long records.
    pub(super) headers: Vec<RecordHeader>,
    longs_from: usize,
}

impl Written {
    /// The header of the record at a place.
    pub(super) fn header(&self, place: Place) -> RecordHeader {
        match place {
            Place::Short(place) => self.headers[place],
            Place::Long(place) => self.headers[self.longs_from + place],
        }
    }
}

/// Records that are written with one sync. Short ones stand together, each longer one begins at a block: records of one
/// batch have no order among them.
#[derive(Default)]
pub(super) struct Batch {
    /// Short records, one behind the other, without their headers.
    gathered: Option<Buffer>,
    filled: usize,
    shorts: Vec<(RecordHeader, bool)>,
    longs: Vec<(RecordHeader, bool, Buffer)>,
    long_bytes: usize,
}

impl Batch {
    /// Records, padding counted.
    pub(super) fn count(&self) -> usize {
        self.shorts.len() + self.longs.len() + 1
    }

    pub(super) fn short_bytes(&self) -> u64 {
        self.filled as u64
    }

    pub(super) fn long_bytes(&self) -> u64 {
        self.long_bytes as u64
    }

    /// Bytes of all its records, without padding.
    pub(super) fn len(&self) -> usize {
        self.filled + self.long_bytes
    }

    /// Whether one more record may be written with these.
    pub(super) fn fits(&self, job: &Job<'_>, limits: &BatchLimits) -> bool {
        let short = matches!(job.body, Body::Short { .. });
        self.count() < limits.records
            && self.len() + job.len() <= limits.bytes
            && (!short || self.filled + job.len() <= limits.gathered)
    }

    pub(super) fn add(&mut self, job: Job<'_>, pool: &Pool, limits: &BatchLimits) -> Place {
        match job.body {
            Body::Short { stripe, tree, payload } => {
                // With room for padding.
                let gathered = self.gathered.get_or_insert_with(|| pool.take(limits.gathered + 2 * BLOCK));
                let to = &mut gathered[self.filled + RECORD_LEN..];
                self.filled += RECORD_LEN + copy(to, &[stripe, tree, payload]);
                self.shorts.push((job.header, job.tell));
                Place::Short(self.shorts.len() - 1)
            }
            Body::Long(bytes) => {
                self.long_bytes += bytes.len();
                self.longs.push((job.header, job.tell, bytes));
                Place::Long(self.longs.len() - 1)
            }
        }
    }

    /// Fills in all headers, in the order in which the records will stand: `fill` completes one, and writes it.
    pub(super) fn place(&mut self, padding: u64, mut fill: impl FnMut(&mut RecordHeader, &mut [u8])) -> Written {
        let mut headers = Vec::with_capacity(self.count());
        let mut at = 0;
        if let Some(gathered) = &mut self.gathered {
            for (header, _) in &self.shorts {
                let mut header = *header;
                fill(&mut header, &mut gathered[at..at + RECORD_LEN]);
                at += header.extent() as usize;
                headers.push(header);
            }
            if padding > 0 {
                let zeros = &mut gathered[at + RECORD_LEN..at + padding as usize];
                zeros.fill(0);
                let mut header = RecordHeader {
                    payload_len: zeros.len() as u32,
                    payload: Digest::of(zeros),
                    ..RecordHeader::bare(Kind::Padding, [0; 32], 0)
                };
                fill(&mut header, &mut gathered[at..at + RECORD_LEN]);
                headers.push(header);
            }
        }
        let longs_from = headers.len();
        for (header, _, bytes) in &mut self.longs {
            let mut header = *header;
            fill(&mut header, &mut bytes[..RECORD_LEN]);
            headers.push(header);
        }
        Written { headers, longs_from }
    }

    /// All bytes, as they are to be written.
    pub(super) fn parts(&self, padding: u64) -> Vec<&[u8]> {
        let gathered = self.gathered.iter().map(|gathered| &gathered[..self.filled + padding as usize]);
        gathered.chain(self.longs.iter().map(|(_, _, bytes)| &**bytes)).collect()
    }

    /// The headers that the table is told of: padding is of nobody's, and among them.
    pub(super) fn told_here<'a>(&'a self, written: &'a Written) -> impl Iterator<Item = &'a RecordHeader> {
        let (shorts, longs) = written.headers.split_at(written.longs_from);
        let told_shorts = shorts
            .iter()
            .enumerate()
            .filter(|(place, _)| self.shorts.get(*place).is_none_or(|(_, tell)| *tell))
            .map(|(_, header)| header);
        let told_longs = longs.iter().zip(&self.longs).filter(|(_, (_, tell, _))| *tell).map(|(header, _)| header);
        told_shorts.chain(told_longs)
    }
}
