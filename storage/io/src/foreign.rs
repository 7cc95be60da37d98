//! Backends on a foreign runtime: what tokio-uring and glommio have in common.
//!
//! Owns the core's visit to the runtime: [`Executor::run`](crate::Executor::run) hands the whole core over as one future, and
//! the runtime polls it when an operation has ended, a timer is due or another thread has woken the core. Never lets a type
//! of the runtime out of this crate.
//!
//! Reads, writes and syncs of files go through the runtime's own files. What else there is to do with files and directories
//! is done on helper threads, as on every backend. There are no sockets and no signals here: those operations fail and say so.
//!
//! ```text
//! task ── Op ─▶ start ── queue ─▶ turn ── Runtime::start ─▶ a task of the runtime, which owns the operation
//!                 │                                                    │
//!                 └ directories, lengths: Pool                Finished ─▶ turn ─▶ Slots::finish
//! ```
//!
//! An operation that nobody waits for any more runs to its end in its task, so that no byte and no buffer is lost with a
//! dropped future.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::Result;
use crate::executor::MainTask;
use crate::file::File;
use crate::io::{Core, IoConfig, Wait};
use crate::op::{Op, OpKey, Outcome, Slots, SyncKind};
use crate::os;
use crate::pool::Pool;
use crate::timer::Monotonic;
use crate::wake::{Kick, WakeList};

/// Turns of the core in one poll of the outer future; then the runtime's own tasks have their turn.
const TURNS_PER_POLL_MAX: usize = 16;

/// How long the end of a core waits for operations in flight; then the runtime is leaked, on purpose.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(10);

/// A future on the heap.
pub(crate) type Boxed = Pin<Box<dyn Future<Output = ()>>>;

/// What is done with the outcome of an operation.
pub(crate) type Done = Box<dyn FnOnce(Outcome)>;

/// A core's backend on a foreign runtime.
pub(crate) struct ForeignBackend {
    reason: String,
    /// `None` once the core is closed.
    runtime: RefCell<Option<Runtime>>,
    name: &'static str,
    /// Operations for the runtime, which takes them in the core's next turn: it can only be spoken to from inside.
    queue: RefCell<VecDeque<(OpKey, Op)>>,
    finished: Rc<Finished>,
    pool: Pool,
    /// Operations that the pool has not finished.
    in_pool: Cell<usize>,
    outer: Arc<Outer>,
}

/// The runtimes that this build has.
pub(crate) enum Runtime {
    #[cfg(feature = "tokio-uring")]
    TokioUring(crate::tokio_uring::TokioUring),
    #[cfg(feature = "glommio")]
    Glommio(crate::glommio::Glommio),
}

impl Runtime {
    /// Runs `future` on the runtime until it is done.
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self {
            #[cfg(feature = "tokio-uring")]
            Runtime::TokioUring(runtime) => runtime.block_on(future),
            #[cfg(feature = "glommio")]
            Runtime::Glommio(runtime) => runtime.block_on(future),
        }
    }

    /// Starts a read, a write or a sync as a task of the runtime. Called from inside of [`Runtime::block_on`].
    fn start(&self, op: Op, done: Done) {
        match self {
            #[cfg(feature = "tokio-uring")]
            Runtime::TokioUring(runtime) => runtime.start(op, done),
            #[cfg(feature = "glommio")]
            Runtime::Glommio(runtime) => runtime.start(op, done),
        }
    }

    /// A future of the runtime that is ready after `span`. Made inside of [`Runtime::block_on`].
    fn sleep(&self, span: Duration) -> Boxed {
        match self {
            #[cfg(feature = "tokio-uring")]
            Runtime::TokioUring(_) => crate::tokio_uring::sleep(span),
            #[cfg(feature = "glommio")]
            Runtime::Glommio(_) => crate::glommio::sleep(span),
        }
    }

    /// Has the outer future polled again after the runtime has done its own work, submitting included.
    fn come_again(&self, context: &mut Context<'_>) {
        match self {
            #[cfg(feature = "tokio-uring")]
            Runtime::TokioUring(runtime) => runtime.come_again(context),
            #[cfg(feature = "glommio")]
            Runtime::Glommio(_) => context.waker().wake_by_ref(),
        }
    }

    /// Lets go of the runtime's files that belong to files which are closed.
    fn sweep_files(&self) {
        match self {
            #[cfg(feature = "tokio-uring")]
            Runtime::TokioUring(runtime) => runtime.files().sweep(),
            #[cfg(feature = "glommio")]
            Runtime::Glommio(runtime) => runtime.files().sweep(),
        }
    }

    /// Lets go of all of the runtime's files.
    fn drop_files(&self) {
        match self {
            #[cfg(feature = "tokio-uring")]
            Runtime::TokioUring(runtime) => runtime.files().clear(),
            #[cfg(feature = "glommio")]
            Runtime::Glommio(runtime) => runtime.files().clear(),
        }
    }
}

