//! The values of labels that are no reasons for closing something: closed lists, so that each of them is a series from the start.

/// An enum of label values, with a list of all and the text of each.
macro_rules! labels {
    ($(#[$about:meta])* $name:ident: $($(#[$meaning:meta])* $variant:ident = $word:literal,)+) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$meaning])* $variant,)+
        }

        impl $name {
            /// All values, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The label in metrics and logs.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }
    };
}

labels! {
    /// Whose connection a metric is about.
    Side:
    /// Those of clients.
    Client = "client",
    /// Those to the server.
    Upstream = "upstream",
}

labels! {
    /// Whose certificate it is.
    Certificate:
    /// The certificate of listen.tls.
    ToClients = "client",
    /// The server's.
    OfServer = "upstream",
    /// The certificate of upstream.tls.
    ToServer = "upstream_own",
}

labels! {
    /// The sender of an error reply.
    Origin:
    /// The server.
    Server = "server",
    /// redbouncer itself.
    Redbouncer = "redbouncer",
}

labels! {
    /// The outcome of a TLS handshake.
    Handshake:
    /// With a certificate sent and a signature made.
    Full = "full",
    /// An earlier session was resumed.
    Resumed = "resumed",
    /// There is no session.
    Failed = "failed",
}

labels! {
    /// The outcome of a client's login.
    LoginOutcome:
    /// The server, or the users file, let it in.
    Verified = "verified",
    /// Found in the cache of successful logins.
    Remembered = "remembered",
    /// The server, or the users file, refused it.
    Refused = "refused",
    /// Not checked: its address has too many failures.
    Limited = "limited",
    /// Not checked in time.
    Unavailable = "unavailable",
}

labels! {
    /// The outcome for a popped element whose client had left.
    ElementFate:
    /// Another client that waited for it got it.
    HandedOn = "handed_on",
    /// It is in its key again.
    GivenBack = "given_back",
    /// Neither.
    Lost = "lost",
}

labels! {
    /// Where a blocking call was tried.
    TriedOn:
    /// On the connection of a blocking hub.
    Hub = "hub",
    /// On a lane.
    Lane = "lane",
}

labels! {
    /// The outcome of a search for orphans.
    OrphanRound:
    /// All connections on the server were judged.
    Judged = "judged",
    /// No login is available for the search.
    NoLogin = "no_login",
    /// The server cannot be reached.
    Unavailable = "unavailable",
    /// It answers too slowly to judge by its listing, or is busy with a script.
    Slow = "slow",
    /// The user may not list clients.
    ListRefused = "list_refused",
    /// The user may not kill clients.
    KillRefused = "kill_refused",
}

labels! {
    /// The outcome of a raise of the claim on `fleet.total_connections`.
    FleetRaise:
    /// All claims together fit.
    Confirmed = "confirmed",
    /// Others had claimed too much by then.
    Withdrawn = "withdrawn",
}

labels! {
    /// Why a log line was lost.
    LineLoss:
    /// The reader of the log is too slow.
    QueueFull = "queue_full",
    /// They could not be written.
    WriteFailed = "write_failed",
}

#[cfg(feature = "otlp")]
labels! {
    /// The outcome for the span of a sampled command.
    SpanFate:
    /// The collector has taken it.
    Exported = "exported",
    /// The collector does not take them fast enough.
    QueueFull = "queue_full",
    /// The collector could not be reached, or refused it.
    ExportFailed = "export_failed",
}
