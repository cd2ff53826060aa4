//! A server that is another one than before: clients that know what it has forgotten are closed, as they would have been
//! directly; the others notice nothing.

use std::thread;
use std::time::Duration;

use crate::harness::{Client, PATIENCE, Proxy, Reply, Server, Stage, Version, throughout, until};

const CHANGED: &str = "redbouncer_clients_closed_total{reason=\"server_changed\"}";
const SCRIPT: &str = "return redis.call('INCR',KEYS[1])";

fn loaded(client: &mut Client) -> String {
    client.ask(&["SCRIPT", "LOAD", SCRIPT]).text()
}

/// As a library uses a script: by its hash, and with its text when the server does not know it; inside MULTI there is no
/// second try.
fn in_multi(client: &mut Client, sha: &str) -> Reply {
    client.pipeline(&["MULTI", &format!("EVALSHA {sha} 1 n"), "EXEC"]).pop().unwrap()
}

fn is_closed(client: &mut Client) -> bool {
    client.try_reply(Duration::from_millis(1)).is_err_and(|ended| ended != crate::harness::Ended::Late)
}

fn changed(proxy: &Proxy) -> f64 {
    proxy.metrics().get(CHANGED).copied().unwrap_or(0.0)
}

/// Restarts the server with nobody's command in flight.
fn restarted(stage: Stage) -> (Server, Proxy) {
    let (mut server, proxy) = stage.into_parts();
    server.restart();
    (server, proxy)
}

#[test]
fn idle_clients_that_have_used_scripts_are_closed_after_a_restart() {
    let stage = Stage::proxied_with(&["listen.workers=2", "pool.max_connections=16"]);
    let sha = loaded(&mut stage.connect());
    let mut users: Vec<Client> = Vec::new();
    let uses = [
        format!("EVALSHA {sha} 1 n"),
        "EVAL return(1) 0".to_owned(),
        format!("SCRIPT EXISTS {sha}"),
        "FUNCTION LIST".to_owned(),
        "FCALL none 0".to_owned(),
        format!("EVALSHA_RO {sha} 1 n"),
    ];
    for used in uses.iter().cycle().take(12) {
        let mut user = stage.connect();
        user.call(used);
        users.push(user);
    }
    let mut in_block = stage.connect();
    assert!(!in_multi(&mut in_block, &sha).is_error());
    let mut on_lease = stage.connect();
    on_lease.call("WATCH k");
    on_lease.call(&format!("EVALSHA {sha} 1 n"));
    on_lease.call("UNWATCH");
    // A call that waits in the hub, too: it would have been closed directly.
    let mut blocked = stage.connect();
    blocked.call(&format!("EVALSHA {sha} 1 n"));
    blocked.start("BLPOP nothing 0");
    users.extend([in_block, on_lease, blocked]);
    let mut others: Vec<Client> = (0..4).map(|_| stage.connect()).collect();
    for other in &mut others {
        assert_eq!(other.call("SET k v").text(), "OK");
    }
    // Nobody sends anything: the loss alone is reason enough to look.
    let (_server, proxy) = restarted(stage);
    until("they are closed", PATIENCE * 2, || changed(&proxy) == users.len() as f64);
    assert!(users.iter_mut().all(is_closed));
    for other in &mut others {
        assert!(!is_closed(other));
        assert_eq!(other.call("SET k w").text(), "OK");
    }
    // As a library does it: connected anew, it loads what it needs, and its transactions work.
    let mut again = proxy.connect();
    assert_eq!(loaded(&mut again), sha);
    let answer = in_multi(&mut again, &sha);
    assert!(answer.items()[0].text().parse::<i64>().is_ok(), "{answer:?}");
    throughout("once is enough", Duration::from_secs(1), || {
        thread::sleep(Duration::from_millis(50));
        changed(&proxy) == users.len() as f64 && !is_closed(&mut again)
    });
}

/// No lane was open, so nothing was lost: the next dial finds out, before the command that it is for is sent.
#[test]
fn a_client_with_a_script_finds_out_before_its_next_command_runs() {
    for lease in [false, true] {
        let stage = Stage::proxied_with(&["pool.idle_timeout=1s"]);
        let mut client = stage.connect();
        let sha = loaded(&mut client);
        assert_eq!(client.call(&format!("EVALSHA {sha} 1 n")).int(), 1);
        until("no lane is left", PATIENCE, || {
            stage.server.rows().iter().all(|row| !row.get("name").ends_with(":shared"))
        });
        let (server, proxy) = restarted(stage);
        client.start(if lease { "WATCH k" } else { "INCR n" });
        client.expect_end(PATIENCE);
        until("for this reason", PATIENCE, || changed(&proxy) == 1.0);
        assert!(server.call("GET n").is_nil());
    }
}

