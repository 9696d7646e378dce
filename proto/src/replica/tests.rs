//! A replica that enters a list speaks only after it has heard what it must.

use super::*;
use crate::cert::{DeviceCert, Rights};
use crate::head::{Head, VersionVector};
use crate::id::ClusterId;
use crate::key::SecretKey;

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
    assert!(matches!(replica.settling(node(6), &answers, |_| false, false), Settling::Missing { .. }));
    // Three of the new one, itself included, but only two of the old one.
    answers.insert(node(2), answer(&new, true, &[]));
    assert_eq!(
        replica.settling(node(6), &answers, |_| false, false),
        Settling::Missing { list: old.clone(), heard: 2 }
    );
    answers.insert(node(3), answer(&new, true, &[]));
    assert_eq!(replica.settling(node(6), &answers, |_| false, false), Settling::Done);
}

#[test]
fn answers_under_another_list_do_not_count() {
    let (old, new) = (list(1..=5), list([1, 2, 3, 4, 6]));
    let replica = entrant(&new, &old);
    let answers = (1..=4).map(|number| (node(number), answer(&old, true, &[]))).collect();
    assert!(matches!(replica.settling(node(6), &answers, |_| false, false), Settling::Missing { heard: 0 | 1, .. }));
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
        replica.settling(node(15), &newcomers(6..=14), |_| false, false),
        Settling::Missing { list: old.clone(), heard: 0 }
    );
    assert_eq!(replica.settling(node(15), &newcomers(3..=14), |_| false, false), Settling::Done);
}

#[test]
fn a_quorum_gone_for_good_is_said_and_only_after_all_were_heard() {
    let (old, new) = (list(1..=3), list([3, 4, 5]));
    let replica = entrant(&new, &old);
    let answers = BTreeMap::from([(node(3), answer(&new, true, &[])), (node(4), answer(&new, true, &[]))]);
    let gone = |id: &NodeId| *id == node(1) || *id == node(2);
    assert!(matches!(replica.settling(node(5), &answers, gone, false), Settling::Missing { heard: 1, .. }));
    assert!(matches!(replica.settling(node(5), &answers, |_| false, true), Settling::Missing { heard: 1, .. }));
    assert_eq!(replica.settling(node(5), &answers, gone, true), Settling::Behind(old));
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
