//! Peers that are slow and alive: clients that do not read for a while, a server that stands still. Neither is cut off by
//! time, however long; hosts that vanished are, and `network` shows that they still are when they were slow before.
//!
//! The short form shortens the times after which a vanished host counts as gone, the long form waits longer than the
//! defaults.

use std::thread;
use std::time::Duration;

use crate::harness::{Authority, Client, PATIENCE, Proxy, Stage, VALID, encode, long, throughout, until};

/// The times after which a host counts as gone, two seconds in the short form.
fn impatient(side: &str) -> Vec<String> {
    if long() {
        return Vec::new();
    }
    let times = ["keepalive_idle=1s", "keepalive_interval=1s", "keepalive_count=1", "user_timeout=2s"];
    times.iter().map(|time| format!("{side}.{time}")).collect()
}

/// Longer than a vanished host is waited for.
fn pause() -> Duration {
    Duration::from_secs(if long() { 30 } else { 6 })
}

fn proxied(side: &str) -> Stage {
    let settings = impatient(side);
    Stage::proxied_with(&settings.iter().map(String::as_str).collect::<Vec<_>>())
}

fn connected(proxy: &Proxy) -> f64 {
    proxy.metrics()["redbouncer_clients{worker=\"0\"}"]
}

/// A value whose bytes say where they are, so that a lost or doubled piece shows.
fn value(length: usize) -> String {
    let mut value: String = (0..length / 8).map(|number| format!("{number:08}")).collect();
    value.extend(std::iter::repeat_n('.', length - value.len()));
    value
}

#[test]
fn readers_that_pause_get_all_they_asked_for() {
    let authority = Authority::new("a reader's authority");
    let issued = authority.issue("proxy", &["localhost"], VALID);
    let mut settings = impatient("client");
    settings.push("listen.tls.addresses=[\"127.0.0.1:0\"]".to_owned());
    settings.push(format!("listen.tls.cert={}", issued.cert.display()));
    settings.push(format!("listen.tls.key={}", issued.key.display()));
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let stage = Stage::proxied_with(&settings);
    let values: Vec<String> = [300_000, 1_000_000, 9_000_000].into_iter().map(value).collect();
    for value in &values {
        stage.connect().ask(&["SET", &format!("v{}", value.len()), value]);
    }
    let tls = authority.client(None);
    let mut readers = Vec::new();
    for value in &values {
        // By TCP with the system's buffers, by TCP on a lease, by TLS.
        let mut on_lease = stage.connect();
        on_lease.call("WATCH k");
        let secured = Client::connect_tls(stage.proxy().tls(), &tls);
        readers.extend([stage.connect(), on_lease, secured].map(|reader| (reader, value)));
    }
    for (reader, value) in &mut readers {
        reader.start(&format!("GET v{}", value.len()));
    }
    // Three values, three readers of each; those who wrote the values are gone.
    let all = 9.0;
    until("only the readers are connected", PATIENCE, || connected(stage.proxy()) == all);
    throughout("nobody is closed", pause(), || {
        thread::sleep(Duration::from_millis(100));
        connected(stage.proxy()) == all
    });
    for (reader, value) in &mut readers {
        assert!(reader.reply_within(PATIENCE * 2).text() == **value, "{} bytes", value.len());
        assert_eq!(reader.call("PING").text(), "PONG");
    }
}

/// Linux counts the time of TCP_USER_TIMEOUT from the first window probe, and a window that opens by less than the next
/// packet does not set it back: who had been slow once was reset as soon as its window shut again.
#[test]
fn a_reader_that_was_slow_before_may_be_slow_again() {
    let stage = proxied("client");
    let value = value(300_000);
    stage.server.probe().ask(&["SET", "v", &value]);
    let mut reader = Client::connect_with_receive_buffer(stage.address(), 16 << 10);
    let stays = |span| {
        throughout("it stays", span, || {
            thread::sleep(Duration::from_millis(100));
            connected(stage.proxy()) == 1.0
        });
    };
    for _ in 0..2 {
        reader.start("GET v");
        // Some window probes are answered meanwhile.
        stays(Duration::from_secs(1));
        assert!(reader.reply().text() == value);
        // Longer than a vanished host is waited for, from the first of them.
        stays(pause() / 2);
    }
    assert_eq!(reader.call("PING").text(), "PONG");
}

#[test]
fn a_subscriber_whose_handler_pauses_gets_every_message() {
    let stage = proxied("client");
    let mut subscriber = stage.connect();
    subscriber.call("SUBSCRIBE news");
    let text = value(1_000);
    let publish: Vec<u8> =
        (0..4_000).flat_map(|number| encode(&["PUBLISH", "news", &format!("{number} {text}")])).collect();
    let mut publisher = stage.server.probe();
    publisher.send(publish);
    for _ in 0..4_000 {
        assert_eq!(publisher.reply().int(), 1);
    }
    throughout("it stays", pause(), || {
        thread::sleep(Duration::from_millis(100));
        connected(stage.proxy()) == 1.0
    });
    for number in 0..4_000 {
        assert_eq!(subscriber.reply().items()[2].text(), format!("{number} {text}"));
    }
}

#[test]
fn a_server_that_stands_still_while_megabytes_go_up_answers_everybody() {
    let stage = proxied("upstream");
    let value = value(8_000_000);
    let mut others: Vec<Client> = (0..4).map(|_| stage.connect()).collect();
    for (number, other) in others.iter_mut().enumerate() {
        assert_eq!(other.call(&format!("SET n{number} {number}")).text(), "OK");
    }
    let mut leased = stage.connect();
    assert_eq!(leased.call("WATCH k").text(), "OK");
    let (mut writer, mut leased_writer) = (stage.connect(), leased);
    writer.write_patiently(pause() * 2);
    leased_writer.write_patiently(pause() * 2);
    stage.server.signal("STOP");
    let (on_lane, on_lease) = (encode(&["SET", "big", &value]), encode(&["SET", "bigger", &value]));
    let sending = thread::spawn(move || {
        writer.send(&on_lane);
        writer
    });
    let sending_on_lease = thread::spawn(move || {
        leased_writer.send(&on_lease);
        leased_writer
    });
    for (number, other) in others.iter_mut().enumerate() {
        other.start(&format!("GET n{number}"));
    }
    let before = connected(stage.proxy());
    throughout("nobody is closed", pause(), || {
        thread::sleep(Duration::from_millis(100));
        connected(stage.proxy()) == before
    });
    stage.server.signal("CONT");
    for (number, other) in others.iter_mut().enumerate() {
        assert_eq!(other.reply().text(), number.to_string());
    }
    assert_eq!(sending.join().unwrap().reply().text(), "OK");
    assert_eq!(sending_on_lease.join().unwrap().reply().text(), "OK");
    let mut reader = stage.connect();
    assert!(reader.call("GET big").text() == value && reader.call("GET bigger").text() == value);
    until("no lane was lost", PATIENCE, || {
        !stage.proxy().counted().keys().any(|key| key.contains("closed_total{reason=\"lost\""))
    });
}

#[test]
fn the_setting_that_has_lost_its_meaning_is_accepted_with_a_warning() {
    let stage = Stage::proxied_with(&["client.user_timeout_backpressured=25s"]);
    let log = stage.proxy().log();
    assert!(log.contains("client.user_timeout_backpressured has no effect and will be refused"), "{log}");
    assert!(!Stage::proxied().proxy().log().contains("user_timeout_backpressured"));
}
