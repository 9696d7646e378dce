//! The bytes of a segment: its header, its records, and the footer that seals it. FORMAT.md, "Segments", documents them.
//!
//! Everything here is pure. Every header carries a checksum, and says where it belongs (store, segment, offset), so that
//! what was written to a wrong place, or lies there from another time, is seen for what it is. No bytes make a decoder
//! panic, and no length is believed before it was compared with its limit.

use potluck_proto::blocks::{BlockTree, VALUE_LEN, block_count};
use potluck_proto::encoding::{DecodeError, Decoder, Encoder};
use potluck_proto::id::{Digest, StripeId};
use potluck_proto::stripe::{DATA_LIMIT, SHARDS_LIMIT, Scheme, SignedHeader};

/// A block of the disk, in bytes: batches begin and end at blocks.
pub const BLOCK: usize = 4096;

/// Payloads of this length or more, in bytes, begin at a block, so that they can be written as they lie in memory.
/// Shorter ones are copied once more, which costs less than what would be lost at both ends of them.
pub const ALIGNED_FROM: usize = 128 << 10;

/// Bytes of a record's header.
pub const RECORD_LEN: usize = 196;

/// Longest payload, in bytes: a shard of a stripe with k = 1.
pub const PAYLOAD_LIMIT: usize = DATA_LIMIT;

/// Longest stripe header in a record, in bytes.
pub const STRIPE_HEADER_LIMIT: usize = 64 << 10;

/// Most records of a segment, so that the footer, which repeats their headers, is no longer than a payload may be.
pub const RECORDS_LIMIT: usize = 1 << 15;

/// Newest version of a segment.
const VERSION: u16 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"potsegmt";
const RECORD_MAGIC: [u8; 8] = *b"potrecrd";
const SEAL_MAGIC: [u8; 8] = *b"potseald";

/// Bytes of a checksum: BLAKE3.
const CHECKSUM_LEN: usize = 32;

/// Sixteen random bytes that name a store. They are told to nobody: so nobody can send a shard in which a record of this
/// store is hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub [u8; 16]);

/// Why bytes are not what should stand at their place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// They do not begin as such a thing does.
    #[error("not the beginning of a {0}")]
    Magic(&'static str),
    /// A newer program wrote them.
    #[error("format version {0} is not known: a newer Potluck is needed")]
    Version(u16),
    /// They end too early.
    #[error("cut off")]
    Truncated,
    /// They do not match a hash that stands with them.
    #[error("the {0} does not match its hash")]
    Checksum(&'static str),
    /// A field holds what the format forbids.
    #[error("{0}")]
    Field(&'static str),
    /// They are whole, but belong to another store, segment or offset.
    #[error("written for another place")]
    Elsewhere,
}

impl From<DecodeError> for FormatError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Truncated { .. } => Self::Truncated,
            DecodeError::Version { found, .. } => Self::Version(found),
            _ => Self::Field("a field outside its range"),
        }
    }
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A shard, with its stripe's header and its chaining values.
    Shard = 1,
    /// A vault's heads.
    Head = 2,
    /// A member's record.
    Member = 3,
    /// A vault's sweep.
    Sweep = 4,
    /// A shard, up to this generation, is no more.
    Delete = 5,
    /// A shard went to the trash.
    Trash = 6,
    /// A shard left the trash.
    Restore = 7,
    /// k siblings of a shard were proved to exist.
    Complete = 8,
    /// Nothing: it fills a batch up to a block.
    Padding = 9,
    /// The headers of all records before it, when the segment is sealed.
    Footer = 10,
}

impl Kind {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        use Kind::{Complete, Delete, Footer, Head, Member, Padding, Restore, Shard, Sweep, Trash};
        [Shard, Head, Member, Sweep, Delete, Trash, Restore, Complete, Padding, Footer]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }

    /// Whether such a record says what became of a shard.
    #[must_use]
    pub fn is_state(self) -> bool {
        matches!(self, Self::Trash | Self::Restore | Self::Complete)
    }

    /// Whether such a record is known by its key alone, the newest one counting.
    #[must_use]
    pub fn is_fact(self) -> bool {
        matches!(self, Self::Head | Self::Member | Self::Sweep)
    }
}

/// The first block of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The store that it belongs to.
    pub store: StoreId,
    /// Its number; a newer segment has a greater one.
    pub segment: u64,
    /// When it was begun, in milliseconds since 1970: for people, never for decisions.
    pub created_ms: u64,
}

