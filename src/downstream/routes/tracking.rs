//! Client-side caching: CLIENT TRACKING, what a tracking client reads, and what it is to forget.
//!
//! The server tracks for lanes, and a lane's table says who read which key over it (`src/pool/tracker.rs`). What a client
//! reads over any other connection is not tracked there, so it is told to forget it again right behind the reply.

use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::batch::Batch;
use super::pending::PendingCommand;
use super::progress::Progress;
use crate::command::{Aftermath, Asked, classify};
use crate::downstream::client::Client;
use crate::pool::{Group, Lane, LaneKey, News, Reader, Receiver, Tracked, Unavailable};
use crate::resp::{self, Protocol, Request, RequestLimits, RequestScanner, RequestStep, encode};
use crate::session::{Pin, Reads, Tracking, tracking};
use crate::telemetry::ClientClose;

/// How CLIENT TRACKING is carried out.
pub(in crate::downstream) enum How {
    /// It is answered.
    Done,
    /// On a connection of the client's own.
    Alone,
}

/// Whether CLIENT TRACKING is no matter of a connection of the client's own, where that would be needed to be told over it.
fn stays_on_lanes(
    now: Option<&Tracking>,
    next: &Result<Option<Tracking>, String>,
    names_a_client: bool,
) -> bool {
    let was_redirected = now.is_some_and(|now| now.redirect.is_some());
    match next {
        Ok(Some(next)) => next.redirect.is_some(),
        Ok(None) => was_redirected,
        Err(_) => was_redirected || names_a_client,
    }
}

/// What the server is to track on the lanes of a client that hears of changes.
fn needed(tracking: &Tracking) -> Tracked {
    match (&tracking.prefixes, tracking.redirect) {
        (None, None) => Tracked::Reads,
        (Some(_), None) => Tracked::Prefixes,
        (None, Some(_)) => Tracked::RedirectedReads,
        (Some(_), Some(_)) => Tracked::RedirectedPrefixes,
    }
}

impl Reader for Client {
    fn id(&self) -> u64 {
        self.id()
    }

    fn hears(&self, news: &News) {
        if self.hears_invalidations() {
            self.tell(news);
            if news.keys.is_none() && self.prefixes().is_some() {
                // Perhaps because the lane has ended. Nothing else may bring it back for a client that only listens.
                self.is_untold.set(true);
                self.wake();
            }
        } else if news.keys.is_none() || self.session.borrow().tracking.is_some() {
            // It speaks RESP2 for now: it is told when it hears again.
            self.has_missed.set(true);
        }
    }
}

impl Client {
    /// What the server tracks on the lanes of this client.
    pub(in crate::downstream) fn tracked(&self) -> Tracked {
        let session = self.session.borrow();
        match &session.tracking {
            Some(tracking) if session.hears_invalidations() => needed(tracking),
            Some(_) | None => Tracked::No,
        }
    }

    /// The prefixes that it has asked for.
    fn prefixes(&self) -> Option<BTreeSet<Bytes>> {
        self.session.borrow().tracking.as_ref().and_then(|tracking| tracking.prefixes.clone())
    }

    fn as_reader(self: &Rc<Self>) -> Rc<dyn Reader> {
        Rc::clone(self) as Rc<dyn Reader>
    }

