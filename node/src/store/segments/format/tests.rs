//! The bytes are those of FORMAT.md; what is not whole is refused, whatever is wrong with it.

use super::*;
use crate::store::segments::tests::stripe;
use potluck_proto::blocks::chaining_values;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

const STORE: StoreId = StoreId([9; 16]);

/// A shard's record as a writer makes it.
fn shard_record(data_len: usize, offset: u64) -> (RecordHeader, Vec<u8>) {
    let (signed, shards) = stripe(7, data_len);
    let tree = chaining_values(&shards[1]);
    let header = RecordHeader {
        scheme: (2, 1),
        complete: true,
        until_ms: Some(77),
        touched: 0x0102_0304_0506_0708,
        generation: 5,
        sequence: (3 << 32) + 6,
        store: STORE,
        segment: 3,
        offset,
        time_ms: 1_700_000_000_000,
        header_len: signed.bytes().len() as u32,
        tree_len: tree.as_bytes().len() as u32,
        payload_len: shards[1].len() as u32,
        payload: tree.root(),
        ..RecordHeader::bare(Kind::Shard, signed.id().0, 1)
    };
    let mut bytes = encode_front(&header, signed.bytes(), tree.as_bytes());
    bytes.extend_from_slice(&shards[1]);
    bytes.resize(header.extent() as usize, 0);
    (header, bytes)
}

fn u16s(value: u16) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

fn u32s(value: u32) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

