//! `potluck node store stats`: what lies in the store of a stopped node, looked at without writing to it.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::DONE;
use crate::config::human::{many, rough};
use crate::store::segments::check::{self, Depth, Report, State, reserve};
use crate::store::segments::disk::{Disk, FolderDisk, INDEX_FOLDER, STORE_FOLDER, Space};
use crate::store::segments::format::Kind;
use crate::store::segments::log::segment_number;
use crate::store::segments::recovery::STORE_NAME;

/// How many of the segments are shown that compaction would gain most from.
const SHOWN: usize = 5;

/// What an operator does with a store.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Show segments, what is of use in them, the trash and the index
    Stats(StatsArgs),
}

/// Options of `store stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// The node's folder, or the store's in it
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The store's folder, where `path` is it or the node's.
pub(super) fn folder_of(path: &Path) -> anyhow::Result<PathBuf> {
    // In the store's own folder there is a file of that name.
    let inside = path.join(STORE_FOLDER);
    if inside.is_dir() {
        return Ok(inside);
    }
    let names = std::fs::read_dir(path).with_context(|| format!("cannot look into {}", path.display()))?;
    let ours = |name: &str| name == STORE_NAME || segment_number(name).is_some();
    if names.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).any(|name| ours(&name)) {
        return Ok(path.into());
    }
    bail!("there is no store in {}: name the folder of a node", path.display())
}

/// An error of opening a store's folder, for people.
pub(super) fn not_opened(error: io::Error, path: &Path) -> anyhow::Error {
    if error.kind() == io::ErrorKind::WouldBlock {
        let data = path.display();
        return anyhow::anyhow!(
            "{error} (of a node that runs, 'potluck node status --data {data}' shows how it fares)"
        );
    }
    anyhow::Error::new(error).context(format!("cannot open the store in {}", path.display()))
}

pub(super) fn stats(args: &StatsArgs) -> anyhow::Result<u8> {
    let folder = folder_of(&args.path)?;
    let disk = FolderDisk::open_to_read(&folder).map_err(|error| not_opened(error, &args.path))?;
    let report = check::read(&disk, Depth::Listed, &mut |_, _| {})
        .with_context(|| format!("the store in {} cannot be read", folder.display()))?;
    let stats = Stats {
        index: bytes_below(&folder.join(INDEX_FOLDER)).context("the index cannot be looked at")?,
        space: disk.space().context("the disk does not say how much space is free")?,
        written: disk.describe(),
        report,
    };
    if args.json {
        println!("{:#}", stats.json());
    } else {
        print!("{}", stats.text());
    }
    Ok(DONE)
}

/// Bytes of all files below a folder; `None` if it is not there.
fn bytes_below(folder: &Path) -> io::Result<Option<u64>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { bytes_below(&entry.path())?.unwrap_or(0) } else { metadata.len() };
    }
    Ok(Some(bytes))
}

struct Stats {
    report: Report,
    index: Option<u64>,
    space: Space,
    written: &'static str,
}

impl Stats {
    fn sealed(&self) -> usize {
        self.report.segments.iter().filter(|segment| segment.state == State::Sealed).count()
    }

    /// Segments of which nothing can be used.
    fn unusable(&self) -> usize {
        let usable = |state: &State| matches!(state, State::Sealed | State::Open | State::Empty);
        self.report.segments.iter().filter(|segment| !usable(&segment.state)).count()
    }

    /// Bytes of files, of records, and of those records that count.
    fn bytes(&self) -> (u64, u64, u64) {
        let facts = self.report.table.segments().values();
        let (bytes, live) = facts.fold((0, 0), |(bytes, live), facts| (bytes + facts.bytes, live + facts.live));
        (self.report.segments.iter().map(|segment| segment.bytes).sum(), bytes, live)
    }

    /// The segments with most dead bytes: number, dead bytes, bytes.
    fn deadest(&self) -> Vec<(u64, u64, u64)> {
        let facts = self.report.table.segments().iter();
        let mut dead: Vec<_> = facts.map(|(segment, facts)| (*segment, facts.dead(), facts.bytes)).collect();
        dead.retain(|(_, dead, bytes)| percent(*dead, *bytes) > 0);
        dead.sort_by_key(|(segment, dead, _)| (std::cmp::Reverse(*dead), *segment));
        dead.truncate(SHOWN);
        dead
    }

