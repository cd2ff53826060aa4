//! What is asked of a worker by other threads.

use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use super::Worker;
use crate::downstream::context::Stage;
use crate::downstream::identity::{Account, AdminCommands};
use crate::downstream::moved::WayOut;
use crate::downstream::settings::WorkerSettings;
use crate::downstream::workers::{Message, Question};
use crate::hub::{HubRow, Unblock};
use crate::pool::{Pool, Slice};
use crate::session::{ClientRow, Filter, Listed, RowFormat};
use crate::telemetry::{ClientClose, UpstreamClose};
use crate::upstream::HostPort;

impl Worker {
    pub(super) fn handle(self: &Rc<Self>, message: Message) {
        // An answer nobody waits for any more is dropped.
        match message {
            Message::Client(accepted) => self.admit(accepted),
            Message::Rows(reply) => {
                let worker = Rc::clone(self);
                self.context.pool.tasks().spawn_local(async move { drop(reply.send(worker.rows().await)) });
            }
            Message::Lanes(reply) => {
                drop(reply.send(self.context.pools().iter().flat_map(|pool| pool.lane_rows()).collect()));
            }
            Message::Kill(filter, me, reply) => {
                let worker = Rc::clone(self);
                self.context.pool.tasks().spawn_local(async move {
                    let _ = reply.send(worker.kill(&filter, me).await);
                });
            }
            Message::YieldMemory(id) => {
                if let Some(client) = self.context.client(id) {
                    client.yield_memory();
                }
            }
            // Dropped, the question is answered with no.
            Message::Unblock(id, with_error, done) => {
                if let Some(client) = self.context.client(id) {
                    client.unblock(Unblock { with_error, done });
                }
            }
            Message::Inbox(id, user, reply) => {
                if let Some(inbox) = self.context.client(id).and_then(|client| client.inbox(user)) {
                    drop(reply.send(inbox));
                }
            }
            Message::Control(question) => self.ask_server(question),
            Message::Revoke(account) => self.revoke(&account),
            Message::Alive(reply) => drop(reply.send(())),
            Message::Publish(reply) => {
                self.publish();
                drop(reply.send(self.figures()));
            }
            Message::AddressChanged => {
                self.context.pool.leave_all(UpstreamClose::Moved);
                self.leave_hubs(UpstreamClose::Moved);
            }
            Message::Configure(settings, done) => {
                self.configure(&settings);
                let _ = done.send(());
            }
            Message::MoveUpstream(done) => {
                self.move_upstream();
                let _ = done.send(());
            }
            Message::SwitchMaster(grace, done) => self.switch_master(grace, done),
            Message::Leave(way) => self.leave_to(way),
            Message::Hubs(reply) => {
                drop(reply.send(self.hub_rows()));
            }
            Message::Reconnect(node) => self.reconnect(node.as_ref()),
            // Handled by the loop itself.
            Message::Drain(..) => {}
        }
    }

    async fn rows(&self) -> Vec<ClientRow> {
        let (mut slice, mut rows) = (Slice::begin(), Vec::new());
        for client in self.context.all_clients() {
            if !client.is_closed() {
                rows.push(client.row(Instant::now()));
            }
            slice.breathe().await;
        }
        rows
    }

    async fn kill(&self, filter: &Filter, me: u64) -> i64 {
        let (mut slice, mut killed) = (Slice::begin(), 0);
        let candidates = match filter.ids() {
            Some(ids) => {
                let clients = self.context.clients.borrow();
                ids.filter_map(|id| clients.get(&id).map(Rc::clone)).collect()
            }
            None => self.context.all_clients(),
        };
        for client in candidates {
            let row = Listed::parse(&client.row(Instant::now()).text(&RowFormat::default()));
            if !client.is_closed() && row.is_some_and(|row| filter.matches(&row, me)) {
                client.close(ClientClose::Killed);
                killed += 1;
            }
            slice.breathe().await;
        }
        killed
    }

    fn hub_rows(&self) -> Vec<HubRow> {
        let nodes = self.context.nodes.as_ref();
        let mut rows = Vec::new();
        for (pool, hubs) in self.context.all_hubs() {
            let node = nodes.and_then(|nodes| nodes.node_of(&pool)).map(|node| node.to_string());
            let own = hubs.rows(self.context.index).into_iter();
            rows.extend(own.map(|row| HubRow { node: node.clone(), ..row }));
        }
        rows.extend(self.context.pubsub.rows(self.context.index));
        rows
    }

