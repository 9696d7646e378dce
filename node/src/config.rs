//! A node's configuration: four layers of optional settings (defaults, file, environment, flags), merged and checked.
//!
//! Flags weigh more than the environment, the environment more than the file, the file more than the defaults. The file
//! is `node.toml` in the data folder, or the one that `--config` names. Nothing here reads the clock or touches the
//! data folder beyond that file, and nothing is changed at run time: a new configuration needs a new start.

use std::{
    fmt, io,
    io::Read,
    net::{AddrParseError, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use potluck_proto::cert::ZONE_LIMIT;
use serde::{Deserialize, Serialize};

pub mod human;

use human::{ByteSize, Span};

/// The configuration file's name in the data folder.
pub const FILE_NAME: &str = "node.toml";

/// Longest configuration file, in bytes: anything longer is another file.
const FILE_LIMIT: u64 = 1 << 20;

/// Most addresses that a node advertises: an IPv4 and an IPv6 address on each of a few networks.
pub const ADVERTISE_LIMIT: usize = 8;

/// Least background budget, in bytes a second: below it a repair of one 16 MiB stripe would take minutes.
const BUDGET_MIN: u64 = 64 << 10;

/// What decides everything that an operator may choose. Made by [`ConfigArgs::load`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The folder with all that the node keeps.
    pub data: PathBuf,
    /// UDP address to listen on. `[::]` serves IPv6 and, where the system allows it (Linux does), IPv4 too;
    /// `0.0.0.0` serves IPv4 alone and works where IPv6 is switched off.
    pub listen: SocketAddr,
    /// Addresses at which others reach this node; empty: the node finds its own.
    pub advertise: Vec<SocketAddr>,
    /// TCP address of the HTTP page; none: no page.
    pub http: Option<SocketAddr>,
    /// Bytes offered; none: see [`Config::capacity_on`].
    pub capacity: Option<u64>,
    /// Failure domain; none: the one in the member certificate.
    pub zone: Option<String>,
    /// Bytes a second that all background work together may move.
    pub background_budget: u64,
    /// How long repair waits for a missing node while the margin is large.
    pub repair_lazy_after: Duration,
    /// How long a node stays away before it may be called lost.
    pub lost_after: Duration,
    /// Running time that a shard stays in the trash before it is deleted.
    pub trash_time: Duration,
    /// Time between two surveys of the stripes that this node is first responsible for.
    pub survey_interval: Duration,
    /// Time in which scrub reads the whole log once.
    pub scrub_time: Duration,
    /// Form of the log.
    pub log_format: LogFormat,
    /// What is logged, as tracing's `EnvFilter` reads it.
    pub log: String,
}

/// Form of the log on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people, coloured on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// The HTTP page's address, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HttpAddress {
    /// No page.
    Off,
    /// Serve on this address.
    On(SocketAddr),
}

