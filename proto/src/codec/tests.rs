//! Against the crate's own encoding: all loss patterns for small n, random ones for large, ranges, and bad calls.

use proptest::prelude::{Just, Strategy, any, prop_assert_eq, proptest};
use proptest::sample::subsequence;
use reed_solomon_erasure::galois_8::ReedSolomon;

use super::{CODECS_LIMIT, Codec, CodecError};
use crate::stripe::{Scheme, SchemeError};

fn codec(k: usize, m: usize) -> Result<Codec, SchemeError> {
    Scheme::new(k, m).map(Codec::new)
}

/// Bytes without a pattern that the code could profit from.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// All n shards of `data` with k = `data.len() / len`.
fn encoded(codec: &Codec, data: &[u8], len: usize) -> Result<Vec<Vec<u8>>, CodecError> {
    let mut parity = vec![0xee; codec.scheme().m() * len];
    codec.encode(data, &mut parity)?;
    Ok(data.chunks(len).chain(parity.chunks(len)).map(<[u8]>::to_vec).collect())
}

fn with_indices<'a>(shards: &'a [Vec<u8>], indices: &[usize]) -> Vec<(usize, &'a [u8])> {
    indices.iter().map(|&index| (index, &shards[index][..])).collect()
}

#[test]
fn every_loss_pattern_of_small_schemes_is_rebuilt() -> Result<(), Box<dyn std::error::Error>> {
    const LEN: usize = 5;
    for n in 1..=8usize {
        for k in 1..=n {
            let codec = codec(k, n - k)?;
            let shards = encoded(&codec, &noise(k * LEN, n as u64), LEN)?;
            for pattern in 0u32..1 << n {
                let (present, lost): (Vec<usize>, Vec<usize>) = (0..n).partition(|index| pattern >> index & 1 == 1);
                let rebuilt = codec.rebuild(&with_indices(&shards, &present), &lost);
                if present.len() < k {
                    assert_eq!(rebuilt, Err(CodecError::TooFew { present: present.len(), needed: k }));
                    continue;
                }
                let expected: Vec<Vec<u8>> = lost.iter().map(|&index| shards[index].clone()).collect();
                assert_eq!(rebuilt, Ok(expected), "{k}+{} pattern {pattern:b}", n - k);
                let all: Vec<usize> = (0..n).rev().collect();
                let expected: Vec<Vec<u8>> = shards.iter().rev().cloned().collect();
                assert_eq!(codec.rebuild(&with_indices(&shards, &present), &all), Ok(expected));
            }
        }
    }
    Ok(())
}

#[test]
fn parity_is_the_crates_own() -> Result<(), Box<dyn std::error::Error>> {
    // Lengths around the block of the inner loop, and odd ones.
    for (k, m, len) in
        [(1, 1, 1), (1, 4, 4097), (2, 2, 4096), (5, 3, 8193), (10, 4, 4095), (29, 51, 700), (64, 64, 130)]
    {
        let mut shards = encoded(&codec(k, m)?, &noise(k * len, 7), len)?;
        let ours = shards.clone();
        shards[k..].iter_mut().for_each(|parity| parity.fill(0));
        let reference = ReedSolomon::new(k, m).and_then(|code| code.encode(&mut shards));
        assert_eq!(reference, Ok(()));
        assert!(shards == ours, "{k}+{m}, {len} bytes");
    }
    Ok(())
}

#[test]
fn steps_make_the_same_parity_and_show_every_byte() -> Result<(), Box<dyn std::error::Error>> {
    for (k, m, len, step) in
        [(1, 0, 5, 2), (2, 2, 4096, 1000), (5, 3, 8193, 4096), (5, 3, 300, 300), (10, 4, 129, 1000)]
    {
        let codec = codec(k, m)?;
        let data = noise(k * len, 3);
        let expected = encoded(&codec, &data, len)?;
        let (mut parity, mut seen) = (vec![0xee; m * len], vec![Vec::new(); k + m]);
        codec.encode_stepwise(&data, &mut parity, step, |index, piece| {
            assert_eq!(piece.len(), step.min(len - seen[index].len()));
            seen[index].extend_from_slice(piece);
        })?;
        assert!(seen == expected && parity == expected[k..].concat(), "{k}+{m}, {len} bytes by {step}");
    }
    Ok(())
}

/// A scheme, and in random order some of its indices, at least k.
fn scheme_and_present(k: usize, m: usize) -> impl Strategy<Value = ((usize, usize), Vec<usize>)> {
    let present = subsequence((0..k + m).collect::<Vec<_>>(), k..=k + m);
    (Just((k, m)), present.prop_shuffle())
}

