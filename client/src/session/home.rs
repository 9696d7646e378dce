//! The client's folder on this machine: one folder per vault, each with a profile, keys and a little synced state.
//!
//! It knows files, not what they mean to the cluster. Every file is replaced whole, so that a crash leaves the old
//! contents or the new ones. `profile.toml` comes last: a folder without it is a vault whose setting up was cut off, and
//! can be gone on with.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use potluck_proto::cert::{DeviceCert, VaultCert};
use potluck_proto::encoding::{DecodeError, Decoder, Encoder};
use potluck_proto::head::VersionVector;
use potluck_proto::id::{ClusterId, VaultId};
use potluck_proto::stripe::Scheme;
use serde::{Deserialize, Serialize};

use super::durable;

/// Environment variable that names the home folder.
pub const HOME_VARIABLE: &str = "POTLUCK_HOME";

/// The vault that is meant where several are there and none is named.
pub const DEFAULT_VAULT: &str = "default";

/// Longest name of a vault, in bytes.
pub const NAME_LIMIT: usize = 64;

const PROFILE: &str = "profile.toml";
const KEYFILE: &str = "device.key";
const DEVICE_CERT: &str = "device.cert";
const VAULT_CERT: &str = "vault.cert";
const MEMBERS: &str = "members";
const COUNTER: &str = "counter";
const SEEN: &str = "seen";
const LOCK: &str = "lock";

/// Newest format version of the small binary files.
const STATE_VERSION: u16 = 1;

/// Why a folder on this machine is of no use. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Neither the variable nor the platform says where.
    #[error("this system has no folder for a program's data: set {HOME_VARIABLE}")]
    NoFolder,
    /// The name cannot be a folder's.
    #[error("{0:?} cannot be a vault's name: use letters, digits, '-', '_' and '.', not first")]
    Name(String),
    /// No vault is there at all.
    #[error(
        "there is no vault on this machine yet: make one with 'potluck vault create', or recover one from its sheet"
    )]
    NoVault(PathBuf),
    /// Not this one.
    #[error("there is no vault {name:?} on this machine (there is: {})", there.join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
        /// Those that are there.
        there: Vec<String>,
    },
    /// Several, and none was named.
    #[error("there are several vaults on this machine: name one of {}", .0.join(", "))]
    Several(Vec<String>),
    /// There is a vault of this name.
    #[error("there is a vault {0:?} on this machine already: choose another name")]
    Taken(String),
    /// Another process writes to the vault.
    #[error("another process is writing to vault {0:?}: wait for it to end")]
    Busy(String),
    /// A file is damaged.
    #[error("{} is damaged ({why}): recover the vault into another folder from its recovery sheet", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The operating system failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> HomeError + '_ {
    move |source| HomeError::Io { path: path.into(), source }
}

/// The folder of all vaults of this user on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// The home in this folder, which need not exist yet.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The home that is meant: `explicit`, else `$POTLUCK_HOME`, else the platform's folder for a program's data.
    pub fn find(explicit: Option<PathBuf>) -> Result<Self, HomeError> {
        let named =
            explicit.or_else(|| std::env::var_os(HOME_VARIABLE).filter(|path| !path.is_empty()).map(Into::into));
        if let Some(path) = named {
            return Ok(Self(path));
        }
        use etcetera::BaseStrategy;
        let base = etcetera::choose_base_strategy().map_err(|_| HomeError::NoFolder)?;
        Ok(Self(base.data_dir().join("potluck")))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The names of the vaults that are set up, sorted.
    pub fn vaults(&self) -> Result<Vec<String>, HomeError> {
        let folders = match fs::read_dir(&self.0) {
            Ok(folders) => folders,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_at(&self.0)(error)),
        };
        let mut names = Vec::new();
        for folder in folders {
            let folder = folder.map_err(io_at(&self.0))?;
            let name = folder.file_name().to_string_lossy().into_owned();
            if valid_name(&name) && folder.path().join(PROFILE).is_file() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The folder of the vault of this name, which need not exist yet.
    pub fn vault(&self, name: &str) -> Result<VaultFolder, HomeError> {
        if !valid_name(name) {
            return Err(HomeError::Name(name.into()));
        }
        Ok(VaultFolder { name: name.into(), path: self.0.join(name) })
    }

    /// The folder of the vault that is meant: that of this name, or without one the only one, or the one called
    /// [`DEFAULT_VAULT`]. It is set up.
    pub fn only_or_default(&self, name: Option<&str>) -> Result<VaultFolder, HomeError> {
        let there = self.vaults()?;
        match (name, &there[..]) {
            (_, []) => Err(HomeError::NoVault(self.0.clone())),
            (Some(name), _) if there.iter().any(|have| have == name) => self.vault(name),
            (Some(name), _) => Err(HomeError::Unknown { name: name.into(), there }),
            (None, [only]) => self.vault(only),
            (None, _) if there.iter().any(|have| have == DEFAULT_VAULT) => self.vault(DEFAULT_VAULT),
            (None, _) => Err(HomeError::Several(there)),
        }
    }
}

fn valid_name(name: &str) -> bool {
    let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    letters && (1..=NAME_LIMIT).contains(&name.len()) && !name.starts_with('.')
}

/// What people may read and, apart from the ids, change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The cluster that keeps the vault.
    #[serde(with = "text")]
    pub cluster: ClusterId,
    /// The vault.
    #[serde(with = "text")]
    pub vault: VaultId,
    /// How new stripes are coded, if the user chose; else the cluster's size decides.
    #[serde(default, with = "text_option", skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
}

