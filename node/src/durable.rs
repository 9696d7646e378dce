//! Small files that must survive a crash: written beside, synced, renamed over, and the folder synced.
//!
//! A reader finds the old contents or the new ones, never a mixture, also while several write the same file: each has a
//! file of its own beside it, and the last to be renamed stays. Which of them is newer is for the writers to settle. Not
//! for shards, which have a store of their own.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Files that are being written beside others, by this process. Names are used again, so that what a crash leaves is
/// overwritten by a later write and never piles up.
static BESIDE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A name beside a file, of one writer alone while this lives.
struct Beside(PathBuf);

impl Beside {
    fn of(path: &Path) -> Self {
        let mut taken = Self::taken();
        let name = |number: usize| {
            let mut name = path.as_os_str().to_owned();
            name.push(if number == 0 { ".new".into() } else { format!(".new{number}") });
            PathBuf::from(name)
        };
        let mut number = 0;
        while !taken.insert(name(number)) {
            number += 1;
        }
        Self(name(number))
    }

    fn taken() -> MutexGuard<'static, BTreeSet<PathBuf>> {
        BESIDE.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        Self::taken().remove(&self.0);
    }
}

/// Replaces the contents of `path`; durable when it returns. The file is readable by its owner only. After an error the
/// file has its old contents, or, if only the folder could not be synced, its new ones, which a crash may take back.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let beside = Beside::of(path);
    let written = write(&beside.0, contents).and_then(|()| fs::rename(&beside.0, path));
    if written.is_err() {
        // What is left of it takes space that may be what was missing.
        let _ = fs::remove_file(&beside.0);
    }
    written.and_then(|()| sync_folder(folder))
}

fn write(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

/// Reads a file whole; `None` if there is none.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(contents) => Ok(Some(contents)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a folder's entries (creations, renames, removals) durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_and_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert_eq!(read(&path).unwrap(), None);
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn many_writers_of_one_file_never_tear_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        std::thread::scope(|scope| {
            for writer in 0..8_u8 {
                let path = &path;
                scope.spawn(move || {
                    for round in 0..20_usize {
                        replace(path, &vec![writer; 10_000 * (1 + usize::from(writer)) + round]).unwrap();
                        let found = read(path).unwrap().unwrap();
                        let length = 10_000 * (1 + usize::from(found[0]));
                        assert!((length..length + 20).contains(&found.len()), "{} bytes of {}", found.len(), found[0]);
                        assert!(found.iter().all(|byte| *byte == found[0]), "two writers in one file");
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_contents_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), b"kept").unwrap();
        assert!(replace(&path, b"new").is_err());
        assert_eq!(fs::read(path.join("inside")).unwrap(), b"kept");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
