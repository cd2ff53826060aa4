//! Finds and kills orphans, and keeps this instance's connections active on the server.
//!
//! Runs on the control connection, which clients' commands do not delay: at the start, every `hygiene.interval`, after
//! a lost connection whose end the server may not have seen, and when the server can be reached again.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{HygieneOptions, Orphan, Own, orphans};
use crate::pool::{Control, Kind, Phase, Pool, Unavailable};
use crate::resp::{self, ErrorCode, Protocol, encode};
use crate::session::Listed;
use crate::telemetry::{OrphanRound, Reap, UpstreamClose, printable};
use crate::upstream::{Backoff, Identity, Instance};

/// A server that does not answer a PING within this time has not read the others' either: everyone looks idle.
const PROMPT: Duration = Duration::from_secs(1);
/// The maximum age of a usable listing.
const FRESH: Duration = Duration::from_secs(5);
/// After a loss, before the server is asked: a loss seldom comes alone.
const SETTLE: Duration = Duration::from_millis(100);
/// The shortest time between rounds.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest time between repeated rounds.
const AGAIN_AT_LAST: Duration = Duration::from_secs(5);
/// How long a login that the server has refused is not tried again.
const REFUSED: Duration = Duration::from_secs(60);

/// The logins that may query the server, in order of preference.
pub type Candidates = Box<dyn Fn() -> Vec<(u64, Arc<Identity>)>>;

/// Finds orphans and kills them.
pub struct Reaper {
    pool: Rc<Pool>,
    control: Rc<Mutex<Control>>,
    options: Rc<Cell<HygieneOptions>>,
    candidates: Candidates,
    /// Whose login the server refused, and when: the next candidate is asked for.
    refused: RefCell<HashMap<u64, Instant>>,
    /// The problem that was logged last.
    told: Cell<Option<Obstacle>>,
    /// The last time that the server answered late.
    stalled: Cell<Option<Instant>>,
    /// The last time that the control connection was requested to show activity.
    shown: Cell<Option<Instant>>,
    /// Instances that look dead and might be between two lanes, and since when.
    suspects: RefCell<HashMap<Instance, Instant>>,
}

/// Why a round came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    /// No login is available: `upstream.url` has no credentials, and no client has logged in.
    NoLogin,
    /// The server cannot be reached.
    Unavailable,
    /// It answers too slowly to judge by its listing, or is busy with a script.
    Slow,
    /// The user may not list clients.
    ListRefused,
    /// The user may not kill clients.
    KillRefused,
}

impl Obstacle {
    fn label(self) -> &'static str {
        match self {
            Self::NoLogin => OrphanRound::NoLogin,
            Self::Unavailable => OrphanRound::Unavailable,
            Self::Slow => OrphanRound::Slow,
            Self::ListRefused => OrphanRound::ListRefused,
            Self::KillRefused => OrphanRound::KillRefused,
        }
        .label()
    }
}

/// The event that ends the reaper's sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// It is time for a look.
    Time,
    /// A lane wants to leave.
    Relief,
    /// A connection was lost, or the server is there again.
    Loss,
}

/// How a round went that could be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// No orphan is left.
    Clean,
    /// A connection is too young to be judged, the server stalled too recently, or the listing has become too old.
    Unsure,
}

