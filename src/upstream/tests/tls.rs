//! Dialling with TLS: whom we accept, and what we say of whom we do not.

use std::rc::Rc;
use std::time::Duration;

use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::resp::Protocol;
use crate::upstream::testing::{
    Authority, Issued, RedisServer, captured_log, fake, identity, login, options,
};
use crate::upstream::{
    Connector, DialError, Login, Phase, TlsFault, TlsOptions, TlsSetupError, UpstreamOptions,
};

const VALID: (i32, i32) = (2020, 2120);

/// One authority for each test's thread, which ends with it and takes its files along.
fn authority() -> Rc<Authority> {
    thread_local! { static AUTHORITY: Rc<Authority> = Rc::new(Authority::new()); }
    AUTHORITY.with(Rc::clone)
}

fn issued(name: &str, names: &[&str]) -> Issued {
    authority().issue(name, names, VALID)
}

async fn dial(options: &UpstreamOptions) -> Result<crate::upstream::Established, DialError> {
    Connector::new(options).unwrap().dial(&login(Protocol::Resp3)).await
}

async fn fault(options: &UpstreamOptions) -> TlsFault {
    match dial(options).await {
        Err(DialError::Tls { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_signed_by_the_given_authority_is_accepted() {
    let certificate = issued("good", &["localhost", "127.0.0.1"]);
    let server = RedisServer::start_tls(&certificate, &authority(), &["--requirepass", "s3cret"]);
    for host in ["127.0.0.1", "localhost"] {
        let options = UpstreamOptions { host: host.to_owned(), ..authority().options(server.port) };
        let connector = Connector::new(&options).unwrap();
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let login = Login { identity: identity(None, "s3cret"), database: 1, ..login(Protocol::Resp3) };
            let mut established = connector.dial(&login).await.unwrap();
            let session = established.stream.session().unwrap();
            assert_eq!(session.handshake_kind(), Some(expected));
            established.stream.write_all(b"SET k v\r\n").await.unwrap();
            established.stream.flush().await.unwrap();
            let mut reply = [0; 5];
            established.stream.read_exact(&mut reply).await.unwrap();
            assert_eq!(&reply, b"+OK\r\n");
            let socket = socket2::SockRef::from(established.stream.tcp().unwrap());
            assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        }
    }
}

#[tokio::test]
async fn an_authority_we_do_not_know_is_not_accepted() {
    let server = RedisServer::start_tls(&issued("unknown", &["127.0.0.1"]), &authority(), &[]);
    let options = UpstreamOptions { tls: true, ..options(server.port) };
    let found = fault(&options).await;
    assert_eq!(found, TlsFault::UnknownAuthority);
    assert!(found.to_string().contains("upstream.tls.ca"), "{found}");
    assert!(!dial(&options).await.unwrap_err().retryable());

    let tls_options = TlsOptions { insecure: true, ..TlsOptions::default() };
    let (_guard, log) = captured_log();
    dial(&UpstreamOptions { tls_options, ..options }).await.expect("insecure accepts anybody");
    assert!(log.text().contains("WARN") && log.text().contains("upstream.tls.insecure"), "{}", log.text());
}

/// As `openssl req -x509` makes them: the server's own certificate says that it is an authority.
#[tokio::test]
async fn a_self_signed_certificate_is_named_and_accepted_when_it_is_listed() {
    let authority = authority();
    for (file, names, is_authority) in
        [("plain", &["127.0.0.1"][..], false), ("authority", &["127.0.0.1"], true), ("nameless", &[], true)]
    {
        let own = authority.self_signed(file, names, is_authority, VALID);
        let server = RedisServer::start_tls(&own, &authority, &[]);
        let unlisted = authority.options(server.port);
        let found = fault(&unlisted).await;
        assert_eq!(found, TlsFault::SelfSigned, "{file}");
        assert!(found.to_string().contains("upstream.tls.ca"), "{found}");
        let tls_options = TlsOptions { ca: Some(own.cert), ..TlsOptions::default() };
        dial(&UpstreamOptions { tls_options, ..unlisted }).await.unwrap_or_else(|e| panic!("{file}: {e}"));
    }
    let old = authority.self_signed("old-own", &["127.0.0.1"], true, (2001, 2002));
    let server = RedisServer::start_tls(&old, &authority, &[]);
    let tls_options = TlsOptions { ca: Some(old.cert), ..TlsOptions::default() };
    let options = UpstreamOptions { tls_options, ..authority.options(server.port) };
    assert_eq!(fault(&options).await, TlsFault::Expired, "to know it is not enough");
}

/// The name of the server is in the clear of the first message, and an address is not sent as a name (RFC 6066, 3).
#[tokio::test]
async fn the_name_is_always_sent_and_an_address_never() {
    async fn hello(change: impl FnOnce(&mut UpstreamOptions)) -> Vec<u8> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut options = authority().options(listener.local_addr().unwrap().port());
        options.connect_timeout = Duration::from_secs(5);
        change(&mut options);
        let dialling = tokio::spawn(async move { dial(&options).await });
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut first = vec![0; 4096];
        let len = stream.read(&mut first).await.unwrap();
        dialling.abort();
        first.truncate(len);
        first
    }
    let contains = |bytes: &[u8], name: &[u8]| bytes.windows(name.len()).any(|window| window == name);
    // server_name (type 0), one entry of type host_name with its length, then the name.
    let named = hello(|options| options.host = "localhost".to_owned()).await;
    assert!(contains(&named, b"\x00\x00\x0e\x00\x0c\x00\x00\x09localhost"), "{named:02x?}");
    let other = hello(|options| options.tls_options.server_name = Some("redis.example".to_owned())).await;
    assert!(contains(&other, b"\x00\x0dredis.example"), "{other:02x?}");
    let addressed = hello(|_| {}).await;
    assert!(addressed.len() > 100 && !contains(&addressed, b"127.0.0.1"), "{addressed:02x?}");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_not_accepted() {
    let server = RedisServer::start_tls(&issued("other", &["redis.example"]), &authority(), &[]);
    let mut options = authority().options(server.port);
    let found = fault(&options).await;
    assert!(
        matches!(&found, TlsFault::WrongName { detail } if detail.contains("redis.example")),
        "{found:?}"
    );
    assert!(!found.public_text().contains("redis.example"));
    options.tls_options.server_name = Some("redis.example".to_owned());
    dial(&options).await.expect("the name can be given");
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_not_accepted() {
    let old = authority().issue("old", &["127.0.0.1"], (2001, 2002));
    let server = RedisServer::start_tls(&old, &authority(), &[]);
    assert_eq!(fault(&authority().options(server.port)).await, TlsFault::Expired);
    let early = authority().issue("early", &["127.0.0.1"], (2090, 2091));
    let server = RedisServer::start_tls(&early, &authority(), &[]);
    assert_eq!(fault(&authority().options(server.port)).await, TlsFault::NotYetValid);
}

#[tokio::test]
async fn a_server_that_wants_our_certificate_gets_it_or_is_named() {
    let certificate = issued("mutual", &["127.0.0.1"]);
    let server = RedisServer::start_tls(&certificate, &authority(), &["--tls-auth-clients", "yes"]);
    let mut options = authority().options(server.port);
    let found = fault(&options).await;
    assert!(matches!(found, TlsFault::ClientCertificate { .. }), "{found:?}");
    let ours = issued("ours", &["proxy"]);
    options.tls_options.cert = Some(ours.cert);
    options.tls_options.key = Some(ours.key);
    dial(&options).await.unwrap();
}

#[tokio::test]
async fn tls_on_a_plain_port_is_named() {
    let server = RedisServer::start(&[]);
    let options =
        UpstreamOptions { connect_timeout: Duration::from_millis(500), ..authority().options(server.port) };
    // This version waits for the end of the line that it takes our first record for; others answer with an error.
    let failed = dial(&options).await.unwrap_err();
    assert!(matches!(failed, DialError::Timeout { phase: Phase::Tls, .. }), "{failed:?}");
    assert!(failed.to_string().contains("without TLS"), "{failed}");

    let port = fake(b"", &[b"-ERR unknown command\r\n"]).await;
    let found = fault(&authority().options(port)).await;
    assert_eq!(found, TlsFault::NotTls);
}

#[tokio::test]
async fn plain_redis_on_a_tls_port_is_named() {
    let server = RedisServer::start_tls(&issued("secured", &["127.0.0.1"]), &authority(), &[]);
    let failed = dial(&options(server.port)).await.unwrap_err();
    assert!(failed.to_string().contains("TLS"), "{failed:?}");
    dial(&options(server.plain_port())).await.expect("its plain port is plain");

    let port = fake(b"", &[b"\x15\x03\x01\x00\x02\x02\x46"]).await;
    let failed = dial(&options(port)).await.unwrap_err();
    assert!(matches!(failed, DialError::SpeaksTls { .. }), "{failed:?}");
}

#[tokio::test]
async fn a_full_server_hangs_up_before_the_handshake() {
    let server = RedisServer::start_tls(&issued("full", &["127.0.0.1"]), &authority(), &[]);
    let held = dial(&authority().options(server.port)).await.unwrap();
    server.tell(&["CONFIG SET maxclients 1"]);
    let failed = dial(&authority().options(server.port)).await.unwrap_err();
    assert!(failed.retryable(), "{failed:?}");
    assert!(
        matches!(
            failed,
            DialError::Closed { phase: Phase::Tls, .. } | DialError::Io { phase: Phase::Tls, .. }
        ),
        "{failed:?}"
    );
    drop(held);
}

#[tokio::test]
async fn silence_in_the_handshake_times_out_there() {
    let port = fake(b"", &[]).await;
    let options =
        UpstreamOptions { connect_timeout: Duration::from_millis(200), ..authority().options(port) };
    let failed = dial(&options).await.unwrap_err();
    assert!(matches!(failed, DialError::Timeout { phase: Phase::Tls, .. }), "{failed:?}");
}

#[test]
fn a_setup_that_cannot_work_is_refused_before_any_dial() {
    let with = |change: &dyn Fn(&mut TlsOptions)| {
        let mut options = authority().options(1);
        change(&mut options.tls_options);
        Connector::new(&options).map(|_| ()).unwrap_err()
    };
    let ours = issued("setup", &["proxy"]);
    let theirs = issued("theirs", &["proxy"]);
    let missing = with(&|tls| tls.ca = Some("/nonexistent/ca.crt".into()));
    assert!(
        matches!(&missing, TlsSetupError::Read { key: "upstream.tls.ca", cause, .. } if cause.contains("No such file")),
        "{missing}"
    );
    assert!(matches!(with(&|tls| tls.ca = Some(ours.key.clone())), TlsSetupError::NoCertificate { .. }));
    assert!(matches!(with(&|tls| tls.cert = Some(ours.cert.clone())), TlsSetupError::HalfAPair));
    assert!(matches!(with(&|tls| tls.key = Some(ours.key.clone())), TlsSetupError::HalfAPair));
    let crossed = with(&|tls| (tls.cert, tls.key) = (Some(ours.cert.clone()), Some(theirs.key.clone())));
    assert!(matches!(crossed, TlsSetupError::ClientCertificate { .. }), "{crossed:?}");
    let keyless = with(&|tls| (tls.cert, tls.key) = (Some(ours.cert.clone()), Some(ours.cert.clone())));
    assert!(matches!(keyless, TlsSetupError::Read { .. }), "{keyless:?}");
    let unnamed = with(&|tls| tls.server_name = Some("not a name".to_owned()));
    assert!(matches!(unnamed, TlsSetupError::ServerName { .. }), "{unnamed:?}");
}

#[test]
fn a_broken_key_file_is_not_quoted() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("broken.key");
    std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\nhunter2 hunter2\n-----END PRIVATE KEY-----\n")
        .unwrap();
    let mut options = authority().options(1);
    options.tls_options.cert = Some(issued("broken", &["proxy"]).cert);
    options.tls_options.key = Some(key);
    let failed = Connector::new(&options).map(|_| ()).unwrap_err();
    assert!(!format!("{failed} {failed:?}").contains("hunter2"), "{failed:?}");
}
