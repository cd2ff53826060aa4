//! One question, one answer: for connections that carry nothing else meanwhile.

use std::io::{self, ErrorKind};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::UpstreamStream;
use crate::resp::{ReplyScanner, encode};

impl UpstreamStream {
    /// Writes `request` and returns the whole reply. The caller sets the deadline; a connection whose exchange was
    /// given up half way is of no further use.
    ///
    /// # Errors
    /// What the socket says; end of file; what is no RESP, or more than one reply.
    pub async fn ask(&mut self, request: &[u8]) -> io::Result<Bytes> {
        self.write_all(request).await?;
        self.flush().await?;
        let mut scanner = ReplyScanner::default();
        let mut reply = BytesMut::new();
        let mut chunk = vec![0; 16 << 10];
        loop {
            let came = self.read(&mut chunk).await?;
            if came == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let step = scanner.step(&chunk[..came]).map_err(|_| ErrorKind::InvalidData)?;
            reply.extend_from_slice(&chunk[..step.consumed]);
            if step.complete.is_some() {
                return if step.consumed == came {
                    Ok(reply.freeze())
                } else {
                    Err(ErrorKind::InvalidData.into())
                };
            }
        }
    }

    /// [`Self::ask`] for a command given by its words.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn command(&mut self, words: &[&[u8]]) -> io::Result<Bytes> {
        let mut request = BytesMut::new();
        encode::command(&mut request, words);
        self.ask(&request).await
    }
}
