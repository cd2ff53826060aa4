//! Servers and users that lack something: each thing taken away alone, all of it at once, and as providers do it.
//!
//! A user's ACL says NOPERM; a command that was renamed away is unknown to the server, as it is at a provider. Whatever
//! is lacking, the main job goes on, and one line says what and what follows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::harness::{Client, PATIENCE, Proxy, Server, Value, Version, free_port, until};

/// The subcommands of CLIENT that every version has; an ACL can only name these one by one before Redis 7.
const OF_CLIENT: [&str; 13] = [
    "caching",
    "getname",
    "getredir",
    "id",
    "info",
    "kill",
    "list",
    "pause",
    "reply",
    "setname",
    "tracking",
    "trackinginfo",
    "unblock",
];

/// ACL rules that allow everything but `banned`: `select`, or `client|list`.
fn rules_without(banned: &[&str]) -> String {
    let mut rules = vec!["+@all".to_owned()];
    let of_client: Vec<&str> = banned.iter().filter_map(|name| name.strip_prefix("client|")).collect();
    if !of_client.is_empty() {
        rules.push("-client".to_owned());
        let left = OF_CLIENT.iter().filter(|name| !of_client.contains(name));
        rules.extend(left.map(|name| format!("+client|{name}")));
    }
    rules.extend(banned.iter().filter(|name| !name.contains('|')).map(|name| format!("-{name}")));
    rules.join(" ")
}

/// A user of the server who may do everything but `banned`, and a proxy that is this user.
fn proxy_without(server: &Server, banned: &[&str], settings: &[&str]) -> Proxy {
    let rules = rules_without(banned);
    let made = server.call(&format!("ACL SETUSER narrow reset on >sesame ~* &* {rules}"));
    assert_eq!(made.text(), "OK", "{rules}");
    let url = format!("redis://narrow:sesame@{}", server.address());
    Proxy::launch(&url, settings).unwrap_or_else(|exit| panic!("the proxy ended: {exit:#?}"))
}

/// What the log says is lacking, sorted.
fn told(proxy: &Proxy) -> Vec<String> {
    let log = proxy.log();
    let lines = log.lines().filter(|line| line.contains("unavailable: "));
    let lacks = lines.map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let fields = line.get("fields").unwrap_or(&line);
        fields["lacks"].as_str().unwrap().to_owned()
    });
    let mut lacks: Vec<String> = lacks.collect();
    lacks.sort();
    lacks
}

/// How many of redbouncer's clients wait in a blocking call.
fn blocked(proxy: &Proxy) -> usize {
    let status = proxy.status();
    let clients = status["clients"].as_array().unwrap();
    clients.iter().filter(|client| client["place"].as_str().unwrap().contains("blocking")).count()
}

/// Everything that an application does, through a proxy that lacks `banned`.
struct Job<'a> {
    proxy: &'a Proxy,
    server: &'a Server,
    banned: &'a [&'a str],
    /// For the messages of failures.
    called: String,
}

