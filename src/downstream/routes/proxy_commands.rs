//! PROXY …: about ourselves, over RESP, for who has only redis-cli at hand.

use std::fmt::Write as _;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use crate::downstream::client::Client;
use crate::pool::{HumanDuration, Slice};
use crate::resp::{Request, encode};

const HELP: &str = "PROXY POOLS      upstream connections by kind and phase, and who waits\n\
                    PROXY CLIENTS    clients, and where the commands of each go\n\
                    PROXY UPSTREAMS  every upstream connection, its holder and age\n\
                    PROXY CONFIG     every key: GET pattern for some, SET key value to change one\n\
                    PROXY RELOAD     reads the configuration again\n\
                    PROXY HELP       this text\n";

impl Client {
    /// Answers a PROXY command.
    pub(in crate::downstream) async fn proxy_command(self: &Rc<Self>, request: &Bytes) -> Bytes {
        let sub = Request::parse(request)
            .and_then(|request| request.arg(1).map(<[u8]>::to_ascii_lowercase))
            .unwrap_or_default();
        let mut out = BytesMut::new();
        let shows_others = matches!(sub.as_slice(), b"clients" | b"upstreams" | b"config" | b"reload");
        if shows_others && let Some(refusal) = self.forbidden_to_list().await {
            return refusal;
        }
        let text = match sub.as_slice() {
            b"help" => Ok(HELP.to_owned()),
            b"pools" => Ok(self.pools()),
            b"upstreams" => Ok(self.upstreams()),
            b"clients" => Ok(self.clients().await),
            b"reload" => self.proxy_reload().await,
            b"config" => match Request::parse(request) {
                Some(asked) => self.proxy_config(&asked).await,
                None => Err("ERR syntax error".to_owned()),
            },
            _ => {
                let word = crate::session::answers::one_line(&sub);
                encode::error(&mut out, &format!("ERR unknown subcommand '{word}'. Try PROXY HELP."));
                return out.freeze();
            }
        };
        match text {
            Ok(text) => encode::lines(&mut out, self.protocol(), &text),
            Err(text) => encode::error(&mut out, &text),
        }
        out.freeze()
    }

    fn pools(&self) -> String {
        let budget = &self.context.pool.shared.budget;
        let mut text = format!("max_connections={} held={}\n", budget.cap(), budget.held());
        let mut counts = std::collections::BTreeMap::new();
        for row in budget.holdings() {
            *counts.entry((row.kind.label(), row.phase.label())).or_insert(0_usize) += 1;
        }
        for ((kind, phase), count) in counts {
            let _ = writeln!(text, "kind={kind} phase={phase} connections={count}");
        }
        for of in budget.kinds() {
            let (kind, full) = (of.kind.label(), if of.is_full() { "yes" } else { "no" });
            let _ = writeln!(
                text,
                "kind={kind} held={} max={} reserved={} full={full}",
                of.held, of.max, of.reserved
            );
        }
        let waiting = budget.pressure();
        let _ = writeln!(
            text,
            "waiting lanes={} leases={} blocking={} standing={}",
            waiting.lanes, waiting.leases, waiting.blocking, waiting.standing
        );
        let (standing, most) = budget.standing();
        let _ = writeln!(text, "standing leases={standing} max={most}");
        text
    }

    fn upstreams(&self) -> String {
        let mut text = String::new();
        for row in self.context.pool.shared.budget.holdings() {
            let _ = writeln!(text, "{}", row.line());
        }
        text
    }

    async fn clients(&self) -> String {
        let _turn = self.context.proxy_listings.turn(self.user(), self.peer.host()).await;
        let mut rows = self.context.workers.rows().await;
        rows.sort_by_key(|row| row.id);
        let mut slice = Slice::begin();
        let mut text = String::new();
        for row in rows {
            slice.breathe().await;
            let _ = writeln!(
                text,
                "id={} addr={} via={} name={} age={} idle={} db={} user={} cmd={} place={}",
                row.id,
                row.peer,
                row.transport,
                row.name,
                HumanDuration(row.age),
                HumanDuration(row.idle),
                row.database,
                row.user,
                row.command,
                row.place.replace(' ', "-"),
            );
        }
        text
    }
}
