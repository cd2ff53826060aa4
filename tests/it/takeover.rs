//! Replacing a running proxy (`redbouncer run --takeover`): no connect is refused, no reply is lost or doubled, the cap holds for
//! both processes together, and a takeover that fails leaves the old process serving.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::harness::{
    Authority, Client, Ended, PATIENCE, Proxy, Sampler, Server, VALID, is_root, long, until,
};

/// A takeover takes two starts of the program on a machine that may be busy.
pub(crate) const TAKEOVER: Duration = Duration::from_secs(20);

/// A server, and a proxy before it that can be replaced.
pub(crate) struct Scene {
    pub(crate) proxy: Proxy,
    pub(crate) server: Server,
    upstream: String,
    settings: Vec<String>,
    directory: TempDir,
}

impl Scene {
    pub(crate) fn new(settings: &[&str]) -> Self {
        Self::before(Server::start(), settings)
    }

    pub(crate) fn before(server: Server, settings: &[&str]) -> Self {
        let upstream = server.url();
        Self::by_way_of(upstream, server, settings)
    }

    /// The proxy reaches `server` at `upstream`.
    pub(crate) fn by_way_of(upstream: String, server: Server, settings: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("takeover.sock");
        let proxy = Proxy::take_over(&socket, &upstream, settings).unwrap();
        let settings = settings.iter().map(ToString::to_string).collect();
        Self { proxy, server, upstream, settings, directory }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("takeover.sock")
    }

    fn settings(&self) -> Vec<&str> {
        self.settings.iter().map(String::as_str).collect()
    }

    /// Starts a process that takes over; returns the one that was replaced.
    pub(crate) fn replace(&mut self) -> Proxy {
        let next = Proxy::take_over(&self.socket(), &self.upstream, &self.settings()).unwrap();
        std::mem::replace(&mut self.proxy, next)
    }
}

/// Clients that each count a key of their own up and look at every reply; after some commands they connect anew.
struct Load {
    stop: Arc<AtomicBool>,
    connects: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<u64>>,
}

impl Load {
    fn start(address: SocketAddr, clients: usize, commands_per_connection: u64) -> Self {
        let (stop, connects) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let one = |number: usize| {
            let (stop, connects) = (Arc::clone(&stop), Arc::clone(&connects));
            thread::spawn(move || {
                let mut count = 0;
                while !stop.load(SeqCst) {
                    let mut client = Client::try_connect(address).expect("no connect is refused");
                    connects.fetch_add(1, SeqCst);
                    let last = count + commands_per_connection;
                    while count < last && !stop.load(SeqCst) {
                        count += 1;
                        let command = format!("INCR load:{number}");
                        assert_eq!(client.call(&command).int(), i64::try_from(count).unwrap());
                    }
                }
                count
            })
        };
        let threads = (0..clients).map(one).collect();
        Self { stop, connects, threads }
    }

    /// How many connections have been made so far.
    fn connects(&self) -> usize {
        self.connects.load(SeqCst)
    }

    /// Ends it, and compares with what the server has counted.
    fn finish(self, server: &Server) {
        self.stop.store(true, SeqCst);
        for (number, thread) in self.threads.into_iter().enumerate() {
            let count = thread.join().expect("every reply is the right one");
            assert!(count > 0, "client {number} has done nothing");
            let on_server = server.call(&format!("GET load:{number}")).text();
            assert_eq!(on_server, count.to_string(), "commands of client {number}");
        }
    }
}

#[test]
fn no_connect_is_refused_and_no_reply_is_lost_or_doubled_while_processes_are_replaced() {
    let mut scene = Scene::new(&[]);
    let sampler = Sampler::start(&scene.server);
    let load = Load::start(scene.proxy.address(), 8, 40);
    let takeovers = if long() { 100 } else { 5 };
    for _ in 0..takeovers {
        let before = load.connects();
        let old = scene.replace();
        until("clients come to the new process", PATIENCE, || load.connects() > before + 8);
        let exit = old.wait(TAKEOVER);
        assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    }
    load.finish(&scene.server);
    let seen = sampler.finish();
    assert!(seen.peak <= 8, "{} of 8: {:#?}", seen.peak, seen.rows);
    // What the last one held of the cap is free again.
    let mut leases: Vec<Client> = (0..3).map(|_| scene.proxy.connect()).collect();
    for client in &mut leases {
        assert_eq!(client.call("WATCH w").text(), "OK");
    }
}

