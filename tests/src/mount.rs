//! Small file systems that a test mounts for itself, unmounted and detached when dropped.
//!
//! They need the rights of root: a test that is refused them says so loudly ([`skipped`]) and passes.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Longest wait for a stopped process's disk to come to rest: the kernel writes what is old every few seconds.
const REST: Duration = Duration::from_secs(60);

/// A mounted file system.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    /// The loop device, of an image.
    device: Option<String>,
}

impl Mounted {
    /// A file system in memory at `path`, which is made.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn tmpfs(path: PathBuf, megabytes: u32) -> Result<Self> {
        std::fs::create_dir(&path)?;
        let options = format!("size={megabytes}m");
        run(
            "mount",
            &["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), options.as_ref(), "tmpfs".as_ref(), path.as_ref()],
        )?;
        Ok(Self { path, device: None })
    }

    /// The ext4 in a file, at `path`, which is made if it is not there. What a crash left in its journal is done first.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn image(image: &Path, path: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&path)?;
        let device = run("losetup", &["--find".as_ref(), "--show".as_ref(), image.as_ref()])?.trim().to_owned();
        // The journal is written by syncs alone, and not by a clock.
        let options: [&OsStr; 4] = ["-t".as_ref(), "ext4".as_ref(), "-o".as_ref(), "noatime,commit=300".as_ref()];
        let mounted = run("mount", &[&options[..], &[device.as_ref(), path.as_ref()]].concat());
        if mounted.is_err() {
            let _ = run("losetup", &["--detach".as_ref(), device.as_ref()]);
        }
        mounted.map(|_| Self { path, device: Some(device) })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the image as it is at this moment, without what is only in this machine's memory: what a power cut leaves.
    /// Nobody may be writing; what the kernel writes on its own meanwhile makes the copy be made again.
    ///
    /// # Errors
    /// It is no image, cannot be copied, or is written to without end.
    pub fn copy_image(&self, image: &Path, to: &Path) -> Result<()> {
        let device = self.device.as_deref().context("this file system is not in a file")?;
        let deadline = Instant::now() + REST;
        loop {
            let before = Activity::of(device)?;
            run("cp", &["--sparse=always".as_ref(), image.as_ref(), to.as_ref()])?;
            if before.in_flight == 0 && before == Activity::of(device)? {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{device} is written to although nobody runs");
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let path = self.path.as_os_str();
        // Lazily where need be: a process that is being killed may still be in there.
        if run("umount", &[path]).is_err() {
            let _ = run("umount", &["-l".as_ref(), path]);
        }
        if let Some(device) = &self.device {
            let _ = run("losetup", &["--detach".as_ref(), device.as_ref()]);
        }
    }
}

/// What a block device has been asked to write.
#[derive(Debug, PartialEq, Eq)]
struct Activity {
    writes: u64,
    in_flight: u64,
}

impl Activity {
    fn of(device: &str) -> Result<Self> {
        let name = device.rsplit('/').next().unwrap_or(device);
        let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat"))?;
        let fields: Vec<u64> = stat.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        // The order is the kernel's (Documentation/block/stat.rst).
        Ok(Self {
            writes: *fields.get(4).context("no writes in stat")?,
            in_flight: *fields.get(8).context("a short stat")?,
        })
    }
}

/// Makes a file with an empty ext4 in it.
///
/// # Errors
/// There is no space for it, or no `mkfs.ext4`.
pub fn make_ext4(image: &Path, megabytes: u64) -> Result<()> {
    std::fs::File::create_new(image)?.set_len(megabytes << 20)?;
    // Nothing is left for the kernel to do behind a test's back.
    let options = ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"].map(OsStr::new);
    run("mkfs.ext4", &[&options[..], &[image.as_ref()]].concat())?;
    Ok(())
}

/// Says that a test did not run, and why, also in a run that passes.
pub fn skipped(test: &str, why: &anyhow::Error) {
    // Not through a macro: those are caught where a test passes.
    let _ = std::io::stderr().write_all(format!("SKIPPED: {test}: {why:#}\n").as_bytes());
}

fn run(program: &str, arguments: &[&OsStr]) -> Result<String> {
    let done = Command::new(program).args(arguments).output().with_context(|| format!("{program} cannot be run"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{program} {arguments:?} ended with {}: {}", done.status, said.trim());
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
