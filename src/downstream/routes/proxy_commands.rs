//! PROXY …: about ourselves, over RESP, for who has only redis-cli at hand. What it shows is here, what it does in
//! [`super::proxy_acts`].

use std::fmt::Write as _;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use crate::downstream::client::Client;
use crate::hygiene::fleet::{FleetTerms, used};
use crate::pool::{HumanDuration, NodeBudget, Slice};
use crate::resp::{Request, encode};
use crate::session::answers::{one_line, wrong_arity};

/// A subcommand of PROXY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProxyCommand {
    Clients,
    Config,
    Fleet,
    Help,
    Hubs,
    Kill,
    Log,
    Pause,
    Pools,
    Reconnect,
    Reload,
    Resume,
    Shutdown,
    Topology,
    Upstreams,
}

/// Who may use a subcommand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// Everybody.
    Nothing,
    /// Who may list the clients of the server.
    Listing,
    /// An operator.
    Operator,
}

/// How a subcommand is written, who may use it, how many words it takes at the most (without PROXY), and what it does.
struct Row(ProxyCommand, &'static str, &'static str, Needs, usize, &'static str);

/// All of them, in the order of PROXY HELP.
const ROWS: [Row; 15] = [
    Row(ProxyCommand::Clients, "CLIENTS", "", Needs::Listing, 1, "lists the clients with their place"),
    Row(ProxyCommand::Hubs, "HUBS", "", Needs::Listing, 1, "lists the blocking hubs and pub/sub hubs"),
    Row(
        ProxyCommand::Pools,
        "POOLS",
        "",
        Needs::Nothing,
        1,
        "counts upstream connections by kind and phase, and waiting requests",
    ),
    Row(
        ProxyCommand::Upstreams,
        "UPSTREAMS",
        "",
        Needs::Listing,
        1,
        "lists the upstream connections with holder and age",
    ),
    Row(
        ProxyCommand::Topology,
        "TOPOLOGY",
        "",
        Needs::Listing,
        1,
        "shows the server with its role and connections; the Sentinels with the master of each; or the nodes of the cluster",
    ),
    Row(
        ProxyCommand::Fleet,
        "FLEET",
        "",
        Needs::Listing,
        1,
        "lists the instances that share fleet.total_connections with their claims",
    ),
    Row(
        ProxyCommand::Kill,
        "KILL",
        " ID|NAME|ADDR|USER|IDLE|CONNECTION value ...",
        Needs::Operator,
        usize::MAX,
        "closes the clients that match all filters; IDLE in seconds, CONNECTION is the id in the server's CLIENT LIST",
    ),
    Row(
        ProxyCommand::Pause,
        "PAUSE",
        " [ms]",
        Needs::Operator,
        2,
        "makes new commands wait, until PROXY RESUME or for a time",
    ),
    Row(ProxyCommand::Resume, "RESUME", "", Needs::Operator, 1, "ends PROXY PAUSE"),
    Row(
        ProxyCommand::Reconnect,
        "RECONNECT",
        " [node]",
        Needs::Operator,
        2,
        "renews the upstream connections as they become free; with a cluster, those to one node or to all",
    ),
    Row(
        ProxyCommand::Log,
        "LOG",
        " [level]",
        Needs::Operator,
        2,
        "shows or sets the log level, until the next start",
    ),
    Row(
        ProxyCommand::Config,
        "CONFIG",
        " [GET pattern|SET key value]",
        Needs::Listing,
        4,
        "shows all keys of the configuration, or those that match; or changes one",
    ),
    Row(ProxyCommand::Reload, "RELOAD", "", Needs::Operator, 1, "reloads the configuration"),
    Row(ProxyCommand::Shutdown, "SHUTDOWN", "", Needs::Operator, 1, "stops the proxy as SIGTERM does"),
    Row(ProxyCommand::Help, "HELP", "", Needs::Nothing, 1, "this text"),
];

const NO_FLEET: &str =
    "ERR redbouncer: fleet.total_connections is 0: this instance shares no limit with others";

/// What a subcommand has come to.
pub(super) enum Answer {
    /// Lines for people.
    Text(String),
    Count(i64),
    Ok,
}

/// `node=host:port `, in front of a cluster.
fn node_field(node: Option<&str>) -> String {
    node.map(|node| format!("node={node} ")).unwrap_or_default()
}

/// The connections to one server by kind and phase, and what each kind may have. Of a node without slots only what is left.
fn list_kinds(of: &NodeBudget, text: &mut String) {
    let node = node_field(of.node.as_deref());
    let mut counts = std::collections::BTreeMap::new();
    for row in of.budget.holdings() {
        *counts.entry((row.kind.label(), row.phase.label())).or_insert(0_usize) += 1;
    }
    for ((kind, phase), count) in counts {
        let _ = writeln!(text, "{node}kind={kind} phase={phase} connections={count}");
    }
    for of in of.budget.kinds().iter().filter(|_| of.serves) {
        let (kind, full) = (of.kind.label(), if of.is_full() { "yes" } else { "no" });
        let (held, max, reserved) = (of.held, of.max, of.reserved);
        let _ = writeln!(text, "{node}kind={kind} held={held} max={max} reserved={reserved} full={full}");
    }
}

impl Client {
    /// Answers a PROXY command.
    pub(in crate::downstream) async fn proxy_command(self: &Rc<Self>, request: &Bytes) -> Bytes {
        let Some(asked) = Request::parse(request) else { return encode::one_error("ERR syntax error") };
        let word = asked.arg(1).unwrap_or_default();
        let row = ROWS.iter().find(|row| word.eq_ignore_ascii_case(row.1.as_bytes()));
        let Some(Row(command, name, _, needs, most, _)) = row else {
            let word = one_line(&word.to_ascii_lowercase());
            return encode::one_error(&format!("ERR unknown subcommand '{word}'. Try PROXY HELP."));
        };
        if asked.argc().saturating_sub(1) > *most {
            return encode::one_error(&wrong_arity(&format!("proxy|{}", name.to_ascii_lowercase())));
        }
        let refusal = match needs {
            Needs::Nothing => None,
            Needs::Listing if sets_a_key(&asked) => self.forbidden_to_act(name).await,
            Needs::Listing => self.forbidden_to_list().await,
            Needs::Operator => self.forbidden_to_act(name).await,
        };
        if let Some(refusal) = refusal {
            return refusal;
        }
        let mut out = BytesMut::new();
        match self.carry_out(*command, &asked).await {
            Ok(Answer::Text(text)) => encode::lines(&mut out, self.protocol(), &text),
            Ok(Answer::Count(count)) => encode::integer(&mut out, count),
            Ok(Answer::Ok) => encode::simple(&mut out, "OK"),
            Err(text) => encode::error(&mut out, &text),
        }
        out.freeze()
    }

    async fn carry_out(
        self: &Rc<Self>,
        command: ProxyCommand,
        asked: &Request<'_>,
    ) -> Result<Answer, String> {
        match command {
            ProxyCommand::Help => Ok(Answer::Text(help())),
            ProxyCommand::Pools => Ok(Answer::Text(self.pools())),
            ProxyCommand::Upstreams => Ok(Answer::Text(self.upstreams())),
            ProxyCommand::Clients => Ok(Answer::Text(self.clients().await)),
            ProxyCommand::Hubs => Ok(Answer::Text(self.hubs().await)),
            ProxyCommand::Topology => Ok(Answer::Text(self.topology())),
            ProxyCommand::Fleet => self.fleet(),
            ProxyCommand::Config => self.proxy_config(asked).await.map(Answer::Text),
            ProxyCommand::Reload => self.proxy_reload().await.map(Answer::Text),
            ProxyCommand::Kill => self.proxy_kill(asked).await,
            ProxyCommand::Pause => self.proxy_pause(asked),
            ProxyCommand::Resume => Ok(self.proxy_resume()),
            ProxyCommand::Reconnect => self.proxy_reconnect(asked).await,
            ProxyCommand::Log => self.proxy_log(asked),
            ProxyCommand::Shutdown => Ok(self.proxy_shutdown()),
        }
    }

    fn pools(&self) -> String {
        let budgets = self.context.budgets();
        let (cap, held) = (NodeBudget::cap(&budgets), NodeBudget::held(&budgets));
        let mut text = format!("max_connections={cap} held={held}\n");
        budgets.iter().for_each(|of| list_kinds(of, &mut text));
        let waiting = NodeBudget::pressure(&budgets);
        let _ = writeln!(
            text,
            "waiting lanes={} leases={} blocking={} standing={} paused={}",
            waiting.lanes,
            waiting.leases,
            waiting.blocking,
            waiting.standing,
            self.context.pool.shared.pause.waiting()
        );
        let (standing, most) = self.context.pool.shared.budget.standing();
        let _ = writeln!(text, "standing leases={standing} max={most}");
        text
    }

    fn upstreams(&self) -> String {
        let mut text = String::new();
        for of in self.context.budgets() {
            for row in of.budget.holdings() {
                let _ = writeln!(text, "{}{}", node_field(of.node.as_deref()), row.line());
            }
        }
        text
    }

    fn fleet(&self) -> Result<Answer, String> {
        let FleetTerms { options, board } = &self.context.fleet;
        if !options.is_on() {
            return Err(NO_FLEET.to_owned());
        }
        let picture = board.picture();
        let me = &self.context.pool.shared.instance;
        let mut text = format!(
            "total={} headroom={} minimum={} used={} claim={} wanted={} fair={} state={}\n",
            options.total,
            options.headroom,
            options.minimum,
            used(&picture.members),
            picture.claim,
            picture.wanted,
            picture.fair,
            picture.state.label(),
        );
        for member in &picture.members {
            let yes = |is: bool| if is { "yes" } else { "no" };
            let claim =
                member.registered.map_or_else(|| "-".to_owned(), |registered| registered.claim.to_string());
            let _ = writeln!(
                text,
                "instance={} boot={} addr={} claim={claim} wants={} leaves={} rows={} self={}",
                member.instance.name,
                member.instance.boot,
                member.address,
                yes(member.wants()),
                yes(member.leaves()),
                member.rows,
                yes(member.instance == **me),
            );
        }
        Ok(Answer::Text(text))
    }

    async fn hubs(&self) -> String {
        let mut text = String::new();
        for row in self.context.workers.hubs().await {
            let _ = writeln!(
                text,
                "{}worker={} kind={} user={} state={} age={} waiting={} names={} in_flight={}",
                node_field(row.node.as_deref()),
                row.worker,
                row.kind.label(),
                row.user,
                if row.open_for.is_some() { "open" } else { "connecting" },
                HumanDuration(row.open_for.unwrap_or_default()),
                row.waiting,
                row.names,
                row.in_flight,
            );
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

/// PROXY CONFIG SET, the one act among what only shows.
fn sets_a_key(asked: &Request<'_>) -> bool {
    let is = |at, word: &[u8]| asked.arg(at).is_some_and(|given| given.eq_ignore_ascii_case(word));
    is(1, b"config") && is(2, b"set")
}

fn help() -> String {
    let usage = |Row(_, name, arguments, ..): &Row| format!("PROXY {name}{arguments}");
    let mut text = String::new();
    for row in &ROWS {
        let _ = writeln!(text, "{}\n    {}", usage(row), row.5);
    }
    text
}
