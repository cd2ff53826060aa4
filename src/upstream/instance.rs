//! The name of a connection on the server, which identifies the run of redbouncer that owns it.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};

/// The prefix of the names of all connections of redbouncer.
const MARK: &str = "redbouncer";

/// One run of redbouncer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instance {
    /// `hygiene.name`
    pub name: String,
    /// Tells this run from others of the same name.
    pub boot: String,
}

impl Instance {
    /// A new run under `name`.
    #[must_use]
    pub fn start(name: &str) -> Self {
        // The operating system's randomness: machines made from one image may start at the same moment.
        let random = RandomState::new().build_hasher().finish();
        Self { name: name.to_owned(), boot: format!("{:08x}", random >> 32) }
    }

    /// The name of a connection of kind `kind`, as CLIENT LIST on the server shows it.
    #[must_use]
    pub fn connection(&self, kind: &str) -> String {
        format!("{self}{kind}")
    }

    /// Whose connection of the name `connection` is; `None` where it is none of redbouncer's.
    #[must_use]
    pub fn of(connection: &str) -> Option<Self> {
        Self::and_kind_of(connection).map(|(instance, _)| instance)
    }

    /// The same, with the connection's kind.
    #[must_use]
    pub fn and_kind_of(connection: &str) -> Option<(Self, &str)> {
        Self::parts_of(connection).map(|(instance, kind, _)| (instance, kind))
    }

    /// The name of the control connection of an instance that shares a total with others.
    #[must_use]
    pub fn registered(&self, registered: Registered) -> String {
        format!("{self}{CONTROL}:{registered}")
    }

    /// The instance whose control connection `connection` is, with its registered claim. `None` for every other name.
    #[must_use]
    pub fn registration_of(connection: &str) -> Option<(Self, Registered)> {
        let (instance, _, registered) = Self::parts_of(connection)?;
        Some((instance, registered?))
    }

    fn parts_of(connection: &str) -> Option<(Self, &str, Option<Registered>)> {
        let mut parts = connection.split(':');
        let (mark, name, boot, kind) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_boot = boot.len() == 8 && boot.bytes().all(|byte| byte.is_ascii_hexdigit());
        if mark != MARK || name.is_empty() || !is_boot || kind.is_empty() {
            return None;
        }
        let registered = match parts.next() {
            None => None,
            Some(text) if kind == CONTROL && parts.next().is_none() => Some(Registered::parse(text)?),
            Some(_) => return None,
        };
        Some((Self { name: name.to_owned(), boot: boot.to_owned() }, kind, registered))
    }
}

/// The kind of connection whose name has a fifth part.
const CONTROL: &str = "control";
/// A claim never has more digits: a server has far fewer connections.
const MOST_DIGITS: usize = 7;

/// The fifth part of the name of a control connection: the instance's claim of the connections that all instances share
/// (`fleet.total_connections`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Connections that it holds or may open, the control connection among them.
    pub claim: usize,
    /// The change of its claim that it wants.
    pub intent: Intent,
}

/// The change that an instance wants to its claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Nothing else.
    Settled,
    /// More: `+`.
    Wants,
    /// Nothing any more, because another process takes its place: `-`.
    Leaves,
}

impl Registered {
    fn parse(text: &str) -> Option<Self> {
        let (digits, intent) = match (text.strip_suffix('+'), text.strip_suffix('-')) {
            (Some(digits), _) => (digits, Intent::Wants),
            (None, Some(digits)) => (digits, Intent::Leaves),
            (None, None) => (text, Intent::Settled),
        };
        let is_number =
            (1..=MOST_DIGITS).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        Some(Self { claim: digits.parse().ok().filter(|_| is_number)?, intent })
    }
}

impl fmt::Display for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.intent {
            Intent::Settled => "",
            Intent::Wants => "+",
            Intent::Leaves => "-",
        };
        write!(f, "{}{sign}", self.claim)
    }
}

/// The prefix of the names of all its connections.
impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK}:{}:{}:", self.name, self.boot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_s_name_says_whose_it_is() {
        let instance = Instance::start("web-1");
        let connection = instance.connection("shared");
        assert_eq!(Instance::of(&connection), Some(instance.clone()));
        assert_eq!(Instance::and_kind_of(&connection), Some((instance.clone(), "shared")));
        assert_ne!(Instance::start("web-1"), instance);
    }

    #[test]
    fn a_control_connection_s_name_may_say_what_its_instance_claims() {
        let instance = Instance::start("web-1");
        for (claim, intent, end) in
            [(1, Intent::Wants, "1+"), (18, Intent::Settled, "18"), (0, Intent::Leaves, "0-")]
        {
            let registered = Registered { claim, intent };
            let connection = instance.registered(registered);
            assert_eq!(connection, instance.connection(&format!("control:{end}")));
            assert_eq!(Instance::registration_of(&connection), Some((instance.clone(), registered)));
            // The owner is parsed as from a name without a claim.
            assert_eq!(Instance::and_kind_of(&connection), Some((instance.clone(), "control")));
        }
        assert_eq!(Instance::registration_of(&instance.connection("control")), None);
        assert_eq!(Instance::registration_of(&instance.connection("shared")), None);
    }

    #[test]
    fn other_names_are_nobody_s() {
        for name in [
            "",
            "redbouncer",
            "redbouncer:web-1:0123abcd:",
            "redbouncer:web-1:0123abcd",
            "redbouncer::0123abcd:shared",
            "redbouncer:web-1:boot:shared",
            "redbouncer:web-1:0123abcd:shared:1",
            "redbouncer:web-1:0123abcd:control:",
            "redbouncer:web-1:0123abcd:control:+",
            "redbouncer:web-1:0123abcd:control:-1",
            "redbouncer:web-1:0123abcd:control:1+-",
            "redbouncer:web-1:0123abcd:control:12345678",
            "redbouncer:web-1:0123abcd:control:4:x",
            "rebouncer:web-1:0123abcd:shared",
        ] {
            assert_eq!(Instance::of(name), None, "{name}");
        }
    }
}
