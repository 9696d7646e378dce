//! Stripes: their scheme, geometry and signed header.
//!
//! A header says everything that a holder needs in order to check any sibling and to rebuild it, without vault keys. It
//! never says where the shards are: that is the ring's business. Layout: FORMAT.md, "Stripe header".

use std::fmt;
use std::str::FromStr;

use crate::cert::{DeviceCert, Rights};
use crate::encoding::{DecodeError, Decoder, Encoder};
use crate::id::{Digest, StripeId, VaultId};
use crate::key::{Context, SIGNATURE_LEN, SecretKey};

/// Most data bytes of a stripe: 16 MiB.
pub const DATA_LIMIT: usize = 16 << 20;

/// Shard lengths are multiples of this many bytes.
pub const SHARD_ALIGN: usize = 64;

/// Most shards of a stripe; the field GF(2^8) allows 256, and the readability table needs no more.
pub const SHARDS_LIMIT: usize = 128;

/// Newest format version of a stripe header.
pub const HEADER_VERSION: u16 = 1;

/// `k` data shards and `m` parity shards: any `k` of `n = k + m` give the data back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scheme {
    k: u8,
    m: u8,
}

/// Why two numbers are no scheme.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemeError {
    /// k must be at least 1, and k + m at most 128.
    #[error("a scheme needs k >= 1 and k + m <= {SHARDS_LIMIT}, not {0}+{1}")]
    Range(usize, usize),
    /// The text is not `k+m`.
    #[error("a scheme is written k+m, for example 5+3, not {0:?}")]
    Syntax(String),
}

impl Scheme {
    /// `k` data and `m` parity shards.
    pub fn new(k: usize, m: usize) -> Result<Self, SchemeError> {
        match (u8::try_from(k), u8::try_from(m)) {
            (Ok(small_k), Ok(small_m)) if k >= 1 && k + m <= SHARDS_LIMIT => Ok(Self { k: small_k, m: small_m }),
            _ => Err(SchemeError::Range(k, m)),
        }
    }

    /// Data shards.
    #[must_use]
    pub fn k(self) -> usize {
        self.k.into()
    }

    /// Parity shards: losses survived.
    #[must_use]
    pub fn m(self) -> usize {
        self.m.into()
    }

    /// All shards.
    #[must_use]
    pub fn n(self) -> usize {
        self.k() + self.m()
    }

    /// Shards that must be on disk where fewer than `n` nodes are up: k + ceil(m/2).
    #[must_use]
    pub fn degraded_minimum(self) -> usize {
        self.k() + self.m().div_ceil(2)
    }

    /// Most nodes of one zone among a stripe's homes: max(1, ceil(m/2)).
    #[must_use]
    pub fn zone_cap(self) -> usize {
        self.m().div_ceil(2).max(1)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.k, self.m)
    }
}

impl FromStr for Scheme {
    type Err = SchemeError;

    fn from_str(text: &str) -> Result<Self, SchemeError> {
        let (k, m) = text.split_once('+').ok_or_else(|| SchemeError::Syntax(text.into()))?;
        match (k.trim().parse(), m.trim().parse()) {
            (Ok(k), Ok(m)) => Self::new(k, m),
            _ => Err(SchemeError::Syntax(text.into())),
        }
    }
}

/// The data length that a stripe with `len` bytes of content is padded to: a size class, so that lengths tell little.
///
/// Classes are multiples of 1/8 of the next lower power of two (never below 512 bytes), so at most an eighth is padding.
#[must_use]
pub fn padded_len(len: usize) -> usize {
    const SMALLEST: usize = 512;
    if len <= SMALLEST {
        return SMALLEST;
    }
    let step = ((len - 1).next_power_of_two() / 16).max(64);
    len.next_multiple_of(step).min(DATA_LIMIT.max(len))
}

/// Bytes of each shard of a stripe with `data_len` bytes in `k` data shards.
#[must_use]
pub fn shard_len(data_len: usize, k: usize) -> usize {
    data_len.div_ceil(k).next_multiple_of(SHARD_ALIGN)
}

/// What a stripe's writer signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripeHeader {
    /// The vault that the stripe belongs to.
    pub vault: VaultId,
    /// The writer's certificate.
    pub device: DeviceCert,
    /// Number of the newest sweep that the writer knew.
    pub born: u64,
    /// Milliseconds since 1970 by the writer's clock: for people, never for decisions.
    pub created_ms: u64,
    /// How it is coded.
    pub scheme: Scheme,
    /// Bytes of each shard.
    pub shard_len: u32,
    /// Bytes of data; what fills the last data shard up is zero.
    pub data_len: u32,
    /// BLAKE3 of each of the n shards.
    pub shards: Vec<Digest>,
}

/// A header together with its exact bytes, its id and a checked signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedHeader {
    header: StripeHeader,
    bytes: bytes::Bytes,
    id: StripeId,
}

