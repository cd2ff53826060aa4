//! The bytes' way to a client, without TLS: TCP or a Unix socket.

use std::cell::RefCell;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream, tcp, unix};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

#[cfg(test)]
use crate::upstream::simulated::{End, Peek};
use crate::upstream::{Peer, PeerWatch, acknowledged};

/// How a peer was seen to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::downstream) enum Hangup {
    /// It sends nothing more (a FIN).
    Fin,
    /// The connection is no more.
    Reset,
}

/// The sending half. tokio shuts the connection down when it is dropped; this does not, because the connection may go on in
/// another process. [`PlainSocket::close`] does.
#[derive(Debug)]
pub(in crate::downstream) struct SendHalf<T: Forget>(Option<T>);

/// Dropped without shutting the connection down.
pub(in crate::downstream) trait Forget {
    fn forget(self);
}

impl Forget for tcp::OwnedWriteHalf {
    fn forget(self) {
        self.forget();
    }
}

impl Forget for unix::OwnedWriteHalf {
    fn forget(self) {
        self.forget();
    }
}

impl<T: Forget> Deref for SendHalf<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(half) => half,
            None => unreachable!("it is taken only when it is dropped"),
        }
    }
}

impl<T: Forget> Drop for SendHalf<T> {
    fn drop(&mut self) {
        if let Some(half) = self.0.take() {
            half.forget();
        }
    }
}

/// An open socket. Split, because replies are written from the tasks of lanes while the client's own task waits to
/// read.
#[derive(Debug)]
pub(in crate::downstream) enum PlainSocket {
    Tcp {
        read: RefCell<tcp::OwnedReadHalf>,
        write: SendHalf<tcp::OwnedWriteHalf>,
        watch: PeerWatch,
    },
    Unix {
        read: RefCell<unix::OwnedReadHalf>,
        write: SendHalf<unix::OwnedWriteHalf>,
    },
    /// In memory.
    #[cfg(test)]
    Simulated(End),
}

impl From<UnixStream> for PlainSocket {
    fn from(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self::Unix { read: RefCell::new(read), write: SendHalf(Some(write)) }
    }
}

impl PlainSocket {
    /// A TCP connection whose host counts as gone when it is silent for `patience` although it should have answered.
    pub(in crate::downstream) fn tcp(stream: TcpStream, patience: Duration) -> Self {
        let (read, write) = stream.into_split();
        let write = SendHalf(Some(write));
        Self::Tcp { read: RefCell::new(read), write, watch: PeerWatch::new(patience) }
    }

