//! What is known of what the server accepts.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Form {
    pub(super) accepted: Instant,
    /// A call of this form is on its way, to see whether that still holds.
    pub(super) asking: bool,
}

/// What is known of what the server accepts.
#[derive(Debug, Default)]
pub(super) struct Checks {
    /// By what the server judges apart from the keys.
    pub(super) forms: HashMap<Bytes, Form>,
    /// Forms with their keys, and when they were last asked.
    pub(super) keyed: HashMap<Bytes, Instant>,
    pub(super) last_key: Option<Instant>,
    /// The last moment at which this connection's server is known to have been a master: it ran a write, or said so.
    pub(super) master_at: Option<Instant>,
    /// The user may not ask for the server's role.
    pub(super) role_refused: bool,
    pub(super) left_for_role: Option<Instant>,
}

impl Checks {
    pub(super) fn was_master(&mut self, at: Instant) {
        self.master_at = self.master_at.max(Some(at));
    }

    pub(super) fn note_key(&mut self, keyed: Bytes, now: Instant) {
        // One that is not remembered is asked about again, at the same pace.
        if keyed.len() > LONGEST {
            return;
        }
        if self.keyed.len() >= FORMS && !self.keyed.contains_key(&keyed) {
            self.keyed.clear();
        }
        self.keyed.insert(keyed, now);
    }

    /// Another connection, perhaps to another server.
    pub(super) fn forget(&mut self) {
        *self = Self { left_for_role: self.left_for_role, ..Self::default() };
    }
}

/// Bytes of a form, with its keys, that is remembered.
const LONGEST: usize = 4 << 10;

/// So many forms of calls are known to be accepted at once, and so many forms with their keys.
pub(super) const FORMS: usize = 1_000;
