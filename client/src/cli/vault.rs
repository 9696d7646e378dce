//! `potluck vault`: make a vault, open it, get it back from its recovery sheet, look at it.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use owo_colors::Style;
use potluck_proto::invite::InviteToken;
use potluck_proto::scheme::{ASSUMED_UPTIME, file_readability, readability, stripes_of_file};
use potluck_proto::stripe::Scheme;
use serde_json::json;
use zeroize::Zeroizing;

use super::context::{Context, doubts};
use super::failure::{NoKey, NotCertain, Usage};
use super::meter::waiting;
use super::options::Options;
use super::screen::Screen;
use super::table::{Cell, Table};
use super::{human, passphrase};
use crate::session::home::DEFAULT_VAULT;
use crate::session::{Freshness, HomeError, Session, SessionError, State, VaultFolder};
use crate::vault::keyfile::{Cost, Protection};
use crate::vault::sheet::RecoverySheet;

/// The file of which the readability is told.
const SAMPLE_FILE: u64 = 1 << 30;

/// Longest recovery sheet that is read, in bytes.
const SHEET_LIMIT: u64 = 64 << 10;

/// What one does with a vault.
#[derive(Debug, Subcommand)]
pub(super) enum VaultCommand {
    /// Make a vault from an invite token, and show its recovery sheet
    Create(Create),
    /// Check the passphrase and that the vault can be reached
    Open(Plain),
    /// Get a vault back on this machine, from its recovery sheet alone
    Recover(Recover),
    /// Show how the vault is: files, age, scheme, how likely it can be read
    Status(Plain),
    /// Show the recovery sheet again, with nodes that are up now
    Sheet(Sheet),
    /// Show or choose how new data is coded
    Scheme(SchemeOptions),
    /// Go on from the older state that the cluster shows, where a newer one that this device has seen is lost
    AcceptRollback(AcceptRollback),
}

/// Options of commands that need nothing else.
#[derive(Debug, Args)]
pub(super) struct Plain {
    #[command(flatten)]
    options: Options,
}

/// How this device's key is kept.
#[derive(Debug, Args)]
struct Keeping {
    /// Name of the vault on this machine
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Keep this device's key without a passphrase: whoever can read the file has the vault
    #[arg(long, conflicts_with_all = ["passphrase_file", "passphrase_command"])]
    no_passphrase: bool,
}

/// Options of `create`.
#[derive(Debug, Args)]
pub(super) struct Create {
    /// Invite token for a vault (potvault1...); - reads it from standard input
    #[arg(long, value_name = "TOKEN")]
    token: String,
    /// k data and m parity shards. Default: by the cluster's size
    #[arg(long, value_name = "K+M")]
    scheme: Option<Scheme>,
    /// Write the recovery sheet to a new file instead of standard output
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    #[command(flatten)]
    keeping: Keeping,
    #[command(flatten)]
    options: Options,
}

/// Options of `recover`.
#[derive(Debug, Args)]
pub(super) struct Recover {
    /// File with the recovery sheet; - or none: type or paste it
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    #[command(flatten)]
    keeping: Keeping,
    #[command(flatten)]
    options: Options,
}

/// Options of `sheet`.
#[derive(Debug, Args)]
pub(super) struct Sheet {
    /// Write it to a new file instead of standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// Options of `scheme`.
#[derive(Debug, Args)]
pub(super) struct SchemeOptions {
    /// k+m for new data, or "auto" for what the cluster's size suggests; none: show
    #[arg(value_name = "K+M")]
    scheme: Option<String>,
    #[command(flatten)]
    options: Options,
}

/// Options of `accept-rollback`.
#[derive(Debug, Args)]
pub(super) struct AcceptRollback {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    options: Options,
}

impl VaultCommand {
    pub(super) fn options(&self) -> &Options {
        match self {
            Self::Create(create) => &create.options,
            Self::Recover(recover) => &recover.options,
            Self::Open(plain) | Self::Status(plain) => &plain.options,
            Self::Sheet(sheet) => &sheet.options,
            Self::Scheme(scheme) => &scheme.options,
            Self::AcceptRollback(accept) => &accept.options,
        }
    }
}

pub(super) async fn run(context: &Context<'_>, command: VaultCommand) -> anyhow::Result<u8> {
    match command {
        VaultCommand::Create(create) => self::create(context, create).await,
        VaultCommand::Open(_) => open(context).await,
        VaultCommand::Recover(recover) => self::recover(context, recover).await,
        VaultCommand::Status(_) => status(context).await,
        VaultCommand::Sheet(sheet) => self::sheet(context, sheet).await,
        VaultCommand::Scheme(scheme) => self::scheme(context, scheme).await,
        VaultCommand::AcceptRollback(accept) => accept_rollback(context, accept).await,
    }
}

/// The folder of a vault to be set up.
fn new_folder(context: &Context<'_>, keeping: &Keeping) -> anyhow::Result<VaultFolder> {
    let name = keeping.name.clone().or_else(|| context.vault_name()).unwrap_or_else(|| DEFAULT_VAULT.into());
    let folder = context.home.vault(&name).map_err(SessionError::from)?;
    if folder.is_set_up() {
        return Err(SessionError::from(HomeError::Taken(name)).into());
    }
    Ok(folder)
}

/// The passphrase for a new key file, or that there is to be none.
fn choose(context: &Context<'_>, keeping: &Keeping) -> anyhow::Result<Option<Zeroizing<String>>> {
    if keeping.no_passphrase { Ok(None) } else { passphrase::choose(&context.options).map(Some) }
}

fn protection(passphrase: &Option<Zeroizing<String>>) -> Protection<'_> {
    match passphrase {
        Some(text) => Protection::Passphrase(text, Cost::DEFAULT),
        None => Protection::Bare,
    }
}

