//! `redbouncer convert`: what other proxies are configured with becomes a configuration that works, and what cannot is said.

use std::path::{Path, PathBuf};

use crate::harness::{Exit, Proxy, Server, free_port};

fn example(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/convert").join(file);
    std::fs::read_to_string(path).unwrap()
}

/// A file of the other proxy, with some of its texts replaced.
fn written(directory: &Path, file: &str, replaced: &[(&str, String)]) -> PathBuf {
    let text = replaced.iter().fold(example(file), |text, (old, new)| {
        assert!(text.contains(old), "{file}: {old}");
        text.replace(old, new)
    });
    let path = directory.join(file);
    std::fs::write(&path, text).unwrap();
    path
}

fn convert(arguments: &[&str]) -> (Exit, String) {
    Proxy::run_to_end(&[&["convert"], arguments].concat(), &[])
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Starts a proxy with what was converted; it listens on `port` and reaches the server with its password.
#[track_caller]
fn works(directory: &Path, toml: &str, port: u16, database: u32) -> Proxy {
    let config = directory.join("redbouncer.toml");
    std::fs::write(&config, toml).unwrap();
    let proxy = Proxy::launch_with(&["--config", text(&config)], &[])
        .unwrap_or_else(|exit| panic!("{exit:#?}\n{toml}"));
    assert_eq!(proxy.address().port(), port);
    let mut client = proxy.connect();
    assert_eq!(client.call("SET carried over").text(), "OK");
    let info = client.call("CLIENT INFO").text();
    assert!(info.contains(&format!(" db={database} ")), "{info}");
    proxy
}

#[test]
fn a_pool_of_twemproxy_with_one_server_becomes_a_configuration_that_works() {
    let server = Server::start_with(&["--requirepass", "c0rrect horse"]);
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let replaced = [
        ("127.0.0.1:22121", format!("127.0.0.1:{port}")),
        ("127.0.0.1:6379:1", format!("{}:1", server.address())),
    ];
    let file = written(directory.path(), "nutcracker.yml", &replaced);
    let (exit, toml) = convert(&[text(&file), "--pool", "sessions"]);
    assert_eq!((exit.code, exit.stderr.as_str()), (Some(0), ""), "{toml}");
    for line in [
        "backlog = 512",
        "command_timeout = \"400ms\"",
        "max = 5000",
        "# - hash_tag: there is one server, so nothing is distributed.",
        "# - preconnect: redbouncer logs in at the start, and on demand.",
    ] {
        assert!(toml.lines().any(|found| found == line), "{line}: {toml}");
    }
    let proxy = works(directory.path(), &toml, port, 2);
    assert_eq!(proxy.stop().code, Some(0));
}

#[test]
fn the_guide_shows_what_is_printed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = std::fs::read_to_string(root.join("docs/guides/migrating.md")).unwrap();
    let shown = guide.split_once("--pool sessions\n    # Converted").unwrap().1;
    let shown = shown.split("\n\nA password").next().unwrap();
    let file = root.join("tests/it/convert/nutcracker.yml");
    let (_, toml) = convert(&[text(&file), "--pool", "sessions"]);
    let printed: Vec<&str> = toml.lines().skip(1).collect();
    let shown: Vec<&str> = shown.lines().skip(1).map(|line| line.trim_start_matches("    ")).collect();
    assert_eq!(shown, printed);
}

#[test]
fn keys_over_several_servers_cannot_be_converted_and_the_result_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let file = written(directory.path(), "nutcracker.yml", &[]);
    let (exit, toml) = convert(&[text(&file), "--pool", "pages"]);
    assert_eq!(exit.code, Some(1), "{exit:#?}");
    assert!(exit.stderr.contains("not converted: servers: keys are distributed over 4 servers"), "{exit:#?}");
    assert!(toml.contains("# NOT CONVERTED:\n# - servers: keys are distributed over 4 servers"), "{toml}");
    assert!(toml.contains("addresses = [\"unix:/run/nutcracker/pages.sock\"]\n"), "{toml}");
    assert!(toml.contains("unix_mode = \"660\"\n") && toml.contains("max_connections = 20\n"), "{toml}");
    let config = directory.path().join("redbouncer.toml");
    std::fs::write(&config, toml).unwrap();
    let (exit, _) = Proxy::run_to_end(&["run", "--config", text(&config)], &[]);
    assert_eq!(exit.code, Some(64), "{exit:#?}");
    assert!(exit.stderr.contains("upstream.url"), "{exit:#?}");
}

#[test]
fn a_pool_for_memcached_cannot_be_converted() {
    let directory = tempfile::tempdir().unwrap();
    let file = written(directory.path(), "nutcracker.yml", &[]);
    let (exit, _) = convert(&[text(&file), "--pool", "legacy"]);
    assert_eq!(exit.code, Some(1), "{exit:#?}");
    assert!(exit.stderr.contains("memcached"), "{exit:#?}");
}

