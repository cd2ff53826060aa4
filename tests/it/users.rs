//! `auth.mode = "static"`: the users of a file, who they are upstream, and what each may have.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use crate::harness::{Client, PATIENCE, Proxy, Server, Stage, throughout, until};

const WRONG: &str = "WRONGPASS invalid username-password pair or user is disabled.";
const NOAUTH: &str = "NOAUTH Authentication required.";
/// `printf %s sesame | sha256sum`
const SESAME: &str = "#d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272";
/// `printf %s barley | argon2 somesaltsomesalt -id -k 19456 -t 2 -p 1 -e`
const BARLEY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$Q17kF7eSVJzCbIGNOgD03prI2P1giJzeVmaEtpq5t/Y";

/// `printf %s barley | argon2 somesaltsomesalt -id -k 65536 -t 3 -p 1 -e`
const DEAR: &str =
    "$argon2id$v=19$m=65536,t=3,p=1$c29tZXNhbHRzb21lc2FsdA$P0YMLOMbMm2nj2GzolxIgMaV8YvbZDWHSCxYnyIsbTk";

fn written(text: &str) -> NamedTempFile {
    let mut file = tempfile::Builder::new().prefix("redbouncer-users").suffix(".toml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// A proxy for the users of `text`, before a server that knows `worker` and `reader`.
fn stage(text: &str, settings: &[&str]) -> (Stage, NamedTempFile) {
    let server = Server::start_with(&["--requirepass", "upstream-secret"]);
    server.call("ACL SETUSER worker on >worker-secret ~* &* +@all");
    server.call("ACL SETUSER reader on >reader-secret ~* &* +@read +@connection");
    let file = written(text);
    let users = format!("auth.users_file={}", file.path().display());
    let stage = Stage::before(server, &[&["auth.mode=static", &users], settings].concat());
    (stage, file)
}

#[track_caller]
fn login(stage: &Stage, user: &str, password: &str) -> Client {
    let mut client = stage.connect();
    assert_eq!(client.call(&format!("AUTH {user} {password}")).text(), "OK");
    client
}

fn connections(server: &Server, user: &str) -> usize {
    server.rows().iter().filter(|row| row.get("user") == user).count()
}

#[test]
fn each_user_has_its_own_password_and_its_own_identity_upstream() {
    let text = format!(
        "[app]\npassword = \"{BARLEY}\"\nupstream_user = \"worker\"\nupstream_password = \"worker-secret\"\n\
         [page]\npassword = [\"{SESAME}\", \"{BARLEY}\"]\nupstream_user = \"reader\"\nupstream_password = \"reader-secret\"\n\
         [default]\npassword = \"{SESAME}\"\n"
    );
    let (stage, _file) = stage(&text, &[]);
    assert_eq!(login(&stage, "app", "barley").call("ACL WHOAMI").text(), "worker");
    for password in ["sesame", "barley"] {
        let mut page = login(&stage, "page", password);
        assert!(!page.call("GET k").is_error());
        assert!(page.call("SET k v").error().starts_with("NOPERM"));
    }
    let mut client = stage.connect();
    for command in ["PING", "GET k", "HELLO 3"] {
        assert!(client.call(command).error().starts_with("NOAUTH"), "{command}");
    }
    // Nobody gets in by what the server would take, nor by another's password.
    for wrong in [
        "app sesame",
        "app",
        "default barley",
        "nobody sesame",
        "worker worker-secret",
        "default upstream-secret",
    ] {
        assert_eq!(client.call(&format!("AUTH {wrong}")).error(), WRONG, "{wrong}");
    }
    assert_eq!(client.call("GET k").error(), NOAUTH);
    assert_eq!(client.call("AUTH sesame").text(), "OK", "without a name it is `default`");
    assert_eq!(client.call("ACL WHOAMI").text(), "default");
    assert!(
        client.call("CLIENT LIST").text().contains("user=page")
            || client.call("CLIENT LIST").text().contains("user=default")
    );
    assert_eq!(client.call("HELLO 3 AUTH app barley").field("proto").map(|v| v.text()), Some("3".into()));
    assert_eq!(client.call("ACL WHOAMI").text(), "worker");
    assert_eq!(client.call("RESET").text(), "RESET");
    assert_eq!(client.call("GET k").error(), NOAUTH);
}

#[test]
fn a_user_has_at_most_its_number_of_clients() {
    let (stage, _file) = stage(
        &format!("[app]\npassword = \"{SESAME}\"\nmax_clients = 2\n[web]\npassword = \"{SESAME}\"\n"),
        &[],
    );
    let first = login(&stage, "app", "sesame");
    let mut second = login(&stage, "app", "sesame");
    let mut third = stage.connect();
    let full = "ERR max number of clients reached for this user ('app' may have 2)";
    assert_eq!(third.call("AUTH app sesame").error(), full);
    assert_eq!(third.call("GET k").error(), NOAUTH);
    assert!(!login(&stage, "web", "sesame").call("GET k").is_error());
    let users = stage.proxy().status()["users"].clone();
    let app = users.as_array().unwrap().iter().find(|row| row["name"] == "app").unwrap();
    assert_eq!((app["clients"].as_u64(), app["max_clients"].as_u64()), (Some(2), Some(2)), "{app}");
    drop(first);
    until("a place is free", PATIENCE, || third.call("AUTH app sesame").text() == "OK");
    // Who becomes somebody else gives its place back, too.
    assert_eq!(second.call("AUTH web sesame").text(), "OK");
    login(&stage, "app", "sesame");
    until("the metrics show it", PATIENCE, || {
        stage.proxy().metrics().get("redbouncer_user_clients_max{user=\"app\"}") == Some(&2.0)
    });
}

#[test]
fn a_user_has_at_most_its_number_of_upstream_connections() {
    let text = format!(
        "[app]\npassword = \"{SESAME}\"\nupstream_user = \"worker\"\nupstream_password = \"worker-secret\"\nmax_connections = 2\n\
         [web]\npassword = \"{SESAME}\"\n"
    );
    let (stage, _file) = stage(&text, &["pool.wait_timeout=1s", "pool.max_connections=12"]);
    let mut holders: Vec<Client> = (0..3).map(|_| login(&stage, "app", "sesame")).collect();
    for holder in &mut holders[..2] {
        assert_eq!(holder.call("WATCH k").text(), "OK");
    }
    let full = "ERR redbouncer: no upstream connection within 1s: this user has 2 of its 2 connections";
    assert_eq!(holders[2].call("WATCH k").error(), full);
    assert_eq!(connections(&stage.server, "worker"), 2);
    // Others do not notice.
    let mut web: Vec<Client> = (0..2).map(|_| login(&stage, "web", "sesame")).collect();
    for client in &mut web {
        assert_eq!(client.call("WATCH k").text(), "OK");
    }
    drop(holders.remove(0));
    until("a place is free", PATIENCE, || !holders[1].call("WATCH k").is_error());
    let users = stage.proxy().status()["users"].clone();
    let app = users.as_array().unwrap().iter().find(|row| row["name"] == "app").unwrap();
    assert_eq!((app["connections"].as_u64(), app["max_connections"].as_u64()), (Some(2), Some(2)), "{app}");
}

#[test]
fn the_lanes_of_a_user_take_turns_under_its_own_cap() {
    let text = format!("[app]\npassword = \"{SESAME}\"\nmax_connections = 1\n");
    let (stage, _file) = stage(&text, &[]);
    let mut clients: Vec<Client> = (0..3).map(|_| login(&stage, "app", "sesame")).collect();
    for (database, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.call(&format!("SELECT {database}")).text(), "OK");
    }
    let begin = Instant::now();
    for round in 0..3 {
        for (database, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.call(&format!("SET k {database}:{round}")).text(), "OK");
            assert_eq!(client.call("GET k").text(), format!("{database}:{round}"));
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
    // A blocked call and a transaction find their place under it as well.
    clients[1].start("BLPOP list 1");
    assert!(clients[1].reply().is_nil());
    assert_eq!(clients[2].call("WATCH k").text(), "OK");
    assert_eq!(clients[2].call("MULTI").text(), "OK");
    assert_eq!(clients[2].call("SET k won").text(), "QUEUED");
    assert_eq!(clients[2].call("EXEC").items().len(), 1);
    assert!(!clients[0].call("GET k").is_error());
}

#[test]
fn a_user_may_ask_for_what_its_line_says() {
    let text = format!(
        "[app]\npassword = \"{SESAME}\"\ncommands = [\"data\", \"transactions\"]\n[all]\npassword = \"{SESAME}\"\n"
    );
    let (stage, _file) = stage(&text, &[]);
    let mut app = login(&stage, "app", "sesame");
    for allowed in ["SET k v", "GET k", "PING", "CLIENT SETNAME x", "SELECT 0", "EVAL return{1} 0"] {
        assert!(!app.call(allowed).is_error(), "{allowed}");
    }
    for (refused, name) in [
        ("BLPOP k 1", "blpop"),
        ("SUBSCRIBE c", "subscribe"),
        ("PUBLISH c m", "publish"),
        ("MONITOR", "monitor"),
        ("CONFIG GET maxmemory", "config|get"),
        ("CLIENT LIST", "client|list"),
        ("CLIENT TRACKING ON", "client|tracking"),
        ("PROXY CLIENTS", "proxy|clients"),
        ("WAIT 0 1", "wait"),
    ] {
        let expected = format!("NOPERM User app has no permissions to run the '{name}' command");
        assert_eq!(app.call(refused).error(), expected);
    }
    assert_eq!(
        app.call("FOO.BAR k").error(),
        "NOPERM User app has no permissions to run commands unknown to redbouncer (\"other\")"
    );
    // Inside a transaction it fails as a whole, whether it arrives in pieces or at once.
    assert_eq!(app.call("MULTI").text(), "OK");
    assert!(app.call("PUBLISH c m").error().starts_with("NOPERM"));
    assert_eq!(app.call("SET k w").text(), "QUEUED");
    assert!(app.call("EXEC").error().starts_with("EXECABORT"));
    let replies = app.pipeline(&["MULTI", "SET k w", "BLPOP k 1", "EXEC", "GET k"]);
    assert!(
        replies[2].error().starts_with("NOPERM") && replies[3].error().starts_with("EXECABORT"),
        "{replies:?}"
    );
    assert_eq!(replies[4].text(), "v");
    let mut all = login(&stage, "all", "sesame");
    assert!(!all.call("CONFIG GET maxmemory").is_error());
    assert_eq!(all.call("AUTH app sesame").text(), "OK");
    assert!(all.call("CONFIG GET maxmemory").error().starts_with("NOPERM"), "rights go with the user");
}

#[test]
fn a_costly_hash_holds_up_nobody() {
    let (stage, _file) =
        stage(&format!("[app]\npassword = \"{BARLEY}\"\n[web]\npassword = \"{SESAME}\"\n"), &[]);
    let mut web = login(&stage, "web", "sesame");
    let mut guessers: Vec<Client> = (0..100).map(|_| stage.connect()).collect();
    for (number, guesser) in guessers.iter_mut().enumerate() {
        guesser.start(&format!("AUTH app guess-{number}"));
    }
    let mut slowest = Duration::ZERO;
    throughout("commands are answered", Duration::from_secs(1), || {
        let begin = Instant::now();
        let answered = web.call("PING").text() == "PONG";
        slowest = slowest.max(begin.elapsed());
        answered
    });
    println!("the slowest PING beside 100 logins with Argon2: {slowest:?}");
    for guesser in &mut guessers {
        let text = guesser.reply().error().to_owned();
        let told = ["ERR redbouncer: too many failed logins", "ERR redbouncer: login not checked within"];
        assert!(text == WRONG || told.iter().any(|told| text.starts_with(told)), "{text}");
    }
    // A good one is computed once.
    let _first = until_in(&stage);
    let begin = Instant::now();
    let many: Vec<Client> = (0..50).map(|_| login(&stage, "app", "barley")).collect();
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?} for {} logins", begin.elapsed(), many.len());
}

/// Names of every kind, and one that does not exist, are refused in the same time: else a quick answer would tell which
/// names exist.
#[test]
fn a_name_that_does_not_exist_is_refused_in_the_time_of_one_that_does() {
    let text = format!(
        "[argon]\npassword = \"{BARLEY}\"\n[both]\npassword = [\"{SESAME}\", \"{BARLEY}\"]\n\
         [dear]\npassword = \"{DEAR}\"\n[sha]\npassword = \"{SESAME}\"\n"
    );
    let (stage, _file) = stage(&text, &[]);
    let mut quickest = Vec::new();
    for (number, name) in (2..).zip(["argon", "both", "dear", "sha", "nobody"]) {
        let mut client = Client::connect_from([127, 0, 2, number], stage.address());
        // The quickest of some is what it takes where nobody is in the way.
        let times = (0..7).map(|guess| {
            let begin = Instant::now();
            assert_eq!(client.call(&format!("AUTH {name} guess-{guess}")).error(), WRONG);
            begin.elapsed()
        });
        quickest.push((times.min().unwrap(), name));
    }
    quickest.sort();
    println!("{quickest:?}");
    let (least, most) = (quickest[0].0, quickest[quickest.len() - 1].0);
    // Without the looks that are made up for it was a hundred times as long for some as for others.
    assert!(most < 4 * least, "{quickest:?}");
}

/// Guesses from 25 addresses, all the time, until dropped.
struct Guessers {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<usize>>,
}

impl Guessers {
    fn start(address: SocketAddr, user: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Arc::new(AtomicUsize::new(0));
        let guess = |number: u8| {
            let (stop, begun) = (Arc::clone(&stop), Arc::clone(&begun));
            thread::spawn(move || {
                let mut client = Client::connect_from([127, 0, 1, number], address);
                let mut guesses = 0;
                while !stop.load(Ordering::Relaxed) {
                    client.start(&format!("AUTH {user} guess-{number}-{guesses}"));
                    // The first answers take long where many wait.
                    if client.try_reply(Duration::from_secs(20)).is_err() {
                        break;
                    }
                    begun.fetch_add(usize::from(guesses == 0), Ordering::Relaxed);
                    guesses += 1;
                }
                guesses
            })
        };
        let threads = (1..=25).map(guess).collect();
        until("everybody has guessed", 4 * PATIENCE, || begun.load(Ordering::Relaxed) == 25);
        Self { stop, threads }
    }

    fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    }
}

