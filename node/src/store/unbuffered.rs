//! Files written and read past the page cache (O_DIRECT), where the file system can.
//!
//! Shards are written once and seldom read soon: a copy in the page cache costs processor time and other programs'
//! memory. Such calls must begin and end at blocks, in memory and in the file. What lies so is written as it lies; the
//! rest is gathered in a buffer that does. Reads go to buffers that are used again.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bytes::Bytes;
use potluck_proto::buffers::{PAGE, Pool};
use rustix::fs::{FallocateFlags, OFlags, fallocate};

/// What addresses, offsets and lengths are a multiple of, in bytes: no less than any disk's block.
const BLOCK: usize = PAGE;

/// Bytes written at once.
const PIECE: usize = 1 << 20;

/// Bytes of buffers that are kept for the next use.
const KEPT: usize = 24 << 20;

/// How files below one folder are written and read.
pub(in crate::store) struct Disk {
    direct: bool,
    pool: Pool,
}

impl Disk {
    /// For `folder`, where a file is made and removed to see what the file system can do.
    pub(in crate::store) fn new(folder: &Path) -> io::Result<Self> {
        let disk = Self { direct: true, pool: Pool::new(KEPT) };
        let probe = folder.join("probe");
        let remove = || match std::fs::remove_file(&probe) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        // A start that was cut off may have left one.
        remove()?;
        let probed = disk.create(&probe, BLOCK as u64).and_then(|file| {
            disk.write_at(&file, 0, &[&[0; BLOCK]])?;
            file.sync_data()?;
            disk.read(&disk.open(&probe)?, 0..5)
        });
        remove()?;
        match probed {
            Ok(_) => Ok(disk),
            // A full disk may still be served from: nothing is known, and the page cache works everywhere.
            Err(error) => {
                tracing::info!(%error, "shards go through the page cache: the file system cannot do without");
                Ok(Self { direct: false, ..disk })
            }
        }
    }

    /// For a folder in which nothing is to be written: a file of it, if there is one, shows what the file system can do.
    pub(in crate::store) fn to_read(sample: Option<&Path>) -> Self {
        let disk = Self { direct: true, pool: Pool::new(KEPT) };
        let direct = sample.is_none_or(|path| disk.open(path).and_then(|file| disk.read(&file, 0..1)).is_ok());
        Self { direct, ..disk }
    }

    /// Opens a file for [`Disk::read`].
    pub(in crate::store) fn open(&self, path: &Path) -> io::Result<File> {
        let flags = if self.direct { OFlags::DIRECT } else { OFlags::empty() };
        OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)
    }

    /// Reads a range of a file, less where the file ends.
    pub(in crate::store) fn read(&self, file: &File, range: Range<u64>) -> io::Result<Bytes> {
        let block = BLOCK as u64;
        let from = range.start / block * block;
        let room = (range.end.next_multiple_of(block) - from) as usize;
        let mut buffer = self.pool.take(room);
        let mut filled = 0;
        while filled < room {
            match file.read_at(&mut buffer[filled..room], from + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            // Past the page cache, a part of a block is the end of the file.
            if self.direct && filled % BLOCK != 0 {
                break;
            }
        }
        let skipped = ((range.start - from) as usize).min(filled);
        let end = ((range.end - from) as usize).min(filled).max(skipped);
        Ok(buffer.freeze().slice(skipped..end))
    }

    /// Whether files are written and read past the page cache.
    pub(in crate::store) fn is_direct(&self) -> bool {
        self.direct
    }

    /// The buffers that are read to.
    pub(in crate::store) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Makes a new file for [`Disk::write_at`] that has `room` bytes of the disk for its own. Nothing of it is synced.
    pub(in crate::store) fn create(&self, path: &Path, room: u64) -> io::Result<File> {
        let flags = if self.direct { OFlags::DIRECT } else { OFlags::empty() };
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).custom_flags(flags.bits() as i32).open(path)?;
        match hold_room(&file, room) {
            Ok(()) => Ok(file),
            Err(error) => {
                // It would be in the way of the next try.
                let _ = std::fs::remove_file(path);
                Err(error)
            }
        }
    }

    /// Writes these bytes, whole blocks in all, from a block's beginning on. One writer at a time: it moves the file's
    /// cursor.
    pub(in crate::store) fn write_at(&self, mut file: &File, at: u64, parts: &[&[u8]]) -> io::Result<()> {
        file.seek(SeekFrom::Start(at))?;
        if !self.direct || parts.iter().all(|part| is_aligned(part) && part.len() % BLOCK == 0) {
            let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
            return write_all(file, &mut slices);
        }
        write_through(file, &mut self.pool.take(PIECE), parts)
    }
}

