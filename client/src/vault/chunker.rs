//! Content-defined chunking: where a stream of plaintext is cut.
//!
//! FastCDC (Xia et al. 2020, as the crate `fastcdc` has it) with a gear table that derives from the vault's seed, so
//! that the lengths of chunks tell a stranger nothing about known files. Cuts depend on seed and content alone, never
//! on how the bytes came in. It buffers at most one chunk and what was added last. Parameters: FORMAT.md, "Cuts".

use bytes::BytesMut;
use fastcdc::v2020::{Normalization, cut_gear, select_masks};

/// Shortest chunk but the last, in bytes: 128 KiB.
pub const CHUNK_MIN: usize = 128 << 10;

/// Expected length of a chunk, in bytes: 512 KiB.
pub const CHUNK_AVG: usize = 512 << 10;

/// Longest chunk, in bytes: 2 MiB.
pub const CHUNK_MAX: usize = 2 << 20;

/// The buffer grows by this much, so that few cuts find their bytes at its end and have to move them.
const BUFFER: usize = 4 * CHUNK_MAX;

const GEAR_LEN: usize = 256;

/// Cuts one stream; reusable for the next after [`Chunker::finish`] has said `None`.
pub struct Chunker {
    gear: Box<[u64; GEAR_LEN]>,
    gear_shifted: Box<[u64; GEAR_LEN]>,
    mask_small: u64,
    mask_large: u64,
    buffer: BytesMut,
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
        Self { gear, gear_shifted, mask_small, mask_large, buffer: BytesMut::new() }
    }

    /// Where the next bytes of the stream go, with room for `len` at least. Take all chunks ([`Chunker::next_chunk`])
    /// before adding more: what is added stays in memory until then. What is there already is not to be touched.
    pub fn tail(&mut self, len: usize) -> &mut BytesMut {
        if self.buffer.capacity() - self.buffer.len() < len {
            self.buffer.reserve(len.max(BUFFER - BUFFER.min(self.buffer.len())));
        }
        &mut self.buffer
    }

    /// The next chunk whose end is certain; `None` until more is added.
    pub fn next_chunk(&mut self) -> Option<BytesMut> {
        // With this much at hand no later byte can move the cut.
        (self.buffer.len() >= CHUNK_MAX).then(|| self.cut())
    }

    /// After the last byte: the remaining chunks, one per call, then `None`.
    pub fn finish(&mut self) -> Option<BytesMut> {
        (!self.buffer.is_empty()).then(|| self.cut())
    }

    fn cut(&mut self) -> BytesMut {
        let (_, len) = cut_gear(
            &self.buffer,
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
        self.buffer.split_to(len)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::{ProptestConfig, any, prop, prop_assert, prop_assert_eq, proptest};

    use super::{CHUNK_AVG, CHUNK_MAX, CHUNK_MIN, Chunker};

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn cut(chunker: &mut Chunker, data: &[u8], blocks: &[usize]) -> Vec<BytesMut> {
        let (mut chunks, mut rest) = (Vec::new(), data);
        for &block in blocks.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (head, tail) = rest.split_at(block.min(rest.len()));
            chunker.tail(head.len()).extend_from_slice(head);
            rest = tail;
            while let Some(chunk) = chunker.next_chunk() {
                chunks.push(chunk);
            }
        }
        while let Some(chunk) = chunker.finish() {
            chunks.push(chunk);
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
            let mut chunker = Chunker::new(&[1; 32]);
            let whole = cut(&mut chunker, &data, &[len.max(1)]);
            prop_assert_eq!(&cut(&mut chunker, &data, &blocks), &whole);
            prop_assert_eq!(whole.concat(), data);
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
        let before = cut(&mut Chunker::new(&[1; 32]), &data, &[1 << 20]);
        let after = cut(&mut Chunker::new(&[1; 32]), &longer, &[1 << 20]);
        let kept = before.iter().filter(|chunk| after.contains(chunk)).count();
        assert!(kept + 3 >= before.len(), "{kept} of {}", before.len());
        let foreign = cut(&mut Chunker::new(&[2; 32]), &data, &[1 << 20]);
        assert!(!foreign[..foreign.len() - 1].iter().any(|chunk| before.contains(chunk)));
        let average = data.len() / before.len();
        assert!((CHUNK_AVG / 2..CHUNK_AVG * 2).contains(&average), "{average}");
    }

    /// Golden: another cut here would store everything a second time.
    #[test]
    fn cuts_stay_where_they_are() {
        let chunks = cut(&mut Chunker::new(&[7; 32]), &noise(0, 4 << 20), &[1 << 20]);
        let lengths: Vec<usize> = chunks.iter().map(BytesMut::len).collect();
        assert_eq!(lengths, [1_106_148, 816_902, 499_706, 585_146, 382_703, 803_699]);
    }
}
