//! Passing a client to another worker of this process: the one with lanes of its key.

use super::Client;
use crate::downstream::context::Stage;
use crate::downstream::moved::Peer;
use crate::downstream::workers::{Accepted, Along, Before, Incoming};

impl Client {
    /// Sends it to the worker that serves its key, where that is another one and it can go now. `true`: nothing of it is left here,
    /// and nothing more may be read from it or written to it.
    pub(in crate::downstream) fn changes_worker(&self) -> bool {
        let home = self.known_group().and_then(|group| group.home());
        let Some(home) = home.filter(|_| self.context.stage.get() == Stage::Serving) else { return false };
        if self.session.borrow().listens > 0 || self.subscriber.borrow().is_some() {
            return false;
        }
        match self.context.workers.pass_on(home, || self.handed_over()) {
            Some(true) => {}
            Some(false) => return false,
            None => {
                self.context.moves_later.set(true);
                return false;
            }
        }
        metrics::counter!("redbouncer_client_moves_total").increment(1);
        tracing::debug!(
            client = self.id(),
            worker = home,
            "client goes on with the worker that has lanes for it"
        );
        self.leave_group();
        self.let_go();
        self.context.forget(self.id());
        true
    }

    /// All there is of it. `None`: it has to stay.
    fn handed_over(&self) -> Option<Accepted> {
        let description = self.described(None)?;
        let socket = self.outbound.socket().duplicate()?;
        let stream = match description.peer {
            Peer::Tcp(_) => Incoming::Tcp(socket.into()),
            Peer::Unix(_) => Incoming::Unix(socket.into()),
        };
        let (membership, place) = self.identified.hand_over()?;
        let along = Along { membership, last_command: self.last_command.get() };
        let before = Before { description, announced: None, along: Some(along) };
        Some(Accepted {
            stream,
            peer: self.peer.clone(),
            trusted: self.identified.trusted,
            before: Some(Box::new(before)),
            place,
        })
    }
}
