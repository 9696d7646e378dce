//! The BLAKE3 tree of a shard, cut at blocks of 64 KiB: what lets a reader check any block of a shard on its own.
//!
//! The values are those that BLAKE3 itself computes inside, so they add up to the plain BLAKE3 hash of the shard, which
//! its stripe's header holds. Layout: FORMAT.md, "Block tree". Values from outside prove nothing until
//! [`BlockTree::verify`] has tied them to that hash.

use std::ops::Range;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::id::Digest;

/// Bytes of a block; the last one of a shard may be shorter.
pub const BLOCK_LEN: usize = 64 << 10;

/// Bytes of a block's chaining value.
pub const VALUE_LEN: usize = blake3::OUT_LEN;

/// Why values from outside are not the block tree of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockTreeError {
    /// Not 32 bytes for each block of a shard of this length.
    #[error("{found} bytes of chaining values, {needed} expected")]
    Length {
        /// Bytes given.
        found: usize,
        /// Bytes that the shard's length asks for.
        needed: u64,
    },
    /// The values do not add up to the shard's hash.
    #[error("the chaining values do not add up to the shard's hash")]
    Root,
}

/// A block's bytes are not those that its shard was hashed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("block {block} of the shard does not match its hash")]
pub struct BlockMismatch {
    /// The first block that does not match, counted from 0.
    pub block: u64,
}

/// The chaining values of a shard's blocks, in order.
///
/// A shard of more than one block has a BLAKE3 chaining value per block. A shard of one block or less has one value,
/// its plain BLAKE3 hash, since nothing stands above that block in the tree.
#[derive(Clone, PartialEq, Eq)]
pub struct BlockTree {
    shard_len: u64,
    values: Vec<ChainingValue>,
}

/// Blocks of a shard of `shard_len` bytes; at least one.
#[must_use]
pub fn block_count(shard_len: u64) -> u64 {
    shard_len.div_ceil(BLOCK_LEN as u64).max(1)
}

/// The range of whole blocks that covers `len` bytes from `offset`, cut off at the shard's end.
///
/// Empty, and at a block's start, if `len` is 0; empty at the shard's end if `offset` lies behind it.
#[must_use]
pub fn widen(offset: u64, len: u64, shard_len: u64) -> Range<u64> {
    let block = BLOCK_LEN as u64;
    if offset >= shard_len {
        return shard_len..shard_len;
    }
    let start = offset / block * block;
    if len == 0 {
        return start..start;
    }
    let end = offset.saturating_add(len).min(shard_len).div_ceil(block).saturating_mul(block).min(shard_len);
    start..end
}

/// The tree of a whole shard; its [`root`](BlockTree::root) is the shard's hash. Hashes every byte once.
#[must_use]
pub fn chaining_values(shard: &[u8]) -> BlockTree {
    let mut builder = TreeBuilder::new(shard.len() as u64);
    shard.chunks(BLOCK_LEN).for_each(|block| builder.push(block));
    builder.finish()
}

/// Makes the tree of a shard whose blocks come one by one, in order.
#[derive(Debug, Clone)]
pub struct TreeBuilder {
    shard_len: u64,
    values: Vec<ChainingValue>,
}

impl TreeBuilder {
    /// For a shard of `shard_len` bytes.
    #[must_use]
    pub fn new(shard_len: u64) -> Self {
        Self { shard_len, values: Vec::new() }
    }

    /// Takes the next block: [`BLOCK_LEN`] bytes, the shard's last one less.
    pub fn push(&mut self, block: &[u8]) {
        let alone = block_count(self.shard_len) == 1;
        self.values.push(block_value(self.values.len() as u64, block, alone));
    }

    /// The tree, once all blocks were taken. Of too few or too many it fits no shard.
    #[must_use]
    pub fn finish(mut self) -> BlockTree {
        if self.shard_len == 0 && self.values.is_empty() {
            self.push(&[]);
        }
        BlockTree { shard_len: self.shard_len, values: self.values }
    }
}

