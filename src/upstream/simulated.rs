//! A network in memory for simulations: a seed decides when bytes arrive and in which pieces, what is held back and what is
//! lost. Compiled for the tests alone.
//!
//! A connection is two flows of segments. It behaves as TCP between two Linux hosts does: bounded buffers, a FIN behind the
//! data, a reset for data that reaches a closed socket and for a socket that is closed with data unread, and received data
//! that can still be read when a reset has come (`tcp_reset`).

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a host may be silent before a connection to it counts as lost: as `user_timeout` and keepalive have it.
const PATIENCE: Duration = Duration::from_secs(12);

thread_local! {
    static CURRENT: RefCell<Option<Network>> = const { RefCell::new(None) };
}

/// The network that dials of this thread go over, if there is a simulation.
pub(super) fn current() -> Option<Network> {
    CURRENT.with_borrow(Clone::clone)
}

/// Which hosts a connection is between.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Path {
    /// The proxy and the server.
    Server,
    /// The client of this number and the proxy.
    Client(usize),
}

/// How the network treats bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    /// The longest delay of a segment, in milliseconds.
    pub(crate) delay: u64,
    /// Reads and writes are cut into pieces, once in so many times; 0 for never.
    pub(crate) chop: u32,
    /// Bytes that fit between two ends.
    pub(crate) window: usize,
}

#[derive(Debug)]
enum Segment {
    Data(BytesMut),
    Fin,
    Reset,
}

/// The bytes from one end to the other.
#[derive(Debug, Default)]
struct Flow {
    under_way: VecDeque<(Instant, Segment)>,
    /// Bytes of those.
    len: usize,
    arrived: BytesMut,
    /// All bytes that have arrived.
    acknowledged: u64,
    /// The sender sends no more.
    ended: bool,
    /// Its FIN has arrived.
    fin: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Who waits for the end of the flow, or of the connection.
    hangup: Vec<Waker>,
}

impl Flow {
    fn wake_all(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
        self.hangup.drain(..).for_each(Waker::wake);
    }
}

#[derive(Debug)]
struct Connection {
    path: Path,
    /// From end 0 to end 1, and back. End 0 dialled.
    flows: [Flow; 2],
    open: [bool; 2],
    /// Nothing more is read at this end.
    deaf: [bool; 2],
    /// Closing this end sends a reset.
    linger: [bool; 2],
    /// What this end was told: the connection is no more.
    broken: [Option<io::ErrorKind>; 2],
}

struct State {
    random: fastrand::Rng,
    manners: Manners,
    connections: BTreeMap<u64, Connection>,
    numbers: u64,
    /// When to look at a flow again.
    events: BTreeMap<(Instant, u64), (u64, usize)>,
    event_numbers: u64,
    /// When to take a connection away from an end whose peer has vanished.
    losses: BTreeMap<(Instant, u64), (u64, usize)>,
    partitions: BTreeMap<Path, Instant>,
    /// Whether somebody listens at the server's address.
    listening: bool,
    /// Dials that the server has not accepted.
    backlog: VecDeque<End>,
    /// The most connections to the server that there were at once, and with those that were left without its host knowing.
    most: (usize, usize),
    start: Instant,
    trace: DefaultHasher,
    /// The trace as text, for whoever looks into a failure.
    log: Option<Vec<String>>,
}

struct Shared {
    state: Mutex<State>,
    /// The next event may be another one.
    changed: Notify,
    accepting: Notify,
}

/// All connections of a simulation.
#[derive(Clone)]
pub(crate) struct Network(Arc<Shared>);

impl Network {
    /// A network for this thread.
    pub(crate) fn install(seed: u64, manners: Manners, is_logged: bool) -> Self {
        let start = Instant::now();
        let network = Self(Arc::new(Shared {
            state: Mutex::new(State {
                random: fastrand::Rng::with_seed(seed),
                manners,
                connections: BTreeMap::new(),
                numbers: 0,
                events: BTreeMap::new(),
                event_numbers: 0,
                losses: BTreeMap::new(),
                partitions: BTreeMap::new(),
                listening: true,
                backlog: VecDeque::new(),
                most: (0, 0),
                start,
                trace: DefaultHasher::new(),
                log: is_logged.then(Vec::new),
            }),
            changed: Notify::new(),
            accepting: Notify::new(),
        }));
        CURRENT.set(Some(network.clone()));
        network
    }

    /// Dials of this thread go to the kernel again.
    pub(crate) fn remove(&self) {
        CURRENT.set(None);
        self.0.state.lock().backlog.clear();
    }

