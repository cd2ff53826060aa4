//! What is done with one request: it goes over a lane, is answered here, or has to wait for the slow path.

use std::rc::Rc;

use bytes::BytesMut;

use super::batch::{Batch, Source};
use super::pending::PendingCommand;
use super::progress::{Next, Progress, Taken};
use crate::command::{Asked, Class, classify};
use crate::downstream::client::{Client, Routing};
use crate::pool::{LONG, Nature};
use crate::resp::{Request, RequestError, RequestFrame, normalise};
use crate::session::answers::{After, ends_the_session, is_silent_mode};
use crate::session::{Block, ReplyMode, Route, find_block};
use crate::telemetry::ClientClose;

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

impl Client {
    /// Takes one canonical frame of any client.
    #[inline]
    pub(super) fn accept_canonical(
        self: &Rc<Self>,
        routing: Option<&Routing>,
        framed: &Framed<'_>,
        run: &mut Batch,
    ) -> Taken {
        match routing {
            None => self.accept_frame(framed, run),
            Some(routing) => self.accept_for_nodes(routing, framed, run),
        }
    }

    /// Takes one canonical frame.
    pub(super) fn accept_frame(self: &Rc<Self>, framed: &Framed<'_>, run: &mut Batch) -> Taken {
        let frame = framed.frame();
        let request = Request::new(frame, framed.shape);
        let asked = classify(&request);
        let (route, mode, tracks) = {
            let session = self.session.borrow();
            let tracks = session.tracking.is_some();
            (session.route(&asked, &request, self.policy()), session.replies, tracks)
        };
        let muted = mode != ReplyMode::On;
        if run.nature.muted != muted {
            self.push(run, framed.before());
            run.nature.muted = muted;
        }
        match route {
            Route::Lane
                if !muted && asked.class == Class::Publish && !self.context.pubsub.audience().is_empty() =>
            {
                self.push(run, framed.before());
                self.accept_counted(frame, 1, &asked, run)?;
                run.start = framed.at + frame.len();
                Ok(frame.len())
            }
            Route::Lane
                if tracks
                    && !muted
                    && self.accept_own_write(frame, (&asked, &request), run, framed.before())? =>
            {
                self.session.borrow_mut().has_taken(&asked);
                run.start = framed.at + frame.len();
                Ok(frame.len())
            }
            Route::Lane => {
                if run.group_is_held && run.count > 0 && !asked.only_reads() {
                    self.push(run, framed.before());
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
                match find_block(framed.onwards(), &self.limits(), self.policy()) {
                    Some(block) => self.accept_block_on_lane(framed, (&block, &asked), (muted, tracks), run),
                    None => self.defer(frame, &request, asked, route, run, framed.before()),
                }
            }
            Route::Local(Class::ClientReply) if is_silent_mode(&request) => {
                Ok(self.accept_silence(framed, (&request, &asked), run))
            }
            route => self.defer(frame, &request, asked, route, run, framed.before()),
        }
    }

    /// A transaction that has arrived whole.
    fn accept_block_on_lane(
        self: &Rc<Self>,
        framed: &Framed<'_>,
        (block, asked): (&Block, &Asked),
        (muted, tracks): (bool, bool),
        run: &mut Batch,
    ) -> Taken {
        let frames = framed.onwards().get(..block.len).unwrap_or_default();
        if !muted && block.counts && !self.context.pubsub.audience().is_empty() {
            self.push(run, framed.before());
            if block.scripts {
                self.uses_scripts();
            }
            self.accept_counted(frames, block.commands, asked, run)?;
            run.start = framed.at + block.len;
            return Ok(block.len);
        }
        if block.scripts {
            self.uses_scripts();
        }
        self.push(run, framed.before());
        self.lane_for(run, asked, frames, (block.commands, false))?;
        self.count(asked);
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
        run.start = framed.at + block.len;
        Ok(block.len)
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
    ) -> Taken {
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

    /// CLIENT REPLY OFF or SKIP, which has no reply itself: what came before it is still answered.
    pub(in crate::downstream::routes) fn accept_silence(
        self: &Rc<Self>,
        framed: &Framed<'_>,
        (request, asked): (&Request<'_>, &Asked),
        run: &mut Batch,
    ) -> usize {
        self.push(run, framed.before());
        self.count(asked);
        let _ = self.answer_locally(Class::ClientReply, request);
        let len = framed.frame().len();
        run.start = framed.at + len;
        len
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
    pub(super) fn accept_noncanonical(self: &Rc<Self>, framed: &Framed<'_>, run: &mut Batch) -> Taken {
        let frame = framed.frame();
        self.push(run, framed.before());
        let mut canonical = BytesMut::new();
        let done = frame.len();
        match normalise(frame, framed.shape, &mut canonical) {
            Ok(None) => {
                run.start = framed.at + done;
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
                let canonical_frame = Framed { data: &canonical, at: 0, shape: &shape };
                let result = self.accept_canonical(self.routing(), &canonical_frame, &mut own);
                if result.is_ok() {
                    self.push(&mut own, &canonical);
                }
                run.start = framed.at + done;
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
    pub(super) fn broken(&self, error: &RequestError) -> Progress {
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
