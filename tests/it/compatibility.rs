//! The differences that docs/reference/compatibility.md tells of and no other file shows: each is seen directly and through the proxy.
//!
//! A difference is half a promise: what stands on that page must still be so, or the page misleads who plans by it.

use std::time::Duration;

use crate::harness::{
    Client, Ended, PATIENCE, Reply, Row, Server, Stage, Version, encode, rows_of, throughout, until,
};

/// The first id that redbouncer gives to a client.
const OURS: i64 = 1 << 40;

/// A server of every version, once to be asked directly and once through the proxy.
fn on_each(scenario: impl Fn(&Stage, &Stage, &Version)) {
    for version in Version::all() {
        println!("--- {}", version.name);
        let direct = Stage::before_none(Server::start_version(&version, &[]));
        let proxied = Stage::before(Server::start_version(&version, &[]), &[]);
        scenario(&direct, &proxied, &version);
    }
}

/// Both stages, before the usual server.
fn both() -> [Stage; 2] {
    [Stage::direct(), Stage::proxied()]
}

/// What each command is answered by, one after the other on one connection.
fn asked(client: &mut Client, lines: &[&str]) -> Vec<Reply> {
    lines.iter().map(|line| client.call(line)).collect()
}

/// Whether the server speaks as a Redis before this version; Valkey says which Redis it is like.
fn is_before(stage: &Stage, version: (u32, u32)) -> bool {
    let said = stage.server.info("redis_version");
    let mut numbers = said.split('.').map(|number| number.parse::<u32>().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap()) < version
}

fn own_row(client: &mut Client) -> Row {
    Row::parse(client.call("CLIENT INFO").text().trim_start_matches("txt:").trim())
}

#[test]
fn ids_are_our_own_and_kill_by_them() {
    let [direct, proxied] = both();
    assert!(direct.connect().call("CLIENT ID").int() < OURS);
    let (mut one, mut two) = (proxied.connect(), proxied.connect());
    let id = one.call("CLIENT ID").int();
    assert!(id >= OURS, "{id}");
    assert_eq!(one.call("HELLO 3").field("id").map(|value| value.text()), Some(id.to_string()));
    // Rows come in the order of ids, each once, however they are asked for.
    let other = two.call("CLIENT ID").int();
    let rows = rows_of(&two.call(&format!("CLIENT LIST ID {other} {id} {other}")));
    let ids: Vec<&str> = rows.iter().map(|row| row.get("id")).collect();
    assert_eq!(ids, [id.min(other).to_string(), id.max(other).to_string()]);
    // Of an option given twice the last one counts.
    assert_eq!(two.call(&format!("CLIENT KILL ID 1 ID {id}")).int(), 1);
    one.expect_end(PATIENCE);
    // None of the proxy's own connections can be named.
    for row in proxied.server.rows().iter().filter(|row| row.get("name").starts_with("redbouncer:")) {
        assert_eq!(two.call(&format!("CLIENT KILL ID {}", row.get("id"))).int(), 0, "{row:?}");
    }
    assert_eq!(two.call("PING").text(), "PONG");
}

#[test]
fn a_row_leaves_out_what_the_proxy_does_not_have() {
    let [direct, proxied] = both();
    let mut clients = [direct.connect(), proxied.connect()];
    for client in &mut clients {
        client.call("WATCH a b c");
    }
    let [direct, proxied] = clients.each_mut().map(own_row);
    assert!(direct.get("fd") != "-1" && direct.get("qbuf-free") != "0", "{direct:?}");
    assert_eq!((proxied.get("fd"), proxied.get("qbuf-free")), ("-1", "0"), "{proxied:?}");
}

#[test]
fn names_and_addresses_show_here_and_not_on_the_server() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    assert_eq!(client.call("CLIENT SETNAME shop").text(), "OK");
    assert_eq!(own_row(&mut client).get("name"), "shop");
    client.call("SET k v");
    client.call("WATCH k");
    let names: Vec<String> = stage.server.rows().iter().map(|row| row.get("name").to_owned()).collect();
    assert!(names.iter().any(|name| name.ends_with(":leased")), "{names:?}");
    assert!(names.iter().all(|name| name != "shop"), "{names:?}");
    let address = client.local_address().to_string();
    assert!(stage.server.rows().iter().all(|row| row.get("addr") != address));
}

