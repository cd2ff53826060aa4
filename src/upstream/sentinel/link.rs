//! The connection to one Sentinel: dialled again whenever it is lost, asked in every round, listened to in between.

use std::io::{self, ErrorKind};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::answer::{self, Answer, QUESTIONS, SWITCHED, Unusable};
use super::council::MemberState;
use crate::resp::{Protocol, ReplyKind, ReplyScanner, encode};
use crate::upstream::{Backoff, Connector, DialError, HostPort, Login, UpstreamOptions, UpstreamStream};

/// On one dial, and on one answer: Sentinels answer at once, and there are others.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Between two questions to one without RESP3: what it publishes would need a second connection, and is asked for instead.
const WITHOUT_PUSHES: Duration = Duration::from_secs(1);
/// Between two dials of one that is away.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];
/// Longer replies are no Sentinel's.
const MAX_REPLY: usize = 1 << 20;

/// An event from one Sentinel.
#[derive(Debug)]
pub(super) enum Report {
    /// It has answered the questions of a round.
    Answered(HostPort, u64, Answer),
    /// It could not be asked in a round.
    Failed(HostPort, u64, MemberState, String),
    /// It reports another master.
    Switched,
}

/// Which Sentinel, and how it is talked to.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// As configured or announced.
    pub(super) address: HostPort,
    /// With the address where it is reached, its credentials and its timeouts.
    pub(super) options: UpstreamOptions,
    pub(super) login: Login,
    pub(super) service: String,
    pub(super) reports: mpsc::Sender<Report>,
}

/// Why a connection is no longer used.
struct Fault(MemberState, String);

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self(MemberState::Unreachable, format!("the connection was lost: {error}"))
    }
}