async fn create(context: &Context<'_>, create: Create) -> anyhow::Result<u8> {
    let folder = new_folder(context, &create.keeping)?;
    let place = || create.sheet.as_deref().map(NewSheet::at).transpose();
    // Tried, and given up again: at the prompt, Ctrl-C ends the program without a clean-up.
    drop(place()?);
    let token = match &create.token[..] {
        "-" => read_bounded(std::io::stdin().lock())?,
        text => Zeroizing::new(text.to_string()),
    };
    let token: InviteToken = token.trim().parse().map_err(|error| NoKey(format!("{error}")))?;
    let passphrase = choose(context, &create.keeping)?;
    let file = place()?;
    let name = folder.name().to_string();
    let made = Session::create(&context.environment, folder, &token, protection(&passphrase), create.scheme);
    let made = waiting(context.screen, "nodes to admit the vault and to take its first state", made).await?;
    let (session, sheet) = made;
    let scheme = session.scheme();
    let screen = context.screen;
    let written = file.is_some();
    if let Some(file) = file {
        file.write(&sheet).with_context(|| format!("vault {name} is made"))?;
    }
    if screen.json {
        let mut value = json!({
            "name": name,
            "vault": session.vault_id().to_string(),
            "cluster": session.cluster_id().to_string(),
            "folder": session.folder().path().to_string_lossy(),
        });
        value["scheme"] = scheme_object(scheme);
        if !written {
            value["recovery_sheet"] = sheet.to_string().into();
        }
        screen.object(&value)?;
    } else {
        if !written {
            screen.line(sheet.to_string().trim_end())?;
            screen.remark("")?;
        }
        screen.remark(format!(
            "Vault {} is made, in cluster {}.",
            screen.paint(&name, Style::new().bold()),
            session.cluster_id().short()
        ))?;
        screen.remark(scheme_text(scheme))?;
        if let (true, Some(path)) = (written, &create.sheet) {
            screen.remark(format!("The recovery sheet is in {}: print it, and delete the file.", path.display()))?;
        }
        screen.remark("Next: potluck put -r FOLDER NAME")?;
    }
    warn_of_no_parity(screen, scheme);
    session.close().await;
    Ok(0)
}

