//! The chunks of a file: gathered into an entry when it is written, found for a byte range when it is read.
//!
//! A file of more than a few chunks has lists of references, lists of lists and so on, each stored as a chunk: memory
//! stays bounded for any length, and a range is found in as many steps as lists are deep. Data chunks themselves never
//! pass through here. Layout: FORMAT.md, "Chunk list".

use std::ops::Range;

use bytes::Bytes;
use potluck_proto::encoding::{DecodeError, Decoder, Encoder};
use potluck_proto::id::ChunkId;

use super::entry::{ChunkRef, Content, DIRECT_LIMIT, Entry, INLINE_LIMIT, Kind, LIST_DEPTH_LIMIT, total};
use super::keys::VaultKeys;
use super::pointer::{PendingPointer, Place, StripeRef, Unsealed};
use super::seal::ReadyChunk;
use super::{NodeStore, StoredObject, VaultError, unreadable};

/// References in a full list: about 500 MiB of file.
pub const LIST_LEN: usize = 1000;

/// Newest format version of a list.
pub const LIST_VERSION: u16 = 1;

/// References to chunks, or to lists one less deep.
#[derive(Debug, Clone, PartialEq, Eq)]
struct List {
    depth: u8,
    refs: Vec<ChunkRef>,
}

impl List {
    fn decode(bytes: &[u8], container: StripeRef) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        decoder.version("chunk list", LIST_VERSION)?;
        let depth = decoder.u8("list depth")?;
        let count = decoder.count("list", LIST_LEN)?;
        let refs = (0..count).map(|_| ChunkRef::decode(&mut decoder, container)).collect::<Result<Vec<_>, _>>()?;
        decoder.finish()?;
        total(&refs)?;
        Ok(Self { depth, refs })
    }

    /// Loads the list that `list` refers to, `depth` deep, and checks that it is the one.
    async fn load<S: NodeStore>(store: &S, keys: &VaultKeys, list: &ChunkRef, depth: u8) -> Result<Self, VaultError> {
        let bytes = store.load(&list.pointer).await?;
        let loaded = Self::decode(&bytes, list.pointer.stripe).map_err(unreadable("a chunk list"))?;
        let size = total(&loaded.refs).map_err(unreadable("a chunk list"))?;
        if loaded.depth != depth || size != list.size || loaded.id(keys) != list.id {
            return Err(VaultError::WrongId("a chunk list"));
        }
        Ok(loaded)
    }
}

impl StoredObject for List {
    fn id(&self, keys: &VaultKeys) -> ChunkId {
        let mut hasher = blake3::Hasher::new_keyed(&keys.tree_id);
        hasher.update(b"list").update(&[self.depth]);
        for item in &self.refs {
            hasher.update(item.id.as_bytes()).update(&item.size.to_le_bytes());
        }
        ChunkId(*hasher.finalize().as_bytes())
    }

    fn encode(&self, place: &dyn Place) -> Result<Vec<u8>, Unsealed> {
        let mut encoder = Encoder::new();
        encoder.u16(LIST_VERSION).u8(self.depth).varint(self.refs.len() as u64);
        self.refs.iter().try_for_each(|item| item.encode(&mut encoder, place))?;
        Ok(encoder.into_bytes())
    }
}

/// Gathers a file's chunks, in order, into the content of an entry.
#[derive(Debug, Default)]
pub struct ContentBuilder {
    /// Index 0: chunks; index d: lists of depth d.
    levels: Vec<Vec<ChunkRef>>,
    chunks: usize,
    size: u64,
}

impl ContentBuilder {
    /// A file without bytes so far.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of plaintext so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds the next chunk, which lies at `pointer`. Stores a list where one is full.
    pub async fn push<S: NodeStore>(
        &mut self,
        store: &mut S,
        chunk: &ReadyChunk,
        pointer: PendingPointer,
    ) -> Result<(), VaultError> {
        self.push_ref(store, ChunkRef { id: chunk.id, size: chunk.plain_len.into(), pointer }).await
    }

    /// Adds a chunk that is stored already.
    pub async fn push_ref<S: NodeStore>(&mut self, store: &mut S, chunk: ChunkRef) -> Result<(), VaultError> {
        self.size += chunk.size;
        self.chunks += 1;
        self.add(0, chunk);
        let mut depth = 0;
        while self.levels[depth].len() == LIST_LEN {
            self.flush(store, depth).await?;
            depth += 1;
        }
        Ok(())
    }

