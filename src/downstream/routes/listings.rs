//! CLIENT LIST, KILL and UNBLOCK over everybody: our clients on every worker, and the server's others.

use std::collections::HashSet;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::downstream::client::Client;
use crate::downstream::workers::{Message, Question};
use crate::pool::{Slice, Unavailable};
use crate::resp::{self, ErrorCode, Request, encode};
use crate::session::{ClientRow, FIRST_CLIENT_ID, Filter, Listed, RowFormat, unblocking_nobody};
use crate::telemetry::ClientClose;
use crate::upstream::{Capability, Refusal};

/// Killing by anything else than what is ours would close lanes.
const UNTOLD: &str = "ERR redbouncer: the server reports neither names nor ids of connections, so only redbouncer's clients were killed";

impl Client {
    /// Sends a request on the control connection, as this client's user, and returns the reply or an error reply. Where
    /// there is no server within `pool.wait_timeout`, the client is marked to be closed.
    pub(in crate::downstream) async fn on_control(self: &Rc<Self>, request: &Bytes) -> Bytes {
        let pool = &self.context.pool;
        let deadline = pool.wait_deadline();
        let mut backoff = pool.backoff();
        loop {
            match self.ask_control(request.clone()).await {
                Ok(reply) => return reply,
                // Nothing was written: it may be asked again.
                Err(Unavailable::Down(_) | Unavailable::Busy(_)) if Instant::now() < deadline => {
                    pool.pause(&mut backoff, true).await;
                }
                Err(why) => {
                    if let Some(reason) = self.close_reason_for(&why) {
                        self.close(reason);
                    }
                    return encode::one_error(&why.to_string());
                }
            }
        }
    }

    pub(in crate::downstream) async fn ask_control(
        self: &Rc<Self>,
        request: Bytes,
    ) -> Result<Bytes, Unavailable> {
        let Some((key, identity)) = self.lane_key() else { return Err(Unavailable::Stopping) };
        let (reply, answer) = oneshot::channel();
        let protocol = key.protocol;
        let address = self.peer.host();
        let message =
            Message::Control(Question { user: key.user, address, identity, protocol, request, reply });
        if self.context.workers.send(0, message).await.is_err() {
            return Err(Unavailable::Stopping);
        }
        answer.await.unwrap_or(Err(Unavailable::Stopping))
    }

    /// Every worker's clients.
    async fn all_rows(&self) -> Vec<ClientRow> {
        let mut rows = self.context.workers.rows().await;
        rows.sort_by_key(|row| row.id);
        rows
    }

    fn own_connections(&self) -> OwnConnections {
        let shared = &self.context.pool.shared;
        OwnConnections {
            prefix: shared.instance.to_string(),
            are_named: !shared.connector.missing_capabilities().has_been_refused(Capability::SetName),
            ids: shared.budget.ids(),
        }
    }

    /// This client's own row.
    pub(in crate::downstream) async fn client_info(self: &Rc<Self>) -> Bytes {
        let format = self.row_format().await;
        let mut out = BytesMut::new();
        encode::verbatim_txt(&mut out, self.protocol(), &self.row(Instant::now()).text(&format));
        out.freeze()
    }

    /// How the server writes a row: asked once per version, as a row of the control connection's.
    async fn row_format(self: &Rc<Self>) -> RowFormat {
        let version = self.context.server.facts().map(|facts| facts.version).unwrap_or_default();
        if let Some(format) = self.context.server.row_format(&version) {
            return format;
        }
        // 6.2 is the first to have CLIENT INFO; a listing shows the connection that asks everywhere.
        let listing = self.ask_control(encode::one_command(&[b"CLIENT", b"LIST"])).await;
        let listing = listing.unwrap_or_else(|why| encode::one_error(&why.to_string()));
        let rows = String::from_utf8_lossy(resp::bulk(&listing).unwrap_or_default()).into_owned();
        let format = rows.lines().find_map(RowFormat::of).unwrap_or_default();
        // A server that cannot be asked now is asked again.
        if !resp::is_error(&listing) || resp::error_text(&listing).is_some_and(is_for_good) {
            self.context.server.remember_row_format(version, format.clone());
        }
        format
    }

    /// Our sessions as clients, then the server's other rows; our own upstream connections are left out.
    pub(in crate::downstream) async fn client_list(self: &Rc<Self>, request: &Bytes) -> Bytes {
        let Some(asked) = Request::parse(request) else { return encode::one_error("ERR syntax error") };
        let server = self.on_control(request).await;
        self.client_list_beside(&asked, server).await
    }

    /// The same where the server has answered already.
    pub(in crate::downstream) async fn client_list_beside(
        self: &Rc<Self>,
        asked: &Request<'_>,
        server: Bytes,
    ) -> Bytes {
        if resp::is_error(&server) && !resp::error_text(&server).is_some_and(is_missing) {
            return server;
        }
        let format = self.row_format().await;
        let _turn = self.context.listings.turn(self.user(), self.peer.host()).await;
        let mut slice = Slice::begin();
        let mut text = String::new();
        if let Some(filter) = Filter::of_list(asked) {
            let takes_all = filter.takes_all();
            for row in self.all_rows().await {
                let line = row.text(&format);
                if takes_all || Listed::parse(&line).is_some_and(|listed| filter.matches(&listed, self.id()))
                {
                    text.push_str(&line);
                }
                slice.breathe().await;
            }
        }
        let own = self.own_connections();
        let others = resp::bulk(&server).unwrap_or_default();
        for line in String::from_utf8_lossy(others).lines() {
            if Listed::parse(line).is_some_and(|row| !own.contains(&row)) {
                text.push_str(line);
                text.push('\n');
            }
            slice.breathe().await;
        }
        let mut out = BytesMut::new();
        encode::verbatim_txt(&mut out, self.protocol(), &text);
        out.freeze()
    }

