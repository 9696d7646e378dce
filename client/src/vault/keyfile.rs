//! The file that keeps a device's secrets at rest: wrapped by a passphrase, or, where chosen so, bare.
//!
//! A checksum tells a damaged file from a wrong passphrase. The cost of a guess is stored with the file and bounded when
//! it is read, so that no file can ask for all memory. Bytes in, bytes out: writing them, readable by their owner only,
//! is the caller's. Layout: FORMAT.md, "Key file".

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use potluck_proto::encoding::{DecodeError, Decoder, Encoder};
use potluck_proto::key::SecretKey;
use zeroize::Zeroizing;

use super::cipher::{self, NONCE_LEN, TAG_LEN};
use super::keys::{KEY_LEN, VaultSecret};

/// First bytes of every key file.
pub const MAGIC: [u8; 8] = *b"potluckK";

/// Newest format version of a key file.
pub const KEYFILE_VERSION: u16 = 1;

/// Longest key file, in bytes.
pub const KEYFILE_LIMIT: usize = 4096;

const SALT_LEN: usize = 16;
const CHECKSUM_LEN: usize = 16;
const KDF_NONE: u8 = 0;
const KDF_ARGON2ID: u8 = 1;
const BARE_CONTEXT: &str = "potluck 2026 key file 1 without passphrase";

/// What a guess of the passphrase costs: Argon2id's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Cost {
    /// 64 MiB, three passes, one lane: about a tenth of a second.
    pub const DEFAULT: Cost = Cost { memory_kib: 64 << 10, passes: 3, lanes: 1 };

    /// Most memory that a file may ask for: 1 GiB.
    pub const MEMORY_LIMIT_KIB: u32 = 1 << 20;

    /// Most passes that a file may ask for.
    pub const PASSES_LIMIT: u32 = 16;

    /// Most lanes that a file may ask for.
    pub const LANES_LIMIT: u32 = 16;

    /// A cost; `None` if it is outside the limits, or below 8 KiB of memory per lane.
    #[must_use]
    pub fn new(memory_kib: u32, passes: u32, lanes: u32) -> Option<Self> {
        let lanes_fit = (1..=Self::LANES_LIMIT).contains(&lanes);
        let passes_fit = (1..=Self::PASSES_LIMIT).contains(&passes);
        let fits = lanes_fit && passes_fit && (8 * lanes..=Self::MEMORY_LIMIT_KIB).contains(&memory_kib);
        fits.then_some(Self { memory_kib, passes, lanes })
    }
}

/// What stands between the file and its secrets.
pub enum Protection<'a> {
    /// A passphrase.
    Passphrase(&'a str, Cost),
    /// Nothing: whoever can read the file has the secrets.
    Bare,
}

/// A device's secrets.
#[derive(Clone)]
pub struct DeviceSecrets {
    /// The device's key.
    pub device: SecretKey,
    /// The secret of its vault.
    pub vault: VaultSecret,
}

/// Why a key file gives no secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyfileError {
    /// Not a key file at all.
    #[error("this is not a Potluck key file")]
    NotAKeyfile,
    /// Its checksum or its form is wrong.
    #[error("the key file is damaged ({0}): restore it from a copy, or recover the vault from its recovery sheet")]
    Damaged(#[from] DecodeError),
    /// Written by a newer version.
    #[error("the key file is protected in a way ({0}) that this program does not know: a newer Potluck is needed")]
    Kdf(u8),
    /// It asks for more memory or time than any honest one does.
    #[error("the key file asks for more memory or time than is allowed")]
    Cost,
    /// It needs a passphrase and none was given.
    #[error("the key file needs its passphrase")]
    PassphraseNeeded,
    /// The file is whole, the passphrase is not its.
    #[error("the passphrase is wrong")]
    WrongPassphrase,
    /// The library that derives the key failed, most likely for want of memory.
    #[error("deriving the key from the passphrase failed: {0}")]
    Derivation(String),
}

struct Header {
    cost: Option<Cost>,
    salt: [u8; SALT_LEN],
    nonce: [u8; NONCE_LEN],
}

