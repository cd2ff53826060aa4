//! Commands inside MULTI that redbouncer answers itself: queued as by the server, answered in their place of EXEC's array.

use std::time::Duration;

use crate::harness::{
    Client, Ended, PATIENCE, PairedServers, Row, Server, Stage, Value, Version, encode, until,
};

/// Plays a scenario before every server, directly and through the proxy; each of the things that it returns must be the
/// same.
#[track_caller]
fn on_each<T: PartialEq + std::fmt::Debug>(scenario: impl Fn(&Stage) -> Vec<T>) {
    for version in Version::all() {
        println!("--- {} directly", version.name);
        let direct = scenario(&Stage::before_none(Server::start_version(&version, &[])));
        println!("--- {} through the proxy", version.name);
        let stage = Stage::before(Server::start_version(&version, &[]), &[]);
        until("the server's version is known", PATIENCE, || {
            stage.connect().call("READONLY").is_error() != version.name.contains("valkey")
        });
        let proxied = scenario(&stage);
        assert_eq!(direct.len(), proxied.len());
        for (direct, proxied) in direct.into_iter().zip(proxied) {
            assert_eq!(direct, proxied, "{}", version.name);
        }
    }
}

fn words(line: &str) -> Vec<u8> {
    encode(&line.split(' ').collect::<Vec<_>>())
}

/// Printable, without HELLO's id.
fn shown(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    let mut parts = text.split("$2\\r\\nid\\r\\n:");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str("(id) ");
        shown.push_str(part.split_once("\\r\\n").unwrap_or_default().1);
    }
    shown
}

/// All that is said to these lines, each of which is one write, and a QUIT behind them.
fn said(stage: &Stage, lines: &[&str]) -> String {
    let mut client = stage.connect();
    let mut heard = Vec::new();
    for line in lines {
        client.send(words(line));
        heard.extend(client.frame(PATIENCE));
    }
    client.send("QUIT\r\n");
    heard.extend(client.read_to_end(PATIENCE).0);
    shown(&heard)
}

/// The same when all of them, and the QUIT, are one write.
fn said_at_once(stage: &Stage, lines: &[&str]) -> String {
    let mut client = stage.connect();
    let bytes: Vec<u8> = lines.iter().flat_map(|line| words(line)).collect();
    client.send([&bytes[..], b"QUIT\r\n"].concat());
    shown(&client.read_to_end(PATIENCE).0)
}