fn u64s(value: u64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

fn with_checksum(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = parts.concat();
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    bytes
}

/// The layout of FORMAT.md, "Segments", written here field by field.
#[test]
fn a_segment_is_as_documented() {
    let header = SegmentHeader { store: STORE, segment: 3, created_ms: 4 };
    let mut expected = with_checksum(&[b"potsegmt".to_vec(), u16s(1), vec![9; 16], u64s(3), u64s(4)]);
    expected.resize(4096, 0);
    assert!(header.encode() == expected);

    for data_len in [1_000, 200_000, 400_000] {
        let (signed, shards) = stripe(7, data_len);
        let tree = chaining_values(&shards[1]);
        let (header, bytes) = shard_record(data_len, 8192);
        let mut expected = with_checksum(&[
            b"potrecrd".to_vec(),
            u16s(1),
            vec![1, 1, 1 | 2, 2, 1, 0],
            u32s(signed.bytes().len() as u32),
            u32s(tree.as_bytes().len() as u32),
            u32s(shards[1].len() as u32),
            u64s(0x0102_0304_0506_0708),
            u64s(77),
            u64s(5),
            u64s((3 << 32) + 6),
            u64s(3),
            u64s(8192),
            u64s(1_700_000_000_000),
            signed.id().0.to_vec(),
            vec![9; 16],
            blake3::hash(&shards[1]).as_bytes().to_vec(),
        ]);
        assert_eq!(expected.len(), 196);
        assert_eq!(header.encode().to_vec(), expected);
        expected.extend_from_slice(signed.bytes());
        expected.extend_from_slice(tree.as_bytes());
        if shards[1].len() >= 131_072 {
            expected.resize(expected.len().next_multiple_of(4096), 0);
        }
        expected.extend_from_slice(&shards[1]);
        if shards[1].len() >= 131_072 {
            expected.resize(expected.len().next_multiple_of(4096), 0);
        }
        assert!(bytes == expected, "shards of {} bytes", shards[1].len());
    }

    let seal =
        Seal { store: STORE, segment: 3, footer: 8192, count: 2, headers: Digest([8; 32]), len: 3 * 4096 + 4096 };
    let mut expected = with_checksum(&[
        b"potseald".to_vec(),
        u16s(1),
        vec![9; 16],
        u64s(3),
        u64s(8192),
        u32s(2),
        vec![8; 32],
        u64s(16384),
    ]);
    expected.resize(4096, 0);
    assert!(seal.encode() == expected);
    assert_eq!(Seal::decode(&expected), Ok(seal));
    let kinds = [
        Kind::Shard,
        Kind::Head,
        Kind::Member,
        Kind::Sweep,
        Kind::Delete,
        Kind::Trash,
        Kind::Restore,
        Kind::Complete,
        Kind::Padding,
        Kind::Footer,
    ];
    assert_eq!(kinds.map(|kind| kind as u8), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
}

/// Bytes whose hash was never computed: the format's version 1 is these and no others.
#[test]
fn golden_vectors() {
    let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex()[..16].to_string();
    let segment = SegmentHeader { store: STORE, segment: 3, created_ms: 4 }.encode();
    let delete = RecordHeader {
        damaged: true,
        generation: 5,
        sequence: (3 << 32) + 6,
        store: STORE,
        segment: 3,
        offset: 4096,
        time_ms: 1,
        ..RecordHeader::bare(Kind::Delete, [0xab; 32], 2)
    };
    let seal = Seal { store: STORE, segment: 3, footer: 8192, count: 2, headers: Digest([8; 32]), len: 16384 };
    let hashes = [hash(&segment), hash(&delete.encode()), hash(&seal.encode())];
    assert_eq!(hashes, GOLDEN);
    assert_eq!(NOTHING, Digest::of(&[]));
}

const GOLDEN: [&str; 3] = ["e8253f79543c03b1", "c1600f9e4ef303be", "bf0e5f0a1406f844"];

#[test]
fn every_flipped_bit_of_a_record_is_noticed() {
    for data_len in [1_000, 300_000] {
        let (header, mut bytes) = shard_record(data_len, 8192);
        let read = Record::decode(&bytes, STORE, 3, 8192).unwrap();
        assert_eq!(read.header, header);
        // All of the first block and a part of the rest: each decoding hashes all of it.
        let step = if data_len > 10_000 { 977 } else { 1 };
        let places = (0..bytes.len().min(4096)).step_by(step.min(13)).chain((4096..bytes.len()).step_by(step));
        for place in places.chain([bytes.len() - 1]) {
            for bit in 0..8 {
                bytes[place] ^= 1 << bit;
                assert!(Record::decode(&bytes, STORE, 3, 8192).is_err(), "bit {bit} of byte {place}");
                bytes[place] ^= 1 << bit;
            }
        }
        for len in (0..bytes.len()).step_by(step) {
            assert!(Record::decode(&bytes[..len], STORE, 3, 8192).is_err(), "cut to {len} bytes");
        }
        for (store, segment, offset) in [(StoreId([8; 16]), 3, 8192), (STORE, 4, 8192), (STORE, 3, 4096)] {
            assert_eq!(Record::decode(&bytes, store, segment, offset).unwrap_err(), FormatError::Elsewhere);
        }
    }
}

#[test]
fn every_flipped_bit_of_a_segment_header_and_a_seal_is_noticed() {
    let seal = Seal { store: STORE, segment: 3, footer: 8192, count: 2, headers: Digest([8; 32]), len: 16384 };
    for mut block in [SegmentHeader { store: STORE, segment: 3, created_ms: 4 }.encode(), seal.encode()] {
        let whole = |block: &[u8]| SegmentHeader::decode(block).is_ok() || Seal::decode(block).is_ok();
        assert!(whole(&block));
        for place in 0..block.len() {
            assert!(!whole(&block[..place]));
            for bit in 0..8 {
                block[place] ^= 1 << bit;
                assert!(!whole(&block), "bit {bit} of byte {place}");
                block[place] ^= 1 << bit;
            }
        }
    }
}

/// Four records that follow each other, and the seal over them.
fn footer() -> (Vec<RecordHeader>, Seal) {
    let mut headers = Vec::new();
    let mut offset = BLOCK as u64;
    for (number, kind) in [Kind::Trash, Kind::Restore, Kind::Delete, Kind::Padding].into_iter().enumerate() {
        let mut header = RecordHeader {
            sequence: (3 << 32) + number as u64,
            store: STORE,
            segment: 3,
            offset,
            ..RecordHeader::bare(kind, [number as u8; 32], 0)
        };
        if kind == Kind::Padding {
            header.payload_len = (2 * BLOCK as u64 - offset) as u32 - RECORD_LEN as u32;
        }
        offset += header.extent();
        headers.push(header);
    }
    let headers_hash = Digest::of(&encode_footer(&headers));
    (headers, Seal { store: STORE, segment: 3, footer: 8192, count: 4, headers: headers_hash, len: 16384 })
}

#[test]
fn every_flipped_bit_of_a_footer_is_noticed() {
    let (headers, seal) = footer();
    let mut bytes = encode_footer(&headers);
    assert_eq!(decode_footer(&bytes, &seal).unwrap(), headers);
    for place in 0..bytes.len() {
        assert!(decode_footer(&bytes[..place], &seal).is_err());
        for bit in 0..8 {
            bytes[place] ^= 1 << bit;
            assert!(decode_footer(&bytes, &seal).is_err());
            bytes[place] ^= 1 << bit;
        }
    }
    // Hashed right, but with a gap, in another order, or short.
    for wrong in [[0, 1, 3, 2], [1, 0, 2, 3], [0, 0, 2, 3]] {
        let bytes = encode_footer(&wrong.map(|at| headers[at]));
        let seal = Seal { headers: Digest::of(&bytes), ..seal };
        assert!(decode_footer(&bytes, &seal).is_err(), "{wrong:?}");
    }
    let short = encode_footer(&headers[..3]);
    assert!(decode_footer(&short, &Seal { headers: Digest::of(&short), count: 3, ..seal }).is_err());
}

fn any_kind(seed: u64) -> Kind {
    Kind::from_byte((seed % 10) as u8 + 1).unwrap()
}

proptest! {
    #[test]
    fn headers_round_trip(
        seed in any::<u64>(), key in any::<[u8; 32]>(), index in 0u8..128, flags in 0u8..8,
        numbers in any::<[u64; 3]>(), len in 0u32..16_000_000, segment in 0u64..1 << 32, block in 1u64..70_000,
    ) {
        let kind = any_kind(seed);
        let has_payload = !matches!(kind, Kind::Delete | Kind::Trash | Kind::Restore | Kind::Complete);
        let payload_len = if has_payload { len } else { 0 };
        let is_shard = kind == Kind::Shard;
        let header = RecordHeader {
            scheme: if is_shard { (4, 4) } else { (0, 0) },
            complete: flags & 1 != 0,
            damaged: flags & 2 != 0,
            until_ms: (flags & 4 != 0).then_some(numbers[0]),
            touched: numbers[1],
            generation: segment << 32,
            sequence: (segment << 32) | (seed >> 32),
            store: STORE,
            segment,
            offset: block * BLOCK as u64,
            time_ms: numbers[2],
            header_len: if is_shard { (seed % 60_000) as u32 } else { 0 },
            tree_len: if is_shard { (block_count(payload_len.into()) * 32) as u32 } else { 0 },
            payload_len,
            ..RecordHeader::bare(kind, key, if is_shard { index % 8 } else { index })
        };
        let mut bytes = header.encode();
        prop_assert_eq!(RecordHeader::decode(&bytes), Ok(header));
        let place = numbers[2] as usize % bytes.len();
        bytes[place] ^= 1 << (seed % 8);
        prop_assert!(RecordHeader::decode(&bytes).is_err());
        prop_assert!(header.extent() >= header.payload_at() + u64::from(payload_len));
    }

    /// Also where a checksum was made for the nonsense.
    #[test]
    fn nonsense_is_refused_and_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), dress in 0u8..4) {
        if dress > 0 && bytes.len() >= RECORD_LEN {
            bytes[..8].copy_from_slice(b"potrecrd");
            bytes[8..10].copy_from_slice(&[1, 0]);
            if dress > 1 {
                bytes[10] = bytes[10] % 10 + 1;
                bytes[12] &= 7;
                bytes[15] = 0;
            }
            let checksum = blake3::hash(&bytes[..RECORD_LEN - CHECKSUM_LEN]);
            bytes[RECORD_LEN - CHECKSUM_LEN..RECORD_LEN].copy_from_slice(checksum.as_bytes());
        }
        let _ = RecordHeader::decode(&bytes);
        prop_assert!(Record::decode(&bytes, STORE, 3, 4096).is_err());
        prop_assert!(SegmentHeader::decode(&bytes).is_err() && Seal::decode(&bytes).is_err());
        let seal = Seal { store: STORE, segment: 3, footer: 8192, count: 1, headers: Digest::of(&bytes), len: 16384 };
        prop_assert!(decode_footer(&bytes, &seal).is_err());
    }
}

