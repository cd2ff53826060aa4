//! What is counted: the kinds of connections and where in their life they are, who holds them, and who waits for what.

use tokio::time::Instant;

use super::holder::{HoldingClient, Occupant};

/// What an upstream connection is for. Its permit is counted under this kind from dial to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Answers what no client command may delay: listings, kills, `SCRIPT KILL`.
    Control,
    /// Shared by many sessions.
    Lane,
    /// Held by one session alone.
    Lease,
    /// A blocking hub: watches the keys that one user's blocked sessions wait for.
    Blocking,
    /// A pub/sub hub: subscribed to what one user's sessions listen to.
    PubSub,
}

impl Kind {
    /// All kinds, in the order of listings.
    pub const ALL: [Self; 5] = [Self::Control, Self::Lane, Self::Lease, Self::Blocking, Self::PubSub];

    /// The word used in metrics, listings and connection names.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Lane => "shared",
            Self::Lease => "leased",
            Self::Blocking => "blocking",
            Self::PubSub => "pubsub",
        }
    }
}

/// Where in its life a connection is. Every connection is in exactly one of these lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// From the decision to dial until the login has succeeded.
    Dialling,
    /// In use, or ready to be.
    Open,
    /// Shut down for writing, waiting for the server's end of file.
    Closing,
}

impl Phase {
    /// All phases, in the order of listings.
    pub const ALL: [Self; 3] = [Self::Dialling, Self::Open, Self::Closing];

    /// The word used in metrics and listings.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Dialling => "dialling",
            Self::Open => "open",
            Self::Closing => "closing",
        }
    }
}

/// What somebody waits for with a permit. Each has its own queue, in which users and addresses come in turn; the queues are
/// served in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A lane that sessions need now.
    Lane,
    /// A lease that a session cannot do without, and that ends by itself (WATCH, MULTI …).
    Lease,
    /// One that stands: it lasts for as long as the client pleases (MONITOR, CLIENT TRACKING …). A share of the leases is kept
    /// from those.
    StandingLease,
    /// The pub/sub hub of a further user, whose subscribers wait for it.
    PubSub,
    /// A lease for a blocking call, which is served by tries on a lane meanwhile. It waits behind the others.
    BlockingLease,
}

/// How many wait in each queue: what tells workers to give something up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Waiting lanes.
    pub lanes: usize,
    /// Waiting leases that no try can stand in for.
    pub leases: usize,
    /// Waiting pub/sub hubs.
    pub hubs: usize,
    /// Waiting leases for blocking calls.
    pub blocking: usize,
    /// Waiting leases that would stand where no more may: only the end of others that do helps them.
    pub standing: usize,
}

impl Pressure {
    /// Whether anybody waits at all.
    #[must_use]
    pub fn any(&self) -> bool {
        self.lanes + self.leases + self.hubs + self.blocking > 0
    }
}

impl std::iter::Sum for Pressure {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            lanes: sum.lanes + one.lanes,
            leases: sum.leases + one.leases,
            hubs: sum.hubs + one.hubs,
            blocking: sum.blocking + one.blocking,
            standing: sum.standing + one.standing,
        })
    }
}

/// One row of the listing of held permits.
#[derive(Clone, Debug)]
pub struct Holding {
    /// Whose it is, as a number; [`Holder::NOBODY`] for what is counted for no user.
    pub user: u64,
    /// What the connection is for.
    pub kind: Kind,
    /// Where in its life it is.
    pub phase: Phase,
    /// When the permit was granted.
    pub since: Instant,
    /// Our port, from the login on.
    pub local_port: Option<u16>,
    /// Its client id on the server, from the login on, where the server tells.
    pub id: Option<u64>,
    /// The server has it, as far as we know: logged in, and not closed there.
    pub on_server: bool,
    /// It is a lease that stands.
    pub stands: bool,
    /// Who holds it.
    pub(super) who: Occupant,
    /// There is a connection whose end has not been counted.
    pub(super) uncounted: bool,
    /// The log has told that it is held for long.
    pub(super) is_told_of: bool,
}

impl Holding {
    /// The client that holds it alone, if one does.
    #[must_use]
    pub fn client(&self) -> Option<&HoldingClient> {
        match &self.who {
            Occupant::Client(client) => Some(client),
            Occupant::Words(_) => None,
        }
    }

    pub(super) fn new(kind: Kind, user: u64, who: Occupant) -> Self {
        Self {
            who,
            local_port: None,
            is_told_of: false,
            user,
            kind,
            phase: Phase::Dialling,
            since: Instant::now(),
            id: None,
            on_server: false,
            stands: false,
            uncounted: false,
        }
    }
}

/// Which hubs are in use: each keeps one connection that nothing else may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hubs {
    /// `blocking.hub`
    pub blocking: bool,
    /// `pubsub.hub`
    pub pubsub: bool,
}

impl Claim {
    /// All claims, in the order of the variants.
    pub const ALL: [Self; 5] =
        [Self::Lane, Self::Lease, Self::StandingLease, Self::PubSub, Self::BlockingLease];

    /// The word used in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Lane => "lane",
            Self::Lease => "lease",
            Self::StandingLease => "standing",
            Self::PubSub => "hub",
            Self::BlockingLease => "blocking",
        }
    }

    /// Whether what is claimed lasts for as long as its client pleases.
    #[must_use]
    pub fn stands(self) -> bool {
        matches!(self, Self::StandingLease | Self::BlockingLease)
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Lane => Kind::Lane,
            Self::PubSub => Kind::PubSub,
            Self::Lease | Self::StandingLease | Self::BlockingLease => Kind::Lease,
        }
    }
}

/// Clients that got the full-pool error.
#[derive(Clone, Copy, Debug)]
pub struct RefusedClients {
    /// How many, since the start.
    pub clients: u64,
    /// When the last one did.
    pub at: Instant,
}
