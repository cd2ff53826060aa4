//! What all workers use, kept for all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::plan::{Plan, plan};
use crate::pool::LaneKey;

/// What all workers use, and who serves it.
#[derive(Debug)]
pub struct Homes(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Sessions of each key, by worker.
    used: Vec<BTreeMap<LaneKey, usize>>,
    /// How many lanes there may be.
    lanes: usize,
    plan: Arc<Plan>,
}

impl Homes {
    /// Of so many workers, which use nothing yet.
    #[must_use]
    pub fn new(workers: usize) -> Arc<Self> {
        let used = vec![BTreeMap::new(); workers];
        Arc::new(Self(Mutex::new(State { used, ..State::default() })))
    }

    /// `worker` has so many sessions of each key, and there may be `lanes` for all workers. Returns who serves what.
    pub(super) fn report(&self, worker: usize, used: BTreeMap<LaneKey, usize>, lanes: usize) -> Arc<Plan> {
        let mut state = self.0.lock();
        let known = state.used.get(worker);
        if known.is_some_and(|known| *known != used) || state.lanes != lanes {
            state.lanes = lanes;
            if let Some(known) = state.used.get_mut(worker) {
                *known = used;
            }
            let new = plan(&state.used, lanes, &state.plan);
            if new != *state.plan {
                state.plan = Arc::new(new);
            }
        }
        Arc::clone(&state.plan)
    }

    /// Whether there are several workers.
    pub(super) fn is_of_several(&self) -> bool {
        self.0.lock().used.len() > 1
    }
}

/// How the keys of one worker are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Housing {
    /// Keys that have homes, because there are not lanes enough.
    pub keys: usize,
    /// How many lanes there may be.
    pub lanes: usize,
    /// Sessions of this worker belong to others.
    pub sends_away: bool,
}
