//! Content-defined chunking: where a stream of plaintext is cut.
//!
//! FastCDC (Xia et al. 2020, as the crate `fastcdc` has it) with a gear table that derives from the vault's seed, so
//! that the lengths of chunks tell a stranger nothing about known files. Cuts depend on seed and content alone, never
//! on how the bytes came in. Parameters: FORMAT.md, "Cuts".

use fastcdc::v2020::{Normalization, cut_gear, select_masks};

/// Shortest chunk but the last, in bytes: 256 KiB.
pub const CHUNK_MIN: usize = 256 << 10;

/// Where cuts begin to be more likely, in bytes: 512 KiB.
pub const CHUNK_AVG: usize = 512 << 10;

/// Longest chunk, in bytes: 2 MiB.
pub const CHUNK_MAX: usize = 2 << 20;

const GEAR_LEN: usize = 256;

/// Says where to cut. It remembers nothing of what it has seen.
pub struct Chunker {
    gear: Box<[u64; GEAR_LEN]>,
    gear_shifted: Box<[u64; GEAR_LEN]>,
    mask_small: u64,
    mask_large: u64,
}

impl Chunker {
    /// A chunker for the vault with this seed ([`super::keys::VaultKeys::chunking_seed`]).
    #[must_use]
    pub fn new(seed: &[u8; 32]) -> Self {
        let mut stream = blake3::Hasher::new_keyed(seed).update(b"gear").finalize_xof();
        let mut gear = Box::new([0u64; GEAR_LEN]);
        for value in gear.iter_mut() {
            let mut bytes = [0; 8];
            stream.fill(&mut bytes);
            *value = u64::from_le_bytes(bytes);
        }
        let gear_shifted = Box::new(gear.map(|value| value << 1));
        let (mask_small, mask_large) = select_masks(CHUNK_AVG, Normalization::Level1);
        Self { gear, gear_shifted, mask_small, mask_large }
    }

    /// Length of the chunk at the beginning of `ahead`, the bytes of the stream behind the last cut. `None` while later
    /// bytes could move its end: with [`CHUNK_MAX`] bytes, or all that are left (`last`), none can; or if nothing is left.
    #[must_use]
    pub fn cut(&self, ahead: &[u8], last: bool) -> Option<usize> {
        if ahead.is_empty() || (ahead.len() < CHUNK_MAX && !last) {
            return None;
        }
        let (_, len) = cut_gear(
            ahead,
            CHUNK_MIN,
            CHUNK_AVG,
            CHUNK_MAX,
            self.mask_small,
            self.mask_large,
            self.mask_small << 1,
            self.mask_large << 1,
            &self.gear[..],
            &self.gear_shifted[..],
        );
        Some(len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop, prop_assert, prop_assert_eq, proptest};

    use super::{CHUNK_AVG, CHUNK_MAX, CHUNK_MIN, Chunker};

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// The chunks of a stream that comes in blocks of these lengths.
    fn cut<'d>(chunker: &Chunker, data: &'d [u8], blocks: &[usize]) -> Vec<&'d [u8]> {
        let (mut chunks, mut from, mut come) = (Vec::new(), 0, 0);
        for &block in blocks.iter().cycle() {
            come += block.min(data.len() - come);
            while let Some(len) = chunker.cut(&data[from..come], come == data.len()) {
                chunks.push(&data[from..from + len]);
                from += len;
            }
            if come == data.len() {
                break;
            }
        }
        chunks
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn cuts_do_not_depend_on_how_bytes_come_in(
            seed in any::<u64>(),
            len in 0usize..(9 << 20),
            blocks in prop::collection::vec(1usize..(3 << 20), 1..5),
        ) {
            let data = noise(seed, len);
            let chunker = Chunker::new(&[1; 32]);
            let whole = cut(&chunker, &data, &[len.max(1)]);
            prop_assert_eq!(&cut(&chunker, &data, &blocks), &whole);
            prop_assert_eq!(&whole.concat(), &data);
            for (index, chunk) in whole.iter().enumerate() {
                prop_assert!(chunk.len() <= CHUNK_MAX);
                prop_assert!(chunk.len() >= CHUNK_MIN || index + 1 == whole.len());
            }
        }
    }

    #[test]
    fn an_insertion_moves_few_cuts_and_another_seed_moves_all() {
        let data = noise(5, 24 << 20);
        let mut longer = data.clone();
        longer.splice(100..100, *b"inserted");
        let before = cut(&Chunker::new(&[1; 32]), &data, &[1 << 20]);
        let after = cut(&Chunker::new(&[1; 32]), &longer, &[1 << 20]);
        let kept = before.iter().filter(|chunk| after.contains(chunk)).count();
        assert!(kept + 3 >= before.len(), "{kept} of {}", before.len());
        let foreign = cut(&Chunker::new(&[2; 32]), &data, &[1 << 20]);
        assert!(!foreign[..foreign.len() - 1].iter().any(|chunk| before.contains(chunk)));
        let average = data.len() / before.len();
        assert!((CHUNK_AVG / 2..CHUNK_AVG * 2).contains(&average), "{average}");
    }

    /// Golden: another cut here would store everything a second time.
    #[test]
    fn cuts_stay_where_they_are() {
        let data = noise(0, 4 << 20);
        let chunks = cut(&Chunker::new(&[7; 32]), &data, &[1 << 20]);
        let lengths: Vec<usize> = chunks.iter().map(|chunk| chunk.len()).collect();
        assert_eq!(lengths, [1_106_148, 816_902, 499_706, 585_146, 382_703, 803_699]);
    }
}
