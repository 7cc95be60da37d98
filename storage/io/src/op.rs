//! Operations in flight: what was asked for, who owns its memory, who waits for it.
//!
//! **The rule of ownership.** [`Op`] owns everything that the kernel may touch: buffers, paths, handles. From
//! [`crate::io::BackendImpl::start`] on, the backend owns the [`Op`], until the kernel has finished with it; then the
//! backend calls [`Slots::finish`] once. The future that waits ([`Pending`]) owns nothing but the number of a slot, so
//! that dropping it at any moment cannot free what the kernel still uses.
//!
//! ```text
//!            start                    finish
//! (vacant) ────────▶ Waiting ─────────────────▶ Done ──poll──▶ (vacant)
//!                       │ future dropped                          ▲
//!                       └──────▶ Abandoned ──finish, drop outcome─┘
//!                                (backend told to cancel)
//! ```

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::buffer::{Buffer, Lease};
use crate::file::{DirEntry, File, Hold, Metadata, OpenOptions};
use crate::io::Core;
use crate::socket::{Listener, Socket};

/// One operation with everything it needs.
pub(crate) enum Op {
    /// Opens or creates a file. Value: [`Value::File`].
    Open { path: PathBuf, options: OpenOptions },
    /// Opens a file, takes part in its lock, and reads up to `len` bytes at `position`. Value: [`Value::Opened`], and a buffer
    /// with the bytes; none where somebody else holds the file. Never given to a simulated core.
    OpenAndRead { path: PathBuf, options: OpenOptions, hold: Option<Hold>, position: u64, len: usize },
    /// Reads up to `len` bytes at `position` behind what `buffer` holds; short only at the end of the file. The caller
    /// made sure that they fit. Value: [`Value::Count`], and the buffer.
    Read { file: File, position: u64, buffer: Buffer, len: usize },
    /// Writes all pieces, one after the other, at `position`. Value: [`Value::Unit`].
    Write { file: File, position: u64, pieces: Vec<Lease> },
    /// Makes what was written durable. Value: [`Value::Unit`].
    Sync { file: File, kind: SyncKind },
    /// Sets the length in bytes. Value: [`Value::Unit`].
    SetLength { file: File, len: u64 },
    /// Reserves blocks; the length grows to cover them. Value: [`Value::Unit`].
    Allocate { file: File, position: u64, len: u64 },
    /// Makes a range of the file zeros, in blocks that count as written. Value: [`Value::Unit`].
    WriteZeros { file: File, position: u64, len: u64 },
    /// What is known of an open file. Value: [`Value::Metadata`].
    FileMetadata { file: File },
    /// Locks the file against other holders. Value: [`Value::Unit`], or [`Value::LockedBy`].
    Lock { file: File },
    /// Creates a directory and its parents. Value: [`Value::Unit`].
    CreateDirAll { path: PathBuf },
    /// Lists a directory. Value: [`Value::Entries`].
    ReadDir { path: PathBuf },
    /// Renames, replacing what is there. Value: [`Value::Unit`].
    Rename { from: PathBuf, to: PathBuf },
    /// Removes a file. Value: [`Value::Unit`].
    RemoveFile { path: PathBuf },
    /// Removes a directory with all that is in it. Value: [`Value::Unit`].
    RemoveDirAll { path: PathBuf },
    /// Makes the entries of a directory durable. Value: [`Value::Unit`].
    SyncDir { path: PathBuf },
    /// Makes everything durable that the file system of a directory holds. Value: [`Value::Unit`]; `Unsupported` where that
    /// cannot be had.
    SyncFileSystem { path: PathBuf },
    /// What is known of a path. Value: [`Value::Metadata`].
    Metadata { path: PathBuf },
    /// Takes the next connection. Value: [`Value::Accepted`].
    Accept { listener: Listener },
    /// Opens a connection. Value: [`Value::Socket`].
    Connect { address: SocketAddr },
    /// Receives at least one byte, unless the peer has closed, behind what `buffer` holds. Value: [`Value::Count`], and
    /// the buffer.
    Recv { socket: Socket, buffer: Buffer },
    /// Waits until the socket can be read from. Value: [`Value::Unit`].
    Arrival { socket: Socket },
    /// Sends all pieces, one after the other. Value: [`Value::Unit`].
    Send { socket: Socket, pieces: Vec<Lease> },
    /// Sends `len` bytes of the file from `position`; fails with `UnexpectedEof` if the file ends before. Value:
    /// [`Value::Unit`].
    SendFile { socket: Socket, file: File, position: u64, len: usize },
    /// Waits until a descriptor can be read (signals). Value: [`Value::Unit`].
    Readable { descriptor: std::sync::Arc<std::os::fd::OwnedFd> },
    /// Runs a function where it may block. Value: [`Value::Unit`]; what it computes leaves by a channel of its own.
    Run { function: Box<dyn FnOnce() + Send> },
}

