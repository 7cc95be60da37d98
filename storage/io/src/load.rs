//! How a core spends its time: asleep in the kernel, awake for a message that may come, or at work.
//!
//! Owns the sums. The loop of the core tells them ([`crate::Executor::run`]), which reads the clock around each sleep anyway.
//! A core that is driven from outside, by a foreign runtime or the simulator, counts as always at work.

use std::cell::Cell;
use std::time::Duration;

use crate::io::Io;
use crate::timer::Monotonic;

/// How a core has spent its time since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// At work: all the time that is not in the other two.
    pub busy: Duration,
    /// Waiting awake for a message of another core.
    pub spinning: Duration,
    /// Asleep in the kernel, with nothing to do.
    pub asleep: Duration,
}

/// The sums of one core.
pub(crate) struct LoadSums {
    began: Monotonic,
    spinning_nanos: Cell<u64>,
    asleep_nanos: Cell<u64>,
}

impl LoadSums {
    pub(crate) fn new(began: Monotonic) -> LoadSums {
        LoadSums { began, spinning_nanos: Cell::new(0), asleep_nanos: Cell::new(0) }
    }

    pub(crate) fn slept(&self, span: Duration) {
        add(&self.asleep_nanos, span);
    }

    pub(crate) fn spun(&self, span: Duration) {
        add(&self.spinning_nanos, span);
    }

    fn read(&self, now: Monotonic) -> Load {
        let spinning = Duration::from_nanos(self.spinning_nanos.get());
        let asleep = Duration::from_nanos(self.asleep_nanos.get());
        Load { busy: now.since(self.began).saturating_sub(spinning + asleep), spinning, asleep }
    }
}

fn add(nanos: &Cell<u64>, span: Duration) {
    nanos.set(nanos.get() + u64::try_from(span.as_nanos()).unwrap_or(0));
}

impl Io {
    /// How this core has spent its time so far.
    pub fn load(&self) -> Load {
        self.load_sums().read(self.now())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Executor, IoConfig};

    #[test]
    fn what_is_neither_slept_nor_spun_is_work() {
        let at = |millis: u64| Monotonic::from_nanos(millis * 1_000_000);
        let sums = LoadSums::new(at(5));
        sums.slept(Duration::from_millis(60));
        sums.spun(Duration::from_millis(10));
        sums.slept(Duration::from_millis(10));
        let (busy, spinning, asleep) =
            (Duration::from_millis(20), Duration::from_millis(10), Duration::from_millis(70));
        assert_eq!(sums.read(at(105)), Load { busy, spinning, asleep });
    }

    #[test]
    fn a_core_that_waits_for_a_timer_sleeps() {
        let executor = Executor::new(IoConfig::default()).unwrap();
        let io = executor.io();
        let before = io.load();
        // On a machine so busy that the time is up before the core can sleep, the next one counts.
        while io.load().asleep == before.asleep {
            executor.run(async { io.sleep(Duration::from_millis(1)).await });
        }
    }
}
