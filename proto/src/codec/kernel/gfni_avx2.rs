//! GFNI with AVX2: one instruction multiplies 32 bytes.
#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::{
    __m256i, _mm256_gf2p8affine_epi64_epi8, _mm256_loadu_si256, _mm256_set1_epi64x, _mm256_setzero_si256,
    _mm256_storeu_si256, _mm256_xor_si256,
};

use super::Rows;
use super::factors::MATRICES;
use super::fused::{self, Vectors};

/// Outputs at once, of 2 vectors each: 8 of 16 registers, 2 for an input, the rest for products on their way.
pub(super) const OUTPUTS: usize = 4;
const LANES: usize = 2;

/// Proof that this processor has the instructions; only [`detect`](Self::detect) makes one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GfniAvx2(());

impl GfniAvx2 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("gfni")).then_some(Self(()))
    }

    /// See [`Rows::combine`].
    pub(super) fn combine(self, rows: &Rows, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
        // SAFETY: `self` is the proof that this processor has them.
        unsafe { combine(self, rows, inputs, outputs) }
    }
}

#[target_feature(enable = "avx2,gfni")]
fn combine(vectors: GfniAvx2, rows: &Rows, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
    fused::combine::<GfniAvx2, OUTPUTS, LANES, LANES>(vectors, rows, inputs, outputs);
}

impl Vectors for GfniAvx2 {
    const LEN: usize = 32;
    type Vector = __m256i;
    type Parts = __m256i;
    type Factor = __m256i;

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
    fn parts(self, vector: __m256i) -> __m256i {
        vector
    }

    #[inline(always)]
    fn factor(self, coefficient: u8) -> __m256i {
        // SAFETY: `self` is the proof that this processor has it.
        unsafe { _mm256_set1_epi64x(MATRICES[usize::from(coefficient)].cast_signed()) }
    }

    #[inline(always)]
    fn add_product(self, sum: __m256i, factor: __m256i, parts: __m256i) -> __m256i {
        // SAFETY: `self` is the proof that this processor has them.
        unsafe { _mm256_xor_si256(sum, _mm256_gf2p8affine_epi64_epi8::<0>(parts, factor)) }
    }
}
