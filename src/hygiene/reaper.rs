//! Finds orphans and kills them, and shows the server that we live.
//!
//! Runs on the control connection, which no command of a client delays, at the start, then every `hygiene.interval`, and
//! whenever a connection was lost whose end the server may not have seen, or the server can be reached again.

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
/// A listing that is older says nothing about now.
const FRESH: Duration = Duration::from_secs(5);
/// After a loss, before the server is asked: a loss seldom comes alone.
const SETTLE: Duration = Duration::from_millis(100);
/// Between rounds, at the least.
const AGAIN: Duration = Duration::from_secs(1);
/// Between rounds that have to be repeated, at the most.
const AGAIN_AT_LAST: Duration = Duration::from_secs(5);
/// Whom the server has refused is not tried again for this long.
const REFUSED: Duration = Duration::from_secs(60);

/// As whom the server may be asked, the first choice first: numbers and identities.
pub type Candidates = Box<dyn Fn() -> Vec<(u64, Arc<Identity>)>>;

/// Finds orphans and kills them.
pub struct Reaper {
    pool: Rc<Pool>,
    control: Rc<Mutex<Control>>,
    options: Rc<Cell<HygieneOptions>>,
    candidates: Candidates,
    /// Whose login the server refused, and when: the next candidate is asked for.
    refused: RefCell<HashMap<u64, Instant>>,
    /// What has been logged as standing in the way.
    told: Cell<Option<Obstacle>>,
    /// When the server last kept us waiting.
    stalled: Cell<Option<Instant>>,
    /// When the control connection was last asked for to show that we live.
    shown: Cell<Option<Instant>>,
    /// Instances that look dead and might be between two lanes, and since when.
    suspects: RefCell<HashMap<Instance, Instant>>,
}

/// Why a round came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    /// There is nobody to ask as: no credentials of our own, and nobody has logged in.
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

/// What ends the reaper's sleep.
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
    /// Nothing is left that nobody owns.
    Clean,
    /// A connection is too young to be judged, or the server stalled too short a time ago, or the listing has become
    /// too old to go on.
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
                // It may have to be sooner than the former settings said.
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

    /// One listing, judged, and what follows from it.
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
        // While nothing is being dialled, whatever bears our name and is not held is left over, however young.
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

    /// Remembers who looks dead without certainty, and forgets who does no more.
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

    /// Whether what the listing showed to be an orphan is one still, as far as is known here.
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

    /// Whether others may have been kept from showing their life: a server that kept us waiting did not hear them
    /// either, and each of them needs the time until its next heartbeat.
    fn has_doubts(&self) -> bool {
        self.stalled.get().is_some_and(|at| at.elapsed() < 2 * self.pool.shared.heartbeat)
    }

    fn stall(&self) -> Obstacle {
        self.stalled.set(Some(Instant::now()));
        Obstacle::Slow
    }

    /// PING with a nonce, as the first candidate whom the server lets in: a listing behind a prompt answer shows
    /// everybody's activity.
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
                // At once: nobody is there, or there is no place. Both say that nothing is stalled.
                Err(_) if asked.elapsed() < PROMPT => return Err(Obstacle::Unavailable),
                Err(_) => return Err(self.stall()),
                // A dial takes its time on a fast server, too: only what follows is measured.
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
        // 0: another proxy was faster, or it is gone by itself.
        if killed > 0 {
            metrics::counter!("redbouncer_orphans_killed_total", "reason" => orphan.why.label()).increment(1);
            let (age, idle) = (row.age.as_secs(), row.idle.as_secs());
            let reason = orphan.why.label();
            tracing::warn!(reason, id = row.id, addr = row.addr, name = row.name, age, idle, "orphan killed");
        }
        Ok(())
    }

    /// Whether only the control connection can show that we live: there is no lane, or none that is answered.
    fn depends_on_control(&self) -> bool {
        let shared = &self.pool.shared;
        let mut held = shared.budget.holdings();
        held.retain(|row| row.phase == Phase::Open && row.kind != Kind::Control);
        let has_lane = held.iter().any(|row| row.kind == Kind::Lane);
        let lanes_speak = has_lane && shared.liveness.age(Instant::now()) < shared.heartbeat.mul_f64(1.5);
        !held.is_empty() && !lanes_speak
    }

    /// Where others depend on the control connection to see that we live, it speaks within every heartbeat; at once for
    /// the relief of a lane that wants to leave.
    async fn show_life(&self, relief: bool) {
        // Looked at every quarter of a heartbeat.
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

    /// What an error in reply to LIST or KILL means; a refusal is logged once.
    fn refusal(&self, obstacle: Obstacle, answer: &[u8]) -> Obstacle {
        let text = resp::error_text(answer).map(printable).unwrap_or_default();
        // A script that runs for too long, a server that loads: it allows later what it does not allow now.
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
