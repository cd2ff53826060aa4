//! Failed logins by the address they come from, so that guessing costs the server and everybody else next to nothing.
//!
//! An address may fail [`BURST`] times at once and then once every [`INTERVAL`]; beyond that its logins are refused
//! without asking anybody, except those that are remembered. The same wrong secret again, which is what a service with
//! a stale password sends, is answered from memory and is not counted here.
//!
//! What an address has failed is remembered for longer, as its *blame*: it keeps nobody out, and says who is looked at
//! first where several wait.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Mutex as Turn;
use tokio::time::Instant;

/// One failure is forgotten after this.
const INTERVAL: Duration = Duration::from_millis(200);
/// Failures of one address that are checked without a pause.
const BURST: u32 = 20;
/// One failure is part of an address's blame for so long.
const BLAMED: Duration = Duration::from_secs(10);
/// The most blame there is.
const MOST_BLAME: u32 = 60;
/// Maximum number of remembered addresses.
const MOST: usize = 4096;

/// The failures of each address.
#[derive(Debug, Default)]
pub(in crate::downstream) struct Failures(Mutex<HashMap<IpAddr, Record>>);

#[derive(Debug)]
struct Record {
    /// When all its failures will be forgotten (the generic cell rate algorithm).
    due: Instant,
    /// When it will have no blame any more.
    clean: Instant,
    /// One login of an address is checked at a time, so an address with many logins delays others by at most one check.
    turn: Arc<Turn<()>>,
}

impl Failures {
    /// How long `address` has to wait; `None`: it may try.
    pub(in crate::downstream) fn wait(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let records = self.0.lock();
        let due = records.get(&key(address))?.due;
        let over = due.saturating_duration_since(now).checked_sub(INTERVAL * (BURST - 1))?;
        (!over.is_zero()).then_some(over)
    }

    /// A login from `address` was refused.
    pub(in crate::downstream) fn failed(&self, address: IpAddr, now: Instant) {
        self.with(address, now, |record| {
            record.due = record.due.max(now) + INTERVAL;
            record.clean = (record.clean.max(now) + BLAMED).min(now + BLAMED * MOST_BLAME);
        });
    }

    /// How often `address` has failed lately: 0 for one that has not.
    pub(in crate::downstream) fn blame(&self, address: IpAddr, now: Instant) -> u32 {
        let records = self.0.lock();
        let left = records.get(&key(address)).map(|record| record.clean.saturating_duration_since(now));
        let failures = left.unwrap_or_default().as_millis().div_ceil(BLAMED.as_millis());
        u32::try_from(failures).unwrap_or(MOST_BLAME)
    }

    /// The turn of `address` among its own logins.
    pub(in crate::downstream) fn turn(&self, address: IpAddr, now: Instant) -> Arc<Turn<()>> {
        self.with(address, now, |record| Arc::clone(&record.turn))
    }

    fn with<T>(&self, address: IpAddr, now: Instant, then: impl FnOnce(&mut Record) -> T) -> T {
        let mut records = self.0.lock();
        let address = key(address);
        if records.len() >= MOST && !records.contains_key(&address) {
            make_room(&mut records, now);
        }
        then(records.entry(address).or_insert_with(|| Record { due: now, clean: now, turn: Arc::default() }))
    }
}

/// Drops expired entries, or else the half with the fewest failures. Runs rarely enough to be cheap.
fn make_room(records: &mut HashMap<IpAddr, Record>, now: Instant) {
    records.retain(|_, record| record.clean > now || Arc::strong_count(&record.turn) > 1);
    if records.len() >= MOST {
        let mut times: Vec<_> = records.values().map(|record| record.clean).collect();
        let (_, middle, _) = times.select_nth_unstable(MOST / 2);
        let middle = *middle;
        records.retain(|_, record| record.clean > middle);
    }
}

/// An IPv6 host has a whole /64 to itself.
fn key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn an_address_that_fails_too_often_waits_and_others_do_not() {
        let (failures, now) = (Failures::default(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(failures.wait(ONE, now), None);
            failures.failed(ONE, now);
        }
        let wait = failures.wait(ONE, now);
        assert!(wait.is_some_and(|wait| wait <= INTERVAL), "{wait:?}");
        assert_eq!(failures.wait(OTHER, now), None);
        assert_eq!(failures.wait(ONE, now + INTERVAL), None);
        failures.failed(ONE, now + INTERVAL);
        assert!(failures.wait(ONE, now + INTERVAL).is_some());
    }

    #[test]
    fn blame_outlasts_the_pause_and_ends() {
        let (failures, now) = (Failures::default(), Instant::now());
        assert_eq!(failures.blame(ONE, now), 0);
        for _ in 0..3 {
            failures.failed(ONE, now);
        }
        assert_eq!((failures.blame(ONE, now), failures.blame(OTHER, now)), (3, 0));
        // An address that guesses at the permitted rate is still blamed.
        assert_eq!(failures.wait(ONE, now + BLAMED), None);
        assert_eq!(failures.blame(ONE, now + BLAMED), 2);
        assert_eq!(failures.blame(ONE, now + 3 * BLAMED), 0);
        for _ in 0..1000 {
            failures.failed(ONE, now);
        }
        assert_eq!(failures.blame(ONE, now), MOST_BLAME);
    }

    #[test]
    fn a_million_addresses_are_not_remembered() {
        let (failures, now) = (Failures::default(), Instant::now());
        for _ in 0..=BURST {
            failures.failed(ONE, now);
        }
        for number in 0..3 * MOST {
            let number = u32::try_from(number).unwrap_or_default();
            failures.failed(std::net::Ipv4Addr::from_bits(0x0b00_0000 + number).into(), now);
        }
        assert!(failures.0.lock().len() <= MOST);
        assert!(failures.wait(ONE, now).is_some(), "the worst is not forgotten for the sake of new ones");
    }

    #[test]
    fn an_ipv6_host_is_its_network() {
        let at = |text: &str| key(text.parse().unwrap_or(ONE));
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:10.0.0.1"), ONE);
    }
}
