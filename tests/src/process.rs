//! A cluster of real processes: the built `potluck`, real QUIC on loopback, real disks and signals.
//!
//! Everything lies in one temporary folder and is gone, processes and all, when the cluster is dropped; the ends of the
//! nodes' logs are shown when that happens in a panic. It never runs a cargo of its own: what it runs must have been
//! built (see [`program`]).

mod client;
mod running;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use potluck_node::config::human::{ByteSize, Span};
use potluck_node::config::{HttpAddress, Settings};
use potluck_node::node::LISTENING;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

pub use self::client::Client;
pub use self::running::{Done, Running, Used, program};

/// Longest wait for a node to serve after its start, for its goodbye, and for the answer to an operator.
const NODE_TIME: Duration = Duration::from_secs(60);

/// Time between two looks at nodes.
const POLL: Duration = Duration::from_millis(200);

/// Capacity of every node, in bytes: disks are not what limits a test unless it says so.
const CAPACITY: u64 = 64 << 30;

/// Lines of each log that are shown.
const LOG_LINES: usize = 40;

/// One node's place, also while it does not run.
struct Slot {
    data: PathBuf,
    settings: Settings,
    running: Option<Running>,
}

/// Nodes as processes.
pub struct Processes {
    folder: TempDir,
    program: PathBuf,
    settings: Settings,
    slots: Vec<Slot>,
}

/// Settings under which seconds are enough: surveys each second, hardly any patience, a wide budget.
#[must_use]
pub fn quick() -> Settings {
    Settings {
        listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        http: Some(HttpAddress::Off),
        capacity: Some(ByteSize(CAPACITY)),
        background_budget: Some(ByteSize(1_000_000_000)),
        repair_lazy_after: Some(Span(Duration::from_secs(1))),
        survey_interval: Some(Span(Duration::from_secs(1))),
        ..Settings::default()
    }
}

