//! systemd and its like: what they are told (`NOTIFY_SOCKET`), the sockets that they pass on (`LISTEN_FDS`), the unit files.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::harness::{Authority, Client, PATIENCE, Proxy, Server, VALID, free_port, until};

/// A service manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    directory: TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        Self { socket, directory }
    }

    /// Starts a proxy with a watchdog that waits for so many milliseconds.
    fn start(&self, server: &Server, watchdog: u64) -> Proxy {
        let path = self.directory.path().join("notify");
        let microseconds = (watchdog * 1000).to_string();
        let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", &microseconds)];
        Proxy::launch_with(&["--upstream", &server.url(), "--listen", "127.0.0.1:0"], &environment).unwrap()
    }

    /// The next message, if it comes within this time.
    fn told_within(&self, within: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(within)).unwrap();
        let mut text = [0; 4096];
        let length = self.socket.recv(&mut text).ok()?;
        Some(String::from_utf8(text[..length].to_vec()).unwrap())
    }

    #[track_caller]
    fn told(&self) -> String {
        self.told_within(PATIENCE).expect("the service manager is told something")
    }

    /// How many messages have come that nobody has read.
    fn unread(&self) -> usize {
        std::iter::from_fn(|| self.told_within(Duration::from_millis(1))).count()
    }
}

