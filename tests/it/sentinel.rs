//! Behind Redis Sentinel: the master is found, and followed when another server takes its place.

use std::io::Read;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::harness::{
    Authority, Client, Ended, Guarded, Namespace, PATIENCE, Proxy, Reply, SERVICE, Sentinel, Server, Service,
    VALID, free_port, is_root, rows_of, throughout, until,
};

/// A failover: `down-after-milliseconds`, the election, and what a busy machine adds.
const FAILOVER: Duration = Duration::from_secs(30);
/// While a command waits for a new master.
const WAITS: &str = "upstream.failover_wait=30s";

fn start(service: &Service, settings: &[&str]) -> Proxy {
    let settings: Vec<&str> = settings.iter().copied().chain([WAITS]).collect();
    Proxy::launch(&service.url(), &settings).unwrap_or_else(|exit| panic!("the proxy ended: {exit:#?}"))
}

/// Asks `server` on a connection of its own: a Sentinel closes the others when it changes the role.
fn asked(server: &Server, command: &str) -> Reply {
    server.probe().call(command)
}

/// Whether `server` says that it is a replica; a Sentinel may close the connection just then.
fn is_replica(server: &Server) -> bool {
    let mut asking = Client::connect(server.address());
    asking.start("ROLE");
    asking.try_reply(PATIENCE).is_ok_and(|role| role.items()[0].text() == "slave")
}

/// Connections of the proxy on `server`, by its own list.
fn connections(server: &Server) -> usize {
    let rows = rows_of(&asked(server, "CLIENT LIST"));
    rows.iter().filter(|row| row.get("name").starts_with("redbouncer:")).count()
}

/// What `/status` says of the service, a line each.
fn topology(proxy: &Proxy) -> String {
    let status = proxy.status();
    let shown = &status["upstream"]["sentinel"];
    let word = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut lines = format!("node={} service={}\n", word(&shown["master"]), word(&shown["service"]));
    for row in shown["sentinels"].as_array().unwrap_or(&Vec::new()) {
        let [address, state, names, epoch, reason] =
            ["address", "state", "names", "epoch", "reason"].map(|field| word(&row[field]));
        lines += &format!("sentinel={address} state={state} master={names} epoch={epoch} reason={reason}\n");
    }
    if !shown["last_failover"].is_null() {
        lines += &format!("failover from={}\n", word(&shown["last_failover"]["from"]));
    }
    lines
}

fn closed(client: &mut Client) -> bool {
    client.try_reply(Duration::from_millis(1)).is_err_and(|ended| ended != Ended::Late)
}

/// How long commands find no master after more than half of the Sentinels name one.
struct Gap {
    named: Instant,
    served: Instant,
}

/// A client that wrote before goes on writing: from the first write that the new master takes.
fn measure(service: &Service, writer: &mut Client) -> Gap {
    let stop = AtomicBool::new(false);
    let former = service.servers[0].address();
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if service.named().is_some_and(|named| named != former) {
                    return Instant::now();
                }
                thread::sleep(Duration::from_millis(5));
            }
            Instant::now()
        });
        writer.start("SET gap x");
        assert_eq!(writer.reply_within(FAILOVER).text(), "OK");
        let served = Instant::now();
        stop.store(true, Ordering::Relaxed);
        let gap = Gap { named: watch.join().unwrap(), served };
        println!("served {:?} after it was named", gap.served.saturating_duration_since(gap.named));
        gap
    })
}

