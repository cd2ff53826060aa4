//! Commands inside MULTI that mean more than their reply from the server: what is sent for them, and what becomes of them
//! when EXEC's array has come to their place.
//!
//! Redis queues all of CLIENT, HELLO and the like and runs them on the connection at EXEC. Here the server queues a
//! stand-in for what redbouncer answers itself: the command as it is where it does no harm to our connection, else the same
//! command with words that change nothing. So what the server has against it while queueing (the user's ACL, the number of
//! words, a subcommand that its version does not have) is what the client hears, and makes EXEC abort. The stand-in's
//! place in EXEC's array is then our reply's.

use bytes::Bytes;

use super::answers;
use super::kill::{NOBODY, unblocking_nobody};
use super::route::select;
use super::text::{is_plain_name, one_line};
use super::{ALWAYS_TAKEN, Filter, Hello, Placement, Policy, ReplyMode, Route, Session};
use crate::command::{Asked, Class};
use crate::resp::{ErrorCode, Protocol, Request, encode, error_text};

/// What is sent for a command inside MULTI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The command itself, and what its reply in EXEC's array means, if anything.
    Itself(Option<Member>),
    /// These bytes in its place.
    StandIn(Bytes, Member),
    /// What the server refuses, so that EXEC aborts: the client gets this error (no leading `-`).
    Refused(String),
    /// Nothing: RESET and QUIT end the transaction, and its connection.
    Nothing,
}

/// A member of a transaction whose reply in EXEC's array means something here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Member {
    /// SELECT of this database.
    Select(u32),
    /// PUBLISH, or a question about subscribers: its reply counts our hubs.
    Counted(Bytes),
    /// It may leave state on the connection that is not modelled, unless it fails.
    State,
    /// CLIENT TRACKING ON or OFF.
    Tracking(bool),
    /// CLIENT NO-TOUCH on or off.
    NoTouch(bool),
    /// MONITOR, which no server known lets run there.
    Monitor,
    /// READONLY, or READWRITE.
    ReadOnly(bool),
    /// HELLO without a login.
    Hello(Hello),
    /// This request, of this class, is answered from the session.
    Local(Class, Bytes),
    /// This request is answered beside the connection: CLIENT INFO, LIST, KILL and UNBLOCK, PROXY.
    Beside(Bytes),
    /// This is the reply.
    Fixed(Bytes),
    /// A subcommand of CLIENT that is in no table of ours: its name.
    Unknown(Bytes),
}

/// A word that names no subcommand and no capability of clients.
const UNHEARD_OF: &[u8] = b"redbouncer:unknown";
/// A name that no client may have: CLIENT SETNAME with it changes nothing.
const IMPOSSIBLE_NAME: &[u8] = b"redbouncer stands in";
/// HELLO is queued whatever the user may do (flag `no-auth` in redis `src/commands/hello.json`), and changes nothing with
/// a version that there is not.
const NO_EFFECT: [&[u8]; 2] = [b"HELLO", b"0"];

/// What is sent for `request`. `unknown` is what the server has said of it, where our table does not have it.
pub(super) fn sent(
    session: &Session,
    asked: &Asked,
    request: &Request<'_>,
    policy: Policy,
    unknown: Placement,
) -> Sent {
    if let Some(text) = policy.refusal(asked, session) {
        return Sent::Refused(text);
    }
    if asked.class == Class::ClientUnknown && request.argc() > 1 {
        return stand_in(&[request.name(), UNHEARD_OF], Member::Unknown(subcommand(request)));
    }
    if asked.class != Class::Select
        && let Some(text) = answers::arity_error(asked, request)
    {
        // Redis 6.2 queues a subcommand with too few words or too many, and answers it in EXEC's array.
        let is_subcommand = asked.row.is_some_and(|row| row.name.contains('|'));
        let is_refused = matches!(asked.class, Class::Refused(_));
        return if is_subcommand && !is_refused { Sent::Itself(None) } else { Sent::Refused(text) };
    }
    sent_as(session, asked, request, policy, unknown)
}

