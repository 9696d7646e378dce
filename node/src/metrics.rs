//! Everything that a node counts and measures, in one place, with names, units and help texts.
//!
//! Names begin with `potluck_` and end in their base unit (bytes, seconds). Metrics are written by the loops and calls
//! that they speak of and read by the HTTP page; no decision of the node depends on one. Nothing here reads a clock: who
//! records or prints says when, as time since the node's start.

use std::{
    collections::BTreeMap,
    marker::PhantomData,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use potluck_proto::wire::Code;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, core::Collector,
};

pub mod label;

use label::{AuditResult, Call, Direction, FoundBy, HeadState, Label, Loop, StoreBytes, StripeState, code_text};

/// Upper bounds in seconds of a request's time: a cached answer on a LAN up to a shard over a slow home link.
const REQUEST_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Upper bounds in seconds from finding a stripe incomplete to having it whole: a moment up to three days.
const REPAIR_BUCKETS: [f64; 10] = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0, 259_200.0];

/// What a metric is, for those who check that a dashboard speaks of things that exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Full name. A histogram's series have `_bucket`, `_sum` and `_count` behind it.
    pub name: String,
    /// What it says.
    pub help: String,
    /// Its kind.
    pub kind: Kind,
    /// Its labels, and the values of those that have a closed set of them.
    pub labels: BTreeMap<String, Vec<String>>,
}

/// The kinds of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, but for a restart.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations up to several bounds.
    Histogram,
}

/// One metric for each value of a label, all there from the start.
#[derive(Clone, Debug)]
pub struct Family<L, M> {
    children: Vec<M>,
    label: PhantomData<L>,
}

impl<L: Label, M> Family<L, M> {
    fn new(child: impl Fn(&str) -> Result<M, prometheus::Error>) -> Result<Self, prometheus::Error> {
        let children = L::ALL.iter().map(|value| child(value.text())).collect::<Result<_, _>>()?;
        Ok(Self { children, label: PhantomData })
    }

    /// The metric with this label.
    pub fn with(&self, label: L) -> &M {
        &self.children[label.place()]
    }
}

/// All metrics of one node.
///
/// Gauges of the node's state (capacity, stripes, members) are set by who knows the state; the ages are worked out
/// when the text is made.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    descriptions: Vec<Description>,
    /// Bytes offered to the cluster.
    pub capacity_bytes: IntGauge,
    /// Bytes of live shards.
    pub used_bytes: IntGauge,
    /// Bytes of shards in the trash.
    pub trash_bytes: IntGauge,
    /// 1 while the node takes no new shards for want of space.
    pub full: IntGauge,
    /// Live shards.
    pub shards: IntGauge,
    /// Stripes that this node is first responsible for, so that a sum over nodes counts each once.
    pub stripes: Family<StripeState, IntGauge>,
    /// Nodes in this node's member table that are admitted and not lost, left or evicted.
    pub members: IntGauge,
    /// Those that this node believes up, itself included.
    pub members_up: IntGauge,
    /// Times that others took this node for down, and it said that it is up.
    pub refutations: IntCounter,
    /// Records of this node that another process made with its key.
    pub identity_conflicts: IntCounter,
    /// Bytes of shards moved for calls.
    pub payload_bytes: Family<Direction, IntCounter>,
    /// Stripes waiting for repair here.
    pub repair_queue: IntGauge,
    /// Shards rebuilt and placed.
    pub repaired_shards: IntCounter,
    /// Their bytes.
    pub repaired_bytes: IntCounter,
    /// Seconds from finding a stripe incomplete to having it whole.
    pub repair_seconds: Histogram,
    /// Shards sent home.
    pub rebalanced_shards: IntCounter,
    /// Shards here that failed their hash.
    pub corrupt_shards: Family<FoundBy, IntCounter>,
    /// Audits of peers.
    pub audits: Family<AuditResult, IntCounter>,
    /// Bytes that scrub has read.
    pub scrubbed_bytes: IntCounter,
    /// Segments of the store.
    pub store_segments: IntGauge,
    /// Their bytes.
    pub store_bytes: Family<StoreBytes, IntGauge>,
    /// Gaps and unusable files that the start found.
    pub store_gaps: IntGauge,
    /// Segments that the index knows.
    pub store_indexed: IntGauge,
    /// Segments that a failed write or sync has ended.
    pub store_failures: IntCounter,
    /// Records that scrub found damaged and that were written anew.
    pub store_mended: IntCounter,
    /// Bytes that compaction has copied.
    pub compaction_copied_bytes: IntCounter,
    /// Bytes that it has given back.
    pub compaction_freed_bytes: IntCounter,
    /// Vaults of which this node is a head replica.
    pub heads: Family<HeadState, IntGauge>,
    /// Open QUIC connections.
    pub transport_connections: IntGauge,
    /// Gossip datagrams that were dropped unsent or unread.
    pub transport_datagrams_dropped: IntCounter,
    /// Bytes of requests and replies.
    pub transport_bytes: Family<Direction, IntCounter>,
    requests: IntCounterVec,
    request_seconds: Family<Call, Histogram>,
    loop_runs: IntCounterVec,
    loop_age_seconds: GaugeVec,
    loop_seconds: HistogramVec,
    survey_age_seconds: Gauge,
    uptime_seconds: Gauge,
    clock_seconds: Gauge,
    last: Mutex<Last>,
}

