//! The way to a collector: HTTP/1.1 over TCP or TLS, a connection for each batch of spans.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header;
use hyper_util::rt::TokioIo;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::upstream::public_tls;

/// How long one request may take, with its connection.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// What is read of an answer: it says how many spans were refused.
const LARGEST_BODY: usize = 64 << 10;

/// An HTTP client for the exporter.
#[derive(Debug)]
pub(super) struct Collector {
    /// Why the last request failed; the exporter itself does not pass it on.
    why: Arc<Mutex<Option<String>>>,
}

impl Collector {
    /// A client, and where it leaves the reason of a failure.
    pub(super) fn new() -> (Self, Arc<Mutex<Option<String>>>) {
        let why = Arc::default();
        (Self { why: Arc::clone(&why) }, why)
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let late = || Err(HttpError::from(io::Error::from(io::ErrorKind::TimedOut)));
        let outcome = tokio::time::timeout(DEADLINE, send(request)).await.unwrap_or_else(|_| late());
        if let Err(wrong) = &outcome
            && let Ok(mut why) = self.why.lock()
        {
            *why = Some(wrong.to_string());
        }
        outcome
    }
}

async fn send(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let url = request.uri();
    let with_tls = url.scheme_str() == Some("https");
    let host = url.host().ok_or("the URL has no host")?.to_owned();
    let port = url.port_u16().unwrap_or(if with_tls { 443 } else { 80 });
    // An IPv6 address has brackets in a URL, and none elsewhere.
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let stream = TcpStream::connect((name.as_str(), port)).await?;
    if with_tls {
        let server = ServerName::try_from(name)?;
        exchange(TlsConnector::from(public_tls()?).connect(server, stream).await?, request).await
    } else {
        exchange(stream, request).await
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let (mut parts, body) = request.into_parts();
    let authority = parts.uri.authority().map(ToString::to_string).ok_or("the URL has no host")?;
    parts.headers.insert(header::HOST, authority.parse()?);
    parts.headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    // To a server, not to a proxy, a request names the path only.
    parts.uri = parts.uri.path().parse()?;
    let answer = async {
        let response = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, LARGEST_BODY).collect().await?.to_bytes();
        Ok(Response::from_parts(parts, body))
    };
    tokio::pin!(answer);
    // The connection moves the bytes; it may end before the answer is taken apart.
    tokio::select! {
        answer = &mut answer => answer,
        _ = connection => answer.await,
    }
}
