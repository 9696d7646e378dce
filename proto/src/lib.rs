//! What Potluck's nodes and clients share.
//!
//! Everything here is pure, a function of its arguments without clock, disk or socket, except [`transport`], the QUIC
//! endpoint. Nothing here depends on the node or on the client.

pub mod assignment;
pub mod blocks;
pub mod buffers;
pub mod cert;
pub mod codec;
pub mod encoding;
pub mod head;
pub mod id;
pub mod invite;
pub mod key;
pub mod member;
pub mod quorum;
pub mod replica;
pub mod ring;
pub mod scheme;
pub mod stripe;
pub mod sweep;
pub mod transport;
pub mod wire;

#[cfg(test)]
mod format_tests;
