//! The registry with as many names as a client may bring.

use std::cell::Cell;

use super::requests::STEP;
use super::*;
use crate::hub::driver::HubProtocol;
use crate::hub::pubsub::listener::Message;
use crate::resp::ReplyKind;
use tokio::time::Instant;

#[derive(Default)]
struct Heard {
    confirmed: Cell<usize>,
    /// Most of them in one step.
    step: Cell<usize>,
    done: Cell<usize>,
    refused: Cell<usize>,
    lost: Cell<usize>,
}

impl Listener for Heard {
    fn message(&self, _: &Message) {}
    fn confirmed(&self, _: Listen, names: &[Bytes], are_all: bool) {
        self.confirmed.set(self.confirmed.get() + names.len());
        self.step.set(self.step.get().max(names.len()));
        self.done.set(self.done.get() + usize::from(are_all));
    }
    fn refused(&self, _: &Bytes) {
        self.refused.set(self.refused.get() + 1);
    }
    fn unserved(&self, _: &Unavailable) {}
    fn lost(&self) {
        self.lost.set(self.lost.get() + 1);
    }
    fn caught_up(&self) {}
}

fn names(prefix: &str, count: usize) -> Vec<Bytes> {
    (0..count).map(|at| Bytes::from(format!("{prefix}{at}"))).collect()
}

fn confirm(topics: &mut SubscriptionRegistry, names: &[Bytes]) {
    for name in names {
        let mut frame = BytesMut::new();
        encode::push(&mut frame, crate::resp::Protocol::Resp3, 3);
        encode::bulk(&mut frame, b"subscribe");
        encode::bulk(&mut frame, name);
        encode::integer(&mut frame, 1);
        topics.receive(ReplyKind::Push, &frame, Instant::now()).unwrap();
    }
}

/// How often the state of a name is looked at for `count` names, subscribed in one command or in as many.
fn looks(count: usize, at_once: bool) -> u64 {
    let mut topics = SubscriptionRegistry::new(Arc::default());
    topics.connected();
    let heard = Rc::new(Heard::default());
    let all = names("c", count);
    let chunk = if at_once { count } else { 1 };
    for chunk in all.chunks(chunk) {
        let listener = Rc::clone(&heard) as Rc<dyn Listener>;
        assert!(topics.subscribe(1, listener, Listen::Channels, chunk.to_vec()).is_some());
    }
    confirm(&mut topics, &all);
    assert_eq!(heard.confirmed.get(), count);
    assert!(!topics.is_awaited());
    topics.looks.get()
}

#[test]
fn the_cost_of_a_name_does_not_grow_with_their_number() {
    for at_once in [true, false] {
        let (few, many) = (looks(1_000, at_once), looks(10_000, at_once));
        assert!(many <= few * 11, "{few} looks for 1,000 names, {many} for 10,000");
    }
}

fn ask(topics: &mut SubscriptionRegistry, who: u64, heard: &Rc<Heard>, names: &[Bytes]) {
    let listener = Rc::clone(heard) as Rc<dyn Listener>;
    assert!(topics.subscribe(who, listener, Listen::Channels, names.to_vec()).is_some());
}

#[test]
fn very_many_names_are_joined_in_steps_and_each_once_also_after_a_loss() {
    let mut topics = SubscriptionRegistry::new(Arc::default());
    topics.connected();
    let (heard, all) = (Rc::new(Heard::default()), names("c", 10_000));
    ask(&mut topics, 1, &heard, &all);
    confirm(&mut topics, &all[..7_200]);
    assert_eq!((heard.confirmed.get(), heard.done.get()), (7_000, 0));
    topics.disconnected(true);
    topics.connected();
    // What is listened to is asked for first, in any order.
    while let Some(Sent::Names { names, .. }) = topics.sent.front() {
        let names = names.clone();
        confirm(&mut topics, &names);
    }
    assert_eq!((heard.confirmed.get(), heard.step.get(), heard.done.get()), (10_000, STEP, 1));
    assert!(!topics.is_awaited());
    for name in &all {
        topics.unsubscribe(1, Listen::Channels, name);
    }
    assert!(!topics.is_needed());
}

/// Redis judges all names of a command before it subscribes to the first.
#[test]
fn of_a_command_that_is_refused_nothing_is_joined() {
    let mut topics = SubscriptionRegistry::new(Arc::default());
    topics.connected();
    let (other, heard) = (Rc::new(Heard::default()), Rc::new(Heard::default()));
    let mut all = names("c", 2 * STEP);
    ask(&mut topics, 1, &other, &all);
    confirm(&mut topics, &all);
    all.push(Bytes::from("forbidden"));
    ask(&mut topics, 2, &heard, &all);
    topics.receive(ReplyKind::Error, b"-NOPERM no\r\n", Instant::now()).unwrap();
    assert_eq!((heard.confirmed.get(), heard.refused.get()), (0, 1));
}

#[test]
fn requests_that_share_names_end_when_the_last_of_theirs_is_confirmed_also_after_a_loss() {
    let mut topics = SubscriptionRegistry::new(Arc::default());
    topics.connected();
    let (one, other) = (Rc::new(Heard::default()), Rc::new(Heard::default()));
    let [a, b] = [Bytes::from("a"), Bytes::from("b")];
    let subscribe = |topics: &mut SubscriptionRegistry, who, heard: &Rc<Heard>, names: &[&Bytes]| {
        let names = names.iter().map(|name| (*name).clone()).collect();
        topics.subscribe(who, Rc::clone(heard) as Rc<dyn Listener>, Listen::Channels, names).is_some()
    };
    assert!(subscribe(&mut topics, 1, &one, &[&a, &b, &a]));
    assert!(subscribe(&mut topics, 2, &other, &[&b, &a]));
    confirm(&mut topics, std::slice::from_ref(&a));
    assert_eq!((one.confirmed.get(), other.confirmed.get()), (0, 0));
    // What was confirmed counts for nothing on the next connection.
    topics.disconnected(true);
    topics.connected();
    confirm(&mut topics, std::slice::from_ref(&a));
    assert_eq!((one.confirmed.get(), other.confirmed.get()), (0, 0));
    confirm(&mut topics, std::slice::from_ref(&b));
    assert_eq!((one.confirmed.get(), other.confirmed.get()), (3, 2));
    assert!(!subscribe(&mut topics, 2, &other, &[&a]), "it is there already");
}