/// A client's own row, without what changes by itself.
fn identity(client: &mut Client) -> Vec<String> {
    let row = client.call("CLIENT INFO").text();
    let varies = [
        "age",
        "idle",
        "qbuf",
        "qbuf-free",
        "argv-mem",
        "multi-mem",
        "rbs",
        "rbp",
        "obl",
        "oll",
        "omem",
        "tot-mem",
    ];
    let counts = ["tot-net-in", "tot-net-out", "tot-cmds", "events", "io-thread", "watch"];
    let is_kept = |field: &&str| {
        let name = field.split('=').next().unwrap();
        !varies.contains(&name) && !counts.contains(&name)
    };
    row.split_whitespace().filter(is_kept).map(str::to_owned).collect()
}

#[test]
fn idle_clients_move_with_their_session_on_the_same_connection() {
    let directory = tempfile::tempdir().unwrap();
    let unix = directory.path().join("redis.sock");
    let listen = format!("listen.addresses=127.0.0.1:0,unix:{}", unix.display());
    let mut scene = Scene::new(&[&listen]);
    let mut clients: Vec<Client> = (0..8).map(|_| scene.proxy.connect()).collect();
    clients.push(Client::connect_unix(&unix));
    for command in [
        "CLIENT SETNAME first",
        "HELLO 3",
        "SELECT 3",
        "CLIENT NO-EVICT on",
        "CLIENT REPLY ON",
        "PING",
        "SELECT 2",
        "PING",
        "CLIENT SETNAME by-unix",
    ]
    .iter()
    .enumerate()
    {
        assert!(!clients[command.0].call(command.1).is_error(), "{command:?}");
    }
    clients[1].call("CLIENT SETNAME third");
    clients[1].call("SELECT 5");
    let sha = clients[5].ask(&["SCRIPT", "LOAD", "return 7"]);
    assert!(!sha.is_error(), "{sha:?}");
    // One has sent a part of a command.
    clients[7].send(b"*2\r\n$4\r\nECHO\r\n$5\r\nhel");
    let mut before: Vec<_> = clients[..7].iter_mut().map(identity).collect();
    before.push(identity(&mut clients[8]));
    let old = scene.replace();
    // None of them has to do anything for it.
    let exit = old.wait(TAKEOVER);
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let mut after: Vec<_> = clients[..7].iter_mut().map(identity).collect();
    after.push(identity(&mut clients[8]));
    assert_eq!(before, after);
    clients[7].send(b"lo\r\n");
    assert_eq!(clients[7].reply().text(), "hello");
    // New clients get ids of their own.
    let id = |client: &mut Client| client.call("CLIENT ID").int();
    let fresh = id(&mut scene.proxy.connect());
    assert!(clients.iter_mut().all(|client| id(client) < fresh));
    // Each goes on as what it was.
    assert_eq!(clients[2].call("SET a 3").text(), "OK");
    assert_eq!(scene.server.call("EXISTS a").int(), 0, "in database 3");
    assert!(clients[1].call("HGETALL nothing").raw.starts_with(b"%"), "RESP3");
    assert_eq!(scene.proxy.status()["clients"].as_array().unwrap().len(), 9);
}

#[test]
fn connections_outlive_their_process_under_load() {
    let mut scene = Scene::new(&[]);
    let sampler = Sampler::start(&scene.server);
    let load = Load::start(scene.proxy.address(), 8, u64::MAX / 2);
    let mut idle: Vec<Client> = (0..50).map(|_| scene.proxy.connect()).collect();
    let before: Vec<_> = idle.iter_mut().map(identity).collect();
    for _ in 0..if long() { 100 } else { 5 } {
        let exit = scene.replace().wait(TAKEOVER);
        assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    }
    assert_eq!(load.connects(), 8, "nobody has connected anew");
    load.finish(&scene.server);
    let after: Vec<_> = idle.iter_mut().map(identity).collect();
    assert_eq!(before, after);
    let seen = sampler.finish();
    assert!(seen.peak <= 8, "{} of 8: {:#?}", seen.peak, seen.rows);
}

