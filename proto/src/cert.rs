//! Certificates and revocations: who may be a node, who has a vault, which devices act for it.
//!
//! A certificate is its exact signed bytes plus what they say; decoding checks the signature, so a value of these types
//! is always genuine. Whether it is of *this* cluster or still in force is for the caller to ask. Layout: FORMAT.md.

use std::fmt;

use crate::encoding::{DecodeError, Decoder, Encoder};
use crate::id::{ClusterId, DeviceId, NodeId, VaultId};
use crate::key::{Context, PublicKey, SIGNATURE_LEN, SecretKey};

/// Longest certificate, in bytes.
pub const CERT_LIMIT: usize = 1024;

/// Longest zone name, in bytes.
pub const ZONE_LIMIT: usize = 64;

/// Newest format version of every kind of certificate here.
pub const CERT_VERSION: u16 = 1;

/// Appends `signer`'s signature over all that `encoder` holds.
pub(crate) fn seal(mut encoder: Encoder, context: Context, signer: &SecretKey) -> Vec<u8> {
    let signature = signer.sign(context, encoder.as_slice());
    encoder.raw(&signature);
    encoder.into_bytes()
}

/// Splits signed bytes into what was signed and a signature, after the reader has named the signer.
pub(crate) fn check(bytes: &[u8], context: Context, signer: PublicKey, what: &'static str) -> Result<(), DecodeError> {
    let split = bytes.len().checked_sub(SIGNATURE_LEN).ok_or(DecodeError::Truncated {
        field: "signature",
        needed: SIGNATURE_LEN,
        left: bytes.len(),
    })?;
    signer.verify(context, &bytes[..split], &bytes[split..]).map_err(|_| DecodeError::Signature(what))
}

/// The signed part of signed bytes.
pub(crate) fn signed_part<'a>(bytes: &'a [u8], what: &'static str) -> Result<Decoder<'a>, DecodeError> {
    if bytes.len() > CERT_LIMIT {
        return Err(DecodeError::Invalid { field: what, why: "longer than its limit" });
    }
    let split = bytes.len().checked_sub(SIGNATURE_LEN).ok_or(DecodeError::Truncated {
        field: what,
        needed: SIGNATURE_LEN,
        left: bytes.len(),
    })?;
    Ok(Decoder::new(&bytes[..split]))
}

/// The cluster key admits a node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberCert {
    cluster: ClusterId,
    node: NodeId,
    zone: String,
    capacity_limit: u64,
    issued_ms: u64,
    bytes: Vec<u8>,
}

impl MemberCert {
    /// Admits `node` in `zone`, to offer at most `capacity_limit` bytes (0: no limit).
    #[must_use]
    pub fn issue(cluster: &SecretKey, node: NodeId, zone: &str, capacity_limit: u64, issued_ms: u64) -> Self {
        let zone: String = clip(zone, ZONE_LIMIT).into();
        let cluster_id = ClusterId::from(cluster.public());
        let mut encoder = Encoder::new();
        encoder
            .u16(CERT_VERSION)
            .raw(cluster_id.as_bytes())
            .raw(node.as_bytes())
            .bytes(zone.as_bytes())
            .u64(capacity_limit)
            .u64(issued_ms)
            .varint(0);
        let bytes = seal(encoder, Context::MemberCert, cluster);
        Self { cluster: cluster_id, node, zone, capacity_limit, issued_ms, bytes }
    }

    /// Reads a certificate and checks its signature by the cluster key that it names.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = signed_part(bytes, "member certificate")?;
        decoder.version("member certificate", CERT_VERSION)?;
        let cluster: ClusterId = decoder.id("cluster")?;
        let node = decoder.id("node")?;
        let zone = decoder.text("zone", ZONE_LIMIT)?.to_string();
        let capacity_limit = decoder.u64("capacity limit")?;
        let issued_ms = decoder.u64("issued")?;
        // Room for a chain of delegates, which this version does not issue.
        decoder.count("delegates", 0)?;
        decoder.finish()?;
        check(bytes, Context::MemberCert, cluster.into(), "member certificate")?;
        Ok(Self { cluster, node, zone, capacity_limit, issued_ms, bytes: bytes.into() })
    }

    /// The cluster that admits.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The node that is admitted.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Its failure domain.
    #[must_use]
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// Most bytes it may offer; 0 is no limit.
    #[must_use]
    pub fn capacity_limit(&self) -> u64 {
        self.capacity_limit
    }

    /// When it was issued, milliseconds since 1970, for people.
    #[must_use]
    pub fn issued_ms(&self) -> u64 {
        self.issued_ms
    }

    /// The signed bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The cluster key gives a vault a quota.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VaultCert {
    cluster: ClusterId,
    vault: VaultId,
    quota: u64,
    issued_ms: u64,
    bytes: Vec<u8>,
}

