//! A small Redis over the simulated network: strings, lists, blocking pops, transactions, channels, client-side caching, the
//! clients' listing; and what happens to a server: a restart, a demotion, a stall, no place for a connection.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Sabotage;
use crate::resp::{Protocol, Request, RequestLimits, RequestScanner, RequestStep, encode};
use crate::upstream::simulated::{End, Network};

const READONLY: &str = "READONLY You can't write against a read only replica.";
const WRONGTYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const DATABASES: u32 = 16;

type Key = (u32, Bytes);

/// A call that blocks.
struct Blocked {
    keys: Vec<Key>,
    left: bool,
    until: Option<Instant>,
    since: u64,
}

/// What the server keeps of one connection.
struct Client {
    name: Bytes,
    protocol: Protocol,
    database: u32,
    queue: Option<Vec<Vec<Bytes>>>,
    aborted: bool,
    watched: BTreeSet<Key>,
    dirty: bool,
    channels: BTreeSet<Bytes>,
    tracking: bool,
    /// Invalidations behind the reply that is being written.
    invalidated: Vec<Bytes>,
    blocked: Option<Blocked>,
    out: BytesMut,
    woken: Rc<Notify>,
    closing: bool,
    since: Instant,
    active: Instant,
    last: String,
}

/// The server's data and connections.
#[derive(Default)]
struct Core {
    clients: BTreeMap<u64, Client>,
    ids: u64,
    strings: BTreeMap<Key, Bytes>,
    lists: BTreeMap<Key, VecDeque<Bytes>>,
    /// Who is to be told about a key.
    tracked: BTreeMap<Bytes, BTreeSet<u64>>,
    blocks: u64,
    /// Lists that have grown since blocked clients were served.
    grown: Vec<Key>,
    executing: Option<u64>,
    replica: bool,
    run: u64,
    /// Elements that were in two places at once, and other things that cannot be.
    wrong: Vec<String>,
    /// Elements that a restart has lost.
    lost: BTreeSet<Bytes>,
    unknown: BTreeSet<String>,
    executed: u64,
    /// What it does wrong, each time that the count has this many more.
    sabotage: Option<Sabotage>,
    chances: u64,
    echoed: Option<Bytes>,
    /// A message that is late, with its channel.
    delayed: Option<(Bytes, Bytes)>,
}

/// The server.
pub(super) struct Server {
    network: Network,
    core: RefCell<Core>,
    stalled: Cell<Option<Instant>>,
    max_clients: Cell<usize>,
    most: Cell<usize>,
}

impl Server {
    pub(super) fn new(network: Network, sabotage: Option<Sabotage>) -> Rc<Self> {
        Rc::new(Self {
            network,
            core: RefCell::new(Core { sabotage, ..Core::default() }),
            stalled: Cell::new(None),
            max_clients: Cell::new(10_000),
            most: Cell::new(0),
        })
    }

    /// Takes connections. Never returns.
    pub(super) async fn run(self: Rc<Self>) {
        loop {
            let (number, end) = self.network.accept().await;
            tokio::task::spawn_local(Rc::clone(&self).serve(number, end));
        }
    }

    /// Clients with a connection.
    pub(super) fn connected(&self) -> usize {
        self.core.borrow().clients.len()
    }

    /// What was found to be impossible.
    pub(super) fn wrong(&self) -> Vec<String> {
        self.core.borrow().wrong.clone()
    }

    /// Commands that this model does not have.
    pub(super) fn unknown(&self) -> Vec<String> {
        self.core.borrow().unknown.iter().cloned().collect()
    }

    /// Commands that have run.
    pub(super) fn executed(&self) -> u64 {
        self.core.borrow().executed
    }

    /// The elements that lie in lists, and those that a restart has lost.
    pub(super) fn elements(&self) -> (Vec<Bytes>, BTreeSet<Bytes>) {
        let core = self.core.borrow();
        (core.lists.values().flatten().cloned().collect(), core.lost.clone())
    }

