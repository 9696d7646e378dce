//! From blocks of a file to stripes on disks: cutting, sealing, packing, coding and placing, all at the same time.
//!
//! Chunks are sealed several at once and packed in order. Every stage waits for the next one where that is behind, so
//! memory is bounded whatever the length of a file and the speed of the network. Nothing here makes anything visible.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use potluck_proto::id::{ChunkId, StripeId};
use potluck_proto::stripe::{DATA_LIMIT, Scheme, padded_len, shard_len};
use potluck_proto::transport::Executor;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};

use super::intake::{self, Begun, Intake, Named};
use super::writer::Stored;
use super::{Inner, Progress, SessionError};
use crate::cluster::Placed;
use crate::vault::content::{ContentBuilder, Piece, Pieces, inline_file};
use crate::vault::entry::{ChunkRef, Content, Entry, Kind};
use crate::vault::keys::VaultKeys;
use crate::vault::pack::{self, OpenStripe, Packer, Placed as Packed};
use crate::vault::pointer::{PendingPointer, Pointer, StripeRef, Unsealed};
use crate::vault::seal::{self, ReadyChunk, SealError, Sealer};
use crate::vault::{NodeStore, StoredObject, VaultError};

/// Pieces of work that are being sealed, or wait to be packed.
const SEALING: usize = 3;

/// Bytes of shards that are being coded and placed, and most that one stripe may have: one more waits.
const CODED_LIMIT: usize = 52 << 20;

/// Budgets are counted in units of this many bytes.
const UNIT: usize = 64 << 10;

/// Stripes that are being coded and placed.
const STRIPES: usize = 3;

/// Chunks that an upload remembers, so as not to store them twice: about 10 MiB of memory, 32 GiB of files.
const KNOWN: usize = 1 << 16;

/// Chunks of a file's older version that are looked up to be recognised.
const KNOWN_OF_OLD: usize = 1 << 13;

/// Bytes that are not sent before the tree is made, but together with it: one round trip less.
const LITTLE: usize = 1 << 20;

/// Sealers kept for the next use.
const SEALERS: usize = 8;

/// What became of the stripes that were closed.
#[derive(Default)]
struct Fates {
    /// Ids of those that were coded, by number.
    coded: BTreeMap<u64, StripeId>,
    /// Closed and not placed yet.
    pending: usize,
    /// Why one could not be placed: the upload is over.
    failed: Option<SessionError>,
    stripes: u64,
    bytes: u64,
    least: Option<(usize, bool)>,
}

#[derive(Default)]
struct Board {
    fates: Mutex<Fates>,
    changed: Notify,
    sent: AtomicU64,
}

impl Board {
    fn fates(&self) -> MutexGuard<'_, Fates> {
        self.fates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Fates)) {
        change(&mut self.fates());
        self.changed.notify_waiters();
    }

    /// Waits until `ready` says so, or a stripe has failed.
    async fn wait<T>(&self, mut ready: impl FnMut(&mut Fates) -> Option<T>) -> Result<T, SessionError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Listening before looking, so that no change is missed.
            changed.as_mut().enable();
            {
                let mut fates = self.fates();
                if let Some(error) = fates.failed.take() {
                    // The first to look gets the reason; the upload stays failed.
                    fates.failed = Some(SessionError::Internal("this upload has failed before".into()));
                    return Err(error);
                }
                if let Some(value) = ready(&mut fates) {
                    return Ok(value);
                }
            }
            changed.await;
        }
    }
}

/// Seals chunks on the executor's threads.
struct Sealers {
    keys: VaultKeys,
    idle: Mutex<Vec<Sealer>>,
    known: Mutex<HashMap<ChunkId, (PendingPointer, u64)>>,
}

/// A chunk after sealing.
pub(super) enum Sealed {
    /// It lies somewhere already.
    Known(ChunkRef),
    New(ReadyChunk),
}

