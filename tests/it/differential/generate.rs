//! From a seed to a sequence: a few clients, each with themes of its own, mixed.
//!
//! What differs by design is not generated; each such thing stands here with its reason, and in docs/reference/compatibility.md for
//! the reader. What no two servers agree on (random members, times, the order of a hash table) is left out too.

use std::collections::HashSet;

use fastrand::Rng;
use redbouncer::command::{Class, rows};

use super::sequence::{Request, Sequence, Step, Tail};
use super::trouble::Trouble;
use super::vocabulary;

/// What a version of the server has; sequences speak only of what it knows where the proxy differs otherwise.
#[derive(Debug)]
pub(crate) struct Abilities {
    /// The names of its commands, in lower case.
    pub(crate) commands: HashSet<String>,
    /// CLIENT SETINFO (7.2), which the proxy answers on every server.
    pub(crate) set_info: bool,
    /// Shard channels (7.0).
    pub(crate) shards: bool,
    /// CLIENT NO-EVICT (7.0), which the proxy answers on every server.
    pub(crate) no_evict: bool,
    /// What stands for a line's end is not looked at (Redis; Valkey looks).
    pub(crate) loose_lines: bool,
    /// CLIENT NO-TOUCH (7.2).
    pub(crate) no_touch: bool,
}

/// What a client has done, as far as the generator must know it to leave out what differs by design.
#[derive(Clone, Copy, Default)]
pub(super) struct Client {
    pub(super) in_multi: bool,
    /// Something that a login, or a lease with it, would touch.
    pub(super) holds: bool,
    pub(super) gone: bool,
    pub(super) blocked: bool,
    /// It has subscribed: then a command that the server does not know is refused in other words than the server's.
    pub(super) listens: bool,
    /// It reads nothing.
    pub(super) deaf: bool,
}

pub(super) struct Generator<'a> {
    pub(super) random: Rng,
    pub(super) abilities: &'a Abilities,
    pub(super) trouble: Trouble,
    /// The trouble is there at the moment: a pause, a demotion.
    pub(super) lasts: bool,
    pub(super) clients: Vec<Client>,
    number: u32,
}

/// The sequence of a seed, with this trouble in it.
pub(crate) fn sequence(seed: u64, trouble: Trouble, abilities: &Abilities) -> Sequence {
    let random = Rng::with_seed(seed);
    let clients = Vec::new();
    let mut generator = Generator { random, abilities, trouble, lasts: false, clients, number: 0 };
    loop {
        let sequence = generator.make();
        if is_comparable(&sequence, abilities) {
            return sequence;
        }
    }
}

