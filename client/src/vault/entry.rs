//! Entries: what a path of the tree maps to.
//!
//! An entry is a sequence of attributes, sorted by tag. Attributes of newer versions are kept as they are when an entry
//! is rewritten. Its identity covers everything but locations, so that moving chunks changes no id. Layout: FORMAT.md,
//! "Entry".

use bytes::Bytes;
use potluck_proto::encoding::{DecodeError, Decoder, Encoder};
use potluck_proto::id::{ChunkId, Digest, StripeId};

use super::keys::VaultKeys;
use super::pointer::{Anywhere, PendingPointer, Place, StripeRef, Unsealed};

/// Longest encoded entry, in bytes.
pub const ENTRY_LIMIT: usize = 16 << 10;

/// Files up to this many bytes live in their entry.
pub const INLINE_LIMIT: usize = 256;

/// Longest target of a symbolic link, in bytes.
pub const TARGET_LIMIT: usize = 4096;

/// Most references in an entry; files of more chunks have a list of their own.
pub const DIRECT_LIMIT: usize = 8;

/// Deepest nesting of lists: 1,000 to the fifth chunks are beyond any file.
pub const LIST_DEPTH_LIMIT: u8 = 5;

/// What kind of thing a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A file.
    File,
    /// A directory; its key ends in `/`.
    Dir,
    /// A symbolic link; its content is the target.
    Symlink,
    /// A kind of a newer version, kept as it is.
    Other(u8),
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Kind::File => 1,
            Kind::Dir => 2,
            Kind::Symlink => 3,
            Kind::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => Kind::File,
            2 => Kind::Dir,
            3 => Kind::Symlink,
            other => Kind::Other(other),
        }
    }
}

/// A reference to a chunk of data, or to a list of such references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRef {
    /// What it is known by.
    pub id: ChunkId,
    /// Bytes of plaintext that it stands for.
    pub size: u64,
    /// Where it lies.
    pub pointer: PendingPointer,
}

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Here.
    Inline(Bytes),
    /// In these chunks, one after the other.
    Chunks(Vec<ChunkRef>),
    /// In the chunks of a list of lists of ... `depth` times (1: the list holds chunks).
    List {
        /// The outermost list.
        list: ChunkRef,
        /// How many lists deep the chunks are; 1 to [`LIST_DEPTH_LIMIT`].
        depth: u8,
    },
}

/// What a path maps to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What kind of thing it is.
    pub kind: Kind,
    /// Bytes of content.
    pub size: u64,
    /// Unix permission bits; 0 where unknown.
    pub mode: u32,
    /// Last modification, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Its bytes.
    pub content: Content,
    /// Attributes that this version does not know, sorted by tag.
    pub other: Vec<(u64, Bytes)>,
}

const TAG_KIND: u64 = 1;
const TAG_SIZE: u64 = 2;
const TAG_MODE: u64 = 3;
const TAG_MTIME: u64 = 4;
const TAG_INLINE: u64 = 5;
const TAG_CHUNKS: u64 = 6;
const TAG_LIST: u64 = 7;

/// Whether references are written with where they point, or by their ids alone.
#[derive(Clone, Copy)]
enum Form<'a> {
    Located(&'a dyn Place),
    Identity,
}

impl ChunkRef {
    fn write(&self, encoder: &mut Encoder, form: Form<'_>) -> Result<(), Unsealed> {
        encoder.raw(self.id.as_bytes()).varint(self.size);
        match form {
            Form::Located(place) => self.pointer.encode(encoder, place),
            Form::Identity => Ok(()),
        }
    }

    /// Writes the reference into an object that is to lie at `place`.
    pub fn encode(&self, encoder: &mut Encoder, place: &dyn Place) -> Result<(), Unsealed> {
        self.write(encoder, Form::Located(place))
    }

