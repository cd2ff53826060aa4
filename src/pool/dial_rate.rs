//! How often connections are dialled: a storm of clients must not become a storm of logins.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Turns;

/// Spaces dials out: `rate` a second, with as many at once after a quiet second.
///
/// A place is taken only when the dial may begin, so whoever gives up while waiting takes nothing. Lanes and leases have a
/// queue each, in which users and addresses come in turn; who is first in either waits only for the rate.
#[derive(Debug)]
pub struct DialRateLimiter {
    pace: Mutex<Pace>,
    /// The time at which the next dial would be due if all had been evenly spaced (the generic cell rate algorithm).
    due: Mutex<Instant>,
    lanes: Arc<Turns>,
    leases: Arc<Turns>,
}

/// How dials are spaced.
#[derive(Clone, Copy, Debug)]
struct Pace {
    interval: Duration,
    burst: Duration,
}

impl Pace {
    fn of(rate: u32) -> Self {
        let interval = Duration::from_secs(1).checked_div(rate).unwrap_or_default();
        Self { interval, burst: interval * rate.saturating_sub(1) }
    }
}

impl DialRateLimiter {
    /// At most `rate` dials a second; 0 means no limit.
    #[must_use]
    pub fn new(rate: u32) -> Self {
        Self {
            pace: Mutex::new(Pace::of(rate)),
            due: Mutex::new(Instant::now()),
            lanes: Arc::default(),
            leases: Arc::default(),
        }
    }

    /// At most `rate` dials a second from now on.
    pub fn set(&self, rate: u32) {
        *self.pace.lock() = Pace::of(rate);
    }

    /// Waits until a lane, or what else many clients wait for, may be dialled for `user`.
    pub async fn lane(&self, user: u64) {
        let _turn = self.lanes.turn(user, None).await;
        self.next().await;
    }

    fn burst(&self) -> Duration {
        self.pace.lock().burst
    }

    async fn next(&self) {
        while let Some(wait) = self.take(Instant::now()) {
            tokio::time::sleep(wait).await;
        }
    }

    /// As [`Self::lane`], for dials that come after others: a quarter of what may be dialled at once is left to those.
    pub async fn lane_behind(&self) {
        while let Some(wait) = self.take_leaving(self.burst() / 4, Instant::now()) {
            tokio::time::sleep(wait).await;
        }
    }

    /// Waits until a lease may be dialled for a client of `user` at `address`.
    pub async fn lease(&self, user: u64, address: Option<IpAddr>) {
        let _turn = self.leases.turn(user, address).await;
        self.next().await;
    }

    /// Takes a place, or says how long there is none.
    fn take(&self, now: Instant) -> Option<Duration> {
        self.take_leaving(Duration::ZERO, now)
    }

    /// The same, where `reserve` of the burst stays behind.
    fn take_leaving(&self, reserve: Duration, now: Instant) -> Option<Duration> {
        let Pace { interval, burst } = *self.pace.lock();
        let mut due = self.due.lock();
        let at = (*due).max(now);
        let wait = at.saturating_duration_since(now).saturating_sub(burst.saturating_sub(reserve));
        if wait.is_zero() {
            *due = at + interval;
            return None;
        }
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_of_dials_passes_at_once_and_the_rest_is_spaced() {
        let gate = DialRateLimiter::new(20);
        let now = Instant::now();
        assert!((0..20).all(|_| gate.take(now).is_none()));
        assert!(gate.take(now).is_some());
        assert!(gate.take(now + Duration::from_millis(51)).is_none());
        assert!(gate.take(now + Duration::from_millis(52)).is_some());
        assert!(gate.take(now + Duration::from_secs(5)).is_none());
    }

    #[test]
    fn those_who_come_after_others_leave_them_a_quarter() {
        let gate = DialRateLimiter::new(20);
        let begin = Instant::now();
        let reserve = gate.burst() / 4;
        let mut others = 0;
        for millis in 0..3_000 {
            let now = begin + Duration::from_millis(millis);
            while gate.take_leaving(reserve, now).is_none() {}
            // Every other now and then finds a place at once, however many of the rest wait.
            if millis % 500 == 499 {
                assert!((0..4).all(|_| gate.take(now).is_none()), "after {millis} ms");
                others += 4;
            }
        }
        assert_eq!(others, 24);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_waiting_takes_no_place() {
        let gate = DialRateLimiter::new(20);
        let now = Instant::now();
        while gate.take(now).is_none() {}
        // Less than the 50 ms after which there is a place.
        for _ in 0..40 {
            let gave_up = tokio::time::timeout(Duration::from_millis(1), gate.lease(1, None)).await;
            assert!(gave_up.is_err());
        }
        assert!(gate.take(now + Duration::from_millis(51)).is_none());
    }

    /// The order in which those are let through who wait when no dial is free.
    async fn order(gate: &Arc<DialRateLimiter>, lease: bool, waiting: &[(u64, u8)]) -> Vec<usize> {
        while gate.take(Instant::now()).is_none() {}
        let through = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (number, (user, host)) in waiting.iter().copied().enumerate() {
            let (gate, through) = (Arc::clone(gate), Arc::clone(&through));
            tasks.push(tokio::spawn(async move {
                match lease {
                    true => gate.lease(user, Some([10, 0, 0, host].into())).await,
                    false => gate.lane(user).await,
                }
                through.lock().push(number);
            }));
            tokio::task::yield_now().await;
        }
        for task in tasks {
            assert!(task.await.is_ok());
        }
        through.lock().clone()
    }

    #[tokio::test(start_paused = true)]
    async fn many_dials_of_one_user_or_address_delay_another_s_by_one() {
        let gate = Arc::new(DialRateLimiter::new(20));
        let mut leases = vec![(1, 1); 8];
        leases.extend([(1, 2), (2, 3)]);
        // The first one need not queue.
        assert_eq!(order(&gate, true, &leases).await[..4], [0, 1, 9, 8]);
        let mut lanes = vec![(1, 0); 8];
        lanes.push((2, 0));
        assert_eq!(order(&gate, false, &lanes).await[..3], [0, 1, 8]);
    }
}
