//! HELLO and AUTH taken apart (`helloCommand` and `authCommand` in redis `networking.c` and `acl.c`).

use std::fmt;

use bytes::Bytes;
use zeroize::Zeroizing;

use crate::resp::{Protocol, Request};

use super::Session;
use super::text::{decimal, is_plain_name, one_line};

/// The credentials that a client offers. Never printed, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name, where one was given.
    pub username: Option<String>,
    /// The secret.
    pub password: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

/// The changes that one HELLO or AUTH requests, applied all or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Whether the answer is HELLO's map (or AUTH's +OK).
    pub is_hello: bool,
    /// The protocol to switch to.
    pub protocol: Option<Protocol>,
    /// The requested user.
    pub credentials: Option<Credentials>,
    /// The name to take.
    pub name: Option<Bytes>,
}

impl Hello {
    pub(super) fn of_auth(request: &Request<'_>) -> Result<Self, String> {
        let (username, password) = match (request.arg(1), request.arg(2), request.argc()) {
            (Some(password), None, _) => (None, password),
            (Some(username), Some(password), 3) => (Some(text(username)?), password),
            _ => return Err("ERR syntax error".to_owned()),
        };
        let credentials = Credentials { username, password: Zeroizing::new(password.to_vec()) };
        Ok(Self { is_hello: false, protocol: None, credentials: Some(credentials), name: None })
    }

    pub(super) fn of_hello(request: &Request<'_>) -> Result<Self, String> {
        let mut hello = Self { is_hello: true, protocol: None, credentials: None, name: None };
        let mut args = request.args().skip(1);
        if let Some(version) = args.next() {
            hello.protocol = Some(match decimal(version) {
                Some(2) => Protocol::Resp2,
                Some(3) => Protocol::Resp3,
                Some(_) => return Err("NOPROTO unsupported protocol version".to_owned()),
                None => return Err("ERR Protocol version is not an integer or out of range".to_owned()),
            });
        }
        while let Some(option) = args.next() {
            if option.eq_ignore_ascii_case(b"auth") {
                let (Some(user), Some(password)) = (args.next(), args.next()) else {
                    return Err(syntax(option));
                };
                let password = Zeroizing::new(password.to_vec());
                hello.credentials = Some(Credentials { username: Some(text(user)?), password });
            } else if option.eq_ignore_ascii_case(b"setname") {
                let name = args.next().ok_or_else(|| syntax(option))?;
                if !is_plain_name(name) {
                    return Err(
                        "ERR Client names cannot contain spaces, newlines or special characters.".to_owned()
                    );
                }
                hello.name = Some(Bytes::copy_from_slice(name));
            } else {
                return Err(syntax(option));
            }
        }
        Ok(hello)
    }
}

fn syntax(option: &[u8]) -> String {
    format!("ERR Syntax error in HELLO option '{}'", one_line(option))
}

/// A user name is text in every ACL file; other bytes cannot name a user.
fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| "WRONGPASS invalid username-password pair or user is disabled.".to_owned())
}

impl Hello {
    /// Applies an accepted HELLO to the session (except the identity).
    pub fn apply(self, session: &mut Session) {
        if let Some(protocol) = self.protocol {
            session.protocol = protocol;
        }
        if let Some(name) = self.name {
            session.name = name[..].into();
        }
    }
}
