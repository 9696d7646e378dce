//! The floor of the disk: a file per shard, written so that it is there after a power cut, and read again.
//!
//! Writing is what one node must do for a put that it acknowledges: create, write, fsync, rename, fsync of the folder. Reading is
//! from the page cache, as it is in a run that reads what was just written.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Writers, or readers, at once: a folder each, as nodes have.
pub(super) const LANES: usize = 8;

/// Writes `count` files of `length` bytes below `folder`, which must be empty.
///
/// # Errors
/// The disk fails or is full.
pub(super) fn write(folder: &Path, count: usize, length: usize) -> Result<Duration> {
    for lane in 0..LANES {
        fs::create_dir(folder.join(lane.to_string()))?;
    }
    let bytes = vec![0xa5; length];
    let began = Instant::now();
    in_lanes(count, |number, _| {
        let path = path(folder, number);
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(path.parent().context("a file in no folder")?)?.sync_all()?;
        Ok(())
    })?;
    Ok(began.elapsed())
}

/// Reads the first `count` of the files that [`write`] made.
///
/// # Errors
/// The disk fails.
pub(super) fn read(folder: &Path, count: usize) -> Result<Duration> {
    let began = Instant::now();
    in_lanes(count, |number, buffer| {
        buffer.clear();
        File::open(path(folder, number))?.read_to_end(buffer)?;
        Ok(())
    })?;
    Ok(began.elapsed())
}

fn path(folder: &Path, number: usize) -> PathBuf {
    folder.join((number % LANES).to_string()).join(format!("{number}.shard"))
}

/// Runs `work` for 0..count on [`LANES`] threads, each with a buffer of its own.
fn in_lanes(count: usize, work: impl Fn(usize, &mut Vec<u8>) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let lane = || {
        let mut buffer = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            work(number, &mut buffer)?;
        }
    };
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().try_for_each(|lane| lane.join().map_err(|_| anyhow::anyhow!("a lane panicked"))?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), 20, 1000).unwrap();
        read(folder.path(), 20).unwrap();
        assert_eq!(fs::metadata(path(folder.path(), 19)).unwrap().len(), 1000);
        assert!(read(folder.path(), 21).is_err(), "a missing file is noticed");
    }
}
