//! The tools for a stopped node's store, as real processes on a real disk: they say what is so, and change only what they
//! are asked to.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::SystemTime;

use potluck_node::store::segments::disk::{Disk, FolderDisk, INDEX_FOLDER, STORE_FOLDER};
use potluck_node::store::segments::format::{Kind, RecordHeader, SegmentHeader, StoreId};
use potluck_node::store::segments::log::segment_name;
use potluck_node::store::segments::recovery::read_segment;
use potluck_node::store::segments::{Options, SegmentStore};
use potluck_node::store::{ShardKey, StoreError};
use potluck_proto::blocks::chaining_values;
use potluck_proto::cert::{DeviceCert, Rights};
use potluck_proto::id::Digest;
use potluck_proto::key::SecretKey;
use potluck_proto::stripe::{Scheme, SignedHeader, StripeHeader, shard_len};
use potluck_tests::process::program;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tempfile::TempDir;

/// Exit codes of `fsck`: see its help.
const SOUND: Option<i32> = Some(0);
const DAMAGED: Option<i32> = Some(1);
const UNCHECKED: Option<i32> = Some(2);

/// What the operator's other commands end with when they fail.
const FAILED: Option<i32> = Some(1);

const STORE: StoreId = StoreId([7; 16]);

/// Shards in the store that is made.
const SHARDS: usize = 6;

/// A node's folder with a store of one sealed segment in it.
struct Made {
    data: TempDir,
    keys: Vec<ShardKey>,
}

fn open(data: &Path) -> SegmentStore {
    let disk: Arc<dyn Disk> = Arc::new(FolderDisk::open(&data.join(STORE_FOLDER)).unwrap());
    let clock = Arc::new(|| 1_700_000_000_000);
    let options = Options {
        capacity: 1 << 40,
        segment_bytes: 8 << 20,
        fresh: STORE,
        clock,
        threaded: true,
        index: None,
        progress: Arc::default(),
    };
    SegmentStore::open(disk, options).unwrap()
}

/// A stripe 1+1 of noise.
fn stripe(seed: u64, len: usize) -> (SignedHeader, Vec<u8>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (vault, device_key) = (SecretKey::generate(&mut rng), SecretKey::generate(&mut rng));
    let device = DeviceCert::issue(&vault, device_key.public().into(), Rights::ALL, 0, 0);
    let mut shard = vec![0; shard_len(len, 1)];
    rng.fill_bytes(&mut shard[..len]);
    let header = StripeHeader {
        vault: device.vault(),
        device,
        born: 0,
        created_ms: 0,
        scheme: Scheme::new(1, 1).unwrap(),
        shard_len: shard.len() as u32,
        data_len: len as u32,
        shards: vec![Digest::of(&shard); 2],
    };
    (header.sign(&device_key), shard)
}

impl Made {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let store = open(data.path());
        let mut keys = Vec::new();
        for seed in 0..SHARDS as u64 {
            let (header, shard) = stripe(seed, if seed % 2 == 0 { 1_000 } else { 300_000 });
            assert!(store.put(&header, 0, &shard, &chaining_values(&shard), 0).unwrap());
            keys.push(ShardKey { stripe: header.id(), index: 0 });
        }
        store.keep(Kind::Head, [4; 32], &[4; 500]).unwrap();
        store.trash(keys[0], 1).unwrap();
        store.delete(keys[0], 2).unwrap();
        drop(store);
        Self { data, keys }
    }

    fn folder(&self) -> PathBuf {
        self.data.path().join(STORE_FOLDER)
    }

    /// The first segment's record of a kind and key.
    fn record(&self, kind: Kind, key: [u8; 32]) -> RecordHeader {
        let disk = FolderDisk::open_to_read(&self.folder()).unwrap();
        let records = read_segment(&*disk.open(&segment_name(1)).unwrap(), STORE, 1).unwrap().records;
        records.into_iter().find(|header| header.kind == kind && header.key == key).unwrap()
    }

    /// Changes a byte of the first segment behind everyone's back.
    fn damage(&self, at: u64) {
        let file = OpenOptions::new().read(true).write(true).open(self.folder().join(segment_name(1))).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }

    fn damage_shard(&self, key: &ShardKey) {
        let record = self.record(Kind::Shard, key.stripe.0);
        self.damage(record.offset + record.payload_at() + 77);
    }

    /// Every file and folder, its bytes and when it was changed last.
    fn all(&self) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
        let mut all = BTreeMap::new();
        let mut folders = vec![self.data.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            all.insert(folder.clone(), (Vec::new(), fs::metadata(&folder).unwrap().modified().unwrap()));
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::metadata(&path).unwrap();
                if metadata.is_dir() {
                    folders.push(path);
                } else {
                    all.insert(path.clone(), (fs::read(&path).unwrap(), metadata.modified().unwrap()));
                }
            }
        }
        all
    }

    /// `potluck node WORDS PATH` to its end.
    fn run(&self, words: &[&str]) -> Output {
        run(words, self.data.path())
    }
}

fn run(words: &[&str], path: &Path) -> Output {
    let program = program().unwrap();
    let mut command = Command::new(&program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"POTLUCK_")) {
        command.env_remove(name);
    }
    if program.file_name().is_some_and(|name| name != "potluck-node") {
        command.arg("node");
    }
    command.args(words).arg(path).output().unwrap()
}

/// What a command printed, if it ended with `code`, said each of `words`, and did not panic.
#[track_caller]
fn said(done: &Output, code: Option<i32>, words: &[&str]) -> String {
    let all = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert_eq!(done.status.code(), code, "{all}");
    assert!(!all.contains("panicked"), "{all}");
    for word in words {
        assert!(all.contains(word), "{word:?} is not in {all}");
    }
    String::from_utf8_lossy(&done.stdout).into_owned()
}

