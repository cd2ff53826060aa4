//! Settings that change while the proxy runs, each by what it does.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use crate::harness::{
    Authority, Client, Namespace, PATIENCE, Proxy, Relay, Server, Stage, VALID, http, is_root, throughout,
    until,
};

/// Sets one key, as an operator does.
#[track_caller]
fn set(client: &mut Client, key: &str, value: &str) {
    let reply = client.ask(&["PROXY", "CONFIG", "SET", key, value]);
    assert_eq!(reply.items()[0].text(), format!("changed {key}"), "{key}={value}");
}

fn count(proxy: &Proxy, series: &str) -> f64 {
    proxy.metrics().get(series).copied().unwrap_or_default()
}

#[test]
fn the_level_and_the_shape_of_the_log_change() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    let has = |text: &str| stage.proxy().log().contains(text);
    assert!(!has("DEBUG"), "{}", stage.proxy().log());
    set(&mut client, "log.level", "debug");
    drop(stage.connect());
    until("a debug line is written", PATIENCE, || has("\"level\":\"DEBUG\""));
    set(&mut client, "log.format", "text");
    drop(stage.connect());
    // As text: the level stands by itself.
    until("a debug line is written as text", PATIENCE, || has(" DEBUG "));
    set(&mut client, "log.format", "json");
    set(&mut client, "log.level", "error");
    assert_eq!(client.call("PROXY LOG").lines(), "error\n");
    // What PROXY LOG has set stays, as long as the configuration says the same as before.
    assert_eq!(client.call("PROXY LOG warn").text(), "OK");
    set(&mut client, "pool.linger", "3s");
    assert_eq!(client.call("PROXY LOG").lines(), "warn\n");
}

#[test]
fn clients_of_one_address_are_limited_those_from_before_included() {
    let stage = Stage::proxied();
    let (mut operator, _second) = (stage.connect(), stage.connect());
    set(&mut operator, "client.max_per_address", "2");
    let (said, _) = Client::connect(stage.address()).read_to_end(PATIENCE);
    assert!(said.starts_with(b"-ERR max number of clients reached for this address"), "{said:?}");
    set(&mut operator, "client.max_per_address", "3");
    assert_eq!(stage.connect().call("PING").text(), "PONG");
    set(&mut operator, "client.max_per_address", "0");
    let mut many: Vec<Client> = (0..5).map(|_| stage.connect()).collect();
    assert!(many.iter_mut().all(|client| client.call("PING").text() == "PONG"));
}

#[test]
fn a_login_may_take_another_time() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    let stage = Stage::before(server, &["auth.mode=passthrough", "client.login_timeout=1h"]);
    let mut operator = stage.connect();
    operator.call("AUTH sesame");
    let mut silent = stage.connect();
    set(&mut operator, "client.login_timeout", "200ms");
    silent.expect_end(PATIENCE);
    assert_eq!(count(stage.proxy(), "redbouncer_clients_closed_total{reason=\"login_timeout\"}"), 1.0);
}

