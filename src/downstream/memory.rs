//! What is held for one client, in parts, and what becomes of it when all clients together hold too much.
//!
//! Above three quarters of `client.memory_max` the clients that hold most are read no further for a while, so that the
//! others may finish what they have begun. Above it the one that holds most is closed, whichever worker serves it, and
//! then the next, until the sum is below. What it has here is dropped at that moment, not when its task comes to it.

use std::cell::Cell;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::Instant;

use super::Worker;
use super::client::Client;
use super::links::Message;
use crate::pool::{Account, Charge, LONG};
use crate::resp::{Request, RequestScanner};
use crate::telemetry::ClientClose;

/// So long a client is read no further at the most: the memory of all may stand still above the mark, and the request that
/// it has begun must come to its end, or to the bound.
const PAUSE: Duration = Duration::from_secs(1);
/// What is kept of one argument of a call that waits, or of a name that is asked for, besides its bytes.
const PER_ARGUMENT: usize = 256;

/// The parts of what is held for one client. Requests on their way are charged by themselves ([`Account::keep`]).
pub(super) struct Held {
    account: Account,
    /// What has been read and not yet run.
    input: Cell<usize>,
    /// Replies that its socket has not taken.
    output: Cell<usize>,
    /// Published messages that wait for the end of a reply.
    messages: Cell<usize>,
    /// A reply that must be whole before it is passed on, and the copy of it that follows.
    reply: Cell<usize>,
    /// What it has on its way over a connection of its own, and what is queued there.
    lease: Cell<usize>,
    /// The names it is subscribed to.
    names: Cell<usize>,
    /// Since when it is read no further.
    paused: Cell<Option<Instant>>,
}

