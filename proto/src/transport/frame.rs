//! One message and its payload on a stream: `u32 message length | u32 payload length | message | payload`.
//!
//! Lengths come first, so that a reader refuses before it receives, sets aside exactly the memory that it needs, copies
//! the payload once, and tells a cut frame from a whole one.

use std::mem::take;
use std::sync::LazyLock;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use quinn::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};

use crate::buffers::Pool;
use crate::wire;

/// Length of a frame's two lengths, in bytes.
pub(super) const HEAD_LEN: usize = 8;

/// Pieces of a payload that are taken from the stream at once.
const CHUNKS: usize = 32;

/// Payloads of this length or more, in bytes, are received into buffers that are used again, which begin at a page.
const POOLED_FROM: usize = 64 << 10;

/// Bytes of such buffers that are kept while they are not in use, for all endpoints of the process.
const POOL_LIMIT: usize = 32 << 20;

static POOL: LazyLock<Pool> = LazyLock::new(|| Pool::new(POOL_LIMIT));

/// The most that a frame may hold, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameLimit {
    pub(super) message: usize,
    pub(super) payload: usize,
}

/// A frame's lengths, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) message: usize,
    pub(super) payload: usize,
}

impl Head {
    /// Length of the whole frame.
    pub(super) fn frame_len(self) -> usize {
        HEAD_LEN + self.message + self.payload
    }

    fn decode(bytes: [u8; HEAD_LEN], limit: FrameLimit) -> Result<Self, FrameError> {
        let [a, b, c, d, e, f, g, h] = bytes;
        let (message, payload) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let fits = |length: u32, limit: usize, what: &str| match usize::try_from(length) {
            Ok(length) if length <= limit => Ok(length),
            _ => Err(FrameError::Bad(format!("a {what} of {length} bytes; at most {limit} are taken here"))),
        };
        Ok(Self {
            message: fits(message, limit.message, "message")?,
            payload: fits(payload, limit.payload, "payload")?,
        })
    }
}

/// Why no frame could be read.
#[derive(Debug)]
pub(super) enum FrameError {
    /// It breaks a limit, ends too early or too late, or is no message.
    Bad(String),
    /// The sender gave it up, or the connection is gone: nobody waits for an answer.
    Gone(String),
}

impl From<ReadError> for FrameError {
    fn from(error: ReadError) -> Self {
        Self::Gone(error.to_string())
    }
}

/// A frame ready to be sent: the lengths and the message in one piece, then the payload as it was given.
/// Refused if it is longer than the protocol allows.
pub(super) fn encode(message: &impl Message, payload: Vec<Bytes>) -> Result<(Head, Vec<Bytes>), String> {
    let head = Head { message: message.encoded_len(), payload: payload.iter().map(Bytes::len).sum() };
    if head.message > wire::MESSAGE_LIMIT || head.payload > wire::PAYLOAD_LIMIT {
        return Err(format!(
            "a message of {} bytes (at most {}) with a payload of {} bytes (at most {})",
            head.message,
            wire::MESSAGE_LIMIT,
            head.payload,
            wire::PAYLOAD_LIMIT
        ));
    }
    let mut first = BytesMut::with_capacity(HEAD_LEN + head.message);
    first.put_u32_le(head.message as u32);
    first.put_u32_le(head.payload as u32);
    first.put_slice(&message.encode_to_vec());
    let pieces = std::iter::once(first.freeze()).chain(payload.into_iter().filter(|piece| !piece.is_empty()));
    Ok((head, pieces.collect()))
}

/// Sends a frame and ends the stream.
pub(super) async fn write(send: &mut SendStream, mut frame: Vec<Bytes>) -> Result<(), WriteError> {
    send.write_all_chunks(&mut frame).await?;
    // Fails only on a stream that was already ended or reset, which nobody but this function does before.
    let _ = send.finish();
    Ok(())
}

/// Reads a frame's lengths and holds them to `limit`.
pub(super) async fn read_head(recv: &mut RecvStream, limit: FrameLimit) -> Result<Head, FrameError> {
    let mut bytes = [0; HEAD_LEN];
    read_exact(recv, &mut bytes).await?;
    Head::decode(bytes, limit)
}

