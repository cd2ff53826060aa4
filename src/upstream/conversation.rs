//! The login's I/O: writes what the [`LoginMachine`] asks for and feeds it whole replies.
//!
//! Bytes are counted closely here, because the connection goes to its users with nothing pending: a byte that
//! arrives before it was asked for, or after the last reply, ends the login.

use std::net::SocketAddr;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroize;

use super::capabilities::Capability;
use super::error::{DialError, Phase};
use super::login::{LoggedIn, Login, LoginMachine, Progress};
use crate::resp::{ReplyKind, ReplyScanner};

/// More than any login needs; a server that sends more is none.
const MAX_REPLY: usize = 1024 * 1024;

/// How far a login got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is over.
    Done,
    /// The server is loading its data.
    Loading,
}

/// A login on one connection.
#[derive(Debug)]
pub(super) struct Conversation<'a, S> {
    stream: S,
    peer: SocketAddr,
    machine: LoginMachine<'a>,
    scanner: ReplyScanner,
    /// Bytes of the reply in progress that the scanner has seen.
    scanned: usize,
    input: BytesMut,
    output: BytesMut,
    /// Something has arrived.
    answered: bool,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Conversation<'a, S> {
    pub(super) fn start(stream: S, peer: SocketAddr, login: &'a Login, known: Vec<Capability>) -> Self {
        // Large enough not to grow: a buffer that moves leaves its old bytes, the password, behind.
        let identity = &login.identity;
        let secret = identity.password.as_ref().map_or(0, |p| p.expose().len());
        let user = identity.username.as_ref().map_or(0, String::len);
        let mut output = BytesMut::with_capacity(512 + secret + user + login.name.len());
        let machine = LoginMachine::start(login, known, &mut output);
        Self {
            stream,
            peer,
            machine,
            scanner: ReplyScanner::default(),
            scanned: 0,
            input: BytesMut::new(),
            output,
            answered: false,
        }
    }

    /// Writes and reads until the login is over or has to pause.
    pub(super) async fn proceed(&mut self) -> Result<Step, DialError> {
        loop {
            let sent = self.send().await;
            let received = self.exchange().await;
            let progress = match (sent, received) {
                // At its maxclients a server writes its error and closes before it has read anything: our write may
                // fail although an answer lies there.
                (Err(lost), Err(answer)) => return Err(if answer.is_lost() { lost } else { answer }),
                (Err(lost), Ok(_)) => return Err(lost),
                (Ok(()), received) => received?,
            };
            match progress {
                Progress::Read | Progress::Write => {}
                Progress::Pause => return Ok(Step::Loading),
                Progress::Done => return Ok(Step::Done),
            }
        }
    }

    /// After a pause for loading.
    pub(super) fn resume(&mut self) {
        self.machine.resume(&mut self.output);
    }

    /// Ends the waiting for a loading server: `Ok` if the connection is good enough as it is.
    pub(super) fn give_up(&mut self) -> Result<(), DialError> {
        self.machine.give_up()
    }

    /// The connection of a login that has failed.
    pub(super) fn into_stream(self) -> S {
        self.stream
    }

    pub(super) fn finish(self) -> (S, LoggedIn) {
        (self.stream, self.machine.finish())
    }

    async fn send(&mut self) -> Result<(), DialError> {
        let sent = match self.stream.write_all(&self.output).await {
            Ok(()) => self.stream.flush().await,
            Err(error) => Err(error),
        };
        self.output.as_mut().zeroize();
        self.output.clear();
        sent.map_err(|e| DialError::from_io(Phase::Login, self.peer, &e))
    }

    /// Reads the replies to what was written, until there is something to do about them.
    async fn exchange(&mut self) -> Result<Progress, DialError> {
        loop {
            while let Some((len, kind)) = self.whole_reply()? {
                let progress = self.machine.on_frame(&self.input[..len], kind, &mut self.output)?;
                self.input.advance(len);
                match progress {
                    Progress::Read => {}
                    Progress::Write | Progress::Pause | Progress::Done if !self.input.is_empty() => {
                        return Err(DialError::protocol("more bytes than it was asked for"));
                    }
                    Progress::Write | Progress::Pause | Progress::Done => return Ok(progress),
                }
            }
            self.receive().await?;
        }
    }

    /// The length and kind of the reply at the head of the input, if it is whole.
    fn whole_reply(&mut self) -> Result<Option<(usize, ReplyKind)>, DialError> {
        let news = self.input.get(self.scanned..).unwrap_or_default();
        let step = self.scanner.step(news).map_err(|e| DialError::protocol(&e.to_string()))?;
        self.scanned += step.consumed;
        let Some(kind) = step.complete else {
            return if self.scanned > MAX_REPLY {
                Err(DialError::protocol("a login reply without end"))
            } else {
                Ok(None)
            };
        };
        Ok(Some((std::mem::take(&mut self.scanned), kind)))
    }

    async fn receive(&mut self) -> Result<(), DialError> {
        match self.stream.read_buf(&mut self.input).await {
            Ok(0) => Err(DialError::Closed { phase: Phase::Login, peer: self.peer, answered: self.answered }),
            Ok(_) => {
                // TLS records begin with their type: 21 an alert, 22 a handshake. RESP has no such markers.
                if !self.answered && matches!(self.input.first(), Some(0x15 | 0x16)) {
                    return Err(DialError::SpeaksTls { peer: self.peer });
                }
                self.answered = true;
                Ok(())
            }
            Err(error) => Err(match DialError::from_io(Phase::Login, self.peer, &error) {
                DialError::Closed { phase, peer, .. } => {
                    DialError::Closed { phase, peer, answered: self.answered }
                }
                other => other, // everything else says the same with or without an answer before
            }),
        }
    }
}
