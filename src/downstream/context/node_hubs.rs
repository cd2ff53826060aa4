//! The blocking hubs of the nodes of a cluster, as far as they were needed.

use std::cell::RefCell;
use std::rc::Rc;

use crate::hub::BlockingHubs;
use crate::pool::Pool;

/// Those of the nodes other than the home node.
#[derive(Debug, Default)]
pub(super) struct NodeHubs(RefCell<Vec<(Rc<Pool>, Rc<BlockingHubs>)>>);

impl NodeHubs {
    /// Those of the node of `pool`. `home` are the home node's, with the settings for all.
    pub(super) fn at(&self, pool: &Rc<Pool>, home: &BlockingHubs) -> Rc<BlockingHubs> {
        let mut all = self.0.borrow_mut();
        if let Some((_, hubs)) = all.iter().find(|(of, _)| Rc::ptr_eq(of, pool)) {
            return Rc::clone(hubs);
        }
        let hubs = home.beside(pool);
        all.push((Rc::clone(pool), Rc::clone(&hubs)));
        hubs
    }

    pub(super) fn all(&self) -> Vec<(Rc<Pool>, Rc<BlockingHubs>)> {
        self.0.borrow().clone()
    }
}
