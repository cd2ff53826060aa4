//! The counters of one worker's hot path: plain cells, published once a second.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use metrics::{Counter, counter};
use tokio::time::Instant;

use crate::command::{Asked, Row, UNKNOWN_FAMILY, family, family_name, number_of, rows};
use crate::session::Pin;
use crate::telemetry::{Counted, Seconds};

/// The counters of one worker.
pub(in crate::downstream) struct WorkerMetrics {
    pub(in crate::downstream) bytes_in: Counted,
    pub(in crate::downstream) bytes_out: Counted,
    /// By row of the command table, and one more for commands that have none.
    commands: Vec<Cell<u64>>,
    handles: RefCell<HashMap<usize, Counter>>,
    /// By family, and one more for commands that have none.
    families: Vec<Rc<Seconds>>,
    leases: Rc<LeaseMetrics>,
    pub(in crate::downstream) label: String,
}

impl WorkerMetrics {
    pub(super) fn new(index: usize) -> Self {
        let bytes = |direction: &'static str| {
            Counted::new(counter!("redbouncer_client_bytes_total", "direction" => direction))
        };
        Self {
            bytes_in: bytes("in"),
            bytes_out: bytes("out"),
            commands: (0..=rows().len()).map(|_| Cell::new(0)).collect(),
            handles: RefCell::default(),
            families: (0..=UNKNOWN_FAMILY).map(|_| Rc::new(Seconds::short())).collect(),
            leases: Rc::new(LeaseMetrics::new()),
            label: index.to_string(),
        }
    }

    /// Counts a command under its row.
    pub(in crate::downstream) fn count(&self, asked: &Asked) {
        let at = match asked.row {
            Some(row) => number_of(row),
            None => rows().len(),
        };
        if let Some(cell) = self.commands.get(at) {
            cell.set(cell.get() + 1);
        }
    }

    /// Where the time goes to that a command of `row` takes.
    pub(in crate::downstream) fn family_of(&self, row: Option<&'static Row>) -> Option<Rc<Seconds>> {
        self.families.get(family(row)).cloned()
    }

    /// A lease begins for `pin`. It ends when the guard is dropped.
    pub(in crate::downstream) fn lease(&self, pin: Pin, now: Instant) -> HeldLease {
        let of_pin = &self.leases.0[pin as usize];
        of_pin.taken.add(1);
        of_pin.held.set(of_pin.held.get() + 1);
        HeldLease { leases: Rc::clone(&self.leases), pin, since: now }
    }

    /// The leases that are held now and how long others were held, by pin.
    pub(in crate::downstream) fn leases(&self) -> Vec<(&'static str, usize, Seconds)> {
        let all = Pin::ALL.iter().zip(&self.leases.0);
        all.map(|(pin, of_pin)| (pin.label(), of_pin.held.get(), of_pin.seconds.clone())).collect()
    }

    /// How long commands took, by family: those that were measured.
    pub(in crate::downstream) fn families(&self) -> Vec<(&'static str, Seconds)> {
        let all = self.families.iter().enumerate().filter(|(_, seconds)| seconds.count() > 0);
        all.map(|(family, seconds)| (family_name(family), (**seconds).clone())).collect()
    }

    /// Publishes the counts since the last call.
    pub(in crate::downstream) fn publish(&self) {
        self.bytes_in.publish();
        self.bytes_out.publish();
        self.leases.0.iter().for_each(|of_pin| of_pin.taken.publish());
        let mut handles = self.handles.borrow_mut();
        for (at, cell) in self.commands.iter().enumerate() {
            let count = cell.replace(0);
            if count > 0 {
                let name = rows().get(at).map_or("unknown", |row| row.name);
                handles
                    .entry(at)
                    .or_insert_with(|| counter!("redbouncer_commands_total", "command" => name))
                    .increment(count);
            }
        }
    }
}

/// The leases of one worker, in the order of [`Pin::ALL`].
struct LeaseMetrics([OfPin; Pin::ALL.len()]);

struct OfPin {
    taken: Counted,
    held: Cell<usize>,
    /// Of those that have ended.
    seconds: Seconds,
}

impl LeaseMetrics {
    fn new() -> Self {
        Self(Pin::ALL.map(|pin| OfPin {
            taken: Counted::new(counter!("redbouncer_leases_total", "pin" => pin.label())),
            held: Cell::new(0),
            seconds: Seconds::long(),
        }))
    }
}

/// A lease that is counted as held until this is dropped.
#[must_use]
pub(in crate::downstream) struct HeldLease {
    leases: Rc<LeaseMetrics>,
    pin: Pin,
    since: Instant,
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        let of_pin = &self.leases.0[self.pin as usize];
        of_pin.held.set(of_pin.held.get().saturating_sub(1));
        of_pin.seconds.record(self.since.elapsed());
    }
}
