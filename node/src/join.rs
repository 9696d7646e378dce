//! Joining a cluster: an invite's secret becomes a certificate for this node's key.
//!
//! It can be cut off at any point and run again: the key is made first and kept, and an invite redeemed again with the
//! same key gives the same certificate.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use potluck_proto::cert::MemberCert;
use potluck_proto::id::NodeId;
use potluck_proto::invite::{InviteKind, InviteToken};
use potluck_proto::key::SecretKey;
use potluck_proto::transport::{CallError, Endpoint, Limits, Peer};
use potluck_proto::wire::{self, Code, reply, request};
use prost::Message;

use crate::durable;
use crate::gate::StrangerGate;
use crate::identity::{self, IdentityError};
use crate::node::Bind;

/// The file with the member table as it was at joining or at the last good end: where others are found if the log does
/// not say.
pub(crate) const TABLE: &str = "table";

/// How long the inviter may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// Why this folder holds no member afterwards. Running the same command again goes on where it stopped.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is for something else.
    #[error("this token invites a vault, not a node: use it with 'potluck vault create'")]
    VaultToken,
    /// It has run out, by this machine's clock.
    #[error("this invite has run out: ask for a new one")]
    Expired,
    /// The inviter said no.
    #[error("the invite was refused: {}", .0.message)]
    Refused(wire::Error),
    /// The inviter cannot be reached.
    #[error(
        "the inviting node cannot be reached ({}): is it running, and are its address and port open? Then run this again",
        why(.0)
    )]
    Unreachable(CallError),
    /// The answer is not a certificate for this node.
    #[error("the inviting node gave no valid certificate: {0}")]
    BadAnswer(String),
    /// The data folder.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The network.
    #[error(transparent)]
    Bind(#[from] potluck_proto::transport::BindError),
    /// The member table cannot be written.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Why a call had no answer, for people who know whom they called.
pub(crate) fn why(error: &CallError) -> String {
    match error {
        CallError::Unreachable { reason, .. } => reason.clone(),
        CallError::WrongPeer { expected } => {
            format!("another than {} answers at its address", NodeId::from(*expected).short())
        }
        other => other.to_string(),
    }
}

/// What a newcomer says of itself; the invite's own limits win.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Its zone; empty: one of its own.
    pub zone: String,
    /// Bytes that it offers.
    pub capacity: u64,
}

/// Redeems a token for the node in `folder`, and puts its certificate and the member table there.
pub async fn join(
    folder: &Path,
    token: &InviteToken,
    wish: Wish,
    bind: &Bind,
    now_ms: u64,
    rng: &mut impl rand::Rng,
) -> Result<MemberCert, JoinError> {
    if token.kind != InviteKind::Node {
        return Err(JoinError::VaultToken);
    }
    if token.expires_s <= now_ms / 1000 {
        return Err(JoinError::Expired);
    }
    let key = identity::prepare(folder, rng)?;
    let gate = Arc::new(StrangerGate { cluster: token.cluster });
    let endpoint = bind(&key, gate, Limits::client())?;
    let redeemed = redeem(&endpoint, token, wish).await;
    endpoint.close(Duration::from_secs(1)).await;
    let redeemed = redeemed?;
    let bad = |error: potluck_proto::encoding::DecodeError| JoinError::BadAnswer(error.to_string());
    let cert = MemberCert::decode(&redeemed.cert).map_err(bad)?;
    check(&cert, token, &key)?;
    // The node takes it into its log when it starts; there is no log yet.
    durable::replace(&folder.join(TABLE), &redeemed.table.unwrap_or_default().encode_to_vec())?;
    identity::admit(folder, &cert)?;
    Ok(cert)
}

fn check(cert: &MemberCert, token: &InviteToken, key: &SecretKey) -> Result<(), JoinError> {
    if cert.cluster() != token.cluster {
        return Err(JoinError::BadAnswer("it is of another cluster than the token".into()));
    }
    if cert.node() != key.public().into() {
        return Err(JoinError::BadAnswer("it is for another node".into()));
    }
    Ok(())
}

async fn redeem(endpoint: &Endpoint, token: &InviteToken, wish: Wish) -> Result<wire::Redeemed, JoinError> {
    let inviter = Peer { key: token.inviter.into(), addresses: token.addresses.clone() };
    let call = request::Kind::Redeem(wire::Redeem {
        secret: Bytes::copy_from_slice(&token.secret),
        cluster: Bytes::copy_from_slice(token.cluster.as_bytes()),
        vault: false,
        zone: wish.zone,
        capacity: wish.capacity,
        inviter: Bytes::copy_from_slice(token.inviter.as_bytes()),
        for_key: Bytes::new(),
    });
    match endpoint.call(&inviter, call, Vec::new(), DEADLINE).await {
        Ok((reply::Kind::Redeemed(redeemed), _)) => Ok(redeemed),
        Ok(_) => Err(JoinError::BadAnswer("another kind of answer".into())),
        Err(CallError::Refused(error)) if error.code() == Code::InviteExpired => Err(JoinError::Expired),
        Err(CallError::Refused(error) | CallError::Unaccepted(error)) => Err(JoinError::Refused(error)),
        Err(error) => Err(JoinError::Unreachable(error)),
    }
}
