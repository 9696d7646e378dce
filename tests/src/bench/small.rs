//! Many small files, and the time until the first byte of one: 8 nodes as processes, each a zone, scheme 5+3.
//!
//! The floor of a case is the figure to reach: so many objects a second, or so many milliseconds.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use potluck::session::{Environment, Home, Meta, Reader, Session};
use potluck::vault::keyfile::Protection;

use super::load::{PATIENCE, cluster, scheme};
use super::store::median;
use super::{Effort, Figure, Goal};

const NODES: usize = 8;

/// Bytes of a small file.
const SMALL: usize = 4 << 10;

/// Puts, or gets, at once.
const AT_ONCE: usize = 32;

/// Bytes of a file of which the first are waited for: longer than what is kept of one read.
const LONGER: usize = 1 << 20;

/// Objects a second that are to be reached, put by one client and got.
const PUTS: f64 = 5_000.0;
const GETS: f64 = 10_000.0;

/// Milliseconds until the first byte, half of the time and 99 times of 100.
const HALF_MS: f64 = 2.0;
const MOST_MS: f64 = 10.0;

pub(super) fn run(effort: Effort) -> Result<Vec<Figure>> {
    let quick = effort == Effort::Quick;
    let count = if quick { 2_000 } else { 10_000 };
    let (cluster, client) = cluster(NODES)?;
    let figure = |case: &str, value, unit, floor, goal| Figure {
        case: case.into(),
        value,
        unit,
        floor: Some(floor),
        goal: Some(goal),
    };
    let mut figures = Vec::new();

    let folder = cluster.path("folder");
    std::fs::create_dir(&folder)?;
    (0..count).try_for_each(|number| std::fs::write(folder.join(format!("file-{number}")), noise(number, SMALL)))?;
    let done = client.start(["put", "--recursive", &folder.to_string_lossy(), "folder"])?.wait(PATIENCE)?.ok()?;
    figures.push(figure(
        "put -r of 4 KiB files, whole command",
        per_second(count, done.time),
        "/s",
        PUTS,
        Goal::AtLeast(1.0),
    ));

    let token = cluster.invite(&["--vault"])?.parse()?;
    let place = Home::at(cluster.path("machine")).vault("small")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let env = Environment::real()?;
        let (session, _) = Session::create(&env, place, &token, Protection::Bare, Some(scheme()?)).await?;
        let time = put(&session, count, SMALL).await?;
        figures.push(figure(
            "put 4 KiB, 32 at once, each acknowledged",
            per_second(count, time),
            "/s",
            PUTS,
            Goal::AtLeast(1.0),
        ));
        let reader = session.reader(&session.state().await?);
        let time = get(&reader, count).await?;
        figures.push(figure("get 4 KiB, 32 at once", per_second(count, time), "/s", GETS, Goal::AtLeast(1.0)));
        let files = if quick { 100 } else { 400 };
        put(&session, files, LONGER).await?;
        let mut times = first_bytes(&session, files).await?;
        times.sort_by(f64::total_cmp);
        let most = times[times.len() * 99 / 100];
        figures.push(figure("first byte of a file, p50", median(times), "ms", HALF_MS, Goal::AtMost(1.0)));
        figures.push(figure("first byte of a file, p99", most, "ms", MOST_MS, Goal::AtMost(1.0)));
        session.close().await;
        Ok(figures)
    })
}

fn per_second(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

fn noise(number: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&(number * LONGER + len).to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn key(number: usize, len: usize) -> Bytes {
    format!("{len}/{number:06}").into()
}

/// Puts files, each acknowledged before its lane goes on.
async fn put(session: &Session, count: usize, len: usize) -> Result<Duration> {
    let files: Vec<Bytes> = (0..count).map(|number| noise(number, len).into()).collect();
    let (group, next) = (session.group().await?, AtomicUsize::new(0));
    let began = Instant::now();
    let lane = || async {
        while let Some((number, bytes)) = {
            let number = next.fetch_add(1, Ordering::Relaxed);
            files.get(number).map(|bytes| (number, bytes))
        } {
            group.put(key(number, len), Meta::default(), bytes.clone()).await?;
        }
        anyhow::Ok(())
    };
    try_join_all((0..AT_ONCE).map(|_| lane())).await?;
    let time = began.elapsed();
    group.close().await?;
    Ok(time)
}

/// Gets files and compares them.
async fn get(reader: &Reader, count: usize) -> Result<Duration> {
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    let lane = || async {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return anyhow::Ok(());
            }
            let entry = reader.get(&key(number, SMALL)).await?.context("a file is not there")?;
            let bytes = reader.open(entry).read_at(0, SMALL).await?;
            ensure!(bytes == noise(number, SMALL), "other bytes than were put");
        }
    };
    try_join_all((0..AT_ONCE).map(|_| lane())).await?;
    Ok(began.elapsed())
}

/// Milliseconds from opening a file to its first bytes, one file after the other, none read before.
async fn first_bytes(session: &Session, count: usize) -> Result<Vec<f64>> {
    let reader = session.reader(&session.state().await?);
    let mut times = Vec::new();
    for number in 0..count {
        let began = Instant::now();
        let entry = reader.get(&key(number, LONGER)).await?.context("a file is not there")?;
        let size = entry.size;
        let first = reader.open(entry).stream(0..size).next().await.context("a file without bytes")??;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(noise(number, LONGER).starts_with(&first), "other bytes than were put");
    }
    Ok(times)
}