impl Job<'_> {
    fn may(&self, name: &str) -> bool {
        let container = name.split('|').next().unwrap();
        !self.banned.contains(&name) && !self.banned.contains(&container)
    }

    fn connect(&self, protocol: u8) -> Client {
        let mut client = self.proxy.connect();
        if protocol == 3 {
            assert!(!client.call("HELLO 3").is_error(), "{}", self.called);
        }
        client
    }

    fn run(&self) {
        self.server.call("FLUSHALL");
        for protocol in if self.may("hello") { &[2, 3][..] } else { &[2] } {
            self.plain_commands_and_databases(*protocol);
            self.transactions(*protocol);
            self.blocking_calls(*protocol);
            self.messages(*protocol);
            self.clients(*protocol);
        }
        self.workers();
        assert!(self.server.clients() <= 8, "{}", self.called);
    }

    fn plain_commands_and_databases(&self, protocol: u8) {
        let called = &self.called;
        let mut client = self.connect(protocol);
        assert_eq!(client.call("SET plain 1").text(), "OK", "{called}");
        let replies = client.pipeline(&["INCR plain", "GET plain", "DEL plain", "SET home zero"]);
        assert_eq!((replies[0].int(), replies[1].text()), (2, "2".to_owned()), "{called}");
        assert_eq!(client.call("PING").is_error(), !self.may("ping"), "{called}");
        // In no table: the server is asked what it is, or it takes a lease.
        assert!(client.call("NOSUCHTHING x").error().contains("unknown command"), "{called}");
        let selected = client.call("SELECT 3");
        assert_eq!(selected.is_error(), !self.may("select"), "{called}: {selected:?}");
        if self.may("select") {
            assert!(client.call("GET home").is_nil(), "{called}");
            assert_eq!(client.call("SELECT 0").text(), "OK", "{called}");
        } else {
            assert!(client.call("SELECT 3").is_error(), "{called}: the second time too");
        }
        assert_eq!(client.call("GET home").text(), "zero", "{called}: the database it began in");
        assert_eq!(client.call("RESET").text(), "RESET", "{called}");
        assert_eq!(client.call("CLIENT SETINFO LIB-NAME x").text(), "OK", "{called}");
    }

    fn transactions(&self, protocol: u8) {
        let called = &self.called;
        let mut client = self.connect(protocol);
        let mut bystander = self.connect(protocol);
        bystander.call("SET other y");
        let whole = client.pipeline(&["MULTI", "INCR t", "EXEC"]);
        if self.may("multi") && self.may("exec") {
            assert_eq!(whole[2].items().len(), 1, "{called}");
            assert_eq!(client.call("WATCH t").text(), "OK", "{called}");
            assert_eq!(client.call("MULTI").text(), "OK", "{called}");
            assert_eq!(client.call("INCR t").text(), "QUEUED", "{called}");
            assert_eq!(client.call("EXEC").items().len(), 1, "{called}");
        } else {
            assert!(whole[2].is_error(), "{called}: {whole:?}");
        }
        // Nobody else is ever inside that transaction.
        for _ in 0..5 {
            assert_eq!(bystander.call("GET other").text(), "y", "{called}");
        }
    }

    fn blocking_calls(&self, protocol: u8) {
        let called = &self.called;
        let calls = [
            ("BLPOP l 0", "RPUSH l x"),
            ("BRPOPLPUSH r d 0", "RPUSH r x"),
            ("BZPOPMIN z 0", "ZADD z 1 x"),
            ("XREAD BLOCK 0 STREAMS s $", "XADD s 1-1 f x"),
        ];
        self.server.call("DEL s");
        let mut waiting: Vec<Client> = calls.iter().map(|_| self.connect(protocol)).collect();
        for (client, (call, _)) in waiting.iter_mut().zip(calls) {
            client.start(call);
        }
        until(&format!("{called}: all are blocked"), PATIENCE, || blocked(self.proxy) == calls.len());
        let mut pusher = self.connect(protocol);
        // One at a time, so that each is told by its own.
        for (client, (call, push)) in waiting.iter_mut().zip(calls) {
            client.expect_silence(Duration::ZERO);
            assert!(!pusher.call(push).is_error(), "{called}: {push}");
            let reply = client.reply();
            assert!(!reply.is_error() && !reply.is_nil(), "{called}: {call}: {reply:?}");
        }
        assert!(pusher.call("BLPOP never 0.2").is_nil(), "{called}");
    }

    fn messages(&self, protocol: u8) {
        let called = &self.called;
        let mut listener = self.connect(protocol);
        assert!(!listener.call("SUBSCRIBE news").is_error(), "{called}");
        let heard = if self.may("publish") {
            self.connect(protocol).call("PUBLISH news hello").int()
        } else {
            self.server.call("PUBLISH news hello").int()
        };
        assert_eq!(heard, 1, "{called}");
        assert_eq!(listener.reply().items()[2].text(), "hello", "{called}");
    }

    fn clients(&self, protocol: u8) {
        let called = &self.called;
        let mut client = self.connect(protocol);
        let mut other = self.connect(protocol);
        assert_eq!(client.call("CLIENT SETNAME me").text(), "OK", "{called}");
        assert_eq!(client.call("CLIENT GETNAME").text(), "me", "{called}");
        let list = client.call("CLIENT LIST");
        if list.is_error() {
            assert!(list.error().starts_with("NOPERM") && !self.may("client|list"), "{called}: {list:?}");
        } else {
            let rows = list.text();
            assert!(rows.contains(" name=me "), "{called}: {rows}");
            let own = rows.lines().filter(|row| row.starts_with("id=1099511")).count();
            let rest = rows.lines().count() - own;
            // The tests' own probe is the only client beside ours; our upstream connections are nobody's business.
            assert!(rest <= 1, "{called}: {rows}");
        }
        let id = other.call("CLIENT ID").int();
        let killed = client.call(&format!("CLIENT KILL ID {id}"));
        if killed.is_error() {
            assert!(killed.error().starts_with("NOPERM") && !self.may("client|kill"), "{called}: {killed:?}");
        } else {
            assert_eq!(killed.int(), 1, "{called}");
            other.expect_end(PATIENCE);
            assert_eq!(client.call(&format!("CLIENT KILL ID {id}")).int(), 0, "{called}: it is gone");
        }
        if !self.may("client") && !killed.is_error() {
            assert_eq!(client.call("CLIENT KILL ID 1").int(), 0, "{called}: nobody of ours");
        }
        // Everybody of this user but the caller: not our own upstream connections, whatever they are called there.
        let before: Vec<String> = self.server.rows().iter().map(|row| row.get("id").to_owned()).collect();
        client.call("CLIENT KILL USER narrow");
        let after: Vec<String> = self.server.rows().iter().map(|row| row.get("id").to_owned()).collect();
        assert!(before.iter().all(|id| after.contains(id)), "{called}: {before:?} {after:?}");
        assert_eq!(client.call("GET home").text(), "zero", "{called}");
    }

    /// As BullMQ has it: scripts add jobs and events, workers wait on a marker, a listener reads the stream.
    fn workers(&self) {
        const JOBS: usize = 30;
        let called = &self.called;
        let mut events = self.connect(2);
        events.start("XREAD BLOCK 10000 STREAMS events $");
        until(&format!("{called}: the listener waits"), PATIENCE, || blocked(self.proxy) == 1);
        let done = Arc::new(AtomicUsize::new(0));
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (mut client, done) = (self.connect(2), Arc::clone(&done));
                std::thread::spawn(move || {
                    while done.load(Ordering::SeqCst) < JOBS {
                        if !client.call("BZPOPMIN marker 0.3").is_nil() {
                            done.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                })
            })
            .collect();
        let mut producer = self.connect(2);
        for job in 0..JOBS {
            let script = "redis.call('ZADD', KEYS[1], ARGV[1], ARGV[1]) \
                          return redis.call('XADD', KEYS[2], '*', 'job', ARGV[1])";
            let added = producer.ask(&["EVAL", script, "2", "marker", "events", &job.to_string()]);
            assert!(!added.is_error(), "{called}: {added:?}");
        }
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!(done.load(Ordering::SeqCst), JOBS, "{called}");
        assert!(!events.reply().is_error(), "{called}");
    }
}

