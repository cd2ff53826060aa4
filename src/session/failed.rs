//! A session whose MULTI or WATCH was refused: no command of the transaction runs, and EXEC returns an error.

use bytes::BytesMut;

use super::{Failed, Route, Session};
use crate::command::{Asked, Class};
use crate::resp::encode;

/// EXEC of a failed transaction, with the server's text (`execCommand` in redis `multi.c`).
pub const ABORTED: &str = "EXECABORT Transaction discarded because of previous errors.";
const NOT_QUEUED: &str = "ERR redbouncer: not queued, because MULTI was refused";
/// MULTI, or another command that needs a lease, after a refused WATCH.
pub const UNGUARDED: &str = "ERR redbouncer: not possible, because WATCH was refused";

impl Session {
    /// The route of `asked` after a refusal; `None`: its usual route.
    ///
    /// Between a refused WATCH and MULTI commands run: they are reads, and the writes that depend on them are refused.
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

    /// Whether `class` may take a lease. A new WATCH of a client that knows of the refusal starts again; any other
    /// lease would run MULTI without knowing of its failure.
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
