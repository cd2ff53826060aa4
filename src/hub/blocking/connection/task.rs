//! The task that connects a blocking hub, as long as any call waits, and carries what its waitlist says.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::{Hub, TABLE, is_fit};
use crate::hub::blocking::waiter::End;
use crate::hub::blocking::waitlist::GiveUp;
use crate::hub::driver::{Clock, ConnectionEnd, Ended, HubDriver, HubProtocol, lost};
use crate::pool::{Holder, Kind, LaneKey, Permit, Tracked, Unavailable, Who};
use crate::resp::{self, Protocol, ReplyScanner, encode};
use crate::telemetry::UpstreamClose;
use crate::upstream::{Backoff, Capability, DialError, UpstreamStream};

/// Replies to the first words on a connection come at once; a server that takes longer is not going to answer soon.
const PATIENCE: Duration = Duration::from_secs(5);

impl Hub {
    /// Connects, and again after a loss, as long as anybody waits.
    pub(in crate::hub::blocking) async fn run(self: &Rc<Self>) -> Ended {
        let mut backoff = self.pool.backoff();
        loop {
            let what = format!("blocking hub of user '{}'", self.identity.name());
            let holder = Holder { user: self.user, address: None, who: Who::Words(&what) };
            let permit = self.pool.shared.budget.try_acquire(Kind::Blocking, holder);
            let Some(permit) = permit else { return Ended::NoPermit };
            if let Err(ended) = self.run_with(permit, &mut backoff).await {
                return ended;
            }
        }
    }

    /// The same with one permit. `Ok`: it is given back, and another one is needed.
    async fn run_with(self: &Rc<Self>, mut permit: Permit, backoff: &mut Backoff) -> Result<(), Ended> {
        loop {
            let connected = tokio::select! {
                biased;
                connected = self.connect(&permit) => connected,
                () = self.keep_time() => Ok(Connection::Lost),
            };
            match connected {
                Ok(Connection::Open(stream, database)) => {
                    *backoff = self.pool.backoff();
                    let (over, stream) = self.carry(stream, database).await;
                    match self.end_connection(over, stream, permit).await? {
                        Onward::AtOnce(same) => {
                            permit = same;
                            continue;
                        }
                        Onward::Later(same) => permit = same,
                        Onward::Anew => return Ok(()),
                    }
                }
                Ok(Connection::Unfit(stream)) => {
                    self.pool.close(stream, permit, UpstreamClose::Unfit, None);
                    return Err(Ended::Refused);
                }
                Ok(Connection::Lost) => {}
                Err(error) if error.retryable() => {}
                Err(error) => self.refused_at_login(&error)?,
            }
            if self.waiting() == 0 {
                return Err(Ended::Done);
            }
            tokio::select! {
                biased;
                () = self.pool.pause(backoff, true) => {}
                () = self.keep_time() => {}
            }
        }
    }

    /// A connection is over. Returns with what the next one is made, if there is to be one.
    async fn end_connection(
        &self,
        over: ConnectionEnd,
        stream: UpstreamStream,
        permit: Permit,
    ) -> Result<Onward, Ended> {
        match over {
            ConnectionEnd::Refused => {
                self.pool.close(stream, permit, UpstreamClose::Unfit, None);
                Err(Ended::Refused)
            }
            // The place is for the next connection: a server that stands still would hold it.
            ConnectionEnd::Left(reason @ UpstreamClose::Deposed) => {
                permit.closes(reason);
                drop(stream);
                if self.waiting() > 0 { Ok(Onward::AtOnce(permit)) } else { Err(Ended::Done) }
            }
            ConnectionEnd::Left(reason) => {
                // A server that does not answer takes its time to close, too.
                tokio::select! {
                    biased;
                    () = self.pool.close_now(stream, permit, reason) => {}
                    () = self.keep_time() => {}
                }
                match reason {
                    UpstreamClose::Shutdown => Err(Ended::Done),
                    UpstreamClose::Turn => Err(Ended::NoPermit),
                    _ if self.waiting() > 0 => Ok(Onward::Anew),
                    _ => Err(Ended::Done),
                }
            }
            ConnectionEnd::Lost(reason) => {
                lost(&permit, reason);
                if self.yielding.get() { Err(Ended::NoPermit) } else { Ok(Onward::Later(permit)) }
            }
        }
    }

