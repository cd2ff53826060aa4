//! The class of a command.

/// The class of a command: the part of the proxy that answers it, or the kind of upstream connection it needs.
///
/// The enum is closed on purpose, so every user matches all cases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Makes no connection state: over a lane, between the commands of others.
    Pass,

    /// AUTH: changes the session's user.
    Auth,
    /// HELLO: protocol, and perhaps user and name.
    Hello,
    /// SELECT: the session's database, part of its lane's key.
    Select,
    /// QUIT: answered, then the client is closed.
    Quit,
    /// RESET: the session as it was on connecting.
    Reset,

    /// CLIENT SETNAME.
    ClientSetName,
    /// CLIENT GETNAME.
    ClientGetName,
    /// CLIENT SETINFO: library name and version.
    ClientSetInfo,
    /// CLIENT ID: from our own numbering.
    ClientId,
    /// CLIENT INFO: this session's row.
    ClientInfo,
    /// CLIENT LIST: our sessions, then the server's other clients.
    ClientList,
    /// CLIENT KILL: ours here, others by id on a control connection.
    ClientKill,
    /// CLIENT UNBLOCK: ours here, others on a control connection.
    ClientUnblock,
    /// CLIENT REPLY: replies are swallowed here, the upstream stays on.
    ClientReply,
    /// CLIENT NO-EVICT: acknowledged here.
    ClientNoEvict,
    /// CLIENT NO-TOUCH: a lease from `on` to `off`.
    ClientNoTouch,
    /// CLIENT TRACKING: part of the lane's key; a lease from ON to OFF before 7.0.
    ClientTracking,
    /// CLIENT CACHING: remembered for the next command.
    ClientCaching,
    /// CLIENT TRACKINGINFO.
    ClientTrackingInfo,
    /// CLIENT GETREDIR.
    ClientGetRedir,
    /// CLIENT HELP.
    ClientHelp,
    /// CLIENT CAPA (Valkey): acknowledged here.
    ClientCapa,
    /// CLIENT IMPORT-SOURCE (Valkey): refused, it would exempt a whole lane from expiry.
    ClientImportSource,
    /// CLIENT alone or with an unknown subcommand: refused with the server's text, because a new subcommand may cause
    /// pushes on a lane.
    ClientUnknown,

    /// MULTI.
    Multi,
    /// EXEC.
    Exec,
    /// DISCARD.
    Discard,
    /// WATCH: a lease until EXEC, DISCARD or UNWATCH.
    Watch,
    /// UNWATCH.
    Unwatch,

    /// SUBSCRIBE.
    Subscribe,
    /// UNSUBSCRIBE.
    Unsubscribe,
    /// PSUBSCRIBE.
    PSubscribe,
    /// PUNSUBSCRIBE.
    PUnsubscribe,
    /// SSUBSCRIBE.
    SSubscribe,
    /// SUNSUBSCRIBE.
    SUnsubscribe,
    /// PUBLISH and SPUBLISH: pass; their count may need a correction.
    Publish,
    /// PUBSUB CHANNELS, NUMSUB, NUMPAT and their like for shards: the server's answer, corrected by our hubs.
    PubSub,

    /// PING: passes, but has a form of its own while subscribed in RESP2.
    Ping,
    /// MONITOR: a lease until the client leaves.
    Monitor,
    /// A command that may hold its connection until something happens to a key.
    Blocking(Blocking),
    /// WAIT and WAITAOF: about the last write of the connection they run on.
    Wait,
    /// READONLY: part of the lane's key.
    ReadOnly,
    /// READWRITE: part of the lane's key.
    ReadWrite,
    /// ASKING: only together with the next command.
    Asking,
    /// Makes connection state that is not modelled here: a lease until the client leaves or resets.
    Lease,
    /// Must overtake running commands: on a connection that no client command can delay.
    Control,
    /// May stall or end the connection (or the server) it runs on: on a connection of its own.
    Own,
    /// Never forwarded.
    Refused(Refusal),
    /// Our own admin commands.
    Proxy,
    /// Not in the table: the server is asked once with COMMAND INFO.
    Unknown,
}

