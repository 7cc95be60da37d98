//! How much memory all unfinished and unanswered requests of a core may take together.
//!
//! Owns the count, in bytes. Never allocates: a connection charges what it is about to allocate (case 68).

use std::rc::Rc;

use heddle_io::sync::Semaphore;

/// Bytes that one core's connections may hold.
pub(crate) struct ReceiveBudget {
    bytes: Semaphore,
    total: usize,
}

/// Bytes held; they go back when it drops.
pub(crate) struct Charge {
    budget: Rc<ReceiveBudget>,
    bytes: usize,
}

impl ReceiveBudget {
    pub(crate) fn new(total: usize) -> Rc<Self> {
        Rc::new(Self { bytes: Semaphore::new(total), total })
    }

    /// A charge of nothing.
    pub(crate) fn charge(self: &Rc<Self>) -> Charge {
        Charge { budget: Rc::clone(self), bytes: 0 }
    }
}

impl Charge {
    /// Raises the charge to `bytes`, when that much is free; a charge of more than there is takes all there is.
    /// Whoever has waited longest is served first.
    pub(crate) async fn raise(&mut self, bytes: usize) {
        let wanted = bytes.min(self.budget.total);
        if let Some(more) = wanted.checked_sub(self.bytes)
            && more > 0
        {
            self.budget.bytes.acquire(more).await.forget();
            self.bytes = wanted;
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.bytes.add(self.bytes);
    }
}
