//! Holds FORMAT.md to the code: each block there that is marked `vector` is what the code makes.

use std::net::Ipv6Addr;

use crate::blocks::hash_shard;
use crate::cert::{DeviceCert, MemberCert, Revocation, Rights, VaultCert};
use crate::codec::{Codec, CodecError};
use crate::head::{Head, SignedHead, VersionVector};
use crate::id::{ClusterId, DeviceId, Digest, NodeId, StripeId, VaultId};
use crate::invite::{InviteKind, InviteToken};
use crate::key::SecretKey;
use crate::member::{MemberRecord, SignedRecord, Statement, Verdict};
use crate::ring::{Ring, RingEntry, positions};
use crate::stripe::{Scheme, SchemeError, SignedHeader, StripeHeader};

const FORMAT: &str = include_str!("../FORMAT.md");

fn key(byte: u8) -> SecretKey {
    SecretKey::from_seed(&[byte; 32])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digits of a vector in FORMAT.md.
fn written(name: &str) -> String {
    let begin = format!("```vector {name}\n");
    let block = FORMAT.split_once(&begin).and_then(|(_, rest)| rest.split_once("```")).map(|(block, _)| block);
    block.unwrap_or_else(|| panic!("FORMAT.md has no vector {name:?}")).split_whitespace().collect()
}

#[track_caller]
fn assert_vector(name: &str, bytes: &[u8]) {
    let made = hex(bytes);
    let lines: Vec<&str> = (0..made.len()).step_by(96).map(|at| &made[at..made.len().min(at + 96)]).collect();
    assert!(written(name) == made, "the code makes:\n```vector {name}\n{}\n```", lines.join("\n"));
}

fn device_cert() -> DeviceCert {
    DeviceCert::issue(&key(1), DeviceId::from(key(2).public()), Rights::ALL, 6, 0)
}

#[test]
fn certificates() {
    assert_vector("member certificate", MemberCert::issue(&key(1), NodeId([2; 32]), "attic", 5, 6).as_bytes());
    assert_vector("vault certificate", VaultCert::issue(&key(1), VaultId([2; 32]), 5, 6).as_bytes());
    assert_vector("device certificate", device_cert().as_bytes());
    assert_vector("revocation", Revocation::issue(&key(1), DeviceId([2; 32]), 6).as_bytes());
}

fn member_record() -> SignedRecord {
    let cert = MemberCert::issue(&key(1), key(2).public().into(), "attic", 5, 6);
    let addresses = vec![([127, 0, 0, 1], 4701).into(), (Ipv6Addr::LOCALHOST, 4702).into()];
    let software = "potluck 0.1.0".into();
    let (left, leaving, full) = (false, true, false);
    let (generation, life, capacity) = (7, 8, 9 << 30);
    MemberRecord { cert, generation, life, addresses, capacity, left, leaving, full, software }.sign(&key(2))
}

fn head() -> SignedHead {
    let mut vector = VersionVector::default();
    vector.set(3, 300);
    vector.set(4, 1);
    let (cluster, sweep_hash) = (ClusterId::from(key(1).public()), Digest([0; 32]));
    let device = device_cert();
    Head { cluster, device, vector, sweep: 0, sweep_hash, created_ms: 5, root: vec![0xaa; 3] }.sign(&key(2))
}

#[test]
fn membership_and_heads() {
    assert_vector("member record", member_record().as_bytes());
    let statement = Statement::issue(&key(1), NodeId([2; 32]), Verdict::Lost { generation: 7 }, 6);
    assert_vector("statement", statement.as_bytes());
    assert_vector("head", head().bytes());
    let token = InviteToken {
        kind: InviteKind::Vault,
        cluster: ClusterId([1; 32]),
        inviter: NodeId([2; 32]),
        secret: [3; 16],
        expires_s: 4,
        addresses: vec![([127, 0, 0, 1], 4701).into()],
    };
    assert_vector("invite token", token.to_string().as_bytes());
}

#[test]
fn stripe_header() -> Result<(), SchemeError> {
    let header = StripeHeader {
        vault: VaultId::from(key(1).public()),
        device: device_cert(),
        born: 3,
        created_ms: 4,
        scheme: Scheme::new(2, 1)?,
        shard_len: 64,
        data_len: 100,
        shards: [0x11, 0x12, 0x13].map(|byte| Digest([byte; 32])).to_vec(),
    };
    let signed = header.sign(&key(2));
    assert_eq!(SignedHeader::decode(signed.bytes().clone()), Ok(signed.clone()));
    assert_vector("stripe header", signed.bytes());
    assert_vector("stripe id", signed.id().as_bytes());
    Ok(())
}

#[test]
fn erasure_code() -> Result<(), CodecError> {
    let scheme: Scheme = "3+2".parse().unwrap_or_else(|error| panic!("{error}"));
    let mut parity = [0; 4];
    Codec::new(scheme).encode(&[0x00, 0x01, 0x02, 0x03, 0xfe, 0xff], &mut parity)?;
    assert_vector("parity", &parity);
    Ok(())
}

#[test]
fn block_tree() {
    let shard: Vec<u8> = (0..3 * 65_536 + 1).map(|position| (position % 251) as u8).collect();
    let (root, tree) = hash_shard(&shard);
    assert_vector("block tree", tree.as_bytes());
    assert_vector("shard hash", root.as_bytes());
}

#[test]
fn ring() -> Result<(), SchemeError> {
    let points: Vec<u8> = positions(&NodeId([2; 32]), 4).flat_map(u64::to_le_bytes).collect();
    assert_vector("ring points", &points);

    let zone = |number: u8| if number.is_multiple_of(2) { "a" } else { "b" };
    let ring = Ring::new((0..10u8).map(|number| RingEntry {
        node: NodeId([number; 32]),
        zone: zone(number).into(),
        capacity: 25 << 30,
    }));
    let firsts = |nodes: Vec<NodeId>| nodes.iter().map(|node| node.0[0]).collect::<Vec<u8>>();
    let walk = ring.walk_stripe(&StripeId([0xab; 32]), Scheme::new(2, 3)?);
    assert_vector("walk of a stripe", &firsts(walk.take(10)));
    assert_vector("head replicas", &firsts(ring.head_replicas(&VaultId([0xcd; 32]))));
    Ok(())
}
