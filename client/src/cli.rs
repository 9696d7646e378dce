//! The command line: reads arguments, runs one command against the library, prints, and ends with a code that says how
//! it went. It decides nothing about data: what is stored, where and how is the session's business.

mod change;
mod cluster;
mod context;
mod failure;
pub(crate) mod human;
mod list;
pub(crate) mod local;
pub(crate) mod meter;
mod mount;
mod options;
mod passphrase;
mod receive;
pub(crate) mod screen;
mod send;
pub(crate) mod table;
mod target;
mod vault;

use std::future::Future;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tokio::signal::unix::{SignalKind, signal};

use self::failure::Failure;
use self::options::Options;
use self::screen::Screen;

/// What a command ends with when it was interrupted, as shells have it.
const INTERRUPTED: u8 = 130;

const EXIT_CODES: &str = "Exit codes:
  0    all was done
  1    a fault of this machine or program
  2    wrong arguments
  3    something named is not there, or some files were left out and the others done
  4    a key, passphrase, invite or admission is wrong
  5    not enough nodes can be reached: trying again later helps
  6    damaged data, or a state older than one seen before
  7    another process is writing to the vault
  130  interrupted

Paths in the vault are written like photos/2026/cat.jpg, with or without a slash in front.";

/// Backups on machines that nobody fully trusts: encrypted, spread over a cluster of nodes, repaired by itself
#[derive(Debug, Parser)]
#[command(name = "potluck", version, after_help = EXIT_CODES, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make, open, recover or look at a vault
    #[command(subcommand)]
    Vault(vault::VaultCommand),
    /// Store files or folders in the vault
    Put(send::Put),
    /// Fetch files or folders from the vault
    Get(receive::Get),
    /// Write files of the vault to standard output
    Cat(receive::Cat),
    /// List what is in the vault
    Ls(list::Ls),
    /// Show all about paths of the vault
    Stat(list::Stat),
    /// Copy inside the vault, without moving a byte
    Cp(change::Cp),
    /// Rename inside the vault
    Mv(change::Mv),
    /// Remove from the vault
    Rm(change::Rm),
    /// Show the vault as a read-only folder, as it is at the time of mounting
    Mount(mount::Mount),
    /// Look at the cluster
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Run and govern a storage node
    #[cfg(feature = "embedded")]
    #[command(subcommand)]
    Node(potluck_node::cli::NodeCommand),
    /// See it work: a cluster of 12 nodes in this process, files stored, nodes killed, every byte compared
    #[cfg(feature = "embedded")]
    Demo(crate::demo::Demo),
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Threads of a client command for disk and CPU work: more than either ever has use for at once.
const BLOCKING_THREADS: usize = 4;

impl Command {
    /// Nodes sync many shards at once.
    fn runs_nodes(&self) -> bool {
        #[cfg(feature = "embedded")]
        return matches!(self, Self::Node(_) | Self::Demo(_));
        #[cfg(not(feature = "embedded"))]
        false
    }

