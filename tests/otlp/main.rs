//! Spans of sampled commands, as a collector gets them: `make check-otlp`. Apart from the other integration tests, because it needs a
//! build with the feature `otlp`, which the debug build of `make test` is.

// A failed expectation is how a test reports, so what the library forbids itself is the normal tool here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod collector;
// Most of it is for the other tests.
#[allow(unused_macros)]
#[path = "../it/harness/mod.rs"]
mod harness;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use collector::{Collector, Span};
use harness::{PATIENCE, Proxy, Relay, Server, Stage, until};

fn stage(collector: &Collector, more: &[&str]) -> Stage {
    let endpoint = format!("tracing.otlp_endpoint=http://{}", collector.address());
    let is_sampled = more.iter().any(|setting| setting.starts_with("tracing.sample="));
    let all: &[&str] = if is_sampled { &[] } else { &["tracing.sample=1"] };
    Stage::proxied_with(&[&[endpoint.as_str()], all, more].concat())
}

/// The span of `command` as its client saw it.
fn whole(collector: &Collector, command: &str) -> Span {
    let find = || collector.spans().into_iter().find(|span| span.name == command && span.parent.is_empty());
    until(&format!("a span of {command} arrives"), PATIENCE, || find().is_some());
    find().unwrap()
}

#[test]
fn a_span_says_what_ran_for_whom_and_never_with_what() {
    let collector = Collector::start();
    let stage = stage(&collector, &[]);
    let mut client = stage.connect();
    client.call("CLIENT SETINFO lib-name ioredis");
    client.call("CLIENT SETINFO lib-ver 5.4.1");
    client.call("SELECT 3");
    client.call("SET sesame:key sesame:value");
    let set = whole(&collector, "SET");
    for (key, value) in [
        ("db.system.name", "redis"),
        ("db.operation.name", "SET"),
        ("db.namespace", "3"),
        ("redbouncer.command.family", "string"),
        ("redbouncer.client.library.name", "ioredis"),
        ("redbouncer.client.library.version", "5.4.1"),
        ("redbouncer.outcome", "answered"),
    ] {
        assert_eq!(set.attributes.get(key).map(String::as_str), Some(value), "{key}: {set:?}");
    }
    let seconds = |key: &str| set.attributes[key].parse::<f64>().unwrap();
    let lasted = (set.end - set.start) as f64 / 1e9;
    let told = seconds("redbouncer.wait_seconds") + seconds("redbouncer.server_seconds");
    assert!((lasted - told).abs() < 1e-6, "{lasted} s, told {told} s");
    let part = collector.spans().into_iter().find(|span| span.parent == set.id).unwrap();
    assert!(part.trace == set.trace && part.start >= set.start && part.end == set.end, "{part:?} in {set:?}");
    assert!(!collector.has_received(b"sesame"), "an argument was exported");
    assert!(collector.has_received(b"redbouncer"), "the service has its name");
    let counted = stage.proxy().counted();
    assert!(
        counted.iter().any(|(name, count)| name.contains("spans_total{fate=\"exported\"") && *count > 0.0)
    );
}

#[test]
fn errors_and_losses_are_outcomes() {
    let collector = Collector::start();
    let server = Server::start();
    let relay = Relay::to(server.address());
    let endpoint = format!("tracing.otlp_endpoint=http://{}", collector.address());
    let proxy =
        Proxy::launch(&format!("redis://{}", relay.address()), &[&endpoint, "tracing.sample=1"]).unwrap();
    let mut client = proxy.connect();
    client.call("SET k text");
    assert!(client.call("LPUSH k element").is_error());
    let pushed = whole(&collector, "LPUSH");
    assert_eq!(pushed.attributes["db.response.status_code"], "WRONGTYPE", "{pushed:?}");
    assert_eq!(pushed.attributes["redbouncer.outcome"], "error", "{pushed:?}");
    // Sent, and never answered.
    relay.swallow();
    client.send("STRLEN k\r\n");
    let is_sent = || {
        let status = proxy.status();
        status["lanes"].as_array().is_some_and(|lanes| lanes.iter().any(|lane| lane["outstanding"] == 1))
    };
    until("it is on its way", PATIENCE, is_sent);
    relay.cut();
    assert_eq!(whole(&collector, "STRLEN").attributes["error.type"], "connection_lost");
}

#[test]
fn a_sample_of_one_in_many_is_what_arrives() {
    let collector = Collector::start();
    let stage = stage(&collector, &["tracing.sample=100"]);
    let mut client = stage.connect();
    for _ in 0..1_000 {
        client.call("GET k");
    }
    let arrived =
        || collector.spans().iter().filter(|span| span.name == "GET" && span.parent.is_empty()).count();
    until("they arrive", PATIENCE, || arrived() >= 10);
    // A later batch would bring the others, if there were any.
    client.call("PROXY CONFIG SET tracing.sample 1");
    client.call("STRLEN k");
    whole(&collector, "STRLEN");
    // Our own PINGs on the lane count as well.
    assert!((9..=12).contains(&arrived()), "{} of 1,000 commands", arrived());
}

#[test]
fn a_collector_that_hangs_delays_no_client_and_what_is_lost_is_counted() {
    // It accepts connections by its queue, and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tracing.otlp_endpoint=http://{}", listener.local_addr().unwrap());
    let stage = Stage::proxied_with(&[&endpoint, "tracing.sample=1"]);
    let mut client = stage.connect();
    let mut longest = Duration::ZERO;
    let is_full = || {
        let counted = stage.proxy().counted();
        counted.iter().any(|(name, count)| name.contains("spans_total{fate=\"queue_full\"") && *count > 0.0)
    };
    for _ in 0..4_000 {
        let begun = Instant::now();
        client.call("GET k");
        longest = longest.max(begun.elapsed());
    }
    assert!(is_full(), "the queue holds 2,048 spans: {:?}", stage.proxy().counted());
    // The time-out of a request is 5 s: whoever waited for one would have taken that long.
    assert!(longest < Duration::from_secs(4), "{longest:?}");
    let (_server, proxy) = stage.into_parts();
    let exit = proxy.stop();
    assert!(exit.code == Some(0) && exit.took < Duration::from_secs(8), "{exit:?}");
}

#[test]
fn an_outage_of_the_collector_is_told_once_and_its_end_too() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("tracing.otlp_endpoint=http://{address}");
    let stage = Stage::proxied_with(&[&endpoint, "tracing.sample=1"]);
    let mut client = stage.connect();
    client.call("GET k");
    let told = |what: &str| stage.proxy().log().matches(what).count();
    until("the log says so", PATIENCE, || told("cannot export spans") == 1);
    let lost = |counted: &std::collections::BTreeMap<String, f64>| {
        let of = counted.iter().filter(|(name, _)| name.contains("spans_total{fate=\"export_failed\""));
        of.map(|(_, count)| *count).sum::<f64>()
    };
    let before = lost(&stage.proxy().counted());
    client.call("GET k");
    until("more is lost", PATIENCE, || lost(&stage.proxy().counted()) > before);
    assert_eq!(told("cannot export spans"), 1);
    let collector = Collector::start_at(address);
    until("the log tells the end", PATIENCE, || {
        client.call("STRLEN k");
        told("spans are exported again") == 1
    });
    whole(&collector, "STRLEN");
}
