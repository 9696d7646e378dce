//! How a session comes about: a new vault, an old one opened, one recovered from its sheet.
//!
//! Setting up can be cut off at any point and run again: the key file comes first and is gone on with, an invite that is
//! redeemed again by the same key gives the same certificate, and the profile, which makes a folder a vault, comes last.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use potluck_proto::cert::{DeviceCert, Rights, VaultCert};
use potluck_proto::head::SignedHead;
use potluck_proto::id::{ClusterId, DeviceId};
use potluck_proto::invite::InviteToken;
use potluck_proto::key::SecretKey;
use potluck_proto::scheme::{self, ASSUMED_UPTIME};
use potluck_proto::stripe::Scheme;
use potluck_proto::transport::{Endpoint, Limits};
use potluck_proto::wire;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::home::Profile;
use super::{CLOSE_DEADLINE, Environment, Fetcher, HomeError, Inner, Session, SessionError, State, VaultFolder};
use crate::cluster::gate::ClientGate;
use crate::cluster::join;
use crate::cluster::{self, Cluster, Members};
use crate::vault::commit::RootPointer;
use crate::vault::keyfile::{self, Cost, DeviceSecrets, Protection};
use crate::vault::keys::VaultSecret;
use crate::vault::sheet::RecoverySheet;

/// How long a new vault's first state may take: its head replicas have to find each other first.
const FIRST_STATE: Duration = Duration::from_secs(90);

/// Time between two attempts at it.
const FIRST_STATE_PAUSE: Duration = Duration::from_millis(500);

/// What the client's cluster access may use of the memory.
const CLUSTER_LIMITS: cluster::Limits =
    cluster::Limits { put_bytes: 64 << 20, read_bytes: 120 << 20, cache_bytes: 8 << 20, cache_stripes: 1024 };

/// What a recovery found.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// The newest state that any member of the cluster knows, with its date and how certain it is: show it to the user.
    pub state: State,
}

/// What stands between a key file and its secrets, owned.
enum Wrap {
    Passphrase(Zeroizing<String>, Cost),
    Bare,
}

impl Wrap {
    fn new(protection: &Protection<'_>) -> Self {
        match protection {
            Protection::Passphrase(passphrase, cost) => Self::Passphrase(Zeroizing::new((*passphrase).into()), *cost),
            Protection::Bare => Self::Bare,
        }
    }

    fn passphrase(&self) -> Option<Zeroizing<String>> {
        match self {
            Self::Passphrase(passphrase, _) => Some(passphrase.clone()),
            Self::Bare => None,
        }
    }

    fn borrow(&self) -> Protection<'_> {
        match self {
            Self::Passphrase(passphrase, cost) => Protection::Passphrase(passphrase, *cost),
            Self::Bare => Protection::Bare,
        }
    }
}

impl Session {
    /// Makes a new vault: redeems the token, makes this device, writes the first, empty state. If it was cut off, the
    /// same call, with the same protection, goes on. Show the sheet: it is all that brings the vault back elsewhere.
    ///
    /// How many nodes there are is told only to those who have redeemed their invite. So a scheme that they are too few
    /// for is refused after that ([`SessionError::SchemeRefused`]); the keys stay in the folder, and the invite is good
    /// for them: the same call with another scheme makes the vault.
    pub async fn create(
        env: &Environment,
        folder: VaultFolder,
        token: &InviteToken,
        protection: Protection<'_>,
        scheme: Option<Scheme>,
    ) -> Result<(Session, RecoverySheet), SessionError> {
        let secrets = prepare(env, &folder, protection, None).await?;
        let endpoint = stranger(env, &secrets, token.cluster)?;
        let redeemed = join::redeem_vault(&endpoint, token, (env.clock)()).await;
        endpoint.close(CLOSE_DEADLINE).await;
        let (cert, table) = redeemed?;
        let session = admitted(env, folder, secrets, (cert, table), scheme).await?;
        let fits = scheme.map_or(Ok(()), |scheme| scheme::fits(scheme, session.inner.cluster.members().ring().len()));
        if let Err(error) = fits {
            session.close().await;
            return Err(SessionError::SchemeRefused(error));
        }
        session.first_state().await?;
        session.inner.folder.set_profile(&session.inner.profile())?;
        let sheet = session.recovery_sheet();
        Ok((session, sheet))
    }

