//! The fast path in a cluster: each command goes over a lane of the node that owns its keys.

use std::rc::Rc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::cluster::{BlockPlace, Place, about_one_node, block_place, place};
use crate::command::{Asked, Class, classify};
use crate::downstream::client::{Client, Kept, Routing};
use crate::downstream::routes::accept::Framed;
use crate::downstream::routes::batch::Batch;
use crate::downstream::routes::pending::PendingCommand;
use crate::downstream::routes::progress::{Next, Progress, Taken};
use crate::pool::{Lane, Pool, Receiver};
use crate::resp::{Request, encode};
use crate::session::answers::is_silent_mode;
use crate::session::{Block, Listen, Pin, ReplyMode, Route, find_block};

impl Client {
    /// Takes one canonical frame of a client whose server is a cluster.
    pub(in crate::downstream::routes) fn accept_for_nodes(
        self: &Rc<Self>,
        routing: &Routing,
        framed: &Framed<'_>,
        run: &mut Batch,
    ) -> Taken {
        let frame = framed.frame();
        let request = Request::new(frame, framed.shape);
        let asked = classify(&request);
        let (route, mode) = {
            let session = self.session.borrow();
            (session.route(&asked, &request, self.policy()), session.replies)
        };
        if routing.take_multi() {
            return self.begin_multi(routing, framed, (&request, &asked), run);
        }
        let muted = mode != ReplyMode::On;
        if run.nature.muted != muted {
            self.push(run, framed.before());
            run.nature.muted = muted;
        }
        // What is too long for a lane of one server takes one here: a redirection has to be followed.
        let is_data = matches!(asked.class, Class::Pass | Class::Publish | Class::Ping);
        match route {
            Route::Lane => self.accept_data(routing, framed, (&request, asked), run),
            Route::Lease(Pin::Own) if is_data => self.accept_data(routing, framed, (&request, asked), run),
            Route::Transaction => {
                let block = match mode {
                    ReplyMode::SkipNext => None,
                    _ => find_block(framed.onwards(), &self.limits(), self.policy()),
                };
                match block {
                    Some(block) => self.accept_block(routing, framed, (block, &asked), run),
                    None => self.open_multi(routing, framed, &asked, run),
                }
            }
            Route::Lease(Pin::Watch) => {
                let route = match place(&asked, &request) {
                    Place::Slot(slot) => {
                        let owner = routing.pools.owner(slot);
                        let node = owner.unwrap_or_else(|| Rc::clone(routing.pools.home()));
                        self.turn_to(routing, &node, run, framed.before())?;
                        routing.leases_for(Some(slot));
                        route
                    }
                    Place::Refused(text) => Route::Refuse(text),
                    Place::Home | Place::Info | Place::BySlot(_) | Place::ByMaster(_) | Place::Scan => {
                        Route::Refuse(about_one_node("watch"))
                    }
                };
                self.defer(frame, &request, asked, route, run, framed.before())
            }
            Route::Local(Class::ClientReply) if is_silent_mode(&request) => {
                Ok(self.accept_silence(framed, (&request, &asked), run))
            }
            route => self.defer(
                frame,
                &request,
                asked,
                self.only_for_a_cluster(route, &asked),
                run,
                framed.before(),
            ),
        }
    }

    /// MULTI, whose EXEC has not arrived: it is answered here, and sent with the first command behind it, which says where to.
    fn open_multi(
        self: &Rc<Self>,
        routing: &Routing,
        framed: &Framed<'_>,
        asked: &Asked,
        run: &mut Batch,
    ) -> Taken {
        self.push(run, framed.before());
        if self.outstanding() > 0 {
            return Err((0, Progress::Waiting));
        }
        self.count(asked);
        if !self.session.borrow_mut().mutes_this() {
            self.reply(|out| encode::simple(out, "OK"));
        }
        routing.opens_multi();
        run.start = framed.at + framed.shape.len;
        Ok(framed.shape.len)
    }