proptest! {
    /// Any bytes, whole blocks of them, and with a checksum that fits: a decoder takes them or refuses them, and what it
    /// takes it writes back the same.
    #[test]
    fn decoders_take_any_bytes(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..3 * BLOCK), dress in 0u8..6,
        place in any::<(u64, u64)>(), count in any::<u32>(),
    ) {
        let dressed: Option<(&[u8; 8], usize)> = match dress {
            0 => Some((b"potsegmt", 42)),
            1 => Some((b"potseald", 86)),
            2 => Some((b"potrecrd", RECORD_LEN - CHECKSUM_LEN)),
            _ => None,
        };
        if let Some((magic, len)) = dressed.filter(|(_, len)| bytes.len() >= len + CHECKSUM_LEN) {
            bytes[..8].copy_from_slice(magic);
            bytes[8..10].copy_from_slice(&[1, 0]);
            let checksum = blake3::hash(&bytes[..len]);
            bytes[len..len + CHECKSUM_LEN].copy_from_slice(checksum.as_bytes());
            if dress < 2 {
                let end = bytes.len().min(BLOCK);
                bytes[len + CHECKSUM_LEN..end].fill(0);
            }
        }
        if let Ok(header) = SegmentHeader::decode(&bytes) {
            prop_assert_eq!(header.encode(), &bytes[..BLOCK]);
        }
        if let Ok(seal) = Seal::decode(&bytes) {
            prop_assert_eq!(seal.encode(), &bytes[..BLOCK]);
        }
        if let Ok(header) = RecordHeader::decode(&bytes) {
            prop_assert_eq!(&header.encode()[..], &bytes[..RECORD_LEN]);
            let _ = decode_front(&header, &bytes);
        }
        let _ = Record::decode(&bytes, STORE, place.0, place.1);
        let seal = Seal { store: STORE, segment: place.0, footer: place.1, count, headers: Digest::of(&bytes), len: 0 };
        prop_assert!(decode_footer(&bytes, &seal).is_err());
        let entries = (bytes.len() / RECORD_LEN) as u32;
        let fitting = Seal { count: entries, ..seal };
        prop_assert!(entries == 0 || decode_footer(&bytes, &fitting).is_err());
    }
}
