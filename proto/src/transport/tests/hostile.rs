//! What no endpoint would say: frames and Hellos made by hand on raw QUIC, and bytes that are no QUIC at all.

use std::net::SocketAddr;
use std::sync::Arc;

use prost::Message;
use quinn::{ClientConfig, Connection};

use super::rig::{Rig, TestGate, bytes_of, get, patience, secret, until};
use crate::transport::frame::{self, FrameLimit};
use crate::transport::tls::{Tls, server_name};
use crate::transport::{CallError, Gate, Limits, Peer, quic};
use crate::wire::{self, Code, PROTOCOL_VERSIONS, reply, request};

/// A raw connection to `rig`, with a valid key and no manners; the endpoint keeps it alive.
async fn connect(rig: &Rig, number: u8) -> (quinn::Endpoint, Connection) {
    let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    endpoint.set_default_client_config(ClientConfig::new(Tls::new(&secret(number)).unwrap().client));
    let name = server_name(rig.endpoint.public_key());
    let connection = endpoint.connect(rig.endpoint.local_address(), &name).unwrap().await.unwrap();
    (endpoint, connection)
}

fn hello(number: u8) -> wire::Hello {
    let (version_min, version_max) = PROTOCOL_VERSIONS;
    wire::Hello { version_min, version_max, ..TestGate::node(number).hello() }
}

fn framed(message: &[u8], payload: &[u8]) -> Vec<u8> {
    let lengths = [message.len() as u32, payload.len() as u32].map(u32::to_le_bytes).concat();
    [&lengths[..], message, payload].concat()
}

fn request(kind: request::Kind) -> Vec<u8> {
    framed(&wire::Request { kind: Some(kind) }.encode_to_vec(), b"")
}

/// Sends these bytes on a stream of their own, ends it, and gives the answer.
async fn ask(connection: &Connection, bytes: &[u8]) -> Result<reply::Kind, String> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| error.to_string())?;
    // May be stopped before the end: the answer counts.
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    let limit = FrameLimit { message: wire::MESSAGE_LIMIT, payload: wire::PAYLOAD_LIMIT };
    let answer = async {
        let head = frame::read_head(&mut recv, limit).await?;
        frame::read_body::<wire::Reply>(&mut recv, head).await
    };
    answer.await.map_err(|error| format!("{error:?}"))?.0.kind.ok_or_else(|| "an empty reply".into())
}

fn code(answer: Result<reply::Kind, String>) -> Code {
    match answer {
        Ok(reply::Kind::Error(error)) => error.code(),
        other => panic!("not an error: {other:?}"),
    }
}