/// Runs the main job before every server at hand as a user without each of `bans`, and compares what is told.
fn taken_away(bans: &[(&[&str], &[&str])]) {
    for version in Version::all() {
        let server = Server::start_version(&version, &[]);
        for (banned, lacks) in bans {
            let proxy = proxy_without(&server, banned, &[]);
            let called = format!("{} without {banned:?}", version.name);
            Job { proxy: &proxy, server: &server, banned, called: called.clone() }.run();
            // Before Redis 7 there is no hub, so nothing that only the hub asks for.
            let expected: Vec<&str> = lacks
                .iter()
                .copied()
                .filter(|what| version.has_hub() || *what != "CLIENT TRACKING")
                .collect();
            assert_eq!(told(&proxy), expected, "{called}: {}", proxy.log());
            assert_eq!(proxy.stop().code, Some(0), "{called}");
        }
    }
}

#[test]
fn a_user_who_may_do_everything_lacks_nothing() {
    taken_away(&[(&[], &[])]);
}

#[test]
fn what_a_user_may_not_do_about_clients_is_done_without() {
    taken_away(&[
        (&["client|setname"], &["CLIENT SETNAME"]),
        (&["client|id"], &[]),
        (&["client|list"], &[]),
        (&["client|kill"], &[]),
        (&["client|unblock"], &[]),
        (&["client|tracking"], &["CLIENT TRACKING"]),
        (&["client"], &["CLIENT SETNAME", "CLIENT TRACKING"]),
    ]);
}

