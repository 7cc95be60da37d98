//! The loop of one core: tasks, timers and completions, on one thread.
//!
//! Owns the tasks and runs them. Never blocks but in the backend's `turn`, and there only while no task is ready.
//!
//! One turn: run what is ready, fire timers, let the backend submit and reap; sleep there if nothing is left to do.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::error::Result;
use crate::io::{BackendImpl, Core, Io, IoConfig, Wait};
use crate::wake::{TaskHeader, WakeList};

/// Tasks polled between two visits to the backend, at most: bounds how long completions wait.
const POLLS_PER_TURN_MAX: usize = 256;

/// The key of the future that [`Executor::run`] was given. No slab has so many tasks.
const MAIN_KEY: u64 = u64::MAX;

/// One core: its tasks, timers, operations in flight and backend.
///
/// Dropping it drops all tasks, gives up all operations and waits until the kernel has let go of their memory. [`Io`]
/// handles may outlive it; their operations then fail.
pub struct Executor {
    core: Rc<Core>,
}

impl Executor {
    /// A core on the backend that `config` asks for.
    ///
    /// # Errors
    ///
    /// The backend was asked for by name and this kernel or container does not allow it, or the process is out of file
    /// descriptors or memory.
    pub fn new(config: IoConfig) -> Result<Executor> {
        Ok(Executor { core: Core::open(config)? })
    }

    /// A core on a backend that exists already: how the simulator makes its cores.
    pub(crate) fn on(backend: BackendImpl, wakes: Arc<WakeList>) -> Executor {
        Executor { core: Core::new(backend, wakes, IoConfig::default().recycled_bytes_max) }
    }

    /// The handle that tasks carry.
    pub fn io(&self) -> Io {
        Io::new(Rc::clone(&self.core))
    }

    /// `uring`, `blocking` or `sim`.
    pub fn backend_name(&self) -> &'static str {
        self.core.backend.name()
    }

    /// Why this backend, in words for the person who reads the log.
    pub fn backend_reason(&self) -> String {
        self.core.backend.reason()
    }

    /// Runs `future` and every spawned task on this thread until `future` is done.
    ///
    /// Spawned tasks stay and go on in the next call.
    ///
    /// # Panics
    ///
    /// When a task panics: the panic passes through. [`crate::Io::catch_panic`] keeps one inside a task.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
        if let BackendImpl::Foreign(backend) = &self.core.backend {
            return backend.run(&self.core, future);
        }
        let mut future = std::pin::pin!(future);
        let main = self.core.main_task();
        main.schedule();
        loop {
            let main_is_ready = self.core.run_ready();
            if main_is_ready && let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(main.waker())) {
                return output;
            }
            self.core.turn(Wait::UntilWoken);
        }
    }

    pub(crate) fn core(&self) -> &Rc<Core> {
        &self.core
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.core.close();
    }
}

/// The future that an executor was given to run, as a task: it lives outside of the slab.
pub(crate) struct MainTask {
    header: Arc<TaskHeader>,
    waker: Waker,
}

impl MainTask {
    pub(crate) fn schedule(&self) {
        self.header.schedule();
    }

    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }
}

impl Core {
    pub(crate) fn main_task(&self) -> MainTask {
        let header = TaskHeader::new(MAIN_KEY, &self.wakes);
        MainTask { waker: Waker::from(Arc::clone(&header)), header }
    }

    /// Runs ready tasks until none is ready or the turn's budget is spent. True if the main future is ready.
    pub(crate) fn run_ready(&self) -> bool {
        self.run_ready_at_most(POLLS_PER_TURN_MAX)
    }

    /// The same with a budget of the caller's: the simulator lets cores take short turns.
    pub(crate) fn run_ready_at_most(&self, polls_max: usize) -> bool {
        let mut main_is_ready = false;
        let mut polls = 0;
        while polls < polls_max && !main_is_ready {
            self.wakes.take_all(|header| self.tasks.ready.borrow_mut().push_back(header));
            let Some(header) = self.tasks.pop_ready() else { break };
            if header.key == MAIN_KEY {
                main_is_ready = true;
            } else {
                self.tasks.poll(&header);
            }
            polls += 1;
        }
        main_is_ready
    }

    /// Whether a task is ready to run.
    pub(crate) fn has_ready(&self) -> bool {
        self.tasks.has_ready() || !self.wakes.is_empty()
    }

    /// Fires due timers. True if one was due.
    pub(crate) fn fire_timers(&self) -> bool {
        let Some(deadline) = self.timers.next_deadline() else { return false };
        let now = self.backend.now();
        let due = deadline <= now;
        if due {
            self.timers.fire(now);
        }
        due
    }

