//! Wrong settings and wrong surroundings: each a clear message on the right channel and the right exit code.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::harness::{Client, Ended, PATIENCE, Proxy, Server, Stage, free_port, until};

/// Runs redbouncer, which must refuse with exit code 64 and say all of these on stderr, and nothing on stdout.
#[track_caller]
fn refused(arguments: &[&str], environment: &[(&str, &str)], says: &[&str]) {
    let (exit, stdout) = Proxy::run_to_end(arguments, environment);
    assert_eq!(exit.code, Some(64), "{arguments:?} {environment:?}: {exit:?}");
    for word in says {
        assert!(
            exit.stderr.contains(word),
            "{arguments:?} {environment:?} does not say {word:?}: {}",
            exit.stderr
        );
    }
    assert!(stdout.is_empty(), "stdout is for what was asked for: {stdout}");
    assert!(exit.took < Duration::from_secs(3), "{:?}", exit.took);
}

/// A configuration file for as long as the value lives.
fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_known_one() {
    let near = ["pool.max_conections", "pool.max_connections"];
    refused(&["--set", "pool.max_conections=5"], &[], &near);
    refused(&[], &[("REDBOUNCER_POOL__MAX_CONECTIONS", "5")], &["MAX_CONECTIONS", "MAX_CONNECTIONS"]);
    let wrong = file("[pool]\nmax_conections = 5\n");
    refused(&["--config", wrong.path().to_str().unwrap()], &[], &["max_conections", "max_connections"]);
    refused(&["--max-conections", "5"], &[], &["--max-conections", "--max-connections"]);
}

#[test]
fn a_value_that_cannot_be_is_refused_with_its_key() {
    for (setting, key) in [
        ("pool.max_connections=abc", "pool.max_connections"),
        ("pool.max_connections=0", "pool.max_connections"),
        ("pool.max_connections=3", "pool.max_connections"),
        ("pool.wait_timeout=5 parsecs", "pool.wait_timeout"),
        ("client.request_limit=-1", "client.request_limit"),
        ("auth.mode=maybe", "auth.mode"),
        ("upstream.url=http://example.com", "upstream.url"),
        ("log.format=xml", "log.format"),
    ] {
        refused(&["--set", setting], &[], &[key]);
    }
    // What has no key may be a secret: it is not repeated.
    refused(&["--set", "nonsense"], &[], &["--set", "section.key=value"]);
    refused(&["--config", "/nonexistent/redbouncer.toml"], &[], &["/nonexistent/redbouncer.toml"]);
    let broken = file("[pool\n");
    refused(&["--config", broken.path().to_str().unwrap()], &[], &[broken.path().to_str().unwrap()]);
}

#[test]
fn too_few_connections_for_the_workers_are_refused() {
    refused(&["--max-connections", "6", "--workers", "2"], &[], &["max_connections", "workers"]);
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    let server = Server::start();
    let url = server.url();
    // Three connections are too few: whoever wins with that ends the program.
    let bad = file("[pool]\nmax_connections = 3\n[log]\nformat = \"text\"\n");
    let path = bad.path().to_str().unwrap();
    let base = ["--config", path, "--upstream", &url, "--listen", "127.0.0.1:0"];
    let exit = Proxy::launch_with(&base, &[]).err().expect("the file counts when nothing else is said");
    assert_eq!(exit.code, Some(64), "{exit:?}");
    let by_environment = Proxy::launch_with(&base, &[("REDBOUNCER_POOL__MAX_CONNECTIONS", "5")]);
    assert_eq!(by_environment.expect("the environment beats the file").connect().call("PING").text(), "PONG");
    let by_flag = [&base[..], &["--max-connections", "5"]].concat();
    let running = Proxy::launch_with(&by_flag, &[("REDBOUNCER_POOL__MAX_CONNECTIONS", "3")]);
    assert_eq!(running.expect("a flag beats the environment").connect().call("PING").text(), "PONG");
}

#[test]
fn the_environment_alone_is_enough() {
    let server = Server::start();
    let url = server.url();
    let environment = [("REDBOUNCER_UPSTREAM", url.as_str()), ("REDBOUNCER_LISTEN", "127.0.0.1:0")];
    let proxy = Proxy::launch_with(&[], &environment).expect("it starts");
    assert_eq!(proxy.connect().call("PING").text(), "PONG");
}

