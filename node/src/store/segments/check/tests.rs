//! Every damaged byte is found, nothing is written by looking, and what is said of it is so.

use super::*;
use crate::store::StoreError;
use crate::store::segments::disk::faults::{Faults, FaultyDisk};
use crate::store::segments::format::{BLOCK, RECORD_LEN, RecordHeader, Seal, SegmentHeader};
use crate::store::segments::log::segment_name;
use crate::store::segments::recovery::STORE_NAME;
use crate::store::segments::tests::options;
use crate::store::segments::tests::stripe;
use crate::store::segments::{SegmentStore, format::Record};
use potluck_proto::blocks::chaining_values;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

fn double() -> FaultyDisk {
    FaultyDisk::new(1, 1 << 30, Faults::default())
}

fn open(disk: &FaultyDisk) -> SegmentStore {
    SegmentStore::open(Arc::new(disk.clone()), options(MIB)).unwrap()
}

fn put(store: &SegmentStore, salt: u8, len: usize) -> ShardKey {
    let (header, shards) = stripe(salt, len);
    store.put(&header, 0, &shards[0], &chaining_values(&shards[0]), 0).unwrap();
    ShardKey { stripe: header.id(), index: 0 }
}

/// A sealed segment: a short shard, a long one, a head, a shard in the trash.
fn filled() -> (FaultyDisk, [ShardKey; 3]) {
    let disk = double();
    let store = open(&disk);
    let keys = [put(&store, 1, 1_000), put(&store, 2, 300_000), put(&store, 3, 2_000)];
    store.keep(Kind::Head, [4; 32], &[4; 5_000]).unwrap();
    store.trash(keys[2], 9).unwrap();
    drop(store);
    (disk, keys)
}

fn look(disk: &FaultyDisk) -> Report {
    read(disk, Depth::Whole, &mut |_, _| {}).unwrap()
}

fn bytes(disk: &FaultyDisk) -> Vec<(String, Vec<u8>)> {
    let all = |name: &String| disk.open(name).unwrap().read_at(0..1 << 30).unwrap().to_vec();
    disk.list().unwrap().into_iter().map(|name| (name.clone(), all(&name))).collect()
}

fn flip(disk: &FaultyDisk, segment: u64, at: u64) {
    let file = disk.open(&segment_name(segment)).unwrap();
    let byte = file.read_at(at..at + 1).unwrap()[0];
    file.write_at(at, &[&[byte ^ 0x10]]).unwrap();
}

fn headers(disk: &FaultyDisk, segment: u64) -> Vec<RecordHeader> {
    let file = disk.open(&segment_name(segment)).unwrap();
    recovery::read_segment(&*file, options(MIB).fresh, segment).unwrap().records
}

fn of_kind(disk: &FaultyDisk, kind: Kind) -> Vec<RecordHeader> {
    headers(disk, 1).into_iter().filter(|header| header.kind == kind).collect()
}

fn standings(report: &Report) -> Vec<(Option<Kind>, Standing)> {
    let kind = |part: &Part| match part.what {
        What::Record { kind, .. } => Some(kind),
        _ => None,
    };
    report.parts().map(|(_, part)| (kind(part), part.standing)).collect()
}

#[test]
fn a_sound_store_is_sound_and_what_a_start_knows() {
    let (disk, keys) = filled();
    let before = bytes(&disk);
    let report = look(&disk);
    assert!(report.is_sound() && report.parts().count() == 0);
    assert_eq!((report.shards(), report.trashed(), report.kinds[&Kind::Head]), (3, 1, 1));
    assert_eq!(report.segments[0].state, State::Sealed);
    assert!(report.table.entry(&keys[0]).is_some());
    assert_eq!(before, bytes(&disk));
    let listed = read(&disk, Depth::Listed, &mut |_, _| {}).unwrap();
    let kept = open(&disk).with_table(Table::clone);
    assert!(report.table == kept && listed.table == kept);
    assert!(matches!(read(&double(), Depth::Whole, &mut |_, _| {}), Err(CheckError::Empty)));
}