#[test]
fn the_master_is_found_by_any_sentinel_and_the_others_are_met() {
    let service = Service::start();
    let dead = free_port();
    let url = format!("redis-sentinel://127.0.0.1:{dead},{}/{SERVICE}/3", service.sentinels[1].address());
    let proxy = Proxy::launch(&url, &[]).unwrap();
    let mut client = proxy.connect();
    assert_eq!(client.call("SET k v").text(), "OK");
    assert_eq!(service.servers[0].probe().pipeline(&["SELECT 3", "GET k"])[1].text(), "v");
    assert!(service.servers[1..].iter().all(|replica| connections(replica) == 0));
    let state = |state: &str| proxy.metrics()[&format!("redbouncer_sentinels{{state=\"{state}\"}}")];
    until("all are met", PATIENCE, || state("connected") == 3.0 && state("unreachable") == 1.0);
    for sentinel in &service.sentinels {
        let rows = sentinel.rows();
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert!(rows[0].get("name").ends_with(":sentinel"), "{rows:?}");
    }
    let status = proxy.status();
    let master = service.servers[0].address().to_string();
    assert_eq!(status["upstream"]["sentinel"]["master"], master.as_str());
    assert_eq!(status["upstream"]["sentinel"]["sentinels"].as_array().unwrap().len(), 4);
    let shown = topology(&proxy);
    assert!(shown.contains(&format!("node={master} service={SERVICE}")), "{shown}");
    assert!(shown.contains(&format!("sentinel=127.0.0.1:{dead} state=unreachable")), "{shown}");
    assert_eq!(shown.matches("state=connected").count(), 3, "{shown}");
    let (exit, screen) = Proxy::run_to_end(&["status", "--admin", &proxy.admin().to_string()], &[]);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(screen.contains(&format!("sentinel {SERVICE}: {master} for ")), "{screen}");
    assert!(screen.contains(", named by 3 of 4 Sentinels\n"), "{screen}");
    assert!(screen.contains(&format!("1 of 4 Sentinels not connected, first 127.0.0.1:{dead}")), "{screen}");
    let told = client.call("PROXY TOPOLOGY").lines();
    let connections = connections(&service.servers[0]);
    assert!(told.contains(&format!("node={master} role=master connections={connections} age=")), "{told}");
    assert!(told.contains(&format!("sentinel=127.0.0.1:{dead} state=unreachable reason=")), "{told}");
    assert_eq!(told.matches(&format!("state=connected master={master} epoch=")).count(), 3, "{told}");
}

#[test]
fn a_killed_master_is_replaced_and_who_waits_notices_nothing() {
    let mut service = Service::start();
    let proxy = start(&service, &["pubsub.resubscribe=silent"]);
    let (mut idle, mut blocked, mut writer) = (proxy.connect(), proxy.connect(), proxy.connect());
    let mut subscriber = proxy.connect();
    assert_eq!(idle.call("SET k v").text(), "OK");
    assert_eq!(writer.call("SET k v").text(), "OK");
    subscriber.call("SUBSCRIBE news");
    blocked.start("BLPOP list 0");
    let mut in_block = proxy.connect();
    in_block.pipeline(&["WATCH k", "MULTI", "SET k w"]);
    until("it waits", PATIENCE, || proxy.status()["clients"].to_string().contains("hub"));
    service.servers[0].kill();
    let gap = measure(&service, &mut writer);
    assert!(gap.served.saturating_duration_since(gap.named) < Duration::from_secs(1));
    assert_eq!(idle.call("GET gap").text(), "x");
    let master = service.await_failover();
    assert_eq!(asked(master, "GET gap").text(), "x");
    until("the state of a transaction is lost with its connection", PATIENCE, || closed(&mut in_block));
    assert_eq!(idle.call("RPUSH list e").int(), 1);
    assert_eq!(blocked.reply_within(PATIENCE).items()[1].text(), "e");
    until("the subscription is there again", PATIENCE, || asked(master, "PUBLISH news x").int() == 1);
    assert_eq!(subscriber.reply_within(PATIENCE).items()[2].text(), "x");
    assert!(connections(master) <= 8);
    let counted = proxy.counted();
    assert_eq!(counted["redbouncer_master_switches_total{cause=\"lost\"}"], 1.0, "{counted:?}");
    assert!(counted["redbouncer_master_switch_seconds"] < FAILOVER.as_secs_f64());
    until("the log tells of it", PATIENCE, || {
        let log = proxy.log();
        log.contains("the Sentinels name another master; connections move there")
            && log
                .lines()
                .any(|line| line.contains("the failover is over") && line.contains("clients_closed"))
    });
    assert!(topology(&proxy).contains("failover from="), "{}", topology(&proxy));
}

