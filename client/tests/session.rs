//! Sessions over real nodes: a cluster in this process, its nodes on loopback and in temporary folders, everything else
//! as it is for users.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/cluster.rs"]
mod cluster;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use potluck::session::{
    CHECKPOINT_INTERVAL, Environment, Freshness, GroupError, Meta, Progress, Session, SessionError, State,
};
use potluck::vault::entry::{Entry, Kind};
use potluck::vault::keyfile::{Cost, KeyfileError, Protection};
use potluck::vault::path;
use potluck::vault::sheet::RecoverySheet;
use potluck_proto::invite::InviteKind;

use tokio::time::Instant;

use self::cluster::{Cluster, noise, put};

/// A passphrase that is cheap to guess: tests need not pay for it.
fn cheap() -> Cost {
    Cost::new(64, 1, 1).unwrap()
}

async fn read(session: &Session, state: &State, path: &str) -> Option<Vec<u8>> {
    let reader = session.reader(state);
    let (_, entry) = reader.lookup(path).await.unwrap()?;
    let file = reader.open(entry);
    let mut stream = file.stream(0..u64::MAX);
    let mut bytes = Vec::new();
    while let Some(part) = stream.next().await {
        bytes.extend_from_slice(&part.unwrap());
    }
    assert_eq!(bytes.len() as u64, file.size());
    Some(bytes)
}

/// Why a file cannot be read.
async fn first_error(session: &Session, state: &State, path: &str) -> SessionError {
    let reader = session.reader(state);
    let entry = match reader.lookup(path).await {
        Ok(found) => found.unwrap().1,
        Err(error) => return error,
    };
    let file = reader.open(entry);
    let mut stream = file.stream(0..u64::MAX);
    loop {
        if let Err(error) = stream.next().await.unwrap() {
            return error;
        }
    }
}

