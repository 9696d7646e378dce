//! A disk in memory that fails as disks do, for tests and the simulation.
//!
//! It keeps apart what was written and what was synced. A crash keeps any subset of what was written and not synced, in
//! any order, torn at sectors of 512 bytes; names that were not synced may be kept or lost as well. Writes, reads and
//! syncs can fail, also after a part was done; a sync that failed may have lost bytes for good although the next one
//! succeeds; bits flip, and blocks are written to wrong places. Everything follows from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use potluck_proto::buffers::Pool;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Disk, DiskFile, Space};
use crate::store::segments::format::BLOCK;

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;

/// How often what fails, each a chance between 0 and 1 per call.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// A write fails, after any part of it was done.
    pub write: f64,
    /// A read fails.
    pub read: f64,
    /// A sync of a file fails: what it was to make last is in part lost for good.
    pub sync: f64,
    /// Making, renaming or removing a name fails, or syncing the folder.
    pub names: f64,
    /// A bit of what is written is another on the disk.
    pub flip: f64,
    /// A write lands at another block of the same file.
    pub misdirect: f64,
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone)]
pub struct FaultyDisk {
    state: Arc<Mutex<State>>,
    pool: Pool,
}

struct State {
    rng: StdRng,
    faults: Faults,
    capacity: u64,
    files: BTreeMap<u64, Contents>,
    next_file: u64,
    /// Names as programs see them, and as a crash would leave them at the least.
    names: BTreeMap<String, u64>,
    synced_names: BTreeMap<String, u64>,
    changes: Vec<Change>,
    /// Counts crashes: files opened before one are of no use after it.
    life: u64,
    dead: bool,
    /// Syncs of files and folders since the beginning.
    syncs: u64,
    crash_at: Option<u64>,
    /// Whether bytes were changed behind the writer's back.
    corrupted: bool,
}

#[derive(Default)]
struct Contents {
    /// Handles of it.
    open: u32,
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

enum Pending {
    Write { offset: usize, bytes: Vec<u8> },
    Len(usize),
}

enum Change {
    Link(String, u64),
    Unlink(String),
    Rename(String, String),
}

struct FaultyFile {
    disk: FaultyDisk,
    number: u64,
    life: u64,
}

fn failed() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

fn full() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

fn no_such_file() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

fn put(bytes: &mut Vec<u8>, offset: usize, new: &[u8]) {
    if bytes.len() < offset + new.len() {
        bytes.resize(offset + new.len(), 0);
    }
    bytes[offset..offset + new.len()].copy_from_slice(new);
}

impl Contents {
    fn keep(&mut self, pending: &Pending) {
        match pending {
            Pending::Write { offset, bytes } => put(&mut self.durable, *offset, bytes),
            Pending::Len(len) => self.durable.resize(*len, 0),
        }
    }
}

impl FaultyDisk {
    /// An empty disk of `capacity` bytes.
    #[must_use]
    pub fn new(seed: u64, capacity: u64, faults: Faults) -> Self {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            faults,
            capacity,
            files: BTreeMap::new(),
            next_file: 0,
            names: BTreeMap::new(),
            synced_names: BTreeMap::new(),
            changes: Vec::new(),
            life: 0,
            dead: false,
            syncs: 0,
            crash_at: None,
            corrupted: false,
        };
        Self { state: Arc::new(Mutex::new(state)), pool: Pool::new(4 << 20) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What fails from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// What fails now.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.state().faults
    }

    /// Syncs so far, of files and of the folder.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// The power fails at sync number `at`, counted from the beginning, before or after it was done. Nothing works from
    /// then on until [`FaultyDisk::crash`].
    pub fn crash_at(&self, at: u64) {
        self.state().crash_at = Some(at);
    }

    /// Whether the power has failed.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// Whether bits flipped or writes went astray since the beginning.
    #[must_use]
    pub fn is_corrupted(&self) -> bool {
        self.state().corrupted
    }

    /// Sixteen bytes of the disk's randomness.
    #[must_use]
    pub fn random(&self) -> [u8; 16] {
        self.state().rng.random()
    }

    /// A disk with the same files, as this one would be after a crash now that loses all it may.
    #[must_use]
    pub fn copy(&self) -> Self {
        let mut state = self.state();
        let copied = |contents: &Contents| Contents {
            open: 0,
            live: contents.durable.clone(),
            durable: contents.durable.clone(),
            pending: Vec::new(),
        };
        let copy = State {
            rng: StdRng::seed_from_u64(state.rng.random()),
            faults: state.faults,
            capacity: state.capacity,
            next_file: state.next_file,
            files: state.files.iter().map(|(number, contents)| (*number, copied(contents))).collect(),
            names: state.synced_names.clone(),
            synced_names: state.synced_names.clone(),
            changes: Vec::new(),
            life: state.life,
            dead: false,
            syncs: 0,
            crash_at: None,
            corrupted: state.corrupted,
        };
        Self { state: Arc::new(Mutex::new(copy)), pool: self.pool.clone() }
    }

