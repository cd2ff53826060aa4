//! The ways in: TLS listeners and Unix sockets beside plain TCP, everything a client may do by each, and every fault.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use crate::harness::{Authority, Client, Ended, Issued, PATIENCE, Proxy, Server, VALID, until};

/// A server, a proxy with all three kinds of listeners, and who is trusted.
struct House {
    server: Server,
    proxy: Proxy,
    authority: Authority,
    files: Issued,
    config: Arc<ClientConfig>,
    socket: PathBuf,
}

impl House {
    fn with(years: (i32, i32), settings: &[&str]) -> Self {
        let server = Server::start();
        let authority = Authority::new("the clients' authority");
        let files = authority.issue("door", &["localhost"], years);
        let socket = authority.files.path().join("redis.sock");
        let config = authority.client(None);
        let mut all = vec![
            format!("listen.addresses=127.0.0.1:0,unix:{}", socket.display()),
            "listen.tls.addresses=127.0.0.1:0".to_owned(),
            format!("listen.tls.cert={}", files.cert.display()),
            format!("listen.tls.key={}", files.key.display()),
        ];
        all.extend(
            settings
                .iter()
                .map(|setting| (*setting).replace("DIR", authority.files.path().to_str().unwrap())),
        );
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let proxy = Proxy::start(&server, &all);
        Self { server, proxy, authority, files, config, socket }
    }

    fn open(settings: &[&str]) -> Self {
        Self::with(VALID, settings)
    }

    fn secured(&self) -> Client {
        Client::connect_tls(self.proxy.tls(), &self.config)
    }

    fn local(&self) -> Client {
        Client::connect_unix(&self.socket)
    }

    /// What the log says of a handshake that failed, as soon as it does.
    fn said(&self, what: &str) {
        until(what, PATIENCE, || self.proxy.log().contains(what));
    }

    fn closed(&self, reason: &str) -> f64 {
        let series = format!("redbouncer_clients_closed_total{{reason=\"{reason}\"}}");
        self.proxy.metrics().get(&series).copied().unwrap_or_default()
    }
}

