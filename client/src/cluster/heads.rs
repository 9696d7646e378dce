//! Reading and moving a vault's heads: all replicas are asked, a quorum decides.
//!
//! Which answers make a quorum is decided in `quorum`; this file carries calls, exchanges members with replicas whose list
//! differs, writes back what too few hold, and waits and retries within a deadline. It never writes on a doubt: without a
//! quorum a read is marked possibly stale and a write is an error.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use potluck_proto::head::{CONCURRENT_LIMIT, HeadSet, SignedHead};
use potluck_proto::id::{Digest, HeadId, NodeId, VaultId};
use potluck_proto::replica::{Heard, PAST_LIMIT, ReplicaList};
use potluck_proto::transport::CallError;
use potluck_proto::wire::{self, Code, reply, request};
use tokio::time::Instant;

use super::Cluster;
use super::calls::DOWN_WAIT;
use super::quorum::{Answer, Tally, WriteVerdict};

/// How long one replica may take; a write is synced to its disk.
const DEADLINE: Duration = Duration::from_secs(8);

/// How long a read waits for a quorum.
const READ_TOTAL: Duration = Duration::from_secs(8);

/// How long a write waits for a quorum.
const WRITE_TOTAL: Duration = Duration::from_secs(60);

/// What a read always gives to writing back.
const WRITE_BACK: Duration = Duration::from_secs(5);

/// How long all members may take to say what they keep of a vault's heads.
const EVERYONE_TOTAL: Duration = Duration::from_secs(15);

/// How many members are asked at once.
const AT_ONCE: usize = 64;

/// How long the other replicas are waited for once a quorum has answered.
const GRACE: Duration = Duration::from_millis(200);

/// About how long before the replicas are asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// Most nodes of a past list; folded lists are long.
const LIST_LIMIT: usize = 4096;

/// What a vault's replicas answered.
#[derive(Debug, Clone)]
pub struct HeadsRead {
    /// The maximal heads; several mean concurrent writers, none that the vault is new (or that nobody answered).
    pub heads: Vec<SignedHead>,
    /// Why the answer may lack an acknowledged head; `None` if a settled quorum answered and holds these heads.
    pub stale: Option<Stale>,
    /// A replica says that a quorum of an earlier list is gone: acknowledged heads may be lost for good.
    pub behind: bool,
}

/// Why heads may be older than the newest acknowledged ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// Too few replicas answered.
    #[error("{answered} of {replicas} head replicas answered, {needed} are needed{}", down_text(*down))]
    TooFew {
        /// Replicas that answered.
        answered: usize,
        /// A quorum.
        needed: usize,
        /// All replicas.
        replicas: usize,
        /// Replicas that did not answer and are known to be down.
        down: usize,
    },
    /// Enough answered, but too few of them have heard all that they must after a change of the ring.
    #[error("only {settled} of {needed} needed head replicas have settled since the ring changed")]
    Unsettled {
        /// Replicas whose word counts.
        settled: usize,
        /// A quorum.
        needed: usize,
    },
    /// A head was found that fewer than a quorum hold, and could not be brought to one.
    #[error("a newer head is held by too few replicas and could not be written back")]
    NotWrittenBack,
}

fn down_text(down: usize) -> String {
    if down > 0 { format!(", {down} are down") } else { String::new() }
}

impl Stale {
    /// Whether asking again is of no use until nodes come back: so many are known to be down that no quorum is left.
    #[must_use]
    pub fn is_hopeless(&self) -> bool {
        matches!(self, Self::TooFew { needed, replicas, down, .. } if replicas - down < *needed)
    }
}

/// A head was acknowledged.
#[derive(Debug, Clone)]
pub struct Written {
    /// Replicas that have it on disk.
    pub replicas: usize,
    /// Whether a quorum of settled replicas are among them; else quorums of all lists in question are.
    pub settled: bool,
    /// Heads that stand beside it: concurrent writers, to be merged.
    pub concurrent: Vec<SignedHead>,
}