/// Operations that the runtime's tasks have ended, and how many have not.
struct Finished {
    outcomes: RefCell<Vec<(OpKey, Outcome)>>,
    running: Cell<usize>,
    wakes: Arc<WakeList>,
}

/// Wakes the outer future, from any thread.
#[derive(Default)]
struct Outer {
    waker: Mutex<Option<Waker>>,
}

struct KickOuter(Arc<Outer>);

impl Kick for KickOuter {
    fn kick(&self) {
        if let Some(waker) = &*self.0.lock() {
            waker.wake_by_ref();
        }
    }
}

impl Outer {
    fn lock(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, waker: &Waker) {
        let mut known = self.lock();
        match &mut *known {
            Some(known) => known.clone_from(waker),
            None => *known = Some(waker.clone()),
        }
    }
}

impl ForeignBackend {
    /// A backend on a runtime that `make` makes.
    ///
    /// # Errors
    ///
    /// What `make` says.
    pub(crate) fn open(
        config: &IoConfig,
        name: &'static str,
        make: impl FnOnce(&IoConfig) -> Result<Runtime>,
    ) -> Result<(ForeignBackend, Arc<WakeList>)> {
        let runtime = make(config)?;
        let outer = Arc::new(Outer::default());
        let wakes = WakeList::new(Box::new(KickOuter(Arc::clone(&outer))));
        let finished = Finished { outcomes: RefCell::default(), running: Cell::new(0), wakes: Arc::clone(&wakes) };
        let backend = ForeignBackend {
            reason: "asked for".to_owned(),
            runtime: RefCell::new(Some(runtime)),
            name,
            queue: RefCell::default(),
            finished: Rc::new(finished),
            pool: Pool::new(config.pool_threads_max, &wakes),
            in_pool: Cell::new(0),
            outer,
        };
        Ok((backend, wakes))
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn reason(&self) -> String {
        self.reason.clone()
    }

    /// The error of whatever only sockets and signals have.
    pub(crate) fn files_only(&self) -> io::Error {
        io::Error::new(io::ErrorKind::Unsupported, format!("the backend {} has files only", self.name))
    }

    pub(crate) fn start(&self, slots: &Slots, key: OpKey, op: Op) {
        match op {
            Op::Read { .. } | Op::Write { .. } | Op::Sync { kind: SyncKind::Data, .. } => {
                self.queue.borrow_mut().push_back((key, op));
            }
            Op::Accept { .. } | Op::Connect { .. } | Op::Recv { .. } | Op::Send { .. } | Op::SendFile { .. } => {
                slots.finish(key, Outcome::refused(op, self.files_only()));
            }
            Op::Readable { .. } | Op::Arrival { .. } => slots.finish(key, Outcome::refused(op, self.files_only())),
            other => {
                self.sweep_files();
                self.in_pool.set(self.in_pool.get() + 1);
                self.pool.start(key, other);
            }
        }
    }

    pub(crate) fn cancel(&self, slots: &Slots, key: OpKey) {
        if self.pool.cancel(key) {
            self.in_pool.set(self.in_pool.get() - 1);
            slots.finish(key, cancelled());
        }
    }

    /// Never sleeps: the runtime does.
    pub(crate) fn turn(&self, slots: &Slots, _wakes: &WakeList, _wait: Wait) {
        self.submit();
        if self.in_pool.get() > 0 {
            for (key, outcome) in self.pool.take_done() {
                self.in_pool.set(self.in_pool.get() - 1);
                slots.finish(key, outcome);
            }
        }
        let ended = std::mem::take(&mut *self.finished.outcomes.borrow_mut());
        for (key, outcome) in ended {
            slots.finish(key, outcome);
        }
    }

    pub(crate) fn needs_turn(&self) -> bool {
        let something_ended = !self.finished.outcomes.borrow().is_empty();
        something_ended || !self.queue.borrow().is_empty() || (self.in_pool.get() > 0 && self.pool.has_done())
    }

    /// Waits for what is in flight, then ends the runtime. What was never begun is dropped.
    pub(crate) fn close(&self, _slots: &Slots) {
        drop(std::mem::take(&mut *self.queue.borrow_mut()));
        self.pool.close();
        let Some(runtime) = self.runtime.borrow_mut().take() else { return };
        let deadline = os::monotonic() + CLOSE_WAIT_MAX;
        runtime.block_on(async {
            while self.finished.running.get() > 0 && os::monotonic() < deadline {
                runtime.sleep(Duration::from_millis(1)).await;
            }
            runtime.drop_files();
        });
        drop(std::mem::take(&mut *self.finished.outcomes.borrow_mut()));
        if self.finished.running.get() > 0 {
            // A device that never answers. Memory that the kernel may still write is not given back.
            std::mem::forget(runtime);
        }
    }

    /// Runs `future` and the core's tasks as one future of the runtime.
    ///
    /// # Panics
    ///
    /// When a task panics; and on a thread that is inside of a runtime of this kind already.
    pub(crate) fn run<F: Future>(&self, core: &Rc<Core>, future: F) -> F::Output {
        let main = core.main_task();
        main.schedule();
        let mut visit = Visit { core, backend: self, main, timer: None };
        let mut future = std::pin::pin!(future);
        let runtime = self.runtime.borrow();
        let runtime = runtime.as_ref().expect("a core that runs is not closed");
        let ended = runtime.block_on(std::future::poll_fn(|context| visit.poll(runtime, future.as_mut(), context)));
        // Outside of the runtime, which makes of a panic what it likes.
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Lets the runtime have what was asked for.
    fn submit(&self) {
        let runtime = self.runtime.borrow();
        let Some(runtime) = &*runtime else { return };
        runtime.sweep_files();
        loop {
            let next = self.queue.borrow_mut().pop_front();
            let Some((key, op)) = next else { break };
            let finished = Rc::clone(&self.finished);
            finished.running.set(finished.running.get() + 1);
            runtime.start(op, Box::new(move |outcome| finished.end(key, outcome)));
        }
    }

    fn sweep_files(&self) {
        if let Some(runtime) = &*self.runtime.borrow() {
            runtime.sweep_files();
        }
    }
}

impl Finished {
    fn end(&self, key: OpKey, outcome: Outcome) {
        self.running.set(self.running.get() - 1);
        self.outcomes.borrow_mut().push((key, outcome));
        self.wakes.kick_if_sleeping();
    }
}

/// One call of [`ForeignBackend::run`].
struct Visit<'a> {
    core: &'a Rc<Core>,
    backend: &'a ForeignBackend,
    main: MainTask,
    /// When the runtime's timer fires, and the timer.
    timer: Option<(Monotonic, Boxed)>,
}

/// The output of the core's future, or what it panicked with.
type Ended<T> = std::result::Result<T, Box<dyn std::any::Any + Send>>;

impl Visit<'_> {
    fn poll<F: Future>(
        &mut self,
        runtime: &Runtime,
        mut future: Pin<&mut F>,
        context: &mut Context<'_>,
    ) -> Poll<Ended<F::Output>> {
        // Before the core says that it sleeps: who kicks it then finds whom to wake.
        self.backend.outer.remember(context.waker());
        self.core.wakes.awake();
        for _ in 0..TURNS_PER_POLL_MAX {
            let turned = std::panic::catch_unwind(AssertUnwindSafe(|| self.turn(future.as_mut())));
            match turned {
                Ok(Poll::Ready(output)) => return Poll::Ready(Ok(output)),
                Ok(Poll::Pending) => {}
                Err(panic) => return Poll::Ready(Err(panic)),
            }
            if self.core.has_ready() || !self.core.wakes.try_sleep() {
                continue;
            }
            // From here on a kick reaches the outer future; before, nobody kicked.
            if self.backend.needs_turn() || self.timer_is_due(runtime, context) {
                self.core.wakes.awake();
                continue;
            }
            return Poll::Pending;
        }
        runtime.come_again(context);
        Poll::Pending
    }