#[test]
fn every_byte_of_a_sealed_segment_is_looked_at_and_nothing_is_written() {
    let (disk, _) = filled();
    let file = disk.open(&segment_name(1)).unwrap();
    let len = file.len().unwrap();
    let seal = Seal::decode(&file.read_at(len - BLOCK as u64..len).unwrap()).unwrap();
    let footer = file.read_at(seal.footer..len).unwrap();
    let footer = Record::decode(&footer, seal.store, 1, seal.footer).unwrap().header;
    // Between the list and the last block there is nothing that anyone reads.
    let idle = seal.footer + footer.extent()..len - BLOCK as u64;
    for at in (0..len).step_by(509).chain(len - 4096..len - 4000).filter(|at| !idle.contains(at)) {
        flip(&disk, 1, at);
        let before = bytes(&disk);
        let report = look(&disk);
        assert!(!report.is_sound(), "byte {at}");
        assert!(report.parts().count() > 0, "byte {at}");
        let (_, part) = report.parts().next().unwrap();
        assert!((part.offset..part.offset + part.len).contains(&at) || at >= seal.footer, "byte {at}: {part:?}");
        assert_eq!(before, bytes(&disk));
        flip(&disk, 1, at);
    }
    assert!(look(&disk).is_sound());
}

#[test]
fn each_part_of_a_record_is_named_and_weighed() {
    let (disk, keys) = filled();
    let shards = of_kind(&disk, Kind::Shard);
    let (short, long) = (shards[0], shards[1]);
    let tree = u64::from(long.header_len) + RECORD_LEN as u64;
    for (header, byte, why) in [
        (short, 20, "record header"),
        (short, RECORD_LEN as u64 + 9, "stripe header"),
        (short, short.payload_at() + 9, "payload"),
        (long, tree + 3, "chaining values"),
        (long, tree + u64::from(long.tree_len), "zeros before"),
        (long, long.payload_at() + 100_000, "payload"),
        (long, long.extent() - 1, "zeros behind"),
    ] {
        flip(&disk, 1, header.offset + byte);
        let report = look(&disk);
        let (segment, part) = report.parts().next().unwrap();
        assert_eq!((segment, report.parts().count(), part.offset, part.len), (1, 1, header.offset, header.extent()));
        assert!(part.why.contains(why), "{part:?}");
        let key = if header == short { keys[0] } else { keys[1] };
        assert_eq!((part.shard(), part.standing, part.older), (Some(key), Standing::Counts, None));
        flip(&disk, 1, header.offset + byte);
    }
    // The footer repeats what has no more than a header; a head is lost here.
    for (kind, standing) in
        [(Kind::Trash, Standing::Repeated), (Kind::Padding, Standing::Repeated), (Kind::Head, Standing::Counts)]
    {
        let header = of_kind(&disk, kind)[0];
        flip(&disk, 1, header.offset + header.extent() - 1);
        assert_eq!(standings(&look(&disk)), [(Some(kind), standing)]);
        flip(&disk, 1, header.offset + header.extent() - 1);
    }
    flip(&disk, 1, 12);
    let report = look(&disk);
    assert_eq!((report.segments[0].parts[0].what, report.parts().count()), (What::First, 1));
    assert!(!report.is_sound());
}

#[test]
fn a_damaged_footer_and_a_damaged_seal_lose_nothing() {
    let (disk, _) = filled();
    let len = disk.open(&segment_name(1)).unwrap().len().unwrap();
    let footer = headers(&disk, 1).last().map(|header| header.offset + header.extent()).unwrap();
    let records = headers(&disk, 1).len() as u64;
    for at in [footer + 9, footer + RECORD_LEN as u64 + 9, len - BLOCK as u64 + 9] {
        flip(&disk, 1, at);
        let report = look(&disk);
        assert_eq!((report.segments[0].state.clone(), report.segments[0].records), (State::Open, records));
        assert_eq!((report.shards(), report.trashed()), (3, 1));
        let seal = at >= len - BLOCK as u64;
        let (_, part) = report.parts().next().unwrap();
        let what_fits = if seal { part.what == What::Seal } else { part.standing != Standing::Torn };
        assert!(what_fits && !report.is_sound(), "{part:?}");
        flip(&disk, 1, at);
    }
    // Without its list, a damaged record is named by its own header.
    let shard = of_kind(&disk, Kind::Shard)[1];
    flip(&disk, 1, len - BLOCK as u64 + 9);
    flip(&disk, 1, shard.offset + shard.payload_at() + 9);
    let report = look(&disk);
    assert_eq!(standings(&report), [(Some(Kind::Shard), Standing::Counts), (None, Standing::Repeated)]);
    flip(&disk, 1, shard.offset + shard.payload_at() + 9);
    // And where that is gone too, nobody can.
    flip(&disk, 1, shard.offset + 9);
    assert_eq!(standings(&look(&disk)), [(None, Standing::Unknown), (None, Standing::Repeated)]);
}

