//! Files through tokio-uring: its runtime around the core, its files under ours.
//!
//! Owns the runtime and its files. Never drops a future of the runtime before it is done: tokio-uring then loses the result
//! of the operation, and with it bytes that were read. Sockets are not offered.
//!
//! Buffers and leases go to the runtime as they are, without a copy. The runtime submits only when it parks its thread, which
//! a core that is always busy would never let it do: see [`TokioUring::come_again`].
#![expect(unsafe_code, reason = "the runtime reads and fills our memory through traits of its own")]

use std::cell::OnceCell;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;
use ::tokio_uring::buf::{IoBuf, IoBufMut};
use ::tokio_uring::fs::File as TheirFile;

use crate::buffer::{Buffer, Lease};
use crate::error::{Error, Result};
use crate::file::File;
use crate::foreign::{Boxed, Done, Runtime, Twins};
use crate::io::IoConfig;
use crate::op::{Op, Outcome, Value};
use crate::os::{self, PIECES_PER_CALL_MAX};

/// Bytes in one call, at most: its length has 32 bits, and the kernel cuts at 2 GiB.
const BYTES_PER_CALL_MAX: usize = 1 << 30;

/// The runtime of one core.
pub(crate) struct TokioUring {
    runtime: ::tokio_uring::Runtime,
    files: Rc<Twins<Rc<TheirFile>>>,
    /// Made in the runtime's context, when first needed.
    nudge: OnceCell<AsyncFd<OwnedFd>>,
}

impl TokioUring {
    /// Makes the runtime.
    ///
    /// # Errors
    ///
    /// No io_uring, or no descriptors.
    pub(crate) fn open(config: &IoConfig) -> Result<Runtime> {
        let mut builder = ::tokio_uring::builder();
        builder.entries(config.ring_entries);
        let runtime =
            ::tokio_uring::Runtime::new(&builder).map_err(|error| Error::from_std("set up tokio-uring", &error))?;
        Ok(Runtime::TokioUring(TokioUring { runtime, files: Rc::default(), nudge: OnceCell::new() }))
    }

    pub(crate) fn files(&self) -> &Twins<Rc<TheirFile>> {
        &self.files
    }

    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub(crate) fn start(&self, op: Op, done: Done) {
        let files = Rc::clone(&self.files);
        // The task is detached: it owns all that the kernel uses, and runs to its end.
        drop(::tokio_uring::spawn(async move { done(perform(&files, op).await) }));
    }

    /// Has the outer future polled again once the thread has been parked: only then is submitted what was started. So it is
    /// not woken at once but by a descriptor that becomes readable while the thread is parked.
    pub(crate) fn come_again(&self, context: &mut Context<'_>) {
        let nudge = self.nudge.get_or_init(|| {
            let event = os::event_descriptor().expect("a core has one more descriptor");
            // SAFETY: the descriptor belongs to the `AsyncFd` from here on, which closes it when it no longer watches it.
            unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) }
                .expect("the runtime watches a descriptor")
        });
        while let Poll::Ready(ready) = nudge.poll_read_ready(context) {
            let mut ready = ready.expect("the runtime runs");
            os::drain_event(nudge.as_raw_fd());
            ready.clear_ready();
        }
        os::signal_event(nudge.as_raw_fd());
    }
}

/// A timer of the runtime; to the millisecond, as all of its timers.
pub(crate) fn sleep(span: Duration) -> Boxed {
    Box::pin(::tokio::time::sleep(span))
}

async fn perform(files: &Twins<Rc<TheirFile>>, op: Op) -> Outcome {
    match op {
        Op::Read { file, position, buffer, len } => match twin(files, &file) {
            Ok(theirs) => read(&theirs, position, buffer, len).await,
            Err(error) => Outcome { result: Err(error), buffer: Some(buffer) },
        },
        Op::Write { file, position, pieces } => Outcome::of(match twin(files, &file) {
            Ok(theirs) => write(&theirs, position, pieces).await.map(|()| Value::Unit),
            Err(error) => Err(error),
        }),
        Op::Sync { file, .. } => Outcome::of(match twin(files, &file) {
            Ok(theirs) => theirs.sync_data().await.map(|()| Value::Unit),
            Err(error) => Err(error),
        }),
        _ => unreachable!("only reads, writes and syncs are given to a runtime"),
    }
}

/// The runtime's file, on a descriptor of its own: it closes what it has.
fn twin(files: &Twins<Rc<TheirFile>>, file: &File) -> io::Result<Rc<TheirFile>> {
    if let Some(theirs) = files.find(file) {
        return Ok(theirs);
    }
    let descriptor = os::duplicate(file.descriptor())?;
    Ok(files.keep(file, Rc::new(TheirFile::from_std(descriptor.into()))))
}

async fn read(file: &TheirFile, position: u64, mut buffer: Buffer, len: usize) -> Outcome {
    let mut count = 0;
    let result = loop {
        if count == len {
            break Ok(Value::Count(count));
        }
        let room = (len - count).min(BYTES_PER_CALL_MAX);
        let (read, space) = file.read_at(Space { buffer, room }, position + count as u64).await;
        buffer = space.buffer;
        match read {
            Ok(0) => break Ok(Value::Count(count)),
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    Outcome { result, buffer: Some(buffer) }
}

async fn write(file: &TheirFile, mut position: u64, pieces: Vec<Lease>) -> io::Result<()> {
    let mut left: Vec<Bytes> = pieces.into_iter().filter(|piece| !piece.is_empty()).map(Bytes).collect();
    while !left.is_empty() {
        let behind = left.split_off(left.len().min(PIECES_PER_CALL_MAX));
        let (written, mut pieces) = match <[Bytes; 1]>::try_from(left) {
            Ok([piece]) => {
                let (written, piece) = file.write_at(piece, position).submit().await;
                (written, vec![piece])
            }
            Err(many) => file.writev_at(many, position).await,
        };
        let mut count = match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        position += count as u64;
        pieces.retain_mut(|Bytes(piece)| {
            let whole = count.min(piece.len());
            piece.advance(whole);
            count -= whole;
            !piece.is_empty()
        });
        pieces.extend(behind);
        left = pieces;
    }
    Ok(())
}

/// A lease as the runtime wants it.
struct Bytes(Lease);

// SAFETY: a lease's memory stays where it is and unchanged while any clone of it lives, wherever the lease itself moves.
unsafe impl IoBuf for Bytes {
    fn stable_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.0.len().min(BYTES_PER_CALL_MAX)
    }

    fn bytes_total(&self) -> usize {
        self.bytes_init()
    }
}

/// The next `room` bytes behind what a buffer holds.
struct Space {
    buffer: Buffer,
    room: usize,
}

// SAFETY: a buffer's memory stays where it is while the buffer is not told to grow, wherever it moves; and `room` bytes
// behind what is filled belong to it, as the caller of the read made sure.
unsafe impl IoBuf for Space {
    fn stable_ptr(&self) -> *const u8 {
        self.buffer.as_ptr_range().end
    }

    fn bytes_init(&self) -> usize {
        0
    }

    fn bytes_total(&self) -> usize {
        self.room
    }
}

// SAFETY: as above; a buffer is the only owner of its memory.
unsafe impl IoBufMut for Space {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.buffer.spare_start()
    }

    unsafe fn set_init(&mut self, count: usize) {
        // SAFETY: the caller promises that the first `count` bytes of the space are initialised.
        unsafe { self.buffer.filled(count) };
        self.room -= count;
    }
}
