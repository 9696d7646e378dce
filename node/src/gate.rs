//! Who may speak to this node, and as what.
//!
//! The transport proves keys; this file judges certificates: of this cluster, not revoked, not evicted. A stranger comes
//! in too, for the two calls that strangers have (`service`).

use std::sync::Arc;

use bytes::Bytes;
use potluck_proto::cert::{DeviceCert, MemberCert, VaultCert};
use potluck_proto::id::{ClusterId, DeviceId, NodeId};
use potluck_proto::key::PublicKey;
use potluck_proto::member::Standing;
use potluck_proto::transport::{Caller, Gate, Role};
use potluck_proto::wire::{self, Code};

use crate::WallClock;
use crate::membership::Membership;

/// A member's judgement of those who connect.
pub struct MemberGate {
    /// This node's admission, shown to everyone.
    pub cert: MemberCert,
    /// Evictions and revocations.
    pub membership: Arc<Membership>,
    /// For certificates that run out.
    pub clock: WallClock,
}

impl MemberGate {
    fn admit_node(&self, key: PublicKey, cert: &MemberCert) -> Result<Role, wire::Error> {
        if cert.cluster() != self.cert.cluster() {
            return Err(foreign(cert.cluster()));
        }
        if NodeId::from(key) != cert.node() {
            return Err(wire::Error::new(Code::Forbidden, "the member certificate is another node's"));
        }
        Ok(Role::Node(cert.clone()))
    }

    fn admit_device(&self, key: PublicKey, cert: DeviceCert, vault: &[u8]) -> Result<Role, wire::Error> {
        let vault = VaultCert::decode(vault)?;
        if vault.cluster() != self.cert.cluster() {
            return Err(foreign(vault.cluster()));
        }
        if DeviceId::from(key) != cert.device() || cert.vault() != vault.vault() {
            return Err(wire::Error::new(
                Code::Forbidden,
                "the device certificate is not this key's or not this vault's",
            ));
        }
        self.judge_device(&cert)?;
        self.membership.learn_vault(vault);
        Ok(Role::Device(cert))
    }

    fn judge_device(&self, cert: &DeviceCert) -> Result<(), wire::Error> {
        if self.membership.view().table.revoked(cert) {
            return Err(wire::Error::new(Code::Revoked, "this device's certificate was revoked by its vault"));
        }
        if cert.expired((self.clock)()) {
            return Err(wire::Error::new(Code::Revoked, "this device's certificate has run out"));
        }
        Ok(())
    }
}

fn foreign(theirs: ClusterId) -> wire::Error {
    let message = format!("the certificate is of another cluster, {}", theirs.short());
    wire::Error::new(Code::ForeignCluster, message)
}

impl Gate for MemberGate {
    fn hello(&self) -> wire::Hello {
        wire::Hello {
            cluster: Bytes::copy_from_slice(self.cert.cluster().as_bytes()),
            member_cert: Bytes::copy_from_slice(self.cert.as_bytes()),
            ..Default::default()
        }
    }

    fn admit(&self, key: PublicKey, hello: &wire::Hello) -> Result<Role, wire::Error> {
        if !hello.member_cert.is_empty() {
            return self.admit_node(key, &MemberCert::decode(&hello.member_cert)?);
        }
        if !hello.device_cert.is_empty() {
            return self.admit_device(key, DeviceCert::decode(&hello.device_cert)?, &hello.vault_cert);
        }
        match ClusterId::from_slice(&hello.cluster) {
            Some(cluster) if cluster != self.cert.cluster() => Err(foreign(cluster)),
            _ => Ok(Role::Stranger),
        }
    }

    fn still_admitted(&self, caller: &Caller) -> Result<(), wire::Error> {
        match &caller.role {
            Role::Node(cert) if self.membership.view().table.standing(&cert.node()) == Some(Standing::Evicted) => {
                Err(wire::Error::new(Code::Revoked, "this node was evicted from the cluster"))
            }
            Role::Device(cert) => self.judge_device(cert),
            _ => Ok(()),
        }
    }
}

/// The judgement of one who is not yet a member: it shows no certificate, and speaks to members of one cluster only.
pub struct StrangerGate {
    /// The cluster that it wants to speak to.
    pub cluster: ClusterId,
}

impl Gate for StrangerGate {
    fn hello(&self) -> wire::Hello {
        wire::Hello { cluster: Bytes::copy_from_slice(self.cluster.as_bytes()), ..Default::default() }
    }

    fn admit(&self, key: PublicKey, hello: &wire::Hello) -> Result<Role, wire::Error> {
        let cert = MemberCert::decode(&hello.member_cert)?;
        if cert.cluster() != self.cluster {
            return Err(foreign(cert.cluster()));
        }
        if NodeId::from(key) != cert.node() {
            return Err(wire::Error::new(Code::Forbidden, "the member certificate is another node's"));
        }
        Ok(Role::Node(cert))
    }
}

/// The judgement of an operator, who speaks to the own node with that node's key.
pub struct OperatorGate {
    /// The node's admission.
    pub cert: MemberCert,
}

impl Gate for OperatorGate {
    fn hello(&self) -> wire::Hello {
        wire::Hello {
            cluster: Bytes::copy_from_slice(self.cert.cluster().as_bytes()),
            member_cert: Bytes::copy_from_slice(self.cert.as_bytes()),
            ..Default::default()
        }
    }

