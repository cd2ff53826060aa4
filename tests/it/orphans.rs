//! Connections that nobody owns any more: found and killed by whichever proxy lives, and nobody else's touched.

use std::time::Duration;

use crate::harness::{Client, PATIENCE, Proxy, Server, Version, encode, rows_of, throughout, until};

/// Short times, so that a test sees what takes a minute otherwise.
const QUICK: [&str; 3] = ["hygiene.heartbeat=1s", "hygiene.orphan_after=3s", "hygiene.interval=1s"];

/// A connection to the server that calls itself `name` and then says nothing more.
fn silent(server: &Server, name: &str) -> Client {
    let mut client = Client::connect(server.address());
    assert_eq!(client.call(&format!("CLIENT SETNAME {name}")).text(), "OK");
    client
}

fn names(server: &Server) -> Vec<String> {
    server.rows().iter().map(|row| row.get("name").to_owned()).collect()
}

fn age(server: &Server, name: &str) -> u64 {
    let rows = server.rows();
    let row = rows.iter().find(|row| row.get("name") == name).expect("it is listed");
    row.get("idle").parse().expect("seconds")
}

#[test]
fn what_a_dead_proxy_left_is_killed_and_nothing_else() {
    for version in Version::all() {
        let server = Server::start_version(&version, &[]);
        let _dead: Vec<_> = ["leased", "shared", "leased"]
            .map(|kind| silent(&server, &format!("redbouncer:web:0123abcd:{kind}")))
            .into();
        let _others = ["bull:abc", "redbouncer", "redbouncer:web:shared", "redbouncer:web:0123abcd:"]
            .map(|name| silent(&server, name));
        let _half_alive = silent(&server, "redbouncer:web:89abcdef:leased");
        let mut alive = silent(&server, "redbouncer:web:89abcdef:shared");
        let proxy = Proxy::start(&server, &QUICK);
        until("the dead one's connections are gone", Duration::from_secs(8), || {
            alive.call("PING");
            !names(&server).iter().any(|name| name.contains("0123abcd:") && !name.ends_with(':'))
        });
        throughout("all others stay", Duration::from_secs(2), || {
            alive.call("PING");
            let names = names(&server);
            ["bull:abc", "redbouncer", "redbouncer:web:shared", "redbouncer:web:0123abcd:"]
                .iter()
                .chain(&["redbouncer:web:89abcdef:leased", "redbouncer:web:89abcdef:shared"])
                .all(|other| names.iter().any(|name| name == other))
        });
        assert_eq!(proxy.metrics()["redbouncer_orphans_killed_total{reason=\"dead_instance\"}"], 3.0);
        let log = proxy.log();
        let killed: Vec<_> = log.lines().filter(|line| line.contains("orphan killed")).collect();
        assert_eq!(killed.len(), 3, "{log}");
        for field in
            ["\"id\":", "\"addr\":\"127.0.0.1:", "\"age\":", "\"idle\":", "\"reason\":\"dead_instance\""]
        {
            assert!(killed.iter().all(|line| line.contains(field)), "{field} in {killed:?}");
        }
    }
}

#[test]
fn orphans_go_before_the_first_client_is_served() {
    let server = Server::start();
    let name = "redbouncer:web:0123abcd:shared";
    let _dead = silent(&server, name);
    until("it is idle for long enough", PATIENCE, || age(&server, name) >= 3);
    let settings = [QUICK[0], QUICK[1], "hygiene.interval=1h"];
    let _proxy = Proxy::start(&server, &settings);
    assert!(!names(&server).iter().any(|listed| listed == name), "ready while the orphan is there");
}

#[test]
fn published_messages_keep_no_dead_subscriber_alive() {
    let server = Server::start();
    let mut subscriber = silent(&server, "redbouncer:web:0123abcd:pubsub");
    subscriber.call("SUBSCRIBE news");
    let _lane = silent(&server, "redbouncer:web:0123abcd:shared");
    let _proxy = Proxy::start(&server, &QUICK);
    let mut idle = String::new();
    until("the dead one's connections are gone", Duration::from_secs(8), || {
        server.call("PUBLISH news hello");
        let rows = server.rows();
        let row = rows.iter().find(|row| row.get("name").ends_with("0123abcd:pubsub"));
        idle = row.map_or(idle.clone(), |row| row.get("idle").to_owned());
        !rows.iter().any(|row| row.get("name").contains("0123abcd"))
    });
    assert_eq!(idle, "0", "the server counts what it writes, too");
}

