//! The member table: signed records of nodes, statements about them, and the cluster's vaults and revocations.
//!
//! Every part is signed and merges by a rule that is commutative, associative and idempotent, so tables may be exchanged
//! in any order, by anyone, any number of times. What is *up* is not in here: that is each node's own observation.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::cert::{DeviceCert, MemberCert, Revocation, VaultCert, check, seal, signed_part};
use crate::encoding::{DecodeError, Decoder, Encoder};
use crate::id::{ClusterId, DeviceId, Digest, NodeId, VaultId};
use crate::key::{Context, SecretKey};
use crate::ring::{Ring, RingEntry};
use crate::wire;

/// Newest format version of a member record and of a statement.
pub const MEMBER_VERSION: u16 = 1;

/// Most addresses of a node.
pub const ADDRESS_LIMIT: usize = 8;

/// Longest software version text, in bytes.
const SOFTWARE_LIMIT: usize = 64;

/// Most revocations kept of one vault: its owner cannot fill everybody's memory.
const REVOCATION_LIMIT: usize = 1024;

/// What a node says of itself, signed by its own key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRecord {
    /// Its admission.
    pub cert: MemberCert,
    /// Grows with every record that the node makes; the highest one holds.
    pub generation: u64,
    /// How often it has been started: what tells its lives apart in gossip.
    pub life: u64,
    /// Where it can be reached, best first.
    pub addresses: Vec<SocketAddr>,
    /// Bytes it offers.
    pub capacity: u64,
    /// It has left for good and holds nothing.
    pub left: bool,
    /// It is on its way out: its shards are moving elsewhere.
    pub leaving: bool,
    /// It takes no new shards.
    pub full: bool,
    /// Its program, for people.
    pub software: String,
}

/// A record with its exact bytes and a checked signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRecord {
    record: MemberRecord,
    bytes: Vec<u8>,
}

/// Writes an address: 4 or 6, the address, the port.
pub(crate) fn encode_address(encoder: &mut Encoder, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => encoder.u8(4).raw(&ip.octets()),
        IpAddr::V6(ip) => encoder.u8(6).raw(&ip.octets()),
    };
    encoder.u16(address.port());
}

/// Reads what [`encode_address`] wrote.
pub(crate) fn decode_address(decoder: &mut Decoder<'_>) -> Result<SocketAddr, DecodeError> {
    let ip: IpAddr = match decoder.u8("address family")? {
        4 => decoder.array::<4>("address")?.into(),
        6 => decoder.array::<16>("address")?.into(),
        _ => return Err(DecodeError::Invalid { field: "address family", why: "neither 4 nor 6" }),
    };
    Ok(SocketAddr::new(ip, decoder.u16("port")?))
}

impl MemberRecord {
    /// Signs the record with the node's key.
    #[must_use]
    pub fn sign(self, node: &SecretKey) -> SignedRecord {
        let mut encoder = Encoder::new();
        encoder.u16(MEMBER_VERSION).bytes(self.cert.as_bytes()).u64(self.generation).u64(self.life);
        let addresses = &self.addresses[..self.addresses.len().min(ADDRESS_LIMIT)];
        encoder.varint(addresses.len() as u64);
        for address in addresses {
            encode_address(&mut encoder, *address);
        }
        let flags = u8::from(self.left) | u8::from(self.leaving) << 1 | u8::from(self.full) << 2;
        encoder
            .u64(self.capacity)
            .u8(flags)
            .bytes(&self.software.as_bytes()[..self.software.len().min(SOFTWARE_LIMIT)]);
        SignedRecord { bytes: seal(encoder, Context::MemberRecord, node), record: self }
    }

    /// Bytes that count for the ring: what it offers, within the limit of its certificate.
    #[must_use]
    pub fn weight(&self) -> u64 {
        match self.cert.capacity_limit() {
            0 => self.capacity,
            limit => self.capacity.min(limit),
        }
    }
}

impl SignedRecord {
    /// Reads a record; checks the cluster's signature in the certificate and the node's own over the whole.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = signed_part(bytes, "member record")?;
        decoder.version("member record", MEMBER_VERSION)?;
        let cert = MemberCert::decode(decoder.bytes("member certificate", crate::cert::CERT_LIMIT)?)?;
        let generation = decoder.u64("generation")?;
        let life = decoder.u64("life")?;
        let mut addresses = Vec::new();
        for _ in 0..decoder.count("addresses", ADDRESS_LIMIT)? {
            addresses.push(decode_address(&mut decoder)?);
        }
        let capacity = decoder.u64("capacity")?;
        let flags = decoder.u8("flags")?;
        let software = decoder.text("software", SOFTWARE_LIMIT)?.to_string();
        decoder.finish()?;
        check(bytes, Context::MemberRecord, cert.node().into(), "member record")?;
        let record = MemberRecord {
            cert,
            generation,
            life,
            addresses,
            capacity,
            left: flags & 1 != 0,
            leaving: flags & 2 != 0,
            full: flags & 4 != 0,
            software,
        };
        Ok(Self { record, bytes: bytes.into() })
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.record.cert.node()
    }

    /// The signed bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The order in which of two records of a node the greater holds.
    fn rank(&self) -> (u64, &[u8]) {
        (self.record.generation, &self.bytes)
    }
}