#[test]
fn a_segment_cut_anywhere_is_read_as_far_as_it_goes() {
    let (disk, _) = filled();
    let all = headers(&disk, 1);
    let file = disk.open(&segment_name(1)).unwrap();
    let len = file.len().unwrap();
    for cut in (1..len).rev().step_by(3_333) {
        file.set_len(cut).unwrap();
        let before = bytes(&disk);
        let report = look(&disk);
        let whole = all.iter().filter(|header| header.offset + header.extent() <= cut).count() as u64;
        assert!(report.segments[0].records >= whole && report.segments[0].records <= whole + 1);
        assert!(report.parts().all(|(_, part)| part.offset + part.len <= cut.max(BLOCK as u64)));
        assert_eq!(before, bytes(&disk));
    }
}

#[test]
fn what_was_replaced_or_deleted_counts_no_more_and_older_copies_are_told() {
    let (disk, keys) = filled();
    let head = of_kind(&disk, Kind::Head)[0];
    let shards = of_kind(&disk, Kind::Shard);
    let store = open(&disk);
    store.keep(Kind::Head, [4; 32], &[5; 100]).unwrap();
    assert!(store.delete(keys[2], 10).unwrap());
    drop(store);
    for header in [head, shards[2]] {
        flip(&disk, 1, header.offset + header.payload_at() + 1);
    }
    let report = look(&disk);
    assert_eq!(standings(&report), [(Some(Kind::Shard), Standing::Dead), (Some(Kind::Head), Standing::Dead)]);
    assert!(report.is_sound(), "nothing hangs on it");
    // Also where only the records' own headers tell it.
    let len = disk.open(&segment_name(1)).unwrap().len().unwrap();
    flip(&disk, 1, len - 4000);
    let report = look(&disk);
    assert_eq!(standings(&report)[..2], [(Some(Kind::Shard), Standing::Dead), (Some(Kind::Head), Standing::Dead)]);
    for header in [head, shards[2]] {
        flip(&disk, 1, header.offset + header.payload_at() + 1);
    }
    flip(&disk, 1, len - 4000);
    let newer = headers(&disk, 2).into_iter().find(|header| header.kind == Kind::Head).unwrap();
    flip(&disk, 2, newer.offset + newer.payload_at());
    let report = look(&disk);
    assert_eq!(standings(&report), [(Some(Kind::Head), Standing::Counts)]);
    assert_eq!(report.parts().next().unwrap().1.older, Some(Place { segment: 1, offset: head.offset }));
}

#[test]
fn what_a_crash_leaves_at_the_end_is_no_damage() {
    let disk = double();
    let store = open(&disk);
    put(&store, 1, 1_000);
    put(&store, 2, 300_000);
    let long = of_kind(&disk, Kind::Shard)[1];
    // Never sealed, and its last write is torn.
    flip(&disk, 1, long.offset + long.payload_at());
    let report = look(&disk);
    assert_eq!(standings(&report), [(Some(Kind::Shard), Standing::Torn)]);
    assert!(report.is_sound());
    put(&store, 3, 1_000);
    assert_eq!(standings(&look(&disk)), [(Some(Kind::Shard), Standing::Counts)], "something follows it");
}

