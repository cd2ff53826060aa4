//! Arguments above `proto-max-bulk-len`, which may be lowered and raised at any time: they end the connection that they go
//! over, so it is never one that others share.

use std::time::Duration;

use crate::harness::{Client, Ended, PATIENCE, Server, Stage, Value, encode, until};
use crate::hub::wait_for_blocked;

const MIB: usize = 1 << 20;

/// Clients of every shared connection: a lane, the blocking hub, the pub/sub hub.
struct Bystanders {
    steady: Client,
    blocked: Client,
    subscribed: Client,
    ids: Vec<String>,
}

fn ids(server: &Server) -> Vec<String> {
    let rows = server.rows();
    let shared = rows.iter().filter(|row| {
        let name = row.get("name");
        ["shared", "blocking", "pubsub", "control"].iter().any(|kind| name.ends_with(&format!(":{kind}")))
    });
    shared.map(|row| row.get("id").to_owned()).collect()
}

impl Bystanders {
    fn of(stage: &Stage) -> Self {
        let (mut steady, mut blocked, mut subscribed) = (stage.connect(), stage.connect(), stage.connect());
        assert_eq!(steady.call("SET here 1").text(), "OK");
        assert!(!steady.call("CLIENT LIST").is_error());
        assert!(!subscribed.call("SUBSCRIBE news").is_error());
        blocked.start("BLPOP jobs 0");
        wait_for_blocked(stage.address(), 1);
        Self { steady, blocked, subscribed, ids: ids(&stage.server) }
    }

    fn are_undisturbed(&mut self, stage: &Stage, what: &str) {
        let now = ids(&stage.server);
        assert!(
            self.ids.len() >= 4 && self.ids.iter().all(|id| now.contains(id)),
            "{what}: {:?} {now:?}",
            self.ids
        );
        assert_eq!(self.steady.call("GET here").text(), "1", "{what}");
        self.blocked.expect_silence(Duration::ZERO);
        self.subscribed.expect_silence(Duration::ZERO);
    }
}

fn words<'a>(line: &'a str, long: &'a [u8]) -> Vec<&'a [u8]> {
    line.split(' ').map(|word| if word == "LONG" { long } else { word.as_bytes() }).collect()
}

/// What a client says, with one argument of two megabytes, in every class of commands.
const LONG_ONES: [&str; 16] = [
    "SET k LONG",
    "MSET a 1 b LONG",
    "GET LONG",
    "PUBLISH news LONG",
    "PUBLISH LONG x",
    "EVAL LONG 0",
    "BLPOP LONG 1",
    "XREAD BLOCK 100 STREAMS LONG $",
    "SUBSCRIBE LONG",
    "PSUBSCRIBE LONG",
    "PUBSUB NUMSUB LONG",
    "PUBSUB CHANNELS LONG",
    "CONFIG SET maxmemory LONG",
    "NOSUCHCOMMAND LONG",
    "LONG",
    "WATCH LONG",
];

/// Ends as a direct client does: with the server's words, or (as it goes on writing) with a reset and none.
fn expect_refusal(mut client: Client, line: &str, long: &[u8]) {
    let _ = client.try_send(encode(&words(line, long)));
    let (bytes, ended) = client.read_to_end(PATIENCE);
    assert_ne!(ended, Ended::Late, "{line}: {bytes:?}");
    assert!(
        bytes.is_empty() || bytes.starts_with(b"-ERR Protocol error: invalid bulk length"),
        "{line}: {:?}",
        String::from_utf8_lossy(&bytes)
    );
}

