//! Identifiers: 32 bytes each, a type each, so that one is never taken for another.
//!
//! Nodes, clusters, vaults and devices are named by their Ed25519 public keys; stripes, heads and chunks by BLAKE3
//! hashes. This file makes and prints ids; it never checks a signature (`key`) and never hashes contents.

use std::fmt;
use std::str::FromStr;

/// Length of every id, in bytes.
pub const ID_LEN: usize = 32;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// The text has a length other than 64.
    #[error("an id has 64 hexadecimal digits, this text has {0} characters")]
    Length(usize),
    /// The text has a character that is not a hexadecimal digit.
    #[error("an id has only hexadecimal digits (0-9, a-f)")]
    Digit,
}

fn parse_hex(text: &str) -> Result<[u8; ID_LEN], ParseIdError> {
    let digits = text.as_bytes();
    if digits.len() != 2 * ID_LEN {
        return Err(ParseIdError::Length(text.chars().count()));
    }
    let mut bytes = [0u8; ID_LEN];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = (pair[0] as char).to_digit(16).ok_or(ParseIdError::Digit)?;
        let low = (pair[1] as char).to_digit(16).ok_or(ParseIdError::Digit)?;
        *byte = (high * 16 + low) as u8;
    }
    Ok(bytes)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; ID_LEN]);

        impl $name {
            /// The id's bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; ID_LEN] {
                &self.0
            }

            /// The id from a slice; `None` unless it has exactly 32 bytes.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The first eight hexadecimal digits, for people.
            #[must_use]
            pub fn short(&self) -> String {
                self.to_string()[..8].to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_hex(text).map(Self)
            }
        }
    };
}

id!(
    /// One storage node: its Ed25519 public key.
    NodeId
);
id!(
    /// One cluster: the public key that admits its nodes.
    ClusterId
);
id!(
    /// One user's vault: its Ed25519 public key.
    VaultId
);
id!(
    /// One installation of the client: its Ed25519 public key.
    DeviceId
);
id!(
    /// One stripe: BLAKE3 of its header.
    StripeId
);
id!(
    /// One head: BLAKE3 of its signed bytes.
    HeadId
);
id!(
    /// One chunk: keyed BLAKE3 of its plaintext.
    ChunkId
);
id!(
    /// BLAKE3 of some bytes.
    Digest
);

impl Digest {
    /// BLAKE3 of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip_and_errors() {
        let id = NodeId([0xa5; 32]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("abc".parse::<NodeId>(), Err(ParseIdError::Length(3)));
        assert_eq!("zz".repeat(32).parse::<NodeId>(), Err(ParseIdError::Digit));
    }
}