impl Header {
    fn encode(&self) -> Encoder {
        let mut encoder = Encoder::new();
        encoder.raw(&MAGIC).u16(KEYFILE_VERSION);
        match self.cost {
            None => encoder.u8(KDF_NONE).u32(0).u32(0).u32(0),
            Some(cost) => encoder.u8(KDF_ARGON2ID).u32(cost.memory_kib).u32(cost.passes).u32(cost.lanes),
        };
        encoder.raw(&self.salt).raw(&self.nonce);
        encoder
    }

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, KeyfileError> {
        decoder.version("key file", KEYFILE_VERSION)?;
        let kdf = decoder.u8("kdf")?;
        let (memory, passes, lanes) = (decoder.u32("memory")?, decoder.u32("passes")?, decoder.u32("lanes")?);
        let cost = match kdf {
            KDF_NONE => None,
            KDF_ARGON2ID => Some(Cost::new(memory, passes, lanes).ok_or(KeyfileError::Cost)?),
            other => return Err(KeyfileError::Kdf(other)),
        };
        Ok(Self { cost, salt: decoder.array("salt")?, nonce: decoder.array("nonce")? })
    }

    fn key(&self, passphrase: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyfileError> {
        let Some(cost) = self.cost else {
            return Ok(Zeroizing::new(blake3::derive_key(BARE_CONTEXT, &self.salt)));
        };
        let failed = |error: argon2::Error| KeyfileError::Derivation(error.to_string());
        let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(KEY_LEN)).map_err(failed)?;
        let mut key = Zeroizing::new([0; KEY_LEN]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.as_bytes(), &self.salt, &mut *key)
            .map_err(failed)?;
        Ok(key)
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut sum = [0; CHECKSUM_LEN];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECKSUM_LEN]);
    sum
}

/// The bytes of a key file with these secrets; salt and nonce come from `rng`.
pub fn write(
    secrets: &DeviceSecrets,
    protection: &Protection<'_>,
    rng: &mut impl rand::Rng,
) -> Result<Vec<u8>, KeyfileError> {
    let (cost, passphrase) = match protection {
        Protection::Passphrase(passphrase, cost) => (Some(*cost), *passphrase),
        Protection::Bare => (None, ""),
    };
    let mut header = Header { cost, salt: [0; SALT_LEN], nonce: [0; NONCE_LEN] };
    rng.fill_bytes(&mut header.salt);
    rng.fill_bytes(&mut header.nonce);
    let key = header.key(passphrase)?;
    let mut file = header.encode();
    let mut secret = Zeroizing::new([0; 2 * KEY_LEN]);
    secret[..KEY_LEN].copy_from_slice(&*secrets.device.seed());
    secret[KEY_LEN..].copy_from_slice(secrets.vault.as_bytes());
    let tag = cipher::encrypt(&key, header.nonce, file.as_slice(), &mut *secret)
        .map_err(|_| KeyfileError::Derivation("the cipher failed".into()))?;
    file.raw(&*secret).raw(&tag);
    let sum = checksum(file.as_slice());
    file.raw(&sum);
    Ok(file.into_bytes())
}

/// The parts of a key file whose checksum is right: header, its bytes, what is encrypted.
fn parts(file: &[u8]) -> Result<(Header, &[u8], &[u8]), KeyfileError> {
    let rest = file.strip_prefix(&MAGIC).ok_or(KeyfileError::NotAKeyfile)?;
    let damaged = |why| KeyfileError::Damaged(DecodeError::Invalid { field: "key file", why });
    // The version comes first: a newer format may have its checksum elsewhere.
    Decoder::new(rest).version("key file", KEYFILE_VERSION)?;
    let split = file.len().checked_sub(CHECKSUM_LEN).filter(|_| file.len() <= KEYFILE_LIMIT);
    let (body, sum) = file.split_at(split.ok_or_else(|| damaged("of the wrong length"))?);
    if checksum(body) != *sum {
        return Err(damaged("its checksum does not match"));
    }
    let mut decoder = Decoder::new(&body[MAGIC.len()..]);
    let header = Header::decode(&mut decoder)?;
    let (head, sealed) = body.split_at(body.len() - decoder.left());
    if sealed.len() != 2 * KEY_LEN + TAG_LEN {
        return Err(damaged("of the wrong length"));
    }
    Ok((header, head, sealed))
}

/// Whether a key file needs a passphrase.
pub fn needs_passphrase(file: &[u8]) -> Result<bool, KeyfileError> {
    Ok(parts(file)?.0.cost.is_some())
}

/// The secrets in a key file. A passphrase given for a bare one is ignored.
pub fn read(file: &[u8], passphrase: Option<&str>) -> Result<DeviceSecrets, KeyfileError> {
    let (header, head, sealed) = parts(file)?;
    if header.cost.is_some() && passphrase.is_none() {
        return Err(KeyfileError::PassphraseNeeded);
    }
    let key = header.key(passphrase.unwrap_or_default())?;
    let secret = cipher::decrypt(&key, header.nonce, head, sealed).map_err(|_| KeyfileError::WrongPassphrase)?;
    let secret = Zeroizing::new(secret);
    let (mut device, mut vault) = (Zeroizing::new([0; KEY_LEN]), [0; KEY_LEN]);
    device.copy_from_slice(&secret[..KEY_LEN]);
    vault.copy_from_slice(&secret[KEY_LEN..]);
    let secrets = DeviceSecrets { device: SecretKey::from_seed(&device), vault: VaultSecret::from_bytes(vault) };
    zeroize::Zeroize::zeroize(&mut vault);
    Ok(secrets)
}

