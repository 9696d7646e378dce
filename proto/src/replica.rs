//! Head replicas: one vault's heads on one node, and when that node's word counts.
//!
//! A replica list is the first `r` nodes of the vault's walk; it changes when the ring does. A replica is *settled* under
//! its list when it has heard enough of every earlier list that no acknowledged head can have passed it by:
//!
//! - It must exchange heads with a quorum of its own list, itself included.
//! - It must exchange heads with a quorum of each *past* list: of each list that it was in or that ruled before it came,
//!   and of each past list that an unsettled replica it heard still has to hear.
//! - Only answers of nodes that already hold the same list count. Such a node refuses writes under any other list, so a
//!   head can no longer be acknowledged under a past list of which a quorum was heard; and one acknowledged before is
//!   held by some node among that quorum.
//!
//! This file decides; it sends nothing and stores nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::encoding::{DecodeError, Decoder, Encoder};
use crate::head::{CONCURRENT_LIMIT, HeadSet, Offered, SignedHead};
use crate::id::{Digest, NodeId};
use crate::quorum::head_quorum;

/// Most past lists a replica keeps; when there are more, the oldest are folded into one answer of "all nodes".
pub const PAST_LIMIT: usize = 32;

/// Newest format version of a stored replica.
const REPLICA_VERSION: u16 = 1;

/// The nodes that replicate a vault's heads, as a set.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplicaList(BTreeSet<NodeId>);

impl ReplicaList {
    /// The list of these nodes.
    pub fn new(members: impl IntoIterator<Item = NodeId>) -> Self {
        Self(members.into_iter().collect())
    }

    /// The list's hash, by which callers and replicas compare theirs.
    #[must_use]
    pub fn id(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"potluck 1 replica list\0");
        for node in &self.0 {
            hasher.update(node.as_bytes());
        }
        Digest(*hasher.finalize().as_bytes())
    }

    /// The nodes, in order of their ids.
    pub fn members(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.0.iter().copied()
    }

    /// Whether `node` is in the list.
    #[must_use]
    pub fn contains(&self, node: &NodeId) -> bool {
        self.0.contains(node)
    }

    /// How many nodes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many of it make a quorum.
    #[must_use]
    pub fn quorum(&self) -> usize {
        head_quorum(self.len())
    }

    fn heard(&self, by: &BTreeSet<NodeId>) -> usize {
        self.0.intersection(by).count()
    }
}

/// What another node said when heads were exchanged.
#[derive(Debug, Clone)]
pub struct Heard {
    /// Its own list's hash.
    pub list: Digest,
    /// Whether it is settled under that list.
    pub settled: bool,
    /// The past lists that it still has to hear, if it is not.
    pub past: Vec<ReplicaList>,
}

/// Where the settling stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settling {
    /// Every list was heard: the replica may say that it is settled.
    Done,
    /// As far as it can ever come: a quorum of this past list is gone for good, and all who are left were heard. The
    /// vault may be behind.
    Behind(ReplicaList),
    /// Of this list too few were heard.
    Missing {
        /// The list.
        list: ReplicaList,
        /// How many of it were heard.
        heard: usize,
    },
}

/// One vault's heads on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replica {
    heads: HeadSet,
    list: ReplicaList,
    settled: bool,
    past: Vec<ReplicaList>,
    behind: bool,
}

/// Why a replica did not take a head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedHead {
    /// A head held here dominates it.
    #[error("a newer head is known")]
    Dominated,
    /// It names an older sweep than is known here, or a newer one without dominating all that is held.
    #[error("the head does not follow the newest sweep")]
    Sweep,
    /// Too many concurrent heads.
    #[error("more than {CONCURRENT_LIMIT} unmerged heads: merge first")]
    Concurrent,
}

impl Replica {
    /// The maximal heads held.
    #[must_use]
    pub fn heads(&self) -> &HeadSet {
        &self.heads
    }

    /// The list that rules, as far as this node knows.
    #[must_use]
    pub fn list(&self) -> &ReplicaList {
        &self.list
    }

    /// Whether this replica's word counts.
    #[must_use]
    pub fn settled(&self) -> bool {
        self.settled
    }

    /// The past lists still to hear.
    #[must_use]
    pub fn past(&self) -> &[ReplicaList] {
        &self.past
    }

    /// Whether a quorum of a past list is gone for good, so that acknowledged heads may be missing.
    #[must_use]
    pub fn behind(&self) -> bool {
        self.behind
    }

    /// Follows a change of the list; true if there was one. `before` is the list that ruled before this node knew the
    /// vault or joined the ring; it matters only for the first list.
    pub fn follow(&mut self, list: &ReplicaList, before: Option<&ReplicaList>) -> bool {
        if self.list == *list {
            return false;
        }
        let old = std::mem::replace(&mut self.list, list.clone());
        let was_settled = std::mem::replace(&mut self.settled, false);
        if was_settled {
            self.past.clear();
        }
        for past in [Some(&old), before].into_iter().flatten() {
            if !past.is_empty() && past != list && !self.past.contains(past) {
                self.past.push(past.clone());
            }
        }
        if self.past.len() > PAST_LIMIT {
            // Whoever follows so many changes without settling asks the union of the oldest: a quorum of it is larger
            // than of either, so nothing is skipped.
            let second = self.past.remove(1);
            self.past[0].0.extend(second.0);
        }
        true
    }

