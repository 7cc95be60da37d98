//! Bytes that wait in a socket until all of them are there: [`Arrived`].
//!
//! Owns the wait for them and the count of what was taken. A large request whose end the socket holds can be received
//! where its bytes are to stay, in one go: its sender holds nobody up, however slow it is, and nothing is copied twice.
//!
//! The socket's low-water mark (SO_RCVLOWAT) is raised for the wait: the kernel makes room for that many bytes and wakes
//! the core once, not for every packet (`tcp_set_rcvlowat`, Linux 4.19). It wakes it earlier when memory is short or the
//! peer has gone; then the bytes are to be received as they come.

#![expect(unsafe_code, reason = "a system call that fills memory of others")]

use std::cell::Cell;
use std::os::fd::RawFd;

use crate::error::{Error, Result};
use crate::io::Io;
use crate::op::Op;
use crate::os;
use crate::socket::{Socket, SocketKind, socket_error};

/// Bytes that a socket holds, to be received without waiting. Only its holder may receive from the socket.
#[derive(Debug)]
pub struct Arrived {
    socket: Socket,
    left: Cell<usize>,
}

/// The low-water mark goes back when the wait is over or given up: other receives want the first byte.
struct LowWater(RawFd);

impl Drop for LowWater {
    fn drop(&mut self) {
        // A socket that takes no option is over; the next receive says so.
        let _ = os::set_low_water(self.0, 1);
    }
}

impl Io {
    /// Waits until the socket holds `count` bytes; nothing if it does not: the peer has gone, the kernel has no room, or the
    /// network is a simulated one. May be dropped at any point.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn arrival(&self, socket: &Socket, count: usize) -> Result<Option<Arrived>> {
        if matches!(socket.kind(), SocketKind::Sim(_)) {
            return Ok(None);
        }
        let descriptor = socket.descriptor();
        let failed = |error| failed(socket, &error);
        if os::received_bytes(descriptor).map_err(failed)? < count {
            os::set_low_water(descriptor, count).map_err(failed)?;
            let _mark = LowWater(descriptor);
            self.perform(Op::Arrival { socket: socket.clone() }).await.result.map_err(failed)?;
        }
        let is_there = os::received_bytes(descriptor).map_err(failed)? >= count;
        Ok(is_there.then(|| Arrived { socket: socket.clone(), left: Cell::new(count) }))
    }
}

impl Arrived {
    /// Bytes that nobody has taken.
    pub fn left(&self) -> usize {
        self.left.get()
    }

    /// Throws the next `count` bytes away.
    ///
    /// # Errors
    /// The connection is over.
    ///
    /// # Panics
    /// If fewer are left.
    pub fn discard(&self, mut count: usize) -> Result<()> {
        self.check_left(count);
        while count > 0 {
            let gone = match os::discard(self.socket.descriptor(), count) {
                Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
                other => other,
            };
            let gone = gone.map_err(|error| failed(&self.socket, &error))?;
            self.took(gone);
            count -= gone;
        }
        Ok(())
    }

    /// Takes the next `count` bytes, as a copy.
    ///
    /// # Errors
    /// The connection is over.
    ///
    /// # Panics
    /// If fewer are left.
    pub fn receive(&self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        // SAFETY: `bytes` has room for `count` bytes.
        unsafe { self.receive_at(bytes.as_mut_ptr(), count)? };
        Ok(bytes)
    }

    /// Takes the next `count` bytes to `place`.
    ///
    /// # Errors
    /// The connection is over.
    ///
    /// # Panics
    /// If fewer are left.
    ///
    /// # Safety
    /// `place` is valid for `count` bytes.
    pub(crate) unsafe fn receive_at(&self, place: *mut u8, count: usize) -> Result<()> {
        self.check_left(count);
        if count > 0 {
            // SAFETY: the caller vouches for the place.
            let received = unsafe { os::receive_there(self.socket.descriptor(), place, count) };
            received.map_err(|error| failed(&self.socket, &error))?;
            self.took(count);
        }
        Ok(())
    }

    fn check_left(&self, count: usize) {
        assert!(count <= self.left.get(), "{count} bytes of {} that are left", self.left.get());
    }

    fn took(&self, count: usize) {
        self.left.set(self.left.get() - count);
    }
}

fn failed(socket: &Socket, error: &std::io::Error) -> Error {
    socket_error("receive from", socket, error)
}