impl std::fmt::Debug for Reaper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reaper").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Reaper {
    /// A reaper that asks on `control`, as one of `candidates`.
    #[must_use]
    pub fn new(
        pool: Rc<Pool>,
        control: Rc<Mutex<Control>>,
        options: Rc<Cell<HygieneOptions>>,
        candidates: Candidates,
    ) -> Self {
        Self {
            pool,
            control,
            options,
            candidates,
            refused: RefCell::default(),
            told: Cell::new(None),
            stalled: Cell::new(None),
            shown: Cell::new(None),
            suspects: RefCell::default(),
        }
    }

    /// Runs until it is dropped; `first` is cancelled when the first round is over, however it went.
    pub async fn run(self, first: CancellationToken) {
        let heartbeat = self.pool.shared.heartbeat;
        let mut due = Instant::now();
        let mut backoff = Backoff::new(AGAIN, AGAIN_AT_LAST);
        let mut known = self.options.get();
        loop {
            let options = self.options.get();
            if options != known {
                // The new settings may require an earlier round.
                due = due.min(Instant::now() + options.interval);
                known = options;
            }
            if options.reap && Instant::now() >= due {
                let outcome = self.round().await;
                self.note(outcome);
                due = Instant::now() + self.pause(outcome, &mut backoff);
            }
            first.cancel();
            let done = Instant::now();
            let until_round = if options.reap { due.saturating_duration_since(done) } else { heartbeat };
            let event = tokio::select! {
                biased;
                () = self.pool.shared.liveness.control_requested() => Event::Relief,
                () = self.pool.shared.budget.lost() => Event::Loss,
                () = self.pool.shared.health.recovered() => Event::Loss,
                () = tokio::time::sleep(until_round.min(heartbeat / 4)) => Event::Time,
            };
            self.show_life(event == Event::Relief).await;
            if event == Event::Loss {
                tokio::time::sleep(SETTLE).await;
                // However often connections are lost: the server is asked once a second, no more.
                due = due.min(done + AGAIN);
            }
        }
    }

    /// How long until the next round.
    fn pause(&self, outcome: Result<Round, Obstacle>, backoff: &mut Backoff) -> Duration {
        match outcome {
            Ok(Round::Clean) | Err(Obstacle::ListRefused | Obstacle::KillRefused) => {
                backoff.reset();
                // A little apart from the other proxies of this server.
                self.options.get().interval.mul_f64(0.9 + 0.2 * fastrand::f64())
            }
            Ok(Round::Unsure) | Err(Obstacle::NoLogin | Obstacle::Unavailable | Obstacle::Slow) => {
                backoff.next().min(self.options.get().interval.max(AGAIN))
            }
        }
    }

    /// Evaluates one listing and kills its orphans.
    async fn round(&self) -> Result<Round, Obstacle> {
        let mut control = self.control.lock().await;
        let was_open = control.is_open();
        let outcome = self.judge_and_kill(&mut control).await;
        if !was_open && !self.depends_on_control() && self.pool.shared.budget.fleet().is_none() {
            control.close(&self.pool, UpstreamClose::Idle).await;
        }
        outcome
    }

    async fn judge_and_kill(&self, control: &mut Control) -> Result<Round, Obstacle> {
        let (user, identity) = self.greet(control).await?;
        let shared = &self.pool.shared;
        let asked = Instant::now();
        let (before, dialled) = (shared.budget.ids(), shared.budget.is_dialling());
        let listing = self.ask(control, user, &identity, &[b"CLIENT", b"LIST"]).await;
        let listing = listing.map_err(|_| self.stall())?;
        let Some(text) = resp::bulk(&listing) else {
            return Err(self.refusal(Obstacle::ListRefused, &listing));
        };
        let rows = Listed::parse_all(text);
        let after = shared.budget.ids();
        let is_ours = |row: &Listed| Instance::of(&row.name).as_ref() == Some(&*shared.instance);
        // A listing without ourselves is another server's, or its ids mean something else there.
        let me = control.client_id();
        let lists_us = rows.iter().any(|row| Some(row.id) == me && is_ours(row));
        let ids = before.zip(after).filter(|_| lists_us).map(|(before, after)| &before | &after);
        // While no dial is in progress, every connection with our name that is not held is left over, regardless of its
        // age.
        let dialling = dialled || shared.budget.is_dialling();
        let longest_dial = shared.upstream.get().connect_timeout + shared.upstream.get().loading_retry;
        let youth = if dialling { longest_dial } else { Duration::ZERO };
        let own = Own { instance: &shared.instance, ids: ids.as_ref(), youth };
        let found = orphans(&rows, Some(own), self.options.get().orphan_after);
        self.suspect(&found);
        for orphan in &found {
            if asked.elapsed() > FRESH {
                return Ok(Round::Unsure);
            }
            if self.is_certain(orphan) {
                self.kill(control, user, &identity, orphan).await?;
            }
        }
        let too_young = ids.is_some_and(|ids| {
            rows.iter().any(|row| !ids.contains(&row.id) && row.age < youth && is_ours(row))
        });
        let unsure = too_young || found.iter().any(|orphan| !self.is_certain(orphan));
        Ok(if unsure { Round::Unsure } else { Round::Clean })
    }

    /// Remembers the instances that may be dead, and forgets those that no longer look dead.
    fn suspect(&self, found: &[Orphan<'_>]) {
        let mut before = self.suspects.borrow_mut();
        let uncertain = found.iter().filter(|orphan| !orphan.certain);
        *before = uncertain
            .filter_map(|orphan| Instance::of(&orphan.row.name))
            .map(|instance| {
                let since = before.get(&instance).copied().unwrap_or_else(Instant::now);
                (instance, since)
            })
            .collect();
    }

    /// Whether an orphan of the listing is still one, according to this process's own state.
    fn is_certain(&self, orphan: &Orphan<'_>) -> bool {
        match orphan.why {
            Reap::DeadInstance => !self.has_doubts() && (orphan.certain || self.is_still_dead(orphan)),
            Reap::LeftBehind => {
                self.pool.shared.budget.ids().is_some_and(|ids| !ids.contains(&orphan.row.id))
            }
        }
    }

    /// Whether it looked dead in every listing for the time in which a living one would have shown itself.
    fn is_still_dead(&self, orphan: &Orphan<'_>) -> bool {
        let suspects = self.suspects.borrow();
        let since = Instance::of(&orphan.row.name).and_then(|instance| suspects.get(&instance).copied());
        since.is_some_and(|at| at.elapsed() >= self.pool.shared.heartbeat)
    }

    /// Whether other instances may have been unable to show activity: a server that answered late did not read their
    /// heartbeats either, and each needs the time until its next heartbeat.
    fn has_doubts(&self) -> bool {
        self.stalled.get().is_some_and(|at| at.elapsed() < 2 * self.pool.shared.heartbeat)
    }

    fn stall(&self) -> Obstacle {
        self.stalled.set(Some(Instant::now()));
        Obstacle::Slow
    }

    /// Sends PING with a nonce with the first login that the server accepts. A listing that follows a prompt reply
    /// shows the activity of all connections.
    async fn greet(&self, control: &mut Control) -> Result<(u64, Arc<Identity>), Obstacle> {
        self.refused.borrow_mut().retain(|_, at| at.elapsed() < REFUSED);
        for (user, identity) in (self.candidates)() {
            if self.refused.borrow().contains_key(&user) {
                continue;
            }
            let asked = Instant::now();
            match self.ask(control, user, &identity, &[b"PING"]).await {
                Err(Unavailable::LoginRefused(_) | Unavailable::NoAuth) => {
                    self.refused.borrow_mut().insert(user, Instant::now());
                    continue;
                }
                // An immediate failure: no server listens, or it is at its connection limit. In both cases the server
                // is not stalled.
                Err(_) if asked.elapsed() < PROMPT => return Err(Obstacle::Unavailable),
                Err(_) => return Err(self.stall()),
                // A dial takes time on a fast server, too, so only the PING is measured.
                Ok(_) => {}
            }
            let nonce = format!("{:016x}", fastrand::u64(..));
            let asked = Instant::now();
            let answer = self.ask(control, user, &identity, &[b"PING", nonce.as_bytes()]).await;
            let answer = answer.map_err(|_| self.stall())?;
            // Where PING is refused, the refusal is an answer too.
            let ours = resp::bulk(&answer) == Some(nonce.as_bytes()) || resp::is_error(&answer);
            return if ours && asked.elapsed() < PROMPT { Ok((user, identity)) } else { Err(self.stall()) };
        }
        Err(Obstacle::NoLogin)
    }

    async fn kill(
        &self,
        control: &mut Control,
        user: u64,
        identity: &Arc<Identity>,
        orphan: &Orphan<'_>,
    ) -> Result<(), Obstacle> {
        let (row, id) = (orphan.row, orphan.row.id.to_string());
        let words: [&[u8]; 6] = [b"CLIENT", b"KILL", b"ID", id.as_bytes(), b"ADDR", row.addr.as_bytes()];
        let answer = self.ask(control, user, identity, &words).await.map_err(|_| self.stall())?;
        let Some(killed) = resp::integer(&answer) else {
            return Err(self.refusal(Obstacle::KillRefused, &answer));
        };
        // 0: another instance has killed it, or it has closed.
        if killed > 0 {
            metrics::counter!("redbouncer_orphans_killed_total", "reason" => orphan.why.label()).increment(1);
            let (age, idle) = (row.age.as_secs(), row.idle.as_secs());
            let reason = orphan.why.label();
            tracing::warn!(reason, id = row.id, addr = row.addr, name = row.name, age, idle, "orphan killed");
        }
        Ok(())
    }

    /// Whether only the control connection can show activity, because there is no lane, or no lane gets replies.
    fn depends_on_control(&self) -> bool {
        let shared = &self.pool.shared;
        let mut held = shared.budget.holdings();
        held.retain(|row| row.phase == Phase::Open && row.kind != Kind::Control);
        let has_lane = held.iter().any(|row| row.kind == Kind::Lane);
        let lanes_speak = has_lane && shared.liveness.age(Instant::now()) < shared.heartbeat.mul_f64(1.5);
        !held.is_empty() && !lanes_speak
    }

    /// If only the control connection shows activity, it sends a command within every heartbeat, and at once when a
    /// lane is about to close.
    async fn show_life(&self, relief: bool) {
        // Checked every quarter of a heartbeat.
        let heartbeat = self.pool.shared.heartbeat;
        let soon = |at: Instant| at.elapsed() < AGAIN.min(heartbeat / 4);
        if self.shown.get().is_some_and(soon) || !relief && !self.depends_on_control() {
            return;
        }
        let mut control = self.control.lock().await;
        if control.idle().is_none_or(|idle| idle >= heartbeat.mul_f64(0.7)) {
            // Unanswered, it is tried again at the next look.
            let _ = self.greet(&mut control).await;
            self.shown.set(Some(Instant::now()));
        }
        control.was_needed();
    }

    async fn ask(
        &self,
        control: &mut Control,
        user: u64,
        identity: &Arc<Identity>,
        words: &[&[u8]],
    ) -> Result<Bytes, Unavailable> {
        let mut request = BytesMut::new();
        encode::command(&mut request, words);
        control.ask(&self.pool, user, identity, Protocol::Resp2, &request.freeze()).await
    }

    /// Classifies an error reply to LIST or KILL; a refusal is logged once.
    fn refusal(&self, obstacle: Obstacle, answer: &[u8]) -> Obstacle {
        let text = resp::error_text(answer).map(printable).unwrap_or_default();
        // Errors that pass, such as BUSY and LOADING, are not refusals.
        if matches!(ErrorCode::of_text(&text), ErrorCode::Busy | ErrorCode::Loading) {
            return self.stall();
        }
        if self.told.replace(Some(obstacle)) != Some(obstacle) {
            tracing::warn!(
                reason = obstacle.label(),
                server_says = %text,
                "cannot search for orphans; connections of dead instances stay until the server's own keepalive"
            );
        }
        obstacle
    }

    fn note(&self, outcome: Result<Round, Obstacle>) {
        let label = match outcome {
            Ok(_) => {
                self.told.set(None);
                OrphanRound::Judged.label()
            }
            Err(obstacle) => obstacle.label(),
        };
        metrics::counter!("redbouncer_orphan_rounds_total", "outcome" => label).increment(1);
        tracing::debug!(outcome = label, "looked for orphans");
    }
}
