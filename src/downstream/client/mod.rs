//! One client, made of parts: what it sends (`inbound`), what it is sent (`outbound`), who it is (`identified`), what it has set
//! (its session), where it stands (`attachment`), and the lanes its commands go over (`lanes`).
//!
//! The client's own task reads and routes. The tasks of lanes and hubs know a client only as
//! [`Receiver`](crate::pool::Receiver), [`Listener`](crate::hub::Listener), [`Reader`](crate::pool::Reader) or
//! [`Waiting`](crate::hub::Waiting), its worker only as [`Served`](super::context::Served). All of them run on one thread, and
//! none holds a borrow of a part across an await.

mod attachment;
mod client_identity;
mod inbound;
mod lanes;
mod outbound;
mod routing;
mod server_knowledge;
mod subscriber;

mod departure;
mod divider;
mod listed;
mod messages;
mod moving;
mod output;
mod passing;
mod redirected;
mod replies;
mod served;
mod server_change;
mod who;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::admission::AdmissionGuard;
use super::context::Context;
use super::identity::Membership;
use super::socket::ClientSocket;
use crate::command::Row;
use crate::pool::Pool;
use crate::resp::Protocol;
use crate::session::{Endpoint, Session};

use client_identity::ClientIdentity;
use inbound::Inbound;
use lanes::Lanes;
use outbound::{Outbound, Reader};
use server_knowledge::ServerKnowledge;

pub(in crate::downstream) use attachment::{Attachment, AttachmentCell, BlockedCall, BlockedOn, LeasedState};
pub(in crate::downstream) use departure::{FIRST_LOOK, FinTiming, READ_AHEAD, sleep_until};
pub(in crate::downstream) use divider::Divider;
pub(in crate::downstream) use inbound::Begun;
pub(in crate::downstream) use routing::{Answer, Kept, Routing};
pub(in crate::downstream) use subscriber::Subscriber;

/// One connected client.
pub(in crate::downstream) struct Client {
    pub(in crate::downstream) peer: Endpoint,
    /// When it came, in microseconds since the worker began; wraps where it came before.
    opened: Cell<u64>,
    pub(in crate::downstream) context: Rc<Context>,
    inbound: Inbound,
    outbound: Outbound,
    pub(in crate::downstream) session: RefCell<Session>,
    identified: ClientIdentity,
    pub(in crate::downstream) attachment: AttachmentCell,
    lanes: Lanes,
    /// Its subscriptions, if it has any.
    pub(in crate::downstream) subscriber: RefCell<Option<Rc<Subscriber>>>,
    /// As a subscriber it has been given all that was published before its last command was read or sent.
    pub(in crate::downstream) is_caught_up: Cell<bool>,
    /// It has had CLIENT TRACKING on.
    pub(in crate::downstream) has_tracked: Cell<bool>,
    /// It asks for keys by prefix, and perhaps no lane tells it of them.
    pub(in crate::downstream) is_untold: Cell<bool>,
    /// It could not be told that all it has read may have changed.
    pub(in crate::downstream) has_missed: Cell<bool>,
    /// Its knowledge of the server, which ends with its connection.
    learned: ServerKnowledge,
    pub(in crate::downstream) last_command: Cell<Option<&'static Row>>,
    /// Where its commands go, if the server is a cluster.
    routing: Option<Box<Routing>>,
}

/// A client as it comes in.
pub(in crate::downstream) struct Arrived {
    pub(in crate::downstream) socket: ClientSocket,
    pub(in crate::downstream) peer: Endpoint,
    pub(in crate::downstream) session: Session,
    pub(in crate::downstream) membership: Option<Membership>,
    /// It came by a listener that only this host can reach.
    pub(in crate::downstream) trusted: bool,
    pub(in crate::downstream) place: AdmissionGuard,
}

/// With the counts of its `Rc` it fills a size class of the allocator; ten thousand idle clients feel a byte more.
const _: () = assert!(size_of::<Client>() <= 512 - 2 * size_of::<usize>());

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("id", &self.id()).field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Client {
    pub(in crate::downstream) fn new(context: Rc<Context>, arrived: Arrived) -> Rc<Self> {
        let Arrived { socket, peer, session, membership, trusted, place } = arrived;
        let reader = if session.user.is_some() { Reader::Normal } else { Reader::Stranger };
        let outbound = Outbound::new(session.id, Rc::clone(&context), socket, reader);
        let routing = context.nodes.as_ref().map(|pools| {
            let charge = outbound.account().charge(0);
            Box::new(Routing::new(pools, charge))
        });
        Rc::new(Self {
            peer,
            opened: Cell::new(context.now()),
            inbound: Inbound::new(Rc::clone(&context)),
            outbound,
            context,
            session: RefCell::new(session),
            identified: ClientIdentity::new(membership, trusted, place),
            attachment: AttachmentCell::default(),
            lanes: Lanes::default(),
            subscriber: RefCell::new(None),
            is_caught_up: Cell::new(false),
            has_tracked: Cell::new(false),
            is_untold: Cell::new(false),
            has_missed: Cell::new(false),
            learned: ServerKnowledge::default(),
            last_command: Cell::new(None),
            routing,
        })
    }

    /// Its id, as CLIENT ID answers it.
    pub(in crate::downstream) fn id(&self) -> u64 {
        self.outbound.id()
    }

    pub(in crate::downstream) fn protocol(&self) -> Protocol {
        self.session.borrow().protocol
    }

    /// Where its commands go, if the server is a cluster.
    #[inline]
    pub(in crate::downstream) fn routing(&self) -> Option<&Routing> {
        self.routing.as_deref()
    }

    /// The pool that its commands go by.
    pub(in crate::downstream) fn pool(&self) -> Rc<Pool> {
        self.routing().map_or_else(|| Rc::clone(&self.context.pool), Routing::at)
    }

    /// Its input.
    pub(in crate::downstream) fn inbound(&self) -> &Inbound {
        &self.inbound
    }
}
