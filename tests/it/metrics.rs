//! The series of `/metrics`: there before their first event, and right.

use std::collections::BTreeMap;

use redbouncer::pool::Kind;
use redbouncer::session::Pin;
use redbouncer::telemetry::{ClientClose, UpstreamClose};

use crate::harness::{PATIENCE, Proxy, Server, until};

/// The names and labels of counters, without those that no list bounds.
fn counters(proxy: &Proxy) -> BTreeMap<String, f64> {
    let mut metrics = proxy.metrics();
    metrics.retain(|series, _| {
        let name = series.split('{').next().unwrap();
        name.starts_with("redbouncer_") && name.ends_with("_total") && name != "redbouncer_commands_total"
    });
    metrics
}

/// `increase()` does not see the first event of a series that appears with it.
#[test]
fn every_counter_is_there_before_its_first_event() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    let proxy = Proxy::start(&server, &["auth.mode=passthrough"]);
    let at_the_start = counters(&proxy);
    for reason in ClientClose::ALL {
        let series = format!("redbouncer_clients_closed_total{{reason=\"{}\"}}", reason.label());
        assert_eq!(at_the_start.get(&series), Some(&0.0), "{series}: {at_the_start:?}");
    }
    for reason in UpstreamClose::ALL {
        let with = |label: &str| format!("{label}=\"{}\"", reason.label());
        let of_reason = at_the_start.keys().filter(|series| series.contains(&with("reason")));
        let of_reason = of_reason.filter(|series| series.starts_with("redbouncer_upstream_closed_total"));
        assert_eq!(of_reason.count(), Kind::ALL.len(), "{reason:?}");
    }
    for pin in Pin::ALL {
        let series = format!("redbouncer_leases_total{{pin=\"{}\"}}", pin.label());
        assert_eq!(at_the_start.get(&series), Some(&0.0), "{series}");
    }
    let mut client = proxy.connect();
    for command in ["AUTH sesame", "AUTH wrong", "PING", "SUBSCRIBE c", "UNSUBSCRIBE", "WATCH w"] {
        client.call(command);
    }
    client.call("UNWATCH");
    client.call("BLPOP none 0.01");
    drop(client);
    let mut other = proxy.connect();
    other.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    until("what has happened is counted", PATIENCE, || {
        let now = counters(&proxy);
        let closed = |reason: &str| now[&format!("redbouncer_clients_closed_total{{reason=\"{reason}\"}}")];
        closed("client_eof") >= 1.0 && closed("http") >= 1.0
    });
    let later = counters(&proxy);
    let new: Vec<_> = later.keys().filter(|series| !at_the_start.contains_key(*series)).collect();
    assert!(new.is_empty(), "counters that appeared with their first event: {new:?}");
    assert!(later.values().sum::<f64>() > at_the_start.values().sum::<f64>());
}
