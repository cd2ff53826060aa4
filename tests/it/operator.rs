//! What an operator sees of who holds the connections, and what can be done about it while the proxy runs.

use serde_json::Value as Json;

use crate::harness::{Client, PATIENCE, Row, Stage, until};

/// The connection of ours on the server that has last run `command` for one client alone.
fn leased(stage: &Stage, command: &str) -> Row {
    let mut found = None;
    until("the server lists the lease", PATIENCE, || {
        let rows = stage.server.rows();
        let mut rows = rows.into_iter().filter(|row| row.get("name").ends_with(":leased"));
        found = rows.find(|row| row.get("cmd") == command);
        found.is_some()
    });
    found.unwrap()
}

/// Opens watches until there is no lease left. Returns the clients, and what the last one was told.
fn fill(stage: &Stage) -> (Vec<Client>, String) {
    let mut holders = Vec::new();
    for _ in 0..20 {
        let mut client = stage.connect();
        let reply = client.call("WATCH w");
        if reply.is_error() {
            return (holders, reply.error().to_owned());
        }
        holders.push(client);
    }
    panic!("20 watches at once");
}

#[test]
fn the_holder_of_a_connection_is_shown_by_fields_everywhere() {
    let stage = Stage::proxied_with(&["pool.wait_timeout=300ms"]);
    let mut holder = stage.connect();
    let id = holder.call("CLIENT ID").int();
    holder.call("CLIENT SETNAME web");
    holder.call("WATCH w");
    holder.call("GET w");
    let row = leased(&stage, "get");
    let port = row.get("addr").rsplit(':').next().unwrap().to_owned();
    let [server_id, local_port] =
        [row.get("id"), &port].map(|number| Json::from(number.parse::<u64>().unwrap()));
    let address = holder.local_address();
    let (before, after) = (
        format!("client={id} name=web addr={address} user=default pin=WATCH held="),
        format!(" cmd=get server_id={} local_port={port}", row.get("id")),
    );
    // The error.
    let (_others, told) = fill(&stage);
    let longest = told.split("; longest: ").nth(1).unwrap_or_else(|| panic!("{told}"));
    assert!(longest.starts_with(&before) && longest.ends_with(&format!("{after})")), "{told}");
    // PROXY.
    let listing = stage.connect().call("PROXY UPSTREAMS").lines();
    let line = listing.lines().find(|line| line.contains(&before)).unwrap_or_else(|| panic!("{listing}"));
    assert!(line.starts_with("kind=leased phase=open ") && line.contains(&after), "{line}");
    // The log.
    until("the log names the holder", PATIENCE, || {
        let log = stage.proxy().log();
        log.lines().filter_map(|line| serde_json::from_str::<Json>(line).ok()).any(|line| {
            line["reason"] == "pool_full"
                && line["client"] == id
                && line["name"] == "web"
                && line["address"] == address.to_string()
                && line["user"] == "default"
                && line["pin"] == "WATCH"
                && line["held_seconds"].is_u64()
                && line["command"] == "get"
                && line["server_id"] == server_id
                && line["local_port"] == local_port
        })
    });
    // /status, twice.
    let status = stage.proxy().status();
    let is_it = |shown: &Json| {
        shown["client"]["id"] == id
            && shown["client"]["name"] == "web"
            && shown["client"]["address"] == address.to_string()
            && shown["client"]["user"] == "default"
            && shown["client"]["pin"] == "WATCH"
            && shown["client"]["command"] == "get"
            && shown["server_id"] == server_id
            && shown["local_port"] == local_port
    };
    assert!(is_it(&status["longest_lease"]), "{status:#}");
    assert_eq!(
        status["upstreams"].as_array().unwrap().iter().filter(|row| is_it(row)).count(),
        1,
        "{status:#}"
    );
}

