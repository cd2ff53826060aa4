//! Dialling real servers without TLS, and listeners that are none.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::resp::Protocol;
use crate::upstream::testing::{RedisServer, captured_log, fake, identity, login, options};
use crate::upstream::{Connector, DialError, Established, Login, Phase, UpstreamOptions};

const BOTH: [Protocol; 2] = [Protocol::Resp2, Protocol::Resp3];
/// A short HELLO 2 reply.
const HELLO2: &[u8] = b"*4\r\n$7\r\nversion\r\n$5\r\n9.9.9\r\n$5\r\nproto\r\n:2\r\n";

fn connector(options: &UpstreamOptions) -> Connector {
    Connector::new(options).unwrap()
}

fn impatient(port: u16) -> UpstreamOptions {
    UpstreamOptions { connect_timeout: Duration::from_millis(300), ..options(port) }
}

async fn ask(established: &mut Established, command: &str) -> String {
    established.stream.write_all(format!("{command}\r\n").as_bytes()).await.unwrap();
    established.stream.flush().await.unwrap();
    let mut reply = vec![0; 64 * 1024];
    let len = established.stream.read(&mut reply).await.unwrap();
    String::from_utf8_lossy(&reply[..len]).into_owned()
}

/// Everything a failure says, for looking for what it must not say.
fn said(failed: &DialError) -> String {
    format!("{failed} {failed:?} {failed:#?} {}", failed.public_text())
}

#[tokio::test]
async fn a_dialled_connection_is_logged_in_named_and_silent() {
    let server = RedisServer::start(&[]);
    for protocol in BOTH {
        let connector = connector(&options(server.port));
        assert_eq!((connector.server(), connector.address()), (None, None));
        let login = Login { database: 5, ..login(protocol) };
        let mut established = connector.dial(&login).await.unwrap();
        assert_eq!(established.server.version, "7.0.15");
        assert_eq!((established.server.role.as_str(), established.server.hello), ("master", true));
        assert_eq!(established.peer.port(), server.port);
        assert_eq!(established.stream.tcp().unwrap().local_addr().unwrap(), established.local);
        assert_eq!(connector.address(), Some(established.peer));

        let mut scratch = [0; 1];
        let pending = established.stream.tcp().unwrap().try_read(&mut scratch);
        assert_eq!(pending.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        let row = ask(&mut established, "CLIENT INFO").await;
        let version = protocol.number();
        assert!(row.contains("name=redbouncer:test:0:lane ") && row.contains(" db=5 "), "{row}");
        assert!(row.contains(&format!(" resp={version}")), "{row}");
        assert!(row.contains(&format!("id={} ", established.id.unwrap())), "{row}");
    }
}

#[tokio::test]
async fn two_dials_to_an_unchanged_server_share_its_description() {
    let server = RedisServer::start(&[]);
    let connector = connector(&options(server.port));
    let first = connector.dial(&login(Protocol::Resp2)).await.unwrap();
    let second = connector.dial(&login(Protocol::Resp3)).await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&first.server, &second.server));
    assert_eq!(connector.server().unwrap(), first.server);
}

#[tokio::test]
async fn a_password_is_needed_and_must_be_right() {
    let server = RedisServer::start(&["--requirepass", "s3cret-of-the-server"]);
    let connector = connector(&options(server.port));
    for protocol in BOTH {
        let none = connector.dial(&login(protocol)).await.unwrap_err();
        assert!(matches!(&none, DialError::Login { text } if text.starts_with("NOAUTH")), "{none:?}");
        let wrong = Login { identity: identity(None, "wr0ng-password"), ..login(protocol) };
        let wrong = connector.dial(&wrong).await.unwrap_err();
        assert!(matches!(&wrong, DialError::Login { text } if text.starts_with("WRONGPASS")), "{wrong:?}");
        assert!(!said(&wrong).contains("wr0ng-password"), "{}", said(&wrong));
        let right = Login { identity: identity(None, "s3cret-of-the-server"), ..login(protocol) };
        let mut established = connector.dial(&right).await.unwrap();
        assert!(ask(&mut established, "SET k v").await.starts_with("+OK"));
    }
}

