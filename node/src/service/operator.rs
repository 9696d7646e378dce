//! Calls that change who belongs: invites and their redemption, recovery, and the operator's own.
//!
//! The operator is whoever has the node's key: the command line connects to the running node as that very node.

use std::sync::Arc;

use bytes::Bytes;
use potluck_proto::cert::{MemberCert, VaultCert};
use potluck_proto::id::{ClusterId, NodeId, VaultId};
use potluck_proto::invite::{InviteKind, InviteToken, SECRET_LEN};
use potluck_proto::key::{PublicKey, SecretKey};
use potluck_proto::member::{Standing, Statement, Verdict};
use potluck_proto::transport::{Caller, Role};
use potluck_proto::wire::{self, Code, admin, reply, request};
use rand::Rng;

use crate::identity;
use crate::join::why;
use crate::node::Core;

/// How long a member waits for the inviter to which it forwards.
const FORWARD_DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

/// Longest life of an invite.
const VALID_LIMIT_S: u64 = 366 * 86_400;

/// Most stripes looked at when a node begins to leave, so that its operator has an answer in seconds.
const LEAVE_SCAN: usize = 100_000;

/// Stripes looked at in one go.
const LEAVE_PAGE: usize = 1024;

fn foreign(cluster: ClusterId) -> wire::Error {
    let message = format!("this node belongs to cluster {}, the token to another", cluster.short());
    wire::Error::new(Code::ForeignCluster, message)
}

fn check_cluster(core: &Core, cluster: &Bytes) -> Result<(), wire::Error> {
    let own = core.membership.view().table.cluster();
    if own.as_bytes()[..] == cluster[..] { Ok(()) } else { Err(foreign(own)) }
}

fn cluster_key(core: &Core) -> Result<&SecretKey, wire::Error> {
    core.identity.cluster_key.as_ref().ok_or_else(|| {
        let message = "only the node that founded the cluster has its key: run this there";
        wire::Error::new(Code::Forbidden, message)
    })
}

pub(super) async fn redeem(
    core: &Arc<Core>,
    caller: &Caller,
    call: wire::Redeem,
) -> Result<wire::Redeemed, wire::Error> {
    check_cluster(core, &call.cluster)?;
    let inviter: NodeId = wire::id("inviter", &call.inviter)?;
    let key: PublicKey = match (&caller.role, call.for_key.is_empty()) {
        (_, true) => caller.key,
        (Role::Node(_), false) => wire::id("key", &call.for_key)?,
        (_, false) => return Err(wire::Error::new(Code::Forbidden, "only members forward invites")),
    };
    if inviter != core.identity.node() {
        return forward(core, inviter, wire::Redeem { for_key: Bytes::copy_from_slice(&key.0), ..call }).await;
    }
    let cluster_key = cluster_key(core)?.clone();
    let now_ms = (core.clock)();
    let kind = if call.vault { InviteKind::Vault } else { InviteKind::Node };
    let shared = core.clone();
    let redeemed = core.executor.run(move || {
        let cert = shared.invites.redeem(&call.secret, kind, key, now_ms / 1000, |invite| match kind {
            InviteKind::Node => {
                let node = NodeId::from(key);
                let zone = match (invite.zone.as_str(), call.zone.as_str()) {
                    ("", "") => identity::default_zone(node),
                    ("", wished) => wished.to_string(),
                    (fixed, _) => fixed.to_string(),
                };
                MemberCert::issue(&cluster_key, node, &zone, invite.bytes, now_ms).as_bytes().to_vec()
            }
            InviteKind::Vault => {
                VaultCert::issue(&cluster_key, VaultId::from(key), invite.bytes, now_ms).as_bytes().to_vec()
            }
        })?;
        if kind == InviteKind::Vault {
            shared.membership.learn_vault(VaultCert::decode(&cert)?);
            if let Err(error) = shared.membership.persist() {
                tracing::error!(%error, "the member table cannot be written to disk");
                return Err(wire::Error::new(Code::Internal, "the inviting node cannot write to its disk"));
            }
        }
        Ok(cert)
    });
    let cert = redeemed.await.map_err(|error| wire::Error::new(Code::Internal, error.to_string()))??;
    tracing::info!(key = %NodeId::from(key).short(), ?kind, "an invite was redeemed");
    Ok(wire::Redeemed { cert: cert.into(), table: Some(core.membership.view().table.to_wire()) })
}

