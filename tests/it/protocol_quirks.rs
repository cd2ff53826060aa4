//! The letter of the protocol: what servers do that no page says, each fact on every server at hand, directly (it is so) and
//! through the proxy (it stays so). Where versions differ, the fact is that the proxy follows the one behind it.

use std::time::Duration;

use crate::harness::{Client, PATIENCE, Server, Stage, Version, encode, until};

/// Plays a scenario before every server, directly and through the proxy; what it returns must be the same.
#[track_caller]
fn on_each<T: PartialEq + std::fmt::Debug>(options: &[&str], scenario: impl Fn(&Stage) -> T) {
    for version in Version::all() {
        let settings: &[&str] =
            if options.contains(&"--requirepass") { &["auth.mode=passthrough"] } else { &[] };
        println!("--- {} directly", version.name);
        let direct = scenario(&Stage::before_none(Server::start_version(&version, options)));
        println!("--- {} through the proxy", version.name);
        let proxied = scenario(&Stage::before(Server::start_version(&version, options), settings));
        assert_eq!(direct, proxied, "{}", version.name);
    }
}

/// All that is said to these bytes and a QUIT behind them; printable.
fn said(stage: &Stage, bytes: &[u8]) -> String {
    let mut client = stage.connect();
    client.send([bytes, b"QUIT\r\n"].concat());
    client.read_to_end(PATIENCE).0.escape_ascii().to_string()
}

fn asked(client: &mut Client, lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| client.call(line).raw.escape_ascii().to_string()).collect()
}

#[test]
fn counts_below_one_ask_for_nothing_and_a_million_is_not_too_many() {
    on_each(&[], |stage| {
        let mut client = stage.connect();
        for nothing in ["*0\r\n", "*-1\r\n", "*-10\r\n", "\r\n"] {
            assert_eq!(said(stage, nothing.as_bytes()), "+OK\\r\\n", "{nothing:?}");
        }
        // One more than the limit that Redis 6.2 had.
        let is_old = stage.server.info("redis_version").starts_with("6.");
        let count = if is_old { 1_048_576 } else { 1_048_577 };
        // Which version is there is looked up a few times a second; until it is known the old limit holds.
        until("the limit is the server's", PATIENCE, || {
            !said(stage, format!("*{count}\r\n").as_bytes()).contains("invalid")
        });
        let mut request = format!("*{count}\r\n$6\r\nEXISTS\r\n").into_bytes();
        request.extend(b"$1\r\na\r\n".repeat(count - 1));
        client.send(request);
        assert_eq!(client.reply_within(Duration::from_secs(30)).int(), 0);
        let over = if is_old { "*1048577\r\n" } else { "*2147483648\r\n" };
        said(stage, over.as_bytes())
    });
}

#[test]
fn before_a_login_ten_words_of_sixteen_kilobytes_are_read() {
    on_each(&["--requirepass", "sesame"], |stage| {
        let ten = format!("*10\r\n$3\r\nDEL\r\n{}", "$1\r\na\r\n".repeat(9));
        let mut found = vec![said(stage, ten.as_bytes())];
        for over in ["*11\r\n".to_owned(), "*2\r\n$3\r\nGET\r\n$16385\r\n".to_owned()] {
            found.push(said(stage, over.as_bytes()));
        }
        let largest = format!("*2\r\n$3\r\nGET\r\n$16384\r\n{}\r\n", "k".repeat(16_384));
        found.push(said(stage, largest.as_bytes()));
        assert!(found[0].starts_with("-NOAUTH") && found[3].starts_with("-NOAUTH"), "{found:?}");
        assert!(!found[1].contains("+OK") && !found[2].contains("+OK"), "{found:?}");
        // After the login the same is nothing special.
        let mut client = stage.connect();
        client.call("AUTH sesame");
        assert!(client.call("DEL a b c d e f g h i j k").int() == 0);
        found
    });
}

