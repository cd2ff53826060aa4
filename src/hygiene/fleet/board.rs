//! What this instance knows of the fleet, for listings and metrics.

use parking_lot::Mutex;

use super::member::Member;

/// How far this instance's claim is registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FleetState {
    /// There is no control connection yet, or none any more: nothing is granted.
    #[default]
    Unregistered,
    /// Nobody has logged in by whom the server could be asked: one connection is allowed, for a login.
    NoLogin,
    /// All claims are known, and the own one is among them.
    Registered,
    /// The server does not let it register or list: it has `fleet.minimum`, whatever the others do.
    Unlisted,
}

impl FleetState {
    /// The text in listings.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Unregistered => "unregistered",
            Self::NoLogin => "no_login",
            Self::Registered => "registered",
            Self::Unlisted => "unlisted",
        }
    }
}

/// The fleet as this instance saw it last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetPicture {
    /// How far the own claim is registered.
    pub state: FleetState,
    /// The own claim, the control connection among it.
    pub claim: usize,
    /// What this instance would claim if it could.
    pub wanted: usize,
    /// Its fair part.
    pub fair: usize,
    /// All instances on the server, this one among them.
    pub members: Vec<Member>,
}

/// Where it is kept.
#[derive(Debug, Default)]
pub struct FleetBoard(Mutex<FleetPicture>);

impl FleetBoard {
    /// The fleet as it was seen last.
    #[must_use]
    pub fn picture(&self) -> FleetPicture {
        self.0.lock().clone()
    }

    pub(super) fn show(&self, picture: FleetPicture) {
        *self.0.lock() = picture;
    }

    pub(super) fn is_now(&self, state: FleetState) {
        self.0.lock().state = state;
    }
}