    /// The file's content and its size in bytes.
    pub async fn finish<S: NodeStore>(mut self, store: &mut S) -> Result<(u64, Content), VaultError> {
        if self.chunks == 0 {
            return Ok((0, Content::Inline(Bytes::new())));
        }
        if self.chunks <= DIRECT_LIMIT {
            return Ok((self.size, Content::Chunks(std::mem::take(&mut self.levels[0]))));
        }
        let mut depth = 0;
        loop {
            let top = depth + 1 == self.levels.len();
            match self.levels[depth].len() {
                1 if top && depth > 0 => break,
                0 => {}
                _ => self.flush(store, depth).await?,
            }
            depth += 1;
        }
        let list = self.levels[depth].remove(0);
        // At most 5: a sixth level would need 1,000 to the fifth chunks.
        Ok((self.size, Content::List { list, depth: depth as u8 }))
    }

    fn add(&mut self, level: usize, item: ChunkRef) {
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        self.levels[level].push(item);
    }

    async fn flush<S: NodeStore>(&mut self, store: &mut S, level: usize) -> Result<(), VaultError> {
        let list = List { depth: level as u8 + 1, refs: std::mem::take(&mut self.levels[level]) };
        let size = total(&list.refs).map_err(unreadable("a chunk list"))?;
        let (id, pointer) = store.store(&list).await?;
        self.add(level + 1, ChunkRef { id, size, pointer });
        Ok(())
    }
}

/// A file small enough to live in its entry; `None` if `bytes` is too long for that.
#[must_use]
pub fn inline_file(bytes: &[u8]) -> Option<Entry> {
    (bytes.len() <= INLINE_LIMIT).then(|| Entry::inline(Kind::File, Bytes::copy_from_slice(bytes)))
}

/// A part of a file's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// These bytes.
    Inline(Bytes),
    /// A range of a chunk's plaintext: fetch the chunk, open it, take the range.
    Chunk {
        /// The chunk.
        chunk: ChunkRef,
        /// First byte in it.
        from: usize,
        /// After the last byte.
        to: usize,
    },
}

/// The pieces of a byte range of a file, in order; lists are loaded as they are needed.
#[derive(Debug, Clone)]
pub struct Pieces {
    range: Range<u64>,
    inline: Option<Bytes>,
    /// What comes next, on top: reference, how deep it is (0: a chunk), its first byte in the file.
    stack: Vec<(ChunkRef, u8, u64)>,
}

impl Pieces {
    /// The pieces of `range` of the file; what is beyond its end is left out.
    #[must_use]
    pub fn new(entry: &Entry, range: Range<u64>) -> Self {
        let range = range.start.min(entry.size)..range.end.min(entry.size);
        let mut pieces = Self { range: range.clone(), inline: None, stack: Vec::new() };
        if range.is_empty() {
            return pieces;
        }
        match &entry.content {
            // An entry's size was checked against its inline bytes when it was read.
            Content::Inline(bytes) => {
                let end = bytes.len().min(range.end as usize);
                pieces.inline = Some(bytes.slice(end.min(range.start as usize)..end));
            }
            Content::Chunks(chunks) => pieces.push_all(chunks, 0, 0),
            Content::List { list, depth } => pieces.stack.push((list.clone(), *depth, 0)),
        }
        pieces
    }

    /// All pieces of the file.
    #[must_use]
    pub fn whole(entry: &Entry) -> Self {
        Self::new(entry, 0..u64::MAX)
    }

    /// The next piece; `None` after the last. After an error the same piece can be asked for again.
    pub async fn next<S: NodeStore>(&mut self, store: &S, keys: &VaultKeys) -> Result<Option<Piece>, VaultError> {
        if let Some(bytes) = self.inline.take() {
            return Ok(Some(Piece::Inline(bytes)));
        }
        while let Some((item, depth, start)) = self.stack.last().cloned() {
            if depth == 0 {
                self.stack.pop();
                let from = self.range.start.saturating_sub(start);
                let to = (self.range.end - start).min(item.size);
                let (Ok(from), Ok(to)) = (usize::try_from(from), usize::try_from(to)) else {
                    return Err(VaultError::WrongId("a chunk longer than memory"));
                };
                return Ok(Some(Piece::Chunk { chunk: item, from, to }));
            }
            let list = List::load(store, keys, &item, depth).await?;
            self.stack.pop();
            self.push_all(&list.refs, depth - 1, start);
        }
        Ok(None)
    }