impl Op {
    /// Whether the operation is ended early when nobody waits for it. What changes a file or a directory runs to its
    /// end once it was asked for, unless its core ends before it has begun.
    pub(crate) fn may_be_cancelled(&self) -> bool {
        match self {
            Op::Read { .. } | Op::FileMetadata { .. } | Op::ReadDir { .. } | Op::Metadata { .. } | Op::Run { .. } => {
                true
            }
            Op::Accept { .. } | Op::Connect { .. } | Op::Recv { .. } | Op::Send { .. } | Op::SendFile { .. } => true,
            Op::Readable { .. } | Op::Arrival { .. } => true,
            Op::OpenAndRead { .. } => false,
            Op::Open { .. } | Op::Write { .. } | Op::Sync { .. } | Op::SetLength { .. } | Op::Allocate { .. } => false,
            Op::WriteZeros { .. }
            | Op::Lock { .. }
            | Op::CreateDirAll { .. }
            | Op::Rename { .. }
            | Op::RemoveFile { .. } => false,
            Op::RemoveDirAll { .. } | Op::SyncDir { .. } | Op::SyncFileSystem { .. } => false,
        }
    }
}

/// How much a sync makes durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SyncKind {
    /// The bytes, and of the metadata what is needed to read them back (`fdatasync`).
    Data,
    /// The bytes and all metadata (`fsync`).
    All,
}

/// What an operation gives.
#[derive(Debug)]
pub(crate) enum Value {
    Unit,
    Count(usize),
    File(File),
    /// The file, its length in bytes, and whether it is held.
    Opened(File, u64, bool),
    Metadata(Metadata),
    Entries(Vec<DirEntry>),
    Accepted(Socket, SocketAddr),
    Socket(Socket),
    /// Somebody else holds the lock: the process id, if the lock file says it.
    LockedBy(Option<u32>),
}

/// The end of an operation: its value or error, and its buffer back.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) result: std::io::Result<Value>,
    /// The buffer of `Read` and `Recv`, whatever the result; what `OpenAndRead` has read.
    pub(crate) buffer: Option<Buffer>,
}

impl Outcome {
    /// An outcome of an operation that was given no buffer.
    pub(crate) fn of(result: std::io::Result<Value>) -> Outcome {
        Outcome { result, buffer: None }
    }

    /// The operation was refused or given up before it began: `op`'s buffer comes back.
    pub(crate) fn refused(op: Op, error: std::io::Error) -> Outcome {
        let buffer = match op {
            Op::Read { buffer, .. } | Op::Recv { buffer, .. } => Some(buffer),
            _ => None,
        };
        Outcome { result: Err(error), buffer }
    }
}

/// The number of an operation in flight. Never reused while anybody may still name it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct OpKey(u64);

impl OpKey {
    /// The key as the 64 bits that travel through the kernel.
    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    /// The key that [`OpKey::to_bits`] gave.
    pub(crate) const fn from_bits(bits: u64) -> OpKey {
        OpKey(bits)
    }

    /// A small number, unique among the operations in flight.
    pub(crate) fn index(self) -> usize {
        self.0 as u32 as usize
    }
}

/// The operations of one core that have begun and whose outcome nobody has taken. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Slots {
    inner: Rc<RefCell<SlotsInner>>,
}

#[derive(Default)]
struct SlotsInner {
    slots: Vec<Slot>,
    vacant: Vec<u32>,
}

struct Slot {
    /// Tells successive operations of one slot apart; 31 bits, so that backends have a bit of their own.
    generation: u32,
    state: SlotState,
}

enum SlotState {
    Vacant,
    Waiting(Option<Waker>),
    Done(Outcome),
    Abandoned,
}

const GENERATION_MASK: u32 = 0x7fff_ffff;

