//! Finds orphans and kills them, and shows the server that we live.
//!
//! Runs on the control connection, which no command of a client delays, at the start, then every `hygiene.interval`, and
//! whenever a connection was lost whose end the server may not have seen.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{HygieneOptions, Orphan, Own, orphans};
use crate::pool::{Control, Holding, Kind, Phase, Pool, Unavailable};
use crate::resp::{self, Protocol, encode};
use crate::session::Listed;
use crate::telemetry::UpstreamClose;
use crate::upstream::{Backoff, Identity};

/// A server that does not answer a PING within this time has not read the others' either: everyone looks idle.
const PROMPT: Duration = Duration::from_secs(1);
/// A listing that took longer says nothing about now.
const FRESH: Duration = Duration::from_secs(5);
/// After a loss, before the server is asked: a loss seldom comes alone.
const SETTLE: Duration = Duration::from_millis(100);
/// Between rounds that have to be repeated, at the least.
const AGAIN: Duration = Duration::from_secs(1);

/// As whom the server may be asked, the first choice first: numbers and identities.
pub type Candidates = Box<dyn Fn() -> Vec<(u64, Arc<Identity>)>>;

/// Finds orphans and kills them.
pub struct Reaper {
    pool: Rc<Pool>,
    control: Rc<Mutex<Control>>,
    options: HygieneOptions,
    candidates: Candidates,
    /// Whose login the server refused: the next candidate is asked for.
    refused: RefCell<HashSet<u64>>,
    /// What has been logged as standing in the way.
    told: Cell<Option<Obstacle>>,
    spoke: Cell<Instant>,
}

/// Why a round came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    /// The server cannot be reached, or only as somebody who has not logged in yet.
    Unavailable,
    /// It answers too slowly to judge by its listing.
    Slow,
    /// The user may not list clients.
    ListRefused,
    /// The user may not kill clients.
    KillRefused,
}

impl Obstacle {
    fn label(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Slow => "slow",
            Self::ListRefused => "list_refused",
            Self::KillRefused => "kill_refused",
        }
    }
}

