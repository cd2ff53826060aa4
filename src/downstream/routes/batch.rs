//! Commands that go over a lane together: how they are gathered, which lane takes them, and how they are appended.

use std::rc::Rc;

use bytes::Bytes;
use tokio::time::Instant;

use super::pending::PendingCommand;
use super::progress::{Next, Progress};
use crate::command::{Asked, classify};
use crate::downstream::client::{Client, Kept};
use crate::pool::{Charge, Choice, LONG, Lane, Nature, Receiver, Sample};
use crate::resp::Request;
use crate::session::Route;
use crate::telemetry::ClientClose;

/// Of so many commands of a lane one chooses the batch whose time is measured: a measured one takes some 400 instructions more.
const MEASURED: u64 = 256;

/// Commands found one behind the other that go over the lane in one append.
#[derive(Default)]
pub(in crate::downstream) struct Batch {
    pub(in crate::downstream) start: usize,
    pub(in crate::downstream) count: u32,
    pub(in crate::downstream) lane: Option<Rc<Lane>>,
    pub(in crate::downstream) nature: Nature,
    /// Reads and writes do not share lanes now.
    pub(super) group_is_held: bool,
    /// What the commands are parts of, where it need not be copied.
    pub(super) source: Option<Source>,
}

/// A buffer that whole commands are parts of.
pub(super) struct Source {
    pub(super) bytes: Bytes,
    /// It counts until the last part of it is gone: each of them keeps all of it.
    pub(super) is_charged: bool,
    /// As what it counts until then.
    pub(super) input: Option<Charge>,
}

impl Client {
    /// Appends the gathered run, which ends where `upto` ends, to its lane.
    pub(in crate::downstream) fn push(self: &Rc<Self>, run: &mut Batch, upto: &[u8]) {
        if let Some(lane) = run.lane.take()
            && run.count > 0
        {
            let commands = &upto[run.start..];
            match self.long_part(run, commands) {
                part if self.routing().is_some() => {
                    let commands = part.unwrap_or_else(|| self.copied(commands));
                    let (count, muted) = (run.count, run.nature.muted);
                    self.push_kept(&lane, Kept { commands, count, muted, is_block: false, counts: false });
                }
                None => self.push_on(&lane, commands, run.count, run.nature),
                Some(long) => self.push_long_on(&lane, long, run.count, run.nature),
            }
        }
        run.start = upto.len();
        run.count = 0;
        run.nature.may_invent = false;
    }

    pub(in crate::downstream) fn push_on(
        self: &Rc<Self>,
        lane: &Rc<Lane>,
        commands: &[u8],
        count: u32,
        nature: Nature,
    ) {
        let receiver: Rc<dyn Receiver> = Rc::clone(self) as Rc<dyn Receiver>;
        let now = Instant::now();
        lane.push(commands, count, &receiver, nature, now);
        if self.is_measured(lane, count) {
            self.measure(lane, commands, count, now);
        }
        self.is_on(lane, count);
    }

    /// The same without a copy.
    pub(in crate::downstream) fn push_long_on(
        self: &Rc<Self>,
        lane: &Rc<Lane>,
        commands: Bytes,
        count: u32,
        nature: Nature,
    ) {
        let receiver: Rc<dyn Receiver> = Rc::clone(self) as Rc<dyn Receiver>;
        let whole = commands.clone();
        let now = Instant::now();
        lane.push_long(commands, count, &receiver, nature, now);
        if self.is_measured(lane, count) {
            self.measure(lane, &whole, count, now);
        }
        self.is_on(lane, count);
    }

    /// Whether the batch of `count` commands that was pushed last is measured. Known from a count that is there anyway.
    fn is_measured(&self, lane: &Lane, count: u32) -> bool {
        lane.carried() % MEASURED < u64::from(count)
            || (self.context.measures_more.get() && self.is_measured_besides(lane, count))
    }

    /// The same for slow commands, which are found by measuring all of them, and for spans.
    #[cold]
    fn is_measured_besides(&self, lane: &Lane, count: u32) -> bool {
        self.context.slow_command.get().is_some()
            || self.context.pool.shared.tracer.chooses(lane.carried(), count)
    }

    /// Measures how long it takes until the replies to `commands`, which were pushed last, are on their way to the client.
    #[cold]
    fn measure(self: &Rc<Self>, lane: &Lane, commands: &[u8], count: u32, sent: Instant) {
        let Some(first) = Request::first(commands) else { return };
        let row = classify(&first).row;
        if let Some(to) = self.context.metrics.family_of(row) {
            let then = self.when_slow(row, &first, count);
            #[cfg(feature = "otlp")]
            let then = self.traced((row, count), lane.carried(), then);
            let since = self.inbound().last_input();
            lane.measure(Sample { since, sent, to, commands: count, error: None, then });
        }
    }

