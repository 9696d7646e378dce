//! Nodes that keep shards and heads in memory, and misbehave when told to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use potluck_proto::blocks::{chaining_values, widen};
use potluck_proto::cert::{DeviceCert, MemberCert, Rights, VaultCert};
use potluck_proto::codec::Codec;
use potluck_proto::id::{Digest, NodeId, StripeId, VaultId};
use potluck_proto::key::{PublicKey, SecretKey};
use potluck_proto::member::{MemberRecord, MemberTable};
use potluck_proto::replica::{RefusedHead, Replica, ReplicaList};
use potluck_proto::stripe::{Scheme, SignedHeader, StripeHeader};
use potluck_proto::transport::{Answer, Caller, Endpoint, Executor, Gate, Limits, Role, Service};
use potluck_proto::wire::{self, Code, reply, request};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::cluster::gate::ClientGate;
use crate::cluster::{Cluster, Parts};

/// How a fake node misbehaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Shards are sent with one bit changed.
    WrongBytes,
    /// A sound shard of the stripe is sent, but one that was not asked for, under the number of the one that was.
    AnotherIndex,
    /// A sound shard of another stripe is sent, with that stripe's header.
    AnotherStripe,
    /// Nothing about shards or heads is ever answered.
    Silent,
    /// Every shard is denied.
    NotFound,
    /// No shard is taken.
    Full,
    /// No head is taken, for good.
    HeadsRefused,
    /// Nothing about heads is answered for now.
    HeadsAway,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) shards: BTreeMap<(StripeId, usize), (SignedHeader, Bytes)>,
    pub(crate) replicas: BTreeMap<VaultId, Replica>,
    pub(crate) fault: Fault,
    pub(crate) checks: usize,
    up: Vec<Bytes>,
}

pub(crate) struct Fake {
    cert: MemberCert,
    table: Mutex<Option<MemberTable>>,
    state: Mutex<State>,
}

impl Fake {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MemberTable {
        self.table.lock().unwrap().clone().unwrap()
    }

    fn answer(&self, request: request::Kind, payload: Bytes) -> Result<Answer, wire::Error> {
        match request {
            request::Kind::Members(call) => {
                let table = self.table();
                let digest = Bytes::copy_from_slice(table.digest().as_bytes());
                let news = (call.digest != digest).then(|| table.to_wire());
                let reply = wire::MembersReply { table: news, digest, up: self.state().up.clone() };
                Ok(Answer::of(reply::Kind::Members(reply)))
            }
            request::Kind::PutShard(call) => {
                let header = SignedHeader::decode(call.header)?;
                let index = call.index as usize;
                let mut state = self.state();
                if state.fault == Fault::Full {
                    return Err(wire::Error::new(Code::Full, "no space"));
                }
                assert_eq!(Digest::of(&payload), header.shards[index]);
                state.shards.insert((header.id(), index), (header, payload));
                Ok(Answer::of(reply::Kind::PutShard(wire::PutShardReply { already: false })))
            }
            request::Kind::GetShard(call) => self.get(&call),
            request::Kind::HaveShards(call) => {
                let state = self.state();
                let holding = |stripe: &Bytes| {
                    let stripe = StripeId::from_slice(stripe).unwrap();
                    let held = state.shards.keys().filter(|(held, _)| *held == stripe);
                    let live = held.map(|(_, index)| *index as u32).collect();
                    wire::Holding { live, ..wire::Holding::default() }
                };
                let holdings = call.stripes.iter().map(holding).collect();
                Ok(Answer::of(reply::Kind::HaveShards(wire::HaveShardsReply { holdings })))
            }
            request::Kind::CheckShard(_) => {
                self.state().checks += 1;
                Ok(Answer::of(reply::Kind::CheckShard(wire::CheckShardReply { sound: false })))
            }
            request::Kind::ReadHeads(_) | request::Kind::WriteHead(_) if self.state().fault == Fault::HeadsAway => {
                Err(wire::Error::new(Code::Overloaded, "not now"))
            }
            request::Kind::WriteHead(_) if self.state().fault == Fault::HeadsRefused => {
                Err(wire::Error::new(Code::Revoked, "never"))
            }
            request::Kind::ReadHeads(call) => self.heads(&call.vault, None),
            request::Kind::WriteHead(call) => self.heads(&call.vault, Some(call.head)),
            request::Kind::Status(_) => {
                let node = Bytes::copy_from_slice(self.cert.node().as_bytes());
                Ok(Answer::of(reply::Kind::Status(wire::StatusReply { node, ..wire::StatusReply::default() })))
            }
            _ => Err(wire::Error::new(Code::BadRequest, "not in this fake")),
        }
    }

