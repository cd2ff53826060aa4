//! The error codes of a server: the first word of an error, which says what kind it is.

use super::elements::error_text;

/// The codes that mean something here (the error strings of redis `server.c`, `acl.c`, `cluster.c` and `t_stream.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// ERR: of no particular kind.
    Err,
    /// BUSY: a script or function runs for longer than the server likes.
    Busy,
    /// CLUSTERDOWN: the cluster is not whole.
    ClusterDown,
    /// DENIED: protected mode.
    Denied,
    /// EXECABORT: nothing of the transaction has run.
    ExecAbort,
    /// LOADING: the server reads its data from disk.
    Loading,
    /// MASTERDOWN: a replica without its master, set not to answer.
    MasterDown,
    /// MISCONF: the server cannot write to its disk and takes no writes.
    Misconf,
    /// MOVED: the key is on another node of a cluster.
    Moved,
    /// NOAUTH: log in first.
    NoAuth,
    /// NOGROUP: no such consumer group.
    NoGroup,
    /// NOPERM: the user's ACL does not allow it.
    NoPerm,
    /// NOPROTO: the server does not speak this version of RESP.
    NoProto,
    /// NOREPLICAS: fewer replicas than `min-replicas-to-write`.
    NoReplicas,
    /// OOM: the server is at `maxmemory`.
    Oom,
    /// READONLY: a replica takes no writes.
    ReadOnly,
    /// TRYAGAIN: keys of one command are on two nodes while a slot moves.
    TryAgain,
    /// WRONGPASS: the server does not know this name with this password.
    WrongPass,
    /// WRONGTYPE: the key holds another type.
    WrongType,
    /// Any other, BUSYGROUP and BUSYKEY among them.
    Other,
}

impl ErrorCode {
    /// All codes, in the order of the variants.
    pub const ALL: [Self; 20] = [
        Self::Err,
        Self::Busy,
        Self::ClusterDown,
        Self::Denied,
        Self::ExecAbort,
        Self::Loading,
        Self::MasterDown,
        Self::Misconf,
        Self::Moved,
        Self::NoAuth,
        Self::NoGroup,
        Self::NoPerm,
        Self::NoProto,
        Self::NoReplicas,
        Self::Oom,
        Self::ReadOnly,
        Self::TryAgain,
        Self::WrongPass,
        Self::WrongType,
        Self::Other,
    ];

    /// The code as servers write it; `other` for those that mean nothing here.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Err => "ERR",
            Self::Busy => "BUSY",
            Self::ClusterDown => "CLUSTERDOWN",
            Self::Denied => "DENIED",
            Self::ExecAbort => "EXECABORT",
            Self::Loading => "LOADING",
            Self::MasterDown => "MASTERDOWN",
            Self::Misconf => "MISCONF",
            Self::Moved => "MOVED",
            Self::NoAuth => "NOAUTH",
            Self::NoGroup => "NOGROUP",
            Self::NoPerm => "NOPERM",
            Self::NoProto => "NOPROTO",
            Self::NoReplicas => "NOREPLICAS",
            Self::Oom => "OOM",
            Self::ReadOnly => "READONLY",
            Self::TryAgain => "TRYAGAIN",
            Self::WrongPass => "WRONGPASS",
            Self::WrongType => "WRONGTYPE",
            Self::Other => "other",
        }
    }

    /// The code of an error's text, which stands without its marker: all up to the first space or the end of the line.
    #[must_use]
    pub fn of_text(text: impl AsRef<[u8]>) -> Self {
        let text = text.as_ref();
        let end = text.iter().position(|byte| matches!(byte, b' ' | b'\r' | b'\n')).unwrap_or(text.len());
        match text.get(..end).unwrap_or_default() {
            b"ERR" => Self::Err,
            b"BUSY" => Self::Busy,
            b"CLUSTERDOWN" => Self::ClusterDown,
            b"DENIED" => Self::Denied,
            b"EXECABORT" => Self::ExecAbort,
            b"LOADING" => Self::Loading,
            b"MASTERDOWN" => Self::MasterDown,
            b"MISCONF" => Self::Misconf,
            b"MOVED" => Self::Moved,
            b"NOAUTH" => Self::NoAuth,
            b"NOGROUP" => Self::NoGroup,
            b"NOPERM" => Self::NoPerm,
            b"NOPROTO" => Self::NoProto,
            b"NOREPLICAS" => Self::NoReplicas,
            b"OOM" => Self::Oom,
            b"READONLY" => Self::ReadOnly,
            b"TRYAGAIN" => Self::TryAgain,
            b"WRONGPASS" => Self::WrongPass,
            b"WRONGTYPE" => Self::WrongType,
            _ => Self::Other,
        }
    }

    /// The code of a whole reply; `None`: it is no error.
    #[must_use]
    pub fn of(reply: &[u8]) -> Option<Self> {
        error_text(reply).map(Self::of_text)
    }

    /// Whether a whole reply is an error with this code.
    #[must_use]
    pub fn is(self, reply: &[u8]) -> bool {
        Self::of(reply) == Some(self)
    }

    /// Whether it says how the server is just now, not what the command or its user may do: the same command may be
    /// accepted later.
    #[must_use]
    pub fn is_transient(self) -> bool {
        match self {
            Self::Busy
            | Self::ClusterDown
            | Self::Loading
            | Self::MasterDown
            | Self::Misconf
            | Self::NoReplicas
            | Self::Oom
            | Self::TryAgain => true,
            Self::Err
            | Self::Denied
            | Self::ExecAbort
            | Self::Moved
            | Self::NoAuth
            | Self::NoGroup
            | Self::NoPerm
            | Self::NoProto
            | Self::ReadOnly
            | Self::WrongPass
            | Self::WrongType
            | Self::Other => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_the_whole_first_word() {
        assert_eq!(ErrorCode::of_text("BUSY Redis is busy running a script."), ErrorCode::Busy);
        assert_eq!(ErrorCode::of_text("BUSY"), ErrorCode::Busy);
        for text in [
            "BUSYGROUP Consumer Group name already exists",
            "BUSYKEY Target key name already exists.",
            "busy x",
            "",
            " BUSY",
        ] {
            assert_eq!(ErrorCode::of_text(text), ErrorCode::Other, "{text}");
        }
    }

    #[test]
    fn a_code_is_read_from_both_kinds_of_errors_and_from_no_other_reply() {
        assert_eq!(ErrorCode::of(b"-OOM command not allowed\r\n"), Some(ErrorCode::Oom));
        assert_eq!(ErrorCode::of(b"-LOADING\r\n"), Some(ErrorCode::Loading));
        assert_eq!(ErrorCode::of(b"!8\r\nNOPERM x\r\n"), Some(ErrorCode::NoPerm));
        assert_eq!(ErrorCode::of(b"+BUSY\r\n"), None);
        assert_eq!(ErrorCode::of(b"$4\r\nBUSY\r\n"), None);
        assert!(ErrorCode::WrongType.is(b"-WRONGTYPE Operation against a key\r\n"));
        assert!(!ErrorCode::WrongType.is(b"-WRONGTYPES x\r\n"));
    }
}
