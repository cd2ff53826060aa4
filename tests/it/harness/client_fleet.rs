//! Many clients in a process of their own, so that they can be killed as a backend is: all at once, by SIGKILL.
//!
//! The process is this test binary again, told by its environment to run one ignored test. It ends when its standard
//! input does, so it never outlives the test that started it.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::client::Client;
use super::namespace::Namespace;
use super::server::signal;
use super::{encode, until};

const ENTRY: &str = "harness::client_fleet::a_crowd_in_a_process_of_its_own";

/// What each client of a crowd is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// One PING answered, nothing outstanding.
    Idle,
    /// The first half of a command sent.
    HalfCommand,
    /// Commands sent that the server takes a while for, and a big reply that nobody reads.
    InFlight,
    /// Replies of more megabytes than all buffers hold, and nobody reads.
    NotReading,
    /// MULTI and one queued command.
    InMulti,
    /// WATCH.
    InWatch,
    /// BLPOP without a timeout.
    InBlpop,
    /// SUBSCRIBE to one channel.
    Subscribed,
}

impl State {
    pub(crate) const ALL: [Self; 8] = [
        Self::Idle,
        Self::HalfCommand,
        Self::InFlight,
        Self::NotReading,
        Self::InMulti,
        Self::InWatch,
        Self::InBlpop,
        Self::Subscribed,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::HalfCommand => "half-command",
            Self::InFlight => "in-flight",
            Self::NotReading => "not-reading",
            Self::InMulti => "multi",
            Self::InWatch => "watch",
            Self::InBlpop => "blpop",
            Self::Subscribed => "subscribed",
        }
    }
}

/// Puts one client into a state. What is answered at once is read; what waits for a connection is not waited for.
pub(crate) fn enter_state(client: &mut Client, state: State, number: usize) -> std::io::Result<()> {
    match state {
        State::Idle => {
            let pong = client.call("PING");
            assert_eq!(pong.text(), "PONG");
            Ok(())
        }
        State::HalfCommand => client.try_send(format!("*3\r\n$3\r\nSET\r\n$7\r\nhalf:{number}")),
        State::InFlight => {
            let busy = "local s=redis.call('time') local n repeat n=redis.call('time') \
                        until (n[1]-s[1])*1000000+(n[2]-s[2])>2000 return 1";
            client.try_send(encode(&["EVAL", busy, "0"]))?;
            client.try_send(encode(&["GET", "big"]))
        }
        State::NotReading => (0..10).try_for_each(|_| client.try_send(encode(&["GET", "big"]))),
        State::InMulti => {
            client.try_send(encode(&["MULTI"]))?;
            client.try_send(encode(&["INCR", "never"]))
        }
        State::InWatch => client.try_send(encode(&["WATCH", "watched"])),
        State::InBlpop => client.try_send(encode(&["BLPOP", "blocked", "0"])),
        State::Subscribed => client.try_send(encode(&["SUBSCRIBE", "news"])),
    }
}

/// A running crowd; killed when dropped.
pub(crate) struct ClientFleet {
    child: Child,
    /// Held open: its end is the process's sign to go.
    _stdin: ChildStdin,
}

impl ClientFleet {
    /// Starts `count` clients in `state` in one process and waits until all of them are.
    pub(crate) fn start(address: SocketAddr, count: usize, state: State) -> Self {
        Self::spawn(Command::new(std::env::current_exe().unwrap()), address, count, state)
    }

    /// The same in another network namespace.
    pub(crate) fn start_in(namespace: &Namespace, address: SocketAddr, count: usize, state: State) -> Self {
        let mut command = namespace.command();
        command.arg(std::env::current_exe().unwrap());
        Self::spawn(command, address, count, state)
    }

    fn spawn(mut command: Command, address: SocketAddr, count: usize, state: State) -> Self {
        let mut child = command
            .args(["--exact", ENTRY, "--ignored", "--nocapture", "--test-threads=1"])
            .env("CROWD_ADDRESS", address.to_string())
            .env("CROWD_COUNT", count.to_string())
            .env("CROWD_STATE", state.name())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if line.ends_with("crowd is complete") {
                    let _ = tell.send(());
                }
            }
        });
        let crowd = Self { child, _stdin: stdin };
        until("the crowd is complete", Duration::from_secs(30), || told.try_recv().is_ok());
        crowd
    }

    /// SIGKILL: the kernel closes every socket at once.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGSTOP: the sockets stay open and nobody reads.
    pub(crate) fn freeze(&self) {
        signal(self.child.id(), "STOP");
    }
}

impl Drop for ClientFleet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The crowd's process. Without the environment that `ClientFleet` sets there is nothing to do.
#[test]
#[ignore = "the body of a helper process, started by other tests"]
fn a_crowd_in_a_process_of_its_own() {
    let Ok(address) = std::env::var("CROWD_ADDRESS") else { return };
    let count: usize = std::env::var("CROWD_COUNT").unwrap().parse().unwrap();
    let name = std::env::var("CROWD_STATE").unwrap();
    let state = State::ALL.into_iter().find(|state| state.name() == name).unwrap();
    let address = address.parse().unwrap();
    let mut clients: Vec<Client> = (0..count).map(|_| Client::connect(address)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        enter_state(client, state, number).unwrap();
    }
    println!("\ncrowd is complete");
    let _ = std::io::stdin().read(&mut [0]);
}
