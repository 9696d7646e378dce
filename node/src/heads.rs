//! The vaults' heads on this node: synced to disk before they are acknowledged, settled when the replica list changes.
//!
//! What a replica may say, and when, is decided in `potluck_proto::replica`; this file keeps replicas in the store, answers
//! calls and carries the exchange out.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use potluck_proto::cert::Rights;
use potluck_proto::head::SignedHead;
use potluck_proto::id::{NodeId, VaultId};
use potluck_proto::replica::{Heard, RefusedHead, Replica, ReplicaList, Settling};
use potluck_proto::transport::{Endpoint, Executor};
use potluck_proto::wire::{self, Code, reply, request};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::membership::{Membership, View};
use crate::store::segments::SegmentStore;
use crate::store::segments::format::Kind;

/// Time between two looks at the vaults whose replicas are not settled.
const SETTLE_INTERVAL: Duration = Duration::from_secs(2);

/// Time between two exchanges of a settled replica with the others.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);

/// How long one exchange may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Most exchanges at once.
const EXCHANGES: usize = 32;

/// Most nodes that a caller may name as its list.
const LIST_LIMIT: usize = 64;

/// How many replicas are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadCounts {
    /// Their word counts.
    pub settled: u64,
    /// They have not yet heard what they must.
    pub unsettled: u64,
    /// A quorum of an earlier list is gone.
    pub behind: u64,
}

/// One vault's replica; the lock is held over the write to disk, so that writes of one vault come in turn.
type Slot = Arc<tokio::sync::Mutex<Replica>>;

/// All replicas of this node.
pub struct Heads {
    store: Arc<SegmentStore>,
    executor: Executor,
    membership: Arc<Membership>,
    slots: Mutex<BTreeMap<VaultId, Slot>>,
    counts: Mutex<HeadCounts>,
}

impl Heads {
    /// Reads the replicas from the store; none of them is settled until it has exchanged heads anew.
    pub fn open(store: Arc<SegmentStore>, executor: Executor, membership: Arc<Membership>) -> io::Result<Self> {
        let mut slots = BTreeMap::new();
        for vault in store.kept_keys(Kind::Head).into_iter().map(VaultId) {
            let read = match store.kept(Kind::Head, vault.0) {
                Ok(bytes) => Replica::decode(&bytes).map_err(|error| error.to_string()),
                Err(error) if error.lost() => Err(error.to_string()),
                Err(error) => return Err(io::Error::other(error)),
            };
            match read {
                Ok(mut replica) => {
                    replica.unsettle();
                    slots.insert(vault, Arc::new(tokio::sync::Mutex::new(replica)));
                }
                Err(error) => {
                    tracing::error!(%vault, %error, "the stored heads are damaged: asking the other replicas");
                }
            }
        }
        let slots = Mutex::new(slots);
        Ok(Self { store, executor, membership, slots, counts: Mutex::default() })
    }

    /// How many replicas are in which state, as of the last look.
    #[must_use]
    pub fn counts(&self) -> HeadCounts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<VaultId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slot of a vault; one is made only for vaults of the cluster, so strangers cannot fill memory.
    fn slot(&self, view: &View, vault: &VaultId) -> Result<Slot, wire::Error> {
        if view.table.vault(vault).is_none() {
            return Err(wire::Error::new(Code::NotFound, format!("vault {} is not known here", vault.short())));
        }
        Ok(self.slots().entry(*vault).or_default().clone())
    }

