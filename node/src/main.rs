//! The storage daemon alone, without the client: the same commands as `potluck node`.

use std::process::ExitCode;

use clap::Parser;
use potluck_node::cli::{self, NodeCommand};

/// Potluck's storage node
#[derive(Debug, Parser)]
#[command(name = "potluck-node", version)]
struct Arguments {
    #[command(subcommand)]
    command: NodeCommand,
}

#[tokio::main]
async fn main() -> ExitCode {
    match cli::run(Arguments::parse().command).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("potluck-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}
