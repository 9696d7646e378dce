//! What `deploy/` ships for Prometheus and Grafana speaks of metrics that exist, and a real Prometheus accepts it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use potluck_node::{
    http::{self, Page},
    metrics::{
        Metrics,
        label::{AuditResult, Call, Loop, StripeState},
    },
};
use potluck_proto::wire::Code;
use potluck_tests::{
    dashboard::{alerts, dashboard, deploy, expand, faults},
    prometheus::{Prometheus, promtool},
};

/// Longest wait for Prometheus to have scraped often enough, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn queries_speak_of_metrics_that_exist() {
    let metrics = Metrics::new().unwrap();
    let (panels, rules) = (dashboard().unwrap(), alerts().unwrap());
    assert!(panels.len() > 20 && rules.len() > 8, "{} panels, {} rules", panels.len(), rules.len());
    let mut wrong = Vec::new();
    for query in panels.iter().chain(&rules) {
        wrong
            .extend(faults(query, metrics.descriptions()).into_iter().map(|fault| format!("{}: {fault}", query.title)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn promtool_accepts_configuration_and_rules() {
    promtool("config", &deploy().join("prometheus/prometheus.yml")).unwrap();
    promtool("rules", &deploy().join("prometheus/potluck-alerts.yml")).unwrap();
}

/// A page whose counters grow whenever it is read, so that every rate is a number.
struct Busy(Metrics);

impl Page for Busy {
    fn metrics(&self) -> String {
        let (metrics, now) = (&self.0, Duration::from_secs(100));
        metrics.request_done(Call::GetShard, None, Duration::from_millis(4));
        metrics.request_done(Call::PutShard, Some(Code::Full), Duration::from_millis(4));
        metrics.repair_seconds.observe(7.0);
        metrics.audits.with(AuditResult::Passed).inc();
        metrics.loop_ran(Loop::Repair, Duration::from_secs(1), now);
        metrics.stripes.with(StripeState::AtRisk).set(1);
        metrics.stripes.with(StripeState::Whole).set(9);
        metrics.capacity_bytes.set(1000);
        metrics.text(now, now)
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }

    fn status(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

#[test]
fn a_real_prometheus_answers_every_query() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listen = async || tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = runtime.block_on(listen());
    let address: SocketAddr = listener.local_addr().unwrap();
    runtime.spawn(http::serve(listener, Arc::new(Busy(Metrics::new().unwrap())), std::future::pending()));

    let rules = [deploy().join("prometheus/potluck-alerts.yml")];
    let prometheus = Prometheus::start(&[address], &rules).unwrap();
    prometheus.wait_for("up{job=\"potluck\"} == 1", PATIENCE, |result| result.len() == 1).unwrap();
    for query in dashboard().unwrap() {
        let expr = expand(&query.expr, "10s");
        let found = prometheus.wait_for(&expr, PATIENCE, |result| !result.is_empty());
        let found = found.unwrap_or_else(|error| panic!("panel {}: {error:#}", query.title));
        if query.title == "Is my data safe?" {
            assert_eq!(found[0]["value"][1], "3", "one stripe is at risk");
        }
    }
    for query in alerts().unwrap() {
        prometheus.query(&query.expr).unwrap_or_else(|error| panic!("alert {}: {error:#}", query.title));
    }
    // The rules are loaded and evaluated: the clock of the page is decades behind.
    let pending = "ALERTS{alertname=\"PotluckClockWrong\"}";
    prometheus.wait_for(pending, PATIENCE, |result| result.len() == 1).unwrap();
    assert!(prometheus.query("sum(").is_err(), "a wrong query is an error");
}
