//! What an error means for the program's end. Messages are the errors' own.

use std::io::ErrorKind;

use crate::session::SessionError;
use crate::vault::VaultError;

/// The arguments cannot be meant so.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// A token or the words of a sheet are not what was given out.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoKey(pub(super) String);

/// A passphrase is wanted and there is none.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoPassphrase(pub(super) String);

/// Something was to be done only on a certain answer, and the answer is not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotCertain(pub(super) String);

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    /// The exit code.
    pub(super) code: u8,
    /// The reader of the output has gone, as `head` does: no error to be told.
    pub(super) silent: bool,
}

impl Failure {
    pub(super) fn of(error: &anyhow::Error) -> Self {
        for cause in error.chain() {
            // A path that no vault can have is the user's, wherever it was noticed.
            if let Some(SessionError::Vault(VaultError::Path(_))) = cause.downcast_ref::<SessionError>() {
                return Self { code: 2, silent: false };
            }
            if let Some(error) = cause.downcast_ref::<SessionError>() {
                return Self { code: error.exit_code(), silent: false };
            }
            if cause.is::<Usage>() {
                return Self { code: 2, silent: false };
            }
            if cause.is::<NoPassphrase>() || cause.is::<NoKey>() {
                return Self { code: 4, silent: false };
            }
            if cause.is::<NotCertain>() {
                return Self { code: 5, silent: false };
            }
            match cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
                Some(ErrorKind::BrokenPipe) => return Self { code: 0, silent: true },
                Some(ErrorKind::NotFound) => return Self { code: 3, silent: false },
                _ => {}
            }
        }
        Self { code: 1, silent: false }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_cause_decides_the_code() {
        let code = |error: anyhow::Error| Failure::of(&error).code;
        assert_eq!(code(Usage("no".into()).into()), 2);
        assert_eq!(code(anyhow::anyhow!("no")), 1);
        let missing: Result<(), _> = Err(SessionError::NotFound("x".into()));
        assert_eq!(code(missing.context("while reading").unwrap_err()), 3);
        let path = crate::vault::path::file("../x").map_err(VaultError::from).map_err(SessionError::from);
        assert_eq!(code(path.unwrap_err().into()), 2);
        let no_file: Result<(), _> = Err(std::io::Error::from(ErrorKind::NotFound));
        assert_eq!(code(no_file.context("cannot read x").unwrap_err()), 3);
        assert_eq!(code(NoKey("garbled".into()).into()), 4);
        let closed = anyhow::Error::from(std::io::Error::from(ErrorKind::BrokenPipe));
        assert!(Failure::of(&closed).silent);
    }
}
