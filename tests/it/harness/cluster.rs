//! A cluster: masters and their replicas, all real, in directories of their own.

use std::net::SocketAddr;
use std::time::Duration;

use super::client::Client;
use super::reply::Reply;
use super::secure::{Authority, VALID};
use super::server::{Server, Version, rows_of};
use super::{PATIENCE, free_port, until};

/// How long a node is silent before the others take it for lost.
const NODE_TIMEOUT: &str = "2000";
/// How many slots a cluster has.
const SLOTS: u16 = 16_384;

/// Some masters, and as many replicas or none. Killed when dropped.
pub(crate) struct Cluster {
    pub(crate) masters: Vec<Server>,
    pub(crate) replicas: Vec<Server>,
}

impl Cluster {
    /// Three masters without replicas.
    pub(crate) fn start() -> Self {
        Self::start_with(3, false)
    }

    /// So many masters, each with a replica if `replicated`.
    pub(crate) fn start_with(masters: u16, replicated: bool) -> Self {
        Self::start_version(&Version::usual(), masters, replicated)
    }

    /// The same of another server.
    pub(crate) fn start_version(version: &Version, masters: u16, replicated: bool) -> Self {
        Self::start_by(masters, replicated, |options| Server::start_version(version, options))
    }

    /// Three masters that speak TLS with each other and with clients, on further ports. Returns the URL with these.
    pub(crate) fn start_with_tls(authority: &Authority) -> (Self, String) {
        let own = authority.issue("node", &["127.0.0.1"], VALID);
        let [cert, key, ca] = [&own.cert, &own.key, &authority.ca()].map(|path| path.display().to_string());
        let ports = std::cell::RefCell::new(Vec::new());
        let cluster = Self::start_by(3, false, |options| {
            let port = free_port();
            ports.borrow_mut().push(format!("127.0.0.1:{port}"));
            let port = port.to_string();
            let tls = [
                "--tls-port",
                &port,
                "--tls-cluster",
                "yes",
                "--tls-auth-clients",
                "no",
                "--tls-cert-file",
                &cert,
            ];
            let files = ["--tls-key-file", &key, "--tls-ca-cert-file", &ca];
            Server::start_with(&[options, &tls, &files].concat())
        });
        let url = format!("rediss-cluster://{}", ports.take().join(","));
        (cluster, url)
    }

