//! Keeps this instance's claim registered, and the budget within it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::board::{FleetBoard, FleetPicture, FleetState};
use super::member::{Member, members};
use super::pace::Pace;
use super::rules::{Need, Plan, Rules, Verdict};
use super::{FleetOptions, used};
use crate::hygiene::Candidates;
use crate::pool::{Budget, Control, Pool, Unavailable};
use crate::resp::{self, ErrorCode, Protocol, encode};
use crate::session::Listed;
use crate::telemetry::{FleetRaise, printable};
use crate::upstream::{Backoff, Identity, Registered};

/// How often it is looked whether the control connection is there still.
const LOOK: Duration = Duration::from_millis(100);
/// The same while more is held than may be: what has closed is told to the others.
const LOOK_CLOSELY: Duration = Duration::from_millis(20);
/// Between two looks, at the least.
const GAP: Duration = Duration::from_millis(20);
/// Between two tries to reach the server while somebody waits for a connection.
const WHILE_AWAITED: Duration = Duration::from_millis(200);
/// A server that lets nobody register or list is asked again after this.
const REFUSED: Duration = Duration::from_secs(60);

/// Why there is no listing.
#[derive(Debug)]
enum Obstacle {
    /// No login is available for the search.
    NoLogin,
    /// The control connection cannot be had, or has not answered.
    Unreachable,
    /// The server does not do what is needed; its words.
    Refused(String),
}

/// Keeps the claim.
pub struct FleetKeeper {
    pool: Rc<Pool>,
    control: Rc<Mutex<Control>>,
    options: FleetOptions,
    candidates: Candidates,
    board: Arc<FleetBoard>,
    rules: Rules,
    pace: Pace,
    backoff: Backoff,
    /// The control connection that the claim is registered on.
    registered_on: Option<u64>,
    /// When what is not used was given up last.
    spared: Instant,
    /// Whose login the server has refused, and when.
    refused: RefCell<HashMap<u64, Instant>>,
    state: FleetState,
    /// It is registered that another process takes this one's place.
    leaves: bool,
    /// That the claim cannot be registered is in the log.
    is_told: bool,
}

/// When the next look is due, and when it may be if something happens before.
#[derive(Clone, Copy, Debug)]
struct Next {
    due: Duration,
    earliest: Duration,
}