    /// Sets a vault up on this machine from its recovery sheet alone, as a new device. Every member is asked for the
    /// vault's heads, also those that do not replicate them now.
    ///
    /// No format carries the scheme that the vault's user chose, but each stripe its own: new data is coded as the newest
    /// commit is, unless that is what the cluster's size suggests anyway or the cluster is too small for it by now.
    pub async fn recover(
        env: &Environment,
        folder: VaultFolder,
        sheet: &RecoverySheet,
        protection: Protection<'_>,
    ) -> Result<(Session, Recovered), SessionError> {
        let secrets = prepare(env, &folder, protection, Some(&sheet.secret)).await?;
        let endpoint = stranger(env, &secrets, sheet.cluster)?;
        let fetched = join::fetch_vault(&endpoint, sheet.cluster, &sheet.nodes).await;
        endpoint.close(CLOSE_DEADLINE).await;
        let session = admitted(env, folder, secrets, fetched?, None).await?;
        let heads = session.read_heads_of_all().await?;
        let state = session.readable(&heads).await?;
        session.adopt_scheme(&heads.heads).await?;
        session.inner.folder.set_profile(&session.inner.profile())?;
        Ok((session, Recovered { state }))
    }

    /// Opens the vault of a folder and connects to its cluster.
    pub async fn open(
        env: &Environment,
        folder: VaultFolder,
        passphrase: Option<&str>,
    ) -> Result<Session, SessionError> {
        let profile = folder.profile()?;
        let keyfile = folder.keyfile()?.ok_or(SessionError::Mismatch("the key file is missing"))?;
        let passphrase = passphrase.map(|passphrase| Zeroizing::new(passphrase.to_string()));
        let secrets = unwrap(env, keyfile, passphrase).await?;
        let certs = folder.certs()?;
        let table = folder.members()?.and_then(|bytes| Members::decode_table(&bytes)).unwrap_or_default();
        let session = assemble(env, folder, secrets, certs, &table, profile)?;
        session.inner.cluster.connect().await?;
        session.keep_members();
        Ok(session)
    }

    /// Takes the scheme of the newest of these heads' commits for the chosen one.
    async fn adopt_scheme(&self, heads: &[SignedHead]) -> Result<(), SessionError> {
        let Some(newest) = heads.iter().max_by_key(|head| (head.created_ms, head.id())) else { return Ok(()) };
        let root = RootPointer::open(&self.inner.keys, &newest.root)?;
        let used = self.inner.cluster.header(root.pointer.stripe).await?.scheme;
        let nodes = self.inner.cluster.members().ring().len();
        let chosen = used != scheme::default_scheme(nodes, ASSUMED_UPTIME) && scheme::fits(used, nodes).is_ok();
        let mut profile = self.inner.profile.lock().unwrap_or_else(PoisonError::into_inner);
        profile.scheme = chosen.then_some(used);
        Ok(())
    }

    pub(super) fn keep_members(&self) {
        // A cache: the next session asks anyway.
        if let Err(error) = self.inner.folder.set_members(&self.inner.cluster.members().table_bytes()) {
            tracing::warn!(%error, "the members' table could not be kept");
        }
    }

