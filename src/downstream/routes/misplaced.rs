//! A RESP2 subscriber's command that is in no table: never run, and refused in the order in which the server refuses
//! (`processCommand` in redis `server.c`): unknown, a wrong number of arguments, not while subscribed.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use crate::command::{Aftermath, classify};
use crate::downstream::client::Client;
use crate::resp::{self, Request, encode};
use crate::session::ALWAYS_TAKEN;
use crate::session::answers::{not_in_subscription, one_line, wrong_arity};
use crate::telemetry::ClientClose;

/// As much of a name as an error repeats.
const SHOWN: usize = 128;

impl Client {
    /// Answers a command that its client may not run while it is subscribed.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream) async fn misplaced(
        self: &Rc<Self>,
        request: &Bytes,
        muted: bool,
    ) -> Result<(), ClientClose> {
        let Some(parsed) = Request::parse(request) else { return Err(ClientClose::ProtocolError) };
        if parsed.has_bulk_above(ALWAYS_TAKEN) {
            self.error(&not_in_subscription(&shown(parsed.name())), muted);
            return Ok(());
        }
        // A subcommand is one only of a container that is in our table.
        let subcommand = classify(&parsed).row.and_then(|_| parsed.arg(1));
        let mut question = BytesMut::new();
        let name = parsed.name();
        let whole = subcommand.map(|word| [name, b"|", word].concat());
        let mut words = vec![&b"COMMAND"[..], b"INFO", name];
        words.extend(whole.as_deref());
        encode::command(&mut question, &words);
        let answer = match self.exchange(&question, 1).await? {
            Ok(frames) => frames.into_iter().next().unwrap_or_default(),
            Err(why) => return self.unserved(&why, Aftermath::Nothing, 1, muted),
        };
        match refusal(&answer, &parsed) {
            Some(text) => self.error(&text, muted),
            // The server does not know it: its own error says so.
            None => match self.exchange(request, 1).await? {
                Ok(frames) if !muted => frames.iter().for_each(|reply| self.send(reply)),
                Ok(_) => {}
                Err(why) => return self.unserved(&why, Aftermath::Nothing, 1, muted),
            },
        }
        Ok(())
    }
}

/// A name as an error repeats it.
fn shown(name: &[u8]) -> String {
    one_line(&name[..name.len().min(SHOWN)]).to_ascii_lowercase()
}

/// The error for `request`, of whose name (and subcommand) COMMAND INFO says this. `None`: the server does not know it.
fn refusal(answer: &[u8], request: &Request<'_>) -> Option<String> {
    let name = request.name();
    let unnamed = || not_in_subscription(&shown(name));
    let Some(rows) = resp::elements(answer) else { return Some(unnamed()) };
    let rows: Vec<_> = rows.collect();
    let (Some(container), Some(last)) = (rows.first(), rows.last()) else { return Some(unnamed()) };
    let fields =
        |row: &[u8]| resp::elements(row).map(|fields| fields.map(<[u8]>::to_vec).collect::<Vec<_>>());
    let command = fields(container)?;
    // Before 7.0 a subcommand is an argument like another: nothing is described behind the sixth field.
    let has_subcommands = command.get(9).is_some();
    let command = if rows.len() > 1 && has_subcommands { fields(last)? } else { command };
    let known = command.first().and_then(|name| resp::bulk(name)).map(one_line);
    let (Some(known), Some(arity)) = (known, command.get(1).and_then(|arity| resp::integer(arity))) else {
        return Some(unnamed());
    };
    let argc = i64::try_from(request.argc()).unwrap_or(i64::MAX);
    let fits = if arity >= 0 { argc == arity } else { argc >= -arity };
    Some(if fits { not_in_subscription(&known) } else { wrong_arity(&known) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refused(words: &str, answer: &str) -> Option<String> {
        let mut frame = BytesMut::new();
        let words: Vec<_> = words.split(' ').map(str::as_bytes).collect();
        encode::command(&mut frame, &words);
        refusal(answer.as_bytes(), &Request::parse(&frame).unwrap())
    }

    #[test]
    fn what_the_server_does_not_know_has_no_refusal_of_ours() {
        for nothing in ["*1\r\n*-1\r\n", "*1\r\n$-1\r\n", "*1\r\n_\r\n"] {
            assert_eq!(refused("foo a", nothing), None);
        }
        let container = "*10\r\n$6\r\npubsub\r\n:-2\r\n*0\r\n:0\r\n:0\r\n:0\r\n*0\r\n*0\r\n*0\r\n*0\r\n";
        assert_eq!(refused("PUBSUB nosuch", &format!("*2\r\n{container}*-1\r\n")), None);
    }

    #[test]
    fn what_it_knows_is_refused_under_the_servers_name_for_it() {
        let answer = "*1\r\n*6\r\n$3\r\nget\r\n:2\r\n*0\r\n:1\r\n:1\r\n:1\r\n";
        assert!(refused("XGET k", answer).unwrap().starts_with("ERR Can't execute 'get': only"));
        assert_eq!(refused("XGET", answer).unwrap(), "ERR wrong number of arguments for 'get' command");
        // 6.2 describes no subcommands.
        let old = "*2\r\n*6\r\n$6\r\npubsub\r\n:-2\r\n*0\r\n:0\r\n:0\r\n:0\r\n*-1\r\n";
        assert!(refused("PUBSUB nosuch", old).unwrap().starts_with("ERR Can't execute 'pubsub': only"));
    }

    #[test]
    fn where_the_server_says_nothing_it_is_refused_all_the_same() {
        for nothing in ["-NOPERM no\r\n", "*0\r\n", "+OK\r\n", "*1\r\n*1\r\n$3\r\nfoo\r\n"] {
            let text = refused("FOO a", nothing);
            assert!(text.is_some_and(|text| text.starts_with("ERR Can't execute 'foo': only")), "{nothing}");
        }
    }
}
