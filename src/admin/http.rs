//! The HTTP listener: four pages, each made when it is asked for.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use super::connections::{Busy, Connections};
use super::deadlined::Deadlined;

/// At most this many HTTP connections at once: an operator's, a scraper's, a probe's.
const CONNECTIONS: usize = 64;
/// A request's head must be there by then.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A response must have been read by then.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

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
    hosts: Vec<String>,
}

impl Server {
    /// Opens the listener at `address`; `hosts` are further names under which it may be asked.
    ///
    /// # Errors
    /// Names the address that cannot be had.
    pub async fn bind(address: &str, hosts: &[String]) -> Result<Self, AdminError> {
        let mut hosts = hosts.to_vec();
        hosts.extend(address.rsplit_once(':').map(|(own, _)| own.to_owned()));
        let fail = |source| AdminError { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(fail)?;
        let address =
            listener.local_addr().map_err(|source| AdminError { address: address.to_owned(), source })?;
        Ok(Self { listener, address, hosts })
    }

    /// The bound address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until dropped. Must run on a `LocalRuntime`.
    pub async fn serve<V: View + 'static>(self, view: Rc<V>) {
        let connections = Connections::new(CONNECTIONS);
        let hosts: Rc<[String]> = self.hosts.into();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (view, hosts) = (Rc::clone(&view), Rc::clone(&hosts));
                    connections.open(|busy| converse(stream, view, hosts, busy));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an admin connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn converse<V: View>(stream: TcpStream, view: Rc<V>, hosts: Rc<[String]>, busy: Busy) {
    let service = service_fn(|request| {
        let (view, hosts, busy) = (Rc::clone(&view), Rc::clone(&hosts), busy.clone());
        async move {
            busy.set(true);
            let response = if is_ours(&request, &hosts) { answer(&request, &*view).await } else { foreign() };
            busy.set(false);
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(Deadlined::new(stream, WRITE_TIMEOUT)), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection ended early");
    }
}

/// Whether the request's `Host` is one under which this port may be known. A page on the web can make a browser send
/// requests here by letting its own name point here (DNS rebinding); the browser then sends that name. Such a name is a
/// public one, with a dot. Requests without a `Host` come from no browser.
fn is_ours(request: &Request<Incoming>, hosts: &[String]) -> bool {
    let Some(host) = request.headers().get(HOST) else { return true };
    let Ok(authority) = host.to_str().unwrap_or_default().parse::<Authority>() else { return false };
    is_known(authority.host(), hosts)
}

fn is_known(host: &str, hosts: &[String]) -> bool {
    const PRIVATE: [&str; 5] = [".localhost", ".local", ".internal", ".svc", ".test"];
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().is_ok()
        || !host.contains('.')
        || PRIVATE.iter().any(|end| host.ends_with(end))
        || hosts.iter().any(|own| own.eq_ignore_ascii_case(&host))
}

fn foreign() -> Response<Full<Bytes>> {
    let text = "this name is not in admin.hosts\n".to_owned();
    page(StatusCode::MISDIRECTED_REQUEST, TEXT, text)
}

const TEXT: &str = "text/plain; charset=utf-8";

async fn answer<V: View>(request: &Request<Incoming>, view: &V) -> Response<Full<Bytes>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_name_must_be_listed() {
        let hosts = ["proxy.example.com".to_owned()];
        for known in [
            "127.0.0.1",
            "10.1.2.3",
            "[::1]",
            "localhost",
            "redbouncer",
            "LOCALHOST.",
            "proxy.monitoring.svc",
            "proxy.default.svc.cluster.local",
            "proxy.example.com",
            "Proxy.Example.COM",
        ] {
            assert!(is_known(known, &hosts), "{known}");
        }
        for foreign in
            ["evil.example", "example.com", "127.0.0.1.evil.example", "proxy.example.com.evil.example"]
        {
            assert!(!is_known(foreign, &hosts), "{foreign}");
        }
    }
}
