//! What is refused for want of a connection leaves no half-done state: a transaction runs whole and guarded or not at all,
//! and nothing that follows a refused command means something else than its client thinks.

use crate::harness::{Client, PATIENCE, Stage, encode, until};

const FULL: &str = "ERR redbouncer: no upstream connection within 300ms (";
const ABORTED: &str = "EXECABORT Transaction discarded because of previous errors.";

fn words(command: &str) -> Vec<u8> {
    encode(&command.split(' ').collect::<Vec<_>>())
}

/// A proxy without a free lease, and the clients that hold them all.
fn full(settings: &[&str]) -> (Stage, Vec<Client>) {
    let all = [&["pool.wait_timeout=300ms", "pool.max_connections=6"], settings].concat();
    let stage = Stage::proxied_with(&all);
    let mut holders = Vec::new();
    until("every lease is held", PATIENCE, || {
        let mut holder = stage.connect();
        let reply = holder.call("WATCH held");
        if reply.is_error() {
            assert!(reply.error().starts_with(FULL), "{reply:?}");
            return true;
        }
        holders.push(holder);
        false
    });
    (stage, holders)
}

fn assert_full(reply: &crate::harness::Reply) {
    assert!(reply.is_error() && reply.error().starts_with(FULL), "{reply:?}");
}

#[test]
fn nothing_behind_a_refused_multi_runs() {
    let (stage, _holders) = full(&[]);
    let mut client = stage.connect();
    assert_full(&client.call("MULTI"));
    for command in
        ["SET a 1", "GET a", "WATCH w", "MULTI", "SELECT 3", "SUBSCRIBE c", "PING", "BLPOP k 0", "FOO.BAR"]
    {
        let reply = client.call(command);
        assert!(reply.error().starts_with("ERR redbouncer: not queued"), "{command}: {reply:?}");
    }
    assert_eq!(client.call("EXEC").error(), ABORTED);
    assert_eq!(stage.server.call("EXISTS a").int(), 0);
    // The session is whole again, in the database it was in.
    assert_eq!(client.call("SET b 1").text(), "OK");
    assert_eq!(stage.server.call("EXISTS b").int(), 1);
    assert!(client.call("EXEC").error().starts_with("ERR EXEC without MULTI"));
}

#[test]
fn a_refused_transaction_ends_with_discard_and_reset_too() {
    let (stage, _holders) = full(&[]);
    for (end, reply) in [("DISCARD", "OK"), ("RESET", "RESET")] {
        let mut client = stage.connect();
        // In one write and not whole: the kind that takes a lease.
        client.send([words("MULTI"), words("SET a 1")].concat());
        assert_full(&client.reply());
        assert!(client.reply().is_error());
        assert_eq!(client.call(end).text(), reply);
        assert!(client.call("EXEC").error().starts_with("ERR EXEC without MULTI"), "{end}");
    }
    assert_eq!(stage.server.call("EXISTS a").int(), 0);
}

/// As libraries send it: members that are not plain keep the block from a lane.
#[test]
fn a_whole_transaction_that_needs_a_lease_is_refused_as_a_whole() {
    let (stage, _holders) = full(&[]);
    let mut client = stage.connect();
    let replies = client.pipeline(&["MULTI", "SET a 1", "SELECT 3", "SET a 1", "EXEC", "GET a"]);
    assert_full(&replies[0]);
    assert!(replies[1..4].iter().all(crate::harness::Reply::is_error), "{replies:?}");
    assert_eq!(replies[4].error(), ABORTED);
    assert!(replies[5].is_nil());
    // A block of plain members needs none.
    let replies = client.pipeline(&["MULTI", "SET a 1", "EXEC"]);
    assert_eq!(replies[2].items().len(), 1);
}

