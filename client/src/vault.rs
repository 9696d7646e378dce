//! The vault: one user's end-to-end encrypted map from paths to files, as pure computation.
//!
//! Bytes become chunks (`chunker`), sealed chunks (`seal`) and stripes (`pack`); chunks make up files (`entry`,
//! `content`), files make up the `tree`, trees make up a `commit`, and commits are merged (`merge`). Secrets begin in
//! `keys`, rest in a `keyfile`, and survive a fire on a `sheet` of paper. Nothing here knows the network, the disk, the
//! clock or the command line: whatever is stored or loaded goes through [`NodeStore`].

pub mod chunker;
mod cipher;
pub mod commit;
pub mod content;
pub mod entry;
pub mod keyfile;
pub mod keys;
pub mod memory;
pub mod merge;
pub mod pack;
pub mod path;
pub mod pointer;
pub mod seal;
pub mod sheet;
pub mod tree;

use std::future::Future;

use bytes::Bytes;
use potluck_proto::encoding::DecodeError;
use potluck_proto::id::ChunkId;

use self::keys::VaultKeys;
use self::pointer::{PendingPointer, Place, Unsealed};

/// Why something in a vault could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// Stored bytes do not have the form they should have. Nothing was changed.
    #[error("{what} cannot be read: {source}")]
    Decode {
        /// The kind of thing.
        what: &'static str,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// A chunk was damaged or is another one. No byte of it was used.
    #[error(transparent)]
    Open(#[from] seal::OpenError),
    /// A chunk could not be sealed.
    #[error(transparent)]
    Seal(#[from] seal::SealError),
    /// What was read is genuine, but not what the reference to it names.
    #[error("{0} is not the one that its reference names")]
    WrongId(&'static str),
    /// A path is no valid key of a tree.
    #[error(transparent)]
    Path(#[from] path::PathError),
    /// An entry breaks a limit of its format. The old tree stands.
    #[error("the entry of {path:?} cannot be stored: {source}")]
    Entry {
        /// Its path, for people.
        path: String,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// Changes to a tree must come sorted by path, each path once. The old tree stands.
    #[error("changes are not sorted by path: {0:?} comes after a path that is not smaller")]
    Unsorted(String),
    /// Something points into a stripe that is still open, where only finished ones can be read.
    #[error(transparent)]
    Unsealed(#[from] Unsealed),
    /// The store below failed.
    #[error("reading or writing the vault's stripes failed: {0}")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Something made of references that is stored as one chunk: a tree node, a list of chunks, a commit.
///
/// Its id does not depend on where things are; its bytes do.
pub trait StoredObject: Sync {
    /// What it is known by.
    fn id(&self, keys: &VaultKeys) -> ChunkId;

    /// Its plaintext, if it is to lie at `place`. [`Unsealed`] when it points into a stripe that has no id yet and is
    /// not the one at `place`: wait for that stripe and try again.
    fn encode(&self, place: &dyn Place) -> Result<Vec<u8>, Unsealed>;
}

/// Where tree nodes, chunk lists and commits are read from and written to.
///
/// The asynchronous layer implements it over the cluster (see [`pack::Packer::place`], which does the hard half of
/// `store`), [`memory::MemoryStore`] over a map.
pub trait NodeStore: Sync {
    /// The plaintext of the chunk at `pointer`, checked against the hash in it. A store may, but need not, serve
    /// pointers into stripes of its own that are still open; else it answers [`VaultError::Unsealed`].
    fn load(&self, pointer: &PendingPointer) -> impl Future<Output = Result<Bytes, VaultError>> + Send;

    /// Seals and packs `object`; its id, and where it is. That may be an open stripe: nothing is durable yet.
    fn store(
        &mut self,
        object: &dyn StoredObject,
    ) -> impl Future<Output = Result<(ChunkId, PendingPointer), VaultError>> + Send;
}

/// Wraps an error of reading `what`.
pub(crate) fn unreadable(what: &'static str) -> impl Fn(DecodeError) -> VaultError {
    move |source| VaultError::Decode { what, source }
}

#[cfg(test)]
mod tests;
