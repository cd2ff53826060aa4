//! Many instances on one server, with the delays of a network, that come, drain, crash and vanish while the server restarts now
//! and then. After every event all claims and all connections are counted; a broken rule shows itself.

use std::time::Duration;

use super::super::member::Member;
use super::super::pace::Pace;
use super::*;

const OPTIONS: FleetOptions =
    FleetOptions { total: 40, headroom: 2, minimum: 4, interval: Duration::from_secs(5) };
/// Milliseconds that connections of a vanished host stay.
const REAPED: u64 = 90_000;
/// Of leases, in milliseconds.
const MEAN: f64 = 3_000.0;

/// A rule that is broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// A claim that does not fit is kept.
    Withdrawal,
    /// Less is registered than is granted.
    Register,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    /// Its host is lost; its connections stay until then.
    Vanished(u64),
    Gone,
}

/// What the own task does.
enum Doing {
    /// Connects the control connection, which is there at this time.
    Dials(u64),
    Sleeps(u64),
    /// The announcement reaches the server then.
    Asks(u64, Registered),
    /// Its answer comes back then.
    Hears(u64, Vec<Member>),
    /// The former claim reaches the server then.
    Withdraws(u64),
}

struct Proxy {
    life: Life,
    rules: Rules,
    pace: Pace,
    doing: Doing,
    verdict: Verdict,
    /// What the server has.
    control: Option<Option<Registered>>,
    rows: usize,
    /// Whether permits may be granted.
    is_verified: bool,
    greed: usize,
    drains: bool,
    dials: Vec<u64>,
    leases: Vec<u64>,
    closes: Vec<u64>,
    /// Connections that no listing has confirmed yet: the control connection of one that starts, or has lost it.
    unfunded: usize,
    /// The server's restart is noticed then.
    notices: Option<u64>,
    due_unused: u64,
    joined: u64,
    settled: Option<u64>,
}

#[derive(Default)]
struct Counted {
    violations: usize,
    raises: usize,
    withdrawals: usize,
    most_rows: usize,
    slowest: u64,
    joins: usize,
}

struct World {
    now: u64,
    random: fastrand::Rng,
    proxies: Vec<Proxy>,
    broken: Broken,
    counted: Counted,
}

impl Proxy {
    fn has_control(&self) -> bool {
        !matches!(self.doing, Doing::Dials(_))
    }

    fn held(&self) -> usize {
        self.dials.len() + self.leases.len() + self.closes.len() + usize::from(self.has_control())
    }

    fn need(&self) -> Need {
        let wanted = if self.drains { 1 } else { 1 + self.greed };
        Need { held: self.held(), wanted, most: OPTIONS.total, ..Need::default() }
    }

    fn member(&self) -> Option<Member> {
        let rows = self.rows + usize::from(self.control.is_some());
        (rows > 0).then(|| Member {
            instance: self.rules.me.clone(),
            rows,
            registered: self.control.flatten(),
            address: String::new(),
        })
    }

    /// What is justified by a listing, or there.
    fn used(&self) -> usize {
        let rows = self.rows + usize::from(self.control.is_some());
        if self.control.flatten().is_some() { rows.max(self.rules.claim) } else { rows }
    }

    fn next(&self) -> Option<u64> {
        match self.life {
            Life::Gone => return None,
            Life::Vanished(until) => return Some(until),
            Life::Alive => {}
        }
        let doing = match &self.doing {
            Doing::Dials(at)
            | Doing::Sleeps(at)
            | Doing::Asks(at, _)
            | Doing::Hears(at, _)
            | Doing::Withdraws(at) => *at,
        };
        let rest = self.dials.iter().chain(&self.leases).chain(&self.closes).chain(&self.notices);
        rest.copied().min().map_or(Some(doing), |at| Some(at.min(doing)))
    }
}

