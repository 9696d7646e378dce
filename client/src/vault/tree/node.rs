//! One node of a tree: its bytes, its id, and where the keyed hash cuts.

use bytes::Bytes;
use potluck_proto::encoding::{DecodeError, Decoder, Encoder};
use potluck_proto::id::ChunkId;

use crate::vault::entry::{ENTRY_LIMIT, Entry};
use crate::vault::keys::VaultKeys;
use crate::vault::path::PATH_LIMIT;
use crate::vault::pointer::{PendingPointer, Place, StripeRef, Unsealed};
use crate::vault::{NodeStore, StoredObject, VaultError, unreadable};

/// Newest format version of a tree node.
pub const NODE_VERSION: u16 = 1;

/// Highest node: one more than the levels that 64 hash bits give.
pub const HEIGHT_LIMIT: u8 = 13;

/// Most bytes of all keys of a node together, shared parts counted each time, so that few bytes cannot unfold to many:
/// 16 MiB. A node that a writer cuts stays far below.
const KEYS_LIMIT: usize = 16 << 20;

/// Leading zero bits per level: a node has 2 to the 5 items on average, 8 KiB of common paths and entries.
const CUT_BITS: u32 = 5;

/// A node and all below it: what its parent, or a commit, keeps of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subtree {
    /// Hash of what is in it, wherever that lies.
    pub id: ChunkId,
    /// 0 for a leaf, else one more than its children's.
    pub height: u8,
    /// Where its node lies.
    pub pointer: PendingPointer,
    /// Entries below.
    pub count: u64,
    /// Bytes of content of those entries.
    pub size: u64,
}

impl Subtree {
    /// Writes it into an object that is to lie at `place`.
    pub fn encode(&self, encoder: &mut Encoder, place: &dyn Place) -> Result<(), Unsealed> {
        encoder.u8(self.height).raw(self.id.as_bytes()).varint(self.count).varint(self.size);
        self.pointer.encode(encoder, place)
    }

    /// Reads it out of an object that lies in `container`.
    pub fn decode(decoder: &mut Decoder<'_>, container: StripeRef) -> Result<Self, DecodeError> {
        let height = decoder.u8("height")?;
        if height > HEIGHT_LIMIT {
            return Err(DecodeError::Invalid { field: "height", why: "higher than its limit" });
        }
        Ok(Self {
            height,
            id: decoder.id("node id")?,
            count: decoder.varint("count")?,
            size: decoder.varint("size")?,
            pointer: PendingPointer::decode(decoder, container)?,
        })
    }
}

/// How many levels of nodes end at this key: 0 for most.
pub(super) fn level(keys: &VaultKeys, key: &[u8]) -> u8 {
    let hash = blake3::keyed_hash(&keys.tree_cut, key);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    // At most 64 / 5.
    (u64::from_be_bytes(first).leading_zeros() / CUT_BITS) as u8
}

/// What is in a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Items {
    Entries(Vec<(Bytes, Entry)>),
    /// Each with its last key.
    Children(Vec<(Bytes, Subtree)>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) height: u8,
    pub(super) items: Items,
}

impl Node {
    /// Loads a subtree's node and checks that it is the one.
    pub(super) async fn load<S: NodeStore>(store: &S, keys: &VaultKeys, subtree: &Subtree) -> Result<Self, VaultError> {
        let bytes = store.load(&subtree.pointer).await?;
        let node = Self::decode(&bytes, subtree.pointer.stripe).map_err(unreadable("a tree node"))?;
        if node.height != subtree.height || node.id(keys) != subtree.id {
            return Err(VaultError::WrongId("a tree node"));
        }
        Ok(node)
    }

    /// The node's parent's view of it.
    pub(super) fn subtree(&self, id: ChunkId, pointer: PendingPointer) -> Subtree {
        let (count, size) = match &self.items {
            Items::Entries(entries) => {
                (entries.len() as u64, entries.iter().fold(0u64, |sum, (_, entry)| sum.saturating_add(entry.size)))
            }
            Items::Children(children) => children.iter().fold((0u64, 0u64), |(count, size), (_, child)| {
                (count.saturating_add(child.count), size.saturating_add(child.size))
            }),
        };
        Subtree { id, height: self.height, pointer, count, size }
    }

