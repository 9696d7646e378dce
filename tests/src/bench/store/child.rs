//! The other process of a measurement: this executable again, as [`CHILD`], which fills or opens a store and says on its
//! output what it took.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::stripes::Stripes;
use crate::bench::load::scheme;

/// The bench's argument that makes it the other process.
pub const CHILD: &str = "store-child";

/// Bytes of a payload where only the number of records counts.
const SMALL: usize = 1 << 10;

/// Writers at once: few syncs for many records.
const WRITERS: usize = 64;

/// Reads after the first one, before the memory is looked at.
const READS: usize = 1_000;

/// The stripes that such a store is filled with.
pub(super) fn source() -> Result<Stripes> {
    Ok(Stripes::new(scheme()?, SMALL))
}

/// What the other process says when it is done, in one line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Said {
    /// Seconds from before opening to after the first read.
    pub(super) seconds: f64,
    /// Bytes that the process had more in memory at the end than before opening.
    pub(super) memory: f64,
}

impl Said {
    /// Reads the line.
    pub(super) fn parse(line: &str) -> Result<Self> {
        let (seconds, memory) = line.trim().split_once(' ').context("not two numbers")?;
        Ok(Self { seconds: seconds.parse()?, memory: memory.parse()? })
    }

    fn tell(self) -> Result<()> {
        println!("{} {}", self.seconds, self.memory);
        Ok(std::io::stdout().flush()?)
    }
}

/// `fill FOLDER FROM TO` puts the stripes with these numbers and closes the store; `fill-on` goes on with more until it is
/// killed; `open FOLDER FROM TO` opens it, reads some of them, and closes it.
///
/// # Errors
/// The store fails, or the arguments make no sense.
pub fn main(arguments: &[String]) -> Result<()> {
    let [what, folder, from, to] = arguments else { bail!("what, a folder and two numbers") };
    let (folder, from, to) = (Path::new(folder), from.parse()?, to.parse()?);
    match what.as_str() {
        "fill" => fill(folder, from, to, false),
        "fill-on" => fill(folder, from, to, true),
        "open" => open(folder, from, to),
        _ => bail!("{what:?} is nothing to do"),
    }
}

fn fill(folder: &Path, from: usize, to: usize, on: bool) -> Result<()> {
    let source = source()?;
    let before = memory()?;
    let began = Instant::now();
    let store = super::open(folder)?;
    let seconds = began.elapsed().as_secs_f64();
    // Each writer signs what it puts: stripes that were made before would count as the store's memory.
    let put = |number: usize| {
        let stripe = source.stripe(number);
        (0..source.n()).try_for_each(|index| source.put(&store, &stripe, index))
    };
    super::in_lanes(WRITERS, to - from, |number, ()| put(from + number))?;
    Said { seconds, memory: memory()? - before }.tell()?;
    if on {
        // The parent's end closes its pipe, whatever way it ends.
        std::thread::spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            std::process::exit(0);
        });
        super::in_lanes(WRITERS, usize::MAX / 2, |number, ()| put(to + number))?;
    }
    Ok(())
}

fn open(folder: &Path, from: usize, to: usize) -> Result<()> {
    let source = source()?;
    let mut rng = StdRng::seed_from_u64(1);
    let some: Vec<_> = (0..READS).map(|_| source.stripe(rng.random_range(from..to))).collect();
    // Past the page cache all the same, but for what a file system does that cannot.
    for entry in std::fs::read_dir(folder.join("segments"))? {
        let _ = rustix::fs::fadvise(File::open(entry?.path())?, 0, None, rustix::fs::Advice::DontNeed);
    }
    let before = memory()?;
    let began = Instant::now();
    let store = super::open(folder)?;
    source.read(&store, &some[0], 0)?;
    let seconds = began.elapsed().as_secs_f64();
    for stripe in &some {
        source.read(&store, stripe, rng.random_range(0..source.n()))?;
    }
    Said { seconds, memory: memory()? - before }.tell()
}

/// Bytes of memory that this process has now.
fn memory() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0)
}