    fn raw(&self) -> SockRef<'_> {
        match self {
            Self::Tcp { write, .. } => SockRef::from(write.as_ref()),
            Self::Unix { write, .. } => SockRef::from(write.as_ref()),
            #[cfg(test)]
            Self::Simulated(_) => unreachable!("there is no socket in the simulation"),
        }
    }

    /// Reads once. `poll_read` rather than `try_read`: after a short read it knows that the socket is empty, which
    /// saves the second system call that would say so.
    pub(in crate::downstream) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp { read, .. } => Pin::new(&mut *read.borrow_mut()).poll_read(cx, buffer),
            Self::Unix { read, .. } => Pin::new(&mut *read.borrow_mut()).poll_read(cx, buffer),
            #[cfg(test)]
            Self::Simulated(end) => end.poll_recv(cx, buffer),
        }
    }

    /// Reads once into the spare room of `buffer`. Returns how many bytes came, 0 at the end of file.
    pub(in crate::downstream) fn poll_read_buf(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp { read, .. } => poll_read_buf(Pin::new(&mut *read.borrow_mut()), cx, buffer),
            Self::Unix { read, .. } => poll_read_buf(Pin::new(&mut *read.borrow_mut()), cx, buffer),
            #[cfg(test)]
            Self::Simulated(end) => poll_read_buf(Pin::new(&mut end.reader()), cx, buffer),
        }
    }

    /// Reads the data in the kernel now, regardless of the runtime's readiness.
    pub(in crate::downstream) fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        #[cfg(test)]
        if let Self::Simulated(end) = self {
            return end.try_recv(buffer);
        }
        (&*self.raw()).read(buffer)
    }

    /// Writes what the kernel takes now, whatever the runtime has heard of it: the kernel calls a socket writable only
    /// when a third of its buffer is free.
    pub(in crate::downstream) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        if let Self::Tcp { watch, .. } = self {
            watch.wrote();
        }
        #[cfg(test)]
        if let Self::Simulated(end) = self {
            return end.try_send(bytes);
        }
        (&*self.raw()).write(bytes)
    }

    /// Writes as much as the kernel accepts now.
    pub(in crate::downstream) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp { write, watch, .. } => {
                watch.wrote();
                write.try_write(bytes)
            }
            Self::Unix { write, .. } => write.try_write(bytes),
            #[cfg(test)]
            Self::Simulated(end) => end.try_send(bytes),
        }
    }

    /// As [`Self::try_write`], several pieces in one system call.
    pub(in crate::downstream) fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp { write, watch, .. } => {
                watch.wrote();
                write.try_write_vectored(pieces)
            }
            Self::Unix { write, .. } => write.try_write_vectored(pieces),
            #[cfg(test)]
            Self::Simulated(end) => end.try_send(pieces.first().map_or(&[], |piece| piece)),
        }
    }

    /// Ready when the kernel may take bytes again.
    pub(in crate::downstream) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp { write, .. } => write.as_ref().poll_write_ready(cx),
            Self::Unix { write, .. } => write.as_ref().poll_write_ready(cx),
            #[cfg(test)]
            Self::Simulated(end) => end.poll_send_ready(cx),
        }
    }

    async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Self::Tcp { write, .. } => write.as_ref().ready(interest).await,
            Self::Unix { write, .. } => write.as_ref().ready(interest).await,
            #[cfg(test)]
            Self::Simulated(_) => unreachable!("there is no socket in the simulation"),
        }
    }

    /// Returns when the peer has closed or the connection has failed, without reading anything: the way to notice a
    /// client that leaves while its unread requests lie in the kernel. (PRIORITY is the one interest that becomes
    /// ready by hang-up and not by ordinary data.)
    pub(in crate::downstream) async fn hangup(&self) -> Hangup {
        #[cfg(test)]
        if let Self::Simulated(end) = self {
            let is_reset = std::future::poll_fn(|cx| end.poll_hangup(cx)).await;
            return if is_reset { Hangup::Reset } else { Hangup::Fin };
        }
        loop {
            match self.ready(Interest::PRIORITY | Interest::ERROR).await {
                Ok(ready) if ready.is_error() => return Hangup::Reset,
                Ok(ready) if ready.is_read_closed() => return Hangup::Fin,
                Ok(_) => tokio::task::yield_now().await,
                Err(_) => return Hangup::Reset,
            }
        }
    }

    /// The address that the client has connected to; none of a Unix socket, or when the connection is gone.
    pub(in crate::downstream) fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp { write, .. } => write.local_addr().ok(),
            Self::Unix { .. } => None,
            #[cfg(test)]
            Self::Simulated(_) => None,
        }
    }

    /// Whether the peer is known to be lost, according to the kernel now.
    pub(in crate::downstream) fn is_gone(&self) -> bool {
        #[cfg(test)]
        if let Self::Simulated(end) = self {
            return matches!(end.peek(), Peek::End | Peek::Error);
        }
        let mut byte = [MaybeUninit::uninit()];
        match self.raw().peek(&mut byte) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// The connection once more, for another process.
    pub(in crate::downstream) fn duplicate(&self) -> Option<OwnedFd> {
        match self {
            Self::Tcp { write, .. } => (**write).as_ref().as_fd().try_clone_to_owned().ok(),
            Self::Unix { write, .. } => (**write).as_ref().as_fd().try_clone_to_owned().ok(),
            #[cfg(test)]
            Self::Simulated(_) => None,
        }
    }

    /// Closes both directions now, even if other references exist.
    pub(in crate::downstream) fn close(&self) {
        if let Self::Tcp { write, watch, .. } = self {
            watch.leave_to_kernel(write.as_ref());
        }
        #[cfg(test)]
        if let Self::Simulated(end) = self {
            return end.close();
        }
        // Fails only when the peer has closed already.
        let _ = self.raw().shutdown(std::net::Shutdown::Both);
    }

    /// How many bytes the client's host has acknowledged, where that can be known.
    pub(in crate::downstream) fn acknowledged(&self) -> Option<u64> {
        match self {
            Self::Tcp { write, .. } => acknowledged(write.as_ref()),
            Self::Unix { .. } => None,
            #[cfg(test)]
            Self::Simulated(end) => Some(end.acknowledged()),
        }
    }

    /// Whether the client's host has vanished with replies under way; asks the kernel only if there are any. `heard`: bytes
    /// have come from it since the last look.
    pub(in crate::downstream) fn has_vanished(&self, heard: bool, now: Instant) -> bool {
        match self {
            Self::Tcp { watch, .. } if heard => {
                watch.heard();
                false
            }
            Self::Tcp { write, watch, .. } => watch.look(write.as_ref(), now) == Peer::Vanished,
            // The peer is on this host: its end is known at once.
            Self::Unix { .. } => false,
            // The simulated network detects the loss itself.
            #[cfg(test)]
            Self::Simulated(_) => false,
        }
    }
}
