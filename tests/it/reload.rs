//! The configuration read again while the proxy runs: what changes, what does not, and that no client notices.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value as Json;

use crate::harness::{Authority, Client, PATIENCE, Proxy, Relay, Reply, Server, VALID, long, until};

/// A proxy that was started with a configuration file.
struct Configured {
    proxy: Proxy,
    directory: tempfile::TempDir,
}

impl Configured {
    fn start(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(file_in(directory.path()), text).unwrap();
        let path = file_in(directory.path());
        let arguments = ["--config", path.to_str().unwrap(), "--listen", "127.0.0.1:0"];
        let proxy = Proxy::launch_with(&arguments, &[]).unwrap_or_else(|exit| panic!("{exit:#?}"));
        Self { proxy, directory }
    }

    fn write(&self, text: &str) {
        // In one step, as editors and orchestrators do it: half a file is never read.
        let new = self.directory.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, file_in(self.directory.path())).unwrap();
    }

    /// The lines of the log with this message.
    fn lines(&self, message: &str) -> Vec<Json> {
        let log = self.proxy.log();
        let lines = log.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
        lines.filter(|line| line["message"] == message).collect()
    }

    /// Has the file read again by a signal, and waits until that is done.
    #[track_caller]
    fn reload(&self, text: &str) {
        let done = || {
            let log = self.proxy.log();
            log.matches(READ).count() + log.matches(REFUSED).count()
        };
        let before = done();
        self.write(text);
        self.proxy.signal("HUP");
        until("the configuration is read", PATIENCE, || done() > before);
    }

    fn success(&self) -> f64 {
        self.proxy.metrics()["redbouncer_config_reload_success"]
    }
}

const READ: &str = "the configuration was reloaded";
const REFUSED: &str = "the configuration cannot be used; nothing has changed";

fn file_in(directory: &Path) -> PathBuf {
    directory.join("redbouncer.toml")
}

/// The lines of a listing.
fn shown(reply: &Reply) -> String {
    reply.items().iter().map(|line| format!("{}\n", line.text())).collect()
}

fn keys(lines: &[Json]) -> Vec<&str> {
    lines.iter().map(|line| line["key"].as_str().unwrap()).collect()
}

#[test]
fn what_has_changed_takes_effect_and_what_needs_a_restart_is_named() {
    let server = Server::start();
    let text = format!("[upstream]\nurl = \"{}\"\n", server.url());
    let configured = Configured::start(&text);
    let proxy = &configured.proxy;
    let mut client = proxy.connect();
    assert_eq!(client.call("PING").text(), "PONG");
    assert_eq!(configured.success(), 1.0);
    let since = proxy.metrics()["redbouncer_config_reload_timestamp_seconds"];
    assert!(since > 1.7e9, "{since}");
    configured.reload(&format!(
        "{text}[pool]\nmax_connections = 12\n[auth]\nadmin_commands = \"refuse\"\n[listen]\nworkers = 2\nbacklog = 9\n"
    ));
    let changed = configured.lines("a setting has changed");
    assert_eq!(keys(&changed), ["pool.max_connections", "auth.admin_commands"]);
    assert_eq!(
        ["from", "to", "effect"].map(|field| changed[0][field].as_str().unwrap()),
        ["8", "12", "live"]
    );
    let pending = configured.lines("these keys need a restart; their former values stay in use");
    assert_eq!(pending[0]["keys"], "listen.workers, listen.backlog");
    assert_eq!(pending[0]["level"], "WARN");
    // For those who are connected already, too.
    assert!(client.call("CONFIG GET maxmemory").is_error());
    until("the cap is another one", PATIENCE, || {
        proxy.metrics()["redbouncer_upstream_connections_max"] == 12.0
    });
    let mut watching: Vec<Client> = (0..7).map(|_| proxy.connect()).collect();
    for client in &mut watching {
        assert_eq!(client.call("WATCH k").text(), "OK", "7 leases of 12 connections");
    }
    configured.reload(&format!("{text}[client]\nidle_timeout = \"1s\"\n"));
    client.expect_end(PATIENCE);
    assert_eq!(configured.lines("a setting has changed").len(), 5, "{}", proxy.log());
    // Nothing else has changed since.
    configured.reload(&format!("{text}[client]\nidle_timeout = \"1s\"\n"));
    assert_eq!(configured.lines("a setting has changed").len(), 5);
    assert_eq!(configured.lines(READ).last().unwrap()["changed"], 0);
}

