//! Answers what comes over one connection: requests, each on a task of its own, and datagrams.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use quinn::{RecvStream, SendStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::executor::message;
use super::frame::{self, FrameError, FrameLimit, HEAD_LEN};
use super::limits::{ADMISSION_TIME, DECODED_FACTOR, FRAME_TIME, SMALL_REQUEST, STRANGER_MESSAGE_LIMIT, frame_time};
use super::link::{self, Link};
use super::shared::{Running, Shared, State, take_request, whole};
use super::{Answer, close_code};
use crate::wire::{self, Code, reply, request};

/// Begins to serve `link`, until it ends.
pub(super) fn start(shared: &Arc<Shared>, link: &Arc<Link>) {
    tokio::spawn(requests(shared.clone(), link.clone()));
    tokio::spawn(datagrams(shared.clone(), link.clone()));
}

async fn requests(shared: Arc<Shared>, link: Arc<Link>) {
    let reason = loop {
        let (send, recv) = match link.connection.accept_bi().await {
            Ok(stream) => stream,
            Err(error) => break error,
        };
        // No further stream is taken while this one waits for a slot: the limits of QUIC then hold the other side back.
        let slot = timeout(ADMISSION_TIME, shared.slots.clone().acquire_owned()).await;
        let slot = slot.ok().and_then(Result::ok);
        tokio::spawn(answer(shared.clone(), link.clone(), send, recv, slot, shared.running()));
    };
    tracing::debug!(peer = ?link.caller.key, %reason, "connection ended");
    shared.pool().remove(&link);
}

async fn datagrams(shared: Arc<Shared>, link: Arc<Link>) {
    while let Ok(data) = link.connection.read_datagram().await {
        let Some(service) = shared.service.get() else { continue };
        // A sign of life was asked for; the acknowledgement is one.
        if data.is_empty() {
            continue;
        }
        if shared.gate.still_admitted(&link.caller).is_err() {
            shared.counters.datagrams_dropped.one();
            continue;
        }
        shared.counters.datagrams_in.one();
        link.touch();
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| service.datagram(&link.caller(), data))) {
            tracing::error!(panic = message(&*panic), "a datagram made the service panic");
        }
    }
}

/// Why a request has no answer of the service.
enum Failure {
    /// Say so.
    Tell(wire::Error),
    /// Nobody listens.
    Gone,
}

impl From<wire::Error> for Failure {
    fn from(error: wire::Error) -> Self {
        Failure::Tell(error)
    }
}

impl From<FrameError> for Failure {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Bad(reason) => wire::Error::new(Code::BadRequest, reason).into(),
            FrameError::Gone(_) => Failure::Gone,
        }
    }
}

async fn answer(
    shared: Arc<Shared>,
    link: Arc<Link>,
    mut send: SendStream,
    mut recv: RecvStream,
    slot: Option<OwnedSemaphorePermit>,
    _running: Running,
) {
    let _busy = link.busy();
    shared.counters.requests.one();
    let served = match &slot {
        Some(_) => serve(&shared, &link, &mut recv).await,
        None => Err(overloaded("requests").into()),
    };
    let (answer, _budget) = match served {
        Ok(served) => served,
        Err(Failure::Tell(error)) => {
            shared.counters.request_errors.one();
            (Answer::of(reply::Kind::Error(error)), None)
        }
        Err(Failure::Gone) => {
            shared.counters.request_errors.one();
            // Without it quinn would end the stream as if an empty answer were whole.
            let _ = send.reset(close_code::GIVEN_UP);
            return;
        }
    };
    // What is left unread would hold the connection's window. Does nothing if all was read.
    let _ = recv.stop(close_code::GIVEN_UP);
    let (head, frame) = match frame::encode(&wire::Reply { kind: Some(answer.reply) }, answer.payload) {
        Ok(encoded) => encoded,
        Err(reason) => {
            tracing::error!(reason, "the service's answer is longer than the protocol allows");
            let error = wire::Error::new(Code::Internal, "the answer is longer than the protocol allows");
            let kind = Some(reply::Kind::Error(error));
            let Ok(encoded) = frame::encode(&wire::Reply { kind }, Vec::new()) else { return };
            encoded
        }
    };
    let sent = async {
        if frame::write(&mut send, frame).await.is_ok() {
            shared.counters.bytes_out.add(head.frame_len());
            // Until it has arrived it is in memory here, and closing would lose it.
            let _ = send.stopped().await;
        }
    };
    if timeout(frame_time(head.frame_len()), sent).await.is_err() {
        let _ = send.reset(close_code::GIVEN_UP);
    }
}

