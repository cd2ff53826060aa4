//! A service with Sentinels: one master, two replicas and three Sentinels, all real, in directories of their own.

use std::fmt::Write as _;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::client::Client;
use super::namespace::Namespace;
use super::secure::{Authority, Issued};
use super::server::{Row, Server, rows_of, signal};
use super::{PATIENCE, free_port, until};

/// What the Sentinels call the master.
pub(crate) const SERVICE: &str = "main";
/// How long a server is silent before it counts as down.
const DOWN_AFTER: Duration = Duration::from_secs(2);

/// How a service differs from the usual one.
#[derive(Default)]
pub(crate) struct Guarded<'a> {
    /// The password of the servers.
    pub(crate) server: Option<&'a str>,
    /// The password of the Sentinels.
    pub(crate) sentinel: Option<&'a str>,
    /// The certificate that the Sentinels show on a second port.
    pub(crate) tls: Option<(&'a Authority, &'a Issued)>,
    /// The host of the first master; the others are on ours.
    pub(crate) master: Option<&'a Namespace>,
}

/// A running Sentinel; killed when dropped.
pub(crate) struct Sentinel {
    port: u16,
    tls_port: Option<u16>,
    directory: TempDir,
    child: Option<Child>,
    password: Option<String>,
}

/// One master, two replicas, three Sentinels.
pub(crate) struct Service {
    pub(crate) servers: Vec<Server>,
    pub(crate) sentinels: Vec<Sentinel>,
}

impl Service {
    pub(crate) fn start() -> Self {
        Self::start_guarded(&Guarded::default())
    }

