//! Writes to a segment store until it is killed, and says on standard output what it does: for `tests/tests/e2e_store.rs`.

use std::fs::File;
use std::os::fd::AsFd;

use clap::Parser;
use potluck_tests::store_writer::{Plan, Told, run};
use rustix::process::{Signal, set_parent_process_death_signal};

fn main() -> anyhow::Result<()> {
    // Nobody is to fill a disk whose test is gone.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let out = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    run(&Plan::parse(), Told(&out))
}