    /// Asks the server on the control connection, in turn.
    fn ask_server(&self, question: Question) {
        let Question { user, address, identity, protocol, request, reply } = question;
        let (pool, control) = (Rc::clone(&self.context.pool), Rc::clone(&self.control));
        let questions = Arc::clone(&self.questions);
        self.context.pool.tasks().spawn_local(async move {
            let _turn = questions.turn(user, address).await;
            let mut control = control.lock().await;
            let answer = control.ask(&pool, user, &identity, protocol, &request).await;
            control.was_needed();
            drop(reply.send(answer));
        });
    }

    /// What is read at its use is changed at once; a copy that a connection has made of it stays.
    fn configure(&self, settings: &WorkerSettings) {
        let context = &self.context;
        for pool in context.pools() {
            pool.configure(settings.pool, settings.upstream);
        }
        context.options.set(settings.clients);
        context.tell_of_slow_commands(settings.slow_command);
        context.blocking.set(settings.blocking);
        for (_, hubs) in context.all_hubs() {
            hubs.configure(settings.blocking, settings.cache_ttl);
        }
        context.permissions.keep_for(settings.cache_ttl);
        context.admin_users.replace(Arc::clone(&settings.admin_users));
        self.hygiene.set(settings.hygiene);
        context.pubsub.configure(settings.pubsub);
        context.server.refuse_admin(settings.admin_commands == AdminCommands::Refuse);
    }

    /// Nobody may be `account` any more: its clients are closed, and what was opened for them.
    fn revoke(self: &Rc<Self>, account: &Arc<Account>) {
        for client in self.context.clients.borrow().values().filter(|client| client.has_logged_in_as(account))
        {
            client.close(ClientClose::LoginRevoked);
        }
        let user = account.user.id;
        self.context.pools().iter().for_each(|pool| pool.leave_user(user));
        for (_, hubs) in self.context.all_hubs() {
            hubs.leave_user(user, UpstreamClose::LoginRevoked);
        }
        self.context.pubsub.leave_user(user, UpstreamClose::LoginRevoked);
        self.context.server.forget_may_try(user);
        let (pool, control) = (Rc::clone(&self.context.pool), Rc::clone(&self.control));
        self.context
            .pool
            .tasks()
            .spawn_local(async move { control.lock().await.close_for(&pool, user).await });
    }

    /// Another process takes over: clients go there by `way`.
    fn leave_to(&self, way: WayOut) {
        self.context.way_out.replace(Some(way));
        if self.context.stage.get() == Stage::Serving {
            self.context.stage.set(Stage::Leaving);
        }
        self.context.moves_clients.set(true);
        self.send_on();
    }

    /// Clients that wait for nothing look whether they can go to the process that takes over.
    pub(super) fn send_on(&self) {
        for client in self.context.clients.borrow().values() {
            client.may_leave();
        }
    }

    /// Every connection is made anew where the connector dials now, each as soon as nothing is in flight on it.
    fn move_upstream(self: &Rc<Self>) {
        self.context.pool.move_all();
        self.leave_hubs(UpstreamClose::Reloaded);
        self.close_control(UpstreamClose::Reloaded);
    }

    /// Has the upstream connections made anew, each when it is free; with `node`, those to that node of a cluster.
    fn reconnect(self: &Rc<Self>, node: Option<&HostPort>) {
        let reason = UpstreamClose::Reconnect;
        let node_of = |pool: &Rc<Pool>| self.context.nodes.as_ref().and_then(|nodes| nodes.node_of(pool));
        let is_meant = |pool: &Rc<Pool>| node.is_none() || node_of(pool).as_ref() == node;
        self.context.pools().iter().filter(|pool| is_meant(pool)).for_each(|pool| pool.renew());
        for (_, hubs) in self.context.all_hubs().iter().filter(|(pool, _)| is_meant(pool)) {
            hubs.leave_all(reason);
        }
        if is_meant(&self.context.pool) {
            self.context.pubsub.leave_all(reason);
            self.close_control(reason);
        }
    }

    fn leave_hubs(&self, reason: UpstreamClose) {
        self.context.hubs.leave_all(reason);
        self.context.pubsub.leave_all(reason);
    }

    fn close_control(&self, reason: UpstreamClose) {
        let (pool, control) = (Rc::clone(&self.context.pool), Rc::clone(&self.control));
        self.context.pool.tasks().spawn_local(async move { control.lock().await.close(&pool, reason).await });
    }
}
