//! What a connection is: protocol, database, name, id, reply mode. Answered as Redis answers, never seen by another.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::{Client, PATIENCE, PairedServers, Row, Stage, Value, encode};

on_both!(
    client_ids_are_unique_and_stay,
    a_database_belongs_to_its_client_alone,
    many_databases_are_kept_apart,
    a_name_belongs_to_its_client_alone,
    client_list_shows_every_client_once,
    client_info_is_the_clients_own_row,
    client_list_finds_clients_by_id,
    client_kill_by_id_ends_that_client_and_no_other,
    client_kill_by_address_ends_that_client,
    quit_says_ok_and_closes,
    reset_forgets_everything,
    a_protocol_belongs_to_its_client_alone,
    local_answers_keep_their_place_among_the_servers,
);

#[test]
fn hello_is_answered_in_the_servers_shape_and_words() {
    let twins = PairedServers::start();
    twins.agree(&[
        "HELLO",
        "HELLO 2",
        "HELLO 3",
        "HELLO",
        "HELLO 1",
        "HELLO 4",
        "HELLO x",
        "HELLO 3 FOO",
        "HELLO 3 SETNAME",
        "HELLO 3 SETNAME \"a b\"",
        "CLIENT GETNAME",
        "HELLO 2 SETNAME zed",
        "CLIENT GETNAME",
        "HELLO 3 AUTH default",
        "HELLO 3 AUTH default anything",
        "HELLO 3 AUTH nobody foo",
        "HELLO 2 SETNAME a SETNAME b",
        "CLIENT GETNAME",
        "HELLO 3 SETNAME q AUTH nobody foo",
        "HGETALL none",
        "hello 3 setname lower",
        "CLIENT GETNAME",
    ]);
}

#[test]
fn auth_without_a_password_is_answered_in_the_servers_words() {
    let twins = PairedServers::start();
    twins.agree(&["AUTH foo", "AUTH default foo", "AUTH nobody x", "AUTH a b c", "AUTH", "PING"]);
}

#[test]
fn auth_with_a_password_is_answered_in_the_servers_words() {
    let twins = PairedServers::start_with(&["--requirepass", "sesame"], &["auth.mode=passthrough"]);
    twins.agree(&[
        "PING",
        "AUTH wrong",
        "AUTH sesame",
        "PING",
        "AUTH default sesame",
        "AUTH default wrong",
        "PING",
        "HELLO 3 AUTH default sesame SETNAME me",
        "CLIENT GETNAME",
        "ACL WHOAMI",
        "RESET",
        "GET a",
    ]);
}

#[test]
fn select_is_answered_in_the_servers_words() {
    let twins = PairedServers::start();
    twins.agree(&[
        "SELECT 1",
        "SET where one",
        "SELECT 16",
        "GET where",
        "SELECT -1",
        "SELECT abc",
        "SELECT 99999999999999999999",
        "SELECT 2147483648",
        "SELECT 0x1",
        "SELECT \"\"",
        "SELECT",
        "SELECT 1 2",
        "GET where",
        "SELECT 15",
        "GET where",
        "SELECT 0",
        "GET where",
    ]);
}

#[test]
fn client_subcommands_are_answered_in_the_servers_words() {
    let twins = PairedServers::start();
    let script = [
        "CLIENT",
        "CLIENT FOO",
        "CLIENT FOO BAR",
        "CLIENT ID x",
        "CLIENT GETNAME",
        "CLIENT SETNAME",
        "CLIENT SETNAME \"a b\"",
        "CLIENT SETNAME \"a\\nb\"",
        "CLIENT SETNAME x",
        "CLIENT GETNAME",
        "CLIENT SETNAME \"\"",
        "CLIENT GETNAME",
        "CLIENT INFO x",
        "CLIENT LIST ID",
        "CLIENT LIST TYPE foo",
        "CLIENT LIST FOO",
        "CLIENT LIST ID 1 a",
        "CLIENT LIST ID 99999999",
        "CLIENT NO-EVICT",
        "CLIENT NO-EVICT on",
        "CLIENT NO-EVICT off",
        "CLIENT NO-EVICT foo",
        "CLIENT REPLY",
        "CLIENT REPLY foo",
        "CLIENT REPLY on",
        "CLIENT KILL 1.2.3.4:5",
        "CLIENT KILL ID 99999999",
        "CLIENT KILL ID a",
        "CLIENT KILL TYPE foo",
        "CLIENT KILL",
        "CLIENT UNBLOCK 99999999",
        "CLIENT UNBLOCK a",
        "CLIENT UNBLOCK 1 FOO",
        "CLIENT CACHING yes",
        "CLIENT TRACKING off",
        "CLIENT TRACKINGINFO",
        "CLIENT GETREDIR",
        "CLIENT PAUSE a",
        "CLIENT UNPAUSE",
    ];
    twins.agree(&script);
    let in_resp3: Vec<&str> = std::iter::once("HELLO 3").chain(script).collect();
    twins.agree(&in_resp3);
}