impl World {
    fn new(seed: u64, broken: Broken) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { now: 0, random, proxies: Vec::new(), broken, counted: Counted::default() }
    }

    fn soon(&mut self) -> u64 {
        self.now + self.random.u64(1..10)
    }

    fn lease(&mut self) -> u64 {
        let length = -MEAN * (1.0 - self.random.f64()).ln();
        self.now + 1 + Duration::from_secs_f64(length / 1e3).as_millis() as u64
    }

    fn join(&mut self, greed: usize) {
        let me = Instance { name: "sim".to_owned(), boot: format!("{:08x}", self.random.u32(..)) };
        let dials = Doing::Dials(self.soon());
        self.counted.joins += 1;
        self.proxies.push(Proxy {
            life: Life::Alive,
            rules: Rules::new(OPTIONS, me),
            pace: Pace::default(),
            doing: dials,
            verdict: Verdict::Kept,
            control: None,
            rows: 0,
            is_verified: false,
            greed,
            drains: false,
            dials: Vec::new(),
            leases: Vec::new(),
            closes: Vec::new(),
            unfunded: 1,
            notices: None,
            due_unused: 0,
            joined: self.now,
            settled: None,
        });
    }

    /// Something happens to one of them, or to the server.
    fn churn(&mut self) {
        let alive: Vec<usize> =
            (0..self.proxies.len()).filter(|at| self.proxies[*at].life == Life::Alive).collect();
        let one = alive.get(self.random.usize(..alive.len().max(1))).copied();
        match (self.random.u8(..20), one) {
            (0, Some(at)) => {
                let proxy = &mut self.proxies[at];
                (proxy.life, proxy.rows, proxy.control) = (Life::Gone, 0, None);
            }
            (1, Some(at)) => self.proxies[at].life = Life::Vanished(self.now + REAPED),
            (2, Some(at)) => self.proxies[at].drains = true,
            (3, _) => self.restart(),
            (4..10, _) if alive.len() < 8 => {
                let greed = self.random.usize(..OPTIONS.total);
                self.join(greed);
            }
            (_, Some(at)) => self.proxies[at].greed = self.random.usize(..OPTIONS.total),
            (_, None) => {}
        }
    }

    fn restart(&mut self) {
        for at in 0..self.proxies.len() {
            let notices = self.now + self.random.u64(0..5);
            let proxy = &mut self.proxies[at];
            (proxy.rows, proxy.control, proxy.notices) = (0, None, Some(notices));
            if matches!(proxy.life, Life::Vanished(_)) {
                proxy.life = Life::Gone;
            }
        }
    }

    fn members(&self) -> Vec<Member> {
        self.proxies.iter().filter_map(Proxy::member).collect()
    }

    fn act(&mut self, at: usize) {
        if self.proxies[at].life != Life::Alive {
            let proxy = &mut self.proxies[at];
            if matches!(proxy.life, Life::Vanished(until) if until <= self.now) {
                (proxy.life, proxy.rows, proxy.control) = (Life::Gone, 0, None);
            }
            return;
        }
        if self.proxies[at].notices.is_some_and(|when| when <= self.now) {
            self.lose_everything(at);
        }
        self.connections(at);
        self.task(at);
        let now = self.now;
        let proxy = &mut self.proxies[at];
        if proxy.rules.claim >= OPTIONS.minimum && proxy.settled.is_none() {
            proxy.settled = Some(now);
            self.counted.slowest = self.counted.slowest.max(now - proxy.joined);
        }
    }

    fn lose_everything(&mut self, at: usize) {
        let back = self.soon();
        let proxy = &mut self.proxies[at];
        proxy.notices = None;
        proxy.leases.clear();
        proxy.closes.clear();
        proxy.is_verified = false;
        // Its dials go on: they may have reached the server that is there now.
        proxy.unfunded = 1 + proxy.dials.len();
        proxy.doing = Doing::Dials(back);
    }

    fn connections(&mut self, at: usize) {
        let now = self.now;
        let due = |times: &mut Vec<u64>| {
            let before = times.len();
            times.retain(|when| *when > now);
            before - times.len()
        };
        let (opened, closed, ended) = {
            let proxy = &mut self.proxies[at];
            let opened = due(&mut proxy.dials);
            // While the server restarts, nothing is accepted.
            let accepted = if proxy.notices.is_some() { 0 } else { opened };
            (accepted, due(&mut proxy.closes), due(&mut proxy.leases))
        };
        for _ in 0..opened {
            let end = self.lease();
            self.proxies[at].leases.push(end);
        }
        self.proxies[at].rows += opened;
        self.proxies[at].rows = self.proxies[at].rows.saturating_sub(closed);
        for _ in 0..ended {
            let (end, close) = (self.lease(), self.soon());
            let proxy = &mut self.proxies[at];
            let is_needed = !proxy.drains && proxy.leases.len() < proxy.greed;
            if proxy.held() + 1 > proxy.rules.share || !is_needed {
                proxy.closes.push(close);
            } else {
                proxy.leases.push(end);
            }
        }
        loop {
            // With a TLS handshake and a login.
            let arrives = self.now + self.random.u64(1..50);
            let proxy = &mut self.proxies[at];
            let used = proxy.leases.len() + proxy.dials.len();
            let may = proxy.is_verified && proxy.held() < proxy.rules.share;
            if proxy.drains || used >= proxy.greed || !may {
                break;
            }
            proxy.dials.push(arrives);
        }
    }

    fn task(&mut self, at: usize) {
        let (now, soon) = (self.now, self.soon());
        let broken = self.broken;
        let random = self.random.f64();
        let proxy = &mut self.proxies[at];
        let has_shrunk = proxy.rules.share < proxy.rules.claim && proxy.held() < proxy.rules.claim;
        match std::mem::replace(&mut proxy.doing, Doing::Sleeps(u64::MAX)) {
            Doing::Dials(when) if when <= now => {
                proxy.control = Some(None);
                proxy.doing = Doing::Sleeps(now);
                proxy.rules.restart(proxy.held());
            }
            Doing::Sleeps(when) if when <= now || has_shrunk => {
                if proxy.drains && proxy.held() == 1 {
                    (proxy.life, proxy.control) = (Life::Gone, None);
                    return;
                }
                let need = proxy.need();
                proxy.rules.note(&need);
                if proxy.due_unused <= now {
                    proxy.due_unused = now + OPTIONS.interval.as_millis() as u64;
                    proxy.rules.give_up_unused(&need);
                }
                let plan = proxy.rules.plan(&need);
                proxy.rules.take(plan);
                let held = proxy.held();
                let mut registered = proxy.rules.announce(plan, &need, held);
                if broken == Broken::Register && !matches!(plan, Plan::Raise(_)) {
                    registered.claim = (registered.claim - 1).max(1);
                    proxy.rules.announced = Some(registered);
                }
                proxy.doing = Doing::Asks(soon, registered);
            }
            Doing::Asks(when, registered) if when <= now && proxy.control.is_some() => {
                proxy.control = Some(Some(registered));
                let listed = self.members();
                self.proxies[at].doing = Doing::Hears(soon, listed);
            }
            Doing::Hears(when, listed) if when <= now => {
                let (clients, announced) =
                    (listed.iter().map(|member| member.rows).sum(), proxy.rules.announced);
                proxy.verdict = proxy.rules.judge(listed);
                assert!(proxy.verdict != Verdict::Unlisted);
                if proxy.verdict == Verdict::Withdrawn && broken == Broken::Withdrawal {
                    let claim = announced.map_or(1, |announced| announced.claim);
                    (proxy.rules.claim, proxy.rules.share) = (claim, claim);
                    proxy.verdict = Verdict::Raised;
                }
                if used(&proxy.rules.others) + proxy.rules.claim <= OPTIONS.claimable() {
                    proxy.unfunded = 0;
                }
                proxy.is_verified = true;
                let need = proxy.need();
                let pause =
                    proxy.pace.next((&proxy.rules, &need), proxy.verdict, OPTIONS.interval, clients, random);
                let again = now + (pause.as_millis() as u64).max(1);
                let is_withdrawn = proxy.verdict == Verdict::Withdrawn;
                proxy.doing = if is_withdrawn { Doing::Withdraws(soon) } else { Doing::Sleeps(again) };
                self.counted.raises += usize::from(self.proxies[at].verdict == Verdict::Raised);
                self.counted.withdrawals += usize::from(is_withdrawn);
            }
            Doing::Withdraws(when) if when <= now && proxy.control.is_some() => {
                let need = proxy.need();
                proxy.control = Some(Some(proxy.rules.registered(&need)));
                proxy.doing = Doing::Sleeps(now + 10 + (90.0 * random) as u64);
            }
            // The server has restarted, which is about to be noticed.
            Doing::Asks(when, _) | Doing::Withdraws(when) if when <= now => {}
            other => proxy.doing = other,
        }
    }

    fn count(&mut self) {
        let (mut used, mut rows, mut unfunded) = (0, 0, 0);
        for proxy in self.proxies.iter().filter(|proxy| proxy.life != Life::Gone) {
            used += proxy.used();
            rows += proxy.rows + usize::from(proxy.control.is_some());
            unfunded += proxy.unfunded;
        }
        let above = unfunded.saturating_sub(OPTIONS.headroom);
        let is_broken = used > OPTIONS.claimable() + unfunded || rows > OPTIONS.total + above;
        self.counted.violations += usize::from(is_broken);
        self.counted.most_rows = self.counted.most_rows.max(rows);
    }

    fn run(&mut self, until: u64, churn: bool) {
        let mut next_churn = self.now;
        while self.now < until {
            let next = self.proxies.iter().filter_map(Proxy::next).min().unwrap_or(until);
            self.now = next.max(self.now + 1).min(if churn { next_churn.max(self.now + 1) } else { until });
            if churn && self.now >= next_churn {
                next_churn = self.now + self.random.u64(100..3_000);
                self.churn();
                self.proxies.retain(|proxy| proxy.life != Life::Gone);
            }
            for at in 0..self.proxies.len() {
                self.act(at);
            }
            self.count();
        }
    }
}

