//! What a vault reads back from the cluster, and what a user hands in: entries, commits, key files, sheets, words, paths.
#![no_main]

use libfuzzer_sys::fuzz_target;
use potluck::vault::commit::Commit;
use potluck::vault::entry::Entry;
use potluck::vault::keyfile;
use potluck::vault::keys::VaultSecret;
use potluck::vault::path;
use potluck::vault::pointer::StripeRef;
use potluck::vault::sheet::RecoverySheet;
use potluck_proto::id::StripeId;

fuzz_target!(|data: &[u8]| {
    let container = StripeRef::Sealed(StripeId([7; 32]));
    if let Ok(entry) = Entry::decode(data, container) {
        let _ = entry.check();
    }
    let _ = Commit::decode(data, container);
    // Without a passphrase: the key derivation is slow by design, and all of the file's fields are read before it.
    let _ = keyfile::needs_passphrase(data);
    let _ = keyfile::read(data, None);
    let _ = path::file(data);
    let _ = path::dir(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = text.parse::<RecoverySheet>();
        let _ = VaultSecret::from_words(text);
    }
});
