//! What was found of a store, and what was done about it, in words and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use potluck_proto::id::StripeId;
use serde_json::{Value, json};

use super::Done;
use crate::config::human::{many, rough};
use crate::store::segments::check::{Part, Report, SegmentReport, Standing, State, StoreFile, What};
use crate::store::segments::format::Kind;

/// Damaged parts that are listed one by one.
const LISTED: usize = 40;

/// How many damaged parts there are of each sort.
#[derive(Default)]
struct Counts {
    shards: u64,
    /// Of them, those that the disk does not give.
    unreadable: u64,
    heads: u64,
    members: u64,
    sweeps: u64,
    /// Words on what became of a shard.
    said: u64,
    unknown: u64,
    repeated: u64,
    dead: u64,
    torn: u64,
    older: u64,
}

impl Counts {
    fn of(report: &Report) -> Self {
        let mut counts = Self::default();
        for (_, part) in report.parts() {
            let counted = match (part.standing, part.what) {
                (Standing::Counts, What::Record { kind, .. }) => {
                    counts.older += u64::from(part.older.is_some());
                    match kind {
                        Kind::Shard => {
                            counts.unreadable += u64::from(part.unreadable);
                            &mut counts.shards
                        }
                        Kind::Head => &mut counts.heads,
                        Kind::Member => &mut counts.members,
                        Kind::Sweep => &mut counts.sweeps,
                        _ => &mut counts.said,
                    }
                }
                (Standing::Counts | Standing::Unknown, _) => &mut counts.unknown,
                (Standing::Repeated, _) => &mut counts.repeated,
                (Standing::Dead, _) => &mut counts.dead,
                (Standing::Torn, _) => &mut counts.torn,
            };
            *counted += 1;
        }
        counts
    }
}

