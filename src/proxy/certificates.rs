//! Certificates read again: on SIGHUP, and when their files hold something else.
//!
//! The files are looked at every two seconds and compared by content. Watching them by inotify would be sooner by that
//! much, and would miss what matters: a mounted secret changes by a link that is turned, network file systems say
//! nothing, and a watched directory may be replaced. A few kilobytes read every two seconds do not show.

use std::sync::Arc;

use crate::downstream::ServerTls;
use crate::nodes::Nodes;
use crate::upstream::pem::Fingerprint;
use crate::upstream::{Connector, TlsSetupError};

/// The certificates of both sides.
#[derive(Clone)]
pub(super) struct CertificateReloader {
    upstream: Arc<Connector>,
    nodes: Option<Arc<Nodes>>,
    downstream: Option<Arc<ServerTls>>,
    seen: Seen,
}

/// What the files held when they were last read, whether that could be used or not.
#[derive(Clone, Copy, PartialEq)]
struct Seen {
    upstream: Option<Fingerprint>,
    downstream: Option<Fingerprint>,
}

impl CertificateReloader {
    pub(super) fn new(
        upstream: Arc<Connector>,
        nodes: Option<Arc<Nodes>>,
        downstream: Option<Arc<ServerTls>>,
    ) -> Self {
        let seen = look(&upstream, downstream.as_deref());
        Self { upstream, nodes, downstream, seen }
    }

    /// Reads again what has changed, or everything if `asked`. Away from the thread that accepts clients: a file may lie on
    /// a network file system that hangs.
    pub(super) async fn renew(&mut self, asked: bool) {
        let mut work = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            work.renew_now(asked);
            work.seen
        });
        if let Ok(seen) = done.await {
            self.seen = seen;
        }
    }

    /// Other files are named now, and have just been read.
    pub(super) fn look_again(&mut self) {
        self.seen = look(&self.upstream, self.downstream.as_deref());
    }

    fn renew_now(&mut self, asked: bool) {
        let now = look(&self.upstream, self.downstream.as_deref());
        if let Some(tls) = &self.downstream
            && (asked || now.downstream != self.seen.downstream)
        {
            say("listen.tls", tls.reload());
        }
        if now.upstream.is_some() && (asked || now.upstream != self.seen.upstream) {
            let nodes = self.nodes.iter().flat_map(|nodes| nodes.servers());
            let reloaded = nodes.map(|(_, server)| server.connector.reload()).collect::<Result<Vec<_>, _>>();
            say("upstream.tls", self.upstream.reload().and(reloaded).map(|_| ()));
        }
        self.seen = now;
    }
}

fn look(upstream: &Connector, downstream: Option<&ServerTls>) -> Seen {
    Seen { upstream: upstream.fingerprint(), downstream: downstream.map(ServerTls::fingerprint) }
}

fn say(section: &str, outcome: Result<(), TlsSetupError>) {
    match outcome {
        Ok(()) => tracing::info!(section, "certificates were reloaded; new connections use them"),
        Err(error) => {
            tracing::error!(section, %error, "certificates have changed and cannot be used; the former certificates stay in use");
        }
    }
}
