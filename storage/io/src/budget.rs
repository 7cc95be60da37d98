//! What all cores together have in flight of something that is to be bounded: [`Budget`].
//!
//! Owns the sum. Never waits and wakes nobody: a core waits for its own units to come back, and one that has none out may
//! always go on ([`Budget::take`]), so that no core depends on another's wake-up.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Units out at this moment, of all cores of a process.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    /// How often some were taken.
    takes: AtomicU64,
}

impl Budget {
    /// Nothing is out.
    pub fn new() -> Budget {
        Budget { used: AtomicUsize::new(0), takes: AtomicU64::new(0) }
    }

    /// Takes `units` if no more than `limit` are out then. Each caller may have a limit of its own.
    pub fn try_take(&self, units: usize, limit: usize) -> bool {
        let taken = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            used.checked_add(units).filter(|used| *used <= limit)
        });
        if taken.is_ok() {
            self.takes.fetch_add(1, Ordering::AcqRel);
        }
        taken.is_ok()
    }

    /// Takes `units`, however many are out.
    pub fn take(&self, units: usize) {
        self.used.fetch_add(units, Ordering::AcqRel);
        self.takes.fetch_add(1, Ordering::AcqRel);
    }

    /// Gives `units` back that were taken.
    ///
    /// # Panics
    /// If fewer are out.
    pub fn give_back(&self, units: usize) {
        let used = self.used.fetch_sub(units, Ordering::AcqRel);
        assert!(used >= units, "{units} units come back of {used}");
    }

    /// Units that are out.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// How often units were taken so far: whether any were between two moments.
    pub fn takes(&self) -> u64 {
        self.takes.load(Ordering::Acquire)
    }
}

impl Default for Budget {
    fn default() -> Budget {
        Budget::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_is_out_but_for_what_is_taken_regardless() {
        let budget = Budget::new();
        assert!(budget.try_take(6, 10) && !budget.try_take(5, 10) && budget.try_take(4, 10));
        budget.take(100);
        assert_eq!((budget.used(), budget.takes()), (110, 3));
        budget.give_back(104);
        assert!(budget.try_take(4, 10) && !budget.try_take(1, 10) && budget.try_take(1, 11));
        assert!(!budget.try_take(usize::MAX, usize::MAX), "a sum that does not fit is refused");
    }

    #[test]
    #[should_panic(expected = "come back")]
    fn what_was_not_taken_cannot_come_back() {
        let budget = Budget::new();
        budget.take(1);
        budget.give_back(2);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn loom_two_cores_never_have_more_out_than_the_limit_and_one_unit_each() {
        loom::model(|| {
            let budget = Arc::new(Budget::new());
            // The limit is one unit. A core with nothing out may take one in any case.
            let core = |budget: Arc<Budget>| {
                move || {
                    if !budget.try_take(1, 1) {
                        budget.take(1);
                    }
                    assert!((1..=2).contains(&budget.used()), "one of each core");
                    let refused = !budget.try_take(1, 1);
                    assert!(refused, "this core has one out already");
                    budget.give_back(1);
                }
            };
            let other = thread::spawn(core(Arc::clone(&budget)));
            core(Arc::clone(&budget))();
            other.join().unwrap();
            assert_eq!((budget.used(), budget.takes()), (0, 2), "all is back, and each taking counted");
        });
    }
}