const SCRIPTS: &[&[&str]] = &[
    &["MULTI", "CLIENT SETNAME a", "CLIENT GETNAME", "SET k v", "EXEC", "CLIENT GETNAME", "GET k"],
    &["MULTI", "CLIENT GETNAME", "CLIENT SETNAME a\nb", "CLIENT SETNAME c", "EXEC", "CLIENT GETNAME"],
    // What the server does not take makes it abort: words, names, subcommands of other versions.
    &["MULTI", "CLIENT SETNAME a", "CLIENT GETNAME x", "EXEC", "CLIENT GETNAME"],
    &["MULTI", "CLIENT SETNAME a", "CLIENT NOSUCH x", "EXEC", "CLIENT GETNAME"],
    &["MULTI", "CLIENT", "EXEC"],
    &["MULTI", "CLIENT SETINFO LIB-NAME a", "EXEC"],
    &["MULTI", "CLIENT SETINFO FOO a", "CLIENT SETINFO lib-ver a\nb", "EXEC"],
    &["MULTI", "CLIENT NO-EVICT on", "CLIENT NO-EVICT x", "EXEC"],
    &["MULTI", "CLIENT CAPA redirect", "EXEC"],
    &["MULTI", "CLIENT IMPORT-SOURCE on", "EXEC"],
    &["MULTI", "CLIENT NO-TOUCH on", "CLIENT NO-TOUCH x", "CLIENT NO-TOUCH off", "EXEC"],
    // Nothing happens without an array.
    &["MULTI", "CLIENT SETNAME a", "NOSUCH", "EXEC", "CLIENT GETNAME"],
    &["MULTI", "CLIENT SETNAME a", "HELLO 3", "DISCARD", "CLIENT GETNAME"],
    &["WATCH w", "SET w 1", "MULTI", "CLIENT SETNAME a", "HELLO 3", "EXEC", "CLIENT GETNAME"],
    // Several transactions, each with its own.
    &[
        "MULTI",
        "CLIENT SETNAME a",
        "EXEC",
        "MULTI",
        "CLIENT GETNAME",
        "CLIENT SETNAME b",
        "EXEC",
        "CLIENT GETNAME",
    ],
    &[
        "MULTI",
        "EXEC",
        "MULTI",
        "CLIENT SETNAME a",
        "GET k",
        "EXEC",
        "MULTI",
        "GET k",
        "EXEC",
        "CLIENT GETNAME",
    ],
    &["MULTI", "MULTI", "CLIENT SETNAME a", "WATCH k", "EXEC x", "DISCARD x", "EXEC", "CLIENT GETNAME"],
    &["WATCH w", "MULTI", "CLIENT SETNAME a", "EXEC", "SET w 2", "MULTI", "GET w", "EXEC", "CLIENT GETNAME"],
    // HELLO: what stands behind it is in its protocol.
    &[
        "MULTI",
        "HGETALL none",
        "GET none",
        "HELLO 3",
        "HGETALL none",
        "GET none",
        "CLIENT GETNAME",
        "EXEC",
        "HGETALL none",
    ],
    &["HELLO 3", "MULTI", "GET none", "HELLO 2", "GET none", "CLIENT GETNAME", "EXEC", "GET none"],
    &[
        "MULTI",
        "HELLO 3 SETNAME a",
        "CLIENT GETNAME",
        "HELLO",
        "HELLO 2 SETNAME b",
        "CLIENT GETNAME",
        "EXEC",
        "GET none",
    ],
    &[
        "MULTI",
        "HELLO 4",
        "HELLO x",
        "HELLO 3 FOO",
        "HELLO 3 SETNAME",
        "HELLO 3 SETNAME a\nb",
        "GET none",
        "EXEC",
        "GET none",
    ],
    &[
        "MULTI",
        "HELLO 3",
        "EVAL return{1,{2,{3}},'x'} 0",
        "CLIENT TRACKINGINFO",
        "EXEC",
        "SELECT 1",
        "GET none",
        "MULTI",
        "GET none",
        "EXEC",
    ],
    &["HELLO 3", "SUBSCRIBE c", "MULTI", "HELLO 2", "GET none", "EXEC", "PING", "UNSUBSCRIBE c"],
    &["HELLO 3", "SUBSCRIBE c", "MULTI", "HELLO 2", "EXEC", "RESET", "GET none"],
    // Attributes belong to the reply behind them; a push in the middle of the array (until 7.0) is none of its replies.
    &[
        "HELLO 3",
        "MULTI",
        "DEBUG PROTOCOL attrib",
        "CLIENT GETNAME",
        "DEBUG PROTOCOL map",
        "EXEC",
        "GET none",
    ],
    &["HELLO 3", "MULTI", "DEBUG PROTOCOL push", "CLIENT GETNAME", "DEBUG PROTOCOL set", "EXEC", "GET none"],
    &["HELLO 3", "CLIENT TRACKING on", "MULTI", "SET k v", "CLIENT GETNAME", "SET k w", "EXEC"],
    // What speaks of the connection, or of the server.
    &["MULTI", "READONLY", "READWRITE", "ASKING", "EXEC", "GET none"],
    &["MULTI", "CLIENT TRACKINGINFO", "CLIENT GETREDIR", "CLIENT CACHING yes", "EXEC"],
    &[
        "MULTI",
        "CLIENT TRACKING on OPTIN",
        "CLIENT CACHING yes",
        "GET k",
        "CLIENT TRACKINGINFO",
        "EXEC",
        "CLIENT TRACKINGINFO",
        "CLIENT GETREDIR",
    ],
    &[
        "MULTI",
        "CLIENT TRACKING on REDIRECT 1",
        "CLIENT TRACKING on REDIRECT x",
        "CLIENT TRACKING x",
        "EXEC",
        "CLIENT TRACKINGINFO",
    ],
    &["MULTI", "MONITOR", "GET none", "EXEC", "GET none"],
    &["MULTI", "SCRIPT KILL", "CLIENT PAUSE 0", "CLIENT UNPAUSE", "CLIENT PAUSE x", "EXEC"],
    &["MULTI", "FUNCTION KILL", "EXEC"],
    // Others: the server judges the words.
    &[
        "MULTI",
        "CLIENT KILL ID 99999999",
        "CLIENT KILL 1.2.3.4:5",
        "CLIENT KILL TYPE x",
        "CLIENT KILL FOO x",
        "EXEC",
    ],
    &["MULTI", "CLIENT UNBLOCK 99999999", "CLIENT UNBLOCK x", "CLIENT UNBLOCK 1 x", "EXEC"],
    &["MULTI", "CLIENT LIST TYPE pubsub", "CLIENT LIST TYPE x", "CLIENT LIST FOO", "EXEC"],
    // SELECT and counts among them.
    &[
        "MULTI",
        "SELECT 1",
        "SET k one",
        "CLIENT SETNAME a",
        "SELECT 99",
        "PUBLISH c x",
        "PUBSUB NUMSUB c",
        "EXEC",
        "GET k",
    ],
    // Replies that are not wanted.
    &[
        "CLIENT REPLY OFF",
        "MULTI",
        "CLIENT SETNAME a",
        "HELLO 3",
        "EXEC",
        "CLIENT REPLY ON",
        "CLIENT GETNAME",
        "GET none",
    ],
    &["CLIENT REPLY SKIP", "MULTI", "CLIENT SETNAME a", "CLIENT GETNAME", "EXEC"],
    &["MULTI", "CLIENT REPLY ON", "CLIENT REPLY x", "EXEC"],
    &["MULTI", "CLIENT SETNAME a", "RESET", "CLIENT GETNAME"],
];

