//! Logging in, as a state machine without I/O: it is fed the server's replies and says what to write next.
//!
//! `HELLO … AUTH` goes first and alone, because a failing authentication behind a pending reply makes some servers
//! omit a reply (redis/redis#15640). What follows it, name, id, database and a last PING, leaves in one write. A
//! server without HELLO gets AUTH, again alone. What a provider may forbid (`CLIENT SETNAME`, `CLIENT ID`, `INFO`,
//! `PING`) is noted, not asked for again for a while, and done without; a login only fails for what the connection
//! cannot be used without.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;

use super::capabilities::{Capability, Refusal};
use super::error::{DialError, first_word};
use super::options::{Secret, UpstreamOptions};
use super::server::{Greeting, ServerInfo};
use crate::resp::{ErrorCode, Protocol, ReplyKind, bulk, encode, error_text, integer};
use crate::telemetry::printable;

/// The user we log in as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The ACL user; `None` is the server's `default` user.
    pub username: Option<String>,
    /// `None` sends no AUTH, whatever the user name.
    pub password: Option<Secret>,
    /// The source of the credentials.
    pub source: CredentialSource,
}

/// The source of the credentials of an [`Identity`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CredentialSource {
    /// `upstream.url` and its password. They may change at run time: every login reads the current ones from the
    /// [`Connector`](super::Connector).
    #[default]
    Url,
    /// The users file.
    UsersFile,
    /// A client. Without a user name they are sent as the client sent them, by AUTH alone, and a server that asks for no
    /// password refuses them, as it would the client.
    Client,
}

impl Identity {
    /// The credentials of `upstream.url`.
    #[must_use]
    pub fn of_url(options: &UpstreamOptions) -> Self {
        Self {
            username: options.username.clone(),
            password: options.password.clone(),
            source: CredentialSource::Url,
        }
    }

    /// The user's name on the server.
    #[must_use]
    pub fn name(&self) -> &str {
        self.username.as_deref().unwrap_or("default")
    }
}

/// The parameters of a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user of the login.
    pub identity: Arc<Identity>,
    /// The database to select.
    pub database: u32,
    /// The protocol to speak.
    pub protocol: Protocol,
    /// The connection's name in `CLIENT LIST`: `redbouncer:<name>:<boot id>:<kind>`.
    pub name: String,
    /// Send READONLY (replicas of a cluster).
    pub readonly: bool,
    /// Have the server tell which of the keys change that are read there.
    pub tracking: bool,
}

/// The next step after a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Read the next reply.
    Read,
    /// Write the appended commands, then read; no other data may have arrived.
    Write,
    /// The server is loading its data: pause, then [`LoginMachine::resume`].
    Pause,
    /// The login is over; nothing else may have arrived.
    Done,
}

/// The commands of the login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Hello,
    Auth,
    SetName,
    Id,
    Select,
    ReadOnly,
    Tracking,
    Info,
    Ping,
}

/// Something that the server or the user's rights lack; the connection works without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MissingCapability {
    pub(super) what: Capability,
    /// The server's error.
    pub(super) text: String,
}

/// The result of a login.
#[derive(Debug)]
pub(super) struct LoggedIn {
    pub(super) server: ServerInfo,
    pub(super) id: Option<u64>,
    /// Drawn by the server at its start.
    pub(super) run: Option<String>,
    pub(super) missing: Vec<MissingCapability>,
    /// The requested capabilities that the server granted.
    pub(super) met: Vec<Capability>,
}

/// The exchanges of a login; each is over before the next is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    AuthFirst,
    Hello,
    Auth,
    Setup,
}

/// One login in progress.
#[derive(Debug)]
pub(super) struct LoginMachine<'a> {
    login: &'a Login,
    stage: Stage,
    /// Written and not answered, oldest first.
    outstanding: VecDeque<Ask>,
    /// Answered `-LOADING`: to be asked again.
    again: Vec<Ask>,
    /// The error with which that was answered last.
    loading: String,
    server: Option<ServerInfo>,
    id: Option<u64>,
    run: Option<String>,
    /// Known to be refused: not asked for.
    known: Vec<Capability>,
    missing: Vec<MissingCapability>,
    met: Vec<Capability>,
}

