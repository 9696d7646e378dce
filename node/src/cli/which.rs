//! Which node an operator means: its id, or as many of the first digits as no other node's id begins with.

use std::fmt;
use std::str::FromStr;

use potluck_proto::id::{ID_LEN, NodeId};
use potluck_proto::member::MemberTable;

/// Least digits that stand for an id: fewer are too easily another's.
const LEAST: usize = 4;

/// Digits shown of ids to choose from.
const SHOWN: usize = 16;

/// The first hexadecimal digits of a node's id, or all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Which(String);

/// Why digits name no node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WhichError {
    /// It is no beginning of an id.
    #[error("a node is named by {LEAST} to {} hexadecimal digits, the first of its id", 2 * ID_LEN)]
    Digits,
    /// No node has such an id.
    #[error("no node of this cluster has an id that begins with {0}: 'potluck cluster status' shows those there are")]
    Unknown(Which),
    /// More than one node has.
    #[error("{digits} may be {}: give more digits", nodes.join(" or "))]
    Ambiguous {
        /// What was given.
        digits: Which,
        /// The nodes that it may be: the beginnings of their ids, and their zones.
        nodes: Vec<String>,
    },
}

impl FromStr for Which {
    type Err = WhichError;

    fn from_str(text: &str) -> Result<Self, WhichError> {
        let fits = (LEAST..=2 * ID_LEN).contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        if fits { Ok(Self(text.to_ascii_lowercase())) } else { Err(WhichError::Digits) }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Which {
    /// The whole id, if all of its digits were given.
    pub(super) fn whole(&self) -> Option<NodeId> {
        self.0.parse().ok()
    }

    /// The one node of `table` whose id begins so.
    pub(super) fn find(&self, table: &MemberTable) -> Result<NodeId, WhichError> {
        let mut found = table.records().filter(|record| record.node().to_string().starts_with(&self.0));
        let Some(first) = found.next() else { return Err(WhichError::Unknown(self.clone())) };
        let others: Vec<_> = found.collect();
        if others.is_empty() {
            return Ok(first.node());
        }
        let show = |id: NodeId, zone: &str| {
            let mut digits = id.to_string();
            digits.truncate(SHOWN.max(self.0.len() + 1));
            format!("{digits} (zone {zone})")
        };
        let nodes = [first].into_iter().chain(others).map(|record| show(record.node(), record.cert.zone()));
        Err(WhichError::Ambiguous { digits: self.clone(), nodes: nodes.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_proto::cert::MemberCert;
    use potluck_proto::key::SecretKey;
    use potluck_proto::member::MemberRecord;

    #[test]
    fn digits_name_a_node_when_they_name_no_other() {
        let cluster = SecretKey::from_seed(&[1; 32]);
        let mut table = MemberTable::new(cluster.public().into());
        let mut ids = Vec::new();
        // So many that two begin with the same digit; keys are what they are.
        for seed in 2..40_u8 {
            let key = SecretKey::from_seed(&[seed; 32]);
            let cert = MemberCert::issue(&cluster, key.public().into(), "attic", 0, 0);
            let record = MemberRecord {
                cert,
                generation: 1,
                life: 1,
                addresses: Vec::new(),
                capacity: 1,
                left: false,
                leaving: false,
                full: false,
                software: String::new(),
            };
            table.add_record(record.sign(&key));
            ids.push(NodeId::from(key.public()));
        }
        for id in &ids {
            assert_eq!(id.short().parse::<Which>().unwrap().find(&table), Ok(*id));
            assert_eq!(id.to_string().to_uppercase().parse::<Which>().unwrap().whole(), Some(*id));
        }
        let first = |id: &NodeId| id.to_string()[..1].to_string();
        let shared = ids.iter().find(|id| ids.iter().filter(|other| first(other) == first(id)).count() > 1).unwrap();
        let error = Which(first(shared)).find(&table).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&shared.short()) && text.contains("zone attic") && text.contains(" or "), "{text}");
        let nobody = (0..=0xffff).map(|digits| format!("{digits:04x}"));
        let nobody =
            nobody.into_iter().find(|digits| ids.iter().all(|id| !id.to_string().starts_with(digits))).unwrap();
        let unknown: Which = nobody.parse().unwrap();
        assert_eq!(unknown.find(&table), Err(WhichError::Unknown(unknown.clone())));
        for wrong in ["", "abc", "xyzw", "12345678 ", &"a".repeat(65)] {
            assert_eq!(wrong.parse::<Which>(), Err(WhichError::Digits), "{wrong:?}");
        }
    }
}
