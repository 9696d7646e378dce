//! `potluck cluster status`: the nodes, and in plain words whether the data is safe.

use clap::{Args, Subcommand};
use owo_colors::Style;
use potluck_proto::member::Standing;
use potluck_proto::wire::StatusReply;
use serde_json::json;

use super::context::Context;
use super::human;
use super::meter::Meter;
use super::options::Options;
use super::table::{Cell, Table};
use crate::cluster::NodeStatus;

/// A survey older than this says little; nodes make one a minute, or as they are told.
const SURVEY_OLD_MS: u64 = 10 * 60_000;

/// What one does with a cluster.
#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Show every node, and whether the data is safe
    Status(StatusOptions),
}

/// Options of `status`.
#[derive(Debug, Args)]
pub(super) struct StatusOptions {
    #[command(flatten)]
    options: Options,
}

impl ClusterCommand {
    pub(super) fn options(&self) -> &Options {
        match self {
            Self::Status(status) => &status.options,
        }
    }
}

pub(super) async fn run(context: &Context<'_>, command: ClusterCommand) -> anyhow::Result<u8> {
    match command {
        ClusterCommand::Status(_) => status(context).await,
    }
}

/// Stripes by condition, summed over the nodes that answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stripes {
    whole: u64,
    degraded: u64,
    at_risk: u64,
    unreadable: u64,
    unconfirmed: u64,
    malformed: u64,
    unknown: u64,
    /// Members, whether they answered or not.
    members: u64,
    /// Members that did not answer.
    silent: u64,
    /// Nodes whose count is missing, old, or from before nodes came up.
    unsurveyed: u64,
    /// Shards that the nodes hold.
    shards: u64,
}

/// How good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Safe,
    Repairing,
    AtRisk,
    Unreadable,
    NotYetKnown,
}

impl Stripes {
    pub(crate) fn sum<'a>(answers: impl IntoIterator<Item = Option<&'a StatusReply>>) -> Self {
        let answers: Vec<Option<&StatusReply>> = answers.into_iter().collect();
        let heard: Vec<&StatusReply> = answers.iter().flatten().copied().collect();
        // A survey from before a node came up, or from before it was noticed, is of another ring.
        let youngest_ms = heard.iter().map(|status| status.uptime_ms).min().unwrap_or(0);
        let unnoticed = |status: &StatusReply| {
            heard.iter().any(|other| other.node != status.node && !status.up.contains(&other.node))
        };
        let mut sum = Self { members: answers.len() as u64, ..Self::default() };
        sum.silent = (answers.len() - heard.len()) as u64;
        for status in &heard {
            sum.whole += status.stripes_whole;
            sum.degraded += status.stripes_degraded;
            sum.at_risk += status.stripes_at_risk;
            sum.unreadable += status.stripes_unreadable;
            sum.unconfirmed += status.stripes_unconfirmed;
            sum.malformed += status.stripes_malformed;
            sum.unknown += status.stripes_unknown;
            sum.shards += status.shards;
            // The age of a survey that never was is the largest number there is.
            let old = status.survey_age_ms > SURVEY_OLD_MS || status.survey_age_ms > youngest_ms;
            sum.unsurveyed += u64::from(old || unnoticed(status));
        }
        sum
    }

    pub(crate) fn verdict(&self) -> Verdict {
        if self.unreadable > 0 {
            Verdict::Unreadable
        } else if self.at_risk > 0 {
            Verdict::AtRisk
        } else if self.silent > 0 || self.unsurveyed > 0 || self.unknown > 0 || (self.total() == 0 && self.shards > 0) {
            Verdict::NotYetKnown
        } else if self.degraded > 0 {
            Verdict::Repairing
        } else {
            Verdict::Safe
        }
    }

    /// In plain words.
    pub(crate) fn sentence(&self) -> String {
        match self.verdict() {
            Verdict::Safe if self.total() == 0 => "Nothing is stored yet.".into(),
            Verdict::Safe => format!("Yes: all {} have all their shards.", human::count(self.whole, "stripe")),
            Verdict::Repairing => format!("Yes, with less to spare: {} and are being repaired.", self.lacking()),
            Verdict::AtRisk => format!(
                "At risk: {} can hardly bear another loss. Bring nodes back, or add some.{}",
                human::count(self.at_risk, "stripe"),
                self.missing()
            ),
            Verdict::Unreadable => format!(
                "NO: {} cannot be read with the nodes that are up. Bring nodes back.{}",
                human::count(self.unreadable, "stripe"),
                self.missing()
            ),
            Verdict::NotYetKnown => format!("Not known yet: {}", self.doubt()),
        }
    }

    /// Why there is no verdict, and what to do.
    fn doubt(&self) -> String {
        let so_far = match (self.total(), self.degraded) {
            (0, _) => String::new(),
            (total, 0) => format!(" Of {} that others report, none lacks shards.", human::count(total, "stripe")),
            _ => format!(" Of those that others report, {}.", self.lacking()),
        };
        match (self.silent, self.unsurveyed) {
            (0, 0) => "nodes are still looking through their stripes. Ask again in a minute.".into(),
            (0, late) => format!(
                "{} not looked through {} stripes since nodes came or went. Ask again in a minute.",
                if late == 1 { "1 node has".into() } else { format!("{late} nodes have") },
                if late == 1 { "its" } else { "their" },
            ),
            _ => format!(
                "{}{so_far} Bring the silent back, or declare them lost ('potluck node lost').",
                self.missing().trim_start()
            ),
        }
    }

    /// That some lack shards.
    fn lacking(&self) -> String {
        let verb = if self.degraded == 1 { "lacks" } else { "lack" };
        format!("{} of {} {verb} shards", self.degraded, human::count(self.total(), "stripe"))
    }

    /// Whose reports are missing from the sums; empty if nobody's.
    fn missing(&self) -> String {
        match self.silent {
            0 => String::new(),
            1 => format!(" 1 of {} does not answer: its stripes are not counted.", human::count(self.members, "node")),
            silent => {
                let nodes = human::count(self.members, "node");
                format!(" {silent} of {nodes} do not answer: their stripes are not counted.")
            }
        }
    }

    fn total(&self) -> u64 {
        self.whole + self.degraded + self.at_risk + self.unreadable
    }
}