#[test]
fn what_is_full_and_what_is_reserved_is_said() {
    let stage = Stage::proxied_with(&["pool.wait_timeout=300ms"]);
    let (holders, told) = fill(&stage);
    // Of 8: the control connection, two lanes and two hubs are kept from leases.
    assert_eq!(holders.len(), 3);
    let held = stage.server.clients();
    assert!(told.contains(&format!("(leases 3 of 3; {held} of 8 connections held: ")), "{told}");
    assert!(
        told.contains("; reserved: 1 control, ") && told.contains("1 blocking hubs, 1 pub/sub hubs"),
        "{told}"
    );
    let status = stage.proxy().status();
    let permits = status["permits"].as_array().unwrap();
    let of = |kind: &str| permits.iter().find(|row| row["kind"] == kind).unwrap();
    assert_eq!((&of("leased")["held"], &of("leased")["max"]), (&Json::from(3), &Json::from(3)));
    assert_eq!((&of("leased")["full"], &of("blocking")["full"]), (&Json::from(true), &Json::from(false)));
    assert_eq!(of("blocking")["reserved"], 1);
    let pools = stage.connect().call("PROXY POOLS").lines();
    assert!(pools.contains("kind=leased held=3 max=3 reserved=0 full=yes\n"), "{pools}");
    let metrics = stage.proxy().metrics();
    assert_eq!(metrics["redbouncer_permits_max{kind=\"leased\"}"], 3.0);
    assert_eq!(metrics["redbouncer_permits_reserved{kind=\"pubsub\"}"], 1.0);
}

#[test]
fn a_lease_that_is_held_for_long_is_named_once() {
    let stage = Stage::proxied_with(&["log.long_lease=1s"]);
    let mut holder = stage.connect();
    let id = holder.call("CLIENT ID").int();
    holder.call("WATCH w");
    let warnings = || {
        let log = stage.proxy().log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Json>(line).ok());
        lines
            .filter(|line| line["message"] == "a lease is held for longer than log.long_lease")
            .collect::<Vec<_>>()
    };
    until("the log names it", PATIENCE, || !warnings().is_empty());
    until("the metric shows its age", PATIENCE, || {
        stage.proxy().metrics()["redbouncer_lease_oldest_seconds{pin=\"WATCH\"}"] >= 3.0
    });
    let warnings = warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!((&warnings[0]["level"], &warnings[0]["client"]), (&Json::from("WARN"), &Json::from(id)));
    assert_eq!((&warnings[0]["pin"], &warnings[0]["command"]), (&Json::from("WATCH"), &Json::from("watch")));
    assert_eq!(holder.call("UNWATCH").text(), "OK");
    until("nothing is held", PATIENCE, || {
        stage.proxy().metrics()["redbouncer_lease_oldest_seconds{pin=\"WATCH\"}"] == 0.0
    });
}

/// `redis-cli` escapes a bulk string with line breaks, and shows a verbatim string and the elements of an array as they are.
#[test]
fn listings_have_the_form_that_redis_cli_shows_line_by_line() {
    let stage = Stage::proxied();
    for command in ["PROXY HELP", "PROXY POOLS", "PROXY CLIENTS", "PROXY UPSTREAMS"] {
        let (mut plain, mut modern) = (stage.connect(), stage.connect_resp3());
        plain.call("PING");
        let lines = plain.call(command);
        assert!(!lines.items().is_empty(), "{command}: {lines:?}");
        assert!(lines.items().iter().all(|line| !line.text().contains('\n')), "{command}: {lines:?}");
        let text = modern.call(command);
        assert!(text.raw.starts_with(b"=") && text.text().contains('\n'), "{command}: {text:?}");
    }
    let port = stage.address().port().to_string();
    let shown = |protocol: &[&str]| {
        let mut arguments = vec!["-p", &port];
        arguments.extend(protocol);
        let output = std::process::Command::new("redis-cli")
            .args(arguments)
            .args(["PROXY", "POOLS"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for text in [shown(&["-2"]), shown(&["-3"])] {
        assert!(text.lines().any(|line| line.starts_with("kind=leased held=0 max=3 ")), "{text}");
    }
}
