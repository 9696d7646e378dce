//! Invite tokens: what a newcomer pastes to become a node or to get a vault.
//!
//! A token is bech32m text (a typing error is noticed) under the prefix `potnode` or `potvault`. Whoever holds it can
//! redeem it once; it names the cluster, so that a newcomer knows whom it talks to. Layout: FORMAT.md, "Invite token".

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32m, Hrp};

use crate::encoding::{DecodeError, Decoder, Encoder};
use crate::id::{ClusterId, NodeId};
use crate::member::{decode_address, encode_address};

/// Newest format version of a token.
const TOKEN_VERSION: u8 = 1;

/// Most addresses in a token.
pub const TOKEN_ADDRESS_LIMIT: usize = 4;

/// Length of a token's secret, in bytes.
pub const SECRET_LEN: usize = 16;

/// What a token admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InviteKind {
    /// A storage node.
    Node,
    /// A vault.
    Vault,
}

/// An invite.
#[derive(Clone, PartialEq, Eq)]
pub struct InviteToken {
    /// What it admits.
    pub kind: InviteKind,
    /// To which cluster.
    pub cluster: ClusterId,
    /// The node that made it and redeems it.
    pub inviter: NodeId,
    /// What proves that the holder was invited.
    pub secret: [u8; SECRET_LEN],
    /// Until when, seconds since 1970.
    pub expires_s: u64,
    /// Where the inviter can be reached.
    pub addresses: Vec<SocketAddr>,
}

/// Why a text is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not start like one.
    #[error("an invite token starts with potnode1 or potvault1")]
    Prefix,
    /// Characters are missing or wrong.
    #[error("the invite token is damaged: copy it again, as a whole ({0})")]
    Checksum(String),
    /// It was made by a newer program, or is malformed.
    #[error("the invite token cannot be read: {0}")]
    Format(#[from] DecodeError),
}

impl InviteKind {
    fn prefix(self) -> Hrp {
        let text = match self {
            InviteKind::Node => "potnode",
            InviteKind::Vault => "potvault",
        };
        Hrp::parse_unchecked(text)
    }
}

impl fmt::Display for InviteToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut encoder = Encoder::new();
        encoder
            .u8(TOKEN_VERSION)
            .raw(self.cluster.as_bytes())
            .raw(self.inviter.as_bytes())
            .raw(&self.secret)
            .u64(self.expires_s);
        let addresses = &self.addresses[..self.addresses.len().min(TOKEN_ADDRESS_LIMIT)];
        encoder.u8(addresses.len() as u8);
        for address in addresses {
            encode_address(&mut encoder, *address);
        }
        let text = bech32::encode::<Bech32m>(self.kind.prefix(), encoder.as_slice()).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

impl fmt::Debug for InviteToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InviteToken({:?} of {:?} by {:?})", self.kind, self.cluster, self.inviter)
    }
}

impl FromStr for InviteToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let lower = text.to_lowercase();
        let kind = match lower.split_once('1') {
            Some(("potnode", _)) => InviteKind::Node,
            Some(("potvault", _)) => InviteKind::Vault,
            _ => return Err(TokenError::Prefix),
        };
        let checked =
            CheckedHrpstring::new::<Bech32m>(&lower).map_err(|error| TokenError::Checksum(error.to_string()))?;
        let bytes: Vec<u8> = checked.byte_iter().collect();
        let mut decoder = Decoder::new(&bytes);
        let version = decoder.u8("version")?;
        if version != TOKEN_VERSION {
            let (found, known) = (version.into(), TOKEN_VERSION.into());
            return Err(DecodeError::Version { what: "invite token", found, known }.into());
        }
        let cluster = decoder.id("cluster")?;
        let inviter = decoder.id("inviter")?;
        let secret = decoder.array("secret")?;
        let expires_s = decoder.u64("expiry")?;
        let count = usize::from(decoder.u8("addresses")?);
        if count > TOKEN_ADDRESS_LIMIT {
            return Err(DecodeError::Invalid { field: "addresses", why: "too many" }.into());
        }
        let addresses = (0..count).map(|_| decode_address(&mut decoder)).collect::<Result<_, _>>()?;
        decoder.finish()?;
        Ok(Self { kind, cluster, inviter, secret, expires_s, addresses })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    fn token() -> InviteToken {
        InviteToken {
            kind: InviteKind::Vault,
            cluster: ClusterId([1; 32]),
            inviter: NodeId([2; 32]),
            secret: [3; SECRET_LEN],
            expires_s: 4,
            addresses: vec![([127, 0, 0, 1], 4701).into(), (std::net::Ipv6Addr::LOCALHOST, 4701).into()],
        }
    }

    #[test]
    fn text_round_trip_also_in_capitals_and_with_white_space() {
        let text = token().to_string();
        assert!(text.starts_with("potvault1"), "{text}");
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!("  {}\n", text.to_uppercase()).parse(), Ok(token()));
    }

    #[test]
    fn every_single_typing_error_is_noticed() {
        let text = token().to_string();
        for position in 9..text.len() {
            let mut typed = text.clone().into_bytes();
            typed[position] = if typed[position] == b'q' { b'p' } else { b'q' };
            let typed = String::from_utf8(typed).unwrap();
            assert!(matches!(typed.parse::<InviteToken>(), Err(TokenError::Checksum(_))), "{typed}");
        }
        assert_eq!("hello".parse::<InviteToken>(), Err(TokenError::Prefix));
        assert!(text[..text.len() - 1].parse::<InviteToken>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in any::<String>()) {
            let _ = text.parse::<InviteToken>();
            let _ = format!("potnode1{text}").parse::<InviteToken>();
        }
    }
}