#[test]
fn it_is_told_that_the_proxy_is_ready_lives_and_stops() {
    let server = Server::start();
    let manager = Manager::new();
    let proxy = manager.start(&server, 300);
    assert_eq!(manager.told().trim_end(), "READY=1");
    assert_eq!(proxy.connect().call("PING").text(), "PONG");
    for _ in 0..5 {
        assert_eq!(manager.told().trim_end(), "WATCHDOG=1");
    }
    proxy.signal("TERM");
    let mut last = manager.told();
    while last.trim_end() == "WATCHDOG=1" {
        last = manager.told();
    }
    // The drain (8 s), the closing of connections (5 s), and a margin (5 s).
    assert_eq!(last.trim_end(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=18000000");
    assert_eq!(proxy.wait(PATIENCE).code, Some(0));
}

/// One thread of a process, stopped; the others go on.
struct Stopped(Pid);

impl Stopped {
    fn thread(process: u32, name: &str) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let is_named =
            |task: &PathBuf| std::fs::read_to_string(task.join("comm")).unwrap().trim_end() == name;
        let task = tasks.map(|task| task.unwrap().path()).find(is_named).unwrap();
        let thread = Pid::from_raw(task.file_name().unwrap().to_str().unwrap().parse().unwrap());
        ptrace::seize(thread, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        Self(thread)
    }

    fn go_on(self) {
        ptrace::detach(self.0, None).unwrap();
    }
}

#[test]
fn the_watchdog_is_not_fed_while_a_worker_hangs() {
    let server = Server::start();
    let manager = Manager::new();
    let proxy = manager.start(&server, 600);
    assert_eq!(manager.told().trim_end(), "READY=1");
    assert_eq!(manager.told().trim_end(), "WATCHDOG=1");
    let hung = Stopped::thread(proxy.process(), "worker-0");
    manager.unread();
    until("the log says so", PATIENCE, || proxy.log().contains("a worker does not respond"));
    // The worker may have answered just before. Of a timer there would be three messages.
    let told = manager.unread();
    assert!(told <= 1, "{told} messages while the worker hung");
    hung.go_on();
    assert_eq!(manager.told().trim_end(), "WATCHDOG=1");
    assert_eq!(proxy.stop().code, Some(0));
}

fn listening() -> (TcpListener, Client) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Nobody accepts yet: it waits in the kernel's queue.
    let mut early = Client::connect(listener.local_addr().unwrap());
    early.start("PING");
    (listener, early)
}

fn pass_on(listener: &TcpListener) -> OwnedFd {
    listener.try_clone().unwrap().into()
}

#[test]
fn clients_that_come_during_a_restart_are_served_by_the_next_process() {
    let server = Server::start();
    let (listener, mut early) = listening();
    let address = listener.local_addr().unwrap();
    let first = Proxy::start_with_sockets(vec![pass_on(&listener)], &server, &[]).unwrap();
    assert_eq!(first.address(), address, "listen.addresses is not opened beside it");
    assert_eq!(early.reply().text(), "PONG");
    assert_eq!(first.stop().code, Some(0));
    early.expect_end(PATIENCE);
    let mut between = Client::connect(address);
    between.start("PING");
    let second = Proxy::start_with_sockets(vec![pass_on(&listener)], &server, &[]).unwrap();
    assert_eq!(between.reply().text(), "PONG");
    assert_eq!(second.stop().code, Some(0));
}

#[test]
fn sockets_for_tls_and_unix_sockets_can_be_passed_on() {
    let server = Server::start();
    let authority = Authority::new("the clients' authority");
    let files = authority.issue("door", &["localhost"], VALID);
    let (secured, _early) = listening();
    let address = secured.local_addr().unwrap();
    let path = authority.files.path().join("redis.sock");
    let local = UnixListener::bind(&path).unwrap();
    let settings = [
        format!("listen.tls.addresses={address}"),
        format!("listen.tls.cert={}", files.cert.display()),
        format!("listen.tls.key={}", files.key.display()),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let sockets = vec![pass_on(&secured), local.into()];
    let proxy = Proxy::start_with_sockets(sockets, &server, &settings).unwrap();
    assert_eq!(Client::connect_tls(address, &authority.client(None)).call("PING").text(), "PONG");
    assert_eq!(Client::connect_unix(&path).call("PING").text(), "PONG");
    assert_eq!(proxy.stop().code, Some(0));
    assert!(path.exists(), "its file is the service manager's");
}

/// A socket of IPv6 that takes IPv4 too, as `ListenStream=6380` of systemd opens.
#[test]
fn clients_of_a_socket_for_both_families_are_shown_by_their_ipv4_address() {
    let server = Server::start();
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
    socket.set_only_v6(false).unwrap();
    socket.bind(&"[::ffff:127.0.0.1]:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(16).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    let proxy = Proxy::start_with_sockets(vec![socket.into()], &server, &[]).unwrap();
    let mut client = Client::connect(([127, 0, 0, 1], port).into());
    let row = client.call("CLIENT INFO").text();
    let address = client.local_address();
    assert!(row.contains(&format!("addr={address} laddr=127.0.0.1:{port} ")), "{row}");
    assert_eq!(proxy.stop().code, Some(0));
}

#[test]
fn a_connection_instead_of_a_listening_socket_is_refused() {
    let server = Server::start();
    let (listener, _early) = listening();
    let (connection, _) = listener.accept().unwrap();
    let exit = Proxy::start_with_sockets(vec![connection.into()], &server, &[]).err().unwrap();
    assert_eq!(exit.code, Some(1), "{exit:#?}");
    assert!(exit.stderr.contains("file descriptor 3: it does not listen (Accept=no is needed)"), "{exit:#?}");
}

fn have(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        eprintln!("NOT TESTED: there is no {program}");
    }
    found.is_ok()
}

/// The same by the program of systemd that does it.
#[test]
fn systemd_socket_activate_starts_it_for_the_first_client() {
    if !have("systemd-socket-activate") {
        return;
    }
    let server = Server::start();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let first = std::thread::spawn(move || {
        let mut client = None;
        until("the port is open", PATIENCE, || {
            client = Client::try_connect(address).ok();
            client.is_some()
        });
        let mut client = client.unwrap();
        client.start("PING");
        client.reply_within(Duration::from_secs(30)).text()
    });
    let mut command = Command::new("systemd-socket-activate");
    command.args(["--listen", &address.to_string(), env!("CARGO_BIN_EXE_redbouncer")]);
    let proxy = Proxy::start_by(command, &server, &[]);
    assert_eq!(proxy.address(), address);
    assert_eq!(first.join().unwrap(), "PONG");
    assert_eq!(proxy.stop().code, Some(0));
}

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

#[track_caller]
fn systemd_analyze(arguments: &[&str]) {
    let output = Command::new("systemd-analyze").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "systemd-analyze {arguments:?}: {text}");
    // Unknown keys are only warned of.
    assert!(arguments[0] != "verify" || text.is_empty(), "systemd-analyze {arguments:?}: {text}");
}

#[test]
fn the_unit_files_are_valid_and_the_service_is_exposed_to_little() {
    if !have("systemd-analyze") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let copy = |file: &str| {
        let unit = std::fs::read_to_string(deploy(file)).unwrap();
        let path = directory.path().join(file);
        std::fs::write(&path, unit.replace("/usr/bin/redbouncer", env!("CARGO_BIN_EXE_redbouncer"))).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (service, socket) = (copy("redbouncer.service"), copy("redbouncer.socket"));
    systemd_analyze(&["verify", "--man=no", &service, &socket]);
    // In tenths: 2.0.
    systemd_analyze(&["security", "--offline=true", "--threshold=20", "--no-pager", &service]);
}

/// The system calls of a group, such as `@system-service`, and of the groups in it.
fn system_calls(group: &str) -> BTreeSet<String> {
    let output = Command::new("systemd-analyze").args(["syscall-filter", group]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter(|line| line.starts_with(' ')).map(str::trim);
    let names = names.filter(|name| !name.is_empty() && !name.starts_with('#'));
    names
        .flat_map(|name| if name.starts_with('@') { system_calls(name) } else { [name.to_owned()].into() })
        .collect()
}

/// A system call that `SystemCallFilter` keeps out would fail under systemd alone.
#[test]
fn the_service_may_make_the_system_calls_of_the_proxy() {
    if !have("systemd-analyze") || !have("strace") {
        return;
    }
    let unit = std::fs::read_to_string(deploy("redbouncer.service")).unwrap();
    let mut allowed = BTreeSet::new();
    for filter in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let groups = filter.trim_start_matches('~').split(' ').flat_map(system_calls);
        if filter.starts_with('~') {
            groups.for_each(|name| _ = allowed.remove(&name));
        } else {
            allowed.extend(groups);
        }
    }
    allowed.extend(system_calls("@default"));
    assert!(allowed.len() > 200, "only {allowed:?}: the reader is broken");

    let server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    let mut command = Command::new("strace");
    // As a grandchild, so that signals go to the proxy.
    command.args(["-D", "-f", "-qq", "-o", trace.to_str().unwrap(), env!("CARGO_BIN_EXE_redbouncer")]);
    let proxy = Proxy::start_by(command, &server, &[]);
    let mut client = proxy.connect();
    assert_eq!(client.call("SET key value").text(), "OK");
    client.call("BLPOP none 0.01");
    client.call("WATCH key");
    assert_eq!(proxy.http("/metrics").0, 200);
    proxy.signal("HUP");
    until("SIGHUP has been heard", PATIENCE, || proxy.log().contains("SIGHUP"));
    assert_eq!(proxy.stop().code, Some(0));
    let calls = || std::fs::read_to_string(&trace).unwrap();
    until("the trace is complete", PATIENCE, || calls().contains("exit_group("));
    let calls = calls();
    // A process id, then `name(arguments…`.
    let used: BTreeSet<&str> = calls
        .lines()
        .filter_map(|line| line.split_once(' ')?.1.trim_start().split_once('('))
        .map(|(name, _)| name)
        .filter(|name| name.chars().all(|sign| sign.is_ascii_alphanumeric() || sign == '_'))
        .collect();
    assert!(used.contains("epoll_wait") && used.contains("accept4"), "{used:?}");
    let refused: Vec<_> = used.iter().filter(|name| !allowed.contains(**name)).collect();
    assert!(refused.is_empty(), "{refused:?}");
}
