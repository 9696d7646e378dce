//! What the commands on a vault begin with: the folder that is meant, the vault opened, its state with what is to be
//! said about it.

use super::failure::NotCertain;
use super::meter::waiting;
use super::options::{Options, VAULT_VARIABLE};
use super::screen::Screen;
use super::{human, passphrase};
use crate::session::{Environment, Freshness, Home, Session, SessionError, State, VaultFolder, Writer};

/// A command's surroundings.
pub(super) struct Context<'a> {
    pub(super) options: Options,
    pub(super) screen: &'a Screen,
    pub(super) home: Home,
    pub(super) environment: Environment,
}

impl<'a> Context<'a> {
    pub(super) fn new(options: Options, screen: &'a Screen) -> Result<Self, SessionError> {
        let home = Home::find(options.home.clone())?;
        Ok(Self { options, screen, home, environment: Environment::real()? })
    }

    /// The name that the user gave, if any.
    pub(super) fn vault_name(&self) -> Option<String> {
        let from_environment = || std::env::var(VAULT_VARIABLE).ok().filter(|name| !name.is_empty());
        self.options.vault.clone().or_else(from_environment)
    }

    /// The folder of the vault that is meant.
    pub(super) fn folder(&self) -> Result<VaultFolder, SessionError> {
        Ok(self.home.only_or_default(self.vault_name().as_deref())?)
    }

    /// Opens the vault that is meant; its passphrase is asked for if it has one.
    pub(super) async fn open(&self) -> anyhow::Result<Session> {
        let folder = self.folder()?;
        let passphrase = match folder.needs_passphrase()? {
            Some(true) => Some(passphrase::ask(&self.options, folder.name())?),
            Some(false) | None => None,
        };
        let passphrase = passphrase.as_ref().map(|text| text.as_str());
        let open = Session::open(&self.environment, folder, passphrase);
        Ok(waiting(self.screen, "any node of the cluster to answer", open).await?)
    }

    /// The vault's one writer.
    pub(super) async fn writer(&self, session: &Session) -> Result<Writer, SessionError> {
        waiting(self.screen, "the vault's newest state from enough nodes", session.writer()).await
    }

    /// The newest state; what makes it doubtful is told. With `certain` a doubtful one is an error.
    pub(super) async fn state(&self, session: &Session, certain: bool) -> anyhow::Result<State> {
        let state = waiting(self.screen, "the vault's newest state", session.state()).await?;
        let doubts = doubts(&state);
        if certain && !doubts.is_empty() {
            return Err(NotCertain(format!("{}: try again later, or without --certain", doubts.join("; "))).into());
        }
        for doubt in doubts {
            self.screen.warn(doubt);
        }
        for conflict in &state.conflicts {
            self.screen.warn(format!(
                "two devices changed {}: the earlier version is kept as {}",
                human::name(&conflict.path),
                human::name(&conflict.copy)
            ));
        }
        Ok(state)
    }
}

/// Why a state may not be the newest; in sentences.
pub(super) fn doubts(state: &State) -> Vec<String> {
    let mut doubts = Vec::new();
    if let Freshness::PossiblyStale(why) = &state.freshness {
        doubts.push(format!("this may not be the newest state of the vault ({why})"));
    }
    if let Some(rollback) = &state.rollback {
        doubts.push(format!(
            "the cluster shows an older state than this device has seen (of {}): nodes have lost or hide the newer one. \
             Nothing can be written until it is back, or until 'potluck vault accept-rollback'",
            human::date(rollback.seen_ms)
        ));
    }
    if state.behind {
        doubts.push("too many nodes were lost at once: commits that were acknowledged may be missing".into());
    }
    doubts
}
