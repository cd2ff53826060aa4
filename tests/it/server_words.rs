//! A server that says what a terminal or a reader of logs would obey: none of it gets through as it is.

use std::time::Duration;

use crate::harness::{FakeServer, PATIENCE, Proxy, bulk, until};

/// ESC and CSI (7 and 8 bits), DEL, BEL, a change of direction.
const EVIL: &str = "\u{1b}[31mX\u{9b}2J\u{7f}\u{7}\u{202e}";

fn hello() -> String {
    let named = ["server", "version", "mode", "role"];
    let text: String = named.iter().map(|key| bulk(key) + &bulk(EVIL)).collect();
    format!("*14\r\n{text}{}:2\r\n{}:7\r\n{}*0\r\n", bulk("proto"), bulk("id"), bulk("modules"))
}

fn info() -> String {
    let fields =
        ["redis_version", "redis_mode", "role", "maxmemory_human", "maxmemory_policy", "master_host", "os"];
    let text: String = fields.iter().map(|field| format!("{field}:{EVIL}\r\n")).collect();
    bulk(&format!("# Server\r\nrun_id:{EVIL}\r\n{text}maxclients:100\r\nconnected_clients:3\r\n"))
}

/// Serves, and refuses what may be refused in its own words.
fn evil() -> FakeServer {
    FakeServer::server(|words| match words {
        ["HELLO", "2" | "3", ..] => hello(),
        ["PING"] => "+PONG\r\n".to_owned(),
        ["PING", word] => bulk(word),
        ["CLIENT", "ID"] => ":7\r\n".to_owned(),
        ["CLIENT", "LIST", ..] => {
            let row = |id, name| {
                format!(
                    "id={id} addr=10.0.0.{id}:1 laddr=x:2 name={name} age=1 idle=0 flags=N db=0 lib-name={name}\n"
                )
            };
            bulk(&format!("{}{}", row(7, "redbouncer"), row(8, EVIL)))
        }
        ["INFO", ..] => info(),
        ["CONFIG", "GET", key] => format!("*2\r\n{}{}", bulk(key), bulk(EVIL)),
        _ => format!("-{EVIL} {EVIL}\r\n"),
    })
}

/// Refuses everybody.
fn hostile() -> FakeServer {
    FakeServer::server(|_| format!("-WRONGPASS {EVIL}\r\n"))
}

fn expect_tame(what: &str, text: &str) {
    assert!(!text.is_empty(), "{what}");
    for sign in EVIL.chars().filter(|sign| !sign.is_ascii_graphic()) {
        assert!(!text.contains(sign), "{what} has {sign:?}: {text:?}");
    }
}

#[test]
fn its_words_never_reach_a_terminal_as_they_are() {
    for server in [evil(), hostile()] {
        for command in [&["check"][..], &["check", "--json"], &["cleanup"], &["cleanup", "--json"]] {
            let url = server.url();
            let arguments = [command, &["--upstream", &url]].concat();
            let (exit, stdout) = Proxy::run_to_end(&arguments, &[]);
            expect_tame(command[0], &format!("{stdout}{}", exit.stderr));
            let said = format!("{stdout}{}", exit.stderr);
            assert!(said.contains("u{1b}") || said.contains("u001b"), "{arguments:?}: {said}");
        }
    }
}

#[test]
fn its_words_never_reach_a_log_as_they_are() {
    let server = evil();
    let proxy = Proxy::launch(&server.url(), &["pool.wait_timeout=300ms", "log.level=debug"]).unwrap();
    for line in ["SET k v", "NOSUCH x", "BLPOP k 0.1", "MULTI", "SELECT 1", "CLIENT LIST", "SUBSCRIBE c"] {
        proxy.connect().try_send(bytes_of(line)).unwrap();
    }
    until("it has logged the server's words", PATIENCE, || proxy.log().contains("u{1b}"));
    std::thread::sleep(Duration::from_millis(500));
    expect_tame("the log", &proxy.log());
    let (code, status) = proxy.http("/status");
    assert_eq!(code, 200);
    expect_tame("/status", &status);
    // One that lets nobody in ends the start.
    let (exit, _) = Proxy::run_to_end(&["--upstream", &hostile().url(), "--listen", "127.0.0.1:0"], &[]);
    assert!(exit.stderr.contains("u{1b}"), "{exit:?}");
    expect_tame("the log of a start", &exit.stderr);
}

fn bytes_of(line: &str) -> Vec<u8> {
    crate::harness::encode(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>())
}
