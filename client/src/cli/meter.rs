//! A progress bar on standard error, where a person watches; elsewhere nothing. Whoever waits for long is told for what.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::human;
use super::screen::Screen;
use crate::session::Progress;

/// Time between two looks at the counters.
const TICK: Duration = Duration::from_millis(100);

/// Who has waited for this long is told for what.
const PATIENCE: Duration = Duration::from_secs(3);

/// Waits for `work`. If that takes long, a wheel that turns says `what` is waited for.
pub(crate) async fn waiting<T>(screen: &Screen, what: &str, work: impl Future<Output = T>) -> T {
    with_patience(PATIENCE, work, || Meter::things(screen, &format!("waiting for {what}"), 0)).await
}

/// Waits for `work`, and holds what `notice` makes once that has taken longer than `patience`.
async fn with_patience<T, N>(patience: Duration, work: impl Future<Output = T>, notice: impl FnOnce() -> N) -> T {
    let mut work = pin!(work);
    if let Ok(done) = tokio::time::timeout(patience, &mut work).await {
        return done;
    }
    let _notice = notice();
    work.await
}

/// A bar that vanishes when it is dropped.
pub(crate) struct Meter {
    bar: ProgressBar,
    watcher: Option<JoinHandle<()>>,
}

impl Meter {
    /// A bar of bytes, `total` of them; 0: not known.
    pub(crate) fn bytes(screen: &Screen, what: &str, total: u64) -> Self {
        let form = if total == 0 {
            "{spinner} {prefix}  {bytes}  {bytes_per_sec}  {msg}"
        } else {
            "{spinner} {prefix}  {bar:28} {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left  {msg}"
        };
        Self::with(screen, what, total, form)
    }

    /// A bar of things, `total` of them; 0: a wheel that turns.
    pub(crate) fn things(screen: &Screen, what: &str, total: u64) -> Self {
        let form =
            if total == 0 { "{spinner} {prefix}  {msg}" } else { "{spinner} {prefix}  {bar:28} {pos} of {len}  {msg}" };
        Self::with(screen, what, total, form)
    }

    fn with(screen: &Screen, what: &str, total: u64, form: &str) -> Self {
        let target = if screen.draws() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target((total > 0).then_some(total), target);
        // The forms above are fixed and sound; another would show the default bar.
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_prefix(what.to_string());
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Self { bar, watcher: None }
    }

    /// Follows the counters of an upload.
    pub(crate) fn follow(&mut self, progress: &Arc<Progress>) {
        if self.bar.is_hidden() {
            return;
        }
        let (bar, progress) = (self.bar.clone(), progress.clone());
        self.watcher = Some(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            let (mut last, mut moved) = ((0, 0), Instant::now());
            loop {
                ticks.tick().await;
                let read = progress.bytes_read.load(Ordering::Relaxed);
                // A file may have grown since it was measured.
                if bar.length().is_some_and(|total| read > total) {
                    bar.set_length(read);
                }
                bar.set_position(read);
                let sent = progress.bytes_sent.load(Ordering::Relaxed);
                if last != (read, sent) {
                    (last, moved) = ((read, sent), Instant::now());
                }
                let waits = if moved.elapsed() < PATIENCE { "" } else { ", waiting for nodes to take more" };
                bar.set_message(format!("{} on nodes{waits}", human::size(sent)));
            }
        }));
    }

    /// So many more are done.
    pub(crate) fn add(&self, amount: u64) {
        self.bar.inc(amount);
    }

    /// So many are done.
    #[cfg(feature = "embedded")]
    pub(crate) fn set(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// What happens just now.
    pub(crate) fn say(&self, text: impl Into<String>) {
        if !self.bar.is_hidden() {
            self.bar.set_message(text.into());
        }
    }

    /// Runs `print` with the bar out of the way.
    pub(crate) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(watcher) = &self.watcher {
            watcher.abort();
        }
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn who_waits_for_long_is_told_for_what_and_nobody_else() {
        let untold = || panic!("told of what was done at once");
        assert_eq!(with_patience(Duration::MAX, async { 1 }, untold).await, 1);
        // Goes on only once it is told.
        let (tell, told) = oneshot::channel();
        assert_eq!(with_patience(Duration::ZERO, told, || tell.send(2).unwrap()).await, Ok(2));
    }
}
