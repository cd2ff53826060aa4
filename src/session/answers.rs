//! Replies made here without the server, in the forms and texts of redis `networking.c`, `db.c` and `server.c`.

use bytes::BytesMut;

use crate::command::{Asked, Class};
use crate::resp::{Request, encode};

pub use super::text::{is_plain_name, one_line};
use super::{ReplyMode, Session};

/// The facts about the server for HELLO, from the last upstream login.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// `redis`, `valkey` …
    pub server: String,
    /// The server's version.
    pub version: String,
    /// `standalone`, `cluster` or `sentinel`.
    pub mode: String,
    /// `master` or `replica`.
    pub role: String,
    /// Loaded modules.
    pub modules: Vec<LoadedModule>,
}

/// A module of the server's, as HELLO tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadedModule {
    /// Its name.
    pub name: String,
    /// Its version, one number.
    pub version: i64,
    /// Its file; not reported before 7.0.
    pub path: Option<String>,
    /// Its arguments; not reported before 7.0.
    pub args: Option<Vec<String>>,
}

/// Whether `request`, a CLIENT REPLY, is one that nothing ever answers (`clientCommand` in redis `networking.c`): it
/// says what becomes of later replies, so it need not wait for earlier ones.
#[must_use]
pub fn is_silent_mode(request: &Request<'_>) -> bool {
    request.argc() == 3
        && request
            .arg(2)
            .is_some_and(|mode| mode.eq_ignore_ascii_case(b"off") || mode.eq_ignore_ascii_case(b"skip"))
}

/// The action after a local reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The session continues.
    Continue,
    /// The reply is written, then the connection is closed.
    Close,
}

/// AUTH on a connection that holds more than a user.
pub(super) const AUTH_WHILE_HELD: &str = "ERR redbouncer: AUTH is not possible while this connection holds WATCH, MULTI, subscriptions or tracking";

/// Whether a client is closed after this error: on a server it would have become another user, and its next commands
/// are meant for that user.
#[must_use]
pub fn ends_the_session(error: &str) -> bool {
    error == AUTH_WHILE_HELD
}

/// The error for a command that a RESP2 subscriber may not send.
pub(super) fn not_while_subscribed(asked: &Asked) -> String {
    rejection(asked, not_in_subscription(asked.row.map_or("this command", |row| row.name)))
}

/// The error for the command `name` of a RESP2 subscriber.
#[must_use]
pub fn not_in_subscription(name: &str) -> String {
    format!(
        "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
    )
}

/// The error as it is said of `asked`: an EXEC that is refused aborts (`rejectCommand` in redis `server.c`).
pub(super) fn rejection(asked: &Asked, text: String) -> String {
    match asked.class {
        Class::Exec => {
            let why = text.strip_prefix("ERR ").unwrap_or(&text);
            format!("EXECABORT Transaction discarded because of: {why}")
        }
        _ => text, // every other command is refused in these words
    }
}

const BAD_NAME: &str = "ERR Client names cannot contain spaces, newlines or special characters.";

/// The error for a wrong number of arguments.
#[must_use]
pub fn wrong_arity(name: &str) -> String {
    format!("ERR wrong number of arguments for '{name}' command")
}

/// The error for a wrong number of arguments, with the server's text; only for commands that redbouncer answers.
pub(super) fn arity_error(asked: &Asked, request: &Request<'_>) -> Option<String> {
    let to_server = matches!(
        asked.class,
        Class::Pass
            | Class::Publish
            | Class::PubSub
            | Class::Ping
            | Class::Blocking(_)
            | Class::Multi
            | Class::Exec
            | Class::Discard
            | Class::Watch
            | Class::Unwatch
    );
    if to_server { None } else { misfit(asked, request) }
}

/// The error for a wrong number of arguments of any command.
pub(super) fn misfit(asked: &Asked, request: &Request<'_>) -> Option<String> {
    if asked.class == Class::ClientUnknown {
        return Some(unknown_subcommand(request));
    }
    let row = asked.row?;
    let argc = i64::try_from(request.argc()).unwrap_or(i64::MAX);
    let arity = i64::from(row.arity);
    let fits = if arity >= 0 { argc == arity } else { argc >= -arity };
    (!fits).then(|| wrong_arity(row.name))
}

/// The reply to an unknown or missing subcommand of CLIENT, as the server writes it.
#[must_use]
pub fn unknown_subcommand(request: &Request<'_>) -> String {
    request.arg(1).map_or_else(
        || wrong_arity("client"),
        |sub| {
            let shown = &sub[..sub.len().min(128)];
            format!("ERR unknown subcommand '{}'. Try CLIENT HELP.", one_line(shown))
        },
    )
}

/// Writes the HELLO reply: the server's facts, our own client id.
pub fn hello(session: &Session, facts: &ServerFacts, out: &mut BytesMut) {
    let protocol = session.protocol;
    encode::map(out, protocol, 7);
    for (key, value) in [("server", &facts.server), ("version", &facts.version)] {
        encode::bulk(out, key.as_bytes());
        encode::bulk(out, value.as_bytes());
    }
    encode::bulk(out, b"proto");
    encode::integer(out, i64::from(protocol.number()));
    encode::bulk(out, b"id");
    encode::integer(out, id(session));
    for (key, value) in [("mode", &facts.mode), ("role", &facts.role)] {
        encode::bulk(out, key.as_bytes());
        encode::bulk(out, value.as_bytes());
    }
    encode::bulk(out, b"modules");
    encode::array(out, facts.modules.len());
    for module in &facts.modules {
        let fields = 2 + usize::from(module.path.is_some()) + usize::from(module.args.is_some());
        encode::map(out, protocol, fields);
        encode::bulk(out, b"name");
        encode::bulk(out, module.name.as_bytes());
        encode::bulk(out, b"ver");
        encode::integer(out, module.version);
        if let Some(path) = &module.path {
            encode::bulk(out, b"path");
            encode::bulk(out, path.as_bytes());
        }
        if let Some(args) = &module.args {
            encode::bulk(out, b"args");
            encode::array(out, args.len());
            args.iter().for_each(|arg| encode::bulk(out, arg.as_bytes()));
        }
    }
}