/// Another member made the invite.
async fn forward(core: &Core, inviter: NodeId, call: wire::Redeem) -> Result<wire::Redeemed, wire::Error> {
    let peer = core.membership.view().peer(&inviter).ok_or_else(|| {
        wire::Error::new(Code::InviteUnknown, "the node that made this invite is not known here: ask for a new one")
    })?;
    match core.endpoint.call(&peer, request::Kind::Redeem(call), Vec::new(), FORWARD_DEADLINE).await {
        Ok((reply::Kind::Redeemed(redeemed), _)) => Ok(redeemed),
        Ok(_) => Err(wire::Error::new(Code::Internal, "the inviter gave another answer")),
        Err(potluck_proto::transport::CallError::Refused(error)) => Err(error),
        Err(error) => {
            let message =
                format!("the node that made this invite is not reachable now ({}): try again later", why(&error));
            Err(wire::Error::new(Code::Overloaded, message))
        }
    }
}

/// A stranger who connects with a vault's key gets what recovery needs.
pub(super) fn fetch_vault(
    core: &Core,
    caller: &Caller,
    call: &wire::FetchVault,
) -> Result<wire::FetchVaultReply, wire::Error> {
    check_cluster(core, &call.cluster)?;
    let view = core.membership.view();
    let vault = VaultId::from(caller.key);
    let cert = view.table.vault(&vault).ok_or_else(|| {
        wire::Error::new(Code::NotFound, "this cluster does not know a vault with this key: are the words right?")
    })?;
    Ok(wire::FetchVaultReply { vault_cert: Bytes::copy_from_slice(cert.as_bytes()), table: Some(view.table.to_wire()) })
}

pub(super) async fn admin(
    core: &Arc<Core>,
    caller: &Caller,
    call: wire::Admin,
) -> Result<wire::AdminReply, wire::Error> {
    if caller.key != core.identity.key.public() {
        return Err(wire::Error::new(Code::Forbidden, "only the node's own operator may do that"));
    }
    match call.kind {
        Some(admin::Kind::Invite(invite)) => make_invite(core, invite).await,
        Some(admin::Kind::Leave(_)) => leave(core).await,
        Some(admin::Kind::Lost(state)) => declare(core, &state, true).await,
        Some(admin::Kind::Evict(state)) => declare(core, &state, false).await,
        None => Err(wire::Error::new(Code::BadRequest, "an operator's call that this version does not know")),
    }
}

async fn make_invite(core: &Arc<Core>, invite: admin::Invite) -> Result<wire::AdminReply, wire::Error> {
    cluster_key(core)?;
    let kind = if invite.vault { InviteKind::Vault } else { InviteKind::Node };
    let bytes = if invite.vault { invite.quota } else { invite.capacity };
    if invite.zone.len() > potluck_proto::cert::ZONE_LIMIT {
        return Err(wire::Error::new(Code::BadRequest, "the zone's name is too long"));
    }
    let mut secret = [0; SECRET_LEN];
    core.rng().fill_bytes(&mut secret);
    let now_s = (core.clock)() / 1000;
    let expires_s = now_s + invite.valid_for_s.clamp(1, VALID_LIMIT_S);
    let view = core.membership.view();
    let addresses = view.table.record(&view.me).map(|record| record.addresses.clone()).unwrap_or_default();
    let token = InviteToken {
        kind,
        cluster: view.table.cluster(),
        inviter: view.me,
        secret,
        expires_s,
        addresses: addresses.into_iter().take(potluck_proto::invite::TOKEN_ADDRESS_LIMIT).collect(),
    };
    let shared = core.clone();
    let added = core.executor.run(move || shared.invites.add(&secret, kind, &invite.zone, bytes, expires_s, now_s));
    match added.await {
        Ok(Ok(())) => Ok(wire::AdminReply { token: token.to_string(), ..Default::default() }),
        Ok(Err(error)) => Err(wire::Error::new(Code::Internal, error.to_string())),
        Err(error) => Err(wire::Error::new(Code::Internal, error.to_string())),
    }
}

