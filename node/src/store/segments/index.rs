//! sled's index over the log: what each finished segment holds, so that a start need not read it from the segments.
//!
//! It can be lost, damaged, old or another store's at any moment: what it says of a segment is believed only if count,
//! hash and length are those of the segment itself, and if its rows add up to their own hash. Else the segment is asked.
//! sled panics over some damage and makes nothing last by itself; no call here fails, the index is only less of use.

use std::collections::BTreeSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use potluck_proto::encoding::{DecodeError, Decoder, Encoder};
use potluck_proto::id::Digest;

use super::format::{BLOCK, Kind, RecordHeader, Seal, StoreId};
use super::log::lock;
use super::memory;

/// Memory that sled may use for its pages, in bytes: it is read once, at the start.
const SLED_CACHE_BYTES: u64 = 1 << 20;

/// Bytes of rows in one of sled's values.
const PIECE_BYTES: usize = 16 << 10;

/// Version of the rows.
const VERSION: u16 = 1;

const COMPLETE: u8 = 1;
const TRASHED: u8 = 2;
const DAMAGED: u8 = 4;

/// What is compared before an entry is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Length of the segment's file, in bytes.
    pub len: u64,
    /// Records, padding included, of a sealed segment; else 0.
    pub count: u32,
    /// BLAKE3 of their headers, of a sealed segment; else zeros.
    pub headers: Digest,
}

impl Mark {
    /// Of a sealed segment.
    #[must_use]
    pub fn sealed(seal: &Seal) -> Self {
        Self { len: seal.len, count: seal.count, headers: seal.headers }
    }

    /// Of one that was not sealed, and that is never written to again.
    #[must_use]
    pub fn unsealed(len: u64) -> Self {
        Self { len, count: 0, headers: Digest([0; 32]) }
    }
}

/// sled, open while it is needed: it takes memory that the table has better use for.
enum Db {
    Open(sled::Db),
    Closed,
    /// It is of no use until the next start.
    Failed,
}

/// The index of one store.
pub struct Index {
    folder: PathBuf,
    store: StoreId,
    db: Mutex<Db>,
    covered: Mutex<BTreeSet<u64>>,
    refused: AtomicU64,
}

impl Index {
    /// Opens the index in a folder of its own, or begins it anew where sled cannot.
    #[must_use]
    pub fn open(folder: &Path, store: StoreId) -> Self {
        let db = open_sled(folder).or_else(|error| {
            tracing::warn!(%error, folder = %folder.display(), "the index is damaged: it is made anew from the segments");
            set_aside(folder).map_err(|error| error.to_string())?;
            open_sled(folder)
        });
        if let Err(error) = &db {
            tracing::error!(%error, folder = %folder.display(), "there is no index: starts read the segments");
        }
        Self {
            folder: folder.into(),
            store,
            db: Mutex::new(db.map_or(Db::Failed, Db::Open)),
            covered: Mutex::default(),
            refused: AtomicU64::new(0),
        }
    }

    /// Closes sled until it is needed again.
    pub fn rest(&self) {
        let mut db = lock(&self.db);
        if let Db::Open(open) = std::mem::replace(&mut *db, Db::Failed) {
            // Its end writes, and may panic.
            let closed = catch_unwind(AssertUnwindSafe(|| drop(open)));
            *db = if closed.is_ok() { Db::Closed } else { Db::Failed };
            memory::give_back();
        }
    }

    /// Runs `work` on sled; what it fails or panics over ends the index until the next start.
    fn with<T>(&self, work: impl FnOnce(&sled::Db) -> Result<T, sled::Error>) -> Option<T> {
        let mut db = lock(&self.db);
        if matches!(*db, Db::Closed) {
            *db = open_sled(&self.folder).map_or(Db::Failed, Db::Open);
        }
        let Db::Open(sled) = &*db else { return None };
        let failed = match catch_unwind(AssertUnwindSafe(|| work(sled))) {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "sled has panicked".into(),
        };
        tracing::error!(error = failed, "the index failed: it is made anew at the next start");
        *db = Db::Failed;
        lock(&self.covered).clear();
        if let Err(error) = set_aside(&self.folder) {
            tracing::error!(%error, "the failed index stays in its place");
        }
        None
    }

