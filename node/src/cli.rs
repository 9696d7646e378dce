//! The node's command line, for the binary `potluck-node` and for `potluck node`: thin layers over the library.

mod fsck;
mod key;
mod leave;
mod store;
mod which;

use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use potluck_proto::id::{ClusterId, NodeId};
use potluck_proto::invite::InviteToken;
use potluck_proto::member::MemberTable;
use potluck_proto::transport::{CallError, Endpoint, Limits, Peer};
use potluck_proto::wire::{self, admin, reply, request};
use rand::SeedableRng;

use crate::config::human::{ByteSize, Span, many, rough};
use crate::config::{Config, ConfigArgs, FILE_NAME, LogFormat, Settings};
use crate::gate::OperatorGate;
use crate::join::{Wish, join, why};
use crate::node::{LISTENING, Node, Parts, bind_udp, system_clock};
use crate::page::status_json;
use crate::{durable, identity, log};
use which::Which;

/// How long the running node may take to answer its operator.
const DEADLINE: Duration = Duration::from_secs(10);

/// What a command ends with when all was done.
const DONE: u8 = 0;

/// What an operator does with a node.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Found a new cluster with this node as its first
    Init(Start),
    /// Make an invite token, for a node or for a vault (on the founding node, while it runs)
    Invite(InviteArgs),
    /// Join the cluster that an invite token names
    Join(JoinArgs),
    /// Run the node until it is stopped
    Run(ConfigArgs),
    /// Show how the running node fares
    Status(StatusArgs),
    /// Empty this node, and leave the cluster when all its shards are elsewhere
    Leave(LeaveArgs),
    /// Throw a node out of the cluster for ever (on the founding node)
    Evict(StateArgs),
    /// Declare a node gone with all that it held (on the founding node)
    Lost(StateArgs),
    /// Make this node, which must be stopped, one that invites: it is given the cluster's key from its 24 words
    RestoreKey(RestoreArgs),
    /// Check the store of a node that is stopped: every byte is read, nothing is changed unless --repair says so
    #[command(after_help = fsck::EXIT_CODES)]
    Fsck(fsck::FsckArgs),
    /// Look into the store of a node that is stopped
    #[command(subcommand)]
    Store(store::StoreCommand),
}

/// Options of `restore-key`. The words come from standard input: an argument would be seen by all users of the machine.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    own: Own,
}

/// Options of `init` and `join`.
#[derive(Debug, Args)]
pub struct Start {
    #[command(flatten)]
    config: ConfigArgs,
    /// Run the node at once, instead of ending when it is set up
    #[arg(long)]
    run: bool,
}

/// Options of `join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The invite token (potnode1...)
    token: String,
    #[command(flatten)]
    start: Start,
}

/// Which node's operator speaks.
#[derive(Debug, Args)]
pub struct Own {
    /// Folder of the node
    #[arg(long, env = "POTLUCK_DATA", value_name = "DIR")]
    data: PathBuf,
}

