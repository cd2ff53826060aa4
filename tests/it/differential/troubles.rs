//! The steps that are made of a trouble, among those of fair weather ([`super::generate`]).
//!
//! What differs by design in trouble is not generated, as there; each such thing has its reason beside it.

use super::generate::Generator;
use super::sequence::{Request, Step, Tail};
use super::trouble::{Kind, Trouble};
use super::vocabulary;

impl Generator<'_> {
    /// The next steps, if they are of the trouble; else the next one is as in fair weather.
    pub(super) fn troubled(&mut self) -> Vec<Step> {
        match self.trouble {
            Trouble::None => Vec::new(),
            Trouble::HalfClose | Trouble::Leave => self.farewell().into_iter().collect(),
            Trouble::Slow => self.late_reading(),
            Trouble::Pause => self.pause(),
            Trouble::Refusal => self.crowd().into_iter().collect(),
            Trouble::Rename => self.other_names().into_iter().collect(),
            Trouble::Mute => self.muting().into_iter().collect(),
            Trouble::Kill => self.kills(),
            Trouble::Demotion => self.demotion(),
        }
    }

    /// What ends the trouble at the end of the sequence.
    pub(super) fn relieved(&mut self) -> Vec<Step> {
        let deaf = (0..self.clients.len()).filter(|client| self.clients[*client].deaf);
        let mut steps: Vec<Step> = deaf.map(Step::Hear).collect();
        if self.trouble == Trouble::Pause && self.lasts {
            steps.extend(self.unpause());
        }
        steps
    }

    /// A pipeline of anything, and the end of the connection, or of what the client writes, right behind it.
    fn farewell(&mut self) -> Option<Step> {
        if !self.one_in(3) {
            return None;
        }
        let client = self.anybody()?;
        let mut requests = Vec::new();
        for _ in 0..self.random.usize(1..=3) {
            requests.extend(self.requests(client));
        }
        if self.one_in(3) {
            requests.extend(self.blocking(client));
        }
        requests.push(self.fill_one(&["SET s2 V", "RPUSH l2 V", "INCR s1"]));
        let tail = if self.trouble == Trouble::Leave { Tail::Leaves } else { Tail::HalfCloses };
        Some(self.write(client, requests, tail))
    }

    /// A client asks for a lot and reads nothing for a while.
    fn late_reading(&mut self) -> Vec<Step> {
        let Some(client) = self.anybody().filter(|_| self.one_in(2)) else { return Vec::new() };
        if self.clients[client].deaf {
            self.clients[client].deaf = false;
            return vec![Step::Hear(client)];
        }
        if self.clients[client].in_multi || self.clients[client].blocked {
            return Vec::new();
        }
        self.clients[client].deaf = true;
        // What the kernel keeps of it, and more than that: the proxy has to keep megabytes of its own then.
        let is_much = self.one_in(6);
        let length = self.random.usize(if is_much { 400_000..600_000 } else { 20_000..200_000 });
        let mut requests = vec![Request::words(&format!("SETRANGE big{client} {length} x"))];
        for _ in 0..self.random.usize(if is_much { 12..=16 } else { 1..=4 }) {
            requests.push(Request::words(&format!("GET big{client}")));
            if self.one_in(2) {
                requests.push(self.data(client));
            }
        }
        // What must wait for what is unread, and for a connection.
        let behind = match self.random.usize(0..8) {
            0..=2 => self.transaction(client),
            3 => self.session(client),
            4 => self.publishing(client),
            5 => self.blocking(client),
            6 => self.muted(client),
            _ => Vec::new(),
        };
        requests.extend(behind);
        if !self.clients[client].in_multi {
            // By the data it shows that all before it has run.
            requests.push(Request::words(&format!("INCR all{client}")));
        }
        vec![Step::Deafen(client), self.write(client, requests, Tail::Stays)]
    }

    /// A pause of writes that lasts until UNPAUSE: whoever reads is served meanwhile. Writes that are held belong to their
    /// clients alone: in which order a server lets go of them is not promised to anybody.
    fn pause(&mut self) -> Vec<Step> {
        let Some(client) = self.anybody() else {
            return if self.lasts { self.unpause() } else { Vec::new() };
        };
        if !self.lasts {
            if !self.one_in(3) || self.clients[client].in_multi || self.clients[client].blocked {
                return Vec::new();
            }
            self.lasts = true;
            return vec![self.write(client, vec![Request::words("CLIENT PAUSE 60000 WRITE")], Tail::Stays)];
        }
        if self.one_in(5) {
            return self.unpause();
        }
        let mut requests = Vec::new();
        for _ in 0..self.random.usize(1..=3) {
            let own = match self.random.usize(0..10) {
                0 => format!("SET own{client} v"),
                1 => format!("INCR own{client}"),
                2 => format!("APPEND own{client} x"),
                _ => String::new(),
            };
            requests.push(if own.is_empty() {
                self.fill_one(&[
                    "GET S",
                    "LRANGE L 0 -1",
                    "HGETALL H",
                    "EXISTS S L",
                    "ECHO W",
                    "TYPE Z",
                    "XLEN X",
                ])
            } else {
                Request::words(&own)
            });
        }
        // Only what is sent a moment later is known to pass what is held.
        vec![self.write(client, requests, Tail::Stays), Step::Wait(40)]
    }

    fn unpause(&mut self) -> Vec<Step> {
        // Whoever is held cannot say it.
        self.lasts = false;
        vec![Step::Unpause]
    }

    /// More that needs connections than there are. Each request has one reply.
    fn crowd(&mut self) -> Option<Step> {
        let client = self.anybody()?;
        let mut requests = Vec::new();
        for _ in 0..self.random.usize(1..=4) {
            requests.extend(match self.random.usize(0..16) {
                0 | 1 => vec![self.fill_one(&["WATCH S", "WATCH S L"])],
                2 | 3 => vec![Request::words("MULTI")],
                4 | 5 => vec![Request::words(self.pick(&["EXEC", "EXEC", "DISCARD", "UNWATCH"]))],
                6 => vec![
                    Request::words("MULTI"),
                    self.data(client),
                    self.data(client),
                    Request::words("EXEC"),
                ],
                7 => vec![Request::words(
                    self.pick(&["SELECT 1", "SELECT 0", "SELECT 2", "HELLO 3", "HELLO 2"]),
                )],
                8 => vec![Request::words(self.pick(&[
                    "DEBUG SLEEP 0",
                    "WAIT 0 0",
                    "NOSUCHCOMMAND x",
                    "CLIENT TRACKING on",
                    "RESET",
                ]))],
                9 => {
                    vec![Request::words(self.pick(&["BLPOP l1 0.01", "SUBSCRIBE news", "PUBLISH lonely x"]))]
                }
                _ => vec![self.data(client)],
            });
        }
        Some(self.write(client, requests, Tail::Stays))
    }

    /// Both names of commands that have another one on this server, and data: what is answered without the server does not
    /// know of a transaction that another name has begun.
    fn other_names(&mut self) -> Option<Step> {
        let client = self.anybody()?;
        let mut requests = Vec::new();
        for _ in 0..self.random.usize(1..=4) {
            requests.extend(match self.random.usize(0..12) {
                0 | 1 => vec![Request::words("XMULTI")],
                2 => vec![Request::words("EXEC")],
                3 => vec![Request::words("XMULTI"), self.data(client), Request::words("EXEC")],
                4 => vec![Request::words(self.pick(&[
                    "XSELECT 1",
                    "XSELECT 2",
                    "XSELECT 0",
                    "XSELECT x",
                    "XSELECT",
                ]))],
                5 => vec![Request::words(self.pick(&["SELECT 1", "SELECT 2", "MULTI", "WATCH s1"]))],
                6 => vec![Request::words(self.pick(&[
                    "XWATCH s1",
                    "XWATCH s1 l1",
                    "UNWATCH",
                    "XWATCH",
                    "DISCARD",
                ]))],
                7 => {
                    vec![Request::words(self.pick(&["XDEBUG SLEEP 0", "DEBUG SLEEP 0", "XDEBUG"]))]
                }
                _ => vec![self.data(client)],
            });
        }
        Some(self.write(client, requests, Tail::Stays))
    }

    /// CLIENT REPLY in every place, over many writes.
    fn muting(&mut self) -> Option<Step> {
        let client = self.anybody().filter(|_| self.one_in(2))?;
        if self.clients[client].in_multi {
            return None;
        }
        let mut requests = Vec::new();
        for _ in 0..self.random.usize(1..=5) {
            match self.random.usize(0..14) {
                0..=2 => requests.push(Request::words("CLIENT REPLY OFF")),
                3 | 4 => requests.push(Request::words("CLIENT REPLY ON")),
                5 | 6 => requests.push(Request::words("CLIENT REPLY SKIP")),
                7 => requests.push(Request::words("RESET")),
                8 => requests.push(Request::words(self.pick(vocabulary::SELECT))),
                9 => requests.extend(self.transaction(client)),
                10 => requests.push(Request::words(self.pick(&[
                    "WATCH s1",
                    "NOSUCHCOMMAND x",
                    "BLPOP l1 0.01",
                ]))),
                _ => requests.push(self.data(client)),
            }
            if self.clients[client].in_multi {
                requests.push(Request::words("DISCARD"));
                self.clients[client].in_multi = false;
            }
        }
        Some(self.write(client, requests, Tail::Stays))
    }

    /// Connections of some kinds end at a quiet moment.
    fn kills(&mut self) -> Vec<Step> {
        if !self.one_in(3) {
            return Vec::new();
        }
        let mut steps = Vec::new();
        if let Some(client) = self.anybody().filter(|client| !self.clients[*client].in_multi)
            && self.one_in(2)
        {
            // State for the connection to take with it.
            let lines: &[&str] = match self.random.usize(0..8) {
                0 | 1 => &["WATCH s1"],
                2 => &["WATCH s1 l1", "MULTI", "SET s1 v"],
                3 => &["MULTI"],
                4 => &["CLIENT TRACKING on", "GET s1"],
                5 => &["SUBSCRIBE news"],
                6 => &["PSUBSCRIBE n*", "SUBSCRIBE news"],
                _ => &["SET s1 v", "GET s1"],
            };
            self.clients[client].in_multi = lines.contains(&"MULTI");
            self.clients[client].listens |= lines[lines.len() - 1] == "SUBSCRIBE news";
            self.clients[client].holds = true;
            let requests = lines.iter().map(|line| Request::words(line)).collect();
            steps.push(self.write(client, requests, Tail::Stays));
        }
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|_| self.one_in(3)).collect();
        steps.extend((!kinds.is_empty()).then_some(Step::Kill(kinds)));
        steps
    }

    /// The server becomes a replica, and a master again.
    fn demotion(&mut self) -> Vec<Step> {
        let turn = self.one_in(4);
        self.lasts ^= turn;
        // What the server has accepted within a quarter of a second is believed.
        let change = match (turn, self.lasts) {
            (false, _) => Vec::new(),
            (true, true) => vec![Step::Demote, Step::Wait(260)],
            (true, false) => vec![Step::Promote],
        };
        // A consumer that does nothing else must learn of it too, also of a key that was empty a moment before.
        let consumer = self.anybody().filter(|client| !self.clients[*client].in_multi && self.one_in(3));
        let Some(client) = consumer.filter(|client| !self.clients[*client].blocked) else {
            return Vec::new();
        };
        let call = self.pick(&[
            "BLPOP l1 0.1",
            "BRPOP l1 l2 0.1",
            "BLMOVE l1 l2 LEFT RIGHT 0.1",
            "BZPOPMIN z1 0.1",
            "XREAD BLOCK 100 STREAMS x1 0",
            "XREAD BLOCK 100 STREAMS x1 $",
        ]);
        let before = self.write(client, vec![Request::words(call)], Tail::Stays);
        let after = self.write(client, vec![Request::words(call)], Tail::Stays);
        [vec![before], change, vec![after]].concat()
    }
}
