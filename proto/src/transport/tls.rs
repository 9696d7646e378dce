//! TLS 1.3 with raw Ed25519 public keys on both sides (RFC 7250), and what QUIC needs besides.
//!
//! There are no certificates, names or authorities here: a peer is its key. The key that a dialler expects travels in
//! the `ServerName` of its own TLS stack and is never sent.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::crypto::{CryptoError, HmacKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, PeerIncompatible, SignatureScheme,
};

use crate::id::ID_LEN;
use crate::key::{PublicKey, SecretKey};

/// The application protocol: other programs' QUIC connections end in the handshake.
const ALPN: &[u8] = b"potluck";

/// What stands before an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The TLS half of an endpoint.
pub(super) struct Tls {
    pub(super) client: Arc<QuicClientConfig>,
    pub(super) server: Arc<QuicServerConfig>,
}

impl Tls {
    pub(super) fn new(identity: &SecretKey) -> Result<Self, rustls::Error> {
        let provider = Arc::new(provider());
        let verifier = Arc::new(Verifier(provider.signature_verification_algorithms));
        let pkcs8 = identity.to_pkcs8();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(&pkcs8[..])).clone_key();
        let certified = Arc::new(CertifiedKey::new(
            vec![CertificateDer::from(spki(identity.public()))],
            provider.key_provider.load_private_key(key)?,
        ));

        let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified.clone())));
        client.enable_sni = false;
        client.alpn_protocols = vec![ALPN.to_vec()];
        // Connections live long: a full handshake each time is cheap, and proves the key each time.
        client.resumption = Resumption::disabled();

        let mut server = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let unusable = |error: quinn::crypto::rustls::NoInitialCipherSuite| rustls::Error::General(error.to_string());
        Ok(Self {
            client: Arc::new(client.try_into().map_err(unusable)?),
            server: Arc::new(server.try_into().map_err(unusable)?),
        })
    }
}

/// aws-lc-rs with AES-128-GCM first: it is the fastest wherever there is AES in hardware.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

fn spki(key: PublicKey) -> Vec<u8> {
    [&SPKI_PREFIX[..], &key.0].concat()
}

/// The key in a SubjectPublicKeyInfo, if it is an Ed25519 key.
fn key_in(spki: &[u8]) -> Option<PublicKey> {
    let key: [u8; ID_LEN] = spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok()?;
    Some(PublicKey(key))
}

/// The `ServerName` that stands for `key`: a label has at most 63 characters, so the key takes two.
pub(super) fn server_name(key: PublicKey) -> String {
    let digits = crate::id::NodeId::from(key).to_string();
    let (first, second) = digits.split_at(digits.len() / 2);
    format!("{first}.{second}.potluck")
}

/// The key that the other side of `connection` has proved.
pub(super) fn peer_key(connection: &quinn::Connection) -> Option<PublicKey> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    key_in(identity.first()?)
}

/// Whether a connection failed because another key than the expected one answered.
pub(super) fn is_wrong_key(error: &quinn::ConnectionError) -> bool {
    /// The TLS alert `bad_certificate`, which the verifier's `NotValidForName` becomes; nothing else here sends it.
    const BAD_CERTIFICATE: u8 = 42;
    let wrong = quinn::TransportErrorCode::crypto(BAD_CERTIFICATE);
    matches!(error, quinn::ConnectionError::TransportError(error) if error.code == wrong)
}

#[derive(Debug)]
struct Verifier(WebPkiSupportedAlgorithms);

impl Verifier {
    fn verify(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(&cert[..]), dss, &self.0)
    }
}

fn no_tls12() -> rustls::Error {
    PeerIncompatible::Tls12NotOffered.into()
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let key = key_in(end_entity).ok_or(CertificateError::BadEncoding)?;
        if name.to_str() != server_name(key) {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // Any key may knock; what it may do is judged by the gate.
        key_in(end_entity).ok_or(CertificateError::BadEncoding)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Signs stateless resets. It derives from the identity, so that a restarted process ends its old connections with the
/// first packet that arrives on them, and the other side need not wait for its idle timeout.
pub(super) struct ResetKey([u8; 32]);

impl ResetKey {
    pub(super) fn new(identity: &SecretKey) -> Self {
        Self(blake3::derive_key("potluck 1 stateless reset", &*identity.seed()))
    }

    /// The key by which connection ids are told from random bytes.
    pub(super) fn connection_ids(&self) -> u64 {
        let hash = blake3::keyed_hash(&self.0, b"connection ids");
        hash.as_bytes()[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let signature: [u8; blake3::OUT_LEN] = signature.try_into().map_err(|_| CryptoError)?;
        // blake3::Hash compares in constant time.
        (blake3::keyed_hash(&self.0, data) == signature).then_some(()).ok_or(CryptoError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_name_is_a_valid_name_for_any_key() {
        for byte in [0x00, 0x11, 0x99, 0xaa, 0xff] {
            let name = server_name(PublicKey([byte; 32]));
            assert_eq!(ServerName::try_from(name.as_str()).unwrap().to_str(), name);
        }
    }

    #[test]
    fn only_ed25519_keys_of_the_right_length_are_read() {
        let key = PublicKey([3; 32]);
        assert_eq!(key_in(&spki(key)), Some(key));
        assert_eq!(key_in(&spki(key)[1..]), None);
        assert_eq!(key_in(&spki(key)[..43]), None);
        assert_eq!(key_in(&[&spki(key)[..], b"x"].concat()), None);
    }

    #[test]
    fn aes_128_comes_first() {
        assert_eq!(provider().cipher_suites[0].suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
    }
}
