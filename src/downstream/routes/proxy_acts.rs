//! What an operator does to the running proxy by PROXY: who may, and each act. All are logged with who and from where.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::proxy_commands::Answer;
use crate::downstream::client::Client;
use crate::pool::{HumanDuration, Phase, Unavailable};
use crate::resp::{self, ErrorCode, Request, encode};
use crate::session::answers::one_line;
use crate::session::{Filter, killing_nobody, listing_somebody};
use crate::telemetry::{ClientClose, logging};
use crate::upstream::{CredentialSource, HostPort};

/// How long the server may take to say what a user may do.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest PROXY PAUSE that ends by itself, in milliseconds: a day.
const LONGEST_PAUSE: u64 = 24 * 3600 * 1000;

const NO_FILTER: &str =
    "ERR redbouncer: PROXY KILL needs filters: ID, NAME, ADDR, USER, IDLE or CONNECTION, each with a value";
const NO_TIME: &str = "ERR redbouncer: PROXY PAUSE takes a time in milliseconds, at most one day";
const NO_NODE: &str = "ERR redbouncer: PROXY RECONNECT takes a node as listed by PROXY TOPOLOGY, or no argument for all connections";
const NO_LEVEL: &str = "ERR redbouncer: PROXY LOG takes error, warn, info, debug, trace, off, or a filter such as info,redbouncer::pool=debug";

impl Client {
    /// The refusal where this client may not act on the proxy. Asked anew for each act.
    ///
    /// It must be one of `admin.users`; where none are named, on this host. And the server must let its user list and kill clients:
    /// that is its own word on who is an operator. A server that cannot be asked refuses only those who are neither named nor
    /// use the credentials of the configuration, because PROXY RESUME is wanted just then.
    pub(super) async fn forbidden_to_act(self: &Rc<Self>, act: &str) -> Option<Bytes> {
        let users = Arc::clone(&self.context.admin_users.borrow());
        let is_named = {
            let session = self.session.borrow();
            session.user.as_ref().is_some_and(|user| users.iter().any(|name| **name == *user.name))
        };
        let refusal = if !(is_named || users.is_empty() && self.peer.is_local()) {
            let text = format!(
                "NOPERM redbouncer: PROXY {act} is permitted to the users in admin.users or, if it is empty, to clients on this host"
            );
            Some(encode::one_error(&text))
        } else {
            self.refused_by_acl(is_named).await
        };
        if refusal.is_some() {
            self.log_act(act, "refused");
        }
        refusal
    }

    async fn refused_by_acl(self: &Rc<Self>, is_named: bool) -> Option<Bytes> {
        let Some((_, identity)) = self.lane_key() else {
            return Some(encode::one_error(&Unavailable::NoAuth.to_string()));
        };
        for question in [listing_somebody(), killing_nobody()] {
            let asked = tokio::time::timeout(PATIENCE, self.ask_control(question)).await;
            let why = match asked {
                Ok(Ok(reply)) => {
                    let code = resp::error_text(&reply).map(ErrorCode::of_text);
                    if code == Some(ErrorCode::NoPerm) {
                        return Some(reply);
                    }
                    continue;
                }
                Ok(Err(why)) => why,
                Err(_) => Unavailable::Unanswered,
            };
            let is_a_strangers = !is_named && identity.source == CredentialSource::Client;
            return is_a_strangers.then(|| encode::one_error(&why.to_string()));
        }
        None
    }

    pub(super) fn log_act(&self, act: &str, outcome: &str) {
        let session = self.session.borrow();
        let user = session.user.as_ref().map(|user| &*user.name);
        let name = String::from_utf8_lossy(&session.name);
        tracing::info!(client = self.id(), %name, address = %self.peer, user, act, outcome, "PROXY command");
    }

