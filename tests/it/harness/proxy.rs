//! The proxy under test as a process of its own: ready line, log, signals, exit code, admin port.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::client::Client;
use super::namespace::Namespace;
use super::server::{Server, signal};
use super::{PATIENCE, http, until};

/// A running redbouncer; killed when dropped.
pub(crate) struct Proxy {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    listen: SocketAddr,
    tls: Option<SocketAddr>,
    admin: Option<SocketAddr>,
}

/// How a redbouncer process ended.
#[derive(Debug)]
pub(crate) struct Exit {
    /// The exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Proxy {
    /// Starts a proxy before `server` with further `section.key=value` settings and waits until it is ready.
    pub(crate) fn start(server: &Server, settings: &[&str]) -> Self {
        Self::launch(&server.url(), settings).unwrap_or_else(|exit| panic!("the proxy ended: {exit:#?}"))
    }

    /// Starts a proxy before any upstream; an error when it ends before it is ready.
    pub(crate) fn launch(upstream: &str, settings: &[&str]) -> Result<Self, Exit> {
        let mut arguments = vec!["--upstream", upstream];
        for setting in settings {
            arguments.extend(["--set", setting]);
        }
        if !settings.iter().any(|setting| setting.starts_with("listen.address")) {
            arguments.extend(["--listen", "127.0.0.1:0"]);
        }
        Self::launch_with(&arguments, &[])
    }

    /// Starts a proxy on another host, before a server that listens on our end of the link as well.
    pub(crate) fn start_in(namespace: &Namespace, server: &Server, settings: &[&str]) -> Self {
        Self::start_in_before(namespace, namespace.near_address(), server, settings)
    }

    /// The same, where the server is known by another address or a name.
    pub(crate) fn start_in_before(
        namespace: &Namespace,
        host: impl Display,
        server: &Server,
        settings: &[&str],
    ) -> Self {
        let upstream = format!("redis://{host}:{}", server.address().port());
        let listen = format!("{}:0", namespace.far_address());
        let mut arguments = vec!["--upstream", &upstream, "--listen", &listen, "--admin", &listen];
        let open = ["auth.mode=open", "listen.protected_mode=false"];
        for setting in open.iter().chain(settings) {
            arguments.extend(["--set", setting]);
        }
        let mut command = namespace.command();
        command.arg(env!("CARGO_BIN_EXE_redbouncer"));
        Self::launch_command(prepared(command, &arguments, &[]), &arguments)
            .unwrap_or_else(|exit| panic!("the proxy ended: {exit:#?}"))
    }

    /// Starts a proxy by a program that runs it (the last argument of `command`), before `server`.
    pub(crate) fn start_by(command: Command, server: &Server, settings: &[&str]) -> Self {
        let url = server.url();
        let mut arguments = vec!["--upstream", &url, "--listen", "127.0.0.1:0"];
        for setting in settings {
            arguments.extend(["--set", setting]);
        }
        Self::launch_command(prepared(command, &arguments, &[]), &arguments)
            .unwrap_or_else(|exit| panic!("the proxy ended: {exit:#?}"))
    }

    /// Starts a proxy with at most two sockets passed on as a service manager does (`sd_listen_fds(3)`): an error when it ends.
    pub(crate) fn start_with_sockets(
        sockets: Vec<OwnedFd>,
        server: &Server,
        settings: &[&str],
    ) -> Result<Self, Exit> {
        // A child gets them as its standard input and output, and the shell moves them to where they belong.
        let script = "export LISTEN_PID=$$; exec \"$0\" \"$@\" 3<&0 4<&1 </dev/null >/dev/null";
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_redbouncer")]);
        let url = server.url();
        let mut arguments = vec!["--upstream", &url];
        for setting in settings {
            arguments.extend(["--set", setting]);
        }
        let count = sockets.len().to_string();
        let mut command = prepared(command, &arguments, &[("LISTEN_FDS", &count)]);
        let mut sockets = sockets.into_iter();
        command.stdin(sockets.next().map_or_else(Stdio::null, Stdio::from));
        command.stdout(sockets.next().map_or_else(Stdio::null, Stdio::from));
        assert!(sockets.next().is_none(), "two at most");
        Self::launch_command(command, &arguments)
    }

    /// Starts a proxy that can be replaced by way of the socket `takeover`, and replaces the one that is there, if any.
    pub(crate) fn take_over(takeover: &Path, upstream: &str, settings: &[&str]) -> Result<Self, Exit> {
        let socket = format!("takeover.socket={}", takeover.display());
        let mut arguments = vec!["run", "--takeover", "--upstream", upstream, "--set", &socket];
        for setting in settings {
            arguments.extend(["--set", setting]);
        }
        if !settings.iter().any(|setting| setting.starts_with("listen.address")) {
            arguments.extend(["--listen", "127.0.0.1:0"]);
        }
        Self::launch_with(&arguments, &[])
    }