#[test]
fn what_a_user_may_not_ask_is_done_without() {
    taken_away(&[
        (&["config"], &["CONFIG GET"]),
        (&["command"], &["COMMAND INFO"]),
        (&["info"], &["INFO"]),
        (&["ping"], &["PING"]),
        (&["select"], &["SELECT"]),
    ]);
}

#[test]
fn a_user_without_transactions_blocks_on_leases() {
    taken_away(&[(&["multi"], &["MULTI and EXEC"]), (&["exec"], &["MULTI and EXEC"])]);
}

#[test]
fn a_user_with_none_of_the_optional_rights_does_the_main_job() {
    let all = ["client", "config", "command", "info", "ping", "select", "multi", "exec", "publish", "reset"];
    let lacks = [
        "CLIENT SETNAME",
        "CLIENT TRACKING",
        "COMMAND INFO",
        "CONFIG GET",
        "INFO",
        "MULTI and EXEC",
        "PING",
        "SELECT",
    ];
    taken_away(&[(&all, &lacks)]);
}

/// A server that does not know some commands (`--rename-command`).
fn without_commands(version: &Version, gone: &[&str], options: &[&str]) -> Server {
    let renames: Vec<String> = gone
        .iter()
        .flat_map(|name| {
            let name = name.to_uppercase();
            ["--rename-command".to_owned(), name.clone(), format!("HIDDEN-{name}")]
        })
        .collect();
    let options: Vec<&str> = renames.iter().map(String::as_str).chain(options.iter().copied()).collect();
    Server::start_version(version, &options)
}

/// Runs the main job before every server at hand that does not know some commands at all.
fn renamed_away(cases: &[(&[&str], &[&str])]) {
    for version in Version::all() {
        for (banned, lacks) in cases {
            let server = without_commands(&version, banned, &[]);
            let proxy = proxy_without(&server, &[], &[]);
            let called = format!("{} that does not know {banned:?}", version.name);
            Job { proxy: &proxy, server: &server, banned, called: called.clone() }.run();
            let expected: Vec<&str> = lacks
                .iter()
                .copied()
                .filter(|what| version.has_hub() || *what != "CLIENT TRACKING")
                .collect();
            assert_eq!(told(&proxy), expected, "{called}: {}", proxy.log());
            assert_eq!(proxy.stop().code, Some(0), "{called}");
        }
    }
}

#[test]
fn commands_that_a_server_does_not_know_are_done_without() {
    renamed_away(&[
        (&["client"], &["CLIENT SETNAME", "CLIENT TRACKING"]),
        (&["config", "command", "info", "reset"], &["COMMAND INFO", "CONFIG GET", "INFO"]),
        (&["select"], &["SELECT"]),
        (&["ping"], &["PING"]),
    ]);
}

#[test]
fn a_server_without_hello_serves_resp2() {
    renamed_away(&[
        (&["hello"], &["HELLO 3"]),
        (&["hello", "client", "info"], &["CLIENT ID", "CLIENT SETNAME", "HELLO 3", "INFO"]),
    ]);
}

/// Nobody is ever inside a transaction that another could not end.
#[test]
fn a_server_without_transactions_serves_everything_else() {
    renamed_away(&[(&["multi"], &["MULTI and EXEC"]), (&["exec"], &["MULTI and EXEC"])]);
}

