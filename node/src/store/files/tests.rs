//! What was put is read back or an error; what changes is a rename; the index can go at any time.

use super::*;
use crate::store::ShardState;
use crate::store::index::MemoryIndex;
use potluck_proto::blocks::chaining_values;
use potluck_proto::cert::{DeviceCert, Rights};
use potluck_proto::id::Digest;
use potluck_proto::key::SecretKey;
use potluck_proto::stripe::{Scheme, StripeHeader, shard_len};

const CAPACITY: u64 = 1 << 30;

/// A stripe of 2+1 whose shards need no code: the store does not look across shards.
pub(crate) fn stripe(salt: u8, data_len: usize) -> (SignedHeader, Vec<Vec<u8>>) {
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

fn open(folder: &Path, capacity: u64) -> FileStore {
    FileStore::open(folder, capacity, Box::new(MemoryIndex::default())).unwrap()
}

fn put(store: &FileStore, stripe: &(SignedHeader, Vec<Vec<u8>>), index: usize) -> Result<bool, StoreError> {
    store.put(&stripe.0, index, &stripe.1[index], &chaining_values(&stripe.1[index]), 0)
}

fn file_of(folder: &Path) -> PathBuf {
    let shards = folder.join("shards");
    let inner = list(&shards).unwrap().into_iter().next().unwrap();
    list(&inner).unwrap().into_iter().next().unwrap()
}

#[test]
fn put_read_range_and_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let stripe = stripe(1, 400_000);
    let key = ShardKey { stripe: stripe.0.id(), index: 1 };
    let store = open(folder.path(), CAPACITY);
    assert!(put(&store, &stripe, 1).unwrap());
    assert!(!put(&store, &stripe, 1).unwrap());
    drop(store);
    let store = open(folder.path(), CAPACITY);
    assert_eq!(store.read(key, 0..0, Check::Here).unwrap().data, stripe.1[1]);
    let read = store.read(key, 70_000..70_001, Check::Here).unwrap();
    assert_eq!(read.offset, 65_536);
    assert_eq!(read.data, stripe.1[1][65_536..131_072]);
    assert_eq!(store.header(&key.stripe).unwrap(), stripe.0);
    assert_eq!(store.read(key, 0..0, Check::Reader).unwrap().data, stripe.1[1]);
    assert!(matches!(store.read(key, 0..1 << 40, Check::Here), Err(StoreError::Range)));
    assert!(matches!(store.read(ShardKey { index: 0, ..key }, 0..0, Check::Here), Err(StoreError::NotFound)));
    assert_eq!(store.usage().shards, 1);
}

#[test]
fn any_damaged_byte_is_noticed_and_the_shard_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let stripe = stripe(2, 1_000);
    let key = ShardKey { stripe: stripe.0.id(), index: 0 };
    let store = open(folder.path(), CAPACITY);
    put(&store, &stripe, 0).unwrap();
    let size = fs::metadata(file_of(folder.path())).unwrap().len();
    for position in 0..size {
        let path = file_of(folder.path());
        let mut bytes = fs::read(&path).unwrap();
        bytes[position as usize] ^= 0x10;
        fs::write(&path, bytes).unwrap();
        let newer = position == 8 || position == 9;
        match store.read(key, 0..0, Check::Here) {
            Err(StoreError::Corrupt(_)) if !newer => {}
            Err(StoreError::Unreadable(_)) if newer => {}
            other => panic!("byte {position}: {other:?}"),
        }
        assert!(matches!(store.read(key, 0..0, Check::Here), Err(StoreError::NotFound)));
        let usage = store.usage();
        assert_eq!((usage.live, usage.trash, usage.shards), (0, 0, 0));
        assert!(put(&store, &stripe, 0).unwrap());
    }
    let path = file_of(folder.path());
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(size - 1).unwrap();
    assert!(matches!(store.verify(key), Err(StoreError::Corrupt(_))));
    assert_eq!(store.lost(), size + 1);
}

