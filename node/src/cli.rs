//! The node's command line, for the binary `potluck-node` and for `potluck node`: thin layers over the library.

use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use potluck_proto::id::NodeId;
use potluck_proto::invite::InviteToken;
use potluck_proto::transport::{CallError, Endpoint, Limits, Peer};
use potluck_proto::wire::{self, admin, reply, request};
use rand::SeedableRng;

use crate::config::human::{ByteSize, Span};
use crate::config::{Config, ConfigArgs, FILE_NAME, LogFormat, Settings};
use crate::gate::OperatorGate;
use crate::join::{Wish, join};
use crate::node::{LISTENING, Node, Parts, bind_udp, status_json, system_clock};
use crate::{durable, identity, log};

/// How long the running node may take to answer its operator.
const DEADLINE: Duration = Duration::from_secs(10);

/// Time between two looks at a leaving node.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

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
    /// Most that the vault may store, in bytes of shards on all nodes together
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
    /// The other node's id
    node: NodeId,
}

/// Carries a command out.
pub async fn run(command: NodeCommand) -> anyhow::Result<ExitCode> {
    match command {
        NodeCommand::Init(start) => init(start).await,
        NodeCommand::Invite(args) => invite(args).await,
        NodeCommand::Join(args) => join_cluster(args).await,
        NodeCommand::Run(args) => run_node(args.load()?).await,
        NodeCommand::Status(args) => status(args).await,
        NodeCommand::Leave(args) => leave(args).await,
        NodeCommand::Evict(args) => {
            let text = declare(&args, true).await?;
            println!("{} is {text}. What it holds is still read for repair; it gets nothing new.", args.node.short());
            Ok(ExitCode::SUCCESS)
        }
        NodeCommand::Lost(args) => {
            let text = declare(&args, false).await?;
            println!(
                "{} is {text}. The others take its place on the ring; if it comes back, it counts again.",
                args.node.short()
            );
            Ok(ExitCode::SUCCESS)
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

async fn init(start: Start) -> anyhow::Result<ExitCode> {
    let config = start.config.load()?;
    let (cluster_key, cert) = identity::found(&config.data, config.zone.as_deref(), system_clock()(), &mut rng()?)?;
    keep_settings(&config, &start.config.settings)?;
    let words = bip39::Mnemonic::from_entropy(&*cluster_key.seed()).context("the cluster key cannot be shown")?;
    println!("Cluster {} is founded.\n", cert.cluster());
    println!(
        "These 24 words are its key. Whoever has them admits nodes and vaults. Write them down; they are not shown again:\n"
    );
    let words: Vec<&str> = words.words().collect();
    for (row, line) in words.chunks(6).enumerate() {
        let numbered = line.iter().enumerate().map(|(column, word)| format!("{:>2} {word:<10}", row * 6 + column + 1));
        println!("  {}", numbered.collect::<Vec<_>>().join(" ").trim_end());
    }
    println!("\nThis node is {} in zone {:?}.", cert.node().short(), cert.zone());
    if start.run {
        return run_node(config).await;
    }
    println!("Next: potluck node run --data {}", config.data.display());
    Ok(ExitCode::SUCCESS)
}

async fn join_cluster(args: JoinArgs) -> anyhow::Result<ExitCode> {
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
    Ok(ExitCode::SUCCESS)
}

async fn run_node(config: Config) -> anyhow::Result<ExitCode> {
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
    ended.map(|()| ExitCode::SUCCESS)
}

/// Speaks to the running node of a data folder with that node's own key.
struct Operator {
    endpoint: Endpoint,
    peer: Peer,
}

impl Operator {
    fn connect(data: &Path) -> anyhow::Result<Self> {
        let (key, cert) = identity::operator(data)?;
        let listening = durable::read(&data.join(LISTENING))?.context("the node of this folder has never run")?;
        let address: SocketAddr =
            String::from_utf8_lossy(&listening).trim().parse().context("its address is damaged")?;
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let local: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let node = cert.node();
        let gate = Arc::new(OperatorGate { cert });
        let endpoint = Endpoint::bind(SocketAddr::new(local, 0), &key, gate, Limits::client())?;
        Ok(Self { endpoint, peer: Peer { key: node.into(), addresses: vec![SocketAddr::new(ip, address.port())] } })
    }

    async fn call(&self, request: request::Kind) -> anyhow::Result<reply::Kind> {
        match self.endpoint.call(&self.peer, request, Vec::new(), DEADLINE).await {
            Ok((reply, _)) => Ok(reply),
            Err(CallError::Refused(error)) => bail!("{}", error.message),
            Err(error) => {
                Err(error).context("the node does not answer: is it running? Start it with 'potluck node run'")
            }
        }
    }

    async fn admin(&self, kind: admin::Kind) -> anyhow::Result<wire::AdminReply> {
        match self.call(request::Kind::Admin(wire::Admin { kind: Some(kind) })).await? {
            reply::Kind::Admin(reply) => Ok(reply),
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

async fn invite(args: InviteArgs) -> anyhow::Result<ExitCode> {
    let operator = Operator::connect(&args.own.data)?;
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
    Ok(ExitCode::SUCCESS)
}

async fn status(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let status = Operator::connect(&args.own.data)?.status().await?;
    if args.json {
        println!("{:#}", status_json(&status));
        return Ok(ExitCode::SUCCESS);
    }
    let node = NodeId::from_slice(&status.node).map(|node| node.to_string()).unwrap_or_default();
    let row = |name: &str, value: String| println!("{name:<12} {value}");
    row("node", node);
    row("software", status.software);
    row("zone", status.zone);
    row("up for", Span(Duration::from_secs(status.uptime_ms / 1000)).to_string());
    row("members", format!("{} up of {}", status.members_up, status.members));
    let full = if status.full { ", full: it takes no new shards" } else { "" };
    row("space", format!("{} used of {}{full}", ByteSize(status.used), ByteSize(status.capacity)));
    row("trash", ByteSize(status.trash).to_string());
    row("shards", status.shards.to_string());
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
    row("repaired", format!("{} shards, {}", status.repaired_shards, ByteSize(status.repaired_bytes)));
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
    if status.leaving {
        row("leaving", format!("{} shards still here", status.shards));
    }
    row("http", if status.http.is_empty() { "off".into() } else { format!("http://{}/metrics", status.http) });
    Ok(ExitCode::SUCCESS)
}

async fn leave(args: LeaveArgs) -> anyhow::Result<ExitCode> {
    let operator = Operator::connect(&args.own.data)?;
    operator.admin(admin::Kind::Leave(admin::Leave {})).await?;
    if args.no_wait {
        println!("The node is leaving. Watch it with 'potluck node status'; keep it running until it holds no shard.");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "The node is leaving. Ctrl-C ends this watching, not the leaving; keep the node running until it is empty."
    );
    let mut last = u64::MAX;
    loop {
        let status = operator.status().await?;
        if status.shards != last {
            last = status.shards;
            eprintln!("{} shards, {} still here", status.shards, ByteSize(status.used));
            std::io::stderr().flush()?;
        }
        if status.shards == 0 {
            println!("The node is empty and has left: it may be switched off.");
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

async fn declare(args: &StateArgs, evict: bool) -> anyhow::Result<String> {
    let operator = Operator::connect(&args.own.data)?;
    let state = admin::State { node: Bytes::copy_from_slice(args.node.as_bytes()) };
    let kind = if evict { admin::Kind::Evict(state) } else { admin::Kind::Lost(state) };
    Ok(operator.admin(kind).await?.text)
}
