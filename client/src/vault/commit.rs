//! Commits: a vault's whole state at one moment, and how a head names one.
//!
//! A commit holds the roots of the trees and where it came from. It is stored as a chunk like everything else; what the
//! head carries in the open is only an encrypted pointer to it. Layout: FORMAT.md, "Commit" and "Root pointer".

use potluck_proto::encoding::{DecodeError, Decoder, Encoder};
use potluck_proto::head::VersionVector;
use potluck_proto::id::{ChunkId, HeadId, StripeId};
use zeroize::Zeroizing;

use super::cipher::{self, NONCE_LEN};
use super::keys::{KEY_LEN, VaultKeys};
use super::pointer::{PendingPointer, Place, Pointer, StripeRef, Unsealed};
use super::tree::{Root, Subtree};
use super::{NodeStore, StoredObject, VaultError, unreadable};

/// Newest format version of a commit.
pub const COMMIT_VERSION: u16 = 1;

/// Newest format version of a root pointer.
pub const ROOT_VERSION: u8 = 1;

/// Most parents: as many heads as can be concurrent.
pub const PARENTS_LIMIT: usize = 64;

/// Longest host name, in bytes.
pub const HOST_LIMIT: usize = 255;

/// Length of a sealed root pointer, in bytes.
pub const ROOT_LEN: usize = 1 + NONCE_LEN + ROOT_PLAIN_LEN + cipher::TAG_LEN;

/// Chunk id, stripe, offset, length, hash.
const ROOT_PLAIN_LEN: usize = 32 + 32 + 4 + 4 + 32;

/// A state that a commit came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The head that named it.
    pub head: HeadId,
    /// Where its commit is.
    pub commit: RootPointer,
}

/// A vault's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The current files.
    pub files: Root,
    /// The snapshots, a tree of their own.
    pub snapshots: Root,
    /// The states that this one takes further: none for the first, several after a merge. At most [`PARENTS_LIMIT`].
    pub parents: Vec<Parent>,
    /// What this state includes; the head says the same.
    pub vector: VersionVector,
    /// Milliseconds since 1970 by the writer's clock: for people, and to tell the later of two changes.
    pub time_ms: u64,
    /// The writer's host name: for people. Clipped to [`HOST_LIMIT`].
    pub host: String,
}

/// Where a commit is: what a head carries, encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootPointer {
    /// The commit's id.
    pub id: ChunkId,
    /// Its place.
    pub pointer: Pointer,
}