    /// Closes our clients that all filters name, the asking one excepted unless `SKIPME no` is among them.
    pub(super) async fn proxy_kill(self: &Rc<Self>, asked: &Request<'_>) -> Result<Answer, String> {
        let holders = |connection: u64| -> HashSet<u64> {
            let rows = self.context.budgets().into_iter().flat_map(|of| of.budget.holdings());
            let rows: Vec<_> = rows.filter(|row| row.id == Some(connection)).collect();
            rows.iter().filter_map(|row| Some(row.client()?.id)).collect()
        };
        let filter = Filter::of_proxy_kill(asked, holders).ok_or(NO_FILTER)?;
        let is_meant = self.is_meant(&filter);
        let turn = self.context.listings.turn(self.user(), self.peer.host()).await;
        let others = self.context.workers.kill(&filter.sparing_me(), self.id()).await;
        drop(turn);
        let killed = others + i64::from(is_meant);
        let words: Vec<_> = asked.args().skip(2).map(one_line).collect();
        self.log_act("KILL", &format!("{}: {killed} closed", words.join(" ")));
        if is_meant {
            self.close(ClientClose::Killed);
        }
        Ok(Answer::Count(killed))
    }

    pub(super) fn proxy_pause(&self, asked: &Request<'_>) -> Result<Answer, String> {
        let time = match asked.arg(2) {
            None => None,
            Some(text) => {
                let ms = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                Some(Duration::from_millis(ms.filter(|ms| (1..=LONGEST_PAUSE).contains(ms)).ok_or(NO_TIME)?))
            }
        };
        self.context.pool.shared.pause.begin(time);
        let until = time
            .map_or_else(|| "until PROXY RESUME".to_owned(), |time| format!("for {} ms", time.as_millis()));
        self.log_act("PAUSE", &until);
        Ok(Answer::Ok)
    }

    pub(super) fn proxy_resume(&self) -> Answer {
        let waited = self.context.pool.shared.pause.end();
        let outcome = waited
            .map_or_else(|| "was not paused".to_owned(), |time| format!("after {}", HumanDuration(time)));
        self.log_act("RESUME", &outcome);
        Answer::Ok
    }

    /// Renews the connections to one node of a cluster, or all. Answers how many.
    pub(super) async fn proxy_reconnect(&self, asked: &Request<'_>) -> Result<Answer, String> {
        let name = asked.arg(2).map(|name| std::str::from_utf8(name).map_err(|_| NO_NODE)).transpose()?;
        let node = match (name, &self.context.nodes) {
            (None, _) => None,
            (Some(name), Some(nodes)) => Some(nodes.nodes().named(name).ok_or(NO_NODE)?),
            // There is no other server.
            (Some(name), None) if self.listed_server().is_some_and(|listed| listed == name) => None,
            (Some(_), None) => return Err(NO_NODE.to_owned()),
        };
        let text = node.as_ref().map(HostPort::to_string);
        let budgets = self.context.budgets();
        let meant = budgets.iter().filter(|of| text.is_none() || of.node == text);
        let rows = meant.flat_map(|of| of.budget.holdings());
        let open = rows.filter(|row| row.phase == Phase::Open).count();
        self.context.workers.reconnect(node.as_ref()).await;
        let at = text.map(|node| format!(" to {node}")).unwrap_or_default();
        self.log_act("RECONNECT", &format!("{open} connections{at}"));
        Ok(Answer::Count(i64::try_from(open).unwrap_or(i64::MAX)))
    }

    pub(super) fn proxy_log(&self, asked: &Request<'_>) -> Result<Answer, String> {
        let Some(level) = asked.arg(2) else { return Ok(Answer::Text(format!("{}\n", logging::level()))) };
        let level = std::str::from_utf8(level).map_err(|_| NO_LEVEL)?;
        // By the former level or by the new one, whichever shows it.
        let was_shown = tracing::enabled!(tracing::Level::INFO);
        if logging::is_level(level) && was_shown {
            self.log_act("LOG", level);
        }
        logging::set_level(level).map_err(|_| NO_LEVEL)?;
        if !was_shown {
            self.log_act("LOG", level);
        }
        Ok(Answer::Ok)
    }

    /// As SIGTERM: the answer is out before the drain closes this client.
    pub(super) fn proxy_shutdown(&self) -> Answer {
        self.log_act("SHUTDOWN", "begins");
        self.context.pool.shared.stop.cancel();
        Answer::Ok
    }
}
