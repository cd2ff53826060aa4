//! The HTTP listener: four pages, each made when it is asked for.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// At most this many HTTP connections at once: an operator's, a scraper's, a probe's.
const CONNECTIONS: usize = 64;
/// A request's head must be there by then.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What the pages show.
pub trait View {
    /// The metrics in Prometheus' text format.
    fn metrics(&self) -> impl Future<Output = String>;
    /// Whether new clients are served now.
    fn is_ready(&self) -> bool;
    /// The whole picture.
    fn status(&self) -> impl Future<Output = Value>;
}

/// The admin listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} (admin.address): {source}")]
pub struct AdminError {
    address: String,
    source: io::Error,
}

/// The open listener.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Opens the listener.
    ///
    /// # Errors
    /// Names the address that cannot be had.
    pub async fn bind(address: &str) -> Result<Self, AdminError> {
        let fail = |source| AdminError { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(fail)?;
        let address =
            listener.local_addr().map_err(|source| AdminError { address: address.to_owned(), source })?;
        Ok(Self { listener, address })
    }

    /// The bound address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until dropped. Must run on a `LocalRuntime`.
    pub async fn serve<V: View + 'static>(self, view: Rc<V>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let view = Rc::clone(&view);
                    tokio::task::spawn_local(async move {
                        converse(stream, view).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an admin connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn converse<V: View>(stream: TcpStream, view: Rc<V>) {
    let service = service_fn(|request| {
        let view = Rc::clone(&view);
        async move { Ok::<_, Infallible>(answer(&request, &*view).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection ended early");
    }
}

async fn answer<V: View>(request: &Request<Incoming>, view: &V) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n".to_owned());
    }
    match request.uri().path() {
        "/live" => page(StatusCode::OK, TEXT, "live\n".to_owned()),
        "/ready" if view.is_ready() => page(StatusCode::OK, TEXT, "ready\n".to_owned()),
        "/ready" => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "stopping\n".to_owned()),
        "/metrics" => page(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", view.metrics().await),
        "/status" => page(StatusCode::OK, "application/json", format!("{:#}\n", view.status().await)),
        "/" => page(StatusCode::OK, TEXT, "redbouncer: /live /ready /metrics /status\n".to_owned()),
        _ => page(StatusCode::NOT_FOUND, TEXT, "not found: /live /ready /metrics /status\n".to_owned()),
    }
}

fn page(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