async fn recover(context: &Context<'_>, recover: Recover) -> anyhow::Result<u8> {
    let folder = new_folder(context, &recover.keeping)?;
    let text = match recover.sheet.as_deref() {
        Some(path) if path != Path::new("-") => {
            let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            read_bounded(file)?
        }
        _ => {
            if std::io::stdin().is_terminal() {
                eprintln!("Type or paste the recovery sheet, then press Ctrl-D on a line of its own:");
            }
            read_bounded(std::io::stdin().lock())?
        }
    };
    let sheet: RecoverySheet =
        text.parse().map_err(|error| NoKey(format!("the recovery sheet cannot be read: {error}")))?;
    if sheet.nodes.is_empty() {
        let why = "the recovery sheet names no nodes, so nobody knows where the cluster is: write the line 'Nodes:' and \
                   under it KEY@ADDRESS:PORT of any node of the cluster, then run this again";
        return Err(Usage(why.into()).into());
    }
    let passphrase = choose(context, &recover.keeping)?;
    let name = folder.name().to_string();
    let found = Session::recover(&context.environment, folder, &sheet, protection(&passphrase));
    let (session, recovered) = waiting(context.screen, "all nodes to tell what they know of the vault", found).await?;
    let (state, screen) = (&recovered.state, context.screen);
    if screen.json {
        let mut value = state_object(state);
        value["name"] = name.into();
        value["vault"] = session.vault_id().to_string().into();
        value["cluster"] = session.cluster_id().to_string().into();
        value["scheme"] = scheme_object(session.scheme());
        screen.object(&value)?;
    } else {
        screen.remark(format!(
            "Vault {} is back: {}, {}, as of {}.",
            screen.paint(&name, Style::new().bold()),
            entries(state.files),
            human::size(state.bytes),
            committed_text(state)
        ))?;
        if let Some(scheme) = session.chosen_scheme() {
            screen.remark(format!(
                "New data is coded {scheme}, as its newest data is: 'potluck vault scheme' shows and changes that."
            ))?;
        }
        screen.remark("Next: potluck ls, or potluck get -r / FOLDER")?;
    }
    for doubt in doubts(state) {
        screen.warn(doubt);
    }
    session.close().await;
    Ok(0)
}

async fn open(context: &Context<'_>) -> anyhow::Result<u8> {
    let session = context.open().await?;
    let state = context.state(&session, false).await?;
    let (screen, name) = (context.screen, session.folder().name().to_string());
    if screen.json {
        screen.object(&json!({ "name": name, "vault": session.vault_id().to_string(), "files": state.files }))?;
    } else {
        screen.remark(format!(
            "Vault {} opens, and its newest state (of {}) can be read.",
            screen.paint(&name, Style::new().bold()),
            committed_text(&state)
        ))?;
    }
    session.close().await;
    Ok(0)
}

async fn status(context: &Context<'_>) -> anyhow::Result<u8> {
    let session = context.open().await?;
    let state = waiting(context.screen, "the vault's newest state", session.state()).await?;
    let (screen, scheme) = (context.screen, session.scheme());
    let view = session.cluster().members().view();
    let (up, admitted) = (view.up.len(), view.ring.len());
    if screen.json {
        let mut value = state_object(&state);
        value["name"] = session.folder().name().into();
        value["vault"] = session.vault_id().to_string().into();
        value["cluster"] = session.cluster_id().to_string().into();
        value["folder"] = session.folder().path().to_string_lossy().into();
        value["scheme"] = scheme_object(scheme);
        value["nodes"] = json!({ "up": up, "admitted": admitted });
        screen.object(&value)?;
        session.close().await;
        return Ok(0);
    }
    let mut table = Table::new(0, &[]);
    table.fact("vault", Cell::styled(session.folder().name(), Style::new().bold()));
    table.fact("id", session.vault_id().to_string());
    table.fact("cluster", session.cluster_id().to_string());
    table.fact("nodes", format!("{up} up of {admitted}"));
    table.fact("folder", session.folder().path().display().to_string());
    table.fact("holds", format!("{}, {}", entries(state.files), human::size(state.bytes)));
    table.fact("state of", committed_text(&state));
    let doubts = doubts(&state);
    if doubts.is_empty() {
        table.fact("newest", Cell::styled("yes: enough nodes agree", Style::new().green()));
    }
    for doubt in doubts {
        table.fact("newest", Cell::styled(doubt, Style::new().yellow()));
    }
    let chosen = if session.chosen_scheme().is_some() { "chosen" } else { "by the cluster's size" };
    table.fact("scheme", format!("{scheme}, {chosen}"));
    for (name, text) in readability_facts(scheme) {
        table.fact(name, text);
    }
    screen.line(table.render(screen))?;
    session.close().await;
    Ok(0)
}

async fn sheet(context: &Context<'_>, sheet: Sheet) -> anyhow::Result<u8> {
    let place = || sheet.output.as_deref().map(NewSheet::at).transpose();
    drop(place()?);
    let session = context.open().await?;
    let file = place()?;
    let text = session.recovery_sheet();
    match file {
        Some(file) => {
            let path = file.path.display().to_string();
            file.write(&text)?;
            context.screen.remark(format!("The recovery sheet is in {path}: print it, and delete the file."))?;
        }
        None if context.screen.json => context.screen.object(&json!({ "recovery_sheet": text.to_string() }))?,
        None => context.screen.line(text.to_string().trim_end())?,
    }
    session.close().await;
    Ok(0)
}

