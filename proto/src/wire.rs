//! The wire schema: messages generated from `wire/potluck.proto`, and the limits that bound them.
//!
//! It knows shapes, not meanings: ids and signed things are bytes here, and are decoded where they are used.

use crate::encoding::DecodeError;

#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/potluck.v1.rs"));
}

pub use generated::{
    Admin, AdminReply, Alert, AlertReply, CheckShard, CheckShardReply, Code, Error, ExchangeHeads, FetchVault,
    FetchVaultReply, GetShard, GetShardReply, HaveShards, HaveShardsReply, HeadsReply, Hello, Holding, Members,
    MembersReply, PutShard, PutShardReply, ReadHeads, Redeem, Redeemed, ReplicaList, Reply, Request, Status,
    StatusReply, StoreStatus, Table, WriteHead, admin, reply, request,
};

/// The protocol versions that this program speaks, oldest and newest.
pub const PROTOCOL_VERSIONS: (u32, u32) = (1, 1);

/// Longest message, in bytes: a full member table of 5,000 nodes fits.
pub const MESSAGE_LIMIT: usize = 4 << 20;

/// Longest payload, in bytes: one shard of the widest stripe with k = 1.
pub const PAYLOAD_LIMIT: usize = crate::stripe::DATA_LIMIT;

/// Most stripes asked for in one `HaveShards`.
pub const HAVE_LIMIT: usize = 4096;

/// The id in a message's field of 32 bytes.
pub fn id<T: From<crate::encoding::RawId>>(field: &'static str, bytes: &[u8]) -> Result<T, DecodeError> {
    let mut decoder = crate::encoding::Decoder::new(bytes);
    let id = decoder.id(field)?;
    decoder.finish()?;
    Ok(id)
}

impl Error {
    /// An error of `code` with a sentence for people.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        Self::new(Code::BadRequest, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::{CheckShard, Holding};
    use prost::Message;

    #[test]
    fn fields_that_are_not_known_are_passed_over() {
        let holding = Holding { live: vec![1, 7], trash: vec![3], condemned: false, home: true, complete: true };
        let known = holding.encode_to_vec();
        assert_eq!(Holding::decode(&known[..]).as_ref(), Ok(&holding));
        // From a newer program: a number, a string, and eight and four bytes under numbers that are not in use here.
        for unknown in [
            &[0xa0, 0x06, 0x05][..],
            &[0xa2, 0x06, 0x02, b'h', b'i'],
            &[0xa1, 6, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0xa5, 6, 1, 2, 3, 4],
        ] {
            for newer in [[unknown, &known].concat(), [&known, unknown].concat()] {
                assert_eq!(Holding::decode(&newer[..]).as_ref(), Ok(&holding));
            }
        }
        // From an older one: what is missing has its neutral value.
        assert_eq!(Holding::decode(&[][..]), Ok(Holding::default()));
        assert!(CheckShard::decode(&[0x0a, 0x20, 1][..]).is_err(), "cut short");
    }
}
