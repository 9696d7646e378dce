//! Who writes of what: one at a time of each shard, head or sweep, as many as there are of others.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};

use super::format::Kind;
use super::log::lock;

/// What a record is about: its kind, a shard's for all that is said of one, its key and its index.
pub(super) type Name = (Kind, [u8; 32], usize);

/// Locks among which names are divided by their keys.
const PARTS: usize = 16;

/// Names of which someone writes.
#[derive(Default)]
pub(super) struct Busy([Part; PARTS]);

#[derive(Default)]
struct Part {
    names: Mutex<Names>,
    freed: Condvar,
}

#[derive(Default)]
struct Names {
    held: BTreeSet<Name>,
    waiting: usize,
}

/// One name, for one who writes of it.
pub(super) struct Claim<'a> {
    part: &'a Part,
    name: Name,
}

impl Busy {
    fn part(&self, name: &Name) -> &Part {
        &self.0[usize::from(name.1[0]) % PARTS]
    }

    /// Waits until nobody else writes of it.
    pub(super) fn claim(&self, name: Name) -> Claim<'_> {
        let part = self.part(&name);
        let mut names = lock(&part.names);
        while !names.held.insert(name) {
            names.waiting += 1;
            names = part.freed.wait(names).unwrap_or_else(PoisonError::into_inner);
            names.waiting -= 1;
        }
        drop(names);
        Claim { part, name }
    }

    /// The name, unless someone else writes of it.
    pub(super) fn try_claim(&self, name: Name) -> Option<Claim<'_>> {
        let part = self.part(&name);
        // A claim that is made and dropped would free what another holds.
        if lock(&part.names).held.insert(name) { Some(Claim { part, name }) } else { None }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut names = lock(&self.part.names);
        names.held.remove(&self.name);
        // Most often nobody waits, and waking nobody costs a call of the system all the same.
        if names.waiting > 0 {
            self.part.freed.notify_all();
        }
    }
}
