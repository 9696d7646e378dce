//! Random calls beside a map that does the same: where nothing fails, the store is that map.
//!
//! A sequence that shows a difference is shrunk to the shortest that still does.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::prelude::{Just, Strategy, any, proptest};
use proptest::prop_oneof;
use proptest::test_runner::Config;

use super::*;

/// Length at which segments are sealed, in bytes: a few calls fill one.
const SEGMENT: u64 = 64 << 10;

/// Indices of a stripe.
const INDICES: usize = 3;

/// Vaults that have heads.
const VAULTS: u8 = 3;

/// Milliseconds at which things go to the trash and come up for deletion.
const TIMES: u64 = 8;

static STRIPES: LazyLock<Vec<Stripe>> =
    LazyLock::new(|| [(1, 700), (2, 9_000), (3, 150_000)].map(|(salt, len)| stripe(salt, len)).to_vec());

/// A shard, as a place in [`STRIPES`] and an index.
type Name = (usize, usize);

#[derive(Debug, Clone)]
enum Call {
    Put(Name, u64),
    Read(Name),
    ReadRange(Name, u64, u64),
    Verify(Name),
    Trash(Name, u64),
    Revive(Name),
    Complete(Name),
    Delete(Name, u64),
    Expired(u64, Name, usize),
    Keep(u8, u8, usize),
    Compact,
    /// Closed in order and opened again.
    Reopen,
    /// The power fails between two calls.
    Crash,
}

fn call() -> impl Strategy<Value = Call> {
    let name = || (0..STRIPES.len(), 0..INDICES);
    prop_oneof![
        6 => (name(), 0..5_u64).prop_map(|(name, touched)| Call::Put(name, touched)),
        2 => name().prop_map(Call::Read),
        2 => (name(), any::<u64>(), any::<u64>()).prop_map(|(name, from, to)| Call::ReadRange(name, from, to)),
        1 => name().prop_map(Call::Verify),
        4 => (name(), 0..TIMES).prop_map(|(name, until)| Call::Trash(name, until)),
        1 => name().prop_map(Call::Revive),
        1 => name().prop_map(Call::Complete),
        4 => (name(), 0..TIMES).prop_map(|(name, now)| Call::Delete(name, now)),
        1 => (0..TIMES, name(), 0..4_usize).prop_map(|(now, after, limit)| Call::Expired(now, after, limit)),
        2 => (0..VAULTS, any::<u8>(), 0..40_000_usize).prop_map(|(vault, value, len)| Call::Keep(vault, value, len)),
        3 => Just(Call::Compact),
        1 => Just(Call::Reopen),
        1 => Just(Call::Crash),
    ]
}

/// The store and the map.
struct Pair {
    disk: FaultyDisk,
    store: Option<SegmentStore>,
    shards: BTreeMap<ShardKey, Held>,
    heads: BTreeMap<[u8; 32], Vec<u8>>,
}

fn key_of((stripe, index): Name) -> ShardKey {
    key(&STRIPES[stripe], index)
}

/// What both say, errors by their kinds.
fn plain<T>(outcome: Result<T, StoreError>) -> Result<T, &'static str> {
    outcome.map_err(|error| match error {
        StoreError::NotFound => "not found",
        StoreError::Range => "range",
        other => panic!("where nothing fails: {other:?}"),
    })
}

impl Pair {
    fn new() -> Self {
        let disk = double(1);
        let mut pair = Self { disk, store: None, shards: BTreeMap::new(), heads: BTreeMap::new() };
        pair.open();
        pair
    }

    fn open(&mut self) {
        self.store = None;
        self.store = Some(SegmentStore::open(Arc::new(self.disk.clone()), options(SEGMENT)).unwrap());
        assert!(self.store().found().is_whole());
    }

    fn store(&self) -> &SegmentStore {
        self.store.as_ref().unwrap()
    }

