//! A sequence: what a few clients write, in which pieces, and when they leave. It prints as text that can be played again.
//!
//! One step is one line; the words of a request are separated by blanks, requests that leave in one write by `|`:
//!
//! ```text
//! clients 2 3                       two clients, the second greets with HELLO 3
//! 0: SET k v | GET k                one write
//! 1 cut 5 17: GET k | GET k         three writes: before byte 5, before byte 17, the rest
//! 1: ECHO "a\x00b" | raw"*0\r\n"    words and bytes with escapes
//! 0: CLIENT KILL ID {id:1}          the id (addr, laddr) of the second client, which differs from world to world
//! 0 half-closes
//! 1 leaves
//! 0: INCR a | INCR b then half-closes   the FIN goes out right behind the bytes
//! 0: INCR a | INCR b then leaves        closed right behind the bytes, nothing is read
//! ```
//!
//! The troubles ([`super::trouble`]) have steps of their own:
//!
//! ```text
//! clients 2 2 with kills            the trouble that the sequence was made for: it chooses the servers and the proxy
//! 1 stops reading
//! 1 reads on
//! kills shared leased               the proxy's connections of these kinds; directly those whom it closes
//! demotes                           REPLICAOF an address where nobody is
//! promotes
//! unpauses                          CLIENT UNPAUSE, on the server itself
//! waits 40                          milliseconds
//! ```

use std::fmt;

use super::trouble::{Kind, Trouble};
use super::vocabulary::BROKEN;
use crate::harness::encode;

/// What one client's write asks for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Request {
    /// An array of bulks.
    Words(Vec<Vec<u8>>),
    /// These bytes.
    Raw(Vec<u8>),
}

/// What follows the bytes of a write at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing: the client stays.
    Stays,
    /// A FIN; the client reads on.
    HalfCloses,
    /// The end of the connection; nothing is read any more.
    Leaves,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Requests of one client, written in pieces that end at these positions.
    Write { client: usize, requests: Vec<Request>, cuts: Vec<usize>, tail: Tail },
    /// The client closes its sending side and goes on reading.
    HalfClose(usize),
    /// The client closes.
    Leave(usize),
    /// The client reads nothing from here on.
    Deafen(usize),
    /// It reads again.
    Hear(usize),
    /// The proxy's connections of these kinds are killed on the server.
    Kill(Vec<Kind>),
    /// The server becomes a replica of nobody who answers.
    Demote,
    /// It is a master again.
    Promote,
    /// The server goes on with what a CLIENT PAUSE holds.
    Unpause,
    /// Nobody does anything for so many milliseconds.
    Wait(u64),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sequence {
    /// What it was made for.
    pub(crate) trouble: Trouble,
    /// The protocol that each client begins with.
    pub(crate) clients: Vec<u8>,
    pub(crate) steps: Vec<Step>,
}

impl Sequence {
    /// All that is asked for.
    pub(crate) fn requests(&self) -> impl Iterator<Item = &Request> {
        let writes = self.steps.iter().filter_map(|step| match step {
            Step::Write { requests, .. } => Some(requests),
            _ => None,
        });
        writes.flatten()
    }
}

impl Request {
    pub(crate) fn words(line: &str) -> Self {
        Self::Words(line.split(' ').map(|word| word.as_bytes().to_vec()).collect())
    }

    /// The bytes to write; `own` turns `{id:1}` and its like into what it is called in the world at hand.
    pub(crate) fn bytes(&self, own: &dyn Fn(&str, usize) -> String) -> Vec<u8> {
        let Self::Words(words) = self else {
            let Self::Raw(bytes) = self else { unreachable!() };
            return bytes.clone();
        };
        if words.len() == 2 && self.is(&["CLIENT"]) && words[1].eq_ignore_ascii_case(b"ID") {
            // What is masked must be announced.
            return [encode(&["ECHO", "client-id"]), encode(words)].concat();
        }
        let named = words.iter().map(|word| match placeholder(word) {
            Some((kind, client)) => own(kind, client).into_bytes(),
            None => word.clone(),
        });
        encode(&named.collect::<Vec<_>>())
    }