/// One layer of settings; what is absent is left to the layer below. Also the file's schema.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// UDP address to listen on; `[::]:4701` serves IPv6 and IPv4. Default: 0.0.0.0:4701
    #[arg(long, env = "POTLUCK_LISTEN", value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Addresses at which others reach this node, with commas between them. Default: found by the node
    #[arg(long, env = "POTLUCK_ADVERTISE", value_name = "ADDR", value_delimiter = ',')]
    pub advertise: Option<Vec<SocketAddr>>,
    /// TCP address of the page with metrics and status, or "off". Default: 127.0.0.1:4702
    #[arg(long, env = "POTLUCK_HTTP", value_name = "ADDR")]
    pub http: Option<HttpAddress>,
    /// Disk space to offer, e.g. 500GB or 1.5TiB. Default: nine tenths of what is free
    #[arg(long, env = "POTLUCK_CAPACITY", value_name = "SIZE")]
    pub capacity: Option<ByteSize>,
    /// Failure domain: nodes that may fail together share one. Default: as in the member certificate
    #[arg(long, env = "POTLUCK_ZONE", value_name = "NAME")]
    pub zone: Option<String>,
    /// Bytes a second for all background work together. Default: 20MB
    #[arg(long, env = "POTLUCK_BACKGROUND_BUDGET", value_name = "SIZE")]
    pub background_budget: Option<ByteSize>,
    /// How long repair waits for a missing node while the margin is large. Default: 15m
    #[arg(long, env = "POTLUCK_REPAIR_LAZY_AFTER", value_name = "TIME")]
    pub repair_lazy_after: Option<Span>,
    /// How long a node stays away before it may be called lost. Default: 1d
    #[arg(long, env = "POTLUCK_LOST_AFTER", value_name = "TIME")]
    pub lost_after: Option<Span>,
    /// Running time that unwanted shards are kept before they are deleted. Default: 7d
    #[arg(long, env = "POTLUCK_TRASH_TIME", value_name = "TIME")]
    pub trash_time: Option<Span>,
    /// Time between two surveys of the stripes that this node looks after. Default: 1m
    #[arg(long, env = "POTLUCK_SURVEY_INTERVAL", value_name = "TIME")]
    pub survey_interval: Option<Span>,
    /// Time in which all that is stored here is read and checked once. Default: 14d
    #[arg(long, env = "POTLUCK_SCRUB_TIME", value_name = "TIME")]
    pub scrub_time: Option<Span>,
    /// Form of the log. Default: text
    #[arg(long, env = "POTLUCK_LOG_FORMAT", value_name = "FORM", value_enum)]
    pub log_format: Option<LogFormat>,
    /// What to log, e.g. debug or "info,quinn=warn". Default: info
    #[arg(long, env = "POTLUCK_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// The command line's and the environment's share, for `#[command(flatten)]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct ConfigArgs {
    /// Folder in which the node keeps everything
    #[arg(long, env = "POTLUCK_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Configuration file. Default: node.toml in the data folder, if there is one
    #[arg(long, env = "POTLUCK_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The settings proper.
    #[command(flatten)]
    pub settings: Settings,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No data folder was named.
    #[error("where does the node keep its data? Say it with --data DIR or POTLUCK_DATA")]
    NoData,
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no TOML, or names an unknown key, or a value does not fit its key.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, key and what is wrong there.
        source: Box<toml::de::Error>,
    },
    /// A value is outside its range.
    #[error("setting {key}: {reason}")]
    Invalid {
        /// The setting, as it is called in the file.
        key: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

impl ConfigArgs {
    /// Reads the file, puts these settings over it, and checks the whole.
    ///
    /// A file that `--config` names must be there; `node.toml` in the data folder may be absent.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let data = self.data.clone().ok_or(ConfigError::NoData)?;
        let file = match &self.config {
            Some(path) => read(path)?,
            None => match read(&data.join(FILE_NAME)) {
                Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    Settings::default()
                }
                other => other?,
            },
        };
        self.settings.clone().over(file).finish(data)
    }
}

impl Settings {
    /// The lowest layer. What it leaves out has no fixed default: addresses, capacity and zone.
    pub fn defaults() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        const DAY: Duration = Duration::from_secs(86_400);
        Self {
            listen: Some(SocketAddr::from(([0, 0, 0, 0], 4701))),
            advertise: None,
            http: Some(HttpAddress::On(SocketAddr::from(([127, 0, 0, 1], 4702)))),
            capacity: None,
            zone: None,
            // A sixth of a gigabit link: background work never fills it.
            background_budget: Some(ByteSize(20_000_000)),
            repair_lazy_after: Some(Span(15 * MINUTE)),
            lost_after: Some(Span(DAY)),
            trash_time: Some(Span(7 * DAY)),
            survey_interval: Some(Span(MINUTE)),
            scrub_time: Some(Span(14 * DAY)),
            log_format: Some(LogFormat::Text),
            log: Some("info".into()),
        }
    }

    /// These settings, and where they are silent, those of `below`.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            listen: self.listen.or(below.listen),
            advertise: self.advertise.or(below.advertise),
            http: self.http.or(below.http),
            capacity: self.capacity.or(below.capacity),
            zone: self.zone.or(below.zone),
            background_budget: self.background_budget.or(below.background_budget),
            repair_lazy_after: self.repair_lazy_after.or(below.repair_lazy_after),
            lost_after: self.lost_after.or(below.lost_after),
            trash_time: self.trash_time.or(below.trash_time),
            survey_interval: self.survey_interval.or(below.survey_interval),
            scrub_time: self.scrub_time.or(below.scrub_time),
            log_format: self.log_format.or(below.log_format),
            log: self.log.or(below.log),
        }
    }

    /// Puts these settings over the defaults and checks them.
    pub fn finish(self, data: PathBuf) -> Result<Config, ConfigError> {
        let merged = self.over(Self::defaults());
        let need = |key| ConfigError::Invalid { key, reason: "is not set".into() };
        let time = |key, span: Option<Span>, least: Duration| match span {
            None => Err(need(key)),
            Some(Span(time)) if time < least => Err(invalid(key, format!("must be at least {}", Span(least)))),
            Some(Span(time)) => Ok(time),
        };
        let tick = Duration::from_millis(100);
        let config = Config {
            data,
            listen: merged.listen.ok_or_else(|| need("listen"))?,
            advertise: merged.advertise.unwrap_or_default(),
            http: match merged.http {
                Some(HttpAddress::On(address)) => Some(address),
                Some(HttpAddress::Off) | None => None,
            },
            capacity: merged.capacity.map(|size| size.0),
            zone: merged.zone,
            background_budget: merged.background_budget.ok_or_else(|| need("background_budget"))?.0,
            repair_lazy_after: time("repair_lazy_after", merged.repair_lazy_after, Duration::ZERO)?,
            lost_after: time("lost_after", merged.lost_after, tick)?,
            trash_time: time("trash_time", merged.trash_time, tick)?,
            survey_interval: time("survey_interval", merged.survey_interval, tick)?,
            scrub_time: time("scrub_time", merged.scrub_time, tick)?,
            log_format: merged.log_format.ok_or_else(|| need("log_format"))?,
            log: merged.log.ok_or_else(|| need("log"))?,
        };
        config.check()?;
        Ok(config)
    }
}

