//! A node's log: segments, records, footers and seals, read without panic; what is read is written back the same, and
//! nothing that is read reaches out of its file.
//!
//! Checksums keep random bytes out, so most inputs are dressed: records are made from the input's fields, laid out as a
//! writer does, sealed or not, then bytes of them are changed and checksums made to fit again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use potluck_node::store::segments::disk::faults::{Faults, FaultyDisk};
use potluck_node::store::segments::disk::{Disk, DiskFile};
use potluck_node::store::segments::format::{
    BLOCK, Kind, RECORD_LEN, Record, RecordHeader, STRIPE_HEADER_LIMIT, Seal, SegmentHeader, StoreId, decode_footer,
    decode_front, encode_footer,
};
use potluck_node::store::segments::recovery::{Unusable, read_segment};
use potluck_node::store::segments::{check, log::segment_name};
use potluck_proto::id::Digest;

const STORE: StoreId = StoreId([7; 16]);
const SEGMENT: u64 = 3;

/// Longest file that is made, in bytes.
const FILE_LIMIT: usize = 1 << 20;

/// Bytes of a checksum.
const CHECKSUM_LEN: usize = 32;

/// Takes fields from the input; zeros when it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_at(N.min(self.0.len()));
        self.0 = rest;
        let mut bytes = [0; N];
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    fn u8(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    match input.u8() % 4 {
        0 => decode(input.0, input.0),
        1 => dressed(&mut input),
        2 => file(input.0.to_vec()),
        _ => {
            let bytes = segment(&mut input);
            file(bytes);
        }
    }
});

/// Everything that decodes bytes on its own.
fn decode(data: &[u8], block: &[u8]) {
    if let Ok(header) = SegmentHeader::decode(block) {
        assert_eq!(header.encode(), block[..BLOCK]);
    }
    if let Ok(seal) = Seal::decode(block) {
        assert_eq!(seal.encode(), block[..BLOCK]);
        assert!(seal.footer < seal.len);
        let _ = decode_footer(data, &seal);
    }
    if let Ok(header) = RecordHeader::decode(data) {
        assert_eq!(header.encode(), data[..RECORD_LEN]);
        let end = header.payload_at() + u64::from(header.payload_len);
        assert!(header.payload_at() >= RECORD_LEN as u64 && header.extent() >= end);
        // A front, a payload and the filling up of both: no length that a header says asks for more memory.
        assert!(header.header_len as usize <= STRIPE_HEADER_LIMIT && header.extent() < 17 << 20);
        let _ = decode_front(&header, data);
        if let Ok(record) = Record::decode(data, header.store, header.segment, header.offset) {
            assert_eq!(record.header, header);
            assert_eq!(record.payload.len(), header.payload_len as usize);
            assert_eq!(Digest::of(record.payload), header.payload);
        }
    }
    // As a footer that its seal is about.
    let seal = Seal {
        store: STORE,
        segment: SEGMENT,
        footer: BLOCK as u64 * 2,
        count: (data.len() / RECORD_LEN) as u32,
        headers: Digest::of(data),
        len: BLOCK as u64 * 4,
    };
    if let Ok(headers) = decode_footer(data, &seal) {
        assert_eq!(encode_footer(&headers), data);
    }
}

/// Any bytes behind a magic and a version, with a checksum that fits.
fn dressed(input: &mut Input<'_>) {
    let (magic, len) = match input.u8() % 3 {
        0 => (b"potsegmt", 42),
        1 => (b"potseald", 86),
        _ => (b"potrecrd", RECORD_LEN - CHECKSUM_LEN),
    };
    let mut bytes = input.0.to_vec();
    bytes.resize(bytes.len().max(BLOCK), 0);
    bytes[..8].copy_from_slice(magic);
    bytes[8..10].copy_from_slice(&[1, 0]);
    fit(&mut bytes, 0, len);
    let mut block = bytes[..BLOCK].to_vec();
    if len < RECORD_LEN - CHECKSUM_LEN {
        block[len + CHECKSUM_LEN..].fill(0);
    }
    decode(&bytes, &block);
}

fn fit(bytes: &mut [u8], at: usize, len: usize) {
    let checksum = blake3::hash(&bytes[at..at + len]);
    bytes[at + len..at + len + CHECKSUM_LEN].copy_from_slice(checksum.as_bytes());
}

fn kind(byte: u8) -> Kind {
    let kinds = [
        Kind::Head,
        Kind::Member,
        Kind::Sweep,
        Kind::Delete,
        Kind::Trash,
        Kind::Restore,
        Kind::Complete,
        Kind::Padding,
        Kind::Shard,
        Kind::Footer,
    ];
    kinds[usize::from(byte) % kinds.len()]
}

