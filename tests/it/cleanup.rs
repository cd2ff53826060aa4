//! `redbouncer cleanup`: what it shows, what it takes away, and what it leaves alone.

use std::time::Duration;

use serde_json::Value as Json;

use crate::harness::{Client, PATIENCE, Proxy, Server, Version, until};

/// Short times, so that a test sees what takes a minute otherwise.
const QUICK: [&str; 2] = ["hygiene.heartbeat=1s", "hygiene.orphan_after=3s"];

/// Runs `redbouncer cleanup` before `url`; its exit code, stdout and stderr.
fn cleanup(url: &str, flags: &str) -> (i32, String, String) {
    let mut arguments = vec!["cleanup", "--upstream", url];
    for setting in QUICK {
        arguments.extend(["--set", setting]);
    }
    arguments.extend(flags.split_whitespace());
    let (exit, stdout) = Proxy::run_to_end(&arguments, &[]);
    (exit.code.expect("an exit code"), stdout, exit.stderr)
}

fn done(server: &Server, flags: &str) -> String {
    let (code, stdout, stderr) = cleanup(&server.url(), flags);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    stdout
}

fn named(server: &Server, name: &str) -> Client {
    let mut client = Client::connect(server.address());
    assert_eq!(client.call(&format!("CLIENT SETNAME {name}")).text(), "OK");
    client
}

fn count(server: &Server, name: &str) -> usize {
    server.rows().iter().filter(|row| row.get("name") == name).count()
}

fn idle(server: &Server, name: &str) -> u64 {
    let rows = server.rows();
    let of_name = rows.iter().filter(|row| row.get("name") == name);
    of_name.map(|row| row.get("idle").parse::<u64>().expect("seconds")).min().expect("it is listed")
}

#[test]
fn orphans_are_taken_away_and_all_others_stay() {
    for version in Version::all() {
        let server = Server::start_version(&version, &[]);
        let dead = "redbouncer:web:0123abcd:leased";
        let _dead: Vec<_> = (0..350).map(|_| named(&server, dead)).collect();
        let proxy =
            Proxy::start(&server, &["hygiene.reap=false", "hygiene.heartbeat=1s", "hygiene.orphan_after=3s"]);
        let mut through = proxy.connect();
        assert_eq!(through.call("WATCH k").text(), "OK");
        let mut subscriber = named(&server, "listens");
        subscriber.call("SUBSCRIBE news");
        let mut blocked = named(&server, "waits");
        blocked.start("BLPOP nothing 0");
        let mut monitor = named(&server, "watches");
        monitor.call("MONITOR");
        until("the orphans are idle for long enough", Duration::from_secs(9), || idle(&server, dead) >= 3);

        let before = server.clients();
        let shown = done(&server, "--orphans");
        assert!(shown.contains("350 would be killed; nothing was: add --yes"), "{shown}");
        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
        assert!(shown.contains("   350   350 ") && shown.contains("redbouncer:web:0123abcd"), "{shown}");
        assert_eq!(server.clients(), before, "a dry run kills nothing");

        let taken: Json = serde_json::from_str(&done(&server, "--orphans --yes --json")).expect("JSON");
        assert_eq!((&taken["killed"], &taken["chosen"].as_array().unwrap().len()), (&350.into(), &350));
        assert_eq!(count(&server, dead), 0);
        assert_eq!(taken["connections_after"].as_u64(), taken["connections"].as_u64().map(|all| all - 350));
        assert_eq!(through.call("UNWATCH").text(), "OK");
        for name in ["listens", "waits", "watches"] {
            assert_eq!(count(&server, name), 1, "{name}");
        }
        assert!(done(&server, "--orphans --yes").contains("killed 0 of 0"));
    }
}

