//! The node's answers: which call goes where, who may make it, and what it cost.

mod operator;
mod shards;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use potluck_proto::blocks::BLOCK_LEN;
use potluck_proto::cert::{DeviceCert, Rights};
use potluck_proto::id::{NodeId, StripeId};
use potluck_proto::stripe::DATA_LIMIT;
use potluck_proto::transport::{Answer, Caller, Role, Service};
use potluck_proto::wire::{self, Code, reply, request};
use tokio::time::Instant;

use crate::membership::exchange;
use crate::metrics::label::{Call, Direction};
use crate::node::Core;

/// Answers calls for one node.
pub struct NodeService(pub Arc<Core>);

impl Service for NodeService {
    fn call(
        self: Arc<Self>,
        caller: Caller,
        request: request::Kind,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Answer, wire::Error>> {
        async move {
            let core = &self.0;
            let began = Instant::now();
            let call = Call::of(Some(&request));
            core.metrics.payload_bytes.with(Direction::In).inc_by(payload.len() as u64);
            let result = answer(core, &caller, request, payload).await;
            if let Ok(answer) = &result {
                let sent = answer.payload.iter().map(Bytes::len).sum::<usize>();
                core.metrics.payload_bytes.with(Direction::Out).inc_by(sent as u64);
            }
            core.metrics.request_done(call, result.as_ref().err().map(wire::Error::code), began.elapsed());
            result
        }
        .boxed()
    }

    fn answer_bytes(&self, request: &request::Kind) -> usize {
        match request {
            request::Kind::GetShard(call) if call.length > 0 => {
                let asked = usize::try_from(call.length).unwrap_or(usize::MAX);
                asked.saturating_add(2 * BLOCK_LEN).min(DATA_LIMIT)
            }
            request::Kind::GetShard(call) => whole_shard(&self.0, call),
            _ => 0,
        }
    }

    fn datagram(&self, caller: &Caller, data: Bytes) {
        if let Role::Node(cert) = &caller.role {
            self.0.swim.datagram(cert.node(), data);
        }
    }
}

/// Bytes of the longest shard that a call for a whole one may get.
fn whole_shard(core: &Core, call: &wire::GetShard) -> usize {
    let Some(stripe) = StripeId::from_slice(&call.stripe) else { return 0 };
    let held = core.store.held(&stripe);
    let asked = held.iter().filter(|held| call.index.is_none_or(|index| held.index == index as usize));
    asked.map(|held| held.len as usize).max().unwrap_or(0)
}

async fn answer(
    core: &Arc<Core>,
    caller: &Caller,
    request: request::Kind,
    payload: Bytes,
) -> Result<Answer, wire::Error> {
    use request::Kind;
    let reply = match request {
        Kind::Redeem(call) => reply::Kind::Redeemed(operator::redeem(core, caller, call).await?),
        Kind::FetchVault(call) => reply::Kind::FetchVault(operator::fetch_vault(core, caller, &call)?),
        Kind::Members(call) => {
            let node = match &caller.role {
                Role::Node(cert) => Some(cert.node()),
                Role::Device(_) => None,
                Role::Stranger => return Err(not_admitted()),
            };
            reply::Kind::Members(exchange::answer(&core.membership, &core.swim, node, &call)?)
        }
        Kind::PutShard(call) => reply::Kind::PutShard(shards::put(core, caller, call, payload).await?),
        Kind::GetShard(call) => return shards::get(core, caller, call).await,
        Kind::HaveShards(call) => reply::Kind::HaveShards(shards::have(core, caller, call).await?),
        Kind::CheckShard(call) => reply::Kind::CheckShard(shards::check(core, caller, call).await?),
        Kind::Alert(call) => reply::Kind::Alert(shards::alert(core, caller, call).await?),
        Kind::ReadHeads(call) => {
            may_use_vault(caller, &call.vault, Rights::READ)?;
            reply::Kind::Heads(core.heads.read(&call).await?)
        }
        Kind::WriteHead(call) => {
            may_use_vault(caller, &call.vault, Rights::WRITE)?;
            reply::Kind::Heads(core.heads.write(&call).await?)
        }
        Kind::ExchangeHeads(call) => {
            node_of(caller)?;
            reply::Kind::Heads(core.heads.exchange(&call).await?)
        }
        Kind::Status(_) => {
            if matches!(caller.role, Role::Stranger) {
                return Err(not_admitted());
            }
            reply::Kind::Status(core.status())
        }
        Kind::Admin(call) => reply::Kind::Admin(operator::admin(core, caller, call).await?),
        Kind::Hello(_) => return Err(wire::Error::new(Code::BadRequest, "hello comes once, first")),
    };
    Ok(Answer::of(reply))
}

fn not_admitted() -> wire::Error {
    wire::Error::new(Code::NotAdmitted, "this call needs a certificate of this cluster")
}

/// The node that calls.
fn node_of(caller: &Caller) -> Result<NodeId, wire::Error> {
    match &caller.role {
        Role::Node(cert) => Ok(cert.node()),
        Role::Device(_) => Err(wire::Error::new(Code::Forbidden, "this call is for nodes")),
        Role::Stranger => Err(not_admitted()),
    }
}

/// The device that calls, with these rights; `None` for a node.
fn device_of(caller: &Caller, rights: Rights) -> Result<Option<&DeviceCert>, wire::Error> {
    match &caller.role {
        Role::Node(_) => Ok(None),
        Role::Device(cert) if cert.rights().contains(rights) => Ok(Some(cert)),
        Role::Device(_) => Err(wire::Error::new(Code::Forbidden, "this device does not have the right to do that")),
        Role::Stranger => Err(not_admitted()),
    }
}

/// Heads of a vault are for its devices, and for other replicas.
fn may_use_vault(caller: &Caller, vault: &Bytes, rights: Rights) -> Result<(), wire::Error> {
    match device_of(caller, rights)? {
        Some(cert) if cert.vault().as_bytes()[..] != vault[..] => {
            Err(wire::Error::new(Code::Forbidden, "the device belongs to another vault"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