#[test]
fn what_is_queued_is_answered_in_its_place_as_directly() {
    on_each(|stage| SCRIPTS.iter().map(|lines| (lines, said_at_once(stage, lines))).collect::<Vec<_>>());
}

#[test]
fn it_makes_no_difference_how_the_commands_arrive() {
    on_each(|stage| {
        let is_answered = |lines: &&&[&str]| lines.iter().all(|line| !line.starts_with("CLIENT REPLY"));
        SCRIPTS.iter().filter(is_answered).map(|lines| (lines, said(stage, lines))).collect::<Vec<_>>()
    });
}

#[test]
fn in_any_framing_and_with_either_protocol_the_bytes_are_the_servers() {
    let twins = PairedServers::start();
    for hello in ["HELLO 2", "HELLO 3"] {
        twins.agree(&[
            &format!("{hello} SETNAME x")[..],
            "MULTI",
            "SET k v",
            "client setname inner",
            "CLIENT GETNAME",
            "HGETALL none",
            "SELECT 2",
            "CLIENT TRACKINGINFO",
            "EXEC",
            "CLIENT GETNAME",
            "GET k",
            "SELECT 0",
        ]);
    }
}

#[test]
fn rows_show_the_client_as_it_is_at_their_place() {
    on_each(|stage| {
        let mut client = stage.connect();
        let lines = [
            "MULTI",
            "CLIENT INFO",
            "SELECT 3",
            "CLIENT SETNAME a",
            "CLIENT INFO",
            "CLIENT LIST",
            "HELLO 3",
            "CLIENT INFO",
            "EXEC",
            "CLIENT INFO",
        ];
        let replies = client.pipeline(&lines);
        let array = replies[8].items();
        assert_eq!(array.len(), 7, "{:?}", replies[8]);
        let id = format!("id={} ", client.call("CLIENT ID").int());
        let listed = array[4].text();
        let listed: Vec<_> = listed.lines().filter(|line| line.starts_with(&id)).collect();
        assert_eq!(listed.len(), 1);
        assert!(!array[4].text().contains("name=redbouncer:"));
        let rows =
            [array[0].text(), array[3].text(), listed[0].to_owned(), array[6].text(), replies[9].text()];
        let fields = ["name", "db", "flags", "resp", "cmd"];
        Vec::from(rows.map(|row| fields.map(|field| Row::parse(row.trim()).get(field).to_owned())))
    });
}