/// Pipelines, big values both ways, transactions, blocking, publishing, tracking a key.
fn everything_works(house: &House, connect: &dyn Fn() -> Client) {
    let mut client = connect();
    let words: Vec<String> = (0..2000).map(|number| format!("ECHO {number}")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    for (number, reply) in client.pipeline(&words).iter().enumerate() {
        assert_eq!(reply.text(), number.to_string());
    }
    let value = "v".repeat(3 << 20);
    assert_eq!(client.ask(&["SET", "big", &value]).text(), "OK");
    assert!(client.call("GET big").text() == value);
    assert_eq!(client.call("WATCH big").text(), "OK");
    assert_eq!(client.call("MULTI").text(), "OK");
    assert_eq!(client.call("STRLEN big").text(), "QUEUED");
    assert_eq!(client.call("EXEC").items().len(), 1);
    let mut waiter = connect();
    waiter.start("BLPOP queue 5");
    let blocked = || house.proxy.status()["clients"].to_string().contains("blocking");
    until("it waits", PATIENCE, blocked);
    client.call("RPUSH queue x");
    assert_eq!(waiter.reply().items()[1].text(), "x");
    assert_eq!(waiter.call("SUBSCRIBE news").items()[1].text(), "news");
    assert_eq!(client.call("PUBLISH news hello").int(), 1);
    assert_eq!(waiter.reply().items()[2].text(), "hello");
    client.call("DEL big");
    assert_eq!(client.call("QUIT").text(), "OK");
    client.expect_end(PATIENCE);
}

#[test]
fn everything_works_over_tls_and_over_a_unix_socket() {
    let house = House::open(&[]);
    everything_works(&house, &|| house.secured());
    everything_works(&house, &|| house.local());
    assert!(house.server.clients() <= 8);
    let exit = house.proxy.stop();
    assert_eq!(exit.code, Some(0), "{exit:#?}");
    assert!(!house.socket.exists(), "the socket's file goes with its listener");
}

#[test]
fn clients_of_every_kind_are_listed_as_what_they_are() {
    let house = House::open(&[]);
    let mut plain = house.proxy.connect();
    let (mut secured, mut local) = (house.secured(), house.local());
    for client in [&mut plain, &mut secured, &mut local] {
        client.call("PING");
    }
    let path = house.socket.display();
    let mine = local.call("CLIENT INFO").text();
    assert!(mine.contains(&format!("addr={path}:0 laddr={path}:0 ")) && mine.contains("flags=U "), "{mine}");
    let list = plain.call("CLIENT LIST").text();
    // Ours have ids from 2^40 on; the server's own clients are listed too.
    let ours = list.lines().filter(|line| line.starts_with("id=1099511"));
    assert_eq!(ours.filter(|line| line.contains("addr=127.0.0.1:")).count(), 2, "{list}");
    assert!(list.contains(&format!("addr={path}:0")), "{list}");
    let table = plain.call("PROXY CLIENTS").lines();
    let ways: Vec<_> =
        ["via=tcp", "via=unix", "via=tls"].iter().map(|way| table.matches(way).count()).collect();
    assert_eq!(ways, [1, 1, 1], "{table}");
    let status = house.proxy.status();
    let listening = status["listen"].to_string();
    assert!(listening.contains(&format!("rediss://{}", house.proxy.tls())), "{listening}");
    assert!(listening.contains(&format!("unix:{path}")), "{listening}");
    // A client of a Unix socket is killed by the address it is listed with.
    assert_eq!(plain.call(&format!("CLIENT KILL ADDR {path}:0")).int(), 1);
    local.expect_end(PATIENCE);
}

#[test]
fn a_unix_socket_is_for_those_who_may_and_counts_as_loopback() {
    let house = House::open(&["listen.unix_mode=770"]);
    assert_eq!(std::fs::metadata(&house.socket).unwrap().permissions().mode() & 0o777, 0o770);
    assert_eq!(house.local().call("SET k v").text(), "OK", "nobody has to log in");
}

#[test]
fn a_socket_that_a_killed_proxy_left_is_taken_over_and_one_in_use_is_not() {
    let house = House::open(&[]);
    let unix = format!("listen.addresses=unix:{}", house.socket.display());
    let cert = format!("listen.tls.cert={}", house.files.cert.display());
    let key = format!("listen.tls.key={}", house.files.key.display());
    // The harness finds a proxy by a TCP address, so this one has a TLS listener.
    let settings = [unix.as_str(), "listen.tls.addresses=127.0.0.1:0", &cert, &key];
    let refused = Proxy::launch(&house.server.url(), &settings).err().expect("the socket is in use");
    assert_eq!(refused.code, Some(1), "{refused:#?}");
    assert!(refused.stderr.contains("perhaps another redbouncer"), "{}", refused.stderr);
    let House { server, proxy, socket, authority: _authority, .. } = house;
    proxy.kill();
    assert!(socket.exists());
    let second = Proxy::start(&server, &settings);
    assert_eq!(Client::connect_unix(&socket).call("PING").text(), "PONG");
    drop(second);
}

#[test]
fn a_plain_client_on_the_tls_port_and_the_reverse_are_told() {
    let house = House::open(&[]);
    let mut lost = Client::connect(house.proxy.tls());
    let error = lost.call("PING").error().to_owned();
    assert!(error.contains("this port speaks TLS") && error.contains("rediss://"), "{error}");
    lost.expect_end(PATIENCE);
    house.said("the client speaks plain Redis");
    assert_eq!(house.closed("plain_on_tls_port"), 1.0);

    let failed = Client::try_connect_tls(house.proxy.address(), &house.config).err().expect("no TLS there");
    assert!(failed.to_string().contains("InvalidContentType"), "as of any plain server: {failed}");
    house.said("tls_on_plain_port");
    let mut raw = Client::connect(house.proxy.address());
    raw.send([0x16, 3, 1, 0, 5, 1, 2, 3]);
    let (told, ended) = raw.read_to_end(PATIENCE);
    assert!(String::from_utf8_lossy(&told).contains("does not speak TLS: use redis://"), "{told:?}");
    assert_eq!(ended, Ended::Closed);
    until("both are counted", PATIENCE, || house.closed("tls_on_plain_port") == 2.0);
    assert_eq!(house.secured().call("PING").text(), "PONG");
}

#[test]
fn a_client_that_does_not_trust_us_is_named() {
    let house = House::open(&[]);
    let stranger = Authority::new("somebody else").client(None);
    assert!(Client::try_connect_tls(house.proxy.tls(), &stranger).is_err());
    house.said("alert UnknownCA");
    let old = House::with((2001, 2002), &[]);
    old.said("the certificate in listen.tls.cert has expired");
    assert!(Client::try_connect_tls(old.proxy.tls(), &old.config).is_err());
    old.said("alert CertificateExpired");
    assert_eq!(old.closed("tls_failed"), 1.0);
}

#[test]
fn clients_show_a_certificate_where_it_is_required() {
    let house = House::open(&["listen.tls.client_ca=DIR/ca.pem", "listen.tls.client_auth=required"]);
    let fails = |config: &Arc<ClientConfig>| {
        // In TLS 1.3 the refusal comes behind the client's own handshake.
        let outcome = Client::try_connect_tls(house.proxy.tls(), config);
        outcome.map_or(true, |mut client| {
            client.try_send("PING\r\n").is_err() || client.try_reply(PATIENCE).is_err()
        })
    };
    assert!(fails(&house.config));
    house.said("the client shows no certificate");
    let old = house.authority.issue("old", &["client"], (2001, 2002));
    assert!(fails(&house.authority.client(Some(&old))));
    house.said("the client's certificate has expired");
    let foreign = Authority::new("somebody else");
    let foreign = foreign.issue("foreign", &["client"], VALID);
    assert!(fails(&house.authority.client(Some(&foreign))));
    house.said("from an authority that listen.tls.client_ca does not hold");
    let good = house.authority.client(Some(&house.authority.issue("good", &["client"], VALID)));
    assert_eq!(Client::connect_tls(house.proxy.tls(), &good).call("PING").text(), "PONG");

    let optional = House::open(&["listen.tls.client_ca=DIR/ca.pem", "listen.tls.client_auth=optional"]);
    assert_eq!(optional.secured().call("PING").text(), "PONG");
}

#[test]
fn sessions_are_resumed() {
    let house = House::open(&[]);
    let mut first = house.secured();
    first.call("PING");
    assert!(!first.is_resumed());
    drop(first);
    let mut second = house.secured();
    assert_eq!(second.call("PING").text(), "PONG");
    assert!(second.is_resumed());
}

#[test]
fn half_handshakes_keep_nobody_out() {
    let house = House::open(&["client.max_unauthenticated=10", "client.login_timeout=20s"]);
    let mut first = house.secured();
    // Ten may be under way; whoever comes then takes the place of the oldest.
    let silent: Vec<_> = (0..200)
        .map(|number| {
            let mut stream = TcpStream::connect(house.proxy.tls()).unwrap();
            if number % 2 == 0 {
                std::io::Write::write_all(&mut stream, &[0x16, 3, 1, 2, 0, 1]).unwrap();
            }
            stream
        })
        .collect();
    until("the oldest gave way", PATIENCE, || house.closed("tls_timeout") >= 190.0);
    assert_eq!(first.call("PING").text(), "PONG");
    assert_eq!(house.secured().call("PING").text(), "PONG");
    assert_eq!(house.proxy.connect().call("PING").text(), "PONG");
    let lines = house.proxy.log().matches("gave way").count();
    assert!(lines < 100, "one line each would fill the log: {lines}");
    drop(silent);
}

#[test]
fn a_silent_handshake_ends_in_time() {
    let house = House::open(&["client.login_timeout=200ms"]);
    let mut silent = Client::connect(house.proxy.tls());
    silent.expect_end(PATIENCE);
    house.said("timed out after 200ms");
}

#[test]
fn a_farewell_over_tls_is_a_half_close() {
    let house = House::open(&[]);
    let mut client = house.secured();
    for number in 0..100 {
        client.start(&format!("ECHO {number}"));
    }
    client.half_close();
    for number in 0..100 {
        assert_eq!(client.reply().text(), number.to_string());
    }
    client.expect_end(PATIENCE);
    assert_eq!(house.closed("client_eof"), 1.0);
}

#[test]
fn an_element_is_not_given_to_a_client_that_has_said_farewell() {
    let house = House::open(&[]);
    let mut producer = house.proxy.connect();
    for round in 0..50 {
        let mut leaving = house.secured();
        leaving.start("BLPOP queue 0");
        until("it waits", PATIENCE, || house.proxy.status()["clients"].to_string().contains("blocking"));
        leaving.half_close();
        drop(leaving);
        producer.call(&format!("RPUSH queue {round}"));
        assert_eq!(producer.call("BLPOP queue 2").items()[1].text(), round.to_string(), "round {round}");
    }
}

#[test]
fn a_client_that_does_not_read_over_tls_is_back_pressured_and_gets_everything() {
    let house = House::open(&["client.output_soft_limit=64KiB"]);
    let mut client = house.secured();
    let value = "x".repeat(100_000);
    client.ask(&["SET", "big", &value]);
    for _ in 0..400 {
        client.start("GET big");
    }
    let mut other = house.secured();
    for _ in 0..50 {
        assert_eq!(other.call("PING").text(), "PONG");
    }
    for _ in 0..400 {
        assert_eq!(client.reply().text().len(), value.len());
    }
}

#[test]
fn renewed_certificates_are_used_and_broken_ones_are_not() {
    let house = House::open(&[]);
    let mut before = house.secured();
    before.call("PING");
    let other = Authority::new("the next authority");
    let next = other.issue("door", &["localhost"], VALID);
    // In this order the pair does not fit for a moment, as with any renewal of two files.
    std::fs::copy(&next.cert, &house.files.cert).unwrap();
    std::fs::copy(&next.key, &house.files.key).unwrap();
    let trusting = other.client(None);
    until("the new certificate is shown", PATIENCE, || {
        Client::try_connect_tls(house.proxy.tls(), &trusting).is_ok()
    });
    assert_eq!(before.call("PING").text(), "PONG", "who is connected stays");
    let secret = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg";
    std::fs::write(&house.files.key, format!("-----BEGIN PRIVATE KEY-----\n{secret}\n")).unwrap();
    house.said("the former certificates stay in use");
    assert!(!house.proxy.log().contains(secret));
    assert_eq!(Client::connect_tls(house.proxy.tls(), &trusting).call("PING").text(), "PONG");
    let reads = || house.proxy.log().matches("certificates were reloaded").count();
    std::fs::copy(&next.key, &house.files.key).unwrap();
    until("the good key is taken", PATIENCE, || reads() >= 2);
    let count = reads();
    house.proxy.signal("HUP");
    until("SIGHUP reads them too", PATIENCE, || reads() > count);
}

#[test]
fn a_thousand_clients_over_tls() {
    let house = House::open(&["listen.workers=1"]);
    let start = Instant::now();
    let mut clients: Vec<_> = (0..1000).map(|_| house.secured()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.start(&format!("SET key:{number} {number}"));
    }
    for client in &mut clients {
        assert_eq!(client.reply().text(), "OK");
    }
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.call(&format!("GET key:{number}")).text(), number.to_string());
    }
    assert!(house.server.clients() <= 8);
    drop(clients);
    until("nobody is left", Duration::from_secs(20), || {
        house.proxy.metrics().get("redbouncer_clients{worker=\"0\"}").copied() == Some(0.0)
    });
    println!("a thousand clients in {:?}", start.elapsed());
}

