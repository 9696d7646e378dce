//! The byte layout shared by all signed and stored formats: little-endian integers, length-prefixed byte strings.
//!
//! One value has exactly one encoding, so that hashes and signatures over it are stable. Decoding bytes from outside
//! never panics, never allocates more than the input's own length, and refuses what is left over at the end.

use crate::id::{Digest, ID_LEN};

/// Why bytes from outside are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("truncated: {needed} more bytes of {field} expected, {left} left")]
    Truncated {
        /// The field that was being read.
        field: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// Bytes are left after the last field.
    #[error("{0} bytes too many at the end")]
    TrailingBytes(usize),
    /// The format's version is not one that this program knows.
    #[error("{what} has format version {found}, this program knows up to {known}: a newer Potluck is needed")]
    Version {
        /// The kind of thing.
        what: &'static str,
        /// The version it carries.
        found: u16,
        /// The newest version known here.
        known: u16,
    },
    /// A field holds a value that its format forbids.
    #[error("{field}: {why}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A signature inside does not match.
    #[error("the signature of {0} does not match")]
    Signature(&'static str),
}

/// Writes fields one after the other.
#[derive(Debug, Default, Clone)]
pub struct Encoder(Vec<u8>);

impl Encoder {
    /// An empty encoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What was written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// What was written so far.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// An unsigned LEB128 number, in its shortest form.
    pub fn varint(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.0.push((value as u8 & 0x7f) | 0x80);
            value >>= 7;
        }
        self.u8(value as u8)
    }

    /// The bytes as they are, without a length.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A varint length, then the bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.varint(bytes.len() as u64).raw(bytes)
    }
}

/// Reads fields one after the other.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// A decoder at the start of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next `count` bytes.
    pub fn raw(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], DecodeError> {
        if count > self.rest.len() {
            return Err(DecodeError::Truncated { field, needed: count, left: self.rest.len() });
        }
        let (head, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let mut array = [0u8; N];
        array.copy_from_slice(self.raw(field, N)?);
        Ok(array)
    }

    /// A 32-byte id of any kind.
    pub fn id<T: From<RawId>>(&mut self, field: &'static str) -> Result<T, DecodeError> {
        Ok(T::from(RawId(self.array::<ID_LEN>(field)?)))
    }

    /// One byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(field)?[0])
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// An unsigned LEB128 number; longer than the shortest form is refused.
    pub fn varint(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(field)?;
            let low = u64::from(byte & 0x7f);
            if (low << shift) >> shift != low || (byte == 0 && shift > 0) {
                return Err(DecodeError::Invalid { field, why: "a number in a form that is not the shortest" });
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Invalid { field, why: "a number longer than 64 bits" })
    }

    /// A varint length no greater than `limit`, then that many bytes.
    pub fn bytes(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], DecodeError> {
        let length = self.count(field, limit)?;
        self.raw(field, length)
    }

    /// A varint no greater than `limit`, as a length or a count.
    pub fn count(&mut self, field: &'static str, limit: usize) -> Result<usize, DecodeError> {
        let count = self.varint(field)?;
        usize::try_from(count)
            .ok()
            .filter(|&count| count <= limit)
            .ok_or(DecodeError::Invalid { field, why: "longer than its limit" })
    }

    /// A text in UTF-8 of at most `limit` bytes.
    pub fn text(&mut self, field: &'static str, limit: usize) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(field, limit)?).map_err(|_| DecodeError::Invalid { field, why: "not UTF-8" })
    }

    /// A two-byte format version between 1 and `known`.
    pub fn version(&mut self, what: &'static str, known: u16) -> Result<u16, DecodeError> {
        match self.u16(what)? {
            0 => Err(DecodeError::Invalid { field: what, why: "format version 0" }),
            found if found > known => Err(DecodeError::Version { what, found, known }),
            found => Ok(found),
        }
    }

    /// Ends the reading; bytes left over are an error.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(DecodeError::TrailingBytes(left)),
        }
    }
}

/// Thirty-two bytes on their way into an id type.
#[derive(Debug, Clone, Copy)]
pub struct RawId([u8; ID_LEN]);

macro_rules! from_raw {
    ($($name:ty),*) => {$(
        impl From<RawId> for $name {
            fn from(raw: RawId) -> Self {
                Self(raw.0)
            }
        }
    )*};
}

from_raw!(
    crate::id::NodeId,
    crate::id::ClusterId,
    crate::id::VaultId,
    crate::id::DeviceId,
    crate::id::StripeId,
    crate::id::HeadId,
    crate::id::ChunkId,
    crate::key::PublicKey,
    Digest
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    proptest! {
        #[test]
        fn numbers_and_strings_round_trip(number in any::<u64>(), bytes in any::<Vec<u8>>()) {
            let mut encoder = Encoder::new();
            encoder.varint(number).bytes(&bytes).u64(number);
            let written = encoder.into_bytes();
            let mut decoder = Decoder::new(&written);
            prop_assert_eq!(decoder.varint("a"), Ok(number));
            prop_assert_eq!(decoder.bytes("b", 1 << 20), Ok(&bytes[..]));
            prop_assert_eq!(decoder.u64("c"), Ok(number));
            prop_assert_eq!(decoder.finish(), Ok(()));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in any::<Vec<u8>>()) {
            let mut decoder = Decoder::new(&bytes);
            while decoder.left() > 0 {
                if decoder.varint("a").is_err() || decoder.bytes("b", 64).is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn longer_forms_and_overflow_are_refused() {
        assert!(Decoder::new(&[0x80, 0x00]).varint("n").is_err());
        assert!(Decoder::new(&[0xff; 10]).varint("n").is_err());
        assert_eq!(Decoder::new(&[1]).finish(), Err(DecodeError::TrailingBytes(1)));
    }
}