    /// Lets the backend work, and sleep if `wait` allows it and no task is ready.
    pub(crate) fn turn(&self, wait: Wait) {
        let fired = self.fire_timers();
        let ready = fired || self.has_ready();
        let wait = match (ready, wait) {
            (true, _) | (_, Wait::Not) => Wait::Not,
            (false, _) if self.heard_while_awake() => Wait::Not,
            (false, _) => self.timers.next_deadline().map_or(Wait::UntilWoken, Wait::Until),
        };
        if wait == Wait::Not {
            self.backend.turn(&self.slots, &self.wakes, wait);
            return;
        }
        let began = self.backend.now();
        self.backend.turn(&self.slots, &self.wakes, wait);
        let ended_by_another_core = self.wakes.was_kicked();
        let span = self.backend.now().since(began);
        self.load.slept(span);
        self.spin.slept(span, ended_by_another_core);
    }

    /// Waits awake, if that is worth it, for a message of another core. True if there is something to do.
    fn heard_while_awake(&self) -> bool {
        let Some(span) = self.spin.allowance() else { return false };
        let began = self.backend.now();
        let mut end = began + span;
        // A timer that is due in the meantime is not missed.
        if let Some(deadline) = self.timers.next_deadline() {
            end = end.min(deadline);
        }
        self.backend.submit();
        let heard = loop {
            if self.has_ready() || self.backend.has_news() {
                break true;
            }
            if self.backend.now() >= end {
                break false;
            }
            std::hint::spin_loop();
        };
        self.load.spun(self.backend.now().since(began));
        self.spin.waited(heard);
        heard
    }
}

/// What a task does.
type TaskFuture = Pin<Box<dyn Future<Output = ()>>>;

/// The tasks of one core.
#[derive(Default)]
pub(crate) struct Tasks {
    slab: RefCell<Slab>,
    /// Taken from the wake list, not yet run.
    ready: RefCell<VecDeque<Arc<TaskHeader>>>,
}

#[derive(Default)]
struct Slab {
    slots: Vec<TaskSlot>,
    vacant: Vec<u32>,
}

struct TaskSlot {
    /// Tells successive tasks of one slot apart.
    generation: u32,
    task: Option<RunningTask>,
}

struct RunningTask {
    /// `None` while it is being polled.
    future: Option<TaskFuture>,
    waker: Waker,
}

impl Tasks {
    fn insert(&self, wakes: &Arc<WakeList>, future: TaskFuture) -> u64 {
        let mut slab = self.slab.borrow_mut();
        let index = slab.vacant.pop().unwrap_or_else(|| {
            slab.slots.push(TaskSlot { generation: 0, task: None });
            u32::try_from(slab.slots.len() - 1).expect("memory ends before four billion tasks")
        });
        let slot = &mut slab.slots[index as usize];
        let key = (u64::from(slot.generation) << 32) | u64::from(index);
        let header = TaskHeader::new(key, wakes);
        header.schedule();
        slot.task = Some(RunningTask { future: Some(future), waker: Waker::from(header) });
        key
    }

    fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty()
    }

    fn pop_ready(&self) -> Option<Arc<TaskHeader>> {
        self.ready.borrow_mut().pop_front()
    }

    /// Polls one task. The slab is not borrowed meanwhile: the task may spawn and cancel others, or itself.
    fn poll(&self, header: &Arc<TaskHeader>) {
        let Some((mut future, waker)) = self.take_future(header.key) else { return };
        let done = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        if done {
            drop(future);
            drop(self.remove(header.key));
        } else {
            let cancelled = self.put_future_back(header.key, future);
            drop(cancelled);
        }
    }

    fn take_future(&self, key: u64) -> Option<(TaskFuture, Waker)> {
        let mut slab = self.slab.borrow_mut();
        let task = slab.task_mut(key)?;
        Some((task.future.take()?, task.waker.clone()))
    }

    /// Gives the future back if the task was cancelled while it ran.
    fn put_future_back(&self, key: u64, future: TaskFuture) -> Option<TaskFuture> {
        match self.slab.borrow_mut().task_mut(key) {
            Some(task) => {
                task.future = Some(future);
                None
            }
            None => Some(future),
        }
    }

    /// Removes a task; the caller drops what was in it, outside of the borrow.
    fn remove(&self, key: u64) -> Option<RunningTask> {
        let mut slab = self.slab.borrow_mut();
        slab.task_mut(key)?;
        let index = key as u32;
        let slot = &mut slab.slots[index as usize];
        let task = slot.task.take();
        // Generation u32::MAX is never used, so that no key is the main future's; the slot is retired instead.
        slot.generation += 1;
        if slot.generation < u32::MAX {
            slab.vacant.push(index);
        }
        task
    }

    /// Drops every task. What their destructors spawn is dropped too.
    fn clear(&self) {
        loop {
            let tasks: Vec<RunningTask> = {
                let mut slab = self.slab.borrow_mut();
                slab.vacant.clear();
                slab.slots.drain(..).filter_map(|slot| slot.task).collect()
            };
            if tasks.is_empty() {
                break;
            }
        }
        self.ready.borrow_mut().clear();
    }

    /// How many tasks there are.
    pub(crate) fn len(&self) -> usize {
        let slab = self.slab.borrow();
        slab.slots.iter().filter(|slot| slot.task.is_some()).count()
    }
}

