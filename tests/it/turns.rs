//! The wait for an upstream connection begins when the command's turn comes, however long its bytes have lain here.

use std::time::Duration;

use crate::harness::{Client, PATIENCE, Stage, encode, throughout};

/// Longer than `pool.wait_timeout` of these tests.
const LATE: Duration = Duration::from_millis(900);
const SETTINGS: &[&str] = &["pool.wait_timeout=400ms"];

/// What needs a connection that is not there yet, and how its reply begins.
const NEEDY: [(&str, &str); 4] = [
    ("MULTI", "+OK\r\n"),
    ("WATCH w", "+OK\r\n"),
    ("SELECT 7", "+OK\r\n"),
    ("SUBSCRIBE c", "*3\r\n$9\r\nsubscribe"),
];

fn words(command: &str) -> Vec<u8> {
    encode(&command.split(' ').collect::<Vec<_>>())
}

/// Reads the replies to `count` GETs of a big value of `length` bytes.
fn read_values(client: &mut Client, count: usize, length: usize) {
    for _ in 0..count {
        let reply = client.reply_within(PATIENCE);
        assert_eq!(reply.text().len(), length);
    }
}

#[test]
fn what_is_pipelined_behind_replies_that_are_read_late_gets_its_connection() {
    let stage = Stage::proxied_with(SETTINGS);
    let length = 3 << 20;
    stage.server.call(&format!("SET big {}", "v".repeat(length)));
    for (command, beginning) in NEEDY {
        let mut client = stage.connect();
        client.shrink_receive_buffer();
        client.send([words("GET big").repeat(3), words(command), words("PING")].concat());
        // The client does not read: its replies fill every buffer on the way, and its next command has to wait.
        throughout("the server answers others", LATE, || stage.server.call("EXISTS a").int() == 0);
        read_values(&mut client, 3, length);
        let reply = client.reply();
        assert!(reply.raw.starts_with(beginning.as_bytes()), "{command}: {reply:?}");
        assert!(!client.reply().is_error(), "{command}: what follows");
    }
}

#[test]
fn a_transaction_behind_replies_that_are_read_late_is_whole() {
    let stage = Stage::proxied_with(SETTINGS);
    let length = 3 << 20;
    stage.server.call(&format!("SET big {}", "v".repeat(length)));
    let mut client = stage.connect();
    client.shrink_receive_buffer();
    client.send([words("GET big").repeat(3), words("WATCH w"), words("MULTI"), words("SET a 1")].concat());
    throughout("nothing of it runs", LATE, || stage.server.call("EXISTS a").int() == 0);
    read_values(&mut client, 3, length);
    for expected in ["OK", "OK", "QUEUED"] {
        assert_eq!(client.reply().text(), expected);
    }
    stage.server.call("SET w changed");
    assert!(client.call("EXEC").is_nil(), "the watch holds");
    assert_eq!(stage.server.call("EXISTS a").int(), 0);
}

/// The hub's connection is wanted only when the script has been answered, which takes longer than the wait may.
#[test]
fn what_is_pipelined_behind_a_long_command_on_a_lease_gets_its_connection() {
    let stage = Stage::proxied_with(SETTINGS);
    let script = "local t = redis.call('TIME')[1] while redis.call('TIME')[1] - t < 2 do end return 'done'";
    for (command, beginning) in [("SUBSCRIBE c", "*3\r\n$9\r\nsubscribe"), ("CLIENT LIST", "$")] {
        let mut client = stage.connect();
        assert_eq!(client.call("WATCH w").text(), "OK");
        client.send([encode(&["EVAL", script, "0"]), words(command)].concat());
        assert_eq!(client.reply().text(), "done");
        let reply = client.reply();
        assert!(reply.raw.starts_with(beginning.as_bytes()), "{command}: {reply:?}");
    }
}

/// A pipeline's commands do not wait one after the other for a server that is not there.
#[test]
fn commands_that_have_waited_together_are_answered_together() {
    let server = crate::harness::Server::start();
    let address = server.address();
    drop(server);
    let settings = [SETTINGS, &["upstream.on_loss=error"]].concat();
    let proxy = crate::harness::Proxy::launch(&format!("redis://{address}"), &settings).unwrap();
    let mut client = proxy.connect();
    client.send(words("GET k").repeat(50));
    for _ in 0..50 {
        assert!(client.reply_within(Duration::from_secs(4)).is_error());
    }
}