    /// The command's name, in capitals.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Words(words) => words.first().map(|name| String::from_utf8_lossy(name).to_uppercase()),
            Self::Raw(bytes) => {
                let text = String::from_utf8_lossy(bytes).replace('"', "");
                text.split_whitespace().next().map(str::to_uppercase)
            }
        }
        .unwrap_or_default()
    }

    /// The words of the request, however it is written.
    pub(crate) fn argc(&self) -> usize {
        match self {
            Self::Words(words) => words.len(),
            Self::Raw(bytes) => bytes.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).count(),
        }
    }

    /// Whether it begins as a browser does.
    pub(crate) fn is_http(&self) -> bool {
        let Self::Raw(bytes) = self else { return false };
        let bytes = bytes.to_ascii_lowercase();
        bytes.windows(4).any(|word| word == b"post" || word == b"host")
    }

    /// Whether its client is closed for it.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self, Self::Raw(bytes) if BROKEN.contains(&bytes.as_slice()))
    }

    /// Whether it names a client of the sequence.
    pub(crate) fn has_placeholder(&self) -> bool {
        matches!(self, Self::Words(words) if words.iter().any(|word| placeholder(word).is_some()))
    }

    /// Whether this is one of its words, however it is written.
    pub(crate) fn has(&self, word: &str) -> bool {
        match self {
            Self::Words(words) => words.iter().any(|other| other == word.as_bytes()),
            Self::Raw(bytes) => {
                let text = String::from_utf8_lossy(bytes).replace('"', "");
                text.split_whitespace().any(|other| other == word)
            }
        }
    }

    /// Whether it is one of these commands.
    pub(crate) fn is(&self, names: &[&str]) -> bool {
        names.contains(&self.name().as_str())
    }

    /// Whether it may leave its client waiting.
    pub(crate) fn may_block(&self) -> bool {
        self.is(&["BLPOP", "BRPOP", "BLMOVE", "BLMPOP", "BRPOPLPUSH", "BZPOPMIN", "BZPOPMAX", "BZMPOP"])
            || self.is(&["XREAD", "XREADGROUP", "WAIT"])
            || self.is_threaded()
    }

    /// Whether the client may wait for a thread of the server's: since Redis 8 for memory to be freed, for vectors.
    pub(crate) fn is_threaded(&self) -> bool {
        self.is(&["FLUSHALL", "FLUSHDB", "VSIM", "VADD"])
    }
}

/// `{id:1}` taken apart.
fn placeholder(word: &[u8]) -> Option<(&str, usize)> {
    let inner = std::str::from_utf8(word).ok()?.strip_prefix('{')?.strip_suffix('}')?;
    let (kind, client) = inner.split_once(':')?;
    Some((kind, client.parse().ok()?))
}

const HALF_CLOSES: &str = " then half-closes";
const LEAVES: &str = " then leaves";

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("clients")?;
        for protocol in &self.clients {
            write!(f, " {protocol}")?;
        }
        if self.trouble != Trouble::None {
            write!(f, " with {}", self.trouble.name())?;
        }
        writeln!(f)?;
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { client, requests, cuts, tail } => {
                write!(f, "{client}")?;
                if !cuts.is_empty() {
                    f.write_str(" cut")?;
                    cuts.iter().try_for_each(|cut| write!(f, " {cut}"))?;
                }
                f.write_str(":")?;
                for (number, request) in requests.iter().enumerate() {
                    f.write_str(if number > 0 { " |" } else { "" })?;
                    match request {
                        Request::Raw(bytes) => write!(f, " raw\"{}\"", bytes.escape_ascii())?,
                        Request::Words(words) => {
                            words.iter().try_for_each(|word| write!(f, " {}", quoted(word)))?;
                        }
                    }
                }
                f.write_str(match tail {
                    Tail::Stays => "",
                    Tail::HalfCloses => HALF_CLOSES,
                    Tail::Leaves => LEAVES,
                })
            }
            Self::HalfClose(client) => write!(f, "{client} half-closes"),
            Self::Leave(client) => write!(f, "{client} leaves"),
            Self::Deafen(client) => write!(f, "{client} stops reading"),
            Self::Hear(client) => write!(f, "{client} reads on"),
            Self::Kill(kinds) => {
                f.write_str("kills")?;
                kinds.iter().try_for_each(|kind| write!(f, " {}", kind.name()))
            }
            Self::Demote => f.write_str("demotes"),
            Self::Promote => f.write_str("promotes"),
            Self::Unpause => f.write_str("unpauses"),
            Self::Wait(millis) => write!(f, "waits {millis}"),
        }
    }
}

fn quoted(word: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_graphic() && !b"\"\\|".contains(byte);
    if !word.is_empty() && word.iter().all(plain) {
        String::from_utf8_lossy(word).into_owned()
    } else {
        format!("\"{}\"", word.escape_ascii())
    }
}

impl std::str::FromStr for Sequence {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let head = lines.next().and_then(|line| line.strip_prefix("clients ")).ok_or("no line of clients")?;
        let (head, trouble) = match head.split_once(" with ") {
            Some((head, name)) => (head, Trouble::named(name).ok_or_else(|| format!("no trouble: {name}"))?),
            None => (head, Trouble::None),
        };
        let clients = head.split(' ').map(|word| word.parse().map_err(|_| head.to_owned()));
        let steps = lines.map(|line| step(line).ok_or_else(|| format!("not a step: {line}")));
        Ok(Self {
            trouble,
            clients: clients.collect::<Result<_, _>>()?,
            steps: steps.collect::<Result<_, _>>()?,
        })
    }
}