    /// Carries segments when they are due. Never returns.
    pub(crate) async fn run(self) {
        loop {
            let next = {
                let mut state = self.0.state.lock();
                state.deliver_due(Instant::now());
                state.next()
            };
            let changed = self.0.changed.notified();
            match next {
                Some(at) => drop(tokio::time::timeout_at(at, changed).await),
                None => changed.await,
            }
        }
    }

    /// Notes what has happened.
    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        self.0.state.lock().note(what);
    }

    /// What has happened so far as a number, and as text where that was asked for.
    pub(crate) fn trace(&self) -> (u64, Vec<String>) {
        let state = self.0.state.lock();
        (state.trace.finish(), state.log.clone().unwrap_or_default())
    }

    /// A number below `bound`, of the simulation's randomness.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.0.state.lock().random.u64(..bound.max(1))
    }

    /// A connection to the proxy's listener: the client's end and the proxy's.
    pub(crate) fn pair(&self, client: usize) -> (End, End) {
        let mut state = self.0.state.lock();
        let number = state.connect(Path::Client(client));
        (self.end(number, 0), self.end(number, 1))
    }

    fn end(&self, connection: u64, side: usize) -> End {
        End { network: self.clone(), connection, side }
    }

    /// TCP's handshake with the server, from an address of ours.
    pub(super) async fn dial(&self) -> io::Result<(End, SocketAddr)> {
        loop {
            let pause = {
                let state = self.0.state.lock();
                state.partitions.get(&Path::Server).copied().filter(|until| *until > Instant::now())
            };
            match pause {
                // A SYN is sent again after 1 s, 2 s, …
                Some(until) => {
                    tokio::time::sleep_until(until + Duration::from_millis(self.below(1_000))).await;
                }
                None => break,
            }
        }
        self.latency().await;
        let dialled = {
            let mut state = self.0.state.lock();
            if state.listening {
                let number = state.connect(Path::Server);
                state.note(|| format!("{number} dialled"));
                let ours = self.end(number, 0);
                let theirs = self.end(number, 1);
                state.backlog.push_back(theirs);
                Some((ours, number))
            } else {
                state.note(|| "a dial is refused".to_owned());
                None
            }
        };
        self.0.accepting.notify_one();
        self.latency().await;
        let Some((end, number)) = dialled else { return Err(io::ErrorKind::ConnectionRefused.into()) };
        let port = u16::try_from(10_000 + number % 50_000).unwrap_or(1);
        Ok((end, SocketAddr::from(([127, 0, 0, 1], port))))
    }

    async fn latency(&self) {
        let most = self.0.state.lock().manners.delay;
        let delay = self.below(most + 1);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
    }

    /// The next connection to the server, with its number.
    pub(crate) async fn accept(&self) -> (u64, End) {
        loop {
            if let Some(end) = self.0.state.lock().backlog.pop_front() {
                return (end.connection, end);
            }
            self.0.accepting.notified().await;
        }
    }

    /// Whether the server's address accepts connections. What is in the backlog is lost when it no longer does.
    pub(crate) fn listen(&self, listens: bool) {
        let lost = {
            let mut state = self.0.state.lock();
            state.listening = listens;
            std::mem::take(&mut state.backlog)
        };
        for end in &lost {
            end.reset_on_drop();
        }
    }

    /// Nothing passes between the hosts of `path` for `time`. Where that is longer than anybody waits for the other's host,
    /// all connections there are lost, at each end by itself.
    pub(crate) fn partition(&self, path: Path, time: Duration) {
        let mut state = self.0.state.lock();
        let (now, end) = (Instant::now(), Instant::now() + time);
        let State { connections, partitions, random, losses, event_numbers, .. } = &mut *state;
        let until = partitions.entry(path).or_insert(end);
        *until = (*until).max(end);
        for (number, connection) in connections.iter_mut().filter(|(_, connection)| connection.path == path) {
            for flow in &mut connection.flows {
                flow.under_way.iter_mut().for_each(|(due, _)| *due = (*due).max(end));
            }
            if time > PATIENCE {
                for side in 0..2 {
                    *event_numbers += 1;
                    let at = now + PATIENCE + Duration::from_millis(random.u64(..2_000));
                    losses.insert((at, *event_numbers), (*number, side));
                }
            }
        }
        state.note(|| format!("{path:?} is cut for {time:?}"));
        drop(state);
        self.0.changed.notify_one();
    }

    /// A device on the way resets one connection of `path`; what is under way is lost.
    pub(crate) fn reset_one(&self, path: Path) {
        let mut state = self.0.state.lock();
        let State { connections, random, .. } = &mut *state;
        let of_path: Vec<u64> = connections
            .iter()
            .filter(|(_, connection)| connection.path == path && connection.open == [true; 2])
            .map(|(number, _)| *number)
            .collect();
        if of_path.is_empty() {
            return;
        }
        let number = of_path[random.usize(..of_path.len())];
        state.lose(number, 0, io::ErrorKind::ConnectionReset);
        state.lose(number, 1, io::ErrorKind::ConnectionReset);
        state.note(|| format!("{number} is reset on the way"));
    }

    /// The most connections to the server that the proxy had open at once; and the most together with those that it had left
    /// without the server's host knowing.
    pub(crate) fn most(&self) -> (usize, usize) {
        self.0.state.lock().most
    }

    /// Ends that are still open.
    pub(crate) fn open_ends(&self) -> Vec<(Path, usize)> {
        let state = self.0.state.lock();
        let each = state.connections.values();
        each.flat_map(|one| (0..2).filter(|side| one.open[*side]).map(|side| (one.path, side))).collect()
    }
}

