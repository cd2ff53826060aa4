//! Several proxies share the connections of one server (`fleet.total_connections`): whatever happens to them, the server never
//! sees more than the total, but for the control connections of those that start.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::harness::{Client, PATIENCE, Proxy, Row, Server, long, rows_of, throughout, until};

const HEADROOM: usize = 2;
const MINIMUM: usize = 4;
/// A newcomer waits for others to notice it and for their leases to end.
const NEWCOMER: Duration = Duration::from_secs(25);

/// A proxy called `name` that shares `total` connections.
fn member(server: &Server, name: &str, total: usize) -> Proxy {
    member_that_waits(server, name, total, "10s")
}

/// The same without hubs: what is kept for them would be claimed and not opened.
fn member_without_hubs(server: &Server, name: &str, total: usize) -> Proxy {
    let own = settings_of(name, total, "10s");
    let own = own.iter().map(String::as_str).chain(["blocking.hub=false", "pubsub.hub=false"]);
    Proxy::start(server, &own.collect::<Vec<_>>())
}

/// The same, where `wait` is `pool.wait_timeout`.
fn member_that_waits(server: &Server, name: &str, total: usize, wait: &str) -> Proxy {
    let own = settings_of(name, total, wait);
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    Proxy::start(server, &own)
}

fn settings_of(name: &str, total: usize, wait: &str) -> Vec<String> {
    vec![
        format!("hygiene.name={name}"),
        format!("fleet.total_connections={total}"),
        format!("pool.max_connections={total}"),
        "fleet.interval=500ms".to_owned(),
        format!("pool.wait_timeout={wait}"),
    ]
}

/// Clients that each take a lease again and again, for some milliseconds.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(address: SocketAddr, clients: usize) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let one = |number: usize| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            thread::spawn(move || {
                let mut random = fastrand::Rng::with_seed(number as u64);
                while !stop.load(SeqCst) {
                    // The server restarts, and proxies are killed: then it comes again.
                    let Ok(mut client) = Client::try_connect(address) else {
                        thread::sleep(Duration::from_millis(20));
                        continue;
                    };
                    while !stop.load(SeqCst) && takes_a_lease(&mut client, random.u64(5..60)) {
                        served.fetch_add(1, SeqCst);
                    }
                }
            })
        };
        Self { threads: (0..clients).map(one).collect(), stop, served }
    }

    fn served(&self) -> usize {
        self.served.load(SeqCst)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// WATCH holds a connection until UNWATCH.
fn takes_a_lease(client: &mut Client, hold: u64) -> bool {
    let mut says_ok = |command: &str| {
        client.try_send(crate::harness::encode(&command.split(' ').collect::<Vec<_>>())).is_ok()
            && client.try_reply(Duration::from_secs(15)).is_ok_and(|reply| !reply.is_error())
    };
    if !says_ok("WATCH w") {
        return false;
    }
    thread::sleep(Duration::from_millis(hold));
    says_ok("UNWATCH")
}

/// What the instances on the server claim, by name.
#[derive(Debug, Default)]
struct Seen(BTreeMap<String, usize>);

impl Seen {
    fn of(rows: &[Row]) -> Self {
        let mut seen = Self::default();
        for row in rows {
            let parts: Vec<&str> = row.get("name").split(':').collect();
            let ["redbouncer", name, ..] = parts[..] else { continue };
            let claim = seen.0.entry(name.to_owned()).or_default();
            if let Some(registered) = parts.get(4) {
                *claim += registered.trim_end_matches(['+', '-']).parse::<usize>().unwrap();
            }
        }
        seen
    }

    fn on(server: &Server) -> Self {
        Self::of(&server.rows())
    }

    fn claim(&self, name: &str) -> usize {
        self.0.get(name).copied().unwrap_or_default()
    }
}

/// Lists the server's clients every 10 ms and compares with the total.
struct Watcher {
    stop: Arc<AtomicBool>,
    /// Instances that start: their control connections may come on top.
    starting: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Watched>>,
}

#[derive(Default)]
struct Watched {
    samples: usize,
    peak: usize,
    above: Vec<String>,
}

impl Watcher {
    fn start(server: &Server, total: usize) -> Self {
        let (stop, starting) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopping, newcomers, address) = (Arc::clone(&stop), Arc::clone(&starting), server.address());
        let thread = thread::spawn(move || {
            let (mut watched, mut probe) = (Watched::default(), None);
            while !stopping.load(SeqCst) {
                thread::sleep(Duration::from_millis(10));
                // Before the listing: one that has started meanwhile may be in it.
                let before = newcomers.load(SeqCst);
                let Some(rows) = listing(&mut probe, address) else { continue };
                let most = total + before.max(newcomers.load(SeqCst)).saturating_sub(HEADROOM);
                watched.samples += 1;
                watched.peak = watched.peak.max(rows.len());
                if rows.len() > most {
                    let names: Vec<_> = rows.iter().map(|row| row.get("name").to_owned()).collect();
                    watched.above.push(format!("{} of {most}: {names:?}", rows.len()));
                }
            }
            watched
        });
        Self { stop, starting, thread: Some(thread) }
    }

    /// `count` instances start, and register, while `work` is done.
    fn while_starting<T>(&self, count: usize, work: impl FnOnce() -> T) -> T {
        self.starting.fetch_add(count, SeqCst);
        let done = work();
        self.starting.fetch_sub(count, SeqCst);
        done
    }

    #[track_caller]
    fn finish(mut self) -> Watched {
        self.stop.store(true, SeqCst);
        let watched = self.thread.take().unwrap().join().unwrap();
        assert!(
            watched.above.is_empty(),
            "{} samples above: {:#?}",
            watched.above.len(),
            watched.above.first()
        );
        assert!(watched.samples > 20 && watched.peak > 0, "{} samples", watched.samples);
        watched
    }
}

