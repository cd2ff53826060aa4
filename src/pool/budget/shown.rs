//! A held connection as listings, errors and the log show it: `key=value` pairs.

use std::fmt::{self, Write as _};

use super::holder::Occupant;
use super::{Holding, HumanDuration};

/// A value among `key=value` pairs: without blanks, and `-` where there is none.
struct Value<'a>(&'a str);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_char('-');
        }
        self.0.chars().try_for_each(|sign| f.write_char(if sign.is_whitespace() { '-' } else { sign }))
    }
}

/// A number among them.
struct Number<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Number<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(number) => number.fmt(f),
            None => f.write_char('-'),
        }
    }
}

impl Holding {
    /// Who holds it and why, in words for people.
    #[must_use]
    pub fn holder(&self) -> String {
        match &self.who {
            Occupant::Words(words) => words.clone(),
            Occupant::Client(client) if client.name.is_empty() => {
                format!("client {} ({}), {}", client.id, client.peer, client.pin)
            }
            Occupant::Client(client) => format!("client '{}', {}", client.name, client.pin),
        }
    }

    /// The client that holds it alone, in `key=value` pairs, and how the server lists the connection. `None`: no client holds
    /// it alone.
    #[must_use]
    pub fn client_fields(&self) -> Option<String> {
        let client = self.client()?;
        Some(format!(
            "client={} name={} addr={} user={} pin={} held={} cmd={} server_id={} local_port={}",
            client.id,
            Value(&client.name),
            Value(&client.peer.to_string()),
            Value(client.user()),
            Value(client.pin),
            HumanDuration(self.since.elapsed()),
            client.command(),
            Number(self.id),
            Number(self.local_port),
        ))
    }

    /// One line of PROXY UPSTREAMS, without a line break.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!("kind={} phase={}", self.kind.label(), self.phase.label());
        let _ = match self.client_fields() {
            Some(fields) => write!(line, " {fields}"),
            None => write!(
                line,
                " held={} server_id={} local_port={}",
                HumanDuration(self.since.elapsed()),
                Number(self.id),
                Number(self.local_port)
            ),
        };
        // Last, because it is the one value with blanks.
        let _ = write!(line, " holder={}", self.holder());
        line
    }
}
