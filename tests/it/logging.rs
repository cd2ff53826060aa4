//! The log: whatever becomes of its lines, the service goes on, and strangers cannot fill it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::{Client, PATIENCE, Proxy, Server, free_port, http, signal, until};

/// A proxy whose log goes where a test says. Killed when dropped.
struct Logging {
    child: Child,
    listen: SocketAddr,
    admin: SocketAddr,
}

impl Logging {
    fn to(stderr: impl Into<Stdio>, server: &Server, settings: &[&str]) -> Self {
        let (listen, admin) = (free_port(), free_port());
        let mut command = Command::new(env!("CARGO_BIN_EXE_redbouncer"));
        command.args(["--upstream", &server.url(), "--listen", &format!("127.0.0.1:{listen}")]);
        command.args(["--admin", &format!("127.0.0.1:{admin}")]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        let mut this = Self {
            child,
            listen: SocketAddr::from(([127, 0, 0, 1], listen)),
            admin: SocketAddr::from(([127, 0, 0, 1], admin)),
        };
        until("it is ready", PATIENCE, || {
            assert!(this.is_running(), "it has ended");
            http::get(this.admin, "/ready").is_ok_and(|(status, _)| status == 200)
        });
        this
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Serves clients, and has lines to log about them: two for each at level `debug`.
    fn serves(&mut self, clients: usize) {
        for _ in 0..clients {
            let mut client = Client::connect(self.listen);
            assert_eq!(client.call("PING").text(), "PONG");
        }
        assert!(self.is_running());
        assert_eq!(http::get(self.admin, "/live").unwrap().0, 200);
    }

    fn dropped(&self, reason: &str) -> f64 {
        let (_, body) = http::get(self.admin, "/metrics").unwrap();
        let name = format!("redbouncer_log_lines_dropped_total{{reason=\"{reason}\"}} ");
        body.lines().find_map(|line| line.strip_prefix(&name)).map_or(0.0, |value| value.parse().unwrap())
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn with_the_log_on_a_full_disk_it_starts_serves_and_ends_in_order() {
    let server = Server::start();
    let mut proxy = Logging::to(File::options().write(true).open("/dev/full").unwrap(), &server, &[]);
    proxy.serves(10);
    until("the lost lines are counted", PATIENCE, || proxy.dropped("write_failed") > 0.0);
    signal(proxy.child.id(), "TERM");
    until("it ends", PATIENCE, || !proxy.is_running());
    assert_eq!(proxy.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_reader_of_the_log_that_is_gone_ends_nobody() {
    let server = Server::start();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut proxy = Logging::to(writer, &server, &["log.level=debug"]);
    drop(reader);
    proxy.serves(50);
    until("the lost lines are counted", PATIENCE, || proxy.dropped("write_failed") > 0.0);
}

#[test]
fn a_reader_of_the_log_that_stops_holds_nobody_up_and_is_told_what_it_missed() {
    let server = Server::start();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut proxy = Logging::to(writer, &server, &["log.level=trace"]);
    // A pipe holds 64 KiB and the queue 8,192 lines: at level trace this is more.
    until("lines do not fit any more", Duration::from_secs(60), || {
        proxy.serves(200);
        proxy.dropped("queue_full") > 0.0
    });
    // Somebody reads again.
    let (told, tells) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).lines().map_while(Result::ok) {
            if line.contains("log lines were dropped") {
                let _ = told.send(line);
            }
        }
    });
    let line = tells.recv_timeout(PATIENCE).expect("the log says that lines were dropped");
    assert!(line.contains("dropped="), "{line}");
}

#[test]
fn strangers_do_not_fill_the_log() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["client.max=1"]);
    let mut inside = proxy.connect();
    assert_eq!(inside.call("PING").text(), "PONG");
    let about_strangers = || proxy.log().lines().filter(|line| line.contains("client refused")).count();
    let refused = 500;
    for _ in 0..refused {
        let mut stranger = TcpStream::connect(proxy.address()).unwrap();
        let mut words = Vec::new();
        let _ = stranger.read_to_end(&mut words);
    }
    assert!(about_strangers() <= 20, "{}", proxy.log());
    // A browser's request is another kind of event; each closes its connection.
    inside.call("QUIT");
    drop(inside);
    for _ in 0..refused {
        until("a place is free", PATIENCE, || {
            let mut stranger = proxy.connect();
            stranger.try_send("POST / HTTP/1.1\r\n\r\n").is_ok()
                && !stranger.read_to_end(PATIENCE).0.starts_with(b"-ERR max")
        });
    }
    let closed = || {
        let log = proxy.log();
        log.lines().filter(|line| line.contains("client closed") && line.contains("\"http\"")).count()
    };
    assert!((1..=30).contains(&closed()), "{}", proxy.log());
    until("one line tells of the others", Duration::from_secs(15), || {
        proxy.log().lines().any(|line| {
            line.contains("client closed, and more of these")
                && line.contains("\"http\"")
                && line.contains("127.0.0.1 (")
        })
    });
    let metric = "redbouncer_clients_closed_total{reason=\"http\"}";
    assert!(proxy.metrics()[metric] >= f64::from(refused), "metrics count all");
}

/// A futex that the thread slept on. The C library's allocator has a lock for each of its arenas, which begin at multiples
/// of 64 MiB (`HEAP_MAX_SIZE` in glibc's `malloc/arena.c`); a line that is freed by the thread that wrote it meets it.
/// It is never held across I/O.
fn is_wait_for_a_lock(line: &str) -> bool {
    const ARENA: u64 = 64 << 20;
    let Some(rest) = line.strip_prefix("futex(0x") else { return false };
    let address = rest.split(',').next().and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap();
    line.contains("FUTEX_WAIT") && !line.contains("EAGAIN") && address % ARENA > 4096
}

/// What a worker's thread asks of the kernel under load: nothing that can block, whoever reads the log.
#[test]
fn a_worker_under_load_writes_no_log_and_waits_for_no_lock() {
    let server = Server::start();
    let (mut reader, writer) = std::io::pipe().unwrap();
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    let mut proxy = Logging::to(writer, &server, &["log.level=debug"]);
    let process = proxy.child.id();
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap().map(|task| task.unwrap().path());
    let worker = tasks
        .filter(|task| std::fs::read_to_string(task.join("comm")).unwrap().starts_with("worker"))
        .map(|task| task.file_name().unwrap().to_string_lossy().into_owned())
        .next()
        .expect("a worker's thread has a name");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace");
    let mut strace = Command::new("strace")
        .args(["-q", "-p", &worker, "-o"])
        .arg(&path)
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace is installed (deploy/install.sh network)");
    let trace = || std::fs::read_to_string(&path).unwrap_or_default();
    until("strace is attached", PATIENCE, || {
        proxy.serves(1);
        trace().contains("epoll")
    });
    let mut other = Client::connect(proxy.listen);
    for round in 0..50 {
        proxy.serves(10);
        assert_eq!(other.call(&format!("SET k{round} v")).text(), "OK");
        other.call("WATCH k");
        other.call("UNWATCH");
        other.call("BLPOP nothing 0.01");
        other.call(&format!("SUBSCRIBE c{round}"));
        other.call(&format!("UNSUBSCRIBE c{round}"));
    }
    let _ = Command::new("kill").args(["-INT", &strace.id().to_string()]).status();
    strace.wait().unwrap();
    let trace = trace();
    let calls = trace.lines().count();
    assert!(calls > 1000, "{calls} system calls");
    let bad: Vec<&str> = trace
        .lines()
        .filter(|line| {
            line.starts_with("write(2,")
                || line.starts_with("writev(2,")
                || is_wait_for_a_lock(line)
                || line.starts_with("open")
                || line.starts_with("fsync")
                || line.starts_with("connect(") && line.contains("AF_UNIX")
        })
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
}