/// The same for a command that may be sent, and has as many words as it should.
#[expect(clippy::too_many_lines, reason = "a table: each class, and what stands in for it")]
fn sent_as(
    session: &Session,
    asked: &Asked,
    request: &Request<'_>,
    policy: Policy,
    unknown: Placement,
) -> Sent {
    let whole = || Bytes::copy_from_slice(request.bytes());
    let word = |at: usize| request.arg(at).unwrap_or_default();
    let is = |at: usize, other: &[u8]| word(at).eq_ignore_ascii_case(other);
    let itself = |member| Sent::Itself(Some(member));
    let local = || Member::Local(asked.class, whole());
    let with = |third: &[u8]| stand_in(&[word(0), word(1), third], local());
    match asked.class {
        Class::Pass
        | Class::Ping
        | Class::Blocking(_)
        | Class::Multi
        | Class::Exec
        | Class::Discard
        | Class::Watch
        | Class::Unwatch
        | Class::Wait
        | Class::Own => Sent::Itself(None),
        // They speak of the connection, which is the client's own, or of the server, as they would directly.
        Class::ClientCaching | Class::ClientTrackingInfo | Class::ClientGetRedir if policy.tracked_lanes => {
            itself(local())
        }
        Class::ClientCaching
        | Class::ClientTrackingInfo
        | Class::ClientGetRedir
        | Class::Asking
        | Class::Control => Sent::Itself(None),
        Class::Publish | Class::PubSub => itself(Member::Counted(whole())),
        Class::Select => match select(session, request) {
            Route::Select(index) => itself(Member::Select(index)),
            Route::Local(_) => itself(Member::Select(session.database)),
            // A database that there is not is EXEC's matter; a wrong number of words is the server's at once.
            _ => Sent::Itself(None), // it makes no other routes than these and refusals
        },
        Class::Quit | Class::Reset => Sent::Nothing,
        Class::ClientId | Class::ClientGetName | Class::ClientHelp => itself(local()),
        Class::ClientSetName if is_plain_name(word(2)) => with(IMPOSSIBLE_NAME),
        Class::ClientSetInfo if is_plain_name(word(3)) => {
            stand_in(&[word(0), word(1), word(2), b""], local())
        }
        Class::ClientNoEvict if is(2, b"on") || is(2, b"off") => with(b"off"),
        // Their words are wrong: the server says so.
        Class::ClientSetName | Class::ClientSetInfo | Class::ClientNoEvict => Sent::Itself(None),
        Class::ClientCapa => with(UNHEARD_OF),
        // Without replies EXEC's array would have no end, or no beginning.
        Class::ClientReply if is(2, b"off") || is(2, b"skip") || session.replies != ReplyMode::On => {
            refused(asked)
        }
        Class::ClientReply => with(b"on"),
        // No address, name or id is so long, and on the control connection it may be one word too many.
        Class::ClientList | Class::ClientKill | Class::ClientUnblock
            if request.has_bulk_above(ALWAYS_TAKEN) =>
        {
            stand_in(&NO_EFFECT, Member::Fixed(encode::one_error("ERR syntax error")))
        }
        Class::ClientInfo | Class::ClientList => itself(Member::Beside(whole())),
        Class::ClientKill => Sent::StandIn(Filter::harmless(request), Member::Beside(whole())),
        Class::ClientUnblock => Sent::StandIn(unblocking_nobody(request), Member::Beside(whole())),
        Class::Proxy => stand_in(&NO_EFFECT, Member::Beside(whole())),
        // Off is what it is on a lease: what the client gets is told of its lanes.
        Class::ClientTracking if policy.tracked_lanes => with(b"off"),
        Class::ClientTracking => {
            Sent::StandIn(redirecting_to_nobody(request), Member::Tracking(is(2, b"on")))
        }
        Class::ClientNoTouch => itself(Member::NoTouch(is(2, b"on"))),
        Class::ClientImportSource | Class::Lease => itself(Member::State),
        Class::Monitor => itself(Member::Monitor),
        Class::ReadOnly | Class::ReadWrite => itself(Member::ReadOnly(asked.class == Class::ReadOnly)),
        Class::Hello => match Hello::of_hello(request) {
            Ok(hello) if hello.credentials.is_some() => refused(asked),
            Ok(hello) => {
                let version: &[&[u8]] = match hello.protocol {
                    None => &[b"HELLO"],
                    Some(Protocol::Resp2) => &[b"HELLO", b"2"],
                    Some(Protocol::Resp3) => &[b"HELLO", b"3"],
                };
                stand_in(version, Member::Hello(hello))
            }
            Err(text) => stand_in(&NO_EFFECT, Member::Fixed(encode::one_error(&text))),
        },
        Class::Auth
        | Class::Subscribe
        | Class::Unsubscribe
        | Class::PSubscribe
        | Class::PUnsubscribe
        | Class::SSubscribe
        | Class::SUnsubscribe => refused(asked),
        Class::Refused(refusal) => Sent::Refused(refusal.error().to_owned()),
        // CLIENT alone; with a word it has been dealt with.
        Class::ClientUnknown => Sent::Refused(answers::unknown_subcommand(request)),
        Class::Unknown => match unknown {
            Placement::Lasting => itself(Member::State),
            // Nothing blocks there.
            Placement::Lane | Placement::Once | Placement::MayBlock => Sent::Itself(None),
        },
    }
}