/// Nobody is told that it is gone, and it accepts writes as long as it is cut off.
#[test]
fn a_master_that_is_cut_off_is_replaced_and_gets_nothing_when_it_is_back() {
    if !is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let namespace = Namespace::create();
    let service = Service::start_guarded(&Guarded { master: Some(&namespace), ..Guarded::default() });
    let proxy = start(&service, &[]);
    let (mut idle, mut blocked, mut caught) = (proxy.connect(), proxy.connect(), proxy.connect());
    for client in [&mut idle, &mut caught] {
        assert_eq!(client.call("SET k v").text(), "OK");
    }
    blocked.start("BLPOP list 0");
    until("it waits", PATIENCE, || proxy.status()["clients"].to_string().contains("hub"));
    namespace.vanish();
    caught.start("SET k lost");
    let master = service.await_failover();
    // What is sent before the workers have heard of it goes to the former master.
    until("redbouncer has followed", FAILOVER, || proxy.log().contains("the failover is over"));
    idle.start("SET k w");
    assert_eq!(idle.reply_within(FAILOVER).text(), "OK");
    assert_eq!(asked(master, "GET k").text(), "w");
    until("who waits for a reply of the former master is closed", FAILOVER, || closed(&mut caught));
    idle.call("RPUSH list x");
    assert_eq!(blocked.reply_within(FAILOVER).items()[1].text(), "x");
    namespace.come_back();
    until("the former master is a replica", FAILOVER, || is_replica(&service.servers[0]));
    until("nothing is left there", FAILOVER, || connections(&service.servers[0]) == 0);
    throughout("it gets nothing", Duration::from_secs(1), || connections(&service.servers[0]) == 0);
    assert!(connections(master) > 0);
}

#[test]
fn a_master_that_stood_still_gets_no_command_when_it_goes_on() {
    let service = Service::start();
    let proxy = start(&service, &[]);
    let old = &service.servers[0];
    let mut monitor = old.probe();
    monitor.call("MONITOR");
    let (mut idle, mut caught, mut blocked, mut holder) =
        (proxy.connect(), proxy.connect(), proxy.connect(), proxy.connect());
    for client in [&mut idle, &mut caught] {
        assert_eq!(client.call("SET k v").text(), "OK");
    }
    holder.pipeline(&["WATCH k", "GET k"]);
    blocked.start("BLPOP list 0");
    until("it waits", PATIENCE, || proxy.status()["clients"].to_string().contains("hub"));
    old.signal("STOP");
    caught.start("GET caught");
    let master = service.await_failover();
    let named = Instant::now();
    // The lane of `caught` is left at once: whoever wrote nothing goes on with the other server.
    until("it is followed", PATIENCE, || topology(&proxy).contains(&format!("node={} ", master.address())));
    println!("followed within {:?}", named.elapsed());
    assert_eq!(idle.call("SET after:0 x").text(), "OK");
    until("the command that was written to it is lost with its client", PATIENCE, || closed(&mut caught));
    until("so is the state there", PATIENCE, || closed(&mut holder));
    assert_eq!(idle.call("RPUSH list e").int(), 1);
    assert_eq!(blocked.reply_within(PATIENCE).items()[1].text(), "e");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut number = 0;
            // Not for ever, if something else fails.
            while !stop.load(Ordering::Relaxed) && named.elapsed() < Duration::from_secs(45) {
                number += 1;
                assert!(idle.ask(&["GET", &format!("after:{number}")]).is_nil());
            }
            number
        });
        old.signal("CONT");
        // Until it has been told that it is a replica now it would take writes.
        until("it is made a replica", FAILOVER, || is_replica(old));
        assert_eq!(connections(old), 0);
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0);
    });
    let mut heard = String::new();
    while let Ok(line) = monitor.try_reply(Duration::from_millis(300)) {
        heard.push_str(&line.text());
        heard.push('\n');
    }
    assert!(heard.contains("\"GET\" \"caught\""), "what was written before is run: {heard}");
    assert!(!heard.contains("\"GET\" \"after:"), "{heard}");
    let closed = proxy.counted();
    assert_eq!(closed["redbouncer_master_switches_total{cause=\"switched\"}"], 1.0, "{closed:?}");
}

