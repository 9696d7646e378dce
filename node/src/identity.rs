//! Who the node is: the keys and certificate in its data folder, and the lock that keeps a second process out.
//!
//! `node.key` is the node. `cluster.key` is only on the node that founded the cluster; whoever has it admits nodes and
//! vaults. Both are 32 secret bytes in files that only their owner reads.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use potluck_proto::cert::MemberCert;
use potluck_proto::id::{ClusterId, NodeId};
use potluck_proto::key::SecretKey;

use crate::durable;

const NODE_KEY: &str = "node.key";
const CLUSTER_KEY: &str = "cluster.key";
const MEMBER_CERT: &str = "member.cert";
const LOCK: &str = "lock";

/// Why the data folder is of no use. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Nothing was set up here yet.
    #[error("{} holds no node yet: found a cluster with 'potluck node init', or join one with 'potluck node join TOKEN'", .0.display())]
    Empty(PathBuf),
    /// There is a node already.
    #[error("{} holds a node of cluster {cluster} already: choose another folder, or use it as it is", folder.display())]
    Taken {
        /// The folder.
        folder: PathBuf,
        /// The cluster that its node belongs to.
        cluster: ClusterId,
    },
    /// It lies inside the folder of another node.
    #[error("{} lies inside {}, the folder of another node: choose one beside it", folder.display(), outer.display())]
    Inside {
        /// The folder.
        folder: PathBuf,
        /// The other node's.
        outer: PathBuf,
    },
    /// Another process has it open.
    #[error("{} is in use by another process: stop that one first", .0.display())]
    Locked(PathBuf),
    /// A file in it is damaged.
    #[error("{} is damaged ({why}): restore it from a copy", path.display())]
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
    /// A cluster key that is not that of the node's cluster.
    #[error("these are the words of another cluster than this node's, {}", .0.short())]
    OtherCluster(ClusterId),
}

/// Keeps a second process out of a data folder while it lives.
#[derive(Debug)]
pub struct FolderLock(#[expect(dead_code, reason = "held, never read: closing the file ends the lock")] File);

/// A node's keys and certificate, and its folder.
#[derive(Debug)]
pub struct Identity {
    /// The data folder.
    pub folder: PathBuf,
    /// The node's key.
    pub key: SecretKey,
    /// Its admission.
    pub cert: MemberCert,
    /// The cluster's key, on the node that founded it.
    pub cluster_key: Option<SecretKey>,
}

impl Identity {
    /// The node's id.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.key.public().into()
    }

    /// Opens and locks a data folder.
    pub fn open(folder: &Path) -> Result<(Self, FolderLock), IdentityError> {
        let (key, cert) = operator(folder)?;
        let lock = lock(folder)?;
        let cluster_key = read_key(&folder.join(CLUSTER_KEY))?;
        Ok((Self { folder: folder.into(), key, cert, cluster_key }, lock))
    }
}

/// Whether the folder holds an admitted node.
pub fn exists(folder: &Path) -> Result<Option<MemberCert>, IdentityError> {
    let path = folder.join(MEMBER_CERT);
    match durable::read(&path).map_err(|source| IdentityError::Io { path: path.clone(), source })? {
        None => Ok(None),
        Some(bytes) => match MemberCert::decode(&bytes) {
            Ok(cert) => Ok(Some(cert)),
            Err(error) => Err(IdentityError::Damaged { path, why: error.to_string() }),
        },
    }
}

/// Key and certificate of the node in `folder` without locking it: what lets its operator speak to the running node.
pub fn operator(folder: &Path) -> Result<(SecretKey, MemberCert), IdentityError> {
    let cert = exists(folder)?.ok_or_else(|| IdentityError::Empty(folder.into()))?;
    let path = folder.join(NODE_KEY);
    match read_key(&path)? {
        Some(key) if NodeId::from(key.public()) == cert.node() => Ok((key, cert)),
        Some(_) => Err(IdentityError::Damaged { path, why: "not the key that the certificate names".into() }),
        None => Err(IdentityError::Damaged { path, why: "missing".into() }),
    }
}

/// Makes the key of a node to be, or finds the one that an interrupted attempt made: redeeming an invite again with the
/// same key gives the same certificate.
pub fn prepare(folder: &Path, rng: &mut impl rand::Rng) -> Result<SecretKey, IdentityError> {
    if let Some(cert) = exists(folder)? {
        return Err(IdentityError::Taken { folder: folder.into(), cluster: cert.cluster() });
    }
    refuse_inside(folder)?;
    fs::create_dir_all(folder).map_err(|source| IdentityError::Io { path: folder.into(), source })?;
    let path = folder.join(NODE_KEY);
    if let Some(key) = read_key(&path)? {
        return Ok(key);
    }
    let key = SecretKey::generate(rng);
    write(&path, &*key.seed())?;
    Ok(key)
}

/// A node's folder is that node's alone: another's data in it would be counted, moved and thrown away with it.
fn refuse_inside(folder: &Path) -> Result<(), IdentityError> {
    // The folder itself need not be there yet, nor some of those around it; links and `..` lead where they lead.
    let absolute = std::path::absolute(folder).map_err(|source| IdentityError::Io { path: folder.into(), source })?;
    let there = absolute.ancestors().find_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
    let Some((ancestor, real)) = there else { return Ok(()) };
    let around = if ancestor == absolute { real.parent() } else { Some(real.as_path()) };
    let outer = around.into_iter().flat_map(Path::ancestors).find(|outer| outer.join(NODE_KEY).exists());
    match outer {
        Some(outer) => Err(IdentityError::Inside { folder: folder.into(), outer: outer.into() }),
        None => Ok(()),
    }
}