impl State {
    fn note(&mut self, what: impl FnOnce() -> String) {
        let at = Instant::now().saturating_duration_since(self.start).as_millis();
        let what = what();
        (at, &what).hash(&mut self.trace);
        if let Some(log) = &mut self.log {
            log.push(format!("{at:>7} {what}"));
        }
    }

    fn connect(&mut self, path: Path) -> u64 {
        self.numbers += 1;
        self.connections.insert(
            self.numbers,
            Connection {
                path,
                flows: Default::default(),
                open: [true; 2],
                deaf: [false; 2],
                linger: [false; 2],
                broken: [None; 2],
            },
        );
        if path == Path::Server {
            let of_server = || self.connections.values().filter(|one| one.path == Path::Server);
            let ours = of_server().filter(|one| one.open[0]).count();
            let is_unknown = |one: &&Connection| {
                !one.open[0] && one.open[1] && one.broken[1].is_none() && !one.flows[0].fin
            };
            let unknown = of_server().filter(is_unknown).count();
            self.most = (self.most.0.max(ours), self.most.1.max(ours + unknown));
        }
        self.numbers
    }

    fn next(&self) -> Option<Instant> {
        let first = |events: &BTreeMap<(Instant, u64), (u64, usize)>| events.keys().next().map(|(at, _)| *at);
        first(&self.events).into_iter().chain(first(&self.losses)).min()
    }

    /// Sends a segment. Returns whether it has arrived already.
    fn send(&mut self, number: u64, from: usize, segment: Segment) -> bool {
        let now = Instant::now();
        let delay = Duration::from_millis(self.random.u64(..=self.manners.delay));
        let Some(connection) = self.connections.get_mut(&number) else { return true };
        let held = self.partitions.get(&connection.path).copied().filter(|until| *until > now);
        let flow = &mut connection.flows[from];
        let behind = flow.under_way.back().map(|(due, _)| *due);
        let due = (now + delay).max(held.unwrap_or(now)).max(behind.unwrap_or(now));
        if let Segment::Data(bytes) = &segment {
            flow.len += bytes.len();
        }
        let is_alone = flow.under_way.is_empty();
        flow.under_way.push_back((due, segment));
        if is_alone {
            if due == now {
                self.deliver(number, from, now);
                return true;
            }
            self.event_numbers += 1;
            self.events.insert((due, self.event_numbers), (number, from));
        }
        false
    }