/// Two proxies: what is done to the server must not let one take the other for dead.
fn none_is_taken_for_dead(server: &Server, what: impl FnOnce(&Proxy)) {
    let settings = |name| [&[name], &QUICK[..]].concat();
    let one = Proxy::start(server, &settings("hygiene.name=one"));
    let other = Proxy::start(server, &settings("hygiene.name=other"));
    let mut watching = [&one, &other].map(Proxy::connect);
    for client in &mut watching {
        assert_eq!(client.call("WATCH k").text(), "OK");
    }
    what(&one);
    std::thread::sleep(Duration::from_secs(2));
    for (client, proxy) in watching.iter_mut().zip([&one, &other]) {
        assert_eq!(client.call("EXISTS nothing").int(), 0, "its lease lives");
        assert!(!proxy.log().contains("orphan killed"), "{}", proxy.log());
    }
}

#[test]
fn a_lane_whose_commands_the_server_holds_up_does_not_look_dead() {
    let server = Server::start();
    none_is_taken_for_dead(&server, |one| {
        let mut writer = one.connect();
        assert_eq!(writer.call("PING").text(), "PONG");
        // Reading goes on, PING and CLIENT LIST too; the lane has a reply outstanding and says nothing more.
        server.call("CLIENT PAUSE 6000 WRITE");
        writer.start("SET k v");
        assert_eq!(writer.reply_within(PATIENCE + PATIENCE).text(), "OK");
    });
}

#[test]
fn a_server_that_pauses_everybody_makes_nobody_dead() {
    let server = Server::start();
    none_is_taken_for_dead(&server, |_| {
        server.call("CLIENT PAUSE 7000 ALL");
        // Answered when the pause is over.
        until("the pause is over", PATIENCE + PATIENCE, || {
            let mut probe = Client::connect(server.address());
            probe.start("PING");
            probe.try_reply(Duration::from_secs(8)).is_ok()
        });
    });
}

#[test]
fn a_server_that_is_busy_with_a_script_refuses_nothing_for_good() {
    let server = Server::start_with(&["--lua-time-limit", "100"]);
    let proxy = Proxy::start(&server, &QUICK);
    let _dead = silent(&server, "redbouncer:web:0123abcd:shared");
    let mut script = server.probe();
    script.ask(&["PING"]);
    script.send(encode(&["EVAL", "while true do end", "0"]));
    let slow = "redbouncer_orphan_rounds_total{outcome=\"slow\"}";
    until("it was tried", PATIENCE, || proxy.metrics().get(slow).is_some_and(|n| *n >= 2.0));
    let mut killer = Client::connect(server.address());
    assert_eq!(killer.call("SCRIPT KILL").text(), "OK");
    until("the orphan is gone", PATIENCE, || !names(&server).iter().any(|name| name.contains("0123abcd")));
    assert!(!proxy.log().contains("cannot search for orphans"), "{}", proxy.log());
}

#[test]
fn a_connection_that_was_closed_here_and_not_there_is_killed() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &QUICK);
    let mut client = proxy.connect();
    client.call("WATCH k");
    let row = server.rows().into_iter().find(|row| row.get("name").starts_with("redbouncer:"));
    let (prefix, _) = row.as_ref().expect("the lease").get("name").rsplit_once(':').expect("a kind");
    let _left = silent(&server, &format!("{prefix}:leased"));
    until("it is killed", Duration::from_secs(6), || {
        proxy.metrics().get("redbouncer_orphans_killed_total{reason=\"left_behind\"}") == Some(&1.0)
    });
    assert_eq!(client.call("EXISTS k").int(), 0, "its own lease lives");
    let leases = || server.rows().iter().filter(|row| row.get("name") == format!("{prefix}:leased")).count();
    assert_eq!(leases(), 1);
}

#[test]
fn with_only_leases_a_proxy_still_shows_that_it_lives() {
    let server = Server::start();
    let patient = ["blocking.hub=false", "pubsub.hub=false", "pool.idle_timeout=1s", "hygiene.reap=false"];
    let silent = Proxy::start(&server, &[&QUICK[..], &patient[..]].concat());
    let mut client = silent.connect();
    client.call("WATCH k");
    let other = Proxy::start(&server, &QUICK);
    let leases = || server.rows().iter().filter(|row| row.get("cmd") == "watch").count();
    throughout("the lease stays", Duration::from_secs(8), || leases() == 1);
    assert_eq!(client.call("UNWATCH").text(), "OK");
    assert!(!other.log().contains("orphan killed"));
}

