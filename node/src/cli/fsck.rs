//! `potluck node fsck`: reads the whole store of a stopped node, says in plain words what is damaged and what becomes of
//! it, and, only if asked to, does what a node can do on its own.

mod words;

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;

use super::DONE;
use super::store::{folder_of, not_opened};
use crate::durable;
use crate::node::system_clock;
use crate::store::segments::check::{self, Depth, Report};
use crate::store::segments::disk::{Disk, FolderDisk, INDEX_FOLDER};

/// What it ends with where something is damaged.
const DAMAGED: u8 = 1;

/// What it ends with where nothing could be checked.
const UNCHECKED: u8 = 2;

/// Time between two words on how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

pub(super) const EXIT_CODES: &str = "Exit codes:
  0  the store is sound
  1  something is damaged, also if --repair did something about it
  2  it could not be checked: there is no store, or a process uses it";

/// Options of `fsck`.
#[derive(Debug, Args)]
pub struct FsckArgs {
    /// The node's folder, or the store's in it
    path: PathBuf,
    /// Give up damaged shards, so that the other nodes rebuild them; write the file anew that names the store; remove the
    /// index, which the next start makes anew. Nothing that can be read is removed
    #[arg(long)]
    repair: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Checks a store, and returns what the program ends with.
pub(super) fn fsck(args: &FsckArgs) -> u8 {
    match check_and_mend(args) {
        Ok(true) => DONE,
        Ok(false) => DAMAGED,
        Err(error) => {
            eprintln!("potluck node fsck: {}", super::said_once(&error));
            UNCHECKED
        }
    }
}

/// Whether the store was sound.
fn check_and_mend(args: &FsckArgs) -> anyhow::Result<bool> {
    let folder = folder_of(&args.path)?;
    let open = if args.repair {
        refuse_strangers(&folder)?;
        FolderDisk::open
    } else {
        FolderDisk::open_to_read
    };
    let disk: Arc<dyn Disk> = Arc::new(open(&folder).map_err(|error| not_opened(error, &args.path))?);
    let began = Instant::now();
    let report = check::read(&*disk, Depth::Whole, &mut progress())
        .with_context(|| format!("the store in {} cannot be checked", folder.display()))?;
    if !args.json {
        print!("{}", words::findings(&report, began.elapsed()));
    }
    let done = if args.repair { Some(mend(&disk, &folder, &report)?) } else { None };
    if args.json {
        println!("{:#}", words::json(&report, done.as_ref()));
    } else {
        print!("{}", words::outcome(&report, done.as_ref(), &args.path));
    }
    Ok(report.is_sound())
}

/// What --repair has done.
struct Done {
    mended: check::Mended,
    index_removed: bool,
}

fn mend(disk: &Arc<dyn Disk>, folder: &Path, report: &Report) -> anyhow::Result<Done> {
    // First: a store that opens with it would believe it.
    let index = folder.join(INDEX_FOLDER);
    let index_removed = index.exists();
    if index_removed {
        std::fs::remove_dir_all(&index)
            .and_then(|()| durable::sync_folder(folder))
            .with_context(|| format!("cannot remove {}", index.display()))?;
    }
    let mended = check::mend(disk, report, system_clock()).context("the repair was not finished")?;
    Ok(Done { mended, index_removed })
}

/// Files that another user makes the node could not use.
fn refuse_strangers(folder: &Path) -> anyhow::Result<()> {
    let owner = std::fs::metadata(folder).with_context(|| format!("cannot look into {}", folder.display()))?.uid();
    if owner != rustix::process::geteuid().as_raw() {
        bail!("{} belongs to the user with number {owner}: run the repair as that user", folder.display());
    }
    Ok(())
}

/// Says from time to time how far it is, to a person.
fn progress() -> impl FnMut(u64, u64) {
    let shown = std::io::stderr().is_terminal();
    let mut last = Instant::now();
    move |done, of| {
        if shown && last.elapsed() >= PROGRESS_INTERVAL {
            last = Instant::now();
            eprintln!("{done} of {of} segments read");
        }
    }
}