#[tokio::test]
async fn a_user_without_the_rights_to_name_itself_still_works() {
    let server = RedisServer::start(&[]);
    let set = server.tell(&[
        "ACL SETUSER worker on >w0rker ~* +@all -client|setname -client|id -ping -info",
        "ACL SETUSER narrow on >narr0w ~* +get",
        "ACL SETUSER gone off >g0ne ~* +@all",
    ]);
    assert_eq!(set, "+OK\r\n+OK\r\n+OK\r\n");
    let connector = connector(&options(server.port));
    for protocol in BOTH {
        for (user, password, command, reply) in [
            ("worker", "w0rker", "SET a b", "+OK"),
            ("narrow", "narr0w", "GET nothing", if protocol == Protocol::Resp2 { "$-1" } else { "_" }),
        ] {
            let login = Login { identity: identity(Some(user), password), ..login(protocol) };
            let mut established = connector.dial(&login).await.unwrap();
            assert!(established.id.is_some(), "HELLO says the id");
            assert!(ask(&mut established, command).await.starts_with(reply));
        }
        let gone = Login { identity: identity(Some("gone"), "g0ne"), ..login(protocol) };
        let gone = connector.dial(&gone).await.unwrap_err();
        assert!(matches!(&gone, DialError::Login { text } if text.starts_with("WRONGPASS")), "{gone:?}");
    }
}

#[tokio::test]
async fn a_database_that_is_refused_fails_in_the_servers_words() {
    let server = RedisServer::start(&["--databases", "1"]);
    server.tell(&["ACL SETUSER bound on >b0und ~* +@all -select"]);
    let connector = connector(&options(server.port));
    let far = Login { database: 1, ..login(Protocol::Resp3) };
    let failed = connector.dial(&far).await.unwrap_err();
    let text = "ERR DB index is out of range".to_owned();
    assert_eq!(failed, DialError::SelectRefused { database: 1, text });
    let bound = Login { identity: identity(Some("bound"), "b0und"), database: 1, ..login(Protocol::Resp2) };
    let failed = connector.dial(&bound).await.unwrap_err();
    assert!(
        matches!(&failed, DialError::SelectRefused { text, .. } if text.starts_with("NOPERM")),
        "{failed:?}"
    );
    let home = Login { database: 0, ..bound };
    connector.dial(&home).await.expect("database 0 needs no SELECT");
}

#[tokio::test]
async fn readonly_is_refused_by_a_server_without_cluster_and_granted_by_one_with() {
    let login = Login { readonly: true, ..login(Protocol::Resp3) };
    let plain = RedisServer::start(&[]);
    let failed = connector(&options(plain.port)).dial(&login).await.unwrap_err();
    assert!(matches!(failed, DialError::ReadOnlyRefused { .. }), "{failed:?}");
    let cluster = RedisServer::start(&["--cluster-enabled", "yes"]);
    let mut established = connector(&options(cluster.port)).dial(&login).await.unwrap();
    assert_eq!(established.server.mode, "cluster");
    assert!(ask(&mut established, "CLIENT INFO").await.contains(" flags=r "));
}

#[tokio::test]
async fn a_server_without_hello_is_used_in_resp2_and_refused_in_resp3() {
    let server =
        RedisServer::start(&["--rename-command", "HELLO", "NOHELLO", "--requirepass", "s3cret-word"]);
    let connector = connector(&options(server.port));
    let login = |protocol| Login { identity: identity(None, "s3cret-word"), database: 2, ..login(protocol) };
    let mut established = connector.dial(&login(Protocol::Resp2)).await.unwrap();
    assert_eq!((established.server.version.as_str(), established.server.hello), ("7.0.15", false));
    assert_eq!(established.server.mode, "standalone");
    assert!(ask(&mut established, "CLIENT INFO").await.contains(" db=2 "));
    let failed = connector.dial(&login(Protocol::Resp3)).await.unwrap_err();
    assert!(matches!(failed, DialError::NoResp3 { .. }), "{failed:?}");
    assert!(!said(&failed).contains("s3cret-word"), "{}", said(&failed));
    let wrong = Login { identity: identity(None, "wr0ng-word"), ..login(Protocol::Resp2) };
    let failed = connector.dial(&wrong).await.unwrap_err();
    assert!(matches!(&failed, DialError::Login { text } if text.starts_with("WRONGPASS")), "{failed:?}");
}