/// Makes the file so long, with blocks of the disk behind it where the file system can.
fn hold_room(file: &File, room: u64) -> io::Result<()> {
    if room == 0 {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, room) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().align_offset(BLOCK) == 0
}

/// Writes all parts, whole blocks together, one after the other by way of the buffer.
fn write_through(file: &File, buffer: &mut [u8], parts: &[&[u8]]) -> io::Result<()> {
    let mut filled = 0;
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(PIECE - filled));
            buffer[filled..filled + now.len()].copy_from_slice(now);
            (filled, rest) = (filled + now.len(), later);
            if filled == PIECE {
                write_all(file, &mut [IoSlice::new(&buffer[..PIECE])])?;
                filled = 0;
            }
        }
    }
    write_all(file, &mut [IoSlice::new(&buffer[..filled])])
}

/// Writes whole blocks. A write that ended inside one cannot be continued past the page cache: it is an error.
fn write_all(mut file: &File, mut bytes: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut bytes, 0);
    while !bytes.is_empty() {
        let written = match file.write_vectored(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            written => written?,
        };
        if written == 0 || written % BLOCK != 0 {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "the disk took a part of a block only"));
        }
        IoSlice::advance_slices(&mut bytes, written);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_are_written_wherever_they_lie() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("probe"), "of a start that was cut off").unwrap();
        let direct = Disk::new(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the probe is removed");
        let buffered = Disk { direct: false, pool: Pool::new(KEPT) };
        let memory: Vec<u8> =
            (0..(3 * PIECE + BLOCK) as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let bytes = &memory[memory.as_ptr().align_offset(BLOCK)..];
        for len in [0, BLOCK, PIECE, PIECE + BLOCK, 3 * PIECE - BLOCK] {
            // The second part begins at a block in memory, in the file, in both, or in neither.
            for (from, split) in [(0, 0), (0, BLOCK), (0, 700), (1, BLOCK), (1, BLOCK - 1)] {
                let (first, second) = bytes[from..][..len].split_at(split.min(len));
                let mut expected = vec![0; BLOCK];
                expected.extend_from_slice(&bytes[from..][..len]);
                for disk in [&direct, &buffered] {
                    let path = folder.path().join("file");
                    let file = disk.create(&path, 0).unwrap();
                    disk.write_at(&file, BLOCK as u64, &[first, second]).unwrap();
                    let len = if len == 0 { 0 } else { BLOCK + len };
                    assert!(std::fs::read(&path).unwrap() == expected[..len], "{len} bytes, direct: {}", disk.direct);
                    let file = disk.open(&path).unwrap();
                    for range in [
                        0..len,
                        1..len.max(1),
                        0..len + 5,
                        BLOCK..2 * BLOCK,
                        len..len + 1,
                        len + BLOCK..len + 2 * BLOCK,
                    ] {
                        let part = &expected[..len][range.start.min(len)..range.end.min(len)];
                        let read = disk.read(&file, range.start as u64..range.end as u64).unwrap();
                        assert!(read == part, "{range:?} of {len} bytes, direct: {}", disk.direct);
                    }
                    assert!(disk.create(&path, 0).is_err(), "a file that is there is not written over");
                    std::fs::remove_file(path).unwrap();
                }
            }
        }
        // A file that has room has its length; one that is cut inside a block is read to its end.
        for disk in [&direct, &buffered] {
            let path = folder.path().join("file");
            let file = disk.create(&path, 2 * BLOCK as u64).unwrap();
            assert!(*disk.read(&file, 0..3 * BLOCK as u64).unwrap() == [0; 2 * BLOCK]);
            file.set_len(700).unwrap();
            assert!(*disk.read(&file, 699..5000).unwrap() == [0]);
            std::fs::remove_file(path).unwrap();
        }
    }
}
