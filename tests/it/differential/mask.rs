//! What may differ between the worlds, and nothing else:
//!
//! - what is left of a time to live of 100 s (integers from 90 to 100): a client that stops reading makes a sequence last;
//! - ids and addresses of clients, each where it stands for a certain client: `HELLO`'s `id`, `CLIENT ID` (which the
//!   generator announces by an `ECHO client-id`), the rows of `CLIENT LIST` and `CLIENT INFO`;
//! - in those rows, what depends on time, sizes and file descriptors (the names of the fields and their order must agree);
//! - of Redis 6.2 and older: the text of errors behind their code, where the proxy answers in the words of later ones;
//! - where the pool is full: its error, and that of the unknown command which stands for it in the direct world;
//! - the order in which an UNSUBSCRIBE without names names them (the order of the server's hash table);
//! - the order in which one message is told to a client by several of its patterns (another hash table);
//! - where a published message comes between the replies of a RESP3 client: its own `PUBLISH` is answered before or after it (Redis
//!   7.0 sends the message first, later ones the reply). Messages are compared in their order, replies in theirs;
//! - where an invalidation comes, and of how many keys more than directly a tracking client is told ([`Told`]).

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

use redbouncer::resp::{ReplyScanner, elements};

use super::fate::{REFUSED, is_refusal};

/// By what a client is known in its world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) id: i64,
    pub(crate) address: SocketAddr,
}

/// What a client has heard, made comparable.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    replies: Vec<String>,
    messages: Vec<String>,
    told: Told,
    /// Bytes of a reply that is not whole.
    rest: String,
    pub(crate) ended: bool,
}

/// Of which keys a tracking client was told. In front of the proxy it may be told of more than directly (docs/reference/compatibility.md), but
/// of no key less: what it keeps too long is wrong.
#[derive(Clone, Debug, Default)]
struct Told {
    keys: BTreeSet<String>,
    all: bool,
}

impl Told {
    /// Notes an invalidation; `false`: `frame` is none.
    fn note(&mut self, frame: &[u8]) -> bool {
        let Some(keys) = frame.strip_prefix(b">2\r\n$10\r\ninvalidate\r\n") else { return false };
        match elements(keys) {
            Some(keys) => self.keys.extend(keys.map(|key| key.escape_ascii().to_string())),
            None => self.all = true,
        }
        true
    }

    fn covers(&self, other: &Self) -> bool {
        self.all || !other.all && self.keys.is_superset(&other.keys)
    }
}

impl Heard {
    /// Whether a client that heard this in front of the proxy may hear `direct` from the server.
    pub(crate) fn is_like(&self, direct: &Self) -> bool {
        let parts =
            |heard: &Self| (heard.replies.clone(), heard.messages.clone(), heard.rest.clone(), heard.ended);
        parts(self) == parts(direct) && self.told.covers(&direct.told)
    }

    /// Where it tells of a refusal by a full pool that is not expected.
    pub(crate) fn refused_unlike(&self, expected: &Self) -> Option<usize> {
        let is_new = |(place, reply): &(usize, &String)| {
            *reply == REFUSED && expected.replies.get(*place).is_none_or(|reply| reply != REFUSED)
        };
        self.replies.iter().enumerate().find(is_new).map(|(place, _)| place)
    }

    /// Whether nothing that may still come makes it `expected`.
    pub(crate) fn contradicts(&self, expected: &Self) -> bool {
        !expected.replies.starts_with(&self.replies)
            || !expected.messages.starts_with(&self.messages)
            || (self.ended && !expected.ended)
    }
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |line: &String| match line.char_indices().nth(300) {
            Some((end, _)) => format!("{}… ({} bytes)", &line[..end], line.len()),
            None => line.clone(),
        };
        let tail = |lines: &[String]| {
            lines[lines.len().saturating_sub(8)..].iter().map(short).collect::<Vec<_>>().join(" ")
        };
        write!(f, "{} replies … {}", self.replies.len(), tail(&self.replies))?;
        if !self.messages.is_empty() {
            write!(f, " · {} messages … {}", self.messages.len(), tail(&self.messages))?;
        }
        if self.told.all || !self.told.keys.is_empty() {
            write!(f, " · invalidated {}{:?}", if self.told.all { "all and " } else { "" }, self.told.keys)?;
        }
        write!(f, "{}{}", self.rest, if self.ended { " <closed>" } else { "" })
    }
}

