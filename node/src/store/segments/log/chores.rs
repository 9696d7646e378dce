//! What is done beside the writing: full segments are sealed, and the next one is made before it is needed.
//!
//! Neither is waited for by a put, nor is a put told of what goes wrong here: a segment that is not sealed is read whole by
//! the next start, and one that was not made is made when it is needed. One that was made and not needed holds nothing, and
//! is removed.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

use super::{Active, Log, lock, segment_name};

/// Full segments that may wait to be sealed; then the writer does it, and everyone waits.
const SEALS: usize = 4;

#[derive(Default)]
enum Spare {
    #[default]
    None,
    /// It is to be made, or just being made.
    Wanted(u64),
    Ready(Active),
}

#[derive(Default)]
struct List {
    full: VecDeque<Active>,
    spare: Spare,
    /// A thread does what is listed.
    open: bool,
    closed: bool,
}

/// What is to be done, and what was.
#[derive(Default)]
pub(super) struct Chores {
    list: Mutex<List>,
    changed: Condvar,
}

impl Chores {
    /// Has a full segment sealed; gives it back if nobody does it.
    pub(super) fn seal(&self, full: Active) -> Option<Active> {
        let mut list = lock(&self.list);
        if !list.open || list.full.len() >= SEALS {
            return Some(full);
        }
        list.full.push_back(full);
        self.changed.notify_all();
        None
    }

    /// Has a segment made of the next number, unless there is one, nobody does it, or it may not be.
    pub(super) fn want(&self, next_segment: &mut u64, may: impl FnOnce() -> bool) {
        let mut list = lock(&self.list);
        if list.open && matches!(list.spare, Spare::None) && may() {
            list.spare = Spare::Wanted(*next_segment);
            *next_segment += 1;
            self.changed.notify_all();
        }
    }

    /// The segment that was made, if one was; one that is being made is waited for, since those of a later number must
    /// come later.
    pub(super) fn ready(&self) -> Option<Active> {
        let mut list = lock(&self.list);
        while list.open && matches!(list.spare, Spare::Wanted(_)) {
            list = self.changed.wait(list).unwrap_or_else(PoisonError::into_inner);
        }
        match std::mem::take(&mut list.spare) {
            Spare::Ready(active) => Some(active),
            Spare::None | Spare::Wanted(_) => None,
        }
    }

    /// Whether a thread does what is listed.
    #[cfg(test)]
    pub(super) fn is_open(&self) -> bool {
        lock(&self.list).open
    }

    /// What is listed is done, nothing more.
    pub(super) fn close(&self) {
        lock(&self.list).closed = true;
        self.changed.notify_all();
    }
}

impl Log {
    /// Does what is listed until the list is closed.
    pub(super) fn do_chores(&self) {
        /// Nobody is to wait for a thread that is gone.
        struct Leaving<'a>(&'a Chores);
        impl Drop for Leaving<'_> {
            fn drop(&mut self) {
                lock(&self.0.list).open = false;
                self.0.changed.notify_all();
            }
        }
        let _leaving = Leaving(&self.chores);
        let mut list = lock(&self.chores.list);
        list.open = true;
        loop {
            // What is waited for comes first.
            if let (Spare::Wanted(segment), false) = (&list.spare, list.closed) {
                let segment = *segment;
                drop(list);
                let made = self.make(segment, self.segment_bytes);
                if let Err(error) = &made {
                    tracing::debug!(%error, segment, "a segment could not be made ahead");
                }
                list = lock(&self.chores.list);
                list.spare = made.map_or(Spare::None, Spare::Ready);
                self.chores.changed.notify_all();
            } else if let Some(full) = list.full.pop_front() {
                drop(list);
                self.seal(full);
                list = lock(&self.chores.list);
            } else if list.closed {
                break;
            } else {
                list = self.chores.changed.wait(list).unwrap_or_else(PoisonError::into_inner);
            }
        }
        if let Spare::Ready(spare) = std::mem::take(&mut list.spare)
            && let Err(error) = self.disk.unlink(&segment_name(spare.segment))
        {
            tracing::debug!(%error, "an empty segment is left to the next start");
        }
    }
}