#[test]
fn a_limit_that_was_lowered_ends_only_the_connection_of_who_exceeds_it() {
    let stage = Stage::proxied();
    let long = vec![b'x'; 2 * MIB];
    let mut bystanders = Bystanders::of(&stage);
    stage.server.call("CONFIG SET proto-max-bulk-len 1mb");
    for line in LONG_ONES {
        expect_refusal(stage.connect(), line, &long);
        bystanders.are_undisturbed(&stage, line);
    }
    let mut client = stage.connect();
    let mut block = encode(&[b"MULTI".as_slice()]);
    block.extend(encode(&words("SET k LONG", &long)));
    block.extend(encode(&[b"EXEC".as_slice()]));
    let _ = client.try_send(block);
    let (bytes, ended) = client.read_to_end(PATIENCE);
    assert_ne!(ended, Ended::Late);
    assert!(bytes.is_empty() || bytes.starts_with(b"+OK\r\n"), "{bytes:?}");
    bystanders.are_undisturbed(&stage, "MULTI");
    until("every lease is closed", PATIENCE, || {
        !stage.server.rows().iter().any(|row| row.get("name").ends_with(":leased"))
    });
}

/// Nobody but the server knows its limit there.
#[test]
fn where_the_limit_may_not_be_asked_it_ends_nobody_else() {
    let server = Server::start();
    server.call("ACL SETUSER default -config|get");
    let stage = Stage::before(server, &[]);
    let long = vec![b'x'; 2 * MIB];
    let mut bystanders = Bystanders::of(&stage);
    stage.server.call("CONFIG SET proto-max-bulk-len 1mb");
    for line in ["SET k LONG", "PUBLISH news LONG", "NOSUCHCOMMAND LONG"] {
        expect_refusal(stage.connect(), line, &long);
        bystanders.are_undisturbed(&stage, line);
    }
}

#[test]
fn long_arguments_work_where_the_server_takes_them() {
    let stage = Stage::proxied();
    let long = vec![b'x'; 2 * MIB];
    let (mut client, mut subscriber) = (stage.connect(), stage.connect());
    let call = |client: &mut Client, line: &str| {
        client.send(encode(&words(line, &long)));
        client.reply()
    };
    assert!(!call(&mut subscriber, "SUBSCRIBE LONG").is_error());
    assert!(!subscriber.call("SUBSCRIBE news").is_error());
    assert_eq!(call(&mut client, "SET k LONG").text(), "OK");
    assert_eq!(client.call("STRLEN k").int(), 2 << 20);
    assert_eq!(call(&mut client, "SET LONG v").text(), "OK");
    assert_eq!(call(&mut client, "GET LONG").text(), "v");
    assert_eq!(call(&mut client, "PUBLISH news LONG").int(), 1);
    assert_eq!(subscriber.reply().items()[2].text().len(), 2 << 20);
    assert_eq!(call(&mut client, "PUBLISH LONG hello").int(), 1);
    assert_eq!(subscriber.reply().items()[2].text(), "hello");
    assert_eq!(call(&mut client, "PUBSUB NUMSUB LONG").items()[1], Value::Int(1));
    assert!(call(&mut client, "BLPOP LONG 0.05").error().starts_with("WRONGTYPE"));
    assert!(call(&mut client, "NOSUCHCOMMAND LONG").error().starts_with("ERR unknown command"));
    assert!(call(&mut client, "LONG").error().starts_with("ERR unknown command"));
    assert!(call(&mut client, "EVAL LONG 0").is_error());
    client.send(encode(&[b"MULTI".as_slice()]));
    client.send(encode(&words("APPEND k LONG", &long)));
    client.send(encode(&[b"EXEC".as_slice()]));
    assert_eq!(client.reply().text(), "OK");
    assert_eq!(client.reply().text(), "QUEUED");
    assert_eq!(client.reply().items()[0], Value::Int(4 << 20));
    assert_eq!(client.call("GET k").text().len(), 4 << 20);
}

#[test]
fn a_call_that_waits_for_a_key_with_a_long_name_is_served() {
    let stage = Stage::proxied();
    let long = vec![b'x'; 2 * MIB];
    let (mut waiting, mut pushing) = (stage.connect(), stage.connect());
    waiting.send(encode(&words("BLPOP LONG 0", &long)));
    wait_for_blocked(stage.address(), 1);
    pushing.send(encode(&words("RPUSH LONG a", &long)));
    assert_eq!(pushing.reply().int(), 1);
    assert_eq!(waiting.reply().items()[1].text(), "a");
    assert_eq!(waiting.call("PING").text(), "PONG");
}

