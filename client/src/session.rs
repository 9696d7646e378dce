//! A session: one device of a vault at work, the vault's pure core joined to the cluster, the clock and the disk.
//!
//! A [`Session`] reads the newest state ([`State`], through a [`Reader`]) and moves the vault on (a [`Writer`], which
//! commits). It decides nothing about placement or quorums, and nothing here prints or asks: front ends do.

mod commit;
mod durable;
pub mod error;
mod fetch;
pub mod file;
mod group;
pub mod home;
mod intake;
mod merging;
pub mod progress;
pub mod reader;
mod setup;
pub mod state;
mod upload;
pub mod writer;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use potluck_proto::cert::DeviceCert;
use potluck_proto::id::{ClusterId, VaultId};
use potluck_proto::key::SecretKey;
use potluck_proto::scheme::{self, ASSUMED_UPTIME};
use potluck_proto::stripe::Scheme;
use potluck_proto::transport::{BindError, Endpoint, Executor, Gate, Limits};
use rand::SeedableRng;
use rand::rngs::StdRng;

pub use self::error::SessionError;
pub use self::file::{FileReader, FileStream};
pub use self::group::{Group, GroupError};
pub use self::home::{Home, HomeError, VaultFolder};
pub use self::progress::Progress;
pub use self::reader::{Listing, Reader, Scan};
pub use self::setup::Recovered;
pub use self::state::{Freshness, Rollback, State};
pub use self::writer::{CHECKPOINT_INTERVAL, Committed, Meta, Preparing, Stored, Writer};

use self::fetch::Fetcher;
use crate::cluster::{Cluster, WallClock};
use crate::vault::keyfile::DeviceSecrets;
use crate::vault::keys::VaultKeys;
use crate::vault::sheet::{NODES_LIMIT, RecoverySheet, SheetNode};

/// Makes an endpoint for a key: a UDP socket, or a simulated one.
pub type Bind = Arc<dyn Fn(&SecretKey, Arc<dyn Gate>, Limits) -> Result<Endpoint, BindError> + Send + Sync>;

/// How long ending a session waits for calls under way.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// What the outside world is.
#[derive(Clone)]
pub struct Environment {
    /// Makes the endpoint.
    pub bind: Bind,
    /// Runs CPU-heavy work.
    pub executor: Executor,
    /// The time of day.
    pub clock: WallClock,
    /// Where all randomness comes from, a seed of its own for each session: equal ones make equal keys. None: the
    /// system's.
    pub seed: Option<u64>,
}

impl Environment {
    /// The real one: any free UDP port, as many threads as cores (two at least), the system's clock and randomness.
    pub fn real() -> Result<Self, SessionError> {
        let cores = std::thread::available_parallelism().map_or(2, NonZero::get).max(2);
        Ok(Self {
            bind: Arc::new(|key, gate, limits| {
                let bind = |ip: SocketAddr| Endpoint::bind(ip, key, gate.clone(), limits.clone());
                // The IPv6 wildcard takes IPv4 too; where the machine has no IPv6 at all, IPv4 alone.
                bind((Ipv6Addr::UNSPECIFIED, 0).into()).or_else(|_| bind((Ipv4Addr::UNSPECIFIED, 0).into()))
            }),
            executor: Executor::threads(cores),
            clock: Arc::new(|| {
                let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                since.map_or(0, |since| since.as_millis() as u64)
            }),
            seed: None,
        })
    }

    fn rng(&self) -> Result<StdRng, SessionError> {
        match self.seed {
            Some(seed) => Ok(StdRng::seed_from_u64(seed)),
            None => StdRng::try_from_rng(&mut rand::rngs::SysRng)
                .map_err(|error| SessionError::Randomness(error.to_string())),
        }
    }
}

/// What people call this machine.
fn host_name() -> String {
    let read = |path| std::fs::read_to_string(path).ok().map(|name| name.trim().to_string());
    let named = read("/proc/sys/kernel/hostname").or_else(|| read("/etc/hostname"));
    let named = named.or_else(|| std::env::var("HOSTNAME").ok()).filter(|name| !name.is_empty());
    named.unwrap_or_else(|| "unnamed".into())
}

/// What the parts of a session share.
struct Inner {
    folder: VaultFolder,
    executor: Executor,
    clock: WallClock,
    endpoint: Endpoint,
    cluster: Cluster,
    secrets: DeviceSecrets,
    keys: VaultKeys,
    cert: DeviceCert,
    fetcher: Fetcher,
    host: String,
    profile: Mutex<home::Profile>,
    rng: Mutex<StdRng>,
}

impl Inner {
    fn profile(&self) -> home::Profile {
        self.profile.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn with_rng<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One device of a vault, connected to its cluster. Clones are handles to the same.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

impl Session {
    /// The vault.
    #[must_use]
    pub fn vault_id(&self) -> VaultId {
        self.inner.keys.vault()
    }

    /// The cluster that keeps it.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.inner.profile().cluster
    }

    /// The way to the cluster.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.inner.cluster
    }

    /// Its folder on this machine.
    #[must_use]
    pub fn folder(&self) -> &VaultFolder {
        &self.inner.folder
    }

    /// The scheme of the next stripe: the one chosen, else the default for as many nodes as the cluster has now.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        let nodes = self.inner.cluster.members().ring().len();
        self.inner.profile().scheme.unwrap_or_else(|| scheme::default_scheme(nodes, ASSUMED_UPTIME))
    }

    /// The scheme that was chosen for this vault on this device; `None` while the cluster's size decides.
    #[must_use]
    pub fn chosen_scheme(&self) -> Option<Scheme> {
        self.inner.profile().scheme
    }

    /// Chooses the scheme of new stripes, or leaves it to the cluster's size. Stripes that exist stay as they are.
    pub fn set_scheme(&self, scheme: Option<Scheme>) -> Result<(), SessionError> {
        if let Some(scheme) = scheme {
            scheme::fits(scheme, self.inner.cluster.members().ring().len())?;
        }
        let mut profile = self.inner.profile.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = home::Profile { scheme, ..profile.clone() };
        self.inner.folder.set_profile(&changed)?;
        *profile = changed;
        Ok(())
    }

    /// The recovery sheet, with nodes that are up now first. Show it to the vault's owner only.
    #[must_use]
    pub fn recovery_sheet(&self) -> RecoverySheet {
        let view = self.inner.cluster.members().view();
        let mut records: Vec<_> = view.table.members().collect();
        records.sort_by_key(|record| !view.up.contains(&record.node()));
        let nodes = records.iter().filter_map(|record| {
            let address = *record.addresses.first()?;
            Some(SheetNode { node: record.node(), address })
        });
        RecoverySheet {
            secret: self.inner.secrets.vault.clone(),
            cluster: self.cluster_id(),
            nodes: nodes.take(NODES_LIMIT).collect(),
        }
    }

    /// Ends the session: what is known of the members is kept for the next, connections are closed.
    pub async fn close(self) {
        self.keep_members();
        self.inner.endpoint.close(CLOSE_DEADLINE).await;
    }
}

#[cfg(test)]
mod tests;