    /// Kills ours here and others by their id on the server; never one of our own upstream connections.
    pub(in crate::downstream) async fn client_kill(self: &Rc<Self>, request: &Bytes) -> Bytes {
        let Some(asked) = Request::parse(request) else { return encode::one_error("ERR syntax error") };
        // The server judges the words, in its version's way: the same filters, for a client that does not exist.
        let verdict = self.on_control(&Filter::harmless(&asked)).await;
        self.client_kill_as_judged(&asked, verdict).await
    }

    /// The same where the server has judged the words.
    pub(in crate::downstream) async fn client_kill_as_judged(
        self: &Rc<Self>,
        asked: &Request<'_>,
        verdict: Bytes,
    ) -> Bytes {
        if resp::error_text(&verdict).is_some_and(|text| !is_missing(text)) {
            return verdict;
        }
        let Some(filter) = Filter::of_kill(asked) else { return encode::one_error("ERR syntax error") };
        let is_meant = self.is_meant(&filter);
        let turn = self.context.listings.turn(self.user(), self.peer.host()).await;
        let mut killed =
            self.context.workers.kill(&filter.sparing_me(), self.id()).await + i64::from(is_meant);
        drop(turn);
        let only_ours = filter.means_only(|id| id >= FIRST_CLIENT_ID) || (filter.old_form && killed > 0);
        if !only_ours {
            match self.kill_on_server(&filter).await {
                Ok(count) => killed += count,
                Err(reply) if killed == 0 => return reply,
                Err(_) => {}
            }
        }
        // Last of all, or the answer would not be waited for.
        if is_meant {
            self.close(ClientClose::Killed);
        }
        let mut out = BytesMut::new();
        match (filter.old_form, killed) {
            (true, 0) => encode::error(&mut out, "ERR No such client"),
            (true, _) => encode::simple(&mut out, "OK"),
            (false, count) => encode::integer(&mut out, count),
        }
        out.freeze()
    }

    /// Whether `filter` means this client itself.
    pub(super) fn is_meant(&self, filter: &Filter) -> bool {
        let row = Listed::parse(&self.row(Instant::now()).text(&RowFormat::default()));
        row.is_some_and(|row| filter.matches(&row, self.id()))
    }

    async fn kill_on_server(self: &Rc<Self>, filter: &Filter) -> Result<i64, Bytes> {
        let listing = self.on_control(&encode::one_command(&[b"CLIENT", b"LIST"])).await;
        let Some(text) = resp::bulk(&listing) else {
            // The provider lets nobody see or kill others: there are only ours.
            return if resp::error_text(&listing).is_some_and(is_missing) { Ok(0) } else { Err(listing) };
        };
        let own = self.own_connections();
        if !own.are_known() {
            return Err(encode::one_error(UNTOLD));
        }
        let ids: Vec<_> = Listed::parse_all(text)
            .into_iter()
            .filter(|row| !own.contains(row) && filter.matches(row, self.id()))
            .map(|row| row.id.to_string())
            .collect();
        let mut killed = 0;
        for id in ids {
            let reply =
                self.on_control(&encode::one_command(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()])).await;
            if resp::is_error(&reply) {
                return Err(reply);
            }
            killed += resp::integer(&reply).unwrap_or_default();
        }
        Ok(killed)
    }

    /// Unblocks one of ours here. Others on the server, but never a connection of ours: a call held by CLIENT PAUSE
    /// would abort the server.
    pub(in crate::downstream) async fn client_unblock(self: &Rc<Self>, request: &Bytes) -> Bytes {
        let Some(asked) = Request::parse(request) else { return encode::one_error("ERR syntax error") };
        // As with KILL the server judges the words, about a client that does not exist.
        let verdict = self.on_control(&unblocking_nobody(&asked)).await;
        self.client_unblock_as_judged(request, verdict).await
    }

    /// The same where the server has judged the words.
    pub(in crate::downstream) async fn client_unblock_as_judged(
        self: &Rc<Self>,
        request: &Bytes,
        verdict: Bytes,
    ) -> Bytes {
        let Some(asked) = Request::parse(request) else { return encode::one_error("ERR syntax error") };
        if resp::error_text(&verdict).is_some_and(|text| !is_missing(text)) {
            return verdict;
        }
        let id =
            asked.arg(2).and_then(|id| std::str::from_utf8(id).ok()).and_then(|id| id.parse::<i64>().ok());
        let Some(id) = id else { return encode::one_error("ERR value is not an integer or out of range") };
        let with_error = match asked.arg(3).filter(|_| asked.argc() == 4) {
            // Valkey passes over what is too many.
            None => false,
            Some(mode) if mode.eq_ignore_ascii_case(b"timeout") => false,
            Some(mode) if mode.eq_ignore_ascii_case(b"error") => true,
            Some(_) => {
                return encode::one_error("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR");
            }
        };
        let mut out = BytesMut::new();
        let id = u64::try_from(id).unwrap_or(0);
        if id >= FIRST_CLIENT_ID {
            encode::integer(&mut out, i64::from(self.context.workers.unblock(id, with_error).await));
            return out.freeze();
        }
        let listing = self.on_control(&encode::one_command(&[b"CLIENT", b"LIST"])).await;
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
        && !text.windows(12).any(|words| words == b"wrong number")
}

/// What the server refuses once it refuses always.
fn is_for_good(text: &[u8]) -> bool {
    is_missing(text) || ErrorCode::of_text(text) == ErrorCode::NoPerm
}
