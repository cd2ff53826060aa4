use super::io::LaneIo;
use super::*;
use crate::pool::{Budget, Kind};
use crate::resp::Protocol;
use crate::upstream::UpstreamStream;

#[derive(Default)]
struct Listener {
    heard: RefCell<Vec<u8>>,
    owed: Cell<u32>,
    held: RefCell<Vec<Held>>,
    /// The most that was held for it at once, and what is held now.
    gathered: Cell<(usize, usize)>,
}

impl Receiver for Listener {
    fn replies(&self, bytes: &[u8], _ended: u32, _begun: bool) {
        self.heard.borrow_mut().extend_from_slice(bytes);
    }

    fn lost(&self, unanswered: u32, muted: bool, _partial: bool) {
        self.owed.set(self.owed.get() + if muted { 0 } else { unanswered });
    }

    fn resume(&self) {}

    fn whole(&self, replies: Bytes, ended: u32) {
        self.replies(&replies, ended, false);
    }

    fn gathers(&self, bytes: usize) -> bool {
        self.gathered.set((self.gathered.get().0.max(bytes), bytes));
        true
    }

    fn takes_back(self: Rc<Self>, held: Vec<Held>) {
        self.held.borrow_mut().extend(held);
    }
}

fn lane() -> Rc<Lane> {
    let key =
        LaneKey { user: 1, database: 0, protocol: Protocol::Resp2, readonly: false, tracked: Tracked::No };
    let permit = Budget::new(8, 1, crate::pool::Hubs::default()).try_acquire(Kind::Lane, "test").unwrap();
    Lane::new(key, permit, Rc::default())
}

const LIMIT: Duration = Duration::from_secs(1);

#[test]
fn commands_that_follow_an_old_one_are_not_timed_out_with_it() {
    let (lane, listener) = (lane(), Rc::new(Listener::default()));
    let to = Rc::clone(&listener) as Rc<dyn Receiver>;
    let start = Instant::now();
    lane.push(b"a", 1, &to, Nature::default(), start);
    lane.push(b"b", 1, &to, Nature::default(), start + Duration::from_millis(900));
    lane.time_out(LIMIT, start + LIMIT, "ERR late");
    assert_eq!(&*listener.heard.borrow(), b"-ERR late\r\n");
}

#[test]
fn no_time_out_is_told_inside_a_reply_that_has_begun() {
    let (lane, listener, other) = (lane(), Rc::new(Listener::default()), Rc::new(Listener::default()));
    let (to, between) = (Rc::clone(&listener) as Rc<dyn Receiver>, Rc::clone(&other) as Rc<dyn Receiver>);
    let start = Instant::now();
    lane.push(b"a", 1, &to, Nature::default(), start);
    lane.push(b"b", 1, &between, Nature::default(), start);
    lane.push(b"c", 1, &to, Nature::default(), start);
    lane.mid_reply.set(true);
    lane.time_out(LIMIT, start + LIMIT, "ERR late");
    assert!(listener.heard.borrow().is_empty());
    assert_eq!(&*other.heard.borrow(), b"-ERR late\r\n");
}

#[test]
fn what_a_time_out_has_answered_is_not_owed_again_when_the_lane_is_lost() {
    let (lane, listener) = (lane(), Rc::new(Listener::default()));
    let to = Rc::clone(&listener) as Rc<dyn Receiver>;
    let start = Instant::now();
    lane.push(b"a", 1, &to, Nature::default(), start);
    lane.time_out(LIMIT, start + LIMIT, "ERR late");
    lane.push(b"b", 1, &to, Nature::default(), start + LIMIT);
    lane.lose_the_rest(false);
    assert_eq!(listener.owed.get(), 1);
}

/// What `first` and then `second` from the server do to a lane with a client's transaction and another's command.
async fn after(first: &[u8], second: &[u8]) -> (Result<(), UpstreamClose>, Vec<u8>, Vec<u8>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (lane, own, other) = (lane(), Rc::new(Listener::default()), Rc::new(Listener::default()));
    let now = Instant::now();
    let block = Nature { is_block: true, ..Nature::default() };
    lane.push(b"MULTI GET EXEC", 3, &(Rc::clone(&own) as Rc<dyn Receiver>), block, now);
    lane.push(b"GET", 1, &(Rc::clone(&other) as Rc<dyn Receiver>), Nature::default(), now);
    let mut io = LaneIo::new(lane, UpstreamStream::plain(tcp, Duration::from_secs(12)));
    let mut finished = Vec::new();
    let mut end = Ok(());
    for data in [first, second] {
        end = end.and_then(|()| io.distribute(data, now, &mut finished));
    }
    (end, own.heard.take(), other.heard.take())
}