impl Processes {
    /// Founds a cluster with one node, which runs. `settings` are every node's; see [`quick`].
    ///
    /// # Errors
    /// The program is not built, or the node does not come up; with its log.
    pub fn found(settings: Settings) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("potluck-test-").tempdir()?;
        let mut cluster = Self { program: program()?, folder, settings, slots: Vec::new() };
        let data = cluster.path("node-0");
        let settings = Settings { zone: Some("zone-0".into()), ..cluster.settings.clone() };
        cluster.node(["init"], Some(&data), &settings)?.ok()?;
        cluster.slots.push(Slot { data, settings: cluster.settings.clone(), running: None });
        cluster.start(0)?;
        Ok(cluster)
    }

    /// Adds nodes, in so many zones in turn, until there are `count` places, and waits until every running node knows
    /// of all.
    ///
    /// # Errors
    /// One does not join or does not come up.
    pub fn grow(&mut self, count: usize, zones: usize) -> Result<()> {
        while self.slots.len() < count {
            let number = self.slots.len();
            self.add(self.path(&format!("node-{number}")), &format!("zone-{}", number % zones), Settings::default())?;
        }
        self.until_known().map(|_| ())
    }

    /// Adds one node with its data in `data`, and `settings` over those of all; returns its number.
    ///
    /// # Errors
    /// It does not join or does not come up.
    pub fn add(&mut self, data: PathBuf, zone: &str, settings: Settings) -> Result<usize> {
        let token = self.invite(&["--zone", zone])?;
        let settings = settings.over(self.settings.clone());
        self.node(["join", &token], Some(&data), &settings)?.ok()?;
        self.slots.push(Slot { data, settings, running: None });
        self.start(self.slots.len() - 1)?;
        Ok(self.slots.len() - 1)
    }

    /// A token from the founder, for a node, or what `options` say.
    ///
    /// # Errors
    /// The founder does not answer.
    pub fn invite(&self, options: &[&str]) -> Result<String> {
        let command = ["invite"].into_iter().chain(options.iter().copied());
        Ok(self.node(command, Some(&self.slots[0].data), &Settings::default())?.ok()?.out.trim().to_string())
    }

    /// Runs a command of `potluck node` to its end, for the data folder `data`, with `settings` as flags.
    ///
    /// # Errors
    /// It does not end in time. How it ended is for the caller to judge.
    pub fn node<'a>(
        &self,
        words: impl IntoIterator<Item = &'a str>,
        data: Option<&Path>,
        settings: &Settings,
    ) -> Result<Done> {
        let mut command = self.node_command(words);
        data.map(|data| command.arg("--data").arg(data));
        command.args(flags(settings)?);
        Running::capture(command)?.wait(NODE_TIME)
    }

    fn node_command<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = clean(&self.program);
        if self.program.file_name() != Some(OsStr::new("potluck-node")) {
            command.arg("node");
        }
        command.args(words).stdin(Stdio::null());
        command
    }

    /// Starts a node, at the address that it had before, and returns when it answers its operator.
    ///
    /// # Errors
    /// It ends, or does not answer in time; with its log.
    pub fn start(&mut self, number: usize) -> Result<()> {
        let slot = &self.slots[number];
        ensure!(slot.running.is_none(), "node {number} runs already");
        let mut command = self.node_command(["run"]);
        let log = OpenOptions::new().create(true).append(true).open(log_of(&slot.data))?;
        let settings = Settings { listen: self.address(number).ok().or(slot.settings.listen), ..slot.settings.clone() };
        command.arg("--data").arg(&slot.data).args(flags(&settings)?);
        command.stdout(Stdio::null()).stderr(log);
        self.slots[number].running = Some(Running::start(command)?);
        let began = Instant::now();
        loop {
            if let Ok(status) = self.status(number)
                && status["uptime_ms"].as_u64().is_some_and(|up| Duration::from_millis(up) <= began.elapsed())
            {
                return Ok(());
            }
            let alive = self.slots[number].running.as_mut().is_some_and(Running::is_alive);
            if !alive || began.elapsed() > NODE_TIME {
                self.slots[number].running = None;
                bail!("node {number} {}:\n{}", if alive { "does not answer" } else { "has ended" }, self.log(number));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Kills a node with SIGKILL; its folder stays.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        self.take(number)?.kill()
    }

    /// Stops a node with SIGTERM, and returns when it has ended with success.
    ///
    /// # Errors
    /// It does not run, does not end in time, or ends in another way; with its log.
    pub fn stop(&mut self, number: usize) -> Result<()> {
        let running = self.take(number)?;
        running.signal(Signal::TERM)?;
        let done = running.wait(NODE_TIME)?;
        ensure!(done.code == Some(0), "node {number} ended with {:?}:\n{}", done.code, self.log(number));
        Ok(())
    }

    /// Stops a node's process where it is: it is silent, and its sockets stay.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self, number: usize) -> Result<()> {
        self.running(number)?.signal(Signal::STOP)
    }

    /// Lets a paused node go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&self, number: usize) -> Result<()> {
        self.running(number)?.signal(Signal::CONT)
    }

    /// Deletes all that a killed or stopped node has on its disk, its identity too: this place never runs again.
    ///
    /// # Errors
    /// It still runs, or its folder cannot be deleted.
    pub fn wipe(&mut self, number: usize) -> Result<()> {
        ensure!(self.slots[number].running.is_none(), "node {number} runs");
        std::fs::remove_dir_all(&self.slots[number].data).context("a node's folder cannot be deleted")
    }

    /// What `status --json` of a node says.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self, number: usize) -> Result<Value> {
        let done = self.node(["status", "--json"], Some(&self.slots[number].data), &Settings::default())?.ok()?;
        serde_json::from_str(&done.out).context("a status that is no JSON")
    }

    /// The statuses of all running nodes, with their numbers.
    ///
    /// # Errors
    /// One does not answer.
    pub fn statuses(&self) -> Result<Vec<(usize, Value)>> {
        self.up().into_iter().map(|number| Ok((number, self.status(number)?))).collect()
    }

    /// Polls until `condition` holds. An error of it counts as not yet, and is told if the time runs out.
    ///
    /// # Errors
    /// `patience` is over; says `what` was waited for.
    pub fn until(
        &self,
        what: &str,
        patience: Duration,
        mut condition: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<Duration> {
        let began = Instant::now();
        loop {
            let looked = condition(self);
            if matches!(looked, Ok(true)) {
                return Ok(began.elapsed());
            }
            if began.elapsed() > patience {
                let why = looked.err().map(|error| format!(" ({error:#})")).unwrap_or_default();
                bail!("after {patience:?} still not: {what}{why}");
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until every running node has all running nodes, and no others, for up; returns how long that took.
    ///
    /// # Errors
    /// That takes too long.
    pub fn until_known(&self) -> Result<Duration> {
        let everyone = self.up().len() as u64;
        self.until(&format!("all {everyone} nodes know each other"), NODE_TIME, |cluster| {
            let statuses = cluster.statuses()?;
            Ok(statuses.iter().all(|(_, status)| status["members_up"] == everyone))
        })
    }

    /// Waits until each stripe is whole by surveys that began to be made after this call's start, and returns how many
    /// stripes there are and how long it took. `stripes`: how many there must be, if that is known.
    ///
    /// # Errors
    /// That takes longer than `patience`.
    pub fn until_whole(&self, stripes: Option<u64>, patience: Duration) -> Result<(u64, Duration)> {
        let (began, mut whole) = (Instant::now(), 0);
        let everyone = self.up().len() as u64;
        let took = self.until("all stripes are whole", patience, |cluster| {
            let statuses = cluster.statuses()?;
            let sum =
                |state: &str| statuses.iter().filter_map(|(_, node)| node["stripes"][state].as_u64()).sum::<u64>();
            let states = ["degraded", "at_risk", "unreadable", "unconfirmed", "malformed", "unknown"];
            let wrong: u64 = states.iter().map(|state| sum(state)).sum();
            whole = sum("whole");
            let elapsed = began.elapsed().as_millis() as u64;
            let fresh = |node: &Value| node["survey_age_ms"].as_u64().is_some_and(|age| age < elapsed);
            let surveyed = statuses.iter().all(|(_, node)| fresh(node) && node["members_up"] == everyone);
            ensure!(wrong == 0 && surveyed, "{wrong} stripes are not whole; {whole} are; all surveyed: {surveyed}");
            Ok(stripes.is_none_or(|stripes| stripes == whole))
        })?;
        Ok((whole, took))
    }

    /// A client of this cluster with a home of its own, called `name`.
    #[must_use]
    pub fn client(&self, name: &str) -> Client {
        Client::new(self.program.clone(), self.path(name))
    }

    /// What a running node has used.
    ///
    /// # Errors
    /// It does not run.
    pub fn used(&mut self, number: usize) -> Result<Used> {
        Ok(self.slots[number].running.as_mut().with_context(|| format!("node {number} does not run"))?.used())
    }

    /// The numbers of the nodes that run.
    #[must_use]
    pub fn up(&self) -> BTreeSet<usize> {
        (0..self.slots.len()).filter(|number| self.slots[*number].running.is_some()).collect()
    }

    /// The data folder of a node.
    #[must_use]
    pub fn data(&self, number: usize) -> &Path {
        &self.slots[number].data
    }

    /// The UDP address at which a node listens, or did last.
    ///
    /// # Errors
    /// It never ran.
    pub fn address(&self, number: usize) -> Result<SocketAddr> {
        Ok(std::fs::read_to_string(self.slots[number].data.join(LISTENING))?.trim().parse()?)
    }

    /// A path in the cluster's temporary folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The end of a node's log.
    #[must_use]
    pub fn log(&self, number: usize) -> String {
        let text = self.whole_log(number);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// All of a node's log, over all its starts; empty if there is none.
    #[must_use]
    pub fn whole_log(&self, number: usize) -> String {
        let text = std::fs::read(log_of(&self.slots[number].data)).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    fn running(&self, number: usize) -> Result<&Running> {
        self.slots[number].running.as_ref().with_context(|| format!("node {number} does not run"))
    }

    fn take(&mut self, number: usize) -> Result<Running> {
        self.slots[number].running.take().with_context(|| format!("node {number} does not run"))
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for number in 0..self.slots.len() {
                eprintln!("---- the end of node {number}'s log\n{}", self.log(number));
            }
        }
        // Before the folder goes: nobody may write there while it is deleted.
        self.slots.iter_mut().for_each(|slot| slot.running = None);
    }
}

/// Runs a bash script that finds `potluck` on its path, in an empty folder, with no settings of whoever runs the tests.
///
/// # Errors
/// The program is not built, or the script does not end in time. How it ended is for the caller to judge.
pub fn run_script(script: &str, patience: Duration) -> Result<Done> {
    let (folder, program) = (tempfile::tempdir()?, program()?);
    let beside = program.canonicalize()?.parent().context("a program in no folder")?.to_path_buf();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(beside).chain(std::env::split_paths(&path)))?;
    let mut command = clean(Path::new("bash"));
    command.args(["-c", script]).env("PATH", path).env("HOME", folder.path()).current_dir(folder.path());
    command.stdin(Stdio::null());
    Running::capture(command)?.wait(patience)
}

/// A command that takes nothing from the settings of whoever runs the tests.
fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"POTLUCK_")) {
        command.env_remove(name);
    }
    command
}

/// Where a node's log is: beside its folder, which may be wiped, or be full.
fn log_of(data: &Path) -> PathBuf {
    data.with_extension("log")
}

/// Settings as flags, from their names in the configuration file.
fn flags(settings: &Settings) -> Result<Vec<String>> {
    let Value::Object(settings) = serde_json::to_value(settings)? else { bail!("settings that are no table") };
    let mut flags = Vec::new();
    for (name, value) in settings {
        let value = match value {
            Value::Null => continue,
            Value::String(text) => text,
            Value::Array(list) => list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
            other => other.to_string(),
        };
        flags.extend([format!("--{}", name.replace('_', "-")), value]);
    }
    Ok(flags)
}
