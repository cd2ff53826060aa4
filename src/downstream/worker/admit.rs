//! How a client comes to a worker: accepted, from another worker, or from the process before this one.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use tokio::net::{TcpStream, UnixStream};

use super::Worker;
use crate::downstream::client::{Arrived, Client};
use crate::downstream::context::Served;
use crate::downstream::identity::Membership;
use crate::downstream::moved::{Announced, ClientDescription, Login};
use crate::downstream::routes::ClientTask;
use crate::downstream::socket::{ClientSocket, PlainSocket};
use crate::downstream::workers::{Accepted, Before, Incoming};
use crate::session::Session;
use crate::telemetry::{ClientClose, client_closed};
use crate::upstream::tune;

impl Worker {
    pub(super) fn admit(self: &Rc<Self>, accepted: Accepted) {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let Accepted { stream, peer, trusted, before, place } = accepted;
        let (before, announced, along) = match before.map(|before| *before) {
            None => (None, None, None),
            Some(Before { description, announced, along }) => (Some(description), announced, along),
        };
        let id = before.as_ref().map_or(id, |before| before.id);
        if announced.is_some() && self.context.client(id).is_some() {
            // It has been announced before, and has not been forgotten yet.
            return self.context.workers.client_left(self.context.index);
        }
        let (member, last_command) =
            along.map_or((None, None), |along| (Some(along.membership), along.last_command));
        let membership = self.membership(before.as_ref(), member, trusted);
        if before.is_some() && membership.is_none() {
            // It would be nobody here.
            client_closed(ClientClose::LoginRevoked);
            return self.context.workers.client_left(self.context.index);
        }
        let user = membership.as_ref().map(|own| own.account.user.clone());
        let mut session = Session::new(id, user, self.context.pool.shared.upstream.get().database);
        if let Some(before) = &before {
            before.restore(&mut session);
        }
        let socket = match self.registered(stream) {
            Ok(socket) => socket,
            Err(error) => {
                let reason = ClientClose::ClientLost;
                client_closed(reason);
                tracing::debug!(%peer, reason = reason.label(), %error, "client closed before it was served");
                return self.context.workers.client_left(self.context.index);
            }
        };
        tracing::debug!(client = id, %peer, "client connected");
        let arrived = Arrived { socket, peer, session, membership, trusted, place };
        let client = Client::new(Rc::clone(&self.context), arrived);
        if let Some(before) = &before {
            client.arrives(before);
            client.last_command.set(last_command);
        }
        let served = Rc::clone(&client) as Rc<dyn Served>;
        self.context.clients.borrow_mut().insert(id, served);
        self.close_when_it_gives_way(&client);
        self.context.pool.tasks().spawn_local(task(client, before, announced));
    }

    /// Who a client is until it logs in, or has been before it came here. `None`: nobody.
    fn membership(
        &self,
        before: Option<&ClientDescription>,
        member: Option<Membership>,
        trusted: bool,
    ) -> Option<Membership> {
        match before {
            Some(_) if member.is_some() => member,
            None => self.context.directory.anonymous(trusted),
            Some(before) => {
                self.context.directory.rejoin(before.login.as_ref().map(Login::credentials), trusted)
            }
        }
    }

    /// A peer that has not logged in may have to give its place to another one.
    fn close_when_it_gives_way(&self, client: &Rc<Client>) {
        let Some(stay) = client.stay() else { return };
        let client = Rc::downgrade(client);
        self.context.pool.tasks().spawn_local(async move {
            if stay.is_given_up().await
                && let Some(client) = client.upgrade()
            {
                client.close(ClientClose::GaveWay);
            }
        });
    }

    /// A new client's socket on this thread's runtime, set up: NODELAY, keepalive, a watch for its host.
    fn registered(&self, incoming: Incoming) -> std::io::Result<ClientSocket> {
        let tuned = |stream| {
            let stream = TcpStream::from_std(stream)?;
            tune(&stream, &self.context.options.get().keepalive, self.context.options.get().user_timeout)?;
            std::io::Result::Ok(PlainSocket::tcp(stream, self.context.options.get().user_timeout))
        };
        Ok(match incoming {
            Incoming::Tcp(stream) => ClientSocket::Plain(tuned(stream)?),
            Incoming::Tls(stream, session) => ClientSocket::secured(tuned(stream)?, *session),
            Incoming::Unix(stream) => ClientSocket::Plain(UnixStream::from_std(stream)?.into()),
            #[cfg(test)]
            Incoming::Simulated(end) => ClientSocket::Plain(PlainSocket::Simulated(end)),
        })
    }
}

/// What the client begins with.
fn task(client: Rc<Client>, before: Option<ClientDescription>, announced: Option<Announced>) -> ClientTask {
    let (subscribed, blocked) = before.map_or((None, None), |before| (before.subscribed, before.blocked));
    match (subscribed, announced, blocked) {
        (Some(subscribed), Some(announced), _) => ClientTask::subscribed(client, subscribed, announced),
        (_, _, Some(blocked)) => ClientTask::blocked(client, blocked),
        (None, _, None) | (_, None, None) => ClientTask::new(client),
    }
}
