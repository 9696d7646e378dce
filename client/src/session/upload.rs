//! The upload's stripes. (skeleton)
pub(super) struct Upload;
