//! A model of what a store must hold, beside the store, on a disk that fails.
//!
//! The model knows of each shard what was acknowledged last, and what was asked for since and failed: a crash may leave
//! either. What a start finds must be one of these, with the right bytes. Seeds are printed where it fails.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// What is said of a shard that is held.
type Word = (ShardState, bool);

#[derive(Debug, Clone, Default)]
struct Known {
    /// As the store says it now.
    now: Option<Word>,
    /// What a crash may leave instead.
    perhaps: Vec<Option<Word>>,
}

impl Known {
    fn sure(&mut self, now: Option<Word>) {
        *self = Self { now, perhaps: Vec::new() };
    }
}

struct World {
    disk: FaultyDisk,
    rng: StdRng,
    store: Option<SegmentStore>,
    stripes: Vec<Stripe>,
    known: BTreeMap<ShardKey, Known>,
    heads: BTreeMap<u8, (Option<u8>, Vec<u8>)>,
    now_ms: u64,
    /// Bytes change behind the writer's back: what is lost may be lost, but nothing wrong may be read.
    corrupting: bool,
    /// The index's folder, in some worlds.
    index: Option<tempfile::TempDir>,
    seed: u64,
}

const SEGMENT: u64 = 300 << 10;

impl World {
    fn new(seed: u64, capacity: u64) -> Self {
        let stripes = (0..6).map(|salt| stripe(salt, [900, 3_000, 20_000, 280_000, 1_400, 70_000][usize::from(salt)]));
        let mut world = Self {
            disk: FaultyDisk::new(seed, capacity, Faults::default()),
            rng: StdRng::seed_from_u64(seed),
            store: None,
            stripes: stripes.collect(),
            known: BTreeMap::new(),
            heads: BTreeMap::new(),
            now_ms: 0,
            corrupting: false,
            index: None,
            seed,
        };
        world.reopen();
        world
    }

    fn options(&self) -> Options {
        Options { index: self.index.as_ref().map(|folder| folder.path().join("index")), ..options(SEGMENT) }
    }

