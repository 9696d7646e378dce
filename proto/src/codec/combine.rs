//! The one inner loop: sums of products of shards in GF(2^8). It knows neither encoding nor rebuilding.

use reed_solomon_erasure::galois_8;

/// Bytes of each shard that are worked on at a time, so that the inputs of common schemes stay in the first-level cache
/// while all outputs are made from them.
const BLOCK: usize = 4 << 10;

/// `outputs[r] = sum over c of rows[r][c] * inputs[c]`. All inputs and outputs have equal length; each row has a
/// coefficient for each input.
pub(super) fn combine(rows: &[&[u8]], inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
    let len = inputs.first().map_or(0, |input| input.len());
    for start in (0..len).step_by(BLOCK) {
        let range = start..len.min(start + BLOCK);
        for (row, output) in rows.iter().zip(outputs.iter_mut()) {
            let output = &mut output[range.clone()];
            let mut terms = row.iter().zip(inputs).filter(|&(&coefficient, _)| coefficient != 0);
            match terms.next() {
                Some((&coefficient, input)) => set(coefficient, &input[range.clone()], output),
                None => output.fill(0),
            }
            for (&coefficient, input) in terms {
                add(coefficient, &input[range.clone()], output);
            }
        }
    }
}

fn set(coefficient: u8, input: &[u8], output: &mut [u8]) {
    match coefficient {
        1 => output.copy_from_slice(input),
        _ => galois_8::mul_slice(coefficient, input, output),
    }
}

fn add(coefficient: u8, input: &[u8], output: &mut [u8]) {
    match coefficient {
        1 => output.iter_mut().zip(input).for_each(|(sum, byte)| *sum ^= byte),
        _ => galois_8::mul_slice_xor(coefficient, input, output),
    }
}
