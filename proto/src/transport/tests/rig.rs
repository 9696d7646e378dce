//! An endpoint with a gate and a service that tests can bend.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use crate::cert::MemberCert;
use crate::key::{PublicKey, SecretKey};
use crate::transport::{Answer, CallError, Caller, Endpoint, Gate, Limits, Peer, Role, Service};
use crate::wire::{self, Code, reply, request};

/// The secret key of test peer `number`.
pub(super) fn secret(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

/// The one cluster that all are in, unless a test says otherwise.
fn cluster(foreign: bool) -> SecretKey {
    secret(if foreign { 201 } else { 200 })
}

/// Some bytes that differ from place to place.
pub(super) fn bytes_of(length: usize) -> Bytes {
    (0..length).map(|place| (place ^ (place >> 8) ^ (place >> 16)) as u8).collect::<Vec<_>>().into()
}

/// A long deadline: what it bounds is expected to happen.
pub(super) fn patience() -> Duration {
    Duration::from_secs(60)
}

/// Waits until `condition` holds.
pub(super) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(patience(), holds).await.is_ok(), "waited in vain for {what}");
}

pub(super) fn put(index: u32) -> request::Kind {
    request::Kind::PutShard(wire::PutShard { index, ..Default::default() })
}

/// Asks for so many bytes.
pub(super) fn get(length: usize) -> request::Kind {
    request::Kind::GetShard(wire::GetShard { length: length as u64, ..Default::default() })
}

/// A gate that knows one cluster.
pub(super) struct TestGate {
    key: PublicKey,
    foreign: bool,
    judges: bool,
    pub(super) show_certificate: AtomicBool,
    pub(super) revoked: AtomicBool,
}

impl TestGate {
    fn new(number: u8, foreign: bool, judges: bool, show: bool) -> Arc<Self> {
        let key = secret(number).public();
        Arc::new(Self { key, foreign, judges, show_certificate: show.into(), revoked: false.into() })
    }

    /// A member of the cluster.
    pub(super) fn node(number: u8) -> Arc<Self> {
        Self::new(number, false, true, true)
    }

    /// A member of another cluster.
    pub(super) fn foreign(number: u8) -> Arc<Self> {
        Self::new(number, true, true, true)
    }

    /// A member of another cluster who lets in everyone.
    pub(super) fn careless(number: u8) -> Arc<Self> {
        Self::new(number, true, false, true)
    }

    /// Someone without a certificate.
    pub(super) fn stranger(number: u8) -> Arc<Self> {
        Self::new(number, false, true, false)
    }
}

impl Gate for TestGate {
    fn hello(&self) -> wire::Hello {
        let cert = MemberCert::issue(&cluster(self.foreign), self.key.into(), "zone", 0, 0);
        let shown = self.show_certificate.load(Ordering::SeqCst);
        let member_cert = if shown { Bytes::copy_from_slice(cert.as_bytes()) } else { Bytes::new() };
        wire::Hello { member_cert, ..Default::default() }
    }

    fn admit(&self, key: PublicKey, hello: &wire::Hello) -> Result<Role, wire::Error> {
        if hello.member_cert.is_empty() {
            return Ok(Role::Stranger);
        }
        let cert = MemberCert::decode(&hello.member_cert)?;
        if self.judges && cert.cluster() != cluster(self.foreign).public().into() {
            return Err(wire::Error::new(Code::ForeignCluster, "another cluster"));
        }
        if PublicKey::from(cert.node()) != key {
            return Err(wire::Error::new(Code::NotAdmitted, "another's certificate"));
        }
        Ok(Role::Node(cert))
    }

