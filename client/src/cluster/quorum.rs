//! Which answers of head replicas make a quorum, and which heads win. Decides; sends nothing.
//!
//! Only a settled replica's answer under the caller's own list counts by itself. Heads count whoever sends them: they are
//! signed, so a liar can hold one back but not make one.

use std::collections::{BTreeMap, BTreeSet};

use potluck_proto::head::{Causality, HeadSet, SignedHead};
use potluck_proto::id::{HeadId, NodeId};
use potluck_proto::quorum::head_faults;
use potluck_proto::replica::{Heard, ReplicaList};
use potluck_proto::wire::{self, Code};

/// What one replica answered.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// It told what it holds.
    Told {
        /// Its list, and whether its word counts.
        heard: Heard,
        /// The genuine heads that it holds.
        heads: Vec<SignedHead>,
        /// Of a write: the head is on its disk.
        accepted: bool,
        /// A quorum of an earlier list of its is gone.
        behind: bool,
    },
    /// It refused.
    Refused(wire::Error),
    /// It was not reached.
    Away,
}

/// All answers to one question.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    list: ReplicaList,
    answers: BTreeMap<NodeId, Answer>,
}

/// What a write has come to.
#[derive(Debug, Clone)]
pub(super) enum WriteVerdict {
    /// Quorums of all lists in question have it.
    Acknowledged {
        /// Replicas of the list that have it.
        replicas: usize,
        /// A quorum of them is settled.
        settled: bool,
    },
    /// A newer head includes it.
    Dominated,
    /// So many refuse that no quorum can come about.
    Refused(wire::Error),
    /// Too few have it.
    Missing,
}

impl Tally {
    /// No answers yet, to a question to this list.
    pub(super) fn new(list: ReplicaList) -> Self {
        Self { list, answers: BTreeMap::new() }
    }

    /// The list that was asked.
    pub(super) fn list(&self) -> &ReplicaList {
        &self.list
    }

    /// Takes an answer in.
    pub(super) fn take(&mut self, node: NodeId, answer: Answer) {
        self.answers.insert(node, answer);
    }

    fn told(&self) -> impl Iterator<Item = (NodeId, &Heard, &[SignedHead], bool)> {
        self.answers.iter().filter_map(|(node, answer)| match answer {
            Answer::Told { heard, heads, accepted, .. } => Some((*node, heard, &heads[..], *accepted)),
            Answer::Refused(_) | Answer::Away => None,
        })
    }

    /// Replicas of the list that answered at all.
    pub(super) fn answered(&self) -> usize {
        self.told().filter(|(node, ..)| self.list.contains(node)).count()
    }

    /// Replicas of the list that have not told anything.
    pub(super) fn silent(&self) -> impl Iterator<Item = NodeId> {
        let told = |node: &NodeId| matches!(self.answers.get(node), Some(Answer::Told { .. }));
        self.list.members().filter(move |node| !told(node))
    }

    /// Whether a node of the list has not been heard of yet, not even that it is away.
    pub(super) fn is_awaited(&self, node: &NodeId) -> bool {
        !self.answers.contains_key(node)
    }

    /// Replicas of the list whose word counts.
    pub(super) fn settled(&self) -> usize {
        let id = self.list.id();
        self.told().filter(|(node, heard, ..)| self.list.contains(node) && heard.settled && heard.list == id).count()
    }

    /// Whether a read has its quorum.
    pub(super) fn has_quorum(&self) -> bool {
        self.settled() >= self.list.quorum()
    }

    /// Whether some replica says that the vault may be behind.
    pub(super) fn behind(&self) -> bool {
        self.answers.values().any(|answer| matches!(answer, Answer::Told { behind: true, .. }))
    }

    /// A replica that holds another list, to exchange members with.
    pub(super) fn other_list(&self) -> Option<NodeId> {
        let id = self.list.id();
        let differs = |answer: &Answer| match answer {
            Answer::Told { heard, .. } => heard.list != id,
            Answer::Refused(error) => error.code() == Code::StaleList,
            Answer::Away => false,
        };
        self.answers.iter().find(|(_, answer)| differs(answer)).map(|(node, _)| *node)
    }

