//! `potluck get` and `potluck cat`: files of the vault onto this machine.
//!
//! A file is written beside its place under another name and renamed when it is whole. Nothing is ever written through a
//! link that lies below the target: links are made last, and folders on the way are looked at.

use std::ffi::{OsStr, OsString};
use std::fs::{self, FileTimes, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;

use super::context::Context;
use super::failure::Usage;
use super::human;
use super::meter::Meter;
use super::options::Options;
use super::target::{self, Source};
use crate::session::{FileReader, Reader, SessionError};
use crate::vault::entry::{Entry, Kind};
use crate::vault::path;

/// Permissions that are restored: those for reading, writing and executing, never set-user-id.
const MODE_MASK: u32 = 0o777;

/// Most files left out that are named one by one.
const NAMED: u64 = 20;

/// Options of `get`.
#[derive(Debug, Args)]
#[command(
    after_help = "A folder got to a name becomes that name; end the target with a slash to get it into a folder."
)]
pub(super) struct Get {
    /// Path in the vault
    #[arg(value_name = "SRC")]
    source: OsString,
    /// Where on this machine; - is standard output
    #[arg(value_name = "DST", default_value = ".")]
    target: PathBuf,
    /// Get folders with all that is in them
    #[arg(long, short)]
    recursive: bool,
    /// Fail rather than read a state that may not be the newest
    #[arg(long)]
    certain: bool,
    #[command(flatten)]
    pub(super) options: Options,
}

/// Options of `cat`.
#[derive(Debug, Args)]
pub(super) struct Cat {
    /// Paths in the vault
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
    /// Fail rather than read a state that may not be the newest
    #[arg(long)]
    certain: bool,
    #[command(flatten)]
    pub(super) options: Options,
}

/// What there is at a path, or that there is nothing.
pub(super) async fn find(reader: &Reader, path: &OsStr) -> Result<(Bytes, Entry), SessionError> {
    let missing = || SessionError::NotFound(human::name(path.as_bytes()));
    reader.lookup(path.as_bytes()).await?.ok_or_else(missing)
}

pub(super) async fn cat(context: &Context<'_>, cat: Cat) -> anyhow::Result<u8> {
    let session = context.open().await?;
    let state = context.state(&session, cat.certain).await?;
    let reader = session.reader(&state);
    for path in &cat.paths {
        write_out(&reader, path).await?;
    }
    session.close().await;
    Ok(0)
}

async fn write_out(reader: &Reader, path: &OsStr) -> anyhow::Result<()> {
    let (_, entry) = find(reader, path).await?;
    if entry.kind == Kind::Dir {
        return Err(SessionError::WrongKind { path: human::name(path.as_bytes()), is: "a folder, not a file" }.into());
    }
    let mut stream = reader.open(entry).stream(0..u64::MAX);
    while let Some(bytes) = stream.next().await {
        // A pipe's reader may be slow; meanwhile the network goes on on other threads.
        let bytes = bytes?;
        tokio::task::block_in_place(|| io::stdout().lock().write_all(&bytes))?;
    }
    io::stdout().lock().flush()?;
    Ok(())
}

pub(super) async fn get(context: &Context<'_>, get: Get) -> anyhow::Result<u8> {
    let session = context.open().await?;
    let state = context.state(&session, get.certain).await?;
    let reader = session.reader(&state);
    if get.target == Path::new("-") {
        write_out(&reader, &get.source).await?;
        session.close().await;
        return Ok(0);
    }
    let (key, entry) = find(&reader, &get.source).await?;
    let is_dir = entry.kind == Kind::Dir;
    if is_dir && !get.recursive {
        let path = human::name(get.source.as_bytes());
        return Err(Usage(format!("{path} is a folder: add -r to get it with all that is in it")).into());
    }
    let name = path::name(&key);
    let what = if is_dir { Source::Folder(name) } else { Source::File(name) };
    let place = target::of(what, get.target.as_os_str().as_bytes(), false, get.target.is_dir());
    let place = PathBuf::from(OsString::from_vec(place.map_err(|why| Usage(why.into()))?));
    let total = if context.screen.draws() { size_of(&reader, &key, &entry).await? } else { 0 };
    let meter = Meter::bytes(context.screen, "fetching", total);
    let begun = Instant::now();
    let mut restore = Restore { reader: &reader, context, meter: &meter, done: Done::default(), safe: PathBuf::new() };
    if is_dir {
        restore.folder(&key, &entry, &place).await?;
    } else {
        restore.one(&key, entry, &place).await?;
    }
    let done = restore.done;
    drop(meter);
    let time = begun.elapsed();
    if context.screen.json {
        context.screen.object(&serde_json::json!({
            "files": done.files,
            "bytes": done.bytes,
            "left_out": done.left_out,
            "seconds": time.as_secs_f64(),
            "target": place.to_string_lossy(),
        }))?;
    } else {
        context.screen.remark(format!(
            "fetched {}, {} in {}",
            human::count(done.files, "file"),
            human::size(done.bytes),
            human::pace(done.bytes, time)
        ))?;
    }
    if done.left_out > 0 {
        context.screen.warn(format!("{} left out", human::count(done.left_out, "file")));
    }
    session.close().await;
    Ok(if done.left_out > 0 { 3 } else { 0 })
}

