//! The io_uring backend: one ring for each core.
//!
//! Owns the ring and the operations that are on it. Never blocks but in `io_uring_enter`, when no task is ready, and
//! for as long as a small write to the page cache takes (`inline.rs`).
//!
//! The ring is SINGLE_ISSUER | DEFER_TASKRUN: the kernel touches completions only while this core is inside of an enter
//! with GETEVENTS, so that nothing interrupts a task. One enter for each turn of the loop submits what the tasks asked
//! for and reaps what is done; the turn that sleeps does so in the same call, the next timer as its time limit.
//!
//! ```text
//! task ── Op ─▶ start ── Flight ─▶ submission queue ─▶ kernel ─▶ completion queue ── result ─▶ Flight::complete
//!                 │                       ▲                                                         │
//!                 └ directories: Pool     └──────────── short write, next step ─────────────────────┤
//!                                                                                  Slots::finish ◀──┘
//! ```
//!
//! A key of [`OpKey`] travels through the kernel as user data; the top bit marks what belongs to no operation.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{CancelBuilder, Fd};
use io_uring::{IoUring, cqueue, opcode};

use crate::counters::{Counters, Tally};
use crate::error::{Error, Result};
use crate::flight::{Flight, Next};
use crate::inline::InlineWrites;
use crate::io::{IoConfig, Wait};
use crate::op::{Op, OpKey, Outcome, Slots, Value};
use crate::os;
use crate::pool::Pool;
use crate::wake::{Kick, WakeList};

/// The oldest kernel that has all that is needed: DEFER_TASKRUN.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// User data of what belongs to no operation: its result is not looked at.
const NOBODY: u64 = 1 << 63;

/// User data of the watch on the wake-up descriptor.
const WAKE_UP: u64 = NOBODY | 1;

/// How long the end of a core waits for the kernel to let go of memory; then the memory is leaked, on purpose.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(10);

pub(crate) struct UringBackend {
    reason: String,
    ring: RefCell<Ring>,
    pool: Pool,
    /// Operations that the pool has not finished.
    in_pool: Cell<usize>,
    inline: InlineWrites,
    wake_up: Arc<OwnedFd>,
    tally: Tally,
}

struct Ring {
    ring: IoUring,
    enter: os::RingEnter,
    /// The operations on the ring, by the index of their key.
    flights: Vec<Option<(OpKey, Flight)>>,
    /// Entries that found the submission queue full.
    backlog: VecDeque<Entry>,
    /// Entries that the kernel has, or will have, and whose last result has not come.
    in_kernel: usize,
    /// Results taken from the completion queue, not yet worked on.
    reaped: Vec<(u64, i32, u32)>,
    enters: u64,
    submissions: u64,
    completions: u64,
}

/// Ends the sleep in `io_uring_enter`: the ring watches this descriptor.
struct WakeUp {
    event: Arc<OwnedFd>,
}

impl Kick for WakeUp {
    fn kick(&self) {
        os::signal_event(self.event.as_raw_fd());
    }
}

impl UringBackend {
    pub(crate) fn open(config: &IoConfig, reason: String) -> Result<(UringBackend, Arc<WakeList>)> {
        probe_kernel()?;
        let ring = Ring::open(config.ring_entries).map_err(|error| explain(&error))?;
        let wake_up = Arc::new(os::event_descriptor().map_err(|error| Error::from_std("set up io_uring", &error))?);
        let wakes = WakeList::new(Box::new(WakeUp { event: Arc::clone(&wake_up) }));
        let backend = UringBackend {
            reason,
            ring: RefCell::new(ring),
            pool: Pool::new(config.pool_threads_max, &wakes),
            in_pool: Cell::new(0),
            inline: InlineWrites::new(config.inline_write_bytes_max),
            wake_up,
            tally: Tally::default(),
        };
        backend.watch_wake_up();
        Ok((backend, wakes))
    }

    pub(crate) fn reason(&self) -> String {
        self.reason.clone()
    }

    pub(crate) fn counters(&self) -> Counters {
        let ring = self.ring.borrow();
        let (enters, submissions, completions) = (ring.enters, ring.submissions, ring.completions);
        Counters { enters, submissions, completions, ..self.tally.read() }
    }

