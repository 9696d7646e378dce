//! A vault as a folder: a real cluster, the kernel's own file system calls.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/cluster.rs"]
mod cluster;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use potluck::mount::{self, MountError};
use potluck::session::{Session, State};
use potluck::vault::entry::Entry;
use potluck::vault::path;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::cluster::{Cluster, noise, put};

/// Whatever a test waits for comes within this time, or the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

const LARGE: usize = 3 << 20;

/// More than one page of a listing, and than one answer to the kernel.
const MANY: usize = 400;

fn needs_fuse() {
    let helper = Command::new("fusermount3").arg("--version").output();
    assert!(
        Path::new("/dev/fuse").exists() && helper.is_ok(),
        "this test mounts a file system: install the package fuse3, and give it /dev/fuse"
    );
}

/// Runs what blocks while the nodes, in the same process, go on.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    timeout(PATIENCE, tokio::task::spawn_blocking(work)).await.unwrap().unwrap()
}

async fn mounted(session: &Session, state: &State, at: &Path) -> JoinHandle<Result<(), MountError>> {
    let (ready, is_ready) = oneshot::channel();
    let (session, state, at) = (session.clone(), state.clone(), at.to_path_buf());
    let run = tokio::spawn(async move { mount::run(&session, &state, &at, || ready.send(()).unwrap()).await });
    match timeout(PATIENCE, is_ready).await.unwrap() {
        Ok(()) => run,
        Err(_) => panic!("not mounted: {:?}", run.await.unwrap()),
    }
}

fn names(dir: PathBuf) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn look(root: &Path) {
    assert_eq!(names(root.into()), ["dir", "empty", "large", "link", "many", "tiny", "void"]);
    assert_eq!(names(root.join("dir")), ["nested"]);
    assert!(names(root.join("void")).is_empty());
    let many: Vec<_> = (0..MANY).map(|number| format!("file-{number:04}")).collect();
    assert_eq!(names(root.join("many")), many);

    let tiny = fs::metadata(root.join("tiny")).unwrap();
    assert_eq!((tiny.len(), tiny.permissions().mode() & 0o7777, tiny.mtime_nsec()), (4, 0o644, 7));
    assert!(fs::metadata(root.join("dir")).unwrap().is_dir());
    assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("dir/nested/file"));
    assert_eq!(fs::read(root.join("link")).unwrap(), b"deep down");
    assert_eq!(fs::metadata(root.join("missing")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(fs::read(root.join("empty")).unwrap(), b"");
    assert_eq!(fs::read(root.join("tiny")).unwrap(), b"tiny");
}

fn ranges(root: &Path) {
    let whole = noise(1, LARGE);
    let mut file = File::open(root.join("large")).unwrap();
    for (offset, len) in [(2_000_000, 70_000), (0, 1), (LARGE - 3, 100), (LARGE, 5), (900_000, 500_000)] {
        let end = (offset + len).min(LARGE);
        let mut found = Vec::new();
        file.seek(SeekFrom::Start(offset as u64)).unwrap();
        (&mut file).take(len as u64).read_to_end(&mut found).unwrap();
        assert!(found == whole[offset..end], "{offset} {len}");
    }
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1_234_567).unwrap();
    assert_eq!(byte[0], whole[1_234_567]);
}

fn nothing_is_written(root: &Path) {
    let refused = [
        fs::write(root.join("new"), b"x"),
        fs::write(root.join("tiny"), b"x"),
        fs::remove_file(root.join("tiny")),
        fs::create_dir(root.join("new")),
        fs::remove_dir(root.join("void")),
        fs::rename(root.join("tiny"), root.join("other")),
        fs::set_permissions(root.join("tiny"), fs::Permissions::from_mode(0o600)),
    ];
    for refused in refused {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    }
}

fn succeeds(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_is_read_as_a_folder() {
    needs_fuse();
    let mut cluster = Cluster::of(4).await;
    let (session, _) = cluster.vault("laptop", Some("2+2")).await;
    let mut writer = session.writer().await.unwrap();
    put(&mut writer, "empty", b"").await;
    put(&mut writer, "tiny", b"tiny").await;
    put(&mut writer, "large", &noise(1, LARGE)).await;
    put(&mut writer, "dir/nested/file", b"deep down").await;
    for number in 0..MANY {
        put(&mut writer, &format!("many/file-{number:04}"), b"one of many").await;
    }
    writer.put_entry(path::dir("void").unwrap(), Entry::dir()).await.unwrap();
    writer.put_entry(path::file("link").unwrap(), Entry::symlink("dir/nested/file")).await.unwrap();
    writer.commit().await.unwrap();
    let state = session.state().await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("mounted");
    let missing = mount::run(&session, &state, &root, || panic!("mounted")).await.unwrap_err();
    assert!(matches!(missing, MountError::Mountpoint { .. }), "{missing}");
    fs::create_dir(&root).unwrap();

    // Ended from outside.
    let run = mounted(&session, &state, &root).await;
    let at = root.clone();
    blocking(move || {
        look(&at);
        ranges(&at);
        assert!(fs::read(at.join("large")).unwrap() == noise(1, LARGE));
        nothing_is_written(&at);
        look(&at);
        succeeds("fusermount3", &["-u", at.to_str().unwrap()]);
    })
    .await;
    timeout(PATIENCE, run).await.unwrap().unwrap().unwrap();
    assert!(names(root.clone()).is_empty());

    // A node dies while it is mounted; ended by a signal.
    let run = mounted(&session, &state, &root).await;
    let at = root.clone();
    let mut open = blocking(move || File::open(at.join("large")).unwrap()).await;
    cluster.kill(3).await;
    let at = root.clone();
    blocking(move || {
        let mut found = Vec::new();
        open.read_to_end(&mut found).unwrap();
        assert!(found == noise(1, LARGE));
        ranges(&at);
        look(&at);
    })
    .await;
    succeeds("kill", &["-TERM", &std::process::id().to_string()]);
    timeout(PATIENCE, run).await.unwrap().unwrap().unwrap();
    assert!(names(root).is_empty());
    session.close().await;
    cluster.end().await;
}