#[test]
fn subcommands_of_client_are_answered_alike_before_every_server() {
    on_each(|direct, proxied, version| {
        let is_before_7_2 = is_before(direct, (7, 2));
        let is_before_7 = is_before(direct, (7, 0));
        let mut bystander = proxied.connect();
        let (mut direct, mut proxied) = (direct.connect(), proxied.connect());
        for line in ["CLIENT SETINFO LIB-NAME lib", "CLIENT NO-EVICT on", "CLIENT CAPA redirect"] {
            assert_eq!(proxied.call(line).text(), "OK", "{}: {line}", version.name);
        }
        assert_eq!(direct.call("CLIENT SETINFO LIB-NAME lib").is_error(), is_before_7_2, "{}", version.name);
        assert_eq!(direct.call("CLIENT NO-EVICT on").is_error(), is_before_7, "{}", version.name);
        // What would change a whole lane is unknown here, also where the server knows it.
        for line in ["CLIENT IMPORT-SOURCE on", "CLIENT NOSUCH"] {
            let error = proxied.call(line);
            assert!(error.error().starts_with("ERR unknown subcommand"), "{}: {error:?}", version.name);
        }
        // Id 0 is nobody's, where Redis 6.2 takes it for everybody's.
        proxied.call("CLIENT KILL ID 0 SKIPME yes");
        assert_eq!(bystander.call("PING").text(), "PONG", "{}", version.name);
        // RESET ends NO-EVICT before every server.
        proxied.call("CLIENT NO-EVICT on");
        assert_eq!(proxied.call("RESET").text(), "RESET");
        assert!(!own_row(&mut proxied).get("flags").contains('e'), "{}", version.name);
    });
}

#[test]
fn a_row_counts_what_is_queued_here_and_shows_no_dirty_watch() {
    on_each(|direct, proxied, version| {
        for stage in [direct, proxied] {
            let (mut client, mut other) = (stage.connect(), stage.connect());
            let id = client.call("CLIENT ID").int();
            asked(&mut client, &["WATCH k", "GET k"]);
            other.call("SET k changed");
            asked(&mut client, &["MULTI", "GET k", "NOSUCH", "GET k"]);
            let rows = rows_of(&other.call("CLIENT LIST"));
            let row = rows.iter().find(|row| row.get("id") == id.to_string()).unwrap();
            assert!(row.get("flags").contains('x'), "{}: {row:?}", version.name);
            assert_eq!(row.get("flags").contains('d'), !stage.is_proxied(), "{}: {row:?}", version.name);
            if stage.is_proxied() {
                assert_eq!(row.get("multi"), "2", "{}: {row:?}", version.name);
            }
        }
    });
}

#[test]
fn errors_of_our_own_are_in_the_words_of_redis_7() {
    on_each(|direct, proxied, version| {
        let [theirs, ours] = [direct, proxied].map(|stage| stage.connect().call("CLIENT NOSUCH"));
        assert_eq!(ours.error(), "ERR unknown subcommand 'NOSUCH'. Try CLIENT HELP.", "{}", version.name);
        assert_eq!(theirs.raw != ours.raw, is_before(direct, (7, 0)), "{}: {theirs:?}", version.name);
    });
}

/// Where the server's rows have a field for it.
#[test]
fn a_library_shows_here_and_not_on_the_server() {
    on_each(|_, proxied, version| {
        let mut client = proxied.connect();
        asked(&mut client, &["CLIENT SETINFO LIB-NAME shoplib", "WATCH k"]);
        let has_field = client.call("CLIENT INFO").text().contains(" lib-name=");
        assert_eq!(
            client.call("CLIENT INFO").text().contains("lib-name=shoplib"),
            has_field,
            "{}",
            version.name
        );
        assert!(!proxied.server.call("CLIENT LIST").text().contains("shoplib"), "{}", version.name);
    });
}

#[test]
fn help_and_proxy_are_our_own() {
    let [direct, proxied] = both();
    let mut clients = [direct.connect(), proxied.connect()];
    let [theirs, ours] = clients.each_mut().map(|client| client.call("CLIENT HELP"));
    assert!(!theirs.is_error() && !ours.is_error() && theirs.raw != ours.raw, "{ours:?}");
    let [theirs, ours] = clients.each_mut().map(|client| client.call("PROXY HELP"));
    assert!(theirs.error().starts_with("ERR unknown command") && !ours.is_error(), "{ours:?}");
    for line in ["PROXY POOLS", "PROXY CLIENTS", "PROXY UPSTREAMS"] {
        assert!(!clients[1].call(line).is_error(), "{line}");
    }
}