/// Why a head was not acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteHeadError {
    /// A newer head includes all that it does: read, merge and commit anew. Nothing was lost.
    #[error("a newer head is known: read it and commit again")]
    Dominated(Vec<SignedHead>),
    /// A newer sweep is known: follow it first. Nothing was written.
    #[error("a newer sweep is known: {0}")]
    StaleSweep(String),
    /// So many replicas refuse that no quorum can come about.
    #[error("the head replicas refuse: {}", .0.message)]
    Refused(wire::Error),
    /// Too few replicas took it before the deadline. Some may have: the same head may be written again.
    #[error(
        "{reachable} of {replicas} head replicas took the head, {needed} are needed: try again when more nodes are up"
    )]
    TooFew {
        /// Replicas that took it.
        reachable: usize,
        /// A quorum.
        needed: usize,
        /// All replicas of the list.
        replicas: usize,
    },
}

impl Cluster {
    /// The maximal heads of a vault. Waits some seconds for a quorum, unless so many replicas are known to be down that
    /// there is none; without one the answer says why it may be stale.
    pub async fn read_heads(&self, vault: VaultId) -> HeadsRead {
        let until = Instant::now() + READ_TOTAL;
        let mut heads = HeadSet::default();
        loop {
            let list = self.members().view().head_list(&vault);
            let mut tally = Tally::new(list);
            self.poll(vault, &mut tally, Question::Read, until).await;
            tally.heads_into(&mut heads);
            let stale = if tally.has_quorum() {
                self.write_back(&tally, &mut heads, until).await.err()
            } else {
                Some(self.why_stale(&tally, until).await)
            };
            let hopeless = stale.as_ref().is_some_and(Stale::is_hopeless);
            let last = stale.is_none() || hopeless || Instant::now() >= until;
            if !last {
                self.prepare_retry(&tally, until).await;
            }
            // Nobody would have the time to answer another question: this is how it stands.
            if last || Instant::now() >= until {
                let behind = tally.behind();
                return HeadsRead { heads: heads.iter().cloned().collect(), stale, behind };
            }
        }
    }

    /// As [`Cluster::read_heads`], and asks every other member too: one that leaves a vault's replicas keeps its heads,
    /// so where too many replicas were lost at once, it may know the newest. A head that only such a member holds is
    /// brought to a quorum, and the vault is said to be behind: what the lost replicas held alone is gone.
    pub async fn read_heads_of_all(&self, vault: VaultId) -> HeadsRead {
        let mut read = self.read_heads(vault).await;
        let view = self.members().view();
        let list = view.head_list(&vault);
        let mut others = view.holders();
        others.retain(|node| !list.contains(node));
        others.sort_by_key(|node| !view.up.contains(node));
        let mut heads = HeadSet::default();
        read.heads.iter().for_each(|head| {
            heads.offer(head.clone());
        });
        let until = Instant::now() + EVERYONE_TOTAL;
        // Under no list: these are asked for what they keep, not for their word as replicas.
        let answers = stream::iter(others).map(|node| self.ask(vault, node, None, Question::Read));
        let mut answers = std::pin::pin!(answers.buffer_unordered(AT_ONCE));
        let mut kept = Tally::new(list);
        while let Ok(Some((node, answer))) = tokio::time::timeout_at(until, answers.next()).await {
            kept.take(node, answer);
        }
        kept.heads_into(&mut heads);
        let known: BTreeSet<HeadId> = read.heads.iter().map(SignedHead::id).collect();
        let news: Vec<SignedHead> = heads.iter().filter(|head| !known.contains(&head.id())).cloned().collect();
        for head in &news {
            if let Err(error) = self.offer(head, Instant::now() + WRITE_BACK).await {
                tracing::debug!(%error, "a head cannot be brought back to a quorum");
                read.stale.get_or_insert(Stale::NotWrittenBack);
            }
        }
        read.behind |= !news.is_empty();
        read.heads = heads.iter().cloned().collect();
        read
    }

