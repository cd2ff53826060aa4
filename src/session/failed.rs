//! A session whose MULTI or WATCH was refused: nothing of the transaction runs, and EXEC says so.

use bytes::BytesMut;

use super::{Failed, Route, Session};
use crate::command::{Asked, Class};
use crate::resp::encode;

/// EXEC of a failed transaction, in the server's words (`execCommand` in redis `multi.c`).
pub const ABORTED: &str = "EXECABORT Transaction discarded because of previous errors.";
const NOT_QUEUED: &str = "ERR redbouncer: not queued, because MULTI was refused";
/// MULTI, or what takes a connection of its own, behind a refused WATCH.
pub const UNGUARDED: &str = "ERR redbouncer: not possible, because WATCH was refused";

impl Session {
    /// Where `asked` goes after a refusal; `None`: where it always goes.
    ///
    /// Between a refused WATCH and MULTI commands run: they are reads, and what is decided by them is not done.
    pub(super) fn route_after_refusal(&self, asked: &Asked) -> Option<Route> {
        match self.failed {
            Failed::Nothing => None,
            Failed::Multi => Some(match asked.class {
                Class::Exec | Class::Discard | Class::Quit | Class::Reset => Route::Local(asked.class),
                _ => Route::Refuse(NOT_QUEUED.to_owned()), // whatever it is, it is no part of any transaction
            }),
            Failed::Watch { .. } => match asked.class {
                Class::Multi | Class::Unwatch => Some(Route::Local(asked.class)),
                _ => None, // means the same with and without a watch
            },
        }
    }

    /// Whether `class` may take a connection of its own. A new WATCH of a client that knows of the refusal begins anew; any
    /// other lease would take up MULTI where its failure is not known.
    #[must_use]
    pub fn may_lease(&self, class: Class) -> bool {
        match self.failed {
            Failed::Nothing => true,
            Failed::Watch { known } => known && class == Class::Watch,
            Failed::Multi => false,
        }
    }

    /// MULTI, EXEC, DISCARD or UNWATCH of a session that has failed.
    pub(super) fn answer_after_refusal(&mut self, class: Class, out: &mut BytesMut) {
        match class {
            Class::Multi => {
                self.failed = Failed::Multi;
                encode::error(out, UNGUARDED);
            }
            Class::Exec => {
                self.failed = Failed::Nothing;
                encode::error(out, ABORTED);
            }
            _ => {
                // DISCARD and UNWATCH
                self.failed = Failed::Nothing;
                encode::simple(out, "OK");
            }
        }
    }
}
