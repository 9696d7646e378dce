//! What was put is read back or an error, on a disk that works; the model tries it on one that does not.

mod model;
mod state_machine;

use super::disk::FolderDisk;
use super::disk::faults::{Faults, FaultyDisk};
use super::format::BLOCK;
use super::log::segment_name;
use super::*;
use potluck_proto::blocks::chaining_values;
use potluck_proto::cert::{DeviceCert, Rights};
use potluck_proto::key::SecretKey;
use potluck_proto::stripe::{Scheme, StripeHeader, shard_len};

/// A stripe of 2+1 whose shards need no code: the store does not look across shards.
pub(super) fn stripe(salt: u8, data_len: usize) -> (SignedHeader, Vec<Vec<u8>>) {
    let vault = SecretKey::from_seed(&[1; 32]);
    let device_key = SecretKey::from_seed(&[2; 32]);
    let device = DeviceCert::issue(&vault, device_key.public().into(), Rights::ALL, 0, 0);
    let scheme = Scheme::new(2, 1).unwrap();
    let len = shard_len(data_len, 2);
    let shards: Vec<Vec<u8>> =
        (0..3u8).map(|index| (0..len).map(|at| (at / 7) as u8 ^ salt ^ (index * 31)).collect()).collect();
    let header = StripeHeader {
        vault: device.vault(),
        device,
        born: 0,
        created_ms: 0,
        scheme,
        shard_len: len as u32,
        data_len: data_len as u32,
        shards: shards.iter().map(|shard| Digest::of(shard)).collect(),
    };
    (header.sign(&device_key), shards)
}

pub(super) fn options(segment_bytes: u64) -> Options {
    Options {
        capacity: 1 << 40,
        segment_bytes,
        fresh: StoreId([7; 16]),
        clock: Arc::new(|| 1_700_000_000_000),
        threaded: false,
        index: None,
        progress: Arc::default(),
    }
}

fn double(seed: u64) -> FaultyDisk {
    FaultyDisk::new(seed, 1 << 30, Faults::default())
}

fn open(disk: &FaultyDisk) -> SegmentStore {
    SegmentStore::open(Arc::new(disk.clone()), options(1 << 20)).unwrap()
}

pub(super) type Stripe = (SignedHeader, Vec<Vec<u8>>);

pub(super) fn put(store: &SegmentStore, stripe: &Stripe, index: usize) -> Result<bool, StoreError> {
    store.put(&stripe.0, index, &stripe.1[index], &chaining_values(&stripe.1[index]), 3)
}

pub(super) fn key(stripe: &Stripe, index: usize) -> ShardKey {
    ShardKey { stripe: stripe.0.id(), index }
}

#[test]
fn put_read_range_and_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let long = stripe(1, 400_000);
    let short = stripe(2, 1_000);
    for threaded in [false, true] {
        let path = folder.path().join(format!("threaded {threaded}"));
        let open = || {
            let disk = FolderDisk::open(&path).unwrap();
            SegmentStore::open(Arc::new(disk), Options { threaded, ..options(1 << 20) }).unwrap()
        };
        let store = open();
        for stripe in [&long, &short] {
            assert!(put(&store, stripe, 1).unwrap());
            assert!(!put(&store, stripe, 1).unwrap());
        }
        let kept = store.with_table(Table::clone);
        drop(store);
        let store = open();
        assert!(store.found().is_whole());
        assert_eq!((store.found().segments, store.found().sealed), (1, 1));
        assert_eq!(store.with_table(Table::clone), kept);
        let key_of = |index| key(&long, index);
        assert_eq!(store.read(key_of(1), 0..0, Check::Here).unwrap().data, long.1[1]);
        let read = store.read(key_of(1), 70_000..70_001, Check::Here).unwrap();
        assert_eq!(read.offset, 65_536);
        assert_eq!(read.data, long.1[1][65_536..131_072]);
        assert_eq!(read.header, *long.0.bytes());
        assert_eq!(store.header(&long.0.id()).unwrap(), long.0);
        assert_eq!(store.read(key(&short, 1), 0..0, Check::Reader).unwrap().data, short.1[1]);
        assert_eq!(store.verify(key_of(1)).unwrap(), long.1[1].len() as u64);
        assert!(matches!(store.read(key_of(1), 0..1 << 40, Check::Here), Err(StoreError::Range)));
        assert!(matches!(store.read(key_of(0), 0..0, Check::Here), Err(StoreError::NotFound)));
        let held = store.held(&long.0.id());
        assert_eq!((held.len(), held[0].touched, held[0].scheme), (1, 3, long.0.scheme));
        assert_eq!(store.usage().shards, 2);
        let mut stripes = vec![long.0.id(), short.0.id()];
        stripes.sort();
        assert_eq!(store.stripes(None, 9), stripes);
        assert_eq!(store.stripes(Some(stripes[0]), 9), stripes[1..]);
        assert_eq!(store.stripes(None, 1), stripes[..1]);
    }
}

