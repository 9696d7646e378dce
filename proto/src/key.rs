//! Ed25519 identities and signatures bound to a context.
//!
//! Each kind of signed thing has its own context string, so that a signature over one kind never passes for another.
//! Secret keys are zeroed when dropped and never printed.

use std::fmt;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

use crate::id::{ClusterId, DeviceId, ID_LEN, NodeId, VaultId};

/// Length of a signature, in bytes.
pub const SIGNATURE_LEN: usize = 64;

/// An Ed25519 public key: what nodes, clusters, vaults and devices are known by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; ID_LEN]);

/// The signature does not belong to these bytes, this context and this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not match")]
pub struct BadSignature;

/// What a signature is about; part of what is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// A `MemberCert`.
    MemberCert,
    /// A `VaultCert`.
    VaultCert,
    /// A `DeviceCert`.
    DeviceCert,
    /// A `MemberRecord`.
    MemberRecord,
    /// A `Statement` (lost, evicted).
    Statement,
    /// A device `Revocation`.
    Revocation,
    /// A stripe header.
    StripeHeader,
    /// A head.
    Head,
}

impl Context {
    fn prefix(self) -> &'static [u8] {
        match self {
            Context::MemberCert => b"potluck 1 member cert\0",
            Context::VaultCert => b"potluck 1 vault cert\0",
            Context::DeviceCert => b"potluck 1 device cert\0",
            Context::MemberRecord => b"potluck 1 member record\0",
            Context::Statement => b"potluck 1 statement\0",
            Context::Revocation => b"potluck 1 revocation\0",
            Context::StripeHeader => b"potluck 1 stripe header\0",
            Context::Head => b"potluck 1 head\0",
        }
    }

    fn message(self, bytes: &[u8]) -> Vec<u8> {
        [self.prefix(), bytes].concat()
    }
}

impl PublicKey {
    /// Checks that `signature` is this key's over `bytes` in `context`. Weak keys are refused.
    pub fn verify(&self, context: Context, bytes: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        let key = VerifyingKey::from_bytes(&self.0).map_err(|_| BadSignature)?;
        let signature = ed25519_dalek::Signature::from_slice(signature).map_err(|_| BadSignature)?;
        key.verify_strict(&context.message(bytes), &signature).map_err(|_| BadSignature)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", NodeId(self.0).short())
    }
}

/// An Ed25519 secret key. Zeroed when dropped.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key that these 32 secret bytes stand for.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// A fresh key from `rng`.
    #[must_use]
    pub fn generate(rng: &mut impl rand::Rng) -> Self {
        let mut seed = zeroize::Zeroizing::new([0u8; 32]);
        rng.fill_bytes(&mut *seed);
        Self::from_seed(&seed)
    }

    /// The 32 secret bytes. Whoever holds them is this identity.
    #[must_use]
    pub fn seed(&self) -> zeroize::Zeroizing<[u8; 32]> {
        zeroize::Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs `bytes` in `context`.
    #[must_use]
    pub fn sign(&self, context: Context, bytes: &[u8]) -> [u8; SIGNATURE_LEN] {
        self.0.sign(&context.message(bytes)).to_bytes()
    }

    /// The key as a PKCS #8 document, as TLS libraries take it.
    #[must_use]
    pub fn to_pkcs8(&self) -> zeroize::Zeroizing<Vec<u8>> {
        // RFC 8410: version 0, algorithm 1.3.101.112, the seed as an OCTET STRING in an OCTET STRING.
        const PREFIX: [u8; 16] =
            [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
        zeroize::Zeroizing::new([&PREFIX[..], &self.seed()[..]].concat())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey of {:?}", self.public())
    }
}

macro_rules! named_by_key {
    ($($name:ident),*) => {$(
        impl From<$name> for PublicKey {
            fn from(id: $name) -> Self {
                PublicKey(id.0)
            }
        }

        impl From<PublicKey> for $name {
            fn from(key: PublicKey) -> Self {
                $name(key.0)
            }
        }
    )*};
}

named_by_key!(NodeId, ClusterId, VaultId, DeviceId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_bytes_context_and_key_only() {
        let key = SecretKey::from_seed(&[7; 32]);
        let signature = key.sign(Context::Head, b"bytes");
        assert_eq!(key.public().verify(Context::Head, b"bytes", &signature), Ok(()));
        assert!(key.public().verify(Context::Head, b"other", &signature).is_err());
        assert!(key.public().verify(Context::VaultCert, b"bytes", &signature).is_err());
        let other = SecretKey::from_seed(&[8; 32]).public();
        assert!(other.verify(Context::Head, b"bytes", &signature).is_err());
        assert!(key.public().verify(Context::Head, b"bytes", &signature[..63]).is_err());
    }
}
