//! The HTTP listener: pages that are made when they are asked for, the dashboard's files, and its events.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::header::{REFERRER_POLICY, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::connections::{Busy, Connections};
use super::dashboard::{self, Feed, Viewer};
use super::deadlined::Deadlined;
use super::view::View;

/// At most this many HTTP connections at once: an operator's, a scraper's, a probe's.
const CONNECTIONS: usize = 64;
/// A request's head must be there by then.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A response must have been read by then.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// The host of the configured address, under which it may be asked, too.
    host: Option<String>,
}

impl Server {
    /// Opens the listener at `address`.
    ///
    /// # Errors
    /// Names the address that cannot be had.
    pub async fn bind(address: &str) -> Result<Self, AdminError> {
        let fail = |source| AdminError { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(fail)?;
        Self::new(listener, address)
    }

    /// Goes on with a listener for the configured `address` that another process has opened.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn on(listener: std::net::TcpListener, address: &str) -> Result<Self, AdminError> {
        let open = || {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        let listener = open().map_err(|source| AdminError { address: address.to_owned(), source })?;
        Self::new(listener, address)
    }

    fn new(listener: TcpListener, configured: &str) -> Result<Self, AdminError> {
        let host = configured.rsplit_once(':').map(|(host, _)| host.to_owned());
        let address =
            listener.local_addr().map_err(|source| AdminError { address: configured.to_owned(), source })?;
        Ok(Self { listener, address, host })
    }

    /// The same listener once more.
    ///
    /// # Errors
    /// No file descriptors are left.
    pub fn duplicate(&self) -> io::Result<Self> {
        let listener = TcpListener::from_std(self.hand_over()?.into())?;
        Ok(Self { listener, address: self.address, host: self.host.clone() })
    }

    /// The listening socket once more, for another process.
    ///
    /// # Errors
    /// No file descriptors are left.
    pub fn hand_over(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// The bound address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until dropped. Must run on a `LocalRuntime`.
    pub async fn serve<V: View + 'static>(self, view: Rc<V>) {
        let connections = Connections::new(CONNECTIONS);
        let feed = Feed::new();
        tokio::task::spawn_local(Rc::clone(&feed).run(Rc::clone(&view)));
        let pages = Rc::new(Pages { view, feed, host: self.host });
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let pages = Rc::clone(&pages);
                    connections.open(|busy| converse(stream, pages, busy));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an admin connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// What requests are answered from.
struct Pages<V> {
    view: Rc<V>,
    feed: Rc<Feed>,
    host: Option<String>,
}

/// A page, or the events of a viewer.
type Content = Either<Full<Bytes>, Viewer>;

async fn converse<V: View>(stream: TcpStream, pages: Rc<Pages<V>>, busy: Busy) {
    let service = service_fn(|request| {
        let (pages, busy) = (Rc::clone(&pages), busy.clone());
        async move {
            busy.set(true);
            let mut hosts = pages.view.hosts();
            hosts.extend(pages.host.clone());
            let is_ours = is_ours(&request, &hosts);
            let response = if is_ours { answer(&request, &pages, &busy).await } else { foreign() };
            // A viewer's connection is busy until it leaves.
            busy.set(matches!(response.body(), Either::Right(_)));
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

fn foreign() -> Response<Content> {
    let text = "this name is not in admin.hosts\n".to_owned();
    page(StatusCode::MISDIRECTED_REQUEST, TEXT, text)
}

const TEXT: &str = "text/plain; charset=utf-8";

async fn answer<V: View>(request: &Request<Incoming>, pages: &Pages<V>, busy: &Busy) -> Response<Content> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n".to_owned());
    }
    let view = &*pages.view;
    match request.uri().path() {
        "/live" => page(StatusCode::OK, TEXT, "live\n".to_owned()),
        "/ready" => match view.readiness() {
            Ok(()) => page(StatusCode::OK, TEXT, "ready\n".to_owned()),
            Err(why) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
        },
        "/metrics" => page(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", view.metrics().await),
        "/status" => page(StatusCode::OK, "application/json", format!("{:#}\n", view.status().await)),
        "/events" => events(&pages.feed, busy),
        path => match dashboard::file(path) {
            Some((kind, text)) => dashboard_file(kind, text),
            None => {
                page(StatusCode::NOT_FOUND, TEXT, "not found: / /live /ready /metrics /status\n".to_owned())
            }
        },
    }
}

fn page(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Content> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A file of the dashboard. A browser asks for it again each time, because another version may run.
fn dashboard_file(kind: &'static str, text: &'static str) -> Response<Content> {
    let mut response = page(StatusCode::OK, kind, text);
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, dashboard::CONTENT_SECURITY_POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Server-sent events for one viewer more, if there is room.
fn events(feed: &Feed, busy: &Busy) -> Response<Content> {
    let Some(viewer) = feed.join(busy.clone()) else {
        let text = format!("{} viewers are connected\n", dashboard::VIEWERS);
        let mut response = page(StatusCode::SERVICE_UNAVAILABLE, TEXT, text);
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("10"));
        return response;
    };
    let mut response = Response::new(Either::Right(viewer));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
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
