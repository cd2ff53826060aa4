//! A connection of a client's own in a cluster: to the node that owns the key it is for.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use crate::cluster::{CROSS_SLOT, Place, Redirect, about_one_node, place};
use crate::command::{Asked, Class};
use crate::downstream::client::Client;
use crate::pool::Unavailable;
use crate::resp::{Request, encode};
use crate::session::{LeaseState, Plan};
use crate::telemetry::ClientClose;

/// How long a lane of one node is waited for before it is looked whether the slot has another owner.
const LANE: Duration = Duration::from_millis(250);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// Nothing of a transaction has run.
const ABORTED: &str = "EXECABORT redbouncer: the slot moved, nothing was run";
/// A command has not run.
const NOT_RUN: &str = "TRYAGAIN redbouncer: the slot moved, nothing was run";

impl Client {
    /// In a cluster: goes to the node that the lease is for, once there is a lane of it. The lane shows others that we live, which a
    /// lease that is silent for long does not.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream::routes) async fn find_node_for_lease(
        self: &Rc<Self>,
    ) -> Result<Result<(), Unavailable>, ClientClose> {
        let Some(routing) = self.routing() else { return Ok(Ok(())) };
        let end = self.context.pool.wait_deadline();
        loop {
            let owner = routing.leased_slot().and_then(|slot| routing.pools.owner(slot));
            let node = owner.unwrap_or_else(|| Rc::clone(routing.pools.home()));
            self.go_to(&node);
            let Some(group) = self.current_group() else { return Err(ClientClose::Denied) };
            let until = end.min(Instant::now() + LANE);
            let why = match self.unless_gone(node.lane_ready(&group, until)).await? {
                Ok(()) => return Ok(Ok(())),
                Err(why) => why,
            };
            let may_change = matches!(
                why,
                Unavailable::Down(_) | Unavailable::Busy(_) | Unavailable::Unanswered | Unavailable::Full(_)
            );
            if !may_change || Instant::now() >= end {
                return Ok(Err(why));
            }
            routing.pools.nodes().doubt();
            self.unless_gone(sleep(PAUSE)).await?;
        }
    }

    /// `plan` for a command on such a connection, or a refusal of what would concern that node only.
    pub(in crate::downstream::routes) fn plan_in_cluster(
        &self,
        plan: Plan,
        (asked, request): (&Asked, &Request<'_>),
        state: &LeaseState,
    ) -> Plan {
        let name = asked.row.map_or("", |row| row.name);
        let refusal = match &plan {
            Plan::Blocking(_) | Plan::Wait(_) | Plan::ForwardWait => Some(about_one_node(name)),
            Plan::Forward(_) | Plan::Queue(..) => match (asked.class, place(asked, request)) {
                (Class::Multi | Class::Exec | Class::Discard | Class::Unwatch, _) => None,
                (_, Place::Refused(text)) => Some(text),
                (_, Place::BySlot(_)) => Some(CROSS_SLOT.to_owned()),
                (_, Place::Info | Place::ByMaster(_) | Place::Scan) => Some(about_one_node(name)),
                (_, Place::Slot(_) | Place::Home) => None,
            },
            Plan::AfterReplies
            | Plan::Local(_)
            | Plan::Refuse(_)
            | Plan::RefuseInMulti(_)
            | Plan::Hello(_)
            | Plan::End(_)
            | Plan::Aside(_) => None,
        };
        match refusal {
            None => plan,
            Some(text) if state.is_queueing() => Plan::RefuseInMulti(text),
            // Whether it is refused inside of a transaction is known then.
            Some(_) if state.may_be_in_multi() => Plan::AfterReplies,
            Some(text) => Plan::Refuse(text),
        }
    }

    /// An error on such a connection as the client gets it: a redirection says that nothing ran. `is_exec`: it ends a transaction.
    pub(in crate::downstream::routes) fn without_redirect(&self, error: Bytes, is_exec: bool) -> Bytes {
        let Some(routing) = self.routing() else { return error };
        let node = routing.pools.node_of(&self.pool());
        match node.and_then(|node| Redirect::read(&error, &node)) {
            Some(Redirect::Moved(slot, _) | Redirect::Ask(slot, _)) => {
                routing.pools.nodes().doubt();
                let is_own = routing.leased_slot() == Some(slot);
                let text = if is_own { NOT_RUN } else { CROSS_SLOT };
                encode::one_error(if is_exec { ABORTED } else { text })
            }
            Some(Redirect::TryAgain | Redirect::ClusterDown | Redirect::Loading | Redirect::ReadOnly)
            | None => error,
        }
    }
}