    /// Writes a replica to disk; it may be spoken of after that.
    async fn write_down(&self, vault: VaultId, replica: &Replica) -> Result<(), wire::Error> {
        let (store, bytes) = (self.store.clone(), replica.encode());
        let written = self.executor.run(move || store.keep(Kind::Head, vault.0, &bytes)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::error!(%vault, %error, "heads cannot be written to disk");
                Err(wire::Error::new(Code::Internal, "this node cannot write heads to its disk"))
            }
            Err(error) => Err(wire::Error::new(Code::Internal, error.to_string())),
        }
    }

    /// Writes a replica anew: what is on disk is damaged.
    pub async fn rewrite(&self, vault: VaultId) -> Result<(), wire::Error> {
        let slot = self.slots().get(&vault).cloned();
        let Some(slot) = slot else { return Ok(()) };
        let replica = slot.lock().await;
        self.write_down(vault, &replica).await
    }

    /// Brings a replica into line with the ring.
    fn follow(view: &View, vault: &VaultId, replica: &mut Replica) {
        let list = view.head_list(vault);
        let before = replica.list().is_empty().then(|| view.head_list_before(vault));
        replica.follow(&list, before.as_ref());
    }

    fn describe(replica: &Replica, accepted: bool) -> wire::HeadsReply {
        let list_of = |list: &ReplicaList| wire::ReplicaList { members: list.members().map(id_bytes).collect() };
        wire::HeadsReply {
            heads: replica.heads().iter().map(|head| head.bytes().clone()).collect(),
            list: Bytes::copy_from_slice(replica.list().id().as_bytes()),
            settled: replica.settled(),
            accepted,
            past: replica.past().iter().map(list_of).collect(),
            known: !replica.heads().is_empty(),
            behind: replica.behind(),
        }
    }

    /// Answers a reader.
    pub async fn read(&self, call: &wire::ReadHeads) -> Result<wire::HeadsReply, wire::Error> {
        let vault = wire::id("vault", &call.vault)?;
        let view = self.membership.view();
        let slot = self.slot(&view, &vault)?;
        let mut replica = slot.lock().await;
        Self::follow(&view, &vault, &mut replica);
        check_list(&replica, &call.list)?;
        Ok(Self::describe(&replica, false))
    }

    /// Answers a writer: the head is on disk, or it is not accepted.
    pub async fn write(&self, call: &wire::WriteHead) -> Result<wire::HeadsReply, wire::Error> {
        let vault = wire::id("vault", &call.vault)?;
        let view = self.membership.view();
        let head = self.check(&view, &vault, call.head.clone())?;
        let slot = self.slot(&view, &vault)?;
        let mut replica = slot.lock().await;
        Self::follow(&view, &vault, &mut replica);
        check_list(&replica, &call.list)?;
        if !replica.list().contains(&view.me) && !replica.past().iter().any(|list| list.contains(&view.me)) {
            return Err(wire::Error::new(Code::StaleList, "this node does not replicate the vault's heads"));
        }
        let mut changed = replica.clone();
        match changed.write(head) {
            Ok(true) => {
                self.write_down(vault, &changed).await?;
                *replica = changed;
                Ok(Self::describe(&replica, true))
            }
            Ok(false) => Ok(Self::describe(&replica, true)),
            Err(RefusedHead::Dominated) => Ok(Self::describe(&replica, false)),
            Err(error @ RefusedHead::Sweep) => Err(wire::Error::new(Code::StaleSweep, error.to_string())),
            Err(error @ RefusedHead::Concurrent) => Err(wire::Error::new(Code::Overloaded, error.to_string())),
        }
    }

    /// A head from outside, checked against the cluster.
    fn check(&self, view: &View, vault: &VaultId, bytes: Bytes) -> Result<SignedHead, wire::Error> {
        let head = SignedHead::decode(bytes)?;
        if head.vault() != *vault {
            return Err(wire::Error::new(Code::BadRequest, "the head is of another vault"));
        }
        if head.cluster != view.table.cluster() {
            return Err(wire::Error::new(Code::ForeignCluster, "the head is for another cluster"));
        }
        if view.table.revoked(&head.device) {
            return Err(wire::Error::new(Code::Revoked, "the device's certificate was revoked"));
        }
        if !head.device.rights().contains(Rights::WRITE) {
            return Err(wire::Error::new(Code::Forbidden, "the device may not write"));
        }
        Ok(head)
    }

    /// Answers another replica: takes its heads in, and gives all that is known.
    pub async fn exchange(&self, call: &wire::ExchangeHeads) -> Result<wire::HeadsReply, wire::Error> {
        let vault = wire::id("vault", &call.vault)?;
        if call.list.len() > LIST_LIMIT {
            return Err(wire::Error::new(Code::BadRequest, "a replica list longer than its limit"));
        }
        let view = self.membership.view();
        let slot = self.slot(&view, &vault)?;
        let heads = self.genuine(&view, &vault, &call.heads);
        let mut replica = slot.lock().await;
        let mut changed = replica.clone();
        Self::follow(&view, &vault, &mut changed);
        if let Err(error) = changed.learn(heads) {
            // The caller hears what is held here all the same, and keeps what it has.
            tracing::warn!(%vault, %error, "another replica's heads find no room here");
        }
        if changed != *replica {
            // A new list is on disk before it is spoken of: from then on no head is accepted under an earlier one.
            self.write_down(vault, &changed).await?;
            *replica = changed;
        }
        Ok(Self::describe(&replica, false))
    }

    /// The heads among these that are what they say; accepted heads of devices revoked since still count.
    fn genuine(&self, view: &View, vault: &VaultId, heads: &[Bytes]) -> Vec<SignedHead> {
        let decoded =
            heads.iter().take(potluck_proto::head::CONCURRENT_LIMIT * 2).map(|head| SignedHead::decode(head.clone()));
        let (cluster, vault) = (view.table.cluster(), *vault);
        decoded.flatten().filter(|head| head.vault() == vault && head.cluster == cluster).collect()
    }

    /// Keeps replicas settled until `stop` is set.
    pub async fn run(self: Arc<Self>, endpoint: Endpoint, mut stop: watch::Receiver<bool>) {
        let mut refreshed = Instant::now();
        let mut changes = self.membership.watch();
        loop {
            let refresh = refreshed.elapsed() >= REFRESH_INTERVAL;
            if refresh {
                refreshed = Instant::now();
            }
            self.look(&endpoint, refresh).await;
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(SETTLE_INTERVAL) => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// One look at all vaults; settled ones exchange heads only if `refresh`.
    async fn look(&self, endpoint: &Endpoint, refresh: bool) {
        let view = self.membership.view();
        let mut counts = HeadCounts::default();
        let vaults: BTreeSet<VaultId> =
            view.table.vaults().map(|cert| cert.vault()).chain(self.slots().keys().copied()).collect();
        for vault in vaults {
            let list = view.head_list(&vault);
            let known = self.slots().contains_key(&vault);
            if !known && !list.contains(&view.me) {
                continue;
            }
            let Ok(slot) = self.slot(&view, &vault) else { continue };
            let settled = {
                let mut replica = slot.lock().await;
                Self::follow(&view, &vault, &mut replica);
                replica.settled()
            };
            if !settled || refresh {
                self.settle(endpoint, &view, vault, &slot).await;
            }
            let replica = slot.lock().await;
            counts.settled += u64::from(replica.settled());
            counts.unsettled += u64::from(!replica.settled());
            counts.behind += u64::from(replica.behind());
        }
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// Exchanges heads with all whom the replica must hear, and settles it if they were enough.
    async fn settle(&self, endpoint: &Endpoint, view: &View, vault: VaultId, slot: &Slot) {
        let before = slot.lock().await.clone();
        let mut ask: BTreeSet<NodeId> = before.list().members().collect();
        ask.extend(before.past().iter().flat_map(|list| list.members()));
        let mut answers = BTreeMap::new();
        let mut asked = BTreeSet::from([view.me]);
        loop {
            let now: Vec<NodeId> = ask.difference(&asked).copied().collect();
            if now.is_empty() {
                break;
            }
            asked.extend(&now);
            let mut learned = Vec::new();
            for (node, heard, heads) in self.ask(endpoint, view, vault, &before, now).await {
                // Whoever has not settled names those whom we must hear too.
                if !heard.settled {
                    ask.extend(heard.past.iter().flat_map(|list| list.members()));
                }
                learned.extend(heads);
                answers.insert(node, heard);
            }
            let mut replica = slot.lock().await;
            let mut changed = replica.clone();
            let told = changed.learn(learned);
            if changed != *replica {
                if self.write_down(vault, &changed).await.is_err() {
                    return;
                }
                *replica = changed;
            }
            drop(replica);
            if let Err(error) = told {
                tracing::warn!(%vault, %error, "other replicas' heads find no room here: not settled");
                return;
            }
            if before.settled() {
                // It has heard what it must: this exchange is for the heads, and nothing that is said now undoes that.
                return;
            }
            // When it takes everybody's answer to settle, everybody who is up is asked.
            let judge = |unheard| before.settling(view.me, &answers, |node| view.gone(node), unheard);
            let missing = |verdict| matches!(verdict, Settling::Missing { .. });
            if missing(judge(usize::MAX)) && !missing(judge(0)) {
                ask.extend(view.others_up());
            }
        }
        let unheard = view.others_up().filter(|node| !answers.contains_key(node)).count();
        let verdict = before.settling(view.me, &answers, |node| view.gone(node), unheard);
        let behind = match verdict {
            Settling::Done => false,
            Settling::Behind(_) => {
                tracing::warn!(%vault, "a quorum of an earlier replica list is gone: the vault may be behind");
                true
            }
            Settling::Missing { list, heard } => {
                tracing::debug!(%vault, heard, of = list.len(), "not settled yet");
                return;
            }
        };
        let mut replica = slot.lock().await;
        let mut changed = replica.clone();
        if changed.settle(before.list(), behind)
            && changed != *replica
            && self.write_down(vault, &changed).await.is_ok()
        {
            *replica = changed;
        }
    }

    /// Exchanges heads with these nodes; those that hold another list exchange members first, for the next time.
    async fn ask(
        &self,
        endpoint: &Endpoint,
        view: &View,
        vault: VaultId,
        replica: &Replica,
        nodes: Vec<NodeId>,
    ) -> Vec<(NodeId, Heard, Vec<SignedHead>)> {
        let permits = Semaphore::new(EXCHANGES);
        let mut calls: FuturesUnordered<_> = nodes
            .into_iter()
            .filter(|node| view.is_up(node))
            .filter_map(|node| Some((node, view.peer(&node)?)))
            .map(|(node, peer)| {
                let call = request::Kind::ExchangeHeads(wire::ExchangeHeads {
                    vault: Bytes::copy_from_slice(vault.as_bytes()),
                    heads: replica.heads().iter().map(|head| head.bytes().clone()).collect(),
                    list: replica.list().members().map(id_bytes).collect(),
                });
                let permits = &permits;
                async move {
                    let _permit = permits.acquire().await.ok()?;
                    let (reply, _) = endpoint.call(&peer, call, Vec::new(), DEADLINE).await.ok()?;
                    let reply::Kind::Heads(reply) = reply else { return None };
                    Some((node, reply))
                }
            })
            .collect();
        let mut answers = Vec::new();
        while let Some(answer) = calls.next().await {
            let Some((node, reply)) = answer else { continue };
            let Ok(list) = wire::id("list", &reply.list) else { continue };
            let past =
                reply.past.iter().take(LIST_LIMIT).map(|list| {
                    ReplicaList::new(list.members.iter().take(4096).filter_map(|id| NodeId::from_slice(id)))
                });
            let heard = Heard { list, settled: reply.settled, past: past.collect() };
            answers.push((node, heard, self.genuine(view, &vault, &reply.heads)));
        }
        answers
    }
}

fn check_list(replica: &Replica, theirs: &Bytes) -> Result<(), wire::Error> {
    if theirs.is_empty() || theirs[..] == replica.list().id().as_bytes()[..] {
        return Ok(());
    }
    Err(wire::Error::new(Code::StaleList, "the replica lists differ: exchange members and try again"))
}

fn id_bytes(node: NodeId) -> Bytes {
    Bytes::copy_from_slice(node.as_bytes())
}