    /// One that the kernel makes readable for every completion, deferred ones included, and the wake-up itself: an event
    /// that the ring watches does not reach the ring's own event reliably (the kernel puts off such nested events, and
    /// Linux 6.18 loses the second of them).
    pub(crate) fn watched_descriptors(&self) -> io::Result<Vec<Arc<OwnedFd>>> {
        let event = os::event_descriptor()?;
        self.ring.borrow().ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(vec![Arc::new(event), Arc::clone(&self.wake_up)])
    }

    pub(crate) fn start(&self, slots: &Slots, key: OpKey, op: Op) {
        let op = match op {
            Op::Connect { address } => {
                let begun = os::begin_connect(address).map(|socket| (Flight::connecting(socket), Next::Submit));
                return match begun {
                    Ok((flight, next)) => self.go_on(slots, key, flight, next),
                    Err(error) => slots.finish(key, Outcome::of(Err(error))),
                };
            }
            Op::Write { file, position, pieces } => match self.inline.try_write(&file, position, pieces) {
                Ok(result) => {
                    self.tally.add(|counters| counters.inline_writes += 1);
                    return slots.finish(key, Outcome::of(result.map(|()| Value::Unit)));
                }
                Err((position, pieces)) => {
                    if !file.is_direct() {
                        self.inline.ring_write_started(key);
                    }
                    return self.go_on(slots, key, Flight::write(file, position, pieces), Next::Submit);
                }
            },
            other => other,
        };
        if matches!(op, Op::Sync { .. }) {
            self.inline.sync_started(key);
            self.tally.add(|counters| counters.flushes += 1);
        }
        match Flight::begin(op) {
            Ok((flight, next)) => self.go_on(slots, key, flight, next),
            Err(op) => {
                self.in_pool.set(self.in_pool.get() + 1);
                self.tally.add(|counters| counters.helper_jobs += 1);
                self.pool.start(key, op);
            }
        }
    }

    pub(crate) fn cancel(&self, slots: &Slots, key: OpKey) {
        let mut ring = self.ring.borrow_mut();
        match ring.flight(key) {
            Some(flight) if flight.may_be_cancelled() => {
                let cancel = opcode::AsyncCancel::new(key.to_bits()).build().user_data(NOBODY);
                ring.push(cancel);
            }
            Some(_) => {}
            None => {
                drop(ring);
                if self.pool.cancel(key) {
                    self.in_pool.set(self.in_pool.get() - 1);
                    slots.finish(key, Outcome::of(Err(io::Error::from_raw_os_error(libc::ECANCELED))));
                }
            }
        }
    }

    pub(crate) fn turn(&self, slots: &Slots, wakes: &WakeList, wait: Wait) {
        let progressed = self.work_on_results(slots);
        let may_sleep = wait != Wait::Not && !progressed && wakes.try_sleep();
        // What the pool did before `try_sleep` kicked nobody, so it is looked for after.
        if may_sleep && !self.helpers_are_done() {
            let time_limit = match wait {
                Wait::Until(deadline) => Some(deadline.since(os::monotonic())),
                Wait::Not | Wait::UntilWoken => None,
            };
            self.ring.borrow_mut().submit_and_wait(time_limit);
        } else {
            self.ring.borrow_mut().submit();
        }
        if may_sleep {
            wakes.awake();
        }
        self.work_on_results(slots);
    }

    /// Lets the kernel have what is queued.
    pub(crate) fn submit(&self) {
        self.ring.borrow_mut().submit();
    }

    /// Whether there are completions, or work of the ring's that was put off.
    pub(crate) fn has_news(&self) -> bool {
        self.ring.borrow_mut().has_news()
    }

    pub(crate) fn needs_turn(&self) -> bool {
        self.helpers_are_done() || self.ring.borrow_mut().has_work()
    }

    fn helpers_are_done(&self) -> bool {
        self.in_pool.get() > 0 && self.pool.has_done()
    }

    pub(crate) fn close(&self, _slots: &Slots) {
        self.ring.borrow_mut().close();
        self.pool.close();
    }

