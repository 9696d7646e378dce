//! Where passphrases come from: a command, a file, the environment, or a person at a terminal; never an argument, which
//! every user of a machine can read.

use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use zeroize::Zeroizing;

use super::failure::NoPassphrase;
use super::options::Options;

/// Environment variable that holds the passphrase.
const VARIABLE: &str = "POTLUCK_PASSPHRASE";

/// Longest passphrase, in bytes.
const LIMIT: usize = 1024;

/// Shortest new passphrase, in characters: below it a thief of the key file just tries them all.
const SHORTEST: usize = 8;

/// The passphrase that the options or the environment give; `None` if they are silent.
fn given(options: &Options) -> anyhow::Result<Option<Zeroizing<String>>> {
    if let Some(command) = &options.passphrase_command {
        return from_command(command).map(Some);
    }
    if let Some(path) = &options.passphrase_file {
        let read = || first_line(std::fs::File::open(path)?);
        return read().with_context(|| format!("cannot read the passphrase in {}", path.display())).map(Some);
    }
    match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => Ok(Some(Zeroizing::new(text))),
        Err(std::env::VarError::NotUnicode(_)) => bail!("{VARIABLE} is not UTF-8"),
        _ => Ok(None),
    }
}

/// The passphrase of an existing vault.
pub(super) fn ask(options: &Options, vault: &str) -> anyhow::Result<Zeroizing<String>> {
    if let Some(text) = given(options)? {
        return Ok(text);
    }
    at_terminal(&format!("Passphrase of vault {vault}: "))
}

/// A passphrase for a new key file; at a terminal it is asked for twice.
pub(super) fn choose(options: &Options) -> anyhow::Result<Zeroizing<String>> {
    let text = match given(options)? {
        Some(text) => text,
        None => {
            let text = at_terminal(&format!("New passphrase for this device, at least {SHORTEST} characters: "))?;
            long_enough(&text)?;
            if *at_terminal("The same once more: ")? != *text {
                return Err(NoPassphrase("the two passphrases differ: nothing was made".into()).into());
            }
            text
        }
    };
    long_enough(&text)?;
    Ok(text)
}

fn long_enough(text: &str) -> Result<(), NoPassphrase> {
    if text.chars().count() >= SHORTEST {
        return Ok(());
    }
    Err(NoPassphrase(format!(
        "a passphrase needs at least {SHORTEST} characters; if this device needs none, say so with --no-passphrase"
    )))
}

fn at_terminal(prompt: &str) -> anyhow::Result<Zeroizing<String>> {
    if !std::io::stdin().is_terminal() && !Path::new("/dev/tty").exists() {
        return Err(missing());
    }
    // It asks the terminal itself, not standard input, which may be a file to be stored.
    rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(|_| missing())
}

fn missing() -> anyhow::Error {
    let why = format!(
        "a passphrase is needed and there is no terminal to ask at: use --passphrase-file, --passphrase-command or {VARIABLE}"
    );
    NoPassphrase(why).into()
}

fn from_command(command: &str) -> anyhow::Result<Zeroizing<String>> {
    let failed = || format!("the passphrase command {command:?} failed");
    let mut child = Command::new("sh").arg("-c").arg(command).stdout(Stdio::piped()).spawn().with_context(failed)?;
    let output = child.stdout.take().context("the passphrase command has no output")?;
    let line = first_line(output);
    let status = child.wait().with_context(failed)?;
    if !status.success() {
        bail!("the passphrase command {command:?} failed ({status})");
    }
    line.with_context(failed)
}

fn first_line(source: impl Read) -> anyhow::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::with_capacity(LIMIT + 2));
    BufReader::new(source.take(LIMIT as u64 + 1)).read_line(&mut line)?;
    let end = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(end);
    match end {
        0 => bail!("its first line is empty"),
        1..=LIMIT => Ok(line),
        _ => bail!("its first line is longer than {LIMIT} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_counts_and_has_bounds() {
        assert_eq!(*first_line(&b"open sesame\r\nrest"[..]).unwrap(), "open sesame");
        assert_eq!(*first_line(&b" spaces stay "[..]).unwrap(), " spaces stay ");
        assert!(first_line(&b"\n"[..]).is_err());
        assert!(first_line(&vec![b'x'; LIMIT + 1][..]).is_err());
        assert!(first_line(&[0xff, b'\n'][..]).is_err());
    }

    #[test]
    fn commands_give_passphrases_and_failures_are_told() {
        let options = |command: &str| Options { passphrase_command: Some(command.into()), ..Options::default() };
        assert_eq!(*ask(&options("echo correct horse"), "v").unwrap(), "correct horse");
        assert!(ask(&options("echo x; exit 3"), "v").is_err());
        assert!(choose(&options("echo short")).unwrap_err().to_string().contains("at least 8"));
    }
}
