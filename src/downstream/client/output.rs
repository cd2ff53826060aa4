//! The interface for other modules to send to a client and to close it.

use bytes::{Bytes, BytesMut};

use super::Client;
use crate::command::Asked;
use crate::resp::{ErrorCode, encode};
use crate::telemetry::{ClientClose, Origin};

impl Client {
    /// Sends bytes to the client; those that the kernel does not accept now are queued.
    pub(in crate::downstream) fn send(&self, bytes: &[u8]) {
        self.outbound.send(bytes);
    }

    /// As [`Self::send`], but bytes that the kernel does not accept now are queued by reference.
    pub(in crate::downstream) fn send_shared(&self, bytes: Bytes) {
        self.outbound.send_shared(bytes);
    }

    /// Sends data that is not a reply: never between the parts of a reply.
    pub(in crate::downstream) fn send_push(&self, frame: Bytes) {
        self.outbound.push(frame);
    }

    /// Sends the bytes of a reply made here.
    pub(in crate::downstream) fn reply(&self, write: impl FnOnce(&mut BytesMut)) {
        let mut bytes = BytesMut::new();
        write(&mut bytes);
        self.outbound.send(&bytes);
    }

    /// Sends an error (no leading `-`) unless the client wants no replies.
    pub(in crate::downstream) fn error(&self, text: &str, muted: bool) {
        if !muted {
            self.context.pool.measures().error(Origin::Redbouncer, ErrorCode::of_text(text));
            self.reply(|out| encode::error(out, text));
        }
    }

    /// Sends redbouncer's own reply to a command, which may be an error.
    pub(in crate::downstream) fn send_own(&self, reply: &[u8]) {
        self.context.pool.measures().reply(Origin::Redbouncer, reply);
        self.send(reply);
    }

    /// Sends a reply of the server from another connection than a lane or a lease, which may be an error.
    pub(in crate::downstream) fn send_answer(&self, reply: &[u8]) {
        self.context.pool.measures().reply(Origin::Server, reply);
        self.send(reply);
    }

    /// Counts a reply of the server that is sent elsewhere.
    pub(in crate::downstream) fn note_answer(&self, reply: &[u8]) {
        self.context.pool.measures().reply(Origin::Server, reply);
    }

    /// Whether a reply has been sent partly, so that no other data may follow now.
    pub(in crate::downstream) fn set_mid_reply(&self, begun: bool) {
        self.outbound.set_mid_reply(begun);
    }

    /// Sends the messages that have waited for the end of a reply.
    pub(in crate::downstream) fn release_pushes(&self) {
        self.outbound.release_pushes();
    }

    /// Hands a popped element (a whole reply) to the client in one step: checks that it is there, and writes. `false`:
    /// it is gone and not a byte was taken, so the element may go to somebody else. A client that has closed its side is
    /// gone when its call has waited; for one whose call finds something at once, it is the answer.
    pub(in crate::downstream) fn deliver_element(&self, reply: &[u8], has_waited: bool) -> bool {
        !(has_waited && self.is_gone()) && self.outbound.deliver(reply)
    }

    /// Marks the client to be closed; its own task does it. The first reason stays.
    pub(in crate::downstream) fn close(&self, reason: ClientClose) {
        self.outbound.close(reason);
    }

    /// Why it is to be closed.
    pub(in crate::downstream) fn close_reason(&self) -> Option<ClientClose> {
        self.outbound.close_reason()
    }

    pub(in crate::downstream) fn wake(&self) {
        self.outbound.wake();
    }

    /// A command of it is begun.
    pub(in crate::downstream) fn count(&self, asked: &Asked) {
        self.context.metrics.count(asked);
        self.last_command.set(asked.row);
        if let Some(row) = asked.row {
            self.learns_by(row);
        }
    }

    /// Whether bytes for this client lie here that the kernel has not taken.
    pub(in crate::downstream) fn has_unsent(&self) -> bool {
        self.outbound.has_unsent()
    }

    /// Nothing more is read from it or run for it until it reads.
    pub(in crate::downstream) fn is_backpressured(&self) -> bool {
        self.outbound.is_backpressured()
    }
}