impl Slab {
    fn task_mut(&mut self, key: u64) -> Option<&mut RunningTask> {
        let slot = self.slots.get_mut(key as u32 as usize)?;
        if u64::from(slot.generation) != key >> 32 {
            return None;
        }
        slot.task.as_mut()
    }
}

impl Core {
    /// Drops all tasks, then waits until no memory of theirs is in use by the kernel.
    pub(crate) fn close(&self) {
        if self.closed.replace(true) {
            return;
        }
        self.tasks.clear();
        self.backend.close(&self.slots);
        self.wakes.close();
    }

    pub(crate) fn spawn<F>(self: &Rc<Core>, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
    {
        let join = Rc::new(Join { state: RefCell::new(JoinState::Running(None)), key: Cell::new(0) });
        // Part of the future even before it first runs: a task that is dropped or panics tells whoever waits for it.
        let guard = JoinGuard { join: Rc::clone(&join), output: None };
        let body = async move {
            let mut guard = guard;
            guard.output = Some(future.await);
        };
        if self.closed.get() {
            drop(body);
        } else {
            join.key.set(self.tasks.insert(&self.wakes, Box::pin(body)));
        }
        Task { join, core: Rc::downgrade(self) }
    }
}

/// A spawned task, and the future of what it returns. Dropping it lets the task run on.
///
/// # Panics
///
/// Awaiting it panics if the task was cancelled or its executor dropped; [`Task::cancel`] takes it away first.
#[must_use = "dropping a Task detaches it; say so with .detach()"]
pub struct Task<T> {
    join: Rc<Join<T>>,
    core: std::rc::Weak<Core>,
}

struct Join<T> {
    state: RefCell<JoinState<T>>,
    key: Cell<u64>,
}

enum JoinState<T> {
    Running(Option<Waker>),
    Done(T),
    /// Dropped before it was done, or its output was taken.
    Gone,
}

impl<T> Task<T> {
    /// Lets the task run on its own.
    pub fn detach(self) {}

    /// Drops the task where it stands, unless it is done. What it had in flight is given up, safely.
    ///
    /// A task that cancels itself is dropped when it next yields.
    pub fn cancel(self) {
        if let Some(core) = self.core.upgrade() {
            drop(core.tasks.remove(self.join.key.get()));
        }
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        !matches!(*self.join.state.borrow(), JoinState::Running(_))
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut state = self.join.state.borrow_mut();
        match &mut *state {
            JoinState::Running(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            JoinState::Done(_) => match std::mem::replace(&mut *state, JoinState::Gone) {
                JoinState::Done(output) => Poll::Ready(output),
                _ => unreachable!("matched above"),
            },
            JoinState::Gone => panic!("awaited a task that was cancelled or whose executor is gone"),
        }
    }
}

/// Lives in the task's own future; its drop is the end of the task, whatever the reason.
struct JoinGuard<T> {
    join: Rc<Join<T>>,
    output: Option<T>,
}

impl<T> Drop for JoinGuard<T> {
    fn drop(&mut self) {
        let end = self.output.take().map_or(JoinState::Gone, JoinState::Done);
        let before = std::mem::replace(&mut *self.join.state.borrow_mut(), end);
        if let JoinState::Running(Some(waker)) = before {
            waker.wake();
        }
    }
}

/// Runs `future`; a panic inside becomes an error that carries the panic's words.
pub(crate) async fn catch_panic<F: Future>(future: F) -> std::result::Result<F::Output, Panicked> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Err(payload) => Poll::Ready(Err(Panicked::new(payload.as_ref()))),
    })
    .await
}

/// A future panicked; carries what it said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Panicked {
    words: String,
}

impl Panicked {
    fn new(payload: &(dyn Any + Send)) -> Panicked {
        let words = payload
            .downcast_ref::<&str>()
            .map(|words| (*words).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic without words".to_owned());
        Panicked { words }
    }
}

impl std::fmt::Display for Panicked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.words)
    }
}

impl std::error::Error for Panicked {}

/// The future of [`Io::yield_now`].
pub(crate) async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