    /// The server does not let the hub in.
    fn refused_at_login(&self, error: &DialError) -> Result<(), Ended> {
        match Unavailable::of(error) {
            // Each is told on its own way to a lane or lease, which will be refused as well.
            Unavailable::LoginRefused(_) | Unavailable::NoAuth | Unavailable::SelectRefused(_) => {
                self.dismiss(&End::Fallback);
                Ok(())
            }
            Unavailable::Full(_)
            | Unavailable::Down(_)
            | Unavailable::Busy(_)
            | Unavailable::Unanswered
            | Unavailable::Stopping => Err(Ended::Refused),
        }
    }

    /// Lets deadlines pass while there is no connection. Never returns.
    async fn keep_time(&self) {
        let mut clock = Clock::default();
        poll_fn(|cx| {
            self.bell.answer_to(cx);
            clock.poll(cx, &self.waitlist);
            Poll::<()>::Pending
        })
        .await;
    }

    /// Dials and turns tracking on.
    async fn connect(&self, permit: &Permit) -> Result<Connection, DialError> {
        // A new connection is what it was to leave for; what it is told during the dial stands, and so does a stop.
        self.leaving.set(self.leaving.get().filter(|reason| *reason == UpstreamClose::Shutdown));
        self.cut_at.set(None);
        let database = self.pool.shared.upstream.get().database;
        let key = LaneKey {
            user: self.user,
            database,
            protocol: Protocol::Resp3,
            readonly: false,
            tracked: Tracked::No,
        };
        let mut stream = self.pool.dial_for(permit, key, &self.identity).await?;
        self.generation.set(self.pool.shared.connector.generation());
        if !is_fit(&self.pool, self.identity.name()) {
            tracing::warn!(
                "the server does not support a blocking hub; blocking calls are tried on lanes or take a lease"
            );
            return Ok(Connection::Unfit(stream));
        }
        let answers = tokio::time::timeout(PATIENCE, first_words(&mut stream)).await;
        let Ok(Ok(answers)) = answers else {
            lost(permit, UpstreamClose::Lost);
            return Ok(Connection::Lost);
        };
        let [tracking, multi, exec, table] = answers;
        let (missing, user) = (self.pool.shared.connector.missing_capabilities(), self.identity.name());
        let needs = [
            (Capability::Tracking, tracking),
            (Capability::Transactions, multi),
            (Capability::Transactions, exec),
        ];
        for (what, answer) in &needs {
            if let Some(refusal) = resp::error_text(answer) {
                missing.record_refusal(*what, user, &String::from_utf8_lossy(refusal));
                return Ok(Connection::Unfit(stream));
            }
            missing.record_support(*what, user);
        }
        let table = resp::elements(&table)
            .and_then(|mut pair| std::str::from_utf8(resp::bulk(pair.nth(1)?)?).ok()?.parse().ok())
            // 0 means without a bound.
            .map_or(TABLE, |keys: usize| if keys == 0 { usize::MAX } else { keys });
        self.limit.set((table / 2).max(1));
        Ok(Connection::Open(stream, database))
    }

