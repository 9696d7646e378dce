//! One sync for those who come together, a new segment where one is full, and no end to what fails.

use std::time::{Duration, Instant};

use super::*;
use crate::store::segments::disk::faults::{Faults, FaultyDisk};
use crate::store::segments::format::ALIGNED_FROM;
use crate::store::segments::recovery::read_segment;

const STORE: StoreId = StoreId([5; 16]);

fn log(disk: &FaultyDisk, segment_bytes: u64) -> Arc<Log> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Arc::new(Log::new(disk, STORE, Arc::default(), 1, segment_bytes, Arc::new(|| 7)))
}

fn head<'a>(log: &Log, vault: u8, payload: &'a [u8]) -> Job<'a> {
    let header = RecordHeader {
        payload_len: payload.len() as u32,
        payload: Digest::of(payload),
        ..RecordHeader::bare(Kind::Head, [vault; 32], 0)
    };
    Job::new(&*log.disk, header, &[], &[], payload)
}

/// Appends a head of so many bytes.
fn append(log: &Log, vault: u8, len: usize) -> Outcome {
    log.append(head(log, vault, &vec![vault; len]))
}

/// All records of a disk's segments, the padding left out.
fn records(disk: &FaultyDisk) -> Vec<RecordHeader> {
    let mut records = Vec::new();
    for name in disk.list().unwrap() {
        let contents = read_segment(&*disk.open(&name).unwrap(), STORE, segment_number(&name).unwrap()).unwrap();
        assert_eq!(contents.gaps, []);
        let last = contents.records.last().unwrap();
        assert!((last.offset + last.extent()).is_multiple_of(BLOCK as u64));
        records.extend(contents.records.into_iter().filter(|header| header.kind != Kind::Padding));
    }
    records
}

#[test]
fn padding_fills_blocks_and_says_so() {
    for bytes in 0..3 * BLOCK as u64 {
        let padding = padding_for(bytes);
        assert!((bytes + padding).is_multiple_of(BLOCK as u64));
        assert!(padding == 0 || padding >= RECORD_LEN as u64);
        assert!(padding < (BLOCK + RECORD_LEN) as u64);
    }
}

#[test]
fn names_and_numbers() {
    for number in [1, 0xabc, SEGMENT_LIMIT - 1] {
        assert_eq!(segment_number(&segment_name(number)), Some(number));
    }
    for wrong in [
        "store",
        "1.segment",
        "000000000000000A.segment",
        "+00000000000000a.segment",
        "x",
        ".segment",
        "ffffffffffffffff.segment",
    ] {
        assert_eq!(segment_number(wrong), None, "{wrong}");
    }
}

#[test]
fn those_who_come_together_share_a_sync() {
    let disk = FaultyDisk::new(1, 1 << 30, Faults::default());
    let log = log(&disk, 64 << 20);
    append(&log, 0, 10).unwrap();
    let before = disk.syncs();
    let lengths = [1, 100, 5_000, ALIGNED_FROM, 140_000, 0, 20_000];
    let payload = |vault: u8| vec![vault; lengths[usize::from(vault) % lengths.len()]];
    let payloads: Vec<Vec<u8>> = (0..100).map(payload).collect();
    let jobs = (1..100).map(|vault| head(&log, vault, &payloads[usize::from(vault)])).collect();
    let outcomes = log.append_all(jobs);
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(disk.syncs() - before, 1);
    let found = records(&disk);
    assert_eq!(found.len(), 100);
    assert!(found.is_sorted_by_key(|header| header.sequence));
    for header in outcomes.into_iter().flatten() {
        assert!(found.contains(&header));
    }
    // Sealed, it says the same.
    log.close();
    log.finish();
    assert_eq!(records(&disk), found);
    assert_eq!(append(&log, 1, 1).unwrap_err(), AppendError::Closed);
}

#[test]
fn a_full_segment_is_sealed_and_a_new_one_begun() {
    let disk = FaultyDisk::new(1, 1 << 30, Faults::default());
    let log = log(&disk, 256 << 10);
    for vault in 0..100 {
        append(&log, vault, 20_000).unwrap();
    }
    // One that is longer than any segment has one for itself.
    append(&log, 100, 1 << 20).unwrap();
    append(&log, 101, 1).unwrap();
    let names = disk.list().unwrap();
    assert!(names.len() > 8, "{names:?}");
    let sealed = names.iter().filter(|name| {
        let file = disk.open(name).unwrap();
        read_segment(&*file, STORE, segment_number(name).unwrap()).unwrap().sealed
    });
    assert_eq!(sealed.count(), names.len() - 1);
    assert_eq!(records(&disk).len(), 102);
}

