//! `redbouncer check`: each kind of broken upstream is named, with what to do about it, and the exit code says whether a
//! proxy could serve.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use serde_json::Value as Json;

use crate::harness::{Client, FakeServer, PATIENCE, Proxy, Server, Version, bulk, encode, free_port, until};

/// What `check` said.
#[derive(Debug)]
struct Checked {
    code: i32,
    findings: Vec<Json>,
}

impl Checked {
    /// The finding on `subject` that is worst; its level, text and advice.
    #[track_caller]
    fn on(&self, subject: &str) -> (&str, &str, &str) {
        let rank = |finding: &&Json| {
            ["ok", "warning", "failure"].iter().position(|level| finding["level"] == *level)
        };
        let of_subject = self.findings.iter().filter(|finding| finding["subject"] == subject);
        let worst = of_subject.max_by_key(rank).unwrap_or_else(|| panic!("nothing on {subject}: {self:#?}"));
        let text = |key: &str| worst[key].as_str().unwrap();
        (text("level"), text("text"), text("advice"))
    }

    /// Exactly one failure: on `subject`, with these words in its text, and these in its advice.
    #[track_caller]
    fn blames(&self, subject: &str, text: &str, advice: &str) {
        let failed: Vec<_> = self.findings.iter().filter(|finding| finding["level"] == "failure").collect();
        assert_eq!((self.code, failed.len()), (1, 1), "{self:#?}");
        let (level, found, what_to_do) = self.on(subject);
        assert_eq!(level, "failure", "{self:#?}");
        assert!(found.contains(text), "{text:?} is not in {found:?}");
        assert!(what_to_do.contains(advice), "{advice:?} is not in {what_to_do:?}");
    }

    /// A proxy can serve, but there is a warning on `subject` with these words.
    #[track_caller]
    fn warns(&self, subject: &str, text: &str, advice: &str) {
        let (level, found, what_to_do) = self.on(subject);
        assert_eq!((self.code, level), (0, "warning"), "{self:#?}");
        assert!(found.contains(text), "{text:?} is not in {found:?}");
        assert!(what_to_do.contains(advice), "{advice:?} is not in {what_to_do:?}");
    }

    #[track_caller]
    fn is_fine(&self, subject: &str, text: &str) {
        let (level, found, _) = self.on(subject);
        assert_eq!(level, "ok", "{self:#?}");
        assert!(found.contains(text), "{text:?} is not in {found:?}");
    }
}

/// Runs `redbouncer check` before `url` with further flags.
fn run(url: &str, flags: &[&str]) -> (i32, String, String) {
    let arguments: Vec<&str> = ["check", "--upstream", url].iter().chain(flags).copied().collect();
    let (exit, stdout) = Proxy::run_to_end(&arguments, &[]);
    (exit.code.expect("an exit code"), stdout, exit.stderr)
}

#[track_caller]
fn check_with(url: &str, flags: &[&str]) -> Checked {
    let flags: Vec<&str> = flags.iter().chain(&["--json"]).copied().collect();
    let (code, stdout, stderr) = run(url, &flags);
    assert_eq!(stderr, "", "{stdout}");
    let said: Json = serde_json::from_str(&stdout).unwrap_or_else(|wrong| panic!("{wrong}: {stdout}"));
    assert_eq!(said["can_serve"].as_bool(), Some(code == 0), "{said:#}");
    Checked { code, findings: said["findings"].as_array().unwrap().clone() }
}

#[track_caller]
fn check(url: &str) -> Checked {
    check_with(url, &["--set", "upstream.connect_timeout=1s", "--set", "upstream.loading_retry=0"])
}

/// A server with a TLS port, and the certificates it uses.
struct Secured {
    server: Server,
    port: u16,
    files: tempfile::TempDir,
}

