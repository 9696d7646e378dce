//! The invites that this node made: each is redeemed once, and again only by the same key.
//!
//! They are in a synced file, so that neither a token nor a certificate given for it is forgotten by a crash. Only their
//! secrets' hashes are kept.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use potluck_proto::encoding::{DecodeError, Decoder, Encoder};
use potluck_proto::id::Digest;
use potluck_proto::invite::{InviteKind, SECRET_LEN};
use potluck_proto::key::PublicKey;
use potluck_proto::wire::{self, Code};

use crate::durable;

/// Newest format version of the invites' file.
const VERSION: u16 = 1;

/// Most invites kept; the oldest that ran out go first.
const LIMIT: usize = 10_000;

/// Longest certificate in the file, in bytes.
const CERT_LIMIT: usize = 1024;

/// One invite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// BLAKE3 of the secret.
    secret: Digest,
    /// What it admits.
    pub kind: InviteKind,
    /// The zone of the node; empty: the newcomer may say.
    pub zone: String,
    /// A node's limit of capacity, or a vault's quota, in bytes; 0: none.
    pub bytes: u64,
    /// Until when it can be redeemed, seconds since 1970.
    pub expires_s: u64,
    /// By whom it was redeemed, and the certificate given.
    redeemed: Option<(PublicKey, Vec<u8>)>,
}

/// All invites of this node.
pub struct Invites {
    path: PathBuf,
    invites: Mutex<Vec<Invite>>,
}

impl Invites {
    /// Reads the invites of a data folder.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join("invites");
        let invites = match durable::read(&path)? {
            None => Vec::new(),
            Some(bytes) => decode(&bytes).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged: {error}", path.display()))
            })?,
        };
        Ok(Self { path, invites: Mutex::new(invites) })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Invite>> {
        self.invites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a new invite; durable on return.
    pub fn add(
        &self,
        secret: &[u8; SECRET_LEN],
        kind: InviteKind,
        zone: &str,
        bytes: u64,
        expires_s: u64,
        now_s: u64,
    ) -> io::Result<()> {
        let mut invites = self.lock();
        if invites.len() >= LIMIT {
            invites.retain(|invite| invite.expires_s > now_s);
        }
        if invites.len() >= LIMIT {
            return Err(io::Error::other(format!("more than {LIMIT} invites that can still be redeemed")));
        }
        let secret = Digest::of(secret);
        invites.push(Invite { secret, kind, zone: zone.into(), bytes, expires_s, redeemed: None });
        durable::replace(&self.path, &encode(&invites))
    }

    /// Redeems a secret for `key`: `issue` makes the certificate, which is durable when it is returned.
    pub fn redeem(
        &self,
        secret: &[u8],
        kind: InviteKind,
        key: PublicKey,
        now_s: u64,
        issue: impl FnOnce(&Invite) -> Vec<u8>,
    ) -> Result<Vec<u8>, wire::Error> {
        let hash = Digest::of(secret);
        let mut invites = self.lock();
        let unknown = || wire::Error::new(Code::InviteUnknown, "no such invite: ask for a new one");
        let position = invites.iter().position(|invite| invite.secret == hash && invite.kind == kind);
        let position = position.ok_or_else(unknown)?;
        let invite = &invites[position];
        match &invite.redeemed {
            Some((by, cert)) if *by == key => return Ok(cert.clone()),
            Some(_) => {
                let message = "this invite was already used by someone else: ask for a new one";
                return Err(wire::Error::new(Code::InviteUsed, message));
            }
            None if invite.expires_s <= now_s => {
                return Err(wire::Error::new(Code::InviteExpired, "this invite has run out: ask for a new one"));
            }
            None => {}
        }
        let cert = issue(invite);
        let mut changed = invites.clone();
        changed[position].redeemed = Some((key, cert.clone()));
        durable::replace(&self.path, &encode(&changed)).map_err(|error| {
            tracing::error!(%error, "the invites cannot be written to disk");
            wire::Error::new(Code::Internal, "the inviting node cannot write to its disk")
        })?;
        *invites = changed;
        Ok(cert)
    }
}

