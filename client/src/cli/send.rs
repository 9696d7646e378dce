//! `potluck put`: files, folders and standard input into the vault.
//!
//! A file whose size and time are those in the vault is not read again. What cannot be read is named and left out; the
//! rest is stored. Everything becomes visible at once, when the commit is acknowledged, except that a put of more than ten
//! minutes commits the files that it has stored every ten minutes.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;

use super::context::Context;
use super::failure::Usage;
use super::local::{Found, Walk, measure, name};
use super::meter::Meter;
use super::options::Options;
use super::target::{self, Source};
use super::{human, screen::Screen};
use crate::session::{
    CHECKPOINT_INTERVAL, Committed, Meta, Preparing, Progress, Reader, Session, SessionError, Stored, Writer,
};
use crate::vault::entry::{Entry, Kind};
use crate::vault::path;

/// Most files left out that are named one by one.
const NAMED: u64 = 20;

/// Options of `put`.
#[derive(Debug, Args)]
#[command(
    after_help = "A folder put to a name becomes that name: 'put -r photos backup' makes backup/cat.jpg, however \
often it is run.\nEnd the target with a slash to put into it: 'put -r photos backup/' makes backup/photos/cat.jpg."
)]
pub(super) struct Put {
    /// Files or, with -r, folders of this machine; - is standard input
    #[arg(required = true, num_args = 1.., value_name = "SRC")]
    pub(super) sources: Vec<PathBuf>,
    /// Where in the vault
    #[arg(value_name = "DST")]
    pub(super) target: OsString,
    /// Put folders with all that is in them
    #[arg(long, short)]
    recursive: bool,
    /// Leave out files and folders of this name; may be repeated
    #[arg(long, value_name = "NAME")]
    exclude: Vec<OsString>,
    /// Read every file, also one whose size and time are those in the vault
    #[arg(long)]
    reread: bool,
    #[command(flatten)]
    pub(super) options: Options,
}

/// What a put did, apart from the commit.
#[derive(Debug, Default)]
struct Done {
    files: u64,
    unchanged: u64,
    bytes: u64,
    left_out: u64,
}

/// A source and where it goes.
struct Errand {
    source: PathBuf,
    key: Bytes,
}

pub(super) async fn put(context: &Context<'_>, put: Put) -> anyhow::Result<u8> {
    let stdin = Path::new("-");
    for source in put.sources.iter().filter(|source| **source != stdin) {
        let metadata = std::fs::metadata(source).with_context(|| format!("cannot read {}", source.display()))?;
        if metadata.is_dir() && !put.recursive {
            return Err(
                Usage(format!("{} is a folder: add -r to put it with all that is in it", source.display())).into()
            );
        }
    }
    let session = context.open().await?;
    let mut writer = context.writer(&session).await?;
    let reader = session.reader(writer.base());
    let errands = errands(&put, &reader).await?;
    let total = if context.screen.draws() {
        errands
            .iter()
            .filter(|errand| errand.source != stdin)
            .map(|errand| measure(&errand.source, &put.exclude).1)
            .sum()
    } else {
        0
    };
    let progress = Arc::new(Progress::default());
    progress.total.store(total, Ordering::Relaxed);
    let mut meter = Meter::bytes(context.screen, "storing", total);
    meter.follow(&progress);
    let begun = Instant::now();
    let mut upload = Upload {
        put: &put,
        screen: context.screen,
        meter: &meter,
        progress: &progress,
        done: Done::default(),
        begun: VecDeque::new(),
    };
    for errand in &errands {
        if errand.source == stdin {
            upload.file(&mut writer, errand.key.clone(), Meta::default(), standard_input()?).await?;
            upload.checkpoint(&mut writer).await?;
        } else {
            upload.tree(&mut writer, errand).await?;
        }
    }
    let done = upload.done;
    meter.say("committing");
    let committed = writer.commit().await?;
    drop(meter);
    tell(context.screen, &session, &done, &progress, &committed, begun.elapsed())?;
    session.close().await;
    Ok(if done.left_out > 0 { 3 } else { 0 })
}

/// Standard input as a file of its own: what was not read of it stays where it is.
fn standard_input() -> std::io::Result<File> {
    Ok(std::io::stdin().as_fd().try_clone_to_owned()?.into())
}

/// Where each source goes.
async fn errands(put: &Put, reader: &Reader) -> anyhow::Result<Vec<Errand>> {
    let target = put.target.as_bytes();
    let is_folder = match reader.lookup(target).await? {
        Some((key, _)) => key.is_empty() || key.ends_with(b"/"),
        None => false,
    };
    let several = put.sources.len() > 1;
    let mut errands = Vec::new();
    for source in &put.sources {
        let own = if source == Path::new("-") { OsString::new() } else { name(source) };
        let what = if source.is_dir() { Source::Folder(own.as_bytes()) } else { Source::File(own.as_bytes()) };
        let place = target::of(what, target, several, is_folder).map_err(|why| Usage(why.into()))?;
        // A folder may be poured into the root, a file needs a name.
        let root = matches!(what, Source::Folder(_)) && matches!(&place[..], b"" | b"/");
        let key = if root { Bytes::new() } else { path::file(&place).map_err(SessionError::from)? };
        errands.push(Errand { source: source.clone(), key });
    }
    Ok(errands)
}

