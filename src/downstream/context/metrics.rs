//! The counters of one worker's hot path: plain cells, published once a second.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use metrics::{Counter, counter};

use crate::command::{Asked, number_of, rows};
use crate::telemetry::Counted;

/// The counters of one worker.
pub(in crate::downstream) struct WorkerMetrics {
    pub(in crate::downstream) bytes_in: Counted,
    pub(in crate::downstream) bytes_out: Counted,
    /// By row of the command table, and one more for commands that have none.
    commands: Vec<Cell<u64>>,
    handles: RefCell<HashMap<usize, Counter>>,
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

    /// Publishes what has been counted since the last time.
    pub(in crate::downstream) fn publish(&self) {
        self.bytes_in.publish();
        self.bytes_out.publish();
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