/// The bytes' last proof is the reader's, who then has the shard looked at; everything else is proved here.
#[test]
fn what_the_reader_checks_is_given_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let stripe = stripe(2, 1_000);
    let key = ShardKey { stripe: stripe.0.id(), index: 0 };
    let store = open(folder.path(), CAPACITY);
    put(&store, &stripe, 0).unwrap();
    let path = file_of(folder.path());
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let read = store.read(key, 0..0, Check::Reader).unwrap();
    assert!(read.data.len() == stripe.1[0].len() && read.data != stripe.1[0]);
    assert!(matches!(store.verify(key), Err(StoreError::Corrupt(_))));
    assert!(matches!(store.read(key, 0..0, Check::Reader), Err(StoreError::NotFound)));
    put(&store, &stripe, 0).unwrap();
    fs::write(&path, [&bytes[..20], &[!bytes[20]], &bytes[21..]].concat()).unwrap();
    assert!(matches!(store.read(key, 0..0, Check::Reader), Err(StoreError::Corrupt(_))), "not this shard's header");
}

#[test]
fn a_file_under_another_shards_name_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (stripe(3, 1_000), stripe(4, 1_000));
    let store = open(folder.path(), CAPACITY);
    put(&store, &first, 0).unwrap();
    let stolen = fs::read(file_of(folder.path())).unwrap();
    put(&store, &second, 0).unwrap();
    let key = ShardKey { stripe: second.0.id(), index: 0 };
    fs::write(store.path(&Name::of(key, &store.held_one(key).unwrap())), stolen).unwrap();
    assert!(matches!(store.read(key, 0..0, Check::Here), Err(StoreError::Corrupt(_))));
}

#[test]
fn trash_revival_and_emptying_survive_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let stripe = stripe(5, 1_000);
    let key = |index| ShardKey { stripe: stripe.0.id(), index };
    let store = open(folder.path(), CAPACITY);
    for index in 0..3 {
        put(&store, &stripe, index).unwrap();
        store.trash(key(index), 100 + index as u64).unwrap();
    }
    store.set_complete(key(2)).unwrap();
    let store = open(folder.path(), CAPACITY);
    assert_eq!(store.usage().shards, 0);
    // Reading revives.
    store.read(key(1), 0..0, Check::Here).unwrap();
    // Putting again revives.
    assert!(!put(&store, &stripe, 2).unwrap());
    assert_eq!(store.expired(99, None, 10).unwrap(), []);
    assert_eq!(store.expired(1_000, None, 10).unwrap(), [key(0)]);
    assert_eq!(store.expired(1_000, Some(key(0)), 10).unwrap(), []);
    assert!(!store.delete(key(0), 99).unwrap() && !store.delete(key(1), 1_000).unwrap());
    assert!(store.delete(key(0), 1_000).unwrap() && !store.delete(key(0), 1_000).unwrap());
    let store = open(folder.path(), CAPACITY);
    let held = store.held(&stripe.0.id()).unwrap();
    assert_eq!(held.iter().map(|held| (held.index, held.complete)).collect::<Vec<_>>(), [(1, false), (2, true)]);
    assert!(held.iter().all(|held| held.state == ShardState::Live));
    assert_eq!(store.usage().trash, 0);
}

#[test]
fn a_stale_index_is_brought_into_line() {
    let folder = tempfile::tempdir().unwrap();
    let (kept, gone) = (stripe(6, 1_000), stripe(7, 1_000));
    let index_folder = folder.path().join("index");
    let open_sled = || {
        let index = crate::store::index::SledIndex::open(&index_folder).unwrap();
        FileStore::open(folder.path(), CAPACITY, Box::new(index)).unwrap()
    };
    let store = open_sled();
    put(&store, &kept, 0).unwrap();
    put(&store, &gone, 0).unwrap();
    let gone_key = ShardKey { stripe: gone.0.id(), index: 0 };
    fs::remove_file(store.path(&Name::of(gone_key, &store.held_one(gone_key).unwrap()))).unwrap();
    drop(store);
    let store = open_sled();
    assert_eq!(store.stripes(None, 10).unwrap(), [kept.0.id()]);
    drop(store);
    // Lost altogether.
    fs::remove_dir_all(&index_folder).unwrap();
    let store = open_sled();
    assert_eq!(store.stripes(None, 10).unwrap(), [kept.0.id()]);
    drop(store);
    // Damaged: each file of the database overwritten.
    for path in list(&index_folder).unwrap().iter().filter(|path| path.is_file()) {
        let len = fs::metadata(path).unwrap().len() as usize;
        fs::write(path, vec![0xa5; len]).unwrap();
    }
    assert_eq!(open_sled().stripes(None, 10).unwrap(), [kept.0.id()]);
}

