//! `redbouncer cleanup`: what it shows, what it takes away, and what it leaves alone.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::harness::{Client, FakeServer, PATIENCE, Proxy, Server, Version, bulk, until};

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
        let dead = "redbouncer:web:0123abcd:shared";
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

        let shown = done(&server, "--orphans");
        assert!(shown.contains("\n350 of ") && shown.contains(" would be killed; add --yes"), "{shown}");
        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
        assert!(
            shown.contains("  350     350 ") && shown.contains("redbouncer:web:0123abcd (dead)"),
            "{shown}"
        );
        assert_eq!(count(&server, dead), 350, "a dry run kills nothing");

        let taken: Json = serde_json::from_str(&done(&server, "--orphans --yes --json")).expect("JSON");
        assert_eq!((&taken["killed"], &taken["chosen"].as_array().unwrap().len()), (&350.into(), &350));
        assert_eq!(count(&server, dead), 0);
        // The proxy may open or close one of its own meanwhile.
        let went = taken["connections"].as_u64().unwrap() - taken["connections_after"].as_u64().unwrap();
        assert!((345..=355).contains(&went), "{taken:#}");
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
    assert!(shown.contains("\n1 of "), "{shown}");
    for kind in ["subscribers", "blocked", "monitors"] {
        assert!(shown.contains(&format!("not killed: 1 selected, {kind} (add --include {kind}")), "{shown}");
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
fn both_ends_of_a_replication_are_left_alone() {
    let server = Server::start_with(&["--repl-diskless-sync-delay", "0"]);
    let replica = Server::start_with(&["--replicaof", "127.0.0.1", &server.address().port().to_string()]);
    let has = |server: &Server, flag: &str| server.rows().iter().any(|row| row.get("flags") == flag);
    until("the link is up", PATIENCE, || has(&server, "S") && has(&replica, "M"));
    for (at, kind) in [(&server, "replicas"), (&replica, "masters")] {
        let shown = done(at, "--age 0s");
        assert!(shown.contains(&format!("not killed: 1 selected, {kind}")), "{shown}");
        let taken: Json =
            serde_json::from_str(&done(at, &format!("--age 0s --include {kind} --json"))).unwrap();
        let none: Json = serde_json::from_str(&done(at, "--age 0s --json")).unwrap();
        let chosen = |said: &Json| said["chosen"].as_array().unwrap().len();
        assert_eq!(chosen(&taken), chosen(&none) + 1, "{taken:#}");
    }
}

#[test]
fn address_and_user_choose_too() {
    let server = Server::start();
    server.call("ACL SETUSER app on >secret ~* &* +@all");
    let mut app = named(&server, "app");
    assert_eq!(app.call("AUTH app secret").text(), "OK");
    let _other = named(&server, "other");
    assert!(done(&server, "--user app --addr 127.0.0.0/8").contains("\n1 of "));
    assert!(done(&server, "--user app --addr 10.0.0.0/8").contains("\n0 of "));
    assert!(done(&server, "--user app --addr 127.0.0.1 --yes").contains("killed 1 of 1"));
    assert_eq!((count(&server, "app"), count(&server, "other")), (0, 1));
}

#[test]
fn without_a_wish_it_only_shows_and_points_to_orphans() {
    let server = Server::start();
    let dead = "redbouncer:web:0123abcd:leased";
    let _dead = named(&server, dead);
    until("it is idle", PATIENCE, || idle(&server, dead) >= 3);
    let shown = done(&server, "");
    assert!(shown.contains("of dead instances of redbouncer: 1 (select them with --orphans)"), "{shown}");
    assert!(shown.contains("no connections are selected"), "{shown}");
    assert!(shown.contains(" connections of 10000 on redis://"), "{shown}");
    // To kill without a word about what is no harmless misunderstanding.
    for flags in ["--yes", "--yes --include blocked"] {
        let (code, stdout, stderr) = cleanup(&server.url(), flags);
        assert!(code == 64 && stdout.is_empty() && stderr.contains("--orphans"), "{stdout}{stderr}");
    }
    assert_eq!(count(&server, dead), 1);
}

#[test]
fn what_stands_in_the_way_is_said_and_no_secret_with_it() {
    let server = Server::start();
    server.call("ACL SETUSER web on >hunter2 ~* &* +@all -client|kill");
    let _idle = named(&server, "web-1");
    let url = format!("redis://web:hunter2@{}", server.address());
    let (code, stdout, stderr) = cleanup(&url, "--name web-1 --yes");
    assert!(code == 1 && stdout.contains("killed 0 of 1"), "{stdout}");
    assert!(stderr.contains("stopped after 0 of 1: CLIENT KILL is refused: NOPERM"), "{stderr}");
    let (code, stdout, _) = cleanup(&url, "--name web-1 --yes --json");
    let said: Json = serde_json::from_str(&stdout).expect("JSON");
    assert!(
        code == 1 && said["killed"] == 0 && said["stopped"].as_str().unwrap().contains("NOPERM"),
        "{stdout}"
    );
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

/// A provider's server: rows of its own kind, no HELLO, no CLIENT ID, no CONFIG. `on_kill` answers CLIENT KILL, `rows`
/// makes the listing.
fn provider(
    rows: impl Fn() -> String + Send + Sync + 'static,
    on_kill: impl Fn(&str) -> String + Send + Sync + 'static,
) -> FakeServer {
    FakeServer::server(move |words| match words {
        ["PING"] => "+PONG\r\n".to_owned(),
        ["CLIENT", "SETNAME", _] => "+OK\r\n".to_owned(),
        ["INFO", ..] => bulk("# Server\r\nredis_version:7.2.0\r\n"),
        ["CLIENT", "LIST"] => bulk(&rows()),
        ["CLIENT", "KILL", "ID", id, "ADDR", _] => on_kill(id),
        _ => "-ERR unknown command\r\n".to_owned(),
    })
}

/// Rows as a managed Redis shows them.
fn managed(id: u64, name: &str, idle: u64) -> String {
    format!(
        "id={} addr=10.0.1.7:{id} fd=34 name={name} age=7200 idle={idle} flags=N db=0 sub=0 psub=0 multi=-1 qbuf=0 \
         qbuf-free=0 obl=0 oll=0 omem=0 events=r cmd=ping\n",
        1_000_000_000_000 + id
    )
}

#[test]
fn a_managed_server_is_cleaned_by_what_it_shows() {
    let killed = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&killed);
    let rows = || managed(1, "web", 900) + &managed(2, "web", 5) + &managed(3, "redbouncer-cleanup", 900);
    let fake = provider(rows, move |id| {
        seen.lock().unwrap().push(id.to_owned());
        ":1\r\n".to_owned()
    });
    let (code, stdout, stderr) = cleanup(&fake.url(), "--idle 10m --yes");
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(stdout.starts_with("3 connections on redis://"), "it says no limit: {stdout}");
    assert!(stdout.contains("killed 1 of 1\nconnections: 3 before, 3 after\n"), "{stdout}");
    assert_eq!(*killed.lock().unwrap(), ["1000000000001"], "neither an active one nor itself");
}

/// A hundred are killed at once; when that has taken long, the next ones may have woken up.
#[test]
fn what_has_woken_up_meanwhile_is_left_alone() {
    let begun = Arc::new(Mutex::new(None::<Instant>));
    let (start, killed) = (Arc::clone(&begun), Arc::new(Mutex::new(0)));
    let seen = Arc::clone(&killed);
    let rows = move || {
        let woken = begun.lock().unwrap().is_some();
        (1..=150).map(|id| managed(id, "web", if woken && id > 120 { 0 } else { 900 })).collect()
    };
    let fake = provider(rows, move |_| {
        if start.lock().unwrap().replace(Instant::now()).is_none() {
            // The server is busy: the listing grows old.
            std::thread::sleep(Duration::from_millis(5_100));
        }
        *seen.lock().unwrap() += 1;
        ":1\r\n".to_owned()
    });
    let (code, stdout, stderr) = cleanup(&fake.url(), "--idle 10m --yes");
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(stdout.contains("killed 120 of 150 (30 had closed"), "{stdout}");
    assert_eq!(*killed.lock().unwrap(), 120);
}

#[test]
fn a_refusal_in_the_middle_ends_it_and_what_was_done_is_said() {
    let killed = Arc::new(Mutex::new(0));
    let rows = || (1..=250).map(|id| managed(id, "web", 900)).collect();
    let fake = provider(rows, move |_| {
        let mut killed = killed.lock().unwrap();
        *killed += 1;
        if *killed > 130 { "-NOPERM no permissions\r\n".to_owned() } else { ":1\r\n".to_owned() }
    });
    let (code, stdout, stderr) = cleanup(&fake.url(), "--idle 10m --yes");
    assert!(code == 1 && stdout.contains("killed 130 of 250"), "{stdout}");
    assert!(stderr.contains("stopped after 130 of 250: CLIENT KILL is refused: NOPERM"), "{stderr}");
}

/// While a server runs one long command it reads nobody's, and everybody looks idle.
#[test]
fn a_server_that_was_busy_is_not_judged() {
    let pinged = Mutex::new(0);
    let fake = FakeServer::server(move |words| match words {
        ["PING"] => {
            let mut pinged = pinged.lock().unwrap();
            *pinged += 1;
            // The first one belongs to the login.
            if *pinged == 2 {
                std::thread::sleep(Duration::from_millis(1_200));
            }
            "+PONG\r\n".to_owned()
        }
        ["CLIENT", "SETNAME", _] => "+OK\r\n".to_owned(),
        ["INFO", ..] => bulk("# Server\r\nredis_version:7.2.0\r\n"),
        ["CLIENT", "LIST"] => bulk(&managed(1, "web", 900)),
        ["CLIENT", "KILL", ..] => ":1\r\n".to_owned(),
        _ => "-ERR unknown command\r\n".to_owned(),
    });
    let (code, stdout, stderr) = cleanup(&fake.url(), "--idle 10m --yes");
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(stderr.contains("to answer PING; it read no commands"), "{stderr}");
}

/// The server that is full is the one that needs it.
#[test]
fn a_place_on_a_full_server_is_waited_for() {
    let server = Server::start_with(&["--maxclients", "12"]);
    // The test's own probe is one of the twelve.
    let mut others: Vec<Client> = (0..11).map(|_| named(&server, "web")).collect();
    let url = server.url();
    let cleaning = std::thread::spawn(move || cleanup(&url, "--name web --yes"));
    until("it has been refused", PATIENCE, || server.info("rejected_connections") != "0");
    others.pop();
    let (code, stdout, stderr) = cleaning.join().unwrap();
    assert!(code == 0 && stdout.contains("killed 10 of 10"), "{stdout}{stderr}");
    assert!(stderr.contains("at its connection limit") && stderr.contains("waiting"), "{stderr}");
}

/// A kill that is never answered: nothing that comes later is taken for something else.
#[test]
fn a_server_that_hangs_in_the_middle_ends_it() {
    let fake = provider(|| managed(1, "web", 900), |_| String::new());
    let (code, stdout, stderr) = cleanup(&fake.url(), "--idle 10m --yes");
    assert!(code == 1 && stdout.contains("killed 0 of 1\nconnections: 1 before, unknown after"), "{stdout}");
    assert!(stderr.contains("the server did not answer CLIENT KILL"), "{stderr}");
}

#[test]
fn every_flag_is_in_the_help_and_in_the_page() {
    let (exit, help) = Proxy::run_to_end(&["cleanup", "--help"], &[]);
    assert_eq!(exit.code, Some(0));
    let own = help.split("Settings:").next().unwrap();
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/command-line.md"))
            .unwrap();
    let flags: Vec<&str> = own.split_whitespace().filter(|word| word.starts_with("--")).collect();
    assert!(flags.len() >= 9, "{help}");
    for flag in flags.iter().map(|flag| flag.trim_end_matches([',', ')'])).filter(|flag| *flag != "--help") {
        assert!(page.contains(flag), "docs/reference/command-line.md does not know {flag}");
    }
    for kind in ["replicas", "masters", "monitors", "subscribers", "blocked", "unclear"] {
        assert!(own.contains(kind) && page.contains(kind), "{kind}");
    }
}

/// It may be between two lanes: then it shows itself within a heartbeat.
#[test]
fn an_instance_that_shows_only_leases_is_looked_at_twice() {
    let server = Server::start();
    let (dead, back) = ("redbouncer:web:0123abcd:leased", "redbouncer:web:4567cdef:leased");
    let _dead = named(&server, dead);
    let _back = named(&server, back);
    until("they are idle", PATIENCE, || idle(&server, dead) >= 3 && idle(&server, back) >= 3);
    let url = server.url();
    let cleaning = std::thread::spawn(move || cleanup(&url, "--orphans --yes"));
    until("it has looked", PATIENCE, || {
        server.rows().iter().any(|row| row.get("name") == "redbouncer-cleanup")
    });
    until("the first look is over", PATIENCE, || {
        server
            .rows()
            .iter()
            .any(|row| row.get("name") == "redbouncer-cleanup" && row.get("cmd") == "client|list")
    });
    let _lane = named(&server, "redbouncer:web:4567cdef:shared");
    let (code, stdout, stderr) = cleaning.join().unwrap();
    assert!(code == 0 && stdout.contains("killed 1 of 1"), "{stdout}{stderr}");
    assert!(stderr.contains("listing again in 1s"), "{stderr}");
    assert_eq!((count(&server, dead), count(&server, back)), (0, 1));
}
