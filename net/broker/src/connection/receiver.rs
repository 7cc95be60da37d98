//! Bytes on the socket to whole frames.
//!
//! Owns the receive buffer: it grows with the bytes that arrive, never at the length that a frame declares. Never looks
//! into a frame, but at the first bytes of a connection, to tell HTTP and TLS from Kafka; of a large frame it asks
//! [`produce::opening`] whether its rest may stay in the socket.

use std::cell::Cell;
use std::future::poll_fn;
use std::ops::RangeInclusive;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use heddle_io::sync::Notified;
use heddle_io::{Buffer, Lease, Receiving, Socket};
use heddle_protocol::frame::LENGTH_BYTES;

use super::rest::Rest;
use super::session::{Ending, Session};
use crate::api::produce::{self, Opening};
use crate::concurrently::{Either, either};
use crate::core::Core;
pub(crate) use crate::receive_budget::Charge;

/// The buffer of a connection that waits for its next request.
const IDLE_BYTES: usize = 4 << 10;
/// The buffer of a connection that fills what it is given.
const BUSY_BYTES_MAX: usize = 128 << 10;
/// How far the buffer may run ahead of the bytes that have arrived, on a connection that has sent frames as large.
const AHEAD_BYTES_MAX: usize = 1 << 20;

/// From this size on the body of a batch may stay in the socket until its place is known, and up to this one: the kernel
/// holds half of tcp_rmem's limit at most, 3 MiB where nobody has changed it.
const REST_BYTES: RangeInclusive<usize> = (64 << 10)..=(2 << 20);

/// A whole request, without its length.
pub(crate) struct Frame {
    pub(crate) bytes: Lease,
    /// What is missing in `bytes`, if that waits in the socket.
    pub(crate) rest: Option<Rc<Rest>>,
    /// What the frame's memory takes of the receive budget.
    pub(crate) charge: Charge,
}

/// What becomes of the rest of a frame.
enum Stay {
    /// It is there, and stays in the socket.
    Stays,
    /// It is received as it comes.
    Comes,
    /// The session was left.
    Left,
}

/// The receive side of one socket.
pub(crate) struct Receiver<'a> {
    core: &'a Core,
    socket: &'a Socket,
    session: &'a Session,
    /// Received and not yet handed on.
    received: Lease,
    /// The start of a frame that is not whole yet, while nothing is being received.
    filling: Buffer,
    /// A frame whose rest stays in the socket, for now.
    staying: Option<(Lease, Rc<Rest>)>,
    /// What the frame before has left in the socket, or may still take.
    rest: Option<Rc<Rest>>,
    /// The frame that is not whole yet is received as it comes.
    as_it_comes: bool,
    /// The receive in flight. It outlives whoever waits for it: what arrives is never lost.
    receiving: Option<Receiving>,
    /// What the buffer that is being filled takes of the receive budget.
    charge: Charge,
    /// Tells when the session is left.
    left: Notified,
    /// How large a buffer is before the length of its frame is known.
    window: usize,
    /// The largest frame that has arrived whole, in bytes.
    largest: usize,
    /// Whether the first bytes were found to be of the Kafka protocol.
    recognised: Cell<bool>,
}

impl<'a> Receiver<'a> {
    pub(crate) fn new(core: &'a Core, socket: &'a Socket, session: &'a Session) -> Self {
        Self {
            core,
            socket,
            session,
            received: Lease::default(),
            filling: Buffer::default(),
            staying: None,
            rest: None,
            as_it_comes: false,
            receiving: None,
            charge: core.receive_budget().charge(),
            left: session.notice(),
            window: IDLE_BYTES,
            largest: 0,
            recognised: Cell::new(false),
        }
    }

