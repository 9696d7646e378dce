//! What reads leave behind for the next ones: headers, who held what, who held damage, and recent blocks. All bounded.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use potluck_proto::id::{NodeId, StripeId};
use potluck_proto::stripe::{Scheme, SignedHeader};
use tokio::sync::watch;

/// Most headers looked for at once.
const TURNS: usize = 64;

/// A map that forgets what was not used for longest when its entries' cost passes a limit.
#[derive(Debug)]
struct Lru<K, V> {
    entries: HashMap<K, (V, usize, u64)>,
    order: BTreeMap<u64, K>,
    turn: u64,
    cost: usize,
    limit: usize,
}

impl<K: Hash + Eq + Clone, V> Lru<K, V> {
    fn new(limit: usize) -> Self {
        Self { entries: HashMap::new(), order: BTreeMap::new(), turn: 0, cost: 0, limit }
    }

    fn get(&mut self, key: &K) -> Option<&mut V> {
        let (value, _, turn) = self.entries.get_mut(key)?;
        self.order.remove(turn);
        self.turn += 1;
        *turn = self.turn;
        self.order.insert(self.turn, key.clone());
        Some(value)
    }

    fn insert(&mut self, key: K, value: V, cost: usize) {
        self.turn += 1;
        if let Some((_, old_cost, old_turn)) = self.entries.insert(key.clone(), (value, cost, self.turn)) {
            self.order.remove(&old_turn);
            self.cost -= old_cost;
        }
        self.order.insert(self.turn, key);
        self.cost += cost;
        while self.cost > self.limit {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            if let Some((_, cost, _)) = self.entries.remove(&oldest) {
                self.cost -= cost;
            }
        }
    }
}

/// What is remembered of one stripe.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// Its header.
    pub(super) header: Option<SignedHeader>,
    /// Who was seen to hold which index.
    pub(super) holders: BTreeMap<usize, BTreeSet<NodeId>>,
    /// Who sent wrong bytes for which index.
    pub(super) damaged: BTreeSet<(usize, NodeId)>,
}

type BlockKey = (StripeId, usize, u64);

/// The memory of reads.
#[derive(Debug)]
pub(super) struct Cache {
    stripes: Mutex<Lru<StripeId, Known>>,
    blocks: Mutex<Lru<BlockKey, Bytes>>,
    /// The scheme of the last header that came: a guess at that of the next.
    scheme: Mutex<Option<Scheme>>,
    /// Reads of blocks that are under way; each ends with its flight.
    flights: Mutex<HashMap<BlockKey, watch::Receiver<()>>>,
    /// Locks shared by the stripes whose ids begin alike.
    turns: Vec<tokio::sync::Mutex<()>>,
}

impl Cache {
    /// For so many stripes, and so many bytes of blocks.
    pub(super) fn new(stripes: usize, bytes: usize) -> Self {
        Self {
            stripes: Mutex::new(Lru::new(stripes)),
            blocks: Mutex::new(Lru::new(bytes)),
            scheme: Mutex::new(None),
            flights: Mutex::default(),
            turns: (0..TURNS).map(|_| tokio::sync::Mutex::new(())).collect(),
        }
    }

    fn stripes(&self) -> MutexGuard<'_, Lru<StripeId, Known>> {
        self.stripes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered of a stripe.
    pub(super) fn known(&self, stripe: &StripeId) -> Known {
        self.stripes().get(stripe).cloned().unwrap_or_default()
    }

    /// Remembers something of a stripe.
    pub(super) fn note(&self, stripe: &StripeId, change: impl FnOnce(&mut Known)) {
        let mut stripes = self.stripes();
        if let Some(known) = stripes.get(stripe) {
            change(known);
            return;
        }
        let mut known = Known::default();
        change(&mut known);
        stripes.insert(*stripe, known, 1);
    }

    /// Held by whoever looks for the stripe's header.
    pub(super) fn turn(&self, stripe: &StripeId) -> &tokio::sync::Mutex<()> {
        &self.turns[usize::from(stripe.as_bytes()[0]) % TURNS]
    }

    /// The scheme that the last header named.
    pub(super) fn scheme(&self) -> Option<Scheme> {
        *self.scheme.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the scheme of a header.
    pub(super) fn note_scheme(&self, scheme: Scheme) {
        *self.scheme.lock().unwrap_or_else(PoisonError::into_inner) = Some(scheme);
    }

    /// To be held by whoever reads a block that is not kept. `None` after somebody else's read of it has ended, however it
    /// did: it is kept now, or everyone is to try for himself.
    pub(super) async fn flight(&self, stripe: StripeId, index: usize, block: u64) -> Option<Flight<'_>> {
        let key = (stripe, index, block);
        let other = match self.flights().entry(key) {
            Entry::Occupied(other) => other.get().clone(),
            Entry::Vacant(place) => {
                let (ends, ended) = watch::channel(());
                place.insert(ended);
                return Some(Flight { cache: self, key, _ends: ends });
            }
        };
        let mut other = other;
        // Nothing is ever sent: it ends.
        let _ = other.changed().await;
        None
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<BlockKey, watch::Receiver<()>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block of a shard that was read and checked before.
    pub(super) fn block(&self, stripe: StripeId, index: usize, block: u64) -> Option<Bytes> {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.get(&(stripe, index, block)).map(|bytes| bytes.clone())
    }

    /// Keeps a checked block. Its bytes are copied, so that a slice does not hold on to a whole payload.
    pub(super) fn keep_block(&self, stripe: StripeId, index: usize, block: u64, bytes: &[u8]) {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.insert((stripe, index, block), Bytes::copy_from_slice(bytes), bytes.len());
    }
}

/// A read of a block that others wait for.
pub(super) struct Flight<'a> {
    cache: &'a Cache,
    key: BlockKey,
    _ends: watch::Sender<()>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.cache.flights().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_reads_a_block_and_the_others_wait_for_him() {
        let (cache, stripe) = (Cache::new(1, 1), StripeId([1; 32]));
        let first = cache.flight(stripe, 0, 7).await;
        assert!(first.is_some() && cache.flight(stripe, 0, 8).await.is_some());
        let second = cache.flight(stripe, 0, 7);
        tokio::pin!(second);
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        drop(first);
        assert!(second.await.is_none());
        assert!(cache.flight(stripe, 0, 7).await.is_some() && cache.flights().is_empty());
    }

    #[test]
    fn the_oldest_goes_first_and_the_limit_holds() {
        let mut lru = Lru::new(10);
        lru.insert(1, 'a', 4);
        lru.insert(2, 'b', 4);
        assert_eq!(lru.get(&1), Some(&mut 'a'));
        lru.insert(3, 'c', 4);
        assert_eq!(lru.get(&2), None, "used less recently than 1");
        assert_eq!((lru.get(&1).copied(), lru.get(&3).copied()), (Some('a'), Some('c')));
        lru.insert(1, 'd', 8);
        assert_eq!((lru.get(&1).copied(), lru.get(&3).copied()), (Some('d'), None));
        lru.insert(4, 'e', 11);
        assert_eq!(lru.cost, 0, "what is larger than the limit is not kept");
    }
}