    fn deliver_due(&mut self, now: Instant) {
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= now) {
            let (number, flow) = entry.remove();
            self.deliver(number, flow, now);
        }
        while let Some(entry) = self.losses.first_entry().filter(|entry| entry.key().0 <= now) {
            let (number, side) = entry.remove();
            self.lose(number, side, io::ErrorKind::TimedOut);
        }
    }

    /// What is due of a flow arrives; the rest has its event.
    fn deliver(&mut self, number: u64, from: usize, now: Instant) {
        let to = 1 - from;
        loop {
            let Some(connection) = self.connections.get_mut(&number) else { return };
            let flow = &mut connection.flows[from];
            match flow.under_way.front() {
                None => break,
                Some((due, _)) if *due > now => {
                    let due = *due;
                    self.event_numbers += 1;
                    self.events.insert((due, self.event_numbers), (number, from));
                    break;
                }
                Some(_) => {}
            }
            let Some((_, segment)) = flow.under_way.pop_front() else { break };
            match segment {
                Segment::Data(bytes) => {
                    let len = bytes.len();
                    flow.len -= len;
                    if !connection.open[to] || connection.broken[to].is_some() {
                        let is_open = connection.open[from];
                        if is_open {
                            self.send(number, to, Segment::Reset);
                        }
                    } else {
                        flow.acknowledged += len as u64;
                        flow.arrived.extend_from_slice(&bytes);
                        flow.reader.take().into_iter().for_each(Waker::wake);
                    }
                    self.note(|| format!("{number} {from}> {len} bytes"));
                }
                Segment::Fin => {
                    flow.fin = true;
                    flow.wake_all();
                    self.note(|| format!("{number} {from}> FIN"));
                }
                Segment::Reset => {
                    self.lose(number, to, io::ErrorKind::ConnectionReset);
                    self.note(|| format!("{number} {from}> RST"));
                }
            }
        }
        self.tidy(number);
    }

    /// The end `side` learns that the connection is no more.
    fn lose(&mut self, number: u64, side: usize, kind: io::ErrorKind) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.broken[side].get_or_insert(kind);
        // What it had sent and its host still had is lost.
        let out = &mut connection.flows[side];
        out.under_way.clear();
        out.len = 0;
        connection.flows.iter_mut().for_each(Flow::wake_all);
        self.tidy(number);
    }

    /// Forgets what nobody has an end of.
    fn tidy(&mut self, number: u64) {
        let is_over = self.connections.get(&number).is_some_and(|one| {
            one.open == [false; 2] && one.flows.iter().all(|flow| flow.under_way.is_empty())
        });
        if is_over {
            self.connections.remove(&number);
        }
    }

    fn happens(&mut self, once_in: u32) -> bool {
        once_in > 0 && self.random.u32(..once_in) == 0
    }
}

/// One end of a connection. Dropping it closes it.
pub struct End {
    network: Network,
    connection: u64,
    side: usize,
}

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "End({}, {})", self.connection, self.side)
    }
}

/// What a socket says to `peek`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peek {
    Nothing,
    Data,
    End,
    Error,
}

impl End {
    fn with<T>(&self, act: impl FnOnce(&mut State, &mut Connection) -> T) -> Option<T> {
        let mut state = self.network.0.state.lock();
        let mut connection = state.connections.remove(&self.connection)?;
        let done = act(&mut state, &mut connection);
        state.connections.insert(self.connection, connection);
        Some(done)
    }

