//! What an error of a cluster's node proves about the command that it answers: that it did not run, and where it may.
//!
//! An error counts only if its whole line is one that a node itself makes (redis `clusterRedirectClient` in `cluster.c`,
//! `processCommand` and `createSharedObjects` in `server.c`). A script may answer with the same text; whoever asks knows
//! whether the command was one.

use crate::upstream::HostPort;

use super::SLOTS;

/// Why a command did not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// The slot belongs to another node; `None`: to one whose address is not known there.
    Moved(u16, Option<HostPort>),
    /// The slot is being moved, and the keys are not here any more; it is to be asked of that node, behind ASKING.
    Ask(u16, Option<HostPort>),
    /// The slot is being moved, and some of the keys are here and some are there.
    TryAgain,
    /// The slot is served by nobody, or the cluster has no majority.
    ClusterDown,
    /// The node loads its data, or is a replica that has lost its master.
    Loading,
    /// The node is a replica.
    ReadOnly,
}

/// What a node says, a line each, without the first `-` and the line end.
const LINES: [(&[u8], Redirect); 8] = [
    (b"TRYAGAIN Multiple keys request during rehashing of slot", Redirect::TryAgain),
    (b"CLUSTERDOWN Hash slot not served", Redirect::ClusterDown),
    (b"CLUSTERDOWN The cluster is down", Redirect::ClusterDown),
    (b"CLUSTERDOWN The cluster is down and only accepts read commands", Redirect::ClusterDown),
    (b"LOADING Redis is loading the dataset in memory", Redirect::Loading),
    (b"LOADING Valkey is loading the dataset in memory", Redirect::Loading),
    (b"READONLY You can't write against a read only replica.", Redirect::ReadOnly),
    (b"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", Redirect::Loading),
];

impl Redirect {
    /// Whether a reply of any node is one.
    #[must_use]
    pub fn is_one(reply: &[u8]) -> bool {
        let anybody = HostPort { host: "-".to_owned(), port: 1 };
        reply.starts_with(b"-") && Self::read(reply, &anybody).is_some()
    }

    /// Reads one reply of the node at `asked`. `None`: it is an answer, or some other error.
    #[must_use]
    pub fn read(reply: &[u8], asked: &HostPort) -> Option<Self> {
        let line = reply.strip_prefix(b"-")?.strip_suffix(b"\r\n")?;
        if let Some((_, redirect)) = LINES.iter().find(|(text, _)| *text == line) {
            return Some(redirect.clone());
        }
        let text = std::str::from_utf8(line).ok()?;
        let mut words = text.split(' ');
        let (code, slot, target, end) = (words.next()?, words.next()?, words.next()?, words.next());
        if end.is_some() || slot.is_empty() || !slot.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let slot = slot.parse().ok().filter(|slot| *slot < SLOTS)?;
        let target = target_of(target, asked)?;
        match code {
            "MOVED" => Some(Self::Moved(slot, target)),
            "ASK" => Some(Self::Ask(slot, target)),
            _ => None,
        }
    }

    /// The word for it in metrics and logs.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Moved(..) => "moved",
            Self::Ask(..) => "ask",
            Self::TryAgain => "tryagain",
            Self::ClusterDown => "clusterdown",
            Self::Loading => "loading",
            Self::ReadOnly => "readonly",
        }
    }
}

/// `host:port`, an IPv6 address without brackets. Without a host it is the node that was asked; `?` stands for a host that it
/// does not know, which is nowhere.
#[allow(clippy::option_option)]
fn target_of(text: &str, asked: &HostPort) -> Option<Option<HostPort>> {
    let (host, port) = text.rsplit_once(':')?;
    if host.is_empty() {
        return HostPort::parse(&format!("h:{port}"), None)
            .map(|HostPort { port, .. }| Some(HostPort { host: asked.host.clone(), port }));
    }
    if host == "?" {
        return Some(None);
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    HostPort::parse(&text, None).map(Some)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::map::tests::address;
    use super::*;

    fn read(line: &str) -> Option<Redirect> {
        Redirect::read(format!("{line}\r\n").as_bytes(), &address("asked:7000"))
    }

    #[test]
    fn a_node_that_names_another_is_understood() {
        assert_eq!(
            read("-MOVED 3999 127.0.0.1:6381"),
            Some(Redirect::Moved(3999, Some(address("127.0.0.1:6381"))))
        );
        assert_eq!(
            read("-ASK 0 node-b.example:1"),
            Some(Redirect::Ask(0, Some(address("node-b.example:1"))))
        );
        assert_eq!(
            read("-MOVED 16383 fd00::2:6381"),
            Some(Redirect::Moved(16_383, Some(address("[fd00::2]:6381"))))
        );
        assert_eq!(read("-MOVED 5 :6381"), Some(Redirect::Moved(5, Some(address("asked:6381")))));
        assert_eq!(read("-MOVED 5 ?:6381"), Some(Redirect::Moved(5, None)));
    }

    #[test]
    fn only_whole_lines_of_a_node_count() {
        for line in [
            "MOVED 1 a:1",
            "+MOVED 1 a:1",
            "-MOVED 1 a:1 x",
            "-MOVED 16384 a:1",
            "-MOVED -1 a:1",
            "-MOVED +1 a:1",
            "-MOVED x a:1",
            "-MOVED 1 a",
            "-MOVED 1 a:0",
            "-moved 1 a:1",
            "-TRYAGAIN later",
            "-CLUSTERDOWN",
            "-READONLY You can't write against a read only slave.",
            "-ERR x",
            "-OOM command not allowed when used memory > 'maxmemory'.",
        ] {
            assert_eq!(read(line), None, "{line}");
        }
        assert_eq!(Redirect::read(b"-MOVED 1 a:1", &address("asked:7000")), None);
        assert_eq!(read("-CLUSTERDOWN The cluster is down"), Some(Redirect::ClusterDown));
        assert_eq!(read("-READONLY You can't write against a read only replica."), Some(Redirect::ReadOnly));
    }

    proptest! {
        #[test]
        fn no_bytes_upset_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Redirect::read(&bytes, &address("asked:7000"));
        }
    }
}