/// What was found, line by line, and what it means.
pub(super) fn findings(report: &Report, took: Duration) -> String {
    let bytes: u64 = report.segments.iter().map(|segment| segment.bytes).sum();
    let records: u64 = report.segments.iter().map(|segment| segment.records).sum();
    let facts = |kind| report.table.fact_keys(kind).len() as u64;
    let mut lines = vec![format!(
        "Read {}, {}, in {} s: {}; {}, {}, {}.",
        many(report.segments.len() as u64, "segment", "segments"),
        rough(bytes),
        took.as_secs(),
        many(records, "record", "records"),
        many(report.shards(), "shard", "shards"),
        many(facts(Kind::Head), "vault's heads", "vaults' heads"),
        many(facts(Kind::Member), "member", "members"),
    )];
    let mut damaged = damage_lines(report);
    if !damaged.is_empty() {
        let left_out = damaged.len().saturating_sub(LISTED);
        damaged.truncate(LISTED);
        lines.push("\nWhat does not match:".into());
        lines.extend(damaged.into_iter().map(|line| format!("- {line}")));
        if left_out > 0 {
            lines.push(format!("- and {left_out} more, which --json lists"));
        }
    }
    let meaning = meaning(report);
    if !meaning.is_empty() {
        lines.push("\nWhat it means:".into());
        lines.extend(meaning.into_iter().map(|line| format!("- {line}")));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn damage_lines(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    match &report.store_file {
        StoreFile::Sound => {}
        StoreFile::Missing => lines.push("the file \"store\", which names the store, is missing".into()),
        StoreFile::Damaged(why) | StoreFile::Unreadable(why) => {
            lines.push(format!("the file \"store\", which names the store: {why}"));
        }
    }
    for segment in &report.segments {
        let name = format!("segment {:016x}", segment.segment);
        match &segment.state {
            State::Sealed | State::Open | State::Empty => {}
            State::Foreign => lines.push(format!("{name} belongs to another store or has another's name")),
            State::Newer(why) => lines.push(format!("{name}: {why}")),
            State::Unreadable(why) => lines.push(format!("{name}: the disk does not give it: {why}")),
        }
        if segment.missing > 0 {
            let missing = many(segment.missing, "record", "records");
            lines.push(format!("{name}: of what its last block counts, {missing} cannot be found"));
        }
        lines.extend(segment.parts.iter().map(|part| {
            let place = format!("{name} at byte {} ({})", part.offset, rough(part.len));
            format!("{place}: {}: {}{}", subject(part), part.why, standing(part))
        }));
    }
    lines
}

/// What a part is, for people.
fn subject(part: &Part) -> String {
    let What::Record { kind, key, index, .. } = part.what else {
        return match part.what {
            What::First => "the segment's first block",
            What::Seal => "the segment's last block",
            _ => "records that nobody can name",
        }
        .into();
    };
    // Every id is shown so.
    let id = StripeId(key);
    match kind {
        Kind::Shard => format!("shard {index} of stripe {id}"),
        Kind::Head => format!("the heads of vault {id}"),
        Kind::Member => format!("the record of member {id}"),
        Kind::Sweep => format!("the sweep of vault {id}"),
        Kind::Delete => format!("the word that shard {index} of stripe {id} is no more"),
        Kind::Trash => format!("the word that shard {index} of stripe {id} went to the trash"),
        Kind::Restore => format!("the word that shard {index} of stripe {id} left the trash"),
        Kind::Complete => format!("the word that the stripe {id} of shard {index} is complete"),
        Kind::Padding => "padding".into(),
        Kind::Footer => "the list of the segment's records".into(),
    }
}

fn standing(part: &Part) -> String {
    match (part.standing, part.older) {
        (Standing::Counts | Standing::Unknown, None) => String::new(),
        (Standing::Counts | Standing::Unknown, Some(older)) => {
            format!(" (an older one stands in segment {:016x})", older.segment)
        }
        (Standing::Repeated, _) => " (nothing is lost by it)".into(),
        (Standing::Dead, _) => " (it counts no more)".into(),
        (Standing::Torn, _) => " (perhaps of a write that a crash cut short)".into(),
    }
}

/// What the findings mean, by sort.
fn meaning(report: &Report) -> Vec<String> {
    let counts = Counts::of(report);
    let mut lines = Vec::new();
    let mut say = |count: u64, line: String| {
        if count > 0 {
            lines.push(line);
        }
    };
    say(
        counts.shards - counts.unreadable,
        format!(
            "{} damaged. The other nodes rebuild what counts as missing here, by themselves, from the rest of its stripe \
             once this node runs again.",
            many(counts.shards - counts.unreadable, "shard is", "shards are")
        ),
    );
    say(
        counts.unreadable,
        format!(
            "{} not given by the disk. They stay, count as missing while the disk does not give them, and are tried \
             again; meanwhile the other nodes rebuild them.",
            many(counts.unreadable, "shard is", "shards are")
        ),
    );
    say(
        counts.heads,
        format!(
            "The heads of {} are damaged here. The other replicas have them, and give them back once this node runs.",
            many(counts.heads, "vault", "vaults")
        ),
    );
    say(
        counts.members,
        format!(
            "{} damaged here. Every other member has them, and gives them back once this node runs.",
            many(counts.members, "member's record is", "members' records are")
        ),
    );
    say(
        counts.sweeps,
        format!(
            "The sweeps of {} are damaged here. The other replicas have them. Until they came back nothing is deleted \
             by them.",
            many(counts.sweeps, "vault", "vaults")
        ),
    );
    say(
        counts.said,
        format!(
            "What was said of {} cannot be known: a deletion may be undone, and what is in the trash is taken for wanted. \
             Too much is kept, never too little.",
            many(counts.said, "shard", "shards")
        ),
    );
    say(
        counts.unknown,
        format!(
            "In {} nobody can say what stood there. Shards among it count as missing, and the other nodes rebuild them; \
             what is in the trash is taken for wanted. It cannot be repaired here, and goes when its segment is emptied.",
            many(counts.unknown, "place", "places")
        ),
    );
    say(
        counts.repeated,
        format!(
            "{} only what stands elsewhere too: nothing is lost. It stays as it is until its segment is emptied.",
            many(counts.repeated, "damaged part says", "damaged parts say")
        ),
    );
    let odd = |odd: fn(&State) -> bool| report.segments.iter().filter(|segment| odd(&segment.state)).count() as u64;
    let foreign = odd(|state| *state == State::Foreign);
    say(
        foreign,
        format!(
            "{} of another store, or under a wrong name: was it copied here? It is left as it is and used for nothing.",
            many(foreign, "segment is", "segments are")
        ),
    );
    let newer = odd(|state| matches!(state, State::Newer(_)));
    say(
        newer,
        format!(
            "{} written by a newer Potluck: install that again. Nothing is damaged; with this one its shards count as \
             missing.",
            many(newer, "segment was", "segments were")
        ),
    );
    let lost = odd(|state| matches!(state, State::Unreadable(_)));
    say(
        lost,
        format!(
            "{} not given by the disk at all: its shards count as missing, and the other nodes rebuild them. It stays \
             where it is.",
            many(lost, "segment is", "segments are")
        ),
    );
    say(
        u64::from(report.store_file != StoreFile::Sound),
        "The segments say too which store they are of: nothing is lost with the file \"store\", and a start writes it \
         anew."
            .into(),
    );
    say(
        counts.torn,
        format!(
            "{} end does not match. A crash leaves that of a write that was under way, and nobody was told that it was \
             done: then nothing is lost. If there was no crash, the shards there count as missing, and are rebuilt.",
            many(counts.torn, "segment's", "segments'")
        ),
    );
    say(
        counts.dead,
        format!(
            "{} count any more: nothing is lost, and the space comes back when the segment is emptied.",
            many(counts.dead, "damaged record does not", "damaged records do not")
        ),
    );
    lines
}

/// What was done, and what is to be done next.
pub(super) fn outcome(report: &Report, done: Option<&Done>, path: &Path) -> String {
    let counts = Counts::of(report);
    let mut text = String::new();
    // A string takes all that is written to it.
    let mut say = |line: &str| {
        let _ = writeln!(text, "{line}");
    };
    if let Some(done) = done {
        say("\nWhat was done:");
        let mended = &done.mended;
        let of = |count: u64| many(count, "damaged shard", "damaged shards");
        let lines = [
            (mended.given_up, format!("{} given up: the other nodes see them as missing.", of(mended.given_up))),
            (
                mended.failed,
                format!("{} could not be given up: the disk did not take the word of it.", of(mended.failed)),
            ),
            (mended.sound, format!("{} read well when asked again: left as they are.", of(mended.sound))),
            (mended.unreadable, format!("{} not given by the disk: left as they are.", of(mended.unreadable))),
            (u64::from(mended.named), "The file \"store\" was written anew.".into()),
            (u64::from(done.index_removed), "The index was removed: the next start makes it anew.".into()),
        ];
        let before = lines.iter().filter(|(count, _)| *count > 0).map(|(_, line)| say(&format!("- {line}"))).count();
        if before == 0 {
            say("- Nothing: there was nothing to do.");
        }
    }
    if report.is_sound() {
        say("\nThe store is sound.");
        return text;
    }
    let data = path.display();
    say("\nWhat to do next:");
    let mendable = counts.shards > counts.unreadable || report.store_file != StoreFile::Sound;
    if done.is_none() && mendable {
        say(&format!(
            "- 'potluck node fsck --repair {data}' gives damaged shards up at once. Without it they are found one by one, \
             when they are read."
        ));
    }
    say("- Start the node, and keep it running: 'potluck cluster status' says when all is safe again.");
    say(
        "- Damage that no crash explains comes from the disk, its cable or memory: look at its health (smartctl -a, dmesg). \
         If it goes on, let the node leave ('potluck node leave') and set it up anew on another disk.",
    );
    text
}

fn part_json(segment: &SegmentReport, part: &Part) -> Value {
    let (key, index) = match part.what {
        What::Record { kind, key, index, .. } if !matches!(kind, Kind::Padding | Kind::Footer) => {
            (Some(StripeId(key).to_string()), Some(index))
        }
        _ => (None, None),
    };
    let standing = match part.standing {
        Standing::Counts => "counts",
        Standing::Unknown => "unknown",
        Standing::Repeated => "repeated",
        Standing::Dead => "dead",
        Standing::Torn => "torn",
    };
    let what = match part.what {
        What::First => "first block".into(),
        What::Seal => "last block".into(),
        What::Unknown => "unknown".into(),
        What::Record { kind, .. } => format!("{kind:?}").to_lowercase(),
    };
    json!({
        "segment": format!("{:016x}", segment.segment),
        "offset": part.offset,
        "bytes": part.len,
        "what": what,
        "key": key,
        "index": index,
        "why": part.why,
        "unreadable": part.unreadable,
        "standing": standing,
        "older_in": part.older.map(|older| format!("{:016x}", older.segment)),
    })
}

/// The same for programs.
pub(super) fn json(report: &Report, done: Option<&Done>) -> Value {
    let counts = Counts::of(report);
    let segments = report.segments.iter().map(|segment| {
        let (state, why) = match &segment.state {
            State::Sealed => ("sealed", None),
            State::Open => ("open", None),
            State::Empty => ("empty", None),
            State::Foreign => ("foreign", None),
            State::Newer(why) => ("newer", Some(why)),
            State::Unreadable(why) => ("unreadable", Some(why)),
        };
        json!({
            "segment": format!("{:016x}", segment.segment),
            "bytes": segment.bytes,
            "records": segment.records,
            "missing": segment.missing,
            "state": state,
            "why": why,
            "damaged": segment.parts.iter().map(|part| part_json(segment, part)).collect::<Vec<_>>(),
        })
    });
    let kinds: BTreeMap<String, u64> =
        report.kinds.iter().map(|(kind, count)| (format!("{kind:?}").to_lowercase(), *count)).collect();
    let done = done.map(|done| {
        json!({
            "given_up": done.mended.given_up,
            "failed": done.mended.failed,
            "sound": done.mended.sound,
            "unreadable": done.mended.unreadable,
            "store_file_written": done.mended.named,
            "index_removed": done.index_removed,
        })
    });
    json!({
        "sound": report.is_sound(),
        "store_file": match &report.store_file {
            StoreFile::Sound => "sound".into(),
            StoreFile::Missing => "missing".into(),
            StoreFile::Damaged(why) | StoreFile::Unreadable(why) => why.clone(),
        },
        "shards": report.shards(),
        "records": kinds,
        "damaged_shards": counts.shards,
        "damaged_heads": counts.heads,
        "damaged_members": counts.members,
        "damaged_sweeps": counts.sweeps,
        "unknown_parts": counts.unknown,
        "torn_parts": counts.torn,
        "dead_parts": counts.dead,
        "with_older_copy": counts.older,
        "segments": segments.collect::<Vec<_>>(),
        "repair": done,
    })
}
