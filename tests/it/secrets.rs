//! Nothing secret in any output: every surface is driven with marked secrets, and all that came out is searched.

use std::io::Write;

use crate::harness::{Ended, PATIENCE, Proxy, Server, encode, until};

/// In every secret, and in nothing else.
const MARK: &str = "kX7!marked";

/// Fails if `text` shows a secret, whole or in the encodings that a careless dump would use.
#[track_caller]
fn shows_nothing(what: &str, text: &str) {
    let hex: String = MARK.bytes().map(|byte| format!("{byte:02x}")).collect();
    let bytes = MARK.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>();
    for form in [MARK.to_owned(), hex, bytes.join(", "), bytes.join(",")] {
        if let Some(at) = text.find(&form) {
            let (from, to) = (at.saturating_sub(200), (at + 100).min(text.len()));
            panic!("{what} shows a secret: …{}…", String::from_utf8_lossy(&text.as_bytes()[from..to]));
        }
    }
}

fn secret(name: &str) -> String {
    format!("{name}-{MARK}")
}

fn server() -> Server {
    let own = secret("own");
    let server = Server::start_with(&["--requirepass", &own]);
    for user in ["alice", "weak"] {
        server.call(&format!("ACL SETUSER {user} on >{} ~* &* +@all", secret(user)));
    }
    server.call("ACL SETUSER weak -client|list -client|kill -client|setname -config -info");
    server
}

/// Everything a client can ask and an operator can look at, with logins that succeed and that fail.
fn drive(proxy: &Proxy, logins: &[String]) -> String {
    let mut seen = String::new();
    for login in logins {
        let mut client = proxy.connect();
        for command in [
            login,
            "CLIENT LIST",
            "CLIENT INFO",
            "ACL WHOAMI",
            "PROXY HELP",
            "PROXY POOLS",
            "PROXY CLIENTS",
            "PROXY UPSTREAMS",
            "PROXY CONFIG",
            "PROXY NONSENSE",
            "HELLO 3",
            "CLIENT NONSENSE",
            "SUBSCRIBE c",
            "NONSENSE",
            "RESET",
            login,
            "WATCH k",
            "GET k",
            login,
            "EXEC",
            "BLPOP list 0.1",
            "CLIENT KILL ID 1",
        ] {
            let words: Vec<&str> = command.split(' ').collect();
            let reply = match client.try_send(encode(&words)) {
                Ok(()) => client.try_reply(PATIENCE),
                Err(_) => Err(Ended::Reset),
            };
            // A login that cannot be made while a WATCH is held closes its client behind the error.
            if reply.is_err() {
                client = proxy.connect();
            }
            seen += &format!("{:?}\n", reply.map(|reply| format!("{reply:?}")));
        }
        // A login in pieces, and one that is no RESP any more.
        let _ = client.try_send(&login.as_bytes()[..login.len() - 1]);
        let _ = client.try_send("\r\n");
        seen += &format!("{:?}", client.try_reply(PATIENCE).map(|reply| format!("{reply:?}")));
        let _ = client.try_send(format!("*2\r\n$4\r\nAUTH\r\n${}\r\n{}", 1_000_000, secret("half")));
        let _ = proxy.connect().try_send(format!(
            "POST /{} HTTP/1.1\r\nAuthorization: {}\r\n\r\n",
            secret("path"),
            secret("http")
        ));
        let mut odd = proxy.connect();
        let _ = odd.try_send(format!("AUTH \"{}\n", secret("inline")));
        seen += &format!("{:?}", odd.read_to_end(std::time::Duration::from_millis(200)));
    }
    for path in ["/status", "/metrics", "/live", "/ready", "/", &format!("/{}", secret("page"))] {
        seen += &proxy.http(path).1;
    }
    seen
}

#[test]
fn a_running_proxy_shows_no_secret_anywhere() {
    let server = server();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{}", secret("own")).unwrap();
    let by_file = format!("upstream.password_file={}", file.path().display());
    let settings = ["auth.mode=passthrough", "log.level=trace", "auth.cache_ttl=1s", &by_file];
    let upstream = format!("redis://{}", server.address());
    let proxy = Proxy::launch(&upstream, &settings).expect("it starts");
    let logins = [
        format!("AUTH {}", secret("own")),
        format!("AUTH alice {}", secret("alice")),
        format!("AUTH weak {}", secret("weak")),
        format!("AUTH alice {}", secret("wrong")),
        format!("AUTH {}", secret("wrong")),
        format!("HELLO 3 AUTH alice {}", secret("alice")),
        format!("HELLO 3 AUTH nobody {} SETNAME x", secret("wrong")),
        format!("HELLO 4 AUTH alice {}", secret("alice")),
        format!("AUTH alice {} more", secret("alice")),
    ];
    let mut seen = drive(&proxy, &logins);
    // Somebody is thrown out meanwhile, and the server goes away and comes back.
    let mut alice = proxy.connect();
    seen += &format!("{:?}", alice.call(&logins[1]));
    server.call("ACL SETUSER alice resetpass");
    until("alice is closed", PATIENCE, || {
        alice.try_send("*1\r\n$4\r\nPING\r\n").is_err() || alice.try_reply(PATIENCE).is_err()
    });
    seen += &drive(&proxy, &logins);
    shows_nothing("an answer or a page", &seen);
    let exit = proxy.stop();
    assert!(exit.stderr.len() > 10_000, "the log is there");
    shows_nothing("the log at trace", &exit.stderr);
}

