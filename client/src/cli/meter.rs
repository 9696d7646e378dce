//! A progress bar on standard error, where a person watches; elsewhere nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;

use super::human;
use super::screen::Screen;
use crate::session::Progress;

/// Time between two looks at the counters.
const TICK: Duration = Duration::from_millis(100);

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
            loop {
                ticks.tick().await;
                let read = progress.bytes_read.load(Ordering::Relaxed);
                // A file may have grown since it was measured.
                if bar.length().is_some_and(|total| read > total) {
                    bar.set_length(read);
                }
                bar.set_position(read);
                let sent = progress.bytes_sent.load(Ordering::Relaxed);
                bar.set_message(format!("{} on nodes", human::size(sent)));
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