/// Small files that are read at once.
const AHEAD: usize = 32;

/// A file of a folder that is being read.
struct Begun {
    key: Bytes,
    meta: Meta,
    path: PathBuf,
    /// It is in a folder that was named, not named itself.
    inside: bool,
    source: Preparing<File>,
}

struct Upload<'a> {
    put: &'a Put,
    screen: &'a Screen,
    meter: &'a Meter,
    progress: &'a Arc<Progress>,
    done: Done,
    /// Files that are being read, in order.
    begun: VecDeque<Begun>,
}

impl Upload<'_> {
    async fn tree(&mut self, writer: &mut Writer, errand: &Errand) -> anyhow::Result<()> {
        for found in Walk::new(&errand.source, &self.put.exclude) {
            match found {
                Ok(found) => {
                    let key = target::join(&errand.key, &found.relative);
                    let (inside, path) = (!found.relative.is_empty(), found.path.clone());
                    let done = self.found(writer, found, key).await;
                    self.settle(done, inside, &path)?;
                }
                Err(unreadable) => self.leave_out(&unreadable.to_string()),
            }
            while self.begun.len() >= AHEAD {
                self.store_next(writer).await?;
            }
            self.checkpoint(writer).await?;
        }
        while !self.begun.is_empty() {
            self.store_next(writer).await?;
            self.checkpoint(writer).await?;
        }
        Ok(())
    }

    /// What was named itself is an error; of a folder the rest is stored.
    fn settle(&mut self, done: Result<(), SessionError>, inside: bool, path: &Path) -> Result<(), SessionError> {
        match done {
            Err(error @ SessionError::WrongKind { .. }) if inside => {
                self.leave_out(&format!("{}: in the vault {error}", path.display()));
                Ok(())
            }
            Err(SessionError::Source(error)) => {
                self.leave_out(&format!("{}: {error}", path.display()));
                Ok(())
            }
            other => other,
        }
    }

    /// Stores the file that was begun first.
    async fn store_next(&mut self, writer: &mut Writer) -> Result<(), SessionError> {
        let Some(Begun { key, meta, path, inside, source }) = self.begun.pop_front() else { return Ok(()) };
        let stored = writer.put_prepared(key, meta, source, self.progress).await;
        let done = stored.map(|stored| self.count(&stored));
        self.settle(done, inside, &path)
    }

    /// Commits what a long put has stored so far. That this cannot be now is no reason to give up: the next one may do.
    async fn checkpoint(&self, writer: &mut Writer) -> Result<(), SessionError> {
        match writer.checkpoint_if_due(CHECKPOINT_INTERVAL, self.progress).await {
            Err(error @ (SessionError::NoQuorum(_) | SessionError::Head(_) | SessionError::Contended { .. })) => {
                self.meter.aside(|| self.screen.warn(format!("what is stored so far is not committed yet: {error}")));
                Ok(())
            }
            other => other.map(drop),
        }
    }

    async fn found(&mut self, writer: &mut Writer, found: Found, key: Vec<u8>) -> Result<(), SessionError> {
        let (kind, meta) = (found.metadata.file_type(), meta(&found.metadata));
        if kind.is_dir() {
            let key = path::dir(&key).map_err(SessionError::from)?;
            // The root has no entry of its own.
            if !key.is_empty() {
                let entry = Entry { mode: meta.mode, mtime_ns: meta.mtime_ns, ..Entry::dir() };
                writer.put_entry(key, entry).await?;
            }
            return Ok(());
        }
        let key = match path::file(&key) {
            Ok(key) => key,
            Err(error) => {
                self.leave_out(&format!("{}: {error}", found.path.display()));
                return Ok(());
            }
        };
        if kind.is_symlink() {
            match std::fs::read_link(&found.path) {
                Ok(link) => {
                    let entry = Entry::symlink(link.into_os_string().into_vec());
                    writer.put_entry(key, Entry { mode: meta.mode, mtime_ns: meta.mtime_ns, ..entry }).await?;
                }
                Err(error) => self.leave_out(&format!("{}: {error}", found.path.display())),
            }
            return Ok(());
        }
        if !kind.is_file() {
            self.leave_out(&format!("{}: neither a file nor a folder nor a link", found.path.display()));
            return Ok(());
        }
        if !self.put.reread && same(writer.get(&key).await?.as_ref(), &found.metadata) {
            self.done.unchanged += 1;
            self.progress.bytes_read.fetch_add(found.metadata.len(), Ordering::Relaxed);
            return Ok(());
        }
        match File::open(&found.path) {
            Ok(file) => {
                let (inside, source) = (!found.relative.is_empty(), writer.prepare(file));
                self.begun.push_back(Begun { key, meta, path: found.path, inside, source });
            }
            Err(error) => self.leave_out(&format!("{}: {error}", found.path.display())),
        }
        Ok(())
    }

    async fn file(
        &mut self,
        writer: &mut Writer,
        key: Bytes,
        meta: Meta,
        source: impl Read + Send + 'static,
    ) -> Result<(), SessionError> {
        let stored = writer.put_file(key, meta, source, self.progress).await?;
        self.count(&stored);
        Ok(())
    }

    fn count(&mut self, stored: &Stored) {
        self.done.files += 1;
        self.done.bytes += stored.size;
    }

    fn leave_out(&mut self, why: &str) {
        self.done.left_out += 1;
        match self.done.left_out {
            1..=NAMED => self.meter.aside(|| self.screen.warn(format!("left out: {why}"))),
            count if count == NAMED + 1 => self.meter.aside(|| self.screen.warn("left out: more, not named here")),
            _ => {}
        }
    }
}

