//! A TCP relay that spoils connections on command: delays, freezes, swallows, cuts.
//!
//! It stands between the proxy and the server (or a client and the proxy) and is a stand-in for a network that fails.
//! Each connection has one thread per direction; both look at the shared state every few milliseconds.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

/// How often a pump looks whether the rules have changed.
const TICK: Duration = Duration::from_millis(5);

/// What happens to bytes at the moment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    Pass,
    /// Every chunk waits this long before it goes on.
    Delay(Duration),
    /// Of every chunk of replies so many bytes pass at once, and what is behind them waits so long.
    Split(usize, Duration),
    /// Nothing is read: the senders' windows fill.
    Freeze,
    /// Everything is read and thrown away: the senders believe it arrived.
    Swallow,
}

struct Shared {
    target: Mutex<SocketAddr>,
    rule: Mutex<Rule>,
    /// Connections of an older generation are to be cut.
    generation: AtomicU64,
    /// Bytes from the target that may still pass before the connection carrying the next one is cut; negative: any.
    allowance: AtomicI64,
    /// From which connection on, by number, which bytes of replies wait.
    hold: Mutex<Option<(usize, Vec<u8>)>>,
    /// Connections whose replies wait.
    held: AtomicUsize,
    refuse: AtomicBool,
    accepted: AtomicUsize,
    open: AtomicUsize,
    /// Bytes of replies written.
    replied: AtomicUsize,
    stop: AtomicBool,
}

