//! The proxied world beside the record of the direct one: it has to come to the same after each step, within a time.

use std::thread;
use std::time::{Duration, Instant};

use super::fate::Fates;
use super::mask::{Heard, masked};
use super::record::Record;
use super::runner::{Listed, World};
use super::sequence::{Request, Sequence, Step, Tail};
use super::wire::Wire;

/// What contradicts the direct world stays wrong; only where a message is under way it may still become right.
const BRIEFLY: Duration = Duration::from_millis(80);

/// How long a reply that the server gave may stay out before the proxy.
#[derive(Clone, Copy)]
pub(crate) struct Patience(pub(crate) Duration);

/// How the proxied world came out of one step.
pub(crate) enum Outcome {
    Alike,
    Differs(String),
    /// Something befell it that the direct world has to be played again with.
    Befell(Fates),
}

/// A sequence, what the direct world gave with what has befallen it so far, and how long the proxied one may take.
pub(crate) struct Play<'a> {
    pub(crate) sequence: &'a Sequence,
    pub(crate) record: Record,
    pub(crate) fates: Fates,
    pub(crate) patience: Patience,
}

/// A client that has not received what it has in the direct world.
struct Difference {
    client: usize,
    expected: Heard,
    heard: Heard,
}

impl World {
    /// Does one step and waits until it has come out as in the direct world.
    pub(super) fn step(&mut self, play: &Play<'_>, number: usize) -> Outcome {
        self.act(play.sequence, number, &play.fates);
        self.come_out(play, number)
    }

    /// Waits until the step that was done last has come out as in the direct world.
    pub(super) fn come_out(&mut self, play: &Play<'_>, number: usize) -> Outcome {
        let (step, moment) = (&play.sequence.steps[number], &play.record.moments[number]);
        match self.await_moment(play, number) {
            Outcome::Alike => {}
            Outcome::Differs(what) => return Outcome::Differs(format!("step {number}, {step}\n{what}")),
            befell @ Outcome::Befell(_) => return befell,
        }
        if let Step::Write { client, requests, .. } = step
            && moment.is_vague
            && requests.iter().any(Request::may_block)
            && !moment.blocked.contains(client)
            && !self.until_unblocked(*client, play.patience)
        {
            return Outcome::Differs(format!("step {number}, {step}\nclient {client} still blocks"));
        }
        if (moment.is_vague || !moment.blocked.is_empty()) && !self.settle(&moment.blocked, play.patience) {
            let rows = self.rows();
            let blocked = &moment.blocked;
            return Outcome::Differs(format!(
                "step {number}, {step}\nclients {blocked:?} do not block\n{rows:?}"
            ));
        }
        if let (Step::Write { client, .. }, Some(row)) = (step, &moment.row)
            && let Some(other) = self.await_listed(*client, row, play.patience)
        {
            return Outcome::Differs(format!(
                "step {number}, {step}\n  directly: {row:?}\n  proxied:  {other:?}"
            ));
        }
        if moment.digest.as_ref().is_some_and(|digest| !self.await_data(digest, play.patience)) {
            return Outcome::Differs(format!("step {number}, {step}\nthe data on the server differ"));
        }
        if let Step::Write { client, tail: Tail::Leaves, .. } | Step::Leave(client) = step
            && !self.await_end(*client, play.patience)
        {
            return Outcome::Differs(format!("step {number}, {step}\nclient {client} is still listed"));
        }
        Outcome::Alike
    }

    /// Nothing may come that the server would not have sent.
    pub(super) fn end(&mut self, play: &Play<'_>) -> Outcome {
        self.echo();
        let Some(last) = play.sequence.steps.len().checked_sub(1) else { return Outcome::Alike };
        match self.await_moment(play, last) {
            Outcome::Differs(what) => Outcome::Differs(format!("at the end\n{what}")),
            Outcome::Alike if !self.await_data(&play.record.digest, play.patience) => {
                Outcome::Differs("the data on the server differ".to_owned())
            }
            other => other,
        }
    }

    /// Waits until every client has received what it has in the direct world.
    fn await_moment(&mut self, play: &Play<'_>, number: usize) -> Outcome {
        let start = Instant::now();
        loop {
            self.wires.iter_mut().for_each(Wire::read);
            let Some(Difference { client, expected, heard }) = self.difference(number, &play.record) else {
                return Outcome::Alike;
            };
            if let Some(fates) = self.befell(play, number, (client, &expected, &heard)) {
                return Outcome::Befell(fates);
            }
            let limit =
                if heard.contradicts(&expected) { BRIEFLY.min(play.patience.0) } else { play.patience.0 };
            if start.elapsed() > limit {
                return Outcome::Differs(format!(
                    "client {client}\n  directly: {expected}\n  proxied:  {heard}"
                ));
            }
            self.wires[client].await_bytes(Duration::from_millis(4));
        }
    }