#[test]
fn a_port_in_use_ends_the_start_with_a_message() {
    let server = Server::start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let url = server.url();
    for arguments in [
        ["--upstream", &url, "--listen", &address, "--admin", "127.0.0.1:0"],
        ["--upstream", &url, "--listen", "127.0.0.1:0", "--admin", &address],
    ] {
        let exit = Proxy::launch_with(&arguments, &[]).err().expect("it cannot start");
        assert_eq!(exit.code, Some(1), "{exit:?}");
        assert!(exit.stderr.contains(&address), "the address is named: {}", exit.stderr);
        assert!(exit.stderr.to_lowercase().contains("in use"), "{}", exit.stderr);
    }
}

/// An image that listens where Redis does, and a variable that was not set: the proxy dialled itself until no place was left.
#[test]
fn a_proxy_that_would_be_its_own_server_is_refused() {
    let port = free_port();
    let own = ["listen", "connect to itself", "upstream.url"];
    for (listen, server) in [
        (format!("0.0.0.0:{port}"), format!("redis://127.0.0.1:{port}")),
        (format!("127.0.0.1:{port}"), format!("redis://:sesame@localhost:{port}")),
        (format!("[::1]:{port}"), format!("redis://[::1]:{port}")),
        // A name, as far as the configuration knows: the resolver says whose it is.
        (format!("0.0.0.0:{port}"), format!("redis://127.1:{port}")),
    ] {
        let arguments =
            ["--listen", listen.as_str(), "--upstream", server.as_str(), "--admin", "127.0.0.1:0"];
        let (exit, _) = Proxy::run_to_end(&arguments, &[]);
        assert_eq!(exit.code, Some(64), "{arguments:?}: {exit:?}");
        for word in own.iter().chain(&[listen.as_str()]) {
            assert!(exit.stderr.contains(word), "{arguments:?} does not say {word:?}: {}", exit.stderr);
        }
        assert!(!exit.stderr.contains("sesame"), "{}", exit.stderr);
    }
    let environment = [("REDBOUNCER_LISTEN", "0.0.0.0:6379"), ("REDBOUNCER_ADMIN", "127.0.0.1:0")];
    refused(&[], &environment, &own);
}

#[test]
fn an_unreachable_upstream_closes_who_asks_for_it_and_is_no_end() {
    let port = free_port();
    let proxy =
        Proxy::launch(&format!("redis://127.0.0.1:{port}"), &["pool.wait_timeout=500ms"]).expect("it starts");
    let mut client = proxy.connect();
    let start = Instant::now();
    client.start("GET k");
    client.expect_end(PATIENCE);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let log = proxy.log();
    assert!(log.contains(&port.to_string()), "the operator is told which server: {log}");
    assert!(log.contains("refused"), "and why: {log}");
    let status = proxy.status();
    let reason = status["upstream"]["clients_closed"]["last_reason"].as_str().unwrap();
    assert!(reason.starts_with("ERR redbouncer: ") && reason.contains("refused"), "{status}");
    assert!(!reason.contains(&port.to_string()), "no address of the server in a client's text: {reason}");
    // Who asks for nothing of the server's lives on.
    let mut client = proxy.connect();
    assert_eq!(client.call("CLIENT SETNAME still").text(), "OK");
}

#[test]
fn an_upstream_that_appears_later_is_found() {
    let mut server = Server::start();
    server.kill();
    let proxy = Proxy::start(&server, &["pool.wait_timeout=300ms"]);
    let mut client = proxy.connect();
    client.start("PING");
    client.expect_end(PATIENCE);
    server.restart();
    until("the server is found", Duration::from_secs(6), || {
        let mut client = proxy.connect();
        client.start("PING");
        client.try_reply(PATIENCE).is_ok_and(|reply| reply.text() == "PONG")
    });
}

#[test]
fn a_wrong_password_is_named_without_being_shown() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    let url = format!("redis://:open-barley@{}", server.address());
    let proxy = Proxy::launch(&url, &["pool.wait_timeout=500ms"]).expect("it starts");
    let mut client = proxy.connect();
    client.start("GET k");
    client.expect_end(PATIENCE);
    let (log, status) = (proxy.log(), proxy.status().to_string());
    for text in [&log, &status] {
        assert!(text.contains("WRONGPASS") || text.contains("password"), "{text}");
        assert!(!text.contains("open-barley"), "the secret is shown: {text}");
    }
}

#[test]
fn a_wrong_password_of_a_client_touches_nobody_else() {
    let stage = Stage::proxied_secured();
    let mut good = stage.connect();
    assert_eq!(good.call("AUTH sesame").text(), "OK");
    for _ in 0..20 {
        let mut bad = stage.connect();
        assert!(bad.call("AUTH open-barley").error().starts_with("WRONGPASS"));
        assert!(bad.call("GET k").error().starts_with("NOAUTH"));
    }
    assert_eq!(good.call("PING").text(), "PONG");
    assert!(!stage.proxy().log().contains("open-barley"));
    assert!(stage.server.clients() <= 8);
}