impl Config {
    /// Bytes to offer, where the data folder's file system has `free` bytes and the node itself uses `used`:
    /// the chosen capacity, else nine tenths of both.
    pub fn capacity_on(&self, free: u64, used: u64) -> u64 {
        self.capacity.unwrap_or_else(|| free.saturating_add(used) / 10 * 9)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.advertise.len() > ADVERTISE_LIMIT {
            return Err(invalid("advertise", format!("at most {ADVERTISE_LIMIT} addresses")));
        }
        for address in &self.advertise {
            if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
                return Err(invalid("advertise", format!("nobody can reach {address}: name an address and a port")));
            }
        }
        if self.listen.ip().is_multicast() {
            return Err(invalid("listen", format!("{} is a multicast address", self.listen)));
        }
        if self.capacity == Some(0) {
            return Err(invalid("capacity", "a node that offers nothing cannot be in the ring".into()));
        }
        if let Some(zone) = &self.zone
            && (zone.is_empty() || zone.len() > ZONE_LIMIT || zone.chars().any(char::is_control))
        {
            return Err(invalid("zone", format!("must be 1 to {ZONE_LIMIT} bytes of plain text")));
        }
        if self.background_budget < BUDGET_MIN {
            return Err(invalid("background_budget", format!("must be at least {} a second", ByteSize(BUDGET_MIN))));
        }
        if self.repair_lazy_after > self.lost_after {
            let (lazy, lost) = (Span(self.repair_lazy_after), Span(self.lost_after));
            return Err(invalid("repair_lazy_after", format!("{lazy} is longer than lost_after, {lost}")));
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log) {
            return Err(invalid("log", format!("{:?} is no filter: {error}", self.log)));
        }
        Ok(())
    }
}

fn invalid(key: &'static str, reason: String) -> ConfigError {
    ConfigError::Invalid { key, reason }
}

fn read(path: &Path) -> Result<Settings, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.into(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    let length = file.take(FILE_LIMIT + 1).read_to_string(&mut text).map_err(failed)?;
    if length as u64 > FILE_LIMIT {
        return Err(failed(io::Error::other("it is longer than 1 MiB")));
    }
    toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.into(), source: Box::new(source) })
}

impl FromStr for HttpAddress {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, AddrParseError> {
        if text.eq_ignore_ascii_case("off") { Ok(Self::Off) } else { text.parse().map(Self::On) }
    }
}

impl TryFrom<String> for HttpAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|_| format!("{text:?} is neither \"off\" nor an address such as 127.0.0.1:4702"))
    }
}

impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On(address) => address.fmt(f),
        }
    }
}

impl From<HttpAddress> for String {
    fn from(address: HttpAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests;