impl Slots {
    fn insert(&self) -> OpKey {
        let mut inner = self.inner.borrow_mut();
        let index = inner.vacant.pop().unwrap_or_else(|| {
            inner.slots.push(Slot { generation: 0, state: SlotState::Vacant });
            u32::try_from(inner.slots.len() - 1).expect("memory ends before four billion operations")
        });
        let slot = &mut inner.slots[index as usize];
        slot.state = SlotState::Waiting(None);
        OpKey((u64::from(slot.generation) << 32) | u64::from(index))
    }

    /// The operation `key` is over and the kernel uses none of its memory. Each operation is finished exactly once.
    ///
    /// # Panics
    ///
    /// If `key` is not in flight.
    pub(crate) fn finish(&self, key: OpKey, outcome: Outcome) {
        let mut inner = self.inner.borrow_mut();
        let slot = inner.slot_mut(key);
        match std::mem::replace(&mut slot.state, SlotState::Vacant) {
            SlotState::Waiting(waker) => {
                slot.state = SlotState::Done(outcome);
                drop(inner);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            SlotState::Abandoned => {
                inner.vacate(key);
                drop(inner);
                drop(outcome);
            }
            SlotState::Vacant | SlotState::Done(_) => panic!("operation {key:?} finished twice"),
        }
    }

    /// Whether nobody waits for `key` any more.
    pub(crate) fn is_abandoned(&self, key: OpKey) -> bool {
        matches!(self.inner.borrow_mut().slot_mut(key).state, SlotState::Abandoned)
    }

    fn poll(&self, key: OpKey, context: &mut Context<'_>) -> Poll<Outcome> {
        let mut inner = self.inner.borrow_mut();
        let slot = inner.slot_mut(key);
        match std::mem::replace(&mut slot.state, SlotState::Vacant) {
            SlotState::Waiting(waker) => {
                let renewed = match waker {
                    Some(waker) if waker.will_wake(context.waker()) => waker,
                    _ => context.waker().clone(),
                };
                slot.state = SlotState::Waiting(Some(renewed));
                Poll::Pending
            }
            SlotState::Done(outcome) => {
                inner.vacate(key);
                Poll::Ready(outcome)
            }
            SlotState::Vacant | SlotState::Abandoned => panic!("operation {key:?} polled after its end"),
        }
    }

    /// The waiter is gone. True if the operation is still in flight and should be cancelled.
    fn abandon(&self, key: OpKey) -> bool {
        let mut inner = self.inner.borrow_mut();
        let slot = inner.slot_mut(key);
        match std::mem::replace(&mut slot.state, SlotState::Abandoned) {
            SlotState::Waiting(waker) => {
                drop(inner);
                drop(waker);
                true
            }
            SlotState::Done(outcome) => {
                inner.vacate(key);
                drop(inner);
                drop(outcome);
                false
            }
            SlotState::Vacant | SlotState::Abandoned => panic!("operation {key:?} abandoned after its end"),
        }
    }

    /// How many operations have begun whose outcome nobody has taken.
    pub(crate) fn len(&self) -> usize {
        let inner = self.inner.borrow();
        inner.slots.len() - inner.vacant.len()
    }
}

impl SlotsInner {
    fn slot_mut(&mut self, key: OpKey) -> &mut Slot {
        let slot = self.slots.get_mut(key.index()).expect("a key names a slot that exists");
        assert_eq!(u64::from(slot.generation), key.0 >> 32, "operation {key:?} is over");
        slot
    }

    fn vacate(&mut self, key: OpKey) {
        let slot = &mut self.slots[key.index()];
        slot.state = SlotState::Vacant;
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        self.vacant.push(key.index() as u32);
    }
}

/// The future of one operation. Starts it when made, gives it up when dropped.
pub(crate) struct Pending {
    core: Rc<Core>,
    /// `None` once the outcome was taken.
    key: Option<OpKey>,
}

impl Pending {
    pub(crate) fn start(core: Rc<Core>, op: Op) -> Pending {
        let key = core.slots.insert();
        if core.is_closed() {
            let error = std::io::Error::other("the executor is gone");
            core.slots.finish(key, Outcome::refused(op, error));
        } else {
            core.backend.start(&core.slots, key, op);
        }
        Pending { core, key: Some(key) }
    }
}

impl Future for Pending {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let key = self.key.expect("an operation is not polled after its end");
        let outcome = std::task::ready!(self.core.slots.poll(key, context));
        self.key = None;
        Poll::Ready(outcome)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        if self.core.slots.abandon(key) && !self.core.is_closed() {
            self.core.backend.cancel(&self.core.slots, key);
        }
    }
}
