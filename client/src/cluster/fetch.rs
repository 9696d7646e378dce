//! Reading data back from the ring: the likely holders first, then whoever has enough of the stripe.
//!
//! Every byte is checked against the stripe's header, and the header against the stripe's id, before it is used, unless the
//! caller has a better proof ([`Proof::Later`]). What is asked next is decided in `gather`; this file carries the calls.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesUnordered, Stream, StreamExt};
use potluck_proto::blocks::{BLOCK_LEN, widen};
use potluck_proto::codec::Codec;
use potluck_proto::id::{Digest, NodeId, StripeId};
use potluck_proto::stripe::SignedHeader;
use potluck_proto::transport::CallError;
use potluck_proto::wire::{self, Code, reply, request};
use tokio::time::Instant;

use super::gather::{Action, Circle, Failure, Gather, Outcome};
use super::headers::SEARCHES;
use super::members::View;
use super::{Cluster, sound};

/// How long a node may take for a range of a shard, its bytes apart.
const DEADLINE: Duration = Duration::from_secs(15);

/// The slowest downlink that is reckoned with, in bytes per second.
const SLOW_RATE: u64 = 128 << 10;

/// How long a holder may take to look at a shard that came damaged.
const REPORT_DEADLINE: Duration = Duration::from_secs(30);

/// After this time nothing waits for a search any more that could be had otherwise.
const SEARCH_HEDGE: Duration = Duration::from_millis(500);

/// How often a read begins anew before it fails.
const ROUNDS: usize = 2;

/// About how long it waits in between.
const PAUSE: Duration = Duration::from_millis(400);

/// Ranges of a shard up to this length leave their blocks in the cache, in bytes: longer ones are read once.
const CACHED_RANGE: u64 = 4 * BLOCK_LEN as u64;

/// Why bytes could not be read. They are never wrong instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Fewer than k different shards can be had now.
    #[error("stripe {} cannot be read: {needed} shards are needed, {reachable} can be reached", stripe.short())]
    Unreadable {
        /// The stripe.
        stripe: StripeId,
        /// k.
        needed: usize,
        /// Different sound shards found.
        reachable: usize,
    },
    /// No node that can be reached has any shard of the stripe.
    #[error("stripe {} cannot be read: none of {asked} nodes has a shard of it that can be reached", stripe.short())]
    NotFound {
        /// The stripe.
        stripe: StripeId,
        /// Members asked.
        asked: usize,
    },
    /// Its writer's parity does not fit its data, and a data shard is gone: no reader can help that.
    #[error("stripe {} was not coded as its header says", stripe.short())]
    Malformed {
        /// The stripe.
        stripe: StripeId,
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

/// Pieces of shards that were fetched and checked.
type Pieces = Vec<(usize, Range<u64>, Bytes)>;

/// When the nodes' bytes are proved to be those of the stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Before they are given.
    Now,
    /// By the caller, who can tell wrong bytes from right ones by what he makes of them, and who then reads again with
    /// [`Proof::Now`]: that names the node that sent them and does without it.
    Later,
}

/// A node's answer.
struct Fetched {
    reply: wire::GetShardReply,
    bytes: Bytes,
}

/// A piece whose proof comes later, if at all.
struct Unproved {
    index: usize,
    node: NodeId,
    range: Range<u64>,
    reply: wire::GetShardReply,
    bytes: Bytes,
}

/// What happened during a read.
enum Event {
    Fetched(usize, NodeId, Range<u64>, Result<Fetched, Failure>),
    Slow(usize, NodeId),
    Found(NodeId, wire::Holding),
    SearchEnded,
    SearchSlow,
}

impl Cluster {
    /// The data bytes `range` of a stripe.
    pub async fn read(&self, stripe: StripeId, range: Range<u64>) -> Result<Bytes, ReadError> {
        self.read_pieces(stripe, range, Proof::Now).await.map(StripeBytes::join)
    }

