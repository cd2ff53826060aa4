//! The clients of a simulation: each a program that a seed has written, which knows what it may be answered.

mod caching;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::downstream::{Incoming, Workers};
use crate::resp::{self, ReplyKind, ReplyScanner, encode};
use crate::session::Endpoint;
use crate::upstream::simulated::{End, Network};

/// Whoever waits longer for a reply waits for ever: longer than all time-outs in a row, and than the longest fault.
const NEVER: Duration = Duration::from_secs(200);
/// Keys of lists.
pub(super) const QUEUES: [&str; 3] = ["queue:0", "queue:1", "queue:2"];
const CHANNELS: [&str; 2] = ["news:0", "news:1"];

/// What all clients of a run tell.
#[derive(Default)]
pub(super) struct Told {
    /// What must not have happened.
    pub(super) wrong: RefCell<Vec<String>>,
    /// Elements with the clients that got them.
    pub(super) received: RefCell<BTreeMap<Bytes, Vec<usize>>>,
    /// Elements whose RPUSH was answered with a number.
    pub(super) pushed: RefCell<Vec<Bytes>>,
    /// Replies that were what was asked for.
    pub(super) answered: Cell<u64>,
    /// Replies that were errors.
    pub(super) refused: Cell<u64>,
    /// Connections that ended before their client's program.
    pub(super) cut: Cell<u64>,
    pub(super) messages: Cell<u64>,
    /// Messages whose PUBLISH has no reply, or was lost: they may be published later than those that followed them.
    pub(super) unconfirmed: RefCell<BTreeSet<String>>,
    /// Messages that came behind a later one of their publisher, each with the client that got it.
    pub(super) late: RefCell<Vec<(usize, String)>>,
    /// Consumers that have left while they waited.
    pub(super) deserted: Cell<u64>,
}

/// What a reply has to be, where it is no error.
enum Due {
    /// This frame.
    Exactly(Vec<u8>),
    /// One of these.
    OneOf(Vec<Vec<u8>>),
    /// EXEC's reply: these members, or nothing, where a WATCH has seen a change.
    Members(Vec<Vec<u8>>, bool),
    /// A number: an element is in its list.
    Pushed(Bytes),
    /// An element of one of the lists, or nothing.
    Popped,
}

/// A client.
pub(super) struct Client {
    pub(super) number: usize,
    random: fastrand::Rng,
    network: Network,
    workers: Workers,
    told: Rc<Told>,
    /// Clients that leave when it suits them.
    rude: bool,
    end: Instant,
    marks: u64,
    resp3: bool,
    /// What its own key may hold.
    own: Vec<Option<String>>,
}

struct Wire {
    end: End,
    scanner: ReplyScanner,
    partial: BytesMut,
    chunk: BytesMut,
}

/// The connection is over.
struct Over;