    fn turn<F: Future>(&mut self, future: Pin<&mut F>) -> Poll<F::Output> {
        if self.core.run_ready() {
            let polled = future.poll(&mut Context::from_waker(self.main.waker()));
            if polled.is_ready() {
                return polled;
            }
        }
        self.core.turn(Wait::Not);
        Poll::Pending
    }

    /// Asks the runtime to come back when the next timer is due. True if it is.
    fn timer_is_due(&mut self, runtime: &Runtime, context: &mut Context<'_>) -> bool {
        let Some(deadline) = self.core.timers.next_deadline() else {
            self.timer = None;
            return false;
        };
        if self.timer.as_ref().is_none_or(|(fires_at, _)| *fires_at != deadline) {
            self.timer = Some((deadline, runtime.sleep(deadline.since(os::monotonic()))));
        }
        let (_, timer) = self.timer.as_mut().expect("it was just set");
        let is_due = timer.as_mut().poll(context).is_ready();
        if is_due {
            self.timer = None;
        }
        is_due
    }
}

/// Nobody sees it: whoever waited is gone.
fn cancelled() -> Outcome {
    Outcome::of(Err(io::Error::from_raw_os_error(libc::ECANCELED)))
}

/// The runtime's own files, one for each [`File`] that it reads or writes, made when first needed.
pub(crate) struct Twins<F> {
    home: Arc<Home>,
    files: RefCell<HashMap<u64, F>>,
}