/// A segment as a writer makes it, of records that the input describes, then damaged as the input says.
fn segment(input: &mut Input<'_>) -> Vec<u8> {
    let header = SegmentHeader { store: STORE, segment: SEGMENT, created_ms: input.u64() };
    let mut bytes = header.encode();
    let mut headers: Vec<RecordHeader> = Vec::new();
    let shape = input.u8();
    for _ in 0..shape % 24 {
        let kind = kind(input.u8());
        let has_payload = !matches!(kind, Kind::Delete | Kind::Trash | Kind::Restore | Kind::Complete);
        let payload = vec![input.u8(); if has_payload { usize::from(input.u16()) * 2 } else { 0 }];
        let is_shard = kind == Kind::Shard;
        let mut header = RecordHeader {
            scheme: if is_shard { (2, 1) } else { (0, 0) },
            sequence: (SEGMENT << 32) + headers.len() as u64 + u64::from(input.u8() / 250),
            store: STORE,
            segment: SEGMENT,
            header_len: if is_shard { u32::from(input.u8()) } else { 0 },
            tree_len: if is_shard { payload.len().div_ceil(64 << 10).max(1) as u32 * 32 } else { 0 },
            payload_len: payload.len() as u32,
            payload: Digest::of(&payload),
            until_ms: (input.u8() % 2 == 1).then_some(5),
            ..RecordHeader::bare(kind, [input.u8(); 32], input.u8() % 3)
        };
        if header.is_aligned() {
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        header.offset = bytes.len() as u64;
        if bytes.len() + header.extent() as usize > FILE_LIMIT {
            break;
        }
        let start = bytes.len();
        bytes.extend_from_slice(&header.encode());
        bytes.resize(start + header.payload_at() as usize, 0);
        bytes.extend_from_slice(&payload);
        bytes.resize(start + header.extent() as usize, 0);
        headers.push(header);
    }
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    if shape & 0x20 != 0 {
        seal(&mut bytes, &headers);
    }
    for _ in 0..input.u8() % 6 {
        let (at, how, value) = (input.u64() as usize % bytes.len(), input.u8(), input.u8());
        match how % 4 {
            0 => bytes[at] ^= value,
            1 => {
                let block = at / BLOCK * BLOCK;
                bytes[block..block + BLOCK].fill(0);
            }
            2 => bytes.truncate((at / BLOCK).max(1) * BLOCK),
            // A field of a header, with a checksum that fits.
            _ if !headers.is_empty() => {
                let start = headers[at % headers.len()].offset as usize;
                if start + RECORD_LEN <= bytes.len() {
                    bytes[start + 8 + usize::from(how / 4)] ^= value;
                    fit(&mut bytes, start, RECORD_LEN - CHECKSUM_LEN);
                }
            }
            _ => {}
        }
    }
    bytes
}

fn seal(bytes: &mut Vec<u8>, headers: &[RecordHeader]) {
    let payload = encode_footer(headers);
    let at = bytes.len();
    let header = RecordHeader {
        sequence: (SEGMENT << 32) + 1000,
        store: STORE,
        segment: SEGMENT,
        offset: at as u64,
        payload_len: payload.len() as u32,
        payload: Digest::of(&payload),
        ..RecordHeader::bare(Kind::Footer, [0; 32], 0)
    };
    bytes.extend_from_slice(&header.encode());
    bytes.resize(at + header.payload_at() as usize, 0);
    bytes.extend_from_slice(&payload);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    let seal = Seal {
        store: STORE,
        segment: SEGMENT,
        footer: at as u64,
        count: headers.len() as u32,
        headers: header.payload,
        len: (bytes.len() + BLOCK) as u64,
    };
    bytes.extend_from_slice(&seal.encode());
}

/// Reads bytes as a segment's file, as a start and as a check do.
fn file(mut bytes: Vec<u8>) {
    bytes.truncate(FILE_LIMIT);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    let len = bytes.len() as u64;
    let disk = FaultyDisk::new(1, 8 << 20, Faults::default());
    let (Ok(file), Ok(name)) = (disk.create(&segment_name(SEGMENT), len), disk.create("store", BLOCK as u64)) else {
        panic!("a disk without faults");
    };
    let written = if bytes.is_empty() { Ok(()) } else { file.write_at(0, &[&bytes]) };
    let named = name.write_at(0, &[&SegmentHeader { store: STORE, segment: 0, created_ms: 0 }.encode()]);
    assert!(written.is_ok() && named.is_ok());
    let counted = read(&*file, len);
    let looked = check::read(&disk, check::Depth::Whole, &mut |_, _| {});
    let Ok(report) = looked else { panic!("a store with a name") };
    let segment = &report.segments[0];
    assert_eq!(segment.records, counted);
    let mut end = 0;
    for part in &segment.parts {
        assert!(part.offset >= end && part.offset + part.len <= len.max(BLOCK as u64), "{part:?}");
        end = part.offset + part.len;
    }
    if segment.parts.is_empty() && segment.state == check::State::Sealed {
        assert!(report.is_sound());
    }
}

/// How many records a start finds.
fn read(file: &dyn DiskFile, len: u64) -> u64 {
    let contents = match read_segment(file, STORE, SEGMENT) {
        Ok(contents) => contents,
        Err(Unusable::Disk(error)) => panic!("a disk without faults: {error}"),
        Err(_) => return 0,
    };
    let (mut end, mut sequence) = (BLOCK as u64, None);
    for header in &contents.records {
        assert!(header.expect_at(STORE, SEGMENT, header.offset).is_ok());
        assert!(header.offset >= end && sequence.is_none_or(|last| header.sequence > last));
        (end, sequence) = (header.offset + header.extent(), Some(header.sequence));
        assert!(end <= len);
        if !contents.sealed {
            let Ok(bytes) = file.read_at(header.offset..end) else { panic!("a disk without faults") };
            assert!(Record::decode(&bytes, STORE, SEGMENT, header.offset).is_ok());
        }
    }
    assert!(contents.end <= len && !contents.unreadable);
    for gap in &contents.gaps {
        assert!(gap.offset >= BLOCK as u64 && gap.offset + gap.len <= len.next_multiple_of(BLOCK as u64));
    }
    contents.records.len() as u64
}
