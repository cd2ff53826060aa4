//! CLIENT LIST, INFO and KILL on every server: its own row format, every form of KILL for our own clients, and what is sent
//! unasked (invalidations, messages, MONITOR) to the client that asked for it and to no other.

use std::time::Duration;

use crate::harness::{Client, Ended, PATIENCE, Reply, Server, Stage, Version, until};

/// A proxied stage before every server at hand.
fn on_each(scenario: impl Fn(&Stage, &Version)) {
    for version in Version::all() {
        println!("--- {}", version.name);
        scenario(&Stage::before(Server::start_version(&version, &[]), &[]), &version);
    }
}

fn fields(row: &str) -> Vec<String> {
    row.trim_end()
        .split(' ')
        .filter_map(|field| field.split_once('=').map(|(name, _)| name.to_owned()))
        .collect()
}

fn rows(reply: &Reply) -> Vec<String> {
    reply.text().lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn rows_have_the_servers_own_fields_in_its_order() {
    on_each(|stage, version| {
        let expected = fields(&rows(&stage.server.call("CLIENT LIST"))[0]);
        let mut client = stage.connect();
        assert_eq!(fields(&client.call("CLIENT INFO").text()), expected, "{}", version.name);
        for row in rows(&client.call("CLIENT LIST")) {
            assert_eq!(fields(&row), expected, "{}: {row}", version.name);
        }
        let mut three = stage.connect_resp3();
        let info = three.call("CLIENT INFO");
        assert!(info.raw.starts_with(b"="), "a verbatim string in RESP3: {info:?}");
        assert_eq!(fields(info.text().trim_start_matches("txt:")), expected);
    });
}

/// `words` ends `victim` and leaves `other`, and says that it was one.
#[track_caller]
fn kills(stage: &Stage, words: &str, version: &Version) {
    let (mut killer, mut victim, mut other) = (stage.connect(), stage.connect(), stage.connect());
    for client in [&mut killer, &mut victim, &mut other] {
        client.call("PING");
    }
    assert_eq!(victim.call("CLIENT SETNAME victim").text(), "OK");
    assert_eq!(victim.call("SELECT 5").text(), "OK");
    let (id, peer) = (victim.call("CLIENT ID").int(), victim.local_address());
    if words.contains("pubsub") {
        victim.call("SUBSCRIBE c");
    }
    let line = words.replace("{id}", &id.to_string()).replace("{addr}", &peer.to_string());
    let line = line.replace("{laddr}", &stage.address().to_string());
    let answer = killer.call(&format!("CLIENT KILL {line}"));
    let expected = if words == "{addr}" { "+OK\r\n" } else { ":1\r\n" };
    assert_eq!(answer.raw, expected.as_bytes(), "{line} on {}: {answer:?}", version.name);
    victim.expect_end(PATIENCE);
    assert_eq!(other.call("PING").text(), "PONG", "{line}");
    assert_eq!(killer.call("PING").text(), "PONG", "{line}");
}

#[test]
fn every_form_of_kill_ends_who_is_meant_and_no_other() {
    on_each(|stage, version| {
        let mut forms = vec![
            "{addr}",
            "ID {id}",
            "ADDR {addr}",
            "ID {id} LADDR {laddr}",
            "TYPE pubsub",
            "ADDR {addr} TYPE normal",
            "USER default ID {id}",
            "ID {id} SKIPME no",
            "id {id} skipme YES type NORMAL user default addr {addr} laddr {laddr}",
        ];
        if version.name.starts_with("valkey-9") {
            forms.extend([
                "ID 1 {id} 2",
                "NAME victim",
                "DB 5",
                "FLAGS N NAME victim NOT-FLAGS M NOT-TYPE replica",
                "NOT-ID 1 2 NAME victim IP 127.0.0.1 NOT-IP 10.0.0.1",
                "NAME victim NOT-NAME other NOT-LIB-NAME x NOT-LIB-VER y NOT-DB 0 NOT-CAPA r NOT-ADDR 10.0.0.1:1 NOT-LADDR 10.0.0.1:1",
            ]);
        }
        for form in forms {
            kills(stage, form, version);
        }
    });
}

#[test]
fn a_kill_by_filter_spares_the_killer_and_the_proxys_own_connections() {
    on_each(|stage, version| {
        let mut killer = stage.connect();
        let mut others: Vec<Client> = (0..3).map(|_| stage.connect()).collect();
        for client in &mut others {
            client.call("PING");
        }
        let mut probe = stage.server.probe();
        let outsider = Client::connect(stage.server.address());
        until("the outsider is connected", PATIENCE, || {
            rows(&probe.call("CLIENT LIST"))
                .iter()
                .any(|row| row.contains(&format!("addr={}", outsider.local_address())))
        });
        // The control connection is dialled now at the latest.
        killer.call("CLIENT LIST");
        let before =
            stage.server.rows().iter().filter(|row| row.get("name").starts_with("redbouncer:")).count();
        let reply = killer.call("CLIENT KILL TYPE normal");
        // Ours, the outsider, and the two connections that the harness has to the server.
        assert_eq!(reply.int(), 6, "{}", version.name);
        for client in &mut others {
            client.expect_end(PATIENCE);
        }
        assert_eq!(killer.call("PING").text(), "PONG");
        let mut after = Client::connect(stage.server.address());
        let left =
            rows(&after.call("CLIENT LIST")).iter().filter(|row| row.contains(" name=redbouncer:")).count();
        assert_eq!(left, before, "{}", version.name);
        // Where the filter names ages: nobody is that old, and the words are judged by the server.
        let old = killer.call("CLIENT KILL MAXAGE 100000");
        let knows = ["redis-8", "valkey"].iter().any(|name| version.name.starts_with(name));
        assert_eq!(old.is_error(), !knows, "{}: {old:?}", version.name);
        assert!(killer.call("CLIENT KILL USER nosuch").error().contains("No such user 'nosuch'"));
        assert!(killer.call("CLIENT KILL FOO x").is_error());
        assert_eq!(killer.call("CLIENT KILL SKIPME no ID 1").int(), 0);
    });
}

/// With every filter, whether or not others of the server's have to be looked at too.
#[test]
fn who_means_itself_as_well_is_answered_before_it_is_closed() {
    on_each(|stage, version| {
        for line in ["ID {id} SKIPME no", "LADDR {laddr} TYPE normal SKIPME no", "{addr}"] {
            let (mut killer, mut other) = (stage.connect(), stage.connect());
            let id = killer.call("CLIENT ID").int();
            let meant =
                line.replace("{id}", &id.to_string()).replace("{laddr}", &stage.address().to_string());
            let meant = meant.replace("{addr}", &killer.local_address().to_string());
            other.call("PING");
            killer.start(&format!("CLIENT KILL {meant}"));
            let (bytes, ended) = killer.read_to_end(PATIENCE);
            assert_ne!(ended, Ended::Late, "{line} on {}", version.name);
            let expected = match line {
                "{addr}" => "+OK\r\n",
                line if line.contains("LADDR") => ":2\r\n",
                _ => ":1\r\n",
            };
            assert_eq!(bytes, expected.as_bytes(), "{line} on {}", version.name);
        }
    });
}

#[test]
fn invalidations_reach_the_tracking_client_and_no_other() {
    on_each(|stage, version| {
        let (mut tracking, mut other) = (stage.connect_resp3(), stage.connect_resp3());
        let mut writer = stage.connect();
        assert_eq!(tracking.call("CLIENT TRACKING ON").text(), "OK");
        assert!(tracking.call("GET k").is_nil());
        assert!(other.call("GET k").is_nil());
        writer.call("SET k v");
        let push = tracking.reply();
        assert_eq!(push.raw, &b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"[..], "{}", version.name);
        other.expect_silence(Duration::from_millis(30));
        // OPTIN: only what CACHING announces is tracked.
        assert_eq!(tracking.call("CLIENT TRACKING OFF").text(), "OK");
        assert_eq!(tracking.call("CLIENT TRACKING ON OPTIN").text(), "OK");
        tracking.call("GET a");
        assert_eq!(tracking.call("CLIENT CACHING YES").text(), "OK");
        tracking.call("GET b");
        writer.call("MSET a 1 b 1");
        assert!(tracking.reply().raw.ends_with(b"*1\r\n$1\r\nb\r\n"));
        tracking.expect_silence(Duration::from_millis(30));
        // The lease ends with the tracking, and nothing is told any more.
        assert_eq!(tracking.call("CLIENT TRACKING OFF").text(), "OK");
        tracking.call("GET c");
        writer.call("SET c 1");
        tracking.expect_silence(Duration::from_millis(30));
        assert_eq!(tracking.call("PING").text(), "PONG");
    });
}

#[test]
fn monitor_shows_commands_to_the_one_that_monitors() {
    on_each(|stage, version| {
        let (mut monitor, mut other) = (stage.connect(), stage.connect());
        assert_eq!(monitor.call("MONITOR").text(), "OK");
        assert_eq!(other.call("SET seen 1").text(), "OK");
        let mut lines = Vec::new();
        until("the command is shown", PATIENCE, || {
            lines.push(monitor.reply().text());
            lines.last().is_some_and(|line| line.contains("\"SET\" \"seen\" \"1\""))
        });
        other.expect_silence(Duration::from_millis(20));
        monitor.start("RESET");
        until("RESET is answered", PATIENCE, || monitor.reply().text() == "RESET");
        assert_eq!(monitor.call("PING").text(), "PONG", "{}", version.name);
        monitor.expect_silence(Duration::from_millis(20));
    });
}

#[test]
fn a_pause_holds_clients_until_its_end_and_unpause_ends_it() {
    on_each(|stage, version| {
        let (mut pauser, mut held) = (stage.connect(), stage.connect());
        held.call("PING");
        assert_eq!(pauser.call("CLIENT PAUSE 20000 WRITE").text(), "OK", "{}", version.name);
        held.start("SET k v");
        held.expect_silence(Duration::from_millis(60));
        assert_eq!(pauser.call("CLIENT UNPAUSE").text(), "OK");
        assert_eq!(held.reply().text(), "OK");
    });
}

/// OBJECT IDLETIME tells whether a read has touched the key.
#[test]
fn no_touch_is_of_the_client_that_asked_for_it() {
    on_each(|stage, version| {
        let (mut quiet, mut other) = (stage.connect(), stage.connect());
        let reply = quiet.call("CLIENT NO-TOUCH on");
        if reply.is_error() {
            assert!(stage.server.call("CLIENT NO-TOUCH on").is_error(), "{}", version.name);
            return;
        }
        other.call("SET k v");
        until("the key is idle", PATIENCE, || stage.server.call("OBJECT IDLETIME k").int() >= 1);
        quiet.call("GET k");
        assert!(stage.server.call("OBJECT IDLETIME k").int() >= 1, "{}", version.name);
        other.call("GET k");
        assert_eq!(stage.server.call("OBJECT IDLETIME k").int(), 0, "{}", version.name);
        assert_eq!(quiet.call("CLIENT NO-TOUCH off").text(), "OK");
    });
}