fn listing(probe: &mut Option<Client>, address: SocketAddr) -> Option<Vec<Row>> {
    if probe.is_none() {
        let mut client = Client::try_connect(address).ok()?;
        client.try_send(crate::harness::encode(&["CLIENT", "SETNAME", "probe"])).ok()?;
        client.try_reply(PATIENCE).ok()?;
        *probe = Some(client);
    }
    let client = probe.as_mut()?;
    let asked = client.try_send(crate::harness::encode(&["CLIENT", "LIST"])).ok();
    let reply = asked.and_then(|()| client.try_reply(PATIENCE).ok());
    if reply.is_none() {
        *probe = None;
    }
    Some(rows_of(&reply?))
}

#[test]
fn churn() {
    let count = if long() { 8 } else { 4 };
    let total = 5 * count + HEADROOM;
    let mut server = Server::start();
    let watcher = Watcher::start(&server, total);
    let name = |at: usize| format!("p{at}");
    let join = |server: &Server, at: usize| {
        watcher.while_starting(1, || {
            let proxy = member_without_hubs(server, &name(at), total);
            until("it has its minimum", NEWCOMER, || Seen::on(server).claim(&name(at)) >= MINIMUM);
            proxy
        })
    };
    let mut proxies = vec![join(&server, 0)];
    let mut loads = vec![Load::start(proxies[0].address(), total)];
    until("alone it takes all that may be claimed", PATIENCE, || {
        Seen::on(&server).claim("p0") == total - HEADROOM
    });
    for at in 1..count {
        proxies.push(join(&server, at));
        loads.push(Load::start(proxies[at].address(), total));
    }
    let all_have = |server: &Server, least: usize, among: &[usize]| {
        let seen = Seen::on(server);
        among.iter().all(|at| seen.claim(&name(*at)) >= least)
    };
    let everybody: Vec<usize> = (0..count).collect();
    until("all have a fair part", NEWCOMER, || all_have(&server, 5, &everybody));

    // One is killed: the others have its part.
    proxies.remove(1).kill();
    let others: Vec<usize> = everybody.iter().copied().filter(|at| *at != 1).collect();
    let more = 5 + 5 / (count - 1);
    until("the others have what it left", NEWCOMER, || all_have(&server, more, &others));

    // One is stopped, and goes on where it was.
    proxies[1].signal("STOP");
    throughout("what it claims stays its own", Duration::from_secs(1), || {
        Seen::on(&server).claim("p2") >= MINIMUM
    });
    proxies[1].signal("CONT");
    let before = loads[2].served();
    until("it serves again", PATIENCE, || loads[2].served() > before + 20);

    // All start again, at the same time.
    watcher.while_starting(count, || {
        server.restart();
        until("all are back", NEWCOMER, || all_have(&server, MINIMUM, &others));
    });
    let before: Vec<usize> = loads.iter().map(Load::served).collect();
    until("all serve again", PATIENCE, || others.iter().all(|at| loads[*at].served() > before[*at] + 20));

    // A newcomer among greedy ones that hold everything.
    until("everything is claimed", NEWCOMER, || {
        let seen = Seen::on(&server);
        others.iter().map(|at| seen.claim(&name(*at))).sum::<usize>() == total - HEADROOM
    });
    proxies.push(join(&server, count));
    assert_eq!(proxies[0].connect().call("SET k v").text(), "OK");
    drop(loads);
    let watched = watcher.finish();
    assert!(
        watched.samples > 200 && watched.peak > total - 3 * HEADROOM,
        "{}: {}",
        watched.samples,
        watched.peak
    );
}

