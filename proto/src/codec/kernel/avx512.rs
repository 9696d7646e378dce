//! GFNI with AVX-512: one instruction multiplies 64 bytes.
#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::{
    __m512i, _mm512_gf2p8affine_epi64_epi8, _mm512_loadu_si512, _mm512_set1_epi64, _mm512_setzero_si512,
    _mm512_storeu_si512, _mm512_ternarylogic_epi64, _mm512_xor_si512,
};

use super::Rows;
use super::factors::MATRICES;
use super::fused::{self, Vectors};

/// Outputs at once. With 4 vectors of 4 outputs, or 3 of 6, 16 or 18 of 32 registers are sums, and 8 or 6 hold two inputs.
pub(super) const OUTPUTS: usize = 6;
const LANES: usize = 4;
const FEW: usize = 3;

/// Proof that this processor has the instructions; only [`detect`](Self::detect) makes one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GfniAvx512(());

impl GfniAvx512 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("gfni")).then_some(Self(()))
    }

    /// See [`Rows::combine`].
    pub(super) fn combine(self, rows: &Rows, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
        // SAFETY: `self` is the proof that this processor has them.
        unsafe { combine(self, rows, inputs, outputs) }
    }
}

#[target_feature(enable = "avx512f,gfni")]
fn combine(vectors: GfniAvx512, rows: &Rows, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
    fused::combine::<GfniAvx512, OUTPUTS, LANES, FEW>(vectors, rows, inputs, outputs);
}

impl Vectors for GfniAvx512 {
    const LEN: usize = 64;
    type Vector = __m512i;
    type Parts = __m512i;
    type Factor = __m512i;

    #[inline(always)]
    fn zero(self) -> __m512i {
        // SAFETY: `self` is the proof that this processor has it.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn load(self, bytes: &[u8]) -> __m512i {
        let bytes = &bytes[..Self::LEN];
        // SAFETY: `self` is the proof that this processor has it; the slice has the 64 bytes, of any alignment.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, vector: __m512i, bytes: &mut [u8]) {
        let bytes = &mut bytes[..Self::LEN];
        // SAFETY: `self` is the proof that this processor has it; the slice has the 64 bytes, of any alignment.
        unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), vector) }
    }

    #[inline(always)]
    fn parts(self, vector: __m512i) -> __m512i {
        vector
    }

    #[inline(always)]
    fn factor(self, coefficient: u8) -> __m512i {
        // SAFETY: `self` is the proof that this processor has it.
        unsafe { _mm512_set1_epi64(MATRICES[usize::from(coefficient)].cast_signed()) }
    }

    #[inline(always)]
    fn add_product(self, sum: __m512i, factor: __m512i, parts: __m512i) -> __m512i {
        // SAFETY: `self` is the proof that this processor has them.
        unsafe { _mm512_xor_si512(sum, _mm512_gf2p8affine_epi64_epi8::<0>(parts, factor)) }
    }

    const TWO: bool = true;

    #[inline(always)]
    fn add_two(self, sum: __m512i, factors: (__m512i, __m512i), parts: (__m512i, __m512i)) -> __m512i {
        /// The truth table of the sum of three bits.
        const SUM: i32 = 0x96;
        // SAFETY: `self` is the proof that this processor has them.
        unsafe {
            let one = _mm512_gf2p8affine_epi64_epi8::<0>(parts.0, factors.0);
            let other = _mm512_gf2p8affine_epi64_epi8::<0>(parts.1, factors.1);
            _mm512_ternarylogic_epi64::<SUM>(sum, one, other)
        }
    }
}