#[test]
fn a_transaction_behind_a_refused_watch_does_not_run() {
    let (stage, _holders) = full(&[]);
    let mut client = stage.connect();
    assert_full(&client.call("WATCH w"));
    // What is read to decide by is read.
    assert!(client.call("GET w").is_nil());
    assert!(client.call("MULTI").error().contains("WATCH"));
    assert!(client.call("SET a 1").is_error());
    assert_eq!(client.call("EXEC").error(), ABORTED);
    assert_eq!(stage.server.call("EXISTS a").int(), 0);
    // The next one is another transaction.
    let replies = client.pipeline(&["MULTI", "SET a 1", "EXEC"]);
    assert_eq!(replies[2].items().len(), 1, "{replies:?}");
}

#[test]
fn a_pipelined_transaction_behind_a_refused_watch_does_not_run() {
    let (stage, _holders) = full(&[]);
    let mut client = stage.connect();
    let replies = client.pipeline(&["WATCH w", "GET w", "MULTI", "SET a 1", "EXEC", "PING"]);
    assert_full(&replies[0]);
    assert!(replies[1].is_nil());
    assert!(replies[2].is_error() && replies[3].is_error());
    assert_eq!(replies[4].error(), ABORTED);
    assert_eq!(replies[5].text(), "PONG");
    assert_eq!(stage.server.call("EXISTS a").int(), 0);
    // A second WATCH in the same pipeline would guard only half of what its client thinks.
    let mut client = stage.connect();
    client
        .send([words("WATCH v"), words("WATCH w"), words("MULTI"), words("SET a 1"), words("EXEC")].concat());
    assert_full(&client.reply());
    assert!(client.reply().is_error());
    client.expect_end(PATIENCE);
    assert_eq!(stage.server.call("EXISTS a").int(), 0);
}

#[test]
fn a_refused_watch_is_forgotten_by_unwatch_and_by_a_new_watch() {
    let (stage, mut holders) = full(&[]);
    let mut forgetful = stage.connect();
    let mut persistent = stage.connect();
    assert_full(&forgetful.call("WATCH w"));
    assert_full(&persistent.call("WATCH w"));
    assert_eq!(forgetful.call("UNWATCH").text(), "OK");
    assert_eq!(forgetful.pipeline(&["MULTI", "INCR n", "EXEC"])[2].items().len(), 1);
    // Refused again, and then not: its client has seen the error and begins anew.
    assert_full(&persistent.call("WATCH w"));
    holders.clear();
    until("there is room again", PATIENCE, || persistent.call("WATCH w").text() == "OK");
    assert_eq!(persistent.call("MULTI").text(), "OK");
    assert_eq!(persistent.call("INCR n").text(), "QUEUED");
    assert_eq!(persistent.call("EXEC").items().len(), 1);
}

#[test]
fn who_is_refused_another_state_is_closed_behind_the_error() {
    let (stage, _holders) = full(&["pubsub.hub=false"]);
    for command in
        ["SUBSCRIBE c", "PSUBSCRIBE c", "SSUBSCRIBE c", "CLIENT NO-TOUCH ON", "MONITOR", "XGROUP.LIKE state"]
    {
        let mut client = stage.connect();
        client.send([words(command), words("SET a 1")].concat());
        let reply = client.try_reply(PATIENCE);
        if command.starts_with("XGROUP") {
            // The server says that it does not know it, which a lane carries.
            assert!(reply.unwrap().error().starts_with("ERR unknown command"), "{command}");
            continue;
        }
        assert_full(&reply.unwrap());
        client.expect_end(PATIENCE);
    }
    let closed = stage.proxy().metrics()["redbouncer_clients_closed_total{reason=\"state_refused\"}"];
    assert!((closed - 5.0).abs() < 0.1, "{closed}");
    // One request, one reply, and no more.
    for command in ["WAIT 1 10", "DEBUG SLEEP 0"] {
        let mut client = stage.connect();
        assert_full(&client.call(command));
        assert_eq!(client.call("PING").text(), "PONG");
    }
}