#[test]
fn a_file_that_is_wrong_changes_nothing_and_says_why() {
    let server = Server::start();
    let text = format!("[upstream]\nurl = \"{}\"\n[pool]\nmax_connections = 9\n", server.url());
    let configured = Configured::start(&text);
    let wrongs = [
        (
            "[pool]\nmax_connections = 3\nlingr = \"1s\"\n",
            vec!["pool.max_connections", "pool.lingr", ":2", ":3"],
        ),
        ("[pool\n", vec!["not valid TOML"]),
        // Each value by itself is good.
        (
            "[blocking]\nretry_min = \"5s\"\nretry_max = \"1s\"\n",
            vec!["blocking.retry_min", "blocking.retry_max"],
        ),
        (
            "[upstream]\nurl = \"rediss://:sesame@h\"\n[upstream.tls]\nca = \"/nowhere/ca.pem\"\n",
            vec!["upstream.tls.ca: cannot read /nowhere/ca.pem"],
        ),
        ("[pool]\nmax_connections = 5\n", vec!["pool.max_connections", "without a restart"]),
    ];
    for (number, (wrong, says)) in wrongs.iter().enumerate() {
        configured.reload(wrong);
        let refused = configured.lines(REFUSED);
        assert_eq!(refused.len(), number + 1, "{}", configured.proxy.log());
        let line = refused.last().unwrap();
        assert_eq!(line["level"], "ERROR");
        let error = line["error"].as_str().unwrap();
        assert!(says.iter().all(|word| error.contains(word)), "{says:?}: {error}");
        assert!(!error.contains("sesame"), "{error}");
        assert_eq!(configured.success(), 0.0);
    }
    std::fs::remove_file(file_in(configured.directory.path())).unwrap();
    configured.proxy.signal("HUP");
    until("that it is missing is said", PATIENCE, || configured.lines(REFUSED).len() == wrongs.len() + 1);
    assert!(configured.lines("a setting has changed").is_empty());
    assert_eq!(configured.proxy.metrics()["redbouncer_upstream_connections_max"], 9.0);
    assert_eq!(configured.proxy.connect().call("PING").text(), "PONG");
    configured.reload(&text);
    assert_eq!(configured.success(), 1.0);
}

#[test]
fn a_changed_file_is_read_by_itself_where_that_is_asked_for() {
    let server = Server::start();
    let text = |linger: &str, watch: bool| {
        let url = server.url();
        format!("[upstream]\nurl = \"{url}\"\n[pool]\nlinger = \"{linger}\"\n[config]\nwatch = {watch}\n")
    };
    let configured = Configured::start(&text("1s", true));
    configured.write(&text("2s", true));
    until("it is read", PATIENCE, || keys(&configured.lines("a setting has changed")) == ["pool.linger"]);
    until("that is said", PATIENCE, || configured.lines(READ).len() == 1);
    assert_eq!(configured.lines(READ)[0]["cause"], "the file has changed");
    // The last change that is taken up without a signal.
    configured.write(&text("2s", false));
    until("it is read", PATIENCE, || configured.lines(READ).len() == 2);
    configured.write(&text("3s", false));
    configured.proxy.signal("HUP");
    until("it is read", PATIENCE, || configured.lines(READ).len() == 3);
    assert_eq!(configured.lines(READ)[2]["cause"], "SIGHUP");
}

#[test]
fn another_password_in_the_url_is_used_from_then_on() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    let text = |password: &str| format!("[upstream]\nurl = \"redis://:{password}@{}\"\n", server.address());
    let configured = Configured::start(&text("sesame"));
    let mut client = configured.proxy.connect();
    assert_eq!(client.call("SET k v").text(), "OK");
    server.call("CONFIG SET requirepass barley");
    configured.reload(&text("barley"));
    // Who is logged in stays; whatever is dialled needs the new one.
    assert_eq!(client.call("WATCH k").text(), "OK");
    assert_eq!(client.call("GET k").text(), "v");
    assert!(!["sesame", "barley"].iter().any(|secret| configured.proxy.log().contains(secret)));
}

