//! Free ports below the kernel's ephemeral range, so that no outgoing connection takes one while a server restarts.

use std::net::TcpListener;

/// A port of 127.0.0.1 that nothing listens on at the moment; the caller retries if another test was faster.
pub(crate) fn free_port() -> u16 {
    for _ in 0..1000 {
        let port = fastrand::u16(12_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 12000 and 32000");
}
