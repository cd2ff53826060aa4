//! One client's socket: what the rest of this room needs of it, and nothing else.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::io::poll_read_buf;

use crate::upstream::{Keepalive, tune};

/// A client's socket. Split, because replies are written from the tasks of lanes while its own task waits to read.
#[derive(Debug)]
pub(super) struct ClientSocket {
    read: RefCell<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl ClientSocket {
    /// Takes over an accepted connection and sets it up: NODELAY, keepalive, `TCP_USER_TIMEOUT`.
    ///
    /// # Errors
    /// What the operating system says, when the peer is gone already.
    pub(super) fn new(stream: TcpStream, keepalive: &Keepalive, user_timeout: Duration) -> io::Result<Self> {
        tune(&stream, keepalive, user_timeout)?;
        let (read, write) = stream.into_split();
        Ok(Self { read: RefCell::new(read), write })
    }

    /// Reads once. `poll_read` rather than `try_read`: after a short read it knows that the socket is empty, which
    /// saves the second system call that would say so.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.read.borrow_mut()).poll_read(cx, buffer)
    }

    /// Reads once into the spare room of `buffer`. Returns how many bytes came, 0 at the end of file.
    pub(super) fn poll_read_buf(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        poll_read_buf(Pin::new(&mut *self.read.borrow_mut()), cx, buffer)
    }

    /// Writes what the kernel takes now.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.write.try_write(bytes)
    }

    /// Ready when the kernel may take bytes again.
    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write.as_ref().poll_write_ready(cx)
    }

    /// Returns when the peer has closed or the connection has failed, without reading anything: the way to notice a
    /// client that leaves while its unread requests lie in the kernel. (PRIORITY is the one interest that becomes
    /// ready by hang-up and not by ordinary data.)
    pub(super) async fn hangup(&self) {
        loop {
            match self.write.as_ref().ready(Interest::PRIORITY).await {
                Ok(ready) if !ready.is_read_closed() => tokio::task::yield_now().await,
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Whether the peer is known to be gone, asked of the kernel now.
    pub(super) fn is_gone(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        match SockRef::from(self.write.as_ref()).peek(&mut byte) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Closes both directions now, whoever still holds this socket.
    pub(super) fn close(&self) {
        // Fails only when the peer has closed already.
        let _ = SockRef::from(self.write.as_ref()).shutdown(std::net::Shutdown::Both);
    }

    /// How long written bytes may stay unacknowledged before the kernel gives the client up.
    pub(super) fn set_user_timeout(&self, timeout: Duration) {
        // A socket that refuses is one whose peer is gone: the next read says so.
        let _ = SockRef::from(self.write.as_ref()).set_tcp_user_timeout(Some(timeout));
    }
}