#[test]
fn other_certificate_files_are_shown_to_new_clients() {
    let server = Server::start();
    let [old, new] = ["the old authority", "the new authority"].map(Authority::new);
    let [first, second] = [&old, &new].map(|authority| authority.issue("door", &["localhost"], VALID));
    let text = |cert: &Path, key: &Path| {
        let url = server.url();
        format!(
            "[upstream]\nurl = \"{url}\"\n[listen.tls]\naddresses = [\"127.0.0.1:0\"]\ncert = {cert:?}\nkey = {key:?}\n"
        )
    };
    let configured = Configured::start(&text(&first.cert, &first.key));
    let proxy = &configured.proxy;
    let mut before = Client::connect_tls(proxy.tls(), &old.client(None));
    assert_eq!(before.call("PING").text(), "PONG");
    configured.reload(&text(&second.cert, &second.key));
    assert_eq!(keys(&configured.lines("a setting has changed")), ["listen.tls.cert", "listen.tls.key"]);
    let trusting = new.client(None);
    assert_eq!(Client::connect_tls(proxy.tls(), &trusting).call("PING").text(), "PONG");
    assert!(Client::try_connect_tls(proxy.tls(), &old.client(None)).is_err());
    assert_eq!(before.call("PING").text(), "PONG", "who is connected stays");
    // A pair that does not fit is not used.
    configured.reload(&text(&first.cert, &second.key));
    assert!(configured.lines(REFUSED)[0]["error"].as_str().unwrap().contains("listen.tls.cert: "));
    assert_eq!(Client::connect_tls(proxy.tls(), &trusting).call("PING").text(), "PONG");
}

/// Clients that count up a key, each reply checked, until stopped.
struct Counters {
    stop: Arc<AtomicBool>,
    /// Replies that have come.
    acknowledged: Arc<AtomicI64>,
    threads: Vec<JoinHandle<()>>,
}

impl Counters {
    fn start(proxy: &Proxy, clients: usize) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let count = |_| {
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            let mut client = proxy.connect();
            thread::spawn(move || {
                while !stop.load(SeqCst) {
                    for reply in client.pipeline(&["INCR total", "INCR total"]) {
                        assert!(reply.int() > 0);
                        acknowledged.fetch_add(1, SeqCst);
                    }
                }
            })
        };
        let threads = (0..clients).map(count).collect();
        Self { stop, acknowledged, threads }
    }

    fn seen(&self) -> i64 {
        self.acknowledged.load(SeqCst)
    }

    /// How many replies there were; panics if a client got an error or was closed.
    fn stop(self) -> i64 {
        self.stop.store(true, SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.acknowledged.load(SeqCst)
    }
}

fn total(server: &Server) -> i64 {
    server.call("GET total").text().parse().unwrap_or(0)
}

#[test]
fn a_new_server_is_taken_up_without_an_error_to_any_client() {
    let (old, new) = (Server::start(), Server::start());
    let text = |server: &Server| {
        format!("[upstream]\nurl = \"{}\"\n[pubsub]\nresubscribe = \"silent\"\n", server.url())
    };
    let configured = Configured::start(&text(&old));
    let proxy = &configured.proxy;
    let mut idle = proxy.connect();
    assert_eq!(idle.call("SELECT 2").text(), "OK");
    let mut blocked: Vec<Client> = (0..5).map(|_| proxy.connect()).collect();
    for client in &mut blocked {
        client.start("BLPOP jobs 0");
    }
    let mut subscribed = proxy.connect();
    assert_eq!(subscribed.call("SUBSCRIBE news").items().len(), 3);
    let mut watching = proxy.connect();
    assert_eq!(watching.call("WATCH w").text(), "OK");
    assert_eq!(watching.call("MULTI").text(), "OK");
    assert_eq!(watching.call("SET w done").text(), "QUEUED");
    let counters = Counters::start(proxy, 8);
    until("they count", PATIENCE, || counters.seen() > 100);
    configured.reload(&text(&new));
    assert_eq!(keys(&configured.lines("a setting has changed")), ["upstream.url"]);
    let before = counters.seen();
    until("they count on", PATIENCE, || counters.seen() > before + 100 && total(&new) > 100);
    // The client in MULTI is where its transaction is; the others have moved.
    until("one connection is left", PATIENCE, || old.clients() == 1);
    assert_eq!(watching.call("EXEC").items().len(), 1);
    assert_eq!(old.call("GET w").text(), "done");
    until("nothing is left", PATIENCE, || old.clients() == 0);
    assert!(watching.call("GET w").is_nil(), "it is at the new server");
    until("blocked calls wait at the new server", PATIENCE, || {
        new.rows().iter().any(|row| row.get("name").ends_with(":blocking"))
    });
    for number in 0..blocked.len() {
        new.call(&format!("RPUSH jobs {number}"));
    }
    let mut got: Vec<String> = blocked.iter_mut().map(|client| client.reply().items()[1].text()).collect();
    got.sort();
    assert_eq!(got, ["0", "1", "2", "3", "4"]);
    until("the subscription is there", PATIENCE, || new.call("PUBLISH news hello").int() == 1);
    assert_eq!(subscribed.reply().items()[2].text(), "hello");
    assert_eq!(idle.call("SET k v").text(), "OK");
    new.call("SELECT 2");
    assert_eq!(new.call("GET k").text(), "v", "it is in its database");
    new.call("SELECT 0");
    let acknowledged = counters.stop();
    assert_eq!(total(&old) + total(&new), acknowledged);
    assert!(!proxy.log().contains("\"ERROR\""), "{}", proxy.log());
    assert_eq!(old.clients(), 0);
}