    /// Keeps a flight on the ring, or finishes it.
    fn go_on(&self, slots: &Slots, key: OpKey, mut flight: Flight, next: Next) {
        if matches!(next, Next::HandOver) {
            self.tally.add(|counters| counters.handed_over += 1);
        }
        match next {
            Next::Submit | Next::HandOver => {
                let entry = flight.entry().user_data(key.to_bits());
                let mut ring = self.ring.borrow_mut();
                ring.keep(key, flight);
                ring.push(entry);
            }
            Next::Done(outcome) => {
                match &flight {
                    Flight::Sync { .. } => self.inline.sync_ended(key),
                    Flight::Write { file, .. } if !file.is_direct() => self.inline.ring_write_ended(key),
                    _ => {}
                }
                drop(flight);
                slots.finish(key, outcome);
            }
        }
    }

    /// Works on every result there is. True if an operation was finished.
    fn work_on_results(&self, slots: &Slots) -> bool {
        let mut finished = false;
        if self.in_pool.get() > 0 {
            for (key, outcome) in self.pool.take_done() {
                self.in_pool.set(self.in_pool.get() - 1);
                slots.finish(key, outcome);
                finished = true;
            }
        }
        let mut results = self.ring.borrow_mut().reap();
        for (user_data, result, flags) in results.drain(..) {
            if user_data == WAKE_UP {
                if !cqueue::more(flags) {
                    self.watch_wake_up();
                }
            } else if user_data & NOBODY == 0 {
                finished = true;
                self.completed(slots, OpKey::from_bits(user_data), result);
            }
        }
        self.ring.borrow_mut().reaped = results;
        finished
    }

    fn completed(&self, slots: &Slots, key: OpKey, result: i32) {
        let mut flight = self.ring.borrow_mut().take(key);
        let next = match flight.complete(result) {
            // Nobody waits: what may end here does.
            Next::Submit | Next::HandOver if slots.is_abandoned(key) && flight.may_be_cancelled() => {
                Next::Done(Outcome::of(Err(io::Error::from_raw_os_error(libc::ECANCELED))))
            }
            next => next,
        };
        self.go_on(slots, key, flight, next);
    }

    /// Watches the wake-up descriptor. Edge-triggered: the counter need not be read.
    fn watch_wake_up(&self) {
        let descriptor = Fd(self.wake_up.as_raw_fd());
        let watch = opcode::PollAdd::new(descriptor, libc::POLLIN as u32).multi(true).build().user_data(WAKE_UP);
        self.ring.borrow_mut().push(watch);
    }
}

impl Ring {
    fn open(entries: u32) -> io::Result<Ring> {
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(entries.saturating_mul(4))
            .build(entries)?;
        let enter = os::RingEnter::new(ring.as_raw_fd(), ring.params().is_feature_no_iowait());
        let mut ring = Ring {
            ring,
            enter,
            flights: Vec::new(),
            backlog: VecDeque::new(),
            in_kernel: 0,
            reaped: Vec::new(),
            enters: 0,
            submissions: 0,
            completions: 0,
        };
        // Some containers allow the set-up and forbid the use: find out now.
        ring.push(opcode::Nop::new().build().user_data(NOBODY));
        ring.try_enter(1, Some(Duration::from_secs(1)))?;
        ring.reaped = ring.reap();
        ring.reaped.clear();
        Ok(ring)
    }

    fn flight(&self, key: OpKey) -> Option<&Flight> {
        match self.flights.get(key.index()) {
            Some(Some((kept, flight))) if *kept == key => Some(flight),
            _ => None,
        }
    }

    fn keep(&mut self, key: OpKey, flight: Flight) {
        if self.flights.len() <= key.index() {
            self.flights.resize_with(key.index() + 1, || None);
        }
        let before = self.flights[key.index()].replace((key, flight));
        assert!(before.is_none(), "two operations on the ring with one index");
    }

    fn take(&mut self, key: OpKey) -> Flight {
        let (kept, flight) = self.flights[key.index()].take().expect("a result belongs to an operation on the ring");
        assert_eq!(kept, key, "a result belongs to the operation that it names");
        flight
    }

    /// Puts an entry into the submission queue, or behind it.
    fn push(&mut self, entry: Entry) {
        self.in_kernel += 1;
        self.submissions += 1;
        if !self.backlog.is_empty() || !self.push_now(&entry) {
            self.backlog.push_back(entry);
        }
    }

    fn push_now(&mut self, entry: &Entry) -> bool {
        os::push_entry(&mut self.ring, entry)
    }

