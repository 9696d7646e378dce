//! A replica that enters a list speaks only after it has heard what it must.

use super::*;
use crate::cert::{DeviceCert, Rights};
use crate::head::{Head, VersionVector};
use crate::id::ClusterId;
use crate::key::SecretKey;
use proptest::prelude::{any, prop_assert_eq, proptest};

fn node(number: u8) -> NodeId {
    NodeId([number; 32])
}

fn list(numbers: impl IntoIterator<Item = u8>) -> ReplicaList {
    ReplicaList::new(numbers.into_iter().map(node))
}

fn head(counter: u64) -> SignedHead {
    let vault = SecretKey::from_seed(&[1; 32]);
    let device = SecretKey::from_seed(&[2; 32]);
    let cert = DeviceCert::issue(&vault, device.public().into(), Rights::ALL, 0, 0);
    let mut vector = VersionVector::default();
    vector.set(1, counter);
    let (cluster, sweep_hash) = (ClusterId([3; 32]), Digest([0; 32]));
    Head { cluster, device: cert, vector, sweep: 0, sweep_hash, created_ms: 0, root: vec![] }.sign(&device)
}

fn answer(list: &ReplicaList, settled: bool, past: &[ReplicaList]) -> Heard {
    Heard { list: list.id(), settled, past: past.to_vec() }
}

fn entrant(list: &ReplicaList, before: &ReplicaList) -> Replica {
    let mut replica = Replica::default();
    replica.follow(list, Some(before));
    replica
}

#[test]
fn an_entrant_needs_a_quorum_of_the_new_and_of_the_old_list() {
    let (old, new) = (list(1..=5), list([1, 2, 3, 4, 6]));
    let replica = entrant(&new, &old);
    assert!(!replica.settled());
    let mut answers = BTreeMap::new();
    // Itself and one more: two of the three that either list needs.
    answers.insert(node(1), answer(&new, true, &[]));
    assert!(matches!(replica.settling(node(6), &answers, |_| false, 9), Settling::Missing { .. }));
    // Three of the new one, itself included, but only two of the old one.
    answers.insert(node(2), answer(&new, true, &[]));
    assert_eq!(replica.settling(node(6), &answers, |_| false, 9), Settling::Missing { list: old.clone(), heard: 2 });
    answers.insert(node(3), answer(&new, true, &[]));
    assert_eq!(replica.settling(node(6), &answers, |_| false, 9), Settling::Done);
}

#[test]
fn answers_under_another_list_do_not_count() {
    let (old, new) = (list(1..=5), list([1, 2, 3, 4, 6]));
    let replica = entrant(&new, &old);
    let answers = (1..=4).map(|number| (node(number), answer(&old, true, &[]))).collect();
    assert!(matches!(replica.settling(node(6), &answers, |_| false, 9), Settling::Missing { heard: 0 | 1, .. }));
}

#[test]
fn the_past_of_unsettled_replicas_must_be_heard_too() {
    // Ten nodes joined at once and none has settled; the five that know the heads must be among those heard.
    let (old, new) = (list(1..=5), list(1..=15));
    let replica = entrant(&new, &list(1..=14));
    let newcomers = |range: std::ops::RangeInclusive<u8>| -> BTreeMap<NodeId, Heard> {
        range.map(|number| (node(number), answer(&new, false, std::slice::from_ref(&old)))).collect()
    };
    assert_eq!(
        replica.settling(node(15), &newcomers(6..=14), |_| false, 9),
        Settling::Missing { list: old.clone(), heard: 0 }
    );
    assert_eq!(replica.settling(node(15), &newcomers(3..=14), |_| false, 9), Settling::Done);
}

