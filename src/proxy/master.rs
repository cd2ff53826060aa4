//! Follows the master that Sentinels name: found at the start, left when another one takes its place.
//!
//! The master is asked about all the time: by what Sentinels publish, every `upstream.sentinel.poll`, and whenever something is
//! wrong with its connections. [`Sentinels`] says whom to follow; that server is asked whether it is the master; then new
//! connections go there, and the workers leave the former one.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::downstream::Workers;
use crate::pool::Shared;
use crate::telemetry::{publish_gauge, seconds};
use crate::upstream::sentinel::{MemberState, Naming, NotTheMaster, Sentinels, Verdict, verify};
use crate::upstream::topology::{Followed, MasterSwitch};
use crate::upstream::{Backoff, HostPort, PreparedTarget, UpstreamOptions};

/// Between two rounds while there is no master, or it is not sure which one it is.
const HURRY: Duration = Duration::from_millis(200);
/// How long they are asked so often because they do not say the same: one that is cut off may do so for ever.
const DIVIDED: Duration = Duration::from_secs(15);
/// Between two questions to a server that does not say yet that it is the master.
const NOT_YET: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];
/// How often it is said that no Sentinel answers, or that the server they name is not the master.
const REPEAT: Duration = Duration::from_secs(10);

/// Follows the master while the process lives.
pub(super) struct MasterFollower {
    shared: Shared,
    workers: Workers,
    /// The master that is used, as announced.
    current: Option<HostPort>,
    service: Option<String>,
    unsure: Unsure,
    /// When it was last said that the server that is named is not the master.
    warned: Option<Instant>,
    /// When it was last said that no Sentinel answers, while that is so.
    silent: Option<Instant>,
    /// Since when not all Sentinels name the same master.
    divided: Option<Instant>,
}

/// Whether all is well with the master, and since when it is not.
#[derive(Default)]
struct Unsure {
    since: Option<Instant>,
    /// Clients that had been lost when all was well.
    lost_before: u64,
    /// Whom to move to, where that has been said.
    told: Option<HostPort>,
}

impl MasterFollower {
    pub(super) fn new(shared: Shared, workers: Workers) -> Self {
        let unsure = Unsure::default();
        Self {
            shared,
            workers,
            current: None,
            service: None,
            unsure,
            warned: None,
            silent: None,
            divided: None,
        }
    }

    /// Runs until nobody changes the settings any more: to the end of the process.
    pub(super) async fn run(mut self, mut settings: watch::Receiver<UpstreamOptions>) {
        loop {
            let options = settings.borrow_and_update().clone();
            let service = options.service.as_ref().map(|service| service.name.clone());
            if self.service != service {
                self.service = service;
                self.current = None;
            }
            let name = self.shared.instance.connection("sentinel");
            let changed = match Sentinels::start(&options, name) {
                None => {
                    self.shared.connector.topology().show(|shown| *shown = None);
                    settings.changed().await
                }
                Some(sentinels) => tokio::select! {
                    biased;
                    changed = settings.changed() => changed,
                    never = self.follow(&options, sentinels) => match never {},
                },
            };
            if changed.is_err() {
                return;
            }
        }
    }

    async fn follow(&mut self, options: &UpstreamOptions, mut sentinels: Sentinels) -> Infallible {
        let [first, longest] = NOT_YET;
        let mut backoff = Backoff::new(first, longest);
        let (mut asked, mut verified_after) = (Instant::now(), Instant::now());
        loop {
            let next = asked + if self.is_in_a_hurry() { HURRY } else { options.sentinel.poll };
            tokio::select! {
                biased;
                () = sentinels.changed() => {}
                () = self.shared.health.doubted() => {
                    self.unsure.since.get_or_insert_with(Instant::now);
                    sentinels.ask();
                    asked = Instant::now();
                }
                () = sleep_until(next) => {
                    sentinels.ask();
                    asked = Instant::now();
                }
            }
            self.show(&sentinels);
            let is_lost = self.current.is_none() || self.shared.health.down_for().is_some();
            match sentinels.verdict(self.current.as_ref(), is_lost) {
                Verdict::Stay => self.stay(&sentinels, is_lost),
                Verdict::Follow(naming) => {
                    self.unsure.since.get_or_insert_with(Instant::now);
                    if Instant::now() < verified_after {
                        continue;
                    }
                    self.tell_of(&naming);
                    match self.move_to(options, &naming, is_lost).await {
                        Ok(()) => backoff.reset(),
                        Err(why) => {
                            self.warn_of(&naming, &why);
                            verified_after = Instant::now() + backoff.next();
                            sentinels.ask();
                        }
                    }
                }
            }
        }
    }

    /// Whether another master may be named soon.
    fn is_in_a_hurry(&self) -> bool {
        let is_divided = self.divided.is_some_and(|since| since.elapsed() < DIVIDED);
        self.current.is_none() || self.unsure.since.is_some() || is_divided
    }

    /// Nobody else is to be followed: whether that is because all is well.
    fn stay(&mut self, sentinels: &Sentinels, is_lost: bool) {
        if !sentinels.is_over() {
            return;
        }
        if sentinels.answering() == 0 {
            self.warn_of_silence(sentinels);
            return;
        }
        if self.silent.take().is_some() {
            tracing::info!(sentinels = sentinels.answering(), "Sentinels answer again");
        }
        let Some(current) = &self.current else { return };
        let is_divided = sentinels.is_divided(current);
        self.divided = self.divided.filter(|_| is_divided).or_else(|| is_divided.then(Instant::now));
        if !is_lost && (!is_divided || sentinels.confirms(current)) {
            self.unsure = Unsure { lost_before: self.shared.health.lost_clients(), ..Unsure::default() };
        }
    }

