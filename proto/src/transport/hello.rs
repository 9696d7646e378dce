//! The first stream of each connection: both sides say who they are, and each judges the other.
//!
//! The dialler speaks first. Nothing else is served on a connection before its Hello is done.

use quinn::Connection;
use tokio::time::timeout;

use super::frame::{self, FrameError, FrameLimit};
use super::limits::{GOODBYE_TIME, STRANGER_MESSAGE_LIMIT};
use super::{CallError, Gate, Role, close_code};
use crate::key::PublicKey;
use crate::wire::{self, PROTOCOL_VERSIONS, reply, request};

/// What this program calls itself.
const SOFTWARE: &str = concat!("potluck ", env!("CARGO_PKG_VERSION"));

const LIMIT: FrameLimit = FrameLimit { message: STRANGER_MESSAGE_LIMIT, payload: 0 };

/// What this side says.
fn own(gate: &dyn Gate) -> wire::Hello {
    let (version_min, version_max) = PROTOCOL_VERSIONS;
    wire::Hello { version_min, version_max, software: SOFTWARE.into(), ..gate.hello() }
}

/// Whether both speak a common version, then what the gate says.
fn judge(gate: &dyn Gate, key: PublicKey, hello: &wire::Hello) -> Result<Role, wire::Error> {
    let (oldest, newest) = PROTOCOL_VERSIONS;
    if hello.version_min > newest || hello.version_max < oldest || hello.version_min > hello.version_max {
        let message = format!(
            "no protocol version in common: here {oldest} to {newest}, there {} to {} ({})",
            hello.version_min,
            hello.version_max,
            hello.software.chars().filter(|letter| !letter.is_control()).take(64).collect::<String>()
        );
        return Err(wire::Error::new(wire::Code::UnsupportedVersion, message));
    }
    gate.admit(key, hello)
}

fn refuse(connection: &Connection, error: &wire::Error) {
    connection.close(close_code::REFUSED, error.code().as_str_name().as_bytes());
}

/// The dialler's side.
pub(super) async fn say(connection: &Connection, gate: &dyn Gate, key: PublicKey) -> Result<Role, CallError> {
    let lost = |reason: String| CallError::Closed(format!("during the Hello: {reason}"));
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| lost(error.to_string()))?;
    let message = wire::Request { kind: Some(request::Kind::Hello(own(gate))) };
    let (_, frame) = frame::encode(&message, Vec::new()).map_err(CallError::BadRequest)?;
    frame::write(&mut send, frame).await.map_err(|error| lost(error.to_string()))?;

    let understood = |error| match error {
        FrameError::Bad(reason) => CallError::BadReply(reason),
        FrameError::Gone(reason) => lost(reason),
    };
    let head = frame::read_head(&mut recv, LIMIT).await.map_err(understood)?;
    let (message, _) = frame::read_body::<wire::Reply>(&mut recv, head).await.map_err(understood)?;
    let hello = match message.kind {
        Some(reply::Kind::Hello(hello)) => hello,
        Some(reply::Kind::Error(error)) => return Err(CallError::Refused(error)),
        _ => return Err(CallError::BadReply("the answer to a Hello is something else".into())),
    };
    judge(gate, key, &hello).map_err(|error| {
        refuse(connection, &error);
        CallError::Unaccepted(error)
    })
}

/// The accepting side. `Err` says why the connection is of no use; it is closed then.
pub(super) async fn hear(connection: &Connection, gate: &dyn Gate, key: PublicKey) -> Result<Role, String> {
    let (mut send, mut recv) = connection.accept_bi().await.map_err(|error| error.to_string())?;
    let judged = match read(&mut recv).await {
        Ok(hello) => judge(gate, key, &hello),
        Err(FrameError::Bad(reason)) => Err(wire::Error::new(wire::Code::BadRequest, reason)),
        Err(FrameError::Gone(reason)) => return Err(reason),
    };
    let kind = match &judged {
        Ok(_) => reply::Kind::Hello(own(gate)),
        Err(error) => reply::Kind::Error(error.clone()),
    };
    let (_, frame) = frame::encode(&wire::Reply { kind: Some(kind) }, Vec::new())?;
    frame::write(&mut send, frame).await.map_err(|error| error.to_string())?;
    match judged {
        Ok(role) => Ok(role),
        Err(error) => {
            // Closing drops what is not yet delivered, and the other side should learn why.
            let _ = timeout(GOODBYE_TIME, send.stopped()).await;
            refuse(connection, &error);
            Err(format!("refused: {}", error.message))
        }
    }
}

async fn read(recv: &mut quinn::RecvStream) -> Result<wire::Hello, FrameError> {
    let head = frame::read_head(recv, LIMIT).await?;
    match frame::read_body::<wire::Request>(recv, head).await?.0.kind {
        Some(request::Kind::Hello(hello)) => Ok(hello),
        _ => Err(FrameError::Bad("the first request on a connection must be a Hello".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Open;

    impl Gate for Open {
        fn hello(&self) -> wire::Hello {
            wire::Hello { version_min: 99, software: "made up".into(), ..Default::default() }
        }

        fn admit(&self, _: PublicKey, _: &wire::Hello) -> Result<Role, wire::Error> {
            Ok(Role::Stranger)
        }
    }

    #[test]
    fn versions_must_overlap_and_the_error_names_both() {
        let judge = |version_min, version_max| {
            judge(&Open, PublicKey([1; 32]), &wire::Hello { version_min, version_max, ..Default::default() })
        };
        let (oldest, newest) = PROTOCOL_VERSIONS;
        assert_eq!(judge(oldest, newest + 7), Ok(Role::Stranger));
        let error = judge(newest + 1, newest + 3).unwrap_err();
        assert_eq!(error.code(), wire::Code::UnsupportedVersion);
        assert!(error.message.contains(&format!("here {oldest} to {newest}, there {} to {}", newest + 1, newest + 3)));
        assert!(judge(0, oldest - 1).is_err());
        assert!(judge(newest + 1, oldest).is_err());
    }

    #[test]
    fn the_transport_speaks_for_versions_and_software() {
        let hello = own(&Open);
        assert_eq!((hello.version_min, hello.version_max), PROTOCOL_VERSIONS);
        assert!(hello.software.starts_with("potluck "));
    }
}
