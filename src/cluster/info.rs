//! INFO as a server without a cluster gives it, so that clients do not look for nodes.

use bytes::{Bytes, BytesMut};

use crate::resp::{Protocol, bulk, encode};

/// Lines of INFO that tell of a cluster, and what stands there without one. Valkey calls the mode another name
/// (`genValkeyInfoString` in valkey `server.c`).
const LINES: [(&str, &str); 3] = [
    ("redis_mode:cluster", "redis_mode:standalone"),
    ("server_mode:cluster", "server_mode:standalone"),
    ("cluster_enabled:1", "cluster_enabled:0"),
];

/// `reply`, the answer to INFO, with what tells of a cluster replaced. What is no such answer stays as it is.
#[must_use]
pub fn as_standalone(reply: Bytes, protocol: Protocol) -> Bytes {
    let is_verbatim = reply.starts_with(b"=");
    let Some(text) = bulk(&reply).and_then(|text| std::str::from_utf8(text).ok()) else { return reply };
    let mut changed = String::with_capacity(text.len() + 8);
    for line in text.split_inclusive("\r\n") {
        let (content, end) = line.strip_suffix("\r\n").map_or((line, ""), |content| (content, "\r\n"));
        let replaced =
            LINES.iter().find(|(cluster, _)| *cluster == content).map_or(content, |(_, alone)| alone);
        changed.push_str(replaced);
        changed.push_str(end);
    }
    let mut out = BytesMut::new();
    if is_verbatim {
        encode::verbatim_txt(&mut out, protocol, &changed);
    } else {
        encode::bulk(&mut out, changed.as_bytes());
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_tell_of_a_cluster_change() {
        let text = "# Server\r\nredis_mode:cluster\r\nserver_mode:cluster\r\nx:redis_mode:cluster\r\n# Cluster\r\ncluster_enabled:1\r\n";
        let expected = text
            .replace("\nredis_mode:cluster", "\nredis_mode:standalone")
            .replace("\nserver_mode:cluster", "\nserver_mode:standalone")
            .replace("enabled:1", "enabled:0");
        let mut reply = BytesMut::new();
        encode::bulk(&mut reply, text.as_bytes());
        let changed = as_standalone(reply.freeze(), Protocol::Resp2);
        assert_eq!(bulk(&changed), Some(expected.as_bytes()));
        let mut reply = BytesMut::new();
        encode::verbatim_txt(&mut reply, Protocol::Resp3, text);
        let changed = as_standalone(reply.freeze(), Protocol::Resp3);
        assert!(changed.starts_with(b"="));
        let mut whole = BytesMut::new();
        encode::verbatim_txt(&mut whole, Protocol::Resp3, &expected);
        assert_eq!(changed, whole.freeze());
        let error = Bytes::from_static(b"-ERR x\r\n");
        assert_eq!(as_standalone(error.clone(), Protocol::Resp2), error);
    }
}
