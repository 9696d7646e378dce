//! Shards in memory: for the simulation, where a thousand synced files would only cost time.
//!
//! It keeps the promises of the interface but one: nothing survives the process.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use potluck_proto::blocks::{self, BlockTree};
use potluck_proto::id::StripeId;
use potluck_proto::stripe::SignedHeader;

use super::{Check, Held, ShardKey, ShardRead, ShardState, ShardStore, StoreError, Usage};

struct Entry {
    header: SignedHeader,
    tree: BlockTree,
    data: Bytes,
    held: Held,
}

/// Shards in memory, `capacity` bytes at most.
pub struct MemoryStore {
    capacity: u64,
    shards: Mutex<BTreeMap<ShardKey, Entry>>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        Self { capacity, shards: Mutex::default() }
    }

    /// Flips one bit of a shard, as a bad disk does. False if it is not held.
    pub fn damage(&self, key: ShardKey) -> bool {
        let mut shards = self.shards();
        let Some(entry) = shards.get_mut(&key) else { return false };
        let mut bytes = entry.data.to_vec();
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        entry.data = bytes.into();
        true
    }

    fn shards(&self) -> MutexGuard<'_, BTreeMap<ShardKey, Entry>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, key: ShardKey, change: impl FnOnce(&mut Held)) -> Result<(), StoreError> {
        let mut shards = self.shards();
        change(&mut shards.get_mut(&key).ok_or(StoreError::NotFound)?.held);
        Ok(())
    }

    fn read_range(&self, key: ShardKey, range: Range<u64>, check: Check) -> Result<ShardRead, StoreError> {
        let mut shards = self.shards();
        let entry = shards.get(&key).ok_or(StoreError::NotFound)?;
        let len = entry.tree.shard_len();
        if range.end > len || range.start > range.end {
            return Err(StoreError::Range);
        }
        let range = if range.is_empty() { 0..len } else { range };
        let wide = blocks::widen(range.start, range.end - range.start, len);
        let data = entry.data.slice(wide.start as usize..wide.end as usize);
        if check == Check::Here && entry.tree.check_range(wide.start, &data).is_err() {
            shards.remove(&key);
            return Err(StoreError::Corrupt("payload"));
        }
        Ok(ShardRead { header: entry.header.bytes().clone(), tree: entry.tree.clone(), offset: wide.start, data })
    }
}

fn of_stripe(stripe: StripeId) -> std::ops::RangeInclusive<ShardKey> {
    ShardKey { stripe, index: 0 }..=ShardKey { stripe, index: usize::MAX }
}

impl ShardStore for MemoryStore {
    fn put(
        &self,
        header: &SignedHeader,
        index: usize,
        shard: &[u8],
        tree: &BlockTree,
        touched: u64,
    ) -> Result<bool, StoreError> {
        let key = ShardKey { stripe: header.id(), index };
        let usage = self.usage();
        let mut shards = self.shards();
        if let Some(entry) = shards.get_mut(&key) {
            entry.held.state = ShardState::Live;
            return Ok(false);
        }
        if usage.live + usage.trash + shard.len() as u64 > self.capacity {
            return Err(StoreError::Full);
        }
        let held = Held {
            index,
            state: ShardState::Live,
            complete: false,
            touched,
            len: shard.len() as u32,
            scheme: header.scheme,
        };
        let data = Bytes::copy_from_slice(shard);
        shards.insert(key, Entry { header: header.clone(), tree: tree.clone(), data, held });
        Ok(true)
    }

    fn read(&self, key: ShardKey, range: Range<u64>, check: Check) -> Result<ShardRead, StoreError> {
        let read = self.read_range(key, range, check)?;
        self.revive(key)?;
        Ok(read)
    }

    fn header(&self, stripe: &StripeId) -> Result<SignedHeader, StoreError> {
        let shards = self.shards();
        let (_, entry) = shards.range(of_stripe(*stripe)).next().ok_or(StoreError::NotFound)?;
        Ok(entry.header.clone())
    }

    fn held(&self, stripe: &StripeId) -> Result<Vec<Held>, StoreError> {
        Ok(self.shards().range(of_stripe(*stripe)).map(|(_, entry)| entry.held).collect())
    }

    fn stripes(&self, after: Option<StripeId>, limit: usize) -> Result<Vec<StripeId>, StoreError> {
        let mut stripes: Vec<StripeId> = Vec::new();
        for key in self.shards().keys() {
            if stripes.last() != Some(&key.stripe) && after.is_none_or(|after| key.stripe > after) {
                if stripes.len() == limit {
                    break;
                }
                stripes.push(key.stripe);
            }
        }
        Ok(stripes)
    }

    fn trash(&self, key: ShardKey, until_ms: u64) -> Result<(), StoreError> {
        self.change(key, |held| held.state = ShardState::Trash { until_ms })
    }

    fn revive(&self, key: ShardKey) -> Result<(), StoreError> {
        self.change(key, |held| held.state = ShardState::Live)
    }

    fn expired(&self, running_ms: u64, after: Option<ShardKey>, limit: usize) -> Result<Vec<ShardKey>, StoreError> {
        let shards = self.shards();
        let past = |entry: &Entry| matches!(entry.held.state, ShardState::Trash { until_ms } if until_ms <= running_ms);
        let expired = shards.iter().filter(|(key, entry)| after.is_none_or(|after| **key > after) && past(entry));
        Ok(expired.map(|(key, _)| *key).take(limit).collect())
    }

    fn delete(&self, key: ShardKey, running_ms: u64) -> Result<bool, StoreError> {
        let mut shards = self.shards();
        let past = shards
            .get(&key)
            .is_some_and(|entry| matches!(entry.held.state, ShardState::Trash { until_ms } if until_ms <= running_ms));
        Ok(past && shards.remove(&key).is_some())
    }

    fn retry_unreadable(&self) -> Vec<ShardKey> {
        Vec::new()
    }

    fn set_complete(&self, key: ShardKey) -> Result<(), StoreError> {
        self.change(key, |held| held.complete = true)
    }

    fn verify(&self, key: ShardKey) -> Result<u64, StoreError> {
        self.read_range(key, 0..0, Check::Here).map(|read| read.data.len() as u64)
    }

    fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for entry in self.shards().values() {
            let size = entry.data.len() as u64;
            match entry.held.state {
                ShardState::Live => {
                    usage.live += size;
                    usage.shards += 1;
                }
                ShardState::Trash { .. } => usage.trash += size,
            }
        }
        usage
    }

    fn full(&self) -> bool {
        let usage = self.usage();
        usage.live + usage.trash >= self.capacity
    }
}