impl Member {
    /// Bytes of the request or reply that is kept for it.
    pub(super) fn kept(&self) -> usize {
        match self {
            Self::Counted(bytes)
            | Self::Local(_, bytes)
            | Self::Beside(bytes)
            | Self::Fixed(bytes)
            | Self::Unknown(bytes) => bytes.len(),
            Self::Select(_)
            | Self::State
            | Self::Tracking(_)
            | Self::NoTouch(_)
            | Self::Monitor
            | Self::ReadOnly(_)
            | Self::Hello(_) => 0,
        }
    }

    /// Whether the stand-in leaves nothing behind on the connection.
    pub(super) fn leaves_nothing(&self) -> bool {
        match self {
            Self::Counted(_) | Self::Local(..) | Self::Beside(_) | Self::Fixed(_) | Self::Unknown(_) => true,
            Self::Select(_)
            | Self::State
            | Self::Tracking(_)
            | Self::NoTouch(_)
            | Self::Monitor
            | Self::ReadOnly(_)
            | Self::Hello(_) => false,
        }
    }

    /// Whether the server has refused the command itself in EXEC's array, so that its words stand: its version does not
    /// have the subcommand, or a right was withdrawn. `reply` is the stand-in's.
    pub(super) fn is_refused_by(&self, reply: &[u8]) -> bool {
        let Some(text) = error_text(reply) else { return false };
        match self {
            // Its stand-in fails, for its name.
            Self::Local(Class::ClientSetName | Class::ClientCaching, _) => {
                ErrorCode::of_text(text) == ErrorCode::NoPerm
            }
            Self::Fixed(_) | Self::Unknown(_) => false,
            // The server's verdict on their words is part of what they are answered from.
            Self::Beside(_) => false,
            Self::Local(..)
            | Self::Select(_)
            | Self::Counted(_)
            | Self::State
            | Self::Tracking(_)
            | Self::NoTouch(_)
            | Self::Monitor
            | Self::ReadOnly(_)
            | Self::Hello(_) => true,
        }
    }

    /// The server's error about the stand-in for a subcommand `name` that is in no table of ours, made one about `name`.
    pub(super) fn named(name: &[u8], reply: &[u8]) -> Bytes {
        let Some(text) = error_text(reply) else { return Bytes::copy_from_slice(reply) };
        let unheard_of = String::from_utf8_lossy(UNHEARD_OF);
        encode::one_error(&String::from_utf8_lossy(text).replace(&*unheard_of, &one_line(name)))
    }
}

fn refused(asked: &Asked) -> Sent {
    let name = asked.row.map_or("this command", |row| row.name);
    Sent::Refused(format!("ERR redbouncer: '{name}' is not possible inside MULTI"))
}

fn stand_in(words: &[&[u8]], member: Member) -> Sent {
    Sent::StandIn(encode::one_command(words), member)
}

/// As much of the subcommand's name as the server shows.
fn subcommand(request: &Request<'_>) -> Bytes {
    let name = request.arg(1).unwrap_or_default();
    Bytes::copy_from_slice(&name[..name.len().min(128)])
}

/// CLIENT TRACKING, where it redirects: to nobody, since no id known to a client is one of the server's.
fn redirecting_to_nobody(request: &Request<'_>) -> Bytes {
    let mut words: Vec<&[u8]> = request.args().collect();
    for at in 3..words.len().saturating_sub(1) {
        if words[at].eq_ignore_ascii_case(b"redirect") && is_number(words[at + 1]) {
            words[at + 1] = NOBODY;
        }
    }
    encode::one_command(&words)
}