impl Wire {
    /// The next whole frame.
    async fn frame(&mut self) -> Result<(ReplyKind, Bytes), Over> {
        loop {
            while !self.chunk.is_empty() {
                let step = self.scanner.step(&self.chunk).expect("the proxy sends replies");
                self.partial.extend_from_slice(&self.chunk.split_to(step.consumed));
                if let Some(kind) = step.complete {
                    return Ok((kind, self.partial.split().freeze()));
                }
            }
            match self.end.read_buf(&mut self.chunk).await {
                Ok(0) | Err(_) => return Err(Over),
                Ok(_) => {}
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Over> {
        self.end.write_all(bytes).await.map_err(|_| Over)
    }
}

impl Client {
    pub(super) fn new(
        number: usize,
        seed: u64,
        network: &Network,
        workers: &Workers,
        told: &Rc<Told>,
        rude: bool,
        end: Instant,
    ) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let resp3 = random.u8(..4) == 0;
        Self {
            number,
            random,
            network: network.clone(),
            workers: workers.clone(),
            told: Rc::clone(told),
            rude,
            end,
            marks: 0,
            resp3,
            own: vec![None],
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.usize(..bound)
    }

    fn wrong(&self, what: &str) {
        self.network.note(|| format!("WRONG: client {}: {what}", self.number));
        self.told.wrong.borrow_mut().push(format!("client {}: {what}", self.number));
    }

    /// Connects, again after each end, until the time is over.
    pub(super) async fn run(mut self) {
        let part = self.below(10);
        while Instant::now() < self.end {
            self.rest(30).await;
            let Some(mut wire) = self.connect().await else { return };
            let ended = match part {
                0..=2 => self.ask(&mut wire).await,
                3 | 4 => self.consume(&mut wire).await,
                5 => self.produce(&mut wire).await,
                6 => self.listen(&mut wire).await,
                7 | 8 => self.cache(&mut wire).await,
                _ => self.publish(&mut wire).await,
            };
            if ended.is_err() {
                self.told.cut.set(self.told.cut.get() + 1);
            }
            self.network.note(|| format!("c{} leaves", self.number));
            if self.rude && self.below(3) == 0 {
                wire.end.reset_on_drop();
            }
            drop(wire);
            // Whoever is refused does not try again at once.
            self.rest(200).await;
        }
    }

    async fn rest(&mut self, most: u64) {
        let time = self.random.u64(..=most);
        tokio::time::sleep(Duration::from_millis(time)).await;
    }

    async fn connect(&mut self) -> Option<Wire> {
        let (ours, theirs) = self.network.pair(self.number);
        let peer = Endpoint::Tcp(([10, 0, 0, 1], u16::try_from(1024 + self.number).unwrap_or(1)).into());
        self.workers.admit(Incoming::Simulated(theirs), peer, true).await;
        let (scanner, partial, chunk) = (ReplyScanner::default(), BytesMut::new(), BytesMut::new());
        let mut wire = Wire { end: ours, scanner, partial, chunk };
        if self.resp3 {
            wire.write(&encode::one_command(&[b"HELLO", b"3"])).await.ok()?;
            let _ = self.reply(&mut wire, NEVER, "HELLO 3").await;
        }
        Some(wire)
    }

    /// The next reply, within `limit`.
    async fn reply(&mut self, wire: &mut Wire, limit: Duration, what: &str) -> Result<Bytes, Over> {
        match tokio::time::timeout(limit, wire.frame()).await {
            Ok(Ok((_, frame))) => {
                self.network.note(|| format!("c{} {} bytes for {what}", self.number, frame.len()));
                Ok(frame)
            }
            Ok(Err(over)) => {
                self.network.note(|| format!("c{} is cut at {what}", self.number));
                Err(over)
            }
            Err(_) => {
                self.wrong(&format!("no reply to {what} for {limit:?}"));
                Err(Over)
            }
        }
    }

    fn mark(&mut self) -> String {
        self.marks += 1;
        format!("mark:{}:{}", self.number, self.marks)
    }

    /// Pipelines of commands whose replies are known.
    async fn ask(&mut self, wire: &mut Wire) -> Result<(), Over> {
        let own = format!("own:{}", self.number);
        while Instant::now() < self.end {
            let mut out = BytesMut::new();
            let mut due = VecDeque::new();
            for _ in 0..1 + self.below(6) {
                self.one(&own, &mut out, &mut due);
            }
            if self.random.u8(..4) == 0 {
                // In pieces, with pauses between them.
                let cut = self.below(out.len());
                let rest = out.split_off(cut);
                wire.write(&out).await?;
                self.rest(5).await;
                out = rest;
            }
            wire.write(&out).await?;
            if self.rude {
                match self.below(24) {
                    0 => return Ok(()),
                    1 => wire.end.end_writing(),
                    // It reads nothing for a while.
                    2 => self.rest(3_000).await,
                    _ => {} // it goes on
                }
            }
            while let Some((what, expected)) = due.pop_front() {
                let frame = self.reply(wire, NEVER, &what).await?;
                self.judge(&what, &expected, &frame);
            }
            self.rest(50).await;
            if self.below(12) == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    fn one(&mut self, own: &str, out: &mut BytesMut, due: &mut VecDeque<(String, Due)>) {
        let mark = self.mark();
        let mut say = |words: &[&str], expected: Due| {
            let bytes: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            encode::command(out, &bytes);
            due.push_back((words.join(" "), expected));
        };
        let ok = || Due::Exactly(b"+OK\r\n".to_vec());
        let queued = || Due::Exactly(b"+QUEUED\r\n".to_vec());
        match self.random.usize(..12) {
            0..=2 => say(&["ECHO", &mark], Due::Exactly(bulk(&mark))),
            3 => say(&["PING", &mark], Due::Exactly(bulk(&mark))),
            4 => {
                // Long enough to be counted, now and then.
                let most = if self.random.u8(..16) == 0 { 100_000 } else { 3_000 };
                let long = format!("{mark}:{}", "x".repeat(self.random.usize(..most)));
                say(&["ECHO", &long], Due::Exactly(bulk(&long)));
            }
            5 | 6 => {
                // Each that is answered replaces the ones before; what is refused may have run or not.
                self.own.push(Some(mark.clone()));
                say(&["SET", own, &mark], ok());
            }
            7 | 8 => {
                let mut may: Vec<Vec<u8>> = self
                    .own
                    .iter()
                    .map(|value| value.as_ref().map_or_else(|| nil(self.resp3), |value| bulk(value)))
                    .collect();
                may.push(nil(self.resp3));
                say(&["GET", own], Due::OneOf(may));
            }
            9 => {
                say(&["MULTI"], ok());
                say(&["ECHO", &mark], queued());
                say(&["PING"], queued());
                say(&["EXEC"], Due::Members(vec![bulk(&mark), b"+PONG\r\n".to_vec()], false));
            }
            10 => {
                say(&["WATCH", "shared"], ok());
                say(&["MULTI"], ok());
                say(&["ECHO", &mark], queued());
                say(&["SET", "shared", &mark], queued());
                say(&["EXEC"], Due::Members(vec![bulk(&mark), b"+OK\r\n".to_vec()], true));
            }
            _ => {
                let database = self.random.usize(..2).to_string();
                say(&["SELECT", &database], ok());
                say(&["ECHO", &mark], Due::Exactly(bulk(&mark)));
                say(&["SELECT", "0"], ok());
            }
        }
    }

    fn judge(&mut self, what: &str, expected: &Due, frame: &Bytes) {
        if resp::is_error(frame) {
            self.told.refused.set(self.told.refused.get() + 1);
            if mentions_another(frame, self.number) {
                self.wrong(&format!("{what} is answered with another's error {frame:?}"));
            }
            return;
        }
        let fits = match expected {
            Due::Exactly(reply) => frame == reply,
            Due::OneOf(replies) => replies.iter().any(|reply| frame == reply),
            Due::Members(members, may_fail) => {
                let is_nothing = resp::is_null(frame) && *may_fail;
                is_nothing || {
                    let got: Vec<&[u8]> = resp::elements(frame).map(Iterator::collect).unwrap_or_default();
                    got.len() == members.len()
                        && got.iter().zip(members).all(|(got, member)| got == member || resp::is_error(got))
                }
            }
            Due::Pushed(element) => {
                let is_number = resp::integer(frame).is_some();
                if is_number {
                    self.told.pushed.borrow_mut().push(element.clone());
                }
                is_number
            }
            Due::Popped => self.popped(frame),
        };
        if fits {
            self.told.answered.set(self.told.answered.get() + 1);
        } else {
            self.wrong(&format!("{} is answered with {frame:?}", &what[..what.len().min(60)]));
        }
    }

    fn popped(&self, frame: &Bytes) -> bool {
        if resp::is_null(frame) {
            return true;
        }
        let Some(mut pair) = resp::elements(frame) else { return false };
        let key = pair.next().and_then(resp::bulk);
        let element = pair.next().and_then(resp::bulk);
        let (Some(key), Some(element)) = (key, element) else { return false };
        let element = Bytes::copy_from_slice(element);
        self.network.note(|| format!("c{} got {element:?}", self.number));
        self.told.received.borrow_mut().entry(element).or_default().push(self.number);
        QUEUES.iter().any(|queue| queue.as_bytes() == key)
    }

    /// Blocking pops, one after the other.
    async fn consume(&mut self, wire: &mut Wire) -> Result<(), Over> {
        while Instant::now() < self.end {
            // Whoever waits for ever has to leave at the end, perhaps while an element is on its way.
            let choices = if self.rude { 4 } else { 3 };
            let (time, timeout) = [(0.05, "0.05"), (0.3, "0.3"), (2.0, "2"), (0.0, "0")][self.below(choices)];
            let first = self.below(QUEUES.len());
            let mut words = vec!["BLPOP", QUEUES[first]];
            if self.below(3) == 0 {
                words.push(QUEUES[(first + 1) % QUEUES.len()]);
            }
            words.push(timeout);
            let bytes: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            wire.write(&encode::one_command(&bytes)).await?;
            if self.rude && self.below(8) == 0 {
                self.rest(200).await;
                self.told.deserted.set(self.told.deserted.get() + 1);
                if self.below(2) == 0 {
                    wire.end.end_writing();
                } else {
                    return Ok(());
                }
            }
            if time == 0.0 {
                // As long as it takes, but its program ends some time.
                let left = self.end.saturating_duration_since(Instant::now()) + Duration::from_secs(1);
                match tokio::time::timeout(left, wire.frame()).await {
                    Ok(frame) => self.judge("BLPOP", &Due::Popped, &frame?.1),
                    Err(_) => {
                        self.told.deserted.set(self.told.deserted.get() + 1);
                        return Ok(());
                    }
                }
            } else {
                let frame = self.reply(wire, NEVER, "BLPOP").await?;
                self.judge("BLPOP", &Due::Popped, &frame);
            }
            self.rest(20).await;
        }
        Ok(())
    }

    /// Elements that there are once.
    async fn produce(&mut self, wire: &mut Wire) -> Result<(), Over> {
        while Instant::now() < self.end {
            let mut out = BytesMut::new();
            let mut elements = Vec::new();
            for _ in 0..1 + self.below(4) {
                let element = Bytes::from(format!("element:{}", self.mark()));
                let queue = QUEUES[self.below(QUEUES.len())];
                encode::command(&mut out, &[b"RPUSH", queue.as_bytes(), &element]);
                elements.push(element);
            }
            wire.write(&out).await?;
            for element in elements {
                let frame = self.reply(wire, NEVER, "RPUSH").await?;
                self.judge("RPUSH", &Due::Pushed(element), &frame);
            }
            self.rest(300).await;
        }
        Ok(())
    }

    /// Messages of each publisher come in their order, each once. Those that are late are judged in the end.
    async fn listen(&mut self, wire: &mut Wire) -> Result<(), Over> {
        let channel = CHANNELS[self.below(CHANNELS.len())];
        wire.write(&encode::one_command(&[b"SUBSCRIBE", channel.as_bytes()])).await?;
        let answer = self.reply(wire, NEVER, "SUBSCRIBE").await?;
        if resp::is_error(&answer) {
            return Err(Over);
        }
        let until = self.end.min(Instant::now() + Duration::from_millis(self.random.u64(..5_000)));
        let mut heard: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        while let Ok(frame) = tokio::time::timeout_at(until, wire.frame()).await {
            let (_, frame) = frame?;
            // An error ends a subscription that cannot be served any more.
            let Some(words) = resp::elements(&frame) else { continue };
            let words: Vec<&[u8]> = words.filter_map(resp::bulk).collect();
            let &[b"message", from, text] = &words[..] else {
                self.wrong(&format!("a subscriber is told {frame:?}"));
                continue;
            };
            if from != channel.as_bytes() {
                self.wrong(&format!("a subscriber of {channel} is told {frame:?}"));
            }
            let text = String::from_utf8_lossy(text).into_owned();
            let number = text
                .rsplit_once(':')
                .and_then(|(who, number)| Some((who.to_owned(), number.parse::<u64>().ok()?)));
            let Some((who, number)) = number else {
                self.wrong(&format!("a message that nobody sent: {text}"));
                continue;
            };
            let of_publisher = heard.entry(who).or_default();
            let is_late = of_publisher.last().is_some_and(|last| *last > number);
            if !of_publisher.insert(number) {
                self.wrong(&format!("message {text} comes twice"));
            } else if is_late {
                self.told.late.borrow_mut().push((self.number, text));
            }
            self.told.messages.set(self.told.messages.get() + 1);
        }
        Ok(())
    }

    async fn publish(&mut self, wire: &mut Wire) -> Result<(), Over> {
        while Instant::now() < self.end {
            let mut out = BytesMut::new();
            let mut marks = Vec::new();
            for _ in 0..1 + self.below(4) {
                let mark = self.mark();
                self.told.unconfirmed.borrow_mut().insert(mark.clone());
                let channel = CHANNELS[self.below(CHANNELS.len())];
                encode::command(&mut out, &[b"PUBLISH", channel.as_bytes(), mark.as_bytes()]);
                marks.push(mark);
            }
            wire.write(&out).await?;
            for mark in marks {
                let frame = self.reply(wire, NEVER, "PUBLISH").await?;
                if resp::integer(&frame).is_some() {
                    self.told.unconfirmed.borrow_mut().remove(&mark);
                } else if !resp::is_error(&frame) {
                    self.wrong(&format!("PUBLISH is answered with {frame:?}"));
                }
            }
            self.rest(200).await;
        }
        Ok(())
    }
}

fn bulk(text: &str) -> Vec<u8> {
    format!("${}\r\n{text}\r\n", text.len()).into_bytes()
}

fn nil(resp3: bool) -> Vec<u8> {
    if resp3 { b"_\r\n".to_vec() } else { b"$-1\r\n".to_vec() }
}

/// Whether a mark of another client is in `frame`.
fn mentions_another(frame: &[u8], own: usize) -> bool {
    let text = String::from_utf8_lossy(frame);
    text.match_indices("mark:").any(|(at, found)| {
        let owner = text[at + found.len()..].split(':').next();
        owner.is_some_and(|owner| owner.parse() != Ok(own))
    })
}