impl Sealers {
    fn known(&self, id: &ChunkId) -> Option<ChunkRef> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(id).map(|&(pointer, size)| ChunkRef { id: *id, size, pointer })
    }

    fn remember(&self, chunk: &ChunkRef) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < KNOWN {
            known.insert(chunk.id, (chunk.pointer, chunk.size));
        }
    }

    /// Reads a source's beginning, and seals it if it is a single chunk.
    fn prepare<R: Read>(&self, source: R) -> Result<Prepared<R>, SessionError> {
        let bytes = match intake::begin(source, &self.keys).map_err(SessionError::Source)? {
            Begun::More(intake) => return Ok(Prepared::Longer(intake)),
            Begun::Whole(bytes) => bytes,
        };
        if let Some(entry) = inline_file(&bytes) {
            return Ok(Prepared::Inline(entry));
        }
        let (id, length) = (seal::chunk_id(&self.keys, &bytes), bytes.len());
        let sealed = self.seal(vec![Named { id, plain: bytes.into() }]).map_err(VaultError::from)?;
        let none = || SessionError::Internal("a chunk was lost on its way".into());
        Ok(Prepared::Single(sealed.into_iter().next().ok_or_else(none)?, length))
    }

    fn seal(&self, chunks: Vec<Named>) -> Result<Vec<Sealed>, SealError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut sealer = match idle {
            Some(sealer) => sealer,
            None => Sealer::new(&self.keys)?,
        };
        let mut sealed = Vec::with_capacity(chunks.len());
        for Named { id, plain } in chunks {
            sealed.push(match self.known(&id) {
                Some(known) => Sealed::Known(known),
                None => Sealed::New(sealer.seal_chunk(id, plain)?),
            });
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < SEALERS {
            idle.push(sealer);
        }
        Ok(sealed)
    }
}

/// What all stripes of an upload come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) stripes: u64,
    pub(super) bytes: u64,
    /// The least number of losses that a stripe survives; `None` if there is no stripe.
    pub(super) survived: Option<usize>,
    /// A stripe has fewer shards on disk than its scheme says.
    pub(super) degraded: bool,
}

/// One upload: the open stripe, and those on their way.
pub(super) struct Upload {
    inner: Arc<Inner>,
    writer: pack::Writer,
    scheme: Scheme,
    /// A stripe is closed once it has this many bytes of data.
    full: usize,
    packer: Packer,
    sealer: Sealer,
    sealers: Arc<Sealers>,
    board: Arc<Board>,
    budget: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    /// Ends with the upload: whatever is still on its way is given up.
    tasks: JoinSet<()>,
    reported: u64,
}

/// A source whose beginning was read.
pub(super) enum Prepared<R> {
    /// So short that it lives in its entry.
    Inline(Entry),
    /// A single chunk, as the chunker would find: it ends here, and is too short to be cut. With its length.
    Single(Sealed, usize),
    /// There is more.
    Longer(Box<Intake<R>>),
}

/// Begins to read files, several at once.
#[derive(Clone)]
pub(super) struct Preparer {
    executor: Executor,
    sealers: Arc<Sealers>,
}

impl Preparer {
    /// Reads a source's beginning on the executor, and seals a source that is a single chunk.
    pub(super) async fn prepare<R: Read + Send + 'static>(self, source: R) -> Result<Prepared<R>, SessionError> {
        self.executor.run(move || self.sealers.prepare(source)).await?
    }
}

/// A piece of work on its way through the sealers.
type Sealing = JoinHandle<Result<Vec<Sealed>, SessionError>>;

impl Upload {
    pub(super) fn new(inner: Arc<Inner>, scheme: Scheme, sweep: u64) -> Result<Self, SessionError> {
        let keys = inner.keys.clone();
        let writer = pack::Writer { cert: inner.cert.clone(), key: inner.secrets.device.clone(), born: sweep };
        Ok(Self {
            writer,
            scheme,
            full: full_at(scheme),
            packer: Packer::new(scheme),
            sealer: Sealer::new(&keys).map_err(VaultError::from)?,
            sealers: Arc::new(Sealers { keys, idle: Mutex::default(), known: Mutex::default() }),
            board: Arc::default(),
            budget: Arc::new(Semaphore::new(CODED_LIMIT / UNIT)),
            turns: Arc::new(Semaphore::new(STRIPES)),
            tasks: JoinSet::new(),
            reported: 0,
            inner,
        })
    }

    /// What begins to read files.
    pub(super) fn preparer(&self) -> Preparer {
        Preparer { executor: self.inner.executor.clone(), sealers: self.sealers.clone() }
    }

