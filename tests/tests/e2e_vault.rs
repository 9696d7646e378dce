//! A vault on real processes, through what users and machines do wrong: nothing false is ever read, nothing is ever half
//! there, and every refusal says what to do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use potluck_node::config::Settings;
use potluck_node::config::human::Span;
use potluck_node::store::segments::disk::STORE_FOLDER;
use potluck_node::store::segments::format::{BLOCK, Kind, RecordHeader};
use potluck_tests::mount::{Mounted, skipped};
use potluck_tests::process::{Client, Processes, quick};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Longest wait for anything, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Longest time of a put of 80 MiB of which a node dies or falls silent: the put, and the notice that it is so.
const SILENCE: Duration = Duration::from_secs(60);

/// Exit codes of `potluck`: see its help.
const USAGE: i32 = 2;
const MISSING: i32 = 3;
const KEYS: i32 = 4;
const NODES_AWAY: i32 = 5;

const MIB: usize = 1 << 20;

/// Bytes that nothing can compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A file on this machine with noise in it.
fn file(cluster: &Processes, name: &str, bytes: &[u8]) -> String {
    let path = cluster.path(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_string()
}

/// Gets a path of the vault into a file, and its bytes from there.
fn read(cluster: &Processes, client: &Client, path: &str) -> Result<Vec<u8>> {
    let target = cluster.path("restored");
    client.run(["get", path, target.to_str().context("an odd path")?])?.ok()?;
    let bytes = fs::read(&target)?;
    fs::remove_file(target)?;
    Ok(bytes)
}

fn shards(cluster: &Processes) -> Result<u64> {
    cluster.up().into_iter().map(|number| shards_of(cluster, number)).sum()
}

fn shards_of(cluster: &Processes, number: usize) -> Result<u64> {
    cluster.status(number)?["shards"].as_u64().context("no count of shards")
}

/// Starts a put of standard input to `path`, feeds it a first part, and returns when shards of it are on disk.
fn half_a_put(
    cluster: &Processes,
    client: &Client,
    path: &str,
    first: &[u8],
) -> Result<(potluck_tests::process::Running, std::io::PipeWriter)> {
    let before = shards(cluster)?;
    let (put, mut pipe) = client.start_fed(["put", "-", path])?;
    pipe.write_all(first)?;
    cluster.until("shards of the put are on disk", PATIENCE, |cluster| Ok(shards(cluster)? > before))?;
    Ok((put, pipe))
}

#[test]
fn a_vault_bears_what_goes_wrong() {
    // Scrub looks at every shard within seconds.
    let scrubbing = Settings { scrub_time: Some(Span(Duration::from_secs(2))), ..quick() };
    let mut cluster = Processes::found(scrubbing).unwrap();
    cluster.grow(5, 5).unwrap();
    let client = cluster.client("laptop");
    let sheet = cluster.path("sheet");
    making_it(&cluster, &client, &sheet);

    let small = noise(1, 3 * MIB);
    let source = file(&cluster, "small", &small);
    client.run(["put", &source, "small"]).unwrap().ok().unwrap();
    assert!(read(&cluster, &client, "small").unwrap() == small);
    wrong_keys(&cluster, &client, &sheet);
    a_client_dies(&cluster, &client, &small);
    a_node_dies(&mut cluster, &client);
    a_node_falls_silent(&cluster, &client);
    disks_lie(&cluster, &client, &small);
    too_few_nodes(&mut cluster, &client, &source, &small);

    // The laptop is gone; the sheet is enough.
    let other = cluster.client("new-laptop").with_passphrase("another passphrase");
    other.run(["vault", "recover", "--sheet", sheet.to_str().unwrap()]).unwrap().ok().unwrap();
    assert!(read(&cluster, &other, "small").unwrap() == small);
}

fn making_it(cluster: &Processes, client: &Client, sheet: &Path) {
    client.run(["ls"]).unwrap().fails(MISSING, &["no vault on this machine", "vault create"]).unwrap();
    let create = |token: &str, scheme: &str| {
        let words = ["vault", "create", "--token", token, "--scheme", scheme, "--sheet", sheet.to_str().unwrap()];
        client.run(words).unwrap()
    };
    create("nonsense", "2+2").fails(KEYS, &["potvault1"]).unwrap();
    let for_a_node = cluster.invite(&[]).unwrap();
    create(&for_a_node, "2+2").fails(KEYS, &["potluck node join"]).unwrap();
    let token = cluster.invite(&["--vault"]).unwrap();
    let refused = create(&token, "5+3").fails(USAGE, &["5+3 needs 8 nodes", "has 5", "would fit"]).unwrap();
    assert!(!sheet.exists(), "no sheet of a vault that is not there: {refused}");
    // The invite is not used up by that.
    create(&token, "2+2").ok().unwrap();
    let second = cluster.client("someone-else");
    let words = ["vault", "create", "--token", &token, "--scheme", "2+2"];
    second.run(words).unwrap().fails(KEYS, &["already used", "ask for a new one"]).unwrap();
}

fn wrong_keys(cluster: &Processes, client: &Client, sheet: &Path) {
    client.with_passphrase("not this one").run(["ls"]).unwrap().fails(KEYS, &["passphrase is wrong"]).unwrap();
    client.run(["ls", "--vault", "other"]).unwrap().fails(MISSING, &["other"]).unwrap();
    client.run(["get", "nothing"]).unwrap().fails(MISSING, &["nothing", "not in the vault"]).unwrap();

    let text = fs::read_to_string(sheet).unwrap();
    let recover = |text: &str| {
        let path = cluster.path("wrong-sheet");
        fs::write(&path, text).unwrap();
        cluster.client("thief").run(["vault", "recover", "--sheet", path.to_str().unwrap()]).unwrap()
    };
    // Words that are some vault's, but of none that this cluster knows.
    let theirs = with_words(&text, "abandon", "art");
    recover(&theirs).fails(KEYS, &["does not know", "words"]).unwrap();
    // Words with an error in them.
    let typed = with_words(&text, "abandon", "abandon");
    recover(&typed).fails(KEYS, &["recovery sheet cannot be read"]).unwrap();
    recover("").fails(KEYS, &["recovery sheet"]).unwrap();
}

/// The sheet with each of its 24 numbered words replaced: all by `word`, but for the last, which is `last`.
fn with_words(sheet: &str, word: &str, last: &str) -> String {
    let mut count = 0;
    let mut number = None;
    let lines = sheet.lines().map(|line| {
        let pieces = line.split_whitespace().map(|piece| match number.take() {
            Some(number) => {
                count += 1;
                if number == 24 { last } else { word }
            }
            None => {
                number = piece.strip_suffix('.').and_then(|number| number.parse::<usize>().ok());
                piece
            }
        });
        pieces.collect::<Vec<_>>().join(" ")
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    assert_eq!(count, 24, "the sheet does not number its words:\n{sheet}");
    text
}

fn a_client_dies(cluster: &Processes, client: &Client, small: &[u8]) {
    let bytes = noise(2, 40 * MIB);
    let (put, pipe) = half_a_put(cluster, client, "torn", &bytes).unwrap();
    // Someone who only reads is not in the way; a second writer is told.
    assert!(read(cluster, client, "small").unwrap() == small);
    put.kill().unwrap();
    drop(pipe);
    let listed = client.run(["ls", "-R"]).unwrap().ok().unwrap().out;
    assert!(listed.contains("small") && !listed.contains("torn"), "{listed}");
    // The next run works, and finds whatever is already there.
    let source = file(cluster, "torn", &bytes);
    client.run(["put", &source, "torn"]).unwrap().ok().unwrap();
    assert!(read(cluster, client, "torn").unwrap() == bytes);
    assert!(read(cluster, client, "small").unwrap() == small);
}

fn a_node_dies(cluster: &mut Processes, client: &Client) {
    let bytes = noise(3, 80 * MIB);
    let (first, second) = bytes.split_at(40 * MIB);
    let (put, mut pipe) = half_a_put(cluster, client, "survivor", first).unwrap();
    cluster.kill(4).unwrap();
    pipe.write_all(second).unwrap();
    drop(pipe);
    put.wait(SILENCE).unwrap().ok().unwrap();
    assert!(read(cluster, client, "survivor").unwrap() == bytes);
    // Four nodes are left for 2+2: repair finds a place for every shard.
    let (stripes, _) = cluster.until_whole(None, PATIENCE).unwrap();
    assert!(stripes >= 5, "{stripes} stripes");
    cluster.start(4).unwrap();
    cluster.until_known().unwrap();
    cluster.until_whole(Some(stripes), PATIENCE).unwrap();
}

/// A node is there and never answers: worse than a dead one, since nothing says so.
fn a_node_falls_silent(cluster: &Processes, client: &Client) {
    let (stripes, _) = cluster.until_whole(None, PATIENCE).unwrap();
    let bytes = noise(5, 80 * MIB);
    let (first, second) = bytes.split_at(40 * MIB);
    let (put, mut pipe) = half_a_put(cluster, client, "patient", first).unwrap();
    cluster.pause(3).unwrap();
    pipe.write_all(second).unwrap();
    drop(pipe);
    let done = put.wait(SILENCE).unwrap().ok().unwrap();
    assert!(done.time < SILENCE, "{:?}", done.time);
    assert!(read(cluster, client, "patient").unwrap() == bytes);
    cluster.resume(3).unwrap();
    cluster.until_known().unwrap();
    let more = cluster.until_whole(None, PATIENCE).unwrap().0;
    assert!(more >= stripes + 5, "{stripes} stripes, then {more}");
}

/// Every shard on two nodes is damaged, each in another place: as much as 2+2 can bear.
fn disks_lie(cluster: &Processes, client: &Client, small: &[u8]) {
    let (stripes, _) = cluster.until_whole(None, PATIENCE).unwrap();
    let corrupt = |number| cluster.status(number).unwrap()["corrupt_shards"].as_u64().unwrap();
    let damaged = [1, 2].map(|number| {
        let (shards, before) = (shards_of(cluster, number).unwrap(), corrupt(number));
        assert!(shards > 0 && damage(&cluster.data(number).join(STORE_FOLDER)).unwrap() as u64 >= shards);
        (number, before + shards)
    });
    assert!(read(cluster, client, "small").unwrap() == small);
    assert!(read(cluster, client, "survivor").unwrap() == noise(3, 80 * MIB));
    let found = |_: &Processes| -> Result<bool> {
        for (number, expected) in damaged {
            let found = corrupt(number);
            ensure!(found >= expected, "node {number} has found {found} of {expected} damaged shards");
        }
        Ok(true)
    };
    cluster.until("every damaged shard is found", PATIENCE, found).unwrap();
    cluster.until_whole(Some(stripes), PATIENCE).unwrap();
}

/// Flips one bit of each shard in the log, each at another place; returns how many there are.
fn damage(store: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        // One may be emptied meanwhile.
        let Some(bytes) = fs::read(&path).ok().filter(|_| path.extension().is_some_and(|end| end == "segment")) else {
            continue;
        };
        let file = fs::OpenOptions::new().write(true).open(&path)?;
        let mut at = BLOCK;
        while let Some(header) = bytes.get(at..).and_then(|bytes| RecordHeader::decode(bytes).ok()) {
            let extent = header.extent() as usize;
            if header.kind == Kind::Shard {
                let front = header.payload_at() as usize;
                let place = at + front + (count * 7919) % header.payload_len as usize;
                file.write_all_at(&[bytes[place] ^ 1 << (count % 8)], place as u64)?;
                count += 1;
            }
            at += extent;
        }
    }
    Ok(count)
}

fn too_few_nodes(cluster: &mut Processes, client: &Client, source: &str, small: &[u8]) {
    for number in 1..5 {
        cluster.kill(number).unwrap();
    }
    // Side by side, since both wait for nodes to come back before they give up.
    let put = client.start(["put", source, "more"]).unwrap();
    let cat = client.run(["cat", "survivor"]).unwrap();
    cat.fails(NODES_AWAY, &["2 shards are needed, 1 can be reached"]).unwrap();
    put.wait(PATIENCE).unwrap().fails(NODES_AWAY, &["1 of 5 head replicas", "3 are needed"]).unwrap();
    cluster.kill(0).unwrap();
    client.run(["ls"]).unwrap().fails(NODES_AWAY, &["none of the cluster's 5", "can be reached"]).unwrap();
    for number in 0..5 {
        cluster.start(number).unwrap();
    }
    cluster.until_known().unwrap();
    assert!(read(cluster, client, "small").unwrap() == small);
    let listed = client.run(["ls"]).unwrap().ok().unwrap().out;
    assert!(!listed.contains("more"), "{listed}");
}

#[test]
fn a_full_disk_leaves_the_shards_to_others() {
    let mut cluster = Processes::found(quick()).unwrap();
    let disk = match Mounted::tmpfs(cluster.path("small-disk"), 16) {
        Ok(disk) => disk,
        Err(error) => {
            let test = "a_full_disk_leaves_the_shards_to_others";
            return skipped(test, &error.context("no tmpfs can be mounted"));
        }
    };
    cluster.grow(4, 4).unwrap();
    let small = cluster.add(disk.path().join("node"), "zone-small", Settings::default()).unwrap();
    cluster.until_known().unwrap();
    let client = cluster.client("laptop");
    let token = cluster.invite(&["--vault"]).unwrap();
    client.run(["vault", "create", "--token", &token, "--scheme", "2+2", "--no-passphrase"]).unwrap().ok().unwrap();
    // Its fair part would be 32 MiB of shards.
    let bytes = noise(4, 80 * MIB);
    let source = file(&cluster, "large", &bytes);
    client.run(["put", &source, "large"]).unwrap().ok().unwrap();
    assert!(read(&cluster, &client, "large").unwrap() == bytes);
    let used = |number| cluster.status(number).unwrap()["used_bytes"].as_u64().unwrap();
    let (least, most) = (used(small), (0..4).map(used).max().unwrap());
    assert!(0 < least && least < 16 << 20 && most > 32 << 20, "{least} on the small disk, at most {most} on others");
    cluster.until_whole(None, PATIENCE).unwrap();
    // It goes on serving what it has, and ends in order.
    cluster.kill(3).unwrap();
    cluster.kill(2).unwrap();
    assert!(read(&cluster, &client, "large").unwrap() == bytes);
    cluster.stop(small).unwrap();
}

#[test]
fn the_walk_through_of_the_readme_works() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let text = fs::read_to_string(readme).unwrap();
    let (_, behind) = text.split_once("```bash\n").unwrap();
    let (script, _) = behind.split_once("```").unwrap();
    assert!(script.contains("potluck vault recover"), "{script}");
    let done = potluck_tests::process::run_script(script, PATIENCE).unwrap().ok().unwrap();
    for word in ["cat.jpg", "typed in", "2+2"] {
        assert!(done.out.contains(word) || done.err.contains(word), "{word} is not in: {done}");
    }
}
