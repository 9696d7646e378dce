//! Peers that are slow, gone, someone else, or broken.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::rig::{Behaviour, Rig, TestGate, bind_again, get, patience, quick_limits, secret};
use crate::transport::{CallError, Endpoint, Limits, Peer};
use crate::wire::Code;

const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_service_that_never_answers_ends_at_the_deadline() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    a.call(&b, get(1), Vec::new()).await.unwrap();
    b.service.behave(Behaviour::Never);
    let error = a.endpoint.call(&b.peer(), get(1), Vec::new(), SHORT).await.unwrap_err();
    assert!(matches!(error, CallError::Deadline), "{error}");
    // The connection is still good.
    b.service.behave(Behaviour::Answer);
    a.call(&b, get(1), Vec::new()).await.unwrap();
    assert_eq!(a.endpoint.stats().dialled, 1);
}

#[tokio::test]
async fn a_service_that_takes_too_long_is_dropped_and_its_caller_told() {
    let limits = Limits { service_timeout: Duration::from_millis(50), ..Limits::node() };
    let (a, b) = (Rig::node(1), Rig::with(2, TestGate::node(2), limits));
    b.service.behave(Behaviour::Never);
    assert_eq!(a.call(&b, get(1), Vec::new()).await.unwrap_err().code(), Some(Code::Internal));
}

#[tokio::test]
async fn a_service_that_panics_is_an_internal_error() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    b.service.behave(Behaviour::Panic);
    assert_eq!(a.call(&b, get(1), Vec::new()).await.unwrap_err().code(), Some(Code::Internal));
    b.service.behave(Behaviour::Answer);
    a.call(&b, get(1), Vec::new()).await.unwrap();
    assert_eq!(b.endpoint.stats().request_errors, 1);
}

#[tokio::test]
async fn another_key_at_the_address_is_not_taken_for_the_peer() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    let wrong = Peer { key: secret(3).public(), ..b.peer() };
    let error = a.endpoint.call(&wrong, get(1), Vec::new(), patience()).await.unwrap_err();
    assert!(matches!(error, CallError::WrongPeer { expected } if expected == wrong.key), "{error}");
    assert!(error.is_unreachable());
    assert_eq!(b.service.calls(), 0);
    // The right one is found behind the wrong address.
    let both = Peer { key: b.peer().key, addresses: vec![a.endpoint.local_address(), b.endpoint.local_address()] };
    Rig::node(4).endpoint.call(&both, get(1), Vec::new(), patience()).await.unwrap();
}

#[tokio::test]
async fn a_dead_peer_is_unreachable_and_found_again_when_it_is_back() {
    let (a, b) = (Rig::with(1, TestGate::node(1), quick_limits()), Rig::node(2));
    let peer = b.peer();
    a.call(&b, get(1), Vec::new()).await.unwrap();
    b.endpoint.abort();
    // The connection is silent; then no new one can be made; then the back-off answers at once.
    for _ in 0..3 {
        let error = a.endpoint.call(&peer, get(1), Vec::new(), Duration::from_secs(2)).await.unwrap_err();
        assert!(error.is_unreachable(), "{error}");
    }
    let back = bind_again(peer.addresses[0], 2).await;
    let answered = async {
        while a.endpoint.call(&peer, get(1), Vec::new(), SHORT).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(patience(), answered).await.is_ok(), "the peer is back, and is not reached");
    assert!(back.service.calls() > 0);
}

#[tokio::test]
async fn a_restarted_peer_is_noticed_at_once() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    let peer = b.peer();
    a.call(&b, get(1), Vec::new()).await.unwrap();
    b.endpoint.abort();
    let back = bind_again(peer.addresses[0], 2).await;
    // Far longer than a reset takes, shorter than the idle timeout; no error reaches the caller.
    a.endpoint.call(&peer, get(1), Vec::new(), Duration::from_secs(10)).await.unwrap();
    assert_eq!((back.service.calls(), a.endpoint.stats().dialled), (1, 2));
}

#[tokio::test]
async fn backing_off_answers_at_once_and_ends_when_the_address_changes() {
    let limits = Limits { backoff: (Duration::from_secs(600), Duration::from_secs(600)), ..quick_limits() };
    let (a, b) = (Rig::with(1, TestGate::node(1), limits), Rig::node(2));
    let gone = SocketAddr::from(([127, 0, 0, 1], 1));
    let peer = Peer { addresses: vec![gone], ..b.peer() };
    for _ in 0..5 {
        let error = a.endpoint.call(&peer, get(1), Vec::new(), patience()).await.unwrap_err();
        assert!(error.is_unreachable(), "{error}");
    }
    assert_eq!(a.endpoint.stats().dial_failures, 1);
    a.call(&b, get(1), Vec::new()).await.unwrap();
}

#[tokio::test]
async fn callers_share_one_dial() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    let calls = (0..50).map(|_| a.call(&b, get(1), Vec::new()));
    assert!(futures_util::future::join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!((a.endpoint.stats().dialled, b.endpoint.stats().accepted), (1, 1));
}

#[tokio::test]
async fn a_call_that_is_dropped_is_given_up_and_harms_no_other() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    a.call(&b, get(1), Vec::new()).await.unwrap();
    b.service.behave(Behaviour::WaitForGo);
    let peer = b.peer();
    let call = a.endpoint.call(&peer, get(1), Vec::new(), patience());
    assert!(tokio::time::timeout(SHORT, call).await.is_err());
    b.service.behave(Behaviour::Answer);
    a.call(&b, get(1), Vec::new()).await.unwrap();
    b.service.go.add_permits(1);
    a.endpoint.close(patience()).await;
}

/// A socket that fails with the first packet it is asked for.
#[derive(Debug)]
struct Broken;

impl AsyncUdpSocket for Broken {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Broken)
    }

    fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
        Ok(())
    }

    fn poll_recv(&self, _: &mut Context<'_>, _: &mut [IoSliceMut<'_>], _: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::NetworkDown.into()))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([127, 0, 0, 1], 1).into())
    }
}

impl UdpPoller for Broken {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_broken_socket_is_reported() {
    let runtime = Arc::new(quinn::TokioRuntime);
    let gate = TestGate::node(1);
    let endpoint = Endpoint::with_socket(Arc::new(Broken), runtime, None, &secret(1), gate, Limits::node()).unwrap();
    tokio::time::timeout(patience(), endpoint.failed()).await.unwrap();
    let error = endpoint.call(&Rig::node(2).peer(), get(1), Vec::new(), patience()).await.unwrap_err();
    assert!(matches!(error, CallError::Stopped(_)), "{error}");
}

#[test]
fn without_a_runtime_there_is_an_error_and_no_panic() {
    let gate = TestGate::node(1);
    let bound = Endpoint::bind(([127, 0, 0, 1], 0).into(), &secret(1), gate, Limits::node());
    assert!(matches!(bound, Err(crate::transport::BindError::NoRuntime)));
}