#[test]
fn ids_help_and_our_own_commands_are_those_of_outside() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    let (id, help) = (client.call("CLIENT ID"), client.call("CLIENT HELP"));
    let replies = client.pipeline(&[
        "MULTI",
        "CLIENT ID",
        "CLIENT HELP",
        "PROXY HELP",
        "PROXY NOSUCH",
        "PROXY CLIENTS",
        "HELLO 3",
        "PROXY HELP",
        "EXEC",
    ]);
    let array = replies[8].items();
    assert_eq!(array[0], Value::Int(id.int()));
    assert_eq!(array[1].items(), help.items());
    assert!(array[2].lines().contains("PROXY CLIENTS"), "{:?}", array[2]);
    assert!(array[3].text().contains("unknown subcommand 'nosuch'"), "{:?}", array[3]);
    assert!(array[4].lines().contains(&format!("id={} ", id.int())), "{:?}", array[4]);
    assert!(replies[8].raw.windows(5).any(|bytes| bytes == b"txt:P"), "{:?}", replies[8]);
    // The server was not told of any of it.
    assert!(stage.server.rows().iter().all(|row| row.get("name").starts_with("redbouncer:")));
}

#[test]
fn others_are_killed_and_unblocked_from_inside() {
    on_each(|stage| {
        let (mut client, mut victim, mut blocked) = (stage.connect(), stage.connect(), stage.connect());
        let ids = [victim.call("CLIENT ID").int(), blocked.call("CLIENT ID").int()];
        blocked.start("BLPOP none 0");
        until("the call blocks", PATIENCE, || {
            let row = stage.connect().call(&format!("CLIENT LIST ID {}", ids[1])).text();
            Row::parse(row.trim()).get("flags").contains('b')
        });
        client.call("MULTI");
        client.call(&format!("CLIENT KILL ID {}", ids[0]));
        client.call(&format!("CLIENT UNBLOCK {} ERROR", ids[1]));
        client.call("SET k v");
        let done = client.call("EXEC");
        victim.expect_end(PATIENCE);
        let unblocked = blocked.reply();
        vec![done.raw, unblocked.raw, client.call("GET k").raw]
    });
}

#[test]
fn who_kills_itself_inside_hears_no_more_and_the_rest_runs() {
    on_each(|stage| {
        let mut heard = Vec::new();
        for itself in ["ID {id} SKIPME no", "ADDR {addr} SKIPME no", "{addr}"] {
            let mut client =
                if stage.is_proxied() { Client::connect_apart(stage.address()) } else { stage.connect() };
            let mut other = stage.connect();
            let (id, other_id) = (client.call("CLIENT ID").int(), other.call("CLIENT ID").int());
            let itself = itself.replace("{id}", &id.to_string());
            let itself = itself.replace("{addr}", &client.local_address().to_string());
            let (kill, kill_other) = (format!("CLIENT KILL {itself}"), format!("CLIENT KILL ID {other_id}"));
            let lines = [
                "MULTI",
                "SET k 1",
                "CLIENT GETNAME",
                &kill,
                "CLIENT GETNAME",
                &kill_other,
                "SET k 2",
                "EXEC",
            ];
            client.send(lines.iter().flat_map(|line| words(line)).collect::<Vec<_>>());
            let (bytes, ended) = client.read_to_end(PATIENCE);
            assert_ne!(ended, Ended::Late);
            other.expect_end(PATIENCE);
            heard.push(bytes.escape_ascii().to_string());
            heard.push(stage.connect().call("GET k").raw.escape_ascii().to_string());
        }
        heard
    });
}