#[test]
fn trash_revival_and_emptying_survive_restarts() {
    let disk = double(1);
    let stripe = stripe(5, 1_000);
    let key = |index| key(&stripe, index);
    let store = open(&disk);
    for index in 0..3 {
        put(&store, &stripe, index).unwrap();
        store.trash(key(index), 100 + index as u64).unwrap();
    }
    store.set_complete(key(2)).unwrap();
    drop(store);
    let store = open(&disk);
    assert_eq!(store.usage().shards, 0);
    // Reading revives.
    store.read(key(1), 0..0, Check::Here).unwrap();
    // Putting again revives.
    assert!(!put(&store, &stripe, 2).unwrap());
    assert_eq!(store.expired(99, None, 10), []);
    assert_eq!(store.expired(1_000, None, 10), [key(0)]);
    assert_eq!(store.expired(1_000, Some(key(0)), 10), []);
    assert!(!store.delete(key(0), 99).unwrap() && !store.delete(key(1), 1_000).unwrap());
    assert!(store.delete(key(0), 1_000).unwrap() && !store.delete(key(0), 1_000).unwrap());
    drop(store);
    let store = open(&disk);
    let held = store.held(&stripe.0.id());
    assert_eq!(held.iter().map(|held| (held.index, held.complete)).collect::<Vec<_>>(), [(1, false), (2, true)]);
    assert!(held.iter().all(|held| held.state == ShardState::Live));
    assert_eq!(store.usage().trash, 0);
    // A deleted one can come again, and is not ended by the old word.
    assert!(put(&store, &stripe, 0).unwrap());
    drop(store);
    assert_eq!(open(&disk).held(&stripe.0.id()).len(), 3);
}

#[test]
fn any_flipped_bit_is_noticed_and_the_shard_is_missing_for_good() {
    let stripe = stripe(2, 1_000);
    let mut lost = 0;
    for seed in 0..60 {
        let disk = double(seed);
        let store = open(&disk);
        put(&store, &stripe, 0).unwrap();
        disk.flip_a_bit();
        match store.verify(key(&stripe, 0)) {
            // In the megabyte that was set aside for more.
            Ok(_) => {}
            Err(StoreError::Corrupt(_)) => {
                lost += 1;
                assert_eq!(store.lost(), 1);
                assert!(matches!(store.verify(key(&stripe, 0)), Err(StoreError::NotFound)));
                drop(store);
                let store = open(&disk);
                assert_eq!(store.held(&stripe.0.id()), [], "the next start knows too");
                assert!(put(&store, &stripe, 0).unwrap());
            }
            Err(error) => panic!("{error:?}"),
        }
        drop(disk);
    }
    // Every bit of a record: one segment that is nothing but records.
    let small = Options { segment_bytes: BLOCK as u64, ..options(0) };
    for seed in 0..300 {
        let disk = double(seed);
        let store = SegmentStore::open(Arc::new(disk.clone()), small.clone()).unwrap();
        put(&store, &stripe, 0).unwrap();
        disk.flip_a_bit();
        lost += u32::from(store.verify(key(&stripe, 0)).is_err());
    }
    assert!(lost > 10, "{lost}");
}

