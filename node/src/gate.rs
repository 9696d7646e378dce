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
