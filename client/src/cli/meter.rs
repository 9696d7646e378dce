//! A progress bar on standard error, where a person watches; elsewhere nothing. Whoever waits for long is told for what.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// Before a transfer has gone on for so long, nobody can say when it ends.
const FORETOLD: Duration = Duration::from_secs(1);

/// How much of the speed told is that of the last tick: the rest is that of those before.
const NEWS: f64 = 0.03;

/// A bar that vanishes when it is dropped. It is one line on a terminal of any width: what does not fit is left out at
/// the end, so what matters most comes first.
pub(crate) struct Meter {
    bar: ProgressBar,
    /// Of a wheel: what stands in front of what is said.
    what: String,
    transfer: Option<Arc<Mutex<Transfer>>>,
    watcher: Option<JoinHandle<()>>,
}

/// What is told of bytes on their way.
#[derive(Debug, Default)]
struct Transfer {
    /// Counters to follow; else the bar's own position counts.
    progress: Option<Arc<Progress>>,
    /// What happens just now, if it is anything else than the transfer.
    note: String,
    /// Bytes done at the last look.
    done: u64,
    /// Bytes sent at the last look.
    sent: u64,
    /// Bytes a second.
    rate: f64,
    /// For how long it goes on.
    age: Duration,
    /// For how long nothing has moved.
    still: Duration,
}

impl Transfer {
    /// Takes in where it stands after another `time`.
    fn step(&mut self, done: u64, sent: u64, time: Duration) {
        let moved = (done, sent) != (self.done, self.sent);
        self.still = if moved { Duration::ZERO } else { self.still + time };
        let now = done.saturating_sub(self.done) as f64 / time.as_secs_f64().max(1e-3);
        self.age += time;
        // Over the first ticks: their mean.
        let news = NEWS.max(time.as_secs_f64() / self.age.as_secs_f64().max(1e-3));
        self.rate += (now - self.rate) * news;
        (self.done, self.sent) = (done, sent);
    }

    /// The line behind the bar, of `total` bytes; 0: not known.
    fn line(&self, total: u64) -> String {
        let mut parts = vec![match total {
            0 => human::size(self.done),
            total => format!("{} of {}", human::size(self.done), human::size(total)),
        }];
        if !self.note.is_empty() {
            parts.push(self.note.clone());
        } else if self.still >= PATIENCE {
            parts.push("waiting for nodes".into());
        } else {
            parts.push(human::speed(self.rate as u64, Duration::from_secs(1)));
            let left = total.saturating_sub(self.done) as f64 / self.rate;
            if self.age >= FORETOLD && total > 0 && left.is_finite() {
                parts.push(format!("{} left", rough(Duration::from_secs_f64(left.clamp(0.0, 1e9)))));
            }
        }
        if self.progress.is_some() {
            parts.push(format!("{} sent", human::size(self.sent)));
        }
        parts.join("  ")
    }
}

/// A span of time in as few letters as will do: `12 s`, `4 min`, `3 h`, `5 d`.
fn rough(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds @ 100..6000 => format!("{} min", seconds / 60),
        seconds @ 6000..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

fn locked(transfer: &Mutex<Transfer>) -> MutexGuard<'_, Transfer> {
    transfer.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Meter {
    /// A bar of bytes, `total` of them; 0: not known. Only in a Tokio runtime.
    pub(crate) fn bytes(screen: &Screen, what: &str, total: u64) -> Self {
        let form = if total == 0 { "{spinner} {prefix}  {wide_msg}" } else { "{spinner} {prefix} {bar:8} {wide_msg}" };
        let mut meter = Self::with(screen, what, total, form);
        if meter.bar.is_hidden() {
            return meter;
        }
        let transfer = Arc::new(Mutex::new(Transfer::default()));
        meter.transfer = Some(transfer.clone());
        let bar = meter.bar.clone();
        meter.watcher = Some(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            let mut last = Instant::now();
            loop {
                ticks.tick().await;
                let mut transfer = locked(&transfer);
                let (mut done, mut sent) = (bar.position(), 0);
                if let Some(progress) = &transfer.progress {
                    done = progress.bytes_read.load(Ordering::Relaxed);
                    sent = progress.bytes_sent.load(Ordering::Relaxed);
                    // A file may have grown since it was measured.
                    if bar.length().is_some_and(|total| done > total) {
                        bar.set_length(done);
                    }
                    bar.set_position(done);
                }
                let now = Instant::now();
                transfer.step(done, sent, now - std::mem::replace(&mut last, now));
                bar.set_message(transfer.line(bar.length().unwrap_or(0)));
            }
        }));
        meter
    }

    /// A bar of things, `total` of them; 0: a wheel that turns.
    pub(crate) fn things(screen: &Screen, what: &str, total: u64) -> Self {
        let form =
            if total == 0 { "{spinner} {wide_msg}" } else { "{spinner} {prefix} {bar:8} {pos} of {len}  {wide_msg}" };
        let mut meter = Self::with(screen, what, total, form);
        if total == 0 {
            meter.what = what.to_string();
            meter.bar.set_message(what.to_string());
        }
        meter
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
        Self { bar, what: String::new(), transfer: None, watcher: None }
    }

    /// Follows the counters of an upload.
    pub(crate) fn follow(&mut self, progress: &Arc<Progress>) {
        if let Some(transfer) = &self.transfer {
            locked(transfer).progress = Some(progress.clone());
        }
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
        if self.bar.is_hidden() {
            return;
        }
        let text = text.into();
        match &self.transfer {
            Some(transfer) => locked(transfer).note = text,
            None if self.what.is_empty() => self.bar.set_message(text),
            None => self.bar.set_message(format!("{}  {text}", self.what)),
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

    #[test]
    fn a_transfer_is_told_in_one_line_of_eighty_columns() {
        // In front of it: the wheel, the longest word (fetching), the bar, and spaces.
        const ROOM: usize = 80 - (2 + 8 + 1 + 8 + 1);
        let total = 99_900 << 20;
        let mut transfer = Transfer { progress: Some(Arc::default()), ..Transfer::default() };
        transfer.step(0, 0, TICK);
        assert_eq!(transfer.line(total), "0 B of 97.6 GiB  0.0 MB/s  0 B sent", "no end is foretold yet");
        for tick in 1..=600 {
            transfer.step(tick * 12_000_000, tick * 23_000_000, TICK);
            let line = transfer.line(total);
            assert!(line.len() <= ROOM, "{line}");
            assert_eq!(line.contains("left"), tick >= 9, "{line}");
        }
        assert_eq!(transfer.line(total), "6.7 GiB of 97.6 GiB  120 MB/s  13 min left  12.9 GiB sent");
        (0..30).for_each(|_| transfer.step(600 * 12_000_000, 600 * 23_000_000, TICK));
        let line = transfer.line(total);
        assert!(line.contains("waiting for nodes") && line.len() <= ROOM, "{line}");
        transfer.note = "committing".into();
        assert_eq!(transfer.line(0), "6.7 GiB  committing  12.9 GiB sent");
    }

    #[tokio::test]
    async fn who_waits_for_long_is_told_for_what_and_nobody_else() {
        let untold = || panic!("told of what was done at once");
        assert_eq!(with_patience(Duration::MAX, async { 1 }, untold).await, 1);
        // Goes on only once it is told.
        let (tell, told) = oneshot::channel();
        assert_eq!(with_patience(Duration::ZERO, told, || tell.send(2).unwrap()).await, Ok(2));
    }
}
