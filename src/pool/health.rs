//! Whether the server can be reached and lets us in: said once when it changes, and who may try during an outage.
//!
//! During an outage every waiting session wants to dial again and again. One dials at a time, often, and the first
//! success wakes all the others. A line in the log for each failure would bury the one that matters.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::Instant;

use super::Kind;
use crate::telemetry::seconds;
use crate::upstream::{CredentialSource, DialError, Identity};

/// A failure is a warning again after this long.
const REPEAT: Duration = Duration::from_secs(10);
/// Between two dials of an outage, whoever makes them: less than `upstream.connect_rate` gives by default, so that most of
/// a second's dials are left when the server is back.
const SPACING: Duration = Duration::from_millis(100);

/// The state of the way to the server.
#[derive(Debug, Default)]
pub struct Health {
    outage: Mutex<Option<Outage>>,
    recovered: Notify,
    /// Wakes whoever waits for an outage to end, in their order: a watch channel wakes in a random one.
    reached: Notify,
    /// Held by the one that dials during an outage.
    probe: Arc<tokio::sync::Mutex<()>>,
    /// When each dial began that has not ended yet.
    attempts: Mutex<BTreeSet<(Instant, u64)>>,
    closed: Mutex<Option<ClosedForWant>>,
    /// The server refuses the login of `upstream.url`.
    refused: Mutex<Option<RefusedLogin>>,
    /// The server has accepted a login since the start, or has asked for one of a client.
    has_reached: AtomicBool,
    /// Wakes who tries the login of `upstream.url` again.
    look: Notify,
    /// Wakes who knows whether another server is the master now.
    doubt: Notify,
    /// Clients that were closed because their server was lost, or another one took its place.
    lost_clients: AtomicU64,
}

/// That the server does not let in who `upstream.url` says we are: nothing but another password, there or here, ends it.
#[derive(Clone, Debug)]
pub struct RefusedLogin {
    /// Since when.
    pub since: Instant,
    /// The server's error, code first.
    pub text: String,
    warned: Instant,
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    warned: Instant,
    /// When the last dial failed, and what its clients are told.
    failed: Instant,
    text: String,
    dials: u64,
}

/// Clients that were closed because there was no server.
#[derive(Clone, Debug)]
pub struct ClosedForWant {
    /// How many, since the start.
    pub clients: u64,
    /// The last of them: when, and why there was none.
    pub at: Instant,
    /// The error that the client would have got.
    pub reason: String,
}

/// A dial under way.
pub(super) struct Attempt<'a> {
    health: &'a Health,
    entry: (Instant, u64),
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.health.attempts.lock().remove(&self.entry);
    }
}

impl Health {
    /// How long the server has not been reached; `None` when the last dial succeeded.
    #[must_use]
    pub fn down_for(&self) -> Option<Duration> {
        self.outage.lock().as_ref().map(|outage| outage.since.elapsed())
    }

    /// Why the last dial of this outage failed, in words for a client.
    #[must_use]
    pub fn why_down(&self) -> Option<String> {
        self.outage.lock().as_ref().map(|outage| outage.text.clone())
    }