/// Puts the certificate in place: from now on the folder holds a node.
pub fn admit(folder: &Path, cert: &MemberCert) -> Result<(), IdentityError> {
    write(&folder.join(MEMBER_CERT), cert.as_bytes())
}

/// Founds a cluster: makes its key and this node's, and admits the node. Returns the cluster's key, to be shown once.
pub fn found(
    folder: &Path,
    zone: Option<&str>,
    now_ms: u64,
    rng: &mut impl rand::Rng,
) -> Result<(SecretKey, MemberCert), IdentityError> {
    let key = prepare(folder, rng)?;
    let path = folder.join(CLUSTER_KEY);
    let cluster_key = match read_key(&path)? {
        Some(key) => key,
        None => {
            let cluster_key = SecretKey::generate(rng);
            write(&path, &*cluster_key.seed())?;
            cluster_key
        }
    };
    let node = NodeId::from(key.public());
    let zone = zone.map_or_else(|| default_zone(node), str::to_string);
    let cert = MemberCert::issue(&cluster_key, node, &zone, 0, now_ms);
    admit(folder, &cert)?;
    Ok((cluster_key, cert))
}

/// Gives a stopped node the cluster's key, so that it invites. The node must be a member of that very cluster.
pub fn restore_cluster_key(folder: &Path, seed: &[u8; 32]) -> Result<MemberCert, IdentityError> {
    let (identity, _lock) = Identity::open(folder)?;
    let key = SecretKey::from_seed(seed);
    if ClusterId::from(key.public()) != identity.cert.cluster() {
        return Err(IdentityError::OtherCluster(identity.cert.cluster()));
    }
    write(&folder.join(CLUSTER_KEY), seed)?;
    Ok(identity.cert)
}

/// The zone of a node whose operator named none: one of its own.
#[must_use]
pub fn default_zone(node: NodeId) -> String {
    format!("node-{}", node.short())
}

fn write(path: &Path, contents: &[u8]) -> Result<(), IdentityError> {
    durable::replace(path, contents).map_err(|source| IdentityError::Io { path: path.into(), source })
}

fn read_key(path: &Path) -> Result<Option<SecretKey>, IdentityError> {
    let bytes = durable::read(path).map_err(|source| IdentityError::Io { path: path.into(), source })?;
    bytes
        .map(|bytes| match <&[u8; 32]>::try_from(&bytes[..]) {
            Ok(seed) => Ok(SecretKey::from_seed(seed)),
            Err(_) => Err(IdentityError::Damaged { path: path.into(), why: "not 32 bytes long".into() }),
        })
        .transpose()
}

fn lock(folder: &Path) -> Result<FolderLock, IdentityError> {
    let path = folder.join(LOCK);
    let failed = |source| IdentityError::Io { path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(FolderLock(file)),
        Err(TryLockError::WouldBlock) => Err(IdentityError::Locked(folder.into())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn rng() -> rand::rngs::StdRng {
        rand::rngs::StdRng::seed_from_u64(1)
    }

    #[test]
    fn founding_opening_and_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Identity::open(folder.path()), Err(IdentityError::Empty(_))));
        let (cluster_key, cert) = found(folder.path(), Some("attic"), 5, &mut rng()).unwrap();
        assert!(matches!(found(folder.path(), None, 5, &mut rng()), Err(IdentityError::Taken { .. })));
        let (opened, lock) = Identity::open(folder.path()).unwrap();
        assert_eq!(opened.cert, cert);
        assert_eq!(opened.cluster_key.as_ref().unwrap().public(), cluster_key.public());
        assert!(matches!(Identity::open(folder.path()), Err(IdentityError::Locked(_))));
        assert!(operator(folder.path()).is_ok());
        drop(lock);
        assert!(Identity::open(folder.path()).is_ok());
    }

    #[test]
    fn an_interrupted_start_goes_on_with_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        let first = prepare(folder.path(), &mut rng()).unwrap();
        let again = prepare(folder.path(), &mut rand::rngs::StdRng::seed_from_u64(2)).unwrap();
        assert_eq!(first.public(), again.public());
    }

    #[test]
    fn not_inside_another_nodes_folder() {
        let folder = tempfile::tempdir().unwrap();
        let outer = folder.path().join("node1");
        found(&outer, None, 5, &mut rng()).unwrap();
        fs::create_dir(folder.path().join("x")).unwrap();
        for inside in [outer.join("node2"), outer.join("a/b/c"), folder.path().join("x/../node1/node2")] {
            let refused = found(&inside, None, 5, &mut rng());
            assert!(matches!(refused, Err(IdentityError::Inside { .. })), "{}: {refused:?}", inside.display());
        }
        let linked = folder.path().join("linked");
        std::os::unix::fs::symlink(&outer, &linked).unwrap();
        assert!(matches!(prepare(&linked.join("node2"), &mut rng()), Err(IdentityError::Inside { .. })));
        assert!(!outer.join("node2").exists(), "nothing is made before it is refused");
        found(&folder.path().join("node2"), None, 5, &mut rng()).unwrap();
    }

    #[test]
    fn damage_is_said() {
        let folder = tempfile::tempdir().unwrap();
        found(folder.path(), None, 5, &mut rng()).unwrap();
        fs::write(folder.path().join(NODE_KEY), b"short").unwrap();
        assert!(matches!(Identity::open(folder.path()), Err(IdentityError::Damaged { .. })));
        fs::write(folder.path().join(MEMBER_CERT), b"x").unwrap();
        assert!(matches!(Identity::open(folder.path()), Err(IdentityError::Damaged { .. })));
    }
}