impl VaultCert {
    /// Admits `vault` with `quota` bytes of shards (0: no limit).
    #[must_use]
    pub fn issue(cluster: &SecretKey, vault: VaultId, quota: u64, issued_ms: u64) -> Self {
        let cluster_id = ClusterId::from(cluster.public());
        let mut encoder = Encoder::new();
        encoder.u16(CERT_VERSION).raw(cluster_id.as_bytes()).raw(vault.as_bytes()).u64(quota).u64(issued_ms).varint(0);
        let bytes = seal(encoder, Context::VaultCert, cluster);
        Self { cluster: cluster_id, vault, quota, issued_ms, bytes }
    }

    /// Reads a certificate and checks its signature by the cluster key that it names.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = signed_part(bytes, "vault certificate")?;
        decoder.version("vault certificate", CERT_VERSION)?;
        let cluster: ClusterId = decoder.id("cluster")?;
        let vault = decoder.id("vault")?;
        let quota = decoder.u64("quota")?;
        let issued_ms = decoder.u64("issued")?;
        decoder.count("delegates", 0)?;
        decoder.finish()?;
        check(bytes, Context::VaultCert, cluster.into(), "vault certificate")?;
        Ok(Self { cluster, vault, quota, issued_ms, bytes: bytes.into() })
    }

    /// The cluster that admits.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The vault that is admitted.
    #[must_use]
    pub fn vault(&self) -> VaultId {
        self.vault
    }

    /// Bytes of shards the vault may have on all nodes together; 0 is no limit.
    #[must_use]
    pub fn quota(&self) -> u64 {
        self.quota
    }

    /// When it was issued, milliseconds since 1970; of two certificates the later one holds.
    #[must_use]
    pub fn issued_ms(&self) -> u64 {
        self.issued_ms
    }

    /// The signed bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a device may do in its vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rights(u8);

impl Rights {
    /// List and restore.
    pub const READ: Rights = Rights(1);
    /// Store and commit.
    pub const WRITE: Rights = Rights(2);
    /// Remove snapshots and publish sweeps.
    pub const SWEEP: Rights = Rights(4);
    /// All of them.
    pub const ALL: Rights = Rights(7);

    /// Both together.
    #[must_use]
    pub fn and(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }

    /// Whether all of `other` are among these.
    #[must_use]
    pub fn contains(self, other: Rights) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The vault key lets a device act for the vault.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceCert {
    vault: VaultId,
    device: DeviceId,
    rights: Rights,
    issued_ms: u64,
    expires_ms: u64,
    bytes: Vec<u8>,
}

impl DeviceCert {
    /// Lets `device` act for the vault of this key, until `expires_ms` (0: no end).
    #[must_use]
    pub fn issue(vault: &SecretKey, device: DeviceId, rights: Rights, issued_ms: u64, expires_ms: u64) -> Self {
        let vault_id = VaultId::from(vault.public());
        let mut encoder = Encoder::new();
        encoder
            .u16(CERT_VERSION)
            .raw(vault_id.as_bytes())
            .raw(device.as_bytes())
            .u8(rights.0)
            .u64(issued_ms)
            .u64(expires_ms);
        let bytes = seal(encoder, Context::DeviceCert, vault);
        Self { vault: vault_id, device, rights, issued_ms, expires_ms, bytes }
    }

    /// Reads a certificate and checks its signature by the vault key that it names.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let cert = Self::decode_signed_elsewhere(bytes)?;
        check(bytes, Context::DeviceCert, cert.vault.into(), "device certificate")?;
        Ok(cert)
    }

    /// Reads a certificate inside something whose hash already proves that it was checked.
    pub(crate) fn decode_signed_elsewhere(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = signed_part(bytes, "device certificate")?;
        decoder.version("device certificate", CERT_VERSION)?;
        let vault: VaultId = decoder.id("vault")?;
        let device = decoder.id("device")?;
        let rights = Rights(decoder.u8("rights")?);
        let issued_ms = decoder.u64("issued")?;
        let expires_ms = decoder.u64("expires")?;
        decoder.finish()?;
        Ok(Self { vault, device, rights, issued_ms, expires_ms, bytes: bytes.into() })
    }