    /// This node came back after being away or with an empty store: its word does not count until it has settled anew.
    pub fn unsettle(&mut self) {
        self.settled = false;
    }

    /// Takes heads in that other replicas hold; true if anything changed. Their signatures are checked already.
    pub fn learn(&mut self, heads: impl IntoIterator<Item = SignedHead>) -> bool {
        let mut news = false;
        for head in heads {
            // A replica never forgets a sweep: a head of an older sweep that another still holds is left out.
            if head.sweep >= self.heads.sweep() {
                news |= self.heads.offer(head) == Offered::New;
            }
        }
        news
    }

    /// Takes a writer's head in; true if it is news. The caller has checked the lists.
    pub fn write(&mut self, head: SignedHead) -> Result<bool, RefusedHead> {
        if self.heads.contains(&head.id()) {
            return Ok(false);
        }
        if !self.heads.sweep_allows(&head) {
            return Err(RefusedHead::Sweep);
        }
        let mut heads = self.heads.clone();
        match heads.offer(head) {
            Offered::Dominated => Err(RefusedHead::Dominated),
            _ if heads.len() > CONCURRENT_LIMIT => Err(RefusedHead::Concurrent),
            _ => {
                self.heads = heads;
                Ok(true)
            }
        }
    }

    /// Where settling stands after these answers. `gone` tells who can never answer again (left, lost, evicted);
    /// `all_heard` that every other live member of the ring was heard.
    #[must_use]
    pub fn settling(
        &self,
        me: NodeId,
        answers: &BTreeMap<NodeId, Heard>,
        gone: impl Fn(&NodeId) -> bool,
        all_heard: bool,
    ) -> Settling {
        let list_id = self.list.id();
        let mut heard: BTreeSet<NodeId> =
            answers.iter().filter(|(_, answer)| answer.list == list_id).map(|(node, _)| *node).collect();
        heard.insert(me);
        let mut required: BTreeSet<&ReplicaList> = self.past.iter().collect();
        required.insert(&self.list);
        for (node, answer) in answers {
            if heard.contains(node) && !answer.settled {
                required.extend(answer.past.iter().filter(|past| !past.is_empty()));
            }
        }
        let mut behind = None;
        for list in required {
            let count = list.heard(&heard);
            if count >= list.quorum() {
                continue;
            }
            let left = list.members().filter(|node| !gone(node)).count();
            if left < list.quorum() && count == left && all_heard {
                behind = Some(list.clone());
            } else {
                return Settling::Missing { list: list.clone(), heard: count };
            }
        }
        behind.map_or(Settling::Done, Settling::Behind)
    }

    /// Records that settling under `list` has ended; nothing happens if the list has changed meanwhile.
    pub fn settle(&mut self, list: &ReplicaList, behind: bool) -> bool {
        if self.list != *list {
            return false;
        }
        self.settled = true;
        self.behind |= behind;
        self.past.clear();
        true
    }

    /// The replica as it is stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder.u16(REPLICA_VERSION).u8(u8::from(self.settled) | u8::from(self.behind) << 1);
        encoder.varint(1 + self.past.len() as u64);
        for list in std::iter::once(&self.list).chain(&self.past) {
            encoder.varint(list.len() as u64);
            for node in list.members() {
                encoder.raw(node.as_bytes());
            }
        }
        encoder.varint(self.heads.len() as u64);
        for head in self.heads.iter() {
            encoder.bytes(head.bytes());
        }
        encoder.into_bytes()
    }

    /// Reads what [`Replica::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const LIST_LIMIT: usize = 4096;
        let mut decoder = Decoder::new(bytes);
        decoder.version("replica", REPLICA_VERSION)?;
        let flags = decoder.u8("flags")?;
        let mut lists = Vec::new();
        for _ in 0..decoder.count("lists", 1 + PAST_LIMIT)? {
            let mut list = ReplicaList::default();
            for _ in 0..decoder.count("list", LIST_LIMIT)? {
                list.0.insert(decoder.id("list member")?);
            }
            lists.push(list);
        }
        if lists.is_empty() {
            return Err(DecodeError::Invalid { field: "lists", why: "none" });
        }
        let list = lists.remove(0);
        let mut heads = HeadSet::default();
        for _ in 0..decoder.count("heads", 1 << 16)? {
            let bytes = decoder.bytes("head", crate::head::HEAD_LIMIT)?;
            heads.offer(SignedHead::decode(bytes::Bytes::copy_from_slice(bytes))?);
        }
        decoder.finish()?;
        Ok(Self { heads, list, settled: flags & 1 != 0, past: lists, behind: flags & 2 != 0 })
    }
}

#[cfg(test)]
mod tests;
