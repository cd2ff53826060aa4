//! Bytes: every way to write a request, right or wrong, gets Redis's answer, and nobody else notices.

use std::time::Duration;

use crate::harness::{Client, Ended, PATIENCE, Server, Stage, encode, until};

on_both!(
    requests_in_every_accepted_form_are_answered,
    malformed_requests_get_the_servers_error_and_are_closed,
    an_http_request_is_closed_without_an_answer,
    an_endless_line_is_refused,
    an_endless_length_is_refused,
    a_pipeline_cut_at_any_byte_is_answered_the_same,
    a_pipeline_sent_byte_by_byte_is_answered_the_same,
    what_stands_before_a_malformed_request_is_still_answered,
    what_is_pipelined_behind_quit_is_dropped,
    a_half_closed_client_gets_what_it_asked_for,
    a_value_of_many_megabytes_passes_unharmed,
    values_may_hold_any_bytes,
    a_deep_pipeline_is_answered_in_order,
    a_client_that_breaks_the_protocol_disturbs_nobody,
);

on_both!(secured: before_a_login_requests_are_small, before_a_login_everything_else_is_refused);

/// Sends the bytes on a connection of their own and expects exactly this answer, then PING still answered.
#[track_caller]
fn stays_open(stage: &Stage, bytes: &[u8], answer: &[u8]) {
    let mut client = stage.connect();
    client.send(bytes);
    let got = client.read_bytes(answer.len(), PATIENCE);
    assert_eq!(
        got.escape_ascii().to_string(),
        answer.escape_ascii().to_string(),
        "to {}",
        bytes.escape_ascii()
    );
    client.send("PING\r\n");
    assert_eq!(client.reply().text(), "PONG", "after {}", bytes.escape_ascii());
}

/// Sends the bytes on a connection of their own and expects exactly this answer, then the end.
#[track_caller]
fn gets_closed(stage: &Stage, bytes: &[u8], answer: &str) {
    let mut client = stage.connect();
    client.send(bytes);
    let shown = bytes[..bytes.len().min(60)].escape_ascii();
    let (got, ended) = client.read_to_end(PATIENCE);
    assert_eq!(String::from_utf8_lossy(&got), answer, "to {shown}");
    assert_ne!(ended, Ended::Late, "after {shown}");
}