impl SegmentHeader {
    /// The block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder.raw(&SEGMENT_MAGIC).u16(VERSION).raw(&self.store.0).u64(self.segment).u64(self.created_ms);
        checked_block(encoder)
    }

    /// Reads the block.
    pub fn decode(block: &[u8]) -> Result<Self, FormatError> {
        let mut decoder = open_block(block, SEGMENT_MAGIC, "segment", 8 + 2 + 16 + 8 + 8)?;
        Ok(Self {
            store: StoreId(decoder.array("store")?),
            segment: decoder.u64("segment")?,
            created_ms: decoder.u64("created")?,
        })
    }
}

/// The last block of a sealed segment. It says where the footer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// The store that the segment belongs to.
    pub store: StoreId,
    /// The segment.
    pub segment: u64,
    /// Where the footer's record begins, in bytes.
    pub footer: u64,
    /// Records before the footer.
    pub count: u32,
    /// BLAKE3 of their headers, one after the other: the hash of the footer's payload.
    pub headers: Digest,
    /// Length of the segment, this block included, in bytes.
    pub len: u64,
}

impl Seal {
    /// The block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder
            .raw(&SEAL_MAGIC)
            .u16(VERSION)
            .raw(&self.store.0)
            .u64(self.segment)
            .u64(self.footer)
            .u32(self.count)
            .raw(self.headers.as_bytes())
            .u64(self.len);
        checked_block(encoder)
    }

    /// Reads the block.
    pub fn decode(block: &[u8]) -> Result<Self, FormatError> {
        let mut decoder = open_block(block, SEAL_MAGIC, "seal", 8 + 2 + 16 + 8 + 8 + 4 + 32 + 8)?;
        let seal = Self {
            store: StoreId(decoder.array("store")?),
            segment: decoder.u64("segment")?,
            footer: decoder.u64("footer")?,
            count: decoder.u32("count")?,
            headers: decoder.id("headers")?,
            len: decoder.u64("length")?,
        };
        let block = BLOCK as u64;
        let placed = seal.footer.is_multiple_of(block) && seal.footer >= block && seal.footer < seal.len;
        if !placed || !seal.len.is_multiple_of(block) || seal.count as usize > RECORDS_LIMIT {
            return Err(FormatError::Field("a footer outside its segment"));
        }
        Ok(seal)
    }
}

fn checked_block(mut encoder: Encoder) -> Vec<u8> {
    let checksum = blake3::hash(encoder.as_slice());
    encoder.raw(checksum.as_bytes());
    let mut block = encoder.into_bytes();
    block.resize(BLOCK, 0);
    block
}

/// Checks a block of which `len` bytes, magic and version included, are followed by a checksum and then by zeros.
fn open_block<'a>(block: &'a [u8], magic: [u8; 8], what: &'static str, len: usize) -> Result<Decoder<'a>, FormatError> {
    if block.len() < BLOCK {
        return Err(FormatError::Truncated);
    }
    let mut decoder = Decoder::new(&block[..len]);
    if decoder.array::<8>("magic")? != magic {
        return Err(FormatError::Magic(what));
    }
    let (checked, rest) = block[..BLOCK].split_at(len);
    let (checksum, zeros) = rest.split_at(CHECKSUM_LEN);
    // Before the version: a flipped bit in it is damage, not a newer program.
    if blake3::hash(checked).as_bytes() != checksum || zeros.iter().any(|byte| *byte != 0) {
        return Err(FormatError::Checksum(what));
    }
    decoder.version(what, VERSION)?;
    Ok(decoder)
}

