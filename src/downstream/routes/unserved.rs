//! A command that got no upstream connection: what its client is told, and what becomes of the session.
//!
//! No server is a closed connection: every client library recovers from that, and takes an error for the command's
//! fault. A full pool is an error: the server is there, and another connection would meet the same pool. What the server
//! itself has said, its client is told.

use crate::command::{Aftermath, classify};
use crate::downstream::client::Client;
use crate::pool::Unavailable;
use crate::resp::Request;
use crate::session::{ABORTED, Failed};
use crate::telemetry::ClientClose;
use crate::upstream::{CredentialSource, OnLoss};

/// What the refusal of `command` leaves behind.
pub(in crate::downstream) fn aftermath_of(command: &[u8]) -> Aftermath {
    Request::parse(command).map_or(Aftermath::Closed, |request| classify(&request).class.aftermath())
}

impl Client {
    /// Answers for a command (or a whole block: as many as `replies`) that could not be carried out because of `why`.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream) fn unserved(
        &self,
        why: &Unavailable,
        aftermath: Aftermath,
        replies: u32,
        muted: bool,
    ) -> Result<(), ClientClose> {
        if let Some(reason) = self.close_reason_for(why) {
            return Err(reason);
        }
        if matches!(why, Unavailable::Full(_)) {
            metrics::counter!("redbouncer_pool_full_total").increment(1);
            self.context.pool.shared.budget.refuses_a_client();
            self.context.warnings.full(&why.to_string(), || self.context.pool.shared.budget.longest_lease());
        }
        let is_block = replies > 1;
        let text = why.to_string();
        for at in 1..=replies {
            self.error(if is_block && at == replies { ABORTED } else { &text }, muted);
        }
        if is_block {
            // Its EXEC has been answered with it.
            return Ok(());
        }
        let failed = match aftermath {
            Aftermath::Nothing => return Ok(()),
            Aftermath::FailedTransaction => Failed::Multi,
            Aftermath::FailedWatch => Failed::Watch { known: self.inbound().is_empty() },
            // Nothing runs before a login, and the login is the client's next step.
            Aftermath::Closed if *why == Unavailable::NoAuth || !self.is_logged_in() => return Ok(()),
            Aftermath::Closed => return Err(ClientClose::StateRefused),
        };
        self.session.borrow_mut().failed = failed;
        Ok(())
    }

    /// Why a client is closed rather than told that there is no connection; `None`: it is told.
    pub(in crate::downstream) fn close_reason_for(&self, why: &Unavailable) -> Option<ClientClose> {
        if self.context.pool.shared.upstream.get().on_loss == OnLoss::Error {
            return None;
        }
        match why {
            Unavailable::Down(_) => Some(self.close_for_outage(why)),
            Unavailable::LoginRefused(_) if self.is_of_the_configuration() => {
                Some(self.close_for_outage(why))
            }
            Unavailable::Unanswered => Some(ClientClose::UpstreamLost),
            Unavailable::Stopping => Some(ClientClose::Shutdown),
            Unavailable::Full(_)
            | Unavailable::Busy(_)
            | Unavailable::LoginRefused(_)
            | Unavailable::NoAuth
            | Unavailable::SelectRefused(_) => None,
        }
    }

    fn close_for_outage(&self, why: &Unavailable) -> ClientClose {
        self.context.warnings.outage(why);
        self.context.pool.shared.health.closes_a_client(why.to_string());
        ClientClose::NoUpstream
    }

    /// Whether it is upstream by the credentials of the configuration, which it can do nothing about.
    fn is_of_the_configuration(&self) -> bool {
        let identity = self.identity().unwrap_or_else(|| self.context.directory.own_identity().1);
        identity.source != CredentialSource::Client && identity.password.is_some()
    }
}
