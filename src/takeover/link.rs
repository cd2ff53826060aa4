//! The connection between the two processes: messages with a length before them, and at most one file descriptor each.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::STEP;
use super::error::TakeoverError;
use super::message::Message;

/// The longest message: a client with all its names, each byte written as a number.
const LONGEST: usize = 16 << 20;
/// Its length, and how many file descriptors come with it.
const HEAD: usize = 5;

/// One end of the connection.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    input: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Link {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, input: Vec::new(), descriptors: VecDeque::new() }
    }

    /// Sends a message, within [`STEP`](super::STEP).
    ///
    /// # Errors
    /// The other process is gone, or does not read.
    pub async fn send(&self, message: &Message) -> Result<(), TakeoverError> {
        self.send_with(message, None).await
    }

    /// Sends a message with a copy of a file descriptor.
    ///
    /// # Errors
    /// The other process is gone, or does not read.
    pub async fn send_with(
        &self,
        message: &Message,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), TakeoverError> {
        let body = serde_json::to_vec(message).map_err(io::Error::from)?;
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.push(u8::from(descriptor.is_some()));
        bytes.extend(body);
        let sent = timeout(STEP, self.send_all(&bytes, descriptor)).await;
        sent.map_err(|_| TakeoverError::TimedOut("room for more"))?.map_err(lost)
    }

    async fn send_all(&self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut sent = 0;
        while sent < bytes.len() {
            let rest = IoSlice::new(&bytes[sent..]);
            // It goes with the first byte, and only once.
            let attached = descriptor.filter(|_| sent == 0);
            sent +=
                self.stream.async_io(Interest::WRITABLE, || send_once(&self.stream, rest, attached)).await?;
        }
        Ok(())
    }

    /// The next message, within [`STEP`](super::STEP). `what` says what should come.
    ///
    /// # Errors
    /// The other process is gone, is silent, or refuses.
    pub async fn receive(&mut self, what: &'static str) -> Result<(Message, Option<OwnedFd>), TakeoverError> {
        let received = timeout(STEP, self.next()).await;
        match received.map_err(|_| TakeoverError::TimedOut(what))?? {
            (Message::Refused { reason }, _) => Err(TakeoverError::Refused(reason)),
            message => Ok(message),
        }
    }

    /// The next message, whenever it comes. Nothing is lost when this is dropped.
    ///
    /// # Errors
    /// The other process is gone, or has sent what is no message.
    pub async fn next(&mut self) -> Result<(Message, Option<OwnedFd>), TakeoverError> {
        loop {
            if let Some(message) = self.parse()? {
                return Ok(message);
            }
            if self.read().await.map_err(lost)? == 0 {
                return Err(TakeoverError::Closed);
            }
        }
    }

    fn parse(&mut self) -> Result<Option<(Message, Option<OwnedFd>)>, TakeoverError> {
        let Some((head, rest)) = self.input.split_first_chunk::<HEAD>() else { return Ok(None) };
        let [a, b, c, d, attached] = *head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > LONGEST {
            return Err(TakeoverError::Unexpected(format!("a message of {length} bytes")));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = serde_json::from_slice(body).map_err(|error| {
            TakeoverError::Unexpected(format!("a message that this version does not know ({error})"))
        })?;
        self.input.drain(..HEAD + length);
        let descriptor = match attached {
            0 => None,
            _ => Some(self.descriptors.pop_front().ok_or_else(|| {
                TakeoverError::Unexpected("a message without its file descriptor".to_owned())
            })?),
        };
        Ok(Some((message, descriptor)))
    }

    async fn read(&mut self) -> io::Result<usize> {
        let Self { stream, input, descriptors } = self;
        let mut buffer = [0; 8192];
        let came =
            stream.async_io(Interest::READABLE, || receive_once(stream, &mut buffer, descriptors)).await?;
        input.extend_from_slice(&buffer[..came]);
        Ok(came)
    }
}

fn send_once(
    stream: &UnixStream,
    bytes: IoSlice<'_>,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let attached: Vec<_> = descriptor.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !attached.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&attached));
    }
    Ok(sendmsg(stream.as_fd(), &[bytes], &mut control, SendFlags::NOSIGNAL)?)
}

fn receive_once(
    stream: &UnixStream,
    buffer: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(buffer)];
    let came = recvmsg(stream.as_fd(), &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(came.bytes)
}

/// A connection that has broken says no more than that the other process is gone.
fn lost(error: io::Error) -> TakeoverError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => TakeoverError::Closed,
        _ => TakeoverError::System(error),
    }
}