/// The fixed part of a record. A footer repeats these bytes as they are, so they say all that the index needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the record says.
    pub kind: Kind,
    /// The stripe, vault or member that it is about; zeros for padding and footers.
    pub key: [u8; 32],
    /// Which of the stripe's shards; 0 where the record is not about one.
    pub index: u8,
    /// How the stripe is coded, for shards: data and parity shards. Else zeros.
    pub scheme: (u8, u8),
    /// k siblings were once proved to exist.
    pub complete: bool,
    /// The shard proved damaged: it was not its keeper who deleted it. For `Delete` only.
    pub damaged: bool,
    /// The running time, in milliseconds, before which the shard in the trash is not deleted; `None`: it is not there.
    pub until_ms: Option<u64>,
    /// The newest sweep that a put or a revival carried.
    pub touched: u64,
    /// The sequence of the put that brought this shard: copies and states carry it on, a later put has a greater one. Of a
    /// deletion, its own: it ends all before it, also what was perhaps written. 0: the writer fills in the sequence.
    pub generation: u64,
    /// Number of the record: the newer one has the greater. The upper half is the segment's number.
    pub sequence: u64,
    /// The store.
    pub store: StoreId,
    /// The segment.
    pub segment: u64,
    /// Where the record begins in the segment, in bytes.
    pub offset: u64,
    /// When it was written, in milliseconds since 1970: for people, never for decisions.
    pub time_ms: u64,
    /// Bytes of stripe header behind this one.
    pub header_len: u32,
    /// Bytes of chaining values behind that.
    pub tree_len: u32,
    /// Bytes of payload.
    pub payload_len: u32,
    /// BLAKE3 of the payload; of a shard, the hash that its stripe's header has of it.
    pub payload: Digest,
}

/// BLAKE3 of nothing.
const NOTHING: Digest = Digest([
    0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6, 0xa0, 0x40, 0x4d, 0xea, 0x36, 0xdc, 0xc9, 0x49, 0x9b, 0xcb, 0x25,
    0xc9, 0xad, 0xc1, 0x12, 0xb7, 0xcc, 0x9a, 0x93, 0xca, 0xe4, 0x1f, 0x32, 0x62,
]);

const COMPLETE: u8 = 1;
const TRASHED: u8 = 2;
const DAMAGED: u8 = 4;

impl RecordHeader {
    /// A header of a record without stripe header, chaining values and payload. Its place is filled in by the writer.
    #[must_use]
    pub fn bare(kind: Kind, key: [u8; 32], index: u8) -> Self {
        Self {
            kind,
            key,
            index,
            scheme: (0, 0),
            complete: false,
            damaged: false,
            until_ms: None,
            touched: 0,
            generation: 0,
            sequence: 0,
            store: StoreId([0; 16]),
            segment: 0,
            offset: 0,
            time_ms: 0,
            header_len: 0,
            tree_len: 0,
            payload_len: 0,
            payload: NOTHING,
        }
    }

    /// Whether the payload begins at a block, and with it the record.
    #[must_use]
    pub fn is_aligned(&self) -> bool {
        self.payload_len as usize >= ALIGNED_FROM
    }

    /// Where the payload begins, in bytes from the record's beginning.
    #[must_use]
    pub fn payload_at(&self) -> u64 {
        let front = RECORD_LEN as u64 + u64::from(self.header_len) + u64::from(self.tree_len);
        if self.is_aligned() { front.next_multiple_of(BLOCK as u64) } else { front }
    }

    /// Bytes of the whole record. Where the payload begins at a block, the record also ends at one.
    #[must_use]
    pub fn extent(&self) -> u64 {
        let end = self.payload_at() + u64::from(self.payload_len);
        if self.is_aligned() { end.next_multiple_of(BLOCK as u64) } else { end }
    }

    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let mut flags = 0;
        for (set, flag) in [(self.complete, COMPLETE), (self.until_ms.is_some(), TRASHED), (self.damaged, DAMAGED)] {
            flags |= if set { flag } else { 0 };
        }
        let mut bytes = [0; RECORD_LEN];
        let (checked, checksum) = bytes.split_at_mut(RECORD_LEN - CHECKSUM_LEN);
        let mut at = 0;
        let mut put = |field: &[u8]| {
            checked[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&RECORD_MAGIC);
        put(&VERSION.to_le_bytes());
        put(&[self.kind as u8, self.index, flags, self.scheme.0, self.scheme.1, 0]);
        for length in [self.header_len, self.tree_len, self.payload_len] {
            put(&length.to_le_bytes());
        }
        let until_ms = self.until_ms.unwrap_or(0);
        for number in [self.touched, until_ms, self.generation, self.sequence, self.segment, self.offset, self.time_ms]
        {
            put(&number.to_le_bytes());
        }
        put(&self.key);
        put(&self.store.0);
        put(self.payload.as_bytes());
        checksum.copy_from_slice(blake3::hash(checked).as_bytes());
        bytes
    }

