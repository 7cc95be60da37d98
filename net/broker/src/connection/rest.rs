//! The body of a large batch that waits in the socket for its place in a log: [`Rest`].
//!
//! Owns what of the frame its receiver has not taken. Whatever is not taken is thrown away before the next frame is
//! received, so a handler may leave it at any point.

use std::cell::RefCell;

use heddle_io::{AppendBuffer, Arrived, Error, Lease};
use heddle_protocol::{DecodeError, DecodeErrorKind};

use crate::api::Refusal;

/// The body, and what of the frame comes behind it.
pub(crate) struct Rest {
    /// The part of the body that came with its header.
    begun: RefCell<Lease>,
    /// The others, and what is behind them.
    arrived: Arrived,
    /// Bytes behind the body: zeros, which say that there are no tagged fields.
    behind: usize,
}

impl Rest {
    pub(super) fn new(begun: Lease, arrived: Arrived, behind: usize) -> Self {
        Self { begun: RefCell::new(begun), arrived, behind }
    }

    /// Bytes of the body that were not taken.
    pub(crate) fn body_len(&self) -> usize {
        self.begun.borrow().len() + self.arrived.left() - self.behind
    }

    /// Whether bytes are left in the socket.
    pub(super) fn is_left(&self) -> bool {
        self.arrived.left() > 0
    }

    /// Throws away what nobody has taken.
    pub(super) fn discard(&self) -> Result<(), Error> {
        self.arrived.discard(self.arrived.left())
    }

    /// Stages at most `count` bytes of the body in `buffer`; returns how many.
    pub(crate) fn stage(&self, buffer: &mut AppendBuffer, count: usize) -> Result<usize, Error> {
        let mut begun = self.begun.borrow_mut();
        if begun.is_empty() {
            return buffer.stage_arrived(&self.arrived, count.min(self.arrived.left() - self.behind));
        }
        let staged = buffer.stage(&begun[..count.min(begun.len())]);
        begun.advance(staged);
        Ok(staged)
    }

    /// The whole batch, in memory of its own, and the end of the frame checked.
    ///
    /// # Errors
    /// The connection is over; as [`Rest::check_end`].
    pub(crate) fn whole(&self, header: &[u8]) -> Result<Lease, Refusal> {
        let body = self.arrived.receive(self.arrived.left() - self.behind)?;
        let whole = [header, &self.begun.take(), &body].concat();
        self.check_end()?;
        Ok(Lease::from_vec(whole))
    }

    /// Throws away what is left of the body, and looks at what is behind it.
    ///
    /// # Errors
    /// The connection is over; the frame does not end as its length promised.
    pub(crate) fn check_end(&self) -> Result<(), Refusal> {
        self.arrived.discard(self.arrived.left() - self.behind)?;
        let end = self.arrived.receive(self.behind)?;
        match end.iter().rposition(|byte| *byte != 0) {
            None => Ok(()),
            Some(at) => {
                let (count, remaining) = (u32::from(end[at]), end.len() - at - 1);
                let kind = DecodeErrorKind::Count { count, remaining };
                Err(Refusal::Malformed(DecodeError { what: "ProduceRequest tagged fields", at, kind }))
            }
        }
    }
}