#[test]
fn looking_changes_nothing_and_says_what_is_there() {
    let made = Made::new();
    fs::create_dir(made.folder().join(INDEX_FOLDER)).unwrap();
    fs::write(made.folder().join(INDEX_FOLDER).join("db"), [1; 5_000]).unwrap();
    let before = made.all();
    let sound = ["1 segment", "5 shards", "1 vault's heads", "The store is sound"];
    said(&made.run(&["fsck"]), SOUND, &sound);
    said(&run(&["fsck"], &made.folder()), SOUND, &sound);
    let words =
        ["segments     1, 1 sealed", "5 wanted", "6 shard, 1 delete, 1 trash", "4.9 KiB", "page cache", "left free"];
    said(&made.run(&["store", "stats"]), SOUND, &words);
    said(&run(&["store", "stats"], &made.folder()), SOUND, &words);
    let stats: Value = serde_json::from_str(&said(&made.run(&["store", "stats", "--json"]), SOUND, &[])).unwrap();
    assert_eq!((&stats["shards"], &stats["sealed"], &stats["kept"]["heads"]), (&5.into(), &1.into(), &1.into()));
    assert_eq!((&stats["index_bytes"], &stats["records"]["delete"]), (&5_000.into(), &1.into()));
    assert!(stats["live_bytes"].as_u64() < stats["record_bytes"].as_u64());

    made.damage_shard(&made.keys[1]);
    let damaged = made.all();
    let stripe = made.keys[1].stripe.to_string();
    let words =
        ["shard 0 of stripe", &stripe, "does not match its hash", "1 shard is damaged", "fsck --repair", "smartctl"];
    said(&made.run(&["fsck"]), DAMAGED, &words);
    let report: Value = serde_json::from_str(&said(&made.run(&["fsck", "--json"]), DAMAGED, &[])).unwrap();
    assert_eq!((&report["sound"], &report["damaged_shards"]), (&false.into(), &1.into()));
    let part = &report["segments"][0]["damaged"][0];
    assert_eq!((&part["what"], &part["key"], &part["standing"]), (&"shard".into(), &stripe.into(), &"counts".into()));
    assert_eq!(damaged, made.all());
    assert_eq!(before.len(), damaged.len());
}

#[test]
fn a_repair_gives_up_the_damaged_and_keeps_the_rest() {
    let made = Made::new();
    fs::create_dir(made.folder().join(INDEX_FOLDER)).unwrap();
    made.damage_shard(&made.keys[1]);
    made.damage_shard(&made.keys[2]);
    // The one that was deleted is damaged as well, and nothing hangs on it.
    made.damage_shard(&made.keys[0]);
    fs::write(made.folder().join("store"), [0; 4096]).unwrap();
    let first = fs::read(made.folder().join(segment_name(1))).unwrap();
    let words = ["2 damaged shards given up", "\"store\" was written anew", "index was removed", "counts no more"];
    said(&made.run(&["fsck", "--repair"]), DAMAGED, &words);
    assert!(!made.folder().join(INDEX_FOLDER).exists());
    assert_eq!(first, fs::read(made.folder().join(segment_name(1))).unwrap());
    let header = SegmentHeader::decode(&fs::read(made.folder().join("store")).unwrap()).unwrap();
    assert_eq!((header.store, header.segment), (STORE, 0));
    let names = |made: &Made| made.all().into_keys().collect::<Vec<_>>();
    let after = names(&made);
    said(&made.run(&["fsck", "--repair"]), SOUND, &["there was nothing to do", "The store is sound"]);
    assert_eq!(names(&made), after);
    said(&made.run(&["fsck"]), SOUND, &["3 damaged records do not count any more"]);
    let store = open(made.data.path());
    for (at, key) in made.keys.iter().enumerate() {
        let gone = matches!(store.verify(*key), Err(StoreError::NotFound));
        assert_eq!(gone, at < 3, "shard {at}");
    }
    drop(store);

    // What only others have is told again and again.
    let head = made.record(Kind::Head, [4; 32]);
    made.damage(head.offset + head.payload_at());
    for _ in 0..2 {
        let words = ["The heads of 1 vault are damaged here", "The other replicas have them"];
        said(&made.run(&["fsck", "--repair"]), DAMAGED, &words);
    }
}

#[test]
fn a_store_in_use_and_no_store_at_all() {
    let made = Made::new();
    let store = open(made.data.path());
    said(&made.run(&["fsck"]), UNCHECKED, &["in use by another process", "stop that one first"]);
    said(&made.run(&["fsck", "--repair"]), UNCHECKED, &["in use by another process"]);
    said(&made.run(&["store", "stats"]), FAILED, &["in use by another process", "potluck node status"]);
    drop(store);
    said(&made.run(&["fsck"]), SOUND, &[]);
    let nothing = tempfile::tempdir().unwrap();
    said(&run(&["fsck", "--repair"], nothing.path()), UNCHECKED, &["there is no store in", "folder of a node"]);
    said(&run(&["fsck"], &nothing.path().join("nowhere")), UNCHECKED, &["cannot look into", "No such file"]);
    said(&run(&["store", "stats"], nothing.path()), FAILED, &["there is no store in"]);
    assert_eq!(fs::read_dir(nothing.path()).unwrap().count(), 0);
    for name in [segment_name(1), "store".into()] {
        fs::write(made.folder().join(name), [0x5a; 8192]).unwrap();
    }
    let before = made.all();
    said(&made.run(&["fsck"]), UNCHECKED, &["which store this is"]);
    assert_eq!(before, made.all());
}