impl Secured {
    /// Its certificate is for `localhost`, as `change` makes it.
    fn start(change: impl FnOnce(&mut CertificateParams), options: &[&str]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "Test Authority");
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut own = CertificateParams::new(["localhost".to_owned()]).unwrap();
        own.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut own);
        let own = own.signed_by(&key, &authority).unwrap();
        let path = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("ca.pem"), authority.pem()).unwrap();
        fs::write(path("cert.pem"), own.pem()).unwrap();
        fs::write(path("key.pem"), key.serialize_pem()).unwrap();
        let port = free_port().to_string();
        let (ca, cert, key) = (path("ca.pem"), path("cert.pem"), path("key.pem"));
        let files_of = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
        let all = [&["--tls-port", &port], &files_of[..], options].concat();
        Self { server: Server::start_with(&all), port: port.parse().unwrap(), files }
    }

    fn usual() -> Self {
        Self::start(|_| (), &["--tls-auth-clients", "no"])
    }

    fn url(&self) -> String {
        format!("rediss://localhost:{}", self.port)
    }

    /// As somebody who trusts the authority.
    #[track_caller]
    fn check(&self, flags: &[&str]) -> Checked {
        let ca = format!("upstream.tls.ca={}", self.files.path().join("ca.pem").display());
        check_with(&self.url(), &[&["--set", &ca], flags].concat())
    }
}

/// They would share CPUs, and serve no more requests for it.
#[test]
fn more_workers_than_cpus_are_a_warning_in_the_check_and_in_the_log() {
    let server = Server::start();
    let cpus = std::thread::available_parallelism().unwrap().get();
    let settings = |workers: usize| {
        [format!("listen.workers={workers}"), format!("pool.max_connections={}", 2 + 3 * workers)]
    };
    let checked = |workers: usize| {
        let [workers, cap] = settings(workers);
        check_with(&server.url(), &["--set", &workers, "--set", &cap])
    };
    let many = cpus + 1;
    checked(many).warns("workers", &format!("{many} workers on {cpus} CPU"), "lower listen.workers");
    assert!(
        checked(cpus)
            .findings
            .iter()
            .all(|finding| { finding["subject"] != "workers" || finding["level"] == "ok" })
    );
    for (workers, is_warned) in [(many, true), (cpus, false)] {
        let settings = settings(workers);
        let proxy = Proxy::start(&server, &settings.each_ref().map(String::as_str));
        until("it is ready", PATIENCE, || proxy.log().contains("\"ready\""));
        assert_eq!(proxy.log().contains("there are fewer CPUs than workers"), is_warned, "{workers}");
    }
}

#[test]
fn a_good_server_of_every_version_passes() {
    for version in Version::all() {
        let server = Server::start_version(&version, &[]);
        let checked = check(&server.url());
        assert_eq!(checked.code, 0, "{checked:#?}");
        let flavour = if version.name.starts_with("valkey") { "Valkey" } else { "Redis" };
        checked.is_fine("server", &format!("{flavour} {}", number_of(&version, &server)));
        checked.is_fine("server", "standalone, a master");
        checked.is_fine("places", "of 10000 connections are in use");
        checked.is_fine("timeout", "0: ");
        checked.is_fine("tcp-keepalive", "300 s");
        checked.is_fine("eviction", "noeviction");
        checked.is_fine("orphans", "no connection of a dead redbouncer");
        checked.is_fine("budget", "8 = 1 control + 2 lanes + 2 hubs + 3 open");
        let (_, rights, _) = checked.on("rights");
        for command in ["CLIENT LIST", "CLIENT KILL", "CLIENT UNBLOCK", "CLIENT SETNAME", "SELECT", "RESET"] {
            assert!(rights.contains(command), "{rights}");
        }
        let nobody = server.rows().iter().all(|row| row.get("name") != "redbouncer-check");
        assert!(nobody, "nothing is left of it");
    }
}

fn number_of(version: &Version, server: &Server) -> String {
    server.info(if version.name.starts_with("valkey") { "valkey_version" } else { "redis_version" })
}

#[test]
fn a_name_that_does_not_exist() {
    let checked = check("redis://no-such-host.invalid:6379");
    checked.blames("name", "cannot resolve no-such-host.invalid", "resolver");
}

#[test]
fn a_port_where_nobody_listens() {
    check(&format!("redis://127.0.0.1:{}", free_port())).blames(
        "TCP",
        "refused",
        "check that the server is running",
    );
}