#[test]
fn one_of_several_pools_has_to_be_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = written(directory.path(), "nutcracker.yml", &[]);
    for (arguments, said) in [
        (vec![text(&file)], "--pool and one of sessions, pages, legacy"),
        (
            vec![text(&file), "--pool", "carts"],
            "no pool is named \"carts\"; the pools are sessions, pages, legacy",
        ),
    ] {
        let (exit, toml) = convert(&arguments);
        assert_eq!((exit.code, toml.as_str()), (Some(64), ""), "{exit:#?}");
        assert!(exit.stderr.contains(said), "{exit:#?}");
    }
}

#[test]
fn a_value_that_redbouncer_does_not_take_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = written(directory.path(), "nutcracker.yml", &[("backlog: 512", "backlog: 100000".to_owned())]);
    let (exit, toml) = convert(&[text(&file), "--pool", "sessions"]);
    assert_eq!(exit.code, Some(1), "{exit:#?}");
    assert!(exit.stderr.contains("listen.backlog"), "{exit:#?}");
    assert!(toml.contains("NOT CONVERTED") && !exit.stderr.contains("c0rrect"), "{exit:#?}");
}

#[test]
fn predixy_with_one_group_becomes_a_configuration_that_works() {
    let server = Server::start_with(&["--requirepass", "c0rrect horse"]);
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let bind = [("127.0.0.1:7617", format!("127.0.0.1:{port}"))];
    let file = written(directory.path(), "predixy.conf", &bind);
    written(directory.path(), "standalone.conf", &[("127.0.0.1:6379", server.address().to_string())]);
    std::fs::write(
        directory.path().join("authority.conf"),
        "Authority {\n  Auth {\n    Mode write\n  }\n}\n",
    )
    .unwrap();
    let (exit, toml) = convert(&[text(&file)]);
    assert_eq!((exit.code, exit.stderr.as_str()), (Some(0), ""), "{toml}");
    for line in [
        "workers = 2",
        "max_connections = 8",
        "memory_max = \"512MiB\"",
        "idle_timeout = \"300s\"",
        "command_timeout = \"2s\"",
        "backoff_max = \"500ms\"",
        "# - StaticSlaveReadPriority: redbouncer reads from the server that it writes to.",
    ] {
        assert!(toml.lines().any(|found| found == line), "{line}: {toml}");
    }
    let proxy = works(directory.path(), &toml, port, 0);
    assert_eq!(proxy.stop().code, Some(0));
}

#[test]
fn passwords_of_predixys_own_have_to_become_users() {
    let directory = tempfile::tempdir().unwrap();
    for file in ["authority.conf", "standalone.conf"] {
        written(directory.path(), file, &[]);
    }
    let file = written(directory.path(), "predixy.conf", &[]);
    let (exit, toml) = convert(&[text(&file), "--from", "predixy"]);
    assert_eq!(exit.code, Some(1), "{exit:#?}");
    assert!(exit.stderr.contains("an Auth with a password of its own (line 5), Mode read"), "{exit:#?}");
    assert!(!exit.stderr.contains("the other password") && !toml.contains("the other password"), "{toml}");
}

#[test]
fn clusters_sentinels_and_unknown_directives_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("predixy.conf");
    let text_of = "Bind /tmp/predixy\nClusterServerPool {\n  Servers {\n    + 10.0.0.1:6379\n  }\n}\nLocalDC bj\nTurbo on\n";
    std::fs::write(&path, text_of).unwrap();
    let (exit, _) = convert(&[text(&path)]);
    assert_eq!(exit.code, Some(1), "{exit:#?}");
    for said in ["ClusterServerPool: ", "LocalDC: ", "Turbo (line 8): unknown"] {
        assert!(exit.stderr.contains(said), "{exit:#?}");
    }
}

#[test]
fn files_that_cannot_be_used_are_64() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let absent = directory.path().join("absent.yml");
    for (file, said) in [
        (path("a.yml", "a: [1"), "not valid YAML"),
        (path("b.yml", "just a text"), "no pool"),
        (path("c.conf", "A {\n"), "line 1: a brace is not closed"),
        (path("d.conf", "Include absent.conf\n"), "absent.conf"),
        (path("e.toml", ""), "--from twemproxy or --from predixy"),
        (absent, "cannot read"),
    ] {
        let (exit, toml) = convert(&[text(&file)]);
        assert_eq!((exit.code, toml.as_str()), (Some(64), ""), "{exit:#?}");
        assert!(exit.stderr.contains(said), "{exit:#?}");
    }
}
