//! The segment store on real disks, under writers in a process of their own that is killed, or whose disk loses its
//! power: what was acknowledged is there, with the right bytes, and what was deleted is not.
//!
//! `tests/soak store` runs the same for longer. Which bytes are written and what is done with them follows from a seed,
//! which is printed where a test fails; when the process is cut off is up to the machine.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use potluck_node::store::StoreError;
use potluck_node::store::segments::SegmentStore;
use potluck_node::store::segments::disk::{Disk, FolderDisk};
use potluck_tests::mount::{Mounted, make_ext4, skipped};
use potluck_tests::store_writer::ledger::{Breach, Ledger, Tally};
use potluck_tests::store_writer::lines::{Operation, ShardName};
use potluck_tests::store_writer::{Plan, open_store};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for a process, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two looks at what a process has said.
const POLL: Duration = Duration::from_micros(200);

/// Times a process is killed, unless [`ROUNDS`] says otherwise.
const KILLS: u64 = 40;

/// Times the power fails.
const CUTS: u64 = 6;

/// How many times the power fails for one kill, in a longer run: it takes so much longer.
const KILLS_PER_CUT: u64 = 5;

/// The variables that set rounds and seed, for longer runs and to repeat one.
const ROUNDS: &str = "POTLUCK_STORE_ROUNDS";
const SEED: &str = "POTLUCK_STORE_SEED";

/// Most bytes of lines after which a process is cut off: a few hundred operations.
const LINES: u64 = 30_000;

/// Deletions after which segments are emptied.
const DELETIONS: usize = 16;

const MIB: u64 = 1 << 20;

/// Says the seed where a test fails.
struct Seed {
    test: &'static str,
    seed: u64,
}

impl Seed {
    fn of(test: &'static str) -> Self {
        let chosen = std::env::var(SEED).ok().map(|text| text.parse().unwrap());
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 >> 10;
        Self { test, seed: chosen.unwrap_or_else(now) }
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} failed with {SEED}={}", self.test, self.seed);
        }
    }
}

/// How many rounds were asked for.
fn asked() -> Option<u64> {
    std::env::var(ROUNDS).ok().map(|text| text.parse().unwrap())
}

/// The writers' process, killed when dropped.
struct Writers {
    child: Child,
    lines: PathBuf,
}

impl Writers {
    /// Starts it; what it says goes to a file.
    fn start(plan: &Plan, lines: PathBuf) -> Result<Self> {
        let _ = fs::remove_file(&lines);
        let out = OpenOptions::new().append(true).create_new(true).open(&lines)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_store_writer"));
        command.args(plan.arguments()).stdin(Stdio::null()).stdout(out);
        Ok(Self { child: command.spawn().context("the writers cannot be started")?, lines })
    }