#[test]
fn what_cannot_be_read_now_stays_and_comes_back() {
    let disk = double(3);
    let stripe = stripe(21, 1_000);
    let key = key(&stripe, 2);
    let store = open(&disk);
    put(&store, &stripe, 2).unwrap();
    let usage = store.usage();
    disk.set_faults(Faults { read: 1.0, ..Faults::default() });
    assert!(matches!(store.verify(key), Err(StoreError::Unreadable(_))));
    assert!(matches!(store.verify(key), Err(StoreError::NotFound)));
    assert_eq!((store.usage().live, store.usage().damaged), (0, usage.live));
    assert_eq!(store.retry_unreadable(), []);
    disk.set_faults(Faults::default());
    assert_eq!(store.retry_unreadable(), [key]);
    assert_eq!((store.verify(key).unwrap(), store.usage()), (stripe.1[2].len() as u64, usage));
    // What is put meanwhile takes its place.
    disk.set_faults(Faults { read: 1.0, ..Faults::default() });
    assert!(store.verify(key).is_err());
    assert!(put(&store, &stripe, 2).unwrap());
    assert_eq!((store.usage(), store.retry_unreadable()), (usage, Vec::new()));
}

#[test]
fn a_failed_sync_ends_its_segment_and_tells_those_who_wait() {
    let disk = double(4);
    let (first, second) = (stripe(1, 1_000), stripe(2, 1_000));
    let store = open(&disk);
    put(&store, &first, 0).unwrap();
    let before = store.with_table(|table| table.segments().len());
    disk.set_faults(Faults { sync: 1.0, ..Faults::default() });
    assert!(matches!(put(&store, &first, 1), Err(StoreError::Io(_))));
    assert!(matches!(store.verify(key(&first, 1)), Err(StoreError::NotFound)));
    disk.set_faults(Faults::default());
    assert!(put(&store, &second, 0).unwrap());
    assert_eq!(store.with_table(|table| table.segments().len()), before + 1);
    assert_eq!(store.failures(), 1);
    drop(store);
    let store = open(&disk);
    for key in [key(&first, 0), key(&second, 0)] {
        store.verify(key).unwrap();
    }
}

/// A word of deletion that failed may be on disk: who puts the shard after that has it, whatever a crash leaves.
#[test]
fn what_is_said_after_a_failure_counts_in_any_case() {
    let stripe = stripe(9, 1_000);
    for seed in 0..40 {
        let disk = double(seed);
        let store = open(&disk);
        put(&store, &stripe, 0).unwrap();
        store.trash(key(&stripe, 0), 5).unwrap();
        disk.set_faults(Faults { sync: 1.0, ..Faults::default() });
        assert!(store.delete(key(&stripe, 0), 5).is_err());
        disk.set_faults(Faults::default());
        assert!(!put(&store, &stripe, 0).unwrap());
        assert!(!put(&store, &stripe, 0).unwrap());
        disk.crash();
        drop(store);
        let store = open(&disk);
        assert_eq!(store.held(&stripe.0.id())[0].state, ShardState::Live, "seed {seed}");
    }
}

/// A copy that failed may be on disk, newer than the shard that is held: a deletion ends both.
#[test]
fn what_was_perhaps_copied_does_not_outlive_its_deletion() {
    let (stripe, other) = (stripe(9, 1_000), stripe(3, 1_000));
    for seed in 0..40 {
        let disk = double(seed);
        let store = open(&disk);
        put(&store, &stripe, 0).unwrap();
        store.trash(key(&stripe, 0), 5).unwrap();
        disk.set_faults(Faults { sync: 1.0, ..Faults::default() });
        assert!(store.revive(key(&stripe, 0)).is_err());
        disk.set_faults(Faults::default());
        put(&store, &other, 0).unwrap();
        disk.set_faults(Faults { sync: 1.0, ..Faults::default() });
        // The word of it is doubtful now, so that it is said by a copy.
        assert!(store.revive(key(&stripe, 0)).is_err());
        disk.set_faults(Faults::default());
        assert!(store.delete(key(&stripe, 0), 5).unwrap());
        disk.crash();
        drop(store);
        assert_eq!(open(&disk).held(&stripe.0.id()), [], "seed {seed}");
    }
}

