//! Walking a folder of this machine, in the order of names, holding only one branch of it in memory.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::target::join;

/// Something found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// The same from the start of the walk, empty for the start itself, with `/` between parts and none at the end.
    pub(crate) relative: Vec<u8>,
    /// What the system says; of a link inside the walk, of the link itself.
    pub(crate) metadata: Metadata,
}

/// Something that cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
pub(crate) struct Unreadable {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// What the system said.
    pub(crate) error: io::Error,
}

/// A walk: each folder before what is in it.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    exclude: &'a [OsString],
    /// What is still to be visited, next on top.
    stack: Vec<(PathBuf, Vec<u8>)>,
    started: bool,
}

impl<'a> Walk<'a> {
    /// Begins at `start`; what has one of the names in `exclude` is left out, with all that is in it.
    pub(crate) fn new(start: &Path, exclude: &'a [OsString]) -> Self {
        Self { exclude, stack: vec![(start.into(), Vec::new())], started: false }
    }

    fn children(&self, folder: &Path, relative: &[u8]) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
        let mut names: Vec<OsString> =
            fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
        names.retain(|name| !self.exclude.contains(name));
        // The last is visited last: the stack is turned round.
        names.sort_by(|left, right| right.cmp(left));
        Ok(names.into_iter().map(|name| (folder.join(&name), join(relative, name.as_bytes()))).collect())
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Found, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        let (path, relative) = self.stack.pop()?;
        // A link that is named by the user is followed, one that is met on the way is not.
        let looked = if self.started { fs::symlink_metadata(&path) } else { fs::metadata(&path) };
        self.started = true;
        let metadata = match looked {
            Ok(metadata) => metadata,
            Err(error) => return Some(Err(Unreadable { path, error })),
        };
        if metadata.is_dir() {
            match self.children(&path, &relative) {
                Ok(children) => self.stack.extend(children),
                Err(error) => return Some(Err(Unreadable { path, error })),
            }
        }
        Some(Ok(Found { path, relative, metadata }))
    }
}

/// Files, and the bytes in them.
pub(crate) fn measure(start: &Path, exclude: &[OsString]) -> (u64, u64) {
    let found = Walk::new(start, exclude).filter_map(Result::ok).filter(|found| found.metadata.is_file());
    found.fold((0, 0), |(files, bytes), found| (files + 1, bytes + found.metadata.len()))
}

/// The last part of a path that a user gave, also of `.` and `dir/..`; empty for the root.
pub(crate) fn name(path: &Path) -> OsString {
    let own = path.file_name().map(OsStr::to_os_string);
    own.or_else(|| path.canonicalize().ok()?.file_name().map(OsStr::to_os_string)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_their_contents_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        fs::create_dir_all(folder.path().join("target/deep")).unwrap();
        fs::write(folder.path().join("a/b/file"), "12345").unwrap();
        fs::write(folder.path().join("z"), "1").unwrap();
        std::os::unix::fs::symlink("/", folder.path().join("root")).unwrap();
        let exclude = [OsString::from("target")];
        let found: Vec<String> = Walk::new(folder.path(), &exclude)
            .map(|found| String::from_utf8(found.unwrap().relative).unwrap())
            .collect();
        assert_eq!(found, ["", "a", "a/b", "a/b/file", "root", "z"]);
        assert_eq!(measure(folder.path(), &exclude), (2, 6));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let missing = Path::new("/nonexistent/of/potluck");
        assert_eq!(Walk::new(missing, &[]).next().unwrap().unwrap_err().path, missing);
        assert_eq!(name(Path::new("a/b/")), "b");
        assert_eq!(name(Path::new("/")), "");
    }
}
