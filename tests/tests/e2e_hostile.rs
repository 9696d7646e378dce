//! A real node under what no client of ours would send to its port: noise, a protocol of the future, frames that lie about
//! their length. Each is answered by name or dropped, the node goes on serving, and nothing in it panics.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use potluck_node::identity;
use potluck_proto::key::SecretKey;
use potluck_proto::wire::{self, Code, MESSAGE_LIMIT, PAYLOAD_LIMIT, PROTOCOL_VERSIONS, reply, request};
use potluck_tests::process::{Processes, quick};
use potluck_tests::raw_key::{AnyKey, certified};
use prost::Message;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::crypto::aws_lc_rs;

/// Longest wait for any answer, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longest message of someone who has shown no certificate, in bytes: see proto/FORMAT.md.
const STRANGER_MESSAGE_LIMIT: usize = 16 << 10;

/// A raw connection with a valid key and no manners; the endpoint keeps it alive.
async fn connect(address: SocketAddr, key: &SecretKey) -> (quinn::Endpoint, Connection) {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let certified = certified(key, &provider).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyKey(provider)))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified)));
    tls.enable_sni = false;
    tls.alpn_protocols = vec![b"potluck".to_vec()];
    let mut endpoint = quinn::Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    endpoint.set_default_client_config(ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap())));
    let connection = endpoint.connect(address, "node").unwrap().await.unwrap();
    (endpoint, connection)
}

fn framed(message: &[u8], payload: &[u8]) -> Vec<u8> {
    [&lengths(message.len(), payload.len())[..], message, payload].concat()
}

fn lengths(message: usize, payload: usize) -> Vec<u8> {
    [message, payload].map(|length| u32::try_from(length).unwrap().to_le_bytes()).concat()
}

fn request(kind: request::Kind) -> Vec<u8> {
    framed(&wire::Request { kind: Some(kind) }.encode_to_vec(), b"")
}

/// Sends these bytes on a stream of their own, ends it, and gives the answer.
async fn ask(connection: &Connection, bytes: &[u8]) -> reply::Kind {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    // May be stopped before the end: the answer counts.
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    let answer = recv.read_to_end(MESSAGE_LIMIT).await.unwrap();
    wire::Reply::decode(&answer[8..]).unwrap().kind.unwrap()
}

async fn refusal(connection: &Connection, bytes: &[u8]) -> wire::Error {
    match ask(connection, bytes).await {
        reply::Kind::Error(error) => error,
        other => panic!("not an error: {other:?}"),
    }
}

fn hello(cert: Option<&[u8]>) -> wire::Hello {
    let (version_min, version_max) = PROTOCOL_VERSIONS;
    let member_cert = cert.map(Bytes::copy_from_slice).unwrap_or_default();
    wire::Hello { version_min, version_max, member_cert, ..Default::default() }
}

/// Its operator is answered, and nothing has panicked.
fn serves(cluster: &Processes, after: &str) {
    let status = cluster.status(0).unwrap_or_else(|error| panic!("after {after}: {error:#}"));
    assert_eq!(status["members_up"], 1, "after {after}");
    assert!(!cluster.whole_log(0).contains("panicked"), "after {after}: {}", cluster.whole_log(0));
}

#[test]
fn a_node_bears_what_no_client_would_send() {
    let mut cluster = Processes::found(quick()).unwrap();
    let address = cluster.address(0).unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    noise(address, &mut rng);
    serves(&cluster, "random bytes");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let within = |what: &str, act: &mut dyn FnMut()| {
        act();
        serves(&cluster, what);
    };
    let stranger = SecretKey::generate(&mut rng);
    within("a version of the future", &mut || runtime.block_on(timely(a_future_version(address, &stranger))));
    within("no Hello", &mut || runtime.block_on(timely(no_hello(address, &stranger))));
    within("a stranger's broken frames", &mut || {
        runtime.block_on(timely(broken_frames(address, &stranger, None, STRANGER_MESSAGE_LIMIT, 0)));
    });
    let (member, cert) = identity::operator(cluster.data(0)).unwrap();
    within("a member's broken frames", &mut || {
        let cert = Some(cert.as_bytes());
        runtime.block_on(timely(broken_frames(address, &member, cert, MESSAGE_LIMIT, PAYLOAD_LIMIT)));
    });
    within("streams that are never ended", &mut || runtime.block_on(timely(left_open(address, &stranger))));
    cluster.stop(0).unwrap();
}

async fn timely(act: impl Future<Output = ()>) {
    tokio::time::timeout(PATIENCE, act).await.unwrap();
}