#[test]
fn a_host_that_does_not_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // A backlog of one, filled: further handshakes stay unanswered, as behind a firewall that drops.
    socket2::SockRef::from(&listener).listen(1).unwrap();
    let short = Duration::from_millis(100);
    let _fill: Vec<_> = (0..8).map(|_| TcpStream::connect_timeout(&address, short)).collect();
    check(&format!("redis://{address}")).blames("TCP", "no answer within 1s", "a firewall");
}

#[test]
fn a_web_server() {
    let fake = FakeServer::saying("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    check(&fake.url()).blames("protocol", "not a reply of a Redis server", "another service");
}

#[test]
fn something_that_accepts_and_never_says_a_word() {
    let fake = FakeServer::silent(false);
    check(&fake.url()).blames("login", "login with", "does not respond");
}

#[test]
fn something_that_hangs_up() {
    let fake = FakeServer::silent(true);
    check(&fake.url()).blames("login", "closed the connection during login", "rediss://");
}

#[test]
fn tls_on_a_plain_port() {
    let server = Server::start();
    let checked = check(&format!("rediss://{}", server.address()));
    let (_, text, _) = checked.on("TLS");
    assert!(text.contains("TLS"), "{text}");
    checked.blames("TLS", "", "redis://");
}

#[test]
fn no_tls_on_a_tls_port() {
    let secured = Secured::usual();
    let plain = secured.url().replace("rediss://", "redis://");
    let checked = check(&plain);
    let (subject, text) = checked
        .findings
        .iter()
        .find(|finding| finding["level"] == "failure")
        .map(|finding| (finding["subject"].as_str().unwrap(), finding["text"].as_str().unwrap()))
        .expect("a failure");
    assert!(text.contains("rediss://") || text.contains("requires TLS"), "{text}");
    checked.blames(subject, "", "rediss://");
}

#[test]
fn a_certificate_in_order_is_described() {
    let checked = Secured::usual().check(&[]);
    assert_eq!(checked.code, 0, "{checked:#?}");
    checked.is_fine("TLS", "certificate for localhost, issued by Test Authority");
    checked.is_fine("TLS", "chain and name verified");
}

#[test]
fn a_certificate_that_has_expired() {
    let secured =
        Secured::start(|params| params.not_after = date_time_ymd(2025, 1, 1), &["--tls-auth-clients", "no"]);
    secured.check(&[]).blames("TLS", "expired", "renew ");
}

#[test]
fn a_certificate_that_is_not_valid_yet() {
    let secured =
        Secured::start(|params| params.not_before = date_time_ymd(2124, 1, 1), &["--tls-auth-clients", "no"]);
    secured.check(&[]).blames("TLS", "not valid yet", "clock");
}

#[test]
fn a_certificate_that_ends_soon() {
    let tomorrow = std::time::SystemTime::now() + Duration::from_secs(36 * 3_600);
    let secured = Secured::start(|params| params.not_after = tomorrow.into(), &["--tls-auth-clients", "no"]);
    secured.check(&[]).warns("TLS", "valid for 1 more day", "renew ");
}

#[test]
fn a_certificate_for_another_name() {
    let secured = Secured::usual();
    let ca = format!("upstream.tls.ca={}", secured.files.path().join("ca.pem").display());
    let other = format!("rediss://127.0.0.1:{}", secured.port);
    let checked = check_with(&other, &["--set", &ca]);
    checked.blames("TLS", "name", "upstream.tls.server_name");
    let told = check_with(&other, &["--set", &ca, "--set", "upstream.tls.server_name=localhost"]);
    assert_eq!(told.code, 0, "{told:#?}");
}

#[test]
fn an_authority_that_nobody_knows() {
    let secured = Secured::usual();
    check(&secured.url()).blames("TLS", "authority", "upstream.tls.ca");
    check_with(&secured.url(), &["--set", "upstream.tls.insecure=true"]).warns(
        "TLS",
        "not verified",
        "insecure",
    );
}

#[test]
fn a_server_that_wants_a_certificate_of_ours() {
    let secured = Secured::start(|_| (), &["--tls-auth-clients", "yes"]);
    secured.check(&[]).blames("TLS", "certificate", "upstream.tls.cert");
}

#[test]
fn the_certificate_for_clients_is_looked_at_too() {
    let check = |change: fn(&mut CertificateParams)| {
        let secured = Secured::start(change, &["--tls-auth-clients", "no"]);
        let file =
            |key: &str, name: &str| format!("listen.tls.{key}={}", secured.files.path().join(name).display());
        let (cert, key) = (file("cert", "cert.pem"), file("key", "key.pem"));
        let listen = ["--set", "listen.tls.addresses=127.0.0.1:0", "--set", &cert, "--set", &key];
        check_with(&secured.server.url(), &listen)
    };
    let good = check(|_| ());
    assert_eq!(good.code, 0, "{good:#?}");
    good.is_fine("configuration", "127.0.0.1:0 (TLS)");
    good.is_fine("listen.tls", "certificate for localhost, issued by Test Authority");
    check(|params| params.not_after = date_time_ymd(2025, 1, 1)).blames("listen.tls", "expired", "renew");
    let missing =
        ["listen.tls.addresses=127.0.0.1:0", "listen.tls.cert=/nowhere/cert", "listen.tls.key=/nowhere/key"];
    let flags: Vec<&str> = missing.iter().flat_map(|setting| ["--set", setting]).collect();
    let server = Server::start();
    check_with(&server.url(), &flags).blames("listen.tls", "/nowhere/cert", "listen.tls");
}

#[test]
fn a_file_for_tls_that_is_not_there() {
    let checked = check_with("rediss://localhost:1", &["--set", "upstream.tls.ca=/nowhere/ca.pem"]);
    checked.blames("TLS files", "upstream.tls.ca: cannot read /nowhere/ca.pem", "upstream.tls");
}

#[test]
fn a_wrong_password_is_named_and_not_repeated() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    let url = format!("redis://:hunter2@{}", server.address());
    check(&url).blames("login", "WRONGPASS", "password is wrong");
    let (code, stdout, stderr) = run(&url, &[]);
    assert_eq!(code, 1);
    assert!(!stdout.contains("hunter2") && !stderr.contains("hunter2"), "{stdout}{stderr}");
    check(&server.url()).is_fine("login", "user 'default'");
}

