//! A hub's connection: permit, dial, tracking, then bytes for the waitlist until it is lost or nobody needs it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::super::driver::{Clock, ConnectionEnd, Ended, HubDriver, HubProtocol, WakerSlot, lost};
use super::super::{BlockingOptions, GiveBack};
use super::waiter::{Arrival, End, Unblock, Withdrawn};
use super::waitlist::{GiveUp, Times, Waitlist};
use crate::command::Blocking;
use crate::pool::{Holder, Kind, LaneKey, Permit, Pool, Tracked, Unavailable, Who};
use crate::resp::{self, Protocol, ReplyScanner, encode};
use crate::telemetry::{TriedOn, UpstreamClose};
use crate::upstream::{Capability, DialError, Identity, OnLoss, UpstreamStream};

/// Replies to the first words on a connection come at once; a server that takes longer is not going to answer soon.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection that has been silent so long with requests outstanding is held.
const HELD: Duration = Duration::from_millis(10);
/// Redis's default for `tracking-table-max-keys`, taken for granted where the server does not say.
const TABLE: usize = 1_000_000;
/// The first version of Redis that keeps invalidations out of the reply that is being written.
const FIRST_VERSION: u32 = 7;

/// The hub of one user.
pub(super) struct Hub {
    pool: Rc<Pool>,
    user: u64,
    identity: Arc<Identity>,
    waitlist: RefCell<Waitlist>,
    bell: WakerSlot,
    leaving: Cell<Option<UpstreamClose>>,
    /// Until when its replies are waited for, where it leaves a server that may not answer.
    cut_at: Cell<Option<Instant>>,
    /// Of the connector when it was dialled.
    generation: Cell<u64>,
    /// Its permit is wanted by somebody who cannot do without.
    yielding: Cell<bool>,
    opened: Cell<Option<Instant>>,
    /// Since when there is no connection.
    away_since: Cell<Option<Instant>>,
    /// Since when nobody waits.
    idle_since: Cell<Option<Instant>>,
    /// When something last came from the server.
    heard: Cell<Instant>,
    swept: Cell<Instant>,
    /// Keys that may be watched: half of the server's tracking table.
    limit: Cell<usize>,
    tries: metrics::Counter,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub for the user of `arrival`, not yet connected. `None` where the server is known to be unfit.
    pub(super) fn new(
        pool: Rc<Pool>,
        options: &BlockingOptions,
        give_back: &Rc<GiveBack>,
        of_node: bool,
        arrival: &Arrival,
    ) -> Option<Rc<Self>> {
        if !is_fit(&pool, arrival.identity.name()) {
            return None;
        }
        let times = Times { grace: options.grace, stall: pool.shared.upstream.get().stall_timeout };
        let giver = Rc::clone(give_back);
        let give_back = Rc::new(move |key: LaneKey, identity: &Arc<Identity>, back: Option<Bytes>| {
            giver.send(key, identity, back);
        });
        let now = Instant::now();
        Some(Rc::new(Self {
            pool,
            user: arrival.key.user,
            identity: Arc::clone(&arrival.identity),
            waitlist: RefCell::new(Waitlist::new(times, give_back, of_node)),
            bell: WakerSlot::default(),
            leaving: Cell::new(None),
            cut_at: Cell::new(None),
            generation: Cell::new(0),
            yielding: Cell::new(false),
            opened: Cell::new(None),
            away_since: Cell::new(Some(now)),
            idle_since: Cell::new(None),
            heard: Cell::new(now),
            swept: Cell::new(now),
            limit: Cell::new(TABLE / 2),
            tries: metrics::counter!("redbouncer_blocking_tries_total", "on" => TriedOn::Hub.label()),
        }))
    }

    pub(super) fn arrive(&self, arrival: Arrival) -> Option<u64> {
        if self.yielding.get() {
            return None;
        }
        let mut waitlist = self.waitlist.borrow_mut();
        // The server keeps a write back, as CLIENT PAUSE lets it, and what is read behind it on this connection, too.
        if arrival.call.command == Blocking::XRead {
            let now = Instant::now();
            let is_long = |since: Duration| since > HELD;
            if waitlist.oldest(now).is_some_and(is_long)
                && is_long(now.saturating_duration_since(self.heard.get()))
            {
                return None;
            }
        }
        if !waitlist.has_room(self.limit.get()) {
            return None;
        }
        let id = waitlist.arrive(arrival, Instant::now());
        drop(waitlist);
        self.idle_since.set(None);
        self.bell.ring();
        id
    }

