//! The fast path: read, find frames, append to the lane. No await, no allocation, no task switch per command.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::pending::PendingCommand;
use crate::command::{Asked, Class, classify};
use crate::downstream::client::{Begun, Client, Kept, Routing};
use crate::downstream::context::Stage;
use crate::pool::{Charge, Choice, LONG, Lane, Nature, Receiver, SLICE, Sample, go_on_later};
use crate::resp::{
    Form, Request, RequestError, RequestFrame, RequestLimits, RequestScanner, RequestStep, give_buffer,
    normalise,
};
use crate::session::answers::{After, ends_the_session, is_silent_mode};
use crate::session::{ReplyMode, Route, find_block};
use crate::telemetry::ClientClose;

/// Why the fast path stops.
#[derive(Debug)]
pub(in crate::downstream) enum Next {
    /// A command needs more than a lane that is there. Boxed: the task of every client has room for one.
    Slow(Box<PendingCommand>),
    /// It has announced more than the server took when it was last asked ([`Client::ask_for_limit`]).
    AskForLimit,
    /// A subscriber has closed its side, and what was published before may not have come.
    CatchUp,
    /// It asks for keys by prefix, and no lane tells it of them.
    AskForPrefixes,
    /// In a cluster, commands did not run where they were sent: they are to be sent again.
    Mend,
    /// It is a subscriber that may go to the process that takes over.
    Depart,
    /// Another worker goes on with it.
    Moved,
    /// The client is to be closed.
    Close(ClientClose),
}

/// How far the input could be run.
pub(in crate::downstream) enum Progress {
    /// More bytes are needed; at least this many of the command that has begun.
    Hungry(usize),
    /// Something else must happen first, and will wake us: replies, or room in the lane.
    Waiting,
    /// Others are to be served first.
    Later,
    /// See [`Next`].
    Stop(Next),
}

/// Commands found one behind the other that go over the lane in one append.
#[derive(Default)]
pub(in crate::downstream) struct Batch {
    pub(in crate::downstream) start: usize,
    pub(in crate::downstream) count: u32,
    pub(in crate::downstream) lane: Option<Rc<Lane>>,
    pub(in crate::downstream) nature: Nature,
    /// Reads and writes do not share lanes now.
    group_is_held: bool,
    /// What the commands are parts of, where it need not be copied.
    source: Option<Source>,
}

/// A frame, and where it stands in what was read.
pub(super) struct Framed<'a> {
    pub(super) data: &'a [u8],
    pub(super) at: usize,
    pub(super) shape: &'a RequestFrame,
}

impl<'a> Framed<'a> {
    pub(super) fn frame(&self) -> &'a [u8] {
        self.data.get(self.at..self.at + self.shape.len).unwrap_or_default()
    }

    /// What was read before it.
    pub(super) fn before(&self) -> &'a [u8] {
        self.data.get(..self.at).unwrap_or_default()
    }

    pub(super) fn onwards(&self) -> &'a [u8] {
        self.data.get(self.at..).unwrap_or_default()
    }
}

/// A buffer that whole commands are parts of.
struct Source {
    bytes: Bytes,
    /// It counts until the last part of it is gone: each of them keeps all of it.
    is_charged: bool,
    /// As what it counts until then.
    input: Option<Charge>,
}

/// Of so many commands of a lane one chooses the batch whose time is measured: a measured one takes some 400 instructions more.
const MEASURED: u64 = 256;

