//! Benchmarks: each is one file that makes figures, each figure a value beside its floor.
//!
//! A floor is what cannot be beaten, or the ideal, measured or computed in the same run, so that a figure means the same
//! on every machine. To add one: a file in `bench/` and a line in `BENCHES`.

mod codec;
mod files;
mod load;
mod memory;
mod putget;
pub mod quic;
mod repair;
mod ring;
mod small;
pub mod store;
mod wan;

use std::fmt::Write as _;

/// A benchmark's name and what runs it.
type Bench = (&'static str, fn(Effort) -> anyhow::Result<Vec<Figure>>);

const BENCHES: &[Bench] = &[
    ("ring", ring::run),
    ("codec", codec::run),
    ("putget", putget::run),
    ("memory", memory::run),
    ("repair", repair::run),
    ("store", store::run),
    ("small", small::run),
    ("wan", wan::run),
];

/// How much work to put into a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// As the figures to reach are stated.
    Full,
    /// Less work, more noise.
    Quick,
    /// As [`Self::Full`], but with a file of so many bytes, where there is a file.
    Bytes(u64),
}

impl Effort {
    /// The size of a benchmark's file that is `full` or `quick` bytes unless another was asked for.
    fn bytes(self, full: u64, quick: u64) -> u64 {
        match self {
            Self::Full => full,
            Self::Quick => quick,
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// One measured value.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub case: String,
    /// The value.
    pub value: f64,
    /// Its unit; empty for a plain ratio.
    pub unit: &'static str,
    /// The ideal or the bound, in the same unit, if there is one.
    pub floor: Option<f64>,
    /// What value / floor has to keep, if anything.
    pub goal: Option<Goal>,
}

/// A bound on value / floor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Figure {
    /// Value / floor.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        self.floor.map(|floor| self.value / floor)
    }

    /// Whether the goal was missed, as it is by a ratio that is no number. A figure without floor or goal misses nothing.
    #[must_use]
    pub fn missed(&self) -> bool {
        match (self.ratio(), self.goal) {
            (Some(ratio), Some(_)) if ratio.is_nan() => true,
            (Some(ratio), Some(Goal::AtMost(most))) => ratio > most,
            (Some(ratio), Some(Goal::AtLeast(least))) => ratio < least,
            _ => false,
        }
    }

    /// The figure as one JSON object; `floor` and `ratio` are null where there is no floor.
    #[must_use]
    pub fn to_json(&self, bench: &str) -> String {
        let Figure { case, value, unit, floor, .. } = self;
        let ratio = self.ratio();
        serde_json::json!({
            "bench": bench, "case": case, "value": value, "unit": unit, "floor": floor, "ratio": ratio,
        })
        .to_string()
    }
}

/// The names of all benchmarks.
#[must_use]
pub fn names() -> Vec<&'static str> {
    BENCHES.iter().map(|(name, _)| *name).collect()
}

/// Runs the benchmark called `name`.
pub fn run(name: &str, effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let bench = BENCHES.iter().find(|(known, _)| *known == name);
    let (_, run) = bench.ok_or_else(|| anyhow::anyhow!("no benchmark {name:?}; there are: {}", names().join(", ")))?;
    run(effort)
}

/// The figures as an aligned table.
#[must_use]
pub fn table(figures: &[Figure]) -> String {
    let width = figures.iter().map(|figure| figure.case.chars().count()).max().unwrap_or(0);
    let mut text = format!("{:width$}  {:>10} {:<4} {:>8} {:>8}  goal\n", "case", "value", "unit", "floor", "ratio");
    for figure in figures {
        let number = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.3}"));
        let (floor, ratio) = (number(figure.floor), number(figure.ratio()));
        let goal = match figure.goal {
            None => String::new(),
            Some(Goal::AtMost(bound)) => format!("<= {bound:.2}"),
            Some(Goal::AtLeast(bound)) => format!(">= {bound:.2}"),
        };
        let verdict = if figure.missed() { "  MISSED" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:width$}  {:>10.3} {:<4} {floor:>8} {ratio:>8}  {goal}{verdict}",
            figure.case, figure.value, figure.unit
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64, floor: Option<f64>, goal: Option<Goal>) -> Figure {
        Figure { case: "a \"case\"".into(), value, unit: "s", floor, goal }
    }

    #[test]
    fn goals_bound_the_ratio() {
        assert!(!figure(2.2, Some(2.0), Some(Goal::AtMost(1.1))).missed());
        assert!(figure(2.3, Some(2.0), Some(Goal::AtMost(1.1))).missed());
        assert!(figure(0.7, Some(2.0), Some(Goal::AtLeast(0.4))).missed());
        assert!(figure(f64::NAN, Some(2.0), Some(Goal::AtLeast(0.4))).missed());
        assert!(!figure(9.0, None, Some(Goal::AtMost(1.0))).missed());
    }

    #[test]
    fn json_has_the_six_fields() -> serde_json::Result<()> {
        let line = figure(3.0, None, None).to_json("ring");
        let read: serde_json::Value = serde_json::from_str(&line)?;
        let expected = serde_json::json!({"bench": "ring", "case": "a \"case\"", "value": 3.0, "unit": "s",
            "floor": null, "ratio": null});
        assert_eq!(read, expected);
        Ok(())
    }
}
