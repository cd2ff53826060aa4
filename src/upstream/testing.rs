//! For tests: a real redis-server, certificates, and listeners that misbehave.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::{CredentialSource, Identity, Login, Secret, TlsOptions, UpstreamOptions};
use crate::resp::Protocol;

/// A login without credentials, as a lane would do it.
pub(super) fn login(protocol: Protocol) -> Login {
    Login {
        identity: Arc::default(),
        database: 0,
        protocol,
        name: "redbouncer:test:0:lane".to_owned(),
        readonly: false,
        tracking: false,
    }
}

pub(super) fn identity(username: Option<&str>, password: &str) -> Arc<Identity> {
    Arc::new(Identity {
        username: username.map(str::to_owned),
        password: Some(Secret::new(password)),
        source: CredentialSource::Url,
    })
}

pub(super) fn options(port: u16) -> UpstreamOptions {
    UpstreamOptions { host: "127.0.0.1".to_owned(), port, ..UpstreamOptions::default() }
}

/// A redis-server on a free port; killed when dropped.
pub(super) struct RedisServer {
    child: Child,
    pub(super) port: u16,
    /// Where it is asked for readiness and told things: the plain port.
    plain: SocketAddr,
    _dir: TempDir,
}

impl RedisServer {
    pub(super) fn start(arguments: &[&str]) -> Self {
        Self::spawn(arguments, None)
    }

    /// With TLS on `port`, and a plain port beside it.
    pub(super) fn start_tls(certificate: &Issued, authority: &Authority, arguments: &[&str]) -> Self {
        Self::spawn(arguments, Some((certificate, authority)))
    }

    fn spawn(arguments: &[&str], tls: Option<(&Issued, &Authority)>) -> Self {
        // A free port may be taken by somebody else before the server binds it: then another one is tried.
        for _ in 0..5 {
            let (plain, secure) = (free_port(), free_port());
            let dir = tempfile::tempdir().unwrap();
            let mut command = Command::new("redis-server");
            command.args(["--port", &plain.to_string(), "--bind", "127.0.0.1", "--save", ""]);
            command.arg("--dir").arg(dir.path());
            if let Some((certificate, authority)) = tls {
                command.args(["--tls-port", &secure.to_string()]);
                command.arg("--tls-cert-file").arg(&certificate.cert);
                command.arg("--tls-key-file").arg(&certificate.key);
                command.arg("--tls-ca-cert-file").arg(authority.ca());
                command.args(["--tls-auth-clients", "no"]);
            }
            let child = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            let port = if tls.is_some() { secure } else { plain };
            let plain = SocketAddr::from(([127, 0, 0, 1], plain));
            let mut server =
                Self { child: child.expect("redis-server is installed"), port, plain, _dir: dir };
            if server.is_up() {
                return server;
            }
        }
        panic!("redis-server does not start");
    }

    fn is_up(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let port = SocketAddr::from(([127, 0, 0, 1], self.port));
            if StdTcpStream::connect(self.plain).is_ok() && StdTcpStream::connect(port).is_ok() {
                return true;
            }
            if !matches!(self.child.try_wait(), Ok(None)) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// Sends inline commands on one plain connection and gives their replies, each one line or one bulk.
    pub(super) fn tell(&self, commands: &[&str]) -> String {
        let mut stream = StdTcpStream::connect(self.plain).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut replies = String::new();
        for command in commands {
            stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.read_to_string(&mut replies).unwrap();
        replies
    }

    pub(super) fn plain_port(&self) -> u16 {
        self.plain.port()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A certificate authority of the test's own.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

/// A certificate and its key, as files.
pub(super) struct Issued {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, "the test's authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), issuer.pem()).unwrap();
        Self { issuer, dir }
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// A certificate for `names`, valid in the years from the first to the second.
    pub(super) fn issue(&self, file: &str, names: &[&str], years: (i32, i32)) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        // Another subject than the authority's: OpenSSL takes an issuer of the same name for a self-signature.
        parameters.distinguished_name.push(DnType::CommonName, file);
        parameters.not_before = date_time_ymd(years.0, 1, 1);
        parameters.not_after = date_time_ymd(years.1, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let path = |kind: &str| self.dir.path().join(format!("{file}.{kind}"));
        let issued = Issued { cert: path("crt"), key: path("key") };
        std::fs::write(&issued.cert, certificate.pem()).unwrap();
        std::fs::write(&issued.key, key.serialize_pem()).unwrap();
        issued
    }

    /// A certificate that is signed by itself, in this authority's directory.
    pub(super) fn self_signed(
        &self,
        file: &str,
        names: &[&str],
        is_authority: bool,
        years: (i32, i32),
    ) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, file);
        parameters.not_before = date_time_ymd(years.0, 1, 1);
        parameters.not_after = date_time_ymd(years.1, 1, 1);
        if is_authority {
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let path = |kind: &str| self.dir.path().join(format!("{file}.{kind}"));
        let issued = Issued { cert: path("crt"), key: path("key") };
        std::fs::write(&issued.cert, certificate.pem()).unwrap();
        std::fs::write(&issued.key, key.serialize_pem()).unwrap();
        issued
    }

    /// Options for a client that trusts this authority.
    pub(super) fn options(&self, port: u16) -> UpstreamOptions {
        let tls_options = TlsOptions { ca: Some(self.ca()), ..TlsOptions::default() };
        UpstreamOptions { tls: true, tls_options, ..options(port) }
    }
}

/// A listener that answers each connection's `n`th read with the `n`th reply and then stays silent.
///
/// An empty reply closes the connection instead; `first` replies at once, before anything was read.
pub(super) async fn fake(first: &'static [u8], replies: &'static [&'static [u8]]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(play(stream, first, replies));
        }
    });
    port
}

async fn play(mut stream: TcpStream, first: &'static [u8], replies: &'static [&'static [u8]]) {
    let mut scratch = [0; 4096];
    let _ = stream.write_all(first).await;
    for reply in replies {
        if matches!(stream.read(&mut scratch).await, Ok(0) | Err(_)) || reply.is_empty() {
            return;
        }
        let _ = stream.write_all(reply).await;
    }
    // Silent until the other side has gone.
    while matches!(stream.read(&mut scratch).await, Ok(1..)) {}
}

/// What was logged.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Everything that this thread logs until the guard is dropped.
pub(super) fn captured_log() -> (tracing::subscriber::DefaultGuard, Log) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    (tracing::subscriber::set_default(subscriber), log)
}