fn clipped(text: &str) -> &str {
    let mut end = text.len().min(HOST_LIMIT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn write_root(encoder: &mut Encoder, root: &Root, place: &dyn Place) -> Result<(), Unsealed> {
    match root {
        None => {
            encoder.u8(0);
            Ok(())
        }
        Some(subtree) => subtree.encode(encoder.u8(1), place),
    }
}

fn read_root(decoder: &mut Decoder<'_>, container: StripeRef) -> Result<Root, DecodeError> {
    match decoder.u8("tree root")? {
        0 => Ok(None),
        1 => Subtree::decode(decoder, container).map(Some),
        _ => Err(DecodeError::Invalid { field: "tree root", why: "neither 0 nor 1" }),
    }
}

impl Commit {
    /// Reads a commit that lies in `container`.
    pub fn decode(bytes: &[u8], container: StripeRef) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        decoder.version("commit", COMMIT_VERSION)?;
        let files = read_root(&mut decoder, container)?;
        let snapshots = read_root(&mut decoder, container)?;
        let mut parents = Vec::new();
        for _ in 0..decoder.count("parents", PARENTS_LIMIT)? {
            let head = decoder.id("parent head")?;
            let id = decoder.id("parent commit")?;
            let pointer = PendingPointer::decode(&mut decoder, container)?
                .sealed()
                .map_err(|_| DecodeError::Invalid { field: "parent commit", why: "in an open stripe" })?;
            parents.push(Parent { head, commit: RootPointer { id, pointer } });
        }
        let vector = VersionVector::decode(&mut decoder)?;
        let time_ms = decoder.u64("time")?;
        let host = decoder.text("host", HOST_LIMIT)?.to_string();
        decoder.finish()?;
        Ok(Self { files, snapshots, parents, vector, time_ms, host })
    }

    /// Loads the commit that a head names.
    pub async fn load<S: NodeStore>(store: &S, keys: &VaultKeys, root: &RootPointer) -> Result<Self, VaultError> {
        let pointer = PendingPointer::from(root.pointer);
        let bytes = store.load(&pointer).await?;
        let commit = Self::decode(&bytes, pointer.stripe).map_err(unreadable("a commit"))?;
        if commit.id(keys) != root.id {
            return Err(VaultError::WrongId("a commit"));
        }
        Ok(commit)
    }
}

impl StoredObject for Commit {
    fn id(&self, keys: &VaultKeys) -> ChunkId {
        let mut encoder = Encoder::new();
        encoder.raw(b"commit");
        for root in [&self.files, &self.snapshots] {
            match root {
                None => encoder.u8(0),
                Some(subtree) => encoder.u8(1).raw(subtree.id.as_bytes()),
            };
        }
        encoder.varint(self.parents.len() as u64);
        for parent in &self.parents {
            encoder.raw(parent.head.as_bytes()).raw(parent.commit.id.as_bytes());
        }
        self.vector.encode(&mut encoder);
        encoder.u64(self.time_ms).bytes(clipped(&self.host).as_bytes());
        ChunkId(*blake3::keyed_hash(&keys.tree_id, encoder.as_slice()).as_bytes())
    }

    fn encode(&self, place: &dyn Place) -> Result<Vec<u8>, Unsealed> {
        let mut encoder = Encoder::new();
        encoder.u16(COMMIT_VERSION);
        write_root(&mut encoder, &self.files, place)?;
        write_root(&mut encoder, &self.snapshots, place)?;
        encoder.varint(self.parents.len() as u64);
        for Parent { head, commit } in &self.parents {
            encoder.raw(head.as_bytes()).raw(commit.id.as_bytes());
            PendingPointer::from(commit.pointer).encode(&mut encoder, place)?;
        }
        self.vector.encode(&mut encoder);
        encoder.u64(self.time_ms).bytes(clipped(&self.host).as_bytes());
        Ok(encoder.into_bytes())
    }
}

/// The key for a nonce that is itself a keyed hash of the message.
fn root_key(keys: &VaultKeys, nonce: &[u8; NONCE_LEN]) -> Zeroizing<[u8; KEY_LEN]> {
    let message = [&b"key"[..], nonce].concat();
    Zeroizing::new(*blake3::keyed_hash(&keys.root_pointer, &message).as_bytes())
}

impl RootPointer {
    /// The bytes for a head's `root`: [`ROOT_LEN`] of them, which nodes cannot read.
    pub fn seal(&self, keys: &VaultKeys) -> Result<Vec<u8>, super::seal::SealError> {
        let mut plain = Encoder::new();
        plain
            .raw(self.id.as_bytes())
            .raw(self.pointer.stripe.as_bytes())
            .u32(self.pointer.offset)
            .u32(self.pointer.len)
            .raw(self.pointer.hash.as_bytes());
        let mut plain = plain.into_bytes();
        let hash = blake3::keyed_hash(&keys.root_pointer, &[&b"nonce"[..], &plain].concat());
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&hash.as_bytes()[..NONCE_LEN]);
        let tag = cipher::encrypt(&root_key(keys, &nonce), nonce, &[ROOT_VERSION], &mut plain)
            .map_err(|_| super::seal::SealError::Library("cipher"))?;
        Ok([&[ROOT_VERSION][..], &nonce, &plain, &tag].concat())
    }

    /// Reads a head's `root`.
    pub fn open(keys: &VaultKeys, sealed: &[u8]) -> Result<Self, VaultError> {
        let wrong = unreadable("a head's root pointer");
        let mut decoder = Decoder::new(sealed);
        let version = decoder.u8("version").map_err(&wrong)?;
        if version != ROOT_VERSION {
            let (what, found, known) = ("root pointer", version.into(), ROOT_VERSION.into());
            return Err(wrong(DecodeError::Version { what, found, known }));
        }
        let nonce = decoder.array("nonce").map_err(&wrong)?;
        let rest = decoder.raw("root pointer", decoder.left()).map_err(&wrong)?;
        let plain = cipher::decrypt(&root_key(keys, &nonce), nonce, &[ROOT_VERSION], rest)
            .map_err(|_| VaultError::Open(super::seal::OpenError::Tag))?;
        let mut decoder = Decoder::new(&plain);
        let mut read = || -> Result<Self, DecodeError> {
            let id = decoder.id("commit id")?;
            let stripe: StripeId = decoder.id("stripe")?;
            let (offset, len) = (decoder.u32("offset")?, decoder.u32("length")?);
            Ok(Self { id, pointer: Pointer { stripe, offset, len, hash: decoder.id("hash")? } })
        };
        let root = read().map_err(&wrong)?;
        decoder.finish().map_err(&wrong)?;
        Ok(root)
    }
}

