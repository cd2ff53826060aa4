//! What is written to the server, and when.

use std::collections::{HashMap, HashSet};

use bytes::{Bytes, BytesMut};

use super::super::waiter::{End, State, Waiter};
use super::sent::{Ask, Purpose, Sent};
use super::watched_key::stream_id;
use super::{Access, KeyState, Waitlist};
use crate::command::Blocking;
use crate::command::blocking::{Waited, stream_position};
use crate::resp::{Request, encode};

impl Waitlist {
    /// A call's first step, or its first on a new connection.
    pub(super) fn start(&mut self, id: u64) {
        let Some(waiter) = self.waiters.get(&id).filter(|waiter| waiter.is_free()) else { return };
        if !self.online || !self.may_use(waiter.key.database) {
            return;
        }
        self.watch_slot_of(id);
        let Some(waiter) = self.waiters.get(&id) else { return };
        if waiter.kind() == Waited::Stream {
            return self.start_on_streams(id);
        }
        let spots = waiter.spots.clone();
        let first = waiter.first;
        let known = |at: &usize| self.spots.at(*at).map(|spot| spot.known);
        // What is of another type is an error for a call that arrives.
        if first && spots.iter().any(|at| known(at) == Some(KeyState::OtherType)) {
            self.send_call(vec![id], Ask::All);
        } else if spots.iter().all(|at| known(at) == Some(KeyState::Remaining(0))) {
            let accepted = !first || self.is_accepted(id);
            let Some(waiter) = self.waiters.get_mut(&id) else { return };
            let must_look = std::mem::take(&mut waiter.must_look);
            if !first || accepted && !must_look && !self.must_ask(id) {
                return self.settle(id);
            }
            if accepted && !must_look {
                return self.send_call(vec![id], Ask::All);
            }
            let behind = |at: &usize| self.spots.at(*at).is_some_and(|spot| spot.queue.first() != Some(&id));
            let behind = spots.iter().any(behind);
            if behind {
                // The older ones look first.
                for at in &spots {
                    if let Some(spot) = self.spots.at_mut(*at) {
                        spot.forget();
                    }
                }
                self.pump_for(id, &spots);
            }
            if self.waiters.get(&id).is_some_and(Waiter::is_free) && (!accepted || !behind) {
                self.send_call(vec![id], Ask::All);
            }
        } else {
            self.pump_for(id, &spots);
        }
    }

    /// Lets the waiters of these spots try. If others are before `id`, their answers tell what it would have found.
    fn pump_for(&mut self, id: u64, spots: &[usize]) {
        for at in spots {
            self.end_delay(*at);
            self.pump(*at);
        }
        if self.waiters.get(&id).is_none_or(|waiter| !waiter.first || !waiter.is_free()) {
            return;
        }
        for at in spots {
            if let Some(spot) = self.spots.at_mut(*at) {
                spot.newcomers.insert(id);
            }
        }
    }

    /// A spot is known by now to hold nothing: its newcomers wait from here on, or are told that it is of another type.
    pub(super) fn welcome(&mut self, at: usize) {
        let Some(spot) = self.spots.at_mut(at).filter(|spot| spot.is_settled()) else { return };
        for id in std::mem::take(&mut spot.newcomers) {
            self.start(id);
        }
    }

    /// A stream call looks for itself, unless it is an XREAD and its streams are known to hold nothing for it. What it
    /// finds is no answer to those who wait already: a wake of theirs that is delayed stays to be followed up.
    fn start_on_streams(&mut self, id: u64) {
        self.take_known_positions(id);
        let Some(waiter) = self.waiters.get(&id) else { return };
        if waiter.floating {
            return self.ask_positions(id);
        }
        let nothing_there = (!waiter.first || !waiter.must_look && self.is_accepted(id))
            && waiter.call.command == Blocking::XRead
            && Request::parse(&waiter.request).is_some_and(|request| {
                let words: Vec<&[u8]> = request.args().collect();
                waiter.spots.iter().zip(&waiter.call.keys).all(|(at, key)| {
                    let id = words.get(key + waiter.call.keys.len()).and_then(|word| stream_id(word));
                    id.is_some_and(|id| self.spots.at(*at).is_some_and(|spot| spot.is_quiet_after(id)))
                })
            });
        let waits = !waiter.first;
        if nothing_there && (waits || !self.must_ask(id)) {
            return self.settle(id);
        }
        let Some(waiter) = self.waiters.get(&id) else { return };
        if waiter.group.is_some() {
            // Older ones of its group read first.
            let is_woken = |at: &usize| self.spots.at(*at).is_some_and(|spot| spot.woken);
            let woken: Vec<usize> = waiter.spots.iter().copied().filter(is_woken).collect();
            for at in woken {
                self.end_delay(at);
                self.pump(at);
            }
        }
        if self.waiters.get(&id).is_some_and(Waiter::is_free) {
            self.send_call(vec![id], Ask::All);
        }
    }

