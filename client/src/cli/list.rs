//! `potluck ls` and `potluck stat`: what is in the vault.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use owo_colors::Style;
use serde_json::{Value, json};

use super::context::Context;
use super::human;
use super::options::Options;
use super::receive::find;
use super::table::{Cell, Table};
use crate::session::Reader;
use crate::vault::entry::{Content, Entry, Kind, TARGET_LIMIT};

/// Most rows that are aligned with one another: memory stays bounded in a folder of any size.
const BATCH: usize = 1000;

/// Options of `ls`.
#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Paths in the vault; none: its root
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
    /// Show permissions, sizes and times
    #[arg(long, short)]
    long: bool,
    /// Show also what is in folders, with whole paths
    #[arg(long, short = 'R')]
    recursive: bool,
    /// Fail rather than show a state that may not be the newest
    #[arg(long)]
    certain: bool,
    #[command(flatten)]
    pub(super) options: Options,
}

/// Options of `stat`.
#[derive(Debug, Args)]
pub(super) struct Stat {
    /// Paths in the vault
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
    /// Fail rather than show a state that may not be the newest
    #[arg(long)]
    certain: bool,
    #[command(flatten)]
    pub(super) options: Options,
}

pub(super) async fn ls(context: &Context<'_>, ls: Ls) -> anyhow::Result<u8> {
    let session = context.open().await?;
    let state = context.state(&session, ls.certain).await?;
    let reader = session.reader(&state);
    let root = [OsString::new()];
    let paths = if ls.paths.is_empty() { &root[..] } else { &ls.paths };
    let mut rows = Rows { context, long: ls.long, batch: Vec::new() };
    for path in paths {
        let (key, entry) = find(&reader, path).await?;
        if entry.kind != Kind::Dir {
            rows.add(&key, &entry, &key, &reader).await?;
        } else if ls.recursive {
            let mut scan = reader.scan(key.clone());
            while let Some((found, entry)) = scan.next().await? {
                if found != key {
                    rows.add(&found, &entry, &found, &reader).await?;
                }
            }
        } else {
            let mut listing = reader.list(&key)?;
            while let Some(listed) = listing.next().await? {
                let entry = listed.entry.unwrap_or_else(Entry::dir);
                let shown = listed.key.get(key.len()..).unwrap_or_default();
                rows.add(&listed.key, &entry, shown, &reader).await?;
            }
        }
    }
    rows.flush()?;
    session.close().await;
    Ok(0)
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Dir => "dir",
        Kind::Symlink => "symlink",
        Kind::Other(_) => "other",
    }
}

fn kind_letter(kind: Kind) -> char {
    match kind {
        Kind::File => '-',
        Kind::Dir => 'd',
        Kind::Symlink => 'l',
        Kind::Other(_) => '?',
    }
}

/// An entry as an object; a path that is no UTF-8 comes in hexadecimal digits too.
fn object(key: &[u8], entry: &Entry, target: Option<&[u8]>) -> Value {
    let mut value = json!({
        "path": String::from_utf8_lossy(key),
        "kind": kind_name(entry.kind),
        "size": entry.size,
        "mode": format!("{:04o}", entry.mode),
        "mtime_ns": entry.mtime_ns,
    });
    if std::str::from_utf8(key).is_err() {
        value["path_hex"] = key.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
    }
    if let Some(target) = target {
        value["target"] = String::from_utf8_lossy(target).into();
    }
    value
}

fn date_of(entry: &Entry) -> String {
    match u64::try_from(entry.mtime_ns) {
        Ok(ns) if ns > 0 => human::date(ns / 1_000_000),
        _ => String::new(),
    }
}

async fn link_target(reader: &Reader, entry: &Entry) -> anyhow::Result<Option<bytes::Bytes>> {
    Ok(match entry.kind {
        Kind::Symlink => Some(reader.open(entry.clone()).read_at(0, TARGET_LIMIT).await?),
        _ => None,
    })
}

struct Rows<'a> {
    context: &'a Context<'a>,
    long: bool,
    batch: Vec<Vec<Cell>>,
}

