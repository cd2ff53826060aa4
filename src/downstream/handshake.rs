//! TLS handshakes with clients: on a thread of their own, in bounded number and time, each failure named.
//!
//! A handshake costs the processor as much as a hundred commands do, and a flood of them comes at the worst moment:
//! when a whole fleet reconnects. So no worker makes any. Whoever is in one waits among those that have not logged in, where
//! the oldest give way ([`super::places`]), so that silent peers cannot keep anybody out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use rustls::{AlertDescription, CertificateError, Error as RustlsError, HandshakeKind, ServerConnection};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::links::Seat;
use super::places::Place;
use super::tls::ServerTls;
use crate::session::Endpoint;
use crate::telemetry::{ClientClose, client_closed};

/// A TLS record that begins a handshake.
const HANDSHAKE_RECORD: u8 = 0x16;
/// What a plain client gets to read.
const SPEAK_TLS: &[u8] =
    b"-ERR redbouncer: this port speaks TLS: use rediss://, or a port of listen.addresses\r\n";
/// How long a plain client may take to read it.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why there is no TLS session.
#[derive(Debug)]
struct Failure {
    reason: ClientClose,
    what: String,
}

impl Failure {
    fn new(reason: ClientClose, what: impl Into<String>) -> Self {
        Self { reason, what: what.into() }
    }
}

/// Makes the handshake of the peer that has `seat`, within `limit`. `None`: it failed, was counted and said, and the socket
/// is closed.
pub(super) async fn make(
    seat: Seat,
    mut stream: TcpStream,
    tls: &ServerTls,
    limit: Duration,
) -> Option<(TcpStream, Box<ServerConnection>, Seat)> {
    let gives_way = async {
        match seat.place().and_then(Place::stay) {
            Some(stay) if stay.is_given_up().await => {}
            _ => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        biased;
        () = gives_way => Err(Failure::new(ClientClose::TlsTimeout, "gave way to newer ones")),
        outcome = timeout(limit, shake_hands(&mut stream, tls)) => outcome.unwrap_or_else(|_| {
            Err(Failure::new(ClientClose::TlsTimeout, format!("unfinished after {limit:?}")))
        }),
    };
    let failure = match outcome {
        Ok(session) => {
            let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
            count(if resumed { "resumed" } else { "full" });
            return Some((stream, session, seat));
        }
        Err(failure) => failure,
    };
    count("failed");
    client_closed(failure.reason);
    say(&failure, seat.peer());
    if failure.reason == ClientClose::PlainOnTls {
        explain(stream).await;
    }
    None
}

fn say(failure: &Failure, peer: &Endpoint) {
    let (reason, what) = (failure.reason.label(), &failure.what);
    tracing::info!(%peer, reason, "client refused: TLS handshake: {what}");
}

fn count(outcome: &'static str) {
    counter!("redbouncer_tls_handshakes_total", "side" => "client", "outcome" => outcome).increment(1);
}

async fn shake_hands(stream: &mut TcpStream, tls: &ServerTls) -> Result<Box<ServerConnection>, Failure> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) => return Err(Failure::new(ClientClose::TlsFailed, "the client left before it began")),
        Ok(_) if first[0] != HANDSHAKE_RECORD => {
            let what = "the client speaks plain Redis; it needs rediss://, or a port of listen.addresses";
            return Err(Failure::new(ClientClose::PlainOnTls, what));
        }
        Ok(_) => {}
        Err(error) => return Err(failure_of(&error)),
    }
    let config = Arc::clone(&tls.config());
    let secured = TlsAcceptor::from(config).accept(stream).await.map_err(|error| failure_of(&error))?;
    Ok(Box::new(secured.into_inner().1))
}

/// Tells a plain client what it did. What it sent is read first: closing over unread bytes would reset the
/// connection and take the answer along.
async fn explain(mut stream: TcpStream) {
    let mut scratch = [0; 4096];
    let said = async {
        // As much as a pipeline's beginning; who sends more without reading does not read this either.
        for _ in 0..16 {
            if !matches!(stream.try_read(&mut scratch), Ok(1..)) {
                break;
            }
        }
        stream.write_all(SPEAK_TLS).await?;
        SockRef::from(&stream).shutdown(std::net::Shutdown::Write)?;
        for _ in 0..16 {
            stream.readable().await?;
            match stream.try_read(&mut scratch) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        io::Result::Ok(())
    };
    // One that does not read has not asked either.
    drop(timeout(LAST_WORDS, said).await);
}

fn failure_of(error: &io::Error) -> Failure {
    let reason = ClientClose::TlsFailed;
    let Some(wrong) = error.get_ref().and_then(|inner| inner.downcast_ref::<RustlsError>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Failure::new(reason, "the client left in the middle of it")
            }
            _ => Failure::new(reason, error.to_string()),
        };
    };
    let what = match wrong {
        RustlsError::NoCertificatesPresented => {
            "the client shows no certificate (listen.tls.client_auth is \"required\")".to_owned()
        }
        RustlsError::InvalidCertificate(why) => of_their_certificate(why),
        RustlsError::AlertReceived(alert) => of_their_alert(*alert),
        other => other.to_string(),
    };
    Failure::new(reason, what)
}

fn of_their_certificate(why: &CertificateError) -> String {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the client's certificate has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the client's certificate is not valid yet (is our clock right?)".to_owned()
        }
        CertificateError::UnknownIssuer => {
            "the client's certificate is from an authority that listen.tls.client_ca does not hold".to_owned()
        }
        // rustls's enum, open to more variants.
        other => format!("the client's certificate is not acceptable: {other}"),
    }
}

/// What a client says when it does not like our certificate. Libraries differ in how closely they say it.
fn of_their_alert(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::UnknownCA => "it does not know the authority: give it the CA of listen.tls.cert",
        AlertDescription::CertificateExpired => "it has expired: renew listen.tls.cert",
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
            "wrong name, unknown authority or out of its time: look at the client's own error"
        }
        // rustls's enum, open to alerts of later versions.
        other => return format!("the client broke off with alert {other:?}"),
    };
    format!("the client does not accept our certificate ({why}), alert {alert:?}")
}