    /// All connections end; nobody listens for `time`.
    pub(super) async fn restart(&self, time: Duration, keeps_data: bool) {
        self.network.note(|| format!("the server restarts, keeps data: {keeps_data}"));
        self.network.listen(false);
        {
            let mut core = self.core.borrow_mut();
            core.run += 1;
            core.tracked.clear();
            core.grown.clear();
            if !keeps_data {
                core.strings.clear();
                let lists = std::mem::take(&mut core.lists);
                core.lost.extend(lists.into_values().flatten());
            }
            for client in core.clients.values_mut() {
                client.closing = true;
                client.woken.notify_one();
            }
        }
        tokio::time::sleep(time).await;
        self.network.listen(true);
    }

    /// A master becomes a replica, which refuses writes and unblocks who waits for them, or a replica a master.
    pub(super) fn set_replica(&self, replica: bool) {
        self.network.note(|| format!("replica: {replica}"));
        let mut core = self.core.borrow_mut();
        core.replica = replica;
        if replica {
            for client in core.clients.values_mut().filter(|client| client.blocked.is_some()) {
                client.blocked = None;
                encode::error(
                    &mut client.out,
                    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
                );
                client.woken.notify_one();
            }
        }
    }

    /// It runs nothing for `time`.
    pub(super) fn stall(&self, time: Duration) {
        self.network.note(|| format!("the server stalls for {time:?}"));
        self.stalled.set(Some(Instant::now() + time));
    }

    pub(super) fn limit_clients(&self, most: usize) {
        self.network.note(|| format!("maxclients {most}"));
        self.max_clients.set(most);
    }

    async fn wait_for_the_stall(&self) {
        while let Some(until) = self.stalled.get().filter(|until| *until > Instant::now()) {
            tokio::time::sleep_until(until).await;
        }
    }

    async fn serve(self: Rc<Self>, number: u64, mut end: End) {
        self.wait_for_the_stall().await;
        if self.connected() >= self.max_clients.get() {
            let _ = end.write_all(b"-ERR max number of clients reached\r\n").await;
            return;
        }
        let woken = Rc::new(Notify::new());
        let id = self.core.borrow_mut().connect(Rc::clone(&woken));
        self.most.set(self.most.get().max(self.connected()));
        self.network.note(|| format!("{number} is client {id}"));
        self.converse(id, &mut end, &woken).await;
        self.core.borrow_mut().forget(id);
        self.network.note(|| format!("client {id} is closed"));
    }

    async fn converse(&self, id: u64, end: &mut End, woken: &Notify) {
        let mut buffer = BytesMut::new();
        let mut input = [0; 4096];
        loop {
            // What it has to say.
            loop {
                let out = {
                    let mut core = self.core.borrow_mut();
                    let Some(client) = core.clients.get_mut(&id) else { return };
                    client.out.split()
                };
                if out.is_empty() {
                    break;
                }
                if end.write_all(&out).await.is_err() {
                    return;
                }
            }
            let until = {
                let core = self.core.borrow();
                let Some(client) = core.clients.get(&id) else { return };
                if client.closing {
                    return;
                }
                client.blocked.as_ref().map(|blocked| blocked.until)
            };
            if until.is_none()
                && let Some(words) = next_request(&mut buffer)
            {
                self.wait_for_the_stall().await;
                // It may have restarted meanwhile, with other data.
                if self.core.borrow().clients.get(&id).is_none_or(|client| client.closing) {
                    return;
                }
                self.network.note(|| format!("client {id}: {}", shown(&words)));
                self.core.borrow_mut().run(id, &words);
                continue;
            }
            let timer = until.flatten();
            tokio::select! {
                biased;
                () = woken.notified() => {}
                read = end.read(&mut input) => match read {
                    Ok(0) | Err(_) => {
                        self.wait_for_the_stall().await;
                        return;
                    }
                    Ok(len) => buffer.extend_from_slice(&input[..len]),
                },
                () = tokio::time::sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {
                    self.core.borrow_mut().time_out(id);
                }
            }
        }
    }
}

