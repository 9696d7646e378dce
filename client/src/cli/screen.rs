//! Where words go: answers to standard output, everything else to standard error; colours only on a terminal.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use owo_colors::{OwoColorize, Style};

use super::options::Options;

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    /// One JSON object a line instead of text.
    pub(crate) json: bool,
    /// Only what was asked for, and errors.
    pub(crate) quiet: bool,
    out_colour: bool,
    err_colour: bool,
    err_terminal: bool,
}

impl Screen {
    /// The process's own.
    pub(super) fn real(options: Options) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let plain = set("NO_COLOR") || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self {
            json: options.json,
            quiet: options.quiet,
            out_colour: out && !plain,
            err_colour: err && !plain,
            err_terminal: err,
        }
    }

    /// Whether the user asked for the log.
    pub(super) fn logs_wanted(&self) -> bool {
        std::env::var_os("RUST_LOG").is_some_and(|filter| !filter.is_empty())
    }

    /// Whether progress may be drawn on standard error.
    pub(crate) fn draws(&self) -> bool {
        self.err_terminal && !self.json && !self.quiet
    }

    /// `text` in a style, for standard output.
    pub(crate) fn paint(&self, text: impl Display, style: Style) -> String {
        if self.out_colour { text.style(style).to_string() } else { text.to_string() }
    }

    /// A line of the answer.
    pub(crate) fn line(&self, text: impl Display) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{text}")
    }

    /// A line of the answer that `--quiet` and `--json` leave out.
    pub(crate) fn remark(&self, text: impl Display) -> io::Result<()> {
        if self.json || self.quiet { Ok(()) } else { self.line(text) }
    }

    /// An object of the answer.
    pub(crate) fn object(&self, value: &serde_json::Value) -> io::Result<()> {
        self.line(value)
    }

    /// Bytes of the answer as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// Something that the user should know, beside the answer. It is told even with `--quiet`.
    pub(crate) fn warn(&self, text: impl Display) {
        let label = if self.err_colour { "warning:".yellow().bold().to_string() } else { "warning:".into() };
        // There is nobody left to tell if standard error is closed.
        let _ = writeln!(io::stderr().lock(), "{label} {text}");
    }

    /// Why the command ends.
    pub(super) fn error(&self, text: &str, code: u8) {
        let mut err = io::stderr().lock();
        let _ = if self.json {
            writeln!(err, "{}", serde_json::json!({ "error": text, "code": code }))
        } else if self.err_colour {
            writeln!(err, "{} {text}", "potluck:".red().bold())
        } else {
            writeln!(err, "potluck: {text}")
        };
    }
}
