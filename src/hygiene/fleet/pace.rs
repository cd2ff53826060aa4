//! How often an instance looks at the others: rarely while it needs nothing, soon while it waits, and never so often that the
//! listings of all instances cost the server more than a small part of its time.

use std::time::Duration;

use super::rules::{Need, Plan, Rules, Verdict};

/// What one client costs the server in a CLIENT LIST: 2 µs, measured with Redis 7.0 (3 ms with 1,500 clients).
const COST: Duration = Duration::from_micros(2);
/// Of so much time of the server, one part is for listings: 0.2 %.
const RARITY: u32 = 500;
/// The first pause of one that waits for others to give something up.
const HUNGRY: Duration = Duration::from_millis(50);
/// Its longest pause.
const HUNGRY_AT_LAST: Duration = Duration::from_secs(1);
/// After a claim that did not fit, at the least, and as much again at random: others may have tried at the same time.
const WITHDRAWN: Duration = Duration::from_millis(10);
/// Between two looks while more is held than may be: what closes is reported at once.
const SHRINKING: Duration = Duration::from_millis(250);

/// The pauses between looks.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Looks in a row that have not helped one that waits.
    in_vain: u32,
}

impl Pace {
    /// How long until the next look. `clients`: rows in the listing, whoever they belong to. `random`: 0 to 1.
    #[must_use]
    pub(super) fn next(
        &mut self,
        (rules, need): (&Rules, &Need),
        verdict: Verdict,
        interval: Duration,
        clients: usize,
        random: f64,
    ) -> Duration {
        let listing = COST * u32::try_from(clients).unwrap_or(u32::MAX);
        let sparing = |looking: usize| {
            listing.saturating_mul(RARITY).saturating_mul(u32::try_from(looking).unwrap_or(u32::MAX))
        };
        let plan = rules.plan(need);
        if matches!(plan, Plan::Lower(_)) {
            return Duration::ZERO;
        }
        if matches!(plan, Plan::Raise(_)) {
            return match verdict {
                Verdict::Withdrawn => WITHDRAWN + WITHDRAWN.mul_f64(9.0 * random),
                // Those who were as quick as this one, after a restart of the server, have the time to show what they want.
                Verdict::Raised => HUNGRY.mul_f64(0.75 + random / 2.0),
                Verdict::Kept | Verdict::Unlisted => Duration::ZERO,
            };
        }
        let hungry = 1 + rules.others().iter().filter(|other| other.wants()).count();
        if rules.share() < rules.claim() {
            return SHRINKING.max(sparing(hungry));
        }
        if rules.wanted(need) > rules.claim() {
            let pause = HUNGRY * 2_u32.pow(self.in_vain.min(8));
            self.in_vain += 1;
            let pause = pause.min(HUNGRY_AT_LAST).min(interval);
            return pause.mul_f64(0.75 + random / 2.0).max(sparing(hungry));
        }
        self.in_vain = 0;
        // A little apart from the others.
        interval.mul_f64(0.9 + random / 5.0).max(sparing(1 + rules.others().len()))
    }
}
