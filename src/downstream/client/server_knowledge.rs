//! A client's knowledge of the server, which ends with its connection.

use std::cell::Cell;

use crate::upstream::Change;

/// Since which change of the server a client knows things that it forgets.
#[derive(Debug, Default)]
pub(super) struct ServerKnowledge {
    scripts: Cell<Option<Change>>,
    greeting: Cell<Option<Change>>,
    /// The first command that uses scripts has not been sent yet: what a dial for it finds is no news.
    begun: Cell<bool>,
}

impl ServerKnowledge {
    /// It has said HELLO when the server was as `now`.
    pub(super) fn greets(&self, now: impl FnOnce() -> Change) {
        if self.greeting.get().is_none() {
            self.greeting.set(Some(now()));
        }
    }

    /// It begins to use scripts or functions.
    pub(super) fn uses_scripts(&self, now: impl FnOnce() -> Change) {
        if self.scripts.get().is_none() {
            self.scripts.set(Some(now()));
            self.begun.set(true);
        }
    }

    /// What it has begun is on its way.
    pub(super) fn has_sent(&self) {
        self.begun.set(false);
    }

    /// What it has begun goes to the server as it is now.
    pub(super) fn sends(&self, now: impl FnOnce() -> Change) {
        if self.begun.take() {
            self.scripts.set(Some(now()));
        }
    }

    /// Whether it knows what HELLO says, and whether it has used scripts.
    pub(super) fn known(&self) -> (bool, bool) {
        (self.greeting.get().is_some(), self.scripts.get().is_some())
    }

    /// Whether it knows anything.
    pub(super) fn is_any(&self) -> bool {
        self.scripts.get().is_some() || self.greeting.get().is_some()
    }

    /// Whether it is outdated by the last change of the server, or of what that says about itself.
    pub(super) fn is_outdated(
        &self,
        server: impl FnOnce() -> Change,
        facts: impl FnOnce() -> Change,
    ) -> bool {
        self.scripts.get().is_some_and(|since| since < server())
            || self.greeting.get().is_some_and(|since| since < facts())
    }
}
