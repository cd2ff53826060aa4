//! What the log says of commands that take longer than `log.slow_command`.

use std::thread;
use std::time::Duration;

use serde_json::Value as Json;

use crate::harness::{PATIENCE, Proxy, Relay, Server, Stage, until};

const LIMIT: &str = "log.slow_command=150ms";

fn slow(proxy: &Proxy) -> Vec<Json> {
    let log = proxy.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Json>(line).ok());
    lines.filter(|line| line["message"] == "slow command").collect()
}

#[test]
fn a_slow_command_is_named_with_where_its_time_went_and_without_arguments() {
    let stage = Stage::proxied_with(&[LIMIT]);
    let mut client = stage.connect();
    let id = client.call("CLIENT ID").int();
    client.call("CLIENT SETNAME web");
    let script = "local t=redis.call('time') local n repeat n=redis.call('time') \
                  until (n[1]-t[1])*1000000+(n[2]-t[2])>300000 return 'sesame'";
    assert_eq!(client.ask(&["EVAL", script, "2", "secret:a", "secret:b"]).text(), "sesame");
    until("the log names it", PATIENCE, || !slow(stage.proxy()).is_empty());
    let lines = slow(stage.proxy());
    let line = &lines[0];
    assert_eq!((line["command"].as_str(), line["keys"].as_u64()), (Some("eval"), Some(2)), "{line}");
    assert_eq!((line["client"].as_i64(), line["name"].as_str()), (Some(id), Some("web")), "{line}");
    assert_eq!((line["level"].as_str(), line["user"].as_str()), (Some("WARN"), Some("default")), "{line}");
    assert!(line["server_seconds"].as_f64().unwrap() >= 0.3, "{line}");
    assert!(line["waiting_seconds"].as_f64().unwrap() < 0.3, "{line}");
    let log = stage.proxy().log();
    assert!(!log.contains("secret") && !log.contains("sesame") && !log.contains("repeat"), "{log}");
}

#[test]
fn the_wait_for_a_connection_is_told_apart_from_the_server() {
    let server = Server::start();
    let relay = Relay::to(server.address());
    let proxy = Proxy::launch(&format!("redis://{}", relay.address()), &[LIMIT]).unwrap();
    let mut client = proxy.connect();
    assert_eq!(client.call("PING").text(), "PONG");
    // For a moment there is no server.
    relay.refuse();
    relay.cut();
    until("the loss is known", PATIENCE, || proxy.log().contains("a lane was lost"));
    client.send("GET k\r\n");
    thread::sleep(Duration::from_millis(400));
    relay.pass();
    assert!(client.reply().is_nil());
    until("the log names it", PATIENCE, || !slow(&proxy).is_empty());
    let lines = slow(&proxy);
    assert_eq!(lines[0]["command"], "get", "{lines:?}");
    assert!(lines[0]["waiting_seconds"].as_f64().unwrap() >= 0.2, "{lines:?}");
    assert!(lines[0]["server_seconds"].as_f64() < lines[0]["waiting_seconds"].as_f64(), "{lines:?}");
}

#[test]
fn a_slow_command_on_a_lease_is_named_and_a_blocking_call_is_not() {
    let stage = Stage::proxied_with(&[LIMIT, "blocking.hub=false"]);
    let mut blocked = stage.connect();
    assert!(blocked.call("BLPOP nothing 0.5").is_nil());
    let mut client = stage.connect();
    client.call("WATCH w");
    client.call("DEBUG SLEEP 0.3");
    until("the log names it", PATIENCE, || !slow(stage.proxy()).is_empty());
    let lines = slow(stage.proxy());
    let names: Vec<_> = lines.iter().map(|line| line["command"].as_str().unwrap()).collect();
    assert!(names.iter().all(|name| name.starts_with("debug")), "{names:?}");
    assert!(lines[0]["server_seconds"].as_f64().unwrap() >= 0.3, "{lines:?}");
}

#[test]
fn a_burst_of_slow_commands_is_counted_and_not_written_line_by_line() {
    let stage = Stage::proxied_with(&["log.slow_command=1ms"]);
    let mut client = stage.connect();
    let script = "local t=redis.call('time') local n repeat n=redis.call('time') \
                  until (n[1]-t[1])*1000000+(n[2]-t[2])>5000";
    for _ in 0..300 {
        client.ask(&["EVAL", script, "0"]);
    }
    let lines = slow(stage.proxy());
    assert!((1..=100).contains(&lines.len()), "{} lines", lines.len());
    until("the others are counted", PATIENCE, || {
        client.ask(&["EVAL", script, "0"]);
        slow(stage.proxy()).iter().filter_map(|line| line["untold"].as_u64()).sum::<u64>() >= 200
    });
}