#[test]
fn tracking_and_no_touch_begin_with_the_transaction() {
    on_each(|stage| {
        let mut client = stage.connect_resp3();
        let mut writer = stage.connect();
        let begun = client.pipeline(&["MULTI", "CLIENT TRACKING on", "GET k", "EXEC"])[3].raw.clone();
        writer.call("SET k v");
        let told = client.reply().raw;
        let flags = Row::parse(client.call("CLIENT INFO").text().trim()).get("flags").to_owned();
        let ended = client.pipeline(&["MULTI", "GET k", "CLIENT TRACKING off", "EXEC"])[3].raw.clone();
        writer.call("SET k w");
        client.expect_silence(Duration::from_millis(30));
        let after = Row::parse(client.call("CLIENT INFO").text().trim()).get("flags").to_owned();
        vec![(begun, told, flags, ended, after)]
    });
    let stage = Stage::proxied();
    let mut client = stage.connect_resp3();
    client.pipeline(&["MULTI", "CLIENT TRACKING on", "EXEC"]);
    until("nothing is held", PATIENCE, || leases(&stage) == 0);
    client.pipeline(&["MULTI", "CLIENT TRACKING off", "CLIENT TRACKING on BCAST", "EXEC"]);
    until("nothing is held", PATIENCE, || leases(&stage) == 0);
    // What changes until a lane is asked for, is told with everything.
    assert_eq!(client.reply().raw, ">2\r\n$10\r\ninvalidate\r\n_\r\n");
    stage.server.call("SET b 1");
    assert_eq!(client.reply().raw, ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nb\r\n");
    client.pipeline(&["MULTI", "CLIENT TRACKING x", "CLIENT TRACKING off", "EXEC"]);
    until("nothing is held", PATIENCE, || leases(&stage) == 0);
    // One that fails holds nothing.
    client.pipeline(&["MULTI", "CLIENT TRACKING x", "MONITOR", "EXEC"]);
    until("nothing is held", PATIENCE, || leases(&stage) == 0);
}

/// How many of our connections carry a client alone at the moment, as PROXY POOLS tells.
fn leases(stage: &Stage) -> usize {
    let text = stage.connect().call("PROXY CLIENTS").lines();
    text.lines().filter(|line| !line.ends_with("place=lane")).count()
}

#[test]
fn what_the_servers_acl_forbids_is_refused_while_it_is_queued() {
    on_each(|stage| {
        stage.server.call("ACL SETUSER default -client");
        vec![
            said_at_once(stage, &["MULTI", "CLIENT SETNAME a", "SET k v", "EXEC", "EXISTS k"]),
            // HELLO is for everybody.
            said_at_once(stage, &["MULTI", "HELLO 3", "HELLO 4", "GET none", "EXEC"]),
        ]
    });
    // Our own commands need no right of the server's.
    let stage = Stage::proxied();
    stage.server.call("ACL SETUSER default -client -ping");
    let replies = stage.connect().pipeline(&["MULTI", "PROXY HELP", "EXEC"]);
    assert!(replies[2].items()[0].lines().contains("PROXY POOLS"), "{:?}", replies[2]);
}

#[test]
fn what_an_operator_forbids_aborts_the_transaction() {
    let stage = Stage::proxied_with(&["auth.admin_commands=refuse"]);
    for line in ["CLIENT KILL ID 1", "MONITOR", "SCRIPT KILL", "CLIENT PAUSE 1", "PROXY POOLS"] {
        let replies = stage.connect().pipeline(&["MULTI", line, "EXEC"]);
        assert!(replies[1].error().ends_with("is refused by auth.admin_commands"), "{:?}", replies[1]);
        assert!(replies[2].error().starts_with("EXECABORT"), "{:?}", replies[2]);
    }
    let replies = stage.connect().pipeline(&["MULTI", "CLIENT SETNAME a", "EXEC"]);
    assert_eq!(replies[2].items()[0].text(), "OK");
}

#[test]
fn what_is_answered_here_leaves_nothing_on_the_connection() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    client.pipeline(&["MULTI", "CLIENT ID", "EXEC"]);
    client.call("CLIENT LIST");
    let before = stage.server.info("total_connections_received");
    for line in [
        "CLIENT ID",
        "CLIENT SETNAME a",
        "CLIENT GETNAME",
        "CLIENT INFO",
        "CLIENT LIST",
        "CLIENT KILL ID 1",
        "PROXY HELP",
    ] {
        let replies = client.pipeline(&["MULTI", line, "EXEC"]);
        assert_eq!(replies[2].items().len(), 1, "{line}: {:?}", replies[2]);
    }
    assert_eq!(stage.server.info("total_connections_received"), before);
}