#[test]
fn hello_is_answered_while_the_server_is_away() {
    let mut stage = Stage::proxied_with(&["pool.wait_timeout=1s"]);
    let (mut client, mut asking) = (stage.connect(), stage.connect());
    let before = client.call("HELLO 3").field("version");
    client.call("CLIENT SETNAME kept");
    client.call("SELECT 3");
    stage.server.kill();
    asking.start("GET k");
    asking.expect_end(PATIENCE);
    assert_eq!(client.call("HELLO 3").field("version"), before);
    // Who waits for nothing stays, and keeps what it has set.
    stage.server.restart();
    assert_eq!(client.call("SET k v").text(), "OK");
    let row = own_row(&mut client);
    assert_eq!((row.get("name"), row.get("db")), ("kept", "3"));
    assert!(client.call("GET none").raw.starts_with(b"_"), "RESP3 still");
}

#[test]
fn links_that_cannot_be_shared_are_refused() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    let link =
        "ERR redbouncer: replication and migration links cannot be shared; connect to the server directly";
    for line in ["SYNC", "PSYNC ? -1", "REPLCONF listening-port 1", "RESTORE-ASKING k 0 v"] {
        assert_eq!(client.call(line).error(), link, "{line}");
    }
    assert_eq!(
        client.call("SCRIPT DEBUG YES").error(),
        "ERR redbouncer: the Lua debugger needs a dedicated connection; connect to the server directly"
    );
    // Not even by an id that the server has.
    let id = stage.server.call("CLIENT ID").int();
    assert_eq!(
        client.call(&format!("CLIENT TRACKING ON REDIRECT {id}")).error(),
        "ERR The client ID you want redirect to does not exist"
    );
    assert_eq!(client.call("PING").text(), "PONG");
}

#[test]
fn nobody_becomes_somebody_else_during_a_lease() {
    let refused = "ERR redbouncer: AUTH is not possible while this connection holds WATCH, MULTI, subscriptions or tracking";
    for held in ["WATCH k", "SUBSCRIBE c"] {
        for stage in [Stage::direct_secured(), Stage::proxied_secured()] {
            for line in ["AUTH default sesame", "HELLO 3 AUTH default sesame"] {
                let mut client = stage.connect();
                assert!(!client.call("HELLO 3 AUTH default sesame").is_error());
                assert!(!client.call(held).is_error(), "{held}");
                let reply = client.call(line);
                if stage.is_proxied() {
                    assert_eq!(reply.error(), refused, "{held}, {line}");
                    // What it would send next is meant as somebody else's.
                    client.expect_end(PATIENCE);
                } else {
                    assert!(!reply.is_error(), "{held}, {line}: {reply:?}");
                }
            }
        }
    }
}

#[test]
fn commands_beyond_the_own_connection_can_be_refused() {
    let stage = Stage::proxied_with(&["auth.admin_commands=refuse"]);
    let mut client = stage.connect();
    for (line, name) in [("CONFIG GET maxmemory", "config|get"), ("FLUSHALL", "flushall")] {
        let expected = format!("ERR redbouncer: '{name}' is refused by auth.admin_commands");
        assert_eq!(client.call(line).error(), expected);
    }
    assert_eq!(client.call("SET k v").text(), "OK");
}

#[test]
fn a_login_that_fails_sets_no_name() {
    for stage in [Stage::direct_secured(), Stage::proxied_secured()] {
        let mut client = stage.connect();
        client.call("AUTH sesame");
        client.call("CLIENT SETNAME first");
        assert!(client.call("HELLO 3 SETNAME second AUTH default wrong").error().starts_with("WRONGPASS"));
        if stage.is_proxied() {
            assert_eq!(client.call("CLIENT GETNAME").text(), "first");
        }
    }
}

#[test]
fn before_a_login_an_unknown_command_is_not_called_unknown() {
    let [direct, proxied] = [Stage::direct_secured(), Stage::proxied_secured()];
    assert!(direct.connect().call("NOSUCH a").error().starts_with("ERR unknown command"));
    assert_eq!(proxied.connect().call("NOSUCH a").error(), "NOAUTH Authentication required.");
}