/// What a user may not do is not taken from the others, and the server is not asked for it again and again.
#[test]
fn what_one_user_lacks_another_still_has() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    server.call("ACL SETUSER poor on >secret ~* &* +@all -select -client -multi -command");
    server.call("ACL SETUSER rich on >secret ~* &* +@all");
    let proxy = Proxy::start(&server, &[]);
    let (mut poor, mut rich) = (proxy.connect(), proxy.connect());
    assert_eq!(poor.call("AUTH poor secret").text(), "OK");
    assert_eq!(rich.call("AUTH rich secret").text(), "OK");
    for _ in 0..3 {
        assert!(poor.call("SELECT 2").error().starts_with("NOPERM"));
        assert_eq!(rich.call("SELECT 2").text(), "OK");
        assert!(poor.call("NOSUCHTHING").is_error() && rich.call("NOSUCHTHING").is_error());
    }
    for (client, hub) in [(&mut poor, false), (&mut rich, true)] {
        client.start("BLPOP q 0");
        until("it waits", PATIENCE, || blocked(&proxy) == 1);
        until("with a hub for who may have one", PATIENCE, || {
            server.rows().iter().any(|row| row.get("name").ends_with(":blocking")) == hub
        });
        server.call(if hub { "SELECT 2" } else { "SELECT 0" });
        server.call("RPUSH q x");
        assert_eq!(client.reply().items()[1].text(), "x");
    }
    assert_eq!(
        told(&proxy),
        ["CLIENT SETNAME", "CLIENT TRACKING", "COMMAND INFO", "MULTI and EXEC", "SELECT"]
    );
    let refusals = server.call("ACL LOG");
    // Each entry begins with how often it was refused.
    let of = |what: &str| -> Vec<&Value> {
        let fields = refusals.items().iter().filter_map(|entry| match entry {
            Value::List(fields) => Some(fields),
            _ => None,
        });
        fields.filter(|fields| fields.contains(&Value::Bulk(what.into()))).map(|fields| &fields[1]).collect()
    };
    assert_eq!(
        (of("select"), of("command|info")),
        (vec![&Value::Int(1)], vec![&Value::Int(1)]),
        "{refusals:?}"
    );
}

/// Nobody kills our connections by mistake where they cannot be told from others at all.
#[test]
fn connections_without_name_and_id_are_left_alone() {
    let version = Version::usual();
    let server = without_commands(&version, &["hello"], &[]);
    let proxy = proxy_without(&server, &["client|setname", "client|id"], &[]);
    let (mut client, mut other) = (proxy.connect(), proxy.connect());
    client.call("SET k v");
    other.call("GET k");
    let ids = || -> Vec<String> { server.rows().iter().map(|row| row.get("id").to_owned()).collect() };
    let before = ids();
    assert!(!before.is_empty());
    assert_eq!(client.call("CLIENT KILL USER narrow").int(), 1, "the other client of redbouncer");
    other.expect_end(PATIENCE);
    let refusal = client.call("CLIENT KILL USER narrow");
    assert!(refusal.error().starts_with("ERR redbouncer: the server reports neither"), "{refusal:?}");
    assert_eq!(client.call("GET k").text(), "v");
    let after = ids();
    assert!(before.iter().all(|id| after.contains(id)), "{before:?} {after:?}");
}

/// A heartbeat that is refused shows that we live as well as one that is answered.
#[test]
fn refused_heartbeats_close_nothing() {
    let server = Server::start();
    let proxy = proxy_without(&server, &["ping"], &["hygiene.heartbeat=1s"]);
    let (mut listener, mut waiter, mut client) = (proxy.connect(), proxy.connect(), proxy.connect());
    listener.call("SUBSCRIBE news");
    waiter.start("BLPOP q 0");
    client.call("SET k v");
    until("it waits", PATIENCE, || blocked(&proxy) == 1);
    let ids = |server: &Server| -> Vec<String> {
        let rows = server.rows();
        let steady = rows.iter().filter(|row| !row.get("name").ends_with(":control"));
        let mut ids: Vec<String> = steady.map(|row| row.get("id").to_owned()).collect();
        ids.sort();
        ids
    };
    let before = ids(&server);
    assert_eq!(before.len(), 3, "a lane and two hubs");
    let refused = || server.info("total_error_replies").parse::<u64>().unwrap();
    let start = refused();
    until("some heartbeats were refused", PATIENCE, || refused() >= start + 6);
    assert_eq!(ids(&server), before);
    client.call("PUBLISH news x");
    assert_eq!(listener.reply().items()[2].text(), "x");
    client.call("RPUSH q x");
    assert_eq!(waiter.reply().items()[1].text(), "x");
}

#[test]
fn a_user_without_the_channel_before_wait_is_told() {
    let server = Server::start();
    let made = server.call("ACL SETUSER narrow on >sesame ~* resetchannels &news +@all");
    assert_eq!(made.text(), "OK");
    let url = format!("redis://narrow:sesame@{}", server.address());
    let proxy = Proxy::launch(&url, &[]).unwrap();
    let mut client = proxy.connect();
    for _ in 0..2 {
        assert!(client.call("WAIT 0 0").error().contains("WAIT needs PUBLISH"));
    }
    // The log may be written a moment after the reply.
    until("it is told", PATIENCE, || !told(&proxy).is_empty());
    assert_eq!(told(&proxy), ["PUBLISH redbouncer:wait"]);
}

