//! What a lease holds, against a model of the server's side of it.
//!
//! Any commands, planned as they come and answered late and in pieces. Before the model: whenever no reply is outstanding,
//! what the lease says of the connection is what is on it; a lease that is over leaves nothing behind, and one that is
//! clean leaves the connection as it was. Before a server that says anything: no panic.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::Input;
use super::lease_server::Connection;
use crate::command::classify;
use crate::resp::{ReplyScanner, Request, encode};
use crate::session::{
    Beside, Expect, LeaseState, Placement, Plan, Policy, Received, ServerFacts, Session, User,
};

/// What a client may send. `UNHEARD` stands for commands of no table.
const COMMANDS: [&str; 44] = [
    "GET k",
    "SET k v",
    "PING",
    "MULTI",
    "EXEC",
    "DISCARD",
    "WATCH k",
    "UNWATCH",
    "SELECT 0",
    "SELECT 3",
    "SELECT 99",
    "SUBSCRIBE a",
    "SUBSCRIBE a b a",
    "UNSUBSCRIBE",
    "UNSUBSCRIBE a",
    "PSUBSCRIBE p*",
    "PUNSUBSCRIBE",
    "SSUBSCRIBE s",
    "SUNSUBSCRIBE",
    "PUBLISH a m",
    "PUBSUB CHANNELS",
    "CLIENT TRACKING on",
    "CLIENT TRACKING off",
    "CLIENT TRACKING on REDIRECT 5",
    "CLIENT CACHING yes",
    "CLIENT NO-TOUCH on",
    "CLIENT NO-TOUCH off",
    "CLIENT SETNAME x",
    "CLIENT GETNAME",
    "CLIENT ID",
    "CLIENT REPLY off",
    "CLIENT REPLY on",
    "CLIENT REPLY skip",
    "CLIENT KILL ID 5",
    "CLIENT",
    "HELLO",
    "HELLO 2",
    "HELLO 3",
    "HELLO 9",
    "MONITOR",
    "WAIT 0 0",
    "BLPOP k 1",
    "KEYS x",
    "UNHEARD OF",
];

/// Nothing is known beside the lease.
struct Nothing;

impl Beside for Nothing {
    fn facts(&self) -> ServerFacts {
        ServerFacts::default()
    }

    fn counted(&self, _: &[u8], _: &[u8]) -> Option<Bytes> {
        None
    }
}

/// A session, its lease, and the server's end of the connection.
struct Run<'a> {
    input: Input<'a>,
    session: Session,
    state: LeaseState,
    scanner: ReplyScanner,
    partial: BytesMut,
    server: Connection,
    /// What the server has said and the lease has not read.
    wire: BytesMut,
    /// Written and not run yet.
    written: VecDeque<Bytes>,
    /// Where the connection was when the lease began.
    began: (u32, crate::resp::Protocol),
    policy: Policy,
    unknown: Placement,
    hostile: bool,
}

/// Runs the program that `data` is.
pub fn lease(data: &[u8]) {
    let mut input = Input::new(data);
    let form = input.byte();
    let user = User { id: 1, name: "default".into() };
    let mut session = Session::new(1, Some(user), 0);
    if form & 1 == 1 {
        session.protocol = crate::resp::Protocol::Resp3;
    }
    let unknown = *input.choose(&[Placement::Lane, Placement::Once, Placement::MayBlock, Placement::Lasting]);
    let mut run = Run {
        input,
        state: LeaseState::new(),
        scanner: ReplyScanner::default(),
        partial: BytesMut::new(),
        server: Connection::default(),
        wire: BytesMut::new(),
        written: VecDeque::new(),
        began: (0, session.protocol),
        session,
        policy: Policy {
            pubsub_hub: form & 2 == 2,
            refuse_admin: form & 4 == 4,
            cluster: form & 8 == 8,
            readonly: form & 8 == 8,
            tracked_lanes: form & 32 == 32,
            ..Policy::default()
        },
        unknown,
        hostile: form & 16 == 16,
    };
    run.begin();
    while !run.input.is_empty() {
        match run.input.below(8) {
            0..=3 => run.command(),
            4 => run.serve(1),
            5 => {
                let most = 1 + run.input.below(24);
                run.read(most);
            }
            6 if run.hostile => {
                let said = run.input.piece(32);
                run.wire.extend_from_slice(said);
            }
            6 => run.server.say_unasked(&mut run.wire),
            _ => run.settle(),
        }
    }
    run.settle();
}