/// Datagrams of every length; some pass for the first packet of a connection, of a QUIC that is known or not.
fn noise(address: SocketAddr, rng: &mut StdRng) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut packet = [0; 1472];
    for round in 0..5000 {
        let length = rng.random_range(1..packet.len());
        rng.fill_bytes(&mut packet[..length]);
        match round % 4 {
            0 => packet[0] |= 0xc0,
            1 => packet[..6].copy_from_slice(&[0xc0, 0, 0, 0, rng.random_range(0..3), 8]),
            2 => packet[0] = packet[0] & 0x7f | 0x40,
            _ => {}
        }
        // A full queue drops a packet: that is as good.
        let _ = socket.send_to(&packet[..length], address);
    }
}

async fn a_future_version(address: SocketAddr, key: &SecretKey) {
    let (_endpoint, connection) = connect(address, key).await;
    let future = wire::Hello { version_min: 40, version_max: 41, software: "potluck 40".into(), ..hello(None) };
    let error = refusal(&connection, &request(request::Kind::Hello(future))).await;
    assert_eq!(error.code(), Code::UnsupportedVersion);
    let (oldest, newest) = PROTOCOL_VERSIONS;
    for part in [&format!("here {oldest} to {newest}"), "40 to 41", "potluck 40"] {
        assert!(error.message.contains(part), "{part} is not in {}", error.message);
    }
    match connection.closed().await {
        ConnectionError::ApplicationClosed(close) => assert_eq!(close.reason, "UNSUPPORTED_VERSION"),
        other => panic!("{other}"),
    }
    // Whoever also speaks a version of today is welcome.
    let (_endpoint, connection) = connect(address, key).await;
    let both = wire::Hello { version_max: 41, ..hello(None) };
    assert!(matches!(ask(&connection, &request(request::Kind::Hello(both))).await, reply::Kind::Hello(_)));
}

async fn no_hello(address: SocketAddr, key: &SecretKey) {
    let status = request(request::Kind::Status(wire::Status::default()));
    for first in [status, lengths(STRANGER_MESSAGE_LIMIT + 1, 0), vec![0xff; 8], b"GET / HTTP/1.1\r\n".to_vec()] {
        let (_endpoint, connection) = connect(address, key).await;
        assert_eq!(refusal(&connection, &first).await.code(), Code::BadRequest);
        assert!(matches!(connection.closed().await, ConnectionError::ApplicationClosed(_)));
    }
}

/// `message` and `payload`: the longest that this caller may send, in bytes.
async fn broken_frames(address: SocketAddr, key: &SecretKey, cert: Option<&[u8]>, message: usize, payload: usize) {
    let (_endpoint, connection) = connect(address, key).await;
    let welcome = ask(&connection, &request(request::Kind::Hello(hello(cert)))).await;
    assert!(matches!(welcome, reply::Kind::Hello(_)), "{welcome:?}");
    let status = request(request::Kind::Status(wire::Status::default()));
    let broken = [
        ("an empty stream", Vec::new()),
        ("half of the lengths", lengths(1, 0)[..5].to_vec()),
        ("a message over the limit", [lengths(message + 1, 0), vec![0; 4096]].concat()),
        ("a payload over the limit", [lengths(2, payload + 1), vec![0; 4096]].concat()),
        ("the longest lengths there are", vec![0xff; 4096]),
        ("a message that is cut", status[..status.len() - 1].to_vec()),
        ("a message that is none", framed(&[0xff; 50], b"")),
        ("bytes behind the end", [&status[..], b"x"].concat()),
        ("a second Hello", request(request::Kind::Hello(hello(cert)))),
    ];
    for (what, bytes) in &broken {
        let error = refusal(&connection, bytes).await;
        assert_eq!(error.code(), Code::BadRequest, "{what}: {}", error.message);
    }
    // The connection itself is sound.
    match (cert, ask(&connection, &status).await) {
        (Some(_), reply::Kind::Status(status)) => assert_eq!(status.members_up, 1),
        (None, reply::Kind::Error(error)) => assert_eq!(error.code(), Code::NotAdmitted),
        (_, other) => panic!("{other:?}"),
    }
}

/// Requests begun and abandoned: on streams that stay open, on streams that are reset, on a connection that just goes.
async fn left_open(address: SocketAddr, key: &SecretKey) {
    let status = request(request::Kind::Status(wire::Status::default()));
    for _ in 0..20 {
        let (endpoint, connection) = connect(address, key).await;
        ask(&connection, &request(request::Kind::Hello(hello(None)))).await;
        let mut open = Vec::new();
        for reset in [false, true, false] {
            let (mut send, recv) = connection.open_bi().await.unwrap();
            send.write_all(&status[..6]).await.unwrap();
            if reset {
                send.reset(3u32.into()).unwrap();
            }
            open.push((send, recv));
        }
        endpoint.close(99u32.into(), b"\xff\0 no reason");
    }
}
