//! The portable backend: epoll for sockets, helper threads for files.
//!
//! Owns the epoll set and what waits in it. Never blocks but in `epoll_wait`, when no task is ready.
//!
//! A socket operation is tried at once; if the socket is not ready the operation waits, and is tried again when epoll
//! says so. Its memory stays in [`Waiting`], on this thread: the kernel touches it only during a call. A descriptor is
//! armed for one event at a time (EPOLLONESHOT), so that a closed one needs no farewell.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use crate::buffer::Buffer;
use crate::counters::{Counters, Tally};
use crate::error::{Error, Result};
use crate::io::{IoConfig, Wait};
use crate::op::{Op, OpKey, Outcome, Slots, Value};
use crate::os::{self, Vectored};
use crate::pool::Pool;
use crate::send_file::{SendFile, Step};
use crate::socket::{Listener, Socket};
use crate::wake::{Kick, WakeList};

/// Events taken from the kernel at once.
const EVENTS_PER_TURN: usize = 256;

/// The event of the wake-up descriptor; no file descriptor has this number.
const WAKE_UP: u64 = u64::MAX;

pub(crate) struct BlockingBackend {
    reason: String,
    epoll: Arc<OwnedFd>,
    pool: Pool,
    waits: RefCell<Waits>,
    tally: Tally,
}

/// What waits for descriptors.
#[derive(Default)]
struct Waits {
    operations: HashMap<OpKey, Waiting>,
    descriptors: HashMap<RawFd, Interest>,
    /// These wait for the helper threads to read a part of their file.
    loading: HashMap<OpKey, SendFile>,
}

/// The operations that wait for one descriptor.
#[derive(Default)]
struct Interest {
    readers: Vec<OpKey>,
    writers: Vec<OpKey>,
}

/// An operation that could not be done at once, with all that it owns.
enum Waiting {
    Accept(Listener),
    Connect(OwnedFd),
    Recv(Socket, Buffer),
    Send(Socket, Vectored),
    SendFile(SendFile),
    Readable(Arc<OwnedFd>),
    Arrival(Socket),
}

/// What becomes of an operation that was tried.
enum Tried {
    Done(Outcome),
    /// It waits until the descriptor can be read.
    WaitReadable(Waiting),
    WaitWritable(Waiting),
    /// It waits for bytes of its file.
    WaitRead(SendFile, u64, usize),
}

/// Ends the sleep in `epoll_wait`.
struct WakeUp {
    event: OwnedFd,
}

impl Kick for WakeUp {
    fn kick(&self) {
        os::signal_event(self.event.as_raw_fd());
    }
}

impl BlockingBackend {
    pub(crate) fn open(config: &IoConfig, reason: String) -> Result<(BlockingBackend, Arc<WakeList>)> {
        BlockingBackend::make(config, reason).map_err(|error| Error::from_std("set up epoll", &error))
    }

    fn make(config: &IoConfig, reason: String) -> io::Result<(BlockingBackend, Arc<WakeList>)> {
        let epoll = Arc::new(os::epoll_create()?);
        let event = os::event_descriptor()?;
        // Edge-triggered: a kick is news once, and the counter need not be read.
        let events = (libc::EPOLLIN | libc::EPOLLET) as u32;
        os::epoll_control(&epoll, libc::EPOLL_CTL_ADD, event.as_raw_fd(), events, WAKE_UP)?;
        let wakes = WakeList::new(Box::new(WakeUp { event }));
        let pool = Pool::new(config.pool_threads_max, &wakes);
        Ok((BlockingBackend { reason, epoll, pool, waits: RefCell::default(), tally: Tally::default() }, wakes))
    }

    pub(crate) fn reason(&self) -> String {
        self.reason.clone()
    }

    pub(crate) fn watched_descriptors(&self) -> Vec<Arc<OwnedFd>> {
        vec![Arc::clone(&self.epoll)]
    }

    pub(crate) fn counters(&self) -> Counters {
        self.tally.read()
    }

    pub(crate) fn start(&self, slots: &Slots, key: OpKey, op: Op) {
        self.tally.add(|counters| {
            counters.submissions += 1;
            counters.flushes += u64::from(matches!(op, Op::Sync { .. }));
        });
        let waiting = match op {
            Op::Accept { listener } => Waiting::Accept(listener),
            Op::Connect { address } => match os::begin_connect(address) {
                Ok(socket) => return self.wait(slots, key, Tried::WaitWritable(Waiting::Connect(socket))),
                Err(error) => return slots.finish(key, Outcome::of(Err(error))),
            },
            Op::Recv { socket, buffer } => Waiting::Recv(socket, buffer),
            Op::Send { socket, pieces } => Waiting::Send(socket, Vectored::new(pieces)),
            Op::SendFile { socket, file, position, len } => {
                Waiting::SendFile(SendFile::new(socket, file, position, len))
            }
            Op::Readable { descriptor } => {
                return self.wait(slots, key, Tried::WaitReadable(Waiting::Readable(descriptor)));
            }
            Op::Arrival { socket } => {
                return self.wait(slots, key, Tried::WaitReadable(Waiting::Arrival(socket)));
            }
            file_op => return self.help(key, file_op),
        };
        self.wait(slots, key, waiting.attempt());
    }