/// How long a good login takes from an address that nobody has come from before, the middle one of five.
fn good_logins(address: SocketAddr, from: u8, logins: [&str; 5]) -> Duration {
    let mut times: Vec<Duration> = (1..)
        .zip(logins)
        .map(|(number, login)| {
            let mut client = Client::connect_from([127, 0, from, number], address);
            // What was let in before is not remembered any more.
            thread::sleep(Duration::from_millis(5));
            let begin = Instant::now();
            assert_eq!(client.call(login).text(), "OK");
            begin.elapsed()
        })
        .collect();
    times.sort();
    times[2]
}

#[test]
fn a_good_login_waits_for_one_guess_and_not_for_25() {
    let text = format!("[app]\npassword = \"{DEAR}\"\n");
    let settings = ["auth.cache_ttl=1ms", "pool.wait_timeout=20s", "client.login_timeout=2m"];
    let (stage, _file) = stage(&text, &settings);
    let good = ["AUTH app barley"; 5];
    let alone = good_logins(stage.address(), 3, good);
    let guessers = Guessers::start(stage.address(), "app");
    let beside = good_logins(stage.address(), 4, good);
    let guesses = guessers.finish();
    println!("alone {alone:?}, beside {guesses} guesses {beside:?}");
    // Its own look, and that of the guess that was being looked at; the rest is for a busy machine.
    assert!(beside < 8 * alone, "alone {alone:?}, beside 25 who guess {beside:?}");
}