/// Values that are written as their text.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(source: D) -> Result<T, D::Error> {
        String::deserialize(source)?.parse().map_err(D::Error::custom)
    }
}

/// The same for values that may be missing.
mod text_option {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        source: D,
    ) -> Result<Option<T>, D::Error> {
        Option::<String>::deserialize(source)?.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

/// A device's place in version vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// The number under which it writes.
    pub number: u64,
    /// The last counter that it may have sent.
    pub counter: u64,
    /// Whatever was sent was acknowledged: no head is on its way, and none was left with too few replicas.
    pub clean: bool,
}

/// What this device remembers of the newest state that it has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// All that it included.
    pub vector: VersionVector,
    /// When it was committed, milliseconds since 1970, by its writer's clock.
    pub committed_ms: u64,
}

/// The folder of one vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultFolder {
    name: String,
    path: PathBuf,
}

/// Held by the one process that writes to the vault.
#[derive(Debug)]
pub struct WriterLock(#[expect(dead_code, reason = "held for its drop")] File);

impl VaultFolder {
    /// The vault's name on this machine.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the vault is set up here.
    #[must_use]
    pub fn is_set_up(&self) -> bool {
        self.path.join(PROFILE).is_file()
    }

    /// Whether the key file asks for a passphrase; `None` if there is no key file yet.
    pub fn needs_passphrase(&self) -> Result<Option<bool>, super::SessionError> {
        let Some(keyfile) = self.keyfile()? else { return Ok(None) };
        Ok(Some(crate::vault::keyfile::needs_passphrase(&keyfile)?))
    }

    /// Makes the folder.
    pub(super) fn make(&self) -> Result<(), HomeError> {
        durable::make_folder(&self.path).map_err(io_at(&self.path))
    }

    fn read(&self, file: &str) -> Result<Option<Vec<u8>>, HomeError> {
        let path = self.path.join(file);
        durable::read(&path).map_err(io_at(&path))
    }

    fn replace(&self, file: &str, contents: &[u8]) -> Result<(), HomeError> {
        let path = self.path.join(file);
        durable::replace(&path, contents).map_err(io_at(&path))
    }

    fn damaged(&self, file: &str, why: impl ToString) -> HomeError {
        HomeError::Damaged { path: self.path.join(file), why: why.to_string() }
    }

    /// The profile. [`HomeError::NoVault`] if the vault is not set up.
    pub fn profile(&self) -> Result<Profile, HomeError> {
        let bytes = self.read(PROFILE)?.ok_or_else(|| HomeError::NoVault(self.path.clone()))?;
        let text = String::from_utf8(bytes).map_err(|error| self.damaged(PROFILE, error))?;
        toml::from_str(&text).map_err(|error| self.damaged(PROFILE, error.message()))
    }

    pub(super) fn set_profile(&self, profile: &Profile) -> Result<(), HomeError> {
        let text = toml::to_string(profile).map_err(|error| self.damaged(PROFILE, error))?;
        self.replace(PROFILE, text.as_bytes())
    }

    pub(super) fn keyfile(&self) -> Result<Option<Vec<u8>>, HomeError> {
        self.read(KEYFILE)
    }

    pub(super) fn set_keyfile(&self, bytes: &[u8]) -> Result<(), HomeError> {
        self.replace(KEYFILE, bytes)
    }

    pub(super) fn certs(&self) -> Result<(DeviceCert, VaultCert), HomeError> {
        let missing = |file| self.damaged(file, "it is missing");
        let device = self.read(DEVICE_CERT)?.ok_or_else(|| missing(DEVICE_CERT))?;
        let vault = self.read(VAULT_CERT)?.ok_or_else(|| missing(VAULT_CERT))?;
        let device = DeviceCert::decode(&device).map_err(|error| self.damaged(DEVICE_CERT, error))?;
        let vault = VaultCert::decode(&vault).map_err(|error| self.damaged(VAULT_CERT, error))?;
        Ok((device, vault))
    }

    pub(super) fn set_certs(&self, device: &DeviceCert, vault: &VaultCert) -> Result<(), HomeError> {
        self.replace(DEVICE_CERT, device.as_bytes())?;
        self.replace(VAULT_CERT, vault.as_bytes())
    }

    /// The members' table as it was kept; `None` if there is none or it is damaged: it is a cache.
    pub(super) fn members(&self) -> Result<Option<Vec<u8>>, HomeError> {
        self.read(MEMBERS)
    }

    pub(super) fn set_members(&self, bytes: &[u8]) -> Result<(), HomeError> {
        self.replace(MEMBERS, bytes)
    }

    /// The device's counter; `None` where none was kept, or it is damaged: then a new number is taken.
    pub(super) fn counter(&self) -> Result<Option<Counter>, HomeError> {
        Ok(self.read(COUNTER)?.and_then(|bytes| checked(&bytes, decode_counter).ok()))
    }

    /// Durable when it returns.
    pub(super) fn set_counter(&self, counter: &Counter) -> Result<(), HomeError> {
        let mut encoder = Encoder::new();
        encoder.u16(STATE_VERSION).u64(counter.number).u64(counter.counter).u8(counter.clean.into());
        self.replace(COUNTER, &with_sum(encoder))
    }

    /// The newest state seen. Damage is an error: what it guards against may have caused it.
    pub(super) fn seen(&self) -> Result<Seen, HomeError> {
        let Some(bytes) = self.read(SEEN)? else { return Ok(Seen::default()) };
        checked(&bytes, decode_seen).map_err(|error| self.damaged(SEEN, error))
    }

    pub(super) fn set_seen(&self, seen: &Seen) -> Result<(), HomeError> {
        let mut encoder = Encoder::new();
        encoder.u16(STATE_VERSION).u64(seen.committed_ms);
        seen.vector.encode(&mut encoder);
        self.replace(SEEN, &with_sum(encoder))
    }

    /// Takes the lock of the one writer; [`HomeError::Busy`] if another has it.
    pub(super) fn lock(&self) -> Result<WriterLock, HomeError> {
        let path = self.path.join(LOCK);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io_at(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(WriterLock(file)),
            Err(TryLockError::WouldBlock) => Err(HomeError::Busy(self.name.clone())),
            Err(TryLockError::Error(source)) => Err(HomeError::Io { path, source }),
        }
    }

    /// What is in the folder and how long it is, for people.
    pub fn files(&self) -> Result<BTreeMap<String, u64>, HomeError> {
        let mut files = BTreeMap::new();
        for file in fs::read_dir(&self.path).map_err(io_at(&self.path))? {
            let file = file.map_err(io_at(&self.path))?;
            let len = file.metadata().map_err(io_at(&self.path))?.len();
            files.insert(file.file_name().to_string_lossy().into_owned(), len);
        }
        Ok(files)
    }
}

const SUM_LEN: usize = 16;

/// A file's bytes with the start of their BLAKE3 behind them, so that damage is seen.
fn with_sum(encoder: Encoder) -> Vec<u8> {
    let mut bytes = encoder.into_bytes();
    let sum = blake3::hash(&bytes);
    bytes.extend_from_slice(&sum.as_bytes()[..SUM_LEN]);
    bytes
}

fn checked<T>(bytes: &[u8], read: impl FnOnce(&mut Decoder<'_>) -> Result<T, DecodeError>) -> Result<T, DecodeError> {
    let damaged = DecodeError::Invalid { field: "checksum", why: "does not match" };
    let split = bytes.len().checked_sub(SUM_LEN).ok_or_else(|| damaged.clone())?;
    let (body, sum) = bytes.split_at(split);
    if blake3::hash(body).as_bytes()[..SUM_LEN] != *sum {
        return Err(damaged);
    }
    let mut decoder = Decoder::new(body);
    decoder.version("state file", STATE_VERSION)?;
    let value = read(&mut decoder)?;
    decoder.finish()?;
    Ok(value)
}

fn decode_counter(decoder: &mut Decoder<'_>) -> Result<Counter, DecodeError> {
    let (number, counter) = (decoder.u64("device number")?, decoder.u64("counter")?);
    Ok(Counter { number, counter, clean: decoder.u8("clean")? == 1 })
}

fn decode_seen(decoder: &mut Decoder<'_>) -> Result<Seen, DecodeError> {
    let committed_ms = decoder.u64("committed")?;
    Ok(Seen { vector: VersionVector::decode(decoder)?, committed_ms })
}

#[cfg(test)]
mod tests;
