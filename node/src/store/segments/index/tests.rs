//! What the index says is right, or it says nothing.

use super::*;

const STORE: StoreId = StoreId([3; 16]);

fn records(segment: u64, count: u32) -> Vec<RecordHeader> {
    let mut offset = BLOCK as u64;
    let records = (0..count).map(|number| {
        let kind = [Kind::Shard, Kind::Delete, Kind::Trash, Kind::Padding, Kind::Head][number as usize % 5];
        let sequence = segment << 32 | u64::from(number);
        let mut header = RecordHeader::bare(kind, [number as u8; 32], 0);
        (header.store, header.segment, header.offset) = (STORE, segment, offset);
        (header.sequence, header.generation) = (sequence, sequence);
        header.payload = Digest([0; 32]);
        match kind {
            Kind::Shard => {
                (header.index, header.scheme, header.touched, header.complete) = (7, (5, 3), 1 << 40, true);
                (header.header_len, header.tree_len, header.payload_len) = (300, 64, 100_000 + number);
            }
            Kind::Delete => (header.generation, header.damaged) = (sequence - 1, true),
            Kind::Trash => header.until_ms = Some(u64::MAX - 1),
            Kind::Padding => (header.key, header.payload_len) = ([0; 32], 77),
            _ => header.payload_len = 1 + number,
        }
        offset += header.extent();
        header
    });
    records.collect()
}

fn mark() -> Mark {
    Mark { len: 1 << 20, count: 1_000, headers: Digest([9; 32]) }
}

/// As the index gives them: without hash.
fn given(index: &Index, segment: u64) -> Option<Vec<RecordHeader>> {
    let rows = index.get(segment, mark())?;
    Some(rows.headers().map(|header| RecordHeader { payload: Digest([0; 32]), ..header }).collect())
}

#[test]
fn it_gives_what_it_was_given_for_the_very_same_segment_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index");
    let index = Index::open(&path, STORE);
    for segment in [1, 2, 300] {
        index.put(segment, mark(), &records(segment, 1_000));
    }
    drop(index);
    let index = Index::open(&path, STORE);
    assert!(!index.covers(2));
    assert_eq!(given(&index, 2).unwrap(), records(2, 1_000));
    assert!(index.covers(2));
    assert!(given(&index, 3).is_none());
    let other = |mark| assert!(index.get(2, mark).is_none());
    other(Mark { len: 1, ..mark() });
    other(Mark { count: 999, ..mark() });
    other(Mark { headers: Digest([8; 32]), ..mark() });
    other(Mark::unsealed(1 << 20));
    assert_eq!(index.refused(), 4);
    // Fewer than before: nothing of the old is left.
    index.put(2, mark(), &records(2, 3));
    assert_eq!(given(&index, 2).unwrap(), records(2, 3));
    index.retain(&BTreeSet::from([2, 9]));
    assert!(given(&index, 1).is_none() && given(&index, 300).is_none() && given(&index, 2).is_some());
    index.rest();
    index.remove(2);
    assert!(given(&index, 2).is_none() && !index.covers(2));
    drop(index);
    let index = Index::open(&path, STORE);
    index.put(1, mark(), &records(1, 10));
    drop(index);
    assert!(given(&Index::open(&path, StoreId([4; 16])), 1).is_none(), "another store's");
}

#[test]
fn what_it_lost_or_has_wrong_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let index = Index::open(&folder.path().join("index"), STORE);
    let lose: [&dyn Fn(&sled::Db); 4] = [
        &|db| _ = db.remove(key(5, 1)).unwrap(),
        &|db| _ = db.remove(key(5, 0)).unwrap(),
        &|db| {
            let mut piece = db.get(key(5, 2)).unwrap().unwrap().to_vec();
            piece[100] ^= 4;
            db.insert(key(5, 2), piece).unwrap();
        },
        &|db| _ = db.insert(key(5, 9), &b"more"[..]).unwrap(),
    ];
    for lose in lose {
        index.put(5, mark(), &records(5, 1_000));
        assert!(given(&index, 5).is_some());
        let done = index.with(|db| {
            lose(db);
            Ok(())
        });
        assert!(done.is_some());
        assert!(given(&index, 5).is_none());
    }
}

#[test]
fn a_panic_ends_it_and_moves_it_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index");
    let index = Index::open(&path, STORE);
    index.put(1, mark(), &records(1, 10));
    assert_eq!(index.with(|_| -> Result<(), sled::Error> { panic!("as sled does") }), None);
    assert!(!index.works() && !index.covers(1) && given(&index, 1).is_none());
    assert!(!path.exists());
    drop(index);
    let index = Index::open(&path, STORE);
    assert!(index.works() && given(&index, 1).is_none());
}

#[test]
fn what_a_killed_process_leaves_of_sled_is_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index");
    Index::open(&path, STORE).put(1, mark(), &records(1, 10));
    std::fs::write(path.join("snap.00000000000000FF.generating"), b"half a snapshot").unwrap();
    let index = Index::open(&path, STORE);
    assert!(index.works() && given(&index, 1).is_some());
    drop(index);
    // A file where the folder should be, twice.
    for _ in 0..2 {
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::write(&path, b"nonsense").unwrap();
        let index = Index::open(&path, STORE);
        assert!(index.works() && given(&index, 1).is_none());
        assert_eq!(std::fs::read(path.with_extension("damaged")).unwrap(), b"nonsense");
    }
}

/// The layout of FORMAT.md, "Index", written here field by field.
#[test]
fn an_entry_is_as_documented() {
    assert_eq!(key(0x0102, 3), [0, 0, 0, 0, 0, 0, 1, 2, 0, 3]);
    let head = [
        &1_u16.to_le_bytes()[..],
        &STORE.0,
        &7_u64.to_le_bytes(),
        &(1_u64 << 20).to_le_bytes(),
        &1_000_u32.to_le_bytes(),
        &[9; 32],
        &[5; 32],
    ];
    assert_eq!(encode_head(STORE, 7, mark(), Digest([5; 32])), head.concat());
    // A shard, a deletion, a word of the trash, and padding.
    let records = records(7, 4);
    let row = |record: &RecordHeader, flags: u8, until: &[u8]| {
        [
            &[record.kind as u8][..],
            &(record.sequence as u32).to_le_bytes(),
            &record.payload_len.to_le_bytes(),
            &record.key,
            &[record.index, flags, record.scheme.0, record.scheme.1],
            &record.header_len.to_le_bytes(),
            &record.tree_len.to_le_bytes(),
            &record.generation.to_le_bytes(),
            &record.touched.to_le_bytes(),
            until,
        ]
        .concat()
    };
    let padding = [&[9][..], &3_u32.to_le_bytes(), &77_u32.to_le_bytes()].concat();
    let until = (u64::MAX - 1).to_le_bytes();
    let rows = [row(&records[0], 1, &[]), row(&records[1], 4, &[]), row(&records[2], 2, &until), padding];
    assert_eq!(encode_rows(&records), rows.concat());
}
