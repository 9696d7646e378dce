//! The tree against a BTreeMap, its independence of history, and the cost of a change.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::{ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::{Change, Diff, Listed, Listing, Root, Scan, apply, copy, get, lookup, remove, rename};
use crate::vault::VaultError;
use crate::vault::entry::{Entry, Kind};
use crate::vault::keys::{VaultKeys, VaultSecret};
use crate::vault::memory::{MemoryStore, now};

type Model = BTreeMap<Bytes, Entry>;

fn keys() -> VaultKeys {
    VaultSecret::from_bytes([3; 32]).keys()
}

fn key(number: u32) -> Bytes {
    format!("dir{}/sub{}/file{number}", number % 7, number % 3).into()
}

fn entry(number: u32) -> Entry {
    Entry { mtime_ns: number.into(), ..Entry::inline(Kind::File, number.to_le_bytes().to_vec()) }
}

fn insertions(model: &Model) -> Vec<Change> {
    model.iter().map(|(key, entry)| (key.clone(), Some(entry.clone()))).collect()
}

fn many(count: u32) -> Model {
    (0..count).map(|number| (key(number), entry(number))).collect()
}

fn scan_all(store: &MemoryStore, keys: &VaultKeys, root: &Root, prefix: &[u8]) -> Vec<(Bytes, Entry)> {
    let mut scan = Scan::new(keys, root, Bytes::copy_from_slice(prefix));
    std::iter::from_fn(|| now(scan.next(store)).unwrap()).collect()
}