fn id(session: &Session) -> i64 {
    i64::try_from(session.id).unwrap_or(i64::MAX)
}

impl Session {
    /// Answers a command of class `class` from the session alone.
    pub fn answer(&mut self, class: Class, request: &Request<'_>, out: &mut BytesMut) -> After {
        match class {
            Class::Quit => {
                encode::simple(out, "OK");
                return After::Close;
            }
            Class::Reset => {
                self.reset();
                encode::simple(out, "RESET");
            }
            Class::Select => encode::simple(out, "OK"),
            Class::Ping => ping_while_subscribed(request, out),
            Class::ReadOnly | Class::ReadWrite => {
                self.readonly = class == Class::ReadOnly;
                encode::simple(out, "OK");
            }
            Class::ClientId => encode::integer(out, id(self)),
            Class::ClientGetName => match self.name.is_empty() {
                true => encode::null(out, self.protocol),
                false => encode::bulk(out, &self.name),
            },
            Class::ClientSetName => self.set_name(request, out),
            Class::ClientSetInfo => self.set_info(request, out),
            Class::ClientReply => self.set_reply_mode(request, out),
            Class::ClientNoEvict => self.set_no_evict(request, out),
            Class::ClientTracking => self.set_tracking(request, out),
            Class::ClientTrackingInfo => self.tracking_info(out),
            Class::ClientGetRedir => encode::integer(out, self.redirection()),
            Class::ClientCaching => self.mark_next(request, out),
            Class::Multi | Class::Exec | Class::Discard | Class::Unwatch => {
                self.answer_after_refusal(class, out);
            }
            Class::ClientCapa => encode::simple(out, "OK"),
            Class::ClientHelp => help(out),
            _ => encode::error(out, &unknown_subcommand(request)),
        }
        After::Continue
    }

    fn set_name(&mut self, request: &Request<'_>, out: &mut BytesMut) {
        let name = request.arg(2).unwrap_or_default();
        if is_plain_name(name) {
            self.name = name.into();
            encode::simple(out, "OK");
        } else {
            encode::error(out, BAD_NAME);
        }
    }

    /// `clientSetinfoCommand`: option and value, each error with the server's text.
    fn set_info(&mut self, request: &Request<'_>, out: &mut BytesMut) {
        let option = request.arg(2).unwrap_or_default();
        let value = request.arg(3).unwrap_or_default();
        let library = self.library.get_or_insert_default();
        let field = if option.eq_ignore_ascii_case(b"lib-name") {
            &mut library.name
        } else if option.eq_ignore_ascii_case(b"lib-ver") {
            &mut library.version
        } else {
            let text = format!("ERR Unrecognized option '{}'", one_line(option));
            return encode::error(out, &text);
        };
        if is_plain_name(value) {
            *field = value.into();
            encode::simple(out, "OK");
        } else {
            let text =
                format!("ERR {} cannot contain spaces, newlines or special characters.", one_line(option));
            encode::error(out, &text);
        }
    }

    /// CLIENT REPLY: only ON is answered, and SKIP keeps the next command's reply back (unless all are kept back).
    fn set_reply_mode(&mut self, request: &Request<'_>, out: &mut BytesMut) {
        let mode = request.arg(2).unwrap_or_default();
        if mode.eq_ignore_ascii_case(b"on") {
            self.replies = ReplyMode::On;
            encode::simple(out, "OK");
        } else if mode.eq_ignore_ascii_case(b"off") {
            self.replies = ReplyMode::Off;
        } else if mode.eq_ignore_ascii_case(b"skip") {
            if self.replies != ReplyMode::Off {
                self.replies = ReplyMode::SkipNext;
            }
        } else if !self.mutes_this() {
            encode::error(out, "ERR syntax error");
        }
    }

    fn set_no_evict(&mut self, request: &Request<'_>, out: &mut BytesMut) {
        let mode = request.arg(2).unwrap_or_default();
        let (on, off) = (mode.eq_ignore_ascii_case(b"on"), mode.eq_ignore_ascii_case(b"off"));
        if on || off {
            self.no_evict = on;
            encode::simple(out, "OK");
        } else {
            encode::error(out, "ERR syntax error");
        }
    }
}

/// PING of a RESP2 subscriber looks like a message (`pingCommand` in redis `server.c`).
fn ping_while_subscribed(request: &Request<'_>, out: &mut BytesMut) {
    if request.argc() > 2 {
        return encode::error(out, &wrong_arity("ping"));
    }
    encode::array(out, 2);
    encode::bulk(out, b"pong");
    encode::bulk(out, request.arg(1).unwrap_or_default());
}

fn help(out: &mut BytesMut) {
    const LINES: [&str; 8] = [
        "CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        "ID, GETNAME, SETNAME, SETINFO, INFO, LIST, REPLY, NO-EVICT",
        "    Answered by redbouncer, about the connection to redbouncer.",
        "KILL, UNBLOCK, PAUSE, UNPAUSE",
        "    For the clients of redbouncer, or passed on to the server for others.",
        "TRACKING, CACHING, TRACKINGINFO, GETREDIR",
        "    Answered by redbouncer, which has the server track for a shared connection.",
        "NO-TOUCH: on a connection of the client's own.",
    ];
    encode::array(out, LINES.len());
    for line in LINES {
        encode::simple(out, line);
    }
}