fn encode(invites: &[Invite]) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.u16(VERSION).varint(invites.len() as u64);
    for invite in invites {
        encoder
            .raw(invite.secret.as_bytes())
            .u8(u8::from(invite.kind == InviteKind::Vault))
            .bytes(invite.zone.as_bytes())
            .u64(invite.bytes)
            .u64(invite.expires_s);
        match &invite.redeemed {
            None => encoder.u8(0),
            Some((by, cert)) => encoder.u8(1).raw(&by.0).bytes(cert),
        };
    }
    encoder.into_bytes()
}

fn decode(bytes: &[u8]) -> Result<Vec<Invite>, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    decoder.version("invites", VERSION)?;
    let mut invites = Vec::new();
    for _ in 0..decoder.count("invites", LIMIT)? {
        let secret = decoder.id("secret")?;
        let kind = if decoder.u8("kind")? == 1 { InviteKind::Vault } else { InviteKind::Node };
        let zone = decoder.text("zone", potluck_proto::cert::ZONE_LIMIT)?.to_string();
        let (bytes, expires_s) = (decoder.u64("bytes")?, decoder.u64("expiry")?);
        let redeemed = match decoder.u8("redeemed")? {
            0 => None,
            _ => Some((decoder.id("key")?, decoder.bytes("certificate", CERT_LIMIT)?.to_vec())),
        };
        invites.push(Invite { secret, kind, zone, bytes, expires_s, redeemed });
    }
    decoder.finish()?;
    Ok(invites)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_for_one_key_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let secret = [7; SECRET_LEN];
        let invites = Invites::open(folder.path()).unwrap();
        invites.add(&secret, InviteKind::Node, "attic", 5, 100, 0).unwrap();
        let redeem = |invites: &Invites, key: u8, now, cert: u8| {
            invites.redeem(&secret, InviteKind::Node, PublicKey([key; 32]), now, |_| vec![cert])
        };
        let code = |result: Result<Vec<u8>, wire::Error>| result.unwrap_err().code();
        assert_eq!(code(redeem(&invites, 1, 100, 1)), Code::InviteExpired);
        assert_eq!(redeem(&invites, 1, 99, 1), Ok(vec![1]));
        let invites = Invites::open(folder.path()).unwrap();
        // The same key gets the same again, also when it has run out meanwhile; others get nothing.
        assert_eq!(redeem(&invites, 1, 1_000, 2), Ok(vec![1]));
        assert_eq!(code(redeem(&invites, 2, 99, 2)), Code::InviteUsed);
        let wrong_kind = invites.redeem(&secret, InviteKind::Vault, PublicKey([1; 32]), 99, |_| vec![]);
        assert_eq!(code(wrong_kind), Code::InviteUnknown);
        let unknown = invites.redeem(&[8; SECRET_LEN], InviteKind::Node, PublicKey([1; 32]), 99, |_| vec![]);
        assert_eq!(code(unknown), Code::InviteUnknown);
    }

    /// The layout of FORMAT.md, "Invites", written here byte by byte.
    #[test]
    fn the_file_is_as_documented() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("invites");
        let invites = Invites::open(folder.path()).unwrap();
        invites.add(&[1; SECRET_LEN], InviteKind::Node, "attic", 7, 99, 0).unwrap();
        invites.add(&[2; SECRET_LEN], InviteKind::Vault, "", 0, 100, 0).unwrap();
        let key = PublicKey([3; 32]);
        invites.redeem(&[2; SECRET_LEN], InviteKind::Vault, key, 5, |_| b"cert".to_vec()).unwrap();
        let hash = |byte: u8| *blake3::hash(&[byte; SECRET_LEN]).as_bytes();
        let first = [&hash(1)[..], &[0, 5], b"attic", &7u64.to_le_bytes(), &99u64.to_le_bytes(), &[0]].concat();
        let second =
            [&hash(2)[..], &[1, 0], &0u64.to_le_bytes(), &100u64.to_le_bytes(), &[1], &key.0, &[4], b"cert"].concat();
        assert_eq!(std::fs::read(path).unwrap(), [&[1, 0, 2][..], &first, &second].concat());
    }
}
