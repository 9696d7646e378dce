//! `potluck mount`: a state of a vault as a read-only folder.
//!
//! What is shown is the state at the time of mounting: it stays as it is while others write. Nothing is printed here,
//! and nothing in the vault is ever changed.

mod filesystem;
mod inodes;
mod tree;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fuser::{BackgroundSession, Config, MountOption};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use self::filesystem::{Mounted, Totals};
use self::inodes::Owner;
use self::tree::Tree;
use crate::session::{Session, State};

/// The kernel's side of it.
const DEVICE: &str = "/dev/fuse";

/// What mounts and unmounts for users who are not root.
const HELPER: &str = "fusermount3";

/// Why nothing was mounted, or how it ended.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Nothing can be mounted there.
    #[error("{}: {why}. Nothing was mounted: name an empty folder", path.display())]
    Mountpoint {
        /// The folder that was named.
        path: PathBuf,
        /// What it is instead.
        why: String,
    },
    /// This machine has no FUSE.
    #[error("{0} is not there, which mounting needs. Nothing was mounted: install the package fuse3")]
    NoFuse(&'static str),
    /// The system refuses.
    #[error("{} cannot be mounted: {error}. Nothing was mounted", path.display())]
    Refused {
        /// The folder that was named.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The system gives no signals or threads, or ended the mount in a way that it should not.
    #[error("the mount ended with an error: {0}")]
    System(io::Error),
}

/// Mounts a state of the session's vault at an empty folder, calls `ready`, and returns when somebody has unmounted it,
/// or unmounts it at Ctrl-C or SIGTERM.
pub async fn run(session: &Session, state: &State, mountpoint: &Path, ready: impl FnOnce()) -> Result<(), MountError> {
    let owner = check(mountpoint)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(MountError::System)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(MountError::System)?;

    let tree = Tree::new(session.reader(state), owner);
    let totals = Totals { files: state.files, bytes: state.bytes };
    let (ended, mut end) = oneshot::channel();
    let mounted = Mounted::new(tree, totals, Handle::current(), ended);
    let (path, settings) = (mountpoint.to_path_buf(), settings());
    let background = off_thread(move || fuser::spawn_mount(mounted, path, &settings)).await;
    let background = background.map_err(|error| MountError::Refused { path: mountpoint.to_path_buf(), error })?;
    ready();
    tokio::select! {
        // Nothing is ever sent: the other end is dropped.
        _ = &mut end => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    unmount(background, mountpoint).await
}

fn settings() -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::FSName("potluck".into()),
        MountOption::Subtype("potluck".into()),
    ];
    config
}

/// Looks at what is needed before anything is done; whose the mountpoint is.
fn check(mountpoint: &Path) -> Result<Owner, MountError> {
    let wrong = |why: String| MountError::Mountpoint { path: mountpoint.to_path_buf(), why };
    let found = fs::metadata(mountpoint).map_err(|error| match error.kind() {
        io::ErrorKind::NotConnected => wrong(format!("an earlier mount has died there: run {HELPER} -u on it")),
        _ => wrong(error.to_string()),
    })?;
    if !found.is_dir() {
        return Err(wrong("it is no folder".into()));
    }
    if fs::read_dir(mountpoint).map_err(|error| wrong(error.to_string()))?.next().is_some() {
        return Err(wrong("the folder is not empty".into()));
    }
    if !Path::new(DEVICE).exists() {
        return Err(MountError::NoFuse(DEVICE));
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&folders).any(|folder| folder.join(HELPER).is_file()) {
        return Err(MountError::NoFuse(HELPER));
    }
    Ok(Owner { uid: found.uid(), gid: found.gid() })
}

/// Runs what blocks on a thread for it.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Unmounts, if it is not yet; where programs still use the files, as soon as they do no more.
async fn unmount(background: BackgroundSession, mountpoint: &Path) -> Result<(), MountError> {
    let path = mountpoint.to_path_buf();
    let done = off_thread(move || match background.umount_and_join() {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            tracing::warn!(mountpoint = %path.display(), "programs still use the mount: it is taken from under them");
            let mut helper = Command::new(HELPER);
            helper.args(["-u", "-z", "--"]).arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let ended = helper.status()?;
            if ended.success() { Ok(()) } else { Err(error) }
        }
        // Somebody has unmounted it already, which fuser does not notice.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    });
    done.await.map_err(MountError::System)
}