async fn size_of(reader: &Reader, key: &Bytes, entry: &Entry) -> Result<u64, SessionError> {
    if entry.kind != Kind::Dir {
        return Ok(entry.size);
    }
    let (mut scan, mut bytes) = (reader.scan(key.clone()), 0);
    while let Some((_, entry)) = scan.next().await? {
        bytes += entry.size;
    }
    Ok(bytes)
}

#[derive(Debug, Default)]
struct Done {
    files: u64,
    bytes: u64,
    left_out: u64,
}

/// Why one thing was not restored.
enum Failed {
    /// It is left out, the others go on.
    LeftOut(String),
    /// So with this path of this machine.
    Here(PathBuf, io::Error),
    /// Nothing goes on.
    All(anyhow::Error),
}

/// The system did not do what was asked for at a path of this machine.
fn at(path: &Path) -> impl FnOnce(io::Error) -> Failed + '_ {
    move |error| {
        // A full disk is full for the others too.
        let full = matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
        );
        if full {
            let what = format!("cannot write {}", path.display());
            Failed::All(anyhow::Error::new(error).context(what))
        } else {
            Failed::Here(path.into(), error)
        }
    }
}

impl From<SessionError> for Failed {
    fn from(error: SessionError) -> Self {
        match error {
            // Other files may lie in other stripes.
            SessionError::Read(_) | SessionError::Vault(_) => Failed::LeftOut(error.to_string()),
            other => Failed::All(other.into()),
        }
    }
}

struct Restore<'a> {
    reader: &'a Reader,
    context: &'a Context<'a>,
    meter: &'a Meter,
    done: Done,
    /// The folder last made or looked at: no link is on the way to it.
    safe: PathBuf,
}

impl Restore<'_> {
    /// One file or link; what goes wrong ends the command.
    async fn one(&mut self, key: &Bytes, entry: Entry, place: &Path) -> anyhow::Result<()> {
        let made = match entry.kind {
            Kind::Symlink => self.link(&entry, place).await,
            _ => self.file(entry, place).await,
        };
        match made {
            Ok(()) => Ok(()),
            Err(Failed::LeftOut(why)) => Err(anyhow::anyhow!("{}: {why}", human::name(key))),
            Err(Failed::Here(path, error)) => {
                Err(anyhow::Error::new(error).context(format!("cannot write {}", path.display())))
            }
            Err(Failed::All(error)) => Err(error),
        }
    }

    async fn folder(&mut self, key: &Bytes, entry: &Entry, place: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(place).with_context(|| format!("cannot make the folder {}", place.display()))?;
        let mut scan = self.reader.scan(key.clone());
        // Links are made last, and folders get their times when nothing more is made in them.
        let (mut links, mut folders) = (Vec::new(), vec![(place.to_path_buf(), entry.clone())]);
        while let Some((found, entry)) = scan.next().await? {
            let relative = found.get(key.len()..).unwrap_or_default();
            if relative.is_empty() {
                continue;
            }
            let made = match (safe_path(relative), entry.kind) {
                (None, _) => Err(Failed::LeftOut("this path would lead out of the target".into())),
                (Some(relative), Kind::Dir) => {
                    let made = self.make_folder(place, &relative);
                    folders.push((place.join(relative), entry));
                    made
                }
                (Some(relative), Kind::Symlink) => {
                    links.push((found.clone(), relative, entry));
                    Ok(())
                }
                (Some(relative), Kind::File) => {
                    match self.make_folder(place, relative.parent().unwrap_or(Path::new(""))) {
                        Ok(()) => self.file(entry, &place.join(relative)).await,
                        Err(failed) => Err(failed),
                    }
                }
                (Some(_), Kind::Other(kind)) => {
                    Err(Failed::LeftOut(format!("a newer Potluck is needed for this kind of thing ({kind})")))
                }
            };
            self.note(&found, made)?;
        }
        for (found, relative, entry) in links {
            let made = match self.make_folder(place, relative.parent().unwrap_or(Path::new(""))) {
                Ok(()) => self.link(&entry, &place.join(relative)).await,
                Err(failed) => Err(failed),
            };
            self.note(&found, made)?;
        }
        for (folder, entry) in folders.iter().rev() {
            // What was left out has no folder, perhaps; the times of the others are a nicety.
            if let Err(error) = restore_meta(folder, entry) {
                tracing::debug!(folder = %folder.display(), %error, "the folder's time or permissions were not restored");
            }
        }
        Ok(())
    }

    fn note(&mut self, key: &Bytes, made: Result<(), Failed>) -> anyhow::Result<()> {
        let why = match made {
            Ok(()) => return Ok(()),
            Err(Failed::All(error)) => return Err(error.context(format!("while fetching {}", human::name(key)))),
            Err(Failed::LeftOut(why)) => why,
            Err(Failed::Here(path, error)) => format!("cannot write {}: {error}", path.display()),
        };
        self.done.left_out += 1;
        if self.done.left_out <= NAMED {
            self.meter.aside(|| self.context.screen.warn(format!("left out: {}: {why}", human::name(key))));
        }
        Ok(())
    }

    /// Makes the folders of `relative` below `place`, and refuses if one of them is a link.
    fn make_folder(&mut self, place: &Path, relative: &Path) -> Result<(), Failed> {
        let whole = place.join(relative);
        if whole == self.safe {
            return Ok(());
        }
        let mut folder = place.to_path_buf();
        for part in relative {
            folder.push(part);
            match fs::symlink_metadata(&folder) {
                Ok(there) if there.is_dir() => {}
                Ok(_) => return Err(Failed::LeftOut(format!("{} is in the way", folder.display()))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir(&folder).map_err(at(&folder))?
                }
                Err(error) => return Err(at(&folder)(error)),
            }
        }
        self.safe = whole;
        Ok(())
    }

    async fn file(&mut self, entry: Entry, place: &Path) -> Result<(), Failed> {
        if fs::symlink_metadata(place).is_ok_and(|there| there.is_dir()) {
            return Err(Failed::LeftOut(format!("there is a folder at {}", place.display())));
        }
        let beside = Beside::new(place).map_err(at(place))?;
        let reader: FileReader = self.reader.open(entry.clone());
        let mut stream = reader.stream(0..u64::MAX);
        while let Some(bytes) = stream.next().await {
            let bytes = bytes?;
            tokio::task::block_in_place(|| (&beside.file).write_all(&bytes)).map_err(at(place))?;
            self.meter.add(bytes.len() as u64);
        }
        restore_meta(&beside.path, &entry).map_err(at(place))?;
        beside.finish(place).map_err(at(place))?;
        self.done.files += 1;
        self.done.bytes += entry.size;
        Ok(())
    }

    async fn link(&mut self, entry: &Entry, place: &Path) -> Result<(), Failed> {
        let target = self.reader.open(entry.clone()).read_at(0, crate::vault::entry::TARGET_LIMIT).await?;
        let target = OsString::from_vec(target.to_vec());
        match fs::symlink_metadata(place) {
            Ok(there) if there.is_dir() => {
                return Err(Failed::LeftOut(format!("there is a folder at {}", place.display())));
            }
            Ok(_) => fs::remove_file(place).map_err(at(place))?,
            Err(_) => {}
        }
        std::os::unix::fs::symlink(target, place).map_err(at(place))?;
        self.done.files += 1;
        Ok(())
    }
}

