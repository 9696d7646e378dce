//! The loop around the vector instructions: all inputs into several outputs at a time, block by block.
//!
//! A few vectors of some outputs stay in registers while the inputs go by, so that each input is loaded once for several
//! outputs and each output is stored once. All outputs of a block are made before the next block, while the inputs' block
//! is in the cache. It has no `unsafe`; each set of instructions compiles it for itself.

use super::portable::combine_few;
use super::{Group, Rows};

/// Bytes of each shard that are worked on before all go on. On a Zen 4 with GFNI and AVX-512, 4 KiB were up to a sixth slower
/// from memory, and 32 KiB as much for 29+51, whose block leaves the second-level cache. Asking for lines of the inputs 384
/// to 2,048 bytes ahead took up to a quarter of the speed from memory where shards are few, and changed little where they
/// are many: the processor's own prefetching does it.
const BLOCK: usize = 16 << 10;

/// Vector instructions. A value is the proof that this processor has them.
pub(super) trait Vectors: Copy {
    /// Bytes of a vector.
    const LEN: usize;
    /// Bytes of shards, or sums of products.
    type Vector: Copy;
    /// A vector as products need it.
    type Parts: Copy;
    /// A coefficient as products need it.
    type Factor: Copy;

    /// A vector of zeros.
    fn zero(self) -> Self::Vector;
    /// The first [`Self::LEN`] of `bytes`, which has so many.
    fn load(self, bytes: &[u8]) -> Self::Vector;
    /// Over the first [`Self::LEN`] of `bytes`, which has so many.
    fn store(self, vector: Self::Vector, bytes: &mut [u8]);
    /// Prepares bytes for products.
    fn parts(self, vector: Self::Vector) -> Self::Parts;
    /// Prepares a coefficient for products.
    fn factor(self, coefficient: u8) -> Self::Factor;
    /// The sum with a product.
    fn add_product(self, sum: Self::Vector, factor: Self::Factor, parts: Self::Parts) -> Self::Vector;

    /// Whether adding two products at once is faster, and worth the registers for two inputs.
    const TWO: bool = false;
    /// The sum with two products.
    #[inline(always)]
    fn add_two(
        self,
        sum: Self::Vector,
        factors: (Self::Factor, Self::Factor),
        parts: (Self::Parts, Self::Parts),
    ) -> Self::Vector {
        self.add_product(self.add_product(sum, factors.0, parts.0), factors.1, parts.1)
    }
}

/// See [`Rows::combine`]; groups have up to `OUTPUTS` outputs, and of each `LANES` vectors are in registers, or `FEW` (not
/// more) if the outputs are 5 or 6.
///
/// To be called by a function compiled for the instructions: all of it becomes a part of that function. For the same
/// reason nothing here is a closure.
#[inline(always)]
pub(super) fn combine<V: Vectors, const OUTPUTS: usize, const LANES: usize, const FEW: usize>(
    vectors: V,
    rows: &Rows,
    inputs: &[&[u8]],
    outputs: &mut [&mut [u8]],
) {
    let Some(first) = inputs.first() else { return };
    if first.len() >= V::LEN * LANES {
        blocks::<V, OUTPUTS, LANES, FEW>(vectors, rows, inputs, outputs);
    } else if first.len() >= V::LEN {
        blocks::<V, OUTPUTS, 1, 1>(vectors, rows, inputs, outputs);
    } else {
        combine_few(rows, inputs, outputs);
    }
}

