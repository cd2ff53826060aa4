//! A real redis-server of its own for one test: free port, temporary directory, DEBUG allowed.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;

use super::client::Client;
use super::namespace::Namespace;
use super::reply::Reply;
use super::{free_port, until};

/// The name of the connections the tests look at the server with; they are left out of every count.
const PROBE: &str = "probe";

/// A server program of a certain version.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) name: String,
    program: String,
}

impl Version {
    /// The one that tests use unless they say otherwise: redis-server, or what REDBOUNCER_SERVER names.
    pub(crate) fn usual() -> Self {
        let program = std::env::var("REDBOUNCER_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        Self { name: program.rsplit('/').next().unwrap().to_owned(), program }
    }

    /// All that are at hand: the usual one and those that `deploy/install.sh servers` has fetched.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::usual()];
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/servers");
        let listed =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/servers.txt"))
                .unwrap();
        let names =
            listed.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(' ').next());
        for name in names.filter(|name| !name.is_empty()) {
            let program = directory.join(name);
            if program.exists() {
                all.push(Self { name: name.to_owned(), program: program.display().to_string() });
            } else {
                println!("not at hand: {name} (deploy/install.sh servers fetches it)");
            }
        }
        all
    }

    /// Whether blocking calls can wait in a hub before it.
    pub(crate) fn has_hub(&self) -> bool {
        !self.name.contains("-6.")
    }
}

/// A running redis-server; killed when dropped.
pub(crate) struct Server {
    host: IpAddr,
    port: u16,
    /// The program that is run.
    program: String,
    /// The words that run a program where the server is to live: in another namespace, or none.
    wrapper: Vec<String>,
    options: Vec<String>,
    directory: TempDir,
    child: Option<Child>,
    probe: Mutex<Option<Client>>,
    password: Option<String>,
}

/// One line of `CLIENT LIST`.
#[derive(Clone, Debug)]
pub(crate) struct Row(BTreeMap<String, String>);

