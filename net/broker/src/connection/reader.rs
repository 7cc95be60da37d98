//! Bytes on the socket to whole frames.
//!
//! Owns the receive buffer: it grows with the bytes that arrive, never at the length that a frame declares. Never looks
//! into a frame, but at the first bytes of a connection, to tell HTTP and TLS from Kafka.

use std::cell::{Cell, RefCell};

use heddle_io::sync::Notify;
use heddle_io::{Buffer, Lease, Socket};
use heddle_protocol::frame::LENGTH_BYTES;

use super::session::{Ending, Session};
use crate::concurrently::{Either, either};
use crate::core::Core;
pub(crate) use crate::receive_budget::Charge;

/// The buffer of a connection that waits for its next request.
const IDLE_BYTES: usize = 4 << 10;
/// The buffer of a connection that fills what it is given.
const BUSY_BYTES_MAX: usize = 128 << 10;
/// How far the buffer may run ahead of the bytes that have arrived, on a connection that has sent frames as large.
const AHEAD_BYTES_MAX: usize = 1 << 20;

/// A whole request, without its length.
pub(crate) struct Frame {
    pub(crate) bytes: Lease,
    /// What the frame's memory takes of the receive budget.
    pub(crate) charge: Charge,
}

/// Where the reader leaves frames for dispatch: one waits while the one before it is worked on.
pub(crate) struct Frames {
    waiting: RefCell<Option<Frame>>,
    closed: Cell<bool>,
    changed: Notify,
}

impl Frames {
    pub(crate) fn new() -> Self {
        Self { waiting: RefCell::new(None), closed: Cell::new(false), changed: Notify::new() }
    }

    /// The next frame; nothing when no more will come.
    pub(crate) async fn next(&self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.waiting.take() {
                self.changed.notify_all();
                return Some(frame);
            }
            if self.closed.get() {
                return None;
            }
            self.changed.wait().await;
        }
    }

    async fn push(&self, frame: Frame) {
        while self.waiting.borrow().is_some() {
            self.changed.wait().await;
        }
        self.waiting.replace(Some(frame));
        self.changed.notify_all();
    }

    fn close(&self) {
        self.closed.set(true);
        self.changed.notify_all();
    }
}

/// Reads frames until the peer closes its side or the session is left.
pub(crate) async fn read(core: &Core, socket: &Socket, session: &Session, frames: &Frames) -> Result<(), Ending> {
    let mut receiver = Receiver::new(core, socket, session);
    loop {
        match either(session.left(), receiver.next()).await {
            Either::First(()) => break,
            Either::Second(frame) => match frame? {
                Some(frame) => frames.push(frame).await,
                None => break,
            },
        }
    }
    session.leave();
    frames.close();
    Ok(())
}

/// The receive side of one socket.
struct Receiver<'a> {
    core: &'a Core,
    socket: &'a Socket,
    session: &'a Session,
    /// Received and not yet handed on.
    received: Lease,
    /// How large a buffer is before the length of its frame is known.
    window: usize,
    /// The largest frame that has arrived whole, in bytes.
    largest: usize,
    /// Whether the first bytes were found to be of the Kafka protocol.
    recognised: bool,
}

impl<'a> Receiver<'a> {
    fn new(core: &'a Core, socket: &'a Socket, session: &'a Session) -> Self {
        Self { core, socket, session, received: Lease::default(), window: IDLE_BYTES, largest: 0, recognised: false }
    }

    /// The next frame; nothing when the peer has closed the connection between two frames.
    async fn next(&mut self) -> Result<Option<Frame>, Ending> {
        let mut charge = self.core.receive_budget().charge();
        let received = std::mem::take(&mut self.received);
        if self.whole_frame(&received)?.is_some() {
            return Ok(Some(self.split(received, charge)));
        }
        let mut buffer = Buffer::with_capacity(self.window.max(received.len() + 1));
        buffer.extend_from_slice(&received);
        drop(received);
        if !buffer.is_empty() {
            self.session.frame_started(self.core.io().now());
        }
        loop {
            let needed = self.frame_length(&buffer)?;
            let capacity = self.capacity(buffer.len(), needed);
            if buffer.spare() == 0 || capacity >= 2 * buffer.capacity() {
                charge.raise(capacity).await;
                buffer.reserve(capacity - buffer.len());
            }
            let (result, returned) = self.core.io().recv(self.socket, buffer).await;
            buffer = returned;
            let count = result.map_err(Ending::Socket)?;
            self.resize_window(count, buffer.spare());
            if count == 0 {
                let arrived = buffer.len();
                return if arrived == 0 { Ok(None) } else { Err(Ending::Truncated { arrived }) };
            }
            let now = self.core.io().now();
            if self.whole_frame(&buffer)?.is_some() {
                self.session.frame_ended(now);
                return Ok(Some(self.split(buffer.freeze(), charge)));
            }
            self.session.frame_started(now);
        }
    }