    pub(super) fn gone(&self, id: u64) {
        self.waitlist.borrow_mut().gone(id);
    }

    pub(super) fn unblock(&self, id: u64, how: Unblock) {
        self.waitlist.borrow_mut().unblock(id, how, Instant::now());
        self.bell.ring();
    }

    pub(super) fn withdraw(&self, id: u64) -> Option<Withdrawn> {
        self.waitlist.borrow_mut().withdraw(id)
    }

    pub(super) fn farewell(&self, id: u64) -> bool {
        self.waitlist.borrow_mut().farewell(id)
    }

    pub(super) fn dismiss(&self, how: &End) {
        self.waitlist.borrow_mut().dismiss(how);
    }

    /// Those who wait for keys of slots that are not here any more have to wait elsewhere.
    pub(super) fn leave_slots(&self, is_here: impl Fn(u16) -> bool) {
        self.waitlist.borrow_mut().leave_slots(is_here, &Bytes::new());
    }

    pub(super) fn in_flight(&self) -> usize {
        self.waitlist.borrow().in_flight()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waitlist.borrow().waiting()
    }

    pub(super) fn watched(&self) -> usize {
        self.waitlist.borrow().watched()
    }

    pub(super) fn user_name(&self) -> &str {
        self.identity.name()
    }

    pub(super) fn opened(&self) -> Option<Instant> {
        self.opened.get()
    }

    /// Whether it has had its turn.
    pub(super) fn may_yield(&self, now: Instant) -> bool {
        let turn = self.pool.shared.options.get().min_turn;
        self.opened.get().is_some_and(|at| now.saturating_duration_since(at) >= turn)
    }

    pub(super) fn yield_permit(&self) {
        self.yielding.set(true);
        self.leave(UpstreamClose::Turn);
    }

    /// The connection is closed when what is in flight has been answered.
    pub(super) fn leave(&self, reason: UpstreamClose) {
        if self.leaving.get().is_none() || reason == UpstreamClose::Shutdown {
            self.leaving.set(Some(reason));
            self.bell.ring();
        }
    }

    /// Another server is the master now: the connection is left, at the latest at `end`. A dial under way finds that out by
    /// itself.
    pub(super) fn depose(&self, end: Instant) {
        if self.opened.get().is_some() && self.leaving.get() != Some(UpstreamClose::Shutdown) {
            self.leaving.set(Some(UpstreamClose::Deposed));
            self.cut_at.set(Some(end));
            self.bell.ring();
        }
    }

    /// What waits here for a server that is not there learns it, as whoever sends a command does.
    fn tell_of_outage(&self, now: Instant) {
        let patience = self.pool.patience();
        let is_long_away =
            self.away_since.get().is_some_and(|since| now.saturating_duration_since(since) >= patience);
        if self.pool.shared.upstream.get().on_loss == OnLoss::Close
            && is_long_away
            && let (Some(away), Some(then)) = (self.pool.away(), now.checked_sub(patience))
        {
            self.waitlist.borrow_mut().dismiss_since(Some(then), &End::Unserved(away));
        }
    }

    pub(super) fn tick(&self, now: Instant, deserted: bool) {
        self.tell_of_outage(now);
        let mut waitlist = self.waitlist.borrow_mut();
        self.tries.increment(waitlist.take_tries());
        if waitlist.waiting() > 0 {
            self.idle_since.set(None);
        } else if self.idle_since.get().is_none() {
            self.idle_since.set(Some(now));
        }
        let options = self.pool.shared.options.get();
        let patience = if deserted { options.linger } else { options.idle_timeout };
        let idle = self.idle_since.get().is_some_and(|at| now.saturating_duration_since(at) >= patience);
        let heartbeat = self.pool.shared.heartbeat;
        if self.opened.get().is_some() && now.saturating_duration_since(self.swept.get()) >= heartbeat {
            self.swept.set(now);
            waitlist.sweep();
            self.bell.ring();
        }
        if self.cut_at.get().is_some_and(|at| at <= now) {
            self.bell.ring();
        }
        let stall = self.pool.shared.upstream.get().stall_timeout;
        let stalled = waitlist.oldest(now).is_some_and(|age| age > stall)
            && now.saturating_duration_since(self.heard.get()) > stall;
        drop(waitlist);
        if idle {
            self.leave(UpstreamClose::Idle);
        }
        if self.opened.get().is_some_and(|at| now.saturating_duration_since(at) >= options.max_lifetime) {
            self.leave(UpstreamClose::Lifetime);
        }
        if stalled {
            self.leaving.set(Some(UpstreamClose::Stalled));
            self.bell.ring();
        }
    }

