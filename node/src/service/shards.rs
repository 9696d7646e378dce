//! Calls about shards: they are verified before they are kept. Nodes are given what was verified again; clients, which
//! verify every byte in any case, are given it as it is on disk, and say when it is damaged.

use std::sync::Arc;

use bytes::Bytes;
use potluck_proto::blocks;
use potluck_proto::cert::Rights;
use potluck_proto::id::{StripeId, VaultId};
use potluck_proto::stripe::SignedHeader;
use potluck_proto::transport::{Answer, Caller};
use potluck_proto::wire::{self, Code, reply};

use super::device_of;
use crate::metrics::label::FoundBy;
use crate::node::Core;
use crate::store::{Check, Held, ShardKey, ShardState, StoreError};

pub(super) fn refuse(error: StoreError) -> wire::Error {
    let code = match &error {
        StoreError::NotFound => Code::NotFound,
        StoreError::Corrupt(_) | StoreError::Unreadable(_) => Code::Corrupt,
        StoreError::Full => Code::Full,
        StoreError::Range => Code::BadRequest,
        StoreError::Io(io) => {
            tracing::error!(error = %io, "the shard store failed");
            return wire::Error::new(Code::Internal, "this node's disk failed");
        }
    };
    wire::Error::new(code, error.to_string())
}

/// Runs disk and CPU work of one call.
async fn work<T: Send + 'static>(
    core: &Arc<Core>,
    work: impl FnOnce(&Core) -> Result<T, wire::Error> + Send + 'static,
) -> Result<T, wire::Error> {
    let shared = core.clone();
    match core.executor.run(move || work(&shared)).await {
        Ok(result) => result,
        Err(error) => Err(wire::Error::new(Code::Internal, error.to_string())),
    }
}

pub(super) async fn put(
    core: &Arc<Core>,
    caller: &Caller,
    call: wire::PutShard,
    payload: Bytes,
) -> Result<wire::PutShardReply, wire::Error> {
    let writer = device_of(caller, Rights::WRITE)?.map(|cert| cert.vault());
    if core.leaving() {
        return Err(wire::Error::new(Code::Full, "this node is leaving the cluster"));
    }
    let stored = work(core, move |core| {
        let header = SignedHeader::decode(call.header)?;
        check_owner(core, &header, writer)?;
        let index = call.index as usize;
        let Some(expected) = header.shards.get(index) else {
            return Err(wire::Error::new(Code::BadRequest, "the index lies outside the stripe's scheme"));
        };
        if payload.len() != header.shard_len as usize {
            return Err(wire::Error::new(Code::BadRequest, "the shard does not have the length that its header says"));
        }
        let (root, tree) = blocks::hash_shard(&payload);
        if root != *expected {
            return Err(wire::Error::new(Code::BadRequest, "the shard does not match its hash in the header"));
        }
        core.store.put(&header, index, &payload, &tree, call.sweep).map_err(refuse)
    });
    Ok(wire::PutShardReply { already: !stored.await? })
}

/// A device stores stripes of its own vault, signed by any device of it that is not revoked; a node passes on what any
/// vault of the cluster has stored.
fn check_owner(core: &Core, header: &SignedHeader, writer: Option<VaultId>) -> Result<(), wire::Error> {
    let view = core.membership.view();
    if view.table.vault(&header.vault).is_none() {
        return Err(wire::Error::new(Code::NotAdmitted, "the stripe's vault is not known in this cluster"));
    }
    match writer {
        Some(vault) if vault != header.vault => {
            Err(wire::Error::new(Code::Forbidden, "the stripe belongs to another vault"))
        }
        Some(_) if view.table.revoked(&header.device) => {
            Err(wire::Error::new(Code::Revoked, "the certificate of the device that signed the stripe was revoked"))
        }
        _ => Ok(()),
    }
}

/// Whether a stripe that is held here is none of the caller's business: a device asks for those of its own vault, a node
/// for any. What is foreign is answered for as if it were not here.
fn foreign(core: &Core, stripe: &StripeId, asks: Option<VaultId>) -> Result<bool, wire::Error> {
    let Some(vault) = asks else { return Ok(false) };
    match core.store.header(stripe) {
        Ok(header) => Ok(header.vault != vault),
        // Whose it is can no longer be read: of no use to anybody but those who repair.
        Err(StoreError::NotFound | StoreError::Corrupt(_)) => Ok(true),
        Err(error) => Err(refuse(error)),
    }
}

