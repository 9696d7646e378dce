//! Large buffers that are used again: fresh memory costs as much as a copy of what is put there.
//!
//! They begin at a page, so that a disk can write them, and read to them, as they lie.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// What a buffer's address is a multiple of, in bytes.
pub const PAGE: usize = 4096;

/// Lengths are rounded up to this, in bytes, so that buffers fit again.
const STEP: usize = 64 << 10;

/// Buffers for further use. Clones share them.
#[derive(Clone)]
pub struct Pool(Arc<Kept>);

struct Kept {
    limit: usize,
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// A pool that keeps up to `limit` bytes which are not in use.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Kept { limit, buffers: Mutex::default() }))
    }

    /// Gives back the memory of all that are not in use: what is needed from now on is of another size.
    pub fn clear(&self) {
        self.0.buffers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// A buffer of `len` bytes, the smallest kept one that has them. They are what they happen to be.
    #[must_use]
    pub fn take(&self, len: usize) -> Buffer {
        let needed = len + PAGE;
        let mut kept = self.0.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = kept.iter().enumerate().filter(|(_, memory)| memory.len() >= needed);
        let fits = fitting.min_by_key(|(_, memory)| memory.len()).map(|(place, _)| place);
        let memory = fits.map(|place| kept.swap_remove(place));
        drop(kept);
        let memory = memory.unwrap_or_else(|| vec![0; needed.next_multiple_of(STEP)]);
        let begin = memory.as_ptr().align_offset(PAGE);
        Buffer { memory, begin, len, home: self.0.clone() }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} bytes)", self.0.limit)
    }
}

/// Memory that goes back to its pool when it is dropped.
pub struct Buffer {
    memory: Vec<u8>,
    begin: usize,
    len: usize,
    home: Arc<Kept>,
}

impl Buffer {
    /// The bytes, to be read by many; the memory goes back when the last of them is dropped.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.begin..self.begin + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.begin..self.begin + self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut kept = self.home.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().map(Vec::len).sum::<usize>() + self.memory.len() <= self.home.limit {
            kept.push(std::mem::take(&mut self.memory));
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_lie_at_pages_come_back_and_are_bounded() {
        let pool = Pool::new(3 * STEP);
        for len in [0, 1, PAGE, STEP, 5 * STEP + 1] {
            let mut buffer = pool.take(len);
            assert_eq!((buffer.len(), buffer.as_ptr().align_offset(PAGE)), (len, 0));
            buffer.fill(7);
            assert!(buffer.freeze().iter().all(|byte| *byte == 7));
        }
        let (first, second) = (pool.take(STEP), pool.take(STEP));
        let address = first.as_ptr();
        let frozen = first.freeze();
        let slice = frozen.slice(5..9);
        drop(frozen);
        assert_ne!(pool.take(STEP).as_ptr(), address, "still in use");
        drop((slice, second));
        assert!(pool.0.buffers.lock().unwrap().iter().map(Vec::len).sum::<usize>() <= 3 * STEP);
    }
}