#[test]
fn ordinary_commands_are_answered_byte_for_byte() {
    let twins = PairedServers::start();
    let script = [
        "PING",
        "PING hello",
        "PING a b",
        "ECHO hello",
        "ECHO",
        "SET s value",
        "GET s",
        "GET none",
        "INCR n",
        "INCR s",
        "LPUSH s x",
        "RPUSH l a b c",
        "LRANGE l 0 -1",
        "HSET h f v g w",
        "HGETALL h",
        "SADD set m",
        "SMEMBERS set",
        "ZADD z 1.5 a 2 b",
        "ZRANGE z 0 -1 WITHSCORES",
        "ZSCORE z a",
        "MGET s none l",
        "XADD x 1-1 f v",
        "XRANGE x - +",
        "XREAD STREAMS x 0",
        "EVAL \"return {1,'a',redis.status_reply('fine'),false}\" 0",
        "EVAL \"return redis.error_reply('MY error')\" 0",
        "EVALSHA ffffffffffffffffffffffffffffffffffffffff 0",
        "SCRIPT EXISTS ffffffffffffffffffffffffffffffffffffffff",
        "SCAN 0 COUNT 1000 MATCH nothing*",
        "NOSUCHCOMMAND a b",
        "GET",
        "SET a",
        "TYPE l",
        "OBJECT ENCODING n",
        "DEBUG SLEEP 0",
        "CONFIG GET databases",
        "COMMAND COUNT",
        "DBSIZE",
        "CLUSTER INFO",
        "ACL WHOAMI",
        "WAIT 0 10",
        "READONLY",
        "READWRITE",
        "ASKING",
        "MEMORY USAGE none",
        "SORT none",
        "LCS s s",
        "GEOPOS none a",
        "RESET",
        "FLUSHALL",
    ];
    twins.agree(&script);
    let in_resp3: Vec<&str> = std::iter::once("HELLO 3").chain(script).collect();
    twins.agree(&in_resp3);
}