/// Reads the rest of the frame whose lengths are `head`.
pub(super) async fn read_body<M: Message + Default>(
    recv: &mut RecvStream,
    head: Head,
) -> Result<(M, Bytes), FrameError> {
    let mut message = vec![0; head.message];
    read_exact(recv, &mut message).await?;
    let message = M::decode(Bytes::from(message)).map_err(|error| FrameError::Bad(error.to_string()))?;
    Ok((message, read_payload(recv, head.payload).await?))
}

async fn read_exact(recv: &mut RecvStream, bytes: &mut [u8]) -> Result<(), FrameError> {
    recv.read_exact(bytes).await.map_err(|error| match error {
        ReadExactError::FinishedEarly(got) => FrameError::Bad(format!("it ends after {got} of {} bytes", bytes.len())),
        ReadExactError::ReadError(error) => error.into(),
    })
}

async fn read_payload(recv: &mut RecvStream, length: usize) -> Result<Bytes, FrameError> {
    if length < POOLED_FROM {
        let mut payload = vec![0; length];
        fill(recv, &mut payload).await?;
        return Ok(payload.into());
    }
    let mut payload = POOL.take(length);
    fill(recv, &mut payload).await?;
    Ok(payload.freeze())
}

/// Fills the payload. Reads to the end of the stream, also when nothing is missing: a longer payload than announced is an
/// error.
async fn fill(recv: &mut RecvStream, payload: &mut [u8]) -> Result<(), FrameError> {
    let (length, mut filled) = (payload.len(), 0);
    let mut chunks: [Bytes; CHUNKS] = Default::default();
    while let Some(count) = recv.read_chunks(&mut chunks).await? {
        for chunk in chunks.iter_mut().take(count).map(take) {
            let Some(place) = payload.get_mut(filled..filled + chunk.len()) else {
                return Err(FrameError::Bad(format!("the payload is longer than the {length} bytes announced")));
            };
            place.copy_from_slice(&chunk);
            filled += chunk.len();
        }
    }
    if filled < length {
        return Err(FrameError::Bad(format!("the payload ends after {filled} of {length} bytes")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: FrameLimit = FrameLimit { message: 100, payload: 200 };

    fn head(message: u32, payload: u32) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        bytes[..4].copy_from_slice(&message.to_le_bytes());
        bytes[4..].copy_from_slice(&payload.to_le_bytes());
        bytes
    }

    #[test]
    fn lengths_are_held_to_the_limit() {
        assert!(matches!(Head::decode(head(100, 200), LIMIT), Ok(Head { message: 100, payload: 200 })));
        for bytes in [head(101, 0), head(0, 201), head(u32::MAX, u32::MAX)] {
            assert!(matches!(Head::decode(bytes, LIMIT), Err(FrameError::Bad(_))));
        }
    }

    #[test]
    fn a_frame_is_lengths_message_payload() {
        let hello = wire::Hello { version_min: 7, ..Default::default() };
        let payload = Bytes::from_static(b"abc");
        let (head, frame) = encode(&hello, vec![payload.clone(), Bytes::new(), payload.clone()]).unwrap();
        assert_eq!((head.message, head.payload), (2, 6));
        assert_eq!(frame.concat(), b"\x02\0\0\0\x06\0\0\0\x08\x07abcabc");
        // The payload is sent as it was given, not copied.
        assert_eq!(frame[1].as_ptr(), payload.as_ptr());
    }

    #[test]
    fn what_is_too_long_is_not_sent() {
        let hello = wire::Hello { software: "x".repeat(wire::MESSAGE_LIMIT), ..Default::default() };
        assert!(encode(&hello, Vec::new()).is_err());
        let payload = Bytes::from(vec![0; wire::PAYLOAD_LIMIT]);
        assert!(encode(&wire::Hello::default(), vec![payload.clone()]).is_ok());
        assert!(encode(&wire::Hello::default(), vec![payload, Bytes::from_static(b"x")]).is_err());
    }
}
