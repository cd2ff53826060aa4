//! Opening lanes and leases: a permit, then the dial, again with growing pauses while somebody waits.

use std::cell::Cell;
use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::budget::Place;
use super::{
    Claim, Group, Holder, Kind, Lane, LaneKey, Lease, LeaseWaiter, Permit, Pool, SessionGuard, Stage,
    Tracked, Unavailable, Who, holder_of,
};
use crate::telemetry::UpstreamClose;
use crate::upstream::{Backoff, DialError, Established, Identity, Login, UpstreamStream};

/// The longest pause between two dials while a client waits for a connection.
const LONGEST_WHILE_AWAITED: Duration = Duration::from_millis(200);

/// A lease on its way to whoever waits for it. One that has arrived and is not taken, because its waiter has been served
/// otherwise or has left, goes to the next or is closed in order.
struct Handed {
    pool: Rc<Pool>,
    from: oneshot::Receiver<Result<Lease, DialError>>,
}

impl Handed {
    fn new(pool: &Rc<Pool>) -> (oneshot::Sender<Result<Lease, DialError>>, Self) {
        let (hand, from) = oneshot::channel();
        (hand, Self { pool: Rc::clone(pool), from })
    }

    /// `None`: nobody is going to hand over anything.
    async fn arrives(&mut self) -> Option<Result<Lease, DialError>> {
        (&mut self.from).await.ok()
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        self.from.close();
        if let Ok(Ok(lease)) = self.from.try_recv() {
            self.pool.end_lease(lease, true, UpstreamClose::LeaseEnded, None);
        }
    }
}

impl Pool {
    /// Starts the task that opens a lane for `group`, if none runs.
    pub(super) fn open_lane(self: &Rc<Self>, group: &Rc<Group>, permit: Option<Permit>) {
        if group.dialling.replace(true) {
            return;
        }
        let pool = Rc::clone(self);
        let group = Rc::clone(group);
        self.tasks.spawn_local(async move {
            let opened = pool.dial_lane(&group, permit).await;
            group.dialling.set(false);
            if let Some((lane, stream, _kept)) = opened {
                pool.ask_for_limit(&group, &lane);
                group.opened(Rc::clone(&lane));
                if pool.is_stopping() {
                    lane.leave(UpstreamClose::Shutdown);
                }
                pool.carry(&lane, stream).await;
            }
        });
    }

    /// Dials until there is a lane, nobody waits any more, or the server refuses for good.
    async fn dial_lane(
        self: &Rc<Self>,
        group: &Rc<Group>,
        mut permit: Option<Permit>,
    ) -> Option<(Rc<Lane>, UpstreamStream, Option<SessionGuard>)> {
        // A second lane comes with its permit and is worth one dial, whoever waits.
        let mut spare = permit.is_some();
        let mut backoff = self.backoff();
        while !self.is_stopping() && (spare || group.has_waiters()) {
            let hearing = match self.hearing_for(group).await {
                Ok(hearing) => hearing,
                Err(why) => {
                    // It has waited for as long as those who wait for this lane.
                    group.failed_for_good(&why);
                    return None;
                }
            };
            let permit = match permit.take() {
                Some(permit) => permit,
                None => {
                    group.stage.set(Stage::Queued);
                    self.lane_permit(group).await?
                }
            };
            // Made for each dial: the credentials may have been read again.
            let login = self.login(group.key(), group.identity(), Kind::Lane);
            let demotions = self.shared.mastership.demotions();
            match self.dial(&login, group.key().user, Kind::Lane, &group.stage).await {
                Ok(established) if self.is_stopping() => {
                    self.close(established.stream, permit, UpstreamClose::Shutdown, None);
                    return None;
                }
                Ok(established) => {
                    permit.opened(established.id, Some(established.local.port()));
                    if hearing.as_ref().is_some_and(|hearing| !hearing.lane.is_usable()) {
                        self.close(established.stream, permit, UpstreamClose::Unfit, None);
                        spare = false;
                        continue;
                    }
                    let lane = Lane::new(group.key(), permit, Rc::clone(&self.measures));
                    if !matches!(group.key().tracked, Tracked::No | Tracked::ForOthers) {
                        lane.track(self.new_tracker());
                    }
                    if let Some(hearing) = &hearing {
                        lane.is_told_over(&hearing.lane, hearing.id);
                    }
                    if self.roles.met(established.server.is_replica()) {
                        lane.belongs_to_a_replica();
                    } else if established.server.is_replica() == Some(false) {
                        lane.belongs_to_a_master(demotions);
                    }
                    return Some((lane, established.stream, hearing.map(|hearing| hearing.session)));
                }
                Err(error) => {
                    drop(permit);
                    spare = false;
                    let why = Unavailable::of(&error);
                    group.failed_for_now(why.clone());
                    if !error.retryable() {
                        group.failed_for_good(&why);
                        return None;
                    }
                }
            }
            self.pause(&mut backoff, true).await;
        }
        None
    }

