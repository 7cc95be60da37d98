//! One operation on the ring: the memory that it owns, the entry that it submits, what it makes of a result.
//!
//! Owns the buffers, paths and pointers of the operation for as long as the kernel may use them. Never submits anything:
//! `uring.rs` does.
//!
//! An operation may take several entries, one after the other: a short write goes on behind what was written, a file is
//! sent piece by piece. Every pointer in an entry leads into memory on the heap that the [`Flight`] owns, so that the
//! flight itself may move.
#![expect(unsafe_code, reason = "the kernel fills buffers behind the compiler's back")]

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use io_uring::opcode;
use io_uring::squeue::Entry;
use io_uring::types::{Fd, FsyncFlags};

use crate::buffer::Buffer;
use crate::file::File;
use crate::op::{Op, Outcome, SyncKind, Value};
use crate::os::{self, Vectored};
use crate::send_file::{SendFile, Step};
use crate::socket::{Listener, Socket};
use crate::zeros::Zeros;

/// Bytes in one entry, at most: its length has 32 bits, and the kernel cuts at 2 GiB.
const BYTES_PER_ENTRY_MAX: usize = 1 << 30;

/// An operation that the ring works on.
pub(crate) enum Flight {
    Read {
        file: File,
        position: u64,
        buffer: Buffer,
        len: usize,
        count: usize,
        patience: Patience,
    },
    Write {
        file: File,
        position: u64,
        pieces: Vectored,
        patience: Patience,
    },
    /// `written` once the kernel cannot make zeros without writing them.
    WriteZeros {
        file: File,
        zeros: Zeros,
        written: bool,
    },
    Sync {
        file: File,
        kind: SyncKind,
    },
    Allocate {
        file: File,
        position: u64,
        len: u64,
    },
    /// `poll` after the kernel said that it would have to wait (a non-blocking listener).
    Accept {
        listener: Listener,
        poll: bool,
    },
    /// The connection is being made; the entry waits for the socket to become writable.
    Connect {
        socket: OwnedFd,
    },
    Recv {
        socket: Socket,
        buffer: Buffer,
    },
    Send {
        socket: Socket,
        pieces: Vectored,
        /// Made when there are several pieces.
        message: Option<Box<libc::msghdr>>,
    },
    /// `loading` is the buffer of the read that the entry does; without one it waits for the socket.
    SendFile {
        send: SendFile,
        loading: Option<Buffer>,
        position: u64,
    },
    Readable {
        descriptor: Arc<OwnedFd>,
    },
    Arrival {
        socket: Socket,
    },
}

// SAFETY: the only thing in here that is not Send by itself is the header of a `Send`, whose pointers lead into its own
// `pieces`, which are.
unsafe impl Send for Flight {}

/// Whether the kernel may hand the entry to a thread of its own when it would have to wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// No: it refuses, and we know.
    Refuse,
    /// Yes.
    HandOver,
}

/// What becomes of an operation after a result, or before its first entry.
pub(crate) enum Next {
    /// It is over.
    Done(Outcome),
    /// It needs one more entry.
    Submit,
    /// The same: the kernel would have had to wait, and now may do so on a thread of its own.
    HandOver,
}

impl Flight {
    /// The flight of an operation and what comes first; the operation itself if it is not one for the ring.
    pub(crate) fn begin(op: Op) -> Result<(Flight, Next), Op> {
        let flight = match op {
            Op::Read { file, position, buffer, len } => {
                // A read through the page cache that waits needs no thread; refused, it would not even begin.
                let patience = if file.is_direct() { patience_with(&file) } else { Patience::HandOver };
                Flight::Read { file, position, buffer, len, count: 0, patience }
            }
            Op::Write { file, position, pieces } => Flight::write(file, position, Vectored::new(pieces)),
            Op::WriteZeros { file, position, len } => {
                Flight::WriteZeros { file, zeros: Zeros::new(position, len), written: false }
            }
            Op::Sync { file, kind } => Flight::Sync { file, kind },
            Op::Allocate { file, position, len } => Flight::Allocate { file, position, len },
            Op::Accept { listener } => Flight::Accept { listener, poll: false },
            Op::Recv { socket, buffer } => Flight::Recv { socket, buffer },
            Op::Send { socket, pieces } => Flight::Send { socket, pieces: Vectored::new(pieces), message: None },
            Op::SendFile { socket, file, position, len } => {
                let send = SendFile::new(socket, file, position, len);
                Flight::SendFile { send, loading: None, position: 0 }
            }
            Op::Readable { descriptor } => Flight::Readable { descriptor },
            Op::Arrival { socket } => Flight::Arrival { socket },
            other => return Err(other),
        };
        Ok(flight.first())
    }