    /// The first command behind such a MULTI, which stays in the input until there is a lease for both.
    fn begin_multi(
        self: &Rc<Self>,
        routing: &Routing,
        framed: &Framed<'_>,
        (request, asked): (&Request<'_>, &Asked),
        run: &mut Batch,
    ) -> Taken {
        let slot = match place(asked, request) {
            Place::Slot(slot) => Some(slot),
            // EXEC itself, what any node can do, and what will be refused.
            Place::Home
            | Place::Info
            | Place::BySlot(_)
            | Place::ByMaster(_)
            | Place::Scan
            | Place::Refused(_) => None,
        };
        let node = slot.and_then(|slot| routing.pools.owner(slot));
        self.push(run, framed.before());
        self.go_to(&node.unwrap_or_else(|| Rc::clone(routing.pools.home())));
        routing.leases_for(slot);
        let taken = PendingCommand {
            request: encode::one_command(&[b"MULTI"]),
            route: Route::Transaction,
            muted: true,
            may_invent: true,
            replies: 1,
            counts: false,
            remembered: false,
        };
        Err((0, Progress::Stop(Next::Slow(Box::new(taken)))))
    }

    /// `route`, or a refusal where it would lead to one node only.
    fn only_for_a_cluster(&self, route: Route, asked: &Asked) -> Route {
        let is_of_one_node = match &route {
            Route::Lease(_) | Route::Transaction | Route::Tracking | Route::Control => true,
            Route::Listen(listen, _) => *listen == Listen::Shards,
            Route::Lane
            | Route::Blocking(_)
            | Route::Local(_)
            | Route::Refuse(_)
            | Route::Login(_)
            | Route::Select(_)
            | Route::Clients(_)
            | Route::PubSub
            | Route::Ask
            | Route::Misplaced
            | Route::Proxy => false,
        };
        if is_of_one_node {
            Route::Refuse(about_one_node(asked.row.map_or("", |row| row.name)))
        } else {
            route
        }
    }

    /// A command for data, or one that any node answers.
    fn accept_data(
        self: &Rc<Self>,
        routing: &Routing,
        framed: &Framed<'_>,
        (request, asked): (&Request<'_>, Asked),
        run: &mut Batch,
    ) -> Taken {
        let frame = framed.frame();
        let node = match place(&asked, request) {
            Place::Slot(slot) => routing.pools.owner(slot),
            Place::Home => Some(Rc::clone(routing.pools.home())),
            Place::Info | Place::BySlot(_) | Place::ByMaster(_) | Place::Scan => None,
            Place::Refused(text) => {
                return self.defer(frame, request, asked, Route::Refuse(text), run, framed.before());
            }
        };
        let Some(node) = node else {
            return self.defer(frame, request, asked, Route::Lane, run, framed.before());
        };
        self.turn_to(routing, &node, run, framed.before())?;
        let counts =
            !run.nature.muted && asked.class == Class::Publish && !self.context.pubsub.audience().is_empty();
        if counts {
            self.push(run, framed.before());
        }
        self.lane_for(run, &asked, frame, (1, counts))?;
        self.count(&asked);
        if run.nature.muted {
            let _ = self.session.borrow_mut().mutes_this();
        }
        if counts {
            if let Some(lane) = run.lane.take() {
                let commands = self.copied(frame);
                let kept = Kept { commands, count: 1, muted: false, is_block: false, counts };
                self.push_kept(&lane, kept);
            }
            run.start = framed.at + frame.len();
        } else {
            run.count += 1;
        }
        Ok(frame.len())
    }

    /// A transaction that has arrived whole.
    fn accept_block(
        self: &Rc<Self>,
        routing: &Routing,
        framed: &Framed<'_>,
        (block, asked): (Block, &Asked),
        run: &mut Batch,
    ) -> Taken {
        let commands = self.copied(framed.onwards().get(..block.len).unwrap_or_default());
        let node = match block_place(&commands) {
            BlockPlace::Slot(slot) => routing.pools.owner(slot),
            BlockPlace::Home => Some(Rc::clone(routing.pools.home())),
            BlockPlace::Refused(replies) => {
                self.push(run, framed.before());
                if self.outstanding() > 0 {
                    return Err((0, Progress::Waiting));
                }
                self.count(asked);
                if !run.nature.muted {
                    self.send_own(&replies);
                }
                run.start = framed.at + block.len;
                return Ok(block.len);
            }
        };
        self.push(run, framed.before());
        // Nobody owns the slot just now: it waits on the way that any command takes for which there is no lane.
        let node = node.unwrap_or_else(|| Rc::clone(routing.pools.home()));
        self.turn_to(routing, &node, run, framed.before())?;
        let counts = block.counts && !run.nature.muted && !self.context.pubsub.audience().is_empty();
        self.lane_for(run, asked, &commands, (block.commands, counts))?;
        self.count(asked);
        if let Some(lane) = run.lane.take() {
            let kept =
                Kept { commands, count: block.commands, muted: run.nature.muted, is_block: true, counts };
            self.push_kept(&lane, kept);
        }
        run.start = framed.at + block.len;
        Ok(block.len)
    }

    /// What follows goes to `node`: once every reply of another node has arrived.
    fn turn_to(
        self: &Rc<Self>,
        routing: &Routing,
        node: &Rc<Pool>,
        run: &mut Batch,
        before: &[u8],
    ) -> Result<(), (usize, Progress)> {
        if routing.is_at(node) && !routing.is_holding() {
            return Ok(());
        }
        self.push(run, before);
        run.lane = None;
        if self.outstanding() > 0 {
            return Err((0, Progress::Waiting));
        }
        self.go_to(node);
        Ok(())
    }

    /// Sends commands over `lane`, and keeps them until they are answered.
    pub(in crate::downstream::routes) fn push_kept(self: &Rc<Self>, lane: &Rc<Lane>, kept: Kept) {
        let (now, count) = (Instant::now(), kept.count);
        let (client, owner) = (Rc::clone(self), Rc::clone(self) as Rc<dyn Receiver>);
        if let Some(routing) = self.routing()
            && routing.keeps(&kept)
        {
            self.context.keep_within_bound();
        }
        let commands = kept.commands.clone();
        let then = Box::new(move |outcome: Result<Vec<Bytes>, _>| client.is_answered(kept, outcome));
        lane.touch(now);
        lane.exchange_for(Some(owner), &commands, count, now, then);
        self.is_on(lane, count);
    }
}
