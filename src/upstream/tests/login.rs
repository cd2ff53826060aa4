//! The login's state machine, reply by reply.

use bytes::BytesMut;

use crate::resp::{Protocol, ReplyScanner};
use crate::upstream::login::{LoggedIn, Login, LoginMachine, Progress};
use crate::upstream::testing::{identity, login};
use crate::upstream::{Capability, DialError, Secret};

const HELLO2: &str = "*14\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:2\r\n\
                      $2\r\nid\r\n:4\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n\
                      $7\r\nmodules\r\n*0\r\n";
const HELLO3: &str = "%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:3\r\n\
                      $2\r\nid\r\n:4\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n\
                      $7\r\nmodules\r\n*0\r\n";
const UNKNOWN_HELLO: &str =
    "-ERR unknown command `HELLO`, with args beginning with: `2`, `AUTH`, `default`, `s3cret`, \r\n";
const LOADING: &str = "-LOADING Redis is loading the dataset in memory\r\n";
const NOPERM: &str = "-NOPERM this user has no permissions to run the command\r\n";

/// A login in progress and what it has written since it was last looked at.
struct Dialogue<'a> {
    machine: LoginMachine<'a>,
    out: BytesMut,
}

impl<'a> Dialogue<'a> {
    fn start(login: &'a Login) -> Self {
        Self::start_knowing(login, &[])
    }

    fn start_knowing(login: &'a Login, known: &[Capability]) -> Self {
        let mut out = BytesMut::new();
        Self { machine: LoginMachine::start(login, known.to_vec(), &mut out), out }
    }

    /// The words of the commands written, one command a line.
    fn written(&mut self) -> String {
        let bytes = self.out.split();
        let words = String::from_utf8(bytes.to_vec()).unwrap();
        let words: Vec<&str> = words.split("\r\n").filter(|w| !w.starts_with('$')).collect();
        let line = words.join(" ");
        line.split('*').skip(1).map(|c| c.split_once(' ').unwrap().1.trim()).collect::<Vec<_>>().join("\n")
    }

    fn hears(&mut self, reply: &str) -> Result<Progress, DialError> {
        let step = ReplyScanner::default().step(reply.as_bytes()).unwrap();
        assert_eq!(step.consumed, reply.len(), "one reply at a time: {reply:?}");
        self.machine.on_frame(reply.as_bytes(), step.complete.unwrap(), &mut self.out)
    }

    fn hears_all(&mut self, replies: &[&str]) -> Result<Progress, DialError> {
        let mut last = Progress::Read;
        for reply in replies {
            assert_eq!(last, Progress::Read, "before {reply:?}");
            last = self.hears(reply)?;
        }
        Ok(last)
    }

    fn finish(self) -> LoggedIn {
        self.machine.finish()
    }
}

fn with_password(protocol: Protocol) -> Login {
    Login { identity: identity(None, "s3cret"), ..login(protocol) }
}

fn missing_capabilities(logged_in: &LoggedIn) -> Vec<Capability> {
    logged_in.missing.iter().map(|lack| lack.what).collect()
}

#[test]
fn hello_goes_alone_and_the_rest_in_one_write() {
    let login = Login { database: 3, readonly: true, ..with_password(Protocol::Resp3) };
    let mut dialogue = Dialogue::start(&login);
    assert_eq!(dialogue.written(), "HELLO 3 AUTH default s3cret");
    assert_eq!(dialogue.hears(HELLO3), Ok(Progress::Write));
    assert_eq!(
        dialogue.written(),
        "CLIENT SETNAME redbouncer:test:0:lane\nSELECT 3\nREADONLY\nINFO server\nPING"
    );
    let info = "$47\r\nredis_version:5.0.14\r\nrun_id:b1946ac92492d234\r\n\r\n";
    let end = dialogue.hears_all(&["+OK\r\n", "+OK\r\n", "+OK\r\n", info, "+PONG\r\n"]);
    assert_eq!(end, Ok(Progress::Done));
    assert_eq!(dialogue.written(), "");
    let logged_in = dialogue.finish();
    assert_eq!(logged_in.id, Some(4), "HELLO has said it");
    assert_eq!((logged_in.server.version.as_str(), logged_in.server.hello), ("7.0.15", true));
    assert_eq!(logged_in.run.as_deref(), Some("b1946ac92492d234"));
    assert!(logged_in.missing.is_empty());
}

#[test]
fn without_credentials_database_or_readonly_none_is_sent() {
    let login = login(Protocol::Resp2);
    let mut dialogue = Dialogue::start(&login);
    assert_eq!(dialogue.written(), "HELLO 2");
    assert_eq!(dialogue.hears(HELLO2), Ok(Progress::Write));
    assert_eq!(dialogue.written(), "CLIENT SETNAME redbouncer:test:0:lane\nINFO server\nPING");
}

