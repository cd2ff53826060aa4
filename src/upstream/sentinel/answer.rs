//! What a Sentinel answers, read: `SENTINEL MASTER`, `GET-MASTER-ADDR-BY-NAME`, `SENTINELS` and `MYID`, and what it publishes
//! (<https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/>, and redis's `sentinel.c`).

use bytes::{Bytes, BytesMut};

use crate::resp::{self, encode};
use crate::telemetry::printable;
use crate::upstream::HostPort;

/// How many replies [`questions`] asks for.
pub(super) const QUESTIONS: usize = 4;
/// The channel on which Sentinels tell of a failover: `<service> <old host> <old port> <new host> <new port>`.
pub(super) const SWITCHED: &[u8] = b"+switch-master";

/// The answer of one Sentinel about the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Its own id; `None` before 6.2.
    pub(super) id: Option<String>,
    /// The master.
    pub(super) named: Named,
    /// The other Sentinels that it knows.
    pub(super) others: Vec<Other>,
}

/// A master, and the epoch of this information.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// Where it is, as announced.
    pub(super) master: HostPort,
    /// The number of the election that made it the master (`config-epoch`): the greater, the newer.
    pub(super) epoch: u64,
}

/// Another Sentinel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Other {
    /// Its id (`runid` in the listing).
    pub(super) id: String,
    /// Where it is, as announced.
    pub(super) address: HostPort,
}

/// Why there is no [`Answer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// It does not know the service.
    UnknownService,
    /// It refuses the query with this error.
    Refused(String),
    /// It is no answer of a Sentinel.
    Nonsense,
}

/// The questions about `service`, in one write.
///
/// The address is asked for beside the configuration, because during a failover the Sentinel that leads it names the promoted
/// server there first (`sentinelGetCurrentMasterAddress`).
pub(super) fn questions(service: &str) -> Bytes {
    let mut out = BytesMut::new();
    let service = service.as_bytes();
    encode::command(&mut out, &[b"SENTINEL", b"MASTER", service]);
    encode::command(&mut out, &[b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service]);
    encode::command(&mut out, &[b"SENTINEL", b"SENTINELS", service]);
    encode::command(&mut out, &[b"SENTINEL", b"MYID"]);
    out.freeze()
}

/// Reads the replies to [`questions`].
pub(super) fn read(replies: &[Bytes]) -> Result<Answer, Unusable> {
    let [master, address, sentinels, id] = replies else { return Err(Unusable::Nonsense) };
    for reply in [master, address] {
        if let Some(error) = resp::error_text(reply) {
            let text = printable(error);
            let is_unknown = text.contains("No such master");
            return Err(if is_unknown { Unusable::UnknownService } else { Unusable::Refused(text) });
        }
    }
    if resp::is_null(address) {
        return Err(Unusable::UnknownService);
    }
    let epoch = field(master, "config-epoch").and_then(|text| text.parse().ok());
    let mut words = resp::elements(address).ok_or(Unusable::Nonsense)?;
    let master =
        words.next().zip(words.next()).and_then(|(host, port)| host_port(&text(host)?, &text(port)?));
    let (Some(master), Some(epoch)) = (master, epoch) else { return Err(Unusable::Nonsense) };
    let others = resp::elements(sentinels).into_iter().flatten();
    let other = |row: &[u8]| {
        let address = host_port(&field(row, "ip")?, &field(row, "port")?)?;
        Some(Other { id: field(row, "runid").filter(|id| !id.is_empty())?, address })
    };
    Ok(Answer { id: text(id), named: Named { master, epoch }, others: others.filter_map(other).collect() })
}

/// Whether a pushed message, or RESP2's array in its place, says that the master of `service` is another one now.
pub(super) fn tells_of_a_switch(frame: &[u8], service: &str) -> bool {
    let Some(mut words) = resp::elements(frame) else { return false };
    let (kind, channel, message) = (words.next(), words.next(), words.next());
    let is = |word: Option<&[u8]>, expected: &[u8]| word.and_then(resp::bulk) == Some(expected);
    is(kind, b"message")
        && is(channel, SWITCHED)
        && message.and_then(resp::bulk).is_some_and(|message| {
            message.strip_prefix(service.as_bytes()).is_some_and(|rest| rest.first() == Some(&b' '))
        })
}

