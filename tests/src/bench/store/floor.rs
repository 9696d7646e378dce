//! What the store is measured against: the disk written and read past the page cache, and a file for each shard.

use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use potluck_node::store::Check;
use potluck_proto::buffers::{Buffer, Pool};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::lanes::in_lanes;

/// What addresses, offsets and lengths are a multiple of past the page cache, in bytes.
const BLOCK: usize = 4096;

/// Bytes written with one sync.
const PIECE: usize = 4 << 20;

/// Folders that the files of shards are spread over.
const FOLDERS: usize = 256;

fn direct(options: &mut OpenOptions, path: &Path) -> Result<File> {
    Ok(options.custom_flags(OFlags::DIRECT.bits() as i32).open(path)?)
}

/// Bytes that nothing can compress, where the disk can take them from.
fn noise(len: usize) -> Buffer {
    let mut buffer = Pool::new(0).take(len);
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut buffer);
    buffer
}

/// Writes a new file one piece after the other, each synced, into space that was set aside before.
pub(super) fn sequential(path: &Path, bytes: usize) -> Result<Duration> {
    let file = direct(OpenOptions::new().write(true).create_new(true), path)?;
    fallocate(&file, FallocateFlags::empty(), 0, bytes as u64)?;
    file.sync_all()?;
    let piece = noise(PIECE);
    let began = Instant::now();
    for number in 0..bytes / PIECE {
        file.write_all_at(&piece, (number * PIECE) as u64)?;
        file.sync_data()?;
    }
    Ok(began.elapsed())
}

/// Reads `count` pieces of `len` bytes, each from anywhere in a file, on `readers` threads, and hashes each if it is to be
/// verified.
pub(super) fn random(path: &Path, len: usize, count: usize, readers: usize, check: Check) -> Result<Duration> {
    #[derive(Default)]
    struct Own(Option<(Buffer, StdRng)>);
    let file = direct(OpenOptions::new().read(true), path)?;
    let places = file.metadata()?.len() / len as u64;
    in_lanes(readers, count, |number, own: &mut Own| {
        let (buffer, rng) = own.0.get_or_insert_with(|| (Pool::new(0).take(len), StdRng::seed_from_u64(number as u64)));
        file.read_exact_at(buffer, rng.random_range(0..places) * len as u64)?;
        if check == Check::Here {
            black_box(blake3::hash(buffer));
        }
        Ok(())
    })
}

/// Shards as files of their own, below one folder.
pub(super) struct Files {
    folder: PathBuf,
}

impl Files {
    /// Makes the folders.
    pub(super) fn new(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(folder.join("tmp"))?;
        for number in 0..FOLDERS {
            fs::create_dir_all(folder.join(format!("shards/{number:02x}")))?;
        }
        rustix::fs::syncfs(File::open(&folder)?)?;
        Ok(Self { folder })
    }

    /// Puts `count` shards on `writers` threads, each durable before the next: what stands before a payload and the
    /// payload in a new file, which is synced, then renamed, then its folder is synced.
    pub(super) fn put(&self, front: &[u8], payload: &[u8], count: usize, writers: usize) -> Result<Duration> {
        in_lanes(writers, count, |number, own: &mut Option<Buffer>| {
            let len = front.len() + payload.len();
            let room = len.next_multiple_of(BLOCK);
            let buffer = own.get_or_insert_with(|| Pool::new(0).take(room));
            buffer[..front.len()].copy_from_slice(front);
            buffer[front.len()..len].copy_from_slice(payload);
            buffer[len..].fill(0);
            let temporary = self.folder.join("tmp").join(number.to_string());
            let file = direct(OpenOptions::new().write(true).create_new(true), &temporary)?;
            fallocate(&file, FallocateFlags::empty(), 0, room as u64)?;
            file.write_all_at(buffer, 0)?;
            file.set_len(len as u64)?;
            file.sync_data()?;
            let name = blake3::hash(&number.to_le_bytes()).to_hex();
            let folder = self.folder.join("shards").join(&name[..2]);
            fs::rename(temporary, folder.join(format!("{name}.shard")))?;
            Ok(File::open(folder)?.sync_all()?)
        })
    }
}
