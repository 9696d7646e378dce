//! AES-256-GCM, as the vault uses it: one message per key and nonce.
//!
//! Callers derive key and nonce so that the same pair never meets two messages; this file cannot check that.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::keys::KEY_LEN;

/// Bytes that a tag takes.
pub(crate) const TAG_LEN: usize = 16;

/// Bytes of a nonce.
pub(crate) const NONCE_LEN: usize = 12;

/// The tag does not match, or the cipher failed.
#[derive(Debug)]
pub(crate) struct CipherError;

/// Encrypts `message` in place and returns its tag.
pub(crate) fn encrypt(
    key: &[u8; KEY_LEN],
    nonce: [u8; NONCE_LEN],
    aad: &[u8],
    message: &mut [u8],
) -> Result<[u8; TAG_LEN], CipherError> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).map_err(|_| CipherError)?);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let mut tag = [0; TAG_LEN];
    key.seal_in_place_scatter(nonce, Aad::from(aad), message, &[], &mut tag).map_err(|_| CipherError)?;
    Ok(tag)
}

/// Encrypts `message`, and behind it `last`, into `sealed`, where the tag follows: its length is theirs and the tag's.
pub(crate) fn encrypt_into(
    key: &[u8; KEY_LEN],
    nonce: [u8; NONCE_LEN],
    message: &[u8],
    last: u8,
    sealed: &mut [u8],
) -> Result<(), CipherError> {
    let (body, end) = sealed.split_at_mut_checked(message.len()).ok_or(CipherError)?;
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).map_err(|_| CipherError)?);
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.seal_out_of_place_scatter(nonce, Aad::empty(), message, body, &[last], end).map_err(|_| CipherError)
}

/// Decrypts `sealed` (ciphertext, then tag) into a new buffer.
pub(crate) fn decrypt(
    key: &[u8; KEY_LEN],
    nonce: [u8; NONCE_LEN],
    aad: &[u8],
    sealed: &[u8],
) -> Result<Vec<u8>, CipherError> {
    let mut message = vec![0; sealed.len().checked_sub(TAG_LEN).ok_or(CipherError)?];
    decrypt_into(key, nonce, aad, sealed, &mut message)?;
    Ok(message)
}

/// Decrypts `sealed` (ciphertext, then tag) into `message`, which has the ciphertext's length. After an error its bytes are
/// not to be used.
pub(crate) fn decrypt_into(
    key: &[u8; KEY_LEN],
    nonce: [u8; NONCE_LEN],
    aad: &[u8],
    sealed: &[u8],
    message: &mut [u8],
) -> Result<(), CipherError> {
    let (ciphertext, tag) = sealed.split_at_checked(message.len()).ok_or(CipherError)?;
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).map_err(|_| CipherError)?);
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.open_separate_gather(nonce, Aad::from(aad), ciphertext, tag, message).map_err(|_| CipherError)
}