#[tokio::test]
async fn behind_an_exec_that_the_server_does_not_know_nobody_hears_more() {
    let error = b"-ERR unknown command 'EXEC', with args beginning with: \r\n";
    let replies = [&b"+OK\r\n+QUEUED\r\n"[..], error, b"+QUEUED\r\n"].concat();
    for cut in 0..replies.len() - 9 {
        let (first, second) = replies.split_at(cut);
        let (end, own, other) = after(first, second).await;
        assert_eq!((end, other), (Err(UpstreamClose::Unfit), Vec::new()), "cut at {cut}");
        assert!(own.ends_with(error), "the error is the client's: {cut}");
    }
    let refused = b"-NOPERM User x has no permissions to run the 'exec' command\r\n";
    let replies = [&b"+OK\r\n+QUEUED\r\n"[..], refused, b"$1\r\nv\r\n"].concat();
    let (end, _, other) = after(&replies, b"").await;
    assert_eq!((end, &other[..]), (Ok(()), &b"$1\r\nv\r\n"[..]), "this ends the transaction");
}

/// A reply is missing: our own echo arrives where the client's was due, in one piece or cut anywhere.
#[tokio::test]
async fn our_echo_in_a_client_s_place_ends_the_lane_before_the_client_hears_it() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let now = Instant::now();
    let word_of = |lane: &Lane| [b"$27\r\n", &lane.echo.borrow().clone().unwrap()[..], b"\r\n"].concat();
    for cut in 0..35 {
        let tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (lane, own) = (lane(), Rc::new(Listener::default()));
        lane.push(b"GET", 1, &(Rc::clone(&own) as Rc<dyn Receiver>), Nature::default(), now);
        lane.ask_for_an_echo(now);
        let echo = word_of(&lane);
        let mut io = LaneIo::new(Rc::clone(&lane), UpstreamStream::plain(tcp, Duration::from_secs(12)));
        // In its own place it ends nothing.
        let in_order = [&b"$1\r\nv\r\n"[..], &echo].concat();
        let (first, second) = in_order.split_at(cut);
        assert_eq!(io.distribute(first, now, &mut Vec::new()), Ok(()));
        assert_eq!(io.distribute(second, now, &mut Vec::new()), Ok(()));
        assert_eq!(&*own.heard.take(), b"$1\r\nv\r\n");
        lane.push(b"GET", 1, &(Rc::clone(&own) as Rc<dyn Receiver>), Nature::default(), now);
        assert_eq!(io.distribute(&echo, now, &mut Vec::new()), Ok(()), "any client may have this value");
        own.heard.take();
        lane.push(b"GETGET", 2, &(Rc::clone(&own) as Rc<dyn Receiver>), Nature::default(), now);
        lane.ask_for_an_echo(now);
        // A value that begins like it is given out when it is seen to be another.
        let other = [&word_of(&lane)[..31], b"-\r\n"].concat();
        let (first, second) = other.split_at(cut.min(other.len()));
        assert_eq!(io.distribute(first, now, &mut Vec::new()), Ok(()));
        assert_eq!(io.distribute(second, now, &mut Vec::new()), Ok(()));
        assert_eq!(own.heard.take(), other);
        let echo = word_of(&lane);
        let (first, second) = echo.split_at(cut);
        let end = io.distribute(first, now, &mut Vec::new());
        let end = end.and_then(|()| io.distribute(second, now, &mut Vec::new()));
        assert_eq!(end, Err(UpstreamClose::Desync), "cut at {cut}");
        assert!(own.heard.borrow().is_empty(), "cut at {cut}");
    }
}

/// Replies that are read whole count for their client from the first ones on, however short each is, and are looked at once.
#[tokio::test]
async fn short_replies_that_are_gathered_count_together() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (lane, own, now) = (lane(), Rc::new(Listener::default()), Instant::now());
    let owner = Some(Rc::clone(&own) as Rc<dyn Receiver>);
    lane.exchange_for(owner, b"commands", 1_000, now, Box::new(drop));
    let mut io = LaneIo::new(Rc::clone(&lane), UpstreamStream::plain(tcp, Duration::from_secs(12)));
    let reply = [&b"$1000\r\n"[..], &[b'v'; 1_000], b"\r\n"].concat();
    for at in 1..=1_000 {
        assert_eq!(io.distribute(&reply, now, &mut Vec::new()), Ok(()));
        let (most, held) = own.gathered.get();
        let due = at * 1_000;
        assert!(at == 1_000 || held <= 2 * due && held + 2 * crate::pool::LONG >= due, "{held} of {due}");
        assert!(most + 2 * crate::pool::LONG >= due);
    }
    assert_eq!(own.gathered.get().1, 0, "they are passed on");
}

