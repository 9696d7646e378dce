//! Where a copy goes: the rules of `put` and `get`, as functions of names.
//!
//! A folder copied to a name becomes that name, whether it exists or not, so that a second run does the same as the
//! first. To copy *into* a folder one ends it with a slash.

/// What is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source<'a> {
    /// A file of this name; empty if it has none, as standard input.
    File(&'a [u8]),
    /// A folder of this name; empty if it has none, as the vault's root.
    Folder(&'a [u8]),
}

/// The path that a copy gets, or what is wrong, as a sentence.
///
/// `several`: there are more sources than this one. `target_is_folder`: there is a folder at `target`.
pub(super) fn of(
    source: Source<'_>,
    target: &[u8],
    several: bool,
    target_is_folder: bool,
) -> Result<Vec<u8>, &'static str> {
    let last = target.rsplit(|&byte| byte == b'/').next().unwrap_or(target);
    // Of a path that ends in a slash the last part is empty, as of the empty path.
    let says_folder = matches!(last, b"" | b"." | b"..");
    let inside = match source {
        Source::File(_) => several || says_folder || target_is_folder,
        Source::Folder(_) => several || says_folder,
    };
    if !inside {
        return Ok(target.to_vec());
    }
    match source {
        Source::File(b"") => Err("standard input has no name: end the target with a file's name"),
        // A root without a name is poured out.
        Source::Folder(b"") => Ok(target.to_vec()),
        Source::File(name) | Source::Folder(name) => Ok(join(target, name)),
    }
}

/// `folder/name`, without a second slash, and without one where there is no folder.
pub(super) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if folder.is_empty() || folder.ends_with(b"/") || name.is_empty() { b"" } else { b"/" };
    [folder, slash, name].concat()
}

#[cfg(test)]
mod tests {
    use super::{Source, of};

    fn text(source: Source<'_>, target: &str, several: bool, exists: bool) -> String {
        of(source, target.as_bytes(), several, exists)
            .map_or_else(str::to_string, |path| String::from_utf8(path).unwrap())
    }

    #[test]
    fn a_folder_becomes_its_target_every_time() {
        let photos = Source::Folder(b"photos");
        assert_eq!(text(photos, "backup", false, false), "backup");
        assert_eq!(text(photos, "backup", false, true), "backup");
        assert_eq!(text(photos, "backup/", false, true), "backup/photos");
        assert_eq!(text(photos, "/", false, true), "/photos");
        assert_eq!(text(photos, ".", false, true), "./photos");
        assert_eq!(text(photos, "backup", true, false), "backup/photos");
        assert_eq!(text(Source::Folder(b""), "restore", false, false), "restore");
        assert_eq!(text(Source::Folder(b""), ".", false, true), ".");
    }

    #[test]
    fn a_file_goes_into_a_folder_or_gets_the_name() {
        let cat = Source::File(b"cat.jpg");
        assert_eq!(text(cat, "pets", false, false), "pets");
        assert_eq!(text(cat, "pets", false, true), "pets/cat.jpg");
        assert_eq!(text(cat, "pets/", false, false), "pets/cat.jpg");
        assert_eq!(text(cat, "", false, true), "cat.jpg");
        assert_eq!(text(cat, "pets", true, false), "pets/cat.jpg");
        assert!(of(Source::File(b""), b"pets/", false, true).is_err());
        assert_eq!(text(Source::File(b""), "notes.txt", false, false), "notes.txt");
    }
}
