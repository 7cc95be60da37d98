//! The simulator: hosts with disks, clocks and a network between them, all from one seed, on one thread.
//!
//! Owns the cores of all hosts and the order in which they run. Never touches the machine it runs on: no file, no socket, no
//! clock, no entropy. The same seed and the same program give the same run, which [`Simulator::trace`] shows.
//!
//! ```text
//!   Simulator ── step: one of ──┬── a core that is ready, drawn from the seed ── runs a few of its tasks
//!                               └── the next event of the agenda ── the clock moves, an operation is finished
//!
//!   Host ── cores (executors), disk, clocks, one network address
//! ```
//!
//! ```
//! use heddle_io::OpenOptions;
//! use heddle_io::sim::Simulator;
//!
//! let simulator = Simulator::new(7);
//! let host = simulator.host("broker");
//! let io = host.start_core();
//! let written = simulator.run(&io.clone(), async move {
//!     let file = io.open("/log".as_ref(), OpenOptions::create()).await?;
//!     io.write(&file, 0, vec![b"acknowledged?".to_vec().into()]).await?;
//!     io.sync_data(&file).await?;
//!     io.sync_dir("/".as_ref()).await
//! });
//! written.unwrap().unwrap();
//! host.power_cut();
//! host.restart();
//! assert_eq!(host.peek("/log").unwrap(), b"acknowledged?");
//! ```
//!
//! What a disk promises and what it does not is told at the top of `sim/disk.rs`, what a network does at the top of
//! `sim/network.rs`.

mod backend;
mod content;
mod disk;
mod fault;
mod handles;
mod host;
mod network;
mod pages;
#[cfg(test)]
mod promises;
#[cfg(test)]
mod promises_direct;
mod random;
mod request;
mod tree;
mod world;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::rc::{Rc, Weak};
use std::time::Duration;

pub(crate) use backend::SimBackend;
pub(crate) use handles::{SimFile, SimListener, SimSocket};

pub use content::Survival;
pub use disk::{DeviceCache, DiskTiming, FaultModel, FlushScope, Metadata};
pub use fault::{CutPoint, DiskCounters, Effect, Fault, OperationKind};
pub use host::{DiskCopy, Host};
pub use network::NetworkTiming;

use crate::counters::Tally;
use crate::executor::Executor;
use crate::io::{BackendImpl, Core, Io};
use crate::wake::{Kick, WakeList};
use network::HostId;
use world::{CoreId, World};

/// Tasks that a core runs in one step, at most; few, so that cores interleave.
const POLLS_PER_STEP_MAX: u64 = 8;

/// How long a step of a core takes, in nanoseconds, drawn evenly.
const STEP_NANOS: (u64, u64) = (100, 3_000);

/// A simulated world. Clones are handles to the same one; the cores go with the last.
#[derive(Clone)]
pub struct Simulator {
    inner: Rc<Inner>,
}

pub(crate) struct Inner {
    seed: u64,
    world: Rc<RefCell<World>>,
    cores: RefCell<BTreeMap<CoreId, SimulatedCore>>,
    core_next: Cell<u64>,
}

struct SimulatedCore {
    host: HostId,
    core: Weak<Core>,
    /// The executor of a core that the simulator drives; `None` if the caller of [`Host::executor`] has it.
    executor: Option<Executor>,
}

/// Why a run ended before its future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The host of the future lost power, or its process was killed.
    HostGone,
    /// The virtual time limit passed.
    TimeLimit,
    /// No core is ready, nothing is under way and nobody sleeps: it would wait for ever.
    Stuck,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stopped::HostGone => "the process of the host is gone",
            Stopped::TimeLimit => "the virtual time limit passed",
            Stopped::Stuck => "nothing will ever happen again",
        })
    }
}

impl std::error::Error for Stopped {}

impl Simulator {
    /// The virtual time that [`Simulator::run`] allows.
    pub const RUN_LIMIT: Duration = Duration::from_secs(3600);

    /// A world without hosts, whose whole course `seed` decides.
    pub fn new(seed: u64) -> Simulator {
        let world = Rc::new(RefCell::new(World::new(seed)));
        Simulator { inner: Rc::new(Inner { seed, world, cores: RefCell::default(), core_next: Cell::new(0) }) }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.inner.seed
    }

