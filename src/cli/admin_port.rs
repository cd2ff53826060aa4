//! Asks a running proxy for a page of its admin port.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::admin::AdminOptions;

/// The answer comes from the same host or network and is made from memory: later than this means stuck.
const DEADLINE: Duration = Duration::from_secs(5);

/// 10,000 clients at a few hundred bytes each, several times over.
const LARGEST_BODY: usize = 64 << 20;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdminPortError {
    /// The configuration switches the listener off.
    #[error("the admin listener is disabled (admin.address is empty); use --admin")]
    Off,
    /// The configuration leaves the port to the system.
    #[error("{0} has port 0; use --admin with the port that the proxy has logged")]
    PortUnknown(String),
    /// No process accepts the connection.
    #[error(
        "cannot connect to http://{address}: {source}; check that the proxy is running, or use --admin with its address"
    )]
    Connect {
        /// The address.
        address: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// Too late.
    #[error("{0} did not answer within 5s")]
    Late(String),
    /// An answer, but not the page.
    #[error("{url} returned {status}; it may not be a redbouncer")]
    Refused {
        /// The requested URL.
        url: String,
        /// The response.
        status: StatusCode,
    },
    /// The exchange broke off.
    #[error("{url}: {source}")]
    Http {
        /// The requested URL.
        url: String,
        /// The error of hyper.
        source: hyper::Error,
    },
    /// The body could not be read.
    #[error("{url}: {wrong}")]
    Body {
        /// The requested URL.
        url: String,
        /// Too long, broken off, or not JSON.
        wrong: String,
    },
    /// This process could not start a runtime.
    #[error("cannot start: {0}")]
    Runtime(#[from] std::io::Error),
}

/// The response.
#[derive(Debug)]
pub(super) struct Page {
    /// The requested URL, for messages.
    pub(super) url: String,
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// Asks the proxy that `options` describe for the page at `path`.
pub(super) fn get(options: &AdminOptions, path: &str) -> Result<Page, AdminPortError> {
    let address = reachable(options.address.as_deref().ok_or(AdminPortError::Off)?)?;
    let url = format!("http://{address}{path}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match tokio::time::timeout(DEADLINE, exchange(&address, path, &url)).await {
            Ok(Ok((status, body))) => Ok(Page { url, status, body }),
            Ok(Err(wrong)) => Err(wrong),
            Err(_) => Err(AdminPortError::Late(url)),
        }
    })
}

/// Where a client finds the listener: a wildcard address is reached by loopback.
fn reachable(address: &str) -> Result<String, AdminPortError> {
    match address.parse::<SocketAddr>() {
        Ok(socket) if socket.ip().is_unspecified() && socket.port() > 0 => {
            let loopback = match socket.ip() {
                IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
                IpAddr::V6(_) => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
            };
            Ok(SocketAddr::new(loopback, socket.port()).to_string())
        }
        Ok(_) | Err(_) if address.ends_with(":0") => Err(AdminPortError::PortUnknown(address.to_owned())),
        Ok(_) | Err(_) => Ok(address.to_owned()),
    }
}

async fn exchange(address: &str, path: &str, url: &str) -> Result<(StatusCode, Bytes), AdminPortError> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|source| AdminPortError::Connect { address: address.to_owned(), source })?;
    let http = |source| AdminPortError::Http { url: url.to_owned(), source };
    let body = |wrong| AdminPortError::Body { url: url.to_owned(), wrong };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let request = Request::get(path).header(header::HOST, address);
    let request = request.body(Empty::<Bytes>::new()).map_err(|wrong| body(wrong.to_string()))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status();
        let content = Limited::new(response.into_body(), LARGEST_BODY).collect().await.map_err(|wrong| {
            body(match wrong.downcast_ref::<LengthLimitError>() {
                Some(_) => "the answer is longer than 64MiB".to_owned(),
                None => wrong.to_string(),
            })
        })?;
        Ok((status, content.to_bytes()))
    };
    tokio::pin!(answer);
    // The connection moves the bytes; it may end before the answer is taken apart.
    tokio::select! {
        answer = &mut answer => answer,
        _ = connection => answer.await,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Answers one request with `response` and returns what was asked.
    pub(in crate::cli) fn serve_once(
        response: &'static str,
    ) -> (AdminOptions, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Some(listener.local_addr().unwrap().to_string());
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(response.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (AdminOptions { address, ..AdminOptions::default() }, served)
    }

    #[test]
    fn an_address_nobody_listens_on_is_named() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let wrong = get(&AdminOptions { address: Some(address.clone()), ..AdminOptions::default() }, "/live")
            .unwrap_err()
            .to_string();
        assert!(wrong.contains(&address) && wrong.contains("--admin"), "{wrong}");
        assert!(matches!(
            get(&AdminOptions { address: None, ..AdminOptions::default() }, "/live"),
            Err(AdminPortError::Off)
        ));
    }

    #[test]
    fn a_wildcard_listener_is_reached_by_loopback() {
        assert_eq!(reachable("0.0.0.0:9380").unwrap(), "127.0.0.1:9380");
        assert_eq!(reachable("[::]:9380").unwrap(), "[::1]:9380");
        assert_eq!(reachable("10.1.2.3:9380").unwrap(), "10.1.2.3:9380");
        assert_eq!(reachable("proxy.example:9380").unwrap(), "proxy.example:9380");
        assert!(matches!(reachable("127.0.0.1:0"), Err(AdminPortError::PortUnknown(_))));
        assert!(matches!(reachable("0.0.0.0:0"), Err(AdminPortError::PortUnknown(_))));
    }
}