    /// Reads a reference out of an object that lies in `container`.
    pub fn decode(decoder: &mut Decoder<'_>, container: StripeRef) -> Result<Self, DecodeError> {
        Ok(Self {
            id: decoder.id("chunk id")?,
            size: decoder.varint("size")?,
            pointer: PendingPointer::decode(decoder, container)?,
        })
    }
}

/// Adds up the sizes of references.
pub(crate) fn total(refs: &[ChunkRef]) -> Result<u64, DecodeError> {
    refs.iter()
        .try_fold(0u64, |sum, item| sum.checked_add(item.size))
        .ok_or(DecodeError::Invalid { field: "size", why: "the sum is over 64 bits" })
}

impl Entry {
    /// An entry of this kind with content that is inline and `size` to match; mode and time are 0.
    #[must_use]
    pub fn inline(kind: Kind, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let size = bytes.len() as u64;
        Self { kind, size, mode: 0, mtime_ns: 0, content: Content::Inline(bytes), other: Vec::new() }
    }

    /// A directory.
    #[must_use]
    pub fn dir() -> Self {
        Self::inline(Kind::Dir, Bytes::new())
    }

    /// A symbolic link to `target`, at most [`TARGET_LIMIT`] bytes.
    #[must_use]
    pub fn symlink(target: impl Into<Bytes>) -> Self {
        Self::inline(Kind::Symlink, target)
    }

    /// The entry's bytes in a tree node that is to lie at `place`.
    pub fn encode(&self, place: &dyn Place) -> Result<Vec<u8>, Unsealed> {
        self.write(Form::Located(place))
    }

    /// Checks that the entry can be read back once it is written.
    pub fn check(&self) -> Result<(), DecodeError> {
        let anywhere = StripeRef::Sealed(StripeId([0; 32]));
        // Anywhere has a name for each stripe.
        let bytes = self.encode(&Anywhere).unwrap_or_default();
        if bytes.len() > ENTRY_LIMIT {
            return Err(DecodeError::Invalid { field: "entry", why: "longer than its limit" });
        }
        Self::decode(&bytes, anywhere).map(drop)
    }

    /// What the entry says, locations left out: equal for equal entries wherever their chunks are.
    #[must_use]
    pub fn identity(&self) -> Vec<u8> {
        // Without locations nothing can be unsealed.
        self.write(Form::Identity).unwrap_or_default()
    }

    /// A keyed hash of what the content is, whatever its name, times and location.
    #[must_use]
    pub fn content_id(&self, keys: &VaultKeys) -> Digest {
        let bare = Self { mode: 0, mtime_ns: 0, other: Vec::new(), ..self.clone() };
        let bytes = [&b"content"[..], &bare.identity()].concat();
        Digest(*blake3::keyed_hash(&keys.tree_id, &bytes).as_bytes())
    }

    fn write(&self, form: Form<'_>) -> Result<Vec<u8>, Unsealed> {
        let mut known: Vec<(u64, Vec<u8>)> = vec![(TAG_KIND, vec![self.kind.code()])];
        let number = |value: u64| {
            let mut encoder = Encoder::new();
            encoder.varint(value);
            encoder.into_bytes()
        };
        if self.size != 0 {
            known.push((TAG_SIZE, number(self.size)));
        }
        if self.mode != 0 {
            known.push((TAG_MODE, number(self.mode.into())));
        }
        if self.mtime_ns != 0 {
            known.push((TAG_MTIME, self.mtime_ns.to_le_bytes().to_vec()));
        }
        let mut encoder = Encoder::new();
        match &self.content {
            Content::Inline(bytes) if bytes.is_empty() => {}
            Content::Inline(bytes) => known.push((TAG_INLINE, bytes.to_vec())),
            Content::Chunks(chunks) => {
                encoder.varint(chunks.len() as u64);
                chunks.iter().try_for_each(|chunk| chunk.write(&mut encoder, form))?;
                known.push((TAG_CHUNKS, encoder.into_bytes()));
            }
            Content::List { list, depth } => {
                encoder.u8(*depth);
                list.write(&mut encoder, form)?;
                known.push((TAG_LIST, encoder.into_bytes()));
            }
        }
        let mut all: Vec<(u64, &[u8])> = known.iter().map(|(tag, value)| (*tag, &value[..])).collect();
        all.extend(self.other.iter().map(|(tag, value)| (*tag, &value[..])));
        all.sort_by_key(|(tag, _)| *tag);
        let mut encoder = Encoder::new();
        for (tag, value) in all {
            encoder.varint(tag).bytes(value);
        }
        Ok(encoder.into_bytes())
    }

