//! Endpoints on loopback, against each other and against raw QUIC that says what no endpoint would.

mod faults;
mod hostile;
mod rig;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use super::{CallError, Limits, Peer, Role};
use crate::wire::{self, Code, reply, request};
use rig::{Behaviour, Rig, TestGate, bytes_of, get, patience, put, until};

#[tokio::test]
async fn payloads_of_every_size_go_both_ways() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    for length in [0, 1, 64 << 10, wire::PAYLOAD_LIMIT] {
        let payload = bytes_of(length);
        // In uneven pieces, as a caller may have them.
        let pieces = vec![payload.slice(..length / 3), payload.slice(length / 3..)];
        let (reply, _) = a.call(&b, put(7), pieces).await.unwrap();
        assert!(matches!(reply, reply::Kind::PutShard(_)));
        assert_eq!(*b.service.last_payload.lock().unwrap(), payload);
        let (_, back) = a.call(&b, get(length), Vec::new()).await.unwrap();
        assert_eq!(back, payload);
    }
    let (ours, theirs) = (a.endpoint.stats(), b.endpoint.stats());
    assert_eq!((ours.calls, ours.call_errors, ours.dialled, ours.connections), (8, 0, 1, 1));
    assert_eq!((theirs.requests, theirs.request_errors, theirs.accepted), (8, 0, 1));
    assert_eq!((ours.bytes_out, ours.bytes_in), (theirs.bytes_in, theirs.bytes_out));
}

#[tokio::test]
async fn the_accepting_side_calls_back_over_the_same_connection() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    a.call(&b, get(1), Vec::new()).await.unwrap();
    // No address: only the connection that is there can be used.
    let peer = Peer { key: a.endpoint.public_key(), addresses: Vec::new() };
    let (_, back) = b.endpoint.call(&peer, get(100), Vec::new(), patience()).await.unwrap();
    assert_eq!(back, bytes_of(100));
    let caller = a.service.last_caller.lock().unwrap().clone().unwrap();
    assert_eq!((caller.key, caller.address), (b.endpoint.public_key(), b.endpoint.local_address()));
    assert!(matches!(caller.role, Role::Node(_)));
    assert_eq!((b.endpoint.stats().dialled, b.endpoint.stats().connections), (0, 1));
}

#[tokio::test]
async fn a_call_to_nobody_known_is_unreachable() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    let nowhere = Peer { key: b.endpoint.public_key(), addresses: Vec::new() };
    let error = a.endpoint.call(&nowhere, get(1), Vec::new(), patience()).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
}

#[tokio::test]
async fn two_hundred_calls_at_once_stay_within_the_bounds() {
    let limits = Limits { requests: 10, requests_per_connection: 50, request_budget: 3 << 20, ..Limits::node() };
    let (a, b) = (Rig::node(1), Rig::with(2, TestGate::node(2), limits));
    let payload = bytes_of(200 << 10);
    let calls = (0..200).map(|_| a.call(&b, put(7), vec![payload.clone()]));
    for result in join_all(calls).await {
        result.unwrap();
    }
    assert!(b.service.most_at_once.load(Ordering::SeqCst) <= 10);
    assert_eq!((b.endpoint.stats().requests, b.endpoint.stats().connections), (200, 1));
}

#[tokio::test]
async fn large_requests_are_served_one_after_the_other_when_the_budget_is_small() {
    // Together they are more than a connection's window and far more than the budget, and each message alone counts for
    // more than all of it: none may keep the window that another needs.
    let limits = Limits { request_budget: 2 << 20, ..Limits::node() };
    let (a, b) = (Rig::node(1), Rig::with(2, TestGate::node(2), limits));
    let header = bytes_of(1 << 20);
    let calls = (0..20).map(|_| {
        let request = wire::PutShard { header: header.clone(), ..Default::default() };
        a.call(&b, request::Kind::PutShard(request), vec![header.clone()])
    });
    assert!(join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!(b.service.most_at_once.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn dialling_each_other_at_once_ends_with_one_used_connection() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    let (one, other) = tokio::join!(a.call(&b, get(1), Vec::new()), b.call(&a, get(1), Vec::new()));
    assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
    // Either one connection served both, or there are two: then both sides now use the same one.
    for _ in 0..3 {
        a.call(&b, get(1), Vec::new()).await.unwrap();
        b.call(&a, get(1), Vec::new()).await.unwrap();
    }
    assert!(a.endpoint.stats().connections <= 2);
    let (from_a, from_b) =
        (b.service.last_caller.lock().unwrap().clone(), a.service.last_caller.lock().unwrap().clone());
    assert_eq!(from_a.unwrap().key, a.endpoint.public_key());
    assert_eq!(from_b.unwrap().key, b.endpoint.public_key());
}

#[tokio::test]
async fn a_datagram_arrives_with_its_sender() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    let data = bytes_of(super::DATAGRAM_LIMIT);
    // The first one has to wait for the connection.
    a.endpoint.send_datagram(&b.peer(), data.clone());
    until("the datagram", || !b.service.datagrams.lock().unwrap().is_empty()).await;
    let (from, got) = b.service.datagrams.lock().unwrap().pop().unwrap();
    assert_eq!((from, got), (a.endpoint.public_key(), data));
    // And back, over the same connection; then one that is too long.
    b.endpoint.send_datagram(&a.peer(), Bytes::from_static(b"x"));
    until("the answer", || !a.service.datagrams.lock().unwrap().is_empty()).await;
    a.endpoint.send_datagram(&b.peer(), bytes_of(60_000));
    assert_eq!((a.endpoint.stats().datagrams_out, a.endpoint.stats().datagrams_dropped), (1, 1));
}

#[tokio::test]
async fn a_client_serves_nobody() {
    let (node, client) = (Rig::node(1), Rig::client(2));
    client.call(&node, get(1), Vec::new()).await.unwrap();
    let back = node.call(&client, get(1), Vec::new()).await.unwrap_err();
    assert_eq!(back.code(), Some(Code::NotAdmitted), "{back}");
    // Nor does it accept connections.
    let other = Rig::quick(3);
    assert!(other.call(&client, get(1), Vec::new()).await.unwrap_err().is_unreachable());
}

#[tokio::test]
async fn a_foreign_cluster_is_refused_with_the_reason() {
    let (a, b) = (Rig::node(1), Rig::with(2, TestGate::foreign(2), Limits::node()));
    let error = a.call(&b, get(1), Vec::new()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::ForeignCluster), "{error}");
    assert!(matches!(error, CallError::Refused(_)));
    until("the refusal", || b.endpoint.stats().turned_away == 1).await;
    assert_eq!(b.endpoint.stats().accepted, 0);
}