#[test]
fn clients_that_have_logged_in_move_with_their_user() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("takeover.sock");
    let server = Server::start_with(&["--requirepass", "sesame"]);
    assert_eq!(server.call("ACL SETUSER ann on >secret ~* &* +@all").text(), "OK");
    let settings = ["auth.mode=passthrough"];
    let old = Proxy::take_over(&socket, &server.url(), &settings).unwrap();
    let mut ann = old.connect();
    assert_eq!(ann.call("AUTH ann secret").text(), "OK");
    let mut usual = old.connect();
    assert_eq!(usual.call("AUTH sesame").text(), "OK");
    let mut stranger = old.connect();
    assert!(stranger.call("PING").is_error());
    let new = Proxy::take_over(&socket, &server.url(), &settings).unwrap();
    until("both have moved", PATIENCE, || new.status()["clients"].as_array().unwrap().len() == 2);
    assert_eq!(ann.call("ACL WHOAMI").text(), "ann");
    assert_eq!(usual.call("ACL WHOAMI").text(), "default");
    assert_eq!(stranger.call("AUTH ann secret").text(), "OK", "one that has not logged in can do it");
    assert_eq!(stranger.call("ACL WHOAMI").text(), "ann");
    assert_eq!(old.wait(TAKEOVER).code, Some(0));
    assert!(!new.log().contains("secret"), "{}", new.log());
}

#[test]
fn the_cap_holds_for_both_processes_when_the_old_one_held_all_of_it() {
    let mut scene = Scene::new(&[]);
    let mut subscriber = scene.proxy.connect();
    subscriber.call("SUBSCRIBE c");
    let mut blocked = scene.proxy.connect();
    blocked.start("BLPOP none 0");
    let mut leases: Vec<Client> = (0..3).map(|_| scene.proxy.connect()).collect();
    for client in &mut leases {
        assert_eq!(client.call("WATCH w").text(), "OK");
        assert_eq!(client.call("MULTI").text(), "OK");
    }
    let mut other = scene.proxy.connect();
    other.call("SELECT 1");
    other.call("GET a");
    until("the old process holds nearly all", PATIENCE, || scene.server.clients() >= 7);
    let sampler = Sampler::start(&scene.server);
    let old = scene.replace();
    // Both serve.
    let mut fresh = scene.proxy.connect();
    assert_eq!(fresh.call("SET a 1").text(), "OK");
    for client in &mut leases {
        assert_eq!(client.call("GET a").text(), "QUEUED");
        assert_eq!(client.call("EXEC").items()[0].text(), "1", "its transaction went on");
    }
    scene.server.call("RPUSH none x");
    assert_eq!(blocked.reply().items()[1].text(), "x");
    fresh.call("PUBLISH c hello");
    assert_eq!(subscriber.reply().items()[2].text(), "hello");
    drop((subscriber, blocked, leases, other));
    assert_eq!(old.wait(TAKEOVER).code, Some(0));
    // Then the new one has all of it.
    let mut leases: Vec<Client> = (0..3).map(|_| scene.proxy.connect()).collect();
    for client in &mut leases {
        assert_eq!(client.call("WATCH w").text(), "OK");
    }
    let seen = sampler.finish();
    assert!(seen.peak <= 8, "{} of 8: {:#?}", seen.peak, seen.rows);
}