    fn start_by(masters: u16, replicated: bool, start: impl Fn(&[&str]) -> Server) -> Self {
        let server = || {
            let bus = free_port().to_string();
            let options = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus,
                "--cluster-node-timeout",
                NODE_TIMEOUT,
                "--repl-diskless-sync-delay",
                "0",
            ];
            start(&options)
        };
        let masters: Vec<_> = (0..masters).map(|_| server()).collect();
        let replicas: Vec<_> =
            if replicated { masters.iter().map(|_| server()).collect() } else { Vec::new() };
        let cluster = Self { masters, replicas };
        cluster.join();
        cluster
    }

    fn join(&self) {
        let count = u16::try_from(self.masters.len()).unwrap();
        for (at, master) in (0..count).zip(&self.masters) {
            let (first, last) =
                (SLOTS / count * at, if at + 1 == count { SLOTS - 1 } else { SLOTS / count * (at + 1) - 1 });
            // The nodes agree on an order sooner if none has to find its epoch.
            assert_eq!(master.call(&format!("CLUSTER SET-CONFIG-EPOCH {}", at + 1)).text(), "OK");
            assert_eq!(master.call(&format!("CLUSTER ADDSLOTSRANGE {first} {last}")).text(), "OK");
        }
        let first = self.masters[0].address();
        let bus = self.masters[0].call("CONFIG GET cluster-port").items()[1].text();
        for node in self.nodes().skip(1) {
            assert_eq!(
                node.call(&format!("CLUSTER MEET {} {} {bus}", first.ip(), first.port())).text(),
                "OK"
            );
        }
        let all = self.nodes().count();
        until("all nodes know each other", Duration::from_secs(20), || {
            self.nodes().all(|node| {
                node.call("CLUSTER INFO").text().contains(&format!("cluster_known_nodes:{all}\r"))
            })
        });
        for (master, replica) in self.masters.iter().zip(&self.replicas) {
            let id = master.call("CLUSTER MYID").text();
            until("a replica knows its master", PATIENCE, || {
                replica.call(&format!("CLUSTER REPLICATE {id}")).text() == "OK"
            });
        }
        until("the cluster serves all slots", Duration::from_secs(20), || {
            self.nodes().all(|node| node.call("CLUSTER INFO").text().contains("cluster_state:ok"))
                && self.replicas.iter().all(|replica| replica.info("master_link_status") == "up")
        });
    }

    fn nodes(&self) -> impl Iterator<Item = &Server> {
        self.masters.iter().chain(&self.replicas)
    }

    /// The URL with all masters.
    pub(crate) fn url(&self) -> String {
        let nodes: Vec<_> = self.masters.iter().map(|node| node.address().to_string()).collect();
        format!("redis-cluster://{}", nodes.join(","))
    }

    /// The place of the master that owns `slot` by the word of the first that answers.
    pub(crate) fn owner(&self, slot: u16) -> SocketAddr {
        let rows = self
            .nodes()
            .find_map(|node| Client::try_connect(node.address()).ok())
            .unwrap()
            .ask(&["CLUSTER", "SLOTS"]);
        let row = rows.items().iter().find(|row| {
            let [first, last] = [0, 1].map(|at| row.items()[at].text().parse::<u16>().unwrap());
            (first..=last).contains(&slot)
        });
        let node = row.unwrap().items()[2].items().to_vec();
        format!("{}:{}", node[0].text(), node[1].text()).parse().unwrap()
    }

    /// The master at `address`.
    pub(crate) fn at(&self, address: SocketAddr) -> &Server {
        self.nodes().find(|node| node.address() == address).unwrap()
    }

    /// Moves `slot` with its keys to the master with number `to`, as `redis-cli --cluster reshard` does. Between the two halves of
    /// the move `between` is called.
    pub(crate) fn move_slot(&self, slot: u16, to: usize, between: impl FnOnce()) {
        let (from, to) = (self.at(self.owner(slot)), &self.masters[to]);
        if from.address() == to.address() {
            return;
        }
        let ids = [from, to].map(|node| node.call("CLUSTER MYID").text());
        ok(&to.call(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", ids[0])));
        ok(&from.call(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", ids[1])));
        between();
        loop {
            let keys = from.call(&format!("CLUSTER GETKEYSINSLOT {slot} 100"));
            let keys: Vec<_> = keys.items().iter().map(|key| key.text()).collect();
            if keys.is_empty() {
                break;
            }
            let (host, port) = (to.address().ip(), to.address().port());
            // The word between the two blanks is empty: the keys come behind KEYS.
            ok(&from.call(&format!("MIGRATE {host} {port}  0 5000 KEYS {}", keys.join(" "))));
        }
        // The new owner first: until the others know, it answers.
        for node in [to, from].into_iter().chain(&self.masters) {
            ok(&node.call(&format!("CLUSTER SETSLOT {slot} NODE {}", ids[1])));
        }
    }

    /// Connections of the proxy on each master, by its own list.
    pub(crate) fn connections(&self) -> Vec<usize> {
        let ours = |node: &Server| {
            let rows = rows_of(&node.call("CLIENT LIST"));
            rows.iter().filter(|row| row.get("name").starts_with("redbouncer:")).count()
        };
        self.masters.iter().map(ours).collect()
    }
}

#[track_caller]
fn ok(reply: &Reply) {
    assert!(["OK", "NOKEY"].contains(&reply.text().as_str()), "{reply:?}");
}
