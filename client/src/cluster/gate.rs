//! What a client says of itself on each connection, and whom it accepts: nodes of its cluster, nobody else.

use potluck_proto::cert::{DeviceCert, MemberCert, VaultCert};
use potluck_proto::id::{ClusterId, NodeId};
use potluck_proto::key::PublicKey;
use potluck_proto::transport::{Caller, Gate, Role};
use potluck_proto::wire::{self, Code};

/// A client's gate.
#[derive(Debug, Clone)]
pub struct ClientGate {
    cluster: ClusterId,
    certs: Option<(DeviceCert, VaultCert)>,
}

impl ClientGate {
    /// The gate of a device of a vault: it shows both certificates.
    #[must_use]
    pub fn device(cluster: ClusterId, device: DeviceCert, vault: VaultCert) -> Self {
        Self { cluster, certs: Some((device, vault)) }
    }

    /// The gate of someone who has no certificate yet: to redeem an invite, or for recovery.
    #[must_use]
    pub fn stranger(cluster: ClusterId) -> Self {
        Self { cluster, certs: None }
    }
}

impl Gate for ClientGate {
    fn hello(&self) -> wire::Hello {
        let cluster = bytes::Bytes::copy_from_slice(self.cluster.as_bytes());
        let mut hello = wire::Hello { cluster, ..wire::Hello::default() };
        if let Some((device, vault)) = &self.certs {
            hello.device_cert = bytes::Bytes::copy_from_slice(device.as_bytes());
            hello.vault_cert = bytes::Bytes::copy_from_slice(vault.as_bytes());
        }
        hello
    }

    fn admit(&self, key: PublicKey, hello: &wire::Hello) -> Result<Role, wire::Error> {
        if hello.member_cert.is_empty() {
            return Err(wire::Error::new(Code::NotAdmitted, "not a node: it shows no member certificate"));
        }
        let cert = MemberCert::decode(&hello.member_cert)?;
        if cert.cluster() != self.cluster {
            return Err(wire::Error::new(
                Code::ForeignCluster,
                format!("a node of cluster {}, not of {}", cert.cluster().short(), self.cluster.short()),
            ));
        }
        if cert.node() != NodeId::from(key) {
            return Err(wire::Error::new(Code::NotAdmitted, "the member certificate is of another key"));
        }
        Ok(Role::Node(cert))
    }

    fn still_admitted(&self, _caller: &Caller) -> Result<(), wire::Error> {
        // A client serves nobody, so nothing hangs on a node that was evicted meanwhile.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_proto::key::SecretKey;

    #[test]
    fn only_nodes_of_the_cluster_under_their_own_key_are_admitted() {
        let (cluster, other, node) =
            (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]), SecretKey::from_seed(&[3; 32]));
        let gate = ClientGate::stranger(cluster.public().into());
        let showing = |cert: MemberCert| wire::Hello {
            member_cert: bytes::Bytes::copy_from_slice(cert.as_bytes()),
            ..wire::Hello::default()
        };
        let genuine = showing(MemberCert::issue(&cluster, node.public().into(), "a", 0, 0));
        assert!(matches!(gate.admit(node.public(), &genuine), Ok(Role::Node(_))));
        let code = |key: &SecretKey, hello: &wire::Hello| gate.admit(key.public(), hello).map_err(|error| error.code());
        assert_eq!(code(&other, &genuine), Err(Code::NotAdmitted));
        assert_eq!(code(&node, &wire::Hello::default()), Err(Code::NotAdmitted));
        let foreign = showing(MemberCert::issue(&other, node.public().into(), "a", 0, 0));
        assert_eq!(code(&node, &foreign), Err(Code::ForeignCluster));
        let mut damaged = genuine.clone();
        damaged.member_cert = damaged.member_cert.slice(1..);
        assert_eq!(code(&node, &damaged), Err(Code::BadRequest));
    }
}