    /// Waits until it has said so many bytes of lines.
    fn until_said(&mut self, bytes: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while fs::metadata(&self.lines)?.len() < bytes {
            if let Some(status) = self.child.try_wait()? {
                bail!("the writers ended with {status}: {}", fs::read_to_string(&self.lines)?);
            }
            ensure!(Instant::now() < deadline, "the writers say nothing more");
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Stops all its threads where they are, and returns when they stand.
    fn stop(&self) -> Result<()> {
        let pid = self.child.id();
        kill_process(Pid::from_raw(pid.try_into()?).context("no process")?, Signal::STOP)?;
        let deadline = Instant::now() + PATIENCE;
        while !stands(pid)? {
            ensure!(Instant::now() < deadline, "the writers do not stop");
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Kills it, and returns all that it said.
    fn kill(mut self) -> Result<String> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(fs::read_to_string(&self.lines)?)
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether all threads of a process are stopped.
fn stands(pid: u32) -> Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(thread?.path().join("stat"))?;
        // The state stands behind the name, which is in brackets.
        let state = stat.rsplit_once(") ").context("a thread without a state")?.1;
        if !state.starts_with('T') {
            return Ok(false);
        }
    }
    Ok(true)
}

fn plan(folder: PathBuf, seed: u64) -> Plan {
    Plan {
        folder,
        seed,
        turn: seed,
        writers: 4,
        stripes: 10,
        heads: 3,
        segment_bytes: MIB,
        careless: false,
        operations: 1_000_000,
    }
}

#[test]
fn killed_at_any_moment_it_keeps_what_it_acknowledged() {
    let seed = Seed::of("killed_at_any_moment_it_keeps_what_it_acknowledged");
    let mut rng = StdRng::seed_from_u64(seed.seed);
    let folder = tempfile::tempdir().unwrap();
    let mut plan = plan(folder.path().join("store"), seed.seed);
    let mut ledger = Ledger::new(plan.content()).unwrap();
    let (rounds, mut all) = (asked().unwrap_or(KILLS), Tally::default());
    for round in 0..rounds {
        plan.turn = rng.random();
        let mut writers = Writers::start(&plan, folder.path().join("lines")).unwrap();
        // Some while it reads what the one before left.
        let until = if round % 8 == 7 { rng.random_range(0..3) } else { rng.random_range(0..LINES) };
        writers.until_said(until).unwrap();
        let said = writers.kill().unwrap();
        all += ledger.read(&said).unwrap();
        let store = plan.open().unwrap();
        ledger.expect(&store).with_context(|| format!("round {round}")).unwrap();
        if rng.random_bool(0.5) {
            // A start after a start finds the same.
            drop(store);
            ledger.expect(&plan.open().unwrap()).with_context(|| format!("round {round}, again")).unwrap();
        }
    }
    eprintln!("killed {rounds} times: {all:?}");
    assert!(all.full == 0 && all.deleted > rounds && all.emptied > rounds / 4 && all.open > 0, "{all:?}");
}

/// A store on an ext4 in a file, whose power fails again and again.
struct Machine {
    // Unmounted before its folder goes.
    disk: Option<Mounted>,
    folder: tempfile::TempDir,
    cuts: u64,
}

impl Machine {
    fn new() -> Result<Self> {
        let mut machine = Self { disk: None, folder: tempfile::tempdir()?, cuts: 0 };
        make_ext4(&machine.image(0), 96)?;
        machine.mount()?;
        Ok(machine)
    }

    fn image(&self, cuts: u64) -> PathBuf {
        self.folder.path().join(format!("{cuts}.img"))
    }

    fn mount(&mut self) -> Result<()> {
        self.disk = Some(Mounted::image(&self.image(self.cuts), self.folder.path().join("mounted"))?);
        Ok(())
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("mounted/store")
    }

    /// Runs writers for a while and cuts the power. Returns what they said; the disk is as the cut left it.
    fn run_and_cut(&mut self, plan: &Plan, bytes: u64) -> Result<String> {
        let mut writers = Writers::start(plan, self.folder.path().join("lines"))?;
        writers.until_said(bytes)?;
        writers.stop()?;
        let disk = self.disk.take().context("there is no disk")?;
        disk.copy_image(&self.image(self.cuts), &self.image(self.cuts + 1))?;
        // Not continued: what it says is what it had said before the copy.
        let said = writers.kill()?;
        drop(disk);
        fs::remove_file(self.image(self.cuts))?;
        self.cuts += 1;
        self.mount()?;
        Ok(said)
    }
}

#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let seed = Seed::of("a_power_cut_loses_nothing_that_was_acknowledged");
    let mut machine = match Machine::new() {
        Ok(machine) => machine,
        Err(error) => return skipped(seed.test, &error.context("no ext4 can be mounted from a file")),
    };
    let mut rng = StdRng::seed_from_u64(seed.seed);
    let mut plan = plan(machine.store(), seed.seed);
    let mut ledger = Ledger::new(plan.content()).unwrap();
    let (rounds, mut all, mut gaps) =
        (asked().map_or(CUTS, |rounds| rounds.div_ceil(KILLS_PER_CUT)), Tally::default(), 0);
    for round in 0..rounds {
        plan.turn = rng.random();
        let said = machine.run_and_cut(&plan, rng.random_range(0..LINES)).unwrap();
        all += ledger.read(&said).unwrap();
        let store = plan.open().unwrap();
        gaps += store.found().gaps.len();
        ledger.expect(&store).with_context(|| format!("round {round}")).unwrap();
    }
    eprintln!("the power failed {rounds} times: {all:?}, {gaps} gaps");
    assert!(all.full == 0 && all.done > 100 * rounds / 2 && all.open > 0, "{all:?}");
}

/// The test before would see it.
#[test]
fn without_syncs_a_power_cut_loses_what_was_acknowledged() {
    let seed = Seed::of("without_syncs_a_power_cut_loses_what_was_acknowledged");
    let mut rng = StdRng::seed_from_u64(seed.seed);
    let mut lost = Vec::new();
    for round in 0..2 {
        let mut machine = match Machine::new() {
            Ok(machine) => machine,
            Err(error) => return skipped(seed.test, &error.context("no ext4 can be mounted from a file")),
        };
        let plan = Plan { careless: true, turn: rng.random(), ..plan(machine.store(), seed.seed) };
        let mut ledger = Ledger::new(plan.content()).unwrap();
        let said = machine.run_and_cut(&plan, rng.random_range(LINES / 2..LINES)).unwrap();
        assert!(ledger.read(&said).unwrap().done > 0);
        match plan.open() {
            Ok(store) => lost.extend(ledger.check(&store).unwrap()),
            Err(error) => lost.push(Breach::Lost(format!("round {round}: {error:#}"))),
        }
    }
    eprintln!("without syncs, {} things were lost", lost.len());
    assert!(lost.iter().any(|breach| matches!(breach, Breach::Lost(_))), "{lost:?}");
    assert!(!lost.iter().any(|breach| matches!(breach, Breach::Wrong(_))), "{lost:?}");
}

/// A store in a small file system in memory, and the account of it.
struct Small {
    // Closed before its disk goes.
    store: Option<SegmentStore>,
    ledger: Ledger,
    disk: Mounted,
    segment_bytes: u64,
}

impl Small {
    fn open(&mut self) {
        self.store = None;
        let disk = FolderDisk::open(&self.disk.path().join("store")).unwrap();
        eprintln!("on tmpfs it writes {}", disk.describe());
        self.store = Some(open_store(std::sync::Arc::new(disk), self.segment_bytes, None).unwrap());
        self.expect();
    }

    fn store(&self) -> &SegmentStore {
        self.store.as_ref().unwrap()
    }

    fn expect(&mut self) {
        self.ledger.expect(self.store.as_ref().unwrap()).unwrap();
    }

    fn note<T>(&mut self, operation: Operation, outcome: &Result<T, StoreError>) -> bool {
        self.ledger.note(operation, outcome.is_ok());
        assert!(matches!(outcome, Ok(_) | Err(StoreError::Full)), "{operation}: {:?}", outcome.as_ref().err());
        outcome.is_ok()
    }

    fn put(&mut self, name: ShardName) -> bool {
        let stripe = self.ledger.stripe(name);
        let (bytes, tree) = &stripe.shards[name.index as usize];
        let outcome = self.store().put(&stripe.header, name.index as usize, bytes, tree, 0);
        self.note(Operation::Put(name), &outcome)
    }

    fn delete(&mut self, name: ShardName) -> bool {
        let key = self.ledger.key(name);
        let outcome = self.store().trash(key, 5);
        if !self.note(Operation::Trash(name, 5), &outcome) {
            return false;
        }
        let outcome = self.store().delete(key, 5);
        assert!(!matches!(outcome, Ok(false)));
        self.note(Operation::Delete(name), &outcome)
    }

    /// Empties segments until none is worth it.
    fn compact(&self) {
        while self.store().compact().unwrap().is_some() {}
    }

    fn holds(&self, name: &ShardName) -> bool {
        let held = self.store().held(&self.ledger.key(*name).stripe);
        held.iter().any(|held| held.index == name.index as usize)
    }

    fn free(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.disk.path()).unwrap();
        disk.f_bavail * disk.f_frsize
    }
}

/// Fills a file system of 16 MB with shards until puts are refused: the store, what it holds in the order in which it was
/// put, and a shard that it refused. None where no such file system can be mounted.
fn filled(seed: &Seed, folder: &Path, segment_bytes: u64) -> Option<(Small, Vec<ShardName>, ShardName)> {
    let disk = match Mounted::tmpfs(folder.join("small-disk"), 16) {
        Ok(disk) => disk,
        Err(error) => {
            skipped(seed.test, &error.context("no tmpfs can be mounted"));
            return None;
        }
    };
    // More than twice of what the disk has.
    let plan = Plan { writers: 1, stripes: 300, ..plan(disk.path().join("store"), seed.seed) };
    let ledger = Ledger::new(plan.content()).unwrap();
    let mut small = Small { store: None, ledger, disk, segment_bytes };
    small.open();
    let mut names = plan.content().shards();
    let held: Vec<ShardName> = names.by_ref().take_while(|name| small.put(*name)).collect();
    assert!(held.len() > 300 && small.store().full(), "{}", held.len());
    small.expect();
    Some((small, held, ShardName { index: 0, ..names.next().unwrap() }))
}

#[test]
fn a_full_disk_takes_no_puts_and_keeps_all_else() {
    let seed = Seed::of("a_full_disk_takes_no_puts_and_keeps_all_else");
    let folder = tempfile::tempdir().unwrap();
    let Some((mut small, held, refused)) = filled(&seed, folder.path(), MIB / 4) else { return };
    // Deletions go on, also after a start on the full disk.
    assert!(held[..10].iter().all(|name| small.delete(*name)));
    small.open();
    assert!(small.store().full());
    assert!(held[10..20].iter().all(|name| small.delete(*name)));
    // Not only full for puts: not a byte is left.
    let ballast = fill(&small.disk.path().join("ballast"));
    assert_eq!(small.free(), 0);
    let deleted = held[20..300].iter().filter(|name| small.delete(**name)).count();
    eprintln!("{} shards held, {deleted} of 280 deleted on a disk without a byte left", held.len());
    small.expect();
    small.open();
    fs::remove_file(ballast).unwrap();
    // As upkeep does: some deletions, then what they gave back.
    let gone: Vec<ShardName> = held.iter().take(held.len() * 3 / 4).filter(|name| name.index != 1).copied().collect();
    for some in gone.chunks(DELETIONS) {
        for name in some {
            let deleted = !small.holds(name) || small.delete(*name);
            assert!(deleted, "{name:?} with {} bytes free", small.free());
        }
        small.compact();
    }
    assert!(small.free() > 5 * MIB && !small.store().full(), "{} bytes are free", small.free());
    small.expect();
    assert!(small.put(refused));
    for name in held.iter().take(held.len() / 3) {
        assert!(small.put(*name), "{name:?}");
    }
    small.expect();
    small.open();
}

#[test]
fn deletions_leave_compaction_its_space() {
    let seed = Seed::of("deletions_leave_compaction_its_space");
    let folder = tempfile::tempdir().unwrap();
    let Some((mut small, held, _)) = filled(&seed, folder.path(), MIB / 4) else { return };
    // Something of each segment stays.
    let gone: Vec<ShardName> = held.into_iter().filter(|name| name.index != 1).collect();
    let refused = gone.iter().find(|name| !small.delete(**name)).copied().unwrap();
    eprintln!("{refused:?} is not deleted, with {} bytes free", small.free());
    small.expect();
    assert!(small.store().compact().unwrap().is_some());
    small.compact();
    assert!(small.delete(refused));
    small.expect();
}

/// Writes to a new file until the disk has not a byte left.
fn fill(path: &Path) -> PathBuf {
    use std::io::Write;
    let mut file = File::create_new(path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    path.into()
}

#[test]
fn killed_on_a_full_disk_it_keeps_what_it_acknowledged() {
    let seed = Seed::of("killed_on_a_full_disk_it_keeps_what_it_acknowledged");
    let folder = tempfile::tempdir().unwrap();
    let disk = match Mounted::tmpfs(folder.path().join("small-disk"), 16) {
        Ok(disk) => disk,
        Err(error) => return skipped(seed.test, &error.context("no tmpfs can be mounted")),
    };
    let mut rng = StdRng::seed_from_u64(seed.seed);
    // Three of four shards are held, where there is space.
    let mut plan = Plan { stripes: 80, ..plan(disk.path().join("store"), seed.seed) };
    let mut ledger = Ledger::new(plan.content()).unwrap();
    let (rounds, mut all) = (asked().map_or(CUTS, |rounds| rounds.div_ceil(KILLS_PER_CUT)), Tally::default());
    for round in 0..rounds {
        plan.turn = rng.random();
        let mut writers = Writers::start(&plan, folder.path().join("lines")).unwrap();
        writers.until_said(rng.random_range(LINES..4 * LINES)).unwrap();
        let said = writers.kill().unwrap();
        all += ledger.read(&said).unwrap();
        ledger.expect(&plan.open().unwrap()).with_context(|| format!("round {round}")).unwrap();
    }
    eprintln!("killed {rounds} times on a full disk: {all:?}");
    assert!(all.full > 0 && all.deleted > 0, "{all:?}");
}
