//! Merging loses nothing and does not depend on who merges.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::{ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::{Merged, Side, copy_name, date, merge};
use crate::vault::entry::{Entry, Kind};
use crate::vault::keys::{VaultKeys, VaultSecret};
use crate::vault::memory::{MemoryStore, now};
use crate::vault::tree::{Change, Root, Scan, apply};

/// A path's number, then its content and time; `None` removes it.
type Edits = BTreeMap<u8, Option<(u8, u8)>>;

struct World {
    keys: VaultKeys,
    store: MemoryStore,
}

impl World {
    fn new() -> Self {
        let keys = VaultSecret::from_bytes([3; 32]).keys();
        Self { store: MemoryStore::new(&keys), keys }
    }

    fn edit(&mut self, root: &Root, edits: &Edits) -> Root {
        let entry =
            |(content, time): (u8, u8)| Entry { mtime_ns: time.into(), ..Entry::inline(Kind::File, vec![content]) };
        let change = |(number, edit): (&u8, &Option<(u8, u8)>)| (Bytes::from(vec![b'f', *number]), edit.map(entry));
        let changes: Vec<Change> = edits.iter().map(change).collect();
        now(apply(&mut self.store, &self.keys, root, changes)).unwrap()
    }

    fn merge(&mut self, base: &Root, ours: &Side, theirs: &Side) -> (Side, Merged) {
        let merged = now(merge(&self.store, &self.keys, base, ours, theirs)).unwrap();
        let files = now(apply(&mut self.store, &self.keys, &ours.files, merged.changes.clone())).unwrap();
        let side = Side { files, device: "merger".into(), time_ms: ours.time_ms.max(theirs.time_ms) + 1 };
        (side, merged)
    }

    fn all(&self, root: &Root) -> BTreeMap<Bytes, Entry> {
        let mut scan = Scan::new(&self.keys, root, Bytes::new());
        std::iter::from_fn(|| now(scan.next(&self.store)).unwrap()).collect()
    }
}

fn side(files: Root, device: &str, time_ms: u64) -> Side {
    Side { files, device: device.into(), time_ms }
}

fn id(root: &Root) -> Option<potluck_proto::id::ChunkId> {
    root.as_ref().map(|root| root.id)
}

fn edits() -> impl Strategy<Value = Edits> {
    let edit = prop::option::weighted(0.7, (0u8..4, 0u8..4));
    prop::collection::btree_map(0u8..24, edit, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn merging_is_commutative_and_loses_nothing(
        start in edits(), left in edits(), right in edits(), times in any::<(bool, bool)>(), ancestor in any::<bool>(),
    ) {
        let mut world = World::new();
        let start = world.edit(&None, &start);
        let ours = side(world.edit(&start, &left), "left", times.0.into());
        let theirs = side(world.edit(&start, &right), "right", times.1.into());
        let base = if ancestor { start } else { None };
        let (merged, report) = world.merge(&base, &ours, &theirs);
        let (mirrored, mirror) = world.merge(&base, &theirs, &ours);
        prop_assert_eq!(id(&merged.files), id(&mirrored.files));
        prop_assert_eq!(&report.conflicts, &mirror.conflicts);

        let (old, result) = (world.all(&base), world.all(&merged.files));
        for side in [&ours, &theirs] {
            for (key, entry) in world.all(&side.files) {
                if old.get(&key) == Some(&entry) {
                    continue;
                }
                let copies = report.conflicts.iter().filter(|conflict| conflict.path == key).map(|conflict| &conflict.copy);
                let found = std::iter::once(&key).chain(copies).any(|at| {
                    result.get(at).is_some_and(|kept| kept.content_id(&world.keys) == entry.content_id(&world.keys))
                });
                prop_assert!(found, "{key:?} of {}", side.device);
            }
        }
        // What only one side removed is gone, and nothing comes from nowhere.
        let (ours, theirs) = (world.all(&ours.files), world.all(&theirs.files));
        for (key, entry) in &old {
            let (our, their) = (ours.get(key), theirs.get(key));
            if (our.is_none() && their == Some(entry)) || (their.is_none() && our == Some(entry)) {
                prop_assert!(!result.contains_key(key));
            }
        }
        let copies = report.conflicts.iter().map(|conflict| &conflict.copy);
        let known: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).chain(copies).collect();
        prop_assert!(result.keys().all(|key| known.contains(key)));
    }

    #[test]
    fn merging_is_idempotent(start in edits(), left in edits(), right in edits()) {
        let mut world = World::new();
        let base = world.edit(&None, &start);
        let ours = side(world.edit(&base, &left), "left", 1);
        let theirs = side(world.edit(&base, &right), "right", 2);
        prop_assert_eq!(world.merge(&base, &ours, &ours.clone()).1, Merged::default());
        let (merged, _) = world.merge(&base, &ours, &theirs);
        // Who meets the merged state again has one side of it as the ancestor.
        for side in [&ours, &theirs] {
            let (again, report) = world.merge(&side.files, &merged, side);
            prop_assert_eq!(id(&again.files), id(&merged.files));
            prop_assert_eq!(report, Merged::default());
        }
    }

    #[test]
    fn without_conflicts_the_order_does_not_matter(start in edits(), all in edits(), whose in any::<[u8; 24]>()) {
        let mut world = World::new();
        let base = world.edit(&None, &start);
        let mut part = |mask: u8| {
            // A path may be changed by several sides, in the same way.
            let mine = |number: &u8| whose[usize::from(*number)] & mask != 0;
            let edits: Edits = all.iter().filter(|(number, _)| mine(number)).map(|(&n, &edit)| (n, edit)).collect();
            side(world.edit(&base, &edits), "device", mask.into())
        };
        let (a, b, c) = (part(1), part(2), part(4));
        let (ab, _) = world.merge(&base, &a, &b);
        let (left, report) = world.merge(&base, &ab, &c);
        let (bc, _) = world.merge(&base, &b, &c);
        let (right, _) = world.merge(&base, &a, &bc);
        prop_assert_eq!(id(&left.files), id(&right.files));
        prop_assert!(report.conflicts.is_empty());
    }
}

