//! `redbouncer reload`: PROXY RELOAD, sent to a running proxy as any client would send it.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::BytesMut;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::downstream::UNIX;
use crate::resp::{self, ReplyScanner, encode};
use crate::telemetry::printable;

/// How long connecting, and each answer, may take. A reload reads files, which may lie on a slow disk.
const PATIENCE: Duration = Duration::from_secs(10);
/// The password towards the proxy, as `redis-cli` knows it.
const PASSWORD: &str = "REDISCLI_AUTH";

/// Why nothing was reloaded, or not for certain.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    /// The configuration names no listener that can be asked.
    #[error("the proxy cannot be asked: listen.addresses has no address with a port")]
    NoListener,
    /// It cannot be reached, or does not answer.
    #[error("{address}: {source}")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Its own words.
    #[error("{0}")]
    Refused(String),
}

trait Way: Read + Write {}
impl<T: Read + Write> Way for T {}

/// Asks the proxy that listens where `config` says. Returns the lines of its answer.
pub(super) fn run(config: &Config) -> Result<String, ReloadError> {
    let addresses = &config.listen.addresses;
    let address = addresses.iter().find(|address| !address.ends_with(":0")).ok_or(ReloadError::NoListener)?;
    let unreachable = |source| ReloadError::Unreachable { address: address.clone(), source };
    let mut way = connect(address).map_err(unreachable)?;
    if let Some(password) =
        std::env::var(PASSWORD).ok().filter(|password| !password.is_empty()).map(Zeroizing::new)
    {
        ask(&mut *way, &[b"AUTH", password.as_bytes()]).map_err(unreachable)??;
    }
    ask(&mut *way, &[b"PROXY", b"RELOAD"]).map_err(unreachable)?
}

fn connect(address: &str) -> io::Result<Box<dyn Way>> {
    if let Some(path) = address.strip_prefix(UNIX) {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        return Ok(Box::new(stream));
    }
    // Whoever listens everywhere listens here.
    let here = address.replacen("0.0.0.0:", "127.0.0.1:", 1).replacen("[::]:", "[::1]:", 1);
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for at in here.to_socket_addrs()? {
        match TcpStream::connect_timeout(&at, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(Box::new(stream));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Sends one command and reads its reply: the lines of an array or text, or the words of an error.
fn ask(way: &mut dyn Way, command: &[&[u8]]) -> io::Result<Result<String, ReloadError>> {
    way.write_all(&encode::one_command(command))?;
    let (mut scanner, mut reply, mut chunk) = (ReplyScanner::default(), BytesMut::new(), [0; 4096]);
    loop {
        let came = way.read(&mut chunk)?;
        if came == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let step = scanner.step(&chunk[..came]).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        reply.extend_from_slice(&chunk[..step.consumed]);
        if step.complete.is_some() {
            break;
        }
    }
    if let Some(text) = resp::error_text(&reply) {
        return Ok(Err(ReloadError::Refused(printable(text))));
    }
    let lines = resp::elements(&reply).into_iter().flatten().filter_map(resp::bulk);
    Ok(Ok(lines.map(|line| format!("{}\n", printable(line))).collect()))
}