#[tokio::test]
async fn a_version_from_the_future_is_refused_by_name() {
    let rig = Rig::node(1);
    let (_endpoint, connection) = connect(&rig, 9).await;
    let hello = wire::Hello { version_min: 40, version_max: 41, ..hello(9) };
    match ask(&connection, &request(request::Kind::Hello(hello))).await {
        Ok(reply::Kind::Error(error)) => {
            assert_eq!(error.code(), Code::UnsupportedVersion);
            assert!(error.message.contains("40 to 41"), "{}", error.message);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(connection.closed().await, quinn::ConnectionError::ApplicationClosed(_)));
}

#[tokio::test]
async fn an_acceptor_of_another_version_is_refused_by_the_dialler() {
    let limits = Limits::node();
    let quic::Quic { server, .. } = quic::Quic::new(&secret(8), &limits, None).unwrap();
    let raw = quinn::Endpoint::server(server, ([127, 0, 0, 1], 0).into()).unwrap();
    let peer = Peer { key: secret(8).public(), addresses: vec![raw.local_addr().unwrap()] };
    let future = tokio::spawn(async move {
        let connection = raw.accept().await.unwrap().await.unwrap();
        let (mut send, _recv) = connection.accept_bi().await.unwrap();
        let hello = wire::Hello { version_min: 7, version_max: 9, ..hello(8) };
        let reply = wire::Reply { kind: Some(reply::Kind::Hello(hello)) };
        send.write_all(&framed(&reply.encode_to_vec(), b"")).await.unwrap();
        send.finish().unwrap();
        connection.closed().await
    });
    let error = Rig::node(1).endpoint.call(&peer, get(1), Vec::new(), patience()).await.unwrap_err();
    assert!(matches!(error, CallError::Unaccepted(_)), "{error}");
    assert_eq!(error.code(), Some(Code::UnsupportedVersion));
    assert!(matches!(future.await.unwrap(), quinn::ConnectionError::ApplicationClosed(_)));
}

#[tokio::test]
async fn nothing_is_served_before_the_hello() {
    let rig = Rig::node(1);
    for first in [request(get(1)), framed(b"\xff\xff\xff", b""), vec![0xff; 8], b"abc".to_vec(), framed(b"", b"")] {
        let (_endpoint, connection) = connect(&rig, 9).await;
        assert_eq!(code(ask(&connection, &first).await), Code::BadRequest);
        connection.closed().await;
    }
    // A Hello that never comes is waited for no longer than the limit.
    let limits = Limits { hello_timeout: std::time::Duration::from_millis(200), ..Limits::node() };
    let hasty = Rig::with(2, TestGate::node(2), limits);
    let (_endpoint, connection) = connect(&hasty, 9).await;
    connection.closed().await;
    assert_eq!((rig.service.calls(), hasty.endpoint.stats().turned_away), (0, 1));
}

#[tokio::test]
async fn broken_frames_are_bad_requests_and_the_connection_goes_on() {
    let rig = Rig::node(1);
    let (_endpoint, connection) = connect(&rig, 9).await;
    assert!(matches!(ask(&connection, &request(request::Kind::Hello(hello(9)))).await, Ok(reply::Kind::Hello(_))));

    let good = wire::Request { kind: Some(get(1)) }.encode_to_vec();
    let lengths =
        |message: usize, payload: usize| [(message as u32).to_le_bytes(), (payload as u32).to_le_bytes()].concat();
    let long_payload = framed(&good, &bytes_of(100 << 10));
    let broken = [
        ("an empty stream", Vec::new()),
        ("half a head", lengths(1, 0)[..5].to_vec()),
        ("a message over the limit", lengths(wire::MESSAGE_LIMIT + 1, 0)),
        ("a payload over the limit", [lengths(good.len(), wire::PAYLOAD_LIMIT + 1), good.clone()].concat()),
        ("the longest lengths there are", vec![0xff; 1000]),
        ("a message that is cut", framed(&good, b"")[..9].to_vec()),
        ("a payload that is cut", long_payload[..90 << 10].to_vec()),
        ("a payload that is longer than it says", [framed(&good, b"abc"), b"x".to_vec()].concat()),
        ("a message that is none", framed(&[0xff; 50], b"")),
        ("a request of no kind", framed(b"", b"")),
        ("a request of an unknown kind", framed(&[0xa2, 0x06, 0x00], b"")),
        ("a second Hello", request(request::Kind::Hello(hello(9)))),
    ];
    for (what, bytes) in &broken {
        assert_eq!(code(ask(&connection, bytes).await), Code::BadRequest, "{what}");
    }
    assert_eq!(rig.service.calls(), 0);
    assert!(matches!(ask(&connection, &framed(&good, b"")).await, Ok(reply::Kind::GetShard(_))));
    assert_eq!(rig.endpoint.stats().request_errors, broken.len() as u64);
}

#[tokio::test]
async fn a_request_that_is_given_up_is_never_served() {
    let rig = Rig::node(1);
    let (_endpoint, connection) = connect(&rig, 9).await;
    ask(&connection, &request(request::Kind::Hello(hello(9)))).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&framed(&wire::Request { kind: Some(get(1)) }.encode_to_vec(), &[7; 10])[..20]).await.unwrap();
    send.reset(3u32.into()).unwrap();
    assert!(recv.read_to_end(100).await.is_err());
    until("it to be counted", || rig.endpoint.stats().request_errors == 1).await;
    assert_eq!(rig.service.calls(), 0);
}

#[tokio::test]
async fn random_bytes_on_the_port_disturb_nobody() {
    let (a, b) = (Rig::node(1), Rig::node(2));
    let target = b.endpoint.local_address();
    let noise = tokio::spawn(async move {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for round in 0..3000usize {
            let bytes: Vec<u8> = (0..1 + round % 1400)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                })
                .collect();
            socket.send_to(&bytes, target).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    let mut calls = 0;
    while !noise.is_finished() || calls < 20 {
        assert_eq!(a.call(&b, get(1000), Vec::new()).await.unwrap().1, bytes_of(1000));
        calls += 1;
    }
    noise.await.unwrap();
}

#[tokio::test]
async fn a_reply_that_breaks_the_protocol_is_a_bad_reply() {
    let quic::Quic { server, .. } = quic::Quic::new(&secret(8), &Limits::node(), None).unwrap();
    let mut server = server;
    server.transport_config(Arc::new(quinn::TransportConfig::default()));
    let raw = quinn::Endpoint::server(server, ([127, 0, 0, 1], 0).into()).unwrap();
    let peer = Peer { key: secret(8).public(), addresses: vec![raw.local_addr().unwrap()] };
    let put_reply = wire::Reply { kind: Some(reply::Kind::PutShard(wire::PutShardReply::default())) }.encode_to_vec();
    let replies = [
        // A payload where none was asked for, a cut one, no message, none at all.
        framed(&put_reply, b"x"),
        vec![1, 0],
        framed(&[0xff; 9], b""),
        framed(b"", b""),
    ];
    let count = replies.len();
    let liar = tokio::spawn(async move {
        let connection = raw.accept().await.unwrap().await.unwrap();
        let hello = wire::Reply { kind: Some(reply::Kind::Hello(hello(8))) };
        for bytes in [vec![framed(&hello.encode_to_vec(), b"")], replies.to_vec()].concat() {
            let (mut send, mut recv) = connection.accept_bi().await.unwrap();
            recv.read_to_end(1 << 20).await.unwrap();
            send.write_all(&bytes).await.unwrap();
            send.finish().unwrap();
        }
        connection.closed().await;
    });
    let a = Rig::node(1);
    for _ in 0..count {
        let error = a.endpoint.call(&peer, super::put(1), Vec::new(), patience()).await.unwrap_err();
        assert!(matches!(error, CallError::BadReply(_)), "{error}");
    }
    a.endpoint.close(patience()).await;
    liar.await.unwrap();
}
