//! A file on its way in: read, cut, and each chunk named while its bytes are in the processor's cache.
//!
//! Chunks are slices of the buffers that were read into: nothing is copied but what lies behind a buffer's last cut, and the
//! chunks of a file that fills less than half of one, which would keep all of it.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::LazyLock;

use bytes::Bytes;
use potluck_proto::buffers::{Buffer, Pool};
use potluck_proto::id::ChunkId;

use crate::vault::chunker::{CHUNK_MAX, CHUNK_MIN, Chunker};
use crate::vault::keys::VaultKeys;
use crate::vault::seal;

/// Length of a buffer, in bytes.
const BUFFER: usize = 4 * CHUNK_MAX;

/// Bytes read before cutting goes on.
const STEP: usize = 1 << 20;

/// Bytes of buffers that are kept while they are not in use.
const POOL_LIMIT: usize = 4 * BUFFER;

static POOL: LazyLock<Pool> = LazyLock::new(|| Pool::new(POOL_LIMIT));

/// A chunk that has its name.
pub(super) struct Named {
    pub(super) id: ChunkId,
    pub(super) plain: Bytes,
}

/// What a source begins with.
pub(super) enum Begun<R> {
    /// All of it: no more than [`CHUNK_MIN`] bytes.
    Whole(Vec<u8>),
    /// There is more.
    More(Box<Intake<R>>),
}

/// A source that is being read.
pub(super) struct Intake<R> {
    source: R,
    chunker: Chunker,
    keys: VaultKeys,
    held: Held,
    /// Bytes that are held, from behind a cut on.
    filled: usize,
}

/// What was read and is in no part yet.
enum Held {
    /// The source's beginning: many sources may be begun at once, and none has a buffer before its turn.
    Head(Vec<u8>),
    Buffer(Buffer),
    /// The source has ended.
    Nothing,
}

/// A part of a source.
#[derive(Default)]
pub(super) struct Part {
    pub(super) chunks: Vec<Named>,
    /// Bytes read for it.
    pub(super) read: usize,
    /// Nothing follows it.
    pub(super) last: bool,
}

/// Reads the beginning of a source.
pub(super) fn begin<R: Read>(mut source: R, keys: &VaultKeys) -> io::Result<Begun<R>> {
    let mut head = Vec::new();
    source.by_ref().take(CHUNK_MIN as u64 + 1).read_to_end(&mut head)?;
    if head.len() <= CHUNK_MIN {
        return Ok(Begun::Whole(head));
    }
    let chunker = Chunker::new(keys.chunking_seed());
    let filled = head.len();
    Ok(Begun::More(Box::new(Intake { source, chunker, keys: keys.clone(), held: Held::Head(head), filled })))
}

impl<R: Read> Intake<R> {
    /// Bytes read that are in no part yet.
    pub(super) fn ahead(&self) -> usize {
        self.filled
    }

    /// Reads until the buffer is full or the source ends. After the last part there are only empty ones.
    pub(super) fn next(&mut self) -> io::Result<Part> {
        let mut buffer = match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Head(head) => {
                let mut buffer = POOL.take(BUFFER);
                buffer[..head.len()].copy_from_slice(&head);
                buffer
            }
            Held::Buffer(buffer) => buffer,
            Held::Nothing => return Ok(Part { last: true, ..Part::default() }),
        };
        let (mut cuts, mut from, mut read, mut last) = (Vec::new(), 0, 0, false);
        while !last && self.filled < BUFFER {
            let room = self.filled..(self.filled + STEP).min(BUFFER);
            let got = fill(&mut self.source, &mut buffer[room.clone()])?;
            last = got < room.len();
            self.filled += got;
            read += got;
            while let Some(len) = self.chunker.cut(&buffer[from..self.filled], last) {
                let range = from..from + len;
                cuts.push((seal::chunk_id(&self.keys, &buffer[range.clone()]), range.clone()));
                from = range.end;
            }
        }
        if !last {
            let behind = &buffer[from..self.filled];
            let mut next = POOL.take(BUFFER);
            next[..behind.len()].copy_from_slice(behind);
            self.filled = behind.len();
            self.held = Held::Buffer(next);
        }
        let chunks = if from < BUFFER / 2 {
            let copied =
                |(id, range): (ChunkId, Range<usize>)| Named { id, plain: Bytes::copy_from_slice(&buffer[range]) };
            cuts.into_iter().map(copied).collect()
        } else {
            let buffer = buffer.freeze();
            cuts.into_iter().map(|(id, range)| Named { id, plain: buffer.slice(range) }).collect()
        };
        Ok(Part { chunks, read, last })
    }
}

/// Fills the buffer, less only where the source ends; returns how much.
fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::keys::VaultSecret;

    /// Gives a few bytes at a time, as a pipe does.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(70_001).min(self.0.len());
            let (now, later) = self.0.split_at(length);
            buffer[..length].copy_from_slice(now);
            self.0 = later;
            Ok(length)
        }
    }

    #[test]
    fn parts_are_the_source_cut_where_the_chunker_says() {
        let keys = VaultSecret::from_bytes([3; 32]).keys();
        let mut bytes = vec![0; 2 * BUFFER + 12_345];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        for length in [0, 1, CHUNK_MIN, CHUNK_MIN + 1, BUFFER - 1, BUFFER, BUFFER + 1, bytes.len()] {
            let bytes = &bytes[..length];
            let mut intake = match begin(Trickle(bytes), &keys).unwrap() {
                Begun::Whole(whole) => {
                    assert!(length <= CHUNK_MIN && whole == bytes);
                    continue;
                }
                Begun::More(intake) => intake,
            };
            let (chunker, mut ahead, mut read) = (Chunker::new(keys.chunking_seed()), bytes, intake.ahead());
            loop {
                let part = intake.next().unwrap();
                read += part.read;
                for Named { id, plain } in part.chunks {
                    let (expected, behind) = ahead.split_at(chunker.cut(ahead, true).unwrap());
                    assert!(plain == expected && id == seal::chunk_id(&keys, expected));
                    ahead = behind;
                }
                if part.last {
                    break;
                }
            }
            assert_eq!((ahead.len(), read), (0, length));
            assert!(intake.next().unwrap().chunks.is_empty());
        }
    }

    #[test]
    fn a_source_that_fails_is_an_error() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("a bad disk"))
            }
        }
        let keys = VaultSecret::from_bytes([3; 32]).keys();
        assert!(begin(Broken, &keys).is_err());
        let head = vec![7; CHUNK_MIN + 1];
        let Begun::More(mut intake) = begin(head.chain(Broken), &keys).unwrap() else { panic!("it is longer") };
        assert!(intake.next().is_err());
    }
}