/// Puts this node on its way out. The answer's text says what will keep it from becoming empty, if anything will.
async fn leave(core: &Arc<Core>) -> Result<wire::AdminReply, wire::Error> {
    core.leave().await.map_err(|error| {
        let message = format!("this node cannot write to its disk that it is leaving, so it stays ({error})");
        wire::Error::new(Code::Internal, message)
    })?;
    let shared = core.clone();
    let text = match core.executor.run(move || too_wide(&shared)).await {
        Ok(text) => text.unwrap_or_default(),
        Err(error) => format!("whether all shards find another place cannot be told: {error}"),
    };
    Ok(wire::AdminReply { text, ..Default::default() })
}

/// What is to be said of the stripes here that have more shards than there are nodes left to hold them; `None` if there
/// are none among the first [`LEAVE_SCAN`].
fn too_wide(core: &Core) -> Option<String> {
    let left = core.membership.view().ring.len();
    let (mut after, mut seen, mut wide, mut widest) = (None, 0, 0_usize, 0);
    while seen < LEAVE_SCAN {
        let page = core.store.stripes(after, LEAVE_PAGE);
        let Some(last) = page.last() else { break };
        (after, seen) = (Some(*last), seen + page.len());
        for stripe in &page {
            let n = core.store.held(stripe).first().map_or(0, |held| held.scheme.n());
            wide += usize::from(n > left);
            widest = widest.max(n);
        }
    }
    (wide > 0).then(|| {
        format!(
            "Without this node {left} remain, but {wide} of the stripes here are spread over as many as {widest} nodes: \
             some of their shards have no other place, and this node cannot become empty before enough other nodes join"
        )
    })
}

async fn declare(core: &Arc<Core>, state: &admin::State, lost: bool) -> Result<wire::AdminReply, wire::Error> {
    let node: NodeId = wire::id("node", &state.node)?;
    let view = core.membership.view();
    let Some(standing) = view.table.standing(&node) else {
        return Err(wire::Error::new(Code::NotFound, "no such node in this cluster"));
    };
    if node == view.me {
        return Err(wire::Error::new(Code::BadRequest, "that is this node itself: use 'leave'"));
    }
    let verdict = if lost {
        if view.is_up(&node) {
            return Err(wire::Error::new(Code::BadRequest, "that node is up: it is not lost"));
        }
        if standing != Standing::Member {
            return Err(wire::Error::new(
                Code::BadRequest,
                format!("that node is {standing:?} already").to_lowercase(),
            ));
        }
        let generation = view.table.record(&node).map_or(0, |record| record.generation);
        Verdict::Lost { generation }
    } else {
        Verdict::Evicted
    };
    core.membership.state(Statement::issue(cluster_key(core)?, node, verdict, (core.clock)()));
    let shared = core.clone();
    let written = core.executor.run(move || shared.membership.persist()).await;
    if let Err(error) = written.map_err(std::io::Error::other).and_then(|written| written) {
        tracing::error!(%error, "the member table cannot be written to disk");
        let message = format!("the statement was made and is being told, but not kept on this node's disk: {error}");
        return Err(wire::Error::new(Code::Internal, message));
    }
    Ok(wire::AdminReply { text: if lost { "lost".into() } else { "evicted".into() }, ..Default::default() })
}
