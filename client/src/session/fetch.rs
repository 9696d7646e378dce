//! Fetching stored bytes and opening them: on the way in, a vault's chunks pass here and nowhere else.
//!
//! Opened chunks are kept, up to a bound, by the keyed hash of what was encrypted: equal hashes are equal plaintexts,
//! wherever they lie. Decryption and checking run on the executor.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use potluck_proto::id::{ChunkId, Digest, StripeId};
use potluck_proto::transport::Executor;

use super::SessionError;
use crate::cluster::{Cluster, Proof, StripeBytes};
use crate::vault::entry::ChunkRef;
use crate::vault::keys::VaultKeys;
use crate::vault::pointer::Pointer;
use crate::vault::seal::{OpenError, Opener};
use crate::vault::{VaultError, seal};

/// Bytes of opened chunks and tree nodes that are kept.
const CACHE_BYTES: usize = 32 << 20;

/// Openers kept for the next use.
const OPENERS: usize = 8;

/// What an entry of the cache costs beside its bytes.
const ENTRY_COST: usize = 128;

/// Where chunks come from.
pub(super) struct Fetcher {
    cluster: Cluster,
    executor: Executor,
    openers: Arc<Openers>,
    cache: Mutex<Cache>,
}

/// Openers that nobody uses just now: one is needed per thread.
struct Openers {
    keys: VaultKeys,
    idle: Mutex<Vec<Opener>>,
}

impl Openers {
    fn with<T>(&self, work: impl FnOnce(&mut Opener) -> Result<T, OpenError>) -> Result<T, OpenError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut opener = match idle {
            Some(opener) => opener,
            None => Opener::new(&self.keys)?,
        };
        let result = work(&mut opener);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < OPENERS {
            idle.push(opener);
        }
        result
    }
}

/// Plaintexts by hash; what was not used for longest goes first.
#[derive(Default)]
struct Cache {
    entries: HashMap<Digest, (Bytes, u64)>,
    order: BTreeMap<u64, Digest>,
    turn: u64,
    cost: usize,
}

impl Cache {
    fn get(&mut self, hash: &Digest) -> Option<Bytes> {
        let (bytes, turn) = self.entries.get_mut(hash)?;
        self.order.remove(turn);
        self.turn += 1;
        *turn = self.turn;
        self.order.insert(self.turn, *hash);
        Some(bytes.clone())
    }

    fn insert(&mut self, hash: Digest, bytes: Bytes, limit: usize) {
        let cost = bytes.len() + ENTRY_COST;
        if cost > limit || self.get(&hash).is_some() {
            return;
        }
        self.turn += 1;
        self.cost += cost;
        self.order.insert(self.turn, hash);
        self.entries.insert(hash, (bytes, self.turn));
        while self.cost > limit {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            if let Some((bytes, _)) = self.entries.remove(&oldest) {
                self.cost -= bytes.len() + ENTRY_COST;
            }
        }
    }
}

