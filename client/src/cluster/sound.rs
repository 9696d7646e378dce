//! What a node sends for a shard is worth nothing until it is checked here, against hashes that the stripe's id vouches for.

use std::ops::Range;

use bytes::Bytes;
use potluck_proto::blocks::BlockTree;
use potluck_proto::stripe::SignedHeader;
use potluck_proto::wire;

/// Bytes of an answer are not those of the shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unsound(String);

/// Checks that `payload` is bytes `range` (whole blocks) of shard `index`.
pub(super) fn check(
    header: &SignedHeader,
    index: usize,
    range: &Range<u64>,
    reply: &wire::GetShardReply,
    payload: &Bytes,
) -> Result<(), Unsound> {
    check_answer(index, range, reply, payload)?;
    let root = header.shards.get(index).ok_or_else(|| Unsound(format!("no shard {index} in the stripe")))?;
    let tree = BlockTree::from_bytes(&reply.chaining_values, u64::from(header.shard_len));
    let tree = tree.map_err(|error| Unsound(error.to_string()))?;
    tree.verify(root).map_err(|error| Unsound(error.to_string()))?;
    tree.check_range(reply.offset, payload).map_err(|error| Unsound(error.to_string()))
}

/// Checks that an answer is about bytes `range` of shard `index`.
pub(super) fn check_answer(
    index: usize,
    range: &Range<u64>,
    reply: &wire::GetShardReply,
    payload: &Bytes,
) -> Result<(), Unsound> {
    if reply.index as usize != index {
        return Err(Unsound(format!("shard {} instead of {index}", reply.index)));
    }
    if reply.offset != range.start || payload.len() as u64 != range.end - range.start {
        return Err(Unsound(format!("{} bytes from {} instead of {range:?}", payload.len(), reply.offset)));
    }
    Ok(())
}