/// Where the end of a file is told: files may be closed on any thread, the runtime's files on one only.
#[derive(Debug, Default)]
struct Home {
    next: AtomicU64,
    any_closed: AtomicBool,
    closed: Mutex<Vec<u64>>,
}

/// A file's tie to the runtime's file that belongs to it.
#[derive(Debug)]
pub(crate) struct Twin {
    number: u64,
    home: Arc<Home>,
}

impl Drop for Twin {
    fn drop(&mut self) {
        self.home.closed.lock().unwrap_or_else(PoisonError::into_inner).push(self.number);
        self.home.any_closed.store(true, Ordering::Release);
    }
}

impl<F> Default for Twins<F> {
    fn default() -> Twins<F> {
        Twins { home: Arc::default(), files: RefCell::default() }
    }
}

impl<F: Clone> Twins<F> {
    /// The runtime's file, if there is one.
    pub(crate) fn find(&self, file: &File) -> Option<F> {
        let twin = file.twin().get().filter(|twin| Arc::ptr_eq(&twin.home, &self.home))?;
        self.files.borrow().get(&twin.number).cloned()
    }

    /// Keeps `made` for as long as `file` is open, unless there is one already, and returns the one that is kept. A file
    /// that another core has a twin of is not kept here.
    pub(crate) fn keep(&self, file: &File, made: F) -> F {
        let twin = file.twin().get_or_init(|| Twin {
            number: self.home.next.fetch_add(1, Ordering::Relaxed),
            home: Arc::clone(&self.home),
        });
        if !Arc::ptr_eq(&twin.home, &self.home) {
            return made;
        }
        self.files.borrow_mut().entry(twin.number).or_insert(made).clone()
    }

    /// Lets go of the files whose twins are closed.
    pub(crate) fn sweep(&self) {
        if !self.home.any_closed.swap(false, Ordering::Acquire) {
            return;
        }
        let closed = std::mem::take(&mut *self.home.closed.lock().unwrap_or_else(PoisonError::into_inner));
        for number in closed {
            let gone = self.files.borrow_mut().remove(&number);
            drop(gone);
        }
    }

    /// Lets go of all files.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut *self.files.borrow_mut());
        drop(all);
    }
}