fn client_ids_are_unique_and_stay(stage: &Stage) {
    let mut clients: Vec<Client> = (0..20).map(|_| stage.connect()).collect();
    let ids: Vec<i64> = clients.iter_mut().map(|client| client.call("CLIENT ID").int()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    for (client, id) in clients.iter_mut().zip(&ids) {
        assert_eq!(client.call("CLIENT ID").int(), *id);
        assert_eq!(client.call("HELLO 3").field("id"), Some(Value::Int(*id)));
        assert_eq!(Row::parse(client.call("CLIENT INFO").text().trim()).get("id"), id.to_string());
        assert!(*id > 0 && *id < 1 << 53);
    }
}

fn a_database_belongs_to_its_client_alone(stage: &Stage) {
    let mut one = stage.connect();
    let mut two = stage.connect();
    assert_eq!(one.call("SELECT 1").text(), "OK");
    assert_eq!(one.call("SET where one").text(), "OK");
    assert!(two.call("GET where").is_nil());
    assert_eq!(two.call("SET where zero").text(), "OK");
    // Pipelined switches hold for what stands behind them, not before.
    let replies = two.pipeline(&["GET where", "SELECT 1", "GET where", "SELECT 0", "GET where"]);
    let texts: Vec<String> = replies.iter().map(crate::harness::Reply::text).collect();
    assert_eq!(texts, ["zero", "OK", "one", "OK", "zero"]);
    assert_eq!(one.call("SELECT 99").error(), "ERR DB index is out of range");
    assert_eq!(one.call("GET where").text(), "one");
}

fn many_databases_are_kept_apart(stage: &Stage) {
    let mut clients: Vec<Client> = (0..16).map(|_| stage.connect()).collect();
    for round in 0..6 {
        for (number, client) in clients.iter_mut().enumerate() {
            let database = (number + round) % 16;
            client.send(encode(&["SELECT".to_owned(), database.to_string()]));
            client.send(encode(&["INCR".to_owned(), format!("count:{database}")]));
            client.send(encode(&["GET".to_owned(), format!("count:{}", (database + 1) % 16)]));
        }
        for client in &mut clients {
            assert_eq!(client.reply_within(Duration::from_secs(20)).text(), "OK");
            assert_eq!(client.reply_within(Duration::from_secs(20)).int(), i64::try_from(round).unwrap() + 1);
            assert!(
                client.reply_within(Duration::from_secs(20)).is_nil(),
                "a key of another database was seen"
            );
        }
    }
}

fn a_name_belongs_to_its_client_alone(stage: &Stage) {
    let mut named = stage.connect();
    let mut plain = stage.connect();
    assert_eq!(named.call("CLIENT SETNAME alice").text(), "OK");
    assert!(plain.call("CLIENT GETNAME").is_nil());
    assert_eq!(named.call("CLIENT GETNAME").text(), "alice");
    assert!(stage.connect().call("CLIENT GETNAME").is_nil());
}

/// The rows a client is shown.
fn listing(client: &mut Client, command: &str) -> Vec<Row> {
    client.call(command).text().lines().filter(|line| !line.is_empty()).map(Row::parse).collect()
}

fn client_list_shows_every_client_once(stage: &Stage) {
    let mut clients: Vec<Client> = (0..12).map(|_| stage.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.call(&format!("CLIENT SETNAME worker:{number}")).text(), "OK");
        assert_eq!(client.call(&format!("SELECT {}", number % 3)).text(), "OK");
    }
    let addresses: Vec<String> = clients.iter().map(|client| client.local_address().to_string()).collect();
    let rows = listing(&mut clients[0], "CLIENT LIST");
    for (number, address) in addresses.iter().enumerate() {
        let name = format!("worker:{number}");
        let mine: Vec<&Row> = rows.iter().filter(|row| row.get("name") == name).collect();
        assert_eq!(mine.len(), 1, "{name} in {rows:?}");
        assert_eq!(mine[0].get("addr"), address);
        assert_eq!(mine[0].get("db"), (number % 3).to_string());
    }
    let ours = rows.iter().filter(|row| row.get("name").starts_with("redbouncer:")).count();
    assert_eq!(ours, 0, "the proxy's own connections are nobody's clients");
    assert_eq!(listing(&mut clients[0], "CLIENT LIST TYPE normal").len(), rows.len());
}

fn client_info_is_the_clients_own_row(stage: &Stage) {
    let mut client = stage.connect();
    client.call("CLIENT SETNAME me");
    client.call("SELECT 4");
    let row = Row::parse(client.call("CLIENT INFO").text().trim());
    assert_eq!(row.get("name"), "me");
    assert_eq!(row.get("db"), "4");
    assert_eq!(row.get("addr"), client.local_address().to_string());
    assert_eq!(row.get("cmd"), "client|info");
    assert_eq!(row.get("user"), "default");
    assert_eq!(row.get("multi"), "-1");
}

fn client_list_finds_clients_by_id(stage: &Stage) {
    let mut one = stage.connect();
    let mut two = stage.connect();
    let ids = [one.call("CLIENT ID").int(), two.call("CLIENT ID").int()];
    let rows = listing(&mut one, &format!("CLIENT LIST ID {} {}", ids[0], ids[1]));
    let found: BTreeSet<i64> = rows.iter().map(|row| row.get("id").parse().unwrap()).collect();
    assert_eq!(found, BTreeSet::from(ids));
}

fn client_kill_by_id_ends_that_client_and_no_other(stage: &Stage) {
    let mut victim = stage.connect();
    let mut other = stage.connect();
    let id = victim.call("CLIENT ID").int();
    other.call("PING");
    assert_eq!(other.call(&format!("CLIENT KILL ID {id}")).int(), 1);
    victim.expect_end(PATIENCE);
    assert_eq!(other.call("PING").text(), "PONG");
    assert_eq!(other.call(&format!("CLIENT KILL ID {id}")).int(), 0);
}

