//! What `deploy/` asks Prometheus: the queries of the Grafana dashboard and of the alert rules, and a static check that
//! they speak of metrics, labels and values that a node really has.
//!
//! It reads the files as they are shipped. It does not evaluate a query: that is [`crate::prometheus`]'s.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use potluck_node::metrics::{Description, Kind};
use serde_json::Value;

/// One query of a panel, a template variable or an alert.
#[derive(Clone, Debug)]
pub struct Query {
    /// The panel's title, the variable's name or the alert's name.
    pub title: String,
    /// What is asked, in PromQL, with Grafana's variables still in it.
    pub expr: String,
    /// Names of labels that the panel's legend shows.
    pub legend: Vec<String>,
}

/// The folder `deploy/` of this source tree.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Every query of every panel of the dashboard.
pub fn dashboard() -> Result<Vec<Query>> {
    let path = deploy().join("grafana/potluck.json");
    let page: Value = serde_json::from_str(&std::fs::read_to_string(&path)?).context("the dashboard is JSON")?;
    let mut queries = Vec::new();
    for panel in page["panels"].as_array().context("it has panels")? {
        let title = panel["title"].as_str().context("a panel has a title")?;
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().filter(|targets| !targets.is_empty());
        for target in targets.with_context(|| format!("panel {title} asks something"))? {
            let expr = target["expr"].as_str().with_context(|| format!("panel {title} has a query"))?;
            let legend = between(target["legendFormat"].as_str().unwrap_or(""), "{{", "}}");
            queries.push(Query { title: title.into(), expr: expr.into(), legend });
        }
    }
    Ok(queries)
}

/// Every alert rule. It is read line by line: each expression must stand on one line.
pub fn alerts() -> Result<Vec<Query>> {
    let text = std::fs::read_to_string(deploy().join("prometheus/potluck-alerts.yml"))?;
    let mut queries = Vec::new();
    let mut title = "";
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("- alert: ") {
            title = name;
        } else if let Some(expr) = line.strip_prefix("expr: ") {
            ensure!(expr.len() > 2, "alert {title}: its expression must stand on one line");
            queries.push(Query { title: title.into(), expr: expr.into(), legend: Vec::new() });
        }
    }
    Ok(queries)
}

/// `expr` as Grafana sends it with every node chosen and `rate_interval` (e.g. `1m`) as the shortest sensible rate.
pub fn expand(expr: &str, rate_interval: &str) -> String {
    expr.replace("$__rate_interval", rate_interval).replace("$node", ".*")
}

/// What is wrong with `query`, given what a node has; nothing if all is well.
pub fn faults(query: &Query, known: &[Description]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut labels: Vec<&str> = vec!["instance", "job"];
    let mut any = false;
    for (name, rest) in names(&query.expr) {
        any = true;
        let Some(metric) = find(name, known) else {
            if name != "up" {
                faults.push(format!("there is no metric {name}"));
            }
            continue;
        };
        labels.extend(metric.labels.keys().map(String::as_str));
        if metric.kind == Kind::Histogram {
            labels.push("le");
        }
        let Some(matchers) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { continue };
        for (label, value) in matchers.0.split("\",").filter_map(|matcher| matcher.split_once(['=', '!'])) {
            let label = label.trim();
            let value = value.trim_start_matches(['=', '~', '"']).trim_end_matches('"');
            match metric.labels.get(label) {
                None if label == "instance" || label == "job" => {}
                None => faults.push(format!("{name} has no label {label}")),
                Some(closed) if closed.is_empty() => {}
                Some(closed) => faults.extend(
                    value
                        .split('|')
                        .filter(|value| !closed.iter().any(|known| known == value))
                        .map(|value| format!("label {label} of {name} is never {value:?}")),
                ),
            }
        }
    }
    if !any {
        faults.push("it asks for no metric".into());
    }
    let grouped = between(&query.expr, "by (", ")")
        .into_iter()
        .flat_map(|list| list.split(',').map(|label| label.trim().to_string()).collect::<Vec<_>>());
    for label in grouped.chain(query.legend.iter().cloned()) {
        if !labels.contains(&label.as_str()) {
            faults.push(format!("none of its metrics has a label {label}"));
        }
    }
    faults
}

/// The metric that a series' name belongs to: its own, or its histogram's.
fn find<'a>(name: &str, known: &'a [Description]) -> Option<&'a Description> {
    known.iter().find(|metric| match metric.kind {
        Kind::Histogram => {
            name.strip_prefix(&metric.name).is_some_and(|end| ["_bucket", "_sum", "_count"].contains(&end))
        }
        Kind::Counter | Kind::Gauge => metric.name == name,
    })
}

/// The names of series in `expr`, each with the text behind it.
fn names(expr: &str) -> Vec<(&str, &str)> {
    let in_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    let mut rest = expr;
    while let Some(start) = rest.find(in_name) {
        let word = &rest[start..];
        let end = word.find(|c| !in_name(c)).unwrap_or(word.len());
        let (name, behind) = word.split_at(end);
        if name.starts_with("potluck_") || name == "up" {
            found.push((name, behind));
        }
        rest = behind;
    }
    found
}

/// Every piece of `text` between `open` and `close`.
fn between(text: &str, open: &str, close: &str) -> Vec<String> {
    let pieces = text.split(open).skip(1).filter_map(|piece| piece.split_once(close));
    pieces.map(|(inner, _)| inner.trim().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use potluck_node::metrics::Metrics;

    use super::*;

    #[test]
    fn faults_are_found() {
        let metrics = Metrics::new().unwrap();
        let check = |expr: &str, legend: &[&str]| {
            let legend = legend.iter().map(ToString::to_string).collect();
            faults(&Query { title: "sample".into(), expr: expr.into(), legend }, metrics.descriptions())
        };
        let sound = "sum by (le, call) (rate(potluck_request_duration_seconds_bucket{call=\"get_shard\"}[1m]))";
        assert_eq!(check(sound, &["call"]), [] as [&str; 0]);
        assert_eq!(
            check("potluck_stripes{state=~\"whole|degraded\",instance=~\"$node\"}", &["state"]),
            [] as [&str; 0]
        );
        assert_eq!(check("up{job=\"potluck\"} == 0", &[]), [] as [&str; 0]);
        assert_eq!(check("potluck_dishes", &[]), ["there is no metric potluck_dishes"]);
        assert_eq!(check("potluck_request_duration_seconds", &[]).len(), 1);
        assert_eq!(check("potluck_stripes{state=\"lost\"}", &[]).len(), 1);
        assert_eq!(check("potluck_stripes{state!=\"lost\"}", &[]).len(), 1);
        assert_eq!(check("potluck_stripes{instance=~\"$node\",state=\"lost\"}", &[]).len(), 1);
        assert_eq!(check("potluck_stripes{zone=\"a\"}", &[]).len(), 1);
        assert_eq!(check("sum by (zone) (potluck_stripes)", &[]).len(), 1);
        assert_eq!(check("potluck_shards", &["state"]).len(), 1);
        assert_eq!(check("vector(1)", &[]), ["it asks for no metric"]);
    }
}
