//! The table merges in any order to the same, and never takes what is not genuine.

use super::*;
use proptest::prelude::{any, prop_assert_eq, proptest};

fn cluster() -> SecretKey {
    SecretKey::from_seed(&[1; 32])
}

fn node(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

fn record(number: u8, generation: u64) -> SignedRecord {
    let key = node(number);
    let cert = MemberCert::issue(&cluster(), key.public().into(), "attic", 0, 0);
    let addresses = vec![([127, 0, 0, 1], u16::from(number)).into(), (std::net::Ipv6Addr::LOCALHOST, 9).into()];
    let software = "potluck 0.1.0".to_string();
    let (left, leaving, full) = (false, false, true);
    MemberRecord { cert, generation, life: 3, addresses, capacity: 7 << 30, left, leaving, full, software }.sign(&key)
}

fn empty() -> MemberTable {
    MemberTable::new(cluster().public().into())
}

#[test]
fn records_round_trip_and_the_newest_holds() {
    let old = record(2, 1);
    let decoded = SignedRecord::decode(old.as_bytes()).unwrap();
    assert_eq!(*decoded, *old);
    let mut table = empty();
    assert!(table.add_record(record(2, 5)));
    assert!(!table.add_record(old));
    assert_eq!(table.record(&node(2).public().into()).unwrap().generation, 5);
}

#[test]
fn a_returning_node_ends_its_loss_but_not_its_eviction() {
    let id = NodeId::from(node(2).public());
    let mut table = empty();
    table.add_record(record(2, 5));
    table.add_statement(Statement::issue(&cluster(), id, Verdict::Lost { generation: 5 }, 0));
    assert_eq!(table.standing(&id), Some(Standing::Lost));
    assert_eq!(table.ring().len(), 0);
    table.add_record(record(2, 6));
    assert_eq!(table.standing(&id), Some(Standing::Member));
    assert_eq!(table.ring().len(), 1);
    table.add_statement(Statement::issue(&cluster(), id, Verdict::Evicted, 0));
    table.add_record(record(2, 7));
    assert_eq!(table.standing(&id), Some(Standing::Evicted));
}

#[test]
fn records_and_statements_of_another_cluster_are_refused() {
    let other = node(9);
    let mut table = empty();
    let cert = MemberCert::issue(&other, node(2).public().into(), "", 0, 0);
    let foreign = MemberRecord { cert, ..(*record(2, 1)).clone() }.sign(&node(2));
    assert!(!table.add_record(foreign));
    let id = NodeId::from(node(2).public());
    assert!(!table.add_statement(Statement::issue(&other, id, Verdict::Evicted, 0)));
    // Signed by another node than the certificate names.
    let forged = (*record(2, 1)).clone().sign(&node(3));
    let table_on_wire = wire::Table { records: vec![forged.as_bytes().to_vec().into()], ..Default::default() };
    assert_eq!(table.merge(&table_on_wire), Merged { news: 0, refused: 1 });
}

proptest! {
    #[test]
    fn any_order_of_merging_gives_the_same_table(steps in proptest::collection::vec((2u8..6, 0u64..4, 0u8..4), 0..12)) {
        let entries: Vec<wire::Table> = steps
            .iter()
            .map(|&(number, generation, kind)| {
                let mut table = wire::Table::default();
                let id = NodeId::from(node(number).public());
                match kind {
                    0 => table.records.push(record(number, generation).as_bytes().to_vec().into()),
                    1 => {
                        let verdict = Verdict::Lost { generation };
                        table.statements.push(Statement::issue(&cluster(), id, verdict, 0).bytes.into());
                    }
                    2 => table.statements.push(Statement::issue(&cluster(), id, Verdict::Evicted, generation).bytes.into()),
                    _ => {
                        let vault = VaultCert::issue(&cluster(), VaultId([number; 32]), 0, generation);
                        table.vaults.push(vault.as_bytes().to_vec().into());
                    }
                }
                table
            })
            .collect();
        let (mut forward, mut backward) = (empty(), empty());
        entries.iter().for_each(|entry| { forward.merge(entry); });
        entries.iter().rev().for_each(|entry| { backward.merge(entry); });
        prop_assert_eq!(forward.digest(), backward.digest());
        prop_assert_eq!(forward.merge(&backward.to_wire()), Merged::default());
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in any::<Vec<u8>>()) {
        let _ = SignedRecord::decode(&bytes);
        let _ = Statement::decode(&bytes);
    }
}