#[test]
fn a_failover_that_is_asked_for_closes_no_idle_client() {
    let service = Service::start();
    let proxy = start(&service, &["listen.workers=2", "pool.max_connections=16"]);
    let mut clients: Vec<Client> = (0..20).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.call("SET k v").text(), "OK");
    }
    // A replica that was heard of a moment ago is needed.
    until("a Sentinel begins", PATIENCE, || {
        service.sentinels[0].probe().ask(&["SENTINEL", "FAILOVER", SERVICE]).text() == "OK"
    });
    let master = service.await_failover();
    until("it is followed", PATIENCE, || topology(&proxy).contains(&format!("node={} ", master.address())));
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.ask(&["SET", &format!("k{number}"), "w"]).text(), "OK");
    }
    assert_eq!(asked(master, "EXISTS k0 k19").int(), 2);
    until("the former master is left", PATIENCE, || connections(&service.servers[0]) == 0);
    assert!(connections(master) <= 16);
}

#[test]
fn one_sentinel_against_the_others_is_not_followed() {
    let service = Service::start();
    let elsewhere = Server::start();
    // It has seen a later election, of a service that is none of the others' affair.
    let lines = format!("sentinel config-epoch {SERVICE} 99\n");
    let id = "d".repeat(40);
    let stale = Sentinel::start(free_port(), &id, elsewhere.address(), &Guarded::default(), &lines);
    let url = service.url().replacen("://", &format!("://{},", stale.address()), 1);
    let proxy = Proxy::launch(&url, &["upstream.sentinel.poll=1s"]).unwrap();
    let mut client = proxy.connect();
    assert_eq!(client.call("SET k v").text(), "OK");
    until("all are asked", PATIENCE, || topology(&proxy).matches("state=connected").count() == 4);
    assert!(topology(&proxy).contains(&format!("master={} epoch=99", elsewhere.address())));
    throughout("it is not followed", Duration::from_secs(3), || {
        client.call("SET k v").text() == "OK" && connections(&elsewhere) == 0
    });
    assert_eq!(elsewhere.call("DBSIZE").int(), 0);
}

#[test]
fn without_sentinels_the_last_master_stays_and_at_the_start_none_is_guessed() {
    let mut service = Service::start();
    let proxy = start(&service, &[]);
    let mut client = proxy.connect();
    assert_eq!(client.call("SET k v").text(), "OK");
    for sentinel in &mut service.sentinels {
        sentinel.kill();
    }
    until("that is said", PATIENCE * 2, || {
        proxy.log().contains("no Sentinel answers; the last master stays in use")
    });
    assert_eq!(client.call("SET k w").text(), "OK");
    assert_eq!(proxy.http("/ready").0, 200);
    // Its connections are made anew there, too.
    service.servers[0].call("CLIENT KILL TYPE normal SKIPME yes");
    until("it goes on", PATIENCE, || proxy.connect().call("GET k").text() == "w");

    let impatient = ["upstream.failover_wait=0", "upstream.connect_timeout=500ms"];
    let another = Proxy::launch(&service.url(), &impatient).unwrap();
    assert_eq!(another.http("/ready").0, 503);
    until("that is said", PATIENCE, || another.log().contains("no Sentinel names a master"));
    let mut waits = another.connect();
    waits.start("GET k");
    waits.expect_end(PATIENCE);
    for sentinel in &mut service.sentinels {
        sentinel.restart();
    }
    until("it is ready", PATIENCE * 2, || another.http("/ready").0 == 200);
    assert_eq!(another.connect().call("GET k").text(), "w");
    until("the first one hears them again", PATIENCE * 2, || proxy.log().contains("Sentinels answer again"));
}