    pub(crate) fn cancel(&self, slots: &Slots, key: OpKey) {
        let waited = self.waits.borrow_mut().remove(key);
        if waited.is_some() {
            return slots.finish(key, cancelled());
        }
        // A job that has begun runs to its end; `reap` finishes it.
        if self.pool.cancel(key) {
            let loading = self.waits.borrow_mut().loading.remove(&key);
            drop(loading);
            slots.finish(key, cancelled());
        }
    }

    pub(crate) fn turn(&self, slots: &Slots, wakes: &WakeList, wait: Wait) {
        self.reap(slots);
        let may_sleep = wait != Wait::Not && wakes.try_sleep();
        if may_sleep && self.needs_turn() {
            wakes.awake();
            return self.reap(slots);
        }
        let nothing_waits = self.waits.borrow().descriptors.is_empty();
        if !may_sleep && nothing_waits {
            return;
        }
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_PER_TURN];
        let timeout = match wait {
            _ if !may_sleep => Some(Duration::ZERO),
            Wait::Until(deadline) => Some(deadline.since(os::monotonic())),
            Wait::Not | Wait::UntilWoken => None,
        };
        self.tally.add(|counters| counters.enters += 1);
        let count = os::epoll_wait(&self.epoll, &mut events, timeout).expect("epoll waits on a valid set");
        if may_sleep {
            wakes.awake();
        }
        for event in &events[..count] {
            if event.u64 != WAKE_UP {
                self.descriptor_ready(slots, event.u64 as RawFd, event.events as libc::c_int);
            }
        }
        self.reap(slots);
    }

    pub(crate) fn needs_turn(&self) -> bool {
        self.pool.has_done()
    }

    pub(crate) fn close(&self, _slots: &Slots) {
        self.pool.close();
        drop(std::mem::take(&mut *self.waits.borrow_mut()));
    }

    /// Tries again whatever waited for a descriptor.
    fn descriptor_ready(&self, slots: &Slots, descriptor: RawFd, events: libc::c_int) {
        let failed = events & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
        let (readable, writable) = (events & libc::EPOLLIN != 0 || failed, events & libc::EPOLLOUT != 0 || failed);
        let ready = self.waits.borrow_mut().take_ready(descriptor, readable, writable);
        for (key, waiting) in ready {
            self.wait(slots, key, waiting.attempt_after_wait());
        }
        self.arm(descriptor);
    }

    fn help(&self, key: OpKey, op: Op) {
        self.tally.add(|counters| counters.helper_jobs += 1);
        self.pool.start(key, op);
    }

    /// Finishes an operation that was tried, or lets it wait.
    fn wait(&self, slots: &Slots, key: OpKey, tried: Tried) {
        let mut waits = self.waits.borrow_mut();
        let descriptor = match tried {
            Tried::Done(outcome) => {
                drop(waits);
                return slots.finish(key, outcome);
            }
            Tried::WaitRead(send, position, len) => {
                let op = Op::Read { file: send.file().clone(), position, buffer: Buffer::with_capacity(len), len };
                waits.loading.insert(key, send);
                return self.help(key, op);
            }
            Tried::WaitReadable(waiting) => {
                let descriptor = waiting.descriptor();
                waits.descriptors.entry(descriptor).or_default().readers.push(key);
                waits.operations.insert(key, waiting);
                descriptor
            }
            Tried::WaitWritable(waiting) => {
                let descriptor = waiting.descriptor();
                waits.descriptors.entry(descriptor).or_default().writers.push(key);
                waits.operations.insert(key, waiting);
                descriptor
            }
        };
        drop(waits);
        self.arm(descriptor);
    }

    /// Asks epoll for the next event that somebody waits for.
    fn arm(&self, descriptor: RawFd) {
        let waits = self.waits.borrow();
        let Some(interest) = waits.descriptors.get(&descriptor) else { return };
        let readable = if interest.readers.is_empty() { 0 } else { libc::EPOLLIN };
        let writable = if interest.writers.is_empty() { 0 } else { libc::EPOLLOUT };
        let (events, data) = ((libc::EPOLLONESHOT | readable | writable) as u32, descriptor as u64);
        let armed = os::epoll_control(&self.epoll, libc::EPOLL_CTL_MOD, descriptor, events, data).or_else(|error| {
            // Not in the set yet, or another descriptor that had the number was.
            match error.kind() {
                ErrorKind::NotFound => os::epoll_control(&self.epoll, libc::EPOLL_CTL_ADD, descriptor, events, data),
                _ => Err(error),
            }
        });
        armed.expect("epoll watches every socket while memory lasts");
    }

    /// Finishes what the helper threads have done.
    fn reap(&self, slots: &Slots) {
        for (key, outcome) in self.pool.take_done() {
            self.tally.add(|counters| counters.completions += 1);
            let loading = self.waits.borrow_mut().loading.remove(&key);
            let Some(mut send) = loading else {
                slots.finish(key, outcome);
                continue;
            };
            if slots.is_abandoned(key) {
                slots.finish(key, cancelled());
                continue;
            }
            let bytes = outcome.buffer.expect("a read gives its buffer back");
            match outcome.result.and_then(|_| send.load(bytes)) {
                Ok(()) => self.wait(slots, key, Waiting::SendFile(send).attempt()),
                Err(error) => slots.finish(key, Outcome::of(Err(error))),
            }
        }
    }
}

