//! Many instances share the connections of one server, without a coordinator and without a key.
//!
//! Each registers what it claims in the name of its control connection, and reads from CLIENT LIST what the others claim: the
//! server is the only place that all of them see, and it forgets a claim with the connection. [`rules`] decides, [`pace`] says
//! how often, and [`FleetKeeper`] asks the server and tells the budget what may be granted.

mod board;
mod keeper;
mod member;
mod options;
mod pace;
mod rules;
mod shares;

pub use board::{FleetBoard, FleetPicture, FleetState};
pub use keeper::FleetKeeper;
pub use member::{Member, members, used};
pub use options::FleetOptions;

use std::sync::Arc;

/// What is set about the fleet, and what is known of it.
#[derive(Clone, Debug, Default)]
pub struct FleetTerms {
    /// How connections are shared.
    pub options: FleetOptions,
    /// The fleet as it was seen last.
    pub board: Arc<FleetBoard>,
}