impl<'a> LoginMachine<'a> {
    /// Starts a login and appends its first command to `out`. Capabilities in `known` are not requested.
    pub(super) fn start(login: &'a Login, known: Vec<Capability>, out: &mut BytesMut) -> Self {
        let mut machine = Self {
            login,
            stage: Stage::Hello,
            outstanding: VecDeque::new(),
            again: Vec::new(),
            loading: String::new(),
            server: None,
            id: None,
            run: None,
            known,
            missing: Vec::new(),
            met: Vec::new(),
        };
        if machine.authenticates_first() {
            machine.stage = Stage::AuthFirst;
            machine.ask(&[Ask::Auth], out);
        } else {
            machine.ask(&[Ask::Hello], out);
        }
        machine
    }

    fn authenticates_first(&self) -> bool {
        let identity = &self.login.identity;
        identity.source == CredentialSource::Client
            && identity.username.is_none()
            && identity.password.is_some()
    }

    /// Takes one whole reply of the server's and says what follows; commands are appended to `out`.
    ///
    /// # Errors
    /// The login has failed and the connection is to be closed.
    pub(super) fn on_frame(
        &mut self,
        frame: &[u8],
        kind: ReplyKind,
        out: &mut BytesMut,
    ) -> Result<Progress, DialError> {
        if kind == ReplyKind::Push {
            return Err(DialError::protocol("a push during the login"));
        }
        let Some(ask) = self.outstanding.pop_front() else {
            return Err(DialError::protocol("a reply that nothing asked for"));
        };
        match error_text(frame) {
            Some(text) => {
                // Only what carried the password can repeat it; a word of another error may be a weak one by chance.
                let carries = matches!(ask, Ask::Hello | Ask::Auth);
                let secret = self.login.identity.password.as_ref().filter(|_| carries);
                self.on_error(ask, readable(text, secret))?;
            }
            None => self.on_answer(ask, frame, kind)?,
        }
        Ok(self.advance(out))
    }

    /// After a pause, repeats the commands that were answered with `-LOADING`.
    pub(super) fn resume(&mut self, out: &mut BytesMut) {
        let again = std::mem::take(&mut self.again);
        self.ask(&again, out);
    }

    /// The pauses have lasted long enough: whether the connection can be used while the server is still loading.
    ///
    /// # Errors
    /// Something that cannot be done without was not answered yet.
    pub(super) fn give_up(&mut self) -> Result<(), DialError> {
        let in_the_way = self.stage != Stage::Setup
            || self.again.iter().any(|ask| match ask {
                Ask::Hello | Ask::Auth | Ask::Select | Ask::ReadOnly | Ask::Tracking => true,
                Ask::SetName | Ask::Id | Ask::Info | Ask::Ping => false,
            });
        if in_the_way { Err(DialError::Loading { text: std::mem::take(&mut self.loading) }) } else { Ok(()) }
    }

    /// The facts learned from the replies.
    pub(super) fn finish(self) -> LoggedIn {
        LoggedIn {
            server: self.server.unwrap_or_default(),
            id: self.id,
            run: self.run,
            missing: self.missing,
            met: self.met,
        }
    }

    fn on_error(&mut self, ask: Ask, text: String) -> Result<(), DialError> {
        match ErrorCode::of_text(&text) {
            ErrorCode::Loading => {
                self.again.push(ask);
                self.loading = text;
                return Ok(());
            }
            // Redis before 6 looks a command up first and at the password second, so HELLO is never answered so there.
            ErrorCode::NoAuth if ask != Ask::Hello || self.login.identity.password.is_none() => {
                return Err(DialError::Login { text });
            }
            ErrorCode::Denied => return Err(DialError::Login { text }),
            ErrorCode::Err if is_max_clients(&text) => return Err(DialError::MaxClients { text }),
            _ => {} // what else it means depends on what was asked
        }
        match ask {
            Ask::Hello => self.on_hello_refused(text)?,
            // Redis before 6, and the default user without a password since.
            Ask::Auth
                if self.login.identity.source != CredentialSource::Client
                    && (text.contains("no password is set") || text.contains("without any password")) =>
            {
                self.lack(Capability::Password, text);
            }
            Ask::Auth => return Err(DialError::Login { text }),
            Ask::SetName => self.lack(Capability::SetName, text),
            Ask::Id => self.lack(Capability::Id, text),
            Ask::Info => self.lack(Capability::Info, text),
            Ask::Ping => self.lack(Capability::Ping, text),
            Ask::Select => return Err(DialError::SelectRefused { database: self.login.database, text }),
            Ask::ReadOnly => return Err(DialError::ReadOnlyRefused { text }),
            Ask::Tracking => return Err(DialError::TrackingRefused { text }),
        }
        Ok(())
    }