#[test]
fn without_plain_listeners_tls_is_the_only_way() {
    let server = Server::start();
    let authority = Authority::new("the clients' authority");
    let files = authority.issue("door", &["localhost"], VALID);
    let (cert, key) = (
        format!("listen.tls.cert={}", files.cert.display()),
        format!("listen.tls.key={}", files.key.display()),
    );
    let settings = ["listen.addresses=", "listen.tls.addresses=127.0.0.1:0,[::1]:0", &cert, &key];
    let proxy = Proxy::start(&server, &settings);
    assert_eq!(Client::connect_tls(proxy.tls(), &authority.client(None)).call("PING").text(), "PONG");
    assert_eq!(proxy.status()["listen"].as_array().unwrap().len(), 2);
    assert!(proxy.log().contains("listen\":\"off"), "{}", proxy.log());
}

#[test]
fn a_certificate_that_cannot_be_used_is_a_wrong_configuration() {
    let authority = Authority::new("the clients' authority");
    let [one, other] = ["one", "other"].map(|name| authority.issue(name, &["localhost"], VALID));
    let launch = |cert: &str, key: &str| {
        let settings = [
            "listen.tls.addresses=127.0.0.1:0",
            &format!("listen.tls.cert={cert}"),
            &format!("listen.tls.key={key}"),
        ];
        let exit = Proxy::launch("redis://127.0.0.1:1", &settings).err().expect("it does not start");
        assert_eq!(exit.code, Some(64), "{exit:#?}");
        exit.stderr
    };
    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let crossed = launch(&text(&one.cert), &text(&other.key));
    assert!(crossed.contains("listen.tls.cert: ") && crossed.contains("one.pem"), "{crossed}");
    let missing = launch("/nonexistent/tls.crt", &text(&one.key));
    assert!(missing.contains("listen.tls.cert: cannot read /nonexistent/tls.crt: No such file"), "{missing}");
    let missing = launch(&text(&one.cert), "/nonexistent/tls.key");
    assert!(missing.contains("listen.tls.key: cannot read /nonexistent/tls.key: No such file"), "{missing}");
    let unnamed = launch("", &text(&one.key));
    assert!(unnamed.contains("all of them or none"), "{unnamed}");
}
