//! The thread that exports spans: in batches, once a second. Workers hand them to a bounded queue and know nothing of it.

use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::error::StartError;
use super::collector::{Collector, DEADLINE};
use super::span::spans;
use crate::telemetry::{CommandSpan, SpanFate, spans_ended};

/// A batch is sent when it is this old, or has so many commands.
const INTERVAL: Duration = Duration::from_secs(1);
const LARGEST: usize = 512;
/// How long the end of the process waits for the last batch.
const GRACE: Duration = Duration::from_secs(2);

/// The thread, as long as the process serves.
pub(super) struct Exporter {
    stop: CancellationToken,
    done: std_mpsc::Receiver<()>,
}

impl Exporter {
    /// Starts it. What the collector asks for besides (`OTEL_EXPORTER_OTLP_HEADERS`), and what this service is called
    /// (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`), is read from the environment by the library.
    pub(super) fn start(
        endpoint: &str,
        name: &str,
        queue: mpsc::Receiver<CommandSpan>,
    ) -> Result<Self, StartError> {
        let (collector, why) = Collector::new();
        let built = SpanExporter::builder()
            .with_http()
            .with_http_client(collector)
            .with_endpoint(endpoint)
            .with_timeout(DEADLINE)
            .build();
        let mut exporter = built.map_err(|wrong| StartError::Traces(wrong.to_string()))?;
        exporter.set_resource(&resource(name));
        for fate in SpanFate::ALL {
            spans_ended(*fate, 0);
        }
        let stop = CancellationToken::new();
        let (tell, done) = std_mpsc::channel();
        let task = Exporting { exporter, queue, why, endpoint: endpoint.to_owned(), lost: None };
        let stopped = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = move || {
            runtime.block_on(task.run(&stopped));
            drop(tell);
        };
        std::thread::Builder::new().name("traces".to_owned()).spawn(run)?;
        Ok(Self { stop, done })
    }

    /// Exports what is queued.
    pub(super) fn finish(self) {
        self.stop.cancel();
        // It ends by dropping its side. If it does not in time, what is queued is lost.
        let _ = self.done.recv_timeout(GRACE);
    }
}

/// What the collector knows of this process.
fn resource(name: &str) -> Resource {
    let is_named = ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"].iter().any(|variable| {
        std::env::var(variable)
            .is_ok_and(|set| *variable == "OTEL_SERVICE_NAME" || set.contains("service.name="))
    });
    let mut builder = Resource::builder();
    if !is_named {
        builder = builder.with_service_name("redbouncer");
    }
    let about = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", format!("{name}:{}", std::process::id())),
    ];
    builder.with_attributes(about).build()
}

struct Exporting {
    exporter: SpanExporter,
    queue: mpsc::Receiver<CommandSpan>,
    why: Arc<Mutex<Option<String>>>,
    endpoint: String,
    /// How many were lost since an export has succeeded; `None`: the last one has.
    lost: Option<u64>,
}

impl Exporting {
    async fn run(mut self, stop: &CancellationToken) {
        let scope =
            InstrumentationScope::builder("redbouncer").with_version(env!("CARGO_PKG_VERSION")).build();
        let mut batch = Vec::with_capacity(LARGEST);
        while self.gather(&mut batch, stop).await {
            let count = batch.len() as u64;
            let data = batch.drain(..).flat_map(|traced| spans(&traced, &scope)).collect();
            // The exporter's own time-out does not end a request that hangs; that of its client does.
            let outcome = self.exporter.export(data).await;
            self.report(outcome.err().map(|wrong| wrong.to_string()), count);
        }
    }

    /// Waits for a batch. `false`: the process ends, and there is none.
    async fn gather(&mut self, batch: &mut Vec<CommandSpan>, stop: &CancellationToken) -> bool {
        let stopped = stop.cancelled();
        tokio::pin!(stopped);
        let mut until = None;
        while batch.len() < LARGEST && !stop.is_cancelled() {
            let room = LARGEST - batch.len();
            let deadline = until.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                count = self.queue.recv_many(batch, room) => {
                    if count == 0 {
                        break;
                    }
                    until.get_or_insert_with(|| Instant::now() + INTERVAL);
                }
                () = tokio::time::sleep_until(deadline), if until.is_some() => break,
                () = &mut stopped => break,
            }
        }
        while batch.len() < LARGEST
            && let Ok(traced) = self.queue.try_recv()
        {
            batch.push(traced);
        }
        !batch.is_empty()
    }

    fn report(&mut self, failure: Option<String>, count: u64) {
        let Some(failure) = failure else {
            spans_ended(SpanFate::Exported, count);
            if let Some(lost) = self.lost.take() {
                tracing::info!(endpoint = self.endpoint, lost, "spans are exported again");
            }
            return;
        };
        spans_ended(SpanFate::ExportFailed, count);
        let why = self.why.lock().ok().and_then(|mut why| why.take()).unwrap_or(failure);
        if self.lost.is_none() {
            tracing::warn!(
                endpoint = self.endpoint,
                reason = why,
                "cannot export spans; they are dropped until the collector accepts them"
            );
        }
        self.lost = Some(self.lost.unwrap_or(0) + count);
    }
}