    /// What may happen to the index while nobody has it open.
    fn spoil_the_index(&mut self) {
        let Some(folder) = self.options().index.filter(|folder| folder.exists()) else { return };
        let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.is_file());
        files.sort();
        match self.rng.random_range(0..8) {
            0 => std::fs::remove_dir_all(&folder).unwrap(),
            1 => std::fs::write(folder.join("snap.0000.generating"), b"half").unwrap(),
            2 | 3 if !files.is_empty() => {
                let path = &files[self.rng.random_range(0..files.len())];
                let mut bytes = std::fs::read(path).unwrap();
                if !bytes.is_empty() {
                    let at = self.rng.random_range(0..bytes.len());
                    bytes[at] ^= 1 << self.rng.random_range(0..8);
                    std::fs::write(path, bytes).unwrap();
                }
            }
            _ => {}
        }
    }

    fn store(&self) -> &SegmentStore {
        self.store.as_ref().unwrap()
    }

    /// Opens the store, on a disk that works for so long, and compares.
    fn reopen(&mut self) {
        self.store = None;
        self.disk.set_faults(Faults::default());
        self.spoil_the_index();
        let store = SegmentStore::open(Arc::new(self.disk.clone()), self.options()).unwrap();
        self.store = Some(store);
        self.compare();
    }

    fn is_hidden(&self, key: ShardKey) -> bool {
        self.store().with_table(|table| table.entry(&key).is_some_and(|entry| entry.unreadable))
    }

    /// After a start, all that is said must be what is known.
    fn compare(&mut self) {
        let seed = self.seed;
        let whole = self.store().found().is_whole();
        for (number, index) in (0..self.stripes.len()).flat_map(|number| [(number, 0), (number, 1), (number, 2)]) {
            let key = key(&self.stripes[number], index);
            let held = self.store().held(&key.stripe).into_iter().find(|held| held.index == index);
            let found = held.map(|held| (held.state, held.complete));
            let known = self.known.entry(key).or_default().clone();
            // Where records are lost, what is in the trash is taken for wanted, until something is said of it.
            let doubted = self.store().with_table(|table| table.is_doubted(&key));
            let wanted = |word: Word| (ShardState::Live, word.1);
            let likely = |word: Option<Word>| word == found || doubted && word.map(wanted) == found;
            let possible = likely(known.now) || known.perhaps.iter().any(|word| likely(*word));
            assert!(
                possible || self.corrupting,
                "seed {seed}: {key:?} is {found:?}, known was {known:?}, whole: {whole}"
            );
            let entry = self.known.entry(key).or_default();
            entry.sure(found);
            if doubted {
                entry.perhaps.extend([known.now].into_iter().chain(known.perhaps));
            }
            if found.is_some() {
                match self.store().on_shard(key, |entry| self.store().read_whole(&key, entry)) {
                    Ok((_, data)) => assert!(data == self.stripes[number].1[index], "seed {seed}: wrong bytes"),
                    Err(error) if self.corrupting => {
                        assert!(error.lost(), "seed {seed}: {error:?}");
                        self.known.entry(key).or_default().sure(None);
                    }
                    Err(error) => panic!("seed {seed}: {key:?}: {error:?}"),
                }
            }
        }
        for vault in 0..4 {
            let found = match self.store().kept(Kind::Head, [vault; 32]) {
                Ok(bytes) => Some(bytes[0]),
                Err(StoreError::NotFound) => None,
                Err(error) if self.corrupting => {
                    assert!(error.lost());
                    continue;
                }
                Err(error) => panic!("seed {seed}: {error:?}"),
            };
            let (now, perhaps) = self.heads.entry(vault).or_default();
            let possible = *now == found || found.is_some_and(|found| perhaps.contains(&found));
            assert!(possible || self.corrupting, "seed {seed}: head {found:?}, known {now:?} {perhaps:?}");
            (*now, *perhaps) = (found, Vec::new());
        }
    }

    /// A start after this one finds the very same.
    fn rebuilt_equals_kept(&mut self) {
        let kept = self.store().with_table(Table::clone);
        self.reopen();
        let rebuilt = self.store().with_table(Table::clone);
        // What is doubted is settled by the next word of it, not by a start.
        assert!(rebuilt == kept || kept.doubts(), "seed {}: rebuilt\n{rebuilt:#?}\nkept\n{kept:#?}", self.seed);
    }

    /// Takes note of a call's outcome. True if it did what it was asked for.
    fn note<T>(&mut self, key: ShardKey, outcome: &Result<T, StoreError>, then: Option<Word>) -> bool {
        let hidden = self.is_hidden(key);
        let known = self.known.entry(key).or_default();
        match outcome {
            Ok(_) => {
                known.sure(then);
                return true;
            }
            // It may be found out at any time.
            Err(error) if error.lost() && self.corrupting => known.sure(None),
            Err(StoreError::NotFound) if hidden => {}
            // A copy that should have been made may be there, and the rest of it not.
            Err(StoreError::Unreadable(_)) => {}
            Err(StoreError::Io(_) | StoreError::Full) => known.perhaps.push(then),
            Err(StoreError::NotFound) if known.now.is_none() => {}
            Err(error) => panic!("seed {}: {key:?}: {error:?}, known {known:?}", self.seed),
        }
        false
    }

    fn step(&mut self) {
        let number = self.rng.random_range(0..self.stripes.len());
        let index = self.rng.random_range(0..3);
        let key = key(&self.stripes[number], index);
        let known = self.known.entry(key).or_default().clone();
        let hidden = self.is_hidden(key);
        self.now_ms += 1;
        match self.rng.random_range(0..100) {
            0..30 => {
                let outcome = put(self.store(), &self.stripes[number], index);
                let visible = known.now.filter(|_| !hidden);
                // A damaged copy is found out by some puts, and written anew.
                let fresh = matches!(outcome, Ok(true));
                if !self.corrupting && !fresh && outcome.is_ok() {
                    assert!(visible.is_some(), "seed {}: {key:?} was not there", self.seed);
                }
                let complete = visible.is_some_and(|(_, complete)| complete) && !fresh;
                self.note(key, &outcome, Some((ShardState::Live, complete)));
            }
            30..50 => {
                let outcome = self.store().read(key, 0..0, Check::Here);
                match (&outcome, known.now) {
                    (Ok(read), now) => {
                        assert!(read.data == self.stripes[number].1[index], "seed {}: wrong bytes", self.seed);
                        let (state, complete) = now.unwrap_or_else(|| panic!("seed {}: deleted is back", self.seed));
                        // Only what was said by it is sure from now on.
                        if state != ShardState::Live {
                            self.known.entry(key).or_default().sure(Some((ShardState::Live, complete)));
                        }
                    }
                    (Err(_), now) => {
                        self.note(key, &outcome, now.map(|(_, complete)| (ShardState::Live, complete)));
                    }
                }
            }
            50..62 => {
                let until_ms = self.now_ms + self.rng.random_range(0..20);
                let outcome = self.store().trash(key, until_ms);
                let then = known.now.map(|(state, complete)| match state {
                    ShardState::Live => (ShardState::Trash { until_ms }, complete),
                    there => (there, complete),
                });
                self.note(key, &outcome, then);
            }
            62..67 => {
                let outcome = self.store().revive(key);
                self.note(key, &outcome, known.now.map(|(_, complete)| (ShardState::Live, complete)));
            }
            67..72 => {
                let outcome = self.store().set_complete(key);
                self.note(key, &outcome, known.now.map(|(state, _)| (state, true)));
            }
            72..84 => {
                let outcome = self.store().delete(key, self.now_ms);
                let past = matches!(known.now, Some((ShardState::Trash { until_ms }, _)) if until_ms <= self.now_ms);
                match outcome {
                    Ok(false) => assert!(!past || hidden || self.corrupting, "seed {}: {key:?} stays", self.seed),
                    outcome => {
                        assert!(past, "seed {}: deleted before its time", self.seed);
                        self.note(key, &outcome, None);
                    }
                }
            }
            84..94 => {
                if let Err(error) = self.store().compact() {
                    assert!(self.disk.is_dead() || self.fails(), "seed {}: {error}", self.seed);
                }
            }
            94..97 => {
                let (vault, value) = (self.rng.random_range(0..4), self.rng.random_range(1..=255));
                let len = self.rng.random_range(1..80_000);
                let outcome = self.store().keep(Kind::Head, [vault; 32], &vec![value; len]);
                let (now, perhaps) = self.heads.entry(vault).or_default();
                match outcome {
                    Ok(()) => (*now, *perhaps) = (Some(value), Vec::new()),
                    Err(_) => perhaps.push(value),
                }
            }
            _ => {
                let _ = self.store().retry_unreadable();
                self.store().index_segments(2);
            }
        }
        self.store().with_table(Table::check);
        // What compaction or a retry found out.
        if self.corrupting {
            let gone: Vec<ShardKey> = self.known.keys().copied().collect();
            for key in gone {
                if self.store().with_table(|table| table.entry(&key).is_none()) {
                    self.known.entry(key).or_default().sure(None);
                }
            }
        }
    }

    fn fails(&self) -> bool {
        self.corrupting
            || self.store().failures() > 0
            || self.store().lost() > 0
            || self.store().full()
            || self.failing()
    }

    fn failing(&self) -> bool {
        self.disk.faults() != Faults::default()
    }
}

