//! A core inside of a foreign runtime: one future there, a whole executor here.
//!
//! Owns the watcher, a thread that sleeps where the core would: on the backend's descriptor and on the next timer. When
//! there is something to do it wakes the outer task, which polls this future, which runs the core until it has nothing
//! left to do. Never runs a task of the core on the watcher's thread.

use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::error::{Error, Result};
use crate::executor::{Executor, MainTask};
use crate::io::Wait;
use crate::os;
use crate::timer::Monotonic;

impl Executor {
    /// Runs `future` and every spawned task as one future inside of another runtime, on the thread that made this
    /// executor. What is dropped with the future is what would be dropped with the executor.
    ///
    /// # Errors
    ///
    /// The process is out of file descriptors or threads; the core is a simulated one.
    pub fn run_inside<F: Future>(self, future: F) -> Result<impl Future<Output = F::Output>> {
        let main = self.core().main_task();
        let watched =
            self.core().backend.watched_descriptors().map_err(|error| Error::from_std("run inside", &error))?;
        let watcher = Watcher::start(watched).map_err(|error| Error::from_std("run inside", &error))?;
        main.schedule();
        Ok(Inside { future: Box::pin(future), main, watcher, executor: self })
    }
}

/// The future of [`Executor::run_inside`]. Fields are dropped in this order: the future before its executor.
struct Inside<F: Future> {
    future: Pin<Box<F>>,
    main: MainTask,
    watcher: Watcher,
    executor: Executor,
}

impl<F: Future> Future for Inside<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let core = this.executor.core();
        core.wakes.awake();
        // A few turns, then the outer runtime's other tasks.
        for _ in 0..TURNS_PER_POLL_MAX {
            if core.run_ready()
                && let Poll::Ready(output) = this.future.as_mut().poll(&mut Context::from_waker(this.main.waker()))
            {
                return Poll::Ready(output);
            }
            core.turn(Wait::Not);
            if !core.has_ready() && core.wakes.try_sleep() {
                // From here on a kick reaches the watcher through the backend's descriptor; before, nobody kicked. And what
                // the turn's last results led to is not submitted yet.
                if core.backend.needs_turn() {
                    core.wakes.awake();
                    continue;
                }
                this.watcher.arm(context.waker().clone(), core.timers.next_deadline());
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Turns of the core in one poll of the outer task.
const TURNS_PER_POLL_MAX: usize = 16;

/// The thread that waits.
struct Watcher {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Readable when the state has changed.
    changed: OwnedFd,
    /// One is readable when the backend has something to do.
    watched: Vec<Arc<OwnedFd>>,
}

#[derive(Default)]
struct State {
    /// Whom to wake, once; nobody while the core runs.
    waker: Option<Waker>,
    deadline: Option<Monotonic>,
    stopped: bool,
}

impl Shared {
    /// Nothing can panic while the lock is held.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    fn start(watched: Vec<Arc<OwnedFd>>) -> io::Result<Watcher> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: os::event_descriptor()?, watched });
        let thread = std::thread::Builder::new().name("heddle-watcher".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || watch(&shared)
        })?;
        Ok(Watcher { shared, thread: Some(thread) })
    }

    fn arm(&self, waker: Waker, deadline: Option<Monotonic>) {
        let mut state = self.shared.lock();
        state.waker = Some(waker);
        state.deadline = deadline;
        drop(state);
        os::signal_event(self.shared.changed.as_raw_fd());
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        os::signal_event(self.shared.changed.as_raw_fd());
        if let Some(thread) = self.thread.take() {
            // It cannot panic: there is nothing to tell.
            let _ = thread.join();
        }
    }
}

fn watch(shared: &Shared) {
    loop {
        let (armed, deadline) = {
            let state = shared.lock();
            if state.stopped {
                return;
            }
            (state.waker.is_some(), state.deadline)
        };
        let time_limit = deadline.filter(|_| armed).map(|deadline| deadline.since(os::monotonic()));
        let watched = if armed { &*shared.watched } else { &[] };
        let ready = os::poll_readable(shared.changed.as_raw_fd(), watched, time_limit);
        os::drain_event(shared.changed.as_raw_fd());
        let is_due = deadline.is_some_and(|deadline| deadline <= os::monotonic());
        if armed && (ready || is_due) {
            // Before the waker is taken: what is drained here is seen by the poll that it leads to.
            shared.watched.iter().for_each(|descriptor| os::drain_event(descriptor.as_raw_fd()));
            let waker = shared.lock().waker.take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}