    /// The data bytes `range` of a stripe, as they came. Short ranges are proved and kept in any case.
    pub async fn read_pieces(
        &self,
        stripe: StripeId,
        range: Range<u64>,
        proof: Proof,
    ) -> Result<StripeBytes, ReadError> {
        if range.is_empty() {
            return Ok(StripeBytes::default());
        }
        let header = self.header(stripe).await?;
        let data_len = u64::from(header.data_len);
        if range.end > data_len {
            return Err(ReadError::Range { stripe, start: range.start, end: range.end, data_len });
        }
        let parts = parts(&header, &range);
        let wanted: BTreeMap<usize, Range<u64>> = parts
            .iter()
            .map(|(index, part)| (*index, widen(part.start, part.end - part.start, u64::from(header.shard_len))))
            .collect();
        let (mut cached, mut _flight) = (self.cached(stripe, &wanted), None);
        if cached.is_none()
            && let Some((&index, range)) = wanted.first_key_value()
            && range.end - range.start <= CACHED_RANGE
        {
            // Many small pieces lie in one block: it is fetched once, however many ask for them.
            _flight = self.cache.flight(stripe, index, range.start / BLOCK_LEN as u64).await;
            cached = self.cached(stripe, &wanted);
        }
        let pieces = match cached {
            Some(pieces) => pieces,
            None => {
                let lengths = || wanted.values().map(|range| range.end - range.start);
                let (sum, widest) = (lengths().sum::<u64>(), lengths().max().unwrap_or(0));
                let result = range.end - range.start;
                // Room for the ranges or for a column of siblings, and for what is made of them.
                let bytes = sum.max(widest * header.scheme.k() as u64) + result;
                let _share = self.calls.reads.take(bytes as usize).await;
                let unproved = match proof == Proof::Later && sum > CACHED_RANGE {
                    true => self.gather(&header, wanted.clone(), Proof::Later).await?,
                    false => None,
                };
                match unproved {
                    Some(pieces) => pieces,
                    None => {
                        let pieces = self.gather(&header, wanted, Proof::Now).await?;
                        let pieces = pieces.ok_or_else(|| ReadError::Internal("a proved read gave up".into()))?;
                        self.keep(stripe, &pieces);
                        pieces
                    }
                }
            }
        };
        assemble(&pieces, &parts).ok_or_else(|| ReadError::Internal("a wanted piece is not there".into()))
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

    fn cached(&self, stripe: StripeId, wanted: &BTreeMap<usize, Range<u64>>) -> Option<Pieces> {
        let block_len = BLOCK_LEN as u64;
        wanted
            .iter()
            .map(|(&index, range)| {
                if range.end - range.start > CACHED_RANGE {
                    return None;
                }
                let blocks = range.start / block_len..range.end.div_ceil(block_len);
                let blocks = blocks.map(|block| self.cache.block(stripe, index, block));
                let mut blocks: Vec<Bytes> = blocks.collect::<Option<_>>()?;
                let bytes = if blocks.len() == 1 { blocks.remove(0) } else { blocks.concat().into() };
                Some((index, range.clone(), bytes))
            })
            .collect()
    }

    fn keep(&self, stripe: StripeId, pieces: &Pieces) {
        for (index, range, bytes) in pieces {
            if range.end - range.start <= CACHED_RANGE {
                let first = range.start / BLOCK_LEN as u64;
                for (block, bytes) in (first..).zip(bytes.chunks(BLOCK_LEN)) {
                    self.cache.keep_block(stripe, *index, block, bytes);
                }
            }
        }
    }

    /// Brings these ranges of data shards together, whoever has to be asked for it. `None` if some would have to be rebuilt
    /// and what came for it, its proof put off until then, is damaged: that is known now, and not asked for again.
    async fn gather(
        &self,
        header: &SignedHeader,
        wanted: BTreeMap<usize, Range<u64>>,
        proof: Proof,
    ) -> Result<Option<Pieces>, ReadError> {
        let stripe = header.id();
        let mut gather = Gather::new(header.scheme, wanted, self.likely(header));
        let mut events: FuturesUnordered<BoxFuture<'_, Event>> = FuturesUnordered::new();
        let mut pieces: Pieces = Vec::new();
        let mut unproved: Vec<Unproved> = Vec::new();
        let mut rounds = 1;
        // A search asks many nodes; those that wait for their turn. `None` marks its end.
        let mut search: Option<stream::BoxStream<'_, Event>> = None;
        loop {
            while let Some(action) = gather.next() {
                match action {
                    Action::Fetch { index, node, range } => {
                        let slow = Instant::now() + self.calls.hedge_after(node, (range.end - range.start) as usize);
                        events.push(Box::pin(async move {
                            tokio::time::sleep_until(slow).await;
                            Event::Slow(index, node)
                        }));
                        events.push(Box::pin(async move {
                            let fetched = self.fetch(header, index, node, &range, proof).await;
                            Event::Fetched(index, node, range, fetched)
                        }));
                    }
                    Action::Search(circle) => {
                        let slow = Instant::now() + SEARCH_HEDGE;
                        events.push(Box::pin(async move {
                            tokio::time::sleep_until(slow).await;
                            Event::SearchSlow
                        }));
                        search = Some(self.search(header, circle));
                    }
                }
            }
            match gather.verdict() {
                Some(Outcome::Direct) => return Ok(Some(pieces)),
                Some(Outcome::Rebuild { column, from, missing }) => {
                    if !self.prove(header, std::mem::take(&mut unproved)).await? {
                        return Ok(None);
                    }
                    pieces.extend(self.rebuild(header, &pieces, &column, &from, &missing).await?);
                    return Ok(Some(pieces));
                }
                Some(Outcome::Failed { reachable }) if rounds >= ROUNDS => {
                    return Err(ReadError::Unreadable { stripe, needed: header.scheme.k(), reachable });
                }
                Some(Outcome::Failed { .. }) => {
                    rounds += 1;
                    tokio::time::sleep(self.calls.jitter(PAUSE)).await;
                    if let Err(error) = self.refresh().await {
                        tracing::debug!(%error, "members cannot be refreshed");
                    }
                    gather.again();
                    continue;
                }
                None => {}
            }
            let event = match &mut search {
                Some(search) => tokio::select! {
                    found = search.next() => found.unwrap_or(Event::SearchEnded),
                    Some(event) = events.next() => event,
                },
                None => match events.next().await {
                    Some(event) => event,
                    None => return Err(ReadError::Internal("a read waits for nothing".into())),
                },
            };
            match event {
                Event::Fetched(index, node, range, Ok(Fetched { reply, bytes })) => {
                    if proof == Proof::Later {
                        unproved.push(Unproved { index, node, range: range.clone(), reply, bytes: bytes.clone() });
                    }
                    gather.arrived(index, node, range.clone());
                    pieces.push((index, range, bytes));
                }
                Event::Fetched(index, node, _, Err(failure)) => gather.failed(index, node, failure),
                Event::Slow(index, node) => gather.slow(index, node),
                Event::Found(node, holding) => {
                    gather.found(node, holding.live.iter().chain(&holding.trash).map(|index| *index as usize));
                }
                Event::SearchEnded => {
                    search = None;
                    gather.search_ended();
                }
                Event::SearchSlow => gather.search_slow(),
            }
        }
    }

    /// Who probably holds each shard: who did before, and the home; those that are up, and have not sent damage.
    fn likely(&self, header: &SignedHeader) -> Vec<Vec<NodeId>> {
        let known = self.cache.known(&header.id());
        let view = self.members().view();
        let homes = view.ring.walk_stripe(&header.id(), header.scheme).take(header.scheme.n());
        (0..header.scheme.n())
            .map(|index| {
                let before = known.holders.get(&index).into_iter().flatten().copied();
                let mut nodes: Vec<NodeId> = before
                    .chain(homes.get(index).copied())
                    .filter(|node| view.up.contains(node) && !known.damaged.contains(&(index, *node)))
                    .collect();
                nodes.dedup();
                nodes
            })
            .collect()
    }

    /// Asks the nodes of a circle, those of the walk first, what they hold.
    fn search<'a>(&'a self, header: &'a SignedHeader, circle: Circle) -> stream::BoxStream<'a, Event> {
        let known = self.cache.known(&header.id());
        let nodes = circle_nodes(&self.members().view(), header, circle);
        let stripe = header.id();
        let holdings = stream::iter(nodes)
            .map(move |node| async move { Some((node, self.have(node, stripe).await?)) })
            .buffer_unordered(SEARCHES);
        let found = holdings.filter_map(move |found| {
            let found = found.map(|(node, mut holding)| {
                if circle != Circle::All {
                    let damaged = |index: &u32| known.damaged.contains(&(*index as usize, node));
                    holding.live.retain(|index| !damaged(index));
                    holding.trash.retain(|index| !damaged(index));
                }
                Event::Found(node, holding)
            });
            std::future::ready(found)
        });
        Box::pin(found)
    }

    /// Fetches a range of a shard from a node, and checks it, its bytes too unless their proof comes later.
    async fn fetch(
        &self,
        header: &SignedHeader,
        index: usize,
        node: NodeId,
        range: &Range<u64>,
        proof: Proof,
    ) -> Result<Fetched, Failure> {
        let stripe = header.id();
        let length = range.end - range.start;
        let id = Bytes::copy_from_slice(stripe.as_bytes());
        let call = wire::GetShard { stripe: id, index: Some(index as u32), offset: range.start, length };
        let deadline = DEADLINE + Duration::from_secs(length / SLOW_RATE);
        let answer = self.calls.call(node, request::Kind::GetShard(call), Bytes::new(), deadline).await;
        let unsound = match answer {
            Ok((reply::Kind::GetShard(reply), payload)) => {
                let (header, range) = (header.clone(), range.clone());
                let fetched = Fetched { reply, bytes: payload };
                let checked = match proof {
                    Proof::Now => {
                        let check = move || {
                            sound::check(&header, index, &range, &fetched.reply, &fetched.bytes).map(|()| fetched)
                        };
                        self.executor.run(check).await
                    }
                    Proof::Later => {
                        Ok(sound::check_answer(index, &range, &fetched.reply, &fetched.bytes).map(|()| fetched))
                    }
                };
                match checked {
                    Ok(Ok(fetched)) => {
                        self.cache.note(&stripe, |known| {
                            known.holders.entry(index).or_default().insert(node);
                        });
                        return Ok(fetched);
                    }
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => return Err(Failure::Away),
                }
            }
            Ok(_) => "not an answer to a get".into(),
            Err(error) => {
                tracing::debug!(stripe = %stripe.short(), index, node = %node.short(), %error, "no shard");
                let failure = failure_of(&error);
                if failure == Failure::NotThere {
                    self.cache.note(&stripe, |known| {
                        if let Some(holders) = known.holders.get_mut(&index) {
                            holders.remove(&node);
                        }
                    });
                }
                return Err(failure);
            }
        };
        self.damaged(stripe, index, node, &unsound);
        Err(Failure::NotThere)
    }

    /// Proves what came without proof; whether all of it is sound.
    async fn prove(&self, header: &SignedHeader, unproved: Vec<Unproved>) -> Result<bool, ReadError> {
        let checked = header.clone();
        let unsound = self.executor.run(move || {
            let check =
                |piece: &Unproved| sound::check(&checked, piece.index, &piece.range, &piece.reply, &piece.bytes);
            let unsound = unproved.iter().filter_map(|piece| Some((piece.index, piece.node, check(piece).err()?)));
            unsound.collect::<Vec<_>>()
        });
        let unsound = unsound.await.map_err(|error| ReadError::Internal(error.to_string()))?;
        for (index, node, why) in &unsound {
            self.damaged(header.id(), *index, *node, &why.to_string());
        }
        Ok(unsound.is_empty())
    }

    /// Remembers that a node gave a damaged shard, and tells it.
    fn damaged(&self, stripe: StripeId, index: usize, node: NodeId, why: &str) {
        tracing::warn!(stripe = %stripe.short(), index, node = %node.short(), why, "a node sent a damaged shard");
        self.cache.note(&stripe, |known| {
            known.damaged.insert((index, node));
            if let Some(holders) = known.holders.get_mut(&index) {
                holders.remove(&node);
            }
        });
        self.report_damage(node, stripe, index);
    }

    /// Has a node look at a shard that came damaged from it: nodes give clients what is on disk as it is.
    pub(super) fn report_damage(&self, node: NodeId, stripe: StripeId, index: usize) {
        let check = wire::CheckShard { stripe: Bytes::copy_from_slice(stripe.as_bytes()), index: index as u32 };
        self.calls.report(node, request::Kind::CheckShard(check), REPORT_DEADLINE);
    }

    /// Rebuilds the column of the missing shards from that of the others.
    async fn rebuild(
        &self,
        header: &SignedHeader,
        pieces: &Pieces,
        column: &Range<u64>,
        from: &[usize],
        missing: &[usize],
    ) -> Result<Pieces, ReadError> {
        let present: Option<Vec<(usize, Bytes)>> =
            from.iter().map(|&index| Some((index, part_of(pieces, index, column)?))).collect();
        let present = present.ok_or_else(|| ReadError::Internal("a fetched piece is not there".into()))?;
        let (codec, wanted) = (Codec::new(header.scheme), missing.to_vec());
        let (checked, whole) = (header.clone(), column.start == 0 && column.end == u64::from(header.shard_len));
        let rebuilt = self.executor.run(move || {
            let present: Vec<(usize, &[u8])> = present.iter().map(|(index, bytes)| (*index, &bytes[..])).collect();
            let rebuilt = codec.rebuild(&present, &wanted).map_err(|error| ReadError::Internal(error.to_string()))?;
            // Ranges that were checked give the range that was coded; only a whole shard has a hash to prove it.
            let sound = |(index, bytes): (&usize, &Vec<u8>)| Digest::of(bytes) == checked.shards[*index];
            if whole && !wanted.iter().zip(&rebuilt).all(sound) {
                return Err(ReadError::Malformed { stripe: checked.id() });
            }
            Ok(rebuilt)
        });
        let rebuilt = rebuilt.await.map_err(|error| ReadError::Internal(error.to_string()))??;
        Ok(missing.iter().zip(rebuilt).map(|(&index, bytes)| (index, column.clone(), bytes.into())).collect())
    }
}

fn failure_of(error: &CallError) -> Failure {
    match error.code() {
        Some(Code::Overloaded | Code::Stopping | Code::Internal) => Failure::Away,
        Some(_) => Failure::NotThere,
        None => match error {
            CallError::BadReply(_) | CallError::BadRequest(_) => Failure::NotThere,
            _ => Failure::Away,
        },
    }
}

/// The nodes that a search asks, nearest on the walk first.
fn circle_nodes(view: &View, header: &SignedHeader, circle: Circle) -> Vec<NodeId> {
    let walk = view.ring.walk_stripe(&header.id(), header.scheme);
    let near = 2 * header.scheme.n();
    let up = |node: &NodeId| view.up.contains(node);
    match circle {
        Circle::Walk => walk.iter().filter(up).take(near).collect(),
        Circle::Up | Circle::All => {
            let leaving = view.holders().into_iter().filter(|node| !view.ring.contains(node));
            walk.iter().chain(leaving).filter(|node| circle == Circle::All || up(node)).collect()
        }
    }
}

/// The ranges of data shards that hold these data bytes, in order.
fn parts(header: &SignedHeader, range: &Range<u64>) -> Vec<(usize, Range<u64>)> {
    let shard_len = u64::from(header.shard_len);
    let mut parts = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let (index, offset) = header.locate(at);
        let length = (shard_len - offset).min(range.end - at);
        parts.push((index, offset..offset + length));
        at += length;
    }
    parts
}