    /// CLIENT TRACKING. Whether this user may use it, and whether there is such a command, is for the server to say.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream) async fn track(
        self: &Rc<Self>,
        taken: PendingCommand,
    ) -> Result<(), ClientClose> {
        if let How::Alone = self.track_on_lanes(&taken.request, taken.muted).await? {
            return self.track_alone(taken).await;
        }
        Ok(())
    }

    /// The same, on lanes that the server tracks for, as far as they carry what is asked for.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream) async fn track_on_lanes(
        self: &Rc<Self>,
        request: &Bytes,
        muted: bool,
    ) -> Result<How, ClientClose> {
        let Some(request) = Request::parse(request) else { return Err(ClientClose::ProtocolError) };
        if self.context.server.facts().is_none()
            && let Err(why) = self.exchange(&encode::one_command(&[b"PING"]), 1).await?
        {
            return self.unserved(&why, Aftermath::Closed, 1, muted).map(|()| How::Done);
        }
        self.context.server.learn_from_login();
        let now = self.session.borrow().tracking.clone();
        let inbox = match tracking::redirect_of(&request) {
            Some(id) => self.unless_gone(self.inbox_of(id)).await?,
            None => None,
        };
        let next = Tracking::after(now.as_deref(), &request, inbox.is_some());
        let is_redirected = matches!(&next, Ok(Some(next)) if next.redirect.is_some());
        let names_a_client = request.args().any(|word| word.eq_ignore_ascii_case(b"redirect"));
        if !self.context.server.policy().tracked_lanes
            && !stays_on_lanes(now.as_deref(), &next, names_a_client)
        {
            return Ok(How::Alone);
        }
        // A lane that the server is to track for is refused by itself.
        let needs_a_lane =
            matches!(next, Ok(Some(_))) && (self.protocol() == Protocol::Resp3 || is_redirected);
        if self.tracked() == Tracked::No && !needs_a_lane && !self.may_track(muted).await? {
            return Ok(How::Done);
        }
        let next = match next {
            Ok(next) => next.map(Box::new),
            Err(text) => {
                self.error(&text, muted);
                return Ok(How::Done);
            }
        };
        let prefixes = next.as_ref().and_then(|next| next.prefixes.clone());
        let tracked = next.as_deref().filter(|_| needs_a_lane).map_or(Tracked::No, needed);
        if needs_a_lane && (self.tracked() != tracked || prefixes.is_some()) {
            let Some((key, identity)) = self.lane_key() else { return Err(ClientClose::Denied) };
            let group = self.context.pool.group(LaneKey { tracked, ..key }, &identity);
            let _session = group.attach();
            let lane = match self.ready_lane(&group).await? {
                Ok(lane) => lane,
                Err(why @ Unavailable::SelectRefused(_)) => {
                    return self.unserved(&why, Aftermath::Nothing, 1, muted).map(|()| How::Done);
                }
                Err(why) => return self.unserved(&why, Aftermath::Closed, 1, muted).map(|()| How::Done),
            };
            let refusal = match &prefixes {
                Some(prefixes) => self.asks_for(prefixes, &lane).await?,
                None if is_redirected => self.asks_to_be_told(&lane).await?,
                None => None,
            };
            if let Some(refusal) = refusal {
                self.unless(muted, |client| client.send_answer(&refusal));
                return Ok(How::Done);
            }
        }
        self.leave_group();
        self.context.redirections.redirect(self.id(), inbox.filter(|_| is_redirected));
        self.session.borrow_mut().tracking = next;
        self.unless(muted, |client| client.reply(|out| encode::simple(out, "OK")));
        self.begins_to_hear();
        Ok(How::Done)
    }

    /// Whether the server lets the user use CLIENT TRACKING. If not, the client has been told.
    async fn may_track(self: &Rc<Self>, muted: bool) -> Result<bool, ClientClose> {
        let asking = encode::one_command(&[b"CLIENT", b"TRACKING", b"OFF"]);
        match self.exchange(&asking, 1).await? {
            Ok(frames) => {
                let refusal = frames.iter().find(|frame| resp::is_error(frame));
                if let Some(refusal) = refusal {
                    self.unless(muted, |client| client.send(refusal));
                }
                Ok(refusal.is_none())
            }
            Err(why) => self.unserved(&why, Aftermath::Closed, 1, muted).map(|()| false),
        }
    }

    fn unless(&self, muted: bool, say: impl FnOnce(&Self)) {
        if !muted {
            say(self);
        }
    }

    /// CLIENT TRACKING on a connection of the client's own.
    async fn track_alone(self: &Rc<Self>, taken: PendingCommand) -> Result<(), ClientClose> {
        // What the lane's server was to tell, nobody will.
        if self.hears_invalidations() {
            self.leave_group();
            self.tell(&News::of(None));
        }
        self.session.borrow_mut().tracking = None;
        self.context.redirections.redirect(self.id(), None);
        self.leased(taken, Pin::Tracking).await
    }

    /// CLIENT TRACKING is on: invalidations reach the client from now on, if it speaks RESP3.
    pub(in crate::downstream) fn begins_to_hear(self: &Rc<Self>) {
        self.has_tracked.set(true);
        let prefixes = self.prefixes();
        if prefixes.is_none() {
            self.context.pool.ends_broadcasts(self.id());
        }
        if !self.hears_invalidations() {
            return;
        }
        if let Some(lane) = self.current_group().and_then(|group| group.lane()) {
            self.listens_to(&lane);
            self.is_on(&lane, 0);
        } else if prefixes.is_some() {
            self.is_untold.set(true);
        }
    }

    /// It is told of what the server tells this lane, and what it wants to be told of by prefix is asked for. A refusal ends the
    /// lane, and so comes to [`Self::asks_for_prefixes_again`].
    fn listens_to(self: &Rc<Self>, lane: &Rc<Lane>) {
        let session = self.session.borrow();
        let Some(tracking) = &session.tracking else { return };
        let is_new = !lane.is_told(self.id());
        match &tracking.prefixes {
            None => lane.serves(|| self.as_reader()),
            Some(prefixes) if lane.is_told_by_prefix(self.id(), prefixes.len()) => {}
            Some(prefixes) => {
                let (client, joined) = (Rc::clone(self), Rc::clone(lane));
                // Until then the former lane tells.
                let then = Box::new(move |_| client.hears_only(&joined));
                if lane.broadcasts(&self.as_reader(), prefixes, then) {
                    return;
                }
            }
        }
        if is_new {
            self.hears_only(lane);
        }
    }

    /// It is told of changes by `lane` and by no other one. Between two lanes there is no order: what the former one has still to
    /// tell, of a key that is cached, would come behind replies of the new one that are newer. So what was read there is forgotten.
    fn hears_only(&self, lane: &Rc<Lane>) {
        let known = self.context.pool.lanes_read_by(self.id());
        let mut has_named_all = true;
        for other in known.iter().filter(|known| !Rc::ptr_eq(known, lane)) {
            has_named_all &= other.forgets_reader(self.id());
        }
        if !has_named_all {
            self.hears(&News::of(None));
        }
    }

    /// The lane of `group` that it is told of changes by, while it can stay there.
    pub(in crate::downstream) fn lane_it_hears(&self, group: &Group) -> Option<Rc<Lane>> {
        if !self.has_tracked.get() {
            return None;
        }
        let lane = self.last_lane().filter(|lane| lane.key() == group.key() && lane.is_told(self.id()))?;
        self.context.pool.may_stay(&lane, Instant::now()).then_some(lane)
    }

    /// Has the server tell of what is read over `lane` over another one. `Some`: its refusal.
    ///
    /// # Errors
    /// Why the client is to be closed.
    async fn asks_to_be_told(self: &Rc<Self>, lane: &Rc<Lane>) -> Result<Option<Bytes>, ClientClose> {
        let (sender, answer) = oneshot::channel();
        lane.asks_to_be_told(Box::new(move |frames| drop(sender.send(frames))));
        match self.unless_gone(answer).await? {
            Ok(Ok(frames)) => Ok(frames.into_iter().find(|frame| resp::is_error(frame))),
            Ok(Err(_)) | Err(_) => Err(ClientClose::UpstreamLost),
        }
    }

    /// Has the server tell `lane` of these prefixes. `Some`: its refusal.
    ///
    /// # Errors
    /// Why the client is to be closed.
    async fn asks_for(
        self: &Rc<Self>,
        prefixes: &BTreeSet<Bytes>,
        lane: &Rc<Lane>,
    ) -> Result<Option<Bytes>, ClientClose> {
        let (sender, answer) = oneshot::channel();
        let then = Box::new(move |frames| drop(sender.send(frames)));
        if !lane.broadcasts(&self.as_reader(), prefixes, then) {
            self.hears_only(lane);
            return Ok(None);
        }
        match self.unless_gone(answer).await? {
            Ok(Ok(frames)) => {
                let refusal = frames.into_iter().find(|frame| resp::is_error(frame));
                if refusal.is_none() {
                    self.hears_only(lane);
                }
                Ok(refusal)
            }
            Ok(Err(_)) | Err(_) => Err(ClientClose::UpstreamLost),
        }
    }

    /// A lane that told it of keys by prefix may have ended: has another one do so, also for a client that sends nothing. What
    /// has changed between the two it is told with everything else.
    ///
    /// # Errors
    /// Why the client is to be closed: there is no lane for it, or the server does not let it any more.
    pub(in crate::downstream) async fn asks_for_prefixes_again(self: &Rc<Self>) -> Result<(), ClientClose> {
        self.is_untold.set(false);
        let Some(prefixes) = self.prefixes().filter(|_| self.hears_invalidations()) else { return Ok(()) };
        let Some(group) = self.current_group() else { return Err(ClientClose::Denied) };
        let Ok(lane) = self.ready_lane(&group).await? else { return Err(ClientClose::NoUpstream) };
        let is_told = lane.is_told(self.id());
        if self.asks_for(&prefixes, &lane).await?.is_some() {
            return Err(ClientClose::StateRefused);
        }
        if !is_told {
            self.tell(&News::of(None));
        }
        Ok(())
    }

    /// Whether invalidations reach it.
    pub(in crate::downstream) fn hears_invalidations(&self) -> bool {
        self.session.borrow().hears_invalidations()
    }

    /// Returns when it has been told of every change that the server knew of before: an invalidation keeps its place among
    /// the replies of its lane.
    pub(in crate::downstream) async fn is_told_what_changed(&self) {
        if !self.has_tracked.get() {
            return;
        }
        let (ping, lanes) = (encode::one_command(&[b"PING"]), self.context.pool.lanes_read_by(self.id()));
        let asked = lanes.iter().map(Lane::telling_lane).map(|lane| {
            let (sender, answered) = oneshot::channel();
            lane.exchange(&ping, 1, Instant::now(), Box::new(move |frames| drop(sender.send(frames))));
            answered
        });
        for answered in asked.collect::<Vec<_>>() {
            // An error: the lane has ended, and its readers have been told to forget what they have read there.
            let _ = answered.await;
        }
    }

    /// It is closed: nothing of it is remembered.
    pub(in crate::downstream) fn leave_trackers(&self) {
        if self.has_tracked.get() {
            self.context.pool.forget_reader(self.id());
        }
    }

    /// Whether what the next command reads is remembered.
    pub(in crate::downstream) fn remembers_next(&self) -> bool {
        let session = self.session.borrow();
        session.hears_invalidations() && session.remembers_next()
    }

    /// Whether the client may cache what the next command reads.
    pub(in crate::downstream) fn caches_next(&self) -> bool {
        self.remembers_next() || self.tracked().is_by_prefix()
    }

    /// Whether what this command reads is remembered: asked once, when it is taken.
    pub(in crate::downstream) fn remembers_this(&self, asked: &Asked) -> bool {
        let mut session = self.session.borrow_mut();
        if session.tracking.is_none() {
            return false;
        }
        let remembered = session.remembers_next();
        session.has_taken(asked);
        remembered && session.hears_invalidations()
    }

    /// Notes what a command reads that is appended to `run` next.
    pub(in crate::downstream) fn note_reads(
        self: &Rc<Self>,
        run: &Batch,
        asked: &Asked,
        request: &Request<'_>,
    ) {
        let remembered = self.remembers_this(asked);
        if let Some(lane) = run.lane.as_ref().filter(|_| self.tracked() != Tracked::No) {
            self.listens_to(lane);
            self.reads_over(lane, asked, request, lane.carried() + u64::from(run.count), remembered);
        }
    }

    /// Notes what a whole transaction of so many commands reads that is appended to `lane` next.
    pub(in crate::downstream) fn note_block(self: &Rc<Self>, lane: &Rc<Lane>, block: &[u8], commands: u32) {
        let remembered = self.remembers_next();
        self.session.borrow_mut().ends_mark();
        if self.tracked() != Tracked::No {
            self.listens_to(lane);
            self.block_reads_over(lane, block, lane.carried() + u64::from(commands) - 1, remembered);
        }
    }

    /// `request` goes over `lane` as the command at `place`: notes what it reads, if that is `remembered`.
    pub(in crate::downstream) fn reads_over(
        self: &Rc<Self>,
        lane: &Lane,
        asked: &Asked,
        request: &Request<'_>,
        place: u64,
        remembered: bool,
    ) {
        if !remembered {
            return;
        }
        let reader = self.as_reader();
        match tracking::reads(asked, request) {
            Some(Reads::Keys(keys)) => lane.is_read(&reader, Some(&keys), place),
            Some(Reads::Unknown) => lane.is_read(&reader, None, place),
            None => {}
        }
    }

    /// The same for a whole transaction, whose last command is at `place`: what it reads comes with the reply to that.
    pub(in crate::downstream) fn block_reads_over(
        self: &Rc<Self>,
        lane: &Lane,
        block: &[u8],
        place: u64,
        remembered: bool,
    ) {
        let limits =
            RequestLimits { max_bulk: u64::MAX, max_request: usize::MAX, ..RequestLimits::default() };
        let mut scanner = RequestScanner::default();
        let mut at = 0;
        while let Some(rest) = block.get(at..).filter(|rest| !rest.is_empty())
            && let Ok(RequestStep::Request(shape)) = scanner.step(rest, &limits)
        {
            let request = Request::new(&rest[..shape.len], &shape);
            self.reads_over(lane, &classify(&request), &request, place, remembered);
            at += shape.len;
        }
    }

    /// What was taken for the slow path goes over `lane` next.
    pub(in crate::downstream) fn taken_reads_over(self: &Rc<Self>, lane: &Rc<Lane>, taken: &PendingCommand) {
        if !self.hears_invalidations() {
            return;
        }
        self.listens_to(lane);
        let place = lane.carried() + u64::from(taken.replies) - 1;
        self.block_reads_over(lane, &taken.request, place, taken.remembered);
    }

    /// Sends a write that the client need not be told of, whose reply proves it done. `Ok(false)`: it is none.
    pub(in crate::downstream) fn accept_own_write(
        self: &Rc<Self>,
        frame: &[u8],
        (asked, request): (&Asked, &Request<'_>),
        run: &mut Batch,
        before: &[u8],
    ) -> Result<bool, (usize, Progress)> {
        let is_told_of_others = {
            let session = self.session.borrow();
            let by_key = session
                .tracking
                .as_ref()
                .filter(|tracking| tracking.prefixes.is_none() && tracking.redirect.is_none());
            let no_loop = by_key.is_some_and(|tracking| tracking.no_loop);
            no_loop && session.hears_invalidations()
        };
        let Some(key) = tracking::sure_write(asked, request).filter(|_| is_told_of_others) else {
            return Ok(false);
        };
        self.push(run, before);
        self.lane_for(run, asked, frame, (1, false))?;
        let Some(lane) = run.lane.take() else { return Ok(false) };
        self.count(asked);
        self.listens_to(&lane);
        let (place, key, id) = (lane.carried(), Bytes::copy_from_slice(key), self.id());
        let over = Rc::downgrade(&lane);
        let change = move |reply: Bytes| {
            if let Some(lane) = over.upgrade().filter(|_| &reply[..] == b"+OK\r\n") {
                lane.is_written(id, key, place);
            }
            reply
        };
        let receiver = Rc::clone(self) as Rc<dyn Receiver>;
        let now = Instant::now();
        lane.push_changed(self.copied(frame), &receiver, false, now, Box::new(change));
        self.is_on(&lane, 1);
        Ok(true)
    }

    /// Tells the client to forget what it has just read over a connection that the server does not track for it.
    pub(in crate::downstream) fn invalidate_reads(&self, reads: Reads) {
        if !self.hears_invalidations() {
            return;
        }
        self.invalidate(reads);
    }

    /// Tells the client to forget these.
    pub(in crate::downstream) fn invalidate(&self, reads: Reads) {
        let keys = match (reads, self.prefixes()) {
            (Reads::Unknown, _) => None,
            (Reads::Keys(keys), None) => Some(keys),
            (Reads::Keys(mut keys), Some(prefixes)) => {
                keys.retain(|key| prefixes.iter().any(|prefix| key.starts_with(prefix)));
                if keys.is_empty() {
                    return;
                }
                Some(keys)
            }
        };
        self.tell(&News::of(keys));
    }

    /// Tells the client to forget what `request` has read, if it tracks.
    pub(in crate::downstream) fn invalidate_reads_of(&self, request: Option<&Bytes>) {
        let Some(request) = request.and_then(|request| Request::parse(request)) else { return };
        if let Some(reads) = self.reads_elsewhere(&classify(&request), &request) {
            self.invalidate_reads(reads);
        }
    }

    /// What the client, which tracks, reads with `request` over such a connection.
    pub(in crate::downstream) fn reads_elsewhere(
        &self,
        asked: &Asked,
        request: &Request<'_>,
    ) -> Option<Reads> {
        if self.hears_invalidations() { tracking::reads(asked, request) } else { None }
    }
}