/// How a round went that could be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// Nothing is left that nobody owns.
    Clean,
    /// A connection is too young to be judged.
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
        options: HygieneOptions,
        candidates: Candidates,
    ) -> Self {
        Self {
            pool,
            control,
            options,
            candidates,
            refused: RefCell::default(),
            told: Cell::new(None),
            spoke: Cell::new(Instant::now()),
        }
    }

    /// Runs until it is dropped; `first` is cancelled when the first round is over, however it went.
    pub async fn run(self, first: CancellationToken) {
        let mut due = Instant::now();
        let mut backoff = self.backoff();
        // Until a first round has come to its end, the next one is not far.
        let mut incomplete = true;
        loop {
            if self.options.reap && Instant::now() >= due {
                let outcome = self.round().await;
                self.note(&outcome);
                first.cancel();
                if outcome == Ok(Round::Clean) {
                    backoff = self.backoff();
                    incomplete = false;
                }
                // A little apart from the other proxies of this server.
                let interval = self.options.interval.mul_f64(0.9 + 0.2 * fastrand::f64());
                due = Instant::now() + if incomplete { backoff.next().max(AGAIN) } else { interval };
            }
            first.cancel();
            let pause = self.pool.shared.heartbeat.min(due.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = tokio::time::sleep(if self.options.reap { pause } else { self.pool.shared.heartbeat }) => {}
                () = self.pool.shared.budget.lost() => {
                    tokio::time::sleep(SETTLE).await;
                    (due, incomplete) = (Instant::now(), true);
                }
            }
            self.show_life().await;
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(AGAIN, self.options.interval.max(AGAIN))
    }

    /// One listing, judged, and what follows from it.
    async fn round(&self) -> Result<Round, Obstacle> {
        let mut control = self.control.lock().await;
        let was_open = control.is_open();
        let outcome = self.judge_and_kill(&mut control).await;
        if !was_open {
            control.close(&self.pool, UpstreamClose::Idle).await;
        }
        outcome
    }

    async fn judge_and_kill(&self, control: &mut Control) -> Result<Round, Obstacle> {
        let (user, identity) = self.greet(control).await?;
        let asked = Instant::now();
        let before = self.pool.shared.budget.ids();
        let listing = self.ask(control, user, &identity, &[b"CLIENT", b"LIST"]).await;
        let listing = listing.map_err(|_| Obstacle::Unavailable)?;
        let Some(text) = resp::bulk(&listing) else {
            self.refusal(Obstacle::ListRefused, &listing);
            return Err(Obstacle::ListRefused);
        };
        if asked.elapsed() > FRESH {
            return Err(Obstacle::Slow);
        }
        let ids = before.zip(self.pool.shared.budget.ids()).map(|(before, after)| &before | &after);
        let rows = Listed::parse_all(text);
        let shared = &self.pool.shared;
        let youth = shared.upstream.connect_timeout + shared.upstream.loading_retry;
        let own = Own { instance: &shared.instance, ids: ids.as_ref(), youth };
        let found = orphans(&rows, Some(own), self.options.orphan_after);
        for orphan in &found {
            if asked.elapsed() > FRESH {
                return Err(Obstacle::Slow);
            }
            self.kill(control, user, &identity, orphan).await?;
        }
        let own_prefix = shared.instance.to_string();
        let unsure = ids.is_some_and(|ids| {
            rows.iter()
                .any(|row| row.name.starts_with(&own_prefix) && !ids.contains(&row.id) && row.age < youth)
        });
        Ok(if unsure { Round::Unsure } else { Round::Clean })
    }

    /// PING with a nonce, as the first candidate whom the server lets in: a listing behind a prompt answer shows
    /// everybody's activity.
    async fn greet(&self, control: &mut Control) -> Result<(u64, Arc<Identity>), Obstacle> {
        let candidates = (self.candidates)();
        let usable = |user: &u64| !self.refused.borrow().contains(user);
        for (user, identity) in candidates.into_iter().filter(|(user, _)| usable(user)) {
            let nonce = format!("{:016x}", fastrand::u64(..));
            // The dial is not the server's slowness.
            match self.ask(control, user, &identity, &[b"PING"]).await {
                Err(Unavailable::LoginRefused(_)) => {
                    self.refused.borrow_mut().insert(user);
                    continue;
                }
                Err(_) => return Err(Obstacle::Unavailable),
                Ok(_) => {}
            }
            let asked = Instant::now();
            let answer = self.ask(control, user, &identity, &[b"PING", nonce.as_bytes()]).await;
            let answer = answer.map_err(|_| Obstacle::Unavailable)?;
            // Where PING is refused, the refusal is an answer too.
            let ours = resp::bulk(&answer) == Some(nonce.as_bytes()) || resp::is_error(&answer);
            self.spoke.set(Instant::now());
            return if ours && asked.elapsed() < PROMPT { Ok((user, identity)) } else { Err(Obstacle::Slow) };
        }
        Err(Obstacle::Unavailable)
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
        let answer = self.ask(control, user, identity, &words).await.map_err(|_| Obstacle::Unavailable)?;
        let Some(killed) = resp::integer(&answer) else {
            self.refusal(Obstacle::KillRefused, &answer);
            return Err(Obstacle::KillRefused);
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

    /// While only leases are held, which may be silent for hours, the control connection shows that we live.
    async fn show_life(&self) {
        let shared = &self.pool.shared;
        if self.spoke.get().elapsed() < shared.heartbeat.mul_f64(0.9) {
            return;
        }
        let open = |row: &Holding| row.phase == Phase::Open;
        let holdings = shared.budget.holdings();
        let speaks_itself = |kind: Kind| matches!(kind, Kind::Lane | Kind::Blocking | Kind::PubSub);
        if !holdings.iter().any(open) || holdings.iter().any(|row| open(row) && speaks_itself(row.kind)) {
            return;
        }
        let mut control = self.control.lock().await;
        // Whether it was answered or not, it was tried.
        let _ = self.greet(&mut control).await;
        self.spoke.set(Instant::now());
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

    fn refusal(&self, obstacle: Obstacle, answer: &[u8]) {
        if self.told.replace(Some(obstacle)) != Some(obstacle) {
            let text = resp::error_text(answer).map(String::from_utf8_lossy).unwrap_or_default();
            tracing::warn!(
                reason = obstacle.label(),
                server_says = %text,
                "orphans cannot be looked for; connections of dead proxies stay until the server's own keepalive"
            );
        }
    }

    fn note(&self, outcome: &Result<Round, Obstacle>) {
        let label = match outcome {
            Ok(_) => {
                self.told.set(None);
                "judged"
            }
            Err(obstacle) => obstacle.label(),
        };
        metrics::counter!("redbouncer_orphan_rounds_total", "outcome" => label).increment(1);
        tracing::debug!(outcome = label, "looked for orphans");
    }
}