#[tokio::test]
async fn what_the_server_refuses_is_logged_once_and_without_a_credential() {
    let server = RedisServer::start(&[]);
    server.tell(&["ACL SETUSER narrow on >narr0w-word ~* +get"]);
    let (_guard, log) = captured_log();
    let connector = connector(&options(server.port));
    let login = Login { identity: identity(Some("narrow"), "narr0w-word"), ..login(Protocol::Resp3) };
    for _ in 0..3 {
        connector.dial(&login).await.unwrap();
    }
    let log = log.text();
    for refused in ["CLIENT SETNAME", "INFO", "PING"] {
        let lines = log.lines().filter(|line| line.contains(&format!("unavailable: {refused}, ")));
        assert_eq!(lines.count(), 1, "{refused}: {log}");
    }
    assert!(log.contains("NOPERM") && !log.contains("narr0w-word"), "{log}");
    // What is known to be refused is not asked for again: the server's own log of refusals stays short.
    let refusals = server.tell(&["ACL LOG"]);
    assert_eq!(refusals.matches("username\r\n$6\r\nnarrow").count(), 3, "{refusals}");
    assert_eq!(refusals.matches("count\r\n:1\r\n").count(), 3, "{refusals}");
}

#[tokio::test]
async fn a_full_server_is_named_so_each_time() {
    let server = RedisServer::start(&[]);
    let connector = connector(&options(server.port));
    let held = connector.dial(&login(Protocol::Resp2)).await.unwrap();
    server.tell(&["CONFIG SET maxclients 1"]);
    // Whether the server's close or our HELLO comes first differs from dial to dial.
    for _ in 0..50 {
        let full = connector.dial(&login(Protocol::Resp3)).await.unwrap_err();
        assert!(matches!(full, DialError::MaxClients { .. }), "{full:?}");
        assert!(full.retryable() && full.public_text().contains("max number of clients"), "{full}");
    }
    drop(held);
}