    /// Whether the last dial succeeded, and the server lets in who `upstream.url` says we are.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.has_reached() && self.outage.lock().is_none() && self.refused.lock().is_none()
    }

    /// Whether the server has accepted a login since the start, or has asked for one of a client.
    #[must_use]
    pub fn has_reached(&self) -> bool {
        self.has_reached.load(Ordering::Relaxed)
    }

    /// That the server refuses the login of `upstream.url`, while it does.
    #[must_use]
    pub fn refused(&self) -> Option<RefusedLogin> {
        self.refused.lock().clone()
    }

    /// Waits until the login of `upstream.url` is to be tried although no client needs it: it was refused, or has other
    /// credentials now.
    pub async fn login_wanted(&self) {
        self.look.notified().await;
    }

    /// The login of `upstream.url` has other credentials now.
    pub fn try_the_login(&self) {
        self.look.notify_one();
    }

    /// Something suggests that another server is the master now: a connection was lost, a dial has failed, a write was refused.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Waits until something suggests that; at once when it did since the last time.
    pub async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// There is another server: whoever pauses between two dials goes on.
    pub fn server_has_moved(&self) {
        self.reached.notify_waiters();
    }

    /// A client was closed because its server was lost, or another one took its place.
    pub fn loses_a_client(&self) {
        self.lost_clients.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were, since the start.
    #[must_use]
    pub fn lost_clients(&self) -> u64 {
        self.lost_clients.load(Ordering::Relaxed)
    }

    /// Publishes whether the server is there.
    pub fn publish(&self) {
        metrics::gauge!("redbouncer_upstream_up").set(f64::from(u8::from(self.is_up())));
    }

    /// Waits until a dial succeeds after one that has failed; at once when that happened since the last time.
    pub async fn recovered(&self) {
        self.recovered.notified().await;
    }

    /// Sleeps between two dials: for `at_most`, or until the server has been reached by somebody else.
    pub async fn pause(&self, at_most: Duration) {
        // Late or woken: the pause is over.
        drop(tokio::time::timeout(at_most, self.reached.notified()).await);
    }

    /// Waits for the turn to dial: none is needed unless there is an outage. To be held until the dial has ended.
    pub(super) async fn turn(&self) -> Option<OwnedMutexGuard<()>> {
        // From here on it is told, whenever it is waited for.
        let reached = self.reached.notified();
        if self.outage.lock().is_none() {
            return None;
        }
        let turn = async {
            let turn = Arc::clone(&self.probe).lock_owned().await;
            let last = self.outage.lock().as_ref().map(|outage| outage.failed);
            if let Some(last) = last {
                tokio::time::sleep_until(last + SPACING).await;
            }
            turn
        };
        tokio::select! {
            biased;
            () = reached => None,
            turn = turn => Some(turn),
        }
    }

    /// A dial begins.
    pub(super) fn attempt(&self) -> Attempt<'_> {
        let mut attempts = self.attempts.lock();
        let now = Instant::now();
        let number = attempts.last().map_or(0, |(_, number)| number.wrapping_add(1));
        attempts.insert((now, number));
        Attempt { health: self, entry: (now, number) }
    }

    /// Whether a dial has been under way for `time` or longer.
    pub(super) fn has_tried_for(&self, time: Duration) -> bool {
        self.attempts.lock().first().is_some_and(|(began, _)| began.elapsed() >= time)
    }

    /// What the clients of a dial are told that has failed during this outage, `recently` or less ago.
    pub(super) fn failed_within(&self, recently: Duration) -> Option<String> {
        let outage = self.outage.lock();
        outage.as_ref().filter(|outage| outage.failed.elapsed() <= recently).map(|outage| outage.text.clone())
    }

    /// A client is closed because there is no server.
    pub fn closes_a_client(&self, reason: String) {
        let mut closed = self.closed.lock();
        let clients = closed.as_ref().map_or(0, |closed| closed.clients) + 1;
        *closed = Some(ClosedForWant { clients, at: Instant::now(), reason });
    }

    /// The clients that were closed because there was no server, if there were any.
    #[must_use]
    pub fn closed_for_want(&self) -> Option<ClosedForWant> {
        self.closed.lock().clone()
    }

    /// A dial as `identity` has succeeded.
    pub(super) fn succeeded(&self, identity: &Identity) {
        self.has_reached.store(true, Ordering::Relaxed);
        if identity.source == CredentialSource::Url
            && let Some(refused) = self.refused.lock().take()
        {
            tracing::info!(
                after_seconds = seconds(refused.since.elapsed()),
                "the server accepts the login of upstream.url again"
            );
        }
        if let Some(outage) = self.outage.lock().take() {
            self.recovered.notify_one();
            self.reached.notify_waiters();
            tracing::info!(
                after_seconds = seconds(outage.since.elapsed()),
                dials = outage.dials,
                "upstream reached again"
            );
        }
        self.publish();
    }

    /// The server has refused the login of `upstream.url`: an error, because no command of that user can be served.
    fn refuses_us(&self, user: &str, error: &DialError) {
        let now = Instant::now();
        let mut state = self.refused.lock();
        let is_new = state.is_none();
        let refused = state.get_or_insert_with(|| RefusedLogin {
            since: now,
            text: String::new(),
            warned: now - REPEAT,
        });
        refused.text = error.public_text();
        if now - refused.warned >= REPEAT {
            refused.warned = now;
            let refused_seconds = seconds(refused.since.elapsed());
            tracing::error!(user, %error, refused_seconds, "the server refuses the login of upstream.url; its clients get errors");
        }
        drop(state);
        if is_new {
            self.look.notify_one();
        }
        self.publish();
    }

    /// A dial as `identity` has failed.
    pub(super) fn failed(&self, kind: Kind, identity: &Identity, error: &DialError) {
        let (kind, user) = (kind.label(), identity.name());
        match error {
            // An answer: the server is there, and whoever asked is told.
            DialError::SelectRefused { .. } => {
                tracing::debug!(kind, user, %error, "upstream connection refused");
            }
            DialError::Login { .. } if is_for_the_operator(identity, error) => self.refuses_us(user, error),
            DialError::Login { .. } => {
                self.has_reached.store(true, Ordering::Relaxed);
                tracing::info!(kind, user, %error, "upstream login refused");
            }
            _ => {
                let now = Instant::now();
                let mut state = self.outage.lock();
                let outage = state.get_or_insert_with(|| Outage {
                    since: now,
                    warned: now - REPEAT,
                    failed: now,
                    text: String::new(),
                    dials: 0,
                });
                outage.failed = now;
                outage.text = error.public_text();
                outage.dials += 1;
                if now - outage.warned >= REPEAT {
                    outage.warned = now;
                    let down_seconds = seconds(outage.since.elapsed());
                    tracing::warn!(kind, user, %error, down_seconds, dials = outage.dials, "upstream connection failed");
                } else {
                    tracing::debug!(kind, user, %error, "upstream connection failed");
                }
                drop(state);
                self.publish();
                self.doubt();
            }
        }
    }
}

