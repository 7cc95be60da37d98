//! [`Io`], the one handle through which a task touches the world, and the seam that backends implement.
//!
//! Owns the choice of a backend. Never does an operation itself.
//!
//! # The seam
//!
//! [`BackendImpl`] is an enum with one arm for each backend; each method matches and calls the same method of the arm:
//!
//! | method | duty |
//! |---|---|
//! | `start(slots, key, op)` | take `op` and all it owns; call [`Slots::finish`]`(key, outcome)` once, now or in a later `turn` |
//! | `cancel(slots, key)` | nobody waits for `key`: end it early if that is possible; `finish` is due all the same |
//! | `turn(slots, wakes, wait)` | submit, reap, finish what is done; sleep as [`Wait`] allows, after [`WakeList::try_sleep`] said so |
//! | `close(slots)` | end everything: on return no memory of an operation is in use; unfinished operations need no `finish` |
//! | `submit`, `has_news` | only of the ring: for waiting awake (`spin.rs`) |
//! | `counters`, `disk_traits` | numbers; what a simulated disk was set to |
//! | `now`, `wall_clock`, `fill_random` | the clock and the dice |
//! | `listen` | bind at once, or fail |
//! | `name`, `reason` | for the log |
//!
//! A backend may `finish` inside `start`. It may keep clones of `slots` and of the [`WakeList`]. A file, a socket and a
//! listener are enums in the same way (`file.rs`, `socket.rs`): the operating system's, or the simulator's, which is
//! `Send + Sync + Clone + Debug` and knows its host.
//!
//! The simulator makes its executors with `Executor::on` and drives their cores with `Core::fire_timers` and
//! `Core::run_ready_at_most`.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::blocking::BlockingBackend;
use crate::buffer::Buffer;
use crate::counters::Counters;
use crate::error::{Error, Result};
use crate::executor::{self, Panicked, Task, Tasks};
#[cfg(any(feature = "glommio", feature = "tokio-uring"))]
use crate::foreign::ForeignBackend;
use crate::load::LoadSums;
use crate::memory::Memory;
use crate::op::{Op, OpKey, Outcome, Pending, Slots};
use crate::probe::DiskTraits;
use crate::recycle::Recycler;
use crate::sim::SimBackend;
use crate::socket::{ListenOptions, Listener};
use crate::spin::Spin;
use crate::timer::{self, Elapsed, Monotonic, Sleep, Timers};
use crate::uring::UringBackend;
use crate::wake::{RemoteWaker, WakeList};

/// Which backend a core runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Backend {
    /// io_uring where the kernel and the container allow it, else the blocking backend.
    #[default]
    Auto,
    /// io_uring, or fail.
    Uring,
    /// epoll and a small pool of threads for files.
    Blocking,
    /// Files through tokio-uring, on its runtime; no sockets. Only in a build with the feature `tokio-uring`.
    TokioUring,
    /// Files through glommio, on its runtime; no sockets. Only in a build with the feature `glommio`.
    Glommio,
}

impl Backend {
    /// What it is called in settings, logs and measurements.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Auto => "auto",
            Backend::Uring => "uring",
            Backend::Blocking => "blocking",
            Backend::TokioUring => "tokio-uring",
            Backend::Glommio => "glommio",
        }
    }

    /// Whether this build has it.
    pub fn is_built(self) -> bool {
        match self {
            Backend::Auto | Backend::Uring | Backend::Blocking => true,
            Backend::TokioUring => cfg!(feature = "tokio-uring"),
            Backend::Glommio => cfg!(feature = "glommio"),
        }
    }
}

/// How a core is set up.
#[derive(Clone, Debug)]
pub struct IoConfig {
    /// The backend.
    pub backend: Backend,
    /// Entries of the submission ring, a power of two. More operations than this may be in flight.
    pub ring_entries: u32,
    /// Threads for blocking calls, at most, for each core; started when first needed.
    pub pool_threads_max: usize,
    /// Writes of at most so many bytes go to the page cache without the ring while that is quick; 0 for none. Only on
    /// the ring's backend. See docs/decisions/0003-inline-writes.md.
    pub inline_write_bytes_max: usize,
    /// Bytes of memory of [`Io::buffer`] that may wait to be used again.
    pub recycled_bytes_max: usize,
}