async fn scheme(context: &Context<'_>, chosen: SchemeOptions) -> anyhow::Result<u8> {
    let wanted = match chosen.scheme.as_deref() {
        None => None,
        Some("auto") => Some(None),
        Some(text) => Some(Some(text.parse::<Scheme>().map_err(|error| Usage(error.to_string()))?)),
    };
    let session = context.open().await?;
    if let Some(wanted) = wanted {
        session.set_scheme(wanted)?;
    }
    let scheme = session.scheme();
    if context.screen.json {
        context.screen.object(&scheme_object(scheme))?;
    } else {
        context.screen.line(scheme_text(scheme))?;
    }
    warn_of_no_parity(context.screen, scheme);
    session.close().await;
    Ok(0)
}

async fn accept_rollback(context: &Context<'_>, accept: AcceptRollback) -> anyhow::Result<u8> {
    let session = context.open().await?;
    let state = waiting(context.screen, "the vault's newest state from enough nodes", session.state()).await?;
    let screen = context.screen;
    if let Freshness::PossiblyStale(why) = &state.freshness {
        let why = format!(
            "whether the newest state of the vault is lost cannot be told now ({why}). Nothing was changed: try again \
             when more nodes are up"
        );
        return Err(NotCertain(why).into());
    }
    let Some(rollback) = state.rollback.clone() else {
        if screen.json {
            screen.object(&json!({ "accepted": false, "shown_ms": state.committed_ms }))?;
        } else {
            screen.remark(format!(
                "There is nothing to accept: the cluster shows all that this device has seen (the state of {}).",
                committed_text(&state)
            ))?;
        }
        if state.behind {
            screen.warn(
                "too many nodes were lost at once: commits of other devices may be missing. This device can write; \
                 whoever made such commits stores those files again",
            );
        }
        session.close().await;
        return Ok(0);
    };
    let (shown, seen) = (committed_text(&state), human::date(rollback.seen_ms));
    if !accept.yes {
        agree(&format!(
            "The cluster shows the vault's state of {shown}.\nThis device has seen a newer one, of {seen}: nodes have lost \
             it or hide it.\nIf you go on from the older one, what was stored between the two is missing, unless the newer \
             one comes back:\nthen both are merged. Nodes that are away may have it: bring them back first.\n"
        ))?;
    }
    session.accept_rollback(&state)?;
    if screen.json {
        screen.object(&json!({ "accepted": true, "shown_ms": state.committed_ms, "seen_ms": rollback.seen_ms }))?;
    } else {
        screen.remark(format!("The vault goes on from its state of {shown}, not from the newer one of {seen}."))?;
    }
    session.close().await;
    Ok(0)
}

/// Asks at the terminal, and returns only if the answer is yes.
fn agree(question: &str) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(
            Usage("this asks, and there is no terminal to ask at: add --yes. Nothing was changed".into()).into()
        );
    }
    eprint!("{question}Type yes to go on: ");
    let mut answer = String::new();
    std::io::stdin().lock().take(SHEET_LIMIT).read_line(&mut answer).context("the answer cannot be read")?;
    anyhow::ensure!(answer.trim().eq_ignore_ascii_case("yes"), "the answer was not yes: nothing was changed");
    Ok(())
}

/// When the state was committed and by whom.
fn committed_text(state: &State) -> String {
    match (state.committed_ms, &state.host[..]) {
        (0, _) => "its making, without any files yet".into(),
        (ms, "") => human::date(ms),
        (ms, host) => format!("{} by {}", human::date(ms), human::name(host.as_bytes())),
    }
}

fn state_object(state: &State) -> serde_json::Value {
    json!({
        "files": state.files,
        "bytes": state.bytes,
        "committed_ms": state.committed_ms,
        "host": state.host,
        "certain": doubts(state).is_empty(),
        "doubts": doubts(state),
    })
}

fn scheme_object(scheme: Scheme) -> serde_json::Value {
    json!({
        "scheme": scheme.to_string(),
        "losses_survived": scheme.m(),
        "overhead": scheme.n() as f64 / scheme.k() as f64,
        "assumed_uptime": ASSUMED_UPTIME,
        "stripe_readability": readability(scheme, ASSUMED_UPTIME),
        "file_1gib_readability": file_readability(scheme, ASSUMED_UPTIME, stripes_of_file(SAMPLE_FILE)),
    })
}

/// `1 entry`, `3 entries`.
fn entries(number: u64) -> String {
    if number == 1 { "1 entry".into() } else { format!("{number} entries") }
}

