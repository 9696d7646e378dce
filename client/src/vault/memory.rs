//! A store in memory, for tests and trials: real sealing and packing, stripes that nobody codes or sends.

use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::Bytes;
use potluck_proto::id::{ChunkId, StripeId};
use potluck_proto::stripe::Scheme;

use super::keys::VaultKeys;
use super::pack::{OpenStripe, Packer, Placed};
use super::pointer::{PendingPointer, Pointer, Unsealed};
use super::seal::{Opener, ReadyChunk, SealError, Sealer};
use super::{NodeStore, StoredObject, VaultError};

/// Stripes in a map. Their ids are made up.
pub struct MemoryStore {
    packer: Packer,
    sealer: Sealer,
    opener: Mutex<Opener>,
    stripes: BTreeMap<StripeId, Bytes>,
    stored: usize,
    loaded: Mutex<usize>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    #[expect(clippy::expect_used, reason = "only for tests; zstd contexts are made unless memory is out")]
    pub fn new(keys: &VaultKeys) -> Self {
        let scheme = Scheme::new(1, 0).expect("1+0 is a scheme");
        Self {
            packer: Packer::new(scheme),
            sealer: Sealer::new(keys).expect("a compressor"),
            opener: Mutex::new(Opener::new(keys).expect("a decompressor")),
            stripes: BTreeMap::new(),
            stored: 0,
            loaded: Mutex::new(0),
        }
    }

    /// Seals and packs a data chunk.
    pub fn put(&mut self, plain: &[u8]) -> Result<(ReadyChunk, PendingPointer), SealError> {
        let chunk = self.sealer.seal(plain)?;
        loop {
            if let Some(pointer) = self.packer.append(&chunk) {
                return Ok((chunk, pointer));
            }
            self.finish_stripe()?;
        }
    }

    /// Ends the open stripe, so that what was stored so far has pointers with a stripe id.
    pub fn finish_stripe(&mut self) -> Result<(), SealError> {
        self.packer.close().map_or(Ok(()), |closed| self.keep(closed))
    }

    /// The finished pointer.
    pub fn resolve(&self, pointer: &PendingPointer) -> Result<Pointer, Unsealed> {
        pointer.resolve(|sequence| self.packer.resolve(sequence))
    }

    /// Objects stored and objects loaded since the last call.
    pub fn take_counts(&mut self) -> (usize, usize) {
        let loaded = match self.loaded.get_mut() {
            Ok(loaded) => std::mem::take(loaded),
            Err(_) => 0,
        };
        (std::mem::take(&mut self.stored), loaded)
    }

    fn keep(&mut self, closed: OpenStripe) -> Result<(), SealError> {
        let id = StripeId(*blake3::hash(&closed.sequence().to_le_bytes()).as_bytes());
        self.packer.finished(closed.sequence(), id);
        self.stripes.insert(id, closed.into_data()?.into());
        Ok(())
    }

    fn stored_bytes(&self, pointer: &PendingPointer) -> Result<Vec<u8>, VaultError> {
        if let Some(chunk) = self.packer.read_open(pointer) {
            return Ok(chunk.stored()?);
        }
        let sealed = self.resolve(pointer)?;
        let start = sealed.offset as usize;
        self.stripes
            .get(&sealed.stripe)
            .and_then(|stripe| stripe.get(start..start + sealed.len as usize))
            .map(<[u8]>::to_vec)
            .ok_or_else(|| VaultError::Store("no such stripe".into()))
    }
}

impl NodeStore for MemoryStore {
    async fn load(&self, pointer: &PendingPointer) -> Result<Bytes, VaultError> {
        let stored = self.stored_bytes(pointer)?;
        if let Ok(mut loaded) = self.loaded.lock() {
            *loaded += 1;
        }
        match self.opener.lock() {
            Ok(mut opener) => Ok(opener.open(&pointer.hash, &stored)?),
            Err(_) => Err(VaultError::Store("a test panicked".into())),
        }
    }

    async fn store(&mut self, object: &dyn StoredObject) -> Result<(ChunkId, PendingPointer), VaultError> {
        self.stored += 1;
        let id = object.id(self.sealer.keys());
        loop {
            match self.packer.place(&mut self.sealer, id, object)? {
                Placed::At(pointer) => return Ok((id, pointer)),
                Placed::Full => self.finish_stripe()?,
                Placed::Waits(unsealed) => return Err(unsealed.into()),
            }
        }
    }
}

/// The result of a future that never waits, as those over a [`MemoryStore`].
#[cfg(test)]
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    futures_util::FutureExt::now_or_never(future).expect("a memory store never waits")
}