    /// The vault it acts for.
    #[must_use]
    pub fn vault(&self) -> VaultId {
        self.vault
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// What it may do.
    #[must_use]
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// When it was issued, milliseconds since 1970.
    #[must_use]
    pub fn issued_ms(&self) -> u64 {
        self.issued_ms
    }

    /// Whether it has run out at `now_ms`.
    #[must_use]
    pub fn expired(&self, now_ms: u64) -> bool {
        self.expires_ms != 0 && now_ms >= self.expires_ms
    }

    /// The signed bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The vault key takes a device's certificate back, for ever.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revocation {
    vault: VaultId,
    device: DeviceId,
    bytes: Vec<u8>,
}

impl Revocation {
    /// Revokes `device`.
    #[must_use]
    pub fn issue(vault: &SecretKey, device: DeviceId, issued_ms: u64) -> Self {
        let vault_id = VaultId::from(vault.public());
        let mut encoder = Encoder::new();
        encoder.u16(CERT_VERSION).raw(vault_id.as_bytes()).raw(device.as_bytes()).u64(issued_ms);
        Self { vault: vault_id, device, bytes: seal(encoder, Context::Revocation, vault) }
    }

    /// Reads a revocation and checks its signature by the vault key that it names.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = signed_part(bytes, "revocation")?;
        decoder.version("revocation", CERT_VERSION)?;
        let vault: VaultId = decoder.id("vault")?;
        let device = decoder.id("device")?;
        decoder.u64("issued")?;
        decoder.finish()?;
        check(bytes, Context::Revocation, vault.into(), "revocation")?;
        Ok(Self { vault, device, bytes: bytes.into() })
    }

    /// The vault.
    #[must_use]
    pub fn vault(&self) -> VaultId {
        self.vault
    }

    /// The device that no longer acts for it.
    #[must_use]
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// The signed bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

macro_rules! debug_as {
    ($($name:ident: $format:literal, $($field:ident),+;)*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(", $format, ")"), $(self.$field),+)
            }
        }
    )*};
}

debug_as! {
    MemberCert: "{:?} in {:?} zone {:?}", node, cluster, zone;
    VaultCert: "{:?} in {:?}", vault, cluster;
    DeviceCert: "{:?} of {:?} {:?}", device, vault, rights;
    Revocation: "{:?} of {:?}", device, vault;
}

/// The longest prefix of `text` that has at most `limit` bytes.
fn clip(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_seed(&[byte; 32])
    }

    #[test]
    fn certificates_round_trip() {
        let member = MemberCert::issue(&key(1), NodeId([2; 32]), "attic", 5, 6);
        assert_eq!(MemberCert::decode(member.as_bytes()), Ok(member.clone()));
        let vault = VaultCert::issue(&key(1), VaultId([2; 32]), 5, 6);
        assert_eq!(VaultCert::decode(vault.as_bytes()), Ok(vault));
        let device = DeviceCert::issue(&key(1), DeviceId([2; 32]), Rights::READ.and(Rights::WRITE), 6, 0);
        assert_eq!(DeviceCert::decode(device.as_bytes()), Ok(device.clone()));
        assert!(!device.rights().contains(Rights::SWEEP));
        let revocation = Revocation::issue(&key(1), DeviceId([2; 32]), 6);
        assert_eq!(Revocation::decode(revocation.as_bytes()), Ok(revocation));
    }

    #[test]
    fn one_changed_bit_is_refused_everywhere() {
        let cert = MemberCert::issue(&key(1), NodeId([2; 32]), "attic", 5, 6);
        for position in 0..cert.as_bytes().len() {
            let mut bytes = cert.as_bytes().to_vec();
            bytes[position] ^= 1;
            assert!(MemberCert::decode(&bytes).is_err(), "byte {position}");
        }
        assert!(MemberCert::decode(&cert.as_bytes()[1..]).is_err());
    }

    #[test]
    fn one_kind_never_passes_for_another() {
        let vault = VaultCert::issue(&key(1), VaultId([2; 32]), 5, 6);
        assert!(MemberCert::decode(vault.as_bytes()).is_err());
        assert!(DeviceCert::decode(vault.as_bytes()).is_err());
    }

    #[test]
    fn long_zone_names_are_clipped_between_characters() {
        let cert = MemberCert::issue(&key(1), NodeId([2; 32]), &"ä".repeat(60), 0, 0);
        assert_eq!(cert.zone(), "ä".repeat(32));
        assert!(MemberCert::decode(cert.as_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in any::<Vec<u8>>()) {
            let _ = MemberCert::decode(&bytes);
            let _ = VaultCert::decode(&bytes);
            let _ = DeviceCert::decode(&bytes);
            let _ = Revocation::decode(&bytes);
        }
    }
}