impl Fetcher {
    pub(super) fn new(cluster: Cluster, executor: Executor, keys: VaultKeys) -> Self {
        let openers = Arc::new(Openers { keys, idle: Mutex::new(Vec::new()) });
        Self { cluster, executor, openers, cache: Mutex::new(Cache::default()) }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the plaintext of an object that was just written: it will be read again soon.
    pub(super) fn keep(&self, hash: Digest, plain: Bytes) {
        self.cache().insert(hash, plain, CACHE_BYTES);
    }

    /// The plaintext that was kept under this hash, if it still is.
    pub(super) fn kept(&self, hash: &Digest) -> Option<Bytes> {
        self.cache().get(hash)
    }

    /// The plaintext of an object, which checks its own id.
    pub(super) async fn object(&self, pointer: &Pointer) -> Result<Bytes, VaultError> {
        if let Some(plain) = self.kept(&pointer.hash) {
            return Ok(plain);
        }
        let start = u64::from(pointer.offset);
        let range = start..start + u64::from(pointer.len);
        let stored = self.cluster.read(pointer.stripe, range).await.map_err(SessionError::from)?;
        let plain = self.open(pointer.hash, stored).await?;
        self.keep(pointer.hash, plain.clone());
        Ok(plain)
    }

    /// Opens an object's stored bytes.
    pub(super) async fn open(&self, hash: Digest, stored: Bytes) -> Result<Bytes, VaultError> {
        let openers = self.openers.clone();
        let opened = self.executor.run(move || openers.with(|opener| opener.open(&hash, &stored))).await;
        Ok(opened.map_err(SessionError::from)??)
    }

    /// The plaintext of a data chunk, checked against its id; it is kept for the next call.
    pub(super) async fn chunk(&self, chunk: &ChunkRef) -> Result<Bytes, SessionError> {
        let pointer = chunk.pointer.sealed().map_err(VaultError::from)?;
        if let Some(plain) = self.kept(&pointer.hash) {
            // Equal hashes are equal plaintexts, but the reference's id may still be a wrong one.
            let (keys, id) = (self.openers.clone(), chunk.id);
            let check = plain.clone();
            let right = self.executor.run(move || seal::chunk_id(&keys.keys, &check) == id).await?;
            return if right { Ok(plain) } else { Err(SessionError::Vault(OpenError::Id.into())) };
        }
        let start = u64::from(pointer.offset);
        let range = start..start + u64::from(pointer.len);
        let mut opened = self.chunks(pointer.stripe, range, vec![(chunk.id, pointer)]).await?;
        let plain = opened.pop().ok_or_else(|| SessionError::Internal("no chunk was opened".into()))?;
        self.keep(pointer.hash, plain.clone());
        Ok(plain)
    }

    /// The plaintexts of data chunks that lie in `range` of one stripe, which is read at once. Nothing is kept.
    pub(super) async fn chunks(
        &self,
        stripe: StripeId,
        range: Range<u64>,
        wanted: Vec<(ChunkId, Pointer)>,
    ) -> Result<Vec<Bytes>, SessionError> {
        let start = range.start;
        let wanted: Arc<[_]> = wanted.into();
        let stored = self.cluster.read_pieces(stripe, range.clone(), Proof::Later).await?;
        // What opens proves itself: by the cipher's tag, and by the chunk's id over every byte.
        if let Ok(opened) = self.open_chunks(start, stored, wanted.clone()).await? {
            return Ok(opened);
        }
        let stored = self.cluster.read_pieces(stripe, range, Proof::Now).await?;
        Ok(self.open_chunks(start, stored, wanted).await?.map_err(VaultError::from)?)
    }

    /// Opens data chunks; `stored` begins at `start` of their stripe.
    async fn open_chunks(
        &self,
        start: u64,
        stored: StripeBytes,
        wanted: Arc<[(ChunkId, Pointer)]>,
    ) -> Result<Result<Vec<Bytes>, OpenError>, SessionError> {
        let openers = self.openers.clone();
        let open = move || {
            openers.with(|opener| {
                let mut opened = Vec::with_capacity(wanted.len());
                for (id, pointer) in wanted.iter() {
                    let begin = (u64::from(pointer.offset) - start) as usize;
                    // The cluster gives as many bytes as were asked for; less would fail the tag.
                    let bytes = stored.get(begin..begin + pointer.len as usize).unwrap_or_default();
                    opened.push(opener.open_chunk(id, &pointer.hash, &bytes)?);
                }
                Ok(opened)
            })
        };
        Ok(self.executor.run(open).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let (one, two, three) = (Digest([1; 32]), Digest([2; 32]), Digest([3; 32]));
        let bytes = Bytes::from(vec![0; 100]);
        let limit = 2 * (100 + ENTRY_COST);
        let mut cache = Cache::default();
        cache.insert(one, bytes.clone(), limit);
        cache.insert(two, bytes.clone(), limit);
        assert!(cache.get(&one).is_some());
        cache.insert(three, bytes.clone(), limit);
        assert!(cache.get(&one).is_some() && cache.get(&two).is_none() && cache.get(&three).is_some());
        assert_eq!(cache.cost, limit);
        cache.insert(two, Bytes::from(vec![0; limit]), limit);
        assert!(cache.get(&two).is_none(), "larger than the whole cache");
        cache.insert(one, bytes, limit);
        assert_eq!((cache.cost, cache.entries.len(), cache.order.len()), (limit, 2, 2));
    }
}
