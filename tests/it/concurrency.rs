//! Hundreds of clients on one or two lanes: each gets its own replies, in its own order.

use std::net::SocketAddr;
use std::thread;

use crate::harness::{Client, Stage, encode, long};

on_both!(every_increment_of_every_client_happens_once, a_client_reads_its_own_writes);

/// One client and the number of the next ECHO.
struct Talker {
    client: Client,
    name: usize,
    sequence: usize,
}

impl Talker {
    fn connect(address: SocketAddr, name: usize) -> Self {
        let mut client = Client::connect(address);
        if name.is_multiple_of(3) {
            client.call("HELLO 3");
        }
        Self { client, name, sequence: 0 }
    }

    /// Sends `count` ECHOs, cut somewhere in the middle of one.
    fn send(&mut self, count: usize, random: &mut fastrand::Rng) {
        let words = (0..count).map(|offset| format!("{}:{}", self.name, self.sequence + offset));
        let bytes: Vec<u8> = words.flat_map(|word| encode(&["ECHO", &word])).collect();
        let (one, two) = bytes.split_at(random.usize(0..bytes.len()));
        self.client.send(one);
        self.client.send(two);
    }

    fn check(&mut self, count: usize) {
        for _ in 0..count {
            assert_eq!(self.client.reply().text(), format!("{}:{}", self.name, self.sequence));
            self.sequence += 1;
        }
    }
}

/// 500 clients on 10 threads; with `leaving`, a third of them resets in the middle of a pipeline and comes back.
fn five_hundred_clients(stage: &Stage, leaving: bool) {
    const THREADS: usize = 10;
    const EACH: usize = 50;
    let address = stage.address();
    let rounds = if long() { 60 } else { 8 };
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            thread::spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread as u64);
                let mut talkers: Vec<Talker> =
                    (0..EACH).map(|number| Talker::connect(address, thread * EACH + number)).collect();
                for _ in 0..rounds {
                    let counts: Vec<usize> = talkers.iter().map(|_| random.usize(1..16)).collect();
                    for (talker, count) in talkers.iter_mut().zip(&counts) {
                        talker.send(*count, &mut random);
                    }
                    for (talker, count) in talkers.iter_mut().zip(&counts) {
                        if leaving && random.u8(0..3) == 0 {
                            let name = talker.name;
                            std::mem::replace(talker, Talker::connect(address, name)).client.reset();
                        } else {
                            talker.check(*count);
                        }
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("each client gets its own replies");
    }
    assert!(!stage.is_proxied() || stage.server.clients() <= 8);
}

#[test]
fn five_hundred_clients_of_the_server_itself_get_their_own_replies_in_order() {
    five_hundred_clients(&Stage::direct(), true);
}

#[test]
fn five_hundred_clients_get_their_own_replies_in_order() {
    five_hundred_clients(&Stage::proxied(), false);
}

#[test]
fn five_hundred_clients_on_two_workers_get_their_own_replies_in_order() {
    five_hundred_clients(&Stage::proxied_with(&["listen.workers=2"]), false);
}

#[test]
fn clients_that_leave_in_mid_pipeline_shift_nobodys_replies() {
    five_hundred_clients(&Stage::proxied(), true);
}

#[test]
fn clients_that_leave_in_mid_pipeline_shift_nobodys_replies_on_two_workers() {
    five_hundred_clients(&Stage::proxied_with(&["listen.workers=2"]), true);
}

fn every_increment_of_every_client_happens_once(stage: &Stage) {
    let address = stage.address();
    let threads: Vec<_> = (0..8)
        .map(|_| {
            thread::spawn(move || {
                let mut client = Client::connect(address);
                let mut last = 0;
                for _ in 0..20 {
                    client.send(encode(&["INCR", "common"]).repeat(50));
                    for _ in 0..50 {
                        let next = client.reply().int();
                        assert!(next > last, "{next} after {last}");
                        last = next;
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(stage.server.call("GET common").text(), (8 * 20 * 50).to_string());
}

fn a_client_reads_its_own_writes(stage: &Stage) {
    let address = stage.address();
    let threads: Vec<_> = (0..8)
        .map(|number| {
            thread::spawn(move || {
                let mut client = Client::connect(address);
                for round in 0..200 {
                    // Routes change between the write and the read; the read must still see the write.
                    let key = format!("own:{number}");
                    assert_eq!(client.call(&format!("SET {key} {round}")).text(), "OK");
                    if round % 20 == 7 {
                        client.call(&format!("BLPOP none:{number} 0.001"));
                    }
                    if round % 20 == 13 {
                        client.call("WATCH w");
                        client.call("UNWATCH");
                    }
                    assert_eq!(client.call(&format!("GET {key}")).text(), round.to_string());
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
