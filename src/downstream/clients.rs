//! CLIENT LIST, KILL and UNBLOCK over everybody: our clients on every worker, and the server's others.

use std::collections::HashSet;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use super::client::Client;
use super::links::Message;
use crate::pool::Unavailable;
use crate::resp::{self, Request, encode};
use crate::session::{ClientRow, FIRST_CLIENT_ID, Filter, Listed};
use crate::upstream::{Lacking, Refusal};

/// Killing by anything else than what is ours would close lanes.
const UNTOLD: &str = "ERR redbouncer: the server tells neither names nor ids of connections, so only redbouncer's clients are killed";

/// An id that no client of any server ever has.
const NOBODY: &[u8] = b"9223372036854775807";

impl Client {
    /// Sends a request on the control connection, as this client's user, and returns the reply or an error reply.
    pub(super) async fn on_control(self: &Rc<Self>, request: &Bytes) -> Bytes {
        match self.ask_control(request.clone()).await {
            Ok(reply) => reply,
            Err(why) => error(&why.to_string()),
        }
    }

    async fn ask_control(self: &Rc<Self>, request: Bytes) -> Result<Bytes, Unavailable> {
        let Some((key, identity)) = self.lane_key() else { return Err(Unavailable::Stopping) };
        let (reply, answer) = oneshot::channel();
        let protocol = key.protocol;
        let message = Message::Control { user: key.user, identity, protocol, request, reply };
        if self.worker.links.send(0, message).await.is_err() {
            return Err(Unavailable::Stopping);
        }
        answer.await.unwrap_or(Err(Unavailable::Stopping))
    }

    /// The server's NOPERM where this client's user may not do `words`, which must be without effect there.
    pub(super) async fn forbidden(self: &Rc<Self>, words: &[&[u8]]) -> Option<Bytes> {
        let reply = self.on_control(&command(words)).await;
        resp::error_text(&reply).is_some_and(|text| text.starts_with(b"NOPERM")).then_some(reply)
    }

    /// Every worker's clients.
    async fn all_rows(&self) -> Vec<ClientRow> {
        let mut rows = self.worker.links.rows().await;
        rows.sort_by_key(|row| row.id);
        rows
    }

    fn own_connections(&self) -> OwnConnections {
        let shared = &self.worker.pool.shared;
        OwnConnections {
            prefix: shared.instance.to_string(),
            are_named: !shared.connector.lacks().has_been_refused(Lacking::SetName),
            ids: shared.budget.ids(),
        }
    }

    /// Our sessions as clients, then the server's other rows; our own upstream connections are left out.
    pub(super) async fn client_list(self: &Rc<Self>, request: &Bytes) -> Bytes {
        let server = self.on_control(request).await;
        if resp::is_error(&server) && !resp::error_text(&server).is_some_and(is_missing) {
            return server;
        }
        let mut text = String::new();
        if let Some(asked) = Request::parse(request) {
            for row in self.all_rows().await {
                let line = row.to_string();
                if Listed::parse(&line).is_some_and(|listed| listed_by(&asked, &listed)) {
                    text.push_str(&line);
                }
            }
        }
        let own = self.own_connections();
        let others = resp::bulk(&server).unwrap_or_default();
        for line in String::from_utf8_lossy(others).lines() {
            if Listed::parse(line).is_some_and(|row| !own.contains(&row)) {
                text.push_str(line);
                text.push('\n');
            }
        }
        let mut out = BytesMut::new();
        encode::verbatim_txt(&mut out, self.protocol(), &text);
        out.freeze()
    }

    /// Kills ours here and others by their id on the server; never one of our own upstream connections.
    pub(super) async fn client_kill(self: &Rc<Self>, request: &Bytes) -> Bytes {
        let Some(asked) = Request::parse(request) else { return error("ERR syntax error") };
        let filter = match Filter::parse(&asked) {
            Ok(filter) => filter,
            Err(text) => return error(&text),
        };
        if let Some(refusal) = self.forbidden(&[b"CLIENT", b"KILL", b"ID", NOBODY]).await {
            return refusal;
        }
        let mut killed = self.worker.links.kill(&filter, self.id).await;
        let only_ours = filter.id.is_some_and(|id| id >= FIRST_CLIENT_ID) || (filter.old_form && killed > 0);
        if !only_ours {
            match self.kill_on_server(&filter).await {
                Ok(count) => killed += count,
                Err(reply) if killed == 0 => return reply,
                Err(_) => {}
            }
        }
        let mut out = BytesMut::new();
        match (filter.old_form, killed) {
            (true, 0) => encode::error(&mut out, "ERR No such client"),
            (true, _) => encode::simple(&mut out, "OK"),
            (false, count) => encode::integer(&mut out, count),
        }
        out.freeze()
    }