    fn get(&self, call: &wire::GetShard) -> Result<Answer, wire::Error> {
        let stripe = StripeId::from_slice(&call.stripe).unwrap();
        let state = self.state();
        let found = state
            .shards
            .iter()
            .find(|((held, index), _)| *held == stripe && call.index.is_none_or(|wanted| wanted as usize == *index));
        let Some(((_, index), (header, shard))) = found.filter(|_| state.fault != Fault::NotFound) else {
            return Err(wire::Error::new(Code::NotFound, "no such shard"));
        };
        let range = widen(call.offset, call.length, shard.len() as u64);
        let mut payload = shard[range.start as usize..range.end as usize].to_vec();
        if state.fault == Fault::WrongBytes {
            payload[7] ^= 1;
        }
        let other = state.shards.iter().find(|((held, other), _)| match state.fault {
            Fault::AnotherIndex => *held == stripe && other != index,
            Fault::AnotherStripe => *held != stripe,
            _ => false,
        });
        let (header, shard) = match other {
            Some((_, (header, shard))) => {
                payload = shard[range.start as usize..range.end as usize].to_vec();
                (header, shard)
            }
            None => (header, shard),
        };
        let chaining_values = Bytes::copy_from_slice(chaining_values(shard).as_bytes());
        let header = header.bytes().clone();
        let reply = wire::GetShardReply { header, index: *index as u32, offset: range.start, chaining_values };
        Ok(Answer { reply: reply::Kind::GetShard(reply), payload: vec![payload.into()] })
    }

    fn heads(&self, vault: &[u8], head: Option<Bytes>) -> Result<Answer, wire::Error> {
        let vault = VaultId::from_slice(vault).unwrap();
        let list = ReplicaList::new(self.table().ring().head_replicas(&vault));
        let mut state = self.state();
        let replica = state.replicas.entry(vault).or_default();
        if replica.follow(&list, None) {
            replica.settle(&list, false);
        }
        let accepted = match head.map(potluck_proto::head::SignedHead::decode).transpose()? {
            None => false,
            Some(head) => match replica.write(head) {
                Ok(_) => true,
                Err(RefusedHead::Dominated) => false,
                Err(error) => return Err(wire::Error::new(Code::StaleSweep, error.to_string())),
            },
        };
        Ok(Answer::of(reply::Kind::Heads(wire::HeadsReply {
            heads: replica.heads().iter().map(|head| head.bytes().clone()).collect(),
            list: Bytes::copy_from_slice(replica.list().id().as_bytes()),
            settled: replica.settled(),
            accepted,
            ..wire::HeadsReply::default()
        })))
    }
}

struct FakeGate(MemberCert);

impl Gate for FakeGate {
    fn hello(&self) -> wire::Hello {
        wire::Hello {
            cluster: Bytes::copy_from_slice(self.0.cluster().as_bytes()),
            member_cert: Bytes::copy_from_slice(self.0.as_bytes()),
            ..wire::Hello::default()
        }
    }

    fn admit(&self, _key: PublicKey, hello: &wire::Hello) -> Result<Role, wire::Error> {
        Ok(Role::Device(DeviceCert::decode(&hello.device_cert)?))
    }
}

impl Service for Fake {
    fn call(
        self: Arc<Self>,
        _caller: Caller,
        request: request::Kind,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Answer, wire::Error>> {
        Box::pin(async move {
            if self.state().fault == Fault::Silent && !matches!(request, request::Kind::Members(_)) {
                std::future::pending::<()>().await;
            }
            self.answer(request, payload)
        })
    }

    fn datagram(&self, _caller: &Caller, _data: Bytes) {}
}

pub(crate) struct World {
    pub(crate) nodes: BTreeMap<NodeId, (Endpoint, Arc<Fake>)>,
    pub(crate) vault: SecretKey,
    pub(crate) device: SecretKey,
    founder: SecretKey,
    table: MemberTable,
}

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

impl World {
    /// A cluster of so many nodes, all up.
    pub(crate) fn new(count: u8) -> Self {
        Self::with_vault(count, key(2))
    }

