//! What can go wrong in a session, said so that its user knows what remains and what to do.

use potluck_proto::scheme::TooSmall;
use potluck_proto::stripe::Scheme;
use potluck_proto::transport::{BindError, ExecutorError};

use super::home::HomeError;
use crate::cluster::join::JoinError;
use crate::cluster::{Disconnected, PutError, ReadError, Stale, WriteHeadError};
use crate::vault::VaultError;
use crate::vault::keyfile::KeyfileError;
use crate::vault::path::PathError;

/// Why a session did not do what it was asked to. The vault is as it was, unless a variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The folder of the vault on this machine.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The device's secrets cannot be read.
    #[error(transparent)]
    Keyfile(#[from] KeyfileError),
    /// The vault was not admitted or not found.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// No socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No node could be reached.
    #[error(transparent)]
    Disconnected(#[from] Disconnected),
    /// The cluster has too few nodes for the scheme.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// A new vault's scheme needs more nodes than there are. Its keys are made, and the invite is theirs.
    #[error(
        "{0}. The vault is not made yet, and its invite is not lost: run the same command again with another scheme, the \
         same invite and the same passphrase"
    )]
    SchemeRefused(TooSmall),
    /// So many nodes are down that nothing can be stored.
    #[error(
        "{up} of {admitted} nodes are up, {scheme} needs at least {needed} to store anything. Nothing was written: try again \
         when more nodes are up"
    )]
    TooFewUp {
        /// Nodes that are not known to be down.
        up: usize,
        /// Nodes of the ring.
        admitted: usize,
        /// Nodes that a degraded put needs.
        needed: usize,
        /// How new data is coded.
        scheme: Scheme,
    },
    /// Data could not be stored.
    #[error("storing data failed: {0}. Nothing was committed: the vault is as it was")]
    Put(PutError),
    /// Data cannot be had now.
    #[error("{0}: try again when more nodes are up")]
    Read(ReadError),
    /// Stored bytes are damaged or of another version, or changes break a limit.
    #[error(transparent)]
    Vault(VaultError),
    /// A path that a vault cannot have.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The newest state is not known for certain, and something is to be written.
    #[error("the newest state of the vault cannot be told: {0}. Nothing was written: try again when more nodes are up")]
    NoQuorum(Stale),
    /// The new state was not acknowledged.
    #[error(
        "the new state was not acknowledged: {0}. The vault is as it was, or has the new state if enough nodes took it"
    )]
    Head(WriteHeadError),
    /// Others were always faster.
    #[error(
        "other devices changed the vault {attempts} times in a row before this one: nothing was committed, try again"
    )]
    Contended {
        /// How often a commit was tried.
        attempts: u32,
    },
    /// The cluster answered with a state that is older than one that this device has seen.
    #[error(
        "the cluster answers with an older state of the vault than this device has seen: nodes have lost or hide the \
         newest state. Reading shows the older one; nothing was written. Bring back the nodes that are away, or, if the \
         newest state is lost for good, go on from the older one with 'potluck vault accept-rollback'"
    )]
    RolledBack {
        /// When the newer state was committed, milliseconds since 1970; 0 if not known.
        seen_ms: u64,
    },
    /// There is nothing at this path.
    #[error("{0:?} is not in the vault")]
    NotFound(String),
    /// There is something at this path that is not what it has to be.
    #[error("{path:?} is {is}")]
    WrongKind {
        /// The path.
        path: String,
        /// What it is, as the end of a sentence.
        is: &'static str,
    },
    /// This vault has folders and keys that do not go together.
    #[error(
        "the files of this vault on this machine do not belong together ({0}): recover the vault into another folder"
    )]
    Mismatch(&'static str),
    /// What was to be stored could not be read.
    #[error("reading the file to be stored failed: {0}. It was not stored")]
    Source(std::io::Error),
    /// The machine has no randomness to give.
    #[error("the system gives no randomness: {0}")]
    Randomness(String),
    /// Work on another thread failed in a way that no input should cause.
    #[error("an internal fault: {0}. Nothing was committed")]
    Internal(String),
}

impl SessionError {
    /// What a command exits with: 1 a fault, 2 a wrong argument, 3 not found, 4 keys or admission, 5 nodes that are not
    /// there (trying again helps), 6 damaged data or a rollback, 7 in use by another process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Home(HomeError::Busy(_)) => 7,
            Self::Home(HomeError::NoVault(_) | HomeError::Unknown { .. }) | Self::NotFound(_) => 3,
            Self::Home(HomeError::Name(_) | HomeError::Several(_) | HomeError::Taken(_))
            | Self::Path(_)
            | Self::TooSmall(_)
            | Self::SchemeRefused(_)
            | Self::WrongKind { .. } => 2,
            Self::Keyfile(_) | Self::Mismatch(_) => 4,
            Self::Join(JoinError::Unreachable { .. })
            | Self::Disconnected(_)
            | Self::TooFewUp { .. }
            | Self::Put(_)
            | Self::Read(_)
            | Self::NoQuorum(_)
            | Self::Head(_)
            | Self::Contended { .. } => 5,
            Self::Join(_) => 4,
            Self::Vault(_) | Self::RolledBack { .. } | Self::Home(HomeError::Damaged { .. }) => 6,
            Self::Home(HomeError::Io { .. } | HomeError::NoFolder)
            | Self::Bind(_)
            | Self::Source(_)
            | Self::Randomness(_)
            | Self::Internal(_) => 1,
        }
    }
}

impl From<VaultError> for SessionError {
    fn from(error: VaultError) -> Self {
        match error {
            // What the session's own stores wrapped on its way through the vault.
            VaultError::Store(inner) => match inner.downcast::<SessionError>() {
                Ok(own) => *own,
                Err(other) => Self::Vault(VaultError::Store(other)),
            },
            other => Self::Vault(other),
        }
    }
}

impl From<SessionError> for VaultError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Vault(inner) => inner,
            other => VaultError::Store(Box::new(other)),
        }
    }
}

impl From<ReadError> for SessionError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<ExecutorError> for SessionError {
    fn from(error: ExecutorError) -> Self {
        Self::Internal(error.to_string())
    }
}
