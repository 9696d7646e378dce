//! The index over the shard files: what is held, without opening a file.
//!
//! It can be lost, damaged or deleted at any moment: the file names say the same, and the store makes it anew from them.
//! sled is one keeper of it; it is never trusted with anything that must last.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use potluck_proto::encoding::{DecodeError, Decoder, Encoder};
use potluck_proto::id::StripeId;
use potluck_proto::stripe::Scheme;

use super::{Held, ShardKey, ShardState};

/// Memory that sled may use for its pages, in bytes.
const SLED_CACHE_BYTES: u64 = 32 << 20;

/// The index failed; it can be deleted and made anew.
#[derive(Debug, thiserror::Error)]
#[error("the index failed: {0}")]
pub struct IndexError(String);

/// Keeps what is known of the shards held.
pub trait Index: Send + Sync + 'static {
    /// What is held of a stripe, in order of index.
    fn held(&self, stripe: &StripeId) -> Result<Vec<Held>, IndexError>;
    /// Records a shard.
    fn insert(&self, stripe: &StripeId, held: &Held) -> Result<(), IndexError>;
    /// Forgets a shard.
    fn remove(&self, key: &ShardKey) -> Result<(), IndexError>;
    /// Up to `limit` stripes after `after`, in order.
    fn stripes(&self, after: Option<StripeId>, limit: usize) -> Result<Vec<StripeId>, IndexError>;
    /// Every shard, for the comparison with the files at the start.
    fn all(&self) -> Result<BTreeMap<ShardKey, Held>, IndexError>;
}

/// An index in memory: for the simulation, and where sled cannot be opened.
#[derive(Debug, Default)]
pub struct MemoryIndex(Mutex<BTreeMap<ShardKey, Held>>);

impl MemoryIndex {
    fn map(&self) -> MutexGuard<'_, BTreeMap<ShardKey, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of_stripe(stripe: StripeId) -> std::ops::RangeInclusive<ShardKey> {
    ShardKey { stripe, index: 0 }..=ShardKey { stripe, index: usize::MAX }
}

impl Index for MemoryIndex {
    fn held(&self, stripe: &StripeId) -> Result<Vec<Held>, IndexError> {
        Ok(self.map().range(of_stripe(*stripe)).map(|(_, held)| *held).collect())
    }

    fn insert(&self, stripe: &StripeId, held: &Held) -> Result<(), IndexError> {
        self.map().insert(ShardKey { stripe: *stripe, index: held.index }, *held);
        Ok(())
    }

    fn remove(&self, key: &ShardKey) -> Result<(), IndexError> {
        self.map().remove(key);
        Ok(())
    }

    fn stripes(&self, after: Option<StripeId>, limit: usize) -> Result<Vec<StripeId>, IndexError> {
        let map = self.map();
        let mut stripes: Vec<StripeId> = Vec::new();
        let mut after = after;
        while stripes.len() < limit {
            let from = match after {
                Some(stripe) => std::ops::Bound::Excluded(ShardKey { stripe, index: usize::MAX }),
                None => std::ops::Bound::Unbounded,
            };
            let Some((key, _)) = map.range((from, std::ops::Bound::Unbounded)).next() else { break };
            stripes.push(key.stripe);
            after = Some(key.stripe);
        }
        Ok(stripes)
    }

    fn all(&self) -> Result<BTreeMap<ShardKey, Held>, IndexError> {
        Ok(self.map().clone())
    }
}

/// An index in a sled database.
pub struct SledIndex(sled::Db);

impl SledIndex {
    /// Opens the database at `folder`. A damaged one, also one over which sled panics, is moved aside and begun anew:
    /// the caller fills it from the files.
    pub fn open(folder: &Path) -> Result<Self, IndexError> {
        let open = || {
            let config = sled::Config::new().path(folder).cache_capacity(SLED_CACHE_BYTES).mode(sled::Mode::LowSpace);
            match catch_unwind(AssertUnwindSafe(|| config.open())) {
                Ok(Ok(db)) => Ok(Self(db)),
                Ok(Err(error)) => Err(IndexError(error.to_string())),
                Err(_) => Err(IndexError("sled panicked at open".into())),
            }
        };
        open().or_else(|error| {
            tracing::warn!(%error, folder = %folder.display(), "the index is damaged: rebuilding it from the shard files");
            let mut aside = folder.as_os_str().to_owned();
            aside.push(".damaged");
            let _ = std::fs::remove_dir_all(&aside);
            std::fs::rename(folder, &aside).map_err(|error| IndexError(error.to_string()))?;
            open()
        })
    }

    /// Runs `work`, turning both errors and panics of sled into one error.
    fn guarded<T>(&self, work: impl FnOnce(&sled::Db) -> Result<T, sled::Error>) -> Result<T, IndexError> {
        match catch_unwind(AssertUnwindSafe(|| work(&self.0))) {
            Ok(result) => result.map_err(|error| IndexError(error.to_string())),
            Err(_) => Err(IndexError("sled panicked".into())),
        }
    }
}