    /// Reads an entry out of a tree node that lies in `container`.
    pub fn decode(bytes: &[u8], container: StripeRef) -> Result<Self, DecodeError> {
        let mut entry = Self::inline(Kind::Other(0), Bytes::new());
        let mut decoder = Decoder::new(bytes);
        let (mut last_tag, mut contents) = (0, 0);
        while decoder.left() > 0 {
            let tag = decoder.varint("attribute tag")?;
            if tag <= last_tag {
                return Err(DecodeError::Invalid { field: "attribute tag", why: "not ascending" });
            }
            last_tag = tag;
            let value = decoder.bytes("attribute", ENTRY_LIMIT)?;
            contents += usize::from((TAG_INLINE..=TAG_LIST).contains(&tag));
            entry.set(tag, value, container)?;
        }
        if entry.kind == Kind::Other(0) {
            return Err(DecodeError::Invalid { field: "entry kind", why: "missing" });
        }
        let size = match &entry.content {
            Content::Inline(bytes) => bytes.len() as u64,
            Content::Chunks(chunks) => total(chunks)?,
            Content::List { list, .. } => list.size,
        };
        if contents > 1 || (size != entry.size && !matches!(entry.kind, Kind::Other(_))) {
            return Err(DecodeError::Invalid { field: "content", why: "given twice, or not of the entry's size" });
        }
        Ok(entry)
    }

    fn set(&mut self, tag: u64, value: &[u8], container: StripeRef) -> Result<(), DecodeError> {
        let mut decoder = Decoder::new(value);
        let default = match tag {
            TAG_KIND => {
                let code = decoder.u8("entry kind")?;
                self.kind = Kind::from_code(code);
                code == 0
            }
            TAG_SIZE => {
                self.size = decoder.varint("size")?;
                self.size == 0
            }
            TAG_MODE => {
                self.mode = u32::try_from(decoder.varint("mode")?)
                    .map_err(|_| DecodeError::Invalid { field: "mode", why: "over 32 bits" })?;
                self.mode == 0
            }
            TAG_MTIME => {
                self.mtime_ns = i64::from_le_bytes(decoder.array("mtime")?);
                self.mtime_ns == 0
            }
            TAG_INLINE => {
                let len = decoder.left();
                self.content = Content::Inline(Bytes::copy_from_slice(decoder.raw("inline", len)?));
                value.len() > TARGET_LIMIT || value.is_empty()
            }
            TAG_CHUNKS => {
                let count = decoder.count("chunks", DIRECT_LIMIT)?;
                let chunks: Result<Vec<_>, _> = (0..count).map(|_| ChunkRef::decode(&mut decoder, container)).collect();
                self.content = Content::Chunks(chunks?);
                count == 0
            }
            TAG_LIST => {
                let depth = decoder.u8("list depth")?;
                self.content = Content::List { list: ChunkRef::decode(&mut decoder, container)?, depth };
                depth == 0 || depth > LIST_DEPTH_LIMIT
            }
            _ => {
                self.other.push((tag, Bytes::copy_from_slice(value)));
                return Ok(());
            }
        };
        if default {
            return Err(DecodeError::Invalid { field: "attribute", why: "a value that is out of range or left out" });
        }
        decoder.finish()
    }
}

#[cfg(test)]
mod tests;
