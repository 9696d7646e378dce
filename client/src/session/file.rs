//! Reading a file: any range, or as a stream that fetches ahead.
//!
//! Neighbouring chunks of one stripe are read together. What is fetched ahead is bounded, and given out in order.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use tokio::task::JoinHandle;

use super::SessionError;
use super::reader::Reader;
use crate::vault::content::{Piece, Pieces};
use crate::vault::entry::Entry;
use crate::vault::pointer::Pointer;

/// Most plaintext that a stream has fetched ahead or is fetching, in bytes.
const WINDOW: usize = 32 << 20;

/// Most stored bytes that are read from a stripe at once.
const GROUP_LIMIT: usize = 4 << 20;

/// An open file.
#[derive(Clone)]
pub struct FileReader {
    reader: Reader,
    entry: Entry,
}

impl FileReader {
    pub(super) fn new(reader: Reader, entry: Entry) -> Self {
        Self { reader, entry }
    }

    /// Bytes in the file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.entry.size
    }

    /// What was opened.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The bytes from `offset` on, `len` of them, fewer only where the file ends. Recently read chunks are kept.
    pub async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, SessionError> {
        let inner = &self.reader.inner;
        let mut pieces = Pieces::new(&self.entry, offset..offset.saturating_add(len as u64));
        let (mut first, mut rest) = (None, BytesMut::new());
        while let Some(piece) = pieces.next(&self.reader, &inner.keys).await? {
            let bytes = match piece {
                Piece::Inline(bytes) => bytes,
                Piece::Chunk { chunk, from, to } => cut(&inner.fetcher.chunk(&chunk).await?, from, to)?,
            };
            // Most reads lie in one chunk and are not copied.
            match first {
                None => first = Some(bytes),
                Some(ref first) => {
                    if rest.is_empty() {
                        rest.extend_from_slice(first);
                    }
                    rest.extend_from_slice(&bytes);
                }
            }
        }
        Ok(if rest.is_empty() { first.unwrap_or_default() } else { rest.freeze() })
    }

    /// The bytes of a range as a stream; what is beyond the end is left out.
    #[must_use]
    pub fn stream(&self, range: Range<u64>) -> FileStream {
        FileStream {
            reader: self.reader.clone(),
            pieces: Pieces::new(&self.entry, range),
            peeked: None,
            ended: false,
            ahead: VecDeque::new(),
            window: 0,
            ready: VecDeque::new(),
        }
    }
}

/// The asked part of a chunk whose id was checked.
fn cut(plain: &Bytes, from: usize, to: usize) -> Result<Bytes, SessionError> {
    if from > to || to > plain.len() {
        return Err(SessionError::Vault(crate::vault::VaultError::WrongId("a chunk shorter than its reference says")));
    }
    Ok(plain.slice(from..to))
}

/// Chunks that lie one after the other in a stripe.
struct Group {
    stripe: potluck_proto::id::StripeId,
    start: u64,
    end: u64,
    plain: usize,
    chunks: Vec<(crate::vault::entry::ChunkRef, Pointer, usize, usize)>,
}

/// What is on its way, in order.
enum Ahead {
    Here(Bytes),
    Coming { plain: usize, task: Task },
}

/// A fetch that ends with the one who waits for it.
struct Task(JoinHandle<Result<Vec<Bytes>, SessionError>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A file's bytes in order.
pub struct FileStream {
    reader: Reader,
    pieces: Pieces,
    peeked: Option<Piece>,
    ended: bool,
    ahead: VecDeque<Ahead>,
    /// Bytes of plaintext in `ahead` and `ready`.
    window: usize,
    ready: VecDeque<Bytes>,
}

impl FileStream {
    /// The next bytes; `None` after the last, and after an error.
    pub async fn next(&mut self) -> Option<Result<Bytes, SessionError>> {
        let next = self.step().await;
        if next.is_err() {
            self.ended = true;
            self.peeked = None;
            self.ahead.clear();
            self.ready.clear();
        }
        next.transpose()
    }

    async fn step(&mut self) -> Result<Option<Bytes>, SessionError> {
        loop {
            self.fetch_ahead().await?;
            if let Some(bytes) = self.ready.pop_front() {
                self.window -= bytes.len();
                if bytes.is_empty() {
                    continue;
                }
                return Ok(Some(bytes));
            }
            match self.ahead.front_mut() {
                None => return Ok(None),
                Some(Ahead::Here(bytes)) => self.ready.push_back(std::mem::take(bytes)),
                Some(Ahead::Coming { plain, task }) => {
                    let chunks = (&mut task.0).await.map_err(|error| SessionError::Internal(error.to_string()))??;
                    self.window = self.window - *plain + chunks.iter().map(Bytes::len).sum::<usize>();
                    self.ready.extend(chunks);
                }
            }
            self.ahead.pop_front();
        }
    }

    /// Begins fetches until the window is full.
    async fn fetch_ahead(&mut self) -> Result<(), SessionError> {
        while self.window < WINDOW && !self.ended {
            match self.piece().await? {
                None => self.ended = true,
                Some(Piece::Inline(bytes)) => {
                    self.window += bytes.len();
                    self.ahead.push_back(Ahead::Here(bytes));
                }
                Some(Piece::Chunk { chunk, from, to }) => {
                    let group = self.group(chunk, from, to).await?;
                    self.window += group.plain;
                    self.ahead.push_back(self.begin(group));
                }
            }
        }
        Ok(())
    }

    async fn piece(&mut self) -> Result<Option<Piece>, SessionError> {
        match self.peeked.take() {
            Some(piece) => Ok(Some(piece)),
            None => Ok(self.pieces.next(&self.reader, &self.reader.inner.keys).await?),
        }
    }

    /// This chunk and those that follow it both in the file and in its stripe.
    async fn group(
        &mut self,
        chunk: crate::vault::entry::ChunkRef,
        from: usize,
        to: usize,
    ) -> Result<Group, SessionError> {
        let pointer = chunk.pointer.sealed().map_err(crate::vault::VaultError::from)?;
        let start = u64::from(pointer.offset);
        let end = start + u64::from(pointer.len);
        let (stripe, plain) = (pointer.stripe, to - from);
        let mut group = Group { stripe, start, end, plain, chunks: vec![(chunk, pointer, from, to)] };
        while let Some(next) = self.piece().await? {
            if let Piece::Chunk { chunk, from, to } = &next
                && let Ok(pointer) = chunk.pointer.sealed()
                && pointer.stripe == group.stripe
                && u64::from(pointer.offset) == group.end
                && group.end + u64::from(pointer.len) - group.start <= GROUP_LIMIT as u64
            {
                group.end += u64::from(pointer.len);
                group.plain += to - from;
                group.chunks.push((chunk.clone(), pointer, *from, *to));
            } else {
                self.peeked = Some(next);
                break;
            }
        }
        Ok(group)
    }

    fn begin(&self, group: Group) -> Ahead {
        let (inner, plain) = (self.reader.inner.clone(), group.plain);
        let task = tokio::spawn(async move {
            let wanted = group.chunks.iter().map(|(chunk, pointer, ..)| (chunk.id, *pointer)).collect();
            let opened = inner.fetcher.chunks(group.stripe, group.start..group.end, wanted).await?;
            let parts = opened.iter().zip(&group.chunks);
            parts.map(|(plain, (_, _, from, to))| cut(plain, *from, *to)).collect()
        });
        Ahead::Coming { plain, task: Task(task) }
    }
}