    /// The lane that `run` goes over, decided at its first command: the one with replies outstanding, else the best.
    pub(in crate::downstream) fn lane_for(
        self: &Rc<Self>,
        run: &mut Batch,
        asked: &Asked,
        frames: &[u8],
        (replies, counts): (u32, bool),
    ) -> Result<(), (usize, Progress)> {
        if run.lane.is_some() {
            return Ok(());
        }
        let lane = if self.outstanding() > 0 {
            match self.lane_behind_others(run, asked) {
                Some(lane) => Some(lane),
                None => return Err((0, Progress::Waiting)),
            }
        } else {
            if self.has_outlived_the_server() {
                return Err((0, Progress::Stop(Next::Close(ClientClose::ServerChanged))));
            }
            self.best_lane(run, || replies == 1 && asked.only_reads())
        };
        match lane {
            Some(lane) if lane.is_full() => {
                lane.await_room(Rc::clone(self) as Rc<dyn Receiver>);
                Err((0, Progress::Waiting))
            }
            Some(lane) => {
                run.lane = Some(lane);
                Ok(())
            }
            None => {
                self.count(asked);
                let muted = run.nature.muted && self.session.borrow_mut().mutes_this();
                let remembered = self.remembers_this(asked);
                if replies > 1 {
                    // A whole transaction, which CLIENT CACHING was about; MULTI alone would leave its mark for what follows.
                    self.session.borrow_mut().ends_mark();
                }
                let taken = PendingCommand {
                    request: self.taken(run, frames),
                    route: Route::Lane,
                    muted,
                    may_invent: asked.may_invent(),
                    replies,
                    counts,
                    remembered,
                };
                Err((frames.len(), Progress::Stop(Next::Slow(Box::new(taken)))))
            }
        }
    }

    /// The lane on which replies are outstanding, if what follows may go there as well. Order: with replies outstanding on a
    /// lane that is leaving, what follows waits for them. So does a write behind reads on a lane that reads have taken to, since
    /// writes are held on another, and everything while the proxy is paused.
    fn lane_behind_others(&self, run: &mut Batch, asked: &Asked) -> Option<Rc<Lane>> {
        let may_go = |lane: &Rc<Lane>| {
            lane.is_usable() && !self.context.pool.shared.pause.is_on() && !self.is_kept_apart(lane, asked)
        };
        let lane = self.last_lane().filter(may_go)?;
        run.group_is_held = self.known_group().is_some_and(|group| group.is_held());
        Some(lane)
    }

    /// The best lane of the client's group, if one takes commands.
    fn best_lane(&self, run: &mut Batch, only_reads: impl FnOnce() -> bool) -> Option<Rc<Lane>> {
        let group = self.current_group()?;
        if let Some(lane) = self.lane_it_hears(&group) {
            return Some(lane);
        }
        let now = Instant::now();
        let choice = match self.routing() {
            None => self.context.pool.lane(&group, only_reads, now),
            Some(_) => self.pool().lane(&group, only_reads, now),
        };
        run.group_is_held = group.is_held();
        match choice {
            Some(Choice::Lane(lane)) => Some(lane),
            Some(Choice::Wait) | None => None,
        }
    }

    /// `frames` for the slow path.
    pub(super) fn taken(&self, run: &mut Batch, frames: &[u8]) -> Bytes {
        self.long_part(run, frames).unwrap_or_else(|| self.copied(frames))
    }

    /// `part` of the run's source, if it is so long that it should not be copied.
    pub(super) fn long_part(&self, run: &mut Batch, part: &[u8]) -> Option<Bytes> {
        let source = run.source.as_mut().filter(|_| part.len() >= LONG)?;
        if !source.is_charged {
            source.input = None;
            source.bytes = self.kept(source.bytes.clone());
            source.is_charged = true;
        }
        Some(source.bytes.slice_ref(part))
    }

    /// Whether a command that is no read must not go over `lane`, because writes are held on another.
    fn is_kept_apart(&self, lane: &Lane, asked: &Asked) -> bool {
        let Some(group) = self.known_group().filter(|group| group.is_held()) else { return false };
        !group.holds(lane, Instant::now()) && !asked.only_reads()
    }
}
