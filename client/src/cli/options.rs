//! The options that every command on a vault has.

use std::path::PathBuf;

use clap::Args;

/// Environment variable that names the vault.
pub(super) const VAULT_VARIABLE: &str = "POTLUCK_VAULT";

/// Which vault is meant, and how to speak about it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Options of all commands")]
pub(crate) struct Options {
    /// Vault, where there are several on this machine (or POTLUCK_VAULT)
    #[arg(long, value_name = "NAME")]
    pub(crate) vault: Option<String>,
    /// Folder of this machine's vaults (or POTLUCK_HOME)
    #[arg(long, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// File whose first line is the passphrase (else POTLUCK_PASSPHRASE, else you are asked)
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_command")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Command whose first line of output is the passphrase
    #[arg(long, value_name = "COMMAND")]
    pub(crate) passphrase_command: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Print nothing but what was asked for, and errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

impl Options {
    /// These, and where they are silent, `below`.
    pub(crate) fn over(&self, below: &Self) -> Self {
        let says_how = self.passphrase_file.is_some() || self.passphrase_command.is_some();
        let how = if says_how { self } else { below };
        Self {
            vault: self.vault.clone().or_else(|| below.vault.clone()),
            home: self.home.clone().or_else(|| below.home.clone()),
            passphrase_file: how.passphrase_file.clone(),
            passphrase_command: how.passphrase_command.clone(),
            json: self.json || below.json,
            quiet: self.quiet || below.quiet,
        }
    }
}