#[test]
fn a_good_login_at_the_server_waits_for_no_guesses() {
    let server = Server::start_with(&["--requirepass", "upstream-secret"]);
    for number in 0..5 {
        server.call(&format!("ACL SETUSER u{number} on >secret ~* &* +@all"));
    }
    let stage =
        Stage::before(server, &["auth.mode=passthrough", "pool.wait_timeout=20s", "pool.max_connections=12"]);
    let guessers = Guessers::start(stage.address(), "u0");
    let good = ["AUTH u0 secret", "AUTH u1 secret", "AUTH u2 secret", "AUTH u3 secret", "AUTH u4 secret"];
    let beside = good_logins(stage.address(), 4, good);
    let guesses = guessers.finish();
    println!("beside {guesses} guesses {beside:?}");
    // 25 in front of it, at ten a second, were 2.5 s.
    assert!(beside < Duration::from_secs(1), "{beside:?}");
}

/// Logs in as `app` as soon as this address may again.
fn until_in(stage: &Stage) -> Client {
    let mut client = stage.connect();
    until("the address may log in again", PATIENCE, || client.call("AUTH app barley").text() == "OK");
    client
}

#[test]
fn a_users_file_that_is_wrong_is_refused_at_the_start() {
    let refused = |text: &str| {
        let file = written(text);
        let users = format!("auth.users_file={}", file.path().display());
        let (exit, _) = Proxy::run_to_end(&["--set", "auth.mode=static", "--set", &users], &[]);
        assert_eq!(exit.code, Some(64), "{exit:?}");
        exit.stderr
    };
    let text = refused("[app]\npassword = \"in-plain-text\"\n");
    assert!(text.contains(".toml:2: user \"app\": \"password\": expected a hash"), "{text}");
    assert!(!text.contains("in-plain-text"), "{text}");
    assert!(refused("").contains("nobody could log in"));
    let dearest = BARLEY.replace("m=19456,t=2", "m=262144,t=64");
    let text = refused(&format!("[app]\npassword = \"{dearest}\"\n"));
    assert!(text.contains("a login may take 64s") && text.contains("client.login_timeout"), "{text}");
    let (exit, _) = Proxy::run_to_end(&["--set", "auth.mode=static"], &[]);
    assert_eq!(exit.code, Some(64));
    assert!(exit.stderr.contains("auth.users_file"), "{}", exit.stderr);
    let file = written(&format!("[app]\npassword = \"{SESAME}\"\n"));
    let users = format!("auth.users_file={}", file.path().display());
    let (exit, _) = Proxy::run_to_end(&["--set", &users], &[]);
    assert_eq!(exit.code, Some(64));
    assert!(exit.stderr.contains("is used only with"), "{}", exit.stderr);
}

