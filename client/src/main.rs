//! The binary `potluck`: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    potluck::cli::main()
}