    /// The records of a segment, if the index has it and all marks match.
    #[must_use]
    pub fn get(&self, segment: u64, mark: Mark) -> Option<Rows> {
        let pieces = self.with(|db| {
            db.range(key(segment, 0)..key(segment + 1, 0)).map(|pair| pair.map(|(_, value)| value)).collect()
        });
        let pieces: Vec<sled::IVec> = pieces?;
        let (head, rows) = pieces.split_first()?;
        let read = decode_head(head, self.store, segment, mark).and_then(|hash| {
            let rows = Rows { bytes: rows.concat(), store: self.store, segment };
            (Digest::of(&rows.bytes) == hash && rows.records().all(|record| record.is_ok())).then_some(rows)
        });
        if read.is_some() {
            lock(&self.covered).insert(segment);
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        read
    }

    /// Takes in what a segment holds.
    pub fn put(&self, segment: u64, mark: Mark, records: &[RecordHeader]) {
        let rows = encode_rows(records);
        let head = encode_head(self.store, segment, mark, Digest::of(&rows));
        let put = self.with(|db| {
            let mut batch = sled::Batch::default();
            for old in db.range(key(segment, 0)..key(segment + 1, 0)).keys() {
                batch.remove(old?);
            }
            batch.insert(&key(segment, 0), head);
            for (number, piece) in rows.chunks(PIECE_BYTES).enumerate() {
                batch.insert(&key(segment, number as u16 + 1), piece);
            }
            db.apply_batch(batch)?;
            db.flush()
        });
        if put.is_some() {
            lock(&self.covered).insert(segment);
        }
    }

    /// Forgets a segment.
    pub fn remove(&self, segment: u64) {
        lock(&self.covered).remove(&segment);
        let _ = self.with(|db| {
            let mut batch = sled::Batch::default();
            for old in db.range(key(segment, 0)..key(segment + 1, 0)).keys() {
                batch.remove(old?);
            }
            db.apply_batch(batch)
        });
    }

    /// Forgets all segments but these.
    pub fn retain(&self, segments: &BTreeSet<u64>) {
        let known = self.with(|db| {
            let mut known = BTreeSet::new();
            let mut at = 0;
            while let Some(next) = db.range(key(at, 0)..).keys().next() {
                let next = next?;
                let Some(segment) = next.get(..8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes)
                else {
                    db.remove(next)?;
                    continue;
                };
                known.insert(segment);
                at = segment + 1;
            }
            Ok(known)
        });
        known
            .into_iter()
            .flatten()
            .filter(|segment| !segments.contains(segment))
            .for_each(|segment| self.remove(segment));
    }

    /// Whether it has a segment.
    #[must_use]
    pub fn covers(&self, segment: u64) -> bool {
        lock(&self.covered).contains(&segment)
    }

    /// Whether sled works.
    #[must_use]
    pub fn works(&self) -> bool {
        !matches!(*lock(&self.db), Db::Failed)
    }

    /// Entries that were not believed since the start.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

fn open_sled(folder: &Path) -> Result<sled::Db, String> {
    forget_unfinished_snapshots(folder).map_err(|error| error.to_string())?;
    let config = sled::Config::new().path(folder).cache_capacity(SLED_CACHE_BYTES).mode(sled::Mode::LowSpace);
    match catch_unwind(AssertUnwindSafe(|| config.flush_every_ms(None).open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("sled has panicked".into()),
    }
}

/// A process that is killed may leave one, and sled then does not open.
fn forget_unfinished_snapshots(folder: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(".generating") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Moves a damaged index away, over an older one: who wants to know what happened to it can look.
fn set_aside(folder: &Path) -> io::Result<()> {
    let aside = folder.with_extension("damaged");
    let older = if aside.is_dir() { std::fs::remove_dir_all(&aside) } else { std::fs::remove_file(&aside) };
    older.or_else(absent)?;
    std::fs::rename(folder, &aside).or_else(absent)
}

fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn key(segment: u64, piece: u16) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&segment.to_be_bytes());
    key[8..].copy_from_slice(&piece.to_be_bytes());
    key
}

fn encode_head(store: StoreId, segment: u64, mark: Mark, rows: Digest) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.u16(VERSION).raw(&store.0).u64(segment).u64(mark.len).u32(mark.count).raw(mark.headers.as_bytes());
    encoder.raw(rows.as_bytes());
    encoder.into_bytes()
}

/// The hash of the rows, if the entry is about this very segment.
fn decode_head(bytes: &[u8], store: StoreId, segment: u64, mark: Mark) -> Option<Digest> {
    let rows = Digest(bytes.get(bytes.len().checked_sub(32)?..)?.try_into().ok()?);
    (encode_head(store, segment, mark, rows) == bytes).then_some(rows)
}

fn encode_rows(records: &[RecordHeader]) -> Vec<u8> {
    let mut encoder = Encoder::new();
    for header in records {
        encoder.u8(header.kind as u8).u32(header.sequence as u32).u32(header.payload_len);
        if header.kind == Kind::Padding {
            continue;
        }
        let mut flags = 0;
        for (set, flag) in
            [(header.complete, COMPLETE), (header.until_ms.is_some(), TRASHED), (header.damaged, DAMAGED)]
        {
            flags |= if set { flag } else { 0 };
        }
        encoder.raw(&header.key).u8(header.index).u8(flags).u8(header.scheme.0).u8(header.scheme.1);
        encoder.u32(header.header_len).u32(header.tree_len).u64(header.generation).u64(header.touched);
        if let Some(until_ms) = header.until_ms {
            encoder.u64(until_ms);
        }
    }
    encoder.into_bytes()
}

/// Rows of a segment, whose hash was right.
pub struct Rows {
    bytes: Vec<u8>,
    store: StoreId,
    segment: u64,
}

impl Rows {
    /// Headers without time and hash, in order. Records of a segment follow each other, so each says where the next one is.
    fn records(&self) -> impl Iterator<Item = Result<RecordHeader, DecodeError>> {
        let mut decoder = Decoder::new(&self.bytes);
        let mut offset = BLOCK as u64;
        std::iter::from_fn(move || {
            if decoder.left() == 0 {
                return None;
            }
            let header = decode_row(&mut decoder, self.store, self.segment, offset);
            offset += header.as_ref().map_or(0, RecordHeader::extent);
            Some(header)
        })
        .scan(false, |ended, record| {
            // What follows a row that makes no sense makes none either.
            let goes_on = !*ended;
            *ended |= record.is_err();
            goes_on.then_some(record)
        })
    }