/// Elements of a list, each for one of many clients that block; every one arrives once.
struct Consumers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<i64>>>,
}

impl Consumers {
    fn start(proxy: &Proxy, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let consume = |_| {
            let stop = Arc::clone(&stop);
            let mut client = proxy.connect();
            thread::spawn(move || {
                let mut got = Vec::new();
                loop {
                    let reply = client.call("BLPOP jobs 1");
                    if !reply.is_nil() {
                        got.push(reply.items()[1].text().parse().unwrap());
                    } else if stop.load(SeqCst) {
                        return got;
                    }
                }
            })
        };
        let threads = (0..clients).map(consume).collect();
        Self { stop, threads }
    }

    fn stop(self) -> Vec<i64> {
        self.stop.store(true, SeqCst);
        let mut got: Vec<i64> = self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        got.sort_unstable();
        got
    }
}

/// Settings change, and the server's address between two ways to the same server. 1,000 times in the long form.
#[test]
fn reloads_under_load_lose_nothing() {
    let server = Server::start();
    let relay = Relay::to(server.address());
    let text = |round: usize| {
        let address = if round.is_multiple_of(2) { server.address() } else { relay.address() };
        let (most, wait) = (8 + round % 3, 2 + round % 2);
        format!(
            "[upstream]\nurl = \"redis://{address}\"\n[pool]\nmax_connections = {most}\nwait_timeout = \"{wait}s\"\n\
             [pubsub]\nresubscribe = \"silent\"\n"
        )
    };
    let configured = Configured::start(&text(0));
    let proxy = &configured.proxy;
    let counters = Counters::start(proxy, 6);
    let consumers = Consumers::start(proxy, 6);
    let mut subscribed = proxy.connect();
    subscribed.call("SUBSCRIBE news");
    let mut producer = proxy.connect();
    let rounds = if long() { 1_000 } else { 25 };
    let mut pushed = 0;
    for round in 1..=rounds {
        let before = counters.seen();
        configured.reload(&text(round));
        for _ in 0..5 {
            assert!(producer.call(&format!("RPUSH jobs {pushed}")).int() > 0);
            pushed += 1;
        }
        until("they count on", PATIENCE, || counters.seen() > before + 20);
    }
    let acknowledged = counters.stop();
    assert_eq!(total(&server), acknowledged);
    assert_eq!(consumers.stop(), (0..pushed).collect::<Vec<_>>());
    assert_eq!(configured.lines(READ).len(), rounds);
    until("the subscription is there", PATIENCE, || server.call("PUBLISH news hello").int() == 1);
    assert_eq!(subscribed.reply().items()[2].text(), "hello");
    drop((producer, subscribed));
    until("every connection is released", Duration::from_secs(15), || server.clients() == 0);
}

