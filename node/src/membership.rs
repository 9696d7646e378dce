//! Who is in the cluster and who is up: the member table, this node's own record, and the view that all else reads.
//!
//! The table is signed fact and merges by itself; what is up is this node's own observation, from gossip confirmed by a
//! probe. Every change makes a new immutable [`View`]; nobody else holds membership state.

pub mod exchange;
mod pace;
pub mod rival;
pub mod swim;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use potluck_proto::cert::VaultCert;
use potluck_proto::id::{Digest, NodeId, VaultId};
use potluck_proto::key::SecretKey;
use potluck_proto::member::{MemberRecord, MemberTable, Merged, SignedRecord, Standing, Statement};
use potluck_proto::replica::ReplicaList;
use potluck_proto::ring::Ring;
use potluck_proto::transport::Peer;
use potluck_proto::wire;
use prost::Message;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::store::StoreError;
use crate::store::segments::SegmentStore;
use crate::store::segments::format::Kind;

/// How long after its last sign a rival is shown in the status.
const RIVAL_SHOWN: Duration = Duration::from_secs(3600);

/// What a node knows of its cluster at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// This node.
    pub me: NodeId,
    /// All signed records.
    pub table: Arc<MemberTable>,
    /// The table's digest.
    pub digest: Digest,
    /// The ring of the members.
    pub ring: Arc<Ring>,
    /// Who is up, this node included, and since when.
    pub up: BTreeMap<NodeId, Instant>,
}

impl View {
    /// Where a node is reached; `None` if it is not known.
    #[must_use]
    pub fn peer(&self, node: &NodeId) -> Option<Peer> {
        let record = self.table.record(node)?;
        Some(Peer { key: (*node).into(), addresses: record.addresses.clone() })
    }

    /// Whether a node is up.
    #[must_use]
    pub fn is_up(&self, node: &NodeId) -> bool {
        self.up.contains_key(node)
    }

    /// All other nodes that are up and not evicted, on the ring or on their way out.
    pub fn others_up(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.up.keys().copied().filter(|node| *node != self.me)
    }

    /// Nodes that were evicted and whose addresses are known.
    pub fn evicted(&self) -> impl Iterator<Item = NodeId> + '_ {
        let records = self.table.records().map(|record| record.node());
        records.filter(|node| self.table.standing(node) == Some(Standing::Evicted))
    }

    /// Whether this node reaches more than half of the ring, itself included.
    #[must_use]
    pub fn majority(&self) -> bool {
        let up = self.ring.nodes().iter().filter(|node| self.is_up(node)).count();
        2 * up > self.ring.len()
    }

    /// The nodes that replicate a vault's heads.
    #[must_use]
    pub fn head_list(&self, vault: &VaultId) -> ReplicaList {
        ReplicaList::new(self.ring.head_replicas(vault))
    }

    /// The list as it would be without this node: the one that ruled before it came.
    #[must_use]
    pub fn head_list_before(&self, vault: &VaultId) -> ReplicaList {
        let others = self.table.members().filter(|record| !record.leaving && record.node() != self.me);
        let ring = Ring::new(others.map(|record| potluck_proto::ring::RingEntry {
            node: record.node(),
            zone: record.cert.zone().to_string(),
            capacity: record.weight(),
        }));
        ReplicaList::new(ring.head_replicas(vault))
    }

    /// Whether a node will never answer again, as far as the signed records say. One that they do not name is not gone:
    /// whoever named it may have heard of it first, or have made it up.
    #[must_use]
    pub fn gone(&self, node: &NodeId) -> bool {
        matches!(self.table.standing(node), Some(Standing::Left | Standing::Lost | Standing::Evicted))
    }
}

/// Keeps the table and the view.
pub struct Membership {
    me: NodeId,
    key: SecretKey,
    store: Arc<SegmentStore>,
    /// Held over each write of the table to disk, and while its contents are taken: what is written later is newer. The
    /// digest is that of the table that was written last.
    writing: Mutex<Option<Digest>>,
    table: Mutex<MemberTable>,
    /// The record that this process made last; changed with the table only.
    made: Mutex<Option<SignedRecord>>,
    /// Others know a newer life of this node than the one it is in.
    outlived: (AtomicBool, Notify),
    /// Where another process with this node's key was last seen, and when.
    key_also_at: Mutex<Option<(Vec<SocketAddr>, Instant)>>,
    view: watch::Sender<Arc<View>>,
}

