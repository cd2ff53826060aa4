//! What the server's answers mean.

use std::collections::HashSet;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::super::waiter::{End, State};
use super::sent::{Ask, Purpose, Sent};
use super::watched_key::stream_id;
use super::{Access, GiveUp, KeyState, Waitlist};
use crate::command::Blocking;
use crate::command::blocking::{Waited, is_nothing, last_generated_id};
use crate::resp::{self, ErrorCode, Protocol, Request};
use crate::telemetry::{ClientClose, ElementFate, UpstreamClose};

/// How long a call waits after an error that passes by itself.
const PASSING: Duration = Duration::from_millis(100);

/// A member's part of an answer.
#[derive(Clone, Copy)]
enum Own<'a> {
    /// Nil, or an empty XREAD.
    Nothing,
    Element(&'a [u8]),
    Error(&'a [u8]),
    /// The call may run, but what is left may not be counted.
    Uncountable,
}

impl Waitlist {
    /// The last reply to `sent` has come.
    pub(super) fn answered(&mut self, sent: &Sent, last: &[u8], now: Instant) -> Result<(), UpstreamClose> {
        match sent.purpose {
            Purpose::Ping => return Ok(()),
            // Confirmed by a push; a reply is an error.
            Purpose::Canary(slot) => {
                self.canary_refused(slot, last);
                return Ok(());
            }
            Purpose::Role => {
                self.told_role(last, sent.since);
                return Ok(());
            }
            Purpose::Select(database) => {
                self.selected(database, last);
                self.end_the_overdue();
                return Ok(());
            }
            Purpose::Call { .. } | Purpose::Positions { .. } | Purpose::Look { .. } => {}
        }
        self.switches -= usize::from(sent.select.is_some());
        if sent.unguarded {
            // Members have run outside of MULTI, and the call may block this connection: nothing here can be trusted.
            self.given_up = Some(GiveUp::Refused);
            self.give_up_on(sent);
            return Ok(());
        }
        let members: Vec<&[u8]> = resp::elements(last).map(Iterator::collect).unwrap_or_default();
        let executed = !resp::is_error(last);
        if executed && (members.len() != sent.members() || members.iter().any(|part| part.starts_with(b">")))
        {
            return Err(UpstreamClose::Desync);
        }
        let (select, rest) = members.split_at(usize::from(sent.select.is_some() && executed));
        if let (Some(database), Some(reply)) = (sent.select, select.first()) {
            if resp::is_error(reply) {
                // What ran behind it ran in another database.
                self.given_up = Some(GiveUp::Astray);
                self.give_up_on(sent);
                return Ok(());
            }
            self.database = database;
        }
        let (own, cards) = rest.split_at(sent.own_members().min(rest.len()));
        self.note_cards(sent, cards, executed);
        let error = sent.refused.as_ref().map_or(last, |(_, words)| words);
        match &sent.purpose {
            Purpose::Call { waiters, request } => {
                let own = self.own(sent, own.first().copied(), error);
                self.call_answered(waiters, request, own, &sent.cards, now);
            }
            Purpose::Positions { waiter, .. } if !executed && self.is_redirect(error) => {
                self.redirected(*waiter, error);
            }
            Purpose::Positions { waiter, .. } => self.positioned(*waiter, executed.then_some(own)),
            Purpose::Look { spots } => {
                let found = own.first().copied().unwrap_or(error);
                if self.is_redirect(found) {
                    self.looked_in_vain(spots, found);
                } else {
                    self.looked(spots, own.first().copied(), now);
                }
            }
            Purpose::Select(_) | Purpose::Canary(_) | Purpose::Ping | Purpose::Role => {}
        }
        for at in &sent.cards {
            self.pump(*at);
            self.welcome(*at);
        }
        self.end_the_overdue();
        self.spots.trim();
        Ok(())
    }

    fn own<'a>(&self, sent: &Sent, own: Option<&'a [u8]>, error: &'a [u8]) -> Own<'a> {
        let select = usize::from(sent.select.is_some());
        let uncountable = sent.refused.as_ref().is_some_and(|(at, _)| *at > select);
        match own {
            None if uncountable && ErrorCode::NoPerm.is(error) => Own::Uncountable,
            None => Own::Error(error),
            Some(reply) if resp::is_error(reply) => Own::Error(reply),
            Some(reply) if is_nothing(reply) => Own::Nothing,
            Some(reply) => Own::Element(reply),
        }
    }

    /// What the spots hold, as of this answer.
    fn note_cards(&mut self, sent: &Sent, cards: &[&[u8]], executed: bool) {
        for (i, at) in sent.cards.iter().enumerate() {
            let Some(spot) = self.spots.at_mut(*at) else { continue };
            spot.asking = spot.asking.saturating_sub(1);
            if !executed {
                continue;
            }
            let reply = cards.get(i).copied().unwrap_or_default();
            spot.known = match resp::integer(reply) {
                Some(left) => KeyState::Remaining(u64::try_from(left).unwrap_or(0)),
                None if ErrorCode::WrongType.is(reply) => KeyState::OtherType,
                None => KeyState::Unknown,
            };
            // Newer than any wake that was heard of. A stream's waiters have to look for themselves.
            if spot.kind != Waited::Stream && spot.is_settled() {
                spot.woken = false;
            }
        }
    }

    /// A refused or misplaced request: its waiters' calls may have run.
    fn give_up_on(&mut self, sent: &Sent) {
        for id in sent.waiters() {
            if let Some(waiter) = self.waiters.get_mut(id) {
                waiter.state = State::Queued;
                if waiter.gone {
                    self.remove(*id);
                } else {
                    self.finish(*id, End::Close(Bytes::new(), ClientClose::UpstreamLost));
                }
            }
        }
    }

    fn selected(&mut self, database: u32, reply: &[u8]) {
        self.switches -= 1;
        let refused = resp::is_error(reply);
        if refused {
            self.access.remove(&database);
        } else {
            self.database = database;
            self.access.insert(database, Access::Granted);
        }
        let mut waiting: Vec<_> = self
            .waiters
            .iter()
            .filter(|(_, waiter)| waiter.key.database == database)
            .map(|(id, _)| *id)
            .collect();
        waiting.sort_unstable();
        for id in waiting {
            if refused {
                self.finish(id, End::Error(Bytes::copy_from_slice(reply)));
            } else {
                self.start(id);
            }
        }
    }

    fn call_answered(
        &mut self,
        waiters: &[u64],
        request: &Bytes,
        own: Own<'_>,
        cards: &[usize],
        now: Instant,
    ) {
        let Some(lead) = waiters.first().and_then(|id| self.waiters.get(id)) else { return };
        let (spots, group, woken) = (lead.spots.clone(), lead.group.clone(), !lead.first);
        if !woken && matches!(own, Own::Element(_) | Own::Nothing) {
            waiters.iter().take(1).for_each(|id| self.accepted(*id));
        }
        for id in waiters {
            if let Some(waiter) = self.waiters.get_mut(id) {
                waiter.state = State::Queued;
            }
        }
        let something = matches!(own, Own::Element(_) | Own::Error(_));
        match own {
            Own::Nothing => {
                for at in cards.iter().filter(|_| woken) {
                    if let Some(spot) = self.spots.at_mut(*at) {
                        spot.wake_was_empty();
                    }
                }
                self.note_quiet(waiters, request);
                waiters.iter().for_each(|id| self.nothing_for(*id));
            }
            Own::Element(reply) => {
                for at in &spots {
                    if let Some(spot) = self.spots.at_mut(*at) {
                        spot.wake_was_full();
                    }
                }
                waiters.iter().for_each(|id| self.deliver_in_turn(*id, request, reply));
            }
            Own::Error(reply) => waiters.iter().for_each(|id| self.failed(*id, reply, now)),
            Own::Uncountable => {
                if let Some(kind) = waiters.first().and_then(|id| self.waiters.get(id)).map(|w| w.kind())
                    && !self.uncountable.contains(&kind)
                {
                    self.uncountable.push(kind);
                }
                waiters.iter().for_each(|id| self.end_or_forget(*id, End::Fallback));
            }
        }
        if let (Some(group), true) = (&group, something) {
            spots.iter().for_each(|at| self.next_of_group(*at, group));
        }
        let asked: HashSet<usize> = cards.iter().copied().collect();
        spots.iter().filter(|at| !asked.contains(at)).for_each(|at| self.pump(*at));
    }

    /// An XREAD has found nothing: nothing stands behind its ids.
    fn note_quiet(&mut self, waiters: &[u64], request: &Bytes) {
        let Some(lead) = waiters.first().and_then(|id| self.waiters.get(id)) else { return };
        let Some(request) = Request::parse(request).filter(|_| lead.call.command == Blocking::XRead) else {
            return;
        };
        let words: Vec<&[u8]> = request.args().collect();
        if Request::parse(&lead.request).is_none_or(|whole| whole.args().count() != words.len()) {
            // Some keys were left out, so the ids stand elsewhere.
            return;
        }
        for (at, key) in lead.spots.iter().zip(&lead.call.keys) {
            let id = words.get(key + lead.call.keys.len()).and_then(|word| stream_id(word));
            if let (Some(id), Some(spot)) = (id, self.spots.at_mut(*at)) {
                spot.note_quiet(id);
            }
        }
    }

    /// The call has found nothing and goes on waiting, unless its time was up meanwhile.
    fn nothing_for(&mut self, id: u64) {
        let Some(waiter) = self.waiters.get_mut(&id) else { return };
        waiter.first = false;
        if waiter.gone {
            self.remove(id);
        } else if let Some(how) = waiter.unblock.take() {
            self.end_unblocked(id, how);
        } else if waiter.overdue || waiter.leaving {
            self.finish(id, End::Nil);
        }
    }

    /// The call was answered with an error. On its first try that is its answer. After a wake it is what Redis would do
    /// with a client that is blocked already.
    fn failed(&mut self, id: u64, reply: &[u8], now: Instant) {
        if self.is_redirect(reply) {
            return self.redirected(id, reply);
        }
        let Some(waiter) = self.waiters.get(&id) else { return };
        let (first, probes) = (waiter.first, waiter.probes);
        let demoted = ErrorCode::ReadOnly.is(reply);
        if demoted {
            self.demoted();
        } else if probes {
            return self.nothing_for(id);
        }
        if first {
            self.refused(id, reply);
        }
        let Some(waiter) = self.waiters.get(&id) else { return };
        // At its limit Redis queues nothing in MULTI (`processCommand` in redis `server.c`), but lets the same call pop
        // when it stands alone: only a lease can serve it, and its popping may be what makes room.
        if ErrorCode::Oom.is(reply) {
            return self.end_or_forget(id, End::Fallback);
        }
        if demoted && !first {
            return self.end_or_forget(id, Self::unblocked_by_demotion());
        }
        if waiter.gone || first || waiter.call.command == Blocking::XReadGroup {
            return self.end_or_forget(id, End::Error(Bytes::copy_from_slice(reply)));
        }
        let spots = waiter.spots.clone();
        if ErrorCode::of(reply).is_some_and(ErrorCode::is_transient) {
            for at in spots {
                if let Some(spot) = self.spots.at_mut(at) {
                    spot.forget();
                    let newcomers = std::mem::take(&mut spot.newcomers);
                    self.delay(at, now + PASSING);
                    // It is the answer of none that has just come.
                    for id in newcomers {
                        if self.waiters.get(&id).is_some_and(|waiter| waiter.first && waiter.is_free()) {
                            self.send_call(vec![id], Ask::All);
                        }
                    }
                }
            }
            self.nothing_for(id);
        } else if ErrorCode::WrongType.is(reply) {
            let keep = self.usable(waiter);
            if spots.iter().any(|at| self.spots.at(*at).is_some_and(|spot| spot.known == KeyState::Unknown)) {
                // It may be a key that has changed since it was last asked about: asked with it this time.
                let request = waiter.for_keys(&keep).unwrap_or_else(|| waiter.request.clone());
                self.send_request(vec![id], &request, Ask::All);
            } else if keep.iter().all(|keep| *keep) {
                // The keys are sound: it is the destination.
                self.end_or_forget(id, End::Error(Bytes::copy_from_slice(reply)));
            } else if let Some(request) = waiter.for_keys(&keep) {
                self.send_request(vec![id], &request, Ask::All);
            } else {
                self.nothing_for(id);
            }
        } else {
            self.end_or_forget(id, End::Error(Bytes::copy_from_slice(reply)));
        }
    }

    fn end_or_forget(&mut self, id: u64, how: End) {
        if self.waiters.get(&id).is_some_and(|waiter| waiter.gone) {
            self.remove(id);
        } else {
            self.finish(id, how);
        }
    }

    /// Who only looked whether its call is accepted lets those before it have what it found.
    fn deliver_in_turn(&mut self, id: u64, request: &Bytes, reply: &[u8]) {
        while let Some(older) = self.older_alike(id) {
            let Some(waiter) = self.waiters.get(&older) else { break };
            let taken = give(waiter, reply);
            // What a try of its own still brings goes elsewhere.
            self.gone(older);
            if taken {
                return self.nothing_for(id);
            }
        }
        self.deliver(id, request, reply);
    }

    /// Hands the element to its waiter in one step, else to the next one with the same call, else back.
    fn deliver(&mut self, id: u64, request: &Bytes, reply: &[u8]) {
        let Some(waiter) = self.waiters.get(&id) else { return };
        let taken = !waiter.gone && give(waiter, reply);
        if taken || !waiter.pops() {
            // What a stream holds stays there; an entry read for a group is pending for its consumer.
            return self.remove(id);
        }
        let (key, identity, shape) =
            (waiter.key, std::sync::Arc::clone(&waiter.identity), waiter.shape.clone());
        let (call, first_spot) = (waiter.call.clone(), waiter.spots.first().copied());
        self.remove(id);
        let others: Vec<u64> = first_spot
            .and_then(|at| self.spots.at(at))
            .map(|spot| spot.queue.iter().copied().collect())
            .unwrap_or_default();
        for other in others {
            let fits = self
                .waiters
                .get(&other)
                .is_some_and(|waiter| waiter.is_free() && waiter.shape == shape && give(waiter, reply));
            if fits {
                crate::hub::fate(ElementFate::HandedOn);
                return self.remove(other);
            }
        }
        let back = Request::parse(request).and_then(|request| call.give_back(&request, reply));
        (self.give_back)(key, &identity, back.map(BytesMut::freeze));
    }

    /// The ids for `$` and `+` have come.
    fn positioned(&mut self, id: u64, answers: Option<&[&[u8]]>) {
        let Some(waiter) = self.waiters.get_mut(&id) else { return };
        waiter.state = State::Queued;
        if waiter.gone {
            return self.remove(id);
        }
        let bytes = waiter.request.clone();
        let Some(request) = Request::parse(&bytes) else { return };
        let answers = answers.unwrap_or_default();
        let ids: Vec<Bytes> = answers.iter().filter_map(|reply| last_generated_id(reply)).collect();
        let floating = waiter.call.floating(&request);
        if !floating.is_empty() && ids.len() == floating.len() {
            // What `+` asks for may be there already: it is asked as it stands, once.
            let now = waiter.call.with_positions(&request, &ids, false);
            let later = waiter.call.with_positions(&request, &ids, true);
            let only_dollars = waiter.call.dollars.len() == waiter.call.keys.len();
            waiter.floating = false;
            let keys = waiter.call.keys.clone();
            let spots = waiter.spots.clone();
            waiter.rewrite(later);
            for ((key, _), id) in floating.iter().zip(&ids) {
                // The keys stand in ascending order.
                let at = keys.binary_search(key).ok().and_then(|i| spots.get(i));
                if let Some(spot) = at.and_then(|at| self.spots.at_mut(*at)) {
                    spot.note_position(id);
                }
            }
            if only_dollars && self.is_accepted(id) && !self.must_ask(id) {
                let believed = self.waiters.get(&id).and_then(|waiter| waiter.believed);
                self.nothing_for(id);
                if let Some(waiter) = self.waiters.get_mut(&id) {
                    waiter.believed = believed;
                }
            } else {
                self.send_request(vec![id], &now, Ask::All);
            }
        } else if answers.iter().any(|reply| ErrorCode::WrongType.is(reply)) {
            // The call itself will be told.
            let request = waiter.request.clone();
            self.send_request(vec![id], &request, Ask::All);
        } else {
            self.finish(id, End::Fallback);
        }
    }
}

/// Gives `reply` to the waiter's client in its protocol.
fn give(waiter: &super::Waiter, reply: &[u8]) -> bool {
    match waiter.protocol() {
        Protocol::Resp3 => waiter.waiting.deliver(reply, !waiter.first),
        Protocol::Resp2 => {
            let mut out = BytesMut::with_capacity(reply.len() + 32);
            resp::downgrade(reply, &mut out);
            waiter.waiting.deliver(&out, !waiter.first)
        }
    }
}
