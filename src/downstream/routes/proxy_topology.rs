//! PROXY TOPOLOGY: the server that commands go to, and the Sentinels that say so.

use std::fmt::Write as _;

use crate::downstream::client::Client;
use crate::pool::HumanDuration;

impl Client {
    /// The server and the Sentinels, a line each.
    pub(super) fn topology(&self) -> String {
        let shared = &self.context.pool.shared;
        let connector = &shared.connector;
        let followed = connector.topology().followed();
        let named = followed.as_ref().and_then(|followed| followed.master.as_ref());
        let node = match named {
            Some((master, _)) => master.to_string(),
            None => connector.address().map_or_else(|| "-".to_owned(), |address| address.to_string()),
        };
        let server = connector.server();
        let said = server.as_ref().map_or("", |server| server.role.as_str());
        let role = match shared.mastership.demoted_for() {
            Some(_) => "replica",
            None if said.is_empty() => "unknown",
            None => said,
        };
        let connections = shared.budget.held();
        let mut text = format!("node={node} role={role} connections={connections}");
        if let Some((_, since)) = named {
            let _ = write!(text, " age={}", HumanDuration(since.elapsed()));
        }
        if let Some(demoted) = shared.mastership.demoted_for() {
            let _ = write!(text, " demoted={}", HumanDuration(demoted));
        }
        text.push('\n');
        let Some(followed) = followed else { return text };
        for row in &followed.sentinels {
            let _ = write!(text, "sentinel={} state={}", row.address, row.state.label());
            if let Some((master, epoch)) = &row.names {
                let _ = write!(text, " master={master} epoch={epoch}");
            }
            if let Some(reason) = &row.reason {
                let _ = write!(text, " reason={}", reason.replace([' ', '\n'], "-"));
            }
            text.push('\n');
        }
        if let Some(last) = &followed.last_failover {
            let (ago, took) = (HumanDuration(last.at.elapsed()), HumanDuration(last.took));
            let _ = writeln!(text, "failover from={} ago={ago} took={took}", last.from);
        }
        text
    }
}
