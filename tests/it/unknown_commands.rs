//! Commands that our table does not have: a server's own under other names (`rename-command`), and those that a server
//! refuses. What one client's do to their connection, no other client meets.

use std::time::Duration;

use crate::harness::{Client, Ended, PATIENCE, Proxy, Server, until};

/// What makes connection state, or is dangerous.
const RENAMED: [&str; 8] = ["MULTI", "EXEC", "SELECT", "MONITOR", "DEBUG", "SYNC", "KEYS", "EVAL"];

/// A server that calls these by other names.
fn renaming(names: &[&str]) -> Server {
    let mut options = Vec::new();
    for name in names {
        options.extend(["--rename-command".to_owned(), (*name).to_owned(), format!("X{name}")]);
    }
    Server::start_with(&options.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Leases, as the server lists them.
fn leases(server: &Server) -> usize {
    server.rows().iter().filter(|row| row.get("name").ends_with(":leased")).count()
}

#[test]
fn a_renamed_command_changes_nobody_elses_connection() {
    let server = renaming(&[&RENAMED[..], &["CLIENT"]].concat());
    let proxy = Proxy::start(&server, &["pool.max_connections=12"]);
    let mut bystander = proxy.connect();
    assert_eq!(bystander.call("SET a 0").text(), "OK");
    for command in [
        "XMULTI",
        "XSELECT 5",
        "XMONITOR",
        "XCLIENT REPLY OFF",
        "XSYNC",
        "XDEBUG SLEEP 0.1",
        "XCLIENT NO-TOUCH on",
    ] {
        let mut sender = proxy.connect();
        sender.start(command);
        // Whatever comes, if anything does: it has run then.
        let _ = sender.try_reply(Duration::from_millis(500));
        for client in [&mut bystander, &mut proxy.connect(), &mut proxy.connect()] {
            assert_eq!(client.call("SET a 1").text(), "OK", "{command}");
            assert_eq!(client.call("GET a").text(), "1", "{command}");
        }
        drop(sender);
        assert_eq!(bystander.call("GET a").text(), "1", "{command}, when its sender has left");
    }
    assert_eq!(server.probe().call("GET a").text(), "1");
}

#[test]
fn a_renamed_command_does_for_its_own_client_what_it_does_directly() {
    let server = renaming(&RENAMED);
    let proxy = Proxy::start(&server, &[]);
    for mut client in [Client::connect(server.address()), proxy.connect()] {
        assert_eq!(client.call("XSELECT 5").text(), "OK");
        assert_eq!(client.call("SET where five").text(), "OK");
        assert_eq!(client.call("XMULTI").text(), "OK");
        assert_eq!(client.call("SET where inside").text(), "QUEUED");
        assert_eq!(client.call("XEXEC").items().len(), 1);
        assert_eq!(client.call("GET where").text(), "inside");
        assert_eq!(client.call("XKEYS *").items().len(), 1);
        assert_eq!(client.call("XEVAL return(ARGV[1]) 0 x").text(), "x");
    }
    let mut client = proxy.connect();
    assert!(client.call("GET where").is_nil(), "another client is in database 0");
}

#[test]
fn a_connection_is_not_used_again_after_a_command_that_may_have_changed_it() {
    let server = renaming(&RENAMED);
    let proxy = Proxy::start(&server, &[]);
    let mut client = proxy.connect();
    // Neither leaves state that the client counts on: the connection ends with the command.
    for command in ["XKEYS *", "XDEBUG SLEEP 0", "XEVAL return(1) 0"] {
        let _ = client.call(command);
        until("its connection is closed", PATIENCE, || leases(&server) == 0);
    }
}

#[test]
fn an_error_holds_no_connection() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["pool.wait_timeout=1s"]);
    // 7.0 knows none of these: three of them held all leases of the default pool.
    let mut clients: Vec<_> = (0..6).map(|_| proxy.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let command = if number % 2 == 0 { "HIMPORT PREPARE f a b" } else { "BLMOVEM 1 a b LEFT RIGHT 1" };
        assert!(client.call(command).error().starts_with("ERR unknown command"), "{command}");
    }
    for _ in 0..3 {
        let mut other = proxy.connect();
        assert_eq!(other.call("WATCH k").text(), "OK");
        clients.push(other);
    }
}

#[test]
fn an_unknown_command_on_a_lease_is_asked_about_and_leaves_the_lease_as_it_was() {
    let server = renaming(&RENAMED);
    let proxy = Proxy::start(&server, &[]);
    let mut client = proxy.connect();
    for end in ["UNWATCH", "XUNKNOWN"] {
        assert_eq!(client.call("WATCH k").text(), "OK");
        assert!(client.call("NOSUCH x").is_error());
        assert_eq!(leases(&server), 1);
        let _ = client.call(end);
        let _ = client.call("UNWATCH");
        until("the lease ends", PATIENCE, || leases(&server) == 0);
    }
    assert_eq!(client.call("WATCH k").text(), "OK");
    assert_eq!(client.call("XSELECT 3").text(), "OK");
    assert_eq!(client.call("UNWATCH").text(), "OK");
    assert_eq!(client.call("SET there 1").text(), "OK");
    assert_eq!(leases(&server), 1, "the database that it selected is on this connection alone");
    let mut probe = server.probe();
    assert_eq!(probe.call("XSELECT 3").text(), "OK");
    assert_eq!(probe.call("GET there").text(), "1");
    assert_eq!(client.try_reply(Duration::from_millis(10)).unwrap_err(), Ended::Late);
}