impl Client {
    /// Runs the client until it needs the slow path or closes.
    pub(in crate::downstream) fn poll_fast(self: &Rc<Self>, cx: &mut Context<'_>) -> Poll<Next> {
        self.is_polled(cx);
        self.context.slice.set(None);
        loop {
            let flushed = self.poll_flush(cx).is_ready();
            if let Some(reason) = self.close_reason() {
                return Poll::Ready(Next::Close(reason));
            }
            if self.has_to_mend() {
                return Poll::Ready(Next::Mend);
            }
            let mut need = 0;
            if !self.is_backpressured() {
                match self.run_buffered() {
                    Progress::Stop(step) => return Poll::Ready(step),
                    Progress::Waiting => return Poll::Pending,
                    Progress::Later => {
                        go_on_later(cx);
                        return Poll::Pending;
                    }
                    Progress::Hungry(missing) => need = missing,
                }
            }
            if self.is_untold.get() && self.outstanding() == 0 {
                return Poll::Ready(Next::AskForPrefixes);
            }
            if self.inbound().is_at_end() {
                if self.outstanding() == 0 && flushed {
                    if self.may_hear_more() {
                        return Poll::Ready(Next::CatchUp);
                    }
                    return Poll::Ready(Next::Close(self.mark_departed(ClientClose::ClientEof)));
                }
                return Poll::Pending;
            }
            if self.is_held_back() {
                return Poll::Pending;
            }
            let has_multi = self.routing().is_some_and(Routing::has_multi);
            if self.context.moves_clients.get() && self.outstanding() == 0 && flushed && !has_multi {
                if self.moves() {
                    return Poll::Ready(Next::Close(ClientClose::TakenOver));
                }
                if self.context.stage.get() == Stage::Leaving && self.is_to_be_announced() {
                    return Poll::Ready(Next::Depart);
                }
                if self.changes_worker() {
                    return Poll::Ready(Next::Moved);
                }
            }
            if self.context.is_stopping() {
                // What had arrived before is still read once and answered; a client that pipelines without a pause
                // would never be done otherwise. The drain wakes us.
                if self.outstanding() > 0 || !flushed {
                    return Poll::Pending;
                }
                if self.inbound().was_last_read() {
                    return Poll::Ready(Next::Close(ClientClose::Shutdown));
                }
            }
            match self.poll_read_and_run(cx, need) {
                Poll::Pending => {
                    self.shrink();
                    return Poll::Pending;
                }
                Poll::Ready(Progress::Stop(step)) => return Poll::Ready(step),
                Poll::Ready(Progress::Hungry(_) | Progress::Waiting) if !self.has_read_for_long() => {}
                Poll::Ready(Progress::Hungry(_) | Progress::Waiting | Progress::Later) => {
                    go_on_later(cx);
                    return Poll::Pending;
                }
            }
        }
    }

    /// Whether it has been served for long without a pause. Known from the times of its reads, so that one that sends a
    /// command now and then costs no look at the clock.
    fn has_read_for_long(&self) -> bool {
        let (now, slice) = (self.inbound().last_input(), &self.context.slice);
        match slice.get() {
            Some(begun) => now.saturating_duration_since(begun) > SLICE,
            None => {
                slice.set(Some(now));
                false
            }
        }
    }

    /// Whether commands that are answered here, each with a write of its own, have taken long.
    fn has_answered_for_long(&self) -> bool {
        let slice = &self.context.slice;
        match slice.get() {
            Some(begun) => begun.elapsed() > SLICE,
            None => {
                slice.set(Some(Instant::now()));
                false
            }
        }
    }

    /// Reads once and runs what came: straight from the worker's scratch buffer, unless a command has begun before.
    fn poll_read_and_run(self: &Rc<Self>, cx: &mut Context<'_>, need: usize) -> Poll<Progress> {
        if !self.inbound().is_empty() {
            return self.poll_read_behind(cx, need).map(|()| Progress::Hungry(0));
        }
        let mut scratch = self.context.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        let Poll::Ready(result) = self.poll_read(cx, &mut buffer) else { return Poll::Pending };
        if let Err(reason) = result {
            return Poll::Ready(Progress::Stop(Next::Close(reason)));
        }
        let data = buffer.filled();
        let mut scanner = RequestScanner::default();
        let (used, ran) = self.consume(data, &mut scanner, None);
        self.keep(&data[used..], scanner);
        Poll::Ready(ran)
    }

