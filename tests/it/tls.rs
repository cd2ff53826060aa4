//! A server that speaks TLS: everything a session may do, over `rediss://`.

use std::time::{Duration, Instant};

use crate::harness::{Authority, Client, PATIENCE, Proxy, Server, VALID, free_port, until};

/// A server with a TLS port and a certificate for `localhost` by an authority of its own.
struct Secured {
    server: Server,
    port: u16,
    authority: Authority,
}

impl Secured {
    fn start() -> Self {
        let authority = Authority::new("the test's authority");
        let issued = authority.issue("server", &["localhost"], VALID);
        let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        let port = free_port();
        let server = Server::start_with(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &text(&issued.cert),
            "--tls-key-file",
            &text(&issued.key),
            "--tls-ca-cert-file",
            &text(&authority.ca()),
            "--tls-auth-clients",
            "no",
        ]);
        Self { server, port, authority }
    }

    fn proxy(&self, settings: &[&str]) -> Proxy {
        Proxy::launch(&format!("rediss://localhost:{}", self.port), settings).expect("it starts")
    }

    fn trusting(&self) -> Proxy {
        let ca = format!("upstream.tls.ca={}", self.authority.ca().display());
        self.proxy(&[&ca])
    }
}

#[test]
fn lanes_and_leases_work_over_tls() {
    let secured = Secured::start();
    let proxy = secured.trusting();
    let mut client = proxy.connect();
    let words: Vec<String> = (0..500).map(|number| format!("ECHO {number}")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    for (number, reply) in client.pipeline(&words).iter().enumerate() {
        assert_eq!(reply.text(), number.to_string());
    }
    // Longer than any buffer on the way, over the lane and then over a lease.
    let value = "v".repeat(3 << 20);
    assert_eq!(client.ask(&["SET", "big", &value]).text(), "OK");
    assert!(client.call("GET big").text() == value);
    assert_eq!(client.call("WATCH big").text(), "OK");
    assert!(client.call("GET big").text() == value);
    assert_eq!(client.ask(&["SET", "other", &value]).text(), "OK");
    assert_eq!(client.call("UNWATCH").text(), "OK");
    let mut waiter = proxy.connect();
    waiter.start("BLPOP queue 5");
    client.call("RPUSH queue x");
    assert_eq!(waiter.reply().items()[1].text(), "x");
    assert!(secured.server.clients() <= 8);
    drop((client, waiter));
    until("nothing is left on the server", PATIENCE, || {
        secured.server.rows().iter().all(|row| row.get("name").ends_with(":control"))
    });
    let exit = proxy.stop();
    assert_eq!(exit.code, Some(0), "{exit:#?}");
}

#[test]
fn a_client_that_leaves_releases_its_tls_lease_at_once() {
    let secured = Secured::start();
    let proxy = secured.trusting();
    let mut client = proxy.connect();
    client.call("PING");
    client.start("WATCH nothing");
    let leased = || secured.server.rows().iter().any(|row| row.get("name").ends_with(":leased"));
    until("it holds a lease", PATIENCE, leased);
    let start = Instant::now();
    client.reset();
    until("the server has its connection back", PATIENCE, || !leased());
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn an_authority_that_is_not_known_is_said_in_log_and_status() {
    let secured = Secured::start();
    let proxy = secured.proxy(&[]);
    let mut client: Client = proxy.connect();
    client.start("PING");
    client.expect_end(PATIENCE);
    let status = proxy.status();
    let reason = status["upstream"]["clients_closed"]["last_reason"].as_str().unwrap();
    assert!(reason.starts_with("ERR redbouncer: no upstream connection: TLS"), "{status}");
    assert!(proxy.log().contains("authority") || proxy.log().contains("issuer"), "{}", proxy.log());
    until("nothing is left of it", PATIENCE, || secured.server.clients() == 0);
}

#[test]
fn a_renewed_authority_is_used_by_new_connections_and_a_broken_one_is_not() {
    let secured = Secured::start();
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let other = Authority::new("another authority");
    std::fs::copy(other.ca(), &ca).unwrap();
    let proxy = secured.proxy(&[&format!("upstream.tls.ca={}", ca.display()), "upstream.backoff_max=100ms"]);
    let mut client = proxy.connect();
    client.start("PING");
    client.expect_end(PATIENCE);
    assert!(proxy.status().to_string().contains("unknown authority"));
    std::fs::copy(secured.authority.ca(), &ca).unwrap();
    until("the right authority is read", PATIENCE, || proxy.log().contains("certificates were reloaded"));
    until("the server is trusted", PATIENCE, || {
        client = proxy.connect();
        client.start("PING");
        client.try_reply(PATIENCE).is_ok_and(|reply| reply.text() == "PONG")
    });
    std::fs::write(&ca, "nothing of use").unwrap();
    until("the loss is said", PATIENCE, || proxy.log().contains("the former certificates stay in use"));
    // A lease dials anew.
    assert_eq!(client.call("WATCH key").text(), "OK");
}

#[test]
fn dials_after_the_first_ones_resume_their_sessions() {
    let secured = Secured::start();
    let proxy = secured.trusting();
    let mut clients: Vec<_> = (0..3).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.call("PING").text(), "PONG");
    }
    let count = |outcome: &str| {
        let series = format!("redbouncer_tls_handshakes_total{{side=\"upstream\",outcome=\"{outcome}\"}}");
        proxy.metrics().get(&series).copied().unwrap_or_default()
    };
    // The first lane and the look for orphans may dial at the same time.
    let full = count("full");
    assert!((1.0..=3.0).contains(&full), "{full}");
    let before = count("resumed");
    for client in &mut clients {
        assert_eq!(client.call("WATCH key").text(), "OK");
    }
    assert_eq!(count("full"), full, "no further certificate was needed");
    assert!(count("resumed") >= before + 3.0, "{} after {before}", count("resumed"));
}