/// The words that matter to a trace: what holds a random name or word is left out.
fn shown(words: &[Bytes]) -> String {
    let name = String::from_utf8_lossy(&words[0]).to_ascii_uppercase();
    let is_random = match &name[..] {
        "PING" => words.len() > 1,
        "CLIENT" => words.len() > 2 && !words[1].eq_ignore_ascii_case(b"TRACKING"),
        _ => false, // nothing random in it
    };
    if is_random {
        return format!("{name} ({} words)", words.len());
    }
    words
        .iter()
        .map(|word| String::from_utf8_lossy(&word[..word.len().min(40)]).into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

fn next_request(buffer: &mut BytesMut) -> Option<Vec<Bytes>> {
    let step = RequestScanner::default().step(buffer, &RequestLimits::default());
    let Ok(RequestStep::Request(shape)) = step else {
        assert!(
            matches!(step, Ok(RequestStep::Incomplete { .. })),
            "the server gets requests and nothing else: {step:?}"
        );
        return None;
    };
    let frame = buffer.split_to(shape.len).freeze();
    let request = Request::parse(&frame).expect("the proxy sends canonical requests");
    Some(request.args().map(Bytes::copy_from_slice).collect())
}

impl Core {
    fn connect(&mut self, woken: Rc<Notify>) -> u64 {
        self.ids += 1;
        let now = Instant::now();
        let client = Client {
            name: Bytes::new(),
            protocol: Protocol::Resp2,
            database: 0,
            queue: None,
            aborted: false,
            watched: BTreeSet::new(),
            dirty: false,
            channels: BTreeSet::new(),
            tracking: false,
            invalidated: Vec::new(),
            blocked: None,
            out: BytesMut::new(),
            woken,
            closing: false,
            since: now,
            active: now,
            last: String::new(),
        };
        self.clients.insert(self.ids, client);
        self.ids
    }

    fn forget(&mut self, id: u64) {
        self.clients.remove(&id);
        for told in self.tracked.values_mut() {
            told.remove(&id);
        }
    }

    fn time_out(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.blocked.as_ref().and_then(|blocked| blocked.until).is_some_and(|at| at <= Instant::now()) {
            client.blocked = None;
            let protocol = client.protocol;
            encode::null_array(&mut client.out, protocol);
        }
    }

    fn out(&mut self, id: u64) -> &mut BytesMut {
        &mut self.clients.get_mut(&id).expect("it is connected").out
    }

    /// Runs one command of client `id`, and whatever it sets going.
    fn run(&mut self, id: u64, words: &[Bytes]) {
        let name = words[0].to_ascii_lowercase();
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.active = Instant::now();
        client.last = String::from_utf8_lossy(&name).into_owned();
        self.executing = Some(id);
        self.executed += 1;
        match (&name[..], client.queue.is_some()) {
            (b"exec", true) => self.exec(id),
            (b"exec" | b"discard", false) => {
                let text = format!("ERR {} without MULTI", String::from_utf8_lossy(&name).to_uppercase());
                encode::error(self.out(id), &text);
            }
            (b"discard", true) => {
                client.queue = None;
                client.aborted = false;
                client.dirty = false;
                client.watched.clear();
                encode::simple(&mut client.out, "OK");
            }
            (b"multi", true) => encode::error(&mut client.out, "ERR MULTI calls can not be nested"),
            (b"multi", false) => {
                client.queue = Some(Vec::new());
                encode::simple(&mut client.out, "OK");
            }
            (b"reset" | b"quit", _) => {
                client.closing = &name[..] == b"quit";
                client.queue = None;
                client.watched.clear();
                client.dirty = false;
                encode::simple(&mut client.out, if client.closing { "OK" } else { "RESET" });
            }
            (other, true) if self.replica && is_write(other) => {
                client.aborted = true;
                encode::error(&mut client.out, READONLY);
            }
            (_, true) => {
                client.queue.get_or_insert_default().push(words.to_vec());
                encode::simple(&mut client.out, "QUEUED");
            }
            (_, false) => self.execute(id, &name, words, false),
        }
        self.executing = None;
        if let Some(client) = self.clients.get_mut(&id) {
            let keys = std::mem::take(&mut client.invalidated);
            keys.iter().for_each(|key| invalidate(&mut client.out, key));
        }
        self.serve_the_blocked();
    }

    fn exec(&mut self, id: u64) {
        let client = self.clients.get_mut(&id).expect("it is connected");
        let queue = client.queue.take().unwrap_or_default();
        client.watched.clear();
        let is_dirty = std::mem::take(&mut client.dirty);
        if std::mem::take(&mut client.aborted) {
            return encode::error(
                &mut client.out,
                "EXECABORT Transaction discarded because of previous errors.",
            );
        }
        if is_dirty {
            let protocol = client.protocol;
            return encode::null_array(&mut client.out, protocol);
        }
        encode::array(&mut client.out, queue.len());
        for words in queue {
            let name = words[0].to_ascii_lowercase();
            self.execute(id, &name, &words, true);
        }
    }

    /// A key has another value than before.
    fn changed(&mut self, key: &Key) {
        for client in self.clients.values_mut().filter(|client| client.watched.contains(key)) {
            client.dirty = true;
        }
        let told = self.tracked.remove(&key.1).unwrap_or_default();
        if self.goes_wrong(Sabotage::MissInvalidation) {
            return;
        }
        for id in told {
            let Some(client) = self.clients.get_mut(&id) else { continue };
            if self.executing == Some(id) {
                client.invalidated.push(key.1.clone());
            } else {
                invalidate(&mut client.out, &key.1);
                client.woken.notify_one();
            }
        }
    }

    /// Whether now is the time for `sabotage`: one chance in three.
    fn goes_wrong(&mut self, sabotage: Sabotage) -> bool {
        if self.sabotage != Some(sabotage) {
            return false;
        }
        self.chances += 1;
        self.chances.is_multiple_of(3)
    }

    fn pop(&mut self, key: &Key, left: bool) -> Option<Bytes> {
        let (is_lost, is_kept) =
            (self.goes_wrong(Sabotage::LoseElement), self.goes_wrong(Sabotage::DoubleElement));
        let list = self.lists.get_mut(key)?;
        if is_lost && list.len() > 1 {
            list.pop_front();
        }
        if is_kept {
            return list.front().cloned();
        }
        let element = if left { list.pop_front() } else { list.pop_back() }?;
        if list.is_empty() {
            self.lists.remove(key);
        }
        self.changed(key);
        Some(element)
    }

    fn push(&mut self, key: &Key, elements: &[Bytes], left: bool) -> usize {
        for element in elements {
            if self.lists.values().any(|list| list.contains(element)) {
                self.wrong.push(format!("{element:?} is pushed a second time"));
            }
            let list = self.lists.entry(key.clone()).or_default();
            if left { list.push_front(element.clone()) } else { list.push_back(element.clone()) }
        }
        self.changed(key);
        self.grown.push(key.clone());
        self.lists.get(key).map_or(0, VecDeque::len)
    }

    fn serve_the_blocked(&mut self) {
        while let Some(key) = self.grown.pop() {
            while self.lists.contains_key(&key) {
                let first = self
                    .clients
                    .iter()
                    .filter_map(|(id, client)| Some((client.blocked.as_ref()?, *id)))
                    .filter(|(blocked, _)| blocked.keys.contains(&key))
                    .min_by_key(|(blocked, _)| blocked.since)
                    .map(|(blocked, id)| (id, blocked.left));
                let Some((id, left)) = first else { break };
                let Some(element) = self.pop(&key, left) else { break };
                let client = self.clients.get_mut(&id).expect("it is blocked");
                client.blocked = None;
                client.woken.notify_one();
                encode::array(&mut client.out, 2);
                encode::bulk(&mut client.out, &key.1);
                encode::bulk(&mut client.out, &element);
            }
        }
    }

    fn execute(&mut self, id: u64, name: &[u8], words: &[Bytes], in_exec: bool) {
        let client = self.clients.get_mut(&id).expect("it is connected");
        let (database, protocol) = (client.database, client.protocol);
        let word = |at: usize| words.get(at).cloned().unwrap_or_default();
        if self.replica && is_write(name) {
            return encode::error(&mut client.out, READONLY);
        }
        match name {
            b"hello" => {
                match &word(1)[..] {
                    b"3" => client.protocol = Protocol::Resp3,
                    b"2" => client.protocol = Protocol::Resp2,
                    _ => {} // it stays as it is
                }
                greet(&mut client.out, client.protocol, id, self.replica);
            }
            b"auth" | b"readonly" | b"readwrite" => encode::simple(&mut client.out, "OK"),
            b"select" => match std::str::from_utf8(&word(1)).ok().and_then(|text| text.parse().ok()) {
                Some(number) if number < DATABASES => {
                    client.database = number;
                    encode::simple(&mut client.out, "OK");
                }
                _ => encode::error(&mut client.out, "ERR DB index is out of range"),
            },
            b"ping" if words.len() > 1 => encode::bulk(&mut client.out, &word(1)),
            b"ping" => encode::simple(&mut client.out, "PONG"),
            b"echo" => {
                let word = match self.echoed.replace(word(1)) {
                    Some(other) if self.goes_wrong(Sabotage::CrossReplies) => other,
                    _ => word(1), // the right one
                };
                encode::bulk(self.out(id), &word);
            }
            b"role" => {
                encode::array(&mut client.out, 3);
                encode::bulk(&mut client.out, if self.replica { b"slave" } else { b"master" });
                encode::integer(&mut client.out, 0);
                encode::array(&mut client.out, 0);
            }
            b"info" => {
                let info =
                    format!("redis_version:7.2.0\r\nredis_mode:standalone\r\nrun_id:{:040}\r\n", self.run);
                encode::bulk(&mut client.out, info.as_bytes());
            }
            b"config" => encode::map(&mut client.out, protocol, 0),
            b"command" => encode::array(&mut client.out, 0),
            b"wait" => encode::integer(&mut client.out, 0),
            b"client" => self.client(id, words),
            b"publish" => {
                let heard = self.publish(&word(1), &word(2));
                encode::integer(self.out(id), heard);
            }
            b"subscribe" | b"unsubscribe" => self.listen(id, name, &words[1..]),
            b"pubsub" => encode::array(&mut client.out, 0),
            b"watch" if in_exec => encode::error(&mut client.out, "ERR WATCH inside MULTI is not allowed"),
            b"watch" => {
                client.watched.extend(words[1..].iter().map(|name| (database, name.clone())));
                encode::simple(&mut client.out, "OK");
            }
            b"unwatch" => {
                client.watched.clear();
                client.dirty = false;
                encode::simple(&mut client.out, "OK");
            }
            _ => self.execute_on_keys(id, name, words, in_exec), // the others
        }
    }

    /// A command that reads or writes keys.
    fn execute_on_keys(&mut self, id: u64, name: &[u8], words: &[Bytes], in_exec: bool) {
        let client = self.clients.get_mut(&id).expect("it is connected");
        let (database, protocol) = (client.database, client.protocol);
        let word = |at: usize| words.get(at).cloned().unwrap_or_default();
        let key = (database, word(1));
        if client.tracking && matches!(name, b"get" | b"llen" | b"exists") {
            for name in &words[1..] {
                self.tracked.entry(name.clone()).or_default().insert(id);
            }
        }
        let is_list = self.lists.contains_key(&key);
        let is_string = self.strings.contains_key(&key);
        match name {
            b"get" if is_list => encode::error(&mut client.out, WRONGTYPE),
            b"get" => match self.strings.get(&key) {
                Some(value) => encode::bulk(&mut client.out, value),
                None => encode::null(&mut client.out, protocol),
            },
            b"set" => {
                self.strings.insert(key.clone(), word(2));
                self.changed(&key);
                encode::simple(self.out(id), "OK");
            }
            b"exists" => {
                let of = |name: &&Bytes| {
                    let key = (database, (*name).clone());
                    self.lists.contains_key(&key) || self.strings.contains_key(&key)
                };
                let there = words[1..].iter().filter(of).count();
                encode::integer(&mut client.out, there as i64);
            }
            b"llen" | b"lpush" | b"rpush" | b"lpop" | b"rpop" if is_string => {
                encode::error(&mut client.out, WRONGTYPE);
            }
            b"llen" => {
                let len = self.lists.get(&key).map_or(0, VecDeque::len);
                encode::integer(&mut client.out, len as i64);
            }
            b"lpush" | b"rpush" => {
                let len = self.push(&key, &words[2..], name == b"lpush");
                encode::integer(self.out(id), len as i64);
            }
            b"lpop" | b"rpop" => match self.pop(&key, name == b"lpop") {
                Some(element) => encode::bulk(self.out(id), &element),
                None => encode::null(self.out(id), protocol),
            },
            b"blpop" | b"brpop" => self.blocking_pop(id, words, name == b"blpop", in_exec),
            other => {
                let name = String::from_utf8_lossy(other).into_owned();
                encode::error(&mut client.out, &format!("ERR unknown command '{name}'"));
                self.unknown.insert(name);
            }
        }
    }

    fn blocking_pop(&mut self, id: u64, words: &[Bytes], left: bool, in_exec: bool) {
        let (timeout, keys) = words[1..].split_last().expect("a timeout");
        let client = self.clients.get_mut(&id).expect("it is connected");
        let (database, protocol) = (client.database, client.protocol);
        let timeout: Option<f64> = std::str::from_utf8(timeout).ok().and_then(|text| text.parse().ok());
        let Some(timeout) = timeout else {
            return encode::error(&mut client.out, "ERR timeout is not a float or out of range");
        };
        let keys: Vec<Key> = keys.iter().map(|name| (database, name.clone())).collect();
        for key in &keys {
            if self.strings.contains_key(key) {
                return encode::error(self.out(id), WRONGTYPE);
            }
            if let Some(element) = self.pop(key, left) {
                let out = self.out(id);
                encode::array(out, 2);
                encode::bulk(out, &key.1);
                encode::bulk(out, &element);
                return;
            }
        }
        if in_exec {
            return encode::null_array(self.out(id), protocol);
        }
        self.blocks += 1;
        let since = self.blocks;
        let until = (timeout > 0.0).then(|| Instant::now() + Duration::from_secs_f64(timeout));
        let client = self.clients.get_mut(&id).expect("it is connected");
        client.blocked = Some(Blocked { keys, left, until, since });
    }

    fn publish(&mut self, channel: &Bytes, message: &Bytes) -> i64 {
        if self.goes_wrong(Sabotage::DelayMessage) {
            self.delayed = Some((channel.clone(), message.clone()));
            return 0;
        }
        let heard = self.tell(channel, message);
        if self.goes_wrong(Sabotage::DoubleMessage) {
            self.tell(channel, message);
        }
        if let Some((_, delayed)) = self.delayed.take_if(|(of, _)| of == channel) {
            self.tell(channel, &delayed);
        }
        heard
    }

    fn tell(&mut self, channel: &Bytes, message: &Bytes) -> i64 {
        let mut heard = 0;
        for client in self.clients.values_mut().filter(|client| client.channels.contains(channel)) {
            encode::push(&mut client.out, client.protocol, 3);
            for word in [&b"message"[..], channel, message] {
                encode::bulk(&mut client.out, word);
            }
            client.woken.notify_one();
            heard += 1;
        }
        heard
    }

    fn listen(&mut self, id: u64, name: &[u8], names: &[Bytes]) {
        let client = self.clients.get_mut(&id).expect("it is connected");
        let names = if names.is_empty() { client.channels.iter().cloned().collect() } else { names.to_vec() };
        for at in 0..names.len().max(1) {
            encode::push(&mut client.out, client.protocol, 3);
            encode::bulk(&mut client.out, name);
            match names.get(at) {
                Some(channel) => {
                    if name == b"subscribe" {
                        client.channels.insert(channel.clone());
                    } else {
                        client.channels.remove(channel);
                    }
                    encode::bulk(&mut client.out, channel);
                }
                None => encode::null(&mut client.out, client.protocol),
            }
            encode::integer(&mut client.out, client.channels.len() as i64);
        }
    }

    fn client(&mut self, id: u64, words: &[Bytes]) {
        let second = words.get(1).map(|word| word.to_ascii_lowercase()).unwrap_or_default();
        let rows: String = if second == b"list" { self.rows() } else { String::new() };
        let client = self.clients.get_mut(&id).expect("it is connected");
        match &second[..] {
            b"setname" => {
                client.name = words.get(2).cloned().unwrap_or_default();
                encode::simple(&mut client.out, "OK");
            }
            b"id" => encode::integer(&mut client.out, id as i64),
            b"list" => encode::bulk(&mut client.out, rows.as_bytes()),
            b"tracking" => {
                client.tracking = words.get(2).is_some_and(|word| word.eq_ignore_ascii_case(b"on"));
                if !client.tracking {
                    for told in self.tracked.values_mut() {
                        told.remove(&id);
                    }
                }
                encode::simple(self.out(id), "OK");
            }
            b"kill" => {
                let killed = words
                    .iter()
                    .position(|word| word.eq_ignore_ascii_case(b"id"))
                    .and_then(|at| std::str::from_utf8(words.get(at + 1)?).ok()?.parse::<u64>().ok())
                    .and_then(|other| self.clients.get_mut(&other));
                let count = match killed {
                    Some(other) => {
                        other.closing = true;
                        other.woken.notify_one();
                        1
                    }
                    None => 0,
                };
                encode::integer(self.out(id), count);
            }
            _ => encode::simple(&mut client.out, "OK"), // nothing else is asked of it
        }
    }

    fn rows(&self) -> String {
        let now = Instant::now();
        self.clients
            .iter()
            .map(|(id, client)| {
                format!(
                    "id={id} addr=127.0.0.1:{} laddr=127.0.0.1:6379 fd=8 name={} age={} idle={} flags=N db={} sub={} psub=0 \
                     ssub=0 multi=-1 cmd={} user=default redir=-1 resp=2 lib-name= lib-ver=\n",
                    10_000 + id,
                    String::from_utf8_lossy(&client.name),
                    (now - client.since).as_secs(),
                    (now - client.active).as_secs(),
                    client.database,
                    client.channels.len(),
                    client.last
                )
            })
            .collect()
    }
}

fn is_write(name: &[u8]) -> bool {
    matches!(name, b"set" | b"lpush" | b"rpush" | b"lpop" | b"rpop" | b"blpop" | b"brpop")
}

fn invalidate(out: &mut BytesMut, key: &[u8]) {
    out.extend_from_slice(b">2\r\n$10\r\ninvalidate\r\n*1\r\n");
    encode::bulk(out, key);
}

fn greet(out: &mut BytesMut, protocol: Protocol, id: u64, replica: bool) {
    let role = if replica { "replica" } else { "master" };
    encode::map(out, protocol, 7);
    for (key, value) in [("server", "redis"), ("version", "7.2.0"), ("mode", "standalone"), ("role", role)] {
        encode::bulk(out, key.as_bytes());
        encode::bulk(out, value.as_bytes());
    }
    encode::bulk(out, b"proto");
    encode::integer(out, i64::from(protocol.number()));
    encode::bulk(out, b"id");
    encode::integer(out, id as i64);
    encode::bulk(out, b"modules");
    encode::array(out, 0);
}