#[test]
fn the_configuration_is_seen_and_changed_over_resp() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    let text = format!("[upstream]\nurl = \"{}\"\n[pool]\nlinger = \"2s\"\n", server.url());
    let configured = Configured::start(&text);
    let mut client = configured.proxy.connect();
    let all = shown(&client.call("PROXY CONFIG"));
    assert!(all.lines().count() > 70 && !all.contains("sesame"), "{all}");
    let line = |client: &mut Client, key: &str| shown(&client.call(&format!("PROXY CONFIG GET {key}")));
    let path = file_in(configured.directory.path());
    let linger =
        format!("key=pool.linger value=\"2s\" default=\"1s\" changes=live source={}:4\n", path.display());
    assert_eq!(line(&mut client, "pool.linger"), linger);
    assert_eq!(line(&mut client, "POOL.ling*"), linger);
    assert_eq!(
        line(&mut client, "listen.workers"),
        "key=listen.workers value=1 default=1 changes=restart source=default\n"
    );
    assert!(line(&mut client, "pool.*").lines().count() > 5);
    // One key, until the end of the process: a reload of the file does not take it back.
    assert_eq!(shown(&client.call("PROXY CONFIG SET pool.linger 3s")), "changed pool.linger\n");
    assert_eq!(shown(&client.call("PROXY RELOAD")), "nothing has changed\n");
    let set = line(&mut client, "pool.linger");
    assert_eq!(set, "key=pool.linger value=\"3s\" default=\"1s\" changes=live source=PROXY CONFIG SET\n");
    for (refused, says) in [
        ("PROXY CONFIG SET pool.lingr 3s", "the nearest known key is \"pool.linger\""),
        ("PROXY CONFIG SET listen.workers 2", "\"listen.workers\" takes effect with a restart only"),
        ("PROXY CONFIG SET pool.linger soon", "expected duration"),
        ("PROXY CONFIG SET blocking.retry_min 30s", "blocking.retry_max"),
        ("PROXY CONFIG SET pool.linger", "PROXY CONFIG takes"),
        ("PROXY CONFIG GET", "PROXY CONFIG takes"),
    ] {
        let reply = client.call(refused);
        assert!(reply.error().contains(says), "{refused}: {}", reply.error());
    }
    assert_eq!(line(&mut client, "pool.linger"), set);
    configured.write(&format!("{text}[listen]\nbacklog = 9\n[client]\nidle_timeout = \"1h\"\n"));
    assert_eq!(
        shown(&client.call("PROXY RELOAD")),
        "changed client.idle_timeout\nneeds a restart listen.backlog\n"
    );
    configured.write("[pool\n");
    let refused = client.call("PROXY RELOAD");
    assert!(
        refused.error().contains("nothing has changed") && refused.error().contains("TOML"),
        "{}",
        refused.error()
    );
    assert_eq!(configured.success(), 0.0);
    let acts = configured.lines("PROXY command");
    assert!(acts.iter().any(|line| line["act"] == "RELOAD" && line["user"] == "default"), "{acts:?}");
    let ended =
        |act: &str, outcome: &str| acts.iter().any(|line| line["act"] == act && line["outcome"] == outcome);
    assert!(ended("CONFIG SET pool.linger", "done") && ended("RELOAD", "done"), "{acts:?}");
    assert!(ended("RELOAD", "nothing has changed"), "{acts:?}");
    // Whoever may not see other clients may not do this.
    server.call("ACL SETUSER guest on >guest ~* &* +@all -client|list");
    let mut guest = configured.proxy.connect();
    assert_eq!(guest.call("AUTH guest guest").text(), "OK");
    for command in ["PROXY CONFIG", "PROXY RELOAD", "PROXY CONFIG SET pool.linger 1s"] {
        assert!(guest.call(command).error().starts_with("NOPERM"), "{command}");
    }
}

#[test]
fn a_running_proxy_is_told_to_reload_by_the_command_line() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    let text = format!("[upstream]\nurl = \"{}\"\n", server.url());
    let configured = Configured::start(&text);
    let listen = configured.proxy.address().to_string();
    let reload = || Proxy::run_to_end(&["reload", "--listen", &listen], &[]);
    let (exit, said) = reload();
    assert_eq!((exit.code, said.as_str()), (Some(0), "nothing has changed\n"), "{exit:?}");
    configured.write(&format!("{text}[pool]\nlinger = \"3s\"\n[listen]\nbacklog = 9\n"));
    let (exit, said) = reload();
    assert_eq!(
        (exit.code, said.as_str()),
        (Some(0), "changed pool.linger\nneeds a restart listen.backlog\n"),
        "{exit:?}"
    );
    configured.write("[pool]\nlingr = 1\n");
    let (exit, said) = reload();
    assert_eq!((exit.code, said.as_str()), (Some(1), ""), "{exit:?}");
    assert!(exit.stderr.contains("pool.lingr"), "{exit:?}");
    let (exit, _) = Proxy::run_to_end(&["reload", "--listen", &listen], &[("REDISCLI_AUTH", "barley")]);
    assert_eq!(exit.code, Some(1));
    assert!(exit.stderr.contains("WRONGPASS") && !exit.stderr.contains("barley"), "{exit:?}");
    let (exit, _) = Proxy::run_to_end(&["reload", "--listen", "127.0.0.1:1"], &[]);
    assert_eq!(exit.code, Some(1));
    assert!(exit.stderr.contains("127.0.0.1:1"), "{exit:?}");
}