    /// Takes all heads that came into `heads`.
    pub(super) fn heads_into(&self, heads: &mut HeadSet) {
        for head in self.told().flat_map(|(_, _, heads, _)| heads) {
            heads.offer(head.clone());
        }
    }

    /// Whether a quorum of the list is known to hold `head` as maximal.
    pub(super) fn quorum_holds(&self, head: &HeadId) -> bool {
        let holds = |heads: &[SignedHead]| heads.iter().any(|held| held.id() == *head);
        let holders = self.told().filter(|(node, _, heads, _)| self.list.contains(node) && holds(heads));
        holders.count() >= self.list.quorum()
    }

    /// Replicas of the list that have taken the head.
    pub(super) fn accepted(&self) -> usize {
        self.takers().iter().filter(|node| self.list.contains(node)).count()
    }

    fn takers(&self) -> BTreeSet<NodeId> {
        let id = self.list.id();
        self.told().filter(|(_, heard, _, accepted)| *accepted && heard.list == id).map(|(node, ..)| node).collect()
    }

    /// The earlier lists whose quorum must have the head as well: those that unsettled takers still have to hear.
    fn past_lists(&self) -> BTreeSet<&ReplicaList> {
        let unsettled = self.told().filter(|(_, heard, _, accepted)| *accepted && !heard.settled);
        unsettled.flat_map(|(_, heard, ..)| &heard.past).filter(|list| !list.is_empty()).collect()
    }

    /// Nodes of earlier lists that were not asked yet.
    pub(super) fn more_to_ask(&self) -> BTreeSet<NodeId> {
        let past = self.past_lists().into_iter().flat_map(ReplicaList::members);
        past.filter(|node| !self.list.contains(node) && !self.answers.contains_key(node)).collect()
    }

    /// What a write of `head` has come to.
    pub(super) fn written(&self, head: &SignedHead) -> WriteVerdict {
        let takers = self.takers();
        let has_quorum =
            |list: &ReplicaList| list.members().filter(|node| takers.contains(node)).count() >= list.quorum();
        let id = self.list.id();
        let settled = |(node, heard, _, accepted): &(NodeId, &Heard, &[SignedHead], bool)| {
            *accepted && heard.settled && heard.list == id && self.list.contains(node)
        };
        let settled = self.told().filter(settled).count() >= self.list.quorum();
        if has_quorum(&self.list) && (settled || self.past_lists().into_iter().all(has_quorum)) {
            return WriteVerdict::Acknowledged { replicas: self.accepted(), settled };
        }
        let newer = |other: &SignedHead| head.vector.compare(&other.vector) == Causality::Before;
        if self.told().any(|(_, _, heads, _)| heads.iter().any(newer)) {
            return WriteVerdict::Dominated;
        }
        // More than may lie, and so many that the others are no quorum.
        let final_refusal = |answer: &&Answer| matches!(answer, Answer::Refused(error) if is_final(error.code()));
        let refusals = self.answers.iter().filter(|(node, _)| self.list.contains(node)).map(|(_, answer)| answer);
        let refusals: Vec<&Answer> = refusals.filter(final_refusal).collect();
        let replicas = self.list.len();
        if refusals.len() > head_faults(replicas)
            && replicas - refusals.len() < self.list.quorum()
            && let Some(Answer::Refused(error)) = refusals.first()
        {
            return WriteVerdict::Refused(error.clone());
        }
        WriteVerdict::Missing
    }
}

