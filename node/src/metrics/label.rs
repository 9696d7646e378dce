//! The labels of the metrics: closed sets of values, so that no input from outside can make a new time series.

use potluck_proto::wire::{Code, request};

/// A label whose values are all known beforehand.
pub trait Label: Copy + 'static {
    /// The label's name.
    const NAME: &'static str;
    /// Every value, in the order of their places.
    const ALL: &'static [Self];

    /// The label's text.
    fn text(self) -> &'static str;

    /// Its place in [`Label::ALL`].
    fn place(self) -> usize;
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident = $label:literal { $($(#[$value_doc:meta])* $value:ident = $text:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$value_doc])* $value,)+ }

        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$value,)+];

            fn text(self) -> &'static str {
                match self { $(Self::$value => $text,)+ }
            }

            fn place(self) -> usize {
                self as usize
            }
        }
    )+};
}

labels! {
    /// How a stripe fares.
    StripeState = "state" {
        /// Every index is on a live node.
        Whole = "whole",
        /// Some are missing, and the margin is comfortable.
        Degraded = "degraded",
        /// Few more losses are borne: repaired at once.
        AtRisk = "at_risk",
        /// Fewer than k are reachable, of a stripe that was once complete.
        Unreadable = "unreadable",
        /// Fewer than k were ever seen: an upload that died.
        Unconfirmed = "unconfirmed",
        /// Its shards do not give what its header says.
        Malformed = "malformed",
        /// Not yet looked at.
        Unknown = "unknown",
    }
    /// What found a shard that fails its hash.
    FoundBy = "found_by" {
        /// A read.
        Read = "read",
        /// The scrub of own shards.
        Scrub = "scrub",
        /// An audit by a co-holder.
        Audit = "audit",
    }
    /// Which way bytes go, seen from this node.
    Direction = "direction" {
        /// Received.
        In = "in",
        /// Sent.
        Out = "out",
    }
    /// How an audit of a peer ended.
    AuditResult = "result" {
        /// The proof was right.
        Passed = "passed",
        /// The proof was wrong.
        Failed = "failed",
        /// No answer in time.
        Unanswered = "unanswered",
    }
    /// How a vault's heads on this replica stand.
    HeadState = "state" {
        /// The replica counts in quorums.
        Settled = "settled",
        /// It still has to hear from others.
        Unsettled = "unsettled",
        /// A quorum of an old list is gone: newer heads may have been lost.
        Behind = "behind",
    }
    /// What the bytes of the store's segments are.
    StoreBytes = "state" {
        /// Records that count.
        Live = "live",
        /// What compaction gives back.
        Dead = "dead",
    }
    /// The loops that run in the background.
    Loop = "loop" {
        /// Looks at the stripes that this node is first responsible for.
        Survey = "survey",
        /// Rebuilds what is missing.
        Repair = "repair",
        /// Sends shards home.
        Rebalance = "rebalance",
        /// Re-reads own shards.
        Scrub = "scrub",
        /// Challenges peers.
        Audit = "audit",
        /// Deletes what has been in the trash long enough.
        Trash = "trash",
        /// Empties mostly dead segments.
        Compact = "compact",
        /// Exchanges the member table.
        Members = "members",
        /// Exchanges heads.
        Heads = "heads",
    }
    /// The calls of the wire.
    Call = "call" {
        /// Introduction.
        Hello = "hello",
        /// An invite's redemption.
        Redeem = "redeem",
        /// Exchange of the member table.
        Members = "members",
        /// A shard comes.
        PutShard = "put_shard",
        /// A shard, or a part of it, goes.
        GetShard = "get_shard",
        /// Which shards are here.
        HaveShards = "have_shards",
        /// A shard is re-read.
        CheckShard = "check_shard",
        /// A stripe is looked at now.
        Alert = "alert",
        /// Heads are read.
        ReadHeads = "read_heads",
        /// A head is written.
        WriteHead = "write_head",
        /// Replicas exchange heads.
        ExchangeHeads = "exchange_heads",
        /// The node's state.
        Status = "status",
        /// The operator's calls.
        Admin = "admin",
        /// Recovery of a vault.
        FetchVault = "fetch_vault",
        /// No call that this version knows.
        Unknown = "unknown",
    }
}

impl Call {
    /// The call that a request makes.
    pub fn of(request: Option<&request::Kind>) -> Self {
        use request::Kind;
        match request {
            Some(Kind::Hello(_)) => Self::Hello,
            Some(Kind::Redeem(_)) => Self::Redeem,
            Some(Kind::Alert(_)) => Self::Alert,
            Some(Kind::Members(_)) => Self::Members,
            Some(Kind::PutShard(_)) => Self::PutShard,
            Some(Kind::GetShard(_)) => Self::GetShard,
            Some(Kind::HaveShards(_)) => Self::HaveShards,
            Some(Kind::CheckShard(_)) => Self::CheckShard,
            Some(Kind::ReadHeads(_)) => Self::ReadHeads,
            Some(Kind::WriteHead(_)) => Self::WriteHead,
            Some(Kind::ExchangeHeads(_)) => Self::ExchangeHeads,
            Some(Kind::Status(_)) => Self::Status,
            Some(Kind::Admin(_)) => Self::Admin,
            Some(Kind::FetchVault(_)) => Self::FetchVault,
            None => Self::Unknown,
        }
    }
}

/// The label `code` of a request that ended so: the wire's name in lower case, or `ok`.
pub fn code_text(refused: Option<Code>) -> String {
    refused.map_or_else(|| "ok".into(), |code| code.as_str_name().to_ascii_lowercase())
}