impl Rows<'_> {
    async fn add(&mut self, key: &[u8], entry: &Entry, shown: &[u8], reader: &Reader) -> anyhow::Result<()> {
        let screen = self.context.screen;
        let target = if self.long || screen.json { link_target(reader, entry).await? } else { None };
        if screen.json {
            return Ok(screen.object(&object(key, entry, target.as_deref()))?);
        }
        let style = match entry.kind {
            Kind::Dir => Style::new().blue().bold(),
            Kind::Symlink => Style::new().cyan(),
            _ => Style::new(),
        };
        let name = human::name(shown);
        if !self.long {
            return Ok(screen.line(screen.paint(name, style))?);
        }
        let size = if entry.kind == Kind::Dir { String::new() } else { human::size(entry.size) };
        let arrow = target.map_or_else(String::new, |target| format!(" -> {}", human::name(&target)));
        self.batch.push(vec![
            human::mode(kind_letter(entry.kind), entry.mode).into(),
            size.into(),
            Cell::styled(date_of(entry), Style::new().dimmed()),
            Cell::styled(name + &arrow, style),
        ]);
        if self.batch.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(0, &[1]);
        self.batch.drain(..).for_each(|row| table.row(row));
        Ok(self.context.screen.line(table.render(self.context.screen))?)
    }
}

pub(super) async fn stat(context: &Context<'_>, stat: Stat) -> anyhow::Result<u8> {
    let session = context.open().await?;
    let state = context.state(&session, stat.certain).await?;
    let reader = session.reader(&state);
    let screen = context.screen;
    for (turn, path) in stat.paths.iter().enumerate() {
        let (key, entry) = find(&reader, path).await?;
        let target = link_target(&reader, &entry).await?;
        let (mut entries, mut bytes) = (0, 0);
        if entry.kind == Kind::Dir {
            let mut scan = reader.scan(key.clone());
            while let Some((found, inner)) = scan.next().await? {
                if found != key {
                    entries += 1;
                    bytes += inner.size;
                }
            }
        }
        if screen.json {
            let mut value = object(&key, &entry, target.as_deref());
            value["stored"] = stored(&entry).into();
            if entry.kind == Kind::Dir {
                value["entries"] = entries.into();
                value["bytes"] = bytes.into();
            }
            screen.object(&value)?;
            continue;
        }
        if turn > 0 {
            screen.line("")?;
        }
        let mut table = Table::new(0, &[]);
        let shown = if key.is_empty() { path.as_bytes() } else { &key[..] };
        table.fact("path", human::name(if shown.is_empty() { b"/" } else { shown }));
        table.fact("kind", kind_name(entry.kind));
        if entry.kind == Kind::Dir {
            table.fact("holds", format!("{entries} entries, {} ({bytes} B)", human::size(bytes)));
        } else {
            table.fact("size", format!("{} ({} B)", human::size(entry.size), entry.size));
            table.fact("stored", stored(&entry));
        }
        if let Some(target) = target {
            table.fact("target", human::name(&target));
        }
        table.fact("mode", format!("{:04o}", entry.mode));
        table.fact("changed", date_of(&entry));
        screen.line(table.render(screen))?;
    }
    session.close().await;
    Ok(0)
}

/// Where a file's bytes are, in words.
fn stored(entry: &Entry) -> String {
    match &entry.content {
        Content::Inline(_) => "in the tree".into(),
        Content::Chunks(chunks) => human::count(chunks.len() as u64, "chunk"),
        Content::List { depth, .. } => format!("in chunks, listed {} deep", depth),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_carry_all_and_odd_paths_twice() {
        let entry = Entry { mode: 0o644, mtime_ns: 5, ..Entry::inline(Kind::File, "abc") };
        let value = object(b"a/b", &entry, None);
        assert_eq!((value["size"].as_u64(), value["mode"].as_str()), (Some(3), Some("0644")));
        assert!(value.get("path_hex").is_none());
        assert_eq!(object(b"a\xff", &entry, None)["path_hex"], "61ff");
        assert_eq!(object(b"l", &Entry::symlink("x"), Some(b"x"))["target"], "x");
    }
}
