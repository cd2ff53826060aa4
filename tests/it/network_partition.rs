//! What the server still has of proxies that were cut off: killed by those that live, and by the same proxy when it is
//! back. No FIN, no RST: needs root, network namespaces and iptables; says so otherwise. The servers have no keepalive
//! of their own, so nothing here is theirs.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{
    Client, ClientFleet, Namespace, PATIENCE, Proxy, Sampler, Server, State, Version, free_port, is_root,
    long, throughout, until,
};

/// Short times, so that a test sees what takes minutes otherwise; the proportions are those of the defaults.
const QUICK: [&str; 5] = [
    "hygiene.heartbeat=1s",
    "hygiene.orphan_after=4s",
    "hygiene.interval=1s",
    "upstream.connect_timeout=1s",
    "upstream.loading_retry=0",
];
/// As long as the server may have a dead one's connections: `orphan_after`, one interval (10 % more), whole seconds.
const FORGOTTEN: Duration = Duration::from_secs(4 + 1 + 2);

fn needs_root() -> bool {
    if !is_root() {
        eprintln!("skipped: network namespaces need root");
    }
    !is_root()
}

/// A server without keepalive that hosts on these links reach.
fn server_for(version: &Version, hosts: &[Namespace]) -> Server {
    let near: Vec<_> = hosts.iter().map(|host| host.near_address().to_string()).collect();
    let mut options = vec!["--protected-mode", "no", "--tcp-keepalive", "0", "--timeout", "0"];
    options.extend(["--bind", "127.0.0.1"]);
    options.extend(near.iter().map(String::as_str));
    Server::start_version(version, &options)
}

/// Connections of the proxies that are called `name`.
fn of(server: &Server, name: &str) -> usize {
    let prefix = format!("redbouncer:{name}:");
    server.rows().iter().filter(|row| row.get("name").starts_with(&prefix)).count()
}

