//! One flush for all logs: on a file system where the device's own flush makes every completed write in place durable, of
//! whatever file, the logs of all cores share it.
//!
//! Owns [`DeviceFlush`], which lets one flush be in flight for a data directory at a time, and [`SharedFlush`], the logs of
//! one core that wait for one. A flush covers what was written before it was issued; who comes later waits for the next.
//! A failed flush is reported only to its caller, so two independent ones could each believe the other's loss away: that
//! is why there is one.
//!
//! ```text
//! core 0   write A ── ask ─┬─ fdatasync ───────────┬─ ack A
//! core 1     write B ─ ask ┘ (covers A and B)      ├─ ack B
//! core 1        write C ── ask ─ ─ ─ waits ─ ─ ─ ─ ┴─ fdatasync ── ack C
//! ```

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use heddle_io::{File, Io, RemoteWaker};

use crate::error::Error;
use crate::log::LogInner;

/// The flush of a data directory's device, shared by all cores.
#[derive(Debug, Default)]
pub(crate) struct DeviceFlush {
    state: Mutex<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    /// Flushes that were begun, and those of them that are done.
    begun: u64,
    done: u64,
    in_flight: bool,
    /// One has failed or was given up: what the others covered is not known to be there.
    failed: Option<Error>,
    /// Cores that wait for their turn or for another's flush.
    waiting: Vec<RemoteWaker>,
}

/// What to do for a flush that covers everything up to now.
enum Turn {
    /// It is done.
    Covered,
    /// Issue one; this is its number.
    Mine(u64),
    /// Another is in flight.
    Wait,
}

impl DeviceFlush {
    /// Makes durable every write in place that completed before the call, of any core. Several callers share a flush.
    ///
    /// # Errors
    /// A flush failed, this one or an earlier one: the data directory goes offline.
    pub(crate) async fn flush(&self, io: &Io, anchor: &File) -> Result<(), Error> {
        let ticket = self.lock().begun + 1;
        let waker = io.remote_waker().await;
        loop {
            let turn = self.lock().turn(ticket, &waker)?;
            match turn {
                Turn::Covered => return Ok(()),
                Turn::Mine(number) => {
                    let running = Running { flush: self, number: Some(number) };
                    let result = io.sync_data(anchor).await.map_err(Error::from);
                    running.end(&result);
                    result?;
                }
                Turn::Wait => woken().await,
            }
        }
    }

    /// A panic while the lock is held would be a bug of these few lines; the state is whole after each of them.
    fn lock(&self) -> MutexGuard<'_, Turns> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until the task is woken, by whomever.
async fn woken() {
    let mut waited = false;
    std::future::poll_fn(|_| if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

impl Turns {
    fn turn(&mut self, ticket: u64, waker: &RemoteWaker) -> Result<Turn, Error> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        if self.done >= ticket {
            return Ok(Turn::Covered);
        }
        if self.in_flight {
            self.waiting.push(waker.clone());
            return Ok(Turn::Wait);
        }
        self.in_flight = true;
        self.begun += 1;
        Ok(Turn::Mine(self.begun))
    }
}

/// A flush in flight; dropping it without its end counts as a failure.
struct Running<'a> {
    flush: &'a DeviceFlush,
    number: Option<u64>,
}

impl Running<'_> {
    fn end(mut self, result: &Result<(), Error>) {
        self.settle(result);
    }

    fn settle(&mut self, result: &Result<(), Error>) {
        let Some(number) = self.number.take() else { return };
        let mut turns = self.flush.lock();
        turns.in_flight = false;
        match result {
            Ok(()) => turns.done = number,
            Err(error) => turns.failed = Some(error.clone()),
        }
        let waiting = std::mem::take(&mut turns.waiting);
        drop(turns);
        for waker in waiting {
            waker.wake();
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.settle(&Err(Error::Offline("a flush was given up".into())));
    }
}

/// The logs of one core that wait for the next shared flush.
#[derive(Default)]
pub(crate) struct SharedFlush {
    waiting: RefCell<Vec<Rc<LogInner>>>,
    running: Cell<bool>,
}

impl SharedFlush {
    /// Has `log` flushed with the others; its `flushing` is set.
    pub(crate) fn ask(&self, log: Rc<LogInner>) {
        let io = log.io().clone();
        let core = Rc::clone(&log.core);
        self.waiting.borrow_mut().push(log);
        if !self.running.replace(true) {
            io.spawn(async move {
                while !core.shared_flush.waiting.borrow().is_empty() {
                    // What completed in the same turn of the loop is covered by the same flush.
                    core.io.yield_now().await;
                    run(&core).await;
                }
                core.shared_flush.running.set(false);
            })
            .detach();
        }
    }
}

/// Flushes all logs that wait, with one flush, or none where what they wrote is durable already.
async fn run(core: &crate::engine::Core) {
    let logs = std::mem::take(&mut *core.shared_flush.waiting.borrow_mut());
    let mut planned = Vec::with_capacity(logs.len());
    for log in logs {
        let plan = log.state.borrow().plan_flush(core.device);
        match plan {
            None => log.state.borrow_mut().flushing = false,
            Some(plan) if plan.is_shared() => planned.push((log, plan)),
            // It wrote to new blocks meanwhile.
            Some(_) => log.flush_alone(),
        }
    }
    if planned.is_empty() {
        return;
    }
    let result = if core.device.is_write_through() { Ok(()) } else { core.dir.flush_device(&core.io).await };
    for (log, plan) in planned {
        log.shared_flush_ended(plan, &result);
    }
}