    /// Uploads a file; what is known of its older version is not uploaded again.
    pub(super) async fn file<R: Read + Send + 'static>(
        &mut self,
        source: Prepared<R>,
        old: Option<&Entry>,
        progress: &Progress,
    ) -> Result<(Entry, Stored), SessionError> {
        let head = match &source {
            Prepared::Inline(entry) => entry.size as usize,
            Prepared::Single(_, length) => *length,
            Prepared::Longer(intake) => intake.ahead(),
        };
        Progress::add(&progress.bytes_read, head as u64);
        if let (Some(old), false) = (old, matches!(source, Prepared::Inline(_))) {
            self.recognise(old).await?;
        }
        let mut file = ContentBuilder::new();
        let mut stored = Stored { size: 0, chunks: 0, new_bytes: 0 };
        let mut sealing: VecDeque<Sealing> = VecDeque::new();
        match source {
            Prepared::Inline(entry) => {
                (stored.size, stored.new_bytes) = (entry.size, entry.size);
                Progress::add(&progress.bytes_new, entry.size);
                return Ok((entry, stored));
            }
            Prepared::Single(chunk, _) => {
                let chunk = self.pack_new(chunk, &mut stored, progress).await?;
                file.push_ref(self, chunk).await?;
                self.report(progress);
            }
            Prepared::Longer(mut intake) => loop {
                let next = move || {
                    let part = intake.next();
                    (intake, part)
                };
                let part;
                (intake, part) = self.inner.executor.run(next).await?;
                let part = part.map_err(SessionError::Source)?;
                Progress::add(&progress.bytes_read, part.read as u64);
                sealing.push_back(self.begin_sealing(part.chunks));
                while sealing.len() >= SEALING {
                    self.pack_next(&mut sealing, &mut file, &mut stored, progress).await?;
                }
                if part.last {
                    break;
                }
            },
        }
        while !sealing.is_empty() {
            self.pack_next(&mut sealing, &mut file, &mut stored, progress).await?;
        }
        let (size, content) = file.finish(self).await?;
        stored.size = size;
        Ok((Entry { size, content, ..Entry::inline(Kind::File, Bytes::new()) }, stored))
    }

    /// Remembers the chunks of an older version.
    async fn recognise(&mut self, old: &Entry) -> Result<(), SessionError> {
        if matches!(old.content, Content::Inline(_)) {
            return Ok(());
        }
        let keys = self.inner.keys.clone();
        let mut pieces = Pieces::whole(old);
        for _ in 0..KNOWN_OF_OLD {
            // That the old version cannot be read now is no reason not to store the new one.
            match pieces.next(&*self, &keys).await {
                Ok(Some(Piece::Chunk { chunk, .. })) => self.sealers.remember(&chunk),
                Ok(Some(Piece::Inline(_))) => {}
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "the older version's chunks are not known");
                    break;
                }
            }
        }
        Ok(())
    }

    /// Begins to seal chunks at once, on another thread.
    fn begin_sealing(&self, chunks: Vec<Named>) -> Sealing {
        let (executor, sealers) = (self.inner.executor.clone(), self.sealers.clone());
        tokio::spawn(async move {
            let sealed = executor.run(move || sealers.seal(chunks)).await?;
            sealed.map_err(|error| SessionError::Vault(error.into()))
        })
    }

    /// Packs the chunks that were given to the sealers first.
    async fn pack_next(
        &mut self,
        sealing: &mut VecDeque<Sealing>,
        file: &mut ContentBuilder,
        stored: &mut Stored,
        progress: &Progress,
    ) -> Result<(), SessionError> {
        let Some(next) = sealing.pop_front() else { return Ok(()) };
        let sealed = next.await.map_err(|error| SessionError::Internal(error.to_string()))??;
        for chunk in sealed {
            let chunk = self.pack_new(chunk, stored, progress).await?;
            file.push_ref(self, chunk).await?;
        }
        self.report(progress);
        Ok(())
    }

    /// Packs a chunk, unless it lies somewhere already.
    async fn pack_new(
        &mut self,
        chunk: Sealed,
        stored: &mut Stored,
        progress: &Progress,
    ) -> Result<ChunkRef, SessionError> {
        stored.chunks += 1;
        let new = match chunk {
            Sealed::Known(known) => return Ok(known),
            Sealed::New(new) => new,
        };
        // An equal chunk may have been packed since this one was sealed.
        if let Some(known) = self.sealers.known(&new.id) {
            return Ok(known);
        }
        stored.new_bytes += u64::from(new.plain_len);
        Progress::add(&progress.bytes_new, new.plain_len.into());
        Progress::add(&progress.bytes_stored, new.stored_len() as u64);
        self.pack(&new).await
    }

    async fn pack(&mut self, chunk: &ReadyChunk) -> Result<ChunkRef, SessionError> {
        if self.packer.open_len() > 0 && self.packer.open_len() + chunk.stored_len() > self.full {
            self.close_stripe().await?;
        }
        let pointer = match self.packer.append(chunk) {
            Some(pointer) => pointer,
            None => {
                self.close_stripe().await?;
                let full = || SessionError::Internal("a chunk is longer than a stripe".into());
                self.packer.append(chunk).ok_or_else(full)?
            }
        };
        let chunk = ChunkRef { id: chunk.id, size: chunk.plain_len.into(), pointer };
        self.sealers.remember(&chunk);
        Ok(chunk)
    }

    /// Adds to `progress` what has reached disks since the last time.
    pub(super) fn report(&mut self, progress: &Progress) {
        let sent = self.board.sent.load(Ordering::Relaxed);
        Progress::add(&progress.bytes_sent, sent - self.reported);
        self.reported = sent;
    }

    /// Closes the open stripe and sends it on its way, once there is room for one more.
    async fn close_stripe(&mut self) -> Result<(), SessionError> {
        let coded = shard_len(padded_len(self.packer.open_len()), self.scheme.k()) * self.scheme.n();
        let units = coded.div_ceil(UNIT).clamp(1, CODED_LIMIT / UNIT) as u32;
        // What has failed will never give its room back.
        self.board.wait(|_| Some(())).await?;
        let ended = |_| SessionError::Internal("the upload has ended".into());
        let turn = self.turns.clone().acquire_owned().await.map_err(ended)?;
        let room = self.budget.clone().acquire_many_owned(units).await.map_err(ended)?;
        let Some(open) = self.packer.close() else { return Ok(()) };
        self.board.change(|fates| fates.pending += 1);
        // Those that have ended are let go of.
        while self.tasks.try_join_next().is_some() {}
        let (inner, writer, board) = (self.inner.clone(), self.writer.clone(), self.board.clone());
        self.tasks.spawn(async move {
            let result = place(&inner, writer, open, &board, (turn, room)).await;
            board.change(|fates| {
                fates.pending -= 1;
                if let Err(error) = result {
                    fates.failed.get_or_insert(error);
                }
            });
        });
        Ok(())
    }

    /// Sends what is open on its way and waits until all stripes are on disks.
    pub(super) async fn flush(&mut self, progress: &Progress) -> Result<(), SessionError> {
        if self.packer.open_len() > 0 {
            self.close_stripe().await?;
        }
        let mut left = usize::MAX;
        loop {
            left = self.board.wait(|fates| (fates.pending < left).then_some(fates.pending)).await?;
            self.report(progress);
            if left == 0 {
                self.learn();
                return Ok(());
            }
        }
    }

    /// Whether so little was packed and not sent that it may as well go with the tree.
    pub(super) fn is_little(&self) -> bool {
        self.board.fates().pending == 0 && self.packer.open_len() <= LITTLE
    }

    /// How stripes are coded.
    pub(super) fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// What all stripes since the last call come to.
    pub(super) fn take_totals(&mut self) -> Totals {
        let mut fates = self.board.fates();
        let (stripes, bytes) = (std::mem::take(&mut fates.stripes), std::mem::take(&mut fates.bytes));
        let least = fates.least.take();
        Totals {
            stripes,
            bytes,
            survived: least.map(|(survived, _)| survived),
            degraded: least.is_some_and(|(_, degraded)| degraded),
        }
    }

    /// The finished pointer, of a stripe that was placed.
    pub(super) fn resolve(&self, pointer: &PendingPointer) -> Result<Pointer, Unsealed> {
        pointer.resolve(|sequence| self.packer.resolve(sequence))
    }

    /// Tells the packer the ids of stripes that were coded meanwhile.
    fn learn(&mut self) {
        for (sequence, id) in std::mem::take(&mut self.board.fates().coded) {
            self.packer.finished(sequence, id);
        }
    }
}