/// All keys, and the bytes of files.
async fn everything(session: &Session) -> BTreeMap<String, Vec<u8>> {
    let state = session.state().await.unwrap();
    let reader = session.reader(&state);
    let (mut scan, mut found) = (reader.scan(Bytes::new()), BTreeMap::new());
    while let Some((key, entry)) = scan.next().await.unwrap() {
        let file = reader.open(entry.clone());
        let bytes =
            if entry.kind == Kind::File { file.read_at(0, usize::MAX >> 1).await.unwrap() } else { Bytes::new() };
        found.insert(String::from_utf8(key.to_vec()).unwrap(), bytes.to_vec());
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_put_is_read() {
    let cluster = Cluster::of(4).await;
    let (session, _) = cluster.vault("laptop", Some("2+2")).await;
    let state = session.state().await.unwrap();
    assert_eq!((state.files, state.heads, state.rollback.clone()), (0, 1, None));

    let files =
        [("empty", 0), ("tiny", 100), ("dir/small", 3000), ("dir/medium", 3 << 20), ("dir/sub/large", 40 << 20)];
    let mut writer = session.writer().await.unwrap();
    for (seed, (path, len)) in files.iter().enumerate() {
        put(&mut writer, path, &noise(seed as u64, *len)).await;
    }
    writer.put_entry(path::dir("void").unwrap(), Entry::dir()).await.unwrap();
    assert_eq!(session.state().await.unwrap().files, 0, "nothing is visible before the commit");
    let committed = writer.commit().await.unwrap();
    assert_eq!((committed.files, committed.losses_survived, committed.degraded.clone()), (6, 2, None));
    assert!(committed.bytes_stored >= 2 * committed.bytes, "{committed:?}");

    let state = session.state().await.unwrap();
    assert_eq!(state.files, 6);
    for (seed, (path, len)) in files.iter().enumerate() {
        assert!(read(&session, &state, path).await.unwrap() == noise(seed as u64, *len), "{path}");
    }
    let reader = session.reader(&state);
    let (_, entry) = reader.lookup("dir/sub/large").await.unwrap().unwrap();
    assert_eq!((entry.mode, entry.mtime_ns), (0o644, 7));
    let (file, whole) = (reader.open(entry), noise(4, 40 << 20));
    for (offset, len) in [(0, 1), (1_234_567, 89), ((40 << 20) - 5, 100), (40 << 20, 1), (3 << 20, 5 << 20)] {
        let end = (offset + len).min(whole.len());
        assert!(file.read_at(offset as u64, len).await.unwrap() == whole[offset.min(end)..end], "{offset} {len}");
    }
    let mut listing = reader.list("dir").unwrap();
    let mut names = Vec::new();
    while let Some(listed) = listing.next().await.unwrap() {
        names.push(String::from_utf8(listed.key.to_vec()).unwrap());
    }
    assert_eq!(names, ["dir/medium", "dir/small", "dir/sub/"]);
    assert!(reader.lookup("nothing").await.unwrap().is_none());
    session.close().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overwriting_renaming_copying_removing() {
    let cluster = Cluster::of(3).await;
    let (session, _) = cluster.vault("laptop", None).await;
    assert_eq!(session.scheme().to_string(), "1+2");
    let mut writer = session.writer().await.unwrap();
    put(&mut writer, "a/one", &noise(1, 500_000)).await;
    put(&mut writer, "a/two", b"two").await;
    put(&mut writer, "b", &noise(3, 1000)).await;
    let before = writer.checkpoint(&Progress::default()).await.unwrap();
    assert_eq!(session.state().await.unwrap().files, 3);

    put(&mut writer, "a/two", b"two anew").await;
    assert_eq!(writer.copy("a", "c").await.unwrap(), 2);
    assert_eq!(writer.rename("b", "c/three").await.unwrap(), 1);
    assert_eq!(writer.rename("a", "d").await.unwrap(), 2);
    assert!(matches!(writer.remove("c", false).await, Err(SessionError::WrongKind { .. })));
    assert!(matches!(writer.rename("c", "d").await, Err(SessionError::WrongKind { .. })));
    assert!(matches!(writer.copy("c", "c/inside").await, Err(SessionError::WrongKind { .. })));
    assert!(matches!(writer.remove("missing", true).await, Err(SessionError::NotFound(_))));
    assert_eq!(writer.remove("d/one", false).await.unwrap(), 1);
    let committed = writer.commit().await.unwrap();
    assert!(committed.bytes_stored < before.bytes_stored + 100_000, "no data moved: {committed:?}");

    let found = everything(&session).await;
    assert_eq!(found.keys().collect::<Vec<_>>(), ["c/one", "c/three", "c/two", "d/two"]);
    assert!(found["c/one"] == noise(1, 500_000) && found["c/three"] == noise(3, 1000));
    assert_eq!((&found["c/two"][..], &found["d/two"][..]), (&b"two anew"[..], &b"two anew"[..]));

    let mut writer = session.writer().await.unwrap();
    assert_eq!(writer.remove("", true).await.unwrap(), 4);
    writer.commit().await.unwrap();
    assert!(everything(&session).await.is_empty());
    let writer = session.writer().await.unwrap();
    assert!(writer.commit().await.unwrap().unchanged);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_a_files_or_a_directorys_never_both() {
    let cluster = Cluster::of(2).await;
    let (session, sheet) = cluster.vault("laptop", None).await;
    let mut writer = session.writer().await.unwrap();
    for path in ["dir/sub/file", "file", "other"] {
        put(&mut writer, path, path.as_bytes()).await;
    }
    writer.commit().await.unwrap();
    let before = everything(&session).await;
    let meta = Meta::default();
    let progress = Progress::default();
    // Of what is committed, then of what this writer has just put.
    for fresh in [false, true] {
        let mut writer = session.writer().await.unwrap();
        if fresh {
            writer.remove("", true).await.unwrap();
            for path in ["dir/sub/file", "file", "other"] {
                put(&mut writer, path, path.as_bytes()).await;
            }
        }
        let refused = |result: Result<(), SessionError>, named: &str| {
            let error = result.unwrap_err();
            assert!(matches!(&error, SessionError::WrongKind { path, .. } if path == named), "{error}");
            assert_eq!(error.exit_code(), 2);
        };
        for path in ["dir", "dir/sub"] {
            refused(writer.put_file(path.into(), meta, &b"x"[..], &progress).await.map(drop), path);
            refused(writer.put_entry(path.into(), Entry::symlink("x")).await, path);
        }
        refused(writer.put_file("file/x/y".into(), meta, &b"x"[..], &progress).await.map(drop), "file");
        refused(writer.put_file("dir/sub/file/x".into(), meta, &b"x"[..], &progress).await.map(drop), "dir/sub/file");
        refused(writer.put_entry("file/".into(), Entry::dir()).await, "file");
        for (from, to, named) in [
            ("file", "other/x", "other"),
            ("dir", "file", "file"),
            ("dir", "other/x", "other"),
            ("file", "file/x", "file"),
        ] {
            refused(writer.rename(from, to).await.map(drop), named);
            refused(writer.copy(from, to).await.map(drop), named);
        }
        refused(writer.rename("file", "dir").await.map(drop), "dir");
        writer.commit().await.unwrap();
        assert_eq!(everything(&session).await, before);
    }
    // What is removed first is in nobody's way.
    let mut writer = session.writer().await.unwrap();
    writer.remove("dir", true).await.unwrap();
    put(&mut writer, "dir", b"a file now").await;
    writer.remove("file", false).await.unwrap();
    put(&mut writer, "file/inside", b"a directory now").await;
    writer.commit().await.unwrap();

    // Two devices that do not know of each other.
    let env = Environment::real().unwrap();
    let (phone, _) = Session::recover(&env, cluster.machine("phone"), &sheet, Protection::Bare).await.unwrap();
    let (mut one, mut two) = (session.writer().await.unwrap(), phone.writer().await.unwrap());
    put(&mut one, "name", b"a file").await;
    put(&mut two, "name/inside", b"in a directory").await;
    let (first, second) = tokio::join!(one.commit(), two.commit());
    first.unwrap();
    second.unwrap();
    let found = everything(&session).await;
    assert_eq!(found, everything(&phone).await);
    let copy = found.keys().find(|key| key.starts_with("name (conflict ")).unwrap();
    assert_eq!((&found[copy][..], &found["name/inside"][..]), (&b"a file"[..], &b"in a directory"[..]));
    assert!(!found.contains_key("name"));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_content_is_stored_once() {
    let cluster = Cluster::of(2).await;
    let (session, _) = cluster.vault("laptop", None).await;
    let (progress, bytes) = (Progress::default(), noise(5, 6 << 20));
    let mut writer = session.writer().await.unwrap();
    let meta = Meta::default();
    let first = writer.put_file("a".into(), meta, Cursor::new(bytes.clone()), &progress).await.unwrap();
    let second = writer.put_file("b".into(), meta, Cursor::new(bytes.clone()), &progress).await.unwrap();
    assert_eq!((first.new_bytes, second.new_bytes, second.size), (6 << 20, 0, 6 << 20));
    writer.commit().await.unwrap();
    let mut longer = bytes.clone();
    longer.extend_from_slice(b"and a little more");
    let mut writer = session.writer().await.unwrap();
    let third = writer.put_file("a".into(), meta, Cursor::new(longer.clone()), &progress).await.unwrap();
    assert!(third.new_bytes < 3 << 20, "only the end is new: {third:?}");
    writer.commit().await.unwrap();
    let found = everything(&session).await;
    assert!(found["a"] == longer && found["b"] == bytes);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_devices_write_at_the_same_time() {
    let cluster = Cluster::of(4).await;
    let (laptop, sheet) = cluster.vault("laptop", None).await;
    let env = Environment::real().unwrap();
    let mut writer = laptop.writer().await.unwrap();
    put(&mut writer, "shared", b"before").await;
    put(&mut writer, "gone", b"soon").await;
    writer.commit().await.unwrap();
    let (phone, recovered) = Session::recover(&env, cluster.machine("phone"), &sheet, Protection::Bare).await.unwrap();
    assert_eq!((recovered.state.files, &recovered.state.freshness), (2, &Freshness::Current));

    let (mut one, mut two) = (laptop.writer().await.unwrap(), phone.writer().await.unwrap());
    put(&mut one, "from-laptop", &noise(1, 300_000)).await;
    put(&mut one, "shared", b"laptop").await;
    one.remove("gone", false).await.unwrap();
    put(&mut two, "from-phone", &noise(2, 300_000)).await;
    put(&mut two, "shared", b"phone").await;
    let (first, second) = tokio::join!(one.commit(), two.commit());
    first.unwrap();
    second.unwrap();

    let (here, there) = (everything(&laptop).await, everything(&phone).await);
    assert_eq!(here, there, "both see the same");
    assert!(here["from-laptop"] == noise(1, 300_000) && here["from-phone"] == noise(2, 300_000));
    assert!(!here.contains_key("gone"));
    let copies: Vec<_> =
        here.iter().filter(|(key, _)| key.starts_with("shared")).map(|(_, bytes)| &bytes[..]).collect();
    assert_eq!(copies.len(), 2, "{:?}", here.keys());
    assert!(copies.contains(&&b"laptop"[..]) && copies.contains(&&b"phone"[..]));

    let mut writer = phone.writer().await.unwrap();
    put(&mut writer, "after", b"joined").await;
    writer.commit().await.unwrap();
    let state = laptop.state().await.unwrap();
    assert_eq!((state.heads, state.files), (1, 5), "the commit has joined both");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_from_the_sheet_and_passphrases() {
    let cluster = Cluster::of(3).await;
    let env = Environment::real().unwrap();
    let token = cluster.invite(InviteKind::Vault, 9);
    let folder = cluster.machine("laptop");
    let secret = || Protection::Passphrase("open sesame", cheap());
    let (session, sheet) = Session::create(&env, folder.clone(), &token, secret(), None).await.unwrap();
    let mut writer = session.writer().await.unwrap();
    put(&mut writer, "photo", &noise(1, 2 << 20)).await;
    writer.commit().await.unwrap();
    session.close().await;

    let wrong = Session::open(&env, folder.clone(), Some("open simsim")).await.err().unwrap();
    assert!(matches!(wrong, SessionError::Keyfile(KeyfileError::WrongPassphrase)), "{wrong}");
    assert_eq!(wrong.exit_code(), 4);
    let none = Session::open(&env, folder.clone(), None).await.err().unwrap();
    assert!(matches!(none, SessionError::Keyfile(KeyfileError::PassphraseNeeded)), "{none}");
    let session = Session::open(&env, folder.clone(), Some("open sesame")).await.unwrap();
    assert_eq!(session.state().await.unwrap().files, 1);
    let taken = Session::create(&env, folder, &token, secret(), None).await.err().unwrap();
    assert_eq!(taken.exit_code(), 2, "{taken}");

    // All that is left is what was on paper.
    let paper: RecoverySheet = sheet.to_string().parse().unwrap();
    let (again, recovered) = Session::recover(&env, cluster.machine("new"), &paper, secret()).await.unwrap();
    assert!(recovered.state.committed_ms > 0);
    assert_eq!(recovered.state.freshness, Freshness::Current);
    assert!(read(&again, &recovered.state, "photo").await.unwrap() == noise(1, 2 << 20));
    let mut writer = again.writer().await.unwrap();
    put(&mut writer, "new", b"from the new machine").await;
    writer.commit().await.unwrap();
    assert_eq!(session.state().await.unwrap().files, 2);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheme_that_does_not_fit_costs_no_invite() {
    let cluster = Cluster::of(3).await;
    let (env, token) = (Environment::real().unwrap(), cluster.invite(InviteKind::Vault, 9));
    let create = async |scheme: &str| {
        let scheme = Some(scheme.parse().unwrap());
        let protection = Protection::Passphrase("open sesame", cheap());
        Session::create(&env, cluster.machine("laptop"), &token, protection, scheme).await
    };
    let refused = create("4+4").await.err().unwrap();
    assert!(matches!(refused, SessionError::SchemeRefused(_)), "{refused}");
    let text = refused.to_string();
    assert!(text.contains("1+2 would fit") && text.contains("the same invite"), "{text}");
    assert_eq!(refused.exit_code(), 2);
    assert!(!cluster.machine("laptop").is_set_up());
    let (session, _) = create("1+2").await.unwrap();
    assert_eq!(session.chosen_scheme(), Some("1+2".parse().unwrap()));
    assert_eq!(session.state().await.unwrap().files, 0);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovered_vault_is_coded_as_before() {
    let cluster = Cluster::of(4).await;
    let env = Environment::real().unwrap();
    let (session, sheet) = cluster.vault("laptop", None).await;
    let recovered = async |machine: &str| {
        let folder = cluster.machine(machine);
        let (session, _) = Session::recover(&env, folder.clone(), &sheet, Protection::Bare).await.unwrap();
        assert_eq!(folder.profile().unwrap().scheme, session.chosen_scheme());
        session.chosen_scheme()
    };
    assert_eq!(recovered("one").await, None, "the cluster's size decides, as before");
    let chosen = Some("1+1".parse().unwrap());
    session.set_scheme(chosen).unwrap();
    let mut writer = session.writer().await.unwrap();
    put(&mut writer, "a", b"coded as was chosen").await;
    writer.commit().await.unwrap();
    assert_eq!(recovered("two").await, chosen);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_upload_commits_what_it_has_and_tells_all_of_it_at_the_end() {
    let cluster = Cluster::of(2).await;
    let (session, _) = cluster.vault("laptop", None).await;
    let progress = Progress::default();
    let mut writer = session.writer().await.unwrap();
    put(&mut writer, "one", &noise(1, 300_000)).await;
    assert_eq!(writer.checkpoint_if_due(CHECKPOINT_INTERVAL, &progress).await.unwrap(), None, "too early");
    assert!(everything(&session).await.is_empty());
    let first = writer.checkpoint_if_due(Duration::ZERO, &progress).await.unwrap().unwrap();
    assert!(!first.unchanged && first.stripes > 0);
    assert_eq!(everything(&session).await.len(), 1, "seen while the upload goes on");
    put(&mut writer, "two", &noise(2, 300_000)).await;
    let second = writer.checkpoint_if_due(Duration::ZERO, &progress).await.unwrap().unwrap();
    let all = writer.commit().await.unwrap();
    assert_eq!(
        (all.stripes, all.bytes_stored),
        (first.stripes + second.stripes, first.bytes_stored + second.bytes_stored)
    );
    assert_eq!((all.unchanged, all.files), (false, 2), "nothing was left for the last commit, but all was stored");
    assert_eq!(everything(&session).await.len(), 2);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_told_within_ten_seconds() {
    const SOON: Duration = Duration::from_secs(10);
    let mut cluster = Cluster::of(5).await;
    let env = Environment::real().unwrap();
    let (session, _) = cluster.vault("laptop", Some("3+2")).await;
    let mut writer = session.writer().await.unwrap();
    put(&mut writer, "file", &noise(1, 2 << 20)).await;
    writer.commit().await.unwrap();
    session.close().await;
    for index in [4, 3] {
        cluster.kill(index).await;
    }
    cluster.know_the_dead(3).await;
    let begun = Instant::now();
    let session = Session::open(&env, cluster.machine("laptop"), None).await.unwrap();
    let refused = session.writer().await.err().unwrap();
    assert!(matches!(refused, SessionError::TooFewUp { up: 3, needed: 4, .. }), "{refused}");
    assert_eq!(refused.exit_code(), 5);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let state = session.state().await.unwrap();
    assert!(read(&session, &state, "file").await.unwrap() == noise(1, 2 << 20));
    session.close().await;

    cluster.kill(2).await;
    cluster.know_the_dead(2).await;
    let begun = Instant::now();
    let session = Session::open(&env, cluster.machine("laptop"), None).await.unwrap();
    let refused = session.writer().await.err().unwrap();
    assert!(matches!(refused, SessionError::NoQuorum(_)), "{refused}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    session.close().await;
    let begun = Instant::now();
    let session = Session::open(&env, cluster.machine("laptop"), None).await.unwrap();
    let unread = match session.state().await {
        // One shard may have all of the tree, and its node be up; no two have all of the file.
        Ok(state) => first_error(&session, &state, "file").await,
        Err(error) => error,
    };
    assert_eq!(unread.exit_code(), 5, "{unread}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    session.close().await;

    cluster.kill(1).await;
    cluster.kill(0).await;
    let begun = Instant::now();
    let alone = Session::open(&env, cluster.machine("laptop"), None).await.err().unwrap();
    assert!(matches!(alone, SessionError::Disconnected(_)), "{alone}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_writer_per_machine_and_a_dropped_one_leaves_nothing() {
    let cluster = Cluster::of(3).await;
    let (session, _) = cluster.vault("laptop", None).await;
    let mut writer = session.writer().await.unwrap();
    put(&mut writer, "half", &noise(1, 20 << 20)).await;
    let busy = session.writer().await.err().unwrap();
    assert_eq!(busy.exit_code(), 7, "{busy}");
    drop(writer);
    assert!(everything(&session).await.is_empty());
    // Cut off in the middle of a file, too.
    let mut writer = session.writer().await.unwrap();
    let bytes = noise(2, 30 << 20);
    let progress = Arc::new(Progress::default());
    {
        let upload = writer.put_file("cut".into(), Meta::default(), Cursor::new(bytes.clone()), &progress);
        assert!(tokio::time::timeout(Duration::from_millis(1), upload).await.is_err(), "30 MiB in a millisecond");
    }
    drop(writer);
    assert!(everything(&session).await.is_empty());
    let mut writer = session.writer().await.unwrap();
    put(&mut writer, "whole", &bytes).await;
    writer.commit().await.unwrap();
    assert!(everything(&session).await["whole"] == bytes);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_die_while_a_file_is_put_and_after() {
    let mut cluster = Cluster::of(6).await;
    let (session, _) = cluster.vault("laptop", Some("2+2")).await;
    let (one, two) = (noise(1, 40 << 20), noise(2, 20 << 20));
    let mut writer = session.writer().await.unwrap();
    let progress = Progress::default();
    {
        let upload = writer.put_file("one".into(), Meta::default(), Cursor::new(one.clone()), &progress);
        tokio::pin!(upload);
        // Dies once the upload is under way.
        tokio::select! {
            stored = &mut upload => { stored.unwrap(); }
            () = async {
                while progress.bytes_read.load(std::sync::atomic::Ordering::Relaxed) < 20 << 20 {
                    tokio::task::yield_now().await;
                }
                cluster.kill(5).await;
            } => { upload.await.unwrap(); }
        }
    }
    put(&mut writer, "two", &two).await;
    writer.commit().await.unwrap();
    if cluster.nodes[5].is_some() {
        cluster.kill(5).await;
    }
    cluster.kill(4).await;

    // As many as the scheme survives are gone: all is still there, for a new session too.
    let found = everything(&session).await;
    assert!(found["one"] == one && found["two"] == two);
    session.close().await;
    let env = Environment::real().unwrap();
    let session = Session::open(&env, cluster.machine("laptop"), None).await.unwrap();
    let state = session.state().await.unwrap();
    assert!(read(&session, &state, "one").await.unwrap() == one);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollbacks_are_told_and_restored_images_take_a_new_number() {
    let cluster = Cluster::of(2).await;
    let (session, _) = cluster.vault("laptop", None).await;
    let file = |name: &str| cluster.machine("laptop").path().join(name);
    let number = || std::fs::read(file("counter")).unwrap()[2..10].to_vec();
    let commit = async |path: &str| {
        let mut writer = session.writer().await.unwrap();
        put(&mut writer, path, path.as_bytes()).await;
        writer.commit().await.unwrap();
    };
    commit("one").await;
    let (image, before) = (std::fs::read(file("counter")).unwrap(), number());
    commit("two").await;
    assert_eq!(number(), before, "a device keeps its number");
    std::fs::write(file("counter"), &image).unwrap();
    commit("three").await;
    assert_ne!(number(), before, "its own counter was beyond what it knew");
    assert_eq!(everything(&session).await.len(), 3);

    // What this device remembers is more than the cluster knows of.
    let (token, env) = (cluster.invite(InviteKind::Vault, 78), Environment::real().unwrap());
    let other = cluster.machine("other");
    let (_other, _) = Session::create(&env, other.clone(), &token, Protection::Bare, None).await.unwrap();
    std::fs::copy(other.path().join("seen"), file("seen")).unwrap();
    assert!(session.state().await.unwrap().rollback.is_some());
    let refused = session.writer().await.err().unwrap();
    assert!(matches!(refused, SessionError::RolledBack { .. }), "{refused}");
    assert!(session.state().await.unwrap().rollback.is_some(), "still");
    session.accept_rollback(&session.state().await.unwrap()).unwrap();
    assert_eq!(session.state().await.unwrap().rollback, None);
    commit("four").await;
    assert_eq!(everything(&session).await.len(), 4);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_puts_that_come_together_share_commits_and_each_is_kept_when_it_is_acknowledged() {
    const PUTS: usize = 96;
    let mut cluster = Cluster::of(3).await;
    let (session, _) = cluster.vault("laptop", None).await;
    let group = Arc::new(session.group().await.unwrap());
    let bytes = |number: usize| noise(number as u64, 100 + 97 * number);
    let mut puts = tokio::task::JoinSet::new();
    for number in 0..PUTS {
        let group = group.clone();
        puts.spawn(async move { group.put(format!("a/{number}").into(), Meta::default(), bytes(number).into()).await });
    }
    while let Some(stored) = puts.join_next().await {
        stored.unwrap().unwrap();
    }
    // What is acknowledged is there, also for another session, whatever becomes of the group.
    let stored = everything(&session).await;
    assert_eq!(stored.len(), PUTS);
    assert!((0..PUTS).all(|number| stored[&format!("a/{number}")] == bytes(number)));
    // A name that cannot be is refused alone, beside one that can.
    let (wrong, right) = tokio::join!(
        group.put("a/1/below".into(), Meta::default(), Bytes::from_static(b"wrong")),
        group.put("b".into(), Meta::default(), Bytes::from_static(b"right")),
    );
    let wrong = wrong.unwrap_err();
    assert!(matches!(&wrong, GroupError::Put(error) if matches!(**error, SessionError::WrongKind { .. })), "{wrong}");
    right.unwrap();
    let busy = session.writer().await.err().unwrap();
    assert_eq!(busy.exit_code(), 7, "{busy}");
    let group = Arc::into_inner(group).unwrap();
    let committed = group.close().await.unwrap().unwrap();
    assert_eq!(committed.files, PUTS as u64 + 1);
    assert!(committed.stripes < PUTS as u64, "{committed:?}");
    let state = session.state().await.unwrap();
    assert_eq!(read(&session, &state, "b").await.unwrap(), b"right");

    // Without a quorum nothing is acknowledged, and the group says that it is over.
    let group = session.group().await.unwrap();
    group.put("c".into(), Meta::default(), Bytes::from_static(b"kept")).await.unwrap();
    cluster.kill(2).await;
    cluster.kill(1).await;
    cluster.know_the_dead(1).await;
    let failed = group.put("d".into(), Meta::default(), Bytes::from_static(b"lost")).await.unwrap_err();
    assert!(matches!(failed, GroupError::Put(_)), "{failed}");
    let ended = group.put("e".into(), Meta::default(), Bytes::new()).await.unwrap_err();
    assert!(matches!(ended, GroupError::Ended), "{ended}");
    assert!(group.close().await.is_err());
    session.close().await;
    cluster.end().await;
}