#[test]
fn inside_multi_the_proxys_own_commands_abort_it() {
    let refused = [
        "AUTH x",
        "AUTH default x",
        "HELLO 3 AUTH default x",
        "SUBSCRIBE c",
        "PSUBSCRIBE c*",
        "SSUBSCRIBE c",
        "UNSUBSCRIBE",
        "CLIENT REPLY OFF",
        "CLIENT REPLY SKIP",
    ];
    let stage = Stage::proxied();
    for line in refused {
        let mut client = stage.connect();
        let replies = asked(&mut client, &["MULTI", "SET aborted 1", line, "EXEC", "EXISTS aborted"]);
        let error = replies[2].error();
        assert!(
            error.starts_with("ERR redbouncer: '") && error.ends_with("' is not possible inside MULTI"),
            "{line}: {error}"
        );
        assert!(replies[3].error().starts_with("EXECABORT"), "{line}: {:?}", replies[3]);
        assert_eq!(replies[4].int(), 0);
    }
    // While replies are off, CLIENT REPLY ON is refused too, and nobody hears of it.
    let mut client = stage.connect();
    for line in ["CLIENT REPLY OFF", "MULTI", "CLIENT REPLY ON", "SET aborted 1", "EXEC"] {
        client.start(line);
    }
    assert_eq!(client.call("CLIENT REPLY ON").text(), "OK");
    assert_eq!(client.call("EXISTS aborted").int(), 0);
    let direct = Stage::direct();
    let mut client = direct.connect();
    for line in refused {
        assert_eq!(asked(&mut client, &["MULTI", line])[1].text(), "QUEUED", "{line}");
        client.call("DISCARD");
    }
}

#[test]
fn inside_multi_the_servers_version_and_acl_decide_what_is_answered() {
    // 7.0 has no CLIENT SETINFO; outside it is answered all the same.
    for stage in both() {
        if is_before(&stage, (7, 2)) {
            let mut client = stage.connect();
            assert_eq!(client.call("CLIENT SETINFO LIB-NAME x").is_error(), !stage.is_proxied());
            let replies = asked(&mut client, &["MULTI", "CLIENT SETINFO LIB-NAME x", "EXEC"]);
            assert_eq!(replies[1].error(), "ERR unknown subcommand 'SETINFO'. Try CLIENT HELP.");
            assert!(replies[2].error().starts_with("EXECABORT"), "{:?}", replies[2]);
        }
        stage.server.call("ACL SETUSER default -client|getname");
        let mut client = stage.connect();
        assert_eq!(client.call("CLIENT GETNAME").is_error(), !stage.is_proxied());
        let replies = asked(&mut client, &["MULTI", "CLIENT GETNAME", "EXEC"]);
        assert!(replies[1].error().starts_with("NOPERM"), "{:?}", replies[1]);
        assert!(replies[2].error().starts_with("EXECABORT"), "{:?}", replies[2]);
    }
}

#[test]
fn a_count_of_publish_in_a_script_is_the_servers() {
    for stage in both() {
        let _listening: Vec<Client> = (0..3)
            .map(|_| {
                let mut client = stage.connect();
                client.call("SUBSCRIBE news");
                client
            })
            .collect();
        let mut client = stage.connect();
        let connections = if stage.is_proxied() { 1 } else { 3 };
        assert_eq!(client.call("PUBLISH news x").int(), 3);
        let in_multi = asked(&mut client, &["MULTI", "PUBLISH news x", "EXEC"]);
        assert_eq!(in_multi[2].raw, "*1\r\n:3\r\n");
        let script = ["EVAL", "return redis.call('PUBLISH', 'news', 'x')", "0"];
        assert_eq!(client.ask(&script).int(), connections);
        let names = client.call("PUBSUB NUMSUB news");
        assert_eq!(names.items()[1], crate::harness::Value::Int(3));
    }
}

#[test]
fn a_blocked_call_shows_here_and_its_try_on_the_server() {
    let [direct, proxied] = both();
    for stage in [&direct, &proxied] {
        let mut blocked = stage.connect();
        let id = blocked.call("CLIENT ID").int();
        blocked.start("BLPOP jobs 0");
        let mut other = stage.connect();
        until("it waits", PATIENCE, || {
            rows_of(&other.call(&format!("CLIENT LIST ID {id}")))[0].get("flags") == "b"
        });
        let waiting = if stage.is_proxied() { "0" } else { "1" };
        until("the server is at rest", PATIENCE, || stage.server.info("blocked_clients") == waiting);
        let before = stage.server.calls_of("exec");
        other.call("RPUSH jobs x");
        assert_eq!(blocked.reply().items()[1].text(), "x");
        let tries = stage.server.calls_of("exec") - before;
        assert_eq!(tries > 0, stage.is_proxied(), "{tries} tries");
        assert_eq!(stage.server.calls_of("llen") > 0, stage.is_proxied());
        let mut reader = stage.connect();
        assert!(reader.call("XREAD BLOCK 20 STREAMS s $").is_nil());
        assert_eq!(stage.server.calls_of("xinfo|stream") > 0, stage.is_proxied());
    }
}