fn named<'a>(name: &'a str, settings: &[&'a str]) -> Vec<&'a str> {
    [&[name], &QUICK[..], settings].concat()
}

/// Sessions of every kind: five leases, the blocking hub, the pub/sub hub, a lane.
fn load(proxy: &Proxy) -> Vec<Client> {
    let mut clients: Vec<_> = (0..6).map(|_| proxy.connect()).collect();
    for client in clients.iter_mut().take(3) {
        assert_eq!(client.call("WATCH k").text(), "OK");
    }
    clients[3].start("BLPOP nothing 0");
    clients[4].call("SUBSCRIBE news");
    assert!(clients[5].call("INCR n").int() > 0);
    clients
}

#[test]
fn what_a_cut_network_leaves_on_the_server_goes_when_it_is_back() {
    if needs_root() {
        return;
    }
    let host = [Namespace::create()];
    let server = server_for(&Version::usual(), &host);
    // A lost peer is known in three seconds instead of thirty.
    let impatient = [
        "upstream.user_timeout=3s",
        "upstream.keepalive_idle=1s",
        "upstream.keepalive_interval=1s",
        "upstream.keepalive_count=2",
    ];
    let proxy = Proxy::start_in(&host[0], &server, &named("hygiene.name=web", &impatient));
    let mut clients = load(&proxy);
    until("all kinds are open", PATIENCE, || of(&server, "web") >= 6);
    let before = of(&server, "web");
    // Dials are older than that, so that what is left of them is judged.
    thread::sleep(Duration::from_secs(2));
    filter(&host[0], &server, "-I");
    for client in clients.iter_mut().take(3) {
        client.expect_end(Duration::from_secs(10));
    }
    clients[4].expect_end(Duration::from_secs(10));
    until("all are lost here", Duration::from_secs(10), || {
        let open = |(series, count): (&String, &f64)| series.contains("phase=\"open\"") && *count > 0.0;
        !proxy.metrics().iter().any(open)
    });
    assert_eq!(of(&server, "web"), before, "the server has not noticed");
    filter(&host[0], &server, "-D");
    let healed = Instant::now();
    until("they are gone from the server", Duration::from_secs(8), || {
        // The lane's client and the blocked one are still there.
        of(&server, "web") <= 3 && server.rows().iter().all(|row| row.get("cmd") != "watch")
    });
    eprintln!("{before} connections left behind, gone {:?} after the network was back", healed.elapsed());
    let killed = "redbouncer_orphans_killed_total{reason=\"left_behind\"}";
    assert!(proxy.metrics()[killed] >= 5.0, "{:?}", proxy.metrics());
    // And what has been opened since stays.
    assert!(clients[5].call("INCR n").int() > 0);
    let mut watching = proxy.connect();
    assert_eq!(watching.call("WATCH k").text(), "OK");
    throughout("the new ones stay", Duration::from_secs(4), || watching.call("EXISTS nothing").int() == 0);
}

/// Drops what goes to the server and comes from it, on the proxy's host; its clients are not concerned.
fn filter(host: &Namespace, server: &Server, how: &str) {
    let port = server.address().port().to_string();
    for (chain, side) in [("INPUT", "--sport"), ("OUTPUT", "--dport")] {
        let rule = ["iptables", how, chain, "-p", "tcp", side, &port, "-j", "DROP"];
        assert!(host.command().args(rule).status().expect("iptables runs").success());
    }
}

/// The client ids of the leases of the proxies that are called `name`.
fn leases(server: &Server, name: &str) -> BTreeSet<String> {
    let prefix = format!("redbouncer:{name}:");
    let rows = server.rows();
    let leases = rows.iter().filter(|row| row.get("name").starts_with(&prefix) && row.get("cmd") == "watch");
    leases.map(|row| row.get("id").to_owned()).collect()
}

/// The names of the proxies whose connections were killed, as the logs of `proxies` say.
fn killed(proxies: &[&Proxy]) -> BTreeSet<String> {
    let log = proxies.iter().map(|proxy| proxy.log()).collect::<Vec<_>>().join("\n");
    let lines = log.lines().filter(|line| line.contains("orphan killed"));
    let names = lines.filter_map(|line| line.split("redbouncer:").nth(1)?.split(':').next());
    names.map(str::to_owned).collect()
}

#[test]
fn of_many_proxies_only_the_dead_one_loses_its_connections() {
    if needs_root() {
        return;
    }
    thread::scope(|scope| {
        for version in Version::all() {
            scope.spawn(move || many_proxies(&version));
        }
    });
}

/// Two proxies under load; one is stopped for less than the limit, one killed and started again under its name, one cut
/// off for longer than the limit and back. Whatever is killed belongs to the last.
fn many_proxies(version: &Version) {
    let host = [Namespace::create()];
    let server = server_for(version, &host);
    // Room for a busy machine: who is stopped for three seconds is never silent for six.
    let patient: Vec<_> =
        QUICK.map(|set| if set.contains("orphan_after") { "hygiene.orphan_after=6s" } else { set }).into();
    let settings = |name| [&[name], &patient[..]].concat();
    let start = |name| Proxy::start(&server, &settings(name));
    let (one, two) = (start("hygiene.name=one"), start("hygiene.name=two"));
    let (stopped, crashed) = (start("hygiene.name=stopped"), start("hygiene.name=crashed"));
    let cut = Proxy::start_in(&host[0], &server, &settings("hygiene.name=cut"));
    let mut clients = [&one, &two, &stopped, &cut].map(load);
    let _gone = load(&crashed);
    let (over, mut served) = (AtomicBool::new(false), 0);
    let before = ["one", "two", "stopped"].map(|name| leases(&server, name));
    assert!(before.iter().all(|ids| ids.len() == 3), "{before:?}");
    thread::scope(|scope| {
        // A panic below must end the load, too.
        let _end = End(&over);
        let load = [&one, &two].map(|proxy| {
            let mut client = proxy.connect();
            let over = &over;
            scope.spawn(move || {
                let mut count = 0;
                while !over.load(SeqCst) {
                    client.pipeline(&["INCR n", "GET n", "SET k v", "GET k"]);
                    count += 4;
                }
                count
            })
        });
        filter(&host[0], &server, "-I");
        stopped.signal("STOP");
        thread::sleep(Duration::from_secs(3));
        stopped.signal("CONT");
        crashed.kill();
        let crashed = start("hygiene.name=crashed");
        let mut again = self::load(&crashed);
        until("the one that was cut off is forgotten", PATIENCE, || of(&server, "cut") == 0);
        filter(&host[0], &server, "-D");
        // Its hubs and lanes come back; its leases are lost with their clients.
        until("it is there again", PATIENCE + PATIENCE, || {
            let mut client = cut.connect();
            client.start("INCR n");
            client.try_reply(Duration::from_secs(1)).is_ok_and(|reply| !reply.is_error())
        });
        thread::sleep(FORGOTTEN);
        assert_eq!(before, ["one", "two", "stopped"].map(|name| leases(&server, name)), "the same leases");
        for client in clients.iter_mut().take(3).map(|clients| &mut clients[0]).chain(&mut again[..1]) {
            assert_eq!(client.call("EXISTS nothing").int(), 0, "its lease lives");
        }
        let all = [&one, &two, &stopped, &cut, &crashed];
        assert_eq!(killed(&all), BTreeSet::from(["cut".to_owned()]));
        over.store(true, SeqCst);
        served = load.into_iter().map(|load| load.join().expect("the load is served")).sum();
    });
    eprintln!("{}: {served} commands served meanwhile", version.name);
}

/// Says that it is over, a failed test included.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn a_proxy_that_is_stopped_for_too_long_loses_its_connections_and_goes_on() {
    let server = Server::start_with(&["--tcp-keepalive", "0"]);
    let stopped = Proxy::start(&server, &named("hygiene.name=stopped", &[]));
    let other = Proxy::start(&server, &named("hygiene.name=other", &[]));
    let mut clients = load(&stopped);
    let mut witnesses = load(&other);
    stopped.signal("STOP");
    until("it is taken for dead", FORGOTTEN + Duration::from_secs(2), || of(&server, "stopped") == 0);
    stopped.signal("CONT");
    clients[0].expect_end(PATIENCE);
    assert!(clients[5].call("INCR n").int() > 0, "it goes on");
    until("it is there again", PATIENCE, || of(&server, "stopped") >= 1);
    assert_eq!(witnesses[0].call("EXISTS nothing").int(), 0);
    assert_eq!(killed(&[&stopped, &other]), BTreeSet::from(["stopped".to_owned()]));
}