#[test]
fn post_and_host_close_without_a_word_in_any_framing() {
    on_each(&[], |stage| {
        for bytes in [
            "POST / HTTP/1.1\r\n",
            "Host: x\n",
            "host: x\r\n",
            "*2\r\n$4\r\npost\r\n$1\r\n/\r\n",
            "*1\r\n$5\r\nHost:\r\n",
        ] {
            let mut client = stage.connect();
            client.send(bytes);
            client.expect_end(PATIENCE);
        }
    });
}

/// Redis steps over two bytes behind a bulk, whatever they are; Valkey looks, and what has arrived here is a request in any
/// case, so the proxy accepts it before both.
#[test]
fn what_stands_behind_a_bulk_is_not_looked_at() {
    for version in Version::all() {
        let request = b"*1\r\n$4\r\nPINGxx";
        let direct = Stage::before_none(Server::start_version(&version, &[]));
        let answer = said(&direct, request);
        let is_strict = answer.contains("invalid CRLF");
        assert!(is_strict == version.name.starts_with("valkey"), "{}: {answer}", version.name);
        let proxied = Stage::before(Server::start_version(&version, &[]), &[]);
        assert_eq!(said(&proxied, request), "+PONG\\r\\n+OK\\r\\n", "{}", version.name);
    }
}

#[test]
fn reset_logs_out_and_execs_refusal_aborts() {
    on_each(&["--requirepass", "sesame"], |stage| {
        let mut client = stage.connect();
        let lines = [
            "EXEC",
            "AUTH sesame",
            "GET a",
            "SELECT 3",
            "RESET",
            "GET a",
            "AUTH sesame",
            "GET a",
            "AUTH wrong",
            "GET a",
        ];
        let found = asked(&mut client, &lines);
        assert!(
            found[5].starts_with("-NOAUTH") && found[8].starts_with("-WRONGPASS") && found[9] == "$-1\\r\\n",
            "{found:?}"
        );
        found
    });
}

#[test]
fn a_select_in_a_transaction_stays_and_a_watch_keeps_its_database() {
    on_each(&[], |stage| {
        let mut client = stage.connect();
        let mut other = stage.connect();
        let mut found = asked(
            &mut client,
            &["SET k zero", "MULTI", "SELECT 1", "SET k one", "EXEC", "GET k", "SELECT 0", "GET k"],
        );
        // The key that is watched is that of database 0, also when EXEC comes from database 1.
        found.extend(asked(&mut client, &["WATCH k", "SELECT 1", "MULTI", "SET w 1"]));
        found.extend(asked(&mut other, &["SELECT 1", "SET k changed"]));
        found.extend(asked(&mut client, &["EXEC", "SELECT 0", "WATCH k", "SELECT 1", "MULTI", "SET w 2"]));
        found.extend(asked(&mut other, &["SELECT 0", "SET k changed"]));
        found.extend(asked(
            &mut client,
            &["EXEC", "GET w", "MULTI", "SELECT x", "SELECT 99", "EXEC", "GET w"],
        ));
        assert_eq!(found[14], "*1\\r\\n+OK\\r\\n");
        assert_eq!(found[22], "*-1\\r\\n");
        found
    });
}

/// Redis answers with an error and goes on; Valkey 8 and later fail the transaction.
#[test]
fn multi_and_watch_inside_multi_are_what_the_server_makes_of_them() {
    on_each(&[], |stage| {
        let mut found = Vec::new();
        for inside in ["MULTI", "WATCH k"] {
            found.extend(asked(&mut stage.connect(), &["MULTI", inside, "SET k v", "EXEC"]));
        }
        found
    });
}

#[test]
fn unsubscribing_from_what_was_never_subscribed_is_what_the_server_makes_of_it() {
    on_each(&[], |stage| {
        let mut found = Vec::new();
        for line in ["UNSUBSCRIBE", "UNSUBSCRIBE a", "PUNSUBSCRIBE", "PUNSUBSCRIBE a*"] {
            found.extend(asked(&mut stage.connect(), &[line, "PING"]));
            found.extend(asked(&mut stage.connect_resp3(), &[line, "PING"]));
        }
        found
    });
}