    /// HELLO was refused: for its own sake, then RESP2 does without, or for our identity's.
    fn on_hello_refused(&mut self, text: String) -> Result<(), DialError> {
        let has_no_hello = match ErrorCode::of_text(&text) {
            // The command contained our credentials, so the error concerns the connection rather than the command.
            ErrorCode::NoAuth | ErrorCode::NoProto | ErrorCode::NoPerm => true,
            ErrorCode::Err => Refusal::of(&text).is_some(),
            _ => false, // WRONGPASS and whatever else a server may say about an identity
        };
        match (has_no_hello, self.login.protocol) {
            (false, _) => Err(DialError::Login { text }),
            (true, Protocol::Resp3) => Err(DialError::NoResp3 { text }),
            (true, Protocol::Resp2) => {
                self.lack(Capability::Resp3, text);
                Ok(())
            }
        }
    }

    fn on_answer(&mut self, ask: Ask, frame: &[u8], kind: ReplyKind) -> Result<(), DialError> {
        match ask {
            Ask::Hello => {
                let Some(greeting) = Greeting::read(frame, self.login.protocol) else {
                    return Err(DialError::protocol("HELLO was not answered with a map"));
                };
                if greeting.protocol != i64::from(self.login.protocol.number()) {
                    return Err(DialError::protocol("HELLO was answered with another protocol version"));
                }
                self.id = greeting.id;
                self.server = Some(greeting.info);
                if self.login.protocol == Protocol::Resp3 {
                    self.met.push(Capability::Resp3);
                }
            }
            Ask::Auth | Ask::SetName | Ask::Select | Ask::ReadOnly | Ask::Tracking => {
                expect_text(ask, frame, kind, b"OK")?;
                self.met.extend(match ask {
                    Ask::SetName => Some(Capability::SetName),
                    Ask::Select => Some(Capability::Select),
                    _ => None, // nothing that can be done without
                });
            }
            Ask::Ping => {
                expect_text(ask, frame, kind, b"PONG")?;
                self.met.push(Capability::Ping);
            }
            // An answer in a shape of its own: it is not what we need, but it is the one reply that was owed.
            Ask::Id => match integer(frame).and_then(|id| u64::try_from(id).ok()) {
                Some(id) => {
                    self.id = Some(id);
                    self.met.push(Capability::Id);
                }
                None => self.lack(Capability::Id, "(an answer that is no number)".to_owned()),
            },
            Ask::Info => match bulk(frame) {
                Some(text) => {
                    let text = String::from_utf8_lossy(text);
                    self.run = run_id(&text);
                    // HELLO's reply has more details.
                    self.server.get_or_insert_with(|| ServerInfo::from_info(&text));
                    self.met.push(Capability::Info);
                }
                None => self.lack(Capability::Info, "(an answer that is no text)".to_owned()),
            },
        }
        Ok(())
    }

    /// Goes to the next exchange when the present one is over.
    fn advance(&mut self, out: &mut BytesMut) -> Progress {
        if !self.outstanding.is_empty() {
            return Progress::Read;
        }
        if !self.again.is_empty() {
            return Progress::Pause;
        }
        match self.stage {
            Stage::AuthFirst => {
                self.stage = Stage::Hello;
                self.ask(&[Ask::Hello], out);
            }
            Stage::Hello
                if self.server.is_none()
                    && self.login.identity.password.is_some()
                    && !self.authenticates_first() =>
            {
                self.stage = Stage::Auth;
                self.ask(&[Ask::Auth], out);
            }
            Stage::Hello | Stage::Auth => {
                self.stage = Stage::Setup;
                let asks = self.setup();
                if asks.is_empty() {
                    return Progress::Done;
                }
                self.ask(&asks, out);
            }
            Stage::Setup => return Progress::Done,
        }
        Progress::Write
    }

    /// The commands that remain after authentication.
    fn setup(&self) -> Vec<Ask> {
        let hopeful = |what| !self.known.contains(&what);
        [
            (Ask::SetName, hopeful(Capability::SetName)),
            // Already known from HELLO.
            (Ask::Id, self.id.is_none() && hopeful(Capability::Id)),
            (Ask::Select, self.login.database != 0),
            (Ask::ReadOnly, self.login.readonly),
            (Ask::Tracking, self.login.tracking),
            (Ask::Info, hopeful(Capability::Info)),
            (Ask::Ping, hopeful(Capability::Ping)),
        ]
        .into_iter()
        .filter_map(|(ask, wanted)| wanted.then_some(ask))
        .collect()
    }