impl Default for IoConfig {
    fn default() -> IoConfig {
        IoConfig {
            backend: Backend::Auto,
            ring_entries: 256,
            pool_threads_max: 4,
            inline_write_bytes_max: 256 << 10,
            recycled_bytes_max: 32 << 20,
        }
    }
}

/// Whether the backend may sleep in its turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
    /// Not at all: tasks are ready.
    Not,
    /// Until something completes, somebody wakes the core, or this point has come.
    Until(Monotonic),
    /// Until something completes or somebody wakes the core.
    UntilWoken,
}

/// All that a core is, behind [`Io`] and [`crate::Executor`].
pub(crate) struct Core {
    pub(crate) tasks: Tasks,
    pub(crate) timers: Timers,
    pub(crate) slots: Slots,
    pub(crate) wakes: Arc<WakeList>,
    pub(crate) backend: BackendImpl,
    pub(crate) spin: Spin,
    pub(crate) load: LoadSums,
    recycler: Arc<Recycler>,
    /// The executor is gone.
    pub(crate) closed: Cell<bool>,
}

impl Core {
    pub(crate) fn open(config: IoConfig) -> Result<Rc<Core>> {
        let (backend, wakes) = BackendImpl::open(&config)?;
        Ok(Core::new(backend, wakes, config.recycled_bytes_max))
    }

    pub(crate) fn new(backend: BackendImpl, wakes: Arc<WakeList>, recycled_bytes_max: usize) -> Rc<Core> {
        // Virtual time stands still while a core runs: nobody waits awake in it.
        let spin = if matches!(backend, BackendImpl::Sim(_)) { Spin::never() } else { Spin::new() };
        let load = LoadSums::new(backend.now());
        Rc::new(Core {
            tasks: Tasks::default(),
            timers: Timers::default(),
            slots: Slots::default(),
            wakes,
            backend,
            spin,
            load,
            recycler: Recycler::new(recycled_bytes_max),
            closed: Cell::new(false),
        })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }
}

/// The backends. See the head of the file for the duty of each method.
#[expect(clippy::large_enum_variant, reason = "one for each core, never moved once it runs")]
pub(crate) enum BackendImpl {
    Uring(UringBackend),
    Blocking(BlockingBackend),
    Sim(SimBackend),
    #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
    Foreign(Box<ForeignBackend>),
}

impl BackendImpl {
    fn open(config: &IoConfig) -> Result<(BackendImpl, Arc<WakeList>)> {
        let blocking = |reason: String| {
            let (backend, wakes) = BlockingBackend::open(config, reason)?;
            Ok((BackendImpl::Blocking(backend), wakes))
        };
        match config.backend {
            Backend::Blocking => blocking("asked for".to_owned()),
            Backend::Uring => {
                let (backend, wakes) = UringBackend::open(config, "asked for".to_owned())?;
                Ok((BackendImpl::Uring(backend), wakes))
            }
            Backend::Auto => match UringBackend::open(config, "the kernel offers it".to_owned()) {
                Ok((backend, wakes)) => Ok((BackendImpl::Uring(backend), wakes)),
                Err(error) => blocking(format!("no io_uring here: {error}")),
            },
            #[cfg(feature = "tokio-uring")]
            Backend::TokioUring => BackendImpl::foreign(config, crate::tokio_uring::TokioUring::open),
            #[cfg(feature = "glommio")]
            Backend::Glommio => BackendImpl::foreign(config, crate::glommio::Glommio::open),
            #[cfg(not(all(feature = "glommio", feature = "tokio-uring")))]
            absent => {
                let words = format!("this build has no {0}: it needs the feature `{0}` of heddle-io", absent.name());
                Err(Error::new("set up the backend", std::io::ErrorKind::Unsupported, words))
            }
        }
    }