/// The word that a shard is wanted again is lost: it is not deleted for that.
#[test]
fn what_a_gap_may_have_restored_is_taken_for_wanted() {
    let disk = double(1);
    let (first, last) = (stripe(1, 1_000), stripe(2, 1_000));
    let store = open(&disk);
    for stripe in [&first, &last] {
        put(&store, stripe, 0).unwrap();
    }
    store.trash(key(&first, 0), 5).unwrap();
    store.revive(key(&first, 0)).unwrap();
    let word = store.with_table(|table| table.entry(&key(&first, 0)).unwrap().said.unwrap());
    store.set_complete(key(&last, 0)).unwrap();
    disk.crash();
    drop(store);
    disk.open(&segment_name(word.segment)).unwrap().write_at(word.offset, &[&[0xa5; BLOCK]]).unwrap();
    let store = open(&disk);
    assert_eq!(store.found().gaps.len(), 1);
    assert_eq!(store.held(&first.0.id())[0].state, ShardState::Live);
    assert!(!store.delete(key(&first, 0), 100).unwrap());
    // What is said of it now is written, and counts also when the gap is gone.
    store.revive(key(&first, 0)).unwrap();
    assert!(!store.with_table(|table| table.is_doubted(&key(&first, 0))));
    drop(store);
    let store = open(&disk);
    assert!(!store.with_table(|table| table.is_doubted(&key(&first, 0))));
    assert_eq!(store.held(&first.0.id())[0].state, ShardState::Live);
}

/// A put that failed may be on disk: the word that ended its successor is kept as long as the segment that may hold it.
#[test]
fn what_was_perhaps_written_does_not_come_back() {
    let (stays, goes) = (stripe(1, 20_000), stripe(9, 1_000));
    for seed in 0..40 {
        let disk = double(seed);
        let store = SegmentStore::open(Arc::new(disk.clone()), options(32 << 10)).unwrap();
        put(&store, &stays, 0).unwrap();
        disk.set_faults(Faults { sync: 1.0, ..Faults::default() });
        assert!(put(&store, &goes, 0).is_err());
        disk.set_faults(Faults::default());
        assert!(put(&store, &goes, 0).unwrap());
        store.trash(key(&goes, 0), 1).unwrap();
        assert!(store.delete(key(&goes, 0), 1).unwrap());
        // Its segment is sealed, and then emptied.
        let fill = stripe(3, 50_000);
        put(&store, &fill, 0).unwrap();
        while store.compact().unwrap().is_some() {}
        assert!(disk.has(&segment_name(1)));
        disk.crash();
        drop(store);
        let store = SegmentStore::open(Arc::new(disk.clone()), options(32 << 10)).unwrap();
        assert_eq!(store.held(&goes.0.id()), [], "seed {seed}");
        store.verify(key(&stays, 0)).unwrap();
    }
}

#[test]
fn a_full_disk_takes_no_puts_but_deletions_and_gives_space_back() {
    let disk = FaultyDisk::new(1, 3 << 20, Faults::default());
    let store = SegmentStore::open(Arc::new(disk.clone()), options(256 << 10)).unwrap();
    let stripes: Vec<Stripe> = (0..60).map(|salt| stripe(salt, 300_000)).collect();
    let held: Vec<&Stripe> = stripes.iter().take_while(|stripe| put(&store, stripe, 0).is_ok()).collect();
    assert!(held.len() > 10 && held.len() < stripes.len(), "{}", held.len());
    assert!(matches!(put(&store, &stripes[held.len()], 0), Err(StoreError::Full)));
    assert!(store.full());
    for stripe in &held[1..] {
        store.trash(key(stripe, 0), 1).unwrap();
        assert!(store.delete(key(stripe, 0), 1).unwrap());
    }
    let mut freed = 0;
    while let Some(compacted) = store.compact().unwrap() {
        freed += compacted.bytes - compacted.copied;
    }
    assert!(freed > 1 << 20, "{freed}");
    assert!(put(&store, &stripes[held.len()], 0).unwrap());
    store.verify(key(held[0], 0)).unwrap();
    drop(store);
    let store = SegmentStore::open(Arc::new(disk), options(256 << 10)).unwrap();
    assert_eq!(store.usage().shards, 2);
}

