//! What lies beside the log is taken into it: the member table as the command that joined the cluster and the last good
//! end wrote it down, and the heads of an earlier version.
//!
//! The table's file stays: a node whose log is lost finds the others by it. A file of heads is removed once they are in
//! the log; a start that is cut off does it again. Shards of the store before this one are not read: a folder that has
//! some is refused.

use std::fs;
use std::io;
use std::path::Path;

use potluck_proto::id::{ClusterId, VaultId};
use potluck_proto::member::MemberTable;
use potluck_proto::replica::Replica;
use potluck_proto::wire;
use prost::Message;

use crate::durable;
use crate::join::TABLE;
use crate::store::StoreError;
use crate::store::segments::SegmentStore;
use crate::store::segments::format::Kind;

/// The folder in which heads were.
const HEADS: &str = "heads";

/// The folder in which shards were.
const SHARDS: &str = "shards";

/// An error if the folder has shards of the store before this one. Nothing is changed.
pub fn refuse(folder: &Path) -> io::Result<()> {
    let Ok(inner) = fs::read_dir(folder.join(SHARDS)) else { return Ok(()) };
    for entry in inner {
        if fs::read_dir(entry?.path())?.next().is_some() {
            return Err(io::Error::other(format!(
                "{} holds shards as files of their own, which this version does not read: start the version that wrote \
                 them and let 'potluck node leave' move them to other nodes, or, where the other nodes are whole, delete \
                 that folder: they rebuild what was in it",
                folder.join(SHARDS).display()
            )));
        }
    }
    Ok(())
}

/// Takes the member table and heads that lie beside the log into it.
pub fn take_in(folder: &Path, cluster: ClusterId, store: &SegmentStore) -> Result<(), StoreError> {
    if let Some(bytes) = durable::read(&folder.join(TABLE))? {
        let mut table = MemberTable::new(cluster);
        match store.kept(Kind::Member, cluster.0) {
            Ok(known) => merge(&mut table, &known),
            Err(StoreError::NotFound) => {}
            Err(error) if error.lost() => {}
            Err(error) => return Err(error),
        }
        let known = table.digest();
        merge(&mut table, &bytes);
        if table.digest() != known {
            store.keep(Kind::Member, cluster.0, &table.to_wire().encode_to_vec())?;
        }
    }
    let heads = folder.join(HEADS);
    let Ok(files) = fs::read_dir(&heads) else { return Ok(()) };
    for file in files {
        let path = file?.path();
        let vault = path.file_name().and_then(|name| name.to_str()?.parse::<VaultId>().ok());
        let Some(vault) = vault else { continue };
        let bytes = fs::read(&path)?;
        // What is in the log already is newer.
        let known = store.kept_keys(Kind::Head).contains(&vault.0);
        match Replica::decode(&bytes) {
            Ok(_) if !known => store.keep(Kind::Head, vault.0, &bytes)?,
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%vault, %error, "the stored heads are damaged: asking the other replicas");
                fs::rename(&path, path.with_extension("damaged"))?;
                continue;
            }
        }
        remove(&heads, &path)?;
    }
    Ok(())
}

fn merge(table: &mut MemberTable, bytes: &[u8]) {
    match wire::Table::decode(bytes) {
        Ok(stored) => _ = table.merge(&stored),
        Err(error) => tracing::warn!(%error, "a member table on disk is damaged: it is fetched anew"),
    }
}

fn remove(folder: &Path, path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    durable::sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_proto::cert::VaultCert;
    use potluck_proto::key::SecretKey;

    use crate::store::segments::disk::faults::{Faults, FaultyDisk};

    #[test]
    fn table_and_heads_are_taken_in_once_and_old_shards_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let cluster_key = SecretKey::from_seed(&[3; 32]);
        let cluster = cluster_key.public().into();
        let store = SegmentStore::simulated(FaultyDisk::new(1, 1 << 30, Faults::default()), 1 << 30).unwrap();
        refuse(folder.path()).unwrap();
        take_in(folder.path(), cluster, &store).unwrap();
        assert!(store.kept_keys(Kind::Member).is_empty());
        let mut table = MemberTable::new(cluster_key.public().into());
        table.add_vault(VaultCert::issue(&cluster_key, VaultId([9; 32]), 0, 0));
        let table = table.to_wire().encode_to_vec();
        fs::write(at(TABLE), &table).unwrap();
        fs::create_dir(at(HEADS)).unwrap();
        let replica = Replica::default().encode();
        let vaults = [VaultId([1; 32]), VaultId([2; 32])];
        fs::write(at(HEADS).join(vaults[0].to_string()), &replica).unwrap();
        fs::write(at(HEADS).join(vaults[1].to_string()), b"damaged").unwrap();
        for _ in 0..2 {
            take_in(folder.path(), cluster, &store).unwrap();
            assert_eq!(store.kept(Kind::Member, cluster.0).unwrap(), table);
            assert_eq!(store.kept_keys(Kind::Head), [vaults[0].0]);
            assert_eq!(store.kept(Kind::Head, vaults[0].0).unwrap(), replica);
            assert!(at(TABLE).exists());
            let left: Vec<_> = fs::read_dir(at(HEADS)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, [format!("{}.damaged", vaults[1]).as_str()]);
        }
        fs::create_dir_all(at(SHARDS).join("ab")).unwrap();
        refuse(folder.path()).unwrap();
        fs::write(at(SHARDS).join("ab/a shard"), b"").unwrap();
        assert!(refuse(folder.path()).unwrap_err().to_string().contains("potluck node leave"));
    }
}