    fn ask(&mut self, asks: &[Ask], out: &mut BytesMut) {
        for ask in asks {
            self.write(*ask, out);
            self.outstanding.push_back(*ask);
        }
    }

    fn write(&self, ask: Ask, out: &mut BytesMut) {
        let Login { identity, database, protocol, name, readonly: _, tracking: _ } = self.login;
        let user = identity.username.as_deref().unwrap_or("default").as_bytes();
        let password = identity.password.as_ref().map(|password| password.expose());
        let version = match protocol {
            Protocol::Resp2 => b"2",
            Protocol::Resp3 => b"3",
        };
        match (ask, password) {
            (Ask::Hello, Some(password)) if !self.authenticates_first() => {
                encode::command(out, &[b"HELLO", version, b"AUTH", user, password]);
            }
            (Ask::Hello, _) => encode::command(out, &[b"HELLO", version]),
            // Redis before 6 knows only the form without a user, later ones take it for the default user.
            (Ask::Auth, password) if user == b"default" => {
                encode::command(out, &[b"AUTH", password.unwrap_or_default()]);
            }
            (Ask::Auth, password) => encode::command(out, &[b"AUTH", user, password.unwrap_or_default()]),
            (Ask::SetName, _) => encode::command(out, &[b"CLIENT", b"SETNAME", name.as_bytes()]),
            (Ask::Id, _) => encode::command(out, &[b"CLIENT", b"ID"]),
            (Ask::Select, _) => encode::command(out, &[b"SELECT", database.to_string().as_bytes()]),
            (Ask::ReadOnly, _) => encode::command(out, &[b"READONLY"]),
            (Ask::Tracking, _) => encode::command(out, &[b"CLIENT", b"TRACKING", b"ON"]),
            (Ask::Info, _) => encode::command(out, &[b"INFO", b"server"]),
            (Ask::Ping, _) => encode::command(out, &[b"PING"]),
        }
    }

    fn lack(&mut self, what: Capability, text: String) {
        // A transient error of a busy server is not a refusal.
        if !ErrorCode::of_text(&text).is_transient() {
            self.missing.push(MissingCapability { what, text });
        }
    }
}

/// The run id in the text of `INFO server`.
fn run_id(info: &str) -> Option<String> {
    let id = info.lines().find_map(|line| line.strip_prefix("run_id:"))?.trim();
    (!id.is_empty() && id.len() <= 64).then(|| id.to_owned())
}

/// At the limit Redis accepts, sends this as the first reply and closes; others have words of their own for it.
fn is_max_clients(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    lower.contains("max number of clients") || lower.contains("max concurrent connections")
}

/// Anything else than the expected text means that replies and commands are out of step.
fn expect_text(ask: Ask, frame: &[u8], kind: ReplyKind, expected: &[u8]) -> Result<(), DialError> {
    match kind {
        ReplyKind::Simple if bulk(frame) == Some(expected) => Ok(()),
        _ => Err(DialError::protocol(&format!("an unexpected answer to {ask:?}"))), // no other kind or text will do
    }
}

/// A server's error as a text for logs and clients: one line, of bounded length, without our password.
///
/// Redis before 6 answers HELLO with "unknown command `HELLO`, with args beginning with: …", the password among them.
fn readable(error: &[u8], secret: Option<&Secret>) -> String {
    const LONGEST: usize = 256;
    let text = String::from_utf8_lossy(error);
    let text = text.split(", with args beginning with").next().unwrap_or_default();
    let shown: String = printable(text.as_bytes()).chars().take(LONGEST).collect();
    let Some(password) = secret.map(|secret| String::from_utf8_lossy(secret.expose())) else { return shown };
    // Redis's constant texts repeat nothing, even where a weak password is a word of theirs.
    const CONSTANT: [&str; 3] = [
        "WRONGPASS invalid username-password pair or user is disabled.",
        "NOAUTH Authentication required.",
        "ERR max number of clients reached",
    ];
    if password.is_empty() || !text.contains(password.as_ref()) || CONSTANT.contains(&text) {
        return shown;
    }
    let code = first_word(&shown);
    // A password may even be where the code is expected.
    let code = if code.contains(password.as_ref()) { "ERR" } else { code };
    format!("{code} (text withheld: it contains the password)")
}
