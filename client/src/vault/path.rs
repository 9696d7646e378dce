//! Paths: the keys of a tree.
//!
//! A key is bytes, without a leading slash. A directory's key ends in `/`, so that it sorts right before what is in it
//! and a listing by prefix is exact S3 order. The tree takes any key; what people and file systems name passes through
//! [`file()`] and [`dir()`], which refuse whatever could lead out of a folder that is restored into.

use bytes::Bytes;

/// Longest path, in bytes.
pub const PATH_LIMIT: usize = 4096;

/// Why a path is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It names nothing.
    #[error("an empty path names no file")]
    Empty,
    /// Longer than [`PATH_LIMIT`].
    #[error("a path of {0} bytes is longer than the limit of {PATH_LIMIT}")]
    TooLong(usize),
    /// It has a part that a file system would take for something else.
    #[error("the path {0:?} has a part that is empty, `.`, `..` or holds a zero byte")]
    Part(String),
}

/// Checks what the tree itself asks of a key: 1 to [`PATH_LIMIT`] bytes.
pub fn check_key(key: &[u8]) -> Result<(), PathError> {
    match key.len() {
        0 => Err(PathError::Empty),
        len if len > PATH_LIMIT => Err(PathError::TooLong(len)),
        _ => Ok(()),
    }
}

fn normal(path: &[u8], end: &[u8]) -> Result<Bytes, PathError> {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let path = path.strip_suffix(b"/").unwrap_or(path);
    check_key(path)?;
    let bad = |part: &[u8]| part.is_empty() || part == b"." || part == b".." || part.contains(&0);
    if path.split(|&byte| byte == b'/').any(bad) {
        return Err(PathError::Part(String::from_utf8_lossy(path).into_owned()));
    }
    let key = [path, end].concat();
    check_key(&key)?;
    Ok(key.into())
}

/// The key of the file at `path`; a leading or trailing slash is dropped.
pub fn file(path: impl AsRef<[u8]>) -> Result<Bytes, PathError> {
    normal(path.as_ref(), b"")
}

/// The key of the directory at `path`, also the prefix of all that is in it. The root (`""` or `/`) has the empty
/// prefix, which is no key.
pub fn dir(path: impl AsRef<[u8]>) -> Result<Bytes, PathError> {
    match path.as_ref() {
        b"" | b"/" => Ok(Bytes::new()),
        path => normal(path, b"/"),
    }
}

/// The key of the directory that would have the name of the file with this key.
#[must_use]
pub fn dir_of(key: &[u8]) -> Bytes {
    [key, b"/"].concat().into()
}

/// The last part of a key, without a directory's slash.
#[must_use]
pub fn name(key: &[u8]) -> &[u8] {
    let key = key.strip_suffix(b"/").unwrap_or(key);
    key.rsplit(|&byte| byte == b'/').next().unwrap_or(key)
}

/// The prefix of the directory that a key is in; empty at the root.
#[must_use]
pub fn parent(key: &[u8]) -> &[u8] {
    let inner = key.strip_suffix(b"/").unwrap_or(key);
    &key[..inner.len() - name(inner).len()]
}

/// The first key after all keys that begin with `prefix`; `None` if there is no such (the prefix is empty or all 0xff).
#[must_use]
pub fn after_prefix(prefix: &[u8]) -> Option<Bytes> {
    let end = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut bytes = prefix[..=end].to_vec();
    bytes[end] += 1;
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::{PathError, after_prefix, dir, file, name, parent};

    #[test]
    fn keys_of_paths() {
        assert_eq!(file("/a/b").as_deref(), Ok(&b"a/b"[..]));
        assert_eq!(dir("a/b").as_deref(), Ok(&b"a/b/"[..]));
        assert_eq!(dir("/").as_deref(), Ok(&b""[..]));
        assert_eq!(file("/"), Err(PathError::Empty));
        for bad in ["a//b", "../a", "a/./b", "a/..", "a\0b", "//a"] {
            assert!(matches!(file(bad), Err(PathError::Part(_))), "{bad:?}");
        }
        assert_eq!(dir("x".repeat(4096)), Err(PathError::TooLong(4097)));
    }

    #[test]
    fn parts_of_keys() {
        assert_eq!((name(b"a/b/c"), parent(b"a/b/c")), (&b"c"[..], &b"a/b/"[..]));
        assert_eq!((name(b"a/b/"), parent(b"a/b/")), (&b"b"[..], &b"a/"[..]));
        assert_eq!((name(b"a"), parent(b"a")), (&b"a"[..], &b""[..]));
        assert_eq!(after_prefix(b"a/").as_deref(), Some(&b"a0"[..]));
        assert_eq!(after_prefix(b"a\xff").as_deref(), Some(&b"b"[..]));
        assert_eq!(after_prefix(b"\xff"), None);
    }
}