#[test]
fn protected_mode_is_switched_off_and_on() {
    if !is_root() {
        return;
    }
    let host = Namespace::create();
    let server = Server::start();
    let listen = format!("listen.addresses={}:0,127.0.0.1:0", host.near_address());
    let proxy = Proxy::start(&server, &[&listen, "auth.mode=open"]);
    let local = proxy.status()["listen"][1].as_str().unwrap().replace("redis://", "");
    let mut operator = Client::connect(local.parse().unwrap());
    let answer = || {
        let (near, port) = (host.near_address().to_string(), proxy.address().port().to_string());
        let mut command = host.command();
        command.args(["redis-cli", "-h", &near, "-p", &port, "PING"]);
        let output = command.output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    assert!(answer().contains("DENIED"), "{}", answer());
    set(&mut operator, "listen.protected_mode", "false");
    assert_eq!(answer(), "PONG\n");
    set(&mut operator, "listen.protected_mode", "true");
    assert!(answer().contains("DENIED"), "{}", answer());
}

#[test]
fn the_memory_of_all_clients_has_another_bound() {
    let stage = Stage::proxied_with(&[
        "client.memory_max=0",
        "client.output_soft_limit=64MiB",
        "client.output_hard_limit=128MiB",
        "client.output_buffer_limit=1GiB 1GiB 60s",
    ]);
    let mut operator = stage.connect();
    assert_eq!(count(stage.proxy(), "redbouncer_client_memory_bytes_max"), 0.0);
    // A client that reads nothing of 20 MB, which are held for it.
    let value = "x".repeat(1 << 20);
    operator.ask(&["SET", "long", &value]);
    let mut greedy = stage.connect();
    greedy.send("GET long\r\n".repeat(20));
    until("its replies are held", PATIENCE, || {
        count(stage.proxy(), "redbouncer_client_memory_bytes") > 2.0 * 1024.0 * 1024.0
    });
    set(&mut operator, "client.memory_max", "1MiB");
    until("it is closed", PATIENCE, || {
        count(stage.proxy(), "redbouncer_clients_closed_total{reason=\"memory\"}") == 1.0
    });
    assert_eq!(count(stage.proxy(), "redbouncer_client_memory_bytes_max"), f64::from(1 << 20));
    assert_eq!(operator.call("PING").text(), "PONG");
}

#[test]
fn orphans_are_looked_for_as_often_as_is_set_now() {
    let stage = Stage::proxied_with(&["hygiene.interval=24h"]);
    let mut operator = stage.connect();
    let rounds = || count(stage.proxy(), "redbouncer_orphan_rounds_total{outcome=\"judged\"}");
    until("the first look", PATIENCE, || rounds() >= 1.0);
    set(&mut operator, "hygiene.interval", "1s");
    let before = rounds();
    until("more looks", PATIENCE, || rounds() >= before + 2.0);
    set(&mut operator, "hygiene.reap", "false");
    // One may have been under way.
    let last = rounds();
    throughout("no more looks", Duration::from_secs(3), || rounds() <= last + 1.0);
}

#[test]
fn the_admin_port_is_known_by_other_names() {
    let stage = Stage::proxied();
    let mut operator = stage.connect();
    let status = || http::get_as(stage.proxy().admin(), "/live", "proxy.example.com").unwrap().0;
    assert_eq!(status(), 421);
    set(&mut operator, "admin.hosts", "other.example.com,proxy.example.com");
    assert_eq!(status(), 200);
    set(&mut operator, "admin.hosts", "");
    assert_eq!(status(), 421);
}

#[test]
fn operators_are_named() {
    let server = Server::start();
    server.call("ACL SETUSER operator on >secret ~* &* +@all");
    let stage = Stage::before(server, &["auth.mode=passthrough"]);
    let (mut nobody, mut operator) = (stage.connect(), stage.connect());
    assert_eq!(nobody.call("AUTH default whatever").text(), "OK");
    assert_eq!(operator.call("AUTH operator secret").text(), "OK");
    set(&mut nobody, "admin.users", "operator");
    assert!(nobody.call("PROXY RESUME").error().starts_with("NOPERM"));
    assert_eq!(operator.call("PROXY RESUME").text(), "OK");
    set(&mut operator, "admin.users", "");
    assert_eq!(nobody.call("PROXY RESUME").text(), "OK");
}

#[test]
fn a_login_is_believed_for_another_time() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    server.call("ACL SETUSER app on >secret ~* &* +@all");
    let stage = Stage::before(server, &["auth.mode=passthrough"]);
    let mut operator = stage.connect();
    operator.call("AUTH sesame");
    let login = || {
        let before = count(stage.proxy(), "redbouncer_logins_total{outcome=\"verified\"}");
        assert_eq!(stage.connect().call("AUTH app secret").text(), "OK");
        count(stage.proxy(), "redbouncer_logins_total{outcome=\"verified\"}") - before
    };
    assert_eq!((login(), login()), (1.0, 0.0), "it is remembered for a minute");
    set(&mut operator, "auth.cache_ttl", "0");
    assert_eq!((login(), login()), (1.0, 1.0));
}

