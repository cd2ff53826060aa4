//! A byte stream to the server: TCP, or TLS over it.
//!
//! An enum rather than a boxed trait object, so that the plain case, by far the more frequent one inside a private
//! network, costs one predictable branch.
//!
//! Whoever waits for a stream to be readable or writable is told, too, when the server's host is gone ([`PeerWatch`]):
//! the wait fails with [`io::ErrorKind::TimedOut`]. For that a timer runs while something is not acknowledged.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Buf;
use rustls::ClientConnection;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::client::TlsStream;

#[cfg(test)]
use super::simulated::{End, Peek};
use super::{Peer, PeerWatch};

/// How often a connection with unacknowledged data is checked.
const LOOK: Duration = Duration::from_secs(1);

/// An open connection to the server.
///
/// With TLS, written bytes may lie in rustls until [`poll_flush`](AsyncWrite::poll_flush) is ready.
#[derive(Debug)]
pub struct UpstreamStream {
    way: Way,
    watch: PeerWatch,
    /// Made at the first write that is waited for.
    timer: Option<Pin<Box<Sleep>>>,
    /// The timer runs, and wakes this task.
    armed: Option<Waker>,
    /// Something was written by [`UpstreamStream::poll_write_all`] since its last flush that succeeded.
    unflushed: bool,
}

#[derive(Debug)]
enum Way {
    /// `redis://`
    Plain(TcpStream),
    /// `rediss://`; boxed, because the TLS state is some kilobytes and the plain case should not carry them.
    Tls(Box<TlsStream<TcpStream>>),
    /// In memory.
    #[cfg(test)]
    Simulated(End),
}

impl Way {
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Tls(tls) => Some(tls.get_ref().0),
            #[cfg(test)]
            Self::Simulated(_) => None,
        }
    }
}

impl UpstreamStream {
    /// `redis://`. Its host counts as lost after `patience` without an expected acknowledgement.
    pub fn plain(tcp: TcpStream, patience: Duration) -> Self {
        Self::by(Way::Plain(tcp), patience)
    }

    /// `rediss://`, after the handshake.
    pub fn tls(tls: TlsStream<TcpStream>, patience: Duration) -> Self {
        Self::by(Way::Tls(Box::new(tls)), patience)
    }

    /// A connection of the simulated network.
    #[cfg(test)]
    pub(super) fn simulated(end: End) -> Self {
        Self::by(Way::Simulated(end), Duration::MAX)
    }

    fn by(way: Way, patience: Duration) -> Self {
        Self { way, watch: PeerWatch::new(patience), timer: None, armed: None, unflushed: false }
    }

    /// The socket underneath, for its options; not for reading or writing.
    pub(super) fn tcp(&self) -> Option<&TcpStream> {
        self.way.tcp()
    }

