//! A call that blocks while its client holds a lease.
//!
//! It waits as any other call does, not on the lease: there only the server could end it, and CLIENT UNBLOCK cannot be
//! sent to it without the risk of aborting it. So the lease keeps what it holds, whatever becomes of the call.

use std::rc::Rc;

use bytes::Bytes;

use super::Waited;
use crate::command::{Blocking, classify};
use crate::downstream::client::Client;
use crate::downstream::routes::pending::PendingCommand;
use crate::resp::{Protocol, Request};
use crate::session::{Route, tracking};
use crate::telemetry::ClientClose;

impl Client {
    /// Serves a blocking call of a client that holds a lease, to its end.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream) async fn blocking_beside(
        self: &Rc<Self>,
        (request, command): (Bytes, Blocking),
        muted: bool,
        is_tracking: bool,
    ) -> Result<(), ClientClose> {
        // SELECT and HELLO on the lease have not looked for other lanes: the call would be tried in the database before.
        self.leave_group();
        let route = Route::Blocking(command);
        let taken = PendingCommand {
            request: request.clone(),
            route,
            muted,
            may_invent: true,
            replies: 1,
            counts: false,
            remembered: false,
        };
        self.blocking(taken, command, Waited::NOW).await?;
        if command != Blocking::XRead {
            return Ok(());
        }
        if is_tracking && self.protocol() == Protocol::Resp3 {
            self.disown_streams(&request);
        } else {
            self.invalidate_reads_of(Some(&request));
        }
        Ok(())
    }

    /// Tells a client that tracks on its lease to forget what it has just read elsewhere.
    fn disown_streams(&self, request: &Bytes) {
        let Some(request) = Request::parse(request) else { return };
        if let Some(reads) = tracking::reads(&classify(&request), &request) {
            self.invalidate(reads);
        }
    }
}