#[test]
fn a_list_that_one_replica_names_holds_back_only_until_all_were_heard() {
    // Two of fifteen may lie, so a list that two name may be made up; what a third names too cannot be.
    let (now, before) = (list(1..=15), list(1..=14));
    let replica = entrant(&now, &before);
    let (made_up, evicted) = (list(200..=204), list(100..=104));
    let gone = |id: &NodeId| (100..=104).contains(&id.0[0]);
    for foreign in [made_up, evicted] {
        let mut answers: BTreeMap<NodeId, Heard> =
            (3..=14).map(|number| (node(number), answer(&now, true, &[]))).collect();
        for liar in 1..=2 {
            answers.insert(node(liar), answer(&now, false, std::slice::from_ref(&foreign)));
        }
        let settling = |answers: &BTreeMap<NodeId, Heard>, unheard| replica.settling(node(15), answers, gone, unheard);
        assert!(matches!(settling(&answers, 3), Settling::Missing { heard: 0, .. }));
        assert_eq!(settling(&answers, 2), Settling::Done);
        assert_eq!(settling(&answers, 0), Settling::Done);
        // Whoever is not in the list has no vote on what ruled before.
        answers.insert(node(99), answer(&now, false, std::slice::from_ref(&foreign)));
        assert_eq!(settling(&answers, 0), Settling::Done);
        answers.insert(node(3), answer(&now, false, std::slice::from_ref(&foreign)));
        assert!(!matches!(settling(&answers, 0), Settling::Done));
    }
}

proptest! {
    #[test]
    fn as_many_as_may_lie_can_neither_keep_a_replica_unsettled_nor_flag_the_vault(
        lies in proptest::collection::vec(
            (any::<bool>(), any::<bool>(), proptest::collection::vec(proptest::collection::btree_set(0u8..=255, 0..12), 0..5)),
            0..=2,
        ),
        shared in any::<bool>(),
        gone in proptest::collection::btree_set(20u8..=255, 0..200),
    ) {
        let (now, before) = (list(1..=15), list(1..=14));
        let replica = entrant(&now, &before);
        let mut answers: BTreeMap<NodeId, Heard> =
            (3..=14).map(|number| (node(number), answer(&now, true, &[]))).collect();
        let mut silent = 2;
        for (number, (answers_at_all, settled, past)) in (1..).zip(&lies) {
            if !answers_at_all {
                continue;
            }
            silent -= 1;
            // Alone, or in league with the other.
            let past = if shared { &lies[0].2 } else { past };
            let past: Vec<ReplicaList> = past.iter().map(|members| list(members.iter().copied())).collect();
            answers.insert(node(number), answer(&now, *settled, &past));
        }
        let is_gone = |id: &NodeId| gone.contains(&id.0[0]);
        prop_assert_eq!(replica.settling(node(15), &answers, is_gone, silent), Settling::Done);
    }
}

#[test]
fn heads_never_outgrow_a_message_and_none_that_is_held_is_dropped() {
    // Concurrent heads of about 70 KB each, as vaults with thousands of device numbers have.
    let large = |number: u64| {
        let mut vector = VersionVector::default();
        for entry in 0..4000 {
            vector.set(entry, u64::MAX / 2);
        }
        vector.set(10_000 + number, 1);
        let device = SecretKey::from_seed(&[2; 32]);
        Head { vector, ..(*head(1)).clone() }.sign(&device)
    };
    assert!(large(0).bytes().len() > 64 << 10);
    let mut replicas = [entrant(&list([1]), &list([])), entrant(&list([1]), &list([]))];
    let mut next = 0;
    for replica in &mut replicas {
        let refused = loop {
            next += 1;
            if let Err(refused) = replica.write(large(next)) {
                break refused;
            }
        };
        assert_eq!(refused, RefusedHead::Concurrent);
        assert!(replica.heads().len() > 10);
    }
    let [mut left, right] = replicas;
    assert_eq!(left.learn(right.heads().iter().cloned()), Ok(true));
    assert_eq!(left.heads().len(), 2 * right.heads().len());
    // More than any two replicas take from writers: the newcomers are refused, the others stay.
    let before = left.clone();
    let more: Vec<SignedHead> = (500..520).map(large).collect();
    assert_eq!(left.learn(more.clone()), Err(RefusedHead::Concurrent));
    assert!(before.heads().iter().all(|held| left.heads().contains(&held.id())));
    assert!(more.iter().any(|head| !left.heads().contains(&head.id())));
    let reply = crate::wire::HeadsReply {
        heads: left.heads().iter().map(|head| head.bytes().clone()).collect(),
        ..Default::default()
    };
    assert!(prost::Message::encoded_len(&reply) < crate::wire::MESSAGE_LIMIT);
    assert_eq!(Replica::decode(&left.encode()), Ok(left.clone()));
    // A head that merges them all finds room.
    let mut merged = VersionVector::default();
    left.heads().iter().for_each(|head| merged.join(&head.vector));
    merged.set(1, u64::MAX);
    let merged = Head { vector: merged, ..(*head(1)).clone() }.sign(&SecretKey::from_seed(&[2; 32]));
    assert_eq!(left.write(merged), Ok(true));
    assert_eq!(left.heads().len(), 1);
}