impl std::ops::Deref for SignedRecord {
    type Target = MemberRecord;

    fn deref(&self) -> &MemberRecord {
        &self.record
    }
}

/// What the cluster key can say of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It is gone with what it held; void once the node makes a record of a higher generation.
    Lost {
        /// The newest generation that is declared lost.
        generation: u64,
    },
    /// It is thrown out for ever.
    Evicted,
}

/// A signed verdict about a node.
#[derive(Clone, PartialEq, Eq)]
pub struct Statement {
    cluster: ClusterId,
    node: NodeId,
    verdict: Verdict,
    bytes: Vec<u8>,
}

impl Statement {
    /// The cluster key says `verdict` of `node`.
    #[must_use]
    pub fn issue(cluster: &SecretKey, node: NodeId, verdict: Verdict, issued_ms: u64) -> Self {
        let cluster_id = ClusterId::from(cluster.public());
        let (kind, generation) = match verdict {
            Verdict::Lost { generation } => (1, generation),
            Verdict::Evicted => (2, 0),
        };
        let mut encoder = Encoder::new();
        encoder
            .u16(MEMBER_VERSION)
            .raw(cluster_id.as_bytes())
            .raw(node.as_bytes())
            .u8(kind)
            .u64(generation)
            .u64(issued_ms);
        Self { cluster: cluster_id, node, verdict, bytes: seal(encoder, Context::Statement, cluster) }
    }

    /// Reads a statement and checks its signature by the cluster key that it names.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = signed_part(bytes, "statement")?;
        decoder.version("statement", MEMBER_VERSION)?;
        let cluster: ClusterId = decoder.id("cluster")?;
        let node = decoder.id("node")?;
        let kind = decoder.u8("verdict")?;
        let generation = decoder.u64("generation")?;
        decoder.u64("issued")?;
        decoder.finish()?;
        let verdict = match kind {
            1 => Verdict::Lost { generation },
            2 => Verdict::Evicted,
            _ => return Err(DecodeError::Invalid { field: "verdict", why: "neither lost nor evicted" }),
        };
        check(bytes, Context::Statement, cluster.into(), "statement")?;
        Ok(Self { cluster, node, verdict, bytes: bytes.into() })
    }

    /// The signed bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The order in which of two statements about a node the greater holds.
    fn rank(&self) -> (Verdict, &[u8]) {
        (self.verdict, &self.bytes)
    }
}

/// What a node is to the cluster, by the signed records alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Admitted, and on the ring.
    Member,
    /// It said that it has left.
    Left,
    /// Declared gone.
    Lost,
    /// Thrown out.
    Evicted,
}

/// All signed records that a process knows of its cluster.
#[derive(Clone)]
pub struct MemberTable {
    cluster: ClusterId,
    records: BTreeMap<NodeId, SignedRecord>,
    statements: BTreeMap<NodeId, Statement>,
    vaults: BTreeMap<VaultId, VaultCert>,
    revocations: BTreeMap<(VaultId, DeviceId), Revocation>,
}

/// What a merge did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Merged {
    /// Entries that were news.
    pub news: usize,
    /// Entries that were refused: damaged, forged, of another cluster, or over a limit.
    pub refused: usize,
}