/// When things last happened, in time since the node's start.
#[derive(Debug, Default)]
struct Last {
    survey: Duration,
    loops: BTreeMap<Loop, Duration>,
}

impl Metrics {
    /// Fresh metrics, all zero.
    ///
    /// # Errors
    /// Never, unless two metrics below have one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let mut r = Registrar::default();
        let build = r.gauges::<Version>("build_info", "Always 1; the label says which version runs")?;
        build.with(Version).set(1);
        let metrics = Self {
            capacity_bytes: r.gauge("node_capacity_bytes", "Disk space offered to the cluster")?,
            used_bytes: r.gauge("node_used_bytes", "Disk space taken by live shards")?,
            trash_bytes: r.gauge("node_trash_bytes", "Disk space taken by shards in the trash")?,
            full: r.gauge("node_full", "1 while the node takes no new shards for want of space, else 0")?,
            shards: r.gauge("shards", "Live shards on this node")?,
            stripes: r.gauges("stripes", "Stripes that this node is first responsible for, by how they fare")?,
            members: r.gauge("members", "Nodes admitted and not lost, left or evicted, as this node knows them")?,
            members_up: r.gauge("members_up", "Members that this node believes up, itself included")?,
            refutations: r
                .counter("refutations_total", "Times that others took this node for down and it said that it is up")?,
            identity_conflicts: r.counter(
                "identity_conflicts_total",
                "Records of this node that another process made with a copy of its key",
            )?,
            payload_bytes: r.counters("payload_bytes_total", "Bytes of shards that calls to this node moved")?,
            repair_queue: r.gauge("repair_queue", "Stripes waiting for repair by this node")?,
            repaired_shards: r.counter("repaired_shards_total", "Shards that this node rebuilt and placed")?,
            repaired_bytes: r.counter("repaired_bytes_total", "Bytes of shards that this node rebuilt and placed")?,
            repair_seconds: r.histogram(
                "repair_duration_seconds",
                "Time from finding a stripe incomplete to having it whole",
                &REPAIR_BUCKETS,
            )?,
            rebalanced_shards: r.counter("rebalanced_shards_total", "Shards that this node sent home")?,
            corrupt_shards: r
                .counters("corrupt_shards_total", "Shards here that failed their hash, by who found out")?,
            audits: r.counters("audits_total", "Audits of peers by this node, by result")?,
            scrubbed_bytes: r.counter("scrubbed_bytes_total", "Bytes of own shards re-read and checked by scrub")?,
            store_segments: r.gauge("store_segments", "Segments of the node's log")?,
            store_bytes: r
                .gauges("store_bytes", "Bytes of the log's records, by whether they count or wait for compaction")?,
            store_gaps: r.gauge(
                "store_gaps",
                "Parts of the log that the last start could not read; some may never have been acknowledged",
            )?,
            store_indexed: r.gauge("store_indexed_segments", "Segments that the index knows")?,
            store_failures: r.counter(
                "store_failures_total",
                "Segments that a failed write or sync has ended; nothing that was acknowledged is lost by it",
            )?,
            store_mended: r
                .counter("store_mended_records_total", "Records that scrub found damaged and that were written anew")?,
            compaction_copied_bytes: r
                .counter("compaction_copied_bytes_total", "Bytes that compaction copied out of mostly dead segments")?,
            compaction_freed_bytes: r
                .counter("compaction_freed_bytes_total", "Bytes that compaction gave back to the disk")?,
            heads: r.gauges("heads", "Vaults whose heads this node keeps as a replica, by how the replica stands")?,
            transport_connections: r.gauge("transport_connections", "Open QUIC connections")?,
            transport_datagrams_dropped: r
                .counter("transport_datagrams_dropped_total", "Gossip datagrams dropped unsent or unread")?,
            transport_bytes: r.counters("transport_bytes_total", "Bytes of requests and replies")?,
            requests: r.counter_vec("requests_total", "Calls answered, by their outcome", &["call", "code"])?,
            request_seconds: r.histograms("request_duration_seconds", "Time to answer a call", &REQUEST_BUCKETS)?,
            loop_runs: r.counter_vec("loop_runs_total", "Rounds of a background loop", &["loop"])?,
            loop_age_seconds: r.age_vec("loop_age_seconds", "Time since a background loop last finished a round")?,
            loop_seconds: r.loop_histogram("loop_duration_seconds", "Time that a round of a background loop took")?,
            survey_age_seconds: r.float("survey_age_seconds", "Time since all stripes were last looked at")?,
            uptime_seconds: r.float("uptime_seconds", "Time since the node started")?,
            clock_seconds: r.float("clock_seconds", "The node's clock, in seconds since 1970")?,
            last: Mutex::default(),
            descriptions: Vec::new(),
            registry: Registry::new(),
        };
        for call in Call::ALL {
            metrics.requests.with_label_values(&[call.text(), "ok"]);
        }
        Ok(Self { descriptions: r.descriptions, registry: r.registry, ..metrics })
    }

    /// A call was answered after `took`; `refused` is the error's code, if it was one.
    pub fn request_done(&self, call: Call, refused: Option<Code>, took: Duration) {
        self.requests.with_label_values(&[call.text(), &code_text(refused)]).inc();
        self.request_seconds.with(call).observe(took.as_secs_f64());
    }

    /// A loop was started, `uptime` after the node. From now on its age is shown, and grows until it finishes a round.
    pub fn loop_started(&self, which: Loop, uptime: Duration) {
        self.loop_runs.with_label_values(&[which.text()]);
        self.last().loops.insert(which, uptime);
    }

    /// A loop finished a round that took `took`, at `uptime` after the node's start.
    pub fn loop_ran(&self, which: Loop, took: Duration, uptime: Duration) {
        self.loop_runs.with_label_values(&[which.text()]).inc();
        self.loop_seconds.with_label_values(&[which.text()]).observe(took.as_secs_f64());
        self.last().loops.insert(which, uptime);
    }

    /// All stripes of this node have been looked at, at `uptime` after the node's start.
    pub fn surveyed(&self, uptime: Duration) {
        self.last().survey = uptime;
    }

    /// Everything in Prometheus' text format, at `uptime` after the node's start and `since_epoch` by its clock.
    pub fn text(&self, uptime: Duration, since_epoch: Duration) -> String {
        {
            let last = self.last();
            self.survey_age_seconds.set(uptime.saturating_sub(last.survey).as_secs_f64());
            for (which, at) in &last.loops {
                let age = uptime.saturating_sub(*at).as_secs_f64();
                self.loop_age_seconds.with_label_values(&[which.text()]).set(age);
            }
        }
        self.uptime_seconds.set(uptime.as_secs_f64());
        self.clock_seconds.set(since_epoch.as_secs_f64());
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| {
            tracing::error!(%error, "the metrics cannot be written");
            String::new()
        })
    }

    /// What there is, whether or not it has a value yet.
    pub fn descriptions(&self) -> &[Description] {
        &self.descriptions
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The label of `potluck_build_info`.
#[derive(Clone, Copy)]
struct Version;

impl Label for Version {
    const NAME: &'static str = "version";
    const ALL: &'static [Self] = &[Self];

    fn text(self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    fn place(self) -> usize {
        0
    }
}

/// Makes metrics, registers them and writes down what they are.
#[derive(Default)]
struct Registrar {
    registry: Registry,
    descriptions: Vec<Description>,
}

impl Registrar {
    fn add<C: Collector + Clone + 'static>(
        &mut self,
        kind: Kind,
        collector: C,
        closed: &[(&str, Vec<String>)],
    ) -> Result<C, prometheus::Error> {
        for desc in collector.desc() {
            let mut labels: BTreeMap<String, Vec<String>> =
                desc.variable_labels.iter().map(|label| (label.clone(), Vec::new())).collect();
            labels.extend(closed.iter().map(|(label, values)| (label.to_string(), values.clone())));
            let (name, help) = (desc.fq_name.clone(), desc.help.clone());
            self.descriptions.push(Description { name, help, kind, labels });
        }
        self.registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn closed<L: Label>() -> (&'static str, Vec<String>) {
        (L::NAME, L::ALL.iter().map(|value| value.text().to_string()).collect())
    }

    fn gauge(&mut self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.add(Kind::Gauge, IntGauge::with_opts(opts(name, help))?, &[])
    }

    fn float(&mut self, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
        self.add(Kind::Gauge, Gauge::with_opts(opts(name, help))?, &[])
    }

    fn counter(&mut self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.add(Kind::Counter, IntCounter::with_opts(opts(name, help))?, &[])
    }

    fn histogram(&mut self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
        self.add(Kind::Histogram, Histogram::with_opts(histogram_opts(name, help, buckets))?, &[])
    }

    fn gauges<L: Label>(&mut self, name: &str, help: &str) -> Result<Family<L, IntGauge>, prometheus::Error> {
        let vec = IntGaugeVec::new(opts(name, help), &[L::NAME])?;
        let vec = self.add(Kind::Gauge, vec, &[Self::closed::<L>()])?;
        Family::new(|value| vec.get_metric_with_label_values(&[value]))
    }

    fn counters<L: Label>(&mut self, name: &str, help: &str) -> Result<Family<L, IntCounter>, prometheus::Error> {
        let vec = IntCounterVec::new(opts(name, help), &[L::NAME])?;
        let vec = self.add(Kind::Counter, vec, &[Self::closed::<L>()])?;
        Family::new(|value| vec.get_metric_with_label_values(&[value]))
    }

    fn histograms<L: Label>(
        &mut self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> Result<Family<L, Histogram>, prometheus::Error> {
        let vec = HistogramVec::new(histogram_opts(name, help, buckets), &[L::NAME])?;
        let vec = self.add(Kind::Histogram, vec, &[Self::closed::<L>()])?;
        Family::new(|value| vec.get_metric_with_label_values(&[value]))
    }

    fn counter_vec(&mut self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        let closed = [Self::closed::<Call>(), Self::closed::<Loop>()];
        let closed: Vec<_> = closed.into_iter().filter(|(label, _)| labels.contains(label)).collect();
        self.add(Kind::Counter, IntCounterVec::new(opts(name, help), labels)?, &closed)
    }

    fn age_vec(&mut self, name: &str, help: &str) -> Result<GaugeVec, prometheus::Error> {
        let vec = GaugeVec::new(opts(name, help), &[Loop::NAME])?;
        self.add(Kind::Gauge, vec, &[Self::closed::<Loop>()])
    }

    fn loop_histogram(&mut self, name: &str, help: &str) -> Result<HistogramVec, prometheus::Error> {
        let vec = HistogramVec::new(histogram_opts(name, help, &REPAIR_BUCKETS), &[Loop::NAME])?;
        self.add(Kind::Histogram, vec, &[Self::closed::<Loop>()])
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("potluck")
}

fn histogram_opts(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(name, help).namespace("potluck").buckets(buckets.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Duration = Duration::ZERO;

    #[test]
    fn a_fresh_node_shows_every_closed_series_at_zero() {
        let text = Metrics::new().unwrap().text(NONE, NONE);
        for state in StripeState::ALL {
            assert!(text.contains(&format!("potluck_stripes{{state=\"{}\"}} 0\n", state.text())), "{text}");
        }
        assert!(text.contains(&format!("potluck_build_info{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION"))));
        assert!(text.contains("potluck_requests_total{call=\"put_shard\",code=\"ok\"} 0\n"));
        assert!(!text.contains("potluck_loop_age_seconds{"), "a loop that was not started has no age");
    }

    #[test]
    fn what_is_recorded_is_shown() {
        let metrics = Metrics::new().unwrap();
        metrics.stripes.with(StripeState::AtRisk).set(3);
        metrics.corrupt_shards.with(FoundBy::Scrub).inc();
        metrics.request_done(Call::GetShard, Some(Code::NotFound), Duration::from_millis(3));
        metrics.loop_started(Loop::Scrub, Duration::from_secs(1));
        metrics.loop_ran(Loop::Repair, Duration::from_secs(2), Duration::from_secs(60));
        metrics.surveyed(Duration::from_secs(90));
        let text = metrics.text(Duration::from_secs(100), Duration::from_secs(1_700_000_000));
        for line in [
            "potluck_stripes{state=\"at_risk\"} 3",
            "potluck_corrupt_shards_total{found_by=\"scrub\"} 1",
            "potluck_requests_total{call=\"get_shard\",code=\"not_found\"} 1",
            "potluck_request_duration_seconds_bucket{call=\"get_shard\",le=\"0.0025\"} 0",
            "potluck_request_duration_seconds_bucket{call=\"get_shard\",le=\"0.005\"} 1",
            "potluck_loop_runs_total{loop=\"repair\"} 1",
            "potluck_loop_runs_total{loop=\"scrub\"} 0",
            "potluck_loop_age_seconds{loop=\"repair\"} 40",
            "potluck_loop_age_seconds{loop=\"scrub\"} 99",
            "potluck_survey_age_seconds 10",
            "potluck_clock_seconds 1700000000",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn names_follow_the_rules() {
        let metrics = Metrics::new().unwrap();
        let gathered = metrics.registry.gather();
        for Description { name, help, kind, .. } in metrics.descriptions() {
            assert!(name.starts_with("potluck_") && !help.is_empty(), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}: counters alone end in _total");
            assert!(*kind != Kind::Histogram || name.ends_with("_seconds"), "{name}");
        }
        for family in gathered {
            assert!(metrics.descriptions().iter().any(|description| description.name == family.name()));
        }
    }

    #[test]
    fn labels_know_their_places() {
        fn check<L: Label>() {
            assert!(L::ALL.iter().enumerate().all(|(place, label)| label.place() == place));
        }
        check::<Call>();
        check::<Loop>();
        check::<StripeState>();
    }
}
