//! `redbouncer size`: what is connected, what it needs with redbouncer, and that this is enough.

use serde_json::Value as Json;

use crate::harness::{Client, PATIENCE, Proxy, Server, until};

/// Clients of all kinds; they stay connected as long as this lives.
fn clients(connect: &dyn Fn() -> Client) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..45).map(|_| connect()).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        match at {
            0..20 => client.start("BLPOP none 0"),
            20..25 => {
                client.start("SUBSCRIBE news");
                client.reply();
            }
            25..27 => {
                assert_eq!(client.call("WATCH key").text(), "OK");
                assert_eq!(client.call("MULTI").text(), "OK");
            }
            27..30 => assert_eq!(client.call("SELECT 1").text(), "OK"),
            _ => {
                client.call("GET key");
            }
        }
    }
    clients
}

fn size(arguments: &[&str]) -> Json {
    let (exit, json) = Proxy::run_to_end(&[&["size", "--json"], arguments].concat(), &[]);
    assert_eq!(exit.code, Some(0), "{exit:#?}");
    serde_json::from_str(&json).unwrap()
}

fn blocked(server: &Server) -> usize {
    server.rows().iter().filter(|row| row.get("flags").contains('b')).count()
}

#[test]
fn what_it_suggests_is_enough_for_the_clients_that_it_has_seen() {
    let server = Server::start_with(&["--maxclients", "200"]);
    let direct = clients(&|| Client::connect(server.address()));
    until("all are blocked", PATIENCE, || blocked(&server) == 20);
    let url = server.url();
    let found = size(&["--upstream", &url]);
    // The harness has a connection of its own.
    let connections = &found["connections"];
    let of = |kind: &str| connections[kind].as_u64().unwrap();
    assert_eq!((of("blocked"), of("subscribed"), of("transaction")), (20, 5, 2), "{found:#}");
    assert!((18..=19).contains(&of("ordinary")), "{found:#}");
    assert_eq!(found["limit"], 200);
    assert_eq!(found["needed"]["lanes"], 2, "two databases: {found:#}");
    let suggested = found["max_connections"].as_u64().unwrap();
    assert_eq!(suggested, 8, "{found:#}");

    drop(direct);
    let cap = format!("pool.max_connections={suggested}");
    let proxy = Proxy::start(&server, &[&cap, "pool.wait_timeout=10s"]);
    let mut carried = clients(&|| proxy.connect());
    until("all are where they belong", PATIENCE, || {
        proxy.status()["clients"].as_array().unwrap().len() == 45
    });
    let ours = server.rows().iter().filter(|row| row.get("name").starts_with("redbouncer:")).count();
    assert!(ours as u64 <= suggested, "{ours} connections");
    // Those in a transaction, which hold a connection each, can finish it; the others are served meanwhile.
    assert_eq!(carried[25].call("INCR key").text(), "QUEUED");
    assert_eq!(carried[40].call("PING").text(), "PONG");
    assert_eq!(carried[25].call("EXEC").items().len(), 1);

    // The proxy lists its clients in the same form, and its own connections on the server are told apart.
    let through = format!("redis://{}", proxy.address());
    let seen = size(&["--upstream", &through]);
    assert!((45..=46).contains(&seen["clients"].as_u64().unwrap()), "{seen:#}");
    assert!(size(&["--upstream", &url])["connections"]["redbouncer"].as_u64().unwrap() >= 4);
}

#[test]
fn a_saved_listing_is_as_good_as_the_server() {
    let server = Server::start();
    let _clients = clients(&|| Client::connect(server.address()));
    until("all are blocked", PATIENCE, || blocked(&server) == 20);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("clients.txt");
    std::fs::write(&file, server.call("CLIENT LIST").text()).unwrap();
    let saved = size(&["--file", file.to_str().unwrap()]);
    assert_eq!(saved["connections"]["blocked"], 20);
    assert_eq!(saved["max_connections"], 8);
    assert_eq!(saved["limit"], Json::Null);

    let (exit, text) = Proxy::run_to_end(&["size", "--file", file.to_str().unwrap()], &[]);
    assert_eq!(exit.code, Some(0), "{exit:#?}");
    assert!(text.contains("\npool.max_connections = 8\n"), "{text}");
    assert!(text.contains("20  blocked (BLPOP"), "{text}");
}

#[test]
fn without_a_listing_there_is_no_answer() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.txt");
    std::fs::write(&empty, "no clients here\n").unwrap();
    for (arguments, said) in [
        (["--file", empty.to_str().unwrap()], "has no row of CLIENT LIST"),
        (["--file", "/nowhere/clients.txt"], "cannot read /nowhere/clients.txt"),
        (["--upstream", "redis://127.0.0.1:1"], "127.0.0.1:1"),
    ] {
        let (exit, text) = Proxy::run_to_end(&[&["size"], &arguments[..]].concat(), &[]);
        assert_eq!((exit.code, text.as_str()), (Some(1), ""), "{exit:#?}");
        assert!(exit.stderr.contains(said), "{exit:#?}");
    }
}