    /// Runs what is buffered: whole frames that waited for their turn.
    fn run_buffered(self: &Rc<Self>) -> Progress {
        let Some(mut begun) = self.take_begun() else { return Progress::Hungry(0) };
        let Begun { buffer, scanner, .. } = &mut *begun;
        let ran = if buffer.len() < LONG {
            let (used, ran) = self.consume(buffer, scanner, None);
            buffer.advance(used);
            ran
        } else {
            // What is not whole yet stays where it lies.
            let before = scanner.clone();
            match scanner.step(buffer, &self.limits()) {
                Ok(RequestStep::Incomplete { need }) => Progress::Hungry(need),
                Ok(_) | Err(_) => {
                    *scanner = before;
                    self.consume_long(&mut begun)
                }
            }
        };
        self.put_back(begun);
        ran
    }

    /// Runs the whole frames of a long buffer; long ones among them are not copied.
    fn consume_long(self: &Rc<Self>, begun: &mut Begun) -> Progress {
        let data = std::mem::take(&mut begun.buffer).freeze();
        let charge = std::mem::replace(&mut begun.charge, self.charge());
        let source = Source { bytes: data.clone(), is_charged: false, input: Some(charge) };
        let (used, ran) = self.consume(&data, &mut begun.scanner, Some(source));
        // The rest must not keep all of it, where that is on its way, or long and done with.
        begun.buffer = match data.try_into_mut() {
            Ok(mut data) if used < data.len() / 2 => {
                data.advance(used);
                data
            }
            Ok(data) => {
                let rest = BytesMut::from(&data[used..]);
                give_buffer(data);
                rest
            }
            Err(data) => BytesMut::from(&data[used..]),
        };
        ran
    }

    pub(in crate::downstream) fn limits(&self) -> RequestLimits {
        RequestLimits {
            max_bulk: self.context.pool.shared.max_bulk.load(Ordering::Relaxed),
            max_request: self.context.options.get().request_limit,
            max_arguments: self.context.server.max_arguments(),
            authenticated: self.session.borrow().user.is_some(),
        }
    }

    /// Runs the whole frames of `data`; returns how many bytes are done with.
    fn consume(
        self: &Rc<Self>,
        data: &[u8],
        scanner: &mut RequestScanner,
        source: Option<Source>,
    ) -> (usize, Progress) {
        let mut run = Batch { source, ..Batch::default() };
        let routing = self.routing();
        let mut at = 0;
        let ran = loop {
            if at == data.len() {
                break Progress::Hungry(0);
            }
            if self.outstanding() as usize + run.count as usize >= self.context.options.get().pipeline_limit {
                break Progress::Waiting;
            }
            match scanner.step(&data[at..], &self.limits()) {
                Ok(RequestStep::Incomplete { need }) => break Progress::Hungry(need),
                Ok(RequestStep::Nothing { len }) => {
                    self.push(&mut run, &data[..at]);
                    at += len;
                    run.start = at;
                }
                Ok(RequestStep::Request(shape)) => {
                    let frame = &data[at..at + shape.len];
                    let taken = if shape.form == Form::Canonical {
                        match routing {
                            None => self.accept_frame(frame, &shape, &mut run, data, at),
                            Some(routing) => {
                                self.accept_for_nodes(routing, &Framed { data, at, shape: &shape }, &mut run)
                            }
                        }
                    } else {
                        self.accept_noncanonical(frame, &shape, &mut run, data, at)
                    };
                    match taken {
                        Ok(len) => at += len,
                        Err((len, ran)) => {
                            at += len;
                            run.start = run.start.max(at);
                            break ran;
                        }
                    }
                }
                Err(error) => {
                    self.push(&mut run, &data[..at]);
                    run.start = at;
                    // It may have to wait for its turn: then the frame is judged again from its beginning.
                    *scanner = RequestScanner::default();
                    break self.broken(&error);
                }
            }
        };
        self.push(&mut run, &data[..at]);
        (at, ran)
    }

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