fn rounds(usual: u64) -> u64 {
    std::env::var("POTLUCK_MODEL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(usual)
}

#[test]
fn without_faults_the_rebuilt_table_is_the_kept_one() {
    for seed in 0..rounds(20) {
        let mut world = World::new(seed, 1 << 30);
        for _ in 0..6 {
            (0..60).for_each(|_| world.step());
            world.rebuilt_equals_kept();
            assert!(world.store().found().is_whole());
        }
        assert_eq!((world.store().lost(), world.store().failures()), (0, 0));
    }
}

#[test]
fn whatever_becomes_of_the_index_the_log_is_what_counts() {
    let (mut indexed, mut read) = (0, 0);
    for seed in 1_000..1_000 + rounds(12) {
        let mut world = World::new(seed, 1 << 30);
        world.index = Some(tempfile::tempdir().unwrap());
        for _ in 0..8 {
            (0..50).for_each(|_| world.step());
            if world.rng.random_bool(0.3) {
                world.store = None;
                world.disk.crash();
                world.reopen();
            }
            world.rebuilt_equals_kept();
            indexed += world.store().found().indexed;
            read += world.store().found().segments - world.store().found().indexed;
        }
    }
    assert!(indexed > 50 && read > 50, "{indexed} segments were known, {read} were read");
}

#[test]
fn a_crash_at_any_sync_loses_nothing() {
    for seed in 0..rounds(5).min(12) {
        let steps = |world: &mut World, count: usize| (0..count).for_each(|_| world.step());
        let mut world = World::new(seed, 1 << 30);
        steps(&mut world, 130);
        let syncs = world.disk.syncs();
        for at in 3..=syncs {
            let mut world = World::new(seed, 1 << 30);
            world.seed = seed * 10_000 + at;
            world.disk.crash_at(at);
            for _ in 0..130 {
                world.step();
                if world.disk.is_dead() {
                    break;
                }
            }
            world.disk.crash();
            if at % 2 == 0 {
                // The power fails once more, in the middle of the start.
                world.store = None;
                world.disk.crash_at(world.disk.syncs() + 1 + at % 3);
                let opened = SegmentStore::open(Arc::new(world.disk.clone()), options(SEGMENT));
                world.disk.crash();
                drop(opened);
            }
            world.reopen();
            // The second start finds the same as the first, and the store goes on.
            world.rebuilt_equals_kept();
            steps(&mut world, 25);
            world.rebuilt_equals_kept();
        }
    }
}

#[test]
fn failing_writes_syncs_and_reads_lose_nothing() {
    for seed in 0..rounds(60) {
        let mut world = World::new(seed, 1 << 30);
        for _ in 0..8 {
            world.disk.set_faults(Faults { write: 0.05, sync: 0.05, names: 0.05, read: 0.02, ..Faults::default() });
            (0..40).for_each(|_| world.step());
            world.disk.set_faults(Faults::default());
            if world.rng.random_bool(0.7) {
                world.disk.crash();
            }
            if world.rng.random_bool(0.5) {
                // A start on a disk that does not give everything spoils nothing for the next.
                world.store = None;
                world.disk.set_faults(Faults { read: 0.1, ..Faults::default() });
                let opened = SegmentStore::open(Arc::new(world.disk.clone()), options(SEGMENT));
                drop(opened);
            }
            world.reopen();
        }
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    for seed in 0..rounds(20) {
        let mut world = World::new(seed, 1_300 << 10);
        for _ in 0..4 {
            (0..80).for_each(|_| world.step());
            if world.rng.random_bool(0.5) {
                world.disk.crash();
            }
            world.reopen();
        }
    }
}

#[test]
fn flipped_bits_and_stray_writes_are_never_read() {
    for seed in 0..rounds(60) {
        let mut world = World::new(seed, 1 << 30);
        world.corrupting = true;
        for _ in 0..6 {
            world.disk.set_faults(Faults { flip: 0.02, misdirect: 0.02, sync: 0.02, ..Faults::default() });
            for _ in 0..40 {
                world.step();
                if world.rng.random_bool(0.05) {
                    world.disk.flip_a_bit();
                }
            }
            world.disk.set_faults(Faults::default());
            if world.rng.random_bool(0.5) {
                world.disk.crash();
            }
            world.reopen();
        }
    }
}