    /// Connects, and again after a loss, as long as anybody waits.
    pub(super) async fn run(self: &Rc<Self>) -> Ended {
        let mut backoff = self.pool.backoff();
        'permit: loop {
            let what = format!("blocking hub of user '{}'", self.identity.name());
            let holder = Holder { user: self.user, address: None, who: Who::Words(&what) };
            let permit = self.pool.shared.budget.try_acquire(Kind::Blocking, holder);
            let Some(permit) = permit else { return Ended::NoPermit };
            loop {
                let connected = tokio::select! {
                    biased;
                    connected = self.connect(&permit) => connected,
                    () = self.keep_time() => Ok(Connection::Lost),
                };
                match connected {
                    Ok(Connection::Open(stream, database)) => {
                        backoff = self.pool.backoff();
                        let (over, stream) = self.carry(stream, database).await;
                        match over {
                            ConnectionEnd::Refused => {
                                self.pool.close(stream, permit, UpstreamClose::Unfit, None);
                                return Ended::Refused;
                            }
                            // The place is for the next connection: a server that stands still would hold it.
                            ConnectionEnd::Left(reason @ UpstreamClose::Deposed) => {
                                permit.closes(reason);
                                drop(stream);
                                if self.waiting() > 0 {
                                    continue;
                                }
                            }
                            ConnectionEnd::Left(reason) => {
                                // A server that does not answer takes its time to close, too.
                                tokio::select! {
                                    biased;
                                    () = self.pool.close_now(stream, permit, reason) => {}
                                    () = self.keep_time() => {}
                                }
                                match reason {
                                    UpstreamClose::Shutdown => return Ended::Done,
                                    UpstreamClose::Turn => return Ended::NoPermit,
                                    _ if self.waiting() > 0 => continue 'permit,
                                    _ => return Ended::Done,
                                }
                            }
                            ConnectionEnd::Lost(reason) => {
                                lost(&permit, reason);
                                if self.yielding.get() {
                                    return Ended::NoPermit;
                                }
                            }
                        }
                    }
                    Ok(Connection::Unfit(stream)) => {
                        self.pool.close(stream, permit, UpstreamClose::Unfit, None);
                        return Ended::Refused;
                    }
                    Ok(Connection::Lost) => {}
                    Err(error) if error.retryable() => {}
                    Err(error) => match Unavailable::of(&error) {
                        // Each is told on its own way to a lane or lease, which will be refused as well.
                        Unavailable::LoginRefused(_)
                        | Unavailable::NoAuth
                        | Unavailable::SelectRefused(_) => self.dismiss(&End::Fallback),
                        Unavailable::Full(_)
                        | Unavailable::Down(_)
                        | Unavailable::Busy(_)
                        | Unavailable::Unanswered
                        | Unavailable::Stopping => return Ended::Refused,
                    },
                }
                if self.waiting() == 0 {
                    return Ended::Done;
                }
                tokio::select! {
                    biased;
                    () = self.pool.pause(&mut backoff, true) => {}
                    () = self.keep_time() => {}
                }
            }
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
                "the server cannot serve a blocking hub: blocking calls are tried on lanes or take a lease"
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

/// Whether the server can serve a hub for `user`, as far as is known: RESP3, invalidations that never come inside a reply,
/// and the rights.
fn is_fit(pool: &Pool, user: &str) -> bool {
    let connector = &pool.shared.connector;
    let is_new_enough = connector.server().is_none_or(|server| {
        let major = server.version.split('.').next().and_then(|major| major.parse().ok());
        major.is_none_or(|major: u32| major >= FIRST_VERSION)
    });
    let needs = [Capability::Tracking, Capability::Transactions];
    is_new_enough
        && connector.speaks_resp3(user)
        && !needs.iter().any(|what| connector.missing_capabilities().has(*what, user))
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
