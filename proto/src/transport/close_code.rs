//! The codes that connections and streams are closed with (FORMAT.md).

use quinn::VarInt;

/// The connection is not needed.
pub(super) const UNUSED: VarInt = VarInt::from_u32(0);
/// The process is stopping.
pub(super) const STOPPING: VarInt = VarInt::from_u32(1);
/// The other side was refused; the reason is the name of the error's code.
pub(super) const REFUSED: VarInt = VarInt::from_u32(2);
/// Of a stream: the sender will not finish it, or the receiver does not want the rest.
pub(super) const GIVEN_UP: VarInt = VarInt::from_u32(3);