    fn admit(&self, key: PublicKey, hello: &wire::Hello) -> Result<Role, wire::Error> {
        let role = StrangerGate { cluster: self.cert.cluster() }.admit(key, hello)?;
        if NodeId::from(key) != self.cert.node() {
            return Err(wire::Error::new(Code::Forbidden, "that is another node"));
        }
        Ok(role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::segments::SegmentStore;
    use crate::store::segments::disk::faults::{Faults, FaultyDisk};
    use potluck_proto::cert::{Revocation, Rights};
    use potluck_proto::id::VaultId;
    use potluck_proto::key::SecretKey;
    use potluck_proto::member::{MemberTable, Statement, Verdict};

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    /// A member of the cluster of key 1, and its gate; the time is one second past 1970.
    fn gate() -> MemberGate {
        let cert = MemberCert::issue(&key(1), key(2).public().into(), "attic", 0, 0);
        let disk = FaultyDisk::new(1, 1 << 30, Faults::default());
        let store = Arc::new(SegmentStore::simulated(disk, 1 << 30).unwrap());
        let membership = Membership::open(store, key(2), MemberTable::new(key(1).public().into())).unwrap();
        MemberGate { cert, membership: Arc::new(membership), clock: Arc::new(|| 1_000) }
    }

    fn node_hello(cluster: &SecretKey, node: &SecretKey) -> wire::Hello {
        let cert = MemberCert::issue(cluster, node.public().into(), "cellar", 0, 0);
        wire::Hello { member_cert: Bytes::copy_from_slice(cert.as_bytes()), ..Default::default() }
    }

    /// A device, key 6, of the vault of key 5.
    fn device_hello(cluster: &SecretKey, expires_ms: u64) -> wire::Hello {
        let vault = VaultCert::issue(cluster, VaultId::from(key(5).public()), 0, 0);
        let device = DeviceCert::issue(&key(5), key(6).public().into(), Rights::ALL, 0, expires_ms);
        wire::Hello {
            device_cert: Bytes::copy_from_slice(device.as_bytes()),
            vault_cert: Bytes::copy_from_slice(vault.as_bytes()),
            ..Default::default()
        }
    }

    fn code<T: std::fmt::Debug>(result: Result<T, wire::Error>) -> Code {
        result.unwrap_err().code()
    }

    fn caller(key: &SecretKey, role: Role) -> Caller {
        Caller { key: key.public(), role, address: ([127, 0, 0, 1], 1).into() }
    }

    #[test]
    fn nodes_come_in_with_their_own_certificate_of_this_cluster() {
        let gate = gate();
        let admit = |by: u8, hello: &wire::Hello| gate.admit(key(by).public(), hello);
        assert!(matches!(admit(3, &node_hello(&key(1), &key(3))), Ok(Role::Node(_))));
        assert_eq!(code(admit(3, &node_hello(&key(9), &key(3)))), Code::ForeignCluster);
        assert_eq!(code(admit(4, &node_hello(&key(1), &key(3)))), Code::Forbidden);
        let mut forged = node_hello(&key(1), &key(3)).member_cert.to_vec();
        forged[40] ^= 1;
        assert!(admit(3, &wire::Hello { member_cert: forged.into(), ..Default::default() }).is_err());
    }

    #[test]
    fn an_evicted_node_is_out_from_the_next_call_on() {
        let gate = gate();
        let role = gate.admit(key(3).public(), &node_hello(&key(1), &key(3))).unwrap();
        let caller = caller(&key(3), role);
        assert!(gate.still_admitted(&caller).is_ok());
        let lost = Statement::issue(&key(1), key(3).public().into(), Verdict::Lost { generation: 0 }, 0);
        gate.membership.state(lost);
        assert!(gate.still_admitted(&caller).is_ok(), "a lost node may come back");
        gate.membership.state(Statement::issue(&key(1), key(3).public().into(), Verdict::Evicted, 0));
        assert_eq!(code(gate.still_admitted(&caller)), Code::Revoked);
    }

    #[test]
    fn devices_come_in_with_a_vault_of_this_cluster_until_they_are_revoked_or_run_out() {
        let gate = gate();
        let admit = |by: u8, hello: &wire::Hello| gate.admit(key(by).public(), hello);
        assert_eq!(code(admit(6, &device_hello(&key(9), 0))), Code::ForeignCluster);
        assert_eq!(code(admit(7, &device_hello(&key(1), 0))), Code::Forbidden);
        assert_eq!(code(admit(6, &device_hello(&key(1), 1_000))), Code::Revoked);
        let vault = VaultId::from(key(5).public());
        assert!(gate.membership.view().table.vault(&vault).is_none(), "who is refused leaves nothing behind");

        let role = admit(6, &device_hello(&key(1), 1_001)).unwrap();
        assert!(gate.membership.view().table.vault(&vault).is_some());
        let caller = caller(&key(6), role);
        assert!(gate.still_admitted(&caller).is_ok());
        let revocation = Revocation::issue(&key(5), key(6).public().into(), 0);
        let table =
            wire::Table { revocations: vec![Bytes::copy_from_slice(revocation.as_bytes())], ..Default::default() };
        assert_eq!(gate.membership.merge(&table).news, 1);
        assert_eq!(code(gate.still_admitted(&caller)), Code::Revoked);
        assert_eq!(code(admit(6, &device_hello(&key(1), 0))), Code::Revoked);
    }

    #[test]
    fn a_stranger_comes_in_as_a_stranger_and_not_from_another_cluster() {
        let gate = gate();
        let hello = |cluster: Bytes| wire::Hello { cluster, ..Default::default() };
        let of = |cluster: &SecretKey| hello(Bytes::copy_from_slice(&cluster.public().0));
        for known in [hello(Bytes::new()), of(&key(1))] {
            assert!(matches!(gate.admit(key(8).public(), &known), Ok(Role::Stranger)));
        }
        assert_eq!(code(gate.admit(key(8).public(), &of(&key(9)))), Code::ForeignCluster);
        assert!(gate.still_admitted(&caller(&key(8), Role::Stranger)).is_ok());
    }
}