#[test]
fn capacity_is_kept_and_leftovers_are_cleared() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 3_000);
    fs::write(folder.path().join("tmp/77"), b"half a shard").unwrap();
    let stripe = stripe(8, 3_000);
    put(&store, &stripe, 0).unwrap();
    assert!(matches!(put(&store, &stripe, 1), Err(StoreError::Full)));
    assert!(store.full());
    assert_eq!(store.read(ShardKey { stripe: stripe.0.id(), index: 0 }, 0..0, Check::Here).unwrap().data, stripe.1[0]);
    drop(store);
    open(folder.path(), 3_000);
    assert_eq!(list(&folder.path().join("tmp")).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn a_file_that_is_gone_is_a_shard_that_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let stripe = stripe(20, 1_000);
    let key = |index| ShardKey { stripe: stripe.0.id(), index };
    let store = open(folder.path(), CAPACITY);
    let remove = |index| fs::remove_file(store.path(&Name::of(key(index), &store.held_one(key(index)).unwrap())));

    put(&store, &stripe, 0).unwrap();
    put(&store, &stripe, 1).unwrap();
    remove(0).unwrap();
    assert_eq!(store.header(&key(0).stripe).unwrap(), stripe.0, "another shard of the stripe has it too");
    assert!(matches!(store.read(key(0), 0..0, Check::Here), Err(StoreError::NotFound)));

    put(&store, &stripe, 0).unwrap();
    remove(0).unwrap();
    assert!(matches!(store.verify(key(0)), Err(StoreError::Corrupt(_))));
    assert!(matches!(store.verify(key(0)), Err(StoreError::NotFound)));

    // A put is not acknowledged for what is no longer there.
    put(&store, &stripe, 0).unwrap();
    remove(0).unwrap();
    assert!(put(&store, &stripe, 0).unwrap());
    store.verify(key(0)).unwrap();

    // In the trash it does not keep the others from being deleted.
    for index in [0, 1] {
        store.trash(key(index), 5).unwrap();
    }
    remove(0).unwrap();
    assert!(!store.delete(key(0), 5).unwrap());
    assert!(store.delete(key(1), 5).unwrap());
    assert_eq!(store.expired(5, None, 10).unwrap(), []);
}

#[test]
fn what_cannot_be_read_now_stays_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let stripe = stripe(21, 1_000);
    let key = ShardKey { stripe: stripe.0.id(), index: 2 };
    let mut store = open(folder.path(), CAPACITY);
    put(&store, &stripe, 2).unwrap();
    let (path, usage) = (file_of(folder.path()), store.usage());
    let set_version = |version| {
        let mut bytes = fs::read(&path).unwrap();
        bytes[8] = version;
        fs::write(&path, bytes).unwrap();
    };
    for restarted in [false, true] {
        // As a newer program would have written it.
        set_version(2);
        assert!(restarted || matches!(store.read(key, 0..0, Check::Here), Err(StoreError::Unreadable(_))));
        if restarted {
            store = open(folder.path(), CAPACITY);
        }
        assert!(matches!(store.read(key, 0..0, Check::Here), Err(StoreError::NotFound)));
        assert!(path.exists() && store.usage().live == 0 && store.usage().damaged == usage.live);
        assert_eq!(store.retry_unreadable(), []);
        set_version(1);
        assert_eq!(store.retry_unreadable(), [key]);
        assert_eq!(
            (store.read(key, 0..0, Check::Here).unwrap().data, store.usage()),
            (stripe.1[2].clone().into(), usage)
        );
    }
    // What is put meanwhile takes its place.
    set_version(2);
    assert!(store.verify(key).is_err());
    assert!(put(&store, &stripe, 2).unwrap());
    assert_eq!((store.usage(), store.retry_unreadable()), (usage, Vec::new()));
}

