//! A call that blocks while its client holds a lease.
//!
//! It waits as any other call does, not on the lease: there only the server could end it, and CLIENT UNBLOCK cannot be
//! sent to it without the risk of aborting it. So the lease keeps what it holds, whatever becomes of the call.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::super::client::Client;
use super::super::drive::Taken;
use crate::command::Blocking;
use crate::command::blocking;
use crate::resp::{Protocol, Request, encode};
use crate::session::Route;
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
        let taken =
            Taken { request: request.clone(), route, muted, may_invent: true, replies: 1, counts: false };
        self.blocking(taken, command).await?;
        if is_tracking && command == Blocking::XRead && self.protocol() == Protocol::Resp3 {
            self.disown(&request);
        }
        Ok(())
    }

    /// Tells a tracking client to forget what it has just read over a connection that does not track for it.
    fn disown(&self, request: &Bytes) {
        let Some(request) = Request::parse(request) else { return };
        let Some(call) = blocking::parse(&request, Blocking::XRead) else { return };
        let mut out = BytesMut::new();
        encode::push(&mut out, Protocol::Resp3, 2);
        encode::bulk(&mut out, b"invalidate");
        encode::array(&mut out, call.keys.len());
        for at in 0..call.keys.len() {
            encode::bulk(&mut out, call.key(&request, at));
        }
        self.send(&out);
    }
}