/// What was acknowledged is there; what failed was told, and nothing follows it in its segment.
#[test]
fn failures_end_segments_and_nothing_else() {
    for seed in 0..100 {
        let disk = FaultyDisk::new(seed, 1 << 30, Faults::default());
        let log = log(&disk, 512 << 10);
        disk.set_faults(Faults { write: 0.1, sync: 0.1, names: 0.1, ..Faults::default() });
        let outcomes: Vec<Outcome> = (0..80).map(|vault| append(&log, vault, 30_000)).collect();
        disk.set_faults(Faults::default());
        assert!(outcomes.iter().any(Result::is_err) && log.failures() > 0);
        disk.crash();
        let mut found = Vec::new();
        for name in disk.list().unwrap() {
            let file = disk.open(&name).unwrap();
            found.extend(read_segment(&*file, STORE, segment_number(&name).unwrap()).map_or(vec![], |all| all.records));
        }
        for header in outcomes.into_iter().flatten() {
            assert!(found.contains(&header), "seed {seed}: {header:?}");
        }
    }
}

#[test]
fn a_thread_writes_for_many_and_what_waits_is_bounded() {
    let disk = FaultyDisk::new(1, 1 << 30, Faults::default());
    let log = log(&disk, 64 << 20);
    let writer = std::thread::spawn({
        let log = log.clone();
        move || log.run()
    });
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let log = &log;
            scope.spawn(move || {
                for round in 0..25 {
                    let header = append(log, worker * 25 + round, 1_000_000).unwrap();
                    assert_eq!(header.key, [worker * 25 + round; 32]);
                    assert!(log.queue.waiting().0 <= LIMITS.waiting);
                }
            });
        }
    });
    log.close();
    writer.join().unwrap();
    log.finish();
    assert_eq!(records(&disk).len(), 200);
    assert!(disk.syncs() < 400);
}

#[test]
fn all_who_wait_for_a_batch_are_woken_and_full_segments_are_sealed() {
    let disk = FaultyDisk::new(1, 1 << 30, Faults::default());
    let log = log(&disk, 256 << 10);
    let writer = std::thread::spawn({
        let log = log.clone();
        move || log.run()
    });
    std::thread::scope(|scope| {
        for worker in 0..64 {
            let log = &log;
            scope.spawn(move || (0..40).for_each(|_| assert!(append(log, worker, 1_000).is_ok())));
        }
    });
    log.close();
    writer.join().unwrap();
    log.finish();
    // Neither is one left that was made ahead.
    for name in disk.list().unwrap() {
        let file = disk.open(&name).unwrap();
        assert!(read_segment(&*file, STORE, segment_number(&name).unwrap()).unwrap().sealed, "{name}");
    }
    assert_eq!(records(&disk).len(), 64 * 40);
}

#[test]
fn where_no_whole_segment_has_room_the_next_is_half_as_long() {
    const SEGMENT: u64 = 4 << 20;
    // Room for one, and for an eighth of one.
    let disk = FaultyDisk::new(1, SEGMENT + SEGMENT / 8 + (100 << 10), Faults::default());
    let log = log(&disk, SEGMENT);
    let len = |segment| disk.open(&segment_name(segment)).unwrap().len().unwrap();
    let mut count = 0;
    while log.active() != Some(2) {
        append(&log, 0, 100_000).unwrap();
        count += 1;
    }
    assert_eq!(len(2), SEGMENT / 8);
    // Small batches share it, and still shorter ones after it, as long as anything has room.
    while append(&log, 1, 10).is_ok() {
        count += 1;
        assert!(count < 1_000);
    }
    assert_eq!(append(&log, 1, 10), Err(AppendError::Full));
    assert_eq!(log.failures(), 0, "a write went past what was set aside");
    let segments = disk.list().unwrap().len();
    assert!(segments < 10, "{segments} segments for {count} batches");
    assert_eq!(records(&disk).len(), count);
    assert!(disk.space().unwrap().free < 2 * BLOCK as u64);
}

/// How many segments beyond those that were begun a disk of so many bytes has, at the most, while two are filled.
fn made_ahead(capacity: u64) -> u64 {
    const SEGMENT: u64 = 1 << 20;
    let disk = FaultyDisk::new(1, capacity, Faults::default());
    let log = log(&disk, SEGMENT);
    let writer = std::thread::spawn({
        let log = log.clone();
        move || log.run()
    });
    let until = Instant::now() + Duration::from_secs(60);
    while !log.chores.is_open() {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    let mut most = 0;
    while log.active() != Some(3) {
        append(&log, 1, 100_000).unwrap();
        // Given its number at once, made a little later.
        most = most.max(log.queue.writer().next_segment - 1 - log.active().unwrap());
    }
    log.close();
    writer.join().unwrap();
    log.finish();
    most
}

#[test]
fn no_segment_is_made_ahead_where_space_runs_out() {
    assert_eq!(made_ahead(16 << 20), 1);
    assert_eq!(made_ahead(4 << 20), 0);
}