    /// Takes one canonical frame. `Ok`: it is done with, this many bytes. `Err`: stop, after this many bytes.
    fn accept_frame(
        self: &Rc<Self>,
        frame: &[u8],
        shape: &RequestFrame,
        run: &mut Batch,
        data: &[u8],
        at: usize,
    ) -> Result<usize, (usize, Progress)> {
        let request = Request::new(frame, shape);
        let asked = classify(&request);
        let (route, mode, tracks) = {
            let session = self.session.borrow();
            let tracks = session.tracking.is_some();
            (session.route(&asked, &request, self.policy()), session.replies, tracks)
        };
        let muted = mode != ReplyMode::On;
        if run.nature.muted != muted {
            self.push(run, &data[..at]);
            run.nature.muted = muted;
        }
        match route {
            Route::Lane
                if !muted && asked.class == Class::Publish && !self.context.pubsub.audience().is_empty() =>
            {
                self.push(run, &data[..at]);
                self.accept_counted(frame, 1, &asked, run)?;
                run.start = at + frame.len();
                Ok(frame.len())
            }
            Route::Lane
                if tracks
                    && !muted
                    && self.accept_own_write(frame, (&asked, &request), run, &data[..at])? =>
            {
                self.session.borrow_mut().has_taken(&asked);
                run.start = at + frame.len();
                Ok(frame.len())
            }
            Route::Lane => {
                if run.group_is_held && run.count > 0 && !asked.only_reads() {
                    self.push(run, &data[..at]);
                    run.lane = None;
                }
                self.lane_for(run, &asked, frame, (1, false))?;
                self.count(&asked);
                if tracks {
                    self.note_reads(run, &asked, &request);
                }
                run.count += 1;
                run.nature.may_invent |= asked.may_invent();
                if muted {
                    let _ = self.session.borrow_mut().mutes_this();
                }
                Ok(frame.len())
            }
            // Behind SKIP only MULTI's own reply is dropped, and one append has one mode.
            Route::Transaction if mode != ReplyMode::SkipNext => {
                match find_block(&data[at..], &self.limits(), self.policy()) {
                    Some(block) if !muted && block.counts && !self.context.pubsub.audience().is_empty() => {
                        self.push(run, &data[..at]);
                        if block.scripts {
                            self.uses_scripts();
                        }
                        let frames = &data[at..at + block.len];
                        self.accept_counted(frames, block.commands, &asked, run)?;
                        run.start = at + block.len;
                        Ok(block.len)
                    }
                    Some(block) => {
                        if block.scripts {
                            self.uses_scripts();
                        }
                        self.push(run, &data[..at]);
                        let frames = &data[at..at + block.len];
                        self.lane_for(run, &asked, frames, (block.commands, false))?;
                        self.count(&asked);
                        if let Some(lane) = run.lane.take() {
                            if tracks {
                                self.note_block(&lane, frames, block.commands);
                            }
                            let nature = Nature { muted, may_invent: false, is_block: true };
                            match self.long_part(run, frames) {
                                None => self.push_on(&lane, frames, block.commands, nature),
                                Some(long) => self.push_long_on(&lane, long, block.commands, nature),
                            }
                        }
                        run.start = at + block.len;
                        Ok(block.len)
                    }
                    None => self.defer(frame, &request, asked, route, run, &data[..at]),
                }
            }
            Route::Local(Class::ClientReply) if is_silent_mode(&request) => {
                self.push(run, &data[..at]);
                self.count(&asked);
                let _ = self.answer_locally(Class::ClientReply, &request);
                run.start = at + frame.len();
                Ok(frame.len())
            }
            route => self.defer(frame, &request, asked, route, run, &data[..at]),
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
            // Order: with replies outstanding on a lane that is leaving, what follows waits for them. So does a write behind
            // reads on a lane that reads have taken to, since writes are held on another, and everything while the proxy is paused.
            let may_go = |lane: &Rc<Lane>| {
                lane.is_usable()
                    && !self.context.pool.shared.pause.is_on()
                    && !self.is_kept_apart(lane, asked)
            };
            match self.last_lane().filter(may_go) {
                Some(lane) => {
                    run.group_is_held = self.known_group().is_some_and(|group| group.is_held());
                    Some(lane)
                }
                None => return Err((0, Progress::Waiting)),
            }
        } else {
            if self.has_outlived_the_server() {
                return Err((0, Progress::Stop(Next::Close(ClientClose::ServerChanged))));
            }
            let routing = self.routing();
            let choice = self.current_group().and_then(|group| {
                if let Some(lane) = self.lane_it_hears(&group) {
                    return Some(Choice::Lane(lane));
                }
                let only_reads = || replies == 1 && asked.only_reads();
                let now = Instant::now();
                let choice = match routing {
                    None => self.context.pool.lane(&group, only_reads, now),
                    Some(_) => self.pool().lane(&group, only_reads, now),
                };
                run.group_is_held = group.is_held();
                choice
            });
            match choice {
                Some(Choice::Lane(lane)) => Some(lane),
                Some(Choice::Wait) | None => None,
            }
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
                let taken = PendingCommand {
                    request: self.taken(run, frames),
                    route: Route::Lane,
                    muted,
                    may_invent: asked.may_invent(),
                    replies,
                    counts,
                    remembered: self.remembers_this(asked),
                };
                Err((frames.len(), Progress::Stop(Next::Slow(Box::new(taken)))))
            }
        }
    }

    /// `frames` for the slow path.
    fn taken(&self, run: &mut Batch, frames: &[u8]) -> Bytes {
        self.long_part(run, frames).unwrap_or_else(|| self.copied(frames))
    }

    /// `part` of the run's source, if it is so long that it should not be copied.
    fn long_part(&self, run: &mut Batch, part: &[u8]) -> Option<Bytes> {
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

    /// Takes a frame that does not simply go over the lane. All earlier replies must be out first.
    pub(super) fn defer(
        self: &Rc<Self>,
        frame: &[u8],
        request: &Request<'_>,
        asked: Asked,
        route: Route,
        run: &mut Batch,
        before: &[u8],
    ) -> Result<usize, (usize, Progress)> {
        self.push(run, before);
        if self.outstanding() > 0 {
            return Err((0, Progress::Waiting));
        }
        self.count(&asked);
        run.start = before.len() + frame.len();
        match route {
            Route::Local(Class::Quit | Class::Reset | Class::Ping)
                if self.subscriber.borrow().is_some() || self.hears_invalidations() =>
            {
                let request = self.taken(run, frame);
                let taken = PendingCommand {
                    request,
                    route,
                    muted: false,
                    may_invent: true,
                    replies: 1,
                    counts: false,
                    remembered: false,
                };
                Err((frame.len(), Progress::Stop(Next::Slow(Box::new(taken)))))
            }
            Route::Local(class) => {
                let _ = self.remembers_this(&asked);
                let after = self.answer_locally(class, request);
                match after {
                    After::Continue if self.has_answered_for_long() => Err((frame.len(), Progress::Later)),
                    After::Continue => Ok(frame.len()),
                    After::Close => Err((frame.len(), Progress::Stop(Next::Close(ClientClose::Quit)))),
                }
            }
            Route::Refuse(text) => {
                let _ = self.remembers_this(&asked);
                let muted = self.session.borrow_mut().mutes_this();
                self.error(&text, muted);
                if ends_the_session(&text) {
                    return Err((frame.len(), Progress::Stop(Next::Close(ClientClose::StateRefused))));
                }
                if self.has_answered_for_long() {
                    return Err((frame.len(), Progress::Later));
                }
                Ok(frame.len())
            }
            route => {
                let muted = self.session.borrow_mut().mutes_this();
                let request = self.taken(run, frame);
                let remembered = self.remembers_this(&asked);
                let taken = PendingCommand {
                    request,
                    route,
                    muted,
                    may_invent: true,
                    replies: 1,
                    counts: false,
                    remembered,
                };
                Err((frame.len(), Progress::Stop(Next::Slow(Box::new(taken)))))
            }
        }
    }

    /// Answers from the session, as CLIENT REPLY has it.
    pub(in crate::downstream) fn answer_locally(
        self: &Rc<Self>,
        class: Class,
        request: &Request<'_>,
    ) -> After {
        let muted = self.session.borrow_mut().mutes_answer(class);
        self.answer(class, request, muted)
    }

    /// Answers from the session; RESET and READONLY may change the lane's key.
    pub(in crate::downstream) fn answer(
        self: &Rc<Self>,
        class: Class,
        request: &Request<'_>,
        muted: bool,
    ) -> After {
        let mut out = BytesMut::new();
        let after = self.session.borrow_mut().answer(class, request, &mut out);
        if class == Class::Reset {
            self.leave_subscriptions();
            self.become_user(self.anonymous());
        }
        if matches!(class, Class::ReadOnly | Class::ReadWrite) {
            self.leave_group();
        }
        if !muted {
            self.send_own(&out);
        }
        after
    }

    /// Takes a request that is not canonical: written anew, so that nothing odd ever enters a lane.
    fn accept_noncanonical(
        self: &Rc<Self>,
        frame: &[u8],
        shape: &RequestFrame,
        run: &mut Batch,
        data: &[u8],
        at: usize,
    ) -> Result<usize, (usize, Progress)> {
        self.push(run, &data[..at]);
        let mut canonical = BytesMut::new();
        let done = frame.len();
        match normalise(frame, shape, &mut canonical) {
            Ok(None) => {
                run.start = at + done;
                Ok(done)
            }
            Err(error) => match self.broken(&error) {
                Progress::Waiting => Err((0, Progress::Waiting)),
                stop => Err((done, stop)),
            },
            Ok(Some(shape)) => {
                let canonical = canonical.freeze();
                let source = (canonical.len() >= LONG).then(|| Source {
                    bytes: canonical.clone(),
                    is_charged: false,
                    input: None,
                });
                let mut own = Batch { source, ..Batch::default() };
                let result = match self.routing() {
                    None => self.accept_frame(&canonical, &shape, &mut own, &canonical, 0),
                    Some(routing) => {
                        let framed = Framed { data: &canonical, at: 0, shape: &shape };
                        self.accept_for_nodes(routing, &framed, &mut own)
                    }
                };
                if result.is_ok() {
                    self.push(&mut own, &canonical);
                }
                run.start = at + done;
                match result {
                    Ok(_) => Ok(done),
                    Err((0, ran)) => Err((0, ran)),
                    Err((_, ran)) => Err((done, ran)),
                }
            }
        }
    }

    /// A protocol error: one reply in Redis's words, after all earlier ones and unless CLIENT REPLY keeps it back, then the
    /// end.
    fn broken(&self, error: &RequestError) -> Progress {
        if self.outstanding() > 0 {
            return Progress::Waiting;
        }
        if self.may_have_been_raised(error) {
            return Progress::Stop(Next::AskForLimit);
        }
        match error.reply() {
            Some(text) => {
                if !self.session.borrow_mut().mutes_this() {
                    self.send_own(text.as_bytes());
                }
                let reason = if matches!(error, RequestError::Tls) {
                    ClientClose::TlsOnPlain
                } else {
                    ClientClose::ProtocolError
                };
                Progress::Stop(Next::Close(reason))
            }
            None if matches!(error, RequestError::Http) => Progress::Stop(Next::Close(ClientClose::Http)),
            None => Progress::Stop(Next::Close(ClientClose::RequestLimit)),
        }
    }
}