/// Fields of a client's row whose values are compared.
const COMPARED: [&str; 11] =
    ["id", "addr", "name", "flags", "db", "sub", "psub", "ssub", "cmd", "user", "resp"];
const COMPARED_TOO: [&str; 3] = ["lib-name", "lib-ver", "redir"];

/// What is masked beside ids and addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask {
    /// Errors agree in their words, not only in their code.
    pub(crate) exact: bool,
    /// The refusals of a full pool have stand-ins in the direct world.
    pub(crate) refusals: bool,
    /// Commands have other names on the server. Some of them the proxy asks for itself, in its own spelling and for no client
    /// in particular: then an unknown command is called so without its words.
    pub(crate) renames: bool,
}

pub(crate) fn masked(got: &[u8], ended: bool, clients: &[Identity], mask: Mask) -> Heard {
    let mut heard = Heard {
        replies: Vec::new(),
        messages: Vec::new(),
        told: Told::default(),
        rest: String::new(),
        ended,
    };
    let mut at = 0;
    let mut announced = false;
    let mut leaving = Vec::new();
    while at < got.len() {
        let step = ReplyScanner::default().step(&got[at..]);
        let Some(step) = step.ok().filter(|step| step.complete.is_some()) else {
            let rest = &got[at..];
            heard.rest = format!("{}… ({} bytes)", rest[..rest.len().min(300)].escape_ascii(), rest.len());
            break;
        };
        let frame = &got[at..at + step.consumed];
        at += step.consumed;
        if heard.told.note(frame) {
            continue;
        }
        let heads = [&b"$7\r\nmessage"[..], b"$8\r\npmessage", b"$8\r\nsmessage"];
        let is_message = frame[0] == b'>' && heads.iter().any(|head| frame[4..].starts_with(head));
        let shown = if is_message {
            // It may come between the announcement of an id and the id.
            one(frame, clients, &mut false)
        } else if mask.refusals && is_refusal(frame) {
            REFUSED.to_owned()
        } else if mask.renames && frame.starts_with(b"-ERR unknown command") {
            let text = String::from_utf8_lossy(frame).to_lowercase();
            text.split(", with").next().unwrap_or_default().trim_end().to_owned()
        } else if !mask.exact && frame[0] == b'-' {
            String::from_utf8_lossy(frame.split(|byte| *byte == b' ').next().unwrap_or_default()).into_owned()
        } else {
            one(frame, clients, &mut announced)
        };
        let shown = if is_message { shown } else { without_order(shown, frame, &mut leaving) };
        if is_message { heard.messages.push(shown) } else { heard.replies.push(shown) }
    }
    // Which of its patterns a client is told of first is for the server's hash table to say.
    let said = |message: &str| {
        let (_, rest) = message.split_once("pmessage\\r\\n")?;
        Some(rest.splitn(3, "\\r\\n").nth(2)?.to_owned())
    };
    for told in [&mut heard.messages, &mut heard.replies] {
        let same = |one: &String, next: &String| said(one).is_some() && said(one) == said(next);
        told.chunk_by_mut(same).for_each(<[String]>::sort);
    }
    heard
}

/// A confirmation that names are left: the names of those that follow each other are counted, not told in their order.
fn without_order(shown: String, frame: &[u8], leaving: &mut Vec<String>) -> String {
    let Some((kind, rest)) = shown.split_once("unsubscribe\\r\\n") else {
        leaving.clear();
        return shown;
    };
    let Some((name, count)) = rest.rsplit_once("\\r\\n:").filter(|_| b"*>".contains(&frame[0])) else {
        return shown;
    };
    leaving.push(name.to_owned());
    // The last one says which they were together.
    leaving.sort();
    let names = if count.starts_with('0') { leaving.join(" ") } else { String::new() };
    format!("{kind}unsubscribe {names} {count}")
}

/// The client that has this id.
fn owner(id: &str, clients: &[Identity]) -> String {
    let found = clients.iter().position(|client| client.id.to_string() == id);
    found.map_or_else(|| format!("<id {id}>"), |client| format!("<id of {client}>"))
}

/// `:id\r\n`, or an error that stands in its place.
fn with_id(frame: &[u8], clients: &[Identity]) -> String {
    let text = String::from_utf8_lossy(frame);
    text.strip_prefix(':').map_or_else(|| text.escape_debug().to_string(), |id| owner(id.trim_end(), clients))
}

