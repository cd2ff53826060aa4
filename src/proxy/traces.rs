//! Spans of sampled commands, from the workers to a collector (`[tracing]`). Without the feature `otlp` there are none.

#[cfg(feature = "otlp")]
mod collector;
#[cfg(feature = "otlp")]
mod exporter;
#[cfg(feature = "otlp")]
mod span;

use super::error::StartError;
use crate::telemetry::{Tracer, TracingOptions};

/// The tracer of this process, and who exports what it takes.
#[derive(Default)]
pub(super) struct Traces {
    tracer: Tracer,
    #[cfg(feature = "otlp")]
    exporter: Option<exporter::Exporter>,
}

impl Traces {
    /// Starts to export, if there is an endpoint. `name` is the one that this instance has on the server.
    #[cfg(feature = "otlp")]
    pub(super) fn start(options: &TracingOptions, name: &str) -> Result<Self, StartError> {
        let Some(endpoint) = &options.otlp_endpoint else { return Ok(Self::default()) };
        let (tracer, spans) = Tracer::new(options.sample);
        let exporter = exporter::Exporter::start(endpoint, name, spans)?;
        Ok(Self { tracer, exporter: Some(exporter) })
    }

    /// Nothing can be exported: the configuration has refused an endpoint.
    #[cfg(not(feature = "otlp"))]
    #[allow(clippy::unnecessary_wraps, reason = "with the feature it may fail")]
    pub(super) fn start(_options: &TracingOptions, _name: &str) -> Result<Self, StartError> {
        Ok(Self::default())
    }

    /// What the workers get.
    pub(super) fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Exports what is queued, for two seconds at the most.
    #[cfg_attr(
        not(feature = "otlp"),
        allow(clippy::unused_self, reason = "with the feature there is an exporter")
    )]
    pub(super) fn finish(self) {
        #[cfg(feature = "otlp")]
        if let Some(exporter) = self.exporter {
            exporter.finish();
        }
    }
}