impl MemberTable {
    /// An empty table of `cluster`.
    #[must_use]
    pub fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            records: BTreeMap::new(),
            statements: BTreeMap::new(),
            vaults: BTreeMap::new(),
            revocations: BTreeMap::new(),
        }
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Takes a record in; true if it was news.
    pub fn add_record(&mut self, record: SignedRecord) -> bool {
        if record.cert.cluster() != self.cluster {
            return false;
        }
        match self.records.get(&record.node()) {
            Some(old) if old.rank() >= record.rank() => false,
            _ => {
                self.records.insert(record.node(), record);
                true
            }
        }
    }

    /// Takes a statement in; true if it was news.
    pub fn add_statement(&mut self, statement: Statement) -> bool {
        if statement.cluster != self.cluster {
            return false;
        }
        match self.statements.get(&statement.node) {
            Some(old) if old.rank() >= statement.rank() => false,
            _ => {
                self.statements.insert(statement.node, statement);
                true
            }
        }
    }

    /// Takes a vault's certificate in; true if it was news.
    pub fn add_vault(&mut self, cert: VaultCert) -> bool {
        if cert.cluster() != self.cluster {
            return false;
        }
        let rank = |cert: &VaultCert| (cert.issued_ms(), cert.as_bytes().to_vec());
        match self.vaults.get(&cert.vault()) {
            Some(old) if rank(old) >= rank(&cert) => false,
            _ => {
                self.vaults.insert(cert.vault(), cert);
                true
            }
        }
    }

    /// Takes a revocation in; true if it was news. Of vaults that are not known, none is kept.
    pub fn add_revocation(&mut self, revocation: Revocation) -> bool {
        let key = (revocation.vault(), revocation.device());
        let vault = revocation.vault();
        let known = self.vaults.contains_key(&vault);
        let same_vault = (vault, DeviceId([0; 32]))..=(vault, DeviceId([255; 32]));
        if !known
            || self.revocations.contains_key(&key)
            || self.revocations.range(same_vault).count() >= REVOCATION_LIMIT
        {
            return false;
        }
        self.revocations.insert(key, revocation);
        true
    }

    /// Takes everything genuine of `table` in.
    pub fn merge(&mut self, table: &wire::Table) -> Merged {
        let mut merged = Merged::default();
        let mut count = |added: Result<bool, DecodeError>| match added {
            Ok(true) => merged.news += 1,
            Ok(false) => {}
            Err(_) => merged.refused += 1,
        };
        // Most entries are known already: equal bytes need no signature check.
        for bytes in &table.vaults {
            if !self.vaults.values().any(|known| known.as_bytes() == &bytes[..]) {
                count(VaultCert::decode(bytes).map(|cert| self.add_vault(cert)));
            }
        }
        let known: std::collections::BTreeSet<Vec<u8>> = (self.records.values().map(|record| record.bytes.clone()))
            .chain(self.statements.values().map(|statement| statement.bytes.clone()))
            .chain(self.revocations.values().map(|revocation| revocation.as_bytes().to_vec()))
            .collect();
        for bytes in table.records.iter().filter(|bytes| !known.contains(&bytes[..])) {
            count(SignedRecord::decode(bytes).map(|record| self.add_record(record)));
        }
        for bytes in table.statements.iter().filter(|bytes| !known.contains(&bytes[..])) {
            count(Statement::decode(bytes).map(|statement| self.add_statement(statement)));
        }
        for bytes in table.revocations.iter().filter(|bytes| !known.contains(&bytes[..])) {
            count(Revocation::decode(bytes).map(|revocation| self.add_revocation(revocation)));
        }
        merged
    }

    /// The whole table as it travels.
    #[must_use]
    pub fn to_wire(&self) -> wire::Table {
        let copy = bytes::Bytes::copy_from_slice;
        wire::Table {
            records: self.records.values().map(|record| copy(&record.bytes)).collect(),
            statements: self.statements.values().map(|statement| copy(&statement.bytes)).collect(),
            vaults: self.vaults.values().map(|cert| copy(cert.as_bytes())).collect(),
            revocations: self.revocations.values().map(|revocation| copy(revocation.as_bytes())).collect(),
        }
    }

    /// A hash of the whole table: equal tables have equal digests.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let table = self.to_wire();
        let mut hasher = blake3::Hasher::new();
        for part in [&table.records, &table.statements, &table.vaults, &table.revocations] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            for bytes in part {
                hasher.update(blake3::hash(bytes).as_bytes());
            }
        }
        Digest(*hasher.finalize().as_bytes())
    }

    /// A node's newest record.
    #[must_use]
    pub fn record(&self, node: &NodeId) -> Option<&SignedRecord> {
        self.records.get(node)
    }

    /// All records, of members and of those that have gone.
    pub fn records(&self) -> impl Iterator<Item = &SignedRecord> {
        self.records.values()
    }

    /// What `node` is to the cluster; `None` if it is not known.
    #[must_use]
    pub fn standing(&self, node: &NodeId) -> Option<Standing> {
        let record = self.records.get(node);
        match (self.statements.get(node).map(|statement| statement.verdict), record) {
            (Some(Verdict::Evicted), _) => Some(Standing::Evicted),
            (_, None) => None,
            (Some(Verdict::Lost { generation }), Some(record)) if record.generation <= generation => {
                Some(Standing::Lost)
            }
            (_, Some(record)) if record.left => Some(Standing::Left),
            _ => Some(Standing::Member),
        }
    }

    /// The nodes on the ring.
    pub fn members(&self) -> impl Iterator<Item = &SignedRecord> {
        self.records.values().filter(|record| self.standing(&record.node()) == Some(Standing::Member))
    }

    /// The ring: all members but those on their way out, whose shards so become surplus and move on.
    #[must_use]
    pub fn ring(&self) -> Ring {
        Ring::new(self.members().filter(|record| !record.leaving).map(|record| RingEntry {
            node: record.node(),
            zone: record.cert.zone().to_string(),
            capacity: record.weight(),
        }))
    }

    /// A vault's certificate.
    #[must_use]
    pub fn vault(&self, vault: &VaultId) -> Option<&VaultCert> {
        self.vaults.get(vault)
    }

    /// All vaults.
    pub fn vaults(&self) -> impl Iterator<Item = &VaultCert> {
        self.vaults.values()
    }

    /// Whether the vault has taken the device's certificate back.
    #[must_use]
    pub fn revoked(&self, device: &DeviceCert) -> bool {
        self.revocations.contains_key(&(device.vault(), device.device()))
    }
}

impl fmt::Debug for MemberTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemberTable of {:?}: {} records, {} vaults", self.cluster, self.records.len(), self.vaults.len())
    }
}

#[cfg(test)]
mod tests;
