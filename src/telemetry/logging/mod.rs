//! Logs: one line per event on stderr, as text for people or JSON for collectors.
//!
//! stdout belongs to what a command was asked for, so nothing is ever logged there. Times are UTC, because the logs of
//! proxy, server and clients are read side by side. Colours appear only on a terminal and never with `NO_COLOR`.
//!
//! A thread that logs never waits for the line to be written ([`queue`]), and strangers cannot fill the log ([`limit`]).

mod format;
mod limit;
mod queue;

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

pub use format::LogFormat;
use format::{Line, Shape};
use limit::Limit;
use queue::Queue;

/// Logging options (`[log]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,redbouncer::pool=debug`.
    pub level: String,
    /// The shape of a line.
    pub format: LogFormat,
    /// A lease held for longer is logged; `None`: none is.
    pub long_lease: Option<Duration>,
    /// A command that takes longer is logged; `None`: none is, and commands are not timed.
    pub slow_command: Option<Duration>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
            long_lease: Some(Duration::from_secs(30)),
            slow_command: None,
        }
    }
}

/// Why logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is neither a level nor a filter: the configuration is wrong.
    #[error("not a log level or filter: {0}")]
    Filter(#[from] ParseError),
    /// A logger is already installed in this process.
    #[error("{0}")]
    Installed(#[from] TryInitError),
}

/// The process's one logger.
#[derive(Debug)]
pub struct Log {
    queue: Queue,
    limit: Limit,
}

impl Log {
    /// Installs it.
    ///
    /// # Errors
    ///
    /// [`LogError`], when the level cannot be read or a logger is already installed.
    pub fn start(options: &LogOptions) -> Result<Self, LogError> {
        let colours =
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let (queue, lines) = Queue::new(std::io::stderr());
        let limit = Limit::default();
        let (logger, change, shape) = logger(options, colours, lines)?;
        logger.with(limit.clone()).try_init()?;
        // The one logger of the process has been installed just now: there is no other level.
        let _ = LEVEL.set(Level { now: Mutex::new(options.level.clone()), change, shape });
        Ok(Self { queue, limit })
    }

    /// Logs the numbers of suppressed and dropped lines. To be called once a second.
    pub fn report(&self) {
        self.limit.report();
        self.queue.report();
    }

    /// Waits until all lines are written, at most a second. To be called at the end of the process.
    pub fn finish(&self) {
        self.queue.finish();
    }
}

/// The current log filter, and its change.
struct Level {
    now: Mutex<String>,
    change: Change,
    shape: Shape,
}

/// Installs another filter.
type Change = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

static LEVEL: OnceLock<Level> = OnceLock::new();

/// The text is neither a level nor a filter, or there is no logger.
#[derive(Debug, thiserror::Error)]
#[error("not a log level or filter")]
pub struct NoLevel;

/// The current log filter, in the form of `log.level`; empty without a logger.
#[must_use]
pub fn level() -> String {
    LEVEL.get().map(|level| level.now.lock().clone()).unwrap_or_default()
}

/// Changes what is logged, until the process ends.
///
/// # Errors
/// `text` is neither a level nor a filter, or no logger is installed.
pub fn set_level(text: &str) -> Result<(), NoLevel> {
    let filter = is_level(text).then(|| EnvFilter::try_new(text).ok()).flatten().ok_or(NoLevel)?;
    let level = LEVEL.get().ok_or(NoLevel)?;
    let mut now = level.now.lock();
    if !(level.change)(filter) {
        return Err(NoLevel);
    }
    text.clone_into(&mut now);
    Ok(())
}

/// Writes lines of another shape from now on.
pub fn set_format(format: LogFormat) {
    if let Some(level) = LEVEL.get() {
        level.shape.set(format);
    }
}

/// Whether `level` is a level or a filter.
///
/// Stricter than the filter's own parser, which takes any bare word for the name of a module and then shows all of it:
/// `inof` would silence every log line that is not from a module of that name.
pub fn is_level(level: &str) -> bool {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let plain = |part: &str| LEVELS.iter().any(|known| known.eq_ignore_ascii_case(part));
    let known = level.split(',').all(|part| part.contains(['=', '[', ']', '}']) || plain(part.trim()));
    known && EnvFilter::try_new(level).is_ok()
}

/// The logger itself, so that a test can read what it writes, and how its filter and its lines are changed.
fn logger<W>(
    options: &LogOptions,
    colours: bool,
    writer: W,
) -> Result<(Box<dyn tracing::Subscriber + Send + Sync>, Change, Shape), ParseError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&options.level)?;
    let shape = Shape::new(options.format);
    // An error of the writer would be said on stderr, and fail there again.
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .log_internal_errors(false)
        .with_ansi(colours)
        .event_format(Line::new(shape.clone()))
        .with_filter_reloading();
    let handle = lines.reload_handle();
    Ok((Box::new(lines.finish()), Box::new(move |filter| handle.reload(filter).is_ok()), shape))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    /// The output of a logger.
    #[derive(Clone, Default)]
    pub(super) struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        /// The lines since this was last asked.
        pub(super) fn take(&self) -> Vec<String> {
            let bytes = std::mem::take(&mut *self.0.lock());
            String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
        }
    }

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(options: &LogOptions) -> String {
        let lines = Lines::default();
        let sink = lines.clone();
        let (logger, _, _) = logger(options, false, move || sink.clone()).unwrap();
        tracing::subscriber::with_default(logger, || {
            tracing::info!(clients = 3, reason = "a test", "ready");
            tracing::debug!("too much");
        });
        let bytes = lines.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_has_a_utc_time_the_message_and_plain_fields() {
        let line = written(&LogOptions::default());
        let time = line.split_whitespace().next().unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{line}");
        assert!(line.contains("INFO") && line.contains("ready clients=3 reason=\"a test\""), "{line}");
        assert_eq!(line.lines().count(), 1);
        assert!(!line.contains('\u{1b}'), "{line}");
    }

    #[test]
    fn json_is_one_flat_object_per_line() {
        let line = written(&LogOptions { format: LogFormat::Json, ..LogOptions::default() });
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["message"], "ready");
        assert_eq!(object["clients"], 3);
        assert_eq!(object["level"], "INFO");
    }

    #[test]
    fn the_shape_of_a_line_can_change() {
        let lines = Lines::default();
        let sink = lines.clone();
        let (logger, _, shape) = logger(&LogOptions::default(), false, move || sink.clone()).unwrap();
        tracing::subscriber::with_default(logger, || {
            for format in [LogFormat::Json, LogFormat::Text] {
                tracing::info!("ready");
                shape.set(format);
            }
            tracing::info!("ready");
        });
        let is_json: Vec<bool> = lines.take().iter().map(|line| line.starts_with('{')).collect();
        assert_eq!(is_json, [false, true, false]);
    }

    #[test]
    fn a_lower_level_shows_more() {
        assert_eq!(
            written(&LogOptions { level: "debug".to_owned(), ..LogOptions::default() }).lines().count(),
            2
        );
        assert_eq!(
            written(&LogOptions { level: "error".to_owned(), ..LogOptions::default() }).lines().count(),
            0
        );
    }

    #[test]
    fn a_level_is_a_known_word_or_a_filter() {
        for good in
            ["info", "DEBUG", "off", "info,redbouncer::pool=debug", "warn,hyper=off", "redbouncer=trace"]
        {
            assert!(is_level(good), "{good}");
        }
        for bad in ["", "inof", "info,debg", "info,redbouncer=loud", "verbose", ","] {
            assert!(!is_level(bad), "{bad:?}");
        }
    }
}
