//! The one command for every benchmark; `tests/bench` builds and runs it.

use std::process::ExitCode;

use clap::Parser;
use potluck_tests::bench::{self, Effort};

/// Measures one part of Potluck beside its floor.
#[derive(Parser)]
#[command(name = "tests/bench")]
struct Arguments {
    /// Which benchmark.
    #[arg(value_parser = bench::names())]
    name: String,
    /// Less work and more noise: does it run, and is the order of magnitude right?
    #[arg(long)]
    quick: bool,
    /// One JSON object a line in place of the table.
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let effort = if arguments.quick { Effort::Quick } else { Effort::Full };
    let figures = bench::run(&arguments.name, effort)?;
    if arguments.json {
        figures.iter().for_each(|figure| println!("{}", figure.to_json(&arguments.name)));
    } else {
        print!("{}", bench::table(&figures));
    }
    let missed = figures.iter().any(bench::Figure::missed);
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