impl Verdict {
    pub(crate) fn style(self) -> Style {
        match self {
            Self::Safe => Style::new().green().bold(),
            Self::Repairing | Self::NotYetKnown => Style::new().yellow().bold(),
            Self::AtRisk | Self::Unreadable => Style::new().red().bold(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Repairing => "repairing",
            Self::AtRisk => "at risk",
            Self::Unreadable => "unreadable",
            Self::NotYetKnown => "not yet known",
        }
    }
}

/// A member's answer; `None` of one that does not answer. Those that have gone are left out.
fn answers(nodes: &[NodeStatus]) -> impl Iterator<Item = Option<&StatusReply>> {
    nodes.iter().filter_map(|node| Some(node.answer.as_ref()?.as_ref().ok()))
}

async fn status(context: &Context<'_>) -> anyhow::Result<u8> {
    let session = context.open().await?;
    let meter = Meter::things(context.screen, "asking the nodes", 0);
    session.cluster().refresh().await.map_err(crate::session::SessionError::from)?;
    let mut nodes = session.cluster().status().await;
    drop(meter);
    nodes.sort_by(|left, right| (left.record.cert.zone(), left.node).cmp(&(right.record.cert.zone(), right.node)));
    let stripes = Stripes::sum(answers(&nodes));
    let screen = context.screen;
    if screen.json {
        for node in &nodes {
            screen.object(&node_object(node))?;
        }
        screen.object(&json!({
            "cluster": session.cluster_id().to_string(),
            "verdict": stripes.verdict().name(),
            "stripes": {
                "whole": stripes.whole,
                "degraded": stripes.degraded,
                "at_risk": stripes.at_risk,
                "unreadable": stripes.unreadable,
                "unconfirmed": stripes.unconfirmed,
                "malformed": stripes.malformed,
                "unknown": stripes.unknown,
            },
            "nodes": stripes.members,
            "nodes_silent": stripes.silent,
            "nodes_unsurveyed": stripes.unsurveyed,
        }))?;
        session.close().await;
        return Ok(0);
    }
    let mut table = Table::new(0, &[3, 4, 5]);
    table.head(&["node", "zone", "state", "used", "of", "shards", "version"]);
    for node in &nodes {
        table.row(row(node));
    }
    screen.line(table.render(screen))?;
    let counts = [
        (stripes.whole, "whole"),
        (stripes.degraded, "degraded"),
        (stripes.at_risk, "at risk"),
        (stripes.unreadable, "unreadable"),
        (stripes.unconfirmed, "unconfirmed (uploads that were cut off)"),
        (stripes.malformed, "malformed"),
        (stripes.unknown, "not looked at yet"),
    ];
    let mut counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    if stripes.silent > 0 {
        counts.push(format!("those of {} not known", human::count(stripes.silent, "node")));
    }
    let mut facts = Table::new(0, &[]);
    facts.fact("cluster", session.cluster_id().to_string());
    facts.fact("stripes", if counts.is_empty() { "none".into() } else { counts.join(", ") });
    facts.fact("safe?", Cell::styled(stripes.sentence(), stripes.verdict().style()));
    screen.line("")?;
    screen.line(facts.render(screen))?;
    session.close().await;
    Ok(0)
}

fn state_of(node: &NodeStatus) -> (&'static str, Style) {
    match (node.standing, &node.answer) {
        (Standing::Left, _) => ("left", Style::new().dimmed()),
        (Standing::Lost, _) => ("lost", Style::new().red()),
        (Standing::Evicted, _) => ("evicted", Style::new().dimmed()),
        (Standing::Member, Some(Ok(status))) if status.leaving => ("leaving", Style::new().yellow()),
        (Standing::Member, Some(Ok(status))) if status.full => ("up, full", Style::new().yellow()),
        (Standing::Member, Some(Ok(_))) => ("up", Style::new().green()),
        (Standing::Member, _) => ("down", Style::new().red().bold()),
    }
}

fn row(node: &NodeStatus) -> Vec<Cell> {
    let (state, style) = state_of(node);
    let mut cells: Vec<Cell> =
        vec![node.node.short().into(), node.record.cert.zone().into(), Cell::styled(state, style)];
    if let Some(Ok(status)) = &node.answer {
        cells.extend([
            human::size(status.used).into(),
            human::size(status.capacity).into(),
            status.shards.to_string().into(),
            human::name(status.software.as_bytes()).into(),
        ]);
    }
    cells
}

fn node_object(node: &NodeStatus) -> serde_json::Value {
    let mut value = json!({
        "node": node.node.to_string(),
        "zone": node.record.cert.zone(),
        "state": state_of(node).0,
        "addresses": node.record.addresses,
    });
    match &node.answer {
        Some(Ok(status)) => {
            value["used_bytes"] = status.used.into();
            value["capacity_bytes"] = status.capacity.into();
            value["shards"] = status.shards.into();
            value["software"] = status.software.clone().into();
            value["uptime_ms"] = status.uptime_ms.into();
            value["repaired_bytes"] = status.repaired_bytes.into();
            value["corrupt_shards"] = status.corrupt_shards.into();
        }
        Some(Err(error)) => value["error"] = error.to_string().into(),
        None => {}
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(whole: u64, degraded: u64, at_risk: u64, unreadable: u64) -> StatusReply {
        StatusReply {
            stripes_whole: whole,
            stripes_degraded: degraded,
            stripes_at_risk: at_risk,
            stripes_unreadable: unreadable,
            ..StatusReply::default()
        }
    }

    #[test]
    fn the_worst_stripe_gives_the_verdict() {
        let verdict = |nodes: &[StatusReply]| Stripes::sum(nodes.iter().map(Some)).verdict();
        assert_eq!(verdict(&[node(5, 0, 0, 0), node(3, 0, 0, 0)]), Verdict::Safe);
        assert_eq!(verdict(&[node(5, 0, 0, 0), node(3, 1, 0, 0)]), Verdict::Repairing);
        assert_eq!(verdict(&[node(5, 1, 1, 0)]), Verdict::AtRisk);
        assert_eq!(verdict(&[node(5, 1, 1, 1)]), Verdict::Unreadable);
        let fresh = StatusReply { shards: 4, ..node(0, 0, 0, 0) };
        assert_eq!(verdict(&[fresh]), Verdict::NotYetKnown, "shards came after the last survey");
        let never = StatusReply { survey_age_ms: u64::MAX, ..node(0, 0, 0, 0) };
        assert_eq!(verdict(&[node(5, 0, 0, 0), never]), Verdict::NotYetKnown);
    }

    #[test]
    fn sentences_name_numbers_and_silent_nodes() {
        let one = node(5, 0, 0, 0);
        let sum = Stripes::sum([Some(&one)]);
        assert_eq!(sum.sentence(), "Yes: all 5 stripes have all their shards.");
        let two = node(4, 2, 0, 0);
        let text = Stripes::sum([Some(&two)]).sentence();
        assert_eq!(text, "Yes, with less to spare: 2 of 6 stripes lack shards and are being repaired.");
        let risky = node(4, 0, 2, 0);
        let text = Stripes::sum([Some(&risky), None, None]).sentence();
        assert!(text.ends_with("2 of 3 nodes do not answer: their stripes are not counted."), "{text}");
    }

    #[test]
    fn nobody_is_told_yes_while_a_node_is_unheard_or_has_not_looked_again() {
        for heard in [node(5, 0, 0, 0), node(4, 2, 0, 0), node(0, 0, 0, 0)] {
            let sum = Stripes::sum([Some(&heard), None]);
            assert_eq!(sum.verdict(), Verdict::NotYetKnown);
            let text = sum.sentence();
            assert!(text.starts_with("Not known yet: 1 of 2 nodes does not answer: its stripes are not"), "{text}");
        }
        // One has come up after the other's last survey.
        let named = |name: &'static [u8], up: &[&'static [u8]], uptime_ms, survey_age_ms| StatusReply {
            node: name.into(),
            up: up.iter().map(|name| (*name).into()).collect(),
            uptime_ms,
            survey_age_ms,
            ..node(5, 0, 0, 0)
        };
        let verdict = |one: StatusReply, two: StatusReply| Stripes::sum([Some(&one), Some(&two)]).verdict();
        let fresh = || named(b"b", &[b"a"], 9_000, 8_000);
        assert_eq!(verdict(named(b"a", &[b"b"], 900_000, 7_000), fresh()), Verdict::Safe);
        assert_eq!(verdict(named(b"a", &[b"b"], 900_000, 20_000), fresh()), Verdict::NotYetKnown);
        assert_eq!(verdict(named(b"a", &[], 900_000, 7_000), fresh()), Verdict::NotYetKnown, "not noticed yet");
        let sum = Stripes::sum([Some(&named(b"a", &[], 900_000, 7_000)), Some(&fresh())]);
        assert!(sum.sentence().contains("1 node has not looked through its stripes"), "{}", sum.sentence());
    }
}
