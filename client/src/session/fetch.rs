//! Fetching and opening chunks. (skeleton)
use super::SessionError;
use crate::vault::VaultError;
use crate::vault::entry::ChunkRef;
use crate::vault::pointer::Pointer;
use bytes::Bytes;
use potluck_proto::id::{ChunkId, StripeId};
use std::ops::Range;
pub(super) struct Fetcher;
impl Fetcher {
    pub(super) async fn object(&self, _: &Pointer) -> Result<Bytes, VaultError> {
        Err(VaultError::WrongId(""))
    }
    pub(super) async fn chunk(&self, _: &ChunkRef) -> Result<Bytes, SessionError> {
        Err(SessionError::Internal(String::new()))
    }
    pub(super) async fn chunks(
        &self,
        _: StripeId,
        _: Range<u64>,
        _: Vec<(ChunkId, Pointer)>,
    ) -> Result<Vec<Bytes>, SessionError> {
        Ok(Vec::new())
    }
}
