//! A real Prometheus for one test: the Debian package's binary on a free loopback port, its data in a folder of its own.
//!
//! It scrapes every second, is asked through its HTTP interface, and is killed when dropped.

use std::{
    fmt::Write as _,
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait until it serves, on a busy machine with a cold disk.
const START_TIME: Duration = Duration::from_secs(60);

/// Longest wait for one answer.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Longest answer, in bytes.
const ANSWER_LIMIT: u64 = 64 << 20;

/// Pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(100);

/// Ports tried, since another process may take a free one before Prometheus does.
const ATTEMPTS: usize = 5;

/// A running Prometheus.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes `/metrics` of each of `targets` as job `potluck`, and evaluates `rules` every second.
    /// Returns when it serves.
    ///
    /// # Errors
    /// The program is not installed, or does not serve in time; its log is part of the error.
    pub fn start(targets: &[SocketAddr], rules: &[PathBuf]) -> Result<Self> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            let mut server = Self::spawn(address, targets, rules)?;
            match server.wait_until_ready() {
                Ok(()) => return Ok(server),
                Err(error) if error.to_string().contains("address already in use") => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no port was tried")))
    }

    fn spawn(address: SocketAddr, targets: &[SocketAddr], rules: &[PathBuf]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut config = "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n".to_string();
        let rules: Vec<PathBuf> = rules.iter().map(std::fs::canonicalize).collect::<Result<_, _>>()?;
        // JSON is YAML: lists and strings are written as such.
        writeln!(config, "rule_files: {}", serde_json::to_string(&rules)?)?;
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let targets = serde_json::to_string(&targets)?;
        writeln!(config, "scrape_configs:\n  - job_name: potluck\n    static_configs: [{{targets: {targets}}}]")?;
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config)?;
        let log = File::create(folder.path().join("log"))?;
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start prometheus; install the Debian package prometheus (tests/run does)")?;
        Ok(Self { child, address, folder })
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIME;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("prometheus ended with {status}: {}", self.log());
            }
            if matches!(self.get("/-/ready"), Ok((200, _))) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "prometheus does not serve: {}", self.log());
            std::thread::sleep(POLL);
        }
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The result of an instant query: a list of `{"metric": labels, "value": [time, text]}`.
    ///
    /// # Errors
    /// Prometheus refuses the query, or does not answer.
    pub fn query(&self, promql: &str) -> Result<Vec<Value>> {
        let (status, answer) = self.get(&format!("/api/v1/query?query={}", percent(promql)))?;
        let answer: Value = serde_json::from_str(&answer).with_context(|| format!("{promql}: {answer}"))?;
        ensure!(status == 200 && answer["status"] == "success", "{promql}: {answer}");
        match &answer["data"]["result"] {
            Value::Array(result) => Ok(result.clone()),
            other => bail!("{promql}: no list but {other}"),
        }
    }

    /// Asks again and again until the result is as `wanted`, at most for `patience`.
    ///
    /// # Errors
    /// As [`Prometheus::query`]; and the last result, if it never was as wanted.
    pub fn wait_for(&self, promql: &str, patience: Duration, wanted: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        let deadline = Instant::now() + patience;
        loop {
            let result = self.query(promql)?;
            if wanted(&result) {
                return Ok(result);
            }
            ensure!(Instant::now() < deadline, "{promql} after {patience:?} still gives {result:?}");
            std::thread::sleep(POLL);
        }
    }

    /// A GET: status and body. HTTP/1.0, so that the answer ends with the connection and is not chunked.
    fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.address, ANSWER_TIME)?;
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        stream.set_write_timeout(Some(ANSWER_TIME))?;
        write!(stream, "GET {path} HTTP/1.0\r\nhost: {}\r\n\r\n", self.address)?;
        let mut answer = String::new();
        stream.take(ANSWER_LIMIT).read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("a head has a status")?;
        Ok((status, body.into()))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Nothing can be done about a child that cannot be killed; its folder goes anyway.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `promtool`, which comes with Prometheus, on one file.
///
/// # Errors
/// What it finds wrong, or that it is not installed.
pub fn promtool(check: &str, file: &Path) -> Result<()> {
    let output = Command::new("promtool").args(["check", check]).arg(file).stdin(Stdio::null()).output();
    let output = output.context("cannot start promtool; it is in the Debian package prometheus")?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}: {said}", file.display());
    Ok(())
}

fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => encoded.push(char::from(byte)),
            // Writing into a String cannot fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
        encoded
    })
}