/// All that comes before the end.
fn said(stage: &Stage, bytes: &[u8]) -> String {
    let mut client = stage.connect();
    let _ = client.try_send(bytes);
    client.read_to_end(PATIENCE).0.escape_ascii().to_string()
}

#[test]
fn what_stood_before_a_browsers_words_is_answered() {
    let [direct, proxied] = both();
    let mut bytes = encode(&["SET", "k", "v"]);
    bytes.extend(b"POST / HTTP/1.1\r\n");
    assert_eq!(said(&direct, &bytes), "");
    assert_eq!(said(&proxied, &bytes), "+OK\\r\\n");
    for stage in [&direct, &proxied] {
        assert_eq!(stage.connect().call("GET k").text(), "v", "it ran all the same");
    }
}

/// Valkey 9 takes the word behind the quote for a part of the first.
#[test]
fn a_word_behind_a_closing_quote_is_an_error() {
    on_each(|direct, proxied, version| {
        let bytes = b"ECHO \"a\"b\r\nQUIT\r\n";
        let refused = "-ERR Protocol error: unbalanced quotes in request\\r\\n";
        assert_eq!(said(proxied, bytes), refused, "{}", version.name);
        let is_new = version.name.starts_with("valkey-9");
        assert_eq!(said(direct, bytes) != refused, is_new, "{}: {}", version.name, said(direct, bytes));
    });
}

#[test]
fn a_killed_connection_of_the_proxy_closes_its_client() {
    let stage = Stage::proxied();
    let (mut watching, mut idle) = (stage.connect(), stage.connect());
    asked(&mut watching, &["WATCH k", "GET k"]);
    idle.call("PING");
    let rows = stage.server.rows();
    for row in rows.iter().filter(|row| row.get("name").starts_with("redbouncer:")) {
        stage.server.call(&format!("CLIENT KILL ID {}", row.get("id")));
    }
    watching.expect_end(PATIENCE);
    // Who has nothing on a connection notices nothing.
    idle.expect_silence(Duration::from_millis(100));
}

#[test]
fn a_subscriber_is_refused_by_our_own_table() {
    on_each(|direct, proxied, version| {
        let mut clients = [direct.connect(), proxied.connect()];
        // A command of 7.2, which older servers do not know.
        let [theirs, ours] = clients.each_mut().map(|client| {
            client.call("SUBSCRIBE c");
            client.call("WAITAOF 0 0 0")
        });
        assert!(ours.error().contains("only (P|S)SUBSCRIBE"), "{}: {ours:?}", version.name);
        let is_old = is_before(direct, (7, 2));
        assert_eq!(theirs.error().starts_with("ERR unknown command"), is_old, "{}: {theirs:?}", version.name);
    });
}

#[test]
fn a_command_whose_client_has_left_runs() {
    for stage in both() {
        let mut client = stage.connect();
        client.call("PING");
        client.send(encode(&["SET", "left", "1"]));
        drop(client);
        let mut other = stage.connect();
        until("it has run", PATIENCE, || other.call("EXISTS left").int() == 1);
    }
}

#[test]
fn monitors_are_bounded_by_the_pool() {
    let stage = Stage::proxied_with(&["pool.max_connections=4", "pool.wait_timeout=200ms"]);
    let mut clients = Vec::new();
    let refused = (0..5).find_map(|_| {
        let mut client = stage.connect_resp3();
        let reply = client.call("MONITOR");
        clients.push(client);
        reply.is_error().then_some(reply)
    });
    let refused = refused.expect("an end");
    assert!(refused.error().starts_with("ERR redbouncer: "), "{refused:?}");
    assert!(stage.server.clients() <= 4);
}

#[test]
fn monitor_shows_the_proxys_addresses() {
    let stage = Stage::proxied();
    let mut monitor = stage.connect();
    assert_eq!(monitor.call("MONITOR").text(), "OK");
    let mut client = stage.connect();
    client.call("SET seen 1");
    let mut line = String::new();
    until("the command is shown", PATIENCE, || {
        line = monitor.reply().text();
        line.contains("\"seen\"")
    });
    assert!(!line.contains(&client.local_address().to_string()), "{line}");
}

