//! The budgets of several servers.

use std::sync::Arc;

use super::budget::{Budget, Pressure};

/// The budget of one server.
#[derive(Clone, Debug)]
pub struct NodeBudget {
    /// The node of a cluster, as `host:port`. `None` without a cluster, and until a node is home.
    pub node: Option<String>,
    /// Its permits.
    pub budget: Arc<Budget>,
    /// Whether its cap is in use: it is the home node's, or that of another node that owns slots.
    pub serves: bool,
}

impl NodeBudget {
    /// How many connections are held on all of them.
    #[must_use]
    pub fn held(all: &[Self]) -> usize {
        all.iter().map(|of| of.budget.held()).sum()
    }

    /// How many connections there may be on all of them.
    #[must_use]
    pub fn cap(all: &[Self]) -> usize {
        all.iter().filter(|of| of.serves).map(|of| of.budget.cap()).sum()
    }

    /// How many wait for a connection to any of them.
    #[must_use]
    pub fn pressure(all: &[Self]) -> Pressure {
        all.iter().map(|of| of.budget.pressure()).sum()
    }
}
