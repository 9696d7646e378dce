//! Every level that this machine has, against the crate: all coefficients, all lengths around the edges of vectors and
//! blocks, any alignment, any numbers of inputs and outputs, encoding and rebuilding.

use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_oneof, proptest};
use proptest::sample::subsequence;
use reed_solomon_erasure::galois_8::{self, ReedSolomon};

use super::{Level, Rows};
use crate::codec::Codec;
use crate::stripe::Scheme;

/// Longest shift of a buffer, in bytes: past the widest vector.
const SHIFT: usize = 70;

/// Bytes around the room for outputs, which must stay as they are.
const GUARD: u8 = 0xa5;

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// The sums as the crate's own products give them.
fn reference(rows: &[Vec<u8>], inputs: &[&[u8]], len: usize) -> Vec<Vec<u8>> {
    let sum = |row: &Vec<u8>| {
        let mut sum = vec![0; len];
        row.iter().zip(inputs).for_each(|(&factor, input)| galois_8::mul_slice_xor(factor, input, &mut sum));
        sum
    };
    rows.iter().map(sum).collect()
}

/// What `level` makes of these inputs, each and each output as far behind its buffer's beginning as `shifts` says.
/// Fails if it writes anywhere else.
fn sums(level: Level, rows: &[Vec<u8>], inputs: &[&[u8]], len: usize, shifts: &[usize]) -> Vec<Vec<u8>> {
    let shift = |number: usize| shifts[number % shifts.len()];
    let held: Vec<Vec<u8>> =
        inputs.iter().enumerate().map(|(number, input)| [&vec![0; shift(number)], *input].concat()).collect();
    let inputs: Vec<&[u8]> = held.iter().enumerate().map(|(number, bytes)| &bytes[shift(number)..]).collect();
    let mut room = vec![vec![GUARD; SHIFT + len + SHIFT]; rows.len()];
    let at = |number: usize| shift(number + inputs.len());
    let mut outputs: Vec<&mut [u8]> =
        room.iter_mut().enumerate().map(|(number, bytes)| &mut bytes[at(number)..][..len]).collect();
    Rows::new(level, rows.iter().map(Vec::as_slice)).combine(&inputs, &mut outputs);
    for (number, bytes) in room.iter().enumerate() {
        let around = bytes[..at(number)].iter().chain(&bytes[at(number) + len..]);
        assert!(around.into_iter().all(|&byte| byte == GUARD), "{level} writes out of its room");
    }
    room.iter().enumerate().map(|(number, bytes)| bytes[at(number)..][..len].to_vec()).collect()
}

#[test]
fn this_machine_has_the_portable_level_at_least() {
    let levels = Level::all();
    assert_eq!(levels.last().map(|level| level.name()), Some("portable"));
    assert_eq!(levels.first(), Some(&Level::best()));
    // With --nocapture: what the other tests of this file tested.
    println!("levels: {levels:?}");
}

#[test]
fn every_product_is_the_crates() {
    let bytes: Vec<u8> = (0..=255).collect();
    let rows: Vec<Vec<u8>> = (0..=255).map(|coefficient| vec![coefficient]).collect();
    let expected = reference(&rows, &[&bytes], bytes.len());
    for level in Level::all() {
        assert!(sums(level, &rows, &[&bytes], bytes.len(), &[0]) == expected, "{level}");
    }
}

#[test]
fn every_length_to_past_a_few_vectors_and_around_a_block_is_right() {
    let noise = noise(2 * 40_000, 1);
    let rows = [vec![3, 200], vec![0, 1], vec![1, 1], vec![77, 0], vec![0, 0], vec![255, 2], vec![9, 9]];
    let block = 16_384;
    let lens = (0..600)
        .chain(block - 80..block + 80)
        .chain((block..block + 600).step_by(37))
        .chain(2 * block - 3..2 * block + 3);
    for len in lens {
        let inputs = [&noise[..len], &noise[40_000..][..len]];
        let expected = reference(&rows, &inputs, len);
        for level in Level::all() {
            assert!(sums(level, &rows, &inputs, len, &[len % 3, 1]) == expected, "{level}, {len} bytes");
        }
    }
}

