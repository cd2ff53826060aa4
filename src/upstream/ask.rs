//! One question, one answer: for connections that carry nothing else meanwhile.

use std::io::{self, ErrorKind};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::UpstreamStream;
use crate::resp::{ReplyScanner, encode};

impl UpstreamStream {
    /// Writes `request` and returns the whole reply. The caller sets the deadline; a connection whose exchange was
    /// given up half way is of no further use.
    ///
    /// # Errors
    /// What the socket says; end of file; what is no RESP, or more than one reply.
    pub async fn ask(&mut self, request: &[u8]) -> io::Result<Bytes> {
        Ok(self.ask_all(request, 1).await?.pop().unwrap_or_default())
    }

    /// [`Self::ask`] for a command given by its words.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn command(&mut self, words: &[&[u8]]) -> io::Result<Bytes> {
        ask_by(self, words).await
    }

    /// [`Self::ask`] for `count` requests at once.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn ask_all(&mut self, requests: &[u8], count: usize) -> io::Result<Vec<Bytes>> {
        ask_all(self, requests, count).await
    }
}

/// [`UpstreamStream::command`] for a connection of any kind.
///
/// # Errors
/// As [`UpstreamStream::ask`].
pub async fn ask_by(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    words: &[&[u8]],
) -> io::Result<Bytes> {
    let mut request = BytesMut::new();
    encode::command(&mut request, words);
    Ok(ask_all(stream, &request, 1).await?.pop().unwrap_or_default())
}

async fn ask_all(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    requests: &[u8],
    count: usize,
) -> io::Result<Vec<Bytes>> {
    stream.write_all(requests).await?;
    stream.flush().await?;
    let mut scanner = ReplyScanner::default();
    let mut replies = Vec::with_capacity(count);
    let mut reply = BytesMut::new();
    let mut chunk = vec![0; 16 << 10];
    while replies.len() < count {
        let came = stream.read(&mut chunk).await?;
        if came == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut rest = &chunk[..came];
        while !rest.is_empty() {
            if replies.len() == count {
                return Err(ErrorKind::InvalidData.into());
            }
            let step = scanner.step(rest).map_err(|_| ErrorKind::InvalidData)?;
            let (taken, behind) = rest.split_at(step.consumed);
            reply.extend_from_slice(taken);
            rest = behind;
            if step.complete.is_some() {
                replies.push(reply.split().freeze());
            }
        }
    }
    Ok(replies)
}
