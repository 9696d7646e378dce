//! A store of many records opened again: after it was closed, after its process was killed, and without its index; and the
//! memory that it takes.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use potluck_node::store::segments::disk::INDEX_FOLDER;

use super::child::{CHILD, Said, source};
use super::lanes::median;
use super::{Figure, Goal, SEGMENTS, in_folder};

/// How often a store is opened in each way.
const ROUNDS: usize = 3;

/// Most seconds until a store of a million records serves: closed before, killed, and without its index.
const SECONDS: [f64; 3] = [1.5, 3.0, 20.0];

/// Most bytes of memory per record.
const MEMORY: f64 = 120.0;

pub(super) fn run(below: &Path, quick: bool) -> Result<Vec<Figure>> {
    let records: usize = if quick { 50_000 } else { 1_000_000 };
    in_folder(below, |folder| {
        let n = source()?.n();
        let stripes = records / n;
        let filled = spoken(folder, "fill", 0, stripes)?;
        let mut memory = Vec::new();
        let mut seconds: [Vec<f64>; 3] = Default::default();
        for _ in 0..ROUNDS {
            let said = spoken(folder, "open", 0, stripes)?;
            seconds[0].push(said.seconds);
            memory.push(said.memory / records as f64);
        }
        for _ in 0..ROUNDS {
            match std::fs::remove_dir_all(folder.join(SEGMENTS).join(INDEX_FOLDER)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
            seconds[2].push(spoken(folder, "open", 0, stripes)?.seconds);
        }
        for round in 1..=ROUNDS {
            // A tenth more, so that there is something in the segment that is not sealed; and others each time, as the
            // process goes on until it is killed.
            let from = round * records;
            let to = from + stripes / 10;
            let mut child = start(folder, "fill-on", from, to)?;
            let said = listen(&mut child);
            child.kill()?;
            child.wait()?;
            said?;
            seconds[1].push(spoken(folder, "open", from, to)?.seconds);
        }
        let bound = |case: &str, value, unit, floor| Figure {
            case: case.into(),
            value,
            unit,
            floor: Some(floor),
            // What is small is not what the bound is for.
            goal: (!quick).then_some(Goal::AtMost(1.0)),
        };
        let [clean, killed, deleted] = seconds.map(median);
        Ok(vec![
            bound("serving again, clean", clean, "s", SECONDS[0]),
            bound("serving again, killed", killed, "s", SECONDS[1]),
            bound("serving again, index deleted", deleted, "s", SECONDS[2]),
            bound("memory per million records, opened", median(memory), "MB", MEMORY),
            bound("memory per million records, put", filled.memory / records as f64, "MB", MEMORY),
        ])
    })
}

/// Starts the other process.
fn start(folder: &Path, what: &str, from: usize, to: usize) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([CHILD, what]).arg(folder).args([from.to_string(), to.to_string()]);
    Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?)
}

/// Waits for the line that it says.
fn listen(child: &mut Child) -> Result<Said> {
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
    Said::parse(&line)
}

/// Runs it to its end.
fn spoken(folder: &Path, what: &str, from: usize, to: usize) -> Result<Said> {
    let mut child = start(folder, what, from, to)?;
    let said = listen(&mut child);
    ensure!(child.wait()?.success(), "the other process failed");
    said
}