    /// Reads and checks the bytes on their own; more may follow them.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let Some(bytes) = bytes.get(..RECORD_LEN) else { return Err(FormatError::Truncated) };
        let (checked, checksum) = bytes.split_at(RECORD_LEN - CHECKSUM_LEN);
        let mut decoder = Decoder::new(checked);
        if decoder.array::<8>("magic")? != RECORD_MAGIC {
            return Err(FormatError::Magic("record"));
        }
        // Before the version: a flipped bit in it is damage, not a newer program.
        if blake3::hash(checked).as_bytes() != checksum {
            return Err(FormatError::Checksum("record header"));
        }
        decoder.version("record", VERSION)?;
        let kind = Kind::from_byte(decoder.u8("kind")?).ok_or(FormatError::Field("an unknown kind of record"))?;
        let index = decoder.u8("index")?;
        let flags = decoder.u8("flags")?;
        let scheme = (decoder.u8("k")?, decoder.u8("m")?);
        if flags & !(COMPLETE | TRASHED | DAMAGED) != 0 || decoder.u8("zero")? != 0 {
            return Err(FormatError::Field("unknown flags"));
        }
        let (header_len, tree_len, payload_len) =
            (decoder.u32("header length")?, decoder.u32("tree length")?, decoder.u32("payload length")?);
        let touched = decoder.u64("touched")?;
        let until_ms = decoder.u64("until")?;
        let header = Self {
            kind,
            index,
            scheme,
            complete: flags & COMPLETE != 0,
            damaged: flags & DAMAGED != 0,
            until_ms: (flags & TRASHED != 0).then_some(until_ms),
            touched,
            generation: decoder.u64("generation")?,
            sequence: decoder.u64("sequence")?,
            segment: decoder.u64("segment")?,
            offset: decoder.u64("offset")?,
            time_ms: decoder.u64("time")?,
            key: decoder.array("key")?,
            store: StoreId(decoder.array("store")?),
            header_len,
            tree_len,
            payload_len,
            payload: decoder.id("payload hash")?,
        };
        decoder.finish()?;
        if until_ms != 0 && header.until_ms.is_none() {
            return Err(FormatError::Field("a deadline of what is not in the trash"));
        }
        header.check()?;
        Ok(header)
    }

    /// What the format asks of the fields together.
    fn check(&self) -> Result<(), FormatError> {
        let fits = match self.kind {
            Kind::Shard => {
                let needed = block_count(self.payload_len.into()) * VALUE_LEN as u64;
                let coded = Scheme::new(self.scheme.0.into(), self.scheme.1.into());
                self.header_len as usize <= STRIPE_HEADER_LIMIT
                    && u64::from(self.tree_len) == needed
                    && coded.is_ok_and(|scheme| usize::from(self.index) < scheme.n())
            }
            Kind::Delete | Kind::Trash | Kind::Restore | Kind::Complete => {
                self.header_len == 0 && self.tree_len == 0 && self.payload_len == 0
            }
            Kind::Head | Kind::Member | Kind::Sweep | Kind::Padding | Kind::Footer => {
                self.header_len == 0 && self.tree_len == 0
            }
        };
        if !fits || self.payload_len as usize > PAYLOAD_LIMIT {
            return Err(FormatError::Field("a length outside its range"));
        }
        let places = self.offset.is_multiple_of(BLOCK as u64) || !self.is_aligned();
        if !places || self.offset < BLOCK as u64 || self.sequence >> 32 != self.segment {
            return Err(FormatError::Field("a place where no record can be"));
        }
        if self.kind != Kind::Shard && self.scheme != (0, 0) {
            return Err(FormatError::Field("a scheme of what is not a shard"));
        }
        if usize::from(self.index) >= SHARDS_LIMIT || self.generation > self.sequence {
            return Err(FormatError::Field("an index or a generation outside its range"));
        }
        Ok(())
    }

    /// Whether the record was written for this very place.
    pub fn expect_at(&self, store: StoreId, segment: u64, offset: u64) -> Result<(), FormatError> {
        let here = self.store == store && self.segment == segment && self.offset == offset;
        if here { Ok(()) } else { Err(FormatError::Elsewhere) }
    }
}

/// A record read whole, and checked from end to end.
#[derive(Debug)]
pub struct Record<'a> {
    /// Its fixed part.
    pub header: RecordHeader,
    /// Its stripe's header, of a shard.
    pub stripe: Option<SignedHeader>,
    /// Chaining values, of a shard.
    pub tree: Option<BlockTree>,
    /// Its payload.
    pub payload: &'a [u8],
}

