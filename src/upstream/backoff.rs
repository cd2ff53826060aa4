//! How long to wait before a failed dial is repeated.
//!
//! The bound doubles with every failure and the wait is drawn evenly below it, so that many proxies which lost the
//! same server at the same moment do not come back at the same moment.

use std::time::Duration;

/// Growing, jittered waits between `backoff_min` and `backoff_max`.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    /// The next wait is drawn from `min` to this.
    bound: Duration,
    random: fastrand::Rng,
}

impl Backoff {
    /// Waits of at least `min` and at most `max`; a `max` below `min` counts as `min`.
    pub fn new(min: Duration, max: Duration) -> Self {
        let max = max.max(min);
        Self { min, max, bound: min.saturating_mul(2).min(max), random: fastrand::Rng::new() }
    }

    /// The wait after one more failure.
    #[expect(clippy::should_implement_trait, reason = "an endless sequence with a reset is no iterator")]
    pub fn next(&mut self) -> Duration {
        let bound = self.bound;
        self.bound = bound.saturating_mul(2).min(self.max);
        self.min + bound.saturating_sub(self.min).mul_f64(self.random.f64())
    }

    /// After a success: the next failure waits shortly again.
    pub fn reset(&mut self) {
        self.bound = self.min.saturating_mul(2).min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(2);

    #[test]
    fn waits_stay_between_the_bounds_however_often_it_fails() {
        let mut backoff = Backoff::new(MIN, MAX);
        for _ in 0..10_000 {
            let wait = backoff.next();
            assert!((MIN..=MAX).contains(&wait), "{wait:?}");
        }
    }

    #[test]
    fn the_bound_doubles_until_the_longest_wait() {
        let mut backoff = Backoff::new(MIN, MAX);
        let mut bounds = Vec::new();
        for _ in 0..8 {
            bounds.push(backoff.bound.as_millis());
            backoff.next();
        }
        assert_eq!(bounds, [100, 200, 400, 800, 1600, 2000, 2000, 2000]);
    }

    #[test]
    fn waits_are_spread_over_the_whole_range() {
        let mut backoff = Backoff::new(MIN, MAX);
        for _ in 0..6 {
            backoff.next();
        }
        let waits: Vec<f64> = (0..4_000).map(|_| backoff.next().as_secs_f64()).collect();
        // Even between 0.05 and 2: each quarter of the range holds a quarter of the waits.
        for quarter in 0..4 {
            let low = 0.05 + 1.95 * f64::from(quarter) / 4.0;
            let share = waits.iter().filter(|w| (low..low + 1.95 / 4.0).contains(*w)).count();
            assert!((800..1_200).contains(&share), "quarter {quarter}: {share} of 4000");
        }
    }

    #[test]
    fn two_proxies_do_not_wait_alike() {
        let (mut a, mut b) = (Backoff::new(MIN, MAX), Backoff::new(MIN, MAX));
        let alike = (0..100).filter(|_| a.next() == b.next()).count();
        assert!(alike < 5, "{alike} of 100");
    }

    #[test]
    fn a_success_makes_the_next_wait_short_again() {
        let mut backoff = Backoff::new(MIN, MAX);
        for _ in 0..10 {
            backoff.next();
        }
        backoff.reset();
        assert!(backoff.next() <= 2 * MIN);
    }

    #[test]
    fn equal_bounds_give_that_wait() {
        let mut backoff = Backoff::new(MAX, MIN);
        assert_eq!((backoff.next(), backoff.next()), (MAX, MAX));
    }
}