    /// Makes `$` explicit without asking, where the ends of all its streams are known.
    fn take_known_positions(&mut self, id: u64) {
        let Some(waiter) = self.waiters.get(&id) else { return };
        let call = &waiter.call;
        if !waiter.floating || waiter.must_look || call.dollars.len() != call.keys.len() {
            return;
        }
        let ids: Option<Vec<Bytes>> =
            waiter.spots.iter().map(|at| self.spots.at(*at)?.position().cloned()).collect();
        let Some(ids) = ids else { return };
        let request = waiter.request.clone();
        if let (Some(request), Some(waiter)) = (Request::parse(&request), self.waiters.get_mut(&id)) {
            let explicit = waiter.call.with_positions(&request, &ids, true);
            waiter.floating = false;
            waiter.rewrite(explicit);
        }
    }

    fn settle(&mut self, id: u64) {
        let Some(waiter) = self.waiters.get_mut(&id) else { return };
        waiter.first = false;
        if waiter.leaving {
            self.finish(id, End::Nil);
        }
    }

    /// Lets the waiters of a spot try: as many as can succeed, or one to find out. Nothing when a request in flight will
    /// say what the spot holds: it runs after whatever has happened until now.
    pub(super) fn pump(&mut self, at: usize) {
        let Some(spot) = self.spots.at_mut(at) else { return };
        if !self.online || spot.not_before.is_some() || spot.queue.is_empty() {
            return;
        }
        let (database, kind) = (spot.database, spot.kind);
        if kind == Waited::Stream {
            let unknown = spot.known == KeyState::Unknown && spot.asking == 0;
            if (spot.woken || unknown) && self.may_use(database) {
                self.pump_stream(at);
            }
            return;
        }
        if spot.asking > 0 {
            return;
        }
        let chances = match spot.known {
            KeyState::OtherType => 0,
            KeyState::Unknown => 1,
            KeyState::Remaining(left) => usize::try_from(left).unwrap_or(usize::MAX),
        };
        if chances == 0 || !self.may_use(database) {
            return;
        }
        let Some(spot) = self.spots.at(at) else { return };
        let free =
            spot.queue.iter().filter(|id| self.waiters.get(*id).is_some_and(|waiter| waiter.is_free()));
        let next: Vec<u64> = free.take(chances).copied().collect();
        if let Some(spot) = self.spots.at_mut(at) {
            spot.woken = false;
            spot.tries = 1;
        }
        for (i, id) in next.iter().enumerate() {
            let ask = if i + 1 == next.len() { Ask::All } else { Ask::AllBut(at) };
            self.send_call(vec![*id], ask);
        }
    }

    /// After a wake of a stream: each distinct XREAD once, and of each group the longest waiter.
    fn pump_stream(&mut self, at: usize) {
        let Some(spot) = self.spots.at(at) else { return };
        let mut groups = HashSet::new();
        let mut tries: Vec<Vec<u64>> = Vec::new();
        let mut readers: HashMap<Bytes, usize> = HashMap::new();
        let mut floating = Vec::new();
        for id in &spot.queue {
            let Some(waiter) = self.waiters.get(id).filter(|waiter| waiter.is_free()) else { continue };
            if waiter.floating {
                floating.push(*id);
            } else if let Some(group) = &waiter.group {
                if groups.insert(group.clone()) {
                    tries.push(vec![*id]);
                }
            } else {
                let at = *readers.entry(waiter.shape.clone()).or_insert(tries.len());
                match tries.get_mut(at) {
                    Some(waiters) => waiters.push(*id),
                    None => tries.push(vec![*id]),
                }
            }
        }
        if let Some(spot) = self.spots.at_mut(at) {
            spot.woken = false;
            spot.tries = u32::try_from(floating.len() + tries.len()).unwrap_or(u32::MAX);
        }
        floating.into_iter().for_each(|id| self.ask_positions(id));
        tries.into_iter().for_each(|waiters| self.send_call(waiters, Ask::All));
    }

    /// The next waiter of a group tries: the one before has got something.
    pub(super) fn next_of_group(&mut self, at: usize, group: &Bytes) {
        let Some(spot) = self.spots.at(at) else { return };
        let next = spot.queue.iter().copied().find(|id| {
            self.waiters
                .get(id)
                .is_some_and(|waiter| waiter.is_free() && waiter.group.as_ref() == Some(group))
        });
        if let Some(id) = next {
            self.send_call(vec![id], Ask::All);
        }
    }

    /// Runs the call of `waiters` without blocking. For one that waits already, keys that are known to hold another type
    /// are left out: to ask for them would cost it its turn.
    pub(super) fn send_call(&mut self, waiters: Vec<u64>, ask: Ask) {
        let Some(lead) = waiters.first().and_then(|id| self.waiters.get(id)) else { return };
        let request = if lead.first { None } else { lead.for_keys(&self.usable(lead)) };
        let request = request.unwrap_or_else(|| lead.request.clone());
        self.send_request(waiters, &request, ask);
    }

