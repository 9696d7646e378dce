//! What the demo stores, and whether it comes back: every file's BLAKE3 is taken from the bytes handed to the client.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use blake3::{Hash, Hasher, OutputReader};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::cli::human;
use crate::cli::local::{Walk, measure};
use crate::cli::meter::Meter;
use crate::session::{Meta, Progress, Reader, Session, SessionError, State};
use crate::vault::entry::{Entry, Kind};
use crate::vault::path;

/// Bytes of the generated file.
const GENERATED: u64 = 256 << 20;

/// Its name.
const GENERATED_NAME: &str = "generated.bin";

/// Files compared at once: many are small, and each waits for the network.
const AT_ONCE: usize = 8;

/// What there is to store.
pub(super) struct Goods {
    folder: Option<PathBuf>,
    exclude: Vec<OsString>,
    generated: bool,
}

/// What was stored.
pub(super) struct Stored {
    files: BTreeMap<Bytes, (u64, Hash)>,
    /// Things that could not be read.
    pub(super) left_out: u64,
}

/// What came back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Compared {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) time: Duration,
}

impl Goods {
    /// A folder of the user's.
    pub(super) fn folder(folder: &Path) -> anyhow::Result<Self> {
        if !folder.is_dir() {
            bail!("{} is no folder", folder.display());
        }
        Ok(Self { folder: Some(folder.into()), exclude: Vec::new(), generated: false })
    }

    /// The source tree that this program was built from, where it still is, and a generated file.
    pub(super) fn default_goods() -> Self {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().filter(|tree| tree.join("Cargo.lock").is_file());
        Self { folder: tree.map(Path::to_path_buf), exclude: vec!["target".into(), ".git".into()], generated: true }
    }

    /// Bytes there are.
    pub(super) fn bytes(&self) -> u64 {
        let folder = self.folder.as_ref().map_or(0, |folder| measure(folder, &self.exclude).1);
        folder + if self.generated { GENERATED } else { 0 }
    }

    /// Stores all in one commit.
    pub(super) async fn store(&self, session: &Session, progress: &Arc<Progress>) -> anyhow::Result<Stored> {
        let mut writer = session.writer().await?;
        let mut stored = Stored { files: BTreeMap::new(), left_out: 0 };
        for found in self.folder.iter().flat_map(|folder| Walk::new(folder, &self.exclude)) {
            let Ok(found) = found else {
                stored.left_out += 1;
                continue;
            };
            let kind = found.metadata.file_type();
            if kind.is_dir() {
                continue;
            }
            let key = path::file([b"files/", &found.relative[..]].concat())?;
            if kind.is_symlink() {
                let target = Bytes::from(std::fs::read_link(&found.path)?.into_os_string().into_vec());
                stored.files.insert(key.clone(), (target.len() as u64, blake3::hash(&target)));
                writer.put_entry(key, Entry::symlink(target)).await?;
                continue;
            }
            let file = match File::open(&found.path) {
                Ok(file) if kind.is_file() => file,
                _ => {
                    stored.left_out += 1;
                    continue;
                }
            };
            let (source, seen) = Hashed::new(file);
            match writer.put_file(key.clone(), Meta::default(), source, progress).await {
                Ok(_) => stored.files.insert(key, seen.of_all()),
                Err(SessionError::Source(_)) => {
                    stored.left_out += 1;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
        }
        if self.generated {
            let key = Bytes::from_static(GENERATED_NAME.as_bytes());
            let noise =
                Noise { source: Hasher::new().update(session.vault_id().as_bytes()).finalize_xof(), left: GENERATED };
            let (source, seen) = Hashed::new(noise);
            writer.put_file(key.clone(), Meta::default(), source, progress).await?;
            stored.files.insert(key, seen.of_all());
        }
        if stored.files.is_empty() {
            bail!("there is no file to store");
        }
        writer.commit().await?;
        Ok(stored)
    }
}

impl Stored {
    /// How many files.
    pub(super) fn files(&self) -> u64 {
        self.files.len() as u64
    }

    /// Their bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.files.values().map(|(bytes, _)| bytes).sum()
    }

    /// Reads everything that the vault holds and compares it with what was stored: all of it, and nothing else.
    pub(super) async fn compare(&self, session: &Session, state: &State, meter: &Meter) -> anyhow::Result<Compared> {
        let begun = Instant::now();
        let reader = session.reader(state);
        let (mut scan, mut found) = (reader.scan(Bytes::new()), Vec::new());
        while let Some((key, entry)) = scan.next().await? {
            if entry.kind != Kind::Dir {
                found.push((key, entry));
            }
        }
        if found.len() != self.files.len() {
            bail!("{} were stored, {} are in the vault", human::count(self.files(), "file"), found.len());
        }
        let compared = stream::iter(found).map(|(key, entry)| self.compare_one(&reader, key, entry, meter));
        let bytes = compared.buffer_unordered(AT_ONCE).try_fold(0, async |sum, bytes| Ok(sum + bytes)).await?;
        Ok(Compared { files: self.files(), bytes, time: begun.elapsed() })
    }

    async fn compare_one(&self, reader: &Reader, key: Bytes, entry: Entry, meter: &Meter) -> anyhow::Result<u64> {
        let name = || human::name(&key);
        let (size, hash) = self.files.get(&key).with_context(|| format!("{} was never stored", name()))?;
        let (mut hasher, mut bytes) = (Hasher::new(), 0);
        let mut stream = reader.open(entry).stream(0..u64::MAX);
        while let Some(part) = stream.next().await {
            let part = part.with_context(|| format!("{} cannot be read", name()))?;
            hasher.update(&part);
            bytes += part.len() as u64;
            meter.add(part.len() as u64);
        }
        if bytes != *size || hasher.finalize() != *hash {
            bail!("{} came back with other bytes than were stored", name());
        }
        Ok(bytes)
    }
}

/// Hashes what is read through it.
struct Hashed<R> {
    inner: R,
    seen: Seen,
}

/// What was read through a [`Hashed`]: how many bytes, and their hash.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<(u64, Hasher)>>);

impl Seen {
    fn of_all(&self) -> (u64, Hash) {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (seen.0, seen.1.finalize())
    }
}

impl<R> Hashed<R> {
    fn new(inner: R) -> (Self, Seen) {
        let seen = Seen::default();
        (Self { inner, seen: seen.clone() }, seen)
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let mut seen = self.seen.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.0 += read as u64;
        seen.1.update(&buffer[..read]);
        Ok(read)
    }
}

/// Bytes that no compression shortens: BLAKE3's output stream.
struct Noise {
    source: OutputReader,
    left: u64,
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        self.source.fill(&mut buffer[..length]);
        self.left -= length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_hashed_and_noise_has_its_length() {
        let noise = |left| Noise { source: Hasher::new().finalize_xof(), left };
        let (mut source, seen) = Hashed::new(noise(100_001));
        let mut read = Vec::new();
        source.read_to_end(&mut read).unwrap();
        assert_eq!(seen.of_all(), (100_001, blake3::hash(&read)));
        assert_eq!(read.len(), 100_001);
        let mut other = Vec::new();
        noise(64).read_to_end(&mut other).unwrap();
        assert_eq!(other, read[..64]);
    }
}
