//! What the direct world gives: by the byte, after each step.

use std::thread;
use std::time::{Duration, Instant};

use super::fate::Fates;
use super::mask::Identity;
use super::runner::{Listed, World};
use super::sequence::{Request, Sequence, Step, Tail};
use super::trouble::{Kind, Trouble};

/// What was heard in the direct world by the end of one step.
pub(super) struct Moment {
    /// How many bytes each client has received, and whether its connection has ended.
    pub(super) heard: Vec<(usize, bool)>,
    /// Clients that wait in a blocking call.
    pub(super) blocked: Vec<usize>,
    /// The writer heard nothing, or not of everything: nothing tells when the write has been dealt with.
    pub(super) is_vague: bool,
    /// The server's checksum over all data, where no reply tells that a write has been dealt with.
    pub(super) digest: Option<String>,
    /// The writer's row in the listing, for the same reason.
    pub(super) row: Option<Listed>,
    /// Whom a kill may close, and whom it must.
    pub(super) may_lose: Vec<usize>,
}

/// What the direct world has done.
pub(crate) struct Record {
    pub(super) moments: Vec<Moment>,
    pub(super) clients: Vec<Identity>,
    /// All that each client has received.
    pub(super) got: Vec<Vec<u8>>,
    /// The server's own checksum over all data.
    pub(super) digest: String,
}

impl World {
    /// Plays the sequence with what befell it, and writes down what it gives.
    pub(super) fn record(&mut self, sequence: &Sequence, fates: &Fates) -> Record {
        self.begin(sequence);
        let moments = sequence
            .steps
            .iter()
            .enumerate()
            .map(|(number, step)| self.moment(sequence, number, step, fates))
            .collect();
        let got = self.wires.iter().map(|wire| wire.got.clone()).collect();
        let digest = self.digest();
        let clients = self.identities();
        self.finish(sequence);
        Record { moments, clients, got, digest }
    }

    fn moment(&mut self, sequence: &Sequence, number: usize, step: &Step, fates: &Fates) -> Moment {
        let before: usize = self.heard();
        let may_lose = match step {
            Step::Kill(kinds) => self.lose(number, kinds, fates),
            _ => Vec::new(),
        };
        self.act(sequence, number, fates);
        self.rest();
        let closes = match step {
            // Also where what befell the write has ended it so.
            Step::Write { client, .. } => {
                (fates.write(sequence, number, &|_, _| String::new()).1 == Tail::HalfCloses).then_some(client)
            }
            Step::HalfClose(client) => Some(client),
            _ => None,
        };
        if let Some(client) = closes {
            // The server sees a FIN in a turn of its own.
            let start = Instant::now();
            while self.wires[*client].socket.is_some() && start.elapsed() < Duration::from_secs(1) {
                self.rest();
            }
        }
        let start = Instant::now();
        let (blocked, row) = loop {
            let blocked = self.wait_out(step);
            let row = match step {
                Step::Write { client, .. } if sequence.trouble == Trouble::Mute => self.listed(*client),
                _ => None,
            };
            // On a busy machine the server may come to a brief call only after it was asked who is blocked.
            let begins_late = row.as_ref().is_some_and(Listed::is_blocked) && ends_by_itself(step);
            if !begins_late || start.elapsed() > Duration::from_secs(5) {
                break (blocked, row);
            }
        };
        let heard: Vec<_> = self.wires.iter().map(|wire| (wire.got.len(), wire.ended)).collect();
        let is_vague = self.heard() == before || sequence.trouble == Trouble::Mute;
        // Directly a pause holds what the proxy may not have got yet: then the data tell nothing.
        let digest = (is_vague && sequence.trouble != Trouble::Pause).then(|| self.digest());
        Moment { heard, blocked, is_vague, digest, row, may_lose }
    }

    /// Waits out the brief timeouts of blocking calls in this step; who blocks then.
    fn wait_out(&mut self, step: &Step) -> Vec<usize> {
        let Step::Write { requests, client, .. } = step else { return Vec::new() };
        if !requests.iter().any(Request::may_block) {
            return Vec::new();
        }
        let mut blocked = self.blocked();
        // Timeouts in a sequence are brief or none.
        if blocked.contains(client) && is_brief(requests) {
            let start = Instant::now();
            let limit = Duration::from_millis(if ends_by_itself(step) { 5_000 } else { 300 });
            while blocked.contains(client) && start.elapsed() < limit {
                thread::sleep(Duration::from_millis(2));
                blocked = self.blocked();
            }
        }
        self.rest();
        blocked
    }

    /// Ends the clients that have state on connections of these kinds; those that may have are returned.
    fn lose(&mut self, number: usize, kinds: &[Kind], fates: &Fates) -> Vec<usize> {
        let rows = self.rows();
        let (mut may_lose, mut lost) = (Vec::new(), Vec::new());
        for (client, wire) in self.wires.iter().enumerate() {
            let id = wire.identity.id.to_string();
            let Some(row) = rows.iter().find(|row| row.get("id") == id) else { continue };
            let closed = kinds.iter().map(|kind| self.holds[client].closed_by(*kind, row));
            let (may, must) = closed.fold((false, false), |all, one| (all.0 | one.0, all.1 | one.1));
            may_lose.extend(may.then_some(client));
            lost.extend(must.then_some(client));
        }
        let lost = fates.lost(number).map_or(lost, <[usize]>::to_vec);
        for client in lost {
            self.server.call(&format!("CLIENT KILL ID {}", self.wires[client].identity.id));
        }
        may_lose
    }
}

fn is_brief(requests: &[Request]) -> bool {
    requests.iter().any(|request| {
        request.is_threaded()
            || request.may_block() && ["0.01", "10", "0.1", "100"].iter().any(|time| request.has(time))
    })
}

/// Whether the blocking calls in this step have timeouts, and brief ones.
fn ends_by_itself(step: &Step) -> bool {
    let Step::Write { requests, .. } = step else { return false };
    is_brief(requests) && !requests.iter().any(|request| request.may_block() && request.has("0"))
}
