//! One line of CLIENT LIST, as the server at hand writes it (`catClientInfoString` in redis `networking.c`).
//!
//! Versions differ in which fields there are and in what order: `laddr` came with 6.2, `resp` with 7.0, `lib-name` with 7.2,
//! `io-thread` with 8.0, Valkey has `capa`. Tools read rows by place as well as by name, so ours have the server's own shape,
//! taken from a row of its own.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Endpoint, Redirect, Session};

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
    /// CLIENT TRACKING is on, and another client is told.
    pub redirect: Option<Redirect>,
    /// CLIENT TRACKING is on, by prefix.
    pub broadcast: bool,
    /// READONLY.
    pub readonly: bool,
    /// CLIENT NO-EVICT on.
    pub no_evict: bool,
    /// CLIENT NO-TOUCH on.
    pub no_touch: bool,
    /// Channel subscriptions.
    pub channels: usize,
    /// Pattern subscriptions.
    pub patterns: usize,
    /// Shard channel subscriptions.
    pub shards: usize,
}

impl Flags {
    /// Whether it is subscribed to something.
    #[must_use]
    pub fn listens(&self) -> bool {
        self.channels + self.patterns + self.shards > 0
    }
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
    /// Bytes of memory held for it, these included.
    pub memory: usize,
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

/// What listings show of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserRow {
    /// The name.
    pub name: String,
    /// Clients logged in.
    pub clients: usize,
    /// How many there may be.
    pub max_clients: Option<usize>,
    /// Upstream connections; those of a user without its own are the connections of `upstream.url`'s user.
    pub connections: usize,
    /// How many there may be.
    pub max_connections: Option<usize>,
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
            memory: 0,
            command: "NULL",
            user: session.user.as_ref().map_or_else(|| "(none)".to_owned(), |user| user.name.to_string()),
            protocol: session.protocol.number(),
            lib_name: session.library.as_ref().map(|library| text(&library.name)).unwrap_or_default(),
            lib_ver: session.library.as_ref().map(|library| text(&library.version)).unwrap_or_default(),
            place: "lane",
            transport: "tcp",
        }
    }

    fn flag_letters(&self) -> String {
        let flags = &self.flags;
        let mut letters = String::new();
        for (set, letter) in [
            (flags.monitor, 'O'),
            (flags.listens(), 'P'),
            (flags.multi.is_some(), 'x'),
            (flags.blocked, 'b'),
            (flags.tracking, 't'),
            (flags.redirect.is_some_and(|redirect| redirect.is_broken), 'R'),
            (flags.broadcast, 'B'),
            (matches!(self.peer, Endpoint::Unix(_)), 'U'),
            (flags.readonly, 'r'),
            (flags.no_evict, 'e'),
            (flags.no_touch, 'T'),
        ] {
            if set {
                letters.push(letter);
            }
        }
        if letters.is_empty() { "N".to_owned() } else { letters }
    }
}

/// Which fields a row has, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowFormat {
    fields: Vec<Box<str>>,
}

impl RowFormat {
    /// The shape of a row that a server wrote; `None` where it is no row.
    #[must_use]
    pub fn of(line: &str) -> Option<Self> {
        let fields: Vec<Box<str>> = line
            .trim_end()
            .split(' ')
            .filter_map(|field| field.split_once('=').map(|(name, _)| name.into()))
            .collect();
        (fields.first().is_some_and(|name| **name == *"id") && fields.len() > 5).then_some(Self { fields })
    }

    /// Before 7.0 a row named the container alone (`cmd=client`).
    fn names_subcommands(&self) -> bool {
        self.fields.iter().any(|name| **name == *"ssub")
    }
}

impl Default for RowFormat {
    /// The shape of Redis 7.2, for servers that do not show theirs.
    fn default() -> Self {
        const FIELDS: &str = "id addr laddr fd name age idle flags db sub psub ssub multi qbuf qbuf-free argv-mem \
            multi-mem rbs rbp obl oll omem tot-mem events cmd user redir resp lib-name lib-ver";
        Self { fields: FIELDS.split_ascii_whitespace().map(Into::into).collect() }
    }
}

impl ClientRow {
    /// The row as text, its line end included.
    #[must_use]
    pub fn text(&self, format: &RowFormat) -> String {
        let mut line = String::new();
        for name in &format.fields {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(name);
            line.push('=');
            self.value(name, format, &mut line);
        }
        line.push('\n');
        line
    }

    /// Writes one field's value; what a proxy has not is 0.
    fn value(&self, name: &str, format: &RowFormat, line: &mut String) {
        let flags = &self.flags;
        // Writing to a String does not fail.
        let _ = match name {
            "id" => write!(line, "{}", self.id),
            "addr" => write!(line, "{}", self.peer),
            "laddr" => write!(line, "{}", self.local),
            "fd" => write!(line, "-1"),
            "name" => write!(line, "{}", self.name),
            "age" => write!(line, "{}", self.age.as_secs()),
            "idle" => write!(line, "{}", self.idle.as_secs()),
            "flags" => write!(line, "{}", self.flag_letters()),
            "db" => write!(line, "{}", self.database),
            "sub" => write!(line, "{}", flags.channels),
            "psub" => write!(line, "{}", flags.patterns),
            "ssub" => write!(line, "{}", flags.shards),
            "multi" => write!(line, "{}", flags.multi.map_or(-1, i64::from)),
            "watch" => write!(line, "{}", u8::from(flags.watching)),
            "qbuf" => write!(line, "{}", self.input),
            "omem" => write!(line, "{}", self.output),
            "tot-mem" => write!(line, "{}", self.memory.max(self.input + self.output)),
            "events" => write!(line, "r"),
            "cmd" if format.names_subcommands() => write!(line, "{}", self.command),
            "cmd" => write!(line, "{}", self.command.split('|').next().unwrap_or_default()),
            "user" => write!(line, "{}", self.user),
            "redir" => match flags.redirect {
                Some(redirect) => write!(line, "{}", redirect.id),
                None => write!(line, "{}", if flags.tracking { 0 } else { -1 }),
            },
            "resp" => write!(line, "{}", self.protocol),
            "lib-name" => write!(line, "{}", self.lib_name),
            "lib-ver" => write!(line, "{}", self.lib_ver),
            "capa" => Ok(()),
            _ => write!(line, "0"),
        };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn row() -> ClientRow {
        let session = Session { id: 7, name: b"web"[..].into(), database: 3, ..Session::default() };
        let at = |address: &str| Endpoint::from(address.parse::<std::net::SocketAddr>().unwrap());
        let mut row = ClientRow::of(&session, at("10.0.0.1:5000"), at("10.0.0.2:6379"));
        row.command = "client|info";
        row
    }

    #[test]
    fn a_row_has_the_fields_of_the_servers_own_rows_in_their_order() {
        let old = RowFormat::of("id=3 addr=a:1 fd=8 name=x age=2 idle=2 flags=N db=0 cmd=client").unwrap();
        assert_eq!(
            row().text(&old),
            "id=7 addr=10.0.0.1:5000 fd=-1 name=web age=0 idle=0 flags=N db=3 cmd=client\n"
        );
        let new = RowFormat::of("id=3 addr=a:1 ssub=0 capa= watch=0 cmd=get tot-cmds=9").unwrap();
        assert_eq!(
            row().text(&new),
            "id=7 addr=10.0.0.1:5000 ssub=0 capa= watch=0 cmd=client|info tot-cmds=0\n"
        );
        assert_eq!(RowFormat::of("-NOPERM no"), None);
    }
}
