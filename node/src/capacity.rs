//! The capacity that a node announces where its operator has named none: what the disk has room for, remembered.
//!
//! The ring weighs nodes by it, so each change moves shards. It therefore does not follow the free space: it changes at
//! most once in a day of running time, and only when it has become plainly wrong. Layout of the file: FORMAT.md.

use std::io;
use std::path::Path;
use std::time::Duration;

use potluck_proto::encoding::{Decoder, Encoder};

use crate::durable;

/// Least running time between two changes of the announced capacity.
pub const KEEP_TIME: Duration = Duration::from_secs(86_400);

/// By how many percent the disk must differ from what is announced before that changes.
const CHANGE_PERCENT: u64 = 10;

/// The file's name in the data folder.
const FILE: &str = "capacity";

/// What was announced, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// Bytes offered.
    pub bytes: u64,
    /// Milliseconds of the node's running time at which it was chosen.
    pub since_ms: u64,
}

impl Announced {
    /// What this node announces when the disk has room for `measured` bytes: `old` while that is recent or about right.
    #[must_use]
    pub fn next(old: Option<Self>, measured: u64, running_ms: u64) -> Self {
        let new = Self { bytes: measured, since_ms: running_ms };
        let Some(old) = old else { return new };
        let recent = running_ms.saturating_sub(old.since_ms) < KEEP_TIME.as_millis() as u64;
        let near = measured.abs_diff(old.bytes) <= old.bytes / 100 * CHANGE_PERCENT;
        if recent || near { old } else { new }
    }

    /// Reads what was announced by the node in `folder`; none if it never was, or if the file is damaged.
    pub fn read(folder: &Path) -> io::Result<Option<Self>> {
        let Some(bytes) = durable::read(&folder.join(FILE))? else { return Ok(None) };
        let mut decoder = Decoder::new(&bytes);
        let announced = decoder.u64("capacity").and_then(|bytes| {
            let since_ms = decoder.u64("since")?;
            decoder.finish()?;
            Ok(Self { bytes, since_ms })
        });
        if let Err(error) = &announced {
            tracing::warn!(%error, "the remembered capacity is damaged: measuring the disk anew");
        }
        Ok(announced.ok())
    }

    /// Remembers it; durable on return.
    pub fn write(self, folder: &Path) -> io::Result<()> {
        let mut encoder = Encoder::new();
        encoder.u64(self.bytes).u64(self.since_ms);
        durable::replace(&folder.join(FILE), encoder.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn it_changes_at_most_daily_and_not_by_little() {
        let first = Announced::next(None, 1_000, 5 * HOUR);
        assert_eq!(first, Announced { bytes: 1_000, since_ms: 5 * HOUR });
        // However often the node starts, and whatever the disk has free then.
        for (measured, running_ms) in
            [(500, 5 * HOUR), (2_000, 6 * HOUR), (0, 28 * HOUR), (1_100, 99 * HOUR), (900, 99 * HOUR)]
        {
            assert_eq!(Announced::next(Some(first), measured, running_ms), first, "{measured}");
        }
        let second = Announced::next(Some(first), 1_101, 29 * HOUR);
        assert_eq!(second, Announced { bytes: 1_101, since_ms: 29 * HOUR });
        assert_eq!(Announced::next(Some(second), 500, 30 * HOUR), second);
    }

    #[test]
    fn it_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Announced::read(folder.path()).unwrap(), None);
        let announced = Announced { bytes: u64::MAX - 7, since_ms: 3 };
        announced.write(folder.path()).unwrap();
        assert_eq!(Announced::read(folder.path()).unwrap(), Some(announced));
        std::fs::write(folder.path().join(FILE), b"short").unwrap();
        assert_eq!(Announced::read(folder.path()).unwrap(), None);
    }
}
