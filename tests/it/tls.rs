//! A server that speaks TLS: everything a session may do, over `rediss://`.

use std::fs;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::harness::{Client, PATIENCE, Proxy, Server, free_port, until};

/// A server with a TLS port and a certificate for `localhost` by an authority of its own.
struct Secured {
    server: Server,
    port: u16,
    files: tempfile::TempDir,
}

impl Secured {
    fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
        let path = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("ca.pem"), authority.pem()).unwrap();
        fs::write(path("cert.pem"), certificate.pem()).unwrap();
        fs::write(path("key.pem"), key.serialize_pem()).unwrap();
        let port = free_port();
        let server = Server::start_with(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &path("cert.pem"),
            "--tls-key-file",
            &path("key.pem"),
            "--tls-ca-cert-file",
            &path("ca.pem"),
            "--tls-auth-clients",
            "no",
        ]);
        Self { server, port, files }
    }

    fn proxy(&self, settings: &[&str]) -> Proxy {
        Proxy::launch(&format!("rediss://localhost:{}", self.port), settings).expect("it starts")
    }

    fn trusting(&self) -> Proxy {
        let ca = format!("upstream.tls.ca={}", self.files.path().join("ca.pem").display());
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
fn an_authority_that_is_not_known_is_said_to_client_and_log() {
    let secured = Secured::start();
    let proxy = secured.proxy(&[]);
    let mut client: Client = proxy.connect();
    let reply = client.call("PING");
    assert!(reply.error().starts_with("ERR redbouncer: no upstream connection: TLS"), "{}", reply.error());
    assert!(proxy.log().contains("authority") || proxy.log().contains("issuer"), "{}", proxy.log());
    until("nothing is left of it", PATIENCE, || secured.server.clients() == 0);
}