    /// The same for the vault with this key.
    pub(crate) fn with_vault(count: u8, vault: SecretKey) -> Self {
        let founder = key(1);
        let mut table = MemberTable::new(founder.public().into());
        let mut nodes = BTreeMap::new();
        for seed in 0..count {
            let key = key(100 + seed);
            let cert = MemberCert::issue(&founder, key.public().into(), "", 0, 0);
            let gate = Arc::new(FakeGate(cert.clone()));
            let address = "127.0.0.1:0".parse().unwrap();
            let endpoint = Endpoint::bind(address, &key, gate, Limits::node()).unwrap();
            let record = MemberRecord {
                cert: cert.clone(),
                generation: 1,
                life: 0,
                addresses: vec![endpoint.local_address()],
                capacity: 1 << 40,
                left: false,
                leaving: false,
                full: false,
                software: String::new(),
            };
            table.add_record(record.sign(&key));
            let fake = Arc::new(Fake { cert: cert.clone(), table: Mutex::default(), state: Mutex::default() });
            endpoint.serve(fake.clone());
            nodes.insert(cert.node(), (endpoint, fake));
        }
        let up: Vec<Bytes> = nodes.keys().map(|node| Bytes::copy_from_slice(node.as_bytes())).collect();
        for (_, fake) in nodes.values() {
            *fake.table.lock().unwrap() = Some(table.clone());
            fake.state().up = up.clone();
        }
        Self { nodes, vault, device: key(3), founder, table }
    }

    pub(crate) fn cluster(&self) -> potluck_proto::id::ClusterId {
        self.founder.public().into()
    }

    pub(crate) fn device_cert(&self) -> DeviceCert {
        DeviceCert::issue(&self.vault, self.device.public().into(), Rights::ALL, 0, 0)
    }

    /// What admits the vault.
    pub(crate) fn vault_cert(&self) -> VaultCert {
        VaultCert::issue(&self.founder, self.vault.public().into(), 0, 0)
    }

    /// The members, as nodes tell them.
    pub(crate) fn members(&self) -> wire::Table {
        self.table.to_wire()
    }

    /// Which nodes keep a vault's heads.
    pub(crate) fn head_list(&self, vault: &VaultId) -> ReplicaList {
        ReplicaList::new(self.table.ring().head_replicas(vault))
    }

    /// A fresh client without any memory.
    pub(crate) async fn client(&self) -> Cluster {
        let cluster = self.founder.public().into();
        let vault = self.vault_cert();
        let gate = Arc::new(ClientGate::device(cluster, self.device_cert(), vault));
        let address = "127.0.0.1:0".parse().unwrap();
        let endpoint = Endpoint::bind(address, &self.device, gate, Limits::client()).unwrap();
        let client = Cluster::new(Parts {
            endpoint,
            executor: Executor::inline(),
            cluster,
            table: self.table.to_wire(),
            rng: StdRng::seed_from_u64(7),
            limits: crate::cluster::Limits::default(),
        });
        client.connect().await.unwrap();
        client
    }

    pub(crate) fn set(&self, node: NodeId, fault: Fault) {
        self.nodes[&node].1.state().fault = fault;
    }

    /// Switches a machine off, and lets the others know.
    pub(crate) fn kill(&self, node: NodeId) {
        self.nodes[&node].0.abort();
        for (_, fake) in self.nodes.values() {
            fake.state().up.retain(|up| up[..] != node.as_bytes()[..]);
        }
    }

    /// The homes of a stripe.
    pub(crate) fn homes(&self, header: &SignedHeader) -> Vec<NodeId> {
        self.table.ring().walk_stripe(&header.id(), header.scheme).iter().collect()
    }

    /// A coded stripe of some data.
    pub(crate) fn stripe(&self, scheme: &str, data_len: usize, salt: u8) -> (SignedHeader, Vec<Bytes>, Vec<u8>) {
        let scheme: Scheme = scheme.parse().unwrap();
        let mut data = vec![0; data_len];
        blake3::Hasher::new().update(&[salt]).finalize_xof().fill(&mut data);
        let shard_len = potluck_proto::stripe::shard_len(data_len, scheme.k());
        let mut padded = data.clone();
        padded.resize(shard_len * scheme.k(), 0);
        let mut parity = vec![0; shard_len * scheme.m()];
        Codec::new(scheme).encode(&padded, &mut parity).unwrap();
        let shards: Vec<Bytes> =
            padded.chunks(shard_len).chain(parity.chunks(shard_len)).map(Bytes::copy_from_slice).collect();
        let header = StripeHeader {
            vault: self.vault.public().into(),
            device: self.device_cert(),
            born: 0,
            created_ms: 0,
            scheme,
            shard_len: shard_len as u32,
            data_len: data_len as u32,
            shards: shards.iter().map(|shard| Digest::of(shard)).collect(),
        };
        (header.sign(&self.device), shards, data)
    }

    /// Who holds which index of a stripe.
    pub(crate) fn held(&self, stripe: &StripeId) -> BTreeMap<NodeId, BTreeSet<usize>> {
        let held = |fake: &Fake| {
            fake.state().shards.keys().filter(|(held, _)| held == stripe).map(|(_, index)| *index).collect()
        };
        let held = self.nodes.iter().map(|(node, (_, fake))| (*node, held(fake)));
        held.filter(|(_, indices): &(NodeId, BTreeSet<usize>)| !indices.is_empty()).collect()
    }
}