#[test]
fn no_password_where_one_is_needed() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    let url = format!("redis://{}", server.address());
    check(&url).blames("login", "NOAUTH", "redis://user:password@host");
    // Where clients have to log in themselves, they can be served.
    for flags in [["--listen", "0.0.0.0:6380"], ["--set", "auth.mode=passthrough"]] {
        let checked = check_with(&url, &flags);
        checked.warns("login", "only clients that log in are served", "as the user of the last login");
    }
}

#[test]
fn a_database_that_does_not_exist() {
    let server = Server::start();
    check(&format!("{}/77", server.url())).blames("database", "database 77", "remove /N from upstream.url");
}

#[test]
fn a_server_with_all_its_places_taken() {
    let server = Server::start_with(&["--maxclients", "12"]);
    // The test's own probe is one of the twelve.
    let mut others: Vec<Client> = (0..11).map(|_| Client::connect(server.address())).collect();
    for other in &mut others {
        assert_eq!(other.call("PING").text(), "PONG");
    }
    check(&server.url()).blames("places", "max number of clients reached", "maxclients");
}

#[test]
fn room_that_is_scarce_is_a_warning_and_no_room_a_failure() {
    let server = Server::start_with(&["--maxclients", "12"]);
    check(&server.url()).warns("places", "1 of 12 connections are in use", "2 × 8");
    let taking = |count: usize| -> Vec<Client> {
        (0..count)
            .map(|_| {
                let mut client = Client::connect(server.address());
                client.call("PING");
                client
            })
            .collect()
    };
    let mut others = taking(5);
    check(&server.url()).warns("places", "6 of 12 connections are in use", "only 6 are left");
    others.extend(taking(3));
    check(&server.url()).blames("places", "9 of 12 connections are in use", "redbouncer cleanup");
}

#[test]
fn a_server_that_is_loading_its_data() {
    // 30 s of loading, with a look at the connections after every tenth key or so.
    let mut server =
        Server::start_with(&["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"]);
    assert_eq!(server.call("DEBUG POPULATE 30000 key 100").text(), "OK");
    assert_eq!(server.call("SAVE").text(), "OK");
    server.restart();
    let checked = check(&server.url());
    let failed = checked.findings.iter().find(|finding| finding["level"] == "failure").expect("a failure");
    let subject = failed["subject"].as_str().unwrap().to_owned();
    checked.blames(&subject, "LOADING", "try again later");
}

