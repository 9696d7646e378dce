//! The one command for every benchmark; `tests/bench` builds and runs it.

use std::process::ExitCode;

use clap::Parser;
use potluck_node::config::human::ByteSize;
use potluck_tests::bench::{self, Effort, quic, store};

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
    /// Another size of the file, where there is one, e.g. 256MiB
    #[arg(long, conflicts_with = "quick")]
    size: Option<ByteSize>,
    /// One JSON object a line in place of the table.
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    // The other end of a measurement: this program, started by itself.
    let all: Vec<String> = std::env::args().skip(1).collect();
    match all.first().map(String::as_str) {
        Some(quic::PEER) => {
            quic::peer()?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(store::child::CHILD) => {
            store::child::main(&all[1..])?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let arguments = Arguments::parse();
    let effort = match arguments.size {
        Some(size) => Effort::Bytes(size.0),
        None if arguments.quick => Effort::Quick,
        None => Effort::Full,
    };
    let figures = bench::run(&arguments.name, effort)?;
    if arguments.json {
        figures.iter().for_each(|figure| println!("{}", figure.to_json(&arguments.name)));
    } else {
        print!("{}", bench::table(&figures));
    }
    let missed = figures.iter().any(bench::Figure::missed);
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
