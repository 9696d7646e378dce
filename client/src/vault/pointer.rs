//! Where a chunk lies: stripe, offset, length, and the hash of what was encrypted.
//!
//! While a stripe is open it has no id, only a number that its packer gave it; so there are pointers that are pending.
//! Inside a stored object a pointer may say "the same stripe as me", because an object packed with what it points to
//! cannot name a stripe whose id is not known before both are in it. Layout: FORMAT.md, "Pointer".

use potluck_proto::encoding::{DecodeError, Decoder, Encoder};
use potluck_proto::id::{Digest, StripeId};

/// A stripe, finished or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StripeRef {
    /// Finished: its id is known.
    Sealed(StripeId),
    /// The packer's stripe of this number, which may be still open.
    Open(u64),
}

/// Where a chunk lies in a finished stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pointer {
    /// The stripe.
    pub stripe: StripeId,
    /// First byte in the stripe's data.
    pub offset: u32,
    /// Bytes stored there, the cipher's tag included.
    pub len: u32,
    /// Keyed BLAKE3 of the bytes that were encrypted.
    pub hash: Digest,
}

/// Where a chunk lies, in a stripe that may be still open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PendingPointer {
    /// The stripe.
    pub stripe: StripeRef,
    /// First byte in the stripe's data.
    pub offset: u32,
    /// Bytes stored there, the cipher's tag included.
    pub len: u32,
    /// Keyed BLAKE3 of the bytes that were encrypted.
    pub hash: Digest,
}

/// The stripe of this number has no id yet: it is open, or being coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stripe number {0} of this upload is not finished yet")]
pub struct Unsealed(pub u64);

/// How an object names a stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// The stripe that the object itself lies in.
    Own,
    /// Another one.
    Stripe(StripeId),
}

/// The place that an object is encoded for.
pub trait Place {
    /// How an object at this place names `stripe`.
    fn name(&self, stripe: StripeRef) -> Result<Location, Unsealed>;
}

/// A place where every stripe has a name, made up if need be: for checking and measuring an encoding before its place is
/// known. All names are of full length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Anywhere;

impl Place for Anywhere {
    fn name(&self, stripe: StripeRef) -> Result<Location, Unsealed> {
        match stripe {
            StripeRef::Sealed(id) => Ok(Location::Stripe(id)),
            StripeRef::Open(_) => Ok(Location::Stripe(StripeId([0; 32]))),
        }
    }
}

const OWN: u8 = 0;
const NAMED: u8 = 1;

impl PendingPointer {
    /// The pointer, if its stripe is finished as far as this value knows.
    pub fn sealed(&self) -> Result<Pointer, Unsealed> {
        self.resolve(|_| None)
    }

    /// The pointer, with `id_of` asked for the stripe's id if it was open.
    pub fn resolve(&self, id_of: impl FnOnce(u64) -> Option<StripeId>) -> Result<Pointer, Unsealed> {
        let stripe = match self.stripe {
            StripeRef::Sealed(id) => id,
            StripeRef::Open(sequence) => id_of(sequence).ok_or(Unsealed(sequence))?,
        };
        Ok(Pointer { stripe, offset: self.offset, len: self.len, hash: self.hash })
    }

    /// Writes the pointer into an object that is to lie at `place`.
    pub fn encode(&self, encoder: &mut Encoder, place: &dyn Place) -> Result<(), Unsealed> {
        match place.name(self.stripe)? {
            Location::Own => encoder.u8(OWN),
            Location::Stripe(id) => encoder.u8(NAMED).raw(id.as_bytes()),
        };
        encoder.u32(self.offset).u32(self.len).raw(self.hash.as_bytes());
        Ok(())
    }

    /// Reads a pointer out of an object that lies in `container`.
    pub fn decode(decoder: &mut Decoder<'_>, container: StripeRef) -> Result<Self, DecodeError> {
        let stripe = match decoder.u8("pointer kind")? {
            OWN => container,
            NAMED => StripeRef::Sealed(decoder.id("stripe")?),
            _ => return Err(DecodeError::Invalid { field: "pointer kind", why: "neither own nor named" }),
        };
        Ok(Self { stripe, offset: decoder.u32("offset")?, len: decoder.u32("length")?, hash: decoder.id("hash")? })
    }
}

impl From<Pointer> for PendingPointer {
    fn from(pointer: Pointer) -> Self {
        let Pointer { stripe, offset, len, hash } = pointer;
        Self { stripe: StripeRef::Sealed(stripe), offset, len, hash }
    }
}

#[cfg(test)]
mod tests {
    use potluck_proto::encoding::{Decoder, Encoder};
    use potluck_proto::id::{Digest, StripeId};

    use super::{Location, PendingPointer, Place, StripeRef, Unsealed};

    struct InStripe7;

    impl Place for InStripe7 {
        fn name(&self, stripe: StripeRef) -> Result<Location, Unsealed> {
            match stripe {
                StripeRef::Open(7) => Ok(Location::Own),
                StripeRef::Open(other) => Err(Unsealed(other)),
                StripeRef::Sealed(id) => Ok(Location::Stripe(id)),
            }
        }
    }

    #[test]
    fn own_stripe_is_resolved_to_the_container() {
        let id = StripeId([9; 32]);
        let pointer = |stripe| PendingPointer { stripe, offset: 0x0102, len: 0x0304, hash: Digest([5; 32]) };
        let mut encoder = Encoder::new();
        pointer(StripeRef::Open(7)).encode(&mut encoder, &InStripe7).unwrap();
        let golden = [&[0, 2, 1, 0, 0, 4, 3, 0, 0][..], &[5; 32]].concat();
        assert_eq!(encoder.as_slice(), golden);
        let read = PendingPointer::decode(&mut Decoder::new(encoder.as_slice()), StripeRef::Sealed(id)).unwrap();
        assert_eq!(read, pointer(StripeRef::Sealed(id)));

        let mut encoder = Encoder::new();
        read.encode(&mut encoder, &InStripe7).unwrap();
        assert_eq!(encoder.as_slice()[..34], [&[1][..], &[9; 32], &[2]].concat());
        assert_eq!(pointer(StripeRef::Open(8)).encode(&mut encoder, &InStripe7), Err(Unsealed(8)));
        assert_eq!(pointer(StripeRef::Open(8)).sealed(), Err(Unsealed(8)));
        assert_eq!(pointer(StripeRef::Open(8)).resolve(|_| Some(id)).map(|p| p.stripe), Ok(id));
    }
}
