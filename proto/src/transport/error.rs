//! What can go wrong with an endpoint and with a call.

use std::net::SocketAddr;

use crate::id::NodeId;
use crate::key::PublicKey;
use crate::wire;

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket could not be had; another process may hold the port.
    #[error("cannot open UDP socket {address}: {source}")]
    Socket {
        /// What was asked for.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It was asked for outside a tokio runtime.
    #[error("an endpoint needs a tokio runtime to run in")]
    NoRuntime,
    /// The TLS stack refused the identity, or QUIC a limit.
    #[error("cannot set up QUIC: {0}")]
    Tls(String),
}

/// Why a call has no reply.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// No connection could be made before the deadline, or the last attempt failed a moment ago (back-off), or the
    /// other side has gone silent. The request was not served, as far as can be known.
    #[error("{} cannot be reached: {reason}", NodeId(peer.0).short())]
    Unreachable {
        /// Whom.
        peer: PublicKey,
        /// What was tried.
        reason: String,
    },
    /// The other side is there but did not answer in time. It may still serve the request.
    #[error("no answer before the deadline")]
    Deadline,
    /// A typed error from the other side.
    #[error("refused: {}", .0.message)]
    Refused(wire::Error),
    /// The other side does not pass this process's own gate.
    #[error("the other side is not accepted: {}", .0.message)]
    Unaccepted(wire::Error),
    /// Someone else answers at the peer's addresses.
    #[error("another key answers at the address of {}", NodeId(expected.0).short())]
    WrongPeer {
        /// Whom it should have been.
        expected: PublicKey,
    },
    /// The answer breaks the protocol.
    #[error("the answer cannot be understood: {0}")]
    BadReply(String),
    /// The request breaks a limit and was not sent.
    #[error("the request breaks a limit: {0}")]
    BadRequest(String),
    /// The connection broke while the call was under way: it may or may not have been served.
    #[error("the connection was lost: {0}")]
    Closed(String),
    /// This endpoint is closed, is closing, or has failed.
    #[error("this endpoint makes no more calls: {0}")]
    Stopped(&'static str),
}

impl CallError {
    /// The wire's code, if one side refused the other.
    #[must_use]
    pub fn code(&self) -> Option<wire::Code> {
        match self {
            CallError::Refused(error) | CallError::Unaccepted(error) => Some(error.code()),
            _ => None,
        }
    }

    /// Whether the peer was not reached at all (as opposed to: reached, but answered badly, late or not).
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, CallError::Unreachable { .. } | CallError::WrongPeer { .. })
    }
}