    #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
    fn foreign(
        config: &IoConfig,
        make: impl FnOnce(&IoConfig) -> Result<crate::foreign::Runtime>,
    ) -> Result<(BackendImpl, Arc<WakeList>)> {
        let (backend, wakes) = ForeignBackend::open(config, config.backend.name(), make)?;
        Ok((BackendImpl::Foreign(Box::new(backend)), wakes))
    }

    pub(crate) fn start(&self, slots: &Slots, key: OpKey, op: Op) {
        match self {
            BackendImpl::Uring(backend) => backend.start(slots, key, op),
            BackendImpl::Blocking(backend) => backend.start(slots, key, op),
            BackendImpl::Sim(backend) => backend.start(slots, key, op),
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(backend) => backend.start(slots, key, op),
        }
    }

    pub(crate) fn cancel(&self, slots: &Slots, key: OpKey) {
        match self {
            BackendImpl::Uring(backend) => backend.cancel(slots, key),
            BackendImpl::Blocking(backend) => backend.cancel(slots, key),
            BackendImpl::Sim(backend) => backend.cancel(slots, key),
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(backend) => backend.cancel(slots, key),
        }
    }

    pub(crate) fn turn(&self, slots: &Slots, wakes: &WakeList, wait: Wait) {
        match self {
            BackendImpl::Uring(backend) => backend.turn(slots, wakes, wait),
            BackendImpl::Blocking(backend) => backend.turn(slots, wakes, wait),
            BackendImpl::Sim(backend) => backend.turn(slots, wakes, wait),
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(backend) => backend.turn(slots, wakes, wait),
        }
    }

    /// Lets the kernel have what was started, without waiting for anything.
    pub(crate) fn submit(&self) {
        match self {
            BackendImpl::Uring(backend) => backend.submit(),
            BackendImpl::Blocking(_) | BackendImpl::Sim(_) => {}
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(_) => {}
        }
    }

    /// Whether a turn would find something to finish, as far as can be seen without asking the kernel.
    pub(crate) fn has_news(&self) -> bool {
        match self {
            BackendImpl::Uring(backend) => backend.has_news(),
            BackendImpl::Blocking(_) | BackendImpl::Sim(_) => false,
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(_) => false,
        }
    }

    /// Whether the core may not sleep yet: something is to be submitted, or was done that no turn has seen. Asked after
    /// [`WakeList::try_sleep`] by who sleeps in the core's stead; a `turn` that may sleep asks by itself.
    pub(crate) fn needs_turn(&self) -> bool {
        match self {
            BackendImpl::Uring(backend) => backend.needs_turn(),
            BackendImpl::Blocking(backend) => backend.needs_turn(),
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(backend) => backend.needs_turn(),
            BackendImpl::Sim(_) => false,
        }
    }

    pub(crate) fn close(&self, slots: &Slots) {
        match self {
            BackendImpl::Uring(backend) => backend.close(slots),
            BackendImpl::Blocking(backend) => backend.close(slots),
            BackendImpl::Sim(backend) => backend.close(slots),
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(backend) => backend.close(slots),
        }
    }

    pub(crate) fn now(&self) -> Monotonic {
        match self {
            BackendImpl::Uring(_) | BackendImpl::Blocking(_) => crate::os::monotonic(),
            BackendImpl::Sim(backend) => backend.now(),
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(_) => crate::os::monotonic(),
        }
    }

    fn wall_clock(&self) -> i64 {
        match self {
            BackendImpl::Uring(_) | BackendImpl::Blocking(_) => crate::os::wall_clock(),
            BackendImpl::Sim(backend) => backend.wall_clock(),
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(_) => crate::os::wall_clock(),
        }
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        match self {
            BackendImpl::Uring(_) | BackendImpl::Blocking(_) => crate::os::fill_random(bytes),
            BackendImpl::Sim(backend) => backend.fill_random(bytes),
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(_) => crate::os::fill_random(bytes),
        }
    }