#[inline(always)]
fn blocks<V: Vectors, const OUTPUTS: usize, const LANES: usize, const FEW: usize>(
    vectors: V,
    rows: &Rows,
    inputs: &[&[u8]],
    outputs: &mut [&mut [u8]],
) {
    let len = inputs[0].len();
    // The first block also ends where vectors begin to be aligned, if shards are a multiple of them apart.
    let skew = inputs[0].as_ptr().align_offset(V::LEN).min(V::LEN);
    let (mut start, mut end) = (0, if skew > 0 { skew } else { BLOCK });
    while start < len {
        let mut rest = &mut outputs[..];
        for group in &rows.groups {
            let (now, behind) = rest.split_at_mut(group.outputs);
            let job = Job { inputs, start, end: end.min(len) };
            match group.outputs {
                1 => job.group::<V, 1, LANES>(vectors, group, now),
                2 if OUTPUTS >= 2 => job.group::<V, 2, LANES>(vectors, group, now),
                3 if OUTPUTS >= 3 => job.group::<V, 3, LANES>(vectors, group, now),
                4 if OUTPUTS >= 4 => job.group::<V, 4, LANES>(vectors, group, now),
                5 if OUTPUTS >= 5 => job.group::<V, 5, FEW>(vectors, group, now),
                6 if OUTPUTS >= 6 => job.group::<V, 6, FEW>(vectors, group, now),
                _ => unreachable!("groups have at most {OUTPUTS} outputs"),
            }
            rest = behind;
        }
        (start, end) = (end, end + BLOCK);
    }
}

/// A block of the inputs.
struct Job<'a> {
    inputs: &'a [&'a [u8]],
    start: usize,
    end: usize,
}

impl Job<'_> {
    /// Steps reach over the block's end if need be. One that would reach over the shard's begins earlier: the bytes that it
    /// makes a second time are the same.
    #[inline(always)]
    fn group<V: Vectors, const OUTPUTS: usize, const LANES: usize>(
        &self,
        vectors: V,
        group: &Group,
        outputs: &mut [&mut [u8]],
    ) {
        let step = V::LEN * LANES;
        let last = self.inputs[0].len() - step;
        let (coefficients, _) = group.coefficients.as_chunks::<OUTPUTS>();
        let mut next = self.start;
        while next < self.end {
            let at = next.min(last);
            let mut sums = [[vectors.zero(); LANES]; OUTPUTS];
            let (mut inputs, mut factors) = (self.inputs, coefficients);
            if V::TWO {
                let (input_pairs, input_last) = inputs.as_chunks::<2>();
                let (factor_pairs, factor_last) = factors.as_chunks::<2>();
                for ([one, other], [one_factors, other_factors]) in input_pairs.iter().zip(factor_pairs) {
                    let one: [_; LANES] = load(vectors, one, at);
                    let other: [_; LANES] = load(vectors, other, at);
                    for ((sums, &factor), &other_factor) in sums.iter_mut().zip(one_factors).zip(other_factors) {
                        let factors = (vectors.factor(factor), vectors.factor(other_factor));
                        for ((sum, &part), &other_part) in sums.iter_mut().zip(&one).zip(&other) {
                            *sum = vectors.add_two(*sum, factors, (part, other_part));
                        }
                    }
                }
                (inputs, factors) = (input_last, factor_last);
            }
            for (input, factors) in inputs.iter().zip(factors) {
                let parts: [_; LANES] = load(vectors, input, at);
                for (sums, &factor) in sums.iter_mut().zip(factors) {
                    let factor = vectors.factor(factor);
                    for (sum, &part) in sums.iter_mut().zip(&parts) {
                        *sum = vectors.add_product(*sum, factor, part);
                    }
                }
            }
            for (output, sums) in outputs.iter_mut().zip(&sums) {
                let bytes = &mut output[at..at + step];
                for (&sum, bytes) in sums.iter().zip(bytes.chunks_exact_mut(V::LEN)) {
                    vectors.store(sum, bytes);
                }
            }
            next += step;
        }
    }
}

/// Vectors of an input.
#[inline(always)]
fn load<V: Vectors, const LANES: usize>(vectors: V, input: &[u8], at: usize) -> [V::Parts; LANES] {
    let step = V::LEN * LANES;
    let bytes = &input[at..at + step];
    let mut parts = [vectors.parts(vectors.zero()); LANES];
    for (part, bytes) in parts.iter_mut().zip(bytes.chunks_exact(V::LEN)) {
        *part = vectors.parts(vectors.load(bytes));
    }
    parts
}
