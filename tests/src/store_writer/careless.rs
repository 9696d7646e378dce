//! A disk that syncs nothing: what a store on it acknowledges is in the page cache, and a power cut takes it.
//!
//! It shows that a test of power cuts can fail.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use potluck_node::store::segments::disk::{Disk, DiskFile, FolderDisk, Space};
use potluck_proto::buffers::Pool;

/// Space that it claims to have, in bytes.
const CLAIMED: u64 = 1 << 40;

/// A folder whose files go through the page cache and are never synced.
pub struct CarelessDisk {
    folder: PathBuf,
    names: FolderDisk,
}

struct CarelessFile(File);

impl CarelessDisk {
    /// Makes the folder if it is not there.
    ///
    /// # Errors
    /// It cannot be made, or another process has it.
    pub fn open(folder: &Path) -> io::Result<Self> {
        Ok(Self { folder: folder.into(), names: FolderDisk::open(folder)? })
    }
}

impl Disk for CarelessDisk {
    fn create(&self, name: &str, room: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(self.folder.join(name))?;
        file.set_len(room)?;
        Ok(Arc::new(CarelessFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(CarelessFile(File::open(self.folder.join(name))?)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.names.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.names.rename(from, to)
    }

    fn cut(&self, name: &str, len: u64) -> io::Result<()> {
        self.names.cut(name, len)
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        self.names.unlink(name)
    }

    fn sync_folder(&self) -> io::Result<()> {
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        // It is not for full disks.
        Ok(Space { free: CLAIMED, total: CLAIMED })
    }

    fn pool(&self) -> &Pool {
        self.names.pool()
    }

    fn describe(&self) -> &'static str {
        "through the page cache, and never synced"
    }
}

impl DiskFile for CarelessFile {
    fn write_at(&self, mut offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        for part in parts {
            self.0.write_all_at(part, offset)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    fn read_at(&self, range: Range<u64>) -> io::Result<Bytes> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.0.read_at(&mut bytes[filled..], range.start + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        bytes.truncate(filled);
        Ok(bytes.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}
