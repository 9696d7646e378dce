//! Sealing round trips, gives equal bytes for equal content, and no damage passes.

use potluck_proto::id::{ChunkId, Digest};
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

use super::{OpenError, Opener, PLAIN_LIMIT, SealError, Sealer};
use crate::vault::keys::VaultSecret;

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
        prop_assert_eq!(&sealer.seal(&plain).unwrap(), &sealed);
        prop_assert!(sealed.bytes.len() <= plain.len() + super::OVERHEAD);
        prop_assert_eq!(sealed.plain_len as usize, plain.len());
        prop_assert_eq!(&opener.open_chunk(&sealed.id, &sealed.hash, &sealed.bytes).unwrap()[..], &plain[..]);
    }

    #[test]
    fn no_damage_passes(plain in prop::collection::vec(any::<u8>(), 0..400), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (mut sealer, mut opener) = both();
        let sealed = sealer.seal(&plain).unwrap();
        let mut bytes = sealed.bytes.to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(opener.open(&sealed.hash, &bytes), Err(OpenError::Tag));
        prop_assert_eq!(opener.open(&sealed.hash, &sealed.bytes[..at]), Err(OpenError::Tag));
        let mut hash = sealed.hash;
        hash.0[at % 32] ^= 1 << bit;
        prop_assert_eq!(opener.open(&hash, &sealed.bytes), Err(OpenError::Tag));
    }
}

#[test]
fn text_is_compressed_and_noise_is_not() {
    let (mut sealer, _) = both();
    let text = b"a line of a log, much like the next one\n".repeat(1000);
    assert!(sealer.seal(&text).unwrap().bytes.len() < text.len() / 20);
    let mut noise = vec![0u8; 1 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    assert_eq!(sealer.seal(&noise).unwrap().bytes.len(), noise.len() + super::OVERHEAD);
}

#[test]
fn another_id_and_another_vault_are_refused() {
    let (mut sealer, mut opener) = both();
    let sealed = sealer.seal(b"bytes").unwrap();
    assert_eq!(opener.open_chunk(&ChunkId([0; 32]), &sealed.hash, &sealed.bytes), Err(OpenError::Id));
    let mut foreign = Opener::new(&VaultSecret::from_bytes([4; 32]).keys()).unwrap();
    assert_eq!(foreign.open(&sealed.hash, &sealed.bytes), Err(OpenError::Tag));
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
    assert_eq!(check(&[9, 1, 2]), Err(OpenError::Form(9)));
    assert_eq!(check(&[]), Err(OpenError::Hash));
    let (hash, bytes) = seal_form_under(hash_of(b"\0one"), b"\0two");
    assert_eq!(both().1.open(&hash, &bytes), Err(OpenError::Hash));
    assert_eq!(check(&[1, 2]), Err(OpenError::Compression));
    let compressed = zstd::bulk::compress(&[7; 1000], 1).unwrap();
    let with_len = |len: u32| [&[1][..], &len.to_le_bytes(), &compressed].concat();
    assert_eq!(check(&with_len(1000)).as_deref(), Ok(&[7; 1000][..]));
    for wrong in [0, 999, 1001, PLAIN_LIMIT as u32 + 1, u32::MAX] {
        assert_eq!(check(&with_len(wrong)), Err(OpenError::Compression), "{wrong}");
    }
}

#[test]
fn a_chunk_over_the_limit_is_refused() {
    let (mut sealer, _) = both();
    assert_eq!(sealer.seal(&vec![0; PLAIN_LIMIT + 1]), Err(SealError::TooLong(PLAIN_LIMIT + 1)));
}

/// Golden: the layout of FORMAT.md, "Chunk", computed here step by step.
#[test]
fn stored_bytes_are_as_documented() {
    let (mut sealer, _) = both();
    let sealed = sealer.seal(b"abc").unwrap();
    let (hash, bytes) = seal_form(b"\0abc");
    assert_eq!((sealed.hash, &sealed.bytes[..]), (hash, &bytes[..]));
    let text: String = sealed.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let golden = [
        "4d6b3d7e609a4460afd89df4c89082c4f3a6f10d0c0b529e52177dfe4581f743",
        "49dd7f3750b920e2d2e8af79f71a4f2ccbc9326463ccccd2dd5297f682cd47e2",
        "ecb339985c14d996af9e1dc4d9bf3cebdf7c93aa",
    ];
    assert_eq!([sealed.id.to_string(), sealed.hash.to_string(), text], golden);
}