/// Says so where a scheme bears no loss at all.
fn warn_of_no_parity(screen: &Screen, scheme: Scheme) {
    if scheme.m() == 0 {
        screen.warn(format!(
            "{scheme} has no parity: with any node that is away files cannot be read, and with any node that is lost they \
             are lost. Add nodes and choose a scheme with parity, or keep another copy elsewhere"
        ));
    }
}

/// What a scheme gives: losses borne, space, how likely data can be read.
fn readability_facts(scheme: Scheme) -> [(&'static str, String); 3] {
    let stripe = human::percent(readability(scheme, ASSUMED_UPTIME));
    let file = human::percent(file_readability(scheme, ASSUMED_UPTIME, stripes_of_file(SAMPLE_FILE)));
    [
        ("bears", format!("the loss of any {}", human::count(scheme.m() as u64, "node"))),
        ("stores", format!("{:.2} bytes for each byte", scheme.n() as f64 / scheme.k() as f64)),
        (
            "readable",
            format!(
                "a stripe {stripe}, a file of {} {file} of the time, each node being up {:.0} % of it",
                human::size(SAMPLE_FILE),
                ASSUMED_UPTIME * 100.0
            ),
        ),
    ]
}

fn scheme_text(scheme: Scheme) -> String {
    let [(_, bears), (_, stores), (_, readable)] = readability_facts(scheme);
    format!("New data is coded {scheme}: it bears {bears} and stores {stores}.\nReadable: {readable}.")
}

fn read_bounded(source: impl Read) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    source.take(SHEET_LIMIT).read_to_string(&mut text).context("standard input or the file cannot be read as text")?;
    Ok(text)
}

/// A new file for a recovery sheet, which its owner alone reads; gone if it is dropped before the sheet is in it.
///
/// It is made before a vault is, so that a place that cannot be written to costs no invite.
#[derive(Debug)]
struct NewSheet {
    path: PathBuf,
    file: std::fs::File,
    written: bool,
}

impl NewSheet {
    fn at(path: &Path) -> anyhow::Result<Self> {
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        match made {
            Ok(file) => Ok(Self { path: path.into(), file, written: false }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let why = format!("{} exists already: name a new file for the recovery sheet", path.display());
                Err(Usage(why).into())
            }
            Err(error) => {
                Err(error).with_context(|| format!("the recovery sheet cannot be written to {}", path.display()))
            }
        }
    }

    fn write(mut self, sheet: &RecoverySheet) -> anyhow::Result<()> {
        let written = self.file.write_all(sheet.to_string().as_bytes()).and_then(|()| self.file.sync_all());
        written.with_context(|| {
            let path = self.path.display();
            format!("the recovery sheet cannot be written to {path}: show it with 'potluck vault sheet'")
        })?;
        self.written = true;
        Ok(())
    }
}

impl Drop for NewSheet {
    fn drop(&mut self) {
        if !self.written {
            // An empty file, or half a sheet: the next attempt finds its place free.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::failure::Failure;
    use super::*;

    #[test]
    fn a_scheme_is_told_with_its_promises() {
        let text = scheme_text("5+3".parse().unwrap());
        assert!(text.contains("bears the loss of any 3 nodes and stores 1.60 bytes"), "{text}");
        assert!(text.contains("a stripe 94.3 %") && text.contains("a file of 1 GiB 2.4 %"), "{text}");
        let object = scheme_object("4+4".parse().unwrap());
        assert_eq!((object["losses_survived"].as_u64(), object["overhead"].as_f64()), (Some(4), Some(2.0)));
    }

    #[test]
    fn a_sheet_is_never_written_over_and_only_its_owner_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sheet");
        let sheet = RecoverySheet {
            secret: crate::vault::keys::VaultSecret::from_bytes([2; 32]),
            cluster: potluck_proto::id::ClusterId([1; 32]),
            nodes: Vec::new(),
        };
        drop(NewSheet::at(&path).unwrap());
        assert!(!path.exists(), "nothing is left where no vault was made");
        NewSheet::at(&path).unwrap().write(&sheet).unwrap();
        assert_eq!(Failure::of(&NewSheet::at(&path).unwrap_err()).code, 2);
        assert_eq!(Failure::of(&NewSheet::at(&path.join("below")).unwrap_err()).code, 1);
        assert_eq!(Failure::of(&NewSheet::at(&folder.path().join("none/sheet")).unwrap_err()).code, 3);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&path).unwrap().parse(), Ok(sheet));
    }
}
