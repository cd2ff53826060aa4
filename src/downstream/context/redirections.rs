//! Which clients of this worker have their invalidations told to another client, and which are told.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::downstream::redirection::Inbox;

/// By the ids of this worker's clients.
#[derive(Default)]
pub(in crate::downstream) struct Redirections {
    /// Where the invalidations of a client go.
    to: RefCell<BTreeMap<u64, Arc<Inbox>>>,
    /// What a client is told.
    inboxes: RefCell<BTreeMap<u64, Arc<Inbox>>>,
}

impl Redirections {
    /// What client `id` is to be told goes to `inbox` from now on, or to itself.
    pub(in crate::downstream) fn redirect(&self, id: u64, inbox: Option<Arc<Inbox>>) {
        match inbox {
            Some(inbox) => drop(self.to.borrow_mut().insert(id, inbox)),
            None => drop(self.to.borrow_mut().remove(&id)),
        }
    }

    /// Where that goes, while it is open to `user`.
    pub(in crate::downstream) fn of(&self, id: u64, user: u64) -> Option<Arc<Inbox>> {
        self.to.borrow().get(&id).filter(|inbox| inbox.is_open_to(user)).cloned()
    }

    /// The inbox of client `id`, which is of `user`, and whether it is new.
    pub(in crate::downstream) fn inbox(&self, id: u64, user: u64) -> (Arc<Inbox>, bool) {
        let mut inboxes = self.inboxes.borrow_mut();
        let known = inboxes.get(&id).filter(|inbox| inbox.is_open_to(user));
        if let Some(known) = known {
            return (Arc::clone(known), false);
        }
        let inbox = Inbox::new(user);
        if let Some(former) = inboxes.insert(id, Arc::clone(&inbox)) {
            former.close();
        }
        (inbox, true)
    }

    /// Client `id` is told nothing by others from now on.
    pub(in crate::downstream) fn close_inbox(&self, id: u64) {
        if let Some(inbox) = self.inboxes.borrow_mut().remove(&id) {
            inbox.close();
        }
    }

    /// Whether others have what they are to be told go to client `id`.
    pub(in crate::downstream) fn is_target(&self, id: u64) -> bool {
        // It is here, and its task has it.
        self.inboxes.borrow().get(&id).is_some_and(|inbox| Arc::strong_count(inbox) > 2)
    }

    /// Client `id` is gone.
    pub(in crate::downstream) fn forget(&self, id: u64) {
        self.redirect(id, None);
        self.close_inbox(id);
    }
}