    /// A permit for a lane, or `None` when nobody waits for it any more, or the pool stops.
    async fn lane_permit(&self, group: &Group) -> Option<Permit> {
        let what = holder_of(group.key());
        let holder = Holder { user: group.key().user, address: None, who: Who::Words(&what) };
        let mut place = self.shared.budget.queue(Claim::Lane, holder);
        loop {
            let wait = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return None,
                wait = tokio::time::timeout(self.patience(), place.granted()) => wait,
            };
            match wait {
                Ok(permit) => return permit,
                Err(_) if group.has_waiters() => {}
                Err(_) => return None,
            }
        }
    }

    async fn carry(self: &Rc<Self>, lane: &Rc<Lane>, stream: UpstreamStream) {
        let (reason, stream) = lane.carry(stream, &self.scratch, || self.lane_is_idle(lane)).await;
        self.tend_role(lane, Instant::now());
        if let Some(group) = self.known_group(lane) {
            group.closed(lane);
        }
        let Some(permit) = lane.take_permit() else { return };
        if reason == UpstreamClose::Deposed {
            // A server that stands still would hold the place for `upstream.close_timeout`, and another one waits for it.
            permit.closes(reason);
            return;
        }
        if let Some(stream) = stream {
            self.close(stream, permit, reason, None);
            return;
        }
        permit.closes(reason);
        self.lost.set(true);
        self.shared.health.doubt();
        if reason == UpstreamClose::Desync {
            tracing::error!(reason = reason.label(), "unexpected reply on a shared connection; closing it");
        } else {
            tracing::warn!(reason = reason.label(), "a lane was lost");
        }
    }

    /// A connection of a session's own under `key`: one given up a moment ago, one handed over, or a new one.
    /// `holder` says in listings whose it is and why.
    ///
    /// # Errors
    /// As [`Self::lane_ready`]; `deadline` `None` waits for a permit without limit (the caller has its own).
    pub async fn lease(
        self: &Rc<Self>,
        key: LaneKey,
        identity: &Arc<Identity>,
        claim: Claim,
        holder: Holder<'_>,
        deadline: Option<Instant>,
    ) -> Result<Lease, Unavailable> {
        if let Some(lease) = self.parked_lease(key, claim) {
            lease.permit.describe(holder);
            return Ok(lease);
        }
        let mut backoff = self.backoff();
        let mut failure = None;
        let stage = Cell::new(Stage::Queued);
        // One that has waited already (with others of its client) looks only once: that a dial is not done then says nothing.
        let is_hurried = deadline.is_some_and(|at| at <= Instant::now());
        let search = async {
            loop {
                stage.set(Stage::Queued);
                let permit = match self.lease_permit(key, claim, holder).await {
                    Found::Lease(lease) => return Ok(lease),
                    Found::Permit(permit) => permit,
                    Found::Nothing => return Err(Unavailable::Stopping),
                };
                let login = self.login(key, identity, Kind::Lease);
                match self.dial_lease(&login, (key, holder.address), permit, &stage).await {
                    Ok(lease) => return Ok(lease),
                    Err(error) => {
                        let why = Unavailable::of(&error);
                        if !error.retryable() {
                            return Err(why);
                        }
                        failure = Some(why);
                    }
                }
                self.pause(&mut backoff, true).await;
            }
        };
        let Some(deadline) = deadline else { return search.await };
        match tokio::time::timeout_at(deadline, search).await {
            Ok(found) => found,
            Err(_) => Err(failure.unwrap_or_else(|| {
                let stage = if is_hurried { Stage::Queued } else { stage.get() };
                let is_kept_out = stage == Stage::Queued && claim.stands() && self.away().is_none();
                let reserved = is_kept_out.then(|| self.shared.budget.reserved_text(key.user));
                match reserved.flatten() {
                    Some(text) => Unavailable::Full(text),
                    None => self.why_nothing(Kind::Lease, key.user, stage),
                }
            })),
        }
    }

    fn enlist(&self, waiter: LeaseWaiter) {
        let mut waiters = self.lease_waiters.borrow_mut();
        waiters.retain(|waiter| !waiter.hand.is_closed());
        waiters.push(waiter);
    }

    async fn lease_permit(self: &Rc<Self>, key: LaneKey, claim: Claim, holder: Holder<'_>) -> Found {
        if self.is_stopping() {
            return Found::Nothing;
        }
        let (hand, mut handed) = Handed::new(self);
        // Dropped before a lease that is not taken: that is the next waiter's.
        let mut place: Place = self.shared.budget.queue(claim, holder);
        self.enlist(LeaseWaiter { ticket: place.ticket(), key, stands: claim.stands(), hand });
        tokio::select! {
            biased;
            lease = handed.arrives() => match lease {
                Some(Ok(lease)) => {
                    lease.permit.describe(holder);
                    Found::Lease(lease)
                }
                Some(Err(_)) | None => Found::Nothing,
            },
            permit = place.granted() => permit.map_or(Found::Nothing, Found::Permit),
        }
    }

    /// Dials once under `key`, when the rate allows it, for the connection that `permit` is for.
    ///
    /// # Errors
    /// As [`crate::upstream::Connector::dial`]; the caller waits ([`Self::backoff`]) and tries again, or gives up.
    pub async fn dial_for(
        &self,
        permit: &Permit,
        key: LaneKey,
        identity: &Arc<Identity>,
    ) -> Result<UpstreamStream, DialError> {
        permit.dials();
        let login = self.login(key, identity, permit.kind());
        let stage = Cell::new(Stage::Queued);
        let established = self.dial(&login, key.user, permit.kind(), &stage).await?;
        permit.opened(established.id, Some(established.local.port()));
        Ok(established.stream)
    }

    /// Dials in a task of its own, so that a client that leaves meanwhile does not drop a connection which the server
    /// may not have noticed yet: its permit stays with it until it is closed in order, or serves somebody else.
    async fn dial_lease(
        self: &Rc<Self>,
        login: &Login,
        (key, address): (LaneKey, Option<IpAddr>),
        permit: Permit,
        stage: &Cell<Stage>,
    ) -> Result<Lease, DialError> {
        // Nothing has been sent while the gate is closed: a client that leaves here gives its permit back at once.
        let turn = self.shared.health.turn().await;
        stage.set(Stage::Slowed);
        self.shared.dial_rate.lease(key.user, address).await;
        stage.set(Stage::Dialling);
        let (pool, login) = (Rc::clone(self), login.clone());
        let (hand, mut handed) = Handed::new(self);
        self.tasks.spawn_local(async move {
            let dialled = pool.connect(&login, key.user, Kind::Lease).await.map(|established| {
                permit.opened(established.id, Some(established.local.port()));
                Lease {
                    stream: established.stream,
                    key,
                    permit,
                    opened: Instant::now(),
                    generation: established.generation,
                }
            });
            drop(turn);
            if let Err(Ok(lease)) = hand.send(dialled) {
                pool.end_lease(lease, true, UpstreamClose::LeaseEnded, None);
            }
        });
        match handed.arrives().await {
            Some(dialled) => dialled,
            // The task goes unfinished only with the whole runtime.
            None => std::future::pending().await,
        }
    }

    /// Dials once, when the rate allows it.
    async fn dial(
        &self,
        login: &Login,
        user: u64,
        kind: Kind,
        stage: &Cell<Stage>,
    ) -> Result<Established, DialError> {
        let _turn = self.shared.health.turn().await;
        stage.set(Stage::Slowed);
        self.shared.dial_rate.lane(user).await;
        stage.set(Stage::Dialling);
        self.connect(login, user, kind).await
    }

    async fn connect(&self, login: &Login, user: u64, kind: Kind) -> Result<Established, DialError> {
        let attempt = self.shared.health.attempt();
        let demotions = self.shared.mastership.demotions();
        let established = match self.shared.connector.dial(login).await {
            Ok(established) => self.unless_demoted(established, kind, demotions).await,
            Err(error) => Err(error),
        };
        drop(attempt);
        match &established {
            Ok(_) => self.shared.health.succeeded(&login.identity),
            Err(error) => {
                if error.refuses_identity() {
                    self.refusals.borrow_mut().insert(user);
                }
                self.shared.health.failed(kind, &login.identity, error);
            }
        }
        established
    }

    /// The users whom the server has refused since the last time.
    #[must_use]
    pub fn take_refusals(&self) -> HashSet<u64> {
        std::mem::take(&mut *self.refusals.borrow_mut())
    }

    /// Logs in once under `key` and closes again: whether the server lets this user in. Takes a permit that is free, or
    /// waits for one until `deadline` as a lane would.
    ///
    /// # Errors
    /// As [`Self::lane_ready`]; [`Unavailable::LoginRefused`] is the server's answer.
    pub async fn check_login(
        &self,
        key: LaneKey,
        identity: &Arc<Identity>,
        deadline: Instant,
    ) -> Result<(), Unavailable> {
        let what = format!("login of user '{}', to be checked", identity.name());
        let holder = Holder { user: key.user, address: None, who: Who::Words(&what) };
        let budget = &self.shared.budget;
        let permit = match budget.try_acquire(Kind::Lane, holder) {
            Some(permit) => Some(permit),
            None => {
                let mut place = budget.queue(Claim::Lane, holder);
                tokio::time::timeout_at(deadline, place.granted()).await.ok().flatten()
            }
        };
        let Some(permit) = permit else {
            return Err(self.why_nothing(Kind::Lane, key.user, Stage::Queued));
        };
        match self.dial_for(&permit, key, identity).await {
            Ok(stream) => {
                self.close(stream, permit, UpstreamClose::LoginChecked, None);
                Ok(())
            }
            Err(error) => Err(Unavailable::of(&error)),
        }
    }

    fn login(&self, key: LaneKey, identity: &Arc<Identity>, kind: Kind) -> Login {
        Login {
            identity: self.shared.connector.current(identity),
            database: key.database,
            protocol: key.protocol,
            name: self.shared.instance.connection(kind.label()),
            readonly: key.readonly,
            // By prefix it is asked for when the first client says which.
            tracking: key.tracked == Tracked::Reads,
        }
    }

    /// The pauses between dials that fail.
    #[must_use]
    pub fn backoff(&self) -> Backoff {
        Backoff::new(self.shared.upstream.get().backoff_min, self.shared.upstream.get().backoff_max)
    }

    /// Sleeps after a dial that has failed, until it is time for the next or somebody else has reached the server: never
    /// long while a client waits (`is_awaited`), because its patience (`pool.wait_timeout`) may be no longer than the
    /// longest pause.
    pub async fn pause(&self, backoff: &mut Backoff, is_awaited: bool) {
        let pause = backoff.next();
        self.shared.health.pause(if is_awaited { pause.min(LONGEST_WHILE_AWAITED) } else { pause }).await;
    }
}

enum Found {
    Lease(Lease),
    Permit(Permit),
    Nothing,
}