    /// Starts `redbouncer` with exactly these arguments (and the admin port and log format the harness needs).
    pub(crate) fn launch_with(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self, Exit> {
        Self::launch_command(program(arguments, environment), arguments)
    }

    fn launch_command(mut command: Command, arguments: &[&str]) -> Result<Self, Exit> {
        let start = Instant::now();
        if !arguments.contains(&"--admin") {
            command.args(["--admin", "127.0.0.1:0"]);
        }
        let mut child = command.args(["--set", "log.format=json"]).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let lines = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let mut ready = None;
        let mut ended = None;
        until("the proxy is ready or ends", Duration::from_secs(30), || {
            ready = log.lock().unwrap().iter().find_map(|line| ready_line(line));
            ended = child.try_wait().unwrap();
            ready.is_some() || ended.is_some()
        });
        if let Some(status) = ended {
            reader.join().unwrap();
            let stderr = log.lock().unwrap().join("\n");
            return Err(Exit { code: status.code(), stderr, took: start.elapsed() });
        }
        let (listen, tls, admin) = ready.unwrap();
        Ok(Self { child, log, reader: Some(reader), listen, tls, admin })
    }

    /// Runs `redbouncer` with these arguments to its end.
    pub(crate) fn run_to_end(arguments: &[&str], environment: &[(&str, &str)]) -> (Exit, String) {
        let start = Instant::now();
        let mut child = program(arguments, environment).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        // A long answer fills the pipe: it is read while the command runs.
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).map(|_| text).unwrap()
        });
        until("the command ends", Duration::from_secs(15), || {
            let ended = child.try_wait().unwrap().is_some();
            // A program that should have ended must not stay behind when the wait below gives up.
            if start.elapsed() > Duration::from_secs(14) {
                let _ = child.kill();
            }
            ended
        });
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (Exit { code: output.status.code(), stderr, took: start.elapsed() }, reader.join().unwrap())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Where it speaks TLS.
    pub(crate) fn tls(&self) -> SocketAddr {
        self.tls.expect("the ready line names a TLS address")
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin.expect("the ready line names the admin address")
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.listen)
    }

    /// Every line of the log up to now.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// GET on the admin port: status and body.
    #[track_caller]
    pub(crate) fn http(&self, path: &str) -> (u16, String) {
        http::get(self.admin(), path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// GET on the admin port, for a time when it may already be gone.
    pub(crate) fn try_http(&self, path: &str) -> Option<(u16, String)> {
        http::get(self.admin(), path).ok()
    }

    /// Every series of `/metrics`, by its full text (`name{labels}`).
    #[track_caller]
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let (status, body) = self.http("/metrics");
        assert_eq!(status, 200, "{body}");
        let lines = body.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        let series = lines.map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line:?}"));
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("not a number: {line:?}")))
        });
        series.collect()
    }

    /// The series of `/metrics` that something has been counted in: those with closed labels are there from the start, at 0.
    #[track_caller]
    pub(crate) fn counted(&self) -> BTreeMap<String, f64> {
        let mut series = self.metrics();
        series.retain(|_, value| *value > 0.0);
        series
    }

    /// `/status` as JSON.
    #[track_caller]
    pub(crate) fn status(&self) -> Json {
        let (status, body) = self.http("/status");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("/status: {error}: {body}"))
    }

    /// Bytes of memory the process holds at the moment (resident set).
    pub(crate) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most that it has held at any moment.
    pub(crate) fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Bytes of memory that it has asked for, used or not.
    pub(crate) fn reserved(&self) -> u64 {
        self.memory("VmData:")
    }

    fn memory(&self, field: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Open file descriptors of the process.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// The process's id.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that the process has used, in the kernel's hundredths of a second.
    pub(crate) fn cpu(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Behind the name in brackets the state is the third field; utime and stime are the 14th and 15th.
        let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(10 * ticks)
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Sends a signal to a process that may just have ended.
    pub(crate) fn signal_if_running(&mut self, name: &str) {
        if self.is_running() {
            // It may end between the look and the signal, but its id is its own until it has been waited for.
            let _ = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status();
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until the process has ended by itself.
    #[track_caller]
    pub(crate) fn wait(mut self, within: Duration) -> Exit {
        let start = Instant::now();
        until("the proxy ends", within, || !self.is_running());
        let code = self.child.wait().unwrap().code();
        self.reader.take().unwrap().join().unwrap();
        Exit { code, stderr: self.log(), took: start.elapsed() }
    }

    /// SIGTERM, then the end.
    #[track_caller]
    pub(crate) fn stop(self) -> Exit {
        self.signal("TERM");
        self.wait(Duration::from_secs(15))
    }

    /// SIGKILL: no drain, no farewell.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        until("the killed proxy ends", PATIENCE, || !self.is_running());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let tail: Vec<&str> = log.iter().rev().take(40).rev().map(String::as_str).collect();
            eprintln!("--- the proxy's last lines ---\n{}", tail.join("\n"));
        }
    }
}

fn program(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    prepared(Command::new(env!("CARGO_BIN_EXE_redbouncer")), arguments, environment)
}

fn prepared(mut command: Command, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    // What the developer's own shell sets must not reach the program under test.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("REDBOUNCER_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The addresses of the `ready` line: clients' (the TLS one where there is no other), those with TLS, admin's.
fn ready_line(line: &str) -> Option<(SocketAddr, Option<SocketAddr>, Option<SocketAddr>)> {
    let json: Json = serde_json::from_str(line).ok()?;
    let fields = json.get("fields").unwrap_or(&json);
    (fields.get("message")? == "ready").then_some(())?;
    let address = |name| fields.get(name).and_then(address_in);
    let tls = address("listen_tls");
    Some((address("listen").or(tls)?, tls, address("admin")))
}

/// The first `host:port` in a field, whether it is written as text, as a list or in Rust's debug form.
fn address_in(field: &Json) -> Option<SocketAddr> {
    let text = field.to_string();
    text.split(|symbol: char| !(symbol.is_ascii_alphanumeric() || ".:".contains(symbol)))
        .find_map(|word| word.parse().ok())
}
