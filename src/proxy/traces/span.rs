//! Spans in OpenTelemetry's terms: the attributes are those of its semantic conventions for Redis where these have one, and begin
//! with `redbouncer.` where not. No key, no argument and no reply is among them.

use std::time::SystemTime;

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};

use crate::telemetry::{CommandOutcome, CommandSpan};

/// The two spans of a batch: the whole, as the client saw it, and in it the part after a connection was there.
pub(super) fn spans(traced: &CommandSpan, scope: &InstrumentationScope) -> [SpanData; 2] {
    let ids = RandomIdGenerator::default();
    let trace = ids.new_trace_id();
    let (whole, part) = (ids.new_span_id(), ids.new_span_id());
    let name = traced.command.replace('|', " ").to_uppercase();
    let sent = before(traced.ended, traced.at_server);
    let span = |id, parent, kind, start, attributes| SpanData {
        span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
        parent_span_id: parent,
        parent_span_is_remote: false,
        span_kind: kind,
        name: name.clone().into(),
        start_time: start,
        end_time: traced.ended,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: status(traced.outcome),
        instrumentation_scope: scope.clone(),
    };
    let mut attributes = database(traced, &name);
    let client_side = before(sent, traced.waiting);
    let at_server = span(part, whole, SpanKind::Client, sent, attributes.clone());
    attributes.extend(of_client(traced));
    [span(whole, SpanId::INVALID, SpanKind::Server, client_side, attributes), at_server]
}

fn before(time: SystemTime, by: std::time::Duration) -> SystemTime {
    time.checked_sub(by).unwrap_or(time)
}

/// Attributes of the semantic conventions for Redis.
fn database(traced: &CommandSpan, name: &str) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("db.system.name", "redis"),
        KeyValue::new("db.operation.name", name.to_owned()),
        KeyValue::new("db.namespace", traced.database.to_string()),
    ];
    // Of a batch of one command the conventions say nothing.
    if traced.commands > 1 {
        attributes.push(KeyValue::new("db.operation.batch.size", i64::from(traced.commands)));
    }
    match traced.outcome {
        CommandOutcome::Answered => {}
        CommandOutcome::Error(code) => {
            attributes.push(KeyValue::new("db.response.status_code", code));
            attributes.push(KeyValue::new("error.type", code));
        }
        CommandOutcome::TimedOut => attributes.push(KeyValue::new("error.type", "timeout")),
        CommandOutcome::Lost => attributes.push(KeyValue::new("error.type", "connection_lost")),
    }
    attributes
}

/// What only redbouncer knows.
fn of_client(traced: &CommandSpan) -> Vec<KeyValue> {
    let outcome = match traced.outcome {
        CommandOutcome::Answered => "answered",
        CommandOutcome::Error(_) => "error",
        CommandOutcome::TimedOut => "timeout",
        CommandOutcome::Lost => "connection_lost",
    };
    let mut attributes = vec![
        KeyValue::new("redbouncer.command.family", traced.family),
        KeyValue::new("redbouncer.outcome", outcome),
        KeyValue::new("redbouncer.wait_seconds", traced.waiting.as_secs_f64()),
        KeyValue::new("redbouncer.server_seconds", traced.at_server.as_secs_f64()),
    ];
    let (name, version) = &traced.library;
    for (key, value) in
        [("redbouncer.client.library.name", name), ("redbouncer.client.library.version", version)]
    {
        if !value.is_empty() {
            attributes.push(KeyValue::new(key, value.clone()));
        }
    }
    attributes
}

fn status(outcome: CommandOutcome) -> Status {
    match outcome {
        CommandOutcome::Answered => Status::Unset,
        CommandOutcome::Error(code) => Status::error(code),
        CommandOutcome::TimedOut => Status::error("no reply within upstream.command_timeout"),
        CommandOutcome::Lost => Status::error("the connection to the server was lost"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn traced(outcome: CommandOutcome) -> CommandSpan {
        CommandSpan {
            command: "client|kill",
            family: "connection",
            commands: 3,
            database: 7,
            library: ("ioredis".to_owned(), String::new()),
            waiting: Duration::from_millis(20),
            at_server: Duration::from_millis(5),
            ended: SystemTime::UNIX_EPOCH + Duration::from_secs(100),
            outcome,
        }
    }

    fn built(outcome: CommandOutcome) -> [SpanData; 2] {
        spans(&traced(outcome), &InstrumentationScope::builder("test").build())
    }

    fn value(span: &SpanData, key: &str) -> Option<String> {
        let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == key);
        found.map(|attribute| attribute.value.to_string())
    }

    #[test]
    fn the_part_at_the_server_is_inside_the_whole() {
        let [whole, part] = built(CommandOutcome::Answered);
        let ended = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!((whole.start_time, whole.end_time), (ended - Duration::from_millis(25), ended));
        assert_eq!((part.start_time, part.end_time), (ended - Duration::from_millis(5), ended));
        assert_eq!(part.parent_span_id, whole.span_context.span_id());
        assert_eq!(part.span_context.trace_id(), whole.span_context.trace_id());
        assert_eq!((whole.span_kind, part.span_kind), (SpanKind::Server, SpanKind::Client));
    }

    #[test]
    fn attributes_say_what_ran_where_for_whom_and_how_long() {
        let [whole, _] = built(CommandOutcome::Answered);
        assert_eq!(whole.name, "CLIENT KILL");
        for (key, expected) in [
            ("db.system.name", "redis"),
            ("db.operation.name", "CLIENT KILL"),
            ("db.namespace", "7"),
            ("db.operation.batch.size", "3"),
            ("redbouncer.command.family", "connection"),
            ("redbouncer.client.library.name", "ioredis"),
            ("redbouncer.wait_seconds", "0.02"),
            ("redbouncer.server_seconds", "0.005"),
            ("redbouncer.outcome", "answered"),
        ] {
            assert_eq!(value(&whole, key).as_deref(), Some(expected), "{key}");
        }
        assert_eq!(value(&whole, "redbouncer.client.library.version"), None);
        assert_eq!(value(&whole, "error.type"), None);
        assert_eq!(whole.status, Status::Unset);
    }

    #[test]
    fn a_failure_has_its_type() {
        for (outcome, kind, code) in [
            (CommandOutcome::Error("WRONGTYPE"), "WRONGTYPE", Some("WRONGTYPE")),
            (CommandOutcome::TimedOut, "timeout", None),
            (CommandOutcome::Lost, "connection_lost", None),
        ] {
            for span in built(outcome) {
                assert_eq!(value(&span, "error.type").as_deref(), Some(kind));
                assert_eq!(value(&span, "db.response.status_code").as_deref(), code);
                assert!(matches!(span.status, Status::Error { .. }));
            }
        }
    }
}
