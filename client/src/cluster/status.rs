//! What all nodes say of themselves, gathered at once: for people who ask how the cluster is.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use potluck_proto::id::NodeId;
use potluck_proto::member::{MemberRecord, Standing};
use potluck_proto::transport::CallError;
use potluck_proto::wire::{self, reply, request};

use super::Cluster;

/// How long a node may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// How many nodes are asked at once.
const AT_ONCE: usize = 64;

/// One node, as the cluster's records and it itself say.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// Its newest record.
    pub record: MemberRecord,
    /// What it is to the cluster.
    pub standing: Standing,
    /// Its answer; of those that have gone, and are not asked, `None`.
    pub answer: Option<Result<wire::StatusReply, CallError>>,
}

impl Cluster {
    /// Asks every member how it is. Takes 5 s if some do not answer.
    pub async fn status(&self) -> Vec<NodeStatus> {
        let view = self.members().view();
        let known: Vec<(NodeId, MemberRecord, Standing)> = (view.table.records())
            .filter_map(|record| Some((record.node(), (**record).clone(), view.table.standing(&record.node())?)))
            .collect();
        stream::iter(known)
            .map(|(node, record, standing)| async move {
                let answer = match standing {
                    Standing::Member => Some(self.status_of(node).await),
                    Standing::Left | Standing::Lost | Standing::Evicted => None,
                };
                NodeStatus { node, record, standing, answer }
            })
            .buffered(AT_ONCE)
            .collect()
            .await
    }

    async fn status_of(&self, node: NodeId) -> Result<wire::StatusReply, CallError> {
        match self.calls.call(node, request::Kind::Status(wire::Status {}), Bytes::new(), DEADLINE).await? {
            (reply::Kind::Status(status), _) => Ok(status),
            _ => Err(CallError::BadReply("not an answer to a question for the status".into())),
        }
    }
}