#[test]
fn a_quorum_gone_for_good_is_said_and_only_after_all_were_heard() {
    let (old, new) = (list(1..=3), list([3, 4, 5]));
    let replica = entrant(&new, &old);
    let answers = BTreeMap::from([(node(3), answer(&new, true, &[])), (node(4), answer(&new, true, &[]))]);
    let gone = |id: &NodeId| *id == node(1) || *id == node(2);
    assert!(matches!(replica.settling(node(5), &answers, gone, 9), Settling::Missing { heard: 1, .. }));
    assert!(matches!(replica.settling(node(5), &answers, |_| false, 0), Settling::Missing { heard: 1, .. }));
    assert_eq!(replica.settling(node(5), &answers, gone, 0), Settling::Behind(old));
}

#[test]
fn a_change_of_list_unsettles_and_settling_clears_the_past() {
    let mut replica = entrant(&list([1]), &list([]));
    assert!(replica.settle(&list([1]), false));
    assert!(replica.follow(&list([1, 2]), None));
    assert!(!replica.settled());
    assert_eq!(replica.past(), [list([1])]);
    assert!(!replica.follow(&list([1, 2]), None));
    // An unsettled replica that sees another change keeps all that it still has to hear.
    replica.follow(&list([1, 2, 3]), None);
    assert_eq!(replica.past(), [list([1]), list([1, 2])]);
    assert!(!replica.settle(&list([1, 2]), false));
    assert!(replica.settle(&list([1, 2, 3]), false));
    assert!(replica.past().is_empty());
}

#[test]
fn writes_are_refused_once_dominated() {
    let mut replica = entrant(&list([1]), &list([]));
    assert_eq!(replica.write(head(2)), Ok(true));
    assert_eq!(replica.write(head(2)), Ok(false));
    assert_eq!(replica.write(head(1)), Err(RefusedHead::Dominated));
    assert_eq!(replica.write(head(3)), Ok(true));
    assert_eq!(replica.heads().len(), 1);
}

#[test]
fn stored_form_round_trips() {
    let mut replica = entrant(&list(1..=4), &list(1..=3));
    replica.write(head(2)).unwrap();
    assert_eq!(Replica::decode(&replica.encode()), Ok(replica.clone()));
    let bytes = replica.encode();
    for cut in 0..bytes.len() {
        assert!(Replica::decode(&bytes[..cut]).is_err());
    }
}

/// The layout of the node's FORMAT.md, "Replicas", written here byte by byte.
#[test]
fn the_stored_form_is_as_documented() {
    let (old, new) = (list([1, 2]), list([2, 3]));
    let mut replica = entrant(&new, &old);
    replica.write(head(5)).unwrap();
    let head = head(5);
    let mut expected = vec![1, 0, 0b00, 2, 2];
    for number in [2, 3] {
        expected.extend_from_slice(&[number; 32]);
    }
    expected.push(2);
    for number in [1, 2] {
        expected.extend_from_slice(&[number; 32]);
    }
    expected.push(1);
    let mut length = Encoder::new();
    length.varint(head.bytes().len() as u64);
    expected.extend_from_slice(length.as_slice());
    expected.extend_from_slice(head.bytes());
    assert_eq!(replica.encode(), expected);
}