    /// Carries the waitlist's bytes until the connection is over.
    async fn carry(
        self: &Rc<Self>,
        stream: UpstreamStream,
        database: u32,
    ) -> (ConnectionEnd, UpstreamStream) {
        let now = Instant::now();
        self.opened.set(Some(now));
        self.away_since.set(None);
        self.heard.set(now);
        self.swept.set(now);
        self.waitlist.borrow_mut().connected(database);
        if self.generation.get() != self.pool.shared.connector.generation() {
            // The server was replaced while its first answers came.
            self.depose(now);
        }
        let mut carrier = HubDriver::new(stream, &self.pool);
        let over = poll_fn(|cx| {
            self.bell.answer_to(cx);
            carrier.poll(cx, &self.pool, &self.waitlist, &self.heard, || self.leaves())
        })
        .await;
        self.opened.set(None);
        self.away_since.set(Some(Instant::now()));
        self.waitlist.borrow_mut().disconnected();
        (over, carrier.stream)
    }

    /// Whether the connection is to be left now.
    fn leaves(&self) -> Option<ConnectionEnd> {
        let mut waitlist = self.waitlist.borrow_mut();
        match waitlist.given_up() {
            Some(GiveUp::Refused) => return Some(ConnectionEnd::Refused),
            Some(GiveUp::Astray) => return Some(ConnectionEnd::Lost(UpstreamClose::Desync)),
            Some(GiveUp::Moved) if self.leaving.get().is_none() => {
                self.leaving.set(Some(UpstreamClose::Moved));
            }
            Some(GiveUp::Moved) | None => {}
        }
        let reason = self.leaving.get()?;
        if reason == UpstreamClose::Stalled {
            return Some(ConnectionEnd::Lost(reason));
        }
        if self.cut_at.get().is_some_and(|at| at <= Instant::now()) && waitlist.in_flight() > 0 {
            return Some(ConnectionEnd::Lost(reason));
        }
        if reason == UpstreamClose::Idle && waitlist.waiting() > 0 {
            self.leaving.set(None);
            waitlist.resume();
            // What it writes is sent in the next round.
            self.bell.ring();
            return None;
        }
        waitlist.pause();
        (waitlist.in_flight() == 0 && waitlist.out().is_empty()).then_some(ConnectionEnd::Left(reason))
    }
}

/// What a dial has brought.
enum Connection {
    /// Tracking is on; it is in this database.
    Open(UpstreamStream, u32),
    /// The server or the user is not fit for a hub.
    Unfit(UpstreamStream),
    /// It was lost before the first answer.
    Lost,
}

/// With what the next connection is made.
enum Onward {
    /// With the same permit, at once.
    AtOnce(Permit),
    /// With the same permit, after a pause.
    Later(Permit),
    /// With a permit of its own.
    Anew,
}

/// What is said first on a connection. MULTI and EXEC are tried out before any call depends on them: behind a MULTI that
/// is refused, a call would block.
async fn first_words(stream: &mut UpstreamStream) -> std::io::Result<[Bytes; 4]> {
    let mut words = BytesMut::new();
    encode::command(&mut words, &[b"CLIENT", b"TRACKING", b"ON"]);
    encode::command(&mut words, &[b"MULTI"]);
    encode::command(&mut words, &[b"EXEC"]);
    encode::command(&mut words, &[b"CONFIG", b"GET", b"tracking-table-max-keys"]);
    stream.write_all(&words).await?;
    stream.flush().await?;
    let mut answers: [Bytes; 4] = Default::default();
    let mut scanner = ReplyScanner::default();
    let mut chunk = vec![0; 4 << 10];
    let mut partial = BytesMut::new();
    let mut at = 0;
    while at < answers.len() {
        let came = stream.read(&mut chunk).await?;
        if came == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = &chunk[..came];
        while !rest.is_empty() {
            let step = scanner.step(rest).map_err(|_| std::io::ErrorKind::InvalidData)?;
            partial.extend_from_slice(&rest[..step.consumed]);
            rest = &rest[step.consumed..];
            if step.complete.is_some() {
                let answer = answers.get_mut(at).ok_or(std::io::ErrorKind::InvalidData)?;
                *answer = partial.split().freeze();
                at += 1;
            }
        }
    }
    Ok(answers)
}