fn churned(seed: u64, broken: Broken) -> Counted {
    let mut world = World::new(seed, broken);
    world.run(10 * 60_000, true);
    world.counted
}

#[test]
fn whatever_happens_to_instances_and_server_claims_never_exceed_what_may_be_claimed() {
    let (mut raises, mut withdrawals, mut most) = (0, 0, 0);
    for seed in 0..8 {
        let counted = churned(seed, Broken::Nothing);
        assert_eq!(counted.violations, 0, "seed {seed}");
        raises += counted.raises;
        withdrawals += counted.withdrawals;
        most = most.max(counted.most_rows);
    }
    assert!(
        raises > 500 && withdrawals > 5,
        "{raises} raises, {withdrawals} withdrawals: nothing was shared"
    );
    assert!(most > OPTIONS.claimable() / 2, "{most}: it was never crowded");
}

#[test]
fn a_claim_that_does_not_fit_and_is_kept_is_noticed() {
    assert!((0..12).any(|seed| churned(seed, Broken::Withdrawal).violations > 0));
}

#[test]
fn a_claim_below_what_is_granted_is_noticed() {
    assert!((0..12).any(|seed| churned(seed, Broken::Register).violations > 0));
}

#[test]
fn one_alone_has_everything_and_a_newcomer_soon_has_its_minimum() {
    for seed in 0..20 {
        let mut world = World::new(seed, Broken::Nothing);
        world.join(OPTIONS.total);
        world.run(1_000, false);
        assert_eq!(world.proxies[0].rules.claim, OPTIONS.claimable(), "alone it has everything");
        (1..8).for_each(|_| world.join(OPTIONS.total));
        world.run(60_000, false);
        let claims: Vec<usize> = world.proxies.iter().map(|proxy| proxy.rules.claim).collect();
        assert!(claims.iter().all(|claim| [4, 5].contains(claim)), "38 among 8: {claims:?}");
        world.counted.slowest = 0;
        world.join(OPTIONS.total);
        world.run(60_000 + 25_000, false);
        let newcomer = world.proxies.last().map_or(0, |proxy| proxy.rules.claim);
        assert!(newcomer >= OPTIONS.minimum, "seed {seed}: {newcomer} after 25 s");
        assert_eq!(world.counted.violations, 0);
    }
}

#[test]
fn after_a_restart_of_the_server_the_parts_are_fair_again_within_a_second() {
    for seed in 0..20 {
        let mut world = World::new(seed, Broken::Nothing);
        (0..8).for_each(|_| world.join(OPTIONS.total));
        world.run(60_000, false);
        world.restart();
        world.run(61_000, false);
        let claims: Vec<usize> = world.proxies.iter().map(|proxy| proxy.rules.claim).collect();
        assert!(claims.iter().all(|claim| *claim >= OPTIONS.minimum), "seed {seed}: {claims:?}");
        assert_eq!(world.counted.violations, 0, "seed {seed}");
    }
}
