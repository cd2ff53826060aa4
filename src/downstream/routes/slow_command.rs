//! Commands that take longer than `log.slow_command`: a line in the log that says which and where the time went, without arguments.

use std::rc::Rc;
use std::time::Duration;

use crate::command::{Row, key_positions};
use crate::downstream::client::Client;
use crate::pool::Took;
use crate::resp::Request;
use crate::telemetry::{CommandOutcome, printable, seconds};

/// What is known of a batch of commands when it is sent.
struct Batch {
    /// Of its first command; `None`: it is in no table.
    row: Option<&'static Row>,
    /// Keys of the first command.
    keys: usize,
    commands: u32,
}

impl Client {
    /// Names the batch that begins with `request` if it turns out to be slow.
    pub(in crate::downstream) fn when_slow(
        self: &Rc<Self>,
        row: Option<&'static Row>,
        request: &Request<'_>,
        commands: u32,
    ) -> Option<Box<dyn FnOnce(Took)>> {
        let limit = self.context.slow_command.get()?;
        let keys = row.map_or(0, |row| key_positions(row, request).len());
        let (client, batch) = (Rc::clone(self), Batch { row, keys, commands });
        Some(Box::new(move |took| {
            let is_answered = matches!(took.outcome, CommandOutcome::Answered | CommandOutcome::Error(_));
            if is_answered && took.waiting + took.at_server >= limit {
                client.tell_of_slow(&batch, took);
            }
        }))
    }

    /// A command on a lease was slow. The wait for the lease is not part of its time.
    pub(in crate::downstream) fn was_slow_on_lease(&self, command: &'static str, at_server: Duration) {
        let outcome = CommandOutcome::Answered;
        self.log_slow(command, None, 1, Took { outcome, waiting: Duration::ZERO, at_server });
    }

    fn tell_of_slow(&self, batch: &Batch, took: Took) {
        let command = batch.row.map_or("unknown", |row| row.name);
        self.log_slow(command, batch.row.map(|_| batch.keys), batch.commands, took);
    }

    fn log_slow(&self, command: &'static str, keys: Option<usize>, commands: u32, took: Took) {
        let Some(untold) = self.context.warnings.slow_command() else { return };
        let session = self.session.borrow();
        tracing::warn!(
            command,
            keys,
            commands,
            waiting_seconds = seconds(took.waiting),
            server_seconds = seconds(took.at_server),
            client = self.id(),
            name = printable(&session.name),
            address = %self.peer,
            user = session.user.as_ref().map_or("", |user| &user.name),
            untold,
            "slow command"
        );
    }
}