#[test]
fn every_kind_of_listener_goes_to_the_new_process() {
    let authority = Authority::new("takeover");
    let issued = authority.issue("proxy", &["localhost", "127.0.0.1"], VALID);
    let directory = tempfile::tempdir().unwrap();
    let unix = directory.path().join("redis.sock");
    let settings = [
        "listen.tls.addresses=127.0.0.1:0".to_owned(),
        format!("listen.tls.cert={}", issued.cert.display()),
        format!("listen.tls.key={}", issued.key.display()),
        format!("listen.addresses=127.0.0.1:0,unix:{}", unix.display()),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mut scene = Scene::new(&settings);
    let config = authority.client(None);
    let addresses = (scene.proxy.address(), scene.proxy.tls(), scene.proxy.admin());
    let mut staying = Client::connect_tls(scene.proxy.tls(), &config);
    assert_eq!(staying.call("PING").text(), "PONG");
    let old = scene.replace();
    assert_eq!((scene.proxy.address(), scene.proxy.tls(), scene.proxy.admin()), addresses);
    assert_eq!(staying.call("PING").text(), "PONG", "a client with TLS stays with the old process");
    drop(staying);
    assert_eq!(old.wait(TAKEOVER).code, Some(0));
    assert_eq!(Client::connect_unix(&unix).call("PING").text(), "PONG");
    assert_eq!(Client::connect_tls(scene.proxy.tls(), &config).call("PING").text(), "PONG");
    assert_eq!(scene.proxy.connect().call("PING").text(), "PONG");
    assert_eq!(scene.proxy.http("/ready").0, 200);
    // The files belong to the process that listens.
    let (takeover, proxy) = (scene.socket(), scene.proxy);
    assert_eq!(std::fs::metadata(&takeover).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(proxy.stop().code, Some(0));
    assert!(!unix.exists() && !takeover.exists());
}

#[test]
fn without_a_running_process_it_starts_as_usual_and_without_the_key_it_is_refused() {
    let scene = Scene::new(&[]);
    assert!(scene.proxy.log().contains("no running redbouncer to take over from"));
    let (exit, _) = Proxy::run_to_end(&["run", "--takeover"], &[]);
    assert_eq!(exit.code, Some(64));
    assert!(exit.stderr.contains("--takeover needs takeover.socket"), "{}", exit.stderr);
    // Without the flag nobody is replaced.
    let socket = format!("takeover.socket={}", scene.socket().display());
    let exit = Proxy::launch(&scene.server.url(), &[&socket]).err().unwrap();
    assert_eq!(exit.code, Some(1));
    assert!(
        exit.stderr.contains("another program, perhaps another redbouncer, listens there"),
        "{}",
        exit.stderr
    );
    assert_eq!(scene.proxy.connect().call("PING").text(), "PONG");
}

/// A new process that does what a test wants it to.
pub(crate) struct Newcomer(UnixStream);

impl Newcomer {
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(TAKEOVER)).unwrap();
        Self(stream)
    }

    pub(crate) fn say(&mut self, message: &Json) {
        let body = message.to_string();
        let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        bytes.push(0);
        bytes.extend(body.as_bytes());
        self.0.write_all(&bytes).unwrap();
    }

    fn hello(&mut self, version: u32, requires: &[&str]) {
        self.say(&json!({
            "message": "hello", "version": version, "capabilities": [], "requires": requires,
            "program": "9.9.9", "process": 1, "terms": "",
        }));
    }

    /// One that has taken over, goes on with clients, and can do `capabilities`.
    pub(crate) fn in_charge(socket: &Path, capabilities: &[&str]) -> Self {
        let mut first = Self::connect(socket);
        first.hello(1, &[]);
        let terms = first.hear("offer")["greeting"]["terms"].clone();
        drop(first);
        let mut next = None;
        until("the first try has failed", PATIENCE, || {
            let mut newcomer = Self::connect(socket);
            newcomer.say(&json!({
                "message": "hello", "version": 1, "capabilities": capabilities, "requires": [],
                "program": "9.9.9", "process": 1, "terms": terms,
            }));
            let answer = newcomer.next();
            next = (answer["message"] == "offer").then_some(newcomer);
            next.is_some()
        });
        let mut newcomer = next.unwrap();
        newcomer.say(&json!({ "message": "take" }));
        newcomer.hear("all_sockets");
        newcomer.say(&json!({ "message": "accepting" }));
        newcomer.hear("released");
        newcomer.say(&json!({ "message": "confirm" }));
        newcomer
    }

    /// The next message. A file descriptor that comes with it is closed by the kernel.
    fn next(&mut self) -> Json {
        let mut head = [0; 5];
        self.0.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let mut body = vec![0; length as usize];
        self.0.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    /// The next message of this name, behind what is said of sockets and permits.
    pub(crate) fn hear(&mut self, name: &str) -> Json {
        loop {
            let message = self.next();
            if message["message"] == name {
                return message;
            }
            assert!(["ceiling", "socket"].contains(&message["message"].as_str().unwrap()), "{message}");
        }
    }
}

#[test]
fn a_process_that_dies_at_any_step_leaves_the_old_one_serving() {
    let scene = Scene::new(&[]);
    let mut held: Vec<Client> = (0..3).map(|_| scene.proxy.connect()).collect();
    for client in &mut held {
        client.call("PING");
    }
    let failed = || scene.proxy.log().matches("this process continues to serve").count();
    for steps in 0..=4 {
        let mut newcomer = Newcomer::connect(&scene.socket());
        if steps > 0 {
            newcomer.hello(1, &["sockets"]);
            newcomer.hear("offer");
        }
        if steps > 1 {
            newcomer.say(&json!({ "message": "take" }));
            newcomer.hear("all_sockets");
        }
        if steps > 2 {
            newcomer.say(&json!({ "message": "accepting" }));
            newcomer.hear("released");
        }
        if steps > 3 {
            newcomer.say(&json!({ "message": "nonsense" }));
        }
        drop(newcomer);
        until("the takeover has failed", PATIENCE, || failed() == steps + 1);
        for client in &mut held {
            assert_eq!(client.call("PING").text(), "PONG", "after step {steps}");
        }
        // It accepts, and has all of the cap.
        let mut leases: Vec<Client> = (0..3).map(|_| scene.proxy.connect()).collect();
        for client in &mut leases {
            assert_eq!(client.call("WATCH w").text(), "OK", "after step {steps}");
        }
        assert_eq!(scene.proxy.http("/ready").0, 200);
    }
}

#[test]
fn another_version_and_an_unknown_requirement_are_refused_in_words() {
    let scene = Scene::new(&[]);
    for (version, requires, expected) in [
        (99, vec![], "redbouncer 9.9.9 speaks version 99 of the takeover protocol"),
        (1, vec!["sockets", "telepathy"], "requires \\\"telepathy\\\""),
    ] {
        let mut newcomer = Newcomer::connect(&scene.socket());
        newcomer.hello(version, &requires);
        let refused = newcomer.hear("refused").to_string();
        assert!(refused.contains(expected), "{refused}");
        assert_eq!(scene.proxy.connect().call("PING").text(), "PONG");
    }
    // One at a time.
    let mut first = Newcomer::connect(&scene.socket());
    first.hello(1, &[]);
    first.hear("offer");
    let mut second = Newcomer::connect(&scene.socket());
    second.hello(1, &[]);
    let refused = second.hear("refused").to_string();
    assert!(refused.contains("another process is taking over"), "{refused}");
}

#[test]
fn a_process_whose_configuration_does_not_work_does_not_take_over() {
    let scene = Scene::new(&[]);
    let load = Load::start(scene.proxy.address(), 4, 40);
    let sampler = Sampler::start(&scene.server);
    // A server that is not there, and an address that another program has.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("listen.addresses=127.0.0.1:0,{}", taken.local_addr().unwrap());
    let nowhere = "upstream.url=redis://127.0.0.1:1";
    for (settings, expected) in [
        (vec![nowhere], "the server was not reached within 10 seconds"),
        (vec![&listen], "Address already in use"),
    ] {
        let exit = if settings == [nowhere] {
            let socket = format!("takeover.socket={}", scene.socket().display());
            let arguments =
                ["run", "--takeover", "--set", &socket, "--set", nowhere, "--listen", "127.0.0.1:0"];
            Proxy::launch_with(&arguments, &[]).err().unwrap()
        } else {
            Proxy::take_over(&scene.socket(), &scene.server.url(), &settings).err().unwrap()
        };
        assert_eq!(exit.code, Some(1));
        assert!(exit.stderr.contains(expected), "{}", exit.stderr);
        let connects = load.connects();
        until("clients are served", PATIENCE, || load.connects() > connects + 4);
    }
    load.finish(&scene.server);
    assert!(sampler.finish().peak <= 8);
}

#[test]
fn another_user_is_refused() {
    if !is_root() {
        eprintln!("skipped: needs root to become another user");
        return;
    }
    let scene = Scene::new(&[]);
    // Even where the permissions of the file would let it in.
    std::fs::set_permissions(scene.directory.path(), Permissions::from_mode(0o777)).unwrap();
    std::fs::set_permissions(scene.socket(), Permissions::from_mode(0o777)).unwrap();
    let path = scene.socket();
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nsys.exit(len(s.recv(1)))";
    let mut stranger =
        Command::new("python3").args(["-c", script]).arg(&path).uid(65534).gid(65534).spawn().unwrap();
    assert_eq!(stranger.wait().unwrap().code(), Some(0), "its connection is closed without a word");
    until("it is in the log", PATIENCE, || {
        scene.proxy.log().contains("the other process runs as user 65534; expected user 0 or root")
    });
}

#[test]
fn clients_that_stay_too_long_are_closed_when_their_time_is_over() {
    let mut scene = Scene::new(&[]);
    let mut watching = scene.proxy.connect();
    // Set while it runs: an hour would be the default.
    assert!(!watching.call("PROXY CONFIG SET takeover.client_timeout 300ms").is_error());
    watching.call("WATCH w");
    let old = scene.replace();
    assert_eq!(watching.try_reply(PATIENCE), Err(Ended::Closed));
    let exit = old.wait(TAKEOVER);
    assert_eq!(exit.code, Some(0));
    assert!(exit.stderr.contains("takeover.client_timeout"), "{}", exit.stderr);
}
