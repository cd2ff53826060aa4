//! How an upstream connection ends: shut down for writing at once, read to the server's end of file, then closed.
//!
//! The server frees a connection when it reads our FIN; its own FIN is the proof. Until then the connection counts
//! under the cap. A server that does not answer is reset after `upstream.close_timeout`.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::Permit;
use crate::telemetry::{UpstreamClose, release_seconds};
use crate::upstream::UpstreamStream;

/// What still came from the server before its end of file, at most this many bytes.
const KEEP: usize = 64 << 20;

/// Closes `stream`, on which nothing was asked for, in order: returns when the server has, at most after `timeout`.
pub(super) async fn turn_away(mut stream: UpstreamStream, timeout: Duration) {
    let ended = tokio::time::timeout(timeout, async {
        let _ = stream.shutdown().await;
        let mut rest = [0; 512];
        while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
    });
    if ended.await.is_err() {
        stream.reset_on_drop();
    }
}

/// Closes `stream` in order and gives `permit` back. `gone` is when the client left, where one did: the time from then
/// to our FIN is the headline metric. Returns what still came where `keep` asks for it; `None` after a reset.
pub(super) async fn close(
    mut stream: UpstreamStream,
    permit: Permit,
    reason: UpstreamClose,
    gone: Option<Instant>,
    keep: bool,
    timeout: Duration,
) -> Option<Vec<u8>> {
    permit.closing();
    permit.closes(reason);
    tracing::debug!(kind = permit.kind().label(), reason = reason.label(), "upstream connection closing");
    let ended = tokio::time::timeout(timeout, async {
        // A failure here means that the connection is gone already; reading says so at once.
        let _ = stream.shutdown().await;
        if let Some(gone) = gone {
            release_seconds(gone.elapsed());
        }
        let mut rest = Vec::new();
        let mut chunk = vec![0; 16 << 10];
        loop {
            match stream.read(&mut chunk).await {
                Ok(0) => {
                    permit.ended();
                    return rest;
                }
                Err(_) => return rest,
                Ok(n) if keep && rest.len() < KEEP => rest.extend_from_slice(&chunk[..n]),
                Ok(_) => {}
            }
        }
    })
    .await;
    if ended.is_err() {
        stream.reset_on_drop();
        tracing::warn!(kind = permit.kind().label(), "the server did not close in time; connection reset");
    }
    drop(stream);
    drop(permit);
    ended.ok()
}