#[test]
fn the_servers_own_errors_are_passed_on() {
    on_each(&["--requirepass", "sesame"], |stage| {
        let mut client = stage.connect();
        let mut found = asked(&mut client, &["GET a", "AUTH default wrong", "AUTH sesame"]);
        found.extend(asked(
            &mut client,
            &[
                "EVALSHA ffffffffffffffffffffffffffffffffffffffff 0",
                "XREADGROUP GROUP g c STREAMS s >",
                "XREADGROUP GROUP g c BLOCK 5000 STREAMS s >",
                "XACK s",
                "NOSUCH a b",
                "OBJECT NOSUCH",
                "ACL NOSUCH",
                "ACL SETUSER reader on >word ~r:* +get +multi +exec +select +client|id +subscribe -@dangerous",
            ],
        ));
        let mut reader = stage.connect();
        found.extend(asked(
            &mut reader,
            &["AUTH reader wrong", "AUTH reader word", "GET r:a", "GET a", "SET r:a 1"],
        ));
        found.extend(asked(&mut reader, &["CONFIG GET x", "CLIENT KILL ID 9", "CLIENT UNBLOCK 9"]));
        found.extend(asked(&mut reader, &["MULTI", "SET r:a 1", "EXEC", "BLPOP r:l 0"]));
        assert!(found[12].starts_with("+OK") && found[14].starts_with("-NOPERM"), "{found:?}");
        found
    });
}

/// 7.0 sends the message first, later versions the reply; through the proxy either may be.
#[test]
fn an_own_message_comes_once_and_is_counted() {
    for version in Version::all() {
        let stage = Stage::before(Server::start_version(&version, &[]), &[]);
        let mut client = stage.connect_resp3();
        assert!(client.call("SUBSCRIBE news").is_push());
        let mut listener = stage.connect();
        listener.call("SUBSCRIBE news");
        client.start("PUBLISH news hello");
        let (one, other) = (client.reply(), client.reply());
        let (count, message) = if one.is_push() { (other, one) } else { (one, other) };
        assert_eq!(count.int(), 2, "{}", version.name);
        assert_eq!(message.raw, &b">3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$5\r\nhello\r\n"[..]);
        assert_eq!(listener.reply().items()[2].text(), "hello");
        client.expect_silence(Duration::from_millis(30));
    }
}

/// Bull 4 pipelines QUIT behind its blocked call and waits for the end.
#[test]
fn a_quit_behind_a_blocked_call_is_answered_when_the_call_is() {
    on_each(&[], |stage| {
        let mut client = stage.connect();
        client.send([encode(&["BRPOPLPUSH", "wait", "active", "0"]), encode(&["QUIT"])].concat());
        client.expect_silence(Duration::from_millis(50));
        let mut pusher = stage.connect();
        pusher.call("LPUSH wait job");
        assert_eq!(client.reply().text(), "job");
        assert_eq!(client.reply().text(), "OK");
        client.expect_end(PATIENCE);
        // And with a timeout.
        let mut client = stage.connect();
        client.send([encode(&["BRPOPLPUSH", "none", "active", "0.05"]), encode(&["QUIT"])].concat());
        let (bytes, _) = client.read_to_end(PATIENCE);
        bytes.escape_ascii().to_string()
    });
}

/// A HELLO between commands in flight changes the form of what comes behind it, and of nothing before.
#[test]
fn a_protocol_changes_in_mid_life_with_commands_in_flight() {
    on_each(&[], |stage| {
        let mut client = stage.connect();
        client.call("HSET h f v");
        let mut bytes = Vec::new();
        for round in 0..20 {
            for command in ["HGETALL h", "GET none", "ZADD z 1.5 m", "ZSCORE z m", "INCR n", "LPOP none 1"] {
                bytes.extend(encode(&command.split(' ').collect::<Vec<_>>()));
            }
            bytes.extend(encode(&["HELLO", if round % 2 == 0 { "3" } else { "2" }]));
        }
        client.send(&bytes);
        let replies: Vec<_> = (0..20 * 7).map(|_| client.reply()).collect();
        replies
            .chunks(7)
            .map(|round| round[..6].iter().map(|reply| reply.raw.clone()).collect())
            .collect::<Vec<Vec<_>>>()
    });
}