/// What the vault keeps of a file beside its bytes.
fn meta(metadata: &Metadata) -> Meta {
    let mtime_ns = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    Meta { mode: metadata.mode() & 0o7777, mtime_ns }
}

/// Whether a file is, by size and time, the one that the vault has.
fn same(stored: Option<&Entry>, metadata: &Metadata) -> bool {
    let meta = meta(metadata);
    stored.is_some_and(|entry| {
        entry.kind == Kind::File
            && entry.size == metadata.len()
            && entry.mtime_ns == meta.mtime_ns
            && entry.mtime_ns != 0
            && entry.mode == meta.mode
    })
}

fn tell(
    screen: &Screen,
    session: &Session,
    done: &Done,
    progress: &Progress,
    committed: &Committed,
    time: Duration,
) -> anyhow::Result<()> {
    let new = progress.bytes_new.load(Ordering::Relaxed);
    let scheme = session.scheme();
    if screen.json {
        screen.object(&serde_json::json!({
            "files": done.files,
            "unchanged": done.unchanged,
            "left_out": done.left_out,
            "bytes": done.bytes,
            "new_bytes": new,
            "stored_bytes": committed.bytes_stored,
            "stripes": committed.stripes,
            "seconds": time.as_secs_f64(),
            "scheme": scheme.to_string(),
            "losses_survived": committed.losses_survived,
            "degraded": committed.degraded,
            "committed": !committed.unchanged,
        }))?;
        return Ok(());
    }
    let files = match (done.files, done.unchanged) {
        // Read again, and found to be what the vault has.
        _ if committed.unchanged => format!("nothing new in {}", human::count(done.files + done.unchanged, "file")),
        (0, unchanged) => format!("nothing new in {}", human::count(unchanged, "file")),
        (files, 0) => format!("stored {}", human::count(files, "file")),
        (files, unchanged) => format!("stored {} ({unchanged} unchanged)", human::count(files, "file")),
    };
    if committed.unchanged {
        screen.remark(format!("{files}: the vault is as it was"))?;
    } else {
        screen.remark(format!(
            "{files}, {} ({} new) in {}; any {} may be lost",
            human::size(done.bytes),
            human::size(new),
            human::pace(done.bytes, time),
            human::count(committed.losses_survived as u64, "node"),
        ))?;
    }
    if let Some(why) = &committed.degraded {
        screen.warn(why);
    }
    for conflict in &committed.conflicts {
        screen.warn(format!(
            "another device changed {} too: its version is kept as {}",
            human::name(&conflict.path),
            human::name(&conflict.copy)
        ));
    }
    if done.left_out > 0 {
        screen.warn(format!("{} left out", human::count(done.left_out, "file")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_size_time_and_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "12345").unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        let own = meta(&metadata);
        let entry = Entry { mode: own.mode, mtime_ns: own.mtime_ns, ..Entry::inline(Kind::File, "12345") };
        assert!(same(Some(&entry), &metadata));
        assert!(!same(None, &metadata));
        assert!(!same(Some(&Entry { size: 6, ..entry.clone() }), &metadata));
        assert!(!same(Some(&Entry { mtime_ns: own.mtime_ns + 1, ..entry.clone() }), &metadata));
        assert!(!same(Some(&Entry { mode: own.mode ^ 0o100, ..entry.clone() }), &metadata));
        assert!(!same(Some(&Entry { kind: Kind::Symlink, ..entry }), &metadata));
    }
}