    /// Changes a byte of a file, on the disk itself. False if there is no such byte.
    pub fn damage(&self, name: &str, offset: u64) -> bool {
        let mut state = self.state();
        let state = &mut *state;
        let Some(contents) = state.names.get(name).and_then(|number| state.files.get_mut(number)) else { return false };
        let at = offset as usize;
        let (Some(live), Some(durable)) = (contents.live.get_mut(at), contents.durable.get_mut(at)) else {
            return false;
        };
        *live ^= 0x40;
        *durable ^= 0x40;
        state.corrupted = true;
        true
    }

    /// Whether a file of that name can be seen.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.state().names.contains_key(name)
    }

    /// The power fails and comes back: of what was not synced any part is there.
    pub fn crash(&self) {
        let mut state = self.state();
        let state = &mut *state;
        // All, nothing, and anything between them are as likely.
        let chance = [0.0, 1.0, 0.5, 0.1, 0.9][state.rng.random_range(0..5)];
        for contents in state.files.values_mut() {
            let mut pieces = Vec::new();
            for pending in contents.pending.drain(..) {
                match pending {
                    Pending::Write { offset, bytes } => {
                        let sectors = bytes.chunks(SECTOR).enumerate();
                        pieces.extend(sectors.map(|(number, sector)| Pending::Write {
                            offset: offset + number * SECTOR,
                            bytes: sector.to_vec(),
                        }));
                    }
                    len => pieces.push(len),
                }
            }
            for last in (1..pieces.len()).rev() {
                // Most often in order; a write of the same place may also come to rest under an older one.
                if state.rng.random_bool(0.5) {
                    pieces.swap(last, state.rng.random_range(0..=last));
                }
            }
            for piece in pieces {
                if state.rng.random_bool(chance) {
                    contents.keep(&piece);
                }
            }
            contents.live = contents.durable.clone();
        }
        let mut names = std::mem::take(&mut state.synced_names);
        for change in state.changes.drain(..) {
            if state.rng.random_bool(chance) {
                apply(&mut names, change);
            }
        }
        state.names = names.clone();
        state.synced_names = names;
        let named: BTreeSet<u64> = state.names.values().copied().collect();
        state.files.retain(|number, _| named.contains(number));
        state.files.values_mut().for_each(|contents| contents.open = 0);
        state.life += 1;
        (state.dead, state.crash_at) = (false, None);
    }

    /// Flips a bit of a file that has bytes, on the disk itself.
    pub fn flip_a_bit(&self) {
        let mut state = self.state();
        let state = &mut *state;
        let named: Vec<u64> = state.names.values().copied().collect();
        if named.is_empty() {
            return;
        }
        let number = named[state.rng.random_range(0..named.len())];
        let Some(contents) = state.files.get_mut(&number) else { return };
        let len = contents.live.len().min(contents.durable.len());
        if len == 0 {
            return;
        }
        let (place, bit) = (state.rng.random_range(0..len), 1 << state.rng.random_range(0..8));
        contents.live[place] ^= bit;
        contents.durable[place] ^= bit;
        state.corrupted = true;
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: Change) {
    match change {
        Change::Link(name, number) => {
            names.insert(name, number);
        }
        Change::Unlink(name) => {
            names.remove(&name);
        }
        Change::Rename(from, to) => {
            if let Some(number) = names.remove(&from) {
                names.insert(to, number);
            }
        }
    }
}

impl State {
    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(failed()) } else { Ok(()) }
    }

    /// Whether something with such a chance happens now. Nothing is drawn for what never does.
    fn strikes(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.rng.random_bool(chance)
    }

    fn name_call(&mut self) -> io::Result<()> {
        self.alive()?;
        if self.strikes(self.faults.names) { Err(failed()) } else { Ok(()) }
    }

    fn used(&self) -> u64 {
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        let taken = self.files.iter().filter(|(number, contents)| contents.open > 0 || named.contains(number));
        taken.map(|(_, contents)| contents.live.len() as u64).sum()
    }

    /// Counts a sync; true if the power fails at this one, after it was done where the second is true.
    fn sync_point(&mut self) -> (bool, bool) {
        self.syncs += 1;
        let now = self.crash_at == Some(self.syncs);
        (now, now && self.rng.random_bool(0.5))
    }

    /// Forgets files that nobody can reach any more.
    fn collect(&mut self) {
        if self.changes.is_empty() {
            let named: BTreeSet<u64> = self.names.values().chain(self.synced_names.values()).copied().collect();
            self.files.retain(|number, contents| contents.open > 0 || named.contains(number));
        }
    }
}