    /// Cuts the frame that `received` starts with, and keeps what follows it.
    fn split(&mut self, received: Lease, charge: Charge) -> Frame {
        let end = frame_end(&received).expect("the caller has seen a whole frame");
        self.largest = self.largest.max(end);
        self.received = received.slice(end..received.len());
        Frame { bytes: received.slice(LENGTH_BYTES..end), charge }
    }

    /// Where the first frame ends, if all of it is there.
    fn whole_frame(&mut self, bytes: &[u8]) -> Result<Option<usize>, Ending> {
        Ok(self.frame_length(bytes)?.filter(|needed| *needed <= bytes.len()))
    }

    /// Where the first frame ends, if its length has arrived and may be.
    fn frame_length(&mut self, bytes: &[u8]) -> Result<Option<usize>, Ending> {
        let Some(start) = bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        if !self.recognised {
            if let Some(what) = foreign(start) {
                return Err(Ending::Foreign(what));
            }
            self.recognised = true;
        }
        let length = i32::from_be_bytes(*start);
        let limit = self.core.config().request_bytes_max;
        if usize::try_from(length).is_ok_and(|length| length <= limit) {
            Ok(frame_end(bytes))
        } else {
            Err(Ending::FrameLength { length, limit })
        }
    }

    /// The capacity of a buffer that holds `arrived` bytes and needs more.
    fn capacity(&self, arrived: usize, needed: Option<usize>) -> usize {
        let trusted = self.largest.min(AHEAD_BYTES_MAX).max(self.window);
        let grown = (2 * arrived).max(arrived + trusted);
        needed.map_or(grown, |needed| needed.min(grown)).max(arrived + 1)
    }

    /// A connection that fills its buffers gets larger ones, one that leaves them empty smaller ones.
    fn resize_window(&mut self, count: usize, spare: usize) {
        if spare == 0 {
            self.window = (2 * self.window).min(BUSY_BYTES_MAX);
        } else if count < self.window / 8 {
            self.window = (self.window / 2).max(IDLE_BYTES);
        }
    }
}

/// Where the frame that `bytes` start with ends; nothing while its length is incomplete or impossible.
fn frame_end(bytes: &[u8]) -> Option<usize> {
    let length = i32::from_be_bytes(*bytes.first_chunk::<LENGTH_BYTES>()?);
    usize::try_from(length).ok()?.checked_add(LENGTH_BYTES)
}

/// What else than the Kafka protocol starts like this, if anything (case 70).
fn foreign(start: &[u8; LENGTH_BYTES]) -> Option<&'static str> {
    match start {
        [0x16, 0x03, ..] => Some("a TLS handshake"),
        b"GET " | b"POST" | b"PUT " | b"HEAD" | b"DELE" | b"OPTI" | b"PATC" | b"CONN" | b"PRI " => {
            Some("an HTTP request")
        }
        b"SSH-" => Some("an SSH client"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_70_foreign_protocols_are_told_apart() {
        assert_eq!(foreign(&[0x16, 0x03, 0x01, 0x02]), Some("a TLS handshake"));
        assert_eq!(foreign(b"GET "), Some("an HTTP request"));
        assert_eq!(foreign(&[0, 0, 0, 24]), None);
        assert_eq!(foreign(&[0x06, 0x40, 0, 0]), None, "100 MiB is a frame");
    }

    #[test]
    fn a_frame_ends_where_its_length_says() {
        assert_eq!(frame_end(&[0, 0, 0]), None);
        assert_eq!(frame_end(&[0, 0, 0, 0]), Some(4));
        assert_eq!(frame_end(&[0, 0, 1, 0, 9]), Some(260));
        assert_eq!(frame_end(&[0xff, 0xff, 0xff, 0xff]), None);
    }
}