    /// Brings every maximal head that fewer than a quorum hold to one. Heads that turn up newer take their place.
    async fn write_back(&self, tally: &Tally, heads: &mut HeadSet, until: Instant) -> Result<(), Stale> {
        let scarce: Vec<SignedHead> = heads.iter().filter(|head| !tally.quorum_holds(&head.id())).cloned().collect();
        for head in scarce {
            match self.offer(&head, until.max(Instant::now() + WRITE_BACK)).await {
                Ok(_) => {}
                // What includes it was found with whoever wrote it; the next poll settles who holds that.
                Err(WriteHeadError::Dominated(newer)) => {
                    newer.into_iter().for_each(|head| {
                        heads.offer(head);
                    });
                    return Err(Stale::NotWrittenBack);
                }
                Err(error) => {
                    tracing::debug!(%error, "a head cannot be written back");
                    return Err(Stale::NotWrittenBack);
                }
            }
        }
        Ok(())
    }

    /// Writes a head to a quorum. Waits and retries up to a minute.
    pub async fn write_head(&self, head: &SignedHead) -> Result<Written, WriteHeadError> {
        self.offer(head, Instant::now() + WRITE_TOTAL).await
    }

    async fn offer(&self, head: &SignedHead, until: Instant) -> Result<Written, WriteHeadError> {
        let vault = head.vault();
        loop {
            let list = self.members().view().head_list(&vault);
            let mut tally = Tally::new(list);
            self.poll(vault, &mut tally, Question::Write(head), until).await;
            let mut heads = HeadSet::default();
            tally.heads_into(&mut heads);
            match tally.written(head) {
                WriteVerdict::Acknowledged { replicas, settled } => {
                    let concurrent = heads.iter().filter(|other| other.id() != head.id()).cloned().collect();
                    return Ok(Written { replicas, settled, concurrent });
                }
                WriteVerdict::Dominated => return Err(WriteHeadError::Dominated(heads.iter().cloned().collect())),
                WriteVerdict::Refused(error) if error.code() == Code::StaleSweep => {
                    return Err(WriteHeadError::StaleSweep(error.message));
                }
                WriteVerdict::Refused(error) => return Err(WriteHeadError::Refused(error)),
                WriteVerdict::Missing => {}
            }
            if Instant::now() < until {
                self.prepare_retry(&tally, until).await;
            }
            // Nobody would have the time to answer another question: this is how it stands.
            if Instant::now() >= until {
                let (needed, replicas) = (tally.list().quorum(), tally.list().len());
                return Err(WriteHeadError::TooFew { reachable: tally.accepted(), needed, replicas });
            }
        }
    }

    /// Asks all replicas, and whom their answers name, until the question is answered or nobody is left.
    async fn poll(&self, vault: VaultId, tally: &mut Tally, question: Question<'_>, until: Instant) {
        let members: Vec<NodeId> = tally.list().members().collect();
        let list = tally.list().id();
        let mut calls: FuturesUnordered<_> =
            members.into_iter().map(|node| self.ask(vault, node, Some(list), question)).collect();
        let (mut patience, down_until) = (until, until.min(Instant::now() + DOWN_WAIT));
        loop {
            let only_down =
                !tally.list().members().any(|node| tally.is_awaited(&node) && !self.members().is_down(&node));
            let wait = if only_down { patience.min(down_until) } else { patience };
            let Ok(Some((node, answer))) = tokio::time::timeout_at(wait, calls.next()).await else { break };
            tally.take(node, answer);
            if let Question::Write(_) = question {
                for node in tally.more_to_ask() {
                    // Asked once: an answer of some kind is in the tally before the next look.
                    tally.take(node, Answer::Away);
                    calls.push(self.ask(vault, node, Some(list), question));
                }
            }
            if question.answered(tally) {
                // The others make the next read cheaper, but are not worth waiting for.
                patience = patience.min(Instant::now() + GRACE);
            }
        }
    }