#[test]
fn a_user_is_named_in_hello() {
    let login = Login { identity: identity(Some("worker"), "s3cret"), ..login(Protocol::Resp3) };
    assert_eq!(Dialogue::start(&login).written(), "HELLO 3 AUTH worker s3cret");
}

#[test]
fn a_server_without_hello_gets_auth_alone_and_is_asked_for_info() {
    let login = with_password(Protocol::Resp2);
    let mut dialogue = Dialogue::start(&login);
    dialogue.written();
    assert_eq!(dialogue.hears(UNKNOWN_HELLO), Ok(Progress::Write));
    assert_eq!(dialogue.written(), "AUTH s3cret");
    assert_eq!(dialogue.hears("+OK\r\n"), Ok(Progress::Write));
    assert_eq!(dialogue.written(), "CLIENT SETNAME redbouncer:test:0:lane\nCLIENT ID\nINFO server\nPING");
    let info = "$22\r\nredis_version:5.0.14\r\n\r\n";
    assert_eq!(dialogue.hears_all(&["+OK\r\n", ":9\r\n", info, "+PONG\r\n"]), Ok(Progress::Done));
    let logged_in = dialogue.finish();
    assert_eq!((logged_in.server.version.as_str(), logged_in.server.hello), ("5.0.14", false));
    assert_eq!(missing_capabilities(&logged_in), [Capability::Resp3]);
    assert!(!format!("{logged_in:?}").contains("s3cret"));
}

#[test]
fn a_server_without_hello_and_password_goes_on_at_once() {
    let login = login(Protocol::Resp2);
    let mut dialogue = Dialogue::start(&login);
    dialogue.written();
    assert_eq!(dialogue.hears("-ERR unknown command 'HELLO'\r\n"), Ok(Progress::Write));
    assert!(dialogue.written().ends_with("INFO server\nPING"));
}

#[test]
fn a_named_user_is_named_in_auth_too() {
    let login = Login { identity: identity(Some("worker"), "s3cret"), ..login(Protocol::Resp2) };
    let mut dialogue = Dialogue::start(&login);
    dialogue.written();
    dialogue.hears(UNKNOWN_HELLO).unwrap();
    assert_eq!(dialogue.written(), "AUTH worker s3cret");
    let refused = dialogue.hears("-ERR wrong number of arguments for 'auth' command\r\n");
    assert!(matches!(refused, Err(DialError::Login { .. })), "{refused:?}");
}

#[test]
fn resp3_is_refused_where_there_is_no_hello() {
    for reply in [UNKNOWN_HELLO, "-NOPROTO unsupported protocol version\r\n", "-ERR unsupported command\r\n"]
    {
        let login = with_password(Protocol::Resp3);
        let failed = Dialogue::start(&login).hears(reply).unwrap_err();
        assert!(matches!(failed, DialError::NoResp3 { .. }), "{reply:?}: {failed:?}");
        assert!(!failed.retryable());
    }
}

#[test]
fn refusals_of_the_identity_are_told_in_the_servers_words() {
    for reply in [
        "-WRONGPASS invalid username-password pair or user is disabled.\r\n",
        "-NOAUTH HELLO must be called with the client already authenticated\r\n",
        "-DENIED Redis is running in protected mode\r\n",
        "-ERR invalid password\r\n",
    ] {
        let login = login(Protocol::Resp2);
        let failed = Dialogue::start(&login).hears(reply).unwrap_err();
        let text = reply.trim_end().trim_start_matches('-').to_owned();
        assert_eq!(failed, DialError::Login { text: text.clone() });
        assert_eq!(failed.public_text(), text);
        assert!(!failed.retryable());
    }
}

#[test]
fn a_missing_password_is_noticed_without_hello_too() {
    let login = login(Protocol::Resp2);
    let mut dialogue = Dialogue::start(&login);
    dialogue.hears("-ERR unknown command 'HELLO'\r\n").unwrap();
    let failed = dialogue.hears("-NOAUTH Authentication required.\r\n").unwrap_err();
    assert!(matches!(failed, DialError::Login { .. }), "{failed:?}");
}

#[test]
fn a_password_that_the_server_does_not_ask_for_is_no_failure() {
    let login = with_password(Protocol::Resp2);
    let mut dialogue = Dialogue::start(&login);
    dialogue.hears(UNKNOWN_HELLO).unwrap();
    let end = dialogue.hears("-ERR Client sent AUTH, but no password is set\r\n");
    assert_eq!(end, Ok(Progress::Write));
    assert_eq!(missing_capabilities(&dialogue.finish()), [Capability::Resp3, Capability::Password]);
}

