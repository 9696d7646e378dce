//! `potluck demo`: the whole promise in one process. A cluster of real nodes on loopback, files stored, nodes killed,
//! every byte compared, repair awaited and checked, more nodes killed, every byte compared again.
//!
//! Nothing here is simulated: identities, disks, QUIC and the client are those of every day, only the intervals are
//! short. It succeeds only if every byte compared equal.

mod check;
mod choice;
mod goods;
mod nodes;
mod story;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use owo_colors::Style;
use potluck_proto::id::NodeId;
use potluck_proto::invite::InviteKind;
use potluck_proto::stripe::Scheme;

use self::check::Census;
use self::goods::{Compared, Goods};
use self::nodes::Nodes;
use self::story::{Summary, Teller};
use crate::cli::screen::Screen;
use crate::cli::{human, meter::Meter};
use crate::session::{Environment, Freshness, Home, Progress, Session, State};
use crate::vault::keyfile::Protection;
use crate::vault::sheet::RecoverySheet;

/// Nodes of the cluster.
const NODES: usize = 12;

/// Their zones, in turn.
const ZONES: [&str; 4] = ["north", "east", "south", "west"];

/// Data and parity shards.
const SCHEME: (usize, usize) = (5, 3);

/// How long repair may take before the demo gives up.
const REPAIR_DEADLINE: Duration = Duration::from_secs(180);

/// Time between two looks at the shards while repair is on.
const REPAIR_LOOK: Duration = Duration::from_millis(200);

/// The vault's name in the demo's folders.
const VAULT: &str = "demo";

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Folder to store. Default: Potluck's source tree, if it is there, and a file of 256 MiB
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Leave the cluster running, and print how to go on by hand
    #[arg(long)]
    keep: bool,
}

/// Runs the demo; its exit code.
pub(crate) async fn run(demo: Demo, screen: &Screen) -> anyhow::Result<u8> {
    let goods = match &demo.folder {
        Some(folder) => Goods::folder(folder)?,
        None => Goods::default_goods(),
    };
    let mut nodes = Nodes::in_temporary_folder(demo.keep)?;
    let remains = "The cluster and its files are gone.";
    let code = crate::cli::unless_interrupted(screen, remains, async {
        play(&mut nodes, goods, screen).await?;
        if demo.keep {
            nodes.revive().await?;
            let home = home(&nodes, LAST);
            story::how_to_go_on(screen, &mut nodes, &home)?;
        }
        Ok(0)
    });
    let code = code.await?;
    if demo.keep && code == 0 {
        crate::cli::signalled().await;
    }
    nodes.end().await;
    Ok(code)
}

/// The client that reads last.
const LAST: &str = "client-3";

fn home(nodes: &Nodes, client: &str) -> Home {
    Home::at(nodes.folder().join(client))
}