#[cfg(test)]
mod tests {
    use potluck_proto::head::VersionVector;
    use potluck_proto::id::{ChunkId, Digest, HeadId, StripeId};

    use super::{Commit, Parent, ROOT_LEN, RootPointer};
    use crate::vault::entry::Entry;
    use crate::vault::keys::VaultSecret;
    use crate::vault::memory::{MemoryStore, now};
    use crate::vault::pointer::{Anywhere, Pointer};
    use crate::vault::tree::apply;
    use crate::vault::{NodeStore, StoredObject};

    fn pointer(number: u8) -> RootPointer {
        let pointer = Pointer { stripe: StripeId([number; 32]), offset: 1, len: 2, hash: Digest([number; 32]) };
        RootPointer { id: ChunkId([number; 32]), pointer }
    }

    #[test]
    fn a_commit_is_stored_and_loaded() {
        let keys = VaultSecret::from_bytes([3; 32]).keys();
        let mut store = MemoryStore::new(&keys);
        let files = now(apply(&mut store, &keys, &None, [("a/".into(), Some(Entry::dir()))])).unwrap();
        let mut vector = VersionVector::default();
        vector.set(7, 9);
        let parents = vec![Parent { head: HeadId([1; 32]), commit: pointer(2) }];
        let commit = Commit { files, snapshots: None, parents, vector, time_ms: 5, host: "host".into() };
        let (id, pending) = now(store.store(&commit)).unwrap();
        store.finish_stripe().unwrap();
        let root = RootPointer { id, pointer: store.resolve(&pending).unwrap() };
        let loaded = now(Commit::load(&store, &keys, &root)).unwrap();
        assert_eq!((&loaded.parents, &loaded.vector, &loaded.host), (&commit.parents, &commit.vector, &commit.host));
        // The tree was packed beside the commit, and is named by the commit's own stripe.
        let (read, written) = (loaded.files.unwrap(), commit.files.unwrap());
        assert_eq!((read.id, read.pointer.sealed().unwrap().stripe), (written.id, root.pointer.stripe));
        let other = RootPointer { id: ChunkId([0; 32]), ..root };
        assert!(now(Commit::load(&store, &keys, &other)).is_err());
    }

    /// Golden: FORMAT.md, "Commit".
    #[test]
    fn bytes_are_as_documented() {
        let parents = vec![Parent { head: HeadId([1; 32]), commit: pointer(2) }];
        let mut vector = VersionVector::default();
        vector.set(7, 9);
        let commit = Commit { files: None, snapshots: None, parents, vector, time_ms: 5, host: "h".into() };
        let golden = [
            &[1, 0, 0, 0, 1][..],
            &[1; 32],
            &[2; 32],
            &[1],
            &[2; 32],
            &[1, 0, 0, 0, 2, 0, 0, 0],
            &[2; 32],
            &[1, 7, 0, 0, 0, 0, 0, 0, 0, 9, 5, 0, 0, 0, 0, 0, 0, 0, 1, b'h'],
        ];
        assert_eq!(commit.encode(&Anywhere).unwrap(), golden.concat());
    }

    #[test]
    fn a_root_pointer_is_for_the_vault_only() {
        let keys = VaultSecret::from_bytes([3; 32]).keys();
        let sealed = pointer(4).seal(&keys).unwrap();
        assert_eq!(sealed.len(), ROOT_LEN);
        assert!(sealed.len() <= potluck_proto::head::ROOT_LIMIT);
        assert_eq!(RootPointer::open(&keys, &sealed).unwrap(), pointer(4));
        assert!(RootPointer::open(&VaultSecret::from_bytes([4; 32]).keys(), &sealed).is_err());
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(RootPointer::open(&keys, &damaged).is_err(), "byte {at}");
            assert!(RootPointer::open(&keys, &sealed[..at]).is_err(), "cut at {at}");
        }
        assert_eq!(
            blake3::hash(&sealed).to_string(),
            "2bc71be4ecd0b39460ad70d0db0df12eb811ca24ff4016c063e8b4483a72225b"
        );
    }
}