#[tokio::test]
async fn a_running_script_does_not_hold_up_a_login() {
    let server = RedisServer::start(&["--busy-reply-threshold", "10"]);
    let connector = connector(&options(server.port));
    let mut stuck = connector.dial(&login(Protocol::Resp2)).await.unwrap();
    stuck.stream.write_all(b"EVAL \"while true do end\" 0\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut killer = connector.dial(&login(Protocol::Resp2)).await.unwrap();
    assert_eq!(ask(&mut killer, "SCRIPT KILL").await, "+OK\r\n");
    let elsewhere = Login { database: 1, ..login(Protocol::Resp2) };
    // The script is told to stop and ends a moment later; until then SELECT is refused, and worth another try.
    let started = Instant::now();
    while let Err(refused) = connector.dial(&elsewhere).await {
        assert!(refused.retryable() && started.elapsed() < Duration::from_secs(5), "{refused:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_silent_listener_times_out_in_the_login() {
    let port = fake(b"", &[]).await;
    let started = Instant::now();
    let failed = connector(&impatient(port)).dial(&login(Protocol::Resp3)).await.unwrap_err();
    assert!(matches!(failed, DialError::Timeout { phase: Phase::Login, .. }), "{failed:?}");
    assert!(failed.retryable());
    assert!((300..900).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_listener_that_never_accepts_times_out_in_tcp() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // A backlog of one, filled: further handshakes stay unanswered.
    socket2::SockRef::from(&listener).listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut fillers = Vec::new();
    for _ in 0..8 {
        let filler = tokio::time::timeout(Duration::from_millis(50), tokio::net::TcpStream::connect(address));
        fillers.push(filler.await);
    }
    let failed = connector(&impatient(address.port())).dial(&login(Protocol::Resp3)).await.unwrap_err();
    assert!(matches!(failed, DialError::Timeout { phase: Phase::Connect, .. }), "{failed:?}");
}

#[tokio::test]
async fn a_connection_that_is_closed_at_once_is_named_so() {
    let port = fake(b"", &[b""]).await;
    let failed = connector(&options(port)).dial(&login(Protocol::Resp2)).await.unwrap_err();
    assert!(matches!(failed, DialError::Closed { phase: Phase::Login, answered: false, .. }), "{failed:?}");
    assert!(failed.to_string().contains("requires TLS"), "{failed}");
    let port = fake(b"", &[b"*4\r\n$7\r\nver", b""]).await;
    let server = connector(&impatient(port));
    let failed = server.dial(&login(Protocol::Resp2)).await.unwrap_err();
    assert!(matches!(failed, DialError::Timeout { phase: Phase::Login, .. }), "{failed:?}");
}

#[tokio::test]
async fn nobody_listening_is_a_refusal() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let failed = connector(&options(port)).dial(&login(Protocol::Resp2)).await.unwrap_err();
    assert!(matches!(failed, DialError::Refused { peer } if peer.port() == port), "{failed:?}");
    assert!(!failed.public_text().contains(&port.to_string()), "{}", failed.public_text());
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_named_so() {
    let options = UpstreamOptions { host: "no-such-host.invalid".to_owned(), ..options(1) };
    let failed = connector(&options).dial(&login(Protocol::Resp2)).await.unwrap_err();
    assert!(
        matches!(&failed, DialError::Resolve { host, .. } if host == "no-such-host.invalid"),
        "{failed:?}"
    );
    assert!(!failed.public_text().contains("no-such-host"), "{}", failed.public_text());
}

#[tokio::test]
async fn all_addresses_of_a_name_are_tried() {
    // Where localhost is ::1 first, the server is on the second address; elsewhere this is a plain dial.
    let server = RedisServer::start(&[]);
    let options = UpstreamOptions { host: "localhost".to_owned(), ..options(server.port) };
    let connector = connector(&options);
    let established = connector.dial(&login(Protocol::Resp3)).await.unwrap();
    assert_eq!(connector.address(), Some(established.peer));
    assert!(!connector.address_changed().await.unwrap());
}

#[tokio::test]
async fn what_is_no_redis_is_named_so() {
    for answer in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"\0\0\0\0",
        b"+OK\r\n",
        b"-ERR no\r\n+too much\r\n",
        b"$999999999999\r\n",
    ] {
        let port = fake(b"", Box::leak(Box::new([answer]))).await;
        let failed = connector(&impatient(port)).dial(&login(Protocol::Resp2)).await.unwrap_err();
        let named = match failed {
            DialError::Protocol { .. } | DialError::Login { .. } => true,
            DialError::Timeout { .. } => answer.starts_with(b"$9"),
            _ => false,
        };
        assert!(named, "{answer:?}: {failed:?}");
    }
}

#[tokio::test]
async fn bytes_beyond_the_last_reply_end_the_login() {
    let late: &[&[u8]] = Box::leak(Box::new([HELLO2, b"+OK\r\n:7\r\n+PONG\r\n+stray\r\n" as &[u8]]));
    let port = fake(b"", late).await;
    let failed = connector(&options(port)).dial(&login(Protocol::Resp2)).await.unwrap_err();
    assert!(matches!(failed, DialError::Protocol { .. }), "{failed:?}");
    let early: &[&[u8]] = Box::leak(Box::new([b"*2\r\n$5\r\nproto\r\n:2\r\n+OK\r\n" as &[u8]]));
    let port = fake(b"", early).await;
    let failed = connector(&options(port)).dial(&login(Protocol::Resp2)).await.unwrap_err();
    assert!(matches!(failed, DialError::Protocol { .. }), "{failed:?}");
}

#[tokio::test]
async fn a_server_that_ends_loading_is_waited_for_on_the_same_connection() {
    let script: &[&[u8]] = Box::leak(Box::new([
        HELLO2,
        b"+OK\r\n:7\r\n$0\r\n\r\n-LOADING busy\r\n" as &[u8],
        b"-LOADING busy\r\n",
        b"-LOADING busy\r\n",
        b"+PONG\r\n",
    ]));
    let port = fake(b"", script).await;
    let started = Instant::now();
    let established = connector(&impatient(port)).dial(&login(Protocol::Resp2)).await.unwrap();
    assert_eq!((established.id, established.server.version.as_str()), (Some(7), "9.9.9"));
    // Pauses of 50, 100 and 200 ms: longer than the connect_timeout of 300 ms together.
    assert!(started.elapsed() >= Duration::from_millis(350), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_server_that_goes_on_loading_is_used_as_it_is() {
    let mut script: Vec<&[u8]> = vec![HELLO2, b"+OK\r\n:7\r\n$0\r\n\r\n-LOADING busy\r\n"];
    script.extend([b"-LOADING busy\r\n" as &[u8]; 100]);
    let port = fake(b"", Vec::leak(script)).await;
    let options = UpstreamOptions { loading_retry: Duration::from_millis(400), ..impatient(port) };
    let started = Instant::now();
    connector(&options).dial(&login(Protocol::Resp2)).await.unwrap();
    assert!((400..1_200).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_loading_redis_is_waited_for() {
    // A data set that takes a second: 5,000 keys, 200 µs each; it answers while it loads, after every kilobyte.
    let server = RedisServer::start(&[
        "--enable-debug-command",
        "yes",
        "--loading-process-events-interval-bytes",
        "1024",
        "--key-load-delay",
        "200",
    ]);
    server.tell(&["DEBUG POPULATE 5000 key 10"]);
    let connector = connector(&options(server.port));
    // Loads what it has just saved; answers -LOADING meanwhile.
    let mut reloading = connector.dial(&login(Protocol::Resp2)).await.unwrap();
    reloading.stream.write_all(b"DEBUG RELOAD\r\n").await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !server.tell(&["PING"]).starts_with("-LOADING") {
        assert!(Instant::now() < deadline, "it never loads");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let started = Instant::now();
    let mut established = connector.dial(&Login { database: 1, ..login(Protocol::Resp3) }).await.unwrap();
    assert!(ask(&mut established, "GET x").await.starts_with('_'), "it has its data");
    assert!(started.elapsed() > Duration::from_millis(150), "it was loading: {:?}", started.elapsed());
}

#[tokio::test]
async fn a_dropped_dial_closes_its_socket() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connector = connector(&options(listener.local_addr().unwrap().port()));
    let login = login(Protocol::Resp3);
    let mut dial = Box::pin(connector.dial(&login));
    let (mut accepted, _) = tokio::select! {
        accepted = listener.accept() => accepted.unwrap(),
        ended = &mut dial => panic!("{ended:?}"),
    };
    let mut hello = [0; 64];
    tokio::select! {
        read = accepted.read(&mut hello) => assert!(read.unwrap() > 0),
        ended = &mut dial => panic!("{ended:?}"),
    }
    drop(dial);
    let end = tokio::time::timeout(Duration::from_secs(1), accepted.read(&mut hello)).await;
    assert_eq!(end.expect("noticed at once").unwrap(), 0);
}

#[tokio::test]
async fn a_failed_login_leaves_no_connection_behind() {
    let server = RedisServer::start(&["--databases", "1"]);
    let connector = connector(&options(server.port));
    for _ in 0..20 {
        connector.dial(&Login { database: 4, ..login(Protocol::Resp2) }).await.unwrap_err();
    }
    let deadline = Instant::now() + Duration::from_secs(2);
    while server.tell(&["CLIENT LIST"]).contains("redbouncer:") {
        assert!(Instant::now() < deadline, "{}", server.tell(&["CLIENT LIST"]));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn plain_and_secured_streams_are_told_apart() {
    let server = RedisServer::start(&[]);
    let established = connector(&options(server.port)).dial(&login(Protocol::Resp2)).await.unwrap();
    assert!(established.stream.session().is_none() && !established.stream.is_buffered());
    let socket = socket2::SockRef::from(established.stream.tcp().unwrap());
    assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    // It would end a living server that does not read.
    assert_eq!(socket.tcp_user_timeout().unwrap(), None);
}
