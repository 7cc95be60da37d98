//! An append whose body is received straight into its place: [`Log::stage`], then [`Staged::commit`].
//!
//! Owns the time between: the bytes lie in the log's tail, checked, and nobody sees them; nobody else appends. The log
//! itself does not change before the commit, so a batch that fails its checks, or whose sender leaves in the middle, gives
//! its place back. What cannot be done this way is appended whole ([`Log::append`]), with the same checks.

use std::cell::RefCell;
use std::rc::Rc;

use heddle_io::AppendBuffer;
use heddle_io::sync::Permits;
use heddle_record::{BatchError, BatchHeader, HEADER_LEN, LeaderEpoch, Timestamp};

use crate::admission::admit_header;
use crate::error::AppendError;
use crate::log::{Appended, Log};
use crate::tail::Tail;

/// What became of a batch whose header came first.
pub enum Staging {
    /// Its body was received, and it may be appended.
    Staged(Staged),
    /// It was appended before; its body was not received.
    Duplicate(Appended),
    /// It is to be received whole and appended: its body was not received.
    Whole,
}

/// A batch in the log's tail that is not part of the log. Dropped, it gives its place back.
pub struct Staged {
    log: Log,
    header: BatchHeader,
    len: usize,
    now: Timestamp,
    place: Place,
    _turn: Permits,
}

/// Bytes staged in a tail.
struct Place(Rc<RefCell<Tail>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.borrow_mut().unstage();
    }
}

impl Log {
    /// Whether a batch of `len` bytes with this header can be staged; if not, it is appended whole.
    pub fn can_stage(&self, header: &[u8; HEADER_LEN], len: usize) -> bool {
        let log = &self.inner;
        let now = Timestamp::new(log.core.io.wall_clock());
        log.core.device.is_direct() && admit_header(header, len, &self.config(), now).is_some()
    }

    /// Receives the body of a batch of `len` bytes into its place. `receive` is called, once the place is known, until all
    /// of the body is there: it stages at most as many bytes in the buffer as it is told, and says how many.
    ///
    /// # Errors
    /// [`AppendError`]; nothing has changed then. A body that breaks off is [`AppendError::Corrupt`].
    pub async fn stage(
        &self,
        header: &[u8; HEADER_LEN],
        len: usize,
        leader_epoch: LeaderEpoch,
        receive: impl FnMut(&mut AppendBuffer, usize) -> Result<usize, heddle_io::Error>,
    ) -> Result<Staging, AppendError> {
        let log = &self.inner;
        if !log.core.device.is_direct() {
            return Ok(Staging::Whole);
        }
        let turn = log.turn(len).await.map_err(AppendError::Offline)?;
        let (config, now) = (self.config(), Timestamp::new(log.core.io.wall_clock()));
        let Some(mut batch) = admit_header(header, len, &config, now) else { return Ok(Staging::Whole) };
        let mut state = log.state.borrow_mut();
        if let Some(original) = state.precedent(&batch, leader_epoch)? {
            return Ok(Staging::Duplicate(original));
        }
        let header = batch.complete(state.log_end, leader_epoch, Timestamp::NONE);
        let active = state.active();
        if active.must_roll(len as u64, header.last_offset(), now, &config, log.name.id) {
            return Ok(Staging::Whole);
        }
        let (tails, segment, position) = (&log.core.tails, active.base_offset, active.size);
        let place = Place(Rc::clone(&state.tail));
        drop(state);

        tails.stage(&place.0, segment, position, batch.header.bytes());
        let (begin, body_len) = (position + HEADER_LEN as u64, len - HEADER_LEN);
        let received = tails.stage_from(&place.0, segment, begin, body_len, batch.header.checksum(), receive);
        let computed = received.map_err(|error| {
            tracing::debug!(log = %log.name, "a batch broke off: {error}");
            AppendError::Corrupt(BatchError::Truncated { needed: len, available: HEADER_LEN })
        })?;
        if computed != header.crc {
            return Err(AppendError::Corrupt(BatchError::Checksum { stored: header.crc, computed }));
        }
        Ok(Staging::Staged(Staged { log: self.clone(), header, len, now, place, _turn: turn }))
    }
}

impl Staged {
    /// Makes the batch part of its log: it has its offsets.
    pub fn commit(self) -> Appended {
        self.place.0.borrow_mut().commit();
        self.log.inner.enter(&self.header, self.len, None, Timestamp::NONE, self.now)
    }
}