#[test]
fn connections_move_to_who_needs_them_and_idle_instances_keep_their_minimum() {
    let server = Server::start();
    let [idle, busy] = ["idle", "busy"].map(|name| member(&server, name, 22));
    let mut holders: Vec<Client> = (0..10).map(|_| busy.connect()).collect();
    for holder in &mut holders {
        assert_eq!(holder.call("WATCH w").text(), "OK");
    }
    let seen = Seen::on(&server);
    assert!(seen.claim("idle") == MINIMUM && (11..=16).contains(&seen.claim("busy")), "{seen:?}");
    // Now the other one needs them.
    let mut others: Vec<Client> = (0..6).map(|_| idle.connect()).collect();
    for other in &mut others {
        other.start("WATCH w");
    }
    until("it wants more", PATIENCE, || {
        server.rows().iter().any(|row| row.get("name").contains(":idle:") && row.get("name").ends_with('+'))
    });
    // Leases are not cut for it.
    for holder in &mut holders {
        assert!(holder.call("GET w").is_nil());
    }
    drop(holders);
    for other in &mut others {
        assert_eq!(other.reply_within(PATIENCE).text(), "OK");
    }
    until("what is not used is given up", PATIENCE, || Seen::on(&server).claim("busy") == MINIMUM);
    until("what is used is claimed", PATIENCE, || Seen::on(&server).claim("idle") >= 7);
}

#[test]
fn where_there_are_more_instances_than_connections_a_client_is_told_that_the_share_is_none() {
    let server = Server::start();
    // Four may be claimed: with three instances one has a connection for clients, with five none.
    let proxies: Vec<Proxy> =
        (0..3).map(|at| member_that_waits(&server, &format!("p{at}"), MINIMUM + HEADROOM, "300ms")).collect();
    let refused = |proxy: &Proxy| {
        let reply = proxy.connect().call("SET k v");
        reply.is_error()
            && reply.error() == "ERR redbouncer: this instance's share of fleet.total_connections is 0"
    };
    // While they divide it, all three may be refused for a moment.
    until("two are refused, and say so in their metrics", NEWCOMER, || {
        let has_none = |proxy: &&Proxy| proxy.metrics()["redbouncer_fleet_share"] == 0.0;
        proxies.iter().filter(|proxy| refused(proxy)).count() == 2
            && proxies.iter().filter(has_none).count() == 2
    });
    assert!(server.clients() <= MINIMUM + HEADROOM, "{:?}", Seen::on(&server));
}

#[test]
fn the_full_pool_error_says_what_of_the_total_is_claimed() {
    let server = Server::start();
    let proxy = member_that_waits(&server, "p0", 8, "1s");
    let mut holders = Vec::new();
    let mut text = String::new();
    until("every lease is held", PATIENCE, || {
        let mut holder = proxy.connect();
        let reply = holder.call("WATCH held");
        if reply.is_error() {
            text = reply.error().to_owned();
        }
        holders.push(holder);
        !text.is_empty()
    });
    assert!(text.contains("; fleet: 6 of 8 claimed here, instances: 1; longest: "), "{text}");
}

#[test]
fn what_is_shared_is_shown() {
    let server = Server::start();
    let [first, _second] = ["web-1", "web-2"].map(|name| member(&server, name, 20));
    let mut client = first.connect();
    let mut text = String::new();
    until("both are listed", PATIENCE, || {
        text = client.call("PROXY FLEET").lines();
        text.contains(" used=8 claim=4 ") && text.contains("instance=web-2 ")
    });
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("total=20 headroom=2 minimum=4 used=8 claim=4 "), "{text}");
    assert!(lines[0].ends_with(" state=registered") && lines.len() == 3, "{text}");
    let own = lines.iter().find(|line| line.starts_with("instance=web-1 ")).unwrap();
    assert!(own.contains(" claim=4 wants=no leaves=no ") && own.ends_with(" self=yes"), "{text}");
    let status = first.status();
    let fleet = &status["fleet"];
    assert_eq!((fleet["total"].as_u64(), fleet["claim"].as_u64()), (Some(20), Some(4)), "{fleet}");
    assert_eq!(fleet["instances"].as_array().unwrap().len(), 2, "{fleet}");
    until("the metrics follow", PATIENCE, || {
        let metrics = first.metrics();
        metrics["redbouncer_fleet_instances"] == 2.0
            && metrics["redbouncer_fleet_claim"] == 4.0
            && metrics["redbouncer_fleet_share"] == 3.0
            && metrics["redbouncer_fleet_raises_total{outcome=\"confirmed\"}"] >= 1.0
    });
    let alone = Proxy::start(&server, &[]);
    let refused = alone.connect().call("PROXY FLEET");
    assert!(refused.error().starts_with("ERR redbouncer: fleet.total_connections is 0"), "{refused:?}");
    assert!(alone.status()["fleet"].is_null() && !alone.metrics().contains_key("redbouncer_fleet_claim"));
}