impl Membership {
    /// Reads the table from the store and begins with nobody up but this node.
    pub fn open(store: Arc<SegmentStore>, key: SecretKey, empty: MemberTable) -> io::Result<Self> {
        let mut table = empty;
        let stored = match store.kept(Kind::Member, table.cluster().0) {
            Ok(bytes) => wire::Table::decode(bytes).map(Some).map_err(|error| error.to_string()),
            Err(StoreError::NotFound) => Ok(None),
            Err(error) if error.lost() => Err(error.to_string()),
            Err(error) => return Err(io::Error::other(error)),
        };
        match stored {
            Ok(Some(stored)) => _ = table.merge(&stored),
            Ok(None) => {}
            // Every record in it can be fetched again from any other member.
            Err(error) => tracing::warn!(%error, "the member table on disk is damaged: fetching it anew"),
        }
        let me = NodeId::from(key.public());
        let up = BTreeMap::from([(me, Instant::now())]);
        let view =
            View { me, digest: table.digest(), ring: Arc::new(table.ring()), table: Arc::new(table.clone()), up };
        let (view, _) = watch::channel(Arc::new(view));
        let (made, outlived, key_also_at) = (Mutex::default(), Default::default(), Mutex::default());
        let (writing, table) = (Mutex::default(), Mutex::new(table));
        Ok(Self { me, key, store, writing, table, made, outlived, key_also_at, view })
    }

    /// What is known now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Follows what is known.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// Takes what is genuine of a table in.
    pub fn merge(&self, table: &wire::Table) -> Merged {
        self.change(|own| {
            let merged = own.merge(table);
            (merged.news > 0, merged)
        })
    }

    /// Takes a vault's certificate in, as its client showed it.
    pub fn learn_vault(&self, cert: VaultCert) -> bool {
        self.change(|own| {
            let news = own.add_vault(cert);
            (news, news)
        })
    }

    /// Takes a statement in.
    pub fn state(&self, statement: Statement) -> bool {
        self.change(|own| {
            let news = own.add_statement(statement);
            (news, news)
        })
    }

    /// Makes a new record of this node, durable before it is used: `change` sees the old one, if there is one. After an
    /// error the old record holds. Blocks on the disk.
    pub fn renew(&self, change: impl FnOnce(Option<&MemberRecord>) -> MemberRecord) -> io::Result<()> {
        let mut writing = self.writing();
        let record = {
            let table = self.table();
            let old = table.record(&self.me);
            let generation = old.map_or(1, |old| old.generation + 1);
            MemberRecord { generation, ..change(old.map(|old| &**old)) }.sign(&self.key)
        };
        let mut with_record = self.table().clone();
        with_record.add_record(record.clone());
        self.write(&mut writing, &with_record)?;
        self.change(|own| {
            *self.made.lock().unwrap_or_else(PoisonError::into_inner) = Some(record.clone());
            (own.add_record(record), ())
        });
        Ok(())
    }

    /// The record of this node that this process made last.
    #[must_use]
    pub fn made(&self) -> Option<SignedRecord> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The newest record of this node, if another process made it: one that has its key.
    #[must_use]
    pub fn rival(&self) -> Option<SignedRecord> {
        let table = self.table();
        let made = self.made()?;
        table.record(&self.me).filter(|record| **record != made).cloned()
    }

    /// Others do not believe this node that it is up: they know a newer life of it.
    pub fn set_outlived(&self) {
        self.outlived.0.store(true, Ordering::Relaxed);
        self.outlived.1.notify_one();
    }

    /// Returns after [`Membership::set_outlived`].
    pub async fn outlived(&self) {
        self.outlived.1.notified().await;
    }

    /// Whether [`Membership::set_outlived`] was called since this was last asked.
    pub fn take_outlived(&self) -> bool {
        self.outlived.0.swap(false, Ordering::Relaxed)
    }

    /// Another process with this node's key says that it is reached there.
    pub fn set_key_also_at(&self, addresses: Vec<SocketAddr>) {
        let seen = Some((addresses, Instant::now()));
        *self.key_also_at.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// Where another process with this node's key was seen in the last hour.
    #[must_use]
    pub fn key_also_at(&self) -> Vec<SocketAddr> {
        let seen = self.key_also_at.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|(_, at)| at.elapsed() < RIVAL_SHOWN).flat_map(|(there, _)| there.clone()).collect()
    }

