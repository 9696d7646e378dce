//! The processor's hint that memory will be needed.
#![expect(unsafe_code, reason = "the hint takes a pointer")]

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Asks for a line of the cache. Any address will do: one that cannot be read is ignored.
#[inline(always)]
pub(super) fn prefetch(address: *const u8) {
    // SAFETY: a hint, which reads nothing and never faults; every x86-64 processor has it.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}