    /// Asks the server that is named for its role, and moves everything there.
    async fn move_to(
        &mut self,
        options: &UpstreamOptions,
        naming: &Naming,
        is_lost: bool,
    ) -> Result<(), NotTheMaster> {
        let name = self.shared.instance.connection("role");
        verify(options, &naming.master, self.shared.connector.own_identity(), name).await?;
        let at = options.at(&naming.master);
        let prepared = tokio::task::spawn_blocking(move || PreparedTarget::quietly(&at)).await;
        let prepared = prepared.map_err(|_| NotTheMaster::Silent)??;
        let had_a_server = !self.shared.connector.is_unlocated();
        self.shared.connector.replace(prepared, true);
        self.shared.health.server_has_moved();
        let now = Instant::now();
        let (master, epoch) = (naming.master.clone(), naming.epoch);
        let from = self.current.replace(master.clone());
        let unsure = std::mem::take(&mut self.unsure);
        self.unsure.lost_before = unsure.lost_before;
        (self.warned, self.silent) = (None, None);
        let took = now - unsure.since.unwrap_or(now);
        let failover = from.clone().map(|from| MasterSwitch { from, at: now, took });
        self.shared.connector.topology().show(|shown| {
            if let Some(shown) = shown {
                shown.master = Some((master.clone(), now));
                shown.last_failover = failover.or_else(|| shown.last_failover.take());
            }
        });
        let service = self.service.clone().unwrap_or_default();
        let Some(from) = from else {
            let (votes, known) = (naming.votes, naming.known);
            tracing::info!(service, %master, epoch, votes, known, "the Sentinels name the master");
            if had_a_server {
                self.workers.move_upstream().await;
            }
            return Ok(());
        };
        metrics::counter!("redbouncer_master_switches_total", "cause" => cause(is_lost)).increment(1);
        metrics::gauge!("redbouncer_master_switch_seconds").set(took.as_secs_f64());
        let (workers, health) = (self.workers.clone(), std::sync::Arc::clone(&self.shared.health));
        let grace = options.switch_grace;
        tokio::task::spawn_local(async move {
            workers.switch_master(grace).await;
            let clients_closed = health.lost_clients().saturating_sub(unsure.lost_before);
            let (took_seconds, cause) = (seconds(took), cause(is_lost));
            tracing::warn!(service, %from, to = %master, epoch, cause, took_seconds, clients_closed, "the failover is over");
        });
        Ok(())
    }

    /// Says once that another master is named.
    fn tell_of(&mut self, naming: &Naming) {
        let Naming { master, epoch, votes, known } = naming;
        let (Some(from), service) = (&self.current, self.service.as_deref().unwrap_or_default()) else {
            return;
        };
        if self.unsure.told.as_ref() == Some(master) {
            return;
        }
        self.unsure.told = Some(master.clone());
        tracing::warn!(service, %from, to = %master, epoch, votes, known, "the Sentinels name another master; connections move there");
        if !naming.is_by_majority() {
            tracing::warn!(
                votes,
                known,
                "fewer than half of the Sentinels answer; redbouncer follows them because the master is lost"
            );
        }
    }

    fn warn_of(&mut self, naming: &Naming, why: &NotTheMaster) {
        let (service, master) = (self.service.as_deref().unwrap_or_default(), &naming.master);
        if is_due(&mut self.warned) {
            tracing::warn!(service, %master, reason = %why, "the server that the Sentinels name is not used yet");
        } else {
            tracing::debug!(service, %master, reason = %why, "the server that the Sentinels name is not used yet");
        }
    }

    fn warn_of_silence(&mut self, sentinels: &Sentinels) {
        if !is_due(&mut self.silent) {
            return;
        }
        let (service, rows) = (self.service.as_deref().unwrap_or_default(), sentinels.rows());
        let reasons: Vec<_> = rows
            .iter()
            .map(|row| format!("{}: {}", row.address, row.reason.as_deref().unwrap_or("no answer yet")))
            .collect();
        let sentinels = reasons.join("; ");
        match &self.current {
            Some(master) => {
                tracing::warn!(service, %master, sentinels, "no Sentinel answers; the last master stays in use");
            }
            None => {
                tracing::error!(
                    service,
                    sentinels,
                    "no Sentinel names a master; commands wait and then fail"
                );
            }
        }
    }

    /// For listings and metrics.
    fn show(&self, sentinels: &Sentinels) {
        let rows = sentinels.rows();
        for state in MemberState::ALL {
            let count = rows.iter().filter(|row| row.state == state).count();
            publish_gauge("redbouncer_sentinels", &[("state", state.label())], count);
        }
        let service = self.service.clone().unwrap_or_default();
        self.shared.connector.topology().show(|shown| match shown {
            Some(shown) if shown.service == service => shown.sentinels = rows,
            Some(_) | None => {
                *shown = Some(Followed { service, master: None, sentinels: rows, last_failover: None });
            }
        });
    }
}

/// Why a master was left.
fn cause(is_lost: bool) -> &'static str {
    if is_lost { "lost" } else { "switched" }
}

/// Whether something is to be said that was last said at `last`.
fn is_due(last: &mut Option<Instant>) -> bool {
    let is_due = last.is_none_or(|at| at.elapsed() >= REPEAT);
    if is_due {
        *last = Some(Instant::now());
    }
    is_due
}