/// Whether nothing that a client could say ends this refusal. Without a password in the configuration it may be that only
/// clients are to log in; `DENIED` is about where we come from.
fn is_for_the_operator(identity: &Identity, error: &DialError) -> bool {
    identity.source == CredentialSource::Url && (identity.password.is_some() || !error.refuses_identity())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Secret;

    const REFUSED: DialError = DialError::MaxClients { text: String::new() };

    #[tokio::test(start_paused = true)]
    async fn during_an_outage_one_dials_and_its_success_wakes_all() {
        let health = Arc::new(Health::default());
        assert!(health.turn().await.is_none(), "without an outage nobody waits for a turn");
        health.failed(Kind::Lane, &Identity::default(), &REFUSED);
        let turn = health.turn().await;
        assert!(turn.is_some());
        let others: Vec<_> = (0..100)
            .map(|_| {
                let health = Arc::clone(&health);
                tokio::spawn(async move { health.turn().await.is_none() })
            })
            .collect();
        let sleeper = Arc::clone(&health);
        let sleeper = tokio::spawn(async move { sleeper.pause(Duration::from_secs(3600)).await });
        tokio::task::yield_now().await;
        assert!(others.iter().all(|other| !other.is_finished()));
        health.succeeded(&Identity::default());
        for other in others {
            assert!(other.await.is_ok_and(|needs_no_turn| needs_no_turn));
        }
        assert!(sleeper.await.is_ok());
        drop(turn);
        assert!(health.turn().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_came_to_nothing_is_the_next_one_s() {
        let health = Arc::new(Health::default());
        health.failed(Kind::Lane, &Identity::default(), &REFUSED);
        for _ in 0..5 {
            assert!(health.turn().await.is_some());
            health.failed(Kind::Lane, &Identity::default(), &REFUSED);
        }
    }

    #[test]
    fn an_attempt_counts_until_it_has_ended() {
        let health = Health::default();
        let first = health.attempt();
        let second = health.attempt();
        assert!(health.has_tried_for(Duration::ZERO));
        drop(first);
        assert!(health.has_tried_for(Duration::ZERO));
        drop(second);
        assert!(!health.has_tried_for(Duration::ZERO));
    }

    #[test]
    fn a_refused_login_of_the_url_ends_with_one_that_is_accepted() {
        let health = Health::default();
        let own = Identity { password: Some(Secret::new("old")), ..Identity::default() };
        let client = Identity { source: CredentialSource::Client, ..own.clone() };
        let refusal = DialError::Login { text: "WRONGPASS".to_owned() };
        assert!(!health.is_up(), "nobody has logged in yet");
        health.succeeded(&own);
        health.failed(Kind::Lane, &client, &refusal);
        assert!(health.is_up() && health.refused().is_none(), "a client's own password");
        health.failed(Kind::Lane, &Identity::default(), &refusal);
        assert!(health.is_up(), "there is no password: clients log in themselves");
        health.failed(Kind::Lane, &own, &refusal);
        assert_eq!(health.refused().map(|refused| refused.text).as_deref(), Some("WRONGPASS"));
        health.succeeded(&client);
        assert!(!health.is_up(), "it is somebody else whom the server lets in");
        health.succeeded(&own);
        assert!(health.is_up() && health.refused().is_none());
    }
}
