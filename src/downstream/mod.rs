//! The clients' side: accept, and for each client read, route, write.
//!
//! A worker is one thread and owns everything it touches. Reading order: `options`, `identity` (who clients are),
//! `admission` (how many there may be), `settings` (what a reload changes), `socket`, `moved` (clients between two processes),
//! `redirection` (invalidations that go to another client),
//! `workers` (how workers are reached), `listen` (accept and handshakes),
//! `context` (what the clients of a worker share), `client` (the parts of one), `routes` (where its commands go), `worker` (the event loop).

mod admission;
mod client;
mod context;
mod identity;
mod listen;
mod moved;
mod options;
mod redirection;
mod routes;
mod settings;
mod socket;
mod worker;
mod workers;

pub use admission::{Admission, Limits};
pub use identity::{
    Account, AdminCommands, AuthMode, AuthOptions, Cost, Directory, PasswordHash, StaticUser, toll,
};
pub use listen::{
    AcceptOptions, AcceptTerms, ClientAuth, HandedSocket, InheritedSockets, ListenError, ListenOptions,
    ListenTlsOptions, Listener, ListenerRole, PreparedTls, ServerTls, SocketFile, UNIX, bind_unix, listen,
};
pub use moved::{Accepts, Announced, ClientDescription, Leaving, MovedClient, Verdict, WayOut};
pub use options::{ClientOptions, MemoryMax, OutputLimit};
pub use settings::{ConfigHandle, ConfigRequest, Outcome, ReloadReport, SettingRow, WorkerSettings};
pub(crate) use worker::Worker;
pub use worker::WorkerConfig;
pub use workers::{Accepted, Incoming, Message, Question, WorkerFigures, WorkerHandle, Workers};
