//! One line of CLIENT LIST, as redis writes it (`catClientInfoString` in `networking.c`).

use std::fmt::{self, Write as _};
use std::time::Duration;

use super::{Endpoint, Session};

/// The flags of a listed client that a proxy knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Blocked by a blocking command.
    pub blocked: bool,
    /// In a transaction: commands queued so far.
    pub multi: Option<u32>,
    /// Watching keys.
    pub watching: bool,
    /// A MONITOR.
    pub monitor: bool,
    /// Tracking keys.
    pub tracking: bool,
    /// Channel subscriptions.
    pub channels: usize,
    /// Pattern subscriptions.
    pub patterns: usize,
    /// Shard channel subscriptions.
    pub shards: usize,
}

/// What a listing shows of one client.
#[derive(Clone, Debug)]
pub struct ClientRow {
    /// Our id for it.
    pub id: u64,
    /// Where it connects from.
    pub peer: Endpoint,
    /// Where it connects to.
    pub local: Endpoint,
    /// CLIENT SETNAME.
    pub name: String,
    /// Time since it connected.
    pub age: Duration,
    /// Time since its last bytes.
    pub idle: Duration,
    /// Its flags.
    pub flags: Flags,
    /// Selected database.
    pub database: u32,
    /// Bytes of input not yet run.
    pub input: usize,
    /// Bytes of output not yet sent.
    pub output: usize,
    /// The last command's name.
    pub command: &'static str,
    /// Who it is.
    pub user: String,
    /// Protocol version.
    pub protocol: u8,
    /// CLIENT SETINFO LIB-NAME.
    pub lib_name: String,
    /// CLIENT SETINFO LIB-VER.
    pub lib_ver: String,
    /// Where its commands go now, for our own listings: `lane`, the pin of a lease, or what it waits for.
    pub place: &'static str,
    /// How it came, for our own listings: `tcp`, `unix` or `tls`.
    pub transport: &'static str,
}

impl ClientRow {
    /// Fills in what the session knows.
    #[must_use]
    pub fn of(session: &Session, peer: Endpoint, local: Endpoint) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            id: session.id,
            peer,
            local,
            name: text(&session.name),
            age: Duration::ZERO,
            idle: Duration::ZERO,
            flags: Flags::default(),
            database: session.database,
            input: 0,
            output: 0,
            command: "NULL",
            user: session.user.as_ref().map_or_else(|| "(none)".to_owned(), |user| user.name.to_string()),
            protocol: session.protocol.number(),
            lib_name: text(&session.lib_name),
            lib_ver: text(&session.lib_ver),
            place: "lane",
            transport: "tcp",
        }
    }

    fn flag_letters(&self) -> String {
        let flags = &self.flags;
        let mut letters = String::new();
        for (set, letter) in [
            (flags.monitor, 'O'),
            (flags.channels + flags.patterns + flags.shards > 0, 'P'),
            (flags.multi.is_some(), 'x'),
            (flags.blocked, 'b'),
            (flags.tracking, 't'),
            (matches!(self.peer, Endpoint::Unix(_)), 'U'),
        ] {
            if set {
                letters.push(letter);
            }
        }
        if letters.is_empty() { "N".to_owned() } else { letters }
    }
}

impl fmt::Display for ClientRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = &self.flags;
        write!(
            f,
            "id={} addr={} laddr={} fd=-1 name={} age={} idle={} flags={} db={} sub={} psub={} ssub={} multi={} ",
            self.id,
            self.peer,
            self.local,
            self.name,
            self.age.as_secs(),
            self.idle.as_secs(),
            self.flag_letters(),
            self.database,
            flags.channels,
            flags.patterns,
            flags.shards,
            flags.multi.map_or(-1, i64::from),
        )?;
        write!(
            f,
            "watch={} qbuf={} qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem={} tot-mem={} events=r ",
            u8::from(flags.watching),
            self.input,
            self.output,
            self.input + self.output,
        )?;
        write!(f, "cmd={} user={} redir=-1 resp={} ", self.command, self.user, self.protocol)?;
        write!(f, "lib-name={} lib-ver={}", self.lib_name, self.lib_ver)?;
        f.write_char('\n')
    }
}