#[test]
fn a_server_that_runs_a_long_script() {
    let server = Server::start_with(&["--lua-time-limit", "50"]);
    let mut busy = Client::connect(server.address());
    busy.send(encode(&["EVAL", "while true do end", "0"]));
    until("it is busy", PATIENCE, || {
        Client::connect(server.address()).call("PING").error().starts_with("BUSY")
    });
    let checked = check(&server.url());
    assert_eq!(server.call("SCRIPT KILL").text(), "OK");
    checked.blames("server", "BUSY", "SCRIPT KILL");
}

#[test]
fn a_server_that_stands_still() {
    let server = Server::start();
    server.signal("STOP");
    let checked = check(&server.url());
    server.signal("CONT");
    checked.blames("login", "login with", "overloaded, stopped");
}

#[test]
fn commands_that_are_forbidden_are_named_each() {
    let server = Server::start();
    server.call("ACL SETUSER app on >secret ~* &* +@all -client|list -client|kill -client|unblock -client|setname -select -config -info");
    let checked = check(&format!("redis://app:secret@{}", server.address()));
    assert_eq!(checked.code, 0, "{checked:#?}");
    let about = |what: &str| {
        let found = checked.findings.iter().find(|finding| {
            finding["subject"] == "rights" && finding["text"].as_str().unwrap().starts_with(what)
        });
        found.unwrap_or_else(|| panic!("{what} is not named: {checked:#?}"))
    };
    for (command, level) in [
        ("CLIENT LIST", "warning"),
        ("CLIENT KILL", "warning"),
        ("CLIENT SETNAME", "warning"),
        ("CLIENT UNBLOCK", "ok"),
        ("SELECT", "ok"),
    ] {
        let finding = about(&format!("{command} is refused: NOPERM"));
        assert_eq!(finding["level"], level, "{finding:#}");
        assert!(!finding["advice"].as_str().unwrap().is_empty());
    }
    checked.warns("connections", "CLIENT LIST is refused", "+client|list");
    checked.warns("places", "does not report", "check the limit of your plan");
    checked.is_fine("timeout", "not available");
}

#[test]
fn a_probe_of_rights_harms_nobody() {
    let server = Server::start();
    let mut waiting = Client::connect(server.address());
    waiting.start("BLPOP queue 0");
    until("it is blocked", PATIENCE, || server.rows().iter().any(|row| row.get("flags") == "b"));
    let before = server.rows().len();
    assert_eq!(check(&server.url()).code, 0);
    until("the check has left", PATIENCE, || server.rows().len() == before);
    server.call("LPUSH queue x");
    assert_eq!(waiting.reply().items()[1].text(), "x");
    assert_eq!(server.call("DBSIZE").int(), 0, "it wrote nothing");
}

#[test]
fn a_node_of_a_cluster() {
    let server = Server::start_with(&["--cluster-enabled", "yes"]);
    check(&server.url()).warns("server", ", cluster, a master", "MOVED");
}

#[test]
fn a_replica() {
    let server = Server::start();
    let replica = Server::start_with(&["--replicaof", "127.0.0.1", &server.address().port().to_string()]);
    check(&replica.url()).warns("server", "a replica", "use the master");
}

#[test]
fn a_sentinel() {
    let fake = FakeServer::server(|words| match words {
        ["HELLO", "2"] => hello("redis", "sentinel"),
        ["PING"] => "+PONG\r\n".to_owned(),
        ["CLIENT", "LIST"] => bulk("id=7 addr=127.0.0.1:1 flags=N age=0 idle=0\n"),
        ["INFO", ..] => bulk("# Server\r\nredis_version:7.0.15\r\nredis_mode:sentinel\r\n"),
        _ => "-ERR unknown command\r\n".to_owned(),
    });
    check(&fake.url()).blames("server", "sentinel", "the server itself");
}