#[test]
fn a_users_file_that_changes_is_read_again() {
    let entry = |name: &str, most: u32| format!("[{name}]\npassword = \"{SESAME}\"\nmax_clients = {most}\n");
    let (stage, file) = stage(&[entry("app", 5), entry("web", 5)].concat(), &[]);
    let (mut app, mut web) = (login(&stage, "app", "sesame"), login(&stage, "web", "sesame"));
    std::fs::write(file.path(), "[app]\npassword = \"in-plain-text\"\n").unwrap();
    stage.proxy().signal("HUP");
    until("what is wrong is told", PATIENCE, || stage.proxy().log().contains("the former users stay in use"));
    assert!(!stage.proxy().log().contains("in-plain-text"));
    assert_eq!(app.call("PING").text(), "PONG");
    let dearest = BARLEY.replace("m=19456,t=2", "m=262144,t=64");
    std::fs::write(file.path(), format!("[app]\npassword = \"{dearest}\"\n")).unwrap();
    stage.proxy().signal("HUP");
    until("what is too dear is told", PATIENCE, || stage.proxy().log().contains("a login may take 64s"));
    assert_eq!(app.call("PING").text(), "PONG");
    // One is as before, one has changed, one has come.
    std::fs::write(file.path(), [entry("web", 5), entry("app", 9), entry("new", 5)].concat()).unwrap();
    stage.proxy().signal("HUP");
    app.expect_end(PATIENCE);
    assert_eq!(web.call("PING").text(), "PONG");
    login(&stage, "app", "sesame");
    login(&stage, "new", "sesame");
    // Without a signal, too.
    std::fs::write(file.path(), entry("app", 9)).unwrap();
    web.expect_end(PATIENCE);
    assert_eq!(stage.connect().call("AUTH web sesame").error(), WRONG);
}

/// A hash of `redbouncer hash-password`, to be piped a password into.
fn hashed(password: &str, flags: &[&str]) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_redbouncer"))
        .arg("hash-password")
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains(password), "{text}");
    text.trim_end().to_owned()
}

#[test]
fn a_hash_made_by_redbouncer_lets_its_password_in() {
    let text = format!(
        "[app]\npassword = \"{}\"\n[web]\npassword = \"{}\"\n",
        hashed("barley", &[]),
        hashed("sesame", &["--sha256"]),
    );
    assert!(text.contains("$argon2id$") && text.contains(SESAME), "{text}");
    let (stage, _file) = stage(&text, &[]);
    login(&stage, "app", "barley");
    login(&stage, "web", "sesame");
    assert_eq!(stage.connect().call("AUTH app sesame").error(), WRONG);
}