impl Disk for FaultyDisk {
    fn create(&self, name: &str, room: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        state.name_call()?;
        if state.names.contains_key(name) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        if state.used() + room > state.capacity {
            return Err(full());
        }
        let number = state.next_file;
        state.next_file += 1;
        let pending = vec![Pending::Len(room as usize)];
        state.files.insert(number, Contents { open: 1, live: vec![0; room as usize], durable: Vec::new(), pending });
        state.names.insert(name.into(), number);
        state.changes.push(Change::Link(name.into(), number));
        Ok(Arc::new(FaultyFile { disk: self.clone(), number, life: state.life }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        state.alive()?;
        let number = *state.names.get(name).ok_or_else(no_such_file)?;
        let chance = state.faults.read;
        if state.strikes(chance) {
            return Err(failed());
        }
        if let Some(contents) = state.files.get_mut(&number) {
            contents.open += 1;
        }
        Ok(Arc::new(FaultyFile { disk: self.clone(), number, life: state.life }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.alive()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.name_call()?;
        if !state.names.contains_key(from) {
            return Err(no_such_file());
        }
        apply(&mut state.names, Change::Rename(from.into(), to.into()));
        state.changes.push(Change::Rename(from.into(), to.into()));
        Ok(())
    }

    fn cut(&self, name: &str, len: u64) -> io::Result<()> {
        self.open(name)?.set_len(len)
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.name_call()?;
        state.names.remove(name).ok_or_else(no_such_file)?;
        state.changes.push(Change::Unlink(name.into()));
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut state = self.state();
        state.name_call()?;
        let (now, after) = state.sync_point();
        if !now || after {
            state.synced_names = state.names.clone();
            state.changes.clear();
            state.collect();
        }
        state.dead |= now;
        state.alive()
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.state();
        state.alive()?;
        Ok(Space { free: state.capacity.saturating_sub(state.used()), total: state.capacity })
    }

    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn describe(&self) -> &'static str {
        "in memory"
    }
}

impl FaultyFile {
    /// Runs `work` on the file's contents, unless the power failed since it was opened.
    fn with<T>(&self, work: impl FnOnce(&mut State, &mut Contents) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        state.alive()?;
        if state.life != self.life {
            return Err(failed());
        }
        let mut contents = state.files.remove(&self.number).ok_or_else(failed)?;
        let done = work(&mut state, &mut contents);
        state.files.insert(self.number, contents);
        done
    }
}

impl DiskFile for FaultyFile {
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let mut bytes = parts.concat();
        self.with(|state, contents| {
            let mut offset = offset as usize;
            let grows = (offset + bytes.len()).saturating_sub(contents.live.len()) as u64;
            let lacks = grows > 0 && state.used() + contents.live.len() as u64 + grows > state.capacity;
            let breaks = state.strikes(state.faults.write);
            if lacks || breaks {
                let done = state.rng.random_range(0..=bytes.len() / SECTOR) * SECTOR;
                bytes.truncate(done.min(contents.live.len().saturating_sub(offset)));
            } else if state.strikes(state.faults.misdirect) {
                let blocks = contents.live.len().max(BLOCK) / BLOCK;
                offset = state.rng.random_range(0..blocks) * BLOCK;
                state.corrupted = true;
            } else if !bytes.is_empty() && state.strikes(state.faults.flip) {
                let place = state.rng.random_range(0..bytes.len());
                bytes[place] ^= 1 << state.rng.random_range(0..8);
                state.corrupted = true;
            }
            put(&mut contents.live, offset, &bytes);
            contents.pending.push(Pending::Write { offset, bytes });
            match (lacks, breaks) {
                (true, _) => Err(full()),
                (_, true) => Err(failed()),
                _ => Ok(()),
            }
        })
    }

    fn read_at(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.with(|state, contents| {
            if state.strikes(state.faults.read) {
                return Err(failed());
            }
            let end = (range.end as usize).min(contents.live.len());
            let start = (range.start as usize).min(end);
            Ok(Bytes::copy_from_slice(&contents.live[start..end]))
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|state, contents| {
            let (now, after) = state.sync_point();
            let breaks = state.strikes(state.faults.sync);
            if breaks {
                // What the disk did not take is taken for written from now on.
                for pending in std::mem::take(&mut contents.pending) {
                    if state.rng.random_bool(0.5) {
                        contents.keep(&pending);
                    }
                }
            } else if !now || after {
                for pending in std::mem::take(&mut contents.pending) {
                    contents.keep(&pending);
                }
            }
            state.dead |= now;
            if breaks { Err(failed()) } else { state.alive() }
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|_, contents| Ok(contents.live.len() as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|_, contents| {
            contents.live.resize(len as usize, 0);
            contents.pending.push(Pending::Len(len as usize));
            Ok(())
        })
    }
}

impl Drop for FaultyFile {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.life == self.life
            && let Some(contents) = state.files.get_mut(&self.number)
        {
            contents.open = contents.open.saturating_sub(1);
            state.collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: u64 = 4 * BLOCK as u64;

    /// What a crash leaves of a file of one block of ones over zeros, by seed.
    fn after_a_crash(seed: u64, sync: bool, sync_folder: bool) -> Option<Vec<u8>> {
        let disk = FaultyDisk::new(seed, 1 << 20, Faults::default());
        let file = disk.create("a", BLOCKS).unwrap();
        file.write_at(0, &[&[1; BLOCK]]).unwrap();
        if sync {
            file.sync_data().unwrap();
        }
        if sync_folder {
            disk.sync_folder().unwrap();
        }
        disk.crash();
        assert!(file.read_at(0..1).is_err(), "a file opened before the crash");
        disk.open("a").ok().map(|file| file.read_at(0..BLOCK as u64).unwrap().to_vec())
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_any_part_of_the_rest() {
        let (mut torn, mut gone) = (0, 0);
        for seed in 0..200 {
            assert_eq!(after_a_crash(seed, true, true).unwrap(), [1; BLOCK]);
            gone += u32::from(after_a_crash(seed, true, false).is_none());
            let Some(left) = after_a_crash(seed, false, true) else { panic!("a synced name") };
            assert!(
                left.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])),
                "sectors are whole"
            );
            let ones = left.iter().filter(|byte| **byte == 1).count();
            torn += u32::from(ones > 0 && ones < BLOCK);
        }
        assert!(torn > 50 && gone > 50, "{torn} torn, {gone} gone");
    }

    #[test]
    fn a_failed_sync_loses_bytes_although_the_next_one_succeeds() {
        let mut lost = 0;
        for seed in 0..50 {
            let disk = FaultyDisk::new(seed, 1 << 20, Faults::default());
            let file = disk.create("a", BLOCKS).unwrap();
            file.sync_data().unwrap();
            disk.sync_folder().unwrap();
            file.write_at(0, &[&[1; BLOCK]]).unwrap();
            disk.set_faults(Faults { sync: 1.0, ..Faults::default() });
            assert!(file.sync_data().is_err());
            disk.set_faults(Faults::default());
            file.sync_data().unwrap();
            assert_eq!(file.read_at(0..1).unwrap()[0], 1);
            disk.crash();
            lost += u32::from(disk.open("a").unwrap().read_at(0..1).unwrap()[0] == 0);
        }
        assert!(lost > 10, "{lost}");
    }

    #[test]
    fn the_power_fails_at_the_sync_that_was_named_and_space_ends() {
        let disk = FaultyDisk::new(1, 2 * BLOCKS, Faults::default());
        let file = disk.create("a", BLOCKS).unwrap();
        assert_eq!(disk.create("b", 2 * BLOCKS).err().unwrap().kind(), io::ErrorKind::StorageFull);
        disk.crash_at(2);
        file.sync_data().unwrap();
        assert!(disk.sync_folder().is_err() && disk.is_dead() && file.read_at(0..1).is_err());
        disk.crash();
        assert!(!disk.is_dead() && disk.list().is_ok());
    }

    #[test]
    fn bits_flip_and_writes_go_astray() {
        let disk = FaultyDisk::new(1, 1 << 20, Faults { flip: 1.0, ..Faults::default() });
        let file = disk.create("a", BLOCKS).unwrap();
        file.write_at(0, &[&[0; BLOCK]]).unwrap();
        let ones: u32 = file.read_at(0..BLOCKS).unwrap().iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(ones, 1);
        disk.flip_a_bit();
        disk.set_faults(Faults { misdirect: 1.0, ..Faults::default() });
        let astray = (0..20).filter(|_| {
            file.write_at(0, &[&[7; BLOCK]]).unwrap();
            let astray = file.read_at(0..1).unwrap()[0] != 7;
            file.set_len(0).unwrap();
            file.set_len(BLOCKS).unwrap();
            astray
        });
        assert!(astray.count() > 5);
        assert!(disk.is_corrupted());
    }
}
