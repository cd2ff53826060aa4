//! Who has state on a connection, so that a kill of it takes the state away and closes the client.

use super::sequence::Request;
use super::trouble::Kind;
use crate::harness::Row;

/// What a client has written, as far as no listing of the server tells it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Holds {
    multi: bool,
    watch: bool,
    /// It has ever asked for WATCH.
    has_watched: bool,
    /// It has ever asked for something that may have kept a WATCH from being one, or have ended it: subscriptions, errors.
    vague: bool,
}

impl Holds {
    pub(crate) fn note(&mut self, request: &Request) {
        let alone = request.argc() == 1;
        if request.is(&["MULTI"]) && alone {
            self.multi = true;
        } else if request.is(&["EXEC"]) && !alone {
            // A wrong number of words ends a transaction, and a WATCH, too.
            (self.multi, self.vague) = (false, true);
        } else if request.is(&["EXEC", "DISCARD"]) && alone && self.multi || request.is(&["RESET"]) && alone {
            (self.multi, self.watch) = (false, false);
        } else if request.is(&["WATCH"]) && !alone {
            (self.watch, self.has_watched) = (true, true);
            self.vague |= self.multi;
        } else if request.is(&["UNWATCH"]) && alone && !self.multi {
            self.watch = false;
        } else if request.is(&["SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"]) {
            self.vague = true;
        }
    }

    /// Whether a kill of connections of this kind may close the client, and whether it must. `row` is of the direct world.
    pub(crate) fn closed_by(self, kind: Kind, row: &Row) -> (bool, bool) {
        let has = |letters: &str| row.get("flags").contains(|flag| letters.contains(flag));
        let listens = ["sub", "psub", "ssub"].iter().any(|field| !["", "0"].contains(&row.get(field)));
        // Before 7.0, whose rows have no such field, who tracks has a lease.
        let tracks_alone = has("t") && row.get("ssub").is_empty();
        // Where there is no hub, one that blocks is tried on a lane now and then: whether a try that is lost with the lane has
        // run, nobody knows.
        let is_tried = has("b") && row.get("ssub").is_empty();
        match kind {
            Kind::Control | Kind::Blocking => (false, false),
            Kind::Shared => (is_tried, false),
            // What stands behind a call that blocks has not run yet. Of a blocking call a lease is taken where there is no hub, or the client has one already.
            Kind::Leased => (
                has("xTOb") || tracks_alone || self.watch || self.vague && self.has_watched,
                has("x") || tracks_alone || self.watch && !self.vague && !has("b"),
            ),
            // Whoever has a lease is subscribed there.
            Kind::PubSub => (listens, listens && !has("xTOb") && !tracks_alone && !self.has_watched),
        }
    }
}