proptest! {
    #[test]
    fn random_losses_of_large_schemes_are_rebuilt(
        ((k, m), present) in (9usize..30, 0usize..52).prop_flat_map(|(k, m)| scheme_and_present(k, m)),
        len in 1usize..5000,
        cut in any::<(u16, u16)>(),
    ) {
        let codec = codec(k, m)?;
        let shards = encoded(&codec, &noise(k * len, len as u64), len)?;
        let wanted: Vec<usize> = (0..k + m).filter(|index| !present.contains(index)).take(5).collect();
        let rebuilt = codec.rebuild(&with_indices(&shards, &present), &wanted)?;
        prop_assert_eq!(&rebuilt, &wanted.iter().map(|&index| shards[index].clone()).collect::<Vec<_>>());

        let start = usize::from(cut.0) % len;
        let end = start + usize::from(cut.1) % (len - start) + 1;
        let ranges: Vec<(usize, &[u8])> = present.iter().map(|&index| (index, &shards[index][start..end])).collect();
        let parts = codec.rebuild(&ranges, &wanted)?;
        for (part, whole) in parts.iter().zip(&rebuilt) {
            prop_assert_eq!(part, &whole[start..end]);
        }
    }
}

#[test]
fn the_widest_measured_scheme_loses_all_that_it_may() -> Result<(), Box<dyn std::error::Error>> {
    let codec = codec(29, 51)?;
    let shards = encoded(&codec, &noise(29 * 100, 1), 100)?;
    // Parity alone, more patterns than plans are kept, and the first of them once more.
    for first in (29..51).chain(0..29).chain([29]) {
        let present: Vec<usize> = (first..first + 29).collect();
        let wanted: Vec<usize> = (0..80).filter(|index| !present.contains(index)).collect();
        let expected: Vec<Vec<u8>> = wanted.iter().map(|&index| shards[index].clone()).collect();
        assert!(codec.rebuild(&with_indices(&shards, &present), &wanted)? == expected, "from {first}");
    }
    Ok(())
}

#[test]
fn bad_calls_say_what_is_wrong() -> Result<(), Box<dyn std::error::Error>> {
    let codec = codec(3, 2)?;
    let (a, b) = ([1u8; 4], [2u8; 5]);
    let some: [(usize, &[u8]); 3] = [(0, &a), (1, &a), (4, &a)];
    assert_eq!(codec.rebuild(&some[..2], &[2]), Err(CodecError::TooFew { present: 2, needed: 3 }));
    assert_eq!(codec.rebuild(&[], &[]), Err(CodecError::TooFew { present: 0, needed: 3 }));
    assert_eq!(codec.rebuild(&[(0, &a), (1, &b), (2, &a)], &[3]), Err(CodecError::Unequal(4, 5)));
    assert_eq!(codec.rebuild(&[(0, &a), (5, &a), (2, &a)], &[3]), Err(CodecError::OutOfRange { index: 5, n: 5 }));
    assert_eq!(codec.rebuild(&[(0, &a), (500, &a)], &[3]), Err(CodecError::OutOfRange { index: 500, n: 5 }));
    assert_eq!(codec.rebuild(&[(0, &a), (1, &a), (0, &a)], &[3]), Err(CodecError::Duplicate(0)));
    assert_eq!(codec.rebuild(&some, &[5]), Err(CodecError::OutOfRange { index: 5, n: 5 }));
    assert_eq!(codec.rebuild(&some, &[2, 2]), Err(CodecError::Duplicate(2)));
    assert_eq!(codec.rebuild(&some, &[]), Ok(Vec::new()));

    assert_eq!(codec.rebuild_into(&some, &[2], &mut []), Err(CodecError::Room { found: 0, needed: 1 }));
    assert_eq!(codec.rebuild_into(&some, &[2], &mut [&mut [0; 5]]), Err(CodecError::Unequal(4, 5)));

    assert_eq!(codec.encode(&[0; 7], &mut [0; 4]), Err(CodecError::DataLength { len: 7, k: 3 }));
    assert_eq!(codec.encode(&[0; 6], &mut [0; 5]), Err(CodecError::ParityLength { found: 5, needed: 4 }));
    assert_eq!(codec.encode(&[], &mut []), Ok(()));
    assert_eq!(codec.rebuild(&[(0, &[]), (1, &[]), (2, &[])], &[3]), Ok(vec![Vec::new()]));
    Ok(())
}

#[test]
fn instances_are_shared_and_bounded() -> Result<(), SchemeError> {
    for k in 1..3 * CODECS_LIMIT {
        codec(k, 7)?;
    }
    let kept = super::CODECS.lock().unwrap_or_else(std::sync::PoisonError::into_inner).len();
    assert!(kept <= CODECS_LIMIT, "{kept}");
    Ok(())
}
