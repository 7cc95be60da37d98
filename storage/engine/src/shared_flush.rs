//! One flush for all logs: on a file system where the device's own flush makes every completed write in place durable, of
//! whatever file, the logs of all cores share it.
//!
//! Owns [`DeviceFlush`], one flush in flight for a data directory at a time ([`Rounds`]), and [`SharedFlush`], the logs of
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

use heddle_io::{Failed, File, Io, Rounds};

use crate::cold::Commit;
use crate::error::Error;
use crate::log::LogInner;

/// The flush of a data directory's device, shared by all cores.
#[derive(Debug, Default)]
pub(crate) struct DeviceFlush {
    rounds: Rounds<Error>,
}

impl DeviceFlush {
    /// Makes durable every write in place that completed before the call, of any core. Several callers share a flush.
    ///
    /// # Errors
    /// A flush failed, this one or an earlier one: the data directory goes offline.
    pub(crate) async fn flush(&self, io: &Io, anchor: &File) -> Result<(), Error> {
        let flushed = self.rounds.join(|| async { Ok(io.sync_data(anchor).await?) }).await;
        flushed.map_err(|failed| match failed {
            Failed::With(error) => error,
            Failed::GivenUp => Error::Offline("a flush was given up".into()),
        })
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
    let result = if core.device.is_write_through() {
        Ok(())
    } else {
        core.commit(Commit::Flush, core.meters.flush(&core.io, core.dir.flush_device(&core.io))).await
    };
    for (log, plan) in planned {
        log.shared_flush_ended(plan, &result);
    }
}
