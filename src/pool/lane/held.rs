//! Commands that a server has refused and that surely did not run: held, and sent again to another one.
//!
//! A command is sent again only after a reply that proves that it did not run ([`refusal`](super::refusal)), never after a lost connection.
//! Its bytes need no copy for that: a lane keeps what it has written until it is answered ([`Outgoing`](crate::resp::Outgoing)).
//!
//! With the first refusal a lane takes no more commands, and what is on it is arranged anew: each reply is read whole. Clients
//! none of whose commands is refused get theirs as they come. For the others all is kept from the first refusal on, and given
//! back to them ([`Receiver::takes_back`]) when the last of their replies is in. They send nothing new until then.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::refusal::{Held, Outcome, refusal};
use super::slot::{Change, Gathered, Lost, Receiver, Slot, Then};
use super::{Lane, Tracked};
use crate::pool::measures::Measures;
use crate::resp::ErrorCode;
use crate::telemetry::{CommandOutcome, Origin, UpstreamClose};

/// All that one client has on a lane since a command on it was refused.
struct Returning {
    to: Rc<dyn Receiver>,
    /// How many entries there are to come.
    left: usize,
    /// From the first refusal on.
    held: Vec<Held>,
    measures: Rc<Measures>,
}

impl Returning {
    fn settle(this: &RefCell<Self>, held: Held) {
        let mut returning = this.borrow_mut();
        returning.left -= 1;
        let is_first = returning.held.is_empty();
        let to = Rc::clone(&returning.to);
        if is_first && !matches!(held.outcome, Outcome::Refused(_)) {
            let measures = Rc::clone(&returning.measures);
            drop(returning);
            return hand_over(&*to, &measures, held);
        }
        returning.held.push(held);
        if returning.left == 0 {
            let held = std::mem::take(&mut returning.held);
            drop(returning);
            to.takes_back(held);
        }
    }
}

/// Tells `to` what became of something that is not held.
fn hand_over(to: &dyn Receiver, measures: &Measures, held: Held) {
    let Held { replies: count, muted, outcome, .. } = held;
    match outcome {
        Outcome::Answered(frames) if muted => to.replies(&[], frames.len() as u32, false),
        Outcome::Answered(frames) => {
            frames.iter().for_each(|frame| measures.reply(Origin::Server, frame));
            let count = frames.len() as u32;
            to.whole(joined(frames), count);
        }
        Outcome::Refused(_) | Outcome::Lost => to.lost(count, muted, false),
    }
}

/// Frames as one piece.
fn joined(frames: Vec<Bytes>) -> Bytes {
    match <[Bytes; 1]>::try_from(frames) {
        Ok([frame]) => frame,
        Err(frames) => frames.concat().into(),
    }
}

impl Lane {
    /// Whether a refusal of a command in `slot` is held back: the server was a master at the login, and the reply is its own.
    /// Clients that are told of changes stay with one lane, and learn of the refusal.
    pub(super) fn holds(&self, slot: &Slot) -> bool {
        matches!(slot, Slot::Replies { may_invent: false, is_block: false, abandoned: false, .. })
            && self.of_master.get().is_some()
            && self.key.get().tracked == Tracked::No
    }

    /// The next reply is a refusal that is held back: the lane leaves, and all that is on it is arranged anew.
    pub(super) fn hold_back(&self, fifo: &mut VecDeque<Slot>) {
        self.has_held_back.set(true);
        self.leave(UpstreamClose::Moved);
        let mut commands = self.commands_of(fifo).into_iter();
        let mut returning: Vec<Rc<RefCell<Returning>>> = Vec::new();
        let mut of = |to: &Rc<dyn Receiver>, more: usize| {
            let known = returning.iter().find(|known| Rc::ptr_eq(&known.borrow().to, to));
            let found = known.map(Rc::clone).unwrap_or_else(|| {
                let measures = Rc::clone(&self.measures);
                let new = Returning { to: Rc::clone(to), left: 0, held: Vec::new(), measures };
                let new = Rc::new(RefCell::new(new));
                returning.push(Rc::clone(&new));
                new
            });
            found.borrow_mut().left += more;
            found
        };
        for slot in std::mem::take(fifo) {
            match slot {
                Slot::Replies { to, count, since, muted, may_invent, is_block, abandoned, sample } => {
                    if let Some(sample) = sample {
                        sample.fails(CommandOutcome::Error(ErrorCode::ReadOnly.label()));
                    }
                    let (pieces, replies) = if is_block { (1, count) } else { (count, 1) };
                    let returning = of(&to, pieces as usize);
                    for _ in 0..pieces {
                        let command = commands.next().flatten().filter(|_| !may_invent && !abandoned);
                        let then = then_settle(Rc::clone(&returning), command, replies, muted, None);
                        fifo.push_back(whole(Some(Rc::clone(&to)), replies, since, then, is_block));
                    }
                }
                Slot::Changed { to, left, since, is_exec, change, .. } => {
                    let _ = commands.next();
                    let (returning, muted) = (of(&to, 1), change.is_none());
                    let then = then_settle(returning, None, left, muted, change);
                    fifo.push_back(whole(Some(to), left, since, then, is_exec));
                }
                own @ Slot::Whole { .. } => {
                    let _ = commands.next();
                    fifo.push_back(own);
                }
            }
        }
    }

    /// The bytes of what is owed by `fifo`, each command or transaction by itself; `None` where they are not kept.
    fn commands_of(&self, fifo: &VecDeque<Slot>) -> Vec<Option<Bytes>> {
        let mut kept = self.written.borrow().kept_from(self.answered());
        let mut commands = Vec::new();
        for slot in fifo {
            match slot {
                Slot::Replies { count, is_block: false, .. } => {
                    commands.extend((0..*count).map(|_| kept.take(1)));
                }
                Slot::Replies { .. } | Slot::Changed { .. } | Slot::Whole { .. } => {
                    commands.push(kept.take(slot.left() as usize));
                }
            }
        }
        if !kept.is_empty() {
            // Not one request for each reply: which is whose is not known.
            commands.iter_mut().for_each(|command| *command = None);
        }
        commands
    }
}

fn whole(
    owner: Option<Rc<dyn Receiver>>,
    left: u32,
    since: tokio::time::Instant,
    then: Then,
    is_block: bool,
) -> Slot {
    Slot::Whole {
        owner,
        left,
        frames: Vec::new(),
        partial: BytesMut::new(),
        gathered: Gathered::default(),
        since,
        then: Some(then),
        nonce: None,
        is_block,
    }
}

fn then_settle(
    returning: Rc<RefCell<Returning>>,
    command: Option<Bytes>,
    replies: u32,
    muted: bool,
    change: Option<Change>,
) -> Then {
    Box::new(move |frames: Result<Vec<Bytes>, Lost>| {
        let outcome = match frames {
            Err(Lost) => Outcome::Lost,
            Ok(mut frames) => match (frames.pop(), change) {
                (Some(reply), None) if replies == 1 && command.is_some() && refusal(&reply).is_some() => {
                    Outcome::Refused(reply)
                }
                (Some(reply), change) => {
                    frames.push(match change {
                        Some(change) => change(reply),
                        None => reply,
                    });
                    Outcome::Answered(frames)
                }
                (None, _) => Outcome::Answered(frames),
            },
        };
        Returning::settle(&returning, Held { command, replies, muted, outcome });
    })
}