/// Whether asking again later is of no use.
fn is_final(code: Code) -> bool {
    match code {
        Code::StaleList | Code::Overloaded | Code::Stopping | Code::Internal | Code::NotFound => false,
        Code::Unspecified
        | Code::BadRequest
        | Code::UnsupportedVersion
        | Code::NotAdmitted
        | Code::Revoked
        | Code::ForeignCluster
        | Code::Corrupt
        | Code::Full
        | Code::Quota
        | Code::InviteUnknown
        | Code::InviteExpired
        | Code::InviteUsed
        | Code::Condemned
        | Code::Forbidden
        | Code::StaleSweep => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_proto::cert::{DeviceCert, Rights};
    use potluck_proto::head::{Head, VersionVector};
    use potluck_proto::id::{ClusterId, Digest};
    use potluck_proto::key::SecretKey;

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    fn head(counter: u64) -> SignedHead {
        let (vault, device) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
        let cert = DeviceCert::issue(&vault, device.public().into(), Rights::ALL, 0, 0);
        let mut vector = VersionVector::default();
        vector.set(1, counter);
        let (cluster, sweep_hash) = (ClusterId([3; 32]), Digest([0; 32]));
        Head { cluster, device: cert, vector, sweep: 0, sweep_hash, created_ms: 0, root: Vec::new() }.sign(&device)
    }

    fn five() -> ReplicaList {
        ReplicaList::new((0..5).map(node))
    }

    fn told(list: &ReplicaList, settled: bool, accepted: bool, heads: &[SignedHead]) -> Answer {
        let heard = Heard { list: list.id(), settled, past: Vec::new() };
        Answer::Told { heard, heads: heads.to_vec(), accepted, behind: false }
    }

    #[test]
    fn only_settled_answers_under_the_same_list_make_a_read() {
        let mut tally = Tally::new(five());
        tally.take(node(0), told(&five(), true, false, &[head(1)]));
        tally.take(node(1), told(&five(), true, false, &[]));
        tally.take(node(2), told(&five(), false, false, &[]));
        tally.take(node(9), told(&five(), true, false, &[]));
        assert!(!tally.has_quorum(), "one is unsettled, one is no replica");
        assert_eq!(tally.other_list(), None);
        tally.take(node(3), told(&ReplicaList::new([node(3)]), true, false, &[]));
        assert!(!tally.has_quorum());
        assert_eq!(tally.other_list(), Some(node(3)));
        tally.take(node(4), told(&five(), true, false, &[head(1)]));
        assert!(tally.has_quorum());
        assert!(!tally.quorum_holds(&head(1).id()), "two of five");
        tally.take(node(2), told(&five(), false, false, &[head(1)]));
        assert!(tally.quorum_holds(&head(1).id()));
    }

    #[test]
    fn a_write_needs_a_quorum_and_those_of_the_lists_that_unsettled_takers_name() {
        let mut tally = Tally::new(five());
        (0..2).for_each(|number| tally.take(node(number), told(&five(), true, true, &[head(1)])));
        assert!(matches!(tally.written(&head(1)), WriteVerdict::Missing));
        let past = ReplicaList::new((4..7).map(node));
        let heard = Heard { list: five().id(), settled: false, past: vec![past] };
        tally.take(node(4), Answer::Told { heard, heads: vec![head(1)], accepted: true, behind: false });
        assert!(matches!(tally.written(&head(1)), WriteVerdict::Missing), "one of the three of the earlier list");
        assert_eq!(tally.more_to_ask(), BTreeSet::from([node(5), node(6)]));
        tally.take(node(5), told(&five(), true, true, &[head(1)]));
        assert!(matches!(tally.written(&head(1)), WriteVerdict::Acknowledged { replicas: 3, settled: false }));
        tally.take(node(2), told(&five(), true, true, &[head(1)]));
        assert!(matches!(tally.written(&head(1)), WriteVerdict::Acknowledged { replicas: 4, settled: true }));
    }

    #[test]
    fn a_newer_head_dominates_but_a_bare_no_does_not() {
        let mut tally = Tally::new(five());
        tally.take(node(0), told(&five(), true, false, &[]));
        assert!(matches!(tally.written(&head(1)), WriteVerdict::Missing));
        tally.take(node(1), told(&five(), true, false, &[head(2)]));
        assert!(matches!(tally.written(&head(1)), WriteVerdict::Dominated));
    }

    #[test]
    fn refusals_end_a_write_only_when_no_quorum_is_left() {
        let mut tally = Tally::new(five());
        let no = |code| Answer::Refused(wire::Error::new(code, "no"));
        (0..2).for_each(|number| tally.take(node(number), no(Code::Revoked)));
        tally.take(node(2), no(Code::Overloaded));
        assert!(matches!(tally.written(&head(1)), WriteVerdict::Missing));
        tally.take(node(3), no(Code::Revoked));
        assert!(matches!(tally.written(&head(1)), WriteVerdict::Refused(error) if error.code() == Code::Revoked));
    }
}