#[test]
fn a_node_of_a_cluster_is_named_once() {
    for version in Version::all() {
        let server = Server::start_version(&version, &["--cluster-enabled", "yes"]);
        let proxy = Proxy::start(&server, &[]);
        for _ in 0..2 {
            assert!(proxy.connect().call("GET foo").error().starts_with("CLUSTERDOWN"), "{}", version.name);
        }
        assert_eq!(told(&proxy), ["all keys on one node"], "{}", version.name);
    }
}

/// Behind an endpoint that does not call itself a cluster, the first redirection gives it away.
#[test]
fn a_redirection_is_passed_on_and_told_once() {
    let cluster = ["--cluster-enabled", "yes"];
    let server = without_commands(&Version::usual(), &["hello", "info"], &cluster);
    let other = Server::start_with(&cluster);
    server.call("CLUSTER ADDSLOTSRANGE 0 8191");
    other.call("CLUSTER ADDSLOTSRANGE 8192 16383");
    server.call(&format!("CLUSTER MEET 127.0.0.1 {}", other.address().port()));
    until("the nodes have met", Duration::from_secs(20), || {
        server.call("CLUSTER INFO").text().contains("cluster_state:ok")
    });
    let proxy = Proxy::start(&server, &[]);
    let moved = format!("MOVED 12182 {}", other.address());
    for _ in 0..3 {
        assert_eq!(proxy.connect().call("GET foo").error(), moved);
    }
    assert_eq!(proxy.connect().call("SET bar x").text(), "OK", "a key of this node");
    until("it is told", PATIENCE, || told(&proxy) == ["HELLO 3", "INFO", "all keys on one node"]);
}

#[test]
fn every_way_to_log_in_works() {
    for version in Version::all() {
        let locked = Server::start_version(&version, &["--requirepass", "sesame"]);
        let old = without_commands(&version, &["hello"], &["--requirepass", "sesame"]);
        for server in [&locked, &old] {
            assert_eq!(server.call("ACL SETUSER worker on >w0rd ~* &* +@all").text(), "OK");
        }
        let login = |server: &Server, who: &str| {
            let proxy = Proxy::launch(&format!("redis://{who}@{}", server.address()), &[]).unwrap();
            let mut client = proxy.connect();
            client.start("SET k v");
            let reply = client.try_reply(PATIENCE);
            let log = proxy.log();
            assert!(!log.contains("sesame") && !log.contains("w0rd"));
            // A login of the configuration that is refused closes who asks for the server; the log has its words.
            reply.map_or_else(|_| log, |reply| reply.text())
        };
        for server in [&locked, &old] {
            for who in [":sesame", "default:sesame", "worker:w0rd"] {
                assert_eq!(login(server, who), "OK", "{}: {who}", version.name);
            }
            assert!(login(server, "worker:wr0ng").contains(": WRONGPASS"), "{}", version.name);
        }
        locked.call("ACL SETUSER default off");
        assert_eq!(login(&locked, "worker:w0rd"), "OK", "{}: without a default user", version.name);
        assert!(login(&locked, ":sesame").contains(": WRONGPASS"), "{}", version.name);
    }
}

/// How the server is just now is the client's to know, and no lack of anything.
#[test]
fn errors_that_pass_are_passed_on_and_not_remembered() {
    let server = Server::start_with(&["--save", "3600 1000000", "--enable-protected-configs", "yes"]);
    server.call("CONFIG SET dir /proc");
    server.call("BGSAVE");
    until("saving has failed", PATIENCE, || server.info("rdb_last_bgsave_status") == "err");
    let proxy = Proxy::start(&server, &[]);
    assert!(proxy.connect().call("SET k v").error().starts_with("MISCONF"));
    assert!(proxy.connect().call("GET k").is_nil());
    server.call("CONFIG SET stop-writes-on-bgsave-error no");
    assert_eq!(proxy.connect().call("SET k v").text(), "OK");
    server.call("CONFIG SET maxmemory 1");
    assert!(proxy.connect().call("SET k v").error().starts_with("OOM"));
    assert!(told(&proxy).is_empty(), "{}", proxy.log());

    let replica = Server::start_with(&["--replica-serve-stale-data", "no"]);
    replica.call("REPLICAOF 127.0.0.1 1");
    let proxy = Proxy::start(&replica, &[]);
    assert!(proxy.connect().call("GET k").error().starts_with("MASTERDOWN"));
    assert!(told(&proxy).is_empty(), "{}", proxy.log());
}