/// Whether nothing in it is refused by design: inside MULTI a login and subscriptions, a login on a lease.
pub(crate) fn is_comparable(sequence: &Sequence, abilities: &Abilities) -> bool {
    const BEGIN: &[&str] = &["MULTI"];
    const END: &[&str] = &["EXEC", "DISCARD", "RESET"];
    const REFUSED: &[&str] =
        &["AUTH", "SUBSCRIBE", "UNSUBSCRIBE", "PSUBSCRIBE", "PUNSUBSCRIBE", "SSUBSCRIBE", "SUNSUBSCRIBE"];
    const HOLD: &[&str] = &["MULTI", "WATCH", "SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "CLIENT"];
    const SUBSCRIBE: &[&str] = &["SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"];
    const CHANGE: &[&str] = &[
        "SUBSCRIBE",
        "PSUBSCRIBE",
        "SSUBSCRIBE",
        "UNSUBSCRIBE",
        "PUNSUBSCRIBE",
        "SUNSUBSCRIBE",
        "RESET",
        "QUIT",
    ];
    let mut last = vec![String::new(); sequence.clients.len()];
    let nobody = vec![false; sequence.clients.len()];
    let (mut in_multi, mut holds, mut mutes) = (nobody.clone(), nobody.clone(), nobody.clone());
    let (mut tracks, mut loops, mut subscribes) = (nobody.clone(), nobody.clone(), nobody.clone());
    let (mut deaf, mut silenced) = (nobody.clone(), nobody.clone());
    let (mut listens, mut queues) = (nobody.clone(), nobody);
    let (mut waits, mut paused) = (false, false);
    let (muted, demoted) = (sequence.trouble == Trouble::Mute, sequence.trouble == Trouble::Demotion);
    let slow = sequence.trouble == Trouble::Slow;
    let renames = sequence.trouble == Trouble::Rename;
    let resets = sequence.requests().any(|request| request.is(&["RESET"]));
    let says_hello = sequence.requests().any(|request| request.is(&["HELLO"]));
    sequence.steps.iter().all(|step| {
        paused &= *step != Step::Unpause;
        match step {
            Step::Deafen(client) => deaf[*client] = true,
            Step::Hear(client) => deaf[*client] = false,
            _ => {}
        }
        let Step::Write { client, requests, tail, .. } = step else { return true };
        // The client waits for a thread of the server's, and a FIN ends that wait; over a lane there is none.
        if *tail != Tail::Stays && requests.iter().any(Request::is_threaded) {
            return false;
        }
        // A FIN ends it before its time has passed, if it is there in time.
        let is_brief = |request: &Request| request.may_block() && (request.has("0.01") || request.has("10"));
        if *tail != Tail::Stays && requests.iter().any(is_brief) {
            return false;
        }
        // Redis drops the replies before it that have not left.
        if requests.iter().skip(1).any(Request::is_http) && sequence.trouble == Trouble::HalfClose {
            return false;
        }
        // A server closes with a RST, and drops what is unsent, where something is left to read.
        if slow && requests.iter().any(|request| request.is(&["QUIT"]) || request.is_broken()) {
            return false;
        }
        // Who is told to go may or may not hear what stands before it in one write.
        let tells_to_go = |request: &Request| {
            request.is(&["CLIENT"])
                && request.has("KILL")
                && !own_names(*client).iter().any(|word| request.has(word))
        };
        if requests.iter().skip(1).any(|request| tells_to_go(request) && request.has_placeholder()) {
            return false;
        }
        // While writes are held, only what is known to be held or to pass is sent.
        const KNOWN: &[&str] = &[
            "SET", "INCR", "APPEND", "GET", "LRANGE", "HGETALL", "EXISTS", "ECHO", "TYPE", "XLEN", "CLIENT",
        ];
        if paused && !requests.iter().all(|request| request.is(KNOWN)) {
            return false;
        }
        paused |= requests.iter().any(|request| request.is(&["CLIENT"]) && request.has("60000"));
        if sequence.trouble == Trouble::Refusal {
            // Whether it would have changed its connection depends on how the server describes the container.
            if requests.iter().any(|request| request.has("NOSUCH")) {
                return false;
            }
            // A FIN stands for the end of a client that is closed, and would end a call that blocks before it.
            if requests.len() > 1 && requests.iter().any(Request::may_block) {
                return false;
            }
            // A subscriber is told what it may not do before it is told of a refusal.
            let listens = |request: &Request| request.is(SUBSCRIBE) || request.is(&["PING"]);
            if subscribes[*client] && !requests.iter().all(listens) {
                return false;
            }
            subscribes[*client] |= requests.iter().any(|request| request.is(SUBSCRIBE));
            if subscribes[*client] && !requests.iter().all(listens) {
                return false;
            }
        }
        // Nothing tells when a client that does not read has been answered, but the data.
        let shows = |request: &Request| request.is(&["INCR"]) && request.has(&format!("all{client}"));
        if deaf[*client] && !requests.last().is_some_and(shows) {
            return false;
        }
        // A subscriber's INCR is refused in RESP2, and shows nothing.
        let subscribed = listens[*client] || requests.iter().any(|request| request.is(SUBSCRIBE));
        let is_resp2 = sequence.clients[*client] == 2 || resets || says_hello;
        if deaf[*client] && subscribed && is_resp2 {
            return false;
        }
        // What the server does not read in one turn it may not read at all: by then a reply has come back.
        let length = |request: &Request| request.bytes(&|_, _| String::new()).len();
        if *tail == Tail::Leaves && requests.iter().map(length).sum::<usize>() > 12_000 {
            return false;
        }
        // How much of it has left for one who does not read, nobody says.
        if slow && requests.iter().any(|request| request.is(&["CLIENT"]) && request.has("KILL")) {
            return false;
        }
        // What is popped for a client that is not there goes back; directly it is lost.
        if *tail == Tail::Leaves && requests.iter().any(Request::may_block) {
            return false;
        }
        let speaks = |request: &Request| {
            // It is announced by an ECHO, which would be what is kept from the client.
            let names_itself = muted && request.is(&["CLIENT"]) && request.has("ID");
            // It tells the database, which another name of SELECT has changed; or what others do who are not waited for.
            let lists_itself =
                (renames || slow) && request.is(&["CLIENT"]) && (request.has("LIST") || request.has("INFO"));
            // With more keys than its first table has room for, a walk stops where the hash of the names says.
            let walks = (slow || sequence.trouble == Trouble::Pause) && request.is(&["SCAN"]);
            // Valkey redirects a client that says it follows redirects; none is followed here.
            let redirects = demoted && request.is(&["CLIENT"]) && request.has("CAPA");
            // The role is that of the last login.
            let tells_role = demoted && request.is(&["HELLO"]);
            // What a RESP2 subscriber may not send is refused here, by the server with READONLY first.
            let restricts = demoted && request.is(SUBSCRIBE) && (resets || sequence.clients[*client] == 2);
            !names_itself && !walks && !lists_itself && !redirects && !tells_role && !restricts
        };
        if !requests.iter().all(speaks) {
            return false;
        }
        // To Redis 8 a command's own name means it again where it has just been called by its other one.
        let repeats = requests.iter().any(|request| {
            let before = std::mem::replace(&mut last[*client], request.name());
            renames && before == format!("X{}", request.name())
        });
        if repeats {
            return false;
        }
        // A stream that a tracking client has waited for is invalidated at once.
        let own_loop = |request: &Request| request.is(&["CLIENT"]) && request.has("NOLOOP");
        loops[*client] |= requests.iter().any(own_loop);
        // What it pops beside its lease is popped by somebody else, to the server.
        if loops[*client] && requests.iter().any(Request::may_block) {
            return false;
        }
        tracks[*client] |= requests.iter().any(|request| request.is(&["CLIENT"]) && request.has("TRACKING"));
        if tracks[*client] && requests.iter().any(|request| request.is(&["XREAD"]) && request.has("BLOCK")) {
            return false;
        }
        // A connection that is to end behind a reply that is not wanted: Redis leaves it there.
        mutes[*client] |= requests.iter().any(|request| request.is(&["CLIENT"]) && request.has("REPLY"));
        let own = own_names(*client);
        let ends = |request: &Request| {
            let kills = request.is(&["CLIENT"]) && own.iter().any(|word| request.has(word));
            request.is(&["QUIT"]) || request.is_broken() || kills
        };
        if mutes[*client] && requests.iter().any(ends) {
            return false;
        }
        // Two commands for one, which a transaction of another name does not know.
        if renames && requests.iter().any(|request| request.is(&["WAIT"])) {
            return false;
        }
        // Behind a reply that is not yet written newer servers omit the error of a login that fails.
        let logs_in =
            |request: &Request| request.is(&["AUTH"]) || request.is(&["HELLO"]) && request.has("AUTH");
        if requests.iter().skip(1).any(logs_in) {
            return false;
        }
        // The server serves a waiting call before the next command, the proxy one round trip later.
        if waits && requests.len() > 1 {
            return false;
        }
        waits |= requests.iter().any(|request| request.may_block() && request.has("0"));
        let publishes = requests.iter().any(|request| request.is(&["PUBLISH", "SPUBLISH"]));
        let changes = requests.iter().any(|request| request.is(CHANGE));
        // A message, and an UNSUBSCRIBE to the server, are on their way for a moment: what stands together in one write may
        // hear, miss or count one more or less.
        !(publishes && changes)
            && requests.iter().all(|request| {
                let (open, held) = (&mut in_multi[*client], &mut holds[*client]);
                *open = (*open || request.is(BEGIN)) && !(request.is(END) && request.argc() == 1);
                let logs_in = request.is(&["AUTH"]) || request.is(&["HELLO"]) && request.has("AUTH");
                *held |= request.is(HOLD);
                // Redis 6.2 has commands of these names, which MULTI queues.
                let is_http = request.is_http();
                // Refused there only where replies are off, or would be.
                let mode = |word: &str| request.is(&["CLIENT"]) && request.has("REPLY") && request.has(word);
                silenced[*client] |= mode("OFF") || mode("SKIP");
                let is_refused = request.is(REFUSED) || logs_in || silenced[*client] && request.has("REPLY");
                // Outside of MULTI the proxy answers it on every server, and refuses it to a subscriber by its own table.
                listens[*client] |= request.is(SUBSCRIBE);
                let begins = request.is(BEGIN) && request.argc() == 1 && !renames && !listens[*client];
                let ends = request.is(&["EXEC"]) || request.is(END) && request.argc() == 1;
                queues[*client] = (queues[*client] || begins) && !ends;
                let is_ours = request.is(&["CLIENT"])
                    && (request.has("SETINFO") && !abilities.set_info
                        || request.has("NO-EVICT") && !abilities.no_evict
                        || request.has("NO-TOUCH") && !abilities.no_touch
                        || request.has("CAPA")
                        || request.has("IMPORT-SOURCE"));
                !(*open && is_refused) && (!is_ours || queues[*client]) && !(*held && (logs_in || is_http))
            })
    })
}

/// What stands for a client in a request.
fn own_names(client: usize) -> [String; 2] {
    [format!("{{id:{client}}}"), format!("{{addr:{client}}}")]
}

impl Generator<'_> {
    fn make(&mut self) -> Sequence {
        let count = self.random.usize(self.trouble.clients());
        self.clients = vec![Client::default(); count];
        self.lasts = false;
        let clients = (0..count).map(|_| self.random.u8(2..=3)).collect();
        let mut steps = Vec::new();
        for _ in 0..self.random.usize(3..=14) {
            let troubled = self.troubled();
            let is_apart = matches!(self.trouble, Trouble::Rename | Trouble::Refusal);
            steps.extend(if troubled.is_empty() && !is_apart {
                self.step().into_iter().collect()
            } else {
                troubled
            });
        }
        steps.extend(self.relieved());
        Sequence { trouble: self.trouble, clients, steps }
    }

    pub(super) fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.random.usize(0..from.len())]
    }

    pub(super) fn one_in(&mut self, count: usize) -> bool {
        self.random.usize(0..count) == 0
    }

    /// A client that is still there.
    pub(super) fn anybody(&mut self) -> Option<usize> {
        let client = self.random.usize(0..self.clients.len());
        (!self.clients[client].gone).then_some(client)
    }

    fn step(&mut self) -> Option<Step> {
        let client = self.anybody()?;
        // Directly a FIN drops what is unsent to a client that does not read.
        if self.one_in(60) && !self.clients[client].deaf {
            self.clients[client].gone = true;
            return Some(if self.random.bool() { Step::Leave(client) } else { Step::HalfClose(client) });
        }
        let requests = self.requests(client);
        Some(self.write(client, requests, Tail::Stays))
    }

    /// Requests in one piece or in several.
    pub(super) fn write(&mut self, client: usize, requests: Vec<Request>, tail: Tail) -> Step {
        let length: usize = requests.iter().map(|request| request.bytes(&|_, _| "0".to_owned()).len()).sum();
        let mut cuts = Vec::new();
        // Who leaves with the first replies unread may be forgotten before the last piece is read.
        if self.one_in(4) && tail != Tail::Leaves {
            cuts = (0..self.random.usize(1..=3)).map(|_| self.random.usize(1..=length.max(1))).collect();
            cuts.sort_unstable();
        }
        self.clients[client].gone |= tail != Tail::Stays;
        Step::Write { client, requests, cuts, tail }
    }

    /// What one client writes in one step.
    pub(super) fn requests(&mut self, client: usize) -> Vec<Request> {
        let theme = self.random.usize(0..100);
        let mut requests = match theme {
            0..=29 => (0..self.random.usize(1..=5)).map(|_| self.data(client)).collect(),
            30..=39 => (0..self.random.usize(1..=4)).filter_map(|_| self.anything(client)).collect(),
            40..=53 => self.transaction(client),
            54..=61 => self.publishing(client),
            62..=69 => self.blocking(client),
            70..=84 => self.session(client),
            85..=89 => self.muted(client),
            90..=94 => self.tracking(client),
            _ => self.framing(client),
        };
        if self.one_in(3) {
            requests.push(self.data(client));
        }
        if requests.is_empty() {
            requests.push(self.data(client));
        }
        requests
    }

    /// A command on data, its words filled in.
    pub(super) fn data(&mut self, client: usize) -> Request {
        let template = loop {
            let template = self.pick(vocabulary::DATA);
            let name = template.split(' ').next().unwrap_or_default().to_lowercase();
            let is_known = self.abilities.commands.contains(&name) && !template.ends_with("WITHSCORE");
            if !self.clients[client].listens || is_known {
                break template;
            }
        };
        let request = self.fill(template);
        let length = request.bytes(&|_, _| String::new()).len();
        if length < 1_000 && self.one_in(12) { self.inline(request) } else { request }
    }

    pub(super) fn fill(&mut self, template: &str) -> Request {
        Request::Words(template.split(' ').map(|word| self.word(word)).collect())
    }

    pub(super) fn fill_one(&mut self, templates: &[&str]) -> Request {
        let template = self.pick(templates);
        self.fill(template)
    }

    /// A word of a template: one capital letter stands for something to choose.
    fn word(&mut self, word: &str) -> Vec<u8> {
        let kinds = ["s", "l", "h", "z", "t", "x"];
        match word {
            "S" | "L" | "H" | "Z" | "T" | "X" => {
                let kind = if self.one_in(12) { self.pick(&kinds) } else { &word.to_lowercase() };
                format!("{kind}{}", self.random.u8(1..=2)).into_bytes()
            }
            "V" => self.value(),
            "W" => self.pick(vocabulary::SHORT).as_bytes().to_vec(),
            "N" => self.pick(vocabulary::NUMBERS).as_bytes().to_vec(),
            "M" => self.random.u8(0..6).to_string().into_bytes(),
            "I" => {
                self.number += 1;
                format!("1-{}", self.number).into_bytes()
            }
            "G" => self.pick(vocabulary::CHANNELS).as_bytes().to_vec(),
            other => other.as_bytes().to_vec(),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        match self.random.usize(0..16) {
            0 => Vec::new(),
            1 => b"\r\n\0\xff$5\r\n*1\r\n".to_vec(),
            2 => vec![b'x'; self.random.usize(60..300)],
            3 if self.one_in(4) => vec![b'y'; self.random.usize(10_000..70_000)],
            3..=8 => self.pick(vocabulary::NUMBERS).as_bytes().to_vec(),
            _ => self.pick(vocabulary::SHORT).as_bytes().to_vec(),
        }
    }

    /// Any command of the table with words that mostly do not fit it.
    fn anything(&mut self, client: usize) -> Option<Request> {
        let row = &rows()[self.random.usize(0..rows().len())];
        let beyond = matches!(row.class, Class::Control | Class::ClientUnknown | Class::ClientGetRedir);
        let local = matches!(row.class, Class::ClientGetName | Class::ClientCaching | Class::Select);
        if !matches!(row.class, Class::Pass | Class::Ping | Class::Unknown) && !beyond && !local
            || vocabulary::NOT_COMPARED.iter().any(|(name, _)| row.name.starts_with(name))
            || self.clients[client].listens
                && !(row.class == Class::Pass
                    && self.abilities.commands.contains(row.name)
                    && !row.name.ends_with("rank"))
        {
            return None;
        }
        let mut words: Vec<Vec<u8>> = row.name.split('|').map(|word| word.as_bytes().to_vec()).collect();
        for _ in 0..self.random.usize(0..6) {
            let token =
                self.pick(&["S", "L", "H", "Z", "T", "X", "W", "N", "N", "M", "(1", "WITHSCORES", "COUNT"]);
            words.push(self.word(token));
        }
        if self.one_in(10) {
            words[0].push(b'x');
        }
        Some(Request::Words(words))
    }

    pub(super) fn transaction(&mut self, client: usize) -> Vec<Request> {
        let mut requests = Vec::new();
        if self.one_in(4) {
            requests.push(Request::words(self.pick(&[
                "WATCH s1 l1",
                "WATCH h1",
                "UNWATCH",
                "WATCH",
                "UNWATCH x",
            ])));
            self.clients[client].holds = true;
        }
        if !self.one_in(8) {
            requests.push(Request::words("MULTI"));
            self.clients[client].in_multi = true;
        }
        for _ in 0..self.random.usize(0..5) {
            let member = match self.random.usize(0..30) {
                24..=29 => self.queued(client),
                0 => Request::words("MULTI"),
                1 => Request::words("WATCH s1"),
                2 => Request::words(self.pick(&["SELECT 1", "SELECT 0", "SELECT 99", "SELECT", "SELECT x"])),
                3 => Request::words("PUBLISH lonely V"),
                4 => self.fill_one(&["NOSUCH V", "GET", "SET S", "UNWATCH", "EXEC x", "PING V"]),
                5 => self.fill_one(&[
                    "BLPOP L 0",
                    "BLMOVE L L LEFT RIGHT 0",
                    "BZPOPMIN Z 0",
                    "XREAD BLOCK 0 STREAMS X $",
                ]),
                _ => self.data(client),
            };
            requests.push(member);
        }
        if !self.one_in(4) {
            let end = self.pick(&["EXEC", "EXEC", "EXEC", "DISCARD", "RESET"]);
            requests.push(Request::words(end));
            self.clients[client].in_multi = false;
            self.clients[client].holds = false;
        }
        requests
    }

    /// A command that means something here, for inside MULTI.
    fn queued(&mut self, client: usize) -> Request {
        if self.clients[client].listens {
            return self.data(client);
        }
        let own = format!("CLIENT LIST ID {{id:{client}}}");
        let line = match self.random.usize(0..20) {
            0..=3 => self.pick(vocabulary::HELLO),
            // To Redis 6.2 the id 0 means everybody.
            4..=9 => match self.pick(vocabulary::CLIENT) {
                "CLIENT KILL ID 0" if !self.abilities.no_evict => "CLIENT GETNAME",
                line => line,
            },
            10 => self.pick(vocabulary::SET_INFO),
            11 => self.pick(vocabulary::NO_TOUCH),
            12 | 13 => self.pick(vocabulary::TRACKING),
            14 => "CLIENT ID",
            15 => "CLIENT INFO",
            16 => &own,
            _ => self.pick(vocabulary::QUEUED),
        };
        Request::words(line)
    }

    pub(super) fn publishing(&mut self, client: usize) -> Vec<Request> {
        if self.clients[client].in_multi {
            // SUBSCRIBE is refused there.
            return vec![self.data(client)];
        }
        let mut templates: Vec<&'static str> = vec![
            "SUBSCRIBE G",
            "SUBSCRIBE G G G",
            "UNSUBSCRIBE G",
            "UNSUBSCRIBE",
            "PSUBSCRIBE G",
            "PSUBSCRIBE n* *s",
            "PUNSUBSCRIBE",
            "PUNSUBSCRIBE n*",
            "PUBLISH G V",
            "PUBLISH G V",
            "PUBLISH G V",
            "PUBLISH G",
            "SUBSCRIBE",
            "PING",
            "PING V",
            "PUBSUB CHANNELS lone*",
            "GET S",
        ];
        if self.abilities.shards {
            templates.extend(["SSUBSCRIBE G", "SUNSUBSCRIBE G", "SUNSUBSCRIBE", "SPUBLISH G V"]);
        }
        self.clients[client].holds = true;
        self.clients[client].listens = true;
        (0..self.random.usize(1..=4)).map(|_| self.fill_one(&templates)).collect()
    }

    pub(super) fn blocking(&mut self, client: usize) -> Vec<Request> {
        if self.clients[client].blocked || self.clients.iter().filter(|client| client.blocked).count() > 1 {
            return vec![self.fill_one(&["RPUSH l1 V", "ZADD z1 1 W", "XADD x1 I f V", "LPUSH l2 V V"])];
        }
        // A call that waits when the server becomes a replica learns of it at its next wake.
        let may_last = self.clients.len() > 1 && self.trouble != Trouble::Demotion;
        let forever = may_last && self.one_in(2);
        let (timeout, millis) = match (forever, self.trouble) {
            (true, _) => ("0", "0"),
            // A lane leaves when the server changes its role: the next try waits for another.
            (false, Trouble::Demotion) => ("0.1", "100"),
            (false, _) => ("0.01", "10"),
        };
        let call = match self.random.usize(0..14) {
            0 => format!("BLPOP l1 {timeout}"),
            1 => format!("BRPOP l1 l2 {timeout}"),
            2 => format!("BLMOVE l1 l2 LEFT RIGHT {timeout}"),
            3 => format!("BRPOPLPUSH l2 l1 {timeout}"),
            4 => format!("BZPOPMIN z1 {timeout}"),
            5 => format!("BZPOPMAX z1 z2 {timeout}"),
            6 if self.abilities.shards => format!("BLMPOP {timeout} 1 l1 LEFT COUNT 2"),
            7 if self.abilities.shards => format!("BZMPOP {timeout} 2 z1 z2 MIN"),
            8 => format!("XREAD BLOCK {millis} STREAMS x1 $"),
            9 => format!("XREAD COUNT 1 BLOCK {millis} STREAMS x1 x2 0 0"),
            10 => "BLPOP l1 x".to_owned(),
            11 => "BLPOP s1 -1".to_owned(),
            12 => "XREAD BLOCK x STREAMS x1 0".to_owned(),
            _ => "BLPOP s1 0.01".to_owned(),
        };
        self.clients[client].blocked = forever;
        let mut requests = vec![Request::words(&call)];
        if self.one_in(3) {
            let behind = self.pick(&["PING", "QUIT", "ECHO behind", "RESET", "SELECT 1"]);
            self.clients[client].gone = behind == "QUIT";
            requests.push(Request::words(behind));
        }
        requests
    }

    pub(super) fn session(&mut self, client: usize) -> Vec<Request> {
        if self.clients[client].in_multi {
            return vec![self.queued(client)];
        }
        let other = self.random.usize(0..self.clients.len());
        let mut requests = Vec::new();
        for _ in 0..self.random.usize(1..=3) {
            let line = match self.random.usize(0..40) {
                0..=4 => self.pick(vocabulary::HELLO).to_owned(),
                5..=9 => self.pick(vocabulary::SELECT).to_owned(),
                10..=17 => {
                    let line = self.pick(vocabulary::CLIENT);
                    // To Redis 6.2 the id 0 means everybody.
                    let is_new = line.contains("NO-EVICT") || line == "CLIENT KILL ID 0";
                    let is_known = self.abilities.no_evict || !is_new;
                    if is_known { line.to_owned() } else { "CLIENT GETNAME".to_owned() }
                }
                18..=20 => "CLIENT ID".to_owned(),
                21..=23 => "CLIENT INFO".to_owned(),
                24 if other == client => format!("CLIENT LIST ID {{id:{client}}}"),
                24 => format!("CLIENT LIST ID {{id:{other}}} {{id:{client}}}"),
                25 => self
                    .pick(&["CLIENT LIST", "CLIENT LIST TYPE normal", "CLIENT LIST TYPE PubSub"])
                    .to_owned(),
                26 | 27 => {
                    // Whoever is told to go may or may not still be answered.
                    if other != client {
                        self.clients[other].gone = true;
                    }
                    let kind = self.pick(&[
                        "ID {id:@}",
                        "ADDR {addr:@}",
                        "{addr:@}",
                        "ID {id:@} TYPE normal SKIPME yes",
                        "ADDR {addr:@} USER default LADDR {laddr:@}",
                        "ID {id:@} ADDR 1.2.3.4:5",
                    ]);
                    let line = format!("CLIENT KILL {}", kind.replace('@', &other.to_string()));
                    if other == client {
                        self.clients[client].gone = true;
                        requests.push(Request::words(&line));
                        return requests;
                    }
                    line
                }
                28 => format!("CLIENT UNBLOCK {{id:{other}}} {}", self.pick(&["TIMEOUT", "ERROR", "x"])),
                29 | 30 => "RESET".to_owned(),
                31 if self.one_in(3) => "QUIT".to_owned(),
                // Behind a reply that is not yet written newer servers omit the error of a login that fails.
                32 if !self.clients[client].holds => {
                    return vec![Request::words(self.pick(vocabulary::AUTH))];
                }
                33 if self.abilities.set_info => self.pick(vocabulary::SET_INFO).to_owned(),
                34 if self.abilities.no_touch => self.pick(vocabulary::NO_TOUCH).to_owned(),
                _ => self.pick(vocabulary::SERVER).to_owned(),
            };
            requests.push(Request::words(&line));
        }
        requests
    }

    /// CLIENT REPLY: what is not answered cannot be waited for, so the write ends with something that is.
    pub(super) fn muted(&mut self, client: usize) -> Vec<Request> {
        if self.clients[client].in_multi {
            return vec![self.data(client)];
        }
        if self.one_in(2) {
            return vec![
                Request::words("CLIENT REPLY SKIP"),
                self.data(client),
                self.data(client),
                Request::words("PING"),
            ];
        }
        let mut requests = vec![Request::words("CLIENT REPLY OFF")];
        for _ in 0..self.random.usize(0..4) {
            requests.push(match self.random.usize(0..8) {
                0 => Request::words(self.pick(vocabulary::SELECT)),
                1 => Request::words("CLIENT REPLY SKIP"),
                2 => Request::words("CLIENT SETNAME quiet"),
                3 => Request::words(self.pick(&["EXEC", "WATCH s1", "DISCARD"])),
                _ => self.data(client),
            });
        }
        // Whatever the members of a transaction did: it is over.
        requests.push(Request::words("DISCARD"));
        requests.push(Request::words("CLIENT REPLY ON"));
        requests
    }

    fn tracking(&mut self, client: usize) -> Vec<Request> {
        self.clients[client].holds = true;
        let line = self.pick(vocabulary::TRACKING);
        let mut requests = vec![Request::words(line)];
        if self.one_in(2) {
            requests.extend([self.fill("GET S"), self.data(client)]);
        }
        requests
    }

    fn inline(&mut self, request: Request) -> Request {
        let Request::Words(words) = request else { return request };
        let line: Vec<String> = words.iter().map(|word| format!("\"{}\"", hexed(word))).collect();
        let end = self.pick(&["\r\n", "\n"]);
        Request::Raw(format!("{}{end}", line.join(" ")).into_bytes())
    }

    fn framing(&mut self, client: usize) -> Vec<Request> {
        let mut requests = vec![Request::words("PING")];
        let harmless: &[u8] = self.pick(vocabulary::NOTHING);
        if self.abilities.loose_lines || !vocabulary::LOOSE.contains(&harmless) {
            requests.push(Request::Raw(harmless.to_vec()));
        }
        if self.one_in(3) {
            let broken: &[u8] = self.pick(vocabulary::BROKEN);
            if !self.abilities.loose_lines && vocabulary::LOOSE.contains(&broken) {
                return requests;
            }
            if Request::Raw(broken.to_vec()).is_http() {
                // Whether what stands before it in one write is still answered depends on how it was read.
                requests.clear();
            }
            requests.push(Request::Raw(broken.to_vec()));
            self.clients[client].gone = true;
        }
        requests
    }
}

/// What an inline word in double quotes needs.
fn hexed(word: &[u8]) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.*+".contains(&byte);
    word.iter()
        .map(|byte| if plain(*byte) { char::from(*byte).to_string() } else { format!("\\x{byte:02x}") })
        .collect()
}