    /// Changes what the map has of a shard; an error if it has none.
    fn change(&mut self, key: ShardKey, change: impl FnOnce(&mut Held)) -> Result<(), &'static str> {
        self.shards.get_mut(&key).map(change).ok_or("not found")
    }

    fn put(&mut self, name: Name, touched: u64) {
        let (header, shards) = &STRIPES[name.0];
        let shard = &shards[name.1];
        let outcome = self.store().put(header, name.1, shard, &chaining_values(shard), touched);
        let fresh = Held {
            index: name.1,
            state: ShardState::Live,
            complete: false,
            touched,
            len: shard.len() as u32,
            scheme: header.scheme,
        };
        let known = self.shards.get(&key_of(name));
        let expected = known.map_or(fresh, |held| Held { state: ShardState::Live, ..*held });
        assert_eq!(plain(outcome), Ok(known.is_none()));
        self.shards.insert(key_of(name), expected);
    }

    fn read(&mut self, name: Name, range: Range<u64>) {
        let (key, shard) = (key_of(name), &STRIPES[name.0].1[name.1]);
        let outcome = plain(self.store().read(key, range.clone(), Check::Here));
        if self.shards.contains_key(&key) && range.end > shard.len() as u64 {
            assert_eq!(outcome.err(), Some("range"));
            return;
        }
        // Reading takes it out of the trash.
        let expected = self.change(key, |held| held.state = ShardState::Live);
        assert_eq!(outcome.as_ref().map(drop), expected.as_ref().copied());
        if let Ok(read) = outcome {
            let (from, end) = (read.offset as usize, read.offset as usize + read.data.len());
            let asked = if range.is_empty() { 0..shard.len() as u64 } else { range };
            assert!(read.offset <= asked.start && asked.end <= end as u64);
            assert!(read.data == shard[from..end] && read.header == *STRIPES[name.0].0.bytes());
        }
    }

    fn call(&mut self, call: &Call) {
        match *call {
            Call::Put(name, touched) => self.put(name, touched),
            Call::Read(name) => self.read(name, 0..0),
            Call::ReadRange(name, from, to) => {
                // Mostly within the shard, and sometimes just behind it.
                let len = STRIPES[name.0].1[name.1].len() as u64 + 2;
                let (from, to) = (from % len, to % len);
                self.read(name, from.min(to)..from.max(to));
            }
            Call::Verify(name) => {
                let expected = self.shards.get(&key_of(name)).map(|held| u64::from(held.len)).ok_or("not found");
                assert_eq!(plain(self.store().verify(key_of(name))), expected);
            }
            Call::Trash(name, until_ms) => {
                let outcome = plain(self.store().trash(key_of(name), until_ms));
                let expected = self.change(key_of(name), |held| {
                    if held.state == ShardState::Live {
                        held.state = ShardState::Trash { until_ms };
                    }
                });
                assert_eq!(outcome, expected);
            }
            Call::Revive(name) => {
                let outcome = plain(self.store().revive(key_of(name)));
                assert_eq!(outcome, self.change(key_of(name), |held| held.state = ShardState::Live));
            }
            Call::Complete(name) => {
                let outcome = plain(self.store().set_complete(key_of(name)));
                assert_eq!(outcome, self.change(key_of(name), |held| held.complete = true));
            }
            Call::Delete(name, now_ms) => {
                let past = self.expired(now_ms).contains(&key_of(name));
                assert_eq!(plain(self.store().delete(key_of(name), now_ms)), Ok(past));
                if past {
                    self.shards.remove(&key_of(name));
                }
            }
            Call::Expired(now_ms, after, limit) => {
                let after = key_of(after);
                let expected: Vec<_> =
                    self.expired(now_ms).into_iter().filter(|key| *key > after).take(limit).collect();
                assert_eq!(self.store().expired(now_ms, Some(after), limit), expected);
            }
            Call::Keep(vault, value, len) => {
                let payload = vec![value; len];
                self.store().keep(Kind::Head, [vault; 32], &payload).unwrap();
                self.heads.insert([vault; 32], payload);
            }
            Call::Compact => while self.store().compact().unwrap().is_some() {},
            Call::Reopen => self.open(),
            Call::Crash => {
                self.disk.crash();
                self.open();
            }
        }
    }

    /// Shards whose time in the trash is over, by the map.
    fn expired(&self, now_ms: u64) -> Vec<ShardKey> {
        let past = |held: &Held| matches!(held.state, ShardState::Trash { until_ms } if until_ms <= now_ms);
        self.shards.iter().filter(|(_, held)| past(held)).map(|(key, _)| *key).collect()
    }

    fn compare(&self) {
        let store = self.store();
        for (header, _) in STRIPES.iter() {
            let expected: Vec<Held> =
                self.shards.iter().filter(|(key, _)| key.stripe == header.id()).map(|(_, held)| *held).collect();
            assert_eq!(store.held(&header.id()), expected);
            assert_eq!(store.header(&header.id()).is_ok(), !expected.is_empty());
        }
        let mut stripes: Vec<StripeId> = self.shards.keys().map(|key| key.stripe).collect();
        stripes.dedup();
        assert_eq!(store.stripes(None, usize::MAX), stripes);
        assert_eq!(store.expired(TIMES, None, usize::MAX), self.expired(TIMES));
        let live = self.shards.values().filter(|held| held.state == ShardState::Live).count();
        assert_eq!((store.usage().shards, store.usage().damaged), (live as u64, 0));
        assert_eq!(store.kept_keys(Kind::Head), self.heads.keys().copied().collect::<Vec<_>>());
        for (vault, payload) in &self.heads {
            assert_eq!(store.kept(Kind::Head, *vault).unwrap(), payload);
        }
        assert_eq!((store.lost(), store.failures()), (0, 0));
        store.with_table(Table::check);
    }
}

proptest! {
    #![proptest_config(Config { cases: 1_000, ..Config::default() })]

    #[test]
    fn where_nothing_fails_the_store_is_a_map(calls in proptest::collection::vec(call(), 1..60)) {
        let mut pair = Pair::new();
        for call in &calls {
            pair.call(call);
            pair.compare();
        }
        // And all bytes are there, also after a start.
        pair.open();
        pair.compare();
        let held: Vec<ShardKey> = pair.shards.keys().copied().collect();
        for (stripe, index) in (0..STRIPES.len()).flat_map(|stripe| (0..INDICES).map(move |index| (stripe, index))) {
            if held.contains(&key_of((stripe, index))) {
                pair.read((stripe, index), 0..0);
            }
        }
    }
}