/// The hash of a whole shard and its tree together. Hashes every byte once.
#[must_use]
pub fn hash_shard(shard: &[u8]) -> (Digest, BlockTree) {
    let tree = chaining_values(shard);
    (tree.root(), tree)
}

fn block_value(index: u64, bytes: &[u8], alone: bool) -> ChainingValue {
    if alone {
        return *blake3::hash(bytes).as_bytes();
    }
    blake3::Hasher::new().set_input_offset(index * BLOCK_LEN as u64).update(bytes).finalize_non_root()
}

impl BlockTree {
    /// The tree of a shard of `shard_len` bytes from its encoding. It is not tied to any hash until
    /// [`verify`](Self::verify) is.
    pub fn from_bytes(bytes: &[u8], shard_len: u64) -> Result<BlockTree, BlockTreeError> {
        let needed = block_count(shard_len).saturating_mul(VALUE_LEN as u64);
        if bytes.len() as u64 != needed {
            return Err(BlockTreeError::Length { found: bytes.len(), needed });
        }
        let values = bytes.as_chunks::<VALUE_LEN>().0.to_vec();
        Ok(BlockTree { shard_len, values })
    }

    /// The values one after the other, 32 bytes each.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.values.as_flattened()
    }

    /// Bytes of the shard.
    #[must_use]
    pub fn shard_len(&self) -> u64 {
        self.shard_len
    }

    /// The BLAKE3 hash of the whole shard that the values add up to.
    #[must_use]
    pub fn root(&self) -> Digest {
        let mut layer = self.values.clone();
        // BLAKE3's left subtrees are the largest full ones. Pairing neighbours layer by layer, the odd one out moving
        // up, builds exactly these.
        while layer.len() > 2 {
            layer = layer
                .chunks(2)
                .map(|pair| match pair {
                    [left, right] => merge_subtrees_non_root(left, right, Mode::Hash),
                    single => single[0],
                })
                .collect();
        }
        match &layer[..] {
            [left, right] => Digest(*merge_subtrees_root(left, right, Mode::Hash).as_bytes()),
            single => Digest(single[0]),
        }
    }

    /// Checks that the values add up to `root`, the shard's hash in its stripe's header.
    pub fn verify(&self, root: &Digest) -> Result<(), BlockTreeError> {
        if self.root() == *root { Ok(()) } else { Err(BlockTreeError::Root) }
    }

    /// Checks one block of the shard; of the wrong length or behind the shard's end it does not match.
    pub fn check_block(&self, index: u64, bytes: &[u8]) -> Result<(), BlockMismatch> {
        let mismatch = BlockMismatch { block: index };
        let position = usize::try_from(index).map_err(|_| mismatch)?;
        let value = self.values.get(position).ok_or(mismatch)?;
        let expected_len = (self.shard_len - index * BLOCK_LEN as u64).min(BLOCK_LEN as u64);
        if bytes.len() as u64 != expected_len || block_value(index, bytes, self.values.len() == 1) != *value {
            return Err(mismatch);
        }
        Ok(())
    }

    /// Checks whole blocks from `offset` on, as [`widen`] gives them. An offset inside a block does not match.
    pub fn check_range(&self, offset: u64, bytes: &[u8]) -> Result<(), BlockMismatch> {
        let first = offset / BLOCK_LEN as u64;
        if !offset.is_multiple_of(BLOCK_LEN as u64) {
            return Err(BlockMismatch { block: first });
        }
        bytes.chunks(BLOCK_LEN).zip(first..).try_for_each(|(block, index)| self.check_block(index, block))
    }
}