/// `announced` by an ECHO before it: it is an id.
fn one(frame: &[u8], clients: &[Identity], announced: &mut bool) -> String {
    if std::mem::replace(announced, frame == b"$9\r\nclient-id\r\n") {
        return with_id(frame, clients);
    }
    // What EXEC answers has the same in it. The map of HELLO is an array in RESP2.
    if frame[0] == b'*'
        && !frame.starts_with(b"*14\r\n$6\r\nserver\r\n")
        && let Some(elements) = elements(frame)
    {
        let mut announced = false;
        let shown: Vec<_> = elements.map(|element| one(element, clients, &mut announced)).collect();
        return format!("*{}\\r\\n{}", shown.len(), shown.concat());
    }
    if frame.len() > 16_384 {
        // A value, too long for anything that is masked in it.
        let mut hasher = DefaultHasher::new();
        frame.hash(&mut hasher);
        return format!("{}… ({} bytes, {:x})", frame[..32].escape_ascii(), frame.len(), hasher.finish());
    }
    if redbouncer::resp::integer(frame).is_some_and(|number| (90..=100).contains(&number)) {
        return ":<90 to 100>".to_owned();
    }
    let text = frame.escape_ascii().to_string();
    if let Some((before, after)) = text.split_once("$2\\r\\nid\\r\\n:")
        && let Some((id, after)) = after.split_once("\\r\\n")
        && before.contains("$5\\r\\nproto\\r\\n")
    {
        return format!("{before}{}{after}", owner(id, clients));
    }
    let body = text.split_once("\\r\\n").map(|(_, body)| body.strip_prefix("txt:").unwrap_or(body));
    match body.filter(|body| body.starts_with("id=") && body.contains(" addr=")) {
        Some(body) => rows(body, clients),
        None => text,
    }
}

/// Subcommands of CLIENT that some of the servers do not know: their rows say `NULL` then.
const NEW: [&str; 4] = ["client|setinfo", "client|no-touch", "client|capa", "client|import-source"];

/// The rows of the sequence's own clients, in their order.
fn rows(body: &str, clients: &[Identity]) -> String {
    let mut shown: Vec<String> = Vec::new();
    for line in body.trim_end_matches("\\r\\n").split("\\n").filter(|line| line.starts_with("id=")) {
        let fields: Vec<(&str, &str)> = line.split(' ').filter_map(|field| field.split_once('=')).collect();
        let Some(client) = clients.iter().position(|client| client.id.to_string() == fields[0].1) else {
            continue;
        };
        let address = clients[client].address.to_string();
        let field = |(name, value): &(&str, &str)| match *name {
            "id" => format!("id={client}"),
            "addr" if *value == address => "addr=its own".to_owned(),
            // A command that the server does not know may be known here.
            "cmd" if !value.starts_with("client|") || NEW.contains(value) => "cmd".to_owned(),
            // BCAST, a watched key that has changed: the proxy does not look. RESET ends NO-EVICT on some versions only. Who
            // has waited for FLUSHALL, which Redis 8.2 does beside, is shown as unblocked until its next turn (`u`).
            "flags" => format!("flags={}", value.replace(['B', 'd', 'e', 'N', 'u'], "")),
            name if COMPARED.contains(&name) || COMPARED_TOO.contains(&name) => format!("{name}={value}"),
            name => name.to_owned(),
        };
        shown.push(fields.iter().map(field).collect::<Vec<_>>().join(" "));
    }
    shown.sort();
    format!("<rows {}>", shown.join(" / "))
}

#[test]
fn a_message_may_come_between_the_announcement_of_an_id_and_the_id() {
    let client = |id| [Identity { id, address: ([127, 0, 0, 1], 1).into() }];
    let message = ">4\r\n$8\r\npmessage\r\n$2\r\nn*\r\n$4\r\nnews\r\n$1\r\n3\r\n";
    let heard = |got: String, id| {
        masked(got.as_bytes(), false, &client(id), Mask { exact: true, refusals: false, renames: false })
    };
    let direct = heard(format!("{message}$9\r\nclient-id\r\n:7\r\n"), 7);
    let proxied = heard(format!("$9\r\nclient-id\r\n{message}:1099511627776\r\n"), 1_099_511_627_776);
    assert!(proxied.is_like(&direct), "{proxied} is not {direct}");
    assert!(
        !heard("$9\r\nclient-id\r\n:8\r\n".to_owned(), 7)
            .is_like(&heard("$9\r\nclient-id\r\n:7\r\n".to_owned(), 7))
    );
}