#[test]
fn who_uses_its_first_script_on_the_new_server_stays() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    client.call("SET k v");
    let (_server, proxy) = restarted(stage);
    let mut fresh = proxy.connect();
    for client in [&mut client, &mut fresh] {
        assert!(client.ask(&["EVAL", SCRIPT, "1", "n"]).int() > 0);
    }
    throughout("both stay", Duration::from_secs(1), || {
        thread::sleep(Duration::from_millis(50));
        !is_closed(&mut client) && !is_closed(&mut fresh)
    });
    assert_eq!(changed(&proxy), 0.0);
}

#[test]
fn lanes_that_are_renewed_are_no_other_server() {
    let stage = Stage::proxied_with(&["pool.max_lifetime=1s", "pool.linger=100ms"]);
    let mut client = stage.connect();
    let sha = loaded(&mut client);
    let before = stage.server.info("total_connections_received").parse::<u64>().unwrap();
    until("lanes come and go", PATIENCE * 2, || {
        assert!(client.call(&format!("EVALSHA {sha} 1 n")).int() > 0);
        stage.server.info("total_connections_received").parse::<u64>().unwrap() > before + 3
    });
    // Nor is one whose connections were all killed.
    stage.server.call("CLIENT KILL TYPE normal SKIPME yes");
    let mut other = stage.connect();
    assert_eq!(other.call("PING").text(), "PONG");
    throughout("it stays", Duration::from_secs(1), || {
        thread::sleep(Duration::from_millis(50));
        changed(stage.proxy()) == 0.0
    });
    assert!(client.call(&format!("EVALSHA {sha} 1 n")).int() > 0);
}

#[test]
fn a_user_without_info_is_told_by_client_ids() {
    let options = ["--user", "default", "on", "nopass", "~*", "&*", "+@all", "-info"];
    let stage = Stage::before(Server::start_with(&options), &[]);
    // Ids grow past what the restarted server gives at once.
    for _ in 0..50 {
        Client::connect(stage.server.address()).call("PING");
    }
    let mut client = stage.connect();
    let sha = loaded(&mut client);
    let mut other = stage.connect();
    other.call("SET k v");
    assert_eq!(client.call(&format!("EVALSHA {sha} 1 n")).int(), 1);
    stage.server.call("CLIENT KILL TYPE normal SKIPME yes");
    assert_eq!(client.call(&format!("EVALSHA {sha} 1 n")).int(), 2);
    let (_server, proxy) = restarted(stage);
    until("it is closed", PATIENCE * 2, || changed(&proxy) == 1.0);
    assert!(is_closed(&mut client) && !is_closed(&mut other));
}

#[test]
fn who_has_said_hello_is_closed_when_the_server_says_something_else() {
    let all = Version::all();
    let Some(newer) = all.iter().find(|version| version.name.contains("8.")) else {
        println!("skipped: no other server is at hand");
        return;
    };
    let (mut server, proxy) = Stage::proxied().into_parts();
    let mut greeted = proxy.connect();
    assert!(!greeted.call("HELLO 3").is_error());
    let mut other = proxy.connect();
    other.call("SET k v");
    assert!(!greeted.call("GET k").is_error());
    // The same server again says the same.
    server.restart();
    throughout("it stays", Duration::from_secs(2), || {
        thread::sleep(Duration::from_millis(50));
        !is_closed(&mut greeted)
    });
    assert!(!greeted.call("GET k").is_error());
    server.restart_as(newer);
    until("it is closed", PATIENCE * 2, || is_closed(&mut greeted));
    assert_eq!(changed(&proxy), 1.0);
    assert!(!other.call("GET k").is_error());
}

/// The look for a server that is away goes on for as long as somebody would have to know, and not longer.
#[test]
fn a_proxy_that_looks_for_its_server_stops_at_once() {
    let (mut server, proxy) =
        Stage::proxied_with(&["upstream.backoff_max=30s", "pool.wait_timeout=500ms"]).into_parts();
    let mut client = proxy.connect();
    loaded(&mut client);
    server.kill();
    until("it looks, in vain", PATIENCE, || proxy.log().contains("upstream connection failed"));
    let exit = proxy.stop();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(exit.took < Duration::from_secs(3), "{exit:?}");
}