#[test]
fn sentinels_have_a_password_of_their_own_and_never_get_the_server_s() {
    let service = Service::start_guarded(&Guarded {
        server: Some("data"),
        sentinel: Some("sesame"),
        ..Guarded::default()
    });
    let url = service.url().replacen("://", "://:data@", 1);
    let proxy = Proxy::launch(&url, &["upstream.sentinel.password=sesame"]).unwrap();
    assert_eq!(proxy.connect().call("SET k v").text(), "OK");
    assert_eq!(service.servers[0].call("GET k").text(), "v");
    // Without it they refuse us, and what they are shown is not the server's password.
    let spy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = spy.local_addr().unwrap();
    let refused = Proxy::launch(&url.replacen('@', &format!("@{address},"), 1), &[]).unwrap();
    let (mut socket, _) = spy.accept().unwrap();
    let mut seen = vec![0; 4096];
    let count = socket.read(&mut seen).unwrap();
    let seen = String::from_utf8_lossy(&seen[..count]).into_owned();
    assert!(seen.contains("HELLO") && !seen.contains("data") && !seen.contains("AUTH"), "{seen:?}");
    until("they refuse us", PATIENCE, || topology(&refused).matches("state=refused").count() == 3);
    assert!(topology(&refused).contains("NOAUTH"), "{}", topology(&refused));
    assert!(!refused.log().contains("sesame") && !proxy.log().contains("sesame"));
}

#[test]
fn sentinels_are_spoken_to_with_tls_where_the_server_is_not() {
    let authority = Authority::new("sentinels");
    let issued = authority.issue("sentinel", &["127.0.0.1"], VALID);
    let service = Service::start_guarded(&Guarded { tls: Some((&authority, &issued)), ..Guarded::default() });
    let hosts: Vec<_> = service.sentinels.iter().map(|sentinel| sentinel.tls_address().to_string()).collect();
    let url = format!("redis-sentinel://{}/{SERVICE}", hosts.join(","));
    let ca = format!("upstream.tls.ca={}", authority.ca().display());
    let proxy = Proxy::launch(&url, &["upstream.sentinel.tls=on", &ca]).unwrap();
    assert_eq!(proxy.connect().call("SET k v").text(), "OK");
    assert_eq!(service.servers[0].call("GET k").text(), "v");
    // Known by their ids, they are not asked at their other ports as well.
    until("all are met", PATIENCE, || topology(&proxy).matches("state=connected").count() == 3);
    assert_eq!(topology(&proxy).matches("sentinel=").count(), 3, "{}", topology(&proxy));
}

#[test]
fn check_asks_every_sentinel_and_cleanup_finds_the_master() {
    let mut service = Service::start();
    service.sentinels[2].kill();
    let url = service.url();
    let (exit, said) = Proxy::run_to_end(&["check", "--upstream", &url], &[]);
    assert_eq!(exit.code, Some(0), "{said}{}", exit.stderr);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let master = service.servers[0].address();
    assert!(said.contains(&format!("2 of 3 name {master} as the master of {SERVICE}")), "{said}");
    assert!(said.contains(&format!("{}: connection refused", service.sentinels[2].address())), "{said}");
    let (exit, _) = Proxy::run_to_end(&["cleanup", "--upstream", &url], &[]);
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let unknown = url.replace(SERVICE, "another");
    let (exit, said) = Proxy::run_to_end(&["check", "--upstream", &unknown], &[]);
    assert_eq!(exit.code, Some(1), "{said}");
    assert!(said.contains("it does not know the service another"), "{said}");
    let (exit, _) = Proxy::run_to_end(&["cleanup", "--upstream", &unknown], &[]);
    assert!(exit.stderr.contains("named no master of another"), "{}", exit.stderr);
}

#[test]
fn a_reload_goes_from_a_server_to_sentinels_and_back() {
    let service = Service::start();
    let alone = Server::start();
    let proxy = Proxy::start(&alone, &[]);
    let mut client = proxy.connect();
    let set =
        |client: &mut Client, url: &str| client.ask(&["PROXY", "CONFIG", "SET", "upstream.url", url]).lines();
    assert_eq!(client.call("SET k alone").text(), "OK");
    assert!(set(&mut client, &service.url()).contains("upstream.url"));
    until("the master is found", PATIENCE, || connections(&alone) == 0);
    assert_eq!(client.call("SET k service").text(), "OK");
    assert_eq!(service.servers[0].call("GET k").text(), "service");
    assert!(set(&mut client, &alone.url()).contains("upstream.url"));
    until("it is left", PATIENCE, || connections(&service.servers[0]) == 0);
    assert_eq!(client.call("GET k").text(), "alone");
    until("no Sentinel is asked", PATIENCE, || {
        service.sentinels.iter().all(|sentinel| sentinel.rows().is_empty())
    });
}