fn client_kill_by_address_ends_that_client(stage: &Stage) {
    let mut victim = stage.connect();
    let mut other = stage.connect();
    victim.call("PING");
    assert_eq!(other.call(&format!("CLIENT KILL {}", victim.local_address())).text(), "OK");
    victim.expect_end(PATIENCE);
    assert_eq!(other.call("PING").text(), "PONG");
}

fn quit_says_ok_and_closes(stage: &Stage) {
    let mut client = stage.connect();
    client.start("QUIT");
    assert_eq!(client.reply().text(), "OK");
    client.expect_end(PATIENCE);
}

fn reset_forgets_everything(stage: &Stage) {
    let mut client = stage.connect();
    for command in
        ["SET r zero", "SELECT 2", "SET r two", "CLIENT SETNAME named", "WATCH r", "MULTI", "SET r three"]
    {
        assert!(!client.call(command).is_error(), "{command}");
    }
    assert_eq!(client.call("RESET").text(), "RESET");
    assert!(client.call("CLIENT GETNAME").is_nil());
    assert_eq!(client.call("GET r").text(), "zero");
    assert_eq!(client.call("EXEC").error(), "ERR EXEC without MULTI");
    client.call("HELLO 3");
    assert_eq!(client.call("RESET").text(), "RESET");
    // RESP2 again: a null is a bulk of length -1.
    assert_eq!(client.call("GET none").raw, &b"$-1\r\n"[..]);
}

fn a_protocol_belongs_to_its_client_alone(stage: &Stage) {
    let mut old = stage.connect();
    let mut new = stage.connect_resp3();
    new.call("HSET h f v");
    for _ in 0..5 {
        assert_eq!(old.call("GET none").raw, &b"$-1\r\n"[..]);
        assert_eq!(new.call("GET none").raw, &b"_\r\n"[..]);
        assert_eq!(old.call("HGETALL h").raw, &b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n"[..]);
        assert_eq!(new.call("HGETALL h").raw, &b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n"[..]);
    }
    // Back and forth inside one pipeline.
    let replies = new.pipeline(&["HELLO 2", "GET none", "HELLO 3", "GET none", "HGETALL h"]);
    assert_eq!(replies[1].raw, &b"$-1\r\n"[..]);
    assert_eq!(replies[3].raw, &b"_\r\n"[..]);
    assert_eq!(replies[4].raw[0], b'%');
}

fn local_answers_keep_their_place_among_the_servers(stage: &Stage) {
    let mut client = stage.connect();
    let id = client.call("CLIENT ID").int();
    client.call("CLIENT SETNAME steady");
    let commands = [
        "ECHO 1",
        "CLIENT ID",
        "ECHO 2",
        "CLIENT GETNAME",
        "SELECT 1",
        "ECHO 3",
        "NOSUCH",
        "CLIENT ID",
        "BLPOP none 0.01",
        "ECHO 4",
        "CLIENT GETNAME",
        "SELECT 0",
        "WATCH w",
        "ECHO 5",
        "CLIENT ID",
        "UNWATCH",
        "ECHO 6",
        "MULTI",
        "ECHO 7",
        "EXEC",
        "CLIENT ID",
        "ECHO 8",
    ];
    for _ in 0..20 {
        let replies = client.pipeline(&commands);
        for (command, reply) in commands.iter().zip(&replies) {
            match command.split_once(' ') {
                Some(("ECHO", "7")) => assert_eq!(reply.text(), "QUEUED"),
                Some(("ECHO", word)) => assert_eq!(reply.text(), word),
                Some(("CLIENT", "ID")) => assert_eq!(reply.int(), id),
                Some(("CLIENT", _)) => assert_eq!(reply.text(), "steady"),
                Some(("BLPOP", _)) => assert!(reply.is_nil()),
                None if *command == "EXEC" => assert_eq!(reply.items(), [Value::bulk("7")]),
                None if *command == "NOSUCH" => assert!(reply.is_error()),
                _ => assert_eq!(reply.text(), "OK", "{command}"),
            }
        }
    }
}