#[test]
fn a_full_server_is_recognised_by_its_words() {
    for reply in [
        "-ERR max number of clients reached\r\n",
        "-ERR max number of clients + cluster connections reached\r\n",
        "-ERR max concurrent connections exceeded\r\n",
    ] {
        let login = login(Protocol::Resp3);
        let failed = Dialogue::start(&login).hears(reply).unwrap_err();
        assert!(matches!(failed, DialError::MaxClients { .. }), "{reply:?}: {failed:?}");
        assert!(failed.retryable());
    }
}

#[test]
fn refused_name_id_info_and_ping_are_done_without() {
    let login = login(Protocol::Resp2);
    let mut dialogue = Dialogue::start(&login);
    dialogue.hears(UNKNOWN_HELLO).unwrap();
    assert_eq!(dialogue.hears_all(&[NOPERM, NOPERM, NOPERM, NOPERM]), Ok(Progress::Done));
    let logged_in = dialogue.finish();
    let all = [Capability::Resp3, Capability::SetName, Capability::Id, Capability::Info, Capability::Ping];
    assert_eq!((missing_capabilities(&logged_in), logged_in.id), (all.to_vec(), None));
    assert!(logged_in.met.is_empty());
}

#[test]
fn what_is_known_to_be_lacking_is_not_asked_for() {
    let login = login(Protocol::Resp3);
    let mut dialogue = Dialogue::start_knowing(&login, &[Capability::SetName]);
    dialogue.written();
    assert_eq!(dialogue.hears(HELLO3), Ok(Progress::Write));
    assert_eq!(dialogue.written(), "INFO server\nPING");
    assert_eq!(dialogue.hears_all(&["$0\r\n\r\n", "+PONG\r\n"]), Ok(Progress::Done));
    assert_eq!(dialogue.finish().met, [Capability::Resp3, Capability::Info, Capability::Ping]);
    let mut dialogue =
        Dialogue::start_knowing(&login, &[Capability::SetName, Capability::Info, Capability::Ping]);
    dialogue.written();
    assert_eq!(dialogue.hears(HELLO3), Ok(Progress::Done), "nothing is left to ask");
    assert_eq!(dialogue.written(), "");
}

#[test]
fn answers_in_a_shape_of_their_own_are_done_without() {
    let login = login(Protocol::Resp2);
    let mut dialogue = Dialogue::start(&login);
    dialogue.hears(UNKNOWN_HELLO).unwrap();
    assert_eq!(dialogue.hears_all(&["+OK\r\n", "$-1\r\n", ":1\r\n", "+PONG\r\n"]), Ok(Progress::Done));
    assert_eq!(
        missing_capabilities(&dialogue.finish()),
        [Capability::Resp3, Capability::Id, Capability::Info]
    );
}

#[test]
fn a_busy_servers_refusals_are_not_remembered() {
    let login = login(Protocol::Resp3);
    let mut dialogue = Dialogue::start(&login);
    dialogue.hears(HELLO3).unwrap();
    let busy = "-BUSY Redis is busy running a script.\r\n";
    assert_eq!(dialogue.hears_all(&[busy, busy, busy]), Ok(Progress::Done));
    assert!(dialogue.finish().missing.is_empty());
}

#[test]
fn a_refused_database_is_told_in_the_servers_words() {
    let login = Login { database: 99, ..login(Protocol::Resp2) };
    let mut dialogue = Dialogue::start(&login);
    dialogue.hears(HELLO2).unwrap();
    let failed = dialogue.hears_all(&["+OK\r\n", "-ERR DB index is out of range\r\n"]).unwrap_err();
    let text = "ERR DB index is out of range".to_owned();
    assert_eq!(failed, DialError::SelectRefused { database: 99, text: text.clone() });
    assert_eq!((failed.public_text(), failed.retryable()), (text, false));
}

#[test]
fn a_refused_readonly_is_a_failure() {
    let login = Login { readonly: true, ..login(Protocol::Resp2) };
    let mut dialogue = Dialogue::start(&login);
    dialogue.hears(HELLO2).unwrap();
    let refusal = "-ERR This instance has cluster support disabled\r\n";
    let failed = dialogue.hears_all(&["+OK\r\n", refusal]).unwrap_err();
    assert!(matches!(failed, DialError::ReadOnlyRefused { .. }), "{failed:?}");
}

