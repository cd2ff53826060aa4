//! Spans of sampled commands (`[tracing]`): what is known of a batch when it is sent, and how it ended. Never its arguments.

use std::time::SystemTime;

use crate::command::{Row, family, family_name};
use crate::downstream::client::Client;
use crate::pool::Took;
use crate::telemetry::CommandSpan;

/// What is told of the end of a batch.
type Then = Box<dyn FnOnce(Took)>;

impl Client {
    /// Has the batch traced with which its lane has carried `carried` commands, if it is chosen; `then` is told in any case.
    pub(in crate::downstream) fn traced(
        &self,
        (row, commands): (Option<&'static Row>, u32),
        carried: u64,
        then: Option<Then>,
    ) -> Option<Then> {
        let tracer = &self.context.pool.shared.tracer;
        if !tracer.chooses(carried, commands) {
            return then;
        }
        let session = self.session.borrow();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let library = session.library.as_ref().map(|library| (text(&library.name), text(&library.version)));
        let (tracer, library, database) = (tracer.clone(), library.unwrap_or_default(), session.database);
        Some(Box::new(move |took| {
            tracer.record(CommandSpan {
                command: row.map_or("unknown", |row| row.name),
                family: family_name(family(row)),
                commands,
                database,
                library,
                waiting: took.waiting,
                at_server: took.at_server,
                ended: SystemTime::now(),
                outcome: took.outcome,
            });
            if let Some(then) = then {
                then(took);
            }
        }))
    }
}