impl Run<'_> {
    /// A fresh lease, on a connection in the session's database and protocol.
    fn begin(&mut self) {
        self.state = LeaseState::new();
        self.scanner = ReplyScanner::default();
        self.partial.clear();
        self.wire.clear();
        self.written.clear();
        self.began = (self.session.database, self.session.protocol);
        self.server = Connection {
            protocol: self.session.protocol,
            database: self.session.database,
            ..Connection::default()
        };
    }

    fn command(&mut self) {
        let words: Vec<&[u8]> = self.input.choose(&COMMANDS).split(' ').map(str::as_bytes).collect();
        let frame = encode::one_command(&words);
        let request = Request::parse(&frame).unwrap();
        let asked = classify(&request);
        let plan = self.state.plan(&self.session, &asked, &request, self.policy, self.unknown);
        if plan == Plan::AfterReplies {
            return;
        }
        let muted = plan.is_muted(&mut self.session);
        match plan {
            Plan::Forward(expect) => {
                self.state.sent(expect, &asked, muted);
                self.written.push_back(frame);
            }
            Plan::Blocking(_) => {
                self.state.sent(Expect::Blocking, &asked, muted);
                self.written.push_back(frame);
            }
            Plan::ForwardWait => {
                self.state.sent(Expect::WaitPublish, &asked, true);
                self.written.push_back(encode::one_command(&[b"PUBLISH", b"redbouncer:wait", b""]));
                self.state.sent(Expect::Wait, &asked, muted);
                self.written.push_back(frame);
            }
            Plan::Hello(hello) => {
                let version = hello.protocol.unwrap_or(self.session.protocol).number().to_string();
                self.state.sent(Expect::Hello(hello), &asked, muted);
                self.written.push_back(encode::one_command(&[b"HELLO", version.as_bytes()]));
            }
            Plan::RefuseInMulti(text) => {
                self.state.sent(Expect::Instead(encode::one_error(&text)), &asked, muted);
                self.written.push_back(encode::one_command(&[b"CLIENT"]));
            }
            Plan::Queue(stand_in, member) => {
                self.state.sent(Expect::Queued(member), &asked, muted);
                self.written.push_back(stand_in);
            }
            Plan::Local(class) => {
                let _ = self.session.answer(class, &request, &mut BytesMut::new());
            }
            Plan::End(class) => {
                let _ = self.session.answer(class, &request, &mut BytesMut::new());
                // RESET has logged it out, and what comes next is another login.
                self.session.user = Some(User { id: 1, name: "default".into() });
                self.begin();
            }
            Plan::Wait(_) | Plan::Refuse(_) | Plan::Aside(_) | Plan::AfterReplies => {}
        }
    }

    /// The server runs what was written, `most` commands of it.
    fn serve(&mut self, most: usize) {
        for _ in 0..most {
            let Some(frame) = self.written.pop_front() else { return };
            self.server.run(&frame, &mut self.input, &mut self.wire);
        }
    }

    /// The lease reads at most so many bytes, as `Held::deliver` does.
    fn read(&mut self, most: usize) {
        let mut data = self.wire.split_to(most.min(self.wire.len()));
        while !data.is_empty() {
            if !self.scanner.in_frame() {
                self.scanner.open_arrays(self.state.opens_array());
            }
            let Ok(step) = self.scanner.step(&data) else {
                assert!(self.hostile, "the model's replies are replies");
                return self.begin();
            };
            let kind = step.complete.or_else(|| self.scanner.kind());
            let whole = !self.partial.is_empty()
                || kind.is_none_or(|kind| self.state.wants_whole(kind, self.session.protocol));
            let _ = self.state.mutes_next(self.session.replies);
            if whole {
                self.partial.extend_from_slice(&data[..step.consumed]);
            }
            data.advance(step.consumed);
            let Some(kind) = step.complete else { continue };
            let frame = self.partial.split().freeze();
            if let Some(len) = self.scanner.opened() {
                self.state.array_begins(len);
                continue;
            }
            match self.state.received(kind, &frame, &mut self.session, &Nothing) {
                Received::Desync => {
                    assert!(self.hostile, "every reply of the model's answers a command");
                    return self.begin();
                }
                Received::Beside(_) => self.state.has_answered(),
                Received::Forward | Received::Message | Received::Swallow | Received::Instead(_) => {}
            }
        }
        if self.wire.is_empty() && self.written.is_empty() {
            self.compare();
        }
    }

    fn settle(&mut self) {
        self.serve(self.written.len());
        self.read(self.wire.len());
        self.compare();
        if self.state.is_over() {
            self.begin();
        }
    }

    /// Nothing is under way: what the lease knows is what the server has.
    fn compare(&self) {
        if self.hostile {
            return;
        }
        assert_eq!(self.state.outstanding(), 0, "every command was answered");
        let (flags, server) = (self.state.flags(), &self.server);
        let queued = server.multi.as_ref().map(|queue| u32::try_from(queue.len()).unwrap());
        assert_eq!(flags.multi, queued, "what is queued");
        assert_eq!((flags.watching, flags.monitor), (server.watching, server.monitor), "WATCH, MONITOR");
        assert_eq!(
            (flags.tracking, flags.no_touch),
            (server.tracking, server.no_touch),
            "TRACKING, NO-TOUCH"
        );
        let counts = server.subscriptions.each_ref().map(std::collections::BTreeSet::len);
        assert_eq!([flags.channels, flags.patterns, flags.shards], counts, "subscriptions");
        let connection = (server.database, server.protocol);
        assert_eq!((self.session.database, self.session.protocol), connection, "SELECT, HELLO");
        assert!(!self.state.is_over() || !server.holds_state(), "a lease that is over leaves nothing");
        assert!(
            !self.state.is_clean() || connection == self.began,
            "a clean lease leaves the connection as it was"
        );
    }
}