#[test]
fn without_the_right_to_list_an_instance_has_the_minimum_and_says_so_once() {
    let server = Server::start();
    server.call("ACL SETUSER web on >secret ~* &* +@all -client|list");
    let url = format!("redis://web:secret@{}", server.address());
    let settings = ["fleet.total_connections=20", "pool.max_connections=20", "pool.wait_timeout=300ms"];
    let proxy = Proxy::launch(&url, &settings).expect("it starts");
    let mut clients: Vec<Client> = (0..8).map(|_| proxy.connect()).collect();
    let held =
        clients.iter_mut().filter_map(|client| (!client.call("WATCH w").is_error()).then_some(())).count();
    assert!((1..MINIMUM).contains(&held), "{held} leases");
    assert!(server.clients() <= MINIMUM, "{:?}", Seen::on(&server));
    assert_eq!(proxy.status()["fleet"]["state"], "unlisted");
    let log = proxy.log();
    assert_eq!(log.matches("cannot share fleet.total_connections").count(), 1, "{log}");
}

#[test]
fn a_lost_control_connection_is_replaced_and_the_claim_registered_again() {
    let server = Server::start();
    let proxy = member(&server, "p0", 20);
    let watcher = Watcher::start(&server, 20);
    let load = Load::start(proxy.address(), 20);
    until("all is claimed", PATIENCE, || Seen::on(&server).claim("p0") == 18);
    for _ in 0..5 {
        let rows = server.rows();
        let control = rows.iter().find(|row| row.get("name").contains(":control:")).unwrap();
        let id = control.get("id").to_owned();
        watcher.while_starting(1, || {
            server.call(&format!("CLIENT KILL ID {id}"));
            until("all is claimed again", PATIENCE, || {
                let rows = server.rows();
                let control = rows.iter().find(|row| row.get("name").contains(":control:"));
                control.is_some_and(|row| row.get("id") != id) && Seen::of(&rows).claim("p0") == 18
            });
        });
    }
    let before = load.served();
    until("clients are served", PATIENCE, || load.served() > before + 50);
    drop(load);
    watcher.finish();
}

/// Both processes of a takeover are one instance to the others.
#[test]
fn a_process_that_takes_over_and_the_one_before_it_claim_no_more_than_one_share() {
    let server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("takeover.sock");
    let own = settings_of("pair", 20, "10s");
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let mut proxy = Proxy::take_over(&socket, &server.url(), &own).unwrap();
    let other = member(&server, "other", 20);
    let loads = [proxy.address(), other.address()].map(|address| Load::start(address, 20));
    let fair = 9;
    until("both have a fair share", NEWCOMER, || {
        let seen = Seen::on(&server);
        (seen.claim("pair"), seen.claim("other")) == (fair, fair)
    });
    let watcher = Watcher::start(&server, 20);
    let takeovers = if long() { 20 } else { 3 };
    for _ in 0..takeovers {
        watcher.while_starting(1, || {
            let next = Proxy::take_over(&socket, &server.url(), &own).unwrap();
            let old = std::mem::replace(&mut proxy, next);
            let mut ended = Some(old);
            until("the old process ends", Duration::from_secs(30), || {
                let seen = Seen::on(&server);
                // The control connection of the new process is there before anything is claimed for it.
                assert!(seen.claim("pair") <= fair + 1, "{seen:?}");
                let running = ended.as_mut().is_some_and(Proxy::is_running);
                !running
            });
            assert_eq!(ended.take().unwrap().wait(PATIENCE).code, Some(0));
        });
        until("the new process has the share", NEWCOMER, || Seen::on(&server).claim("pair") == fair);
    }
    let before = loads.each_ref().map(Load::served);
    until("both serve", PATIENCE, || {
        loads.iter().zip(before).all(|(load, before)| load.served() > before + 20)
    });
    drop(loads);
    watcher.finish();
}