fn model_and_steps() -> impl Strategy<Value = Vec<BTreeMap<u32, Option<u32>>>> {
    let change = prop::option::weighted(0.6, any::<u32>());
    prop::collection::vec(prop::collection::btree_map(0u32..1500, change, 0..400), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_tree_is_a_map_whatever_its_history(steps in model_and_steps(), finish in any::<bool>()) {
        let keys = keys();
        let mut store = MemoryStore::new(&keys);
        let (mut root, mut model): (Root, Model) = (None, Model::new());
        for step in &steps {
            let mut changes: Vec<Change> = step.iter().map(|(&n, value)| (key(n), value.map(entry))).collect();
            changes.sort_by(|a, b| a.0.cmp(&b.0));
            for (key, change) in &changes {
                match change {
                    Some(entry) => model.insert(key.clone(), entry.clone()),
                    None => model.remove(key),
                };
            }
            let before = root.clone();
            root = now(apply(&mut store, &keys, &root, changes)).unwrap();
            if finish {
                store.finish_stripe().unwrap();
            }
            // The difference is exactly what changed.
            let mut diff = Diff::new(&keys, &before, &root);
            while let Some(difference) = now(diff.next(&store)).unwrap() {
                prop_assert_eq!(difference.right.as_ref(), model.get(&difference.key));
                prop_assert!(difference.left != difference.right);
            }
        }
        let expected: Vec<_> = model.clone().into_iter().collect();
        prop_assert_eq!(scan_all(&store, &keys, &root, b""), expected);
        for number in (0..1500).step_by(37) {
            prop_assert_eq!(now(get(&store, &keys, &root, &key(number))).unwrap(), model.get(&key(number)).cloned());
        }
        let totals = root.as_ref().map_or((0, 0), |root| (root.count, root.size));
        prop_assert_eq!(totals, (model.len() as u64, 4 * model.len() as u64));

        let fresh = now(apply(&mut store, &keys, &None, insertions(&model))).unwrap();
        prop_assert_eq!(fresh.as_ref().map(|root| (root.id, root.height)), root.as_ref().map(|root| (root.id, root.height)));
        prop_assert_eq!(now(Diff::new(&keys, &fresh, &root).next(&store)).unwrap(), None);
    }

    #[test]
    fn a_difference_gives_one_tree_from_the_other(left in 0u32..600, picks in prop::collection::btree_map(0u32..700, any::<bool>(), 0..60)) {
        let keys = keys();
        let mut store = MemoryStore::new(&keys);
        let left = now(apply(&mut store, &keys, &None, insertions(&many(left)))).unwrap();
        let mut changes: Vec<Change> = picks.iter().map(|(&n, &set)| (key(n), set.then(|| entry(n + 9)))).collect();
        changes.sort_by(|a, b| a.0.cmp(&b.0));
        let right = now(apply(&mut store, &keys, &left, changes)).unwrap();
        let (mut diff, mut changes) = (Diff::new(&keys, &right, &left), Vec::new());
        while let Some(difference) = now(diff.next(&store)).unwrap() {
            changes.push((difference.key, difference.right));
        }
        let back = now(apply(&mut store, &keys, &right, changes)).unwrap();
        prop_assert_eq!(back.map(|root| root.id), left.map(|root| root.id));
    }
}

#[test]
fn a_change_costs_one_path_of_nodes() {
    let keys = keys();
    let mut store = MemoryStore::new(&keys);
    let root = now(apply(&mut store, &keys, &None, insertions(&many(50_000)))).unwrap();
    let height = usize::from(root.as_ref().unwrap().height);
    let (written, _) = store.take_counts();
    assert!((1000..2500).contains(&written), "{written} nodes for 50,000 entries");
    for number in 0..200 {
        let change = (key(number * 251), Some(entry(7_000_000)));
        let changed = now(apply(&mut store, &keys, &root, [change])).unwrap();
        let (written, loaded) = store.take_counts();
        assert_eq!((written, loaded), (height + 1, height + 1));
        let mut diff = Diff::new(&keys, &root, &changed);
        assert!(now(diff.next(&store)).unwrap().is_some());
        assert!(now(diff.next(&store)).unwrap().is_none());
        assert_eq!(store.take_counts().1, 2 * (height + 1));
        // Removing may join a node with its neighbour, at each height.
        now(apply(&mut store, &keys, &root, [(key(number * 251), None)])).unwrap();
        let (written, loaded) = store.take_counts();
        assert!(written <= 2 * (height + 1) && loaded <= 3 * (height + 1), "{written} {loaded}");
    }
    let same = now(apply(&mut store, &keys, &root, [(key(5), Some(entry(5))), (Bytes::from("no"), None)])).unwrap();
    assert_eq!((same, store.take_counts().0), (root, 0));
}

#[test]
fn locations_alone_can_be_rewritten() {
    let keys = keys();
    let mut store = MemoryStore::new(&keys);
    let (_, pointer) = store.put(&[1; 4000]).unwrap();
    let file = |offset| {
        let chunk = crate::vault::entry::ChunkRef {
            id: potluck_proto::id::ChunkId([5; 32]),
            size: 4000,
            pointer: crate::vault::pointer::PendingPointer { offset, ..pointer },
        };
        Entry { size: 4000, content: crate::vault::entry::Content::Chunks(vec![chunk]), ..entry(0) }
    };
    let at = |offset| [(Bytes::from("a"), Some(file(offset)))];
    let first = now(apply(&mut store, &keys, &None, at(0))).unwrap();
    let moved = now(apply(&mut store, &keys, &first, at(9))).unwrap();
    assert_eq!(first.as_ref().map(|root| root.id), moved.as_ref().map(|root| root.id));
    let read = now(get(&store, &keys, &moved, b"a")).unwrap().unwrap();
    assert_eq!(read, file(9));
    assert_eq!(now(Diff::new(&keys, &first, &moved).next(&store)).unwrap(), None);
}

#[test]
fn listings_jump_over_subdirectories() {
    let keys = keys();
    let mut store = MemoryStore::new(&keys);
    let mut model = Model::new();
    for name in ["a", "a-b", "a/", "a/x", "b/y/z", "c/", "z"] {
        model.insert(name.into(), Entry::dir());
    }
    for number in 0..5000 {
        model.insert(format!("big/{number:05}").into(), entry(number));
    }
    let root = now(apply(&mut store, &keys, &None, insertions(&model))).unwrap();
    store.take_counts();
    let (mut listing, mut listed) = (Listing::new(&keys, &root, Bytes::new()), Vec::new());
    while let Some(Listed { key, entry }) = now(listing.next(&store)).unwrap() {
        listed.push((String::from_utf8(key.to_vec()).unwrap(), entry.is_some()));
    }
    let top = [("a", true), ("a-b", true), ("a/", true), ("b/", false), ("big/", false), ("c/", true), ("z", true)];
    assert_eq!(listed, top.map(|(key, has_entry)| (key.to_string(), has_entry)));
    assert!(store.take_counts().1 < 12, "the big directory's nodes are jumped over");

    let mut listing = Listing::new(&keys, &root, "a/".into());
    assert_eq!(now(listing.next(&store)).unwrap().unwrap().key, "a/x");
    assert_eq!(now(listing.next(&store)).unwrap(), None);
    let found = |path| now(lookup(&store, &keys, &root, path)).unwrap().map(|(key, entry)| (key, entry.is_some()));
    assert_eq!(found("/a"), Some(("a".into(), true)));
    assert_eq!(found("a/"), Some(("a/".into(), true)));
    assert_eq!(found("b/y"), Some(("b/y/".into(), false)));
    assert_eq!(found("nothing"), None);
    assert_eq!(found(""), Some(("".into(), false)));
}

#[test]
fn files_and_directories_are_moved_copied_and_removed() {
    let keys = keys();
    let mut store = MemoryStore::new(&keys);
    let names = |store: &MemoryStore, root: &Root| {
        let all = scan_all(store, &keys, root, b"");
        all.into_iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    let model: Model = ["a/", "a/x", "a/y", "b"].map(|name| (name.into(), Entry::dir())).into();
    let root = now(apply(&mut store, &keys, &None, insertions(&model))).unwrap();
    // Locations inside a stripe do not depend on what is stored later: one store to read from, one to write to.
    let mut other = MemoryStore::new(&keys);
    now(apply(&mut other, &keys, &None, insertions(&model))).unwrap();
    let mut edited = |changes: Vec<Change>| {
        let root = now(apply(&mut store, &keys, &root, changes)).unwrap();
        names(&store, &root)
    };
    let changes = now(rename(&other, &keys, &root, &"a/".into(), &"c/d/".into())).unwrap();
    assert_eq!(edited(changes), ["b", "c/d/", "c/d/x", "c/d/y"]);
    let changes = now(rename(&other, &keys, &root, &"a/".into(), &"a/a/".into())).unwrap();
    assert_eq!(edited(changes), ["a/a/", "a/a/x", "a/a/y", "b"]);
    let changes = now(copy(&other, &keys, &root, &"b".into(), &"a/x".into())).unwrap();
    assert_eq!(edited(changes), ["a/", "a/x", "a/y", "b"]);
    let changes = now(remove(&other, &keys, &root, &"a/".into())).unwrap();
    assert_eq!(edited(changes), ["b"]);
    let changes = now(remove(&other, &keys, &root, &"".into())).unwrap();
    assert_eq!(edited(changes), [""; 0]);
}

#[test]
fn bad_changes_leave_an_error() {
    let keys = keys();
    let mut store = MemoryStore::new(&keys);
    let mut fails = |changes: Vec<Change>| now(apply(&mut store, &keys, &None, changes)).unwrap_err();
    let (a, b) = ((Bytes::from("a"), Some(entry(1))), (Bytes::from("b"), Some(entry(1))));
    assert!(matches!(fails(vec![b.clone(), a.clone()]), VaultError::Unsorted(_)));
    assert!(matches!(fails(vec![a.clone(), a]), VaultError::Unsorted(_)));
    assert!(matches!(fails(vec![(Bytes::new(), None)]), VaultError::Path(_)));
    let wrong = Entry { size: 99, ..entry(1) };
    assert!(matches!(fails(vec![(Bytes::from("b"), Some(wrong))]), VaultError::Entry { .. }));
}

/// Golden: FORMAT.md, "Tree node". Another id here would make every stored tree unreadable.
#[test]
fn a_leaf_is_as_documented() {
    use crate::vault::StoredObject;
    let items = super::Items::Entries(vec![("ab".into(), Entry::dir()), ("ac".into(), Entry::dir())]);
    let node = super::Node { height: 0, items };
    let golden = [1, 0, 0, 2, 0, 2, b'a', b'b', 3, 1, 1, 2, 1, 1, b'c', 3, 1, 1, 2];
    assert_eq!(node.encode(&crate::vault::pointer::Anywhere).unwrap(), golden);
    assert_eq!(node.id(&keys()).to_string(), "7a334335935025b3ea5419092f772e77dee6456d87a25687249b45aea6c6d603");
    let level = super::node::level;
    assert_eq!((0..100).filter(|&n| level(&keys(), &key(n)) > 0).collect::<Vec<_>>(), [22, 30]);
}

/// Golden: FORMAT.md, "Tree node".
#[test]
fn an_inner_node_is_as_documented() {
    use crate::vault::StoredObject;
    use crate::vault::pointer::{Anywhere, PendingPointer, StripeRef};
    use potluck_proto::id::{ChunkId, Digest, StripeId};
    let stripe = StripeRef::Sealed(StripeId([7; 32]));
    let pointer = PendingPointer { stripe, offset: 1, len: 2, hash: Digest([8; 32]) };
    let child = super::Subtree { id: ChunkId([6; 32]), height: 0, pointer, count: 3, size: 300 };
    let node = super::Node { height: 1, items: super::Items::Children(vec![("z".into(), child)]) };
    let head = [1, 0, 1, 1, 0, 1, b'z', 0];
    let golden = [&head[..], &[6; 32], &[3, 0xac, 2], &[1], &[7; 32], &[1, 0, 0, 0, 2, 0, 0, 0], &[8; 32]].concat();
    let bytes = node.encode(&Anywhere).unwrap();
    assert_eq!(bytes, golden);
    assert_eq!(super::Node::decode(&bytes, stripe), Ok(node));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let stripe = crate::vault::pointer::StripeRef::Open(0);
        let _ = super::Node::decode(&bytes, stripe);
        // Past the version too.
        let _ = super::Node::decode(&[&[1, 0][..], &bytes].concat(), stripe);
    }
}

#[test]
fn the_futures_can_move_between_threads() {
    fn check<T: Send>(_: &T) {}
    let keys = keys();
    let mut store = MemoryStore::new(&keys);
    check(&get(&store, &keys, &None, b"a"));
    check(&Diff::new(&keys, &None, &None).next(&store));
    check(&Listing::new(&keys, &None, Bytes::new()).next(&store));
    check(&apply(&mut store, &keys, &None, Vec::new()));
}