/// A provider as its documentation describes it (docs/guides/providers.md): what it does not know, what it forbids, how many
/// clients it takes.
struct Provider {
    name: &'static str,
    /// Commands unknown there.
    gone: &'static [&'static str],
    /// Subcommands of CLIENT refused there.
    forbidden: &'static [&'static str],
    options: &'static [&'static str],
    settings: &'static [&'static str],
    /// What is said to be lacking.
    lacks: &'static [&'static str],
}

impl Provider {
    /// The main job, and then more clients than the plan allows.
    fn is_served(&self) {
        let server = without_commands(&Version::usual(), self.gone, self.options);
        let proxy = proxy_without(&server, self.forbidden, self.settings);
        let banned: Vec<&str> = self.gone.iter().chain(self.forbidden).copied().collect();
        Job { proxy: &proxy, server: &server, banned: &banned, called: self.name.to_owned() }.run();
        let mut crowd: Vec<Client> = (0..60).map(|_| proxy.connect()).collect();
        for (number, client) in crowd.iter_mut().enumerate() {
            client.start(&format!("BLPOP crowd:{number} 0"));
        }
        until("all of them are blocked", PATIENCE, || blocked(&proxy) == crowd.len());
        for number in 0..crowd.len() {
            server.call(&format!("RPUSH crowd:{number} x"));
        }
        for client in &mut crowd {
            assert_eq!(client.reply_within(Duration::from_secs(30)).items()[1].text(), "x", "{}", self.name);
        }
        assert_eq!(server.info("rejected_connections"), "0", "{}", self.name);
        assert_eq!(told(&proxy), self.lacks, "{}: {}", self.name, proxy.log());
        assert_eq!(proxy.stop().code, Some(0), "{}", self.name);
    }
}

#[test]
fn redis_cloud_is_served() {
    Provider {
        name: "Redis Cloud",
        gone: &["select", "reset", "role", "monitor"],
        forbidden: &["client|pause", "client|getredir"],
        options: &["--maxclients", "30"],
        settings: &["pool.max_connections=12"],
        lacks: &["SELECT"],
    }
    .is_served();
}

#[test]
fn heroku_is_served() {
    Provider {
        name: "Heroku Key-Value Store",
        gone: &["config", "debug", "save", "shutdown"],
        forbidden: &[],
        // Two seconds instead of the 300 that idle clients get there, and a heartbeat in proportion.
        options: &["--maxclients", "20", "--timeout", "2"],
        settings: &["hygiene.heartbeat=1s"],
        lacks: &["CONFIG GET"],
    }
    .is_served();
}

#[test]
fn upstash_is_served() {
    Provider {
        name: "Upstash",
        gone: &["config", "monitor", "wait"],
        forbidden: &[
            "client|caching",
            "client|getredir",
            "client|kill",
            "client|pause",
            "client|reply",
            "client|tracking",
            "client|trackinginfo",
            "client|unblock",
        ],
        options: &[],
        settings: &[],
        lacks: &["CLIENT TRACKING", "CONFIG GET"],
    }
    .is_served();
}

#[test]
fn elasticache_is_served() {
    Provider {
        name: "ElastiCache, cluster mode disabled",
        gone: &[
            "bgrewriteaof",
            "bgsave",
            "config",
            "debug",
            "migrate",
            "replicaof",
            "save",
            "slaveof",
            "shutdown",
            "sync",
        ],
        forbidden: &[],
        options: &[],
        settings: &[],
        lacks: &["CONFIG GET"],
    }
    .is_served();
}

#[test]
fn memorystore_is_served() {
    const GONE: [&str; 8] = ["acl", "bgsave", "command", "config", "debug", "monitor", "object", "save"];
    Provider {
        name: "Memorystore, as its list of supported commands has it",
        gone: &GONE,
        forbidden: &["client|pause", "client|unblock"],
        options: &[],
        settings: &[],
        lacks: &["COMMAND INFO", "CONFIG GET"],
    }
    .is_served();
    Provider {
        name: "Memorystore, as its page of constraints has it",
        gone: &["client", "command", "config", "monitor", "object"],
        forbidden: &[],
        options: &[],
        settings: &[],
        lacks: &["CLIENT SETNAME", "CLIENT TRACKING", "COMMAND INFO", "CONFIG GET"],
    }
    .is_served();
}