impl Link {
    /// Runs until the receiver of its reports is dropped.
    pub(super) async fn run(mut self, mut rounds: watch::Receiver<u64>) {
        let [shortest, longest] = PAUSES;
        let mut backoff = Backoff::new(shortest, longest);
        loop {
            let Fault(state, reason) = match self.dial().await {
                Ok(stream) => {
                    backoff.reset();
                    self.talk(stream, &mut rounds).await
                }
                Err(fault) => fault,
            };
            let round = *rounds.borrow_and_update();
            let report = Report::Failed(self.address.clone(), round, state, reason.clone());
            if self.reports.send(report).await.is_err() {
                return;
            }
            // A round that begins meanwhile need not wait for one that is away, and hurries the next dial.
            let next = Instant::now() + backoff.next();
            while let Ok(changed) = tokio::time::timeout_at(next, rounds.changed()).await {
                let round = *rounds.borrow_and_update();
                let report = Report::Failed(self.address.clone(), round, state, reason.clone());
                if changed.is_err() || self.reports.send(report).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Connects, and checks that it is a Sentinel.
    async fn dial(&mut self) -> Result<UpstreamStream, Fault> {
        let options = self.options.clone();
        // Certificates are read from files, which may lie on a network file system that hangs.
        let connector = tokio::task::spawn_blocking(move || Connector::quietly(&options)).await;
        let connector = match connector {
            Ok(Ok(connector)) => connector,
            Ok(Err(error)) => return Err(Fault(MemberState::Refused, error.to_string())),
            Err(error) => return Err(Fault(MemberState::Unreachable, error.to_string())),
        };
        let mut dialled = connector.dial(&self.login).await;
        if matches!(dialled, Err(DialError::NoResp3 { .. })) && self.login.protocol == Protocol::Resp3 {
            self.login.protocol = Protocol::Resp2;
            dialled = connector.dial(&self.login).await;
        }
        let established = dialled.map_err(|error| {
            let state = if error.retryable() { MemberState::Unreachable } else { MemberState::Refused };
            Fault(state, error.to_string())
        })?;
        let mode = &established.server.mode;
        if mode.is_empty() || mode == "sentinel" {
            Ok(established.stream)
        } else {
            Err(Fault(MemberState::Refused, format!("it is no Sentinel but a server (mode {mode})")))
        }
    }

    /// Asks and listens until the connection is of no further use.
    async fn talk(&self, stream: UpstreamStream, rounds: &mut watch::Receiver<u64>) -> Fault {
        match self.talk_while_it_lasts(stream, rounds).await {
            Ok(never) => match never {},
            Err(fault) => fault,
        }
    }

    async fn talk_while_it_lasts(
        &self,
        stream: UpstreamStream,
        rounds: &mut watch::Receiver<u64>,
    ) -> Result<std::convert::Infallible, Fault> {
        let mut frames = Frames::new(stream);
        let hears = self.login.protocol == Protocol::Resp3;
        if hears {
            frames.send(&encode::one_command(&[b"SUBSCRIBE", SWITCHED])).await?;
        }
        loop {
            let round = *rounds.borrow_and_update();
            self.ask(&mut frames, round).await?;
            // Until the next round what it publishes is heard; one without RESP3 is asked instead.
            loop {
                tokio::select! {
                    biased;
                    changed = rounds.changed() => {
                        if changed.is_err() {
                            return Err(Fault(MemberState::Unreachable, "nobody asks any more".to_owned()));
                        }
                        break;
                    }
                    frame = frames.next() => self.hear(&frame?.1).await,
                    () = tokio::time::sleep(WITHOUT_PUSHES), if !hears => break,
                }
            }
        }
    }

    /// Sends the queries of `round` and reports the answers.
    async fn ask(&self, frames: &mut Frames, round: u64) -> Result<(), Fault> {
        let asked = async {
            frames.send(&answer::questions(&self.service)).await?;
            let mut replies = Vec::with_capacity(QUESTIONS);
            while replies.len() < QUESTIONS {
                match frames.next().await? {
                    (ReplyKind::Push, frame) => self.hear(&frame).await,
                    (_, frame) => replies.push(frame),
                }
            }
            io::Result::Ok(replies)
        };
        let Ok(replies) = timeout(PATIENCE, asked).await else {
            return Err(Fault(MemberState::Unreachable, format!("no answer within {PATIENCE:?}")));
        };
        let report = match answer::read(&replies?) {
            Ok(answer) => Report::Answered(self.address.clone(), round, answer),
            Err(unusable) => {
                let (state, reason) = match unusable {
                    Unusable::UnknownService => (
                        MemberState::UnknownService,
                        format!("it does not know the service {}", self.service),
                    ),
                    Unusable::Refused(text) => (MemberState::Refused, text),
                    Unusable::Nonsense => {
                        (MemberState::Refused, "it does not answer as a Sentinel".to_owned())
                    }
                };
                Report::Failed(self.address.clone(), round, state, reason)
            }
        };
        // The receiver is dropped, and the task is about to end.
        drop(self.reports.send(report).await);
        Ok(())
    }

    async fn hear(&self, frame: &[u8]) {
        if answer::tells_of_a_switch(frame, &self.service) {
            drop(self.reports.send(Report::Switched).await);
        }
    }
}

/// Whole frames of a connection. Reading one can be given up and taken up again.
struct Frames {
    stream: UpstreamStream,
    scanner: ReplyScanner,
    /// Bytes that were read and not yet returned.
    input: BytesMut,
    /// How much of it the scanner has seen.
    scanned: usize,
}

impl Frames {
    fn new(stream: UpstreamStream) -> Self {
        Self { stream, scanner: ReplyScanner::default(), input: BytesMut::new(), scanned: 0 }
    }

    async fn send(&mut self, commands: &[u8]) -> io::Result<()> {
        self.stream.write_all(commands).await?;
        self.stream.flush().await
    }

    async fn next(&mut self) -> io::Result<(ReplyKind, Bytes)> {
        loop {
            let news = self.input.get(self.scanned..).unwrap_or_default();
            let step = self.scanner.step(news).map_err(|_| ErrorKind::InvalidData)?;
            self.scanned += step.consumed;
            if let Some(kind) = step.complete {
                let frame = self.input.split_to(std::mem::take(&mut self.scanned)).freeze();
                return Ok((kind, frame));
            }
            if self.scanned > MAX_REPLY {
                return Err(ErrorKind::InvalidData.into());
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
