//! One simulated core's backend: the seam of `io.rs`, carried out by the world.
//!
//! Owns nothing but the way there. Never decides anything.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use super::Inner;
use super::network::HostId;
use super::world::{CoreId, World};
use crate::counters::{Counters, Tally};
use crate::io::Wait;
use crate::op::{Op, OpKey, Outcome, Slots, Value};
use crate::probe::DiskTraits;
use crate::socket::{ListenOptions, Listener};
use crate::timer::Monotonic;
use crate::wake::WakeList;

/// One core's part of the simulation.
pub(crate) struct SimBackend {
    pub(super) world: Rc<RefCell<World>>,
    pub(super) simulator: Weak<Inner>,
    pub(super) core: CoreId,
    pub(super) host: HostId,
    pub(super) tally: Tally,
}

impl SimBackend {
    pub(crate) fn counters(&self) -> Counters {
        self.tally.read()
    }

    pub(crate) fn start(&self, slots: &Slots, key: OpKey, op: Op) {
        self.tally.add(|counters| {
            counters.submissions += 1;
            counters.flushes += u64::from(matches!(op, Op::Sync { .. }));
        });
        if let Op::Run { function } = op {
            // Outside of the world's borrow: the function is the caller's.
            function();
            return slots.finish(key, Outcome::of(Ok(Value::Unit)));
        }
        self.world.borrow_mut().start(self.core, self.host, slots, key, op);
    }

    pub(crate) fn cancel(&self, _slots: &Slots, key: OpKey) {
        self.world.borrow_mut().cancel(self.core, key);
    }

    /// Runs the rest of the world until this core has something to do. Only [`crate::Executor::run`] comes here; a core that
    /// the simulator drives never waits.
    ///
    /// # Panics
    /// If nothing will ever wake this core, or its host has lost power.
    pub(crate) fn turn(&self, _slots: &Slots, wakes: &WakeList, wait: Wait) {
        let simulator = self.simulator.upgrade().expect("the simulator outlives the run of its cores");
        let deadline = match wait {
            Wait::Not => {
                let soon = self.world.borrow().now() + 1_000;
                simulator.step(Some(self.core), Some(soon));
                return;
            }
            Wait::Until(deadline) => Some(deadline),
            Wait::UntilWoken => None,
        };
        while wakes.is_empty() && deadline.is_none_or(|deadline| self.now() < deadline) {
            assert!(self.world.borrow_mut().machine(self.host).is_up, "the core's host has no power");
            let until = deadline.map(|deadline| self.world.borrow().time_of(self.host, deadline.as_nanos()));
            if !simulator.step(Some(self.core), until) {
                let deadline = until.expect("nothing will ever wake this core");
                self.world.borrow_mut().advance_to(deadline);
            }
        }
    }

    pub(crate) fn close(&self, _slots: &Slots) {
        self.world.borrow_mut().close_core(self.core);
    }

    pub(crate) fn now(&self) -> Monotonic {
        Monotonic::from_nanos(self.world.borrow().monotonic(self.host))
    }

    pub(crate) fn wall_clock(&self) -> i64 {
        self.world.borrow().wall_clock(self.host)
    }

    pub(crate) fn fill_random(&self, bytes: &mut [u8]) {
        self.world.borrow_mut().fill_random(self.host, bytes);
    }

    /// What a probe of the host's disk finds.
    pub(crate) fn disk_traits(&self) -> DiskTraits {
        self.world.borrow_mut().machine(self.host).disk.traits()
    }

    pub(crate) fn listen(&self, address: SocketAddr, options: ListenOptions) -> std::io::Result<Listener> {
        self.world.borrow_mut().listen(self.host, address, options)
    }
}