#[test]
fn idle_connections_go_and_special_ones_only_when_they_are_asked_for() {
    let server = Server::start();
    let mut replica = Server::start_with(&["--replicaof", "127.0.0.1", &server.address().port().to_string()]);
    until("the replica is there", PATIENCE, || server.rows().iter().any(|row| row.get("flags") == "S"));
    let _idle = named(&server, "web-1");
    let mut subscriber = named(&server, "web-2");
    subscriber.call("SUBSCRIBE news");
    let mut blocked = named(&server, "web-3");
    blocked.start("BLPOP nothing 0");
    let mut monitor = named(&server, "web-4");
    monitor.call("MONITOR");
    until("they are idle", PATIENCE, || (1..4).all(|n| idle(&server, &format!("web-{n}")) >= 1));

    let shown = done(&server, "--age 1s --name web-*");
    assert!(shown.contains("1 would be killed"), "{shown}");
    for kind in ["subscribers", "blocked", "monitors"] {
        assert!(
            shown.contains(&format!("1 that fit are {kind}: left alone without --include {kind}")),
            "{shown}"
        );
    }
    assert!(done(&server, "--idle 1s --name web-* --yes").contains("killed 1 of 1"));
    assert_eq!((count(&server, "web-1"), count(&server, "web-2")), (0, 1));
    assert!(
        done(&server, "--age 1s --name web-* --include subscribers,blocked --yes").contains("killed 2 of 2")
    );
    assert!(done(&server, "--age 1s --name web-* --include monitors --yes").contains("killed 1 of 1"));
    assert!(server.rows().iter().any(|row| row.get("flags") == "S"), "the replica stays");
    replica.kill();
}

#[test]
fn address_and_user_choose_too() {
    let server = Server::start();
    server.call("ACL SETUSER app on >secret ~* &* +@all");
    let mut app = named(&server, "app");
    assert_eq!(app.call("AUTH app secret").text(), "OK");
    let _other = named(&server, "other");
    assert!(done(&server, "--user app --addr 127.0.0.0/8").contains("1 would be killed"));
    assert!(done(&server, "--user app --addr 10.0.0.0/8").contains("0 would be killed"));
    assert!(done(&server, "--user app --addr 127.0.0.1 --yes").contains("killed 1 of 1"));
    assert_eq!((count(&server, "app"), count(&server, "other")), (0, 1));
}

#[test]
fn without_a_wish_it_only_shows_and_points_to_orphans() {
    let server = Server::start();
    let dead = "redbouncer:web:0123abcd:leased";
    let _dead = named(&server, dead);
    until("it is idle", PATIENCE, || idle(&server, dead) >= 3);
    for flags in ["", "--yes"] {
        let shown = done(&server, flags);
        assert!(shown.contains("left by a redbouncer that is dead: 1; --orphans chooses them"), "{shown}");
        assert_eq!(count(&server, dead), 1);
    }
    let shown = done(&server, "");
    assert!(
        shown.starts_with(&format!(
            "{} connections of 10000 that it allows on redis://",
            server.clients() + 1
        ))
    );
}

#[test]
fn what_stands_in_the_way_is_said_and_no_secret_with_it() {
    let server = Server::start();
    server.call("ACL SETUSER web on >hunter2 ~* &* +@all -client|kill");
    let _idle = named(&server, "web-1");
    let url = format!("redis://web:hunter2@{}", server.address());
    let (code, stdout, stderr) = cleanup(&url, "--name web-1 --yes");
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("CLIENT KILL is refused: NOPERM"), "{stderr}");
    let (code, _, stderr) = cleanup(&format!("redis://web:hunter3@{}", server.address()), "");
    assert!(code == 1 && stderr.contains("WRONGPASS") && !stderr.contains("hunter"), "{stderr}");
    let port = crate::harness::free_port();
    let (code, _, stderr) = cleanup(&format!("redis://:hunter2@127.0.0.1:{port}"), "");
    assert!(code == 1 && stderr.contains("refused") && !stderr.contains("hunter"), "{stderr}");
    for (flags, named) in [
        ("--idle 60", "--idle"),
        ("--addr example", "--addr"),
        ("--include everything", "--include"),
        ("--idel 60s", "--idle"),
    ] {
        let (code, stdout, stderr) = cleanup(&server.url(), flags);
        assert!(code == 64 && stdout.is_empty() && stderr.contains(named), "{flags}: {stderr}");
    }
}