#[test]
fn reads_beside_renames_find_the_shard() {
    let folder = tempfile::tempdir().unwrap();
    let stripe = stripe(22, 1_000);
    let key = ShardKey { stripe: stripe.0.id(), index: 0 };
    let store = open(folder.path(), CAPACITY);
    put(&store, &stripe, 0).unwrap();
    std::thread::scope(|scope| {
        let renamer = scope.spawn(|| {
            for round in 0..30 {
                store.trash(key, round).unwrap();
                store.revive(key).unwrap();
            }
        });
        while !renamer.is_finished() {
            store.verify(key).unwrap();
            store.header(&key.stripe).unwrap();
        }
    });
    assert_eq!(store.lost(), 0);
}

#[test]
fn two_who_find_one_damage_lose_one_shard() {
    let folder = tempfile::tempdir().unwrap();
    let stripe = stripe(23, 1_000);
    let key = ShardKey { stripe: stripe.0.id(), index: 0 };
    let store = open(folder.path(), CAPACITY);
    for round in 1..=20 {
        put(&store, &stripe, 0).unwrap();
        let path = file_of(folder.path());
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        std::thread::scope(|scope| {
            // Whoever writes it anew between the two keeps what it wrote.
            let both = [(); 2].map(|()| scope.spawn(|| store.verify(key).is_err() && put(&store, &stripe, 0).is_ok()));
            for finder in both {
                finder.join().unwrap();
            }
        });
        put(&store, &stripe, 0).unwrap();
        store.verify(key).unwrap();
        assert_eq!(store.lost(), round);
    }
}

#[test]
fn damaged_files_are_kept_up_to_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), CAPACITY));
    for name in ["first", "second"] {
        File::create(folder.path().join("damaged").join(name)).unwrap().set_len(DAMAGED_LIMIT * 2 / 3).unwrap();
    }
    let store = open(folder.path(), CAPACITY);
    assert_eq!(list(&folder.path().join("damaged")).unwrap().len(), 1);
    assert_eq!(store.usage().damaged, DAMAGED_LIMIT * 2 / 3);
}

/// The layout of FORMAT.md, "Shard files", read here byte by byte.
#[test]
fn a_shard_file_is_as_documented() {
    for data_len in [1_000, 400_000] {
        let folder = tempfile::tempdir().unwrap();
        let stripe = stripe(24, data_len);
        let store = open(folder.path(), CAPACITY);
        let (shard, tree) = (&stripe.1[2], chaining_values(&stripe.1[2]));
        store.put(&stripe.0, 2, shard, &tree, 0x0102_0304_0506_0708).unwrap();
        let id = stripe.0.id().to_string();
        let path = folder.path().join("shards").join(&id[..2]).join(format!("{id}-002.new"));
        let bytes = fs::read(path).unwrap();
        let (header, chaining) = (stripe.0.bytes(), tree.as_bytes());
        let lengths = [shard.len(), header.len(), chaining.len()].map(|len| (len as u32).to_le_bytes()).concat();
        let mut expected =
            [&b"potshard"[..], &[1, 0], &[2], &[8, 7, 6, 5, 4, 3, 2, 1], &lengths, header, chaining].concat();
        let checksum = blake3::hash(&expected);
        expected.extend_from_slice(checksum.as_bytes());
        if shard.len() >= 65_536 {
            expected.resize(expected.len().next_multiple_of(4096), 0);
        }
        expected.extend_from_slice(shard);
        assert!(bytes == expected, "shards of {} bytes", shard.len());
        // What changes is in the name.
        let key = ShardKey { stripe: stripe.0.id(), index: 2 };
        store.set_complete(key).unwrap();
        assert!(folder.path().join("shards").join(&id[..2]).join(format!("{id}-002.complete")).exists());
        store.trash(key, 77).unwrap();
        assert!(folder.path().join("trash").join(&id[..2]).join(format!("{id}-002.complete.77")).exists());
    }
}
