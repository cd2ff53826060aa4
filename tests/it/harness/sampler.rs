//! Watches the number of the server's clients while something else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::server::{Row, Server, rows_of};

/// A thread that polls `CLIENT LIST` every two milliseconds or so.
pub(crate) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Sampled>>,
}

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Sampled {
    pub(crate) samples: usize,
    /// The greatest number of clients in one listing, the tests' own probes left out.
    pub(crate) peak: usize,
    /// The listing with that number.
    pub(crate) rows: Vec<Row>,
}

impl Sampler {
    pub(crate) fn start(server: &Server) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let mut probe = server.probe();
        let thread = thread::spawn(move || {
            let mut sampled = Sampled::default();
            while !stopping.load(SeqCst) {
                let rows = rows_of(&probe.call("CLIENT LIST"));
                sampled.samples += 1;
                if rows.len() > sampled.peak {
                    sampled.peak = rows.len();
                    sampled.rows = rows;
                }
                thread::sleep(Duration::from_millis(2));
            }
            sampled
        });
        Self { stop, thread: Some(thread) }
    }

    pub(crate) fn finish(mut self) -> Sampled {
        self.stop.store(true, SeqCst);
        self.thread.take().unwrap().join().expect("the sampler reaches the server")
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}