/// The reply to HELLO 2.
fn hello(server: &str, mode: &str) -> String {
    let fields = [("server", server), ("version", "7.2.0"), ("mode", mode), ("role", "master")];
    let text: String = fields.iter().map(|(key, value)| bulk(key) + &bulk(value)).collect();
    format!("*14\r\n{text}{}:2\r\n{}:7\r\n{}*0\r\n", bulk("proto"), bulk("id"), bulk("modules"))
}

#[test]
fn a_provider_without_reset_select_and_config() {
    let fake = FakeServer::server(|words| match words {
        ["HELLO", "2"] => hello("redis", "standalone"),
        ["PING"] => "+PONG\r\n".to_owned(),
        ["CLIENT", "SETNAME", _] | ["CLIENT", "TRACKING", _] | ["MULTI"] | ["DISCARD"] => {
            "+OK\r\n".to_owned()
        }
        ["CLIENT", "KILL" | "UNBLOCK", ..] => ":0\r\n".to_owned(),
        ["CLIENT", "ID"] => ":7\r\n".to_owned(),
        ["CLIENT", "LIST"] => {
            bulk("id=7 addr=10.1.2.3:1 name= age=1 idle=0 flags=N db=0 cmd=client|list user=default\n")
        }
        ["INFO", ..] => bulk("# Server\r\nredis_version:7.2.0\r\n# Clients\r\nconnected_clients:5\r\n"),
        ["COMMAND", ..] => "*0\r\n".to_owned(),
        ["HELLO", "3"] => hello("redis", "standalone"),
        [command, ..] => format!("-ERR unknown command '{command}'\r\n"),
        [] => String::new(),
    });
    let checked = check(&fake.url());
    checked.warns("places", "does not report", "check the limit of your plan");
    checked.is_fine("eviction", "not available");
    checked.is_fine("tcp-keepalive", "not available");
    for command in ["SELECT", "RESET", "CONFIG GET"] {
        let text = format!("{command} is refused");
        let found = checked
            .findings
            .iter()
            .any(|finding| finding["level"] == "ok" && finding["text"].as_str().unwrap().starts_with(&text));
        assert!(found, "{command}: {checked:#?}");
    }
}

#[test]
fn settings_that_hurt_are_named() {
    let options = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru", "--timeout", "20"];
    let server = Server::start_with(&[&options[..], &["--tcp-keepalive", "0"]].concat());
    let checked = check(&server.url());
    checked.warns("eviction", "allkeys-lru (maxmemory 100.00M)", "noeviction");
    checked.warns("timeout", "idle for 20 s", "hygiene.heartbeat");
    checked.warns("tcp-keepalive", "0: ", "CONFIG SET tcp-keepalive");
}

#[test]
fn orphans_are_counted() {
    let server = Server::start();
    let _dead: Vec<Client> = (0..3)
        .map(|_| {
            let mut client = Client::connect(server.address());
            client.call("CLIENT SETNAME redbouncer:web:0123abcd:leased");
            client
        })
        .collect();
    let quick = ["--set", "hygiene.heartbeat=1s", "--set", "hygiene.orphan_after=3s"];
    until("they are idle for long enough", PATIENCE, || {
        let rows = server.rows();
        rows.iter().all(|row| row.get("idle").parse::<u64>().unwrap() >= 3)
    });
    check_with(&server.url(), &quick).warns(
        "orphans",
        "3 connections belong to dead instances",
        "cleanup --orphans",
    );
}

#[test]
fn every_address_of_a_name_is_tried() {
    let server = Server::start();
    let port = server.address().port();
    let checked = check(&format!("redis://localhost:{port}"));
    checked.is_fine("name", &format!("127.0.0.1:{port}"));
    let addresses: Vec<SocketAddr> =
        std::net::ToSocketAddrs::to_socket_addrs(&("localhost", port)).unwrap().collect();
    for address in addresses {
        checked.is_fine("name", &address.to_string());
        let tried = checked.findings.iter().any(|finding| {
            finding["subject"] == "TCP" && finding["text"].as_str().unwrap().contains(&address.to_string())
        });
        assert!(tried, "{address}: {checked:#?}");
    }
}

