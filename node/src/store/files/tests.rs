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
    assert_eq!(store.read(key, 0..0).unwrap().data, stripe.1[1]);
    let read = store.read(key, 70_000..70_001).unwrap();
    assert_eq!(read.offset, 65_536);
    assert_eq!(read.data, stripe.1[1][65_536..131_072]);
    assert_eq!(store.header(&key.stripe).unwrap(), stripe.0);
    assert!(matches!(store.read(key, 0..1 << 40), Err(StoreError::Range)));
    assert!(matches!(store.read(ShardKey { index: 0, ..key }, 0..0), Err(StoreError::NotFound)));
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
        assert!(matches!(store.read(key, 0..0), Err(StoreError::Corrupt(_))), "byte {position}");
        assert!(matches!(store.read(key, 0..0), Err(StoreError::NotFound)));
        assert_eq!(store.usage(), Usage::default());
        assert!(put(&store, &stripe, 0).unwrap());
    }
    let path = file_of(folder.path());
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(size - 1).unwrap();
    assert!(matches!(store.verify(key), Err(StoreError::Corrupt(_))));
    assert_eq!(store.damaged(), size + 1);
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
    assert!(matches!(store.read(key, 0..0), Err(StoreError::Corrupt(_))));
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
    store.read(key(1), 0..0).unwrap();
    // Putting again revives.
    assert!(!put(&store, &stripe, 2).unwrap());
    assert_eq!(store.empty_trash(99).unwrap(), 0);
    assert_eq!(store.empty_trash(1_000).unwrap(), 1);
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
    assert_eq!(store.read(ShardKey { stripe: stripe.0.id(), index: 0 }, 0..0).unwrap().data, stripe.1[0]);
    drop(store);
    open(folder.path(), 3_000);
    assert_eq!(list(&folder.path().join("tmp")).unwrap(), Vec::<PathBuf>::new());
}
