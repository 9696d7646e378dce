//! The inner loops: sums of products of shards in GF(2^8), by the best instructions that the processor has.
//!
//! A [`Level`] is a set of instructions, found at run time; there is one only where this processor has them. All levels
//! give the same bytes. This file knows neither encoding nor rebuilding, and holds no `unsafe`: that is in one file for each
//! set of instructions.

mod factors;
mod fused;
mod portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod gfni_avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod ssse3;

use std::fmt;
use std::sync::OnceLock;

use portable::Terms;

/// Instructions that products are made with. Whoever codes gets the best of this machine; tests and benchmarks choose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(Kernel);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kernel {
    #[cfg(target_arch = "x86_64")]
    GfniAvx512(avx512::GfniAvx512),
    #[cfg(target_arch = "x86_64")]
    GfniAvx2(gfni_avx2::GfniAvx2),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Ssse3(ssse3::Ssse3),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
    Portable,
}

impl Level {
    /// The best one of this machine.
    #[must_use]
    pub fn best() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Level::all().first().copied().unwrap_or(Level(Kernel::Portable)))
    }

    /// Every one that this machine has, the best first; the last needs no special instructions.
    #[must_use]
    pub fn all() -> Vec<Level> {
        #[cfg(target_arch = "x86_64")]
        let special = [
            avx512::GfniAvx512::detect().map(Kernel::GfniAvx512),
            gfni_avx2::GfniAvx2::detect().map(Kernel::GfniAvx2),
            avx2::Avx2::detect().map(Kernel::Avx2),
            ssse3::Ssse3::detect().map(Kernel::Ssse3),
        ];
        #[cfg(target_arch = "aarch64")]
        let special = [neon::Neon::detect().map(Kernel::Neon)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let special: [Option<Kernel>; 0] = [];
        special.into_iter().flatten().chain([Kernel::Portable]).map(Level).collect()
    }

    /// Its name, e.g. `GFNI + AVX-512`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kernel::GfniAvx512(_) => "GFNI + AVX-512",
            #[cfg(target_arch = "x86_64")]
            Kernel::GfniAvx2(_) => "GFNI + AVX2",
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Kernel::Ssse3(_) => "SSSE3",
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon(_) => "NEON",
            Kernel::Portable => "portable",
        }
    }

    /// Outputs that are summed up at once: as many as there are registers for.
    fn outputs(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kernel::GfniAvx512(_) => avx512::OUTPUTS,
            #[cfg(target_arch = "x86_64")]
            Kernel::GfniAvx2(_) => gfni_avx2::OUTPUTS,
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2(_) => avx2::OUTPUTS,
            #[cfg(target_arch = "x86_64")]
            Kernel::Ssse3(_) => ssse3::OUTPUTS,
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon(_) => neon::OUTPUTS,
            Kernel::Portable => 1,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which multiples of which inputs make each output, arranged for a level's loop.
pub(super) struct Rows {
    level: Level,
    /// The coefficients, row by row.
    rows: Vec<Vec<u8>>,
    /// For loops with vectors: the rows in groups, and in each group the coefficients of the first input, then of the
    /// second, and so on.
    groups: Vec<Group>,
    /// For the portable loop.
    terms: Vec<Terms>,
}

/// Outputs that are summed up at once.
struct Group {
    outputs: usize,
    coefficients: Vec<u8>,
}

impl Rows {
    /// Each row has a coefficient for each input, and there is at least one input.
    pub(super) fn new<'a>(level: Level, rows: impl Iterator<Item = &'a [u8]>) -> Rows {
        let rows: Vec<Vec<u8>> = rows.map(<[u8]>::to_vec).collect();
        if level.0 == Kernel::Portable {
            let terms = rows.iter().map(|row| portable::terms(row)).collect();
            return Rows { level, rows, groups: Vec::new(), terms };
        }
        // Of nearly equal sizes: a loop for one output alone reads its inputs for little.
        let count = rows.len().div_ceil(level.outputs()).max(1);
        let (mut rest, mut groups) = (&rows[..], Vec::with_capacity(count));
        for left in (1..=count).rev() {
            let (group, behind) = rest.split_at(rest.len().div_ceil(left));
            let inputs = group.first().map_or(0, Vec::len);
            let coefficients = (0..inputs).flat_map(|input| group.iter().map(move |row| row[input])).collect();
            groups.push(Group { outputs: group.len(), coefficients });
            rest = behind;
        }
        Rows { level, rows, groups, terms: Vec::new() }
    }

    /// `outputs[r] = sum over c of rows[r][c] * inputs[c]`. All inputs and outputs have equal length, whatever it is and
    /// wherever they are.
    pub(super) fn combine(&self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
        if outputs.is_empty() {
            return;
        }
        match self.level.0 {
            #[cfg(target_arch = "x86_64")]
            Kernel::GfniAvx512(kernel) => kernel.combine(self, inputs, outputs),
            #[cfg(target_arch = "x86_64")]
            Kernel::GfniAvx2(kernel) => kernel.combine(self, inputs, outputs),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2(kernel) => kernel.combine(self, inputs, outputs),
            #[cfg(target_arch = "x86_64")]
            Kernel::Ssse3(kernel) => kernel.combine(self, inputs, outputs),
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon(kernel) => kernel.combine(self, inputs, outputs),
            Kernel::Portable => portable::combine(self, inputs, outputs),
        }
    }
}

#[cfg(test)]
mod tests;
