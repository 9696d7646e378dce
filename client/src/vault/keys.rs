//! The vault's one secret, its 24 words, and the keys that derive from it.
//!
//! Everything is zeroed when dropped and never printed. No key here is ever stored: the secret is, wrapped (`keyfile`) or
//! on paper (`sheet`). Derivation contexts: FORMAT.md, "Keys".

use std::fmt;

use potluck_proto::id::VaultId;
use potluck_proto::key::SecretKey;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Length of the secret and of each key, in bytes.
pub const KEY_LEN: usize = 32;

/// Words that stand for a vault's secret.
pub const WORD_COUNT: usize = 24;

/// A vault's 256-bit secret. Whoever has it owns the vault.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct VaultSecret([u8; KEY_LEN]);

/// Why words do not stand for a vault's secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    /// Too many or too few.
    #[error("a vault has {WORD_COUNT} words, these are {0}")]
    Count(usize),
    /// A word that is not in the list.
    #[error("word {position}, {word:?}, is not in the word list: look for a slip of the pen")]
    Unknown {
        /// Counted from 1.
        position: usize,
        /// As it was given.
        word: String,
    },
    /// Each word is in the list, but together they are not a secret.
    #[error(
        "all words are in the word list, but their checksum is wrong: a word is another one, or two changed places"
    )]
    Checksum,
}

impl VaultSecret {
    /// The secret that is these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// A fresh secret from `rng`.
    #[must_use]
    pub fn generate(rng: &mut impl rand::Rng) -> Self {
        let mut secret = Self([0; KEY_LEN]);
        rng.fill_bytes(&mut secret.0);
        secret
    }

    /// The secret's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Reads 24 BIP-39 words (English), separated by any white space, in upper or lower case.
    pub fn from_words(text: &str) -> Result<Self, WordsError> {
        let text = Zeroizing::new(text.to_lowercase());
        let count = text.split_whitespace().count();
        if count != WORD_COUNT {
            return Err(WordsError::Count(count));
        }
        let mnemonic = bip39::Mnemonic::parse_in_normalized(bip39::Language::English, &text).map_err(|e| match e {
            bip39::Error::UnknownWord(index) => WordsError::Unknown {
                position: index + 1,
                word: text.split_whitespace().nth(index).unwrap_or_default().to_string(),
            },
            _ => WordsError::Checksum,
        })?;
        let (mut entropy, _) = mnemonic.to_entropy_array();
        let mut secret = Self([0; KEY_LEN]);
        secret.0.copy_from_slice(&entropy[..KEY_LEN]);
        entropy.zeroize();
        Ok(secret)
    }

    /// The 24 words, in order.
    #[must_use]
    pub fn words(&self) -> Vec<&'static str> {
        match bip39::Mnemonic::from_entropy_in(bip39::Language::English, &self.0) {
            Ok(mnemonic) => mnemonic.words().collect(),
            Err(_) => unreachable!("32 bytes are a valid length of entropy"),
        }
    }

    /// The keys that derive from it.
    #[must_use]
    pub fn keys(&self) -> VaultKeys {
        let derive = |context: &str| Zeroizing::new(blake3::derive_key(context, &self.0));
        VaultKeys {
            signing: SecretKey::from_seed(&derive("potluck 2026 vault 1 signing key")),
            content: derive("potluck 2026 vault 1 content key"),
            chunk_id: derive("potluck 2026 vault 1 chunk id key"),
            stored_hash: derive("potluck 2026 vault 1 stored hash key"),
            chunking: derive("potluck 2026 vault 1 chunking seed"),
            tree_cut: derive("potluck 2026 vault 1 tree cut key"),
            tree_id: derive("potluck 2026 vault 1 tree id key"),
            root_pointer: derive("potluck 2026 vault 1 root pointer key"),
        }
    }
}

impl fmt::Debug for VaultSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VaultSecret(..)")
    }
}

type Key = Zeroizing<[u8; KEY_LEN]>;

/// All keys of a vault. Zeroed when dropped.
#[derive(Clone)]
pub struct VaultKeys {
    signing: SecretKey,
    pub(crate) content: Key,
    pub(crate) chunk_id: Key,
    pub(crate) stored_hash: Key,
    pub(crate) chunking: Key,
    pub(crate) tree_cut: Key,
    pub(crate) tree_id: Key,
    pub(crate) root_pointer: Key,
}

impl VaultKeys {
    /// The vault's name: the public half of its signing key.
    #[must_use]
    pub fn vault(&self) -> VaultId {
        self.signing.public().into()
    }

    /// The key that certifies and revokes the vault's devices.
    #[must_use]
    pub fn signing(&self) -> &SecretKey {
        &self.signing
    }

    /// What cuts of this vault's plaintext depend on (see [`super::chunker::Chunker`]).
    #[must_use]
    pub fn chunking_seed(&self) -> &[u8; KEY_LEN] {
        &self.chunking
    }
}

impl fmt::Debug for VaultKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VaultKeys of {:?}", self.vault())
    }
}

#[cfg(test)]
mod tests {
    use super::{VaultSecret, WordsError};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn words_round_trip_in_any_case_and_spacing() {
        let secret = VaultSecret::from_bytes([0x5a; 32]);
        let words = secret.words();
        assert_eq!(words.len(), 24);
        assert_eq!(VaultSecret::from_words(&words.join(" ")), Ok(secret.clone()));
        assert_eq!(VaultSecret::from_words(&words.join("\n  ").to_uppercase()), Ok(secret));
    }

    #[test]
    fn wrong_words_are_told_apart() {
        let mut words = VaultSecret::from_bytes([0x5a; 32]).words();
        assert_eq!(VaultSecret::from_words("one two"), Err(WordsError::Count(2)));
        words.swap(0, 23);
        assert_eq!(VaultSecret::from_words(&words.join(" ")), Err(WordsError::Checksum));
        words[6] = "potluck";
        let unknown = WordsError::Unknown { position: 7, word: "potluck".into() };
        assert_eq!(VaultSecret::from_words(&words.join(" ")), Err(unknown));
    }

    #[test]
    fn nothing_secret_is_printed() {
        let secret = VaultSecret::from_bytes([0x5a; 32]);
        assert_eq!(format!("{secret:?}"), "VaultSecret(..)");
        assert!(!format!("{:?}", secret.keys()).contains("5a5a"));
    }

    /// Golden: a change here makes every existing vault unreadable.
    #[test]
    fn derived_keys_stay_what_they_are() {
        let secret = VaultSecret::from_bytes(std::array::from_fn(|i| i as u8));
        let keys = secret.keys();
        assert_eq!(secret.words()[..4], ["abandon", "amount", "liar", "amount"]);
        assert_eq!(keys.vault().to_string(), "14b4af2c5fc08d338a3ee47635ad3a07623e991e17585831fe25bc8e4c265c63");
        let derived = [
            &keys.content,
            &keys.chunk_id,
            &keys.stored_hash,
            &keys.chunking,
            &keys.tree_cut,
            &keys.tree_id,
            &keys.root_pointer,
        ];
        let golden = [
            "977fe267d9b4c5af",
            "0695a45fb93a820d",
            "8d8cf9b48cb67bfd",
            "569b87190277be0c",
            "97372a2e52aa33f8",
            "b688df7e63b49b24",
            "7102ee522e2e59fc",
        ];
        assert_eq!(derived.map(|key| hex(&key[..8])), golden);
    }
}