/// Data bytes at which a stripe of this scheme is closed: few parity shards fill a stripe, many must not fill the memory.
fn full_at(scheme: Scheme) -> usize {
    DATA_LIMIT.min(CODED_LIMIT / scheme.n() * scheme.k())
}

/// Codes a stripe and puts it on the ring.
async fn place(
    inner: &Inner,
    writer: pack::Writer,
    open: OpenStripe,
    board: &Board,
    _held: (OwnedSemaphorePermit, OwnedSemaphorePermit),
) -> Result<(), SessionError> {
    let (now, sweep) = ((inner.clock)(), writer.born);
    let coded = inner.executor.run(move || open.seal(&writer, now)).await?;
    let coded = coded.map_err(|error| SessionError::Internal(error.to_string()))?;
    board.change(|fates| {
        fates.coded.insert(coded.sequence, coded.header.id());
    });
    let shard = coded.shards.first().map_or(0, Bytes::len) as u64;
    let Placed { nodes, losses_survived, degraded } =
        inner.cluster.put_stripe(&coded.header, coded.shards, sweep).await.map_err(SessionError::Put)?;
    let bytes = shard * nodes.len() as u64;
    board.sent.fetch_add(bytes, Ordering::Relaxed);
    board.change(|fates| {
        fates.stripes += 1;
        fates.bytes += bytes;
        let (least, any) = fates.least.unwrap_or((losses_survived, false));
        fates.least = Some((least.min(losses_survived), any || degraded));
    });
    Ok(())
}

