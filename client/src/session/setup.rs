//! How a session comes about: a new vault, an old one opened, one recovered from its sheet.

use potluck_proto::invite::InviteToken;
use potluck_proto::stripe::Scheme;

use super::{Environment, Session, SessionError, State, VaultFolder, Writer};
use crate::vault::keyfile::Protection;
use crate::vault::sheet::RecoverySheet;

/// What a recovery found.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// The newest state that the cluster knows, with its date and how certain it is: show it to the user.
    pub state: State,
}

impl Session {
    /// Makes a new vault: redeems the token, makes this device, writes the first, empty state. If it was cut off, the
    /// same call goes on.
    pub async fn create(
        env: &Environment,
        folder: VaultFolder,
        token: &InviteToken,
        protection: Protection<'_>,
        scheme: Option<Scheme>,
    ) -> Result<(Session, RecoverySheet), SessionError> {
        let _ = (env, folder, token, protection, scheme);
        Err(SessionError::Internal(String::new()))
    }

    /// Opens the vault of a folder.
    pub async fn open(
        env: &Environment,
        folder: VaultFolder,
        passphrase: Option<&str>,
    ) -> Result<Session, SessionError> {
        let _ = (env, folder, passphrase);
        Err(SessionError::Internal(String::new()))
    }

    /// Sets a vault up on this machine from its recovery sheet alone.
    pub async fn recover(
        env: &Environment,
        folder: VaultFolder,
        sheet: &RecoverySheet,
        protection: Protection<'_>,
    ) -> Result<(Session, Recovered), SessionError> {
        let _ = (env, folder, sheet, protection);
        Err(SessionError::Internal(String::new()))
    }

    /// The newest state. Heads of concurrent writers are merged in memory.
    pub async fn state(&self) -> Result<State, SessionError> {
        Err(SessionError::Internal(String::new()))
    }

    /// Takes the writer's lock and begins at the newest state, which a quorum has to tell.
    pub async fn writer(&self) -> Result<Writer, SessionError> {
        Err(SessionError::Internal(String::new()))
    }

    /// Takes an older state than was seen before for the true one from now on: after the user has been told.
    pub async fn accept_rollback(&self) -> Result<(), SessionError> {
        Err(SessionError::Internal(String::new()))
    }
}