    fn records(&self, kind: Kind) -> u64 {
        self.report.kinds.get(&kind).copied().unwrap_or(0)
    }

    fn facts(&self, kind: Kind) -> usize {
        self.report.table.fact_keys(kind).len()
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String| {
            // A string takes all that is written to it.
            let _ = writeln!(text, "{name:<12} {value}");
        };
        let (files, bytes, live) = self.bytes();
        let usage = self.report.table.usage();
        let unusable = match self.unusable() {
            0 => String::new(),
            some => format!(", {some} that cannot be used: see 'potluck node fsck'"),
        };
        row("segments", format!("{}, {} sealed{unusable}", self.report.segments.len(), self.sealed()));
        row("files", rough(files));
        row("of use", format!("{} of {} written, {} %", rough(live), rough(bytes), percent(live, bytes)));
        row("shards", format!("{} wanted, {}", usage.shards, rough(usage.live)));
        row("trash", format!("{}, {}", many(self.report.trashed(), "shard", "shards"), rough(usage.trash)));
        for (name, kind) in FACTS {
            let records = many(self.records(kind), "record", "records");
            row(name, format!("{}, from {records}", self.facts(kind)));
        }
        let kinds = RECORDS.iter().map(|(name, kind)| format!("{} {name}", self.records(*kind)));
        row("records", kinds.collect::<Vec<_>>().join(", "));
        let gaps = self.report.parts().count();
        if gaps > 0 {
            row("damaged", format!("{gaps} parts, without the insides of sealed segments: see 'potluck node fsck'"));
        }
        for (at, (segment, dead, bytes)) in self.deadest().into_iter().enumerate() {
            let name = if at == 0 { "most dead" } else { "" };
            row(
                name,
                format!("segment {segment:016x}: {} of {}, {} %", rough(dead), rough(bytes), percent(dead, bytes)),
            );
        }
        row("index", self.index.map_or_else(|| "none: it is made at the next start".into(), rough));
        let kept = rough(reserve(self.space));
        row("disk", format!("{} free of {}; {kept} are left free", rough(self.space.free), rough(self.space.total)));
        row("written", self.written.into());
        text
    }

    fn json(&self) -> serde_json::Value {
        let (files, bytes, live) = self.bytes();
        let usage = self.report.table.usage();
        let deadest = self.deadest().into_iter().map(|(segment, dead, bytes)| {
            serde_json::json!({ "segment": format!("{segment:016x}"), "dead": dead, "bytes": bytes })
        });
        let records =
            RECORDS.iter().chain(&FACTS).map(|(name, kind)| ((*name).to_string(), self.records(*kind).into()));
        let facts = FACTS.iter().map(|(name, kind)| ((*name).to_string(), self.facts(*kind).into()));
        serde_json::json!({
            "segments": self.report.segments.len(),
            "sealed": self.sealed(),
            "unusable": self.unusable(),
            "file_bytes": files,
            "record_bytes": bytes,
            "live_bytes": live,
            "shards": usage.shards,
            "shard_bytes": usage.live,
            "trash_shards": self.report.trashed(),
            "trash_bytes": usage.trash,
            "damaged_parts": self.report.parts().count(),
            "records": serde_json::Map::from_iter(records),
            "kept": serde_json::Map::from_iter(facts),
            "most_dead": deadest.collect::<Vec<_>>(),
            "index_bytes": self.index,
            "free_bytes": self.space.free,
            "disk_bytes": self.space.total,
            "reserve_bytes": reserve(self.space),
            "written": self.written,
        })
    }
}

/// What is known by its key alone.
const FACTS: [(&str, Kind); 3] = [("heads", Kind::Head), ("members", Kind::Member), ("sweeps", Kind::Sweep)];

/// The other records.
const RECORDS: [(&str, Kind); 6] = [
    ("shard", Kind::Shard),
    ("delete", Kind::Delete),
    ("trash", Kind::Trash),
    ("restore", Kind::Restore),
    ("complete", Kind::Complete),
    ("padding", Kind::Padding),
];

fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100) / whole.max(1)
}