#[test]
fn at_the_server_s_limit_a_lane_stays_to_show_that_its_proxy_lives() {
    let server = Server::start_with(&["--maxclients", "12"]);
    // Holds nothing but a lease and the control connection, which it keeps.
    let without_hubs = ["blocking.hub=false", "pubsub.hub=false"];
    let settings = |more| [&QUICK[..], &without_hubs[..], more].concat();
    let judge = Proxy::start(&server, &settings(&["pool.idle_timeout=1s"]));
    let mut judging = judge.connect();
    judging.call("WATCH k");
    let kinds = |wanted: &str| server.rows().iter().filter(|row| row.get("name").ends_with(wanted)).count();
    until("it depends on its control connection", PATIENCE, || {
        kinds(":shared") == 0 && kinds(":control") == 1
    });
    let proxy = Proxy::start(&server, &settings(&["pool.idle_timeout=2s"]));
    let mut client = proxy.connect();
    client.call("WATCH k");
    // The server is full before the lane wants to leave: there is no place for a control connection in its stead.
    let mut fillers = Vec::new();
    until("the server is full", Duration::from_secs(2), || {
        let mut filler = Client::connect(server.address());
        filler.start("PING");
        let full = filler.reply().is_error();
        fillers.push(filler);
        full
    });
    assert_eq!(kinds(":control"), 1, "only the judge's");
    throughout("the lane stays", Duration::from_secs(6), || kinds(":shared") == 1 && kinds(":leased") == 2);
    assert_eq!(client.call("EXISTS nothing").int(), 0, "its lease lives");
    drop(fillers);
    until("control takes the lane's place", PATIENCE, || kinds(":shared") == 0 && kinds(":control") == 2);
    assert_eq!(judging.call("EXISTS nothing").int(), 0);
}

#[test]
fn without_the_right_to_list_or_kill_it_is_said_once_and_nothing_else_happens() {
    for (right, label) in [("list", "list_refused"), ("kill", "kill_refused")] {
        let server = Server::start();
        server.call(&format!("ACL SETUSER web on >secret ~* &* +@all -client|{right}"));
        let name = "redbouncer:web:0123abcd:shared";
        let _dead = silent(&server, name);
        until("it is idle for long enough", PATIENCE, || age(&server, name) >= 3);
        let url = format!("redis://web:secret@{}", server.address());
        let proxy = Proxy::launch(&url, &QUICK).expect("it starts");
        assert_eq!(proxy.connect().call("SET k v").text(), "OK");
        let rounds = format!("redbouncer_orphan_rounds_total{{outcome=\"{label}\"}}");
        until("it was tried again", PATIENCE, || proxy.metrics().get(&rounds).is_some_and(|n| *n >= 3.0));
        let log = proxy.log();
        let told = log.lines().filter(|line| line.contains("cannot search for orphans"));
        assert_eq!(told.count(), 1, "{log}");
        assert!(names(&server).iter().any(|listed| listed == name));
    }
}

#[test]
fn a_server_that_answers_late_is_not_judged_by() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &QUICK);
    let mut alive = silent(&server, "redbouncer:web:0123abcd:shared");
    until("orphans are looked for", PATIENCE, || {
        alive.call("PING");
        proxy.metrics().get("redbouncer_orphan_rounds_total{outcome=\"judged\"}").is_some_and(|n| *n > 1.0)
    });
    // While the server sleeps everybody looks idle; the heartbeat that came meanwhile is read afterwards.
    let mut sleeper = server.probe();
    sleeper.start("DEBUG SLEEP 5");
    alive.start("PING");
    assert_eq!(sleeper.reply_within(Duration::from_secs(9)).text(), "OK");
    assert_eq!(alive.reply().text(), "PONG");
    throughout("it stays", Duration::from_secs(2), || alive.call("PING").text() == "PONG");
}

#[test]
fn without_credentials_of_its_own_it_asks_as_whoever_has_logged_in() {
    let server = Server::start();
    server.call("ACL SETUSER web on >secret ~* &* +@all");
    let mut admin = server.probe();
    assert_eq!(admin.call("AUTH web secret").text(), "OK");
    let name = "redbouncer:web:0123abcd:shared";
    let _dead = silent(&server, name);
    assert_eq!(admin.call("ACL SETUSER default off").text(), "OK");
    let proxy = Proxy::launch(&format!("redis://{}", server.address()), &QUICK).expect("it starts");
    let mut client = proxy.connect();
    assert_eq!(client.call("AUTH web secret").text(), "OK");
    until("the orphan is gone", Duration::from_secs(12), || {
        !rows_of(&admin.call("CLIENT LIST")).iter().any(|row| row.get("name") == name)
    });
}
