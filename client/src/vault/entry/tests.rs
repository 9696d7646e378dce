//! Entries round trip, keep what they do not know, and have one encoding.

use bytes::Bytes;
use potluck_proto::id::{ChunkId, Digest, StripeId};
use proptest::prelude::{Strategy, any, prop, prop_assert_eq, proptest};

use super::{ChunkRef, Content, DIRECT_LIMIT, Entry, Kind};
use crate::vault::keys::VaultSecret;
use crate::vault::pointer::{Anywhere, PendingPointer, StripeRef};

const HERE: StripeRef = StripeRef::Sealed(StripeId([1; 32]));

fn chunk_ref(number: u8, size: u64) -> ChunkRef {
    let stripe = StripeRef::Sealed(StripeId([number; 32]));
    let pointer = PendingPointer { stripe, offset: 1, len: 2, hash: Digest([number; 32]) };
    ChunkRef { id: ChunkId([number; 32]), size, pointer }
}

fn content() -> impl Strategy<Value = (u64, Content)> {
    let inline =
        prop::collection::vec(any::<u8>(), 0..64).prop_map(|bytes| (bytes.len() as u64, Content::Inline(bytes.into())));
    let chunks = prop::collection::vec((any::<u8>(), 1u64..1000), 1..DIRECT_LIMIT).prop_map(|refs| {
        let size = refs.iter().map(|(_, size)| size).sum();
        (size, Content::Chunks(refs.iter().map(|&(number, size)| chunk_ref(number, size)).collect()))
    });
    let list = (any::<u8>(), 1u64..1 << 40, 1u8..=5)
        .prop_map(|(number, size, depth)| (size, Content::List { list: chunk_ref(number, size), depth }));
    proptest::prop_oneof![inline, chunks, list]
}

fn entry() -> impl Strategy<Value = Entry> {
    let other = prop::collection::btree_map(100u64..200, prop::collection::vec(any::<u8>(), 0..9), 0..3);
    (1u8..9, content(), any::<u32>(), any::<i64>(), other).prop_map(|(kind, (size, content), mode, mtime_ns, other)| {
        let other = other.into_iter().map(|(tag, value)| (tag, Bytes::from(value))).collect();
        Entry { kind: Kind::from_code(kind), size, mode, mtime_ns, content, other }
    })
}

proptest! {
    #[test]
    fn entries_round_trip(entry in entry()) {
        let bytes = entry.encode(&Anywhere).unwrap();
        let read = Entry::decode(&bytes, HERE).unwrap();
        prop_assert_eq!(&read, &entry);
        prop_assert_eq!(read.encode(&Anywhere).unwrap(), bytes);
    }

    #[test]
    fn any_bytes_are_read_without_panic_and_in_one_form(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(entry) = Entry::decode(&bytes, HERE) {
            prop_assert_eq!(entry.encode(&Anywhere).unwrap(), bytes);
        }
    }
}

#[test]
fn identity_ignores_locations_and_content_id_ignores_times() {
    let keys = VaultSecret::from_bytes([3; 32]).keys();
    let mut entry = Entry::inline(Kind::File, Bytes::new());
    (entry.size, entry.content) = (9, Content::Chunks(vec![chunk_ref(4, 9)]));
    let mut moved = entry.clone();
    let Content::Chunks(chunks) = &mut moved.content else { unreachable!() };
    chunks[0].pointer.offset = 77;
    assert_eq!(moved.identity(), entry.identity());
    assert_ne!(moved.encode(&Anywhere), entry.encode(&Anywhere));
    moved.mtime_ns = 5;
    assert_ne!(moved.identity(), entry.identity());
    assert_eq!(moved.content_id(&keys), entry.content_id(&keys));
}

#[test]
fn sizes_must_agree() {
    // kind 1, size 3, inline of two bytes
    assert!(Entry::decode(&[1, 1, 1, 2, 1, 3, 5, 2, 8, 8], HERE).is_err());
    assert!(Entry::decode(&[1, 1, 1, 2, 1, 2, 5, 2, 8, 8], HERE).is_ok());
    // no kind; tags out of order; a default written out
    assert!(Entry::decode(&[], HERE).is_err());
    assert!(Entry::decode(&[2, 1, 2, 1, 1, 1], HERE).is_err());
    assert!(Entry::decode(&[1, 1, 1, 3, 1, 0], HERE).is_err());
}

/// Golden: FORMAT.md, "Entry".
#[test]
fn bytes_are_as_documented() {
    let mut entry = Entry::inline(Kind::File, &b"hi"[..]);
    (entry.mode, entry.mtime_ns) = (0o644, -2);
    let golden = [&[1, 1, 1, 2, 1, 2, 3, 2, 0xa4, 0x03, 4, 8, 0xfe][..], &[0xff; 7], &[5, 2, b'h', b'i']].concat();
    assert_eq!(entry.encode(&Anywhere).unwrap(), golden);
}