#[test]
fn a_proxy_with_a_users_file_shows_no_secret_anywhere() {
    let server = server();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let hash = "#d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272";
    write!(
        file,
        "[app]\npassword = \"{hash}\"\nupstream_user = \"alice\"\nupstream_password = \"{}\"\n\
         [env]\npassword = \"{hash}\"\nupstream_user = \"weak\"\nupstream_password_env = \"WEAK_PASSWORD\"\n\
         [stale]\npassword = \"{hash}\"\nupstream_user = \"weak\"\nupstream_password = \"{}\"\n",
        secret("alice"),
        secret("stale"),
    )
    .unwrap();
    let upstream = format!("redis://{}", server.address());
    let users = format!("auth.users_file={}", file.path().display());
    let arguments = [
        "--upstream",
        &upstream,
        "--listen",
        "127.0.0.1:0",
        "--set",
        "auth.mode=static",
        "--set",
        &users,
        "--set",
        "log.level=trace",
    ];
    let (own, weak) = (secret("own"), secret("weak"));
    let environment = [("REDBOUNCER_UPSTREAM__PASSWORD", own.as_str()), ("WEAK_PASSWORD", weak.as_str())];
    let proxy = Proxy::launch_with(&arguments, &environment).expect("it starts");
    let mut client = proxy.connect();
    assert_eq!(client.call("AUTH env sesame").text(), "OK");
    assert_eq!(client.call("ACL WHOAMI").text(), "weak", "the secret came from the environment");
    let logins = [
        "AUTH app sesame".to_owned(),
        "AUTH env sesame".to_owned(),
        "AUTH stale sesame".to_owned(),
        format!("AUTH app {}", secret("wrong")),
    ];
    let seen = drive(&proxy, &logins);
    shows_nothing("an answer or a page", &seen);
    for hidden in [hash, &hash[1..20]] {
        assert!(!seen.contains(hidden), "a hash is shown");
    }
    let exit = proxy.stop();
    shows_nothing("the log at trace", &exit.stderr);
    assert!(!exit.stderr.contains(&hash[1..20]), "a hash is logged");
}

#[test]
fn errors_and_the_doctor_show_no_secret() {
    let server = server();
    let good = format!("redis://:{}@{}", secret("own"), server.address());
    let bad = format!("redis://:{}@{}", secret("wrong"), server.address());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(
        file,
        "[upstream]\nurl = \"{good}\"\npassword = \"{}\"\nnonsense = \"{}\"\n",
        secret("twice"),
        secret("key")
    )
    .unwrap();
    let mut broken = tempfile::NamedTempFile::new().unwrap();
    write!(broken, "[upstream]\nurl = {good}\n").unwrap();
    let (file, broken) =
        (file.path().to_str().unwrap().to_owned(), broken.path().to_str().unwrap().to_owned());
    let password = format!("upstream.password={}", secret("flag"));
    let password_file = format!("upstream.password_file={}", secret("pasted"));
    let users_file = format!("auth.users_file={}", file);
    let port = format!("redis://:{}@127.0.0.1:99999", secret("own"));
    let scheme = format!("http://:{}@127.0.0.1", secret("own"));
    let argument = secret("argument");
    let nonsense = format!("--nonsense={}", secret("flag"));
    let setting = secret("no=setting");
    let runs: &[&[&str]] = &[
        &["--config", &file],
        &["--config", &broken],
        &["--upstream", &good, "--set", &password],
        &["--upstream", &good, "--set", &password_file],
        &["--upstream", &server.url(), "--set", "auth.mode=static", "--set", &users_file],
        &["--upstream", &port],
        &["--upstream", &scheme],
        &["--set", &setting],
        &["--upstream", &good, "--set", &format!("listen.addresses={}", secret("x"))],
        &["--upstream", &good, "--set", &format!("pool.wait_timeout={}", secret("x"))],
        &["--upstream", &good, "--set", &format!("auth.mode={}", secret("x"))],
        &["check", "--upstream", &good],
        &["check", "--upstream", &bad],
        &["check", "--upstream", &format!("redis://alice:{}@{}", secret("alice"), server.address())],
        &["check", "--upstream", &format!("redis://weak:{}@{}", secret("weak"), server.address())],
        &["check", "--upstream", &format!("rediss://:{}@{}", secret("own"), server.address())],
        &["cleanup", "--upstream", &good],
        &["cleanup", "--upstream", &bad],
        &["status", "--upstream", &good, "--admin", "127.0.0.1:1"],
    ];
    for run in runs {
        let (exit, stdout) = Proxy::run_to_end(run, &[]);
        let what = format!("{run:?}").replace(MARK, "…");
        shows_nothing(&what, &stdout);
        shows_nothing(&what, &exit.stderr);
        assert!(!stdout.is_empty() || !exit.stderr.is_empty(), "{what}: nothing was said");
    }
    // The command line's own parser repeats what it does not know; what it knows to be a value it does not.
    for run in [&[argument.as_str()][..], &[nonsense.as_str()]] {
        let (exit, _) = Proxy::run_to_end(run, &[]);
        assert_eq!(exit.code, Some(64));
    }
    let environment =
        [("REDBOUNCER_UPSTREAM__PASSWORD", secret("own")), ("REDBOUNCER_POOL__LINGER", secret("x"))];
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let (exit, stdout) =
        Proxy::run_to_end(&["check", "--upstream", &server.address().to_string()], &environment);
    shows_nothing("check by the environment", &(stdout + &exit.stderr));
}
