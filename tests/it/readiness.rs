//! What `/ready`, `/status` and `redbouncer_upstream_up` say of a server that refuses us, is not there yet, or hangs.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::harness::{PATIENCE, Proxy, Server, until};

fn up(proxy: &Proxy) -> f64 {
    proxy.metrics()["redbouncer_upstream_up"]
}

fn rewrite(file: &tempfile::NamedTempFile, text: &str) {
    let mut open = std::fs::File::create(file.path()).unwrap();
    open.write_all(text.as_bytes()).unwrap();
}

/// The password was changed on the server: every client was refused for good, and everything that an operator looks at said
/// that all was well. The file with the new password was never read.
#[test]
fn a_refused_login_of_the_url_is_an_outage_until_the_password_file_is_right() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    rewrite(&file, "sesame\n");
    let from_file = format!("upstream.password_file={}", file.path().display());
    let url = format!("redis://{}", server.address());
    let proxy = Proxy::launch(&url, &[&from_file, "pool.wait_timeout=1s"]).unwrap();
    until("it is up", PATIENCE, || up(&proxy) == 1.0 && proxy.http("/ready").0 == 200);
    let change = |password: &str| {
        server.call(&format!("CONFIG SET requirepass {password}"));
        server.call("CLIENT KILL TYPE normal");
    };
    // By itself, and by a signal.
    for (password, by_signal) in [("barley", false), ("millet", true)] {
        change(password);
        let mut client = proxy.connect();
        client.start("GET k");
        client.expect_end(PATIENCE);
        until("it is not up", PATIENCE, || up(&proxy) == 0.0);
        let (code, why) = proxy.http("/ready");
        assert_eq!((code, why.trim()), (503, "the server refuses the login of upstream.url"));
        let status = proxy.status();
        assert_eq!(status["upstream"]["up"], false, "{status}");
        let reason = status["upstream"]["login_refused_reason"].as_str().unwrap();
        assert!(reason.starts_with("WRONGPASS"), "{status}");
        assert_eq!(proxy.http("/live").0, 200);
        rewrite(&file, password);
        if by_signal {
            proxy.signal("HUP");
        }
        // Nobody connects to a proxy that is not ready: it finds out by itself.
        until("it is up again", PATIENCE, || up(&proxy) == 1.0 && proxy.http("/ready").0 == 200);
        assert!(!proxy.connect().call("GET k").is_error());
        assert!(proxy.status()["upstream"]["login_refused_reason"].is_null());
    }
    let log = proxy.log();
    let errors = log
        .lines()
        .filter(|line| line.contains("\"ERROR\"") && line.contains("refuses the login of upstream.url"));
    assert!(errors.count() >= 2, "{log}");
    for secret in ["sesame", "barley", "millet"] {
        assert!(!log.contains(secret), "{log}");
    }
    std::fs::remove_file(file.path()).unwrap();
    until("the operator is told", PATIENCE, || proxy.log().contains("upstream.password_file cannot be used"));
    assert!(!proxy.connect().call("GET k").is_error());
}

#[test]
fn where_clients_log_in_themselves_their_refusals_are_no_outage() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    let url = format!("redis://{}", server.address());
    let proxy = Proxy::launch(&url, &["auth.mode=passthrough", "admin.ready_needs_login=true"]).unwrap();
    until("the server has answered", PATIENCE, || proxy.http("/ready").0 == 200);
    let mut client = proxy.connect();
    assert!(client.call("AUTH barley").is_error());
    assert_eq!(client.call("AUTH sesame").text(), "OK");
    until("it is up", PATIENCE, || up(&proxy) == 1.0);
    assert!(proxy.connect().call("AUTH barley").is_error());
    assert_eq!((up(&proxy), proxy.http("/ready").0), (1.0, 200));
}

#[test]
fn without_a_server_it_is_down_from_the_start_and_ready_if_asked_for() {
    let mut server = Server::start();
    server.kill();
    let patient = Proxy::start(&server, &["admin.ready_needs_login=true"]);
    let other = Proxy::start(&server, &[]);
    assert_eq!((up(&patient), up(&other)), (0.0, 0.0));
    assert_eq!(other.http("/ready").0, 200);
    let (code, why) = patient.http("/ready");
    assert_eq!((code, why.trim()), (503, "the server has not accepted a login yet"));
    server.restart();
    // No client has asked for anything.
    until("the server is found", PATIENCE, || patient.http("/ready").0 == 200 && up(&patient) == 1.0);
    // From then on a server that is away makes it not up, but clients wait here as well as anywhere.
    server.kill();
    let mut client = patient.connect();
    client.start("GET k");
    client.expect_end(PATIENCE);
    until("it is not up", PATIENCE, || up(&patient) == 0.0);
    assert_eq!(patient.http("/ready").0, 200);
}

#[test]
fn a_server_that_hangs_does_not_hold_up_the_start() {
    let server = Server::start();
    server.signal("STOP");
    let begun = Instant::now();
    let proxy = Proxy::start(&server, &[]);
    let took = begun.elapsed();
    assert_eq!((proxy.http("/live").0, proxy.http("/ready").0), (200, 200));
    server.signal("CONT");
    // It was 5 s and more.
    assert!(took < Duration::from_millis(4_500), "{took:?}");
    until("it is up", PATIENCE, || up(&proxy) == 1.0);
}
