//! The shape of a line: text or JSON, which may change while redbouncer runs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Compact, Format, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Time, level, target, message, `key=value` fields.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

impl LogFormat {
    /// The configuration values.
    pub const WORDS: [(&'static str, Self); 2] = [("text", Self::Text), ("json", Self::Json)];
}

/// Which shape lines have now.
#[derive(Clone, Debug)]
pub(super) struct Shape(Arc<AtomicBool>);

impl Shape {
    pub(super) fn new(format: LogFormat) -> Self {
        Self(Arc::new(AtomicBool::new(format == LogFormat::Json)))
    }

    pub(super) fn set(&self, format: LogFormat) {
        self.0.store(format == LogFormat::Json, Ordering::Relaxed);
    }
}

/// Writes an event in the shape of its moment.
pub(super) struct Line {
    shape: Shape,
    text: Format<Compact>,
    json: Format<Json>,
}

impl Line {
    pub(super) fn new(shape: Shape) -> Self {
        let format = tracing_subscriber::fmt::format;
        let json = format().json().flatten_event(true).with_current_span(false).with_span_list(false);
        Self { shape, text: format().compact(), json }
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.shape.0.load(Ordering::Relaxed) {
            self.json.format_event(context, writer, event)
        } else {
            self.text.format_event(context, writer, event)
        }
    }
}
