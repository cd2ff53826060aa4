//! Counts of operations in progress, kept by guards, so that a dropped future is no longer counted.

use std::cell::Cell;
use std::rc::Rc;

/// How many of one kind are under way on this thread.
#[derive(Clone, Debug, Default)]
pub struct Count(Rc<Cell<usize>>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct CountGuard(Rc<Cell<usize>>);

impl Count {
    /// One more, for as long as the value returned lives.
    #[must_use]
    pub fn one(&self) -> CountGuard {
        self.0.set(self.0.get() + 1);
        CountGuard(Rc::clone(&self.0))
    }

    /// How many there are.
    #[must_use]
    pub fn get(&self) -> usize {
        self.0.get()
    }
}

impl Drop for CountGuard {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_goes_down_however_what_was_counted_ends() {
        let count = Count::default();
        let first = count.one();
        let dropped_half_way = {
            let count = count.clone();
            async move {
                let _one = count.one();
                std::future::pending::<()>().await;
            }
        };
        let mut task = Box::pin(dropped_half_way);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(task.as_mut().poll(&mut cx).is_pending());
        assert_eq!(count.get(), 2);
        drop(task);
        assert_eq!(count.get(), 1);
        drop(first);
        assert_eq!(count.get(), 0);
    }
}