/// The proxy's host is cut off and replaced, again and again, as soon as the rule allows for.
fn hosts_cut_off_and_replaced(name: impl Fn(usize) -> String) {
    let count = if long() { 10 } else { 3 };
    let hosts: Vec<_> = (0..=count).map(|_| Namespace::create()).collect();
    let server = server_for(&Version::usual(), &hosts);
    let sampler = Sampler::start(&server);
    let ours = || server.rows().iter().filter(|row| row.get("name").starts_with("redbouncer:")).count();
    let mut kept = Vec::new();
    for (at, host) in hosts.iter().enumerate() {
        let name = format!("hygiene.name={}", name(at));
        let proxy = Proxy::start_in(host, &server, &named(&name, &[]));
        let clients = load(&proxy);
        // The one before is forgotten, then this one is cut off.
        let begun = Instant::now();
        until("the ones before are forgotten", FORGOTTEN, || ours() <= 8);
        thread::sleep(FORGOTTEN.saturating_sub(begun.elapsed()));
        assert!((5..=8).contains(&ours()), "one proxy's share: {}", ours());
        if at < count {
            host.vanish();
        }
        kept.push((proxy, clients));
    }
    let sampled = sampler.finish();
    eprintln!("{count} hosts cut off: never more than {} connections", sampled.peak);
    assert!(sampled.peak <= 2 * 8, "{sampled:?}");
    drop(kept);
}

#[test]
fn hosts_cut_off_and_replaced_under_one_name_never_pile_up() {
    if !needs_root() {
        hosts_cut_off_and_replaced(|_| "web".to_owned());
    }
}

#[test]
fn hosts_cut_off_and_replaced_under_new_names_never_pile_up() {
    if !needs_root() {
        hosts_cut_off_and_replaced(|at| format!("web-{at}"));
    }
}