#[tokio::test]
async fn the_dialler_refuses_a_foreign_cluster_too() {
    let (a, b) = (Rig::node(1), Rig::with(2, TestGate::careless(2), Limits::node()));
    let error = a.call(&b, get(1), Vec::new()).await.unwrap_err();
    assert!(matches!(error, CallError::Unaccepted(_)), "{error}");
    assert_eq!(error.code(), Some(Code::ForeignCluster));
    assert_eq!(b.service.calls(), 0);
}

#[tokio::test]
async fn whoever_is_revoked_later_is_refused_at_the_next_request() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    a.call(&b, get(1), Vec::new()).await.unwrap();
    b.gate.revoked.store(true, Ordering::SeqCst);
    let error = a.call(&b, get(1), Vec::new()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Revoked));
    a.endpoint.send_datagram(&b.peer(), Bytes::from_static(b"x"));
    until("the dropped datagram", || b.endpoint.stats().datagrams_dropped == 1).await;
    assert!(b.service.datagrams.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_new_hello_is_said_after_forgetting() {
    let (a, b) = (Rig::with(1, TestGate::stranger(1), Limits::node()), Rig::node(2));
    a.call(&b, get(1), Vec::new()).await.unwrap();
    assert_eq!(b.service.last_caller.lock().unwrap().clone().unwrap().role, Role::Stranger);
    // A stranger's payload is refused before it is read.
    let error = a.call(&b, put(1), vec![bytes_of(1 << 20)]).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::BadRequest), "{error}");
    a.gate.show_certificate.store(true, Ordering::SeqCst);
    a.endpoint.forget(b.endpoint.public_key());
    a.call(&b, put(1), vec![bytes_of(1 << 20)]).await.unwrap();
    assert!(matches!(b.service.last_caller.lock().unwrap().clone().unwrap().role, Role::Node(_)));
}

#[tokio::test]
async fn a_request_over_the_limit_is_not_sent() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    let error = a.call(&b, put(1), vec![bytes_of(wire::PAYLOAD_LIMIT + 1)]).await.unwrap_err();
    assert!(matches!(error, CallError::BadRequest(_)), "{error}");
    let header = bytes_of(wire::MESSAGE_LIMIT);
    let request = request::Kind::PutShard(wire::PutShard { header, ..Default::default() });
    assert!(matches!(a.call(&b, request, Vec::new()).await, Err(CallError::BadRequest(_))));
    assert_eq!(b.service.calls(), 0);
}

#[tokio::test]
async fn closing_lets_running_calls_end_and_refuses_new_ones() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    b.service.behave(Behaviour::WaitForGo);
    let slow = tokio::spawn({
        let (endpoint, peer) = (a.endpoint.clone(), b.peer());
        async move { endpoint.call(&peer, get(9), Vec::new(), patience()).await }
    });
    until("the call to arrive", || b.service.calls() == 1).await;
    let closing = tokio::spawn({
        let endpoint = b.endpoint.clone();
        async move { endpoint.close(patience()).await }
    });
    until("the refusal", || b.endpoint.is_stopping()).await;
    let error = a.call(&b, get(1), Vec::new()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Stopping), "{error}");
    assert!(matches!(b.call(&a, get(1), Vec::new()).await, Err(CallError::Stopped(_))));
    b.service.go.add_permits(1);
    assert_eq!(slow.await.unwrap().unwrap().1, bytes_of(9));
    closing.await.unwrap();
    // The port is free again.
    rig::bind_again(b.endpoint.local_address(), 2).await;
}

#[tokio::test]
async fn unused_connections_are_closed_by_the_side_that_dialled() {
    let limits = Limits { unused_timeout: Duration::from_millis(1), ..Limits::node() };
    let (a, b) = (Rig::with(1, TestGate::node(1), limits), Rig::node(2));
    a.call(&b, get(1), Vec::new()).await.unwrap();
    until("the connection to close", || a.endpoint.stats().connections == 0 && b.endpoint.stats().connections == 0)
        .await;
    a.call(&b, get(1), Vec::new()).await.unwrap();
}

#[tokio::test]
async fn packets_grow_where_the_path_lets_them() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    let mut mtu = 0;
    // Loopback carries anything, so discovery has to reach nearly its upper bound; it needs traffic to probe with.
    for _ in 0..200 {
        a.call(&b, put(1), vec![bytes_of(1 << 20)]).await.unwrap();
        mtu = a.endpoint.mtu(b.endpoint.public_key()).unwrap();
        if mtu > 6000 {
            break;
        }
    }
    assert!((6000..=6500).contains(&mtu), "{mtu}");
}
