//! A server (or what stands in for one) that gives a reply too many or too few: nobody goes on hearing others' replies.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::harness::{FakeServer, PATIENCE, Proxy, bulk, until};

/// A server that keeps each GET's reply until the next command comes, so that its lane is never quiet, and that miscounts
/// for the key `wrong`: `wrong` is its reply.
fn miscounting(wrong: &'static str) -> FakeServer {
    FakeServer::server_of_connections(move || {
        let kept = Mutex::new(String::new());
        move |words: &[&str]| keep(&kept, words, wrong)
    })
}

/// What is said to `words`: first what was kept.
fn keep(kept: &Mutex<String>, words: &[&str], wrong: &str) -> String {
    let mut kept = kept.lock().unwrap();
    let before = std::mem::take(&mut *kept);
    let answer = match words {
        ["HELLO", ..] => "-ERR unknown command 'HELLO'\r\n".to_owned(),
        ["PING", word] => bulk(word),
        ["PING"] => "+PONG\r\n".to_owned(),
        ["GET", "wrong"] => {
            *kept = wrong.to_owned();
            String::new()
        }
        ["GET", key] => {
            *kept = bulk(key);
            String::new()
        }
        ["INFO", ..] => bulk("redis_version:7.0.15\r\n"),
        ["CLIENT", "ID"] => ":1\r\n".to_owned(),
        _ => "+OK\r\n".to_owned(),
    };
    before + &answer
}

#[test]
fn a_reply_too_many_or_too_few_on_a_busy_lane_ends_it() {
    for (wrong, what) in [("$1\r\na\r\n$1\r\nb\r\n", "too many"), ("", "too few")] {
        let fake = miscounting(wrong);
        let settings = ["pool.lanes_per_key=1", "hygiene.heartbeat=1s", "hygiene.orphan_after=5s"];
        let proxy = Proxy::launch(&fake.url(), &settings).unwrap();
        // Nothing is wrong before, however long it goes.
        let (mut client, mut other) = (proxy.connect(), proxy.connect());
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            client.start("GET some");
            other.start("GET other");
            assert_eq!(client.reply().text(), "some", "{what}");
            client.start("GET more");
            assert_eq!(other.reply().text(), "other", "{what}");
            other.start("GET last");
            assert_eq!(client.reply().text(), "more", "{what}");
            client.start("GET some");
            assert_eq!(other.reply().text(), "last", "{what}");
            other.start("PING");
            assert_eq!(client.reply().text(), "some", "{what}");
            assert_eq!(other.reply().text(), "PONG", "{what}");
        }
        assert!(!proxy.log().contains("desync"), "{}", proxy.log());
        client.start("GET wrong");
        let mut number = 0;
        until("the lane is closed", PATIENCE, || {
            number += 1;
            // It may have been closed by then.
            let _ = other.try_send(crate::harness::encode(&["GET", &format!("k{number}")]));
            proxy.log().contains("desync")
        });
    }
}