    /// The flight of a write.
    pub(crate) fn write(file: File, position: u64, pieces: Vectored) -> Flight {
        let patience = patience_with(&file);
        Flight::Write { file, position, pieces, patience }
    }

    /// The flight of a connection that has been started.
    pub(crate) fn connecting(socket: OwnedFd) -> Flight {
        Flight::Connect { socket }
    }

    fn first(mut self) -> (Flight, Next) {
        let next = match &mut self {
            Flight::Write { pieces, .. } | Flight::Send { pieces, .. } if pieces.left() == 0 => done(Value::Unit),
            Flight::WriteZeros { zeros, .. } if zeros.left() == 0 => done(Value::Unit),
            Flight::SendFile { .. } => self.send_file_step(),
            _ => Next::Submit,
        };
        (self, next)
    }

    /// The next entry. The caller keeps the flight until its result has come.
    pub(crate) fn entry(&mut self) -> Entry {
        match self {
            Flight::Read { file, position, buffer, len, count, patience } => {
                let (place, room) = (buffer.spare_start(), (*len - *count).min(BYTES_PER_ENTRY_MAX) as u32);
                let offset = *position + *count as u64;
                opcode::Read::new(Fd(file.descriptor()), place, room).offset(offset).rw_flags(patience.flags()).build()
            }
            Flight::Write { file, position, pieces, patience } => {
                write_entry(file.descriptor(), *position, pieces, *patience)
            }
            Flight::WriteZeros { file, zeros, written: false } => {
                let entry = opcode::Fallocate::new(Fd(file.descriptor()), zeros.left()).offset(zeros.position());
                entry.mode(os::WRITE_ZEROES).build()
            }
            Flight::WriteZeros { file, zeros, written: true } => {
                let position = zeros.position();
                write_entry(file.descriptor(), position, zeros.pieces(), Patience::HandOver)
            }
            Flight::Sync { file, kind } => {
                let flags = match kind {
                    SyncKind::Data => FsyncFlags::DATASYNC,
                    SyncKind::All => FsyncFlags::empty(),
                };
                opcode::Fsync::new(Fd(file.descriptor())).flags(flags).build()
            }
            Flight::Allocate { file, position, len } => {
                opcode::Fallocate::new(Fd(file.descriptor()), *len).offset(*position).build()
            }
            Flight::Accept { listener, poll: true } => poll_entry(listener.descriptor(), libc::POLLIN),
            Flight::Accept { listener, poll: false } => {
                let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
                let null = std::ptr::null_mut();
                opcode::Accept::new(Fd(listener.descriptor()), null, null.cast()).flags(flags).build()
            }
            Flight::Connect { socket } => poll_entry(socket.as_raw_fd(), libc::POLLOUT),
            Flight::Recv { socket, buffer } => {
                let (place, room) = (buffer.spare_start(), buffer.spare().min(BYTES_PER_ENTRY_MAX) as u32);
                opcode::Recv::new(Fd(socket.descriptor()), place, room).build()
            }
            Flight::Send { socket, pieces, message } => send_entry(socket.descriptor(), pieces, message),
            Flight::SendFile { send, loading: None, .. } => poll_entry(send.socket().descriptor(), libc::POLLOUT),
            Flight::SendFile { send, loading: Some(buffer), position } => {
                let (place, room) = (buffer.spare_start(), buffer.spare() as u32);
                opcode::Read::new(Fd(send.file().descriptor()), place, room).offset(*position).build()
            }
            Flight::Readable { descriptor } => poll_entry(descriptor.as_raw_fd(), libc::POLLIN),
            Flight::Arrival { socket } => poll_entry(socket.descriptor(), libc::POLLIN),
        }
    }

