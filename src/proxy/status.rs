//! What the admin port answers.

use serde_json::{Value, json};

use super::{Proxy, Stage, cluster, exposition, fleet};
use crate::admin::{self, Sample, View};
use crate::pool::NodeBudget;

impl View for Proxy {
    fn sample(&self) -> Sample {
        let budgets = self.budgets();
        let waiting = NodeBudget::pressure(&budgets);
        Sample {
            clients: self.workers.clients(),
            upstream: NodeBudget::held(&budgets),
            waiting: waiting.lanes + waiting.leases + waiting.hubs + waiting.blocking + waiting.standing,
        }
    }

    async fn metrics(&self) -> String {
        let figures = self.workers.publish().await;
        self.publish();
        exposition::publish(&figures, self.shared.memory.used());
        exposition::publish_process().await;
        self.exporter.render() + &exposition::render(&figures, &self.budgets())
    }

    fn hosts(&self) -> Vec<String> {
        self.live.admin_hosts.borrow().clone()
    }

    fn readiness(&self) -> Result<(), &'static str> {
        let health = &self.shared.health;
        match self.stage.get() {
            Stage::Starting => Err("starting"),
            Stage::Leaving | Stage::Stopping => Err("stopping"),
            Stage::Serving if self.shared.connector.is_unlocated() => Err(match &self.nodes {
                None => "no Sentinel has named a master yet",
                Some(_) => "no node of the cluster has returned its slots yet",
            }),
            Stage::Serving if health.refused().is_some() => {
                Err("the server refuses the login of upstream.url")
            }
            Stage::Serving if self.live.ready_needs_login.get() && !health.has_reached() => {
                Err("the server has not accepted a login yet")
            }
            Stage::Serving => Ok(()),
        }
    }

    async fn status(&self) -> Value {
        let state = match self.stage.get() {
            Stage::Starting => "starting",
            Stage::Serving if self.shared.pause.is_on() => "paused",
            Stage::Serving => "serving",
            Stage::Leaving => "leaving",
            Stage::Stopping => "stopping",
        };
        let mut upstream = self.shared.connector.server().map_or_else(
            || json!({ "server": "not reached yet" }),
            |server| {
                json!({
                    "server": server.server,
                    "version": server.version,
                    "mode": server.mode,
                    "role": server.role,
                })
            },
        );
        if let Some(down) = self.shared.health.down_for() {
            upstream["unreachable_seconds"] = json!(down.as_secs());
            upstream["unreachable_reason"] = json!(self.shared.health.why_down());
        }
        upstream["up"] = json!(self.shared.health.is_up());
        if let Some(followed) = self.shared.connector.topology().followed() {
            upstream["sentinel"] = admin::sentinels(&followed);
        }
        let budgets = self.budgets();
        if let Some(nodes) = &self.nodes {
            upstream["cluster"] = cluster::status(nodes, &budgets);
        }
        if let Some(refused) = self.shared.health.refused() {
            upstream["login_refused_seconds"] = json!(refused.since.elapsed().as_secs());
            upstream["login_refused_reason"] = json!(refused.text);
        }
        if let Some(closed) = self.shared.health.closed_for_want() {
            upstream["clients_closed"] = json!({
                "clients": closed.clients,
                "last_seconds_ago": closed.at.elapsed().as_secs(),
                "last_reason": closed.reason,
            });
        }
        let (lanes, mut clients) = (self.workers.lanes().await, self.workers.rows().await);
        clients.sort_by_key(|row| row.id);
        let rows = admin::Rows { lanes, users: self.directory.rows(), clients };
        let mut status = admin::status(state, &self.listening, &upstream, &self.shared, &budgets, &rows);
        status["fleet"] = fleet::status(&self.fleet, &self.shared.instance);
        status["unauthenticated"] = json!(self.workers.places().waiting());
        status
    }
}
