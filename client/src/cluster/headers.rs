//! Finding a stripe's header, and who holds what of a stripe, by asking nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use potluck_proto::blocks::{BLOCK_LEN, widen};
use potluck_proto::id::{NodeId, StripeId};
use potluck_proto::stripe::SignedHeader;
use potluck_proto::transport::CallError;
use potluck_proto::wire::{self, reply, request};
use tokio::time::Instant;

use super::{Cluster, ReadError, sound};

/// How long a node may take to send a header with one block.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a node may take to say what it holds.
const HAVE_DEADLINE: Duration = Duration::from_secs(5);

/// Most nodes that are asked for a header at once.
const PROBES: usize = 16;

/// Most nodes that are asked at once what they hold.
pub(super) const SEARCHES: usize = 32;

/// Time between two tries when nobody had the header.
const PAUSE: Duration = Duration::from_millis(400);

impl Cluster {
    /// The header of a stripe.
    pub async fn header(&self, stripe: StripeId) -> Result<SignedHeader, ReadError> {
        if let Some(header) = self.cache.known(&stripe).header {
            return Ok(header);
        }
        // One search per stripe, however many reads wait for it.
        let _turn = self.cache.turn(&stripe).lock().await;
        if let Some(header) = self.cache.known(&stripe).header {
            return Ok(header);
        }
        if let Some(header) = self.probe_all(stripe, false).await {
            return Ok(header);
        }
        // Once more, with fresh members: nodes come and go.
        tokio::time::sleep(self.calls.jitter(PAUSE)).await;
        if let Err(error) = self.refresh().await {
            tracing::debug!(%error, "members cannot be refreshed");
        }
        self.probe_all(stripe, true)
            .await
            .ok_or_else(|| ReadError::NotFound { stripe, asked: self.members().view().holders().len() })
    }

    /// Asks nodes for any shard of the stripe, in the likeliest order; each that fails or is slow brings in one more.
    ///
    /// Those that seem to be away are asked only with `everyone`: reaching for them costs time.
    async fn probe_all(&self, stripe: StripeId, everyone: bool) -> Option<SignedHeader> {
        let view = self.members().view();
        let walk: Vec<NodeId> = match self.cache.scheme() {
            Some(scheme) => view.ring.walk_stripe(&stripe, scheme).iter().collect(),
            None => view.ring.walk(stripe.as_bytes(), usize::MAX, usize::MAX).iter().collect(),
        };
        let leaving = view.holders().into_iter().filter(|node| !view.ring.contains(node));
        let mut nodes: Vec<NodeId> = walk.iter().copied().chain(leaving).collect();
        nodes.retain(|node| everyone || view.up.contains(node));
        nodes.sort_by_key(|node| !view.up.contains(node));
        let mut nodes = nodes.into_iter();
        let (mut probes, mut hedges) = (FuturesUnordered::new(), FuturesUnordered::new());
        let mut more = 1;
        loop {
            for node in nodes.by_ref().take(more) {
                let hedge = Instant::now() + self.calls.hedge_after(node, BLOCK_LEN);
                hedges.push(tokio::time::sleep_until(hedge));
                probes.push(async move { (node, self.probe(node, stripe).await) });
            }
            let room = PROBES.saturating_sub(probes.len());
            more = tokio::select! {
                answer = probes.next() => match answer {
                    Some((_, Ok(header))) => return Some(header),
                    Some((node, Err(error))) => {
                        tracing::debug!(stripe = %stripe.short(), node = %node.short(), %error, "no header");
                        // Doubling: in a large cluster the holders may be anywhere.
                        room.min(2)
                    }
                    None => return None,
                },
                Some(()) = hedges.next() => room.min(1),
            };
        }
    }

    /// Asks one node for the first block of any shard, for the sake of the header; the block is kept too.
    async fn probe(&self, node: NodeId, stripe: StripeId) -> Result<SignedHeader, CallError> {
        let call =
            wire::GetShard { stripe: Bytes::copy_from_slice(stripe.as_bytes()), index: None, offset: 0, length: 1 };
        let deadline = self.calls.patience(&node, PROBE_DEADLINE);
        let answer = self.calls.call(node, request::Kind::GetShard(call), Bytes::new(), deadline).await?;
        let (reply::Kind::GetShard(reply), payload) = answer else {
            return Err(CallError::BadReply("not an answer to a get".into()));
        };
        let header = SignedHeader::decode_known(reply.header.clone(), &stripe)
            .map_err(|error| CallError::BadReply(error.to_string()))?;
        let index = reply.index as usize;
        let range = widen(0, 1, u64::from(header.shard_len));
        let checked = sound::check(&header, index, &range, &reply, &payload);
        self.cache.note(&stripe, |known| {
            known.header = Some(header.clone());
            if checked.is_ok() {
                known.holders.entry(index).or_default().insert(node);
            }
        });
        self.cache.note_scheme(header.scheme);
        match checked {
            Ok(()) => self.cache.keep_block(stripe, index, 0, &payload),
            Err(error) => {
                tracing::warn!(node = %node.short(), %error, "a node sent a damaged block");
                self.report_damage(node, stripe, index);
            }
        }
        Ok(header)
    }

    /// What a node holds of a stripe.
    pub(super) async fn have(&self, node: NodeId, stripe: StripeId) -> Option<wire::Holding> {
        let call = wire::HaveShards { stripes: vec![Bytes::copy_from_slice(stripe.as_bytes())] };
        let deadline = self.calls.patience(&node, HAVE_DEADLINE);
        match self.calls.call(node, request::Kind::HaveShards(call), Bytes::new(), deadline).await {
            Ok((reply::Kind::HaveShards(reply), _)) => reply.holdings.into_iter().next(),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(node = %node.short(), %error, "cannot say what it holds");
                None
            }
        }
    }

    /// What each member that answers holds of a stripe; who holds nothing is left out.
    pub async fn holdings(&self, stripe: StripeId) -> BTreeMap<NodeId, wire::Holding> {
        let nodes = self.members().view().holders();
        stream::iter(nodes)
            .map(|node| async move { Some((node, self.have(node, stripe).await?)) })
            .buffer_unordered(SEARCHES)
            .filter_map(|holding| async move { holding })
            .filter(|(_, holding)| std::future::ready(!holding.live.is_empty() || !holding.trash.is_empty()))
            .collect()
            .await
    }
}
