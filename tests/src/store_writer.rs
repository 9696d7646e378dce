//! Writers on a segment store, in a process of their own that a test kills, or whose disk it takes away.
//!
//! Each thread has shards and heads that nobody else writes, and does one operation after the other. It says so before
//! and after each, with one call and no buffer: what was said is there when the process is gone. So whoever reads the
//! [`lines`] knows what was acknowledged, and what may have happened or not; the [`ledger`] keeps account of that.
//!
//! It never writes anything but the store's folder and these lines.

pub mod careless;
pub mod content;
pub mod ledger;
pub mod lines;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use potluck_node::store::segments::compaction::CompactError;
use potluck_node::store::segments::disk::{Disk, FolderDisk, INDEX_FOLDER};
use potluck_node::store::segments::format::{Kind, StoreId};
use potluck_node::store::segments::log::AppendError;
use potluck_node::store::segments::{Options, SegmentStore};
use potluck_node::store::{Check, ShardKey, ShardState, StoreError};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::careless::CarelessDisk;
use self::content::{Content, SHARDS, Stripe};
use self::lines::{HeadName, Line, Operation, ShardName};

/// Time between two looks for a segment to empty, where there was none.
const COMPACTION_PAUSE: Duration = Duration::from_millis(2);

/// Deadlines in the trash are below this, in milliseconds of the store's running time.
const TRASH_LIMIT_MS: u64 = 1_000_000;

/// What the program is to do: its command line.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "store_writer")]
pub struct Plan {
    /// The store's folder.
    pub folder: PathBuf,
    /// What shards and heads hold follows from it.
    #[arg(long)]
    pub seed: u64,
    /// What is done with them follows from it.
    #[arg(long)]
    pub turn: u64,
    /// Threads that write.
    #[arg(long, default_value_t = 4)]
    pub writers: u32,
    /// Stripes of each thread.
    #[arg(long, default_value_t = 10)]
    pub stripes: u32,
    /// Heads of each thread.
    #[arg(long, default_value_t = 3)]
    pub heads: u32,
    /// Length at which a segment is sealed, in bytes.
    #[arg(long, default_value_t = 1 << 20)]
    pub segment_bytes: u64,
    /// Writes through the page cache and syncs nothing: to show what a test sees then.
    #[arg(long)]
    pub careless: bool,
    /// Operations of each thread, after which the process ends on its own.
    #[arg(long, default_value_t = 1_000_000)]
    pub operations: u64,
}

impl Plan {
    /// What is written.
    #[must_use]
    pub fn content(&self) -> Content {
        Content { seed: self.seed, writers: self.writers, stripes: self.stripes, heads: self.heads }
    }

    /// Opens the store.
    ///
    /// # Errors
    /// Its disk fails.
    pub fn open(&self) -> Result<SegmentStore> {
        let disk = open_disk(&self.folder, self.careless)?;
        open_store(disk, self.segment_bytes, Some(self.folder.join(INDEX_FOLDER))).context("the store does not open")
    }

    /// The words by which the program is told.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let mut words = vec![self.folder.display().to_string()];
        for (name, value) in [
            ("seed", self.seed),
            ("turn", self.turn),
            ("writers", self.writers.into()),
            ("stripes", self.stripes.into()),
            ("heads", self.heads.into()),
            ("segment-bytes", self.segment_bytes),
            ("operations", self.operations),
        ] {
            words.extend([format!("--{name}"), value.to_string()]);
        }
        words.extend(self.careless.then(|| "--careless".into()));
        words
    }
}

fn open_disk(folder: &Path, careless: bool) -> Result<Arc<dyn Disk>> {
    Ok(if careless { Arc::new(CarelessDisk::open(folder)?) } else { Arc::new(FolderDisk::open(folder)?) })
}

/// Opens a store that these tests use: a thread writes, and nothing but the disk bounds it. `index` is the folder of the
/// index, if there is to be one.
///
/// # Errors
/// Its disk fails.
pub fn open_store(disk: Arc<dyn Disk>, segment_bytes: u64, index: Option<PathBuf>) -> Result<SegmentStore, StoreError> {
    let options = Options {
        capacity: u64::MAX >> 1,
        segment_bytes,
        fresh: StoreId([9; 16]),
        clock: Arc::new(|| 1_700_000_000_000),
        threaded: true,
        index,
        progress: Arc::default(),
    };
    SegmentStore::open(disk, options)
}

/// Where lines go.
#[derive(Clone, Copy)]
pub struct Told<'a>(pub &'a File);

impl Told<'_> {
    /// One call for the whole line: what it has returned of is there, whatever becomes of this process.
    fn tell(self, line: &Line) -> Result<()> {
        let mut file = self.0;
        Ok(file.write_all(format!("{line}\n").as_bytes())?)
    }
}