fn overloaded(what: &str) -> wire::Error {
    wire::Error::new(Code::Overloaded, format!("too many {what} here; come back later"))
}

/// Reads the request and lets the service answer it. The permit is of the answer budget.
async fn serve(
    shared: &Arc<Shared>,
    link: &Link,
    recv: &mut RecvStream,
) -> Result<(Answer, Option<OwnedSemaphorePermit>), Failure> {
    let limit = if link.is_stranger() {
        FrameLimit { message: STRANGER_MESSAGE_LIMIT, payload: 0 }
    } else {
        FrameLimit { message: wire::MESSAGE_LIMIT, payload: wire::PAYLOAD_LIMIT }
    };
    let slow = || wire::Error::new(Code::BadRequest, "the request comes too slowly");
    let head = timeout(FRAME_TIME, frame::read_head(recv, limit)).await.map_err(|_| slow())??;

    // Held until the service has answered.
    let _budget = if head.message + head.payload > SMALL_REQUEST {
        let bytes = head.payload.saturating_add(head.message.saturating_mul(DECODED_FACTOR));
        let taken = timeout(ADMISSION_TIME, take_request(shared, link, bytes)).await;
        Some(taken.ok().flatten().ok_or_else(|| overloaded("bytes of requests"))?)
    } else {
        None
    };
    let body = frame::read_body::<wire::Request>(recv, head);
    let (message, payload) = timeout(frame_time(head.frame_len()), body).await.map_err(|_| slow())??;
    shared.counters.bytes_in.add(HEAD_LEN + head.message + head.payload);

    if !matches!(*shared.state.borrow(), State::Open) {
        return Err(wire::Error::new(Code::Stopping, "this process is stopping").into());
    }
    shared.gate.still_admitted(&link.caller)?;
    let Some(service) = shared.service.get() else {
        return Err(wire::Error::new(Code::NotAdmitted, "this process serves nobody").into());
    };
    let request = match message.kind {
        Some(request::Kind::Hello(_)) => {
            return Err(wire::Error::new(Code::BadRequest, "a connection has one Hello").into());
        }
        Some(request) => request,
        None => return Err(wire::Error::new(Code::BadRequest, "a request of a kind that is not known here").into()),
    };
    let budget = match service.answer_bytes(&request) {
        0 => None,
        bytes => {
            let all = whole(shared.limits.answer_budget);
            let taken = timeout(ADMISSION_TIME, link::take(&shared.answer_budget, bytes, all)).await;
            Some(taken.ok().flatten().ok_or_else(|| overloaded("bytes of answers"))?)
        }
    };
    Ok((run(shared, link, request, payload).await?, budget))
}

async fn run(shared: &Shared, link: &Link, request: request::Kind, payload: Bytes) -> Result<Answer, wire::Error> {
    let Some(service) = shared.service.get().cloned() else {
        return Err(wire::Error::new(Code::NotAdmitted, "this process serves nobody"));
    };
    let caller = link.caller();
    // The call itself is made inside, so that a panic before the first await is caught too.
    let call = AssertUnwindSafe(async move { service.call(caller, request, payload).await }).catch_unwind();
    match timeout(shared.limits.service_timeout, call).await {
        Ok(Ok(result)) => result.inspect_err(|_| shared.counters.request_errors.one()),
        Ok(Err(panic)) => {
            tracing::error!(panic = message(&*panic), "a request made the service panic");
            Err(wire::Error::new(Code::Internal, "the request failed here; the log says more"))
        }
        Err(_) => Err(wire::Error::new(Code::Internal, "the request took too long here")),
    }
}
