//! The values of labels that are no reasons for closing something: closed lists, so that each of them is a series from the start.

/// An enum of label values, with the list of all and the word for each.
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

            /// The word in metrics and logs.
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
    /// Ours, as clients are shown it.
    ToClients = "client",
    /// The server's.
    OfServer = "upstream",
    /// Ours, as the server is shown it.
    ToServer = "upstream_own",
}

labels! {
    /// Who has answered a command with an error.
    Origin:
    /// The server.
    Server = "server",
    /// redbouncer itself.
    Redbouncer = "redbouncer",
}

labels! {
    /// How a TLS handshake ended.
    Handshake:
    /// With a certificate sent and a signature made.
    Full = "full",
    /// A session from before goes on.
    Resumed = "resumed",
    /// There is no session.
    Failed = "failed",
}

labels! {
    /// How a client's login ended.
    LoginOutcome:
    /// The server, or the users file, let it in.
    Verified = "verified",
    /// The same had been let in not long ago.
    Remembered = "remembered",
    /// The server, or the users file, refused it.
    Refused = "refused",
    /// Nobody was asked: its address has failed too often.
    Limited = "limited",
    /// Nobody could be asked in time.
    Unavailable = "unavailable",
}

labels! {
    /// What became of a popped element whose client was gone.
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
    /// How a look for orphans ended.
    OrphanRound:
    /// All connections on the server were judged.
    Judged = "judged",
    /// There is nobody to ask as.
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
    /// What became of a raise of the claim on `fleet.total_connections`.
    FleetRaise:
    /// All claims together fit.
    Confirmed = "confirmed",
    /// Others had claimed too much by then.
    Withdrawn = "withdrawn",
}

labels! {
    /// Why a log line was lost.
    LineLoss:
    /// Nobody reads the lines fast enough.
    QueueFull = "queue_full",
    /// They could not be written.
    WriteFailed = "write_failed",
}

#[cfg(feature = "otlp")]
labels! {
    /// What became of the span of a sampled command.
    SpanFate:
    /// The collector has taken it.
    Exported = "exported",
    /// The collector does not take them fast enough.
    QueueFull = "queue_full",
    /// The collector could not be reached, or refused it.
    ExportFailed = "export_failed",
}