    fn listen(&self, address: SocketAddr, options: ListenOptions) -> std::io::Result<Listener> {
        match self {
            BackendImpl::Uring(_) | BackendImpl::Blocking(_) => crate::os::listen(address, options),
            BackendImpl::Sim(backend) => backend.listen(address, options),
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(backend) => Err(backend.files_only()),
        }
    }

    /// Descriptors of which one is readable when a turn would find something to do: for who sleeps in this core's stead.
    pub(crate) fn watched_descriptors(&self) -> std::io::Result<Vec<Arc<std::os::fd::OwnedFd>>> {
        match self {
            BackendImpl::Uring(backend) => backend.watched_descriptors(),
            BackendImpl::Blocking(backend) => Ok(backend.watched_descriptors()),
            BackendImpl::Sim(_) => Err(std::io::Error::other("the simulator drives this core")),
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(_) => Err(std::io::Error::other("this core has a runtime around it already")),
        }
    }

    fn counters(&self) -> Counters {
        match self {
            BackendImpl::Uring(backend) => backend.counters(),
            BackendImpl::Blocking(backend) => backend.counters(),
            BackendImpl::Sim(backend) => backend.counters(),
            // A foreign runtime keeps no such numbers.
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(_) => Counters::default(),
        }
    }

    /// What the simulated disk was set to; `None` where the disk is a real one.
    fn simulated_disk_traits(&self) -> Option<DiskTraits> {
        match self {
            BackendImpl::Uring(_) | BackendImpl::Blocking(_) => None,
            BackendImpl::Sim(backend) => Some(backend.disk_traits()),
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(_) => None,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            BackendImpl::Uring(_) => "uring",
            BackendImpl::Blocking(_) => "blocking",
            BackendImpl::Sim(_) => "sim",
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(backend) => backend.name(),
        }
    }

    pub(crate) fn reason(&self) -> String {
        match self {
            BackendImpl::Uring(backend) => backend.reason(),
            BackendImpl::Blocking(backend) => backend.reason(),
            BackendImpl::Sim(_) => "a simulated host".to_owned(),
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            BackendImpl::Foreign(backend) => backend.reason(),
        }
    }
}

/// A core's handle to the world: time, chance, tasks, files, sockets. Cheap to clone; stays on its core.
///
/// Operations on files are in `file.rs`, on sockets in `socket.rs`. Each returns a future that may be dropped at any
/// moment; the operation then ends early or runs to its end unseen, and its memory stays valid until then.
#[derive(Clone)]
pub struct Io {
    core: Rc<Core>,
}

impl Io {
    pub(crate) fn new(core: Rc<Core>) -> Io {
        Io { core }
    }

    pub(crate) fn timers(&self) -> &Timers {
        &self.core.timers
    }

    /// Starts an operation.
    pub(crate) fn submit(&self, op: Op) -> Pending {
        Pending::start(Rc::clone(&self.core), op)
    }

    /// Runs an operation to its end.
    pub(crate) async fn perform(&self, op: Op) -> Outcome {
        self.submit(op).await
    }

