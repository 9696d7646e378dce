//! TLS with raw Ed25519 keys (RFC 7250) without Potluck's transport: for what has to stay independent of it.

use std::sync::Arc;

use anyhow::Result;
use potluck_proto::key::SecretKey;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, SignatureScheme};

/// What stands before an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A key as one side shows it.
///
/// # Errors
/// The provider does not take it.
pub fn certified(identity: &SecretKey, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>> {
    let pkcs8 = identity.to_pkcs8();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(&pkcs8[..])).clone_key();
    let spki = CertificateDer::from([&SPKI_PREFIX[..], &identity.public().0].concat());
    Ok(Arc::new(CertifiedKey::new(vec![spki], provider.key_provider.load_private_key(key)?)))
}

/// Takes any server's raw public key whose owner proves to have it.
#[derive(Debug)]
pub struct AnyKey(pub Arc<CryptoProvider>);

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(&cert[..]);
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
