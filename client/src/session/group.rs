//! Many small puts at once: those that come together share stripes and one commit.
//!
//! While a commit is on its way others gather, and go with the next one; a put that comes alone goes at once. Only where
//! the last commit had more puts than wait now, those who were just told are given a moment to come again.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::upload::Preparer;
use super::writer::{Preparing, Writer};
use super::{Committed, Meta, Progress, Session, SessionError, Stored};

/// Puts of one commit, and most that wait for the next.
const TOGETHER: usize = 1024;

/// Longest wait for as many puts as the last commit had.
const MOMENT: Duration = Duration::from_millis(1);

/// Bytes of files that wait or are being put; who brings more waits before. A longer file waits for all others.
const WAITING: usize = 32 << 20;

/// Why a put of a group failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GroupError {
    /// This file, or all that were put together with it.
    #[error(transparent)]
    Put(Arc<SessionError>),
    /// An error before has ended the group: another one may be begun. Nothing of this file was committed.
    #[error("the group of puts has ended, nothing of this file was stored: begin another")]
    Ended,
}

/// A file that waits.
struct Request {
    key: Bytes,
    meta: Meta,
    source: Preparing<Cursor<Bytes>>,
    told: oneshot::Sender<Result<Stored, GroupError>>,
    _room: OwnedSemaphorePermit,
}

/// The writer of many small files, shared by those who bring them.
pub struct Group {
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    preparer: Preparer,
    task: JoinHandle<Result<Option<Committed>, GroupError>>,
}

impl Session {
    /// Begins a group of puts. It is the one writer of this machine until it is closed or dropped.
    pub async fn group(&self) -> Result<Group, SessionError> {
        let writer = self.writer().await?;
        let preparer = writer.preparer();
        let (requests, waiting) = mpsc::channel(TOGETHER);
        Ok(Group {
            requests,
            room: Arc::new(Semaphore::new(WAITING)),
            preparer,
            task: tokio::spawn(serve(writer, waiting)),
        })
    }
}

impl Group {
    /// Puts a file at `key` ([`crate::vault::path::file`]); it is committed when this returns. Of several puts to one key
    /// that are under way at once any may be the last.
    pub async fn put(&self, key: Bytes, meta: Meta, bytes: Bytes) -> Result<Stored, GroupError> {
        let ended = |_| GroupError::Ended;
        let units = bytes.len().clamp(1, WAITING) as u32;
        let room = self.room.clone().acquire_many_owned(units).await.map_err(|_| GroupError::Ended)?;
        let source = self.preparer.begin(Cursor::new(bytes));
        let (told, outcome) = oneshot::channel();
        let request = Request { key, meta, source, told, _room: room };
        self.requests.send(request).await.map_err(|_| GroupError::Ended)?;
        outcome.await.map_err(ended)?
    }

    /// Waits for all that were brought. Says what the commits came to; `None` if there was none.
    pub async fn close(self) -> Result<Option<Committed>, GroupError> {
        drop(self.requests);
        match self.task.await {
            Ok(ended) => ended,
            Err(error) => Err(GroupError::Put(Arc::new(SessionError::Internal(error.to_string())))),
        }
    }
}

/// Puts and commits what has come, again and again, until nobody can bring more or an error ends the group.
async fn serve(mut writer: Writer, mut requests: mpsc::Receiver<Request>) -> Result<Option<Committed>, GroupError> {
    let progress = Progress::default();
    let (mut batch, mut sum) = (Vec::with_capacity(TOGETHER), None);
    let mut last = 0;
    while requests.recv_many(&mut batch, TOGETHER).await > 0 {
        let over = Instant::now() + MOMENT;
        while batch.len() < last {
            let room = TOGETHER - batch.len();
            match timeout_at(over, requests.recv_many(&mut batch, room)).await {
                Ok(more) if more > 0 => {}
                _ => break,
            }
        }
        last = batch.len();
        let mut put = Vec::with_capacity(batch.len());
        let mut failed = None;
        for Request { key, meta, source, told, _room } in batch.drain(..) {
            if failed.is_some() {
                // Its sender goes: that is told as the end of the group.
                continue;
            }
            match writer.put_prepared(key, meta, source, &progress).await {
                Ok(stored) => put.push((told, stored, _room)),
                // Whoever gave a name that cannot be has harmed nobody else.
                Err(error @ (SessionError::WrongKind { .. } | SessionError::Path(_))) => {
                    let _ = told.send(Err(GroupError::Put(Arc::new(error))));
                }
                Err(error) => failed = Some(error),
            }
        }
        let committed = match failed {
            None => writer.checkpoint(&progress).await,
            Some(error) => Err(error),
        };
        match committed {
            Ok(committed) => {
                sum = Some(committed.after(sum.take()));
                put.into_iter().for_each(|(told, stored, _)| _ = told.send(Ok(stored)));
            }
            Err(error) => {
                let error = GroupError::Put(Arc::new(error));
                put.into_iter().for_each(|(told, ..)| _ = told.send(Err(error.clone())));
                return Err(error);
            }
        }
    }
    Ok(sum)
}