    /// The first client that has not received what it has in the direct world.
    fn difference(&self, number: usize, record: &Record) -> Option<Difference> {
        let identities = self.identities();
        self.wires.iter().enumerate().find_map(|(client, wire)| {
            let (length, ended) = record.moments[number].heard[client];
            let expected = &record.got[client][..length];
            if (wire.got.as_slice(), wire.ended) == (expected, ended) {
                return None;
            }
            let expected = masked(expected, ended, &record.clients, self.mask);
            let heard = masked(&wire.got, wire.ended, &identities, self.mask);
            (!heard.is_like(&expected)).then_some(Difference { client, expected, heard })
        })
    }

    /// What the difference means, where it is something that cannot happen directly.
    fn befell(
        &self,
        play: &Play<'_>,
        number: usize,
        (client, expected, heard): (usize, &Heard, &Heard),
    ) -> Option<Fates> {
        let mut fates = play.fates.clone();
        if let Some(place) = heard.refused_unlike(expected) {
            return fates.refuse(play.sequence, client, place).then_some(fates);
        }
        let may_lose = &play.record.moments[number].may_lose;
        let closed = |client: &usize| self.wires[*client].ended;
        (closed(&client) && !expected.ended && may_lose.contains(&client) && fates.lost(number).is_none())
            .then(|| {
                fates.lose(number, may_lose.iter().copied().filter(closed).collect());
                fates
            })
    }

    /// Waits until the data are those of the direct world.
    fn await_data(&mut self, expected: &str, patience: Patience) -> bool {
        let start = Instant::now();
        while self.digest() != expected {
            if start.elapsed() > patience.0 {
                return false;
            }
            thread::sleep(Duration::from_millis(3));
        }
        true
    }

    /// Waits until a client that has left is forgotten.
    fn await_end(&mut self, client: usize, patience: Patience) -> bool {
        let id = self.wires[client].identity.id.to_string();
        let start = Instant::now();
        while self.rows().iter().any(|row| row.get("id") == id) {
            if start.elapsed() > patience.0 {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Waits until a client is listed like this; how it is listed instead, if it stays so.
    fn await_listed(
        &mut self,
        client: usize,
        expected: &Listed,
        patience: Patience,
    ) -> Option<Option<Listed>> {
        let start = Instant::now();
        loop {
            let listed = self.listed(client);
            let state = listed.as_ref().map(|row| &row.state);
            // A command that the server does not know has another name, or none, there.
            let is_last = listed.as_ref().is_some_and(|row| row.command == expected.command);
            if state == Some(&expected.state) && (is_last || start.elapsed() > BRIEFLY / 8) {
                return None;
            }
            if start.elapsed() > patience.0 {
                return Some(listed);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until a call has ended of which nothing is heard.
    fn until_unblocked(&mut self, client: usize, patience: Patience) -> bool {
        let start = Instant::now();
        self.control.call("CLIENT ID");
        while self.blocked().contains(&client) {
            if start.elapsed() > patience.0 {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Waits until the proxy has done what no reply tells of: calls wait where they are to wait.
    fn settle(&mut self, blocked: &[usize], patience: Patience) -> bool {
        let start = Instant::now();
        let heard: Vec<_> = self.wires.iter().map(|wire| wire.got.len()).collect();
        let mut left = blocked.to_vec();
        while !left.is_empty() {
            let blocked = self.blocked();
            self.wires.iter_mut().for_each(Wire::read);
            // A short call may be over before it is seen to block, on a busy machine.
            let is_over = |client: usize| self.wires[client].got.len() > heard[client];
            left.retain(|client| !blocked.contains(client) && !is_over(*client));
            if start.elapsed() > patience.0 {
                return left.is_empty();
            }
        }
        self.echo();
        if !blocked.is_empty() && self.has_hub {
            for _ in 0..4 {
                self.barrier += 1;
                // A client that has written looks for itself, on the hub's connection, behind all that is in flight.
                self.echo();
                let key = format!("barrier:{}", self.barrier);
                self.control.call(&format!("BLPOP {key} 0.001"));
            }
        }
        self.server.call("PING");
        self.server.call("PING");
        true
    }
}
