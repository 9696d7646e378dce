//! The erasure code: systematic Reed-Solomon over GF(2^8), as the crate reed-solomon-erasure defines it.
//!
//! Parity from data, and any wanted shards from any k others. The code works byte by byte, so both take equal ranges of
//! the shards as well as whole ones. Nothing here hashes or knows a stripe: whether a shard is what its header says is
//! for the caller to check, before and after.

mod kernel;
mod plan;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::stripe::{SHARDS_LIMIT, Scheme};
pub use kernel::Level;
use plan::Planner;

/// Codecs kept for further use. A cluster uses a few schemes; the crate's own cache makes one cost up to 4 MiB.
const CODECS_LIMIT: usize = 8;

static CODECS: Mutex<BTreeMap<(Level, Scheme), Arc<Planner>>> = Mutex::new(BTreeMap::new());

/// Why shards could not be coded. Outputs are not to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The data do not divide into k shards of equal length.
    #[error("{len} bytes of data do not divide into {k} shards")]
    DataLength {
        /// Bytes given.
        len: usize,
        /// Data shards of the scheme.
        k: usize,
    },
    /// The room for parity is not m shards of the data shards' length.
    #[error("room for {found} bytes of parity, {needed} needed")]
    ParityLength {
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// Fewer than k different shards were given.
    #[error("{present} shards given, {needed} needed")]
    TooFew {
        /// Different shards given.
        present: usize,
        /// Data shards of the scheme.
        needed: usize,
    },
    /// The shards given have different lengths.
    #[error("shards of {0} and of {1} bytes")]
    Unequal(usize, usize),
    /// An index is n or more.
    #[error("index {index} in a stripe of {n} shards")]
    OutOfRange {
        /// The index.
        index: usize,
        /// All shards of the scheme.
        n: usize,
    },
    /// An index was given twice.
    #[error("index {0} twice")]
    Duplicate(usize),
    /// The room for what is wanted is not one buffer for each.
    #[error("{found} buffers for {needed} shards")]
    Room {
        /// Buffers given.
        found: usize,
        /// Shards wanted.
        needed: usize,
    },
}

/// Encodes and rebuilds stripes of one scheme. Clones share everything.
#[derive(Clone)]
pub struct Codec {
    scheme: Scheme,
    planner: Arc<Planner>,
}

impl Codec {
    /// The codec of `scheme`, shared with all others of this scheme in the process while it is in use.
    #[must_use]
    pub fn new(scheme: Scheme) -> Codec {
        Codec::at(scheme, Level::best())
    }

    /// The same with instructions that a test or a benchmark chose. The bytes are the same with all of them.
    #[must_use]
    pub fn at(scheme: Scheme, level: Level) -> Codec {
        let mut codecs = CODECS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(planner) = codecs.get(&(level, scheme)) {
            return Codec { scheme, planner: planner.clone() };
        }
        if codecs.len() >= CODECS_LIMIT {
            codecs.pop_first();
        }
        let planner = Arc::new(Planner::new(scheme, level));
        codecs.insert((level, scheme), planner.clone());
        Codec { scheme, planner }
    }

    /// The scheme that it codes.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Writes the m parity shards of `data` over `parity`. Both hold their shards, all of equal length, one after the other.
    pub fn encode(&self, data: &[u8], parity: &mut [u8]) -> Result<(), CodecError> {
        self.encode_stepwise(data, parity, usize::MAX, |_, _| {})
    }