#[test]
fn azure_is_served() {
    Provider {
        name: "Azure Cache for Redis",
        gone: &[
            "acl",
            "bgrewriteaof",
            "bgsave",
            "cluster",
            "config",
            "debug",
            "migrate",
            "psync",
            "replicaof",
            "save",
            "shutdown",
            "slaveof",
            "sync",
        ],
        forbidden: &[],
        options: &["--timeout", "2"],
        settings: &["hygiene.heartbeat=1s"],
        lacks: &["CONFIG GET"],
    }
    .is_served();
}

/// Certificates as Heroku and private servers have them, by no public authority: one that has signed itself, and one
/// with the authority that signed it behind it in the server's chain. What is trusted is what the server shows.
#[test]
fn a_server_that_signed_itself_is_verified() {
    let names = ["localhost".to_owned()];
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.distinguished_name.push(DnType::CommonName, "the provider");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let signed = CertificateParams::new(names.clone()).unwrap().signed_by(&key, &authority).unwrap();
    let chain = (format!("{}{}", signed.pem(), authority.pem()), key);
    let alone = |is_ca| {
        let mut own = CertificateParams::new(names.clone()).unwrap();
        own.is_ca = is_ca;
        let key = KeyPair::generate().unwrap();
        (own.self_signed(&key).unwrap().pem(), key)
    };
    for (shown, key) in [chain, alone(IsCa::NoCa), alone(IsCa::Ca(BasicConstraints::Unconstrained))] {
        let files = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = files.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (certificate, key) = (file("cert.pem", &shown), file("key.pem", &key.serialize_pem()));
        let port = free_port().to_string();
        let server = Server::start_with(&[
            "--requirepass",
            "sesame",
            "--tls-port",
            &port,
            "--tls-cert-file",
            &certificate,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &certificate,
            "--tls-auth-clients",
            "no",
        ]);
        let url = format!("rediss://:sesame@localhost:{port}");
        let strange = Proxy::launch(&url, &[]).unwrap();
        let mut client = strange.connect();
        client.start("PING");
        client.expect_end(PATIENCE);
        assert!(strange.status().to_string().contains("TLS"), "{}", strange.log());
        let ca = format!("upstream.tls.ca={}", file("shown.pem", &shown));
        let proxy = Proxy::launch(&url, &[&ca]).unwrap();
        assert_eq!(proxy.connect().call("SET k v").text(), "OK", "{}", proxy.log());
        drop(server);
    }
}

/// Redis refuses what is queued in MULTI when it is out of memory, so tries fail where the call itself would pop, and
/// make room: a full queue that nobody can empty.
#[test]
fn a_server_without_memory_is_emptied_by_its_workers() {
    for version in Version::all() {
        let server = Server::start_version(&version, &[]);
        for settings in [&[][..], &["blocking.hub=false"]] {
            let proxy = Proxy::start(&server, settings);
            let called = format!("{} {settings:?}", version.name);
            server.call("RPUSH q 1 2 3 4 5 6");
            let mut early = proxy.connect();
            early.start("BRPOP other 0");
            until("it waits", PATIENCE, || blocked(&proxy) == 1);
            server.call("CONFIG SET maxmemory 1");
            assert!(proxy.connect().call("SET k v").error().starts_with("OOM"), "{called}");
            let mut workers: Vec<Client> = (0..6).map(|_| proxy.connect()).collect();
            for worker in &mut workers {
                worker.start("BLPOP q 0");
            }
            for worker in &mut workers {
                assert_eq!(worker.reply_within(Duration::from_secs(20)).items()[0].text(), "q", "{called}");
            }
            // It moves into a key, which needs memory: the server says so, as it would directly.
            assert!(proxy.connect().call("BRPOPLPUSH q2 d 0").error().starts_with("OOM"), "{called}");
            server.call("CONFIG SET maxmemory 0");
            server.call("RPUSH other x");
            assert_eq!(early.reply().items()[1].text(), "x", "{called}");
        }
    }
}