/// A full pool is no reason to refuse what went over a lane before.
#[test]
fn without_a_lease_a_long_argument_goes_over_a_lane() {
    let stage = Stage::proxied_with(&["pool.max_connections=4", "pool.wait_timeout=30s"]);
    let long = vec![b'x'; 2 * MIB];
    let mut holders: Vec<Client> = (0..3).map(|_| stage.connect()).collect();
    let (mut client, mut subscriber) = (stage.connect(), stage.connect());
    assert_eq!(client.call("PING").text(), "PONG");
    assert!(!subscriber.call("SUBSCRIBE news").is_error());
    holders[0].start("WATCH w");
    holders[1].start("WATCH w");
    holders[2].start("WATCH w");
    until("the pool is full", PATIENCE, || stage.proxy().status()["waits"]["leases"].as_u64() > Some(0));
    client.send(encode(&words("SET k LONG", &long)));
    assert_eq!(client.reply().text(), "OK");
    client.send(encode(&words("PUBLISH news LONG", &long)));
    assert_eq!(client.reply().int(), 1);
    assert_eq!(subscriber.reply().items()[2].text().len(), 2 << 20);
}

/// The same for a command that our table does not have, as those of modules.
#[test]
fn without_a_lease_a_long_argument_of_an_unknown_command_goes_over_a_lane() {
    let server = Server::start_with(&["--rename-command", "SET", "XSET"]);
    let stage = Stage::before(server, &["pool.max_connections=4", "pool.wait_timeout=1s"]);
    let long = vec![b'x'; 2 * MIB];
    let mut client = stage.connect();
    assert_eq!(client.call("XSET k v").text(), "OK");
    let mut holders: Vec<Client> = (0..3).map(|_| stage.connect()).collect();
    holders.iter_mut().for_each(|holder| holder.start("WATCH w"));
    until("the pool is full", PATIENCE, || stage.proxy().status()["waits"]["leases"].as_u64() > Some(0));
    client.send(encode(&words("XSET k LONG", &long)));
    assert_eq!(client.reply().text(), "OK");
}

/// The limit that was read at the login was the server's then.
#[test]
fn a_limit_that_was_raised_holds_at_once() {
    let server = Server::start_with(&["--proto-max-bulk-len", "1mb"]);
    let stage = Stage::before(server, &[]);
    let long = vec![b'x'; 2 * MIB];
    let mut client = stage.connect();
    assert_eq!(client.call("SET here 1").text(), "OK");
    expect_refusal(stage.connect(), "SET k LONG", &long);
    std::thread::sleep(Duration::from_millis(1_100));
    stage.server.call("CONFIG SET proto-max-bulk-len 4mb");
    let mut pipeline = encode(&[b"GET".as_slice(), b"here"]);
    pipeline.extend(encode(&words("SET k LONG", &long)));
    client.send(pipeline);
    assert_eq!(client.reply().text(), "1");
    assert_eq!(client.reply().text(), "OK");
    // On a connection of the client's own, too.
    stage.server.call("CONFIG SET proto-max-bulk-len 1mb");
    // The first words on a new lane.
    let mut other = stage.connect();
    assert_eq!(other.pipeline(&["SELECT 1", "GET k"])[0].text(), "OK");
    expect_refusal(stage.connect(), "SET k LONG", &long);
    std::thread::sleep(Duration::from_millis(1_100));
    stage.server.call("CONFIG SET proto-max-bulk-len 4mb");
    assert_eq!(client.call("WATCH here").text(), "OK");
    client.send(encode(&words("SET k LONG", &long)));
    assert_eq!(client.reply().text(), "OK");
}
