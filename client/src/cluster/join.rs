//! The two things a stranger may do: redeem a vault's invite, and, proving a vault's key, fetch what recovery needs.
//!
//! Both use an endpoint bound to the *vault* key with a gate from [`ClientGate::stranger`](super::gate::ClientGate).

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use potluck_proto::cert::VaultCert;
use potluck_proto::id::{ClusterId, NodeId, VaultId};
use potluck_proto::invite::{InviteKind, InviteToken};
use potluck_proto::member::MemberTable;
use potluck_proto::transport::{CallError, Endpoint, Peer};
use potluck_proto::wire::{self, Code, reply, request};

use crate::vault::sheet::SheetNode;

/// How long one call may take; an inviter may first have to ask another node.
const DEADLINE: Duration = Duration::from_secs(20);

/// Most addresses that are tried, all at once.
const CONTACTS_LIMIT: usize = 16;

/// Why a vault was not admitted or not found.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token admits a node.
    #[error("this invite is for a node: give it to `potluck node join`, and ask for an invite for a vault")]
    NodeInvite,
    /// No node knows the token's secret.
    #[error("the cluster does not know this invite: ask for a new one")]
    UnknownInvite,
    /// Its time is over.
    #[error("the invite has expired: ask for a new one")]
    ExpiredInvite,
    /// Another key has redeemed it.
    #[error("the invite was already used, by another vault: ask for a new one")]
    UsedInvite,
    /// It belongs to another cluster than the nodes at its addresses, or so does the sheet.
    #[error("the nodes at these addresses are of another cluster")]
    ForeignCluster,
    /// The cluster has no such vault.
    #[error("this cluster does not know the vault: check the words and the cluster id")]
    UnknownVault,
    /// Nobody could be reached.
    #[error(
        "none of {tried} addresses can be reached (last: {last}): check the network, or try an address of another node"
    )]
    Unreachable {
        /// Addresses tried.
        tried: usize,
        /// What became of the last one.
        last: String,
    },
    /// Anything else that a node refuses.
    #[error("a node refused: {0}")]
    Refused(String),
    /// A node's answer is not genuine.
    #[error("a node's answer cannot be used: {0}")]
    BadAnswer(String),
}

/// Redeems an invite for the vault whose key `endpoint` proves: the vault's certificate, and the cluster's members.
///
/// Redeeming again with the same key gives the same certificate.
pub async fn redeem_vault(
    endpoint: &Endpoint,
    token: &InviteToken,
    now_ms: u64,
) -> Result<(VaultCert, wire::Table), JoinError> {
    if token.kind != InviteKind::Vault {
        return Err(JoinError::NodeInvite);
    }
    if now_ms / 1000 >= token.expires_s {
        return Err(JoinError::ExpiredInvite);
    }
    let peer = Peer { key: token.inviter.into(), addresses: token.addresses.clone() };
    let call = request::Kind::Redeem(wire::Redeem {
        secret: Bytes::copy_from_slice(&token.secret),
        cluster: Bytes::copy_from_slice(token.cluster.as_bytes()),
        vault: true,
        inviter: Bytes::copy_from_slice(token.inviter.as_bytes()),
        ..wire::Redeem::default()
    });
    match endpoint.call(&peer, call, Vec::new(), DEADLINE).await {
        Ok((reply::Kind::Redeemed(reply), _)) => {
            genuine(endpoint, token.cluster, &reply.cert, reply.table.unwrap_or_default())
        }
        Ok(_) => Err(JoinError::BadAnswer("not an answer to an invite".into())),
        Err(error) => Err(explain(&error, token.addresses.len())),
    }
}