fn requests_in_every_accepted_form_are_answered(stage: &Stage) {
    stays_open(stage, b"PING\r\n", b"+PONG\r\n");
    stays_open(stage, b"PING\n", b"+PONG\r\n");
    stays_open(stage, b"   ping   \r\n", b"+PONG\r\n");
    stays_open(stage, b"\r\n\r\n\nPING\r\n", b"+PONG\r\n");
    stays_open(stage, b"*0\r\n*-1\r\n*-5\r\nPING\r\n", b"+PONG\r\n");
    stays_open(stage, b"SET a \"b c\"\r\nGET a\r\n", b"+OK\r\n$3\r\nb c\r\n");
    stays_open(stage, b"SET a 'b\\'c'\r\nGET a\r\n", b"+OK\r\n$3\r\nb'c\r\n");
    stays_open(stage, b"SET a \"\\x41\\n\"\r\nGET a\r\n", b"+OK\r\n$2\r\nA\n\r\n");
    stays_open(stage, b"SET a \"\"\r\nGET a\r\n", b"+OK\r\n$0\r\n\r\n");
    stays_open(stage, b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n", b"$0\r\n\r\n");
    // Redis looks at the place of a terminator, not at what it is.
    stays_open(stage, b"*1\r\n$4\r\nPINGxx*1\r\n$4\r\nPING\r\n", b"+PONG\r\n+PONG\r\n");
    stays_open(stage, b"*1\rX$4\r\nPING\r\n", b"+PONG\r\n");
    stays_open(stage, b"*2\r\n$4\rXECHO\r\n$2\r\nhi\r\n", b"$2\r\nhi\r\n");
    stays_open(stage, b"*1\r\n$0\r\n\r\n", b"-ERR unknown command '', with args beginning with: \r\n");
    stays_open(
        stage,
        b"foo bar baz\r\n",
        b"-ERR unknown command 'foo', with args beginning with: 'bar' 'baz' \r\n",
    );
    stays_open(stage, b"GET\r\n", b"-ERR wrong number of arguments for 'get' command\r\n");
}

fn malformed_requests_get_the_servers_error_and_are_closed(stage: &Stage) {
    let multibulk = "-ERR Protocol error: invalid multibulk length\r\n";
    for length in ["2147483648", "abc", "99999999999999999999", " 3", "+1", "01", "-0", "", "-", "1x"] {
        gets_closed(stage, format!("*{length}\r\n$4\r\nPING\r\n").as_bytes(), multibulk);
    }
    let bulk = "-ERR Protocol error: invalid bulk length\r\n";
    for length in ["-1", "536870913", "abc", "99999999999999999999", "04", "+4", "-0", "", "4 "] {
        gets_closed(stage, format!("*1\r\n${length}\r\nPING\r\n").as_bytes(), bulk);
    }
    gets_closed(stage, b"*1\r\n:3\r\n", "-ERR Protocol error: expected '$', got ':'\r\n");
    gets_closed(stage, b"*1\r\n\r\n", "-ERR Protocol error: expected '$', got ' '\r\n");
    let quotes = "-ERR Protocol error: unbalanced quotes in request\r\n";
    gets_closed(stage, b"SET a \"b c\r\nGET a\r\n", quotes);
    gets_closed(stage, b"SET a 'x'y\r\n", quotes);
}

fn an_http_request_is_closed_without_an_answer(stage: &Stage) {
    gets_closed(stage, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\nSET stolen 1\r\n", "");
    gets_closed(stage, b"Host: localhost\r\n", "");
    let mut client = stage.connect();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\nPING\r\n");
    let (bytes, ended) = client.read_to_end(PATIENCE);
    assert!(!String::from_utf8_lossy(&bytes).contains("PONG"), "{bytes:?}");
    assert_ne!(ended, Ended::Late);
    assert_eq!(stage.connect().call("EXISTS stolen").int(), 0);
}

fn an_endless_line_is_refused(stage: &Stage) {
    gets_closed(stage, &[b'a'; 100_000], "-ERR Protocol error: too big inline request\r\n");
}

fn an_endless_length_is_refused(stage: &Stage) {
    let digits = "1".repeat(100_000);
    gets_closed(
        stage,
        format!("*{digits}").as_bytes(),
        "-ERR Protocol error: too big mbulk count string\r\n",
    );
    gets_closed(
        stage,
        format!("*1\r\n${digits}").as_bytes(),
        "-ERR Protocol error: too big bulk count string\r\n",
    );
}

/// A pipeline with requests of every form, and its answer.
fn mixed_pipeline() -> (Vec<u8>, Vec<u8>) {
    let mut request = encode(&["SET", "cut", "one\r\ntwo"]);
    request.extend(b"GET cut\r\n*0\r\n");
    request.extend(encode(&["ECHO", "$5\r\nhello"]));
    request.extend(b"\r\nNOSUCH 'a b'\r\n");
    request.extend(encode(&["SELECT", "0"]));
    request.extend(encode(&["MGET", "cut", "none"]));
    let answer = b"+OK\r\n$8\r\none\r\ntwo\r\n$9\r\n$5\r\nhello\r\n\
        -ERR unknown command 'NOSUCH', with args beginning with: 'a b' \r\n\
        +OK\r\n*2\r\n$8\r\none\r\ntwo\r\n$-1\r\n";
    (request, answer.to_vec())
}

fn a_pipeline_cut_at_any_byte_is_answered_the_same(stage: &Stage) {
    let (request, answer) = mixed_pipeline();
    let mut other = stage.connect();
    for cut in 1..request.len() {
        let mut client = stage.connect();
        client.send(&request[..cut]);
        // Somebody else's round trip in between, so that the two halves arrive apart.
        assert_eq!(other.call("PING").text(), "PONG");
        client.send(&request[cut..]);
        let got = client.read_bytes(answer.len(), PATIENCE);
        assert_eq!(got.escape_ascii().to_string(), answer.escape_ascii().to_string(), "cut at {cut}");
    }
}

fn a_pipeline_sent_byte_by_byte_is_answered_the_same(stage: &Stage) {
    let (request, answer) = mixed_pipeline();
    let mut client = stage.connect();
    for _ in 0..3 {
        for byte in &request {
            client.send([*byte]);
        }
    }
    let got = client.read_bytes(answer.len() * 3, PATIENCE);
    assert_eq!(got.escape_ascii().to_string(), answer.repeat(3).escape_ascii().to_string());
}

fn what_stands_before_a_malformed_request_is_still_answered(stage: &Stage) {
    let error = "-ERR Protocol error: invalid multibulk length\r\n";
    gets_closed(
        stage,
        b"PING\r\nSET k v\r\nGET k\r\n*x\r\nPING\r\n",
        &format!("+PONG\r\n+OK\r\n$1\r\nv\r\n{error}"),
    );
}

fn what_is_pipelined_behind_quit_is_dropped(stage: &Stage) {
    gets_closed(stage, b"SET q 1\r\nQUIT\r\nSET q 2\r\nPING\r\n", "+OK\r\n+OK\r\n");
    assert_eq!(stage.connect().call("GET q").text(), "1");
}

fn a_half_closed_client_gets_what_it_asked_for(stage: &Stage) {
    let mut client = stage.connect();
    client.send("PING\r\nECHO last\r\n");
    client.half_close();
    let (bytes, ended) = client.read_to_end(PATIENCE);
    assert_eq!(bytes, &b"+PONG\r\n$4\r\nlast\r\n"[..]);
    assert_eq!(ended, Ended::Closed);
}

fn a_value_of_many_megabytes_passes_unharmed(stage: &Stage) {
    let value: Vec<u8> =
        (0..12_000_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut client = stage.connect();
    let mut reader = stage.connect();
    let request = encode(&[b"SET".as_slice(), b"big", &value]);
    let sender = std::thread::spawn(move || {
        client.send(&request);
        assert_eq!(client.reply().text(), "OK");
    });
    sender.join().unwrap();
    reader.send("GET big\r\nPING\r\n");
    let header = format!("${}\r\n", value.len());
    let got = reader.read_bytes(header.len() + value.len() + 2, Duration::from_secs(30));
    assert!(got[header.len()..got.len() - 2] == value[..], "the value changed on its way");
    assert_eq!(reader.reply().text(), "PONG");
}

fn values_may_hold_any_bytes(stage: &Stage) {
    let every: Vec<u8> = (0..=255).chain(*b"\r\n*1\r\n$-1\r\n-ERR x\r\n>2\r\n").collect();
    let mut client = stage.connect();
    assert_eq!(client.ask(&[b"SET".as_slice(), &every, &every]).text(), "OK");
    let got = client.ask(&[b"GET".as_slice(), &every]);
    assert_eq!(got.value, crate::harness::Value::Bulk(every));
}

fn a_deep_pipeline_is_answered_in_order(stage: &Stage) {
    const DEPTH: i64 = 20_000;
    let mut client = stage.connect();
    let one = encode(&["INCR", "deep"]);
    let request = one.repeat(DEPTH.try_into().unwrap());
    client.send(request);
    for expected in 1..=DEPTH {
        assert_eq!(client.reply().int(), expected);
    }
}

fn a_client_that_breaks_the_protocol_disturbs_nobody(stage: &Stage) {
    let mut steady = stage.connect();
    for round in 0..40 {
        let mut rude = stage.connect();
        let garbage: &[&[u8]] =
            &[b"*1\r\n$x\r\n", b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$999999999\r\n", b"'\r\n", &[0xff; 70_000]];
        steady.start(&format!("ECHO before:{round}"));
        let _ = rude.try_send(garbage[round % garbage.len()]);
        steady.start(&format!("ECHO after:{round}"));
        assert_eq!(steady.reply().text(), format!("before:{round}"));
        assert_eq!(steady.reply().text(), format!("after:{round}"));
    }
}

fn before_a_login_requests_are_small(stage: &Stage) {
    gets_closed(stage, b"*11\r\n", "-ERR Protocol error: unauthenticated multibulk length\r\n");
    gets_closed(stage, b"*1\r\n$16385\r\n", "-ERR Protocol error: unauthenticated bulk length\r\n");
    let mut client = stage.connect();
    assert_eq!(client.call("AUTH sesame").text(), "OK");
    let many = vec!["x"; 40];
    assert_eq!(client.ask(&[&["DEL"], &many[..]].concat()).int(), 0);
    assert_eq!(client.ask(&["ECHO", &"x".repeat(20_000)]).text().len(), 20_000);
}

fn before_a_login_everything_else_is_refused(stage: &Stage) {
    let refused = "NOAUTH Authentication required.";
    let mut client = stage.connect();
    for command in
        ["PING", "GET a", "SET a b", "CLIENT ID", "MULTI", "SUBSCRIBE c", "COMMAND", "BLPOP k 0", "SELECT 1"]
    {
        assert_eq!(client.call(command).error(), refused, "{command}");
    }
    assert_eq!(client.call("GET").error(), "ERR wrong number of arguments for 'get' command");
    // The rest of the sentence differs between the versions of Redis.
    let hello = "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO ";
    assert!(client.call("HELLO").error().starts_with(hello));
    assert!(client.call("HELLO 3").error().starts_with(hello));
    assert_eq!(client.call("HELLO 4").error(), "NOPROTO unsupported protocol version");
    let wrong = "WRONGPASS invalid username-password pair or user is disabled.";
    assert_eq!(client.call("AUTH open").error(), wrong);
    assert_eq!(client.call("AUTH nobody sesame").error(), wrong);
    assert_eq!(client.call("HELLO 3 AUTH default open").error(), wrong);
    assert_eq!(client.call("AUTH a b c").error(), "ERR syntax error");
    assert_eq!(client.call("AUTH").error(), "ERR wrong number of arguments for 'auth' command");
    assert_eq!(client.call("GET a").error(), refused);
    assert_eq!(client.call("RESET").text(), "RESET");
    assert_eq!(client.call("AUTH sesame").text(), "OK");
    assert_eq!(client.call("PING").text(), "PONG");
    // A failed login changes nothing.
    assert_eq!(client.call("AUTH open").error(), wrong);
    assert_eq!(client.call("PING").text(), "PONG");
    assert_eq!(client.call("RESET").text(), "RESET");
    assert_eq!(client.call("PING").error(), refused);
    let greeted = client.call("HELLO 3 AUTH default sesame SETNAME late");
    assert_eq!(greeted.field("proto"), Some(crate::harness::Value::Int(3)));
    assert_eq!(client.call("CLIENT GETNAME").text(), "late");
    assert_eq!(stage.connect().call("QUIT").text(), "OK");
}

/// How much the proxy's memory grows while `work` runs.
fn growth(stage: &Stage, work: impl FnOnce()) -> u64 {
    let before = stage.proxy().resident();
    work();
    stage.proxy().resident().saturating_sub(before)
}

#[test]
fn announced_lengths_are_not_believed() {
    let stage = Stage::proxied();
    let mut steady = stage.connect();
    steady.call("PING");
    let mut clients: Vec<Client> = (0..200).map(|_| stage.connect()).collect();
    let before = stage.proxy().reserved();
    let grown = growth(&stage, || {
        for (number, client) in clients.iter_mut().enumerate() {
            let bytes: &[u8] = match number % 3 {
                0 => b"*2\r\n$4\r\nECHO\r\n$536870912\r\nx",
                1 => b"*2147483647\r\n$3\r\nDEL\r\n$1\r\nx\r\n",
                _ => b"*2147483647\r\n$536870912\r\nxyz",
            };
            client.send(bytes);
        }
        for _ in 0..100 {
            assert_eq!(steady.call("PING").text(), "PONG");
        }
    });
    assert!(grown < 16 << 20, "{grown} bytes for 200 announcements");
    let reserved = stage.proxy().reserved() - before;
    assert!(reserved < 32 << 20, "{reserved} bytes reserved for 200 announcements");
}

#[test]
fn half_a_command_is_closed_after_its_time_and_holds_up_nobody() {
    let stage = Stage::proxied_with(&["client.half_command_timeout=1s"]);
    let mut steady = stage.connect();
    let mut halves: Vec<Client> = (0..100).map(|_| stage.connect()).collect();
    for half in &mut halves {
        half.send("*2\r\n$4\r\nECHO\r\n$5\r\nhel");
    }
    assert_eq!(steady.call("PING").text(), "PONG");
    for half in &mut halves {
        let (bytes, ended) = half.read_to_end(Duration::from_secs(4));
        assert!(bytes.is_empty() || bytes.starts_with(b"-ERR"), "{bytes:?}");
        assert_ne!(ended, Ended::Late, "a half command was still open after 4 s");
    }
    assert_eq!(steady.call("PING").text(), "PONG");
}

#[test]
fn a_client_that_never_logs_in_is_closed_after_its_time() {
    let stage = Stage::before(
        Server::start_with(&["--requirepass", "sesame"]),
        &["auth.mode=passthrough", "client.login_timeout=1s"],
    );
    let mut late = stage.connect();
    let mut early = stage.connect();
    assert_eq!(early.call("AUTH sesame").text(), "OK");
    let (_, ended) = late.read_to_end(Duration::from_secs(4));
    assert_ne!(ended, Ended::Late);
    assert_eq!(early.call("PING").text(), "PONG");
}

#[test]
fn a_request_over_the_limit_is_cut_off_before_it_fills_the_memory() {
    let stage = Stage::proxied_with(&["client.request_limit=2MiB"]);
    let mut steady = stage.connect();
    steady.call("PING");
    let grown = growth(&stage, || {
        let mut huge = stage.connect();
        let _ = huge.try_send(encode(&[b"SET".as_slice(), b"huge", &vec![b'x'; 32 << 20]]));
        let (_, ended) = huge.read_to_end(PATIENCE);
        assert_ne!(ended, Ended::Late);
    });
    assert!(grown < 12 << 20, "{grown} bytes");
    assert_eq!(steady.call("EXISTS huge").int(), 0);
    let below = vec![b'x'; 1 << 20];
    assert_eq!(steady.ask(&[b"SET".as_slice(), b"below", &below]).text(), "OK");
}

#[test]
fn a_client_that_never_reads_stays_bounded_and_stops_nobody() {
    let stage = Stage::proxied();
    let mut steady = stage.connect();
    assert_eq!(steady.ask(&[b"SET".as_slice(), b"big", &vec![b'x'; 64 << 10]]).text(), "OK");
    let mut deaf = stage.connect();
    deaf.shrink_receive_buffer();
    let grown = growth(&stage, || {
        let many = encode(&["GET", "big"]).repeat(4_000);
        let sender = std::thread::spawn(move || {
            // The proxy stops reading requests, so this write ends by its time limit at the latest.
            let _ = deaf.try_send(many);
            deaf
        });
        for round in 0..300 {
            assert_eq!(steady.ask(&["ECHO", &round.to_string()]).text(), round.to_string());
        }
        let mut deaf = sender.join().unwrap();
        for round in 0..100 {
            assert_eq!(steady.ask(&["ECHO", &round.to_string()]).text(), round.to_string());
        }
        // It is alive, not broken: once it reads, everything comes.
        let header = b"$65536\r\n".len();
        for _ in 0..64 {
            let reply = deaf.read_bytes(header + (64 << 10) + 2, PATIENCE);
            assert_eq!(&reply[..header], b"$65536\r\n");
        }
    });
    assert!(grown < 120 << 20, "{grown} bytes for one client that does not read");
}

#[test]
fn a_server_limit_on_bulks_is_not_hit_on_a_shared_connection() {
    let server = Server::start_with(&["--proto-max-bulk-len", "1mb"]);
    let stage = Stage::before(server, &[]);
    let mut steady = stage.connect();
    assert_eq!(steady.call("SET here 1").text(), "OK");
    let id_before = stage.server.rows().iter().map(|row| row.get("id").to_owned()).collect::<Vec<_>>();
    let mut big = stage.connect();
    let _ = big.try_send(encode(&[b"SET".as_slice(), b"big", &vec![b'x'; 2 << 20]]));
    let (bytes, ended) = big.read_to_end(PATIENCE);
    assert_ne!(ended, Ended::Late);
    assert!(bytes.is_empty() || bytes.starts_with(b"-ERR Protocol error: invalid bulk length"), "{bytes:?}");
    assert_eq!(steady.call("GET here").text(), "1");
    until("the shared connection is still the same one", PATIENCE, || {
        let now: Vec<String> = stage.server.rows().iter().map(|row| row.get("id").to_owned()).collect();
        id_before.iter().all(|id| now.contains(id))
    });
}