impl NodeStore for Upload {
    async fn load(&self, pointer: &PendingPointer) -> Result<Bytes, VaultError> {
        let fetcher = &self.inner.fetcher;
        if let Some(plain) = fetcher.kept(&pointer.hash) {
            return Ok(plain);
        }
        if let Some(chunk) = self.packer.read_open(pointer) {
            return fetcher.open(pointer.hash, chunk.stored()?.into()).await;
        }
        if let StripeRef::Open(sequence) = pointer.stripe
            && self.packer.resolve(sequence).is_none()
        {
            self.board.wait(|fates| fates.coded.contains_key(&sequence).then_some(())).await?;
        }
        let coded = |sequence| self.board.fates().coded.get(&sequence).copied();
        let sealed = pointer.resolve(|sequence| self.packer.resolve(sequence).or_else(|| coded(sequence)))?;
        if pointer.stripe != StripeRef::Sealed(sealed.stripe) {
            // It may be on its way still.
            self.board.wait(|fates| (fates.pending == 0).then_some(())).await?;
        }
        fetcher.object(&sealed).await
    }

    async fn store(&mut self, object: &dyn StoredObject) -> Result<(ChunkId, PendingPointer), VaultError> {
        let id = object.id(self.sealer.keys());
        if self.packer.open_len() >= self.full {
            self.close_stripe().await?;
        }
        loop {
            self.learn();
            match self.packer.place(&mut self.sealer, id, object)? {
                Packed::At(pointer) => return Ok((id, pointer)),
                Packed::Full => self.close_stripe().await?,
                Packed::Waits(Unsealed(sequence)) => {
                    self.board.wait(|fates| fates.coded.contains_key(&sequence).then_some(())).await?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_scheme_fills_the_memory() {
        for (k, m) in [(1, 0), (1, 3), (2, 2), (4, 4), (1, 19), (1, 126), (29, 51), (64, 64)] {
            let scheme = Scheme::new(k, m).unwrap();
            let coded = shard_len(padded_len(full_at(scheme)), k) * (k + m);
            assert!(coded <= CODED_LIMIT + CODED_LIMIT / 4, "{scheme}: {coded}");
            assert!(full_at(scheme) >= 1 << 18, "{scheme}");
        }
        assert_eq!(full_at(Scheme::new(10, 4).unwrap()), DATA_LIMIT);
    }
}