/// Runs the writers until each has done its operations. What a store never may do is told, and the rest goes on.
///
/// # Errors
/// The store does not open, or the lines cannot be written.
pub fn run(plan: &Plan, told: Told<'_>) -> Result<()> {
    let content = plan.content();
    let stripes: Vec<Vec<Stripe>> =
        (0..plan.writers).map(|writer| content.stripes_of(writer)).collect::<Result<_>>()?;
    let store = plan.open()?;
    told.tell(&Line::Ready)?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = stripes
            .iter()
            .zip(0..)
            .map(|(stripes, writer)| {
                let rng = StdRng::seed_from_u64(plan.turn.wrapping_mul(1_000).wrapping_add(u64::from(writer)));
                let mut writer = Writer { store: &store, content, writer, stripes, rng, told };
                scope.spawn(move || (0..plan.operations).try_for_each(|_| writer.step()))
            })
            .collect();
        let emptier = scope.spawn(|| empty_segments(&store, told, &stop));
        let ended: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for ended in ended.into_iter().chain([emptier.join()]) {
            ended.map_err(|_| anyhow::anyhow!("a thread has panicked"))??;
        }
        Ok(())
    })
}

fn empty_segments(store: &SegmentStore, told: Told<'_>, stop: &std::sync::atomic::AtomicBool) -> Result<()> {
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        match store.compact() {
            Ok(Some(emptied)) => told.tell(&Line::Emptied(emptied.segment))?,
            // There may be no space to copy to until something is deleted.
            Ok(None) | Err(CompactError::Append(AppendError::Full)) => std::thread::sleep(COMPACTION_PAUSE),
            Err(error) => {
                told.tell(&Line::Wrong(format!("a segment could not be emptied: {error}")))?;
                std::thread::sleep(COMPACTION_PAUSE);
            }
        }
    }
    Ok(())
}

/// One thread that writes.
struct Writer<'a> {
    store: &'a SegmentStore,
    content: Content,
    writer: u32,
    stripes: &'a [Stripe],
    rng: StdRng,
    told: Told<'a>,
}

impl Writer<'_> {
    fn step(&mut self) -> Result<()> {
        if self.content.heads > 0 && self.rng.random_ratio(1, 8) {
            let head = HeadName { writer: self.writer, head: self.rng.random_range(0..self.content.heads) };
            let value = self.rng.random();
            let payload = self.content.head(head, value);
            let key = self.content.head_key(head);
            return self.change(Operation::Keep(head, value), || self.store.keep(Kind::Head, key, &payload));
        }
        let stripe = self.rng.random_range(0..self.stripes.len());
        let index = self.rng.random_range(0..SHARDS);
        let name = ShardName { writer: self.writer, stripe: stripe as u32, index };
        let stripe = &self.stripes[stripe];
        let key = ShardKey { stripe: stripe.header.id(), index: index as usize };
        let held = self.store.held(&key.stripe).into_iter().find(|held| held.index == key.index);
        match held.map(|held| held.state) {
            None => self.put(name, stripe),
            Some(ShardState::Live) => match self.rng.random_range(0..10) {
                0..4 => self.read(name, key, stripe),
                4 => self.put(name, stripe),
                5 => self.change(Operation::Complete(name), || self.store.set_complete(key)),
                _ => {
                    let until_ms = self.rng.random_range(1..TRASH_LIMIT_MS);
                    self.change(Operation::Trash(name, until_ms), || self.store.trash(key, until_ms))
                }
            },
            Some(ShardState::Trash { until_ms }) => match self.rng.random_range(0..10) {
                0 => self.put(name, stripe),
                1 => self.change(Operation::Revive(name), || self.store.revive(key)),
                2 => match self.store.delete(key, until_ms - 1) {
                    Ok(false) => Ok(()),
                    other => self.wrong(format!("{name:?} before its time: {other:?}")),
                },
                _ => {
                    let deleted = || match self.store.delete(key, until_ms) {
                        Ok(false) => Err(StoreError::NotFound),
                        other => other.map(drop),
                    };
                    self.change(Operation::Delete(name), deleted)
                }
            },
        }
    }

    fn put(&self, name: ShardName, stripe: &Stripe) -> Result<()> {
        let (bytes, tree) = &stripe.shards[name.index as usize];
        self.change(Operation::Put(name), || {
            self.store.put(&stripe.header, name.index as usize, bytes, tree, 0).map(drop)
        })
    }

    fn read(&self, name: ShardName, key: ShardKey, stripe: &Stripe) -> Result<()> {
        match self.store.read(key, 0..0, Check::Here) {
            Ok(read) if read.data[..] == stripe.shards[name.index as usize].0[..] => Ok(()),
            Ok(_) => self.wrong(format!("bytes of {name:?}")),
            Err(error) => self.wrong(format!("{name:?} is not read: {error}")),
        }
    }

    fn change(&self, operation: Operation, ask: impl FnOnce() -> Result<(), StoreError>) -> Result<()> {
        self.told.tell(&Line::Begun(operation))?;
        match ask() {
            Ok(()) => self.told.tell(&Line::Done(operation)),
            Err(StoreError::Full) => self.told.tell(&Line::Full(operation)),
            Err(error) => self.wrong(format!("{operation}: {error}")),
        }
    }

    fn wrong(&self, what: String) -> Result<()> {
        self.told.tell(&Line::Wrong(what))
    }
}
