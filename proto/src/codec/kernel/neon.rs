//! NEON: table instructions look up the products of 16 half bytes at once.
#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::aarch64::{uint8x16_t, vandq_u8, vdupq_n_u8, veorq_u8, vld1q_u8, vqtbl1q_u8, vshrq_n_u8, vst1q_u8};

use super::Rows;
use super::factors::HALVES;
use super::fused::{self, Vectors};

/// Outputs at once, of 4 vectors each: 16 of 32 registers, 8 for an input, the rest for tables and products on their way.
pub(super) const OUTPUTS: usize = 4;
const LANES: usize = 4;

/// Proof that this processor has the instructions; only [`detect`](Self::detect) makes one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    /// See [`Rows::combine`].
    pub(super) fn combine(self, rows: &Rows, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
        // SAFETY: `self` is the proof that this processor has them.
        unsafe { combine(self, rows, inputs, outputs) }
    }
}

#[target_feature(enable = "neon")]
fn combine(vectors: Neon, rows: &Rows, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
    fused::combine::<Neon, OUTPUTS, LANES, LANES>(vectors, rows, inputs, outputs);
}

/// The low halves of all bytes, and the high ones; or the tables for them.
type Pair = (uint8x16_t, uint8x16_t);

impl Vectors for Neon {
    const LEN: usize = 16;
    type Vector = uint8x16_t;
    type Parts = Pair;
    type Factor = Pair;

    #[inline(always)]
    fn zero(self) -> uint8x16_t {
        // SAFETY: `self` is the proof that this processor has it.
        unsafe { vdupq_n_u8(0) }
    }

    #[inline(always)]
    fn load(self, bytes: &[u8]) -> uint8x16_t {
        let bytes = &bytes[..Self::LEN];
        // SAFETY: `self` is the proof that this processor has it; the slice has the 16 bytes, of any alignment.
        unsafe { vld1q_u8(bytes.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, vector: uint8x16_t, bytes: &mut [u8]) {
        let bytes = &mut bytes[..Self::LEN];
        // SAFETY: `self` is the proof that this processor has it; the slice has the 16 bytes, of any alignment.
        unsafe { vst1q_u8(bytes.as_mut_ptr(), vector) }
    }

    #[inline(always)]
    fn parts(self, vector: uint8x16_t) -> Pair {
        // SAFETY: `self` is the proof that this processor has them.
        unsafe { (vandq_u8(vector, vdupq_n_u8(15)), vshrq_n_u8::<4>(vector)) }
    }

    #[inline(always)]
    fn factor(self, coefficient: u8) -> Pair {
        let halves = &HALVES[usize::from(coefficient)];
        // SAFETY: `self` is the proof that this processor has them; both tables have 16 bytes.
        unsafe { (vld1q_u8(halves.low.as_ptr()), vld1q_u8(halves.high.as_ptr())) }
    }

    #[inline(always)]
    fn add_product(self, sum: uint8x16_t, factor: Pair, parts: Pair) -> uint8x16_t {
        // SAFETY: `self` is the proof that this processor has them.
        unsafe {
            let low = vqtbl1q_u8(factor.0, parts.0);
            let high = vqtbl1q_u8(factor.1, parts.1);
            veorq_u8(veorq_u8(sum, low), high)
        }
    }
}
