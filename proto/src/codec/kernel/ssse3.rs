//! SSSE3: shuffles look up the products of 16 half bytes at once.
#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::{
    __m128i, _mm_and_si128, _mm_loadu_si128, _mm_set1_epi8, _mm_setzero_si128, _mm_shuffle_epi8, _mm_srli_epi64,
    _mm_storeu_si128, _mm_xor_si128,
};

use super::Rows;
use super::factors::HALVES;
use super::fused::{self, Vectors};

/// Outputs at once, of 2 vectors each: 8 of 16 registers, 4 for an input, the rest for products on their way.
pub(super) const OUTPUTS: usize = 4;
const LANES: usize = 2;

/// Proof that this processor has the instructions; only [`detect`](Self::detect) makes one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ssse3(());

impl Ssse3 {
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("ssse3").then_some(Self(()))
    }

    /// See [`Rows::combine`].
    pub(super) fn combine(self, rows: &Rows, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
        // SAFETY: `self` is the proof that this processor has them.
        unsafe { combine(self, rows, inputs, outputs) }
    }
}

#[target_feature(enable = "ssse3")]
fn combine(vectors: Ssse3, rows: &Rows, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
    fused::combine::<Ssse3, OUTPUTS, LANES, LANES>(vectors, rows, inputs, outputs);
}

/// The low halves of all bytes, and the high ones; or the tables for them.
type Pair = (__m128i, __m128i);

impl Vectors for Ssse3 {
    const LEN: usize = 16;
    type Vector = __m128i;
    type Parts = Pair;
    type Factor = Pair;

    #[inline(always)]
    fn zero(self) -> __m128i {
        // SAFETY: `self` is the proof that this processor has it.
        unsafe { _mm_setzero_si128() }
    }

    #[inline(always)]
    fn load(self, bytes: &[u8]) -> __m128i {
        let bytes = &bytes[..Self::LEN];
        // SAFETY: `self` is the proof that this processor has it; the slice has the 16 bytes, of any alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, vector: __m128i, bytes: &mut [u8]) {
        let bytes = &mut bytes[..Self::LEN];
        // SAFETY: `self` is the proof that this processor has it; the slice has the 16 bytes, of any alignment.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), vector) }
    }

    #[inline(always)]
    fn parts(self, vector: __m128i) -> Pair {
        // SAFETY: `self` is the proof that this processor has them.
        unsafe {
            let half = _mm_set1_epi8(15);
            (_mm_and_si128(vector, half), _mm_and_si128(_mm_srli_epi64::<4>(vector), half))
        }
    }

    #[inline(always)]
    fn factor(self, coefficient: u8) -> Pair {
        let halves = &HALVES[usize::from(coefficient)];
        // SAFETY: `self` is the proof that this processor has them; both tables have 16 bytes.
        unsafe { (_mm_loadu_si128(halves.low.as_ptr().cast()), _mm_loadu_si128(halves.high.as_ptr().cast())) }
    }

    #[inline(always)]
    fn add_product(self, sum: __m128i, factor: Pair, parts: Pair) -> __m128i {
        // SAFETY: `self` is the proof that this processor has them.
        unsafe {
            let low = _mm_shuffle_epi8(factor.0, parts.0);
            let high = _mm_shuffle_epi8(factor.1, parts.1);
            _mm_xor_si128(_mm_xor_si128(sum, low), high)
        }
    }
}
