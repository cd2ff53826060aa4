//! One client's socket, with the operations that clients need.
//!
//! An enum rather than a boxed trait object, so that the plain case costs one predictable branch.

mod plain;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};

use bytes::BytesMut;
use rustls::ServerConnection;
use tokio::io::ReadBuf;
use tokio::time::Instant;

use tls::TlsSession;

pub(in crate::downstream) use plain::{Hangup, PlainSocket};

/// A client's socket.
#[derive(Debug)]
pub(in crate::downstream) enum ClientSocket {
    /// TCP or a Unix socket as it is.
    Plain(PlainSocket),
    /// With TLS; boxed, because its state is some kilobytes and the plain case should not carry them.
    Tls(Box<TlsSession>),
}

impl ClientSocket {
    /// A socket whose handshake is done.
    pub(in crate::downstream) fn secured(wire: PlainSocket, tls: ServerConnection) -> Self {
        Self::Tls(Box::new(TlsSession::new(wire, tls)))
    }

    fn wire(&self) -> &PlainSocket {
        match self {
            Self::Plain(wire) => wire,
            Self::Tls(secured) => secured.wire(),
        }
    }

    /// How a client came, for listings.
    pub(in crate::downstream) fn transport(&self) -> &'static str {
        match self {
            Self::Plain(PlainSocket::Tcp { .. }) => "tcp",
            Self::Plain(PlainSocket::Unix { .. }) => "unix",
            #[cfg(test)]
            Self::Plain(PlainSocket::Simulated(_)) => "tcp",
            Self::Tls(_) => "tls",
        }
    }

    /// The address that the client has connected to; none of a Unix socket, or when the connection is gone.
    pub(in crate::downstream) fn local(&self) -> Option<SocketAddr> {
        self.wire().local()
    }

    /// Reads once.
    pub(in crate::downstream) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(wire) => wire.poll_read(cx, buffer),
            Self::Tls(secured) => secured.poll_read(cx, buffer),
        }
    }

    /// Reads once into the spare room of `buffer`. Returns how many bytes came, 0 at the end of file.
    pub(in crate::downstream) fn poll_read_buf(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(wire) => wire.poll_read_buf(cx, buffer),
            Self::Tls(secured) => secured.poll_read_buf(cx, buffer),
        }
    }

    /// Writes as much as the kernel, or TLS, accepts now.
    pub(in crate::downstream) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(wire) => wire.try_write(bytes),
            Self::Tls(secured) => secured.try_write(bytes),
        }
    }

    /// As [`Self::try_write`], whatever the runtime has heard of the kernel's buffer.
    pub(in crate::downstream) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(wire) => wire.write_now(bytes),
            Self::Tls(secured) => secured.write_now(bytes),
        }
    }

    /// Whether bytes were taken that the kernel does not have yet: the client's own task has to flush them.
    pub(in crate::downstream) fn has_unflushed(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(secured) => secured.has_unflushed(),
        }
    }

    /// Ready when nothing is held back.
    pub(in crate::downstream) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(secured) => secured.poll_flush(cx),
        }
    }

    /// Ready when the kernel may take bytes again.
    pub(in crate::downstream) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire().poll_writable(cx)
    }

    /// Returns when the peer has closed or the connection has failed, without reading anything.
    pub(in crate::downstream) async fn hangup(&self) -> Hangup {
        self.wire().hangup().await
    }

    /// Whether the peer is known to be lost, according to the kernel now.
    pub(in crate::downstream) fn is_gone(&self) -> bool {
        match self {
            Self::Plain(wire) => wire.is_gone(),
            Self::Tls(secured) => secured.is_gone(),
        }
    }

    /// Whether [`Self::is_gone`] has read what the client's own task would have been woken for.
    pub(in crate::downstream) fn has_read_ahead(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(secured) => secured.has_read_ahead(),
        }
    }

    /// Whether it has no TLS session.
    pub(in crate::downstream) fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// The connection once more, for another process; none with TLS, whose keys cannot go along.
    pub(in crate::downstream) fn duplicate(&self) -> Option<OwnedFd> {
        match self {
            Self::Plain(wire) => wire.duplicate(),
            Self::Tls(_) => None,
        }
    }

    /// Closes both directions now, even if other references exist.
    pub(in crate::downstream) fn close(&self) {
        match self {
            Self::Plain(wire) => wire.close(),
            Self::Tls(secured) => secured.close(),
        }
    }

    /// How many bytes the client's host has acknowledged, where that can be known.
    pub(in crate::downstream) fn acknowledged(&self) -> Option<u64> {
        self.wire().acknowledged()
    }

    /// Whether the client's host has vanished with replies under way ([`PlainSocket::has_vanished`]).
    pub(in crate::downstream) fn has_vanished(&self, heard: bool, now: Instant) -> bool {
        self.wire().has_vanished(heard, now)
    }
}