    /// Writes the first state, unless there is one: tried again for a while, as a young cluster is still settling.
    async fn first_state(&self) -> Result<(), SessionError> {
        let over = Instant::now() + FIRST_STATE;
        loop {
            let result = self.try_first_state().await;
            match result {
                Err(
                    error @ (SessionError::NoQuorum(_)
                    | SessionError::TooFewUp { .. }
                    | SessionError::Head(_)
                    | SessionError::Put(_)
                    | SessionError::Contended { .. }),
                ) if Instant::now() < over => {
                    tracing::debug!(%error, "the first state is not written yet");
                    tokio::time::sleep(FIRST_STATE_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    async fn try_first_state(&self) -> Result<(), SessionError> {
        let writer = self.writer().await?;
        if writer.base().heads == 0 {
            writer.commit().await?;
        }
        Ok(())
    }
}

/// Makes the folder and this device's keys in it, or finds those that an attempt before this one made.
async fn prepare(
    env: &Environment,
    folder: &VaultFolder,
    protection: Protection<'_>,
    vault: Option<&VaultSecret>,
) -> Result<DeviceSecrets, SessionError> {
    if folder.is_set_up() {
        return Err(HomeError::Taken(folder.name().into()).into());
    }
    folder.make()?;
    let wrap = Wrap::new(&protection);
    if let Some(keyfile) = folder.keyfile()? {
        let secrets = unwrap(env, keyfile, wrap.passphrase()).await?;
        if vault.is_some_and(|vault| *vault != secrets.vault) {
            return Err(SessionError::Mismatch("an attempt at setting up another vault was begun here"));
        }
        return Ok(secrets);
    }
    let mut rng = env.rng()?;
    let vault = vault.cloned().unwrap_or_else(|| VaultSecret::generate(&mut rng));
    let secrets = DeviceSecrets { device: SecretKey::generate(&mut rng), vault };
    let kept = secrets.clone();
    let written = env.executor.run(move || keyfile::write(&kept, &wrap.borrow(), &mut rng)).await?;
    folder.set_keyfile(&written?)?;
    Ok(secrets)
}

async fn unwrap(
    env: &Environment,
    keyfile: Vec<u8>,
    passphrase: Option<Zeroizing<String>>,
) -> Result<DeviceSecrets, SessionError> {
    let read = move || keyfile::read(&keyfile, passphrase.as_ref().map(|passphrase| passphrase.as_str()));
    Ok(env.executor.run(read).await??)
}

/// An endpoint that proves the vault's own key.
fn stranger(env: &Environment, secrets: &DeviceSecrets, cluster: ClusterId) -> Result<Endpoint, SessionError> {
    let gate = Arc::new(ClientGate::stranger(cluster));
    Ok((env.bind)(secrets.vault.keys().signing(), gate, Limits::client())?)
}

/// The session of a vault that was just admitted or found again. The profile is not written yet.
async fn admitted(
    env: &Environment,
    folder: VaultFolder,
    secrets: DeviceSecrets,
    (vault_cert, table): (VaultCert, wire::Table),
    scheme: Option<Scheme>,
) -> Result<Session, SessionError> {
    let keys = secrets.vault.keys();
    let device = DeviceId::from(secrets.device.public());
    let kept = folder.certs().ok().map(|(cert, _)| cert).filter(|cert| cert.device() == device);
    let cert = kept
        .filter(|cert| cert.vault() == keys.vault())
        .unwrap_or_else(|| DeviceCert::issue(keys.signing(), device, Rights::ALL, (env.clock)(), 0));
    folder.set_certs(&cert, &vault_cert)?;
    let profile = Profile { cluster: vault_cert.cluster(), vault: keys.vault(), scheme };
    let session = assemble(env, folder, secrets, (cert, vault_cert), &table, profile)?;
    session.inner.cluster.connect().await?;
    session.keep_members();
    Ok(session)
}

/// Puts a session together; nothing is sent yet.
pub(super) fn assemble(
    env: &Environment,
    folder: VaultFolder,
    secrets: DeviceSecrets,
    (cert, vault_cert): (DeviceCert, VaultCert),
    table: &wire::Table,
    profile: Profile,
) -> Result<Session, SessionError> {
    let keys = secrets.vault.keys();
    if keys.vault() != profile.vault || cert.vault() != profile.vault || vault_cert.vault() != profile.vault {
        return Err(SessionError::Mismatch("keys, certificates and profile name different vaults"));
    }
    if cert.device() != DeviceId::from(secrets.device.public()) {
        return Err(SessionError::Mismatch("the certificate is of another device"));
    }
    if vault_cert.cluster() != profile.cluster {
        return Err(SessionError::Mismatch("the certificate is of another cluster"));
    }
    let gate = Arc::new(ClientGate::device(profile.cluster, cert.clone(), vault_cert));
    let endpoint = (env.bind)(&secrets.device, gate, Limits::client())?;
    let mut rng = env.rng()?;
    let cluster = Cluster::new(cluster::Parts {
        endpoint: endpoint.clone(),
        executor: env.executor.clone(),
        cluster: profile.cluster,
        table: table.clone(),
        rng: rand::rngs::StdRng::seed_from_u64(rng.next_u64()),
        limits: CLUSTER_LIMITS,
    });
    let fetcher = Fetcher::new(cluster.clone(), env.executor.clone(), keys.clone());
    let inner = Inner {
        folder,
        executor: env.executor.clone(),
        clock: env.clock.clone(),
        endpoint,
        cluster,
        secrets,
        keys,
        cert,
        fetcher,
        host: super::host_name(),
        profile: Mutex::new(profile),
        rng: Mutex::new(rng),
    };
    Ok(Session { inner: Arc::new(inner) })
}