    /// The headers, without time and hash, in order.
    pub fn headers(&self) -> impl Iterator<Item = RecordHeader> {
        // Each was decoded once before.
        self.records().map_while(Result::ok)
    }
}

fn decode_row(
    decoder: &mut Decoder<'_>,
    store: StoreId,
    segment: u64,
    offset: u64,
) -> Result<RecordHeader, DecodeError> {
    let kind = Kind::from_byte(decoder.u8("kind")?).ok_or(DecodeError::Invalid { field: "kind", why: "unknown" })?;
    let sequence = segment << 32 | u64::from(decoder.u32("count")?);
    let payload_len = decoder.u32("payload length")?;
    let bare = RecordHeader {
        sequence,
        generation: sequence,
        store,
        segment,
        offset,
        payload_len,
        ..RecordHeader::bare(kind, [0; 32], 0)
    };
    if kind == Kind::Padding {
        return Ok(bare);
    }
    let (key, index, flags) = (decoder.array("key")?, decoder.u8("index")?, decoder.u8("flags")?);
    Ok(RecordHeader {
        key,
        index,
        complete: flags & COMPLETE != 0,
        damaged: flags & DAMAGED != 0,
        scheme: (decoder.u8("k")?, decoder.u8("m")?),
        header_len: decoder.u32("header length")?,
        tree_len: decoder.u32("tree length")?,
        generation: decoder.u64("generation")?,
        touched: decoder.u64("touched")?,
        until_ms: if flags & TRASHED != 0 { Some(decoder.u64("until")?) } else { None },
        ..bare
    })
}

#[cfg(test)]
mod tests;