    /// Completes when the server's host is lost. Reading and writing include this check.
    pub fn poll_vanished(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if !self.watch.is_needed() {
            return Poll::Pending;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK)));
        match &self.armed {
            // Every wait for the socket comes by here, and to poll a timer costs more than to ask whether it has run out.
            Some(task) if !timer.is_elapsed() && task.will_wake(cx.waker()) => return Poll::Pending,
            Some(_) => {}
            None => timer.as_mut().reset(Instant::now() + LOOK),
        }
        loop {
            if timer.as_mut().poll(cx).is_pending() {
                self.armed = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let Some(tcp) = self.way.tcp() else { return Poll::Pending };
            match self.watch.look(tcp, Instant::now()) {
                Peer::Vanished => return Poll::Ready(io::ErrorKind::TimedOut.into()),
                Peer::Waited => timer.as_mut().reset(Instant::now() + LOOK),
                Peer::Settled => {
                    self.armed = None;
                    return Poll::Pending;
                }
            }
        }
    }

    /// The result of waiting for the socket, or the loss of the peer.
    fn unless_vanished<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        match polled {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => self.poll_vanished(cx).map(Err),
        }
    }

    fn wrote(&mut self, polled: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // The simulated network loses a connection by itself when the server's host is gone.
        if matches!(polled, Poll::Ready(Ok(1..))) && self.tcp().is_some() {
            self.watch.wrote();
        }
        self.unless_vanished(polled, cx)
    }

    /// The server's certificates as DER, its own first, then what it showed of the chain; none without TLS.
    pub fn certificates(&self) -> Vec<Vec<u8>> {
        let shown = self.session().and_then(|session| session.peer_certificates()).unwrap_or_default();
        shown.iter().map(|certificate| certificate.to_vec()).collect()
    }

    /// The TLS session; none without TLS.
    pub(super) fn session(&self) -> Option<&ClientConnection> {
        match &self.way {
            Way::Plain(_) => None,
            Way::Tls(tls) => Some(tls.get_ref().1),
            #[cfg(test)]
            Way::Simulated(_) => None,
        }
    }

    /// Writes all of `out` and has it sent. Ready when nothing of it is left here, in rustls neither: with TLS what was
    /// written may lie there until a flush is ready, however many turns that takes.
    ///
    /// # Errors
    /// What the socket says ([`Self::is_to_be_read_out`]); [`io::ErrorKind::WriteZero`] where it takes nothing.
    pub fn poll_write_all(&mut self, cx: &mut Context<'_>, out: &mut impl Buf) -> Poll<io::Result<()>> {
        self.unflushed |= out.has_remaining();
        while out.has_remaining() {
            match ready!(Pin::new(&mut *self).poll_write(cx, out.chunk()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => out.advance(sent),
            }
        }
        if self.unflushed && self.is_buffered() {
            ready!(Pin::new(&mut *self).poll_flush(cx))?;
        }
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Whether written bytes may wait for a flush.
    pub fn is_buffered(&self) -> bool {
        matches!(self.way, Way::Tls(_))
    }

    /// Whether the server has sent nothing and has not closed: asked of the kernel, without reading.
    ///
    /// TLS hides what it has decrypted already, but that was read for somebody and is therefore not idle; records that
    /// come on an idle connection (a close_notify, a session ticket) are seen here as data.
    pub fn is_quiet(&self) -> bool {
        #[cfg(test)]
        if let Way::Simulated(end) = &self.way {
            return end.peek() == Peek::Nothing;
        }
        let mut byte = [MaybeUninit::uninit()];
        self.tcp().is_some_and(|tcp| {
            SockRef::from(tcp).peek(&mut byte).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        })
    }

    /// Whether a write that failed with `error` found the connection closed by the server. What the server sent before lies in
    /// the kernel and is read as always (`tcp_reset` in Linux keeps the receive queue), and then the end.
    pub fn is_to_be_read_out(error: &io::Error) -> bool {
        matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
    }

    /// Makes the coming drop send a reset instead of a FIN: nothing of the connection stays behind here.
    pub fn reset_on_drop(&self) {
        #[cfg(test)]
        if let Way::Simulated(end) = &self.way {
            end.reset_on_drop();
        }
        if let Some(tcp) = self.tcp() {
            // Fails only for a closed socket.
            let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for UpstreamStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = match &mut this.way {
            Way::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Way::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            #[cfg(test)]
            Way::Simulated(end) => Pin::new(end).poll_read(cx, buf),
        };
        this.unless_vanished(polled, cx)
    }
}

impl AsyncWrite for UpstreamStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = match &mut this.way {
            Way::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Way::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
            #[cfg(test)]
            Way::Simulated(end) => Pin::new(end).poll_write(cx, buf),
        };
        this.wrote(polled, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = match &mut this.way {
            Way::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Way::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
            #[cfg(test)]
            Way::Simulated(end) => Pin::new(end).poll_write_vectored(cx, bufs),
        };
        this.wrote(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.way {
            Way::Plain(tcp) => tcp.is_write_vectored(),
            Way::Tls(tls) => tls.is_write_vectored(),
            #[cfg(test)]
            Way::Simulated(end) => end.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = match &mut this.way {
            Way::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Way::Tls(tls) => Pin::new(tls).poll_flush(cx),
            #[cfg(test)]
            Way::Simulated(end) => Pin::new(end).poll_flush(cx),
        };
        this.unless_vanished(polled, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().way {
            Way::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Way::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            #[cfg(test)]
            Way::Simulated(end) => Pin::new(end).poll_shutdown(cx),
        }
    }
}