fn step(line: &str) -> Option<Step> {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("kills", kinds) => return kinds.split(' ').map(Kind::named).collect::<Option<_>>().map(Step::Kill),
        ("demotes", "") => return Some(Step::Demote),
        ("promotes", "") => return Some(Step::Promote),
        ("unpauses", "") => return Some(Step::Unpause),
        ("waits", millis) => return millis.parse().ok().map(Step::Wait),
        _ => {}
    }
    let (client, rest) = line.split_at(line.find([' ', ':'])?);
    let client = client.parse().ok()?;
    match rest.trim() {
        "half-closes" => return Some(Step::HalfClose(client)),
        "leaves" => return Some(Step::Leave(client)),
        "stops reading" => return Some(Step::Deafen(client)),
        "reads on" => return Some(Step::Hear(client)),
        _ => {}
    }
    let (cuts, rest) = rest.split_once(':')?;
    let tails = [(HALF_CLOSES, Tail::HalfCloses), (LEAVES, Tail::Leaves)];
    let ended = tails.iter().find_map(|(words, tail)| Some((rest.strip_suffix(words)?, *tail)));
    let (rest, tail) = ended.unwrap_or((rest, Tail::Stays));
    let cuts = cuts.split(' ').filter(|word| !word.is_empty() && *word != "cut");
    let cuts = cuts.map(|word| word.parse().ok()).collect::<Option<Vec<usize>>>()?;
    let mut requests = Vec::new();
    let mut words: Vec<Vec<u8>> = Vec::new();
    let mut rest = rest.trim_start();
    while !rest.is_empty() {
        if let Some(behind) = rest.strip_prefix('|') {
            if !words.is_empty() {
                requests.push(Request::Words(std::mem::take(&mut words)));
            }
            rest = behind.trim_start();
        } else if let Some(text) = rest.strip_prefix("raw\"") {
            let (bytes, behind) = unescaped(text)?;
            requests.push(Request::Raw(bytes));
            rest = behind.trim_start();
        } else if let Some(text) = rest.strip_prefix('"') {
            let (bytes, behind) = unescaped(text)?;
            words.push(bytes);
            rest = behind.trim_start();
        } else {
            let (word, behind) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
            words.push(word.as_bytes().to_vec());
            rest = behind.trim_start();
        }
    }
    if !words.is_empty() {
        requests.push(Request::Words(words));
    }
    Some(Step::Write { client, requests, cuts, tail })
}

/// Reads to the closing quote what `escape_ascii` has written.
fn unescaped(text: &str) -> Option<(Vec<u8>, &str)> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            b'"' => return Some((out, &text[at + 1..])),
            b'\\' => {
                at += 1;
                out.push(match *bytes.get(at)? {
                    b'r' => b'\r',
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'x' => {
                        at += 2;
                        u8::from_str_radix(text.get(at - 1..=at)?, 16).ok()?
                    }
                    other => other,
                });
            }
            other => out.push(other),
        }
        at += 1;
    }
}

#[test]
fn a_sequence_reads_back_as_it_was_printed() {
    let requests = vec![
        Request::words("SET k {id:1}"),
        Request::Raw(b"*0\r\n\"\\".to_vec()),
        Request::Words(vec![b"ECHO".to_vec(), b"| \"\\\xff\0'".to_vec(), Vec::new()]),
    ];
    let write = |tail| Step::Write { client: 1, requests: requests.clone(), cuts: vec![3, 9], tail };
    let mut steps: Vec<Step> = [Tail::Stays, Tail::HalfCloses, Tail::Leaves].map(write).into();
    steps.extend([Step::HalfClose(0), Step::Leave(1), Step::Deafen(0), Step::Hear(1), Step::Wait(7)]);
    steps.extend([Step::Kill(Kind::ALL.to_vec()), Step::Demote, Step::Promote, Step::Unpause]);
    for trouble in Trouble::ALL {
        let sequence = Sequence { trouble, clients: vec![2, 3], steps: steps.clone() };
        assert_eq!(sequence.to_string().parse(), Ok(sequence));
    }
}

#[test]
fn an_inline_request_has_its_words() {
    let request = Request::Raw(b"\"CONFIG\" \"NOSUCH\"\r\n".to_vec());
    assert!(request.is(&["CONFIG"]) && request.has("NOSUCH") && !request.has("NO"));
}