/// Names that are in each other's way: `a` and `a/`, with names in between in the order of keys.
const NESTED: [&str; 8] = ["a", "a!", "a!/x", "a/", "a/b", "a/b/c", "a/b/d", "b"];

/// Whether a file has the name of a directory.
fn clashes(files: &BTreeMap<Bytes, Entry>) -> bool {
    let is_dir = |dir: &[u8]| files.keys().any(|key| key.starts_with(dir));
    files.keys().any(|key| !key.ends_with(b"/") && is_dir(&crate::vault::path::dir_of(key)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_file_and_a_directory_of_one_name_are_both_kept_under_names_of_their_own(
        start in any::<u8>(), left in any::<u8>(), right in any::<u8>(), contents in any::<(u8, u8)>(),
    ) {
        let mut world = World::new();
        // A name that an earlier one rules out is not there.
        let mut state = |mask: u8, content: u8| {
            let mut files = BTreeMap::new();
            for (bit, name) in NESTED.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0) {
                let file = Entry { mtime_ns: 1, ..Entry::inline(Kind::File, vec![bit as u8, content % 2]) };
                let entry = if name.ends_with('/') { Entry::dir() } else { file };
                let key = Bytes::from(*name);
                files.insert(key.clone(), entry);
                if clashes(&files) {
                    files.remove(&key);
                }
            }
            let changes: Vec<Change> = files.into_iter().map(|(key, entry)| (key, Some(entry))).collect();
            now(apply(&mut world.store, &world.keys, &None, changes)).unwrap()
        };
        let base = state(start, 0);
        let (ours, theirs) = (side(state(left, contents.0), "left", 1), side(state(right, contents.1), "right", 2));
        let (merged, report) = world.merge(&base, &ours, &theirs);
        let (mirrored, mirror) = world.merge(&base, &theirs, &ours);
        prop_assert_eq!(id(&merged.files), id(&mirrored.files));
        prop_assert_eq!(&report.conflicts, &mirror.conflicts);
        let (old, result) = (world.all(&base), world.all(&merged.files));
        prop_assert!(!clashes(&result), "{:?}", result.keys());
        for side in [&ours, &theirs] {
            let changed = world.all(&side.files).into_iter().filter(|(key, entry)| old.get(key) != Some(entry));
            for (key, entry) in changed {
                let kept = |at: &Bytes| result.get(at).map(Entry::identity) == Some(entry.identity());
                let copies = report.conflicts.iter().filter(|conflict| conflict.path == key);
                prop_assert!(kept(&key) || copies.map(|conflict| &conflict.copy).any(kept), "{key:?} of {}", side.device);
            }
        }
        let (again, report) = world.merge(&ours.files, &merged, &ours);
        prop_assert_eq!((id(&again.files), report), (id(&merged.files), Merged::default()));
    }
}

#[test]
fn conflict_copies_have_clear_names() {
    let side = side(None, "anna's/laptop", 1_700_000_000_000);
    let entry = Entry { mtime_ns: 1_795_253_000_000_000_000, ..Entry::inline(Kind::File, &b"x"[..]) };
    let name =
        |path: &str, number| String::from_utf8(copy_name(path.as_bytes(), &entry, &side, number).to_vec()).unwrap();
    assert_eq!(name("a/b.tar", 1), "a/b (conflict anna's-laptop 2026-11-21).tar");
    assert_eq!(name("b", 2), "b (conflict anna's-laptop 2026-11-21 2)");
    assert_eq!(name("a/.profile", 1), "a/.profile (conflict anna's-laptop 2026-11-21)");
    assert_eq!(name(&format!("a/{}.txt", "é".repeat(120)), 1).len(), 2 + 254);
    let deep = format!("{}/b", "d".repeat(4090));
    assert_eq!(name(&deep, 1), "b (conflict anna's-laptop 2026-11-21)");
}

#[test]
fn dates_are_civil() {
    for (days, text) in [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29"), (20_777, "2026-11-20")] {
        assert_eq!(date(days * 86_400_000 + 86_399_999), text);
    }
}
