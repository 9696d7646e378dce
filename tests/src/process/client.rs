//! `potluck` as a user runs it, with a home folder and a passphrase of its own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;

use super::running::{Done, Running};

/// Longest time for a command of which a test expects no long work.
const COMMAND_TIME: Duration = Duration::from_secs(120);

/// One installation of the client.
#[derive(Debug, Clone)]
pub struct Client {
    program: PathBuf,
    home: PathBuf,
    passphrase: String,
}

impl Client {
    pub(super) fn new(program: PathBuf, home: PathBuf) -> Self {
        Self { program, home, passphrase: "a passphrase for tests".into() }
    }

    /// The same installation, with another passphrase typed.
    #[must_use]
    pub fn with_passphrase(&self, passphrase: &str) -> Self {
        Self { passphrase: passphrase.into(), ..self.clone() }
    }

    /// The home folder.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The command `potluck WORDS` with nothing on standard input.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = super::clean(&self.program);
        command.args(words).stdin(Stdio::null());
        command.env("POTLUCK_HOME", &self.home).env("POTLUCK_PASSPHRASE", &self.passphrase);
        command
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// It cannot be started or does not end in two minutes. How it ended is for the caller to judge.
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Done> {
        self.start(words)?.wait(COMMAND_TIME)
    }

    /// Starts a command.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Running> {
        Running::capture(self.command(words))
    }

    /// Starts a command whose standard output is thrown away as it comes.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_discarding<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Running> {
        Running::discard(self.command(words))
    }
}