#[test]
fn a_long_array_passes_through_and_is_not_held_here() {
    const MIB: usize = 1 << 20;
    let stage = Stage::proxied();
    let mut client = stage.connect();
    client.ask(&[b"SET".as_slice(), b"big", &vec![b'x'; 32 * MIB]]);
    client.shrink_receive_buffer();
    let lines =
        ["MULTI", "GET big", "GET big", "CLIENT SETNAME a", "GET big", "GET big", "CLIENT GETNAME", "EXEC"];
    client.send(lines.iter().flat_map(|line| words(line)).collect::<Vec<_>>());
    for _ in &lines[1..] {
        client.reply();
    }
    // The first replies are on their way while the client reads none of them.
    client.read_bytes(MIB, PATIENCE);
    std::thread::sleep(Duration::from_millis(300));
    let resident = stage.proxy().resident();
    assert!(resident < 100 * MIB as u64, "{} MiB", resident >> 20);
    let left = 4 * (32 * MIB + 13) + "*6\r\n+OK\r\n$1\r\na\r\n".len() - MIB;
    let bytes = client.read_bytes(left, Duration::from_secs(30));
    assert!(bytes.ends_with(b"x\r\n$1\r\na\r\n"));
    assert_eq!(client.call("PING").text(), "PONG");
}

#[test]
fn a_message_does_not_come_between_the_replies_of_an_array() {
    let stage = Stage::proxied();
    let mut client = stage.connect_resp3();
    client.call("SUBSCRIBE c");
    let mut publisher = stage.connect();
    for round in 0..200 {
        client.send(
            ["MULTI", "GET none", "CLIENT LIST", "CLIENT ID", "GET none", "EXEC"]
                .iter()
                .flat_map(|line| words(line))
                .collect::<Vec<_>>(),
        );
        publisher.call(&format!("PUBLISH c {round}"));
        let (mut arrays, mut messages) = (0, 0);
        while arrays + messages < 2 {
            let reply = client.reply();
            match reply.raw[0] {
                b'>' => messages += 1,
                b'*' => {
                    assert_eq!(reply.items().len(), 4, "{reply:?}");
                    arrays += 1;
                }
                _ => {}
            }
        }
    }
}

#[test]
fn who_has_said_farewell_gets_the_whole_array() {
    on_each(|stage| {
        let mut client = stage.connect();
        let id = client.call("CLIENT ID").int();
        let list = format!("CLIENT LIST ID {id}");
        let lines = ["MULTI", "CLIENT SETNAME a", &list, "SET k v", "CLIENT GETNAME", "EXEC", "GET k"];
        client.send(lines.iter().flat_map(|line| words(line)).collect::<Vec<_>>());
        client.half_close();
        let (bytes, ended) = client.read_to_end(PATIENCE);
        let text = bytes.escape_ascii().to_string();
        let (before, after) = text.split_once("*4\\r\\n+OK\\r\\n").expect("the array has begun");
        let (row, after) = after.split_once("\\n\\r\\n").expect("the row has an end");
        assert!(row.contains(&format!("id={id} ")) && row.contains(" name=a "), "{row}");
        vec![(before.to_owned(), after.to_owned(), ended)]
    });
}

/// Until 7.0 the server writes it in the middle of the array, whose length does not count it.
#[test]
fn an_own_message_in_the_middle_of_an_array_is_none_of_its_replies() {
    let lines = ["HELLO 3", "SUBSCRIBE c", "MULTI", "PUBLISH c x", "GET none", "EXEC", "GET none"];
    for version in Version::all() {
        let direct = Stage::before_none(Server::start_version(&version, &[]));
        let proxied = Stage::before(Server::start_version(&version, &[]), &["pubsub.hub=false"]);
        assert_eq!(said_at_once(&direct, &lines), said_at_once(&proxied, &lines), "{}", version.name);
    }
}
