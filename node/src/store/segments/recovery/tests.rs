//! Whole records are kept, whatever is wrong around them; and what is wrong is told.

use super::*;
use crate::store::segments::disk::faults::{Faults, FaultyDisk};
use crate::store::segments::log::{Job, Log};
use potluck_proto::id::Digest;

const STORE: StoreId = StoreId([5; 16]);

/// A segment of ten heads, each a batch of its own, and where they begin.
fn ten_heads(len: usize, sealed: bool) -> (FaultyDisk, Vec<u64>) {
    let double = FaultyDisk::new(1, 1 << 30, Faults::default());
    let disk: Arc<dyn Disk> = Arc::new(double.clone());
    let log = Log::new(disk.clone(), STORE, Arc::default(), 1, 2 << 20, Arc::new(|| 7));
    let append = |vault: u8| {
        let payload = vec![vault; len];
        let header = RecordHeader {
            payload_len: len as u32,
            payload: Digest::of(&payload),
            ..RecordHeader::bare(Kind::Head, [vault; 32], 0)
        };
        log.append(Job::new(&*disk, header, &[], &[], &payload)).unwrap().offset
    };
    let places = (1..=10).map(append).collect();
    if sealed {
        log.close();
        log.finish();
    }
    (double, places)
}

fn read(disk: &FaultyDisk) -> Contents {
    read_segment(&*disk.open(&segment_name(1)).unwrap(), STORE, 1).unwrap()
}

fn vaults(contents: &Contents) -> Vec<u8> {
    let heads = contents.records.iter().filter(|header| header.kind == Kind::Head);
    heads.map(|header| header.key[0]).collect()
}

fn overwrite(disk: &FaultyDisk, at: u64, bytes: &[u8]) {
    disk.open(&segment_name(1)).unwrap().write_at(at, &[bytes]).unwrap();
}

#[test]
fn a_footer_says_what_reading_says() {
    for len in [100, 9_000, 70_000] {
        let (open, sealed) = (ten_heads(len, false).0, ten_heads(len, true).0);
        let (scanned, listed) = (read(&open), read(&sealed));
        assert!(listed.sealed && !scanned.sealed);
        assert_eq!(scanned.records, listed.records);
        assert_eq!(vaults(&scanned), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert!(scanned.gaps.is_empty() && listed.gaps.is_empty());
        assert!(scanned.end < 2 << 20);
        // Where the footer is damaged, the records are read.
        let len = sealed.open(&segment_name(1)).unwrap().len().unwrap();
        for at in [len - 1, len - BLOCK as u64 + 12, len - BLOCK as u64 - 1] {
            overwrite(&sealed, at, &[0x5a]);
            let read = read(&sealed);
            assert_eq!((read.sealed, read.records), (false, listed.records.clone()));
        }
    }
}

#[test]
fn a_damaged_record_is_a_gap_and_no_more() {
    for len in [100, 9_000, 70_000] {
        let (disk, places) = ten_heads(len, false);
        // In the header; behind it, where a long payload has zeros before it and they too are what they must be.
        for (vault, byte) in [(3, 20), (8, RECORD_LEN as u64 + 50)] {
            overwrite(&disk, places[vault - 1] + byte, &[0x5a]);
        }
        let found = read(&disk);
        assert_eq!(vaults(&found), [1, 2, 4, 5, 6, 7, 9, 10]);
        assert_eq!(found.gaps.iter().map(|gap| gap.offset).collect::<Vec<_>>(), [places[2], places[7]]);
        assert!(found.gaps.iter().all(|gap| gap.len >= RECORD_LEN as u64), "{:?}", found.gaps);
    }
}

#[test]
fn a_write_that_never_came_is_a_gap() {
    let (disk, places) = ten_heads(9_000, false);
    overwrite(&disk, places[4], &vec![0; (places[5] - places[4]) as usize]);
    let found = read(&disk);
    assert_eq!(vaults(&found), [1, 2, 3, 4, 6, 7, 8, 9, 10]);
    assert_eq!((found.gaps.len(), found.gaps[0].offset, found.gaps[0].len), (1, places[4], places[5] - places[4]));
}

#[test]
fn a_record_in_anothers_place_is_a_gap() {
    let (disk, places) = ten_heads(9_000, false);
    let file = disk.open(&segment_name(1)).unwrap();
    let stolen = file.read_at(places[1]..places[2]).unwrap();
    overwrite(&disk, places[6], &stolen);
    let found = read(&disk);
    assert_eq!(vaults(&found), [1, 2, 3, 4, 5, 6, 8, 9, 10]);
    assert_eq!(found.gaps.len(), 1);
}

#[test]
fn a_segment_cut_anywhere_keeps_what_is_whole() {
    let (disk, places) = ten_heads(70_000, true);
    let file = disk.open(&segment_name(1)).unwrap();
    let len = file.len().unwrap();
    for cut in (BLOCK as u64..len).rev().step_by(7_777) {
        file.set_len(cut).unwrap();
        let whole = places.iter().filter(|place| *place + 2 * BLOCK as u64 + 70_000 <= cut).count();
        match read_segment(&*file, STORE, 1) {
            Ok(found) => assert!(vaults(&found).len() >= whole && vaults(&found).len() <= whole + 1),
            Err(Unusable::Empty) => assert_eq!(whole, 0),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn what_the_disk_does_not_give_is_told() {
    let (disk, _) = ten_heads(9_000, false);
    let file = disk.open(&segment_name(1)).unwrap();
    disk.set_faults(Faults { read: 0.2, ..Faults::default() });
    let mut unreadable = 0;
    for _ in 0..50 {
        if let Ok(found) = read_segment(&*file, STORE, 1) {
            assert!(vaults(&found).len() == 10 || !found.gaps.is_empty());
            unreadable += u32::from(found.unreadable);
        }
    }
    assert!(unreadable > 0);
}

#[test]
fn a_newer_programs_segment_stays_as_it_is() {
    let (disk, _) = ten_heads(100, true);
    let mut block = SegmentHeader { store: STORE, segment: 1, created_ms: 0 }.encode();
    block[8] = 2;
    let checksum = blake3::hash(&block[..42]);
    block[42..74].copy_from_slice(checksum.as_bytes());
    overwrite(&disk, 0, &block);
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let opened = open(&disk, STORE, None, &Progress::default()).unwrap();
    assert_eq!((opened.found.unusable.len(), opened.next_segment), (1, 2));
    assert!(disk.list().unwrap().contains(&segment_name(1)));
}