impl fmt::Debug for DeviceSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceSecrets of {:?}", self.device.public())
    }
}

#[cfg(test)]
mod tests {
    use potluck_proto::key::SecretKey;
    use rand::SeedableRng;

    use super::{Cost, DeviceSecrets, KeyfileError, MAGIC, Protection, checksum, needs_passphrase, read, write};
    use crate::vault::keys::VaultSecret;

    const CHEAP: Cost = Cost { memory_kib: 8, passes: 1, lanes: 1 };

    fn secrets() -> DeviceSecrets {
        DeviceSecrets { device: SecretKey::from_seed(&[1; 32]), vault: VaultSecret::from_bytes([2; 32]) }
    }

    fn file(protection: &Protection<'_>) -> Vec<u8> {
        write(&secrets(), protection, &mut rand::rngs::StdRng::seed_from_u64(1)).unwrap()
    }

    /// The file with bytes of its body replaced and the checksum made right again.
    fn forged(file: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut body = file[..file.len() - 16].to_vec();
        body[at..at + bytes.len()].copy_from_slice(bytes);
        let sum = checksum(&body);
        [body, sum.to_vec()].concat()
    }

    #[test]
    fn secrets_round_trip() {
        let wrapped = file(&Protection::Passphrase("open sesame", CHEAP));
        assert_eq!(needs_passphrase(&wrapped), Ok(true));
        assert_eq!(read(&wrapped, Some("open sesame")).unwrap().vault, secrets().vault);
        assert_eq!(read(&wrapped, Some("open sesame")).unwrap().device.seed(), secrets().device.seed());
        assert_eq!(read(&wrapped, Some("Open sesame")).unwrap_err(), KeyfileError::WrongPassphrase);
        assert_eq!(read(&wrapped, None).unwrap_err(), KeyfileError::PassphraseNeeded);
        let bare = file(&Protection::Bare);
        assert_eq!(needs_passphrase(&bare), Ok(false));
        assert_eq!(read(&bare, None).unwrap().vault, secrets().vault);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_damage() {
        let whole = file(&Protection::Passphrase("open sesame", CHEAP));
        for at in MAGIC.len()..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(matches!(read(&damaged, Some("open sesame")), Err(KeyfileError::Damaged(_))), "byte {at}");
            assert!(matches!(read(&whole[..at], Some("open sesame")), Err(KeyfileError::Damaged(_))), "cut at {at}");
        }
        assert_eq!(read(b"something else", None).unwrap_err(), KeyfileError::NotAKeyfile);
        assert_eq!(read(b"", None).unwrap_err(), KeyfileError::NotAKeyfile);
    }

    #[test]
    fn a_hostile_file_gets_no_memory() {
        let whole = file(&Protection::Passphrase("open sesame", CHEAP));
        for (at, value) in [(11, u32::MAX), (11, (1 << 20) + 1), (11, 7), (15, 17), (15, 0), (19, 17), (19, 0)] {
            let hostile = forged(&whole, at, &value.to_le_bytes());
            assert_eq!(read(&hostile, Some("open sesame")).unwrap_err(), KeyfileError::Cost, "{at} {value}");
        }
        assert_eq!(read(&forged(&whole, 10, &[7]), Some("x")).unwrap_err(), KeyfileError::Kdf(7));
        assert!(matches!(read(&forged(&whole, 8, &[9, 0]), Some("x")), Err(KeyfileError::Damaged(_))));
        assert_eq!(Cost::new(64 << 10, 3, 1), Some(Cost::DEFAULT));
    }

    /// Golden: FORMAT.md, "Key file".
    #[test]
    fn bytes_are_as_documented() {
        let wrapped = file(&Protection::Passphrase("open sesame", CHEAP));
        assert_eq!(wrapped.len(), 8 + 2 + 1 + 12 + 16 + 12 + 64 + 16 + 16);
        assert_eq!(wrapped[..23], *b"potluckK\x01\0\x01\x08\0\0\0\x01\0\0\0\x01\0\0\0");
        assert_eq!(
            blake3::hash(&wrapped).to_string(),
            "2ae2b0918d63b11e70f06baa07272b05e8b9a7aede9d686f6abf434d761bfe96"
        );
    }
}