/// A field of a map, or of a flat array that stands for one.
fn field(frame: &[u8], name: &str) -> Option<String> {
    let mut words = resp::elements(frame)?;
    while let (Some(key), Some(value)) = (words.next(), words.next()) {
        if resp::bulk(key) == Some(name.as_bytes()) {
            return text(value);
        }
    }
    None
}

fn text(frame: &[u8]) -> Option<String> {
    resp::bulk(frame).map(|text| String::from_utf8_lossy(text).into_owned())
}

/// An announced address. An invalid one is not dialled.
fn host_port(host: &str, port: &str) -> Option<HostPort> {
    let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    HostPort::parse(&text, None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> String {
        format!("${}\r\n{text}\r\n", text.len())
    }

    fn pairs(marker: char, words: &[&str]) -> String {
        let count = if marker == '%' { words.len() / 2 } else { words.len() };
        let body: String = words.iter().map(|word| bulk(word)).collect();
        format!("{marker}{count}\r\n{body}")
    }

    fn replies(marker: char) -> Vec<Bytes> {
        let master = pairs(marker, &["name", "main", "ip", "10.0.0.1", "port", "6379", "config-epoch", "7"]);
        let address = pairs('*', &["10.0.0.2", "6380"]);
        let other = |id: &str, ip: &str| pairs(marker, &["name", id, "ip", ip, "port", "26379", "runid", id]);
        let others = format!("*3\r\n{}{}{}", other("b", "10.0.0.12"), other("c", "::1"), other("", "x"));
        [master, address, others, bulk("a")].map(Bytes::from).to_vec()
    }

    #[test]
    fn both_protocols_say_the_same_and_the_address_is_the_promoted_one() {
        let answer = read(&replies('%')).unwrap();
        assert_eq!(read(&replies('*')).unwrap(), answer);
        assert_eq!((answer.named.master.to_string().as_str(), answer.named.epoch), ("10.0.0.2:6380", 7));
        assert_eq!(answer.id.as_deref(), Some("a"));
        let others: Vec<_> = answer.others.iter().map(|other| other.address.to_string()).collect();
        assert_eq!(others, ["10.0.0.12:26379", "[::1]:26379"]);
    }

    #[test]
    fn what_is_no_answer_is_told_apart() {
        let with = |at: usize, reply: &str| {
            let mut replies = replies('%');
            replies[at] = Bytes::from(reply.to_owned());
            read(&replies)
        };
        assert_eq!(with(0, "-ERR No such master with that name\r\n"), Err(Unusable::UnknownService));
        assert_eq!(with(1, "_\r\n"), Err(Unusable::UnknownService));
        assert_eq!(with(0, "-NOPERM no\r\n"), Err(Unusable::Refused("NOPERM no".to_owned())));
        assert_eq!(with(1, "*2\r\n$1\r\nh\r\n$1\r\n0\r\n"), Err(Unusable::Nonsense));
        assert_eq!(with(1, "*2\r\n$9\r\nh:1/../..\r\n$1\r\n1\r\n"), Err(Unusable::Nonsense));
        assert_eq!(with(0, "+OK\r\n"), Err(Unusable::Nonsense));
        assert_eq!(read(&[]), Err(Unusable::Nonsense));
        // Before 6.2 a Sentinel does not report its id.
        assert_eq!(with(3, "-ERR Unknown sentinel subcommand 'MYID'\r\n").unwrap().id, None);
    }

    #[test]
    fn only_a_switch_of_this_service_is_heard() {
        let push = |channel: &str, message: &str| pairs('>', &["message", channel, message]);
        let hears = |frame: String| tells_of_a_switch(frame.as_bytes(), "main");
        assert!(hears(push("+switch-master", "main 10.0.0.1 6379 10.0.0.2 6380")));
        assert!(!hears(push("+switch-master", "main2 10.0.0.1 6379 10.0.0.2 6380")));
        assert!(!hears(push("+sdown", "main 10.0.0.1 6379")));
        assert!(!hears(">3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n".to_owned()));
        assert!(!hears("+OK\r\n".to_owned()));
    }
}
