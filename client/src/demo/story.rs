//! What the demo says: a line for each step, who holds what, and a summary.

use std::io;
use std::time::{Duration, Instant};

use owo_colors::Style;
use potluck_proto::id::NodeId;
use potluck_proto::invite::InviteKind;
use potluck_proto::stripe::Scheme;

use super::check::Census;
use super::goods::Compared;
use super::nodes::Nodes;
use crate::cli::human;
use crate::cli::screen::Screen;
use crate::cli::table::{Cell, Table};
use crate::session::Home;

/// Width of a step's name.
const NAME: usize = 8;

/// Cells of the fullest node's bar.
const BAR: u64 = 24;

/// Prints the steps as they are done.
pub(super) struct Teller<'a> {
    screen: &'a Screen,
    begun: Instant,
}

/// The figures at the end.
pub(super) struct Summary {
    pub(super) scheme: Scheme,
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) shard_bytes: u64,
    pub(super) put_time: Duration,
    pub(super) reads: [Compared; 2],
    pub(super) repair_time: Duration,
    pub(super) repaired: u64,
    pub(super) killed: usize,
    pub(super) whole_time: Duration,
}

impl<'a> Teller<'a> {
    pub(super) fn new(screen: &'a Screen) -> Self {
        Self { screen, begun: Instant::now() }
    }

    /// What this is.
    pub(super) fn title(&self, text: &str) -> io::Result<()> {
        self.screen.remark(self.screen.paint(text, Style::new().bold()))?;
        self.screen.remark("")
    }

    /// A step that is done.
    pub(super) fn step(&mut self, name: &str, text: &str) -> io::Result<()> {
        let style = match name {
            "kill" => Style::new().red().bold(),
            _ => Style::new().cyan().bold(),
        };
        let time = format!("{:>5.1} s", self.begun.elapsed().as_secs_f64());
        let (time, name) =
            (self.screen.paint(time, Style::new().dimmed()), self.screen.paint(format!("{name:<NAME$}"), style));
        self.screen.remark(format!("{time}  {name} {text}"))
    }

    /// Something to know about the step before.
    pub(super) fn note(&self, text: &str) -> io::Result<()> {
        let text = self.screen.paint(text, Style::new().dimmed());
        self.screen.remark(format!("{:7}  {:NAME$} {text}", "", ""))
    }

    /// Who holds what, and who will be killed.
    pub(super) fn holdings(&self, nodes: &Nodes, census: &Census, doomed: &[NodeId]) -> io::Result<()> {
        let mut rows: Vec<(String, NodeId, (u64, u64))> =
            nodes.zones().into_iter().map(|(node, zone)| (zone, node, census.of(node))).collect();
        rows.sort();
        let most = rows.iter().map(|(_, _, (_, bytes))| *bytes).max().unwrap_or(0).max(1);
        let mut table = Table::new(18, &[2, 3]);
        table.head(&["zone", "node", "shards", "bytes"]);
        let mut last = String::new();
        for (zone, node, (shards, bytes)) in rows {
            let dies = doomed.contains(&node);
            let style = if dies { Style::new().red() } else { Style::new().green() };
            let bar = "█".repeat((bytes * BAR / most) as usize);
            let shown = if zone == last { String::new() } else { zone.clone() };
            table.row([
                shown.into(),
                node.short().into(),
                shards.to_string().into(),
                human::size(bytes).into(),
                Cell::styled(bar, style),
            ]);
            last = zone;
        }
        self.screen.remark(table.render(self.screen))
    }

    /// The figures.
    pub(super) fn summary(&self, figures: &Summary) -> io::Result<()> {
        let Summary { scheme, .. } = figures;
        if self.screen.json {
            return self.screen.object(&serde_json::json!({
                "scheme": scheme.to_string(),
                "files": figures.files,
                "bytes": figures.bytes,
                "shard_bytes": figures.shard_bytes,
                "put_seconds": figures.put_time.as_secs_f64(),
                "get_seconds": figures.reads.map(|read| read.time.as_secs_f64()),
                "repair_seconds": figures.repair_time.as_secs_f64(),
                "repaired_bytes": figures.repaired,
                "nodes_killed": figures.killed,
                "seconds": figures.whole_time.as_secs_f64(),
                "all_equal": true,
            }));
        }
        let overhead = figures.shard_bytes as f64 / figures.bytes.max(1) as f64;
        let ideal = scheme.n() as f64 / scheme.k() as f64;
        let read = |read: &Compared| human::speed(read.bytes, read.time);
        let mut table = Table::new(2, &[]);
        table.fact("scheme", format!("{scheme}: any {} of {} shards give a stripe back", scheme.k(), scheme.n()));
        table.fact("stored", format!("{}, {}", human::count(figures.files, "file"), human::size(figures.bytes)));
        table.fact(
            "on disk",
            format!(
                "{} of shards, {overhead:.2} times the files ({ideal:.2} by the scheme)",
                human::size(figures.shard_bytes)
            ),
        );
        table.fact("put", human::speed(figures.bytes, figures.put_time));
        table.fact(
            "get",
            format!(
                "{} with 3 nodes lost, {} with {} lost",
                read(&figures.reads[0]),
                read(&figures.reads[1]),
                figures.killed
            ),
        );
        table.fact("repair", format!("{} in {}", human::size(figures.repaired), human::span(figures.repair_time)));
        self.screen.remark("")?;
        self.screen.remark(table.render(self.screen))?;
        self.screen.remark("")?;
        let verdict = format!(
            "{} of {} nodes were lost, and every byte compared equal, twice. {}",
            figures.killed,
            super::NODES,
            human::span(figures.whole_time)
        );
        self.screen.remark(self.screen.paint(verdict, Style::new().green().bold()))
    }
}

/// What to type next, while the cluster runs on.
pub(super) fn how_to_go_on(screen: &Screen, nodes: &mut Nodes, home: &Home) -> anyhow::Result<()> {
    let program = std::env::current_exe()?;
    let node_token = nodes.invite(InviteKind::Node)?;
    let vault_token = nodes.invite(InviteKind::Vault)?;
    let pages: Vec<String> =
        nodes.running().filter_map(|node| node.core().http).map(|page| format!("http://{page}/metrics")).collect();
    if screen.json {
        screen.object(&serde_json::json!({
            "program": program.to_string_lossy(),
            "home": home.path().to_string_lossy(),
            "node_token": node_token.to_string(),
            "vault_token": vault_token.to_string(),
            "metrics": pages,
        }))?;
        return Ok(());
    }
    let folder = nodes.folder().display();
    screen.line(format!(
        "
The dead nodes are back, with empty disks, and the cluster runs on until you press Ctrl-C here. In another shell:

  alias potluck={program}
  export POTLUCK_HOME={home}
  potluck ls -l
  potluck cluster status
  potluck put README.md docs/
  potluck get -r / {folder}/restored

Another node, from an invite:
  potluck node join --data {folder}/node-13 --listen 127.0.0.1:0 --http off --run \\
    {node_token}

Another vault, from an invite:
  potluck vault create --name second --no-passphrase \\
    --token {vault_token}

Metrics, a page for each node:
  {pages}",
        program = program.display(),
        home = home.path().display(),
        pages = pages.join("\n  "),
    ))?;
    Ok(())
}
