//! The input of a client: read, and kept until it is executed. Does not know replies.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{self, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::Instant;

use crate::downstream::context::Context;
use crate::downstream::socket::ClientSocket;
use crate::pool::{Account, Charge, LONG};
use crate::resp::{RequestScanner, append, give_buffer, make_room, moves};

/// Spare room for reading behind a command that has begun.
const READ: usize = 16 << 10;
/// At most this much room is made at once for a long command, whatever length it announces.
const READ_AHEAD: usize = 1 << 20;

/// The receiving side of one client.
pub(in crate::downstream) struct Inbound {
    context: Rc<Context>,
    /// The bytes that were read and not yet executed. None between complete commands.
    begun: RefCell<Option<Box<Begun>>>,
    /// The peer has closed its side, and all that it has sent has been read.
    eof: Cell<bool>,
    /// What lies here has waited for the server as long as a command may, in vain: a pipeline of a hundred commands does
    /// not wait a hundred times.
    waited_in_vain: Cell<bool>,
    /// The worker is stopping, and all earlier input has been read.
    last_read: Cell<bool>,
    last_input: Cell<Instant>,
}

/// Bytes that are not whole commands yet, or wait for their turn.
pub(in crate::downstream) struct Begun {
    pub(in crate::downstream) buffer: BytesMut,
    /// How far the first command in `buffer` has been scanned.
    pub(in crate::downstream) scanner: RequestScanner,
    pub(in crate::downstream) charge: Charge,
}

impl Begun {
    fn new(account: &Account) -> Box<Self> {
        Box::new(Self {
            buffer: BytesMut::new(),
            scanner: RequestScanner::default(),
            charge: account.charge(0),
        })
    }
}

impl Inbound {
    pub(super) fn new(context: Rc<Context>) -> Self {
        Self {
            context,
            begun: RefCell::new(None),
            eof: Cell::new(false),
            waited_in_vain: Cell::new(false),
            last_read: Cell::new(false),
            last_input: Cell::new(Instant::now()),
        }
    }

    /// How many bytes are read and not yet run.
    pub(in crate::downstream) fn len(&self) -> usize {
        self.begun.borrow().as_ref().map_or(0, |begun| begun.buffer.len())
    }

    pub(in crate::downstream) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the peer has closed its side, and all that it has sent has been read.
    pub(in crate::downstream) fn is_at_end(&self) -> bool {
        self.eof.get()
    }

    pub(in crate::downstream) fn last_input(&self) -> Instant {
        self.last_input.get()
    }

    pub(in crate::downstream) fn has_waited_in_vain(&self) -> bool {
        self.waited_in_vain.get()
    }

    /// Whether the command whose turn it is has waited for the server for as long as it may, in vain.
    pub(in crate::downstream) fn note_wait(&self, in_vain: bool) {
        self.waited_in_vain.set(in_vain);
    }

    /// The worker stops and all replies are out. `true`: what had arrived before has been read already.
    pub(in crate::downstream) fn was_last_read(&self) -> bool {
        self.last_read.replace(true)
    }

    /// Its last bytes came at `then`, in another process.
    pub(super) fn had_input(&self, then: Instant) {
        self.last_input.set(then);
    }

    /// So many bytes have come; 0 is the end of file.
    pub(super) fn note_input(&self, came: usize) {
        self.context.metrics.bytes_in.add(came as u64);
        if came == 0 {
            self.eof.set(true);
        }
        self.waited_in_vain.set(false);
        self.last_input.set(Instant::now());
    }

    /// Keeps the bytes read after complete commands, which `scanner` has started to scan.
    pub(super) fn keep(&self, rest: &[u8], scanner: RequestScanner, account: &Account) {
        let mut begun = self.begun.borrow_mut();
        let part = begun.get_or_insert_with(|| Begun::new(account));
        part.scanner = scanner;
        append(&mut part.buffer, rest);
        drop(begun);
        self.count();
    }

    /// The started command, for execution. Return it with [`Self::put_back`]; meanwhile it counts.
    pub(super) fn take(&self) -> Option<Box<Begun>> {
        self.begun.borrow_mut().take_if(|begun| !begun.buffer.is_empty())
    }

    pub(super) fn put_back(&self, begun: Box<Begun>) {
        self.begun.replace(Some(begun));
        self.count();
    }

    /// Reads or changes the started command.
    pub(in crate::downstream) fn with<T>(&self, f: impl FnOnce(&mut Begun) -> T) -> Option<T> {
        self.begun.borrow_mut().as_deref_mut().map(f)
    }

    /// Counts the bytes kept here.
    pub(in crate::downstream) fn count(&self) {
        let has_grown = self.with(|begun| begun.charge.set(begun.buffer.len()));
        if has_grown == Some(true) {
            self.context.keep_within_bound();
        }
    }

    /// Reads once behind what is kept; `need` more bytes are announced. Ready with how many bytes came, 0 at the end of file;
    /// with none when the client is to be closed for what it would hold (`goes_on` is false).
    pub(super) fn poll_read_behind(
        &self,
        cx: &mut task::Context<'_>,
        socket: &ClientSocket,
        need: usize,
        account: &Account,
        goes_on: impl Fn() -> bool,
    ) -> Poll<std::io::Result<Option<usize>>> {
        let mut begun = self.begun.borrow_mut();
        let part = begun.get_or_insert_with(|| Begun::new(account));
        let len = part.buffer.len();
        // An announced length is not reserved at once: the buffer doubles as bytes arrive.
        let room = need.min(len).clamp(READ, READ_AHEAD);
        if moves(&part.buffer, room) {
            // It is there twice while it is moved.
            let has_grown = part.charge.set(2 * len);
            drop(begun);
            if has_grown {
                self.context.keep_within_bound();
            }
            if !goes_on() {
                return Poll::Ready(Ok(None));
            }
            begun = self.begun.borrow_mut();
        }
        let part = begun.get_or_insert_with(|| Begun::new(account));
        // No client uses more than the limit of all clients.
        let expected = self.context.pool.shared.memory.bound().map_or(0, |bound| need.min(bound));
        make_room(&mut part.buffer, room, expected);
        let result = socket.poll_read_buf(cx, &mut part.buffer);
        drop(begun);
        self.count();
        result.map_ok(Some)
    }

    /// Takes the frame of `len` bytes that the input begins with out of it; without a copy where it is long.
    pub(in crate::downstream) fn take_frame(&self, len: usize, account: &Account) -> Bytes {
        let frame = self.with(|begun| {
            if len < LONG {
                let frame = Bytes::copy_from_slice(&begun.buffer[..len]);
                begun.buffer.advance(len);
                return frame;
            }
            begun.charge.set(0);
            let whole = account.keep(std::mem::take(&mut begun.buffer).freeze());
            begun.buffer = BytesMut::from(&whole[len..]);
            whole.slice(..len)
        });
        self.count();
        frame.unwrap_or_default()
    }

    /// Gives idle memory back.
    pub(super) fn shrink(&self) {
        let mut begun = self.begun.borrow_mut();
        if let Some(idle) = begun.take_if(|begun| begun.buffer.is_empty()) {
            give_buffer(idle.buffer);
        }
    }

    /// No received command is executed any more.
    pub(super) fn discard(&self) {
        if let Ok(mut begun) = self.begun.try_borrow_mut() {
            *begun = None;
        }
    }

    /// Nothing of it is run, and nothing more is read.
    pub(super) fn end(&self) {
        self.discard();
        self.eof.set(true);
    }
}