    /// Lets the kernel have what is queued and takes what it has, without sleeping; no call if there is neither.
    fn submit(&mut self) {
        if self.has_kernel_work() {
            self.enter(0, None);
        }
    }

    /// Whether an enter would submit or reap something.
    fn has_kernel_work(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow() || !self.backlog.is_empty()
    }

    /// The same, or there are completions.
    fn has_work(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.has_kernel_work()
    }

    fn has_news(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.ring.submission().taskrun()
    }

    /// As [`Ring::submit`], and sleeps until something completes or the time is over.
    fn submit_and_wait(&mut self, time_limit: Option<Duration>) {
        if self.backlog.is_empty() {
            self.enter(1, time_limit);
        } else {
            self.enter(0, None);
        }
    }

    fn enter(&mut self, min_complete: u32, time_limit: Option<Duration>) {
        match self.try_enter(min_complete, time_limit) {
            // Time over, a signal, a full completion queue: the caller reaps and comes again.
            Ok(()) => {}
            Err(error) => panic!("io_uring_enter on our own ring: {error}"),
        }
    }

    fn try_enter(&mut self, min_complete: u32, time_limit: Option<Duration>) -> io::Result<()> {
        let to_submit = self.ring.submission().len() as u32;
        self.enters += 1;
        let entered = self.enter.enter(to_submit, min_complete, time_limit);
        while let Some(entry) = self.backlog.pop_front() {
            if !self.push_now(&entry) {
                self.backlog.push_front(entry);
                break;
            }
        }
        match entered {
            Err(error)
                if !matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Takes all results out of the completion queue.
    fn reap(&mut self) -> Vec<(u64, i32, u32)> {
        let mut results = std::mem::take(&mut self.reaped);
        for completion in self.ring.completion() {
            self.completions += 1;
            results.push((completion.user_data(), completion.result(), completion.flags()));
        }
        self.in_kernel -= results.iter().filter(|(_, _, flags)| !cqueue::more(*flags)).count();
        results
    }

    /// Cancels everything and waits until the kernel has let go of it.
    fn close(&mut self) {
        self.backlog_is_never_submitted();
        let all = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build().user_data(NOBODY);
        self.push(all);
        let deadline = os::monotonic() + CLOSE_WAIT_MAX;
        while self.in_kernel > 0 && os::monotonic() < deadline {
            if self.try_enter(1, Some(Duration::from_millis(100))).is_err() {
                break;
            }
            let mut results = self.reap();
            for (user_data, _, _) in results.drain(..) {
                if user_data & NOBODY == 0 {
                    // The flight, with all its memory, is the kernel's no more.
                    drop(self.take(OpKey::from_bits(user_data)));
                }
            }
            self.reaped = results;
        }
        let flights = std::mem::take(&mut self.flights);
        if self.in_kernel > 0 {
            // A device that never answers. Memory that the kernel may still write is not given back.
            std::mem::forget(flights);
        }
        self.enter.close();
    }

    fn backlog_is_never_submitted(&mut self) {
        for entry in std::mem::take(&mut self.backlog) {
            self.in_kernel -= 1;
            let user_data = entry.get_user_data();
            if user_data & NOBODY == 0 {
                drop(self.take(OpKey::from_bits(user_data)));
            }
        }
    }
}

/// Refuses kernels that lack what the ring needs.
fn probe_kernel() -> Result<()> {
    let release = os::kernel_release();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|digits| digits.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_MIN {
        return Ok(());
    }
    let words = format!("Linux {release} is older than {}.{}", KERNEL_MIN.0, KERNEL_MIN.1);
    Err(Error::new("set up io_uring", io::ErrorKind::Unsupported, words))
}

/// Says what a failed set-up means.
fn explain(error: &io::Error) -> Error {
    let words = match error.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel, or the container's system call filter, has no io_uring".to_owned(),
        Some(libc::EPERM | libc::EACCES) => match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
            Ok(disabled) if disabled.trim() != "0" => {
                format!("forbidden by the setting kernel.io_uring_disabled = {}", disabled.trim())
            }
            _ => "forbidden by the container's system call filter".to_owned(),
        },
        Some(libc::ENOMEM) => "no memory for a ring; on old kernels RLIMIT_MEMLOCK is too low".to_owned(),
        _ => return Error::from_std("set up io_uring", error),
    };
    Error::new("set up io_uring", error.kind(), words)
}