/// What two clients get of a master that has become a replica, its replies cut at `cut`: the first what was held of it and
/// what it heard before, the second what it heard.
async fn refused(replies: &[u8], cut: usize) -> (Vec<Held>, Vec<u8>, Vec<u8>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (lane, own, other) = (lane(), Rc::new(Listener::default()), Rc::new(Listener::default()));
    lane.belongs_to_a_master(0);
    let now = Instant::now();
    let push = |to: &Rc<Listener>, words: &[&str], nature: Nature| {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let to = Rc::clone(to) as Rc<dyn Receiver>;
        lane.push(&encode::one_command(&words), 1, &to, nature, now);
    };
    push(&own, &["GET", "k"], Nature::default());
    push(&own, &["INCR", "n"], Nature::default());
    push(&other, &["GET", "k"], Nature::default());
    push(&own, &["EVAL", "x", "0"], Nature { may_invent: true, ..Nature::default() });
    push(&own, &["GET", "n"], Nature::default());
    push(&other, &["GET", "k"], Nature::default());
    let mut io = LaneIo::new(Rc::clone(&lane), UpstreamStream::plain(tcp, Duration::from_secs(12)));
    let mut finished = Vec::new();
    let (first, second) = replies.split_at(cut);
    assert_eq!(io.distribute(first, now, &mut finished), Ok(()));
    assert_eq!(io.distribute(second, now, &mut finished), Ok(()));
    for (then, frames) in finished {
        then(Ok(frames));
    }
    assert_eq!(lane.outstanding(), 0);
    let refused = replies.windows(9).any(|part| part == b"-READONLY");
    assert_eq!(lane.is_leaving(), refused);
    (own.held.take(), own.heard.take(), other.heard.take())
}

const READONLY: &[u8] = b"-READONLY You can't write against a read only replica.\r\n";

#[tokio::test]
async fn a_refusal_is_held_with_what_stands_behind_it_wherever_the_replies_are_cut() {
    let replies = [b"$1\r\nv\r\n", READONLY, b"$1\r\nw\r\n", READONLY, b"$-1\r\n$1\r\nx\r\n"].concat();
    let command = |words: &[&[u8]]| Some(encode::one_command(words));
    let answered = |text: &'static [u8]| Outcome::Answered(vec![Bytes::from_static(text)]);
    let held = |command, outcome| Held { command, replies: 1, muted: false, outcome };
    let expected = [
        held(command(&[b"INCR", b"n"]), Outcome::Refused(Bytes::from_static(READONLY))),
        // A script may have made it up.
        held(None, answered(READONLY)),
        held(command(&[b"GET", b"n"]), answered(b"$-1\r\n")),
    ];
    for cut in 0..replies.len() {
        let (held, own, other) = refused(&replies, cut).await;
        assert_eq!(held, expected, "cut at {cut}");
        assert_eq!((&own[..], &other[..]), (&b"$1\r\nv\r\n"[..], &b"$1\r\nw\r\n$1\r\nx\r\n"[..]));
    }
    let (incr, get) = (command(&[b"INCR", b"n"]).unwrap(), command(&[b"GET", b"n"]).unwrap());
    let again = |command, reply| Step::Again { command, replies: vec![reply], muted: false };
    let refusal = Bytes::from_static(READONLY);
    let script = Step::Answer { replies: vec![refusal.clone()], muted: false };
    let all = [again(incr, refusal.clone()), script, again(get, Bytes::from_static(b"$-1\r\n"))];
    assert_eq!(steps(expected.to_vec()), all);
    // Where something has run behind it, it must not run after that.
    let ran = held(command(&[b"PUBLISH", b"c", b"m"]), answered(b":0\r\n"));
    let given_up = steps(vec![expected[0].clone(), ran]);
    assert_eq!(given_up[0], Step::Answer { replies: vec![refusal], muted: false });
}

#[tokio::test]
async fn an_error_that_only_begins_like_a_refusal_is_the_client_s() {
    let error = b"-READONLY You can't write against a read only replica. Or can you?\r\n";
    let replies = [b"$1\r\nv\r\n", &error[..], b"$1\r\nw\r\n:1\r\n$-1\r\n$1\r\nx\r\n"].concat();
    for cut in 0..replies.len() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (lane, own) = (lane(), Rc::new(Listener::default()));
        lane.belongs_to_a_master(0);
        let to = Rc::clone(&own) as Rc<dyn Receiver>;
        lane.push(b"x", 6, &to, Nature::default(), Instant::now());
        let mut io = LaneIo::new(Rc::clone(&lane), UpstreamStream::plain(tcp, Duration::from_secs(12)));
        let (first, second) = replies.split_at(cut);
        for part in [first, second] {
            assert_eq!(io.distribute(part, Instant::now(), &mut Vec::new()), Ok(()));
        }
        assert!(own.heard.take() == replies && !lane.is_leaving(), "cut at {cut}");
    }
}