/// A range of a shard from the piece that holds it; nothing is copied.
fn part_of(pieces: &Pieces, index: usize, range: &Range<u64>) -> Option<Bytes> {
    let (_, piece, bytes) = pieces
        .iter()
        .find(|(found, piece, _)| *found == index && piece.start <= range.start && range.end <= piece.end)?;
    Some(bytes.slice((range.start - piece.start) as usize..(range.end - piece.start) as usize))
}

/// The parts one after the other.
fn assemble(pieces: &Pieces, parts: &[(usize, Range<u64>)]) -> Option<StripeBytes> {
    let parts = parts.iter().map(|(index, range)| part_of(pieces, *index, range)).collect::<Option<Vec<_>>>()?;
    Some(StripeBytes(parts))
}

/// A range of a stripe's data, as it came from the nodes: in pieces, of which most are never joined.
#[derive(Debug, Clone, Default)]
pub struct StripeBytes(Vec<Bytes>);

impl StripeBytes {
    /// A part of it, copied only if it lies in more than one piece; `None` if it reaches behind the end.
    #[must_use]
    pub fn get(&self, range: Range<usize>) -> Option<Bytes> {
        let (mut begin, mut joined) = (0, BytesMut::new());
        for piece in &self.0 {
            let end = begin + piece.len();
            let (from, to) = (range.start.max(begin), range.end.min(end));
            if from < to {
                let part = piece.slice(from - begin..to - begin);
                if part.len() == range.len() {
                    return Some(part);
                }
                if joined.is_empty() {
                    joined.reserve(range.len());
                }
                joined.extend_from_slice(&part);
            }
            begin = end;
        }
        (joined.len() == range.len() && range.end <= begin).then(|| joined.freeze())
    }

    /// All of it in one piece.
    #[must_use]
    pub fn join(self) -> Bytes {
        let len = self.0.iter().map(Bytes::len).sum();
        self.get(0..len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_only_where_they_have_to_be() {
        let whole = Bytes::from_static(b"0123456789");
        let bytes = StripeBytes(vec![whole.slice(0..4), whole.slice(4..4), whole.slice(4..5), whole.slice(5..10)]);
        for begin in 0..12 {
            for end in begin..12 {
                let expected = (end <= 10).then(|| whole.slice(begin..end));
                assert_eq!(bytes.get(begin..end), expected, "{begin}..{end}");
            }
        }
        assert_eq!(bytes.get(5..9).unwrap().as_ptr(), whole[5..].as_ptr(), "not copied");
        assert_eq!(bytes.join(), whole);
    }
}
