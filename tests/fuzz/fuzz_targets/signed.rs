//! Certificates, records, headers, heads, replicas and tokens: read without panic; what is read is written back the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use potluck_proto::blocks::BlockTree;
use potluck_proto::cert::{DeviceCert, MemberCert, Revocation, VaultCert};
use potluck_proto::head::SignedHead;
use potluck_proto::id::StripeId;
use potluck_proto::invite::InviteToken;
use potluck_proto::member::{SignedRecord, Statement};
use potluck_proto::replica::Replica;
use potluck_proto::stripe::SignedHeader;

fuzz_target!(|data: &[u8]| {
    let owned = Bytes::copy_from_slice(data);
    if let Ok(cert) = MemberCert::decode(data) {
        assert_eq!(cert.as_bytes(), data);
    }
    if let Ok(cert) = VaultCert::decode(data) {
        assert_eq!(cert.as_bytes(), data);
    }
    if let Ok(cert) = DeviceCert::decode(data) {
        assert_eq!(cert.as_bytes(), data);
    }
    let _ = Revocation::decode(data);
    let _ = SignedRecord::decode(data);
    let _ = Statement::decode(data);
    let _ = SignedHead::decode(owned.clone());
    let _ = SignedHeader::decode(owned.clone());
    // Past the hash, so that the fields are reached: the id is made to fit.
    let _ = SignedHeader::decode_known(owned, &StripeId(potluck_proto::id::Digest::of(data).0));
    if let Ok(replica) = Replica::decode(data) {
        assert_eq!(Replica::decode(&replica.encode()).as_ref(), Ok(&replica));
    }
    let _ = BlockTree::from_bytes(data, data.len() as u64);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = text.parse::<InviteToken>();
    }
});
