//! `potluck cp`, `mv` and `rm`: changes inside the vault, each one commit.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::Args;

use super::context::Context;
use super::failure::Usage;
use super::human;
use super::options::Options;
use super::receive::find;
use super::target::join;
use crate::session::{Reader, Session, SessionError, Writer};
use crate::vault::entry::Kind;
use crate::vault::path;

/// Options of `cp`.
#[derive(Debug, Args)]
pub(super) struct Cp {
    /// Path in the vault
    #[arg(value_name = "FROM")]
    from: OsString,
    /// New path; a folder, or a path with a slash at its end, is copied into
    #[arg(value_name = "TO")]
    to: OsString,
    /// Copy folders with all that is in them
    #[arg(long, short)]
    recursive: bool,
    #[command(flatten)]
    pub(super) options: Options,
}

/// Options of `mv`.
#[derive(Debug, Args)]
pub(super) struct Mv {
    /// Path in the vault
    #[arg(value_name = "FROM")]
    from: OsString,
    /// New path; a folder, or a path with a slash at its end, is moved into
    #[arg(value_name = "TO")]
    to: OsString,
    #[command(flatten)]
    pub(super) options: Options,
}

/// Options of `rm`.
#[derive(Debug, Args)]
pub(super) struct Rm {
    /// Paths in the vault
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
    /// Remove folders with all that is in them
    #[arg(long, short)]
    recursive: bool,
    /// Do not mind what is not there
    #[arg(long, short)]
    force: bool,
    #[command(flatten)]
    pub(super) options: Options,
}

/// The new path of what is at `key`.
async fn place(reader: &Reader, key: &[u8], to: &OsStr) -> Result<Vec<u8>, SessionError> {
    let to = to.as_bytes();
    let folder = to.is_empty() || to.ends_with(b"/") || {
        matches!(reader.lookup(to).await?, Some((there, _)) if there.is_empty() || there.ends_with(b"/"))
    };
    Ok(if folder { join(to, path::name(key)) } else { to.to_vec() })
}

async fn begin(context: &Context<'_>) -> anyhow::Result<(Session, Writer, Reader)> {
    let session = context.open().await?;
    let writer = context.writer(&session).await?;
    let reader = session.reader(writer.base());
    Ok((session, writer, reader))
}

async fn end(context: &Context<'_>, session: Session, writer: Writer, verb: &str, entries: u64) -> anyhow::Result<u8> {
    let committed = writer.commit().await?;
    if context.screen.json {
        context
            .screen
            .object(&serde_json::json!({ "entries": entries, "losses_survived": committed.losses_survived }))?;
    } else {
        let noun = if entries == 1 { "entry" } else { "entries" };
        context.screen.remark(format!("{verb} {entries} {noun}"))?;
    }
    if let Some(why) = committed.degraded {
        context.screen.warn(format!("committed with fewer copies than planned: {why}"));
    }
    session.close().await;
    Ok(0)
}

pub(super) async fn cp(context: &Context<'_>, cp: Cp) -> anyhow::Result<u8> {
    let (session, mut writer, reader) = begin(context).await?;
    let (key, entry) = find(&reader, &cp.from).await?;
    if entry.kind == Kind::Dir && !cp.recursive {
        let path = human::name(cp.from.as_bytes());
        return Err(Usage(format!("{path} is a folder: add -r to copy it with all that is in it")).into());
    }
    let to = place(&reader, &key, &cp.to).await?;
    let entries = writer.copy(&key, to).await?;
    end(context, session, writer, "copied", entries).await
}

pub(super) async fn mv(context: &Context<'_>, mv: Mv) -> anyhow::Result<u8> {
    let (session, mut writer, reader) = begin(context).await?;
    let (key, _) = find(&reader, &mv.from).await?;
    let to = place(&reader, &key, &mv.to).await?;
    let entries = writer.rename(&key, to).await?;
    end(context, session, writer, "moved", entries).await
}

pub(super) async fn rm(context: &Context<'_>, rm: Rm) -> anyhow::Result<u8> {
    let (session, mut writer, reader) = begin(context).await?;
    let mut entries = 0;
    for path in &rm.paths {
        match find(&reader, path).await {
            Err(SessionError::NotFound(_)) if rm.force => continue,
            Err(error) => return Err(error.into()),
            Ok((_, entry)) if entry.kind == Kind::Dir && !rm.recursive => {
                let path = human::name(path.as_bytes());
                return Err(Usage(format!("{path} is a folder: add -r to remove it with all that is in it")).into());
            }
            Ok(_) => entries += writer.remove(path.as_bytes(), rm.recursive).await?,
        }
    }
    end(context, session, writer, "removed", entries).await
}