impl Class {
    /// The route as one of [`ROUTES`], for `redbouncer commands`, metrics and logs.
    pub const fn route(self) -> &'static str {
        match self {
            Self::Pass | Self::Publish | Self::PubSub | Self::Ping => "lane",
            Self::Auth
            | Self::Hello
            | Self::Select
            | Self::ReadOnly
            | Self::ReadWrite
            | Self::ClientTracking => "lane key",
            Self::Quit
            | Self::Reset
            | Self::ClientSetName
            | Self::ClientGetName
            | Self::ClientSetInfo
            | Self::ClientId
            | Self::ClientInfo
            | Self::ClientReply
            | Self::ClientCaching
            | Self::ClientTrackingInfo
            | Self::ClientGetRedir
            | Self::ClientNoEvict
            | Self::ClientHelp
            | Self::ClientCapa
            | Self::Proxy => "local",
            Self::ClientList | Self::ClientKill | Self::ClientUnblock => "local + control",
            Self::ClientNoTouch | Self::Watch | Self::Unwatch | Self::Monitor | Self::Wait | Self::Lease => {
                "lease"
            }
            Self::ClientImportSource | Self::ClientUnknown | Self::Refused(_) => "refused",
            Self::Multi | Self::Exec | Self::Discard => "lane or lease",
            Self::Subscribe
            | Self::Unsubscribe
            | Self::PSubscribe
            | Self::PUnsubscribe
            | Self::SSubscribe
            | Self::SUnsubscribe => "pub/sub",
            Self::Blocking(_) => "blocking",
            Self::Asking => "with the next",
            Self::Control => "control",
            Self::Own => "own connection",
            Self::Unknown => "ask the server",
        }
    }
}

/// Every route that [`Class::route`] names, with its meaning.
pub const ROUTES: &[(&str, &str)] = &[
    ("lane", "over an upstream connection that many clients share"),
    ("lane key", "remembered for the client; only clients that agree in it share a lane"),
    ("local", "answered by redbouncer"),
    ("local + control", "answered by redbouncer, which asks the server where others are concerned"),
    ("control", "on a connection that no client command can delay"),
    ("lease", "an upstream connection held alone, until the state that the command made has ended"),
    ("lane or lease", "a whole MULTI … EXEC of plain commands over a lane, anything else on a lease"),
    ("blocking", "tried without blocking until there is something, or the client's own timeout has passed"),
    ("pub/sub", "a connection that listens"),
    ("with the next", "in one write with the command behind it"),
    ("own connection", "on an upstream connection of its own"),
    (
        "ask the server",
        "COMMAND INFO says once what it is: a plain data command goes over a lane, everything else takes a lease",
    ),
    ("refused", "an error, nothing is sent"),
];

/// The blocking commands whose every option is understood, so that they can be retried without blocking.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Blocking {
    /// BLPOP.
    BLPop,
    /// BRPOP.
    BRPop,
    /// BLMOVE.
    BLMove,
    /// BRPOPLPUSH.
    BRPopLPush,
    /// BLMPOP.
    BLMPop,
    /// BZPOPMIN.
    BZPopMin,
    /// BZPOPMAX.
    BZPopMax,
    /// BZMPOP.
    BZMPop,
    /// XREAD with BLOCK.
    XRead,
    /// XREADGROUP with BLOCK.
    XReadGroup,
}

/// Why a command is never forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It turns the connection into a replication or migration link, which is not a dialogue of request and reply.
    ReplicationLink,
    /// SCRIPT DEBUG: it turns the connection into a debugger's console.
    Debugger,
}

impl Refusal {
    /// The client's error, without the leading `-`.
    pub const fn error(self) -> &'static str {
        match self {
            Self::ReplicationLink => {
                "ERR redbouncer: replication and migration links cannot be shared; connect to the server directly"
            }
            Self::Debugger => {
                "ERR redbouncer: the Lua debugger needs a dedicated connection; connect to the server directly"
            }
        }
    }
}
