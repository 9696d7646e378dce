//! A pass finds all that has rotted, mends what it can, and goes on where it was.

use std::sync::Arc;

use super::*;
use crate::store::ShardState;
use crate::store::segments::disk::faults::{Faults, FaultyDisk};
use crate::store::segments::log::segment_name;
use crate::store::segments::tests::{key, options, put, stripe};

fn whole_pass(store: &SegmentStore, most: u64) -> (Scrubbed, usize) {
    let (mut all, mut steps, mut at) = (Scrubbed::default(), 0, Some(Cursor::default()));
    while let Some(from) = at {
        let step = store.scrub(from, most).unwrap();
        assert!(step.next.is_none_or(|next| next > from), "it gets on");
        all.bytes += step.bytes;
        all.mended += step.mended;
        all.lost.extend(step.lost);
        all.facts.extend(step.facts);
        (steps, at) = (steps + 1, step.next);
    }
    (all, steps)
}

#[test]
fn a_pass_reads_all_that_counts_and_finds_what_has_rotted() {
    let disk = FaultyDisk::new(1, 1 << 30, Faults::default());
    let open = || SegmentStore::open(Arc::new(disk.clone()), options(300 << 10)).unwrap();
    let store = open();
    let stripes: Vec<_> = (0..12).map(|salt| stripe(salt, 80_000)).collect();
    for stripe in &stripes {
        put(&store, stripe, 0).unwrap();
        put(&store, stripe, 1).unwrap();
    }
    store.keep(Kind::Head, [1; 32], b"a head").unwrap();
    store.trash(key(&stripes[3], 1), 99).unwrap();
    store.trash(key(&stripes[4], 1), 5).unwrap();
    assert!(store.delete(key(&stripes[4], 1), 5).unwrap());
    drop(store);
    let store = open();
    let (sound, steps) = whole_pass(&store, 1);
    assert_eq!((sound.lost.len(), sound.facts.len(), sound.mended), (0, 0, 0));
    assert!(sound.bytes >= 23 * 40_000, "{}", sound.bytes);
    assert!(steps > 23, "{steps}");
    assert_eq!(whole_pass(&store, u64::MAX).0.bytes, sound.bytes);

    let place = |key: &ShardKey| store.with_table(|table| table.entry(key).unwrap().place);
    let rotten = key(&stripes[7], 0);
    assert!(disk.damage(&segment_name(place(&rotten).segment), place(&rotten).offset + 9_000));
    let head = store.with_table(|table| table.fact(Kind::Head, [1; 32]).unwrap().place);
    assert!(disk.damage(&segment_name(head.segment), head.offset + 200));
    let said = store.with_table(|table| table.entry(&key(&stripes[3], 1)).unwrap().said.unwrap());
    assert!(disk.damage(&segment_name(said.segment), said.offset + 50));
    let (found, _) = whole_pass(&store, 100_000);
    assert_eq!(found.lost, BTreeSet::from([stripes[7].0.id()]));
    assert_eq!(found.facts, BTreeSet::from([(Kind::Head, [1; 32])]));
    assert_eq!(found.mended, 1);
    assert!(matches!(store.verify(rotten), Err(StoreError::NotFound)));
    store.keep(Kind::Head, [1; 32], b"a head").unwrap();
    let again = whole_pass(&store, 100_000).0;
    assert_eq!((again.lost.len(), again.facts.len(), again.mended), (0, 0, 0));
    // The word that was mended counts after a start as well.
    drop(store);
    let held = open().held(&stripes[3].0.id());
    assert_eq!(held[1].state, ShardState::Trash { until_ms: 99 });
}

#[test]
fn a_shard_is_found_rotten_also_where_no_list_of_records_is_left() {
    let disk = FaultyDisk::new(1, 1 << 30, Faults::default());
    let store = SegmentStore::open(Arc::new(disk.clone()), options(300 << 10)).unwrap();
    let stripes: Vec<_> = (0..9).map(|salt| stripe(salt, 80_000)).collect();
    stripes.iter().for_each(|stripe| assert!(put(&store, stripe, 0).unwrap()));
    let place = store.with_table(|table| table.entry(&key(&stripes[2], 0)).unwrap().place);
    let name = segment_name(place.segment);
    let len = super::super::disk::Disk::open(&disk, &name).unwrap().len().unwrap();
    assert!(disk.damage(&name, place.offset + 20) && disk.damage(&name, len - 4_000));
    assert_eq!(whole_pass(&store, 1 << 20).0.lost, BTreeSet::from([stripes[2].0.id()]));
}