#[test]
fn what_a_loading_server_did_not_answer_is_asked_again() {
    let login = Login { database: 2, ..login(Protocol::Resp2) };
    let mut dialogue = Dialogue::start(&login);
    dialogue.hears(HELLO2).unwrap();
    dialogue.written();
    assert_eq!(dialogue.hears_all(&["+OK\r\n", LOADING, "$0\r\n\r\n", LOADING]), Ok(Progress::Pause));
    assert!(matches!(dialogue.machine.give_up(), Err(DialError::Loading { .. })), "SELECT is missing");
    assert_eq!(dialogue.written(), "");
    dialogue.machine.resume(&mut dialogue.out);
    assert_eq!(dialogue.written(), "SELECT 2\nPING");
    assert_eq!(dialogue.hears_all(&["+OK\r\n", LOADING]), Ok(Progress::Pause));
    assert_eq!(dialogue.machine.give_up(), Ok(()), "only PING is missing");
    dialogue.machine.resume(&mut dialogue.out);
    assert_eq!(dialogue.written(), "PING");
    assert_eq!(dialogue.hears("+PONG\r\n"), Ok(Progress::Done));
}

#[test]
fn a_loading_server_may_make_hello_wait() {
    let login = with_password(Protocol::Resp3);
    let mut dialogue = Dialogue::start(&login);
    dialogue.written();
    assert_eq!(dialogue.hears(LOADING), Ok(Progress::Pause));
    let text = "LOADING Redis is loading the dataset in memory".to_owned();
    assert_eq!(dialogue.machine.give_up(), Err(DialError::Loading { text }));
    dialogue.machine.resume(&mut dialogue.out);
    assert_eq!(dialogue.written(), "HELLO 3 AUTH default s3cret");
    assert_eq!(dialogue.hears(HELLO3), Ok(Progress::Write));
}

#[test]
fn an_answer_of_the_wrong_shape_ends_the_login() {
    let login = login(Protocol::Resp2);
    for reply in ["+OK\r\n", ":1\r\n", "*0\r\n", "$-1\r\n", "*2\r\n$5\r\nproto\r\n:3\r\n", ">1\r\n+x\r\n"] {
        let failed = Dialogue::start(&login).hears(reply).unwrap_err();
        assert!(matches!(failed, DialError::Protocol { .. }), "HELLO: {reply:?}: {failed:?}");
    }
    for replies in [
        &["+QUEUED\r\n"][..],
        &[":1\r\n"],
        &["+OK\r\n", "$0\r\n\r\n", "+OK\r\n"],
        &["+OK\r\n", "$0\r\n\r\n", "$4\r\nPONG\r\n"],
        &["+OK\r\n", "$0\r\n\r\n", "+PONG\r\n", "+PONG\r\n"],
    ] {
        let mut dialogue = Dialogue::start(&login);
        dialogue.hears(HELLO2).unwrap();
        let failed = replies.iter().map(|reply| dialogue.hears(reply)).find_map(Result::err);
        assert!(matches!(failed, Some(DialError::Protocol { .. })), "{replies:?}: {failed:?}");
    }
}

#[test]
fn resp3_asked_and_resp2_answered_is_out_of_step() {
    let login = login(Protocol::Resp3);
    let failed = Dialogue::start(&login).hears(HELLO2).unwrap_err();
    assert!(matches!(failed, DialError::Protocol { .. }), "{failed:?}");
}

#[test]
fn an_error_that_repeats_the_password_is_not_repeated() {
    let echoes = [
        UNKNOWN_HELLO,
        "-ERR unknown command 'HELLO' 'AUTH' 'default' 's3cret'\r\n",
        "-WRONGPASS s3cret is not the password\r\n",
        "-s3cret what?\r\n",
        "!18\r\nERR bad s3cret wow\r\n",
    ];
    for reply in echoes {
        for protocol in [Protocol::Resp2, Protocol::Resp3] {
            let login = with_password(protocol);
            let mut dialogue = Dialogue::start(&login);
            let shown = match dialogue.hears(reply) {
                Err(failed) => format!("{failed} {failed:?} {}", failed.public_text()),
                Ok(_) => format!("{:?}", dialogue.machine),
            };
            assert!(!shown.contains("s3cret"), "{reply:?}: {shown}");
        }
    }
}

#[test]
fn a_password_out_of_redis_own_words_hides_nothing() {
    let login = Login { identity: identity(None, "password"), ..login(Protocol::Resp2) };
    let words = "WRONGPASS invalid username-password pair or user is disabled.";
    let failed = Dialogue::start(&login).hears(&format!("-{words}\r\n")).unwrap_err();
    assert_eq!(failed.public_text(), words);
}

#[test]
fn a_login_is_never_shown_with_its_password() {
    let login = with_password(Protocol::Resp3);
    let machine = Dialogue::start(&login).machine;
    let shown = format!("{login:?} {machine:?} {:?}", Secret::new("s3cret"));
    assert!(!shown.contains("s3cret") && shown.contains("***"), "{shown}");
}
