//! One child process: started with its output in files, waited for with a deadline, measured, and killed when dropped.
//!
//! What it used is read from `/proc` (Linux): its CPU time when it has ended but is not yet collected, its peak memory
//! while it runs.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Time between two looks at a child: also how old its last known peak of memory may be when it ends.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// Longest output that is read back, in bytes.
const OUTPUT_LIMIT: u64 = 64 << 20;

/// The program that the tests run: `POTLUCK_BIN`'s value, or `potluck` of the release build that this executable is
/// of.
///
/// A file called `potluck-node` is taken too: it has the node's commands alone, without `node` before them.
///
/// # Errors
/// It is not there: what to build is said.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("POTLUCK_BIN").map(PathBuf::from) {
        ensure!(path.is_file(), "POTLUCK_BIN names {}, which is no file", path.display());
        return Ok(path);
    }
    let own = std::env::current_exe().context("this executable cannot be found")?;
    // Benchmarks lie beside the program, tests one folder deeper.
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join("potluck")).find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "there is no potluck beside {}: build it with 'cargo build --release', or set POTLUCK_BIN",
            own.display()
        )
    })
}

/// What a process has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Time on processors, in user and kernel mode together.
    pub cpu: Duration,
    /// Most memory ever resident, in bytes. It is looked at every 20 ms: a peak just before the end is missed.
    pub peak: u64,
}

/// How a command ended.
#[derive(Debug)]
pub struct Done {
    command: String,
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub out: String,
    /// What it wrote to standard error.
    pub err: String,
    /// What it used.
    pub used: Used,
    /// From its start until it had ended.
    pub time: Duration,
}

impl Done {
    /// The same, if it ended with success.
    ///
    /// # Errors
    /// It did not; with all that it said.
    pub fn ok(self) -> Result<Self> {
        ensure!(self.code == Some(0), "{self}");
        Ok(self)
    }

    /// Standard error, if the exit code is `code` and standard error has each of `words`.
    ///
    /// # Errors
    /// It is not so; with all that the command said.
    pub fn fails(self, code: i32, words: &[&str]) -> Result<String> {
        ensure!(self.code == Some(code), "expected exit code {code}: {self}");
        for word in words {
            ensure!(self.err.contains(word), "{word:?} is not on standard error: {self}");
        }
        ensure!(!self.err.contains("panicked"), "it panicked: {self}");
        Ok(self.err)
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Done { command, code, out, err, .. } = self;
        write!(f, "{command} ended with {code:?}\n--- standard output\n{out}\n--- standard error\n{err}")
    }
}

/// A process that runs.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    out: Option<File>,
    err: Option<File>,
    began: Instant,
    used: Used,
}

impl Running {
    /// Starts `command`, whose output goes where the command says.
    pub(super) fn start(mut command: Command) -> Result<Self> {
        Self::spawn(&mut command, None, None)
    }

    /// Starts `command` with its standard output and standard error kept for [`Self::wait`].
    pub(super) fn capture(mut command: Command) -> Result<Self> {
        let (out, err) = (tempfile::tempfile()?, tempfile::tempfile()?);
        command.stdout(out.try_clone()?).stderr(err.try_clone()?);
        Self::spawn(&mut command, Some(out), Some(err))
    }

    /// Starts `command` with its standard output thrown away and standard error kept.
    pub(super) fn discard(mut command: Command) -> Result<Self> {
        let err = tempfile::tempfile()?;
        command.stdout(Stdio::null()).stderr(err.try_clone()?);
        Self::spawn(&mut command, None, Some(err))
    }

    fn spawn(command: &mut Command, out: Option<File>, err: Option<File>) -> Result<Self> {
        let text = describe(command);
        let child = command.spawn().with_context(|| format!("{text} cannot be started"))?;
        Ok(Self { command: text, child, out, err, began: Instant::now(), used: Used::default() })
    }

    fn pid(&self) -> Result<Pid> {
        Pid::from_raw(self.child.id().try_into()?).context("a process without a number")
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid()?, signal).with_context(|| format!("{} got no {signal:?}", self.command))
    }

    /// What it has used up to now.
    pub fn used(&mut self) -> Used {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        if let Some(cpu) = cpu(&proc) {
            self.used.cpu = cpu;
        }
        self.used.peak = self.used.peak.max(peak(&proc).unwrap_or(0));
        self.used
    }

    /// Whether it still runs.
    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// It still runs after `patience` from now, and is killed then.
    pub fn wait(mut self, patience: Duration) -> Result<Done> {
        let status = self.ended(Instant::now() + patience)?;
        let time = self.began.elapsed();
        let (out, err) = (text(self.out.take())?, text(self.err.take())?);
        Ok(Done { command: self.command.clone(), code: status.code(), out, err, used: self.used, time })
    }

    /// Kills it with SIGKILL, and returns when it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().and_then(|()| self.child.wait()).context("a child cannot be killed")?;
        Ok(())
    }

    fn ended(&mut self, deadline: Instant) -> Result<ExitStatus> {
        loop {
            self.used();
            // An ended child keeps its times until it is collected: they are read once more, in between.
            if is_zombie(self.child.id()) {
                self.used();
                return Ok(self.child.wait()?);
            }
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.child.kill()?;
                self.child.wait()?;
                let (out, err) = (text(self.out.take())?, text(self.err.take())?);
                let ran = self.began.elapsed();
                bail!("{} still ran after {ran:?}\n--- output\n{out}\n--- error\n{err}", self.command);
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, and been collected, long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn text(file: Option<File>) -> Result<String> {
    let Some(mut file) = file else { return Ok(String::new()) };
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(OUTPUT_LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The fields of `/proc/PID/stat` behind the command's name, which may itself have spaces; the first is the state.
fn stat(proc: &Path) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(proc.join("stat")).ok()?;
    let (_, behind) = text.rsplit_once(')')?;
    Some(behind.split_whitespace().map(str::to_string).collect())
}

fn is_zombie(pid: u32) -> bool {
    stat(&PathBuf::from(format!("/proc/{pid}"))).is_some_and(|fields| fields.first().is_some_and(|state| state == "Z"))
}

/// Fields 14 and 15 of `/proc/PID/stat`, in clock ticks (proc(5)).
fn cpu(proc: &Path) -> Option<Duration> {
    let fields = stat(proc)?;
    let ticks = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = ticks(14)? + ticks(15)?;
    Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

fn peak(proc: &Path) -> Option<u64> {
    let status = std::fs::read_to_string(proc.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_measured_and_its_words_are_kept() {
        let mut command = Command::new("sh");
        command.args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo out; echo err >&2; exit 3"]);
        let done = Running::capture(command).unwrap().wait(Duration::from_secs(60)).unwrap();
        assert_eq!((done.code, &done.out[..], &done.err[..]), (Some(3), "out\n", "err\n"));
        assert!(done.used.cpu > Duration::ZERO && done.used.peak > 0, "{:?}", done.used);
        assert!(done.fails(3, &["err"]).is_ok());
    }

    #[test]
    fn who_takes_too_long_is_killed() {
        let mut command = Command::new("sleep");
        command.arg("600");
        let error = Running::capture(command).unwrap().wait(Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("still ran"), "{error}");
    }
}