    /// To read where there is a shared reference.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader(self)
    }

    pub(crate) fn poll_recv(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let most = buffer.remaining();
        let got = self.with(|state, connection| {
            // Awake for nothing, as a runtime may be.
            if state.happens(state.manners.chop) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match recv(state, connection, self.side, most) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.flows[1 - self.side].reader = Some(cx.waker().clone());
                    Poll::Pending
                }
                done => Poll::Ready(done),
            }
        });
        match got {
            None => Poll::Ready(Ok(())),
            Some(Poll::Pending) => Poll::Pending,
            Some(Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            Some(Poll::Ready(Ok(bytes))) => {
                buffer.put_slice(&bytes);
                Poll::Ready(Ok(()))
            }
        }
    }

    pub(crate) fn try_recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self
            .with(|state, connection| recv(state, connection, self.side, buffer.len()))
            .unwrap_or_else(|| Ok(BytesMut::new()))?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    pub(crate) fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.with(|state, connection| {
            if connection.broken[self.side].is_some() {
                return Err(io::Error::from(io::ErrorKind::ConnectionReset));
            }
            let flow = &connection.flows[self.side];
            if flow.ended {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let room = state.manners.window.saturating_sub(flow.len + flow.arrived.len());
            let mut len = bytes.len().min(room);
            if len == 0 && !bytes.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if len > 1 && state.happens(state.manners.chop) {
                len = 1 + state.random.usize(..len);
            }
            // In pieces, which arrive one after the other.
            let cut = if len > 1 && state.happens(state.manners.chop) {
                1 + state.random.usize(..len - 1)
            } else {
                len
            };
            Ok((len, cut))
        });
        let (len, cut) = sent.unwrap_or_else(|| Err(io::ErrorKind::BrokenPipe.into()))?;
        let mut state = self.network.0.state.lock();
        for piece in [&bytes[..cut], &bytes[cut..len]] {
            if !piece.is_empty() {
                state.send(self.connection, self.side, Segment::Data(piece.into()));
            }
        }
        drop(state);
        self.network.0.changed.notify_one();
        Ok(len)
    }

    pub(crate) fn poll_send_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = self.with(|state, connection| {
            let flow = &mut connection.flows[self.side];
            let used = flow.len + flow.arrived.len();
            // The kernel calls a socket writable when a third of its buffer is free.
            if connection.broken[self.side].is_some() || flow.ended || used * 3 <= state.manners.window * 2 {
                return Poll::Ready(Ok(()));
            }
            flow.writer = Some(cx.waker().clone());
            Poll::Pending
        });
        ready.unwrap_or(Poll::Ready(Ok(())))
    }

    /// Ready when the peer sends no more, or (`true`) the connection is no more.
    pub(crate) fn poll_hangup(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let ready = self.with(|_, connection| {
            if connection.broken[self.side].is_some() {
                return Poll::Ready(true);
            }
            let flow = &mut connection.flows[1 - self.side];
            if flow.fin || connection.deaf[self.side] {
                return Poll::Ready(false);
            }
            flow.hangup.retain(|waker| !waker.will_wake(cx.waker()));
            flow.hangup.push(cx.waker().clone());
            Poll::Pending
        });
        ready.unwrap_or(Poll::Ready(true))
    }

    pub(crate) fn peek(&self) -> Peek {
        let seen = self.with(|_, connection| {
            let flow = &connection.flows[1 - self.side];
            if connection.deaf[self.side] {
                Peek::End
            } else if !flow.arrived.is_empty() {
                Peek::Data
            } else if connection.broken[self.side].is_some() {
                Peek::Error
            } else if flow.fin {
                Peek::End
            } else {
                Peek::Nothing
            }
        });
        seen.unwrap_or(Peek::Error)
    }

    /// Nothing more is sent.
    pub(crate) fn end_writing(&self) {
        let mut state = self.network.0.state.lock();
        let Some(connection) = state.connections.get_mut(&self.connection) else { return };
        let flow = &mut connection.flows[self.side];
        if !flow.ended && connection.broken[self.side].is_none() {
            flow.ended = true;
            state.send(self.connection, self.side, Segment::Fin);
        }
        drop(state);
        self.network.0.changed.notify_one();
    }

    /// Nothing more is sent or read.
    pub(crate) fn close(&self) {
        self.end_writing();
        self.with(|_, connection| {
            connection.deaf[self.side] = true;
            connection.flows.iter_mut().for_each(Flow::wake_all);
        });
    }

    pub(crate) fn reset_on_drop(&self) {
        self.with(|_, connection| connection.linger[self.side] = true);
    }

    /// Bytes that the peer's host has.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.with(|_, connection| connection.flows[self.side].acknowledged).unwrap_or_default()
    }
}

/// Reads once at `side`, at most `most` bytes; none at the end.
fn recv(state: &mut State, connection: &mut Connection, side: usize, most: usize) -> io::Result<BytesMut> {
    let broken = connection.broken[side];
    let flow = &mut connection.flows[1 - side];
    if connection.deaf[side] {
        return Ok(BytesMut::new());
    }
    if flow.arrived.is_empty() {
        return match broken {
            Some(kind) => Err(kind.into()),
            None if flow.fin => Ok(BytesMut::new()),
            None => Err(io::ErrorKind::WouldBlock.into()),
        };
    }
    let mut len = flow.arrived.len().min(most);
    if len > 1 && state.happens(state.manners.chop) {
        len = 1 + state.random.usize(..len);
    }
    let bytes = BytesMut::from(&flow.arrived[..len]);
    flow.arrived.advance(len);
    flow.writer.take().into_iter().for_each(Waker::wake);
    Ok(bytes)
}

impl Drop for End {
    fn drop(&mut self) {
        let mut state = self.network.0.state.lock();
        let Some(connection) = state.connections.get_mut(&self.connection) else { return };
        connection.open[self.side] = false;
        let unread = !connection.flows[1 - self.side].arrived.is_empty();
        let resets = unread || connection.linger[self.side];
        let flow = &mut connection.flows[self.side];
        let has_ended = std::mem::replace(&mut flow.ended, true);
        if connection.broken[self.side].is_none() {
            if resets {
                state.send(self.connection, self.side, Segment::Reset);
            } else if !has_ended {
                state.send(self.connection, self.side, Segment::Fin);
            }
        }
        state.tidy(self.connection);
        drop(state);
        self.network.0.changed.notify_one();
    }
}

pub(crate) struct Reader<'a>(&'a End);

impl AsyncRead for Reader<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_recv(cx, buf)
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_recv(cx, buf)
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.try_send(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.poll_send_ready(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end_writing();
        Poll::Ready(Ok(()))
    }
}
