//! Server-sent events for all who look at the page: made once for all of them, and only while there are any.
//!
//! A picture costs what `/status` and `/metrics` cost. With many clients that is more than a moment, so pictures are made
//! less often where they take longer: at most a twentieth of a processor goes into them, however many look.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::super::connections::Busy;
use super::super::view::View;
use super::history::History;
use super::picture::picture;
use super::tally::Tally;

/// At most so many look at the same time; the other connections of the port are left to probes and scrapers.
pub(in crate::admin) const VIEWERS: usize = 50;
/// A viewer that is so many events behind is dropped. Its browser comes back by itself.
const BEHIND: usize = 8;
/// How often samples are taken, and pictures made.
const PERIOD: Duration = Duration::from_secs(1);
/// A little less, so that a tick that comes early makes a picture too.
const ALMOST: Duration = Duration::from_millis(900);
/// A picture that takes this long is made once in twenty times as long.
const SHARE: u32 = 20;
/// Workers must have answered by then.
const PATIENCE: Duration = Duration::from_secs(5);
/// Seconds between two readings of the counters.
const MINUTE: u64 = 60;

/// What is shown, and to whom.
#[derive(Debug)]
pub(in crate::admin) struct Feed {
    began: Instant,
    state: RefCell<State>,
    joined: Notify,
}

#[derive(Debug)]
struct State {
    history: History,
    tally: Tally,
    viewers: Vec<mpsc::Sender<Bytes>>,
    /// The last picture as an event.
    latest: Option<Bytes>,
    /// When the next one may be made.
    due: Instant,
    /// The second up to which viewers have the samples.
    shown: Option<u64>,
}

/// The events of one viewer.
#[derive(Debug)]
pub(in crate::admin) struct Viewer {
    events: mpsc::Receiver<Bytes>,
    busy: Busy,
}

impl Body for Viewer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.events.poll_recv(cx).map(|event| event.map(|bytes| Ok(Frame::data(bytes))))
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.busy.set(false);
    }
}

impl Feed {
    /// Nothing is known and no viewer is there.
    pub(in crate::admin) fn new() -> Rc<Self> {
        let now = Instant::now();
        let state = State {
            history: History::default(),
            tally: Tally::default(),
            viewers: Vec::new(),
            latest: None,
            due: now,
            shown: None,
        };
        Rc::new(Self { began: now, state: RefCell::new(state), joined: Notify::new() })
    }

    /// One viewer more, whose connection is `busy` until it leaves. `None`: there are too many.
    pub(in crate::admin) fn join(&self, busy: Busy) -> Option<Viewer> {
        let mut state = self.state.borrow_mut();
        state.viewers.retain(|viewer| !viewer.is_closed());
        if state.viewers.len() >= VIEWERS {
            return None;
        }
        let (viewer, events) = mpsc::channel(BEHIND);
        let history = json!({ "samples": state.history.after(None) });
        // There is room for both.
        let _ = viewer.try_send(event("history", &history));
        match &state.latest {
            Some(latest) if Instant::now() < state.due => drop(viewer.try_send(latest.clone())),
            Some(_) | None => self.joined.notify_one(),
        }
        state.viewers.push(viewer);
        busy.set(true);
        Some(Viewer { events, busy })
    }

    /// Takes samples, and makes pictures for those who look. Must run on a `LocalRuntime`.
    pub(in crate::admin) async fn run<V: View>(self: Rc<Self>, view: Rc<V>) {
        let mut tick = interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut read = None;
        loop {
            tokio::select! {
                biased;
                _ = tick.tick() => self.sample(&*view),
                () = self.joined.notified() => {}
            }
            let minute = self.began.elapsed().as_secs() / MINUTE;
            if read != Some(minute) {
                read = Some(minute);
                if let Ok(text) = timeout(PATIENCE, view.metrics()).await {
                    let mut state = self.state.borrow_mut();
                    state.tally.read(&text);
                    state.tally.end_minute();
                }
            }
            if self.is_due() {
                self.show(&*view).await;
            }
        }
    }

    fn sample<V: View>(&self, view: &V) {
        let mut state = self.state.borrow_mut();
        state.history.add(self.began.elapsed().as_secs(), view.sample());
        state.viewers.retain(|viewer| !viewer.is_closed());
        if state.viewers.is_empty() {
            state.latest = None;
            state.shown = state.history.newest();
        }
    }

    fn is_due(&self) -> bool {
        let state = self.state.borrow();
        !state.viewers.is_empty() && Instant::now() >= state.due
    }

    /// Makes a picture and sends it to every viewer. One that has not read those before is dropped.
    async fn show<V: View>(&self, view: &V) {
        let began = Instant::now();
        let made = timeout(PATIENCE, async { (view.status().await, view.metrics().await) }).await;
        let mut shown = match made {
            Ok((status, metrics)) => {
                self.state.borrow_mut().tally.read(&metrics);
                picture(status)
            }
            Err(_) => json!({ "silent": true }),
        };
        let mut state = self.state.borrow_mut();
        let every = ALMOST.max(began.elapsed() * SHARE);
        state.due = began + every;
        shown["every"] = json!(every.as_secs_f32());
        shown["uptime"] = json!(self.began.elapsed().as_secs());
        shown["viewers"] = json!(state.viewers.len());
        shown["counters"] = state.tally.rows();
        shown["samples"] = state.history.after(state.shown);
        state.shown = state.history.newest();
        let bytes = event("picture", &shown);
        state.viewers.retain(|viewer| viewer.try_send(bytes.clone()).is_ok());
        state.latest = Some(bytes);
    }
}

/// A server-sent event. JSON without line ends, as it is written here, is one line.
fn event(name: &str, data: &Value) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}