#[test]
fn beyond_loopback_an_open_proxy_refuses_as_protected_mode_does() {
    let server = Server::start();
    let settings = ["listen.addresses=[\"0.0.0.0:0\"]", "auth.mode=open"];
    let url = server.url();
    let launched = Proxy::launch(&url, &settings).expect("it starts");
    let port = launched.address().port();
    // A client from this very host is not from elsewhere.
    let mut local = Client::connect(([127, 0, 0, 1], port).into());
    assert_eq!(local.call("PING").text(), "PONG");
}

#[test]
fn more_clients_than_allowed_are_told_in_the_servers_words() {
    let stage = Stage::proxied_with(&["client.max=5"]);
    let mut clients: Vec<Client> = (0..5).map(|_| stage.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.call("PING").text(), "PONG");
    }
    let mut sixth = stage.connect();
    let (bytes, ended) = sixth.read_to_end(PATIENCE);
    assert_eq!(bytes, &b"-ERR max number of clients reached\r\n"[..]);
    assert_ne!(ended, Ended::Late);
    until("a refused client is a warning", PATIENCE, || stage.proxy().log().contains("\"WARN\""));
    drop(clients.pop());
    until("a place is free again", PATIENCE, || {
        let mut next = stage.connect();
        next.try_send("PING\r\n").is_ok() && next.try_reply(PATIENCE).is_ok_and(|reply| !reply.is_error())
    });
}

#[test]
fn a_configuration_is_checked_and_shown_without_running_anything() {
    let good = file("[pool]\nmax_connections = 12\n[upstream]\nurl = \"redis://ada:sesame@127.0.0.1:1\"\n");
    let path = good.path().to_str().unwrap();
    let (exit, text) = Proxy::run_to_end(&["config", "check", path], &[]);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(text.contains("can be used: 2 keys set"), "{text}");
    let environment = [("REDBOUNCER_POOL__LINGER", "5s")];
    let flags = ["config", "show", "--config", path, "--set", "log.level=debug", "--changed", "--json"];
    let (exit, text) = Proxy::run_to_end(&flags, &environment);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(!text.contains("sesame"), "{text}");
    let rows: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = rows.as_array().unwrap();
    let row = |key: &str| {
        let row = rows.iter().find(|row| row["key"] == key).unwrap_or_else(|| panic!("{key}: {text}"));
        ["value", "default", "source"].map(|column| row[column].as_str().unwrap_or("-").to_owned())
    };
    assert_eq!(row("pool.max_connections"), ["12", "8", &format!("{path}:2")]);
    assert_eq!(row("pool.linger"), ["\"5s\"", "\"1s\"", "environment variable REDBOUNCER_POOL__LINGER"]);
    assert_eq!(row("log.level"), ["\"debug\"", "\"info\"", "flag --set log.level"]);
    assert_eq!(row("upstream.url")[0], "\"redis://ada:***@127.0.0.1:1\"");
    let (exit, text) = Proxy::run_to_end(&["config", "show"], &[]);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    let line = text.lines().find(|line| line.starts_with("pool.max_connections ")).unwrap();
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>(),
        ["pool.max_connections", "8", "8", "live", "default"]
    );
    // All that the start would say, as well about files of TLS.
    let bad = file("[pool]\nmax_connections = 1\nlingr = \"1s\"\n");
    refused(&["config", "check", bad.path().to_str().unwrap()], &[], &["pool.max_connections", "pool.lingr"]);
    let listen =
        ["listen.tls.addresses=127.0.0.1:0", "listen.tls.cert=/nowhere/c", "listen.tls.key=/nowhere/k"];
    let mut flags = vec!["config", "check"];
    flags.extend(listen.iter().flat_map(|setting| ["--set", setting]));
    refused(&flags, &[], &["listen.tls.cert: cannot read /nowhere/c"]);
}

#[test]
fn what_was_asked_for_goes_to_stdout() {
    let (help, text) = Proxy::run_to_end(&["--help"], &[]);
    assert_eq!(help.code, Some(0));
    assert!(text.contains("--upstream") && help.stderr.is_empty());
    let (version, text) = Proxy::run_to_end(&["--version"], &[]);
    assert_eq!(version.code, Some(0));
    assert!(text.contains(env!("CARGO_PKG_VERSION")));
    let (commands, text) = Proxy::run_to_end(&["commands"], &[]);
    assert_eq!(commands.code, Some(0));
    assert!(text.to_lowercase().contains("brpoplpush"), "{text}");
}