#[test]
fn foreign_newer_empty_and_unreadable_segments() {
    let (disk, _) = filled();
    let place = |number: u64, block: &[u8]| {
        let file = disk.create(&segment_name(number), 2 * BLOCK as u64).unwrap();
        file.write_at(0, &[block]).unwrap();
    };
    let header = |store, segment| SegmentHeader { store, segment, created_ms: 0 }.encode();
    place(2, &header(StoreId([1; 16]), 2));
    place(3, &header(options(MIB).fresh, 9));
    place(4, &header(options(MIB).fresh, 4));
    let mut newer = header(options(MIB).fresh, 5);
    newer[8] = 2;
    let checksum = blake3::hash(&newer[..42]);
    newer[42..74].copy_from_slice(checksum.as_bytes());
    place(5, &newer);
    let report = look(&disk);
    let states: Vec<State> = report.segments.iter().map(|segment| segment.state.clone()).collect();
    assert_eq!(states[..4], [State::Sealed, State::Foreign, State::Foreign, State::Empty]);
    assert!(matches!(states[4], State::Newer(_)) && !report.is_sound());
    disk.set_faults(Faults { read: 1.0, ..Faults::default() });
    assert!(matches!(read(&disk, Depth::Whole, &mut |_, _| {}), Err(CheckError::Nameless)));
    disk.set_faults(Faults { read: 0.3, ..Faults::default() });
    let mut unreadable = 0;
    for _ in 0..50 {
        if let Ok(report) = read(&disk, Depth::Whole, &mut |_, _| {}) {
            unreadable += usize::from(matches!(report.segments[0].state, State::Unreadable(_)));
            unreadable += report.parts().filter(|(_, part)| part.unreadable).count();
        }
    }
    assert!(unreadable > 0);
}

#[test]
fn a_repair_gives_up_what_is_lost_names_the_store_and_ends() {
    let (disk, keys) = filled();
    let fresh = bytes(&disk);
    for header in of_kind(&disk, Kind::Shard) {
        if header.key == keys[1].stripe.0 || header.key == keys[2].stripe.0 {
            flip(&disk, 1, header.offset + header.payload_at());
        }
    }
    let head = of_kind(&disk, Kind::Head)[0];
    flip(&disk, 1, head.offset + head.payload_at());
    disk.open(STORE_NAME).unwrap().write_at(0, &[&[0; BLOCK]]).unwrap();
    let report = look(&disk);
    assert!(matches!(report.store_file, StoreFile::Damaged(_)));
    let damaged = bytes(&disk);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let mended = mend(&shared, &report, Arc::new(|| 0)).unwrap();
    assert_eq!(mended, Mended { given_up: 2, named: true, ..Mended::default() });
    // Each file is still there, and as it was.
    let after = bytes(&disk);
    assert_eq!(
        after.iter().find(|(name, _)| *name == segment_name(1)),
        damaged.iter().find(|(name, _)| *name == segment_name(1))
    );
    assert_eq!(after.iter().find(|(name, _)| name == STORE_NAME), fresh.iter().find(|(name, _)| name == STORE_NAME));
    let again = look(&disk);
    let counting: Vec<_> = standings(&again).into_iter().filter(|(_, standing)| *standing != Standing::Dead).collect();
    assert_eq!(counting, [(Some(Kind::Head), Standing::Counts)]);
    assert_eq!(mend(&shared, &again, Arc::new(|| 0)).unwrap(), Mended::default());
    assert_eq!(after, bytes(&disk));
    let store = open(&disk);
    assert!(store.verify(keys[0]).is_ok());
    assert!(matches!(store.verify(keys[1]), Err(StoreError::NotFound)));
    assert_eq!(put(&store, 2, 300_000), keys[1]);
}

#[test]
fn a_repair_says_what_the_disk_did_not_take() {
    let (disk, _) = filled();
    let long = of_kind(&disk, Kind::Shard)[1];
    flip(&disk, 1, long.offset + long.payload_at());
    let report = look(&disk);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    disk.set_faults(Faults { write: 1.0, ..Faults::default() });
    let mended = mend(&shared, &report, Arc::new(|| 0)).unwrap();
    assert_eq!(mended, Mended { failed: 1, ..Mended::default() });
    disk.set_faults(Faults::default());
    assert_eq!(standings(&look(&disk)), [(Some(Kind::Shard), Standing::Counts)]);
    assert_eq!(mend(&shared, &report, Arc::new(|| 0)).unwrap().given_up, 1);
    // Bits that only a read had wrong.
    let (disk, _) = filled();
    let shared: Arc<dyn Disk> = Arc::new(disk);
    assert_eq!(mend(&shared, &report, Arc::new(|| 0)).unwrap(), Mended { sound: 1, ..Mended::default() });
}

#[test]
fn a_lost_name_is_told_by_the_segments() {
    let (disk, _) = filled();
    disk.unlink(STORE_NAME).unwrap();
    let report = look(&disk);
    assert_eq!((report.store_file.clone(), report.is_sound(), report.parts().count()), (StoreFile::Missing, false, 0));
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    assert!(mend(&shared, &report, Arc::new(|| 0)).unwrap().named);
    assert!(look(&disk).is_sound());
}