    /// Like [`encode`](Self::encode), `step` bytes (at least one) of each shard at a time: after each step `seen` gets every
    /// shard's index and these bytes of it, while they are in the processor's cache.
    pub fn encode_stepwise(
        &self,
        data: &[u8],
        parity: &mut [u8],
        step: usize,
        mut seen: impl FnMut(usize, &[u8]),
    ) -> Result<(), CodecError> {
        let (k, m) = (self.scheme.k(), self.scheme.m());
        if !data.len().is_multiple_of(k) {
            return Err(CodecError::DataLength { len: data.len(), k });
        }
        let shard_len = data.len() / k;
        if parity.len() != m * shard_len {
            return Err(CodecError::ParityLength { found: parity.len(), needed: m * shard_len });
        }
        if shard_len == 0 {
            return Ok(());
        }
        let step = step.clamp(1, shard_len);
        let mut inputs: Vec<_> = data.chunks_exact(shard_len).map(|shard| shard.chunks(step)).collect();
        let mut outputs: Vec<_> = parity.chunks_exact_mut(shard_len).map(|shard| shard.chunks_mut(step)).collect();
        for _ in 0..shard_len.div_ceil(step) {
            let inputs: Vec<&[u8]> = inputs.iter_mut().filter_map(Iterator::next).collect();
            let mut outputs: Vec<&mut [u8]> = outputs.iter_mut().filter_map(Iterator::next).collect();
            self.planner.parity_rows().combine(&inputs, &mut outputs);
            let pieces = inputs.iter().copied().chain(outputs.iter().map(|output| &output[..]));
            pieces.enumerate().for_each(|(index, piece)| seen(index, piece));
        }
        Ok(())
    }

    /// The shards with the `wanted` indices, in that order, from any k of those `present` (index and bytes).
    ///
    /// Data and parity alike; what is wanted and present is copied. If ranges are given instead of shards, the same
    /// ranges of the wanted come back. More than k may be present: the k lowest indices are used.
    pub fn rebuild(&self, present: &[(usize, &[u8])], wanted: &[usize]) -> Result<Vec<Vec<u8>>, CodecError> {
        let len = present.first().map_or(0, |(_, bytes)| bytes.len());
        let mut rebuilt: Vec<Vec<u8>> = wanted.iter().map(|_| vec![0; len]).collect();
        let mut room: Vec<&mut [u8]> = rebuilt.iter_mut().map(Vec::as_mut_slice).collect();
        self.rebuild_into(present, wanted, &mut room)?;
        Ok(rebuilt)
    }

    /// Like [`rebuild`](Self::rebuild), over buffers of the shards' length, one for each wanted.
    pub fn rebuild_into(
        &self,
        present: &[(usize, &[u8])],
        wanted: &[usize],
        room: &mut [&mut [u8]],
    ) -> Result<(), CodecError> {
        let (k, n) = (self.scheme.k(), self.scheme.n());
        let mut shards: [Option<&[u8]>; SHARDS_LIMIT] = [None; SHARDS_LIMIT];
        let len = present.first().map_or(0, |(_, bytes)| bytes.len());
        for &(index, bytes) in present {
            let slot = shards[..n].get_mut(index).ok_or(CodecError::OutOfRange { index, n })?;
            if slot.replace(bytes).is_some() {
                return Err(CodecError::Duplicate(index));
            }
            if bytes.len() != len {
                return Err(CodecError::Unequal(len, bytes.len()));
            }
        }
        if present.len() < k {
            return Err(CodecError::TooFew { present: present.len(), needed: k });
        }
        let mut asked = [false; SHARDS_LIMIT];
        for &index in wanted {
            let seen = asked[..n].get_mut(index).ok_or(CodecError::OutOfRange { index, n })?;
            if std::mem::replace(seen, true) {
                return Err(CodecError::Duplicate(index));
            }
        }
        if room.len() != wanted.len() {
            return Err(CodecError::Room { found: room.len(), needed: wanted.len() });
        }
        if let Some(buffer) = room.iter().find(|buffer| buffer.len() != len) {
            return Err(CodecError::Unequal(len, buffer.len()));
        }

        let (used, inputs): (Vec<usize>, Vec<&[u8]>) =
            shards.iter().enumerate().filter_map(|(index, shard)| Some((index, (*shard)?))).take(k).unzip();
        let (mut missing, mut outputs) = (Vec::new(), Vec::new());
        for (&index, buffer) in wanted.iter().zip(room) {
            match shards[index] {
                Some(shard) => buffer.copy_from_slice(shard),
                None => {
                    missing.push(index);
                    outputs.push(&mut **buffer);
                }
            }
        }
        if !missing.is_empty() {
            self.planner.rows(&used, &missing).combine(&inputs, &mut outputs);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Codec({})", self.scheme)
    }
}

#[cfg(test)]
mod tests;