fn is_number(word: &[u8]) -> bool {
    !word.is_empty() && word.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::command::classify;
    use crate::session::User;

    fn session() -> Session {
        Session::new(7, Some(User { id: 1, name: "default".into() }), 0)
    }

    fn sent_for(words: &str, policy: Policy) -> Sent {
        let words: Vec<_> = words.split(' ').map(str::as_bytes).collect();
        let frame = encode::one_command(&words);
        let request = Request::parse(&frame).unwrap();
        sent(&session(), &classify(&request), &request, policy, Placement::Lane)
    }

    /// The words that the server gets; `None`: what it refuses, or nothing.
    fn words_for(words: &str) -> Option<String> {
        let text = |frame: &Bytes| {
            let request = Request::parse(frame).unwrap();
            let words: Vec<_> =
                request.args().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
            [&[String::from_utf8_lossy(request.name()).into_owned()], &words[1..]].concat().join(" ")
        };
        match sent_for(words, Policy::default()) {
            Sent::Itself(_) => Some(words.to_owned()),
            Sent::StandIn(frame, _) => Some(text(&frame)),
            Sent::Refused(_) | Sent::Nothing => None,
        }
    }

    #[test]
    fn what_would_harm_our_connection_is_queued_with_other_words() {
        for (asked, sent) in [
            ("CLIENT SETNAME web", "CLIENT SETNAME redbouncer stands in"),
            ("client setname web", "client setname redbouncer stands in"),
            ("CLIENT SETINFO lib-name x", "CLIENT SETINFO lib-name "),
            ("CLIENT NO-EVICT on", "CLIENT NO-EVICT off"),
            ("CLIENT CAPA redirect more", "CLIENT CAPA redbouncer:unknown"),
            ("CLIENT KILL 10.0.0.1:5000", "CLIENT KILL ID 9223372036854775807"),
            ("CLIENT KILL TYPE normal", "CLIENT KILL TYPE normal ID 9223372036854775807"),
            ("CLIENT UNBLOCK 12 ERROR", "CLIENT UNBLOCK 9223372036854775807 ERROR"),
            ("CLIENT TRACKING on BCAST REDIRECT 12", "CLIENT TRACKING on BCAST REDIRECT 9223372036854775807"),
            ("CLIENT REPLY x", "CLIENT REPLY on"),
            ("CLIENT NOSUCH a", "CLIENT redbouncer:unknown"),
            ("HELLO 3 SETNAME web", "HELLO 3"),
            ("HELLO SETNAME web", "HELLO 0"),
            ("HELLO 4", "HELLO 0"),
            ("PROXY POOLS", "HELLO 0"),
        ] {
            assert_eq!(words_for(asked).as_deref(), Some(sent), "{asked}");
        }
    }

    #[test]
    fn what_does_no_harm_is_queued_as_it_is() {
        for asked in [
            "GET k",
            "CLIENT GETNAME",
            "CLIENT ID",
            "CLIENT LIST TYPE normal",
            "CLIENT NO-EVICT x",
            "CLIENT TRACKING on OPTIN",
            "CLIENT CACHING yes",
            "CLIENT PAUSE 10",
            "CLIENT GETNAME x",
            "CLIENT SETNAME",
            "SCRIPT KILL",
            "MONITOR",
            "READONLY",
            "SELECT",
            "SELECT x",
        ] {
            assert_eq!(words_for(asked).as_deref(), Some(asked));
        }
    }

    #[test]
    fn what_cannot_be_answered_in_the_array_is_refused() {
        for asked in [
            "AUTH x",
            "AUTH u x",
            "HELLO 3 AUTH u x",
            "SUBSCRIBE a",
            "SSUBSCRIBE a",
            "UNSUBSCRIBE",
            "CLIENT REPLY off",
            "CLIENT REPLY SKIP",
        ] {
            let Sent::Refused(text) = sent_for(asked, Policy::default()) else { panic!("{asked}") };
            assert!(text.ends_with("is not possible inside MULTI"), "{asked}: {text}");
        }
        let policy = Policy { refuse_admin: true, ..Policy::default() };
        for asked in ["CLIENT KILL ID 1", "MONITOR", "PROXY POOLS"] {
            let Sent::Refused(text) = sent_for(asked, policy) else { panic!("{asked}") };
            assert!(text.ends_with("is refused by auth.admin_commands"), "{asked}: {text}");
        }
        assert_eq!(sent_for("RESET", Policy::default()), Sent::Nothing);
        assert!(matches!(sent_for("RESET x", Policy::default()), Sent::Refused(_)));
        assert!(matches!(sent_for("PSYNC a b", Policy::default()), Sent::Refused(_)));
    }

    #[test]
    fn words_that_the_server_may_not_take_do_not_come_to_the_control_connection() {
        let long = "x".repeat(ALWAYS_TAKEN + 1);
        for asked in [format!("CLIENT KILL {long}"), format!("CLIENT UNBLOCK 1 ERROR {long}")] {
            let Sent::StandIn(_, member) = sent_for(&asked, Policy::default()) else { panic!("no stand-in") };
            assert_eq!(member, Member::Fixed(encode::one_error("ERR syntax error")));
        }
    }

    #[test]
    fn a_subcommand_that_nobody_knows_is_called_by_its_name() {
        let Sent::StandIn(_, Member::Unknown(name)) = sent_for("CLIENT NOSUCH a", Policy::default()) else {
            panic!("no stand-in")
        };
        for (said, heard) in [
            (
                "-ERR unknown subcommand 'redbouncer:unknown'. Try CLIENT HELP.\r\n",
                "-ERR unknown subcommand 'NOSUCH'. Try CLIENT HELP.\r\n",
            ),
            ("-NOPERM no\r\n", "-NOPERM no\r\n"),
        ] {
            assert_eq!(Member::named(&name, said.as_bytes()), heard.as_bytes());
        }
    }
}