impl Held {
    pub(super) fn new(account: Account) -> Self {
        let part = || Cell::new(0);
        Self {
            account,
            input: part(),
            output: part(),
            messages: part(),
            reply: part(),
            lease: part(),
            names: part(),
            paused: Cell::new(None),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.account.bytes()
    }

    /// Notes the length of one part; whether it has grown.
    fn set(&self, part: &Cell<usize>, now: usize) -> bool {
        let before = part.replace(now);
        if before != now {
            self.account.change(before, now);
        }
        now > before
    }

    /// Nothing is held any more.
    fn clear(&self) {
        for part in [&self.input, &self.output, &self.messages, &self.reply, &self.lease, &self.names] {
            self.set(part, 0);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Client {
    /// What has been read and not yet run is as long as its buffer now.
    pub(super) fn holds_input(&self, bytes: usize) {
        if self.held.set(&self.held.input, bytes) {
            self.worker.keep_within_bound();
        }
    }

    /// So many bytes of replies are unsent.
    pub(super) fn holds_output(&self, bytes: usize) {
        if self.held.set(&self.held.output, bytes) {
            self.worker.keep_within_bound();
        }
    }

    /// So many bytes of messages wait for the end of a reply.
    pub(super) fn holds_messages(&self, bytes: usize) {
        if self.held.set(&self.held.messages, bytes) {
            self.worker.keep_within_bound();
        }
    }

    /// So many bytes of a reply are there that must be whole. It will be copied when it is.
    pub(super) fn holds_reply(&self, bytes: usize) {
        if self.held.set(&self.held.reply, 2 * bytes) {
            self.worker.keep_within_bound();
        }
    }

    /// So many bytes are on their way over its own connection, or queued there.
    pub(super) fn holds_on_lease(&self, bytes: usize) {
        if self.held.set(&self.held.lease, bytes) {
            self.worker.keep_within_bound();
        }
    }

    /// It is subscribed to so many names of so many bytes together.
    pub(super) fn holds_names(&self, count: usize, bytes: usize) {
        if self.held.set(&self.held.names, bytes + count * PER_ARGUMENT) {
            self.worker.keep_within_bound();
        }
    }

    /// Takes `input`, all of what has been read and not yet run, as it is. It counts until the last part of it has been
    /// written or answered; what is left of it is copied.
    pub(super) fn keep_input(&self, input: Bytes) -> Bytes {
        self.held.set(&self.held.input, 0);
        self.held.account.keep(input)
    }

    /// Takes the frame of `len` bytes that the input begins with out of it; without a copy where it is long.
    pub(super) fn take_frame(&self, len: usize) -> Bytes {
        let mut input = self.input.borrow_mut();
        let frame = if len < LONG {
            let frame = Bytes::copy_from_slice(&input.buffer[..len]);
            input.buffer.advance(len);
            frame
        } else {
            let whole = self.keep_input(std::mem::take(&mut input.buffer).freeze());
            input.buffer = BytesMut::from(&whole[len..]);
            whole.slice(..len)
        };
        self.held.set(&self.held.input, input.buffer.len());
        frame
    }

    /// A copy of `request`, which counts where it is long.
    pub(super) fn copied(&self, request: &[u8]) -> Bytes {
        let copy = Bytes::copy_from_slice(request);
        if copy.len() < LONG { copy } else { self.held.account.keep(copy) }
    }

    /// What is made of the arguments of `request` while a hub waits for them.
    pub(super) fn charge_for_waiting(&self, request: &Bytes) -> Option<Charge> {
        let argc = Request::parse(request).map_or(0, |request| request.argc());
        let bytes = 2 * request.len() + argc * PER_ARGUMENT;
        let charge = (bytes >= LONG).then(|| self.held.account.charge(bytes));
        if charge.is_some() {
            self.worker.keep_within_bound();
        }
        charge
    }

    /// Whether it is read no further now, because it is among those that hold most and all hold too much. The worker's next
    /// tick looks again.
    pub(super) fn waits_for_memory(&self) -> bool {
        let memory = &self.worker.pool.shared.memory;
        if !memory.is_above_mark() {
            return false;
        }
        if self.held.bytes() <= memory.room() {
            self.held.paused.set(None);
            return false;
        }
        let since = self.held.paused.get().unwrap_or_else(|| {
            let now = Instant::now();
            self.held.paused.set(Some(now));
            self.worker.paused.borrow_mut().insert(self.id);
            now
        });
        // Above the bound somebody is being closed, perhaps by another worker: what is given back is not taken before.
        memory.room() == 0 || since.elapsed() < PAUSE
    }

    /// Nothing more is read from it or run for it now.
    pub(super) fn is_held_back(&self) -> bool {
        self.is_backpressured() || self.waits_for_memory()
    }

    /// Closes it for what it holds.
    pub(super) fn yields_memory(&self) {
        self.doom(ClientClose::Memory);
        // Nothing more is written to it.
        self.deaf.set(true);
        self.drop_buffers();
    }

    /// It is closed, and all that was held for it has been dropped.
    pub(super) fn holds_nothing(&self) {
        self.drop_buffers();
        self.held.clear();
    }

    /// Gives back what is held for a client that is not served any more. What is in use at this moment goes with its task.
    pub(super) fn drop_buffers(&self) {
        if let Ok(mut out) = self.out.try_borrow_mut() {
            out.clear();
            self.held.set(&self.held.output, 0);
        }
        if let Ok(mut input) = self.input.try_borrow_mut() {
            input.buffer = BytesMut::new();
            input.scanner = RequestScanner::default();
            self.held.set(&self.held.input, 0);
        }
    }
}

impl Worker {
    /// Closes the clients that hold most, one after the other, while all hold more than they may.
    pub(super) fn keep_within_bound(&self) {
        while let Some(victim) = self.pool.shared.memory.victim() {
            self.warn_of_memory(&victim);
            if victim.worker == self.index {
                let client = self.clients.borrow().get(&victim.id).cloned();
                if let Some(client) = client {
                    client.yields_memory();
                }
            } else if !self.links.try_send(victim.worker, Message::YieldMemory(victim.id)) {
                // Its worker has a thousand other messages before it: that one finds out by itself.
                self.pool.shared.memory.is_not_told(victim.id);
                return;
            }
        }
    }

    /// Every tick: those that were read no further may go on where there is room, or where they have waited long enough.
    pub(super) fn tend_paused(&self) {
        let paused = std::mem::take(&mut *self.paused.borrow_mut());
        let clients = self.clients.borrow();
        let above = self.pool.shared.memory.is_above_mark();
        for client in paused.iter().filter_map(|id| clients.get(id)) {
            if above {
                self.paused.borrow_mut().insert(client.id);
            } else {
                client.held.paused.set(None);
            }
            client.wake();
        }
    }
}