#[test]
fn every_number_of_outputs_is_grouped_right() {
    let noise = noise(3 * 300, 2);
    let inputs: Vec<&[u8]> = noise.chunks(300).collect();
    for outputs in 0..=64u8 {
        let rows: Vec<Vec<u8>> = (0..outputs).map(|row| vec![row, row.wrapping_mul(31), 255 - row]).collect();
        let expected = reference(&rows, &inputs, 300);
        for level in Level::all() {
            assert!(sums(level, &rows, &inputs, 300, &[0]) == expected, "{level}, {outputs} outputs");
        }
    }
}

/// Lengths, many of them near what vectors, their groups and blocks are long.
fn len() -> impl Strategy<Value = usize> {
    let edge = (prop_oneof![Just(16usize), Just(64), Just(256), Just(4096), Just(16_384)], 0usize..80);
    prop_oneof![0usize..5000, edge.prop_map(|(edge, off)| (edge + off).saturating_sub(40))]
}

/// Rows of coefficients, zero and one often among them.
fn rows() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let coefficient = prop_oneof![Just(0u8), Just(1u8), any::<u8>(), any::<u8>()];
    (1usize..60, 0usize..60).prop_flat_map(move |(inputs, outputs)| vec(vec(coefficient.clone(), inputs), outputs))
}

/// A scheme, some of its indices in rising order, at least k, and some in any order.
fn losses() -> impl Strategy<Value = ((usize, usize), Vec<usize>, Vec<usize>)> {
    (1usize..60, 0usize..60).prop_flat_map(|(k, m)| {
        let all: Vec<usize> = (0..k + m).collect();
        (Just((k, m)), subsequence(all.clone(), k..=k + m), subsequence(all, 0..=k + m).prop_shuffle())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_sum_is_the_crates(rows in rows(), len in len(), seed: u64, shifts in vec(0..SHIFT, 1..9)) {
        let inputs = rows.first().map_or(1, Vec::len);
        let noise = noise(inputs * len, seed);
        let inputs: Vec<&[u8]> = (0..inputs).map(|input| &noise[input * len..][..len]).collect();
        let expected = reference(&rows, &inputs, len);
        for level in Level::all() {
            prop_assert!(sums(level, &rows, &inputs, len, &shifts) == expected, "{}", level);
        }
    }

    #[test]
    fn what_the_crate_encodes_every_level_encodes_and_rebuilds(
        ((k, m), present, wanted) in losses(),
        len in len().prop_map(|len| len.max(1)),
        seed: u64,
        shift in 0..SHIFT,
    ) {
        let noise = noise(shift + k * len, seed);
        let data = &noise[shift..];
        let mut shards: Vec<Vec<u8>> = data.chunks(len).map(<[u8]>::to_vec).collect();
        shards.resize(k + m, vec![0; len]);
        if m > 0 {
            prop_assert!(ReedSolomon::new(k, m).and_then(|code| code.encode(&mut shards)).is_ok());
        }
        let given: Vec<(usize, &[u8])> = present.iter().map(|&index| (index, &shards[index][..])).collect();
        let expected: Vec<Vec<u8>> = wanted.iter().map(|&index| shards[index].clone()).collect();
        for level in Level::all() {
            let codec = Codec::at(Scheme::new(k, m)?, level);
            let mut room = vec![GUARD; shift + m * len];
            codec.encode(data, &mut room[shift..])?;
            prop_assert!(room[shift..] == shards[k..].concat(), "{} encodes", level);
            prop_assert!(codec.rebuild(&given, &wanted)? == expected, "{} rebuilds", level);
        }
    }
}
