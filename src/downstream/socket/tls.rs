//! A client's socket with TLS: rustls between it and the wire, with the same poll-and-try face as the wire alone.
//!
//! rustls is used without a stream type around it, because replies are written from the tasks of lanes, where nobody
//! waits: what rustls takes is delivered, whether the kernel takes it now or, by the client's own task, later.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use rustls::ServerConnection;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::plain::PlainSocket;

/// A wire and the TLS session over it, whose handshake is done.
#[derive(Debug)]
pub(in crate::downstream) struct TlsSession {
    wire: PlainSocket,
    tls: RefCell<ServerConnection>,
    /// Something was read past the client's own task, which has to hear of it.
    read_ahead: Cell<bool>,
}

impl TlsSession {
    pub(in crate::downstream) fn new(wire: PlainSocket, tls: ServerConnection) -> Self {
        Self { wire, tls: RefCell::new(tls), read_ahead: Cell::new(false) }
    }

    pub(in crate::downstream) fn wire(&self) -> &PlainSocket {
        &self.wire
    }

    /// Reads once; nothing is the end: a farewell (close_notify), or the end of file without one. That may be
    /// somebody's cut, but a command is not run before its frame is whole, so nothing can be made of it.
    pub(in crate::downstream) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let tls = &mut *self.tls.borrow_mut();
        self.read_ahead.set(false);
        loop {
            match tls.reader().read(buffer.initialize_unfilled()) {
                Ok(came) => {
                    buffer.advance(came);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            match tls.read_tls(&mut Polled { wire: &self.wire, cx }) {
                Ok(_) => self.process(tls)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Reads once into the spare room of `buffer`. Returns how many bytes came, 0 at the end.
    pub(in crate::downstream) fn poll_read_buf(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        poll_read_buf(Pin::new(&mut Reader(self)), cx, buffer)
    }

    /// Decrypts what has come; what TLS itself has to say to it (an alert, a new key) is sent.
    fn process(&self, tls: &mut ServerConnection) -> io::Result<()> {
        let processed = tls.process_new_packets();
        // A wire that fails here fails again where its failure counts.
        let _ = self.write_out(tls);
        processed.map(|_| ()).map_err(|wrong| io::Error::new(io::ErrorKind::InvalidData, wrong))
    }

    /// Gives rustls what it takes now: nothing while earlier bytes wait for the kernel, so that what waits is bounded
    /// here and by the client's own buffer.
    ///
    /// # Errors
    /// `WouldBlock`, or the wire's error when not a byte of these has left.
    pub(in crate::downstream) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let tls = &mut *self.tls.borrow_mut();
        self.write_out(tls)?;
        let taken = tls.writer().write(bytes)?;
        let mut left = Counted { wire: &self.wire, written: 0 };
        while tls.wants_write() {
            match tls.write_tls(&mut left) {
                Ok(1..) => {}
                Ok(0) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock || left.written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    /// As [`Self::try_write`], whatever the runtime has heard of the kernel's buffer: what was taken before goes first, and
    /// counts for nothing here.
    pub(in crate::downstream) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let tls = &mut *self.tls.borrow_mut();
        let mut moved = 0;
        while tls.wants_write() {
            match tls.write_tls(&mut Now(&self.wire)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => moved += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && moved > 0 => break,
                Err(error) => return Err(error),
            }
        }
        tls.writer().write(bytes)
    }

    /// Whether rustls holds bytes that the kernel has not taken.
    pub(in crate::downstream) fn has_unflushed(&self) -> bool {
        self.tls.borrow().wants_write()
    }

    /// Ready when rustls holds nothing back.
    pub(in crate::downstream) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let outcome = self.write_out(&mut self.tls.borrow_mut());
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.wire.poll_writable(cx)?.is_pending() {
                        return Poll::Pending;
                    }
                }
                done => return Poll::Ready(done),
            }
        }
    }

    fn write_out(&self, tls: &mut ServerConnection) -> io::Result<()> {
        while tls.wants_write() {
            if tls.write_tls(&mut Counted { wire: &self.wire, written: 0 })? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Whether the peer is known to be gone. Its farewell is a record like any other, so what has come is read; see
    /// [`Self::has_read_ahead`].
    pub(in crate::downstream) fn is_gone(&self) -> bool {
        let tls = &mut *self.tls.borrow_mut();
        loop {
            let Ok(state) = tls.process_new_packets() else { return true };
            if state.peer_has_closed() {
                return true;
            }
            if state.plaintext_bytes_to_read() > 0 {
                // It has sent a command: it is there. More may not fit.
                return false;
            }
            match tls.read_tls(&mut Now(&self.wire)) {
                Ok(came) => {
                    self.read_ahead.set(true);
                    if came == 0 {
                        return true;
                    }
                }
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Whether [`Self::is_gone`] has read what the client's own task would have been woken for.
    pub(in crate::downstream) fn has_read_ahead(&self) -> bool {
        self.read_ahead.get()
    }

    /// Says farewell, as far as the kernel takes it, and closes both directions.
    pub(in crate::downstream) fn close(&self) {
        let tls = &mut *self.tls.borrow_mut();
        tls.send_close_notify();
        // A peer that is gone hears no farewell.
        let _ = self.write_out(tls);
        self.wire.close();
    }
}

/// For `poll_read_buf`, which alone may read into memory that is not initialised.
struct Reader<'a>(&'a TlsSession);

impl AsyncRead for Reader<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buffer)
    }
}

/// The wire as rustls reads it, from the client's own task.
struct Polled<'a, 'b> {
    wire: &'a PlainSocket,
    cx: &'a mut Context<'b>,
}

impl Read for Polled<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(buffer);
        match self.wire.poll_read(self.cx, &mut buffer) {
            Poll::Ready(done) => done.map(|()| buffer.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// The wire as rustls reads and writes it, from anywhere.
struct Now<'a>(&'a PlainSocket);

impl Write for Now<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.write_now(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Now<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_now(buffer)
    }
}

/// The wire as rustls writes it, and how much it took.
struct Counted<'a> {
    wire: &'a PlainSocket,
    written: usize,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.wire.try_write(bytes)?;
        self.written += written;
        Ok(written)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let written = self.wire.try_write_vectored(pieces)?;
        self.written += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