    /// `uring`, `blocking` or `sim`.
    pub fn backend_name(&self) -> &'static str {
        self.core.backend.name()
    }

    /// A buffer with room for `capacity` bytes. The memory of a large one comes from one that was dropped before, and is
    /// kept for the next when it drops, up to [`IoConfig::recycled_bytes_max`] bytes in all.
    pub fn buffer(&self, capacity: usize) -> Buffer {
        self.core.recycler.take(capacity)
    }

    /// Now, on the monotonic clock. About 20 ns.
    pub fn now(&self) -> Monotonic {
        self.core.backend.now()
    }

    /// Milliseconds since 1970-01-01 UTC. May jump when the machine's clock is set.
    pub fn wall_clock(&self) -> i64 {
        self.core.backend.wall_clock()
    }

    /// The memory that this process may use, and how much of that is free or easily freed; `None` where nobody says, as in
    /// the simulator. Reads a few small files of the kernel.
    pub fn memory(&self) -> Option<Memory> {
        match self.core.backend {
            BackendImpl::Sim(_) => None,
            _ => crate::memory::memory(),
        }
    }

    /// 64 bits that nobody can foresee; from the seed in the simulator.
    pub fn random_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.core.backend.fill_random(&mut bytes);
        u64::from_ne_bytes(bytes)
    }

    /// 128 bits that nobody can foresee; from the seed in the simulator.
    pub fn random_bytes16(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.core.backend.fill_random(&mut bytes);
        bytes
    }

    /// Waits for `span`.
    pub fn sleep(&self, span: Duration) -> impl Future<Output = ()> + use<> {
        self.sleep_until(self.now() + span)
    }

    /// Waits until `deadline`.
    pub fn sleep_until(&self, deadline: Monotonic) -> impl Future<Output = ()> + use<> {
        Sleep::new(self.clone(), deadline)
    }

    /// Runs `future` for at most `span`, then drops it.
    ///
    /// # Errors
    ///
    /// [`Elapsed`] if `span` passed first.
    pub async fn timeout<F: Future>(&self, span: Duration, future: F) -> std::result::Result<F::Output, Elapsed> {
        timer::timeout(self, self.now() + span, future).await
    }

    /// Runs `future` until `deadline` at most, then drops it. A future that is done at once costs no look at the clock.
    ///
    /// # Errors
    ///
    /// [`Elapsed`] if the deadline came first.
    pub async fn timeout_at<F: Future>(
        &self,
        deadline: Monotonic,
        future: F,
    ) -> std::result::Result<F::Output, Elapsed> {
        timer::timeout(self, deadline, future).await
    }

    /// Starts a task on this core. It begins in the next turn of the loop.
    ///
    /// After the executor is gone the future is dropped at once.
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
    {
        self.core.spawn(future)
    }

    /// Lets every other ready task run first.
    pub fn yield_now(&self) -> impl Future<Output = ()> + use<> {
        executor::yield_now()
    }

    /// Runs `future` and turns a panic inside it into an error, so that one connection cannot take the core down.
    ///
    /// # Errors
    ///
    /// What the panic said.
    pub async fn catch_panic<F: Future>(&self, future: F) -> std::result::Result<F::Output, Panicked> {
        executor::catch_panic(future).await
    }

    /// Runs `function` on a helper thread, where it may block, and gives what it returns. Inline in the simulator.
    ///
    /// Dropping the future does not stop a function that has begun; dropping the executor does not wait for it.
    ///
    /// # Errors
    ///
    /// The function panicked, or the executor went away first.
    pub async fn run_blocking<T, F>(&self, function: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let function = Box::new(move || {
            // The receiver is gone if nobody waits any more: then the value has no use.
            let _ = sender.send(function());
        });
        let outcome = self.perform(Op::Run { function }).await;
        outcome.result.map_err(|error| Error::from_std("run blocking", &error))?;
        receiver.try_recv().map_err(|_| Error::new("run blocking", std::io::ErrorKind::Other, "the function panicked"))
    }

    /// A waker of the calling task, for any thread.
    pub async fn remote_waker(&self) -> RemoteWaker {
        std::future::poll_fn(|context| std::task::Poll::Ready(RemoteWaker::new(context.waker().clone()))).await
    }

    /// Operations in flight on this core.
    pub fn operations_in_flight(&self) -> usize {
        self.core.slots.len()
    }

    /// Tasks on this core.
    pub fn tasks(&self) -> usize {
        self.core.tasks.len()
    }

    pub(crate) fn backend_counters(&self) -> Counters {
        self.core.backend.counters()
    }

    pub(crate) fn load_sums(&self) -> &LoadSums {
        &self.core.load
    }

    pub(crate) fn simulated_disk_traits(&self) -> Option<DiskTraits> {
        self.core.backend.simulated_disk_traits()
    }

    pub(crate) fn listen_now(&self, address: SocketAddr, options: ListenOptions) -> std::io::Result<Listener> {
        self.core.backend.listen(address, options)
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io").field("backend", &self.backend_name()).finish_non_exhaustive()
    }
}
