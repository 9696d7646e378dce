//! Head replicas: one vault's heads on one node, and when that node's word counts.
//!
//! A replica list is the first `r` nodes of the vault's walk; it changes when the ring does. A replica is *settled* under
//! its list when it has heard enough of every earlier list that no acknowledged head can have passed it by:
//!
//! - It must exchange heads with a quorum of its own list, itself included.
//! - It must exchange heads with a quorum of each *past* list: of each list that it was in or that ruled before it came,
//!   and of each past list that more unsettled replicas still have to hear than may lie.
//! - A past list that fewer name may be made up, or the memory of one honest node: it holds the replica back until a
//!   quorum of it was heard, or all who are up but as many as may lie. It never makes a vault "behind".
//! - Only answers of nodes that already hold the same list count. Such a node refuses writes under any other list, so a
//!   head can no longer be acknowledged under a past list of which a quorum was heard; and one acknowledged before is
//!   held by some node among that quorum.
//!
//! This file decides; it sends nothing and stores nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::encoding::{DecodeError, Decoder, Encoder};
use crate::head::{CONCURRENT_BYTES, CONCURRENT_LIMIT, HeadSet, Offered, SetLimit, SignedHead};
use crate::id::{Digest, NodeId};
use crate::quorum::{head_faults, head_quorum};

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
    /// Too many concurrent heads, or too many bytes of them. All that were held still are.
    #[error("more than {CONCURRENT_LIMIT} unmerged heads, or {} KiB of them: merge first", CONCURRENT_BYTES >> 10)]
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
    ///
    /// On an error, those that found room were taken in and none that was held was dropped, but others are missing: this
    /// replica has not heard what it was told, so it must neither count the answer nor settle on it.
    pub fn learn(&mut self, heads: impl IntoIterator<Item = SignedHead>) -> Result<bool, RefusedHead> {
        let (mut news, mut refused) = (false, false);
        for head in heads {
            // A replica never forgets a sweep: a head of an older sweep that another still holds is left out.
            if head.sweep >= self.heads.sweep() {
                let offered = self.heads.offer_within(head, SetLimit::LEARNED);
                news |= offered == Offered::New;
                refused |= offered == Offered::NoRoom;
            }
        }
        if refused { Err(RefusedHead::Concurrent) } else { Ok(news) }
    }

    /// Takes a writer's head in; true if it is news. The caller has checked the lists.
    pub fn write(&mut self, head: SignedHead) -> Result<bool, RefusedHead> {
        if self.heads.contains(&head.id()) {
            return Ok(false);
        }
        if !self.heads.sweep_allows(&head) {
            return Err(RefusedHead::Sweep);
        }
        match self.heads.offer_within(head, SetLimit::WRITTEN) {
            Offered::New => Ok(true),
            Offered::Known => Ok(false),
            Offered::Dominated => Err(RefusedHead::Dominated),
            Offered::NoRoom => Err(RefusedHead::Concurrent),
        }
    }

    /// Where settling stands after these answers. `gone` tells who can never answer again (left, lost, evicted; not who
    /// is merely unknown); `unheard` is how many other live members of the ring gave no answer.
    #[must_use]
    pub fn settling(
        &self,
        me: NodeId,
        answers: &BTreeMap<NodeId, Heard>,
        gone: impl Fn(&NodeId) -> bool,
        unheard: usize,
    ) -> Settling {
        let list_id = self.list.id();
        let mut heard: BTreeSet<NodeId> =
            answers.iter().filter(|(_, answer)| answer.list == list_id).map(|(node, _)| *node).collect();
        heard.insert(me);
        let liars = head_faults(self.list.len());
        // Whether a list certainly ruled: known here, or named by more replicas than may lie.
        let mut required: BTreeMap<&ReplicaList, bool> = BTreeMap::new();
        for (list, named_by) in Self::named(&heard, answers) {
            required.insert(list, named_by.intersection(&self.list.0).count() > liars);
        }
        required.extend(self.past.iter().chain([&self.list]).map(|list| (list, true)));
        let mut behind = None;
        for (list, certain) in required {
            let count = list.heard(&heard);
            if count >= list.quorum() || (!certain && unheard <= liars) {
                continue;
            }
            let left = list.members().filter(|node| !gone(node)).count();
            if certain && left < list.quorum() && count == left && unheard == 0 {
                behind = Some(list.clone());
            } else {
                return Settling::Missing { list: list.clone(), heard: count };
            }
        }
        behind.map_or(Settling::Done, Settling::Behind)
    }

    /// The past lists that unsettled replicas among `heard` named, and who named them.
    fn named<'a>(
        heard: &BTreeSet<NodeId>,
        answers: &'a BTreeMap<NodeId, Heard>,
    ) -> BTreeMap<&'a ReplicaList, BTreeSet<NodeId>> {
        let mut named: BTreeMap<&ReplicaList, BTreeSet<NodeId>> = BTreeMap::new();
        for (node, answer) in answers.iter().filter(|(node, answer)| heard.contains(*node) && !answer.settled) {
            for list in answer.past.iter().filter(|past| !past.is_empty()) {
                named.entry(list).or_default().insert(*node);
            }
        }
        named
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