fn encode_key(key: &ShardKey) -> [u8; 33] {
    let mut bytes = [0; 33];
    bytes[..32].copy_from_slice(key.stripe.as_bytes());
    bytes[32] = key.index as u8;
    bytes
}

fn decode_key(bytes: &[u8]) -> Option<ShardKey> {
    let (stripe, index) = bytes.split_at_checked(32)?;
    Some(ShardKey { stripe: StripeId::from_slice(stripe)?, index: usize::from(*index.first()?) })
}

fn encode_held(held: &Held) -> Vec<u8> {
    let (trashed, until_ms) = match held.state {
        ShardState::Live => (0, 0),
        ShardState::Trash { until_ms } => (1, until_ms),
    };
    let mut encoder = Encoder::new();
    encoder.u8(trashed | u8::from(held.complete) << 1).u64(until_ms).u64(held.touched).u32(held.len);
    encoder.u8(held.scheme.k() as u8).u8(held.scheme.m() as u8);
    encoder.into_bytes()
}

fn decode_held(index: usize, bytes: &[u8]) -> Result<Held, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    let flags = decoder.u8("flags")?;
    let until_ms = decoder.u64("until")?;
    let (touched, len) = (decoder.u64("touched")?, decoder.u32("length")?);
    let (k, m) = (decoder.u8("k")?, decoder.u8("m")?);
    decoder.finish()?;
    let scheme =
        Scheme::new(k.into(), m.into()).map_err(|_| DecodeError::Invalid { field: "scheme", why: "out of range" })?;
    let state = if flags & 1 == 0 { ShardState::Live } else { ShardState::Trash { until_ms } };
    Ok(Held { index, state, complete: flags & 2 != 0, touched, len, scheme })
}

fn read_entry(key: &[u8], value: &[u8]) -> Result<(ShardKey, Held), IndexError> {
    let key = decode_key(key).ok_or_else(|| IndexError("a key of a wrong length".into()))?;
    let held = decode_held(key.index, value).map_err(|error| IndexError(error.to_string()))?;
    Ok((key, held))
}

impl Index for SledIndex {
    fn held(&self, stripe: &StripeId) -> Result<Vec<Held>, IndexError> {
        let entries = self.guarded(|db| db.scan_prefix(stripe.as_bytes()).collect::<Result<Vec<_>, _>>())?;
        entries.iter().map(|(key, value)| Ok(read_entry(key, value)?.1)).collect()
    }

    fn insert(&self, stripe: &StripeId, held: &Held) -> Result<(), IndexError> {
        let key = encode_key(&ShardKey { stripe: *stripe, index: held.index });
        self.guarded(|db| db.insert(key, encode_held(held))).map(|_| ())
    }

    fn remove(&self, key: &ShardKey) -> Result<(), IndexError> {
        self.guarded(|db| db.remove(encode_key(key))).map(|_| ())
    }

    fn stripes(&self, after: Option<StripeId>, limit: usize) -> Result<Vec<StripeId>, IndexError> {
        let from = after.map(|stripe| encode_key(&ShardKey { stripe, index: 255 }).to_vec()).unwrap_or_default();
        self.guarded(|db| {
            let mut stripes: Vec<StripeId> = Vec::new();
            for entry in db.range(from..) {
                let (key, _) = entry?;
                let Some(key) = decode_key(&key) else { continue };
                if Some(key.stripe) != after && stripes.last() != Some(&key.stripe) {
                    if stripes.len() == limit {
                        break;
                    }
                    stripes.push(key.stripe);
                }
            }
            Ok(stripes)
        })
    }

    fn all(&self) -> Result<BTreeMap<ShardKey, Held>, IndexError> {
        let entries = self.guarded(|db| db.iter().collect::<Result<Vec<_>, _>>())?;
        entries.iter().map(|(key, value)| read_entry(key, value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exercise(index: &dyn Index) {
        let stripe = |byte| StripeId([byte; 32]);
        let scheme = Scheme::new(5, 3).unwrap();
        let held = |index| Held { index, state: ShardState::Live, complete: false, touched: 3, len: 64, scheme };
        for byte in [5, 1, 9] {
            index.insert(&stripe(byte), &held(0)).unwrap();
            index.insert(&stripe(byte), &held(127)).unwrap();
        }
        let trashed = Held { state: ShardState::Trash { until_ms: 7 }, complete: true, ..held(127) };
        index.insert(&stripe(5), &trashed).unwrap();
        assert_eq!(index.held(&stripe(5)).unwrap(), [held(0), trashed]);
        assert_eq!(index.stripes(None, 2).unwrap(), [stripe(1), stripe(5)]);
        assert_eq!(index.stripes(Some(stripe(5)), 2).unwrap(), [stripe(9)]);
        assert_eq!(index.stripes(Some(stripe(9)), 2).unwrap(), []);
        index.remove(&ShardKey { stripe: stripe(9), index: 0 }).unwrap();
        assert_eq!(index.all().unwrap().len(), 5);
    }

    #[test]
    fn both_keepers_behave_alike() {
        exercise(&MemoryIndex::default());
        let folder = tempfile::tempdir().unwrap();
        exercise(&SledIndex::open(&folder.path().join("index")).unwrap());
    }
}