    /// Asks one node; with a list, it refuses where its own is another.
    async fn ask(
        &self,
        vault: VaultId,
        node: NodeId,
        list: Option<Digest>,
        question: Question<'_>,
    ) -> (NodeId, Answer) {
        let vault_bytes = Bytes::copy_from_slice(vault.as_bytes());
        let list = list.map_or_else(Bytes::new, |list| Bytes::copy_from_slice(list.as_bytes()));
        let call = match question {
            Question::Read => request::Kind::ReadHeads(wire::ReadHeads { vault: vault_bytes, list }),
            Question::Write(head) => {
                let head = head.bytes().clone();
                request::Kind::WriteHead(wire::WriteHead { vault: vault_bytes, list, head })
            }
        };
        let answer = match self.calls.call(node, call, Bytes::new(), DEADLINE).await {
            Ok((reply::Kind::Heads(reply), _)) => self.understand(vault, &reply),
            Ok(_) => Answer::Away,
            Err(CallError::Refused(error)) => Answer::Refused(error),
            Err(error) => {
                tracing::debug!(node = %node.short(), %error, "a head replica does not answer");
                Answer::Away
            }
        };
        (node, answer)
    }

    /// A replica's answer with what is genuine of it.
    fn understand(&self, vault: VaultId, reply: &wire::HeadsReply) -> Answer {
        let Ok(list) = wire::id("list", &reply.list) else { return Answer::Away };
        let cluster = self.members().view().table.cluster();
        let heads = reply.heads.iter().take(2 * CONCURRENT_LIMIT);
        let heads = heads
            .filter_map(|bytes| SignedHead::decode(bytes.clone()).ok())
            .filter(|head| head.vault() == vault && head.cluster == cluster)
            .collect();
        let ids = |list: &wire::ReplicaList| {
            ReplicaList::new(list.members.iter().take(LIST_LIMIT).filter_map(|id| NodeId::from_slice(id)))
        };
        let past = reply.past.iter().take(PAST_LIMIT).map(ids).collect();
        let heard = Heard { list, settled: reply.settled, past };
        Answer::Told { heard, heads, accepted: reply.accepted, behind: reply.behind }
    }

    /// Why these answers make no quorum.
    async fn why_stale(&self, tally: &Tally, until: Instant) -> Stale {
        let (answered, settled) = (tally.answered(), tally.settled());
        let (needed, replicas) = (tally.list().quorum(), tally.list().len());
        if answered >= needed {
            return Stale::Unsettled { settled, needed };
        }
        // Nobody is given up on what was heard long ago.
        if !self.members().fresh() {
            let until = until.max(Instant::now() + DOWN_WAIT);
            if let Ok(Err(error)) = tokio::time::timeout_at(until, self.refresh()).await {
                tracing::debug!(%error, "members cannot be refreshed");
            }
        }
        let down = tally.silent().filter(|node| self.members().is_down(node)).count();
        Stale::TooFew { answered, needed, replicas, down }
    }

    /// Pauses, after exchanging members with whoever holds another list.
    async fn prepare_retry(&self, tally: &Tally, until: Instant) {
        let exchanged = match tally.other_list() {
            Some(node) => self.exchange(node).await.map(|_| ()).map_err(|error| error.to_string()),
            None => self.refresh().await.map(|_| ()).map_err(|error| error.to_string()),
        };
        if let Err(error) = exchanged {
            tracing::debug!(error, "members cannot be exchanged");
        }
        let pause = Instant::now() + self.calls.jitter(PAUSE);
        tokio::time::sleep_until(pause.min(until)).await;
    }
}

/// What the replicas are asked.
#[derive(Debug, Clone, Copy)]
enum Question<'a> {
    Read,
    Write(&'a SignedHead),
}

impl Question<'_> {
    fn answered(self, tally: &Tally) -> bool {
        match self {
            Question::Read => tally.has_quorum(),
            Question::Write(head) => !matches!(tally.written(head), WriteVerdict::Missing),
        }
    }
}
