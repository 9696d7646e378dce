//! AVX2: shuffles look up the products of 32 half bytes at once.
#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_loadu_si256, _mm256_set1_epi8,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_srli_epi64, _mm256_storeu_si256, _mm256_xor_si256,
};

use super::Rows;
use super::factors::HALVES;
use super::fused::{self, Vectors};

/// Outputs at once, of 2 vectors each: 8 of 16 registers, 4 for an input, the rest for products on their way.
pub(super) const OUTPUTS: usize = 4;
const LANES: usize = 2;

/// Proof that this processor has the instructions; only [`detect`](Self::detect) makes one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }

    /// See [`Rows::combine`].
    pub(super) fn combine(self, rows: &Rows, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
        // SAFETY: `self` is the proof that this processor has them.
        unsafe { combine(self, rows, inputs, outputs) }
    }
}

#[target_feature(enable = "avx2")]
fn combine(vectors: Avx2, rows: &Rows, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
    fused::combine::<Avx2, OUTPUTS, LANES, LANES>(vectors, rows, inputs, outputs);
}

/// The low halves of all bytes, and the high ones; or the tables for them.
type Pair = (__m256i, __m256i);

impl Vectors for Avx2 {
    const LEN: usize = 32;
    type Vector = __m256i;
    type Parts = Pair;
    type Factor = Pair;

    #[inline(always)]
    fn zero(self) -> __m256i {
        // SAFETY: `self` is the proof that this processor has it.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    fn load(self, bytes: &[u8]) -> __m256i {
        let bytes = &bytes[..Self::LEN];
        // SAFETY: `self` is the proof that this processor has it; the slice has the 32 bytes, of any alignment.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, vector: __m256i, bytes: &mut [u8]) {
        let bytes = &mut bytes[..Self::LEN];
        // SAFETY: `self` is the proof that this processor has it; the slice has the 32 bytes, of any alignment.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), vector) }
    }

    #[inline(always)]
    fn parts(self, vector: __m256i) -> Pair {
        // SAFETY: `self` is the proof that this processor has them.
        unsafe {
            let half = _mm256_set1_epi8(15);
            (_mm256_and_si256(vector, half), _mm256_and_si256(_mm256_srli_epi64::<4>(vector), half))
        }
    }

    #[inline(always)]
    fn factor(self, coefficient: u8) -> Pair {
        let halves = &HALVES[usize::from(coefficient)];
        // SAFETY: `self` is the proof that this processor has them; both tables have 16 bytes.
        unsafe {
            (
                _mm256_broadcastsi128_si256(_mm_loadu_si128(halves.low.as_ptr().cast())),
                _mm256_broadcastsi128_si256(_mm_loadu_si128(halves.high.as_ptr().cast())),
            )
        }
    }

    #[inline(always)]
    fn add_product(self, sum: __m256i, factor: Pair, parts: Pair) -> __m256i {
        // SAFETY: `self` is the proof that this processor has them.
        unsafe {
            let low = _mm256_shuffle_epi8(factor.0, parts.0);
            let high = _mm256_shuffle_epi8(factor.1, parts.1);
            _mm256_xor_si256(_mm256_xor_si256(sum, low), high)
        }
    }
}