    /// Starts everything and waits until a failover could happen.
    pub(crate) fn start_guarded(guarded: &Guarded<'_>) -> Self {
        let mut common = vec!["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];
        if let Some(password) = guarded.server {
            common.extend(["--requirepass", password, "--masterauth", password]);
        }
        let master = match guarded.master {
            None => Server::start_with(&common),
            Some(namespace) => Server::start_in_with(namespace, &common),
        };
        let (host, port) = (master.address().ip().to_string(), master.address().port().to_string());
        let mut servers = vec![master];
        // A master on another host sees them come from another address than they listen on.
        common.extend(["--replicaof", &host, &port, "--replica-announce-ip", "127.0.0.1"]);
        servers.extend((0..2).map(|_| Server::start_with(&common)));
        until("replicas are in step", PATIENCE, || {
            servers[1..].iter().all(|server| server.info("master_link_status") == "up")
        });
        let ids: Vec<String> = (1..=3).map(|number| format!("{:040x}", 0xabc + number)).collect();
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let start = |at: usize| {
            let mut text = String::new();
            for other in (0..3).filter(|other| *other != at) {
                let _ = writeln!(
                    text,
                    "sentinel known-sentinel {SERVICE} 127.0.0.1 {} {}",
                    ports[other], ids[other]
                );
            }
            for replica in &servers[1..] {
                let _ =
                    writeln!(text, "sentinel known-replica {SERVICE} 127.0.0.1 {}", replica.address().port());
            }
            Sentinel::start(ports[at], &ids[at], servers[0].address(), guarded, &text)
        };
        let sentinels = (0..3).map(start).collect();
        let service = Self { servers, sentinels };
        until("the Sentinels know each other and both replicas", Duration::from_secs(15), || {
            service.sentinels.iter().all(|sentinel| {
                let master = sentinel.probe().ask(&["SENTINEL", "MASTER", SERVICE]);
                let field = |name: &str| {
                    let items = master.items().chunks(2).find(|pair| pair[0].text() == name);
                    items.map_or(String::new(), |pair| pair[1].text())
                };
                field("flags") == "master"
                    && field("num-slaves") == "2"
                    && field("num-other-sentinels") == "2"
            })
        });
        service
    }

    /// The URL with all three Sentinels.
    pub(crate) fn url(&self) -> String {
        let hosts: Vec<_> = self.sentinels.iter().map(|sentinel| sentinel.address().to_string()).collect();
        format!("redis-sentinel://{}/{SERVICE}", hosts.join(","))
    }

    /// Whom more than half of the Sentinels name.
    pub(crate) fn named(&self) -> Option<SocketAddr> {
        let named: Vec<_> = self.sentinels.iter().filter_map(Sentinel::names).collect();
        named.iter().copied().find(|one| named.iter().filter(|other| *other == one).count() >= 2)
    }

    /// The server at `address`.
    pub(crate) fn at(&self, address: SocketAddr) -> &Server {
        self.servers.iter().find(|server| server.address() == address).unwrap()
    }

    /// Waits until more than half of the Sentinels name another master than the first server.
    #[track_caller]
    pub(crate) fn await_failover(&self) -> &Server {
        let former = self.servers[0].address();
        let mut named = None;
        until("another master is named", Duration::from_secs(30), || {
            named = self.named().filter(|named| *named != former);
            named.is_some()
        });
        self.at(named.unwrap())
    }
}

impl Sentinel {
    /// Starts one that watches `master`, with further lines of its configuration.
    pub(crate) fn start(port: u16, id: &str, master: SocketAddr, guarded: &Guarded<'_>, lines: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("redbouncer-it-").tempdir().unwrap();
        let mut text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel myid {id}\nsentinel monitor {SERVICE} {} {} 2\n\
             sentinel announce-ip 127.0.0.1\n\
             sentinel down-after-milliseconds {SERVICE} {}\nsentinel failover-timeout {SERVICE} 6000\n{lines}",
            directory.path().display(),
            master.ip(),
            master.port(),
            DOWN_AFTER.as_millis(),
        );
        if let Some(password) = guarded.server {
            let _ = writeln!(text, "sentinel auth-pass {SERVICE} {password}");
        }
        if let Some(password) = guarded.sentinel {
            let _ = writeln!(text, "requirepass {password}");
        }
        let tls_port = guarded.tls.map(|_| free_port());
        if let (Some((authority, issued)), Some(port)) = (guarded.tls, tls_port) {
            let _ = writeln!(
                text,
                "tls-port {port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients no",
                issued.cert.display(),
                issued.key.display(),
                authority.ca().display()
            );
        }
        std::fs::write(directory.path().join("sentinel.conf"), text).unwrap();
        let password = guarded.sentinel.map(str::to_owned);
        let mut sentinel = Self { port, tls_port, directory, child: None, password };
        sentinel.spawn();
        sentinel
    }

    fn spawn(&mut self) {
        let log = File::create(self.directory.path().join("log")).unwrap();
        let child = Command::new("redis-server")
            .arg(self.directory.path().join("sentinel.conf"))
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("redis-server is installed");
        let child = self.child.insert(child);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        until("the Sentinel listens", Duration::from_secs(15), || {
            assert!(child.try_wait().unwrap().is_none(), "the Sentinel ended");
            Client::try_connect(address).is_ok()
        });
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Where it speaks TLS.
    pub(crate) fn tls_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.tls_port.unwrap()))
    }

    /// A client of it.
    pub(crate) fn probe(&self) -> Client {
        let mut client = Client::connect(self.address());
        if let Some(password) = &self.password {
            client.ask(&["AUTH", password]);
        }
        client
    }

    /// Whom it names now; `None` if it does not answer.
    pub(crate) fn names(&self) -> Option<SocketAddr> {
        self.child.as_ref()?;
        let reply = self.probe().ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]);
        let [host, port] = reply.items() else { return None };
        format!("{}:{}", host.text(), port.text()).parse().ok()
    }

    /// Its clients, the servers and Sentinels that it knows and the tests left out.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let rows = rows_of(&self.probe().ask(&["CLIENT", "LIST"]));
        rows.into_iter().filter(|row| row.get("name").starts_with("redbouncer:")).collect()
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it again on the port it had, with what it knew.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.spawn();
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.as_ref().unwrap().id(), name);
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