    /// Reads a node that lies in `container`.
    pub(super) fn decode(bytes: &[u8], container: StripeRef) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        decoder.version("tree node", NODE_VERSION)?;
        let height = decoder.u8("height")?;
        let count = decoder.count("items", bytes.len())?;
        if count == 0 || height > HEIGHT_LIMIT {
            return Err(DecodeError::Invalid { field: "tree node", why: "empty or too high" });
        }
        let (mut key, mut keys_len) = (Vec::new(), 0);
        let (mut entries, mut children) = (Vec::new(), Vec::new());
        for index in 0..count {
            let next = read_key(&mut decoder, &key)?;
            keys_len += next.len();
            if index > 0 && next <= key {
                return Err(DecodeError::Invalid { field: "key", why: "not ascending" });
            }
            if keys_len > KEYS_LIMIT {
                return Err(DecodeError::Invalid { field: "keys", why: "together longer than their limit" });
            }
            key = next;
            let owned = Bytes::copy_from_slice(&key);
            if height == 0 {
                let entry = Entry::decode(decoder.bytes("entry", ENTRY_LIMIT)?, container)?;
                entries.push((owned, entry));
            } else {
                let child = Subtree::decode(&mut decoder, container)?;
                if child.height + 1 != height {
                    return Err(DecodeError::Invalid { field: "height", why: "not one less than its parent's" });
                }
                children.push((owned, child));
            }
        }
        decoder.finish()?;
        let items = if height == 0 { Items::Entries(entries) } else { Items::Children(children) };
        Ok(Self { height, items })
    }
}

/// A key is written as what it shares with the one before, and the rest.
fn write_key(encoder: &mut Encoder, before: &[u8], key: &[u8]) {
    let shared = before.iter().zip(key).take_while(|(a, b)| a == b).count();
    encoder.varint(shared as u64).bytes(&key[shared..]);
}

fn read_key(decoder: &mut Decoder<'_>, before: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let shared = decoder.count("shared key", before.len())?;
    let rest = decoder.bytes("key", PATH_LIMIT)?;
    let more_shared = !rest.is_empty() && rest.first() == before.get(shared);
    let key = [&before[..shared], rest].concat();
    if more_shared || key.is_empty() || key.len() > PATH_LIMIT {
        return Err(DecodeError::Invalid { field: "key", why: "empty, too long, or sharing too little" });
    }
    Ok(key)
}

impl StoredObject for Node {
    fn id(&self, keys: &VaultKeys) -> ChunkId {
        let mut encoder = Encoder::new();
        encoder.raw(b"node").u8(self.height);
        match &self.items {
            Items::Entries(entries) => entries.iter().for_each(|(key, entry)| {
                encoder.bytes(key).bytes(&entry.identity());
            }),
            Items::Children(children) => children.iter().for_each(|(last, child)| {
                encoder.bytes(last).raw(child.id.as_bytes()).varint(child.count).varint(child.size);
            }),
        }
        ChunkId(*blake3::keyed_hash(&keys.tree_id, encoder.as_slice()).as_bytes())
    }

    fn encode(&self, place: &dyn Place) -> Result<Vec<u8>, Unsealed> {
        let mut encoder = Encoder::new();
        encoder.u16(NODE_VERSION).u8(self.height);
        let mut before: &[u8] = &[];
        match &self.items {
            Items::Entries(entries) => {
                encoder.varint(entries.len() as u64);
                for (key, entry) in entries {
                    write_key(&mut encoder, before, key);
                    encoder.bytes(&entry.encode(place)?);
                    before = key;
                }
            }
            Items::Children(children) => {
                encoder.varint(children.len() as u64);
                for (last, child) in children {
                    write_key(&mut encoder, before, last);
                    child.encode(&mut encoder, place)?;
                    before = last;
                }
            }
        }
        Ok(encoder.into_bytes())
    }
}
