//! TLS handshakes with clients: on a thread of their own, in bounded number and time, each failure named.
//!
//! A handshake costs the processor as much as a hundred commands do, and a flood of them comes at the worst moment:
//! when a whole fleet reconnects. So no worker makes any. Whoever is in one waits among those that have not logged in, where
//! the oldest give way ([`crate::downstream::admission`]), so that silent peers cannot keep anybody out.

use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rustls::server::Acceptor;
use rustls::{AlertDescription, CertificateError, Error as RustlsError, HandshakeKind, ServerConnection};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;

use super::tls::ServerTls;
use crate::downstream::admission::AdmissionGuard;
use crate::downstream::workers::WorkerSlot;
use crate::pool::Turns;
use crate::session::Endpoint;
use crate::telemetry::{ClientClose, Handshake, Side, client_closed, handshake_ended};

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
pub(in crate::downstream) async fn make(
    seat: WorkerSlot,
    mut stream: TcpStream,
    tls: &ServerTls,
    turns: &Arc<Turns>,
    limit: Duration,
) -> Option<(TcpStream, Box<ServerConnection>, WorkerSlot)> {
    let gives_way = async {
        match seat.place().and_then(AdmissionGuard::stay) {
            Some(stay) if stay.is_given_up().await => {}
            _ => std::future::pending().await,
        }
    };
    let address = seat.peer().host();
    let outcome = tokio::select! {
        biased;
        () = gives_way => Err(Failure::new(ClientClose::TlsTimeout, "gave way to newer ones")),
        outcome = timeout(limit, shake_hands(&mut stream, tls, (turns, address))) => outcome.unwrap_or_else(|_| {
            Err(Failure::new(ClientClose::TlsTimeout, format!("timed out after {limit:?}")))
        }),
    };
    let failure = match outcome {
        Ok(session) => {
            let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
            let outcome = if resumed { Handshake::Resumed } else { Handshake::Full };
            handshake_ended(Side::Client, outcome);
            return Some((stream, session, seat));
        }
        Err(failure) => failure,
    };
    handshake_ended(Side::Client, Handshake::Failed);
    client_closed(failure.reason);
    say(&failure, seat.peer());
    if failure.reason == ClientClose::PlainOnTls {
        explain(stream).await;
    }
    None
}

/// Begins `work` when it is the turn of `address`, and gives the turn back after its first step, so that no peer that is waited
/// for holds it.
async fn begun_in_turn<T, F: Future<Output = T>>(
    turns: &Arc<Turns>,
    address: Option<IpAddr>,
    work: impl FnOnce() -> F,
) -> T {
    let turn = turns.turn(0, address).await;
    // All who are ready queue before the first step is made, or the order would be theirs.
    tokio::task::yield_now().await;
    let mut work = pin!(work());
    let step = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
    drop(turn);
    match step {
        Poll::Ready(done) => done,
        Poll::Pending => work.await,
    }
}

fn say(failure: &Failure, peer: &Endpoint) {
    let (reason, what) = (failure.reason.label(), &failure.what);
    tracing::info!(%peer, reason, "client refused: TLS handshake: {what}");
}

/// What costs is the answer to the peer's first message: that is made in turns.
async fn shake_hands(
    stream: &mut TcpStream,
    tls: &ServerTls,
    (turns, address): (&Arc<Turns>, Option<IpAddr>),
) -> Result<Box<ServerConnection>, Failure> {
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
    let greeted = LazyConfigAcceptor::new(Acceptor::default(), stream).await;
    let greeted = greeted.map_err(|error| failure_of(&error))?;
    let secured = begun_in_turn(turns, address, || greeted.into_stream(config)).await;
    let secured = secured.map_err(|error| failure_of(&error))?;
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// All are ready at the same time.
    #[tokio::test]
    async fn an_address_with_very_many_handshakes_delays_another_s_by_one() {
        let turns = Arc::new(Turns::default());
        let steps = Rc::new(RefCell::new(Vec::new()));
        let local = tokio::task::LocalSet::new();
        for number in 0..1_001_u32 {
            let (turns, steps) = (Arc::clone(&turns), Rc::clone(&steps));
            let host = if number == 1_000 { 2 } else { 1 };
            local.spawn_local(async move {
                let work = || async {
                    steps.borrow_mut().push(host);
                    tokio::task::yield_now().await;
                };
                begun_in_turn(&turns, Some([10, 0, 0, host].into()), work).await;
            });
        }
        local.await;
        let steps = steps.borrow();
        assert_eq!(steps.len(), 1_001);
        let at = steps.iter().position(|host| *host == 2);
        assert!(at.is_some_and(|at| at < 5), "it came after {at:?} others");
    }
}