/// A listening relay; it and its connections end when dropped.
pub(crate) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Relay {
    /// Listens on a free port of 127.0.0.1 and carries every connection to `target`.
    pub(crate) fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            rule: Mutex::new(Rule::Pass),
            generation: AtomicU64::new(0),
            allowance: AtomicI64::new(-1),
            hold: Mutex::new(None),
            held: AtomicUsize::new(0),
            refuse: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            replied: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &accepting));
        Self { address, shared }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections go to `target`; those that are open stay where they are.
    pub(crate) fn point_to(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap() = target;
    }

    /// Bytes pass as they come (the state after the start).
    pub(crate) fn pass(&self) {
        *self.shared.rule.lock().unwrap() = Rule::Pass;
        *self.shared.hold.lock().unwrap() = None;
        self.shared.refuse.store(false, SeqCst);
    }

    /// Delays every chunk in both directions.
    pub(crate) fn delay(&self, by: Duration) {
        *self.shared.rule.lock().unwrap() = Rule::Delay(by);
    }

    /// Passes the first bytes of every chunk of replies, `first` in number, and what is behind them after `pause`.
    pub(crate) fn split(&self, first: usize, pause: Duration) {
        *self.shared.rule.lock().unwrap() = Rule::Split(first, pause);
    }

    /// Stops reading from both sides: back-pressure, as from a peer whose process is stopped.
    pub(crate) fn freeze(&self) {
        *self.shared.rule.lock().unwrap() = Rule::Freeze;
    }

    /// Takes everything and passes nothing on: what was sent is acknowledged and never answered.
    pub(crate) fn swallow(&self) {
        *self.shared.rule.lock().unwrap() = Rule::Swallow;
    }

    /// Replies wait from the chunk on that contains `words`, each on its connection, until [`Self::pass`].
    pub(crate) fn hold(&self, words: &[u8]) {
        *self.shared.hold.lock().unwrap() = Some((0, words.to_vec()));
    }

    /// The same on connections that are accepted from now on.
    pub(crate) fn hold_on_new(&self, words: &[u8]) {
        *self.shared.hold.lock().unwrap() = Some((self.accepted(), words.to_vec()));
    }

    /// Connections whose replies wait.
    pub(crate) fn held(&self) -> usize {
        self.shared.held.load(SeqCst)
    }

    /// New connections are reset at once.
    pub(crate) fn refuse(&self) {
        self.shared.refuse.store(true, SeqCst);
    }

    /// Resets every connection that is open now.
    pub(crate) fn cut(&self) {
        self.shared.generation.fetch_add(1, SeqCst);
    }

    /// After `bytes` more bytes of replies, resets the connection that carries the next one; once.
    pub(crate) fn cut_after(&self, bytes: i64) {
        self.shared.allowance.store(bytes, SeqCst);
    }

    /// Whether a cut asked for with `cut_after` is still to come.
    pub(crate) fn cut_is_pending(&self) -> bool {
        self.shared.allowance.load(SeqCst) >= 0
    }

    /// Connections accepted since the start.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(SeqCst)
    }

    /// Connections open now.
    pub(crate) fn open(&self) -> usize {
        self.shared.open.load(SeqCst)
    }

    /// Bytes of replies passed on since the start.
    pub(crate) fn replied(&self) -> usize {
        self.shared.replied.load(SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stop.load(SeqCst) {
        let Ok((near, _)) = listener.accept() else {
            thread::sleep(TICK);
            continue;
        };
        let number = shared.accepted.fetch_add(1, SeqCst);
        let target = *shared.target.lock().unwrap();
        let far = TcpStream::connect_timeout(&target, Duration::from_secs(5));
        let (false, Ok(far)) = (shared.refuse.load(SeqCst), far) else {
            reset_on_close(&near);
            continue;
        };
        near.set_nonblocking(false).unwrap();
        shared.open.fetch_add(1, SeqCst);
        let connection = Arc::new(Connection {
            near,
            far,
            number,
            generation: shared.generation.load(SeqCst),
            cut: AtomicBool::new(false),
            shared: Arc::clone(shared),
        });
        let other = Arc::clone(&connection);
        thread::spawn(move || connection.pump(&connection.near, &connection.far, false));
        thread::spawn(move || other.pump(&other.far, &other.near, true));
    }
}

struct Connection {
    near: TcpStream,
    far: TcpStream,
    number: usize,
    generation: u64,
    cut: AtomicBool,
    shared: Arc<Shared>,
}

impl Connection {
    fn rule(&self) -> Rule {
        *self.shared.rule.lock().unwrap()
    }

    fn is_cut(&self) -> bool {
        if self.generation != self.shared.generation.load(SeqCst) || self.shared.stop.load(SeqCst) {
            self.cut.store(true, SeqCst);
        }
        self.cut.load(SeqCst)
    }

    /// Carries one direction to its end; whoever is last closes both sockets by dropping them.
    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream, replies: bool) {
        let _ = to.set_nodelay(true);
        let _ = from.set_read_timeout(Some(TICK));
        let _ = to.set_write_timeout(Some(TICK));
        let mut chunk = [0; 1 << 14];
        while !self.is_cut() {
            if self.rule() == Rule::Freeze {
                thread::sleep(TICK);
                continue;
            }
            let count = match from.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(_) => {
                    self.cut.store(true, SeqCst);
                    break;
                }
            };
            // The rule that counts is the one of the moment when the bytes are here.
            while self.rule() == Rule::Freeze && !self.is_cut() {
                thread::sleep(TICK);
            }
            let rule = self.rule();
            if let Rule::Delay(by) = rule {
                thread::sleep(by);
            }
            if replies && self.is_to_be_held(&chunk[..count]) {
                self.hold();
            }
            let passing = if replies { self.allowed(count) } else { count };
            if rule != Rule::Swallow {
                let mut begun = 0;
                if let Rule::Split(first, pause) = rule
                    && replies
                    && first < passing
                {
                    self.write(&mut to, &chunk[..first]);
                    thread::sleep(pause);
                    begun = first;
                }
                self.write(&mut to, &chunk[begun..passing]);
                if replies {
                    self.shared.replied.fetch_add(passing, SeqCst);
                }
            }
            if passing < count {
                self.cut.store(true, SeqCst);
            }
        }
        if self.is_cut() {
            reset_on_close(&self.near);
            reset_on_close(&self.far);
        } else {
            let _ = to.shutdown(std::net::Shutdown::Write);
        }
    }

    fn is_to_be_held(&self, chunk: &[u8]) -> bool {
        let hold = self.shared.hold.lock().unwrap();
        hold.as_ref().is_some_and(|(first, words)| {
            self.number >= *first && chunk.windows(words.len()).any(|window| window == words)
        })
    }

    /// Waits until nothing is held any more.
    fn hold(&self) {
        self.shared.held.fetch_add(1, SeqCst);
        while self.shared.hold.lock().unwrap().is_some() && !self.is_cut() {
            thread::sleep(TICK);
        }
        self.shared.held.fetch_sub(1, SeqCst);
    }

    /// How many of `count` reply bytes may pass.
    fn allowed(&self, count: usize) -> usize {
        let allowance = self.shared.allowance.load(SeqCst);
        if allowance < 0 {
            return count;
        }
        let left = allowance - i64::try_from(count).unwrap();
        self.shared.allowance.store(left.max(-1), SeqCst);
        if left < 0 { usize::try_from(allowance).unwrap() } else { count }
    }

    fn write(&self, to: &mut &TcpStream, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_cut() {
            match to.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => self.cut.store(true, SeqCst),
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, SeqCst);
    }
}

fn reset_on_close(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