async fn play(nodes: &mut Nodes, goods: Goods, screen: &Screen) -> anyhow::Result<()> {
    let scheme = Scheme::new(SCHEME.0, SCHEME.1).context("the demo's scheme")?;
    let begun = Instant::now();
    let mut teller = Teller::new(screen);
    teller.title(&format!(
        "Potluck demo: {NODES} nodes in {} zones, every stripe coded {scheme}: any {} nodes may be lost",
        ZONES.len(),
        scheme.m()
    ))?;

    // A cluster.
    let meter = Meter::things(screen, "cluster", NODES as u64);
    nodes.found_and_join(&meter).await?;
    drop(meter);
    teller.step("cluster", &format!("{NODES} nodes, each with its own key, disk folder and QUIC port"))?;

    // A vault.
    let environment = Environment::real()?;
    let meter = Meter::things(screen, "vault", 0);
    let token = nodes.invite(InviteKind::Vault)?;
    let folder = home(nodes, "client-1").vault(VAULT)?;
    let (session, sheet) = Session::create(&environment, folder, &token, Protection::Bare, Some(scheme)).await?;
    drop(meter);
    teller.step("vault", "made with an invite token; its recovery sheet has 24 words and three addresses")?;

    // Files.
    let progress = std::sync::Arc::new(Progress::default());
    let mut meter = Meter::bytes(screen, "put", goods.bytes());
    meter.follow(&progress);
    let put = Instant::now();
    let stored = goods.store(&session, &progress).await?;
    let put_time = put.elapsed();
    drop(meter);
    session.close().await;
    let mut census = Census::take(nodes).await?;
    teller.step(
        "put",
        &format!(
            "{}, {} at {}; on disk: {} stripes, {} shards, {}",
            human::count(stored.files(), "file"),
            human::size(stored.bytes()),
            human::speed(stored.bytes(), put_time),
            census.stripes(),
            census.shards(),
            human::size(nodes.used())
        ),
    )?;
    if stored.left_out > 0 {
        screen.warn(format!(
            "{} of the folder could not be read and were left out",
            human::count(stored.left_out, "file")
        ));
    }
    let doomed = choice::first(&nodes.zones(), nodes.founder(), &on(&sheet), scheme.m());
    teller.holdings(nodes, &census, &doomed)?;

    // The first loss.
    let original = census.clone();
    let repaired_before = nodes.repaired_bytes();
    let lost = Instant::now();
    nodes.kill(&doomed).await?;
    teller.step("kill", &format!("{} are gone without a goodbye, their disks wiped", names(nodes, &doomed)))?;
    let (first, _) = read_back(nodes, &environment, &sheet, "client-2", &stored, &mut teller, screen).await?;

    // Repair.
    let meter = Meter::things(screen, "repair", census.stripes() as u64);
    let deadline = lost + REPAIR_DEADLINE;
    let proved = loop {
        census.renew(nodes).await?;
        let whole = census.whole(nodes);
        meter.set(whole as u64);
        if whole == census.stripes() {
            meter.say("reading and hashing every shard");
            match check::read_all(nodes, &census).await {
                Ok(bytes) => break bytes,
                // What is wrong is for repair to mend.
                Err(error) => tracing::warn!(%error, "a stripe is not whole after all"),
            }
        }
        if Instant::now() >= deadline {
            bail!(
                "repair did not finish in {}: {whole} of {} stripes are whole",
                human::span(REPAIR_DEADLINE),
                census.stripes()
            );
        }
        tokio::time::sleep(REPAIR_LOOK).await;
    };
    let repair_time = lost.elapsed();
    let repaired = nodes.repaired_bytes().saturating_sub(repaired_before);
    drop(meter);
    teller.step(
        "repair",
        &format!(
            "whole again {} after the loss, {} rebuilt; checked: {} different shards of every stripe, each read and hashed from a live node of its own, {}",
            human::span(repair_time),
            human::size(repaired),
            scheme.n(),
            human::size(proved)
        ),
    )?;

    // The second loss.
    let views = census.views(&original, nodes);
    let Some(second) = choice::second(&nodes.alive(), &views, scheme.m(), &on(&sheet)) else {
        bail!(
            "no {} of the nodes can be lost without losing more than {} holders of some stripe",
            scheme.m(),
            scheme.m()
        );
    };
    nodes.kill(&second.nodes).await?;
    teller.step(
        "kill",
        &format!(
            "{} too, nodes of the first hour: {} of {} stripes can now be read only with rebuilt shards",
            names(nodes, &second.nodes),
            second.forced,
            census.stripes()
        ),
    )?;
    if second.forced == 0 {
        screen.warn("no choice of nodes makes reads need rebuilt shards with these stripes: store more to see that");
    }
    let (last, state) = read_back(nodes, &environment, &sheet, LAST, &stored, &mut teller, screen).await?;
    if let Freshness::PossiblyStale(why) = &state.freshness {
        teller.note(&format!("with half of the cluster down it says itself that there may be a newer state: {why}"))?;
    }

    teller.summary(&Summary {
        scheme,
        files: stored.files(),
        bytes: stored.bytes(),
        shard_bytes: original.bytes(),
        put_time,
        reads: [first, last],
        repair_time,
        repaired,
        killed: doomed.len() + second.nodes.len(),
        whole_time: begun.elapsed(),
    })?;
    Ok(())
}

/// A new client with nothing but the recovery sheet reads everything and compares it.
async fn read_back(
    nodes: &Nodes,
    environment: &Environment,
    sheet: &RecoverySheet,
    client: &str,
    stored: &goods::Stored,
    teller: &mut Teller<'_>,
    screen: &Screen,
) -> anyhow::Result<(Compared, State)> {
    let meter = Meter::bytes(screen, "get", stored.bytes());
    meter.say("recovering the vault from the sheet");
    let folder = home(nodes, client).vault(VAULT)?;
    let (session, recovered) = Session::recover(environment, folder, sheet, Protection::Bare).await?;
    meter.say("");
    let compared = stored.compare(&session, &recovered.state, &meter).await?;
    drop(meter);
    session.close().await;
    teller.step(
        "get",
        &format!(
            "a new client with only the recovery sheet: {}, {} at {}, {}",
            human::count(compared.files, "file"),
            human::size(compared.bytes),
            human::speed(compared.bytes, compared.time),
            screen.paint("all hashes equal", Style::new().green())
        ),
    )?;
    Ok((compared, recovered.state))
}

/// The nodes on a recovery sheet.
fn on(sheet: &RecoverySheet) -> Vec<NodeId> {
    sheet.nodes.iter().map(|node| node.node).collect()
}

fn names(nodes: &Nodes, which: &[NodeId]) -> String {
    let names: Vec<String> = which
        .iter()
        .map(|node| format!("{}{}", node.short(), if *node == nodes.founder() { " (the founder)" } else { "" }))
        .collect();
    match &names[..] {
        [all @ .., last] if !all.is_empty() => format!("{} and {last}", all.join(", ")),
        _ => names.concat(),
    }
}