    /// Adds a host, with power and an empty disk.
    pub fn host(&self, name: &str) -> Host {
        let id = self.inner.world.borrow_mut().add_machine(name);
        Host { simulator: self.clone(), id }
    }

    /// Runs `future` on the core of `io`, and all else in the world beside it, until it is done.
    ///
    /// # Errors
    ///
    /// See [`Stopped`]; the limit is [`Simulator::RUN_LIMIT`].
    ///
    /// # Panics
    ///
    /// When a task panics.
    pub fn run<F: Future + 'static>(&self, io: &Io, future: F) -> std::result::Result<F::Output, Stopped> {
        self.run_within(Simulator::RUN_LIMIT, io, future)
    }

    /// As [`Simulator::run`], for at most `limit` of virtual time.
    ///
    /// # Errors
    ///
    /// See [`Stopped`].
    pub fn run_within<F: Future + 'static>(
        &self,
        limit: Duration,
        io: &Io,
        future: F,
    ) -> std::result::Result<F::Output, Stopped> {
        let output = Rc::new(RefCell::new(None));
        let place = Rc::clone(&output);
        let task = io.spawn(async move { *place.borrow_mut() = Some(future.await) });
        let end = self.now() + limit;
        let stopped = loop {
            if let Some(output) = output.take() {
                return Ok(output);
            }
            if task.is_finished() {
                break Stopped::HostGone;
            }
            if self.now() >= end {
                break Stopped::TimeLimit;
            }
            if !self.inner.step(None, Some(end.as_nanos() as u64)) {
                break Stopped::Stuck;
            }
        };
        task.cancel();
        Err(stopped)
    }

    /// Runs the world for `span` of virtual time.
    pub fn run_for(&self, span: Duration) {
        let end = (self.now() + span).as_nanos() as u64;
        while self.inner.world.borrow().now() < end {
            if !self.inner.step(None, Some(end)) {
                self.inner.world.borrow_mut().advance_to(end);
            }
        }
    }

    /// Runs one core for a moment, or lets the next event happen. False if nothing will ever happen again.
    pub fn step(&self) -> bool {
        self.inner.step(None, None)
    }

    /// Virtual time since the simulation began.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.inner.world.borrow().now())
    }

    /// A number that depends on everything that happened so far: two runs that differ differ here.
    pub fn trace(&self) -> u64 {
        self.inner.world.borrow().trace()
    }

    /// Sets how the network behaves.
    pub fn set_network(&self, timing: NetworkTiming) {
        self.inner.world.borrow_mut().network.set_timing(timing);
    }

    /// Nothing passes between `a` and `b` until [`Simulator::heal`]; what is under way is held back, not lost.
    pub fn partition(&self, a: &Host, b: &Host) {
        self.partition_one_way(a, b);
        self.partition_one_way(b, a);
    }

    /// Nothing passes from `from` to `to` until [`Simulator::heal`].
    pub fn partition_one_way(&self, from: &Host, to: &Host) {
        self.inner.world.borrow_mut().network.cut_link(from.id, to.id);
    }

    /// Ends all partitions.
    pub fn heal(&self) {
        let mut world = self.inner.world.borrow_mut();
        let now = world.now();
        world.network.heal(now);
        world.deliver_outputs();
    }

    /// Resets every connection between `a` and `b`.
    pub fn reset_connections(&self, a: &Host, b: &Host) {
        let mut world = self.inner.world.borrow_mut();
        world.network.reset_between(a.id, b.id);
        world.deliver_outputs();
    }
}

impl fmt::Debug for Simulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Simulator(seed {} at {:?})", self.inner.seed, self.now())
    }
}