    async fn kill_on_server(self: &Rc<Self>, filter: &Filter) -> Result<i64, Bytes> {
        let listing = self.on_control(&command(&[b"CLIENT", b"LIST"])).await;
        let Some(text) = resp::bulk(&listing) else { return Err(listing) };
        let own = self.own_connections();
        if !own.are_known() {
            return Err(error(UNTOLD));
        }
        let ids: Vec<_> = Listed::parse_all(text)
            .into_iter()
            .filter(|row| !own.contains(row) && filter.matches(row, self.id))
            .map(|row| row.id.to_string())
            .collect();
        let mut killed = 0;
        for id in ids {
            let reply = self.on_control(&command(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()])).await;
            if resp::is_error(&reply) {
                return Err(reply);
            }
            killed += resp::integer(&reply).unwrap_or_default();
        }
        Ok(killed)
    }

    /// Unblocks one of ours here. Others on the server, but never a connection of ours: a call held by CLIENT PAUSE
    /// would abort the server.
    pub(super) async fn client_unblock(self: &Rc<Self>, request: &Bytes) -> Bytes {
        let Some(asked) = Request::parse(request) else { return error("ERR syntax error") };
        let id =
            asked.arg(2).and_then(|id| std::str::from_utf8(id).ok()).and_then(|id| id.parse::<i64>().ok());
        let Some(id) = id else { return error("ERR value is not an integer or out of range") };
        let with_error = match asked.arg(3) {
            None => false,
            Some(mode) if mode.eq_ignore_ascii_case(b"timeout") => false,
            Some(mode) if mode.eq_ignore_ascii_case(b"error") => true,
            Some(_) => {
                return error("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR");
            }
        };
        let mut out = BytesMut::new();
        let id = u64::try_from(id).unwrap_or(0);
        if id >= FIRST_CLIENT_ID {
            if let Some(refusal) = self.forbidden(&[b"CLIENT", b"UNBLOCK", NOBODY]).await {
                return refusal;
            }
            encode::integer(&mut out, i64::from(self.worker.links.unblock(id, with_error).await));
            return out.freeze();
        }
        let listing = self.on_control(&command(&[b"CLIENT", b"LIST"])).await;
        let own = self.own_connections();
        let is_own = own.ids.as_ref().is_some_and(|ids| ids.contains(&id))
            || resp::bulk(&listing).is_some_and(|text| {
                Listed::parse_all(text).iter().any(|row| row.id == id && own.contains(row))
            });
        if is_own {
            encode::integer(&mut out, 0);
            return out.freeze();
        }
        self.on_control(request).await
    }
}

/// What our own upstream connections are told by in the server's listing: their names, or their ids where the server
/// does not let us give names.
struct OwnConnections {
    prefix: String,
    are_named: bool,
    ids: Option<HashSet<u64>>,
}

impl OwnConnections {
    fn are_known(&self) -> bool {
        self.are_named || self.ids.is_some()
    }

    fn contains(&self, row: &Listed) -> bool {
        row.name.starts_with(&self.prefix) || self.ids.as_ref().is_some_and(|ids| ids.contains(&row.id))
    }
}

/// The provider keeps its list to itself: ours is shown all the same. NOPERM is for the user.
fn is_missing(text: &[u8]) -> bool {
    Refusal::of(&String::from_utf8_lossy(text)) == Some(Refusal::Missing)
}

/// Whether CLIENT LIST's own filter (TYPE, or ID with several ids) takes `row`.
fn listed_by(request: &Request<'_>, row: &Listed) -> bool {
    match request.arg(2) {
        Some(option) if option.eq_ignore_ascii_case(b"type") => {
            request.arg(3).is_some_and(|kind| kind.eq_ignore_ascii_case(row.kind().as_bytes()))
        }
        Some(option) if option.eq_ignore_ascii_case(b"id") => {
            let id = row.id.to_string();
            request.args().skip(3).any(|wanted| wanted == id.as_bytes())
        }
        Some(_) | None => true,
    }
}

fn command(words: &[&[u8]]) -> Bytes {
    let mut out = BytesMut::new();
    encode::command(&mut out, words);
    out.freeze()
}

fn error(text: &str) -> Bytes {
    let mut out = BytesMut::new();
    encode::error(&mut out, text);
    out.freeze()
}