impl StripeHeader {
    fn encode_unsigned(&self) -> Encoder {
        let mut encoder = Encoder::new();
        encoder
            .u16(HEADER_VERSION)
            .raw(self.vault.as_bytes())
            .bytes(self.device.as_bytes())
            .u64(self.born)
            .u64(self.created_ms)
            .u8(self.scheme.k)
            .u8(self.scheme.m)
            .u32(self.shard_len)
            .u32(self.data_len);
        for shard in &self.shards {
            encoder.raw(shard.as_bytes());
        }
        encoder
    }

    /// Signs the header with the device key that its certificate names.
    #[must_use]
    pub fn sign(self, device: &SecretKey) -> SignedHeader {
        let mut encoder = self.encode_unsigned();
        let signature = device.sign(Context::StripeHeader, encoder.as_slice());
        encoder.raw(&signature);
        let bytes = encoder.into_bytes();
        let id = StripeId(*blake3::hash(&bytes).as_bytes());
        SignedHeader { header: self, bytes: bytes.into(), id }
    }

    /// The data shard that holds data byte `offset`, and the offset in it.
    #[must_use]
    pub fn locate(&self, offset: u64) -> (usize, u64) {
        let len = u64::from(self.shard_len);
        ((offset / len) as usize, offset % len)
    }
}

impl SignedHeader {
    /// Reads a header and checks all that can be checked without the cluster: version, geometry, the device's
    /// certificate by its vault, its right to write, and the signature.
    pub fn decode(bytes: bytes::Bytes) -> Result<Self, DecodeError> {
        let (header, signed_len) = StripeHeader::read(&bytes, DeviceCert::decode)?;
        crate::key::PublicKey::from(header.device.device())
            .verify(Context::StripeHeader, &bytes[..signed_len], &bytes[signed_len..])
            .map_err(|_| DecodeError::Signature("stripe header"))?;
        let id = StripeId(*blake3::hash(&bytes).as_bytes());
        Ok(Self { header, bytes, id })
    }

    /// Reads the header of a stripe whose id is known from a trusted place (a pointer, or one's own store, which checked
    /// the signature when the header came): the hash alone proves the bytes, and no signature is checked again.
    pub fn decode_known(bytes: bytes::Bytes, id: &StripeId) -> Result<Self, DecodeError> {
        if blake3::hash(&bytes).as_bytes() != id.as_bytes() {
            return Err(DecodeError::Invalid { field: "stripe header", why: "not the one of this stripe id" });
        }
        let (header, _) = StripeHeader::read(&bytes, DeviceCert::decode_signed_elsewhere)?;
        Ok(Self { header, bytes, id: *id })
    }

    /// The stripe's id: BLAKE3 of these bytes.
    #[must_use]
    pub fn id(&self) -> StripeId {
        self.id
    }

    /// The exact bytes that were signed and hashed, signature included.
    #[must_use]
    pub fn bytes(&self) -> &bytes::Bytes {
        &self.bytes
    }
}

impl StripeHeader {
    /// Reads the fields, and says where the signature begins.
    fn read(
        bytes: &[u8],
        device: impl Fn(&[u8]) -> Result<DeviceCert, DecodeError>,
    ) -> Result<(Self, usize), DecodeError> {
        let mut decoder = Decoder::new(bytes);
        decoder.version("stripe header", HEADER_VERSION)?;
        let vault: VaultId = decoder.id("vault")?;
        let device = device(decoder.bytes("device certificate", crate::cert::CERT_LIMIT)?)?;
        let born = decoder.u64("born")?;
        let created_ms = decoder.u64("created")?;
        let (k, m) = (decoder.u8("k")?, decoder.u8("m")?);
        let scheme = Scheme::new(k.into(), m.into())
            .map_err(|_| DecodeError::Invalid { field: "scheme", why: "k or m out of range" })?;
        let shard_len = decoder.u32("shard length")?;
        let data_len = decoder.u32("data length")?;
        let mut shards = Vec::with_capacity(scheme.n());
        for _ in 0..scheme.n() {
            shards.push(decoder.id("shard hash")?);
        }
        let signed_len = bytes.len() - decoder.left();
        decoder.raw("signature", SIGNATURE_LEN)?;
        decoder.finish()?;

        if data_len == 0 || data_len as usize > DATA_LIMIT {
            return Err(DecodeError::Invalid { field: "data length", why: "outside 1 byte to 16 MiB" });
        }
        if shard_len as usize != self::shard_len(data_len as usize, scheme.k()) {
            return Err(DecodeError::Invalid { field: "shard length", why: "not what data length and k give" });
        }
        if device.vault() != vault {
            return Err(DecodeError::Invalid { field: "device certificate", why: "of another vault" });
        }
        if !device.rights().contains(Rights::WRITE) {
            return Err(DecodeError::Invalid { field: "device certificate", why: "without the right to write" });
        }
        Ok((StripeHeader { vault, device, born, created_ms, scheme, shard_len, data_len, shards }, signed_len))
    }
}

impl std::ops::Deref for SignedHeader {
    type Target = StripeHeader;

    fn deref(&self) -> &StripeHeader {
        &self.header
    }
}