    /// Takes the result of the entry: a count or a negative errno.
    pub(crate) fn complete(&mut self, result: i32) -> Next {
        let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        if matches!(&result, Err(error) if error.kind() == ErrorKind::Interrupted) {
            return Next::Submit;
        }
        if let Err(error) = &result
            && self.was_refused(error)
        {
            return Next::HandOver;
        }
        match self {
            Flight::Read { .. } => self.read_completed(result),
            Flight::Write { position, pieces, .. } => match result {
                Ok(0) => failed(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    *position += count as u64;
                    pieces.written(count);
                    if pieces.left() > 0 { Next::Submit } else { done(Value::Unit) }
                }
                Err(error) => failed(error),
            },
            Flight::WriteZeros { .. } => self.zeros_completed(result),
            Flight::Sync { .. } | Flight::Allocate { .. } => unit(result),
            Flight::Readable { .. } | Flight::Arrival { .. } => unit(result),
            Flight::Accept { .. } => self.accept_completed(result),
            Flight::Connect { socket } => match result.and_then(|_| os::take_socket_error(socket.as_raw_fd())) {
                Ok(()) => self.connect_completed(),
                Err(error) => failed(error),
            },
            Flight::Recv { .. } => self.recv_completed(result),
            Flight::Send { pieces, .. } => match result {
                Ok(count) => {
                    pieces.written(count);
                    if pieces.left() > 0 { Next::Submit } else { done(Value::Unit) }
                }
                Err(error) => failed(error),
            },
            Flight::SendFile { .. } => self.send_file_completed(result),
        }
    }

    /// Whether the kernel refused to wait. From then on it may.
    fn was_refused(&mut self, error: &io::Error) -> bool {
        let (Flight::Read { file, patience, .. } | Flight::Write { file, patience, .. }) = self else { return false };
        if *patience == Patience::HandOver {
            return false;
        }
        let does_not_know = error.raw_os_error() == Some(libc::EOPNOTSUPP);
        if does_not_know {
            file.cannot_refuse_to_block();
        }
        let refused = does_not_know || error.kind() == ErrorKind::WouldBlock;
        if refused {
            *patience = Patience::HandOver;
        }
        refused
    }

    fn zeros_completed(&mut self, result: io::Result<usize>) -> Next {
        let Flight::WriteZeros { zeros, written, .. } = self else { unreachable!("called for zeros") };
        match result {
            Ok(_) if !*written => done(Value::Unit),
            Ok(0) => failed(ErrorKind::WriteZero.into()),
            Ok(count) => {
                zeros.pieces().written(count);
                zeros.written(count);
                if zeros.left() > 0 { Next::Submit } else { done(Value::Unit) }
            }
            Err(error) if !*written && os::is_not_supported(&error) => {
                *written = true;
                Next::Submit
            }
            Err(error) => failed(error),
        }
    }

    fn read_completed(&mut self, result: io::Result<usize>) -> Next {
        let Flight::Read { buffer, len, count, .. } = self else { unreachable!("called for a read") };
        let ended = match result {
            Ok(more) => {
                // SAFETY: the kernel has filled that many bytes at the place and within the room of `entry`.
                unsafe { buffer.filled(more) };
                *count += more;
                if more > 0 && *count < *len {
                    return Next::Submit;
                }
                Ok(Value::Count(*count))
            }
            Err(error) => Err(error),
        };
        Next::Done(Outcome { result: ended, buffer: Some(std::mem::take(buffer)) })
    }

    fn recv_completed(&mut self, result: io::Result<usize>) -> Next {
        let Flight::Recv { buffer, .. } = self else { unreachable!("called for a receive") };
        if let Ok(count) = result {
            // SAFETY: the kernel has filled that many bytes at the place and within the room of `entry`.
            unsafe { buffer.filled(count) };
        }
        Next::Done(Outcome { result: result.map(Value::Count), buffer: Some(std::mem::take(buffer)) })
    }