    /// The next frame; nothing when the peer has closed the connection between two frames, or the session is left.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, Ending> {
        if self.session.is_leaving() || !self.fill().await? {
            return Ok(None);
        }
        let charge = std::mem::replace(&mut self.charge, self.core.receive_budget().charge());
        if let Some((bytes, rest)) = self.staying.take() {
            self.rest = Some(Rc::clone(&rest));
            return Ok(Some(Frame { bytes, rest: Some(rest), charge }));
        }
        let end = frame_end(&self.received).expect("a whole frame is there");
        self.largest = self.largest.max(end);
        let behind = self.received.slice(end..self.received.len());
        let bytes = std::mem::replace(&mut self.received, behind).slice(LENGTH_BYTES..end);
        Ok(Some(Frame { bytes, rest: None, charge }))
    }

    /// Runs `work`, and reads up to one frame ahead if that takes long: a request that waits for news hears of it here
    /// when its peer has gone.
    pub(crate) async fn meanwhile(
        &mut self,
        mut work: Pin<&mut impl Future<Output = Result<(), Ending>>>,
    ) -> Result<(), Ending> {
        let done = poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await;
        if let Poll::Ready(result) = done {
            return result;
        }
        if self.rest.as_ref().is_some_and(|rest| rest.is_left()) {
            return work.await;
        }
        match either(&mut work, self.fill()).await {
            Either::First(result) => return result,
            Either::Second(is_frame) => {
                if !is_frame? {
                    self.session.leave();
                }
            }
        }
        work.await
    }

    /// Receives until a whole frame is there; false if there will be none. May be dropped at any point and called again.
    async fn fill(&mut self) -> Result<bool, Ending> {
        if self.staying.is_some() {
            return Ok(true);
        }
        if let Some(rest) = self.rest.take() {
            rest.discard().map_err(Ending::Socket)?;
        }
        if self.receiving.is_none() && self.filling.is_empty() {
            if self.frame_length(&self.received)?.is_some_and(|needed| needed <= self.received.len()) {
                return Ok(true);
            }
            self.begin_frame();
        }
        loop {
            match self.leave_in_socket().await? {
                Stay::Stays => return Ok(true),
                Stay::Left => return Ok(false),
                Stay::Comes => {}
            }
            if self.receiving.is_none() {
                self.make_room().await?;
                let buffer = std::mem::take(&mut self.filling);
                self.receiving = Some(self.core.io().recv(self.socket, buffer));
            }
            let Some((result, buffer)) = self.received_or_left().await else { return Ok(false) };
            let count = result.map_err(Ending::Socket)?;
            if count == 0 {
                let arrived = buffer.len();
                return if arrived == 0 { Ok(false) } else { Err(Ending::Truncated { arrived }) };
            }
            let now = self.core.io().now();
            let needed = self.frame_length(&buffer)?;
            self.resize_window(needed, count, buffer.spare());
            if needed.is_some_and(|needed| needed <= buffer.len()) {
                self.session.frame_ended(now);
                self.received = buffer.freeze();
                return Ok(true);
            }
            self.session.frame_started(now);
            self.filling = buffer;
        }
    }

    /// Waits until the rest of a large batch is there, where it is to be received straight into its log.
    async fn leave_in_socket(&mut self) -> Result<Stay, Ending> {
        if self.as_it_comes || self.receiving.is_some() {
            return Ok(Stay::Comes);
        }
        let Some(needed) = self.frame_length(&self.filling)? else { return Ok(Stay::Comes) };
        self.as_it_comes = true;
        let (here, missing) = (self.filling.len(), needed - self.filling.len());
        if !REST_BYTES.contains(&missing) {
            return Ok(Stay::Comes);
        }
        let opening = produce::opening(self.core, &self.filling[LENGTH_BYTES..], needed - LENGTH_BYTES);
        let Some(Opening { request, body }) = opening else { return Ok(Stay::Comes) };
        self.as_it_comes = false;
        let arrival = pin!(self.core.io().arrival(self.socket, missing));
        let left = pin!(self.session.left());
        let Either::First(arrived) = either(arrival, left).await else { return Ok(Stay::Left) };
        self.as_it_comes = true;
        let Some(arrived) = arrived.map_err(Ending::Socket)? else { return Ok(Stay::Comes) };
        let head = std::mem::take(&mut self.filling).freeze();
        let begun = head.slice(LENGTH_BYTES + body.start..here);
        let rest = Rest::new(begun, arrived, needed - LENGTH_BYTES - body.end);
        self.session.frame_ended(self.core.io().now());
        self.largest = self.largest.max(needed);
        self.staying = Some((request, Rc::new(rest)));
        Ok(Stay::Stays)
    }

    /// Moves what is there of the next frame into a buffer of its own.
    fn begin_frame(&mut self) {
        self.as_it_comes = false;
        let received = std::mem::take(&mut self.received);
        let mut buffer = self.core.io().buffer(self.window.max(received.len() + 1));
        buffer.extend_from_slice(&received);
        if !buffer.is_empty() {
            self.session.frame_started(self.core.io().now());
        }
        self.filling = buffer;
    }

    /// Makes room in the buffer for what comes next, when the receive budget allows it.
    async fn make_room(&mut self) -> Result<(), Ending> {
        let arrived = self.filling.len();
        let capacity = self.capacity(arrived, self.frame_length(&self.filling)?);
        if self.filling.spare() == 0 || capacity >= 2 * self.filling.capacity() {
            self.charge.raise(capacity).await;
            let mut larger = self.core.io().buffer(capacity);
            larger.extend_from_slice(&self.filling);
            self.filling = larger;
        }
        Ok(())
    }

    /// What the receive in flight brought; nothing if the session is left before.
    async fn received_or_left(&mut self) -> Option<<Receiving as Future>::Output> {
        let Self { receiving, left, session, .. } = self;
        let arriving = receiving.as_mut().expect("a receive is in flight");
        let outcome = poll_fn(|context| {
            if session.is_leaving() || Pin::new(&mut *left).poll(context).is_ready() {
                return Poll::Ready(None);
            }
            Pin::new(&mut *arriving).poll(context).map(Some)
        });
        let outcome = outcome.await;
        *receiving = None;
        outcome
    }

    /// Where the first frame ends, if its length has arrived and may be.
    fn frame_length(&self, bytes: &[u8]) -> Result<Option<usize>, Ending> {
        let Some(start) = bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        if !self.recognised.get() {
            if let Some(what) = foreign(start) {
                return Err(Ending::Foreign(what));
            }
            self.recognised.set(true);
        }
        let length = i32::from_be_bytes(*start);
        let limit = self.core.config().request_bytes_max;
        if usize::try_from(length).is_ok_and(|length| length <= limit) {
            Ok(frame_end(bytes))
        } else {
            Err(Ending::FrameLength { length, limit })
        }
    }

    /// The capacity of a buffer that holds `arrived` bytes and needs more. Little before the length of the frame is
    /// known, however large the frames were that came before: a connection that says nothing holds nothing.
    fn capacity(&self, arrived: usize, needed: Option<usize>) -> usize {
        let Some(needed) = needed else { return self.window.max(arrived + 1) };
        let trusted = self.largest.min(AHEAD_BYTES_MAX).max(self.window);
        needed.min((2 * arrived).max(arrived + trusted)).max(arrived + 1)
    }

    /// A connection that fills its buffers with small frames gets larger ones, one that leaves them empty smaller ones. A
    /// large frame gets a buffer of its own, and little is to be moved there.
    fn resize_window(&mut self, needed: Option<usize>, count: usize, spare: usize) {
        if needed.is_some_and(|needed| needed > BUSY_BYTES_MAX) {
            self.window = IDLE_BYTES;
        } else if spare == 0 {
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
