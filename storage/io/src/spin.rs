//! Waiting awake for a moment before sleeping, where that has paid.
//!
//! Owns the decision. Never waits when the core is idle: only sleeps that another core soon ended earn a wait.
//!
//! To wake a sleeping core costs 40-50 µs, to be heard by one that is awake 0.2 µs. So a core whose last sleeps were
//! ended within [`SHORT_SLEEP`] by another core looks for messages for [`SPIN`] before it sleeps again. A wait that was
//! for nothing costs as much credit as four such sleeps earn: at worst one sleep in five is preceded by a wait.

use std::cell::Cell;
use std::time::Duration;

/// How long a core waits awake.
const SPIN: Duration = Duration::from_micros(20);

/// A sleep that another core ended sooner than this would have been better not begun.
const SHORT_SLEEP: Duration = Duration::from_micros(100);

const CREDIT_FOR_ONE: u32 = 4;
const CREDIT_MAX: u32 = 4 * CREDIT_FOR_ONE;

pub(crate) struct Spin {
    credit: Cell<u32>,
    /// Not with a single processor, where whoever waits awake keeps others from answering.
    may_spin: bool,
}

impl Spin {
    pub(crate) fn new() -> Spin {
        Spin { credit: Cell::new(0), may_spin: crate::os::available_cpus().len() > 1 }
    }

    /// For a core that always sleeps at once.
    pub(crate) fn never() -> Spin {
        Spin { credit: Cell::new(0), may_spin: false }
    }

    /// How long to wait awake now; `None` to sleep at once.
    pub(crate) fn allowance(&self) -> Option<Duration> {
        (self.credit.get() >= CREDIT_FOR_ONE && self.may_spin).then_some(SPIN)
    }

    /// Waiting awake ended with something to do, or did not.
    pub(crate) fn waited(&self, heard: bool) {
        let credit = self.credit.get();
        self.credit.set(if heard { (credit + 1).min(CREDIT_MAX) } else { credit.saturating_sub(CREDIT_FOR_ONE) });
    }

    /// The core slept, and another core ended that, or something else did.
    pub(crate) fn slept(&self, span: Duration, ended_by_another_core: bool) {
        if ended_by_another_core && span < SHORT_SLEEP {
            self.credit.set((self.credit.get() + 1).min(CREDIT_MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin() -> Spin {
        Spin { credit: Cell::new(0), may_spin: true }
    }

    #[test]
    fn an_idle_core_never_waits_awake() {
        let spin = spin();
        for _ in 0..100 {
            spin.slept(Duration::from_millis(10), true);
            spin.slept(Duration::from_micros(10), false);
        }
        assert_eq!(spin.allowance(), None);
    }

    #[test]
    fn a_conversation_earns_waits_and_silence_ends_them() {
        let spin = spin();
        for _ in 0..CREDIT_FOR_ONE {
            assert_eq!(spin.allowance(), None);
            spin.slept(Duration::from_micros(40), true);
        }
        assert_eq!(spin.allowance(), Some(SPIN));
        for _ in 0..100 {
            spin.waited(true);
        }
        let mut waits = 0;
        while spin.allowance().is_some() {
            spin.waited(false);
            waits += 1;
        }
        assert_eq!(waits, CREDIT_MAX / CREDIT_FOR_ONE);
    }
}