impl Inner {
    /// One step: see [`Simulator::step`]. Leaves `except` alone, which its caller drives, and does not let time pass beyond
    /// `until`.
    pub(crate) fn step(&self, except: Option<CoreId>, until: Option<u64>) -> bool {
        self.catch_up(except);
        let ready = self.ready_cores(except);
        if ready.is_empty() {
            return self.let_time_pass(except, until);
        }
        let (id, core, polls) = {
            let mut world = self.world.borrow_mut();
            let (id, core) = &ready[world.random.below(ready.len() as u64) as usize];
            let polls = world.random.between(1, POLLS_PER_STEP_MAX);
            let spent = world.random.between(STEP_NANOS.0, STEP_NANOS.1);
            world.note(b'C'.into(), id.0);
            world.spend(spent);
            (*id, Rc::clone(core), polls)
        };
        core.fire_timers();
        core.run_ready_at_most(polls as usize);
        drop(ready);
        drop(core);
        self.cores.borrow_mut().retain(|other, entry| *other != id || entry.core.strong_count() > 0);
        self.catch_up(except);
        true
    }

    /// Does what handles asked for and what is due by now, and closes the cores of processes that are gone.
    pub(crate) fn catch_up(&self, except: Option<CoreId>) {
        {
            let mut world = self.world.borrow_mut();
            world.read_mail();
            while world.do_next_due() {}
        }
        self.close_gone(except);
    }

    fn close_gone(&self, except: Option<CoreId>) {
        let gone = self.world.borrow_mut().take_gone();
        for host in gone {
            let cores: Vec<(CoreId, SimulatedCore)> =
                self.cores.borrow_mut().extract_if(.., |_, entry| entry.host == host).collect();
            for (id, SimulatedCore { core, executor, .. }) in cores {
                assert!(except != Some(id), "the host of a core that its caller runs has lost its process");
                if let Some(core) = core.upgrade() {
                    core.close();
                }
                drop(executor);
            }
        }
    }

    fn ready_cores(&self, except: Option<CoreId>) -> Vec<(CoreId, Rc<Core>)> {
        let world = self.world.borrow();
        let cores = self.cores.borrow();
        let alive = cores.iter().filter(|(id, entry)| except != Some(**id) && world.can_run(entry.host));
        alive
            .filter_map(|(id, entry)| Some((*id, entry.host, entry.core.upgrade()?)))
            .filter(|(_, host, core)| {
                let due = core.timers.next_deadline().is_some_and(|at| at.as_nanos() <= world.monotonic(*host));
                core.has_ready() || due
            })
            .map(|(id, _, core)| (id, core))
            .collect()
    }

    /// Moves the clock to whatever comes next. False if nothing comes.
    fn let_time_pass(&self, except: Option<CoreId>, until: Option<u64>) -> bool {
        let mut world = self.world.borrow_mut();
        let next = [world.next_due(), self.next_wake(&world, except)].into_iter().flatten().min();
        let Some(next) = next else { return false };
        world.advance_to(until.map_or(next, |until| until.min(next)));
        world.do_next_due();
        drop(world);
        self.close_gone(except);
        true
    }

    /// When the next core wakes by itself: a sleeper, or a stopped process that goes on.
    fn next_wake(&self, world: &World, except: Option<CoreId>) -> Option<u64> {
        let cores = self.cores.borrow();
        let wakes = cores.iter().filter(|(id, _)| except != Some(**id)).filter_map(|(_, entry)| {
            let core = entry.core.upgrade()?;
            let deadline = core.timers.next_deadline().map(|at| world.time_of(entry.host, at.as_nanos()));
            let wake = if core.has_ready() { Some(world.now()) } else { deadline };
            wake.and_then(|at| world.runs_at(entry.host, at))
        });
        wakes.min()
    }

    fn new_core(self: &Rc<Inner>, host: HostId) -> Executor {
        assert!(self.world.borrow_mut().machine(host).is_up, "a host without power starts nothing");
        let id = CoreId(self.core_next.get());
        self.core_next.set(id.0 + 1);
        let backend = SimBackend {
            world: Rc::clone(&self.world),
            simulator: Rc::downgrade(self),
            core: id,
            host,
            tally: Tally::default(),
        };
        let executor = Executor::on(BackendImpl::Sim(backend), WakeList::new(Box::new(NeverAsleep)));
        let core = Rc::downgrade(executor.core());
        self.cores.borrow_mut().insert(id, SimulatedCore { host, core, executor: None });
        executor
    }
}

/// A simulated core needs no kick: the simulator looks into its list.
struct NeverAsleep;

impl Kick for NeverAsleep {
    fn kick(&self) {}
}