#[test]
fn clients_are_asked_for_a_certificate_from_now_on() {
    let server = Server::start();
    let authority = Authority::new("ours");
    let [own, known] = ["door", "client"].map(|name| authority.issue(name, &["localhost"], VALID));
    let path = |path: &Path| path.display().to_string();
    let settings = [
        "listen.tls.addresses=127.0.0.1:0".to_owned(),
        format!("listen.tls.cert={}", path(&own.cert)),
        format!("listen.tls.key={}", path(&own.key)),
        "listen.tls.client_auth=optional".to_owned(),
        format!("listen.tls.client_ca={}", path(&authority.ca())),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mut arguments = vec!["listen.addresses=127.0.0.1:0"];
    arguments.extend(&settings);
    let proxy = Proxy::start(&server, &arguments);
    let (stranger, friend) = (authority.client(None), authority.client(Some(&known)));
    let mut before = Client::connect_tls(proxy.tls(), &stranger);
    assert_eq!(before.call("PING").text(), "PONG");
    set(&mut proxy.connect(), "listen.tls.client_auth", "required");
    // In TLS 1.3 the refusal comes behind the client's own handshake.
    let refused = Client::try_connect_tls(proxy.tls(), &stranger).map_or(true, |mut client| {
        client.try_send("PING\r\n").is_err() || client.try_reply(PATIENCE).is_err()
    });
    assert!(refused);
    assert_eq!(Client::connect_tls(proxy.tls(), &friend).call("PING").text(), "PONG");
    assert_eq!(before.call("PING").text(), "PONG", "who is connected stays");
}

/// Has an element popped for a client that has left when it comes.
fn pop_for_nobody(server: &Server, relay: &Relay, proxy: &Proxy) {
    let mut client = proxy.connect();
    let id = client.call("CLIENT ID").int();
    client.start("BLPOP jobs 0");
    let row = |place: Option<&str>| {
        let status = proxy.status();
        let mut clients = status["clients"].as_array().unwrap().iter();
        clients.any(|row| row["id"] == id && place.is_none_or(|place| row["place"] == place))
    };
    until("it waits", PATIENCE, || row(Some("blocking hub")));
    relay.hold(b"\r\nelement\r\n");
    server.call("RPUSH jobs element");
    until("the answer is on its way", PATIENCE, || relay.held() == 1);
    client.reset();
    until("the client has left", PATIENCE, || !row(None));
    relay.pass();
}

#[test]
fn elements_that_nobody_gets_are_put_back_or_not() {
    let server = Server::start();
    let relay = Relay::to(server.address());
    let proxy = Proxy::launch(&format!("redis://{}", relay.address()), &[]).unwrap();
    let mut operator = proxy.connect();
    let fate =
        |fate: &str| count(&proxy, &format!("redbouncer_elements_undelivered_total{{fate=\"{fate}\"}}"));
    let mut expected = [0.0, 0.0];
    for (round, gives_back) in [true, false, true].into_iter().enumerate() {
        if round > 0 {
            set(&mut operator, "blocking.give_back", if gives_back { "true" } else { "false" });
        }
        pop_for_nobody(&server, &relay, &proxy);
        expected[usize::from(gives_back)] += 1.0;
        until("it is settled", PATIENCE, || [fate("lost"), fate("given_back")] == expected);
        let left = server.call("LRANGE jobs 0 -1").items().len();
        assert_eq!(left, usize::from(gives_back), "round {round}");
        server.call("DEL jobs");
    }
}

#[test]
fn a_key_that_needs_a_socket_of_its_own_needs_a_restart() {
    let stage = Stage::proxied();
    let mut operator = stage.connect();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for (key, value) in
        [("listen.addresses", free.as_str()), ("admin.address", &free), ("blocking.hub", "false")]
    {
        let reply = operator.ask(&["PROXY", "CONFIG", "SET", key, value]);
        assert!(reply.error().contains("with a restart only"), "{key}: {}", reply.error());
    }
}