pub(super) async fn get(core: &Arc<Core>, caller: &Caller, call: wire::GetShard) -> Result<Answer, wire::Error> {
    let reader = device_of(caller, Rights::READ)?.map(|cert| cert.vault());
    let check = if reader.is_some() { Check::Reader } else { Check::Here };
    let stripe: StripeId = wire::id("stripe", &call.stripe)?;
    let (read, index) = work(core, move |core| {
        let held = core.store.held(&stripe);
        let live_first = |held: &&Held| held.state != ShardState::Live;
        let wanted = match call.index {
            Some(index) => held.iter().find(|held| held.index == index as usize),
            None => held.iter().min_by_key(live_first),
        };
        let wanted = wanted.ok_or_else(|| refuse(StoreError::NotFound))?;
        if foreign(core, &stripe, reader)? {
            return Err(refuse(StoreError::NotFound));
        }
        let end = match call.length {
            0 => u64::from(wanted.len),
            length => call.offset.saturating_add(length),
        };
        let key = ShardKey { stripe, index: wanted.index };
        match core.store.read(key, call.offset..end, check) {
            Ok(read) => Ok((read, wanted.index)),
            Err(error) => {
                if error.lost() {
                    core.found_corrupt(stripe, FoundBy::Read);
                }
                Err(refuse(error))
            }
        }
    })
    .await?;
    let reply = wire::GetShardReply {
        header: read.header,
        index: index as u32,
        offset: read.offset,
        chaining_values: Bytes::copy_from_slice(read.tree.as_bytes()),
    };
    Ok(Answer { reply: reply::Kind::GetShard(reply), payload: vec![read.data] })
}

pub(super) async fn have(
    core: &Arc<Core>,
    caller: &Caller,
    call: wire::HaveShards,
) -> Result<wire::HaveShardsReply, wire::Error> {
    let asks = device_of(caller, Rights::READ)?.map(|cert| cert.vault());
    if call.stripes.len() > wire::HAVE_LIMIT {
        return Err(wire::Error::new(Code::BadRequest, format!("more than {} stripes", wire::HAVE_LIMIT)));
    }
    let stripes = call.stripes.iter().map(|id| wire::id("stripe", id)).collect::<Result<Vec<StripeId>, _>>()?;
    work(core, move |core| {
        let view = core.membership.view();
        let holding = |stripe: &StripeId| {
            let mut held = core.store.held(stripe);
            if !held.is_empty() && foreign(core, stripe, asks)? {
                held.clear();
            }
            let of = |live: bool| held.iter().filter(move |held| (held.state == ShardState::Live) == live);
            let home = held.first().is_some_and(|held| {
                view.ring.walk_stripe(stripe, held.scheme).iter().take(held.scheme.n()).any(|node| node == view.me)
            });
            Ok(wire::Holding {
                live: of(true).map(|held| held.index as u32).collect(),
                trash: of(false).map(|held| held.index as u32).collect(),
                condemned: false,
                complete: held.iter().any(|held| held.complete),
                home,
            })
        };
        Ok(wire::HaveShardsReply { holdings: stripes.iter().map(holding).collect::<Result<_, wire::Error>>()? })
    })
    .await
}

pub(super) async fn check(
    core: &Arc<Core>,
    caller: &Caller,
    call: wire::CheckShard,
) -> Result<wire::CheckShardReply, wire::Error> {
    let asks = device_of(caller, Rights::READ)?.map(|cert| cert.vault());
    let stripe: StripeId = wire::id("stripe", &call.stripe)?;
    let key = ShardKey { stripe, index: call.index as usize };
    work(core, move |core| {
        if foreign(core, &stripe, asks)? {
            return Err(refuse(StoreError::NotFound));
        }
        match core.store.verify(key) {
            Ok(_) => Ok(wire::CheckShardReply { sound: true }),
            Err(error) if error.lost() => {
                core.found_corrupt(stripe, FoundBy::Audit);
                Ok(wire::CheckShardReply { sound: false })
            }
            Err(error) => Err(refuse(error)),
        }
    })
    .await
}

pub(super) async fn alert(
    core: &Arc<Core>,
    caller: &Caller,
    call: wire::Alert,
) -> Result<wire::AlertReply, wire::Error> {
    let asks = device_of(caller, Rights::READ)?.map(|cert| cert.vault());
    let stripe: StripeId = wire::id("stripe", &call.stripe)?;
    work(core, move |core| {
        if !core.store.held(&stripe).is_empty() && !foreign(core, &stripe, asks)? {
            core.alerts.add(stripe);
        }
        Ok(wire::AlertReply {})
    })
    .await
}