#[test]
fn capacity_is_kept_whatever_the_disk_has() {
    let disk = double(1);
    let store = SegmentStore::open(Arc::new(disk), Options { capacity: 300_000, ..options(1 << 20) }).unwrap();
    let stripe = stripe(8, 200_000);
    for index in 0..2 {
        put(&store, &stripe, index).unwrap();
    }
    assert!(matches!(put(&store, &stripe, 2), Err(StoreError::Full)));
    store.trash(key(&stripe, 0), 1).unwrap();
}

#[test]
fn heads_are_kept_through_compaction_and_restarts() {
    let disk = double(1);
    let store = SegmentStore::open(Arc::new(disk.clone()), options(64 << 10)).unwrap();
    for round in 0..40_u8 {
        store.keep(Kind::Head, [round % 3; 32], &[round; 9_000]).unwrap();
    }
    assert!(store.keep(Kind::Shard, [1; 32], &[]).is_err());
    let mut emptied = 0;
    while store.compact().unwrap().is_some() {
        emptied += 1;
    }
    assert!(emptied > 3, "{emptied}");
    let check = |store: &SegmentStore| {
        assert_eq!(store.kept_keys(Kind::Head), [[0; 32], [1; 32], [2; 32]]);
        for newest in 37..40_u8 {
            assert_eq!(store.kept(Kind::Head, [newest % 3; 32]).unwrap(), vec![newest; 9_000]);
        }
        assert!(matches!(store.kept(Kind::Sweep, [1; 32]), Err(StoreError::NotFound)));
    };
    check(&store);
    let kept = store.with_table(Table::clone);
    drop(store);
    let store = SegmentStore::open(Arc::new(disk), options(64 << 10)).unwrap();
    assert_eq!(store.with_table(Table::clone), kept);
    check(&store);
}

#[test]
fn another_stores_segments_and_lost_names_are_told() {
    let (disk, other) = (double(1), double(2));
    let stripe = stripe(1, 1_000);
    put(&open(&disk), &stripe, 0).unwrap();
    let elsewhere = Options { fresh: StoreId([8; 16]), ..options(1 << 20) };
    put(&SegmentStore::open(Arc::new(other.clone()), elsewhere).unwrap(), &stripe, 1).unwrap();
    // A segment of the other store under a name of this one.
    let file = other.open(&segment_name(1)).unwrap();
    let bytes = file.read_at(0..file.len().unwrap()).unwrap();
    disk.create(&segment_name(2), bytes.len() as u64).unwrap().write_at(0, &[&bytes]).unwrap();
    let store = open(&disk);
    assert_eq!(store.found().unusable.len(), 1);
    assert_eq!(store.held(&stripe.0.id()).len(), 1);
    drop(store);
    // The store's name is lost: its segments say it, the newest last.
    disk.unlink(&segment_name(2)).unwrap();
    disk.unlink(recovery::STORE_NAME).unwrap();
    let store = SegmentStore::open(Arc::new(disk), Options { fresh: StoreId([1; 16]), ..options(1 << 20) }).unwrap();
    store.verify(key(&stripe, 0)).unwrap();
    assert!(store.found().is_whole());
}