#[test]
fn a_configuration_that_cannot_be_used() {
    let (code, stdout, stderr) = run("redis://localhost", &["--set", "pool.lingr=5s"]);
    assert_eq!((code, stderr.as_str()), (64, ""));
    assert!(stdout.starts_with("failure  configuration"), "{stdout}");
    assert!(stdout.contains("pool.linger") && stdout.contains("could not serve: 1 failure"), "{stdout}");
}

#[test]
fn the_listing_is_readable_at_80_columns() {
    let server = Server::start();
    let (code, stdout, stderr) = run(&server.url(), &[]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(stdout.lines().all(|line| line.chars().count() <= 80), "{stdout}");
    assert!(stdout.contains("\nredbouncer can serve: 0 failures, 0 warnings\n"), "{stdout}");
    let begins = |line: &&str| line.starts_with("ok  ") || line.starts_with("warning  ");
    assert!(stdout.lines().filter(begins).count() >= 14, "{stdout}");
}

/// The subjects that a source file gives to findings: the first argument of each, or of `let subject`.
fn subjects(source: &str) -> Vec<String> {
    let code: String =
        source.split("#[cfg(test)]").next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    for method in [".ok(", ".note(", ".warning(", ".failure("] {
        for (at, _) in code.match_indices(method) {
            let argument = code[at + method.len()..].trim_start();
            if let Some(text) = argument.strip_prefix('"') {
                found.push(text.split('"').next().unwrap().to_owned());
            }
        }
    }
    if let Some((_, arms)) = code.split_once("let subject = match") {
        let arms = arms.split("};").next().unwrap();
        found.extend(arms.split("=> \"").skip(1).map(|arm| arm.split('"').next().unwrap().to_owned()));
    }
    found
}

#[test]
fn every_subject_is_in_the_page() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/reference/command-line.md")).unwrap();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    let check = fs::read_dir(root.join("src/hygiene/check")).unwrap().map(|file| file.unwrap().path());
    let mut seen = std::collections::BTreeSet::new();
    for path in check.chain([root.join("src/cli/check.rs")]) {
        seen.extend(subjects(&fs::read_to_string(&path).unwrap()));
    }
    assert!(seen.len() >= 18, "{seen:?}");
    for subject in seen {
        let first_cell = |row: &&str| row.split(" | ").next().unwrap().contains(&format!("`{subject}`"));
        assert!(rows.iter().any(first_cell), "docs/reference/command-line.md has no row for {subject}");
    }
}

/// `check --self` with further arguments, against the admin port at `admin`: the code, and what was said.
fn check_self(admin: SocketAddr, arguments: &[&str]) -> (Option<i32>, String) {
    let admin = admin.to_string();
    let (exit, stdout) = Proxy::run_to_end(&[&["check", "--admin", &admin], arguments].concat(), &[]);
    (exit.code, stdout + &exit.stderr)
}

#[test]
fn a_running_proxy_is_asked_by_the_health_check_of_its_container() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &[]);
    let admin = proxy.admin();
    assert_eq!(check_self(admin, &["--self"]), (Some(0), "ready\n".to_owned()));
    assert_eq!(check_self(admin, &["--self=live"]), (Some(0), "live\n".to_owned()));
    proxy.kill();
    let (code, said) = check_self(admin, &["--self"]);
    assert!(code == Some(1) && said.contains("check that the proxy is running"), "{code:?} {said}");
}

#[test]
fn a_proxy_that_drains_is_not_healthy_but_lives() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["shutdown.drain_timeout=60s"]);
    let mut client = proxy.connect();
    client.call("PING");
    server.signal("STOP");
    client.start("INCR unanswered");
    client.expect_silence(Duration::from_millis(100));
    proxy.signal("TERM");
    until("the drain has begun", PATIENCE, || {
        proxy.try_http("/ready").is_some_and(|(status, _)| status == 503)
    });
    let (code, said) = check_self(proxy.admin(), &["--self"]);
    assert!(code == Some(1) && said.contains("503") && said.contains("stopping"), "{code:?} {said}");
    assert_eq!(check_self(proxy.admin(), &["--self=live"]), (Some(0), "live\n".to_owned()));
    server.signal("CONT");
    assert_eq!(client.reply().int(), 1);
}