    /// Pushes those of the references that overlap the range, the first on top.
    fn push_all(&mut self, refs: &[ChunkRef], depth: u8, mut start: u64) {
        let begin = self.stack.len();
        for item in refs {
            let end = start.saturating_add(item.size);
            if start < self.range.end && end > self.range.start {
                self.stack.push((item.clone(), depth, start));
            }
            start = end;
        }
        self.stack[begin..].reverse();
    }
}

const _: () = assert!(LIST_DEPTH_LIMIT == 5, "`finish` counts on it");

#[cfg(test)]
mod tests {
    use potluck_proto::id::{ChunkId, Digest};
    use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

    use super::{ContentBuilder, List, Piece, Pieces};
    use crate::vault::StoredObject;
    use crate::vault::entry::{ChunkRef, Content, Entry, Kind};
    use crate::vault::keys::VaultSecret;
    use crate::vault::memory::{MemoryStore, now};
    use crate::vault::pointer::{Anywhere, PendingPointer, StripeRef};

    fn chunk(number: u64, size: u64) -> ChunkRef {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&number.to_le_bytes());
        let pointer = PendingPointer { stripe: StripeRef::Open(0), offset: 0, len: 1, hash: Digest([0; 32]) };
        ChunkRef { id: ChunkId(id), size, pointer }
    }

    fn build(store: &mut MemoryStore, count: u64, size: u64) -> Entry {
        let mut builder = ContentBuilder::new();
        for number in 0..count {
            now(builder.push_ref(store, chunk(number, size))).unwrap();
        }
        let (size, content) = now(builder.finish(store)).unwrap();
        Entry { size, content, ..Entry::inline(Kind::File, &b""[..]) }
    }

    /// Golden: FORMAT.md, "Chunk list".
    #[test]
    fn a_list_is_as_documented() {
        let list = List { depth: 1, refs: vec![chunk(9, 300)] };
        let bytes = list.encode(&Anywhere).unwrap();
        let id = [&[9][..], &[0; 31]].concat();
        let pointer = [&[1][..], &[0; 32], &[0, 0, 0, 0, 1, 0, 0, 0], &[0; 32]].concat();
        assert_eq!(bytes, [&[1, 0, 1, 1][..], &id, &[0xac, 2], &pointer].concat());
        let keys = VaultSecret::from_bytes([3; 32]).keys();
        assert_eq!(list.id(&keys), List::decode(&bytes, StripeRef::Open(0)).unwrap().id(&keys));
    }

    #[test]
    fn depth_follows_the_number_of_chunks() {
        let keys = VaultSecret::from_bytes([3; 32]).keys();
        let mut store = MemoryStore::new(&keys);
        for (count, expected) in [(1, 0), (8, 0), (9, 1), (1000, 1), (1001, 2), (2000, 2), (5001, 2)] {
            let depth = match build(&mut store, count, 3).content {
                Content::List { depth, .. } => depth,
                _ => 0,
            };
            assert_eq!(depth, expected, "{count}");
        }
        assert_eq!(build(&mut store, 0, 3), Entry::inline(Kind::File, &b""[..]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn ranges_are_covered_exactly(count in 0u64..2500, from in 0u64..9000, len in 0u64..9000) {
            let keys = VaultSecret::from_bytes([3; 32]).keys();
            let mut store = MemoryStore::new(&keys);
            let entry = build(&mut store, count, 3);
            prop_assert_eq!(entry.size, count * 3);
            let mut pieces = Pieces::new(&entry, from..from + len);
            let mut at = from.min(entry.size);
            while let Some(Piece::Chunk { chunk: found, from, to }) = now(pieces.next(&store, &keys)).unwrap() {
                prop_assert_eq!(found.id, chunk(at / 3, 3).id);
                prop_assert_eq!(from as u64, at % 3);
                prop_assert!(from < to && to <= 3);
                at += (to - from) as u64;
            }
            prop_assert_eq!(at, (from + len).min(entry.size).max(from.min(entry.size)));
        }
    }

    #[test]
    fn small_files_are_inline_and_ranges_clipped() {
        let keys = VaultSecret::from_bytes([3; 32]).keys();
        let store = MemoryStore::new(&keys);
        let entry = super::inline_file(b"hello").unwrap();
        let mut pieces = Pieces::new(&entry, 1..99);
        assert_eq!(now(pieces.next(&store, &keys)).unwrap(), Some(Piece::Inline((&b"ello"[..]).into())));
        assert_eq!(now(pieces.next(&store, &keys)).unwrap(), None);
        assert_eq!(now(Pieces::new(&entry, 9..99).next(&store, &keys)).unwrap(), None);
        assert_eq!(super::inline_file(&[0; 257]), None);
    }
}