    fn accept_completed(&mut self, result: io::Result<usize>) -> Next {
        let Flight::Accept { poll, .. } = self else { unreachable!("called for an accept") };
        let polled = std::mem::replace(poll, false);
        match result {
            Ok(_) if polled => Next::Submit,
            Ok(descriptor) => match os::adopt(descriptor as RawFd).and_then(os::accepted) {
                Ok((socket, peer)) => done(Value::Accepted(socket, peer)),
                Err(error) if os::concerns_one_connection(&error) => Next::Submit,
                Err(error) => failed(error),
            },
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                *poll = true;
                Next::Submit
            }
            Err(error) if os::concerns_one_connection(&error) => Next::Submit,
            Err(error) => failed(error),
        }
    }

    fn connect_completed(&mut self) -> Next {
        let Flight::Connect { socket } = self else { unreachable!("called for a connect") };
        match socket.try_clone().and_then(os::connected) {
            Ok(socket) => done(Value::Socket(socket)),
            Err(error) => failed(error),
        }
    }

    fn send_file_completed(&mut self, result: io::Result<usize>) -> Next {
        let Flight::SendFile { send, loading, .. } = self else { unreachable!("called for a send of a file") };
        let loaded = match (loading.take(), result) {
            (_, Err(error)) => Err(error),
            (None, Ok(_)) => Ok(()),
            (Some(mut buffer), Ok(count)) => {
                // SAFETY: the kernel has filled that many bytes at the place and within the room of `entry`.
                unsafe { buffer.filled(count) };
                send.load(buffer)
            }
        };
        match loaded {
            Ok(()) => self.send_file_step(),
            Err(error) => failed(error),
        }
    }

    fn send_file_step(&mut self) -> Next {
        let Flight::SendFile { send, loading, position: from } = self else {
            unreachable!("called for a send of a file")
        };
        match send.step() {
            Step::Done(Ok(())) => done(Value::Unit),
            Step::Done(Err(error)) => failed(error),
            Step::WaitWritable => Next::Submit,
            Step::Read { position, len } => {
                *loading = Some(Buffer::with_capacity(len));
                *from = position;
                Next::Submit
            }
        }
    }

    /// Whether the operation is ended early when nobody waits for it. What changes a file runs to its end.
    pub(crate) fn may_be_cancelled(&self) -> bool {
        !matches!(
            self,
            Flight::Write { .. } | Flight::WriteZeros { .. } | Flight::Sync { .. } | Flight::Allocate { .. }
        )
    }
}

fn done(value: Value) -> Next {
    Next::Done(Outcome::of(Ok(value)))
}

fn failed(error: io::Error) -> Next {
    Next::Done(Outcome::of(Err(error)))
}

fn unit(result: io::Result<usize>) -> Next {
    Next::Done(Outcome::of(result.map(|_| Value::Unit)))
}

fn poll_entry(descriptor: RawFd, events: libc::c_short) -> Entry {
    opcode::PollAdd::new(Fd(descriptor), events as u32).build()
}

impl Patience {
    fn flags(self) -> i32 {
        match self {
            Patience::Refuse => libc::RWF_NOWAIT,
            Patience::HandOver => 0,
        }
    }
}

/// Asks the kernel to refuse, where that is understood.
fn patience_with(file: &File) -> Patience {
    if file.can_refuse_to_block() { Patience::Refuse } else { Patience::HandOver }
}

fn write_entry(file: RawFd, position: u64, pieces: &Vectored, patience: Patience) -> Entry {
    let flags = patience.flags();
    match pieces.next_call() {
        [piece] => {
            let len = piece.iov_len.min(BYTES_PER_ENTRY_MAX) as u32;
            opcode::Write::new(Fd(file), piece.iov_base.cast(), len).offset(position).rw_flags(flags).build()
        }
        many => {
            let entry = opcode::Writev::new(Fd(file), many.as_ptr(), many.len() as u32).offset(position);
            entry.rw_flags(flags).build()
        }
    }
}

/// MSG_WAITALL lets the kernel go on after a short send by itself.
fn send_entry(socket: RawFd, pieces: &Vectored, message: &mut Option<Box<libc::msghdr>>) -> Entry {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
    match pieces.next_call() {
        [piece] => {
            let len = piece.iov_len.min(BYTES_PER_ENTRY_MAX) as u32;
            opcode::Send::new(Fd(socket), piece.iov_base.cast(), len).flags(flags).build()
        }
        many => {
            let message = message.get_or_insert_with(|| Box::new(os::empty_message()));
            message.msg_iov = many.as_ptr().cast_mut();
            message.msg_iovlen = many.len() as _;
            opcode::SendMsg::new(Fd(socket), std::ptr::from_mut(&mut **message)).flags(flags as u32).build()
        }
    }
}