    fn still_admitted(&self, _: &Caller) -> Result<(), wire::Error> {
        match self.revoked.load(Ordering::SeqCst) {
            true => Err(wire::Error::new(Code::Revoked, "revoked")),
            false => Ok(()),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Behaviour {
    #[default]
    Answer,
    /// Answers only when `go` is given.
    WaitForGo,
    Never,
    Panic,
}

/// Remembers what it was asked; gives `bytes_of` what is asked for.
#[derive(Default)]
pub(super) struct TestService {
    pub(super) last_caller: Mutex<Option<Caller>>,
    pub(super) last_payload: Mutex<Bytes>,
    pub(super) datagrams: Mutex<Vec<(PublicKey, Bytes)>>,
    pub(super) most_at_once: AtomicUsize,
    at_once: AtomicUsize,
    calls: AtomicUsize,
    behaviour: Mutex<Behaviour>,
    pub(super) go: Gone,
}

pub(super) struct Gone(Semaphore);

impl Default for Gone {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Gone {
    pub(super) fn add_permits(&self, count: usize) {
        self.0.add_permits(count);
    }
}

impl TestService {
    pub(super) fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Service for TestService {
    fn call(
        self: Arc<Self>,
        caller: Caller,
        request: request::Kind,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Answer, wire::Error>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let behaviour = *self.behaviour.lock().unwrap();
        if matches!(behaviour, Behaviour::Panic) {
            panic!("as told");
        }
        Box::pin(async move {
            let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_at_once.fetch_max(now, Ordering::SeqCst);
            *self.last_caller.lock().unwrap() = Some(caller);
            *self.last_payload.lock().unwrap() = payload;
            match behaviour {
                Behaviour::WaitForGo => self.go.0.acquire().await.unwrap().forget(),
                Behaviour::Never => std::future::pending().await,
                _ => tokio::task::yield_now().await,
            }
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            match request {
                request::Kind::PutShard(_) => Ok(Answer::of(reply::Kind::PutShard(wire::PutShardReply::default()))),
                request::Kind::GetShard(get) => Ok(Answer {
                    reply: reply::Kind::GetShard(wire::GetShardReply::default()),
                    payload: vec![bytes_of(get.length as usize)],
                }),
                _ => Err(wire::Error::new(Code::NotFound, "only put and get here")),
            }
        })
    }

    fn datagram(&self, caller: &Caller, data: Bytes) {
        self.datagrams.lock().unwrap().push((caller.key, data));
    }

    fn answer_bytes(&self, request: &request::Kind) -> usize {
        if let request::Kind::GetShard(get) = request { get.length as usize } else { 0 }
    }
}

/// An endpoint on loopback with its gate and service.
pub(super) struct Rig {
    pub(super) endpoint: Endpoint,
    pub(super) gate: Arc<TestGate>,
    pub(super) service: Arc<TestService>,
}

impl Rig {
    /// A member that serves.
    pub(super) fn node(number: u8) -> Self {
        Self::with(number, TestGate::node(number), Limits::node())
    }

    /// A member that serves and gives up dialling soon.
    pub(super) fn quick(number: u8) -> Self {
        Self::with(number, TestGate::node(number), quick_limits())
    }

    /// A member that does not serve.
    pub(super) fn client(number: u8) -> Self {
        let gate = TestGate::node(number);
        let endpoint = bind(([127, 0, 0, 1], 0).into(), number, gate.clone(), Limits::client()).unwrap();
        Self { endpoint, gate, service: Arc::default() }
    }

    pub(super) fn with(number: u8, gate: Arc<TestGate>, limits: Limits) -> Self {
        Self::serve(bind(([127, 0, 0, 1], 0).into(), number, gate.clone(), limits).unwrap(), gate)
    }

    pub(super) fn serve(endpoint: Endpoint, gate: Arc<TestGate>) -> Self {
        let service = Arc::new(TestService::default());
        endpoint.serve(service.clone());
        Self { endpoint, gate, service }
    }

    pub(super) fn peer(&self) -> Peer {
        Peer { key: self.endpoint.public_key(), addresses: vec![self.endpoint.local_address()] }
    }

    pub(super) async fn call(
        &self,
        other: &Rig,
        request: request::Kind,
        payload: Vec<Bytes>,
    ) -> Result<(reply::Kind, Bytes), CallError> {
        self.endpoint.call(&other.peer(), request, payload, patience()).await
    }
}

pub(super) fn quick_limits() -> Limits {
    Limits { dial_timeout: Duration::from_millis(500), ..Limits::node() }
}

fn bind(
    address: SocketAddr,
    number: u8,
    gate: Arc<TestGate>,
    limits: Limits,
) -> Result<Endpoint, crate::transport::BindError> {
    Endpoint::bind(address, &secret(number), gate, limits)
}

/// Binds the port again as soon as it is free.
pub(super) async fn bind_again(address: SocketAddr, number: u8) -> Rig {
    let gate = TestGate::node(number);
    let mut bound = None;
    until("the port to be free", || {
        bound = bind(address, number, gate.clone(), Limits::node()).ok();
        bound.is_some()
    })
    .await;
    Rig::serve(bound.unwrap(), gate)
}
