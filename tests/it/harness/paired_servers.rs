//! The same script against a server and through a proxy before another one: every reply must be the same bytes.

use super::client::{Client, encode};
use super::reply::Reply;
use super::{Server, Stage};

/// Two servers that have seen the same commands, one of them behind a proxy.
pub(crate) struct PairedServers {
    direct: Stage,
    proxied: Stage,
}

impl PairedServers {
    pub(crate) fn start() -> Self {
        Self { direct: Stage::direct(), proxied: Stage::proxied() }
    }

    /// Twins whose servers have further options.
    pub(crate) fn start_with(options: &[&str], settings: &[&str]) -> Self {
        Self {
            direct: Stage::before_none(Server::start_with(options)),
            proxied: Stage::before(Server::start_with(options), settings),
        }
    }

    /// Runs the script three ways, each on fresh connections: one command at a time, inline, and all in one write.
    ///
    /// A step is a command line; ` => n` behind it says that it gets `n` replies instead of one.
    #[track_caller]
    pub(crate) fn agree(&self, script: &[&str]) {
        let steps: Vec<Step<'_>> = script.iter().map(|line| Step::parse(line)).collect();
        let mut differences = Vec::new();
        let [mut direct, mut proxied] = self.clients();
        for step in &steps {
            let canonical = step.canonical();
            compare(step, &mut direct, &mut proxied, Some(&canonical), "as an array", &mut differences);
        }
        let [mut direct, mut proxied] = self.clients();
        for step in &steps {
            let inline = format!("{}\r\n", step.line).into_bytes();
            compare(step, &mut direct, &mut proxied, Some(&inline), "inline", &mut differences);
        }
        let [mut direct, mut proxied] = self.clients();
        let all: Vec<u8> = steps.iter().flat_map(Step::canonical).collect();
        direct.send(&all);
        proxied.send(&all);
        for step in &steps {
            compare(step, &mut direct, &mut proxied, None, "in one write", &mut differences);
        }
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }

    fn clients(&self) -> [Client; 2] {
        [self.direct.connect(), self.proxied.connect()]
    }
}

struct Step<'a> {
    line: &'a str,
    replies: usize,
}

impl<'a> Step<'a> {
    fn parse(line: &'a str) -> Self {
        match line.split_once(" => ") {
            Some((line, replies)) => Self { line, replies: replies.parse().unwrap() },
            None => Self { line, replies: 1 },
        }
    }

    /// The line as an array of bulks; a word in double quotes may hold blanks and `\n`.
    fn canonical(&self) -> Vec<u8> {
        let mut words = Vec::new();
        let mut rest = self.line.trim_start();
        while !rest.is_empty() {
            let (word, after) = match rest.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').expect("a closing quote"),
                None => rest.split_at(rest.find(' ').unwrap_or(rest.len())),
            };
            words.push(word.replace("\\n", "\n"));
            rest = after.trim_start();
        }
        encode(&words)
    }
}

/// Runs one step on both; a different reply is noted, a missing one ends the test.
#[track_caller]
fn compare(
    step: &Step<'_>,
    direct: &mut Client,
    proxied: &mut Client,
    bytes: Option<&[u8]>,
    how: &str,
    differences: &mut Vec<String>,
) {
    if let Some(bytes) = bytes {
        direct.send(bytes);
        proxied.send(bytes);
    }
    for number in 0..step.replies {
        let line = step.line;
        let expected = direct
            .try_reply(super::PATIENCE)
            .unwrap_or_else(|ended| panic!("{line} ({how}): the server gives no reply {number}: {ended:?}"));
        let got = proxied.try_reply(super::PATIENCE).unwrap_or_else(|ended| {
            let noted = differences.join("\n");
            panic!("{line} ({how}): no reply {number}: {ended:?}; the server says {expected:?}\n{noted}")
        });
        let (got, expected) = (masked(&got), masked(&expected));
        if got != expected {
            differences
                .push(format!("{line} ({how}), reply {number}\n   proxy: {got}\n  server: {expected}"));
        }
    }
}

/// The reply's bytes, with the client id in HELLO's reply taken out: it is ours.
fn masked(reply: &Reply) -> String {
    let text = reply.raw.escape_ascii().to_string();
    match text.split_once("$2\\r\\nid\\r\\n:") {
        Some((before, after)) => {
            let after = after.trim_start_matches(|symbol: char| symbol.is_ascii_digit());
            format!("{before}id:{after}")
        }
        None => text,
    }
}