impl std::fmt::Debug for BlockTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockTree({} bytes, {} blocks)", self.shard_len, self.values.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Around BLAKE3's own chunks and around up to 9 blocks.
    fn lengths() -> impl Strategy<Value = usize> {
        let near_block = (0..10usize, 0..3usize).prop_map(|(blocks, by)| (blocks * BLOCK_LEN + by).saturating_sub(1));
        prop_oneof![0..3000usize, near_block, 0..9 * BLOCK_LEN]
    }

    proptest! {
        #[test]
        fn the_root_is_the_plain_hash_and_blocks_hold(len in lengths(), flip in any::<usize>()) {
            let mut shard = noise(len);
            let (root, tree) = hash_shard(&shard);
            prop_assert_eq!(root, Digest::of(&shard));
            prop_assert_eq!(tree.verify(&root), Ok(()));
            prop_assert_eq!(tree.as_bytes().len() as u64, block_count(len as u64) * VALUE_LEN as u64);
            let read = BlockTree::from_bytes(tree.as_bytes(), len as u64);
            prop_assert_eq!(read.as_ref(), Ok(&tree));
            prop_assert_eq!(tree.check_range(0, &shard), Ok(()));

            if len > 0 {
                let position = flip % len;
                shard[position] ^= 1 << (flip % 8);
                let block = (position / BLOCK_LEN) as u64;
                prop_assert_eq!(tree.check_range(0, &shard), Err(BlockMismatch { block }));
                for (bytes, index) in shard.chunks(BLOCK_LEN).zip(0..) {
                    prop_assert_eq!(tree.check_block(index, bytes).is_ok(), index != block);
                }
            }
        }

        #[test]
        fn a_changed_value_does_not_verify(len in lengths(), flip in any::<usize>()) {
            let (root, tree) = hash_shard(&noise(len));
            let mut bytes = tree.as_bytes().to_vec();
            let position = flip % bytes.len();
            bytes[position] ^= 1 << (flip % 8);
            let changed = BlockTree::from_bytes(&bytes, len as u64);
            prop_assert_eq!(changed.and_then(|tree| tree.verify(&root)), Err(BlockTreeError::Root));
        }

        #[test]
        fn widened_ranges_cover_and_are_whole_blocks(
            offset in 0..400_000u64, len in 0..400_000u64, shard_len in 0..400_000u64,
        ) {
            let range = widen(offset, len, shard_len);
            prop_assert!(range.start <= range.end && range.end <= shard_len);
            let block = BLOCK_LEN as u64;
            prop_assert!(range.start.is_multiple_of(block) || range.start == shard_len);
            prop_assert!(range.end.is_multiple_of(block) || range.end == shard_len);
            if offset < shard_len && len > 0 {
                prop_assert!(range.start <= offset && range.end >= (offset + len).min(shard_len));
                prop_assert!(offset - range.start < block && range.end - (offset + len).min(shard_len) < block);
            } else {
                prop_assert!(range.is_empty());
            }
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let tree = chaining_values(&noise(3 * BLOCK_LEN));
        for wrong in [0, 1, 2 * BLOCK_LEN as u64, 3 * BLOCK_LEN as u64 + 1, u64::MAX] {
            let refused = BlockTree::from_bytes(tree.as_bytes(), wrong);
            assert!(matches!(refused, Err(BlockTreeError::Length { found: 96, .. })), "{wrong}");
        }
        let block = noise(BLOCK_LEN);
        assert_eq!(tree.check_block(0, &block), Ok(()));
        assert_eq!(tree.check_block(0, &block[1..]), Err(BlockMismatch { block: 0 }));
        assert_eq!(tree.check_block(3, &block), Err(BlockMismatch { block: 3 }));
        assert_eq!(tree.check_block(u64::MAX, &block), Err(BlockMismatch { block: u64::MAX }));
        assert_eq!(tree.check_range(1, &block), Err(BlockMismatch { block: 0 }));
        assert_eq!(widen(u64::MAX, u64::MAX, 100), 100..100);
        assert_eq!(widen(1, u64::MAX, 100), 0..100);
    }

    #[test]
    fn a_single_block_is_not_a_chaining_value() {
        let shard = noise(BLOCK_LEN);
        assert_eq!(chaining_values(&shard).as_bytes(), Digest::of(&shard).as_bytes());
        assert_eq!(chaining_values(&[]).as_bytes(), Digest::of(&[]).as_bytes());
    }
}