impl Row {
    pub(crate) fn parse(line: &str) -> Self {
        let pairs = line.split(' ').filter_map(|pair| pair.split_once('='));
        Self(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    /// The field's value; empty when the line has no such field.
    pub(crate) fn get(&self, field: &str) -> &str {
        self.0.get(field).map_or("", String::as_str)
    }
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with further options (`&["--maxclients", "50"]`).
    pub(crate) fn start_with(options: &[&str]) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), &[], options)
    }

    /// Starts a server on the host at the other end of a namespace's link.
    pub(crate) fn start_in(namespace: &Namespace) -> Self {
        Self::start_at(namespace.far_address(), &namespace.wrapper(), &["--protected-mode", "no"])
    }

    /// The same with further options.
    pub(crate) fn start_in_with(namespace: &Namespace, options: &[&str]) -> Self {
        let options = [&["--protected-mode", "no"], options].concat();
        Self::start_at(namespace.far_address(), &namespace.wrapper(), &options)
    }

    /// Starts a server of another version.
    pub(crate) fn start_version(version: &Version, options: &[&str]) -> Self {
        Self::start_program(&version.program, Ipv4Addr::LOCALHOST.into(), &[], options)
    }

    fn start_at(host: IpAddr, wrapper: &[String], options: &[&str]) -> Self {
        Self::start_program(&Version::usual().program, host, wrapper, options)
    }

    fn start_program(program: &str, host: IpAddr, wrapper: &[String], options: &[&str]) -> Self {
        let password =
            options.windows(2).find(|pair| pair[0] == "--requirepass").map(|pair| pair[1].to_owned());
        for _ in 0..10 {
            let mut server = Self {
                host,
                program: program.to_owned(),
                wrapper: wrapper.to_vec(),
                port: free_port(),
                options: options.iter().map(|option| (*option).to_owned()).collect(),
                directory: tempfile::Builder::new().prefix("redbouncer-it-").tempdir().unwrap(),
                child: None,
                probe: Mutex::new(None),
                password: password.clone(),
            };
            // Another test may have taken the port between the look and the start: then take another one.
            if server.spawn() {
                server.open_probe();
                return server;
            }
        }
        panic!("redis-server does not start");
    }

    /// Spawns the process and waits until it answers; false when it ended instead.
    fn spawn(&mut self) -> bool {
        let log = File::create(self.directory.path().join("log")).unwrap();
        let mut words = self.wrapper.iter().map(String::as_str).chain([self.program.as_str()]);
        let child = Command::new(words.next().unwrap())
            .args(words)
            .args(["--port", &self.port.to_string(), "--bind", &self.host.to_string(), "--save", ""])
            .args(if self.program.contains("-6.") { &[][..] } else { &["--enable-debug-command", "yes"][..] })
            .args(["--loglevel", "warning", "--tcp-backlog", "1024"])
            .arg("--dir")
            .arg(self.directory.path())
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("redis-server is installed");
        let child = self.child.insert(child);
        let address = SocketAddr::from((self.host, self.port));
        let mut alive = true;
        until("redis-server answers", Duration::from_secs(15), || {
            alive = child.try_wait().unwrap().is_none();
            !alive || answers(address)
        });
        alive
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((self.host, self.port))
    }

    pub(crate) fn url(&self) -> String {
        match &self.password {
            Some(password) => format!("redis://:{password}@{}", self.address()),
            None => format!("redis://{}", self.address()),
        }
    }

    /// What `command` is called here (`--rename-command`).
    fn renamed(&self, command: &str) -> String {
        let (name, rest) = command.split_once(' ').unwrap_or((command, ""));
        let renames =
            self.options.windows(3).find(|words| words[0] == "--rename-command" && words[1] == name);
        format!("{} {rest}", renames.map_or(name, |words| words[2].as_str())).trim_end().to_owned()
    }

    /// A client of the server itself, named as a probe, so that it is not counted.
    pub(crate) fn probe(&self) -> Client {
        let mut client = Client::connect(self.address());
        if let Some(password) = &self.password {
            client.ask(&["AUTH", password]);
        }
        let named = client.call(&self.renamed(&format!("CLIENT SETNAME {PROBE}")));
        assert_eq!(named.text(), "OK");
        client
    }

    /// Opens the control connection before anybody counts: between its accept and its name it would be counted too.
    fn open_probe(&mut self) {
        *self.probe.get_mut().unwrap() = (!self.is_loading()).then(|| self.probe());
    }

    fn is_loading(&self) -> bool {
        let mut client = Client::connect(self.address());
        client.ask(&["PING"]).text().starts_with("LOADING")
    }

    /// Runs one command over the server's own control connection.
    #[track_caller]
    pub(crate) fn call(&self, command: &str) -> Reply {
        let mut probe = self.probe.lock().unwrap();
        probe.get_or_insert_with(|| self.probe()).call(&self.renamed(command))
    }

    /// The clients of the server, the tests' own probes left out.
    pub(crate) fn rows(&self) -> Vec<Row> {
        rows_of(&self.call("CLIENT LIST"))
    }

    /// How many clients the server has, the tests' own probes left out.
    pub(crate) fn clients(&self) -> usize {
        self.rows().len()
    }

    /// One number of `INFO`.
    #[track_caller]
    pub(crate) fn info(&self, field: &str) -> String {
        let info = self.call("INFO").text();
        let found =
            info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':').map(str::to_owned));
        found.unwrap_or_else(|| panic!("INFO has no {field}"))
    }

    /// Calls of one command since the start, as `INFO commandstats` counts them.
    pub(crate) fn calls_of(&self, command: &str) -> u64 {
        let stats = self.call("INFO commandstats").text();
        let prefix = format!("cmdstat_{command}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&prefix).map(str::to_owned));
        line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }

    /// Whether the server is in the middle of something: it accepts, and does not answer for a while.
    pub(crate) fn is_busy(&self) -> bool {
        let mut client = Client::connect(self.address());
        client.start("PING");
        client.try_reply(Duration::from_millis(60)).is_err()
    }

    /// Kills the process with SIGKILL: no farewell to anybody.
    pub(crate) fn kill(&mut self) {
        self.probe.get_mut().unwrap().take();
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts the server again on the port it had.
    pub(crate) fn restart(&mut self) {
        self.kill();
        // The port may still be settling in the kernel for a moment.
        until("redis-server starts on its old port", Duration::from_secs(15), || self.spawn());
        self.open_probe();
    }

    /// Starts a server of another version on the port it had.
    pub(crate) fn restart_as(&mut self, version: &Version) {
        self.program.clone_from(&version.program);
        self.restart();
    }

    /// Sends a signal by name, for instance "STOP" and "CONT".
    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.as_ref().unwrap().id(), name);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The rows of a `CLIENT LIST` reply, the tests' own probes left out.
pub(crate) fn rows_of(list: &Reply) -> Vec<Row> {
    let text = list.text();
    let rows = text.lines().filter(|line| !line.is_empty()).map(Row::parse);
    rows.filter(|row| row.get("name") != PROBE).collect()
}

/// Sends a signal to one process.
pub(crate) fn signal(process: u32, name: &str) {
    let status = Command::new("kill").args([format!("-{name}"), process.to_string()]).status().unwrap();
    assert!(status.success(), "kill -{name} {process}");
}

/// Whether a server answers there: `+PONG`, `-NOAUTH` and `-LOADING` all say that it is up.
fn answers(address: SocketAddr) -> bool {
    let Ok(mut client) = Client::try_connect(address) else { return false };
    client.try_send(encode_ping()).is_ok() && client.try_reply(Duration::from_secs(2)).is_ok()
}

fn encode_ping() -> Vec<u8> {
    super::encode(&["PING"])
}
