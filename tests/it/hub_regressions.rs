//! Bugs of the blocking hub that were found once, each named after what it did.

use std::time::{Duration, Instant};

use crate::harness::{PATIENCE, Proxy, Server, until};
use crate::hub::wait_for_blocked;

/// The hub was about to close because nobody waited, and had stopped asking while its PING was under way. A call that
/// arrived then kept it open, but it did not begin to ask again.
#[test]
fn a_call_that_arrives_while_an_idle_hub_is_about_to_close_is_served() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["pool.idle_timeout=1s", "hygiene.heartbeat=1s"]);
    let mut client = proxy.connect();
    assert!(client.call("BLPOP none 0.01").is_nil());
    let mut pusher = server.probe();
    server.signal("STOP");
    let start = Instant::now();
    until("the hub would close", PATIENCE, || start.elapsed() > Duration::from_millis(1_400));
    client.start("BLPOP k 0");
    wait_for_blocked(proxy.address(), 1);
    server.signal("CONT");
    pusher.call("RPUSH k x");
    assert_eq!(client.reply().items()[1].text(), "x");
}

/// While the hub waited for the server to close its old connection, nobody looked at the clock.
#[test]
fn a_nil_is_in_time_while_the_hub_changes_its_connection() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["pool.max_lifetime=1s"]);
    let mut client = proxy.connect();
    let start = Instant::now();
    client.start("BLPOP k 2");
    wait_for_blocked(proxy.address(), 1);
    server.signal("STOP");
    assert!(client.reply_within(Duration::from_secs(8)).is_nil());
    assert!(start.elapsed() < Duration::from_millis(2_000 + 250), "{:?}", start.elapsed());
    server.signal("CONT");
}