#[test]
fn the_servers_acl_log_names_our_connections() {
    let stage = Stage::proxied();
    stage.server.call("ACL SETUSER default -incr");
    let mut client = stage.connect();
    client.call("CLIENT SETNAME shop");
    assert!(client.call("INCR n").error().starts_with("NOPERM"));
    let entry = format!("{:?}", stage.server.call("ACL LOG 1"));
    assert!(entry.contains("name=redbouncer:") && !entry.contains("shop"), "{entry}");
    assert!(!entry.contains(&client.local_address().to_string()), "{entry}");
}

#[test]
fn a_channel_that_is_withdrawn_closes_its_users_subscribers() {
    let stage = Stage::proxied_secured();
    stage.server.call("ACL SETUSER alice on >word ~* &* +@all");
    let mut subscribers: Vec<Client> = (0..2).map(|_| stage.connect()).collect();
    for (client, channel) in subscribers.iter_mut().zip(["gone", "kept"]) {
        client.call("AUTH alice word");
        client.call(&format!("SUBSCRIBE {channel}"));
    }
    stage.server.call("ACL SETUSER alice resetchannels &kept");
    for client in &mut subscribers {
        client.expect_end(PATIENCE);
    }
}

#[test]
fn who_is_idle_is_closed_where_the_setting_says_so() {
    let stage = Stage::proxied_with(&["client.idle_timeout=1s"]);
    let mut idle = stage.connect();
    idle.call("PING");
    idle.expect_end(PATIENCE);
}

#[test]
fn who_reads_nothing_is_not_closed_by_time() {
    let limits = [
        "client.keepalive_idle=1s",
        "client.keepalive_interval=1s",
        "client.keepalive_count=1",
        "client.user_timeout=2s",
        "client.output_soft_limit=64KiB",
    ];
    for stage in [Stage::direct(), Stage::proxied_with(&limits)] {
        stage.server.call(&format!("SET big {}", "x".repeat(4 << 20)));
        let mut deaf = stage.connect();
        deaf.shrink_receive_buffer();
        let id = deaf.call("CLIENT ID").int();
        let mut other = stage.connect();
        deaf.start("GET big");
        deaf.start("GET big");
        let is_there = || other.call(&format!("CLIENT LIST ID {id}")).text().contains("id=");
        throughout("it stays", Duration::from_secs(5), is_there);
        assert_eq!(deaf.reply().text().len(), 4 << 20);
        assert_eq!(deaf.reply().text().len(), 4 << 20);
    }
}

#[test]
fn who_has_said_farewell_waits_for_a_connection_like_any_other() {
    let stage = Stage::proxied_with(&["pool.max_connections=4"]);
    let mut holders: Vec<Client> = Vec::new();
    loop {
        let mut holder = stage.connect();
        holder.start("WATCH w");
        let is_full = holder.reply().is_error();
        if is_full {
            break;
        }
        holders.push(holder);
    }
    let leave = || {
        let mut leaving = stage.connect();
        leaving.start("WATCH w");
        leaving.half_close();
        leaving
    };
    let (bytes, ended) = leave().read_to_end(PATIENCE);
    assert!(bytes.starts_with(b"-ERR redbouncer: no upstream connection within 2s"), "{bytes:?}");
    assert_eq!(ended, Ended::Closed);
    let mut leaving = leave();
    until("it waits", PATIENCE, || stage.proxy().status()["waits"]["leases"] == 1);
    drop(holders);
    let (bytes, ended) = leaving.read_to_end(PATIENCE);
    assert_eq!((&bytes[..], ended), (&b"+OK\r\n"[..], Ended::Closed));
}

#[test]
fn readonly_is_refused_by_a_redis_and_kept_for_a_client_of_valkey() {
    on_each(|direct, proxied, version| {
        let expected = direct.connect().call("READONLY");
        let mut client = proxied.connect();
        let mut got = client.call("READONLY");
        // Until the server's version is known it is refused.
        until("the answer is the server's", PATIENCE, || {
            got = client.call("READONLY");
            got.raw == expected.raw
        });
        assert_eq!(got.is_error(), version.name.starts_with("redis"), "{}: {got:?}", version.name);
        assert_eq!(client.call("PING").text(), "PONG");
    });
}