/// Many at once, with a thread that writes and without, while segments are emptied.
#[test]
fn writers_readers_and_compaction_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let real = || Arc::new(FolderDisk::open(&folder.path().join("segments")).unwrap()) as Arc<dyn Disk>;
    let double = || Arc::new(double(1)) as Arc<dyn Disk>;
    for (threaded, disk) in [(false, double()), (true, double()), (true, real())] {
        let store = SegmentStore::open(disk.clone(), Options { threaded, ..options(512 << 10) }).unwrap();
        let stripes: Vec<Stripe> =
            (0..24).map(|salt| stripe(salt, if salt % 3 == 0 { 150_000 } else { 5_000 })).collect();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let workers: Vec<_> = stripes
                .chunks(6)
                .map(|mine| {
                    let store = &store;
                    scope.spawn(move || {
                        for round in 0..20 {
                            for stripe in mine {
                                for index in 0..3 {
                                    put(store, stripe, index).unwrap();
                                    let read = store.read(key(stripe, index), 0..0, Check::Here).unwrap();
                                    assert_eq!(read.data, stripe.1[index]);
                                    store.set_complete(key(stripe, index)).unwrap();
                                    store.trash(key(stripe, index), round).unwrap();
                                    if index != 1 {
                                        assert!(store.delete(key(stripe, index), round).unwrap());
                                    }
                                }
                            }
                        }
                    })
                })
                .collect();
            let emptier = scope.spawn(|| {
                let mut emptied = 0;
                while !stop.load(Ordering::Relaxed) {
                    emptied += u32::from(store.compact().unwrap().is_some());
                }
                emptied
            });
            for worker in workers {
                worker.join().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            assert!(emptier.join().unwrap() > 3);
        });
        assert_eq!(store.lost(), 0);
        let kept = store.with_table(Table::clone);
        // As where the process is killed: the last segment is not sealed.
        std::mem::forget(store);
        let store = SegmentStore::open(disk, options(512 << 10)).unwrap();
        assert_eq!(store.with_table(Table::clone), kept);
        assert!(store.found().is_whole() && store.found().sealed + 1 == store.found().segments);
        for stripe in &stripes {
            let held = store.held(&stripe.0.id());
            assert_eq!(held.iter().map(|held| (held.index, held.complete)).collect::<Vec<_>>(), [(1, true)]);
        }
    }
}

/// Batches of many records that crash and fail: what was acknowledged to any of their writers is there.
#[test]
fn writers_side_by_side_on_a_failing_disk_lose_nothing() {
    let stripes: Vec<Stripe> = (0..32).map(|salt| stripe(salt, if salt % 4 == 0 { 150_000 } else { 3_000 })).collect();
    for seed in 0..30 {
        let disk = double(seed);
        let threaded = seed % 2 == 0;
        let options = Options { threaded, ..options(512 << 10) };
        let store = SegmentStore::open(Arc::new(disk.clone()), options.clone()).unwrap();
        if seed % 3 > 0 {
            disk.set_faults(Faults { write: 0.1, sync: 0.1, ..Faults::default() });
        }
        if seed % 3 < 2 {
            disk.crash_at(disk.syncs() + 5 + seed);
        }
        // Deleted, held, or, where a call failed, either.
        let known: Vec<Vec<(ShardKey, Option<bool>)>> = std::thread::scope(|scope| {
            let work = |mine: &[Stripe]| {
                let mut known = Vec::new();
                for (stripe, index) in mine.iter().flat_map(|stripe| [(stripe, 0), (stripe, 1), (stripe, 2)]) {
                    let key = key(stripe, index);
                    let mut is = put(&store, stripe, index).is_ok().then_some(true);
                    if is.is_some() && index == 2 {
                        let deleted = store.trash(key, 1).and_then(|()| store.delete(key, 1));
                        is = deleted.ok().map(|deleted| !deleted);
                    }
                    known.push((key, is));
                }
                known
            };
            let workers: Vec<_> = stripes.chunks(4).map(|mine| scope.spawn(move || work(mine))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        disk.set_faults(Faults::default());
        disk.crash();
        drop(store);
        let store = SegmentStore::open(Arc::new(disk), options).unwrap();
        for (key, is) in known.into_iter().flatten() {
            let held = store.held(&key.stripe).iter().any(|held| held.index == key.index);
            assert!(is.is_none_or(|is| is == held), "seed {seed}: {key:?} should be {is:?}");
            if held {
                let stripe = stripes.iter().find(|stripe| stripe.0.id() == key.stripe).unwrap();
                assert_eq!(store.read(key, 0..0, Check::Here).unwrap().data, stripe.1[key.index], "seed {seed}");
            }
        }
    }
}
