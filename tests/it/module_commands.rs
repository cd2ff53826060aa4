//! Commands that no table knows: the server is asked what they are, and those that block take a lease.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::{PATIENCE, Proxy, Server, Version, until};

/// The module of `modules/waiting.c`, built.
struct Module {
    _directory: TempDir,
    path: PathBuf,
}

fn module() -> Module {
    let directory = tempfile::Builder::new().prefix("redbouncer-it-").tempdir().unwrap();
    let path = directory.path().join("waiting.so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&path)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/modules/waiting.c"))
        .status()
        .expect("a C compiler is installed");
    assert!(built.success());
    Module { _directory: directory, path }
}

/// Servers whose modules can say that a command blocks: Redis since 7.0, Valkey.
fn servers() -> Vec<Version> {
    Version::all().into_iter().filter(|version| !version.name.contains("-6.")).collect()
}

fn leases(server: &Server) -> usize {
    server.rows().iter().filter(|row| row.get("name").ends_with(":leased")).count()
}

#[test]
fn a_blocking_command_of_a_module_takes_a_lease_and_leaves_nothing_behind() {
    let module = module();
    for version in servers() {
        println!("--- {}", version.name);
        let server = Server::start_version(&version, &["--loadmodule", module.path.to_str().unwrap()]);
        let proxy = Proxy::start(&server, &[]);
        let mut other = proxy.connect();
        // An ordinary one runs over a lane.
        assert_eq!(other.call("WAITING.ADD k first").int(), 1);
        assert_eq!(other.call("WAITING.TAKE k 0").text(), "first");
        // Nobody else waits behind one that blocks.
        let mut waiter = proxy.connect();
        waiter.start("WAITING.TAKE k 0");
        let blocks = || {
            server.rows().iter().any(|row| row.get("flags") == "b" && row.get("name").ends_with(":leased"))
        };
        until("it blocks on a lease", PATIENCE, blocks);
        let start = Instant::now();
        assert_eq!(other.call("GET nothing"), other.call("GET nothing"));
        assert!(start.elapsed() < PATIENCE);
        assert_eq!(other.call("WAITING.ADD k second").int(), 1);
        assert_eq!(waiter.reply().text(), "second");
        assert!(waiter.call("WAITING.TAKE k 50").is_nil());
        // A client that leaves in the middle takes nothing along and holds nothing.
        waiter.start("WAITING.TAKE k 0");
        until("it blocks again", PATIENCE, blocks);
        drop(waiter);
        until("its lease is closed", Duration::from_secs(2), || leases(&server) == 0);
        assert_eq!(other.call("WAITING.ADD k third").int(), 1);
        assert_eq!(other.call("LPOP k").text(), "third");
    }
}

#[test]
fn a_command_that_comes_with_a_module_later_is_asked_for_again() {
    let module = module();
    let server = Server::start_with(&["--enable-module-command", "yes"]);
    let proxy = Proxy::start(&server, &[]);
    let mut client = proxy.connect();
    let unknown = client.call("WAITING.TAKE k 0");
    assert!(unknown.error().starts_with("ERR unknown command 'WAITING.TAKE'"), "{unknown:?}");
    server.call(&format!("MODULE LOAD {}", module.path.display()));
    client.start("WAITING.TAKE k 0");
    until("it blocks on a lease", PATIENCE, || {
        server.rows().iter().any(|row| row.get("flags") == "b" && row.get("name").ends_with(":leased"))
    });
    assert_eq!(proxy.connect().call("WAITING.ADD k v").int(), 1);
    assert_eq!(client.reply().text(), "v");
}