impl std::fmt::Debug for FleetKeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FleetKeeper").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl FleetKeeper {
    /// A keeper that asks on `control`, as one of `candidates`.
    #[must_use]
    pub fn new(
        pool: Rc<Pool>,
        control: Rc<Mutex<Control>>,
        options: FleetOptions,
        candidates: Candidates,
        board: Arc<FleetBoard>,
    ) -> Self {
        let rules = Rules::new(options, (*pool.shared.instance).clone());
        let backoff = pool.backoff();
        Self {
            pool,
            control,
            options,
            candidates,
            board,
            rules,
            pace: Pace::default(),
            backoff,
            registered_on: None,
            spared: Instant::now(),
            refused: RefCell::default(),
            state: FleetState::Unregistered,
            leaves: false,
            is_told: false,
        }
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        let budget = Arc::clone(&self.pool.shared.budget);
        let mut due = Instant::now();
        let mut earliest = due;
        loop {
            if Instant::now() >= due {
                let next = self.look().await;
                let now = Instant::now();
                (due, earliest) = (now + next.due, now + next.earliest);
            }
            let step = if self.is_shrinking() { LOOK_CLOSELY } else { LOOK };
            let rest = due.saturating_duration_since(Instant::now()).min(step);
            let is_wanted = tokio::select! {
                biased;
                () = budget.share_wanted() => true,
                () = tokio::time::sleep(rest) => false,
            };
            self.watch(&budget);
            if self.is_urgent(&budget, is_wanted) {
                due = due.min(earliest.max(Instant::now()));
            }
        }
    }

    /// Whether the next look should not wait.
    fn is_urgent(&mut self, budget: &Budget, is_wanted: bool) -> bool {
        let need = need(budget);
        self.rules.note(&need);
        let is_in_doubt = budget.fleet().is_some_and(|fleet| !fleet.is_certain);
        match self.state {
            // Tried again and again already; sooner where somebody waits.
            FleetState::Unregistered | FleetState::NoLogin => is_in_doubt && is_wanted,
            FleetState::Unlisted => is_in_doubt,
            FleetState::Registered => {
                let has_shrunk = self.is_shrinking() && need.held < self.rules.claim();
                let is_due = match self.rules.plan(&need) {
                    Plan::Lower(_) => true,
                    Plan::Raise(_) => is_wanted,
                    Plan::Keep(_) => need.leaves != self.leaves,
                };
                is_in_doubt || has_shrunk || is_due
            }
        }
    }

    fn is_shrinking(&self) -> bool {
        self.rules.share() < self.rules.claim()
    }

    /// A control connection that the server has closed registers nothing any more.
    fn watch(&self, budget: &Budget) {
        // In use: then whoever uses it finds out.
        let Ok(control) = self.control.try_lock() else { return };
        let is_certain = budget.fleet().is_some_and(|fleet| fleet.is_certain);
        if is_certain && self.registered_on.is_some() && control.number() != self.registered_on {
            budget.doubt_share();
        }
    }

    /// One look. Returns when the next one is due.
    async fn look(&mut self) -> Next {
        let control = Rc::clone(&self.control);
        let mut control = control.lock().await;
        let looked = self.look_on(&mut control).await;
        self.state = match &looked {
            Ok(_) => FleetState::Registered,
            Err(Obstacle::NoLogin) => FleetState::NoLogin,
            Err(Obstacle::Unreachable) => FleetState::Unregistered,
            Err(Obstacle::Refused(_)) => FleetState::Unlisted,
        };
        self.board.is_now(self.state);
        match looked {
            Ok((verdict, clients)) => {
                self.backoff.reset();
                self.tell_of_success();
                let need = need(&self.pool.shared.budget);
                let asked = (&self.rules, &need);
                let due = self.pace.next(asked, verdict, self.options.interval, clients, fastrand::f64());
                Next { due, earliest: if verdict == Verdict::Withdrawn { due } else { GAP } }
            }
            Err(Obstacle::NoLogin) => {
                // A lane for the login of a client, by whom the server can be asked then.
                self.grant(2);
                Next { due: LOOK, earliest: LOOK }
            }
            Err(Obstacle::Unreachable) => {
                let due = self.backoff.next();
                Next { due, earliest: due.min(WHILE_AWAITED) }
            }
            Err(Obstacle::Refused(text)) => {
                if self.asks_as_somebody_else(&mut control).await {
                    return Next { due: GAP, earliest: GAP };
                }
                self.grant(self.options.minimum);
                self.tell_of_refusal(&text);
                Next { due: REFUSED, earliest: GAP }
            }
        }
    }

    /// The connection was open for another one's question, who may do less than the first candidate: it is opened as that one.
    async fn asks_as_somebody_else(&self, control: &mut Control) -> bool {
        let Some((user, identity)) = (self.candidates)().into_iter().next() else { return false };
        if self.refused.borrow().contains_key(&user) {
            return false;
        }
        let speaks_as = control.speaks_as().map(|(user, _)| user);
        speaks_as.is_some_and(|other| other != user) && self.reach_as(control, user, &identity).await.is_ok()
    }

    /// What may be granted where nothing is known of the others.
    fn grant(&self, share: usize) {
        let budget = &self.pool.shared.budget;
        let doubts = budget.fleet_demand().doubts;
        budget.set_share(share, 1, Some(doubts));
    }

    /// Announces, lists, and keeps or withdraws. Returns what came of it, and how many clients the server has.
    async fn look_on(&mut self, control: &mut Control) -> Result<(Verdict, usize), Obstacle> {
        self.reach(control).await?;
        let budget = Arc::clone(&self.pool.shared.budget);
        let number = control.number();
        let demand = budget.fleet_demand();
        let mut need = need(&budget);
        if self.registered_on != number || number.is_none() {
            self.registered_on = number;
            self.rules.restart(need.held);
        }
        self.rules.cover(need.held);
        if self.spared.elapsed() >= self.options.interval {
            self.spared = Instant::now();
            self.rules.give_up_unused(&need);
        }
        let plan = self.rules.plan(&need);
        let instances = 1 + self.rules.others().len();
        need.held = budget.set_share(self.rules.take(plan), instances, None);
        let announced = self.rules.announce(plan, &need, need.held);
        self.leaves = need.leaves;
        let rows = self.announce(control, announced).await?;
        let clients = rows.len();
        let listed = members(&rows);
        let verdict = self.rules.judge(listed.clone());
        match verdict {
            Verdict::Kept => {}
            Verdict::Raised => count(FleetRaise::Confirmed),
            Verdict::Withdrawn => {
                count(FleetRaise::Withdrawn);
                let name = self.name(self.rules.registered(&need));
                self.ask(control, &[&[b"CLIENT", b"SETNAME", name.as_bytes()]]).await?;
            }
            Verdict::Unlisted => {
                return Err(Obstacle::Refused(
                    "CLIENT LIST does not show this instance's own name".to_owned(),
                ));
            }
        }
        budget.set_share(self.rules.share(), listed.len().max(1), Some(demand.doubts));
        self.show(&need, listed);
        Ok((verdict, clients))
    }

    fn show(&self, need: &Need, members: Vec<Member>) {
        tracing::trace!(claim = self.rules.claim(), used = used(&members), "the fleet was listed");
        self.board.show(FleetPicture {
            state: FleetState::Registered,
            claim: self.rules.claim(),
            wanted: self.rules.wanted(need),
            fair: self.rules.fair(need),
            members,
        });
    }

    /// Opens the control connection, as whoever it is open for or as the first candidate whom the server lets in.
    async fn reach(&self, control: &mut Control) -> Result<(), Obstacle> {
        self.refused.borrow_mut().retain(|_, at| at.elapsed() < REFUSED);
        let candidates = (self.candidates)();
        let open = control.speaks_as().filter(|_| control.number().is_some());
        if open.is_some_and(|(user, _)| candidates.iter().any(|(candidate, _)| *candidate == user)) {
            return Ok(());
        }
        for (user, identity) in candidates {
            if self.refused.borrow().contains_key(&user) {
                continue;
            }
            match self.reach_as(control, user, &identity).await {
                Ok(()) => return Ok(()),
                Err(Unavailable::LoginRefused(_) | Unavailable::NoAuth) => {
                    self.refused.borrow_mut().insert(user, Instant::now());
                }
                Err(_) => return Err(Obstacle::Unreachable),
            }
        }
        Err(Obstacle::NoLogin)
    }

    async fn reach_as(
        &self,
        control: &mut Control,
        user: u64,
        identity: &Arc<Identity>,
    ) -> Result<(), Unavailable> {
        control.reach(&self.pool, user, identity, Protocol::Resp2).await
    }

    fn name(&self, registered: Registered) -> String {
        self.pool.shared.instance.registered(registered)
    }

    /// One write: the server runs both in order, with nothing of the announcement missing from the listing.
    async fn announce(&self, control: &mut Control, registered: Registered) -> Result<Vec<Listed>, Obstacle> {
        let name = self.name(registered);
        let answers =
            self.ask(control, &[&[b"CLIENT", b"SETNAME", name.as_bytes()], &[b"CLIENT", b"LIST"]]).await?;
        for answer in &answers {
            if let Some(text) = resp::error_text(answer) {
                return Err(match ErrorCode::of_text(text) {
                    // Errors that pass, such as BUSY and LOADING, are not refusals.
                    ErrorCode::Busy | ErrorCode::Loading => Obstacle::Unreachable,
                    _ => Obstacle::Refused(printable(text)), // any other word of the server is a refusal
                });
            }
        }
        let listing = answers.last().and_then(|answer| resp::bulk(answer)).unwrap_or_default();
        Ok(Listed::parse_all(listing))
    }

    async fn ask(&self, control: &mut Control, requests: &[&[&[u8]]]) -> Result<Vec<Bytes>, Obstacle> {
        let mut bytes = BytesMut::new();
        requests.iter().for_each(|words| encode::command(&mut bytes, words));
        control.exchange(&bytes, requests.len()).await.map_err(|_| Obstacle::Unreachable)
    }

    fn tell_of_refusal(&mut self, server_says: &str) {
        if !std::mem::replace(&mut self.is_told, true) {
            let minimum = self.options.minimum;
            tracing::warn!(
                minimum,
                server_says,
                "cannot share fleet.total_connections; this instance uses fleet.minimum"
            );
        }
    }

    fn tell_of_success(&mut self) {
        if std::mem::replace(&mut self.is_told, false) {
            tracing::info!("fleet.total_connections is shared again");
        }
    }
}

fn need(budget: &Budget) -> Need {
    let demand = budget.fleet_demand();
    Need {
        held: demand.held,
        wanted: demand.wanted,
        most: demand.most,
        leaves: demand.leaves,
        elsewhere: demand.elsewhere,
    }
}

fn count(outcome: FleetRaise) {
    metrics::counter!("redbouncer_fleet_raises_total", "outcome" => outcome.label()).increment(1);
}
