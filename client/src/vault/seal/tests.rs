//! Sealing round trips, gives equal bytes for equal content, and no damage passes.

use potluck_proto::id::{ChunkId, Digest};
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

use super::{OpenError, Opener, PLAIN_LIMIT, ReadyChunk, SealError, Sealer};
use crate::vault::keys::VaultSecret;

/// The stored bytes in one piece.
fn stored(sealed: &ReadyChunk) -> Vec<u8> {
    sealed.stored().unwrap()
}

fn both() -> (Sealer, Opener) {
    let keys = VaultSecret::from_bytes([3; 32]).keys();
    (Sealer::new(&keys).unwrap(), Opener::new(&keys).unwrap())
}

proptest! {
    #[test]
    fn sealing_round_trips(unit in prop::collection::vec(any::<u8>(), 0..300), times in 0usize..200) {
        let plain = unit.repeat(times);
        let (mut sealer, mut opener) = both();
        let sealed = sealer.seal(&plain).unwrap();
        prop_assert_eq!(stored(&sealer.seal(&plain).unwrap()), stored(&sealed));
        prop_assert!(sealed.stored_len() <= plain.len() + super::OVERHEAD);
        prop_assert_eq!(sealed.plain_len as usize, plain.len());
        prop_assert_eq!(&opener.open_chunk(&sealed.id, &sealed.hash, &stored(&sealed)).unwrap()[..], &plain[..]);
    }

    #[test]
    fn no_damage_passes(plain in prop::collection::vec(any::<u8>(), 0..400), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (mut sealer, mut opener) = both();
        let sealed = sealer.seal(&plain).unwrap();
        let mut bytes = stored(&sealed);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(opener.open(&sealed.hash, &bytes), Err(OpenError::Tag));
        prop_assert_eq!(opener.open(&sealed.hash, &stored(&sealed)[..at]), Err(OpenError::Tag));
        let mut hash = sealed.hash;
        hash.0[at % 32] ^= 1 << bit;
        prop_assert_eq!(opener.open(&hash, &stored(&sealed)), Err(OpenError::Tag));
    }
}

#[test]
fn text_is_compressed_and_noise_is_not() {
    let (mut sealer, _) = both();
    let text = b"a line of a log, much like the next one\n".repeat(1000);
    assert!(sealer.seal(&text).unwrap().stored_len() < text.len() / 20);
    let mut noise = vec![0u8; 1 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    assert_eq!(sealer.seal(&noise).unwrap().stored_len(), noise.len() + super::OVERHEAD);
}

#[test]
fn another_id_and_another_vault_are_refused() {
    let (mut sealer, mut opener) = both();
    let sealed = sealer.seal(b"bytes").unwrap();
    assert_eq!(opener.open_chunk(&ChunkId([0; 32]), &sealed.hash, &stored(&sealed)), Err(OpenError::Id));
    let mut foreign = Opener::new(&VaultSecret::from_bytes([4; 32]).keys()).unwrap();
    assert_eq!(foreign.open(&sealed.hash, &stored(&sealed)), Err(OpenError::Tag));
}

fn hash_of(form: &[u8]) -> Digest {
    Digest(super::keyed(&both().0.keys.stored_hash, form))
}

/// Bytes as a faulty or malicious writer with the vault's keys could have sealed them.
fn seal_form(form: &[u8]) -> (Digest, Vec<u8>) {
    seal_form_under(hash_of(form), form)
}

fn seal_form_under(hash: Digest, form: &[u8]) -> (Digest, Vec<u8>) {
    let (sealer, _) = both();
    let (key, nonce) = super::key_and_nonce(&sealer.keys, &hash);
    let mut bytes = form.to_vec();
    let tag = crate::vault::cipher::encrypt(&key, nonce, &[], &mut bytes).unwrap();
    bytes.extend_from_slice(&tag);
    (hash, bytes)
}

#[test]
fn unknown_forms_and_bad_compression_are_refused() {
    let (_, mut opener) = both();
    let mut check = |form: &[u8]| {
        let (hash, bytes) = seal_form(form);
        opener.open(&hash, &bytes)
    };
    assert_eq!(check(&[1, 2, 9]), Err(OpenError::Form(9)));
    assert_eq!(check(&[]), Err(OpenError::Hash));
    // A chunk's hash goes over its id, not over its bytes.
    assert_eq!(check(b"one\x02"), Err(OpenError::Hash));
    let (hash, bytes) = seal_form_under(hash_of(b"one\0"), b"two\0");
    assert_eq!(both().1.open(&hash, &bytes), Err(OpenError::Hash));
    assert_eq!(check(&[2, 1]), Err(OpenError::Compression));
    let compressed = zstd::bulk::compress(&[7; 1000], 1).unwrap();
    let with_len = |len: u32| [&len.to_le_bytes(), &compressed[..], &[1]].concat();
    assert_eq!(check(&with_len(1000)).as_deref(), Ok(&[7; 1000][..]));
    for wrong in [0, 999, 1001, PLAIN_LIMIT as u32 + 1, u32::MAX] {
        assert_eq!(check(&with_len(wrong)), Err(OpenError::Compression), "{wrong}");
    }
}

#[test]
fn what_compresses_only_in_places_is_found() {
    let (mut sealer, mut opener) = both();
    let mut mixed = vec![0u8; 512 << 10];
    blake3::Hasher::new().finalize_xof().fill(&mut mixed);
    mixed[300 << 10..400 << 10].fill(0);
    let sealed = sealer.seal(&mixed).unwrap();
    assert!(sealed.stored_len() < 420 << 10);
    assert!(opener.open_chunk(&sealed.id, &sealed.hash, &stored(&sealed)).unwrap() == mixed);
}

#[test]
fn a_chunk_over_the_limit_is_refused() {
    let (mut sealer, _) = both();
    assert_eq!(sealer.seal(&vec![0; PLAIN_LIMIT + 1]).err(), Some(SealError::TooLong(PLAIN_LIMIT + 1)));
}

/// Golden: the layout of FORMAT.md, "Chunk", computed here step by step.
#[test]
fn stored_bytes_are_as_documented() {
    let (mut sealer, _) = both();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();

    let object = sealer.seal_object(ChunkId([5; 32]), b"abc").unwrap();
    let (hash, bytes) = seal_form(b"abc\0");
    assert_eq!((object.hash, stored(&object)), (hash, bytes));

    let chunk = sealer.seal(b"abc").unwrap();
    let (hash, bytes) = seal_form_under(hash_of(&[chunk.id.as_bytes(), &[2][..]].concat()), b"abc\x02");
    assert_eq!((chunk.hash, stored(&chunk)), (hash, bytes));

    let golden = [
        "4d6b3d7e609a4460afd89df4c89082c4f3a6f10d0c0b529e52177dfe4581f743",
        "826cf2622e998a5df25fc3b2b11968695e9b4fc509cfdf45100e043b34273582",
        "94325072b2c77ea99e04d3de4850f16484456e0a",
        "83d9e58c64ed74b986a866bad110bd2973318f60da6d3312fd78d64cebbc7217",
        "254c76e1cebb7d2b1356d8737ef770366439d75b",
    ];
    let found = [
        chunk.id.to_string(),
        chunk.hash.to_string(),
        hex(&stored(&chunk)),
        object.hash.to_string(),
        hex(&stored(&object)),
    ];
    assert_eq!(found, golden);
}