/// Options of `invite`.
#[derive(Debug, Args)]
pub struct InviteArgs {
    #[command(flatten)]
    own: Own,
    /// Invite a vault, not a node
    #[arg(long)]
    vault: bool,
    /// Zone of the new node: nodes that may fail together share one. Default: as the newcomer says, else its own
    #[arg(long, value_name = "NAME", conflicts_with = "vault")]
    zone: Option<String>,
    /// Most that the new node may offer
    #[arg(long, value_name = "SIZE", conflicts_with = "vault")]
    capacity: Option<ByteSize>,
    /// Most that the vault may store, in bytes of shards on all nodes together. Written into its certificate; nodes do
    /// not enforce it yet
    #[arg(long, value_name = "SIZE", requires = "vault")]
    quota: Option<ByteSize>,
    /// How long the token can be redeemed
    #[arg(long, value_name = "TIME", default_value = "7d")]
    valid_for: Span,
    /// Print the token as JSON
    #[arg(long)]
    json: bool,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    own: Own,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Options of `leave`.
#[derive(Debug, Args)]
pub struct LeaveArgs {
    #[command(flatten)]
    own: Own,
    /// Do not wait until the node is empty
    #[arg(long)]
    no_wait: bool,
}

/// Options of `evict` and `lost`.
#[derive(Debug, Args)]
pub struct StateArgs {
    #[command(flatten)]
    own: Own,
    /// The other node's id, or its first digits (at least 4) as 'potluck cluster status' shows them
    node: Which,
}

/// Carries a command out, and returns what the program ends with. The error is one line that says each thing once.
pub async fn run(command: NodeCommand) -> anyhow::Result<u8> {
    carry_out(command).await.map_err(|error| anyhow::anyhow!(said_once(&error)))
}

/// An error and its causes in one line. Many errors quote their cause, which then stands behind them once more: a cause
/// that was quoted is left out.
fn said_once(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

async fn carry_out(command: NodeCommand) -> anyhow::Result<u8> {
    match command {
        NodeCommand::Init(start) => init(start).await,
        NodeCommand::Invite(args) => invite(args).await,
        NodeCommand::Join(args) => join_cluster(args).await,
        NodeCommand::Run(args) => run_node(args.load()?).await,
        NodeCommand::Status(args) => status(args).await,
        NodeCommand::Leave(args) => leave::leave(args).await,
        NodeCommand::RestoreKey(args) => key::restore(&args.own.data),
        NodeCommand::Fsck(args) => Ok(tokio::task::spawn_blocking(move || fsck::fsck(&args)).await?),
        NodeCommand::Store(store::StoreCommand::Stats(args)) => {
            tokio::task::spawn_blocking(move || store::stats(&args)).await?
        }
        NodeCommand::Evict(args) => {
            let (node, text) = declare(&args, true).await?;
            println!(
                "{} is {text}. It gets nothing and decides nothing any more. What it held is rebuilt on the others: leave \
                 it running, if you can, until 'potluck cluster status' says that all is safe.",
                node.short()
            );
            Ok(DONE)
        }
        NodeCommand::Lost(args) => {
            let (node, text) = declare(&args, false).await?;
            println!(
                "{} is {text}. The others take its place on the ring; if it comes back, it counts again.",
                node.short()
            );
            Ok(DONE)
        }
    }
}

fn rng() -> anyhow::Result<rand::rngs::StdRng> {
    rand::rngs::StdRng::try_from_rng(&mut rand::rngs::SysRng).context("the system gives no randomness")
}

/// Writes the settings of the command line to the configuration file, so that `run` needs only the folder.
fn keep_settings(config: &Config, settings: &Settings) -> anyhow::Result<()> {
    let path = config.data.join(FILE_NAME);
    // The zone is in the certificate from now on.
    let settings = Settings { zone: None, ..settings.clone() };
    if settings != Settings::default() && !path.exists() {
        let text = toml::to_string(&settings).context("the settings cannot be written as TOML")?;
        durable::replace(&path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

async fn init(start: Start) -> anyhow::Result<u8> {
    let config = start.config.load()?;
    let (cluster_key, cert) = identity::found(&config.data, config.zone.as_deref(), system_clock()(), &mut rng()?)?;
    keep_settings(&config, &start.config.settings)?;
    println!("Cluster {} is founded.\n", cert.cluster());
    println!(
        "These 24 words are its key. Whoever has them admits nodes and vaults. Write them down: they are not shown again,\n\
         and with them 'potluck node restore-key' lets another node invite should this one be lost.\n"
    );
    key::show(&cluster_key)?;
    println!("\nThis node is {} in zone {:?}.", cert.node().short(), cert.zone());
    if start.run {
        return run_node(config).await;
    }
    println!("Next: potluck node run --data {}", config.data.display());
    Ok(DONE)
}

async fn join_cluster(args: JoinArgs) -> anyhow::Result<u8> {
    let config = args.start.config.load()?;
    let token: InviteToken = args.token.parse()?;
    let local: IpAddr = match token.addresses.first() {
        Some(SocketAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let bind = bind_udp(SocketAddr::new(local, 0));
    let wish = Wish { zone: config.zone.clone().unwrap_or_default(), capacity: config.capacity.unwrap_or(0) };
    let cert = join(&config.data, &token, wish, &bind, system_clock()(), &mut rng()?).await?;
    keep_settings(&config, &args.start.config.settings)?;
    println!("Node {} has joined cluster {} in zone {:?}.", cert.node().short(), cert.cluster().short(), cert.zone());
    if args.start.run {
        let config = Config { zone: None, ..config };
        return run_node(config).await;
    }
    println!("Next: potluck node run --data {}", config.data.display());
    Ok(DONE)
}

async fn run_node(config: Config) -> anyhow::Result<u8> {
    log::start(config.log_format, &config.log)?;
    let text = config.log_format == LogFormat::Text;
    let parts = Parts::real(&config);
    let node = Node::start(config, parts).await?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted.context("signals cannot be heard"),
        () = node.failed() => Err(anyhow::anyhow!("the network endpoint has failed: the node cannot go on")),
    };
    if ended.is_ok() && text && std::io::stderr().is_terminal() {
        tracing::info!("stopping; once more Ctrl-C ends it at once");
    }
    tokio::select! {
        () = node.stop() => {}
        _ = tokio::signal::ctrl_c() => bail!("ended before all was finished; nothing acknowledged is lost"),
    }
    ended.map(|()| DONE)
}

/// Speaks to the running node of a data folder with that node's own key.
struct Operator {
    endpoint: Endpoint,
    peer: Peer,
    cluster: ClusterId,
}

impl Operator {
    fn connect(data: &Path) -> anyhow::Result<Self> {
        let (key, cert) = identity::operator(data)?;
        let path = data.join(LISTENING);
        let listening = durable::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let listening = listening.with_context(|| {
            format!("the node in {} has never run: start it with 'potluck node run'", data.display())
        })?;
        let address: SocketAddr = String::from_utf8_lossy(&listening).trim().parse().with_context(|| {
            format!("{} holds no address: start the node again, which writes it anew", path.display())
        })?;
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let local: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let (node, cluster) = (cert.node(), cert.cluster());
        let gate = Arc::new(OperatorGate { cert });
        let endpoint = Endpoint::bind(SocketAddr::new(local, 0), &key, gate, Limits::client())?;
        let peer = Peer { key: node.into(), addresses: vec![SocketAddr::new(ip, address.port())] };
        Ok(Self { endpoint, peer, cluster })
    }

    async fn call(&self, request: request::Kind) -> anyhow::Result<reply::Kind> {
        match self.endpoint.call(&self.peer, request, Vec::new(), DEADLINE).await {
            Ok((reply, _)) => Ok(reply),
            Err(CallError::Refused(error)) => bail!("{}", error.message),
            Err(error) => {
                bail!(
                    "the node does not answer ({}): is it running? Start it with 'potluck node run'; one that has just \
                     been started reads its log first, and says in its own log and on its HTTP page how far it is",
                    why(&error)
                )
            }
        }
    }

    async fn admin(&self, kind: admin::Kind) -> anyhow::Result<wire::AdminReply> {
        match self.call(request::Kind::Admin(wire::Admin { kind: Some(kind) })).await? {
            reply::Kind::Admin(reply) => Ok(reply),
            _ => bail!("the node gave another kind of answer"),
        }
    }

    /// The node that these digits stand for.
    async fn find(&self, which: &Which) -> anyhow::Result<NodeId> {
        if let Some(node) = which.whole() {
            return Ok(node);
        }
        match self.call(request::Kind::Members(wire::Members::default())).await? {
            reply::Kind::Members(reply) => {
                let mut table = MemberTable::new(self.cluster);
                table.merge(&reply.table.unwrap_or_default());
                Ok(which.find(&table)?)
            }
            _ => bail!("the node gave another kind of answer"),
        }
    }

    async fn status(&self) -> anyhow::Result<wire::StatusReply> {
        match self.call(request::Kind::Status(wire::Status {})).await? {
            reply::Kind::Status(status) => Ok(status),
            _ => bail!("the node gave another kind of answer"),
        }
    }
}

async fn invite(args: InviteArgs) -> anyhow::Result<u8> {
    let operator = Operator::connect(&args.own.data)?;
    if let Some(quota) = args.quota {
        eprintln!(
            "warning: the quota of {quota} is written into the vault's certificate, but nodes do not enforce it yet: the \
             vault can store more"
        );
    }
    let invite = admin::Invite {
        vault: args.vault,
        zone: args.zone.unwrap_or_default(),
        capacity: args.capacity.map_or(0, |size| size.0),
        quota: args.quota.map_or(0, |size| size.0),
        valid_for_s: args.valid_for.0.as_secs(),
    };
    let reply = operator.admin(admin::Kind::Invite(invite)).await?;
    if args.json {
        println!("{}", serde_json::json!({ "token": reply.token }));
    } else {
        println!("{}", reply.token);
        if std::io::stdout().is_terminal() {
            let next = if args.vault { "potluck vault create --token" } else { "potluck node join" };
            eprintln!("\nIt can be redeemed once, within {}: {next} TOKEN", args.valid_for);
        }
    }
    Ok(DONE)
}

async fn status(args: StatusArgs) -> anyhow::Result<u8> {
    let status = Operator::connect(&args.own.data)?.status().await?;
    if args.json {
        println!("{:#}", status_json(&status));
        return Ok(DONE);
    }
    let node = NodeId::from_slice(&status.node).map(|node| node.to_string()).unwrap_or_default();
    let row = |name: &str, value: String| println!("{name:<12} {value}");
    row("node", node);
    row("software", status.software);
    row("zone", status.zone);
    row("up for", Span(Duration::from_secs(status.uptime_ms / 1000)).to_string());
    row("members", format!("{} up of {}", status.members_up, status.members));
    let full = if status.full { ", full: it takes no new shards" } else { "" };
    row("space", format!("{} used of {}{full}", rough(status.used), rough(status.capacity)));
    row("trash", rough(status.trash));
    row("shards", status.shards.to_string());
    if let Some(store) = &status.store {
        let share = store.live as f64 * 100.0 / store.bytes.max(1) as f64;
        row(
            "log",
            format!("{}, {}, {share:.0} % in use", many(store.segments, "segment", "segments"), rough(store.bytes)),
        );
        if store.failures > 0 {
            row(
                "DISK",
                format!(
                    "{} ended by failed writes: look at this node's disk",
                    many(store.failures, "segment", "segments")
                ),
            );
        }
        if store.gaps + store.unusable > 0 {
            let parts = store.gaps + store.unusable;
            let parts = many(parts, "part", "parts");
            row("gaps", format!("{parts} of the log could not be read: stop the node, then 'potluck node fsck'"));
        }
    }
    let stripes = [
        (status.stripes_whole, "whole"),
        (status.stripes_degraded, "degraded"),
        (status.stripes_at_risk, "at risk"),
        (status.stripes_unreadable, "UNREADABLE"),
        (status.stripes_unconfirmed, "unconfirmed"),
        (status.stripes_malformed, "malformed"),
    ];
    let stripes = stripes.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    let stripes: Vec<String> = stripes.collect();
    row("looks after", if stripes.is_empty() { "no stripe yet".into() } else { stripes.join(", ") });
    row("repaired", format!("{} shards, {}", status.repaired_shards, rough(status.repaired_bytes)));
    if status.corrupt_shards > 0 {
        row(
            "corrupt",
            format!("{} shards found damaged and set aside: look at this node's disk", status.corrupt_shards),
        );
    }
    if !status.key_also_at.is_empty() {
        let there = status.key_also_at.join(", ");
        row("KEY IN USE", format!("at {there} too: two machines must not run copies of one data folder"));
    }
    if status.left {
        row("leaving", "done: it has left, others know, and it may be switched off".into());
    } else if status.leaving {
        row("leaving", format!("{} shards still here", status.shards));
    }
    row("http", if status.http.is_empty() { "off".into() } else { format!("http://{}/metrics", status.http) });
    Ok(DONE)
}

async fn declare(args: &StateArgs, evict: bool) -> anyhow::Result<(NodeId, String)> {
    let operator = Operator::connect(&args.own.data)?;
    let node = operator.find(&args.node).await?;
    let state = admin::State { node: Bytes::copy_from_slice(node.as_bytes()) };
    let kind = if evict { admin::Kind::Evict(state) } else { admin::Kind::Lost(state) };
    Ok((node, operator.admin(kind).await?.text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::StartError;
    use crate::store::StoreError;
    use potluck_proto::transport::BindError;
    use std::io;

    #[test]
    fn an_error_says_each_thing_once() {
        let taken = BindError::Socket {
            address: ([127, 0, 0, 1], 4701).into(),
            source: io::Error::new(io::ErrorKind::AddrInUse, "Address already in use (os error 98)"),
        };
        let error = anyhow::Error::new(StartError::Bind(taken));
        assert_eq!(said_once(&error), "cannot open UDP socket 127.0.0.1:4701: Address already in use (os error 98)");
        let index = io::Error::other(io::Error::other("the index failed: IO error: No space left"));
        let error = anyhow::Error::new(StartError::Store(StoreError::Io(index)));
        assert_eq!(said_once(&error), "the shard store cannot be opened: the index failed: IO error: No space left");
        let error = anyhow::anyhow!("the cause").context("what was to be done");
        assert_eq!(said_once(&error), "what was to be done: the cause");
    }
}
