//! What divides the messages of a subscriber that moves: one message on a channel of its own, which both processes hear.
//!
//! A server hands a message to all its subscribers before it runs another command (`pubsubPublishMessageInternal` in redis
//! `pubsub.c`). So what the hubs of the two processes hear before the dividing message is the same, and what they hear behind it.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::Notify;

use super::Client;
use crate::hub::{Listener, Message};
use crate::pool::Unavailable;
use crate::session::Listen;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The server has been asked for the channel.
    Asked,
    /// It sends what is published there.
    Subscribed,
    /// The message has come.
    Passed,
    /// The channel is refused, or the connection lost.
    Failed,
}

/// The listener on the channel.
pub(in crate::downstream) struct Divider {
    client: Rc<Client>,
    stage: Cell<Stage>,
    changed: Notify,
}

impl Divider {
    pub(in crate::downstream) fn new(client: &Rc<Client>) -> Rc<Self> {
        let client = Rc::clone(client);
        Rc::new(Self { client, stage: Cell::new(Stage::Asked), changed: Notify::new() })
    }

    fn becomes(&self, stage: Stage) {
        self.stage.set(stage);
        self.changed.notify_one();
    }

    /// Returns when the server has answered. `false`: it will not be heard.
    pub(in crate::downstream) async fn is_subscribed(&self) -> bool {
        loop {
            match self.stage.get() {
                Stage::Asked => self.changed.notified().await,
                Stage::Subscribed | Stage::Passed => return true,
                Stage::Failed => return false,
            }
        }
    }

    /// Returns when the message has come. `false`: it will not come.
    pub(in crate::downstream) async fn is_passed(&self) -> bool {
        loop {
            match self.stage.get() {
                Stage::Asked | Stage::Subscribed => self.changed.notified().await,
                Stage::Passed => return true,
                Stage::Failed => return false,
            }
        }
    }
}

impl Listener for Divider {
    fn message(&self, _: &Message) {
        if self.stage.get() != Stage::Subscribed {
            return;
        }
        // In the step that has read it: the old process gives nothing more, the new one keeps what comes. Which of them has the
        // client in the end sends what it has kept.
        self.client.outbound.holds_pushes();
        self.becomes(Stage::Passed);
    }

    fn confirmed(&self, _: Listen, _: &[Bytes], _: bool) {
        self.becomes(Stage::Subscribed);
    }

    fn refused(&self, _: &Bytes) {
        self.becomes(Stage::Failed);
    }

    fn unserved(&self, _: &Unavailable) {
        self.becomes(Stage::Failed);
    }

    fn lost(&self) {
        if self.stage.get() != Stage::Passed {
            self.becomes(Stage::Failed);
        }
    }

    fn caught_up(&self) {}
}
