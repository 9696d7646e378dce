//! What a processor multiplies with, for each of the 256 coefficients: bit matrices and tables of halves, made by the
//! compiler. They are small enough to stay in the first-level cache, so nothing is prepared for a code or a call.

/// What doubling adds when the highest bit falls out: the field's polynomial 0x11D without its highest term.
pub(super) const REDUCTION: u8 = 0x1d;

/// For each coefficient the matrix over GF(2) that multiplies a byte with it, as `GF2P8AFFINEQB` takes one: its byte
/// `7 - i` says which bits of the factor make bit i of the product. (`GF2P8MULB` knows only another polynomial.)
#[cfg(any(target_arch = "x86_64", test))]
pub(super) static MATRICES: [u64; 256] = {
    let mut matrices = [0; 256];
    let mut coefficient = 0;
    while coefficient < 256 {
        let (mut matrix, mut bit, mut product) = (0u64, 0, coefficient as u8);
        // `product` is the coefficient's product with the byte whose only bit is `bit`: the matrix's column.
        while bit < 8 {
            let mut place = 0;
            while place < 8 {
                if product >> place & 1 == 1 {
                    matrix |= 1 << ((7 - place) * 8 + bit);
                }
                place += 1;
            }
            product = double(product);
            bit += 1;
        }
        matrices[coefficient] = matrix;
        coefficient += 1;
    }
    matrices
};

/// For each coefficient its tables of halves: a byte's product is the sum of the products of its two halves, and
/// instructions that shuffle bytes look up 16 or more of them at once.
pub(super) static HALVES: [Halves; 256] = {
    let mut tables = [Halves { low: [0; 16], high: [0; 16] }; 256];
    let mut coefficient = 0;
    while coefficient < 256 {
        let mut half = 0;
        while half < 16 {
            tables[coefficient].low[half] = product(coefficient as u8, half as u8);
            tables[coefficient].high[half] = product(coefficient as u8, (half as u8) << 4);
            half += 1;
        }
        coefficient += 1;
    }
    tables
};

/// One coefficient's tables, within one line of the cache.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct Halves {
    /// The products with 0 to 15.
    pub(super) low: [u8; 16],
    /// The products with 0, 16, 32 and so on up to 240.
    pub(super) high: [u8; 16],
}

const fn double(byte: u8) -> u8 {
    (byte << 1) ^ if byte & 0x80 == 0 { 0 } else { REDUCTION }
}

const fn product(coefficient: u8, byte: u8) -> u8 {
    let (mut sum, mut power, mut rest) = (0, coefficient, byte);
    while rest > 0 {
        if rest & 1 == 1 {
            sum ^= power;
        }
        power = double(power);
        rest >>= 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use reed_solomon_erasure::galois_8;

    use super::{HALVES, MATRICES};

    #[test]
    fn every_product_is_the_crates() {
        for coefficient in 0..=255u8 {
            for byte in 0..=255u8 {
                let expected = galois_8::mul(coefficient, byte);
                let halves = &HALVES[usize::from(coefficient)];
                assert_eq!(halves.low[usize::from(byte & 15)] ^ halves.high[usize::from(byte >> 4)], expected);
                let rows = MATRICES[usize::from(coefficient)].to_be_bytes();
                let bits = rows.iter().enumerate().map(|(bit, row)| (((row & byte).count_ones() & 1) as u8) << bit);
                assert_eq!(bits.sum::<u8>(), expected);
            }
        }
    }
}