#[test]
fn with_the_default_times_a_lost_proxy_is_forgotten_in_90_seconds() {
    if needs_root() || !long() {
        eprintln!("skipped: takes root, and a minute and a half: REDBOUNCER_LONG=1");
        return;
    }
    let host = [Namespace::create()];
    let server = server_for(&Version::usual(), &host);
    let _living = Proxy::start(&server, &["hygiene.name=living"]);
    let lost = Proxy::start_in(&host[0], &server, &["hygiene.name=lost"]);
    let _clients = load(&lost);
    host[0].vanish();
    let start = Instant::now();
    // orphan_after, and one interval, which is up to 10 % longer.
    until("it is forgotten", Duration::from_secs(60 + 33 + 1), || of(&server, "lost") == 0);
    eprintln!("forgotten {:?} after its host was lost", start.elapsed());
}

/// What the reaper is for: the same without it.
#[test]
fn without_reaping_hosts_cut_off_pile_up() {
    if needs_root() {
        return;
    }
    let hosts: Vec<_> = (0..3).map(|_| Namespace::create()).collect();
    let server = server_for(&Version::usual(), &hosts);
    let mut kept = Vec::new();
    let mut counts = Vec::new();
    for host in &hosts {
        let proxy = Proxy::start_in(host, &server, &named("hygiene.name=web", &["hygiene.reap=false"]));
        let clients = load(&proxy);
        host.vanish();
        kept.push((proxy, clients));
        counts.push(of(&server, "web"));
    }
    throughout("nobody takes them away", FORGOTTEN, || of(&server, "web") >= counts[2]);
    eprintln!("without reaping: {counts:?} connections after each host");
    assert!(counts.windows(2).all(|pair| pair[1] >= pair[0] + 5), "{counts:?}");
}

/// A backend with 35 connections: workers that wait, subscribers, those that hold a connection, and the rest.
fn backend(host: &Namespace, address: SocketAddr) -> [ClientFleet; 4] {
    [(20, State::InBlpop), (5, State::Subscribed), (3, State::InWatch), (7, State::Idle)]
        .map(|(clients, state)| ClientFleet::start_in(host, address, clients, state))
}

#[test]
fn a_backend_restarted_with_its_network_cut_piles_up_without_a_proxy() {
    if needs_root() {
        return;
    }
    let hosts: Vec<_> = (0..4).map(|_| Namespace::create()).collect();
    let server = server_for(&Version::usual(), &hosts);
    let mut counts = Vec::new();
    let _crowds: Vec<_> = hosts
        .iter()
        .map(|host| {
            let crowds = backend(host, (host.near_address(), server.address().port()).into());
            host.vanish();
            counts.push(server.clients());
            crowds
        })
        .collect();
    eprintln!("directly: {counts:?} connections after each restart");
    assert_eq!(counts, [35, 70, 105, 140]);
}

#[test]
fn a_backend_restarted_with_its_network_cut_never_passes_the_cap() {
    if needs_root() {
        return;
    }
    let count = if long() { 20 } else { 2 };
    let server = Server::start_with(&["--tcp-keepalive", "0"]);
    let hosts: Vec<_> = (0..count).map(|_| Namespace::create()).collect();
    let port = free_port();
    let addresses: Vec<_> = hosts.iter().map(|host| format!("\"{}:{port}\"", host.near_address())).collect();
    let sampler = Sampler::start(&server);
    let listen = format!("listen.addresses=[{}]", addresses.join(","));
    let _proxy = Proxy::start(&server, &[&listen, "auth.mode=open", "listen.protected_mode=false"]);
    let mut crowds = Vec::new();
    for host in &hosts {
        crowds.push(backend(host, (host.near_address(), port).into()));
        host.vanish();
    }
    let last = Instant::now();
    until("everything is released", Duration::from_secs(30), || server.clients() == 0);
    let released = last.elapsed();
    let sampled = sampler.finish();
    eprintln!("{count} restarts: at most {}, nothing {released:?} after the last", sampled.peak);
    assert!(sampled.peak <= 8, "{sampled:?}");
}