/// Fetches the certificate of the vault whose key `endpoint` proves, and the cluster's members, from the first of these
/// nodes that has them. All are asked at once.
pub async fn fetch_vault(
    endpoint: &Endpoint,
    cluster: ClusterId,
    contacts: &[SheetNode],
) -> Result<(VaultCert, wire::Table), JoinError> {
    let contacts = &contacts[..contacts.len().min(CONTACTS_LIMIT)];
    let mut nodes: std::collections::BTreeMap<NodeId, Vec<SocketAddr>> = std::collections::BTreeMap::new();
    for contact in contacts {
        nodes.entry(contact.node).or_default().push(contact.address);
    }
    let mut calls: FuturesUnordered<_> = nodes
        .into_iter()
        .map(|(node, addresses)| async move {
            let peer = Peer { key: node.into(), addresses };
            let call = wire::FetchVault { cluster: Bytes::copy_from_slice(cluster.as_bytes()) };
            endpoint.call(&peer, request::Kind::FetchVault(call), Vec::new(), DEADLINE).await
        })
        .collect();
    let mut failure = JoinError::Unreachable { tried: 0, last: "no address given".into() };
    while let Some(answer) = calls.next().await {
        let error = match answer {
            Ok((reply::Kind::FetchVault(reply), _)) => {
                match genuine(endpoint, cluster, &reply.vault_cert, reply.table.unwrap_or_default()) {
                    Ok(found) => return Ok(found),
                    Err(error) => error,
                }
            }
            Ok(_) => JoinError::BadAnswer("not an answer to a recovery".into()),
            Err(error) => explain(&error, contacts.len()),
        };
        // What a node said tells more than that another could not be reached.
        if matches!(failure, JoinError::Unreachable { .. }) {
            failure = error;
        }
    }
    Err(failure)
}

/// Checks what a node answered: the certificate is this vault's in this cluster, and the table names members.
fn genuine(
    endpoint: &Endpoint,
    cluster: ClusterId,
    cert: &[u8],
    table: wire::Table,
) -> Result<(VaultCert, wire::Table), JoinError> {
    let cert = VaultCert::decode(cert).map_err(|error| JoinError::BadAnswer(error.to_string()))?;
    if cert.cluster() != cluster {
        return Err(JoinError::ForeignCluster);
    }
    if cert.vault() != VaultId::from(endpoint.public_key()) {
        return Err(JoinError::BadAnswer("the certificate is of another vault".into()));
    }
    let mut members = MemberTable::new(cluster);
    members.merge(&table);
    if members.members().next().is_none() {
        return Err(JoinError::BadAnswer("no member of the cluster is named".into()));
    }
    Ok((cert, members.to_wire()))
}

/// What a failed call means to someone who wants in.
fn explain(error: &CallError, tried: usize) -> JoinError {
    match error.code() {
        Some(Code::InviteUnknown) => JoinError::UnknownInvite,
        Some(Code::InviteExpired) => JoinError::ExpiredInvite,
        Some(Code::InviteUsed) => JoinError::UsedInvite,
        Some(Code::ForeignCluster) => JoinError::ForeignCluster,
        Some(Code::NotFound) => JoinError::UnknownVault,
        Some(_) => JoinError::Refused(error.to_string()),
        None => match error {
            CallError::BadReply(why) => JoinError::BadAnswer(why.clone()),
            error => JoinError::Unreachable { tried, last: error.to_string() },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_to_do() {
        let refused = |code| explain(&CallError::Refused(wire::Error::new(code, "no")), 1);
        assert!(matches!(refused(Code::InviteUnknown), JoinError::UnknownInvite));
        assert!(matches!(refused(Code::InviteExpired), JoinError::ExpiredInvite));
        assert!(matches!(refused(Code::InviteUsed), JoinError::UsedInvite));
        assert!(matches!(refused(Code::NotFound), JoinError::UnknownVault));
        let unaccepted = CallError::Unaccepted(wire::Error::new(Code::ForeignCluster, "no"));
        assert!(matches!(explain(&unaccepted, 1), JoinError::ForeignCluster));
        assert!(matches!(explain(&CallError::Deadline, 3), JoinError::Unreachable { tried: 3, .. }));
    }
}