    /// A node has its own settings for its log.
    fn logs_itself(&self) -> bool {
        #[cfg(feature = "embedded")]
        return matches!(self, Self::Node(_));
        #[cfg(not(feature = "embedded"))]
        false
    }
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let root = arguments.options.clone();
    let screen = Screen::real(arguments.all_options());
    if screen.logs_wanted() && !arguments.command.logs_itself() {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_default();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    // Each thread that codes stripes keeps an arena of the allocator for itself: with dozens of them, an upload would hold
    // twice the memory that it uses.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all();
    if !arguments.command.runs_nodes() {
        builder.max_blocking_threads(BLOCKING_THREADS);
    }
    let runtime = match builder.build() {
        Ok(runtime) => runtime,
        Err(error) => {
            screen.error(&format!("the system gives no threads: {error}"), 1);
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(arguments.command, root, &screen)).unwrap_or_else(|error| {
        let failure = Failure::of(&error);
        if !failure.silent {
            screen.error(&format!("{error:#}"), failure.code);
        }
        failure.code
    });
    // A thread that waits for a disk or a terminal does not hold the end up.
    runtime.shutdown_background();
    ExitCode::from(code)
}

impl Arguments {
    /// The options given before the command's name and behind it; those behind it win.
    fn all_options(&self) -> Options {
        let own = match &self.command {
            Command::Vault(command) => command.options(),
            Command::Put(command) => &command.options,
            Command::Get(command) => &command.options,
            Command::Cat(command) => &command.options,
            Command::Ls(command) => &command.options,
            Command::Stat(command) => &command.options,
            Command::Cp(command) => &command.options,
            Command::Mv(command) => &command.options,
            Command::Rm(command) => &command.options,
            Command::Mount(command) => &command.options,
            Command::Cluster(command) => command.options(),
            #[cfg(feature = "embedded")]
            Command::Node(_) | Command::Demo(_) => return self.options.clone(),
            Command::Completions { .. } => return self.options.clone(),
        };
        own.over(&self.options)
    }
}

async fn run(command: Command, root: Options, screen: &Screen) -> anyhow::Result<u8> {
    let context = |own: &Options| context::Context::new(own.over(&root), screen);
    match command {
        Command::Vault(command) => {
            let context = context(command.options())?;
            let what = "What was done so far is kept: run the same command again to go on.";
            unless_interrupted(screen, what, vault::run(&context, command)).await
        }
        Command::Put(put) => {
            let context = context(&put.options)?;
            let what = "Nothing that was under way is in the vault: it is as it was at the last commit.";
            unless_interrupted(screen, what, send::put(&context, put)).await
        }
        Command::Get(get) => {
            let context = context(&get.options)?;
            let what = "Files that were finished are kept, of the one under way nothing remains.";
            unless_interrupted(screen, what, receive::get(&context, get)).await
        }
        Command::Cat(cat) => {
            let context = context(&cat.options)?;
            unless_interrupted(screen, "", receive::cat(&context, cat)).await
        }
        Command::Ls(ls) => {
            let context = context(&ls.options)?;
            unless_interrupted(screen, "", list::ls(&context, ls)).await
        }
        Command::Stat(stat) => {
            let context = context(&stat.options)?;
            unless_interrupted(screen, "", list::stat(&context, stat)).await
        }
        Command::Cp(cp) => {
            let context = context(&cp.options)?;
            unless_interrupted(screen, CHANGE_CUT, change::cp(&context, cp)).await
        }
        Command::Mv(mv) => {
            let context = context(&mv.options)?;
            unless_interrupted(screen, CHANGE_CUT, change::mv(&context, mv)).await
        }
        Command::Rm(rm) => {
            let context = context(&rm.options)?;
            unless_interrupted(screen, CHANGE_CUT, change::rm(&context, rm)).await
        }
        // It hears signals itself, once it is mounted: it unmounts.
        Command::Mount(mount) => {
            let context = context(&mount.options)?;
            mount::mount(&context, mount).await
        }
        Command::Cluster(command) => {
            let context = context(command.options())?;
            unless_interrupted(screen, "", cluster::run(&context, command)).await
        }
        // Nodes hear signals themselves: they say goodbye.
        #[cfg(feature = "embedded")]
        Command::Node(command) => potluck_node::cli::run(command).await,
        #[cfg(feature = "embedded")]
        Command::Demo(demo) => crate::demo::run(demo, screen).await,
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "potluck", &mut text);
            screen.raw(&text)?;
            Ok(0)
        }
    }
}

const CHANGE_CUT: &str = "The change may or may not have been committed; it is never in there by halves.";

/// Runs `work` unless Ctrl-C or SIGTERM comes first.
///
/// The signals are caught only once `work` waits for something: a prompt comes before, and there Ctrl-C just ends it.
pub(crate) async fn unless_interrupted(
    screen: &Screen,
    remains: &str,
    work: impl Future<Output = anyhow::Result<u8>>,
) -> anyhow::Result<u8> {
    tokio::select! {
        biased;
        done = work => done,
        () = signalled() => {
            screen.error(format!("interrupted. {remains}").trim_end(), INTERRUPTED);
            Ok(INTERRUPTED)
        }
    }
}

/// Returns at Ctrl-C or SIGTERM.
pub(crate) async fn signalled() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    fn parsed(line: &str) -> Arguments {
        Arguments::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn options_stand_before_or_behind_the_command() {
        assert_eq!(parsed("potluck --vault work ls").all_options().vault.as_deref(), Some("work"));
        assert_eq!(parsed("potluck ls --vault work").all_options().vault.as_deref(), Some("work"));
        assert_eq!(parsed("potluck --vault a ls --vault b").all_options().vault.as_deref(), Some("b"));
        assert!(parsed("potluck --json cluster status").all_options().json);
    }

    #[cfg(feature = "embedded")]
    #[test]
    fn a_nodes_options_are_its_own() {
        parsed("potluck node invite --data x --vault --quota 5GB --json");
        parsed("potluck node join potnode1x --data x --listen 127.0.0.1:1 --http off --zone z --capacity 1GB");
    }

    #[test]
    fn the_last_argument_of_put_is_the_place_in_the_vault() {
        let Command::Put(put) = parsed("potluck put a b c/ -r").command else { panic!("not a put") };
        assert_eq!((put.sources.len(), put.target.to_str()), (2, Some("c/")));
        assert!(Arguments::try_parse_from(["potluck", "put", "a"]).is_err());
    }
}
