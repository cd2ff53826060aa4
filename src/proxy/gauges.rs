//! The gauges of the whole process, and the exporter that shows them.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::error::StartError;
use super::{Proxy, connections, fleet, leases};
use crate::pool::Kind;
use crate::session::Pin;
use crate::telemetry::{self, publish_gauge, publish_tasks};

pub(super) fn install_metrics() -> Result<PrometheusHandle, StartError> {
    let fail = |error: &dyn std::fmt::Display| StartError::Metrics(error.to_string());
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(
            Matcher::Full("redbouncer_upstream_release_seconds".to_owned()),
            &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 1.0],
        )
        .map_err(|error| fail(&error))?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| fail(&error))?;
    telemetry::describe();
    telemetry::create_series(&Kind::ALL.map(Kind::label), &Pin::ALL.map(Pin::label));
    Ok(handle)
}

impl Proxy {
    /// Sets every gauge that is not one of a worker.
    pub(super) fn publish(&self) {
        let budgets = self.budgets();
        connections::publish(&budgets);
        if let Some(age) = self.nodes.as_ref().and_then(|nodes| nodes.map_age()) {
            publish_gauge(
                "redbouncer_map_age_seconds",
                &[],
                usize::try_from(age.as_secs()).unwrap_or(usize::MAX),
            );
        }
        leases::publish(&budgets);
        fleet::publish(&self.fleet, &self.shared.budget);
        publish_gauge("redbouncer_paused", &[], usize::from(self.shared.pause.is_on()));
        publish_gauge("redbouncer_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        let (standing, standing_max) = self.shared.budget.standing();
        publish_gauge("redbouncer_standing_leases", &[], standing);
        publish_gauge("redbouncer_standing_leases_max", &[], standing_max);
        let memory = &self.shared.memory;
        publish_gauge("redbouncer_clients_unauthenticated", &[], self.workers.places().waiting());
        publish_gauge("redbouncer_client_memory_bytes", &[], memory.used());
        publish_gauge("redbouncer_client_memory_bytes_max", &[], memory.bound().unwrap_or(0));
        self.shared.health.publish();
        publish_tasks("main");
        self.publish_users();
        self.log.report();
        self.exporter.run_upkeep();
    }

    /// What each user has. One that has gone is 0 from then on: a series cannot be taken back.
    fn publish_users(&self) {
        let rows = self.directory.rows();
        let mut shown = self.shown.borrow_mut();
        for name in shown.iter().filter(|name| !rows.iter().any(|row| row.name == **name)) {
            publish_gauge("redbouncer_user_clients", &[("user", name)], 0);
            publish_gauge("redbouncer_user_connections", &[("user", name)], 0);
        }
        for row in rows {
            let labels = [("user", row.name.as_str())];
            publish_gauge("redbouncer_user_clients", &labels, row.clients);
            publish_gauge("redbouncer_user_connections", &labels, row.connections);
            if let Some(most) = row.max_clients {
                publish_gauge("redbouncer_user_clients_max", &labels, most);
            }
            if let Some(most) = row.max_connections {
                publish_gauge("redbouncer_user_connections_max", &labels, most);
            }
            shown.insert(row.name);
        }
    }
}
