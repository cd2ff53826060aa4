//! The client-side caching options of a session, and the effect of its commands on them.

use std::collections::BTreeSet;

use bytes::BytesMut;

use super::Session;
use super::tracking::{Caching, SYNTAX, Tracking};
use crate::command::{Asked, Class};
use crate::resp::{Protocol, Request, encode};

impl Session {
    /// Whether the server tracks for this client over its lane: a RESP2 client is told nothing (`sendTrackingMessage` in
    /// redis `tracking.c`), unless another one is told for it.
    #[must_use]
    pub fn hears_invalidations(&self) -> bool {
        let is_redirected = |tracking: &Tracking| tracking.redirect.is_some();
        self.tracking
            .as_ref()
            .is_some_and(|tracking| self.protocol == Protocol::Resp3 || is_redirected(tracking))
    }

    /// Whether the keys that the next command reads are tracked for the client.
    #[must_use]
    pub fn remembers_next(&self) -> bool {
        self.tracking.as_ref().is_some_and(|tracking| tracking.remembers_next())
    }

    /// A command has been taken: CLIENT CACHING was about it, unless it is another CLIENT command (`resetClient` in redis
    /// `networking.c`) or opens a transaction.
    pub fn has_taken(&mut self, asked: &Asked) {
        if let Some(tracking) = &mut self.tracking
            && !asked.row.is_some_and(|row| row.name.starts_with("client"))
            && asked.class != Class::Multi
        {
            tracking.is_next_marked = false;
        }
    }

    /// A transaction has been taken as a whole: CLIENT CACHING was about it.
    pub fn ends_mark(&mut self) {
        if let Some(tracking) = &mut self.tracking {
            tracking.is_next_marked = false;
        }
    }

    /// CLIENT CACHING.
    pub(super) fn mark_next(&mut self, request: &Request<'_>, out: &mut BytesMut) {
        let is = |word: &[u8]| request.arg(2).is_some_and(|given| given.eq_ignore_ascii_case(word));
        let caching = self.tracking.as_ref().map(|tracking| tracking.caching);
        let refusal = match caching {
            None => Some(
                "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled",
            ),
            Some(Caching::OptIn) if is(b"yes") => None,
            Some(Caching::OptOut) if is(b"no") => None,
            Some(_) if is(b"yes") => {
                Some("ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode.")
            }
            Some(_) if is(b"no") => {
                Some("ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode.")
            }
            Some(_) => Some(SYNTAX),
        };
        match (refusal, &mut self.tracking) {
            (None, Some(tracking)) => {
                tracking.is_next_marked = true;
                encode::simple(out, "OK");
            }
            (refusal, _) => encode::error(out, refusal.unwrap_or(SYNTAX)),
        }
    }

    /// CLIENT TRACKING, without a query to the server; so there is no client to redirect to.
    pub(super) fn set_tracking(&mut self, request: &Request<'_>, out: &mut BytesMut) {
        match Tracking::after(self.tracking.as_deref(), request, false) {
            Ok(tracking) => {
                self.tracking = tracking.map(Box::new);
                encode::simple(out, "OK");
            }
            Err(text) => encode::error(out, &text),
        }
    }

    /// CLIENT GETREDIR.
    pub(super) fn redirection(&self) -> i64 {
        match &self.tracking {
            Some(tracking) => {
                tracking.redirect.map_or(0, |redirect| i64::try_from(redirect.id).unwrap_or(i64::MAX))
            }
            None => -1,
        }
    }

    /// CLIENT TRACKINGINFO: flags, redirect, prefixes.
    pub(super) fn tracking_info(&self, out: &mut BytesMut) {
        let tracking = self.tracking.as_deref();
        let mut flags = vec![if tracking.is_some() { "on" } else { "off" }];
        if let Some(tracking) = tracking {
            flags.extend(tracking.prefixes.as_ref().map(|_| "bcast"));
            let marked = |word| tracking.is_next_marked.then_some(word);
            match tracking.caching {
                Caching::All => {}
                Caching::OptIn => flags.extend(["optin"].into_iter().chain(marked("caching-yes"))),
                Caching::OptOut => flags.extend(["optout"].into_iter().chain(marked("caching-no"))),
            }
            flags.extend(tracking.no_loop.then_some("noloop"));
            let is_broken = tracking.redirect.is_some_and(|redirect| redirect.is_broken);
            flags.extend(is_broken.then_some("broken_redirect"));
        }
        encode::map(out, self.protocol, 3);
        encode::bulk(out, b"flags");
        match self.protocol {
            Protocol::Resp2 => encode::array(out, flags.len()),
            Protocol::Resp3 => encode::set(out, flags.len()),
        }
        flags.iter().for_each(|flag| encode::bulk(out, flag.as_bytes()));
        encode::bulk(out, b"redirect");
        encode::integer(out, self.redirection());
        encode::bulk(out, b"prefixes");
        let prefixes = tracking.and_then(|tracking| tracking.prefixes.as_ref());
        encode::array(out, prefixes.map_or(0, BTreeSet::len));
        prefixes.into_iter().flatten().for_each(|prefix| encode::bulk(out, prefix));
    }
}
