//! Makes a call: finds a connection, sends the request, reads the reply, all before the deadline.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::WriteError;
use tokio::time::{Instant, timeout_at};

use super::frame::{self, FrameError, FrameLimit, Head};
use super::limits::{DEAD_AFTER, LISTEN_INTERVAL, LONGEST_DEADLINE, UNREACHABLE_AFTER};
use super::link::Link;
use super::pool::Next;
use super::shared::Shared;
use super::{CallError, Peer, close_code};
use crate::wire::{self, reply, request};

/// Sends `request` to `peer` and waits for the reply.
pub(super) async fn call(
    shared: &Arc<Shared>,
    peer: &Peer,
    request: request::Kind,
    payload: Vec<Bytes>,
    deadline: Duration,
) -> Result<(reply::Kind, Bytes), CallError> {
    let end = Instant::now() + deadline.min(LONGEST_DEADLINE);
    if let Some(error) = shared.stopped() {
        return Err(error);
    }
    let _running = shared.running();
    let limit = reply_limit(&request);
    let message = wire::Request { kind: Some(request) };
    let (head, frame) = frame::encode(&message, payload).map_err(CallError::BadRequest)?;
    let exchange = |link: Arc<Link>| exchange(shared, link, head, frame.clone(), limit, end);

    let (link, found) = connect(shared, peer, end).await?;
    match exchange(link).await {
        // A connection that was there may have been dead for long, or closed by the other side while unused.
        Err(CallError::Closed(reason)) if found => {
            tracing::debug!(peer = ?peer.key, reason, "the connection was lost; trying another");
            exchange(connect(shared, peer, end).await?.0).await
        }
        result => result,
    }
}

/// What the reply may hold: only a shard has a payload.
fn reply_limit(request: &request::Kind) -> FrameLimit {
    let payload = if matches!(request, request::Kind::GetShard(_)) { wire::PAYLOAD_LIMIT } else { 0 };
    FrameLimit { message: wire::MESSAGE_LIMIT, payload }
}

/// A connection to `peer`, and whether it was there before.
pub(super) async fn connect(shared: &Arc<Shared>, peer: &Peer, end: Instant) -> Result<(Arc<Link>, bool), CallError> {
    let next = shared.pool().next(peer, Instant::now());
    let mut dial = match next {
        Next::Use(link) => return Ok((link, true)),
        Next::Fail(error) => return Err(error),
        Next::Wait(dial) => dial,
        Next::Dial(dial) => {
            shared.start_dial(peer.clone());
            dial
        }
    };
    let result = match timeout_at(end, dial.wait_for(Option::is_some)).await {
        Ok(Ok(result)) => result.clone(),
        Ok(Err(_)) => None,
        Err(_) => {
            let reason = "not connected before the deadline".into();
            return Err(CallError::Unreachable { peer: peer.key, reason });
        }
    };
    Ok((result.unwrap_or(Err(CallError::Stopped("its dial was broken off")))?, false))
}

async fn exchange(
    shared: &Shared,
    link: Arc<Link>,
    head: Head,
    frame: Vec<Bytes>,
    limit: FrameLimit,
    end: Instant,
) -> Result<(reply::Kind, Bytes), CallError> {
    let _busy = link.busy();
    link.listen();
    let mut talk = pin!(converse(shared, &link, head, frame, limit));
    loop {
        let look = end.min(Instant::now() + LISTEN_INTERVAL);
        if let Ok(result) = timeout_at(look, &mut talk).await {
            return result;
        }
        let silence = link.silence();
        let late = Instant::now() >= end;
        if silence >= DEAD_AFTER {
            link.connection.close(close_code::UNUSED, b"silent");
        } else if !late {
            continue;
        } else if silence < UNREACHABLE_AFTER {
            return Err(CallError::Deadline);
        }
        let reason = "its connection has fallen silent".into();
        return Err(CallError::Unreachable { peer: link.caller.key, reason });
    }
}

async fn converse(
    shared: &Shared,
    link: &Link,
    head: Head,
    frame: Vec<Bytes>,
    limit: FrameLimit,
) -> Result<(reply::Kind, Bytes), CallError> {
    let _unanswered = link.unanswered(head.frame_len()).await;
    let (send, mut recv) = link.connection.open_bi().await.map_err(|error| CallError::Closed(error.to_string()))?;
    let mut send = Sending { stream: send, whole: false };
    match frame::write(&mut send.stream, frame).await {
        Ok(()) => {
            send.whole = true;
            shared.counters.bytes_out.add(head.frame_len());
        }
        // The other side wants no more of the request; its answer says why.
        Err(WriteError::Stopped(_)) => {}
        Err(error) => return Err(CallError::Closed(error.to_string())),
    }
    let not_understood = |error| match error {
        FrameError::Bad(reason) => CallError::BadReply(reason),
        FrameError::Gone(reason) => CallError::Closed(reason),
    };
    let head = frame::read_head(&mut recv, limit).await.map_err(not_understood)?;
    let (message, payload) = frame::read_body::<wire::Reply>(&mut recv, head).await.map_err(not_understood)?;
    shared.counters.bytes_in.add(head.frame_len());
    match message.kind {
        Some(reply::Kind::Error(error)) => Err(CallError::Refused(error)),
        Some(kind) => Ok((kind, payload)),
        None => Err(CallError::BadReply("it is of a kind that is not known here".into())),
    }
}

/// A request that is given up before it was sent whole is reset: quinn would end it as if it were whole.
struct Sending {
    stream: quinn::SendStream,
    whole: bool,
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.whole {
            // Fails if the other side has stopped it already: just as good.
            let _ = self.stream.reset(close_code::GIVEN_UP);
        }
    }
}
