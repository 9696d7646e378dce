//! Space: how much puts may take, so that deletions and compaction always find some.

use super::SegmentStore;
use super::log::lock;
use crate::store::StoreError;

/// Disk space that the node leaves free: the smaller of this many bytes and a twentieth of the disk, but three segments
/// at the least. Deletions and compaction may use it.
const RESERVE_BYTES: u64 = 512 << 20;

/// Puts between two questions to the disk how much is free.
const ASK_DISK_EVERY: u32 = 64;

/// Below so many free bytes, the reserve apart, the disk is asked at each put.
const ASK_DISK_BELOW: u64 = 1 << 30;

/// Room that words and heads, which come many at once, must find in a segment.
const WORDS_BYTES: u64 = 64 << 10;

/// What puts may still take.
pub(super) struct Room {
    /// Bytes that are left of those that there were.
    left: u64,
    /// Puts since it was looked up.
    asked: u32,
}

/// Bytes of a disk that puts leave free. One segment of them is compaction's alone.
pub(super) fn reserve(total: u64, segment_bytes: u64) -> u64 {
    RESERVE_BYTES.min(total / 20).max(3 * segment_bytes)
}

impl SegmentStore {
    /// An error if a put of so many bytes is to be refused.
    pub(super) fn check_space(&self, incoming: u64) -> Result<(), StoreError> {
        let mut room = lock(&self.room);
        // Others may write to the disk too; asking it each time would cost small puts as much as all else.
        let known = room.take().filter(|room| room.asked < ASK_DISK_EVERY && room.left > ASK_DISK_BELOW);
        let known = match known {
            Some(known) => known,
            None => Room { left: self.room()?, asked: 0 },
        };
        let granted = known.left.checked_sub(incoming);
        *room = Some(Room { left: granted.unwrap_or(known.left), asked: known.asked + 1 });
        granted.map(|_| ()).ok_or(StoreError::Full)
    }

    /// Bytes that puts may still take: of the capacity and of the disk, less what is kept for deletions and compaction.
    pub(super) fn room(&self) -> Result<u64, StoreError> {
        let used = lock(&self.table).file_bytes();
        // Two segments are set aside before they are written.
        let offered = self.capacity.saturating_sub((2 * self.segment_bytes).min(self.capacity / 10));
        let space = self.disk.space()?;
        Ok(offered.saturating_sub(used).min(space.free.saturating_sub(reserve(space.total, self.segment_bytes))))
    }

    /// Whether the disk has no space for words of deletion and heads either: what is left is for compaction, which gives
    /// back what was deleted before.
    pub(super) fn check_space_for_words(&self) -> Result<(), StoreError> {
        if self.log.left() > WORDS_BYTES {
            return Ok(());
        }
        if self.disk.space()?.free < 2 * self.segment_bytes { Err(StoreError::Full) } else { Ok(()) }
    }

    /// Whether space runs out: compaction is then in a hurry, and content with less.
    #[must_use]
    pub fn short_of_space(&self) -> bool {
        !self.room().is_ok_and(|room| room >= 2 * self.segment_bytes)
    }
}
