//! The open listeners: accepting, held still while another process takes them over, closed.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::thread::JoinHandle;

use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::runtime::runtime;
use crate::admin::{self, View};
use crate::downstream::{AcceptOptions, HandedSocket, Listener, ListenerRole};
use crate::takeover::TakeoverSocket;

/// Every listener of the process.
pub(super) struct Doors {
    listeners: RefCell<Vec<Listener>>,
    admin: Option<admin::Server>,
    takeover: RefCell<Option<Rc<TakeoverSocket>>>,
    door: AcceptOptions,
    accepting: RefCell<Accepting>,
}

/// What accepts now.
#[derive(Default)]
struct Accepting {
    /// Cancelled when clients without TLS are not accepted any more.
    plain: CancellationToken,
    admin: Option<AbortHandle>,
    /// Those with TLS have a thread of their own, because a handshake takes longer than anything that the others do.
    tls: Vec<TlsThread>,
}

struct TlsThread {
    /// Cancelled when no more clients are accepted; handshakes under way go on.
    paused: CancellationToken,
    /// Cancelled when those end, too.
    closed: CancellationToken,
    thread: JoinHandle<()>,
}

impl Doors {
    pub(super) fn new(
        listeners: Vec<Listener>,
        admin: Option<admin::Server>,
        takeover: Option<TakeoverSocket>,
        door: AcceptOptions,
    ) -> Self {
        Self {
            listeners: RefCell::new(listeners),
            admin,
            takeover: RefCell::new(takeover.map(Rc::new)),
            door,
            accepting: RefCell::default(),
        }
    }

    /// Serves operators.
    pub(super) fn open_admin<V: View + 'static>(&self, view: &Rc<V>) -> io::Result<()> {
        if let Some(server) = &self.admin {
            let serving = server.duplicate()?.serve(Rc::clone(view));
            self.accepting.borrow_mut().admin = Some(tokio::task::spawn_local(serving).abort_handle());
        }
        Ok(())
    }

    /// Accepts clients.
    pub(super) fn open(&self) -> io::Result<()> {
        let listeners = self.listeners.borrow();
        let duplicates = listeners.iter().map(Listener::duplicate).collect::<io::Result<Vec<_>>>()?;
        let (tls, plain): (Vec<_>, Vec<_>) = duplicates.into_iter().partition(Listener::is_tls);
        let mut accepting = self.accepting.borrow_mut();
        accepting.plain = CancellationToken::new();
        for listener in plain {
            tokio::task::spawn_local(accept(listener, self.door.clone(), accepting.plain.clone()));
        }
        if !tls.is_empty() {
            accepting.tls.push(TlsThread::start(tls, self.door.clone())?);
        }
        Ok(())
    }

    /// The socket by which another process may take over.
    pub(super) fn takeover(&self) -> Option<Rc<TakeoverSocket>> {
        self.takeover.borrow().clone()
    }

    /// Every listening socket once more, for another process.
    pub(super) fn hand_over(&self) -> io::Result<Vec<HandedSocket>> {
        let mut handed =
            self.listeners.borrow().iter().map(Listener::hand_over).collect::<io::Result<Vec<_>>>()?;
        let own = |role, socket| HandedSocket { role, from_service_manager: false, socket };
        if let Some(server) = &self.admin {
            handed.push(own(ListenerRole::Admin, server.hand_over()?));
        }
        if let Some(socket) = &*self.takeover.borrow() {
            handed.push(own(ListenerRole::Takeover, socket.hand_over()?));
        }
        Ok(handed)
    }

    /// No more clients are accepted here; they wait in the sockets, which stay open.
    pub(super) fn pause(&self) {
        let mut accepting = self.accepting.borrow_mut();
        accepting.plain.cancel();
        if let Some(admin) = accepting.admin.take() {
            admin.abort();
        }
        for thread in &accepting.tls {
            thread.paused.cancel();
        }
    }

    /// The sockets are those of another process from now on, and their files, too.
    pub(super) fn leave(&self) {
        self.pause();
        self.own_files(false);
        self.listeners.take();
        self.takeover.take();
    }

    /// Whether this process removes the files of its Unix sockets when it ends.
    pub(super) fn own_files(&self, ours: bool) {
        for listener in self.listeners.borrow_mut().iter_mut() {
            listener.own_file(ours);
        }
        if let Some(socket) = &*self.takeover.borrow() {
            socket.own_file(ours);
        }
    }

    /// No more clients come in; their sockets are closed. The admin port stays as it is.
    pub(super) fn close(&self) {
        let admin = self.accepting.borrow_mut().admin.take();
        self.pause();
        self.accepting.borrow_mut().admin = admin;
        self.listeners.take();
        self.takeover.take();
        for thread in std::mem::take(&mut self.accepting.borrow_mut().tls) {
            thread.closed.cancel();
            // A thread that panicked has said so.
            drop(thread.thread.join());
        }
    }
}

impl TlsThread {
    fn start(listeners: Vec<Listener>, door: AcceptOptions) -> io::Result<Self> {
        let (paused, closed) = (CancellationToken::new(), CancellationToken::new());
        let (is_paused, is_closed) = (paused.clone(), closed.clone());
        let thread = std::thread::Builder::new().name("tls".to_owned()).spawn(move || {
            let runtime = match runtime() {
                Ok(runtime) => runtime,
                Err(error) => return tracing::error!(%error, "no TLS client can be accepted"),
            };
            runtime.block_on(async {
                for listener in listeners {
                    tokio::task::spawn_local(accept(listener, door.clone(), is_paused.clone()));
                }
                // Handshakes under way end with the runtime.
                is_closed.cancelled().await;
            });
        })?;
        Ok(Self { paused, closed, thread })
    }
}

async fn accept(listener: Listener, door: AcceptOptions, paused: CancellationToken) {
    let address = listener.address();
    if let Err(error) = listener.accept(door, paused).await {
        tracing::error!(listen = address, %error, "no client can be accepted");
    }
}