/// Bytes of a record before its payload, the place in the header still to be filled in.
#[must_use]
pub fn encode_front(header: &RecordHeader, stripe: &[u8], tree: &[u8]) -> Vec<u8> {
    let mut front = Vec::with_capacity(header.payload_at() as usize);
    front.extend_from_slice(&header.encode());
    front.extend_from_slice(stripe);
    front.extend_from_slice(tree);
    front.resize(header.payload_at() as usize, 0);
    front
}

/// Checks what stands between a record's header and its payload. `front` begins with the record. Returns the stripe's
/// header and the chaining values of a shard, which fit each other, the key and the index.
pub fn decode_front(header: &RecordHeader, front: &[u8]) -> Result<Option<(SignedHeader, BlockTree)>, FormatError> {
    let header_end = RECORD_LEN + header.header_len as usize;
    let tree_end = header_end + header.tree_len as usize;
    let (Some(stripe), Some(tree), Some(zeros)) = (
        front.get(RECORD_LEN..header_end),
        front.get(header_end..tree_end),
        front.get(tree_end..header.payload_at() as usize),
    ) else {
        return Err(FormatError::Truncated);
    };
    if zeros.iter().any(|byte| *byte != 0) {
        return Err(FormatError::Field("no zeros before a payload"));
    }
    if header.kind != Kind::Shard {
        return Ok(None);
    }
    let stripe = SignedHeader::decode_known(bytes::Bytes::copy_from_slice(stripe), &StripeId(header.key))
        .map_err(|_| FormatError::Checksum("stripe header"))?;
    let coded = (usize::from(header.scheme.0), usize::from(header.scheme.1));
    let hash = stripe.shards.get(usize::from(header.index));
    if (stripe.scheme.k(), stripe.scheme.m()) != coded
        || hash != Some(&header.payload)
        || stripe.shard_len != header.payload_len
    {
        return Err(FormatError::Field("a record that does not fit its stripe's header"));
    }
    let tree = BlockTree::from_bytes(tree, header.payload_len.into())
        .ok()
        .filter(|tree| tree.verify(&header.payload).is_ok())
        .ok_or(FormatError::Checksum("list of chaining values"))?;
    Ok(Some((stripe, tree)))
}

impl<'a> Record<'a> {
    /// Reads the record that stands at `offset` of a segment, and checks all of it. More bytes may follow it.
    pub fn decode(bytes: &'a [u8], store: StoreId, segment: u64, offset: u64) -> Result<Self, FormatError> {
        let header = RecordHeader::decode(bytes)?;
        header.expect_at(store, segment, offset)?;
        let bytes = bytes.get(..header.extent() as usize).ok_or(FormatError::Truncated)?;
        let (stripe, tree) = decode_front(&header, bytes)?.unzip();
        let (payload, zeros) = bytes[header.payload_at() as usize..].split_at(header.payload_len as usize);
        if zeros.iter().any(|byte| *byte != 0) {
            return Err(FormatError::Field("no zeros behind a payload"));
        }
        if Digest::of(payload) != header.payload {
            return Err(FormatError::Checksum("payload"));
        }
        Ok(Self { header, stripe, tree, payload })
    }
}

/// The payload of a footer: the headers' bytes one after the other.
#[must_use]
pub fn encode_footer(headers: &[RecordHeader]) -> Vec<u8> {
    headers.iter().flat_map(RecordHeader::encode).collect()
}

/// Reads a footer's payload. The records must be of one segment, follow each other without a gap from the first block
/// on, and end at the block where the footer begins.
pub fn decode_footer(payload: &[u8], seal: &Seal) -> Result<Vec<RecordHeader>, FormatError> {
    let (entries, rest) = payload.as_chunks::<RECORD_LEN>();
    if !rest.is_empty() || entries.len() != seal.count as usize || Digest::of(payload) != seal.headers {
        return Err(FormatError::Checksum("footer"));
    }
    let mut headers = Vec::with_capacity(entries.len());
    let (mut offset, mut sequence) = (BLOCK as u64, None);
    for entry in entries {
        let header = RecordHeader::decode(entry)?;
        header.expect_at(seal.store, seal.segment, offset)?;
        if sequence.is_some_and(|last| header.sequence <= last) {
            return Err(FormatError::Field("records out of order"));
        }
        (offset, sequence) = (offset + header.extent(), Some(header.sequence));
        headers.push(header);
    }
    if offset == seal.footer { Ok(headers) } else { Err(FormatError::Field("records that do not reach the footer")) }
}

#[cfg(test)]
mod tests;
