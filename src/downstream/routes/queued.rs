//! Commands of a transaction that are answered beside its connection, when EXEC's array has come to their place.

use std::rc::Rc;

use bytes::Bytes;

use crate::command::{Class, classify, rows};
use crate::downstream::client::Client;
use crate::resp::{self, Request};

impl Client {
    /// The reply to `request`, a member of the transaction that has run, where the server has answered its stand-in with
    /// `verdict`.
    pub(in crate::downstream) async fn answer_queued(
        self: &Rc<Self>,
        request: &Bytes,
        verdict: Bytes,
    ) -> Bytes {
        let Some(asked) = Request::parse(request) else { return verdict };
        // In listings the client is the one that executes, whatever it has sent behind.
        let exec = rows().iter().find(|row| row.class == Class::Exec);
        let last = self.last_command.replace(exec);
        let reply = match classify(&asked).class {
            Class::ClientInfo if !resp::is_error(&verdict) => self.client_info().await,
            Class::ClientList => self.client_list_beside(&asked, verdict).await,
            Class::ClientKill => self.client_kill_as_judged(&asked, verdict).await,
            Class::ClientUnblock => self.client_unblock_as_judged(request, verdict).await,
            Class::Proxy => self.proxy_command(request).await,
            _ => verdict, // nothing else is asked here
        };
        self.last_command.set(last);
        reply
    }
}