    /// Which of a waiter's keys are not known to hold another type.
    pub(super) fn usable(&self, waiter: &Waiter) -> Vec<bool> {
        let usable = |at: &usize| self.spots.at(*at).is_some_and(|spot| spot.known != KeyState::OtherType);
        waiter.spots.iter().map(usable).collect()
    }

    /// Runs `request`, which may differ from the waiters' own, without blocking.
    pub(super) fn send_request(&mut self, waiters: Vec<u64>, request: &Bytes, ask: Ask) {
        let Some(lead) = waiters.first().and_then(|id| self.waiters.get(id)) else { return };
        let (database, asking) = (lead.key.database, lead.asking);
        let spots = lead.spots.clone();
        for id in &waiters {
            if let Some(waiter) = self.waiters.get_mut(id) {
                waiter.state = State::Trying;
            }
            self.overdue.remove(id);
        }
        self.tries += 1;
        let mut sent = Sent::new(Purpose::Call { waiters, request: request.clone() });
        sent.asking = asking;
        self.ask(&mut sent, &spots, ask);
        self.write(sent, database, |out| out.extend_from_slice(request));
    }

    /// Asks what a call's `$` and `+` stand for now. What is added from here on is not missed: the ids are read in the
    /// same transaction that arms the streams.
    fn ask_positions(&mut self, id: u64) {
        let Some(waiter) = self.waiters.get_mut(&id) else { return };
        let Some(request) = Request::parse(&waiter.request) else { return };
        let mut questions = BytesMut::new();
        let floating = waiter.call.floating(&request);
        let words: Vec<&[u8]> = request.args().collect();
        for (key, _) in &floating {
            stream_position(words.get(*key).copied().unwrap_or_default(), &mut questions);
        }
        waiter.state = State::Trying;
        let (database, spots, asking) = (waiter.key.database, waiter.spots.clone(), waiter.asking);
        let mut sent = Sent::new(Purpose::Positions { waiter: id, count: floating.len() });
        sent.asking = asking;
        self.ask(&mut sent, &spots, Ask::All);
        self.write(sent, database, |out| out.extend_from_slice(&questions));
    }

    /// Adds the cardinalities that a request asks.
    fn ask(&mut self, sent: &mut Sent, spots: &[usize], ask: Ask) {
        for at in spots {
            let skip = match ask {
                Ask::All => false,
                Ask::AllBut(other) => other == *at,
            };
            if let Some(spot) = self.spots.at_mut(*at)
                && !skip
                && !spot.is_settled()
                && spot.asking == 0
            {
                spot.asking += 1;
                sent.cards.push(*at);
            }
        }
    }

    /// Looks whether spots that should be empty are.
    pub(super) fn look(&mut self, database: u32, spots: Vec<usize>) {
        let mut words: Vec<Bytes> = vec![Bytes::from_static(b"EXISTS")];
        for at in &spots {
            if let Some(spot) = self.spots.at_mut(*at) {
                spot.asking += 1;
                words.push(spot.name.clone());
            }
        }
        let words: Vec<&[u8]> = words.iter().map(|word| &word[..]).collect();
        let mut request = BytesMut::new();
        encode::command(&mut request, &words);
        self.write(Sent::new(Purpose::Look { spots }), database, |out| out.extend_from_slice(&request));
    }

    /// Shows the server that we are alive.
    pub(super) fn ping(&mut self) {
        encode::command(&mut self.out, &[b"PING"]);
        self.sent.push_back(Sent::new(Purpose::Ping));
    }

    /// Asks whether it is a master.
    pub(super) fn ask_for_role(&mut self) {
        encode::command(&mut self.out, &[b"ROLE"]);
        self.sent.push_back(Sent::new(Purpose::Role));
    }

    /// Writes a transaction for `database`. SELECT is a member of it unless the connection is surely there: were it
    /// refused outside, what follows would run in another database.
    fn write(&mut self, mut sent: Sent, database: u32, own: impl FnOnce(&mut BytesMut)) {
        let out = &mut self.out;
        if sent.asking {
            encode::command(out, &[b"ASKING"]);
        }
        encode::command(out, &[b"MULTI"]);
        if self.switches > 0 || self.database != database {
            encode::command(out, &[b"SELECT", database.to_string().as_bytes()]);
            sent.select = Some(database);
            self.switches += 1;
        }
        own(out);
        for at in &sent.cards {
            if let Some(spot) = self.spots.at(*at) {
                encode::command(out, &[spot.kind.cardinality(), &spot.name]);
            }
        }
        encode::command(out, &[b"EXEC"]);
        self.sent.push_back(sent);
    }

    /// Whether calls may run in `database`. The first use asks, by a SELECT of its own whose answer is awaited.
    fn may_use(&mut self, database: u32) -> bool {
        match self.access.get(&database) {
            Some(Access::Granted) => true,
            Some(Access::Asked) => false,
            None => {
                self.access.insert(database, Access::Asked);
                self.switches += 1;
                encode::command(&mut self.out, &[b"SELECT", database.to_string().as_bytes()]);
                self.sent.push_back(Sent::new(Purpose::Select(database)));
                false
            }
        }
    }
}
