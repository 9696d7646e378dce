//! The log: events of `tracing` on standard error, as lines for people or as one JSON object a line.
//!
//! Standard output is left to what a command answers. It adds nothing to an event and hides nothing of it: who logs keeps
//! secrets out.

use std::io::{self, IsTerminal};

use tracing::{Subscriber, subscriber::SetGlobalDefaultError};
use tracing_subscriber::{EnvFilter, filter::ParseError, fmt::MakeWriter};

use crate::config::LogFormat;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter cannot be read.
    #[error("the log filter cannot be read: {0}")]
    Filter(#[from] ParseError),
    /// The process has a log already.
    #[error("the process has a log already")]
    Already(#[from] SetGlobalDefaultError),
}

/// Starts the process's log on standard error; `filter` as tracing's `EnvFilter` reads it.
///
/// Colours are used on a terminal, unless the environment variable `NO_COLOR` is set.
pub fn start(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colour = io::stderr().is_terminal() && !no_color;
    tracing::subscriber::set_global_default(subscriber(format, filter, colour, io::stderr)?)?;
    Ok(())
}

fn subscriber<W>(
    format: LogFormat,
    filter: &str,
    colour: bool,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, ParseError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(EnvFilter::try_new(filter)?).with_writer(writer);
    Ok(match format {
        LogFormat::Text => Box::new(builder.with_ansi(colour).finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, colour: bool) -> String {
        let page = Page::default();
        let writer = page.clone();
        let subscriber = subscriber(format, "info", colour, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(stripes = 3, "repaired");
            tracing::debug!("left out");
        });
        let bytes = page.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = logged(LogFormat::Json, true);
        let event: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((event["message"].as_str(), event["stripes"].as_u64()), (Some("repaired"), Some(3)));
        assert_eq!(event["level"], "INFO");
    }

    #[test]
    fn text_has_colours_only_where_they_are_asked_for() {
        let text = logged(LogFormat::Text, false);
        assert!(text.contains("repaired stripes=3") && !text.contains("left out"), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        assert!(logged(LogFormat::Text, true).contains('\x1b'));
    }

    #[test]
    fn a_bad_filter_is_an_error() {
        assert!(subscriber(LogFormat::Text, "a=b=c", false, io::sink).is_err());
    }
}