/// A key's rest as a path that stays below where it begins; `None` if it would not.
fn safe_path(relative: &[u8]) -> Option<PathBuf> {
    let key = path::file(relative).ok()?;
    // Only one slash, at the end, may have been dropped.
    let unchanged = relative.strip_suffix(b"/").unwrap_or(relative) == &key[..];
    unchanged.then(|| PathBuf::from(OsString::from_vec(key.to_vec())))
}

fn restore_meta(path: &Path, entry: &Entry) -> io::Result<()> {
    if entry.mtime_ns > 0 {
        let time = UNIX_EPOCH + Duration::from_nanos(entry.mtime_ns.unsigned_abs());
        fs::File::open(path)?.set_times(FileTimes::new().set_modified(time))?;
    }
    if entry.mode != 0 {
        fs::set_permissions(path, Permissions::from_mode(entry.mode & MODE_MASK))?;
    }
    Ok(())
}

/// A file that is being written, beside the place where it will be; gone if it is dropped before.
struct Beside {
    path: PathBuf,
    file: fs::File,
    finished: bool,
}

impl Beside {
    fn new(place: &Path) -> io::Result<Self> {
        let own = place.file_name().unwrap_or_default();
        // Names have a limit of 255 bytes; what is cut off the end is made up for by the process's number.
        let kept = &own.as_bytes()[..own.len().min(200)];
        let name = [b".", kept, format!(".potluck-{}", std::process::id()).as_bytes()].concat();
        let path = place.with_file_name(OsString::from_vec(name));
        let _ = fs::remove_file(&path);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { path, file, finished: false })
    }

    fn finish(mut self, place: &Path) -> io::Result<()> {
        fs::rename(&self.path, place)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_target() {
        assert_eq!(safe_path(b"a/b"), Some("a/b".into()));
        assert_eq!(safe_path(b"a/b/"), Some("a/b".into()));
        for bad in [&b"../a"[..], b"/etc/passwd", b"a//b", b"a/../../b", b"", b"a\0b"] {
            assert_eq!(safe_path(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let place = Path::new("/nosuch/dir/x");
        let failed = Beside::new(place).map_err(at(place)).err().unwrap();
        assert!(
            matches!(failed, Failed::Here(path, error) if path == place && error.kind() == io::ErrorKind::NotFound)
        );
    }

    #[test]
    fn half_a_file_vanishes_and_a_whole_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("x".repeat(255));
        drop(Beside::new(&place).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let beside = Beside::new(&place).unwrap();
        (&beside.file).write_all(b"whole").unwrap();
        beside.finish(&place).unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