    /// Writes the table to disk: all that was known when this was called is durable when it returns. Blocks on the disk.
    pub fn persist(&self) -> io::Result<()> {
        let mut writing = self.writing();
        let table = self.table().clone();
        self.write(&mut writing, &table)
    }

    /// Writes the table anew: what is on disk is damaged. Blocks on the disk.
    pub fn rewrite(&self) -> io::Result<()> {
        let mut writing = self.writing();
        *writing = None;
        let table = self.table().clone();
        self.write(&mut writing, &table)
    }

    fn writing(&self) -> MutexGuard<'_, Option<Digest>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, written: &mut Option<Digest>, table: &MemberTable) -> io::Result<()> {
        if *written == Some(table.digest()) {
            return Ok(());
        }
        // Until it succeeds, what is on disk is not known.
        *written = None;
        let kept = self.store.keep(Kind::Member, table.cluster().0, &table.to_wire().encode_to_vec());
        kept.map_err(|error| io::Error::other(format!("cannot write the member table: {error}")))?;
        *written = Some(table.digest());
        Ok(())
    }

    /// Records that a node is up or down; true if that is news.
    pub fn set_up(&self, node: NodeId, up: bool) -> bool {
        self.view.send_if_modified(|view| {
            if node == view.me
                || view.is_up(&node) == up
                || (up && view.table.standing(&node) == Some(Standing::Evicted))
            {
                return false;
            }
            let mut new = (**view).clone();
            if up {
                new.up.insert(node, Instant::now());
            } else {
                new.up.remove(&node);
            }
            *view = Arc::new(new);
            true
        })
    }

    fn table(&self) -> MutexGuard<'_, MemberTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the table and, if `change` says that it did, publishes a new view.
    fn change<T>(&self, change: impl FnOnce(&mut MemberTable) -> (bool, T)) -> T {
        let mut table = self.table();
        let (changed, result) = change(&mut table);
        if changed {
            self.view.send_modify(|view| {
                let mut up = view.up.clone();
                up.retain(|node, _| !matches!(table.standing(node), Some(Standing::Evicted)));
                *view = Arc::new(View {
                    me: self.me,
                    digest: table.digest(),
                    ring: Arc::new(table.ring()),
                    table: Arc::new(table.clone()),
                    up,
                });
            });
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::segments::disk::faults::{Faults, FaultyDisk};
    use potluck_proto::cert::MemberCert;

    #[test]
    fn what_was_known_is_on_disk_when_a_write_returns_whoever_else_writes() {
        let disk = FaultyDisk::new(1, 1 << 30, Faults::default());
        let store = Arc::new(SegmentStore::simulated(disk, 1 << 30).unwrap());
        let (cluster, key) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
        let cert = MemberCert::issue(&cluster, key.public().into(), "attic", 0, 0);
        let empty = MemberTable::new(cluster.public().into());
        let membership = Membership::open(store.clone(), key.clone(), empty.clone()).unwrap();
        let renew = |membership: &Membership| {
            membership.renew(|_| MemberRecord {
                cert: cert.clone(),
                generation: 0,
                life: 1,
                addresses: Vec::new(),
                capacity: 1,
                left: false,
                leaving: false,
                full: false,
                software: String::new(),
            })
        };
        let on_disk = || Membership::open(store.clone(), key.clone(), empty.clone()).unwrap().view();
        std::thread::scope(|scope| {
            for writer in 0..6_u8 {
                let (membership, cluster, on_disk, renew) = (&membership, &cluster, &on_disk, &renew);
                scope.spawn(move || {
                    for round in 0..10_u8 {
                        if writer == 0 {
                            renew(membership).unwrap();
                            let mine = membership.view().table.record(&membership.me).unwrap().generation;
                            assert!(on_disk().table.record(&membership.me).unwrap().generation >= mine);
                            continue;
                        }
                        let vault = VaultId([writer * 16 + round; 32]);
                        membership.learn_vault(VaultCert::issue(cluster, vault, 0, 0));
                        membership.persist().unwrap();
                        assert!(on_disk().table.vault(&vault).is_some(), "an older table was written over a newer one");
                    }
                });
            }
        });
        assert_eq!(on_disk().digest, membership.view().digest);
    }
}
