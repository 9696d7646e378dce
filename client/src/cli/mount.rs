//! `potluck mount`: the vault as a read-only folder.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::context::Context;
use super::failure::Usage;
use super::options::Options;
use crate::mount::{self, MountError};

/// Options of `mount`.
#[derive(Debug, Args)]
#[command(
    after_help = "What is shown is the vault as it was when it was mounted: mount it again to see later changes.\n\
                        It ends at Ctrl-C, SIGTERM, or with fusermount3 -u MOUNTPOINT. Needs the package fuse3."
)]
pub(super) struct Mount {
    /// Empty folder to show the vault in
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    /// Fail rather than show a state that may not be the newest
    #[arg(long)]
    certain: bool,
    #[command(flatten)]
    pub(super) options: Options,
}

pub(super) async fn mount(context: &Context<'_>, mount: Mount) -> anyhow::Result<u8> {
    let session = context.open().await?;
    let state = context.state(&session, mount.certain).await?;
    let mut told = Ok(());
    let ready = || {
        let path = mount.mountpoint.display();
        told = if context.screen.json {
            context.screen.object(&json!({ "mounted": mount.mountpoint.to_string_lossy(), "files": state.files }))
        } else {
            context.screen.remark(format!("mounted at {path}, read-only; Ctrl-C or fusermount3 -u {path} ends it"))
        };
    };
    let done = mount::run(&session, &state, &mount.mountpoint, ready).await;
    session.close().await;
    match done {
        Ok(()) => {}
        Err(error @ MountError::Mountpoint { .. }) => return Err(Usage(error.to_string()).into()),
        Err(error) => return Err(error.into()),
    }
    told?;
    Ok(0)
}