impl Waits {
    /// Takes out an operation that waits for a descriptor.
    fn remove(&mut self, key: OpKey) -> Option<Waiting> {
        let waiting = self.operations.remove(&key)?;
        let descriptor = waiting.descriptor();
        let interest = self.descriptors.get_mut(&descriptor).expect("a waiting operation is listed");
        interest.readers.retain(|other| *other != key);
        interest.writers.retain(|other| *other != key);
        if interest.readers.is_empty() && interest.writers.is_empty() {
            self.descriptors.remove(&descriptor);
        }
        Some(waiting)
    }

    fn take_ready(&mut self, descriptor: RawFd, readable: bool, writable: bool) -> Vec<(OpKey, Waiting)> {
        let Some(interest) = self.descriptors.get(&descriptor) else { return Vec::new() };
        let readers = interest.readers.iter().filter(|_| readable);
        let writers = interest.writers.iter().filter(|_| writable);
        let keys: Vec<OpKey> = readers.chain(writers).copied().collect();
        keys.into_iter().filter_map(|key| Some((key, self.remove(key)?))).collect()
    }
}

impl Waiting {
    fn descriptor(&self) -> RawFd {
        match self {
            Waiting::Accept(listener) => listener.descriptor(),
            Waiting::Connect(socket) => socket.as_raw_fd(),
            Waiting::Recv(socket, _) | Waiting::Send(socket, _) | Waiting::Arrival(socket) => socket.descriptor(),
            Waiting::SendFile(send) => send.socket().descriptor(),
            Waiting::Readable(descriptor) => descriptor.as_raw_fd(),
        }
    }

    /// Does what can be done without waiting.
    fn attempt(self) -> Tried {
        match self {
            Waiting::Accept(listener) => accept(listener),
            Waiting::Recv(socket, buffer) => receive(socket, buffer),
            Waiting::Send(socket, pieces) => send(socket, pieces),
            Waiting::SendFile(mut send) => match send.step() {
                Step::Done(result) => Tried::Done(Outcome::of(result.map(|()| Value::Unit))),
                Step::WaitWritable => Tried::WaitWritable(Waiting::SendFile(send)),
                Step::Read { position, len } => Tried::WaitRead(send, position, len),
            },
            Waiting::Connect(_) | Waiting::Readable(_) | Waiting::Arrival(_) => self.attempt_after_wait(),
        }
    }

    /// The descriptor is ready: for some operations that is all there is to it.
    fn attempt_after_wait(self) -> Tried {
        match self {
            Waiting::Connect(socket) => Tried::Done(Outcome::of(connected(socket))),
            Waiting::Readable(_) | Waiting::Arrival(_) => Tried::Done(Outcome::of(Ok(Value::Unit))),
            other => other.attempt(),
        }
    }
}

fn accept(listener: Listener) -> Tried {
    loop {
        match os::accept(listener.descriptor()).and_then(os::accepted) {
            Ok((socket, peer)) => return Tried::Done(Outcome::of(Ok(Value::Accepted(socket, peer)))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Tried::WaitReadable(Waiting::Accept(listener));
            }
            Err(error) if os::concerns_one_connection(&error) => {}
            Err(error) => return Tried::Done(Outcome::of(Err(error))),
        }
    }
}

fn connected(socket: OwnedFd) -> io::Result<Value> {
    os::take_socket_error(socket.as_raw_fd())?;
    os::connected(socket).map(Value::Socket)
}

fn receive(socket: Socket, mut buffer: Buffer) -> Tried {
    let result = match os::receive(socket.descriptor(), &mut buffer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            return Tried::WaitReadable(Waiting::Recv(socket, buffer));
        }
        other => other.map(Value::Count),
    };
    Tried::Done(Outcome { result, buffer: Some(buffer) })
}

fn send(socket: Socket, mut pieces: Vectored) -> Tried {
    while pieces.left() > 0 {
        match os::send(socket.descriptor(), pieces.next_call()) {
            Ok(count) => pieces.written(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Tried::WaitWritable(Waiting::Send(socket, pieces));
            }
            Err(error) => return Tried::Done(Outcome::of(Err(error))),
        }
    }
    Tried::Done(Outcome::of(Ok(Value::Unit)))
}

/// Nobody sees it: whoever waited is gone.
fn cancelled() -> Outcome {
    Outcome::of(Err(io::Error::from_raw_os_error(libc::ECANCELED)))
}
